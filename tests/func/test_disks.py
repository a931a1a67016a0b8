#!/usr/bin/env python3
"""test_disks: raw disks of any name, told by the lock by which QEMU says that it writes them."""
import contextlib
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import uuid

import guardian
from dgqemu import QemuIo, Vm
from dgtest import Proc, Skip, Suite, eq, must, ok, pair, raises, read_at, refused, run, sha, suite_tmp, wait_for
from test_vm import boot_image, drive

suite = Suite(__file__, needs="hooks")
SIZE = 16 << 20
RDWR, RDONLY = os.O_RDWR, os.O_RDONLY
USES_READ, USES_WRITE, NO_WRITE = 100, 101, 201
READ, WRITE, NONE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
BIOS = "/usr/share/seabios/bios-256k.bin"
NAMES = ("disk.1", str(uuid.UUID(int=0x1234567890abcdef1234567890abcdef)))


def disk(ds, name="disk.1", size=SIZE):
    with open(ds.raw(name), "wb") as f:
        f.truncate(size)
    return name


def readers_of(ds):
    return ds.inner("readers")


def says(proc, fd, kind=READ):
    """As QEMU says that it writes a disk."""
    proc.call("lock", fd, kind, USES_WRITE, 1)


def held(ds, name):
    return ds.claim_of(name) not in (None, "free")


def lines_about(view, mark, name):
    return [line for line in view.log()[mark:].splitlines() if name in line]


def raw_io(*options):
    return ("-f", "raw", *options)


# ---- one writer ----

@suite.case("qemu-io on names that say nothing: the second host, the second process and a raw QEMU are refused, then it is free")
def _(build):
    with pair(build, "wait=1") as p:
        for name in NAMES:
            disk(p.ds, name)
            with QemuIo(p.a.path(name), *raw_io()) as q:
                ok(held(p.ds, name), "claimed before anything is written")
                q.do("write -P 1 0 64k")
                for path in (p.b.path(name), p.a.path(name)):
                    refused("qemu-io", *raw_io("-c", "write 0 4k", path), text="Device or resource busy|lock")
                refused("qemu-io", *raw_io("-c", "write 0 4k", p.ds.raw(name)), text='Failed to get "write" lock')
                must("qemu-io", "-r", *raw_io("-U", "-c", "read -P 1 0 64k", p.b.path(name)))
                q.do("write -P 2 8M 64k")
                q.close()
            p.ds.wait_free(name)
            must("qemu-io", *raw_io("-c", "read -P 2 8M 64k", "-c", "write -P 3 0 4k", p.b.path(name)))
            p.ds.wait_free(name)
            eq(read_at(p.ds.raw(name), 0, 8192), b"\3" * 4096 + b"\1" * 4096)
            p.ds.fsck_clean(p.a.host)


@suite.case("both hosts have it open before either says anything: the first lock is refused with the file's name, as is the second; who is alone gets it")
def _(build):
    with pair(build, "wait=0") as p, Proc() as one, Proc() as two:
        name = disk(p.ds)
        a, b = one.call("open", p.a.path(name), RDWR), two.call("open", p.b.path(name), RDWR)
        for proc, fd, view in ((one, a, p.a), (two, b, p.b)):
            mark = view.log_size()
            raises(errno.EAGAIN, says, proc, fd)
            lines = lines_about(view, mark, name)
            eq(len(lines), 1, "lines: %r" % lines)
            ok("byte 101" in lines[0] and "another host has this file open for write" in lines[0], lines[0])
        ok(not held(p.ds, name), "nobody has it")
        two.call("close", b)
        wait_for(lambda: try_says(one, a), "the one that is left gets it")
        eq(p.ds.claims()[os.stat(p.ds.raw(name)).st_ino]["host"], p.a.host.uuid)
        raises(errno.EBUSY, two.call, "open", p.b.path(name), RDWR)
        one.call("close", a)
        p.ds.wait_free(name)


def try_says(proc, fd, kind=READ):
    try:
        says(proc, fd, kind)
        return True
    except OSError as e:
        eq(e.errno, errno.EAGAIN)
        return False


