#!/usr/bin/env python3
"""test_cache: what the kernel may answer by itself, and for how long (entry-timeout=, attr-timeout=); and what it must never."""
import errno
import os

from dgqemu import make_qcow2
from dgtest import FRESH, Proc, Suite, eq, must, ok, pair, raises, read_at, wait_for

suite = Suite(__file__)
RDWR, RDONLY = os.O_RDWR, os.O_RDONLY
LONG = ("entry-timeout=600", "attr-timeout=600")


def put(path, data, mode="wb"):
    with open(path, mode) as f:
        f.write(data)


def size(path):
    return os.stat(path).st_size


@suite.case("attributes of a plain file: kept for the time that was said, dropped by an open, never kept with 0")
def _(build):
    for options, kept in ((LONG, True), (FRESH, False)):
        with pair(build, *options, hosts=("a",)) as p:
            put(p.ds.raw("log"), b"12")
            eq(size(p.a.path("log")), 2)
            put(p.ds.raw("log"), b"34", "ab")
            eq(size(p.a.path("log")), 2 if kept else 4, "by name")
            fd = os.open(p.a.path("log"), RDONLY)
            eq(os.fstat(fd).st_size, 4, "who opens it sees what it is")
            eq(os.read(fd, 9), b"1234")
            os.close(fd)
            put(p.a.path("log"), b"56", "ab")
            eq(size(p.a.path("log")), 6, "a change through the view")
            os.chmod(p.a.path("log"), 0o600)
            eq(os.stat(p.a.path("log")).st_mode & 0o777, 0o600)
            os.utime(p.a.path("log"), (1, 1))
            eq(os.stat(p.a.path("log")).st_mtime, 1)


@suite.case("an image that is open is never answered for: its size on another host is seen at once")
def _(build):
    with pair(build, "wait=0", "raw=all", *LONG) as p, Proc() as holder:
        for name in ("disk.img", "disk.qcow2"):
            if name.endswith("img"):
                put(p.ds.raw(name), bytes(1 << 20))
            else:
                make_qcow2(p.ds.raw(name))
            before = size(p.b.path(name))
            reader = os.open(p.b.path(name), RDONLY)
            fd = holder.call("open", p.a.path(name), RDWR)
            for grown in (before + 4096, before + 65536):
                holder.call("ftruncate", fd, grown)
                eq(os.fstat(reader).st_size, grown, name + ", through a handle")
                eq(os.lseek(reader, 0, os.SEEK_END), grown)
                eq(size(p.b.path(name)), grown, name + ", by name")
                eq(size(p.a.path(name)), grown, name + ", on the holder's host")
            os.close(reader)
            holder.call("close", fd)
            p.ds.wait_free(name)


@suite.case("the mtime that a restore sets is seen at once on the host that restored")
def _(build):
    with pair(build, "wait=0", *LONG, hosts=("a",)) as p:
        make_qcow2(p.ds.raw("disk.qcow2"))
        os.utime(p.ds.raw("disk.qcow2"), (1e9, 1e9))
        eq(os.stat(p.a.path("disk.qcow2")).st_mtime, 1e9)
        os.close(os.open(p.a.path("disk.qcow2"), RDWR))
        p.ds.wait_free("disk.qcow2")  # what the kernel keeps is dropped right afterwards, and not in ten minutes
        wait_for(lambda: os.stat(p.a.path("disk.qcow2")).st_mtime_ns == os.stat(p.ds.raw("disk.qcow2")).st_mtime_ns, "the view shows it", 5)


@suite.case("names: one that is absent, removed or replaced elsewhere is kept for the time that was said; no open and no removal rests on it")
def _(build):
    for options, kept in ((LONG, True), (FRESH, False)):
        with pair(build, "wait=0", *options, hosts=("a",)) as p:
            eq(os.path.exists(p.a.path("new")), False)
            put(p.ds.raw("new"), b"there")
            eq(os.path.exists(p.a.path("new")), not kept, "absent")
            fd = os.open(p.a.path("new"), RDWR | os.O_CREAT)
            eq(os.read(fd, 9), b"there", "who would make it finds it")
            os.close(fd)
            raises(errno.EEXIST, os.mkdir, p.a.path("new"))

            put(p.ds.raw("old"), b"old")
            eq(size(p.a.path("old")), 3)
            os.unlink(p.ds.raw("old"))
            eq(os.path.exists(p.a.path("old")), kept, "removed")
            raises(errno.ENOENT, os.open, p.a.path("old"), RDONLY)
            raises(errno.ENOENT, os.truncate, p.a.path("old"), 0)

            put(p.ds.raw("one"), b"one")
            eq(size(p.a.path("one")), 3)
            put(p.ds.raw("next"), b"another")
            os.rename(p.ds.raw("next"), p.ds.raw("one"))
            eq(size(p.a.path("one")), 3 if kept else 7, "replaced")
            eq(read_at(p.a.path("one"), 0, 9), b"another")
            eq(size(p.a.path("one")), 7, "an open has looked")
            os.unlink(p.a.path("one"))
            raises(errno.ENOENT, os.stat, p.a.path("one"))
            ok(not os.path.exists(p.ds.raw("one")), "removed through the view")


