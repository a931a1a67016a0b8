#!/usr/bin/env python3
"""test_frozen: a host that is frozen while its locks run out, is taken over from, and goes on: nothing of its lands on its successor. What the storage would
do at the end of a lease is done here by unlocking the frozen daemon's descriptors; that it also refuses late writes is tests/lab's business."""
import ctypes
import errno
import fcntl
import os
import re
import signal
import struct

from dgqemu import make_qcow2
from dgtest import Proc, Suite, eq, is_sealed, ok, raises, sha, wait_for

from test_takeover import SLOW, Hosts, ctl, fence_locks, hooked, hosts
from test_trouble import succeed_claim

suite = Suite(__file__, needs="hooks")
RDWR = os.O_RDWR
LIBC = ctypes.CDLL(None, use_errno=True)
SYS_PIDFD_GETFD = 438  # the same number on every architecture
F_OFD_SETLK = 37


def drop_locks(pid):
    """What a server does when a lease is over: every lock of the process on a byte range goes, under its hands."""
    pidfd = os.pidfd_open(pid)
    dropped = 0
    try:
        for number in os.listdir("/proc/%d/fd" % pid):
            with open("/proc/%d/fdinfo/%s" % (pid, number), encoding="ascii") as f:
                if "OFDLCK" not in f.read():
                    continue
            fd = LIBC.syscall(SYS_PIDFD_GETFD, pidfd, int(number), 0)
            ok(fd >= 0, "pidfd_getfd")
            fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_UNLCK, 0, 0, 0, 0))
            os.close(fd)
            dropped += 1
    finally:
        os.close(pidfd)
    return dropped


class Frozen:
    """Host a, which stops at a hook as soon as arm() was called; host b, which takes over."""

    def __init__(self, h, where, **env):
        self.h = h
        self.file = os.path.join(h.ds.base, "arm")
        self.a = h.view("a", "wait=0", DISKGUARD_HOOK_ARM=self.file, DISKGUARD_HOOK_STOP=where, DISKGUARD_BEAT_MS=SLOW, **env)
        self.b = h.view("b", "wait=0", "takeover=lock")

    def arm(self):
        open(self.file, "wb").close()

    def wait_stopped(self):
        def stopped():
            with open("/proc/%d/status" % self.a.p.pid, encoding="ascii") as f:
                return "State:\tT" in f.read()
        wait_for(stopped, "a is stopped at its hook")

    def lose_locks(self):
        self.wait_stopped()
        ok(drop_locks(self.a.p.pid) > 0, "a had locks")

    def go_on(self):
        os.unlink(self.file)
        self.a.signal(signal.SIGCONT)


def no_fence_left(h, view, proc):
    """Nobody of a former holder is in the way of the next open."""
    h.ds.wait_free("img.qcow2")
    eq(fence_locks(h.ds.raw("img.qcow2")), 0, "fence locks when the successor has closed it")
    proc.call("close", proc.call("open", view.path("img.qcow2"), RDWR))
    h.ds.wait_free("img.qcow2")


@suite.case("an opener that is frozen before its own descriptor takes the fence: its successor's image is neither opened nor truncated by it")
def frozen_open(build):
    hooked(build)
    for flags in (RDWR, RDWR | os.O_TRUNC):
        with hosts(build) as h:
            make_qcow2(h.ds.raw("img.qcow2"))
            f = Frozen(h, "image.fence.open:1")
            with Proc() as p, Proc() as q:
                f.arm()
                p.send("open", f.a.path("img.qcow2"), flags)
                f.lose_locks()
                fd = q.call("open", f.b.path("img.qcow2"), RDWR)
                q.call("pwrite", fd, b"B" * 4096, 1 << 20)
                f.go_on()
                raises(errno.EBUSY, p.recv)
                f.a.wait_log("FENCED")
                f.a.wait_log("took it over with generation 3, and has it now")
                eq(q.call("pread", fd, 4096, 1 << 20), b"B" * 4096, "what b wrote")
                q.call("close", fd)
                no_fence_left(h, f.b, q)


