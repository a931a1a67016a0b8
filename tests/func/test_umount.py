#!/usr/bin/env python3
"""test_umount: umount(8) of a view returns when every header is back, or names those that are not: umount.fuse.diskguard(8)."""
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import guardian
from dgqemu import make_qcow2
from dgtest import (Datastore, Host, Proc, Skip, Suite, View, eq, is_sealed, mounted_at, must, ok, run, sha, suite_tmp, wait_for)

suite = Suite(__file__, needs="hooks")
RDWR = os.O_RDWR
NAMES = ["vm %02d, disk=a.qcow2" % i if i % 3 == 0 else "vm%02d.qcow2" % i for i in range(24)]


class Scene:
    """A view of a datastore on a file system of its own, so that it can be taken away, with images that a killed process has left open."""

    def __init__(self, build, names=NAMES, options=(), env=None):
        self.build, self.names = build, list(names)
        base = suite_tmp()
        self.storage = os.path.join(base, "storage")
        os.mkdir(self.storage)
        self.disk = os.path.join(base, "disk")
        with open(self.disk, "wb") as f:
            f.truncate(128 << 20)
        must("mkfs.ext4", "-q", self.disk)
        self.attach()
        self.ds = Datastore(build, self.storage)
        self.sums = {}
        for name in self.names:
            make_qcow2(self.ds.raw(name), 1 << 30)
            self.sums[name] = sha(self.ds.raw(name))
        self.inodes = [os.stat(self.ds.raw(name)).st_ino for name in self.names]
        self.hang = os.path.join(base, "hang")
        env = dict(env or {}, DISKGUARD_HOOK_HANG=self.hang) if build.hooks else env
        self.host = Host(base, "a")
        self.view = View(self.ds, self.host, options, env, start=False)
        self.view.mnt = os.path.join(base, "a view, of %d" % len(self.names))
        os.mkdir(self.view.mnt)
        self.view.log_path = os.path.join(base, "log")
        self.view.start()
        self.holder = None

    def attach(self):
        must("mount", "-o", "loop", self.disk, self.storage)

    def hold(self):
        """Opens every image for write. The holder's end by SIGKILL leaves its releases, or the view's end all of it, to the daemon."""
        self.holder = Proc()
        for name in self.names:
            self.holder.call("open", self.view.path(name), RDWR)
            ok(is_sealed(self.ds.raw(name)), "%s is sealed" % name)

    def let_go(self):
        self.holder.kill()

    def hang_at(self, inodes):
        with open(self.hang + ".new", "w", encoding="ascii") as f:
            f.write("".join("%d\n" % i for i in inodes))
        os.rename(self.hang + ".new", self.hang)

    def ended(self):
        code = self.view.wait_end()
        self.view.forget()
        return code

    def take_away(self):
        """The storage goes away at once: that works only when nobody uses it any more."""
        must("umount", self.storage)

    def check_all_back(self):
        self.attach()
        for name in self.names:
            eq(sha(self.ds.raw(name)), self.sums[name], "bytes of %s" % name)
        eq([c for c in self.ds.claims().values() if c["state"] != "free"], [], "claims that are held")

    def end(self):
        if self.holder:
            self.holder.kill()
        if self.view.p is not None:
            self.view.kill9()
        self.view.unmount_dead()
        if mounted_at(self.storage):
            must("umount", "-l", self.storage)


@contextlib.contextmanager
def scene(build, *args, **kw):
    s = Scene(build, *args, **kw)
    try:
        yield s
    finally:
        s.end()


HELPER = "umount.fuse.diskguard"
NAMESPACE = "DG_TEST_UMOUNT_NAMESPACE"


def own_namespace():
    """Starts the suite again in a mount namespace of its own, where umount(8) finds the helper of the build in /sbin: nothing is installed on this machine."""
    if not os.environ.get(NAMESPACE):
        os.environ[NAMESPACE] = "1"
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv])
    let_go()


def let_go(keep=None):
    """A new mount namespace has copies of the mounts of all other tests that run now: as long as it has them, their views do not end when they are unmounted."""
    with open("/proc/self/mountinfo", encoding="ascii") as f:
        lines = [line.split() for line in f]
    for words in reversed(lines):
        if words[words.index("-") + 1].startswith("fuse") and words[2] != keep:
            run("umount", "-l", "-i", words[4].encode().decode("unicode_escape"))


