#!/usr/bin/env python3
"""Programs that manage images (option managers=): they claim nothing before their first change, are in nobody's way, and nobody in theirs. And who waits
for a holder, and for how long."""
import errno
import fcntl
import os
import shutil
import sys
import time

import guardian
from dgtest import Datastore, Host, Proc, SharedPair, Suite, View, eq, is_sealed, must, ok, pair, raises, run, read_at, suite_tmp, wait_for

suite = Suite(__file__)
shared = SharedPair()
NAME = "libvirtd"
WRITE = os.O_RDWR


def image(ds, name, size="64M"):
    must("qemu-img", "create", "-q", "-f", "qcow2", ds.raw(name), size)
    return name


def claim(ds, name):
    return ds.claims().get(os.stat(ds.raw(name)).st_ino)


def named(name, **kw):
    """A process whose executable has this name: a copy of the interpreter."""
    copy = os.path.join(suite_tmp(), name)
    shutil.copy(os.path.realpath(sys.executable), copy)
    return Proc(program=[copy, "-S"], env=dict(os.environ, PYTHONHOME=sys.base_prefix), **kw)


def manager():
    return named(NAME)


@suite.case("a manager's handle claims nothing: idle image, open, lock, read, close")
def idle(build):
    p = shared.get(build)
    name = image(p.ds, "idle.qcow2")
    whole = read_at(p.ds.raw(name), 0, 1 << 20)
    with manager() as m:
        fd = m.call("open", p.a.path(name), WRITE)
        m.call("lock", fd, fcntl.F_WRLCK, 1, 1, False)
        eq(m.call("pread", fd, 1 << 20, 0), whole, "what it reads")
        eq(claim(p.ds, name), None, "claim")
        m.call("close", fd)
    eq(claim(p.ds, name), None, "claim after close")
    eq(read_at(p.ds.raw(name), 0, 1 << 20), whole, "the image")


@suite.case("a manager opens at once what is held, here or elsewhere, sees the true header, and its first change is EBUSY")
def held(build):
    p = shared.get(build)
    name = image(p.ds, "held.qcow2")
    whole = read_at(p.ds.raw(name), 0, 512)
    with Proc() as holder, manager() as here, manager() as there:
        fd = holder.call("open", p.a.path(name), WRITE)
        for m, view in ((here, p.a), (there, p.b)):
            began = time.monotonic()
            mine = m.call("open", view.path(name), WRITE)
            ok(time.monotonic() - began < 2, "the open waited")
            eq(m.call("pread", mine, 512, 0), whole, "the header through %s" % view.host.name)
            m.call("lock", mine, fcntl.F_WRLCK, 1, 1, False)
            m.call("lock", mine, fcntl.F_UNLCK, 1, 1, False)
            mark = view.log_size()
            raises(errno.EBUSY, m.call, "pwrite", mine, b"x" * 512, 0)
            view.wait_log("refused first change .* of 'held.qcow2'.*pid %d" % holder.pid, mark)
            raises(errno.EBUSY, m.call, "pwrite", mine, b"x" * 512, 1 << 20)
            raises(errno.EBUSY, m.call, "ftruncate", mine, 0)
            raises(errno.EBUSY, m.call, "fallocate", mine, 0, 0, 1 << 20)
            raises(errno.EBUSY, m.call, "open", view.path(name), WRITE | os.O_TRUNC)
            ok(is_sealed(p.ds.raw(name)), "it is still sealed")
        holder.call("close", fd)
        p.ds.wait_free(name)
        m.call("pwrite", mine, b"y" * 512, 1 << 20)  # the handle is as good as before
        ok(is_sealed(p.ds.raw(name)), "sealed after the first change")
        eq(int(claim(p.ds, name)["pid"]), m.pid, "holder")
        m.call("close", mine)
    p.ds.wait_free(name)
    eq(read_at(p.ds.raw(name), 0, 512), whole, "the header")
    eq(read_at(p.ds.raw(name), 1 << 20, 512), b"y" * 512, "what was written")


