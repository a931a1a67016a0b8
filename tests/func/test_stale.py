#!/usr/bin/env python3
"""test_stale: storage whose clients keep stale data, as NFS does. stalefs.c stands for it: each of its mounts is a client with a page cache that is
never told of what another client wrote."""
import contextlib
import mmap
import os
import socket
import subprocess

import guardian
from dgqemu import make_qcow2
from dgtest import FRESH, Datastore, Host, Proc, Suite, View, eq, mounted_at, must, ok, suite_tmp, wait_for

suite = Suite(__file__)
RDONLY, RDWR = os.O_RDONLY, os.O_RDWR
MIB = 1 << 20
FAR = 16 * MIB  # beyond what a fresh read of the header drops from the cache


def forget_dead_view(mnt):
    """A killed daemon leaves its control socket, named after the device number of its mount, and that is this one's now."""
    device = os.stat(mnt).st_dev
    path = "/run/diskguard/%d:%d.sock" % (os.major(device), os.minor(device))
    with socket.socket(socket.AF_UNIX) as s:
        try:
            s.connect(path)
        except FileNotFoundError:
            pass
        except ConnectionRefusedError:
            os.unlink(path)


@contextlib.contextmanager
def clients(build, *options):
    """One datastore, two clients of it, one view on each: yields the datastore and the two views."""
    base = suite_tmp()
    ds = Datastore(build, base, init=False)
    mounts, servers, views = [], [], []
    try:
        for name in ("a", "b"):
            mnt = os.path.join(base, "client-" + name)
            os.mkdir(mnt)
            p = subprocess.Popen([os.path.join(build.path, "tests", "stalefs"), ds.path, mnt], stdin=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)
            guardian.process(p.pid)
            servers.append(p)
            mounts.append(mnt)
            wait_for(lambda m=mnt: mounted_at(m), "stalefs is mounted")
            forget_dead_view(mnt)
        # File handles differ between this file system and the directory below it: the datastore is made through a client.
        must(*build.command(build.ctl, "init", mounts[0]), env=build.env())
        for name, mnt in zip(("a", "b"), mounts):
            views.append(View(ds, Host(base, name), ["wait=0", *options], datastore=mnt))
        yield ds, views[0], views[1], mounts
        for view in views:
            view.stop()
    finally:
        for view in views:
            if view.p is not None:
                view.kill9()
        for mnt in mounts:
            if mounted_at(mnt):
                must("umount", "-l", mnt)
        for p in servers:
            p.terminate()
            p.wait()


def image(ds, name, fill):
    make_qcow2(ds.raw(name), "64M")
    with open(ds.raw(name), "r+b") as f:
        f.truncate(24 * MIB)
        for off in (FAR, 4096 - 8):  # the second lies across the border below which the header's way is taken
            f.seek(off)
            f.write(fill * MIB)


@suite.case("stalefs is stale: this file system shows what the tests below are about")
def is_stale(build):
    with clients(build) as (ds, _, _, mounts):
        with open(ds.raw("file"), "wb") as f:
            f.write(b"old!" * 4096)
        fd = os.open(os.path.join(mounts[1], "file"), RDONLY)
        eq(os.pread(fd, 4, 8192), b"old!")
        with open(os.path.join(mounts[0], "file"), "r+b") as f:
            f.write(b"new!" * 4096)
        eq(os.pread(fd, 4, 8192), b"old!", "through the cache")
        direct = os.open(os.path.join(mounts[1], "file"), RDONLY | os.O_DIRECT)
        with open(os.path.join(mounts[1], "file"), "rb") as f:
            eq(os.pread(f.fileno(), 4, 8192), b"old!", "through a new descriptor")
        page = mmap.mmap(-1, 4096)
        eq(os.preadv(direct, [page], 8192), 4096)
        eq(page[:4], b"new!", "past the cache")
        os.close(fd)
        os.close(direct)


