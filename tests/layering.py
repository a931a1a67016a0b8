#!/usr/bin/env python3
"""layering: reads the #include lines and a few names, and fails on any arrow that src/README.md does not allow.

Prints one line per rule, one per offence, and at the end "N passed, N failed, N skipped".
With --graph it prints which module includes which instead, and every circle.
"""
import concurrent.futures
import glob
import os
import re
import subprocess
import sys

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MAX_LINES = 1000  # of a file, which has one subject
MAX_FUNCTION = 70  # lines between the braces

CORE = {"src/core", "src/base", "src/format", "include/diskguard"}
# Where a file is -> from which of the project's own directories it may include.
ALLOWED = {
    "include/diskguard": {"include/diskguard"},
    "src/base": {"src/base", "include/diskguard"},
    "src/format": {"src/format"},
    "src/core": CORE,
    "src/node": {"src/node", *CORE},
    "src/run": {"src/run", "src/base"},
    "src/state": {"src/state", "src/base"},
    "src/warden": {"src/warden", "src/base", "include/diskguard"},
    "src/guard": {"src/guard", "src/node", "src/run", *CORE},
    "src/view": {"src/view", "src/guard", "src/node", "src/run", *CORE},
    "src/daemon": {"src/daemon", "src/view", "src/guard", "src/node", "src/run", *CORE},
    "tools/common": {"tools/common", *CORE},
    "tools/ctl": {"tools/ctl", "tools/common", *CORE},
    "tools/fsck": {"tools/fsck", "tools/common", *CORE},
    "tools/bench.d": set(),
    "tools/umount": {"tools/umount", "tools/ctl", "tools/common", *CORE},
}
# Circles of includes that are still there; each may only become smaller.
KNOWN_CIRCLES = []
# System header -> which files may include it, and why.
HEADERS = [
    ("only the guard knows struct image", r"guard/(image|\w+_priv)\.h", r"src/guard/\w+\.[ch]|tests/unit/\w+\.[ch]"),
    ("only the journal knows sqlite", r"sqlite3\.h", r"src/core/journal\.c"),
    ("only the view and the daemon know FUSE", r"(fuse3/)?fuse\w*\.h|linux/fuse\.h", r"src/(view|daemon)/\w+\.[ch]|tests/stress/\w+\.c|tests/func/stalefs\.c|tools/bench\.d/bench_bare_(fuse|names)\.c"),
    ("JSON is spoken by the control channel, the tools and names in images", r"json(-c/\w+|_\w+)?\.h", r"src/daemon/control\w*\.c|src/core/link_name\.c|tools/\w+/\w+\.[ch]"),
    ("a format has no descriptor, no lock and no log", r"unistd\.h|fcntl\.h|pthread\.h|syslog\.h|stdio_ext\.h|sys/.*", r"(?!src/format/).*"),
]
# Name that is called -> which files may.
CALLS = [
    ("only seal orders a header write", r"\bio_header_write\s*\(", r"src/core/(seal|io)\.[ch]|tests/unit/test_io\.c"),
    ("only io reads header bytes past the cache", r"\bPOSIX_FADV_DONTNEED\b", r"src/core/io\w*\.c|tests/.*"),
]
# What decides is read through io_fresh_* (src/core/io.h). Any other call that reads a name, an attribute, bytes or a handle needs a line here:
# (file, text in the line, reason). A line that nothing matches any more is an offence too.
RAW_READ = re.compile(r"(?<!->)(?<!\.)\b(f?stat|lstat|fstatat|statx|f?statv?fs|open|openat2?|fopen|(fd)?opendir|scandir|n?ftw|readdir|getdents64|p?readv?|"
                      r"f?access(at)?|realpath|lseek|io_open_beneath|io_reopen|io_reopen_regular|inode_reopen|io_local_name|io_pread_all|io_handle_open)\s*\(")
