"""kinds: the kinds of images that the tests of all formats go through (check_format_seal.py, test_formats.py, the crash tests).

A kind says how an image is made, how guest data is written and how it grows, and which openers no header can stop, and why. Images are
made by qemu-img and cryptsetup where those can; what only other programs make is patched from those by role, or built by hand.
"""
import os
import struct
import subprocess

SECRET = ("--object", "secret,id=sec0,data=letmein")
MIB = 1 << 20
VHD_SIZE = 12345344  # its geometry is smaller than the size itself, so that it matters which of the two a reader takes
RAW = "opened with format=raw, any file is a disk; no header is looked at"
NO_HEADER = "the file has no header: its first byte is the guest's"
NOT_PROBED = "QEMU does not probe for it, so that it is raw where no format is given"
LATE = {  # openers that only the last extent of a seal stops: a crash while sealing leaves them the image to read; neither can write
    "vmdk": {"vmdkinfo": "libvmdk looks at neither version nor capacity, only at the descriptor, which is sealed last"},
    "vpc": {"vhdiinfo": "libvhdi looks at the footer, which is sealed after the copy at the start, the only one that QEMU reads"},
}
ALL = "*"
PROBED = ("info probed", "system probed")


class Kind:
    """format: as diskguard names it ("-": a plain file); qemu: the driver ("": QEMU has none for it); size: for qemu-img create; build: makes the image in
    place of qemu-img; patch: changes it afterwards; fill: commands for qemu-io that put data in; grow: those that allocate more, one by one; resize: QEMU
    can; cannot: {opener, or ALL: why it cannot refuse}; huge: too long to be read as a whole; files: all that belong to it; writes: QEMU can write to
    it; mask: {what: function(bytearray)} takes out what differs from one run to the next; door: the file beside it through which programs open it;
    guarded: False: opened by itself it is a plain file, which many may write to."""

    def __init__(self, name, fmt, qemu=None, size=8 * MIB, options="", *, file="image", build=None, patch=None, fill=("write -P 7 0 64k",),
                 grow=("write -P 8 1M 64k", "write -P 9 3M 1M", "write -P 10 6M 1500k"), resize=False, cannot=None, secret=False,
                 huge=False, writes=True, mask=None, tools=(), door=None, guarded=True):
        self.name, self.format, self.qemu, self.size, self.options = name, fmt, fmt if qemu is None else qemu, size, options
        self.file, self.build, self.patch, self.fill, self.grow, self.resize = file, build, patch, fill, grow, resize
        self.secret, self.huge, self.writes, self.mask, self.tools = secret, huge, writes, mask or {}, tools
        self.door, self.guarded = door, guarded
        self.cannot = {"raw": RAW, **(cannot or {})}

    def may_refuse(self, opener, whole=True):
        """whole: of a seal that stands as a whole."""
        return (whole or opener not in LATE.get(self.format, ())) and ALL not in self.cannot and opener not in self.cannot

    def image(self, folder):
        return os.path.join(folder, self.file)

    def opened(self, path):
        return os.path.join(os.path.dirname(path), self.door) if self.door else path

    def create(self, folder):
        """The command that makes the image, without its data; None: build does."""
        return None if self.build else ["qemu-img", "create", "-q", *(SECRET if self.secret else ()), "-f", self.qemu,
                                        *(("-o", self.options) if self.options else ()), self.image(folder), str(self.size)]

    def spec(self, path):
        """Arguments that name the image and its format for qemu-img and qemu-io."""
        if self.secret:
            return [*SECRET, "--image-opts", "driver=%s,file.filename=%s,key-secret=sec0" % (self.qemu, path)]
        return ["-f", self.qemu, self.opened(path)]

    def unlocked(self, path):
        """The same without QEMU's own locks, so that only the header can refuse."""
        return [*(SECRET if self.secret else ()), "--image-opts", "driver=%s,file.driver=file,file.locking=off,file.filename=%s%s" %
                (self.qemu, self.opened(path), ",key-secret=sec0" if self.secret else "")]

    def drive(self, path, options=""):
        """Arguments of qemu-system for a disk."""
        return [*(SECRET if self.secret else ()), "-drive", "if=none,id=d,file=%s,format=%s%s%s" %
                (self.opened(path), self.qemu, ",key-secret=sec0" if self.secret else "", options), "-device", "virtio-blk-pci,drive=d"]

    def make(self, folder, fill=True):
        image = self.image(folder)
        if self.build:
            self.build(self, folder, image)
        else:
            command(self.create(folder), tries=3 if self.secret else 1)
        if self.patch:
            edit(image, self.patch)
        if fill and self.fill and self.qemu and self.writes:
            command(["qemu-io", *self.spec(image), *[w for c in self.fill for w in ("-c", c)]])
        return image


