/* word.c: see word.h.
 *
 * word_sum() takes its state through a bijection for each word of the data (exclusive or, an odd
 * factor, a shift that can be undone): two inputs that differ in one word have different sums.
 * word_make() adds the residue of the number modulo a prime below 2^24: no power of two is a
 * multiple of it, so no single bit keeps the residue. */
#include "state/word.h"

#include <string.h>

#define FACTOR UINT64_C(0x9e3779b97f4a7c15)
#define CHECK_BITS 24
#define CHECK_PRIME 16777183u /* and a residue plus 2 fits into 24 bits */

static uint64_t step(uint64_t h, uint64_t w)
{
    h = (h ^ w) * FACTOR;
    return h ^ h >> 29;
}

uint64_t word_sum(const void *data, size_t n, uint64_t salt)
{
    const uint8_t *p = data;
    uint64_t h = step(FACTOR, salt), w;
    for (; n >= sizeof(w); p += sizeof(w), n -= sizeof(w)) {
        memcpy(&w, p, sizeof(w));
        h = step(h, w);
    }
    uint8_t tail[sizeof(w)] = {[sizeof(w) - 1] = (uint8_t)n}; /* n < 8 */
    memcpy(tail, p, n);
    memcpy(&w, tail, sizeof(w));
    return step(step(h, w), 0);
}

uint64_t word_seal(const void *data, size_t n, uint64_t salt, unsigned bits)
{
    uint64_t sum = word_sum(data, n, step(salt, bits)) & ~UINT64_C(3);
    return (sum ? sum : 4) | bits;
}

static uint64_t check_of(uint64_t value, uint64_t salt)
{
    return 2 + (value % CHECK_PRIME + salt % CHECK_PRIME) % CHECK_PRIME;
}

uint64_t word_make(uint64_t value, uint64_t salt)
{
    return value << CHECK_BITS | check_of(value, salt);
}

bool word_read(uint64_t word, uint64_t salt, uint64_t *ret)
{
    uint64_t value = word >> CHECK_BITS;
    if (check_of(value, salt) != (word & ((1u << CHECK_BITS) - 1)))
        return false;
    *ret = value;
    return true;
}