RAW_READERS = r"(src/(base|core|node|run|state|warden|guard|view|daemon)|tools/\w+)/\w+\.c"
RAW_ALLOWED = [
    ("src/core/io.c", "", "the choke point itself"),
    ("src/core/claim.c", "openat(dir, name, O_WRONLY", "writes; claim_read_known has just looked"),
    ("src/core/claim.c", "O_RDWR | O_CREAT", "writes; what it led to is read freshly afterwards"),
    ("src/core/shards.c", "openat(dir_fd, name", "a shard is never replaced; an absence is asked freshly"),
    ("src/core/spare.c", "openat(s->tmp_fd, name", "writes a file of this daemon's own name"),
    ("src/core/upgrade.c", "STORE_UPGRADE_LOCK, O_RDWR | O_CREAT", "a file to lock: nothing is read; its link count is, freshly"),
    ("src/base/hook.c", "", "files of the tests"),
    ("src/base/hook_stale.c", "", "files of the tests"),
    ("src/base/mountinfo.c", "fopen(", "/proc of this host"),
    ("src/base/log.c", "access(JOURNAL_SOCKET", "journald's socket on this host"),
    ("src/core/host.c", "", "the state directory: on a disk of this host alone"),
    ("src/core/journal.c", "", "the state directory: on a disk of this host alone"),
    ("src/core/store.c", '"..", O_PATH', "what is above a directory is this host's own mount table and directory cache"),
    ("src/core/store.c", "realpath(path", "the admin's word; what it leads to is checked by its file handle (root_compare)"),
    ("src/core/store.c", "open(s->path", "the admin's word; what it leads to is checked by its file handle (root_compare)"),
    ("src/core/store.c", "fstatvfs(s->root_fd", "read-only is a flag of this host's mount"),
    ("src/guard/readers.c", "fopen(path", "/proc of this host"),
    ("src/core/whereis.c", "", "a look for people; what is found is looked at freshly"),
    ("src/view/fs_remove.c", "fstat(fd, &st)", "identity: never changes"),
    ("src/guard/refuse.c", "statx(i->fd", "a flag for a message: nothing is decided by it"),
    ("tools/ctl/ctl_why.c", "opendir(path)", "/proc of this host"),
    ("tools/ctl/ctl_why.c", "readdir(dir)", "/proc of this host"),
    ("tools/fsck/fsck_file.c", "stat(real", "a file or a directory: what it is, is looked at under the lock"),
    ("tools/common/unseal.c", "open(w->real", "the person's word; what it leads to is looked at through the descriptor"),
    ("tools/common/unseal.c", "access(probe", "the person's word: is a datastore above the copy?"),
    ("tools/common/unseal.c", "openat(w->dir_fd, w->side", "a file of this program alone"),
    ("tools/common/unseal.c", "read(fd, text", "a file of this program alone: read past no cache, written by nobody else"),
    ("tools/common/unseal.c", "statx(w->dir_fd", "which mount it is on, which no cache changes"),
    ("tools/common/unseal.c", "fstat(w->dir_fd", "its number and its mount, neither of which a cache changes"),
    ("tools/common/unseal.c", "stat(path[0]", "which mount of this host shows the same directory"),
    ("tools/ctl/ctl_chain.c", "(s->root_fd, path, ret, 0)", "shown to a person; nothing is decided by it"),
    ("tools/ctl/ctl_chain.c", "statfs(path", "what is mounted on this host"),
    ("src/core/views.c", "lstat(path", "a socket of this host"),
    ("src/guard/first.c", "io_reopen(", "the file of an open handle: a handle, not a name"),
    ("src/core/recover.c", "io_reopen(found", "the file that io_fresh_handle or io_fresh_open found"),
    ("src/core/io_fencing.c", "fopen(", "/proc and /sys of this host"),
    ("src/daemon/control.c", "", "sockets and the mount table of this host"),
    ("src/node/opener.c", "", "/proc of this host"),
    ("src/state/state.c", "", "a memfd of this daemon"),
    ("src/warden/warden.c", "", "/proc of this host"),
    ("src/daemon/main.c", "", "the daemon's own descriptors"),
    ("src/view/loop.c", "read(fd, buf->mem", "requests of the kernel"),
    ("src/view/init.c", "return read(fd, buf, size)", "the same"),
    ("src/guard/edit.c", "io_reopen(h->inode->fd, O_WRONLY)", "writes"),
    ("src/daemon/options_path.c", "", "mount point and mount table of this host"),
    ("src/daemon/options_hidden.c", "realpath(", "the state directory: on a disk of this host alone"),
    ("src/daemon/start.c", "fopen(\"/proc", "/proc of this host"),
    ("src/daemon/start.c", "stat(d->opt.guard.mountpoint", "the view itself: does it answer?"),
    ("src/guard/init.c", "store.root_fd, \".\"", "the open root again"),
    ("src/guard/init.c", "fstat(fd, &st)", "the root's inode number: identity never changes"),
    ("src/node/inode.c", 'fstatat(fd, ""', "inode number, device and type of an open file: identity never changes"),
    ("src/guard/image.c", 'fstatat(img->inode->fd, ""', "getattr: a user's look, once more"),
    ("src/view/fs_attr.c", 'fstatat(i->fd, ""', "getattr: a user's look"),
    ("src/view/fs_attr.c", "fstatvfs(i->fd", "statfs: a user's look"),
    ("src/view/fs_data.c", "lseek(h->fd", "guest data"),
    ("src/view/fs_dir.c", "io_open_beneath(i->fd", "listing: a user's look"),
    ("src/view/fs_dir.c", "lseek(s->fd", "listing: a user's look"),
    ("src/view/fs_dir.c", "getdents64(s->fd", "listing: a user's look"),
    ("src/view/fs_lock.c", "", "descriptors for users' locks: nothing is read"),
    ("src/view/fs_name.c", "io_local_name(", "this host's own names are the truth there"),
    ("src/node/inode.c", "inode_reopen(const struct inode", "the file of an open descriptor: a handle, not a name"),
    ("src/node/inode.c", "io_reopen_regular(i->fd", "the same"),
    ("src/view/fs_name.c", "fstat(fd, &st) == 0; level", "what is above a directory is this host's own directory cache"),
    ("src/view/fs_name.c", '"..", O_PATH', "what is above a directory is this host's own directory cache"),
    ("src/view/fs_name.c", 'io_open_beneath(dir->fd, "."', "the open directory again"),
    ("src/view/fs_name.c", "io_open_beneath(dir->fd, name", "plain lookup: decides nothing, an open looks again"),
    ("src/view/fs_name.c", 'fstatat(fd, ""', "identity, and what a user is shown"),
    ("src/view/fs_name.c", 'fstatat(dir->fd, ""', "identity, and what a user is shown"),
    ("src/view/fs_remove.c", "io_reopen(op->dir[s]->fd", "the directory of an open descriptor, to sync it"),
    ("src/guard/plain.c", "inode_reopen(img->inode, flags", "the file of an open handle: a handle, not a name"),
    ("src/guard/fence.c", "io_reopen(", "the file of a handle, to read it on without the fence: decides nothing"),
    ("src/view/fs_open.c", "_reopen(", "the file of an open descriptor; fs_name_moved has looked at its name"),
    ("src/view/fs_open.c", "io_reopen_regular(fd, O_PATH", "the file that was just made"),
    ("src/view/fs_open.c", 'fstatat(h->inode->fd, ""', "what a user is shown: nothing is decided by it"),
    ("src/view/prune.c", 'fstatat(i->fd, ""', "a name that the kernel keeps longer, or shorter: nothing is decided by it"),
    ("src/view/fs_open.c", "O_CREAT | O_EXCL", "O_EXCL sees the truth (measured)"),
    ("src/view/fs_open.c", "fstat(fd, &e->attr)", "the file that was just made"),
    ("src/guard/acquire.c", "inode_reopen(", "the file of an open descriptor: a handle, not a name"),
    ("src/guard/probe.c", "inode_reopen(", "the file of an open descriptor: a handle, not a name"),
    ("src/guard/read.c", "io_reopen(i->fd", "the file of an open descriptor: a handle, not a name"),
    ("src/guard/edit.c", "io_reopen(i->fd", "the file of an open descriptor: a handle, not a name"),
    ("tools/fsck/fsck_rescue.c", "io_reopen(path_fd", "the file that io_fresh_open found"),
    ("src/guard/reopen.c", "io_reopen(", "the file of an open descriptor: a handle, not a name"),
    ("src/guard/plain.c", "inode_reopen(", "the file of an open descriptor: a handle, not a name"),
    ("src/guard/open.c", "inode_reopen(", "the file of an open descriptor: a handle, not a name"),
    ("src/guard/walk.c", "", "mounts and paths of this host; below the datastore io_fresh_open"),
    ("src/guard/chain.c", "io_reopen(fd, O_RDWR", "the file that io_fresh_open found, for its lock"),
    ("src/guard/read.c", "pread(fd, buf", "guest data; the header is laid over it by image_read"),
    ("tools/ctl/ctl_item.c", "fopen(\"/proc", "/proc of this host"),
    ("tools/ctl/ctl_why.c", "", "/proc of this host"),
    ("tools/ctl/ctl_raw.c", "io_reopen(fd", "the file that io_fresh_open found"),
    ("tools/ctl/diskguardctl.c", "stat(dir", "the admin's word; store_init looks at it"),
    ("tools/fsck/fsck_identity.c", "", "journals: on a disk of this host alone"),
    ("tools/fsck/fsck_walk.c", "io_reopen(path_fd", "the file that io_fresh_open found"),
    ("tools/fsck/fsck_walk.c", "openat(path_fd, \".\"", "the directory that io_fresh_open found"),
    ("tools/umount/umount_fuse.c", "", "mount namespaces of this host"),
    ("tools/umount/umount_wait.c", "", "/proc of this host"),
    ("tools/umount/umount_left.c", "fopen(\"/proc", "/proc of this host"),
]


