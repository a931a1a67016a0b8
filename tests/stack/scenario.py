"""scenario: what is done on a raw directory and on a view, and how the two are compared.

A scenario is a function of a Script: each step of it is recorded with its answer, its time, what libvirtd logged meanwhile, and owner, mode and labels of every file in the
datastore after it. After the scenario the files themselves are looked at. compare() says what the view did otherwise than the directory.
"""
import hashlib
import os
import re
import statistics
import time

import dgstack
import stackguest
from dgtest import Fail, eq, wait_for

COARSE = 2.0  # seconds that a step may take longer than on the directory, on a machine that does other things, too
# libvirt, on any FUSE file system, looks for its type before the file is there.
OF_FUSE = "error: virFileIsSharedFsFUSE: unable to canonicalize"
LOG_LINE = re.compile(r"^\S+ \S+: \d+: (warning|error) : (\w+):\d+ : (.*)$")


def plain(text):
    """Without what is another one each time."""
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID", text)
    text = re.sub(r"(Allocation: +[\d]+)\.\d+", r"\1", text)  # what a file system gives a file varies by some blocks
    text = re.sub(r"<([acm]time)>[\d.]+<", r"<\1>T<", text)
    text = re.sub(r"process exited while connecting to monitor|qemu unexpectedly closed the monitor", "QEMU ended", text)  # whichever libvirt sees first
    text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( [+-]\d{4})?(\+\d{4}: )?", "TIME ", text)
    return re.sub(r"(?i)\b(id=?|pid|process|domain-)\s*\d+", r"\1 N", text).strip()


def labels(top):
    """{file: (owner, group, mode, labels that libvirt left)} of all files below a directory."""
    found = {}
    for folder, folders, files in os.walk(top):
        folders[:] = [f for f in folders if not f.startswith(".diskguard")]
        for name in folders + files:
            path = os.path.join(folder, name)
            try:
                st = os.lstat(path)
                marks = {x: os.getxattr(path, x).decode() for x in os.listxattr(path) if x.startswith("trusted.libvirt.")}
            except FileNotFoundError:
                continue
            marks = {k: "T" if "timestamp" in k else v for k, v in marks.items()}
            found[os.path.relpath(path, top)] = (st.st_uid, st.st_gid, oct(st.st_mode), marks)
    return found


class Step:
    def __init__(self, title):
        self.title, self.answer, self.seconds, self.log, self.labels = title, "", 0.0, [], {}


