#!/usr/bin/env python3
"""test_qemu_locks: QEMU's own byte locks as the second line of images that no header can refuse, and as a sign of somebody outside of the views."""
import errno
import fcntl
import json
import os
import struct

import dgops
from dgqemu import QemuIo, Vm, make_qcow2
from dgtest import Proc, Skip, Suite, eq, is_sealed, must, ok, pair, raises, read_at, refused, run, suite_tmp, wait_for
from test_trouble import answer_stale
from test_vm import boot_image, boots_of, drive

suite = Suite(__file__, needs="hooks", also=("asan",))
SIZE = 16 << 20
RDWR, RDONLY = os.O_RDWR, os.O_RDONLY
USES_WRITE, NO_WRITE, NO_RESIZE = 101, 201, 203
READ, WRITE, NONE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK


def image(ds, name="disk.img", size=SIZE):
    with open(ds.raw(name), "wb") as f:
        f.truncate(size)
    return name


def seen(path, byte):
    """Which lock a program outside of the views meets on a byte."""
    fd = os.open(path, RDONLY)
    try:
        return dgops.getlock(fd, WRITE, byte, 1)
    finally:
        os.close(fd)


def guarded(ds, name="disk.img"):
    """Do the locks of the guard, or of somebody, stand?"""
    return [seen(ds.raw(name), byte) for byte in (NO_WRITE, NO_RESIZE)] == [READ, READ]


def nothing(ds, name="disk.img"):
    return all(seen(ds.raw(name), byte) == NONE for byte in (*range(100, 104), *range(200, 204)))


def raw_write(path, fmt="raw"):
    return ("qemu-io", "-f", fmt, "-c", "write 0 64k", path)


def raw_refused(ds, name="disk.img"):
    refused(*raw_write(ds.raw(name)), text='Failed to get "write" lock')


def protection(view, name):
    return json.loads(must(*view.build.command(view.build.ctl, "--json", "show", view.path(name)), env=view.build.env()))["protection"]


def lines_about(view, mark, name):
    return [line for line in view.log()[mark:].splitlines() if name in line]


@suite.case("a raw image held by a program without locks: raw QEMU may read it, not write; afterwards nothing stays")
def _(build):
    with pair(build, "wait=0") as p, Proc() as holder:
        name = image(p.ds)
        fd = holder.call("open", p.a.path(name), RDWR)
        ok(guarded(p.ds), "the guard's locks stand")
        for byte in (100, USES_WRITE, 103, 200, 202):
            eq(seen(p.ds.raw(name), byte), NONE, "byte %d" % byte)
        raw_refused(p.ds)
        refused("qemu-img", "resize", "-f", "raw", p.ds.raw(name), "32M", text="lock")
        must("qemu-img", "info", "-f", "raw", p.ds.raw(name))
        must("qemu-io", "-r", "-f", "raw", "-c", "read 0 64k", p.ds.raw(name))
        must("qemu-img", "convert", "-f", "raw", "-O", "raw", p.ds.raw(name), os.path.join(p.ds.base, "copy"))
        must("qemu-img", "info", "-f", "raw", p.b.path(name))
        refused(*raw_write(p.b.path(name)), text="Device or resource busy")
        refused(*raw_write(p.a.path(name)), text="Device or resource busy")
        holder.call("pwrite", fd, b"guest", 4096)
        holder.call("close", fd)
        p.ds.wait_free(name)
        ok(nothing(p.ds), "no lock stays")
        must(*raw_write(p.ds.raw(name)))
        must(*raw_write(p.b.path(name)))


