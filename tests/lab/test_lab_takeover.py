#!/usr/bin/env python3
"""Takeover by the fence lock between NFS clients: a holder that loses its power, its network or its time; not one byte of it lands afterwards. Needs a build with hooks."""
import errno
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import labhost  # first: it finds dgtest
import dgtest
from dgtest import eq, ok
from labcases import FAR, IMAGE
from labhost import EBUSY, EIO

suite = dgtest.Suite(__file__, needs="hooks")
RANGE = 4 << 20  # bytes from FAR on that the holder writes all the time
WAIT = "takeover-wait=120"
scenario = labhost.nfs_scenarios(suite, ("4.2",), 400.0)


def loaded(site, *options):
    """A holds the image and writes to it all the time. Returns (view, header, the call that writes)."""
    header = site.image()
    a = site.view("A", "wait=0", *options)
    # An image that is allocated: what A writes afterwards is data, so each block shows who was last.
    a.guest.must("qemu-io -f qcow2 -c 'write -P 1 0 16M' %s" % a.path(IMAGE))
    site.wait_claim(IMAGE)
    header = a.guest.do("header", site.raw(IMAGE))
    a.guest.sh("rm -f /run/stop")
    writing = a.guest.begin("stream", a.path(IMAGE), "A", FAR, RANGE, "/run/stop")
    dgtest.wait_for(lambda: site.claim(IMAGE).get("state") in ("armed", "sealed") and
                    a.guest.do("blocks_of", site.raw(IMAGE), "A", FAR, RANGE) > 16, "A writes", 60)
    return a, header, writing


def take_over(site, b, header):
    """B's open for write waits and then has the image; it overwrites all that A wrote. Returns how long it took."""
    began = time.monotonic()
    eq(b.guest.do("attempt_hold", "y", b.path(IMAGE), limit=200), 0, "B's open for write; log: " + b.log()[-1500:])
    took = time.monotonic() - began
    for off in range(FAR, FAR + RANGE, 1 << 16):
        b.guest.do("put", "y", off, "B", length=1 << 16, sync=False)
    b.guest.do("sync", "y")
    eq(b.guest.do("get_hex", "y", 0, 512), header, "the header that B sees as the holder")
    return took


def check_successor(site, b, header):
    """Nothing of A has landed, B's hold is untouched, and its close leaves the image whole."""
    eq(b.guest.do("blocks_of", site.raw(IMAGE, "B"), "A", FAR, RANGE), 0, "blocks of A after B wrote")
    eq(b.guest.do("blocks_of", site.raw(IMAGE, "B"), "B", FAR, RANGE), RANGE >> 12, "blocks of B")
    claim = site.claim(IMAGE, "B")
    eq((claim.get("name"), claim.get("state") in ("armed", "sealed")), ("B", True), "the claim is B's")
    ok(b.guest.do("header", site.raw(IMAGE, "B")) != header, "the image is still sealed")
    b.guest.do("closed", "y")
    site.wait_claim(IMAGE, ("free",), "B")
    eq(b.guest.do("header", site.raw(IMAGE, "B")), header, "the header after B's close")
    r = b.guest.sh("qemu-io -f qcow2 -c 'write -P 7 12M 64k' -c 'read -P 7 12M 64k' %s" % b.path(IMAGE))
    ok(r.code == 0 and "failed" not in r.out, "QEMU uses it on B afterwards: %r" % r)
    site.wait_claim(IMAGE, ("free",), "B")


def check_former(site, a, writing):
    """A, back again: its writes failed, it says why, and it lets go without touching anything."""
    blocks, error = writing.wait(120)
    eq(error, EIO, "the errno of A's write after %d blocks" % blocks)
    a.wait_log("FENCED|taken over|has lost", timeout=60)
    why = a.why(IMAGE)
    ok("B" in why, "diskguardctl why on A names B: " + why)
    a.stop()
    # A's own recovery, at the next start, finds nothing to do.
    since = len(a.log())
    a.start()
    ok("RESTORE" not in a.log()[since:], "A's next start touches nothing: " + a.log()[since:])


