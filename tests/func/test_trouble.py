#!/usr/bin/env python3
"""test_trouble: what happens to a held image when the world around it goes wrong: FENCED, STUCK, VANISHED, a full datastore."""
import contextlib
import errno
import glob
import os
import re
import threading
import zlib

from dglayout import shard
from dgqemu import QemuIo, make_qcow2, qcow2_size
from dgtest import (Proc, SEALED_SIZE, Skip, Suite, View, Host, Datastore, eq, is_sealed, must, ok, pair, raises, run, sha, small_fs,
                    suite_tmp, wait_for)

suite = Suite(__file__, needs="hooks")


def claim_path(ds, name):
    found = glob.glob(ds.inner_path("claims", "%016x.*" % os.stat(ds.raw(name)).st_ino))
    return max(found, key=lambda p: int(p.rsplit(".", 1)[1]))


def succeed_claim(ds, name):
    """What a takeover by another host leaves: the next generation, held by somebody else."""
    path = claim_path(ds, name)
    with open(path) as f:
        lines = f.read().splitlines()
    generation = int(path.rsplit(".", 1)[1]) + 1
    changed = []
    for line in lines[:-1]:
        key = line.split("=")[0]
        line = {"generation": "generation=%d" % generation, "host": "host=99999999-9999-4999-8999-999999999999",
                "installation": "installation=99999999-9999-4999-8999-999999999998", "name": "name=successor"}.get(key, line)
        changed.append(line)
    text = "".join(line + "\n" for line in changed)
    text += "sum=%08x\n" % zlib.crc32(text.encode())
    with open(path.rsplit(".", 1)[0] + ".%d" % generation, "w") as f:
        f.write(text)


def open_when_free(holder, path):
    """A descriptor, or None as long as an earlier hold is not over."""
    try:
        return holder.call("open", path, os.O_RDWR)
    except OSError as e:
        eq(e.errno, errno.EBUSY, "open")
        return None


@suite.case("FENCED: a claim that another host took over ends every write with EIO; nothing of ours touches the image any more")
def fenced(build):
    with pair(build, "wait=0", settled=False) as p, Proc() as holder, Proc() as other:
        make_qcow2(p.ds.raw("img.qcow2"))
        fd = holder.call("open", p.a.path("img.qcow2"), os.O_RDWR)
        mark = p.a.log_size()
        succeed_claim(p.ds, "img.qcow2")
        p.a.wait_log("FENCED", mark)
        raises(errno.EIO, holder.call, "pwrite", fd, b"x" * 4096, 1 << 20)
        raises(errno.EIO, holder.call, "pwrite", fd, (1 << 30).to_bytes(8, "big"), 24)
        raises(errno.EBUSY, other.call, "open", p.a.path("img.qcow2"), os.O_RDWR)
        before = sha(p.ds.raw("img.qcow2"))
        # A reader on the fenced host sees what the successor's claim explains.
        eq(qcow2_size(p.a.path("img.qcow2")), 64 << 20, "size seen by a reader")
        holder.call("close", fd)
        wait_for(lambda: "img.qcow2" not in run(*build.command(build.ctl, "list", p.a.mnt, "--json")).out or
                 "successor" in run(*build.command(build.ctl, "list", p.a.mnt)).out, "the fenced hold is over")
        raises(errno.EBUSY, other.call, "open", p.a.path("img.qcow2"), os.O_RDWR)
        eq(sha(p.ds.raw("img.qcow2")), before, "the image after a fenced close")
        p.a.wait_log("held by host successor", mark)


@suite.case("a header update notices the lost claim by itself, before the keeper does")
def fenced_by_update(build):
    with pair(build, "wait=0", settled=False) as p, Proc() as holder:
        make_qcow2(p.ds.raw("img.qcow2"))
        fd = holder.call("open", p.a.path("img.qcow2"), os.O_RDWR)
        succeed_claim(p.ds, "img.qcow2")
        before = sha(p.ds.raw("img.qcow2"))
        raises(errno.EIO, holder.call, "pwrite", fd, (1 << 30).to_bytes(8, "big"), 24)
        eq(sha(p.ds.raw("img.qcow2")), before, "the image after a refused update")
        raises(errno.EIO, holder.call, "pwrite", fd, b"x", 1 << 20)


