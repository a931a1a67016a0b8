"""crashlib: kills the daemon at its k-th durable operation, and checks what recovery makes of what is left.

A scenario prepares a datastore behind a running daemon of a build with hooks (src/base/hook.h), acts while the hooks count, and knows
which contents are right afterwards. run_all() takes k = 1, 2, ... until the daemon survives the action; run_some() takes a few k.
"""
import contextlib
import os
import shutil
import sqlite3
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "func"))

from dgqemu import make_qcow2, no_lock  # noqa: E402
from dgtest import Datastore, Fail, Host, Proc, View, eq, is_sealed, must, ok, run, suite_tmp, umount, wait_for  # noqa: E402

SIZE = 8 << 20
KILLED = 137  # exit code at a kill point, src/base/hook.h
AT_ONCE = 3  # crash points at a time, each with a datastore and daemons of its own: a run waits for a third of its time
_templates = {}
_templates_lock = threading.Lock()


def template(options=""):
    """The bytes of a small image with guest data at 1 MiB, made once."""
    with _templates_lock:
        if options not in _templates:
            path = os.path.join(suite_tmp(), "template.qcow2")
            make_qcow2(path, SIZE, options)
            must("qemu-io", "-c", "write -P 0x21 1M 64k", path)
            with open(path, "rb") as f:
                _templates[options] = f.read()
        return _templates[options]


def foreign(found, *allowed, block=512):
    """Where a byte is one that none of `allowed` has at that place. Whole blocks first: byte by byte is slow."""
    wrong = []
    for at in range(0, len(found), block):
        part = found[at:at + block]
        if not any(part == other[at:at + block] for other in allowed):
            wrong += [i for i in range(at, at + len(part)) if all(found[i] != other[i] for other in allowed)]
    return wrong


class Context:
    """One run: a datastore, a host, a daemon, and a process that uses the view."""

    def __init__(self, build, options=("wait=0",)):
        self.build = build
        self.ds = Datastore(build)
        self.host = Host(self.ds.base, "a")
        self.arm = os.path.join(self.ds.base, "arm")
        self.view = View(self.ds, self.host, options, start=False)
        self.worker = Proc()
        self.vars = {}

    def put(self, name, data):
        with open(self.ds.raw(name), "wb") as f:
            f.write(data)

    def raw_bytes(self, name):
        """Content of a file of the datastore; None: there is none."""
        try:
            with open(self.ds.raw(name), "rb") as f:
                return f.read()
        except FileNotFoundError:
            return None

    def call(self, name, *args):
        return self.worker.call(name, *args)

    def open(self, name, flags=os.O_RDWR, mode=0o644):
        return self.call("open", self.view.path(name), flags, mode)

    def armed(self, on):
        if on:
            open(self.arm, "wb").close()
        elif os.path.exists(self.arm):
            os.unlink(self.arm)

    def rows(self):
        """Number of rows in the host's journal. It is read from a copy: the daemon locks its own."""
        folder = tempfile.mkdtemp(dir=self.ds.base)
        try:
            for path in self.host.journal_files():
                shutil.copy(path, folder)
            total = 0
            for name in os.listdir(folder):
                if name.endswith(".db"):
                    with contextlib.closing(sqlite3.connect(os.path.join(folder, name))) as db:
                        total += db.execute("SELECT count(*) FROM claim").fetchone()[0]
            return total
        except sqlite3.DatabaseError:
            return -1  # copied while it was written
        finally:
            shutil.rmtree(folder)

    def quiet(self):
        """Is nothing claimed and nothing journalled?"""
        return all(c.get("state") == "free" for c in self.ds.claims().values()) and self.rows() == 0

    def end(self):
        self.worker.kill()
        if self.view.p is not None:
            if self.view.alive():
                self.view.kill9()
            else:
                self.view.forget()
        self.view.unmount_dead()


class Scenario:
    """What is crashed. Subclasses override what they need."""
    name = "?"
    images = ("img.qcow2",)  # whose headers must be true afterwards
    options = ""
    max_hooks = 400
    ends = False  # the action ends the daemon, in good order if it is not killed

    def data(self):
        return template(self.options)

    def prepare(self, c):
        c.put("img.qcow2", self.data())

    def act(self, c):
        """May raise OSError: the daemon dies under it."""
        raise NotImplementedError

    def sealed(self, c, name):
        return is_sealed(c.ds.raw(name))

    def info(self, c, name):
        """A raw opener that shows the size, without locks."""
        return ["qemu-img", "info", *no_lock(c.ds.raw(name))]

    def done(self, c):
        """Has all that the action sets off in the background been done? (Asked while the daemon lives.)"""
        return True

    def sizes(self):
        """Virtual sizes that a raw opener may see after the crash, if it is let in at all."""
        return {SIZE}

    def check(self, c):
        """The content after recovery. Fails when it is not one that the scenario may leave."""
        eq(c.raw_bytes("img.qcow2") == self.data(), True, "content is as before")


