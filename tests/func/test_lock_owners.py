#!/usr/bin/env python3
"""Whose is a lock? The kernel names an open file by its address, and the next one may have it before the release of the former has been answered."""
import fcntl
import os

from dgtest import Datastore, Host, Proc, Suite, View, eq, must, wait_for

suite = Suite(__file__, needs="hooks")
READ, WRITE, NONE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
ROUNDS = 10
kept = []  # processes of the round


def late_release(build, between):
    """between(process, path, fd): after the close, and before its release; returns what must hold when that is over."""
    ds = Datastore(build)
    arm, log = os.path.join(ds.base, "arm"), os.path.join(ds.base, "hooks")
    must("truncate", "-s", "1M", ds.raw("file"))
    for number in range(ROUNDS):
        with open(arm, "w"):
            pass
        view = View(ds, Host(ds.base, "a"), env={"DISKGUARD_HOOK_WAIT": "lock.release:1", "DISKGUARD_HOOK_ARM": arm, "DISKGUARD_HOOK_LOG": log})
        with Proc() as p, Proc() as other:
            for proc in (p, other):
                proc.call("sched_setaffinity", 0, {number % os.cpu_count()})  # so that the kernel gives the same memory out again
            theirs = other.call("open", view.path("file"), os.O_RDWR)
            fd = p.call("open", view.path("file"), os.O_RDWR)
            p.call("lock", fd, READ, 100, 1)
            p.call("close", fd)
            holds = between(p, view.path("file"))
            eq(other.call("getlock", theirs, WRITE, 100, 1), READ, "the lock before its release")
            os.unlink(arm)
            wait_for(lambda: other.call("getlock", theirs, WRITE, 100, 1) == NONE, "the lock of the closed file is gone")
            holds(other, theirs)
            for q in kept:
                q.kill()
            kept.clear()
        view.stop()


@suite.case("a file that is opened before the release of the last one keeps its locks, and has none of that one's: same process")
def _(build):
    def between(p, path):
        fd = p.call("open", path, os.O_RDWR)
        p.call("lock", fd, READ, 50, 1)
        return lambda other, theirs: eq(other.call("getlock", theirs, WRITE, 50, 1), READ, "the lock of the file that is open")
    late_release(build, between)


@suite.case("the same of another process")
def _(build):
    def between(p, path):
        q = Proc()
        kept.append(q)
        q.call("sched_setaffinity", 0, p.call("sched_getaffinity", 0))
        fd = q.call("open", path, os.O_RDWR)
        q.call("lock", fd, READ, 50, 1)
        return lambda other, theirs: eq(other.call("getlock", theirs, WRITE, 50, 1), READ, "the lock of the file that is open")
    late_release(build, between)


@suite.case("a process is one owner, through however many descriptors, also when a child has closed one of them")
def _(build):
    ds = Datastore(build)
    view = View(ds, Host(ds.base, "a"))
    must("truncate", "-s", "1M", ds.raw("file"))
    with Proc() as p, Proc() as other:
        one, two = (p.call("open", view.path("file"), os.O_RDWR) for _ in range(2))
        theirs = other.call("open", view.path("file"), os.O_RDWR)
        p.call("lock", one, WRITE, 10, 10, False)
        p.call("waitpid", p.call("posix_spawn", "/bin/true", ["true"], {}), 0)  # a child has the descriptors until it runs another program
        p.call("lock", two, WRITE, 10, 5, False)
        p.call("lock", two, NONE, 15, 5, False)
        eq(other.call("getlock", theirs, WRITE, 12, 1, False), WRITE, "what is locked")
        eq(other.call("getlock", theirs, WRITE, 15, 5, False), NONE, "what was unlocked through the other descriptor")
        p.call("close", two)
        eq(other.call("getlock", theirs, WRITE, 0, 100, False), NONE, "closing any of them lets all go")
    view.stop()


if __name__ == "__main__":
    suite.main()
