#!/usr/bin/env python3
"""test_edit: everything that changes an image's header or shape goes through the guard and leaves what it leaves without one.

Each operation is carried out through the view and on an unguarded copy; the results are compared byte for byte.
"""
import errno
import os
import random
import shutil

import dgops
from dgops import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from dgqemu import QemuIo, make_qcow2, qcow2_size
from dgtest import Proc, Suite, eq, is_sealed, must, ok, pair, raises, read_at, refused, sha, wait_for

suite = Suite(__file__, also=("asan",))
SIZE = 64 << 20
RDWR = os.O_RDWR


class Twin:
    """An image in the datastore and an unguarded copy of it, to which the same is done."""

    def __init__(self, p, options="", name="img.qcow2", size=SIZE):
        self.p, self.name = p, name
        self.raw = p.ds.raw(name)
        make_qcow2(self.raw, size, options)
        must("qemu-io", "-c", "write -P 3 4M 1M", self.raw)
        self.copy = os.path.join(p.ds.base, "copy-" + name)
        shutil.copyfile(self.raw, self.copy)

    def both(self, *argv):
        """A command with %s for the image: through view A and on the copy; then the files must be equal."""
        must(*[a % self.p.a.path(self.name) if "%s" in str(a) else a for a in argv])
        must(*[a % self.copy if "%s" in str(a) else a for a in argv])
        self.same(" ".join(str(a) for a in argv))

    def same(self, what):
        self.p.ds.wait_free(self.name)
        eq(sha(self.raw), sha(self.copy), "after %s the file differs from the unguarded copy" % what)
        eq(sha(self.p.b.path(self.name)), sha(self.copy), "view B after " + what)


def updates(options):
    """Commands that rewrite the header, in an order in which each is possible."""
    yield "qemu-img", "resize", "-q", "%s", "96M"
    yield "qemu-io", "-c", "write -P 9 80M 64k", "%s"
    yield "qemu-img", "resize", "-q", "--shrink", "%s", "90M"
    if "0.10" in options:
        yield "qemu-img", "amend", "-o", "compat=1.1", "%s"
    yield "qemu-img", "bitmap", "--add", "%s", "b0"
    yield "qemu-io", "-c", "write -P 5 0 64k", "%s"
    yield "qemu-img", "bitmap", "--remove", "%s", "b0"
    yield "qemu-img", "amend", "-o", "lazy_refcounts=on", "%s"
    yield "qemu-io", "-c", "write -P 6 1M 64k", "%s"
    yield "qemu-img", "rebase", "-u", "-b", "somewhere.qcow2", "-F", "qcow2", "%s"
    yield "qemu-img", "rebase", "-u", "-b", "", "%s"
    yield "qemu-img", "amend", "-o", "lazy_refcounts=off", "%s"
    yield "qemu-img", "amend", "-o", "compat=0.10", "%s"
    yield "qemu-img", "check", "-q", "-r", "all", "%s"


def add_updates(cluster, version):
    @suite.case("header updates by qemu-img, %s clusters, compat=%s" % (cluster, version))
    def _(build):
        with pair(build, "wait=5") as p:
            options = "cluster_size=%s,compat=%s" % (cluster, version)
            twin = Twin(p, options)
            for argv in updates(options):
                twin.both(*argv)


for each in ("512", "4k", "64k", "2M"):
    for compat in ("0.10", "1.1"):
        add_updates(each, compat)


@suite.case("a snapshot is made, applied and deleted through the view")
def _(build):
    with pair(build, "wait=5") as p:
        path = p.ds.raw("img.qcow2")
        make_qcow2(path, SIZE)
        view = p.a.path("img.qcow2")
        must("qemu-io", "-c", "write -P 1 0 64k", view)
        must("qemu-img", "snapshot", "-c", "one", view)
        must("qemu-io", "-c", "write -P 2 0 64k", view)
        must("qemu-img", "resize", "-q", view, "80M")
        must("qemu-img", "snapshot", "-a", "one", view)
        must("qemu-io", "-c", "read -P 1 0 64k", "-r", p.b.path("img.qcow2"))
        must("qemu-img", "snapshot", "-d", "one", view)
        p.ds.wait_free("img.qcow2")
        eq(qcow2_size(path), SIZE, "size after the revert")
        must("qemu-img", "check", "-q", path)