@suite.case("the lock waits for wait=, as an open does, and is granted when the other host closes; F_OFD_SETLKW waits for ever")
def _(build):
    with pair(build, "wait=30") as p, Proc() as one, Proc() as two:
        for wait in (False, True):
            name = disk(p.ds, "disk.%d" % wait)
            a, b = one.call("open", p.a.path(name), RDWR), two.call("open", p.b.path(name), RDWR)
            one.call("pwrite", a, b"from a", 1 << 20)
            two.send("lock", b, READ, USES_WRITE, 1, True, wait)
            ok(not two.ready(0.5), "it waits")
            one.call("close", a)
            two.recv()
            ok(held(p.ds, name), "claimed")
            eq(two.call("pread", b, 6, 1 << 20), b"from a")
            two.call("close", b)
            p.ds.wait_free(name)


@suite.case("what is not QEMU's word claims nothing: ranges that cover the byte, flock, what read-only handles lock; raw=none: nothing does")
def _(build):
    with pair(build, "wait=0") as p, Proc() as one, Proc() as two:
        name = disk(p.ds)
        a, b = one.call("open", p.a.path(name), RDWR), two.call("open", p.b.path(name), RDWR)
        for start, length in ((0, 0), (100, 2), (101, 0), (101, 2), (0, 1 << 20), (100, 1), (102, 1)):
            for ofd in (True, False):
                one.call("lock", a, WRITE, start, length, ofd)
                one.call("lock", a, NONE, start, length, ofd)
        one.call("flock", a, fcntl.LOCK_EX)
        one.call("flock", a, fcntl.LOCK_UN)
        reader = one.call("open", p.a.path(name), RDONLY)
        one.call("lock", reader, READ, USES_WRITE, 1)
        one.call("lock", reader, READ, 0, 0)
        one.call("close", reader)
        eq(p.ds.claim_of(name), None, "never claimed")
        two.call("pwrite", b, b"still plain", 0)
        one.call("close", a)
        two.call("close", b)
    with pair(build, "wait=0", "raw=none") as p, Proc() as one, Proc() as two:
        name = disk(p.ds)
        a, b = one.call("open", p.a.path(name), RDWR), two.call("open", p.b.path(name), RDWR)
        says(one, a)
        says(two, b)
        eq(p.ds.claim_of(name), None, "never claimed")
        out = run(*build.command(build.ctl, "why", p.a.path(name)), env=build.env()).out
        ok("raw=" in out and "none" in out, out)


@suite.case("a manager's handle (managers=) says nothing before its first change, and is in nobody's way")
def _(build):
    with pair(build, "wait=0", "managers=" + os.path.realpath("/proc/self/exe")) as p, Proc() as one:
        name = disk(p.ds)
        fd = one.call("open", p.a.path(name), RDWR)
        one.call("lock", fd, WRITE, 1, 1, False)  # libvirt's own
        eq(p.ds.claim_of(name), None, "never claimed")
        with QemuIo(p.b.path(name), *raw_io()) as q:
            q.do("write -P 1 0 4k")
            raises(errno.EBUSY, one.call, "pwrite", fd, b"x", 0)
            q.close()
        p.ds.wait_free(name)
        one.call("pwrite", fd, b"x", 0)
        says(one, fd)
        ok(held(p.ds, name), "it writes now, and says so")
        one.call("close", fd)
        p.ds.wait_free(name)


@suite.case("a file without a name claims nothing: nobody else can reach it")
def _(build):
    with pair(build, "wait=0") as p, Proc() as one:
        name = disk(p.ds)
        fd = one.call("open", p.a.path(name), RDWR)
        os.unlink(p.a.path(name))
        says(one, fd)
        one.call("pwrite", fd, b"x", 0)
        eq(one.call("pread", fd, 1, 0), b"x")
        one.call("close", fd)
        eq(p.ds.claims(), {})
        ok("VANISHED" not in p.a.log(), p.a.log())


@suite.case("a process of this host opens it just while another one's lock makes a disk of it: one of the two is refused")
def _(build):
    base = suite_tmp()
    arm, log = os.path.join(base, "arm"), os.path.join(base, "log")
    if not build.hooks:
        raise Skip("needs hooks")
    with pair(build, "wait=0", hosts=("a",)) as p, Proc() as one, Proc() as two:
        p.a.stop()
        p.a.start(DISKGUARD_HOOK_ARM=arm, DISKGUARD_HOOK_WAIT="image.disk.begin:1", DISKGUARD_HOOK_LOG=log)
        name = disk(p.ds)
        a = one.call("open", p.a.path(name), RDWR)
        with open(arm, "w"):
            pass
        one.send("lock", a, READ, USES_WRITE, 1)
        wait_for(lambda: os.path.exists(log) and "image.disk.begin" in read_at(log, 0, 4096).decode(), "the lock has looked for others")
        b = two.call("open", p.a.path(name), RDWR)
        os.unlink(arm)
        raises(errno.EAGAIN, one.recv)
        ok(not held(p.ds, name), "not claimed for two")
        two.call("close", b)
        wait_for(lambda: try_says(one, a), "alone")
        raises(errno.EBUSY, two.call, "open", p.a.path(name), RDWR)


