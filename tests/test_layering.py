#!/usr/bin/env python3
"""test_layering: that layering.py fails when it should. Copies the tree, puts one offence at a time into the copy and wants the rule
that it breaks to name it: every arrow turned round, a circle of includes, a header that must not be there, a call, a read that needs
a reason, a function and a file that are too long, a header that does not compile alone. The copy without an offence must pass.

Prints one line per rule and at the end "N passed, N failed, N skipped".
"""
import contextlib
import functools
import glob
import io
import os
import shutil
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import layering  # noqa: E402  pylint: disable=wrong-import-position

compile_headers = layering.check_alone
layering.code_of = functools.lru_cache(None)(layering.code_of)  # each run reads the same files again
layering.includes = functools.lru_cache(None)(lambda text, found=layering.includes: list(found(text)))
layering.resolve = functools.lru_cache(None)(layering.resolve)


def run(alone=()):
    """(exit code, the lines that failed). alone: the headers that are compiled, which takes long."""
    layering.check_alone = lambda files: compile_headers(alone)
    out = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out):
        try:
            layering.main()
        except SystemExit as e:
            code = e.code
    return code, [line for line in out.getvalue().splitlines() if line.startswith(("FAILED", " "))]


@contextlib.contextmanager
def added(path, text, first=False):
    """The file of the copy with this text at its end, or as its first line."""
    path = os.path.join(layering.TOP, path)
    with open(path, encoding="utf-8") as f:
        before = f.read()
    with open(path, "w", encoding="utf-8") as f:
        f.write(text + before if first else before + text)
    try:
        yield
    finally:
        with open(path, "w", encoding="utf-8") as f:
            f.write(before)


def caught(path, text, rule, names, first=False, alone=()):
    """None, or why the offence was not caught."""
    with added(path, text, first):
        code, lines = run(alone)
    found = any(rule in line for line in lines if line.startswith("FAILED")) and any(names in line for line in lines if line[0] == " ")
    return None if code == 1 and found else "%s + %r: exit code %d, %s" % (path, text[:60], code, lines or "nothing failed")


def one_of(folder, ext):
    """A file of a folder, from the top; None: it has none."""
    return next((os.path.relpath(p, layering.TOP) for p in sorted(glob.glob(os.path.join(layering.TOP, folder, "*." + ext)))), None)


def spelled(header):
    """As others include it."""
    return header.split("/", 1)[1] if header.startswith(("src/", "tools/", "include/")) else header


def arrows():
    """Every arrow of ALLOWED that has one direction, turned round."""
    for upper, allowed in layering.ALLOWED.items():
        for lower in sorted(allowed):
            header, victim = one_of(upper, "h"), one_of(lower, "c") or one_of(lower, "h")
            if upper not in layering.ALLOWED[lower] and header:
                with added(victim, '#include "%s"\n' % spelled(header), first=True):
                    wanted = "%s:1: %s may not include from %s" % (victim, lower, upper)
                    offences = list(layering.check_arrows([victim]))
                yield None if offences == [wanted] else "%s: %s" % (wanted, offences)
    yield caught("src/base/log.c", '#include "core/io.h"\n', "includes only from", "src/base may not include from src/core", first=True)


def circle():
    yield caught("src/core/claim.h", '#include "core/seal.h"\n', "no circle", "src/core/claim src/core/seal")
    yield caught("src/base/base.h", '#include "base/text.h"\n', "no circle", "src/base/base src/base/text")


def headers():
    for path, name in (("src/core/seal.c", "sqlite3.h"), ("src/guard/zone.c", "fuse_lowlevel.h"), ("src/run/pool.c", "linux/fuse.h"),
                       ("src/view/fs.c", "json-c/json.h"), ("src/format/raw.c", "unistd.h"), ("src/format/qed.c", "sys/stat.h")):
        yield caught(path, "#include <%s>\n" % name, "", "%s:1: includes %s" % (path, name), first=True)


def calls():
    yield caught("src/guard/edit.c", "int r = io_header_write(fd, b, n, 0);\n", "only seal orders", "src/guard/edit.c")
    yield caught("src/core/seal.c", "int a = POSIX_FADV_DONTNEED;\n", "past the cache", "src/core/seal.c")


def raw_reads():
    yield caught("src/guard/zone.c", "int r = stat(path, &st);\n", "read freshly", "src/guard/zone.c")
    layering.RAW_ALLOWED.append(("src/guard/zone.c", "nothing(", "a reason for nothing"))
    code, lines = run()
    layering.RAW_ALLOWED.pop()
    yield None if code == 1 and any("matches 'nothing('" in line for line in lines) else "a reason that nothing needs: %s" % lines


def lengths():
    def function(lines):
        return "static void f(void)\n{\n%s}\n" % ("    g();\n" * lines)
    yield caught("src/run/pool.c", function(71), "no function", "a function of 71 lines")
    with added("src/run/pool.c", function(70)):
        code, lines = run()
    yield "70 lines: %s" % lines if code else None
    yield caught("src/run/pool.c", "\n" * 1000, "no file", "src/run/pool.c")


def alone():
    yield caught("src/run/lanes.h", "struct need what_it_does_not_include;\n", "compiles alone", "src/run/lanes.h", alone=["src/run/lanes.h"])


def untouched():
    code, lines = run()
    yield "the tree as it is: %s" % lines if code else None


def main():
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="layering-") as tree:
        for folder in ("include", "src", "tools", "tests"):
            shutil.copytree(os.path.join(os.path.dirname(HERE), folder), os.path.join(tree, folder),
                            ignore=shutil.ignore_patterns("corpus", "__pycache__"))
        layering.TOP = tree
        for rule in (untouched, arrows, circle, headers, calls, raw_reads, lengths, alone):
            answers = list(rule())
            missed = [answer for answer in answers if answer]
            passed, failed = passed + (not missed), failed + bool(missed)
            print("%-7s %s: %d of %d" % ("FAILED" if missed else "ok", rule.__name__, len(answers) - len(missed), len(answers)))
            for answer in missed:
                print("        " + answer)
    print("test_layering: %d passed, %d failed, 0 skipped" % (passed, failed))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