def install_helper(build):
    """An overlay of /sbin, once, in this namespace. A sanitized program needs words before it, so it is a script there."""
    if os.environ[NAMESPACE] == "installed":
        return
    work, sbin = suite_tmp(), os.path.realpath("/sbin")
    must("mount", "-t", "tmpfs", "none", work)
    for sub in ("upper", "work"):
        os.mkdir(os.path.join(work, sub))
    path = os.path.join(work, "upper", HELPER)
    with open(path, "w", encoding="utf-8") as f:
        f.write("#!/bin/sh\nexec %s \"$@\"\n" % " ".join(build.command(helper(build))))
    os.chmod(path, 0o755)
    if run("mount", "-t", "overlay", "-o", "lowerdir=%s,upperdir=%s/upper,workdir=%s/work" % (sbin, work, work), "none", sbin).code:
        raise Skip("no overlay file system")
    os.environ[NAMESPACE] = "installed"


def helper(build):
    return build._find(HELPER)  # pylint: disable=protected-access


def umount(build, *args, wait=20, direct=False, **kw):
    """umount(8), which finds the helper in /sbin; or the helper by its path."""
    install_helper(build)
    argv = build.command(helper(build), *args) if direct else ["umount", *args]
    return run(*argv, env=build.env(DISKGUARD_UMOUNT_WAIT=str(wait)), **kw)


def quiet(r):
    eq((r.code, r.out), (0, ""), "umount: exit code and output")


@suite.case("24 images of a killed program: when umount returns, the storage can go away")
def _(build):
    with scene(build) as s:
        s.hold()
        s.let_go()
        quiet(umount(build, s.view.mnt))
        eq(s.ended(), 0, "exit code of diskguard")
        s.take_away()
        s.check_all_back()


def slow(s, pause):
    """Lets the storage answer for one image more every `pause` seconds, until it answers for all."""
    left, stop = list(s.inodes), threading.Event()
    s.hang_at(left)

    def go():
        while left and not stop.wait(pause):
            left.pop()
            s.hang_at(left)
        s.hang_at([])
    thread = threading.Thread(target=go)
    thread.start()
    return thread


def needs_hooks(build):
    if not build.hooks:
        raise Skip("needs a build with hooks")


@suite.case("slow storage: it says what it waits for, and waits as long as images are restored", limit=200)
def _(build):
    needs_hooks(build)
    with scene(build, NAMES[:10]) as s:
        s.hold()
        thread = slow(s, 0.7)
        s.let_go()
        r = umount(build, s.view.mnt, wait=15)  # they are let go in another order than they are restored in
        thread.join()
        eq(r.code, 0, "umount: %r" % r)
        eq(s.ended(), 0, "exit code of diskguard")
        s.take_away()
        ok(re.search(r"waits for \d+ images to be restored \('?vm.*, .*, .* and \d+ more\) by diskguard \(pid \d+\)", r.out), "what it waits for: %r" % r)
        s.check_all_back()


@suite.case("storage that hangs: bounded; the images and the way out are named, the daemon goes on and ends well")
def _(build):
    needs_hooks(build)
    with scene(build, NAMES[:6]) as s:
        s.hold()
        s.hang_at(s.inodes[2:4])
        s.let_go()
        r = umount(build, s.view.mnt, wait=2, timeout=60)
        eq(r.code, 1, "umount: %r" % r)
        named = [n for n in s.names if n in r.out.split("not released")[-1]]
        eq(named, s.names[2:4], "images that are named: %r" % r)
        ok("2 images are not released on" in r.out and "fsck.diskguard -p" in r.out, "the way out: %r" % r)
        ok(not mounted_at(s.view.mnt), "unmounted")
        ok(s.view.alive(), "the daemon goes on")
        s.hang_at([])
        eq(s.ended(), 0, "exit code of diskguard")
        s.take_away()
        s.check_all_back()


@suite.case("while it restores, the daemon answers: not mounted, stopping, and what is left")
def _(build):
    needs_hooks(build)
    with scene(build, NAMES[:3]) as s:
        device = mounted_at(s.view.mnt)
        eq((ask(device, "status")["mounted"], ask(device, "status")["stopping"]), (True, False), "mounted and stopping of a view in use")
        s.hold()
        s.hang_at(s.inodes)
        s.let_go()
        must("umount", "-i", s.view.mnt)
        status = wait_for(lambda: (lambda a: a if a["stopping"] else None)(ask(device, "status")), "the daemon stops")
        eq(status["mounted"], False, "mounted")
        eq(sorted(i["image"] for i in ask(device, "list")["images"]), sorted(s.names), "what is left")
        s.hang_at([])
        eq(s.ended(), 0, "exit code of diskguard")


def ask(device, command):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as c:
        c.settimeout(10)
        c.connect("/run/diskguard/%s.sock" % device)
        c.sendall(json.dumps({"version": 1, "command": command}).encode() + b"\n")
        with c.makefile() as f:
            return json.loads(f.read())


