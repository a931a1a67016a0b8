#!/usr/bin/env python3
"""formats: prints the names of all formats in src/format, one a line: the one list of what is fuzzed, for meson.build, tests/run and make_seeds.py."""
import glob
import os
import re

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
NAME = re.compile(r'^const struct format format_\w+ = \{\s*\.name = "(\w+)"', re.M)


def formats():
    found = []
    for path in glob.glob(os.path.join(TOP, "src", "format", "*.c")):
        with open(path, encoding="utf-8") as source:
            found += NAME.findall(source.read())
    return sorted(found)


if __name__ == "__main__":
    print("\n".join(formats()))