@suite.case("a process of this host that has it open for write is in the way; not with writers=host, where both have it")
def _(build):
    for writers in ("process", "host"):
        with pair(build, "wait=0", "writers=" + writers) as p, Proc() as one, Proc() as two:
            name = disk(p.ds)
            a, b = one.call("open", p.a.path(name), RDWR), two.call("open", p.a.path(name), RDWR)
            if writers == "process":
                raises(errno.EAGAIN, says, one, a)
                two.call("close", b)
                wait_for(lambda: try_says(one, a), "free")
            else:
                says(one, a)
                says(two, b)
                two.call("pwrite", b, b"two", 0)
            raises(errno.EBUSY, os.open, p.b.path(name), RDWR)
            one.call("pwrite", a, b"one", 4096)
            one.call("close", a)
            if writers == "host":
                ok(held(p.ds, name), "the other has it still")
                two.call("close", b)
            p.ds.wait_free(name)


@suite.case("a second handle of the same process joins; the claim stands until the last is closed, whatever is unlocked")
def _(build):
    with pair(build, "wait=0") as p, Proc() as one:
        name = disk(p.ds)
        a = one.call("open", p.a.path(name), RDWR)
        says(one, a)
        b = one.call("open", p.a.path(name), RDWR)
        says(one, b)
        one.call("lock", a, NONE, 0, 0)
        one.call("close", a)
        ok(held(p.ds, name), "b has it")
        one.call("lock", b, NONE, USES_WRITE, 1)
        ok(held(p.ds, name), "open for write without the lock")
        one.call("close", b)
        p.ds.wait_free(name)


@suite.case("mtime: as before where nothing was written, else that of the write")
def _(build):
    with pair(build, "wait=0") as p, Proc() as one:
        name = disk(p.ds)
        os.utime(p.ds.raw(name), ns=(10**18, 10**18))
        for write in (False, True):
            a = one.call("open", p.a.path(name), RDWR)
            says(one, a)
            if write:
                one.call("pwrite", a, b"x", 1 << 20)
            one.call("close", a)
            p.ds.wait_free(name)
            eq(os.stat(p.ds.raw(name)).st_mtime_ns != 10**18, write, "mtime changed")


# ---- readers ----

@suite.case("readers that want no writer: one that comes first meets it by QEMU's own locks, one that comes late is told of the claim")
def _(build):
    with pair(build, "wait=0") as p, Proc() as reader, Proc() as writer:
        name = disk(p.ds)
        for view in (p.a, p.b):
            for late in (False, True):
                w = writer.call("open", p.a.path(name), RDWR)
                if late:
                    says(writer, w)
                fd = reader.call("open", view.path(name), RDONLY)
                reader.call("lock", fd, READ, USES_READ, 1)
                reader.call("lock", fd, READ, NO_WRITE, 1)
                if late:
                    writer.call("lock", w, NONE, USES_WRITE, 1)  # its claim says it, with whatever locks
                    eq(reader.call("getlock", fd, WRITE, USES_WRITE, 1), READ, "too late")
                else:
                    eq(readers_of(p.ds), [], "a reader of a plain file")
                    says(writer, w)
                    eq(writer.call("getlock", w, WRITE, NO_WRITE, 1), READ, "the reader is there")
                reader.call("close", fd)
                writer.call("close", w)
                p.ds.wait_free(name)
                wait_for(lambda: not readers_of(p.ds), "no name of a reader stays")


