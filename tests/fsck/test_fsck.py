#!/usr/bin/env python3
"""fsck.diskguard on states that daemons leave behind. Usage: test_fsck.py BUILD-DIRECTORY [NAME-PART]"""
import fcntl
import os
import pty
import shutil
import struct
import subprocess
import sys
import zlib

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lab import STATES, UUID_A, UUID_B, UUID_C, Skip, clean, expect, inner_path, main, sha, test, tree, unchanged  # noqa: E402

F_OFD_SETLK = 37  # <asm-generic/fcntl.h>

# ---- the plain cases ----


@test
def clean_datastore(lab):
    lab.image("a.qcow2")
    for mode in ("-n", "-p", "-y", "-a"):
        expect(lab.fsck(mode), 0)
    assert lab.code(lab.fsck("-n", "--json")) == []


@test
def only_looking_makes_nothing(lab):
    lab.image("a.qcow2")
    before = lab.tree()
    expect(lab.fsck("-n"), 0)
    expect(lab.fsck(), 0)  # no terminal: as -n
    unchanged(lab, before)
    assert not os.path.exists(lab.state(UUID_A)) and os.listdir(lab.ds + "/.diskguard/hosts") == []


def settle_every_state(lab, options, forget_journal=False):
    for state in STATES:
        path = lab.image(state + ".qcow2")
        before, mtime = sha(path), os.stat(path).st_mtime_ns
        lab.mkclaim("leave", state + ".qcow2", state, options=options)
        if forget_journal:
            for name in os.listdir(lab.state(UUID_A)):
                if ".db" in name:
                    os.unlink(os.path.join(lab.state(UUID_A), name))
        assert (sha(path) == before) == (state in ("claimed", "armed")), state
        frozen = lab.tree()
        r = expect(lab.fsck("-n", "--json"), 4)
        unchanged(lab, frozen)
        assert lab.code(r) == ["left-claimed" if state in ("claimed", "armed") else "left-sealed"], r
        r = expect(lab.fsck("-p", "--json"), 1)
        assert r.json()["found"][0]["result"] == "repaired", r
        assert sha(path) == before and lab.claim_state(path) == "free", state
        never = state == "claimed" or (state == "armed" and not forget_journal and not options)  # sealed, as far as anybody knows
        assert (os.stat(path).st_mtime_ns == mtime) == never, state
        clean(lab)


@test
def left_by_own_host_with_journal(lab):
    settle_every_state(lab, ())


@test
def left_by_own_host_that_had_no_journal(lab):
    settle_every_state(lab, ("--no-journal",))


@test
def left_by_own_host_journal_gone(lab):
    settle_every_state(lab, (), forget_journal=True)


@test
def every_kind_of_qcow2(lab):
    base = lab.image("base.qcow2")
    kinds = [("v%s-%s" % (compat[-2:], cluster), ["-o", "compat=%s,cluster_size=%s" % (compat, cluster)])
             for compat in ("0.10", "1.1") for cluster in ("512", "4K", "64K", "2M")]
    kinds.append(("backing", ["-b", base, "-F", "qcow2"]))
    kinds.append(("lazy", ["-o", "lazy_refcounts=on"]))
    paths = {}
    for name, options in kinds:
        path = lab.image("kinds/%s.qcow2" % name, "16M", *options)
        paths[path] = sha(path)
        lab.mkclaim("leave", "kinds/%s.qcow2" % name, "sealed")
        assert sha(path) != paths[path]
    r = expect(lab.fsck("-p", "--json"), 1)
    assert r.json()["counts"]["repaired"] == len(kinds), r
    for path in paths:
        assert sha(path) == paths[path], path
        expect(lab.run("qemu-img", "check", "-q", path), 0)
    clean(lab)


@test
def sealed_by_size(lab):
    path = lab.image("a.qcow2")
    before = sha(path)
    lab.mkclaim("leave", "a.qcow2", "sealed", options=["--seal=size"])
    assert sha(path) != before
    expect(lab.fsck("-p"), 1)
    assert sha(path) == before
    clean(lab)


@test
def raw_image_is_only_freed(lab):
    path = os.path.join(lab.ds, "disk.img")
    with open(path, "wb") as f:
        f.write(os.urandom(100000))
    before = sha(path)
    lab.mkclaim("leave", "disk.img", "claimed")
    assert lab.code(lab.fsck("-n", "--json")) == ["left-claimed"]
    expect(lab.fsck("-p"), 1)
    assert sha(path) == before
    clean(lab)


