#!/usr/bin/env python3
"""test_migrate: live migration between two libvirt daemons, each with a view of its own of one datastore, under a guest that writes numbered sectors all the time.

Without --long some of it runs once. With --long: all of it, more often, and with failures at many moments.
"""
import os
import random
import re
import statistics

import dgstack  # first: it finds dgtest
import stackguest
from dgstack import disk_xml, wait_for
from dgtest import Fail, Skip, Suite, eq, ok
from scenario import OF_FUSE, labels

suite = Suite(__file__)
IMAGE = "vm.qcow2"
BAD_LOG = re.compile(r"security label|unable to (open|stat|lock)|Invalid argument|busy|trusted\.libvirt")
QEMU_USER = 64055


def case(title, limit=60, short=False):
    """Without --long only those that are `short` are there."""
    def add(function):
        function.short = short
        return suite.case(title, limit)(function)
    return add


def view_options(build):
    """libvirt takes a FUSE type that it does not know for local storage: a view is called what it knows where that can be had, else migrations say --unsafe."""
    return ["subtype=glusterfs"] if dgstack.has_option(build, "subtype") else []


class Two:
    """Hosts dga and dgb with a wire between them, and the guest on dga. The view is checked at the end: what the guest wrote, who owns the image, what was logged."""

    def __init__(self, build, mode="free", kind="view", running=True, disk=None, owner=(0, 0), options=(), clean_log=True, subtype=True, **conf):
        self.build = build
        called = view_options(build) if kind == "view" and subtype else []
        self.unsafe = [] if called or not subtype else ["--unsafe"]
        self.site = dgstack.Site(build, kind, *called, *options)
        self.clean_log, self.at_least = clean_log, 0
        try:
            self.a, self.b = self.site.host("dga", number=1, **conf), self.site.host("dgb", number=2, **conf)
            dgstack.link(self.a, self.b)
            dgstack.make_disk(self.site.raw(IMAGE), mode=mode)
            os.chown(self.site.raw(IMAGE), *owner)
            os.chmod(self.site.raw(IMAGE), 0o600)
            dgstack.define(self.a, "vm", disk or disk_xml(dgstack.vms() + "/" + IMAGE, driver="cache='none'"))
            if running:
                self.a.virsh("start", "vm")
                self.a.wait_booted("vm")
                self.a.wait_written("vm", 40)
        except BaseException:
            self.site.close()
            raise

    def command(self, to, *options, target="vm"):
        return ["migrate", "--live", "--persistent", "--undefinesource", *self.unsafe, *options, target, "qemu+tcp://%s/system" % to.name]

    def move(self, source, to, *options):
        """A migration that must succeed, the guest writing all the time; how long it took."""
        before, began = source.written("vm"), dgstack.now()
        source.virsh(*self.command(to, *options))
        took = dgstack.now() - began
        eq(to.state("vm"), "running", "the guest after its migration to " + to.name)
        eq(source.state("vm"), None, "the guest on " + source.name)
        to.wait_written("vm", before + 40)
        eq(os.stat(self.site.raw(IMAGE)).st_uid, QEMU_USER, "owner of the image under its guest on " + to.name)
        return took

    def goes_on(self, host, other):
        """The guest runs on host, by itself or by virsh resume, and not on the other one."""
        wait_for(lambda: host.state("vm") in ("running", "paused"), "%s has its guest" % host.name, 60)
        wait_for(lambda: other.state("vm") in (None, "shut off"), "%s has none: %s" % (other.name, other.state("vm")), 60)
        if host.state("vm") == "paused":
            host.virsh("resume", "vm")
        number = host.written("vm")
        host.wait_written("vm", number + 40)

    def stop(self, host):
        """The guest is stopped; its number is known."""
        host.virsh("suspend", "vm")
        number = host.written("vm")
        host.virsh("destroy", "vm")
        return number

    def bad_log(self):
        return [h.name + ": " + line for h in self.site.hosts for line in h.log().splitlines() if BAD_LOG.search(line) and "load of migration failed" not in line and OF_FUSE.partition(": ")[2] not in line]

    def end(self, host, exact=True, owner=(0, 0)):
        number = self.stop(host)
        host.virsh("undefine", "vm")
        self.site.settle()
        dgstack.check_disk(self.site.raw(IMAGE), number, exact=exact)
        if owner:
            eq(labels(self.site.raw())[IMAGE][:2], owner, "owner and group of the image at the end")
        if self.clean_log:
            eq(self.bad_log(), [], "what libvirtd logged")
        for h in self.site.hosts:
            if h.state("vm"):
                h.virsh("undefine", "vm")
        self.site.end()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.site.close()


