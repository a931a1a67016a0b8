#!/usr/bin/env python3
"""test_names: names of images in use: what their own holder may do to them, what others may not, and which names are told."""
import errno
import json
import os

import dgops
from dgqemu import Vm, make_qcow2, qcow2_size
from dgtest import FRESH, Datastore, Host, Proc, Skip, Suite, eq, is_sealed, must, ok, pair, raises, read_at, run, small_fs, suite_tmp, View, wait_for

suite = Suite(__file__, needs="hooks")
RDWR, RDONLY = os.O_RDWR, os.O_RDONLY
SIZE = 64 << 20
EXCHANGE = dgops.RENAME_EXCHANGE


def forgotten(p, name="img.qcow2"):
    """Nobody holds anything, nothing is said to have vanished, and the name is free for another image."""
    p.ds.wait_settled()
    for view in p.views:
        ok("VANISHED" not in view.log() and "STUCK" not in view.log(), "log: " + view.log()[-1000:])
    make_qcow2(p.ds.raw(name), SIZE)
    for view in p.views:
        os.close(os.open(view.path(name), RDWR))
        p.ds.wait_free(name)
    p.ds.fsck_clean(p.a.host)


# ---- by the holder himself ----

@suite.case("the process that holds an image may remove it; nobody else may")
def _(build):
    with pair(build, "wait=0", *FRESH) as p, Proc() as holder, Proc() as other:
        for name in ("img.qcow2", "flat.raw"):
            if name == "flat.raw":
                with open(p.ds.raw(name), "wb") as f:
                    f.truncate(SIZE)
            else:
                make_qcow2(p.ds.raw(name), SIZE)
            path = p.a.path(name)
            fd = holder.call("open", path, RDWR)
            for view in p.views:
                raises(errno.EBUSY, other.call, "unlink", view.path(name))
            raises(errno.EBUSY, holder.call, "unlink", p.b.path(name))  # another host, whatever the process
            holder.call("unlink", path)
            for view in p.views:
                raises(errno.ENOENT, os.stat, view.path(name))
            holder.call("pwrite", fd, b"x" * 4096, 1 << 20)
            eq(holder.call("pread", fd, 4096, 1 << 20), b"x" * 4096)
            holder.call("pwrite", fd, holder.call("pread", fd, 512, 0), 0)
            holder.call("ftruncate", fd, 2 << 20)
            eq(holder.call("fstat", fd)[3:5], (0, 2 << 20))
            holder.call("close", fd)
            p.ds.wait_settled()
        forgotten(p)


@suite.case("writers=host: any process of this host may remove what a process of it holds, no other host")
def _(build):
    with pair(build, "wait=0", "writers=host") as p, Proc() as holder, Proc() as other:
        make_qcow2(p.ds.raw("img.qcow2"), SIZE)
        fd = holder.call("open", p.a.path("img.qcow2"), RDWR)
        raises(errno.EBUSY, other.call, "unlink", p.b.path("img.qcow2"))
        raises(errno.EBUSY, other.call, "truncate", p.b.path("img.qcow2"), 0)
        other.call("truncate", p.a.path("img.qcow2"), 32 << 20)
        other.call("unlink", p.a.path("img.qcow2"))
        holder.call("close", fd)
        forgotten(p)


