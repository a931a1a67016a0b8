"""agent: carries out what the host side asks for in a lab guest, over a virtio-serial port.

One JSON object a line. Request: {"id", "op": "sh", "arg": SCRIPT} or {"id", "op": "py", "arg": EXPRESSION}. Answer: {"id", "rc", "out"} of the script,
or {"id", "value"} (a Python literal), or {"id", "error", "errno"}. Each request has a thread of its own, so that a call which hangs on dead storage blocks nobody. Expressions
share one namespace: labops.py. They are evaluated in a process of their own: a script's process must not inherit the descriptors that tests keep open, since closing
them can wait for dead storage.
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


def send(fd, number, result):
    line = (json.dumps(dict(result, id=number)) + "\n").encode()
    with writing:
        while line:
            line = line[os.write(fd, line):]


def evaluate(fd, request):
    try:
        result = {"value": repr(eval(request["arg"], names))}
    except OSError as e:
        result = {"error": "%s: %s" % (type(e).__name__, e), "errno": e.errno}
    except Exception as e:  # pylint: disable=broad-except
        result = {"error": "%s: %s" % (type(e).__name__, e), "errno": 0}
    send(fd, request["id"], result)


def each_line(fd, function):
    rest = b""
    while True:
        block = os.read(fd, 65536)
        if not block:
            return
        rest += block
        while b"\n" in rest:
            line, rest = rest.split(b"\n", 1)
            function(line)


def in_thread(function, *args):
    threading.Thread(target=function, args=args, daemon=True).start()


def start_evaluator():
    """(pipe to it, pipe from it)"""
    requests, answers = os.pipe(), os.pipe()
    if os.fork() == 0:
        each_line(requests[0], lambda line: in_thread(evaluate, answers[1], json.loads(line)))
        os._exit(0)
    return requests[1], answers[0]


def main():
    fd = os.open(port(), os.O_RDWR)
    requests, answers = start_evaluator()
    in_thread(each_line, answers, lambda line: send(fd, json.loads(line)["id"], json.loads(line)))
    send(fd, 0, {"value": "'up'"})

    def take(line):
        request = json.loads(line)
        if request["op"] == "sh":
            in_thread(lambda: send(fd, request["id"], shell(request["arg"])))
        else:
            os.write(requests, line + b"\n")
    each_line(fd, take)


main()