@suite.case("a second handle that is frozen before it takes the fence gets EIO, and the first one cannot write either; none of them keeps the fence")
def frozen_join(build):
    hooked(build)
    with hosts(build) as h:
        make_qcow2(h.ds.raw("img.qcow2"))
        f = Frozen(h, "image.fence.join:1")
        with Proc() as p, Proc() as q:
            first = p.call("open", f.a.path("img.qcow2"), RDWR)
            p.call("pwrite", first, b"A" * 4096, 2 << 20)
            f.arm()
            p.send("open", f.a.path("img.qcow2"), RDWR)
            f.lose_locks()
            fd = q.call("open", f.b.path("img.qcow2"), RDWR)
            q.call("pwrite", fd, b"B" * 4096, 1 << 20)
            f.go_on()
            raises(errno.EIO, p.recv)
            raises(errno.EIO, p.call, "pwrite", first, b"late", 1 << 20)
            eq(p.call("pread", first, 4096, 2 << 20), b"A" * 4096, "a fenced handle still reads")
            q.call("close", fd)
            no_fence_left(h, f.b, q)
            p.call("close", first)


@suite.case("a holder whose claim was taken over under its hands: FENCED, and none of its fence locks stays")
def fenced_lets_go(build):
    h = Hosts(build)
    try:
        make_qcow2(h.ds.raw("img.qcow2"))
        a = h.view("a", "wait=0")
        with Proc() as p:
            fd = p.call("open", a.path("img.qcow2"), RDWR)
            more = p.call("open", a.path("img.qcow2"), RDWR)
            eq(fence_locks(h.ds.raw("img.qcow2")), 3, "the seal's and one of each handle")
            succeed_claim(h.ds, "img.qcow2")
            a.wait_log("FENCED")
            wait_for(lambda: fence_locks(h.ds.raw("img.qcow2")) == 0, "its locks are gone while it is open")
            raises(errno.EIO, p.call, "pwrite", more, b"x", 1 << 20)
            p.call("pread", more, 4096, 1 << 20)
            p.call("close", fd)
            p.call("close", more)
        wait_for(lambda: "fenced" not in ctl(build, "list", a.mnt).out.lower(), "the fenced hold is over")
        a.stop()
    finally:
        h.end()


@suite.case("a write that makes an image of a plain file is frozen before its writers have the fence: none of them becomes a holder, or writes on")
def frozen_conversion(build):
    hooked(build)
    with hosts(build) as h:
        source = os.path.join(h.ds.base, "source")
        make_qcow2(source)
        with open(source, "rb") as file:
            data = file.read()
        open(h.ds.raw("img.qcow2"), "wb").close()
        f = Frozen(h, "image.fence.adopt:1")
        with Proc() as p, Proc() as q:
            late = p.call("open", f.a.path("img.qcow2"), RDWR)
            f.arm()
            p.send("pwrite", late, data, 0)
            f.lose_locks()
            fd = q.call("open", f.b.path("img.qcow2"), RDWR)
            q.call("pwrite", fd, data, 0)
            q.call("pwrite", fd, b"B" * 4096, 1 << 20)
            ok(is_sealed(h.ds.raw("img.qcow2")), "b has made an image of it")
            f.go_on()
            raises(errno.EIO, p.recv)
            raises(errno.EBUSY, p.call, "pwrite", late, b"late", 1 << 20)
            eq(q.call("pread", fd, 4096, 1 << 20), b"B" * 4096, "what b wrote")
            q.call("close", fd)
            p.call("close", late)
            no_fence_left(h, f.b, q)


# What a claim for an operation on names is called, and how it is begun.
NAME_OPERATIONS = [
    ("image.truncate.check:1", lambda p, v: p.send("truncate", v.path("img.qcow2"), 0)),
    ("name.remove.check:1", lambda p, v: p.send("unlink", v.path("img.qcow2"))),
    ("name.remove.check:1", lambda p, v: p.send("rename", v.path("other"), v.path("img.qcow2"))),
]