@suite.case("STUCK: a header that somebody else wrote to is not touched, is shown, stays refused, and is restored once it is explained")
def stuck(build):
    with pair(build, "wait=0") as p, Proc() as holder, Proc() as other:
        raw = p.ds.raw("img.qcow2")
        make_qcow2(raw)
        true = sha(raw)
        fd = holder.call("open", p.a.path("img.qcow2"), os.O_RDWR)
        with open(raw, "r+b") as f:
            f.seek(24)
            f.write(b"ALIENALI")
        before = sha(raw)
        mark = p.a.log_size()
        holder.call("close", fd)
        p.a.wait_log("STUCK", mark)
        eq(sha(raw), before, "the image after a failed restore")
        raises(errno.EBUSY, other.call, "open", p.a.path("img.qcow2"), os.O_RDWR)
        raises(errno.EBUSY, other.call, "open", p.b.path("img.qcow2"), os.O_RDWR)
        ok("stuck" in run(*build.command(build.ctl, "list", p.a.mnt)).out, "diskguardctl list does not show the STUCK image")
        with open(raw, "r+b") as f:
            f.seek(24)
            f.write(SEALED_SIZE.to_bytes(8, "big"))
        p.ds.wait_free("img.qcow2", 30)
        eq(sha(raw), true, "the image after the keeper's retry")


@suite.case("VANISHED: an image that the raw side removes under its holder leaves a free claim and no row")
def vanished(build):
    with pair(build, "wait=0") as p, Proc() as holder:
        raw = p.ds.raw("img.qcow2")
        make_qcow2(raw)
        fd = holder.call("open", p.a.path("img.qcow2"), os.O_RDWR)
        mark = p.a.log_size()
        os.unlink(raw)
        p.a.wait_log("VANISHED", mark)
        holder.call("close", fd)
        p.ds.wait_settled()
        make_qcow2(raw)
        holder.call("open", p.a.path("img.qcow2"), os.O_RDWR)


def answer_stale(path, *files):
    """From now on the storage answers ESTALE for these files (or nothing at all, where `path` is that of hangs); for none: it is healthy, but descriptors
    that have met it stay as they are (hook.h)."""
    with open(path + ".new", "w") as f:
        f.writelines("%d\n" % os.stat(file).st_ino for file in files)
    os.rename(path + ".new", path)


@suite.case("an image that the storage does not find for a while is given up neither while it is held nor at the close")
def lost_for_a_while(build):
    if not build.hooks:
        raise Skip("needs a build with hooks")
    flag = os.path.join(suite_tmp(), "stale")
    with pair(build, "wait=0", hosts=("a",), env={"DISKGUARD_HOOK_STALE": flag, "DISKGUARD_BEAT_MS": "100"}) as p, Proc() as holder:
        raw, view = p.ds.raw("img.qcow2"), p.a.path("img.qcow2")
        make_qcow2(raw)
        claims = p.ds.raw(".diskguard/claims")
        disk = (p.ds.path, claims, os.path.join(claims, shard(os.stat(raw).st_ino)))
        # In each round: what the storage does not find while the image is held, at the close, and what the log then says. Root and claims/ cannot be
        # asked where a server exports the mount point without its disk.
        for held, at_close, says in (((raw,), (), "it is held as before"), ((raw,), (raw, *disk), "STUCK"), ((raw, *disk), (raw, *disk), "STUCK"),
                                     ((), (raw, *disk), "STUCK"), ((raw,), disk, "STUCK")):
            true = sha(raw)
            mark = p.a.log_size()
            fd = holder.call("open", view, os.O_RDWR)
            ok(is_sealed(raw), "the held image is sealed")
            answer_stale(flag, *held)
            if held == (raw,):
                p.a.wait_log("VANISHED", mark)
            answer_stale(flag, *at_close)
            if not at_close:
                p.a.wait_log(says, mark)
            holder.call("close", fd)
            if at_close:
                p.a.wait_log(says, mark)
                ok(is_sealed(raw), "the image cannot be restored yet")
                ok(p.ds.claim_of("img.qcow2") not in (None, "free"), "the claim of a STUCK image is given up")
                answer_stale(flag)
            p.ds.wait_free("img.qcow2")
            wait_for(lambda: "img.qcow2" not in run(*build.command(build.ctl, "list", p.a.mnt)).out, "the hold is over")
            eq(sha(raw), true, "the image after the outage")
            p.ds.wait_settled()