@test
def renamed_while_sealed(lab):
    path = lab.image("a.qcow2")
    before = sha(path)
    lab.mkclaim("leave", "a.qcow2", "sealed")
    new = os.path.join(lab.ds, "elsewhere", "b.qcow2")
    os.mkdir(os.path.dirname(new))
    os.rename(path, new)
    expect(lab.fsck("-p"), 1)
    assert sha(new) == before
    clean(lab)


# ---- damage ----


def rewrite_claim(text, how):
    if how == "truncated":
        return text[:len(text) // 2]
    if how == "flipped":
        at = text.index(b"generation=") - 3
        return text[:at] + bytes([text[at] ^ 1]) + text[at + 1:]
    if how == "empty":
        return b""
    if how == "huge":
        return text + b"x" * (1 << 20)
    body = text[:text.rindex(b"sum=")].replace(b"diskguard-claim 1\n", b"diskguard-claim 9\n")
    return body + b"sum=%08x\n" % zlib.crc32(body)


@test
def damaged_claim(lab):
    for options in ((), ("--no-journal",)):
        for how in ("truncated", "flipped", "empty", "huge", "newer"):
            path = lab.image("%s%d.qcow2" % (how, len(options)))
            lab.mkclaim("leave", os.path.basename(path), "sealed", options=options)
            with open(lab.claim_path(path), "r+b") as f:
                text = rewrite_claim(f.read(), how)
                f.seek(0)
                f.truncate()
                f.write(text)
            frozen = tree(lab.ds)
            for mode in ("-n", "-p", "-y"):
                r = expect(lab.fsck(mode, "--json"), 4)
                assert lab.code(r) == ["newer-claim" if how == "newer" else "bad-claim"], r
            expect(lab.fsck("-y", host=UUID_B), 4)
            os.unlink(os.path.join(lab.ds, ".diskguard", "hosts", UUID_B))
            now = tree(lab.ds)
            for d in (frozen, now):
                d.pop(os.path.join(lab.ds, ".diskguard", "hosts"))
                d.pop(os.path.join(lab.ds, ".diskguard", "tmp"))
            assert now == frozen
            os.unlink(lab.claim_path(path))
            shutil.rmtree(lab.state(UUID_A))
            os.unlink(os.path.join(lab.ds, ".diskguard", "hosts", UUID_A))
            os.unlink(path)
            clean(lab)


@test
def vanished_image(lab):
    for options in ((), ("--no-journal",)):
        path = lab.image("a.qcow2")
        lab.mkclaim("leave", "a.qcow2", "sealed", options=options)
        os.unlink(path)
        r = expect(lab.fsck("-n", "--json"), 4)
        assert lab.code(r) == ["vanished"], r
        expect(lab.fsck("-p"), 1)
        assert lab.claims() == []
        clean(lab)


@test
def alien_header_is_not_touched(lab):
    for options in ((), ("--no-journal",)):
        path = lab.image("a%d.qcow2" % len(options))
        lab.mkclaim("leave", os.path.basename(path), "sealed", options=options)
        with open(path, "r+b") as f:
            f.seek(24)
            f.write(struct.pack(">Q", 123456789 << 9))
        before, mtime = sha(path), os.stat(path).st_mtime_ns
        for mode in ("-n", "-p", "-y"):
            r = expect(lab.fsck(mode, "--json"), 4)
            assert "alien" in lab.code(r), r
        assert sha(path) == before and os.stat(path).st_mtime_ns == mtime
        assert lab.claim_state(path) == "armed"
        r = lab.fsck("-y", "--takeover", UUID_A, "--confirm-host-is-down")
        assert r.rc & 4 and sha(path) == before, r
        expect(lab.fsck("-y", host=UUID_B, *("--takeover", UUID_A, "--confirm-host-is-down")), 4)
        assert sha(path) == before
        os.unlink(path)
        lab.fsck("-y")


def forget_claims(lab):
    for name in lab.claims():
        os.unlink(inner_path(lab.ds, "claims", name))


@test
def orphan_without_its_size(lab):
    path = lab.image("a.qcow2", "1G")
    v2 = lab.image("v2.qcow2", "1000M", "-o", "compat=0.10")
    good = sha(path), sha(v2)
    lab.mkclaim("leave", "a.qcow2", "sealed", options=["--no-journal"])
    lab.mkclaim("leave", "v2.qcow2", "sealed", options=["--no-journal"])
    forget_claims(lab)
    os.link(path, os.path.join(lab.ds, "second-name.qcow2"))
    sealed = sha(path), sha(v2)
    for mode in ("-n", "-p"):
        r = expect(lab.fsck(mode, "--json"), 4)
        assert lab.code(r) == ["orphan", "orphan"], r
        detail = {f["image"].startswith("v2"): f["detail"] for f in r.json()["found"]}
        assert "nodea" in detail[False] and "it is 1073741824 bytes" in detail[False] and "fsck.diskguard -y" in detail[False], detail
        assert "at most 1073741824 bytes" in detail[True] and "--size IMAGE=BYTES" in detail[True], detail
        assert (sha(path), sha(v2)) == sealed
    # What the file holds is used, a bound is not.
    r = expect(lab.fsck("-y", "--json"), 5)
    assert sorted(f["result"] for f in r.json()["found"]) == ["left", "repaired"], r
    assert sha(path) == good[0] and sha(v2) == sealed[1]
    assert lab.claim_state(path) == "free"
    # A size that the file contradicts is refused, and so is one for another image.
    for wrong in ("v2.qcow2=2000000000", "v3.qcow2=1048576000"):
        expect(lab.fsck("-y", "--size", wrong), 4)
        assert sha(v2) == sealed[1], wrong
    for wrong in ("v2.qcow2", "=5", "v2.qcow2=0", "v2.qcow2=-1", "v2.qcow2=5k", "v2.qcow2=99999999999999999999"):
        expect(lab.fsck("-y", "--size", wrong), 16)
    expect(lab.fsck("-y", "--size", "./v2.qcow2=1048576000"), 1)
    assert (sha(path), sha(v2)) == good
    expect(lab.fsck("-y"), 0)


@test
def orphan_that_is_still_written(lab):
    path = lab.image("a.qcow2", "1G")
    lab.mkclaim("leave", "a.qcow2", "sealed", options=["--no-journal"])
    forget_claims(lab)
    sealed = sha(path)
    with open(path, "r+b") as f:
        fcntl.fcntl(f, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 1 << 62, 1, 0))  # the fence of a writer
        expect(lab.fsck("-y"), 4)
        assert sha(path) == sealed and not lab.claims()
    expect(lab.fsck("-y"), 1)


