#!/usr/bin/env python3
"""test_takeover: an image of a host that seems dead is taken over by the fence lock alone, and of no other. Two daemons on one local directory stand for
two hosts: there the lock is exact, for one kernel has it and the writes. What a network between them changes is tests/lab's business."""
import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import time

from dgqemu import make_qcow2, qcow2_size
from dgtest import Datastore, Host, Proc, Skip, Suite, View, eq, is_sealed, must, ok, raises, read_at, run, sha, wait_for

from test_trouble import succeed_claim

suite = Suite(__file__, needs="hooks")
RDWR = os.O_RDWR


class Hosts:
    """A datastore, and views of hosts that beat quickly where the build can."""

    def __init__(self, build):
        self.build = build
        self.ds = Datastore(build)
        self.views = []
        self.hosts = {}

    def view(self, name, *options, start=True, **env):
        host = self.hosts.setdefault(name, Host(self.ds.base, name))
        if self.build.hooks:
            env.setdefault("DISKGUARD_BEAT_MS", "200")
        v = View(self.ds, host, options, env, start=start)
        self.views.append(v)
        return v

    def claim(self, name="img.qcow2"):
        return self.ds.claims()[os.stat(self.ds.raw(name)).st_ino]

    def end(self):
        for v in self.views:
            if v.p is not None:
                if v.alive():
                    v.signal(signal.SIGCONT)
                    v.kill9()
                else:
                    v.forget()
            v.unmount_dead()


@contextlib.contextmanager
def hosts(build):
    h = Hosts(build)
    try:
        yield h
        for v in h.views:
            if v.p is not None:
                v.stop()
        h.ds.wait_settled()
        for host in h.hosts.values():
            h.ds.fsck_clean(host)
    finally:
        h.end()


def ctl(build, *args):
    return run(*build.command(build.ctl, *args))


def held_and_killed(h, *options):
    """Host a seals the image, writes a block, and dies."""
    make_qcow2(h.ds.raw("img.qcow2"))
    a = h.view("a", "wait=0", *options)
    with Proc() as p:
        fd = p.call("open", a.path("img.qcow2"), RDWR)
        p.call("pwrite", fd, b"guest data", 1 << 20)
        true = bytearray(read_at(a.path("img.qcow2"), 0, 2 << 20))
        ok(is_sealed(h.ds.raw("img.qcow2")), "the image is sealed")
        a.p.kill()
        a.wait_end()
        a.forget()
        a.unmount_dead()
    return a, bytes(true)


@suite.case("an overlay of a dead host is taken over with the protection of what it needs; until then what it needs stays closed")
def chain_taken(build):
    with hosts(build) as h:
        make_qcow2(h.ds.raw("base.qcow2"))
        must("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", h.ds.raw("top.qcow2"))
        marks = lambda: h.ds.inner("marks")
        a, b, c = h.view("a", "wait=0"), h.view("b", "wait=0", "takeover=lock"), h.view("c", "wait=0", "takeover=lock")
        with Proc() as p:
            p.call("open", a.path("top.qcow2"), RDWR)
            old = marks()
            a.p.kill()
            a.wait_end()
            a.forget()
            a.unmount_dead()
        with Proc() as p:
            raises(errno.EBUSY, os.open, c.path("base.qcow2"), RDWR)
            fd = p.call("open", b.path("top.qcow2"), RDWR)
            new = marks()
            ok(len(old) == 1 and set(new) > set(old), "marks before %s and after %s" % (old, new))
            raises(errno.EBUSY, os.open, c.path("base.qcow2"), RDWR)
            a.start()  # sweeps its own, void ones; not its successor's
            eq(marks(), sorted(set(new) - set(old)), "marks after the former holder's start")
            raises(errno.EBUSY, os.open, c.path("base.qcow2"), RDWR)
            p.call("close", fd)
        h.ds.wait_free("top.qcow2")
        wait_for(lambda: not marks(), "no mark stays")
        os.close(os.open(c.path("base.qcow2"), RDWR))


