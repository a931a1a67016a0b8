#!/usr/bin/env python3
"""test_calls: what an operation on a plain file costs, in requests to the daemon and in its system calls on the datastore: DESIGN 8.6.
Counted with strace, never timed. A bound that is passed says that somebody asks the storage for more than before, or that a request is
handed from thread to thread again."""
import collections
import contextlib
import errno
import fcntl
import os
import re
import shutil
import signal
import subprocess
import time

import guardian
from dgqemu import make_qcow2
from dgtest import Proc, Skip, Suite, eq, ok, pair, raises, read_at, wait_for

suite = Suite(__file__)
FILES = 40
FUSE_READ = re.compile(r'\bread(?:\(\d+, | resumed>)"((?:\\x[0-9a-f]{2}){8})"\.*, \d+\) += (\d+)$')
CALL = re.compile(r"^\d+ +(\w+)\(")
STORAGE = re.compile(r"statx|newfstatat|fstat|openat2?|open|close|getdents64|pread64|readlink|fstatfs|fcntl|poll|umask|unlinkat|getxattr|lgetxattr")
LISTENERS = 4  # LISTENERS_MAX of src/view/loop.c; one more may have been on its way
OPCODES = {1: "LOOKUP", 3: "GETATTR", 10: "UNLINK", 14: "OPEN", 15: "READ", 18: "RELEASE", 20: "FSYNC", 22: "GETXATTR", 25: "FLUSH", 35: "CREATE"}


class Count:
    """Requests and system calls of a view's daemon, per file, while the body runs."""

    def __init__(self, view):
        self.view, self.log = view, view.mnt + ".strace"

    def _traced(self):
        tasks = "/proc/%d/task" % self.view.p.pid
        for task in os.listdir(tasks):
            with open(os.path.join(tasks, task, "status"), encoding="ascii", errors="replace") as f:
                if "\nTracerPid:\t0\n" in f.read():
                    return False
        return True

    def __enter__(self):
        self.p = subprocess.Popen(["strace", "-f", "-q", "-xx", "-s", "8", "-o", self.log, "-p", str(self.view.p.pid)],
                                  stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        guardian.process(self.p.pid)
        wait_for(lambda: self.p.poll() is not None or self._traced(), "strace sees every thread")
        if self.p.poll() is not None:
            raise Skip("strace may not look at a process here")
        return self

    def __exit__(self, *_):
        wait_for(self._released, "a RELEASE, which comes after close(2), of each file that was opened")
        self.p.send_signal(signal.SIGINT)
        self.p.wait(60)
        requests, calls = self._so_far()
        self.requests = {k: n / FILES for k, n in requests.items()}
        self.storage = sum(n for k, n in calls.items() if STORAGE.fullmatch(k)) / FILES
        self.futex = calls["futex"] / FILES
        self.all = {k: n / FILES for k, n in calls.most_common()}

    def _released(self):
        requests, _ = self._so_far()
        return requests["RELEASE"] >= requests["OPEN"] + requests["CREATE"]

    def _so_far(self):
        requests, calls, self.readers = collections.Counter(), collections.Counter(), set()
        with open(self.log, encoding="ascii", errors="replace") as f:
            for line in f:
                if m := CALL.match(line):
                    calls[m.group(1)] += 1
                if m := FUSE_READ.search(line.rstrip()):
                    head = bytes.fromhex(m.group(1).replace("\\x", ""))
                    size, opcode = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:], "little")
                    if size == int(m.group(2)):
                        self.readers.add(line.split()[0])
                        requests[OPCODES.get(opcode, opcode)] += 1
        return requests, calls

    def at_most(self, what, storage, futex, **requests):
        said = "%s, per file: requests %r, calls %r" % (what, self.requests, self.all)
        ok(self.storage <= storage, "%.1f calls on the datastore are more than %d: %s" % (self.storage, storage, said))
        if self.view.build.sanitize == "none":
            ok(self.futex <= futex, "%.1f futex calls: it is handed from thread to thread: %s" % (self.futex, said))
        for name, most in requests.items():
            ok(self.requests.get(name, 0) <= most + 0.2, "%s: %s" % (name, said))
        ok(sum(self.requests.values()) > 0.5, "nothing was counted: " + said)


def read_all(paths):
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.read(fd, 8192)
        os.close(fd)


def make_all(paths):
    for path in paths:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def remove_all(paths):
    for path in paths:
        os.unlink(path)


def settle(folder, paths):
    """What claims/ and marks/ hold is known from a second look on, which comes 0.1 s after the first, or 1.1 s where the storage counts in
    seconds. marks/ is looked at for a file that goes: enough of them for each of its 16 shards."""
    for pause in (1.2, 0.2):
        others = [os.path.join(folder, "other%d" % n) for n in range(120)]
        make_all(others)
        remove_all(others)
        read_all(paths)
        time.sleep(pause)


