/* bytes.h: integers in disk images, read and written byte by byte: no alignment, no host order, no struct
 * cast onto disk bytes. For the files in src/format only. */
#ifndef DISKGUARD_FORMAT_BYTES_H
#define DISKGUARD_FORMAT_BYTES_H

#include <stdint.h>

static inline uint32_t be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline uint64_t be64(const uint8_t *p)
{
    return (uint64_t)be32(p) << 32 | be32(p + 4);
}

static inline uint32_t le32(const uint8_t *p)
{
    return (uint32_t)p[3] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[1] << 8 | p[0];
}

static inline void put_be64(uint8_t *p, uint64_t value)
{
    for (int i = 7; i >= 0; i--, value >>= 8)
        p[i] = (uint8_t)value;
}

#endif
