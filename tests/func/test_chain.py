#!/usr/bin/env python3
"""test_chain: the files that an image needs (backing chain, external data file) are protected while it is held, on every host."""
import errno
import json
import os
import signal

import dgops
from dgqemu import QemuIo, Vm, make_qcow2
from dgtest import Proc, Skip, Suite, eq, must, ok, pair, raises, refused, run, sha, stopped, wait_for

suite = Suite(__file__, needs="hooks", memory=True)
RDWR, RDONLY = os.O_RDWR, os.O_RDONLY
BUSY = "Device or resource busy"


def marks(ds):
    return ds.inner("marks")


def open_close(path, flags=RDWR):
    os.close(os.open(path, flags))


def overlay(path, backing, *options):
    must("qemu-img", "create", "-q", "-f", "qcow2", *options, "-b", backing, "-F", "qcow2", path, "64M")


def chain(ds):
    """top -> mid -> base, top in a directory of its own."""
    make_qcow2(ds.raw("base.qcow2"))
    must("qemu-io", "-c", "write -P 7 0 1M", ds.raw("base.qcow2"))
    overlay(ds.raw("mid.qcow2"), "base.qcow2")
    os.mkdir(ds.raw("vm"))
    overlay(ds.raw("vm/top.qcow2"), "../mid.qcow2")


def needs(view, image):
    show = json.loads(must(*view.build.command(view.build.ctl, "--json", "show", view.path(image))))
    return [(n["path"], n["protected"]) for n in show["needs"]]


def no_writer(view, name):
    """Nobody may write, truncate, replace or remove it through this view; everybody may read."""
    path = view.path(name)
    before = sha(view.ds.raw(name))
    raises(errno.EBUSY, open_close, path)
    raises(errno.EBUSY, open_close, path, os.O_WRONLY | os.O_TRUNC)
    raises(errno.EBUSY, os.truncate, path, 4096)
    raises(errno.EBUSY, os.unlink, path)
    spare = path + ".spare"
    with open(spare, "w") as f:
        f.write("x")
    raises(errno.EBUSY, os.rename, spare, path)
    os.unlink(spare)
    open_close(path, RDONLY)
    eq(sha(view.ds.raw(name)), before, "the file below")


def writable(view, name):
    def tried():
        try:
            open_close(view.path(name))
            return True
        except OSError as e:
            eq(e.errno, errno.EBUSY, "errno")
            return False
    wait_for(tried, "%s can be opened for write on %s again" % (name, view.host.name))


@suite.case("a whole chain is protected here and there, and free after the release")
def _(build):
    with pair(build, "wait=0") as p:
        chain(p.ds)
        with QemuIo(p.a.path("vm/top.qcow2")) as holder:
            eq(len(marks(p.ds)), 2, "marks")
            for view in p.views:
                for name in ("mid.qcow2", "base.qcow2"):
                    no_writer(view, name)
                    must("qemu-io", "-r", "-U", "-c", "read -P 7 0 1M", view.path(name))
            p.b.wait_log(r"refused .*of 'mid.qcow2'.*needed by 'vm/top.qcow2', which host .* holds since")
            show = must(*build.command(build.ctl, "show", p.a.path("vm/top.qcow2")))
            ok("needs:      backing file ../mid.qcow2, qcow2, kept from other writers" in show and "protects:   2 files" in show, "show of the image above: " + show)
            show = json.loads(must(*build.command(build.ctl, "--json", "show", p.b.path("base.qcow2"))))
            eq([n["path"] for n in show["needed_by"]], ["vm/top.qcow2"], "show of the file below: %s" % show)
            holder.do("write -P 1 0 64k")
            holder.close()
        p.ds.wait_settled()
        wait_for(lambda: not marks(p.ds), "marks are gone")
        for view in p.views:
            for name in ("mid.qcow2", "base.qcow2"):
                writable(view, name)


