/* fuzz_format.c: libFuzzer's entry into one format, or into all of them. Built once for each name
 * (meson.build here says which). A crash that it finds becomes an input of corpus/NAME.tar.xz:
 * corpus.py says how. */
#include "contract.h"

#ifndef FUZZ_FORMAT
#error "-DFUZZ_FORMAT=\"name\" is missing"
#endif

/* libFuzzer's interface; it has no header for C. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

#define PIECES 64u
struct frames {
    unsigned n;
    size_t at[PIECES], len[PIECES]; /* of a piece's bytes, in the input */
};

static size_t little(const uint8_t *p, unsigned width)
{
    size_t value = 0;

    while (width-- > 0)
        value = value << 8 | p[width];
    return value;
}

static void find_pieces(const uint8_t *data, size_t size, struct frames *ret)
{
    size_t at = SPARSE_HEAD;

    for (ret->n = 0; ret->n < PIECES && size > at + SPARSE_PIECE_HEAD; ret->n++) {
        size_t len = little(data + at + 6, 2);

        at += SPARSE_PIECE_HEAD;
        ret->at[ret->n] = at;
        ret->len[ret->n] = len < size - at ? len : size - at;
        at += ret->len[ret->n];
    }
}

/* The file ends in or near that piece. */
static void cut(uint8_t *data, size_t at, size_t len, unsigned seed)
{
    uint64_t end =
        (little(data + at - SPARSE_PIECE_HEAD, 6) & (SPARSE_FROM_END - 1)) + seed % (len + 64);

    for (unsigned i = 0; i < 8; i++, end >>= 8)
        data[i] = (uint8_t)end;
}

/* libFuzzer knows nothing of pieces and moves them out of step. Half of the mutations are its own;
 * the others leave every head where it is and change the bytes of one piece, the length of the file
 * and the options, or cut the file where a piece ends. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    struct frames frames;
    unsigned i;

    find_pieces(data, size, &frames);
    if (frames.n == 0 || seed % 2)
        return LLVMFuzzerMutate(data, size, max_size);
    i = seed / 16 % frames.n;
    switch (seed / 2 % 8) {
    case 0:
        cut(data, frames.at[i], frames.len[i], seed / 16 / frames.n);
        break;
    case 1:
        LLVMFuzzerMutate(data, SPARSE_HEAD, SPARSE_HEAD);
        break;
    default:
        if (frames.len[i] > 0)
            LLVMFuzzerMutate(data + frames.at[i], frames.len[i], frames.len[i]);
    }
    return size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    contract_check(FUZZ_FORMAT, data, size);
    return 0;
}
