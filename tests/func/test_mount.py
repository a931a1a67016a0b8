#!/usr/bin/env python3
"""test_mount: mounting, refusing to mount, unmounting, and what a crash of the daemon leaves behind."""
import errno
import os
import shutil
import signal
import socket
import stat
import subprocess

import dgops
import guardian
from dgqemu import make_qcow2
from dgtest import (Datastore, Fail, Host, Proc, Skip, Suite, View, ended, eq, is_sealed, mounted_at, must, ok, pair, raises, read_at, run,
                    suite_tmp, wait_for)

suite = Suite(__file__)
RDWR = os.O_RDWR


def our_mounts():
    """Mount points below the suite's own directories: other programs mount and unmount meanwhile."""
    top = os.path.dirname(suite_tmp())
    return sorted(m for m in guardian.mounts() if m.startswith(top + "/"))


def refuses_to_mount(build, argv, hint="", usage=False):
    """The program must end with an error, print one line, and mount nothing."""
    before = our_mounts()
    r = run(*build.command(build.diskguard, *argv), env=build.env(), timeout=30)
    what = " ".join(map(str, argv))
    ok(r.code > 0, "exit code %d: %s" % (r.code, what))
    if usage:
        eq(r.code, 2, "exit code of a wrong command line: " + what)
    eq(len(r.out.strip().splitlines()), 1, "lines on stderr of %s: %s" % (what, r.out))
    ok(hint.lower() in r.out.lower(), "the line does not say %r: %s" % (hint, r.out))
    eq(our_mounts(), before, "mounts after " + what)
    return r.out


@suite.case("--help and --version")
def _(build):
    out = must(*build.command(build.diskguard, "--help"))
    for word in ("host-id=", "state-dir=", "wait=", "threshold=", "damaged=", "seal=", "raw=", "writers=", "entry-timeout=", "attr-timeout="):
        ok(word in out, "--help does not name " + word)
    ok(must(*build.command(build.diskguard, "--version")).strip(), "--version")


@suite.case("wrong options and arguments: one line on stderr, exit code 2, no mount")
def _(build):
    ds = Datastore(build)
    mnt, state = suite_tmp(), suite_tmp()
    base = "state-dir=%s,host-id=%s" % (state, Host(ds.base, "x").uuid)
    for option in ("wait=x", "wait=-1", "wait=", "threshold=12Q", "threshold=-5", "seal=maybe", "damaged=no", "writers=all", "raw=", "raw=auto:*.x", "raw=*.x:none", "host-id=nonsense",
                   "host-id=12345678-1234-1234-1234-12345678901", "no-such-option", "fence=perhaps", "state-dir=", "wait=1e3",
                   "attr-timeout=-1", "entry-timeout=", "attr-timeout=1s", "entry-timeout=3601", "attr-timeout=nan"):
        refuses_to_mount(build, [ds.path, mnt, "-f", "-o", base + "," + option], option.split("=")[0], usage=True)
    for argv in ([], [ds.path], [ds.path, mnt, "surplus"], [ds.path, mnt, "--no-such-option"]):
        refuses_to_mount(build, argv)


@suite.case("a missing directory, a file, or a mountpoint inside its datastore: refused")
def _(build):
    ds = Datastore(build)
    mnt, options = suite_tmp(), ["-f", "-o", "state-dir=" + suite_tmp()]
    with open(os.path.join(ds.base, "file"), "wb"):
        pass
    refuses_to_mount(build, [ds.base + "/missing", mnt, *options], "missing")
    refuses_to_mount(build, [ds.path, ds.base + "/missing", *options], "missing")
    refuses_to_mount(build, [ds.base + "/file", mnt, *options], "file")
    refuses_to_mount(build, [ds.path, ds.base + "/file", *options], "file")
    os.mkdir(ds.raw("inside"))
    refuses_to_mount(build, [ds.path, ds.raw("inside"), *options], "inside")
    refuses_to_mount(build, [ds.path, ds.path, *options])
    os.symlink(ds.raw("inside"), ds.base + "/link")
    refuses_to_mount(build, [ds.path, ds.base + "/link", *options], "inside")
    outer = suite_tmp()
    os.mkdir(outer + "/sub")
    must(*build.command(build.ctl, "init", outer + "/sub"), env=build.env())
    refuses_to_mount(build, [outer + "/sub", outer + "/sub", *options])


