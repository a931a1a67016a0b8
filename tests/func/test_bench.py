#!/usr/bin/env python3
"""tools/bench: the smallest run has every figure and leaves nothing behind, and a comparison finds
what got slower. No figure is judged here."""
import copy
import json
import os
import shutil
import signal
import subprocess
import sys

import dgtest
import guardian
from dgtest import Suite, eq, ok, run, wait_for

TOP = os.path.dirname(os.path.dirname(dgtest.HERE))
BENCH = os.path.join(TOP, "tools", "bench")
sys.path.append(os.path.join(TOP, "tools", "bench.d"))
import stats  # noqa: E402  pylint: disable=wrong-import-position

suite = Suite(__file__, limit=300)
made = {}


def arguments(build, base, *more):
    return [sys.executable, BENCH, "--smoke", "--build", build.path, "--dir", base, "--places",
            "disk", "--peers", "none", *more]


def smoke(build):
    """The path of the JSON file and the output of one small run for all cases."""
    if not made:
        base = dgtest.suite_tmp()
        made["json"] = os.path.join(dgtest.suite_tmp(), "smoke.json")
        made["out"] = dgtest.must(*arguments(build, base, "--json", made["json"], "--plot",
                                             made["json"] + ".svg"), timeout=200)
        made["left"] = os.listdir(base) + mounts_below(base)
    return made["json"], made["out"]


