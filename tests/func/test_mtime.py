#!/usr/bin/env python3
"""test_mtime: no image shows an mtime without its seal that it showed with it, so that what copied it past the view while it was sealed copies it again:
rsync (size and whole seconds), cp -u (newer), programs that remember size and mtime. What somebody sets is kept."""
import errno
import os
import shutil

from dgqemu import make_qcow2
from dgtest import Proc, Skip, Suite, eq, is_sealed, must, ok, pair, raises, run, sha, small_fs, suite_tmp, wait_for

suite = Suite(__file__)
RDWR, WRONLY, CREAT, EXCL = os.O_RDWR, os.O_WRONLY, os.O_CREAT, os.O_EXCL
OLD = 1_000_000_000_123_456_789
SECOND = 1_000_000_000
SIZE = "4M"  # each is copied and compared many times


def bases():
    """One datastore on the disk and one in memory: the one has coarse times, and so has the other, of another kernel path."""
    yield suite_tmp()
    with small_fs(200) as base:
        yield base


def mtime(path):
    return os.stat(path).st_mtime_ns


class Backups:
    """Programs that copy what has changed, each into its own folder, from the raw datastore."""

    def __init__(self, ds):
        self.ds, self.dir, self.seen = ds, suite_tmp(), {}
        for name in ("rsync", "cp", "own"):
            os.mkdir(os.path.join(self.dir, name))

    def run(self):
        if not shutil.which("rsync"):
            raise Skip("no rsync")
        must("rsync", "-a", "--exclude=.diskguard", self.ds.path + "/", os.path.join(self.dir, "rsync"))
        for name in os.listdir(self.ds.path):
            if name == ".diskguard":
                continue
            must("cp", "-up", self.ds.raw(name), os.path.join(self.dir, "cp"))
            st = os.stat(self.ds.raw(name))
            if self.seen.get(name) != (st.st_size, st.st_mtime_ns):
                shutil.copy(self.ds.raw(name), os.path.join(self.dir, "own", name))
                self.seen[name] = st.st_size, st.st_mtime_ns

    def check(self, name, what):
        self.run()
        for program in ("rsync", "cp", "own"):
            eq(sha(os.path.join(self.dir, program, name)), sha(self.ds.raw(name)), "%s: the copy of %s" % (what, program))


def settle(p, path):
    p.ds.wait_free(path)
    wait_for(lambda: mtime(p.a.path(path)) == mtime(p.ds.raw(path)), "the view shows it")


def write(fd, _):
    os.pwrite(fd, os.urandom(512), 1 << 20)


def nothing(_fd, _path):
    pass


def header(fd, _):
    os.pwrite(fd, os.pread(fd, 4096, 0), 0)


def resize(_, path):
    must("qemu-img", "resize", "-q", "-f", "qcow2", path, "+1M")


