"""group many: one daemon with many images. Memory of each held one, `diskguardctl list` and `why`,
the start after a crash with all of them claimed, and `fsck.diskguard -n` on a full datastore beside
a walk that reads 512 bytes of each file."""
import os
import resource
import shutil
import subprocess
import time

import dgtest
import guardian
from scene import Refused, Stage, work
from stats import LESS, Figure

VIEW, WALK = "diskguard", "walk"
HELD, FULL = "held", "full"  # folders


def room(plan):
    return plan.many * 262144 + plan.scanned * 8192 + (64 << 20), \
        3 * plan.many + plan.scanned + 256


def limit_descriptors(plan):
    """A held image takes three of its daemon. Where root may not raise the limit, the most images that
    it allows; None: as many as asked."""
    needed = 3 * plan.many + 1024
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or hard >= needed:
        return None
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, needed))
        return None
    except (ValueError, OSError):
        return max((hard - 1024) // 3, 1)


def anonymous_kib(pid):
    """What a process has of its own: memory that no file backs."""
    with open("/proc/%d/status" % pid, encoding="ascii", errors="replace") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("RssAnon:"))


def timed(*argv):
    began = time.monotonic()
    work(*argv)
    return time.monotonic() - began


class Group:
    def __init__(self, bench, place):
        self.bench, self.plan, self.place = bench, bench.plan, place
        most = limit_descriptors(self.plan)
        if most is not None:
            bench.note("RLIMIT_NOFILE cannot be raised: %d held images instead of %d" %
                       (most, self.plan.many))
            self.plan.many = most
        self.stage = Stage(bench.builds, place)
        for ds in self.stage.stores.values():
            os.mkdir(ds.raw(HELD))
            first = ds.raw(os.path.join(HELD, "0.qcow2"))
            work("qemu-img", "create", "-q", "-f", "qcow2", first, "1G")
            for i in range(1, self.plan.many):
                shutil.copy(first, ds.raw(os.path.join(HELD, "%d.qcow2" % i)))
        self.views = [dgtest.View(ds, dgtest.Host(ds.base, "many")) for ds in
                      self.stage.stores.values()]
        self.full = self.make_full()

    def make_full(self):
        """A datastore beside the others: `scanned` files, one in ten an image."""
        ds = dgtest.Datastore(self.bench.build, self.place.folder())
        os.mkdir(ds.raw(FULL))
        image = ds.raw("one.qcow2")
        work("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", image, "64K")
        with open(image, "rb") as f:
            header = f.read(4096)
        for i in range(self.plan.scanned):
            with open(ds.raw("%s/%d" % (FULL, i)), "wb") as f:
                f.write(header if i % 10 == 0 else b"a file\n" * 512)
        os.sync()
        return ds

    def steps(self):
        found = [lambda number, view=view, suffix=suffix: self.held(view, VIEW + suffix, number)
                 for suffix, view in zip(self.bench.builds, self.views)]
        return found + [self.check]

    def add(self, what, target, number, value, unit="ms"):
        figure = Figure("many", self.place.name, what, target, unit, LESS)
        self.bench.figures.add(figure, number, value)

    def held(self, view, target, number):
        """Holds all images, looks, kills the daemon and starts it again."""
        label = "%s held images: " % format(self.plan.many, ",")
        before = anonymous_kib(view.p.pid)
        holder = subprocess.Popen([self.bench.calls, "hold", view.path(HELD), str(self.plan.many)],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        guardian.process(holder.pid)
        took = holder.stdout.readline()
        if not took:
            raise Refused("bench_calls could not hold %d images" % self.plan.many)
        self.add(label + "open, each", target, number, int(took) / 1e6 / self.plan.many)
        kib = (anonymous_kib(view.p.pid) - before) / self.plan.many
        self.add(label + "memory, each", target, number, kib, "KiB")
        last = view.path("%s/%d.qcow2" % (HELD, self.plan.many - 1))
        self.add(label + "list", target, number, 1000 * timed(view.build.ctl, "list", view.mnt))
        self.add(label + "why", target, number, 1000 * timed(view.build.ctl, "why", last))
        view.kill9()
        holder.stdin.close()
        holder.wait(60)
        began = time.monotonic()
        view.start(600)
        self.add(label + "start after kill -9", target, number, 1000 * (time.monotonic() - began))
        dgtest.wait_for(lambda: not os.listdir(view.ds.raw(".diskguard/claims"))
                        or dgtest.run(view.build.ctl, "wait", "--timeout=0", last).code == 0,
                        "all are restored", 600)
        view.stop(120)
        view.start(600)

    def check(self, number):
        label = "%s files: " % format(self.plan.scanned, ",")
        walk = int(work(self.bench.calls, "scan", self.full.raw()).split()[0]) / 1e6
        self.add(label + "fsck.diskguard -n", WALK, number, walk)
        took = 1000 * timed(self.bench.build.fsck, "-n", self.full.path)
        self.add(label + "fsck.diskguard -n", "fsck", number, took)

    def end(self):
        for view in self.views:
            view.stop(120)
        self.stage.end()
        shutil.rmtree(self.full.base)