@suite.case("a file that another host renamed, and a new one of its name: the path leads to the new one, whatever was looked up in between")
def _(build):
    for options in (LONG, (), FRESH):
        with pair(build, "wait=0", *options, hosts=("a",)) as p, Proc() as holder:
            for name, fill in (("disk.img", b"1"), ("log", b"2")):
                put(p.ds.raw(name), fill * 65536)
                eq(size(p.a.path(name)), 65536)
                os.rename(p.ds.raw(name), p.ds.raw(name + ".old"))
                put(p.ds.raw(name), b"new" * 65536)
                eq(size(p.a.path(name + ".old")), 65536)
                fd = holder.call("open", p.a.path(name), RDWR)
                eq(holder.call("pread", fd, 3, 0), b"new", name)
                old = holder.call("open", p.a.path(name + ".old"), RDWR)
                eq(holder.call("pread", old, 1, 0), fill, "and the old name to the old one")
                os.truncate(p.a.path(name + ".old"), 100) if name == "log" else None
                holder.call("close", fd)
                holder.call("close", old)
            eq((size(p.ds.raw("log")), size(p.ds.raw("log.old"))), (3 * 65536, 100), "truncated")
            p.ds.wait_settled()


@suite.case("the name that makes a raw image counts although the kernel does not ask for it again")
def _(build):
    with pair(build, "wait=0", *LONG) as p, Proc() as holder:
        put(p.a.path("disk.tmp"), bytes(1 << 20))
        eq(size(p.a.path("disk.tmp")), 1 << 20)
        os.rename(p.a.path("disk.tmp"), p.a.path("disk.img"))
        fd = holder.call("open", p.a.path("disk.img"), RDWR)
        eq(p.ds.claim_of("disk.img"), "claimed", "after a rename")
        holder.call("close", fd)
        p.ds.wait_free("disk.img")

        put(p.ds.raw("two.tmp"), bytes(1 << 20))
        os.link(p.ds.raw("two.tmp"), p.ds.raw("two.img"))
        for name in ("two.img", "two.tmp", "two.img"):
            eq(size(p.a.path(name)), 1 << 20)
        eq(size(p.a.path("two.tmp")), 1 << 20)
        fd = holder.call("open", p.a.path("two.img"), RDWR)
        eq(p.ds.claim_of("two.img"), "claimed", "of two names")
        raises(errno.EBUSY, os.open, p.b.path("two.img"), RDWR)
        holder.call("close", fd)


@suite.case("a file that was removed behind the view does not keep its space; a mount on another one stays")
def _(build):
    with pair(build, *LONG, hosts=("a",)) as p:
        put(p.ds.raw("gone"), b"x")
        put(p.ds.raw("stays"), b"y")
        put(p.ds.raw("over"), b"z")
        eq((size(p.a.path("gone")), size(p.a.path("stays"))), (1, 1))
        must("mount", "--bind", p.ds.raw("over"), p.a.path("stays"))
        try:
            fds = "/proc/%d/fd" % p.a.p.pid
            files = lambda: [os.readlink(os.path.join(fds, n)) for n in os.listdir(fds) if os.path.lexists(os.path.join(fds, n))]
            ok(any(f.endswith("/gone") for f in files()), "the kernel keeps the name, and the daemon a descriptor")
            os.unlink(p.ds.raw("gone"))
            wait_for(lambda: not any("gone" in f for f in files()), "the descriptor is closed", 10)
            eq(read_at(p.a.path("stays"), 0, 1), b"z")
        finally:
            must("umount", p.a.path("stays"))


@suite.case("a directory of many files: told once, then the kernel answers")
def _(build):
    with pair(build, *LONG, hosts=("a",)) as p:
        for n in range(300):
            put(p.ds.raw("f%d" % n), b"x")
        must("ls", "-l", p.a.mnt)
        for n in range(300):
            put(p.ds.raw("f%d" % n), b"yy")
        eq({size(p.a.path("f%d" % n)) for n in range(300)}, {1}, "sizes: nobody was asked again")
        must("ls", "-l", p.a.mnt)  # a listing brings attributes along
        eq({size(p.a.path("f%d" % n)) for n in range(300)}, {2}, "sizes after a listing")


if __name__ == "__main__":
    suite.main()
