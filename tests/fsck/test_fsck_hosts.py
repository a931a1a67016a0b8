#!/usr/bin/env python3
"""fsck.diskguard between hosts: who may repair what. Usage: test_fsck_hosts.py BUILD-DIRECTORY [NAME-PART]"""
import fcntl
import os
import shutil
import struct
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lab import FENCE, STATES, UUID_A, UUID_B, UUID_C, clean, expect, main, sha, test, unchanged  # noqa: E402

@test
def foreign_is_only_reported(lab):
    path = lab.image("a.qcow2")
    lab.mkclaim("leave", "a.qcow2", "sealed", host=UUID_B)
    expect(lab.fsck("-y"), 4)
    before = lab.tree()
    for mode in ("-n", "-p", "-y"):
        r = expect(lab.fsck(mode, "--json"), 4)
        assert lab.code(r) == ["holder-down"], r
        assert r.json()["found"][0]["holder"]["host"] == "nodeb"
    r = expect(lab.fsck("-y"), 4)
    assert "nodeb" in r.out and "not locked" in r.out and "--takeover %s" % UUID_B in r.out, r
    unchanged(lab, before, probed=True)
    assert lab.claim_state(path) == "armed"
    r = lab.fsck("-n", "-v", "--json")
    assert lab.code(r) == ["holder-down", "sealed"], r


@test
def takeover_by_uuid_and_by_name(lab):
    for who in (UUID_B, "nodeb"):
        for state in STATES:
            name = "%s-%s.qcow2" % (who[:5], state)
            path = lab.image(name)
            before = sha(path)
            lab.mkclaim("leave", name, state, host=UUID_B)
            assert lab.fsck("-y").rc == 4  # nobody has said that it is down
            frozen = lab.tree()
            r = expect(lab.fsck("-y", "--takeover", who), 16)
            assert "--confirm-host-is-down" in r.err and "last sign of life" in r.out and "not locked" in r.out, r
            unchanged(lab, frozen, probed=True)
            frozen = lab.tree()
            r = expect(lab.fsck("-n", "--takeover", who, "--confirm-host-is-down", "--json"), 4)
            assert "foreign-confirmed" in lab.code(r), r
            unchanged(lab, frozen)
            # a confirmed takeover needs no -p: the confirmation is the answer
            expect(lab.fsck("--takeover", who, "--confirm-host-is-down"), 1)
            assert sha(path) == before and lab.claim_state(path) == "free", name
            clean(lab)
            # that host comes back, and its journal still remembers: a stale row, if it had one
            assert lab.code(lab.fsck("-n", "--json", host=UUID_B)) == ["stale-row"]
            expect(lab.fsck("-p", host=UUID_B), 1)
            clean(lab, UUID_B)


@test
def takeover_leaves_third_hosts_alone(lab):
    b, c = lab.image("b.qcow2"), lab.image("c.qcow2")
    before = sha(b)
    lab.mkclaim("leave", "b.qcow2", "sealed", host=UUID_B)
    lab.mkclaim("leave", "c.qcow2", "sealed", host=UUID_C)
    sealed = sha(c), lab.claim_path(c), sha(lab.claim_path(c))
    expect(lab.fsck("-y", "--takeover", UUID_B, "--confirm-host-is-down"), 5)
    assert sha(b) == before and (sha(c), lab.claim_path(c), sha(lab.claim_path(c))) == sealed


@test
def takeover_of_unknown_or_ambiguous_host(lab):
    lab.image("b.qcow2")
    lab.image("c.qcow2")
    expect(lab.fsck("-y", "--takeover", "nowhere", "--confirm-host-is-down"), 16)
    lab.mkclaim("leave", "b.qcow2", "sealed", host=UUID_B, name="twin")
    lab.mkclaim("leave", "c.qcow2", "sealed", host=UUID_C, name="twin")
    r = expect(lab.fsck("-y", "--takeover", "twin", "--confirm-host-is-down"), 16)
    assert UUID_B in r.err and UUID_C in r.err, r
    expect(lab.fsck("-y", "--confirm-host-is-down"), 16)


