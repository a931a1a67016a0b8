#!/usr/bin/env python3
"""Descriptors that one program opens and passes on (libvirt's fdgroup, -add-fd): one QEMU works with it as with its own; of two that are given the same open file
QEMU's own locks do not stop the second one, but the view does, where they are asked for at all."""
import errno
import fcntl
import os
import socket

from dgqemu import Vm, make_qcow2
from dgtest import Proc, SharedPair, Suite, eq, is_sealed, ok, pair, raises, suite_tmp, wait_for

suite = Suite(__file__)
pairs = SharedPair("wait=0")
RDWR = os.O_RDWR
READ, NONE = fcntl.F_RDLCK, fcntl.F_UNLCK


class Passed(Vm):
    """A Vm whose disk is a descriptor of ours."""

    def __init__(self, base, name, fd, fmt):
        mine = os.dup(fd)
        os.set_inheritable(mine, True)
        self.passed = mine
        super().__init__(base, name, ("-add-fd", "fd=%d,set=1" % mine, "-blockdev", "driver=%s,node-name=d,file.driver=file,"
                                      "file.filename=/dev/fdset/1,file.auto-read-only=off,file.cache.direct=on" % fmt,
                                      "-device", "virtio-blk-pci,drive=d,romfile=", "-S"), inherit=(mine,))
        os.close(mine)

    def end(self):
        self.p.kill()
        self.p.wait()


@suite.case("one QEMU with a descriptor that a manager opened works, again and again; a second one beside it is refused while the first lives")
def machines(build):
    p = pairs.get(build)
    base = suite_tmp()
    for name, fmt in (("vm.qcow2", "qcow2"), ("vm.raw", "raw")):
        if fmt == "qcow2":
            make_qcow2(p.ds.raw(name))
        else:
            with open(p.ds.raw(name), "wb") as f:
                f.truncate(4 << 20)
        fd = os.open(p.a.path(name), RDWR | os.O_DIRECT)
        one = Passed(base, "one" + fmt, fd, fmt)
        try:
            ok(one.connect(), "the first does not start: %s" % one.error())
            mark = p.a.log_size()
            two = Passed(base, "two" + fmt, fd, fmt)
            ok(not two.connect() and "lock" in two.error(), "the second: %s" % two.error())
            p.a.wait_log("'%s'.*asked for by pid %d, through the same open file by which pid %d writes it" % (name, two.p.pid, one.p.pid), mark)
            again = Passed(base, "again" + fmt, fd, fmt)
            ok(not again.connect(), "a second attempt")
            one.quit()
            one.p.wait(30)
            three = Passed(base, "three" + fmt, fd, fmt)
            ok(three.connect(), "after the first has ended: %s" % three.error())
            three.end()  # without a word
            four = Passed(base, "four" + fmt, fd, fmt)
            ok(four.connect(), "after one was killed: %s" % four.error())
            four.end()
        finally:
            one.end()
        os.close(fd)
        p.ds.wait_free(name)


@suite.case("a lock on byte 101 through one open file: the second process waits for the first one's unlock or end, not longer; a lock that failed counts for nobody")
def bytes_(build):
    p = pairs.get(build)
    with open(p.ds.raw("b.raw"), "wb") as f:
        f.truncate(1 << 20)
    with Proc() as one, Proc() as two:
        fd = one.call("open", p.a.path("b.raw"), RDWR)
        send_fd(suite_tmp(), one, fd, two)
        its = two.call("take_fd")
        one.call("lock", fd, READ, 101, 1)
        raises(errno.EAGAIN, two.call, "lock", its, READ, 101, 1)
        raises(errno.EAGAIN, two.call, "lock", its, READ, 0, 0)
        two.call("lock", its, READ, 100, 1)
        one.call("lock", fd, READ, 101, 1)  # the same one, again
        one.call("lock", fd, NONE, 101, 1)
        two.call("lock", its, READ, 101, 1)
        raises(errno.EAGAIN, one.call, "lock", fd, READ, 101, 1)
        two.kill()
        one.call("lock", fd, READ, 101, 1)


def send_fd(base, sender, fd, receiver):
    path = os.path.join(base, "s")
    receiver.call("listen_fd", path)
    sender.call("pass_fd", path, fd)


@suite.case("writers=host lets both")
def host(build):
    with pair(build, "wait=0", "writers=host", hosts=("a",)) as p, Proc() as one, Proc() as two:
        with open(p.ds.raw("b.raw"), "wb") as f:
            f.truncate(1 << 20)
        fd = one.call("open", p.a.path("b.raw"), RDWR)
        send_fd(suite_tmp(), one, fd, two)
        its = two.call("take_fd")
        one.call("lock", fd, READ, 101, 1)
        two.call("lock", its, READ, 101, 1)
        one.kill()
        two.kill()
        p.ds.wait_free("b.raw")


if __name__ == "__main__":
    suite.main()
