#!/usr/bin/env python3
"""test_readers: an image that a program reads which wants no writer beside it (QEMU's byte locks 100 and 201) is kept from writers on every host; who only looks keeps nobody away."""
import errno
import fcntl
import json
import os
import re
import signal
import socket
import threading
import zlib

from dgqemu import QemuIo, Vm, make_qcow2
from dgtest import Proc, Skip, Suite, eq, must, ok, pair, raises, refused, run, stopped, wait_for
from test_chain import open_close, writable

suite = Suite(__file__, needs="hooks")
HOSTNAME = socket.gethostname()
RDWR, RDONLY = os.O_RDWR, os.O_RDONLY
READ, NONE = fcntl.F_RDLCK, fcntl.F_UNLCK
LOCKED_OUT = 'Failed to get shared "write" lock'
NAME = "disk.qcow2"


def names(ds):
    return ds.inner("readers")


def kept(view, name=NAME):
    """Nobody may write, truncate, replace or remove it through this view; everybody may read."""
    path, spare = view.path(name), view.path("spare")
    raises(errno.EBUSY, open_close, path)
    raises(errno.EBUSY, open_close, path, os.O_WRONLY | os.O_TRUNC)
    raises(errno.EBUSY, os.truncate, path, 4096)
    raises(errno.EBUSY, os.unlink, path)
    with open(spare, "w") as f:
        f.write("x")
    raises(errno.EBUSY, os.rename, spare, path)
    os.unlink(spare)
    open_close(path, RDONLY)
    must("qemu-img", "info", path)
    if name == NAME:
        must("qemu-img", "check", "-q", "-f", "qcow2", path)


def image(ds, name=NAME):
    make_qcow2(ds.raw(name))
    must("qemu-io", "-c", "write -P 7 0 1M", ds.raw(name))


def ctl(view, *words):
    r = run(*view.build.command(view.build.ctl, "--json", *words), env=view.build.env())
    return json.loads(r.out)


@suite.case("a QEMU that reads keeps writers out, here and on the other host, until it closes")
def _(build):
    with pair(build, "wait=0") as p:
        image(p.ds)
        with QemuIo(p.a.path(NAME), "-r") as reader, QemuIo(p.a.path(NAME), "-r") as second:
            eq(len(names(p.ds)), 1, "one name for image and host: %s" % names(p.ds))
            ok(names(p.ds)[0].startswith("%016x-%s." % (os.stat(p.ds.raw(NAME)).st_ino, p.a.host.uuid)), "the name: %s" % names(p.ds))
            for view in p.views:
                since = view.log_size()
                kept(view)
                view.wait_log(r"refused open for write of 'disk.qcow2'.*qemu-io on host %s, pid %s, reads it since"
                              % (re.escape(HOSTNAME), reader.p.pid if view is p.b else r"\d+"), since)
                show = ctl(view, "show", view.path(NAME))
                ok((HOSTNAME, "qemu-io") in [(r["host_name"], r["program"]) for r in show["readers"]], "show: %s" % show)
                why = ctl(view, "why", view.path(NAME))
                eq((why["refused"], why["reason"]), (True, "read"), "why: %s" % why)
            reader.do("read -P 7 0 1M")
            reader.close()
            wait_for(lambda: len(names(p.ds)) == 1, "the second reader is still there")
            kept(p.b)
            second.close()
        wait_for(lambda: not names(p.ds), "the name goes")
        for view in p.views:
            writable(view, NAME)
        eq(ctl(p.b, "show", p.b.path(NAME))["readers"], [], "readers afterwards")