@suite.case("an image that a frozen host claimed to remove, replace or truncate is never taken over by the fence lock, and the reason is told")
def names_not_taken(build):
    hooked(build)
    for where, begin in NAME_OPERATIONS:
        with hosts(build) as h:
            make_qcow2(h.ds.raw("img.qcow2"))
            open(h.ds.raw("other"), "wb").close()
            f = Frozen(h, where)
            with Proc() as p, Proc() as q:
                f.arm()
                begin(p, f.a)
                f.lose_locks()
                claim, before = h.claim(), sha(h.ds.raw("img.qcow2"))
                eq(claim["format"], "none")
                raises(errno.EBUSY, q.call, "open", f.b.path("img.qcow2"), RDWR)
                f.b.wait_log("refused takeover of .*no lock stops such an operation.*fsck.diskguard --takeover " + f.a.host.uuid)
                r = ctl(build, "takeover", "--wait=0", f.b.path("img.qcow2"))
                ok(r.code == 1 and "no lock stops such an operation" in r.out, repr(r))
                ok("not possible now: " in ctl(build, "why", f.b.path("img.qcow2")).out, "why")
                eq(h.claim(), claim, "the claim")
                eq(sha(h.ds.raw("img.qcow2")), before, "the image")
                f.go_on()
                p.recv()


@suite.case("an operation on names whose host lost its claim before it came to it fails with EIO, and touches nothing")
def names_checked(build):
    hooked(build)
    for where, begin in NAME_OPERATIONS:
        h = Hosts(build)
        try:
            make_qcow2(h.ds.raw("img.qcow2"))
            open(h.ds.raw("other"), "wb").close()
            before = sha(h.ds.raw("img.qcow2"))
            f = Frozen(h, where)
            with Proc() as p:
                f.arm()
                begin(p, f.a)
                f.wait_stopped()
                succeed_claim(h.ds, "img.qcow2")
                f.go_on()
                raises(errno.EIO, p.recv)
                f.a.wait_log("FENCED")
            eq(sha(h.ds.raw("img.qcow2")), before, where + ": the image")
            ok(os.path.exists(h.ds.raw("other")), "what would have replaced it")
            f.a.stop()
        finally:
            h.end()


# ---- writers of plain files ----


def marks(path):
    """How many open files have the lock that makes the storage refuse their writes when it is lost (io_fence_mark)."""
    with open("/proc/locks", encoding="ascii") as f:
        return len([line for line in f if re.search(r"OFDLCK .*:%d %d %d$" % (os.stat(path).st_ino, (1 << 62) + 1, (1 << 62) + 1), line)])


def image_bytes(h):
    source = os.path.join(h.ds.base, "source")
    make_qcow2(source)
    with open(source, "rb") as f:
        return f.read()


@suite.case("every descriptor that writes a plain file has a lock of its own, which is in the way of no claim")
def plain_marked(build):
    with hosts(build) as h:
        open(h.ds.raw("img.qcow2"), "wb").close()
        a = h.view("a", "wait=0")
        with Proc() as p:
            fds = [p.call("open", a.path("img.qcow2"), flags) for flags in (RDWR, os.O_WRONLY, RDWR | os.O_APPEND)]
            eq(marks(h.ds.raw("img.qcow2")), 3)
            eq(fence_locks(h.ds.raw("img.qcow2")), 1)
            p.call("pwrite", fds[0], image_bytes(h), 0)
            ok(is_sealed(h.ds.raw("img.qcow2")), "it is claimed all the same")
            for fd in fds:
                p.call("close", fd)
            h.ds.wait_free("img.qcow2")
            eq(marks(h.ds.raw("img.qcow2")), 0)


