#!/usr/bin/env python3
"""test_guard_qcow2: the guard, for every kind of qcow2 image.

For each cluster size, version and feature: qemu-io holds the image open for write through view A. Meanwhile every raw QEMU tool refuses, with QEMU's own
locks and without them, and changes no byte; view B refuses with EBUSY; readers of both views see the true size. After the
close the datastore holds byte for byte what the same commands leave on an unguarded copy.
"""
import os
import shutil

import dgtest
from dgqemu import QemuIo, make_qcow2, no_lock, qcow2_size
from dgtest import Suite, eq, is_sealed, must, ok, refused, sha, wait_for

suite = Suite(__file__)
shared = dgtest.SharedPair("wait=0")
SIZE = 24 << 20
# What raw QEMU tools say of a header that refuses (shared notes on formats: 2 MiB clusters complain of the L1 table).
REFUSAL = r"Image is too big|L1 table is too small|Unsupported qcow2 feature|Unknown incompatible feature|too large"
CLUSTERS = {"512": 512, "4K": 4096, "64K": 65536, "2M": 2 << 20}
COMMANDS = ["write -P 0x5a 0 128k", "write -P 0x11 1M 3000", "discard 0 64k", "write -z 2M 64k", "flush"]


def kinds():
    for cluster in CLUSTERS:
        for version in ("v2", "v3"):
            for feature in ("plain", "backing", "bitmap", "lazy_refcounts", "snapshot", "extended_l2"):
                if version == "v2" and feature in ("bitmap", "lazy_refcounts", "extended_l2"):
                    continue  # version 2 has no such feature
                if feature == "extended_l2" and CLUSTERS[cluster] < 16384:
                    continue  # needs clusters of 16 KiB or more
                yield cluster, version, feature


def make(folder, cluster, version, feature):
    """Makes img.qcow2 (and its backing file) in folder."""
    image = os.path.join(folder, "img.qcow2")
    options = "cluster_size=%s,compat=%s" % (cluster, "0.10" if version == "v2" else "1.1")
    if feature == "lazy_refcounts":
        options += ",lazy_refcounts=on"
    if feature == "extended_l2":
        options += ",extended_l2=on"
    extra = []
    if feature == "backing":
        make_qcow2(os.path.join(folder, "base.qcow2"), SIZE)
        must("qemu-io", "-c", "write -P 7 0 8M", os.path.join(folder, "base.qcow2"))
        extra = ["-b", "base.qcow2", "-F", "qcow2"]
    make_qcow2(image, SIZE, options, *extra)
    if feature == "bitmap":
        must("qemu-img", "bitmap", "--add", image, "b0")
    must("qemu-io", "-c", "write -P 3 4M 2M", image)
    if feature == "snapshot":
        must("qemu-img", "snapshot", "-c", "before", image)
    return image


def raw_tools(image, folder):
    """Command lines of raw tools, each with and without QEMU's own locking (so that the header alone must refuse)."""
    out = os.path.join(folder, "converted.raw")
    for where in ((image,), no_lock(image)):
        yield ("qemu-img", "info", *where)
        yield ("qemu-img", "check", *where)
        yield ("qemu-img", "check", "-r", "all", *where)
        yield ("qemu-img", "convert", "-O", "raw", *where, out)
        yield ("qemu-img", "resize", *where, str(2 * SIZE))
        yield ("qemu-img", "snapshot", *(where[:1] if len(where) > 1 else ()), "-c", "raw", where[-1])


def one(state, cluster, version, feature):
    ds, a, b = state.ds, state.a, state.b
    name = "%s-%s-%s" % (cluster, version, feature)
    folder = ds.raw(name)
    os.mkdir(folder)
    raw = make(folder, cluster, version, feature)
    copy = os.path.join(ds.base, "copy-" + name)
    shutil.copytree(folder, copy)
    through_a, through_b = a.path(name + "/img.qcow2"), b.path(name + "/img.qcow2")

    with QemuIo(through_a) as holder:
        for command in COMMANDS:
            holder.do(command)
        ok(is_sealed(raw), "the raw header is not sealed while the image is open for write")
        before = sha(raw)
        for argv in raw_tools(raw, folder):
            refused(*argv, text=REFUSAL if "--image-opts" in argv else "")
        eq(sha(raw), before, "raw tools changed the file")
        refused("qemu-io", "-c", "write 0 64k", through_b, text="Device or resource busy")
        refused("qemu-io", "-c", "write 0 64k", through_a, text="Device or resource busy|lock")
        for view in (through_a, through_b):
            info = must("qemu-img", "info", "-U", view)
            ok("(%d bytes)" % SIZE in info, "qemu-img info through a view shows another size: " + info)
            eq(qcow2_size(view), SIZE, "size in the header seen through a view")
        ok("wrote" in holder.do("write -P 0x77 8M 64k"), "the holder still writes")
        holder.close()

    with QemuIo(os.path.join(copy, "img.qcow2")) as unguarded:
        for command in [*COMMANDS, "write -P 0x77 8M 64k"]:
            unguarded.do(command)
        unguarded.close()
    wanted = sha(os.path.join(copy, "img.qcow2"))
    ds.wait_free(name + "/img.qcow2")
    eq(sha(raw), wanted, "the file after the close differs from an unguarded copy")
    for view in (through_a, through_b):
        wait_for(lambda v=view: sha(v) == wanted, "both views show the restored file", 5)
    must("qemu-img", "check", "-q", raw)
    must("qemu-io", "-c", "read -P 0x77 8M 64k", through_b)
    shutil.rmtree(copy)
    shutil.rmtree(folder)


def add(cluster, version, feature):
    @suite.case("%s clusters, %s, %s" % (cluster, version, feature))
    def _(build):
        one(shared.get(build), cluster, version, feature)


for kind in kinds():
    add(*kind)


@suite.case("both views end clean and fsck finds nothing")
def _(build):
    shared.get(build)
    shared.end()


if __name__ == "__main__":
    suite.main()
