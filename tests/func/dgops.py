#!/usr/bin/env python3
"""dgops: file-system calls by name, and a worker process that carries them out.

A test often needs a second process, another user, or a call that may block. Such a call is made by a worker: this file run as
a program, which reads (name, args) from standard input and answers ("ok", value) or ("err", errno). dgtest.Proc drives it.
Descriptors are plain numbers inside the worker.

With --nursery the program forks workers: an interpreter takes longer to start than most calls take. Its standard input is a
socket; each message brings the two pipes of a new worker, and the answer is the worker's process id.
"""
import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import pickle
import random
import signal
import socket
import struct
import sys
import threading

libc = ctypes.CDLL(None, use_errno=True)

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 0x01, 0x02, 0x08, 0x10, 0x20
F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 36, 37, 38
AT_FDCWD, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH = -100, 0x400, 0x1000


def _check(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def open(path, flags, mode=0o777):  # pylint: disable=redefined-builtin
    """open(2) itself: Python's would hide an EINTR."""
    return _check(libc.open(os.fsencode(path), flags | os.O_CLOEXEC, mode))


def stat_tuple(st):
    return (st.st_mode, st.st_uid, st.st_gid, st.st_nlink, st.st_size, st.st_mtime_ns, st.st_ino, st.st_dev, st.st_rdev,
            st.st_blocks)


def stat(path):
    return stat_tuple(os.stat(path))


def lstat(path):
    return stat_tuple(os.lstat(path))


def fstat(fd):
    return stat_tuple(os.fstat(fd))


def rename2(old, new, flags=0):
    return _check(libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def link(old, new, follow=False):
    return _check(libc.linkat(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), AT_SYMLINK_FOLLOW if follow else 0))


def fallocate(fd, mode, off, length):
    return _check(libc.fallocate(fd, mode, ctypes.c_int64(off), ctypes.c_int64(length)))


def copy_file_range(fd_in, fd_out, count, off_in, off_out):
    """Repeated until all is copied or nothing more comes: one call may stop short. Returns how much was copied."""
    total = 0
    while total < count:
        try:
            done = os.copy_file_range(fd_in, fd_out, count - total, off_in + total, off_out + total)
        except OSError:
            if not total:
                raise
            break
        if not done:
            break
        total += done
    return total


def copy_file_range_once(fd_in, fd_out, count, off_in, off_out):
    return os.copy_file_range(fd_in, fd_out, count, off_in, off_out)


def listdir(path):
    return sorted(os.listdir(path))


def utimens(path, atime_ns, mtime_ns):
    return os.utime(path, ns=(atime_ns, mtime_ns), follow_symlinks=False)


def futimens(fd, atime_ns, mtime_ns):
    return os.utime(fd, ns=(atime_ns, mtime_ns))


def lchown(path, uid, gid):
    return os.chown(path, uid, gid, follow_symlinks=False)


def statvfs(path):
    st = os.statvfs(path)
    return (st.f_bsize, st.f_frsize, st.f_blocks, st.f_files, st.f_namemax)


def flock(fd, operation):
    return fcntl.flock(fd, operation)


def _lock_struct(kind, start, length):
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)


def lock(fd, kind, start, length, ofd=True, wait=False):
    """Sets a byte-range lock of kind F_RDLCK, F_WRLCK or F_UNLCK."""
    if ofd:
        command = F_OFD_SETLKW if wait else F_OFD_SETLK
    else:
        command = fcntl.F_SETLKW if wait else fcntl.F_SETLK
    fcntl.fcntl(fd, command, _lock_struct(kind, start, length))


def getlock(fd, kind, start, length, ofd=True):
    """The kind of lock that would be in the way; F_UNLCK: none."""
    answer = fcntl.fcntl(fd, F_OFD_GETLK if ofd else fcntl.F_GETLK, _lock_struct(kind, start, length))
    return struct.unpack("hhqqi4x", answer)[0]


def handle_of(path):
    """name_to_handle_at: (type, bytes)."""
    size = 128
    buf = ctypes.create_string_buffer(struct.pack("Ii", size, 0) + bytes(size), 8 + size)
    mount_id = ctypes.c_int()
    _check(libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), buf, ctypes.byref(mount_id), 0))
    used, kind = struct.unpack_from("Ii", buf.raw)
    return kind, buf.raw[8:8 + used]


def open_handle(mount_path, handle, flags):
    kind, data = handle
    buf = ctypes.create_string_buffer(struct.pack("Ii", len(data), kind) + data, 8 + len(data))
    mount_fd = os.open(mount_path, os.O_RDONLY)
    try:
        return _check(libc.open_by_handle_at(mount_fd, buf, flags))
    finally:
        os.close(mount_fd)


def shared_mmap(fd, length, prot=mmap.PROT_READ | mmap.PROT_WRITE, data=b""):
    """Maps shared, writes data at the start, syncs, unmaps."""
    with mmap.mmap(fd, length, mmap.MAP_SHARED, prot) as m:
        if data:
            m[:len(data)] = data
            m.flush()
        return m[:16]


maps = []


def map_shared(fd, length, prot=mmap.PROT_READ | mmap.PROT_WRITE):
    """A shared mapping that stays: its number."""
    maps.append(mmap.mmap(fd, length, mmap.MAP_SHARED, prot))
    return len(maps) - 1


def map_read(number, off, length):
    return maps[number][off:off + length]


def map_sha(number):
    return hashlib.sha256(maps[number]).hexdigest()


