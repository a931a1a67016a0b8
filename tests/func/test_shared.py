#!/usr/bin/env python3
"""Files that many hosts write on purpose (option shared=): neither claimed nor sealed, no host keeps another one out, and what stands already counts."""
import errno
import fcntl
import json
import os
import shutil

from dgqemu import Vm, make_qcow2
from dgtest import Host, Proc, SharedPair, Suite, View, eq, is_sealed, must, ok, raises, read_at, refused, run, suite_tmp, wait_for

suite = Suite(__file__)
pairs = SharedPair("shared=*.shared:quorum-*", "wait=0")
RDWR, RDONLY = os.O_RDWR, os.O_RDONLY
MIB = 1 << 20


def raw(ds, name, size=4 * MIB):
    with open(ds.raw(name), "wb") as f:
        f.truncate(size)
    return name


def qcow2(ds, name):
    make_qcow2(ds.raw(name))
    return name


def claim(ds, name):
    return ds.claims().get(os.stat(ds.raw(name)).st_ino)


def ctl(view, *args):
    return must(*view.build.command(view.build.ctl, *args), env=view.build.env())


def other(p, *options):
    """A host whose view has other options."""
    return View(p.ds, Host(p.ds.base, "other"), ("wait=0", *options))


@suite.case("two hosts, and two processes of one, write one shared file at once, and each sees at once what the others wrote")
def at_once(build):
    p = pairs.get(build)
    for name in (raw(p.ds, "disk.shared"), raw(p.ds, "quorum-1"), qcow2(p.ds, "odd.shared")):
        whole = read_at(p.ds.raw(name), 0, 4096)
        with Proc() as one, Proc() as two, Proc() as there:
            fds = [(q, q.call("open", v.path(name), RDWR)) for q, v in ((one, p.a), (two, p.a), (there, p.b))]
            for n, (q, fd) in enumerate(fds):
                for off in (512 * n, MIB + 512 * n):
                    q.call("pwrite", fd, b"%d" % n * 512, off)
                    for reader, its in fds:
                        eq(reader.call("pread", its, 512, off), b"%d" % n * 512, "%s: what %d wrote" % (name, n))
            eq(claim(p.ds, name), None, "claim of %s" % name)
            ok(not is_sealed(p.ds.raw(name)), "sealed")
            one.call("pwrite", fds[0][1], whole, 0)
            two.call("ftruncate", fds[1][1], 2 * MIB)
            there.call("fallocate", fds[2][1], 0, 0, 3 * MIB)
            eq(os.stat(p.ds.raw(name)).st_size, 3 * MIB, "size")
            os.truncate(p.b.path(name), 4 * MIB)  # by path, while both have it open
        eq(claim(p.ds, name), None, "claim at the end")
        os.unlink(p.b.path(name))


@suite.case("two virtual machines on two hosts have one shared disk (share-rw=on), and a third, that will not share, is refused by QEMU itself")
def machines(build):
    p = pairs.get(build)
    name = raw(p.ds, "cluster.shared")

    def drive(view, share):
        return ("-drive", "if=none,id=d,format=raw,cache=none,file=" + view.path(name), "-device",
                "virtio-blk-pci,drive=d,romfile=,share-rw=" + share, "-S")
    base = suite_tmp()
    one, two = Vm(base, "one", drive(p.a, "on")), Vm(base, "two", drive(p.b, "on"))
    try:
        for vm, view in ((one, p.a), (two, p.b)):
            ok(vm.connect(), "%s does not start: %s" % (vm.name, vm.error()))
            eq(len(json.loads(ctl(view, "--json", "list", view.mnt))["views"][0]["shared"]), 1, "list of host " + view.host.name)
        eq(claim(p.ds, name), None, "claim")
        refused("qemu-system-x86_64", "-accel", "tcg", "-display", "none", "-nodefaults", *drive(p.a, "off"), text="lock")
    finally:
        for vm in (one, two):
            vm.p.kill()
            vm.p.wait()


