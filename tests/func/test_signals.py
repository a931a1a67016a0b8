#!/usr/bin/env python3
"""test_signals: what ends a wait, and what ends a daemon: callers of another pid namespace, SIGHUP."""
import copy
import errno
import os
import signal
import sys
import time

import dgtest
from dgqemu import make_qcow2
from dgtest import Datastore, Host, Proc, Suite, View, is_sealed, must, ok, pair, wait_for

suite = Suite(__file__)
RDWR = os.O_RDWR
# Opens for write while signals come that it handles; says what open(2) answered, and after how long.
OPENER = """
import ctypes, os, signal, sys, time
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, True)
signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
libc = ctypes.CDLL(None, use_errno=True)
began = time.monotonic()
fd = libc.open(os.fsencode(sys.argv[1]), os.O_RDWR)
signal.setitimer(signal.ITIMER_REAL, 0)  # python's end takes the handler away
print(0 if fd >= 0 else ctypes.get_errno(), time.monotonic() - began)
"""


def apart(build, ds, *options):
    """A view whose daemon lives in a pid namespace of its own, so that it cannot look at its callers."""
    build = copy.copy(build)
    wrapper = os.path.join(ds.base, "apart")
    with open(wrapper, "w") as f:
        f.write('#!/bin/sh\nexec unshare -pf --kill-child "%s" "$@"\n' % build.diskguard)
    os.chmod(wrapper, 0o755)
    build.diskguard = wrapper
    ds.build = build
    return View(ds, Host(ds.base, "a"), options, start=False).start()


def opened(path):
    number, took = must(sys.executable, "-c", OPENER, path).split()
    return int(number), float(took)


@suite.case("a caller that cannot be looked at waits for wait=, whatever interrupts it; one that can is interrupted by its signal")
def _(build):
    ds = Datastore(build)
    make_qcow2(ds.raw("i.qcow2"))
    view = apart(build, ds, "wait=2")
    with Proc() as holder:
        fd = holder.call("open", view.path("i.qcow2"), RDWR)
        number, took = opened(view.path("i.qcow2"))
        ok(number == errno.EBUSY and took >= 1.9, "%s after %.1f s" % (errno.errorcode.get(number), took))
        # It gets the image when that is let go meanwhile.
        waiter = Proc()
        waiter.send("open", view.path("i.qcow2"), RDWR)
        ok(not waiter.ready(0.2), "it waits")
        holder.call("close", fd)
        waiter.recv()
        waiter.kill()
    view.stop()
    with pair(build, "wait=30", hosts=("a",)) as p, Proc() as holder:
        make_qcow2(p.ds.raw("i.qcow2"))
        holder.call("open", p.a.path("i.qcow2"), RDWR)
        number, took = opened(p.a.path("i.qcow2"))
        ok(number == errno.EINTR and took < 20, "%s after %.1f s" % (errno.errorcode.get(number), took))


@suite.case("a blocking lock of a caller that cannot be looked at can be killed, and is granted when it is free")
def _(build):
    ds = Datastore(build)
    with open(ds.raw("plain"), "wb") as f:
        f.write(b"x")
    view = apart(build, ds, "wait=1")
    with Proc() as holder:
        fd = holder.call("open", view.path("plain"), RDWR)
        holder.call("lock", fd, 1, 0, 1)  # F_WRLCK
        waiters = [Proc(), Proc()]
        for w in waiters:
            w.send("lock", w.call("open", view.path("plain"), RDWR), 1, 0, 1, True, True)
        ok(not waiters[0].ready(1.5) and not waiters[1].ready(), "they wait, longer than wait=")
        began = time.monotonic()
        waiters[0].kill()
        ok(time.monotonic() - began < 5 * dgtest.TIME_SCALE, "a killed waiter took long to end")
        holder.call("close", fd)
        waiters[1].recv()
        waiters[1].kill()
    view.stop()


@suite.case("SIGHUP ends no daemon, in the foreground and in the background: one line, and its images stay as they are")
def _(build):
    with pair(build, hosts=("a",)) as p, Proc() as holder:
        make_qcow2(p.ds.raw("i.qcow2"))
        fd = holder.call("open", p.a.path("i.qcow2"), RDWR)
        for n in (1, 2):
            p.a.signal(signal.SIGHUP)
            wait_for(lambda n=n: p.a.log().count("SIGHUP is ignored") == n, "a line for each")
        ok(p.a.alive() and is_sealed(p.ds.raw("i.qcow2")), "it goes on")
        holder.call("pwrite", fd, b"data", 1 << 20)
        holder.call("close", fd)
        p.ds.wait_free("i.qcow2")

        host, mnt = Host(p.ds.base, "bg"), dgtest.suite_tmp()
        must(*build.command(build.diskguard, p.ds.path, mnt, "-o", "host-id=%s,state-dir=%s" % (host.uuid, host.state)), env=build.env())
        pid = background(mnt)
        os.kill(pid, signal.SIGHUP)
        fd = holder.call("open", os.path.join(mnt, "i.qcow2"), RDWR)
        os.kill(pid, signal.SIGHUP)
        holder.call("pwrite", fd, b"data", 1 << 20)
        holder.call("close", fd)
        p.ds.wait_free("i.qcow2")
        ok(not dgtest.ended(pid), "it lives")
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not dgtest.mounted_at(mnt) and dgtest.ended(pid), "SIGTERM ends it")


def background(mnt):
    """The daemon of a view, by its command line."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/cmdline" % name, "rb") as f:
                    argv = f.read().split(b"\0")
            except OSError:
                continue
            if os.fsencode(mnt) in argv and b"diskguard" in argv[0]:
                return int(name)
    raise dgtest.Fail("no daemon of %s" % mnt)


suite.main()
