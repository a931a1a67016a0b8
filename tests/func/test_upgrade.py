#!/usr/bin/env python3
"""A datastore of format 1 is refused by what knows format 2, and converted by `diskguardctl init --upgrade`: with all of its numbers,
whatever kills it, and never under a daemon."""
import errno
import os
import re
import shutil
import zlib

from dglayout import inner_path, shard
from dgqemu import make_qcow2
from dgtest import (Datastore, Host, Proc, Skip, Suite, View, eq, is_sealed, must, ok, pair, raises, run, sha, wait_for)

suite = Suite(__file__, needs="hooks", memory=True)
KINDS = ("claims", "marks", "readers")
UPGRADE = "diskguardctl init --upgrade "


# ---- datastores ----

def say(ds, version, state=None):
    """Writes the file `datastore` anew, as format 1 or 2."""
    path = ds.raw(".diskguard/datastore")
    with open(path) as f:
        fields = [line for line in f.read().splitlines()[1:] if not line.startswith(("sum=", "state="))]
    body = "\n".join(["diskguard-datastore %d" % version, *fields, *(["state=" + state] if state else [])]) + "\n"
    with open(path, "w") as f:
        f.write("%ssum=%08x\n" % (body, zlib.crc32(body.encode())))


def state(ds):
    with open(ds.raw(".diskguard/datastore")) as f:
        lines = f.read().splitlines()
    return lines[0].split()[1] + "".join(line[6:] for line in lines if line.startswith("state="))


def downgrade(ds):
    """What format 1 was: the names in the directories themselves, marks/ and readers/ only where there are any."""
    for kind in KINDS:
        folder = ds.raw(".diskguard/" + kind)
        for name in ds.inner(kind):
            os.rename(ds.inner_path(kind, name), os.path.join(folder, name))
        for name in os.listdir(folder):
            if len(name) == 2:
                os.rmdir(os.path.join(folder, name))
        if kind != "claims" and not os.listdir(folder):
            os.rmdir(folder)
    say(ds, 1)


def facts(ds):
    """All that must not change: each name, its file and its text; the floor; the uuid."""
    found = {}
    for kind in KINDS:
        for place in (kind, kind + ".2"):
            for name in ds.inner(place):
                path = inner_path(ds.path, place, name)
                with open(path, "rb") as f:
                    found.setdefault((kind, name), []).append((os.stat(path).st_ino, f.read()))
    ok(all(len(v) == 1 for v in found.values()), "a name is there twice: %s" % [k for k, v in found.items() if len(v) > 1])
    floor = ds.raw(".diskguard/floor")
    return found, os.path.exists(floor) and os.path.getsize(floor)


def in_shards(ds):
    for kind in KINDS:
        folder = ds.raw(".diskguard/" + kind)
        eq(len(os.listdir(folder)), 256 if kind == "claims" else 16, kind)
        for name in ds.inner(kind):
            ok(os.path.exists(os.path.join(folder, shard(int(name[:16], 16), kind), name)), "%s/%s is not in its shard" % (kind, name))
        ok(not os.path.exists(folder + ".2"), kind + ".2 is left")


def forge(ds, kind, name, text=b"x"):
    with open(ds.inner_path(kind, name), "wb") as f:
        f.write(text)


def ctl(ds, *args, **env):
    return run(*ds.build.command(ds.build.ctl, *args), env=ds.build.env(**env))


def upgrade(ds, *args, code=0, **env):
    r = ctl(ds, "init", "--upgrade", *args, ds.path, **env)
    eq(r.code, code, "exit code of the upgrade: %s" % r.out)
    return r.out


def refused(ds, host, words):
    """One clear line, and nothing is mounted."""
    view = View(ds, host, start=False)
    view.spawn()
    ok(view.wait_end() != 0, "the daemon must not serve it")
    view.forget()
    lines = [line for line in view.log().splitlines() if words in line]
    eq(len(lines), 1, "lines with %r in: %s" % (words, view.log()))
    r = ctl(ds, "list", "--datastore", ds.path)
    ok(r.code != 0 and words in r.out, "list: %s" % r.out)
    r = ds.fsck(host, "-n")
    ok(r.code & 8 and words in r.out, "fsck: %s" % r.out)