@suite.case("a datastore that was never initialised is refused with the hint; so is a copy of one")
def _(build):
    ds = Datastore(build, init=False)
    options = ["-f", "-o", "state-dir=" + suite_tmp()]
    refuses_to_mount(build, [ds.path, suite_tmp(), *options], "diskguardctl init")
    ds.init()
    copy = os.path.join(ds.base, "copy")
    shutil.copytree(ds.path, copy)
    refuses_to_mount(build, [copy, suite_tmp(), *options])
    r = run(*build.command(build.ctl, "init", ds.path), env=build.env())
    eq(r.code, 3, "exit code of a second init: " + r.out)


@suite.case("an unwritable state directory is refused")
def _(build):
    ds = Datastore(build)
    with open(os.path.join(ds.base, "file"), "wb"):
        pass
    refuses_to_mount(build, [ds.path, suite_tmp(), "-f", "-o", "state-dir=%s/file/state" % ds.base], "state")
    ro = suite_tmp()
    must("mount", "-t", "tmpfs", "-o", "ro", "none", ro)
    try:
        refuses_to_mount(build, [ds.path, suite_tmp(), "-f", "-o", "state-dir=" + ro], ro)
        refuses_to_mount(build, [ds.path, suite_tmp(), "-f", "-o", "state-dir=%s/deeper" % ro], ro)
    finally:
        must("umount", ro)


@suite.case("a second daemon on the same journal, or of the same identity, is refused")
def _(build):
    with pair(build, hosts=("a",)) as p:
        same = "host-id=%s,state-dir=%s" % (p.a.host.uuid, p.a.host.state)
        refuses_to_mount(build, [p.ds.path, suite_tmp(), "-f", "-o", same])
        other_state = "host-id=%s,state-dir=%s" % (p.a.host.uuid, suite_tmp())
        refuses_to_mount(build, [p.ds.path, suite_tmp(), "-f", "-o", other_state])
        os.listdir(p.a.path())
    again = View(p.ds, Host(p.ds.base, "b"))
    again.stop()


@suite.case("an unknown journal file is refused with the way out")
def _(build):
    ds = Datastore(build)
    host = Host(ds.base, "a")
    View(ds, host).stop()
    journal = [f for f in os.listdir(host.state) if f.endswith(".db")]
    eq(len(journal), 1, "journal files: %s" % os.listdir(host.state))
    for path in host.journal_files():  # its write-ahead log could still hold every page
        os.unlink(path)
    with open(os.path.join(host.state, journal[0]), "wb") as f:
        f.write(b"this is not a database" * 100)
    refuses_to_mount(build, [ds.path, suite_tmp(), "-f", "-o", "host-id=%s,state-dir=%s" % (host.uuid, host.state)], journal[0])


def helper_name(build):
    """mount(8) starts a program of this name, from the usual places: a link to ours for the length of the suite."""
    name = "diskguard"
    if os.path.lexists("/usr/local/sbin/diskguard"):  # somebody installed one
        name = "diskguard-test-%d" % os.getpid()
    os.symlink(build.diskguard, "/usr/local/sbin/" + name)
    guardian.file("/usr/local/sbin/" + name)
    return name


def daemon_of(mnt):
    """Pid of the background diskguard that serves a mount point; made known to the guardian."""
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            try:
                with open("/proc/%s/cmdline" % pid, "rb") as f:
                    words = f.read().decode(errors="replace").split("\0")
            except OSError:
                continue
            if mnt in words and "diskguard" in words[0] and not words[0].startswith("/bin/sh"):
                guardian.process(int(pid))
                return int(pid)
    return None


def end_of(pid):
    wait_for(lambda: ended(pid), "the daemon %d ends" % pid)


@suite.case("background: the parent returns when the mount answers; umount and fusermount3 -u end it")
def _(build):
    ds = Datastore(build)
    for number, end in enumerate((["umount"], ["fusermount3", "-u"])):
        mnt, host = suite_tmp(), Host(ds.base, "h%d" % number)
        must(*build.command(build.diskguard, ds.path, mnt, "-o", "host-id=%s,state-dir=%s" % (host.uuid, host.state)), env=build.env())
        pid = daemon_of(mnt)
        ok(pid, "no daemon runs in the background")
        ok(mounted_at(mnt), "mounted when the parent returned")
        eq(os.listdir(mnt), [])
        must(*end, mnt)
        end_of(pid)
        ok(not mounted_at(mnt), "not mounted any more")