@suite.case("a killed host's image is opened for write by another host after its heartbeat stood still: header, data and generation are right")
def killed(build):
    with hosts(build) as h:
        a, true = held_and_killed(h)
        before = h.claim()
        eq(before["fenced"], "lock", "what the claim says of the holder")
        b = h.view("b", "wait=0", "takeover=lock")
        with Proc() as p:
            fd = p.call("open", b.path("img.qcow2"), RDWR)
            eq(p.call("pread", fd, 2 << 20, 0) == true, True, "what b sees is what a wrote")
            b.wait_log(r"TAKEN OVER: 'img\.qcow2' from host .*its header is restored")
            claim = h.claim()
            eq(claim["host"], b.host.uuid)
            eq(int(claim["generation"]), int(before["generation"]) + 2, "one generation for the takeover, one for the open")
            p.call("pwrite", fd, b"by b", 1 << 20)
            p.call("close", fd)
        h.ds.wait_free("img.qcow2")
        eq(qcow2_size(h.ds.raw("img.qcow2")), 64 << 20)
        after = sha(h.ds.raw("img.qcow2"))
        a.start()  # its row is of a lower generation: forgotten, and nothing else
        a.wait_log("recovery of .*FORGET")
        eq(sha(h.ds.raw("img.qcow2")), after, "the image after a's recovery")


@suite.case("a host that lives, or that is only stopped, keeps its image: refused after wait=, and after takeover-wait= with the reason")
def stopped(build):
    with hosts(build) as h:
        make_qcow2(h.ds.raw("img.qcow2"))
        a = h.view("a", "wait=0")
        b = h.view("b", "wait=0", "takeover=lock", "takeover-wait=%d" % (3 if build.hooks else 20))
        with Proc() as p, Proc() as q:
            fd = p.call("open", a.path("img.qcow2"), RDWR)
            mark = b.log_size()
            began = time.monotonic()
            raises(errno.EBUSY, q.call, "open", b.path("img.qcow2"), RDWR)
            ok(time.monotonic() - began < 15, "a holder that beats is not waited for as long as takeover-wait=")
            b.wait_log("refused takeover of .*its heartbeat moves", mark)
            a.signal(signal.SIGSTOP)
            claim = h.claim()
            before = sha(h.ds.raw("img.qcow2"))

            def refused_with(text):  # the first tries may still have seen it beat
                at = b.log_size()
                raises(errno.EBUSY, q.call, "open", b.path("img.qcow2"), RDWR)
                return text in b.log()[at:]
            wait_for(lambda: refused_with("still locked although its heartbeat stands still"), "refused because of the lock", 60)
            eq(h.claim(), claim, "the claim of a stopped host")
            eq(sha(h.ds.raw("img.qcow2")), before, "the image of a stopped host")
            a.signal(signal.SIGCONT)
            p.call("pwrite", fd, b"still mine", 1 << 20)
            p.call("close", fd)
            wait_for(lambda: h.ds.claim_of("img.qcow2") == "free", "a lets it go")


@suite.case("takeover=manual never takes over; a holder without a fence is left alone; lock-unproven does not change that")
def never(build):
    with hosts(build) as h:
        a, _ = held_and_killed(h, "fence=none")
        eq(h.claim()["fenced"], "no")
        claim = h.claim()
        with Proc() as q:
            b = h.view("b", "wait=0")
            raises(errno.EBUSY, q.call, "open", b.path("img.qcow2"), RDWR)
            ok("takeover of" not in b.log(), "manual does not even try")
            b.stop()
            for option in ("takeover=lock", "takeover=lock-unproven"):
                b = h.view("b", "wait=0", option)
                raises(errno.EBUSY, q.call, "open", b.path("img.qcow2"), RDWR)
                b.wait_log("refused takeover of .*says that losing the fence lock does not stop its writes.*fsck.diskguard --takeover")
                b.stop()
            b = h.view("b", "wait=0", "takeover=lock", "fence=none")
            b.wait_log("takeover=lock has no effect on .*fence=none")
            raises(errno.EBUSY, q.call, "open", b.path("img.qcow2"), RDWR)
            b.wait_log("refused takeover of .*does not prove")
        eq(h.claim(), claim, "the claim")
        a.options.remove("fence=none")
        a.start()  # recovers


