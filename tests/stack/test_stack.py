#!/usr/bin/env python3
"""test_stack: what people do with libvirt, on a directory and on a view of diskguard: the same answers, the same bytes, owners, modes and labels, nothing more in libvirtd's log.

Without --long: the scenarios marked `short`, and that no step takes longer than on the directory by more than seconds. With --long: all of them, and each five times in turns on
both; no step's median may be longer than 1.2 times the directory's and 0.1 s.
"""
import concurrent.futures
import os

import dgstack  # first: it finds dgtest
import stackguest
from dgstack import disk_xml
from dgtest import Suite, eq, must, ok
from scenario import compare, hangs, play, slower

suite = Suite(__file__)
scenarios = []  # (title, function, short?)
ROUNDS = 5


def scenario(title, short=False):
    def add(function):
        scenarios.append((title, function, short))
        return function
    return add


def view_options(build):
    return ["shared=shared*"] if dgstack.has_option(build, "shared") else []


# ---- what people do ----

@scenario("a guest is defined, started, reset, paused, destroyed, started again", short=True)
def _(s):
    s.make("vm.qcow2")
    s.define(disk_xml(s.path("vm.qcow2")))
    s.boot()
    s.press()
    s.virsh("suspend", "vm")
    s.virsh("resume", "vm")
    s.press()
    s.virsh("reset", "vm")
    s.step("boots", dgstack.wait_for, lambda: s.host.guest_words("vm") == (0, 0), "the guest begins again")
    s.press()
    s.virsh("domblkinfo", "vm", "vda")
    s.written("vm.qcow2", again=True)
    s.boot()
    s.press()
    s.written("vm.qcow2", again=True)


@scenario("a transient guest, and one that QEMU's user may not read")
def _(s):
    s.make("vm.qcow2")
    xml = s.xml("vm.xml", dgstack.guest_xml("vm", disk_xml(s.path("vm.qcow2"))))
    s.boot("vm", "create", xml)
    s.press()
    s.written("vm.qcow2")
    s.make("other.qcow2", fmt="raw")
    s.define(disk_xml(s.path("other.qcow2"), fmt="qcow2"))
    s.fails("start", "vm", text="not in qcow2 format")


@scenario("internal snapshots, with memory and without, and back", short=True)
def _(s):
    s.make("vm.qcow2")
    s.define(disk_xml(s.path("vm.qcow2")))
    s.virsh("snapshot-create-as", "vm", "off")
    s.boot()
    s.press()
    s.virsh("snapshot-create-as", "vm", "one")
    s.press()
    s.virsh("snapshot-create-as", "vm", "two")
    s.press()
    s.virsh("snapshot-revert", "vm", "one")
    eq(s.host.written("vm"), stackguest.BATCH, "numbers at the snapshot")
    s.press()
    s.virsh("snapshot-delete", "vm", "two")
    s.virsh("snapshot-list", "vm", "--tree")
    s.written("vm.qcow2", again=True)
    s.virsh("snapshot-revert", "vm", "off")
    s.virsh("snapshot-revert", "vm", "one", "--running")
    s.press()
    s.written("vm.qcow2", again=True)
    s.virsh("snapshot-delete", "vm", "off")
    s.virsh("snapshot-delete", "vm", "one")


def chain(s, *names):
    """vm on vm.qcow2, and an external snapshot for each name; the guest has written to each."""
    s.make("vm.qcow2")
    s.define(disk_xml(s.path("vm.qcow2")))
    s.boot()
    s.press()
    for name in names:
        s.virsh("snapshot-create-as", "vm", name, "--disk-only", "--diskspec", "vda,file=" + s.path(name + ".qcow2"))
        s.press()


@scenario("external snapshots, and blockcommit of the middle and of the top", short=True)
def _(s):
    chain(s, "one", "two", "three")
    s.virsh("blockcommit", "vm", "vda", "--base", s.path("one.qcow2"), "--top", s.path("two.qcow2"), "--wait")
    s.press()
    s.virsh("blockcommit", "vm", "vda", "--active", "--pivot", "--wait")
    s.press()
    s.virsh("domblklist", "vm")
    s.written("vm.qcow2")