def command(argv, tries=1, **kw):
    for left in range(tries, 0, -1):  # a loaded host lets LUKS fail: "Unable to get accurate CPU usage"
        p = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=False, **kw)
        if p.returncode == 0:
            return
        if left == 1:
            raise RuntimeError("%s: %s" % (" ".join(argv), p.stdout.decode(errors="replace")))


def edit(path, function):
    with open(path, "rb") as f:
        data = bytearray(f.read())
    function(data)
    with open(path, "wb") as f:
        f.write(data)


# ---- VHD ----

def vhd_checksum(data, at, length, field):
    data[at + field:at + field + 4] = bytes(4)
    data[at + field:at + field + 4] = struct.pack(">I", ~sum(data[at:at + length]) & 0xffffffff)


def vhd_places(data):
    return [at for at in (0, len(data) - 512) if data[at:at + 8] == b"conectix"]


def vhd_patch(*fields):
    """Writes fields of the footer in each copy: (offset, bytes)."""
    def patch(data):
        for at in vhd_places(data):
            for offset, value in fields:
                data[at + offset:at + offset + len(value)] = value
            vhd_checksum(data, at, 512, 64)
    return patch


def creator(name):
    return vhd_patch((28, name))


def vhd_differencing(data):
    """Type 4 and a parent's name. QEMU looks at neither and opens it as a dynamic one."""
    vhd_patch((60, struct.pack(">I", 4)))(data)
    name = "parent.vhd".encode("utf-16-be")
    data[512 + 64:512 + 64 + len(name)] = name
    vhd_checksum(data, 512, 1024, 36)


def vhd_mask(data):
    """Time and UUID of the creation, and the sum over them, in each copy."""
    for at in vhd_places(data):
        data[at + 24:at + 28] = bytes(4)
        data[at + 64:at + 84] = bytes(20)
    if data[512:520] == b"cxsparse":
        data[512 + 36:512 + 40] = bytes(4)


def vhdx_mask(data):
    """The headers' sequence numbers, the GUIDs of file, data and log, and the sums over them; the log, which carries one of the GUIDs; the disk's id (page 83)
    among the metadata; the creator's GUIDs are none."""
    for at in (0x10000, 0x20000):
        log_len, log_off = struct.unpack_from("<IQ", data, at + 68)
        data[at + 4:at + 64] = bytes(60)
        if data[at:at + 4] == b"head":
            data[log_off:log_off + log_len] = bytes(log_len)
    page83 = bytes.fromhex("ab12cabee6b22345" "93efc309e000c746")
    for table in range(0x200000, min(len(data), 0x1000000), 0x100000):
        if data[table:table + 8] == b"metadata":
            for entry in range(table + 32, table + 32 * 6, 32):
                if data[entry:entry + 16] == page83:
                    at = table + struct.unpack_from("<I", data, entry + 16)[0]
                    data[at:at + 16] = bytes(16)


def vdi_mask(data):
    """The UUIDs of the image, of its last snapshot and of its parents."""
    data[0x188:0x188 + 64] = bytes(64)