@suite.case("locks of managers on two hosts meet each other")
def locks_meet(build):
    p = shared.get(build)
    name = image(p.ds, "locks.qcow2")
    with manager() as one, manager() as two:
        a, b = one.call("open", p.a.path(name), WRITE), two.call("open", p.b.path(name), WRITE)
        one.call("lock", a, fcntl.F_WRLCK, 1, 1, False)
        raises((errno.EAGAIN, errno.EACCES), two.call, "lock", b, fcntl.F_WRLCK, 1, 1, False)
        one.call("lock", a, fcntl.F_UNLCK, 1, 1, False)
        two.call("lock", b, fcntl.F_WRLCK, 1, 1, False)


@suite.case("what a manager has locked stays locked over its first change: fcntl, OFD and flock")
def locks_stay(build):
    p = shared.get(build)
    name = image(p.ds, "stay.qcow2")
    with manager() as m, Proc() as other:
        fd = m.call("open", p.a.path(name), WRITE)
        theirs = other.call("open", p.a.path(name), os.O_RDONLY)
        m.call("lock", fd, fcntl.F_WRLCK, 1, 1, False)
        m.call("lock", fd, fcntl.F_WRLCK, 2, 1)
        m.call("flock", fd, fcntl.LOCK_EX)
        m.call("pwrite", fd, b"k", 1 << 20)
        for byte, ofd in ((1, False), (2, True)):
            eq(other.call("getlock", theirs, fcntl.F_RDLCK, byte, 1, ofd), fcntl.F_WRLCK, "lock on byte %d" % byte)
        raises(errno.EAGAIN, other.call, "flock", theirs, fcntl.LOCK_SH | fcntl.LOCK_NB)
        m.call("close", fd)
        other.call("flock", theirs, fcntl.LOCK_SH | fcntl.LOCK_NB)
    p.ds.wait_free(name)


@suite.case("a manager is in nobody's way: others claim, write, resize, truncate and remove beside its handle")
def in_nobodys_way(build):
    p = shared.get(build)
    for view in (p.a, p.b):
        name = image(p.ds, "way-%s.qcow2" % view.host.name)
        with manager() as m, Proc() as other:
            mine = m.call("open", p.a.path(name), WRITE)
            m.call("lock", mine, fcntl.F_WRLCK, 1, 1, False)
            fd = other.call("open", view.path(name), WRITE)
            ok(is_sealed(p.ds.raw(name)), "sealed")
            other.call("pwrite", fd, b"z" * 4096, 2 << 20)
            eq(m.call("pread", mine, 4096, 2 << 20), b"z" * 4096, "what the manager reads")
            other.call("close", fd)
            p.ds.wait_free(name)
            must("qemu-img", "resize", view.path(name), "80M")
            p.ds.wait_free(name)
            other.call("truncate", view.path(name), 100)
            eq(len(m.call("pread", mine, 4096, 0)), 100, "what is left")
            other.call("unlink", view.path(name))


@suite.case("each kind of first change claims: write, append, truncate, allocate, copy_file_range, O_TRUNC")
def kinds(build):
    p = shared.get(build)

    def change(m, fd, kind, path):
        if kind == "write":
            m.call("pwrite", fd, b"w", 5 << 20)
        elif kind == "append":
            m.call("write", fd, b"w")
        elif kind == "truncate":
            m.call("ftruncate", fd, 8 << 20)
        elif kind == "allocate":
            m.call("fallocate", fd, 0, 0, 8 << 20)
        elif kind == "copy":
            source = m.call("open", path, os.O_RDONLY)
            ok(m.call("copy_file_range", source, fd, 4096, 0, 6 << 20) == 4096, "copied")

    for kind in ("write", "append", "truncate", "allocate", "copy", "O_TRUNC"):
        name = image(p.ds, "kind-%s.qcow2" % kind)
        flags = WRITE | (os.O_APPEND if kind == "append" else 0) | (os.O_TRUNC if kind == "O_TRUNC" else 0)
        with manager() as m, Proc() as other:
            fd = m.call("open", p.a.path(name), flags)
            # A removed file of an earlier case may have had the same inode number, and left a free claim.
            claimed = p.ds.claim_of(name) not in (None, "free")
            eq(claimed, kind == "O_TRUNC", "%s: is it claimed after the open" % kind)
            change(m, fd, kind, p.a.path(name))
            eq(claim(p.ds, name)["host"], p.a.host.uuid, "%s: claimed by" % kind)
            raises(errno.EBUSY, other.call, "open", p.b.path(name), WRITE)
            m.call("close", fd)
        p.ds.wait_free(name)