@suite.case("a busy view: EBUSY, at once, and nothing has changed")
def _(build):
    with scene(build, NAMES[:3]) as s:
        s.hold()
        for direct in (False, True):
            began = time.monotonic()
            r = umount(build, s.view.mnt, direct=direct, timeout=20)
            eq(r.code, 32, "umount of a busy view: %r" % r)
            eq(len(r.out.strip().splitlines()), 1, "one line: %r" % r)
            ok(time.monotonic() - began < 5, "at once")
        ok(s.view.alive() and mounted_at(s.view.mnt), "it goes on")
        for name in s.names:
            ok(is_sealed(s.ds.raw(name)), "still held: " + name)
        s.let_go()
        quiet(umount(build, s.view.mnt))


@suite.case("umount -l of a view in use returns and says so; of one that nobody uses it waits")
def _(build):
    with scene(build, NAMES[:3]) as s:
        s.hold()
        r = umount(build, "-l", s.view.mnt, timeout=20)
        eq(r.code, 0, "umount -l: %r" % r)
        ok(re.search("still use it: diskguard .* goes on .*'vm 00, disk=a.qcow2'", r.out), "it says that it goes on: %r" % r)
        ok(s.view.alive(), "it goes on")
        s.let_go()
        eq(s.ended(), 0, "exit code of diskguard")
        s.view.start()
        s.hold()
        s.let_go()
        quiet(umount(build, "-l", s.view.mnt))
        eq(s.ended(), 0, "exit code of diskguard")
        s.take_away()
        s.check_all_back()


@suite.case("umount -f of a view in use breaks it off: the headers are back when it returns")
def _(build):
    with scene(build, NAMES[:3]) as s:
        s.hold()
        r = umount(build, "-f", s.view.mnt, timeout=60)
        ok(r.code in (0, 32), "umount -f: %r" % r)
        ok(not any(is_sealed(s.ds.raw(n)) for n in s.names), "every header is back when it returned: %r" % r)
        s.ended()
        s.let_go()
        if mounted_at(s.view.mnt):
            quiet(umount(build, s.view.mnt))
        s.take_away()
        s.check_all_back()


@suite.case("an image whose header cannot be put back is named, with the next command; the others are back")
def _(build):
    with scene(build, NAMES[:6]) as s:
        s.hold()
        bad = s.names[3]
        with open(s.ds.raw(bad), "r+b") as f:  # somebody goes around the view
            f.write(b"not ours" * 16)
        s.let_go()
        r = umount(build, s.view.mnt)
        eq(r.code, 1, "umount: %r" % r)
        ok("1 image is not released on" in r.out and "'%s': STUCK" % bad in r.out, "it is named: %r" % r)
        ok("fsck.diskguard -p --host-id=%s" % s.host.uuid in r.out, "the way out: %r" % r)
        eq(s.ended(), 1, "exit code of diskguard")
        eq([n for n in s.names if sha(s.ds.raw(n)) != s.sums[n]], [bad], "images that are not as they were")


@suite.case("a daemon that has died: what it left is named; mounted and unmounted again, all is back")
def _(build):
    with scene(build, NAMES[:4]) as s:
        s.hold()
        s.view.p.kill()
        s.view.p.wait()
        s.view.forget()
        s.let_go()
        r = umount(build, s.view.mnt)
        eq(r.code, 1, "umount: %r" % r)
        ok("4 images are not released" in r.out and "had died before" in r.out, "what is left: %r" % r)
        for name in s.names:
            ok(name in r.out, "it names %s: %r" % (name, r))
        s.view.start()
        quiet(umount(build, s.view.mnt))
        s.ended()
        s.take_away()
        s.check_all_back()


@suite.case("a daemon that is stopped: bounded and explained; when it goes on, it restores")
def _(build):
    with scene(build, NAMES[:3]) as s:
        s.hold()
        s.view.signal(signal.SIGSTOP)
        s.holder.p.kill()  # it cannot end before its files are closed, and that needs no daemon
        r = umount(build, s.view.mnt, wait=2, direct=True, timeout=60)
        ok(r.code != 0, "umount: %r" % r)
        if not mounted_at(s.view.mnt):
            ok("is stopped" in r.out and all(n in r.out for n in s.names), "why, and what is left: %r" % r)
        s.view.signal(signal.SIGCONT)
        s.let_go()
        if mounted_at(s.view.mnt):
            quiet(umount(build, s.view.mnt))
        eq(s.ended(), 0, "exit code of diskguard")
        s.take_away()
        s.check_all_back()


