#!/usr/bin/env python3
"""diskguardctl on raw datastores, through views, and at views that hang. Usage: test_ctl.py BUILD-DIRECTORY [NAME-PART]"""
import ctypes
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lab import STATES, UUID_A, UUID_B, Skip, expect, main, sha, tree  # noqa: E402

TESTS = []
NOBODY = ("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups")


def test(f):
    TESTS.append(f)
    return f


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
    assert "free.qcow2" not in r.out and "does not run" in r.out and "--takeover %s" % UUID_A in r.out and lab.ds in r.out, r
    o = versions(expect(raw(lab, "--json", "list"), 4).json())
    images = {i["image"]: i for i in o["views"][0]["images"]}
    assert len(images) == len(STATES)
    one = images["dir/sealed.qcow2"]
    assert one["size"] == 3 << 30 and one["holder"]["pid"] == 4711 and one["holder"]["uuid"] == UUID_A and one["protection"] == "header+claim"
    assert one["problem"]["code"] == "holder-down" and one["holder"]["alive"] is False and one["inode"] == os.stat(lab.ds + "/" + one["image"]).st_ino
    o = raw(lab, "--json", "list", "--all").json()
    free = [i for i in o["views"][0]["images"] if i["state"] == "free"]
    assert len(free) == 1 and free[0]["holder"] is None and free[0]["problem"] is None and free[0]["protection"] == "none"


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
    time.sleep(1.1)  # times are told apart by the second
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
             "zero.qcow2": (0, "too-small", True), "lies.qcow2": (4, "lies", True), "orphan.qcow2": (4, "orphan", True),
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
    import zlib
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
        assert "x\x1b]0;\n\ufffd.qcow2" in json.dumps(o, ensure_ascii=False).encode().decode("unicode_escape", "replace") or o


@test
def usage(lab):
    for args in ([], ["nonsense"], ["show"], ["init"], ["wait"], ["list", "a", "b"], ["--nonsense"], ["wait", "--timeout=x", "y"],
                 ["--datastore", lab.ds, "list", "x"], ["--datastore", lab.ds, "retry", "x"]):
        expect(lab.ctl(*args), 2)
    assert expect(lab.ctl("--version"), 0).out.startswith("diskguardctl ")
    assert "takeover" not in expect(lab.ctl("--help"), 0).out
    expect(lab.ctl("show", "/etc/passwd"), 1)
    expect(lab.ctl("list", "/etc"), 1)
    expect(lab.ctl("--datastore", lab.dir, "list"), 1)
    r = lab.ctl("--datastore", lab.ds, "list", stdin=subprocess.DEVNULL)
    expect(r, 0)


# ---- through views ----


class Views:
    """Real diskguards over lab.ds."""

    def __init__(self, lab):
        if not os.access(lab.prog["daemon"], os.X_OK) or not os.path.exists("/dev/fuse"):
            raise Skip("no daemon, or no FUSE")
        self.lab, self.running = lab, []

    def mount(self, host, options=""):
        point = os.path.join(self.lab.dir, "view-" + host[:4])
        os.makedirs(point, exist_ok=True)
        log = open(os.path.join(self.lab.dir, "log-" + host[:4]), "a")
        p = subprocess.Popen([self.lab.prog["daemon"], self.lab.ds, point, "-f", "-o",
                              "wait=0,host-id=%s,state-dir=%s%s" % (host, self.lab.state(host), options)], stdout=log, stderr=log)
        log.close()
        self.running.append((p, point))
        for _ in range(100):
            if os.path.ismount(point) and self.lab.ctl("list", "--json", point).json()["views"][0]["daemon"]:
                return point
            time.sleep(0.1)
        raise AssertionError("no view: " + open(os.path.join(self.lab.dir, "log-" + host[:4])).read())

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for p, point in self.running:
            subprocess.run(["umount", "-l", point], stderr=subprocess.DEVNULL)
            try:
                p.wait(20)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()