@suite.case("a file below that another host or process writes keeps the overlay out")
def _(build):
    with pair(build, "wait=0") as p, Proc() as writer:
        chain(p.ds)
        for view in (p.b, p.a):
            fd = writer.call("open", view.path("base.qcow2"), RDWR)
            since = p.a.log_size()
            raises(errno.EBUSY, open_close, p.a.path("vm/top.qcow2"))
            p.a.wait_log("refused open for write of 'vm/top.qcow2'.*it needs its backing file 'base.qcow2', which host", since)
            writer.call("close", fd)
            p.ds.wait_free("base.qcow2")
            writable(p.a, "vm/top.qcow2")
            p.ds.wait_settled()


@suite.case("the same process may write what its image needs")
def _(build):
    with pair(build, "wait=0") as p, Proc() as one:
        chain(p.ds)
        for first, second in (("vm/top.qcow2", "base.qcow2"), ("base.qcow2", "vm/top.qcow2")):
            fds = [one.call("open", p.a.path(name), RDWR) for name in (first, second)]
            for fd in fds:
                one.call("close", fd)
            p.ds.wait_settled()


@suite.case("absolute names, of the view and of the datastore, symbolic links; names that lead nowhere refuse nothing")
def _(build):
    with pair(build, "wait=0") as p:
        make_qcow2(p.ds.raw("base.qcow2"))
        os.symlink("base.qcow2", p.ds.raw("link.qcow2"))
        for number, name in enumerate((p.a.path("base.qcow2"), p.ds.raw("base.qcow2"), "link.qcow2", p.ds.raw("link.qcow2"))):
            image = "o%d.qcow2" % number
            overlay(p.ds.raw(image), name, "-u")
            fd = os.open(p.a.path(image), RDWR)
            no_writer(p.b, "base.qcow2")
            eq(needs(p.a, image), [(name, True)], "what show says of " + name)
            eq(needs(p.b, image), [(name, True)], "what show says of " + name)
            why = json.loads(run(*build.command(build.ctl, "--json", "why", p.b.path("base.qcow2"))).out)
            eq((why["refused"], why["reason"]), (True, "needed"), "why: %s" % why)
            os.close(fd)
            p.ds.wait_settled()
        for number, name in enumerate(("missing.qcow2", "/etc/hostname", "../../x", "json:{}", "nbd://localhost/x", "o9.qcow2")):
            image = "o9.qcow2" if name == "o9.qcow2" else "n%d.qcow2" % number
            overlay(p.ds.raw(image), name, "-u")
            fd = os.open(p.a.path(image), RDWR)
            ok(needs(p.a, image) in ([], [(name, False)]), "what show says of %s: %s" % (name, needs(p.a, image)))
            os.close(fd)
        p.ds.wait_settled()
        eq(marks(p.ds), [], "marks of names that lead nowhere")


class Scene:
    """Ways to a datastore that are other ones than its own path and its view's mount point."""

    def __init__(self, p):
        self.p, self.base, self.mounts = p, p.ds.base, []

    def dir(self, name):
        path = os.path.join(self.base, name)
        os.makedirs(path, exist_ok=True)
        return path

    def link(self, name, target):
        os.symlink(target, os.path.join(self.base, name))
        return os.path.join(self.base, name)

    def bind(self, name, what):
        path = os.path.join(self.base, name)
        if os.path.isdir(what):
            os.mkdir(path)
        else:
            open(path, "w").close()
        must("mount", "--bind", what, path)
        self.mounts.append(path)
        return path

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for path in reversed(self.mounts):
            run("umount", "-l", path)


