#!/usr/bin/env python3
"""test_far: images whose header has parts far from the start of the file, or a footer that moves: what programs do to them that know nothing of it.

The formats' own writers are in test_formats; here are copies in every block size, another format written over a held one, sizes that change under a footer.
"""
import errno
import os

from dgqemu import no_lock
from dgtest import Suite, eq, must, ok, pair, raises, read_at, run, sha, small_fs

suite = Suite(__file__)
RDWR = os.O_RDWR
IMAGES = {"vhdx": (), "vpc": (), "fixed": ("-o", "subformat=fixed,force_size=on"), "vmdk": (), "vdi": (), "qed": (), "parallels": (), "qcow2": ()}


def make(path, kind, size="8M"):
    fmt = "vpc" if kind == "fixed" else kind
    must("qemu-img", "create", "-q", "-f", fmt, *IMAGES[kind], path, size)
    must("qemu-io", "-f", fmt, "-c", "write -P 3 1M 2M", path)
    return path


def copies(source, target):
    yield "cp", source, target
    yield "cp", "--sparse=always", "--reflink=never", source, target
    for size in ("1M", "100000", "64k"):
        yield "dd", "if=" + source, "of=" + target, "bs=" + size, "status=none"


@suite.case("copied into a view in every way")
def copied(build):
    with pair(build, settled=False) as p:
        for kind in IMAGES:
            source = make(os.path.join(p.ds.base, "source." + kind), kind)
            for k, command in enumerate(copies(source, p.a.path("copy." + kind))):
                must(*command)
                p.ds.wait_free("copy." + kind)
                eq(sha(p.ds.raw("copy." + kind)), sha(source), "%s, way %d" % (kind, k))
                os.unlink(p.a.path("copy." + kind))


@suite.case("another format written over a held image")
def overwritten(build):
    with pair(build, settled=False) as p:
        for old in ("vmdk", "vpc", "qcow2"):
            for new in ("vhdx", "vpc", "vmdk"):
                if old == new:
                    continue
                name = "%s-%s" % (old, new)
                make(p.ds.raw(name), old)
                source = make(os.path.join(p.ds.base, name), new)
                held = os.open(p.a.path(name), RDWR)
                start = read_at(source, 0, 65536)
                os.pwrite(held, start, 0)
                eq(read_at(p.a.path(name), 0, 65536), start, name + ": what its host sees")
                eq(read_at(p.b.path(name), 0, 65536), start, name + ": what the other host sees")
                info = run("qemu-img", "info", "-U", p.ds.raw(name))
                ok(info.code != 0 or "file format: raw" not in info.out, "%s: its magic is broken on the datastore: %r" % (name, info))
                os.close(held)
                p.ds.wait_free(name)
                eq(read_at(p.ds.raw(name), 0, 65536), start, name + ": afterwards")


def footer_at(footer, size):
    """A fixed VHD's footer for a disk of that many bytes: CurrentSize and checksum (VHD specification, Hard Disk Footer Format)."""
    f = bytearray(footer)
    f[48:56] = size.to_bytes(8, "big")
    f[64:68] = bytes(4)
    f[64:68] = (~sum(f) & 0xffffffff).to_bytes(4, "big")
    return bytes(f)


@suite.case("a fixed VHD grows: the new footer is sealed before it is there")
def fixed_grows(build):
    with pair(build, settled=False) as p:
        raw = make(p.ds.raw("f.vhd"), "fixed")
        end = os.path.getsize(raw) - 512
        footer = read_at(raw, end, 512)
        for k, (truncate, mbr) in enumerate(((True, False), (False, False), (True, True))):
            if mbr:  # a partition table, as guests have it: without its footer the file is a raw image
                must("qemu-io", "-f", "raw", "-c", "write -P 0x55 510 1", "-c", "write -P 0xaa 511 1", "-c", "write -P 0x83 450 1",
                     "-c", "write -P 1 454 1", "-c", "write -P 1 458 1", raw)
            held = os.open(p.a.path("f.vhd"), RDWR)
            new = end + ((k + 1) << 20)
            if truncate:
                os.ftruncate(held, new + 512)
            os.pwrite(held, footer_at(footer, new), new)
            run_raw = run("qemu-img", "info", *no_lock(raw, "vpc"))
            ok(run_raw.code != 0, "the raw file opens while it is held: %r" % run_raw)
            eq(os.pread(held, 512, new), footer_at(footer, new), "what the holder sees")
            os.close(held)
            p.ds.wait_free("f.vhd")
            eq(read_at(raw, new, 512), footer_at(footer, new), "the footer afterwards")
            must("qemu-img", "info", "-f", "vpc", raw)


@suite.case("a plain file becomes an image where no write is looked at")
def far_magic(build):
    with pair(build, settled=False) as p:
        for name, data in (("n.iso", bytes(0x8000) + b"\1CD001\1\0" + b"x" * 2040), ("f.vhd", None)):
            if data is None:
                with open(make(os.path.join(p.ds.base, name), "fixed"), "rb") as f:
                    data = f.read()
            f = os.open(p.a.path(name), RDWR | os.O_CREAT, 0o644)
            os.pwrite(f, data[4096:], 4096)
            os.ftruncate(f, len(data) + 8192)
            os.ftruncate(f, len(data))
            os.pwrite(f, data[-512:], len(data) - 512)
            raises(errno.EBUSY, os.open, p.b.path(name), RDWR)
            os.close(f)
            p.ds.wait_free(name)
            eq(read_at(p.ds.raw(name), 4096, len(data)), data[4096:], name)


@suite.case("an allocation that does not fit changes nothing")
def no_room(build):
    with small_fs(64) as base, pair(build, base=base, settled=False) as p:
        for kind in ("qcow2", "vpc", "vhdx"):
            raw = make(p.ds.raw(kind), kind)
            before = os.stat(raw)
            held = os.open(p.a.path(kind), RDWR)
            raises(errno.ENOSPC, os.posix_fallocate, held, 0, 1 << 30)
            eq(os.fstat(held).st_size, before.st_size, kind + ": the size")
            os.close(held)
            p.ds.wait_free(kind)
            after = os.stat(raw)
            eq((after.st_size, after.st_blocks <= before.st_blocks + 64), (before.st_size, True), kind + ": what it takes")
            held = os.open(p.a.path(kind), RDWR)
            os.posix_fallocate(held, 0, before.st_size + 65536)
            eq(os.fstat(held).st_size, before.st_size + 65536, kind + ": the size of one that fits")
            os.close(held)
            p.ds.wait_free(kind)


@suite.case("a reader on another host while a dynamic VHD grows")
def grows(build):
    with pair(build, settled=False) as p:
        raw = p.ds.raw("d.vhd")
        must("qemu-img", "create", "-q", "-f", "vpc", raw, "64M")
        reader = os.open(p.b.path("d.vhd"), os.O_RDONLY)
        qemu = ("qemu-io", "-f", "vpc", p.a.path("d.vhd"))
        for k in range(6):
            must(*qemu, "-c", "write -P %d %dM 2M" % (k + 1, 8 * k))
            size = os.path.getsize(raw)
            for off in (0, size - 512):
                eq(os.pread(reader, 8, off), b"conectix", "footer at %d" % off)
                ok(b"SEALED" not in os.pread(reader, 512, off), "sealed bytes through the other host's view")
        os.close(reader)
        p.ds.wait_free("d.vhd")


if __name__ == "__main__":
    suite.main()
