#!/usr/bin/env python3
"""check_qcow2_seal: what QEMU makes of a sealed qcow2 image, and what we make of QEMU's images.

  check_qcow2_seal.py [BUILDDIR]

Makes every kind of qcow2 image that qemu-img knows, and checks for each that we recognise it with the size that qemu-img
reports; that every prefix of the seal is refused by every opener, without a byte changed; that the refusal names the holder;
and that unsealing gives the same bytes back. An opener's refusal counts only where the same command works on a true copy.
Then it replays the writes of qemu-img and qemu-io one by one, and checks that no state between two of them is one that
we would call broken. No daemon, no mount: the helper sealtool.c writes the plans. The last line is "N passed, N failed, N skipped".
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

from sealing import HOLDER, SECRET, content, declare, must, needs, plan_of, result, run, sealtool_from, summary

declare(memory=True)
OFF_ROW = 120  # first row of the feature name table that qemu-img 7.2 writes without a backing format


# ---- the kinds of images ----


class Kind:
    """options: for qemu-img create; then: commands on the image IMG; patch: edits of its bytes [(offset, bytes)]; table: it has feature
    names; shown: QEMU shows ours; rare: try the rare openers too; huge: what reads all of a true copy would take minutes."""

    def __init__(self, name, *options, size="8M", then=(), patch=(), secret=False, table=True, shown=True, rare=False, huge=False):
        self.name, self.options, self.size, self.then, self.patch = name, options, size, then, patch
        self.secret, self.table, self.shown, self.rare, self.huge = secret, table, table and shown, rare, huge


def row(type_, bit, name):
    return bytes([type_, bit]) + name.encode().ljust(46, b"\0")


FILL = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", "IMG"]
SNAP = ["qemu-img", "snapshot", "-c", "one", "IMG"]
BITMAP = ["qemu-img", "bitmap", "--add", "IMG", "b0"]


LUKS = "encrypt.format=luks,encrypt.key-secret=sec0,encrypt.iter-time=100"


def kinds():
    for bits in range(9, 22):
        yield Kind("cluster-%d" % (1 << bits), "-o", "cluster_size=%d" % (1 << bits), then=[FILL], table=bits > 12, rare=bits in (9, 16))
    for bits in (9, 12, 16, 21):
        yield Kind("v2-cluster-%d" % (1 << bits), "-o", "compat=0.10,cluster_size=%d" % (1 << bits), then=[FILL], table=False,
                   rare=bits == 16)
    yield Kind("v2-snapshot", "-o", "compat=0.10", then=[FILL, SNAP], table=False)
    yield Kind("v2-backing", "-o", "compat=0.10", "-b", "base.qcow2", "-F", "qcow2", table=False, rare=True)
    yield Kind("size-0", size="0")
    yield Kind("size-0-v2", "-o", "compat=0.10", size="0", table=False)
    yield Kind("size-0-small-clusters", "-o", "cluster_size=512", size="0", table=False)
    yield Kind("one-sector", size="512")
    yield Kind("16-TiB", size="16T", huge=True)
    yield Kind("2-EiB", "-o", "cluster_size=2M", size=str((1 << 61) - (1 << 30)), huge=True)
    yield Kind("32-GiB-of-512", "-o", "cluster_size=512", size="32G", table=False, huge=True)
    yield Kind("lazy-refcounts", "-o", "lazy_refcounts=on", then=[FILL])
    yield Kind("dirty", "-o", "lazy_refcounts=on", then=[FILL], patch=[(79, b"\x01")], rare=True)
    yield Kind("extended-l2", "-o", "extended_l2=on", then=[FILL])
    yield Kind("extended-l2-16K", "-o", "extended_l2=on,cluster_size=16k", size="4G", then=[FILL])
    yield Kind("extended-l2-backing", "-o", "extended_l2=on", "-b", "base.qcow2", "-F", "qcow2", then=[FILL])
    yield Kind("data-file", "-o", "data_file=data.raw", then=[FILL], rare=True)
    yield Kind("data-file-raw", "-o", "data_file=data.raw,data_file_raw=on", then=[FILL])
    yield Kind("backing", "-b", "base.qcow2", "-F", "qcow2", then=[FILL], rare=True)
    yield Kind("backing-raw", "-b", "base.raw", "-F", "raw")
    yield Kind("backing-4K", "-o", "cluster_size=4096", "-b", "base.qcow2", "-F", "qcow2", table=False)
    # qemu-img insists on a format for the backing file; older ones did not. The extension becomes one that nobody knows.
    yield Kind("backing-without-format", "-b", "base.qcow2", "-F", "qcow2", patch=[(112, b"none")])
    yield Kind("backing-long-name", "-u", "-b", "./" * 500 + "base.qcow2", "-F", "qcow2")
    # QEMU reads the encryption extension, which precedes the names, before it knows the method, and stops there: no name is shown
    yield Kind("luks", "-o", LUKS, secret=True, shown=False, rare=True)
    yield Kind("luks-512", "-o", LUKS + ",cluster_size=512", secret=True, table=False)
    yield Kind("aes", "-o", "encrypt.format=aes,encrypt.key-secret=sec0", secret=True)
    yield Kind("bitmap", then=[FILL, BITMAP], rare=True)
    yield Kind("bitmap-and-snapshot", then=[BITMAP, SNAP, FILL])
    yield Kind("bitmap-4K", "-o", "cluster_size=4096", then=[BITMAP], table=False)
    yield Kind("snapshots", then=[FILL, SNAP, ["qemu-img", "snapshot", "-c", "two", "IMG"], FILL], rare=True)
    yield Kind("prealloc-metadata", "-o", "preallocation=metadata")
    yield Kind("prealloc-falloc", "-o", "preallocation=falloc")
    yield Kind("prealloc-full", "-o", "preallocation=full")
    yield Kind("zstd", "-o", "compression_type=zstd", then=[FILL])
    yield Kind("compressed", then=[["qemu-io", "-f", "qcow2", "-c", "write -c -P 7 0 64k", "IMG"]])
    for bits in (1, 2, 64):
        yield Kind("refcount-%d" % bits, "-o", "refcount_bits=%d" % bits, then=[FILL])
    yield Kind("resized", then=[["qemu-img", "resize", "IMG", "9G"]])
    yield Kind("shrunk", size="9G", then=[["qemu-img", "resize", "--shrink", "IMG", "8M"]])
    yield Kind("amended-to-v2", then=[["qemu-img", "amend", "-o", "compat=0.10", "IMG"]], table=False)
    yield Kind("amended-to-v3", "-o", "compat=0.10", then=[["qemu-img", "amend", "-o", "compat=1.1", "IMG"]])
    # not made by QEMU, opened by QEMU: tables of other programs
    yield Kind("row-of-another-bit-63", patch=[(OFF_ROW + 2 * 48, row(0, 63, "not ours"))])
    yield Kind("row-without-a-name", patch=[(OFF_ROW + 3 * 48, row(0, 3, ""))])
    yield Kind("two-tables", patch=[(504, bytes.fromhex("6803f85700000060") + row(1, 0, "x") + row(1, 1, "y") + bytes(8))])
    yield Kind("table-removed", patch=[(112, bytes(8))], table=False)
    yield Kind("header-only", then=[["truncate", "-s", "512", "IMG"]])


def make(folder, kind):
    """The image's path. Each kind has a folder of its own, so that a copy of the folder is a copy of the image with all that it needs."""
    os.mkdir(folder)
    image = os.path.join(folder, "image.qcow2")
    if "base.qcow2" in " ".join(kind.options):
        must("qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "8M", cwd=folder)
        must("qemu-io", "-f", "qcow2", "-c", "write -P 9 2M 64k", "base.qcow2", cwd=folder)
    if "base.raw" in " ".join(kind.options):
        must("qemu-img", "create", "-q", "-f", "raw", "base.raw", "8M", cwd=folder)
    for last in (False, False, True):  # a loaded host lets LUKS fail: "Unable to get accurate CPU usage"
        code, out = run("qemu-img", "create", "-q", *(SECRET if kind.secret else []), "-f", "qcow2", *kind.options, "image.qcow2", kind.size,
                        cwd=folder)
        if code == 0:
            break
        if last:
            raise RuntimeError(out)
    for command in kind.then:
        must(*[image if word == "IMG" else word for word in command], cwd=folder)
    with open(image, "r+b") as f:
        for offset, data in kind.patch:
            f.seek(offset)
            f.write(data)
    return image


# ---- the openers ----


def openers(kind, image):
    """{name: command} of everything that may open an image."""
    out = os.path.dirname(image) + ".out"
    spec, alone = ["-f", "qcow2", image], [image]
    if kind.secret:
        spec = alone = [*SECRET, "--image-opts", "driver=qcow2,file.filename=%s,encrypt.key-secret=sec0" % image]
    found = {
        "info": ["qemu-img", "info", *spec],
        "convert": ["qemu-img", "convert", *spec, "-O", "qcow2", out],
        "check -r all": ["qemu-img", "check", "-r", "all", *spec],
        "open rw": ["qemu-io", *spec, "-c", "length"],
        "info probed": ["qemu-img", "info", image],
        "check": ["qemu-img", "check", *spec],
        "resize": ["qemu-img", "resize", *spec, "+64M"],
        "snapshot -c": ["qemu-img", "snapshot", "-c", "new", *alone],
        "amend": ["qemu-img", "amend", "-o", "compat=1.1", *spec],
        "rebase -u": ["qemu-img", "rebase", "-u", "-b", "", *spec],
    }
    if kind.rare:
        found.update({
            "info -U": ["qemu-img", "info", "-U", *spec],
            "open ro": ["qemu-io", "-r", *spec, "-c", "length"],
            "snapshot -l": ["qemu-img", "snapshot", "-l", *alone],
            "amend force": ["qemu-img", "amend", "--force", "-o", "lazy_refcounts=off", *spec],
            "bitmap": ["qemu-img", "bitmap", "--add", *spec, "new"],
            "map": ["qemu-img", "map", *spec],
            "measure": ["qemu-img", "measure", "-O", "qcow2", *spec],
            "overlay": ["qemu-img", "create", "-f", "qcow2", "-b", image, "-F", "qcow2", out],
        })
    if "-b" in kind.options:
        found["commit"] = ["qemu-img", "commit", *spec]
    return found


PREFIX = ("info", "convert", "check -r all", "open rw")  # the openers that are also tried on each prefix of the seal
ALWAYS = {"info", "open rw"}  # controls that must work, and one of CHANGING, or the test would prove nothing
CHANGING = {"resize", "amend", "rebase -u"}
LIGHT = {"info", "info probed", "open rw", "rebase -u"}  # those that are fast on a true image that is huge


def controls(kind, folder):
    """Names of the openers that work on a true copy: their refusal of a sealed one means something."""
    working, copy = set(), folder + ".control"
    truth = content(folder)
    for name, command in openers(kind, os.path.join(copy, "image.qcow2")).items():
        if kind.huge and name not in LIGHT:
            continue
        if not os.path.exists(copy):
            must("cp", "-r", "--sparse=always", folder, copy)
        code, _ = run(*command, cwd=copy)
        if code == 0 or (name.startswith("check") and code in (2, 3)):
            working.add(name)
        if content(copy) != truth:
            shutil.rmtree(copy)
    shutil.rmtree(copy, ignore_errors=True)
    return working


def refused(kind, folder, working, names, stage):
    """Every opener fails and changes nothing. Returns {name: the text of its refusal}."""
    before, texts = content(folder), {}
    for name, command in openers(kind, os.path.join(folder, "image.qcow2")).items():
        if names and name not in names:
            continue
        code, out = run(*command, cwd=folder)
        texts[name] = out
        if code == 0 or name in working or kind.huge:  # else it refuses the true image as well, which proves nothing
            result(code != 0, "%s: %s refuses %s" % (kind.name, name, stage), out)
        after = content(folder)
        result(after == before, "%s: %s changes no byte of %s" % (kind.name, name, stage), out)
        before = after
    return texts


# ---- one kind ----


def refusal(text):
    lines = [line for line in text.splitlines() if "Could not open" in line]
    return lines[0].split("': ", 1)[-1] if lines else text.strip()


def check_kind(sealtool, kind, folder):
    image = make(folder, kind)
    truth = content(folder)
    size = json.loads(must("qemu-img", "info", "--output=json", image))["virtual-size"]
    version = open(image, "rb").read(8)[7]
    plan = plan_of(sealtool, image)
    if not result(plan["verdict"] == "IMAGE" and plan["format"] == "qcow2", "%s: is an image" % kind.name, str(plan)):
        return
    result(plan["size"] == str(size), "%s: size" % kind.name, "%s, qemu-img says %d" % (plan["size"], size))
    expect = 1 if version == 2 else 3 if kind.table else 2
    result(len(plan["extents"]) == expect, "%s: %d extents" % (kind.name, expect), str(plan["extents"]))
    working = controls(kind, folder)
    result(ALWAYS <= working and CHANGING & working, "%s: the controls work" % kind.name, str(working))
    for n in range(1, len(plan["extents"]) + 1):
        must(sealtool, "seal", image, "refuse", HOLDER, str(n))
        last = n == len(plan["extents"])
        texts = refused(kind, folder, working, None if last else PREFIX, "the seal" if last else "its first %d extents" % n)
        result(plan_of(sealtool, image)["verdict"] == "SEALED", "%s: %d extents are a seal" % (kind.name, n))
        must(sealtool, "unseal", image)
        result(content(folder) == truth, "%s: unsealed after %d extents" % (kind.name, n))
    print("%-26s %2d/%d controls  %s" % (kind.name, len(working), len(texts), refusal(texts["info"])), flush=True)
    if kind.shown:
        silent = [name for name in texts if HOLDER not in texts[name] or "size=%016x" % size not in texts[name]]
        result(not silent, "%s: the refusal names holder and size" % kind.name, "not so: %s" % silent)
    elif version == 3:
        result("Unknown incompatible feature: 8000000000000000" in texts["info"], "%s: the refusal names the bit" % kind.name, texts["info"])
    must(sealtool, "seal", image, "size", HOLDER)
    sealed_size = json.loads(must("qemu-img", "info", "--output=json", image))["virtual-size"] if "bitmap" not in kind.name else 0
    result(sealed_size == 0, "%s: seal=size" % kind.name, str(sealed_size))
    must(sealtool, "unseal", image)
    result(content(folder) == truth, "%s: unsealed after seal=size" % kind.name)


def check_backing(sealtool, folder):
    """A sealed image below an overlay: nothing may read zeros from it or write to it."""
    for compat in ("0.10", "1.1"):
        os.mkdir(folder)
        overlay = os.path.join(folder, "top.qcow2")
        must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=" + compat, "base.qcow2", "8M", cwd=folder)
        must("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2", cwd=folder)
        must("qemu-img", "create", "-q", "-f", "qcow2", "other.qcow2", "8M", cwd=folder)
        must("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", overlay)
        must(sealtool, "seal", os.path.join(folder, "base.qcow2"), "refuse", HOLDER)
        before = content(folder)
        for command in (["qemu-img", "convert", "-O", "raw", overlay, folder + ".raw"], ["qemu-img", "commit", overlay],
                        ["qemu-img", "rebase", "-b", "other.qcow2", "-F", "qcow2", overlay], ["qemu-io", "-c", "length", overlay],
                        ["qemu-img", "info", "--backing-chain", overlay]):
            code, out = run(*command, cwd=folder)
            result(code != 0, "compat=%s backing file: %s %s is refused" % (compat, *command[:2]), out)
            result(content(folder) == before, "compat=%s backing file: %s %s changes no byte" % (compat, *command[:2]))
        shutil.rmtree(folder)


# ---- states between two writes ----

STRING = r'"((?:\\x[0-9a-f]{2})*)"(?:\.\.\.)?'
REACH = 4096


class Replay:
    """The first REACH bytes of a file and its size, after each of the writes that strace shows."""

    def __init__(self, image):
        self.size, self.bytes, self.states = 0, bytearray(REACH), []
        if os.path.exists(image):
            self.size = os.path.getsize(image)
            with open(image, "rb") as f:
                data = f.read(REACH)
            self.bytes[:len(data)] = data
        self.path = "".join("\\x%02x" % b for b in image.encode())

    def write(self, offset, data, length):
        if offset < REACH:
            data = data.ljust(min(length, REACH), b"\0")[:REACH - offset]
            self.bytes[offset:offset + len(data)] = data
        self.size = max(self.size, offset + length)

    def fallocate(self, mode, offset, length):
        if "PUNCH" in mode or "ZERO" in mode:
            end = min(offset + length, REACH)
            if offset < end:
                self.bytes[offset:end] = bytes(end - offset)
        if "KEEP_SIZE" not in mode:
            self.size = max(self.size, offset + length)

    def line(self, line):
        m = re.match(r"\d+ +(\w+)\(\d+<%s>, (.*)" % re.escape(self.path), line)
        if not m:
            return
        call, rest = m.groups()
        if call == "pwrite64":
            m = re.match(STRING + r", (\d+), (\d+)", rest)
            self.write(int(m.group(3)), unhex(m.group(1)), int(m.group(2)))
        elif call.startswith("pwritev"):
            parts = re.findall(r"iov_base=" + STRING + r", iov_len=(\d+)", rest)
            offset = int(re.search(r"\], \d+, (\d+)", rest).group(1))
            for data, length in parts:
                self.write(offset, unhex(data), int(length))
                offset += int(length)
        elif call == "ftruncate":
            self.size = int(re.match(r"(\d+)", rest).group(1))
            self.bytes[self.size:] = bytes(max(0, REACH - self.size))
        elif call == "fallocate":
            m = re.match(r"(.*?), (\d+), (\d+)", rest)
            self.fallocate(m.group(1), int(m.group(2)), int(m.group(3)))
        else:
            return
        state = (bytes(self.bytes), self.size)
        if state not in self.states:
            self.states.append(state)


def unhex(text):
    return bytes.fromhex(text.replace("\\x", ""))


def replay(sealtool, folder, name, image, *command):
    """Runs the command under strace; every state of IMAGE after one of its writes must be an image, or have no magic yet."""
    states, log = Replay(image), os.path.join(folder, "strace.log")
    code, out = run("strace", "-f", "-y", "-xx", "-s", str(REACH), "-e", "trace=pwrite64,pwritev,pwritev2,ftruncate,fallocate", "-o", log,
                    *command, cwd=folder)
    result((code != 0) == ("sigraise" in name), "%s: runs" % name, out)
    with open(log, errors="replace") as f:
        for line in f:
            states.line(line)
    if os.path.exists(image):
        with open(image, "rb") as f:
            end = f.read(REACH).ljust(REACH, b"\0")
        result((bytes(states.bytes), states.size) == (end, os.path.getsize(image)), "%s: the replay ends as the file does" % name)
    bad, moment = [], os.path.join(folder, "moment")
    for number, (data, size) in enumerate(states.states):
        with open(moment, "wb") as f:
            f.write(data[:size])
            f.truncate(size)
        verdict = plan_of(sealtool, moment)
        if verdict["verdict"] != ("IMAGE" if data.startswith(b"QFI\xfb") else "PLAIN"):
            bad.append("state %d: %s %s" % (number, verdict["verdict"], verdict["why"]))
    result(not bad, "%s: %d states" % (name, len(states.states)), "\n".join(bad))
    os.remove(log)


def check_states(sealtool, folder):
    os.mkdir(folder)
    image = os.path.join(folder, "image.qcow2")
    must("qemu-img", "create", "-q", "-f", "raw", "data.raw", "8M", cwd=folder)
    must("qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "8M", cwd=folder)
    must("qemu-io", "-f", "qcow2", "-c", "write -P 9 0 4M", "base.qcow2", cwd=folder)
    for options in ("compat=0.10", "compat=1.1", "cluster_size=512", "cluster_size=2M", "extended_l2=on", "compression_type=zstd",
                    "preallocation=metadata", "preallocation=falloc", "preallocation=full", "refcount_bits=1", "data_file=data.raw,data_file_raw=on",
                    LUKS, "backing_file=base.qcow2,backing_fmt=qcow2"):
        replay(sealtool, folder, "create %s" % options, image, "qemu-img", "create", "-q", *SECRET, "-f", "qcow2", "-o", options, image, "1G"
               if "prealloc" not in options and "data" not in options else "8M")
        replay(sealtool, folder, "create over %s" % options, image, "qemu-img", "create", "-q", "-f", "qcow2", image, "4M")
    replay(sealtool, folder, "convert", image, "qemu-img", "convert", "-O", "qcow2", "base.qcow2", image)
    replay(sealtool, folder, "convert -c", image, "qemu-img", "convert", "-c", "-O", "qcow2", "base.qcow2", image)
    for compat in ("0.10", "1.1"):
        must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=" + compat, image, "8M")
        steps = [["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 2M", image], ["qemu-img", "resize", image, "9G"],
                 ["qemu-img", "resize", "--shrink", image, "4M"], ["qemu-img", "snapshot", "-c", "one", image],
                 ["qemu-img", "snapshot", "-a", "one", image], ["qemu-img", "snapshot", "-d", "one", image],
                 ["qemu-img", "rebase", "-u", "-b", "base.qcow2", "-F", "qcow2", image], ["qemu-img", "rebase", "-b", "", image],
                 ["qemu-img", "rebase", "-u", "-b", "base.qcow2", "-F", "qcow2", image], ["qemu-img", "check", "-r", "all", image]]
        if compat == "1.1":
            steps += [["qemu-img", "bitmap", "--add", image, "b0"], ["qemu-io", "-f", "qcow2", "-c", "write 0 1M", image],
                      ["qemu-img", "bitmap", "--remove", image, "b0"], ["qemu-img", "amend", "-o", "lazy_refcounts=on", image],
                      ["qemu-io", "-f", "qcow2", "-c", "write 1M 1M", image],
                      ["qemu-io", "-f", "qcow2", "-c", "write 3M 1M", "-c", "sigraise 9", image],  # leaves the dirty bit
                      ["qemu-img", "check", "-r", "all", image], ["qemu-img", "amend", "-o", "refcount_bits=64", image],
                      ["qemu-img", "amend", "-o", "refcount_bits=16", image], ["qemu-img", "amend", "-o", "compat=0.10", image]]
        else:
            steps += [["qemu-img", "amend", "-o", "compat=1.1", image]]
        steps += [["qemu-img", "commit", image]]
        for command in steps:
            replay(sealtool, folder, "compat=%s: %s" % (compat, " ".join(w for w in command[1:] if w not in (image, "-f", "qcow2"))), image, *command)


def check_copies(sealtool, folder):
    """A copy that has just begun: tools write the header first, whatever it points to comes later."""
    os.mkdir(folder)
    whole, part = os.path.join(folder, "whole"), os.path.join(folder, "part")
    for options in ("compat=0.10", "cluster_size=512", "cluster_size=64k", "cluster_size=2M"):
        must("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, whole, "64G")
        with open(whole, "rb") as f:
            data = f.read(1 << 20)
        for n in (512, 4096, 65536, 131072, 1 << 20):
            with open(part, "wb") as f:
                f.write(data[:n])
            result(plan_of(sealtool, part)["verdict"] == "IMAGE", "%s: first %d bytes are an image" % (options, n))
            result(run("qemu-img", "info", part)[0] == 0, "%s: QEMU opens the first %d bytes" % (options, n))


def guarded(name, check, *arguments):
    """A check that cannot go on is one failure."""
    try:
        check(*arguments)
    except (RuntimeError, subprocess.TimeoutExpired, OSError) as e:
        result(False, "%s: runs" % name, str(e))


def one_kind(tool, kind, top):
    folder = os.path.join(top, kind.name)
    guarded(kind.name, check_kind, tool, kind, folder)
    for leftover in (folder, folder + ".control"):
        shutil.rmtree(leftover, ignore_errors=True)
        if os.path.exists(leftover + ".out"):
            os.remove(leftover + ".out")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", nargs="*", metavar="BUILDDIR")
    parser.add_argument("--long", action="store_true", help="nothing more")
    args = parser.parse_args()
    only = os.environ.get("ONLY")  # the name of one kind, for a person at work on it
    if not needs("qemu-img", "qemu-io", "strace"):
        return 1
    with tempfile.TemporaryDirectory(prefix="qcow2-seal.") as top, ThreadPoolExecutor(2) as pool:
        tool = sealtool_from(args.build, top)
        wanted = [k for k in kinds() if only in (None, k.name)]
        done = []
        if not only:  # the longest first
            done.append(pool.submit(guarded, "states", check_states, tool, os.path.join(top, "states")))
            done.append(pool.submit(guarded, "backing", check_backing, tool, os.path.join(top, "backing")))
            done.append(pool.submit(guarded, "copies", check_copies, tool, os.path.join(top, "copies")))
        done += [pool.submit(one_kind, tool, kind, top) for kind in wanted]
        for each in done:
            each.result()
    return summary()


if __name__ == "__main__":
    sys.exit(main())
