"""dgqemu: QEMU's tools and virtual machines, for the functional tests."""
import json
import os
import re
import select
import socket
import subprocess

import dgtest
import guardian
from dgtest import Fail, close_stream, eq, must, ok, read_at, wait_for


def qcow2_size(path):
    return int.from_bytes(read_at(path, 24, 8), "big")


def make_qcow2(path, size="64M", options="", *extra):
    return must("qemu-img", "create", "-q", "-f", "qcow2", *(("-o", options) if options else ()), *extra, path, size)


def no_lock(path, fmt="qcow2"):
    """Arguments that make a QEMU tool open path without QEMU's own locks, so that only the header can refuse it."""
    return ("--image-opts", "driver=%s,file.driver=file,file.locking=off,file.filename=%s" % (fmt, path))


class QemuIo:
    """qemu-io that keeps an image open and takes commands."""

    def __init__(self, path, *options, cwd=None):
        self.p = subprocess.Popen(["qemu-io", *options, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, cwd=cwd)
        guardian.process(self.p.pid)
        self.out = ""
        self._prompt()

    def _prompt(self):
        text = b""
        while not text.endswith(b"qemu-io> "):
            if not select.select([self.p.stdout], [], [], 60 * dgtest.TIME_SCALE)[0]:
                raise Fail("qemu-io: no answer; so far: %r" % text)
            block = os.read(self.p.stdout.fileno(), 65536)
            if not block:
                raise Fail("qemu-io ended: %s" % text.decode(errors="replace").strip())
            text += block
        self.out += text.decode(errors="replace")
        return text.decode(errors="replace")

    def do(self, command):
        """One command; fails the case when qemu-io reports an error."""
        self.p.stdin.write(command.encode() + b"\n")
        self.p.stdin.flush()
        text = self._prompt()
        ok(not re.search(r"failed|error|Error|invalid", text), "qemu-io %s: %s" % (command, text))
        return text

    def close(self):
        self.p.stdin.close()
        self.p.stdout.read()
        self.p.stdout.close()
        eq(self.p.wait(60), 0, "exit code of qemu-io")

    def kill(self):
        self.p.kill()
        self.p.wait()
        close_stream(self.p.stdin)
        self.p.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.p.poll() is None:
            self.kill()


class Vm:
    """A small PC under TCG without any device but a disk, controlled through QMP. guestboot.py says what runs in it."""

    def __init__(self, base, name, drive, *options, inherit=()):
        self.name = name
        self.debug = os.path.join(base, name + ".debug")
        self.qmp_path = os.path.join(base, name + ".qmp")
        self.err_path = os.path.join(base, name + ".err")
        err = open(self.err_path, "wb")
        self.p = subprocess.Popen(["qemu-system-x86_64", "-accel", "tcg", "-machine", "pc", "-m", "16", "-display", "none", "-nodefaults",
                                   "-no-user-config", "-debugcon", "file:" + self.debug, "-qmp",
                                   "unix:%s,server=on,wait=off" % self.qmp_path, *drive, *options],
                                  stdin=subprocess.DEVNULL, stdout=err, stderr=err, pass_fds=inherit)
        err.close()
        guardian.process(self.p.pid)
        self.sock = self.lines = None

    def connect(self):
        """Waits for the monitor. False: QEMU ended instead (error() says why)."""
        def answered():
            if self.p.poll() is not None:
                return "ended"
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(120 * dgtest.TIME_SCALE)
            try:
                self.sock.connect(self.qmp_path)
                self.lines = self.sock.makefile("rw")
                return self.lines.readline()
            except (FileNotFoundError, ConnectionError):
                self.sock.close()
                return None
        greeting = wait_for(answered, "monitor of %s" % self.name, 60)
        if greeting == "ended":
            return False
        ok("QMP" in json.loads(greeting), "greeting of QMP")
        try:
            self.qmp("qmp_capabilities")
        except (Fail, ConnectionError):  # the monitor answers before the disks are opened
            self.p.wait(60)
            return False
        return True

    def error(self):
        with open(self.err_path, errors="replace") as f:
            return f.read()

    def qmp(self, command, **arguments):
        json.dump({"execute": command, "arguments": arguments}, self.lines)
        self.lines.flush()
        while line := self.lines.readline():
            answer = json.loads(line)
            if "event" not in answer:
                ok("return" in answer, "%s: %s" % (command, answer))
                return answer["return"]
        raise Fail("%s: the monitor of %s closed: %s" % (command, self.name, self.error()))

    def hmp(self, line):
        eq(self.qmp("human-monitor-command", **{"command-line": line}).strip(), "", "answer to " + line)

    def said(self):
        """What the guest wrote to the debug port."""
        try:
            with open(self.debug, errors="replace") as f:
                return f.read()
        except FileNotFoundError:
            return ""

    def wait_said(self, text):
        wait_for(lambda: self.said().endswith(text) or self.p.poll() is not None, "%s: the guest says %r; so far %r" %
                 (self.name, text, self.said()), 90)
        ok(self.p.poll() is None, "%s ended: %s" % (self.name, self.error()))

    def quit(self):
        self.qmp("quit")
        eq(self.p.wait(60), 0, "exit code of QEMU")
        self.close()

    def close(self):
        if self.p.poll() is None:
            self.p.kill()
            self.p.wait()
        if self.lines:
            close_stream(self.lines)
        if self.sock:
            self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
