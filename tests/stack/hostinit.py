#!/usr/bin/env python3
"""hostinit: process 1 of a host of the tests (dgstack.py). It is started in mount, UTS, IPC, network and pid namespaces of its own.

  hostinit NAME BASE MACHINE-ID [BOUND TARGET]

Puts directories below BASE where libvirt keeps its own, says "ready", and reaps whatever is left to it until it is killed; with it goes the whole host.
"""
import os
import signal
import socket
import subprocess
import sys


def mount(*argv):
    subprocess.run(["mount", *argv], check=True, stdin=subprocess.DEVNULL)


def main():
    name, base, machine_id = sys.argv[1:4]
    socket.sethostname(name)
    subprocess.run(["umount", "-R", "-l", "/sys"], check=True, stdin=subprocess.DEVNULL)
    mount("-t", "sysfs", "sysfs", "/sys")  # of this network; and without cgroups: none of the machine's are touched
    mount("-t", "tmpfs", "-o", "mode=755", "host-run", "/run")
    os.makedirs("/run/lock")
    for place in ("/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt"):
        os.makedirs(place, exist_ok=True)
        mount("--bind", base + place, place)
    for place in ("/etc/hosts", "/etc/machine-id"):
        mount("--bind", base + place, place)
    if len(sys.argv) > 4:
        mount("--bind", sys.argv[4], sys.argv[5])
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
