#!/usr/bin/env python3
"""test_old_reader: a handle that was there before another host made an image of its file: it reads true bytes or EIO, never sealed ones, and what that costs.

Hooks count the looks at claim and header (DISKGUARD_HOOK_LOG, "image.look"), and kill a holder.
"""
import contextlib
import errno
import mmap
import os
import shutil
import threading

from dgqemu import make_qcow2
from dgtest import FRESH, Datastore, Host, Skip, Suite, View, eq, must, ok, pair, raises, read_at, suite_tmp, wait_for
from kinds import MIB, named
from test_stale import clients

suite = Suite(__file__, needs="hooks")
RDONLY, RDWR = os.O_RDONLY, os.O_RDWR
# What is sealed beyond the first 4 KiB of each; LUKS1 and qcow2: nothing is.
KINDS = {"vhdx": True, "vhdx-log-4M": True, "vpc": True, "vpc-fixed": True, "vmdk-stream-footer": True, "vmdk": False, "luks2": True, "qcow2-v3": False}
REACH = 4096


def contents(name):
    """The bytes of an image of that kind."""
    folder = suite_tmp()
    image = named(name).make(folder)
    with open(image, "rb") as f:
        data = f.read()
    shutil.rmtree(folder)
    return data


def direct(fd, length, off):
    page = mmap.mmap(-1, length)
    return page[:os.preadv(fd, [page], off)]


def piece(handle, off, length):
    fd, how = handle
    return how(fd, length, off)


def read_all(handle, size, step):
    """In pieces, from the end to the start, so that no earlier piece tells the daemon what the file is."""
    return b"".join(reversed([piece(handle, off, step) for off in reversed(range(0, size, step))]))


def same(got, wanted, what):
    if got != wanted:
        wrong = [off for off in range(0, max(len(got), len(wanted)), 512) if got[off:off + 512] != wanted[off:off + 512]]
        ok(False, "%s: %d and %d bytes, other ones in the sectors at %s" % (what, len(got), len(wanted), wrong[:20]))


def write_image(view, name, data):
    """A program of the other host writes an image over the file, and closes it."""
    with open(view.path(name), "r+b", buffering=0) as f:
        f.truncate(0)
        for off in range(0, len(data), MIB):
            os.pwrite(f.fileno(), data[off:off + MIB], off)


def readers(view, name):
    """Handles of a file that is no image yet, the read-ahead of the kernel above it and not."""
    return {"buffered": (os.open(view.path(name), RDONLY), os.pread), "direct": (os.open(view.path(name), RDONLY | os.O_DIRECT), direct)}


def close_all(handles):
    for fd, _ in handles.values():
        os.close(fd)


@contextlib.contextmanager
def counted(build):
    """Two views, each with a log of its looks, which count while the file p.arm is there."""
    base = suite_tmp()
    arm = os.path.join(base, "arm")
    with pair(build, *FRESH, hosts=("a",), base=base, env={"DISKGUARD_HOOK_ARM": arm, "DISKGUARD_HOOK_LOG": os.path.join(base, "looks-a")}) as p:
        p.arm = arm
        p.b = View(p.ds, Host(base, "b"), FRESH, env={"DISKGUARD_HOOK_ARM": arm, "DISKGUARD_HOOK_LOG": os.path.join(base, "looks-b")})
        p.views.append(p.b)
        open(arm, "wb").close()
        yield p


def looks(view, hook="image.look"):
    path = os.path.join(view.ds.base, "looks-" + view.host.name)
    if not os.path.exists(path):
        return 0
    with open(path, encoding="ascii") as f:
        return sum(line.split()[-1] == hook for line in f)


def looks_of(view, function):
    before = looks(view)
    function()
    return looks(view) - before


