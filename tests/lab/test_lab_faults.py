#!/usr/bin/env python3
"""What breaks between NFS clients and their server: frozen hosts, restarts of the server, lost replies, a full, read-only or withdrawn export. Needs a build with hooks."""
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
SERVER = "/srv/disk/export/"
scenario = labhost.nfs_scenarios(suite)


def check_free(site, header, data=None):
    """The image is nobody's and whole."""
    site.wait_claim(IMAGE, guest="B")
    eq(site.lab["B"].do("header", site.raw(IMAGE, "B")), header, "the raw header afterwards")
    if data:
        b = site.lab["B"]
        b.do("opened", "check", site.raw(IMAGE, "B"), "r")
        eq(b.do("get", "check", FAR)[:len(data)], data, "the data afterwards")
        b.do("closed", "check")


# ---- the holder frozen at each step ----

@scenario("the opener frozen at each step of an open", limit=900)
def frozen_open(lab, site):
    header = site.image()
    b = site.view("B", "wait=0")
    k = 0
    while True:
        k += 1
        a = labhost.Steps(site, "A", k, "wait=0")
        a.arm()
        call = a.guest.begin("opened", "x", a.view.path(IMAGE), "w")
        if not a.reached(call):
            break
        began = time.monotonic()
        a.guest.freeze()
        result_b = b.guest.do("attempt_hold", "y", b.path(IMAGE))
        a.guest.thaw()
        frozen = time.monotonic() - began
        a.disarm()
        a.go_on()
        result_a = call.outcome()
        if site.kind != "3" and frozen >= labhost.LEASE and result_a == EIO:
            print("        step %d (%s): A was frozen for %.1f s, longer than its lease: EIO" % (k, a.passed()[-1], frozen), flush=True)
        else:
            eq(sorted([result_a, result_b]), [0, EBUSY], "A frozen for %.1f s at step %d (%s): A's and B's open" % (frozen, k, a.passed()[-1]))
        if result_a == 0:
            a.guest.do("closed", "x")
        if result_b == 0:
            b.guest.do("closed", "y")
        check_free(site, header)
        a.view.stop()
    a.disarm()
    a.go_on()  # what comes after the answer, the heartbeat among it, counts as well and may have stopped it
    eq(call.outcome(), 0, "the open without a stop")
    a.guest.do("closed", "x")
    check_free(site, header)
    ok(k > 8, "only %d steps: the hooks are not there" % k)
    print("        %d steps" % (k - 1), flush=True)


@scenario("the holder frozen at each step of the last close", limit=1800)
def frozen_close(lab, site):
    header = site.image()
    b = site.view("B", "wait=0")
    k = 0
    while True:
        k += 1
        # No heartbeat: each has three steps, and while a slow machine closes there are ever more of them.
        a = labhost.Steps(site, "A", k, "wait=0", beat=60000)
        a.view.hold("x", IMAGE)
        a.guest.do("put", "x", FAR, "step%d." % k)
        a.arm()
        closing = a.guest.begin("closed", "x")  # waits for the sync of the data, not for the release
        settled = lambda: site.claim(IMAGE, "B").get("state") == "free"
        stopped = dgtest.wait_for(lambda: "stopped" if a.guest.do("stopped", a.view.pid) else "free" if settled() else None, "stopped or free", 60)
        if stopped == "free" and not a.guest.do("stopped", a.view.pid, 1.0):
            break
        free_already = settled()
        a.guest.freeze()
        # B may be parked while it is being released, but it gets the image only when it is free.
        call = b.guest.begin("attempt_hold", "y", b.path(IMAGE))
        if free_already:
            eq(call.wait(), 0, "step %d: B's open of a freed image" % k)
        a.guest.thaw()
        a.disarm()
        a.go_on()
        closing.wait()
        if call.wait() != 0:
            site.wait_claim(IMAGE, guest="B")
            eq(b.guest.do("attempt_hold", "y", b.path(IMAGE)), 0, "step %d (%s): B's open after A has gone on" % (k, a.passed()[-1]))
        eq(b.guest.do("get", "y", FAR)[:6], ("step%d." % k)[:6], "step %d: what B reads" % k)
        b.guest.do("closed", "y")
        check_free(site, header)
        a.view.stop()
    a.disarm()
    a.go_on()
    ok(k > 5, "only %d steps: the hooks are not there" % k)
    print("        %d steps" % (k - 1), flush=True)


# ---- the server goes away ----

OPEN_STEPS = ("io.text.create:1", "claim.link:1", "claim.unlink:1", "io.header.write:1")
CLOSE_STEPS = ("claim.rename:1", "io.header.write:1", "claim.rename:2")


