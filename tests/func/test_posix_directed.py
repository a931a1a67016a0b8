#!/usr/bin/env python3
"""test_posix_directed: the file-system part, by directed cases: permissions and ownership with two users, big directories, locks, special
files, direct I/O, and changes made underneath by another host."""
import errno
import fcntl
import mmap
import os
import re
import shutil
import socket
import stat
import time

import dgops
import dgtest
from dgqemu import make_qcow2
from dgtest import Fail, Proc, Suite, eq, must, ok, pair, raises, read_at, run, small_fs, suite_tmp, wait_for

suite = Suite(__file__, also=("asan",))
RDWR, RDONLY, CREAT = os.O_RDWR, os.O_RDONLY, os.O_CREAT
DENIED = errno.EACCES
FENCE = 1 << 62


def put(path, data=b"data", mode=0o644):
    with open(path, "wb") as f:
        f.write(data)
    os.chmod(path, mode)


@suite.case("two users: modes, groups, supplementary groups and search permission count")
def _(build):
    with pair(build, hosts=("a",)) as p, Proc(1001) as one, Proc(1002, 1002, (2000,)) as two:
        top = p.a.path("t")
        os.mkdir(top)
        os.chmod(top, 0o777)
        f = top + "/f"
        one.call("close", one.call("open", f, RDWR | CREAT, 0o600))
        eq(os.stat(p.ds.raw("t/f")).st_uid, 1001)
        raises(DENIED, two.call, "open", f, RDONLY)
        raises(errno.EPERM, two.call, "chmod", f, 0o666)
        raises(errno.EPERM, two.call, "utimens", f, 0, 0)
        raises(errno.EPERM, one.call, "chown", f, 1002, -1)
        raises(errno.EPERM, one.call, "chown", f, -1, 2000)
        os.chown(f, 1001, 2000)
        one.call("chmod", f, 0o640)
        two.call("close", two.call("open", f, RDONLY))
        raises(DENIED, two.call, "open", f, RDWR)
        raises(DENIED, two.call, "truncate", f, 0)
        one.call("mkdir", top + "/private", 0o700)
        one.call("close", one.call("open", top + "/private/x", RDWR | CREAT, 0o666))
        raises(DENIED, two.call, "stat", top + "/private/x")
        raises(DENIED, two.call, "open", top + "/private/y", RDWR | CREAT, 0o666)
        raises(DENIED, two.call, "listdir", top + "/private")
        raises(DENIED, two.call, "unlink", top + "/private/x")
        two.call("unlink", f)  # the directory is everybody's
        raises(DENIED, one.call, "mkdir", p.a.path("at-root"), 0o755)


@suite.case("new files belong to the caller: uid, gid, umask, set-gid directories, every kind of file")
def _(build):
    with pair(build, hosts=("a",)) as p, Proc(1001, 1001, (2000,)) as one:
        plain = os.path.join(p.ds.base, "plain")
        os.mkdir(plain)
        os.mkdir(p.a.path("t"))
        for mask in (0o022, 0o077, 0o000):
            one.call("umask", mask)
            found = []
            for top in (p.a.path("t"), plain):
                os.chown(top, 0, 2000)
                os.chmod(top, 0o2777)
                names = ["%s%o" % (kind, mask) for kind in "fdpsn"]
                one.call("close", one.call("open", "%s/%s" % (top, names[0]), RDWR | CREAT, 0o6777))
                one.call("mkdir", "%s/%s" % (top, names[1]), 0o777)
                one.call("mkfifo", "%s/%s" % (top, names[2]), 0o666)
                one.call("symlink", "x", "%s/%s" % (top, names[3]))
                one.call("bind_socket", "%s/%s" % (top, names[4]))
                found.append([dgops.lstat("%s/%s" % (top, n))[:4] for n in names])
            eq(found[0], found[1], "mode, uid, gid, links in the view and in a plain directory, umask %o" % mask)