@suite.case("a header that is changed through a descriptor which has met ESTALE does not fence the image")
def stale_edit(build):
    if not build.hooks:
        raise Skip("needs a build with hooks")
    flag = os.path.join(suite_tmp(), "stale")
    with pair(build, "wait=0", hosts=("a",), env={"DISKGUARD_HOOK_STALE": flag, "DISKGUARD_BEAT_MS": "100"}) as p, Proc() as holder:
        raw = p.ds.raw("img.qcow2")
        make_qcow2(raw)
        mark = p.a.log_size()
        fd = holder.call("open", p.a.path("img.qcow2"), os.O_RDWR)
        answer_stale(flag, raw)
        p.a.wait_log("VANISHED", mark)
        answer_stale(flag)
        p.a.wait_log("it is held as before", mark)
        raises(errno.EIO, holder.call, "pwrite", fd, (1 << 30).to_bytes(8, "big"), 24)
        holder.call("pwrite", fd, (1 << 30).to_bytes(8, "big"), 24)
        holder.call("close", fd)
        p.ds.wait_free("img.qcow2")
        eq(qcow2_size(raw), 1 << 30, "the size that the holder wrote")
        ok("FENCED" not in p.a.log()[mark:], "fenced by an ESTALE of the file")


def beat_of(p):
    with open(os.path.join(p.ds.path, ".diskguard", "hosts", p.a.host.uuid)) as f:
        return int(re.search(r"^beat=(\d+)", f.read(), re.M).group(1))


class Syncs:
    """An fsync(2) of each file, all at the same time. Of one file the kernel asks for one after the other."""

    def __init__(self, paths):
        self.fds = [os.open(path, os.O_RDONLY) for path in paths]
        self.threads = [threading.Thread(target=self._sync, args=(fd,), daemon=True) for fd in self.fds]

    @staticmethod
    def _sync(fd):
        with contextlib.suppress(OSError):  # one of them is FENCED
            os.fsync(fd)

    def start(self):
        for thread in self.threads:
            thread.start()
        wait_for(lambda: all(self._asked(thread) for thread in self.threads), "each fsync is asked for")

    @staticmethod
    def _asked(thread):
        """It waits for the answer, or has it."""
        try:
            with open("/proc/self/task/%d/wchan" % thread.native_id, encoding="ascii") as f:
                return f.read() == "request_wait_answer"
        except FileNotFoundError:
            return not thread.is_alive()

    def join(self):
        for thread in self.threads:
            thread.join(30)
            ok(not thread.is_alive(), "an fsync did not return")
        for fd in self.fds:
            os.close(fd)