@scenario("server power-cycled during an open", limit=900)
def server_open(lab, site):
    header = site.image()
    for step in OPEN_STEPS:
        a = labhost.Steps(site, "A", step, "wait=0")
        a.arm()
        call = a.guest.begin("opened", "x", a.view.path(IMAGE), "w")
        ok(a.reached(call), "the open passes " + step)
        lab["S"].kill()
        a.disarm()
        a.go_on()
        labhost.restart_server(lab)
        eq(call.outcome(240), 0, "the open that was at %s when the server lost its power" % step)
        ok(site.claim(IMAGE, "B").get("state") in ("armed", "sealed"), "the claim is held")
        a.guest.do("put", "x", FAR, "data", limit=240)
        a.guest.do("closed", "x")
        check_free(site, header, "data")
        a.view.stop()


@scenario("server power-cycled during the last close", limit=900)
def server_close(lab, site):
    header = site.image()
    for step in CLOSE_STEPS:
        a = labhost.Steps(site, "A", step, "wait=0")
        a.view.hold("x", IMAGE)
        a.guest.do("put", "x", FAR, "data")
        a.arm()
        a.guest.do("closed", "x")
        ok(a.reached(), "the close passes " + step)
        lab["S"].kill()
        a.disarm()
        a.go_on()
        labhost.restart_server(lab)
        site.wait_claim(IMAGE, ("free",), "B", 240)
        check_free(site, header, "data")
        a.view.stop()


def lost_reply(lab, site, step, begin, done):
    """Lets the daemon on A go on from `step` while the switch keeps the server's replies, handing them on one after the other until done() says that the server has carried out the
    call itself: that reply is lost. Then the server loses its power, and with it the memory of what it has answered: the retransmission meets one that knows
    nothing of it. Returns the daemon and the call that begin() made."""
    a = labhost.Steps(site, "A", step, "wait=0")
    call = begin(a)
    ok(a.reached(call), "the daemon passes " + step)
    done()
    lab.switch("hold S A")
    a.disarm()
    a.go_on()

    def carried_out():
        if done():
            return True
        lab.switch("deliver S A")
        return False
    dgtest.wait_for(carried_out, "the server has carried out " + step, 60)
    lab.switch("drop S A")
    lab["S"].must("sync")
    lab["S"].kill()
    lab.boot("S")
    lab.up("S")
    lab.heal()
    labhost.nfs_server(lab, restarted=True)
    return a, call


def records_on_server(lab, site):
    """Names and inode numbers of all claims and temporary records, as the server's own file system has them. Not of spare records (core/spare.h), which are made at any
    moment: their counters begin at 1 << 62."""
    listing = lab["S"].sh("cd %s%s/.diskguard && ls -i claims/* tmp" % (SERVER, site.name)).out.splitlines()
    return [line for line in listing if len(line.rpartition(".")[2]) < len(str(1 << 62))]


@scenario("the reply of link, rename and unlink lost", limit=900)
def lost_replies(lab, site):
    header = site.image()

    def opening(a):
        a.arm()
        return a.guest.begin("opened", "x", a.view.path(IMAGE), "w")

    def closing(a):
        a.view.hold("x", IMAGE)
        a.guest.do("put", "x", FAR, "data")
        a.arm()
        a.guest.do("closed", "x")
        return None

    for step, begin, what in (("claim.link:1", opening, "link"), ("claim.unlink:1", opening, "unlink"), ("claim.rename:1", closing, "rename"),
                              ("claim.rename:2", closing, "rename"), ("claim.remove:1", closing, "unlink")):
        seen = {}

        def done():
            now = records_on_server(lab, site)
            return now != seen.setdefault("before", now)
        a, call = lost_reply(lab, site, step, begin, done)
        if call:
            eq(call.outcome(240), 0, "the open whose %s lost its reply (%s)" % (what, step))
            a.guest.do("put", "x", FAR, "data", limit=240)
            a.guest.do("closed", "x")
        site.wait_claim(IMAGE, ("free",), "B", 240)
        check_free(site, header, "data")
        a.view.stop()


# ---- attributes that do not tell ----