@suite.case("what has no header: a raw image that a virtual machine has as a read-only disk, an ISO as its CD")
def _(build):
    with pair(build, "wait=0") as p:
        for name in ("disk.img", "cd.iso"):
            with open(p.ds.raw(name), "wb") as f:
                f.truncate(4 << 20)
        with open(p.ds.raw("cd.iso"), "r+b") as f:
            f.seek(32768)
            f.write(b"\x01CD001\x01" + bytes(2041) + b"\xffCD001\x01" + bytes(2041))
        drives = ("-drive", "file=%s,format=raw,if=none,id=d,readonly=on" % p.a.path("disk.img"), "-device", "virtio-blk,drive=d",
                  "-drive", "file=%s,format=raw,if=none,id=c,media=cdrom,readonly=on" % p.a.path("cd.iso"), "-device", "ide-cd,drive=c")
        with Vm(p.ds.base, "vm", drives) as vm:
            ok(vm.connect(), "VM starts: " + vm.error())
            for view in p.views:
                kept(view, "disk.img")
                raises(errno.EBUSY, os.unlink, view.path("disk.img"))
            eq(len(names(p.ds)), 1 + bool(ctl(p.a, "show", p.a.path("cd.iso"))["readers"]), "names")
            vm.quit()
        wait_for(lambda: not names(p.ds), "the names go")
        writable(p.b, "disk.img")


@suite.case("commit into what another host reads is refused, rebase over it is not; a VM's own block-commit writes what it reads itself", limit=200)
def _(build):
    with pair(build, "wait=0") as p:
        image(p.ds)
        for top in ("own.qcow2", "other.qcow2"):
            must("qemu-img", "create", "-q", "-f", "qcow2", "-b", NAME, "-F", "qcow2", p.ds.raw(top), "64M")
        must("qemu-io", "-c", "write -P 9 2M 64k", p.ds.raw("own.qcow2"))
        must("qemu-io", "-c", "write -P 8 3M 64k", p.ds.raw("other.qcow2"))
        with Vm(p.ds.base, "reads", ("-drive", "file=%s,format=qcow2,if=none,id=d,readonly=on" % p.a.path(NAME), "-device", "virtio-blk,drive=d")) as vm:
            ok(vm.connect(), "VM starts: " + vm.error())
            refused("qemu-img", "commit", "-q", p.b.path("other.qcow2"), text="Device or resource busy")
            p.ds.wait_free("other.qcow2")
            must("qemu-img", "rebase", "-u", "-b", NAME, "-F", "qcow2", p.b.path("other.qcow2"))
            p.ds.wait_free("other.qcow2")
            must("qemu-img", "convert", "-O", "raw", p.b.path("other.qcow2"), os.path.join(p.ds.base, "copy"))
            vm.quit()
        drive = ("-drive", "file=%s,format=qcow2,node-name=disk,id=d0,if=none" % p.a.path("own.qcow2"), "-device", "virtio-blk,drive=d0")
        with Vm(p.ds.base, "writes", drive) as vm:
            ok(vm.connect(), "VM starts: " + vm.error())
            ok(any(n.startswith("%016x-" % os.stat(p.ds.raw(NAME)).st_ino) for n in names(p.ds)), "it reads its backing file, and wants no writer: %s" % names(p.ds))
            vm.qmp("block-commit", **{"job-id": "j", "device": "disk"})
            wait_for(lambda: any(j["status"] == "ready" for j in vm.qmp("query-jobs")), "commit is ready", 60)
            raises(errno.EBUSY, open_close, p.b.path(NAME))
            vm.qmp("job-complete", id="j")
            wait_for(lambda: not vm.qmp("query-jobs"), "commit is done", 60)
            vm.quit()
        p.ds.wait_settled()
        wait_for(lambda: not names(p.ds), "the names go")
        must("qemu-img", "commit", "-q", p.b.path("other.qcow2"))
        p.ds.wait_settled()
        must("qemu-io", "-r", "-c", "read -P 9 2M 64k", "-c", "read -P 8 3M 64k", p.ds.raw(NAME))


