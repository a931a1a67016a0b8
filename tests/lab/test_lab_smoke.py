#!/usr/bin/env python3
"""Smoke test in the lab: two real NFS clients, one image, one winner; the header is right on both, and comes back byte for byte."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import labhost
import dgtest
from dgtest import eq, ok

suite = dgtest.Suite(__file__, needs="hooks", always=True, seed=True)
VERSIONS = ("4.2", "3")  # a short run has one of them, by its seed: emulation takes long, and test_lab_nfs has both


def one_holder(build, version):
    lab = labhost.nfs_lab()
    site = labhost.Site(lab, version, build)
    header = site.image()
    a, b = site.view("A", "wait=2"), site.view("B", "wait=2")
    a.hold("x", "disk.qcow2")
    eq(b.guest.attempt("open_write", b.path("disk.qcow2")), labhost.EBUSY, "open for write on B while A holds")
    why = b.why("disk.qcow2")
    ok("A holds it for writing" in why, "diskguardctl why on B says who holds it: " + why)
    eq(b.guest.do("header", b.path("disk.qcow2")), header, "B's view of the header while A holds")
    ok(b.guest.do("header", site.raw("disk.qcow2", "B")) != header, "the raw header is sealed")
    r = b.guest.sh("qemu-img info %s" % site.raw("disk.qcow2", "B"))
    ok(r.code > 0, "a raw opener on B is refused: %r" % r)
    a.guest.do("put", "x", 1 << 20, "from A")
    a.guest.do("closed", "x")
    eq(b.guest.attempt("open_write", b.path("disk.qcow2")), 0, "open for write on B after A closed")
    site.wait_claim("disk.qcow2", guest="B")
    eq(b.guest.do("header", site.raw("disk.qcow2", "B")), header, "the raw header afterwards")
    site.close()


@suite.case("one holder at a time on NFS", limit=400)
def _(build):
    for version in VERSIONS if suite.args.long else (VERSIONS[suite.args.seed % 2],):
        one_holder(build, version)


if __name__ == "__main__":
    labhost.suite_main(suite)
