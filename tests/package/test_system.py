#!/usr/bin/env python3
"""test_system: what is installed beside the programs, in a copy of this system: mount -t diskguard, lines of fstab, the unit and the file that it reads, what a failed
start logs, shell completions."""
import os
import re
import shlex
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "func"))
from dgsystem import TOP, System  # noqa: E402
from dgtest import Skip, Suite, eq, must, ok, run, suite_tmp, wait_for  # noqa: E402

suite = Suite(__file__)


def read(*path):
    with open(os.path.join(TOP, *path), encoding="utf-8") as f:
        return f.read()


def built(build, *path):
    with open(os.path.join(build.path, *path), encoding="utf-8") as f:
        return f.read()


trees = []


def tree(build):
    """What `meson install` installs, below the prefix of the build (/usr/local)."""
    if build.sanitize != "none":
        raise Skip("mount(8) cannot start a sanitized program")
    if not trees:
        trees.append(suite_tmp())
        must("meson", "install", "-C", build.path, "--no-rebuild", "--quiet", env=dict(os.environ, DESTDIR=trees[0]))
    return trees[0]


def installed(build):
    """A system with that."""
    s = System()
    must("cp", "-al", tree(build), s.dir + "/inst")
    s.must("cd /pkg/inst && tar -c . | tar -x -C / --keep-directory-symlink")
    s.must("mkdir -p ds view other && diskguardctl init ds && qemu-img create -q -f qcow2 ds/vm.qcow2 64M")
    return s


def views(s):
    return s.sh("findmnt -n -r -o TARGET -t fuse.diskguard").out.split()


@suite.case("mount -t diskguard, and two views of fstab, one of each type, through mount -a")
def _(build):
    s = installed(build)
    try:
        s.must("mount -t diskguard /pkg/ds /pkg/view -o wait=1,noatime,nodev")
        eq(s.must("findmnt -n -o FSTYPE,SOURCE view").split(), ["fuse.diskguard", "/pkg/ds"])
        ok("noatime" in s.must("findmnt -n -o OPTIONS view"), "options are handed on")
        s.must("qemu-io -c 'write 0 64k' view/vm.qcow2")
        s.refused("mount -t diskguard /pkg/ds /pkg/view", "mounted on /pkg/view already")
        s.must("umount view")
        wait_for(lambda: not s.pids(), "the end of the daemon")
        s.must("mkdir ds2 && diskguardctl init ds2")
        s.must("printf '%s\\n' '/pkg/ds /pkg/view diskguard wait=1,_netdev,x-systemd.requires-mounts-for=/pkg/ds 0 0' '/pkg/ds2 /pkg/other fuse.diskguard nofail,noatime 0 0' "
               ">/etc/fstab && mount -a && mount -a")
        eq(sorted(views(s)), ["/pkg/other", "/pkg/view"], "mount -a, twice")
        s.must("umount -a -t fuse.diskguard")
        eq(views(s), [])
        s.refused("mount -t diskguard /pkg/ds /pkg/view -o nonsense", "nonsense")
        s.must("mount -f -t diskguard /pkg/ds /pkg/view")
        eq(views(s), [], "mount -f mounts nothing")
        for words in ("ds", "ds view more", "--nonsense ds view", "ds view -o"):
            s.refused("/sbin/mount.diskguard " + words, "usage:")
        s.must("unshare -m sleep 60 >/dev/null 2>&1 & while [ /proc/$!/ns/mnt -ef /proc/self/ns/mnt ]; do :; done; mount -N $! -t diskguard /pkg/ds /pkg/view && ! grep -q fuse.diskguard /proc/self/mountinfo && grep -q fuse.diskguard /proc/$!/mountinfo")
    finally:
        s.end()


