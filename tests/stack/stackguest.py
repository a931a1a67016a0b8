"""stackguest: the guest of the tests under libvirt, a boot sector that writes numbered sectors for ever.

Number n (1, 2, ...) fills one whole sector, each of its 128 words; it lies at sector FIRST + (n mod WINDOW) * STRIDE, so that neighbours are in
different clusters of 64 KiB. A batch of BATCH numbers is written at each key press (`key`: what is on the disk is known exactly), or at each
tick of the PC's timer, 18 a second (`free`: it writes while something else happens). Its state is in its memory, where the monitor can read it:

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


def check(read, number):
    """What is wrong with a disk on which `number` is the last that the guest wrote ([] nothing). read(offset, length) gives bytes of the disk."""
    wrong = []
    for n in range(max(1, number - WINDOW + 1), number + 1):
        got = read((FIRST + n % WINDOW * STRIDE) * 512, 512)
        if got != n.to_bytes(4, "little") * 128:
            wrong.append("number %d: %s..." % (n, got[:8].hex()))
    return wrong