@suite.case("a copy that was made past the view while the image was sealed is made again after the restore, by rsync -a, cp -u and size with mtime", 240)
def _(build):
    for base in bases():
        with pair(build, "wait=5,writers=host", hosts=("a",), base=base) as p:
            backups = Backups(p.ds)
            for name, change in (("nothing", nothing), ("wrote", write), ("header", header), ("resized", resize)):
                path = name + ".qcow2"
                make_qcow2(p.ds.raw(path), SIZE, "preallocation=metadata")
                for stamp in (OLD, None):
                    if stamp:
                        os.utime(p.ds.raw(path), ns=(stamp, stamp))
                    fd = os.open(p.a.path(path), RDWR)
                    change(fd, p.a.path(path))
                    ok(is_sealed(p.ds.raw(path)), "it is sealed")
                    backups.run()
                    last = mtime(p.ds.raw(path))
                    os.close(fd)
                    settle(p, path)
                    ok(mtime(p.ds.raw(path)) // SECOND >= last // SECOND + 2, "%s: later for all" % name)
                    backups.check(path, name)


@suite.case("holds that follow each other quickly: each restore has an mtime of its own, and it does not run away from the clock")
def _(build):
    with pair(build, "wait=5", hosts=("a",)) as p:
        make_qcow2(p.ds.raw("i.qcow2"))
        seen = [mtime(p.ds.raw("i.qcow2"))]
        for n in range(40):
            fd = os.open(p.a.path("i.qcow2"), RDWR)
            os.pwrite(fd, b"%d" % n, 1 << 20)
            os.close(fd)
            settle(p, "i.qcow2")
            seen.append(mtime(p.ds.raw("i.qcow2")))
        ok(all(a < b for a, b in zip(seen, seen[1:])), "each is later than the one before")
        probe = os.path.join(p.ds.base, "now")
        with open(probe, "w") as f:
            f.write("x")
        ok(seen[-1] < mtime(probe) + 4 * SECOND, "close to now")


@suite.case("a daemon that was killed with the image sealed: its next start, and fsck, set a new mtime too")
def _(build):
    for base in bases():
        with pair(build, "wait=5", hosts=("a",), base=base) as p:
            make_qcow2(p.ds.raw("i.qcow2"), SIZE, "preallocation=metadata")
            for who in ("start", "fsck"):
                for change in (nothing, write):
                    os.utime(p.ds.raw("i.qcow2"), ns=(OLD, OLD))
                    backups = Backups(p.ds)  # new ones: cp -u takes nothing that is older than its copy, and time has gone back
                    with Proc() as holder:
                        holder.call("open", p.a.path("i.qcow2"), RDWR)
                        if change is write:
                            fd = holder.call("open", p.a.path("i.qcow2"), RDWR)
                            holder.call("pwrite", fd, b"y" * 512, 1 << 20)
                        backups.run()
                        p.a.kill9()
                    if who == "fsck":
                        eq(p.ds.fsck(p.a.host, "-p").code, 1, "repaired")
                    p.a.start()
                    settle(p, "i.qcow2")
                    backups.check("i.qcow2", who)


@suite.case("an mtime that is set through the view stays: cp -p, rsync -a (twice: nothing is copied again), touch -d while it is held")
def _(build):
    for base in bases():
        with pair(build, "wait=5", hosts=("a",), base=base) as p:
            src = os.path.join(p.ds.base, "src")
            os.mkdir(src)
            for n, stamp in enumerate((OLD, None, 2_200_000_000 * SECOND)):
                name = "i%d.qcow2" % n
                make_qcow2(os.path.join(src, name), SIZE, "preallocation=metadata")
                if stamp:
                    os.utime(os.path.join(src, name), ns=(stamp, stamp))
                want = mtime(os.path.join(src, name))
                must("cp", "-p", os.path.join(src, name), p.a.path("cp" + name))
                eq(mtime(p.a.path("cp" + name)), want, "through the view, at once")
                settle(p, "cp" + name)
                eq(mtime(p.ds.raw("cp" + name)), want, "cp -p")
                eq(sha(p.ds.raw("cp" + name)), sha(os.path.join(src, name)), "content")
            for options in ((), ("--inplace",)):
                out = must("rsync", "-ai", *options, src + "/", p.a.path())
                p.ds.wait_settled()
                out = must("rsync", "-ai", *options, src + "/", p.a.path())
                ok("qcow2" not in out, "nothing is copied again: %s" % out)
                for name in os.listdir(src):
                    eq(mtime(p.ds.raw(name)), mtime(os.path.join(src, name)), "rsync")


@suite.case("an mtime that is set while the image is held: the view shows it, the sealed image does not; a later write and touch make it void; it outlives a crash")
def _(build):
    with pair(build, "wait=5,writers=host", hosts=("a",)) as p:
        make_qcow2(p.ds.raw("i.qcow2"), SIZE, "preallocation=metadata")

        def hold(*steps, crash=False):
            with Proc() as holder:
                fd = holder.call("open", p.a.path("i.qcow2"), RDWR)
                for step in steps:
                    step(holder, fd)
                shown = mtime(p.a.path("i.qcow2"))
                ok(is_sealed(p.ds.raw("i.qcow2")) and mtime(p.ds.raw("i.qcow2")) != OLD, "the sealed image does not show it")
                if crash:
                    p.a.kill9()
            if crash:
                p.a.start()
            settle(p, "i.qcow2")
            return shown, mtime(p.ds.raw("i.qcow2"))

        def choose(holder, fd):
            holder.call("futimens", fd, OLD, OLD)

        def by_path(_holder, _fd):
            os.utime(p.a.path("i.qcow2"), ns=(OLD, OLD))

        def put(holder, fd):
            holder.call("pwrite", fd, os.urandom(512), 1 << 20)

        def touch(_holder, _fd):
            must("touch", p.a.path("i.qcow2"))

        eq(hold(choose), (OLD, OLD))
        eq(hold(put, by_path), (OLD, OLD))
        eq(hold(by_path, crash=True), (OLD, OLD))
        for last in (put, touch):
            for crash in (False, True):
                shown, after = hold(choose, last, crash=crash)
                ok(OLD < shown < after, "void after %s, crash %s" % (last.__name__, crash))
        # One that the sealed image has shown is not put back.
        with Proc() as holder:
            fd = holder.call("open", p.a.path("i.qcow2"), RDWR)
            put(holder, fd)
            stamp = mtime(p.ds.raw("i.qcow2"))
            holder.call("futimens", fd, OLD, stamp)
        settle(p, "i.qcow2")
        ok(mtime(p.ds.raw("i.qcow2")) >= stamp + SECOND, "not the one that was shown")


@suite.case("an mtime that another host's view sets on a held image: touch is kept in effect, a date is refused with EBUSY and a line that names the holder, and what changes nothing is fine")
def _(build):
    with pair(build, "wait=0") as p:
        make_qcow2(p.ds.raw("i.qcow2"))
        make_qcow2(p.ds.raw("free.qcow2"))
        with open(p.ds.raw("raw.img"), "wb") as f:
            f.truncate(1 << 20)
        with Proc() as holder:
            fd = holder.call("open", p.a.path("i.qcow2"), RDWR)
            raw = holder.call("open", p.a.path("raw.img"), RDWR)
            mark = p.b.log_size()
            raises(errno.EBUSY, lambda: os.utime(p.b.path("i.qcow2"), ns=(OLD, OLD)))
            line = p.b.wait_log("refused a new mtime of 'i.qcow2'.*held by host", mark)
            ok("pid %d" % holder.pid in line, line)
            now = mtime(p.ds.raw("i.qcow2"))
            os.utime(p.b.path("i.qcow2"), ns=(OLD, now))
            must("touch", p.b.path("i.qcow2"))
            touched = mtime(p.ds.raw("i.qcow2"))
            ok(touched >= now, "touched")
            os.utime(p.b.path("free.qcow2"), ns=(OLD, OLD))
            os.utime(p.b.path("raw.img"), ns=(OLD, OLD))
            eq((mtime(p.ds.raw("free.qcow2")), mtime(p.ds.raw("raw.img"))), (OLD, OLD), "not sealed: as on the datastore")
            holder.call("close", fd)
            holder.call("close", raw)
        settle(p, "i.qcow2")
        ok(mtime(p.ds.raw("i.qcow2")) > touched, "the touch is in effect")
        for there, wanted in ((False, OLD), (True, None)):
            with Proc() as holder:
                fd = holder.call("open", p.a.path("i.qcow2"), RDWR)
                holder.call("futimens", fd, OLD, OLD)
                if there:
                    must("touch", p.b.path("i.qcow2"))
                touched = mtime(p.ds.raw("i.qcow2"))
                holder.call("close", fd)
            settle(p, "i.qcow2")
            after = mtime(p.ds.raw("i.qcow2"))
            ok(after == wanted or (there and after > touched), "a touch on the other host makes a date of the holder's void, and nothing else: %d" % after)
        eq(mtime(p.ds.raw("raw.img")), OLD, "a claim without a seal leaves mtime alone")


@suite.case("a seal that is taken while the image is made, and one that is given up while it is held")
def _(build):
    with pair(build, "wait=5", hosts=("a",)) as p:
        backups = Backups(p.ds)
        make_qcow2(os.path.join(p.ds.base, "template.qcow2"), SIZE, "preallocation=metadata")
        with open(os.path.join(p.ds.base, "template.qcow2"), "rb") as f:
            image = f.read()
        fd = os.open(p.a.path("made.qcow2"), RDWR | CREAT | EXCL)
        os.pwrite(fd, image, 0)
        ok(is_sealed(p.ds.raw("made.qcow2")), "sealed while it is made")
        backups.run()
        os.close(fd)
        settle(p, "made.qcow2")
        backups.check("made.qcow2", "made")
        fd = os.open(p.a.path("made.qcow2"), RDWR)
        backups.run()
        os.pwrite(fd, bytes(65536), 0)
        ok(not is_sealed(p.ds.raw("made.qcow2")), "no header, no seal")
        last = mtime(p.ds.raw("made.qcow2"))
        os.close(fd)
        settle(p, "made.qcow2")
        ok(mtime(p.ds.raw("made.qcow2")) >= last + SECOND, "a new one")
        backups.check("made.qcow2", "given up")


suite.main()