@suite.case("a state directory that a mount of fstab would hide is refused")
def _(build):
    s = installed(build)
    try:
        fstab = "printf '%%s\\n' 'none %s tmpfs %s 0 0' >/etc/fstab"
        for point in ("/var", "/var/lib", "/var/lib/diskguard/"):
            s.must("mkdir -p /var/lib/diskguard; " + fstab % (point, "defaults"))
            s.refused("mount -t diskguard /pkg/ds /pkg/view", "/etc/fstab mounts " + point, "x-systemd.requires-mounts-for=/var/lib/diskguard")
            s.must("rmdir /var/lib/diskguard && ln -s /srv/elsewhere /var/lib/diskguard && mkdir -p /srv/elsewhere")
            s.refused("mount -t diskguard /pkg/ds /pkg/view", "/etc/fstab mounts")
            s.must("rm /var/lib/diskguard")
        s.must("mkdir /srv/elsewhere/state && " + fstab % ("/srv", "nofail"))
        s.must("ln -s /srv/elsewhere/state link")
        s.refused("mount -t diskguard -o state-dir=/pkg/link /pkg/ds /pkg/view", "/etc/fstab mounts /srv")
        s.must("ln -s /srv /pkg/alias && " + fstab % ("/pkg/alias", "defaults"))
        s.refused("mount -t diskguard -o state-dir=/pkg/alias/state /pkg/ds /pkg/view", "/etc/fstab mounts /pkg/alias")
        s.must("mount /pkg/alias && mkdir ds3 && diskguardctl init ds3 && mount -t diskguard -o state-dir=/pkg/alias/state /pkg/ds3 /pkg/view && umount view && umount /pkg/alias")
        for point, options in (("/var", "noauto"), ("/var/lib/other", "defaults"), ("/va", "defaults"), ("/", "defaults"), ("swap", "defaults")):
            s.must(fstab % (point, options) + " && mount -t diskguard /pkg/ds /pkg/view && umount view")
        s.must(fstab % ("/var/lib", "defaults") + " && mount /var/lib && mkdir ds2 && diskguardctl init ds2 && mount -t diskguard /pkg/ds2 /pkg/view && umount view && umount /var/lib")
    finally:
        s.end()


@suite.case("a running daemon is found, in sbin and where sbin is a link to bin, also when its program was replaced")
def _(_build):
    for folder in ("bin", "sbin"):
        program = os.path.join(suite_tmp(), folder, "diskguard")
        os.mkdir(os.path.dirname(program))
        must("cp", "/bin/sleep", program)
        with subprocess.Popen([program, "60"]) as p:
            def lines(*words):
                return [line for line in must(os.path.join(TOP, "tools/package.d/running-views"), *words).splitlines() if "pid %d:" % p.pid in line]
            try:
                wait_for(lambda: lines() == ["    pid %d: %s 60 " % (p.pid, program)], "it is found", 5)
                eq(lines("--old"), [], "it is not old")
                os.unlink(program)
                eq(len(lines("--old")), 1, "it is old")
            finally:
                p.kill()


@suite.case("README, diskguard(8), quickstart and init name the same line for fstab")
def _(build):
    line = "DATASTORE MOUNTPOINT diskguard _netdev,x-systemd.requires-mounts-for=DATASTORE,x-systemd.requires-mounts-for=/var/lib/diskguard 0 0"
    page = read("src/daemon/diskguard.8").replace("\\\n", "").replace("\\-", "-")
    for text, words in ((read("README.md"), ("/srv/nfs/vms", "/mnt/vms")), (page, ("/srv/nfs/vms", "/mnt/vms")), (read("tools/quickstart"), ("$datastore", "$mountpoint"))):
        ok(line.replace("DATASTORE", words[0]).replace("MOUNTPOINT", words[1]) in text, "not %s in %s..." % (line, text[:60]))
    folder = suite_tmp()
    ok(line.replace("DATASTORE", folder) in must(*build.command(build.ctl, "init", folder), env=build.env()), "what init prints")