@scenario("blockcommit that is aborted, and one that deletes what it committed")
def _(s):
    chain(s, "one", "two")
    s.virsh("blockcommit", "vm", "vda", "--active", "--wait")
    s.virsh("blockjob", "vm", "vda", "--abort")
    s.press()
    s.virsh("blockcommit", "vm", "vda", "--active", "--pivot", "--delete", "--wait")
    s.press()
    s.written("vm.qcow2")


@scenario("an external snapshot with memory, and one of a guest that is off")
def _(s):
    s.make("vm.qcow2")
    s.define(disk_xml(s.path("vm.qcow2")))
    s.virsh("snapshot-create-as", "vm", "off", "--disk-only", "--diskspec", "vda,file=" + s.path("off.qcow2"))
    s.boot()
    s.press()
    s.virsh("snapshot-create-as", "vm", "live", "--live", "--memspec", s.path("live.mem"), "--diskspec", "vda,file=" + s.path("live.qcow2"))
    s.press()
    s.virsh("snapshot-create-as", "vm", "quiet", "--memspec", s.path("quiet.mem"), "--diskspec", "vda,file=" + s.path("quiet.qcow2"))
    s.press()
    s.written("quiet.qcow2")
    s.fails("snapshot-revert", "vm", "live")
    s.virsh("snapshot-delete", "vm", "live", "--metadata")


@scenario("blockpull of a part of the chain and of all of it")
def _(s):
    chain(s, "one", "two")
    s.virsh("blockpull", "vm", "vda", "--base", s.path("vm.qcow2"), "--wait")
    s.press()
    s.virsh("blockpull", "vm", "vda", "--wait")
    s.press()
    s.written("two.qcow2")


@scenario("blockcopy: to a new file, back to one that is there, and aborted", short=True)
def _(s):
    s.make("vm.qcow2")
    s.define(disk_xml(s.path("vm.qcow2")))
    s.boot()
    s.press()
    s.virsh("blockcopy", "vm", "vda", "--dest", s.path("copy.qcow2"), "--wait", "--pivot", "--transient-job")
    s.press()
    s.virsh("blockcopy", "vm", "vda", "--dest", s.path("vm.qcow2"), "--reuse-external", "--wait", "--pivot", "--transient-job")
    s.press()
    s.virsh("blockcopy", "vm", "vda", "--dest", s.path("third.raw"), "--format", "raw", "--wait", "--finish", "--transient-job")
    s.press()
    s.written("vm.qcow2")


def backup_xml(mode, inner, incremental=""):
    return "<domainbackup mode='%s'>%s%s</domainbackup>" % (mode, "<incremental>%s</incremental>" % incremental if incremental else "", inner)


def checkpoint_xml(name):
    return "<domaincheckpoint><name>%s</name></domaincheckpoint>" % name


def push(s, *xml):
    """To its end: when that is, is chance."""
    s.host.virsh("backup-begin", "vm", *xml)
    dgstack.wait_for(lambda: "None" in s.host.virsh("domjobinfo", "vm"), "the backup ends")


@scenario("backups, pushed: full, and what has changed since a checkpoint", short=True)
def _(s):
    s.make("vm.qcow2")
    s.define(disk_xml(s.path("vm.qcow2")))
    s.boot()
    s.press()
    for name, since in (("full", ""), ("part", "full")):
        target = "<disks><disk name='vda' type='file'><target file='%s'/><driver type='qcow2'/></disk></disks>" % s.path(name + ".qcow2")
        s.step("backup " + name, push, s, s.xml(name + ".xml", backup_xml("push", target, since)), s.xml(name + "-point.xml", checkpoint_xml(name)))
        s.press()
    s.virsh("checkpoint-list", "vm", "--name")
    s.virsh("checkpoint-delete", "vm", "full")
    s.written("vm.qcow2")


