"""dgsystem: a copy of this system for tests that install something: an overlay of its root, with mounts and process numbers of its own. It ends with the test."""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "func"))
from dgtest import Skip, ok, run, suite_tmp  # noqa: E402

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# $1: a directory of the test, which is /pkg there.
INIT = r"""
set -eu
mkdir "$1/over"
mount -t tmpfs none "$1/over"
mkdir "$1/over/upper" "$1/over/work" "$1/over/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/over/upper,workdir=$1/over/work" none "$1/over/root"
cd "$1/over/root"
mkdir -p pkg
mount --bind "$1" pkg
mount -t proc proc proc
mount --bind /dev dev
mount -t tmpfs none run
mount -t tmpfs none tmp
pivot_root . .
umount -l .
rm -rf /etc/diskguard /var/lib/diskguard
echo ready
exec >/dev/null
while :; do
    sleep 1 &
    wait
done
"""


class System:
    """A copy of this system that ends with the test."""

    def __init__(self):
        self.dir = suite_tmp()
        self.p = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=SIGKILL", "bash", "-c", INIT, "bash", self.dir],
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        line = self.p.stdout.readline()
        if line != "ready\n":
            raise Skip("no overlay of the root: " + line.strip())
        with open("/proc/%d/task/%d/children" % (self.p.pid, self.p.pid), encoding="ascii") as f:
            self.pid = f.read().split()[0]

    def sh(self, text):
        return run("nsenter", "-m", "-p", "-r", "-t", self.pid, "env", "-C", "/pkg", "DEBIAN_FRONTEND=noninteractive", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-c", text)

    def must(self, text):
        r = self.sh(text)
        ok(r.code == 0, "%s: %d: %s" % (text, r.code, r.out))
        return r.out

    def refused(self, text, *words):
        r = self.sh(text)
        ok(r.code != 0, "this should have been refused: %s: %s" % (text, r.out))
        for word in words:
            ok(word in r.out, "%s does not say %r: %s" % (text, word, r.out))
        return r.out

    def status(self):
        return self.sh("dpkg-query -W -f '${Status}' diskguard").out.strip()

    def pids(self):
        return self.sh("for p in /proc/[0-9]*; do case $(readlink $p/exe) in */sbin/diskguard*) echo ${p#/proc/};; esac; done").out.split()

    def end(self):
        self.p.kill()
        self.p.wait()
        self.p.stdout.close()