@suite.case("a claim of a host without the option counts: open, O_TRUNC, truncation, removal and rename over it are EBUSY until it is free")
def claimed(build):
    p = pairs.get(build)
    name = qcow2(p.ds, "held.shared")
    plain = raw(p.ds, "plain.txt")
    view = other(p)
    try:
        with Proc() as holder, Proc() as wants:
            fd = holder.call("open", view.path(name), RDWR)
            ok(is_sealed(p.ds.raw(name)), "sealed by the host that does not know")
            mark = p.a.log_size()
            raises(errno.EBUSY, wants.call, "open", p.a.path(name), RDWR)
            p.a.wait_log("refused open for write of 'held.shared'.*held by host", mark)
            raises(errno.EBUSY, wants.call, "open", p.a.path(name), RDWR | os.O_TRUNC)
            raises(errno.EBUSY, wants.call, "truncate", p.a.path(name), 0)
            raises(errno.EBUSY, wants.call, "unlink", p.a.path(name))
            raises(errno.EBUSY, wants.call, "rename", p.a.path(plain), p.a.path(name))
            eq(wants.call("pread", wants.call("open", p.a.path(name), RDONLY), 4, 0), b"QFI\xfb", "a reader")
            ok("claim that was made without that option counts" in ctl(p.a, "why", p.a.path(name)), "why")
            holder.call("close", fd)
            p.ds.wait_free(name)
            fd = wants.call("open", p.a.path(name), RDWR)
            mark = view.log_size()
            raises(errno.EBUSY, holder.call, "open", view.path(name), RDWR)
            view.wait_log("another host has this file open for write", mark)
            ok(not is_sealed(p.ds.raw(name)), "not sealed under the hands of those that share it")
    finally:
        view.stop()


@suite.case("a seal without a claim is refused and explained, also under a shared name")
def orphan(build):
    p = pairs.get(build)
    name = qcow2(p.ds, "base.qcow2")
    with Proc() as q:
        q.call("open", p.a.path(name), RDWR)
        shutil.copyfile(p.ds.raw(name), p.ds.raw("orphan.shared"))
    ok(is_sealed(p.ds.raw("orphan.shared")), "the copy is sealed")
    for call in (("open", p.a.path("orphan.shared"), RDWR), ("truncate", p.a.path("orphan.shared"), 0),
                 ("unlink", p.a.path("orphan.shared"))):
        with Proc() as q:
            raises(errno.EUCLEAN, q.call, *call)
    eq(claim(p.ds, "orphan.shared"), None, "claim")
    r = run(*build.command(build.ctl, "why", p.a.path("orphan.shared")), env=build.env())
    ok("orphan" in r.out or "sealed" in r.out, "why: %s" % r.out)
    os.unlink(p.ds.raw("orphan.shared"))


@suite.case("a claim that this host left before it had the option is settled at the open")
def left(build):
    p = pairs.get(build)
    name = qcow2(p.ds, "left.shared")
    whole = read_at(p.ds.raw(name), 0, 4096)
    host = Host(p.ds.base, "again")
    view = View(p.ds, host, ("wait=0",))
    with Proc() as q:
        q.call("open", view.path(name), RDWR)
        view.kill9()
    ok(is_sealed(p.ds.raw(name)), "left sealed")
    view = View(p.ds, host, ("wait=5", "shared=*.shared"))
    try:
        with Proc() as q:
            q.call("open", view.path(name), RDWR)
            eq(read_at(p.ds.raw(name), 0, 4096), whole, "the header")
            ok(claim(p.ds, name)["state"] == "free", "claim")
    finally:
        view.stop()


