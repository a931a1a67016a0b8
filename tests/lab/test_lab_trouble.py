#!/usr/bin/env python3
"""The lab itself: where it cannot work it says so in one line, ends with a code that is not 0, and leaves nothing running."""
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import labguest  # first: it finds dgtest
import dgtest
import labcache
from dgtest import eq, must, ok

suite = dgtest.Suite(__file__, needs="hooks", always=True)
SMOKE = os.path.join(labguest.HERE, "test_lab_smoke.py")


def smoke(build, **env):
    """Runs the smoke test where it must fail; its one line."""
    tmp = dgtest.suite_tmp()
    r = dgtest.run(sys.executable, SMOKE, build.path, env=dict(os.environ, TMPDIR=tmp, **env), timeout=100)
    lines = r.out.strip().splitlines()
    ok(r.code not in (0, None) and r.code > 0, "the exit code: %r" % r)
    eq(len(lines), 1, "lines of output: %r" % r)
    ok(lines[0].startswith("lab: "), "the line: " + lines[0])
    running = [pid for pid in os.listdir("/proc") if pid.isdigit() and tmp.encode() in _command_line(pid)]
    eq(running, [], "processes left")
    eq(os.listdir(tmp), [], "files left")
    return lines[0]


def _command_line(pid):
    try:
        with open("/proc/%s/cmdline" % pid, "rb") as f:
            return f.read()
    except OSError:
        return b""


def cache_with(name, content):
    """A copy of the lab's cache in which one file is another."""
    ready = labcache.prepare()
    cache = dgtest.suite_tmp()
    os.mkdir(os.path.join(cache, "ready"))
    for entry in os.listdir(ready):
        if entry != name:
            os.symlink(os.path.join(ready, entry), os.path.join(cache, "ready", entry))
    with open(os.path.join(cache, "ready", name), "wb") as f:
        f.write(content)
    return cache


@suite.case("no QEMU")
def no_qemu(build):
    ok("qemu-system-x86_64 is not installed: run tools/install-deps" in smoke(build, PATH=dgtest.path_without("qemu-system-x86_64")), "it names QEMU and the way out")


@suite.case("no kernel package")
def no_kernel(build):
    folder = dgtest.path_without("apt-cache")
    for name, script in (("apt-get", "exit 0"), ("apt-cache", "echo 'N: Unable to locate package'; exit 0")):
        path = os.path.join(folder, name)
        if os.path.lexists(path):
            os.unlink(path)
        with open(path, "w") as f:
            f.write("#!/bin/sh\n%s\n" % script)
        os.chmod(path, 0o755)
    ok("no kernel package" in smoke(build, PATH=folder, DISKGUARD_LAB_CACHE=dgtest.suite_tmp()), "it names the kernel package")


@suite.case("no room for the cache")
def no_room(build):
    cache = dgtest.suite_tmp()
    must("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", cache)
    try:
        line = smoke(build, DISKGUARD_LAB_CACHE=cache)
    finally:
        must("umount", cache)
    ok(re.search(r"has \d+ MiB left; the lab needs \d+ MiB", line), "it says how much is needed: " + line)


@suite.case("no place for the cache")
def no_place(build):
    ok("DISKGUARD_LAB_CACHE" in smoke(build, DISKGUARD_LAB_CACHE="/proc/none"), "it names the variable")


@suite.case("a kernel that is none")
def no_elf(build):
    ok("QEMU ended" in smoke(build, DISKGUARD_LAB_CACHE=cache_with("vmlinux", b"this is no kernel")), "it tells what QEMU said")


@suite.case("a guest that does not boot")
def no_boot(build):
    ok("does not boot" in smoke(build, DISKGUARD_LAB_CACHE=cache_with("initramfs", b""), DISKGUARD_LAB_BOOT_LIMIT="10"), "it says so, with the console")


if __name__ == "__main__":
    suite.main()