@suite.case("truncation by path, by the holder: the durable way of an edit; the seal and the true size stay")
def _(build):
    with pair(build, "wait=0") as p, Proc() as holder, Proc() as other:
        make_qcow2(p.ds.raw("img.qcow2"), SIZE)
        true = read_at(p.ds.raw("img.qcow2"), 0, 512)
        path = p.a.path("img.qcow2")
        fd = holder.call("open", path, RDWR)
        long = holder.call("fstat", fd)[4]
        for size in (long + 65536, long):
            for view in p.views:
                raises(errno.EBUSY, other.call, "truncate", view.path("img.qcow2"), size)
            holder.call("truncate", path, size)
            ok(is_sealed(p.ds.raw("img.qcow2")), "sealed")
            eq(os.stat(p.ds.raw("img.qcow2")).st_size, size)
        p.a.kill9()  # what a crash finds is the true header
        holder.kill()
        p.a.start()
        p.ds.wait_free("img.qcow2")
        eq(read_at(p.ds.raw("img.qcow2"), 0, 512), true, "header after a crash")
        must("qemu-img", "check", "-q", p.ds.raw("img.qcow2"))
        with Proc() as again:  # through the sealed header, and away with it
            fd = again.call("open", path, RDWR)
            again.call("truncate", path, 40)
            eq(again.call("pread", fd, 512, 0), true[:40])
            again.call("truncate", path, 0)
            eq(again.call("pread", fd, 512, 0), b"")
            again.call("pwrite", fd, b"plain text", 0)
            again.call("close", fd)
            p.ds.wait_settled()
            eq(read_at(p.ds.raw("img.qcow2"), 0, 512), b"plain text")


@suite.case("renaming over and exchanging what the process itself holds")
def _(build):
    with pair(build, "wait=0") as p, Proc() as holder, Proc() as other:
        for name in ("img.qcow2", "two.qcow2", "new.qcow2", "free.qcow2"):
            make_qcow2(p.ds.raw(name), SIZE)
        one, two, new = (p.a.path(name) for name in ("img.qcow2", "two.qcow2", "new.qcow2"))
        fds = [holder.call("open", path, RDWR) for path in (one, two)]
        for view in p.views:
            raises(errno.EBUSY, other.call, "rename", view.path("new.qcow2"), view.path("img.qcow2"))
            raises(errno.EBUSY, other.call, "rename2", view.path("img.qcow2"), view.path("two.qcow2"), EXCHANGE)
        inode = os.stat(p.ds.raw("img.qcow2")).st_ino
        holder.call("rename2", one, two, EXCHANGE)
        eq(os.stat(p.ds.raw("two.qcow2")).st_ino, inode)
        holder.call("rename2", one, p.a.path("free.qcow2"), EXCHANGE)  # held here, and free
        eq(os.stat(p.ds.raw("two.qcow2")).st_ino, inode)
        holder.call("rename", new, two)  # over the first one
        raises(errno.ENOENT, os.stat, p.ds.raw("new.qcow2"))
        for fd in fds:
            holder.call("close", fd)
        p.ds.wait_settled()
        for name in ("img.qcow2", "two.qcow2", "free.qcow2"):
            must("qemu-img", "check", "-q", p.ds.raw(name))
            eq(qcow2_size(p.ds.raw(name)), SIZE)
            os.unlink(p.ds.raw(name))
        forgotten(p)


@suite.case("a file that has another name stays held and sealed, and is restored at the end")
def _(build):
    with pair(build, "wait=0") as p, Proc() as holder, Proc() as other:
        make_qcow2(p.ds.raw("img.qcow2"), SIZE)
        true = read_at(p.ds.raw("img.qcow2"), 0, 65536)
        os.link(p.ds.raw("img.qcow2"), p.ds.raw("second.qcow2"))
        fd = holder.call("open", p.a.path("img.qcow2"), RDWR)
        holder.call("unlink", p.a.path("img.qcow2"))
        ok(is_sealed(p.ds.raw("second.qcow2")), "sealed under its other name")
        for view in p.views:
            raises(errno.EBUSY, other.call, "open", view.path("second.qcow2"), RDWR)
            raises(errno.EBUSY, other.call, "unlink", view.path("second.qcow2"))
            eq(read_at(view.path("second.qcow2"), 0, 65536), true)
        holder.call("close", fd)
        p.ds.wait_free("second.qcow2")
        eq(read_at(p.ds.raw("second.qcow2"), 0, 65536), true)
        forgotten(p)