class Script:
    """A scenario that runs on one host; its only guest is `vm`, its files are below dgstack.vms()."""

    def __init__(self, host):
        self.host, self.site, self.steps, self.files = host, host.site, [], {}

    def path(self, name=""):
        return os.path.join(dgstack.vms(), name) if name else dgstack.vms()

    def raw(self, name=""):
        return self.site.raw(name)

    def plain(self, text):
        return plain(text.replace(self.site.base, "BASE").replace(dgstack.vms(), "VMS"))

    def step(self, title, function, *args, **kw):
        """function(*args) as a step: what it returns, or the text of its failure, is the answer."""
        step, mark, began = Step(self.plain(title)), len(self.host.log()), time.monotonic()
        self.steps.append(step)
        try:
            value = function(*args, **kw)
            step.answer = self.plain(str(value))
            return value
        except Fail as e:
            step.answer = self.plain("FAILED: %s" % e)
            raise
        finally:
            step.seconds = time.monotonic() - began
            step.log = sorted({self.plain("%s: %s: %s" % m.groups()) for m in map(LOG_LINE.match, self.host.log()[mark:].splitlines()) if m})
            step.labels = labels(self.raw())

    def virsh(self, *argv, **kw):
        return self.step("virsh " + " ".join(argv), self.host.virsh, *argv, **kw)

    def fails(self, *argv, **kw):
        return self.step("virsh " + " ".join(argv), self.host.refused, *argv, **kw)

    def sh(self, *argv):
        return self.step(" ".join(argv), self.host.sh, *argv)

    # -- the guest

    def define(self, *disks, name="vm", **kw):
        self.step("define " + name, dgstack.define, self.host, name, *disks, **kw)

    def make(self, name, **kw):
        """An image as somebody has copied it there: it belongs to root and nobody else may read it."""
        dgstack.make_disk(self.raw(name), **kw)
        os.chmod(self.raw(name), 0o600)

    def boot(self, name="vm", verb="start", *argv):
        self.virsh(verb, *(argv or (name,)))
        self.step("boots", self.host.wait_booted, name)

    def press(self, name="vm"):
        self.step("the guest writes", self.host.press, name)

    def _wait_idle(self, name):
        wait_for(lambda: "None" in self.host.virsh("domjobinfo", name) and not self.host.virsh("blockjob", name, "vda", "--info").strip(),
                 "the job of %s ends" % name)

    def idle(self, name="vm"):
        """No block job, and no job of the guest."""
        self.step("the job ends", self._wait_idle, name)

    def abort(self, name="vm"):
        """One step: libvirt clears away what the job made after it has answered."""
        def both():
            self.host.virsh("domjobabort", name)
            self._wait_idle(name)
        self.step("domjobabort " + name, both)

    def xml(self, name, text):
        path = os.path.join(self.site.base, name)
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        return path

    def written(self, image, name="vm", fmt="qcow2", again=False):
        """Destroys the guest, and checks that its image has all that it wrote, and nothing else but what it wrote before it began again (again).
        The image is read below the view; what it stands on, through it."""
        number = self.host.written(name)
        self.virsh("destroy", name)
        if self.site.kind == "view":
            self.site.ds.wait_free(image, 30)
        self.step("numbers", self._numbers, image, number, fmt, not again)

    def _numbers(self, image, number, fmt, exact):
        flat = os.path.join(self.site.base, "flat")
        self.host.sh("qemu-img", "convert", "-f", fmt, "-O", "raw", self.raw(image), flat)
        with open(flat, "rb") as f:
            eq(stackguest.check(lambda off, size: (f.seek(off), f.read(size))[1], number, exact), [], "what the guest wrote up to %d" % number)
        os.unlink(flat)
        return number

    # -- its end

    def finish(self):
        """Nothing runs any more: what is in the files. Then they go."""
        for name in self.host.virsh("list", "--all", "--name").split():
            if self.host.state(name) != "shut off":
                self.virsh("destroy", name)
            self.virsh("undefine", name, "--snapshots-metadata", "--checkpoints-metadata", "--managed-save")
        self.site.settle()
        for name in labels(self.raw()):
            if os.path.isfile(self.raw(name)):
                self.files[name] = self.describe(name)
        for name in sorted(os.listdir(self.raw())):
            if not name.startswith(".diskguard"):
                self.sh("rm", "-r", self.path(name))
        left = [n for n in os.listdir(self.raw()) if not n.startswith(".diskguard")]
        eq(left, [], "files left")

    def describe(self, name):
        info = dgstack.info(self.raw(name))
        for key in ("filename", "actual-size", "full-backing-filename", "children"):  # children: of QEMU 8 and later
            info.pop(key, None)
        for snapshot in info.get("snapshots", ()):
            for key in list(snapshot):
                if key not in ("id", "name"):
                    del snapshot[key]
        if info["format"] == "qcow2":
            self.host.sh("qemu-img", "check", "-q", self.raw(name))
        if info["format"] == "raw" and not self.same_content(name):
            return info
        flat = os.path.join(self.site.base, "flat")
        self.host.sh("qemu-img", "convert", "-f", info["format"], "-O", "raw", self.raw(name), flat)
        h = hashlib.sha256()
        with open(flat, "rb") as f:
            while block := f.read(1 << 20):
                h.update(block)
        os.unlink(flat)
        return info, h.hexdigest()

    @staticmethod
    def same_content(name):
        """Memory of guests is never the same twice."""
        return not name.endswith(".mem")


def play(scenario, host):
    script = Script(host)
    try:
        scenario(script)
        script.finish()
    except Fail as e:
        raise Fail("%s: %s%s" % (host.site.kind, e, "; libvirt: " + "; ".join(script.steps[-1].log) if script.steps else "")) from e
    return script


def compare(raw, view):
    """What differs, as lines."""
    found = []
    for a, b in zip(raw.steps, view.steps):
        where = "%s: " % b.title
        if a.title != b.title:
            found.append("%sthe directory came to %r" % (where, a.title))
            break
        if a.answer != b.answer:
            found.append("%sanswer %r, on the directory %r" % (where, b.answer[-300:], a.answer[-300:]))
        found += ["%slibvirtd logs %r" % (where, line) for line in b.log if line not in a.log and not line.startswith(OF_FUSE)]
        found += ["%s%s is %r, on the directory %r" % (where, n, b.labels.get(n), a.labels.get(n))
                  for n in sorted({*a.labels, *b.labels}) if a.labels.get(n) != b.labels.get(n)]
    if len(raw.steps) != len(view.steps):
        found.append("%d steps, on the directory %d" % (len(view.steps), len(raw.steps)))
    found += ["%s at the end: %r, on the directory %r" % (n, view.files.get(n), raw.files.get(n))
              for n in sorted({*raw.files, *view.files}) if raw.files.get(n) != view.files.get(n)]
    return found


def hangs(raw, view):
    """Steps that take longer by so much that it cannot be chance, as lines."""
    return ["%s: took %.1f s, on the directory %.1f s" % (b.title, b.seconds, a.seconds) for a, b in zip(raw.steps, view.steps) if b.seconds > a.seconds + COARSE]


def slower(raws, views, factor=1.2, more=0.1):
    """Steps whose median is longer than factor * the directory's + more seconds, as (title, directory, view); and all of them."""
    late, every = [], []
    for i, step in enumerate(views[0].steps):
        a, b = (statistics.median(s.steps[i].seconds for s in scripts) for scripts in (raws, views))
        every.append((step.title, a, b))
        if b > factor * a + more:
            late.append(every[-1])
    return late, every
