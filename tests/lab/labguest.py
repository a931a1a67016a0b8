"""labguest: guests under QEMU's own emulation (TCG), the switch between them, and what can be done to both.

    with Lab(("S", "A", "B")) as lab:
        lab.boot("S", disks=[path]); lab.boot("A"); lab.up("S", "A")
        lab["A"].must("uname -r")            a script; its output. .sh() gives code and output, .begin_sh() does not wait
        lab["A"].do("put", "f", 0, "text")   a function of guest/labops.py. .begin() does not wait
        lab.switch("cut A S"); lab.heal(); lab["A"].freeze(); lab["A"].thaw(); lab["A"].kill()

Nothing outlives the process: guardian.py knows of every guest, and a call that is not answered in time fails.
"""
import ast
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "func"))

import dgtest  # noqa: E402
import guardian  # noqa: E402
import labcache  # noqa: E402

BOOT_LIMIT = float(os.environ.get("DISKGUARD_LAB_BOOT_LIMIT", "180"))  # seconds; about 5 on an idle machine
CALL_LIMIT = 120.0


class Died(dgtest.Fail):
    """The guest ended while it was asked something."""


class Call:
    """A request under way."""

    def __init__(self, guest, what):
        self.guest, self.what = guest, what
        self.answer = None
        self.event = threading.Event()
        self.began = time.monotonic()
        self.seconds = None

    def done(self):
        return self.event.is_set()

    def wait(self, limit=CALL_LIMIT):
        """The answer; OSError where the guest's call failed with one."""
        if not self.event.wait(limit):
            raise dgtest.Fail("%s: no answer in %.0f s: %.200s%s" % (self.guest.name, limit, self.what, self.guest.waiting()))
        if self.answer is None:
            raise Died("%s ended: %.200s" % (self.guest.name, self.what))
        if "error" in self.answer:
            if self.answer["errno"]:
                raise OSError(self.answer["errno"], "%s: %s" % (self.guest.name, self.answer["error"]))
            raise dgtest.Fail("%s: %s: %.200s" % (self.guest.name, self.answer["error"], self.what))
        if "value" in self.answer:
            return ast.literal_eval(self.answer["value"])
        return dgtest.Result([self.guest.name + ":", self.what], self.answer["rc"], self.answer["out"])

    def outcome(self, limit=CALL_LIMIT):
        """0 where the call worked, else its errno."""
        try:
            self.wait(limit)
        except OSError as e:
            return e.errno
        return 0


