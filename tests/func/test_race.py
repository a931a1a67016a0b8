#!/usr/bin/env python3
"""test_race: simultaneous opens for write. In each round exactly one wins, the image is never lost and never left sealed."""
import errno
import os

from dgqemu import make_qcow2
from dgtest import Proc, Suite, eq, is_sealed, ok, pair, read_at, sha, wait_for

suite = Suite(__file__, memory=True, also=("asan", "tsan"))
RDWR = os.O_RDWR


def claim_is_free(ds, key):
    """Is the highest generation of a key free? Reads only what it must: it runs thousands of times."""
    folder = os.path.dirname(ds.inner_path("claims", key))
    generations = [int(n[17:]) for n in os.listdir(folder) if n.startswith(key)]
    if not generations:
        return True
    try:
        with open(os.path.join(folder, "%s.%d" % (key, max(generations))), "rb") as f:
            return b"\nstate=free\n" in f.read()
    except FileNotFoundError:
        return False


def race(ds, paths, rounds, racers):
    """racers[i] opens paths[i]; all are told before any is answered."""
    raw = ds.raw("img.qcow2")
    wanted = sha(raw)
    key = "%016x" % os.stat(raw).st_ino
    wins = [0] * len(racers)
    for number in range(rounds):
        for w, path in zip(racers, paths) if number % 2 else reversed(list(zip(racers, paths))):
            w.send("open", path, RDWR)
        winners = []
        for i, w in enumerate(racers):
            try:
                winners.append((i, w, w.recv()))
            except OSError as e:
                eq(e.errno, errno.EBUSY, "round %d: errno of a loser" % number)
        eq(len(winners), 1, "round %d: number of winners" % number)
        i, w, fd = winners[0]
        wins[i] += 1
        ok(is_sealed(raw), "round %d: sealed for the winner" % number)
        w.call("close", fd)
        wait_for(lambda: not is_sealed(raw) and claim_is_free(ds, key), "round %d: released" % number)
    eq(sha(raw), wanted, "content after all rounds")
    ok(all(wins) or rounds < 100, "one side never wins: %s" % wins)
    return wins


@suite.case("two hosts, 1,000 rounds", limit=300)
def _(build):
    slow = build.sanitize != "none" and not suite.args.long
    with pair(build, "wait=0") as p, Proc() as one, Proc() as two:
        make_qcow2(p.ds.raw("img.qcow2"), "64M")
        race(p.ds, [p.a.path("img.qcow2"), p.b.path("img.qcow2")], 100 if slow else 1000, [one, two])


@suite.case("two hosts and two processes on each, 200 rounds", limit=300)
def _(build):
    with pair(build, "wait=0") as p, Proc() as a1, Proc() as a2, Proc() as b1, Proc() as b2:
        make_qcow2(p.ds.raw("img.qcow2"), "64M", "compat=0.10")
        a, b = p.a.path("img.qcow2"), p.b.path("img.qcow2")
        race(p.ds, [a, a, b, b], 50 if build.sanitize != "none" else 200, [a1, a2, b1, b2])


@suite.case("opens that wait for each other all get in, one after the other", limit=200)
def _(build):
    with pair(build, "wait=60") as p, Proc() as a1, Proc() as a2, Proc() as b1, Proc() as b2:
        make_qcow2(p.ds.raw("img.qcow2"), "64M")
        wanted = sha(p.ds.raw("img.qcow2"))
        racers = {a1: p.a.path("img.qcow2"), a2: p.a.path("img.qcow2"), b1: p.b.path("img.qcow2"), b2: p.b.path("img.qcow2")}
        for w, path in racers.items():
            w.send("try_open", path, RDWR, 10)
        for w in racers:
            results = w.recv(150)
            eq([r for r in results if r], [], "errnos of the opens that waited")
        p.ds.wait_free("img.qcow2")
        eq(sha(p.ds.raw("img.qcow2")), wanted)


@suite.case("readers never see sealed bytes while hosts take turns", limit=200)
def _(build):
    with pair(build, "wait=0") as p, Proc() as one, Proc() as two:
        make_qcow2(p.ds.raw("img.qcow2"), "64M")
        true = read_at(p.ds.raw("img.qcow2"), 0, 1024)
        paths = [p.a.path("img.qcow2"), p.b.path("img.qcow2")]
        readers = [os.open(path, os.O_RDONLY) for path in paths]
        for _ in range(10):
            one.send("try_open", paths[0], RDWR, 10)
            two.send("try_open", paths[1], RDWR, 10)
            while not (one.ready() and two.ready()):
                for i, (fd, path) in enumerate(zip(readers, paths)):
                    eq(os.pread(fd, 1024, 0), true, "header through an open handle of view %d" % i)
                    eq(read_at(path, 0, 512), true[:512], "header through a new handle of view %d" % i)
            for w in (one, two):
                results = w.recv()
                ok(set(results) <= {0, errno.EBUSY}, "errnos: %s" % results)
        for fd in readers:
            os.close(fd)


@suite.case("many images opened and closed at once by two hosts", limit=200)
def _(build):
    count = 24
    with pair(build, "wait=0") as p:
        workers = [Proc() for _ in range(8)]
        names = ["i%d.qcow2" % i for i in range(count)]
        make_qcow2(p.ds.raw(names[0]), "64M")
        with open(p.ds.raw(names[0]), "rb") as f:
            data = f.read()
        for name in names[1:]:
            with open(p.ds.raw(name), "wb") as f:
                f.write(data)
        for turn in range(10):
            for i, w in enumerate(workers):
                w.send("try_open", (p.a, p.b)[i % 2].path(names[(turn * 5 + i // 2) % count]), RDWR, 5)
            for w in workers:
                results = w.recv()
                ok(set(results) <= {0, errno.EBUSY}, "errnos: %s" % results)
        p.ds.wait_settled()
        for name in names:
            eq(read_at(p.ds.raw(name), 0, len(data)), data, name)
        for w in workers:
            w.kill()


if __name__ == "__main__":
    suite.main()