@test
def claim_missing_needs_agreement(lab):
    path = lab.image("a.qcow2")
    before = sha(path)
    lab.mkclaim("row", "a.qcow2")
    sealed = sha(path)
    frozen = lab.tree()
    r = expect(lab.fsck("-n", "--json"), 4)
    assert lab.code(r) == ["claim-missing"], r
    unchanged(lab, frozen)
    expect(lab.fsck("-p"), 4)
    assert sha(path) == sealed
    expect(lab.fsck("-y"), 1)
    assert sha(path) == before
    clean(lab)


@test
def damaged_journal(lab):
    path = lab.image("a.qcow2")
    before = sha(path)
    lab.mkclaim("leave", "a.qcow2", "sealed")
    db = [n for n in os.listdir(lab.state(UUID_A)) if n.endswith(".db")][0]
    for name in (db + "-wal", db + "-shm"):
        if os.path.exists(os.path.join(lab.state(UUID_A), name)):
            os.unlink(os.path.join(lab.state(UUID_A), name))
    with open(os.path.join(lab.state(UUID_A), db), "wb") as f:
        f.write(b"this is no database" * 1000)
    frozen = lab.tree()
    r = expect(lab.fsck("-n", "--json"), 4)
    assert lab.code(r) == ["journal-damaged", "left-sealed"], r
    unchanged(lab, frozen)
    sealed = sha(path)
    expect(lab.fsck("-p"), 4)
    assert sha(path) == sealed
    r = expect(lab.fsck("-y", "--json"), 1)
    assert lab.code(r) == ["journal-damaged", "left-sealed"], r
    assert sha(path) == before
    assert any(".corrupt-" in n for n in os.listdir(lab.state(UUID_A)))
    assert db not in os.listdir(lab.state(UUID_A))
    clean(lab)


# ---- everything at once ----