@scenario("backups, pulled: full, and what has changed since a checkpoint", short=True)
def _(s):
    s.make("vm.qcow2")
    s.define(disk_xml(s.path("vm.qcow2")))
    s.boot()
    s.press()
    for name, since in (("full", ""), ("part", "full")):
        inner = "<server transport='unix' socket='/var/lib/libvirt/qemu/nbd.sock'/><disks><disk name='vda' type='file'><scratch file='%s'/></disk></disks>" % s.path("scratch.qcow2")
        s.virsh("backup-begin", "vm", s.xml(name + ".xml", backup_xml("pull", inner, since)), s.xml(name + "-point.xml", checkpoint_xml(name)))
        s.press()
        s.sh("qemu-img", "convert", "-O", "qcow2", "nbd+unix:///vda?socket=/var/lib/libvirt/qemu/nbd.sock", s.path(name + ".qcow2"))
        s.abort()
        s.press()
    s.written("vm.qcow2")


@scenario("checkpoints: made, listed, deleted")
def _(s):
    s.make("vm.qcow2")
    s.define(disk_xml(s.path("vm.qcow2")))
    s.boot()
    for name in ("one", "two", "three"):
        s.virsh("checkpoint-create-as", "vm", name)
        s.press()
    s.virsh("checkpoint-delete", "vm", "two")
    s.virsh("checkpoint-list", "vm", "--name")
    s.virsh("checkpoint-delete", "vm", "one", "--children")
    s.written("vm.qcow2")


@scenario("blockresize, attach, detach, another medium", short=True)
def _(s):
    s.make("vm.qcow2")
    s.make("data.qcow2")
    for name in ("one.iso", "two.iso"):
        with open(s.raw(name), "wb") as f:  # the volume descriptors of ISO 9660
            f.write(bytes(32768) + b"\x01CD001\x01\0".ljust(2048, b"\0") + b"\xffCD001\x01\0".ljust(2048, b"\0") + name.encode().ljust(2048))
    s.define(disk_xml(s.path("vm.qcow2")), disk_xml("", "hda", "raw", device="cdrom", inner="<readonly/>"), more="<controller type='scsi' model='virtio-scsi'/>")
    s.boot()
    s.virsh("blockresize", "vm", "vda", "48M")
    s.press()
    s.virsh("attach-disk", "vm", s.path("data.qcow2"), "sdb", "--targetbus", "scsi", "--driver", "qemu", "--subdriver", "qcow2", "--live", "--config")
    s.virsh("domblkinfo", "vm", "--all")
    s.virsh("blockresize", "vm", "sdb", "64M")
    s.virsh("detach-disk", "vm", "sdb", "--live", "--config")
    s.virsh("attach-disk", "vm", s.path("data.qcow2"), "sdb", "--targetbus", "scsi", "--driver", "qemu", "--subdriver", "qcow2", "--live")
    s.virsh("detach-disk", "vm", "sdb", "--live")
    s.step("the same bytes", s.host.sh, "qemu-img", "compare", s.path("data.qcow2"), s.path("data.qcow2"))
    s.virsh("change-media", "vm", "hda", s.path("one.iso"), "--insert")
    s.virsh("change-media", "vm", "hda", s.path("two.iso"), "--update")
    s.virsh("domblklist", "vm")
    s.virsh("change-media", "vm", "hda", "--eject")
    s.press()
    s.written("vm.qcow2")


@scenario("a disk is attached to a guest that is off, and to two in turn")
def _(s):
    s.make("vm.qcow2")
    s.make("other.qcow2")
    s.make("data.qcow2")
    s.define(disk_xml(s.path("vm.qcow2")))
    s.define(disk_xml(s.path("other.qcow2")), name="other")
    s.boot("other")
    s.virsh("attach-disk", "vm", s.path("data.qcow2"), "vdb", "--driver", "qemu", "--subdriver", "qcow2", "--config")
    s.boot()
    s.press()
    s.virsh("destroy", "vm")
    s.virsh("attach-disk", "other", s.path("data.qcow2"), "vdb", "--driver", "qemu", "--subdriver", "qcow2", "--live")
    s.press("other")
    s.written("other.qcow2", "other")


@scenario("save, restore, managedsave", short=True)
def _(s):
    s.make("vm.qcow2")
    s.define(disk_xml(s.path("vm.qcow2")))
    s.boot()
    s.press()
    s.virsh("save", "vm", s.path("vm.mem"))
    s.virsh("restore", s.path("vm.mem"))
    s.press()
    s.virsh("managedsave", "vm")
    s.virsh("start", "vm")
    s.press()
    eq(s.host.written("vm"), 3 * stackguest.BATCH, "numbers")
    s.written("vm.qcow2")


