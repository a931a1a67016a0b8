/* bytes.h: integers in disk images, read and written byte by byte: no alignment, no host order, no
 * struct cast onto disk bytes. For the files in src/format only. */
#ifndef DISKGUARD_FORMAT_BYTES_H
#define DISKGUARD_FORMAT_BYTES_H

#include <stdbool.h>
#include <stdint.h>

static inline uint16_t be16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

static inline uint32_t be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline uint64_t be64(const uint8_t *p)
{
    return (uint64_t)be32(p) << 32 | be32(p + 4);
}

static inline uint16_t le16(const uint8_t *p)
{
    return (uint16_t)(p[1] << 8 | p[0]);
}

static inline uint32_t le32(const uint8_t *p)
{
    return (uint32_t)p[3] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[1] << 8 | p[0];
}

static inline uint64_t le64(const uint8_t *p)
{
    return (uint64_t)le32(p + 4) << 32 | le32(p);
}

/* The lowest `width` bytes of value, 1..8. */
static inline void put_be(uint8_t *p, uint64_t value, unsigned width)
{
    for (unsigned i = width; i-- > 0; value >>= 8)
        p[i] = (uint8_t)value;
}

static inline void put_le(uint8_t *p, uint64_t value, unsigned width)
{
    for (unsigned i = 0; i < width; i++, value >>= 8)
        p[i] = (uint8_t)value;
}

/* A number of exactly n lower-case hexadecimal digits, at most 16. false: something else. */
static inline bool hex_number(const uint8_t *p, unsigned n, uint64_t *ret)
{
    *ret = 0;
    for (unsigned i = 0; i < n; i++) {
        unsigned digit = 16;

        if (p[i] >= '0' && p[i] <= '9')
            digit = p[i] - (unsigned)'0';
        else if (p[i] >= 'a' && p[i] <= 'f')
            digit = p[i] - (unsigned)'a' + 10;
        if (digit > 15)
            return false;
        *ret = *ret << 4 | digit;
    }
    return true;
}

#endif
