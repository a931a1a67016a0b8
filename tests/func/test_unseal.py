#!/usr/bin/env python3
"""test_unseal: a copy that was made past the view while the image was held: `diskguardctl unseal` and `fsck.diskguard COPY` give it its true header back, from
the file alone or with --size, and never touch what a host holds."""
import json
import os
import re
import shutil

import kinds
from dgqemu import make_qcow2
from dgtest import Fail, Proc, Suite, eq, is_sealed, must, ok, pair, run, sha, suite_tmp

suite = Suite(__file__)
RDWR = os.O_RDWR
HUGE = 64 << 20


def unseal(build, path, *options):
    return run(*build.command(build.ctl, "unseal", path, *options), env=build.env())


def fsck(build, path, *options):
    return run(*build.command(build.fsck, *options, path), env=build.env())


def copies(p, kind, folder):
    """Holds the image through the view, copies its files on the datastore meanwhile: {copy: sha of the file as it is afterwards}."""
    with Proc() as holder:
        fds = [holder.call("open", p.a.path(os.path.join(folder, n)), RDWR) for n in sorted(os.listdir(p.ds.raw(folder)))]
        target = suite_tmp()
        found = {}
        for name in sorted(os.listdir(p.ds.raw(folder))):
            shutil.copy2(p.ds.raw(os.path.join(folder, name)), os.path.join(target, name))
        for fd in fds:
            holder.call("close", fd)
    p.ds.wait_settled()
    for name in os.listdir(target):
        found[os.path.join(target, name)] = sha(p.ds.raw(os.path.join(folder, name)))
    return found


def one_kind(build, p, kind):
    os.mkdir(p.ds.raw(kind.name))
    kind.make(p.ds.raw(kind.name))
    if sum(os.stat(p.ds.raw(os.path.join(kind.name, n))).st_size for n in os.listdir(p.ds.raw(kind.name))) > HUGE:
        return 0
    sealed = 0
    for path, wanted in copies(p, kind, kind.name).items():
        if sha(path) == wanted:
            eq(unseal(build, path).code, 3, "nothing to do: %s" % path)
            continue
        sealed += 1
        before, stamp = sha(path), os.stat(path).st_mtime_ns
        eq(fsck(build, path, "-n").code, 4, "fsck -n")
        eq((sha(path), os.stat(path).st_mtime_ns), (before, stamp), "only looked at")
        r = unseal(build, path)
        if r.code == 4:  # the file does not hold the size: not a byte is touched
            eq(sha(path), before, "untouched")
            ok("--size" in r.out, r.out)
            r = unseal(build, path, "--datastore", p.ds.path)
            ok(r.code == 4 and "no claim of" in r.out, r.out)
            bound = [int(n) for n in re.findall(r"at (?:most|least) (\d+) bytes", r.out)]
            r = unseal(build, path, "--size", bound[0] if kind.size is None else kind.size)
        ok(r.code == 0, "%s: %r" % (kind.name, r))
        eq(sha(path), wanted, "%s: the copy is as the image" % kind.name)
        ok(os.stat(path).st_mtime_ns > stamp + 1_000_000_000, "its mtime is new")
        eq([n for n in os.listdir(os.path.dirname(path)) if "unseal" in n], [], "nothing is left beside it")
        eq(unseal(build, path).code, 3, "the second time there is nothing")
    return sealed


@suite.case("a copy of each kind of image, made while it was held, gets the bytes that the image has afterwards", 300)
def _(build):
    with pair(build, "wait=5,writers=host", hosts=("a",)) as p:
        bad, sealed = [], 0
        for kind in kinds.kinds():
            if kind.huge:
                continue
            try:
                sealed += one_kind(build, p, kind)
            except Fail as e:
                bad.append("%s: %s" % (kind.name, e))
        ok(not bad, "; ".join(bad))
        ok(sealed > 15, "only %d sealed copies" % sealed)


@suite.case("a claim that is held names the size, a person gives it")
def _(build):
    with pair(build, "wait=5", hosts=("a",)) as p:
        make_qcow2(p.ds.raw("v2.qcow2"), "1000M", "compat=0.10")
        with Proc() as holder:
            holder.call("open", p.a.path("v2.qcow2"), RDWR)
            copy = os.path.join(suite_tmp(), "copy.qcow2")
            shutil.copy2(p.ds.raw("v2.qcow2"), copy)
            r = unseal(build, copy, "--datastore", p.ds.path)
            ok(r.code == 4 and "the claim of 'v2.qcow2'" in r.out and "1048576000 bytes now" in r.out, repr(r))
            r = unseal(build, copy, "--size", "2000000000")
            ok(r.code == 1 and "contradicts" in r.out and is_sealed(copy), repr(r))
            eq(fsck(build, copy, "-y").code, 4, "fsck without the size")
            r = fsck(build, copy, "-y", "--size=1048576000", "--json")
            eq((r.code, json.loads(r.out)["result"]), (1, "repaired"))
            wrong = fsck(build, copy, "-y", "--size=copy.qcow2=5")
            eq(wrong.code, 16, "usage")
            # The image itself is no copy, by whatever name, and neither is what a view shows.
            os.link(p.ds.raw("v2.qcow2"), p.ds.raw("other"))
            for path in (p.ds.raw("v2.qcow2"), p.ds.raw("other")):
                before = sha(path)
                r = unseal(build, path, "--size", "1048576000")
                ok(r.code == 1 and "writes to it" in r.out, repr(r))
                r = fsck(build, path, "-n")
                ok("held by" in r.out and sha(path) == before, repr(r))
            r = unseal(build, p.a.path("v2.qcow2"))
            ok(r.code == 1 and "lies in a view" in r.out, repr(r))
            p.a.kill9()
        r = unseal(build, p.ds.raw("v2.qcow2"), "--size", "1048576000")
        ok(r.code == 1 and "is no copy" in r.out, "its holder is dead: %r" % r)
        os.unlink(p.ds.raw("other"))
        p.a.start()
        p.ds.wait_free("v2.qcow2")
        eq(sha(copy), sha(p.ds.raw("v2.qcow2")))


