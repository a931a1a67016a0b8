#!/usr/bin/env python3
"""test_package: builds the Debian package once and installs, upgrades, removes and purges it in a copy of this system: an overlay of its root, with mounts and
process numbers of its own. Nothing is installed on the machine itself. With --long: built twice and compared, and the RPM."""
import glob
import os
import re
import shutil
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "func"))
from dgsystem import TOP, System  # noqa: E402
from dgtest import Skip, Suite, eq, is_sealed, must, ok, run, suite_tmp, wait_for  # noqa: E402

suite = Suite(__file__, limit=600)
PACKAGE = os.path.join(TOP, "tools", "package")

# What the package has, but for directories and documentation.
FILES = """
/etc/diskguard/example.conf
/etc/needrestart/conf.d/diskguard.conf
/lib/systemd/system/diskguard@.service
/usr/libexec/diskguard/running-views
/usr/libexec/diskguard/start-view
/usr/sbin/diskguard
/usr/sbin/diskguardctl
/usr/sbin/fsck.diskguard
/usr/sbin/mount.diskguard
/usr/sbin/umount.fuse.diskguard
/usr/share/bash-completion/completions/diskguard
/usr/share/bash-completion/completions/diskguardctl
/usr/share/bash-completion/completions/fsck.diskguard
/usr/share/bash-completion/completions/mount.diskguard
/usr/share/bash-completion/completions/umount.fuse.diskguard
/usr/share/man/man7/diskguard-formats.7.gz
/usr/share/man/man7/diskguard-storage.7.gz
/usr/share/man/man7/diskguard.7.gz
/usr/share/man/man8/diskguard.8.gz
/usr/share/man/man8/diskguardctl.8.gz
/usr/share/man/man8/fsck.diskguard.8.gz
/usr/share/man/man8/mount.diskguard.8.gz
/usr/share/man/man8/umount.fuse.diskguard.8.gz
/usr/share/zsh/vendor-completions/_diskguard
""".split()

built = []


def package():
    """The package, built once for all cases. Its files."""
    if not shutil.which("dh"):
        raise Skip("debhelper is not installed")
    if not built:
        folder = suite_tmp()
        options = ["--twice"] if suite.args.long else []
        env = dict(os.environ, JOBS="1")
        if not suite.args.long:
            env["DEB_CFLAGS_APPEND"] = "-O1"  # half of the time is the compiler's
        built.append(must(PACKAGE, *options, folder, env=env, timeout=1500))
        built.extend(sorted(glob.glob(folder + "/*.deb")))
    return built[1:]


def main_package():
    return [p for p in package() if "dbgsym" not in p][0]


@suite.case("meson.build, NEWS, debian/changelog, the RPM's spec and a tag name one version")
def _(_build):
    must(PACKAGE, "--check")
    for path, old, new in (("NEWS.md", r"(?m)^## \S+", "## 9.9.9"), ("debian/changelog", r"\(\S+\)", "(9.9.9)"),
                           ("tools/package.d/diskguard.spec", r"(?m)^Version: .*", "Version: 9.9.9"), ("meson.build", r"version: '[^']*'", "version: '9.9.9'")):
        copy = suite_tmp()
        for name in ("NEWS.md", "debian/changelog", "tools/package.d/diskguard.spec", "meson.build", "tools/package"):
            os.makedirs(os.path.dirname(os.path.join(copy, name)), exist_ok=True)
            shutil.copy2(os.path.join(TOP, name), os.path.join(copy, name))
        with open(os.path.join(copy, path), encoding="utf-8") as f:
            text = f.read()
        with open(os.path.join(copy, path), "w", encoding="utf-8") as f:
            f.write(re.sub(old, new, text, count=1))
        r = run(os.path.join(copy, "tools", "package"), "--check")
        ok(r.code == 1 and "9.9.9" in r.out, "another version in %s: %r" % (path, r))


@suite.case("the package has these files, and debugging symbols are in one of their own", limit=600)
def _(_build):
    eq(len(package()), 2, "packages: %s" % package())
    lines = [line.split() for line in must("dpkg-deb", "-c", main_package()).splitlines()]
    found = sorted("/" + words[5][2:].replace("usr/lib/systemd", "lib/systemd", 1) for words in lines if words[0][0] != "d" and "/usr/share/doc/" not in words[5])
    eq(found, sorted(FILES))
    ok("lintian found nothing" in built[0], "lintian is clean: " + built[0])
    if suite.args.long:
        ok("built twice, identical" in built[0], "two builds are identical: " + built[0])


def another_version(path, version, where):
    """The same package with a later version."""
    tree = os.path.join(suite_tmp(), "tree")
    must("dpkg-deb", "-R", path, tree)
    control = os.path.join(tree, "DEBIAN", "control")
    with open(control, encoding="utf-8") as f:
        text = f.read()
    with open(control, "w", encoding="utf-8") as f:
        f.write(re.sub(r"(?m)^Version: .*", "Version: " + version, text))
    must("dpkg-deb", "--root-owner-group", "-b", tree, where)


