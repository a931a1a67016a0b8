"""group names: a directory with many small files, a tenth of them qcow2 images."""
import os
import random
import subprocess
import time

import guardian
from scene import PeerTarget, Refused, Stage, work
from stats import LESS, Figure

FOLDER, NEW = "many", "new"
EVERY = 10  # one in so many is an image
VIEW = "diskguard"


def room(plan):
    return 2 * plan.files * 4096 + (16 << 20), 2 * plan.files + 64


def make_files(folder, count):
    os.mkdir(folder)
    image = os.path.join(folder, "template")
    work("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", image, "64K")
    with open(image, "rb") as f:
        header = f.read()
    os.unlink(image)
    text = (b"a line of some file\n" * 205)[:4096]
    for i in range(count):
        name = "vm-%05d.qcow2" % i if i % EVERY == 0 else "file-%05d.xml" % i
        with open(os.path.join(folder, name), "wb") as f:
            f.write(text if i % EVERY else header)
    os.sync()


def timed(command, folder):
    """Seconds that a shell command takes in a folder."""
    began = time.monotonic()
    p = subprocess.Popen(["sh", "-c", command], cwd=folder, stdin=subprocess.DEVNULL,
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    guardian.process(p.pid)
    error = p.communicate(timeout=1800)[1]
    took = time.monotonic() - began
    if p.returncode or error:
        raise Refused("%s in %s: exit %d: %s" % (command, folder, p.returncode,
                                                 error.decode(errors="replace")[-300:]))
    return took


COMMANDS = {
    "ls -l": "ls -l",
    "find -type f -size +0": "find . -type f -size +0",
    "tar cf -": "tar cf - . | cat",
}


class Group:
    def __init__(self, bench, place):
        self.bench, self.plan, self.place = bench, bench.plan, place
        self.stage = Stage(bench.builds, place)
        for ds in self.stage.stores.values():
            make_files(ds.raw(FOLDER), self.plan.files)
        self.stage.raw()
        self.stage.views(VIEW)
        self.stage.add(PeerTarget("bare FUSE", self.stage.ds.path,
                                  [bench.bare_names, "{source}", "{mnt}"]))
        self.stage.add_peers(bench.peers)

    def steps(self):
        whats = [*COMMANDS, "create and unlink"]
        if self.plan.tiny:
            whats = whats[:1] + whats[-1:]
        return [lambda number, what=what: self.measure(what, number) for what in whats]

    def measure(self, what, number):
        targets = list(self.stage.targets)
        random.Random("%d %s" % (number, what)).shuffle(targets)
        for target in targets:
            if what in COMMANDS:
                self.add(what, target, number, timed(COMMANDS[what],
                                                     os.path.join(target.path, FOLDER)))
            else:
                self.create_and_unlink(target, number)

    def create_and_unlink(self, target, number):
        folder = os.path.join(target.path, NEW)
        os.mkdir(folder)
        for verb in ("create", "unlink"):
            self.add(verb, target, number, int(work(self.bench.calls, verb, folder,
                                                    self.plan.files)) / 1e9)
        os.rmdir(folder)

    def add(self, what, target, number, seconds):
        what = "%s, %s files" % (what, format(self.plan.files, ","))
        self.bench.figures.add(Figure("names", self.place.name, what, target.name, "s", LESS),
                               number, seconds)

    def end(self):
        self.stage.end()
