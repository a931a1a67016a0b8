"""labhost: storage that lab guests share, and diskguard on them: what scenarios are written with.

    lab = nfs_lab()                          server S, clients A and B; kept for the next case
    site = Site(lab, "4.2")                  a new datastore on the export, mounted on A and B
    a, b = site.view("A"), site.view("B")    a daemon with its view on each
    a.path("x.qcow2"), site.raw("x.qcow2")   the image through the view, and beside it
"""
import os
import re
import sys

import labguest  # first: it finds dgtest
import dgtest
import labcache
from dgtest import must, ok

EAGAIN, EBUSY, EIO, ENOENT, ESTALE, EACCES, EROFS, ENOSPC, EUCLEAN = 11, 16, 5, 2, 116, 13, 30, 28, 117
LEASE = GRACE = 10  # seconds: the shortest that nfsd takes

_labs = {}


def build_paths(build):
    """The programs under test, as guests see them: they share this machine's root directory."""
    return build.diskguard, build.ctl, build.fsck


def _disk(lab, name, size, *mkfs):
    path = os.path.join(lab.dir, name)
    if not os.path.exists(path):
        with open(path, "wb") as f:
            f.truncate(size)
        if mkfs:
            must(*mkfs, path)
    return path


def _ready(key, names, bring_up):
    """The lab of that kind, all of whose guests are up and healthy; made, or made anew, when it is not."""
    lab = _labs.get(key)
    if lab and not getattr(lab, "broken", False) and all(guest.alive() for guest in lab.guests.values()):
        return lab
    close(key)
    try:
        lab = _labs[key] = labguest.Lab(names)
        bring_up(lab)
    except (labcache.LabError, dgtest.Fail) as e:
        close(key)
        sys.exit("lab: %s" % e)  # without guests no other case can pass either
    return lab


def close(key=None):
    for k in [key] if key else list(_labs):
        lab = _labs.pop(k, None)
        if lab:
            lab.down()


def broken():
    """After a failed case: nothing is known of the guests, so the next case gets new ones."""
    for lab in _labs.values():
        lab.broken = True


# ---- NFS ----

def nfs_server(lab, restarted=False, options=""):
    lab["S"].must("bash %s/guest/nfs_server.sh %d %d '%s' '%s'" % (labguest.HERE, LEASE, GRACE, "restarted" if restarted else "", options))


def nfs_lab(names=("S", "A", "B")):
    def bring_up(lab):
        disk = _disk(lab, "server.disk", 2 << 30, "mkfs.ext4", "-q")
        lab.boot("S", [disk])
        for name in names[1:]:
            lab.boot(name)
        lab.up("S")
        nfs_server(lab)
        lab.up(*names[1:])
        lab.fs, lab.number, lab.mounts = "nfs", 0, {}
    return _ready("nfs%d" % len(names), names, bring_up)


def restart_server(lab):
    """Power cut of the server, and its return. Takes as long as a boot and the start of nfsd; the grace period goes on after that."""
    lab["S"].kill()
    lab.boot("S")
    lab.up("S")
    nfs_server(lab, restarted=True)


def expire(lab, name):
    """The server forgets an NFSv4 client with all its locks, as it would after the lease when somebody else wants them."""
    address = "10.99.0.%d:" % lab[name].number
    lab["S"].must("cd /proc/fs/nfsd/clients && for c in *; do grep -q '\"%s' $c/info && echo expire >$c/ctl; done; true" % address)


def nfs_mount(lab, name, version, options=""):
    """Mounts the export on a guest (once); the mount point."""
    point = "/mnt/v%s%s" % (version, re.sub("[^a-z0-9]", "-", options))
    boots = lab[name].boots
    if lab.mounts.get((name, point)) != boots:
        lab[name].must("bash %s/guest/nfs_client.sh %s %s '%s'" % (labguest.HERE, point, version, options))
        lab.mounts[(name, point)] = boots
    return point


# ---- OCFS2 ----

