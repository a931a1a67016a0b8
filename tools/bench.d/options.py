"""options: the command line, and the plan that comes of it."""
import argparse
import os
import shutil

GROUPS = {  # name: (what it measures, programs that it needs)
    "io": ("guest data with fio: held qcow2 and raw images, a plain file, a reader on another host",
           ("fio", "qemu-img")),
    "names": ("ls -l, find, tar, create and unlink in a directory with many files", ("qemu-img",)),
    "guard": ("open for write, close, races, a boot storm, many claims; the same calls made bare",
              ("qemu-img",)),
    "many": ("memory, list, why and a start after a crash with many held images; fsck.diskguard on "
             "a full datastore", ("qemu-img",)),
    "qemu": ("qemu-img bench, alone and through qemu-storage-daemon", ("qemu-img", "qemu-io")),
}
PLACES = ("disk", "tmpfs")

TITLE = "bench: how fast views are, beside the raw directory and beside other FUSE file systems."
EPILOG = """
Every round measures every target once, in an order that changes. The table has medians, and behind
± half of the spread: of the distance between the quartiles, with fewer than five rounds of that
between the least and the greatest value. A ratio is taken round by round, to the raw directory or
to the bare calls.

--compare and --before: a figure got worse when its median moved in the bad direction by more than
the noise, three standard errors of the difference of both medians, and by more than --tolerance.
The errors come from the spreads of both, and from the usual ones of their group where those are
greater. Ratios are compared where there are any: then a machine that has become slower as a whole
changes nothing. A figure that was measured once counts from 25 %.

"bare FUSE" (bench_bare_fuse.c, bench_bare_names.c for names) reads a request, asks the file or the
directory and replies, and does nothing else: what FUSE itself costs here.

Peers (bindfs, mergerfs, libfuse's example passthrough_hp) are measured where they are in the PATH.
tools/install-deps bench installs fio, gnuplot and the peers that Debian has.

Exit codes: 0 done; 1 --compare or --before found something slower; 2 it could not run as asked.
It needs root, because it mounts. It mounts and writes below directories of its own alone, and
removes them.
"""


class Plan:
    """What is measured, and how much of it."""
    rounds, size, runtime_ms, files, claims = 5, 256 << 20, 1000, 20000, 20000
    storm, procs, opens, races, requests = 1000, 50, 30, 5, 4000
    many, scanned = 10000, 100000
    budget = None  # seconds of a group in one place; what one does not need the later ones get
    quick = tiny = False


class Quick(Plan):
    """Under three minutes in all."""
    rounds, size, runtime_ms, files = 3, 64 << 20, 200, 1000
    storm, procs, opens, races, requests = 100, 10, 8, 1, 500
    many, scanned = 200, 2000
    budget, quick = {"io": 56, "names": 18, "guard": 20, "many": 12, "qemu": 16}, True


class Smoke(Quick):
    """Shows that everything runs; the figures mean nothing."""
    rounds, size, runtime_ms, files, claims = 1, 10 << 20, 20, 20, 20
    storm, procs, opens, races, requests = 4, 2, 2, 1, 8
    many, scanned = 4, 20
    tiny = True


def number_of_bytes(text):
    units = {"K": 10, "M": 20, "G": 30}
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in units else (text, "")
    return int(digits) << units.get(unit, 0)


def words_of(allowed):
    def parse(text):
        words = [w for w in text.split(",") if w]
        wrong = [w for w in words if w not in allowed]
        if wrong or not words:
            raise argparse.ArgumentTypeError("%s: one or more of %s" %
                                             (",".join(wrong) or "nothing", ",".join(allowed)))
        return words
    return parse


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("%s is not greater than 0" % text)
    return value


def parse(peers):
    groups = "\n".join("  %-6s %s" % (name, text) for name, (text, _) in GROUPS.items())
    parser = argparse.ArgumentParser(prog="bench", description=TITLE + "\n\nGroups:\n" + groups,
                                     epilog=EPILOG,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true",
                      help="under three minutes: less of all; names, guard, qemu on the disk alone")
    size.add_argument("--smoke", action="store_true",
                      help="the smallest run of each group, in seconds: for the bench's own test")
    add("--only", type=words_of(tuple(GROUPS)), default=list(GROUPS), metavar="GROUPS",
        help="of io,names,guard,many,qemu (default: all)")
    add("--places", type=words_of(PLACES), metavar="PLACES", help="of disk,tmpfs (default: both)")
    add("--dir", default="/var/tmp",
        help="a directory on the file system that is the place `disk` (default: %(default)s)")
    add("--build", metavar="DIR",
        help="the build that is measured (default: $BUILD, else build-check or build in the tree)")
    add("--before", metavar="DIR",
        help="another build: its views are measured and compared, too, in the same rounds")
    add("--rounds", type=positive, metavar="N", help="default: %d; with --quick %d" %
        (Plan.rounds, Quick.rounds))
    add("--size", type=number_of_bytes, metavar="BYTES",
        help="of each file of io and qemu; K, M or G; at least 10M (default: 256M; quick: 64M)")
    add("--runtime", type=positive, metavar="MS", dest="runtime_ms",
        help="milliseconds of one fio job (default: 1000; quick: 200)")
    add("--files", type=positive, metavar="N", help="of names (default: 20000; quick: 1000)")
    add("--claims", type=int, metavar="N",
        help="freed claims on the full datastore of guard; 0: leave it out (default: 20000)")
    add("--storm", type=positive, metavar="N",
        help="images of the boot storm (default: 1000; quick: 100)")
    add("--procs", type=positive, metavar="N",
        help="processes of the boot storm (default: 50; quick: 10)")
    add("--many", type=positive, metavar="N",
        help="images that one daemon holds (default: 10000; quick: 200)")
    add("--scanned", type=positive, metavar="N",
        help="files for fsck.diskguard (default: 100000; quick: 2000)")
    add("--peers", metavar="NAMES", help="of %s, or none (default: those that are installed)" %
        ",".join(peers))
    add("--json", metavar="FILE", help="write every figure there")
    add("--plot", metavar="FILE", help="write the ratios there as SVG; needs gnuplot")
    add("--compare", metavar="FILE", help="an earlier --json: say what got slower")
    add("--tolerance", type=float, default=5.0, metavar="PERCENT",
        help="of --compare: less than that is no change (default: 5)")
    add("--from", dest="source", metavar="FILE",
        help="measure nothing: table, plot and comparison of an earlier --json")
    return parser.parse_args()


def plan_of(args):
    plan = Smoke() if args.smoke else Quick() if args.quick else Plan()
    for name in ("rounds", "size", "runtime_ms", "files", "claims", "storm", "procs", "many",
                 "scanned"):
        value = getattr(args, name)
        if value is not None:
            setattr(plan, name, value)
    plan.size = max(plan.size & -(1 << 20), 10 << 20)
    return plan


def places_of(args, group):
    if args.places:
        return args.places
    return PLACES if group == "io" or not (args.quick or args.smoke) else PLACES[:1]


def missing(group):
    return [p for p in GROUPS[group][1] if not shutil.which(p)]


def find_build(args, top):
    """The build directory that is measured, or None."""
    for path in [args.build] if args.build else [os.environ.get("BUILD", ""),
                                                 os.path.join(top, "build-check"),
                                                 os.path.join(top, "build")]:
        if path and os.access(os.path.join(path, "tools", "diskguardctl"), os.X_OK):
            return os.path.abspath(path)
    return None