@scenario("the holder loses its power")
def power(lab, site):
    a, header, _ = loaded(site)
    b = site.view("B", "wait=0", "takeover=lock", WAIT)
    a.guest.kill()
    a.pid = None
    took = take_over(site, b, header)
    print("        lease %d s: B has the image %.1f s after the power cut" % (labhost.LEASE, took), flush=True)
    lab.boot("A")
    lab.up("A")
    a = site.view("A", "wait=0")
    ok("RESTORE" not in a.log(), "A's recovery touches nothing: " + a.log())
    eq(a.guest.attempt("open_write", a.path(IMAGE)), EBUSY, "A's open while B holds")
    check_successor(site, b, header)


@scenario("the holder is cut off with writes in flight")
def cut(lab, site):
    a, header, writing = loaded(site)
    b = site.view("B", "wait=0", "takeover=lock", WAIT)
    lab.switch("cut A S")
    took = take_over(site, b, header)
    print("        lease %d s: B has the image %.1f s after the cut" % (labhost.LEASE, took), flush=True)
    lab.heal()
    check_former(site, a, writing)
    check_successor(site, b, header)


@scenario("the holder's host is frozen and goes on")
def freeze(lab, site):
    a, header, writing = loaded(site)
    b = site.view("B", "wait=0", "takeover=lock", WAIT)
    a.guest.freeze()
    took = take_over(site, b, header)
    print("        lease %d s: B has the image %.1f s after the freeze" % (labhost.LEASE, took), flush=True)
    a.guest.thaw()
    check_former(site, a, writing)
    check_successor(site, b, header)


@scenario("diskguardctl takeover after a power cut")
def by_hand(lab, site):
    a, header, _ = loaded(site)
    b = site.view("B", "wait=0")
    r = b.ctl("takeover", b.path(IMAGE), "--timeout=1")
    ok(r.code != 0, "refused while A lives: %r" % r)
    a.guest.kill()
    a.pid = None
    eq(b.guest.attempt("open_write", b.path(IMAGE)), EBUSY, "takeover=manual takes nothing over by itself")
    r = b.ctl("takeover", b.path(IMAGE), "--timeout=120")
    eq(r.code, 0, "diskguardctl takeover: %r" % r)
    take_over(site, b, header)
    check_successor(site, b, header)


@scenario("never on NFSv3", ("3",))
def never(lab, site):
    a, header, _ = loaded(site)
    b = site.view("B", "wait=0", "takeover=lock-unproven", "takeover-wait=20")
    sealed = b.guest.do("header", site.raw(IMAGE, "B"))
    a.guest.kill()
    a.pid = None
    eq(b.guest.attempt("open_write", b.path(IMAGE)), EBUSY, "B's open for write")
    r = b.ctl("takeover", b.path(IMAGE), "--timeout=20")
    ok(r.code != 0 and "NFSv3" in r.out, "diskguardctl takeover is refused and says why: %r" % r)
    ok("fsck.diskguard" in r.out, "and names the way out: %r" % r)
    eq(b.guest.do("header", site.raw(IMAGE, "B")), sealed, "the sealed header is untouched")
    eq(site.claim(IMAGE, "B").get("name"), "A", "the claim is A's")
    lab.boot("A")
    lab.up("A")
    a = site.view("A", "wait=0")
    site.wait_claim(IMAGE, ("free",), "B")
    eq(b.guest.do("header", site.raw(IMAGE, "B")), header, "the header after A's own recovery")


