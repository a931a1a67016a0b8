#!/usr/bin/env python3
"""test_posix: the view against a plain directory. The same random operations, by three users, on both: every result, every errno and, at
intervals, the whole tree must be equal. --seed chooses another run."""
import errno
import os
import random
import stat as st_mod

import dgops
from dgops import KEEP_SIZE, PUNCH_HOLE, RENAME_EXCHANGE, RENAME_NOREPLACE, ZERO_RANGE
from dgtest import Fail, Proc, Suite, eq, pair

suite = Suite(__file__)
USERS = {"root": None, "one": (1001, 1001, (1001, 2000)), "two": (1002, 1002, (1002, 2000))}
NAMES = ["a", "b", "c", "d", "e", "f" * 255, "ü", "with space", "new\nline"]
XATTRS = ["user.one", "user.one", "trusted.two", "user." + "x" * 200, "nonsense"]


class Worlds:
    """One user's process and its open files, as pairs: in the view and in the plain directory."""

    def __init__(self, name, roots):
        ids = USERS[name]
        self.name, self.roots = name, roots
        self.proc = Proc() if ids is None else Proc(*ids)
        self.proc.call("umask", 0o022)
        self.fds = []

    def run(self, operation, *args):
        """Carries the operation out in both worlds; an argument that is a function is called with the world's number."""
        results = []
        for world in (0, 1):
            real = [a(world) if callable(a) else a for a in args]
            try:
                results.append(("ok", self.proc.call(operation, *real)))
            except OSError as e:
                results.append(("error", errno.errorcode.get(e.errno, e.errno)))
        return results

    def path(self, rel):
        return lambda world: os.path.join(self.roots[world], rel)


def without_place(value):
    """A stat tuple without what must differ: inode, device, blocks, time; and the size of directories."""
    mode, uid, gid, nlink, size, _, _, _, rdev, _ = value
    return mode, uid, gid, nlink, 0 if st_mod.S_ISDIR(mode) else size, rdev