@test
def two_views(lab):
    lab.image("dir/a.qcow2")
    with Views(lab) as views:
        a, b = views.mount(UUID_A), views.mount(UUID_B)
        for v in (a, b):
            expect(lab.ctl("wait", "--timeout=0", v + "/dir/a.qcow2"), 0)
        with open(a + "/dir/a.qcow2", "r+b"):
            here = expect(lab.ctl("show", "--json", a + "/dir/a.qcow2"), 0).json()
            there = expect(lab.ctl("show", "--json", b + "/dir/a.qcow2"), 0).json()
            for o in (here, there):
                assert o["state"] == "sealed" and o["holder"]["pid"] == os.getpid() and o["holder"]["uuid"] == UUID_A, o
                assert o["header"]["verdict"] == "sealed" and o["holder"]["alive"] is True
            assert here["here"] and not there["here"] and here["writers"] == 1
            r = expect(lab.ctl("why", b + "/dir/a.qcow2"), 0)
            assert "Refused" in r.out and "Process %d" % os.getpid() in r.out, r
            r = expect(lab.ctl("why", a + "/dir/a.qcow2"), 0)
            assert "The process itself may open" in r.out, r
            expect(lab.ctl("wait", "--timeout=0", b + "/dir/a.qcow2"), 3)
            r = lab.ctl("list")  # with whatever else is mounted here
            assert a in r.out and b in r.out and r.out.count("dir/a.qcow2") >= 2, r
            r = expect(lab.ctl("list", b), 0)
            assert r.out.count("dir/a.qcow2") == 1, r
            expect(lab.ctl("show", "a.qcow2", cwd=a + "/dir"), 0)
            expect(lab.ctl("retry", a + "/dir/a.qcow2"), 0)
            o = lab.fsck("-n", "--json")
            assert lab.code(expect(o, 0)) == ["held-here"], o
        expect(lab.ctl("wait", "--timeout=10", b + "/dir/a.qcow2"), 0)
        for command in (["init", a], ["--datastore", a, "list"]):
            r = lab.ctl(*command)
            assert r.rc in (1, 2) and lab.ds in r.err, r
        expect(lab.run(lab.prog["fsck"], "-n", a), 16)


@test
def as_another_user(lab):
    lab.image("a.qcow2")
    lab.image("b.qcow2")
    with Views(lab) as views:
        a = views.mount(UUID_A)
        os.chmod(lab.dir, 0o755)
        program = shutil.copy(lab.prog["ctl"], lab.dir)
        with open(a + "/a.qcow2", "r+b"):
            r = expect(lab.run(*NOBODY, program, "list", a), 0)
            assert "a.qcow2" in r.out and "root" in r.err, r
            o = lab.run(*NOBODY, program, "list", "--json", a).json()["views"][0]
            assert o["daemon"] and not o["complete"] and len(o["images"]) == 1
            r = expect(lab.run(*NOBODY, program, "why", a + "/a.qcow2"), 0)
            assert "Refused" in r.out and str(os.getpid()) in r.out, r
            r = expect(lab.run(*NOBODY, program, "why", a + "/b.qcow2"), 1)
            assert "root" in r.err, r
            r = expect(lab.run(*NOBODY, program, "retry", a + "/a.qcow2"), 1)
            assert "root" in r.err, r
            expect(lab.run(*NOBODY, program, "hosts", a), 1)