@suite.case("two hosts that wait for one dead host: exactly one gets the image, and the other one gets it after that")
def race(build):
    with hosts(build) as h:
        a, true = held_and_killed(h)
        views = [h.view(n, "wait=0", "takeover=lock") for n in ("b", "c")]
        with Proc() as p, Proc() as q:
            for v, w in zip(views, (p, q)):
                w.send("open", v.path("img.qcow2"), RDWR)
            wait_for(lambda: p.ready() and q.ready(), "both are answered", 60)
            fds = []
            for w in (p, q):
                try:
                    fds.append(w.recv())
                except OSError as e:
                    eq(e.errno, errno.EBUSY, "the answer to the one that lost")
                    fds.append(None)
            eq(sum(fd is not None for fd in fds), 1, "winners")
            won, lost, v = (p, q, views[1]) if fds[0] is not None else (q, p, views[0])
            fd = next(fd for fd in fds if fd is not None)
            eq(won.call("pread", fd, 2 << 20, 0) == true, True, "content")
            won.call("close", fd)
            h.ds.wait_free("img.qcow2")
            fd = lost.call("open", v.path("img.qcow2"), RDWR)
            eq(lost.call("pread", fd, 2 << 20, 0) == true, True, "content for the other one")
            lost.call("close", fd)
        taken = sum(len([line for line in v.log().splitlines() if "TAKEN OVER" in line]) for v in views)
        eq(taken, 1, "takeovers")
        a.start()


@suite.case("the dead host comes back while another one waits for its image: one of them settles it, and both can use it")
def back_again(build):
    with hosts(build) as h:
        for _ in range(3 if build.hooks else 1):
            a, true = held_and_killed(h)
            b = h.view("b", "wait=0", "takeover=lock")
            with Proc() as p:
                p.send("open", b.path("img.qcow2"), RDWR)
                a.start()
                try:
                    p.call("close", p.recv())
                except OSError as e:
                    eq(e.errno, errno.EBUSY, "b is refused while a lives")
                for v in (a, b):
                    h.ds.wait_free("img.qcow2")
                    fd = p.call("open", v.path("img.qcow2"), RDWR)
                    eq(p.call("pread", fd, 2 << 20, 0) == true, True, "content")
                    p.call("close", fd)
            h.ds.wait_free("img.qcow2")
            a.stop()
            b.stop()
            os.unlink(h.ds.raw("img.qcow2"))


@suite.case("the fence lock decides: while anybody has it, nothing is touched, however dead the holder looks; then it goes on by itself")
def fence_decides(build):
    with hosts(build) as h:
        a, true = held_and_killed(h)
        b = h.view("b", "wait=0", "takeover=lock")
        claim, before = h.claim(), sha(h.ds.raw("img.qcow2"))
        with Proc() as p, open(h.ds.raw("img.qcow2"), "rb") as f:
            fcntl.lockf(f, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 1 << 62)  # as a writer of the lost host whose lease has not run out
            p.send("open", b.path("img.qcow2"), RDWR)
            wait_for(lambda: "does not give the fence lock" in ctl(build, "takeover", "--wait=0", b.path("img.qcow2")).out, "the lock is asked for", 60)
            ok(not p.ready(), "the open waits")
            eq(h.claim(), claim, "the claim")
            eq(sha(h.ds.raw("img.qcow2")), before, "the image")
            fcntl.lockf(f, fcntl.LOCK_UN, 1, 1 << 62)
            fd = p.recv()
            eq(p.call("pread", fd, 2 << 20, 0) == true, True, "content")
            p.call("close", fd)
        a.start()