@scenario("a person says that the holder is down, and it is only cut off", ("3",))
def lied(lab, site):
    """What NFSv3 cannot keep out: the late writes of a holder that is cut off. Its late header, claim and restore are kept out all the same."""
    a, header, writing = loaded(site)
    lab.switch("cut A S")
    r = site.fsck("B", "-y", "--takeover", "A", "--confirm-host-is-down")
    ok(r.code & ~1 and "lock" in r.out, "fsck is refused while the server keeps A's lock: %r" % r)
    r = site.fsck("B", "-y", "--takeover", "A", "--confirm-host-is-down", "--fence=none")
    eq(r.code, 1, "fsck --fence=none: %r" % r)
    b = site.view("B", "wait=0", "fence=none")
    take_over(site, b, header)
    lab.heal()
    blocks, error = writing.wait(120)
    eq(error, EIO, "the errno of A's write after %d blocks" % blocks)
    a.wait_log("taken over|has lost|FENCED", timeout=60)
    late = b.guest.do("blocks_of", site.raw(IMAGE, "B"), "A", FAR, RANGE)
    print("        blocks of A that landed over B's: %d of %d" % (late, RANGE >> 12), flush=True)
    ok(late > 0, "on NFSv3 a late write lands: if it does not any more, diskguard-storage(7) can promise more")
    a.stop()
    claim = site.claim(IMAGE, "B")
    eq((claim.get("name"), claim.get("state") in ("armed", "sealed")), ("B", True), "the claim is B's")
    b.guest.do("closed", "y")
    site.wait_claim(IMAGE, ("free",), "B")
    eq(b.guest.do("header", site.raw(IMAGE, "B")), header, "the header after B's close")


@scenario("two hosts wait for a dead one", names=("S", "A", "B", "C"))
def two_heirs(lab, site):
    a, header, _ = loaded(site)
    heirs = [site.view(g, "wait=0", "takeover=lock", WAIT) for g in ("B", "C")]
    a.guest.kill()
    a.pid = None
    calls = [v.guest.begin("attempt_hold", "y", v.path(IMAGE)) for v in heirs]
    results = [c.wait(200) for c in calls]
    eq(sorted(results), [0, EBUSY], "the opens of B and C")
    winner = heirs[results.index(0)]
    eq(winner.guest.do("get_hex", "y", 0, 512), header, "the header")
    winner.guest.do("closed", "y")
    site.wait_claim(IMAGE, ("free",), winner.guest.name)
    eq(winner.guest.do("header", site.raw(IMAGE, winner.guest.name)), header, "the header afterwards")


@scenario("a plain writer is cut off, and the file becomes an image")
def plain_writer(lab, site):
    a, b = site.view("A", "wait=0"), site.view("B", "wait=0")
    a.guest.must("rm -f /run/stop; head -c 16M /dev/zero >%s" % a.path("grows"))
    writing = a.guest.begin("stream", a.path("grows"), "A", FAR, RANGE, "/run/stop")
    dgtest.wait_for(lambda: a.guest.do("blocks_of", site.raw("grows"), "A", FAR, RANGE) > 16, "A writes", 60)
    ok(b.guest.sh("qemu-img create -q -f qcow2 %s 64M" % b.path("grows")).code, "an image cannot be made of it while A lives")
    lab.switch("cut A S")
    labhost.expire(lab, "A")
    dgtest.wait_for(lambda: b.guest.sh("qemu-img create -q -f qcow2 %s 64M" % b.path("grows")).code == 0, "B makes an image of it when A's locks have run out", 120)
    b.hold("y", "grows")
    for off in range(FAR, FAR + RANGE, 1 << 16):
        b.guest.do("put", "y", off, "B", length=1 << 16, sync=False)
    b.guest.do("sync", "y")
    lab.heal()
    blocks, error = writing.wait(120)
    ok(error in (EIO, EBUSY), "the errno of A's write after %d blocks: %d" % (blocks, error))
    eq(b.guest.do("blocks_of", site.raw("grows", "B"), "A", FAR, RANGE), 0, "blocks of A after B wrote")
    b.guest.do("closed", "y")
    site.wait_claim("grows", ("free",), "B")


@scenario("locks lost, nobody took over")
def lost_locks(lab, site):
    a, header, writing = loaded(site)
    lab.switch("cut A S")
    labhost.expire(lab, "A")
    lab.heal()
    dgtest.wait_for(lambda: writing.done() or "it is open again" in a.log(), "A's write fails, or its descriptors are opened anew", 90)
    a.guest.must("touch /run/stop")
    blocks, error = writing.wait(120)
    ok(error in (0, EIO), "the errno of A's write after %d blocks: %d" % (blocks, error))
    print("        A's write after the loss: %s" % (errno.errorcode[error] if error else "went on"), flush=True)
    site.wait_claim(IMAGE, ("free",), "B", 120)
    eq(site.lab["B"].do("header", site.raw(IMAGE, "B")), header, "the header after A's close")
    eq(a.guest.do("attempt_hold", "x", a.path(IMAGE)), 0, "A opens it again")
    a.guest.do("put", "x", FAR, "again")
    a.guest.do("closed", "x")
    site.wait_claim(IMAGE, ("free",), "B")


