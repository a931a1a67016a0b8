#!/usr/bin/env python3
"""One file, changed in every way at once, as fsx does: by several processes of two users, through handles that are buffered, O_DIRECT,
O_APPEND or read-only, and change between that (F_SETFL), and through shared mappings; with truncation, every kind of fallocate and
copy_file_range. The same on a raw directory: results, errnos, sizes, modes and every byte must be equal. --seed chooses another run."""
import errno
import mmap
import os
import random
import re

import dgops
from dgops import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from dgqemu import make_qcow2
from dgtest import Fail, Proc, Skip, Suite, eq, ok, pair

suite = Suite(__file__, seed=True)
PAGE = 4096
USER = (1001, 1001, (1001, 2000))
MOST = 1 << 20
MODES = (0o666, 0o6777, 0o2766, 0o4777, 0o6777)
HANDLES = (os.O_RDWR, os.O_RDWR, os.O_RDWR | os.O_DIRECT, os.O_RDWR | os.O_DIRECT, os.O_RDWR | os.O_APPEND, os.O_WRONLY,
           os.O_RDWR | os.O_DIRECT | os.O_APPEND, os.O_RDONLY, os.O_RDONLY | os.O_DIRECT, os.O_RDWR | os.O_DSYNC)
RWF_DSYNC, CAP_FSETID = 2, 4


class Handle:
    def __init__(self, proc, fds, flags):
        self.proc, self.fds, self.flags = proc, fds, flags
        self.maps, self.mapped = None, 0

    def reads(self):
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    def writes(self):
        return self.flags & os.O_ACCMODE != os.O_RDONLY


