#!/usr/bin/env python3
"""Shared mappings (mmap) of images, where the kernel allows them for files with direct I/O (Linux 6.6): of raw images and of sealed ones they are as right as
read and write, and older than a hand-over they never are."""
import errno
import hashlib
import mmap
import os
import random
import re
import signal

from dgqemu import make_qcow2, qcow2_size
from dgtest import Host, Proc, SharedPair, Skip, Suite, View, eq, is_sealed, must, ok, pair, raises, read_at, sha, wait_for
from kinds import kinds

suite = Suite(__file__, needs="hooks")
pairs = SharedPair("wait=0")
RDWR, RDONLY = os.O_RDWR, os.O_RDONLY
PAGE, MIB = 4096, 1 << 20
SIZE = 4 * MIB
NOTHING = dict(env={"DISKGUARD_HOOK_FAIL": "init.map:1:95"})


def can_map():
    release = [int(n) for n in re.findall(r"\d+", os.uname().release)[:2]]
    if release < [6, 6]:
        raise Skip("Linux %s" % os.uname().release)


def raw(ds, name="state.raw", size=SIZE, fill=b"r"):
    with open(ds.raw(name), "wb") as f:
        f.write(fill * size)
    return name


def sealed_image(ds, name, size="4M"):
    must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=full,lazy_refcounts=off", ds.raw(name), size)
    return name


def sha_of(data):
    return hashlib.sha256(data).hexdigest()


def settle(p, name):
    p.ds.wait_free(name)


@suite.case("a raw image can be mapped shared and written: msync, munmap alone, close before munmap, and the end of the process")
def state(build):
    can_map()
    p = pairs.get(build)
    name = raw(p.ds)
    for how in ("msync", "munmap", "close first", "exit", "kill"):
        with Proc() as q:
            fd = q.call("open", p.a.path(name), RDWR)
            ok(p.ds.claims()[os.stat(p.ds.raw(name)).st_ino]["state"] != "free", "claimed")
            m = q.call("map_shared", fd, SIZE)
            q.call("map_write", m, 0, b"head " + how.encode())
            q.call("map_write", m, SIZE - 4, b"tail")
            q.call("map_write", m, MIB + 77, how.encode())
            if how == "msync":
                q.call("map_sync", m)
                eq(read_at(p.ds.raw(name), MIB + 77, 5), b"msync", "on the datastore after msync")
            if how == "close first":
                q.call("close", fd)
                raises(errno.EBUSY, os.open, p.b.path(name), RDWR)  # the mapping holds it
            if how in ("munmap", "msync", "close first"):
                q.call("map_end", m)
            if how in ("munmap", "msync"):
                q.call("close", fd)
            if how == "exit":
                q.p.stdin.close()
                q.p.wait()
                q.p = Proc().p
            elif how == "kill":
                os.kill(q.pid, signal.SIGKILL)
                q.p.wait()
                q.p = Proc().p
            settle(p, name)
            eq((read_at(p.ds.raw(name), 0, 4), read_at(p.ds.raw(name), SIZE - 4, 4), read_at(p.ds.raw(name), MIB + 77, len(how))),
               (b"head", b"tail", how.encode()), how)
            eq(read_at(p.b.path(name), MIB + 77, len(how)), how.encode(), "the other host, " + how)


@suite.case("every format, held: a mapping shows the true bytes everywhere; what it writes is read back, and nothing else changed at the end")
def formats(build):
    can_map()
    p = pairs.get(build)
    rng = random.Random(suite.args.seed)
    seen = set()
    for kind in kinds():
        if kind.huge or (kind.format in seen and not suite.args.long):
            continue
        seen.add(kind.format)
        folder = p.ds.raw("kind-" + re.sub(r"\W", "-", kind.name))
        os.mkdir(folder)
        kind.make(folder)
        name = os.path.relpath(kind.image(folder), p.ds.path)
        with open(p.ds.raw(name), "rb") as f:
            before = f.read()
        with Proc() as q:
            fd = q.call("open", p.a.path(name), RDWR)
            with open(p.ds.raw(name), "rb") as f:
                stands = f.read()
            m = q.call("map_shared", fd, len(before))
            eq(q.call("map_sha", m), sha_of(before), "%s: what is seen through the mapping" % kind.name)
            changed = [off for off in range(0, len(before), PAGE) if stands[off:off + PAGE] != before[off:off + PAGE]]
            for off in {*changed, 0, rng.randrange(len(before))}:  # the same bytes: dirty pages over what is sealed
                piece = before[off:off + 16]
                q.call("map_write", m, off, piece)
            q.call("map_sync", m)
            eq([off for off in changed if read_at(p.ds.raw(name), off, PAGE) == before[off:off + PAGE]], [],
               "%s: what was sealed is sealed still" % kind.name)
            eq(q.call("map_sha", m), sha_of(before), "%s: after it was written" % kind.name)
            q.call("map_end", m)
            q.call("close", fd)
        settle(p, name)
        eq(sha(p.ds.raw(name)), sha_of(before), "%s: the file at the end" % kind.name)
    ok(len(seen) > 9, "only %s" % seen)


