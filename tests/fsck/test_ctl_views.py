#!/usr/bin/env python3
"""diskguardctl through views: real ones, dead ones, and some that hang. Usage: test_ctl_views.py BUILD-DIRECTORY [NAME-PART]"""
import ctypes
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lab import NOBODY, UUID_A, UUID_B, Skip, expect, main, sha, test, until  # noqa: E402

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
        until(lambda: p.poll() is not None or (os.path.ismount(point) and self.lab.ctl("list", "--json", point).json()["views"][0]["daemon"]), "the view answers")
        assert p.poll() is None, "no view: " + open(os.path.join(self.lab.dir, "log-" + host[:4])).read()
        return point

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
        born = os.stat(path).st_ino, os.stat(path).st_mtime_ns
        assert os.stat(path).st_mode & 0o777 == 0o666 and os.stat("/run/diskguard").st_mode & 0o777 == 0o755

        def ask(line):
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(path)
                s.settimeout(10)
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
    assert not os.path.exists(path) or (os.stat(path).st_ino, os.stat(path).st_mtime_ns) != born


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
        for i in range(7):  # the kernel gives the lowest free number, maybe before the daemon of the view that had it has ended
            if i > 1:
                views.running[i - 2][0].wait(20)
            a = views.mount((UUID_A, UUID_B)[i % 2])
            if i < 6:
                subprocess.run(["umount", a], check=True)
        views.running[5][0].wait(20)
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
            dev = [x.split()[2] for x in f if x.split()[4] == self.point][0]
        self.socket = "/run/diskguard/%s.sock" % dev
        if os.path.exists(self.socket):
            os.unlink(self.socket)  # of a daemon that was killed: the number is ours now

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
                    while c.recv(8192):  # until the client gives up
                        pass
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
        path = view.socket
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
        path = view.socket
        for state, error in (("FENCED", errno.EKEYREVOKED), ("STUCK", 5), ("STUCK", 117), ("SEALED", 0), ("RESTORING", 0)):
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
                elif state == "FENCED":
                    assert "lost its claim" in lab.ctl("list", view.point).out
                elif error:
                    assert os.strerror(error) in lab.ctl("list", view.point).out
            finally:
                s.close()
                os.unlink(path)


if __name__ == "__main__":
    main("test_ctl_views")