@suite.case("a machine that reads a disk of such a name, and one that writes it: refused on either host, whoever comes second")
def _(build):
    with pair(build, "wait=1") as p:
        name = disk(p.ds)
        device = ("-device", "virtio-blk,drive=x", "-S")
        read, write = [["-drive", "file=%s,format=raw,if=none,id=x,readonly=" + on] for on in ("on", "off")]
        for first, second in ((read, write), (write, read)):
            for n, view in enumerate(p.views):
                with Vm(p.ds.base, "one", [a.replace("%s", p.a.path(name)) for a in first], *device) as one:
                    ok(one.connect(), one.error())
                    with Vm(p.ds.base, "two%d" % n, [a.replace("%s", view.path(name)) for a in second], *device) as two:
                        ok(not two.connect(), "a second one started")
                        ok("busy" in two.error() or "lock" in two.error(), two.error())
                    one.quit()
                wait_for(lambda: not held(p.ds, name), "free")


@suite.case("what this host's kernel keeps of the file is dropped at the lock: another host has written since")
def _(build):
    with pair(build, "wait=0") as p, Proc() as one, Proc() as two:
        name = disk(p.ds)
        b = two.call("open", p.b.path(name), RDWR)
        before = os.stat(p.ds.raw(name)).st_mtime_ns
        eq(two.call("pread", b, 4096, 0), bytes(4096))  # cached
        a = one.call("open", p.a.path(name), RDWR)
        one.call("pwrite", a, b"new" * 100, 0)
        one.call("futimens", a, before, before)
        one.call("close", a)
        wait_for(lambda: try_says(two, b), "the lock")
        eq(two.call("pread", b, 300, 0), b"new" * 100)
        two.call("close", b)
        p.ds.wait_free(name)


@suite.case("a reader on the other host sees what the holder writes, at once: mtime and cache do not hide it")
def _(build):
    with pair(build, "wait=0") as p, Proc() as one, Proc() as reader:
        name = disk(p.ds)
        a = one.call("open", p.a.path(name), RDWR)
        says(one, a)
        r = reader.call("open", p.b.path(name), RDONLY)
        for n in range(1, 20):
            one.call("pwrite", a, bytes([n]) * 4096, 8192)
            one.call("futimens", a, 10**18, 10**18)
            eq(reader.call("pread", r, 4096, 8192), bytes([n]) * 4096)
        one.call("close", a)
        p.ds.wait_free(name)


# ---- crash, loss ----

@suite.case("the holder's daemon dies: others are refused, its next start frees it")
def _(build):
    with pair(build, "wait=0") as p, Proc() as one:
        name = disk(p.ds)
        a = one.call("open", p.a.path(name), RDWR)
        says(one, a)
        one.call("pwrite", a, b"data", 1 << 20)
        p.a.kill9()
        ok(held(p.ds, name), "claim left")
        raises(errno.EBUSY, os.open, p.b.path(name), RDWR)
        one.kill()
        p.a.start()
        p.ds.wait_free(name)
        os.close(os.open(p.b.path(name), RDWR))
        eq(read_at(p.ds.raw(name), 1 << 20, 4), b"data")


@suite.case("the claim is taken away: writes get EIO, and the next holder's data stays")
def _(build):
    with pair(build, "wait=0") as p, Proc() as one:
        name = disk(p.ds)
        a = one.call("open", p.a.path(name), RDWR)
        says(one, a)
        for claim in p.ds.inner("claims"):
            if claim.startswith("%016x" % os.stat(p.ds.raw(name)).st_ino):
                os.unlink(p.ds.inner_path("claims", claim))
        wait_for(lambda: fails_with_eio(one, a), "the former holder is fenced")
        eq(read_at(p.ds.raw(name), 0, 4), bytes(4))
        one.call("close", a)
        with QemuIo(p.b.path(name), *raw_io()) as q:
            q.do("write -P 5 0 4k")
            q.close()
        p.ds.wait_free(name)


def fails_with_eio(proc, fd):
    try:
        proc.call("pwrite", fd, bytes(4), 0)
        return False
    except OSError as e:
        eq(e.errno, errno.EIO)
        return True