def used(build):
    """A datastore of format 1 with a history: tombstones, a damaged claim, marks and readers of a dead host, a floor, an image that a
    crash left held. Returns it, the image's bytes and the host."""
    ds = Datastore(build)
    a = View(ds, Host(ds.base, "a"), ["wait=0"])
    for name in ("free.qcow2", "held.qcow2", "base.qcow2"):
        make_qcow2(ds.raw(name))
    must("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", ds.raw("top.qcow2"))
    for _ in range(3):
        os.close(os.open(a.path("free.qcow2"), os.O_RDWR))
        ds.wait_free("free.qcow2")
    true = sha(ds.raw("held.qcow2")), sha(ds.raw("top.qcow2"))
    with Proc() as p:
        p.call("open", a.path("held.qcow2"), os.O_RDWR)
        p.call("open", a.path("top.qcow2"), os.O_RDWR)
        a.kill9()
    eq(len(ds.inner("marks")), 1, "marks")
    forge(ds, "claims", "00000000deadbeef.41", b"no record")
    forge(ds, "readers", "00000000deadbeef-00000000-0000-4000-8000-00000000000a.00000000-0000-4000-8000-00000000000b.1")
    with open(ds.raw(".diskguard/floor"), "wb") as f:
        f.write(b"\n" * 17)
    downgrade(ds)
    return ds, a, true


# ---- cases ----

@suite.case("a datastore of format 1, or half converted, is refused with one line that names the command")
def both_ways(build):
    ds = Datastore(build)
    host = Host(ds.base, "a")
    downgrade(ds)
    refused(ds, host, "is a datastore of format 1, and this diskguard needs format 2")
    refused(ds, host, UPGRADE + ds.path)
    r = ctl(ds, "init", ds.path)
    ok(r.code != 0 and UPGRADE + ds.path in r.out, "init: %s" % r.out)
    say(ds, 2, "upgrade")
    refused(ds, host, "is half converted to format 2")
    refused(ds, host, UPGRADE + ds.path)
    say(ds, 3, "ready")
    refused(ds, host, "was made by a newer diskguard")
    r = upgrade(ds, code=1)
    ok("newer" in r, r)
    say(ds, 2, "ready")
    upgrade(ds, code=3)  # already


@suite.case("an upgrade keeps every name, file and number; what a crash left is recovered afterwards")
def keeps_all(build):
    ds, a, true = used(build)
    before = facts(ds)
    eq(len([n for n in os.listdir(ds.raw(".diskguard/claims")) if "." in n]), len(ds.inner("claims")), "flat")
    out = upgrade(ds)
    ok("is a datastore of format 2 now: %d records" % len(before[0]) in out, out)
    eq(facts(ds), before, "facts")
    in_shards(ds)
    ok(is_sealed(ds.raw("held.qcow2")), "the upgrade touches no image")
    last = ds.claims()[os.stat(ds.raw("free.qcow2")).st_ino]
    a.start()
    for name in ("held.qcow2", "top.qcow2"):
        ds.wait_free(name)
    eq((sha(ds.raw("held.qcow2")), sha(ds.raw("top.qcow2"))), true, "recovered")
    eq(ds.inner("marks"), [], "void marks are gone")
    with Proc() as p:
        fd = p.call("open", a.path("free.qcow2"), os.O_RDWR)
        eq(int(ds.claims()[os.stat(ds.raw("free.qcow2")).st_ino]["generation"]), int(last["generation"]) + 1, "it counts on")
        p.call("close", fd)
    ds.wait_free("free.qcow2")
    make_qcow2(ds.raw("new.qcow2"))
    with Proc() as p:
        p.call("open", a.path("new.qcow2"), os.O_RDWR)
        eq(int(ds.claims()[os.stat(ds.raw("new.qcow2")).st_ino]["generation"]), 18, "above the floor")
    a.stop()
    upgrade(ds, code=3)


