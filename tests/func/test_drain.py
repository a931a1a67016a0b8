#!/usr/bin/env python3
"""test_drain: a write of guest data has passed its look and not yet landed, and another write makes its place a part of the header. Both must be in the file
afterwards. The thread of the first one waits at a hook; what the second one does is seen in the log of hooks."""
import ctypes
import errno
import mmap
import os
import threading

import dgops
from dgqemu import make_qcow2
from dgtest import Suite, eq, must, ok, pair, raises, read_at, wait_for

from test_takeover import hooked

suite = Suite(__file__, needs="hooks")
RDWR = os.O_RDWR
AT = 65536  # the first of a VHDX's two headers
LENGTH = 4096
HOOK = "data.write"
WRITE_AND_WAIT = 7  # sync_file_range(2); unlike fsync it does not hold the inode's lock, which the other write needs


def write(fd):
    os.pwrite(fd, bytes(LENGTH), AT)


def write_back(fd):
    """From the kernel's cache, which plain files have."""
    with mmap.mmap(fd, LENGTH, offset=AT) as m:
        m[:] = bytes(LENGTH)
    eq(dgops.libc.sync_file_range(fd, ctypes.c_int64(AT), ctypes.c_int64(LENGTH), WRITE_AND_WAIT), 0, "sync_file_range")


class Other(threading.Thread):
    """A call in a thread of its own."""

    def __init__(self, *call):
        super().__init__(daemon=True)
        self.what, self.error = call, None
        self.start()

    def run(self):
        try:
            self.what[0](*self.what[1:])
        except Exception as e:  # for the thread that waits for this one
            self.error = e

    def result(self):
        wait_for(lambda: not self.is_alive(), "the call is answered")
        if self.error:
            raise self.error


def hooks_of(log):
    if not os.path.exists(log):
        return []
    with open(log, encoding="ascii") as f:
        return [line.split()[1] for line in f if line.endswith("\n")]


def overtaken(build, change, make):
    hooked(build)
    with pair(build, "wait=0", settled=False) as p:
        vhdx = os.path.join(p.ds.base, "vhdx")
        must("qemu-img", "create", "-q", "-f", "vhdx", vhdx, "8M")
        full = read_at(vhdx, 0, os.path.getsize(vhdx))
        make(p.ds.raw("file"))
        with open(p.ds.raw("file"), "r+b") as f:
            f.seek(AT)
            f.write(full[AT:])
        arm, log = os.path.join(p.ds.base, "arm"), os.path.join(p.ds.base, "log")
        p.a.stop()
        p.a.start(DISKGUARD_HOOK_ARM=arm, DISKGUARD_HOOK_WAIT=HOOK + ":1", DISKGUARD_HOOK_LOG=log)
        fd = os.open(p.a.path("file"), RDWR)
        open(arm, "wb").close()
        try:
            first = Other(change, fd)
            wait_for(lambda: HOOK in hooks_of(log), "the first change waits")
            second = Other(os.pwrite, fd, full[:AT], 0)
            wait_for(lambda: not second.is_alive() or "image.drain" in hooks_of(log), "the second one waits for it, or is done")
            ok(first.is_alive(), "the first change is still under way")
        finally:
            os.unlink(arm)
        first.result()
        second.result()
        wanted = full[:AT] + bytes(LENGTH) + full[AT + LENGTH:]
        eq(os.pread(fd, 2 * AT, 0), wanted[:2 * AT], "what its holder sees")
        raises(errno.EBUSY, os.open, p.b.path("file"), RDWR)
        os.close(fd)
        p.ds.wait_free("file")
        ok(read_at(p.ds.raw("file"), 0, len(wanted)) == wanted, "the file afterwards")


def plain(path):
    with open(path, "wb") as f:
        f.write(bytes(AT))


@suite.case("a write is under way where a held image gets another header")
def held(build):
    overtaken(build, write, lambda path: make_qcow2(path, 1 << 20))


@suite.case("a write is under way where a plain file becomes an image")
def becomes(build):
    overtaken(build, write_back, plain)


@suite.case("the write that is waited for makes another image of the file than the one that was about to be claimed: both writes are done")
def changed(build):
    """A parallel copy of a fixed VHD with a partition table: its footer is under way when its first block is written."""
    hooked(build)
    with pair(build, "wait=0", "raw=auto", settled=False) as p:
        vhd = os.path.join(p.ds.base, "vhd")
        must("qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=fixed,force_size=on", vhd, "8M")
        full = bytearray(read_at(vhd, 0, os.path.getsize(vhd)))
        full[446:462] = bytes((0, 0, 0, 0, 0x83, 0, 0, 0, 1, 0, 0, 0, 0, 16, 0, 0))
        full[510:512] = b"\x55\xaa"
        end, page = len(full), (len(full) - 512) // LENGTH * LENGTH
        with open(p.ds.raw("file"), "wb") as f:
            f.truncate(end)
        arm, log = os.path.join(p.ds.base, "arm"), os.path.join(p.ds.base, "log")
        p.a.stop()
        p.a.start(DISKGUARD_HOOK_ARM=arm, DISKGUARD_HOOK_WAIT=HOOK + ":1", DISKGUARD_HOOK_LOG=log)
        fd = os.open(p.a.path("file"), RDWR)
        direct = os.open(p.a.path("file"), RDWR | os.O_DIRECT)

        def footer():
            with mmap.mmap(fd, end - page, offset=page) as m:
                m[:] = bytes(full[page:])
            eq(dgops.libc.sync_file_range(fd, ctypes.c_int64(page), ctypes.c_int64(end - page), WRITE_AND_WAIT), 0, "sync_file_range")
        open(arm, "wb").close()
        try:
            first = Other(footer)
            wait_for(lambda: HOOK in hooks_of(log), "the footer waits")
            second = Other(os.pwrite, fd, bytes(full[:LENGTH]), 0)
            wait_for(lambda: not second.is_alive() or "image.drain" in hooks_of(log), "the first block waits for it, or is done")
        finally:
            os.unlink(arm)
        first.result()
        second.result()
        os.fsync(fd)
        os.close(direct)
        os.close(fd)
        p.ds.wait_settled()
        ok(read_at(p.ds.raw("file"), 0, end) == bytes(full), "the file afterwards")


if __name__ == "__main__":
    suite.main()
