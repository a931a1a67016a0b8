"""dgstack: hosts with a libvirt of their own, for the tests under libvirt.

    site = Site(build, "view")           a datastore; its hosts see it at the same path (VMS): "raw" the directory itself, "view" each a view of its own
    a = site.host("dga")                 a libvirtd of its own, with all its state, sockets, network and name; a diskguard with a host id of its own
    a.virsh("start", "vm1")              must succeed; .refused(...) must fail; .sh(...) any program on that host
    link(a, b)                           a network between the two

A host is a process in mount, UTS, IPC, network and pid namespaces of its own (hostinit.py) and what it starts: when that process is killed, which guardian.py sees to
however the suite ends, the kernel ends all of it. Nothing of the machine's own libvirt is used but its programs and its packaged configuration.

libvirt has its packaged configuration but for what a host of a test must have for itself: host_uuid (else two daemons on one machine take each other for themselves), where
its log goes, and TCP without TLS for migrations, as there are no certificates. Guests are <domain type='qemu'>;
with --long 'kvm' where use_kvm() finds that one really boots.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "func"))
import dgtest  # noqa: E402
import guardian  # noqa: E402
import guestboot  # noqa: E402
import stackguest  # noqa: E402
from dgtest import Fail, eq, must, ok, run, wait_for  # noqa: E402

DEBUG = os.environ.get("DG_STACK_DEBUG")  # libvirtd logs everything, to libvirtd.debug beside its log
HOME = os.environ.get("DG_STACK_KEEP")    # a directory to which logs of failed cases are copied
NAMESPACES = ("-m", "-u", "-i", "-n", "-p")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "fuse")
virt = "qemu"  # or "kvm"
_vms = None


def use_kvm():
    """Guests run under KVM from now on, if one really boots there: /dev/kvm opens on many a machine inside a machine, and its guests hang."""
    global virt, DEVICES
    base = dgtest.suite_tmp()
    disk, debug = os.path.join(base, "boot"), os.path.join(base, "said")
    with open(disk, "wb") as f:
        f.write(guestboot.sector())
        f.truncate(1 << 20)
    p = subprocess.Popen(["qemu-system-x86_64", "-accel", "kvm", "-m", "16", "-display", "none", "-nodefaults", "-debugcon", "file:" + debug, "-drive", "file=%s,format=raw,if=ide" % disk],
                         stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    guardian.process(p.pid)
    try:
        wait_for(lambda: p.poll() is not None or Host.said(debug) == "BW", "a guest boots under KVM", 5)
        if p.poll() is None:
            virt, DEVICES = "kvm", (*DEVICES, "kvm")
    except Fail:
        pass
    finally:
        p.kill()
        p.wait()
    print("guests run under " + virt, flush=True)


def vms():
    """Where each host has the datastore. The same path for all of them, raw or view, so that XML and messages are the same, too."""
    global _vms
    if _vms is None:
        _vms = os.path.join(dgtest.suite_tmp(), "vms")
        os.mkdir(_vms)
    return _vms


def has_option(build, name):
    """Does this diskguard have the mount option name= ?"""
    return name + "=" in run(*build.command(build.diskguard, "--help"), env=build.env()).out


# ---- one host ----

class Host:
    """Use Site.host()."""

    def __init__(self, site, name, options=(), qemu_conf=(), lockd_conf=(), number=1):
        self.site, self.build, self.name, self.number = site, site.build, name, number
        self.base = os.path.join(site.base, name)
        self.options, self.qemu_conf, self.lockd_conf = options, qemu_conf, lockd_conf
        self.identity = dgtest.Host(site.base, name)
        self.daemons = {}
        self.init = self.boot = None

    def root(self, path):
        """Where a path of libvirt on that host (/var/log/libvirt...) is for us."""
        return self.base + path

    def up(self):
        self._configure()
        self._boot()
        if self.site.kind == "view":
            self.mount()
        self.start("virtlogd")
        if self.lockd_conf or any("lock_manager" in line for line in self.qemu_conf):
            self.start("virtlockd")
        self.start_libvirtd()
        return self

    def _configure(self):
        shutil.copytree("/etc/libvirt", self.root("/etc/libvirt"), dirs_exist_ok=True)
        shutil.rmtree(self.root("/etc/libvirt/qemu"), ignore_errors=True)  # guests and networks of this machine
        os.makedirs(self.root("/etc/libvirt/qemu"))
        self._append("libvirtd.conf", 'host_uuid = "%s"' % self.identity.uuid, "listen_tls = 0", "listen_tcp = 1", 'auth_tcp = "none"',
                     'log_outputs = "3:file:/var/log/libvirt/libvirtd.log%s"' % (" 1:file:/var/log/libvirt/libvirtd.debug" if DEBUG else ""),
                     *(('log_filters = "1:qemu 1:security 1:util.file 1:storage 1:locking 4:event 4:rpc 4:object"',) if DEBUG else ()))
        self._append("qemu.conf", *self.qemu_conf)
        self._append("qemu-lockd.conf", *[line.replace("VMS", vms()) for line in self.lockd_conf])
        for place in ("/var/lib/libvirt", "/var/lib/libvirt/qemu", "/var/log/libvirt", "/var/cache/libvirt"):
            os.makedirs(self.root(place), exist_ok=True)
        if self.site.cache:
            shutil.copytree(self.site.cache, self.root("/var/cache/libvirt"), dirs_exist_ok=True)
        with open(self.root("/etc/hosts"), "w", encoding="ascii") as f:
            f.write("127.0.0.1 localhost\n10.93.0.1 dga\n10.93.0.2 dgb\n")
        with open(self.root("/etc/machine-id"), "w", encoding="ascii") as f:
            f.write(self.identity.uuid.replace("-", "") + "\n")

    def _append(self, name, *lines):
        with open(os.path.join(self.root("/etc/libvirt"), name), "a", encoding="utf-8") as f:
            f.write("".join("\n" + line for line in lines) + "\n")

    def _boot(self):
        bound = [self.site.ds.path, vms()] if self.site.kind == "raw" else []
        self.boot = subprocess.Popen(["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--", sys.executable, "-S", "-E",
                                      os.path.join(HERE, "hostinit.py"), self.name, self.base, self.identity.uuid.replace("-", ""), ",".join(DEVICES), *bound],
                                     stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        guardian.process(self.boot.pid)
        self.site.hosts.append(self)
        ok(self.boot.stdout.readline() == b"ready\n", "%s does not come up" % self.name)
        with open("/proc/%d/task/%d/children" % (self.boot.pid, self.boot.pid), encoding="ascii") as f:
            self.init = int(f.read().split()[0])
        guardian.process(self.init)

    def inside(self, *argv):
        return ["nsenter", "-t", str(self.init), *NAMESPACES, "--", *[str(a) for a in argv]]

    def sh(self, *argv, **kw):
        return must(*self.inside(*argv), **kw)

    def sh_run(self, *argv, **kw):
        return run(*self.inside(*argv), **kw)

    # -- the view

    @property
    def view_log(self):
        return os.path.join(self.site.base, self.name + ".diskguard.log")

    def mount(self):
        options = ["host-id=" + self.identity.uuid, "state-dir=" + self.identity.state, *self.site.options, *self.options]
        log = open(self.view_log, "ab")
        mark = log.tell()
        p = subprocess.Popen(self.inside(*self.build.command(self.build.diskguard, self.site.ds.path, vms(), "-f", *(("-d",) if DEBUG else ()), "-o", ",".join(options))),
                             stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.build.env())
        log.close()
        self.daemons["diskguard"] = p
        guardian.process(p.pid)

        def mounted():
            return p.poll() is not None or "is mounted on" in self.said(self.view_log)[mark:]
        wait_for(mounted, "the view of %s" % self.name)
        ok(p.poll() is None, "diskguard ended: " + self.said(self.view_log)[mark:])

    def unmount(self):
        """Clean: the daemon must end with 0."""
        self.sh("umount", vms())
        eq(self.daemons.pop("diskguard").wait(60), 0, "exit code of diskguard; log: " + self.said(self.view_log)[-800:])

    # -- libvirt

    def start(self, name, *argv):
        out = open(self.root("/var/log/libvirt/%s.out" % name), "ab")
        p = self.daemons[name] = subprocess.Popen(self.inside(name, *argv), stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        out.close()
        guardian.process(p.pid)

    def start_libvirtd(self):
        self.start("libvirtd", "--listen")
        wait_for(lambda: self.daemons["libvirtd"].poll() is not None or self.virsh_run("uri").code == 0, "libvirtd of %s" % self.name, 60)
        ok(self.daemons["libvirtd"].poll() is None, "libvirtd ended: " + self.log() + self.said(self.root("/var/log/libvirt/libvirtd.out")))
        if not self.site.cache:
            self.virsh("domcapabilities", "--virttype", virt)
            self.site.cache = Site.cache = self.root("/var/cache/libvirt")

    def pid_of(self, name):
        """The pid, on that host, of libvirtd or of a guest's QEMU."""
        path = "/run/libvirtd.pid" if name == "libvirtd" else "/run/libvirt/qemu/%s.pid" % name
        return int(self.sh("cat", path))

    def kill(self, name):
        self.sh("kill", "-9", self.pid_of(name))
        if name in self.daemons:
            self.daemons.pop(name).wait(60)

    def stop_libvirtd(self):
        """As a service manager would; its guests go on."""
        self.sh("kill", self.pid_of("libvirtd"))
        self.daemons.pop("libvirtd").wait(60)

    def virsh_run(self, *argv, **kw):
        return self.sh_run("virsh", "-q", "-c", "qemu:///system", *argv, **kw)

    def virsh(self, *argv, **kw):
        r = self.virsh_run(*argv, **kw)
        if r.code:
            raise Fail("%s: virsh %s: %s" % (self.name, " ".join(str(a) for a in argv), r.out.strip()[-800:]))
        return r.out

    def refused(self, *argv, text="", **kw):
        r = self.virsh_run(*argv, **kw)
        ok(r.code, "%s: virsh %s was not refused" % (self.name, " ".join(argv)))
        ok(re.search(text, r.out), "refused, but without %r: %s" % (text, r.out))
        return r.out

    @staticmethod
    def said(path):
        try:
            with open(path, errors="replace") as f:
                return f.read()
        except FileNotFoundError:
            return ""

    def log(self):
        return self.said(self.root("/var/log/libvirt/libvirtd.log"))

    def spawn(self, *argv):
        """virsh that takes its time: a Popen, its output in .communicate()."""
        p = subprocess.Popen(self.inside("virsh", "-q", "-c", "qemu:///system", *argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        guardian.process(p.pid)
        return p

    # -- guests

    def state(self, guest):
        r = self.virsh_run("domstate", guest)
        return r.out.strip() if r.code == 0 else None

    def guest_words(self, guest):
        """(numbers written, writes that failed) from the guest's memory; None before it has begun."""
        r = self.virsh_run("qemu-monitor-command", guest, "--hmp", "xp /4wx 0x%x" % stackguest.STATE)
        m = re.search(r": 0x(\w+) 0x(\w+) 0x(\w+) 0x(\w+)", r.out)
        if r.code or not m or int(m[4], 16) != stackguest.MAGIC:
            return None
        return int(m[1], 16), int(m[2], 16)

    def written(self, guest):
        words = self.guest_words(guest)
        ok(words, "%s: %s does not run: %s" % (self.name, guest, self.said(self.root("/var/log/libvirt/qemu/%s.log" % guest))[-400:]))
        eq(words[1], 0, "writes of %s that failed" % guest)
        return words[0]

    def wait_booted(self, guest):
        wait_for(lambda: self.guest_words(guest), "%s: %s boots" % (self.name, guest), 60)

    def wait_written(self, guest, number):
        """Waits until the guest has written that number; what it has now."""
        try:
            return wait_for(lambda: self.written(guest) >= number and self.written(guest), "%s: %s writes %d" % (self.name, guest, number), 60)
        except Fail as e:
            raise Fail("%s; %s" % (e, self.why_stuck(guest))) from None

    def why_stuck(self, guest):
        """Where a guest is that does not go on: its state, its processor, its disk, QEMU's threads."""
        said = [self.virsh_run("domstate", guest, "--reason").out, str(self.guest_words(guest))]
        said += [self.virsh_run("qemu-monitor-command", guest, "--hmp", c).out[:600] for c in ("info registers", "info blockstats")]
        said.append(self.sh_run("sh", "-c", "for t in /proc/$(cat /run/libvirt/qemu/%s.pid)/task/*; do cat $t/comm $t/wchan; echo; done" % guest).out)
        return "\n".join(said)

    def press(self, guest):
        """One batch of a `key` guest, waited for."""
        number = self.written(guest) + stackguest.BATCH
        self.virsh("send-key", guest, "KEY_A")
        eq(self.wait_written(guest, number), number, "numbers written")

    def processes(self):
        return self.sh_run("sh", "-c", "for p in /proc/[0-9]*; do echo $p $(tr '\\0' ' ' <$p/cmdline | cut -c-60): $(for t in $p/task/*; do cat $t/wchan; echo -n ' '; done); done").out

    def down(self):
        for p in (self.boot, *self.daemons.values()):
            if p and p.poll() is None:
                p.kill()
        for p in (self.boot, *self.daemons.values()):
            if p:
                p.wait()
        if self.boot:
            self.boot.stdout.close()
        if self in self.site.hosts:
            self.site.hosts.remove(self)

    def keep_logs(self, where):
        for top in ("/var/log/libvirt",):
            shutil.copytree(self.root(top), os.path.join(where, self.name), dirs_exist_ok=True)
        if os.path.exists(self.view_log):
            shutil.copy(self.view_log, where)


# ---- datastores and their hosts ----

class Site:
    cache = None  # QEMU's capabilities, which take libvirt two seconds to find out

    def __init__(self, build, kind, *options):
        self.build, self.kind, self.options = build, kind, options
        vms()
        self.base = dgtest.suite_tmp()
        self.ds = dgtest.Datastore(build, self.base, init=kind == "view")
        self.hosts = []
        sites.append(self)

    def host(self, name, *options, **kw):
        return Host(self, name, options, **kw).up()

    def raw(self, name=""):
        return self.ds.raw(name)

    def settle(self, timeout=30.0):
        if self.kind == "view":
            self.ds.wait_settled(timeout)

    def end(self):
        """All of it ends clean: no guest, no claim, nothing for fsck, a daemon that ends with 0."""
        for host in self.hosts:
            eq(host.virsh("list", "--name").split(), [], "guests left on " + host.name)
        self.settle()
        for host in list(self.hosts):
            identity = host.identity
            if self.kind == "view":
                host.stop_libvirtd()
                host.unmount()
            host.down()
            if self.kind == "view":
                self.ds.fsck_clean(identity)
        self.close()

    def close(self):
        for host in list(self.hosts):
            if HOME:
                host.keep_logs(HOME)
            host.down()
        if self in sites:
            sites.remove(self)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind:
            self.close()
        else:
            self.end()


sites = []


def link(a, b):
    """A wire between the networks of two hosts."""
    must("nsenter", "-t", a.init, "-n", "--", "ip", "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", b.init)
    for number, host in ((1, a), (2, b)):
        host.sh("ip", "addr", "add", "10.93.0.%d/24" % number, "dev", "wire")
        host.sh("ip", "link", "set", "wire", "up")


# ---- guests ----

def make_disk(path, fmt="qcow2", size=32 << 20, mode="key", options=""):
    """An image whose disk boots the guest."""
    boot = path + ".boot"
    with open(boot, "wb") as f:
        f.write(stackguest.sector(mode))
        f.truncate(size)
    if fmt == "raw":
        os.rename(boot, path)
    else:
        must("qemu-img", "convert", "-f", "raw", "-O", fmt, *(("-o", options) if options else ()), boot, path)
        os.unlink(boot)


def disk_xml(path, target="vda", fmt="qcow2", driver="", inner="", device="disk"):
    bus = {"vd": "virtio", "sd": "sata", "hd": "ide", "fd": "fdc"}[target[:2]]
    source = "<source file='%s'/>" % path if path else ""
    return "<disk type='file' device='%s'><driver name='qemu' type='%s' %s/>%s<target dev='%s' bus='%s'/>%s</disk>" % (device, fmt, driver, source, target, bus, inner)


def guest_xml(name, *disks, more=""):
    """A PC with nothing but disks. cpu: what TCG has, so that a migration finds the same one."""
    return """<domain type='%s'><name>%s</name><uuid>%s</uuid><memory unit='MiB'>16</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/><memballoon model='none'/><video><model type='none'/></video>%s%s</devices></domain>""" % (
        virt, name, uuid.uuid5(uuid.NAMESPACE_DNS, name), "".join(disks), more)


def define(host, name, *disks, **kw):
    path = os.path.join(host.site.base, name + ".xml")
    with open(path, "w", encoding="utf-8") as f:
        f.write(guest_xml(name, *disks, **kw))
    host.virsh("define", path)
    return path


def check_disk(path, number, fmt="qcow2", exact=True):
    """The datastore's file holds all that the guest wrote up to `number`, and nothing else if exact; and its metadata is sound."""
    out = path + ".flat"
    must("qemu-img", "convert", "-f", fmt, "-O", "raw", path, out)
    try:
        with open(out, "rb") as f:
            def read(off, length):
                f.seek(off)
                return f.read(length)
            eq(stackguest.check(read, number, exact), [], "what the guest wrote up to %d" % number)
    finally:
        os.unlink(out)
    if fmt == "qcow2":  # a QEMU that was killed may leave clusters that nobody uses (3), never worse
        r = run("qemu-img", "check", "-q", path)
        ok(r.code in ((0,) if exact else (0, 3)), repr(r))


def info(path):
    return json.loads(must("qemu-img", "info", "-U", "--output=json", path))


def now():
    return time.monotonic()


def main(suite):
    """Instead of suite.main()."""
    if "--long" in sys.argv:
        suite.cases.insert(0, ("KVM is looked for", lambda build: use_kvm(), 60))
    else:
        suite.cases = [c for c in suite.cases if getattr(c[1], "short", True)]
    suite.main()
