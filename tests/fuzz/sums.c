/* sums.c: checksums of the formats that have them; see sparse.h. */
#include "sparse.h"

#include <stdlib.h>
#include <string.h>

static void write_sum(struct sparse *s, uint64_t off, const uint8_t *sum, size_t len)
{
    if (s->sums >= SPARSE_SUMS)
        return;
    memcpy(s->sum[s->sums], sum, len);
    sparse_write(s, off, s->sum[s->sums++], len);
}

/* The len bytes at off with the sum's field as zero, when they begin with magic; NULL otherwise. */
static uint8_t *covered(const struct sparse *s, uint64_t off, size_t len, const char *magic,
                        size_t sum_off, size_t sum_len)
{
    uint8_t head[8];
    uint8_t *b;

    if (len < sizeof(head) || off > s->size || len > s->size - off)
        return NULL;
    sparse_read(s, off, head, sizeof(head));
    if (memcmp(head, magic, strlen(magic)) != 0)
        return NULL;
    b = malloc(len);
    if (!b)
        abort();
    sparse_read(s, off, b, len);
    memset(b + sum_off, 0, sum_len);
    return b;
}

/* ---- VHD: one's complement of the sum of all bytes, big endian ---- */

static void fix_vhd(struct sparse *s, uint64_t off, size_t len, const char *magic, size_t sum_off)
{
    uint8_t *b = covered(s, off, len, magic, sum_off, 4), out[4];
    uint32_t sum = 0;

    if (!b)
        return;
    for (size_t i = 0; i < len; i++)
        sum += b[i];
    sum = ~sum;
    for (unsigned i = 0; i < 4; i++)
        out[i] = (uint8_t)(sum >> (24 - 8 * i));
    write_sum(s, off + sum_off, out, sizeof(out));
    free(b);
}

/* ---- VHDX: CRC-32C, little endian ---- */

static uint32_t crc32c(const uint8_t *b, size_t len)
{
    static uint32_t table[256];
    uint32_t crc = UINT32_MAX;

    for (uint32_t i = 0; table[255] == 0 && i < 256; i++) {
        uint32_t c = i;

        for (unsigned k = 0; k < 8; k++)
            c = c & 1 ? c >> 1 ^ 0x82f63b78u : c >> 1;
        table[i] = c;
    }
    for (size_t i = 0; i < len; i++)
        crc = crc >> 8 ^ table[(crc ^ b[i]) & 0xff];
    return ~crc;
}

static void fix_vhdx(struct sparse *s, uint64_t off, size_t len, const char *magic)
{
    uint8_t *b = covered(s, off, len, magic, 4, 4), out[4];
    uint32_t crc;

    if (!b)
        return;
    crc = crc32c(b, len);
    for (unsigned i = 0; i < 4; i++)
        out[i] = (uint8_t)(crc >> 8 * i);
    write_sum(s, off + 4, out, sizeof(out));
    free(b);
}

/* ---- LUKS2: SHA-256 (FIPS 180-4) over header and JSON area ---- */

static uint32_t rotr(uint32_t x, unsigned n)
{
    return x >> n | x << (32 - n);
}

/* The first 32 bits of the fractional part of a prime's square or cube root, which is how the
 * standard defines its constants: the low 32 bits of the largest r with r^2 <= prime * 2^64, or r^3
 * <= prime * 2^96. */
static uint32_t fraction(unsigned prime, bool cube)
{
    unsigned __int128 low = 0, high = (unsigned __int128)1 << 36;
    unsigned __int128 bound = (unsigned __int128)prime << (cube ? 96 : 64);

    while (high - low > 1) {
        unsigned __int128 mid = (low + high) / 2;

        if (mid * mid * (cube ? mid : 1) <= bound)
            low = mid;
        else
            high = mid;
    }
    return (uint32_t)low;
}

static uint32_t sha_k[64], sha_h[8];