def answered(call):
    """Of a daemon that is stopped: did it answer before?"""
    try:
        return dgtest.wait_for(call.done, "an answer that is on its way", 2)
    except dgtest.Fail:
        return False


def wakes_up_late(lab, site, closing):
    """A stops at each step of an open or of the last close; the server forgets it; B takes over and works; A goes on: nothing of B's is hit."""
    header = site.image()
    b = site.view("B", "wait=0", "takeover=lock", WAIT, env="DISKGUARD_BEAT_MS=1000")  # of the hooks build: a heartbeat stands still after 3 s, not 15
    k = 0
    while True:
        k += 1
        a = labhost.Steps(site, "A", k, "wait=0")
        if closing:
            a.view.hold("x", IMAGE)
            a.guest.do("put", "x", FAR, "A data")
        a.arm()
        call = a.guest.begin("closed", "x") if closing else a.guest.begin("opened", "x", a.view.path(IMAGE), "w")
        stopped = dgtest.wait_for(lambda: "stopped" if a.guest.do("stopped", a.view.pid) else
                                  "done" if call.done() and (not closing or site.claim(IMAGE, "B").get("state") == "free") else None, "stopped or done", 60)
        if stopped == "done" and not a.guest.do("stopped", a.view.pid, 1.0):
            break
        # The heartbeat counts as a step, too, and comes on a thread of its own: the answer may have been on its way when it stopped the daemon.
        if not closing and a.passed()[-1] == "host.beat" and answered(call):
            break
        a.guest.freeze()
        labhost.expire(lab, "A")
        eq(b.guest.do("attempt_hold", "y", b.path(IMAGE), limit=200), 0, "step %d: B's open; log: %s" % (k, b.log()[-800:]))
        b.guest.do("put", "y", FAR, "B data")
        generation = site.claim(IMAGE, "B")["generation"]
        a.guest.thaw()
        a.disarm()
        a.go_on()
        if not closing:
            outcome = call.outcome(120)
            ok(outcome in (EBUSY, EIO), "step %d (%s): A's open after the takeover: %d" % (k, a.passed()[-1], outcome))
        # Whatever A still had to do is done when its daemon has ended.
        a.view.stop()
        claim = site.claim(IMAGE, "B")
        eq((claim["name"], claim["generation"], claim["state"] in ("armed", "sealed")), ("B", generation, True), "step %d (%s): B's claim" % (k, a.passed()[-1]))
        ok(b.guest.do("header", site.raw(IMAGE, "B")) != header, "step %d (%s): still sealed" % (k, a.passed()[-1]))
        eq(b.guest.do("get_hex", "y", 0, 512), header, "step %d: the header that B sees" % k)
        eq(b.guest.do("get", "y", FAR)[:6], "B data", "step %d: B's data" % k)
        b.guest.do("closed", "y")
        site.wait_claim(IMAGE, ("free",), "B")
        eq(b.guest.do("header", site.raw(IMAGE, "B")), header, "step %d: the header afterwards" % k)
    a.disarm()
    a.go_on()
    ok(k > 5, "only %d steps: the hooks are not there" % k)
    if not closing:
        a.guest.do("closed", "x")
    print("        %d steps" % (k - 1), flush=True)


@scenario("a former owner frozen at each step of an open wakes up late", limit=1800)
def late_open(lab, site):
    wakes_up_late(lab, site, closing=False)


@scenario("a former owner frozen at each step of a release wakes up late", limit=1800)
def late_close(lab, site):
    wakes_up_late(lab, site, closing=True)


if __name__ == "__main__":
    labhost.suite_main(suite)
