"""labops: file operations in a lab guest, called by name from the host side (Guest.do). Descriptors have names and stay open between calls."""
import errno  # noqa: F401
import fcntl
import hashlib
import mmap
import os
import select
import struct
import time

BLOCK = 4096
F_OFD_SETLK = 37
fds = {}


def opened(name, path, flags="r"):
    """flags: r, w (read-write), c (create), d (O_DIRECT), s (O_DSYNC)."""
    number = os.O_RDWR if "w" in flags else os.O_RDONLY
    for letter, flag in (("c", os.O_CREAT), ("d", os.O_DIRECT), ("s", os.O_DSYNC)):
        if letter in flags:
            number |= flag
    fds[name] = os.open(path, number, 0o644)
    return True


def closed(name):
    os.close(fds.pop(name))
    return True


def put(name, off, text, length=BLOCK, sync=True):
    """Writes a block that repeats text; O_DIRECT descriptors need it aligned."""
    block = mmap.mmap(-1, length)
    block.write((text.encode() * (length // len(text) + 1))[:length])
    os.pwrite(fds[name], block, off)
    if sync:
        os.fsync(fds[name])
    return True


def get(name, off, length=BLOCK):
    """The first 24 bytes of a block, as text."""
    block = mmap.mmap(-1, length)
    n = os.preadv(fds[name], [block], off)
    return block[:min(n, 24)].decode("latin-1")


def get_hex(name, off, length):
    return os.pread(fds[name], length, off).hex()


def sync(name):
    os.fsync(fds[name])
    return True


def size(name):
    return os.fstat(fds[name]).st_size


def digest(path, length=-1):
    h = hashlib.sha256()
    with open(path, "rb", buffering=0) as f:
        while length != 0:
            block = f.read(1 << 20 if length < 0 else min(length, 1 << 20))
            if not block:
                break
            h.update(block)
            if length > 0:
                length -= len(block)
    return h.hexdigest()


def header(path, length=512):
    """The first bytes of a file past this host's cache, in hex."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, length, 0).hex()
    finally:
        os.close(fd)


def attempt(function, *args):
    """0, or the errno of the call: "open_write", "unlink", "rename", "link", "mkdir", "truncate", "create"."""
    try:
        if function == "open_write":
            os.close(os.open(args[0], os.O_RDWR))
        elif function == "create":
            os.close(os.open(args[0], os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644))
        else:
            getattr(os, function)(*args)
    except OSError as e:
        return e.errno
    return 0


def ofd_lock(name, start, length, kind="w"):
    """F_OFD_SETLK: 0 or errno. kind: r, w, u(nlock)."""
    number = {"r": fcntl.F_RDLCK, "w": fcntl.F_WRLCK, "u": fcntl.F_UNLCK}[kind]
    try:
        fcntl.fcntl(fds[name], F_OFD_SETLK, struct.pack("hhqqi4x", number, 0, start, length, 0))
    except OSError as e:
        return e.errno
    return 0


def flocked(name, kind="w"):
    try:
        fcntl.flock(fds[name], {"r": fcntl.LOCK_SH, "w": fcntl.LOCK_EX, "u": fcntl.LOCK_UN}[kind] | fcntl.LOCK_NB)
    except OSError as e:
        return e.errno
    return 0


def race(path, rounds, tag, start_at):
    """Opens path for write `rounds` times, as fast as it can; while it holds it, writes its tag beyond the header and reads it back after a moment.
    Returns (times won, times refused, other errnos, damage): damage counts reads that found somebody else's tag, the failure that must not be."""
    won = refused = damage = 0
    other = {}
    while time.clock_gettime(time.CLOCK_MONOTONIC) < start_at:
        os.sched_yield()
    for i in range(rounds):
        try:
            fd = os.open(path, os.O_RDWR)
        except OSError as e:
            if e.errno == errno.EBUSY:
                refused += 1
            else:
                other[e.errno] = other.get(e.errno, 0) + 1
            continue
        try:
            mark = ("%s%d." % (tag, i)).encode().ljust(512, b"\0")
            os.pwrite(fd, mark, 1 << 16)
            os.fsync(fd)
            if os.pread(fd, 512, 1 << 16) != mark:
                damage += 1
            won += 1
        finally:
            os.close(fd)
    return won, refused, other, damage


def wait_gone(pid, limit=60.0):
    """Waits for the end of any process. False: it still lives."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], limit)[0])
    finally:
        os.close(fd)


def uptime():
    return time.clock_gettime(time.CLOCK_MONOTONIC)
