#!/usr/bin/env python3
"""test_formats: the guard, for every kind of image of kinds.py.

For each kind: it is made through view A as on a plain directory; qemu-io holds it through view A, writes and lets it grow. Meanwhile the raw file is
sealed after each command and refuses (where the kind says that it can), view B refuses with EBUSY, and readers of both views see the true header. After the close the
datastore holds what the same commands leave on a plain copy, bit for bit; so after a resize, and so with qemu-img create and convert over it.
Two things are taken out of the comparisons, each by its role (kinds.py): what is drawn at random or from the clock when an image is made, and, for vmdk and vhdx
alone, what QEMU draws anew in each session that writes.
"""
import json
import os
import shutil
import threading

import dgtest
import kinds
from dgqemu import QemuIo
from dgtest import Fail, Proc, Suite, eq, must, ok, refused, wait_for
from kinds import SECRET
from sealing import content, content_of, plan_of

suite = Suite(__file__, memory=True)
shared = dgtest.SharedPair("wait=0")
PER_SESSION = ("vmdk", "vhdx")  # QEMU draws a new CID, new GUIDs in each session that writes
SOURCE = 4 << 20


def masked(kind, folder, masks):
    """content() of a folder, without what the masks take out."""
    found = content(folder)
    for name, data in found.items():
        if isinstance(data, bytes):
            data = bytearray(data)
            for mask in masks.values():
                mask(data)
            found[name] = bytes(data)
    return found


def same(kind, folder, wanted, what, masks=None):
    if masks is None:
        masks = kind.mask if kind.format in PER_SESSION else {}
    left, right = masked(kind, folder, masks), masked(kind, wanted, masks)
    eq(sorted(left), sorted(right), what + ": files")
    for name, data in left.items():
        if data == right[name]:
            continue
        if isinstance(data, bytes):
            bad = [i for i in range(min(len(data), len(right[name]))) if data[i] != right[name][i]]
            raise Fail("%s: %s differs: %d and %d bytes long, %d bytes from %s on" % (what, name, len(data), len(right[name]), len(bad), bad[:1]))
        raise Fail("%s: %s differs" % (what, name))


def is_valid_vhd_footer(data):
    total = ~(sum(data) - sum(data[64:68])) & 0xffffffff
    return data[:8] == b"conectix" and data[60:64] in (b"\0\0\0\2", b"\0\0\0\3", b"\0\0\0\4") and data[64:68] == total.to_bytes(4, "big")


class Footer:
    """Looks at the end of a raw VHD file all the time: a footer that any reader would take must never stand there while the image is held."""

    def __init__(self, path):
        self.path, self.seen, self.looks, self.over = path, [], 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self):
        fd = os.open(self.path, os.O_RDONLY)
        while not self.over.wait(0.0002):
            size = os.fstat(fd).st_size
            data = os.pread(fd, 512, size - 512)
            if size == os.fstat(fd).st_size and len(data) == 512 and is_valid_vhd_footer(data):
                self.seen.append(size)
            self.looks += 1
        os.close(fd)

    def end(self):
        self.over.set()
        self.thread.join()
        ok(self.looks > 5, "the footer was looked at only %d times" % self.looks)
        ok(not self.seen, "a valid footer that is not sealed stood at the end of the raw file, at length %s" % self.seen[:3])


