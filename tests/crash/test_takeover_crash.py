#!/usr/bin/env python3
"""test_takeover_crash: a host dies at the k-th operation on the datastore or the journal while it takes an image over from a dead host.
Then that host, a third one, or the first holder comes: the header and the data are as the first holder left them, and everybody settles.

Needs a build with -Dhooks=true. POINTS values of k are drawn at random (--seed), of each kind of step one at least, and the orders in which
the hosts come take turns. --long: every k, all orders for each, and version 2 images, too.
"""
import errno
import os
import random
import sys

import crashlib  # noqa: F401 (finds the harness)
from crashlib import KILLED, all_of, draw, template
from dgtest import Datastore, Fail, Host, Proc, Skip, Suite, View, eq, is_sealed, ok, wait_for

suite = Suite(__file__, needs="hooks", memory=True, seed=True, limit=900)
POINTS = 40
MAX_HOOKS = 1000
AT_ONCE = 8  # a try takes 0.2 s of CPU in 4 s: a host that takes over asks once a second
ORDERS = ("bca", "cba", "abc", "acb")  # in which the hosts open the image afterwards


class Scene:
    def __init__(self, build, options=""):
        self.build, self.data = build, template(options)
        self.ds = Datastore(build)
        self.arm = os.path.join(self.ds.base, "arm")
        self.hooks = os.path.join(self.ds.base, "hooks")
        self.views = {}
        with open(self.ds.raw("img.qcow2"), "wb") as f:
            f.write(self.data)
        self.true = self.data[:-512] + b"guest" + self.data[-507:]
        a = self.view("a", "wait=0")
        with Proc() as p:
            fd = p.call("open", a.path("img.qcow2"), os.O_RDWR)
            p.call("pwrite", fd, b"guest", len(self.data) - 512)
            a.p.kill()
            self.gone(a)
        ok(is_sealed(self.ds.raw("img.qcow2")), "the image is sealed")

    def view(self, name, *options, **env):
        env.setdefault("DISKGUARD_BEAT_MS", "50")
        view = self.views.get(name) or View(self.ds, Host(self.ds.base, name), start=False)
        self.views[name] = view
        view.options[2:] = options
        return view.start(**env)

    @staticmethod
    def gone(view):
        view.wait_end()
        view.forget()
        view.unmount_dead()

    def end(self):
        for view in self.views.values():
            if view.alive():
                view.kill9()
            view.unmount_dead()

    def crash(self, k):
        """Kills b at hook k of its takeover and open. Returns whether it died."""
        b = self.view("b", "wait=0", "takeover=lock", DISKGUARD_HOOK_KILL=str(k), DISKGUARD_HOOK_ARM=self.arm, DISKGUARD_HOOK_LOG=self.hooks)
        with Proc() as p:
            open(self.arm, "wb").close()
            p.send("open", b.path("img.qcow2"), os.O_RDWR)
            wait_for(lambda: p.ready() or not b.alive(), "b has it, or dies", 60)
            os.unlink(self.arm)
            wait_for(lambda: not b.alive() or b"TAKEN OVER" in open(b.log_path, "rb").read(), "b has it, or is dead")
            if b.alive():
                p.recv()
                b.p.kill()  # with the image open: the last crash point
                self.gone(b)
                return False
        eq(b.p.returncode, KILLED, "end of b; log: %s" % b.log()[-400:])
        self.gone(b)
        return True

    def passed(self):
        with open(self.hooks, encoding="ascii") as f:
            return [line.split()[-1] for line in f.read().splitlines()]

    def hook(self):
        return self.passed()[-1]

    def use(self, view):
        """The image can be opened for write and is as a left it."""
        with Proc() as p:
            def opened():
                try:
                    return p.call("open", view.path("img.qcow2"), os.O_RDWR)
                except OSError as e:
                    eq(e.errno, errno.EBUSY, "open; log: %s" % view.log()[-600:])
                    return None
            fd = wait_for(opened, "the image can be opened; log: %s" % view.log()[-600:], 30)
            eq(p.call("pread", fd, len(self.true) + 1, 0) == self.true, True, "content through the view")
            p.call("close", fd)
        self.ds.wait_free("img.qcow2")
        with open(self.ds.raw("img.qcow2"), "rb") as f:
            eq(f.read() == self.true, True, "content on the datastore")

    def converge(self, order):
        for name in order:
            self.use(self.view(name, "wait=0", "takeover=lock"))
        for name in "abc":
            if name not in order:
                self.view(name, "wait=0")
        for name in "abc":
            self.views[name].stop()
        for name in "abc":
            self.ds.fsck_clean(self.views[name].host)


def settle(build, options, k, order):
    """The crash at k, and what comes after it. (whether b died, the hooks that it passed)"""
    scene = Scene(build, options)
    where = "?"
    try:
        died = scene.crash(k)
        where = scene.hook() if died else "open"
        passed = scene.passed()
        scene.converge(order)
        return died, passed
    except Exception as e:
        raise Fail("k=%d (%s), then %s: %s" % (k, where, order, e)) from None
    finally:
        scene.end()


def run_all(build, options):
    if not build.hooks:
        raise Skip("needs a build with -Dhooks=true")
    died, names = settle(build, options, MAX_HOOKS, "bca")
    ok(not died and len(names) > 10, "too few hooks, or too many: %d" % len(names))
    rng = random.Random("%d %s" % (suite.args.seed, options))
    if suite.args.long:
        tries = [(k, order) for k in range(1, len(names) + 1) for order in ORDERS]
    else:
        first = rng.randrange(len(ORDERS))
        tries = [(k, ORDERS[(n + first) % len(ORDERS)]) for n, k in enumerate(draw(names, POINTS, rng))]
    done = all_of(lambda t: settle(build, options, *t), tries, AT_ONCE)
    crashed = sum(died for died, _ in done)
    print("takeover%s: %d of %d crash points, %d kinds of steps" %
          (" " + options if options else "", len({k for k, _ in tries}), len(names), len(set(names))), flush=True)
    ok(crashed >= len(tries) * 3 // 4, "only %d of %d were killed: the number of steps differs too much from run to run" % (crashed, len(tries)))


@suite.case("takeover of a version 3 image", limit=900)
def _(build):
    run_all(build, "")


def version_2(build):
    run_all(build, "compat=0.10")


if __name__ == "__main__":
    if "--long" in sys.argv:
        suite.case("takeover of a version 2 image", limit=900)(version_2)
    suite.main()
