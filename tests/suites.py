#!/usr/bin/env python3
"""suites: what each test script needs. The scripts say it themselves, in the call that makes their Suite (func/dgtest.py) or in
declare() (func/sealing.py); it is read here without running them, for tests/run and for tests/meson.build. Those that say nothing need nothing.

  suites.py        prints "FOLDER NAME NEEDS SECONDS" for each script that `meson test` runs
"""
import ast
import glob
import os

HERE = os.path.dirname(os.path.abspath(__file__))
FOLDERS = ("crash", "package", "stack", "func", "fsck", "stress")  # the longest ones first; tests/lab is for tests/run alone


class Script:
    """needs: the build it wants ("hooks"; else any). also: builds with a sanitizer that the short run has it run with, too. seed: takes
    --seed, which may differ from run to run. always: of tests/lab, runs without --lab. limit: seconds."""

    def __init__(self, path, needs="", also=(), seed=False, always=False, limit=420, memory=False):
        self.path, self.needs, self.also, self.seed, self.always = path, needs, also, seed, always
        self.limit, self.memory = limit, memory
        self.folder, self.name = os.path.basename(os.path.dirname(path)), os.path.splitext(os.path.basename(path))[0]
        self.build = needs or "check"


def read(path):
    with open(path, encoding="utf-8") as f:
        tree = ast.parse(f.read(), path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in ("Suite", "declare"):
            return Script(path, **{word.arg: ast.literal_eval(word.value) for word in node.keywords})
    return Script(path)


def scripts(folder):
    return [read(path) for kind in ("check", "test") for path in sorted(glob.glob(os.path.join(HERE, folder, kind + "_*.py")))]


def main():
    for folder in FOLDERS:
        for script in scripts(folder):
            print(folder, script.name, script.needs or "-", script.limit)


if __name__ == "__main__":
    main()
