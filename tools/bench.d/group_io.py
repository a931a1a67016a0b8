"""group io: fio on guest data.

One fio runs one workload on all targets, one after the other, in an order that changes from round
to round. Each target is another way to files of the same size; a held image is kept open for write
by this program, through a view with writers=host, and fio has its descriptors open for write, too,
as a virtual machine has. The first and the last 4 MiB of each file are left alone: an edit of a
header is not guest data."""
import json
import os
import random

import dgtest
from scene import PeerTarget, Refused, Stage, cpu_now, cpu_since, memory_peak, reset_peak, work
from stats import LESS, MORE, Figure

MIB, GIB = 1 << 20, 1 << 30
EDGE = 4 * MIB
FILES = 4  # of each target
HELD = ("held qcow2", "held raw")  # quick leaves the second one out
NAMES = {"raw": "plain%d.dat", "held qcow2": "vm%d.qcow2", "held raw": "disk%d.img",
         "plain": "plain%d.dat", "reader": "vm%d.qcow2"}


class Workload:
    def __init__(self, name, read, bs, engine, depth=1, jobs=1, fsync=False, random_order=True):
        """read: percentage of reads; 0 and 100 are pure."""
        self.name, self.read, self.bs, self.engine = name, read, bs, engine
        self.depth, self.jobs, self.fsync, self.random_order = depth, jobs, fsync, random_order
        self.unit = "MB/s" if bs >= MIB else "IO/s"


def both(text, bs, engine, depth=1, jobs=1, random_order=True):
    label = "%s %s%s" % (text, "QD%d " % depth if depth > 1 or bs < MIB else "", engine)
    return [Workload("read " + label, 100, bs, engine, depth, jobs, False, random_order),
            Workload("write " + label, 0, bs, engine, depth, jobs, False, random_order)]


def workloads(plan):
    """quick: the ones that say most."""
    found = both("4k", 4096, "psync")
    for depth in (32,) if plan.quick else (1, 8, 32, 128):
        found += both("4k", 4096, "io_uring", depth)
    if not plan.quick:
        found += [Workload("mix 70/30 4k QD1 psync", 70, 4096, "psync"),
                  Workload("mix 70/30 4k QD32 io_uring", 70, 4096, "io_uring", 32),
                  *both("64k", 65536, "psync"), *both("64k", 65536, "io_uring", 8),
                  *both("1M", MIB, "psync", random_order=False)]
    found += both("1M", MIB, "io_uring", 8, random_order=False)
    found.append(Workload("write 4k + fsync psync", 0, 4096, "psync", fsync=True))
    if not plan.quick:
        found += [*both("4k, 4 files at once,", 4096, "psync", jobs=FILES),
                  *both("4k, 4 files at once,", 4096, "io_uring", 8, FILES)]
    return [found[0], found[-1]] if plan.tiny else found


def room(plan):
    """Bytes and files: the raw directory and the view of plain files show the same ones."""
    return 3 * FILES * plan.size, 64


def fill(path, begin, end):
    """Random bytes, so that nothing is sparse; no boot record."""
    block = random.Random(1).randbytes(MIB)
    block = block[:510] + b"\0\0" + block[512:]
    with open(path, "r+b" if os.path.exists(path) else "wb") as f:
        f.seek(begin)
        while begin < end:
            begin += f.write(block[:end - begin])


def make_files(ds, size):
    for k in range(FILES):
        image = ds.raw(NAMES["held qcow2"] % k)
        work("qemu-img", "create", "-q", "-f", "qcow2", image, "1T")
        fill(image, MIB, size)
        for name in ("held raw", "plain"):
            fill(ds.raw(NAMES[name] % k), 0, size)
    os.sync()