@suite.case("a takeover that fails after its claim is settled by the same open, and loses nothing")
def failed_half_way(build):
    hooked(build)
    for fail in ("io.header.write:1:EIO", "claim.rename:1:ENOSPC", "journal.commit:1:EIO", "claim.link:1:EIO"):
        with hosts(build) as h:
            a, true = held_and_killed(h)
            arm, log = os.path.join(h.ds.base, "arm"), os.path.join(h.ds.base, "hooks")
            b = h.view("b", "wait=0", "takeover=lock", DISKGUARD_HOOK_FAIL=fail, DISKGUARD_HOOK_ARM=arm, DISKGUARD_HOOK_LOG=log)
            with Proc() as p:
                open(arm, "wb").close()
                fd = p.call("open", b.path("img.qcow2"), RDWR)
                with open(log, encoding="ascii") as f:
                    ok(" %s\n" % fail.split(":", maxsplit=1)[0] in f.read(), "hook %s was passed" % fail)
                eq(p.call("pread", fd, 2 << 20, 0) == true, True, "content")
                p.call("close", fd)
            h.ds.wait_free("img.qcow2")
            b.stop()
            b.env = {}
            b.start()
            a.start()


@suite.case("an image that its own host could not settle at start, for somebody had the fence lock, is settled by its next open")
def settled_late(build):
    with hosts(build) as h:
        a, true = held_and_killed(h)
        with Proc() as p:
            with open(h.ds.raw("img.qcow2"), "rb") as f:
                fcntl.lockf(f, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 1 << 62)
                a.start()
                a.wait_log("recovery of .*left as it is")
                raises(errno.EBUSY, p.call, "open", a.path("img.qcow2"), RDWR)
                ok(is_sealed(h.ds.raw("img.qcow2")), "nothing is touched")
            fd = wait_for(lambda: opened(lambda: p.call("open", a.path("img.qcow2"), RDWR)), "the open settles it")
            eq(p.call("pread", fd, 2 << 20, 0) == true, True, "content")
            p.call("close", fd)


def opened(function):
    try:
        return function()
    except OSError as e:
        eq(e.errno, errno.EBUSY)
        return None


@suite.case("diskguardctl takeover does the same under takeover=manual, with the same conditions; why and show say whether it would")
def by_ctl(build):
    with hosts(build) as h:
        a, true = held_and_killed(h)
        b = h.view("b", "wait=0")
        img = b.path("img.qcow2")
        ok("Takeover by the fence lock: possible" in ctl(build, "why", img).out, "why says that it is possible")
        ok("takeover:   possible" in ctl(build, "show", img).out, "show does, too")
        eq(json.loads(ctl(build, "show", "--json", img).out)["claim"]["fenced"], "lock")
        r = ctl(build, "takeover", "--wait", "0", img)
        eq(r.code, 3, "no time to watch the heartbeat: %r" % r)
        ok("must be watched longer" in r.out, repr(r))
        r = ctl(build, "takeover", img)
        eq(r.code, 0, repr(r))
        ok("TAKEN OVER" in b.log(), "the log of b")
        eq(h.claim()["state"], "free", "the claim after a takeover that nobody's open waits for")
        with Proc() as p:
            fd = p.call("open", img, RDWR)
            eq(p.call("pread", fd, 2 << 20, 0) == true, True, "content")
            r = ctl(build, "takeover", img)
            ok(r.code == 3 and "this host holds it" in r.out, repr(r))
            p.call("close", fd)
        h.ds.wait_free("img.qcow2")
        eq(ctl(build, "takeover", img).code, 0, "takeover of a free image")
        eq(ctl(build, "takeover", b.path("none.qcow2")).code, 1, "takeover of what is not there")
        a.options.append("fence=none")
        a.start()
        with Proc() as p:
            p.call("open", a.path("img.qcow2"), RDWR)
            r = ctl(build, "takeover", img)
            ok(r.code == 1 and "does not stop its writes" in r.out and "fsck.diskguard --takeover " + a.host.uuid in r.out, repr(r))
            ok("not possible now: " in ctl(build, "why", img).out, "why says that it is not possible")