@suite.case("the dirty bit set by a killed QEMU survives, and the next open repairs it")
def _(build):
    with pair(build, "wait=5") as p:
        make_qcow2(p.ds.raw("img.qcow2"), SIZE, "lazy_refcounts=on")
        with QemuIo(p.a.path("img.qcow2")) as q:
            q.do("write -P 4 0 1M")
            q.do("flush")
            ok(is_sealed(p.ds.raw("img.qcow2")), "sealed with the dirty bit in the same field")
            q.kill()
        p.ds.wait_free("img.qcow2")
        ok(read_at(p.ds.raw("img.qcow2"), 79, 1) == b"\x01", "dirty bit set, and nothing else")
        must("qemu-io", "-c", "read -P 4 0 1M", "-c", "write 2M 64k", p.b.path("img.qcow2"))
        p.ds.wait_free("img.qcow2")
        must("qemu-img", "check", "-q", p.ds.raw("img.qcow2"))


@suite.case("an external data file is left alone, its image is guarded")
def _(build):
    with pair(build, "wait=0") as p:
        must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=img.data", "img.qcow2", SIZE, cwd=p.ds.path)
        with QemuIo(p.a.path("img.qcow2"), cwd=p.a.path()) as q:  # QEMU looks for the data file from where it runs
            q.do("write -P 8 1M 64k")
            q.do("flush")
            ok(is_sealed(p.ds.raw("img.qcow2")), "sealed")
            eq(read_at(p.ds.raw("img.data"), 1 << 20, 4), b"\x08" * 4)
            refused("qemu-io", "-c", "write 0 64k", p.b.path("img.qcow2"), text="Device or resource busy")
            q.close()
        p.ds.wait_free("img.qcow2")
        must("qemu-img", "check", "-q", "img.qcow2", cwd=p.ds.path)


@suite.case("qemu-img create and convert over an existing image, and over a plain file")
def _(build):
    with pair(build, "wait=5") as p:
        twin = Twin(p)
        source = os.path.join(p.ds.base, "source.raw")
        with open(source, "wb") as f:
            f.write(random.Random(5).randbytes(300000).ljust(1 << 20, b"\0"))
        twin.both("qemu-img", "create", "-q", "-f", "qcow2", "%s", "32M")
        twin.both("qemu-img", "convert", "-O", "qcow2", "-f", "raw", source, "%s")
        twin.both("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10,cluster_size=4k", "%s", "16M")
        twin.both("qemu-img", "convert", "-n", "-O", "qcow2", "-f", "raw", source, "%s")
        twin.both("qemu-img", "convert", "-O", "raw", "-f", "raw", source, "%s")
        twin.both("qemu-img", "convert", "-O", "qcow2", "-f", "raw", source, "%s")
        new = p.a.path("new.qcow2")
        must("qemu-img", "create", "-q", "-f", "qcow2", new, "8M")
        p.ds.wait_free("new.qcow2")
        eq(qcow2_size(p.ds.raw("new.qcow2")), 8 << 20)
        with QemuIo(p.b.path("img.qcow2")) as q:
            q.do("write 0 64k")
            before = sha(p.ds.raw("img.qcow2"))
            refused("qemu-img", "create", "-q", "-f", "qcow2", p.a.path("img.qcow2"), "8M", text="busy")
            refused("qemu-img", "convert", "-O", "qcow2", "-f", "raw", source, p.a.path("img.qcow2"), text="busy")
            eq(sha(p.ds.raw("img.qcow2")), before)
            q.close()