@suite.case("plain writers whose host lost its locks: they are open and locked again, by a failed write or by the beat, and keep others out as before")
def plain_mended(build):
    hooked(build)
    for fail in ("data.write:1:EIO", "host.beat:1:EIO"):
        with hosts(build) as h:
            open(h.ds.raw("img.qcow2"), "wb").close()
            arm = os.path.join(h.ds.base, "arm")
            a = h.view("a", "wait=0", DISKGUARD_HOOK_ARM=arm, DISKGUARD_HOOK_FAIL=fail, DISKGUARD_BEAT_MS=SLOW if "data" in fail else "100")
            b = h.view("b", "wait=0")
            with Proc() as p, Proc() as q:
                fds = [p.call("open", a.path("img.qcow2"), RDWR) for _ in range(2)]
                drop_locks(a.p.pid)
                eq(fence_locks(h.ds.raw("img.qcow2")), 0)
                open(arm, "wb").close()
                if "data" in fail:
                    raises(errno.EIO, p.call, "pwrite", fds[0], b"x", 1 << 20)
                wait_for(lambda: fence_locks(h.ds.raw("img.qcow2")) == 1 and marks(h.ds.raw("img.qcow2")) == 2, fail + ": locked again")
                wait_for(lambda: written(p, fds[0]), "it writes again")
                fd = q.call("open", b.path("img.qcow2"), RDWR)
                raises(errno.EBUSY, q.call, "pwrite", fd, image_bytes(h), 0)
                for fd_ in fds:
                    p.call("close", fd_)
                q.call("close", fd)


def written(proc, fd):
    try:
        return proc.call("pwrite", fd, b"x", 1 << 20)
    except OSError as e:
        eq(e.errno, errno.EIO)
        return False


@suite.case("plain writers whose host lost its locks, of a file that is another host's image since: EBUSY after the first write that fails")
def plain_barred(build):
    hooked(build)
    with hosts(build) as h:
        open(h.ds.raw("img.qcow2"), "wb").close()
        arm = os.path.join(h.ds.base, "arm")
        a = h.view("a", "wait=0", DISKGUARD_HOOK_ARM=arm, DISKGUARD_HOOK_FAIL="data.write:1:EIO", DISKGUARD_BEAT_MS=SLOW)
        b = h.view("b", "wait=0")
        with Proc() as p, Proc() as q:
            late = p.call("open", a.path("img.qcow2"), RDWR)
            drop_locks(a.p.pid)
            fd = q.call("open", b.path("img.qcow2"), RDWR)
            q.call("pwrite", fd, image_bytes(h), 0)
            q.call("pwrite", fd, b"B" * 4096, 1 << 20)
            open(arm, "wb").close()
            raises(errno.EIO, p.call, "pwrite", late, b"late", 1 << 20)  # the storage refuses what has lost its lock
            a.wait_log("it was opened here as a plain file, and has become an image since")
            raises(errno.EBUSY, p.call, "pwrite", late, b"late", 1 << 20)
            eq(q.call("pread", fd, 4096, 1 << 20), b"B" * 4096, "what b wrote")
            q.call("close", fd)
            p.call("close", late)
            no_fence_left(h, b, q)


@suite.case("an open of a plain file whose fence is found lost waits until the keeper has it again")
def plain_proved(build):
    hooked(build)
    with hosts(build) as h:
        open(h.ds.raw("plain"), "wb").close()
        arm = os.path.join(h.ds.base, "arm")
        a = h.view("a", "wait=20", DISKGUARD_HOOK_ARM=arm, DISKGUARD_HOOK_FAIL="image.plain.prove:1:EIO", DISKGUARD_BEAT_MS=SLOW)
        with Proc() as p:
            first = p.call("open", a.path("plain"), RDWR)
            drop_locks(a.p.pid)
            open(arm, "wb").close()
            second = p.call("open", a.path("plain"), RDWR)
            eq(fence_locks(h.ds.raw("plain")), 1)
            p.call("pwrite", first, b"x", 1 << 20)
            p.call("close", second)
            p.call("close", first)


if __name__ == "__main__":
    suite.main()