@suite.case("who only looks keeps nobody away: by the locks that a program has, byte by byte")
def _(build):
    with pair(build, "wait=0") as p, Proc() as reader:
        image(p.ds)
        fd = reader.call("open", p.a.path(NAME), RDONLY)
        writable(p.b, NAME)
        for bytes_, protects in (((201, 203), False), ((100,), False), ((100, 201), True), ((201, 100), True), ((100, 203), False), ((100, 200, 202), False)):
            for byte in bytes_:
                reader.call("lock", fd, READ, byte, 1)
            eq(len(names(p.ds)), int(protects), "names with locks on %s" % (bytes_,))
            if protects:
                raises(errno.EBUSY, open_close, p.b.path(NAME))
                reader.call("lock", fd, NONE, bytes_[1], 1)
                eq(names(p.ds), [], "names after the unlock of %d" % bytes_[1])
            writable(p.b, NAME)
            for byte in bytes_:
                reader.call("lock", fd, NONE, byte, 1)
        # A handle that is open for write is no reader: its claim says more.
        p.ds.wait_free(NAME)
        rw = reader.call("open", p.a.path(NAME), RDWR)
        for byte in (100, 201):
            reader.call("lock", rw, READ, byte, 1)
        eq(names(p.ds), [], "names of a writer")
        reader.call("close", rw)
        # A plain file is everybody's.
        with open(p.ds.raw("notes.txt"), "w") as f:
            f.write("x")
        plain = reader.call("open", p.a.path("notes.txt"), RDONLY)
        for byte in (100, 201):
            reader.call("lock", plain, READ, byte, 1)
        eq(names(p.ds), [], "names of a plain file")
        writable(p.b, "notes.txt")
        p.ds.wait_settled()
        for command in (("qemu-img", "info"), ("qemu-img", "info", "-U"), ("qemu-io", "-r", "-U", "-c", "read -P 7 0 1M"), ("cat",)):
            with Proc() as writer:
                w = writer.call("open", p.b.path(NAME), RDWR)
                must(*command, p.a.path(NAME))
                writer.call("close", w)
            p.ds.wait_settled()
        writable(p.b, NAME)


@suite.case("the reader's own process may write, others of its host with writers=host; readers=ignore keeps nobody away")
def _(build):
    with pair(build, "wait=0") as p, Proc() as one:
        image(p.ds)
        declare(one, p.a)
        one.call("close", one.call("open", p.a.path(NAME), RDWR))
        p.ds.wait_free(NAME)
        eq(len(names(p.ds)), 1, "it reads on")
        raises(errno.EBUSY, open_close, p.a.path(NAME))
    with pair(build, "wait=0", "writers=host") as p, Proc() as one:
        image(p.ds)
        declare(one, p.a)
        writable(p.a, NAME)
        p.ds.wait_free(NAME)
        raises(errno.EBUSY, open_close, p.b.path(NAME))
    with pair(build, "wait=0", "readers=ignore") as p, Proc() as one:
        image(p.ds)
        declare(one, p.a)
        eq(names(p.ds), [], "names")
        for view in p.views:
            writable(view, NAME)
            p.ds.wait_free(NAME)
    refused(*build.command(build.diskguard, "-o", "readers=perhaps", "/", "/"), text="readers=perhaps: must be protect or ignore")


@suite.case("a reader that comes too late is refused as QEMU refuses, whatever the holder locks; afterwards it waits for the release, not longer")
def _(build):
    with pair(build, "wait=0") as p, Proc() as holder:
        image(p.ds)
        for where in p.views:
            fd = holder.call("open", where.path(NAME), RDWR)
            for view in p.views:
                since = view.log_size()
                refused("qemu-io", "-r", "-c", "read 0 64k", view.path(NAME), text=LOCKED_OUT)
                view.wait_log("refused reading with nobody writing beside it.*held by host %s" % re.escape(HOSTNAME), since)
                must("qemu-io", "-r", "-U", "-c", "read -P 7 0 1M", view.path(NAME))
                must("qemu-img", "info", view.path(NAME))
            holder.call("close", fd)
            p.ds.wait_settled()
        eq(names(p.ds), [], "names of readers that were refused")
    with pair(build, "wait=20") as p:
        image(p.ds)
        for number in range(20):
            for writer, reader in ((p.a, p.b), (p.b, p.a), (p.a, p.a)):
                must("qemu-io", "-c", "write -P %d 0 64k" % number, writer.path(NAME))
                must("qemu-io", "-r", "-c", "read -P %d 0 64k" % number, reader.path(NAME))