def start_view(build, text, folder=None):
    """What start-view makes of a file: the arguments of diskguard, or the exit code and what it says."""
    folder = folder or suite_tmp()
    with open(folder + "/vms.conf", "w", encoding="utf-8") as f:
        f.write(text)
    script = re.sub(r"exec \S*/diskguard ", "printf '%s\\\\n' ", built(build, "systemd", "start-view"))
    ok("printf '%s\\n' -f" in script, "the program is replaced in " + script)
    r = subprocess.run(["sh", "-c", script, "start-view", folder + "/vms.conf"], capture_output=True, text=True, check=False)
    return (r.returncode, r.stderr) if r.returncode else r.stdout.splitlines()


@suite.case("the unit's file: comments, blanks after commas, quotes; what is wrong is said with its line")
def _(build):
    def want(text, *argv):
        eq(start_view(build, text), ["-f", *argv], "what is read of %r" % text)
    want("DATASTORE=/a\nMOUNTPOINT=/b\n", "/a", "/b", "-o", "rw")
    want("# c\n\n ; c\nDATASTORE=/a # mine\nMOUNTPOINT=/b\t#mine\nOPTIONS=wait=10, raw=all ,ro # may be left out", "/a", "/b", "-o", "wait=10,raw=all,ro")
    want("DATASTORE = /a\n".replace(" = ", "=") + "MOUNTPOINT=  /b  \nOPTIONS=\n", "/a", "/b", "-o", "rw")
    want("DATASTORE=\"/a b # c\" # d\nMOUNTPOINT='/b\"'\nOPTIONS=\"wait=1, ro\"\n", "/a b # c", "/b\"", "-o", "wait=1,ro")
    want("DATASTORE=/a#b\nMOUNTPOINT=/$HOME/*`x`\nOPTIONS=#none\n", "/a#b", "/$HOME/*`x`", "-o", "rw")
    want("DATASTORE=/a\r\nMOUNTPOINT=/b\r\n", "/a", "/b", "-o", "rw")
    want("DATASTORE=/x\nDATASTORE=/a\nMOUNTPOINT=/b\nOPTIONS=,, ,raw=*.img:*.raw,\n", "/a", "/b", "-o", "raw=*.img:*.raw")
    for text, hint in (("DATASTORE=/a\n", "no MOUNTPOINT="), ("MOUNTPOINT=/a\n", "no DATASTORE="), ("DATASTORE=/a\nWAIT=5\n", "line 2"), ("DATASTORE=\"/a\n", "line 1"),
                       ("DATASTORE=\"/a\" b\n", "line 1"), ("nonsense\n", "line 1"), ("", "no DATASTORE=")):
        code, said = start_view(build, text)
        eq(code, 2, "exit code of %r" % text)
        ok(said.startswith("<3>diskguard: ") and said.count("\n") == 1 and hint in said, "%r: %s" % (text, said))
    eq(start_view(build, read("systemd", "example.conf")), ["-f", "/srv/nfs/vms", "/mnt/vms", "-o", "wait=5,readers=protect"], "the example")


JOURNAL = r"""
import os, socket, subprocess, sys
os.makedirs("/run/systemd/journal", exist_ok=True)
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind("/run/systemd/journal/socket")
log.settimeout(5)
end, err = socket.socketpair()
st = os.fstat(err.fileno())
env = dict(os.environ, JOURNAL_STREAM="%d:%d" % (st.st_dev, st.st_ino)) if sys.argv[1] == "service" else dict(os.environ)
p = subprocess.run(sys.argv[2:], stderr=err, env=env)
err.close()
print(p.returncode, log.recv(65536).decode(), end.recv(65536).decode(), sep="\n--\n")
"""


@suite.case("why a start failed is an error in the journal; and on standard error for who ran mount")
def _(build):
    s = installed(build)
    try:
        with open(s.dir + "/journal.py", "w", encoding="ascii") as f:
            f.write(JOURNAL)
        s.must("mkdir plain")
        for kind, command, code, hint in (("service", "diskguard -f plain view", 1, "diskguardctl init"), ("service", "diskguard -f ds view -o nonsense", 2, "nonsense"),
                                          ("service", "diskguard ds missing", 1, "missing"), ("service", "diskguard plain view", 1, "diskguardctl init"),
                                          ("shell", "diskguard plain view", 1, "diskguardctl init")):
            r = s.must("rm -rf /run/systemd; python3 journal.py %s %s" % (kind, command))
            got, entry, err = r.split("\n--\n")
            eq(int(got.splitlines()[-1]), code, "exit code of %s: %s" % (command, r))
            ok("PRIORITY=3\n" in entry and "MESSAGE=" in entry and hint in entry, "an error in the journal of %s: %s" % (command, r))
            eq(hint in err, kind == "shell", "standard error of %s, where it is not the journal: %s" % (command, r))
    finally:
        s.end()