@test
def only_looking_changes_nothing_at_all(lab):
    for state in STATES:
        lab.image(state + ".qcow2")
        lab.mkclaim("leave", state + ".qcow2", state)
        lab.image("b/" + state + ".qcow2")
        lab.mkclaim("leave", "b/" + state + ".qcow2", state, host=UUID_B, options=["--no-journal"])
    lab.image("row.qcow2")
    lab.mkclaim("row", "row.qcow2")
    gone = lab.image("gone.qcow2")
    lab.mkclaim("leave", "gone.qcow2", "sealed")
    os.unlink(gone)
    bad = lab.image("bad.qcow2")
    lab.mkclaim("leave", "bad.qcow2", "sealed")
    with open(lab.claim_path(bad), "w"):
        pass
    with open(os.path.join(lab.ds, ".diskguard", "tmp", "%s.%s.7" % (UUID_A, UUID_C)), "w"):
        pass
    frozen = lab.tree()
    for args in ((), ("-v",), ("--json",), ("--takeover", UUID_B), ("--takeover", "nodeb", "--confirm-host-is-down")):
        for host in (UUID_A, UUID_C):
            r = lab.fsck("-n", *args, host=host)
            assert r.rc == (16 if len(args) == 2 else 4), r
            unchanged(lab, frozen)
    expect(lab.fsck("-p"), 5)
    expect(lab.fsck("-y"), 5)
    r = expect(lab.fsck("-y", "--json"), 4)
    assert [c for c in lab.code(r) if c != "holder-down"] == ["bad-claim"], r


@test
def leftovers_of_crashes(lab):
    path = lab.image("a.qcow2")
    lab.mkclaim("leave", "a.qcow2", "sealed")
    lab.mkclaim("free", "a.qcow2")
    free = lab.claim_path(path)
    lab.mkclaim("leave", "a.qcow2", "sealed", host=UUID_B)
    shutil.copy2(free, free + ".keep")
    expect(lab.fsck("-n"), 4)  # its host is down; the generation below one that is held is no leftover
    lab.mkclaim("free", "a.qcow2", host=UUID_B)
    os.rename(free + ".keep", free)
    tmp = os.path.join(lab.ds, ".diskguard", "tmp")
    for host in (UUID_A, UUID_B):
        with open(os.path.join(tmp, "%s.%s.7" % (host, UUID_C)), "w"):
            pass
    assert len(lab.claims(path)) == 2
    expect(lab.fsck("-n"), 4)
    r = expect(lab.fsck("-p", "--json"), 1)
    assert lab.code(r) == ["stale-tmp"], r
    assert len(lab.claims(path)) == 1 and len(os.listdir(tmp)) == 1  # another host's is left to it
    clean(lab)
    expect(lab.fsck("-p", "--takeover", "nodeb", "--confirm-host-is-down"), 1)
    assert os.listdir(tmp) == []


@test
def headers_that_lie(lab):
    path = lab.image("a.qcow2")
    with open(path, "r+b") as f:
        f.seek(20)
        f.write(struct.pack(">I", 77))
    frozen = lab.tree()
    r = expect(lab.fsck("-n", "--json"), 0)
    assert lab.code(r) == ["lies"], r
    unchanged(lab, frozen)


@test
def what_the_walk_leaves_out(lab):
    outside = os.path.join(lab.dir, "outside")
    os.mkdir(outside)
    path = lab.image("a.qcow2")
    lab.mkclaim("leave", "a.qcow2", "sealed", options=["--no-journal"])
    os.unlink(lab.claim_path(path))
    os.rename(path, os.path.join(outside, "orphan.qcow2"))
    os.symlink(outside, os.path.join(lab.ds, "dir-link"))
    os.symlink(os.path.join(outside, "orphan.qcow2"), os.path.join(lab.ds, "file-link"))
    os.symlink("nowhere", os.path.join(lab.ds, "broken"))
    os.mkfifo(os.path.join(lab.ds, "fifo"))
    os.mkdir(os.path.join(lab.ds, "mnt"))
    shutil.copy(os.path.join(outside, "orphan.qcow2"), os.path.join(lab.ds, ".diskguard", "orphan.qcow2"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "none", os.path.join(lab.ds, "mnt")], stderr=subprocess.DEVNULL).returncode == 0
    try:
        if mounted:
            shutil.copy(os.path.join(outside, "orphan.qcow2"), os.path.join(lab.ds, "mnt"))
        r = expect(lab.fsck("-n", "--json"), 0)
        assert lab.code(r) == [] and r.json()["counts"]["files"] == 0, r
        if mounted:
            assert lab.code(lab.fsck("-n", "-v", "--json")) == ["other-file-system"]
    finally:
        if mounted:
            subprocess.run(["umount", os.path.join(lab.ds, "mnt")])


@test
def names_from_strangers(lab):
    name = "a\x1b[31m\nb\udcff.qcow2"
    lab.image(name)
    lab.mkclaim("leave", name, "sealed")
    r = expect(lab.fsck("-n"), 4)
    assert "\x1b" not in r.out and "a?[31m?b" in r.out, r
    assert lab.fsck("-n", "--json").json()["found"][0]["image"].startswith("a\x1b")
    expect(lab.fsck("-p"), 1)