@suite.case("a copy inside the datastore, and one that no datastore is near; what is no image, no file, a damaged header")
def _(build):
    with pair(build, "wait=5", hosts=("a",)) as p:
        make_qcow2(p.ds.raw("i.qcow2"))
        os.mkdir(p.ds.raw("backup"))
        with Proc() as holder:
            holder.call("open", p.a.path("i.qcow2"), RDWR)
            shutil.copy2(p.ds.raw("i.qcow2"), p.ds.raw("backup/i.qcow2"))
            r = unseal(build, p.ds.raw("backup/i.qcow2"))
            eq(r.code, 0, repr(r))
            damaged = os.path.join(suite_tmp(), "d.qcow2")
            shutil.copy2(p.ds.raw("i.qcow2"), damaged)
        p.ds.wait_free("i.qcow2")
        eq(sha(p.ds.raw("backup/i.qcow2")), sha(p.ds.raw("i.qcow2")))
        with open(damaged, "r+b") as f:
            f.seek(20)
            f.write(b"\xff\xff\xff\xff")  # cluster_bits
        before = sha(damaged)
        r = unseal(build, damaged)
        ok(r.code in (1, 4) and sha(damaged) == before, repr(r))
        for path in (suite_tmp(), "/dev/null", os.path.join(suite_tmp(), "none")):
            eq(unseal(build, path).code, 1, path)


@suite.case("a run that was cut short goes on from the plan beside the copy; foreign bytes stop it")
def _(build):
    with pair(build, "wait=5", hosts=("a",)) as p:
        make_qcow2(p.ds.raw("i.qcow2"))
        folder = suite_tmp()
        copy = os.path.join(folder, "c.qcow2")
        with Proc() as holder:
            holder.call("open", p.a.path("i.qcow2"), RDWR)
            shutil.copy2(p.ds.raw("i.qcow2"), copy)
        p.ds.wait_free("i.qcow2")
        with open(copy, "rb") as f:
            sealed = f.read()
        side = os.path.join(folder, ".c.qcow2.diskguard-unseal")
        # Stopped at its first write to the copy, and at the removal of the plan.
        for stop, step in (("pwrite64:signal=SIGKILL:when=2", "first write"), ("unlinkat:signal=SIGKILL:when=1", "removal")):
            with open(copy, "r+b") as f:
                f.write(sealed)
            r = run("strace", "-f", "-o", "/dev/null", "-e", "inject=" + stop, build.ctl, "unseal", copy)
            ok(os.path.exists(side), "%s: a plan is left: %r" % (step, r))
            eq(fsck(build, copy, "-n").code, 4, step)
            with open(copy, "r+b") as f:  # what is neither is not touched
                f.seek(24)
                now = f.read(8)
                f.seek(24)
                f.write(b"somebody")
            r = unseal(build, copy)
            ok(r.code == 1 and "Nothing was touched" in r.out, repr(r))
            with open(copy, "r+b") as f:
                f.seek(24)
                f.write(now)
            eq(unseal(build, copy).code, 0, step)
            eq(sha(copy), sha(p.ds.raw("i.qcow2")), step)
            ok(not os.path.exists(side), "it is removed")


@suite.case("an image of a datastore is no copy either where a part of the datastore is mounted on its own")
def _(build):
    with pair(build, "wait=0", hosts=("a",), settled=False) as p, Proc() as holder:
        os.makedirs(p.ds.raw("pool/sub"))
        make_qcow2(p.ds.raw("pool/sub/img.qcow2"), HUGE)
        holder.call("open", p.a.path("pool/sub/img.qcow2"), RDWR)
        p.a.kill9()
        part = suite_tmp()
        must("mount", "--bind", p.ds.raw("pool"), part)
        try:
            for r in (unseal(build, part + "/sub/img.qcow2"), fsck(build, part + "/sub/img.qcow2", "-y")):
                ok(r.code != 0 and "is no copy" in r.out, repr(r))
            ok(is_sealed(p.ds.raw("pool/sub/img.qcow2")), "untouched")
        finally:
            must("umount", part)
        p.a.start()
        p.ds.wait_free("pool/sub/img.qcow2")


suite.main()