@suite.case("what an NFS client makes of a removal, another name: it is held, sealed and restored under that")
def _(build):
    with pair(build, "wait=0", hosts=("a",)) as p, Proc() as holder:
        make_qcow2(p.ds.raw("img.qcow2"), SIZE)
        fd = holder.call("open", p.a.path("img.qcow2"), RDWR)
        os.rename(p.ds.raw("img.qcow2"), p.ds.raw(".nfs0001"))  # silly rename: the link count stays 1
        holder.call("pwrite", fd, b"x" * 512, 1 << 20)
        ok(is_sealed(p.ds.raw(".nfs0001")), "sealed")
        holder.call("close", fd)
        p.ds.wait_free(".nfs0001")
        eq(qcow2_size(p.ds.raw(".nfs0001")), SIZE)
        ok("VANISHED" not in p.a.log(), p.a.log())


@suite.case("the keeper does not say VANISHED of what its holder removed, nor does a crash afterwards leave anything")
def _(build):
    for crash in (False, True):
        with pair(build, "wait=0", hosts=("a",), env={"DISKGUARD_BEAT_MS": "100"}) as p, Proc() as holder:
            make_qcow2(p.ds.raw("img.qcow2"), SIZE)
            fd = holder.call("open", p.a.path("img.qcow2"), RDWR)
            beat = json.loads(must(*build.command(build.ctl, "--json", "hosts", p.a.mnt)))["views"][0]["hosts"][0]["beat"]
            holder.call("unlink", p.a.path("img.qcow2"))
            wait_for(lambda: json.loads(must(*build.command(build.ctl, "--json", "hosts", p.a.mnt)))["views"][0]["hosts"][0]["beat"] > beat + 3, "rounds of the keeper")
            holder.call("pwrite", fd, b"x" * 512, 1 << 20)
            if crash:
                p.a.kill9()
                holder.kill()
                p.a.start()
            else:
                holder.call("close", fd)
            forgotten(p)


@suite.case("a crash at each step of a removal by the holder leaves the image whole, or none of it")
def _(build):
    if not build.hooks:
        raise Skip("needs -Dhooks=true")
    for hook in ("name.remove.check:1", "name.removed:1", "claim.create:1", "claim.rename:1", "claim.dirsync:1", "journal.commit:1"):
        with pair(build, "wait=0", hosts=("a",)) as p, Proc() as holder:
            arm = os.path.join(p.ds.base, "arm")
            p.a.stop()
            p.a.start(DISKGUARD_HOOK_ARM=arm, DISKGUARD_HOOK_KILL=hook)
            make_qcow2(p.ds.raw("img.qcow2"), SIZE)
            true = read_at(p.ds.raw("img.qcow2"), 0, 65536)
            fd = holder.call("open", p.a.path("img.qcow2"), RDWR)
            with open(arm, "w"):
                pass
            for call in (("unlink", p.a.path("img.qcow2")), ("close", fd)):
                try:
                    holder.call(*call)
                except OSError:
                    break
            eq(p.a.wait_end(), 137, "it dies at " + hook)
            holder.kill()
            os.unlink(arm)
            p.a.forget()
            p.a.unmount_dead()
            p.a.start()
            p.ds.wait_settled()
            if os.path.exists(p.ds.raw("img.qcow2")):
                eq(hook, "name.remove.check:1")
                eq(read_at(p.ds.raw("img.qcow2"), 0, 65536), true)
                os.unlink(p.ds.raw("img.qcow2"))
            forgotten(p)