EDITS = [
    ("size only", lambda fd: os.pwrite(fd, (SIZE * 2).to_bytes(8, "big"), 24)),
    ("across an extent's edges", lambda fd: os.pwrite(fd, os.pread(fd, 100, 0)[20:60], 20)),
    ("the whole first cluster", lambda fd: os.pwrite(fd, os.pread(fd, 65536, 0), 0)),
    ("one byte", lambda fd: os.pwrite(fd, b"\x01", 27)),
    ("append", lambda fd: os.pwrite(fd, b"tail" * 100, os.fstat(fd).st_size)),
    ("grow", lambda fd: os.ftruncate(fd, 8 << 20)),
    ("shrink", lambda fd: os.ftruncate(fd, 5 << 20)),
    ("punch the table", lambda fd: dgops.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 4096, 65536)),
    ("zero beyond the header", lambda fd: dgops.fallocate(fd, ZERO_RANGE, 1000, 9000)),
    ("allocate", lambda fd: dgops.fallocate(fd, 0, 0, 12 << 20)),
    ("copy a part over the header", lambda fd: dgops.copy_file_range(fd, fd, 300, 65536 + 512, 24)),
    ("header zeroed", lambda fd: os.pwrite(fd, bytes(512), 0)),
    ("truncate into the header", lambda fd: os.ftruncate(fd, 30)),
    ("truncate to nothing", lambda fd: os.ftruncate(fd, 0)),
    ("junk", lambda fd: os.pwrite(fd, b"\xa5" * 5000, 0)),
    ("punch the header", lambda fd: dgops.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 4096)),
    ("zero a part of an extent", lambda fd: dgops.fallocate(fd, ZERO_RANGE, 28, 50)),
]


def add_edit(label, edit, compat):
    @suite.case("holder edits, compat=%s: %s" % (compat, label))
    def _(build):
        with pair(build, "wait=0") as p:
            twin = Twin(p, "compat=" + compat)
            guarded, free = os.open(p.a.path(twin.name), RDWR), os.open(twin.copy, RDWR)
            edit(guarded)
            edit(free)
            eq(os.fstat(guarded).st_size, os.fstat(free).st_size, "size")
            for offset, length in ((0, 70000), (24, 8), (70, 20), (500, 30)):
                eq(os.pread(guarded, length, offset), os.pread(free, length, offset), "the holder reads other bytes at %d" % offset)
            eq(read_at(p.b.path(twin.name), 0, 1024), os.pread(free, 1024, 0), "view B reads other bytes")
            raises(errno.EBUSY, os.open, p.b.path(twin.name), RDWR)  # also where it does not look like an image any more
            os.fsync(guarded)
            os.close(guarded)
            os.close(free)
            twin.same(label)


for title, action in EDITS:
    for compat in ("1.1", "0.10"):
        add_edit(title, action, compat)


@suite.case("a header that contradicts itself in one way after another keeps its seal")
def _(build):
    with pair(build, "wait=0") as p:
        make_qcow2(p.ds.raw("img.qcow2"), SIZE)
        fd = os.open(p.a.path("img.qcow2"), RDWR)
        edits = (("a partition table, too", 446, partitioned(0x83, 2048)[446:512]), ("and clusters that no qcow2 has", 20, bytes([0, 0, 0, 99])),
                 ("those alone", 510, bytes(2)), ("another size", 24, (SIZE * 2).to_bytes(8, "big")))
        for what, off, data in edits:
            os.pwrite(fd, data, off)
            ok(is_sealed(p.ds.raw("img.qcow2")), "no seal on the datastore: " + what)
            eq(os.pread(fd, len(data), off), data, what)
        true = os.pread(fd, 65536, 0)
        os.close(fd)
        p.ds.wait_free("img.qcow2")
        eq(read_at(p.ds.raw("img.qcow2"), 0, 65536), true, "afterwards")


