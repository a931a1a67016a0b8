"""labcache: what the lab's guests boot from: Debian's kernel, an initramfs, packages that only guests need, the switch.

It is made once and kept in $DISKGUARD_LAB_CACHE (default /var/cache/diskguard-lab), outside the tree. The packages are unpacked there and never
installed: testing must not give this machine an NFS server. Guests see this machine's root directory, read-only, with the unpacked packages laid over it.
"""
import contextlib
import fcntl
import glob
import hashlib
import lzma
import os
import shutil
import struct
import subprocess
import tempfile
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.environ.get("DISKGUARD_LAB_CACHE", "/var/cache/diskguard-lab")
# What guests run beside diskguard and its tests. apt-get adds what these depend on and this machine has not.
PACKAGES = ["nfs-kernel-server", "nfs-common", "rpcbind", "ocfs2-tools", "open-iscsi", "sg3-utils", "kmod", "busybox-static", "cpio"]
# Modules that the guest needs before it sees its root directory.
EARLY_MODULES = ["virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console", "virtio_net", "virtio_blk"]
GZIP, XZ, ZSTD = b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"  # RFC 1952; the .xz format, 2.1.1.1; RFC 8878
ROOM = 1 << 30  # bytes: the unpacked kernel and packages are about 0.5 GiB


class LabError(Exception):
    """The lab cannot be set up; one line says why and what to do."""


def _run(*argv, **kw):
    try:
        p = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=600, **kw)
    except FileNotFoundError:
        raise LabError("%s is not installed: run tools/install-deps" % argv[0]) from None
    except subprocess.TimeoutExpired:
        raise LabError("%s does not end" % argv[0]) from None
    out = p.stdout.decode(errors="replace")
    if p.returncode:
        reason = next((line for line in out.splitlines() if line.startswith("E:")), (out.strip().splitlines() or ["no output"])[-1])
        raise LabError("%s failed: %s" % (" ".join(argv[:3]), reason))
    return out


def _version():
    """Changes whenever what this file makes would change."""
    h = hashlib.sha256()
    for path in (__file__, os.path.join(HERE, "netsw.c"), os.path.join(HERE, "guest", "init")):
        with open(path, "rb") as f:
            h.update(f.read())
    return h.hexdigest()


def _kernel_package():
    """The kernel behind Debian's linux-image-amd64."""
    for line in _run("apt-cache", "depends", "linux-image-amd64").splitlines():
        if "Depends: linux-image-" in line:
            return line.split()[-1]
    raise LabError("no kernel package: apt-cache knows no linux-image-amd64; run apt-get update, or add Debian's main section to the sources")


def _download(folder):
    """Packages and what they depend on, as .deb files. Kept from one version of the cache to the next."""
    os.makedirs(os.path.join(folder, "partial"), exist_ok=True)
    _run("apt-get", "update")
    kernel = _kernel_package()
    _run("apt-get", "install", "-y", "--download-only", "--no-install-recommends", "-o", "Dir::Cache::archives=" + folder, *PACKAGES)
    if not glob.glob(os.path.join(folder, kernel + "_*.deb")):
        _run("apt-get", "download", kernel, cwd=folder)
    missing = [p for p in PACKAGES if not glob.glob(os.path.join(folder, p + "_*.deb"))]
    if missing:  # installed here already, so that apt-get had nothing to download
        _run("apt-get", "download", *missing, cwd=folder)


def _unpack(debs, root):
    """All packages into one tree, with Debian's merged /usr, whose links a plain dpkg-deb -x would replace."""
    for name in ("bin", "sbin", "lib", "lib64"):
        os.makedirs(os.path.join(root, "usr", name))
        os.symlink("usr/" + name, os.path.join(root, name))
    for deb in sorted(glob.glob(os.path.join(debs, "*.deb"))):
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as p:
            _run_tar(p.stdout, root)
        if p.returncode:
            raise LabError("%s cannot be unpacked: remove %s and try again" % (os.path.basename(deb), debs))


def _run_tar(stream, root):
    p = subprocess.run(["tar", "-x", "--keep-directory-symlink", "--no-same-owner", "-C", root], stdin=stream, stderr=subprocess.PIPE, check=False)
    if p.returncode:
        raise LabError("unpacking packages failed: %s" % p.stderr.decode(errors="replace").strip())


