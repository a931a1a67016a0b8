#!/usr/bin/env python3
"""diskguardctl on the datastore itself. Usage: test_ctl.py BUILD-DIRECTORY [NAME-PART]"""
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import threading
import time
import zlib

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lab import NOBODY, STATES, UUID_A, UUID_B, expect, main, test, until  # noqa: E402

def raw(lab, *args, **kw):
    """On the datastore itself; nothing that only asks may change it."""
    before = lab.tree()
    r = lab.ctl("--datastore", lab.ds, *args, **kw)
    assert lab.tree() == before, "%r changed the datastore" % (args,)
    return r


def versions(o):
    """Every object of views, images and hosts carries the version."""
    assert o["version"] == 1, o
    for key in ("views", "images", "hosts"):
        for one in o.get(key, []):
            versions(one)
    return o


# ---- init ----


@test
def init_once(lab):
    assert "diskguard %s MOUNTPOINT" % lab.ds in lab.init.out, lab.init
    r = expect(lab.ctl("init", lab.ds), 3)
    uuid = re.search(r"uuid (\S+)", lab.init.out).group(1)
    assert uuid in r.out, r
    r = expect(lab.ctl("--json", "init", lab.ds), 3)
    assert r.json()["uuid"] == uuid and not r.json()["made"]
    other = os.path.join(lab.dir, "other")
    os.mkdir(other)
    r = expect(lab.ctl("init", "--json", other), 0)
    assert r.json()["made"] and r.json()["datastore"] == other and versions(r.json())
    assert os.stat(os.path.join(other, ".diskguard")).st_mode & 0o7777 == 0o700


@test
def init_of_a_wrong_thing(lab):
    for what in (os.path.join(lab.dir, "missing"), "/dev/null", os.path.join(lab.ds, ".diskguard", "datastore")):
        r = expect(lab.ctl("init", what), 1)
        assert r.err.startswith("diskguardctl: ") and r.err.count("\n") == 1, r


@test
def init_by_owner_only(lab):
    os.chmod(lab.dir, 0o755)
    mine, theirs = os.path.join(lab.dir, "mine"), os.path.join(lab.dir, "theirs")
    os.mkdir(mine)
    os.mkdir(theirs)
    os.chmod(theirs, 0o777)
    os.chown(mine, 12345, 12345)
    program = shutil.copy(lab.prog["ctl"], lab.dir)  # the build directory may not be theirs to enter
    r = expect(lab.run(*NOBODY, program, "init", theirs), 1)
    assert "owner" in r.err and os.listdir(theirs) == [], r
    expect(lab.run(*NOBODY, program, "init", mine), 0)


# ---- the datastore itself ----


@test
def list_of_nothing(lab):
    lab.image("a.qcow2")
    r = expect(raw(lab, "list"), 0)
    assert r.out.startswith("IMAGE ") and r.out.count("\n") == 1 and r.err == "", r
    o = versions(expect(raw(lab, "list", "--json"), 0).json())
    assert o["views"][0]["images"] == [] and o["views"][0]["complete"] and o["views"][0]["mountpoint"] is None


@test
def list_of_everything(lab):
    for state in STATES:
        lab.image("dir/%s.qcow2" % state, "3G")
        lab.mkclaim("leave", "dir/%s.qcow2" % state, state, options=["--pid=4711"])
    lab.image("free.qcow2")
    lab.mkclaim("leave", "free.qcow2", "sealed", host=UUID_B)
    lab.mkclaim("free", "free.qcow2", host=UUID_B)
    want = {"armed": "sealed", "mixed": "sealed"}
    r = expect(raw(lab, "list"), 4)
    for state in STATES:
        line = [x for x in r.out.splitlines() if x.startswith("dir/%s.qcow2 " % state)][0]
        assert re.split(r"  +", line)[1:6] == [want.get(state, state), "qcow2", "3 GiB", "nodea", "4711"], line
        assert line.endswith("claim only" if state == "claimed" else "header+claim"), line
    assert "free.qcow2" not in r.out and "does not run" in r.out and "which is this host" in r.out and lab.ds in r.out, r
    o = versions(expect(raw(lab, "--json", "list"), 4).json())
    images = {i["image"]: i for i in o["views"][0]["images"]}
    assert len(images) == len(STATES)
    one = images["dir/sealed.qcow2"]
    assert one["size"] == 3 << 30 and one["holder"]["pid"] == 4711 and one["holder"]["uuid"] == UUID_A and one["protection"] == "header+claim"
    assert one["problem"]["code"] == "holder-down" and one["holder"]["alive"] is False and one["inode"] == os.stat(lab.ds + "/" + one["image"]).st_ino
    o = raw(lab, "--json", "list", "--all").json()
    free = [i for i in o["views"][0]["images"] if i["state"] == "free"]
    assert len(free) == 1 and free[0]["holder"] is None and free[0]["problem"] is None and free[0]["protection"] == "none"
    # what is free is told under its name of now, and not when it was removed
    os.rename(lab.ds + "/" + free[0]["image"], lab.ds + "/moved.qcow2")
    free = [i["image"] for i in raw(lab, "--json", "list", "--all").json()["views"][0]["images"] if i["state"] == "free"]
    assert free == ["moved.qcow2"], free
    os.unlink(lab.ds + "/moved.qcow2")
    assert not [i for i in raw(lab, "--json", "list", "--all").json()["views"][0]["images"] if i["state"] == "free"]