@suite.case("the header of a sealed image, changed through a mapping, goes the durable way: the datastore stays sealed, the claim and the next holder know")
def header(build):
    can_map()
    p = pairs.get(build)
    name = sealed_image(p.ds, "header.qcow2")
    with Proc() as q:
        fd = q.call("open", p.a.path(name), RDWR)
        m = q.call("map_shared", fd, 64 << 10)
        eq(q.call("map_read", m, 24, 8), (4 * MIB).to_bytes(8, "big"), "size seen")
        q.call("map_write", m, 24, (3 * MIB).to_bytes(8, "big"))
        q.call("map_sync", m)
        ok(is_sealed(p.ds.raw(name)), "still sealed")
        eq(qcow2_size(p.b.path(name)), 3 * MIB, "what another host sees")
        eq(q.call("pread", fd, 8, 24), (3 * MIB).to_bytes(8, "big"), "read(2)")
        q.call("pwrite", fd, (2 * MIB).to_bytes(8, "big"), 24)
        eq(q.call("map_read", m, 24, 8), (2 * MIB).to_bytes(8, "big"), "the mapping after write(2)")
        q.call("map_write", m, 24, (5 * MIB).to_bytes(8, "big"))
        eq(q.call("pread", fd, 8, 24), (5 * MIB).to_bytes(8, "big"), "read(2) of a dirty page")
        p.a.kill9()  # with the size durable in claim and journal, and sealed on the datastore
    ok(is_sealed(p.ds.raw(name)), "left sealed")
    p.a.start()
    settle(p, name)
    eq(qcow2_size(p.ds.raw(name)), 5 * MIB, "size after the crash")