@suite.case("a file takes its new name's guard: shared only while it is open as such, or named so")
def renamed(build):
    p = pairs.get(build)
    name = qcow2(p.ds, "x.shared")
    with Proc() as one, Proc() as two:
        fd = one.call("open", p.a.path(name), RDWR)
        os.rename(p.a.path(name), p.a.path("x.qcow2"))
        one.call("pwrite", fd, b"a" * 512, MIB)
        two.call("close", two.call("open", p.a.path("x.qcow2"), RDWR))  # still open as shared here
        raises(errno.EBUSY, two.call, "open", p.b.path("x.qcow2"), RDWR)  # another host cannot claim it
        one.call("close", fd)

        def claimed_now():
            try:
                return two.call("open", p.b.path("x.qcow2"), RDWR) is not None
            except OSError:
                return False
        wait_for(claimed_now, "it can be claimed")
        ok(is_sealed(p.ds.raw("x.qcow2")), "guarded again")
        os.rename(p.b.path("x.qcow2"), p.b.path("y.shared"))  # under its holder's hands
        raises(errno.EBUSY, one.call, "open", p.a.path("y.shared"), RDWR)
        two.kill()
    p.ds.wait_free("y.shared")
    with Proc() as one, Proc() as two:
        one.call("open", p.a.path("y.shared"), RDWR)
        two.call("open", p.b.path("y.shared"), RDWR)


@suite.case("an overlay does not close a shared base to its writers, and says so once; a reader of a shared file keeps nobody away")
def below(build):
    p = pairs.get(build)
    base = raw(p.ds, "base.shared")
    must("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", p.ds.raw("top.qcow2"), cwd=p.ds.path)
    mark = p.a.log_size()
    with Proc() as top, Proc() as w, Proc() as reader:
        top.call("open", p.a.path("top.qcow2"), RDWR)
        p.a.wait_log("its backing file 'base.shared' is not protected: many hosts may write it", mark)
        fd = w.call("open", p.b.path(base), RDWR)
        w.call("pwrite", fd, b"x" * 512, 0)
        r = reader.call("open", p.a.path(base), RDONLY)
        for byte in (100, 201):
            reader.call("lock", r, fcntl.F_RDLCK, byte, 1)
        w.call("close", fd)
        w.call("open", p.b.path(base), RDWR)
        eq([n for n in p.ds.inner("readers") if "%016x" % os.stat(p.ds.raw(base)).st_ino in n], [], "names of readers")


@suite.case("list, show and why say that a file is shared on purpose")
def shown(build):
    p = pairs.get(build)
    name = raw(p.ds, "shown.shared")
    eq(json.loads(ctl(p.a, "--json", "list", p.a.mnt))["views"][0]["shared"], [], "nothing is open")
    with Proc() as q:
        for _ in range(2):
            q.call("open", p.a.path(name), RDWR)
        entry = json.loads(ctl(p.a, "--json", "list", p.a.mnt))["views"][0]["shared"]
        eq([(e["image"], e["inode"], e["pid"], e["writers"]) for e in entry], [(name, os.stat(p.ds.raw(name)).st_ino, q.pid, 2)], "list")
        row = [line for line in ctl(p.a, "list", p.a.mnt).splitlines() if name in line]
        ok(len(row) == 1 and "shared" in row[0].split() and str(q.pid) in row[0] and "none (shared=)" in row[0], "row: %r" % row)
        ok("shared on purpose (shared=), 2 handles" in ctl(p.a, "show", p.a.path(name)), "show")
        o = json.loads(ctl(p.a, "--json", "show", p.a.path(name)))
        eq((o["shared"], o["shared_writers"]), (True, 2), "show --json")
        ok("Granted: it is shared on purpose (shared=)" in ctl(p.a, "why", p.a.path(name)), "why")
        eq(json.loads(ctl(p.a, "--json", "why", p.a.path(name)))["reason"], "shared", "reason")
    eq(json.loads(ctl(p.a, "--json", "show", p.a.path(raw(p.ds, "plain.txt"))))["shared"], False, "another file")


@suite.case("shared= wants patterns of names")
def usage(build):
    for value in ("", "a/b", "a::b", ":a"):
        r = run(*build.command(build.diskguard, "/x", "/y", "-o", "shared=" + value), env=build.env())
        ok(r.code == 2 and "shared=%s: must be file name patterns" % value in r.out, repr(r))


if __name__ == "__main__":
    suite.main()
