"""memory: where tests whose time is mostly fsync keep their files."""
import os

SHM = "/dev/shm"
ROOM = 2 << 30  # that much must be free there


def prefer():
    """Makes memory the place of temporary files, when there is room, and unless TMPDIR says where it is."""
    if "TMPDIR" not in os.environ and os.path.isdir(SHM):
        free = os.statvfs(SHM)
        if free.f_bavail * free.f_frsize > ROOM:
            os.environ["TMPDIR"] = SHM
