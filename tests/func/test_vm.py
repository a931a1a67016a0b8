#!/usr/bin/env python3
"""test_vm: real virtual machines (qemu-system-x86_64, TCG) on images behind the guard. guestboot.py is the guest."""
import os
import shutil

import guestboot
from dgqemu import Vm
from dgtest import Suite, eq, is_sealed, must, ok, pair, read_at, wait_for

suite = Suite(__file__, also=("tsan",))
SIZE = 64 << 20


def boot_image(path, fmt="qcow2", options=""):
    """An image whose disk boots guestboot's sector."""
    with open(path + ".boot", "wb") as f:
        f.write(guestboot.sector().ljust(1 << 20, b"\0"))
    must("qemu-img", "convert", "-f", "raw", "-O", fmt, *(("-o", options) if options else ()), path + ".boot", path)
    must("qemu-img", "resize", "-q", "-f", fmt, path, SIZE)
    os.unlink(path + ".boot")


def drive(path, fmt="qcow2"):
    return ["-drive", "file=%s,format=%s,if=ide,id=disk,cache=none" % (path, fmt)]


def boots_of(path):
    """How often the guest of an image has booted, from the counter that it keeps on its disk; checks the marker."""
    out = path + ".raw"
    must("qemu-img", "convert", "-O", "raw", path, out)
    try:
        eq(read_at(out, guestboot.MARKER_OFFSET, len(guestboot.MARKER)), guestboot.MARKER, "marker of the guest")
        return int.from_bytes(read_at(out, guestboot.COUNTER_OFFSET, 2), "little")
    finally:
        os.unlink(out)


def refused_second(p, name):
    """Another virtual machine on the same image does not start, through either view, nor on the raw file."""
    for number, path in enumerate((p.a.path(name), p.b.path(name), p.ds.raw(name))):
        with Vm(p.ds.base, "second%d" % number, drive(path), "-S") as second:
            ok(not second.connect(), "a second virtual machine started on " + path)
            wanted = ("Device or resource busy", "lock") if number < 2 else ("too big", "Unsupported", "lock")
            ok(any(w in second.error() for w in wanted), "why it did not start: " + second.error())


def add(compat):
    @suite.case("a virtual machine boots, is refused twice, resets, resizes, saves, quits (compat=%s)" % compat)
    def _(build):
        with pair(build, "wait=1") as p:
            raw = p.ds.raw("vm.qcow2")
            boot_image(raw, options="compat=" + compat)
            shutil.copyfile(raw, os.path.join(p.ds.base, "copy.qcow2"))
            with Vm(p.ds.base, "vm", drive(p.a.path("vm.qcow2"))) as vm:
                ok(vm.connect(), "QEMU does not start: " + vm.error())
                vm.wait_said("BW")
                ok(is_sealed(raw), "sealed while the machine runs")
                refused_second(p, "vm.qcow2")
                vm.qmp("system_reset")
                vm.wait_said("BWBW")
                vm.qmp("block_resize", device="disk", size=2 * SIZE)
                must("qemu-img", "info", "-U", p.b.path("vm.qcow2"))
                vm.hmp("savevm one")
                vm.qmp("system_reset")
                vm.wait_said("BWBWBW")
                vm.hmp("loadvm one")
                vm.hmp("delvm one")
                ok(is_sealed(raw), "still sealed")
                vm.quit()
            p.ds.wait_free("vm.qcow2")
            must("qemu-img", "check", "-q", raw)
            ok("(%d bytes)" % (2 * SIZE) in must("qemu-img", "info", raw), "the new size")
            eq(boots_of(raw), 2, "boots at the snapshot that was loaded")
            with Vm(p.ds.base, "again", drive(p.b.path("vm.qcow2"))) as vm:
                ok(vm.connect(), "QEMU does not start on the other host: " + vm.error())
                vm.wait_said("BW")
                vm.quit()
            p.ds.wait_free("vm.qcow2")
            eq(boots_of(raw), 3)


for version in ("1.1", "0.10"):
    add(version)


@suite.case("a killed QEMU leaves a restored image that boots again")
def _(build):
    with pair(build, "wait=5") as p:
        boot_image(p.ds.raw("vm.qcow2"), options="lazy_refcounts=on")
        with Vm(p.ds.base, "vm", drive(p.a.path("vm.qcow2"))) as vm:
            ok(vm.connect(), vm.error())
            vm.wait_said("BW")
            vm.p.kill()
            vm.p.wait()
        with Vm(p.ds.base, "again", drive(p.b.path("vm.qcow2"))) as vm:  # waits for the release
            ok(vm.connect(), vm.error())
            vm.wait_said("BW")
            vm.quit()
        p.ds.wait_free("vm.qcow2")
        eq(boots_of(p.ds.raw("vm.qcow2")), 2)


@suite.case("a raw disk: one virtual machine at a time, by claim alone")
def _(build):
    with pair(build, "wait=1") as p:
        boot_image(p.ds.raw("vm.img"), "raw")
        with Vm(p.ds.base, "vm", drive(p.a.path("vm.img"), "raw")) as vm:
            ok(vm.connect(), vm.error())
            vm.wait_said("BW")
            with Vm(p.ds.base, "second", drive(p.b.path("vm.img"), "raw"), "-S") as second:
                ok(not second.connect(), "a second machine started")
                ok("busy" in second.error(), second.error())
            vm.quit()
        wait_for(lambda: p.ds.claim_of("vm.img") == "free", "released")


@suite.case("live migration between two hosts over two views hands the image over")
def _(build):
    with pair(build, "wait=10") as p:
        boot_image(p.ds.raw("vm.qcow2"))
        target = "unix:" + os.path.join(p.ds.base, "migrate.sock")
        with Vm(p.ds.base, "source", drive(p.a.path("vm.qcow2"))) as source, \
                Vm(p.ds.base, "target", drive(p.b.path("vm.qcow2")), "-incoming", target) as dest:
            ok(source.connect(), source.error())
            ok(dest.connect(), "the destination does not start while the source holds the image: " + dest.error())
            source.wait_said("BW")
            source.qmp("migrate", uri=target)
            wait_for(lambda: source.qmp("query-migrate").get("status") in ("completed", "failed"), "the migration ends", 60)
            eq(source.qmp("query-migrate")["status"], "completed")
            wait_for(lambda: dest.qmp("query-status")["status"] == "running", "the destination runs", 60)
            claim = next(c for c in p.ds.claims().values() if c["state"] != "free")
            eq(claim["host"], p.b.host.uuid, "holder after the hand-over")
            ok(is_sealed(p.ds.raw("vm.qcow2")), "sealed for the new holder")
            dest.qmp("system_reset")
            wait_for(lambda: dest.said().endswith("BW"), "the guest boots at the destination", 60)
            source.quit()
            dest.quit()
        p.ds.wait_free("vm.qcow2")
        must("qemu-img", "check", "-q", p.ds.raw("vm.qcow2"))
        eq(boots_of(p.ds.raw("vm.qcow2")), 2)


if __name__ == "__main__":
    suite.main()