def sources():
    """Paths of all C files of the project, from its top."""
    found = []
    for folder in (*ALLOWED, "tests/*"):
        for ext in "ch":
            found += glob.glob(os.path.join(TOP, folder, "*." + ext))
    return sorted(os.path.relpath(p, TOP) for p in found)


def read(path):
    with open(os.path.join(TOP, path), encoding="utf-8") as f:
        return f.read()


def code_of(text):
    """The text without comments and string literals, line numbers kept."""
    pattern = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', re.S)
    return pattern.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)


def includes(text):
    """(line number, quoted, name) of every #include."""
    for number, line in enumerate(text.splitlines(), 1):
        m = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
        if m:
            yield number, m.group(1) == '"', m.group(2)


def resolve(path, name):
    """The directory, from the top, of the project's header `name` as `path` would find it; None: not ours."""
    for folder in (os.path.dirname(path), "include", "src", "tools"):
        candidate = os.path.normpath(os.path.join(folder, name))
        if os.path.exists(os.path.join(TOP, candidate)):
            return os.path.dirname(candidate)
    return None


def check_arrows(files):
    for path in files:
        allowed = ALLOWED.get(os.path.dirname(path))
        if allowed is None:
            continue
        for number, quoted, name in includes(read(path)):
            target = resolve(path, name) if quoted else None
            if quoted and target is None:
                yield "%s:%d: \"%s\" is not found" % (path, number, name)
            elif target is not None and target not in allowed:
                yield "%s:%d: %s may not include from %s" % (path, number, os.path.dirname(path), target)