@suite.case("access control lists: default ones are inherited, named users get in, as on the datastore")
def _(build):
    with pair(build, hosts=("a",)) as p, Proc(1001) as one, Proc(1002) as two, Proc(1003) as three:
        plain = os.path.join(p.ds.base, "plain")
        os.mkdir(plain)
        os.mkdir(p.ds.raw("t"))
        texts = []
        for raw, top in ((p.ds.raw("t"), p.a.path("t")), (plain, plain)):
            os.chmod(raw, 0o777)
            must("setfacl", "-d", "-m", "u:1002:rw,g:2000:r,m::rw,o::-", raw)
            one.call("umask", 0o077)
            one.call("close", one.call("open", top + "/f", RDWR | CREAT, 0o666))
            one.call("mkdir", top + "/d", 0o777)
            two.call("close", two.call("open", top + "/f", RDWR))
            raises(DENIED, three.call, "open", top + "/f", RDWR)
            texts.append(must("getfacl", "-nc", raw + "/f", raw + "/d"))
        eq(texts[0], texts[1], "lists of new files")
        must("setfacl", "-m", "u:1003:r", p.a.path("t/f"))
        three.call("close", three.call("open", p.a.path("t/f"), RDONLY))
        ok("user:1003:r--" in must("getfacl", "-nc", p.ds.raw("t/f")), "set through the view")


@suite.case("sticky directories: only the owner removes and renames")
def _(build):
    with pair(build, hosts=("a",)) as p, Proc(1001) as one, Proc(1002) as two:
        top = p.a.path("t")
        os.mkdir(top)
        os.chmod(top, 0o1777)
        one.call("close", one.call("open", top + "/f", RDWR | CREAT, 0o666))
        two.call("close", two.call("open", top + "/g", RDWR | CREAT, 0o666))
        raises(errno.EPERM, two.call, "unlink", top + "/f")
        raises(errno.EPERM, two.call, "rename", top + "/f", top + "/h")
        raises(errno.EPERM, two.call, "rename", top + "/g", top + "/f")
        one.call("rename", top + "/f", top + "/h")


@suite.case("set-uid and set-gid go with a write, a truncate and a chown by another user")
def _(build):
    with pair(build, hosts=("a",)) as p, Proc(1001) as one:
        plain = os.path.join(p.ds.base, "plain")
        os.mkdir(plain)
        found = []
        for top in (p.a.path(), plain):
            modes = []
            for change in ("write", "truncate", "ftruncate", "O_TRUNC", "fallocate", "chown"):
                f = "%s/%s" % (top, change)
                put(f, b"x" * 100)
                if change == "chown":
                    os.chmod(f, 0o6777)
                    os.chown(f, 1001, 1001)
                else:
                    os.chown(f, 0, 0)
                    os.chmod(f, 0o6777)
                    fd = one.call("open", f, RDWR)
                    if change == "write":
                        one.call("pwrite", fd, b"y", 0)
                    elif change == "O_TRUNC":
                        one.call("close", one.call("open", f, os.O_WRONLY | os.O_TRUNC))
                    elif change == "truncate":
                        one.call("truncate", f, 10)
                    elif change == "ftruncate":
                        one.call("ftruncate", fd, 10)
                    else:
                        one.call("fallocate", fd, 0, 0, 4096)
                    one.call("close", fd)
                modes.append((change, oct(os.stat(f).st_mode)))
            found.append(modes)
        eq(found[0], found[1])


