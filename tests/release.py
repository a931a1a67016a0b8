#!/usr/bin/env python3
"""release: runs the tests on the other Debian release: 13 on Debian 12, 12 on Debian 13.

  release.py [--release CODENAME] BUILDDIR [COMMAND ...]

The root directory of that release is made once with debootstrap and kept in $DISKGUARD_LAB_CACHE (default /var/cache/diskguard-lab), with what tools/install-deps
installs. COMMAND (default: tests/run) runs there with the tree, read-only, as its working directory, and BUILDDIR as /build, where its builds and logs are.
It has mounts and process numbers of its own: whatever it leaves ends with it.
"""
import argparse
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import uuid

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CACHE = os.environ.get("DISKGUARD_LAB_CACHE", "/var/cache/diskguard-lab")
RELEASES = {"bookworm": "12", "trixie": "13"}
MIRROR = "http://deb.debian.org/debian"
ROOM = 4 << 30  # bytes: a root with all packages has 1.3 GiB, packages of the lab and builds come on top
# The first process there: bash, for it reaps what others leave behind (and so does not become the last command). $1 root, $2 tree, $3 builds, then the command.
INIT = r"""
set -eu
root=$1 tree=$2 build=$3
shift 3
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t fusectl fusectl "$root/sys/fs/fuse/connections" || true
mount --bind /dev "$root/dev"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mount --bind "$tree" "$root/diskguard"
mount -o remount,bind,ro "$root/diskguard"
mount --bind "$build" "$root/build"
cd "$root"
pivot_root . .
umount -l .
cd /diskguard
code=0
"$@" || code=$?
exit "$code"
"""
# Nothing of the caller's environment but where packages come from: the release is to be as after its installation.
ENV = {k: v for k, v in os.environ.items() if k.lower() in ("http_proxy", "https_proxy", "no_proxy")}
ENV.update(PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", HOME="/root", LC_ALL="C.UTF-8", TERM="dumb")


def say(text):
    print("release: " + text, flush=True)


def run(*argv, **kw):
    r = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **kw)
    if r.returncode:
        sys.exit("release: %s failed: %s" % (" ".join(argv[:4]), "\n".join(r.stdout.decode(errors="replace").strip().splitlines()[-8:])))


def codename():
    with open("/etc/os-release", encoding="utf-8") as f:
        words = dict(line.strip().split("=", 1) for line in f if "=" in line)
    return words.get("VERSION_CODENAME", "").strip('"')


def mirror():
    """Where this machine has its packages from."""
    try:
        out = subprocess.run(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Codename: " + codename(), "Component: main", "Created-By: Packages"],
                             capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        out = []
    return out[0].rstrip("/") if out else MIRROR


def enter(root, build, *command):
    """The command's process, in the root."""
    return subprocess.Popen(["unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "bash", "-c", INIT, "bash", root, TOP, build, *command],
                            stdin=subprocess.DEVNULL, env=ENV)


def bootstrap(name, root):
    making = root + ".making"
    shutil.rmtree(making, ignore_errors=True)
    if shutil.disk_usage(CACHE).free < ROOM:
        sys.exit("release: %s has less than %d GiB left (another place: DISKGUARD_LAB_CACHE)" % (CACHE, ROOM >> 30))
    if not shutil.which("debootstrap"):
        sys.exit("release: debootstrap is not installed: run tools/install-deps long")
    say("Debian %s (%s) is put into %s, once" % (RELEASES[name], name, root))
    run("debootstrap", "--variant=minbase", name, making, mirror())
    for folder in ("diskguard", "build"):
        os.makedirs(os.path.join(making, folder))
    with open(os.path.join(making, "etc/machine-id"), "w", encoding="ascii") as f:  # systemd makes it at the first boot
        f.write(uuid.uuid4().hex + "\n")
    os.rename(making, root)


def prepare(name, build):
    """The root of that release with all packages, made when it is missing; packages are installed when the list has changed."""
    root = os.path.join(CACHE, "root-" + name)
    if not os.path.isdir(root):
        bootstrap(name, root)
    if os.path.exists("/etc/resolv.conf"):
        shutil.copyfile("/etc/resolv.conf", os.path.join(root, "etc/resolv.conf"))
    with open(os.path.join(TOP, "tools", "install-deps"), "rb") as f:
        wanted = hashlib.sha256(f.read()).hexdigest()
    stamp = os.path.join(root, "etc", "diskguard-packages")
    if not os.path.exists(stamp) or open(stamp, encoding="ascii").read() != wanted:
        say("its packages are installed")
        if enter(root, build, "tools/install-deps", "check").wait():
            sys.exit("release: the packages of Debian %s cannot be installed" % RELEASES[name])
        run("chroot", root, "apt-get", "clean", env=ENV)
        with open(stamp, "w", encoding="ascii") as f:
            f.write(wanted)
    return root


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", default="trixie" if codename() != "trixie" else "bookworm", choices=sorted(RELEASES))
    parser.add_argument("build", metavar="BUILDDIR")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    build = os.path.abspath(args.build)
    os.makedirs(build, exist_ok=True)
    os.makedirs(CACHE, exist_ok=True)
    with open(os.path.join(CACHE, "lock-" + args.release), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        root = prepare(args.release, build)
        p = enter(root, build, *(args.command or ["tests/run", "/build"]))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # the command, of the same process group, ends by itself
            signal.signal(number, lambda *_: None)
        code = p.wait()
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