def spellings(p, scene):
    """Names under which a program of this host opens vm/base.qcow2 of the datastore."""
    mnt, raw, view = p.a.mnt, p.ds.raw(), os.path.basename(p.a.mnt)
    up = os.path.dirname(mnt)
    pool = scene.link("pool", mnt)
    scene.link("pool2", "pool/../" + view)
    os.symlink(mnt + "/vm", p.ds.raw("in-view"))
    os.symlink(raw + "/vm/base.qcow2", p.ds.raw("in-raw.qcow2"))
    os.symlink("../%s/vm" % view, p.ds.raw("out-and-in"))
    outer = scene.dir("outer")
    os.symlink("../../" + view, scene.dir("outer/deep") + "/way")
    return [mnt + "//vm/base.qcow2", mnt + "/./vm/./base.qcow2", mnt.replace("/", "//") + "/vm//base.qcow2", mnt + "/vm/../vm/base.qcow2",
            up + "/outer/../" + view + "/vm/base.qcow2", raw + "/./vm//base.qcow2", raw + "/../" + os.path.basename(raw) + "/vm/base.qcow2",
            pool + "/vm/base.qcow2", scene.base + "/pool2/vm/base.qcow2", scene.link("raw-pool", raw) + "/vm/base.qcow2",
            scene.link("image", mnt + "/vm/base.qcow2"), outer + "/deep/way/vm/base.qcow2",
            "in-view/base.qcow2", "in-raw.qcow2", "out-and-in/base.qcow2", "../%s/vm/base.qcow2" % view, "vm/../../%s/vm/base.qcow2" % view,
            scene.bind("bind-view", mnt) + "/vm/base.qcow2", scene.bind("bind-sub", mnt + "/vm") + "/base.qcow2", scene.bind("bind-raw", raw) + "/vm/base.qcow2",
            scene.bind("bind-raw-sub", raw + "/vm") + "/base.qcow2", scene.bind("bind-sub2", mnt + "/vm") + "/../bind-view/vm/base.qcow2",
            scene.bind("bind-file", raw + "/vm/base.qcow2"), scene.bind("bind-view-file", mnt + "/vm/base.qcow2"), p.b.mnt + "/vm/base.qcow2",
            "file:" + mnt + "//vm/base.qcow2",
            'json:{"driver":"qcow2","file":{"driver":"file","filename":"%s//vm/base.qcow2"}}' % mnt,
            'json:{"driver":"qcow2","file.driver":"file","file.filename":"%s/vm/base.qcow2"}' % pool,
            'json:{"file":{"driver":"raw","file":{"filename":"%s/vm/base.qcow2"}}}' % raw]


@suite.case("a name of the base in any spelling: what a hypervisor would open is protected, without a request to the view", limit=300)
def _(build):
    with pair(build, "wait=0") as p, Scene(p) as scene, Proc() as holder:
        os.mkdir(p.ds.raw("vm"))
        make_qcow2(p.ds.raw("vm/base.qcow2"))
        key = "%016x-" % os.stat(p.ds.raw("vm/base.qcow2")).st_ino
        for number, name in enumerate(spellings(p, scene)):
            image = "o%d.qcow2" % number
            overlay(p.ds.raw(image), name, "-u")
            if ":" not in name:
                eq(os.stat(os.path.join(p.a.mnt, name)).st_ino, os.stat(p.ds.raw("vm/base.qcow2")).st_ino, "what the test means by " + name)
            since = p.a.log_size()
            fd = holder.call("open", p.a.path(image), RDWR)
            ok([m for m in marks(p.ds) if m.startswith(key)], "no mark for the base under the name %s: %s" % (name, p.a.log()[since:]))
            for view in p.views:
                raises(errno.EBUSY, open_close, view.path("vm/base.qcow2"))
                raises(errno.EBUSY, os.unlink, view.path("vm/base.qcow2"))
            ok("not protected" not in p.a.log()[since:], p.a.log()[since:])
            holder.call("close", fd)
            p.ds.wait_free(image)