@suite.case("what a read-only handle had read is never served again after another host wrote: old handle, new handle, copies, every distance")
def reader_fresh(build):
    with clients(build) as (ds, a, b, mounts), Proc() as holder:
        image(ds, "img.qcow2", b"old!")
        places = (4096 - 8, 4096, 6000, FAR, FAR + 123, FAR + MIB)
        early = os.open(b.path("img.qcow2"), RDONLY)
        try:
            for off in places:
                os.pread(early, 16384, off)
            fd = holder.call("open", a.path("img.qcow2"), RDWR)
            for word in (b"new!", b"next"):
                holder.call("pwrite", fd, word * 1024, 4096)
                holder.call("pwrite", fd, word * MIB, FAR)
                holder.call("fsync", fd)
                eq(os.pread(early, 8, 4092), b"old!" + word, "across the header's border")
                eq(os.pread(early, 16, 4096), word * 4, "close to the header")
                eq(os.pread(early, 4 * MIB, FAR), word * MIB, "far from it")
                eq(os.pread(early, 5, FAR + 122), (word * 3)[2:7], "unaligned")
            holder.call("close", fd)
            ds.wait_free("img.qcow2")
            eq(os.pread(early, 8, FAR), b"nextnext", "after the hand-over")
            client = os.open(os.path.join(mounts[1], "img.qcow2"), RDONLY)
            os.pread(client, 2 * MIB, FAR)  # somebody who goes around the view fills the client's cache
            fd = holder.call("open", a.path("img.qcow2"), RDWR)
            holder.call("pwrite", fd, b"last" * MIB, FAR)
            holder.call("close", fd)
            ds.wait_free("img.qcow2")
            eq(os.pread(client, 8, FAR), b"nextnext", "the client's cache")
            os.close(client)
            with open(b.path("img.qcow2"), "rb") as f, open(b.path("copy"), "wb") as out:
                f.seek(FAR)
                eq(f.read(8), b"lastlast", "a new handle")
                done = os.copy_file_range(f.fileno(), out.fileno(), MIB, FAR, 0)
            ok(done > 0, "copy_file_range copied nothing")
            with open(ds.raw("copy"), "rb") as f:
                eq(f.read(8), b"lastlast", "a copy")
        finally:
            os.close(early)


@suite.case("a reader that was there while the file was no image reads fresh once it is one")
def reader_of_a_plain_file(build):
    with clients(build, *FRESH) as (ds, a, b, _), Proc() as holder:
        with open(ds.raw("disk"), "wb") as f:
            f.write(b"text" * (5 * MIB))
        early = os.open(b.path("disk"), RDONLY)
        try:
            eq(os.pread(early, 4, FAR), b"text")
            make_qcow2(os.path.join(ds.base, "src.qcow2"), "64M")
            with open(os.path.join(ds.base, "src.qcow2"), "rb") as f:
                header = f.read()
            fd = holder.call("open", a.path("disk"), RDWR)
            holder.call("pwrite", fd, b"data" * MIB, FAR)
            holder.call("pwrite", fd, header, 0)
            eq(os.pread(early, 4, FAR), b"data")
            holder.call("pwrite", fd, b"more" * 1024, FAR)
            eq(os.pread(early, 4, FAR), b"more")
            eq(os.pread(early, 4, 0), b"QFI\xfb", "the header")
            holder.call("close", fd)
            ds.wait_free("disk")
        finally:
            os.close(early)


@suite.case("a file that the other client has made longer: its size and its holes are those of now")
def longer(build):
    with clients(build) as (ds, a, b, _), Proc() as holder:
        image(ds, "img.qcow2", b"old!")
        early = os.open(b.path("img.qcow2"), RDONLY)
        try:
            os.pread(early, MIB, 23 * MIB)
            fd = holder.call("open", a.path("img.qcow2"), RDWR)
            holder.call("pwrite", fd, b"tail" * 1024, 28 * MIB)
            eq(os.pread(early, 4, 28 * MIB), b"tail")
            eq(os.lseek(early, 0, os.SEEK_END), 28 * MIB + 4096)
            holder.call("close", fd)
            ds.wait_free("img.qcow2")
        finally:
            os.close(early)


if __name__ == "__main__":
    suite.main()