# ---- it works ----

def there_and_back(two, times, *options):
    took = []
    for _ in range(times):
        took += [two.move(two.a, two.b, *options), two.move(two.b, two.a, *options)]
    return took


@case("there and back with the default configuration", short=True)
def _(build):
    with Two(build) as two:
        there_and_back(two, 10 if suite.args.long else 2)
        two.end(two.a)


@case("libvirt 11: a view of its own type migrates where shared_filesystems names it, and nowhere else", limit=120)
def _(build):
    with open("/etc/libvirt/qemu.conf", encoding="utf-8") as f:
        if "shared_filesystems" not in f.read():
            raise Skip("this libvirt has no shared_filesystems")
    with Two(build, subtype=False) as two:
        r = two.a.virsh_run(*two.command(two.b))
        ok(r.code != 0 and "Unsafe migration" in r.out, "not named: %r" % r)
        two.end(two.a)
    with Two(build, subtype=False, qemu_conf=('shared_filesystems = [ "%s" ]' % dgstack.vms(),)) as two:
        there_and_back(two, 10 if suite.args.long else 2)
        two.end(two.a)


@case("peer to peer, and tunnelled", short=True)
def _(build):
    with Two(build) as two:
        for options in (("--p2p",), ("--p2p", "--tunnelled")):
            there_and_back(two, 5 if suite.args.long else 1, *options)
        two.end(two.a)


for _cache in ("writeback", "directsync", "none"):
    for _bus in ("vda", "hda"):
        @case("cache %s, %s" % (_cache, "virtio" if _bus == "vda" else "IDE"))
        def _(build, cache=_cache, bus=_bus):
            with Two(build, disk=disk_xml(dgstack.vms() + "/" + IMAGE, bus, driver="cache='%s'" % cache)) as two:
                two.unsafe = ["--unsafe"]  # libvirt has its doubts about caches, too
                there_and_back(two, 2)
                two.end(two.a)


@case("with a chain of overlays")
def _(build):
    with Two(build) as two:
        for name in ("one", "two"):
            two.a.virsh("snapshot-create-as", "vm", name, "--disk-only", "--no-metadata", "--diskspec", "vda,file=%s/%s.qcow2" % (dgstack.vms(), name))
        there_and_back(two, 2)
        two.a.virsh("blockcommit", "vm", "vda", "--active", "--pivot", "--wait")
        two.move(two.a, two.b)
        two.b.virsh("blockpull", "vm", "vda", "--wait")
        two.end(two.b)


@case("offline, and then started there")
def _(build):
    with Two(build, running=False) as two:
        two.a.virsh(*[o for o in two.command(two.b, "--offline") if o != "--live"])
        two.b.virsh("start", "vm")
        two.b.wait_booted("vm")
        two.b.wait_written("vm", 40)
        two.end(two.b)


@case("with the whole storage, into a file of another name on the same datastore", short=True)
def _(build):
    with Two(build, clean_log=False) as two:
        xml = os.path.join(two.site.base, "there.xml")
        with open(xml, "w", encoding="utf-8") as f:
            f.write(two.a.virsh("dumpxml", "--migratable", "vm").replace("/" + IMAGE, "/there.qcow2"))
        two.b.sh("qemu-img", "create", "-q", "-f", "qcow2", dgstack.vms() + "/there.qcow2", "32M")
        before = two.a.written("vm")
        two.a.virsh(*two.command(two.b, "--copy-storage-all", "--xml", xml, "--persistent-xml", xml))
        two.b.wait_written("vm", before + 40)
        number = two.stop(two.b)
        two.b.virsh("undefine", "vm")
        two.site.settle()
        dgstack.check_disk(two.site.raw("there.qcow2"), number)
        eq(two.bad_log(), [], "what libvirtd logged")
        two.site.end()


# ---- it is ended before it is over ----

def slow(two, *options):
    """A migration to dgb that does not end by itself, well under way."""
    p = two.a.spawn(*two.command(two.b, "--bandwidth", "1", *options))
    wait_for(lambda: p.poll() is not None or "Data processed" in two.a.virsh_run("domjobinfo", "vm").out, "the migration is under way", 60)
    ok(p.poll() is None, "it ended: %s" % (p.stdout.read().decode() if p.poll() is not None else ""))
    return p


def outcome(p):
    try:
        out, _ = p.communicate(timeout=60 * dgstack.dgtest.TIME_SCALE)
    except dgstack.subprocess.TimeoutExpired:
        raise Fail("virsh migrate does not end; %s" % "; ".join("%s:\n%s" % (h.name, h.processes()) for s in dgstack.sites for h in s.hosts)) from None
    return p.returncode, out.decode(errors="replace")


