"""scene: where the bench measures. Places, datastores, views and peers, and their end.

Views are mounted by the harness of the functional tests (tests/func/dgtest.py). Its guardian, a
process beside this one, ends what was started, unmounts and removes, however this one ends."""
import os
import shutil
import subprocess
import tempfile
import time

import dgtest
import guardian
from dgops import libc


class Refused(Exception):
    """The bench cannot run as it was asked to."""


def work(*argv, **kw):
    """Runs a program that must succeed; its output."""
    return dgtest.must(*argv, timeout=900, **kw)


def cpu_seconds(pid):
    """User and system time of a process with all its threads: clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


def memory_peak(pid):
    """VmHWM in MiB."""
    with open("/proc/%d/status" % pid, encoding="ascii", errors="replace") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM:")) / 1024


def reset_peak(pid):
    with open("/proc/%d/clear_refs" % pid, "w", encoding="ascii") as f:
        f.write("5")


# ---- places ----

class Place:
    """A temporary directory on one file system."""

    def __init__(self, name, parent):
        self.name = name
        self.path = tempfile.mkdtemp(prefix="dg-bench-", dir=parent)
        guardian.directory(self.path)
        os.chmod(self.path, 0o755)
        self.fstype = file_system(self.path)
        self.direct = self._takes_direct()

    def _takes_direct(self):
        path = os.path.join(self.path, "direct")
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT))
            return True
        except OSError:
            return False
        finally:
            os.unlink(path)

    def sync(self):
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        libc.syncfs(fd)
        os.close(fd)

    def folder(self):
        return tempfile.mkdtemp(prefix="s-", dir=self.path)

    def room(self, needed, files):
        """Refuses to go on where this place has not enough room; a tenth of the file system stays
        free."""
        s = os.statvfs(self.path)
        free = s.f_bavail * s.f_frsize - s.f_blocks * s.f_frsize // 10
        if self.fstype == "tmpfs":
            free = min(free, memory_available() * 3 // 4)
        if free < needed:
            raise Refused("%s: %d MiB are needed, %d MiB are there to be used (a tenth stays free):"
                          " see --dir, --places, --size, --files"
                          % (self.path, needed >> 20, max(free, 0) >> 20))
        if s.f_files and s.f_favail < files:
            raise Refused("%s: %d new files are needed, the file system has room for %d" %
                          (self.path, files, s.f_favail))


def file_system(path):
    """Type of the file system that holds path."""
    best, kind = "", "?"
    for mount, (_, fstype) in guardian.mounts().items():
        if (path + "/").startswith(mount.rstrip("/") + "/") and len(mount) >= len(best):
            best, kind = mount, fstype
    return kind


def memory_available():
    with open("/proc/meminfo", encoding="ascii") as f:
        return next(int(line.split()[1]) << 10 for line in f if line.startswith("MemAvailable:"))


# ---- targets: a directory, and the process that serves it ----

class Target:
    """One way to the same files. name: as in the tables; kind: the same without the build; path:
    the directory; pid: of the daemon, None for the raw directory."""
    build = None  # of a view

    def __init__(self, name, path, pid=None):
        self.name, self.kind, self.path, self.pid = name, name, path, pid

    def end(self):
        pass


class ViewTarget(Target):
    """A view with a host id and a daemon of its own."""

    def __init__(self, kind, suffix, ds, options=()):
        self.view = dgtest.View(ds, dgtest.Host(ds.base, kind.replace(" ", "-")), options)
        super().__init__(kind + suffix, self.view.mnt, self.view.p.pid)
        self.kind, self.build = kind, ds.build

    def end(self):
        self.view.stop(120)


class PeerTarget(Target):
    """Another file system that shows a directory at another place."""

    def __init__(self, name, source, argv):
        self.mnt = tempfile.mkdtemp(prefix="peer-", dir=os.path.dirname(source))
        argv = [word.format(source=source, mnt=self.mnt) for word in argv]
        self.log = self.mnt + ".log"
        with open(self.log, "wb") as log:
            self.p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        guardian.process(self.p.pid)
        dgtest.wait_for(lambda: self.p.poll() is not None or dgtest.mounted_at(self.mnt),
                        name + " is mounted")
        if self.p.poll() is not None:
            with open(self.log, errors="replace", encoding="utf-8") as log:
                raise Refused("%s ended with %d: %s" % (name, self.p.returncode,
                                                        log.read()[-300:].strip()))
        super().__init__(name, self.mnt, self.p.pid)

    def end(self):
        if dgtest.mounted_at(self.mnt):
            dgtest.umount(self.mnt)
        self.p.wait(60)


# In the foreground; data past the page cache where fio asks for it.
PEERS = {
    "bindfs": ["bindfs", "-f", "--forward-odirect=4096", "{source}", "{mnt}"],
    "mergerfs": ["mergerfs", "-f", "-o", "cache.files=off,minfreespace=0,func.getattr=newest",
                 "{source}", "{mnt}"],
    "passthrough_hp": ["passthrough_hp", "--foreground", "{source}", "{mnt}"],
}


def peers():
    """Names of the peers that are installed."""
    return [name for name in PEERS if shutil.which(name)]


class Stage:
    """The targets of one group in one place. Each build has a datastore of its own, with the same
    files; the raw directory, and what the peers show, is that of the build that is measured."""

    def __init__(self, builds, place):
        self.place = place
        self.stores = {suffix: dgtest.Datastore(b, place.folder()) for suffix, b in builds.items()}
        self.ds = self.stores[""]
        self.targets = []

    def add(self, target):
        self.targets.append(target)
        return target

    def raw(self, folder=""):
        return self.add(Target("raw", self.ds.raw(folder)))

    def views(self, kind, *options):
        """One of each build."""
        for suffix, ds in self.stores.items():
            self.add(ViewTarget(kind, suffix, ds, options))

    def find(self, name):
        return next(t for t in self.targets if t.name == name)

    def add_peers(self, names):
        for name in names:
            self.add(PeerTarget(name, self.ds.path, PEERS[name]))

    def end(self):
        for target in reversed(self.targets):
            target.end()
        for ds in self.stores.values():
            shutil.rmtree(ds.base)


def cpu_now(stage):
    return {t.name: cpu_seconds(t.pid) for t in stage.targets if t.pid}


def cpu_since(stage, before):
    """{target: CPU seconds of its daemon since then}"""
    return {name: now - before[name] for name, now in cpu_now(stage).items()}