@suite.case("a signal ends the waiting, and the images are named")
def _(build):
    needs_hooks(build)
    with scene(build, NAMES[:2]) as s:
        s.hold()
        s.hang_at(s.inodes)
        s.let_go()
        p = subprocess.Popen(build.command(helper(build), s.view.mnt), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             env=build.env())
        guardian.process(p.pid)
        wait_for(lambda: not mounted_at(s.view.mnt), "it is unmounted")
        p.terminate()
        out = p.communicate(timeout=30)[0].decode()
        ok(p.returncode == 1 and "signal 15" in out and all(n in out for n in s.names), "exit %s: %s" % (p.returncode, out))
        s.hang_at([])
        eq(s.ended(), 0, "exit code of diskguard")


@suite.case("other mountpoints of the view: a bind mount goes on in silence; images held in another namespace are an error")
def _(build):
    with scene(build, NAMES[:2]) as s:
        other = suite_tmp()
        must("mount", "--bind", s.view.mnt, other)
        quiet(umount(build, other))
        ok(s.view.alive(), "it goes on")
        inside = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sh", "-c", 'exec 9<>"$1/$2"; echo; read x', "sh", s.view.mnt, s.names[0]],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        guardian.process(inside.pid)
        inside.stdout.readline()
        r = umount(build, s.view.mnt, timeout=30)
        ok(r.code == 1 and "another mount namespace" in r.out and s.names[0] in r.out, "held elsewhere: %r" % r)
        inside.communicate()
        eq(s.ended(), 0, "exit code of diskguard")
        s.take_away()
        s.check_all_back()


@suite.case("a view of another subtype, a read-only view, and file systems that are none")
def _(build):
    with scene(build, NAMES, ["subtype=glusterfs"]) as s:
        s.hold()
        s.let_go()
        quiet(umount(build, s.view.mnt))
        eq(s.ended(), 0, "exit code of diskguard")
        s.take_away()
        s.check_all_back()
    with scene(build, NAMES[:2], ["ro"]) as s:
        quiet(umount(build, s.view.mnt))
        eq(s.ended(), 0, "exit code of diskguard")
    plain = suite_tmp()
    must("mount", "-t", "tmpfs", "none", plain)
    quiet(umount(build, plain, direct=True))
    ok(not mounted_at(plain), "a tmpfs is unmounted")
    r = umount(build, plain, direct=True)
    eq(r.code, 32, "not mounted: %r" % r)
    eq(umount(build, plain, wait="x", direct=True).code, 2, "a bound that is none")
    eq(umount(build, direct=True).code, 2, "no mountpoint")


@suite.case("mount(8)'s table has the view as long as it is mounted, and no longer, whoever ends it")
def _(build):
    def table():
        with open("/run/mount/utab", encoding="utf-8") as f:
            return f.read()

    with scene(build, NAMES[:1]) as s:
        point = s.view.mnt.replace(" ", "\\040")
        ok("TARGET=%s ROOT=/ OPTS=helper=fuse.diskguard" % point in table(), "it has: " + table())
        s.view.signal(signal.SIGTERM)
        eq(s.ended(), 0, "exit code of diskguard")
        ok(point not in table(), "it has not, after SIGTERM: " + table())
        s.view.start()
        quiet(umount(build, s.view.mnt))
        s.ended()
        ok(point not in table(), "it has not, after umount: " + table())


@suite.case("fstab: mount -a, umount by mountpoint; and umount -a -t")
def _(build):
    if build.sanitize != "none":
        raise Skip("the mount helper cannot start a sanitized program")
    install_helper(build)
    ds, host, mnt = Datastore(build), Host(suite_tmp(), "a"), suite_tmp()
    name = "diskguard-test-%d" % os.getpid()
    os.symlink(build.diskguard, "/sbin/" + name)  # in the overlay
    make_qcow2(ds.raw("a b.qcow2"), "64M")
    fstab = os.path.join(ds.base, "fstab")
    with open(fstab, "w", encoding="ascii") as f:
        f.write("%s %s fuse.%s host-id=%s,state-dir=%s,_netdev,x-systemd.mount-timeout=10min 0 0\n" % (ds.path, mnt, name, host.uuid, host.state))
    for argv in ([mnt], ["-a", "-t", "fuse.diskguard"]):
        must("mount", "-a", "-T", fstab)
        with Proc() as p:
            p.call("open", mnt + "/a b.qcow2", RDWR)
        quiet(umount(build, *argv))
        ok(not mounted_at(mnt) and not is_sealed(ds.raw("a b.qcow2")), "unmounted, and the header is back")
        eq(ds.claim_of("a b.qcow2"), "free")


if __name__ == "__main__":
    own_namespace()
    suite.main()