# ---- storage that gives up a descriptor: what an NFSv4 client does with one whose lock was lost, here by hooks ----

SLOW = "600000"  # ms: the keeper does nothing by itself


def fence_locks(path):
    """How many open files have the fence lock."""
    with open("/proc/locks", encoding="ascii") as f:
        return len([line for line in f if re.search(r"OFDLCK .*:%d %d %d$" % (os.stat(path).st_ino, 1 << 62, 1 << 62), line)])


def hooked(build):
    if not build.hooks:
        raise Skip("needs a build with -Dhooks=true")


@contextlib.contextmanager
def failing(build, fail, beat=SLOW, **more):
    """A view whose hook fails once, as soon as armed() is called."""
    hooked(build)
    with hosts(build) as h:
        make_qcow2(h.ds.raw("img.qcow2"))
        arm = os.path.join(h.ds.base, "arm")
        h.arm = lambda: open(arm, "wb").close()
        h.a = h.view("a", "wait=0", DISKGUARD_HOOK_FAIL=fail, DISKGUARD_HOOK_ARM=arm, DISKGUARD_BEAT_MS=beat, **more)
        h.a.env = {}  # what is started later does not fail
        with Proc() as p:
            yield h, p


@suite.case("EIO of the storage while a successor's claim is there: FENCED at once, with its name; the close leaves the successor's image alone")
def fenced_at_once(build):
    for fail in ("data.write:1:EIO", "data.write:1:ESTALE", "data.read:1:EIO"):
        hooked(build)
        h = Hosts(build)
        try:
            make_qcow2(h.ds.raw("img.qcow2"))
            arm = os.path.join(h.ds.base, "arm")
            a = h.view("a", "wait=0", DISKGUARD_HOOK_FAIL=fail, DISKGUARD_HOOK_ARM=arm, DISKGUARD_BEAT_MS=SLOW)
            with Proc() as p:
                fd = p.call("open", a.path("img.qcow2"), RDWR)
                succeed_claim(h.ds, "img.qcow2")
                open(arm, "wb").close()
                if "read" in fail:
                    raises(errno.EIO, p.call, "pread", fd, 4096, 1 << 20)
                else:
                    raises(errno.EIO, p.call, "pwrite", fd, b"x" * 4096, 1 << 20)
                a.wait_log("FENCED", timeout=5)
                a.wait_log("host successor .* took it over with generation 2, and has it now", timeout=5)
                raises(errno.EIO, p.call, "pwrite", fd, b"x" * 4096, 1 << 20)
                before, claim = sha(h.ds.raw("img.qcow2")), h.claim()
                why = ctl(build, "why", a.path("img.qcow2")).out
                ok("successor holds it" in why and "This host held it before, with generation 1, and is FENCED" in why, "why: " + why)
                p.call("close", fd)
                wait_for(lambda: "fenced" not in ctl(build, "list", a.mnt).out.lower(), "the fenced hold is over")
                eq(sha(h.ds.raw("img.qcow2")), before, "the image after a fenced close")
                eq(h.claim(), claim, "the successor's claim")
            a.stop()
        finally:
            h.end()


@suite.case("EIO of the storage while the claim is still ours: the descriptor is opened again and the request repeated; nobody notices")
def mended(build):
    for fail in ("data.write:1:EIO", "data.read:1:EIO"):
        with failing(build, fail) as (h, p):
            fd = p.call("open", h.a.path("img.qcow2"), RDWR)
            p.call("pwrite", fd, b"one", 1 << 20)
            locks = fence_locks(h.ds.raw("img.qcow2"))
            h.arm()
            if "read" in fail:
                eq(p.call("pread", fd, 3, 1 << 20), b"one")
            else:
                p.call("pwrite", fd, b"two", 1 << 20)
            h.a.wait_log("given up a descriptor .* nothing was lost", timeout=5)
            p.call("pwrite", fd, b"three", 1 << 20)
            p.call("fsync", fd)
            eq(fence_locks(h.ds.raw("img.qcow2")), locks, "fence locks: the new descriptor has one, too")
            p.call("close", fd)
            h.ds.wait_free("img.qcow2")
            eq(read_at(h.ds.raw("img.qcow2"), 1 << 20, 5), b"three")