@suite.case("first changes of many threads through one handle, and of two processes, have one outcome")
def threads(build):
    p = shared.get(build)
    name = image(p.ds, "threads.qcow2")
    with manager() as m, manager() as other:
        for turn in range(5):
            fd = m.call("open", p.a.path(name), WRITE)
            for k in range(8):
                m.call("begin", "pwrite", fd, bytes([65 + k]) * 4096, (1 << 20) + 4096 * k)
            answers = m.call("finish")
            eq(answers, [("ok", 4096)] * 8, "answers")
            second = other.call("open", p.a.path(name), WRITE)
            raises(errno.EBUSY, other.call, "pwrite", second, b"x", 9 << 20)
            other.call("close", second)
            m.call("close", fd)
            p.ds.wait_free(name)
            eq(read_at(p.ds.raw(name), 1 << 20, 8 * 4096), b"".join(bytes([65 + k]) * 4096 for k in range(8)), "turn %d" % turn)


@suite.case("plain files and new files of a manager: written as ever, and an image that it makes is claimed")
def plain(build):
    p = shared.get(build)
    must("qemu-img", "create", "-q", "-f", "qcow2", p.ds.raw("source.qcow2"), "16M")
    with open(p.ds.raw("source.qcow2"), "rb") as f:
        source = f.read()
    with manager() as m, Proc() as other:
        fd = m.call("open", p.a.path("notes.xml"), WRITE | os.O_CREAT | os.O_EXCL)
        also = other.call("open", p.b.path("notes.xml"), WRITE)
        m.call("pwrite", fd, b"<one/>", 0)
        other.call("pwrite", also, b"<two/>", 6)
        eq(m.call("pread", fd, 100, 0), b"<one/><two/>", "a plain file has many writers")
        m.call("close", fd)
        fd = m.call("open", p.a.path("made.qcow2"), WRITE | os.O_CREAT | os.O_EXCL)
        m.call("pwrite", fd, source, 0)
        eq(claim(p.ds, "made.qcow2")["host"], p.a.host.uuid, "claimed by")
        raises(errno.EBUSY, other.call, "open", p.b.path("made.qcow2"), WRITE)
        m.call("close", fd)
    p.ds.wait_free("made.qcow2")
    eq(read_at(p.ds.raw("made.qcow2"), 0, len(source)), source, "the image")


@suite.case("who is a manager: by name or path, of root alone; managers=none; a bad word is refused")
def who(build):
    ds = Datastore(build)
    name = image(ds, "who.qcow2")
    os.chmod(ds.raw(name), 0o666)

    def claims(proc, view):
        fd = proc.call("open", view.path(name), WRITE)
        sealed = is_sealed(ds.raw(name))
        proc.call("close", fd)
        ds.wait_free(name)
        return sealed

    with named("keeper") as m, named("keeper", uid=65534) as user, Proc() as other:
        exe = os.readlink("/proc/%d/exe" % m.pid)
        for option, wanted in (("managers=keeper", False), ("managers=x:%s" % exe, False), ("managers=/opt%s" % exe, True), ("managers=none", True), (None, True)):
            view = View(ds, Host(ds.base, "h"), [option] if option else [])
            eq(claims(m, view), wanted, "%s: claims at its open" % option)
            ok(claims(user, view), "%s: another user's claims" % option)
            ok(claims(other, view), "%s: another program's claims" % option)
            view.stop()
    for bad in ("", "a::b", "sub/name", "/dir/"):
        view = View(ds, Host(ds.base, "bad"), ["managers=" + bad], start=False)
        view.spawn()
        eq(view.wait_end(), 2, "exit code for managers=%s" % bad)
        ok("managers=%s: must be none" % bad in view.log(), view.log())
        view.forget()