@scenario("a claim made in the tick of a change that was listed")
def same_tick(lab, site):
    """What an NFSv3 client keeps of a listing counts for it while the ctime is the same: B must list past that. The server's clock is set, so that it is the same."""
    header = site.image()
    a, b = site.view("A", "wait=0"), site.view("B", "wait=0")
    a.hold("x", IMAGE)
    a.kill9()
    server, home = lab["S"], SERVER + site.name
    shard, name = server.must("cd %s/.diskguard/claims && echo */*.1" % home).strip().split("/")
    folder, aside = "%s/.diskguard/claims/%s" % (home, shard), SERVER + site.name + ".aside"
    server.must("mkdir %s && mv %s/%s %s/ && echo >%s/nothing" % (aside, folder, name, aside, aside))
    tick = int(time.time()) * 1000000000 + 123456789
    ok(server.do("moved_at", tick, folder, aside + "/nothing", folder + "/nothing"), "a change of the shard at a given instant")
    eq(b.guest.attempt("open_write", b.path(IMAGE)), labhost.EUCLEAN, "B's open of a sealed image that nobody claims")
    ok(server.do("moved_at", tick, folder, aside + "/" + name, folder + "/" + name), "another one at the same")
    server.must("date -s @%d" % time.time())
    for wait in (0, 0.5):
        time.sleep(wait)  # the ctime has settled then: what is listed now is believed for as long as it stays
        eq(b.guest.attempt("open_write", b.path(IMAGE)), EBUSY, "B's open %g s after the claim was there" % wait)
        eq(b.guest.do("header", b.path(IMAGE)), header, "the header in B's view")
    ok("A holds it for writing" in b.why(IMAGE), "why on B: " + b.why(IMAGE))
    server.must("rm %s/nothing" % folder)
    a.guest.do("attempt_close", "x")
    a.start()
    check_free(site, header)


# ---- the storage refuses ----

@scenario("server full")
def full(lab, site):
    header = site.image()
    a, b = site.view("A", "wait=0"), site.view("B", "wait=0")
    a.hold("x", IMAGE)
    a.guest.do("put", "x", FAR, "data")
    for name in ("other.qcow2", "empty.qcow2", "gone.qcow2"):
        site.image(name, guest="B")
    lab["S"].must("fallocate -l $(($(stat -f -c '%%a*%%S' %s))) %sfiller || true; dd if=/dev/zero of=%sfiller2 bs=4k 2>/dev/null; true" % (SERVER, SERVER, SERVER))
    ok(b.guest.sh("dd if=/dev/zero of=%s bs=8k count=1 conv=fsync" % site.raw("probe", "B")).code, "the server is full, for B")
    eq(b.guest.attempt("open_write", b.path("other.qcow2")), 0, "open for write on a full server: the claim takes a spare record")
    a.guest.do("put", "x", FAR, "more")
    a.guest.do("closed", "x")
    eq(a.guest.attempt("open_write", a.path("other.qcow2")), 0, "open for write on A")
    eq(b.guest.attempt("truncate", b.path("empty.qcow2"), 0), 0, "an image is emptied on a full server")
    eq(b.guest.attempt("unlink", b.path("gone.qcow2")), 0, "an image is removed on a full server")
    lab["S"].must("rm -f %sfiller %sfiller2; sync" % (SERVER, SERVER))
    check_free(site, header, "more")
    eq(b.guest.attempt("open_write", b.path("other.qcow2")), 0, "open for write when there is room again")


def exported(lab, options):
    lab["S"].must("exportfs -i -o %s,sync,no_subtree_check,fsid=0 10.99.0.0/24:/srv/disk/export && exportfs -f" % options)


@scenario("server read-only for a while")
def read_only(lab, site):
    header = site.image()
    a, b = site.view("A", "wait=0"), site.view("B", "wait=0")
    a.hold("x", IMAGE)
    a.guest.do("put", "x", FAR, "data")
    exported(lab, "ro,no_root_squash")
    a.guest.do("closed", "x")
    a.wait_log("STUCK|read-only", timeout=60)
    ok(b.guest.attempt("open_write", b.path(IMAGE)) in (EBUSY, labhost.EROFS, labhost.EACCES), "B's open while A cannot restore")
    ok("stuck" in a.ctl("list").out, "diskguardctl list on A shows it as stuck")
    exported(lab, "rw,no_root_squash")
    check_free(site, header, "data")


@scenario("export withdrawn for a while")
def withdrawn(lab, site):
    header = site.image()
    a = site.view("A", "wait=0")
    a.hold("x", IMAGE)
    a.guest.do("put", "x", FAR, "data")
    lab["S"].must("exportfs -u 10.99.0.0/24:/srv/disk/export && exportfs -f")
    a.guest.do("closed", "x")
    a.wait_log("STUCK|stale|Stale|not permitted|denied|Input/output", timeout=120)
    ok(a.ctl("list").out, "diskguardctl list answers")
    exported(lab, "rw,no_root_squash")
    site.wait_claim(IMAGE, ("free",), "B", 120)
    check_free(site, header, "data")


