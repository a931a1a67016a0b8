#!/usr/bin/env python3
"""test_open_rules: who gets in, who waits, who is refused with which errno, and what the log says."""
import errno
import fcntl
import mmap
import os
import shutil
import signal
import struct
import time

import dgops
import dgtest
from dgqemu import QemuIo, make_qcow2, no_lock, qcow2_size
from dgtest import (Datastore, Host, Proc, Suite, View, eq, is_sealed, must, ok, pair, raises, read_at, refused, run, sha, wait_for)

suite = Suite(__file__, also=("asan", "tsan"))
RDWR, RDONLY, WRONLY = os.O_RDWR, os.O_RDONLY, os.O_WRONLY
SIZE = 64 << 20


def image(ds, name="img.qcow2", options=""):
    make_qcow2(ds.raw(name), SIZE, options)
    return name


@suite.case("a second process of the same host gets EBUSY, the same process may open again")
def _(build):
    with pair(build, "wait=0", hosts=("a",)) as p, Proc() as first, Proc() as second:
        path = p.a.path(image(p.ds))
        fd1 = first.call("open", path, RDWR)
        raises(errno.EBUSY, second.call, "open", path, RDWR)
        raises(errno.EBUSY, second.call, "open", path, WRONLY)
        raises(errno.EBUSY, os.open, path, RDWR | os.O_APPEND)
        fd2 = first.call("open", path, RDWR)
        first.call("close", fd1)
        raises(errno.EBUSY, second.call, "open", path, RDWR)
        first.call("close", fd2)
        p.ds.wait_free("img.qcow2")
        second.call("close", second.call("open", path, RDWR))


@suite.case("a forked child that inherits the handle keeps the image held")
def _(build):
    with pair(build, "wait=0", hosts=("a",)) as p, Proc() as other:
        path = p.a.path(image(p.ds))
        fd = os.open(path, RDWR)
        pid = os.fork()
        if pid == 0:
            signal.pause()
            os._exit(0)
        dgtest.guardian.process(pid)
        os.close(fd)
        raises(errno.EBUSY, other.call, "open", path, RDWR)
        ok(is_sealed(p.ds.raw("img.qcow2")), "sealed while a copy of the handle is open")
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        p.ds.wait_free("img.qcow2")


@suite.case("writers=host lets other processes of this host in, but no other host")
def _(build):
    with pair(build, "wait=0", "writers=host") as p, Proc() as first, Proc() as second:
        path = p.a.path(image(p.ds))
        fd = first.call("open", path, RDWR)
        fd2 = second.call("open", path, RDWR)
        raises(errno.EBUSY, os.open, p.b.path("img.qcow2"), RDWR)
        first.call("close", fd)
        raises(errno.EBUSY, os.open, p.b.path("img.qcow2"), RDWR)
        second.call("close", fd2)
        p.ds.wait_free("img.qcow2")
        os.close(os.open(p.b.path("img.qcow2"), RDWR))


@suite.case("the refusal is logged once, with image, holder host, pid and since")
def _(build):
    with pair(build, "wait=0") as p, Proc() as holder:
        path = image(p.ds)
        fd = holder.call("open", p.a.path(path), RDWR)
        mark = p.b.log_size()
        raises(errno.EBUSY, os.open, p.b.path(path), RDWR)
        p.b.wait_log(r"img\.qcow2", mark)
        lines = [line for line in p.b.log()[mark:].splitlines() if "img.qcow2" in line]
        eq(len(lines), 1, "lines about the refusal: %r" % lines)
        claim = list(p.ds.claims().values())[0]
        for word in (claim["name"], str(holder.pid), claim["since"]):
            ok(word in lines[0], "%r is not in the line: %s" % (word, lines[0]))
        mark = p.a.log_size()
        raises(errno.EBUSY, os.open, p.a.path(path), RDWR)
        p.a.wait_log(r"img\.qcow2.*pid %d\b" % holder.pid, timeout=5)
        holder.call("close", fd)


@suite.case("an open waits for the holder's close, at most wait= seconds")
def _(build):
    with pair(build, "wait=30") as p, Proc() as holder, Proc() as local:
        path = image(p.ds)
        for waiter, view in ((Proc(), p.b), (local, p.a)):
            fd = holder.call("open", p.a.path(path), RDWR)
            waiter.send("open", view.path(path), RDWR)
            ok(not waiter.ready(0.5), "the open of a held image was answered at once")
            holder.call("close", fd)
            fd = waiter.recv(15)
            waiter.call("close", fd)
            p.ds.wait_free(path)
            waiter.kill()
    with pair(build, "wait=1") as p, Proc() as holder, Proc() as waiter:
        path = image(p.ds)
        fd = holder.call("open", p.a.path(path), RDWR)
        began = time.monotonic()
        raises(errno.EBUSY, waiter.call, "open", p.b.path(path), RDWR)
        took = time.monotonic() - began
        ok(0.9 <= took < 6 * dgtest.TIME_SCALE, "wait=1 took %.2f s" % took)
        holder.call("close", fd)