@suite.case("handles of an empty file, and of one with text in it, while the other host makes an image of it, holds it, and lets it go", limit=240)
def made_by_another(build):
    with pair(build, *FRESH) as p:
        for kind, far in KINDS.items():
            data = contents(kind)
            for start in (b"", b"text" * (5 * MIB // 4)):
                name = "%s-%d" % (kind, len(start))
                with open(p.ds.raw(name), "wb") as f:
                    f.write(start)
                handles = readers(p.b, name)
                for handle in handles.values():
                    same(read_all(handle, len(start), 65536), start, name + ": before")
                write_image(p.a, name, data)
                held = os.open(p.a.path(name), RDWR)
                same(os.pread(held, len(data), 0), data, name + ": what the holder sees")
                sealed = read_at(p.ds.raw(name), 0, len(data))
                eq((sealed != data, sealed[REACH:] != data[REACH:]), (True, far), name + ": is it sealed, and where")
                for step in (4096, 512 * 1024):
                    for what, handle in handles.items():
                        same(read_all(handle, len(data), step), data, "%s, %s, %d bytes at once: while it is held" % (name, what, step))
                os.close(held)
                p.ds.wait_free(name)
                for what, handle in handles.items():
                    same(read_all(handle, len(data), 65536), data, "%s, %s: afterwards" % (name, what))
                close_all(handles)


@suite.case("handles of an image of one kind while the other host makes one of another kind of it", limit=240)
def made_another_kind(build):
    images = {kind: contents(kind) for kind in ("vhdx", "vpc", "vpc-fixed", "luks2", "vmdk-stream-footer")}
    with pair(build, *FRESH) as p:
        for old, new in (("vpc", "vhdx"), ("vhdx", "vpc"), ("vpc", "luks2"), ("luks2", "vpc-fixed"), ("vpc-fixed", "vmdk-stream-footer"), ("vhdx", "luks2")):
            name = old + "-" + new
            with open(p.ds.raw(name), "wb") as f:
                f.write(images[old])
            handles = readers(p.b, name)
            for handle in handles.values():
                same(read_all(handle, len(images[old]), 65536), images[old], name + ": before")
            write_image(p.a, name, images[new])
            held = os.open(p.a.path(name), RDWR)
            for what, handle in handles.items():
                same(read_all(handle, len(images[new]), 4096), images[new], "%s, %s" % (name, what))
            os.close(held)
            p.ds.wait_free(name)
            close_all(handles)


@suite.case("qemu-img creates and fills an image in the other view, again and again, below a handle that never goes away")
def by_qemu(build):
    with pair(build, *FRESH) as p:
        open(p.ds.raw("disk"), "wb").close()
        handles = readers(p.b, "disk")
        for fmt, options in (("vhdx", ()), ("vpc", ()), ("vpc", ("-o", "subformat=fixed,force_size=on")), ("vhdx", ("-o", "block_size=1M")), ("vmdk", ())):
            must("qemu-img", "create", "-q", "-f", fmt, *options, p.a.path("disk"), "8M")
            must("qemu-io", "-f", fmt, "-c", "write -P 3 1M 2M", p.a.path("disk"))
            p.ds.wait_free("disk")
            size = os.path.getsize(p.ds.raw("disk"))
            held = os.open(p.a.path("disk"), RDWR)
            for what, handle in handles.items():
                same(read_all(handle, size, 4096), os.pread(held, size, 0), "%s %s, %s" % (fmt, options, what))
            os.close(held)
            p.ds.wait_free("disk")
        close_all(handles)


@suite.case("the same on storage whose clients keep stale data, attributes as well")
def stale(build):
    with clients(build, *FRESH) as (ds, a, b, _):
        for kind in ("vhdx", "vpc-fixed"):
            data = contents(kind)
            with open(ds.raw(kind), "wb") as f:
                f.write(b"text" * MIB)
            handles = readers(b, kind)
            for handle in handles.values():
                same(read_all(handle, 4 * MIB, 65536), b"text" * MIB, kind + ": before")
            write_image(a, kind, data)
            held = os.open(a.path(kind), RDWR)
            ok(read_at(ds.raw(kind), REACH, len(data)) != data[REACH:], kind + ": is it sealed")
            same(read_all(handles["direct"], len(data), 65536), data, kind)
            os.close(held)
            ds.wait_free(kind)
            close_all(handles)


@suite.case("a copy that the storage makes from such a handle has the true bytes")
def copied(build):
    with pair(build, *FRESH) as p:
        for kind in ("vhdx", "vpc-fixed", "luks2", "vmdk-stream-footer"):
            data = contents(kind)
            with open(p.ds.raw(kind), "wb") as f:
                f.write(b"text" * MIB)
            source = os.open(p.b.path(kind), RDONLY)
            target = os.open(p.b.path(kind + ".copy"), RDWR | os.O_CREAT, 0o644)
            write_image(p.a, kind, data)
            held = os.open(p.a.path(kind), RDWR)
            eq(os.fstat(source).st_size, len(data), kind + ": its size")  # the kernel bounds a copy by the size that it knows
            at = REACH  # not from the start on, so that the copy is no image
            while at < len(data):
                n = os.copy_file_range(source, target, len(data) - at, at, at)
                ok(n > 0, "%s: copied %d bytes at %d" % (kind, n, at))
                at += n
            same(os.pread(target, len(data), 0), bytes(REACH) + data[REACH:], kind)
            for fd in (source, target, held):
                os.close(fd)
            p.ds.wait_free(kind)


@suite.case("the holder dies while the file grows: sealed bytes in the middle of it, which no header tells of")
def dies_while_growing(build):
    base = suite_tmp()
    arm = os.path.join(base, "arm")
    ds = Datastore(build, base)
    a = View(ds, Host(base, "a"), FRESH, env={"DISKGUARD_HOOK_KILL": "io.header.write:1", "DISKGUARD_HOOK_ARM": arm})
    b = View(ds, Host(base, "b"), FRESH)
    data = contents("vpc-fixed")
    end = len(data) - 512
    with open(ds.raw("f.vhd"), "wb") as f:
        f.truncate(MIB)
    handles = readers(b, "f.vhd")
    write_image(a, "f.vhd", data)
    ds.wait_free("f.vhd")
    held = os.open(a.path("f.vhd"), RDWR)
    open(arm, "wb").close()
    try:
        os.ftruncate(held, 3 * len(data))
    except OSError:
        pass
    wait_for(lambda: a.p.poll() is not None, "the holder died")
    os.unlink(arm)
    eq(os.path.getsize(ds.raw("f.vhd")), 3 * len(data), "the size in the datastore")
    ok(read_at(ds.raw("f.vhd"), end, 512) != data[end:], "the old footer is still sealed")
    at = end // 4096 * 4096
    wanted = read_at(ds.raw("f.vhd"), at, end - at) + data[end:]
    for what in ("direct", "buffered"):
        same(piece(handles[what], at, 8192), wanted.ljust(8192, b"\0"), what + " handle")
    handles["new"] = (os.open(b.path("f.vhd"), RDONLY), os.pread)  # last: what its open finds out, the others know, too
    same(piece(handles["new"], at, 8192), wanted.ljust(8192, b"\0"), "new handle")
    close_all(handles)
    with contextlib.suppress(OSError):
        os.close(held)
    a.forget()
    a.unmount_dead()
    b.stop()


@suite.case("sealed bytes that come behind the views, without a claim: EIO, wherever they are")
def behind(build):
    with pair(build, *FRESH, settled=False) as p:
        for kind in ("vhdx", "vpc-fixed", "luks2"):
            data = contents(kind)
            with open(p.ds.raw(kind + ".src"), "wb") as f:
                f.write(data)
            with open(p.ds.raw(kind), "wb") as f:
                f.write(b"text" * MIB)
            handles = readers(p.b, kind)
            for handle in handles.values():
                eq(piece(handle, 0, 4096)[:4], b"text", kind)
            held = os.open(p.a.path(kind + ".src"), RDWR)
            sealed = read_at(p.ds.raw(kind + ".src"), 0, len(data))
            os.close(held)
            p.ds.wait_free(kind + ".src")
            with open(p.ds.raw(kind), "r+b") as f:
                f.write(sealed)
                f.truncate(len(sealed))
            places = [off for off in range(0, len(data), 4096) if sealed[off:off + 4096] != data[off:off + 4096]]
            ok(places, kind + ": where it is sealed")
            for what, handle in handles.items():
                for off in reversed(places):
                    try:
                        got = piece(handle, off, 4096)
                        ok(False, "%s, %s: %d bytes at %d, and %s" % (kind, what, len(got), off, "sealed" if got == sealed[off:off + 4096] else "others"))
                    except OSError as e:
                        eq(e.errno, errno.EIO, kind)
            close_all(handles)


@suite.case("the claim of a dead host's file that is gone says nothing of one that has its inode number now")
def reused_number(build):
    with pair(build, *FRESH, hosts=("a",), settled=False) as p:
        make_qcow2(p.ds.raw("old"), "64M")
        held = os.open(p.a.path("old"), RDWR)
        ino = os.stat(p.ds.raw("old")).st_ino
        p.a.kill9()
        with contextlib.suppress(OSError):
            os.close(held)
        os.unlink(p.ds.raw("old"))
        for k in range(4096):  # other programs make files on this file system, too
            with open(p.ds.raw("new-%d" % k), "wb") as f:
                if os.fstat(f.fileno()).st_ino == ino:
                    f.write(b"text" * MIB)
                    break
        else:
            raise Skip("this file system does not give the number away again")
        eq(p.ds.claims()[ino]["state"] != "free", True, "is its claim held")
        b = View(p.ds, Host(p.ds.base, "b"), FRESH)
        p.views = [b]
        handles = readers(b, os.path.basename(f.name))
        same(read_all(handles["direct"], 4 * MIB, 65536), b"text" * MIB, "at once")
        with open(f.name, "r+b") as g:
            g.write(b"more")
        for handle in handles.values():
            same(read_all(handle, 4 * MIB, 65536), b"more" + b"text" * (MIB - 1), "after it has changed")
        close_all(handles)


@suite.case("what is far from every seal can be read, also of an image whose seal nobody explains")
def beside_an_orphan(build):
    with pair(build, *FRESH, hosts=("a",), settled=False) as p:
        data = bytearray(contents("vhdx"))
        at = len(data)
        data += b"data" * MIB
        with open(p.ds.raw("x"), "wb") as f:
            f.write(data)
        held = os.open(p.a.path("x"), RDWR)
        p.a.kill9()
        with contextlib.suppress(OSError):
            os.close(held)
        for name in p.ds.inner("claims"):
            os.unlink(p.ds.inner_path("claims", name))
        b = View(p.ds, Host(p.ds.base, "b"), FRESH)
        p.views = [b]
        fd = os.open(b.path("x"), RDONLY)
        for k in range(3):
            os.utime(p.ds.raw("x"))
            eq(os.pread(fd, 65536, at), data[at:at + 65536], "read %d" % k)
            raises(errno.EIO, os.pread, fd, 65536, 0)
        os.close(fd)


@suite.case("reads all the time, while the other host makes one image after another of the file", limit=240)
def all_the_time(build):
    images = {kind: contents(kind) for kind in ("vhdx", "vpc-fixed", "luks2", "vpc", "vmdk-stream-footer")}
    with pair(build, *FRESH) as p:
        marks = set()  # sectors that a seal has made
        for kind, data in images.items():
            with open(p.ds.raw(kind), "wb") as f:
                f.write(data)
            held = os.open(p.a.path(kind), RDWR)
            sealed = read_at(p.ds.raw(kind), 0, len(data))
            marks |= {sealed[off:off + 512] for off in range(0, len(data), 512) if sealed[off:off + 512] != data[off:off + 512]}
            os.close(held)
            p.ds.wait_free(kind)
        with open(p.ds.raw("disk"), "wb") as f:
            f.write(b"text" * MIB)
        handles = readers(p.b, "disk")
        places = sorted({off for data in images.values() for at in (0, 65536, 131072, 196608, 262144, len(data) - 8192) for off in [at // 4096 * 4096]})
        done, found, reads = threading.Event(), [], [0]

        def look(what):
            while not done.is_set() and not found:
                for off in places:
                    try:
                        got = piece(handles[what], off, 8192)
                    except OSError as e:
                        ok(e.errno == errno.EIO, "%s: %s" % (what, e))
                        continue
                    reads[0] += 1
                    found.extend((what, off + k) for k in range(0, len(got), 512) if got[k:k + 512] in marks)
        threads = [threading.Thread(target=look, args=(what,)) for what in handles]
        for t in threads:
            t.start()
        try:
            for _ in range(8):
                for data in images.values():
                    write_image(p.a, "disk", data)
                    os.close(os.open(p.a.path("disk"), RDWR))
                    p.ds.wait_free("disk")
        finally:
            done.set()
            for t in threads:
                t.join()
        ok(not found, "sealed bytes through the other view: %s" % found[:10])
        ok(reads[0] > 1000, "only %d reads" % reads[0])
        close_all(handles)


@suite.case("what it costs: reads of a live image look at nothing but attributes, those of its holder not even at them")
def cost(build):
    with counted(build) as p:
        make_qcow2(p.ds.raw("img.qcow2"), "64M")
        with open(p.ds.raw("img.qcow2"), "r+b") as f:
            f.truncate(32 * MIB)
        old = os.open(p.b.path("img.qcow2"), RDONLY)
        held = os.open(p.a.path("img.qcow2"), RDWR)
        beside = os.open(p.a.path("img.qcow2"), RDONLY)

        def live(fd, times=1):
            for k in range(times):
                os.pwrite(held, b"%04d" % k, 10 * MIB)  # so that the file's ctime is never the same
                eq(os.pread(fd, 4, 10 * MIB), b"%04d" % k, "what the holder has written")
                os.pread(fd, MIB, (12 + k % 16) * MIB)
        wait_for(lambda: looks_of(p.b, lambda: live(old)) == 0, "a read that looks at nothing")
        eq(looks_of(p.b, lambda: live(old, 200)), 0, "looks of 400 reads of another host")
        eq(looks_of(p.a, lambda: live(beside, 20)), 0, "looks of another handle on the holder's host")
        eq(looks_of(p.a, lambda: [os.pread(held, 65536, off) for off in range(0, 32 * MIB, 65536)]), 0, "looks of the holder")
        for fd in (held, beside):
            os.close(fd)
        p.ds.wait_free("img.qcow2")

        def whole():
            for off in range(0, 32 * MIB, MIB):
                os.pread(old, MIB, off)
        wait_for(lambda: looks_of(p.b, whole) == 0, "the image at rest is read without a look")
        eq(looks_of(p.b, whole), 0, "looks of reads of an image at rest")
        os.close(old)


@suite.case("opens of plain files for reading list no claims while none has changed; the next open after one was made sees it")
def opens(build):
    names = ["plain%d" % k for k in range(30)]
    data = contents("qcow2-v3")
    with counted(build) as p:
        for name in names:
            with open(p.ds.raw(name), "wb") as f:
                f.write(name.encode())

        def listings():
            before = looks(p.b, "image.listing")
            for name in names:
                with open(p.b.path(name), "rb") as f:
                    eq(f.read(), name.encode(), name)
            return looks(p.b, "image.listing") - before
        # Nothing is listed either as long as the directories may have changed just now: only what comes after listings counts.
        wait_for(lambda: listings() > 0, "claims are listed")
        wait_for(lambda: all(listings() == 0 for _ in range(5)), "claims are known")
        eq(listings() + listings(), 0, "listings of 60 opens and reads")
        for name in names[:6]:
            held = os.open(p.a.path(name), RDWR)
            os.ftruncate(held, 0)
            os.pwrite(held, data, 0)
            with open(p.b.path(name), "rb") as f:
                same(f.read(), data, "an image since just now")
            os.close(held)
            with open(p.b.path(names[9]), "rb") as f:
                eq(f.read(), names[9].encode(), "another file meanwhile")


if __name__ == "__main__":
    suite.main()