@suite.case("a crash after the first change is recovered")
def crash(build):
    with pair(build) as p:
        name = image(p.ds, "crash.qcow2")
        whole = read_at(p.ds.raw(name), 0, 512)
        with manager() as m:
            fd = m.call("open", p.a.path(name), WRITE)
            m.call("pwrite", fd, b"v" * 512, 3 << 20)
            ok(is_sealed(p.ds.raw(name)), "sealed")
            p.a.kill9()
        p.a.start()
        p.ds.wait_free(name)
        eq(read_at(p.ds.raw(name), 0, 512), whole, "the header")


@suite.case("a manager takes names from what its own host holds, and the holder goes on; it changes no byte, and nothing of another host")
def takes_names(build):
    p = shared.get(build)
    for what in ("unlink", "rename"):
        name = image(p.ds, "scratch-%s.qcow2" % what)
        with open(p.ds.raw("spare"), "w") as f:
            f.write("new")
        args = ("unlink", p.a.path(name)) if what == "unlink" else ("rename", p.a.path("spare"), p.a.path(name))
        there = tuple(a.replace(p.a.mnt, p.b.mnt) for a in args)
        with Proc() as holder, Proc() as other, manager() as m:
            fd = holder.call("open", p.a.path(name), WRITE)
            raises(errno.EBUSY, other.call, *args)
            raises(errno.EBUSY, m.call, *there)
            raises(errno.EBUSY, m.call, "truncate", p.a.path(name), 0)
            ok(is_sealed(p.ds.raw(name)), "sealed")
            m.call(*args)
            holder.call("pwrite", fd, b"on", 1 << 20)
            eq(holder.call("pread", fd, 2, 1 << 20), b"on", "what the holder reads")
            holder.call("close", fd)
        p.ds.wait_settled()
        ok(not os.path.exists(p.ds.raw(name)) if what == "unlink" else read_at(p.ds.raw(name), 0, 3) == b"new", "what the name leads to")


# ---- waiting ----

@suite.case("without wait= a holder that is alive and does not let go is not waited for: open, unlink, truncate, here and elsewhere")
def not_in_vain(build):
    p = shared.get(build)
    name = image(p.ds, "vain.qcow2")
    with Proc() as holder, Proc() as other:
        fd = holder.call("open", p.a.path(name), WRITE)
        for view in (p.a, p.b):
            for call in (("open", view.path(name), WRITE), ("unlink", view.path(name)), ("truncate", view.path(name), 0)):
                began = time.monotonic()
                raises(errno.EBUSY, other.call, *call)
                took = time.monotonic() - began
                ok(0.4 < took < 3, "%s waited %.1f s" % (call[0], took))
        holder.call("close", fd)


@suite.case("an explicit wait= is waited for; so is a holder that lets go meanwhile")
def explicit(build):
    with pair(build, "wait=30") as p:
        name = image(p.ds, "explicit.qcow2")
        with Proc() as holder, Proc() as other:
            fd = holder.call("open", p.a.path(name), WRITE)
            other.send("open", p.b.path(name), WRITE)
            ok(not other.ready(1.5), "the open was answered while it was held")
            holder.call("close", fd)
            other.recv()


@suite.case("the destination of a migration waits for the whole time: a process that has had it open read-only")
def destination(build):
    p = shared.get(build)
    name = image(p.ds, "destination.qcow2")
    with Proc() as source, Proc() as target:
        fd = source.call("open", p.a.path(name), WRITE)
        target.call("open", p.b.path(name), os.O_RDONLY)
        began = time.monotonic()
        wait_for(lambda: time.monotonic() - began > 0.6, "the reader is older than the grace")
        target.send("open", p.b.path(name), WRITE)
        ok(not target.ready(1.2), "the open was answered while it was held")
        source.call("close", fd)
        target.recv()