@suite.case("a signal ends the wait at once and nothing stays claimed")
def _(build):
    with pair(build, "wait=60") as p, Proc() as holder:
        path = image(p.ds)
        fd = holder.call("open", p.a.path(path), RDWR)
        for view in (p.a, p.b):
            waiter = Proc()
            waiter.send("open", view.path(path), RDWR)
            ok(not waiter.ready(0.3), "the open waits")
            began = time.monotonic()
            waiter.kill()
            ok(time.monotonic() - began < 5 * dgtest.TIME_SCALE, "a killed waiter took long to end")
        holder.call("close", fd)
        p.ds.wait_free(path)
        os.close(os.open(p.b.path(path), RDWR))


@suite.case("fifty opens wait and the view still answers")
def _(build):
    with pair(build, "wait=60") as p, Proc() as holder:
        path = image(p.ds)
        with open(p.b.path("plain"), "wb") as f:
            f.write(b"x" * 100000)
        fd = holder.call("open", p.a.path(path), RDWR)
        waiters = [Proc() for _ in range(50)]
        for w in waiters:
            w.send("open", p.b.path(path), RDWR)
        ok(not any(w.ready() for w in waiters), "nobody is let in")
        began = time.monotonic()
        for i in range(20):
            eq(read_at(p.b.path("plain"), 0, 4), b"xxxx")
            os.stat(p.b.path(path))
            os.mkdir(p.b.path("d%d" % i))
            eq(qcow2_size(p.b.path(path)), SIZE, "read-only view of the held image")
            other = image(p.ds, "other%d.qcow2" % i)
            os.close(os.open(p.b.path(other), RDWR))
        ok(time.monotonic() - began < 15 * dgtest.TIME_SCALE, "the view is slow while opens wait")
        for w in waiters[:45]:
            w.kill()
        holder.call("close", fd)
        winner = wait_for(lambda: [w for w in waiters[45:] if w.ready()], "one of the waiting opens is let in")
        winner[0].recv()
        for w in waiters[45:]:
            w.kill()


@suite.case("threshold=: an image of that virtual size or less is refused for write")
def _(build):
    with pair(build, "wait=0", "threshold=64M", hosts=("a",)) as p:
        make_qcow2(p.ds.raw("small.qcow2"), "64M")
        make_qcow2(p.ds.raw("large.qcow2"), (64 << 20) + 65536)
        mark = p.a.log_size()
        refused("qemu-io", "-c", "write 0 64k", p.a.path("small.qcow2"))
        ok("threshold" in p.a.wait_log(r"small\.qcow2", mark), "the log names the threshold")
        must("qemu-io", "-c", "write 0 64k", p.a.path("large.qcow2"))
        must("qemu-img", "info", p.a.path("small.qcow2"))
        p.ds.wait_free("large.qcow2")


@suite.case("seal=size: an image of size 0 is refused for write")
def _(build):
    with pair(build, "wait=0", "seal=size", hosts=("a",)) as p:
        make_qcow2(p.ds.raw("zero.qcow2"), 0)
        before = sha(p.ds.raw("zero.qcow2"))
        mark = p.a.log_size()
        refused("qemu-io", "-c", "length", p.a.path("zero.qcow2"))
        p.a.wait_log(r"zero\.qcow2", mark)
        eq(sha(p.ds.raw("zero.qcow2")), before, "untouched")
        must("qemu-img", "info", p.a.path("zero.qcow2"))


def ofd_lock(fd, command, kind, byte):
    """The kind of lock that is in the way, of F_OFD_GETLK."""
    return struct.unpack("hhqqi4x", fcntl.fcntl(fd, command, struct.pack("hhqqi4x", kind, 0, byte, 1, 0)))[0]


@suite.case("a sealed image without a claim (a copy of one in use) is refused with EUCLEAN and a way out")
def _(build):
    for options in ("compat=1.1", "compat=0.10"):
        with pair(build, "wait=0", hosts=("a",)) as p, Proc() as holder:
            path = image(p.ds, options=options)
            fd = holder.call("open", p.a.path(path), RDWR)
            shutil.copyfile(p.ds.raw(path), p.ds.raw("orphan.qcow2"))
            ok(is_sealed(p.ds.raw("orphan.qcow2")), "the copy is sealed")
            mark = p.a.log_size()
            raises(errno.EUCLEAN, os.open, p.a.path("orphan.qcow2"), RDWR)
            line = p.a.wait_log(r"orphan\.qcow2", mark)
            ok("fsck.diskguard" in line, "the line does not name the way out: " + line)
            fd2 = os.open(p.a.path("orphan.qcow2"), RDONLY)
            raises((errno.EIO, errno.EUCLEAN), os.pread, fd2, 512, 0)
            # Not even when it is known that nobody has it, and nobody can get it: QEMU's locks of a reader.
            for byte in (100, 201):
                ofd_lock(fd2, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, byte)
            eq(ofd_lock(fd2, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, 101), fcntl.F_UNLCK, "nobody writes it")
            raises((errno.EIO, errno.EUCLEAN), os.pread, fd2, 512, 0)
            os.close(fd2)
            holder.call("close", fd)


