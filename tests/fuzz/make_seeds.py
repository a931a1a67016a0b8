#!/usr/bin/env python3
"""make_seeds [--replay PROGRAM] DIRECTORY: small images of every format that the tools here can make, in the fuzzers' input form (sparse.h), as
DIRECTORY/FORMAT/LABEL. With PROGRAM (BUILD/tests/fuzz/fuzz_replay) each one also sealed.

To renew the corpora (corpus.py), with a build made by `CC=clang meson setup -Dfuzz=true -Db_lundef=false BUILD && ninja -C BUILD fuzz`:

    tests/fuzz/make_seeds.py --replay BUILD/tests/fuzz/fuzz_replay SEEDS
    tests/fuzz/corpus.py unpack CORPUS
    for f in all $(tests/fuzz/formats.py); do
        mkdir -p WORK/$f CORPUS/$f
        BUILD/tests/fuzz/fuzz_$f -timeout=5 -max_len=65536 -max_total_time=300 WORK/$f SEEDS/$f CORPUS/$f
        BUILD/tests/fuzz/fuzz_$f -timeout=5 -merge=1 CORPUS/$f SEEDS/$f WORK/$f
    done
    tests/fuzz/corpus.py pack CORPUS

What is in a corpus stays in it: an input that once crashed, under a name that says what it was, is a test. All inputs together stay
below 1 MiB: what is too much of one, and was never a crash, is removed before its -merge.
"""
import argparse
import os
import shutil
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from formats import formats  # noqa: E402  pylint: disable=wrong-import-position

FROM_END = 1 << 47
FIX = 1
PIECES = 60  # sparse.h takes 96: room for a seal and checksums
MOST = 48 << 10  # bytes of one seed
GAP = 24  # zeros that end a piece: more than its head
# Formats whose checksums are made right after each mutation.
SUMS = {"vpc", "vhdx", "luks"}
MiB = 1 << 20

# format: [(label, size, options)]
QEMU_IMG = {
    "qcow2": [("v3", "64M", ""), ("v2", "64M", "compat=0.10"), ("c512", "8M", "cluster_size=512"), ("c4k", "1G", "cluster_size=4k"),
              ("c2m", "10T", "cluster_size=2M"), ("ext-l2", "1G", "extended_l2=on"), ("lazy", "64M", "lazy_refcounts=on"), ("zstd", "64M", "compression_type=zstd"),
              ("ref1", "64M", "refcount_bits=1"), ("size0", "0", ""), ("full", "64M", "preallocation=metadata"), ("datafile", "64M", "data_file=DIR/data.raw,data_file_raw=on"),
              ("backing", None, "backing_file=DIR/base.raw,backing_fmt=raw"), ("backing-v2", None, "compat=0.10,backing_file=DIR/base.raw,backing_fmt=raw")],
    "qcow": [("plain", "64M", ""), ("large", "1T", ""), ("backing", "16M", "backing_file=DIR/base.raw")],
    "qed": [("plain", "64M", ""), ("c4k", "1G", "cluster_size=4k"), ("t16", "1T", "table_size=16"), ("backing", None, "backing_file=DIR/base.raw,backing_fmt=raw")],
    "vdi": [("dynamic", "64M", ""), ("odd", "67109376", ""), ("static", "8M", "static=on"), ("large", "100G", "")],
    "parallels": [("plain", "64M", ""), ("c64k", "64M", "cluster_size=64k"), ("large", "100G", "")],
    "vmdk": [("sparse", "64M", ""), ("large", "100G", "adapter_type=lsilogic"), ("stream", "64M", "subformat=streamOptimized"), ("flat", "64M", "subformat=monolithicFlat"),
             ("split-sparse", "5G", "subformat=twoGbMaxExtentSparse"), ("split-flat", "5G", "subformat=twoGbMaxExtentFlat"), ("zeroed", "64M", "zeroed_grain=on"),
             ("compat6", "64M", "compat6=on"), ("backing", None, "backing_file=DIR/base.vmdk,backing_fmt=vmdk")],
    "vpc": [("dynamic", "64M", ""), ("fixed", "8M", "subformat=fixed"), ("forced", "64M", "force_size=on"), ("fixed-forced", "8M", "subformat=fixed,force_size=on"), ("large", "100G", "")],
    "vhdx": [("dynamic", "64M", ""), ("fixed", "16M", "subformat=fixed"), ("b1m", "1G", "block_size=1M"), ("log4m", "64M", "log_size=4M"), ("large", "1T", "")],
    "luks": [("qemu", "8M", "key-secret=s0,iter-time=10"), ("qemu-plain", "8M", "key-secret=s0,iter-time=10,cipher-mode=cbc,ivgen-alg=plain64")],
}
CRYPTSETUP = [("luks1", ["--type", "luks1"]), ("luks1-align", ["--type", "luks1", "--align-payload", "8192"]), ("luks2", ["--type", "luks2"]),
              ("luks2-64k", ["--type", "luks2", "--luks2-metadata-size", "64k", "--luks2-keyslots-size", "512k"]),
              ("luks2-label", ["--type", "luks2", "--label", "a label", "--subsystem", "some", "--sector-size", "4096"])]