def vmdk_mask(data):
    """The content id (CID), which QEMU draws at random when it first writes. As a number without leading zeros it moves what follows it."""
    head = bytes(data[:20480])
    at = head.find(b"\nCID=")
    if at < 0:
        return
    end, stop = head.index(b"\n", at + 1), (head + b"\0").index(0, at)
    data[at + 5:stop] = head[end:stop].ljust(stop - at - 5, b"\0")
    if head.startswith(b"#"):  # a file of its own
        data[:] = data.rstrip(b"\0")
    else:  # one that became shorter leaves its last digits behind the end of the text
        data[stop:stop + 8] = bytes(len(data[stop:stop + 8]))


def luks_mask(data):
    """Everything: salt, master key and all that is encrypted with it are random."""
    data[:] = b""


# ---- VMDK ----

def vmdk_stream(kind, folder, image):
    source = os.path.join(folder, "source.raw")
    command(["qemu-img", "create", "-q", "-f", "raw", source, str(kind.size)])
    command(["qemu-io", "-f", "raw", "-c", "write -P 7 0 1M", "-c", "write -P 8 4M 64k", source])
    command(["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", kind.options, source, image])
    os.unlink(source)


def vmdk_footer(data):
    """Makes a stream of it as VMware writes it: the header says that the grain directory is at the end, the footer says where."""
    while len(data) % 512:
        data += b"\0"
    header = bytes(data[:512])
    data += struct.pack("<QII", 1, 0, 3).ljust(512, b"\0") + header + bytes(512)
    data[56:64] = b"\xff" * 8


