/* winpath.c: see winpath.h. */
#include "format/winpath.h"
#include "format/bytes.h"

#include <errno.h>
#include <string.h>

/* RFC 2781, section 2.2. The number of units, 0: half a pair. */
static unsigned decode(const uint8_t *p, size_t units, bool big_endian, uint32_t *ret)
{
    uint32_t high = big_endian ? be16(p) : le16(p), low;

    *ret = high;
    if (high < 0xd800 || high > 0xdfff)
        return 1;
    if (high > 0xdbff || units < 2)
        return 0;
    low = big_endian ? be16(p + 2) : le16(p + 2);
    if (low < 0xdc00 || low > 0xdfff)
        return 0;
    *ret = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
    return 2;
}

/* RFC 3629, section 3. */
static unsigned encode(uint32_t c, char ret[4])
{
    static const uint8_t lead[] = {0, 0x00, 0xc0, 0xe0, 0xf0};
    unsigned n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;

    for (unsigned i = n; i-- > 1; c >>= 6)
        ret[i] = (char)(0x80 | (c & 0x3f));
    ret[0] = (char)(lead[n] | c);
    return n;
}

int winpath_utf8(const uint8_t *p, size_t bytes, bool big_endian, char *ret, size_t size)
{
    size_t used = 0;

    if (bytes % 2 != 0)
        return -EUCLEAN;
    for (size_t i = 0; i < bytes;) {
        char out[4];
        uint32_t c;
        unsigned units = decode(p + i, (bytes - i) / 2, big_endian, &c), n;

        if (units == 0)
            return -EUCLEAN;
        if (c == 0)
            break;
        n = encode(c, out);
        if (used + n >= size)
            return -EUCLEAN;
        memcpy(ret + used, out, n);
        used += n;
        i += 2 * (size_t)units;
    }
    if (used == 0)
        return -EUCLEAN;
    ret[used] = '\0';
    return 0;
}

int winpath_follow(char *path)
{
    size_t skip = 0;

    /* "\\server\share", "\\?\C:\", "\dir" (of the current drive), "C:\dir", "C:dir" */
    if (path[0] == '\\' || (path[0] && path[1] == ':'))
        return -EUCLEAN;
    for (char *c = path; *c; c++)
        if (*c == '\\')
            *c = '/';
    while (path[skip] == '.' && path[skip + 1] == '/')
        for (skip += 2; path[skip] == '/'; skip++)
            ;
    memmove(path, path + skip, strlen(path + skip) + 1);
    return path[0] ? 0 : -EUCLEAN;
}