def unit(build):
    text = built(build, "systemd", "diskguard@.service")
    words = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            words.setdefault(name, []).append(value)
    return text, words


@suite.case("the unit: no restart after a wrong file, no start without one; systemd takes every line of it, and of the drop-ins")
def _(build):
    text, words = unit(build)
    for name, value in (("RestartPreventExitStatus", "2"), ("AssertPathExists", "/etc/diskguard/%i.conf"), ("NoNewPrivileges", "yes")):
        eq(words.get(name), [value], name)
    ok("StartLimitBurst" in words, "a limit of starts")
    for name in ("ProtectSystem", "PrivateTmp", "ProtectHome", "PrivateDevices", "ReadOnlyPaths", "MountFlags", "PrivateMounts"):
        ok(name not in words, name + " would hide the view")
    try:
        version = int(run("systemd-analyze", "--version").out.split()[1])
    except (OSError, IndexError, ValueError):
        version = 0
    if version < 252:
        raise Skip("no systemd-analyze")
    folder = suite_tmp()
    os.mkdir(folder + "/units")
    path = folder + "/units/diskguard@vms.service"
    with open(path, "w", encoding="utf-8") as f:
        f.write(re.sub(r"(?m)^(ExecStart)=.*", r"\1=/bin/true", text))
    for name in ("libvirt", "pve-guests", "plain"):
        other = "%s/units/%s.service" % (folder, name)
        os.mkdir(other + ".d")
        with open(other, "w", encoding="ascii") as f:
            f.write("[Service]\nExecStart=/bin/true\n")
        must("cp", os.path.join(TOP, "systemd/drop-ins", name + ".conf"), other + ".d/")
        must("sed", "-i", "s/^#Req/Req/", other + ".d/" + name + ".conf")
    r = run("systemd-analyze", "--man=no", "verify", *[folder + "/units/" + n for n in os.listdir(folder + "/units") if n.endswith(".service")],
            env=dict(os.environ, SYSTEMD_UNIT_PATH=folder + "/units:"))
    eq([line for line in r.out.splitlines() if folder in line or "iskguard" in line or "Unknown" in line], [], "systemd-analyze verify")
    r = run("systemd-analyze", "--no-pager", "security", "--offline=true", "--threshold=60", path)
    ok(r.code == 0, "systemd-analyze security: " + (r.out.strip().splitlines() or [""])[-1])


@suite.case("a view works with no more capabilities than the unit gives")
def _(build):
    names = unit(build)[1]["CapabilityBoundingSet"][0].split()
    allowed = ",".join("+" + n[len("CAP_"):].lower() for n in names)
    s = installed(build)
    try:
        s.must("setpriv --no-new-privs --bounding-set=-all,%s --inh-caps=-all diskguard /pkg/ds /pkg/view" % allowed)
        eq(len(views(s)), 1, "mounted")
        s.must("qemu-io -c 'write 0 64k' view/vm.qcow2 && qemu-img check view/vm.qcow2")
        s.must("cd view && mkdir -m 1777 d && cp /bin/true d/p && chown 1:1 d/p && chmod 6755 d/p && mknod d/n c 1 3 && mkfifo d/f && ln d/p d/q && touch -d 2001-01-01 d/p && "
               "setfattr -n trusted.x -v 1 d/p && setcap cap_net_raw+ep d/p && chattr -V . >/dev/null 2>&1; "
               "setpriv --reuid=65534 --regid=65534 --clear-groups sh -c 'echo x >d/mine && mkdir d/e && mv d/mine d/e/ && chmod 600 d/e/mine && ! echo x >d/p' 2>/dev/null")
        eq(s.must("stat -c '%u:%g %a' view/d/p; stat -c %u view/d/e/mine; ls view/d").split(), ["1:1", "6755", "65534", "e", "f", "n", "p", "q"])
        s.must("umount view")
        wait_for(lambda: not s.pids(), "the end of the daemon")
        s.must("qemu-img check ds/vm.qcow2")
    finally:
        s.end()