@case("cancelled, and then done", short=True)
def _(build):
    with Two(build, "busy") as two:
        for options in ((), ("--p2p",)):
            p = slow(two, *options)
            two.a.virsh("domjobabort", "vm")
            ok(outcome(p)[0], "a cancelled migration succeeded")
            two.goes_on(two.a, two.b)
        two.move(two.a, two.b)
        two.end(two.b)


@case("QEMU of the destination is killed", short=True)
def _(build):
    with Two(build, "busy") as two:
        p = slow(two)
        two.b.kill("vm")
        ok(outcome(p)[0], "a migration to a dead QEMU succeeded")
        two.goes_on(two.a, two.b)
        two.move(two.a, two.b)
        two.end(two.b)


@case("QEMU of the source is killed")
def _(build):
    with Two(build, "busy") as two:
        p = slow(two)
        number = two.a.written("vm")
        two.a.kill("vm")
        ok(outcome(p)[0], "a migration from a dead QEMU succeeded")
        for host in (two.a, two.b):
            wait_for(lambda h=host: h.state("vm") in (None, "shut off"), "no guest is left on " + host.name, 60)
        two.site.settle()
        dgstack.check_disk(two.site.raw(IMAGE), number, exact=False)
        two.a.virsh("start", "vm")
        two.a.wait_booted("vm")
        two.a.wait_written("vm", 300)
        # libvirt of the destination leaves the labels of a migration that failed on storage that it takes for shared: they are counted once too often.
        two.end(two.a, owner=None)


for _side in ("source", "destination"):
    @case("libvirtd of the %s is killed" % _side)
    def _(build, side=_side):
        with Two(build, "busy", clean_log=False) as two:
            host = two.a if side == "source" else two.b
            p = slow(two, "--p2p")
            host.kill("libvirtd")
            if side == "destination":  # libvirt of the source notices by itself, at the latest by its keepalive
                ok(outcome(p)[0], "a migration without libvirtd succeeded")
                host.start_libvirtd()
            else:
                outcome(p)
                host.start_libvirtd()
            two.goes_on(two.a, two.b)
            two.move(two.a, two.b)
            two.end(two.b)


# ---- moments ----

RIVAL = """import os, sys, time
until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    try:
        fd = os.open(sys.argv[1], os.O_RDWR)
    except OSError:
        continue
    print("got it", flush=True)
    time.sleep(float(sys.argv[3]))
    break
"""


def settle_on_one(two):
    """After a failure of any kind: the host that has the guest, running or able to. A libvirtd that was killed may not know that the guest has left: paused, with nothing of it
    on the disk, beside one that runs; that is for a person to end."""
    def states():
        return {h: h.state("vm") for h in (two.a, two.b)}

    def settled():
        up = {h: s for h, s in states().items() if s in ("running", "paused", "in shutdown")}
        if len(up) == 2:
            left = [h for h in up if up[h] == "paused" and "starting up" not in h.virsh_run("domstate", "vm", "--reason").out]
            return sorted(up.values()) == ["paused", "running"] and left
        return True
    try:
        wait_for(settled, "at most one host has the guest", 60)
    except Fail as e:
        raise Fail("%s: %s; %s" % (e, {h.name: s for h, s in states().items()}, "; ".join(h.virsh_run("domjobinfo", "vm").out for h in (two.a, two.b)))) from None
    up = {h: s for h, s in states().items() if s in ("running", "paused")}
    if len(up) == 2:
        left = next(h for h in up if up[h] == "paused")
        print("    %s has the guest, paused (%s), which runs on the other host" % (left.name, left.virsh("domstate", "vm", "--reason").strip()), flush=True)
        left.virsh("destroy", "vm")
        del up[left]
    if up:
        return next(iter(up))
    host = two.a if two.a.state("vm") else two.b  # it is off on both: it can be started where it is defined
    host.virsh("start", "vm")
    host.wait_booted("vm")
    return host