def check_header(files, header, allowed):
    for path in files:
        if not re.fullmatch(allowed, path):
            for number, _, name in includes(read(path)):
                if re.fullmatch(header, name):
                    yield "%s:%d: includes %s" % (path, number, name)


def check_call(files, call, allowed):
    for path in files:
        if not re.fullmatch(allowed, path):
            for number, line in enumerate(code_of(read(path)).splitlines(), 1):
                if re.search(call, line):
                    yield "%s:%d: %s" % (path, number, line.strip())


def check_raw_reads(files):
    used = set()
    for path in files:
        if not re.fullmatch(RAW_READERS, path):
            continue
        text = read(path)
        for number, (line, code) in enumerate(zip(text.splitlines(), code_of(text).splitlines()), 1):
            if not RAW_READ.search(code):
                continue
            rule = next((r for r in RAW_ALLOWED if r[0] == path and r[1] in line), None)
            used.add(rule)
            if rule is None:
                yield "%s:%d: needs an io_fresh_ function, or a reason in RAW_ALLOWED: %s" % (path, number, line.strip())
    for rule in RAW_ALLOWED:
        if rule not in used:
            yield "RAW_ALLOWED: nothing in %s matches %r any more" % rule[:2]


# Part of struct image -> the file of the guard that alone writes it. (image_get() makes the image, image_begin() voids its snapshot.)
PARTS = {name: name for name in "held acquire zone snapshot plain shared readers chain reopen maintain refuse probe read".split()}
PARTS["qemu"] = "qemu_locks"
PART_WRITTEN = re.compile(r"(?:\bimg->(?P<a>%s)\.[\w.\[\]]+\s*(?:=(?!=)|\+\+|--|[-+|&]=)|(?:\+\+|--)img->(?P<b>%s)\.|"
                          r"atomic_(?:store|exchange|fetch_|compare_)\w*\(&img->(?P<c>%s)\.)" % (("|".join(PARTS),) * 3))


def check_parts(files):
    for path in files:
        folder, name = os.path.split(path)
        if folder != "src/guard" or name == "image.c":
            continue
        for number, line in enumerate(code_of(read(path)).splitlines(), 1):
            for m in PART_WRITTEN.finditer(line):
                part = m.group("a") or m.group("b") or m.group("c")
                if name != PARTS[part] + ".c":
                    yield "%s:%d: only %s.c may write image->%s: %s" % (path, number, PARTS[part], part, line.strip())


def check_lengths():
    paths = sources() + [os.path.relpath(p, TOP) for p in glob.glob(os.path.join(TOP, "tests", "**", "*.py"), recursive=True)]
    paths += [os.path.relpath(p, TOP) for p in glob.glob(os.path.join(TOP, "tools", "*")) + glob.glob(os.path.join(TOP, "tools", "bench.d", "*.py"))
              if os.path.isfile(p)] + ["tests/run"]
    for path in sorted(set(paths)):
        count = read(path).count("\n")
        if count > MAX_LINES:
            yield "%s: %d lines, at most %d are allowed" % (path, count, MAX_LINES)