COMPLETE = """
source "$1"
COMP_LINE=$2
COMP_POINT=${#COMP_LINE}
read -ra whole <<<"$COMP_LINE"
COMP_WORDS=("${whole[@]}")
[[ $COMP_LINE != *" " ]] || COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
function=$(complete -p "${whole[0]}")
function=${function#*-F }
${function%% *} "${whole[0]}" "${COMP_WORDS[COMP_CWORD]}" ""
printf '%s\\n' "${COMPREPLY[@]}"
"""


def complete(line):
    r = run("bash", "-c", COMPLETE, "bash", os.path.join(TOP, "tools/completions/diskguard.bash"), line)
    eq(r.code, 0, "completion of %r: %s" % (line, r.out))
    return r.out.split()


def offered(text):
    """What a --help names: commands, options, mount options with their words."""
    commands = set(re.findall(r"(?m)^  ([a-z]+) (?:\[?[A-Z]|--)", text))
    options = {o for o in re.findall(r"(?<![\w-])(--?[A-Za-z][a-z-]*)", text) if o != "-o"}
    mount = {}
    for name, words in re.findall(r"-o ([a-z_-]+)(?:=(\S+))?", text):
        mount[name] = {w for w in re.split(r"[|:]", words.rstrip(",")) if re.fullmatch(r"[a-z][a-z-]+", w)} if words else None
    return commands, options, mount


@suite.case("bash and zsh complete every command, option and word that --help names")
def _(build):
    zsh = read("tools/completions/_diskguard")
    for name, program in (("diskguard", build.diskguard), ("diskguardctl", build.ctl), ("fsck.diskguard", build.fsck)):
        commands, options, mount = offered(must(*build.command(program, "--help"), env=build.env()))
        ok(options and (commands or name != "diskguardctl") and (mount or name != "diskguard"), "what %s --help names" % name)
        found = {o.rstrip("=").split("=")[0] for o in complete(name + " -")}
        eq(sorted(options - found), [], "options of %s that bash does not complete" % name)
        eq(sorted(o for o in options if not re.search(r"(?<![\w-])%s(?![\w-])" % re.escape(o), zsh)), [], "options of %s that zsh does not complete" % name)
        if name == "diskguardctl":
            eq(sorted(complete(name + " ")), sorted(commands), "commands")
            eq([c for c in commands if c + "\\:" not in zsh], [], "commands that zsh does not complete")
        for option, words in mount.items():
            ok(option + ("" if words is None else "=") in complete("diskguard /a /b -o "), "bash does not complete -o " + option)
            ok("'%s[" % option in zsh, "zsh does not complete -o " + option)
            if words and words != {"libvirtd"}:
                eq(sorted(complete("diskguard /a /b -o ro,%s=" % option)), sorted(words), "words of " + option)
                line = [text for text in zsh.splitlines() if "'%s[" % option in text][0]
                ok("(" in line and words <= set(line[line.rindex("(") + 1:line.rindex(")")].split()), "words of %s in zsh: %s" % (option, line))
    eq(complete("diskguard /a /b -o ro,writers=h"), ["host"])
    eq(complete("diskguard /a /b -o wait=5,wr"), ["5,writers="])
    eq(complete("diskguardctl wh"), ["why"])
    eq(complete("fsck.diskguard --fence=n"), ["none"])
    if run("sh", "-c", "command -v zsh").code == 0:
        must("zsh", "-n", os.path.join(TOP, "tools/completions/_diskguard"))


if __name__ == "__main__":
    suite.main()
