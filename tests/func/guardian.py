"""guardian: a process that cleans up after a test suite, however the suite ends.

The suite tells it of temporary directories and of processes. When the suite closes the pipe, or dies, the guardian kills those processes
that still live (same pid and same start time), aborts the FUSE connections of what is mounted below those directories, unmounts it, and
removes the directories. It is a session of its own, so that no signal to the suite's group reaches it.
"""
import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time

UTAB = "/run/mount/utab"  # mount(8)'s own table
SUITE_ENTRY = re.compile(rb"TARGET=((?:/[^/ ]+)*?/(?:dg-|dgfsck\.)[^/ ]+)/.*helper=fuse\.diskguard")

_pipe = None
_pid = None


def start_time(pid):
    """Field 22 of /proc/PID/stat: tells a process from a later one of the same number. None: no such process."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as f:
            return f.read().rpartition(b")")[2].split()[19].decode()
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return None


def mounts():
    """{mount point: (device number, type)} of this process's mount namespace."""
    result = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        for line in f:
            left, _, right = line.partition(" - ")
            fields = left.split()
            path = fields[4].encode("utf-8", "surrogateescape").decode("unicode_escape") if "\\" in fields[4] else fields[4]
            result[path] = (fields[2], right.split()[0])
    return result


def start():
    global _pipe, _pid
    read_end, write_end = os.pipe()
    os.set_inheritable(read_end, False)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(write_end)
            os.setsid()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
                signal.signal(number, signal.SIG_IGN)
            _serve(read_end)
            status = 0
        finally:
            os._exit(status)
    os.close(read_end)
    _pipe, _pid = write_end, pid


def _tell(*words):
    if _pipe is not None:
        os.write(_pipe, ("\t".join(words) + "\n").encode())


def process(pid):
    """A process of the suite: to be killed if it still lives at the end."""
    began = start_time(pid)
    if began:
        _tell("process", str(pid), began)


def directory(path):
    """A temporary directory: at the end nothing is mounted below it and it is gone."""
    _tell("directory", path)


def file(path):
    """A single file or symbolic link elsewhere, to be removed."""
    _tell("file", path)


def finish():
    """The orderly end: waits until all is cleaned up."""
    global _pipe
    os.close(_pipe)
    _pipe = None
    os.waitpid(_pid, 0)


def kill_children(pid):
    """Kills the direct children of a process, but not the guardian."""
    children = []
    for thread in os.listdir("/proc/%d/task" % pid):
        with open("/proc/%d/task/%s/children" % (pid, thread), encoding="ascii") as f:
            children += f.read().split()
    for name in children:
        if int(name) != _pid:
            try:
                os.kill(int(name), signal.SIGKILL)
            except ProcessLookupError:
                pass


def _serve(read_end):
    processes, directories, files = [], [], []
    with os.fdopen(read_end, "r", encoding="utf-8", errors="surrogateescape") as source:
        for line in source:
            kind, *words = line.rstrip("\n").split("\t")
            if kind == "process":
                processes.append((int(words[0]), words[1]))
            elif kind == "directory":
                directories.append(words[0])
            elif kind == "file":
                files.append(words[0])
    for pid, began in reversed(processes):
        if start_time(pid) == began:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    for path in directories:
        unmount_below(path)
        shutil.rmtree(path, ignore_errors=True)
    for path in files:
        if os.path.lexists(path):
            os.unlink(path)
    with contextlib.suppress(OSError):
        forget_mounts()


def forget_mounts():
    """Takes out of mount(8)'s table what daemons that were killed have left there: the entries of suites whose directory is gone. Each
    daemon that starts has mount(8) write the whole table anew; with some 10,000 dead entries that took half a second of each start."""
    with open(UTAB + ".lock", "rb") as lock:  # as libmount does it
        for _ in range(100):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.05)
        else:
            return
        gone = {}
        with open(UTAB, "rb") as f:
            lines = f.readlines()

        def dead(line):
            m = SUITE_ENTRY.search(line)
            if m and m.group(1) not in gone:
                gone[m.group(1)] = not os.path.lexists(m.group(1))
            return m and gone[m.group(1)]

        kept = [line for line in lines if not dead(line)]
        if len(kept) == len(lines):
            return
        fd, path = tempfile.mkstemp(prefix="utab.", dir=os.path.dirname(UTAB))
        try:
            with os.fdopen(fd, "wb") as f:
                f.writelines(kept)
            os.chmod(path, 0o644)
            os.rename(path, UTAB)
        except OSError:
            os.unlink(path)
            raise


def unmount_below(path):
    """Unmounts everything at or below a directory, innermost first, whether its file system answers or not."""
    found = [(m, *what) for m, what in mounts().items() if m == path or m.startswith(path + "/")]
    fuse = [device for _, device, kind in found if kind.startswith("fuse")]
    if fuse:
        abort(fuse)
    for mount, _, _ in sorted(found, reverse=True):
        subprocess.run(["umount", "-l", mount], stdin=subprocess.DEVNULL, capture_output=True, check=False)


def abort(devices):
    """Aborts the FUSE connections of these device numbers (fusectl, mounted where we may)."""
    where = tempfile.mkdtemp(prefix="dg-fusectl-")
    try:
        if subprocess.run(["mount", "-t", "fusectl", "none", where], capture_output=True, check=False).returncode:
            return
        for device in devices:
            try:
                with open(os.path.join(where, device.split(":")[1], "abort"), "w", encoding="ascii") as f:
                    f.write("1")
            except OSError:
                pass
        subprocess.run(["umount", "-l", where], capture_output=True, check=False)
    finally:
        os.rmdir(where)