@suite.case("images whose storage hangs stop neither the beat nor the looks at other images, nor opens, data and control")
def hang(build):
    if not build.hooks:
        raise Skip("needs a build with hooks")
    flag = os.path.join(suite_tmp(), "hang")
    env = {"DISKGUARD_HOOK_HANG": flag, "DISKGUARD_BEAT_MS": "100"}
    with pair(build, "wait=0", hosts=("a",), env=env, settled=False) as p, Proc() as holder, Proc() as other:
        names = ["img%d.qcow2" % i for i in range(40)]  # more than the keeper may have under way (maintain.c)
        for name in (*names, "new.qcow2"):
            make_qcow2(p.ds.raw(name))
        fds = [holder.call("open", p.a.path(name), os.O_RDWR) for name in names]
        syncs = Syncs([p.a.path(name) for name in names[1:]])  # more than there are threads that read requests (loop.h)
        for hung in (1, len(names)):
            mark = p.a.log_size()
            answer_stale(flag, *(p.ds.raw(name) for name in names[:hung]))
            beat = beat_of(p)
            wait_for(lambda: beat_of(p) >= beat + 10, "the beat goes on")
            if hung == 1:
                succeed_claim(p.ds, names[-1])
                p.a.wait_log("%s.*FENCED" % names[-1], mark)
            else:
                syncs.start()
            fd = other.call("open", p.a.path("new.qcow2"), os.O_RDWR)
            other.call("pwrite", fd, b"x" * 4096, 1 << 20)
            holder.call("pwrite", fds[0], b"x" * 4096, 1 << 20)
            other.call("close", fd)
            p.ds.wait_free("new.qcow2")
            ok("img0.qcow2" in run(*build.command(build.ctl, "list", p.a.mnt), timeout=10).out, "diskguardctl does not list the image that hangs")
        answer_stale(flag)
        syncs.join()
        succeed_claim(p.ds, names[0])
        p.a.wait_log("%s.*FENCED" % names[0], mark)
        for fd in fds:
            holder.call("close", fd)
        for name in names[1:-1]:
            p.ds.wait_free(name)


@suite.case("where a thread cannot have a umask of its own, what makes a file fails, and makes none")
def no_umask(build):
    if not build.hooks:
        raise Skip("needs a build with hooks")
    with pair(build, hosts=("a",), env={"DISKGUARD_HOOK_FAIL": "cred.umask:1:%d" % errno.ENOMEM}) as p:
        raises(errno.ENOMEM, os.open, p.a.path("file"), os.O_RDWR | os.O_CREAT, 0o666)
        ok(not os.path.exists(p.ds.raw("file")), "it was made all the same")
        os.close(os.open(p.a.path("file"), os.O_RDWR | os.O_CREAT, 0o666))
        umask = os.umask(0)
        os.umask(umask)
        eq(os.stat(p.ds.raw("file")).st_mode & 0o777, 0o666 & ~umask)


@suite.case("a copy made on the view is sealed once its header is complete, and free when it is closed")
def late_seal(build):
    with pair(build, "wait=0") as p, Proc() as holder:
        make_qcow2(os.path.join(p.ds.base, "source.qcow2"), "64M", "cluster_size=64K")
        with open(os.path.join(p.ds.base, "source.qcow2"), "rb") as f:
            data = f.read()
        fd = holder.call("open", p.a.path("copy.qcow2"), os.O_RDWR | os.O_CREAT, 0o644)
        for off in range(0, len(data), 4096):
            holder.call("pwrite", fd, data[off:off + 4096], off)
        wait_for(lambda: is_sealed(p.ds.raw("copy.qcow2")), "the copy is sealed while its writer has it open")
        eq(qcow2_size(p.a.path("copy.qcow2")), 64 << 20, "size through the view")
        holder.call("close", fd)
        p.ds.wait_free("copy.qcow2")
        eq(sha(p.ds.raw("copy.qcow2")), sha(os.path.join(p.ds.base, "source.qcow2")), "the copy")


def fill(path):
    with open(path, "ab") as f:
        for size in (65536, 512):
            try:
                while True:
                    os.write(f.fileno(), bytes(size))
            except OSError as e:
                eq(e.errno, errno.ENOSPC, "filling the datastore")


def spares(ds):
    """Names of a daemon's spare records: core/spare.h."""
    return [n for n in os.listdir(ds.raw(".diskguard/tmp")) if int(n.rsplit(".", 1)[1]) >= 1 << 62]


