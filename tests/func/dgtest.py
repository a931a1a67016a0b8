"""dgtest: the harness of the functional tests.

A suite is a script `suite.py BUILDDIR [--long] [--only TEXT]`. Its cases are functions under @suite.case("what it shows"); each makes
its own datastore and views, checks, and leaves. One line is printed per failed case and at the end "N passed, N failed, N skipped".

Two views with two host ids and two state directories on one datastore stand for two hosts.

Nothing is left behind: a guardian process (guardian.py) learns of every temporary directory and every process, and when the
suite ends in any way, kill -9 included, it kills those processes, aborts the FUSE connections and unmounts all that
is mounted below those directories, and removes them.
"""
import argparse
import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import os
import pickle
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid

import guardian
import memory
from dglayout import inner_names, inner_path
from dgops import libc

SEALED_SIZE = int.from_bytes(b"SEALED\0\0", "big")
HERE = os.path.dirname(os.path.abspath(__file__))


class Fail(Exception):
    """A check of the current case failed."""


class Skip(Exception):
    """The current case cannot run here."""


# ---- checks ----

def ok(condition, what):
    if not condition:
        raise Fail(what)


def eq(got, wanted, what=""):
    if got != wanted:
        raise Fail("%s: got %.300r, wanted %.300r" % (what, got, wanted))


def raises(number, function, *args):
    """function(*args) must fail with that errno (or one of a tuple)."""
    numbers = number if isinstance(number, tuple) else (number,)
    names = "/".join(errno.errorcode[n] for n in numbers)
    label = "%s%.200r" % (getattr(function, "__qualname__", function), args)
    try:
        value = function(*args)
    except OSError as e:
        if e.errno not in numbers:
            raise Fail("%s: got %s, wanted %s" % (label, errno.errorcode.get(e.errno, e.errno), names)) from None
        return
    raise Fail("%s: succeeded (%.100r), wanted %s" % (label, value, names))


def wait_for(condition, what, timeout=20.0):
    """Polls until condition() is true and returns its value; fails after timeout seconds (longer under sanitizers)."""
    deadline = time.monotonic() + timeout * TIME_SCALE
    pause = 0.0005
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Fail("timed out: " + what)
        select.select([], [], [], pause)
        pause = min(pause * 2, 0.05)


TIME_SCALE = 1.0  # raised for sanitized builds


# ---- programs ----

class Result:
    def __init__(self, argv, code, out):
        self.argv, self.code, self.out = argv, code, out

    def __repr__(self):
        return "%s: exit %s: %.600s" % (" ".join(self.argv), self.code, self.out.strip())


def run(*argv, timeout=120, stdin=None, env=None, cwd=None):
    """Runs a program to its end: Result with standard output and error together. A timeout fails the case."""
    argv = [str(a) for a in argv]
    p = subprocess.Popen(argv, stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, env=env, cwd=cwd)
    guardian.process(p.pid)
    try:
        out, _ = p.communicate(stdin.encode() if stdin is not None else None, timeout * TIME_SCALE)
    except subprocess.TimeoutExpired:
        p.kill()
        raise Fail("timed out: " + " ".join(argv)) from None
    return Result(argv, p.returncode, out.decode(errors="replace"))


def must(*argv, **kw):
    """run() that must succeed; returns the output."""
    for _ in range(50):
        r = run(*argv, **kw)
        if "Unable to get accurate CPU usage" not in r.out:  # sealing.py, NO_CLOCK
            break
    ok(r.code == 0, repr(r))
    return r.out


def refused(*argv, text="", **kw):
    """run() that must fail (but not by a signal), with `text` (a regular expression) in its output."""
    r = run(*argv, **kw)
    ok(r.code > 0, "was not refused: %r" % r)
    ok(re.search(text, r.out), "refused, but without %r: %r" % (text, r))
    return r.out