@suite.case("install, mount, refused removal, upgrade beside a running view, crash, purge, and back again", limit=600)
def _(_build):
    s = System()
    try:
        shutil.copy(main_package(), s.dir + "/diskguard.deb")
        another_version(main_package(), "99", s.dir + "/later.deb")
        life(s)
    finally:
        s.end()


def life(s):
    r = s.must("dpkg -i --no-triggers diskguard.deb")
    ok("before the upgrade" not in r, "nothing runs yet: " + r)
    s.must("diskguard --version && diskguardctl --version && fsck.diskguard --version && mkdir ds view")
    s.must("diskguardctl init ds && qemu-img create -q -f qcow2 ds/vm.qcow2 64M && mount -t diskguard /pkg/ds /pkg/view")
    image = s.dir + "/ds/vm.qcow2"
    daemon, = s.pids()

    for verb in ("-r", "-P"):
        s.refused("dpkg --no-triggers %s diskguard" % verb, "diskguard is not removed", "/pkg/view", "pid %s" % daemon, "umount MOUNTPOINT")
    eq((s.status().split()[1:], s.pids()), (["ok", "installed"], [daemon]), "after a refused removal")

    r = s.must("dpkg -i --no-triggers later.deb")
    ok("the program of before the upgrade" in r and "pid %s" % daemon in r, "an upgrade names the views that run the old program: " + r)
    eq(s.pids(), [daemon], "an upgrade leaves the daemon alone")
    s.must("exec 3<>view/vm.qcow2; kill -9 %s; while [ -e /proc/%s/exe ] && readlink /proc/%s/exe; do sleep 0.1; done" % (daemon, daemon, daemon))
    ok(is_sealed(image), "a crash leaves the header sealed")
    s.refused("dpkg --no-triggers -r diskguard", "/pkg/view")
    purge(s, image)

    s.must("dpkg -i --no-triggers later.deb && mount -t fuse.diskguard /pkg/ds /pkg/view")
    ok(not is_sealed(image), "the journal that purge has left puts the header back")
    s.must("umount /pkg/view")
    wait_for(lambda: not s.pids(), "the end of the daemon")
    s.must("dpkg --no-triggers -r diskguard")


def purge(s, image):
    s.must("umount -i -l view && mkdir -p /etc/systemd/system/multi-user.target.wants && echo DATASTORE=/x >/etc/diskguard/vms.conf && "
           "ln -s /lib/systemd/system/diskguard@.service /etc/systemd/system/multi-user.target.wants/diskguard@vms.service && dpkg --no-triggers -r diskguard")
    before = s.must("find ds/.diskguard /var/lib/diskguard -type f | sort")
    r = s.must("dpkg --no-triggers -P diskguard")
    journal = [p for p in before.split() if p.startswith("/var/lib/diskguard/") and p.endswith(".db")]
    for word in ("/var/lib/diskguard stays", "datastores stay", "/etc/diskguard stay", *journal):
        ok(word in r, "purge does not say %r: %s" % (word, r))
    eq(len(journal), 1, "journals in " + before)
    eq(s.must("find ds/.diskguard /var/lib/diskguard -type f | sort"), before, "what purge leaves")
    eq(s.must("ls -A /etc/diskguard /etc/systemd/system/multi-user.target.wants | grep -e conf -e diskguard").split(), ["/etc/diskguard:", "vms.conf"], "what purge leaves in /etc")
    ok(is_sealed(image), "purge leaves the datastore alone")


@suite.case("rpmbuild makes an RPM with the same files", limit=600)
def _(_build):
    if not shutil.which("rpmbuild"):
        raise Skip("rpm is not installed")
    if not suite.args.long:
        out = must("rpmspec", "-P", os.path.join(TOP, "tools/package.d/diskguard.spec"))
        for path in FILES:
            if path.startswith("/usr/sbin/") or path.startswith("/etc/"):
                ok("\n%s\n" % path in out or " %s\n" % path in out, "the spec does not name " + path)
        return
    folder = suite_tmp()
    must(PACKAGE, "--rpm", "--twice", folder, env=dict(os.environ, JOBS="1"), timeout=1500)
    rpm, = [p for p in glob.glob(folder + "/*.rpm") if "debug" not in p]
    found = {without_release(p) for p in must("rpm", "-qlp", rpm).split()}
    eq([p for p in FILES if without_release(p) not in found], [], "what is not in the RPM")


def without_release(path):
    """What each distribution has elsewhere, or compresses."""
    return path.replace("/usr/lib/systemd", "/lib/systemd").replace("vendor-completions", "site-functions").removesuffix(".gz")


if __name__ == "__main__":
    suite.main()
