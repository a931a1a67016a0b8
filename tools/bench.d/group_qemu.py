"""group qemu: QEMU's own block layer on an image: qemu-img bench, and through qemu-storage-daemon,
which has the image open as a virtual machine has, and an NBD socket."""
import json
import os
import random
import re
import shutil
import subprocess

import dgtest
import guardian
from scene import Refused, Stage, work
from stats import MORE, Figure

IMAGE = "vm.qcow2"
VIEW = "diskguard"
MIB = 1 << 20


def room(plan):
    return plan.size + (64 << 20), 16


class Workload:
    def __init__(self, name, write, bs, depth, count, nbd=False):
        self.name, self.write, self.bs, self.depth = name, write, bs, depth
        self.count, self.nbd = count, nbd


def workloads(plan):
    """qemu-img bench takes a number of requests, not a time."""
    found = []
    for tool in ("qemu-img bench", "qemu-storage-daemon"):
        if tool == "qemu-storage-daemon" and not shutil.which(tool):
            continue
        for text, bs, depth, scale in (("4k QD1", 4096, 1, 1), ("4k QD32", 4096, 32, 4),
                                       ("1M QD8", MIB, 8, 1 / 32)):
            for write in (False, True):
                name = "%s, %s %s" % (tool, "write" if write else "read", text)
                found.append(Workload(name, write, bs, depth, max(8, int(plan.requests * scale)),
                                      tool != "qemu-img bench"))
    if plan.quick:
        found = [w for w in found if " 4k QD32" in w.name or (" 1M" in w.name and not w.nbd)]
    return found[:1] + found[-1:] if plan.tiny else found


class Group:
    def __init__(self, bench, place):
        self.bench, self.plan, self.place = bench, bench.plan, place
        self.stage = Stage(bench.builds, place)
        for ds in self.stage.stores.values():
            # Written once, so that nothing is allocated while it is measured.
            work("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=falloc",
                 ds.raw(IMAGE), str(self.plan.size))
            work("qemu-io", "-c", "write -q -P 85 0 %d" % self.plan.size, ds.raw(IMAGE))
        self.stage.raw()
        self.stage.views(VIEW)
        self.stage.add_peers(bench.peers)

    def steps(self):
        return [lambda number, w=w: self.measure(w, number) for w in workloads(self.plan)]

    def measure(self, w, number):
        targets = [t for t in self.stage.targets if self.bench.can("qemu", self.place, w, t)]
        random.Random("%d %s" % (number, w.name)).shuffle(targets)
        for target in targets:
            path = os.path.join(target.path, IMAGE)
            try:
                seconds = self.by_nbd(w, path) if w.nbd else bench(w, "qcow2", path)
            except dgtest.Fail as e:
                why = str(e).rpartition(": exit ")[2].splitlines()[0]
                self.bench.cannot("qemu", self.place, w, target, why)
                continue
            value = w.count * w.bs / 1e6 / seconds if w.bs >= MIB else w.count / seconds
            unit = "MB/s" if w.bs >= MIB else "IO/s"
            self.bench.figures.add(Figure("qemu", self.place.name, w.name, target.name, unit, MORE),
                                   number, value)
            if target.build:
                work(target.build.ctl, "wait", path)

    def by_nbd(self, w, path):
        """A qemu-storage-daemon has the image open and serves it."""
        socket = os.path.join(self.stage.ds.base, "nbd")
        direct = {"direct": True}
        file = {"driver": "qcow2", "node-name": "disk", "cache": direct,
                "file": {"driver": "file", "filename": path, "cache": direct}}
        with open(socket + ".log", "wb") as log:
            p = subprocess.Popen(["qemu-storage-daemon", "--blockdev", json.dumps(file),
                                  "--nbd-server", "addr.type=unix,addr.path=" + socket,
                                  "--export", "type=nbd,id=e,node-name=disk,name=disk,writable=on",
                                  "--pidfile", socket + ".pid"],
                                 stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        guardian.process(p.pid)
        try:
            dgtest.wait_for(lambda: p.poll() is not None or os.path.exists(socket + ".pid"),
                            "qemu-storage-daemon serves")
            if p.poll() is not None:
                with open(socket + ".log", errors="replace", encoding="utf-8") as log:
                    raise Refused("qemu-storage-daemon: " + log.read()[-300:])
            return bench(w, "raw", "nbd+unix:///disk?socket=" + socket)
        finally:
            p.terminate()
            p.wait(60)

    def end(self):
        self.stage.end()


def bench(w, fmt, path):
    """Seconds that qemu-img bench takes."""
    text = work("qemu-img", "bench", *(["-w"] if w.write else []), "-t", "none", "-f", fmt, "-c",
                w.count, "-d", w.depth, "-s", w.bs, path)
    found = re.search(r"Run completed in ([\d.]+) seconds", text)
    if not found:
        raise Refused("qemu-img bench: " + text[-300:])
    return max(float(found.group(1)), 0.0005)
