/* sparse.h: a file as the fuzzer writes it: a length, and a few pieces of bytes; all else is zero.
 * So a few hundred bytes of input are an image of any size, with tables at 2 MiB and a footer at
 * its end.
 *
 * The input, all little endian:
 *     0   8  length of the file, bytes (at most INT64_MAX)
 *     8   8  the size that a person gives to rescue, bytes
 *    16   1  options: bit 0 checksums are made right after decoding; bits 1..3 the holder's name
 *    17      pieces, up to the end: 6 bytes offset (bit 47: counted back from the end of the file),
 * 2 bytes length, then the bytes. What lies outside of the file is left out; of two pieces that
 * overlap the later one counts. make_seeds.py writes it; what is said here is said there again. */
#ifndef DISKGUARD_FUZZ_SPARSE_H
#define DISKGUARD_FUZZ_SPARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SPARSE_HEAD 17u
#define SPARSE_PIECE_HEAD 8u
#define SPARSE_FROM_END (1ull << 47)
#define SPARSE_FIX 0x01u
#define SPARSE_PIECES 96u /* more in an input are left out */
#define SPARSE_EDITS 160u /* sparse_write() */
#define SPARSE_SUMS 16u

struct sparse {
    uint64_t size, given;
    uint8_t options;
    unsigned n, sums;
    struct {
        uint64_t off;
        size_t len;
        const uint8_t *data;
    } piece[SPARSE_PIECES + SPARSE_EDITS];
    uint8_t sum[SPARSE_SUMS][32]; /* checksums that sparse_fix() wrote */
};

/* False: shorter than the head. data stays in use. */
bool sparse_decode(struct sparse *s, const uint8_t *data, size_t size);
/* The range must lie inside the file. */
void sparse_read(const struct sparse *s, uint64_t off, void *buf, size_t len);
/* data stays in use. Set n back to what it was to undo it. */
void sparse_write(struct sparse *s, uint64_t off, const void *data, size_t len);

/* sums.c: makes the checksums right of whatever stands at the places where VHD, VHDX and LUKS2 have
 * them, so that a mutation of a field behind a checksum gets past it. Calculated here, not by the
 * code under test. */
void sparse_fix(struct sparse *s);

#endif