class Group:
    def __init__(self, bench, place):
        self.bench, self.plan, self.place = bench, bench.plan, place
        self.stage = Stage(bench.builds, place)
        for ds in self.stage.stores.values():
            make_files(ds, self.plan.size)
        self.stage.raw()
        for name in HELD[:1 if self.plan.quick and not self.plan.tiny else 2]:
            self.stage.views(name, "writers=host")
        self.stage.views("plain")
        self.stage.views("reader")
        self.stage.add(PeerTarget("bare FUSE", self.stage.ds.path, [bench.bare_fuse, "{source}", "{mnt}"]))
        self.stage.add_peers(bench.peers)
        self.handles = [os.open(self.file(t, k), os.O_RDWR | os.O_CLOEXEC)
                        for t in self.stage.targets if t.kind in HELD for k in range(FILES)]
        for t in self.stage.targets:
            if t.pid:
                reset_peak(t.pid)

    def file(self, target, k):
        return os.path.join(target.path, NAMES.get(target.kind, NAMES["raw"]) % k)

    def steps(self):
        """What one round consists of: functions of the round's number."""
        return [lambda number, w=w: self.measure(w, number) for w in workloads(self.plan)]

    def targets(self, w, number):
        found = [t for t in self.stage.targets if (w.read == 100 or t.kind != "reader")
                 and self.bench.can("io", self.place, w, t)]
        random.Random("%d %s" % (number, w.name)).shuffle(found)
        return found

    def job(self, w, targets):
        """The text of a job file. A pure read is a mix, too: fio then opens for write, as well."""
        size = self.plan.size - 2 * EDGE
        lines = ["[global]", "direct=1", "thread", "time_based", "group_reporting",
                 "runtime=%dms" % self.plan.runtime_ms, "bs=%d" % w.bs,
                 "ioengine=" + w.engine, "iodepth=%d" % w.depth, "offset=%d" % EDGE,
                 "size=%d" % (size - size % w.bs), "randrepeat=0", "norandommap"]
        if w.fsync:
            lines.append("fsync=1")
        for i, target in enumerate(targets):
            for k in range(w.jobs):
                lines += ["[t%d]" % i, "filename=" + self.file(target, k),
                          *(() if k else ("stonewall", "new_group"))]
                order = "rand" if w.random_order else ""
                if target.kind == "reader":
                    lines.append("rw=%sread" % order)
                else:
                    lines += ["rw=%s" % ("randrw" if order else "rw"), "rwmixread=%d" % w.read]
        return "\n".join(lines) + "\n"

    def measure(self, w, number):
        targets = self.targets(w, number)
        path = os.path.join(self.stage.ds.base, "job")
        with open(path, "w", encoding="utf-8") as f:
            f.write(self.job(w, targets))
        self.place.sync()  # or the first one pays for what was written before
        before = cpu_now(self.stage)
        result = self.fio(w, path)
        moved = {}
        for job in result["jobs"]:
            sides = (job["read"], job["write"])
            target = targets[int(job["jobname"][1:])]
            if job["error"]:
                self.bench.cannot("io", self.place, w, target, os.strerror(job["error"]))
                continue
            moved[target.name] = sum(s["io_bytes"] for s in sides)
            speed, scale = ("iops", 1) if w.unit == "IO/s" else ("bw_bytes", 1e6)
            self.add(w.name, target, w.unit, MORE, number, sum(s[speed] for s in sides) / scale)
        for name, used in cpu_since(self.stage, before).items():
            if moved.get(name):
                target = next(t for t in targets if t.name == name)
                self.add(w.name, target, "CPU s/GiB", LESS, number, used * GIB / moved[name])

    def add(self, what, target, unit, better, number, value):
        figure = Figure("io", self.place.name, what, target.name, unit, better)
        self.bench.figures.add(figure, number, value)

    def fio(self, w, path):
        """What it says as JSON: also of jobs that failed."""
        r = dgtest.run("fio", "--output-format=json", "--output=" + path + ".json", path,
                       cwd=self.stage.ds.base, timeout=900)
        with open(path + ".json", encoding="utf-8") as f:
            output = f.read()
        result = json.loads(output[output.find("{"):] or "{}")  # warnings stand before it
        jobs = result.get("jobs", [])
        if not jobs or (r.code and not any(job["error"] for job in jobs)):
            raise Refused("%s: %r" % (w.name, r))
        return result

    def end(self):
        for t in self.stage.targets:
            if t.pid:
                self.add("peak memory", t, "MiB", LESS, 0, memory_peak(t.pid))
        for fd in self.handles:
            os.close(fd)
        self.stage.end()
