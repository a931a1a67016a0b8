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


def reads_alone(site):
    """A reads an image and says by QEMU's bytes that it wants no writer beside it: B can neither write nor remove it until A lets go, and the other way round."""
    site.image(IMAGE)
    a, b = (site.view(g, "wait=0") for g in ("A", "B"))
    b.guest.must("echo other >%s" % b.path("other"))
    a.hold("r", IMAGE, "r")
    for turn in range(3):
        eq(b.guest.attempt("open_write", b.path(IMAGE)), 0, "open for write on B while A only looks (turn %d)" % turn)
        site.wait_claim(IMAGE, guest="B")
        for byte in (100, 201):
            eq(a.guest.do("ofd_lock", "r", byte, 1, "r"), 0, "A's lock on byte %d" % byte)
        eq(a.guest.do("ofd_found", "r", 101), "u", "A asks whether anybody writes")
        eq(b.guest.attempt("open_write", b.path(IMAGE)), EBUSY, "open for write on B while A reads")
        eq(b.guest.attempt("unlink", b.path(IMAGE)), EBUSY, "unlink on B")
        eq(b.guest.attempt("rename", b.path("other"), b.path(IMAGE)), EBUSY, "rename over it on B")
        eq(b.guest.attempt("truncate", b.path(IMAGE), 0), EBUSY, "truncate on B")
        b.guest.must("qemu-img check -q -f qcow2 " + b.path(IMAGE))
        eq(a.guest.do("ofd_lock", "r", 201, 1, "u"), 0, "A lets byte 201 go")
    eq(b.guest.attempt("open_write", b.path(IMAGE)), 0, "open for write on B afterwards")
    site.wait_claim(IMAGE, guest="B")
    b.hold("w", IMAGE)  # no lock of QEMU's: the claim alone tells
    r = a.guest.sh("qemu-io -r -c 'read 0 64k' " + a.path(IMAGE))
    ok(r.code != 0 and 'Failed to get shared "write" lock' in r.out, "A's reader comes too late: %r" % r)
    a.guest.must("qemu-img info " + a.path(IMAGE))
    b.guest.do("closed", "w")
    site.wait_claim(IMAGE, guest="B")
    a.guest.must("qemu-io -r -c 'read 0 64k' " + a.path(IMAGE))
    a.guest.do("closed", "r")


def chain(site):
    """While A holds an overlay, B cannot write, remove or replace its base, but may run an overlay of its own; while B has the base, A's overlay is refused."""
    site.image("base.qcow2")
    a, b = (site.view(g, "wait=0") for g in ("A", "B"))
    for name in ("top.qcow2", "own.qcow2"):
        a.guest.must("qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 " + site.raw(name, "A"))
    b.guest.must("echo other >%s" % b.path("other"))
    for turn in range(3):
        a.hold("t", "top.qcow2")
        eq(b.guest.attempt("open_write", b.path("base.qcow2")), EBUSY, "B's open of the base for write (turn %d)" % turn)
        eq(b.guest.attempt("unlink", b.path("base.qcow2")), EBUSY, "unlink of the base on B")
        eq(b.guest.attempt("rename", b.path("other"), b.path("base.qcow2")), EBUSY, "rename over the base on B")
        eq(b.guest.attempt("open_write", b.path("own.qcow2")), 0, "B's own overlay over the same base")
        site.wait_claim("own.qcow2", guest="B")
        a.guest.do("closed", "t")
        site.wait_claim("top.qcow2", guest="B")
        b.hold("b", "base.qcow2")
        eq(a.guest.attempt("open_write", a.path("top.qcow2")), EBUSY, "A's open of the overlay while B writes the base")
        b.guest.do("closed", "b")
        site.wait_claim("base.qcow2")
    eq(a.guest.attempt("open_write", a.path("top.qcow2")), 0, "A's overlay afterwards")


# Name of the format, options of qemu-img create. VHD's footer moves while the file grows; VHDX has five copies of what is sealed, far from the start.
FORMATS = (("vpc", ""), ("vpc", "-o subformat=fixed"), ("vhdx", ""), ("vmdk", ""), ("vdi", ""), ("qed", ""), ("parallels", ""))


def formats(site):
    """Made on A, written and grown in turns on both: sealed to raw openers while one holds it, true in the other's view, right at the end, each byte."""
    a, b = (site.view(g, "wait=60") for g in ("A", "B"))
    for number, (kind, options) in enumerate(FORMATS):
        name = "f%d.%s" % (number, kind)
        a.guest.must("qemu-img create -q -f %s %s %s 32M" % (kind, options, a.path(name)))
        checks = []
        for turn in range(3):
            v, other = (a, b) if turn % 2 == 0 else (b, a)
            checks.append("-c 'write -P %d %dM 1M'" % (turn + 1, 9 * turn))
            out = v.guest.must("qemu-io -f %s %s %s %s" % (kind, " ".join(c.replace("write", "read") for c in checks[:-1]), checks[-1], v.path(name)))
            ok("failed" not in out, "%s turn %d: %s" % (name, turn, out))
            site.wait_claim(name, guest=other.guest.name)
            v.hold("x", name)
            true, sealed = other.guest.must("sha256sum <" + other.path(name)), other.guest.must("sha256sum <" + site.raw(name, other.guest.name))
            ok(true != sealed, "%s turn %d: it is sealed" % (name, turn))
            r = other.guest.sh("qemu-img info -f %s %s" % (kind, site.raw(name, other.guest.name)))
            ok(r.code != 0, "%s turn %d: a raw opener is refused: %r" % (name, turn, r))
            v.guest.do("closed", "x")
            site.wait_claim(name, guest=other.guest.name)
            eq(other.guest.must("sha256sum <" + site.raw(name, other.guest.name)), true, "%s turn %d: what the other host's view showed, and the file afterwards" % (name, turn))
        b.guest.must("qemu-io -r -f %s %s %s" % (kind, " ".join(c.replace("write", "read") for c in checks), site.raw(name, "B")))