class Run:
    def __init__(self, rng, users):
        self.rng, self.users = rng, users
        self.made, self.folders = [], [""]

    def rel(self):
        """A relative path: mostly one that was made lately, else a name of few (so that operations meet) in a directory that was."""
        if self.made and self.rng.random() < 0.6:
            return self.rng.choice(self.made)
        return self.fresh()

    def fresh(self):
        return os.path.join(self.rng.choice(self.folders), self.rng.choice(NAMES))

    def note(self, results, rel, folder=False):
        """Remembers what was made."""
        if results[0][0] == "ok":
            self.made = self.made[-25:] + [rel]
            if folder and rel.count("/") < 3:
                self.folders = [""] + self.folders[-6:] + [rel]
        return results

    def offset(self):
        return self.rng.choice((0, 1, 511, 4096, self.rng.randrange(0, 200000)))

    def length(self):
        return self.rng.choice((1, 100, 4096, 5000, self.rng.randrange(1, 70000)))

    def step(self):
        """One operation by one user: (what it was, the two results)."""
        w = self.rng.choice(self.users + self.users[:1])
        with_fd = w.fds and self.rng.random() < 0.45
        kind = self.rng.choice(ON_FD if with_fd else ON_NAME)
        text, results = getattr(self, "do_" + kind)(w)
        return "%s: %s" % (w.name, text), results

    # ---- on names ----

    def do_open(self, w):
        rel = self.rel()
        flags = self.rng.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR)) | os.O_NONBLOCK
        for flag in (os.O_CREAT, os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW):
            if self.rng.random() < 0.3:
                flags |= flag
        mode = self.rng.choice((0o644, 0o600, 0o666, 0o666, 0o6755, 0o000))
        results = self.note(w.run("open", w.path(rel), flags, mode), rel)
        fds = [value for _, value in results]
        if all(how == "ok" for how, _ in results):
            w.fds.append((fds, st_mod.S_ISDIR(w.proc.call("fstat", fds[1])[0])))
            results = [("ok", None)] * 2
            if len(w.fds) > 12:
                self.close(w, 0)
        return "open %r %o %o" % (rel, flags, mode), results

    def do_mkdir(self, w):
        rel, mode = self.fresh(), self.rng.choice((0o755, 0o700, 0o777, 0o777, 0o1777, 0o2777))
        return "mkdir %r %o" % (rel, mode), self.note(w.run("mkdir", w.path(rel), mode), rel, True)

    def do_rmdir(self, w):
        rel = self.rel()
        return "rmdir %r" % rel, w.run("rmdir", w.path(rel))

    def do_unlink(self, w):
        rel = self.rel()
        return "unlink %r" % rel, w.run("unlink", w.path(rel))

    def do_rename(self, w):
        old, new, flags = self.rel(), self.rng.choice((self.rel, self.fresh))(), self.rng.choice((0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE))
        return "rename %r %r %d" % (old, new, flags), self.note(w.run("rename2", w.path(old), w.path(new), flags), new)

    def do_link(self, w):
        old, new = self.rel(), self.fresh()
        return "link %r %r" % (old, new), self.note(w.run("link", w.path(old), w.path(new)), new)

    def do_symlink(self, w):
        target, new = self.rng.choice((self.rel(), "../" + self.rel(), "x" * 4095, "nowhere")), self.fresh()
        return "symlink %.20r %r" % (target, new), self.note(w.run("symlink", target, w.path(new)), new)

    def do_readlink(self, w):
        rel = self.rel()
        return "readlink %r" % rel, w.run("readlink", w.path(rel))

    def do_listdir(self, w):
        rel = self.rng.choice((".", self.rel()))
        return "listdir %r" % rel, w.run("listdir", w.path(rel))

    def do_stat(self, w):
        rel, call = self.rel(), self.rng.choice(("stat", "lstat"))
        return "%s %r" % (call, rel), [(h, without_place(v) if h == "ok" else v) for h, v in w.run(call, w.path(rel))]

    def do_access(self, w):
        rel, mode = self.rel(), self.rng.randrange(8)
        return "access %r %d" % (rel, mode), w.run("access", w.path(rel), mode)

    def do_chmod(self, w):
        rel, mode = self.rel(), self.rng.choice((0o644, 0o755, 0o000, 0o777, 0o4755, 0o2777, 0o1777, 0o6711))
        return "chmod %r %o" % (rel, mode), w.run("chmod", w.path(rel), mode)

    def do_chown(self, w):
        rel = self.rel()
        uid, gid = self.rng.choice((-1, 0, 1001, 1002)), self.rng.choice((-1, 0, 1001, 1002, 2000))
        return "chown %r %d %d" % (rel, uid, gid), w.run(self.rng.choice(("chown", "lchown")), w.path(rel), uid, gid)

    def do_utimens(self, w):
        rel = self.rel()
        atime, mtime = (self.rng.randrange(0, 2 ** 31) * 10 ** 9 + self.rng.randrange(10 ** 9) for _ in range(2))
        results = w.run("utimens", w.path(rel), atime, mtime)
        after = w.run("lstat", w.path(rel))
        return "utimens %r" % rel, [(a, b, v[5] if b == "ok" and a == "ok" else None) for (a, _), (b, v) in zip(results, after)]

    def do_truncate(self, w):
        rel, size = self.rel(), self.offset()
        return "truncate %r %d" % (rel, size), w.run("truncate", w.path(rel), size)

    def do_setxattr(self, w):
        rel, name, value = self.rel(), self.rng.choice(XATTRS), self.rng.randbytes(self.rng.choice((0, 5, 300)))
        return "setxattr %r %s" % (rel, name), w.run("setxattr", w.path(rel), name, value, self.rng.choice((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE)))

    def do_getxattr(self, w):
        rel, name = self.rel(), self.rng.choice(XATTRS)
        return "getxattr %r %s" % (rel, name), w.run("getxattr", w.path(rel), name)

    def do_listxattr(self, w):
        rel = self.rel()
        return "listxattr %r" % rel, [(h, sorted(v) if h == "ok" else v) for h, v in w.run("listxattr", w.path(rel))]

    def do_removexattr(self, w):
        rel, name = self.rel(), self.rng.choice(XATTRS)
        return "removexattr %r %s" % (rel, name), w.run("removexattr", w.path(rel), name)

    def do_mknod(self, w):
        rel, kind = self.rel(), self.rng.choice((st_mod.S_IFIFO, st_mod.S_IFSOCK, st_mod.S_IFREG))
        return "mknod %r %o" % (rel, kind), self.note(w.run("mknod", w.path(rel), kind | 0o640, 0), rel)

    def do_umask(self, w):
        mask = self.rng.choice((0o022, 0o027, 0o002, 0o000))
        w.proc.call("umask", mask)
        return "umask %o" % mask, [("ok", None)] * 2

    # ---- on open files ----

    def pick(self, w, file=False):
        fds, _ = self.rng.choice([f for f in w.fds if not (file and f[1])])
        return lambda world: fds[world]

    def close(self, w, number):
        fds, _ = w.fds.pop(number)
        return w.run("close", lambda world: fds[world])

    def do_close(self, w):
        return "close", self.close(w, self.rng.randrange(len(w.fds)))

    def do_pread(self, w):
        length, offset = self.length(), self.offset()
        return "pread %d at %d" % (length, offset), w.run("pread", self.pick(w), length, offset)

    def do_pwrite(self, w):
        data, offset = self.rng.randbytes(self.length()), self.offset()
        return "pwrite %d at %d" % (len(data), offset), w.run("pwrite", self.pick(w), data, offset)

    def do_read(self, w):
        length = self.length()
        return "read %d" % length, w.run("read", self.pick(w), length)

    def do_write(self, w):
        data = self.rng.randbytes(self.length())
        return "write %d" % len(data), w.run("write", self.pick(w), data)

    def do_lseek(self, w):
        if all(folder for _, folder in w.fds):
            return self.do_close(w)  # where a directory ends is its file system's own affair
        offset, whence = self.rng.choice((self.offset(), -5)), self.rng.choice((os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, os.SEEK_DATA, os.SEEK_HOLE))
        target = self.pick(w, True)
        if whence in (os.SEEK_DATA, os.SEEK_HOLE):
            w.run("fsync", target)  # until then what counts as a hole depends on what the kernel has written
        results = w.run("lseek", target, offset, whence)
        if whence in (os.SEEK_DATA, os.SEEK_HOLE) and all(how == "ok" or value == "ENXIO" for how, value in results):
            # Allocated ranges that were never written count as data once their pages have been read into the page cache, which every reader of
            # the backing file does (Linux: mapping_seek_hole_data). The directed tests check files without such ranges.
            results = w.run("lseek", target, 0, os.SEEK_SET)
        return "lseek %d %d" % (offset, whence), results

    def do_ftruncate(self, w):
        size = self.offset()
        return "ftruncate %d" % size, w.run("ftruncate", self.pick(w), size)

    def do_fallocate(self, w):
        mode = self.rng.choice((0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE, PUNCH_HOLE))
        offset, length = self.offset(), self.rng.choice((self.length(), 0))
        return "fallocate %d %d %d" % (mode, offset, length), w.run("fallocate", self.pick(w), mode, offset, length)

    def do_fstat(self, w):
        return "fstat", [(h, without_place(v) if h == "ok" else v) for h, v in w.run("fstat", self.pick(w))]

    def do_fsync(self, w):
        return "fsync", w.run(self.rng.choice(("fsync", "fdatasync")), self.pick(w))

    def do_fchmod(self, w):
        mode = self.rng.choice((0o644, 0o4711, 0o000))
        return "fchmod %o" % mode, w.run("fchmod", self.pick(w), mode)

    def do_fchown(self, w):
        uid, gid = self.rng.choice((-1, 1001, 1002)), self.rng.choice((-1, 2000))
        return "fchown %d %d" % (uid, gid), w.run("fchown", self.pick(w), uid, gid)

    def do_copy_file_range(self, w):
        source, target, length, a, b = self.pick(w), self.pick(w), self.length(), self.offset(), self.offset()
        return "copy_file_range %d %d %d" % (length, a, b), w.run("copy_file_range", source, target, length, a, b)


