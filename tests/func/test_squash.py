#!/usr/bin/env python3
"""test_squash: a daemon that may not open everybody's files, as root on an NFS export with root_squash: here it is root without the capabilities to
override permissions. Nothing passes unguarded, and the log names the cause and the way out."""
import copy
import errno
import os

from dgqemu import make_qcow2
from dgtest import Datastore, Host, Proc, Suite, View, eq, is_sealed, ok, raises, read_at, sha

suite = Suite(__file__)
RDONLY, RDWR = os.O_RDONLY, os.O_RDWR
USER = 12345


def squashed(build, ds, *options):
    """A view whose daemon is root in name only."""
    build = copy.copy(build)
    wrapper = os.path.join(ds.base, "squashed")
    with open(wrapper, "w") as f:
        f.write('#!/bin/sh\nexec setpriv --bounding-set=-dac_override,-dac_read_search,-fowner "%s" "$@"\n' % build.diskguard)
    os.chmod(wrapper, 0o755)
    build.diskguard = wrapper
    ds.build = build
    view = View(ds, Host(ds.base, "a"), ["wait=0", *options], start=False)
    return view.start()


def private(path, mode=0o600):
    os.chown(path, USER, USER)
    os.chmod(path, mode)


@suite.case("an image that the daemon may not read: EACCES for its owner too, for every operation, and one log line with cause and way out")
def private_image(build):
    ds = Datastore(build)
    make_qcow2(ds.raw("img.qcow2"))
    make_qcow2(ds.raw("open.qcow2"))
    open(ds.raw("junk"), "w").close()
    os.chmod(ds.path, 0o777)
    private(ds.raw("img.qcow2"))
    private(ds.raw("junk"), 0o666)
    private(ds.raw("open.qcow2"), 0o666)
    before = sha(ds.raw("img.qcow2"))
    view = squashed(build, ds)
    with Proc(uid=USER) as user:
        mark = view.log_size()
        for flags in (RDONLY, RDWR, os.O_WRONLY, RDWR | os.O_TRUNC):
            raises(errno.EACCES, user.call, "open", view.path("img.qcow2"), flags)
        view.wait_log("refused with EACCES: diskguard itself may not read 'img.qcow2'.*no_root_squash", mark)
        raises(errno.EACCES, user.call, "truncate", view.path("img.qcow2"), 0)
        raises(errno.EACCES, user.call, "unlink", view.path("img.qcow2"))
        raises(errno.EACCES, user.call, "rename", view.path("junk"), view.path("img.qcow2"))
        eq(view.log()[mark:].count("refused with EACCES"), 1, "log lines")
        eq(sha(ds.raw("img.qcow2")), before, "the image")
        # What it may open it guards.
        fd = user.call("open", view.path("open.qcow2"), RDWR)
        ok(is_sealed(ds.raw("open.qcow2")), "sealed")
        user.call("close", fd)
        ds.wait_free("open.qcow2")
    view.stop()


@suite.case("an image that the daemon may read but not write is readable, and refused for write")
def readable_image(build):
    ds = Datastore(build)
    make_qcow2(ds.raw("img.qcow2"))
    private(ds.raw("img.qcow2"), 0o644)
    before = sha(ds.raw("img.qcow2"))
    view = squashed(build, ds)
    with Proc(uid=USER) as user:
        mark = view.log_size()
        fd = user.call("open", view.path("img.qcow2"), RDONLY)
        eq(user.call("pread", fd, 4, 0), b"QFI\xfb")
        raises(errno.EACCES, user.call, "open", view.path("img.qcow2"), RDWR)
        view.wait_log("diskguard itself may not write 'img.qcow2'.*no_root_squash", mark)
    eq(sha(ds.raw("img.qcow2")), before, "the image")
    view.stop()


@suite.case("a plain file that the daemon may read but not write: its owner writes it, holds the fence, and makes no image of it")
def readable_plain_file(build):
    ds = Datastore(build)
    with open(ds.raw("notes"), "wb") as f:
        f.write(b"text")
    private(ds.raw("notes"), 0o644)
    make_qcow2(os.path.join(ds.base, "source"))
    with open(os.path.join(ds.base, "source"), "rb") as f:
        header = f.read(4096)
    other = View(ds, Host(ds.base, "b"), ["wait=0"])  # another host, whose daemon may do anything
    view = squashed(build, ds)
    with Proc(uid=USER) as user, Proc() as rival:
        fd = user.call("open", view.path("notes"), RDWR)
        user.call("pwrite", fd, b"more", 4)
        raises(errno.EACCES, user.call, "pwrite", fd, header, 0)
        eq(read_at(ds.raw("notes"), 0, 8), b"textmore")
        fd_b = rival.call("open", other.path("notes"), RDWR)
        raises(errno.EBUSY, rival.call, "pwrite", fd_b, header, 0)
        user.call("close", fd)
        rival.call("pwrite", fd_b, header, 0)
        rival.call("close", fd_b)
    view.stop()
    other.stop()


if __name__ == "__main__":
    suite.main()
