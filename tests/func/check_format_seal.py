#!/usr/bin/env python3
"""check_format_seal: what other programs make of a sealed image, for each kind of kinds.py.

  check_format_seal.py [BUILDDIR] [--long]

For each kind: we recognise it with the size that qemu-img reports; every prefix of the seal is refused by every opener without a byte changed, and where an opener cannot refuse
the kind says so, and it indeed does not; unsealing gives the same bytes; so does a rescue without a record, or it says that it needs the size, and takes the true one.
An opener's refusal counts only where the same command works on a true copy. The whole seal is tried with every opener; the
shorter prefixes with those of QUICK, with --long with all. No daemon, no mount: sealtool.c writes the plans. ONLY=kind in the environment: that kind alone.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import kinds
from sealing import HOLDER, content, declare, must, needs, plan_of, result, run, sealtool_from, summary

declare(memory=True)
QUICK = {"info", "convert", "open rw", "check -r all", "system rw", "cryptsetup luksDump", "cryptsetup isLuks"}
HUGE = 1 << 62  # a size that no image has


def system(*drive):
    """A virtual machine that is stopped at once."""
    return ["qemu-system-x86_64", "-accel", "tcg", "-machine", "pc", "-m", "16", "-S", "-display", "none", "-nodefaults", "-no-user-config",
            "-monitor", "stdio", *drive]


def openers(kind, image):
    """{name: command} of everything that may open an image of this kind."""
    out, found = os.path.join(os.path.dirname(os.path.dirname(image)), kind.name + ".out"), {}
    if kind.qemu:
        spec = kind.spec(image)
        found = {
            "info": ["qemu-img", "info", *spec],
            "check": ["qemu-img", "check", *spec],
            "check -r all": ["qemu-img", "check", "-r", "all", *spec],
            "convert": ["qemu-img", "convert", *spec, "-O", "qcow2", out],
            "resize": ["qemu-img", "resize", *spec, "+64M"],
            "map": ["qemu-img", "map", *spec],
            "open ro": ["qemu-io", "-r", *spec, "-c", "length"],
            "open rw": ["qemu-io", *spec, "-c", "length"],
            "system rw": system(*kind.drive(image)),
            "system ro": system(*kind.drive(image, ",readonly=on")),
        }
    found["info probed"] = ["qemu-img", "info", kind.opened(image)]
    found["system probed"] = system("-drive", "if=none,id=d,readonly=on,file=" + kind.opened(image), "-device", "virtio-blk-pci,drive=d")
    found["raw"] = ["qemu-io", "-r", "-f", "raw", "-c", "length", image]
    for name in kind.tools:
        found[name] = ["cryptsetup", name, image] if "uks" in name else [name, image]
    if "extent raw" in kind.cannot:
        extents = [n for n in sorted(os.listdir(os.path.dirname(image))) if n != kind.file and n.endswith(".vmdk")]
        found["extent raw"] = ["qemu-io", "-r", "-f", "raw", "-c", "length", os.path.join(os.path.dirname(image), extents[0])]
    return found


def try_one(name, argv, cwd):
    code, out = run(*argv, cwd=cwd, stdin=b"quit\n" if argv[0].startswith("qemu-system") else None)
    worked = code == 0 or (name.startswith("check") and code in (2, 3))
    return worked, code, out


def controls(kind, folder):
    """Names of the openers that work on a true copy."""
    working, copy, truth = set(), folder + ".control", content(folder)
    for name in openers(kind, kind.image(folder)):
        if kind.huge and name == "convert":
            continue
        if not os.path.exists(copy):
            must("cp", "-r", "--sparse=always", folder, copy)
        worked, _, _ = try_one(name, openers(kind, kind.image(copy))[name], copy)
        if worked:
            working.add(name)
        if content(copy) != truth:
            shutil.rmtree(copy)
    shutil.rmtree(copy, ignore_errors=True)
    return working


def refused(kind, folder, working, names, stage, whole=True):
    before, length = content(folder), os.path.getsize(kind.image(folder))
    for name, argv in openers(kind, kind.image(folder)).items():
        if name not in working or (names and name not in names):
            continue
        worked, code, out = try_one(name, argv, folder)
        if kind.may_refuse(name, whole):
            result(not worked and code > 0, "%s: %s refuses %s" % (kind.name, name, stage), "exit %d: %s" % (code, out))
        else:
            result(worked, "%s: %s opens %s, as the kind says" % (kind.name, name, stage), out)
            if name == "resize":
                os.truncate(kind.image(folder), length)
        after = content(folder)
        result(after == before, "%s: %s changes no byte of %s" % (kind.name, name, stage), out)
        before = after


def check_rescue(sealtool, kind, folder, truth, size, stage):
    """From the sealed file alone."""
    image = kind.image(folder)
    record = image + ".true"
    saved = open(record, "rb").read()
    os.unlink(record)
    sealed, true_size = content(folder), str(size)
    code, out = run(sealtool, "rescue", image)
    how = {0: "exact", 3: "size needed"}.get(code, "failed")
    if not result(code in (0, 3), "%s: rescue of %s" % (kind.name, stage), "exit %d: %s" % (code, out)):
        how = "failed"
    elif code == 3:
        result(content(folder) == sealed, "%s: rescue of %s without a size changes nothing" % (kind.name, stage))
        code, again = run(sealtool, "rescue", image, str(HUGE))
        result(code != 0 and content(folder) == sealed, "%s: rescue of %s with a size that cannot be changes nothing" % (kind.name, stage), again)
        code, out = run(sealtool, "rescue", image, true_size)
        result(code == 0, "%s: rescue of %s with the true size" % (kind.name, stage), "exit %d: %s" % (code, out))
    if code == 0:
        result(content(folder) == truth, "%s: rescue of %s (%s) gives the true bytes" % (kind.name, stage, how), out)
    for line in out.splitlines():
        word, which, value = (line.split() + ["", "", ""])[:3]
        if word == "candidate":
            good = {"exact": int(value) == size, "upper": int(value) >= size, "lower": int(value) <= size}[which]
            result(good, "%s: rescue of %s: candidate" % (kind.name, stage), "%s; the size is %d" % (line, size))
    with open(record, "wb") as f:
        f.write(saved)
    must(sealtool, "unseal", image)
    return how


def check_kind(sealtool, kind, folder, long):
    os.mkdir(folder)
    image = kind.make(folder)
    truth = content(folder)
    plan = plan_of(sealtool, image)
    if not result(plan["verdict"] == ("PLAIN" if kind.format == "-" else "IMAGE") and plan["format"] == kind.format, "%s: what it is" % kind.name, str(plan)):
        return
    size = int(plan["size"])
    if kind.qemu and kind.format not in ("-", "luks") and kind.may_refuse("info"):
        size = json.loads(must("qemu-img", "info", "--output=json", *kind.spec(image)))["virtual-size"]
        result(int(plan["size"]) == size, "%s: size" % kind.name, "%s, qemu-img says %d" % (plan["size"], size))
    elif kind.format == "luks" and kind.qemu:
        size = json.loads(must("qemu-img", "info", "--output=json", *kind.spec(image)))["virtual-size"]
        result(int(plan["size"]) == size, "%s: size" % kind.name, "%s, qemu-img says %d" % (plan["size"], size))
    extents, working = len(plan["extents"]), controls(kind, folder)
    stands = {n for n in openers(kind, image) if kind.may_refuse(n)} & working
    result(not kind.qemu or {"info", "open rw", "system rw"} <= working, "%s: the controls work" % kind.name, str(sorted(working)))
    gone = {n for n in kind.cannot if n != kinds.ALL} - working
    result(not gone, "%s: those that cannot refuse work on a true one" % kind.name, str(gone))
    if kinds.ALL in kind.cannot:
        result(kind.format == "vpc" or extents == 0, "%s: nothing to seal" % kind.name, str(plan))
        refused(kind, folder, working, None, "it")
    elif not result(extents > 0 and stands, "%s: a seal, and somebody who refuses it" % kind.name, "%d extents, %s" % (extents, working)):
        return
    how = set()
    for n in range(1, extents + 1):
        whole, stage = n == extents, "the seal" if n == extents else "its first %d extents of %d" % (n, extents)
        must(sealtool, "seal", image, "refuse", HOLDER, str(n))
        refused(kind, folder, working, None if whole or long else QUICK, stage, whole)
        found = plan_of(sealtool, image)
        result(found["verdict"] == "SEALED", "%s: %s is a seal" % (kind.name, stage), str(found))
        must(sealtool, "unseal", image)
        result(content(folder) == truth, "%s: unsealed after %d extents" % (kind.name, n))
        must(sealtool, "seal", image, "refuse", HOLDER, str(n))
        how.add(check_rescue(sealtool, kind, folder, truth, size, stage))
        result(content(folder) == truth, "%s: unsealed after the rescue of %d extents" % (kind.name, n))
    print("%-22s %d extents, %2d openers, %2d that refuse; rescue: %s" % (kind.name, extents, len(working), len(stands), " or ".join(sorted(how)) or "-"),
          flush=True)


def main():
    only, long = os.environ.get("ONLY"), "--long" in sys.argv
    if not needs("qemu-img", "qemu-io", "qemu-system-x86_64", "vhdiinfo", "vmdkinfo", "cryptsetup"):
        return 1
    with tempfile.TemporaryDirectory(prefix="format-seal.") as top, ThreadPoolExecutor(2) as pool:
        tool = sealtool_from([a for a in sys.argv[1:] if a != "--long"], top)

        def one(kind):
            folder = os.path.join(top, kind.name)
            try:
                check_kind(tool, kind, folder, long)
            except (RuntimeError, subprocess.TimeoutExpired, OSError) as e:
                result(False, "%s: runs" % kind.name, str(e))
            for leftover in (folder, folder + ".control"):
                shutil.rmtree(leftover, ignore_errors=True)
        wanted = [k for k in kinds.kinds() if only in (None, k.name)]
        result(only or len(wanted) >= 40, "%d kinds" % len(wanted))
        list(pool.map(one, wanted))
    return summary()


if __name__ == "__main__":
    sys.exit(main())