def crash_at(build, scenario, k):
    """Runs the scenario with a kill at hook k. Returns (context, crashed)."""
    c = Context(build)
    try:
        c.view.start(DISKGUARD_HOOK_KILL=str(k), DISKGUARD_HOOK_ARM=c.arm, DISKGUARD_HOOK_LOG=os.path.join(c.ds.base, "hooks"))
        scenario.prepare(c)
        c.armed(True)
        died = False
        try:
            scenario.act(c)
        except OSError:
            died = True  # or is about to
        wait_for(lambda: not c.view.alive() or (not died and scenario.done(c)), "the action ends")
        ended = not c.view.alive()
        crashed = ended and c.view.p.returncode == KILLED
        c.armed(False)
        if ended:
            ok(crashed or (c.view.p.returncode == 0 and scenario.ends), "the daemon ended with %s; log: %s" %
               (c.view.p.returncode, c.view.log()[-500:]))
            c.worker.kill()
            c.view.forget()
            c.view.unmount_dead()
        if crashed:
            raw_openers(c, scenario)
        return c, crashed
    except BaseException:
        c.end()
        raise


def hook_name(c):
    """Name of the last hook that was passed."""
    try:
        with open(os.path.join(c.ds.base, "hooks"), encoding="ascii") as f:
            return f.read().splitlines()[-1]
    except (FileNotFoundError, IndexError):
        return "?"


def raw_openers(c, scenario):
    """A raw opener is refused, or sees a true header."""
    for name in scenario.images:
        if not os.path.exists(c.ds.raw(name)):
            continue
        argv = scenario.info(c, name)
        r = run(*argv) if argv else None
        if r and r.code == 0:
            ok(any("(%d bytes)" % size in r.out for size in scenario.sizes()),
               "a raw qemu-img is let in and shows another size: %s" % r.out[:300])


def verify(c, scenario):
    """After a recovery: nothing sealed, nothing claimed, the content right, the images open for write again."""
    for name in scenario.images:
        if os.path.exists(c.ds.raw(name)):
            ok(not scenario.sealed(c, name), "%s is still sealed" % name)
    scenario.check(c)
    if not c.view.alive():
        c.view.start()
        scenario.check(c)
    ok(c.quiet(), "something is still claimed or journalled: %s, %d rows" % (c.ds.claims(), c.rows()))
    for name in scenario.images:
        data = c.raw_bytes(name)
        if data:  # also of one that was cut in its header: a lie, whoever cut it, and claimed without a seal
            with Proc() as p:  # not this process: what another thread starts would hold the descriptor, too, until it is another program
                fd = p.call("open", c.view.path(name), os.O_RDWR)
                eq(p.call("pread", fd, len(data), 0) == data, True, "content through the view")
                p.call("close", fd)
            c.ds.wait_free(name)
            eq(c.raw_bytes(name) == data, True, "content after another open and close")
    c.view.stop()
    c.ds.fsck_clean(c.host)


def recover_by_daemon(c, scenario):
    c.view.start()
    verify(c, scenario)


def drop_journal(c):
    for path in c.host.journal_files():
        os.unlink(path)


def recover_by_fsck(c, scenario):
    """Without the journal: the claims alone must do."""
    drop_journal(c)
    r = c.ds.fsck(c.host, "-y")
    ok(r.code in (0, 1), "fsck -y without the journal: %r" % r)
    r = c.ds.fsck(c.host, "-n")
    eq(r.code, 0, "a second fsck finds something: %s" % r.out)
    verify(c, scenario)


def recover_with_crash(c, scenario, j, by_fsck):
    """A second crash, at hook j of the recovery, then a recovery that is left alone. Returns whether it crashed."""
    if by_fsck:
        drop_journal(c)
        r = run(*c.build.command(c.build.fsck, "-y", "--host-id=" + c.host.uuid, "--state-dir=" + c.host.state, c.ds.path),
                env=c.build.env(DISKGUARD_HOOK_KILL=str(j)))
        crashed = r.code == KILLED
        ok(crashed or r.code in (0, 1), "fsck with a kill at %d: %r" % (j, r))
        raw_openers(c, scenario)
        recover_by_fsck(c, scenario)
        return crashed
    c.armed(True)
    c.view.spawn(DISKGUARD_HOOK_KILL=str(j), DISKGUARD_HOOK_ARM=c.arm)
    wait_for(lambda: not c.view.alive() or c.view.says_mounted(), "it starts or dies")
    c.armed(False)
    with contextlib.suppress(OSError):
        os.stat(c.view.mnt)  # a hook that was passed while the mount appeared may still kill it
    crashed = not c.view.alive()
    if crashed:
        c.view.forget()
        c.view.unmount_dead()
        raw_openers(c, scenario)
        c.view.start()
    else:
        c.view.wait_mounted()
    verify(c, scenario)
    return crashed