@suite.case("mount -t fuse.diskguard, and a line of fstab through mount -a")
def _(build):
    if build.sanitize != "none":
        raise Skip("the mount helper cannot start a sanitized program")
    ds = Datastore(build)
    make_qcow2(ds.raw("img.qcow2"), "64M")
    host = Host(ds.base, "a")
    options = "host-id=%s,state-dir=%s,wait=1" % (host.uuid, host.state)
    mnt = suite_tmp()
    fstab = os.path.join(ds.base, "fstab")
    name = helper_name(build)
    with open(fstab, "w", encoding="ascii") as f:
        f.write("%s %s fuse.%s %s,noatime,x-systemd.requires-mounts-for=/ 0 0\n" % (ds.path, mnt, name, options))
    for argv in (["mount", "-t", "fuse." + name, ds.path, mnt, "-o", options], ["mount", "-a", "-T", fstab]):
        must(*argv)
        pid = wait_for(lambda: daemon_of(mnt), "the daemon")
        eq(guardian.mounts()[mnt][1], "fuse.diskguard", "type of the mount")
        must("qemu-io", "-c", "write 0 64k", mnt + "/img.qcow2")
        must("umount", mnt)
        end_of(pid)
        ok(not is_sealed(ds.raw("img.qcow2")), "restored")


@suite.case("a read-only datastore gives a read-only view")
def _(build):
    ds = Datastore(build)
    make_qcow2(ds.raw("img.qcow2"), "64M")
    ro = suite_tmp()
    must("mount", "--bind", ds.path, ro)
    try:
        must("mount", "-o", "remount,bind,ro", ro)
        view = View(ds, Host(ds.base, "a"), datastore=ro)
        raises(errno.EROFS, os.open, view.path("img.qcow2"), RDWR)
        raises(errno.EROFS, os.mkdir, view.path("d"))
        must("qemu-img", "info", view.path("img.qcow2"))
        view.stop()
    finally:
        must("umount", ro)


@suite.case("-o ro gives a read-only view")
def _(build):
    ds = Datastore(build)
    make_qcow2(ds.raw("img.qcow2"), "64M")
    view = View(ds, Host(ds.base, "a"), ["ro"])
    raises(errno.EROFS, os.open, view.path("img.qcow2"), RDWR)
    must("qemu-img", "info", view.path("img.qcow2"))
    view.stop()


@suite.case("SIGTERM and lazy unmount with open handles restore everything")
def _(build):
    for number, end in ((signal.SIGTERM, None), (signal.SIGINT, None), (None, "umount")):
        ds = Datastore(build, base=suite_tmp())
        view = View(ds, Host(ds.base, "a"))
        names = ["i%d.qcow2" % i for i in range(5)]
        want = {}
        with Proc() as w:
            for name in names:
                make_qcow2(ds.raw(name), "64M")
                fd = w.call("open", view.path(name), RDWR)
                w.call("pwrite", fd, name.encode(), 1 << 20)
                with open(view.path(name), "rb") as f:
                    want[name] = f.read()
                ok(is_sealed(ds.raw(name)), "sealed")
            if number:
                view.signal(number)
                eq(view.wait_end(), 0, "exit code after the signal; log: " + view.log()[-500:])
            else:
                must("umount", "-l", view.mnt)
                w.kill()
                eq(view.wait_end(), 0, "exit code after the lazy unmount")
            for name in names:
                ok(not is_sealed(ds.raw(name)), name + " is restored")
                eq(read_at(ds.raw(name), 0, 2 << 20), want[name], name)
            ds.wait_settled()
        view.forget()
        view.unmount_dead()
        ds.fsck_clean(view.host)


@suite.case("kill -9, then a restart recovers before the mount answers")
def _(build):
    with pair(build, "wait=0") as p, Proc() as w:
        make_qcow2(p.ds.raw("img.qcow2"), "64M")
        fd = w.call("open", p.a.path("img.qcow2"), RDWR)
        w.call("pwrite", fd, b"guest data", 1 << 20)
        with open(p.a.path("img.qcow2"), "rb") as f:
            want = f.read()
        p.a.kill9()
        ok(is_sealed(p.ds.raw("img.qcow2")), "sealed after the crash")
        mark = p.b.log_size()
        raises(errno.EBUSY, os.open, p.b.path("img.qcow2"), RDWR)
        p.b.wait_log("img.qcow2", mark)
        with open(p.b.path("img.qcow2"), "rb") as f:
            eq(f.read(), want, "the other host still reads the truth")
        p.a.start()
        ok(not is_sealed(p.ds.raw("img.qcow2")), "restored as soon as the mount answers")
        eq(read_at(p.ds.raw("img.qcow2"), 0, 2 << 20), want, "content")
        p.ds.wait_settled()
        os.close(os.open(p.b.path("img.qcow2"), RDWR))
        raises((errno.EBADF, errno.ENOTCONN, errno.EIO), w.call, "pwrite", fd, b"late", 0)


