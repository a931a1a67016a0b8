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
F_OFD_GETLK = 36
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


def get_at(path, off):
    """get() of a file that is opened for it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, BLOCK, off)[:24].decode("latin-1")
    finally:
        os.close(fd)


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


def attempt_hold(name, path, flags="w"):
    """Opens for write and stays open: 0 or the errno."""
    try:
        opened(name, path, flags)
    except OSError as e:
        return e.errno
    return 0


def attempt_put(name, off, text):
    """put(), as an errno."""
    try:
        put(name, off, text)
    except OSError as e:
        return e.errno
    return 0


def attempt_size(name, length):
    """ftruncate(2): 0 or the errno."""
    try:
        os.ftruncate(fds[name], length)
    except OSError as e:
        return e.errno
    return 0


def attempt_close(name):
    try:
        os.close(fds.pop(name))
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


def ofd_found(name, byte):
    """F_OFD_GETLK for a write lock on a byte: the kind that is in the way, "u" for none."""
    answer = fcntl.fcntl(fds[name], F_OFD_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, byte, 1, 0))
    return {fcntl.F_RDLCK: "r", fcntl.F_WRLCK: "w", fcntl.F_UNLCK: "u"}[struct.unpack("hhqqi4x", answer)[0]]


def say_disk(name, path):
    """As QEMU begins with a raw disk: opens it for write, then locks byte 101. 0, or the errno of what failed; the descriptor stays open where it was opened."""
    return attempt_hold(name, path) or ofd_lock(name, 101, 1, "r")


def posix_lock(name, byte, kind="w"):
    """F_SETLK, as libvirt locks: 0 or errno."""
    number = {"r": fcntl.F_RDLCK, "w": fcntl.F_WRLCK, "u": fcntl.F_UNLCK}[kind]
    try:
        fcntl.fcntl(fds[name], fcntl.F_SETLK, struct.pack("hhqqi4x", number, 0, byte, 1, 0))
    except OSError as e:
        return e.errno
    return 0


def flocked(name, kind="w"):
    try:
        fcntl.flock(fds[name], {"r": fcntl.LOCK_SH, "w": fcntl.LOCK_EX, "u": fcntl.LOCK_UN}[kind] | fcntl.LOCK_NB)
    except OSError as e:
        return e.errno
    return 0


def mtime(path):
    """In ns, past what an NFS client has cached: it asks at each open."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.fstat(fd).st_mtime_ns
    finally:
        os.close(fd)


def moved_at(ns, folder, source, target):
    """Renames a file into a folder so that the folder's ctime is ns: sets the clock and is quicker than a tick of it, sooner or later."""
    for _ in range(100):
        time.clock_settime_ns(time.CLOCK_REALTIME, ns)
        os.rename(source, target)
        if os.stat(folder).st_ctime_ns == ns:
            return True
        os.rename(target, source)
    return False


def seen(path):
    """What a name is told to be: (inode number, size), or None. Nothing is opened, so all caches count."""
    try:
        st = os.stat(path)
    except FileNotFoundError:
        return None
    return st.st_ino, st.st_size


def claim(datastore, name):
    """Fields of the ruling claim of a file, or {}: past this host's caches."""
    inode = "%016x" % os.stat(os.path.join(datastore, name)).st_ino
    return claim_of_inode(datastore, inode)


def shard(key):
    """layout.h"""
    mask = (1 << 64) - 1
    key = (key ^ (key >> 33)) * 0xFF51AFD7ED558CCD & mask
    key = (key ^ (key >> 33)) * 0xC4CEB9FE1A85EC53 & mask
    return "%02x" % ((key ^ (key >> 33)) >> 56)


def claim_of_inode(datastore, inode):
    folder = os.path.join(datastore, ".diskguard", "claims", shard(int(inode, 16)))
    for _ in range(20):
        highest = max((int(n.partition(".")[2]) for n in os.listdir(folder) if n.startswith(inode + ".")), default=0)
        if not highest:
            return {}
        try:
            fd = os.open("%s/%s.%d" % (folder, inode, highest), os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            text = os.read(fd, 1 << 18).decode(errors="replace")
        except OSError as e:  # replaced while we looked
            if e.errno != errno.ESTALE:
                raise
            continue
        finally:
            os.close(fd)
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    raise RuntimeError("the claim of %s is replaced again and again" % inode)


def wait_claim(datastore, name, states, limit=60.0):
    """Waits until the claim's state is one of `states` ("" = none); that state, or None."""
    end = time.monotonic() + limit
    while True:
        state = claim(datastore, name).get("state", "")
        if state in states:
            return state
        if time.monotonic() > end:
            return None
        select.select([], [], [], 0.02)


def work(path, direct, tag, want, off=1 << 20, length=65536):
    """One holder's turn: opens for write, checks that block `off` repeats the tag `want` (None: anything), writes its own. Returns the header it saw, in hex; raises
    OSError as the open did; ValueError where the data is not what the former holder wrote."""
    fd = os.open(path, os.O_RDWR | (os.O_DIRECT if direct else 0))
    try:
        block = mmap.mmap(-1, length)
        os.preadv(fd, [block], off)
        if want is not None and block[:length] != _fill(want, length):
            raise ValueError("holder %s sees %r.. instead of %r" % (tag, block[:24], want))
        head = mmap.mmap(-1, BLOCK)
        os.preadv(fd, [head], 0)
        block.seek(0)
        block.write(_fill(tag, length))
        os.pwrite(fd, block, off)
        os.fsync(fd)
        return head[:512].hex()
    finally:
        os.close(fd)


def _fill(tag, length):
    return (tag.encode() * (length // len(tag) + 1))[:length]


def stream(path, tag, off, length, stop_file):
    """Writes blocks of its own tag and a counter round and round over a range, with O_DIRECT, until the file stop_file exists or a write fails. Returns (blocks
    written, errno or 0). Each block begins with TAG.COUNTER."""
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    block = mmap.mmap(-1, BLOCK)
    n = 0
    try:
        while not os.path.exists(stop_file):
            block.seek(0)
            block.write(("%s.%d " % (tag, n)).encode().ljust(32, b"."))
            try:
                os.pwrite(fd, block, off + (n * BLOCK) % length)
            except OSError as e:
                return n, e.errno
            n += 1
        return n, 0
    finally:
        try:
            os.close(fd)
        except OSError:
            pass


def blocks_of(path, tag, off, length):
    """How many blocks of the range begin with that tag, read past the cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        data = os.pread(fd, length, off)
    finally:
        os.close(fd)
    return sum(data[i:i + len(tag)] == tag.encode() for i in range(0, len(data), BLOCK))


def alive(pid):
    return os.path.exists("/proc/%d" % pid)


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


def stopped(pid, limit=0.0):
    """Waits until a process is stopped by a signal. False: it is not (yet)."""
    end = time.monotonic() + limit
    while True:
        with open("/proc/%d/stat" % pid) as f:
            if f.read().rpartition(")")[2].split()[0] == "T":
                return True
        if time.monotonic() >= end:
            return False
        select.select([], [], [], 0.01)