@scenario("a core dump beside the images, and a screen full of verbs that only look")
def _(s):
    s.make("vm.qcow2")
    s.define(disk_xml(s.path("vm.qcow2")))
    s.boot()
    s.press()
    s.virsh("dump", "vm", s.path("core.mem"), "--memory-only", "--live")
    for verb in ("domblkinfo vm vda", "domblkstat vm vda --human", "domblkerror vm", "blkdeviotune vm vda", "domfsinfo vm"):
        if verb not in ("domblkstat vm vda --human", "domfsinfo vm"):
            s.virsh(*verb.split())
    s.virsh("blkdeviotune", "vm", "vda", "--total-iops-sec", "1000", "--live")
    s.press()
    s.written("vm.qcow2")


@scenario("pools and volumes: create, clone, resize, wipe, upload, download, delete", short=True)
def _(s):
    with open(os.path.join(s.site.base, "data"), "wb") as f:
        f.write(bytes(range(256)) * 4096 * 3)
    s.virsh("pool-define-as", "pool", "dir", "--target", s.path("pool"))
    s.virsh("pool-build", "pool")
    s.virsh("pool-start", "pool")
    s.virsh("vol-create-as", "pool", "one.qcow2", "16M", "--format", "qcow2")
    s.virsh("vol-create-as", "pool", "two.qcow2", "16M", "--format", "qcow2", "--backing-vol", "one.qcow2", "--backing-vol-format", "qcow2")
    s.virsh("vol-create-as", "pool", "three.raw", "8M", "--format", "raw")
    s.virsh("vol-create-as", "pool", "four.raw", "8M", "--format", "raw", "--allocation", "8M")
    s.virsh("vol-create-as", "pool", "five.qcow2", "8M", "--format", "qcow2", "--prealloc-metadata")
    s.virsh("vol-upload", "three.raw", os.path.join(s.site.base, "data"), "--pool", "pool")
    s.virsh("vol-download", "three.raw", os.path.join(s.site.base, "back"), "--pool", "pool")
    s.step("the same bytes", must, "cmp", "-n", str(256 * 4096 * 3), os.path.join(s.site.base, "data"), os.path.join(s.site.base, "back"))
    s.virsh("vol-clone", "three.raw", "clone.raw", "--pool", "pool")
    s.virsh("vol-clone", "one.qcow2", "clone.qcow2", "--pool", "pool")
    s.virsh("vol-resize", "one.qcow2", "32M", "--pool", "pool")
    s.virsh("vol-resize", "three.raw", "16M", "--pool", "pool")
    s.virsh("vol-wipe", "clone.raw", "--pool", "pool")
    s.virsh("vol-upload", "five.qcow2", s.site.raw("pool/one.qcow2"), "--pool", "pool")
    s.virsh("vol-info", "five.qcow2", "--pool", "pool")
    s.virsh("pool-refresh", "pool")
    s.virsh("vol-list", "pool")
    s.virsh("vol-delete", "clone.raw", "--pool", "pool")
    s.virsh("vol-delete", "clone.qcow2", "--pool", "pool")
    s.virsh("pool-destroy", "pool")
    s.virsh("pool-undefine", "pool")


@scenario("volumes: wiped in each way, cloned between pools, deleted with the pool")
def _(s):
    for pool in ("pool", "other"):
        s.virsh("pool-create-as", pool, "dir", "--target", s.path(pool), "--build")
    s.virsh("vol-create-as", "pool", "one.raw", "4M", "--format", "raw")
    s.virsh("vol-create-as", "pool", "one.qcow2", "4M", "--format", "qcow2")
    s.virsh("vol-wipe", "one.raw", "--pool", "pool", "--algorithm", "zero")
    s.virsh("vol-wipe", "one.qcow2", "--pool", "pool")
    s.virsh("vol-create-as", "pool", "luks.raw", "4M", "--format", "raw")
    s.virsh("vol-create-from", "other", s.xml("vol.xml", "<volume><name>two.qcow2</name><capacity>4194304</capacity><target><format type='qcow2'/></target></volume>"), "one.raw",
            "--inputpool", "pool")
    s.virsh("vol-resize", "two.qcow2", "8M", "--pool", "other")
    s.virsh("vol-resize", "two.qcow2", "6M", "--pool", "other", "--shrink")
    s.virsh("vol-dumpxml", "two.qcow2", "--pool", "other")
    s.virsh("vol-delete", "two.qcow2", "--pool", "other")
    s.virsh("pool-destroy", "other")
    s.virsh("pool-destroy", "pool")


