"""guestboot: a boot sector, as bytes. It is the whole guest of the tests with real virtual machines.

At each boot it writes 'B' to the debug port 0xe9, reads sector 1 of its disk through the BIOS (int 13h), adds one to the 16-bit counter at
its start, writes MARKER behind it, writes the sector back, says 'W' ('E' when the BIOS reports an error) and halts for ever.
"""
MARKER = b"diskguard guest was here"
COUNTER_OFFSET = 512           # bytes from the start of the disk
MARKER_OFFSET = 512 + 2

_ORIGIN, _BUFFER = 0x7C00, 0x7E00


def sector():
    code = bytearray()

    def emit(*parts):
        for part in parts:
            code.extend(part if isinstance(part, (bytes, bytearray)) else bytes([part]))

    def word(value):
        return value.to_bytes(2, "little")

    emit(0xFA, 0x31, 0xC0)                          # cli; xor ax, ax
    emit(0x8E, 0xD8, 0x8E, 0xC0, 0x8E, 0xD0)        # mov ds, ax; mov es, ax; mov ss, ax
    emit(0xBC, word(_ORIGIN), 0xFB, 0xFC)           # mov sp, origin; sti; cld
    emit(0xB0, b"B", 0xE6, 0xE9)                    # mov al, 'B'; out 0xe9, al
    emit(0xB8, word(0x0201))                        # mov ax, 0x0201     read one sector
    emit(0xBB, word(_BUFFER))                       # mov bx, buffer
    emit(0xB9, word(0x0002), 0xB6, 0x00)            # mov cx, 2 (cylinder 0, sector 2 = LBA 1); mov dh, 0; dl is the boot drive
    emit(0xCD, 0x13, 0x72)                          # int 0x13; jc fail
    fail1 = len(code)
    emit(0)
    emit(0xFF, 0x06, word(_BUFFER))                 # inc word [buffer]
    emit(0xBE)                                      # mov si, marker
    marker_at = len(code)
    emit(word(0))
    emit(0xBF, word(_BUFFER + 2))                   # mov di, buffer + 2
    emit(0xB9, word(len(MARKER)), 0xF3, 0xA4)       # mov cx, length; rep movsb
    emit(0xB8, word(0x0301))                        # mov ax, 0x0301     write one sector
    emit(0xBB, word(_BUFFER))                       # mov bx, buffer
    emit(0xB9, word(0x0002), 0xB6, 0x00)            # mov cx, 2; mov dh, 0
    emit(0xCD, 0x13, 0x72)                          # int 0x13; jc fail
    fail2 = len(code)
    emit(0)
    emit(0xB0, b"W", 0xEB, 0x02)                    # mov al, 'W'; jmp say
    fail = len(code)
    emit(0xB0, b"E")                                # fail: mov al, 'E'
    emit(0xE6, 0xE9)                                # say: out 0xe9, al
    emit(0xF4, 0xEB, 0xFD)                          # halt: hlt; jmp halt
    for at in (fail1, fail2):
        code[at] = fail - (at + 1)
    code[marker_at:marker_at + 2] = word(_ORIGIN + len(code))
    emit(MARKER)
    assert len(code) <= 446
    return bytes(code).ljust(510, b"\0") + b"\x55\xaa"


if __name__ == "__main__":
    import sys
    sys.stdout.buffer.write(sector())