@suite.case("fsck.diskguard repairs after an upgrade what a crash left before it, without the journal")
def fsck_after(build):
    ds, a, true = used(build)
    upgrade(ds)
    for path in a.host.journal_files():
        os.unlink(path)
    r = ds.fsck(a.host, "-y")
    ok(r.code & 1 and not is_sealed(ds.raw("held.qcow2")), r.out)
    eq(sha(ds.raw("held.qcow2")), true[0], "restored from the claim")


@suite.case("it is refused while a daemon lives, on this host or another one, also a read-only view here")
def alive(build):
    with pair(build, "wait=0") as p:
        upgrade(p.ds, code=3)
        say(p.ds, 1)  # as if it were of format 1: nothing may be touched
        before = facts(p.ds)
        out = upgrade(p.ds, code=3)
        ok("umount" in out, out)
        r = run("unshare", "-m", "--propagation", "private", "sh", "-c", "umount -l %s %s; exec %s init --upgrade %s" % (
            p.a.mnt, p.b.mnt, build.ctl, p.ds.path), env=build.env())
        ok(r.code == 3 and "is at work on" in r.out and "end it on all hosts" in r.out, r.out)
        eq((facts(p.ds), state(p.ds)), (before, "1"), "untouched")
        say(p.ds, 2, "ready")
    with pair(build, "ro", hosts=("a",), settled=False) as p:
        downgrade(p.ds)
        out = upgrade(p.ds, code=3)
        ok("umount" in out, out)


@suite.case("a name that is there twice: one file is settled, two files are refused and stay")
def twice(build):
    ds, _, _ = used(build)
    before = facts(ds)
    name = ds.inner("claims")[0]
    new = ds.raw(".diskguard/claims.2")
    os.mkdir(new, 0o700)
    target = os.path.join(new, shard(int(name[:16], 16)))
    os.mkdir(target, 0o700)
    with open(os.path.join(target, name), "w") as f:
        f.write("another one")
    out = upgrade(ds, code=1)
    ok("twice" in out and name in out, out)
    eq(state(ds), "2upgrade", "state")
    ok(os.path.exists(ds.raw(".diskguard/claims/" + name)), "it stays")
    os.unlink(os.path.join(target, name))
    os.link(ds.raw(".diskguard/claims/" + name), os.path.join(target, name))
    upgrade(ds)
    eq(facts(ds), before, "facts")
    in_shards(ds)


@suite.case("what is nobody's claim moves along; a directory that is half of format 2 is refused")
def strangers(build):
    ds, _, _ = used(build)
    for name in ("notes.txt", ".nfs000000000000000100000001"):
        with open(ds.raw(".diskguard/claims/" + name), "w"):
            pass
    os.mkdir(ds.raw(".diskguard/claims/3f"))
    out = upgrade(ds, code=1)
    ok("not all" in out, out)
    os.rmdir(ds.raw(".diskguard/claims/3f"))
    upgrade(ds)
    ok(os.path.exists(ds.raw(".diskguard/claims/notes.txt")), "the stranger")
    View(ds, Host(ds.base, "b")).stop()


def hook_log(ds, path):
    upgrade(ds, DISKGUARD_HOOK_LOG=path)
    with open(path) as f:
        return [line.split()[1] for line in f]


