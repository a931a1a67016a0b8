#!/usr/bin/env python3
"""hostinit: process 1 of a host of the tests (dgstack.py). It is started in mount, UTS, IPC, network and pid namespaces of its own.

  hostinit NAME BASE MACHINE-ID DEVICES [BOUND TARGET]

Puts directories below BASE where libvirt keeps its own, makes a /dev with DEVICES (names, with commas), says "ready", and reaps whatever is left to it until it is killed; with it goes the whole host.
"""
import os
import signal
import socket
import subprocess
import sys


def mount(*argv):
    subprocess.run(["mount", *argv], check=True)


def devices(names):
    """A /dev of its own: libvirt asks QEMU for what it finds here, and takes QEMU's answer for false when a /dev/kvm is there but not for QEMU's user."""
    numbers = [(name, os.stat("/dev/" + name).st_rdev) for name in names]
    mount("--move", "/dev/pts", "/mnt")
    subprocess.run(["umount", "-R", "-l", "/dev"], check=True)
    mount("-t", "tmpfs", "-o", "mode=755", "host-dev", "/dev")
    os.umask(0)
    for name, number in numbers:
        os.mknod("/dev/" + name, 0o20666, number)
    for name in ("pts", "shm"):
        os.mkdir("/dev/" + name, 0o1777)
    mount("--move", "/mnt", "/dev/pts")
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink("/proc/self/" + target, "/dev/" + name)
    os.umask(0o022)


def let_go():
    """This namespace has copies of the mounts of all other tests that run now: as long as it has them, their views do not end when they are unmounted."""
    with open("/proc/self/mountinfo", encoding="ascii") as f:
        lines = [line.split() for line in f]
    for words in reversed(lines):
        if words[words.index("-") + 1].startswith("fuse"):
            subprocess.run(["umount", "-l", "-i", words[4].encode().decode("unicode_escape")], check=False, stderr=subprocess.DEVNULL)


def main():
    let_go()
    name, base, machine_id, wanted = sys.argv[1:5]
    socket.sethostname(name)
    subprocess.run(["umount", "-R", "-l", "/sys"], check=True)
    mount("-t", "sysfs", "sysfs", "/sys")  # of this network; and without cgroups: none of the machine's are touched
    devices(wanted.split(","))
    mount("-t", "tmpfs", "-o", "mode=755", "host-run", "/run")
    os.makedirs("/run/lock")
    for place in ("/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt"):
        os.makedirs(place, exist_ok=True)
        mount("--bind", base + place, place)
    for place in ("/etc/hosts", "/etc/machine-id"):
        mount("--bind", base + place, place)
    if len(sys.argv) > 5:
        mount("--bind", sys.argv[5], sys.argv[6])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    print("ready", flush=True)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    while True:
        signal.sigwait([signal.SIGCHLD])
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


if __name__ == "__main__":
    main()
