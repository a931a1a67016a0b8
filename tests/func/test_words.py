#!/usr/bin/env python3
"""test_words: what is said: it names the image, who has it, and a way out that works on this host."""
import errno
import json
import os
import re
import subprocess
import sys

import guardian
from dgqemu import make_qcow2
from dgtest import Datastore, Host, Proc, Skip, Suite, View, ended, eq, is_sealed, must, ok, pair, raises, run, wait_for

suite = Suite(__file__)
RDWR = os.O_RDWR
# Opens a file for write, hands it to a child, says both numbers, and ends or closes it.
PASS_ON = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
child = os.fork()
if child == 0:
    sys.stdin.read()
    os._exit(0)
print(os.getpid(), child, flush=True)
if sys.argv[2] == "ends":
    os._exit(0)
os.close(fd)
sys.stdin.read()
"""


def ctl(build, *args):
    return run(*build.command(build.ctl, *args), env=build.env())


def why(build, view, name):
    r = ctl(build, "why", view.path(name))
    return r.out


@suite.case("why: an opener that ended or passed its descriptor on: what has the file open is found by fuser and losetup, not by that number")
def _(build):
    with pair(build, hosts=("a",)) as p:
        make_qcow2(p.ds.raw("i.qcow2"))
        with Proc() as holder:
            fd = holder.call("open", p.a.path("i.qcow2"), RDWR)
            text = why(build, p.a, "i.qcow2")
            ok("end that process" in text and "fuser" not in text and "Process %d (" % holder.pid in text, text)
            holder.call("close", fd)
        p.ds.wait_free("i.qcow2")
        for how in ("ends", "closes"):
            q = subprocess.Popen([sys.executable, "-c", PASS_ON, p.a.path("i.qcow2"), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            guardian.process(q.pid)
            pid, child = (int(n) for n in q.stdout.readline().split())
            guardian.process(child)
            if how == "ends":
                q.wait()
                wait_for(lambda pid=pid: ended(pid), "it is gone")
            else:
                wait_for(lambda pid=pid: not any(os.readlink("/proc/%d/fd/%s" % (pid, n)).endswith("i.qcow2")
                                                 for n in os.listdir("/proc/%d/fd" % pid)), "it has closed it")
            text = why(build, p.a, "i.qcow2")
            ok("end that process" not in text and re.search("fuser -v .*i.qcow2.*losetup -j .*i.qcow2", text), how + ": " + text)
            ok(("has ended" if how == "ends" else "has closed it") in text, text)
            q.stdin.close()
            q.stdout.close()
            q.wait()
            p.ds.wait_free("i.qcow2")


@suite.case("no descriptor is left: the line says the limit and the way out; what is held stays held, and all is released when there is room")
def _(build):
    ds = Datastore(build)
    for k in range(100):
        make_qcow2(ds.raw("%d.qcow2" % k))
    view = View(ds, Host(ds.base, "few"), start=False)
    # Where root may do everything, the daemon raises its limit.
    view.prefix = ["setpriv", "--bounding-set=-sys_resource", "prlimit", "--nofile=200:200"]
    view.start()
    with Proc() as holder:
        held, mark = [], view.log_size()
        for k in range(100):
            try:
                held.append(holder.call("open", view.path("%d.qcow2" % k), RDWR))
            except OSError as e:
                eq(e.errno, errno.EMFILE, "open %d" % k)
                break
        ok(20 < len(held) < 100, "%d images are held" % len(held))
        view.wait_log("all 200 descriptors .*EMFILE.*LimitNOFILE=", mark)
        for k in range(len(held), 100):
            raises((errno.EMFILE, errno.EBUSY), holder.call, "open", view.path("%d.qcow2" % k), RDWR)
        eq(len([line for line in view.log().splitlines() if "LimitNOFILE=" in line]), 1, "lines in a minute")
        for k, fd in enumerate(held):
            ok(is_sealed(ds.raw("%d.qcow2" % k)), "%d is sealed" % k)
            holder.call("pwrite", fd, b"data", 1 << 20)
        for fd in held:
            holder.call("close", fd)
    ds.wait_settled(60)
    for k in range(100):
        ok(not is_sealed(ds.raw("%d.qcow2" % k)), "%d is sealed" % k)
    view.stop()


@suite.case("an immutable image and one for appending only: EPERM, and the line says chattr, not root_squash")
def _(build):
    with pair(build, "wait=0", hosts=("a",)) as p:
        for flag, word in (("i", "immutable"), ("a", "appending")):
            name = word + ".qcow2"
            make_qcow2(p.ds.raw(name))
            r = run("chattr", "+" + flag, p.ds.raw(name))
            if r.code:
                raise Skip("no chattr here: %r" % r)
            try:
                mark = p.a.log_size()
                raises(errno.EPERM, os.open, p.a.path(name), RDWR)  # as on the datastore
                for call in (os.unlink, lambda path: os.truncate(path, 0)):
                    raises(errno.EPERM, call, p.a.path(name))
                line = p.a.wait_log("refused.*" + name, mark)
                ok(word in line and "chattr -%s %s" % (flag, p.ds.raw(name)) in line and "squash" not in p.a.log(), line)
            finally:
                must("chattr", "-" + flag, p.ds.raw(name))
            os.close(os.open(p.a.path(name), RDWR))


@suite.case("recovery lines name their image, its datastore and its host")
def _(build):
    with pair(build, "wait=0", hosts=("a",)) as p:
        for name in ("one.qcow2", "two words.qcow2"):
            make_qcow2(p.ds.raw(name))
        with Proc() as holder:
            for name in ("one.qcow2", "two words.qcow2"):
                holder.call("open", p.a.path(name), RDWR)
            p.a.kill9()
        with open(p.ds.raw("two words.qcow2"), "r+b") as f:
            f.seek(24)
            f.write(b"somebody")
        mark = p.a.log_size()
        p.a.start()
        p.a.wait_log(r"recovery of 'one\.qcow2' \(generation \d+\): .*RESTORE", mark)
        line = p.a.wait_log(r"recovery of 'two words\.qcow2'", mark)
        ok("fsck.diskguard -n %s" % p.ds.path in line and "DATASTORE" not in line and "IMAGE" not in line, line)
        with open(p.ds.raw("two words.qcow2"), "r+b") as f:
            f.seek(24)
            f.write(b"SEALED\0\0")
        p.a.stop()
        p.a.start()


@suite.case("a refusal by this very host offers no takeover of it, and says nothing of unknown times")
def _(build):
    with pair(build, "wait=0", hosts=("a",)) as p, Proc() as holder, Proc() as other:
        make_qcow2(p.ds.raw("base.qcow2"))
        must("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2", p.ds.raw("top.qcow2"))
        make_qcow2(p.ds.raw("read.qcow2"))
        with open(p.ds.raw("late"), "wb"):
            pass
        holder.call("open", p.a.path("top.qcow2"), RDWR)
        fd = holder.call("open", p.a.path("read.qcow2"), os.O_RDONLY)
        for byte in (100, 201):
            holder.call("lock", fd, 0, byte, 1)
        late = holder.call("open", p.a.path("late"), RDWR)
        for name in ("top.qcow2", "base.qcow2", "read.qcow2"):
            mark = p.a.log_size()
            raises(errno.EBUSY, other.call, "open", p.a.path(name), RDWR)
            line = p.a.wait_log("refused open for write of '%s'" % name, mark)
            ok("--takeover" not in line and "is down" not in line, line)
            ok("pid %d" % holder.pid in line and "pid %d" % other.pid in line and "since ," not in line, line)
            text = why(build, p.a, name)
            ok("--takeover" not in text and "unknown time" not in text, text)
        holder.call("close", late)
        # Left by an earlier daemon of this host: the raw datastore knows whose it is.
        p.a.kill9()
        r = ctl(build, "why", "--datastore", p.ds.path, "top.qcow2")
        ok("--takeover" not in r.out and "which is this host" in r.out, repr(r))
        p.a.start()


@suite.case("the same refusal of the same opener is one line; another opener, another image, another hold are lines of their own")
def _(build):
    with pair(build, "wait=0") as p, Proc() as holder, Proc() as other:
        for name in ("i.qcow2", "j.qcow2"):
            make_qcow2(p.ds.raw(name))
        fds = [holder.call("open", p.a.path(n), RDWR) for n in ("i.qcow2", "j.qcow2")]

        def lines(view, name):
            return view.log().count("refused open for write of '%s'" % name)

        for view in (p.a, p.b):
            for _ in range(30):
                raises(errno.EBUSY, os.open, view.path("i.qcow2"), RDWR)
            eq(lines(view, "i.qcow2"), 1, "one line for one opener")
            raises(errno.EBUSY, other.call, "open", view.path("i.qcow2"), RDWR)
            eq(lines(view, "i.qcow2"), 2, "one for the other")
            raises(errno.EBUSY, os.open, view.path("j.qcow2"), RDWR)
            eq(lines(view, "j.qcow2"), 1, "and for another image")
        holder.call("close", fds[0])
        p.ds.wait_free("i.qcow2")
        holder.call("open", p.a.path("i.qcow2"), RDWR)
        raises(errno.EBUSY, os.open, p.b.path("i.qcow2"), RDWR)
        eq(lines(p.b, "i.qcow2"), 3, "a new hold")


@suite.case("show of an image that is its own backing file, free and held: it says so")
def _(build):
    with pair(build, "wait=0", hosts=("a",)) as p, Proc() as holder:
        make_qcow2(p.ds.raw("self.qcow2"))
        must("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "self.qcow2", p.ds.raw("self.qcow2"))
        for held in (False, True):
            if held:
                holder.call("open", p.a.path("self.qcow2"), RDWR)
            r = ctl(build, "show", p.a.path("self.qcow2"))
            ok(r.code == 0 and "the image itself, so that no program can open it" in r.out, repr(r))
            ok("needed by" not in r.out and "NOT protected" not in r.out, repr(r))
            needs = json.loads(ctl(build, "show", "--json", p.a.path("self.qcow2")).out)
            eq((needs["needs"][0]["itself"], needs["needed_by"]), (True, []))
        text = why(build, p.a, "self.qcow2")
        ok("this host holds it" in text, text)


@suite.case("fsck -n: another host's claim whose record is not locked is exit code 4 with the next command; that of a living host is a note")
def _(build):
    with pair(build, "wait=0") as p:
        make_qcow2(p.ds.raw("i.qcow2"))
        with Proc() as holder:
            holder.call("open", p.a.path("i.qcow2"), RDWR)
            r = p.ds.fsck(p.b.host, "-n")
            ok(r.code == 0 and "another host holds this image" in r.out, repr(r))
            p.a.kill9()
        r = p.ds.fsck(p.b.host, "-n")
        ok(r.code == 4 and "fsck.diskguard --takeover %s --confirm-host-is-down %s" % (p.a.host.uuid, p.ds.path) in r.out, repr(r))
        r = p.ds.fsck(p.b.host, "-n", "--json")
        found = [f for f in json.loads(r.out)["found"] if f["code"] == "holder-down"]
        eq((len(found), r.code), (1, 4))
        p.a.start()
        eq(p.ds.fsck(p.b.host, "-n").code, 0)


suite.main()
