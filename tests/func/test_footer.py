#!/usr/bin/env python3
"""test_footer: reads and writes that may meet a header, above all of images with a footer, where every one may: that they keep nobody else waiting when the
storage hangs, and what copy_file_range(2) makes of such images. What such images hold is test_far's and test_formats' business."""
import contextlib
import errno
import os
import signal

from dgqemu import make_qcow2
from dgtest import Proc, Skip, Suite, eq, mounted_at, must, ok, pair, read_at, run, sha, suite_tmp, wait_for

suite = Suite(__file__, needs="hooks")
RDWR = os.O_RDWR
BLOCK = 4096


def make(path, kind, size="8M"):
    """An image with 3s from 1M to 3M."""
    fmt = "vpc" if kind == "fixed" else kind
    must("qemu-img", "create", "-q", "-f", fmt, *(("-o", "subformat=fixed,force_size=on") if kind == "fixed" else ()), path, size)
    must("qemu-io", "-f", fmt, "-c", "write -P 3 1M 2M", path)
    return path


def hang(flag, *files):
    """From now on the storage does not answer for these files (hook.h); for none: it answers again."""
    with open(flag + ".new", "w") as f:
        f.writelines("%d\n" % os.stat(file).st_ino for file in files)
    os.rename(flag + ".new", flag)


@contextlib.contextmanager
def hanging(build, *options):
    """One host and its datastore, the file that says what hangs (nothing, at the end), and how many requests wait for the daemon's answer."""
    if not build.hooks:
        raise Skip("needs a build with hooks")
    tmp = suite_tmp()
    flag, control = os.path.join(tmp, "hang"), os.path.join(tmp, "fusectl")
    os.mkdir(control)
    must("mount", "-t", "fusectl", "none", control)
    with pair(build, "wait=0", *options, hosts=("a",), env={"DISKGUARD_HOOK_HANG": flag}, settled=False) as p:
        def waiting():
            with open(os.path.join(control, mounted_at(p.a.mnt).split(":")[1], "waiting")) as f:
                return int(f.read())
        try:
            yield p, flag, waiting
        finally:
            hang(flag)
            must("umount", control)


def fill(k):
    return bytes([k % 255 + 1]) * BLOCK


def flood(waiting, holder, fd, raw, count):
    """A change of the footer that hangs, and behind it so many reads and writes, which wait for it."""
    end = os.path.getsize(raw) - 512
    footer = holder.call("pread", fd, 512, end)
    holder.call("begin", "pwrite", fd, footer, end)
    wait_for(lambda: waiting() >= 1, "the footer is being written")
    for k in range(count):
        holder.call("begin", "pread", fd, BLOCK, 1 << 20)
        holder.call("begin", "pwrite", fd, fill(k), (4 << 20) + k * BLOCK)
    wait_for(lambda: waiting() > 2 * count, "all are on their way")


def flood_landed(answers, raw, count):
    eq(answers, [("ok", 512)] + [("ok", bytes([3]) * BLOCK), ("ok", BLOCK)] * count, "answers")
    for k in range(count):
        eq(read_at(raw, (4 << 20) + k * BLOCK, BLOCK), fill(k), "what write %d left" % k)


def removed(proc, path):
    """The claim is free a moment before the daemon that freed it is done, and wait=0 waits for nothing."""
    try:
        proc.call("unlink", path)
    except OSError as e:
        eq(e.errno, errno.EBUSY, "removal of " + path)
        return False
    return True


@suite.case("hundreds of reads and writes of a VHD whose storage hangs keep neither opens, names and data of others nor the control channel waiting")
def others_go_on(build):
    with Proc() as holder, Proc() as other, hanging(build) as (p, flag, waiting):
        raw = make(p.ds.raw("hung.vhd"), "fixed")
        make(p.ds.raw("other.vhd"), "fixed")
        make_qcow2(p.ds.raw("other.qcow2"))
        fd = holder.call("open", p.a.path("hung.vhd"), RDWR)
        hang(flag, raw)
        flood(waiting, holder, fd, raw, 130)
        for k in range(10):
            name = p.a.path("plain%d" % k)
            one = other.call("open", name, RDWR | os.O_CREAT, 0o644)
            other.call("pwrite", one, fill(k), 0)
            eq(other.call("pread", one, BLOCK, 0), fill(k), "a plain file")
            other.call("close", one)
            other.call("rename", name, name + ".new")
            other.call("unlink", name + ".new")
        for name in ("other.vhd", "other.qcow2"):
            one = other.call("open", p.a.path(name), RDWR)
            for k in range(100):
                other.call("begin", "pwrite", one, fill(k), (4 << 20) + k * BLOCK)
            eq(other.call("finish"), [("ok", BLOCK)] * 100, name + ": writes")
            for k in range(100):
                other.call("begin", "pread", one, BLOCK, (4 << 20) + k * BLOCK)
            eq(other.call("finish"), [("ok", fill(k)) for k in range(100)], name + ": reads")
            other.call("close", one)
            p.ds.wait_free(name)
            wait_for(lambda name=name: removed(other, p.a.path(name)), name + " is removed")
        ok("hung.vhd" in run(*build.command(build.ctl, "list", p.a.mnt), timeout=10).out, "diskguardctl does not list the image that hangs")
        hang(flag)
        flood_landed(holder.call("finish"), raw, 130)
        holder.call("close", fd)
        p.ds.wait_free("hung.vhd")
        must("qemu-img", "info", "-f", "vpc", raw)