@suite.case("data that a given-up descriptor could not sync is never forgotten: the request and every fsync fail")
def lost_data(build):
    with failing(build, "io.fsync:1:EIO") as (h, p):
        fd = p.call("open", h.a.path("img.qcow2"), RDWR)
        p.call("pwrite", fd, b"one", 1 << 20)
        h.arm()
        raises(errno.EIO, p.call, "close", fd)  # FLUSH syncs
        wait_for(lambda: h.ds.claim_of("img.qcow2") == "free", "the header is restored all the same")
    with failing(build, "data.write:1:EIO", DISKGUARD_HOOK_FAIL2="io.fsync:1:EIO") as (h, p):
        fd = p.call("open", h.a.path("img.qcow2"), RDWR)
        p.call("pwrite", fd, b"one", 1 << 20)
        h.arm()
        raises(errno.EIO, p.call, "pwrite", fd, b"two", 1 << 20)
        h.a.wait_log("guest data that was not synced: that data is lost")
        for _ in range(2):
            raises(errno.EIO, p.call, "fsync", fd)
        ok("nothing was lost" not in h.a.log(), "it must not be mended")
        raises(errno.EIO, p.call, "close", fd)
        h.ds.wait_free("img.qcow2")


@suite.case("a restore whose descriptor was given up goes on with a new one, at once")
def restore_mended(build):
    for fail in ("io.header.write:1:EIO", "io.header.write:1:ESTALE", "io.fsync:2:EIO"):
        with failing(build, fail) as (h, p):
            true = sha(h.ds.raw("img.qcow2"))
            fd = p.call("open", h.a.path("img.qcow2"), RDWR)
            h.arm()
            p.call("close", fd)
            h.ds.wait_free("img.qcow2", 5)
            eq(sha(h.ds.raw("img.qcow2")), true, "the image")
            ok("STUCK" not in h.a.log(), "it was not even STUCK")


@suite.case("a lost lock on the host's record is taken again; if another process has it, no new image is claimed, and what is held goes on")
def host_lock(build):
    with failing(build, "host.beat:1:EIO", beat="100") as (h, p):
        make_qcow2(h.ds.raw("two.qcow2"))
        fd = p.call("open", h.a.path("img.qcow2"), RDWR)
        h.arm()
        h.a.wait_log("is open and locked again")
        p.call("close", p.call("open", h.a.path("two.qcow2"), RDWR))
        p.call("close", fd)
    with failing(build, "host.beat:1:EIO", beat="100") as (h, p):
        make_qcow2(h.ds.raw("two.qcow2"))
        fd = p.call("open", h.a.path("img.qcow2"), RDWR)
        record = os.path.join(h.ds.path, ".diskguard", "hosts", h.a.host.uuid)
        shutil.copy(record, record + ".new")
        with open(record + ".new", "r+b") as f:
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(record + ".new", record)
            h.arm()
            h.a.wait_log("the lock on this host's record .* is lost")
            raises(errno.EIO, p.call, "open", h.a.path("two.qcow2"), RDWR)
            h.a.wait_log("refused open for write of 'two.qcow2': this host has lost the lock on its record")
            p.call("pwrite", fd, b"still", 1 << 20)
        h.a.wait_log("is open and locked again")
        p.call("close", p.call("open", h.a.path("two.qcow2"), RDWR))
        p.call("close", fd)


if __name__ == "__main__":
    suite.main()
