#!/usr/bin/env python3
"""test_stress: much I/O at once, with every byte checked: while others open, close, look and are refused, while the header changes, and while the
daemon is killed and started again."""
import errno
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "func"))

from dgqemu import make_qcow2, qcow2_size  # noqa: E402
from dgtest import Proc, Suite, eq, is_sealed, must, ok, pair, read_at, wait_for  # noqa: E402

suite = Suite(__file__)
RDWR = os.O_RDWR
OFF, SPAN = 1 << 20, 4 << 20


def scale(count):
    """Operations of one session."""
    return count * 20 if suite.args.long else count // 4 if suite.build.sanitize != "none" else count


def images(p, count):
    names = ["i%d.qcow2" % i for i in range(count)]
    for i, name in enumerate(names):
        make_qcow2(p.ds.raw(name), "64M", "compat=%s" % ("1.1", "0.10")[i % 2])
        os.truncate(p.ds.raw(name), OFF + SPAN)
    return names


def same(got, wanted, pending, what):
    """Equal outside the range of a write whose answer never came."""
    if pending:
        at, length = pending
        got, wanted = got[:at] + got[at + length:], wanted[:at] + wanted[at + length:]
    eq(got == wanted, True, what)


def answer(worker):
    """What io_session returned; (errno, None, None) when not even its open was answered."""
    try:
        return worker.recv()
    except OSError as e:
        return e.errno, None, None


@suite.case("six images written and read while others look, list, open and are refused", limit=300)
def _(build):
    with pair(build, "wait=0") as p:
        names = images(p, 6)
        heads = {n: read_at(p.ds.raw(n), 0, 512) for n in names}
        workers = [Proc() for _ in names]
        rival = Proc()
        for turn in range(3):
            for i, (w, name) in enumerate(zip(workers, names)):
                view = (p.a, p.b)[(i + turn) % 2]
                flags = RDWR | (os.O_DSYNC if i == 5 else 0)
                w.send("io_session", view.path(name), 100 * turn + i, scale(1500), OFF, SPAN, flags)
            waiting = dict(zip(workers, names))
            held = refused = 0
            while waiting:
                for view in (p.a, p.b):
                    eq(sorted(os.listdir(view.path())), names)
                    for name in names:
                        eq(read_at(view.path(name), 0, 512), heads[name], "header of " + name)
                        os.stat(view.path(name))
                for name in waiting.values():
                    held += is_sealed(p.ds.raw(name))
                for name in list(waiting.values())[:2]:
                    refused += rival.call("try_open", p.b.path(name), RDWR, 1) == [errno.EBUSY]
                for w in [w for w in waiting if w.ready()]:
                    name = waiting.pop(w)
                    try:
                        error, model, _ = w.recv()
                    except OSError as e:
                        eq(e.errno, errno.EBUSY, "the rival was faster")
                        continue
                    eq(error, 0, "errno of the session on " + name)
                    p.ds.wait_free(name)
                    eq(read_at(p.ds.raw(name), OFF, SPAN) == model, True, "content of %s on the datastore" % name)
            ok(held, "never seen sealed")
            ok(refused, "never refused")
        p.ds.wait_settled()
        for name in names:
            eq(read_at(p.ds.raw(name), 0, 512), heads[name], "header of %s at the end" % name)
        for w in (*workers, rival):
            w.kill()


@suite.case("the daemon is killed under load and started again: every answered write is there", limit=300)
def _(build):
    rounds = 30 if suite.args.long else 6
    with pair(build, "wait=0", hosts=("a",)) as p:
        names = images(p, 4)
        heads = {n: read_at(p.ds.raw(n), 0, 512) for n in names}
        for turn in range(rounds):
            workers = [Proc() for _ in names]
            for i, (w, name) in enumerate(zip(workers, names)):
                w.send("io_session", p.a.path(name), 1000 * turn + i, 10_000_000, OFF, SPAN)
            wait_for(lambda: all(is_sealed(p.ds.raw(n)) for n in names), "all images are held")
            before = os.stat(p.ds.raw(names[0])).st_mtime_ns
            wait_for(lambda b=before: os.stat(p.ds.raw(names[0])).st_mtime_ns != b, "data is written")
            p.a.kill9()
            sessions = [answer(w) for w in workers]
            p.a.start()
            for name, (error, model, pending) in zip(names, sessions):
                eq(read_at(p.ds.raw(name), 0, 512), heads[name], "round %d: header of %s" % (turn, name))
                if model is None:
                    continue  # its open was not answered
                # A session that was killed early may not have read its whole range yet.
                ok(error in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO), "errno after the kill: %d" % error)
                same(read_at(p.ds.raw(name), OFF, len(model)), model, pending, "round %d: content of %s after recovery" % (turn, name))
            for w in workers:
                w.kill()


@suite.case("the header changes while data is written by other threads of the same host", limit=200)
def _(build):
    with pair(build, "wait=0", "writers=host") as p, Proc() as header:
        name = images(p, 1)[0]
        workers = [Proc() for _ in range(3)]
        part = SPAN // 4 // 512 * 512
        fd = header.call("open", p.a.path(name), RDWR)
        for i, w in enumerate(workers):
            w.send("io_session", p.a.path(name), i, scale(2000), OFF + i * part, part)
        size, updates = 64 << 20, 0
        while not all(w.ready() for w in workers):
            size = (64 << 20) + (updates % 50) * 65536
            header.call("pwrite", fd, size.to_bytes(8, "big"), 24)
            eq(qcow2_size(p.a.path(name)), size, "size through the holder's view")
            eq(qcow2_size(p.b.path(name)), size, "size on the other host")
            ok(is_sealed(p.ds.raw(name)), "sealed")
            updates += 1
        for i, w in enumerate(workers):
            error, model, _ = w.recv()
            eq(error, 0)
            eq(read_at(p.a.path(name), OFF + i * part, part) == model, True, "data of writer %d" % i)
            w.kill()
        header.call("close", fd)
        p.ds.wait_free(name)
        eq(qcow2_size(p.ds.raw(name)), size)
        ok(updates > 5, "only %d header updates" % updates)


@suite.case("fio: direct asynchronous writes at depth 32, verified", limit=200)
def _(build):
    with pair(build, "wait=0") as p:
        names = images(p, 2)
        for name in names:
            os.truncate(p.ds.raw(name), 40 << 20)
        head = [read_at(p.ds.raw(n), 0, 4096) for n in names]
        size = "32m" if build.sanitize == "none" else "4m"
        out = must(
            "fio", "--ioengine=libaio", "--direct=1", "--iodepth=32", "--rw=randwrite", "--bs=4k", "--offset=1m", "--size=" + size,
            "--verify=crc32c", "--verify_fatal=1", "--randseed=7", "--name=one", "--filename=" + p.a.path(names[0]),
            "--name=two", "--filename=" + p.b.path(names[1]), cwd=p.ds.base, timeout=180)
        ok("err= 0" in out, out[-500:])
        for name, wanted in zip(names, head):
            p.ds.wait_free(name)
            eq(read_at(p.ds.raw(name), 0, 4096), wanted, "header of " + name)


if __name__ == "__main__":
    suite.main()