class Bench:
    """One kind on the pair of views."""

    def __init__(self, state, kind):
        self.state, self.kind, self.ds = state, kind, state.ds
        self.folder = self.ds.raw(kind.name)
        self.raw = kind.image(self.folder)
        self.a, self.b = (kind.image(v.path(kind.name)) for v in (state.a, state.b))
        self.plain_folder = os.path.join(self.ds.base, "plain-" + kind.name)
        self.plain = kind.image(self.plain_folder)
        self.sealtool = os.path.join(state.ds.build.path, "tests", "sealtool")

    def settle(self):
        self.ds.wait_settled()

    def sealed(self, when):
        """Is each file of the image sealed, those that can be?"""
        if kinds.ALL not in self.kind.cannot:
            plan = plan_of(self.sealtool, self.raw)
            ok(plan["verdict"] == "SEALED" and plan["format"] == self.kind.format, "the raw file is not sealed %s: %s" % (when, plan))

    def size(self, path):
        return json.loads(must("qemu-img", "info", "-U", "--output=json", *self.kind.spec(path)))["virtual-size"]

    def make(self):
        """Through the view, and on a plain directory."""
        kind = self.kind
        os.mkdir(self.folder)
        os.mkdir(self.plain_folder)
        kind.make(self.plain_folder, fill=False)
        if kind.create(self.plain_folder):
            kinds.command(kind.create(self.state.a.path(kind.name)), tries=3)
            if kind.patch:
                kinds.edit(self.a, kind.patch)
            self.settle()
            if kind.format != "luks":  # all of it is random
                same(kind, self.folder, self.plain_folder, "made through the view", kind.mask)
            shutil.rmtree(self.plain_folder)
            must("cp", "-r", "--sparse=always", self.folder, self.plain_folder)
        else:
            for name in os.listdir(self.plain_folder):
                must("cp", "--sparse=never", os.path.join(self.plain_folder, name), self.state.a.path(kind.name))
            self.settle()
            same(kind, self.folder, self.plain_folder, "copied through the view", {})
        plan = plan_of(self.sealtool, self.raw)
        ok(plan["verdict"] == ("PLAIN" if kind.format == "-" else "IMAGE"), "made: %s" % plan)

    def others(self, size):
        """What everybody else gets while it is held."""
        kind, before = self.kind, content(self.folder)
        if kind.qemu:
            for argv in (["qemu-img", "info", *kind.unlocked(self.raw)], ["qemu-io", "-c", "length", *kind.unlocked(self.raw)]):
                if kind.may_refuse("info"):
                    refused(*argv)
                elif kind.qemu == "raw":
                    must(*argv)
            busy = "Device or resource busy"
            if kind.guarded:
                refused("qemu-io", "-c", "length", *kind.spec(self.b), text=busy)
                refused("qemu-img", "resize", *kind.spec(self.b), "+64M", text=busy)
            for view in (self.a, self.b):
                eq(self.size(view), size, "size that qemu-img info shows through a view")
                plan = plan_of(self.sealtool, view)
                ok(plan["verdict"] in ("IMAGE", "PLAIN") and (plan["format"] in (kind.format, "-")), "a view shows %s" % plan)
            if not kind.build:
                refused(*kind.create(os.path.dirname(self.b)), text=busy)
                if not kind.secret:  # slow
                    refused("qemu-img", "convert", "-f", "raw", "-O", kind.qemu, self.sealtool, self.b, text=busy)
                    refused(*kind.create(os.path.dirname(self.a)), text=busy + "|lock")
        else:
            dgtest.raises(dgtest.errno.EBUSY, os.open, self.b, os.O_RDWR)
        for tool in kind.tools:
            argv = ["cryptsetup", tool] if "uks" in tool else [tool]
            if dgtest.run(*argv, self.plain).code == 0:
                refused(*argv, self.raw)
                must(*argv, self.b)
        ok(content(self.folder) == before, "somebody else changed the raw file")

    def hold_with_qemu(self):
        kind = self.kind
        spec = kind.spec(self.a)
        size = self.size(self.plain)
        with QemuIo(spec[-1], *spec[:-1]) as holder:
            self.sealed("after the open")
            footer = Footer(self.raw) if kind.format == kind.qemu == "vpc" else None
            for command in (*kind.fill, *kind.grow):
                holder.do(command)
                self.sealed("after " + command)
            self.others(size)
            holder.do("write -P 0x77 512k 64k")
            holder.do("flush")
            self.sealed("at the end")
            if footer:
                footer.end()
            holder.close()
        spec = kind.spec(self.plain)
        with QemuIo(spec[-1], *spec[:-1]) as alone:
            for command in (*kind.fill, *kind.grow, "write -P 0x77 512k 64k", "flush"):
                alone.do(command)
            alone.close()

    def hold_alone(self):
        """What QEMU cannot write to."""
        at = os.path.getsize(self.raw) - 4096
        old = dgtest.read_at(self.plain, at, 512) if not self.kind.writes else b"guest".ljust(512, b".")
        with Proc() as holder:
            fd = holder.call("open", self.a, os.O_RDWR, 0)
            self.sealed("after the open")
            holder.call("pwrite", fd, old, at)
            self.sealed("after a write")
            self.others(self.size(self.plain) if self.kind.qemu else 0)
            holder.call("close", fd)
        with open(self.plain, "r+b") as f:
            f.seek(at)
            f.write(old)

    def released(self, what):
        self.settle()
        same(self.kind, self.folder, self.plain_folder, what)
        plan = plan_of(self.sealtool, self.raw)
        ok(plan["verdict"] in ("IMAGE", "PLAIN") and plan["format"] == self.kind.format, "%s: %s" % (what, plan))
        if self.kind.qemu:
            for path in (self.raw, self.b):
                self.compare(path, self.plain)

    def compare(self, path, other):
        kind = self.kind
        if kind.secret:
            must("qemu-img", "compare", "-U", *SECRET, "--image-opts", kind.spec(path)[-1], kind.spec(other)[-1])
        else:
            must("qemu-img", "compare", "-U", "-f", kind.qemu, "-F", kind.qemu, kind.opened(path), kind.opened(other))

    def resize(self):
        for path in (self.a, self.plain):
            must("qemu-img", "resize", "-q", *self.kind.spec(path), "+9M")
        self.released("after a resize")

    def over(self):
        """A new image over the old one: qemu-img opens without O_TRUNC and cuts afterwards."""
        kind = self.kind
        kinds.command(kind.create(os.path.dirname(self.a)), tries=3)
        self.settle()
        shutil.rmtree(self.plain_folder)
        os.mkdir(self.plain_folder)
        kinds.command(kind.create(self.plain_folder), tries=3)
        same(kind, self.folder, self.plain_folder, "created over an image", kind.mask)
        source = self.plain_folder + ".raw"
        must("qemu-img", "create", "-q", "-f", "raw", source, str(SOURCE))
        must("qemu-io", "-f", "raw", "-c", "write -P 0x42 1M 70000", source)
        must("qemu-img", "convert", "-f", "raw", "-O", kind.qemu, *(("-o", kind.options) if kind.options else ()), source, self.a)
        self.settle()
        # the size of a VHD is rounded up: the rest must be zero, which compare without -s accepts
        must("qemu-img", "compare", "-f", "raw", "-F", kind.qemu, source, self.raw)
        os.unlink(source)
        eq(plan_of(self.sealtool, self.raw)["verdict"], "IMAGE", "after a convert over it")


def one(state, kind):
    bench = Bench(state, kind)
    bench.make()
    if kind.qemu and kind.writes:
        bench.hold_with_qemu()
    else:
        bench.hold_alone()
    bench.released("after the close")
    if kind.resize:
        bench.resize()
    if not kind.build and not kind.huge and not kind.secret:
        bench.over()
    shutil.rmtree(bench.folder)
    shutil.rmtree(bench.plain_folder)


def add(kind):
    @suite.case(kind.name)
    def _(build):
        one(shared.get(build), kind)


for each in kinds.kinds():
    add(each)


@suite.case("both views end clean and fsck finds nothing")
def _(build):
    shared.get(build)
    shared.end()


if __name__ == "__main__":
    suite.main()
