/* sparse.c: see sparse.h. */
#include "sparse.h"

#include <assert.h>
#include <string.h>

static uint64_t le(const uint8_t *p, unsigned width)
{
    uint64_t value = 0;

    while (width-- > 0)
        value = value << 8 | p[width];
    return value;
}

static void add_piece(struct sparse *s, uint64_t off, const uint8_t *data, size_t len)
{
    if (off & SPARSE_FROM_END) {
        off &= ~SPARSE_FROM_END;
        if (off > s->size)
            return;
        off = s->size - off;
    }
    if (off >= s->size)
        return;
    if (len > s->size - off)
        len = (size_t)(s->size - off);
    if (len > 0)
        sparse_write(s, off, data, len);
}

bool sparse_decode(struct sparse *s, const uint8_t *data, size_t size)
{
    s->n = 0;
    s->sums = 0;
    if (size < SPARSE_HEAD)
        return false;
    s->size = le(data, 8) & INT64_MAX;
    s->given = le(data + 8, 8);
    s->options = data[16];
    data += SPARSE_HEAD;
    size -= SPARSE_HEAD;
    while (size > SPARSE_PIECE_HEAD && s->n < SPARSE_PIECES) {
        size_t len = (size_t)le(data + 6, 2);

        if (len > size - SPARSE_PIECE_HEAD)
            len = size - SPARSE_PIECE_HEAD;
        add_piece(s, le(data, 6), data + SPARSE_PIECE_HEAD, len);
        data += SPARSE_PIECE_HEAD + len;
        size -= SPARSE_PIECE_HEAD + len;
    }
    if (s->options & SPARSE_FIX)
        sparse_fix(s);
    return true;
}

void sparse_read(const struct sparse *s, uint64_t off, void *buf, size_t len)
{
    assert(off <= s->size && len <= s->size - off);
    memset(buf, 0, len);
    for (unsigned i = 0; i < s->n; i++) {
        uint64_t from = s->piece[i].off, to = from + s->piece[i].len;

        if (from < off)
            from = off;
        if (to > off + len)
            to = off + len;
        if (from < to)
            memcpy((uint8_t *)buf + (from - off), s->piece[i].data + (from - s->piece[i].off),
                   (size_t)(to - from));
    }
}

void sparse_write(struct sparse *s, uint64_t off, const void *data, size_t len)
{
    assert(s->n < SPARSE_PIECES + SPARSE_EDITS && off <= s->size && len <= s->size - off);
    s->piece[s->n].off = off;
    s->piece[s->n].len = len;
    s->piece[s->n++].data = data;
}
