#!/usr/bin/env python3
"""test_pieces: a file is written in pieces and in any order, as downloads, restores and rsync do, and becomes an image on the way: at its first piece, at
its last, or in the middle. Whatever the format, the order, the size of the pieces and the calls: what is written through a view is what a plain directory
gets, byte for byte, and no write is refused. --long: more seeds."""
import errno
import os
import random

import dgops
import kinds
from dgtest import Proc, Suite, eq, ok, pair, raises, read_at, suite_tmp, wait_for

suite = Suite(__file__, memory=True)
RDWR, CREAT = os.O_RDWR, os.O_CREAT
SIZES = (4096, 16384, 65536, 5003, 511)
WHICH = ("qcow2-v3", "qcow2-v2", "qcow", "qed-65536-4", "vdi", "vmdk", "vmdk-stream-footer", "vmdk-flat", "vpc", "vpc-fixed", "vpc-fixed-force-size",
         "vhdx", "parallels", "luks1-qemu", "luks2", "raw-mbr", "raw-gpt", "raw-by-name", "iso")
PIECES_MAX = 200  # of one file: those with data all, of the others so many


made = {}


def sources():
    """{kind: (name, bytes)}, short images of each kind; made once."""
    result, folder = made, suite_tmp()
    if made:
        return made
    for kind in kinds.kinds():
        if kind.name not in WHICH:
            continue
        kind.size = kind.size if kind.name in ("vmdk-stream-footer", "luks2") else min(kind.size, 2 << 20)
        where = os.path.join(folder, kind.name)
        os.mkdir(where)
        path = kind.make(where)
        with open(path, "rb") as f:
            result[kind.name] = (kind.file, f.read())
    eq(sorted(result), sorted(WHICH), "the kinds")
    return result