@suite.case("the holder may not remove what an image of another process needs, nor what another process reads")
def _(build):
    with pair(build, "wait=0") as p, Proc() as holder, Proc() as above:
        make_qcow2(p.ds.raw("base.qcow2"), SIZE)
        make_qcow2(p.ds.raw("other.qcow2"), SIZE)
        must("qemu-img", "create", "-q", "-f", "qcow2", "-b", "other.qcow2", "-F", "qcow2", p.ds.raw("top.qcow2"))
        fd = holder.call("open", p.a.path("base.qcow2"), RDWR)
        must("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "base.qcow2", p.ds.raw("top.qcow2"))
        new = read_at(p.ds.raw("top.qcow2"), 0, 4096)
        must("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "other.qcow2", p.ds.raw("top.qcow2"))
        top = above.call("open", p.a.path("top.qcow2"), RDWR)
        above.call("pwrite", top, new, 0)  # needs it from now on: the log says that it is open for write
        for call in (("unlink", p.a.path("base.qcow2")), ("truncate", p.a.path("base.qcow2"), 0), ("rename", p.a.path("other.qcow2"), p.a.path("base.qcow2"))):
            raises(errno.EBUSY, holder.call, *call)
        p.a.wait_log(r"refused unlink of 'base\.qcow2'.*it is needed by 'top\.qcow2'")
        above.call("close", top)
        p.ds.wait_free("top.qcow2")
        holder.call("unlink", p.a.path("base.qcow2"))
        holder.call("close", fd)
        p.ds.wait_settled()


@suite.case("QEMU removes the image whose creation failed, before it closes it")
def _(build):
    with small_fs(64) as base:
        ds = Datastore(build, base)
        view = View(ds, Host(suite_tmp(), "a"), ["wait=0"])  # its journal is not on what is full
        for fmt, options in (("qcow2", "preallocation=falloc"), ("qcow2", "preallocation=falloc,compat=0.10"), ("luks", "preallocation=falloc,key-secret=s")):
            path = view.path("new." + fmt)
            r = run("qemu-img", "create", "-f", fmt, "--object", "secret,id=s,data=geheim", "-o", options, path, "8T", timeout=60)
            ok(r.code != 0, "a creation of 8T with its space: %r" % r)
            ok("Device or resource busy" not in r.out and "EBUSY" not in r.out, r.out)
            ok(not os.path.exists(ds.raw("new." + fmt)), "QEMU removes what it has made: " + r.out)
            ds.wait_settled()
            wait_for(lambda: os.statvfs(ds.path).f_bavail > 1000, "its room is there again")
            must("qemu-img", "create", "-q", "-f", "qcow2", path, "64M")
            ds.wait_settled()
            os.unlink(path)
        log = view.log()
        ok(not any(word in log for word in ("refused", "STUCK", "VANISHED")), log)
        view.stop()
        ds.fsck_clean(view.host)


# ---- the name of now ----

def ctl(build, *args):
    return json.loads(run(*build.command(build.ctl, "--json", *args)).out)


def listed(build, *args):
    """{name, or "was NAME": state} of what list shows."""
    return {i["image"] or "was " + i["was"]: i["state"] for v in ctl(build, "list", *args)["views"] for i in v["images"]}


def claimed_names(ds):
    return sorted(c["image"] for c in ds.claims().values() if c["state"] != "free")


@suite.case("an image that is renamed while it is held is told under its name of now, by list, why, show and its claim; a new file of the old name is that file")
def _(build):
    with pair(build, "wait=0") as p, Proc() as holder:
        make_qcow2(p.ds.raw("one"), SIZE)
        fd = holder.call("open", p.a.path("one"), RDWR)
        os.rename(p.a.path("one"), p.a.path("two"))
        eq(claimed_names(p.ds), ["two"], "the claim")
        make_qcow2(p.ds.raw("one"), 2 * SIZE)
        for view in p.views:
            eq(listed(build, view.mnt), {"two": "sealed"})
            ok(not ctl(build, "why", view.path("one"))["refused"], "why of the new one")
            why = ctl(build, "why", view.path("two"))
            eq((why["image"], why["refused"], why["reason"]), ("two", True, "held"))
        ok(" two " in must(*build.command(build.ctl, "list", p.b.mnt)).replace("\n", " "), "list in words")
        holder.call("pwrite", fd, b"x" * 512, 1 << 20)
        p.a.kill9()
        holder.kill()
        p.a.start()
        p.ds.wait_free("two")
        eq(qcow2_size(p.ds.raw("two")), SIZE)
        eq(qcow2_size(p.ds.raw("one")), 2 * SIZE)


@suite.case("so is one whose directory is renamed, that is exchanged, or renamed past the views")
def _(build):
    with pair(build, "wait=0") as p, Proc() as holder:
        os.makedirs(p.ds.raw("d/e"))
        for name in ("d/e/one", "other", "third"):
            make_qcow2(p.ds.raw(name), SIZE)
        fds = [holder.call("open", p.a.path(name), RDWR) for name in ("d/e/one", "third")]
        os.rename(p.a.path("d"), p.a.path("f"))
        eq(claimed_names(p.ds), ["f/e/one", "third"])
        os.rename(p.a.path("f/e/one"), p.a.path("f/two"))
        eq(claimed_names(p.ds), ["f/two", "third"])
        holder.call("rename2", p.a.path("f/two"), p.a.path("third"), EXCHANGE)
        eq(claimed_names(p.ds), ["f/two", "third"])
        holder.call("rename2", p.a.path("other"), p.a.path("third"), EXCHANGE)
        eq(claimed_names(p.ds), ["f/two", "other"])
        os.rename(p.ds.raw("other"), p.ds.raw("raw"))  # the keeper finds out
        wait_for(lambda: claimed_names(p.ds) == ["f/two", "raw"], "the keeper follows the name")
        for fd in fds:
            holder.call("close", fd)
        p.ds.wait_settled()
        for name in ("f/two", "raw", "third"):
            must("qemu-img", "check", "-q", p.ds.raw(name))


@suite.case("an image that was renamed behind its record is looked for; where it is not found, its former name is called that")
def _(build):
    with pair(build, "wait=0") as p, Proc() as holder:
        for name in ("one", "two"):
            make_qcow2(p.ds.raw(name), SIZE)
        for name in ("one", "two"):
            holder.call("open", p.a.path(name), RDWR)
        p.a.kill9()  # nobody writes its records any more
        os.makedirs(p.ds.raw("deep/er"))
        os.rename(p.ds.raw("one"), p.ds.raw("deep/er/moved"))
        make_qcow2(p.ds.raw("one"), SIZE)
        away = os.path.join(p.ds.base, "away")
        os.rename(p.ds.raw("two"), away)
        make_qcow2(p.ds.raw("two"), SIZE)
        for where in (("--datastore", p.ds.path, "list"), ("list", p.b.mnt)):
            show = json.loads(run(*build.command(build.ctl, "--json", *where)).out)["views"][0]["images"]
            eq(sorted((i["image"], i.get("was")) for i in show if i["image"]), [("deep/er/moved", None)])
            eq([(i["image"], i["was"]) for i in show if not i["image"]], [(None, "two")])
            text = run(*build.command(build.ctl, *where)).out
            ok("deep/er/moved" in text and "was 'two'" in text and not any(line.split()[:1] in (["one"], ["two"]) for line in text.splitlines()), text)
        for name in ("one", "two"):
            why = ctl(build, "why", p.b.path(name))
            eq((why["refused"], why["state"]), (False, "free"), "the new %s: %s" % (name, why))
        why = ctl(build, "why", p.b.path("deep/er/moved"))
        eq((why["image"], why["refused"]), ("deep/er/moved", True))
        os.unlink(p.ds.raw("two"))
        os.rename(away, p.ds.raw("two"))
        holder.kill()
        p.a.start()
        p.ds.wait_settled()
        eq(qcow2_size(p.ds.raw("deep/er/moved")), SIZE)


# ---- what a held image needs does not move away ----

@suite.case("the base of a held image is not renamed away, alone, by exchange or with its directory, from any host; its holder may")
def _(build):
    with pair(build, "wait=0", *FRESH) as p, Proc() as holder, Proc() as other:
        os.makedirs(p.ds.raw("pool/bases"))
        os.mkdir(p.ds.raw("elsewhere"))
        make_qcow2(p.ds.raw("pool/bases/base.qcow2"), SIZE)
        make_qcow2(p.ds.raw("pool/bases/free.qcow2"), SIZE)
        must("qemu-img", "create", "-q", "-f", "qcow2", "-b", "pool/bases/base.qcow2", "-F", "qcow2", p.ds.raw("top.qcow2"))
        fd = holder.call("open", p.a.path("top.qcow2"), RDWR)
        for view in p.views:
            base, free, there = view.path("pool/bases/base.qcow2"), view.path("pool/bases/free.qcow2"), view.path("elsewhere/x")
            since = view.log_size()
            for old, new, flags in ((base, there, 0), (base, there, dgops.RENAME_NOREPLACE), (base, free, 0), (base, free, EXCHANGE), (free, base, EXCHANGE),
                                    (free, base, 0), (view.path("pool/bases"), there, 0), (view.path("pool"), there, 0),
                                    (view.path("pool"), view.path("elsewhere"), EXCHANGE), (view.path("elsewhere"), view.path("pool"), EXCHANGE)):
                raises(errno.EBUSY, other.call, "rename2", old, new, flags)
            view.wait_log(r"refused rename of 'pool/bases/base\.qcow2'.*needed by 'top\.qcow2', which host .* holds since", since)
            ok(os.path.exists(base), "where it was")
            other.call("rename2", free, there, 0)  # what nobody needs moves
            other.call("rename2", there, free, 0)
            other.call("rename2", view.path("elsewhere"), view.path("pool/elsewhere"), 0)
            other.call("rename2", view.path("pool/elsewhere"), view.path("elsewhere"), 0)
        raises(errno.EBUSY, holder.call, "rename", p.b.path("pool"), p.b.path("pool2"))  # another host, whatever the process
        other.call("rename2", p.b.path("top.qcow2"), p.b.path("elsewhere/top.qcow2"), 0)  # a held image itself moves
        other.call("rename2", p.b.path("elsewhere/top.qcow2"), p.b.path("top.qcow2"), 0)
        holder.call("rename", p.a.path("pool"), p.a.path("pool2"))
        holder.call("rename", p.a.path("pool2/bases/base.qcow2"), p.a.path("pool2/bases/base2.qcow2"))
        for old in ("pool2", "pool2/bases", "pool2/bases/base2.qcow2"):
            raises(errno.EBUSY, other.call, "rename", p.b.path(old), p.b.path("elsewhere/y"))
        holder.call("close", fd)
        p.ds.wait_settled()
        wait_for(lambda: not p.ds.inner("marks"), "marks are gone")
        other.call("rename", p.b.path("pool2"), p.b.path("pool"))


@suite.case("a rename of what a held image needs waits for its close, at most wait= seconds")
def _(build):
    with pair(build, "wait=30") as p, Proc() as holder, Proc() as other:
        os.mkdir(p.ds.raw("pool"))
        make_qcow2(p.ds.raw("pool/base.qcow2"), SIZE)
        must("qemu-img", "create", "-q", "-f", "qcow2", "-b", "pool/base.qcow2", "-F", "qcow2", p.ds.raw("top.qcow2"))
        for old in ("pool/base.qcow2", "pool"):
            fd = holder.call("open", p.a.path("top.qcow2"), RDWR)
            other.send("rename", p.b.path(old), p.b.path("new"))
            ok(not other.ready(0.5), "it waits")
            holder.call("close", fd)
            other.recv(30)
            os.rename(p.ds.raw("new"), p.ds.raw(old))
            p.ds.wait_settled()


@suite.case("who reads an image that its holder removed reads the true header on, here, elsewhere and past the views")
def _(build):
    with pair(build, "wait=0") as p, Proc() as holder, Proc() as reader:
        make_qcow2(p.ds.raw("img.qcow2"), SIZE)
        whole = read_at(p.ds.raw("img.qcow2"), 0, 4096)
        fd = holder.call("open", p.a.path("img.qcow2"), RDWR)
        readers = [reader.call("open", path, RDONLY) for path in (p.a.path("img.qcow2"), p.b.path("img.qcow2"), p.ds.raw("img.qcow2"))]
        holder.call("unlink", p.a.path("img.qcow2"))
        for r in readers[:2]:
            eq(reader.call("pread", r, 4096, 0), whole, "before the close")
        holder.call("close", fd)
        p.ds.wait_settled()
        for r in readers:
            eq(reader.call("pread", r, 4096, 0), whole, "after it")


if __name__ == "__main__":
    suite.main()