def load(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def mounts_below(path):
    return [m for m in guardian.mounts() if m.startswith(path + "/")]


@suite.case("one small run has every figure of every group")
def _(build):
    path, out = smoke(build)
    direct = "takes no O_DIRECT" not in out
    figures = {(f["group"], f["target"], f["unit"]) for f in load(path)["figures"]}
    wanted = {("names", t, "s") for t in ("raw", "diskguard", "bare FUSE")}
    wanted |= {("guard", t, "ms") for t in ("diskguard", "bare calls")}
    if direct:
        wanted |= {("qemu", t, "IO/s") for t in ("raw", "diskguard")}
    if direct and shutil.which("fio"):
        wanted |= {("io", t, "IO/s") for t in ("raw", "held qcow2", "held raw", "plain", "reader", "bare FUSE")}
        wanted |= {("io", t, u) for t in ("held qcow2", "held raw", "plain", "reader")
                   for u in ("CPU s/GiB", "MiB")}
    eq(wanted - figures, set(), "figures that are missing")
    wanted = {("many", "diskguard", "ms"), ("many", "diskguard", "KiB"), ("many", "walk", "ms"), ("many", "fsck", "ms")}
    eq(wanted - figures, set(), "figures of many images that are missing")
    whats = " ".join(f["what"] for f in load(path)["figures"])
    for what in ("ls -l", "create", "unlink", "open for write", "close, until", "boot storm",
                 "the loser", "20 claims"):
        ok(what in whats and what in out, "%s was measured and is in the table" % what)


@suite.case("every figure has a median within its spread, and a ratio to its base")
def _(build):
    for f in load(smoke(build)[0])["figures"]:
        ok(f["values"] and f["low"] <= f["median"] <= f["high"], "%r" % f)
        ok("ratio" in f or f["target"] in ("raw", "bare calls")
           or f["unit"] in ("CPU s/GiB", "MiB") or f["group"] in ("guard", "many"), "a ratio: %r" % f)
    ratios = [f["what"] for f in load(smoke(build)[0])["figures"] if f["group"] == "guard"
              and f.get("ratio", {}).get("to") == "bare calls"]
    ok("open for write" in ratios and any("close" in w for w in ratios),
       "open and close have a ratio to the bare calls: %r" % ratios)


@suite.case("a run leaves no file and no mount behind, and draws a plot where gnuplot is")
def _(build):
    path, out = smoke(build)
    eq(made["left"], [], "what is left in its directory")
    ok(os.path.exists(path + ".svg") or "gnuplot is not installed" in out,
       "a plot, or why there is none: %s" % out[-300:])


@suite.case("killed in the middle it leaves nothing behind, either")
def _(build):
    for number in (signal.SIGTERM, signal.SIGKILL):
        base = dgtest.suite_tmp()
        p = subprocess.Popen(arguments(build, base), stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        guardian.process(p.pid)
        wait_for(lambda base=base: mounts_below(base), "a view is mounted", 60)
        p.send_signal(number)
        p.wait(60)
        wait_for(lambda base=base: not mounts_below(base) and not os.listdir(base),
                 "nothing is left after signal %d" % number, 60)


@suite.case("a run compared with itself is not slower; one that was made worse by hand is named")
def _(build):
    path, _out = smoke(build)
    same = run(sys.executable, BENCH, "--from", path, "--compare", path)
    ok(same.code == 0 and "nothing got slower" in same.out, repr(same))
    for group, what in (("names", "ls -l"), ("guard", "open for write")):
        result = load(path)
        figure = next(f for f in result["figures"] if f["group"] == group
                      and f["target"] == "diskguard" and what in f["what"])
        for part in (figure, figure["ratio"]):
            for key in ("median", "low", "high"):
                part[key] *= 3
        with open(path + ".worse", "w", encoding="utf-8") as f:
            json.dump(result, f)
        worse = run(sys.executable, BENCH, "--from", path + ".worse", "--compare", path)
        lines = [line for line in worse.out.splitlines() if line.startswith("slower by")]
        eq((worse.code, len(lines)), (1, 1), "exit code and lines: %r" % worse)
        ok("slower by 200 %" in lines[0] and what in lines[0] and group in lines[0], lines[0])
        eq(run(sys.executable, BENCH, "--from", path, "--compare", path + ".worse").code, 0,
           "it became faster: exit code")


@suite.case("slower is what moved by more than the noise and by more than the tolerance")
def _(_build):
    def row(median, half, values=5, better="more"):
        return {"median": median, "low": median - half, "high": median + half,
                "values": [median] * values, "better": better}
    cases = [(row(100, 1), row(90, 1), True), (row(100, 1), row(98, 1), False),
             (row(100, 10), row(90, 10), False), (row(100, 1), row(120, 1), False),
             (row(100, 1, better="less"), row(120, 1, better="less"), True),
             (row(100, 0, 1), row(90, 0, 1), False), (row(100, 0, 1), row(50, 0, 1), True),
             (row(0, 0), row(90, 0), False)]
    for old, new, expected in cases:
        eq(stats.worse(old, new, 0.05) is not None, expected, "%r then %r" % (old, new))
    eq(stats.worse(row(100, 1), row(90, 1), 0.05, (0.2, 0.2)), None, "its group is noisier")
    with_ratio = dict(copy.deepcopy(cases[0][1]), ratio=row(0.5, 0.01))
    eq(stats.worse(dict(cases[0][0], ratio=row(0.5, 0.01)), with_ratio, 0.05), None,
       "the ratio stayed: only the machine is slower")


@suite.case("a second build is measured in the same rounds, each on a datastore of its own")
def _(build):
    path = os.path.join(dgtest.suite_tmp(), "both.json")
    r = run(*arguments(build, dgtest.suite_tmp(), "--only", "names,guard", "--before", build.path,
                       "--json", path))
    ok(r.code in (0, 1) and "Compared with the build before" in r.out, repr(r))
    figures = {(f["group"], f["what"], f["target"]) for f in load(path)["figures"]}
    for group, what, target in figures:
        if target == "diskguard":
            ok((group, what, "diskguard before") in figures, "%s of the build before" % what)


@suite.case("without fio its group is left out, and the bench says so")
def _(build):
    tools = dgtest.path_without("fio")
    base = dgtest.suite_tmp()
    alone = run(*arguments(build, base, "--only", "io"), env=build.env(PATH=tools))
    ok(alone.code == 2 and "group io is left out: fio is not installed" in alone.out
       and "nothing can be measured" in alone.out, repr(alone))
    both = run(*arguments(build, base, "--only", "io,names"), env=build.env(PATH=tools))
    ok(both.code == 0 and "group io is left out: fio is not installed" in both.out
       and "ls -l" in both.out, repr(both))


@suite.case("it refuses to run where there is not enough room, and a comparison with another file")
def _(build):
    base = dgtest.suite_tmp()
    r = run(*arguments(build, base, "--only", "qemu", "--size", "100000G"))
    ok(r.code == 2 and "MiB are needed" in r.out, repr(r))
    eq(os.listdir(base), [], "what is left")
    with open(os.path.join(base, "other"), "w", encoding="utf-8") as f:
        f.write("{}")
    r = run(*arguments(build, base, "--compare", os.path.join(base, "other")))
    ok(r.code == 2 and "not a file of bench" in r.out, repr(r))


if __name__ == "__main__":
    suite.main()