@test
def a_live_holder_is_no_problem(lab):
    lab.image("a.qcow2")
    helper = lab.helper("write", "a.qcow2")
    assert len(expect(raw(lab, "list"), 0).out.splitlines()) == 2
    r = expect(raw(lab, "show", "a.qcow2"), 0)
    assert "runs (its record is locked)" in r.out and "nodea" in r.out, r
    r = expect(raw(lab, "why", "a.qcow2"), 0)
    for text in ("Refused", "nodea", "Process %d (mkclaim)" % helper.pid, "is locked", "diskguardctl wait --datastore %s a.qcow2" % lab.ds):
        assert text in r.out, (text, r)
    o = expect(raw(lab, "why", "--json", "a.qcow2"), 0).json()
    assert o["refused"] and o["reason"] == "held" and versions(o)
    o = expect(raw(lab, "hosts", "--json"), 0).json()["views"][0]["hosts"]
    assert o[0]["alive"] is True and o[0]["claims"] == 1 and o[0]["name"] == "nodea"
    lab.stop(helper)
    r = expect(raw(lab, "why", "a.qcow2"), 4)
    assert "not locked" in r.out and "start diskguard on nodea" in r.out and "has ended" in r.out, r


@test
def an_older_daemon_left_it(lab):
    lab.image("a.qcow2")
    lab.mkclaim("leave", "a.qcow2", "sealed")
    second = int(time.time())
    until(lambda: int(time.time()) > second, "the next second: times are told apart by it")
    lab.helper("hold")
    r = expect(raw(lab, "why", "--json", "a.qcow2"), 4)
    assert r.json()["reason"] == "left-behind", r


@test
def show_of_all_kinds(lab):
    path = lab.image("a.qcow2")
    o = versions(expect(raw(lab, "show", "--json", "a.qcow2"), 0).json())
    assert o["state"] == "free" and o["claim"] is None and o["header"]["verdict"] == "image" and o["size"] == 64 << 20 and o["format"] == "qcow2"
    lab.mkclaim("leave", "a.qcow2", "sealed")
    o = versions(expect(raw(lab, "show", "--json", path), 4).json())
    assert o["header"]["verdict"] == "sealed" and o["header"]["state"] == "sealed" and o["claim"]["generation"] == 1
    assert o["claim"]["extents"][0] == {"offset": 24, "length": 8, "true": "%016x" % (64 << 20), "sealed": "5345414c45440000"}
    with open(path, "r+b") as f:
        f.seek(24)
        f.write(b"\0" * 7 + b"\2")
    assert expect(raw(lab, "show", "--json", path), 4).json()["problem"]["code"] == "alien"
    assert "past the view" in expect(raw(lab, "show", path), 4).out
    with open(lab.claim_path(path), "w") as f:
        f.write("nonsense")
    o = expect(raw(lab, "show", "--json", path), 4).json()
    assert o["problem"]["code"] == "bad-claim" and o["claim"] == {"generation": 1, "readable": False} and o["state"] == "unreadable"
    expect(raw(lab, "show", path), 4)
    assert "unreadable" in expect(raw(lab, "list"), 4).out
    r = expect(raw(lab, "why", path), 4)
    assert r.out.splitlines()[1].strip().startswith("Refused: the claim record is damaged"), r
    expect(raw(lab, "wait", path), 4)