@test
def takeover_of_a_host_without_record(lab):
    path = lab.image("b.qcow2")
    before = sha(path)
    lab.mkclaim("leave", "b.qcow2", "sealed", host=UUID_B)
    os.unlink(os.path.join(lab.ds, ".diskguard", "hosts", UUID_B))
    expect(lab.fsck("-y", "--takeover", UUID_B, "--confirm-host-is-down"), 1)
    assert sha(path) == before


@test
def takeover_of_a_live_host_is_refused(lab):
    lab.image("b.qcow2")
    lab.mkclaim("leave", "b.qcow2", "sealed", host=UUID_B)
    lab.fsck("-p")
    live = lab.helper("hold", host=UUID_B)
    frozen = lab.tree()
    r = expect(lab.fsck("-y", "--takeover", UUID_B, "--confirm-host-is-down"), 8)
    assert "is alive" in r.err and "is locked" in r.out, r
    unchanged(lab, frozen, probed=True)
    lab.stop(live)
    expect(lab.fsck("-y", "--takeover", UUID_B, "--confirm-host-is-down"), 1)


@test
def claims_of_vanished_images_are_removed_when_no_daemon_lives(lab):
    gone, there = lab.image("gone.qcow2"), lab.image("there.qcow2")
    for name in ("gone.qcow2", "there.qcow2"):
        lab.mkclaim("leave", name, "sealed", host=UUID_B)
    expect(lab.fsck("-p", host=UUID_B), 1)
    os.unlink(gone)
    frozen = lab.claims()
    assert len(frozen) == 2
    live = lab.helper("hold", host=UUID_B)
    r = expect(lab.fsck("-y", "--json"), 0)
    assert lab.code(r) == [] and lab.claims() == frozen, r
    lab.stop(live)
    for options in (("-n",), ("-p", "--fence=none")):
        r = expect(lab.fsck("--json", *options), 0)
        assert lab.code(r) == [] and lab.claims() == frozen, r
    r = expect(lab.fsck("-p", "--json"), 0)
    assert lab.code(r) == ["gone"] and lab.claims() == lab.claims(there), r
    assert os.stat(os.path.join(lab.ds, ".diskguard", "floor")).st_size == 1
    r = expect(lab.fsck("-p", "--json"), 0)
    assert lab.code(r) == [] and lab.claims() == lab.claims(there), r


@test
def takeover_beside_our_own_live_daemon(lab):
    a, b = lab.image("a.qcow2"), lab.image("b.qcow2")
    before = sha(b)
    lab.mkclaim("leave", "b.qcow2", "sealed", host=UUID_B)
    lab.helper("write", "a.qcow2")
    mine = sha(a), lab.claim_path(a), sha(lab.claim_path(a))
    expect(lab.fsck("-y", "--takeover", UUID_B, "--confirm-host-is-down"), 1)
    assert sha(b) == before and lab.claim_state(b) == "free"
    assert (sha(a), lab.claim_path(a), sha(lab.claim_path(a))) == mine
    r = expect(lab.fsck("-n", "--json"), 0)
    assert lab.code(r) == ["held-here"], r


@test
def beside_our_own_live_daemon(lab):
    path = lab.image("a.qcow2")
    before = sha(path)
    live = lab.helper("write", "a.qcow2")
    frozen = lab.tree()
    for mode in ("-p", "-y"):
        r = expect(lab.fsck(mode), 8)
        assert "fsck.diskguard -n" in r.err, r
    unchanged(lab, frozen, probed=True)
    frozen = lab.tree()
    r = expect(lab.fsck("-n", "--json"), 0)
    assert lab.code(r) == ["held-here"] and r.json()["host"]["daemon_runs"], r
    unchanged(lab, frozen)
    r = expect(lab.fsck("-n", "--json", host=UUID_B), 0)
    assert lab.code(r) == ["foreign"] and "runs" in r.json()["found"][0]["detail"], r
    lab.stop(live)
    expect(lab.fsck("-p"), 1)
    assert sha(path) == before


