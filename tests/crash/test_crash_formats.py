#!/usr/bin/env python3
"""test_crash_formats: the daemon dies at the k-th operation on the datastore or the journal while QEMU opens an image of each format, writes to it, lets it
grow over several blocks, and closes it. Then the daemon recovers at its next start, or fsck.diskguard without the journal.

Afterwards the header is true, what was there before is there, and so is what QEMU had flushed. For each format POINTS values of k are drawn at
random (--seed), with one recovery each; --long: all, with both. Needs a build with -Dhooks=true.
"""
import os
import random
import shutil

import crashlib  # noqa: F401 (finds the harness)
import kinds
from crashlib import Scenario, run_some
from dgtest import Skip, Suite, eq, must, ok, read_at, run, suite_tmp
from sealing import plan_of

suite = Suite(__file__, needs="hooks", memory=True, seed=True, limit=900)
POINTS = 12
# one for each way to be sealed: in front, in front and at the end, at the end alone, a text, far in
FORMATS = ("qcow", "qed-65536-4", "vdi", "vmdk", "vmdk-flat", "vpc", "vpc-fixed", "vhdx-1M", "parallels", "luks1", "luks2")


class Life(Scenario):
    """Open, write, grow, close."""
    max_hooks = 4000

    def __init__(self, kind):
        self.kind, self.name, self.images = kind, kind.name, (kind.file,)
        self.template = None

    def files(self):
        if self.template is None:
            self.template = suite_tmp()
            self.kind.make(self.template)
        return self.template

    def path(self, c):
        return c.view.path(self.kind.file)

    def prepare(self, c):
        for name in os.listdir(self.files()):
            shutil.copy(os.path.join(self.template, name), c.ds.raw(name))
        c.vars["kept"] = 0

    def act(self, c):
        if not self.kind.qemu:
            fd = c.open(self.kind.file)
            c.call("pwrite", fd, b"guest" * 100, (17 << 20) + 7)
            c.vars["kept"] = 1
            c.call("close", fd)
            return
        words = [w for command in self.kind.grow for w in ("-c", command, "-c", "flush")]
        r = run("qemu-io", *self.kind.spec(self.path(c)), *words)
        # A write that was answered is only known to be flushed when a later one was answered, too; after the whole the close has flushed it.
        wrote = r.out.count("wrote ")
        c.vars["kept"] = wrote if r.code == 0 and c.view.alive() else max(0, wrote - 1)
        if r.code or wrote < len(self.kind.grow):
            raise OSError(r.out)

    def done(self, c):
        return c.quiet()

    def sealed(self, c, name):
        return plan_of(os.path.join(c.build.path, "tests", "sealtool"), c.ds.raw(name))["verdict"] == "SEALED"

    def info(self, c, name):
        return ["qemu-img", "info", *self.kind.unlocked(c.ds.raw(name))] if self.kind.qemu else None

    def sizes(self):
        image = self.kind.image(self.files())
        if not hasattr(self, "_size"):
            text = must("qemu-img", "info", *self.kind.spec(image))
            self._size = int(text.split("virtual size:")[1].split("(")[1].split(" ")[0])  # pylint: disable=attribute-defined-outside-init
        return {self._size}

    def check(self, c):
        kind, raw = self.kind, c.ds.raw(self.kind.file)
        plan = plan_of(os.path.join(c.build.path, "tests", "sealtool"), raw)
        ok(plan["verdict"] == "IMAGE" and plan["format"] == kind.format, "what it is: %s" % plan)
        if not kind.qemu:
            old, new = read_at(self.kind.image(self.files()), 0, 17 << 20), read_at(raw, 0, 17 << 20)
            eq(new == old, True, "header")
            must("cryptsetup", "luksDump", raw)
            if c.vars["kept"]:
                eq(read_at(raw, (17 << 20) + 7, 500), b"guest" * 100, "what was written")
            return
        if kind.format == "vhdx":  # what QEMU had in its log is replayed first, in a copy
            copy = os.path.join(c.ds.base, "replayed")
            shutil.copy(raw, copy)
            raw = copy
            must("qemu-img", "check", "-q", "-r", "all", *kind.spec(raw))
        r = run("qemu-img", "info", *kind.spec(raw))
        ok(r.code == 0 and "(%d bytes)" % self._only_size() in r.out, "QEMU does not open the image with its size: %r" % r)
        words = [w for command in (*kind.fill, *kind.grow[:c.vars["kept"]]) for w in ("-c", command.replace("write", "read"))]
        out = must("qemu-io", "-r", *kind.spec(raw), *words)
        ok("failed" not in out, "content: " + out)

    def _only_size(self):
        return next(iter(self.sizes()))


def add(kind):
    @suite.case("%s: open, write, grow, close" % kind.name, limit=600)
    def _(build):
        if not build.hooks:
            raise Skip("needs a build with -Dhooks=true")
        tried, total = run_some(build, Life(kind), None if suite.args.long else POINTS, random.Random("%d %s" % (suite.args.seed, kind.name)))
        print("%s: %d of %d crash points" % (kind.name, tried, total), flush=True)
        # The number of steps differs from run to run (beats, retries), so that a point that was drawn near the end may not be reached.
        ok(tried >= POINTS // 2 and total >= POINTS, "too few hooks were passed: %d, of them tried %d" % (total, tried))


for each in FORMATS:
    add(kinds.named(each))


if __name__ == "__main__":
    suite.main()