def map_write(number, off, data):
    maps[number][off:off + len(data)] = data


def map_sync(number):
    maps[number].flush()


def map_end(number):
    maps[number].close()


def direct_read(path, off, length):
    """pread through O_DIRECT into a page-aligned buffer."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, length) as m:
            return m[:os.preadv(fd, [m], off)]
    finally:
        os.close(fd)


def direct_write(fd, data, off):
    with mmap.mmap(-1, len(data)) as m:
        m[:] = data
        return os.pwritev(fd, [m], off)


def aligned_read(fd, length, off):
    """pread into a page-aligned buffer."""
    with mmap.mmap(-1, max(length, 1)) as m:
        with memoryview(m) as view:
            done = os.preadv(fd, [view[:length]], off)
        return m[:done]


def aligned_write(fd, data, off, flags=0):
    """pwritev2 of a page-aligned buffer."""
    with mmap.mmap(-1, max(len(data), 1)) as m:
        m[:len(data)] = data
        with memoryview(m) as view:
            return os.pwritev(fd, [view[:len(data)]], off, flags)


def set_flags(fd, flags):
    """F_SETFL."""
    fcntl.fcntl(fd, fcntl.F_SETFL, flags)


def bind_socket(path):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    s.bind(path)
    s.close()


listening = []


def listen_fd(path):
    s = socket.socket(socket.AF_UNIX)
    s.bind(path)
    s.listen(1)
    listening.append(s)


def pass_fd(path, fd):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
        socket.send_fds(s, [b"x"], [fd])


def take_fd():
    with listening.pop() as s:
        c = s.accept()[0]
        with c:
            return socket.recv_fds(c, 1, 1)[1][0]


def become(uid, gid, groups):
    os.setgroups(groups)
    os.setgid(gid)
    os.setuid(uid)


def drop_capability(number):
    """Out of the effective and the permitted set of this process: capset(2)."""
    head = struct.pack("Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    _check(libc.capget(head, data))
    words = list(struct.unpack("6I", data.raw))
    for k in (0, 1):
        words[3 * (number // 32) + k] &= ~(1 << number % 32)
    _check(libc.capset(head, struct.pack("6I", *words)))


def try_open(path, flags, times):
    """Opens and closes `times` times in a row; the list of errnos (0: it opened)."""
    result = []
    for _ in range(times):
        try:
            os.close(open(path, flags))
            result.append(0)
        except OSError as e:
            result.append(e.errno)
    return result


def io_session(path, seed, count, off, span, flags=os.O_RDWR):
    """Opens path, writes and reads `count` random blocks of [off, off + span), checking each read against what was written, and closes.

    Returns (errno or 0, what the range must hold now, range of the write that was not answered or None). A wrong byte raises
    ValueError."""
    rng = random.Random(seed)
    fd = open(path, flags)
    model, pending = bytearray(), None
    try:
        while len(model) < span:
            model += os.pread(fd, span - len(model), off + len(model)) or bytes(span - len(model))
        for _ in range(count):
            length = rng.choice((512, 4096, 4096, 16384, 100000))
            at = rng.randrange(0, span - length)
            if rng.random() < 0.6:
                data = rng.randbytes(length)
                pending = (at, length)
                done = os.pwrite(fd, data, off + at)
                model[at:at + done] = data[:done]
                pending = None
                if rng.random() < 0.02:
                    os.fsync(fd)
            elif os.pread(fd, length, off + at) != model[at:at + length]:
                raise ValueError("%s: %d bytes at %d are not what was written (seed %d)" % (path, length, off + at, seed))
        os.close(fd)
        return 0, bytes(model), None
    except OSError as e:
        try:
            os.close(fd)
        except OSError:
            pass
        return e.errno, bytes(model), pending


begun = []


def begin(name, *args):
    """Starts a call in a thread of this process, for finish()."""
    def carry_out():
        slot[0] = call(name, args)
    slot = [None]
    thread = threading.Thread(target=carry_out, daemon=True)
    begun.append((thread, slot))
    thread.start()


def finish():
    """Waits for all calls that were begun: what each has answered."""
    for thread, _ in begun:
        thread.join()
    answers = [slot[0] for _, slot in begun]
    begun.clear()
    return answers


def call(name, args):
    """Carries out one operation: a function of this module, else one of os. ("ok", value) or ("err", errno)."""
    function = globals().get(name) or getattr(os, name)
    try:
        return "ok", function(*args)
    except OSError as e:
        return "err", e.errno or errno.EIO
    except ValueError as e:
        return "bad", str(e)


def serve(source, sink):
    while True:
        try:
            name, args = pickle.load(source)
        except EOFError:
            return
        pickle.dump(call(name, args), sink)
        sink.flush()


def nursery():
    with socket.socket(fileno=os.dup(0)) as requests:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a worker here: its end is seen through a pidfd
        while True:
            word, pipes, _, _ = socket.recv_fds(requests, 1, 2)
            if not word:
                return
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                requests.close()
                break
            for fd in pipes:
                os.close(fd)
            requests.sendall(struct.pack("i", pid))
    for number, fd in enumerate(pipes):
        os.dup2(fd, number)
        os.close(fd)
    serve(os.fdopen(0, "rb", closefd=False), os.fdopen(1, "wb", closefd=False))
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1:] == ["--nursery"]:
        nursery()
    else:
        serve(sys.stdin.buffer, sys.stdout.buffer)
