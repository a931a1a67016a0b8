"""stackguest: the guest of the tests under libvirt, a boot sector that writes numbered sectors for ever.

Number n (1, 2, ...) fills one whole sector, each of its 128 words; it lies at sector FIRST + (n mod WINDOW) * STRIDE, so that neighbours are in
different clusters of 64 KiB. A batch of BATCH numbers is written at each key press (`key`: what is on the disk is known exactly), or at each
tick of the PC's timer, 18 a second (`free`: it writes while something else happens; `busy`: it also changes half a MiB of its memory at each tick, so that a migration
with little bandwidth does not end). Its state is in its memory, where the monitor can read it:

    STATE + 0  the last number that the disk took     STATE + 4  how many writes failed     STATE + 12  MAGIC
"""
STATE, MAGIC = 0x600, int.from_bytes(b"DGST", "little")
FIRST, WINDOW, STRIDE, BATCH = 256, 256, 129, 8
SECTORS = FIRST + WINDOW * STRIDE  # what of the disk it may write

_ORIGIN, _BUFFER = 0x7C00, 0x7E00


def sector(mode):
    code = bytearray()

    def emit(*parts):
        for part in parts:
            code.extend(part if isinstance(part, (bytes, bytearray)) else bytes([part]))

    def word(value):
        return value.to_bytes(2, "little")

    def long(value):
        return value.to_bytes(4, "little")

    def back(opcode, target):  # a short jump to what is above
        emit(opcode, (target - (len(code) + 2)) & 0xFF)

    emit(0xFA, 0x31, 0xC0, 0x8E, 0xD8, 0x8E, 0xC0, 0x8E, 0xD0)   # cli; xor ax, ax; mov ds, ax; mov es, ax; mov ss, ax
    emit(0xBC, word(_ORIGIN), 0xFB, 0xFC)                        # mov sp, origin; sti; cld
    emit(0x88, 0x16, word(STATE + 8))                            # mov [drive], dl
    emit(0x66, 0x31, 0xC0)                                       # xor eax, eax
    emit(0x66, 0xA3, word(STATE), 0x66, 0xA3, word(STATE + 4))   # mov [number], eax; mov [failed], eax
    emit(0x66, 0xC7, 0x06, word(STATE + 12), long(MAGIC))        # mov dword [magic], MAGIC
    batch = len(code)
    emit(*((0xB4, 0x00, 0xCD, 0x16) if mode == "key" else (0xF4,)))  # mov ah, 0; int 0x16   or   hlt
    if mode == "busy":
        emit(0x66, 0xA1, word(STATE), 0xBB, word(0x1000))        # mov eax, [number]; mov bx, 0x1000
        segment = len(code)
        emit(0x8E, 0xC3, 0x31, 0xFF, 0xB9, word(0x4000), 0xF3, 0x66, 0xAB)  # mov es, bx; xor di, di; mov cx, 0x4000; rep stosd
        emit(0x81, 0xC3, word(0x1000), 0x81, 0xFB, word(0x9000))  # add bx, 0x1000; cmp bx, 0x9000
        back(0x72, segment)                                      # jb segment
        emit(0x31, 0xDB, 0x8E, 0xC3)                             # xor bx, bx; mov es, bx
    emit(0xBD, word(BATCH))                                      # mov bp, BATCH
    following = len(code)
    emit(0x66, 0xA1, word(STATE), 0x66, 0x40)                    # mov eax, [number]; inc eax
    emit(0xBF, word(_BUFFER), 0xB9, word(128), 0xF3, 0x66, 0xAB)  # mov di, buffer; mov cx, 128; rep stosd
    emit(0x66, 0x25, long(WINDOW - 1))                           # and eax, WINDOW - 1
    emit(0x66, 0x69, 0xC0, long(STRIDE), 0x66, 0x05, long(FIRST))  # imul eax, eax, STRIDE; add eax, FIRST
    emit(0x66, 0xA3)                                             # mov [packet.lba], eax
    lba = len(code)
    emit(word(0), 0xBE)                                          # mov si, packet
    packet = len(code)
    emit(word(0), 0xB8, word(0x4300), 0x8A, 0x16, word(STATE + 8))  # mov ax, 0x4300 (extended write); mov dl, [drive]
    emit(0xCD, 0x13, 0x72)                                       # int 0x13; jc failed
    failed = len(code)
    emit(0, 0x66, 0xFF, 0x06, word(STATE), 0x4D)                 # inc dword [number]; dec bp
    back(0x75, following)                                        # jnz following
    back(0xEB, batch)                                            # jmp batch
    code[failed] = len(code) - (failed + 1)
    emit(0x66, 0xFF, 0x06, word(STATE + 4))                      # failed: inc dword [failed]
    back(0xEB, batch)                                            # jmp batch
    at = _ORIGIN + len(code)
    code[packet:packet + 2], code[lba:lba + 2] = word(at), word(at + 8)
    emit(0x10, 0x00, word(1), word(_BUFFER), word(0), bytes(8))  # packet: its size, one sector, from 0:buffer, to lba
    assert len(code) <= 446
    return bytes(code).ljust(510, b"\0") + b"\x55\xaa"


def check(read, number, exact=True):
    """What is wrong with a disk on which the guest wrote all up to `number` ([] nothing), and nothing else if exact. read(offset, length) gives bytes of the disk.
    Each place must have the number that the last one on the disk asks for; the one after it may have been on its way."""
    found = {}
    for place in range(WINDOW):
        sector_ = read((FIRST + place * STRIDE) * 512, 512)
        found[place] = int.from_bytes(sector_[:4], "little") if sector_ == sector_[:4] * 128 else sector_[:16].hex()
    if not all(isinstance(n, int) for n in found.values()):
        return ["at place %d: %s" % (p, n) for p, n in found.items() if not isinstance(n, int)]
    last = max(found.values())
    wrong = ["the last number is %d, wanted %d" % (last, number)] if last < number or exact and last > number + 1 else []
    for place, n in found.items():
        wanted = last - (last - place) % WINDOW
        if n != max(wanted, 0) and not (n == 0 and wanted <= 0):
            wrong.append("place %d has %d, wanted %d" % (place, n, wanted))
    return wrong