@test
def deep_and_wide(lab):
    path = lab.ds
    for _ in range(200):
        path = os.path.join(path, "d")
    os.makedirs(path)
    for i in range(1000):
        with open(os.path.join(lab.ds, "d", "f%d" % i), "w") as f:
            f.write("x")
    r = expect(lab.fsck("-n", "--json"), 0)
    assert r.json()["counts"]["files"] == 1000


# ---- datastores, options, questions ----


@test
def not_a_datastore(lab):
    plain = os.path.join(lab.dir, "plain")
    os.mkdir(plain)
    for where in (plain, os.path.join(lab.dir, "missing"), "/dev/null"):
        r = lab.run(lab.prog["fsck"], *lab.identity(UUID_A), "-p", where)
        assert r.rc == 8 and r.err.count("\n") == 1, r
        r = lab.run(lab.prog["fsck"], *lab.identity(UUID_A), "-p", "--json", where)
        assert r.rc == 8 and r.json()["exit"] == 8, r
    assert os.listdir(plain) == []


@test
def copy_of_a_datastore(lab):
    lab.image("a.qcow2")
    lab.mkclaim("leave", "a.qcow2", "sealed")
    copy = os.path.join(lab.dir, "copy")
    shutil.copytree(lab.ds, copy)
    before = tree(copy)
    r = lab.run(lab.prog["fsck"], *lab.identity(UUID_A), "-y", copy)
    expect(r, 8)
    r = lab.run(lab.prog["fsck"], *lab.identity(UUID_A), "-n", "--json", copy)
    assert r.rc & 4 and r.json()["only_looking"], r
    assert tree(copy) == before


@test
def options(lab):
    fsck = lab.prog["fsck"]
    expect(lab.run(fsck), 16)
    expect(lab.run(fsck, "-n", "-p", lab.ds), 16)
    expect(lab.run(fsck, "-n", lab.ds, lab.ds), 16)
    expect(lab.run(fsck, "-Z", lab.ds), 16)
    expect(lab.run(fsck, "--host-id=nonsense", "-n", lab.ds), 16)
    expect(lab.run(fsck, "--fence=maybe", "-n", lab.ds), 16)
    assert expect(lab.run(fsck, "-V"), 0).out.startswith("fsck.diskguard ")
    assert "--takeover" in expect(lab.run(fsck, "--help"), 0).out
    # as fsck(8) calls it
    for args in (["-a", "-C0"], ["-a", "-C", "-T"], ["-p", "-t", "diskguard"], ["-M", "-R", "-n"], ["-n", "--fence=none"]):
        expect(lab.fsck(*args), 0)


def on_terminal(lab, answers, *args):
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(TMPDIR=lab.tmp, LC_ALL="C")
        os.execv(lab.prog["fsck"], ["fsck.diskguard", *lab.identity(UUID_A), *args, lab.ds])
    out = b""
    for answer in answers + [None]:
        while b"(y/n)?" not in out.rsplit(b"\n", 1)[-1]:
            try:
                more = os.read(fd, 4096)
            except OSError:
                more = b""
            if not more:
                return os.WEXITSTATUS(os.waitpid(pid, 0)[1]), out.decode()
            out += more
        if answer is None:
            raise AssertionError("one question more than expected: %r" % out)
        os.write(fd, answer + b"\n")
        out += b"\n"
    raise AssertionError("no end")


@test
def asks_on_a_terminal(lab):
    paths = [lab.image("a.qcow2"), lab.image("b.qcow2")]
    before = [sha(p) for p in paths]
    for p in paths:
        lab.mkclaim("leave", os.path.basename(p), "sealed")
    rc, out = on_terminal(lab, [b"n", b"n"])
    assert rc == 4 and [sha(p) for p in paths] != before, out
    rc, out = on_terminal(lab, [b"y", b"n"])
    assert rc == 5 and sum(sha(p) == b for p, b in zip(paths, before)) == 1, out
    rc, out = on_terminal(lab, [b"y"])
    assert rc == 1 and [sha(p) for p in paths] == before, out
    rc, out = on_terminal(lab, [])
    assert rc == 0, out
    lab.mkclaim("row", "a.qcow2")
    rc, out = on_terminal(lab, [b"y"])
    assert rc == 1 and sha(paths[0]) == before[0], out


@test
def as_another_user(lab):
    os.chmod(lab.dir, 0o755)
    r = lab.run("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", lab.prog["fsck"], "-n", "--state-dir=/nonexistent",
                "--host-id=" + UUID_A, lab.ds)
    if "not found" in r.err and "setpriv" in r.err:
        raise Skip("no setpriv")
    expect(r, 8)


if __name__ == "__main__":
    main("test_fsck")