def ocfs2_lab(over):
    """over: "disk" (one disk that both guests see) or "iscsi" (S exports it)."""
    def bring_up(lab):
        disk = _disk(lab, "shared.disk", 1 << 30)
        root = os.path.join(lab.cache, "root")
        must("env", "LD_LIBRARY_PATH=%s/usr/lib/x86_64-linux-gnu:%s/lib/x86_64-linux-gnu" % (root, root), os.path.join(root, "usr/sbin/mkfs.ocfs2"),
             "-q", "-F", "-N", "4", "-L", "lab", "-J", "size=8M", "-b", "4096", "-C", "4096", "--cluster-stack=o2cb", "--cluster-name=lab", disk,
             stdin="y\n" * 32768)  # each of its processes asks, and reads ahead
        lab.fs, lab.number, lab.mounts, lab.over = "ocfs2", 0, {}, over
        if over == "iscsi":
            lab.boot("S", [disk])
        for name in ("A", "B"):
            lab.boot(name, [disk] if over == "disk" else [])
        if over == "iscsi":
            lab.up("S")
            lab["S"].must("bash %s/guest/iscsi_server.sh" % labguest.HERE)
        for name in ("A", "B"):
            lab.up(name)
            ocfs2_join(lab, name)
    return _ready("ocfs2-" + over, ("S", "A", "B") if over == "iscsi" else ("A", "B"), bring_up)


def ocfs2_join(lab, name):
    device = "/dev/vdb"
    if lab.over == "iscsi":
        lab[name].must("bash %s/guest/iscsi_client.sh" % labguest.HERE)
        device = "/dev/sda"
    lab[name].must("bash %s/guest/ocfs2_node.sh %s A B" % (labguest.HERE, device))


# ---- diskguard ----

class Site:
    """A new datastore on the lab's storage. kind: "3", "4.2" (NFS) or "ocfs2"."""

    def __init__(self, lab, kind, build, options="", init=True):
        self.lab, self.kind, self.build, self.options = lab, kind, build, options
        lab.number += 1
        self.name = "ds%d" % lab.number
        self.views = []
        self.daemon, self.ctl, self.fsck_program = build_paths(build)
        if init:
            first = [n for n in lab.names if n != "S"][0]
            self.lab[first].must("mkdir %s && %s init %s" % (self.folder(first), self.ctl, self.folder(first)))

    def folder(self, guest):
        """The raw datastore's path on a guest."""
        if self.kind == "ocfs2":
            return "/mnt/shared/" + self.name
        return nfs_mount(self.lab, guest, self.kind, self.options) + "/" + self.name

    def raw(self, name, guest="A"):
        return self.folder(guest) + "/" + name

    def view(self, guest, *options, **kw):
        v = View(self, guest, options, **kw)
        self.views.append(v)
        return v

    def image(self, name="disk.qcow2", size="64M", guest="A", options="-f qcow2"):
        self.lab[guest].must("qemu-img create -q %s %s %s" % (options, self.raw(name, guest), size))
        return self.lab[guest].do("header", self.raw(name, guest))

    def claim(self, name, guest="A"):
        """Fields of the ruling claim of a file, or {}."""
        return self.lab[guest].do("claim", self.folder(guest), name)

    def wait_claim(self, name, states=("free", ""), guest="A", limit=60.0):
        state = self.lab[guest].do("wait_claim", self.folder(guest), name, states, limit, limit=limit + 60)
        if state is None:
            claim = self.claim(name, guest)
            raise dgtest.Fail("the claim of %s does not become %s; it is %s of %s, generation %s; logs: %s" % (
                name, " or ".join(s for s in states if s), claim.get("state"), claim.get("name"), claim.get("generation"),
                " | ".join("%s: %s" % (v.guest.name, v.log()[-700:]) for v in self.views if v.pid)))
        return state

    def fsck(self, guest, *args, limit=120.0):
        return self.lab[guest].sh("%s %s --state-dir=/var/lib/diskguard %s" % (self.fsck_program, " ".join(args), self.folder(guest)), limit)

    def close(self):
        for v in list(self.views):
            if v.guest.alive():
                v.stop()