@suite.case("on a full datastore an image can be opened, closed, emptied, replaced and removed")
def full(build):
    with small_fs(16) as base:
        ds = Datastore(build, base)
        view = View(ds, Host(suite_tmp(), "a"), ["wait=0"])  # its journal is not on what is full
        for name in ("img", "held", "over", "gone", "cut"):
            make_qcow2(ds.raw(name + ".qcow2"), "16M")
        wait_for(lambda: len(spares(ds)) == 8, "the spare records are there")
        before = sha(ds.raw("img.qcow2"))
        with Proc() as p:
            fd = p.call("open", view.path("held.qcow2"), os.O_RDWR)
            fill(ds.raw("ballast"))
            p.call("close", p.call("open", view.path("img.qcow2"), os.O_RDWR))
            ds.wait_free("img.qcow2")
            eq(sha(ds.raw("img.qcow2")), before, "the image on a full datastore")
            p.call("close", fd)  # of one that was opened while there was room
            ds.wait_free("held.qcow2")
            os.unlink(view.path("gone.qcow2"))
            fill(ds.raw("ballast"))
            os.truncate(view.path("cut.qcow2"), 0)
            fill(ds.raw("ballast"))
            os.rename(view.path("held.qcow2"), view.path("over.qcow2"))
        ds.wait_settled()
        eq(sha(ds.raw("img.qcow2")), before, "the image afterwards")
        ok("No space" not in view.log(), view.log())
        view.stop()
        eq(os.listdir(ds.raw(".diskguard/tmp")), [], "what a daemon leaves")


@suite.case("a host that crashes on a full datastore starts again, or is repaired by fsck")
def full_crash(build):
    for repair in ("start", "fsck"):
        with small_fs(16) as base:
            ds, host = Datastore(build, base), Host(suite_tmp(), "a")
            view = View(ds, host, ["wait=0"])
            make_qcow2(ds.raw("img.qcow2"), "16M")
            before = sha(ds.raw("img.qcow2"))
            wait_for(lambda ds=ds: len(spares(ds)) == 8, "the spare records are there")
            with Proc() as p:
                fd = p.call("open", view.path("img.qcow2"), os.O_RDWR)
                fill(ds.raw("ballast"))
                view.kill9()
                with contextlib.suppress(OSError):
                    p.call("close", fd)
            if repair == "fsck":
                r = ds.fsck(host, "-y")
                eq(r.code, 1, repr(r))
            else:
                view.start()
                view.stop()
            eq(sha(ds.raw("img.qcow2")), before, "the image after " + repair)
            ds.wait_settled()


@suite.case("a full datastore without spare records refuses the open with ENOSPC, names the way out, and loses nothing")
def full_for_long(build):
    with small_fs(16) as base:
        ds = Datastore(build, base)
        view = View(ds, Host(suite_tmp(), "a"), ["wait=0"])
        names = ["img%d.qcow2" % n for n in range(24)]
        for name in names:
            make_qcow2(ds.raw(name), "16M")
        before = sha(ds.raw(names[-1]))
        wait_for(lambda: len(spares(ds)) == 8, "the spare records are there")
        fill(ds.raw("ballast"))
        with Proc() as p:
            fds = []
            with contextlib.suppress(OSError):
                for name in names:
                    fds.append(p.call("open", view.path(name), os.O_RDWR))
            ok(4 <= len(fds) < 23, "%d images are held" % len(fds))
            raises(errno.ENOSPC, p.call, "open", view.path(names[-1]), os.O_RDWR)
            view.wait_log("No space left.*free some space")
            eq(sha(ds.raw(names[-1])), before, "the image that was refused")
            fill(ds.raw("ballast"))
            p.call("close", fds.pop())  # what is held can be given back, one after the other
            ds.wait_free(names[len(fds)])
            fill(ds.raw("ballast"))
            p.call("close", fds.pop())
            ds.wait_free(names[len(fds)])
            os.unlink(ds.raw("ballast"))
            fd = p.call("open", view.path(names[-1]), os.O_RDWR)
            for one in [fd, *fds]:
                p.call("close", one)
        ds.wait_settled()
        eq(sha(ds.raw(names[-1])), before, "the image afterwards")
        view.stop()