@suite.case("a raw image held by QEMU through the view: its tools work as before, raw ones are refused")
def _(build):
    with pair(build, "wait=5") as p:
        name = image(p.ds)
        with QemuIo(p.a.path(name), "-f", "raw") as q:
            q.do("write -P 7 0 64k")
            ok(guarded(p.ds), "locks stand")
            raw_refused(p.ds)
            q.do("reopen -r")  # QEMU opens anew and moves its locks: 201 and 203 are unlocked meanwhile
            q.do("read -P 7 0 64k")
            wait_for(lambda: p.ds.claim_of(name) == "free", "released by the change to read-only")
            q.do("reopen -w")
            q.do("write -P 8 64k 64k")
            raw_refused(p.ds)
            q.close()
        p.ds.wait_free(name)
        ok(nothing(p.ds), "no lock stays")
        must("qemu-img", "resize", "-f", "raw", p.a.path(name), "32M")
        must("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", p.ds.raw(image(p.ds, "source.bin", 32 << 20)), p.a.path(name))
        must("qemu-img", "create", "-f", "raw", p.a.path("new.img"), "8M")
        must("qemu-img", "create", "-f", "qcow2", p.a.path("new.qcow2"), "8M")
        must("qemu-img", "create", "-f", "qcow2", "-b", p.a.path("new.img"), "-F", "raw", p.a.path("top.qcow2"))
        must("qemu-io", "-c", "write -P 9 0 64k", p.a.path("top.qcow2"))
        must("qemu-img", "commit", "-q", p.a.path("top.qcow2"))
        eq(read_at(p.b.path("new.img"), 0, 4), b"\x09" * 4, "committed")
        must("qemu-img", "dd", "-f", "raw", "-O", "raw", "if=" + p.a.path("new.img"), "of=" + p.a.path("dd.img"), "bs=1M")
        must("qemu-img", "convert", "-O", "qcow2", p.a.path("dd.img"), p.b.path("made.qcow2"))
        p.ds.wait_settled()
        for each in (name, "new.img", "new.qcow2", "top.qcow2", "dd.img", "made.qcow2"):
            ok(nothing(p.ds, each), "no lock stays on " + each)


@suite.case("locks of the holder's programs: they meet each other and those outside, never the guard's")
def _(build):
    with pair(build, "wait=0") as p, Proc() as holder:
        name = image(p.ds)
        one = holder.call("open", p.a.path(name), RDWR)
        two = holder.call("open", p.a.path(name), RDWR)
        outside = os.open(p.ds.raw(name), RDWR)
        lock = lambda fd, kind, start, length=1: holder.call("lock", fd, kind, start, length)
        get = lambda fd, kind, start, length=1: holder.call("getlock", fd, kind, start, length)
        for byte in (NO_WRITE, NO_RESIZE):
            eq(get(one, WRITE, byte), NONE, "the guard's lock is not seen")
            lock(one, READ, byte)
            eq(get(one, WRITE, byte), NONE, "nor is one's own")
            eq(get(two, WRITE, byte), READ, "another handle's is")
            eq(get(two, READ, byte), NONE, "a read lock stands beside it")
            raises(errno.EAGAIN, lock, two, WRITE, byte)
            lock(two, READ, byte)
            eq(get(one, WRITE, byte), READ, "in both directions")
            lock(one, NONE, byte)
            lock(two, NONE, byte)
            eq(get(one, WRITE, byte), NONE, "both are gone")
            ok(guarded(p.ds), "and the guard's stay")
            dgops.lock(outside, READ, byte, 1)
            lock(one, READ, byte)
            eq(get(one, WRITE, byte), READ, "one outside is seen, beside one's own")
            raises(errno.EAGAIN, lock, one, WRITE, byte)
            dgops.lock(outside, NONE, byte, 1)
            eq(get(one, WRITE, byte), NONE, "gone outside")
            lock(one, WRITE, byte)
            eq(seen(p.ds.raw(name), byte), WRITE, "a write lock reaches the storage")
            raises(errno.EAGAIN, dgops.lock, outside, READ, byte, 1)
            eq(get(two, READ, byte), WRITE, "and other handles")
            lock(one, READ, byte)
            ok(guarded(p.ds), "a read lock again")
            lock(two, READ, byte)
            lock(one, NONE, byte)
            lock(two, NONE, byte)
        # ranges over the guard's bytes
        lock(one, WRITE, 0, 0)
        for byte in (0, 100, NO_WRITE, 202, NO_RESIZE, 204, 1 << 40):
            eq(seen(p.ds.raw(name), byte), WRITE, "byte %d outside" % byte)
            eq(get(two, READ, byte), WRITE, "byte %d in the view" % byte)
            eq(get(one, WRITE, byte), NONE, "byte %d itself" % byte)
        raises(errno.EAGAIN, lock, two, READ, 150, 100)
        lock(one, NONE, 150, 100)
        ok(guarded(p.ds), "the guard's stay through the unlock of a range")
        eq([seen(p.ds.raw(name), b) for b in (149, 150, 202, 249, 250)], [WRITE, NONE, NONE, NONE, WRITE], "around it")
        lock(one, NONE, 0, 0)
        dgops.lock(outside, READ, 202, 1)
        lock(one, READ, 190, 5)
        raises(errno.EAGAIN, lock, one, WRITE, 190, 20)
        eq([seen(p.ds.raw(name), b) for b in (190, 194, 195, NO_WRITE)], [READ, READ, NONE, READ], "a refusal changes nothing")
        lock(one, WRITE, NO_RESIZE, 1)
        holder.call("close", one)  # drops its locks
        wait_for(lambda: guarded(p.ds), "the guard's stay when a handle with a write lock is closed", 2)
        eq(get(two, WRITE, 190, 20), READ, "the one outside")
        os.close(outside)
        eq(get(two, WRITE, 0, 0), NONE, "nothing is left")
        holder.call("close", two)