class Guest:
    """One machine. It may be booted again after kill()."""

    def __init__(self, lab, name, number):
        self.lab, self.name, self.number = lab, name, number
        self.machine_id = "%032x" % (0x1ab00000000 + number)
        self.memory = 512  # MiB
        self.disks = []
        self.p = self.socket = None
        self.frozen = False
        self.boots = 0
        self.state_disk = os.path.join(lab.dir, name + ".state")

    def waiting(self):
        """Where the threads of diskguard, and all that sleep uninterruptibly, stand in the kernel: for a call that does not end."""
        script = """for t in /proc/[0-9]*/task/[0-9]*; do
            read -r _ name state _ <$t/stat 2>/dev/null || continue
            if [ "$state" = D ] || [ "$name" = "(diskguard)" ]; then echo "$name $state: $(awk '{ sub(/\\+.*/, "", $2); printf "%s ", $2 }' $t/stack 2>/dev/null)"; fi
        done | sort | uniq -c"""
        call = self.begin_sh(script)
        if not call.event.wait(20) or not call.answer:
            return "; it answers nothing else either"
        return "; its threads:\n        " + call.answer.get("out", "").strip().replace("\n", "\n        ")

    # ---- life ----

    def boot(self, disks=None):
        if disks is not None:
            self.disks = disks
        if not os.path.exists(self.state_disk):
            with open(self.state_disk, "wb") as f:
                f.truncate(64 << 20)
            dgtest.must("mkfs.ext4", "-q", self.state_disk)
        self.boots += 1
        path = os.path.join(self.lab.dir, "%s%d" % (self.name, self.boots))
        os.makedirs(os.path.join(self.lab.dir, "share"), exist_ok=True)
        self.console = path + ".console"
        self.log = path + ".log"
        with open(self.log, "wb") as log:
            self.p = subprocess.Popen(self._command(path), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        guardian.process(self.p.pid)
        self.frozen = False
        self._connect(path + ".agent")

    def _command(self, path):
        cache, lab = self.lab.cache, self.lab
        # no_timer_check: on a busy machine the kernel's look whether the timer ticks comes too early, and it panics ("IO-APIC + timer doesn't work").
        words = ["console=ttyS0", "quiet", "panic=-1", "no_timer_check", "mitigations=off", "nokaslr", "random.trust_cpu=on", "lab.start=%s/guest/start.sh" % HERE,
                 "lab.node=" + self.name, "lab.nodes=" + ",".join(lab.names), "lab.machine=" + self.machine_id]
        command = ["qemu-system-x86_64", "-name", self.name, "-accel", "tcg,thread=multi,tb-size=256", "-M", "q35", "-cpu", "qemu64,+rdrand",
                   "-smp", "1", "-m", str(self.memory), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                   "-serial", "file:" + self.console, "-kernel", os.path.join(cache, "vmlinux"), "-initrd", os.path.join(cache, "initramfs"),
                   "-append", " ".join(words)]
        for tag, folder, more in (("host", "/", ",readonly=on,multidevs=remap"), ("extra", os.path.join(cache, "root"), ",readonly=on"),
                                  ("lab", os.path.join(lab.dir, "share"), "")):
            command += ["-fsdev", "local,id=%s,path=%s,security_model=none%s" % (tag, folder, more),
                        "-device", "virtio-9p-pci,fsdev=%s,mount_tag=%s" % (tag, tag)]
        command += ["-device", "virtio-serial-pci", "-chardev", "socket,id=agent,path=%s.agent,server=on,wait=off" % path,
                    "-device", "virtserialport,chardev=agent,name=lab",
                    "-netdev", "stream,id=net,server=off,addr.type=unix,addr.path=%s/%s.net" % (lab.dir, self.name),
                    "-device", "virtio-net-pci,netdev=net,mac=52:54:00:99:00:%02x,romfile=" % self.number]
        for i, disk in enumerate([self.state_disk, *self.disks]):
            # Shared by two guests, or seen again after a crash: never cached by QEMU, never locked.
            command += ["-drive", "file=%s,format=raw,if=none,id=disk%d,cache=none,aio=threads,file.locking=off" % (disk, i),
                        "-device", "virtio-blk-pci,drive=disk%d,share-rw=on,romfile=" % i]
        return command

    def _connect(self, path):
        def connected():
            if self.p.poll() is not None:
                raise dgtest.Fail(self._ended())
            s = socket.socket(socket.AF_UNIX)
            try:
                s.connect(path)
                return s
            except OSError:
                s.close()
                return None
        self.socket = dgtest.wait_for(connected, "QEMU of %s answers" % self.name)
        self.calls, self.next_id, self.lock = {}, 1, threading.Lock()
        self.calls[0] = self.up_call = Call(self, "boot")
        threading.Thread(target=self._read, args=(self.socket, self.calls), daemon=True).start()

    def _ended(self):
        with open(self.log, errors="replace") as f:
            return "%s: QEMU ended with %s: %s" % (self.name, self.p.returncode, " ".join(f.read().split())[-400:])

    def wait_up(self):
        try:
            self.up_call.wait(BOOT_LIMIT)
        except Died as e:
            self.p.wait()
            if self.p.returncode:
                raise dgtest.Fail(self._ended()) from None
            raise dgtest.Fail("%s does not boot: it has powered off; its console: %s" % (self.name, " ".join(self.console_tail(400).split()))) from e
        except dgtest.Fail as e:
            raise dgtest.Fail("%s does not boot (%s); its console: %s" % (self.name, e, " ".join(self.console_tail(400).split()) or "empty")) from None

    def console_tail(self, n=1500):
        try:
            with open(self.console, errors="replace") as f:
                return f.read()[-n:]
        except OSError:
            return "nothing"

    def alive(self):
        return self.p is not None and self.p.poll() is None

    def kill(self):
        """Power cut."""
        if self.p:
            self.p.kill()
            self.p.wait()
        if self.socket:
            self.socket.close()

    def freeze(self):
        os.kill(self.p.pid, signal.SIGSTOP)
        self.frozen = True

    def thaw(self):
        os.kill(self.p.pid, signal.SIGCONT)
        self.frozen = False

    # ---- calls ----

    def _read(self, s, calls):
        rest = b""
        while True:
            try:
                block = s.recv(1 << 16)
            except OSError:
                block = b""
            if not block:
                break
            rest += block
            while b"\n" in rest:
                line, rest = rest.split(b"\n", 1)
                answer = json.loads(line)
                call = calls.pop(answer["id"], None)
                if call:
                    call.answer, call.seconds = answer, time.monotonic() - call.began
                    call.event.set()
        with self.lock:
            for call in list(calls.values()):
                call.event.set()
            calls.clear()

    def _send(self, op, arg):
        with self.lock:
            if not self.alive():
                raise Died("%s is not running" % self.name)
            call = Call(self, arg)
            number = self.next_id
            self.next_id += 1
            self.calls[number] = call
            self.socket.sendall((json.dumps({"id": number, "op": op, "arg": arg}) + "\n").encode())
        return call

    def begin_sh(self, script):
        return self._send("sh", script)

    def sh(self, script, limit=CALL_LIMIT):
        return self.begin_sh(script).wait(limit)

    def must(self, script, limit=CALL_LIMIT):
        r = self.sh(script, limit)
        dgtest.ok(r.code == 0, repr(r))
        return r.out

    def begin(self, function, *args, **kw):
        words = [repr(a) for a in args] + ["%s=%r" % item for item in kw.items()]
        return self._send("py", "%s(%s)" % (function, ", ".join(words)))

    def do(self, function, *args, limit=CALL_LIMIT, **kw):
        return self.begin(function, *args, **kw).wait(limit)

    def attempt(self, function, *args, limit=CALL_LIMIT):
        """0 or the errno of a call on the guest: labops.attempt."""
        return self.do("attempt", function, *args, limit=limit)


class Lab:
    """The switch and the guests that hang on it."""

    def __init__(self, names):
        self.cache = labcache.prepare()
        self.names = list(names)
        self.dir = dgtest.suite_tmp()
        self.guests = {name: Guest(self, name, i + 1) for i, name in enumerate(names)}
        os.makedirs(os.path.join(self.dir, "share"))
        self._switch = subprocess.Popen([os.path.join(self.cache, "netsw"), self.dir, *names], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        guardian.process(self._switch.pid)
        dgtest.eq(self._switch.stdout.readline(), b"ready\n", "the switch starts")

    def __getitem__(self, name):
        return self.guests[name]

    def share(self, name):
        """Path of a file in /lab of every guest."""
        return os.path.join(self.dir, "share", name)

    def boot(self, name, disks=None):
        self.guests[name].boot(disks)

    def up(self, *names):
        for name in names:
            self.guests[name].wait_up()

    def switch(self, command):
        """cut, drop, hold, heal: see netsw.c."""
        self._switch.stdin.write((command + "\n").encode())
        self._switch.stdin.flush()
        dgtest.eq(self._switch.stdout.readline(), b"ok\n", "switch: " + command)

    def heal(self):
        self.switch("heal")

    def down(self):
        for guest in self.guests.values():
            guest.kill()
        self._switch.stdin.close()
        self._switch.wait(10)
        shutil.rmtree(self.dir, ignore_errors=True)