@test
def why_of_all_kinds(lab):
    cases = {"free.qcow2": (0, "free", False), "notes.txt": (0, "not-an-image", False), "disk.raw": (0, "free", False),
             "zero.qcow2": (0, "free", False), "lies.qcow2": (0, "damaged", False), "orphan.qcow2": (4, "orphan", True),
             "left.qcow2": (4, "holder-down", True)}
    for name in cases:
        if name.endswith("qcow2"):
            lab.image(name, "0" if name.startswith("zero") else "64M")
        else:
            with open(os.path.join(lab.ds, name), "w") as f:
                f.write("hello")
    with open(os.path.join(lab.ds, "lies.qcow2"), "r+b") as f:
        f.seek(20)
        f.write(struct.pack(">I", 77))
    for name in ("orphan.qcow2", "left.qcow2"):
        lab.mkclaim("leave", name, "sealed")
    os.unlink(lab.claim_path(os.path.join(lab.ds, "orphan.qcow2")))
    for name, (rc, reason, refused) in cases.items():
        o = expect(raw(lab, "why", "--json", name), rc).json()
        assert (o["reason"], o["refused"]) == (reason, refused), o
        r = expect(raw(lab, "why", name), rc)
        assert r.out.splitlines()[1].startswith("  Refused" if refused else "  Granted"), r
        assert not refused or "Way out: " in r.out, r
    assert "nodea size=" in raw(lab, "why", "orphan.qcow2").out


@test
def replaced_file_with_the_same_inode(lab):
    path = lab.image("a.qcow2")
    lab.mkclaim("leave", "a.qcow2", "sealed")
    claim = lab.claim_path(path)
    with open(claim, "rb") as f:
        text = f.read()
    # as if the number had been given out again: the record carries another handle
    body = re.sub(rb"(handle=\S+ )([0-9a-f]{2})", lambda m: m.group(1) + b"%02x" % (int(m.group(2), 16) ^ 1), text[:text.rindex(b"sum=")])
    with open(claim, "wb") as f:
        f.write(body + b"sum=%08x\n" % zlib.crc32(body))
    assert expect(raw(lab, "show", "--json", "a.qcow2"), 4).json()["problem"]["code"] == "wrong-handle"


@test
def naming_an_image(lab):
    path = lab.image("dir/a.qcow2")
    os.symlink("dir/a.qcow2", os.path.join(lab.ds, "link"))
    os.symlink(lab.ds, os.path.join(lab.dir, "dslink"))
    os.mkfifo(os.path.join(lab.ds, "fifo"))
    for name, cwd in ((path, "/"), ("dir/a.qcow2", "/"), ("ds/dir/../dir/a.qcow2", lab.dir), ("a.qcow2", os.path.join(lab.ds, "dir")),
                      (os.path.join(lab.dir, "dslink", "dir", "a.qcow2"), "/")):
        r = expect(raw(lab, "show", "--json", name, cwd=cwd), 0)
        assert r.json()["image"] == "dir/a.qcow2", r
    expect(raw(lab, "show", os.path.join(lab.ds, "link")), 0)  # a path like any other
    r = expect(raw(lab, "show", "link"), 1)  # below the datastore nothing is followed
    assert "dir/a.qcow2" in r.err, r
    for name in ("dir", "fifo", "missing", "/etc/passwd", "../../etc/passwd", ".diskguard/../../x"):
        r = expect(raw(lab, "why", name), 1)
        assert r.err.count("\n") == 1, r


@test
def waiting(lab):
    path = lab.image("a.qcow2")
    expect(raw(lab, "wait", path), 0)
    lab.mkclaim("leave", "a.qcow2", "sealed")
    expect(raw(lab, "wait", "--timeout=0", path), 3)
    began = time.monotonic()
    r = expect(raw(lab, "wait", "--timeout=1", path, "--json"), 3)
    assert 0.9 < time.monotonic() - began < 5 and r.json()["free"] is False and "nodea" in r.err, r
    timer = threading.Timer(1, lambda: lab.mkclaim("free", "a.qcow2"))
    timer.start()
    r = expect(lab.ctl("--datastore", lab.ds, "wait", "--json", "--timeout=20", path), 0)
    timer.join()
    assert r.json()["free"] is True and lab.claim_state(path) == "free"