@suite.case(".diskguard cannot be seen or reached through the view")
def _(build):
    with pair(build, hosts=("a",)) as p:
        os.mkdir(p.a.path("d"))
        with open(p.a.path("f"), "wb"):
            pass
        hidden = p.a.path(".diskguard")
        ok(".diskguard" not in os.listdir(p.a.path()), "listed")
        raises(errno.ENOENT, os.stat, hidden)
        raises(errno.ENOENT, os.listdir, hidden)
        raises(errno.ENOENT, os.stat, hidden + "/claims")
        raises(errno.ENOENT, os.chmod, hidden, 0o777)
        raises(errno.ENOENT, os.rmdir, hidden)
        raises(errno.ENOENT, os.rename, hidden, p.a.path("mine"))
        denied = (errno.EPERM, errno.EACCES)
        raises(denied, os.mkdir, hidden)
        raises(denied, os.open, hidden, RDWR | os.O_CREAT)
        raises(denied, os.mkfifo, hidden)
        raises(denied, os.symlink, "x", hidden)
        raises(denied, os.link, p.a.path("f"), hidden)
        raises(denied, os.rename, p.a.path("d"), hidden)
        raises((*denied, errno.ENOENT), dgops.rename2, p.a.path("d"), hidden, dgops.RENAME_EXCHANGE)
        os.symlink(".diskguard", p.a.path("way"))
        os.symlink("d/../.diskguard/claims", p.a.path("way2"))
        raises(errno.ENOENT, os.listdir, p.a.path("way"))
        raises(errno.ENOENT, os.listdir, p.a.path("way2"))
        os.mkdir(p.a.path("d/.diskguard"))  # only the one at the top is ours
        kind, raw_handle = dgops.handle_of(p.ds.raw(".diskguard"))
        raises((errno.ESTALE, errno.EINVAL, errno.ENOENT), dgops.open_handle, p.a.path(), (kind, raw_handle), os.O_RDONLY)
        try:
            root_handle = dgops.handle_of(p.a.path())
        except OSError:
            return
        inode = os.stat(p.ds.raw(".diskguard")).st_ino
        forged = (root_handle[0], inode.to_bytes(8, "little")[:len(root_handle[1])].ljust(len(root_handle[1]), b"\0"))
        try:
            fd = dgops.open_handle(p.a.path(), forged, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return
        ok("claims" not in os.listdir(fd), "opened by a forged handle")
        os.close(fd)


@suite.case("the raw side of .diskguard is for root alone")
def _(build):
    ds = Datastore(build)
    eq(stat.S_IMODE(os.stat(ds.raw(".diskguard")).st_mode), 0o700)


@suite.case("other users may use the view of a root daemon (allow_other)")
def _(build):
    with pair(build, hosts=("a",)) as p, Proc(1001) as user:
        os.mkdir(p.a.path("open"))
        os.chmod(p.a.path("open"), 0o777)
        user.call("mkdir", p.a.path("open/mine"))
        eq(os.stat(p.ds.raw("open/mine")).st_uid, 1001)


@suite.case("systemd: ready is reported only after the mount answers (Type=notify)")
def _(build):
    ds = Datastore(build)
    host = Host(ds.base, "a")
    mnt = suite_tmp()
    address = os.path.join(ds.base, "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(address)
        s.settimeout(60)
        p = subprocess.Popen(build.command(build.diskguard, ds.path, mnt, "-f", "-o", "host-id=%s,state-dir=%s" % (host.uuid, host.state)),
                             env=build.env(NOTIFY_SOCKET=address), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        guardian.process(p.pid)
        text = ""
        try:
            while "READY=1" not in text:
                text += s.recv(4096).decode() + "\n"
        except socket.timeout:
            raise Fail("no READY=1: %r" % text) from None
        ok(mounted_at(mnt), "READY=1 before the mount")
        eq(os.listdir(mnt), [])
        must("umount", mnt)
        eq(p.wait(30), 0, "exit code")
        p.stderr.close()


if __name__ == "__main__":
    suite.main()