@suite.case("an open for write waits for the reader")
def _(build):
    with pair(build, "wait=60") as p, Proc() as writer:
        image(p.ds)
        with QemuIo(p.a.path(NAME), "-r") as reader:
            writer.send("open", p.b.path(NAME), RDWR)
            wait_for(lambda: not writer.ready(), "it waits")
            reader.do("read -P 7 0 1M")
            ok(not writer.ready(0.2), "it still waits")
            reader.close()
        writer.call("close", writer.recv())


@suite.case("a crash: the name counts until the host is back, or a person says that it is down; what is void refuses nothing")
def _(build):
    with pair(build, "wait=0") as p:
        image(p.ds)
        for way in ("start", "fsck of its own", "takeover"):
            with QemuIo(p.a.path(NAME), "-r") as reader:
                eq(len(names(p.ds)), 1, "names")
                p.a.kill9()
                reader.kill()
            raises(errno.EBUSY, open_close, p.b.path(NAME))
            p.ds.fsck(p.b.host, "-n")
            eq(len(names(p.ds)), 1, "fsck -n on another host removes nothing")
            if way == "fsck of its own":
                p.ds.fsck(p.a.host, "-p")
                eq(names(p.ds), [], "after " + way)
            elif way == "takeover":
                p.b.stop()
                p.ds.fsck(p.b.host, "-y")
                eq(len(names(p.ds)), 1, "fsck of another host without a person's word")
                eq(p.ds.fsck(p.b.host, "-y", "--takeover", p.a.host.uuid, "--confirm-host-is-down").code, 0, "exit code")
                eq(names(p.ds), [], "after " + way)
                p.b.start()
            p.a.start()
            eq(names(p.ds), [], "after the start of its own host")
            for view in p.views:
                writable(view, NAME)
                p.ds.wait_free(NAME)
        # Of a daemon of that host that is gone.
        with open(p.ds.inner_path("readers", "%016x-%s.%s.1" % (os.stat(p.ds.raw(NAME)).st_ino, p.a.host.uuid, "0" * 8 + "-0000-4000-8000-" + "0" * 12)), "w"):
            pass
        writable(p.b, NAME)
        # Of a host that nobody knows, with a text that does not decode: nobody can tell, so it counts.
        unknown = p.ds.inner_path("readers", "%016x-%s.%s.1" % (os.stat(p.ds.raw(NAME)).st_ino, "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"))
        with open(unknown, "w") as f:
            f.write("torn")
        for view in p.views:
            raises(errno.EBUSY, open_close, view.path(NAME))
        os.unlink(unknown)
        for view in p.views:
            writable(view, NAME)
            p.ds.wait_free(NAME)


@suite.case("an unmounted view leaves no name behind")
def _(build):
    with pair(build, "wait=0") as p, Proc() as one:
        image(p.ds)
        fd = one.call("open", p.a.path(NAME), RDONLY)
        for byte in (100, 201):
            one.call("lock", fd, READ, byte, 1)
        eq(len(names(p.ds)), 1, "names")
        must("umount", "-l", p.a.path())
        p.a.signal(signal.SIGTERM)
        p.a.wait_end()
        eq(names(p.ds), [], "names of a view that is gone")
        writable(p.b, NAME)
        one.kill()
        p.a.forget()
        p.a.start()


@suite.case("where the name cannot be made the program goes on, the log says so, and this host's writers are kept out all the same")
def _(build):
    if not build.hooks:
        raise Skip("needs -Dhooks=true")
    with pair(build, "wait=0") as p:
        image(p.ds)
        p.a.stop()
        p.a.start(DISKGUARD_HOOK_FAIL="names.create:1:%d" % errno.ENOSPC)
        with QemuIo(p.a.path(NAME), "-r") as reader:
            p.a.wait_log("'disk.qcow2' is read by pid %d .qemu-io., which wants no writer beside it, but it cannot be protected.*No space left" % reader.p.pid)
            raises(errno.EBUSY, open_close, p.a.path(NAME))
            reader.do("read -P 7 0 1M")
            reader.close()
        writable(p.b, NAME)