@suite.case("storage whose locks do not leave the host (OCFS2): the claim alone decides between two QEMUs")
def _(build):
    env = {"DISKGUARD_HOOK_FSTYPE": "ocfs2"}
    if not build.hooks:
        env = {}
    with pair(build, "wait=1", env=env) as p, Proc() as two:
        name = disk(p.ds)
        with QemuIo(p.a.path(name), *raw_io()) as q:
            q.do("write -P 1 0 64k")
            refused("qemu-io", *raw_io("-c", "write 0 4k", p.b.path(name)), text="busy|lock")
            q.close()
        p.ds.wait_free(name)
        b = two.call("open", p.b.path(name), RDWR)
        out = refused("qemu-io", *raw_io("-c", "write -P 2 0 4k", p.a.path(name)), text="lock")
        ok("101" in out, out)
        two.call("pwrite", b, b"plain", 0)
        two.call("close", b)
        must("qemu-io", *raw_io("-c", "write -P 3 0 4k", p.a.path(name)))
        p.ds.wait_free(name)


@suite.case("fence=none: two QEMUs that have it open already: one gets the lock")
def _(build):
    with pair(build, "wait=0", "fence=none") as p, Proc() as one, Proc() as two:
        name = disk(p.ds)
        a, b = one.call("open", p.a.path(name), RDWR), two.call("open", p.b.path(name), RDWR)
        says(one, a)
        raises(errno.EAGAIN, says, two, b)
        one.call("close", a)
        wait_for(lambda: try_says(two, b), "free")
        two.call("close", b)
        p.ds.wait_free(name)


# ---- machines ----

@suite.case("a manager opens and passes the descriptor to one QEMU, as libvirt does")
def _(build):
    with pair(build, "wait=1") as p:
        name = disk(p.ds)
        fd, ro = os.open(p.a.path(name), RDWR), os.open(p.a.path(name), RDONLY)
        argv = ["qemu-system-x86_64", "-accel", "tcg", "-display", "none", "-nodefaults", "-monitor", "stdio", "-add-fd", "fd=%d,set=1" % fd,
                "-add-fd", "fd=%d,set=1" % ro, "-drive", "file=/dev/fdset/1,format=raw,if=none,id=x,auto-read-only=off", "-device", "virtio-blk,drive=x", "-S"]
        q = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=(fd, ro))
        guardian.process(q.pid)
        os.close(fd)
        os.close(ro)
        wait_for(lambda: held(p.ds, name) or q.poll() is not None, "QEMU claims it")
        q.stdin.write(b"qemu-io x \"write -P 6 1M 64k\"\n")
        q.stdin.flush()
        wait_for(lambda: read_at(p.ds.raw(name), 1 << 20, 1) == b"\6", "QEMU writes")
        refused("qemu-io", *raw_io("-c", "write 0 4k", p.b.path(name)), text="busy|lock")
        out = q.communicate(b"quit\n", 60)[0]
        eq(q.returncode, 0, out.decode())
        p.ds.wait_free(name)


@suite.case("a virtual machine on disk.1 boots, is refused twice, and boots on the other host")
def _(build):
    with pair(build, "wait=1") as p:
        boot_image(p.ds.raw("disk.0"), "raw")
        with open(p.ds.raw("disk.0"), "rb") as f:  # without the marks of a partition table it is no image by its content
            head = f.read(512)
        ok(head[510:] == b"\x55\xaa", "a boot sector")
        with Vm(p.ds.base, "vm", drive(p.a.path("disk.0"), "raw")) as vm:
            ok(vm.connect(), vm.error())
            vm.wait_said("BW")
            for n, path in enumerate((p.b.path("disk.0"), p.a.path("disk.0"), p.ds.raw("disk.0"))):
                with Vm(p.ds.base, "second%d" % n, drive(path, "raw"), "-S") as second:
                    ok(not second.connect(), "a second machine started on " + path)
                    ok("busy" in second.error() or "lock" in second.error(), second.error())
            vm.quit()
        p.ds.wait_free("disk.0")
        with Vm(p.ds.base, "again", drive(p.b.path("disk.0"), "raw")) as vm:
            ok(vm.connect(), vm.error())
            vm.wait_said("BW")
            vm.quit()
        p.ds.wait_free("disk.0")


def migrate(source, dest, target):
    source.qmp("migrate", uri=target)
    wait_for(lambda: source.qmp("query-migrate").get("status") in ("completed", "failed"), "the migration ends", 60)
    eq(source.qmp("query-migrate")["status"], "completed")
    wait_for(lambda: dest.qmp("query-status")["status"] == "running", "the destination runs", 60)


def second_drive(path, cache):
    return ["-drive", "file=%s,format=raw,if=none,id=data,cache=%s" % (path, cache), "-device", "virtio-blk-pci,drive=data"]