def random_edit(rng, size, base):
    """One random operation on a held image, mostly near its header: (function, description)."""
    near = rng.random() < 0.7
    offset = rng.randrange(0, 700) if near else rng.randrange(0, size + 70000)
    length = rng.choice((1, 7, 8, 48, 512, 600, 4096, 9000, 70000))
    kind = rng.choice(("write", "write", "write", "header", "truncate", "punch", "zero", "allocate", "copy", "fsync", "restore-header"))
    data = rng.randbytes(length)
    if kind == "write":
        return lambda fd: os.pwrite(fd, data, offset), "write %d at %d" % (length, offset)
    if kind == "header":  # a header that stays valid: another size
        new = (rng.randrange(1, 1 << 20) * 65536).to_bytes(8, "big")
        return lambda fd: os.pwrite(fd, new, 24), "size"
    if kind == "restore-header":
        return lambda fd: os.pwrite(fd, base, 0), "header back"
    if kind == "truncate":
        target = rng.choice((0, 10, 28, 100, 512, 4096, 100000, 1 << 20))
        return lambda fd: os.ftruncate(fd, target), "truncate to %d" % target
    if kind == "punch":
        return lambda fd: dgops.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, length), "punch %d at %d" % (length, offset)
    if kind == "zero":
        mode = ZERO_RANGE | rng.choice((0, KEEP_SIZE))
        return lambda fd: dgops.fallocate(fd, mode, offset, length), "zero %d at %d" % (length, offset)
    if kind == "allocate":
        return lambda fd: dgops.fallocate(fd, rng.choice((0, 0)), offset, length), "allocate %d at %d" % (length, offset)
    if kind == "copy":
        target = offset + length + rng.randrange(0, 5000)
        return lambda fd: dgops.copy_file_range(fd, fd, length, target, offset), "copy %d from %d to %d" % (length, target, offset)
    return os.fsync, "fsync"


@suite.case("random edits of a held image give what they give unguarded", limit=240)
def _(build):
    rounds = 400 if suite.args.long else 12
    with pair(build, "wait=0") as p:
        for number in range(rounds):
            rng = random.Random(suite.args.seed * 10000 + number)
            twin = Twin(p, "compat=%s,cluster_size=%s" % (rng.choice(("1.1", "0.10")), rng.choice(("512", "64k"))), "r%d.qcow2" % number,
                        8 << 20)
            base = read_at(twin.raw, 0, 1024)
            guarded, free = os.open(p.a.path(twin.name), RDWR), os.open(twin.copy, RDWR)
            done = []
            for _ in range(rng.randrange(5, 60)):
                action, label = random_edit(rng, os.fstat(free).st_size, base)
                done.append(label)
                story = "round %d: %s" % (number, "; ".join(done[-6:]))
                eq(outcome(action, guarded), outcome(action, free), "result, " + story)
                eq(os.fstat(guarded).st_size, os.fstat(free).st_size, "size, " + story)
                at = rng.randrange(0, 600)
                eq(os.pread(guarded, 4000, at), os.pread(free, 4000, at), "bytes at %d, %s" % (at, story))
            os.close(guarded)
            os.close(free)
            twin.same("round %d: %s" % (number, "; ".join(done)))
            # the claim is free a moment before the view's image is idle, and nothing waits here
            must(*p.a.build.command(p.a.build.ctl, "wait", "--timeout=20", p.a.path(twin.name)))
            os.unlink(p.a.path(twin.name))
            os.unlink(twin.copy)


def outcome(action, fd):
    try:
        return action(fd)
    except OSError as e:
        return errno.errorcode[e.errno]


@suite.case("O_TRUNC and truncate(2) of an idle image")
def _(build):
    with pair(build, "wait=0") as p:
        for number, change in enumerate((lambda path: os.close(os.open(path, RDWR | os.O_TRUNC)), lambda path: os.truncate(path, 0),
                                         lambda path: os.truncate(path, 40), lambda path: os.truncate(path, 32 << 20))):
            twin = Twin(p, name="t%d.qcow2" % number)
            change(p.a.path(twin.name))
            change(twin.copy)
            twin.same("change %d" % number)


