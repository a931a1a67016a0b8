"""agent: carries out what the host side asks for in a lab guest, over a virtio-serial port.

One JSON object a line. Request: {"id", "op": "sh", "arg": SCRIPT} or {"id", "op": "py", "arg": EXPRESSION}. Answer: {"id", "rc", "out"} of the script,
or {"id", "value"} (a Python literal), or {"id", "error", "errno"}. Each request has a thread of its own, so that a call which hangs on dead storage blocks nobody. Expressions
share one namespace: labops.py.
"""
import json
import os
import subprocess
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import labops  # noqa: E402

names = vars(labops)
writing = threading.Lock()


def port():
    for name in os.listdir("/sys/class/virtio-ports"):
        with open("/sys/class/virtio-ports/%s/name" % name) as f:
            if f.read().strip() == "lab":
                return "/dev/" + name
    raise SystemExit("agent: no port")


def shell(script):
    p = subprocess.Popen(["/bin/bash", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         start_new_session=True)
    out, _ = p.communicate()
    return {"rc": p.returncode, "out": out.decode(errors="replace")}


def answer(fd, request):
    try:
        if request["op"] == "sh":
            result = shell(request["arg"])
        else:
            result = {"value": repr(eval(request["arg"], names))}
    except OSError as e:
        result = {"error": "%s: %s" % (type(e).__name__, e), "errno": e.errno}
    except Exception as e:  # pylint: disable=broad-except
        result = {"error": "%s: %s" % (type(e).__name__, e), "errno": 0}
    line = (json.dumps(dict(result, id=request["id"])) + "\n").encode()
    with writing:
        while line:
            line = line[os.write(fd, line):]


def main():
    fd = os.open(port(), os.O_RDWR)
    with writing:
        os.write(fd, b'{"id": 0, "value": "\'up\'"}\n')
    rest = b""
    while True:
        block = os.read(fd, 65536)
        if not block:
            return
        rest += block
        while b"\n" in rest:
            line, rest = rest.split(b"\n", 1)
            threading.Thread(target=answer, args=(fd, json.loads(line)), daemon=True).start()


main()