@suite.case("a start on the wrong host does not wait: opened read-only a moment before")
def wrong_host(build):
    p = shared.get(build)
    name = image(p.ds, "wrong.qcow2")
    with Proc() as holder, Proc() as other:
        fd = holder.call("open", p.a.path(name), WRITE)
        for view in (p.a, p.b):
            began = time.monotonic()
            other.call("open", view.path(name), os.O_RDONLY)
            raises(errno.EBUSY, other.call, "open", view.path(name), WRITE)
            ok(time.monotonic() - began < 3, "it waited %.1f s" % (time.monotonic() - began))
        holder.call("close", fd)


@suite.case("a holder whose daemon is dead is waited for as ever")
def dead(build):
    with pair(build, settled=False) as p:
        name = image(p.ds, "dead.qcow2")
        with Proc() as holder, Proc() as other:
            holder.call("open", p.a.path(name), WRITE)
            p.a.kill9()
            began = time.monotonic()
            raises(errno.EBUSY, other.call, "open", p.b.path(name), WRITE)
            ok(time.monotonic() - began > 4, "it was not waited for")
        p.a.start()
        p.ds.wait_free(name)


# ---- subtype= ----

@suite.case("subtype=: the type of the mount is another, and the tools know the view all the same")
def subtype(build):
    ds = Datastore(build)
    view = View(ds, Host(ds.base, "a"), ["subtype=glusterfs"])
    name = image(ds, "typed.qcow2")
    eq(guardian.mounts()[view.mnt][1], "fuse.glusterfs", "type of the mount")
    with Proc() as holder, Proc() as other:
        holder.call("open", view.path(name), WRITE)
        raises(errno.EBUSY, other.call, "open", view.path(name), WRITE)
        out = must(*build.command(build.ctl, "why", view.path(name)))
        ok("Process %d" % holder.pid in out, out)
        out = run(*build.command(build.ctl, "list")).out  # of this machine: other suites' views may just be coming or going
        ok(name in out, out)
        twice = View(ds, view.host, start=False)
        twice.mnt = view.mnt
        twice.spawn()
        ok(twice.wait_end() != 0, "mounted twice")
        ok("is mounted on %s already" % view.mnt in twice.log(), twice.log())
        twice.forget()
    view.stop()
    for bad in ("", "a b", "x/y", "q" * 33):
        wrong = View(ds, Host(ds.base, "b"), ["subtype=" + bad], start=False)
        wrong.spawn()
        eq(wrong.wait_end(), 2, "exit code for subtype=%s" % bad)
        wrong.forget()


@suite.case("what a manager writes through a mapping is refused, before its claim and after: its pages may be older")
def mapped(build):
    p = shared.get(build)
    name = image(p.ds, "mapped.qcow2")
    whole = read_at(p.ds.raw(name), 0, 1 << 16)
    with manager() as m:
        fd = m.call("open", p.a.path(name), WRITE)
        try:
            number = m.call("map_shared", fd, 1 << 16)
        except OSError as e:
            eq(e.errno, errno.ENODEV, "mmap before Linux 6.6")
            return
        for _ in range(2):
            m.call("map_write", number, 24, bytes(8))
            raises((errno.EIO, errno.EBUSY), m.call, "map_sync", number)
            m.call("pwrite", fd, whole[512:1024], 512)
    p.ds.wait_free(name)
    eq(read_at(p.ds.raw(name), 0, 1 << 16), whole, "the image")


@suite.case("first changes that wait for a holder are not in the way of its own reads and writes")
def no_lane(build):
    with pair(build, "wait=5") as p, Proc() as holder:
        name = image(p.ds, "lane.qcow2")
        fd = holder.call("open", p.a.path(name), WRITE)
        head = holder.call("pread", fd, 512, 0)
        many = [manager() for _ in range(36)]
        try:
            for m in many:
                mine = m.call("open", p.a.path(name), WRITE)
                m.send("pwrite", mine, b"x" * 512, 0)
            began = time.monotonic()
            holder.call("pwrite", fd, head, 0)
            eq(holder.call("pread", fd, 512, 0), head, "the header")
            took = time.monotonic() - began
            ok(not many[-1].ready(), "the last one still waits")
            ok(took < 2, "the holder waited %.1f s" % took)
        finally:
            for m in many:
                m.kill()


if __name__ == "__main__":
    suite.main()
