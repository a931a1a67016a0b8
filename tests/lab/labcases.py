"""labcases: scenarios that hold on every shared storage. Each takes a labhost.Site with a fresh datastore; test_lab_*.py say where they run."""
from labhost import EAGAIN, EBUSY, EIO, ENOENT, ESTALE  # first: it finds dgtest
import time

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


# ---- mtime ----

SECOND = 1_000_000_000
OLD = 1_000_000_000 * SECOND


class Times:
    """mtimes of one image, as each host has it on the datastore and in its view."""

    def __init__(self, site, header, views):
        self.site, self.header, self.views, self.sealed, self.last = site, header, views, set(), 0

    def all(self):
        """In ns, by where it was seen."""
        places = {"%s's datastore" % v.guest.name: (v.guest, self.site.raw(IMAGE, v.guest.name)) for v in self.views}
        places.update({"%s's view" % v.guest.name: (v.guest, v.path(IMAGE)) for v in self.views})
        return {place: guest.do("mtime", path) for place, (guest, path) in places.items()}

    def note_sealed(self):
        """To be called while the image is sealed. What the datastore shows is what a copy that is made past the view goes by."""
        for v in self.views:
            ok(v.guest.do("header", self.site.raw(IMAGE, v.guest.name)) != self.header, "it is sealed, as %s has it" % v.guest.name)
            self.last = v.guest.do("mtime", self.site.raw(IMAGE, v.guest.name))
            self.sealed.add(self.last)

    def check_restored(self, what):
        """After a release: one new mtime, of a second that no sealed state of any hold has shown. Returns it."""
        for v in self.views:
            self.site.wait_claim(IMAGE, guest=v.guest.name)
            eq(v.guest.do("header", self.site.raw(IMAGE, v.guest.name)), self.header, "%s: the header that %s has" % (what, v.guest.name))
        times = self.all()
        eq(len(set(times.values())), 1, "%s: the mtimes, %s" % (what, times))
        mtime = times.popitem()[1]
        ok(mtime // SECOND not in {t // SECOND for t in self.sealed}, "%s: %d was shown with the seal: %s" % (what, mtime, sorted(self.sealed)))
        return mtime


def mtimes(site):
    """No host ever shows an mtime for a restored image that the sealed one has shown, however the hosts' clocks differ. Another host's touch of a held image is not
    lost; a date that it sets is refused."""
    header = site.image(IMAGE)
    a, b = site.view("A", "wait=5"), site.view("B", "wait=5")
    times = Times(site, header, (a, b))
    for turn, ahead in enumerate((0, 0, -3600, 7200)):  # seconds that the holder's clock is ahead of where the turn found it
        v, other = (a, b) if turn % 2 == 0 else (b, a)
        what = "turn %d, %s's clock %+d s" % (turn, v.guest.name, ahead)
        v.guest.must("date -s @$(($(date +%%s) + %d))" % ahead)
        v.hold("x", IMAGE)
        times.note_sealed()
        if turn:  # the first one only looks
            for n in range(3):
                v.guest.do("put", "x", FAR, "%d.%d" % (turn, n))
                times.note_sealed()
        v.guest.do("closed", "x")
        new = times.check_restored(what)
        # Not than after the turn before: OCFS2 takes the time of the host that writes.
        ok(new // SECOND >= times.last // SECOND + 2, "%s: later than all that this hold has shown, for programs that copy what is newer: %d, %d" % (what, times.last, new))
        if turn:
            eq(other.guest.do("get_at", other.path(IMAGE), FAR)[:3], "%d.2" % turn, what + ": the data")

    # touch on the other host: this host's holder goes on, and what is shown afterwards is later.
    a.hold("x", IMAGE)
    a.guest.do("put", "x", FAR, "touched")
    eq(b.guest.attempt("utime", b.path(IMAGE)), 0, "touch on B while A holds")
    touched = b.guest.do("mtime", site.raw(IMAGE, "B"))
    times.note_sealed()
    since = len(b.log())
    eq(b.guest.attempt("utime", b.path(IMAGE), (OLD // SECOND, OLD // SECOND)), EBUSY, "touch -d on B while A holds")
    b.wait_log("refused.*" + IMAGE, since)
    eq(b.guest.do("mtime", site.raw(IMAGE, "B")), touched, "the mtime after the refusal")
    a.guest.do("closed", "x")
    new = times.check_restored("after a touch on B")
    ok(new > touched, "not older than the touch on B: %d, %d" % (touched, new))

    # What the holder's host sets is kept on both, unless somebody touches it afterwards.
    for touch in (False, True):
        a.hold("x", IMAGE)
        eq(a.guest.attempt("utime", a.path(IMAGE), (OLD // SECOND, OLD // SECOND)), 0, "touch -d on A, which holds it")
        ok(b.guest.do("mtime", site.raw(IMAGE, "B")) != OLD, "the sealed image does not show it")
        if touch:
            eq(b.guest.attempt("utime", b.path(IMAGE)), 0, "touch on B afterwards")
        times.note_sealed()
        a.guest.do("closed", "x")
        new = times.check_restored("a date from A, touch on B: %s" % touch)
        eq(new == OLD, not touch, "is it the date that A set, touch on B: %s" % touch)
        times.sealed.discard(OLD)


# ---- raw disks ----

def _locks_are_told(site, name):
    """Does the storage tell one host of another's locks, as QEMU asks: is there a read lock? Not OCFS2, and not NFSv3 where the server takes each question for one
    about write locks (DESIGN 10.1.18)."""
    a, b = site.lab["A"], site.lab["B"]
    for guest in (a, b):
        guest.do("opened", "raw", site.raw(name, guest.name), "w")
    eq(a.do("ofd_lock", "raw", 201, 1, "r"), 0, "a lock on A's datastore")
    told = b.do("ofd_found", "raw", 201) == "r"
    for guest in (a, b):
        guest.do("closed", "raw")
    if not told:
        print("        a QEMU without a view does not see locks of other hosts here", flush=True)
    return told


def byte_101(site):
    """A raw disk whose name says nothing: who locks QEMU's byte 101 first has it, the other host is refused, and gets it after the release. Where the storage tells one
    host of another's locks, a QEMU without a view is refused, too."""
    name = "disk.1"
    site.lab["A"].must("truncate -s 16M %s" % site.raw(name, "A"))
    carried = _locks_are_told(site, name)
    ok(carried or site.kind != "4.2", "NFSv4 tells of locks")
    a, b = site.view("A", "wait=0"), site.view("B", "wait=0")
    for turn in range(4):
        v, other = (a, b) if turn % 2 == 0 else (b, a)
        what = "turn %d, %s has it" % (turn, v.guest.name)
        eq(v.guest.do("say_disk", "x", v.path(name)), 0, what)
        claim = site.claim(name, other.guest.name)
        eq((claim.get("name"), claim.get("state")), (v.guest.name, "claimed"), what + ": the claim")
        eq(other.guest.attempt("open_write", other.path(name)), EBUSY, what + ": the other's open")
        r = other.guest.sh("qemu-io -f raw -c 'write 0 4k' " + other.path(name))
        ok(r.code != 0 and "Device or resource busy" in r.out, "%s: QEMU on the other: %r" % (what, r))
        if carried:
            r = other.guest.sh("qemu-io -f raw -c 'write 0 4k' " + site.raw(name, other.guest.name))
            ok(r.code != 0 and 'Failed to get "write" lock' in r.out, "%s: QEMU on the other's datastore: %r" % (what, r))
        v.guest.do("put", "x", FAR, "turn%d" % turn)
        eq(other.guest.do("get_at", other.path(name), FAR)[:5], "turn%d" % turn, what + ": what the other reads")
        v.guest.do("closed", "x")
        site.wait_claim(name, guest=other.guest.name)

    # Both have it open before either says anything: neither gets it, until it is alone.
    for v in (a, b):
        v.hold("x", name)
    for v in (a, b):
        since = len(v.log())
        eq(v.guest.do("ofd_lock", "x", 101, 1, "r"), EAGAIN, "%s's lock while the other has the file open for write" % v.guest.name)
        v.wait_log("byte 101.*" + name + "|" + name + ".*byte 101", since)
    b.guest.do("put", "x", FAR, "plain")
    b.guest.do("closed", "x")
    dgtest.wait_for(lambda: a.guest.do("ofd_lock", "x", 101, 1, "r") == 0, "A, which is left, gets it", 30)
    eq(b.guest.do("say_disk", "x", b.path(name)), EBUSY, "B's open")
    eq(a.guest.do("get", "x", FAR)[:5], "plain", "what A reads as the holder")
    a.guest.do("closed", "x")
    site.wait_claim(name, guest="B")

    # At the same moment: never both, and both right afterwards.
    wins = {"A": 0, "B": 0, "nobody": 0}
    for n in range(8):
        calls = {v: v.guest.begin("say_disk", "x%d" % n, v.path(name)) for v in (a, b)}
        answers = {v: call.wait() for v, call in calls.items()}
        ok(set(answers.values()) <= {0, EBUSY, EAGAIN}, "round %d: %s" % (n, list(answers.values())))
        got = [v for v in (a, b) if answers[v] == 0]
        ok(len(got) < 2, "round %d: both got it" % n)
        wins[got[0].guest.name if got else "nobody"] += 1
        if got:
            got[0].guest.do("put", "x%d" % n, FAR, "round%d" % n)
        for v in (a, b):
            if answers[v] != EBUSY:
                v.guest.do("closed", "x%d" % n)
        site.wait_claim(name)
    print("        wins: %s" % wins, flush=True)
    for v in (a, b):
        v.guest.must("qemu-io -f raw -c 'write -P 7 0 4k' -c 'read -P 7 0 4k' " + v.path(name))
        site.wait_claim(name)


# ---- managers ----

def manager(site):
    """A manager's handle on B (managers=): no claim, no fence. It reads what A's holder writes; its write is EBUSY while A holds, and claims when A does not."""
    header = site.image(IMAGE)
    program = site.lab["B"].do("os.path.realpath", "/proc/self/exe")  # the agent, by which B opens
    a, b = site.view("A", "wait=0"), site.view("B", "wait=0", "managers=" + program)
    b.hold("m", IMAGE)
    eq(b.guest.do("posix_lock", "m", 1), 0, "libvirt's lock on byte 1")
    eq(site.claim(IMAGE, "B"), {}, "the claim of an image that a manager has open")
    for turn in range(3):
        a.hold("x", IMAGE)  # the fence that A takes is exclusive
        generation = site.claim(IMAGE, "B")["generation"]
        a.guest.do("put", "x", FAR, "turn%d" % turn)
        eq(b.guest.do("get", "m", FAR)[:5], "turn%d" % turn, "what the manager reads while A holds")
        eq(b.guest.do("get_hex", "m", 0, 512), header, "the header that it reads")
        since = len(b.log())
        for function, args in (("attempt_put", (FAR, "manager")), ("attempt_put", (0, "manager")), ("attempt_size", (0,))):
            eq(b.guest.do(function, "m", *args), EBUSY, "the manager's %s%s while A holds" % (function, args))
        b.wait_log("refused first change.*" + IMAGE, since)
        claim = site.claim(IMAGE, "B")
        eq((claim["name"], claim["generation"]), ("A", generation), "the claim afterwards")
        a.guest.do("put", "x", FAR, "after%d" % turn)
        a.guest.do("closed", "x")
        site.wait_claim(IMAGE, guest="B")
        eq(b.guest.do("get", "m", FAR)[:6], "after%d" % turn, "what it reads afterwards")
    a.guest.must("qemu-io -f qcow2 -c 'write -P 5 8M 64k' -c 'flush' %s && qemu-img resize -q %s 80M && qemu-img resize -q --shrink %s 64M" % ((a.path(IMAGE),) * 3))
    site.wait_claim(IMAGE)
    # Nobody holds it now: the first change of the same handle claims, and it is a holder as any.
    eq(b.guest.do("attempt_put", "m", FAR, "manager"), 0, "the manager's write to a free image")
    claim = site.claim(IMAGE, "B")
    eq((claim["name"], claim["state"] in ("armed", "sealed")), ("B", True), "the claim afterwards")
    eq(a.guest.attempt("open_write", a.path(IMAGE)), EBUSY, "A's open for write")
    eq(a.guest.do("get_at", a.path(IMAGE), FAR)[:7], "manager", "what A reads")
    b.guest.do("closed", "m")
    site.wait_claim(IMAGE)
    # It has a file open that A puts another one in the place of: its late write claims nothing of that, and changes nothing.
    b.hold("m", IMAGE)
    a.guest.must("qemu-img create -q -f qcow2 %s 32M && mv %s %s" % (a.path("new.qcow2"), a.path("new.qcow2"), a.path(IMAGE)))
    before = a.guest.do("digest", site.raw(IMAGE))
    outcome = b.guest.do("attempt_put", "m", FAR, "late")
    ok(outcome in (0, ENOENT, ESTALE, EIO), "a late write to a file that is gone: %d" % outcome)
    ok(site.claim(IMAGE).get("state", "free") == "free", "the new file is nobody's")
    b.guest.do("attempt_close", "m")
    eq(a.guest.attempt("open_write", a.path(IMAGE)), 0, "A's open of the new file")
    site.wait_claim(IMAGE)
    eq(a.guest.do("digest", site.raw(IMAGE)), before, "the new file")


# ---- names that the kernel keeps ----

def _pause(seconds):
    """A time that is promised: after that, not at once, others must see."""
    time.sleep(seconds)


def names_seen(site, timeout):
    """Names and sizes that B's kernel keeps (entry-timeout=, attr-timeout=) are those of the datastore after that time, on storage whose client keeps none itself."""
    options = ("wait=0", "entry-timeout=%g" % timeout, "attr-timeout=%g" % timeout)
    a, b = site.view("A", *options), site.view("B", *options)
    a.guest.must("cd %s && mkdir dir && echo one >one && echo two >two && echo log >log && echo gone >gone && echo old >dir/f" % a.path())
    for turn in range(3):
        names = ("one", "two", "log", "gone", "new", "moved", "dir/f")
        wanted = {n: b.guest.do("seen", b.path(n)) for n in names}
        ok(wanted["new"] is None and wanted["moved"] is None and wanted["gone"], "what B has seen: %s" % wanted)
        b.guest.do("opened", "log", b.path("log"), "r")
        a.guest.must("cd %s && echo new >new && mv one moved && mv two one && echo more >>log && rm gone && echo another >two && mv dir was && mkdir dir && echo newer >dir/f" % a.path())
        _pause(timeout)
        grown = b.guest.do("size", "log")  # first: a look at the name brings attributes along
        what = {n: b.guest.do("seen", b.path(n)) for n in names}
        raw = {n: b.guest.do("seen", site.raw(n, "B")) for n in names}
        eq(what, raw, "turn %d: what B's view shows %g s later, and B's datastore" % (turn, timeout))
        eq(raw["moved"], wanted["one"], "turn %d: the file that was renamed" % turn)
        eq((raw["one"], raw["gone"]), (wanted["two"], None), "turn %d: the name that another one took, and the removed one" % turn)
        eq(raw["log"][1], wanted["log"][1] + 5, "turn %d: the file that grew" % turn)
        eq(grown, raw["log"][1], "turn %d: the same through an open handle" % turn)
        b.guest.do("closed", "log")
        a.guest.must("cd %s && rm -r new moved was && echo gone >gone" % a.path())
        _pause(timeout)


def names_opened(site, timeout):
    """Whatever B's kernel has kept of a name (here for ever, or nothing), B's open for write claims the file that has the name now, or none."""
    options = ("wait=0", "entry-timeout=%g" % timeout, "attr-timeout=%g" % timeout)
    a, b = site.view("A", *options), site.view("B", *options)

    def image(name, mib):
        a.guest.must("qemu-img create -q -f qcow2 %s %dM" % (a.path(name), mib))

    def held(name):
        return site.claim(name, "B").get("state", "free") != "free"

    def opens(what, name, mib, others=()):
        """B opens this name, and claims this file alone."""
        answer = b.guest.do("attempt_hold", "x", b.path(name))
        if answer == ESTALE:  # the kernel walks a path twice at most, and may have spent that (DESIGN 8.5): refused, never wrong
            print("        turn %d, %s: ESTALE, then right" % (turn, what), flush=True)
            answer = b.guest.do("attempt_hold", "x", b.path(name))
        eq(answer, 0, "turn %d, %s: B's open of %s; log: %s" % (turn, what, name, b.log()[-500:]))
        eq(int(b.guest.do("get_hex", "x", 24, 8), 16) >> 20, mib, "turn %d, %s: the size of the image that B's open of %s found" % (turn, what, name))
        ok(held(name), "%s is held" % name)
        eq([n for n in others if held(n)], [], "others that are held")
        eq(a.guest.attempt("open_write", a.path(name)), EBUSY, "A's open of %s meanwhile" % name)
        for n in others:
            eq(a.guest.attempt("open_write", a.path(n)), 0, "A's open of %s meanwhile" % n)
        b.guest.do("put", "x", FAR, name)
        b.guest.do("closed", "x")
        site.wait_claim(name)
        site.wait_claim(name, guest="B")
        for n in others:
            site.wait_claim(n, guest="B")
            ok(b.guest.do("get_at", site.raw(n, "B"), FAR)[:len(name)] != name, "the write to %s is not in %s" % (name, n))

    def looks(*names):
        """B's kernel keeps what it is told of these names, which is what an NFS client there has kept in its turn."""
        for n in names:
            b.guest.do("seen", b.path(n))

    image("disk.qcow2", 64)
    for turn in range(2):
        mib = 65 + turn
        # New names each turn: that a name is absent may be kept, too, and nothing asks before an open then.
        was, next_one, far = "was%d.qcow2" % turn, "next%d.qcow2" % turn, "far%d.qcow2" % turn
        looks("disk.qcow2")
        # Renamed away, and a new one under its name.
        a.guest.must("mv %s %s" % (a.path("disk.qcow2"), a.path(was)))
        image("disk.qcow2", mib)
        opens("a new one", "disk.qcow2", mib, (was,))
        # Names exchanged, both of them known to B.
        looks(was, "disk.qcow2")
        a.guest.must("cd %s && mv disk.qcow2 third && mv %s disk.qcow2 && mv third %s" % (a.path(), was, was))
        opens("exchanged", was, mib, ("disk.qcow2",))
        opens("exchanged", "disk.qcow2", mib - 1, (was,))
        # Another one renamed over it.
        image(next_one, mib + 10)
        looks(next_one)
        a.guest.must("mv %s %s" % (a.path(next_one), a.path("disk.qcow2")))
        opens("another renamed over it", "disk.qcow2", mib + 10, (was,))
        eq(b.guest.attempt("open_write", b.path(next_one)), ENOENT, "B's open of the name that it had before")
        # Removed; and B, who knows that there is none, would make it, when A has.
        a.guest.must("rm %s" % a.path("disk.qcow2"))
        eq(b.guest.attempt("open_write", b.path("disk.qcow2")), ENOENT, "B's open of a removed one")
        eq(b.guest.attempt("truncate", b.path("disk.qcow2"), 0), ENOENT, "B's truncation of a removed one")
        looks("disk.qcow2")
        image("disk.qcow2", mib + 20)
        eq(b.guest.do("attempt_hold", "x", b.path("disk.qcow2"), "wc"), 0, "B's open with O_CREAT")
        eq(int(b.guest.do("get_hex", "x", 24, 8), 16) >> 20, mib + 20, "the size that it found")
        ok(held("disk.qcow2"), "it is held")
        b.guest.do("closed", "x")
        site.wait_claim("disk.qcow2", guest="B")
        # Held by A under another name than B knows.
        looks(was)
        a.guest.must("mv %s %s" % (a.path(was), a.path(far)))
        a.hold("x", far)
        eq(b.guest.attempt("open_write", b.path(was)), ENOENT, "B's open by the former name")
        eq(b.guest.attempt("open_write", b.path(far)), EBUSY, "B's open by the new name")
        eq(b.guest.attempt("unlink", b.path(far)), EBUSY, "B's unlink by the new name")
        # B exchanges through the former name: nothing of A's is hit.
        eq(b.guest.attempt("unlink", b.path(was)), ENOENT, "B's unlink by the former name")
        a.guest.do("put", "x", FAR, "from A")
        a.guest.do("closed", "x")
        site.wait_claim(far)
        a.guest.must("rm %s && mv %s %s" % (a.path("disk.qcow2"), a.path(far), a.path("disk.qcow2")))
        a.guest.must("rm %s" % a.path("disk.qcow2"))
        image("disk.qcow2", mib)