@scenario("the server exports an empty directory for a while", ("4.2",))
def empty_export(lab, site):
    """The disk is not mounted when the server starts: every handle is stale, and nothing of that is true for ever."""
    header = site.image()
    a = site.view("A", "wait=0")
    a.hold("x", IMAGE)
    a.guest.do("put", "x", FAR, "data")
    lab["S"].must("exportfs -u 10.99.0.0/24:/srv/disk/export; exportfs -f; umount -l /srv/disk; mkdir -p /srv/disk/export; "
                  "mount -t tmpfs -o mode=777 tmpfs /srv/disk/export")
    exported(lab, "rw,no_root_squash")
    a.wait_log("cannot|STUCK|stale", timeout=60)  # the keeper has looked
    lab["S"].must("exportfs -u 10.99.0.0/24:/srv/disk/export; exportfs -f; umount -l /srv/disk/export; mount -t ext4 /dev/vdb /srv/disk")
    exported(lab, "rw,no_root_squash")
    dgtest.wait_for(lambda: site.claim(IMAGE, "A").get("state"), "A's client sees the datastore again", 60)
    a.guest.do("attempt_close", "x")  # the client may have given the descriptor up: then the release mends it
    check_free(site, header, "data")
    eq(a.guest.attempt("open_write", a.path(IMAGE)), 0, "open for write on A afterwards")


@scenario("image removed on the server while held")
def removed(lab, site):
    site.image()
    a, b = site.view("A", "wait=0"), site.view("B", "wait=0")
    a.hold("x", IMAGE)
    inode = site.lab["S"].must("stat -c %%i %s%s/%s" % (SERVER, site.name, IMAGE)).strip()
    lab["S"].must("rm %s%s/%s" % (SERVER, site.name, IMAGE))
    a.wait_log("removed|vanished|VANISHED", timeout=90)
    a.guest.sh("true")
    a.guest.do("attempt_close", "x")
    key = "%016x" % int(inode)
    dgtest.wait_for(lambda: b.guest.do("claim_of_inode", site.folder("B"), key).get("state", "free") == "free", "the claim is gone or free", 60)
    site.image(guest="B")
    eq(b.guest.attempt("open_write", b.path(IMAGE)), 0, "a new image of that name")


@scenario("root squashed")
def squashed(lab, site):
    header = site.image()
    exported(lab, "rw,root_squash")
    try:
        a = site.view("A", "wait=0", start=False)
        a.spawn()
        ok(a.guest.do("wait_gone", a.pid), "the daemon does not start")
        a.pid = None
        ok("squash" in a.log(), "the log names root squashing: " + a.log()[-600:])
    finally:
        exported(lab, "rw,no_root_squash")
    check_free(site, header)


@scenario("a host that is cut off still answers its admin", limit=300)
def cut_admin(lab, site):
    header = site.image()
    a = site.view("A", "wait=0")
    a.hold("x", IMAGE)
    lab.switch("cut A S")
    write = a.guest.begin("put", "x", FAR, "late")
    for command in ("list", "list --json", "show " + a.path(IMAGE), "why " + a.path(IMAGE)):
        r = a.guest.sh("timeout 20 %s %s" % (site.ctl, command), limit=60)
        ok(r.code != 124, "diskguardctl %s does not answer while the server is away" % command)
        ok(r.out.strip(), "diskguardctl %s says something: %r" % (command, r))
    lab.heal()
    eq(write.outcome(120), 0, "the write that waited")
    a.guest.do("closed", "x")
    check_free(site, header, "late")


# ---- identities ----

@scenario("two hosts with one machine-id", ("4.2",))
def clones(lab, site):
    site.image()
    a = site.view("A", "wait=0")
    a.hold("x", IMAGE)
    lab["B"].must("cp /etc/machine-id /run/machine-id.own; echo %s >/etc/machine-id" % lab["A"].machine_id)
    try:
        b = site.view("B", "wait=0", start=False)
        b.spawn()
        ok(b.guest.do("wait_gone", b.pid), "the clone's daemon does not start")
        b.pid = None
        ok("installation" in b.log() or "machine-id" in b.log(), "the log says why: " + b.log()[-600:])
        ok(site.claim(IMAGE, "B").get("state") in ("armed", "sealed"), "A's claim is untouched")
    finally:
        lab["B"].must("cp /run/machine-id.own /etc/machine-id")
    a.guest.do("closed", "x")
    site.wait_claim(IMAGE)


if __name__ == "__main__":
    labhost.suite_main(suite)