@suite.case("hand-over to another host and back: no mapping, old or new, shows or writes what was before; neither does that of a reader")
def hand_over(build):
    can_map()
    p = pairs.get(build)
    for name in (raw(p.ds, "over.raw"), sealed_image(p.ds, "over.qcow2")):
        base = 1 * MIB
        with Proc() as a, Proc() as b, Proc() as reader, Proc() as last:
            r = reader.call("map_shared", reader.call("open", p.a.path(name), RDONLY), 2 * MIB, mmap.PROT_READ)
            for n in range(6):
                fd = a.call("open", p.a.path(name), RDWR)
                m = a.call("map_shared", fd, 2 * MIB)
                if n:
                    eq(a.call("map_read", m, base, 8), b"B%07d" % (n - 1), "%s: what B wrote" % name)
                    eq(reader.call("map_read", r, base, 8), b"B%07d" % (n - 1), "%s: the reader's mapping, once A has it" % name)
                a.call("map_write", m, base + PAGE // 2, b"A%07d" % n)  # the same page: what else is in it must be B's
                a.call("map_end", m)
                a.call("close", fd)
                settle(p, name)
                eq(read_at(p.ds.raw(name), base + PAGE // 2, 8), b"A%07d" % n, "%s: A's write" % name)
                if n:
                    eq(read_at(p.ds.raw(name), base, 8), b"B%07d" % (n - 1), "%s: B's write is still there" % name)
                fd = b.call("open", p.b.path(name), RDWR)
                b.call("pwrite", fd, b"B%07d" % n, base)
                eq(b.call("pread", fd, 8, base + PAGE // 2), b"A%07d" % n, "%s: what A wrote" % name)
                b.call("close", fd)
                settle(p, name)
            fd = last.call("open", p.a.path(name), RDWR)
            eq(last.call("pread", fd, 8, base), b"B%07d" % 5, "%s: read(2)" % name)


@suite.case("a reader's mapping of what another host holds shows true bytes, never sealed ones")
def reader(build):
    can_map()
    p = pairs.get(build)
    name = sealed_image(p.ds, "read.qcow2")
    whole = read_at(p.ds.raw(name), 0, 64 << 10)
    with Proc() as holder, Proc() as q:
        holder.call("open", p.b.path(name), RDWR)
        ok(is_sealed(p.ds.raw(name)), "sealed")
        m = q.call("map_shared", q.call("open", p.a.path(name), RDONLY), 64 << 10, mmap.PROT_READ)
        eq(q.call("map_read", m, 0, 64 << 10), whole, "what is mapped")


@suite.case("who is fenced writes nothing through his mapping: msync says EIO, and the successor's bytes stand")
def fenced(build):
    can_map()
    with pair(build, "wait=0", settled=False) as p, Proc() as q, Proc() as b:
        name = raw(p.ds, "fenced.raw")
        fd = q.call("open", p.a.path(name), RDWR)
        m = q.call("map_shared", fd, SIZE)
        q.call("map_write", m, MIB, b"before")
        q.call("map_sync", m)
        ino = os.stat(p.ds.raw(name)).st_ino
        for entry in p.ds.inner("claims"):  # a successor takes it: the claim of A is replaced under it
            if int(entry.partition(".")[0], 16) == ino:
                claim = entry
        key, _, generation = claim.partition(".")
        os.rename(p.ds.inner_path("claims", claim), p.ds.inner_path("claims", "%s.%d" % (key, int(generation) + 1)))
        p.a.wait_log("FENCED|lost|claim", p.a.log_size() and 0)
        def refused():
            try:
                q.call("map_write", m, MIB, b"after!")
                q.call("map_sync", m)
            except OSError as e:
                return e.errno == errno.EIO
            return False
        wait_for(refused, "msync says EIO")
        stands = read_at(p.ds.raw(name), 0, SIZE)
        for off in (0, MIB, SIZE - 4):
            q.call("map_write", m, off, b"late")
        raises(errno.EIO, q.call, "map_sync", m)
        ok(read_at(p.ds.raw(name), 0, SIZE) == stands, "a late page was written")
        q.kill()
        p.a.kill9()
    ok(read_at(p.ds.raw(name), MIB, 6) in (b"before", b"after!"), "no mixture")


@suite.case("pages of a handle with O_APPEND land where they belong, of an image and of a plain file; a partial last page through O_DIRECT, too")
def flags(build):
    can_map()
    p = pairs.get(build)
    for name in (raw(p.ds, "flags.raw", 3 * PAGE + 100), raw(p.ds, "flags.txt", 3 * PAGE + 100),
                 sealed_image(p.ds, "flags.qcow2")):
        size = os.stat(p.ds.raw(name)).st_size
        for flag in (os.O_APPEND, os.O_DIRECT):
            with Proc() as q:
                fd = q.call("open", p.a.path(name), RDWR | flag)
                m = q.call("map_shared", fd, size)
                for off in (200, size - 50, 2 * PAGE):
                    q.call("map_write", m, off, b"%d" % flag)
                q.call("map_sync", m)
                q.call("map_end", m)
                q.call("close", fd)
            settle(p, name)
            eq(os.stat(p.ds.raw(name)).st_size, size, "size of %s" % name)
            for off in (200, size - 50, 2 * PAGE):
                eq(read_at(p.ds.raw(name), off, len(b"%d" % flag)), b"%d" % flag, "%s at %d" % (name, off))


@suite.case("where the kernel cannot, a shared mapping is ENODEV, and one line of each daemon, at the first unsealed image, says the way out")
def cannot(build):
    if not build.hooks:
        raise Skip("needs -Dhooks=true")
    with pair(build, "wait=0", hosts=("a",), **NOTHING) as p, Proc() as q:
        sealed_image(p.ds, "x.qcow2")
        q.call("close", q.call("open", p.a.path("x.qcow2"), RDWR))
        ok("ENODEV" not in p.a.log(), "nothing is said of a sealed image")
        for name in ("one.raw", "two.raw", "one.raw"):
            raw(p.ds, name)
            fd = q.call("open", p.a.path(name), RDWR)
            raises(errno.ENODEV, q.call, "map_shared", fd, SIZE)
            q.call("close", fd)
            settle(p, name)
        lines = [line for line in p.a.log().splitlines() if "ENODEV" in line]
        ok(len(lines) == 1 and "one.raw" in lines[0] and "Way out" in lines[0], "lines: %s" % lines)


if __name__ == "__main__":
    suite.main()
