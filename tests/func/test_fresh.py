#!/usr/bin/env python3
"""test_fresh: what a name led to a moment ago is not what decides: files that are replaced behind the view's back."""
import errno
import os
import threading

from dgqemu import make_qcow2
from dgtest import FRESH, Proc, Suite, eq, ok, pair, raises, read_at

suite = Suite(__file__)
RDWR, RDONLY = os.O_RDWR, os.O_RDONLY
# What is decided is looked at afresh, however long the kernel may answer by itself.
TIMEOUTS = ((), FRESH, ("entry-timeout=600", "attr-timeout=600"))


def put(path, data):
    with open(path + ".new", "wb") as f:
        f.write(data)
    os.rename(path + ".new", path)


@suite.case("a file that was replaced: a path leads to the new one, a descriptor that was open before to the old one, also when it is opened again")
def _(build):
    for timeouts in TIMEOUTS:
        with pair(build, *timeouts, hosts=("a",)) as p:
            put(p.ds.raw("f"), b"old")
            way = os.open(p.a.path("f"), os.O_PATH)
            put(p.ds.raw("f"), b"new")
            again = "/proc/self/fd/%d" % way
            for _ in range(2):
                eq(read_at(again, 0, 3), b"old", "through the descriptor")
                eq(read_at(p.a.path("f"), 0, 3), b"new", "by path")
            os.truncate(again, 2)
            eq(read_at(again, 0, 3), b"ol", "truncated through the descriptor")
            os.truncate(p.a.path("f"), 1)
            eq(read_at(p.ds.raw("f"), 0, 3), b"n", "truncated by path")
            os.unlink(p.ds.raw("f"))
            eq(read_at(again, 0, 3), b"ol", "removed")
            raises(errno.ENOENT, os.open, p.a.path("f"), RDWR)
            os.close(way)


@suite.case("an image that was replaced: it is the new one that an open claims and a removal respects")
def _(build):
    for timeouts in TIMEOUTS:
        with pair(build, "wait=0", *timeouts) as p, Proc() as holder:
            make_qcow2(p.ds.raw("img.qcow2"))
            os.close(os.open(p.a.path("img.qcow2"), RDWR))
            p.ds.wait_free("img.qcow2")
            make_qcow2(p.ds.raw("next"))
            os.rename(p.ds.raw("next"), p.ds.raw("img.qcow2"))
            fd = holder.call("open", p.b.path("img.qcow2"), RDWR)
            raises(errno.EBUSY, os.open, p.a.path("img.qcow2"), RDWR)
            raises(errno.EBUSY, os.unlink, p.a.path("img.qcow2"))
            make_qcow2(p.ds.raw("other"))
            raises(errno.EBUSY, os.rename, p.a.path("other"), p.a.path("img.qcow2"))
            holder.call("close", fd)
            p.ds.wait_free("img.qcow2")


@suite.case("opens while the name is replaced all the time: never an error, never a file that was never there")
def _(build):
    for timeouts in TIMEOUTS:
        with pair(build, *timeouts, hosts=("a",)) as p:
            put(p.ds.raw("f"), b"%08d" % 0)
            stop = threading.Event()
            written = [0]

            def replace():
                while not stop.is_set():
                    put(p.ds.raw("f"), b"%08d" % (written[0] + 1))
                    written[0] += 1

            t = threading.Thread(target=replace)
            t.start()
            try:
                seen = opens = 0
                while opens < 1500 or written[0] <= 100:
                    opens += 1
                    before = written[0]
                    fd = os.open(p.a.path("f"), RDONLY)
                    value = int(os.pread(fd, 8, 0))
                    os.close(fd)
                    ok(before <= value <= written[0] + 1, "an open showed number %d when %d was the last" % (value, before))
                    ok(value >= seen, "went back from %d to %d" % (seen, value))
                    seen = value
            finally:
                stop.set()
                t.join()


if __name__ == "__main__":
    suite.main()