@suite.case("F_GETLK of POSIX locks names the process of this host, and nobody for one outside")
def _(build):
    def pid_of(proc, fd, byte):
        answer = fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack("hhqqi4x", WRITE, os.SEEK_SET, byte, 1, 0))
        return struct.unpack("hhqqi4x", answer)[0::4]
    with pair(build, "wait=0", "writers=host") as p, Proc() as holder:
        name = image(p.ds)
        fd = holder.call("open", p.a.path(name), RDWR)
        mine = os.open(p.a.path(name), RDWR)
        outside = os.open(p.ds.raw(name), RDWR)
        holder.call("lock", fd, READ, NO_WRITE, 1, False)
        eq(pid_of(holder, mine, NO_WRITE), (READ, holder.pid))
        holder.call("lock", fd, NONE, NO_WRITE, 1, False)
        eq(pid_of(holder, mine, NO_WRITE)[0], NONE)
        dgops.lock(outside, READ, NO_WRITE, 1)
        eq(pid_of(holder, mine, NO_WRITE)[0], READ)
        ok(pid_of(holder, mine, NO_WRITE)[1] != holder.pid, "not the holder's")
        os.close(outside)
        os.close(mine)
        holder.call("close", fd)


@suite.case("locks of readers stand before, while and after the image is held")
def _(build):
    with pair(build, "wait=0", "readers=ignore") as p, Proc() as holder, Proc() as reader:
        name = image(p.ds)
        first = reader.call("open", p.a.path(name), RDONLY)
        second = reader.call("open", p.a.path(name), RDONLY)
        reader.call("lock", first, READ, 100, 150)
        eq(seen(p.ds.raw(name), NO_WRITE), READ)
        fd = holder.call("open", p.a.path(name), RDWR)  # 101 is locked here, and not by somebody outside
        reader.call("lock", second, READ, NO_RESIZE, 1)
        eq(holder.call("getlock", fd, WRITE, NO_WRITE, 1), READ, "the holder meets the first reader's")
        eq(reader.call("getlock", first, WRITE, NO_WRITE, 1), NONE, "who does not meet his own, nor the guard's")
        holder.call("close", fd)
        p.ds.wait_free(name)
        eq([seen(p.ds.raw(name), b) for b in (100, USES_WRITE, NO_WRITE, 202, NO_RESIZE, 249, 250)], [READ] * 6 + [NONE])
        reader.call("close", first)
        wait_for(lambda: seen(p.ds.raw(name), NO_WRITE) == NONE, "the first is gone")
        eq(seen(p.ds.raw(name), NO_RESIZE), READ, "the second's stands on the storage")
        fd = holder.call("open", p.a.path(name), RDWR)
        reader.call("close", second)
        wait_for(lambda: holder.call("getlock", fd, WRITE, NO_RESIZE, 1) == NONE, "gone for the holder")
        ok(guarded(p.ds), "the guard's stay")
        holder.call("close", fd)
        p.ds.wait_free(name)
        ok(nothing(p.ds), "no lock stays")


@suite.case("a raw QEMU that writes the file already: the open through the view is EBUSY, and one line says why")
def _(build):
    with pair(build, "wait=0") as p:
        image(p.ds)
        make_qcow2(p.ds.raw("img.qcow2"), SIZE)
        for name, fmt in (("disk.img", "raw"), ("img.qcow2", "qcow2")):
            before = read_at(p.ds.raw(name), 0, 4096)
            with QemuIo(p.ds.raw(name), "-f", fmt) as q:
                q.do("write 1M 64k")
                before = read_at(p.ds.raw(name), 0, 4096)
                mark = p.a.log_size()
                raises(errno.EBUSY, os.open, p.a.path(name), RDWR)
                lines = lines_about(p.a, mark, name)
                eq(len(lines), 1, "lines about it: %r" % lines)
                for word in ("outside of the views", "fuser -v " + p.ds.raw(name), "lslocks"):
                    ok(word in lines[0], "%r is not in the line: %s" % (word, lines[0]))
                ok("outside-writer" in run(*build.command(build.ctl, "--json", "why", p.a.path(name)), env=build.env()).out, "diskguardctl why")
                raises(errno.EBUSY, os.truncate, p.a.path(name), 0)
                raises(errno.EBUSY, os.unlink, p.b.path(name))
                eq(read_at(p.ds.raw(name), 0, 4096), before, "not touched")
                eq(p.ds.claim_of(name), None, "not claimed")
                q.do("write 2M 64k")
                q.close()
            ok(nothing(p.ds, name), "no lock stays")
            os.close(os.open(p.a.path(name), RDWR))
            p.ds.wait_free(name)