def _unpacked(data):
    """What a kernel or a module is compressed from: xz in Debian 12, zstd and xz in Debian 13."""
    if data[:2] == GZIP:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data)
    if data[:6] == XZ:
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ).decompress(data)
    if data[:4] == ZSTD:
        p = subprocess.run(["zstd", "-d", "-q", "-c"], input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        if p.returncode:
            raise LabError("zstd: %s" % p.stderr.decode(errors="replace").strip())
        return p.stdout
    return data


def _kernel(root, target):
    """The kernel as an ELF file: QEMU boots that through PVH, without the decompressor, which is slow under emulation. Returns its version."""
    images = glob.glob(os.path.join(root, "boot", "vmlinuz-*"))
    if not images:
        raise LabError("no kernel in Debian's kernel package")
    with open(images[0], "rb") as f:
        image = f.read()
    # The kernel's x86 boot protocol, 2.08: setup_sects, "HdrS", payload_offset and payload_length. The payload's last 4 bytes are its size when unpacked (of gzip they belong to the format).
    start, length = struct.unpack_from("<II", image, 0x248)
    start += (image[0x1f1] + 1) * 512
    payload = image[start:start + length]
    elf = _unpacked(payload if payload[:2] == GZIP else payload[:-4]) if image[0x202:0x206] == b"HdrS" else b""
    if elf[:4] != b"\x7fELF":
        raise LabError("%s is not a kernel compressed with gzip, xz or zstd" % images[0])
    with open(target, "wb") as f:
        f.write(elf)
    return os.path.basename(images[0])[len("vmlinuz-"):]


def _initramfs(root, version, target):
    with tempfile.TemporaryDirectory() as tree:
        for name in ("bin", "proc", "sys", "dev", "modules", "host", "extra", "rw", "new"):
            os.mkdir(os.path.join(tree, name))
        shutil.copy(os.path.join(root, "usr/bin/busybox"), os.path.join(tree, "bin/busybox"))
        shutil.copy(os.path.join(HERE, "guest", "init"), os.path.join(tree, "init"))
        os.chmod(os.path.join(tree, "init"), 0o755)
        kmod = os.path.join(root, "usr/bin/kmod")
        order = []
        for module in EARLY_MODULES:
            out = _run("bash", "-c", 'exec -a modprobe "$0" "$@"', kmod, "-d", root, "-S", version, "--show-depends", module)
            order += [line.split()[1] for line in out.splitlines() if line.startswith("insmod")]
        order = list(dict.fromkeys(order))
        names = [os.path.basename(path).partition(".ko")[0] + ".ko" for path in order]
        for path, name in zip(order, names):  # unpacked: insmod of busybox need not know how they are compressed
            with open(path, "rb") as packed, open(os.path.join(tree, "modules", name), "wb") as f:
                f.write(_unpacked(packed.read()))
        with open(os.path.join(tree, "modules", "order"), "w") as f:
            f.write("".join(name + "\n" for name in names))
        cpio = os.path.join(root, "usr/bin/cpio")
        _run("bash", "-c", 'set -o pipefail; find . | "$0" -o -H newc --quiet >"$1"', cpio, target, cwd=tree)


def _make(into):
    free = shutil.disk_usage(into)
    if free.free < ROOM:
        raise LabError("%s has %d MiB left; the lab needs %d MiB (or another place: DISKGUARD_LAB_CACHE)" % (into, free.free >> 20, ROOM >> 20))
    debs = os.path.join(CACHE, "debs")
    _download(debs)
    root = os.path.join(into, "root")
    os.mkdir(root)
    _unpack(debs, root)
    version = _kernel(root, os.path.join(into, "vmlinux"))
    _run("bash", "-c", 'exec -a depmod "$0" "$@"', os.path.join(root, "usr/bin/kmod"), "-b", root, version)
    _initramfs(root, version, os.path.join(into, "initramfs"))
    _run("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", os.path.join(into, "netsw"), os.path.join(HERE, "netsw.c"))


@contextlib.contextmanager
def _locked():
    try:
        os.makedirs(CACHE, exist_ok=True)
        lock = open(os.path.join(CACHE, "lock"), "w")
    except OSError as e:
        raise LabError("%s: %s (another place: DISKGUARD_LAB_CACHE)" % (CACHE, e.strerror)) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def prepare():
    """The folder with vmlinux, initramfs, root/ and netsw; made when it is missing or out of date. LabError when it cannot be."""
    for program in ("qemu-system-x86_64", "mkfs.ext4", "gcc", "tar", "dpkg-deb", "zstd"):
        if not shutil.which(program):
            raise LabError("%s is not installed: run tools/install-deps" % program)
    version = _version()
    with _locked():
        ready = os.path.join(CACHE, "ready")
        stamp = os.path.join(ready, "version")
        if os.path.exists(stamp) and open(stamp).read() == version:
            return ready
        making = os.path.join(CACHE, "making")
        shutil.rmtree(making, ignore_errors=True)
        os.mkdir(making)
        try:
            _make(making)
        except OSError as e:
            raise LabError("%s: %s" % (e.filename or making, e.strerror)) from None
        with open(os.path.join(making, "version"), "w") as f:
            f.write(version)
        shutil.rmtree(ready, ignore_errors=True)
        os.rename(making, ready)
        return ready


if __name__ == "__main__":
    import sys
    try:
        print(prepare())
    except LabError as e:
        sys.exit("lab: %s" % e)