class Kept:
    """.diskguard as it was before the upgrade: put back for each round. Files are linked, for they must stay the same."""

    def __init__(self, ds):
        self.ds, self.at = ds, os.path.join(ds.base, "kept")
        shutil.copytree(ds.raw(".diskguard"), self.at, copy_function=os.link)

    def back(self):
        inner = self.ds.raw(".diskguard")
        for name in os.listdir(inner):
            path = os.path.join(inner, name)
            if os.path.isdir(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        shutil.copytree(self.at, inner, copy_function=os.link, dirs_exist_ok=True)


def steps(names):
    """Each step of its own kind, and some of the many that are alike."""
    seen = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        if seen[name] <= 6 or (name.startswith("upgrade.") and seen[name] < 40) or seen[name] % 251 == 0:
            yield name, seen[name]


@suite.case("killed at any step, and killed again, it is finished by the next run", limit=600.0)
def killed(build):
    if not build.hooks:
        raise Skip("needs a build with hooks")
    ds, a, _ = used(build)
    before, kept = facts(ds), Kept(ds)
    rounds = list(steps(hook_log(ds, os.path.join(ds.base, "hooks"))))
    ok({"upgrade.state", "upgrade.make", "upgrade.move", "upgrade.sync", "upgrade.swap", "upgrade.swapped", "shard.mkdir"}
       <= {name for name, _ in rounds}, "steps: %s" % rounds)
    found = set()
    for number, (name, count) in enumerate(rounds):
        kept.back()
        what = "%s:%d" % (name, count)
        eq(ctl(ds, "init", "--upgrade", ds.path, DISKGUARD_HOOK_KILL=what).code, 137, "killed at " + what)
        eq(facts(ds), before, "facts after " + what)
        found.add(state(ds))
        if state(ds) != "2ready" and number % 7 == 0:
            refused(ds, a.host, UPGRADE + ds.path)
        again = rounds[number * 31 % len(rounds)]
        ctl(ds, "init", "--upgrade", ds.path, DISKGUARD_HOOK_KILL="%s:%d" % again)
        eq(facts(ds), before, "facts after %s and %s" % (what, again))
        ctl(ds, "init", "--upgrade", ds.path)
        eq((facts(ds), state(ds)), (before, "2ready"), "after %s, %s and a whole run" % (what, again))
        in_shards(ds)
    eq(found, {"1", "2upgrade", "2ready"}, "states that were left")
    a.start()
    ds.wait_free("held.qcow2")
    a.stop()


@suite.case("storage that fails at a step: it says so, and the next run finishes")
def failing(build):
    if not build.hooks:
        raise Skip("needs a build with hooks")
    ds, _, _ = used(build)
    before, kept = facts(ds), Kept(ds)
    for step in ("upgrade.state:1", "upgrade.state:2", "upgrade.state-sync:1", "upgrade.make:2", "shard.mkdir:3", "upgrade.move:1", "upgrade.move:3",
                 "upgrade.sync:1", "upgrade.swap:1", "upgrade.swapped:2", "io.fsync:300"):
        kept.back()
        out = upgrade(ds, code=1, DISKGUARD_HOOK_FAIL="%s:%d" % (step, errno.ENOSPC))
        ok("free some space" in out and "run it again" in out, "%s: %s" % (step, out))
        eq(facts(ds), before, "facts after " + step)
        upgrade(ds)
        eq(facts(ds), before, "facts in the end")
        in_shards(ds)


@suite.case("a missing shard is damage: nobody claims beside what cannot be seen")
def missing(build):
    with pair(build, "wait=0", settled=False) as p, Proc() as holder:
        make_qcow2(p.ds.raw("x.qcow2"))
        folder = p.ds.raw(".diskguard/claims/" + shard(os.stat(p.ds.raw("x.qcow2")).st_ino))
        holder.call("open", p.a.path("x.qcow2"), os.O_RDWR)
        os.rename(folder, p.ds.raw("hidden"))
        raises(errno.EIO, os.open, p.b.path("x.qcow2"), os.O_RDWR)
        p.b.wait_log("x.qcow2.*Input/output error")
        refused(p.ds, Host(p.ds.base, "c"), "is missing, though the datastore was initialised")
        os.rename(p.ds.raw("hidden"), folder)
        raises(errno.EBUSY, os.open, p.b.path("x.qcow2"), os.O_RDWR)
        holder.kill()
        wait_for(lambda: p.ds.claim_of("x.qcow2") == "free", "it is given back")
        os.close(os.open(p.b.path("x.qcow2"), os.O_RDWR))
        ok(not re.search("BUG", p.a.log() + p.b.log()), "a BUG line")


if __name__ == "__main__":
    suite.main()
