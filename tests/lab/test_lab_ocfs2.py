#!/usr/bin/env python3
"""The protocol between two OCFS2 nodes (o2cb), over one disk that both see and over iSCSI. Needs a build with hooks."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import labhost  # first: it finds dgtest
import dgtest
import labcases
from dgtest import eq, ok
from labcases import FAR, IMAGE
from labhost import EBUSY

suite = dgtest.Suite(__file__, needs="hooks")


def scenario(title, function, storages=("disk", "iscsi"), limit=400, **kw):
    for storage in storages:
        def case(build, storage=storage):
            lab = labhost.ocfs2_lab(storage)
            site = labhost.Site(lab, "ocfs2", build)
            function(site, **kw)
            site.close()
        suite.case("%s, OCFS2 over %s" % (title, storage), limit)(case)


def rejoin(lab, name):
    lab.boot(name)
    lab.up(name)
    labhost.ocfs2_join(lab, name)


def killed(site, repair):
    labcases.killed(site, repair, lambda: rejoin(site.lab, "A"))
    if repair == "fsck":
        rejoin(site.lab, "A")


def no_takeover(site):
    """takeover=lock takes nothing over here: a frozen node's late write was seen to land on OCFS2. lock-unproven does, with a warning."""
    header = site.image()
    a = site.view("A", "wait=0")
    a.hold("x", IMAGE)
    a.guest.do("put", "x", FAR, "from A")
    b = site.view("B", "wait=0", "takeover=lock", "takeover-wait=5")
    sealed = b.guest.do("header", site.raw(IMAGE, "B"))
    a.guest.kill()
    a.pid = None
    eq(b.guest.attempt("open_write", b.path(IMAGE)), EBUSY, "B's open for write with takeover=lock")
    eq(b.guest.do("header", site.raw(IMAGE, "B")), sealed, "the sealed header is untouched")
    b.stop()
    b = site.view("B", "wait=0", "takeover=lock-unproven", "takeover-wait=120")
    ok("unproven" in b.log() or "not been shown" in b.log() or "proven" in b.log(), "a warning at start: " + b.log()[-600:])
    eq(b.guest.do("attempt_hold", "y", b.path(IMAGE), limit=200), 0, "B's open for write with takeover=lock-unproven; log: " + b.log()[-800:])
    eq(b.guest.do("get", "y", FAR)[:6], "from A", "what A had written and synced")
    b.guest.do("closed", "y")
    site.wait_claim(IMAGE, ("free",), "B")
    eq(b.guest.do("header", site.raw(IMAGE, "B")), header, "the header afterwards")
    rejoin(site.lab, "A")


def frozen(site):
    """A node is frozen inside an open and inside a close for less than the cluster's patience: the other waits or is refused, and both are right afterwards."""
    header = site.image()
    b = site.view("B", "wait=0")
    for step in ("claim.link:1", "claim.unlink:1", "io.header.write:1"):
        a = labhost.Steps(site, "A", step, "wait=0")
        a.arm()
        call = a.guest.begin("opened", "x", a.view.path(IMAGE), "w")
        ok(a.reached(call), "the open passes " + step)
        a.guest.freeze()
        other = b.guest.begin("attempt_hold", "y", b.path(IMAGE))  # may wait for a cluster lock that A's kernel has
        a.guest.thaw()
        a.disarm()
        result_b = other.wait()
        a.go_on()
        result_a = call.outcome()
        eq(sorted([result_a, result_b]), [0, EBUSY], "%s: A's and B's open" % step)
        (a.guest if result_a == 0 else b.guest).do("closed", "x" if result_a == 0 else "y")
        site.wait_claim(IMAGE, ("free",), "B")
        eq(b.guest.do("header", site.raw(IMAGE, "B")), header, "%s: the header afterwards" % step)
        a.view.stop()


def cut_off(site):
    """The network between the nodes is cut with writes in flight: the cluster resets one of them. The image stays with its holder, or comes back by its own recovery."""
    header = site.image()
    a, b = site.view("A", "wait=0"), site.view("B", "wait=0")
    a.guest.must("qemu-io -f qcow2 -c 'write -P 1 0 16M' %s" % a.path(IMAGE))
    site.wait_claim(IMAGE)
    header = a.guest.do("header", site.raw(IMAGE))
    a.guest.sh("rm -f /run/stop")
    writing = a.guest.begin("stream", a.path(IMAGE), "A", FAR, 4 << 20, "/run/stop")
    dgtest.wait_for(lambda: a.guest.do("blocks_of", site.raw(IMAGE), "A", FAR, 4 << 20) > 16, "A writes", 60)
    site.lab.switch("cut A B")
    dgtest.wait_for(lambda: not (a.guest.alive() and b.guest.alive()), "the cluster resets one node", 120)
    site.lab.heal()
    if a.guest.alive():  # the lower node stays (o2cb quorum): its writes go on
        b.pid = None
        a.guest.must("touch /run/stop", limit=240)
        eq(writing.wait(240)[1], 0, "A's writes")
        rejoin(site.lab, "B")
    else:
        a.pid = None
        eq(b.guest.attempt("open_write", b.path(IMAGE), limit=240), EBUSY, "B's open after A's reset")
        rejoin(site.lab, "A")
        a = site.view("A", "wait=0")
    site.wait_claim(IMAGE, ("free",), "A", 120)
    eq(a.guest.do("header", site.raw(IMAGE)), header, "the header afterwards")
    eq(a.guest.sh("qemu-img check -q %s" % site.raw(IMAGE)).code, 0, "qemu-img check")


scenario("race for one image", labcases.race, limit=1500, rounds=500)
scenario("hand-over, O_DIRECT", labcases.handover, rounds=200, direct=True, limit=900)
scenario("hand-over, buffered", labcases.handover, rounds=200, direct=False, limit=900)
scenario("hand-over, qemu-io cache=none", labcases.handover_qemu, rounds=10, cache="none")
scenario("hand-over, qemu-io cache=writeback", labcases.handover_qemu, rounds=10, cache="writeback")
scenario("reader on the other host", labcases.reader)
scenario("resize seen on the other host", labcases.resize)
scenario("names of a held image", labcases.names)
scenario("a reader that wants no writer", labcases.reads_alone)
scenario("files of a backing chain", labcases.chain)
scenario("other formats", labcases.formats, limit=900)
scenario("mtime of a restored image", labcases.mtimes)
scenario("raw disk of any name", labcases.byte_101)
scenario("manager's handle", labcases.manager)
for seconds in (0, 1):
    scenario("names seen within %d s" % seconds, labcases.names_seen, timeout=seconds)
for seconds in (0, 1, 600):
    scenario("names kept for %d s and opens" % seconds, labcases.names_opened, limit=600, timeout=seconds)
scenario("frozen in an open", frozen)
scenario("power cut of the holder, its own recovery", killed, repair="reboot")
scenario("power cut of the holder, fsck on another host", killed, repair="fsck")
scenario("takeover only where it is forced", no_takeover)
scenario("network cut between the nodes", cut_off)

if __name__ == "__main__":
    labhost.suite_main(suite)