@test
def hosts_table(lab):
    lab.image("a.qcow2")
    lab.mkclaim("leave", "a.qcow2", "sealed", host=UUID_B)
    lab.helper("hold")
    with open(os.path.join(lab.ds, ".diskguard", "hosts", "44444444-4444-4444-8444-444444444444"), "w") as f:
        f.write("?")
    r = expect(raw(lab, "hosts"), 0)
    rows = {re.split(r"  +", x)[1]: re.split(r"  +", x) for x in r.out.splitlines()}
    assert rows[UUID_A][0] == "nodea" and rows[UUID_A][2] == "yes" and rows[UUID_A][4] == "0", r
    assert rows[UUID_B][0] == "nodeb" and rows[UUID_B][2] == "no" and rows[UUID_B][4] == "1", r
    assert "damaged" in r.out, r
    assert len(versions(raw(lab, "hosts", "--json").json())["views"][0]["hosts"]) == 3


@test
def names_from_strangers(lab):
    name = "x\x1b]0;\n\udcff.qcow2"
    lab.image(name)
    lab.mkclaim("leave", name, "sealed")
    for args in (["list"], ["show", name], ["why", name]):
        r = raw(lab, *args)
        assert "\x1b" not in r.out and "x?]0;?" in r.out, r
        o = json.loads(raw(lab, "--json", *args).out.encode("utf-8", "strict"))
        assert o.get("image", o.get("views", [{"images": [o]}])[0]["images"][0].get("image")) == "x\x1b]0;\n\ufffd.qcow2", o


@test
def commands_to_copy(lab):
    """A command that is suggested can be pasted into a shell, whatever the names are."""
    os.rename(lab.ds, lab.dir + "/it's $HOME")
    lab.ds = lab.dir + "/it's $HOME"
    shutil.rmtree(os.path.join(lab.ds, ".diskguard"))
    r = expect(lab.ctl("init", lab.ds), 0)
    assert shlex.split(re.search("mount -t diskguard .* MOUNTPOINT$", r.out, re.M).group())[3] == lab.ds, r
    assert "\n  %s MOUNTPOINT diskguard _netdev," % lab.ds.replace(" ", "\\040") in r.out, r
    name = "a b;c.qcow2"
    lab.image(name)
    helper = lab.helper("write", name)
    r = expect(raw(lab, "why", name), 0)
    command = shlex.split(re.search(r"diskguardctl wait (.*)\.$", r.out, re.M).group(1))
    assert command == ["--datastore", lab.ds, name], r
    lab.stop(helper)
    r = expect(raw(lab, "list"), 4)
    assert shlex.split(re.search(r"fsck\.diskguard -p .*", r.out).group().rstrip("."))[-1] == lab.ds, r
    r = expect(lab.fsck("-n"), 4)
    assert shlex.split(re.search(r"Way out: .*(fsck\.diskguard -p .*)\.$", r.out, re.M).group(1))[-1] == lab.ds, r


@test
def one_word_for_the_fence(lab):
    lab.image("a.qcow2")
    words = {raw(lab, "list", "--json").json()["views"][0]["fence"], raw(lab, "show", "--json", "a.qcow2").json()["datastore"]["fence"],
             lab.ctl("init", "--json", lab.ds).json()["fence"]}
    assert len(words) == 1 and words <= {"ofd", "flock", "none"}, words


@test
def usage(lab):
    for args in ([], ["nonsense"], ["show"], ["init"], ["wait"], ["list", "a", "b"], ["--nonsense"], ["wait", "--timeout=x", "y"],
                 ["--datastore", lab.ds, "list", "x"], ["--datastore", lab.ds, "retry", "x"],
                 ["--datastore", lab.ds, "takeover", "x"], ["takeover"], ["takeover", "--wait=x", "y"]):
        expect(lab.ctl(*args), 2)
    assert expect(lab.ctl("--version"), 0).out.startswith("diskguardctl ")
    assert "--takeover" not in expect(lab.ctl("--help"), 0).out  # a person's word is fsck.diskguard's business
    expect(lab.ctl("show", "/etc/passwd"), 1)
    expect(lab.ctl("list", "/etc"), 1)
    expect(lab.ctl("--datastore", lab.dir, "list"), 1)
    r = lab.ctl("--datastore", lab.ds, "list", stdin=subprocess.DEVNULL)
    expect(r, 0)


if __name__ == "__main__":
    main("test_ctl")