static void sha_init(void)
{
    unsigned n = 0;

    for (unsigned p = 2; n < 64; p++) {
        bool prime = true;

        for (unsigned d = 2; d < p && prime; d++)
            prime = p % d != 0;
        if (!prime)
            continue;
        if (n < 8)
            sha_h[n] = fraction(p, false);
        sha_k[n++] = fraction(p, true);
    }
}

static void sha_block(uint32_t h[8], const uint8_t *p)
{
    uint32_t w[64], v[8];

    for (unsigned i = 0; i < 16; i++)
        w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 |
               (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
    for (unsigned i = 16; i < 64; i++)
        w[i] = (rotr(w[i - 2], 17) ^ rotr(w[i - 2], 19) ^ w[i - 2] >> 10) + w[i - 7] +
               (rotr(w[i - 15], 7) ^ rotr(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 16];
    memcpy(v, h, sizeof(v));
    for (unsigned i = 0; i < 64; i++) {
        uint32_t t1 = v[7] + (rotr(v[4], 6) ^ rotr(v[4], 11) ^ rotr(v[4], 25)) +
                      ((v[4] & v[5]) ^ (~v[4] & v[6])) + sha_k[i] + w[i];
        uint32_t t2 = (rotr(v[0], 2) ^ rotr(v[0], 13) ^ rotr(v[0], 22)) +
                      ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));

        memmove(v + 1, v, 7 * sizeof(v[0]));
        v[4] += t1;
        v[0] = t1 + t2;
    }
    for (unsigned i = 0; i < 8; i++)
        h[i] += v[i];
}

static void sha256(const uint8_t *b, size_t len, uint8_t ret[32])
{
    uint8_t last[128] = {0};
    size_t rest = len % 64, padded = rest < 56 ? 64 : 128;
    uint32_t h[8];

    if (sha_h[0] == 0)
        sha_init();
    memcpy(h, sha_h, sizeof(h));
    for (size_t i = 0; i + 64 <= len; i += 64)
        sha_block(h, b + i);
    memcpy(last, b + len - rest, rest);
    last[rest] = 0x80;
    for (unsigned i = 0; i < 8; i++)
        last[padded - 1 - i] = (uint8_t)((uint64_t)len * 8 >> 8 * i);
    for (size_t i = 0; i < padded; i += 64)
        sha_block(h, last + i);
    for (unsigned i = 0; i < 32; i++)
        ret[i] = (uint8_t)(h[i / 4] >> (24 - 8 * (i % 4)));
}

#define LUKS2_SUM 448u
#define LUKS2_SUM_LEN 64u
#define LUKS2_MAX (4u << 20)

/* Returns the length that the header states, 0: none. */
static uint64_t fix_luks2(struct sparse *s, uint64_t off, const char *magic)
{
    uint8_t head[512], sum[32], *b;
    uint64_t len = 0;

    if (off > s->size || s->size - off < sizeof(head))
        return 0;
    sparse_read(s, off, head, sizeof(head));
    for (unsigned i = 8; i < 16; i++)
        len = len << 8 | head[i];
    if (head[6] != 0 || head[7] != 2 || len < 4096 || len > LUKS2_MAX)
        return 0;
    b = covered(s, off, (size_t)len, magic, LUKS2_SUM, LUKS2_SUM_LEN);
    if (!b)
        return 0;
    sha256(b, (size_t)len, sum);
    write_sum(s, off + LUKS2_SUM, sum, sizeof(sum));
    free(b);
    return len;
}

void sparse_fix(struct sparse *s)
{
    uint64_t second;

    fix_vhd(s, 0, 512, "conectix", 64);
    fix_vhd(s, 512, 1024, "cxsparse", 36);
    if (s->size >= 512)
        fix_vhd(s, s->size - 512, 512, "conectix", 64);
    fix_vhdx(s, 64u << 10, 4096, "head");
    fix_vhdx(s, 128u << 10, 4096, "head");
    fix_vhdx(s, 192u << 10, 64u << 10, "regi");
    fix_vhdx(s, 256u << 10, 64u << 10, "regi");
    second = fix_luks2(s, 0, "LUKS\xba\xbe");
    if (second)
        fix_luks2(s, second, "SKUL\xba\xbe");
}