def add_migration(name, cache):
    @suite.case("live migration there and back of a disk named %.8s, cache=%s: handed over each time, every byte right" % (name, cache))
    def _(build):
        with pair(build, "wait=10") as p:
            boot_image(p.ds.raw("boot.qcow2"))
            disk(p.ds, name)
            views, wanted = [p.a, p.b], bytearray(SIZE)
            vm = Vm(p.ds.base, "vm0", drive(views[0].path("boot.qcow2")) + second_drive(views[0].path(name), cache))
            ok(vm.connect(), vm.error())
            vm.wait_said("BW")
            for turn in range(1, 4):
                target = "unix:" + os.path.join(p.ds.base, "migrate%d.sock" % turn)
                view = views[turn % 2]
                off = turn << 20
                vm.qmp("human-monitor-command", **{"command-line": "qemu-io data \"write -P %d %d 128k\"" % (turn, off)})
                wanted[off:off + (128 << 10)] = bytes([turn]) * (128 << 10)
                dest = Vm(p.ds.base, "vm%d" % turn, drive(view.path("boot.qcow2")) + second_drive(view.path(name), cache), "-incoming", target)
                ok(dest.connect(), dest.error())
                vm.qmp("human-monitor-command", **{"command-line": "qemu-io data \"write -P %d %d 64k\"" % (turn + 100, off)})
                wanted[off:off + (64 << 10)] = bytes([turn + 100]) * (64 << 10)
                migrate(vm, dest, target)
                eq(p.ds.claims()[os.stat(p.ds.raw(name)).st_ino]["host"], view.host.uuid, "holder after the hand-over")
                ok(held(p.ds, name), "held")
                said = dest.qmp("human-monitor-command", **{"command-line": "qemu-io data \"read -P %d %d 64k\"" % (turn + 100, off)})
                ok("failed" not in said and "mismatch" not in said, said)
                vm.quit()
                vm = dest
            vm.quit()
            p.ds.wait_free(name)
            with open(p.ds.raw(name), "rb") as f:
                ok(f.read() == bytes(wanted), "every byte")


add_migration("disk.1", "none")
add_migration("disk.1", "writeback")
add_migration(NAMES[1], "none")


@suite.case("live migration with a pflash of such a name (UEFI variables): handed over, every byte right", limit=200)
def _(build):
    with pair(build, "wait=10") as p:
        boot_image(p.ds.raw("boot.qcow2"))
        if not os.path.exists(BIOS):
            raise Skip("no " + BIOS)
        with open(BIOS, "rb") as f, open(p.ds.raw("code.fd"), "wb") as code:
            code.write(f.read())
        name = disk(p.ds, "vars.fd", 128 << 10)
        with open(p.ds.raw(name), "r+b") as f:
            f.write(os.urandom(100000))
        must("cp", p.ds.raw(name), p.ds.raw("before"))
        def machine(view, label, *more):
            flash = [a for unit, file, read_only in ((0, "code.fd", "on"), (1, name, "off")) for a in
                     ("-drive", "if=pflash,unit=%d,id=flash%d,file=%s,format=raw,readonly=%s" % (unit, unit, view.path(file), read_only))]
            vm = Vm(p.ds.base, label, drive(view.path("boot.qcow2")) + flash, *more)
            ok(vm.connect(), vm.error())
            return vm
        vm = machine(p.a, "vm0")
        vm.wait_said("BW")
        ok(held(p.ds, name) and not held(p.ds, "code.fd"), "what it writes is held, what it reads is not")
        for turn, view in enumerate((p.b, p.a), 1):
            target = "unix:" + os.path.join(p.ds.base, "migrate%d.sock" % turn)
            dest = machine(view, "vm%d" % turn, "-incoming", target)
            migrate(vm, dest, target)  # the destination writes all of what it was told of the flash
            eq(p.ds.claims()[os.stat(p.ds.raw(name)).st_ino]["host"], view.host.uuid, "holder after the hand-over")
            vm.quit()
            vm = dest
        vm.quit()
        p.ds.wait_free(name)
        eq(sha(p.ds.raw(name)), sha(p.ds.raw("before")), "every byte")