def data_runs(f, size):
    """(offset, bytes) of everything in the file that is not zero, cut where a run of zeros is long."""
    pos = 0
    while pos < size:
        try:
            pos = os.lseek(f.fileno(), pos, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(f.fileno(), pos, os.SEEK_HOLE)
        while pos < end:
            f.seek(pos)
            block = f.read(min(4096, end - pos))
            if block.count(block[:1]) < 4096:  # else guest data, or zeros
                yield from pieces_of(pos, block)
            pos += len(block)


def pieces_of(off, block):
    start = 0
    while True:
        while start < len(block) and block[start] == 0:
            start += 1
        if start == len(block):
            return
        end = block.find(bytes(GAP), start)
        end = len(block) if end < 0 else end
        yield off + start, block[start:end].rstrip(b"\0")
        start = end


def join(runs):
    """Neighbours become one piece."""
    out = []
    for off, data in runs:
        if out and off - (out[-1][0] + len(out[-1][1])) < GAP and len(out[-1][1]) + len(data) < 60000:
            out[-1] = (out[-1][0], out[-1][1] + bytes(off - out[-1][0] - len(out[-1][1])) + data)
        else:
            out.append((off, data))
    return out


def encode(path, options):
    """What lies at the end of the file counts from its end. Of too much, the first and the last is kept."""
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        runs = join(data_runs(f, size))
    tail = [r for r in runs if r[0] >= max(size - 2048, 2048)][-8:]
    head, room = [], MOST - sum(len(d) + 8 for _, d in tail)
    for off, data in runs:
        if (off, data) in tail or len(head) + len(tail) >= PIECES or room < 16:
            continue
        head.append((off, data[:room - 8]))
        room -= len(head[-1][1]) + 8
    out = struct.pack("<QQB", size, size & ~511, options)
    for off, data in head + [(size - off | FROM_END, data) for off, data in tail]:
        out += off.to_bytes(6, "little") + struct.pack("<H", len(data)) + data
    return out


def run(*command):
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False).returncode == 0


def qemu_images(name, folder):
    secret = ["--object", "secret,id=s0,data=fuzz"] if name == "luks" else []
    for label, size, options in QEMU_IMG.get(name, []):
        path = os.path.join(folder, "image." + name)
        command = ["qemu-img", "create", *secret, "-f", name, *(["-o", options.replace("DIR", folder)] if options else []), path, *([size] if size else [])]
        if not run(*command):
            print("make_seeds: qemu-img here cannot make %s-%s" % (name, label), file=sys.stderr)
            continue
        yield label, path
        if name in ("qcow2", "vpc", "vhdx", "vdi", "qed", "qcow", "parallels") and label in ("v3", "dynamic", "plain") and \
                run("qemu-io", "-f", name, "-c", "write -P 7 3M 192k", path):
            yield label + "-written", path
        if name == "qcow2" and label == "v3" and run("qemu-img", "snapshot", "-c", "s", path) and run("qemu-img", "bitmap", "--add", path, "b"):
            yield "snapshot-bitmap", path
        for extent in sorted(os.listdir(folder)):
            if extent.startswith("image-"):
                yield label + "-" + extent[6:].split(".")[0], os.path.join(folder, extent)
                os.unlink(os.path.join(folder, extent))
        os.unlink(path)