@test
def somebody_can_still_write(lab):
    path = lab.image("a.qcow2")
    before = sha(path)
    lab.mkclaim("leave", "a.qcow2", "sealed")
    expect(lab.fsck("-n"), 4)
    with open(path, "r+b", buffering=0) as f:
        # struct flock: type, whence, start, length, pid
        fcntl.fcntl(f, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, FENCE, 1, 0))
        frozen = lab.tree()
        r = expect(lab.fsck("-n", "--json"), 4)
        assert lab.code(r) == ["busy-writer"], r
        unchanged(lab, frozen)
        sealed = sha(path), sha(lab.claim_path(path)), lab.claims()
        r = expect(lab.fsck("-y", "--json"), 4)
        assert lab.code(r) == ["busy-writer"], r
        assert (sha(path), sha(lab.claim_path(path)), lab.claims()) == sealed
    expect(lab.fsck("-y"), 1)
    assert sha(path) == before


@test
def lost_state_directory(lab):
    path = lab.image("a.qcow2")
    before = sha(path)
    lab.mkclaim("leave", "a.qcow2", "sealed")
    shutil.rmtree(lab.state(UUID_A))
    frozen = lab.tree()
    r = expect(lab.fsck("-n", "--json"), 4)
    assert "lost-installation" in lab.code(r), r
    unchanged(lab, frozen)
    assert not os.path.exists(lab.state(UUID_A))
    r = expect(lab.fsck("-y"), 4)
    assert "--takeover %s --confirm-host-is-down" % UUID_A in r.out, r
    shutil.rmtree(lab.state(UUID_A))
    unchanged(lab, frozen, probed=True)
    assert lab.run(*lab.mkclaim_args("leave", "a.qcow2", "claimed")).rc != 0  # a daemon could not start
    expect(lab.fsck("-y", "--takeover", UUID_A), 16)
    expect(lab.fsck("-y", "--takeover", UUID_A, "--confirm-host-is-down"), 1)
    assert sha(path) == before
    clean(lab)
    lab.mkclaim("leave", "a.qcow2", "sealed")  # now it can
    expect(lab.fsck("-p"), 1)


@test
def lost_state_directory_and_record(lab):
    path = lab.image("a.qcow2")
    before = sha(path)
    lab.mkclaim("leave", "a.qcow2", "sealed")
    shutil.rmtree(lab.state(UUID_A))
    os.unlink(os.path.join(lab.ds, ".diskguard", "hosts", UUID_A))
    r = expect(lab.fsck("-y", "--json"), 4)
    assert lab.code(r) == ["foreign", "lost-installation"], r
    expect(lab.fsck("-y", "--takeover", UUID_A, "--confirm-host-is-down"), 1)
    assert sha(path) == before
    clean(lab)


@test
def cloned_machine_id(lab):
    lab.image("a.qcow2")
    lab.helper("write", "a.qcow2")
    frozen = lab.tree()
    clone = ["--host-id=" + UUID_A, "--state-dir=" + os.path.join(lab.dir, "clone")]
    r = expect(lab.run(lab.prog["fsck"], *clone, "-y", lab.ds), 8)
    assert "clone" in r.err, r
    r = lab.run(lab.prog["fsck"], *clone, "-y", "--takeover", UUID_A, "--confirm-host-is-down", lab.ds)
    expect(r, 8)
    unchanged(lab, frozen, probed=True)
    frozen = lab.tree()
    expect(lab.run(lab.prog["fsck"], *clone, "-n", lab.ds), 0)
    unchanged(lab, frozen)


@test
def damaged_host_record(lab):
    path = lab.image("a.qcow2")
    before = sha(path)
    lab.mkclaim("leave", "a.qcow2", "sealed")
    with open(os.path.join(lab.ds, ".diskguard", "hosts", UUID_A), "r+b") as f:
        f.write(b"?" * 2048)
    expect(lab.fsck("-n"), 4)
    r = expect(lab.fsck("-y"), 8)
    assert "--takeover" in r.err, r
    expect(lab.fsck("-y", "--takeover", UUID_A, "--confirm-host-is-down"), 1)
    assert sha(path) == before
    clean(lab)


if __name__ == "__main__":
    main("test_fsck_hosts")