@test
def control_protocol(lab):
    with Views(lab) as views:
        a = views.mount(UUID_A, ",threshold=1048576,writers=host,raw=*.disk")
        st = os.stat(a)
        path = "/run/diskguard/%d:%d.sock" % (os.major(st.st_dev), os.minor(st.st_dev))
        ino = os.stat(path).st_ino
        assert os.stat(path).st_mode & 0o777 == 0o666 and os.stat("/run/diskguard").st_mode & 0o777 == 0o755

        def ask(line):
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(10)
                s.connect(path)
                s.sendall(line)
                answer = b""
                while True:
                    more = s.recv(65536)
                    if not more:
                        return json.loads(answer) if answer else None
                    answer += more

        o = ask(b'{"version":1,"command":"status"}\n')
        assert o["ok"] and o["version"] == 1 and o["mountpoint"] == a and o["datastore"] == lab.ds and o["host"]["uuid"] == UUID_A
        assert o["options"]["threshold"] == 1 << 20 and o["options"]["writers"] == "host" and o["options"]["raw_globs"] == ["*.disk"]
        assert o["options"]["wait"] == 0 and o["options"]["seal"] == "refuse" and o["pid"] == views.running[0][0].pid
        assert ask(b'{"version":1,"command":"list"}\n')["images"] == []
        assert ask(b'{"version":1,"command":"hosts"}\n')["hosts"][0]["uuid"] == UUID_A
        assert ask(b'{"version":1,"command":"retry","image":"x"}\n')["ok"]
        for bad in (b"\n", b"{}\n", b"[]\n", b"nonsense\n", b'{"version":2,"command":"list"}\n', b'{"version":1,"command":7}\n',
                    b'{"version":1,"command":"destroy"}\n', b"[" * 8000 + b"\n", b"x" * 8192, b"\0\n"):
            o = ask(bad)
            assert o["ok"] is False and o["error"], (bad[:40], o)
        # a client that says nothing delays others by 2 seconds at most; one that leaves, not at all
        silent = socket.socket(socket.AF_UNIX)
        silent.connect(path)
        began = time.monotonic()
        assert ask(b'{"version":1,"command":"list"}\n')["ok"] and time.monotonic() - began < 4
        silent.close()
        for _ in range(50):
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(path)
                s.sendall(b'{"version":1,"command":"list"}\n')
        assert ask(b'{"version":1,"command":"list"}\n')["ok"]
        lab.image("small.qcow2", "512K")
        r = expect(lab.ctl("why", "--json", a + "/small.qcow2"), 0)
        assert r.json()["reason"] == "too-small", r
        with open(lab.ds + "/x.disk", "w") as f:
            f.write("x")
        assert lab.ctl("why", "--json", a + "/x.disk").json()["reason"] == "free"
    # its number may be another view's by now
    assert not os.path.exists(path) or os.stat(path).st_ino != ino


@test
def a_dead_daemon(lab):
    lab.image("a.qcow2")
    with Views(lab) as views:
        a = views.mount(UUID_A)
        st = os.stat(a)
        path = "/run/diskguard/%d:%d.sock" % (os.major(st.st_dev), os.minor(st.st_dev))
        before = sha(lab.ds + "/a.qcow2")
        f = open(a + "/a.qcow2", "r+b")
        views.running[0][0].kill()
        views.running[0][0].wait()
        assert os.path.exists(path)
        r = expect(lab.ctl("list", a), 4)
        assert "dead" in r.err and "holder-down" in lab.ctl("list", "--json", a).out and "does not run" in r.out, r
        expect(lab.ctl("why", a + "/a.qcow2"), 4)
        subprocess.run(["umount", "-l", a])
        try:
            f.close()
        except OSError:
            pass
        expect(lab.fsck("-p"), 1)
        assert sha(lab.ds + "/a.qcow2") == before
        views.mount(UUID_A)  # takes the dead one's socket over, if it gets the same number
        expect(lab.ctl("list", a), 0)


@test
def a_number_that_is_used_again(lab):
    with Views(lab) as views:
        for i in range(6):  # the kernel gives the lowest free number: a view's daemon may end after its successor has started
            a = views.mount((UUID_A, UUID_B)[i % 2])
            subprocess.run(["umount", a], check=True)
        a = views.mount(UUID_A if views.running[0][0].wait(20) is not None else UUID_B)
        for p, _ in views.running[:-1]:
            p.wait(20)
        assert lab.ctl("list", "--json", a).json()["views"][0]["daemon"]


class HungView:
    """A FUSE mount that nobody serves: any access to it blocks for ever."""

    def __init__(self, lab):
        self.point = os.path.join(lab.dir, "hung")
        os.mkdir(self.point)
        try:
            self.fd = os.open("/dev/fuse", os.O_RDWR)
        except OSError:
            raise Skip("no /dev/fuse")
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(lab.ds.encode(), self.point.encode(), b"fuse.diskguard", 0,
                      b"fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other" % self.fd) != 0:
            os.close(self.fd)
            raise Skip("cannot mount: " + os.strerror(ctypes.get_errno()))
        with open("/proc/self/mountinfo") as f:
            self.dev = [x.split()[2] for x in f if x.split()[4] == self.point][0]

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        os.close(self.fd)  # aborts the connection: whoever hangs goes on with an error
        subprocess.run(["umount", "-l", self.point])


