"""labcases: scenarios that hold on every shared storage. Each takes a labhost.Site with a fresh datastore; test_lab_*.py say where they run."""
from labhost import EBUSY  # first: it finds dgtest
import dgtest
from dgtest import eq, ok

IMAGE = "disk.qcow2"
FAR = 1 << 20  # guest data, beyond every header


def race(site, rounds):
    """Two hosts open the same image for write at the same moment: exactly one wins, each time."""
    header = site.image(IMAGE)
    views = [site.view(g, "wait=0") for g in ("A", "B")]
    wins = [0, 0]
    for i in range(rounds):
        calls = [v.guest.begin("opened", "race", v.path(IMAGE), "w") for v in views]
        results = [c.outcome() for c in calls]
        eq(sorted(results), [0, EBUSY], "round %d: results of A and B" % i)
        winner = results.index(0)
        wins[winner] += 1
        views[winner].guest.do("closed", "race")
        site.wait_claim(IMAGE)
    eq(views[1].guest.do("header", site.raw(IMAGE, "B")), header, "the header after %d rounds" % rounds)
    print("        wins: A %d, B %d" % tuple(wins), flush=True)


def handover(site, rounds, direct):
    """Open, work, close on A, then at once on B and back: data and header are right every time."""
    header = site.image(IMAGE)
    views = [site.view(g, "wait=60") for g in ("A", "B")]
    want = None
    for i in range(rounds):
        for v in views:
            tag = "%s%d." % (v.guest.name, i)
            eq(v.guest.do("work", v.path(IMAGE), direct, tag, want), header, "round %d: the header that %s sees" % (i, v.guest.name))
            want = tag
    site.wait_claim(IMAGE)
    for g in ("A", "B"):
        eq(site.lab[g].do("header", site.raw(IMAGE, g)), header, "the raw header on %s afterwards" % g)


def handover_qemu(site, rounds, cache):
    """The same with qemu-io, as QEMU itself opens, probes, locks and closes."""
    site.image(IMAGE)
    views = [site.view(g, "wait=60") for g in ("A", "B")]
    pattern = 0
    for i in range(rounds):
        for v in views:
            check = "-c 'read -P %d 1M 256k'" % pattern
            pattern = pattern % 255 + 1
            r = v.guest.sh("qemu-io -t %s -f qcow2 %s -c 'write -P %d 1M 256k' %s" % (cache, check, pattern, v.path(IMAGE)))
            ok(r.code == 0 and "Pattern verification failed" not in r.out, "round %d on %s: %r" % (i, v.guest.name, r))
    site.wait_claim(IMAGE)
    r = site.lab["B"].sh("qemu-img check %s && qemu-io -r -c 'read -P %d 1M 256k' %s" % (site.raw(IMAGE, "B"), pattern, site.raw(IMAGE, "B")))
    ok(r.code == 0 and "failed" not in r.out, "the image afterwards: %r" % r)


def reader(site):
    """A read-only open on B while A holds shows the true header; its data is fresh after the hand-over, also through a descriptor that was open and had it cached."""
    header = site.image(IMAGE)
    a, b = (site.view(g, "wait=60") for g in ("A", "B"))
    a.guest.do("work", a.path(IMAGE), False, "first.", None)
    site.wait_claim(IMAGE)
    b.hold("early", IMAGE, "r")
    for _ in range(3):
        eq(b.guest.do("get", "early", FAR)[:6], "first.", "B's early reader before the hand-over")
    for turn in range(3):
        word = "turn%d." % turn
        a.hold("w", IMAGE)
        eq(b.guest.do("header", b.path(IMAGE)), header, "the header in B's view while A holds")
        b.guest.do("get", "early", FAR)
        a.guest.do("put", "w", FAR, word, length=65536)
        eq(b.guest.do("get", "early", FAR)[:6], word, "B's early reader after A's write")
        a.guest.do("closed", "w")
        eq(b.guest.do("get", "early", FAR)[:6], word, "B's early reader after A's close")
        # The other way: B is the writer now, beside its own early reader; then A again.
        word = "back%d." % turn
        b.hold("w", IMAGE)
        eq(b.guest.do("get", "w", FAR)[:6], "turn%d." % turn, "B as the holder sees what A wrote")
        b.guest.do("put", "w", FAR, word, length=65536)
        b.guest.do("closed", "w")
        a.hold("w", IMAGE)
        eq(a.guest.do("get", "w", FAR)[:6], word, "A as the holder sees what B wrote")
        a.guest.do("closed", "w")
        site.wait_claim(IMAGE)
    b.guest.do("closed", "early")


def resize(site):
    """A resize by the holder on A is what B's view shows, at once."""
    site.image(IMAGE, "64M")
    a, b = (site.view(g, "wait=60") for g in ("A", "B"))
    ok("64 MiB" in b.guest.must("qemu-img info -U " + b.path(IMAGE)), "the size before")
    a.guest.must("qemu-img resize -q %s 96M" % a.path(IMAGE))
    ok("96 MiB" in b.guest.must("qemu-img info -U " + b.path(IMAGE)), "the size in B's view right after the resize on A")
    a.hold("x", IMAGE)
    ok("96 MiB" in b.guest.must("qemu-img info -U " + b.path(IMAGE)), "the size in B's view while A holds")
    a.guest.do("closed", "x")
    b.guest.must("qemu-img resize -q %s 128M" % b.path(IMAGE))
    ok("128 MiB" in a.guest.must("qemu-img info -U " + a.path(IMAGE)), "the size in A's view right after the resize on B")