@suite.case("a directory of 100,000 entries: every name once, quickly, and in pieces", limit=300)
def _(build):
    count = 100_000 if build.sanitize == "none" else 20_000
    with pair(build, hosts=("a",)) as p:
        os.mkdir(p.ds.raw("big"))
        for i in range(count):
            os.mknod(p.ds.raw("big/entry-%06d" % i))
        began = time.monotonic()
        names = os.listdir(p.a.path("big"))
        took = time.monotonic() - began
        eq((len(names), len(set(names))), (count, count), "names")
        ok(took < 30 * dgtest.TIME_SCALE, "listing took %.1f s" % took)
        with os.scandir(p.a.path("big")) as entries:
            total = sum(e.stat().st_size == 0 for e in entries)
        eq(total, count, "entries with attributes")
        with os.scandir(p.a.path("big")) as entries:  # names that stay appear once while others come and go
            seen = []
            for number, e in enumerate(entries):
                seen.append(e.name)
                if number % 100 == 0 and number < 20000:
                    os.unlink(p.ds.raw("big/entry-%06d" % (count - 1 - number // 100)))
                    os.mknod(p.a.path("big/new-%06d" % number))
        stable = [n for n in seen if n.startswith("entry-") and int(n[6:]) < count - 300]
        eq((len(stable), len(set(stable))), (count - 300, count - 300), "names that stayed")
        shutil.rmtree(p.ds.raw("big"))


@suite.case("seekdir: a directory read again from a place that telldir gave")
def _(build):
    with pair(build, hosts=("a",)) as p:
        for i in range(500):
            os.mknod(p.ds.raw("e%03d" % i))
        fd = os.open(p.a.path(), RDONLY)
        first = os.listdir(fd)
        os.lseek(fd, 0, os.SEEK_SET)
        os.mknod(p.ds.raw("later"))
        second = os.listdir(fd)
        os.close(fd)
        eq(sorted(set(second) - set(first)), ["later"], "a rewound directory shows what is new")


@suite.case("O_TMPFILE: works with linkat, or says EOPNOTSUPP")
def _(build):
    with pair(build, hosts=("a",)) as p:
        try:
            fd = os.open(p.a.path(), os.O_TMPFILE | RDWR, 0o600)
        except OSError as e:
            eq(e.errno, errno.EOPNOTSUPP)
            return
        os.write(fd, b"nameless")
        dgops.link("/proc/self/fd/%d" % fd, p.a.path("named"), True)
        os.close(fd)
        eq(read_at(p.ds.raw("named"), 0, 8), b"nameless")


@suite.case("O_DIRECT on images and plain files")
def _(build):
    with pair(build, "wait=0") as p:
        make_qcow2(p.ds.raw("img.qcow2"), "64M")
        with open(p.ds.raw("img.qcow2"), "r+b") as f:
            f.seek(1 << 20)
            f.write(bytes(range(256)) * 1024)
        put(p.ds.raw("plain"), bytes(range(256)) * 4096)
        head = read_at(p.ds.raw("img.qcow2"), 0, 8192)
        for name in ("img.qcow2", "plain"):
            try:
                fd = os.open(p.a.path(name), RDWR | os.O_DIRECT)
            except OSError as e:
                eq(e.errno, errno.EINVAL)
                return  # this file system has no direct I/O
            for length in (4096, 65536, 1 << 20):
                data = os.urandom(length)
                dgops.direct_write(fd, data, 2 << 20)
                with mmap.mmap(-1, length) as m:
                    eq(os.preadv(fd, [m], 2 << 20), length)
                    eq(m[:] == data, True, "%s: %d bytes written and read directly" % (name, length))
                eq(read_at(p.ds.raw(name), 2 << 20, length) == data, True, "%s: on the datastore" % name)
            if name == "img.qcow2":
                eq(dgops.direct_read(p.a.path(name), 0, 8192), head, "header read directly by the holder")
                eq(dgops.direct_read(p.b.path(name), 0, 8192), head, "header read directly on the other host")
                dgops.direct_write(fd, head[:4096], 0)
                eq(dgops.direct_read(p.b.path(name), 0, 4096), head[:4096], "written directly")
            os.close(fd)
        p.ds.wait_free("img.qcow2")
        eq(read_at(p.ds.raw("img.qcow2"), 0, 8192), head)


@suite.case("locks between processes of a view: flock, POSIX and OFD; a blocking one is granted or interrupted")
def _(build):
    with pair(build, hosts=("a",)) as p:
        for name in ("plain", "img.qcow2"):
            make_qcow2(p.ds.raw(name), "64M") if name != "plain" else put(p.ds.raw(name))
            path = p.a.path(name)
            with Proc() as one, Proc() as two:
                fd = one.call("open", path, RDWR)
                fd2 = two.call("open", path, RDONLY)
                one.call("flock", fd, fcntl.LOCK_EX)
                raises(errno.EWOULDBLOCK, two.call, "flock", fd2, fcntl.LOCK_SH | fcntl.LOCK_NB)
                two.send("flock", fd2, fcntl.LOCK_SH)
                ok(not two.ready(0.2), name + ": flock waits")
                one.call("flock", fd, fcntl.LOCK_UN)
                two.recv(20)
                two.call("flock", fd2, fcntl.LOCK_UN)
                for ofd in (True, False):
                    one.call("lock", fd, fcntl.F_WRLCK, 100, 50, ofd)
                    raises((errno.EAGAIN, errno.EACCES), two.call, "lock", fd2, fcntl.F_RDLCK, 120, 1, ofd)
                    two.call("lock", fd2, fcntl.F_RDLCK, 150, 10, ofd)
                    eq(two.call("getlock", fd2, fcntl.F_RDLCK, 0, 200, ofd), fcntl.F_WRLCK, name + ": who is in the way")
                    eq(two.call("getlock", fd2, fcntl.F_RDLCK, 0, 50, ofd), fcntl.F_UNLCK)
                    two.send("lock", fd2, fcntl.F_RDLCK, 0, 0, ofd, True)
                    ok(not two.ready(0.2), name + ": the lock waits")
                    one.call("lock", fd, fcntl.F_UNLCK, 0, 0, ofd)
                    two.recv(20)
                    two.call("lock", fd2, fcntl.F_UNLCK, 0, 0, ofd)
                one.call("lock", fd, fcntl.F_WRLCK, 0, 0, False)
                with Proc() as three:
                    fd3 = three.call("open", path, RDONLY)
                    three.send("lock", fd3, fcntl.F_RDLCK, 0, 0, False, True)
                    ok(not three.ready(0.2), name + ": waits")
                began = time.monotonic()  # three was killed while it waited
                ok(time.monotonic() - began < 10, "a killed waiter ends")
                dup = one.call("open", path, RDONLY)
                one.call("close", dup)  # POSIX: closing any descriptor of the file drops the process's locks
                two.call("lock", fd2, fcntl.F_RDLCK, 0, 0, False)
            with Proc() as four:  # everything went with the processes
                fd4 = four.call("open", path, RDONLY)
                wait_for(lambda f=four, d=fd4: f.call("getlock", d, fcntl.F_RDLCK, 0, 0) == fcntl.F_UNLCK, name + ": locks of dead processes go", 10)


@suite.case("locks meet between the view and the datastore, and between two views")
def _(build):
    with pair(build, "wait=0") as p, Proc() as raw, Proc() as one, Proc() as two:
        put(p.ds.raw("plain"))
        r, a, b = (w.call("open", path, RDWR) for w, path in ((raw, p.ds.raw("plain")), (one, p.a.path("plain")), (two, p.b.path("plain"))))
        one.call("lock", a, fcntl.F_WRLCK, 0, 10)
        raises(errno.EAGAIN, raw.call, "lock", r, fcntl.F_RDLCK, 0, 1)
        raises(errno.EAGAIN, two.call, "lock", b, fcntl.F_RDLCK, 0, 1)
        raw.call("lock", r, fcntl.F_WRLCK, 20, 10)
        raises(errno.EAGAIN, one.call, "lock", a, fcntl.F_RDLCK, 20, 1)
        eq(one.call("getlock", a, fcntl.F_RDLCK, 20, 1), fcntl.F_WRLCK)
        one.call("close", a)  # the release comes a moment later
        wait_for(lambda: raw.call("getlock", r, fcntl.F_WRLCK, 0, 10) == fcntl.F_UNLCK, "the lock goes with its handle", 10)


@suite.case("the fence lock stays while an image is held, whatever its holder unlocks")
def _(build):
    with pair(build, "wait=0", hosts=("a",)) as p, Proc() as w:
        make_qcow2(p.ds.raw("img.qcow2"), "64M")
        raw = os.open(p.ds.raw("img.qcow2"), RDWR)
        fd = w.call("open", p.a.path("img.qcow2"), RDWR)
        def fenced():
            return dgops.getlock(raw, fcntl.F_WRLCK, FENCE, 1) == fcntl.F_RDLCK
        ok(fenced(), "the fence is not locked while the image is held")
        for ofd in (True, False):
            w.call("lock", fd, fcntl.F_WRLCK, 0, 0, ofd)
            w.call("lock", fd, fcntl.F_UNLCK, 0, 0, ofd)
            ok(fenced(), "an unlock of the whole file dropped the fence")
        w.call("flock", fd, fcntl.LOCK_EX)
        w.call("flock", fd, fcntl.LOCK_UN)
        ok(fenced(), "flock dropped the fence")
        fd2 = w.call("open", p.a.path("img.qcow2"), RDONLY)
        w.call("close", fd2)
        ok(fenced(), "closing another handle dropped the fence")
        w.call("close", fd)
        p.ds.wait_free("img.qcow2")
        wait_for(lambda: not fenced(), "the fence goes after the restore", 10)
        os.close(raw)


@suite.case("sockets, fifos and device nodes")
def _(build):
    with pair(build, hosts=("a",)) as p, Proc() as one, Proc() as two:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind(p.a.path("s"))
            server.listen()
            client.connect(p.a.path("s"))
        os.mkfifo(p.a.path("p"))
        one.send("open", p.a.path("p"), os.O_WRONLY)
        fd2 = two.call("open", p.a.path("p"), RDONLY)
        one.call_fd = one.recv()
        one.call("write", one.call_fd, b"through the pipe")
        eq(two.call("read", fd2, 100), b"through the pipe")
        os.mknod(p.a.path("null"), stat.S_IFCHR | 0o666, os.makedev(1, 3))
        st = os.stat(p.ds.raw("null"))
        eq((stat.S_ISCHR(st.st_mode), st.st_rdev), (True, os.makedev(1, 3)))
        eq(os.stat(p.a.path("null")).st_rdev, st.st_rdev)


@suite.case("changes made underneath by another host become visible")
def _(build):
    with pair(build) as p:
        put(p.a.path("f"), b"one")
        eq(read_at(p.b.path("f"), 0, 9), b"one")
        fd = os.open(p.b.path("f"), RDONLY)
        put(p.a.path("f"), b"two, longer")
        wait_for(lambda: read_at(p.b.path("f"), 0, 99) == b"two, longer", "other content, other length", 10)
        eq(os.pread(fd, 99, 0), b"two, longer", "through an open handle")
        os.close(fd)
        os.rename(p.ds.raw("f"), p.ds.raw("g"))
        put(p.ds.raw("f"), b"another file")
        for view in (p.a, p.b):
            wait_for(lambda v=view: read_at(v.path("f"), 0, 99) == b"another file", "a replaced name", 10)
            eq(read_at(view.path("g"), 0, 99), b"two, longer")
        os.unlink(p.a.path("g"))
        wait_for(lambda: not os.path.exists(p.b.path("g")), "a removed name goes", 10)
        os.mkdir(p.ds.raw("d"))
        wait_for(lambda: os.path.isdir(p.a.path("d")), "a new directory", 10)
        os.chmod(p.ds.raw("d"), 0o700)
        wait_for(lambda: stat.S_IMODE(os.stat(p.a.path("d")).st_mode) == 0o700, "another mode", 10)


@suite.case("the daemon is not led outside by a directory that turns into a symbolic link")
def _(build):
    with pair(build, hosts=("a",)) as p:
        outside = suite_tmp()
        put(outside + "/secret", b"secret")
        os.mkdir(p.a.path("d"))
        put(p.a.path("d/f"))
        dir_fd = os.open(p.a.path("d"), RDONLY)
        os.rename(p.ds.raw("d"), p.ds.raw("e"))
        os.symlink(outside, p.ds.raw("d"))
        os.close(os.open("new", RDWR | CREAT, dir_fd=dir_fd))
        os.mkdir("newdir", dir_fd=dir_fd)
        eq(sorted(os.listdir(p.ds.raw("e"))), ["f", "new", "newdir"], "made in the directory that was opened")
        eq(os.listdir(outside), ["secret"])
        raises(errno.ENOENT, lambda: os.open("secret", RDONLY, dir_fd=dir_fd))
        os.close(dir_fd)
        put(p.ds.raw("x"))
        fd = os.open(p.a.path("x"), os.O_PATH)
        os.unlink(p.ds.raw("x"))
        os.symlink(outside + "/secret", p.ds.raw("x"))
        try:
            with open("/proc/self/fd/%d" % fd, "rb") as f:
                ok(f.read() != b"secret", "a file that turned into a link led outside")
        except OSError:
            pass
        os.close(fd)


@suite.case("an open file lives on without its name and leaves no other name")
def _(build):
    with pair(build, hosts=("a",)) as p:
        fd = os.open(p.a.path("f"), RDWR | CREAT)
        os.write(fd, b"still here")
        os.unlink(p.a.path("f"))
        eq(os.pread(fd, 99, 0), b"still here")
        os.ftruncate(fd, 5)
        eq((os.fstat(fd).st_nlink, os.fstat(fd).st_size), (0, 5))
        eq([n for n in os.listdir(p.ds.raw()) if n != ".diskguard"], [])
        os.close(fd)
        fd = os.open(p.a.path("g"), RDWR | CREAT)
        os.write(fd, b"old")
        put(p.a.path("h"), b"new")
        os.rename(p.a.path("h"), p.a.path("g"))
        eq(os.pread(fd, 9, 0), b"old")
        os.close(fd)
        eq([n for n in os.listdir(p.ds.raw()) if n != ".diskguard"], ["g"])


@suite.case("attributes: inode numbers, times, sparse files, big files, statfs, long names")
def _(build):
    with pair(build, hosts=("a",)) as p:
        put(p.a.path("f"))
        eq(os.stat(p.a.path("f")).st_ino, os.stat(p.ds.raw("f")).st_ino, "inode number")
        stamp = (1_111_111_111_123_456_789, 1_222_222_222_987_654_321)
        os.utime(p.a.path("f"), ns=stamp)
        st = os.stat(p.ds.raw("f"))
        eq((st.st_atime_ns, st.st_mtime_ns), stamp)
        put(p.a.path("f"), b"changed")
        ok(os.stat(p.a.path("f")).st_mtime_ns > stamp[1], "a write moves mtime")
        with open(p.a.path("big"), "wb") as f:
            f.seek(5 << 30)
            f.write(b"end")
            f.flush()
            eq(os.lseek(f.fileno(), 0, os.SEEK_HOLE), 0)
            eq(os.lseek(f.fileno(), 0, os.SEEK_DATA), 5 << 30)
        ok(os.stat(p.a.path("big")).st_blocks < 100, "stays sparse")
        eq(read_at(p.a.path("big"), 5 << 30, 9), b"end")
        eq(dgops.statvfs(p.a.path()), dgops.statvfs(p.ds.raw()), "statfs")
        os.mkdir(p.a.path("n" * 255))
        raises(errno.ENAMETOOLONG, os.mkdir, p.a.path("n" * 256))
        raises(errno.ENAMETOOLONG, os.mkdir, p.a.path("n" * 1500))
        run("sh", "-c", "printf '#!/bin/sh\\necho ran\\n' > %s; chmod +x %s" % (p.a.path("run"), p.a.path("run")))
        eq(must(p.a.path("run")).strip(), "ran", "a program can be run from the view")


@suite.case("O_APPEND by several processes loses nothing")
def _(build):
    with pair(build, hosts=("a",)) as p:
        workers = [Proc() for _ in range(4)]
        fds = [w.call("open", p.a.path("log"), os.O_WRONLY | CREAT | os.O_APPEND, 0o644) for w in workers]
        for i in range(200):
            for w, fd in zip(workers, fds):
                w.send("write", fd, b"%02d%04d\n" % (fd, i))
            for w in workers:
                eq(w.recv(), 7)
        with open(p.ds.raw("log"), "rb") as f:
            lines = f.read().split(b"\n")
        eq((len(lines) - 1, len([x for x in lines if len(x) == 6])), (800, 800), "whole lines")
        for w in workers:
            w.kill()


def append_descriptors(view, name):
    """How many of the daemon's descriptors of a file have O_APPEND, of how many that are open for write."""
    wanted, found = os.stat(view.ds.raw(name)).st_ino, []
    for fd in os.listdir("/proc/%d/fd" % view.p.pid):
        try:
            if os.stat("/proc/%d/fd/%s" % (view.p.pid, fd)).st_ino != wanted:
                continue
            with open("/proc/%d/fdinfo/%s" % (view.p.pid, fd), encoding="ascii") as f:
                flags = int(re.search(r"^flags:\s*(\d+)", f.read(), re.M).group(1), 8)
        except FileNotFoundError:
            continue
        if flags & os.O_ACCMODE != RDONLY and not flags & os.O_PATH:
            found.append(bool(flags & os.O_APPEND))
    return sum(found), len(found)


@suite.case("an append is one request's: view and datastore append side by side, also after F_SETFL; what has an offset lands there")
def _(build):
    with pair(build, hosts=("a",)) as p:
        workers = [Proc() for _ in range(4)]
        for w in workers:
            w.fd = w.call("open", p.ds.raw("log") if w is workers[3] else p.a.path("log"),
                          os.O_WRONLY | CREAT | (0 if w is workers[2] else os.O_APPEND), 0o644)
        workers[2].call("set_flags", workers[2].fd, os.O_APPEND)
        for i in range(200):
            for n, w in enumerate(workers):
                w.send("write", w.fd, b"%03d%04d\n" % (n, i))  # never across a page: the kernel would send two
            for w in workers:
                eq(w.recv(), 8)
        with open(p.ds.raw("log"), "rb") as f:
            lines = f.read().split(b"\n")
        eq((len(lines) - 1, len(set(x for x in lines if len(x) == 7))), (800, 800), "whole lines, each once")
        eq(append_descriptors(p.a, "log")[0], 0, "descriptors of the daemon with O_APPEND")
        ok(append_descriptors(p.a, "log")[1] >= 3, "descriptors of the daemon")
        w = workers[0]
        w.call("set_flags", w.fd, 0)
        eq(w.call("pwrite", w.fd, b"placed.\n", 8), 8)
        eq(read_at(p.ds.raw("log"), 8, 8), b"placed.\n")
        eq(os.stat(p.ds.raw("log")).st_size, 6400)
        for w in workers:
            w.kill()


@suite.case("an append-only file (chattr +a) can be appended to, and nothing else")
def _(build):
    with pair(build, hosts=("a",)) as p:
        put(p.ds.raw("log"), b"old\n")
        if run("chattr", "+a", p.ds.raw("log")).code:
            raise dgtest.Skip("no chattr +a here")
        try:
            raises(errno.EPERM, os.open, p.a.path("log"), os.O_WRONLY)
            with Proc() as w:
                fd = w.call("open", p.a.path("log"), os.O_WRONLY | os.O_APPEND)
                eq(w.call("write", fd, b"new\n"), 4)
                appends, all_of_them = append_descriptors(p.a, "log")
                ok(appends == all_of_them > 0, "it keeps O_APPEND")
                w.call("set_flags", fd, 0)  # the kernel of the view does not know better
                raises(errno.EPERM, w.call, "pwrite", fd, b"X", 0)
            eq(read_at(p.ds.raw("log"), 0, 100), b"old\nnew\n")
        finally:
            must("chattr", "-a", p.ds.raw("log"))


@suite.case("a file system that is full says ENOSPC and goes on")
def _(build):
    with small_fs(8) as base, pair(build, "wait=0", hosts=("a",), base=base) as p:
        fd = os.open(p.a.path("f"), RDWR | CREAT)
        try:
            for _ in range(64):
                os.write(fd, bytes(1 << 18))
            raise Fail("16 MiB fit into 8 MiB")
        except OSError as e:
            eq(e.errno, errno.ENOSPC)
        os.close(fd)
        os.unlink(p.a.path("f"))
        # FUSE releases a closed file asynchronously: until then the removed file still has its room.
        wait_for(lambda: os.statvfs(p.ds.raw()).f_bavail > 256, "the room of the removed file is free")
        put(p.a.path("g"), b"room again")
        eq(read_at(p.ds.raw("g"), 0, 99), b"room again")


if __name__ == "__main__":
    suite.main()