def declare(proc, view, name=NAME):
    fd = proc.call("open", view.path(name), RDONLY)
    for byte in (100, 201):
        proc.call("lock", fd, READ, byte, 1)
    return fd


@suite.case("a name that could not be made, or removed, the first time: nobody is locked out for ever, and nobody left unprotected")
def _(build):
    if not build.hooks:
        raise Skip("needs -Dhooks=true")
    for hook in ("names.create", "names.dirsync", "names.remove"):
        with pair(build, "wait=0") as p, Proc() as one, Proc() as two:
            image(p.ds)
            p.a.stop()
            p.a.start(DISKGUARD_HOOK_FAIL="%s:1:%d" % (hook, errno.EIO))
            fd = declare(one, p.a)
            if hook == "names.dirsync":
                eq(names(p.ds), [], "what could not be made durable is not there")
            if hook != "names.remove":
                declare(two, p.a)  # the first one has none: this one gets one
                eq(len(names(p.ds)), 1, hook)
                raises(errno.EBUSY, open_close, p.b.path(NAME))
                one.call("close", fd)
                raises(errno.EBUSY, open_close, p.b.path(NAME))
                two.kill()
            else:
                one.call("close", fd)
                p.a.wait_log("the name of a reader of inode .* could not be removed")
            wait_for(lambda: not names(p.ds), "the keeper removes what is left")
            writable(p.b, NAME)


@suite.case("a name that was taken away by mistake is made again, loudly; one of another daemon of this host is left alone at the end")
def _(build):
    with pair(build, "wait=0") as p, Proc() as one:
        image(p.ds)
        declare(one, p.a)
        os.unlink(p.ds.inner_path("readers", names(p.ds)[0]))
        p.a.wait_log("'disk.qcow2' is read by pid %d, which wants no writer beside it, and the name that says so was removed.*protected again" % one.pid)
        eq(len(names(p.ds)), 1, "names")
        raises(errno.EBUSY, open_close, p.b.path(NAME))
        os.unlink(p.ds.inner_path("readers", names(p.ds)[0]))
        with Proc() as writer:
            fd = writer.call("open", p.b.path(NAME), RDWR)
            p.a.wait_log("another host has it for write now: what is read here may be wrong")
            writer.call("close", fd)
        other = re.sub(r"\.[0-9a-f-]{36}\.[0-9]+$", ".00000000-0000-4000-8000-00000000000b.1", names(p.ds)[0])
        with open(p.ds.inner_path("readers", other), "w"):
            pass
        one.kill()
        p.a.stop()
        eq(names(p.ds), [other], "names")
        p.a.start()
        eq(names(p.ds), [], "names after a start, which alone knows that no other daemon of this host lives")


@suite.case("a name is of one file, not of the next one that gets its inode number")
def _(build):
    with pair(build, "wait=0") as p, Proc() as one:
        image(p.ds)
        declare(one, p.a)
        with open(p.ds.inner_path("readers", names(p.ds)[0]), "rb") as f:
            text = f.read()
        name = names(p.ds)[0].rsplit(".", 1)[0] + ".99"
        one.kill()
        wait_for(lambda: not names(p.ds), "the name goes")
        lines = text.split(b"\n")
        at = next(i for i, line in enumerate(lines) if line.startswith(b"handle="))
        for handle, free in ((lines[at], False), (lines[at][:-2] + (b"00" if lines[at][-2:] != b"00" else b"01"), True)):
            lines[at] = handle
            body = b"\n".join(lines[:-2]) + b"\n"
            with open(p.ds.inner_path("readers", name), "wb") as f:
                f.write(body + b"sum=%08x\n" % zlib.crc32(body))
            if free:
                writable(p.b, NAME)
            else:
                raises(errno.EBUSY, open_close, p.b.path(NAME))
            os.unlink(p.ds.inner_path("readers", name))