def names(site):
    """While A holds the image, B can neither remove it, nor replace it, nor truncate it; renaming it is fine and it stays held."""
    header = site.image(IMAGE)
    a, b = (site.view(g, "wait=0") for g in ("A", "B"))
    b.guest.must("echo other >%s" % b.path("other"))
    eq(b.guest.attempt("stat", b.path(IMAGE)), 0, "B knows the image's name")
    a.hold("x", IMAGE)
    eq(b.guest.attempt("unlink", b.path(IMAGE)), EBUSY, "unlink on B")
    eq(b.guest.attempt("rename", b.path("other"), b.path(IMAGE)), EBUSY, "rename over it on B")
    eq(b.guest.attempt("truncate", b.path(IMAGE), 0), EBUSY, "truncate on B")
    eq(b.guest.attempt("open_write", b.path(IMAGE)), EBUSY, "open for write on B")
    eq(b.guest.attempt("rename", b.path(IMAGE), b.path("moved.qcow2")), 0, "renaming it on B")
    eq(b.guest.attempt("open_write", b.path("moved.qcow2")), EBUSY, "open for write on B by the new name")
    a.guest.do("put", "x", FAR, "from A")
    # A new file takes the old name while A still knows the held one by it: what A's view does with that name must hit the new one.
    b.guest.must("cp %s %s" % (b.path("other"), b.path(IMAGE)))
    eq(a.guest.attempt("unlink", a.path(IMAGE)), 0, "A removes the new file under the old name")
    eq(b.guest.attempt("stat", site.raw("moved.qcow2", "B")), 0, "the held image is still there")
    a.guest.do("closed", "x")
    site.wait_claim("moved.qcow2", guest="B")
    eq(b.guest.do("header", site.raw("moved.qcow2", "B")), header, "the header afterwards")
    eq(b.guest.attempt("unlink", b.path("moved.qcow2")), 0, "unlink on B after the release")


def replaced(site):
    """B replaces an image whose name A's client has cached: A opens and guards what the name stands for now, not the old file."""
    site.image(IMAGE, "64M")
    a, b = (site.view(g, "wait=3") for g in ("A", "B"))
    for turn in range(3):
        eq(a.guest.attempt("open_write", a.path(IMAGE)), 0, "A opens it (turn %d)" % turn)
        site.wait_claim(IMAGE, guest="B")
        b.guest.must("qemu-img create -q -f qcow2 %s %dM && mv %s %s" % (b.path("new.qcow2"), 65 + turn, b.path("new.qcow2"), b.path(IMAGE)))
        a.hold("x", IMAGE)
        eq(int(a.guest.do("get_hex", "x", 24, 8), 16) >> 20, 65 + turn, "the size that A's open sees")
        state = site.claim(IMAGE, "B").get("state")
        ok(state in ("armed", "sealed"), "the claim of the new file while A has it open: %s" % state)
        eq(b.guest.attempt("open_write", b.path(IMAGE)) if turn == 0 else EBUSY, EBUSY, "B's open for write meanwhile")
        a.guest.do("closed", "x")
        site.wait_claim(IMAGE, guest="B")


def killed(site, repair, reboot):
    """A loses its power while it holds the image: B is refused and told why; then `repair` ("reboot": A's own recovery, "fsck": B after confirmation) puts the header back.
    reboot() boots A again and mounts the storage there."""
    header = site.image(IMAGE)
    a, b = site.view("A", "wait=0"), site.view("B", "wait=0")
    a.hold("x", IMAGE)
    a.guest.do("put", "x", FAR, "from A")
    a.guest.kill()
    a.pid = None
    eq(b.guest.attempt("open_write", b.path(IMAGE)), EBUSY, "open for write on B after A's power cut")
    b.wait_log("refused.*" + IMAGE + "|" + IMAGE + ".*held by host A")
    why = b.why(IMAGE)
    ok("A holds it for writing" in why, "why on B: " + why)
    eq(b.guest.do("header", b.path(IMAGE)), header, "the true header in B's view")
    if repair == "reboot":
        reboot()
        a = site.view("A", "wait=0")
    else:
        r = site.fsck("B", "-y", "--host-id=12345678-1234-1234-1234-123456789abc", "--takeover", "A")
        ok(r.code & ~1 != 0, "fsck without --confirm-host-is-down refuses: %r" % r)
        b.stop()
        # The storage must let go of A's lock first, where it ever does by itself (NFSv4: the lease, OCFS2: eviction).
        r = dgtest.wait_for(lambda: _fsck_done(site), "fsck on B takes the image over", 120)
        b.start()
    state = site.wait_claim(IMAGE, guest="B")
    eq(state, "free", "the claim after the repair")
    eq(b.guest.do("header", site.raw(IMAGE, "B")), header, "the raw header after the repair")
    b.hold("y", IMAGE)
    eq(b.guest.do("get", "y", FAR)[:6], "from A", "what A had written and synced")
    b.guest.do("closed", "y")


def _fsck_done(site):
    r = site.fsck("B", "-y", "--takeover", "A", "--confirm-host-is-down")
    return r if r.code in (0, 1) else None