def vmdk_cowd(kind, folder, image):
    """An extent of ESX: header, a grain directory of one entry at sector 4, its grain table at sector 5, grains of 64 KiB. QEMU makes no grain tables in
    one (it writes over the header instead), and opens it by its descriptor only."""
    sectors = kind.size // 512
    header = b"COWD" + struct.pack("<IIIIIIIIII", 1, 3, sectors, 128, 4, 1, 64, sectors // 512, 16, 32)
    with open(image, "wb") as f:
        f.write(header.ljust(2048, b"\0") + struct.pack("<I", 5))
        f.truncate(65536)
    with open(os.path.join(folder, "image.vmdk"), "w", encoding="ascii") as f:
        f.write('# Disk DescriptorFile\nversion=1\nCID=01234567\nparentCID=ffffffff\ncreateType="vmfsSparse"\n\n# Extent description\n'
                'RW %d VMFSSPARSE "%s"\n\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = "4"\n' % (sectors, os.path.basename(image)))


# ---- Parallels ----

def parallels_v1(kind, _, image):
    """The old magic: entries of the table are sectors, a cluster has 504 of them."""
    sectors = kind.size // 512
    header = b"WithoutFreeSpace" + struct.pack("<IIIIIQIIIQ", 2, 16, sectors // 512, 504, (sectors + 503) // 504, sectors, 0, 0, 0, 0)
    with open(image, "wb") as f:
        f.write(header)
        f.truncate(65536)


# ---- LUKS ----

def luks_format(kind, folder, image):
    key = os.path.join(folder, "key")
    with open(key, "w", encoding="ascii") as f:
        f.write("letmein")
    with open(image, "wb") as f:
        f.truncate(kind.size)
    command(["cryptsetup", "luksFormat", "--batch-mode", "--type", kind.options, "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
             "--key-file", key, image])
    os.unlink(key)


# ---- without a header ----

def raw_file(content):
    def build(kind, _, image):
        with open(image, "wb") as f:
            f.truncate(kind.size)
            for at, data in content:
                f.seek(at)
                f.write(data)
    return build


def mbr(type_):
    entry = bytes([0x80 if type_ != 0xee else 0, 0, 2, 0, type_, 0, 0, 0]) + struct.pack("<II", 1 if type_ == 0xee else 63, 16000)
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"


GPT = b"EFI PART" + struct.pack("<III", 0x10000, 92, 0)
ISO = b"\1CD001\1\0" + b"diskguard".ljust(64) + bytes(8) + struct.pack("<I", 4096) + struct.pack(">I", 4096)
END = b"\xffCD001\1"


def vmdk_flat_extent(kind, folder, image):
    command(["qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", os.path.join(folder, "image.vmdk"), str(kind.size)])
    assert os.path.exists(image)


def named(name):
    return next(k for k in kinds() if k.name == name)


def kinds():
    """All of them. More qcow2 kinds: check_qcow2_seal.py."""
    yield Kind("qcow2-v3", "qcow2", resize=True)
    yield Kind("qcow2-v2", "qcow2", options="compat=0.10", resize=True)
    yield Kind("qcow2-512", "qcow2", options="cluster_size=512", resize=True)
    yield Kind("qcow", "qcow")
    yield Kind("qcow-sector", "qcow", size=8 * MIB + 512)
    yield Kind("qcow-1G", "qcow", size=1 << 30)
    for cluster, table in ((4096, 1), (4096, 4), (65536, 4), (65536, 16), (MIB, 2)):
        if (cluster, table) != (4096, 1):
            yield Kind("qed-%d-%d" % (cluster, table), "qed", options="cluster_size=%d,table_size=%d" % (cluster, table), resize=True)
    yield Kind("vdi", "vdi", mask={"uuids": vdi_mask})
    yield Kind("vdi-odd", "vdi", size=8 * MIB + 1536, mask={"uuids": vdi_mask})
    yield Kind("vdi-static", "vdi", options="static=on", mask={"uuids": vdi_mask})

    extent = {"extent raw": RAW}
    cid = {"CID": vmdk_mask}
    tools = ("vmdkinfo",)
    yield Kind("vmdk", "vmdk", mask=cid, tools=tools)
    for adapter in ("lsilogic", "buslogic", "legacyESX"):
        yield Kind("vmdk-" + adapter, "vmdk", options="adapter_type=" + adapter, mask=cid, tools=tools)
    yield Kind("vmdk-hwversion", "vmdk", options="hwversion=11,toolsversion=10272", mask=cid, tools=tools)
    yield Kind("vmdk-compat6", "vmdk", options="compat6=on", mask=cid, tools=tools)
    yield Kind("vmdk-zeroed-grain", "vmdk", options="zeroed_grain=on", mask=cid, tools=tools)
    yield Kind("vmdk-stream", "vmdk", options="subformat=streamOptimized", build=vmdk_stream, writes=False, mask=cid, tools=tools)
    yield Kind("vmdk-stream-footer", "vmdk", options="subformat=streamOptimized", build=vmdk_stream, patch=vmdk_footer, writes=False, mask=cid,
               tools=tools)
    yield Kind("vmdk-flat", "vmdk", options="subformat=monolithicFlat", file="image.vmdk", cannot=extent, mask=cid, tools=tools)
    yield Kind("vmdk-split-sparse", "vmdk", size=5 << 30, options="subformat=twoGbMaxExtentSparse", file="image.vmdk", huge=True, mask=cid,
               grow=("write -P 8 1M 64k", "write -P 9 3G 1M", "write -P 10 4500M 64k"), tools=tools)
    yield Kind("vmdk-split-flat", "vmdk", size=5 << 30, options="subformat=twoGbMaxExtentFlat", file="image.vmdk", huge=True, cannot=extent, mask=cid,
               grow=("write -P 8 1M 64k", "write -P 9 3G 1M", "write -P 10 4500M 64k"), tools=tools)
    yield Kind("vmdk-cowd", "vmdk", build=vmdk_cowd, file="image-cowd.vmdk", door="image.vmdk", mask=cid)

    stamp = {"time, uuid, sum": vhd_mask}
    raw = {name: NOT_PROBED for name in PROBED}
    tools = ("vhdiinfo",)
    yield Kind("vpc", "vpc", size=VHD_SIZE, mask=stamp, tools=tools)
    yield Kind("vpc-force-size", "vpc", size=VHD_SIZE, options="force_size=on", mask=stamp, tools=tools)
    yield Kind("vpc-fixed", "vpc", size=VHD_SIZE, options="subformat=fixed", cannot=raw, mask=stamp, tools=tools)
    yield Kind("vpc-fixed-force-size", "vpc", size=VHD_SIZE, options="subformat=fixed,force_size=on", cannot=raw, mask=stamp, tools=tools)
    for name in (b"win ", b"vpc ", b"vbox", b"tap\0", b"d2v ", b"qem2", b"CTXS"):
        yield Kind("vpc-by-" + name.decode().strip(" \0"), "vpc", size=VHD_SIZE, options="force_size=on", patch=creator(name), mask=stamp, tools=tools)
    yield Kind("vpc-max-chs", "vpc", size=VHD_SIZE, options="force_size=on", mask=stamp, tools=tools,
               patch=vhd_patch((28, b"vpc "), (56, struct.pack(">HBB", 65535, 16, 255))))
    yield Kind("vpc-differencing", "vpc", size=VHD_SIZE, options="force_size=on", patch=vhd_differencing, mask=stamp, tools=())
    yield Kind("vpc-fixed-as-raw", "vpc", "raw", size=VHD_SIZE, build=lambda k, _, image: command(
        ["qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=fixed,force_size=on", image, str(k.size)]), cannot={ALL: NO_HEADER}, mask=stamp)

    guids = {"guids, sequence, log": vhdx_mask}
    yield Kind("vhdx", "vhdx", mask=guids, tools=tools)
    yield Kind("vhdx-1M", "vhdx", options="block_size=1M", mask=guids, tools=tools)
    yield Kind("vhdx-16M", "vhdx", size=32 * MIB, options="block_size=16M", mask=guids, tools=tools, grow=("write -P 8 17M 64k", "write -P 9 1M 1M"))
    yield Kind("vhdx-log-4M", "vhdx", options="log_size=4M,block_size=1M", mask=guids, tools=tools)
    yield Kind("vhdx-fixed", "vhdx", options="subformat=fixed,block_size=1M", mask=guids, tools=tools)

    yield Kind("parallels", "parallels")
    yield Kind("parallels-64K", "parallels", options="cluster_size=64k")
    yield Kind("parallels-v1", "parallels", build=parallels_v1)

    random = {"all of it": luks_mask}
    luks = "cipher-alg=aes-256,iter-time=10,key-secret=sec0"
    tools = ("luksDump", "isLuks")
    yield Kind("luks1-qemu", "luks", options=luks, size=2 * MIB, secret=True, mask=random, tools=tools, grow=("write -P 8 1M 64k",))
    yield Kind("luks1", "luks", options="luks1", size=5 * MIB, build=luks_format, secret=True, mask=random, tools=tools, grow=("write -P 8 1M 64k",))
    yield Kind("luks2", "luks", "", options="luks2", size=20 * MIB, build=luks_format, mask=random, tools=tools, cannot={
        name: "QEMU 7.2 knows no LUKS 2: to it the file is raw" for name in PROBED})

    nothing = {ALL: NO_HEADER}
    yield Kind("raw-mbr", "raw", build=raw_file([(0, mbr(0x83))]), cannot=nothing, fill=("write -P 7 1M 64k",), resize=True)
    yield Kind("raw-gpt", "raw", build=raw_file([(0, mbr(0xee)), (512, GPT)]), cannot=nothing, fill=("write -P 7 1M 64k",), resize=True)
    yield Kind("raw-by-name", "-", "raw", build=raw_file([]), file="disk.img", cannot=nothing, resize=True)
    yield Kind("iso", "iso", "raw", build=raw_file([(0x8000, ISO.ljust(2048, b"\0")), (0x8800, END)]), cannot=nothing, fill=("write -P 7 1M 64k",))
    yield Kind("flat-extent", "-", "raw", build=vmdk_flat_extent, file="image-flat.vmdk", cannot=nothing, guarded=False)
