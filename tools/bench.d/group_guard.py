"""group guard: what the claim costs. An open for write, a close (until the next open can start), a
boot storm, the loser of a race with wait=0, and the same with many claims on the datastore; beside
them the same durable calls made bare, by bench_calls."""
import os
import random
import shutil
import statistics
import tempfile

import dgtest
from scene import Stage, work
from stats import LESS, Figure

VIEW, BARE, RACERS = "diskguard", "bare calls", ("racer 1", "racer 2")


def room(plan):
    images, size = 2 * (plan.storm + 1), 262144
    return images * size + plan.claims * 4096 + (64 << 20), plan.claims + images + 256


def forge_claims(ds, count):
    """Freed claims of files that have gone, as a datastore has them where images come and go. They
    are links to a real one: an open lists their names and never reads them."""
    real = next(ds.inner_path("claims", name) for name in ds.inner("claims"))
    source = os.path.join(ds.base, "claim")
    for i in range(count):
        if i % 30000 == 0:  # ext4 has 65,000 links to a file
            work("cp", "-p", real, "%s%d" % (source, i // 30000))
        name = "%016x.1" % (0x4000000000000000 + i)
        os.link("%s%d" % (source, i // 30000), ds.inner_path("claims", name))


class Group:
    def __init__(self, bench, place):
        self.bench, self.plan, self.place = bench, bench.plan, place
        self.stages = {"": self.make()}
        if self.plan.claims:
            many = self.stages[", %s claims" % format(self.plan.claims, ",")] = self.make()
            for ds in many.stores.values():
                forge_claims(ds, self.plan.claims)
        self.bare_at = tempfile.mkdtemp(dir=place.path)

    def make(self):
        """One view with the default options, and two hosts with wait=0 that race. Each image has
        had a claim: its first open is another one."""
        stage = Stage(self.bench.builds, self.place)
        for ds in stage.stores.values():
            work("qemu-img", "create", "-q", "-f", "qcow2", ds.raw("one.qcow2"), "1G")
            for i in range(self.plan.storm):
                shutil.copy(ds.raw("one.qcow2"), ds.raw("storm%d.qcow2" % i))
        stage.views(VIEW)
        for racer in RACERS:
            stage.views(racer, "wait=0")
        for suffix in self.bench.builds:
            self.one(stage.find(VIEW + suffix))
        os.sync()
        return stage

    def steps(self):
        found = []
        for label, stage in self.stages.items():
            found.append(lambda number, a=(label, stage): self.open_close(*a, number))
            for suffix in self.in_turn():
                found.append(lambda number, a=(label, stage, suffix): self.race(*a, number))
        for suffix in self.in_turn():
            found.append(lambda number, suffix=suffix: self.storm(suffix, number))
        return found

    def in_turn(self):
        """The builds, in an order that changes."""
        self.turn = not getattr(self, "turn", False)
        return list(self.bench.builds)[::1 if self.turn else -1]

    def call(self, *args):
        """Seconds, of the nanoseconds that bench_calls prints."""
        return [int(n) / 1e9 for n in work(self.bench.calls, *args).split()]

    def path(self, target, name="one"):
        return os.path.join(target.path, name + ".qcow2")

    def one(self, target):
        """Seconds of an open of an idle image, and of another one right after its close."""
        took = self.call("again", self.path(target))
        self.settle(target)
        return took

    def settle(self, target, names=("one",)):
        for name in names:
            argv = [target.build.ctl, "wait", "--timeout=0", self.path(target, name)]
            dgtest.wait_for(lambda argv=argv: dgtest.run(*argv).code == 0,
                            "nobody holds " + name, 120)

    def bare(self):
        folder = tempfile.mkdtemp(dir=self.bare_at)
        lines = work(self.bench.calls, "bare", folder, self.plan.opens).splitlines()
        return [[int(n) / 1e9 for n in line.split()] for line in lines]

    def add(self, what, target, number, seconds):
        figure = Figure("guard", self.place.name, what, target, "ms", LESS)
        self.bench.figures.add(figure, number, seconds * 1000)

    def open_close(self, label, stage, number):
        """The median of some opens is the round's value."""
        kinds = [BARE, *(VIEW + suffix for suffix in self.bench.builds)]
        random.Random("%d %s" % (number, label)).shuffle(kinds)
        for kind in kinds:
            if kind == BARE:
                pairs = self.bare()
            else:
                pairs = [self.one(stage.find(kind)) for _ in range(self.plan.opens)]
                pairs = [(first, again - first) for first, again in pairs]
            for i, what in enumerate(("open for write", "close, until the next open can start")):
                median = statistics.median(max(p[i], 0.0) for p in pairs)
                self.add(what + label, kind, number, median)
            median = statistics.median(sum(p) for p in pairs)
            self.add("open and close" + label, kind, number, median)

    def race(self, label, stage, suffix, number):
        """The time of the loser, and of the winner."""
        found, racers = [], [stage.find(racer + suffix) for racer in RACERS]
        for _ in range(self.plan.races):
            found.append(self.call("race", *(self.path(r) for r in racers)))
            self.settle(racers[0])
        for i, what in enumerate(("race with wait=0, the winner", "race with wait=0, the loser")):
            self.add(what + label, VIEW + suffix, number, statistics.median(f[i] for f in found))

    def storm(self, suffix, number):
        """Per open, when all of it is divided by the number of images."""
        target = self.stages[""].find(VIEW + suffix)
        names = ["storm%d" % i for i in range(self.plan.storm)]
        paths = [self.path(target, name) for name in names]
        opened, again, slowest = self.call("storm", self.plan.procs, *paths)
        self.settle(target, names)
        label = "boot storm, %d images, %d processes: " % (self.plan.storm, self.plan.procs)
        self.add(label + "open, each", target.name, number, opened / len(names))
        self.add(label + "close, each", target.name, number, max(again - opened, 0.0) / len(names))
        self.add(label + "slowest open", target.name, number, slowest)

    def end(self):
        for stage in self.stages.values():
            stage.end()