def pieces_of(data, size, rng):
    """(offset, bytes) in random order: every piece that has data, and of the holes so many that the whole stays short; the end always."""
    whole = [(off, data[off:off + size]) for off in range(0, len(data), size)]
    full = [p for p in whole if p[1].count(0) < len(p[1]) or p is whole[-1]]
    holes = [p for p in whole if p[1].count(0) == len(p[1]) and p is not whole[-1]]
    if len(full) > PIECES_MAX:  # those around the headers, and some of the rest
        ends = [p for p in full if p[0] < 1 << 18 or p[0] > len(data) - (1 << 16)]
        rest = [p for p in full if p not in set(ends)]
        full = ends[:PIECES_MAX] + rng.sample(rest, min(len(rest), PIECES_MAX // 4))
    todo = full + rng.sample(holes, min(len(holes), PIECES_MAX // 4))
    rng.shuffle(todo)
    return todo


class Writer:
    """Writes pieces to a path as one kind of program does."""

    def __init__(self, how, path, source, size, rng):
        self.how, self.path, self.rng, self.n = how, path, rng, 0
        self.source = os.open(source, os.O_RDONLY) if how == "copy" else -1
        self.fd = dgops.open(path, RDWR | CREAT)
        if how == "sized":
            os.ftruncate(self.fd, size)
        elif how == "allocated":
            os.posix_fallocate(self.fd, 0, size)

    def put(self, off, data):
        self.n += 1
        if self.how == "reopen" and self.n % 16 == 0:
            os.close(self.fd)
            self.fd = dgops.open(self.path, RDWR)
        if self.how == "copy" and self.n % 2:
            eq(dgops.copy_file_range(self.source, self.fd, len(data), off, off), len(data), "copied")
        elif self.how == "allocated" and self.n % 8 == 0:
            dgops.fallocate(self.fd, 0, off, len(data))
            eq(os.pwrite(self.fd, data, off), len(data))
        elif self.how == "cut" and self.n % 8 == 0:  # beyond the end, and back
            size = os.fstat(self.fd).st_size
            os.ftruncate(self.fd, max(size, off + len(data)) + 700)
            eq(os.pwrite(self.fd, data, off), len(data))
            os.ftruncate(self.fd, max(size, off + len(data)))
        else:
            eq(os.pwrite(self.fd, data, off), len(data))

    def end(self):
        os.close(self.fd)
        if self.source >= 0:
            os.close(self.source)


HOW = ("one", "reopen", "sized", "allocated", "copy", "cut")


def write(how, path, source, data, todo, rng):
    w = Writer(how, path, source, len(data), rng)
    try:
        for off, piece in todo:
            w.put(off, piece)
    finally:
        w.end()


def holds(path, wanted, what):
    got = read_at(path, 0, len(wanted) + 1)
    at = next((k for k in range(min(len(got), len(wanted))) if got[k] != wanted[k]), min(len(got), len(wanted))) if got != wanted else 0
    ok(got == wanted, "%s: %d bytes, wanted %d; first difference at %d" % (what, len(got), len(wanted), at))


@suite.case("formats x orders x sizes of pieces x ways to write them: the bytes of a plain directory", limit=300)
def _(build):
    seeds = range(suite.args.seed, suite.args.seed + (20 if suite.args.long else 1))
    tmp = suite_tmp()
    files = sources()
    with pair(build, "wait=10", hosts=("a",)) as p:
        for seed in seeds:
            for number, (name, (file, data)) in enumerate(files.items()):
                for turn, size in enumerate(SIZES):
                    if not suite.args.long and (number + turn) % 2:
                        continue
                    rng = random.Random("%d %s %d" % (seed, name, size))
                    how = HOW[(number + turn + seed) % len(HOW)]
                    todo = pieces_of(data, size, rng)
                    what = "seed %d, %s in pieces of %d, %s" % (seed, name, size, how)
                    plain = os.path.join(tmp, "plain")
                    for path in (os.path.join(tmp, "source"), p.ds.raw("source")):
                        with open(path, "wb") as f:
                            f.write(data)
                    write(how, plain, os.path.join(tmp, "source"), data, todo, rng)
                    with open(plain, "rb") as f:
                        wanted = f.read()
                    os.unlink(plain)
                    mark = p.a.log_size()
                    try:
                        write(how, p.a.path(file), p.a.path("source"), data, todo, rng)
                    except OSError as e:
                        ok(False, "%s: %s; log: %s" % (what, e, p.a.log()[mark:]))
                    holds(p.a.path(file), wanted, what + ", through the view")
                    p.ds.wait_free(file)
                    holds(p.ds.raw(file), wanted, what + ", raw")
                    os.unlink(p.a.path(file))


@suite.case("appended piece by piece, opened anew or not: the bytes of a plain directory")
def _(build):
    with pair(build, "wait=10", hosts=("a",)) as p:
        for number, (name, (file, data)) in enumerate(sources().items()):
            size = (16384, 5003, 65536)[number % 3]
            fd = dgops.open(p.a.path(file), os.O_WRONLY | os.O_APPEND | CREAT)
            for n, off in enumerate(range(0, len(data), size)):
                if number % 2 and n % 32 == 31:
                    os.close(fd)
                    fd = dgops.open(p.a.path(file), os.O_WRONLY | os.O_APPEND)
                os.write(fd, data[off:off + size])
            os.close(fd)
            p.ds.wait_free(file)
            holds(p.ds.raw(file), data, name)
            os.unlink(p.a.path(file))


@suite.case("the keeper finds what no write has shown: a footer, a new name; the writer writes on all the time")
def _(build):
    file, data = sources()["vpc-fixed"]
    with pair(build, "wait=10", hosts=("a",)) as p:
        name, plain = file, "plain"
        fd, fd2 = os.open(p.a.path(name), RDWR | CREAT), os.open(p.a.path(plain), RDWR | CREAT)
        os.pwrite(fd, data[-512:], len(data) - 512)
        os.rename(p.a.path(plain), p.a.path("plain.img"))
        at = 1 << 20

        def claimed():
            nonlocal at
            for _ in range(16):
                os.pwrite(fd, data[at:at + 4096], at)
                os.pwrite(fd2, data[:4096], at)  # it grows
                at += 4096
                at = at if at < len(data) - 8192 else 1 << 20
            return all(p.ds.claim_of(n) not in (None, "free") for n in (name, "plain.img"))
        wait_for(claimed, "both are claimed for their writers")
        os.pwrite(fd, data, 0)
        os.close(fd)
        os.close(fd2)
        p.ds.wait_free(name)
        holds(p.ds.raw(name), data, "the image")


@suite.case("several processes write the pieces of one file")
def _(build):
    files = sources()
    with pair(build, "wait=10", hosts=("a",)) as p, Proc() as one, Proc() as two, Proc() as three:
        for name in ("vpc-fixed", "iso", "qcow2-v3", "vmdk-stream-footer", "raw-gpt"):
            file, data = files[name]
            for size in (16384, 5003):
                rng = random.Random("%s %d" % (name, size))
                os.close(os.open(p.a.path(file), RDWR | CREAT))
                fds = [(w, w.call("open", p.a.path(file), RDWR)) for w in (one, two, three)]
                for off, piece in pieces_of(data, size, rng):
                    w, fd = rng.choice(fds)
                    eq(w.call("pwrite", fd, piece, off), len(piece), name)
                w, fd = fds[0]
                w.call("pwrite", fd, data[:size], 0)
                for w, fd in fds[1:]:
                    again = w.call("open", p.a.path(file), RDWR)  # who has it open may open it again, whoever made it an image
                    w.call("close", fd)
                    w.call("pwrite", again, data[:size], 0)
                    w.call("close", again)
                one.call("close", fds[0][1])
                p.ds.wait_free(file)
                for off, piece in pieces_of(data, size, rng):
                    ok(read_at(p.ds.raw(file), off, len(piece)) == piece, "%s at %d" % (name, off))
                os.unlink(p.a.path(file))


@suite.case("a footer or descriptor first: the only writer goes on, holds the image, and another host waits")
def _(build):
    files = sources()
    with pair(build, "wait=1") as p:
        for name in ("vpc-fixed", "iso"):
            file, data = files[name]
            cut = len(data) - 512 if name == "vpc-fixed" else 0x8000
            fd = os.open(p.a.path(file), RDWR | CREAT)
            os.pwrite(fd, data[cut:], cut)
            os.pwrite(fd, data[:4096], 0)
            wait_for(lambda f=file: p.ds.claim_of(f) not in (None, "free"), "it is claimed")
            raises(errno.EBUSY, os.open, p.b.path(file), RDWR)
            os.pwrite(fd, data[4096:cut], 4096)
            os.close(fd)
            p.ds.wait_free(file)
            holds(p.ds.raw(file), data, name)
            os.close(os.open(p.b.path(file), RDWR))
            p.ds.wait_free(file)
            os.unlink(p.b.path(file))


@suite.case("a plain file that has become another host's image: the writer gets EBUSY, and one line says who holds it")
def _(build):
    files = sources()
    file, data = files["qcow2-v3"]
    with pair(build, "wait=0", "fence=none") as p, Proc() as other:
        fd = os.open(p.a.path("file"), RDWR | CREAT)
        os.pwrite(fd, b"plain", 0)
        with open(p.ds.raw("file"), "r+b") as f:
            f.write(data)
        held = other.call("open", p.b.path("file"), RDWR)
        mark = p.a.log_size()
        wait_for(lambda: try_write(fd, b"x") == errno.EBUSY, "the write is refused")
        for _ in range(20):
            raises(errno.EBUSY, os.pwrite, fd, b"x", 0)
        p.a.wait_log(r"refused .*'file'", mark)
        lines = [line for line in p.a.log()[mark:].splitlines() if "refused write" in line and "'file'" in line]
        eq(len(lines), 1, "lines: %r" % lines)
        os.close(fd)
        other.call("close", held)


def try_write(fd, data):
    try:
        os.pwrite(fd, data, 0)
    except OSError as e:
        return e.errno
    return 0


if __name__ == "__main__":
    suite.main()