@suite.case("a claim that cannot be decoded refuses the image until fsck; readers of a sealed header get EIO, never sealed bytes")
def bad_claim(build):
    with pair(build, "wait=0", settled=False) as p, Proc() as other:
        raw = p.ds.raw("img.qcow2")
        make_qcow2(raw)
        with QemuIo(p.a.path("img.qcow2")) as q:
            path = claim_path(p.ds, "img.qcow2")
            with open(path, "rb") as f:
                record = f.read()
            with open(path, "wb") as f:
                f.write(record[: len(record) // 2])
            raises(errno.EUCLEAN, other.call, "open", p.b.path("img.qcow2"), os.O_RDWR)
            p.b.wait_log("cannot be read")
            raises(errno.EIO, open(p.b.path("img.qcow2"), "rb").read, 512)
            with open(path, "wb") as f:
                f.write(record)
            eq(qcow2_size(p.b.path("img.qcow2")), 64 << 20, "size through B with a whole claim")
            q.close()
        p.ds.wait_free("img.qcow2")


@suite.case("an INTERRUPT without a signal behind it (QEMU's io_uring) does not cut the wait short")
def spurious_interrupt(build):
    with pair(build, "wait=2") as p:
        make_qcow2(p.ds.raw("img.qcow2"))
        with QemuIo(p.a.path("img.qcow2")) as q:
            for view in (p.a, p.b):
                out = run("qemu-io", "-c", "write 0 4k", view.path("img.qcow2")).out
                ok("Device or resource busy" in out, "refused otherwise than by EBUSY: " + out)
            q.close()
        p.ds.wait_free("img.qcow2")


@suite.case("what is held stays held while it does not look like an image: truncated, being created, a raw image under another name")
def held_but_plain(build):
    with pair(build, "wait=0") as p, Proc() as holder, Proc() as other:
        make_qcow2(p.ds.raw("img.qcow2"))
        with open(p.ds.raw("vm.img"), "wb") as f:
            f.truncate(1 << 20)
        for name, flags in (("img.qcow2", os.O_RDWR | os.O_TRUNC), ("vm.img", os.O_RDWR)):
            fd = holder.call("open", p.a.path(name), flags)
            if name == "vm.img":
                os.rename(p.a.path("vm.img"), p.a.path("vm.disk"))
                os.link(p.a.path("vm.disk"), p.a.path("vm.txt"))
                name = "vm.disk"
            open(p.b.path("junk"), "w").close()
            for path in (p.b.path(name), p.a.path(name)):
                raises(errno.EBUSY, other.call, "open", path, os.O_RDWR)
                raises(errno.EBUSY, other.call, "open", path, os.O_WRONLY | os.O_TRUNC)
                raises(errno.EBUSY, os.truncate, path, 0)
                raises(errno.EBUSY, os.unlink, path)
                raises(errno.EBUSY, os.rename, os.path.join(os.path.dirname(path), "junk"), path)
            if name == "vm.disk":
                raises(errno.EBUSY, other.call, "open", p.b.path("vm.txt"), os.O_RDWR)
            holder.call("close", fd)
            p.ds.wait_settled()


@suite.case("without a fence a plain handle of another host is cut off once the file has become an image")
def plain_handle_barred(build):
    with pair(build, "wait=0", "fence=none") as p, Proc() as a, Proc() as b:
        open(p.ds.raw("new"), "w").close()
        make_qcow2(os.path.join(p.ds.base, "source"))
        with open(os.path.join(p.ds.base, "source"), "rb") as f:
            data = f.read()
        fd_b = b.call("open", p.b.path("new"), os.O_RDWR)
        fd_a = a.call("open", p.a.path("new"), os.O_RDWR)
        mark = p.b.log_size()
        a.call("pwrite", fd_a, data, 0)
        ok(is_sealed(p.ds.raw("new")), "the new image is sealed")
        raises(errno.EBUSY, b.call, "ftruncate", fd_b, 0)
        raises(errno.EBUSY, b.call, "fallocate", fd_b, 3, 0, 4096)
        p.b.wait_log("has become an image since", mark)
        raises(errno.EBUSY, b.call, "pwrite", fd_b, b"x" * 4096, 1 << 16)
        raises(errno.EBUSY, b.call, "pwrite", fd_b, b"x", 0)
        a.call("close", fd_a)
        p.ds.wait_free("new")
        eq(sha(p.ds.raw("new")), sha(os.path.join(p.ds.base, "source")), "the new image")
        b.call("close", fd_b)


@suite.case("a claim that has disappeared: the journal row, the last copy of the header, is kept, and fsck -y restores from it")
def claim_missing(build):
    for compat in ("0.10", "1.1"):
        with pair(build, "wait=0", hosts=("a",), settled=False) as p, Proc() as holder:
            make_qcow2(p.ds.raw("img.qcow2"), "64M", "compat=" + compat)
            true = sha(p.ds.raw("img.qcow2"))
            fd = holder.call("open", p.a.path("img.qcow2"), os.O_RDWR)
            os.unlink(claim_path(p.ds, "img.qcow2"))
            mark = p.a.log_size()
            holder.call("close", fd)
            p.a.wait_log("its claim is missing", mark)
            p.a.stop()
            ok(is_sealed(p.ds.raw("img.qcow2")), "the image is still sealed")
            eq(p.ds.fsck(p.a.host, "-y").code, 1, "exit code of fsck -y")
            eq(sha(p.ds.raw("img.qcow2")), true, "the image after fsck -y")
            p.ds.fsck_clean(p.a.host)


@suite.case("a claim that has disappeared over the free mark of an older one: the row is kept, by the keeper's finding and by the close alone")
def claim_missing_over_mark(build):
    for noticed in (True, False):
        env = {"DISKGUARD_BEAT_MS": "100" if noticed else "600000"} if build.hooks else None
        with pair(build, "wait=0", hosts=("a",), env=env, settled=False) as p, Proc() as holder:
            make_qcow2(p.ds.raw("img.qcow2"))
            true = sha(p.ds.raw("img.qcow2"))
            holder.call("close", holder.call("open", p.a.path("img.qcow2"), os.O_RDWR))
            p.ds.wait_free("img.qcow2")
            fd = wait_for(lambda: open_when_free(holder, p.a.path("img.qcow2")), "the release is over")
            os.unlink(claim_path(p.ds, "img.qcow2"))
            eq(p.ds.claim_of("img.qcow2"), "free", "the older mark")
            mark = p.a.log_size()
            if noticed:
                p.a.wait_log("FENCED", mark)
                p.a.wait_log("nobody has taken it over: the claim of generation 2 was removed", mark)
            holder.call("close", fd)
            p.a.wait_log("its claim is missing", mark)
            p.a.stop()
            ok(is_sealed(p.ds.raw("img.qcow2")), "the image is still sealed")
            eq(p.ds.fsck(p.a.host, "-y").code, 1, "exit code of fsck -y")
            eq(sha(p.ds.raw("img.qcow2")), true, "the image after fsck -y")
            p.ds.fsck_clean(p.a.host)


@suite.case("a claim that comes back after the hold was fenced: the next open restores the header and holds the image")
def claim_back(build):
    with pair(build, "wait=5", hosts=("a",), env={"DISKGUARD_BEAT_MS": "100"} if build.hooks else None) as p, Proc() as holder:
        make_qcow2(p.ds.raw("img.qcow2"))
        true = sha(p.ds.raw("img.qcow2"))
        fd = holder.call("open", p.a.path("img.qcow2"), os.O_RDWR)
        claim, mark = claim_path(p.ds, "img.qcow2"), p.a.log_size()
        os.rename(claim, claim + ".away")
        p.a.wait_log("was removed on the datastore", mark)
        os.rename(claim + ".away", claim)
        holder.call("close", fd)
        p.a.wait_log("its claim is there again", mark)
        fd = holder.call("open", p.a.path("img.qcow2"), os.O_RDWR)
        holder.call("close", fd)
        p.ds.wait_free("img.qcow2")
        eq(sha(p.ds.raw("img.qcow2")), true, "the image afterwards")


@suite.case("an allocation that the file system refuses changes nothing, neither for the holder nor after the close")
def refused_fallocate(build):
    with pair(build, "wait=0", hosts=("a",)) as p, Proc() as holder:
        make_qcow2(p.ds.raw("img.qcow2"))
        true = sha(p.ds.raw("img.qcow2"))
        fd = holder.call("open", p.a.path("img.qcow2"), os.O_RDWR)
        raises((errno.EFBIG, errno.ENOSPC, errno.EOPNOTSUPP), holder.call, "fallocate", fd, 0x10, 0, 1 << 60)
        eq(qcow2_size(p.a.path("img.qcow2")), 64 << 20, "size for the holder")
        holder.call("close", fd)
        p.ds.wait_free("img.qcow2")
        eq(sha(p.ds.raw("img.qcow2")), true, "the image afterwards")


@suite.case("a second name does not let a second writer in: hard links, names of the raw side, a plain file renamed to an image's name")
def names(build):
    with pair(build, "wait=0") as p, Proc() as a, Proc() as b:
        with open(p.ds.raw("disk.part"), "wb") as f:
            f.truncate(1 << 20)
        os.stat(p.b.path("disk.part"))
        os.link(p.ds.raw("disk.part"), p.ds.raw("disk.img"))
        os.unlink(p.ds.raw("disk.part"))
        fd = b.call("open", p.b.path("disk.img"), os.O_RDWR)
        raises(errno.EBUSY, a.call, "open", p.a.path("disk.img"), os.O_RDWR)
        b.call("close", fd)
        p.ds.wait_settled()
        fd = a.call("open", p.a.path("d.tmp"), os.O_RDWR | os.O_CREAT, 0o644)
        a.call("pwrite", fd, b"A" * 8192, 0)
        os.rename(p.a.path("d.tmp"), p.a.path("d.img"))
        wait_for(lambda: p.ds.claim_of("d.img") == "claimed", "the writer of the renamed file holds it")
        raises(errno.EBUSY, b.call, "open", p.b.path("d.img"), os.O_RDWR)
        a.call("pwrite", fd, b"B" * 8192, 1 << 16)
        a.call("close", fd)
        p.ds.wait_settled()


@suite.case("a broken header can be truncated and made anew; an ordinary rm is not called VANISHED")
def broken(build):
    with pair(build, "wait=5", "damaged=refuse", hosts=("a",)) as p:
        make_qcow2(p.ds.raw("img.qcow2"))
        with open(p.ds.raw("img.qcow2"), "r+b") as f:
            f.seek(20)
            f.write((77).to_bytes(4, "big"))
        raises(errno.EUCLEAN, os.open, p.a.path("img.qcow2"), os.O_RDWR)
        os.close(os.open(p.a.path("img.qcow2"), os.O_RDWR | os.O_TRUNC))
        p.ds.wait_settled()
        mark = p.a.log_size()
        make_qcow2(p.a.path("img.qcow2"))
        p.ds.wait_free("img.qcow2")
        os.unlink(p.a.path("img.qcow2"))
        p.ds.wait_settled()
        ok("VANISHED" not in p.a.log()[mark:], "an ordinary rm is reported as VANISHED")


@suite.case("a datastore inside another one, and a journal inside the datastore, are refused")
def nested(build):
    with pair(build, hosts=("a",)) as p:
        os.mkdir(p.ds.raw("sub"))
        r = run(*build.command(build.ctl, "init", p.ds.raw("sub")))
        ok(r.code != 0 and "inside another datastore" in r.out, repr(r))
        ok(not os.path.exists(p.ds.raw("sub/.diskguard")), "something was made in the nested directory")
        other = View(p.ds, Host(p.ds.raw(), "x"), start=False)
        r = run(*build.command(build.diskguard, p.ds.path, other.mnt, "-f", "-o", ",".join(other.options)))
        ok(r.code != 0 and "state directory" in r.out, repr(r))


if __name__ == "__main__":
    suite.main()
