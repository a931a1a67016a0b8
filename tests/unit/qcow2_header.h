/* qcow2_header.h: small qcow2 headers for tests, built byte by byte (QEMU docs/interop/qcow2,
 * "Header"). */
#ifndef QCOW2_HEADER_H
#define QCOW2_HEADER_H

#include <stdint.h>
#include <string.h>

static inline void header_put(uint8_t *b, size_t off, unsigned width, uint64_t value)
{
    for (unsigned i = width; i > 0; i--, value >>= 8)
        b[off + i - 1] = (uint8_t)value;
}

/* 64 KiB clusters, L1 at 0x30000, as qemu-img 7.2 writes it; version 3 with a table of `rows`
 * feature names behind an unknown extension of `gap` bytes (0: none). b has 4096 bytes. The file
 * must be longer than 0x30000. */
static inline void header_build(uint8_t *b, uint32_t version, uint64_t size, unsigned rows,
                                unsigned gap)
{
    memset(b, 0, 4096);
    header_put(b, 0, 4, 0x514649fb);
    header_put(b, 4, 4, version);
    header_put(b, 20, 4, 16);
    header_put(b, 24, 8, size);
    header_put(b, 36, 4, 64);
    header_put(b, 40, 8, 0x30000);
    header_put(b, 48, 8, 0x10000);
    header_put(b, 56, 4, 1);
    if (version < 3)
        return;
    header_put(b, 96, 4, 4);
    header_put(b, 100, 4, 112);
    size_t at = 112;
    if (gap) {
        header_put(b, at, 4, 0x12345678);
        header_put(b, at + 4, 4, gap);
        at += 8 + gap;
    }
    if (rows) {
        header_put(b, at, 4, 0x6803f857);
        header_put(b, at + 4, 4, rows * 48);
        for (unsigned i = 0; i < rows; i++) {
            b[at + 8 + i * 48] = 2;
            b[at + 9 + i * 48] = (uint8_t)i;
            memcpy(b + at + 10 + i * 48, "feature", 7);
        }
    }
}

#endif
