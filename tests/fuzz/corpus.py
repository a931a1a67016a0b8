#!/usr/bin/env python3
"""corpus: the inputs of the fuzzers that are kept, one archive per format: tests/fuzz/corpus/FORMAT.tar.xz.

  corpus.py unpack DIRECTORY      writes every input as DIRECTORY/FORMAT/NAME; what was there before goes
  corpus.py add FORMAT FILE...    puts files into the archive of a format (or of "all"), each under its own name
  corpus.py pack DIRECTORY        writes every archive afresh from DIRECTORY/FORMAT/NAME
  corpus.py list                  prints FORMAT/NAME of every input

A crash that a fuzzer found becomes a test: give its file a name that says what it was, and run `corpus.py add FORMAT FILE`.
The build unpacks the archives into BUILD/tests/fuzz/corpus; fuzz_replay runs all of them. An archive depends on its
inputs alone: names are sorted, owner and time are zero.
"""
import argparse
import io
import os
import shutil
import sys
import tarfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from formats import formats  # noqa: E402  pylint: disable=wrong-import-position

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus")
END = ".tar.xz"


def archive(name):
    return os.path.join(FOLDER, name + END)


def names():
    """Names of the archives that there are."""
    return sorted(n[: -len(END)] for n in os.listdir(FOLDER) if n.endswith(END))


def inputs(name):
    """{name: bytes} of an archive; empty: there is none yet."""
    if not os.path.exists(archive(name)):
        return {}
    with tarfile.open(archive(name)) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers()}


def write(name, files):
    made = archive(name) + ".new"
    with tarfile.open(made, "w:xz", format=tarfile.USTAR_FORMAT, preset=9) as tar:
        for label in sorted(files):
            member = tarfile.TarInfo(label)
            member.size = len(files[label])
            tar.addfile(member, io.BytesIO(files[label]))
    os.replace(made, archive(name))


def read_file(path):
    with open(path, "rb") as f:
        return f.read()


def unpack(folder):
    shutil.rmtree(folder, ignore_errors=True)
    for name in names():
        os.makedirs(os.path.join(folder, name))
        for label, data in inputs(name).items():
            with open(os.path.join(folder, name, os.path.basename(label)), "wb") as f:
                f.write(data)


def add(name, paths):
    if name not in ("all", *formats()):
        sys.exit("corpus: %s is no format; there are: all %s" % (name, " ".join(formats())))
    write(name, inputs(name) | {os.path.basename(p): read_file(p) for p in paths})


def pack(folder):
    for name in sorted(os.listdir(folder)):
        write(name, {n: read_file(os.path.join(folder, name, n)) for n in os.listdir(os.path.join(folder, name))})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("unpack", "pack"):
        verbs.add_parser(verb).add_argument("directory")
    adding = verbs.add_parser("add")
    adding.add_argument("format")
    adding.add_argument("files", nargs="+", metavar="file")
    verbs.add_parser("list")
    args = parser.parse_args()
    if args.verb == "unpack":
        unpack(args.directory)
    elif args.verb == "pack":
        pack(args.directory)
    elif args.verb == "add":
        add(args.format, args.files)
    else:
        print("\n".join("%s/%s" % (name, label) for name in names() for label in sorted(inputs(name))))


if __name__ == "__main__":
    main()