def luks_images(folder):
    path, key = os.path.join(folder, "image.luks"), os.path.join(folder, "key")
    with open(key, "w", encoding="ascii") as f:
        f.write("fuzz")
    for label, options in CRYPTSETUP:
        with open(path, "wb") as f:
            f.truncate(24 * MiB)
        if not run("cryptsetup", "luksFormat", "-q", "--key-file", key, "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", *options, path):
            print("make_seeds: cryptsetup here cannot make " + label, file=sys.stderr)
            continue
        yield label, path


def partition(status, kind, start, length):
    return bytes([status, 0, 2, 0, kind, 0xff, 0xff, 0xff]) + struct.pack("<II", start, length)


def raw_images(folder):
    path = os.path.join(folder, "image.raw")
    tables = {"mbr": [partition(0x80, 0x83, 2048, 129024)], "gpt": [partition(0, 0xee, 1, 131071)],
              "mbr4": [partition(0, 0x83, 2048 * (i + 1), 2048) for i in range(4)], "fat": [b"\xf8no table at all!"[:16]]}
    for label, entries in tables.items():
        with open(path, "wb") as f:
            f.write(b"\xeb\x63\x90")
            f.seek(446)
            f.write(b"".join(entries).ljust(64, b"\0") + b"\x55\xaa")
            f.truncate(64 * MiB)
        yield label, path


def iso_images(folder):
    """ECMA-119 8.4: a primary volume descriptor, and a terminator; with and without an MBR in front (isohybrid)."""
    path = os.path.join(folder, "image.iso")
    both16 = lambda v: struct.pack("<H", v) + struct.pack(">H", v)  # noqa: E731  pylint: disable=unnecessary-lambda-assignment
    both32 = lambda v: struct.pack("<I", v) + struct.pack(">I", v)  # noqa: E731  pylint: disable=unnecessary-lambda-assignment
    record = bytes([34, 0]) + both32(18) + both32(2048) + bytes(7) + b"\x02\0\0" + both16(1) + b"\x01\0"
    pvd = (b"\x01CD001\x01\0" + b"LINUX".ljust(32) + b"SEED".ljust(32) + bytes(8) + both32(176) + bytes(32) + both16(1) + both16(1) + both16(2048) + both32(10) +
           struct.pack("<II", 19, 0) + struct.pack(">II", 20, 0) + record + b" " * 128 * 4 + b" " * 37 * 3 + b"2026010100000000\0" * 4 + b"\x01\0")
    for label, mbr in (("plain", b""), ("hybrid", bytes(446) + partition(0x80, 0x17, 1, 703).ljust(64, b"\0") + b"\x55\xaa")):
        with open(path, "wb") as f:
            f.write(mbr)
            f.seek(16 * 2048)
            f.write(pvd.ljust(2048, b"\0") + b"\xffCD001\x01".ljust(2048, b"\0"))
            f.truncate(176 * 2048)
        yield label, path


def images(name, folder):
    yield from qemu_images(name, folder)
    if name == "luks" and shutil.which("cryptsetup"):
        yield from luks_images(folder)
    if name == "raw":
        yield from raw_images(folder)
    if name == "iso":
        yield from iso_images(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replay", metavar="PROGRAM")
    parser.add_argument("directory")
    args = parser.parse_args()
    everything = os.path.join(args.directory, "all")
    os.makedirs(everything, exist_ok=True)
    for name in formats():
        out = os.path.join(args.directory, name)
        os.makedirs(out, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "base.raw"), "wb") as f:
                f.truncate(16 * MiB)
            run("qemu-img", "create", "-f", "vmdk", os.path.join(folder, "base.vmdk"), "16M")
            for label, path in images(name, folder):
                seed = os.path.join(out, label)
                with open(seed, "wb") as f:
                    f.write(encode(path, FIX if name in SUMS else 0))
                if args.replay and not run(args.replay, "--seal", name, seed, seed + "-sealed"):
                    print("make_seeds: %s/%s is not an image that can be sealed" % (name, label), file=sys.stderr)
        seeds = os.listdir(out)
        for seed in seeds:
            shutil.copy(os.path.join(out, seed), os.path.join(everything, name + "-" + seed))
        print("%s: %d seeds" % (name, len(seeds)))


if __name__ == "__main__":
    main()