def attempt(build, scenario, k, label, recover):
    """A crash at k and a recovery: (crashed, what recover returned)."""
    c, crashed = crash_at(build, scenario, k)
    try:
        if crashed or died_late(c, scenario):
            return True, recover(c)
        survived(c, scenario)
        return False, False
    except Fail as e:
        raise Fail("k=%d (%s), %s: %s" % (k, hook_name(c), label, e)) from None
    finally:
        c.end()


def hooks_of(build, scenario):
    """Names of the hooks that the whole action passes, in order."""
    c, crashed = crash_at(build, scenario, scenario.max_hooks)
    try:
        ok(not crashed and not died_late(c, scenario), "no end of hooks")
        survived(c, scenario)
        with open(os.path.join(c.ds.base, "hooks"), encoding="ascii") as f:
            return [line.split()[-1] for line in f.read().splitlines()]
    finally:
        c.end()


def draw(names, wanted, rng):
    """That many of the points 1, 2, ...: one of each name, as long as there are any, then a second one, and so on."""
    by_name = {}
    for k, name in enumerate(names, 1):
        by_name.setdefault(name, []).append(k)
    piles = [rng.sample(pile, len(pile)) for pile in by_name.values()]
    rng.shuffle(piles)
    found = []
    while len(found) < min(wanted, len(names)):
        found += [pile.pop() for pile in piles if pile]
    return sorted(found[:wanted])


def all_of(function, items, at_once=AT_ONCE):
    """function(item) for each, at_once at a time: the values, in order. Raises what the first that failed raised, after the others have ended."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(function, items))


def by_daemon(build, scenario, k):
    return attempt(build, scenario, k, "recovery by the daemon", lambda c: recover_by_daemon(c, scenario))[0]


def by_fsck(build, scenario, k):
    return attempt(build, scenario, k, "recovery by fsck without the journal", lambda c: recover_by_fsck(c, scenario))[0]


def crash_again(build, scenario, k, with_fsck, every=False):
    """Dies in the recovery, too: at one of its first hooks, or at each of them until it survives. Whether the action was crashed."""
    crashed, again, j = False, True, 0
    while again and (every or j == 0):
        j += 1
        at = j if every else 1 + (k + with_fsck) % 9
        crashed, again = attempt(build, scenario, k, "crash at %d of the recovery by %s" % (at, "fsck" if with_fsck else "the daemon"),
                                 lambda c, at=at: recover_with_crash(c, scenario, at, with_fsck))
    return crashed


WAYS = (by_daemon, by_fsck, lambda build, scenario, k: crash_again(build, scenario, k, False),
        lambda build, scenario, k: crash_again(build, scenario, k, True))


def run_some(build, scenario, wanted, rng):
    """Crashes at `wanted` points drawn at random, and one of the two recoveries after each, by turns (None: at all points, and both).
    Returns (points that were tried, hooks of the action)."""
    names = hooks_of(build, scenario)
    points = range(1, len(names) + 1) if wanted is None else draw(names, wanted, rng)
    if wanted is None:
        tries = [(k, way) for k in points for way in (by_daemon, by_fsck)]
    else:
        first = rng.randrange(2)
        tries = [(k, (by_daemon, by_fsck)[(n + first) % 2]) for n, k in enumerate(points)]
    crashed = all_of(lambda t: t[1](build, scenario, t[0]), tries)
    return len({k for (k, _), died in zip(tries, crashed) if died}), len(names)


def run_all(build, scenario, exhaustive, seed):
    """Every k until the daemon survives. After each crash one of the WAYS to recover, by turns that begin with the seed; exhaustive: each of
    them, and a second crash at every hook of the recovery. Returns the number of crash points."""
    def one(k):
        if not exhaustive:
            return WAYS[(k + seed) % len(WAYS)](build, scenario, k)
        if not by_daemon(build, scenario, k):
            return False
        by_fsck(build, scenario, k)
        for with_fsck in (False, True):
            crash_again(build, scenario, k, with_fsck, every=True)
        return True

    k = 1
    while True:
        ok(k < scenario.max_hooks, "no end of hooks")
        crashed = all_of(one, range(k, k + AT_ONCE))
        if not all(crashed):
            return k - 1 + crashed.index(False)
        k += AT_ONCE


def died_late(c, scenario):
    """Ends a daemon that lived when all was done. Was there one more hook, which killed it only then?"""
    c.worker.kill()
    if c.view.p is None:
        return False  # crash_at() saw its end, and that it was a good one
    wait_for(lambda: not c.view.alive() or c.quiet(), "nothing is claimed after the last handle is gone")
    umount(c.view.mnt)
    code = c.view.wait_end()
    ok(code in (0, KILLED), "exit code of diskguard %s; log: %s" % (code, c.view.log()[-800:]))
    c.view.forget()
    if code == KILLED:
        raw_openers(c, scenario)
    return code == KILLED


def survived(c, scenario):
    """The daemon lived through the action, and ended in good order."""
    for name in scenario.images:
        if os.path.exists(c.ds.raw(name)):
            ok(not scenario.sealed(c, name), "%s is still sealed" % name)
    c.ds.fsck_clean(c.host)