@suite.case("qemu-storage-daemon: open without an export claims nothing; a writable export does")
def _(build):
    with pair(build, "wait=0") as p:
        name = disk(p.ds)
        sock = os.path.join(p.ds.base, "nbd.sock")
        q = subprocess.Popen(["qemu-storage-daemon", "--blockdev", "driver=file,node-name=f,filename=" + p.a.path(name), "--nbd-server",
                              "addr.type=unix,addr.path=" + sock, "--export", "type=nbd,id=e,node-name=f,writable=on"])
        guardian.process(q.pid)
        wait_for(lambda: os.path.exists(sock) and held(p.ds, name), "exported and claimed")
        must("qemu-io", *raw_io("-c", "write -P 9 0 4k", "nbd+unix:///f?socket=" + sock))
        refused("qemu-io", *raw_io("-c", "write 0 4k", p.b.path(name)), text="busy|lock")
        q.terminate()
        q.wait(30)
        p.ds.wait_free(name)
        eq(read_at(p.ds.raw(name), 0, 4096), b"\x09" * 4096)


@suite.case("qemu-img creates, resizes, converts and compares disks of such names as on a plain directory")
def _(build):
    with pair(build, "wait=5") as p:
        plain = os.path.join(p.ds.base, "plain")
        os.mkdir(plain)
        for where in (plain, p.a.mnt):
            path = lambda n: os.path.join(where, n)  # pylint: disable=cell-var-from-loop
            must("qemu-img", "create", "-f", "raw", path("disk.1"), "8M")
            must("qemu-io", *raw_io("-c", "write -P 4 1M 1M", path("disk.1")))
            must("qemu-img", "resize", "-f", "raw", path("disk.1"), "12M")
            must("qemu-img", "convert", "-f", "raw", "-O", "qcow2", path("disk.1"), path("copy"))
            must("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path("copy"), path("disk.2"))
            must("qemu-img", "compare", "-f", "raw", "-F", "raw", path("disk.1"), path("disk.2"))
            must("qemu-img", "dd", "-f", "raw", "-O", "raw", "bs=1M", "if=" + path("disk.1"), "of=" + path("disk.3"))
            must("qemu-img", "create", "-f", "qcow2", "-b", path("disk.1"), "-F", "raw", path("top"))
            must("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 64k", path("top"))
            must("qemu-img", "commit", "-f", "qcow2", "-q", path("top"))
        p.ds.wait_settled()
        for name in ("disk.1", "disk.2", "disk.3"):
            eq(sha(p.ds.raw(name)), sha(os.path.join(plain, name)), name)


@suite.case("diskguardctl: why names raw= and the rule for what is not guarded; of a held disk its holder")
def _(build):
    with pair(build, "wait=0") as p:
        name = disk(p.ds)
        out = run(*build.command(build.ctl, "why", p.a.path(name)), env=build.env()).out
        ok("raw=" in out and "101" in out, out)
        with QemuIo(p.a.path(name), *raw_io()) as q:
            ok("held" in run(*build.command(build.ctl, "--json", "why", p.b.path(name)), env=build.env()).out, "held")
            shown = json.loads(must(*build.command(build.ctl, "--json", "show", p.a.path(name)), env=build.env()))
            eq((shown["format"], shown["protection"]), ("raw", "claim+locks"))
            q.close()
        p.ds.wait_free(name)


@suite.case("byte 101 through a manager's handle that it passed on claims as well: a disk of any name has one writer")
def _(build):
    def through_manager(view, stack):
        copy = os.path.join(suite_tmp(), "libvirtd")
        shutil.copy(os.path.realpath(sys.executable), copy)
        m = stack.enter_context(Proc(program=[copy, "-S"], env=dict(os.environ, PYTHONHOME=sys.base_prefix)))
        q = stack.enter_context(Proc())
        path = os.path.join(suite_tmp(), "s")
        q.call("listen_fd", path)
        q.send("take_fd")
        m.call("pass_fd", path, m.call("open", view.path(name), RDWR))
        return q, q.recv()
    with pair(build, "wait=0") as p, contextlib.ExitStack() as stack:
        name = disk(p.ds)
        (one, a), (two, b) = [through_manager(view, stack) for view in p.views]
        one.call("lock", a, READ, 101, 1)
        ok(held(p.ds, name), "claimed")
        raises(errno.EAGAIN, two.call, "lock", b, READ, 101, 1)
        one.call("pwrite", a, b"1" * 512, 0)
        raises(errno.EBUSY, two.call, "pwrite", b, b"2" * 512, 0)


if __name__ == "__main__":
    suite.main()