@suite.case("a daemon that is told to end while reads and writes of a VHD hang carries them out, restores the image and ends")
def ends_after_all(build):
    with Proc() as holder, hanging(build) as (p, flag, waiting):
        raw = make(p.ds.raw("hung.vhd"), "fixed")
        footer = read_at(raw, os.path.getsize(raw) - 512, 512)
        fd = holder.call("open", p.a.path("hung.vhd"), RDWR)
        hang(flag, raw)
        flood(waiting, holder, fd, raw, 80)
        mark = p.a.log_size()
        p.a.signal(signal.SIGTERM)
        p.a.wait_log("stopping on signal", mark)
        hang(flag)
        flood_landed(holder.call("finish"), raw, 80)
        eq(p.a.wait_end(), 0, "exit code of diskguard")
        p.a.forget()
        eq(p.ds.claim_of("hung.vhd"), "free", "the claim")
        eq(read_at(raw, os.path.getsize(raw) - 512, 512), footer, "the footer")


@suite.case("appends to images whose storage hangs keep no data and no names of others waiting")
def appends(build):
    with Proc() as holder, Proc() as other, hanging(build) as (p, flag, waiting):
        names = ["img%d.qcow2" % k for k in range(40)]  # more than there are threads that read requests (loop.h)
        for name in (*names, "other.qcow2"):
            make_qcow2(p.ds.raw(name))
        sizes = [os.path.getsize(p.ds.raw(name)) for name in names]
        fds = [holder.call("open", p.a.path(name), RDWR | os.O_APPEND) for name in names]
        one = other.call("open", p.a.path("other.qcow2"), RDWR)
        hang(flag, *(p.ds.raw(name) for name in names))
        for fd in fds:
            holder.call("begin", "write", fd, fill(1))
        wait_for(lambda: waiting() >= len(names), "all are on their way")
        other.call("pwrite", one, fill(2), 1 << 20)
        eq(other.call("pread", one, BLOCK, 1 << 20), fill(2), "data of another image")
        other.call("close", one)
        p.ds.wait_free("other.qcow2")
        hang(flag)
        eq(holder.call("finish"), [("ok", BLOCK)] * len(names), "answers")
        for name, fd, size in zip(names, fds, sizes):
            holder.call("close", fd)
            p.ds.wait_free(name)
            eq(read_at(p.ds.raw(name), size, BLOCK + 1), fill(1), name + ": what was appended")


@suite.case("copy_file_range of images with a footer: the same bytes, in bounded steps")
def copied(build):
    with pair(build, settled=False) as p, Proc() as worker:
        source = make(p.ds.raw("source.vhd"), "fixed", "64M")
        must("qemu-io", "-f", "vpc", "-c", "write -P 5 20M 30M", source)
        size = os.path.getsize(source)
        for k, kind in enumerate((None, "fixed", "vmdk")):
            name = "copy%d" % k
            if kind:  # over an image that is held while it is copied
                make(p.ds.raw(name), kind)
            target = worker.call("open", p.a.path(name), RDWR | os.O_CREAT, 0o644)
            for flags in (os.O_RDONLY, RDWR):
                fd = worker.call("open", p.a.path("source.vhd"), flags)
                ok(worker.call("copy_file_range_once", fd, target, size, 0, 0) <= 4 << 20, "one call copies %s, however long that takes" % name)
                eq(worker.call("copy_file_range", fd, target, size, 0, 0), size, "how much of it is copied")
                eq(worker.call("fstat", target)[4], size, name + ": size")
                eq(sha(p.a.path(name)), sha(p.a.path("source.vhd")), name + ": through the view")
                worker.call("close", fd)
            worker.call("close", target)
            p.ds.wait_free(name)
            p.ds.wait_free("source.vhd")
            eq(sha(p.ds.raw(name)), sha(source), name + ": on the datastore")
        for way in ("auto", "never"):
            must("cp", "--reflink=" + way, p.a.path("source.vhd"), p.a.path("cp"))
            p.ds.wait_free("cp")
            eq(sha(p.ds.raw("cp")), sha(source), "cp --reflink=" + way)
        # Within one image, onto its own bytes: no two locks of it at the same time.
        fd = worker.call("open", p.a.path("source.vhd"), RDWR)
        eq(worker.call("copy_file_range", fd, fd, 8 << 20, 20 << 20, 50 << 20), 8 << 20, "within one image")
        eq(worker.call("pread", fd, 8 << 20, 50 << 20), bytes([5]) * (8 << 20), "what was copied within one image")
        worker.call("close", fd)


@suite.case("a signal ends a long copy of an image with a footer")
def interrupted(build):
    with pair(build, hosts=("a",), settled=False) as p:
        size = os.path.getsize(make(p.ds.raw("source.vhd"), "fixed", "512M"))
        copy = p.ds.raw("copy.vhd")
        with Proc() as worker:
            source = worker.call("open", p.a.path("source.vhd"), os.O_RDONLY)
            target = worker.call("open", p.a.path("copy.vhd"), RDWR | os.O_CREAT, 0o644)
            worker.send("copy_file_range", source, target, size, 0, 0)
            wait_for(lambda: os.path.getsize(copy) >= 1 << 20, "the copy has begun")
        p.ds.wait_free("copy.vhd")
        ok(os.path.getsize(copy) < size // 2, "copied on to the end")


if __name__ == "__main__":
    suite.main()
