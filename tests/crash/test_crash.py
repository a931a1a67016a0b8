#!/usr/bin/env python3
"""test_crash: the daemon dies at the k-th operation on the datastore or the journal, for every k, in each of the scenarios below. Then it recovers:
the daemon at its next start, or fsck.diskguard without the journal, or one of them after a second crash in the middle of the recovery.

Needs a build with -Dhooks=true. After each k comes one of these four recoveries, by turns; --seed decides which is the first.
--long: all four after each k, and every second crash.
"""
import fcntl
import os
import signal

import crashlib  # noqa: F401 (finds the harness)
from crashlib import SIZE, Scenario, foreign, run_all, template
from dgops import KEEP_SIZE, PUNCH_HOLE
from dgtest import Skip, Suite, eq, must, ok, read_at, run, suite_tmp

suite = Suite(__file__, needs="hooks", memory=True, seed=True, limit=900)
scenarios = []


def scenario(cls):
    scenarios.append(cls())
    return cls


@scenario
class Open(Scenario):
    name = "open and seal"

    def act(self, c):
        c.open("img.qcow2")


@scenario
class OpenV2(Open):
    name = "open and seal, version 2"
    options = "compat=0.10"


@scenario
class OpenRaw(Open):
    name = "open of a raw image"
    images = ("disk.img",)

    def prepare(self, c):
        c.put("disk.img", b"raw" * 4000)

    def act(self, c):
        c.open("disk.img")

    def sizes(self):
        return {12288, 12000}

    def check(self, c):
        eq(c.raw_bytes("disk.img"), b"raw" * 4000)


@scenario
class LockDisk(OpenRaw):
    name = "the lock by which QEMU says that it writes a disk of any name"
    images = ("disk.1",)

    def prepare(self, c):
        c.put("disk.1", b"raw" * 4000)
        c.vars["fd"] = c.open("disk.1")

    def act(self, c):
        c.call("lock", c.vars["fd"], fcntl.F_RDLCK, 101, 1)

    def check(self, c):
        eq(c.raw_bytes("disk.1"), b"raw" * 4000)


class Held(Scenario):
    """The image is open before the hooks count, and one block of guest data is written."""

    def prepare(self, c):
        super().prepare(c)
        c.vars["fd"] = c.open("img.qcow2")
        c.call("pwrite", c.vars["fd"], b"guest", len(self.data()) - 512)

    def old(self):
        data = bytearray(self.data())
        data[-512:-507] = b"guest"
        return bytes(data)


@scenario
class Close(Held):
    name = "close and restore"

    def act(self, c):
        c.call("close", c.vars["fd"])

    def done(self, c):
        return c.quiet()

    def check(self, c):
        eq(c.raw_bytes("img.qcow2") == self.old(), True, "content is what the holder wrote")


@scenario
class CloseV2(Close):
    name = "close and restore, version 2"
    options = "compat=0.10"


@scenario
class Shutdown(Close):
    name = "SIGTERM with an open handle"
    ends = True

    def act(self, c):
        c.view.signal(signal.SIGTERM)

    def done(self, c):
        return False  # it ends either way: 137 or 0


@scenario
class SizeUpdate(Held):
    name = "header update: another size"

    def act(self, c):
        c.call("pwrite", c.vars["fd"], (2 * SIZE).to_bytes(8, "big"), 24)

    def sizes(self):
        return {SIZE, 2 * SIZE}

    def new(self):
        data = bytearray(self.old())
        data[24:32] = (2 * SIZE).to_bytes(8, "big")
        return bytes(data)

    def check(self, c):
        ok(c.raw_bytes("img.qcow2") in (self.old(), self.new()), "the header is neither the old nor the new one")


class Rewrite(Held):
    """The first cluster is rewritten as qemu-img does it, with another layout: the plan moves."""
    command = ()

    def new_header(self):
        if not hasattr(self, "_new"):
            path = os.path.join(suite_tmp(), "new.qcow2")
            with open(path, "wb") as f:
                f.write(self.data())
            must(*[a % path if "%s" in a else a for a in self.command])
            self._new = read_at(path, 0, 65536)  # pylint: disable=attribute-defined-outside-init
            ok(self._new != self.data()[:65536], "the command changes the header")
        return self._new

    def prepare(self, c):
        self.new_header()
        super().prepare(c)

    def act(self, c):
        c.call("pwrite", c.vars["fd"], self.new_header(), 0)

    def check(self, c):
        found, old, new = c.raw_bytes("img.qcow2"), self.old(), self.new_header() + self.old()[65536:]
        eq(len(found), len(old), "length")
        wrong = foreign(found, old, new)
        ok(not wrong, "bytes that are neither the old nor the new ones, at %s" % wrong[:10])
        r = run("qemu-img", "info", c.ds.raw("img.qcow2"))
        ok(r.code == 0 and "(%d bytes)" % SIZE in r.out, "QEMU does not open the image with its size: %r" % r)


@scenario
class RewriteBacking(Rewrite):
    name = "header rewrite: a backing file is named"
    command = ("qemu-img", "rebase", "-u", "-b", "other.qcow2", "-F", "qcow2", "%s")


@scenario
class RewriteUpgrade(Rewrite):
    name = "header rewrite: version 2 becomes 3"
    options = "compat=0.10"
    command = ("qemu-img", "amend", "-o", "compat=1.1", "%s")