@suite.case("a header that two formats match is refused for write with EUCLEAN")
def _(build):
    with pair(build, "wait=0", hosts=("a",)) as p:
        path = image(p.ds)
        with open(p.ds.raw(path), "r+b") as f:
            f.seek(446)
            f.write(bytes([0x80, 1, 1, 0, 0x83, 1, 1, 1]) + (2048).to_bytes(4, "little") + (100000).to_bytes(4, "little") + bytes(48))
            f.write(b"\x55\xaa")
        before = sha(p.ds.raw(path))
        mark = p.a.log_size()
        raises(errno.EUCLEAN, os.open, p.a.path(path), RDWR)
        line = p.a.wait_log(r"img\.qcow2", mark)
        ok("qcow2" in line, "the line names the formats: " + line)
        eq(sha(p.ds.raw(path)), before, "untouched")


@suite.case("read-only opens are never refused, never claim, and see the true header while another host holds")
def _(build):
    for options in ("", "seal=size"):
        for version in ("1.1", "0.10"):
            with pair(build, "wait=0", *filter(None, [options])) as p, Proc() as holder:
                path = image(p.ds, options="compat=" + version)
                true = read_at(p.ds.raw(path), 0, 1024)
                reader = os.open(p.b.path(path), RDONLY)  # opened before, must not show what it had read before either
                eq(os.pread(reader, 1024, 0), true)
                eq(p.ds.claim_of(path), None, "a read-only open claims nothing")
                fd = holder.call("open", p.a.path(path), RDWR)
                disk = read_at(p.ds.raw(path), 0, 1024)
                ok(disk != true, "the raw header is not sealed")
                if options:
                    eq(qcow2_size(p.ds.raw(path)), 0, "seal=size writes the size 0")
                for view in (p.a, p.b):
                    eq(read_at(view.path(path), 0, 1024), true, "header through the view")
                    eq(read_at(view.path(path), 25, 3), true[25:28], "part of an extent")
                eq(os.pread(reader, 1024, 0), true, "through a handle that was open before")
                grown = bytearray(true)
                grown[24:32] = (2 * SIZE).to_bytes(8, "big")
                holder.call("pwrite", fd, bytes(grown[24:32]), 24)
                eq(os.pread(reader, 1024, 0), bytes(grown), "a header update by the holder is seen by the other host")
                holder.call("pwrite", fd, true[24:32], 24)
                holder.call("close", fd)
                p.ds.wait_free(path)
                eq(os.pread(reader, 1024, 0), true, "after the release")
                os.close(reader)


@suite.case("seal=size: raw qemu sees an empty disk, the size comes back")
def _(build):
    with pair(build, "wait=0", "seal=size") as p:
        path = image(p.ds)
        with QemuIo(p.a.path(path)) as q:
            q.do("write 0 64k")
            eq(qcow2_size(p.ds.raw(path)), 0)
            info = must("qemu-img", "info", *no_lock(p.ds.raw(path)))
            ok("(0 bytes)" in info or "0 B" in info, info)
            refused("qemu-io", "-c", "write 0 64k", p.b.path(path), text="Device or resource busy")
            q.close()
        p.ds.wait_free(path)
        eq(qcow2_size(p.ds.raw(path)), SIZE)