def sha(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()


def read_at(path, off, length):
    with open(path, "rb") as f:
        f.seek(off)
        return f.read(length)


def is_sealed(path):
    """Does the raw file carry a refusal mark of diskguard (size, or bit 63 of a version 3 header)?"""
    head = read_at(path, 0, 80)
    if len(head) < 32 or head[:4] != b"QFI\xfb":
        return False
    v3 = int.from_bytes(head[4:8], "big") >= 3 and len(head) >= 80
    return int.from_bytes(head[24:32], "big") == SEALED_SIZE or bool(v3 and head[72] & 0x80)


class Nursery:
    """The process that forks workers (dgops.py)."""

    def __init__(self):
        self.lock, self.p, self.socket = threading.Lock(), None, None

    def _start(self):
        self.socket, other = socket.socketpair()
        with other:
            self.p = subprocess.Popen([sys.executable, "-S", "-E", os.path.join(HERE, "dgops.py"), "--nursery"], stdin=other, stdout=subprocess.DEVNULL)
        guardian.process(self.p.pid)

    def fork(self, *pipes):
        """The pid of a new worker that has these two pipes as standard input and output."""
        with self.lock:
            if self.p is None or self.p.poll() is not None:
                self._start()
            socket.send_fds(self.socket, [b"w"], pipes)
            return struct.unpack("i", self.socket.recv(4))[0]


class Worker:
    """A child of the nursery, with what the harness uses of subprocess.Popen."""
    alive = set()

    def __init__(self):
        their_in, our_out = os.pipe()
        our_in, their_out = os.pipe()
        self.pid = nursery.fork(their_in, their_out)
        self.pidfd = os.pidfd_open(self.pid)
        os.close(their_in)
        os.close(their_out)
        self.stdin, self.stdout = os.fdopen(our_out, "wb"), os.fdopen(our_in, "rb")
        Worker.alive.add(self)

    def poll(self):
        """None while it lives, as Popen has it; how it ended only the nursery could know."""
        if self.pidfd is None:
            return 0
        if not select.select([self.pidfd], [], [], 0)[0]:
            return None
        return self.wait()

    def wait(self, timeout=None):
        if self.pidfd is not None:
            if not select.select([self.pidfd], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("worker %d" % self.pid, timeout)
            os.close(self.pidfd)
            self.pidfd = None
            Worker.alive.discard(self)
        return 0

    def kill(self):
        if self.pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


nursery = Nursery()


def close_stream(stream):
    """Closes a stream to a process that may be gone: a command that could not be sent is still in the stream, and close() tries it again."""
    with contextlib.suppress(ConnectionError):
        stream.close()


class Proc:
    """A process that carries out file-system calls one at a time (dgops.py)."""

    def __init__(self, uid=None, gid=None, groups=(), program=(), env=None):
        """program: the interpreter that carries them out, where it matters which one."""
        self.p = subprocess.Popen([*program, os.path.join(HERE, "dgops.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  env=env) if program else Worker()
        guardian.process(self.p.pid)
        self.pid = self.p.pid
        if uid is not None:
            self.call("become", uid, uid if gid is None else gid, list(groups))

    def send(self, name, *args):
        pickle.dump((name, args), self.p.stdin)
        self.p.stdin.flush()

    def ready(self, timeout=0.0):
        """Has the call that was sent been answered?"""
        return bool(select.select([self.p.stdout], [], [], timeout)[0])

    def recv(self, timeout=60.0):
        if not self.ready(timeout * TIME_SCALE):
            raise Fail("process %d: no answer in %s s" % (self.pid, timeout))
        try:
            how, value = pickle.load(self.p.stdout)
        except EOFError:
            raise Fail("process %d ended" % self.pid) from None
        if how == "err":
            raise OSError(value, os.strerror(value))
        ok(how == "ok", "process %d: %s" % (self.pid, value))
        return value

    def call(self, name, *args):
        self.send(name, *args)
        return self.recv()

    def kill(self):
        if self.p.poll() is None:
            self.p.kill()
        self.p.wait()
        close_stream(self.p.stdin)
        self.p.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


# ---- the build under test ----

class Build:
    def __init__(self, path):
        self.path = os.path.abspath(path)
        self.diskguard = self._find("diskguard")
        self.ctl = self._find("diskguardctl")
        self.fsck = self._find("fsck.diskguard")
        self.sanitize, self.hooks = "none", False
        with open(os.path.join(self.path, "meson-info", "intro-buildoptions.json")) as f:
            for option in json.load(f):
                if option["name"] == "b_sanitize":
                    self.sanitize = option["value"]
                elif option["name"] == "hooks":
                    self.hooks = option["value"]
        self.san_log = None
        global TIME_SCALE
        TIME_SCALE = 1.0 if self.sanitize == "none" else 6.0

    def _find(self, name):
        for sub in ("src/daemon", "tools", "src", "."):
            candidate = os.path.join(self.path, sub, name)
            if os.access(candidate, os.X_OK) and os.path.isfile(candidate):
                return candidate
        raise SystemExit("%s: no %s there; build first" % (self.path, name))

    def command(self, program, *args):
        """The command line of one of our programs. Old sanitizer runtimes cannot cope with much address randomisation."""
        prefix = [] if self.sanitize == "none" else ["setarch", "-R"]
        return prefix + [program, *[str(a) for a in args]]

    def env(self, **more):
        env = dict(os.environ, **more)
        if self.san_log:
            common = "log_path=%s:exitcode=99" % self.san_log
            env["ASAN_OPTIONS"] = common + ":detect_leaks=1:abort_on_error=0"
            env["UBSAN_OPTIONS"] = common + ":halt_on_error=1:print_stacktrace=1"
            env["TSAN_OPTIONS"] = common + ":halt_on_error=1:second_deadlock_stack=1"
        return env

    def sanitizer_reports(self):
        """Texts of all reports so far; each is given once."""
        found = []
        for path in glob.glob(self.san_log + "*") if self.san_log else ():
            with open(path, errors="replace") as f:
                found.append(f.read())
            os.unlink(path)
        return found


# ---- datastores, hosts, views ----

class Host:
    """An identity: a host id and a state directory."""

    def __init__(self, base, name):
        self.name = name
        self.uuid = str(uuid.uuid4())
        self.state = os.path.join(base, "state-" + name)

    def journal_files(self):
        return [os.path.join(self.state, n) for n in (os.listdir(self.state) if os.path.isdir(self.state) else ())
                if re.search(r"\.db(-wal|-shm)?$", n)]


class Datastore:
    def __init__(self, build, base=None, init=True):
        self.build = build
        self.base = base or suite_tmp()
        self.path = os.path.join(self.base, "ds")
        os.mkdir(self.path, 0o755)
        os.chmod(self.path, 0o755)
        if init:
            self.init()

    def init(self):
        must(*self.build.command(self.build.ctl, "init", self.path), env=self.build.env())

    def raw(self, name=""):
        return os.path.join(self.path, name) if name else self.path

    def inner(self, kind):
        """Names in all shards of claims, marks or readers; also those of format 1, in none."""
        return sorted(inner_names(self.path, kind))

    def inner_path(self, kind, name):
        return inner_path(self.path, kind, name)

    def claims(self, inode=None):
        """{inode number: fields of the ruling claim}, read from the datastore itself: of all files, or at least of one."""
        highest = {}
        for name in inner_names(self.path, "claims", inode):
            key, _, generation = name.partition(".")
            highest[int(key, 16)] = max(highest.get(int(key, 16), 0), int(generation))
        result = {}
        for key, generation in highest.items():
            try:
                with open(self.inner_path("claims", "%016x.%d" % (key, generation)), errors="replace") as f:
                    lines = f.read().splitlines()
            except FileNotFoundError:
                return self.claims(inode)  # replaced while we looked
            result[key] = dict(line.split("=", 1) for line in lines if "=" in line)
        return result

    def claim_of(self, name):
        """State of the claim of a file: None where it never had one."""
        inode = os.stat(self.raw(name)).st_ino
        return self.claims(inode).get(inode, {}).get("state")

    def wait_free(self, name, timeout=20.0):
        """Waits until a file is neither sealed nor claimed: its release is over."""
        wait_for(lambda: not is_sealed(self.raw(name)) and self.claim_of(name) in (None, "free"),
                 "%s is neither sealed nor claimed" % name, timeout)

    def wait_settled(self, timeout=20.0):
        """Waits until no claim is held at all."""
        wait_for(lambda: all(c.get("state") == "free" for c in self.claims().values()), "every claim is free", timeout)

    def fsck(self, host, *args, datastore=None):
        return run(*self.build.command(self.build.fsck, *args, "--host-id=" + host.uuid, "--state-dir=" + host.state,
                                       datastore or self.path), env=self.build.env())

    def fsck_clean(self, host):
        r = self.fsck(host, "-n")
        eq(r.code, 0, "exit code of fsck -n on a clean datastore: %s" % r.out.strip())

    def list(self, *args):
        return run(*self.build.command(self.build.ctl, "list", "--datastore", self.path, *args), env=self.build.env())


class View:
    """One diskguard in the foreground, its log captured."""

    def __init__(self, ds, host, options=(), env=None, start=True, datastore=None):
        self.ds, self.host, self.build = ds, host, ds.build
        self.mnt = tempfile.mkdtemp(prefix="mnt-%s-" % host.name, dir=ds.base)
        self.options = ["host-id=" + host.uuid, "state-dir=" + host.state, *options]
        self.datastore = datastore or ds.path
        self.env = env or {}
        self.prefix = []  # words before the command: setpriv, prlimit
        self.log_path = self.mnt + ".log"
        self.p = None
        if start:
            self.start()

    def path(self, name=""):
        return os.path.join(self.mnt, name) if name else self.mnt

    def log(self):
        with open(self.log_path, errors="replace") as f:
            return f.read()

    def log_size(self):
        return os.path.getsize(self.log_path)

    def wait_log(self, pattern, since=0, timeout=20.0):
        """Waits for a line that matches; returns it."""
        def found():
            lines = [line for line in self.log()[since:].splitlines() if re.search(pattern, line)]
            return lines[0] if lines else None
        return wait_for(found, "log line %r; log: %s" % (pattern, self.log()[since:][-800:]), timeout)

    def spawn(self, **env):
        log = open(self.log_path, "ab")
        self.log_mark = log.tell()
        self.p = subprocess.Popen([*self.prefix, *self.build.command(self.build.diskguard, self.datastore, self.mnt, "-f", "-o",
                                                                     ",".join(self.options))],
                                  stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.build.env(**self.env, **env))
        log.close()
        guardian.process(self.p.pid)
        live_views.append(self)

    def start(self, timeout=30.0, **env):
        """Starts it and waits until the mount answers. Fails with the log when the daemon ends instead."""
        self.spawn(**env)
        self.wait_mounted(timeout)
        return self

    def says_mounted(self):
        return "is mounted on" in self.log()[self.log_mark:]

    def wait_mounted(self, timeout=30.0):
        # Not as soon as the mount is there: the daemon looks at it itself before it says so, and until then it is busy.
        wait_for(lambda: self.p.poll() is not None or self.says_mounted(), "%s is mounted" % self.mnt, timeout)
        ok(self.p.poll() is None, "diskguard ended with %s before it mounted: %s" % (self.p.poll(), self.log()[-600:].strip()))
        with contextlib.suppress(OSError):
            os.stat(self.mnt)
        ok(self.p.poll() is None, "diskguard ended with %s: %s" % (self.p.poll(), self.log()[-600:].strip()))

    def alive(self):
        return self.p is not None and self.p.poll() is None

    def wait_end(self, timeout=30.0):
        """Waits for the process to end; its exit code."""
        try:
            return self.p.wait(timeout * TIME_SCALE)
        except subprocess.TimeoutExpired:
            raise Fail("diskguard %d does not end: %s%s" % (self.p.pid, self.log()[-600:], thread_stacks(self.p.pid))) from None

    def unmount_dead(self):
        """Takes the mount of a dead daemon away."""
        if mounted_at(self.mnt):
            umount(self.mnt, MNT_DETACH)

    def stop(self, timeout=30.0):
        """Clean unmount: the program must end with 0."""
        if self.p is None:
            return
        try:
            umount(self.mnt)
            eq(self.wait_end(timeout), 0, "exit code of diskguard; log: %s" % self.log()[-800:])
        finally:
            if not self.alive():
                self.forget()

    def kill9(self):
        self.p.kill()
        self.p.wait()
        self.forget()
        self.unmount_dead()

    def signal(self, number):
        os.kill(self.p.pid, number)

    def forget(self):
        self.p = None
        if self in live_views:
            live_views.remove(self)


MNT_DETACH = 2


def umount(path, flags=0):
    """umount2(2): the program costs more, and test_umount has tests of it."""
    if libc.umount2(os.fsencode(path), flags):
        raise OSError(ctypes.get_errno(), "umount %s: %s" % (path, os.strerror(ctypes.get_errno())))


live_views = []
kept_views = []  # those that outlive their case, while it passes


def thread_stacks(pid):
    """Where the threads of a process that hangs are, for the report."""
    if not shutil.which("gdb"):
        return ""
    r = subprocess.run(["gdb", "-p", str(pid), "-batch", "-nx", "-ex", "thread apply all bt 12"], stdin=subprocess.DEVNULL,
                       capture_output=True, timeout=60, check=False)
    return "\n" + r.stdout.decode(errors="replace")[-12000:]


def ended(pid):
    """A process that ended and is not reaped yet counts: the first process of a container may never reap."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as f:
            return f.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return True


def mounted_at(path):
    """The device number (major:minor) of what is mounted at path, or None."""
    return guardian.mounts().get(path, (None, None))[0]


@contextlib.contextmanager
def pair(build, *options, hosts=("a", "b"), base=None, env=None, settled=True):
    """A datastore with one view per host: yields an object with .ds, .views and one attribute per host name."""
    class Pair:
        pass
    me = Pair()
    me.ds = Datastore(build, base)
    me.views = []
    for name in hosts:
        view = View(me.ds, Host(me.ds.base, name), options, env)
        me.views.append(view)
        setattr(me, name, view)
    try:
        yield me
        for view in me.views:
            view.stop()
        if settled:
            me.ds.wait_settled()
    finally:
        for view in me.views:
            if view.p is not None:
                if view.alive():
                    view.kill9()
                else:
                    view.forget()
            view.unmount_dead()


# The kernel answers nothing by itself: what another host does shows at once.
FRESH = ("entry-timeout=0", "attr-timeout=0")


class SharedPair:
    """One mounted pair of views for many cases; made again when a failed case has lost it. Suite.main() ends those that are left."""

    def __init__(self, *options):
        self.options, self.context, self.pair = options, None, None

    def get(self, build):
        if self.pair is None or not all(v.alive() for v in self.pair.views):
            self.context = pair(build, *self.options)
            self.pair = self.context.__enter__()
            kept_views.extend(self.pair.views)
            shared_pairs.append(self)
        return self.pair

    def end(self):
        """Both views end clean and fsck finds nothing."""
        self.close()
        for view in self.pair.views:
            self.pair.ds.fsck_clean(view.host)
        self.pair = None

    def close(self):
        if self in shared_pairs:
            shared_pairs.remove(self)
            self.context.__exit__(None, None, None)


shared_pairs = []


# ---- suites ----

_tmp = None


def suite_tmp(mode=0o755):
    """A new directory below $TMPDIR that goes away with the suite."""
    path = tempfile.mkdtemp(prefix="case-", dir=_tmp)
    os.chmod(path, mode)
    return path


def stopped(pid):
    """Is the process stopped by a signal, as at a hook? A SIGCONT that comes before is lost."""
    with open("/proc/%d/stat" % pid) as f:
        return f.read().rsplit(")", 1)[1].split()[0] == "T"


@contextlib.contextmanager
def small_fs(megabytes):
    """A file system of its own that a test may fill: the machine's disk has other users."""
    base = suite_tmp()
    must("mount", "-t", "tmpfs", "-o", "size=%dm" % megabytes, "tmpfs", base)
    try:
        yield base
    finally:
        run("umount", "-l", base)


def path_without(program):
    """A PATH whose programs are all that this machine has, but one."""
    folder = suite_tmp()
    for directory in os.environ["PATH"].split(":"):
        for name in os.listdir(directory) if os.path.isdir(directory) else ():
            if name != program and not os.path.lexists(os.path.join(folder, name)):
                os.symlink(os.path.join(directory, name), os.path.join(folder, name))
    return folder


SKIPPED = 77  # exit code of a suite that cannot run here (meson knows it)


class Suite:
    """needs, also, seed, limit, ...: what tests/suites.py reads from the call, without running it. memory: the suite's time is mostly
    fsync (memory.py)."""

    def __init__(self, title, needs="", memory=False, **_):  # pylint: disable=redefined-outer-name
        self.title = os.path.splitext(os.path.basename(title))[0]
        self.needs, self.memory = needs, memory
        self.cases = []
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}

    def case(self, title, limit=120.0):
        def add(function):
            self.cases.append((title, function, limit))
            return function
        return add

    def main(self):
        parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
        parser.add_argument("builddir")
        parser.add_argument("--long", action="store_true", help="everything, however long it takes")
        parser.add_argument("--only", default="", metavar="TEXT", help="only the cases whose title contains TEXT")
        parser.add_argument("--seed", type=int, default=1, help="of the random tests")
        parser.add_argument("--keep-going", action="store_true", help=argparse.SUPPRESS)
        args = parser.parse_args()
        self.args = args
        if os.geteuid() != 0:
            self._skip_all("needs root: it mounts")
        self.build = Build(args.builddir)
        if self.needs == "hooks" and not self.build.hooks:
            self._skip_all("needs a build with -Dhooks=true")
        if self.memory:
            memory.prefer()
        global _tmp
        _tmp = tempfile.mkdtemp(prefix="dg-%s-" % self.title.replace("test_", ""))
        os.chmod(_tmp, 0o755)
        guardian.start()
        guardian.directory(_tmp)
        os.umask(0o022)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda n, _: sys.exit(128 + n))
        if self.build.sanitize != "none":
            self.build.san_log = os.path.join(_tmp, "sanitizer")
        for title, function, limit in self.cases:
            if args.only in title:
                self.run_case(title, function, limit)
        for left in list(shared_pairs):
            left.close()
        guardian.finish()
        print("%s: %d passed, %d failed, %d skipped" % (self.title, *self.counts.values()))
        sys.exit(1 if self.counts["failed"] else SKIPPED if self.counts["skipped"] and not self.counts["passed"] else 0)

    def _skip_all(self, why):
        print("SKIPPED %s: %s" % (self.title, why))
        print("%s: 0 passed, 0 failed, %d skipped" % (self.title, len(self.cases)))
        sys.exit(SKIPPED)

    def run_case(self, title, function, limit):
        began = time.monotonic()
        timer = threading.Timer(limit * TIME_SCALE * (10 if self.args.long else 1), self._too_long, (title,))
        timer.daemon = True
        timer.start()
        outcome, text = "passed", ""
        try:
            function(self.build)
        except Skip as e:
            outcome, text = "skipped", str(e)
        except Fail as e:
            outcome, text = "failed", "%s [%s]" % (e, _where())
        except Exception as e:  # pylint: disable=broad-except
            outcome, text = "failed", "%s: %s [%s]" % (type(e).__name__, e, _where())
        finally:
            timer.cancel()
        for view in list(live_views):  # a case that failed may have left one
            if outcome == "failed" or view not in kept_views:
                view.kill9()
        reports = self.build.sanitizer_reports()
        if reports and outcome != "failed":
            outcome, text = "failed", "sanitizer report"
        self.counts[outcome] += 1
        if outcome != "passed" or os.environ.get("DG_VERBOSE"):
            print("%-7s %s: %s%s (%.1f s)" % (outcome.upper(), self.title, title, ": " + text if text else "",
                                              time.monotonic() - began), flush=True)
        for report in reports:
            print(report, flush=True)

    def _too_long(self, title):
        """Frees a case that hangs: without its daemons every call into their views returns."""
        print("%s: %s: takes too long, its daemons are killed" % (self.title, title), flush=True)
        for view in list(live_views):
            if view.alive():
                print(thread_stacks(view.p.pid), flush=True)
                view.p.kill()
        guardian.kill_children(os.getpid())
        for worker in list(Worker.alive):
            worker.kill()


def _where():
    """The line of the test that failed."""
    for frame in reversed(traceback.extract_tb(sys.exc_info()[2])):
        if os.path.basename(frame.filename) not in ("dgtest.py", "dgops.py", "guardian.py") and os.path.dirname(HERE) in frame.filename:
            return "%s:%d" % (os.path.basename(frame.filename), frame.lineno)
    frames = traceback.extract_tb(sys.exc_info()[2])
    return "%s:%d" % (os.path.basename(frames[-1].filename), frames[-1].lineno) if frames else "?"