@scenario
class RewriteDowngrade(Rewrite):
    name = "header rewrite: version 3 becomes 2"
    command = ("qemu-img", "amend", "-o", "compat=0.10", "%s")


@scenario
class Resize(Scenario):
    name = "qemu-img resize through the view"

    def act(self, c):
        r = run("qemu-img", "resize", "-q", c.view.path("img.qcow2"), str(2 * SIZE))
        if r.code:  # its calls return as soon as the dying daemon has let go of /dev/fuse, before the process is gone
            raise OSError(r.out)

    def done(self, c):
        return c.quiet()

    def sizes(self):
        return {SIZE, 2 * SIZE}

    def check(self, c):
        raw = c.ds.raw("img.qcow2")
        r = run("qemu-img", "info", raw)
        ok(r.code == 0 and any("(%d bytes)" % s in r.out for s in self.sizes()), "size: %r" % r)
        must("qemu-io", "-r", "-c", "read -P 0x21 1M 64k", raw)
        must("qemu-img", "check", "-q", raw)


class Truncate(Held):
    length = 0

    def act(self, c):
        c.call("ftruncate", c.vars["fd"], self.length)

    def check(self, c):
        found, old = c.raw_bytes("img.qcow2"), self.old()
        ok(len(found) in (len(old), self.length), "length %d" % len(found))
        eq(found == old[:len(found)], True, "content up to the length that is left")


for cut in (0, 28, 100, 300, 4096, 70000):
    scenarios.append(type("Truncate%d" % cut, (Truncate,), {"name": "truncate to %d" % cut, "length": cut})())


@scenario
class TruncateOpen(Scenario):
    name = "open with O_TRUNC"

    def act(self, c):
        c.open("img.qcow2", os.O_RDWR | os.O_TRUNC)

    def check(self, c):
        ok(c.raw_bytes("img.qcow2") in (b"", self.data()), "neither empty nor as before")


@scenario
class TruncatePath(Scenario):
    name = "truncate by path"

    def act(self, c):
        c.call("truncate", c.view.path("img.qcow2"), 30)

    def done(self, c):
        return c.quiet()

    def check(self, c):
        ok(c.raw_bytes("img.qcow2") in (self.data()[:30], self.data()), "neither cut nor as before")


@scenario
class Punch(Held):
    name = "a hole is punched over the header"

    def act(self, c):
        c.call("fallocate", c.vars["fd"], PUNCH_HOLE | KEEP_SIZE, 0, 4096)

    def check(self, c):
        found, old = c.raw_bytes("img.qcow2"), self.old()
        eq(len(found), len(old))
        wrong = foreign(found, old, bytes(4096) + old[4096:])
        ok(not wrong, "bytes that are neither the old ones nor zero, at %s" % wrong[:10])


@scenario
class Create(Scenario):
    name = "a new image is created and written"

    def prepare(self, c):
        self.data()

    def act(self, c):
        data = self.data()
        fd = c.open("img.qcow2", os.O_RDWR | os.O_CREAT)
        c.call("pwrite", fd, data[65536:], 65536)
        c.call("pwrite", fd, data[:65536], 0)
        c.call("close", fd)

    def done(self, c):
        return c.quiet()

    def check(self, c):
        found, whole = c.raw_bytes("img.qcow2"), self.data()
        if found is not None:
            wrong = foreign(found[:len(whole)], whole, bytes(len(whole)))
            ok(len(found) <= len(whole) and not wrong, "bytes that nobody wrote, at %s" % wrong[:10])


@scenario
class Unlink(Scenario):
    name = "unlink of an idle image"

    def act(self, c):
        c.call("unlink", c.view.path("img.qcow2"))

    def done(self, c):
        return c.quiet()

    def check(self, c):
        ok(c.raw_bytes("img.qcow2") in (None, self.data()), "neither gone nor as before")


@scenario
class RenameOver(Scenario):
    name = "an image is renamed over another"
    images = ("img.qcow2", "new.qcow2")

    def prepare(self, c):
        super().prepare(c)
        c.put("new.qcow2", template("cluster_size=4k"))

    def act(self, c):
        c.call("rename", c.view.path("new.qcow2"), c.view.path("img.qcow2"))

    def done(self, c):
        return c.quiet()

    def check(self, c):
        new = template("cluster_size=4k")
        ok((c.raw_bytes("img.qcow2"), c.raw_bytes("new.qcow2")) in ((self.data(), new), (new, None)), "neither renamed nor as before")


@scenario
class TwoHeld(Held):
    name = "two images closed at once"
    images = ("img.qcow2", "two.qcow2")

    def prepare(self, c):
        super().prepare(c)
        c.put("two.qcow2", template("compat=0.10"))
        c.open("two.qcow2")

    def act(self, c):
        c.worker.kill()

    def done(self, c):
        return c.quiet()

    def check(self, c):
        eq(c.raw_bytes("img.qcow2") == self.old(), True, "first image")
        eq(c.raw_bytes("two.qcow2") == template("compat=0.10"), True, "second image")


def add(s):
    @suite.case(s.name, limit=600)
    def _(build):
        if not build.hooks:
            raise Skip("needs a build with -Dhooks=true")
        points = run_all(build, s, suite.args.long, suite.args.seed)
        print("%s: %d crash points" % (s.name, points), flush=True)
        ok(points > 0, "no hook was passed: nothing was tested")


for each in scenarios:
    add(each)


if __name__ == "__main__":
    suite.main()