class Run:
    """floor: what lies below is left alone (the header of an image)."""

    def __init__(self, rng, procs, paths, floor=0):
        self.rng, self.procs, self.paths, self.floor = rng, procs, paths, floor
        self.handles, self.log, self.modes = [], [], []
        self.look()

    def look(self):
        """The kinds of fallocate that this file system has: the kernel of a view does not know them before it drops set-id bits."""
        with open(self.paths[1] + ".look", "wb") as f:
            for mode in (0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE):
                try:
                    dgops.fallocate(f.fileno(), mode, 0, PAGE)
                    self.modes.append(mode)
                except OSError as e:
                    eq(e.errno, errno.EOPNOTSUPP, "fallocate %x" % mode)
        os.unlink(self.paths[1] + ".look")

    def both(self, proc, name, *args):
        """One call in both worlds, an argument that is a list of two has one for each: the result, which must be equal."""
        results = []
        for world in (0, 1):
            try:
                results.append(("ok", proc.call(name, *[a[world] if isinstance(a, list) else a for a in args])))
            except OSError as e:
                results.append(("error", errno.errorcode.get(e.errno, e.errno)))
        if name in ("open", "map_shared"):
            if results[0][0] == results[1][0] == "ok":
                return "ok", [value for _, value in results]
        if results[0] != results[1]:
            raise Fail("%s%.120r: the view says %.60r, raw says %.60r" % (name, args, *results))
        return results[1]

    def size(self):
        return os.stat(self.paths[1]).st_size

    def span(self, align):
        """A random place, in blocks where align asks for it, mostly not far beyond the end."""
        most = min(MOST, max(self.size(), self.floor) + 3 * PAGE)
        off = self.rng.choice((self.rng.randrange(self.floor, most), max(self.floor, self.size() - self.rng.randrange(1, 9000)), self.floor))
        length = self.rng.choice((1, 7, 511, 512, 4095, 4096, 5000, 8192, self.rng.randrange(1, 70000)))
        if align:
            off, length = off // PAGE * PAGE, (length + PAGE - 1) // PAGE * PAGE
        return off, length

    def pick(self, wanted):
        found = [h for h in self.handles if wanted(h)]
        return self.rng.choice(found) if found else None

    def do_open(self):
        proc, flags = self.rng.choice(self.procs), self.rng.choice(HANDLES)
        if self.rng.random() < 0.04 and not self.floor:
            flags |= os.O_TRUNC if flags & os.O_ACCMODE else 0
        how, fds = self.both(proc, "open", self.paths, flags)
        if how == "ok":
            self.handles.append(Handle(proc, fds, flags & ~os.O_TRUNC))
        if len(self.handles) > 9:
            self.close(self.handles[self.rng.randrange(len(self.handles) - 1)])
        return "open %o" % flags

    def close(self, h):
        self.handles.remove(h)
        if h.maps:
            self.both(h.proc, "map_end", h.maps)
        self.both(h.proc, "close", h.fds)

    def do_close(self):
        h = self.pick(lambda h: len(self.handles) > 3)
        if h:
            self.close(h)
        return h and "close"

    def do_flags(self):
        """dd turns O_DIRECT off for a last block that is none."""
        h = self.pick(lambda h: True)
        if not h:
            return None
        h.flags ^= self.rng.choice((os.O_DIRECT, os.O_DIRECT, os.O_APPEND))
        self.both(h.proc, "set_flags", h.fds, h.flags)
        return "F_SETFL %o" % h.flags

    def unaligned(self, h):
        return not h.flags & os.O_DIRECT

    def do_read(self):
        h = self.pick(Handle.reads)
        if not h:
            return None
        off, length = self.span(not self.unaligned(h))
        self.both(h.proc, "aligned_read", h.fds, length, off)
        return "read %o %d+%d" % (h.flags, off, length)

    def do_write(self):
        h = self.pick(lambda h: h.writes())
        if not h or (h.flags & os.O_APPEND and h.flags & os.O_DIRECT and self.size() % PAGE) or self.size() > MOST:
            return None
        off, length = self.span(not self.unaligned(h))
        flags = RWF_DSYNC if self.rng.random() < 0.1 else 0
        self.both(h.proc, "aligned_write", h.fds, self.rng.randbytes(length), off, flags)
        return "write %o %d+%d" % (h.flags, off, length)

    def do_map(self):
        """A mapping stays until its handle goes; what it writes stays dirty."""
        h = self.pick(lambda h: h.writes() and h.reads())
        size = self.size()
        if not h or size <= self.floor:
            return None
        if h.maps and self.rng.random() < 0.1:
            self.both(h.proc, "map_end", h.maps)
            h.maps = None
        if not h.maps:
            how, h.maps = self.both(h.proc, "map_shared", h.fds, size)
            h.mapped = size
            ok(how == "ok", "mmap: %s" % h.maps)
        most = min(size, h.mapped)
        if most <= self.floor:
            return None
        off = self.rng.choice((self.rng.randrange(self.floor, most), max(self.floor, most - 50)))
        length = min(self.rng.choice((1, 20, 5000)), most - off)
        kind = self.rng.choice(("map_read", "map_write", "map_write", "map_sync"))
        if kind == "map_read":
            self.both(h.proc, kind, h.maps, off, length)
        elif kind == "map_write":
            self.both(h.proc, kind, h.maps, off, self.rng.randbytes(length))
        elif most == h.mapped:
            self.both(h.proc, kind, h.maps)
        return "%s %o %d+%d" % (kind, h.flags, off, length)

    def do_truncate(self):
        h = self.pick(lambda h: h.writes())
        size = self.rng.choice((0, self.rng.randrange(MOST // 4), max(0, self.size() - self.rng.randrange(9000)),
                                self.size() + self.rng.randrange(9000)))
        size = max(size, self.floor)
        if size > MOST or (self.floor and not h):
            return None
        if h and (self.floor or self.rng.random() < 0.7):
            self.both(h.proc, "ftruncate", h.fds, size)
        else:
            self.both(self.rng.choice(self.procs), "truncate", self.paths, size)
        return "truncate %d" % size

    def do_allocate(self):
        h = self.pick(lambda h: h.writes())
        if not h:
            return None
        off, length = self.span(self.rng.random() < 0.5)
        mode = self.rng.choice(self.modes)
        self.both(h.proc, "fallocate", h.fds, mode, off, length)
        return "fallocate %o %x %d+%d" % (h.flags, mode, off, length)

    def do_copy(self):
        a = self.pick(lambda h: h.reads() and not h.flags & os.O_APPEND)
        b = self.pick(lambda h: h.writes() and not h.flags & os.O_APPEND and h.proc is a.proc) if a else None
        if not b or self.size() <= self.floor:
            return None
        direct = (a.flags | b.flags) & os.O_DIRECT
        off, length = self.span(direct)
        to = self.rng.randrange(self.floor, min(MOST, self.size() + PAGE))
        to = to // PAGE * PAGE if direct else to
        if abs(to - off) < length or (direct and self.size() < off + length):
            return None
        self.both(a.proc, "copy_file_range", a.fds, b.fds, length, off, to)
        return "copy %o %o %d+%d to %d" % (a.flags, b.flags, off, length, to)

    def do_sync(self):
        h = self.pick(lambda h: True)
        if h:
            self.both(h.proc, "fsync", h.fds)
        return h and "fsync"

    def do_mode(self):
        mode = self.rng.choice(MODES)
        self.both(self.procs[0], "chmod", self.paths, mode)
        return "chmod %o" % mode

    def check(self):
        """Through any handle: size, mode, and now and then all bytes."""
        h = self.pick(lambda h: h.reads() and not h.flags & os.O_DIRECT)
        if not h:
            return
        got = [h.proc.call("fstat", fd) for fd in h.fds]
        eq([(oct(st[0]), st[4]) for st in got[:1]], [(oct(st[0]), st[4]) for st in got[1:]], "mode and size")
        if self.rng.random() < 0.15:
            size = got[0][4]
            a, b = [h.proc.call("pread", fd, size - self.floor, self.floor) for fd in h.fds]
            same(a, b, self.floor, "through %o" % h.flags)

    def run(self, steps):
        kinds = ["open", "open", "close", "flags", "read", "read", "write", "write", "write", "map", "map", "map", "truncate", "allocate",
                 "copy", "sync", "mode"]
        self.do_open()
        for step in range(steps):
            kind = self.rng.choice(kinds)
            try:
                text = getattr(self, "do_" + kind)()
                self.log.append("%d %s" % (step, text))
                self.check()
            except Fail as e:
                raise Fail("step %d, %s: %s; before: %s" % (step, kind, e, "; ".join(self.log[-6:]))) from None
        for h in list(self.handles):
            self.close(h)


def same(a, b, floor, what):
    if a == b:
        return
    at = next((n for n, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    raise Fail("%s: %d and %d bytes, other ones from %d on" % (what, len(a), len(b), floor + at))


def can_map():
    release = [int(n) for n in re.findall(r"\d+", os.uname().release)[:2]]
    if release < [6, 6]:
        raise Skip("Linux %s" % os.uname().release)


def runs(build, name, make, floor=0, users=True):
    with pair(build, "wait=0", "writers=host", hosts=("a",)) as p:
        beside = os.path.join(p.ds.base, "beside")
        os.mkdir(beside, 0o755)
        for n in range(30 if suite.args.long else 4):
            seed = suite.args.seed * 1000 + n
            rng = random.Random(seed)
            paths = [p.a.path(name), os.path.join(beside, name)]
            make(p.ds.raw(name), rng)
            make(paths[1], random.Random(seed))
            if floor:
                with open(p.ds.raw(name), "rb") as f, open(paths[1], "wb") as g:
                    g.write(f.read())
            for path in (p.ds.raw(name), paths[1]):
                os.chown(path, *USER[:2])
                os.chmod(path, 0o666)
            procs = [Proc(), Proc(), *([Proc(*USER), Proc(1002, 1002, (1002,))] if users else ())]
            try:
                Run(rng, procs, paths, floor).run(1500 if suite.args.long else 250)
                p.ds.wait_free(name)
                with open(p.ds.raw(name), "rb") as f, open(paths[1], "rb") as g:
                    same(f.read()[floor:], g.read()[floor:], floor, "on the datastore, at the end")
                eq(oct(os.stat(p.ds.raw(name)).st_mode), oct(os.stat(paths[1]).st_mode), "mode at the end")
            except Fail as e:
                raise Fail("%s, seed %d: %s" % (name, seed, e)) from None
            finally:
                for q in procs:
                    q.kill()
            for path in (p.ds.raw(name), paths[1]):
                os.unlink(path)


def make_plain(path, rng):
    with open(path, "wb") as f:
        f.write(b"plain" + rng.randbytes(rng.choice((0, 100, 40000, 100000))))


@suite.case("a plain file", limit=240)
def plain(build):
    can_map()
    runs(build, "file.bin", make_plain)


@suite.case("a raw image", limit=240)
def image(build):
    can_map()
    runs(build, "disk.img", make_plain)


@suite.case("a sealed image, beyond its header", limit=240)
def sealed(build):
    can_map()

    def make(path, _):
        make_qcow2(path, "16M")
        with open(path, "ab") as f:
            f.truncate(300000)
    runs(build, "disk.qcow2", make, floor=256 << 10)


def change_kinds():
    """(what, flags of the open, calls on the descriptor)"""
    data = b"x" * PAGE
    rw, direct = os.O_RDWR, os.O_RDWR | os.O_DIRECT
    at = 8 * PAGE
    yield "write", rw, [("pwrite", data, at)]
    yield "write of one byte", rw, [("pwrite", b"x", at + 5)]
    yield "write at the start", rw, [("pwrite", b"plain", 0)]
    yield "write, O_APPEND", rw | os.O_APPEND, [("pwrite", b"xy", 0)]
    yield "write, O_DIRECT", direct, [("aligned_write", data, at)]
    yield "write, RWF_DSYNC", rw, [("aligned_write", data, at, RWF_DSYNC)]
    yield "mapped write", rw, [("shared_mmap", PAGE, mmap.PROT_READ | mmap.PROT_WRITE, b"plain")]
    yield "ftruncate", rw, [("ftruncate", 9 * PAGE)]
    yield "ftruncate to the same size", rw, [("ftruncate", 16 * PAGE)]
    yield "O_TRUNC", rw | os.O_TRUNC, []
    for flags in (rw, direct):
        for mode in (0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE):
            for off in (0, at):
                yield "fallocate %x at %d, %o" % (mode, off, flags), flags, [("fallocate", mode, off, PAGE)]
    for off in (0, at):
        yield "copy_file_range to %d" % off, rw, [("copy", PAGE, off)]
    yield "nothing", rw, []
    yield "fsync", rw, [("fsync",)]


def carry_out(q, path, source, flags, calls):
    result, fd = [], -1
    src = q.call("open", source, os.O_RDONLY)
    try:
        fd = q.call("open", path, flags)
        for name, *args in calls:
            if name == "copy":
                result.append(q.call("copy_file_range", src, fd, args[0], 0, args[1]))
            else:
                result.append(q.call(name, fd, *args))
        result.append(oct(q.call("fstat", fd)[0]))
    except OSError as e:
        result.append(errno.errorcode[e.errno])
    for n in (src, fd):
        if n >= 0:
            q.call("close", n)
    return result


@suite.case("set-user-id and set-group-id bits go, and stay, as on the raw directory: whatever changes the file, whoever does it", limit=300)
def set_ids(build):
    can_map()
    users = {"root": None, "root without CAP_FSETID": None, "owner": (1001, 1001, (1001,)), "group": (1002, 1002, (1002, 1001)), "other": (1003, 1003, (1003,))}
    with pair(build, "wait=0", hosts=("a",)) as p:
        beside = os.path.join(p.ds.base, "beside")
        os.mkdir(beside, 0o755)
        wrong, done = [], 0
        for who, ids in users.items():
            with Proc() if ids is None else Proc(*ids) as q:
                if "without" in who:
                    q.call("drop_capability", CAP_FSETID)
                for name in ("file.bin", "disk.img"):
                    for mode in (0o6777, 0o2766, 0o4666):
                        for what, flags, calls in change_kinds():
                            if not suite.args.long and name == "disk.img" and (mode != 0o6777 or who in ("group", "other")):
                                continue
                            got = []
                            for raw, seen in ((p.ds.raw(name), p.a.path(name)), (os.path.join(beside, name),) * 2):
                                for path in (raw, raw + ".src"):
                                    with open(path, "wb") as f:
                                        f.write(b"plain" + bytes(16 * PAGE - 5))
                                os.chown(raw, 1001, 1001)
                                os.chmod(raw, mode)
                                got.append(carry_out(q, seen, seen + ".src", flags, calls) + [oct(os.stat(raw).st_mode)])
                                if raw != seen:
                                    p.ds.wait_free(name)
                            done += 1
                            if got[0] != got[1] and got[1][0] != "ENOTSUP":
                                wrong.append("%s %s %s by %s: view %s, raw %s" % (name, oct(mode), what, who, *got))
        ok(done > 400 and not wrong, "%d of %d: %s" % (len(wrong), done, "; ".join(wrong[:8])))


@suite.case("dd oflag=direct of a file whose last block is none: it turns O_DIRECT off for that, of images and plain files")
def last_block(build):
    with pair(build, "wait=0", hosts=("a",)) as p, Proc() as q:
        for name in ("odd.img", "odd.bin"):
            data = random.Random(1).randbytes(5 * PAGE + 123)
            fd = q.call("open", p.a.path(name), os.O_RDWR | os.O_CREAT | os.O_DIRECT)
            q.call("aligned_write", fd, data[:5 * PAGE], 0)
            q.call("set_flags", fd, os.O_RDWR)
            eq(q.call("pwrite", fd, data[5 * PAGE:], 5 * PAGE), 123, name)
            eq(q.call("pread", fd, 100, 77), data[77:177], name)
            q.call("set_flags", fd, os.O_RDWR | os.O_DIRECT)
            eq(q.call("aligned_read", fd, PAGE, 5 * PAGE), data[5 * PAGE:], name)
            q.call("close", fd)
            p.ds.wait_free(name)
            with open(p.ds.raw(name), "rb") as f:
                ok(f.read() == data, name)


if __name__ == "__main__":
    suite.main()