@test
def a_view_that_hangs(lab):
    path = lab.image("dir/a.qcow2")
    lab.mkclaim("leave", "dir/a.qcow2", "sealed")
    with HungView(lab) as view:
        began = time.monotonic()
        os.symlink(view.point, os.path.join(lab.dir, "via"))
        r = expect(lab.ctl("list", view.point), 4)
        assert "dir/a.qcow2" in r.out and "no control socket" in r.err, r
        for name in (view.point + "/dir/a.qcow2", os.path.join(lab.dir, "via", "dir", ".", "a.qcow2")):
            r = expect(lab.ctl("why", "--json", name), 4)
            assert r.json()["inode"] == os.stat(path).st_ino and r.json()["reason"] == "holder-down", r
        expect(lab.ctl("hosts", view.point), 0)
        expect(lab.ctl("wait", "--timeout=0", view.point + "/dir/a.qcow2"), 3)
        expect(lab.ctl("retry", view.point + "/dir/a.qcow2"), 1)
        assert time.monotonic() - began < 10


def answering(path, answer):
    """A daemon that says `answer` to whatever it is asked."""
    os.makedirs("/run/diskguard", exist_ok=True)
    s = socket.socket(socket.AF_UNIX)
    s.bind(path)
    s.listen(8)

    def serve():
        while True:
            try:
                c = s.accept()[0]
            except OSError:
                return
            try:
                c.recv(8192)
                if answer is None:
                    time.sleep(7)
                else:
                    c.sendall(answer)
            except OSError:
                pass
            c.close()

    threading.Thread(target=serve, daemon=True).start()
    return s


@test
def strange_daemons(lab):
    lab.image("a.qcow2")
    lab.mkclaim("leave", "a.qcow2", "sealed")
    with HungView(lab) as view:
        path = "/run/diskguard/%s.sock" % view.dev
        if os.path.exists(path):
            os.unlink(path)  # of a daemon that was killed
        for answer in (b"", b"nonsense\n", b"[]\n", b'{"version":9,"ok":true}\n', b'{"version":1}\n', b'{"version":1,"ok":true}\n',
                       b'{"version":1,"ok":true,"images":7,"options":[],"host":"x"}\n', b'{"version":1,"ok":true,"images":[7,{},null]}\n',
                       b'{"version":1,"ok":true,"uuid":"another","images":[]}\n', b'{"version":1,"ok":false,"error":"no"}\n', None):
            s = answering(path, answer)
            try:
                for args in (["list", view.point], ["show", view.point + "/a.qcow2"], ["why", view.point + "/a.qcow2"],
                             ["--json", "list", view.point]):
                    r = lab.ctl(*args)
                    assert r.rc in (0, 1, 4), (answer, args, r)
                    if answer is None:
                        assert "did not answer" in r.err + r.out, r
                        break
            finally:
                s.close()
                os.unlink(path)


@test
def fenced_and_stuck(lab):
    lab.image("a.qcow2")
    lab.mkclaim("leave", "a.qcow2", "sealed")
    ino = os.stat(lab.ds + "/a.qcow2").st_ino
    with HungView(lab) as view:
        path = "/run/diskguard/%s.sock" % view.dev
        if os.path.exists(path):
            os.unlink(path)
        for state, error in (("FENCED", 116), ("STUCK", 5), ("STUCK", 117), ("SEALED", 0), ("RESTORING", 0)):
            answer = {"version": 1, "ok": True, "datastore": lab.ds, "host": {"name": "nodea", "uuid": UUID_A}, "images": [
                {"image": "a.qcow2", "inode": ino, "generation": 1, "state": state, "pid": 1, "start": 2, "writers": 1, "format": "qcow2",
                 "size": 64 << 20, "since": "2026-01-01T00:00:00Z", "error": error, "sync_error": 0, "sealed": True}]}
            s = answering(path, json.dumps(answer).encode() + b"\n")
            try:
                r = expect(lab.ctl("list", "--json", view.point), 4 if error else 0)
                one = r.json()["views"][0]["images"][0]
                assert one["state"] == state.lower() and one["here"], one
                assert (one["problem"] or {}).get("code") == (state.lower() if error else None), one
                r = expect(lab.ctl("why", "--json", view.point + "/a.qcow2"), 4 if error else 0)
                assert r.json()["reason"] == {"RESTORING": "being-released", "SEALED": "held"}.get(state, state.lower()), r
                if error == 117:  # EUCLEAN: foreign bytes, which no retry can cure
                    assert "past the view" in lab.ctl("list", view.point).out
                elif error:
                    assert os.strerror(error) in lab.ctl("list", view.point).out
            finally:
                s.close()
                os.unlink(path)


if __name__ == "__main__":
    main(TESTS, "test_ctl")
