"""What the tests here share: programs, throw-away datastores, counting."""
import hashlib
import json
import os
import select
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "func"))
from dglayout import inner_names, inner_path  # noqa: E402 pylint: disable=wrong-import-position

UUID_A = "11111111-1111-4111-8111-111111111111"
UUID_B = "22222222-2222-4222-8222-222222222222"
UUID_C = "33333333-3333-4333-8333-333333333333"
FENCE = 1 << 62
NOBODY = ("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups")
STATES = ["claimed", "armed", "mixed", "sealed", "stuck", "restoring"]  # of mkclaim leave


class Skip(Exception):
    pass


TESTS = []


def test(f):
    """A function of a Lab that is a test: main() runs it."""
    TESTS.append(f)
    return f


def programs(build):
    found = {
        "ctl": os.path.join(build, "tools", "diskguardctl"),
        "fsck": os.path.join(build, "tools", "fsck.diskguard"),
        "mkclaim": os.path.join(build, "tests", "mkclaim"),
        "daemon": os.path.join(build, "src", "daemon", "diskguard"),
    }
    for name in ("ctl", "fsck", "mkclaim"):
        if not os.access(found[name], os.X_OK):
            sys.exit("%s is missing: build first" % found[name])
    return found


class Result:
    def __init__(self, p):
        self.rc, self.out, self.err = p.returncode, p.stdout, p.stderr

    def __repr__(self):
        return "exit code %d\n--- stdout\n%s--- stderr\n%s---" % (self.rc, self.out, self.err)

    def json(self):
        return json.loads(self.out)


def until(condition, what, timeout=60.0):
    """Polls until condition() is true."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "timed out: " + what
        select.select([], [], [], 0.02)


def sha(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def tree(top):
    """Everything about every file below top but the access time."""
    found = {}
    if not os.path.lexists(top):
        return found
    for path in [top] + [os.path.join(d, n) for d, dirs, files in os.walk(top) for n in dirs + files]:
        st = os.lstat(path)
        body = sha(path) if stat.S_ISREG(st.st_mode) else os.readlink(path) if stat.S_ISLNK(st.st_mode) else ""
        found[path] = (st.st_mode, st.st_ino, st.st_nlink, st.st_uid, st.st_size, st.st_mtime_ns, st.st_ctime_ns, body)
    return found


class Lab:
    """One datastore and the state directories of its hosts."""

    def __init__(self, prog):
        self.prog = prog
        self.dir = tempfile.mkdtemp(prefix="dgfsck.")
        self.ds = os.path.join(self.dir, "ds")
        self.tmp = os.path.join(self.dir, "tmp")
        os.mkdir(self.ds)
        os.mkdir(self.tmp)
        self.helpers = []
        self.init = self.ctl("init", self.ds)
        assert self.init.rc == 0, self.init

    def close(self):
        for p in self.helpers:
            if p.stdin:
                p.stdin.close()
            if p.poll() is None:
                p.kill()
            p.wait()
        shutil.rmtree(self.dir)

    def run(self, *args, **kw):
        kw.setdefault("stdin", subprocess.DEVNULL)
        env = dict(os.environ, TMPDIR=self.tmp, LC_ALL="C")
        return Result(subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
                                     errors="surrogateescape", timeout=60, env=env, **kw))

    def ctl(self, *args, **kw):
        return self.run(self.prog["ctl"], *args, **kw)

    def state(self, host):
        return os.path.join(self.dir, "state-" + host[:4])

    def identity(self, host):
        return ["--host-id=" + host, "--state-dir=" + self.state(host)]

    def fsck(self, *args, host=UUID_A, **kw):
        r = self.run(self.prog["fsck"], *self.identity(host), *args, self.ds, **kw)
        if "--json" in args and r.rc != 16:
            assert r.json()["version"] == 1 and r.json()["exit"] == r.rc, r
        assert os.listdir(self.tmp) == [], "left in TMPDIR: %r" % os.listdir(self.tmp)
        return r

    def mkclaim_args(self, *args, host=UUID_A, name=None, options=()):
        name = {UUID_A: "nodea", UUID_B: "nodeb", UUID_C: "nodec"}[host] if name is None else name
        return [self.prog["mkclaim"], *self.identity(host), "--name=" + name, *options, args[0], self.ds, *args[1:]]

    def mkclaim(self, *args, **kw):
        r = self.run(*self.mkclaim_args(*args, **kw))
        assert r.rc == 0, r

    def helper(self, *args, **kw):
        """A mkclaim that stays alive until the end of the test, or stop()."""
        p = subprocess.Popen(self.mkclaim_args(*args, **kw), stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True)
        self.helpers.append(p)
        assert p.stdout.readline() == "ready\n"
        return p

    def stop(self, p):
        p.stdin.close()
        p.wait(10)
        p.stdin = None

    def image(self, name, size="64M", *options):
        path = os.path.join(self.ds, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        r = self.run("qemu-img", "create", "-q", "-f", "qcow2", *options, path, size)
        assert r.rc == 0, r
        return path

    def claims(self, path=None):
        names = sorted(inner_names(self.ds, "claims"))
        return names if path is None else [n for n in names if n.startswith("%016x." % os.stat(path).st_ino)]

    def claim_path(self, path):
        return inner_path(self.ds, "claims", self.claims(path)[-1])

    def claim_state(self, path):
        with open(self.claim_path(path)) as f:
            return [line for line in f if line.startswith("state=")][0].strip()[6:]

    def tree(self):
        return {**tree(self.ds), **tree(self.state(UUID_A)), **tree(self.state(UUID_B)), **tree(self.state(UUID_C))}

    def code(self, r):
        """The codes of what fsck --json found."""
        return sorted(f["code"] for f in r.json()["found"])


def expect(r, rc):
    assert r.rc == rc, "expected exit code %d: %r" % (rc, r)
    return r


def unchanged(lab, before, probed=False):
    """probed: the datastore was opened for writing, which proves in tmp/ that it can be."""
    after = lab.tree()
    if probed:
        before, after = ({p: t for p, t in d.items() if p != os.path.join(lab.ds, ".diskguard", "tmp")} for d in (before, after))
    assert after == before, "changed: %r" % sorted(p for p in {**before, **after} if before.get(p) != after.get(p))


def clean(lab, host=UUID_A):
    expect(lab.fsck("-n", host=host), 0)
    expect(lab.fsck("-y", host=host), 0)


def main(title):
    if len(sys.argv) < 2:
        sys.exit("usage: %s BUILD-DIRECTORY [NAME-PART]" % sys.argv[0])
    prog = programs(os.path.abspath(sys.argv[1]))
    if os.geteuid() != 0:
        print("%s: not root" % title)
        print("0 passed, 0 failed, %d skipped" % len(TESTS))
        sys.exit(77)
    count = {"ok": 0, "FAILED": 0, "skipped": 0}
    for one in TESTS:
        if len(sys.argv) > 2 and sys.argv[2] not in one.__name__:
            continue
        how, why, lab = "ok", "", None
        try:
            lab = Lab(prog)
            one(lab)
        except Skip as e:
            how, why = "skipped", ": %s" % e
        except Exception:
            how, why = "FAILED", "\n" + traceback.format_exc()
        finally:
            if lab:
                lab.close()
        count[how] += 1
        print("%-8s %s%s" % (how, one.__name__, why), flush=True)
    print("%d passed, %d failed, %d skipped" % (count["ok"], count["FAILED"], count["skipped"]))
    sys.exit(1 if count["FAILED"] else 0)