@suite.case("reading alone costs no look: also after a refused open here, and of what this host has held before")
def _(build):
    if not build.hooks:
        raise Skip("needs -Dhooks=true")
    with pair(build, "wait=0") as p, Proc() as one:
        image(p.ds)
        log = os.path.join(p.ds.base, "log")
        p.a.stop()
        p.a.start(DISKGUARD_HOOK_LOG=log, DISKGUARD_HOOK_ARM=p.ds.base)
        count = lambda: sum(line.endswith(" read.stat\n") for line in open(log))

        def free_of_cost():
            fd = os.open(p.a.path(NAME), RDONLY)
            before = count()
            for k in range(50):
                os.pread(fd, 4096, (k + 16) * 4096)
            after = count()
            os.close(fd)
            return after == before
        ok(not free_of_cost(), "who only looks pays")
        rw = one.call("open", p.a.path(NAME), RDWR)
        declare(one, p.a)
        eq(names(p.ds), [], "no name while its own process holds it")
        one.call("close", rw)
        wait_for(lambda: len(names(p.ds)) == 1, "a name before it is free")
        p.ds.wait_settled()
        wait_for(free_of_cost, "reads that cost nothing")
        raises(errno.EBUSY, open_close, p.a.path(NAME))
        ok(free_of_cost(), "after an open that was refused")


@suite.case("of a reader and a writer that race one sees the other, wherever that one stops")
def _(build):
    if not build.hooks:
        raise Skip("needs -Dhooks=true")
    with pair(build, "wait=0") as p, Proc() as one:
        image(p.ds)
        p.a.stop()
        p.a.start(DISKGUARD_HOOK_STOP="reader.ask:1")
        reads = []
        thread = threading.Thread(target=lambda: reads.append(run("qemu-io", "-r", "-c", "read -P 7 0 1M", p.a.path(NAME))))
        thread.start()
        wait_for(lambda: names(p.ds), "the name is made before the reader looks")
        wait_for(lambda: stopped(p.a.p.pid), "the reader's host is stopped")
        raises(errno.EBUSY, open_close, p.b.path(NAME))
        p.a.signal(signal.SIGCONT)
        thread.join()
        eq(reads[0].code, 0, "the reader goes on: %r" % reads[0])
        p.b.stop()
        p.b.start(DISKGUARD_HOOK_STOP="chain.list:2")  # the look under the claim
        one.send("open", p.b.path(NAME), RDWR)
        wait_for(lambda: stopped(p.b.p.pid), "the writer's host is stopped")
        ok(p.ds.claim_of(NAME) not in (None, "free"), "the writer's claim")
        refused("qemu-io", "-r", "-c", "read 0 64k", p.a.path(NAME), text=LOCKED_OUT)
        p.b.signal(signal.SIGCONT)
        one.call("close", one.recv())


@suite.case("reader and writer at once: never both", limit=300)
def _(build):
    with pair(build, "wait=0") as p, Proc() as reader, Proc() as writer:
        image(p.ds)
        won = {"reader": 0, "writer": 0, "none": 0}
        for number in range(60 if build.sanitize != "none" else 200):
            fd = reader.call("open", p.a.path(NAME), RDONLY)
            reader.call("lock", fd, READ, 100, 1)

            def declare():
                reader.send("lock", fd, READ, 201, 1)

            def write():
                writer.send("open", (p.b, p.a)[number % 4 == 0].path(NAME), RDWR)
            if number % 2:
                declare()
                write()
            else:
                write()
                for _ in range(number):  # the writer has more to do: it gets a start that grows
                    reader.call("stat", "/")
                declare()
            reader.recv()
            has_read = reader.call("getlock", fd, fcntl.F_WRLCK, 101, 1) == NONE
            try:
                w = writer.recv()
            except OSError as e:
                eq(e.errno, errno.EBUSY, "errno of a writer that lost")
                w = None
            ok(not (has_read and w is not None), "round %d: both" % number)
            won["writer" if w is not None else "reader" if has_read else "none"] += 1
            if w is not None:
                writer.call("close", w)
            reader.call("close", fd)
            p.ds.wait_settled()
        ok(won["reader"] and won["writer"], "one side never wins: %s" % won)


if __name__ == "__main__":
    suite.main()