@suite.case("a plain file becomes an image while it is open: claimed before the write lands, its handles join")
def _(build):
    with pair(build, "wait=0") as p, Proc() as other:
        source = os.path.join(p.ds.base, "source.qcow2")
        make_qcow2(source, SIZE)
        data = read_at(source, 0, 1 << 20)
        fd = os.open(p.a.path("file"), RDWR | os.O_CREAT, 0o644)
        fd2 = os.open(p.a.path("file"), RDWR)
        os.pwrite(fd, data[65536:], 65536)
        other_fd = os.open(p.b.path("file"), RDWR)  # still plain: many writers
        os.close(other_fd)
        os.pwrite(fd, data[:65536], 0)
        ok(is_sealed(p.ds.raw("file")), "sealed as soon as it is an image")
        raises(errno.EBUSY, os.open, p.b.path("file"), RDWR)
        raises(errno.EBUSY, other.call, "open", p.a.path("file"), RDWR)
        os.close(fd)
        ok(is_sealed(p.ds.raw("file")), "the second handle holds it")
        os.pwrite(fd2, b"abc", 300000)
        eq(os.pread(fd2, 32, 0), data[:32])
        os.close(fd2)
        p.ds.wait_free("file")
        eq(read_at(p.ds.raw("file"), 0, 65536), data[:65536])


@suite.case("plain files may have many writers on many hosts")
def _(build):
    with pair(build, "wait=0") as p, Proc() as one, Proc() as two:
        handles = [(w, w.call("open", v.path("log.txt"), RDWR | os.O_CREAT | os.O_APPEND)) for w in (one, two) for v in (p.a, p.b)]
        for i in range(50):
            for w, fd in handles:
                w.call("write", fd, b"%04d\n" % i)
        for w, fd in handles:
            w.call("close", fd)
        eq(os.stat(p.ds.raw("log.txt")).st_size, 50 * 4 * 5)
        eq(p.ds.claims(), {}, "no claim for a plain file")


def partitioned(kind, start):
    """A disk whose first sector holds one partition entry: of a plain MBR, or (kind 0xee, start 1) the protective one of a GPT."""
    entry = bytes([0, 1, 1, 0, kind, 1, 1, 1]) + start.to_bytes(4, "little") + (100000).to_bytes(4, "little")
    return bytes(446) + entry + bytes(48) + b"\x55\xaa" + bytes(1 << 20)


@suite.case("raw images: auto, all, none and patterns say which files are guarded by claim alone")
def _(build):
    files = {"a.img": b"x" * 5000, "b.raw": b"y" * 5000, "mbr": partitioned(0x83, 2048), "gpt": partitioned(0xee, 1), "c.dat": b"z" * 5000,
             "d.bin": b"w" * 5000}
    cases = {"raw=auto": {"a.img", "b.raw", "mbr", "gpt"}, "raw=all": set(files), "raw=none": set(), "raw=*.dat:*.bin": {"c.dat", "d.bin"}}
    for option, guarded in cases.items():
        with pair(build, "wait=0", option) as p:
            for name, data in files.items():
                with open(p.ds.raw(name), "wb") as f:
                    f.write(data)
            for name, data in files.items():
                fd = os.open(p.a.path(name), RDWR)
                eq(read_at(p.ds.raw(name), 0, len(data)), data, "a raw image is never sealed: " + name)
                if name in guarded:
                    raises(errno.EBUSY, os.open, p.b.path(name), RDWR)
                    eq(read_at(p.b.path(name), 0, 512), data[:512], "readable")
                else:
                    os.close(os.open(p.b.path(name), RDWR))
                os.pwrite(fd, b"new", 0)
                os.close(fd)
                wait_for(lambda n=name: p.ds.claim_of(n) in (None, "free"), "%s is released" % name)
                eq(read_at(p.ds.raw(name), 0, 5000), b"new" + data[3:5000], name)


if __name__ == "__main__":
    suite.main()
