#!/usr/bin/env python3
"""test_fence: a plain file that one host has open for write cannot become another host's image, nor be claimed by it: the fence lock. With byte locks, as on
NFS and local directories, and with flock, as on OCFS2 (a build with hooks only: the file system type is pretended)."""
import errno
import fcntl
import os
import signal

import dgops
from dgqemu import make_qcow2
from dgtest import Proc, Suite, eq, is_sealed, ok, pair, raises, read_at, sha, stopped, wait_for

suite = Suite(__file__, also=("asan",))
RDWR = os.O_RDWR
FENCE = 1 << 62
REFUSED = "another host has this file open for write"


def kinds(build):
    """Environments of the daemons, one for each kind of fence."""
    if not build.hooks:
        return [("ofd", {})]
    return [("ofd", {}), ("flock", {"DISKGUARD_HOOK_FSTYPE": "ocfs2"}), ("nfs", {"DISKGUARD_HOOK_FSTYPE": "nfs"})]


def source_image(ds):
    path = os.path.join(ds.base, "source")
    make_qcow2(path)
    with open(path, "rb") as f:
        return f.read()


def flocks(proc, fd):
    try:
        proc.call("flock", fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def opens(proc, path, flags=RDWR):
    """The descriptor, or None where it is busy."""
    try:
        return proc.call("open", path, flags)
    except OSError as e:
        if e.errno != errno.EBUSY:
            raise
        return None


@suite.case("a plain file that another host has open for write does not become an image: EBUSY, the log says why; when that host closes it, it does")
def no_conversion(build):
    for kind, env in kinds(build):
        with pair(build, "wait=0", env=env) as p, Proc() as a, Proc() as a2, Proc() as b:
            data = source_image(p.ds)
            open(p.ds.raw("new"), "w").close()
            fd_b = b.call("open", p.b.path("new"), RDWR)
            fd_a = a.call("open", p.a.path("new"), RDWR)
            fd_a2 = a2.call("open", p.a.path("new"), os.O_WRONLY)
            mark = p.a.log_size()
            raises(errno.EBUSY, a.call, "pwrite", fd_a, data[:4096], 0)
            p.a.wait_log(REFUSED, mark)
            ok(not is_sealed(p.ds.raw("new")), kind + ": sealed although another host writes it")
            eq(os.stat(p.ds.raw("new")).st_size, 0, kind + ": what a refused write leaves")
            # Everybody still writes it as a plain file, and still keeps the other from claiming it.
            a.call("pwrite", fd_a, b"a" * 4096, 1 << 20)
            b.call("pwrite", fd_b, b"b" * 4096, 2 << 20)
            raises(errno.EBUSY, b.call, "pwrite", fd_b, data[:4096], 0)
            b.call("close", fd_b)
            a2.call("close", fd_a2)
            a.call("pwrite", fd_a, data, 0)
            ok(is_sealed(p.ds.raw("new")), kind + ": not sealed although nobody else has it")
            raises(errno.EBUSY, b.call, "open", p.b.path("new"), RDWR)
            a.call("close", fd_a)
            p.ds.wait_free("new")
            eq(read_at(p.ds.raw("new"), 1 << 20, 4096), b"a" * 4096, kind)


@suite.case("an image that another host has open since it was a plain file is not opened for write, removed, replaced or truncated")
def no_claim(build):
    for kind, env in kinds(build):
        with pair(build, "wait=0", env=env) as p, Proc() as a, Proc() as b:
            data = source_image(p.ds)
            open(p.ds.raw("new"), "w").close()
            open(p.ds.raw("junk"), "w").close()
            fd_b = b.call("open", p.b.path("new"), RDWR)
            with open(p.ds.raw("new"), "r+b") as f:  # somebody goes around the view
                f.write(data)
            true = sha(p.ds.raw("new"))
            mark = p.a.log_size()
            raises(errno.EBUSY, a.call, "open", p.a.path("new"), RDWR)
            p.a.wait_log(REFUSED, mark)
            raises(errno.EBUSY, os.unlink, p.a.path("new"))
            raises(errno.EBUSY, os.rename, p.a.path("junk"), p.a.path("new"))
            raises(errno.EBUSY, os.truncate, p.a.path("new"), 0)
            eq(sha(p.ds.raw("new")), true, kind + ": after the refusals")
            eq(p.ds.claim_of("new"), None, kind + ": nobody claimed it")
            b.call("close", fd_b)
            fd = wait_for(lambda: opens(a, p.a.path("new")), kind + ": it is free when the other host has closed it")
            ok(is_sealed(p.ds.raw("new")), kind + ": sealed")
            a.call("close", fd)
            p.ds.wait_free("new")
            eq(sha(p.ds.raw("new")), true, kind)


@suite.case("a plain file that another host is just closing does not refuse the first write of a header")
def closing(build):
    for kind, env in kinds(build):
        with pair(build, "wait=0", env=env) as p, Proc() as a, Proc() as b:
            data = source_image(p.ds)
            for round_ in range(20):
                name = "new%d" % round_
                fd_b = b.call("open", p.b.path(name), RDWR | os.O_CREAT)
                fd_a = a.call("open", p.a.path(name), RDWR)
                b.call("close", fd_b)
                a.call("pwrite", fd_a, data, 0)
                ok(is_sealed(p.ds.raw(name)), kind + ": sealed")
                a.call("close", fd_a)


@suite.case("an image goes back and forth between two hosts without a single refusal but its holder's")
def back_and_forth(build):
    for kind, env in kinds(build):
        with pair(build, "wait=20", env=env) as p, Proc() as a, Proc() as b:
            make_qcow2(p.ds.raw("img.qcow2"))
            for round_ in range(15):
                for proc, view in ((a, p.a), (b, p.b)):
                    fd = proc.call("open", view.path("img.qcow2"), RDWR)
                    proc.call("pwrite", fd, b"%04d" % round_ * 1024, 1 << 20)
                    proc.call("close", fd)
            p.ds.wait_free("img.qcow2")
            ok(REFUSED not in p.a.log() + p.b.log(), kind + ": a former holder's lock was in the way of the next one")
            generations = int(p.ds.claims()[os.stat(p.ds.raw("img.qcow2")).st_ino]["generation"])
            eq(generations, 30, kind + ": one claim for each open")


@suite.case("who finds the claim free finds the fence free: the former holder is stopped between the two, and is not in the way")
def fence_goes_first(build):
    for _, env in kinds(build) if build.hooks else ():
        with pair(build, "wait=2", env=env) as p, Proc() as a, Proc() as b:
            make_qcow2(p.ds.raw("img.qcow2"))
            arm = os.path.join(p.ds.base, "arm")
            p.a.stop()
            p.a.start(DISKGUARD_HOOK_ARM=arm, DISKGUARD_HOOK_STOP="journal.commit:2")  # 1: restoring, 2: the row goes, after the claim is free
            fd = a.call("open", p.a.path("img.qcow2"), RDWR)
            open(arm, "w").close()
            a.call("close", fd)
            wait_for(lambda: stopped(p.a.p.pid), "the former holder is stopped")
            eq(p.ds.claim_of("img.qcow2"), "free", "the claim")
            try:
                fd = b.call("open", p.b.path("img.qcow2"), RDWR)
            finally:
                os.unlink(arm)
                p.a.signal(signal.SIGCONT)
            b.call("close", fd)


@suite.case("flock: one that was taken on a plain file and dropped on the image that it became takes the fence lock with it on no file system")
def flock_drops_no_fence(build):
    for kind, env in kinds(build):
        for how in ("unlock", "close", "die"):
            with pair(build, "wait=0", env=env) as p, Proc() as a, Proc() as other:
                data = source_image(p.ds)
                fd = a.call("open", p.a.path("new"), RDWR | os.O_CREAT)
                locker = a if how == "unlock" else other
                fd2 = fd if how == "unlock" else other.call("open", p.a.path("new"), os.O_RDONLY if how == "close" else RDWR)
                locker.call("flock", fd2, fcntl.LOCK_EX)
                a.call("pwrite", fd, data, 0)
                ok(is_sealed(p.ds.raw("new")), kind + ": sealed")
                if how == "unlock":
                    a.call("flock", fd, fcntl.LOCK_UN)
                elif how == "close":
                    other.call("close", fd2)
                else:
                    other.kill()
                # Nobody has the flock any more; then the fence is what is left.
                probe = a.call("open", p.a.path("new"), os.O_RDONLY)

                def free(fd=probe):
                    try:
                        a.call("flock", fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        return False
                    a.call("flock", fd, fcntl.LOCK_UN)
                    return True
                wait_for(free, "%s, %s: the flock is gone" % (kind, how))
                with open(p.ds.raw("new"), "r+b") as f:
                    if kind == "flock":
                        raises(errno.EWOULDBLOCK, fcntl.flock, f.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                    else:
                        eq(dgops.getlock(f.fileno(), fcntl.F_WRLCK, FENCE, 1), fcntl.F_RDLCK, "%s, %s: the fence" % (kind, how))
                a.call("close", probe)
                a.call("close", fd)


@suite.case("flock of plain files: between two views where the storage carries it, and never in the way of the fence")
def flock_of_plain_files(build):
    for kind, env in kinds(build):
        with pair(build, "wait=0", env=env) as p, Proc() as a, Proc() as a2, Proc() as b:
            fd = a.call("open", p.a.path("log"), RDWR | os.O_CREAT)
            fd2 = a2.call("open", p.a.path("log"), RDWR)
            fd_b = b.call("open", p.b.path("log"), RDWR)
            for first, second in ((fcntl.LOCK_EX, fcntl.LOCK_SH), (fcntl.LOCK_SH, fcntl.LOCK_EX)):
                a.call("flock", fd, first)
                raises(errno.EWOULDBLOCK, a2.call, "flock", fd2, second | fcntl.LOCK_NB)
                if kind == "flock":  # as on OCFS2, where flock is the fence: flocks of programs stay on their host
                    b.call("flock", fd_b, second | fcntl.LOCK_NB)
                    b.call("flock", fd_b, fcntl.LOCK_UN)
                else:
                    raises(errno.EWOULDBLOCK, b.call, "flock", fd_b, second | fcntl.LOCK_NB)
                a.call("flock", fd, fcntl.LOCK_UN)
                a2.call("flock", fd2, second | fcntl.LOCK_NB)
                a2.call("flock", fd2, fcntl.LOCK_UN)
            a.call("flock", fd, fcntl.LOCK_EX)
            again = b.call("open", p.b.path("log"), RDWR)  # no lock of a program keeps anybody from opening
            b.call("close", again)
            third = a2.call("open", p.a.path("log"), os.O_RDONLY)
            raises(errno.EWOULDBLOCK, a2.call, "flock", third, fcntl.LOCK_SH | fcntl.LOCK_NB)
            a.call("close", fd)  # the release comes a moment later
            wait_for(lambda: flocks(a2, third), kind + ": the flock goes with its handle")


@suite.case("plain files come and go on two hosts at once, and nothing is left locked")
def many_plain(build):
    with pair(build, "wait=5") as p, Proc() as a, Proc() as b:
        for _ in range(100):
            fds = [(w, w.call("open", v.path("log"), RDWR | os.O_CREAT | os.O_APPEND)) for w, v in ((a, p.a), (b, p.b), (a, p.b), (b, p.a))]
            for w, fd in fds:
                w.call("write", fd, b"line\n")
            for w, fd in fds:
                w.call("close", fd)
        eq(os.stat(p.ds.raw("log")).st_size, 2000)
        data = source_image(p.ds)
        fd = a.call("open", p.a.path("log"), RDWR)
        a.call("pwrite", fd, data, 0)
        ok(is_sealed(p.ds.raw("log")), "sealed")
        a.call("close", fd)


if __name__ == "__main__":
    suite.main()