@suite.case("names of a base's own base count from where the hypervisor found that, not from where a symbolic link leads; json: and file: from its working directory")
def _(build):
    with pair(build, "wait=0") as p, Proc() as holder:
        for folder in ("here", "there"):
            os.mkdir(p.ds.raw(folder))
        for name in ("here/base.qcow2", "there/base.qcow2"):
            make_qcow2(p.ds.raw(name))
        overlay(p.ds.raw("there/mid.qcow2"), "base.qcow2")
        os.symlink("../there/mid.qcow2", p.ds.raw("here/mid.qcow2"))
        overlay(p.ds.raw("here/top.qcow2"), "mid.qcow2")
        for name in ("file:base.qcow2", 'json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}}'):
            overlay(p.ds.raw("from-cwd-%s.qcow2" % name[:4]), name, "-u")
        fd = holder.call("open", p.a.path("here/top.qcow2"), RDWR)
        raises(errno.EBUSY, open_close, p.b.path("here/base.qcow2"))
        open_close(p.b.path("there/base.qcow2"))
        holder.call("close", fd)
        p.ds.wait_settled()
        holder.call("chdir", p.a.path("there"))
        for name in ("file", "json"):
            fd = holder.call("open", p.a.path("from-cwd-%s.qcow2" % name), RDWR)
            raises(errno.EBUSY, open_close, p.b.path("there/base.qcow2"))
            holder.call("close", fd)
            p.ds.wait_settled()


@suite.case("what leads outside is one warning for each image and name, not one for each open")
def _(build):
    with pair(build, "wait=0") as p, Scene(p) as scene, Proc() as holder:
        with open(os.path.join(scene.dir("elsewhere"), "x.qcow2"), "wb") as f:
            f.write(b"x")
        os.symlink(scene.base + "/elsewhere/x.qcow2", p.ds.raw("away.qcow2"))
        names = [scene.base + "/elsewhere/x.qcow2", "away.qcow2", "../elsewhere/x.qcow2", "nbd://localhost/x", "/dev/null", "json:{}",
                 'json:{"driver":"nbd","server":{"type":"inet","host":"h","port":"1"}}']
        for number, name in enumerate(names):
            overlay(p.ds.raw("n%d.qcow2" % number), name, "-u")
            for _ in range(3):
                fd = holder.call("open", p.a.path("n%d.qcow2" % number), RDWR)
                holder.call("close", fd)
                p.ds.wait_free("n%d.qcow2" % number)
            lines = [line for line in p.a.log().splitlines() if "'n%d.qcow2': its backing file" % number in line and "is not protected" in line]
            eq(len(lines), 1, "lines about %s: %s" % (name, p.a.log()))
        eq(marks(p.ds), [], "marks of names that lead outside")