@suite.case("truncate, unlink, replace and exchange of a held image are refused on both hosts; renaming it is fine")
def _(build):
    with pair(build, "wait=0") as p, Proc() as holder:
        path = image(p.ds)
        with open(p.ds.raw("plain"), "wb") as f:
            f.write(b"plain")
        fd = holder.call("open", p.a.path(path), RDWR)
        for view in (p.a, p.b):
            held, plain = view.path(path), view.path("plain")
            raises(errno.EBUSY, os.truncate, held, 0)
            raises(errno.EBUSY, os.truncate, held, 8 << 20)
            raises(errno.EBUSY, os.open, held, RDWR | os.O_TRUNC)
            raises(errno.EBUSY, os.open, held, WRONLY | os.O_TRUNC)
            raises(errno.EBUSY, os.unlink, held)
            raises(errno.EBUSY, os.rename, plain, held)
            raises(errno.EBUSY, dgops.rename2, plain, held, 2)
            raises(errno.EBUSY, dgops.rename2, held, plain, 2)
        os.rename(p.b.path(path), p.b.path("moved.qcow2"))
        os.mkdir(p.b.path("folder"))
        os.rename(p.a.path("moved.qcow2"), p.a.path("folder/again.qcow2"))
        os.link(p.a.path("folder/again.qcow2"), p.a.path("second-name.qcow2"))
        raises(errno.EBUSY, os.open, p.b.path("second-name.qcow2"), RDWR)
        holder.call("pwrite", fd, b"data", 1 << 20)
        holder.call("pwrite", fd, bytes(4), 1 << 20)
        holder.call("ftruncate", fd, os.stat(p.ds.raw("folder/again.qcow2")).st_size)
        holder.call("close", fd)
        p.ds.wait_free("folder/again.qcow2")
        eq(read_at(p.ds.raw("folder/again.qcow2"), 0, 65536), read_at(p.a.path("second-name.qcow2"), 0, 65536))
        os.unlink(p.a.path("second-name.qcow2"))
        os.rename(p.b.path("plain"), p.b.path("folder/again.qcow2"))
        eq(read_at(p.ds.raw("folder/again.qcow2"), 0, 9), b"plain")


@suite.case("an image that the raw side removes under its holder is dropped without harm")
def _(build):
    with pair(build, "wait=0") as p, Proc() as holder:
        path = image(p.ds)
        fd = holder.call("open", p.a.path(path), RDWR)
        os.unlink(p.ds.raw(path))
        mark = p.a.log_size()
        holder.call("close", fd)
        p.a.wait_log(r"img\.qcow2|vanished", mark)
        p.ds.wait_settled()
        path = image(p.ds)  # the inode number may be the same one
        os.close(os.open(p.b.path(path), RDWR))


@suite.case("the view shows the image's mtime while nothing is written, and the last write's then; the restore sets a new one")
def _(build):
    with pair(build, "wait=0", hosts=("a",)) as p:
        path = image(p.ds)
        stamp = 1_000_000_000_123_456_789
        os.utime(p.ds.raw(path), ns=(stamp, stamp))
        fd = os.open(p.a.path(path), RDWR)
        eq(os.stat(p.a.path(path)).st_mtime_ns, stamp, "mtime through the view while held")
        os.close(fd)
        p.ds.wait_free(path)
        ok(os.stat(p.ds.raw(path)).st_mtime_ns > stamp, "the seal was seen: test_mtime")
        os.utime(p.ds.raw(path), ns=(stamp, stamp))
        fd = os.open(p.a.path(path), RDWR)
        os.pwrite(fd, b"x" * 512, 1 << 20)
        written = os.fstat(fd).st_mtime_ns
        ok(written > stamp, "mtime moves with a write")
        os.close(fd)
        p.ds.wait_free(path)
        ok(0 < os.stat(p.ds.raw(path)).st_mtime_ns - written < 5_000_000_000, "mtime is that of the restore")


@suite.case("mappings of a plain file: what is written through one arrives")
def _(build):
    with pair(build, "wait=0", hosts=("a",)) as p, Proc() as w:
        with open(p.a.path("plain"), "w+b") as f:
            f.write(bytes(8192))
        fd = w.call("open", p.a.path("plain"), RDWR)
        w.call("shared_mmap", fd, 4096, mmap.PROT_READ | mmap.PROT_WRITE, b"through a mapping")
        w.call("close", fd)
        wait_for(lambda: read_at(p.ds.raw("plain"), 0, 7) == b"through", "the mapping's write arrives", 5)


@suite.case("a file system mounted below the datastore: images EXDEV for write, plain files pass")
def _(build):
    ds = Datastore(build)
    os.mkdir(ds.raw("below"))
    must("mount", "-t", "tmpfs", "-o", "size=64m", "none", ds.raw("below"))
    try:
        make_qcow2(ds.raw("below/img.qcow2"), SIZE)
        with open(ds.raw("below/x.img"), "wb") as f:
            f.write(b"raw")
        view = View(ds, Host(ds.base, "a"), ["wait=0"])
        mark = view.log_size()
        raises(errno.EXDEV, os.open, view.path("below/img.qcow2"), RDWR)
        view.wait_log(r"img\.qcow2", mark)
        raises(errno.EXDEV, os.open, view.path("below/x.img"), RDWR)
        must("qemu-img", "info", view.path("below/img.qcow2"))
        with open(view.path("below/plain"), "wb") as f:
            f.write(b"plain")
        eq(read_at(ds.raw("below/plain"), 0, 9), b"plain")
        raises(errno.EXDEV, os.rename, view.path("below/plain"), view.path("plain"))
        view.stop()
    finally:
        run("umount", ds.raw("below"))


if __name__ == "__main__":
    suite.main()