@suite.case("an open waits for the raw QEMU to end; a raw reader is not in its way")
def _(build):
    with pair(build, "wait=30") as p, Proc() as holder:
        name = image(p.ds)
        with QemuIo(p.ds.raw(name), "-f", "raw") as q:
            holder.send("open", p.a.path(name), RDWR)
            ok(not holder.ready(1.0), "the open was answered while a raw QEMU writes")
            q.close()
            fd = holder.recv(15)
        holder.call("close", fd)
        p.ds.wait_free(name)
        with QemuIo(p.ds.raw(name), "-r", "-f", "raw") as q:
            fd = holder.call("open", p.a.path(name), RDWR)
            q.do("read 0 64k")
            q.close()
        holder.call("close", fd)


@suite.case("only what has no seal: qcow2 has none of these locks; a held image that loses its header gets them")
def _(build):
    with pair(build, "wait=0", hosts=("a",)) as p, Proc() as holder:
        make_qcow2(p.ds.raw("img.qcow2"), SIZE)
        header = read_at(p.ds.raw("img.qcow2"), 0, 65536)
        fd = holder.call("open", p.a.path("img.qcow2"), RDWR)
        ok(is_sealed(p.ds.raw("img.qcow2")) and nothing(p.ds, "img.qcow2"), "a seal, and no locks")
        eq(protection(p.a, "img.qcow2"), "header+claim")
        content = read_at(p.a.path("img.qcow2"), 0, os.path.getsize(p.a.path("img.qcow2")))
        holder.call("ftruncate", fd, 0)
        ok(guarded(p.ds, "img.qcow2"), "no header: the locks are taken")
        eq(protection(p.a, "img.qcow2"), "claim+locks")
        holder.call("pwrite", fd, content[65536:], 65536)
        holder.call("pwrite", fd, header, 0)
        ok(is_sealed(p.ds.raw("img.qcow2")) and nothing(p.ds, "img.qcow2"), "a header: sealed, and the locks are let go")
        holder.call("close", fd)
        p.ds.wait_free("img.qcow2")
        must("qemu-img", "check", p.ds.raw("img.qcow2"))


@suite.case("diskguardctl says which protection an image has")
def _(build):
    with pair(build, "wait=0") as p, Proc() as holder:
        name = image(p.ds)
        fd = holder.call("open", p.a.path(name), RDWR)
        eq(protection(p.a, name), "claim+locks")
        eq(protection(p.b, name), "claim+locks", "as another host sees it")
        text = must(*build.command(build.ctl, "show", p.a.path(name)), env=build.env())
        ok("protected by its claim and QEMU's byte locks" in text, text)
        ok("claim+locks" in must(*build.command(build.ctl, "list", p.a.mnt), env=build.env()), "diskguardctl list")
        holder.call("close", fd)
        p.ds.wait_free(name)
        wait_for(lambda: protection(p.a, name) == "none", "nothing protects it")


@suite.case("a crash of the daemon leaves no lock, and the next one takes them again")
def _(build):
    with pair(build, "wait=5", hosts=("a",)) as p, Proc() as holder:
        name = image(p.ds)
        holder.call("open", p.a.path(name), RDWR)
        ok(guarded(p.ds), "locks stand")
        p.a.kill9()
        ok(nothing(p.ds), "no lock is left")
        must(*raw_write(p.ds.raw(name)))
        holder.kill()
        p.a.start()
        with Proc() as again:
            fd = again.call("open", p.a.path(name), RDWR)
            ok(guarded(p.ds), "locks stand again")
            again.call("close", fd)


@suite.case("the seal's descriptor is replaced after the storage gave it up: the new one has the locks")
def _(build):
    if not build.hooks:
        raise Skip("needs a build with hooks")
    flag = os.path.join(suite_tmp(), "stale")
    with pair(build, "wait=0", hosts=("a",), env={"DISKGUARD_HOOK_STALE": flag, "DISKGUARD_BEAT_MS": "100"}) as p, Proc() as holder:
        name = image(p.ds)
        mark = p.a.log_size()
        fd = holder.call("open", p.a.path(name), RDWR)
        holder.call("lock", fd, READ, NO_WRITE, 1)
        answer_stale(flag, p.ds.raw(name))
        p.a.wait_log("VANISHED", mark)
        answer_stale(flag)
        p.a.wait_log("it is held as before", mark)
        raises(errno.EIO, holder.call, "pwrite", fd, b"x" * 512, 512)
        ok(guarded(p.ds), "the locks stand on the new descriptor")
        holder.call("pwrite", fd, b"x" * 512, 512)
        eq(holder.call("getlock", fd, WRITE, NO_WRITE, 1), NONE, "and are not seen by the holder")
        holder.call("lock", fd, NONE, NO_WRITE, 1)
        ok(guarded(p.ds), "nor dropped by its unlock")
        raw_refused(p.ds)
        holder.call("close", fd)
        p.ds.wait_free(name)
        ok(nothing(p.ds), "no lock stays")