@suite.case("a file system on the way that does not answer: the image is not opened, with a line, and the view goes on")
def _(build):
    with pair(build, "wait=0") as p, Scene(p) as scene, Proc() as holder, Proc() as other:
        make_qcow2(p.ds.raw("base.qcow2"))
        dead = scene.dir("dead")
        fuse = os.open("/dev/fuse", os.O_RDWR)  # nobody answers its requests
        try:
            libc = dgops.libc
            options = ("fd=%d,rootmode=40000,user_id=0,group_id=0" % fuse).encode()
            ok(libc.mount(b"dead", os.fsencode(dead), b"fuse", 6, options) == 0, "mount of a FUSE without a server")
            scene.mounts.append(dead)
            # This is how the root of a view is looked at: it would hang here if it sent a request.
            fd = other.call("open", dead, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
            eq(other.call("readlink", "/proc/self/fd/%d" % fd), dead)
            other.call("close", other.call("open", "/proc/self/fdinfo/%d" % fd, RDONLY))
            other.call("close", fd)
            overlay(p.ds.raw("top.qcow2"), dead + "/x/base.qcow2", "-u")
            holder.send("open", p.a.path("top.qcow2"), RDWR)
            ok(not holder.ready(0.5), "it waits for that file system")
            other.call("close", other.call("open", p.a.path("base.qcow2"), RDWR))
            raises(errno.ETIMEDOUT, holder.recv, 30)
            p.a.wait_log(r"refused open for write of 'top\.qcow2'.*does not answer within 5 s")
        finally:
            os.close(fuse)  # ends it
        p.ds.wait_settled()


@suite.case("two overlays on two hosts over one base; commit is refused while the other runs")
def _(build):
    with pair(build, "wait=0") as p:
        make_qcow2(p.ds.raw("base.qcow2"))
        for name in ("one", "two"):
            overlay(p.ds.raw(name + ".qcow2"), "base.qcow2")
        with QemuIo(p.a.path("one.qcow2")) as one, QemuIo(p.b.path("two.qcow2")) as two:
            one.do("write -P 1 0 64k")
            two.do("write -P 2 0 64k")
            overlay(p.ds.raw("three.qcow2"), "base.qcow2")
            for view in p.views:
                refused("qemu-img", "commit", view.path("three.qcow2"), text=BUSY)
            one.close()
            p.ds.wait_free("one.qcow2")
            refused("qemu-img", "commit", p.a.path("one.qcow2"), text=BUSY)
            two.close()
        p.ds.wait_settled()
        must("qemu-img", "commit", p.a.path("one.qcow2"))
        p.ds.wait_settled()
        must("qemu-io", "-r", "-c", "read -P 1 0 64k", p.ds.raw("base.qcow2"))


@suite.case("qemu-img create, commit, rebase and rebase -u work, and protect what they lead to")
def _(build):
    with pair(build, "wait=1") as p:
        chain(p.ds)
        must("qemu-io", "-c", "write -P 9 2M 64k", p.a.path("vm/top.qcow2"))
        make_qcow2(p.ds.raw("other.qcow2"))
        must("qemu-img", "rebase", "-F", "qcow2", "-b", "../other.qcow2", p.a.path("vm/top.qcow2"))
        must("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "../mid.qcow2", p.a.path("vm/top.qcow2"))
        must("qemu-io", "-r", "-c", "read -P 7 0 1M", "-c", "read -P 9 2M 64k", p.a.path("vm/top.qcow2"))
        must("qemu-img", "commit", p.a.path("vm/top.qcow2"))
        overlay(p.a.path("vm/new.qcow2"), "../mid.qcow2")
        must("qemu-img", "check", "-q", p.ds.raw("mid.qcow2"))
        p.ds.wait_settled()


@suite.case("rebase onto a file that another host writes: refused where QEMU opens it, said loudly where it only writes the name")
def _(build):
    with pair(build, "wait=0") as p, Proc() as writer:
        chain(p.ds)
        make_qcow2(p.ds.raw("other.qcow2"))
        fd = writer.call("open", p.b.path("other.qcow2"), RDWR)
        before = sha(p.ds.raw("vm/top.qcow2"))
        refused("qemu-img", "rebase", "-F", "qcow2", "-b", "../other.qcow2", p.a.path("vm/top.qcow2"), text='Failed to get shared "write" lock')
        p.ds.wait_free("vm/top.qcow2")
        eq(sha(p.ds.raw("vm/top.qcow2")), before, "the overlay")
        must("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "../other.qcow2", p.a.path("vm/top.qcow2"))
        p.a.wait_log("'vm/top.qcow2' was written so that it needs 'other.qcow2' .backing file., which host .*, pid %d, has open for write" % writer.pid)
        p.ds.wait_free("vm/top.qcow2")
        raises(errno.EBUSY, open_close, p.a.path("vm/top.qcow2"))
        writer.call("close", fd)
        writable(p.a, "vm/top.qcow2")
        p.ds.wait_settled()


@suite.case("an external data file alone cannot be written elsewhere, whatever its name")
def _(build):
    with pair(build, "wait=0") as p:
        for name in ("data.bin", "data.raw"):
            image = name + ".qcow2"
            make_qcow2(p.ds.raw(image), "64M", "data_file=%s,data_file_raw=on" % p.ds.raw(name))
            with QemuIo(p.a.path(image)) as holder:
                holder.do("write -P 5 0 64k")
                for view in p.views:
                    no_writer(view, name)
                holder.close()
            p.ds.wait_settled()
            for view in p.views:
                writable(view, name)
            must("qemu-io", "-r", "-c", "read -P 5 0 64k", p.ds.raw(image))


@suite.case("a data file that is open as a plain file keeps the image out")
def _(build):
    with pair(build, "wait=0") as p, Proc() as writer:
        make_qcow2(p.ds.raw("img.qcow2"), "64M", "data_file=%s,data_file_raw=on" % p.ds.raw("data.bin"))
        for view in p.views:
            fd = writer.call("open", view.path("data.bin"), RDWR)
            since = p.a.log_size()
            raises(errno.EBUSY, open_close, p.a.path("img.qcow2"))
            p.a.wait_log("somebody writes its data file 'data.bin'", since)
            writer.call("close", fd)
            writable(p.a, "img.qcow2")
            p.ds.wait_settled()


@suite.case("live snapshot: the former top stays protected; block-commit into it works", limit=200)
def _(build):
    with pair(build, "wait=0") as p:
        make_qcow2(p.ds.raw("base.qcow2"))
        drive = ("-drive", "file=%s,format=qcow2,node-name=disk,id=d0,if=none" % p.a.path("base.qcow2"), "-device", "virtio-blk,drive=d0")
        with Vm(p.ds.base, "vm", drive) as vm:
            ok(vm.connect(), "VM starts: " + vm.error())
            vm.qmp("blockdev-snapshot-sync", **{"node-name": "disk", "snapshot-file": p.a.path("top.qcow2"), "format": "qcow2",
                                                "snapshot-node-name": "top"})
            key = "%016x-" % os.stat(p.ds.raw("base.qcow2")).st_ino
            ok(any(m.startswith(key) for m in marks(p.ds)), "the new top marks the former one: %s" % marks(p.ds))
            p.ds.wait_free("base.qcow2")  # QEMU reads it only from now on
            for view in p.views:
                no_writer(view, "base.qcow2")
            vm.qmp("block-commit", **{"job-id": "j", "device": "top", "auto-finalize": True})
            wait_for(lambda: any(j["status"] == "ready" for j in vm.qmp("query-jobs")), "commit is ready", 60)
            vm.qmp("job-complete", id="j")
            wait_for(lambda: not vm.qmp("query-jobs"), "commit is done", 60)
            raises(errno.EBUSY, open_close, p.b.path("base.qcow2"))
            vm.quit()
        p.ds.wait_settled()
        must("qemu-img", "check", "-q", p.ds.raw("base.qcow2"))


@suite.case("what a block-commit, a change of the backing file and a block-stream leave out can be removed while the VM runs; the rest stays protected", limit=200)
def _(build):
    with pair(build, "wait=0") as p:
        make_qcow2(p.ds.raw("base.qcow2"))
        must("qemu-io", "-c", "write -P 7 0 1M", p.ds.raw("base.qcow2"))
        for name, backing in (("mid.qcow2", "base.qcow2"), ("upper.qcow2", "mid.qcow2"), ("top.qcow2", "upper.qcow2")):
            overlay(p.ds.raw(name), backing)
        must("qemu-io", "-c", "write -P 8 1M 64k", p.ds.raw("mid.qcow2"))
        drive = ("-drive", "file=%s,format=qcow2,node-name=disk,id=d0,if=none" % p.a.path("top.qcow2"), "-device", "virtio-blk,drive=d0")
        with Vm(p.ds.base, "vm", drive) as vm:
            ok(vm.connect(), "VM starts: " + vm.error())

            def job(command, ends="concluded", **arguments):
                vm.qmp(command, **{"job-id": "j", "device": "disk", "auto-dismiss": False, **arguments})
                wait_for(lambda: any(j["status"] == ends for j in vm.qmp("query-jobs")), command + " is done", 60)
                ok(not any("error" in j for j in vm.qmp("query-jobs")), "%s: %s" % (command, vm.qmp("query-jobs")))
                vm.qmp("job-dismiss", id="j")

            def gone(name, view):
                for v in p.views:
                    writable(v, name)
                p.ds.wait_free(name)
                # The claim is free a moment before the daemon that freed it is done, and wait=0 waits for nothing.
                wait_for(lambda: removed(view.path(name)), name + " is removed")

            def removed(path):
                try:
                    os.unlink(path)
                except OSError as e:
                    eq(e.errno, errno.EBUSY, "removal of " + path)
                    return False
                return True

            for name in ("upper.qcow2", "mid.qcow2", "base.qcow2"):
                for view in p.views:
                    no_writer(view, name)
            # upper.qcow2 and mid.qcow2 go into base.qcow2
            job("block-commit", **{"top": p.a.path("upper.qcow2"), "base": p.a.path("base.qcow2")})
            p.ds.wait_free("base.qcow2")
            eq(len(marks(p.ds)), 1, "marks: the base alone")
            gone("upper.qcow2", p.a)
            gone("mid.qcow2", p.b)
            for view in p.views:
                no_writer(view, "base.qcow2")
            os.symlink("base.qcow2", p.ds.raw("name.qcow2"))
            for name in ("name.qcow2", "base.qcow2"):
                vm.qmp("change-backing-file", **{"device": "d0", "image-node-name": "disk", "backing-file": name})
                for view in p.views:
                    no_writer(view, "base.qcow2")
            # in doubt nothing is given up
            vm.qmp("change-backing-file", **{"device": "d0", "image-node-name": "disk", "backing-file": "missing.qcow2"})
            for view in p.views:
                no_writer(view, "base.qcow2")
            vm.qmp("change-backing-file", **{"device": "d0", "image-node-name": "disk", "backing-file": "base.qcow2"})
            job("block-stream")
            eq(marks(p.ds), [], "marks of an image that needs nothing")
            gone("base.qcow2", p.b)
            vm.quit()
        p.ds.wait_settled()
        must("qemu-img", "check", "-q", p.ds.raw("top.qcow2"))
        must("qemu-io", "-r", "-c", "read -P 7 0 1M", "-c", "read -P 8 1M 64k", p.ds.raw("top.qcow2"))


@suite.case("flat extents of a VMDK are protected while its descriptor is held")
def _(build):
    for subformat, size, extents in (("monolithicFlat", "64M", ("disk-flat.vmdk",)), ("twoGbMaxExtentFlat", "3G", ("disk-f001.vmdk", "disk-f002.vmdk"))):
        with pair(build, "wait=0") as p:
            must("qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=" + subformat, p.ds.raw("disk.vmdk"), size)
            with QemuIo(p.a.path("disk.vmdk")) as holder:
                for round_ in range(2):  # before the holder has written, and afterwards
                    eq(len(marks(p.ds)), len(extents), "marks")
                    for view in p.views:
                        for name in extents:
                            path = view.path(name)
                            for flags in (RDWR, os.O_WRONLY, RDWR | os.O_TRUNC):
                                raises(errno.EBUSY, open_close, path, flags)
                            raises(errno.EBUSY, os.truncate, path, 4096)
                            raises(errno.EBUSY, os.unlink, path)
                            open_close(path, RDONLY)
                    for at, pattern in ((0, 5), (int(size[:-1]) - 1, 6)):
                        holder.do("write -P %d %d%s 64k" % (pattern + round_, at, size[-1]))
                        holder.do("read -P %d %d%s 64k" % (pattern + round_, at, size[-1]))
                    holder.do("flush")
                holder.close()
            p.ds.wait_settled()
            wait_for(lambda p=p: not marks(p.ds), "marks are gone")
            for view in p.views:
                for name in extents:
                    writable(view, name)
            must("qemu-io", "-r", "-f", "vmdk", "-c", "read -P 6 0 64k", "-c", "read -P 7 %d%s 64k" % (int(size[:-1]) - 1, size[-1]), p.ds.raw("disk.vmdk"))


@suite.case("crash of the daemon: protected until its host recovers, then free")
def _(build):
    with pair(build, "wait=0") as p:
        chain(p.ds)
        with QemuIo(p.a.path("vm/top.qcow2")) as holder:
            p.a.kill9()
            holder.kill()
        no_writer(p.b, "base.qcow2")
        eq(len(marks(p.ds)), 2, "marks of the dead daemon")
        p.a.start()
        eq(marks(p.ds), [], "void marks are swept at the start")
        writable(p.b, "base.qcow2")
        writable(p.a, "base.qcow2")


@suite.case("a void mark refuses nothing, and fsck removes it")
def _(build):
    with pair(build, "wait=0") as p:
        chain(p.ds)
        open_close(p.a.path("vm/top.qcow2"))
        wait_for(lambda: not marks(p.ds), "marks are gone")
        below, above = (os.stat(p.ds.raw(n)).st_ino for n in ("base.qcow2", "vm/top.qcow2"))
        for generation in (1, 2, 77):
            with open(p.ds.inner_path("marks", "%016x-%016x.%d" % (below, above, generation)), "w"):
                pass
        for view in p.views:
            writable(view, "base.qcow2")
        for view in p.views:
            view.stop()
        p.ds.fsck_clean(p.a.host)
        eq(len(marks(p.ds)), 3, "fsck -n removes nothing")
        eq(p.ds.fsck(p.a.host, "-y").code, 0, "exit code of fsck -y")
        eq(marks(p.ds), [], "marks after fsck")


@suite.case("of two that race one sees the other, wherever that one stops")
def _(build):
    if not build.hooks:
        raise Skip("needs -Dhooks=true")
    with pair(build, "wait=0") as p, Proc() as one:
        chain(p.ds)
        p.a.stop()
        p.a.start(DISKGUARD_HOOK_STOP="chain.look:1")
        one.send("open", p.a.path("vm/top.qcow2"), RDWR)
        wait_for(lambda: stopped(p.a.p.pid), "the holder is stopped")
        ok(marks(p.ds), "the first mark")
        raises(errno.EBUSY, open_close, p.b.path("mid.qcow2"))
        p.a.signal(signal.SIGCONT)
        one.call("close", one.recv())
        p.ds.wait_settled()
        p.b.stop()
        p.b.start(DISKGUARD_HOOK_STOP="chain.list:2")
        one.send("open", p.b.path("base.qcow2"), RDWR)
        wait_for(lambda: stopped(p.b.p.pid), "the holder is stopped")
        ok(p.ds.claim_of("base.qcow2") not in (None, "free"), "the claim of the file below")
        raises(errno.EBUSY, open_close, p.a.path("vm/top.qcow2"))
        p.b.signal(signal.SIGCONT)
        one.call("close", one.recv())


@suite.case("both sides open at once: never both", limit=300)
def _(build):
    with pair(build, "wait=0") as p, Proc() as above, Proc() as below:
        chain(p.ds)
        won = {"above": 0, "below": 0, "none": 0}
        for number in range(60 if build.sanitize != "none" else 200):
            names = [("above", above, p.a.path("vm/top.qcow2")), ("below", below, (p.b, p.a)[number % 5 == 0].path("base.qcow2"))]
            for _, proc, path in names if number % 2 else reversed(names):
                proc.send("open", path, RDWR)
            got = []
            for who, proc, _ in names:
                try:
                    got.append((who, proc, proc.recv()))
                except OSError as e:
                    eq(e.errno, errno.EBUSY, "errno of a loser")
            ok(len(got) < 2, "round %d: both have it" % number)
            won[got[0][0] if got else "none"] += 1
            for _, proc, fd in got:
                proc.call("close", fd)
            p.ds.wait_settled()
        ok(won["above"] and won["below"], "one side never wins: %s" % won)


@suite.case("an image that is made with an external data file: no word in the log")
def _(build):
    with pair(build) as p:
        must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data.raw,data_file_raw=on",
             p.a.path("made.qcow2"), "32M", cwd=p.a.mnt)
        log = p.a.log()
        ok("made.qcow2" not in log and "data.raw" not in log, "the log: " + log)


if __name__ == "__main__":
    suite.main()
