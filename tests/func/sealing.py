"""sealing: what the checks of seals have in common: the helper sealtool, results, files compared, openers that must refuse."""
import glob
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading

import memory

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
HOLDER = "node7.example"
SECRET = ["--object", "secret,id=sec0,data=letmein"]
WHOLE = 64 << 20  # files up to this length are compared byte by byte, longer ones by the hash of what is not zero

counts = {"passed": 0, "failed": 0, "skipped": 0}
_counting = threading.Lock()


def declare(**needs):
    """What the script needs; tests/suites.py reads the call without running it."""
    if needs.get("memory"):
        memory.prefer()


def result(ok, name, detail=""):
    with _counting:
        counts["passed" if ok else "failed"] += 1
    if not ok:
        print("FAILED  %s%s" % (name, "\n        " + detail.strip().replace("\n", "\n        ") if detail else ""), flush=True)
    return ok


def summary():
    """Prints the last line; the exit code."""
    print("%(passed)d passed, %(failed)d failed, %(skipped)d skipped" % counts)
    return 1 if counts["failed"] else 0


def run(*command, cwd=None, stdin=None):
    p = subprocess.run(command, cwd=cwd, input=stdin, stdin=subprocess.DEVNULL if stdin is None else None, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, timeout=120, check=False)
    return p.returncode, p.stdout.decode(errors="replace")


# What qemu-img says when it has made a LUKS key faster than the kernel counts CPU time (crypto/pbkdf.c of QEMU: a measured time of 0): it is to be asked again.
NO_CLOCK = "Unable to get accurate CPU usage"


def must(*command, cwd=None):
    for _ in range(50):
        code, out = run(*command, cwd=cwd)
        if NO_CLOCK not in out:
            break
    if code != 0:
        raise RuntimeError("%s: %s" % (" ".join(command), out))
    return out


def content_of(path):
    """What is in a file: its bytes, or for a long one its length and a hash of those that are not zero."""
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        if size <= WHOLE:
            return f.read()
        h, at = hashlib.sha256(), 0
        while at < size:
            try:
                at = os.lseek(f.fileno(), at, os.SEEK_DATA) // 65536 * 65536
            except OSError:  # no data up to the end
                break
            block = os.pread(f.fileno(), 65536, at)
            if block.count(0) != len(block):
                h.update(b"%d:" % at + block)
            at += 65536
        return size, h.hexdigest()


def content(folder):
    """Name and content of every file in the folder."""
    return {name: content_of(os.path.join(folder, name)) for name in os.listdir(folder)}


def plan_of(sealtool, image):
    code, out = run(sealtool, "plan", image, HOLDER)
    plan = {"extents": []}
    for line in out.splitlines():
        word, _, rest = line.partition(" ")
        if word == "extent":
            plan["extents"].append(rest.split())
        else:
            plan[word] = rest
    return plan if code in (0, 1) and "verdict" in plan else {"verdict": "error", "why": out, "extents": []}


def sealtool_from(arguments, folder):
    """The helper: of the build directory that is the first argument, or compiled now."""
    if arguments:
        return os.path.join(arguments[0], "tests", "sealtool")
    tool = os.path.join(folder, "sealtool")
    core = [os.path.join(TOP, "src", part + ".c") for part in ("base/base", "core/header", "core/overlay", "core/io")]
    must(os.environ.get("CC", "cc"), "-std=gnu17", "-O1", "-D_GNU_SOURCE", "-D_FILE_OFFSET_BITS=64", "-I" + os.path.join(TOP, "include"),
         "-I" + os.path.join(TOP, "src"), os.path.join(HERE, "sealtool.c"), *glob.glob(os.path.join(TOP, "src/format/*.c")), *core, "-o", tool)
    return tool


def needs(*programs):
    """True when all are installed; else the sum says so. Also makes SIGTERM leave by way of the temporary folders."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    missing = [p for p in programs if not shutil.which(p)]
    if missing:
        print("%s: not installed\n0 passed, 1 failed, 0 skipped" % ", ".join(missing))
    return not missing