@case("a rival grabs the image at switch-over", limit=200)
def _(build):
    seen = {}
    for held in (1.5, 9.0) * 3:  # shorter and longer than the destination waits
        with Two(build, clean_log=False) as two:
            rival = dgstack.subprocess.Popen(two.b.inside("python3", "-S", "-E", "-c", RIVAL, dgstack.vms() + "/" + IMAGE, "20", str(held)), stdin=dgstack.subprocess.DEVNULL,
                                             stdout=dgstack.subprocess.PIPE)
            dgstack.guardian.process(rival.pid)
            r = two.a.virsh_run(*two.command(two.b, *(("--p2p",) if len(seen) % 2 else ())))
            host, other = (two.b, two.a) if r.code == 0 else (two.a, two.b)
            ok("vm" in host.virsh("list", "--name"), "the guest is not on %s: %s" % (host.name, r.out))
            won = bool(dgstack.dgtest.select.select([rival.stdout], [], [], 0)[0])
            ok(won or r.code == 0, "the migration failed though the rival never had the image: " + r.out)
            rival.wait(60)
            rival.stdout.close()
            two.goes_on(host, other)
            two.end(host, owner=None)
            key = "the rival %s; the migration %s" % ("had the image for %.1f s" % held if won else "came too late", "failed" if r.code else "succeeded")
            seen[key] = seen.get(key, 0) + 1
    for key, times in sorted(seen.items()):
        print("    %s: %d" % (key, times), flush=True)


def killed_at_any_moment(what):
    @case("at any moment of a migration: %s" % what, limit=200)
    def _(build):
        rng = random.Random("%d %s" % (suite.args.seed, what))
        seen = {}
        for _ in range(8):
            with Two(build, clean_log=False) as two:
                key = one_end(two, what, rng)
                seen[key] = seen.get(key, 0) + 1
        for key, times in sorted(seen.items()):
            print("    %s: the guest %s: %d" % (what, key, times), flush=True)


def one_end(two, what, rng):
    number = two.a.written("vm")
    p = two.a.spawn(*two.command(two.b, *rng.choice([(), ("--p2p",)])))
    dgstack.time.sleep(rng.uniform(0, 1.2))  # a moment, not a condition: any one will do
    host = two.b if "destination" in what else two.a
    if what == "domjobabort":
        host.virsh_run("domjobabort", "vm")
    else:
        try:
            host.kill("vm" if "QEMU" in what else "libvirtd")
        except Fail:
            pass  # it is not there yet, or no more
    if "libvirtd" not in host.daemons:
        host.start_libvirtd()
    outcome(p)
    on = settle_on_one(two)
    restarted = on.written("vm") < number
    two.goes_on(on, two.b if on is two.a else two.a)
    if restarted:
        on.wait_written("vm", stackguest.WINDOW + 40)
    two.end(on, exact=not restarted, owner=None)
    return "is started again" if restarted else "goes on at " + on.name


for _what in ("QEMU of the source killed", "QEMU of the destination killed", "libvirtd of the source killed", "libvirtd of the destination killed", "domjobabort"):
    killed_at_any_moment(_what)


# ---- other configurations ----

def configured(title, short=False, owner_at_end=(0, 0), **how):
    @case(title, short=short)
    def _(build):
        with Two(build, **how) as two:
            os.makedirs(two.site.raw("leases"), exist_ok=True)
            there_and_back(two, 3 if suite.args.long else 1)
            dgstack.define(two.b, "other", disk_xml(dgstack.vms() + "/" + IMAGE, driver="cache='none'"))
            two.b.refused("start", "other", text="(?i)busy|lock")
            two.b.virsh("undefine", "other")
            number = two.a.written("vm")
            two.a.wait_written("vm", number + 40)
            two.clean_log = False  # the refusal is in it
            two.end(two.a, owner=owner_at_end)


configured("virtlockd, direct leases", short=True, qemu_conf=('lock_manager = "lockd"',))
configured("virtlockd, a lockspace on the datastore", qemu_conf=('lock_manager = "lockd"',), lockd_conf=('file_lockspace_dir = "VMS/leases"',))
configured("remember_owner = 0", qemu_conf=("remember_owner = 0",))
configured("dynamic_ownership = 0", owner=(QEMU_USER, 107), owner_at_end=(QEMU_USER, 107), qemu_conf=("dynamic_ownership = 0",))


@case("a migration takes no longer than on a directory", limit=200)
def _(build):
    took = {}
    for kind in ("raw", "view"):
        with Two(build, kind=kind, clean_log=False) as two:
            if kind == "raw":  # libvirt takes it for local, so what owners it leaves is not looked at
                two.move = lambda source, to, *o: _timed(two, source, to)
            took[kind] = statistics.median(there_and_back(two, 5))
            two.end(two.a, owner=None)
    print("    median of a migration: %.2f s, on the directory %.2f s" % (took["view"], took["raw"]), flush=True)
    ok(took["view"] <= 1.2 * took["raw"] + 0.1, "a migration takes %.2f s, on the directory %.2f s" % (took["view"], took["raw"]))


def _timed(two, source, to):
    began = dgstack.now()
    source.virsh(*two.command(to))
    took = dgstack.now() - began
    number = to.written("vm")
    to.wait_written("vm", number + 40)
    return took


if __name__ == "__main__":
    dgstack.main(suite)