@suite.case("a clean stop of the daemon with a held image leaves no lock")
def _(build):
    with pair(build, "wait=5", hosts=("a",)) as p, Proc() as holder:
        name = image(p.ds)
        holder.call("open", p.a.path(name), RDWR)
        must("umount", "-l", p.a.mnt)
        holder.kill()
        eq(p.a.wait_end(), 0)
        p.a.forget()
        ok(nothing(p.ds), "no lock is left")


@suite.case("a virtual machine on a raw disk boots, resets, resizes; raw QEMUs are refused; it moves to another host and back")
def _(build):
    with pair(build, "wait=10") as p:
        boot_image(p.ds.raw("vm.img"), "raw")

        def move(source, dest, number):
            source.qmp("migrate", uri="unix:" + os.path.join(p.ds.base, "migrate%d.sock" % number))
            wait_for(lambda: source.qmp("query-migrate").get("status") in ("completed", "failed"), "the migration ends", 60)
            eq(source.qmp("query-migrate")["status"], "completed")
            wait_for(lambda: dest.qmp("query-status")["status"] == "running", "the destination runs", 60)

        def incoming(number):
            return "-incoming", "unix:" + os.path.join(p.ds.base, "migrate%d.sock" % number)

        def raw_vm_refused(number):
            with Vm(p.ds.base, "raw%d" % number, drive(p.ds.raw("vm.img"), "raw"), "-S") as other:
                ok(not other.connect(), "a raw virtual machine started")
                ok("lock" in other.error(), other.error())

        with Vm(p.ds.base, "first", drive(p.a.path("vm.img"), "raw")) as first:
            ok(first.connect(), first.error())
            first.wait_said("BW")
            raw_refused(p.ds, "vm.img")
            raw_vm_refused(0)
            first.qmp("system_reset")
            first.wait_said("BWBW")
            first.qmp("block_resize", device="disk", size=96 << 20)
            first.qmp("stop")
            first.qmp("cont")
            raw_refused(p.ds, "vm.img")
            with Vm(p.ds.base, "second", drive(p.b.path("vm.img"), "raw"), *incoming(1)) as second:
                ok(second.connect(), second.error())
                move(first, second, 1)
                raw_refused(p.ds, "vm.img")
                first.quit()
                second.qmp("system_reset")
                wait_for(lambda: second.said().endswith("BW"), "the guest boots at the destination", 60)
                raw_vm_refused(1)
                with Vm(p.ds.base, "third", drive(p.a.path("vm.img"), "raw"), *incoming(2)) as third:
                    ok(third.connect(), third.error())
                    move(second, third, 2)
                    second.quit()
                    third.qmp("system_reset")
                    wait_for(lambda: third.said().endswith("BW"), "the guest boots back home", 60)
                    raw_refused(p.ds, "vm.img")
                    third.quit()
        p.ds.wait_free("vm.img")
        ok(nothing(p.ds, "vm.img"), "no lock stays")
        eq(os.path.getsize(p.ds.raw("vm.img")), 96 << 20)
        eq(boots_of(p.ds.raw("vm.img")), 4)


@suite.case("a raw virtual machine that runs already keeps one through the view from starting")
def _(build):
    with pair(build, "wait=1") as p:
        boot_image(p.ds.raw("vm.img"), "raw")
        with Vm(p.ds.base, "raw", drive(p.ds.raw("vm.img"), "raw")) as vm:
            ok(vm.connect(), vm.error())
            vm.wait_said("BW")
            with Vm(p.ds.base, "view", drive(p.a.path("vm.img"), "raw"), "-S") as second:
                ok(not second.connect(), "a second machine started")
                ok("busy" in second.error(), second.error())
            vm.quit()
        with Vm(p.ds.base, "again", drive(p.a.path("vm.img"), "raw")) as vm:
            ok(vm.connect(), vm.error())
            vm.wait_said("BW")
            vm.quit()


if __name__ == "__main__":
    suite.main()
