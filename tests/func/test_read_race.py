#!/usr/bin/env python3
"""test_read_race: a read has passed its look at what is known of the file, and what is known changes before it is answered: sealed bytes are never the answer. A thread waits at a hook."""
import mmap
import os
import time

from dgqemu import make_qcow2
from dgtest import Proc, Suite, eq, must, ok, pair, read_at, wait_for
from test_drain import AT, Other, hooks_of
from test_takeover import hooked

suite = Suite(__file__, needs="hooks")
RDWR, RDONLY = os.O_RDWR, os.O_RDONLY
BLOCK = 4096


class Waits:
    """A host whose first request that comes to a hook waits there while the block runs."""

    def __init__(self, p, hook):
        self.p, self.hook = p, hook
        self.arm, self.log = os.path.join(p.ds.base, "arm"), os.path.join(p.ds.base, "log")
        p.a.stop()
        p.a.start(DISKGUARD_HOOK_ARM=self.arm, DISKGUARD_HOOK_WAIT=hook + ":1", DISKGUARD_HOOK_LOG=self.log)

    def begin(self, *call):
        open(self.arm, "wb").close()
        self.call = Other(*call)
        wait_for(lambda: self.hook in hooks_of(self.log), "it waits")

    def end(self):
        os.unlink(self.arm)
        self.call.result()


def looks(path):
    """Looks at it for as long as it takes until one counts: snapshot.c, TICK_FINE_MS."""
    end = time.monotonic() + 0.4
    while time.monotonic() < end:
        os.close(os.open(path, RDONLY))


def vhdx(p):
    """The bytes of a whole image: its first header is at AT."""
    path = os.path.join(p.ds.base, "vhdx")
    must("qemu-img", "create", "-q", "-f", "vhdx", path, "8M")
    return read_at(path, 0, os.path.getsize(path))


def reader(fd, off, into):
    def read():
        with mmap.mmap(-1, BLOCK) as m:  # aligned, for O_DIRECT
            os.preadv(fd, [m], off)
            into.append(bytes(m))
    return read


@suite.case("the holder's host: another write makes the place a part of the header")
def zone_widens(build):
    hooked(build)
    with pair(build, "wait=0") as p:
        full, got = vhdx(p), []
        make_qcow2(p.ds.raw("file"), 1 << 20)
        with open(p.ds.raw("file"), "r+b") as f:
            f.seek(AT)
            f.write(full[AT:])
        w = Waits(p, "data.read")
        fd = os.open(p.a.path("file"), RDWR)
        w.begin(reader(fd, AT, got))
        try:
            os.pwrite(fd, full[:AT], 0)
            ok(read_at(p.ds.raw("file"), AT, BLOCK) != full[AT:AT + BLOCK], "it is sealed there")
        finally:
            w.end()
        eq(got[0] == full[AT:AT + BLOCK], True, "what the read got is true")
        os.close(fd)
        p.ds.wait_settled()


@suite.case("an old reader's host: a process there opens it for write between the look and the read")
def claimed_here(build):
    hooked(build)
    with pair(build, "wait=0") as p:
        full, got = vhdx(p), []
        with open(p.ds.raw("file"), "wb") as f:
            f.truncate(len(full))
        w = Waits(p, "read.look")
        old = os.open(p.a.path("file"), RDONLY | os.O_DIRECT)
        with open(p.b.path("file"), "r+b", buffering=0) as f:
            f.write(full)
        p.ds.wait_settled()
        w.begin(reader(old, AT, got))
        try:
            fd = os.open(p.a.path("file"), RDWR)
            ok(read_at(p.ds.raw("file"), AT, BLOCK) != full[AT:AT + BLOCK], "it is sealed there")
        finally:
            w.end()
        eq(got[0] == full[AT:AT + BLOCK], True, "what the read got is true")
        os.close(fd)
        os.close(old)
        p.ds.wait_settled()


@suite.case("another host's image: it is released, and looked at by others, between the read and the question whether the look still counts")
def look_is_newer(build):
    hooked(build)
    with pair(build, "wait=0") as p, Proc() as holder:
        make_qcow2(p.ds.raw("img.qcow2"))
        true, got = read_at(p.ds.raw("img.qcow2"), 0, BLOCK), []
        w = Waits(p, "read.check")
        old = os.open(p.a.path("img.qcow2"), RDONLY)

        looks(p.a.path("img.qcow2"))
        fd = holder.call("open", p.b.path("img.qcow2"), RDWR)
        ok(read_at(p.ds.raw("img.qcow2"), 0, BLOCK) != true, "it is sealed")
        w.begin(lambda: got.append(os.pread(old, BLOCK, 0)))
        try:
            holder.call("close", fd)
            p.ds.wait_free("img.qcow2")
            looks(p.a.path("img.qcow2"))
        finally:
            w.end()
        eq(got[0] == true, True, "what the read got is true")
        os.close(old)


if __name__ == "__main__":
    suite.main()