def names(folder, prefix="f"):
    return [os.path.join(folder, "%s%d.xml" % (prefix, n)) for n in range(FILES)]


def scene(build, p):
    if not shutil.which("strace"):
        raise Skip("no strace")
    os.mkdir(p.ds.raw("d"))
    for path in names(p.ds.raw("d")):
        with open(path, "wb") as f:
            f.write(b"x" * 4096)
    paths = names(p.a.path("d"))
    settle(p.a.path("d"), paths)
    return paths


@contextlib.contextmanager
def one_view(build):
    """A view whose kernel answers for itself what it knows, and the small files in it."""
    with pair(build, "entry-timeout=600", "attr-timeout=600", hosts=("a",)) as p:
        yield p.a, scene(build, p)


@suite.case("a plain file that is read: four requests, a dozen calls on the datastore at most, none handed to another thread")
def _(build):
    with one_view(build) as (view, paths):
        with Count(view) as c:
            read_all(paths)
        c.at_most("open, read, close", 12, 1, LOOKUP=0, GETATTR=0, OPEN=1, READ=1, FLUSH=1, RELEASE=1, GETXATTR=0)


@suite.case("requests that come one after the other run on few threads")
def _(build):
    with pair(build, "entry-timeout=600", "attr-timeout=600", hosts=("a",)) as p:
        paths = scene(build, p)
        with Count(p.a) as c:
            read_all(paths)
        ok(len(c.readers) <= 2 * LISTENERS, "%d threads took requests in turn" % len(c.readers))


@suite.case("a directory that is listed, then looked at: the listing brings the attributes, nothing is looked up")
def _(build):
    with pair(build, hosts=("a",)) as p:
        os.mkdir(p.ds.raw("l"))
        for name in range(10 * FILES):  # more than one reply holds
            with open(p.ds.raw("l/%s%d" % ("n" * 200, name)), "wb") as f:
                f.write(b"x")
        with Count(p.a) as c:
            for name in os.listdir(p.a.path("l")):
                eq(os.stat(p.a.path("l/" + name)).st_size, 1, name)
        ok(c.requests.get("LOOKUP", 0) <= 0.2 and c.requests.get("GETATTR", 0) <= 0.2, "requests per file: %r" % c.requests)


@suite.case("a plain file that is removed, and one that is made: the former without a listing, neither handed to another thread")
def _(build):
    with one_view(build) as (view, paths):
        with Count(view) as c:
            remove_all(paths)
        c.at_most("unlink", 14, 1, LOOKUP=0, UNLINK=1)
        with Count(view) as c:
            make_all(paths)
        c.at_most("create, close", 38, 1, LOOKUP=1, CREATE=1, FLUSH=1, RELEASE=1)


@suite.case("fsync(2) of a held image: one call, and not handed to another thread")
def _(build):
    with pair(build, hosts=("a",)) as p:
        if not shutil.which("strace"):
            raise Skip("no strace")
        make_qcow2(p.ds.raw("img.qcow2"))
        fd = os.open(p.a.path("img.qcow2"), os.O_RDWR)
        with Count(p.a) as c:
            for n in range(FILES):
                os.pwrite(fd, b"x" * 4096, 1 << 20)
                os.fsync(fd)
        os.close(fd)
        eq(c.all.get("fsync", 0), 1.0, "fsync calls each")
        c.at_most("write, fsync", 2, 1, WRITE=1, FSYNC=1)


@suite.case("what another host claims or comes to need is known to the next removal, although there was nothing a moment ago")
def _(build):
    with pair(build, "wait=0") as p, Proc() as writer:
        scene(build, p)
        settle(p.b.path("d"), names(p.b.path("d")))
        with open(p.b.path("d/spare"), "wb") as f:
            f.write(b"x")
        make_qcow2(p.ds.raw("d/top.qcow2"), "4096", "backing_file=f1.xml,backing_fmt=raw")
        for n, opened in enumerate(("f0.xml", "top.qcow2")):
            path = p.b.path("d/f%d.xml" % n)
            for _ in range(5):
                fd = writer.call("open", p.a.path("d/" + opened), os.O_RDWR)
                if n == 0:
                    writer.call("lock", fd, fcntl.F_RDLCK, 101, 1)  # as QEMU says that it writes a disk
                raises(errno.EBUSY, os.unlink, path)
                raises(errno.EBUSY, os.rename, p.b.path("d/spare"), path)
                raises(errno.EBUSY, os.truncate, path, 0)
                writer.call("close", fd)
                p.ds.wait_free("d/" + opened)
                time.sleep(0.15)  # time itself is tested: a list counts once its folder has been as it is for 0.1 s, and nothing else shows that it does
            eq(read_at(path, 0, 4), b"xxxx", "the file")
            os.unlink(path)


if __name__ == "__main__":
    suite.main()