class View:
    """A daemon on a guest, in the foreground with its log in a file."""

    def __init__(self, site, guest, options=(), env="", start=True):
        self.site, self.guest, self.options, self.env = site, site.lab[guest], list(options), env
        self.mnt = "/view-%s" % site.name
        self.log_name = "%s-%s.log" % (site.name, guest)
        self.pid = None
        if start:
            self.start()

    def path(self, name=""):
        return self.mnt + ("/" + name if name else "")

    def log(self):
        with open(self.site.lab.share(self.log_name), errors="replace") as f:
            return f.read()

    def wait_log(self, pattern, since=0, timeout=30.0):
        def found():
            return next((line for line in self.log()[since:].splitlines() if re.search(pattern, line)), None)
        try:
            return dgtest.wait_for(found, pattern, timeout)
        except dgtest.Fail:
            raise dgtest.Fail("no line %r in the log: %s" % (pattern, self.log()[since:][-1500:])) from None

    def spawn(self):
        options = ",".join(["state-dir=/var/lib/diskguard", *self.options])
        self.guest.must("mkdir -p %s; %s setsid %s %s %s -f -o %s </dev/null >>/lab/%s 2>&1 & echo $! >/run/view.pid" % (
            self.mnt, self.env, self.site.daemon, self.site.folder(self.guest.name), self.mnt, options, self.log_name))
        self.pid = int(self.guest.must("cat /run/view.pid"))

    def start(self, timeout=60.0):
        since = len(self.log()) if os.path.exists(self.site.lab.share(self.log_name)) else 0
        self.spawn()
        dgtest.wait_for(lambda: "is mounted on" in self.log()[since:] or not self.running(), "the view of %s is mounted" % self.guest.name, timeout)
        ok("is mounted on" in self.log()[since:], "diskguard on %s does not start: %s" % (self.guest.name, self.log()[since:][-1000:]))
        return self

    def running(self):
        return self.guest.do("alive", self.pid)  # no script: start() asks often, and under emulation a shell takes half a second

    def signal(self, name):
        self.guest.must("kill -%s %d" % (name, self.pid))

    def kill9(self):
        self.signal("KILL")
        ok(self.guest.do("wait_gone", self.pid), "the killed daemon ends")
        self.guest.must("umount -l " + self.mnt)
        self.pid = None

    def stop(self):
        """A clean unmount: everything is put back."""
        if self.pid is None:
            return
        self.guest.must("umount " + self.mnt)
        ok(self.guest.do("wait_gone", self.pid), "the daemon ends after umount; log: " + self.log()[-1000:])
        self.pid = None

    def ctl(self, *args):
        return self.guest.sh("%s %s" % (self.site.ctl, " ".join(args)))

    def why(self, name):
        return self.ctl("why", self.path(name)).out

    def hold(self, handle, name, flags="w"):
        try:
            return self.guest.do("opened", handle, self.path(name), flags)
        except OSError as e:
            raise dgtest.Fail("%s: open of %s: %s; log: %s" % (self.guest.name, name, e.strerror, self.log()[-1500:])) from None


class Steps:
    """A daemon of a build with hooks that stops at its k-th durable step, or at the k-th of a name, of what `arm` begins (base/hook.h)."""

    def __init__(self, site, guest, where, *options, beat=1000):
        self.guest = site.lab[guest]
        self.guest.sh("rm -f /run/arm /run/hooks.log")
        self.view = site.view(guest, *options, env="DISKGUARD_BEAT_MS=%d DISKGUARD_HOOK_ARM=/run/arm "
                              "DISKGUARD_HOOK_LOG=/run/hooks.log DISKGUARD_HOOK_STOP=%s" % (beat, where))

    def arm(self):
        self.guest.must("touch /run/arm")

    def disarm(self):
        self.guest.must("rm -f /run/arm")

    def reached(self, call=None, limit=60.0):
        """Waits until the daemon has stopped (True), or the call is answered without that (False)."""
        def what():
            if self.guest.do("stopped", self.view.pid):
                return "stopped"
            return "answered" if call and call.done() else None
        return dgtest.wait_for(what, "the daemon stops or answers", limit) == "stopped"

    def passed(self):
        """Names of the steps so far; the last one is where it stopped."""
        return [line.split()[1] for line in self.guest.must("cat /run/hooks.log 2>/dev/null || true").splitlines()]

    def go_on(self):
        self.view.signal("CONT")


def nfs_scenarios(suite, default_versions=("4.2", "3"), default_limit=300.0):
    """A decorator for functions (lab, site): the case of that title, once for each version of NFS, with a fresh datastore."""
    def scenario(title, versions=default_versions, limit=default_limit, names=("S", "A", "B")):
        def add(function):
            for version in versions:
                def case(build, version=version):
                    lab = nfs_lab(names)
                    site = Site(lab, version, build)
                    function(lab, site)
                    site.close()
                suite.case("%s, NFSv%s" % (title, version), limit)(case)
            return function
        return add
    return scenario


def suite_main(suite):
    """Runs a suite of scenarios and takes its labs down."""
    run_case = suite.run_case

    def run(title, function, limit):
        failed = suite.counts["failed"]
        run_case(title, function, limit)
        if suite.counts["failed"] > failed:
            for lab in _labs.values():
                for guest in lab.guests.values():
                    print("        %s's console: %s" % (guest.name, guest.console_tail(600).strip().replace("\n", "\n        ")), flush=True)
            broken()
        else:
            for lab in _labs.values():
                lab.heal()
    suite.run_case = run
    try:
        suite.main()
    finally:
        close()