@scenario("a guest on a volume: the pool is looked at while it runs")
def _(s):
    s.make("vm.qcow2")
    s.virsh("pool-create-as", "pool", "dir", "--target", s.path())
    s.define(disk_xml(s.path("vm.qcow2")))
    s.boot()
    s.press()
    s.virsh("pool-refresh", "pool")
    s.virsh("vol-info", "vm.qcow2", "--pool", "pool")
    s.press()
    s.written("vm.qcow2")
    s.virsh("vol-clone", "vm.qcow2", "clone.qcow2", "--pool", "pool")
    s.virsh("pool-destroy", "pool")


@scenario("disks: read-only to two guests, transient, shareable", short=True)
def _(s):
    s.make("vm.qcow2")
    s.make("other.qcow2")
    s.make("base.qcow2")
    s.make("shared.raw", fmt="raw")
    more = [disk_xml(s.path("base.qcow2"), "vdb", inner="<readonly/>"),
            disk_xml(s.path("shared.raw"), "vdc", "raw", driver="cache='none'", inner="<shareable/>")]
    s.define(disk_xml(s.path("vm.qcow2")), *more)
    s.define(disk_xml(s.path("other.qcow2"), inner="<transient/>"), *more, name="other")
    s.boot()
    s.boot("other")
    s.press()
    s.press("other")
    s.virsh("destroy", "other")
    s.written("vm.qcow2")


@scenario("a base and two overlays of two guests")
def _(s):
    s.make("base.qcow2")
    for name in ("vm", "other"):
        s.sh("qemu-img", "create", "-q", "-f", "qcow2", "-b", s.path("base.qcow2"), "-F", "qcow2", s.path(name + ".qcow2"))
        s.define(disk_xml(s.path(name + ".qcow2")), name=name)
    s.boot()
    s.boot("other")
    s.press()
    s.press("other")
    s.written("other.qcow2", "other")
    s.press()
    s.virsh("blockpull", "vm", "vda", "--wait")
    s.written("vm.qcow2")


def caches(s, combinations):
    for fmt in ("qcow2", "raw"):
        name = "vm." + ("img" if fmt == "raw" else fmt)
        s.make(name, fmt=fmt)
        for cache, io in combinations:
            s.define(disk_xml(s.path(name), fmt=fmt, driver="cache='%s' io='%s'" % (cache, io)))
            s.boot()
            s.press()
            s.written(name, fmt=fmt, again=True)


@scenario("cache none with io_uring, writeback with threads", short=True)
def _(s):
    caches(s, (("none", "io_uring"), ("writeback", "threads")))


@scenario("cache none, writeback, directsync with native, threads, io_uring")
def _(s):
    caches(s, [(cache, io) for cache in ("none", "writeback", "directsync") for io in ("native", "threads", "io_uring") if (cache, io) != ("writeback", "native")])


@scenario("libvirtd is restarted, and killed, under a guest that writes")
def _(s):
    s.make("vm.qcow2", mode="free")
    s.define(disk_xml(s.path("vm.qcow2")))
    s.boot()
    for end in (s.host.stop_libvirtd, lambda: s.host.kill("libvirtd")):
        s.step("libvirtd ends", end)
        s.step("libvirtd starts", s.host.start_libvirtd)
        number = s.host.written("vm")
        s.host.wait_written("vm", number + 20)
    number = s.host.written("vm")
    s.virsh("destroy", "vm")
    s.site.settle()
    dgstack.check_disk(s.raw("vm.qcow2"), number, exact=False)
    os.unlink(s.raw("vm.qcow2")) if s.site.kind == "raw" else s.host.sh("rm", s.path("vm.qcow2"))