ON_NAME = ["open"] * 12 + ["mkdir"] * 5 + ["stat"] * 3 + ["rename"] * 4 + ["unlink"] * 2 + [
    "rmdir", "link", "link", "symlink", "readlink", "listdir", "access", "chmod", "chmod", "chown", "chown", "utimens", "truncate", "setxattr",
    "setxattr", "getxattr", "listxattr", "removexattr", "mknod", "umask"]
ON_FD = ["pread", "pwrite", "pwrite", "read", "write", "write", "lseek", "lseek", "ftruncate", "fallocate", "fallocate", "fstat", "fsync", "fchmod",
         "fchown", "copy_file_range", "close"]


def tree(root):
    """{relative path: all that two equal trees have in common}."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            value = [without_place(dgops.lstat(path)), sorted((x, os.getxattr(path, x, follow_symlinks=False))
                                                              for x in os.listxattr(path, follow_symlinks=False))]
            mode = value[0][0]
            if st_mod.S_ISREG(mode):
                with open(path, "rb") as f:
                    value.append(f.read())
            elif st_mod.S_ISLNK(mode):
                value.append(os.readlink(path))
            found[os.path.relpath(path, root)] = value
    return found


def compare_trees(a, b, what):
    first, second = tree(a), tree(b)
    eq(sorted(first), sorted(second), what + ": names")
    for name, value in first.items():
        eq(value, second[name], "%s: %r" % (what, name))


def differential(p, seed, count, plain_in_view=False):
    roots = [p.a.path("world"), os.path.join(p.ds.base, "plain-%d" % seed)]
    if plain_in_view:
        roots[0] = os.path.join(p.ds.base, "other-%d" % seed)
    for root in roots:
        os.mkdir(root)
        os.chmod(root, 0o1777)
    users = [Worlds(name, roots) for name in USERS]
    run = Run(random.Random(seed), users)
    story = []
    for number in range(count):
        text, results = run.step()
        story.append("%s = %.60r" % (text, results[1]))
        if results[0] != results[1]:
            raise Fail("seed %d, operation %d: in the view %.300r, plain %.300r; the last ones: %s" %
                       (seed, number, results[0], results[1], "; ".join(story[-8:])))
        if number % 1000 == 999:
            compare_trees(*roots, "seed %d after %d operations" % (seed, number + 1))
    for w in users:
        while w.fds:
            run.close(w, 0)
        w.proc.kill()
    compare_trees(*roots, "seed %d, view and plain" % seed)
    if not plain_in_view:
        compare_trees(p.ds.raw("world"), roots[1], "seed %d, datastore and plain" % seed)
    return story


@suite.case("random operations by three users on the view and on a plain directory", limit=400)
def _(build):
    rounds, count = (20, 20000) if suite.args.long else (3, 7000)
    if build.sanitize != "none":
        count //= 3
    for seed in range(suite.args.seed, suite.args.seed + rounds):
        with pair(build, hosts=("a",)) as p:
            differential(p, seed, count)


if __name__ == "__main__":
    suite.main()