def modules(files):
    """The include graph: a module is a .c with the .h of its name. {module: set of modules}."""
    graph = {}
    for path in files:
        if path.startswith("tests/"):
            continue
        mine = graph.setdefault(os.path.splitext(path)[0], set())
        for _, quoted, name in includes(read(path)):
            folder = resolve(path, name) if quoted else None
            if folder:
                other = os.path.splitext(os.path.join(folder, os.path.basename(name)))[0]
                if other != os.path.splitext(path)[0]:
                    mine.add(other)
    return graph


def circles(graph):
    """Its strongly connected components of more than one module (Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(module):
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(graph.get(module, ())):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            members = stack[stack.index(module):]
            del stack[stack.index(module):]
            if len(members) > 1:
                found.append(sorted(members))

    for module in sorted(graph):
        if module not in index:
            visit(module)
    return found


def check_circles(files):
    """A circle may only be one that is known, or a part of it; a known one that is gone must leave the list."""
    found = circles(modules(files))
    for circle in found:
        if not any(set(circle) <= known for known in KNOWN_CIRCLES):
            yield "a circle of includes: " + " ".join(circle)
    for known in KNOWN_CIRCLES:
        if not any(set(circle) <= known for circle in found):
            yield "KNOWN_CIRCLES: this one is gone: " + " ".join(sorted(known))


def print_graph(files):
    graph = modules(files)
    for module in sorted(graph):
        print("%s -> %s" % (module, " ".join(sorted(graph[module])) or "-"))
    for circle in circles(graph):
        print("circle: " + " ".join(circle))
    print("%d modules, %d circles" % (len(graph), len(circles(graph))))


def check_functions(files):
    """clang-format puts a function's braces, and nothing else's, at the start of a line."""
    for path in files:
        begin = None
        for number, line in enumerate(read(path).splitlines(), 1):
            if line == "{":
                begin = number
            elif line == "}" and begin:
                if number - begin - 1 > MAX_FUNCTION:
                    yield "%s:%d: a function of %d lines, at most %d are allowed" % (path, begin, number - begin - 1, MAX_FUNCTION)
                begin = None


def check_alone(files):
    """Every header compiles by itself: what it needs it includes."""
    flags = subprocess.run(["pkg-config", "--cflags", "fuse3", "json-c", "sqlite3", "libsystemd"], check=True, capture_output=True,
                           text=True).stdout.split()

    def compile_one(path):
        r = subprocess.run(["gcc", "-fsyntax-only", "-std=gnu17", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-DFUSE_USE_VERSION=314",
                            "-D_FILE_OFFSET_BITS=64", "-I", "include", "-I", "src", "-I", "tools", *flags, "-include", path,
                            "-x", "c", "/dev/null"], cwd=TOP, capture_output=True, text=True, check=False)
        errors = [line for line in r.stderr.splitlines() if "error:" in line]
        return ["%s does not compile alone: %s" % (path, (errors or [r.stderr.strip()])[0])] if r.returncode else []

    headers = [p for p in files if p.endswith(".h") and not p.startswith("tests/")]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for offences in pool.map(compile_one, headers):
            yield from offences


def main():
    files = sources()
    if sys.argv[1:] == ["--graph"]:
        print_graph(files)
        return
    counts = {True: 0, False: 0}

    def rule(title, offences):
        offences = list(offences)
        print("%-7s %s" % ("FAILED" if offences else "ok", title))
        for offence in offences:
            print("        " + offence)
        counts[not offences] += 1

    print("layering: %d C files" % len(files))
    for folder, allowed in ALLOWED.items():
        mine = [p for p in files if os.path.dirname(p) == folder]
        rule("%s (%d files) includes only from %s" % (folder, len(mine), ", ".join(sorted(allowed))), check_arrows(mine))
    for title, header, allowed in HEADERS:
        rule(title, check_header(files, header, allowed))
    for title, call, allowed in CALLS:
        rule(title, check_call(files, call, allowed))
    rule("what decides is read freshly: io_fresh_*, or a reason why not", check_raw_reads(files))
    rule("each part of struct image is written by the file that owns it", check_parts(files))
    rule("every header compiles alone", check_alone(files))
    rule("no circle of includes but those that are known", check_circles(files))
    rule("no function is longer than %d lines" % MAX_FUNCTION, check_functions(files))
    rule("no file is longer than %d lines" % MAX_LINES, check_lengths())
    print("layering: %d passed, %d failed, 0 skipped" % (counts[True], counts[False]))
    sys.exit(1 if counts[False] else 0)


if __name__ == "__main__":
    main()
