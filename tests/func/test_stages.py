#!/usr/bin/env python3
"""test_stages: images that are not (yet) healthy: just being made, with size 0; headers that contradict themselves, and are repaired through the view; bit 63
of qcow2 as somebody else's."""
import errno
import json
import os
import shutil
import subprocess

import dgtest
import kinds
from dgqemu import make_qcow2, no_lock, qcow2_size
from dgtest import Proc, Suite, close_stream, eq, is_sealed, must, ok, pair, raises, read_at, refused, run, sha, suite_tmp, wait_for

suite = Suite(__file__, memory=True)
RDWR, CREAT = os.O_RDWR, os.O_CREAT
FORMATS = ("qcow2", "qed", "vdi", "vpc", "vhdx", "parallels", "luks", "qcow", "vmdk")
NO_ZERO = ("qcow", "vmdk")  # QEMU itself does not open, or not even make, one of size 0


class Qmp:
    """qemu-storage-daemon and its monitor."""

    def __init__(self):
        self.p = subprocess.Popen(["qemu-storage-daemon", "--chardev", "stdio,id=m", "--monitor", "m", "--object", "secret,id=s,data=letmein"],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        dgtest.guardian.process(self.p.pid)
        self.concluded = False
        ok("QMP" in self.read(), "the greeting")
        self.do("qmp_capabilities")

    def read(self):
        line = json.loads(self.p.stdout.readline())
        if line.get("event") == "JOB_STATUS_CHANGE" and line["data"]["status"] == "concluded":
            self.concluded = True
        return line

    def do(self, command, **arguments):
        self.p.stdin.write(json.dumps({"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}) + "\n")
        self.p.stdin.flush()
        while True:
            line = self.read()
            if "error" in line:
                raise OSError(errno.EIO, "%s: %s" % (command, line["error"]["desc"]))
            if "return" in line:
                return line["return"]

    def create(self, **options):
        self.concluded = False
        self.do("blockdev-create", job_id="job", options={k.replace("_", "-"): v for k, v in options.items()})
        while not self.concluded:
            self.read()
        error = self.do("query-jobs")[0].get("error")
        self.do("job-dismiss", id="job")
        if error:
            raise OSError(errno.EIO, "blockdev-create: " + error)

    def make(self, path, fmt, size):
        """As libvirt does it: the file, its node, the format in it."""
        self.create(driver="file", filename=path, size=0)
        self.do("blockdev-add", driver="file", filename=path, node_name="file", auto_read_only=True, read_only=False)
        more = {"key-secret": "s", "iter-time": 10} if fmt == "luks" else {"force-size": True} if fmt == "vpc" else {}
        self.create(driver=fmt, file="file", size=size, **more)

    def end(self):
        self.do("quit")
        self.p.wait(30)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.p.kill()
        self.p.wait()
        close_stream(self.p.stdin)
        self.p.stdout.close()


@suite.case("blockdev-create of every format goes on, with no threshold, with one, and with seal=size", limit=300)
def _(build):
    for options in ((), ("threshold=0",), ("threshold=1G",), ("seal=size",)):
        with pair(build, "wait=0", *options, hosts=("a",)) as p:
            for fmt in FORMATS if not options or suite.args.long else ("qcow2", "qed", "vdi", "vpc"):
                for size in (0, 64 << 20):
                    name = "%s-%d" % (fmt, size)
                    if size == 0 and fmt in NO_ZERO:
                        continue
                    try:
                        with Qmp() as q:
                            q.make(p.a.path(name), fmt, size)
                            node = {"key-secret": "s"} if fmt == "luks" else {}
                            q.do("blockdev-add", driver=fmt, file="file", node_name="n", **node)
                            q.end()
                    except OSError as e:
                        ok(False, "%s, %s: %s; log: %s" % (options, name, e, p.a.log()[-600:]))
                    p.ds.wait_free(name)
            ok("contradicts itself" not in p.a.log(), "a stage that QEMU makes is called damaged: " + p.a.log()[-2000:])


@suite.case("with no threshold and seal=refuse an image of size 0 is an image like any other, and its size comes back")
def _(build):
    with pair(build, "wait=0") as p, Proc() as holder:
        for fmt in FORMATS:
            if fmt in NO_ZERO or fmt == "luks":
                continue
            must("qemu-img", "create", "-q", "-f", fmt, p.a.path(fmt), "0")
            p.ds.wait_free(fmt)
            before = sha(p.ds.raw(fmt))
            must("qemu-io", "-f", fmt, "-c", "length", p.b.path(fmt))
            p.ds.wait_free(fmt)
            eq(sha(p.ds.raw(fmt)), before, fmt)
        for fmt in ("qcow2", "qed"):
            must("qemu-img", "resize", "-q", "-f", fmt, p.a.path(fmt), "64M")
            p.ds.wait_free(fmt)
            must("qemu-io", "-f", fmt, "-c", "write -P 7 0 1M", p.b.path(fmt))
            p.ds.wait_free(fmt)
        make_qcow2(p.ds.raw("zero.qcow2"), 0)
        fd = holder.call("open", p.a.path("zero.qcow2"), RDWR)
        ok(is_sealed(p.ds.raw("zero.qcow2")), "sealed")
        raises(errno.EBUSY, os.open, p.b.path("zero.qcow2"), RDWR)
        shutil.copyfile(p.ds.raw("zero.qcow2"), p.ds.raw("orphan.qcow2"))
        holder.call("close", fd)
        p.ds.wait_free("zero.qcow2")
        eq(qcow2_size(p.ds.raw("zero.qcow2")), 0)
        raises(errno.EUCLEAN, os.open, p.a.path("orphan.qcow2"), RDWR)
        for view in p.views:
            view.stop()
        r = p.ds.fsck(p.a.host, "-y")
        ok(r.code & 4 == 0, "fsck -y: %r" % r)
        eq(read_at(p.ds.raw("orphan.qcow2"), 0, 512), read_at(p.ds.raw("zero.qcow2"), 0, 512), "the orphan's size 0 came back")
        p.ds.fsck_clean(p.a.host)


@suite.case("convert to and rebase onto an empty image")
def _(build):
    with pair(build, "wait=0", hosts=("a",)) as p:
        for fmt in ("qcow2", "qed", "vdi", "vhdx", "parallels"):
            name, empty = fmt + ".src", p.a.path(fmt + ".empty")
            must("qemu-img", "create", "-q", "-f", "raw", p.ds.raw(name), "0")
            must("qemu-img", "convert", "-f", "raw", "-O", fmt, p.a.path(name), empty)
            p.ds.wait_free(fmt + ".empty")
        ok("contradicts itself" not in p.a.log(), "a stage that QEMU makes is called damaged: " + p.a.log()[-2000:])
        make_qcow2(p.a.path("base.qcow2"), "64M")
        p.ds.wait_free("base.qcow2")
        make_qcow2(p.a.path("top.qcow2"), 0)
        p.ds.wait_free("top.qcow2")
        must("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2", p.a.path("top.qcow2"))
        p.ds.wait_free("top.qcow2")
        must("qemu-img", "rebase", "-f", "qcow2", "-F", "qcow2", "-b", "", p.a.path("top.qcow2"))
        p.ds.wait_free("top.qcow2")


def write_header(proc, path, data, flags=RDWR | CREAT):
    fd = proc.call("open", path, flags)
    proc.call("pwrite", fd, data, 0)
    proc.call("close", fd)


@suite.case("threshold=: who made the image goes on, though the kernel forgot it; nobody else, and no more once it is ended")
def _(build):
    with pair(build, "wait=0", "threshold=0") as p, Proc() as one, Proc() as two:
        make_qcow2(p.ds.raw("zero"), 0)
        data = read_at(p.ds.raw("zero"), 0, 1 << 20)
        make_qcow2(p.ds.raw("full"), "64M")
        full = read_at(p.ds.raw("full"), 0, 1 << 20)
        for who in (one, two):
            raises(errno.EPERM, who.call, "open", p.a.path("zero"), RDWR)
        for name, how in (("created", CREAT | RDWR), ("filled", RDWR), ("emptied", RDWR | os.O_TRUNC), ("made-smaller", RDWR)):
            path = p.a.path(name)
            if name == "filled":
                with open(p.ds.raw(name), "wb"):
                    pass
            elif name in ("emptied", "made-smaller"):
                shutil.copyfile(p.ds.raw("full"), p.ds.raw(name))
            write_header(one, path, data, how)
            p.ds.wait_free(name)
            for turn in range(2):
                raises(errno.EPERM, two.call, "open", path, RDWR)
                raises(errno.EPERM, os.open, p.b.path(name), RDWR)
                one.call("close", one.call("open", path, RDWR))
                p.ds.wait_free(name)
                if turn == 0:
                    with open("/proc/sys/vm/drop_caches", "w") as f:
                        f.write("3")
            write_header(one, path, full, RDWR)  # it has grown: made
            p.ds.wait_free(name)
            with open(p.ds.raw(name), "r+b") as f:
                f.write(data)
            raises(errno.EPERM, one.call, "open", path, RDWR)
        write_header(one, p.a.path("left"), data)
        p.ds.wait_free("left")
        one.kill()
        raises(errno.EPERM, two.call, "open", p.a.path("left"), RDWR)
        line = p.a.wait_log(r"refused .*'left'")
        ok("threshold of 0" in line and "did not make it" in line, line)


# ---- headers that contradict themselves ----

def lie(path, offset, data):
    with open(path, "r+b") as f:
        f.seek(offset)
        was = f.read(len(data))
        f.seek(offset)
        f.write(data)
    return was


LIES = {"cluster_bits": (20, (77).to_bytes(4, "big")), "version": (4, (9).to_bytes(4, "big")), "l1_offset": (40, (12345).to_bytes(8, "big")),
        "header_length": (100, (4).to_bytes(4, "big"))}


@suite.case("a header that lies: claimed without a seal, one warning, guarded from others; written whole again it is sealed at once")
def _(build):
    with pair(build, "wait=0") as p, Proc() as holder, Proc() as other:
        for name, (offset, data) in LIES.items():
            make_qcow2(p.ds.raw(name), 64 << 20)
            was = lie(p.ds.raw(name), offset, data)
            before = sha(p.ds.raw(name))
            mark = p.a.log_size()
            fd = holder.call("open", p.a.path(name), RDWR)
            p.a.wait_log(name, mark)
            lines = [line for line in p.a.log()[mark:].splitlines() if name in line]
            eq(len(lines), 1, "lines: %r" % lines)
            ok("not sealed" in lines[0] and "contradicts itself" in lines[0], lines[0])
            eq(sha(p.ds.raw(name)), before, "nothing is written: " + name)
            for view in p.views:
                raises(errno.EBUSY, other.call, "open", view.path(name), RDWR)
                raises(errno.EBUSY, os.truncate, view.path(name), 0)
                raises(errno.EBUSY, os.unlink, view.path(name))
                eq(sha(view.path(name)), before, "readable as it is: " + name)
            refused("qemu-io", "-f", "raw", "-c", "write 0 512", p.ds.raw(name), text="lock")
            holder.call("pwrite", fd, was, offset)
            ok(is_sealed(p.ds.raw(name)), "sealed when it is whole: " + name)
            holder.call("pwrite", fd, data, offset)
            holder.call("pwrite", fd, was, offset)
            holder.call("close", fd)
            p.ds.wait_free(name)
            must("qemu-img", "check", p.ds.raw(name))


@suite.case("damaged=refuse: EUCLEAN, untouched, and the log names the way out")
def _(build):
    with pair(build, "wait=0", "damaged=refuse", hosts=("a",)) as p:
        for name, (offset, data) in LIES.items():
            make_qcow2(p.ds.raw(name), 64 << 20)
            lie(p.ds.raw(name), offset, data)
            before = sha(p.ds.raw(name))
            mark = p.a.log_size()
            raises(errno.EUCLEAN, os.open, p.a.path(name), RDWR)
            ok("damaged=claim" in p.a.wait_log(name, mark), "the way out")
            eq(sha(p.ds.raw(name)), before, "untouched: " + name)
            eq(sha(p.a.path(name)), before, "readable as it is: " + name)


@suite.case("a damaged image whose daemon dies is freed at the next start; one that is mended past its header is sealed by the keeper")
def _(build):
    with pair(build, "wait=0", hosts=("a",)) as p, Proc() as holder:
        make_qcow2(p.ds.raw("dead"), 64 << 20)
        was = lie(p.ds.raw("dead"), *LIES["cluster_bits"])
        before = sha(p.ds.raw("dead"))
        holder.call("open", p.a.path("dead"), RDWR)
        p.a.kill9()
        holder.kill()
        p.a.start()
        p.ds.wait_free("dead")
        eq(sha(p.ds.raw("dead")), before, "untouched")
        lie(p.ds.raw("dead"), LIES["cluster_bits"][0], was)
        with Proc() as again:
            again.call("close", again.call("open", p.a.path("dead"), RDWR))
        p.ds.wait_free("dead")
    with pair(build, "wait=0", hosts=("a",)) as p, Proc() as holder:
        must("qemu-img", "create", "-q", "-f", "vpc", p.ds.raw("late"), "64M")
        with open(p.ds.raw("late"), "r+b") as f:
            f.seek(16)
            f.write((1 << 16).to_bytes(8, "big"))  # the dynamic header is to stand at 64 KiB
            f.seek(0)
            footer = bytearray(f.read(512))
            kinds.vhd_checksum(footer, 0, 512, 64)
            f.seek(0)
            f.write(footer)
            f.seek(512)
            header = f.read(1024)
        fd = holder.call("open", p.a.path("late"), RDWR)
        ok("not sealed" in p.a.wait_log("late"), "claimed without a seal")
        free = read_at(p.ds.raw("late"), 0, 512)
        holder.call("pwrite", fd, header, 1 << 16)
        wait_for(lambda: read_at(p.ds.raw("late"), 0, 512) != free, "it is sealed")
        holder.call("close", fd)
        p.ds.wait_free("late")
        eq(read_at(p.ds.raw("late"), 0, 512), free, "and restored")


@suite.case("check -r all, amend, a botched snapshot table and a compression type without its bit are mended through the view")
def _(build):
    with pair(build, "wait=0", hosts=("a",)) as p:
        for name, offset, data, mend in (
                ("compression", 104, b"\1", None),
                ("snapshots", 60, (70000).to_bytes(4, "big"), ("qemu-img", "check", "-r", "all")),
                ("corrupt", 72, (2).to_bytes(8, "big"), ("qemu-img", "check", "-r", "all")),
                ("refcounts", 0x10000, bytes(8), ("qemu-img", "check", "-r", "all")),
                ("lazy", 20, (16).to_bytes(4, "big"), ("qemu-img", "amend", "-f", "qcow2", "-o", "lazy_refcounts=on"))):
            make_qcow2(p.ds.raw(name), 64 << 20)
            must("qemu-io", "-c", "write -P 7 0 1M", p.ds.raw(name))
            was = lie(p.ds.raw(name), offset, data)
            plain = os.path.join(suite_tmp(), name)
            shutil.copyfile(p.ds.raw(name), plain)
            if mend is None:  # what a person does with a hex editor
                with Proc() as editor:
                    fd = editor.call("open", p.a.path(name), RDWR)
                    editor.call("pwrite", fd, was, offset)
                    editor.call("close", fd)
                lie(plain, offset, was)
            else:
                wanted, got = run(*mend, plain), run(*mend, p.a.path(name))
                eq(got.code, wanted.code, "%s: %r, on a plain directory %r" % (name, got, wanted))
            p.ds.wait_free(name)
            eq(sha(p.ds.raw(name)), sha(plain), "the same bytes as on a plain directory: " + name)
            if name != "snapshots":  # QEMU keeps 65,536 of them, which are none
                must("qemu-io", "-r", "-c", "read -P 7 0 1M", p.a.path(name))


@suite.case("every format: a damaged header is claimed, what seal=size may have left is not")
def _(build):
    broken = {"qcow2-v3": (20, b"\0\0\0\7"), "qcow": (32, b"\1"), "qed-65536-4": (4, b"\1\2\3\4"), "vdi": (0x178, b"\3\0\0\0"), "vmdk": (20, bytes(8)),
              "vpc": (12, b"\0\7\0\0"), "vhdx": (0x30004, b"\1\2\3\4"), "parallels": (16, b"\7\0\0\0"), "luks1-qemu": (108, bytes(4)), "luks2": (8, bytes(8)),
              "vpc-fixed": (-500, b"\0\7\0\0")}
    with pair(build, "wait=0") as p, Proc() as holder:
        for kind in kinds.kinds():
            if kind.name not in broken:
                continue
            folder = p.ds.raw(kind.name)
            os.mkdir(folder)
            path = kind.make(folder)
            offset, data = broken[kind.name]
            lie(path, offset if offset >= 0 else os.path.getsize(path) + offset, data)
            name = os.path.relpath(path, p.ds.path)
            before = sha(path)
            fd = holder.call("open", p.a.path(name), RDWR)
            line = p.a.wait_log("'%s'" % name)
            ok("contradicts itself" in line, "%s: %s" % (kind.name, line))
            raises(errno.EBUSY, os.open, p.b.path(name), RDWR)
            eq(sha(path), before, kind.name)
            holder.call("close", fd)
            p.ds.wait_free(name)
            eq(sha(path), before, kind.name)
    for name in ("qcow", "vmdk"):
        with pair(build, "wait=0", "seal=size", hosts=("a",)) as p, Proc() as holder:
            kind = kinds.named(name)
            kind.make(p.ds.path)
            fd = holder.call("open", p.a.path("image"), RDWR)
            shutil.copyfile(p.ds.raw("image"), p.ds.raw("copy"))
            raises(errno.EUCLEAN, os.open, p.a.path("copy"), RDWR)
            ok("seal=size leaves" in p.a.wait_log("refused .*'copy'"), name)
            os.unlink(p.a.path("copy"))
            holder.call("close", fd)


@suite.case("diskguardctl tells of a damaged image: why, show, list, held and free")
def _(build):
    with pair(build, "wait=0", hosts=("a",)) as p, Proc() as holder:
        make_qcow2(p.ds.raw("img"), 64 << 20)
        lie(p.ds.raw("img"), *LIES["cluster_bits"])

        def ctl(*args):
            return run(*build.command(build.ctl, *args), env=build.env())
        r = ctl("why", p.a.path("img"))
        ok("Granted, without a seal" in r.out and "cluster_bits 77" in r.out, r.out)
        ok("cluster_bits 77" in ctl("show", p.a.path("img")).out, "show")
        fd = holder.call("open", p.a.path("img"), RDWR)
        r = ctl("show", p.a.path("img"))
        ok("claim and QEMU's byte locks" in r.out and "qcow2" in r.out and "lies: cluster_bits 77" in r.out, r.out)
        r = ctl("why", p.a.path("img"))
        ok("contradicts itself" in r.out, r.out)
        ok("claim+locks" in ctl("list", p.a.mnt).out, ctl("list", p.a.mnt).out)
        holder.call("close", fd)


# ---- bit 63 ----

@suite.case("bit 63 of qcow2 alone is somebody else's: guarded with it, and the bit is there afterwards, also from an orphan")
def _(build):
    with pair(build, "wait=0") as p, Proc() as holder:
        make_qcow2(p.ds.raw("img"), 64 << 20)
        lie(p.ds.raw("img"), 72, b"\x80")
        before = sha(p.ds.raw("img"))
        fd = holder.call("open", p.a.path("img"), RDWR)
        disk = read_at(p.ds.raw("img"), 0, 512)
        ok(disk[24:31] == b"SEALED\0" and disk[72] == 0x80, "sealed, with its bit")
        refused("qemu-img", "info", *no_lock(p.ds.raw("img")))
        eq(sha(p.b.path("img")), before, "through the other view")
        raises(errno.EBUSY, os.open, p.b.path("img"), RDWR)
        shutil.copyfile(p.ds.raw("img"), p.ds.raw("orphan"))
        holder.call("close", fd)
        p.ds.wait_settled()
        eq(sha(p.ds.raw("img")), before, "restored")
        raises(errno.EUCLEAN, os.open, p.a.path("orphan"), RDWR)
        for view in p.views:
            view.stop()
        ok(p.ds.fsck(p.a.host, "-y").code & 4 == 0, "fsck -y")
        eq(sha(p.ds.raw("orphan")), before, "undone, with the bit that is its own")


@suite.case("what seal=size left without a claim, of any format, is no empty image for a view without threshold=")
def _(build):
    with pair(build, "seal=size", hosts=("a",), settled=False) as p, Proc() as holder:
        names = [fmt for fmt in FORMATS if fmt != "luks"]
        for fmt in names:
            must("qemu-img", "create", "-q", "-f", fmt, p.ds.raw(fmt), "64M")
            must("qemu-io", "-f", fmt, "-c", "write -P 7 0 64k", p.ds.raw(fmt))
            before = sha(p.ds.raw(fmt))
            holder.call("open", p.a.path(fmt), RDWR)
            ok(sha(p.ds.raw(fmt)) != before, fmt + " is sealed")
        p.a.kill9()
        for claim in p.ds.inner("claims"):
            os.unlink(p.ds.inner_path("claims", claim))
        view = dgtest.View(p.ds, dgtest.Host(p.ds.base, "b"), ["wait=0"])
        for fmt in names:
            raises(errno.EUCLEAN, os.open, view.path(fmt), RDWR)
        view.stop()


if __name__ == "__main__":
    suite.main()
