#include "base/text.h"

#include <stdio.h>
#include <string.h>
#include <zlib.h>

#define SUM_LEN 13 /* "sum=xxxxxxxx\n" */

static void sum_line(const char *text, size_t len, char ret[SUM_LEN + 1])
{
    unsigned long sum = crc32(0L, (const Bytef *)text, (uInt)len);

    snprintf(ret, SUM_LEN + 1, "sum=%08lx\n", sum & 0xffffffffUL);
}

static bool printable(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (text[i] < 0x20 || text[i] > 0x7e)
            return false;
    return true;
}

int text_emit(const char *magic, unsigned version, const struct text_field *f, size_t n, char *ret,
              size_t size, size_t *ret_len)
{
    _cleanup_free_ char *buf = malloc(size);
    char sum[SUM_LEN + 1];
    size_t len;

    if (!buf)
        return -ENOMEM;
    len = (size_t)snprintf(buf, size, "%s %u\n", magic, version);
    for (size_t i = 0; i < n && len < size; i++) {
        if (!printable(f[i].value, strlen(f[i].value)))
            return -EINVAL;
        len += (size_t)snprintf(buf + len, size - len, "%s=%s\n", f[i].name, f[i].value);
    }
    if (len + SUM_LEN >= size)
        return -ENAMETOOLONG;
    sum_line(buf, len, sum);
    memcpy(buf + len, sum, sizeof(sum));
    len += SUM_LEN;
    memcpy(ret, buf, len + 1);
    *ret_len = len;
    return 0;
}

/* The line "<magic> <version>" at the start: its length and the version. */
static int parse_magic(const char *text, size_t len, const char *magic, size_t *ret_len,
                       uint64_t *ret_version)
{
    size_t m = strlen(magic);
    const char *end = memchr(text, '\n', len);
    char digits[16];
    size_t n;

    if (!end || (size_t)(end - text) < m + 2 || memcmp(text, magic, m) != 0 || text[m] != ' ')
        return -EBADMSG;
    n = (size_t)(end - text) - m - 1;
    if (n >= sizeof(digits))
        return -EBADMSG;
    memcpy(digits, text + m + 1, n);
    digits[n] = '\0';
    if (base_u64(digits, ret_version) < 0 || *ret_version == 0)
        return -EBADMSG;
    *ret_len = m + 1 + n + 1;
    return 0;
}

/* Goes over the lines once. Fills the values only when asked to, so that a bad last line leaves the
 * first value alone. */
static int parse_fields(const char *text, size_t len, const struct text_field *f, size_t n,
                        bool fill)
{
    size_t pos = 0;

    for (size_t i = 0; i < n; i++) {
        size_t name = strlen(f[i].name), value;
        const char *end = memchr(text + pos, '\n', len - pos);

        if (!end || (size_t)(end - text) < pos + name + 1 ||
            memcmp(text + pos, f[i].name, name) != 0 || text[pos + name] != '=')
            return -EBADMSG;
        pos += name + 1;
        value = (size_t)(end - text) - pos;
        if (value >= f[i].size || !printable(text + pos, value))
            return -EBADMSG;
        if (fill) {
            memcpy(f[i].value, text + pos, value);
            f[i].value[value] = '\0';
        }
        pos += value + 1;
    }
    return pos == len ? 0 : -EBADMSG;
}

int text_parse(const char *text, size_t len, const char *magic, unsigned version,
               const struct text_field *f, size_t n)
{
    char sum[SUM_LEN + 1];
    size_t body, skip;
    uint64_t found;
    int r;

    if (len <= SUM_LEN || len > UINT32_MAX)
        return -EBADMSG;
    body = len - SUM_LEN;
    sum_line(text, body, sum);
    if (text[body - 1] != '\n' || memcmp(text + body, sum, SUM_LEN) != 0)
        return -EBADMSG;
    r = parse_magic(text, body, magic, &skip, &found);
    if (r < 0)
        return r;
    if (found > version)
        return -EPROTONOSUPPORT;
    r = parse_fields(text + skip, body - skip, f, n, false);
    if (r < 0)
        return r;
    return parse_fields(text + skip, body - skip, f, n, true);
}