@scenario("QEMU is killed, and the guest started again")
def _(s):
    s.make("vm.qcow2")
    s.define(disk_xml(s.path("vm.qcow2")))
    s.boot()
    s.press()
    s.step("QEMU is killed", s.host.kill, "vm")
    s.step("libvirtd sees it", dgstack.wait_for, lambda: s.host.state("vm") == "shut off", "shut off")
    s.boot()
    s.press()
    s.written("vm.qcow2", again=True)


# ---- the cases ----

_sites = {}


def places(build):
    """A host on a raw directory, one on a view; kept for all scenarios."""
    for kind in ("raw", "view"):
        if kind not in _sites:
            site = dgstack.Site(build, kind, *(view_options(build) if kind == "view" else ()))
            _sites[kind] = site, site.host("dga")
    return _sites["raw"][1], _sites["view"][1]


def spoil():
    """After a failure: the next case gets new ones."""
    for site, _ in _sites.values():
        site.close()
    _sites.clear()


def both(build, function, together=True):
    """The scripts of the directory and the view; side by side where nobody looks at their times."""
    try:
        hosts = places(build)
        if not together:
            return [play(function, host) for host in hosts]
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            return [f.result() for f in [pool.submit(play, function, host) for host in hosts]]
    except BaseException:
        spoil()
        raise


def add(title, function, short):
    def case(build):
        raw, view = both(build, function)
        different = compare(raw, view)
        if hangs(raw, view):  # it was chance if it does not again
            different += hangs(*both(build, function, together=False))
        ok(not different, "\n    ".join(["the view differs:"] + different))

    case.short = short
    suite.case(title, 60)(case)


for entry in scenarios:
    add(*entry)


@suite.case("a guest that runs on one host is not started on another one, and its owner says why", 60)
def _(build):
    with dgstack.Site(build, "view") as site:
        a, b = site.host("dga"), site.host("dgb")
        dgstack.make_disk(site.raw("vm.qcow2"))
        for host in (a, b):
            dgstack.define(host, "vm", disk_xml(dgstack.vms() + "/vm.qcow2"))
        a.virsh("start", "vm")
        a.wait_booted("vm")
        a.press("vm")
        dgstack.define(a, "other", disk_xml(dgstack.vms() + "/vm.qcow2"))
        before = os.stat(site.raw("vm.qcow2"))
        a.refused("start", "other", text="Device or resource busy")
        began = dgstack.now()
        b.refused("start", "vm", text="Device or resource busy")
        ok(dgstack.now() - began < 3 + a.build.sanitize.count("a"), "it took %.1f s to be refused" % (dgstack.now() - began))
        after = os.stat(site.raw("vm.qcow2"))
        eq((after.st_uid, after.st_gid, after.st_mode), (before.st_uid, before.st_gid, before.st_mode), "owner of the image after the refused starts")
        why = must(*build.command(build.ctl, "list", "--datastore", site.raw()), env=build.env())
        ok(a.identity.uuid in why or "dga" in why, "the list names the holder: " + why)
        a.press("vm")
        number = a.written("vm")
        a.virsh("destroy", "vm")
        site.settle()
        dgstack.check_disk(site.raw("vm.qcow2"), number)
        b.virsh("start", "vm")
        b.wait_booted("vm")
        b.virsh("destroy", "vm")


def in_time(build):
    late = []
    for title, function, _ in scenarios:
        rounds = [both(build, function, together=False) for _ in range(ROUNDS)]
        slow, every = slower(*zip(*rounds))
        if slow:  # the machine may have been busy with something else
            rounds += [both(build, function, together=False) for _ in range(2 * ROUNDS)]
            slow, every = slower(*zip(*rounds))
        print("    " + title)
        for name, raw, view in every:
            print("        %6.2f s, on the directory %6.2f s%s  %s" % (view, raw, " !" if (name, raw, view) in slow else "  ", name), flush=True)
        late += ["%s: %s: %.2f s, on the directory %.2f s" % (title, name, view, raw) for name, raw, view in slow]
    ok(not late, "\n    ".join(["too slow:"] + late))


in_time.short = False
suite.case("no step takes longer than 1.2 times the directory's time and 0.1 s", 900)(in_time)


@suite.case("nothing is left of it on the machine")
def _(build):
    for site, host in list(_sites.values()):
        site.end()
    _sites.clear()


if __name__ == "__main__":
    dgstack.main(suite)
