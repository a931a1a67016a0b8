/* base.c: see base.h. */
#include "base/base.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

static const char lower_digits[] = "0123456789abcdef";

void why_set(struct why *why, const char *fmt, ...)
{
    va_list ap;

    if (!why)
        return;
    va_start(ap, fmt);
    vsnprintf(why->text, sizeof(why->text), fmt, ap);
    va_end(ap);
    for (char *p = why->text; *p; p++) /* Names come from the datastore: keep the line whole, and
                                          send the terminal no control character. */
        if (iscntrl((unsigned char)*p))
            *p = '?';
}

void base_hex(const void *data, size_t n, char *ret)
{
    const uint8_t *bytes = data;

    for (size_t i = 0; i < n; i++) {
        ret[2 * i] = lower_digits[bytes[i] >> 4];
        ret[2 * i + 1] = lower_digits[bytes[i] & 15];
    }
    ret[2 * n] = '\0';
}

static int digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return -1;
}

/* Accepts lower case only. Each value then has one spelling, and a flipped bit never yields the
 * same value. */
int base_unhex(const char *text, size_t n, uint8_t *ret)
{
    for (size_t i = 0; i < 2 * n; i++)
        if (digit(text[i]) < 0) /* a NUL ends the loop here, before anything behind it is read */
            return -EINVAL;
    for (size_t i = 0; i < n; i++)
        ret[i] = (uint8_t)(digit(text[2 * i]) << 4 | digit(text[2 * i + 1]));
    return 0;
}

static bool is_plain(unsigned char c)
{
    return c >= 0x21 && c <= 0x7e && c != '%';
}

int base_escape(const char *text, char *ret, size_t size)
{
    size_t need = 1, n = 0;

    for (const char *p = text; *p; p++)
        need += is_plain((unsigned char)*p) ? 1 : 3;
    if (need > size)
        return -ENAMETOOLONG;
    for (const char *p = text; *p; p++) {
        unsigned char c = (unsigned char)*p;
        if (is_plain(c)) {
            ret[n++] = *p;
            continue;
        }
        ret[n++] = '%'; /* upper-case digits: RFC 3986 2.1 */
        ret[n++] = (char)toupper(lower_digits[c >> 4]);
        ret[n++] = (char)toupper(lower_digits[c & 15]);
    }
    ret[n] = '\0';
    return 0;
}

/* Decodes the byte at text and says how many characters it takes; -1: there is none. */
static int escaped_byte(const char *text, size_t len, size_t *ret_used)
{
    if (text[0] != '%') {
        *ret_used = 1;
        return is_plain((unsigned char)text[0]) ? text[0] : -1;
    }
    if (len < 3)
        return -1;
    int high = digit((char)tolower((unsigned char)text[1]));
    int low = digit((char)tolower((unsigned char)text[2]));
    *ret_used = 3;
    return high < 0 || low < 0 || high + low == 0 ? -1 : high << 4 | low;
}

int base_unescape(const char *text, size_t len, char *ret, size_t size)
{
    size_t used, count = 0, n = 0;

    for (size_t i = 0; i < len; i += used, count++)
        if (escaped_byte(text + i, len - i, &used) < 0)
            return -EINVAL;
    if (count + 1 > size)
        return -ENAMETOOLONG;
    for (size_t i = 0; i < len; i += used)
        ret[n++] = (char)escaped_byte(text + i, len - i, &used);
    ret[n] = '\0';
    return 0;
}

void base_unescape_octal(char *s)
{
    char *to = s;

    for (; *s; s++) {
        if (s[0] == '\\' && s[1] >= '0' && s[1] <= '3' && s[2] >= '0' && s[2] <= '7' &&
            s[3] >= '0' && s[3] <= '7') {
            *to++ = (char)((s[1] - '0') * 64 + (s[2] - '0') * 8 + (s[3] - '0'));
            s += 3;
        } else {
            *to++ = *s;
        }
    }
    *to = '\0';
}

/* Characters that every shell takes literally, also at the start of a word. */
static bool is_word(const char *text)
{
    for (const unsigned char *s = (const unsigned char *)text; *s; s++)
        if (*s < 0x80 && !(*s >= 'a' && *s <= 'z') && !(*s >= 'A' && *s <= 'Z') &&
            !(*s >= '0' && *s <= '9') && !strchr("/._-+,:@%", *s))
            return false;
    return text[0] != '\0';
}

const char *base_quote(const char *text, char *ret, size_t size)
{
    const char *quote = is_word(text) ? "" : "'";
    size_t used = (size_t)snprintf(ret, size, "%s%s", quote, text[0] == '-' ? "./" : "");

    for (; *text && used < size; text++)
        used += (size_t)(*text == '\'' ? snprintf(ret + used, size - used, "'\\''")
                                       : snprintf(ret + used, size - used, "%c", *text));
    if (used < size)
        used += (size_t)snprintf(ret + used, size - used, "%s", quote);
    return used < size ? ret : "PATH";
}

/* Length of the valid UTF-8 sequence at s (RFC 3629), 0 if there is none. */
static size_t utf8_length(const unsigned char *s)
{
    size_t n = s[0] < 0x80   ? 1
               : s[0] < 0xc2 ? 0
               : s[0] < 0xe0 ? 2
               : s[0] < 0xf0 ? 3
               : s[0] < 0xf5 ? 4
                             : 0;

    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
        (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return n;
}

void base_utf8(const char *text, char *ret, size_t size)
{
    size_t used = 0;

    for (const unsigned char *s = (const unsigned char *)text; *s;) {
        size_t n = utf8_length(s), put = n ? n : 3;

        if (used + put >= size)
            break;
        memcpy(ret + used, n ? (const char *)s : "\xef\xbf\xbd", put);
        used += put;
        s += n ? n : 1;
    }
    ret[used] = '\0';
}

/* Reads the decimal number at the start of text and sets *ret_end behind it. Leading zeros are
 * refused, so that each value has one spelling. */
static int number(const char *text, uint64_t *ret, const char **ret_end)
{
    uint64_t value = 0;
    const char *p = text;

    if (!(*p >= '0' && *p <= '9') || (p[0] == '0' && p[1] >= '0' && p[1] <= '9'))
        return -EINVAL;
    for (; *p >= '0' && *p <= '9'; p++)
        if (__builtin_mul_overflow(value, 10u, &value) ||
            __builtin_add_overflow(value, (unsigned)(*p - '0'), &value))
            return -ERANGE;
    *ret = value;
    *ret_end = p;
    return 0;
}

int base_u64(const char *text, uint64_t *ret)
{
    uint64_t value;
    const char *end;
    int r = number(text, &value, &end);

    if (r < 0)
        return r;
    if (*end != '\0')
        return -EINVAL;
    *ret = value;
    return 0;
}

int base_size(const char *text, uint64_t *ret)
{
    static const char suffixes[] = "KMGT";
    uint64_t value;
    const char *end, *suffix;
    int r = number(text, &value, &end);

    if (r < 0)
        return r;
    if (*end != '\0') {
        suffix = strchr(suffixes, *end);
        if (!suffix || end[1] != '\0')
            return -EINVAL;
        unsigned shift = 10 * (unsigned)(suffix - suffixes + 1);
        if (value > UINT64_MAX >> shift)
            return -ERANGE;
        value <<= shift;
    }
    *ret = value;
    return 0;
}

static bool is_uuid_hyphen(size_t i)
{
    return i == 8 || i == 13 || i == 18 || i == 23; /* RFC 4122 section 3: 8-4-4-4-12 */
}

bool base_uuid_ok(const char *text)
{
    for (size_t i = 0; i < DG_UUID_LEN; i++)
        if (is_uuid_hyphen(i) ? text[i] != '-' : digit(text[i]) < 0)
            return false;
    return text[DG_UUID_LEN] == '\0';
}

int base_uuid_random(dg_uuid ret)
{
    uint8_t bytes[16];
    char hex[2 * sizeof(bytes) + 1];
    const char *next = hex;

    for (size_t n = 0; n < sizeof(bytes);) {
        ssize_t r = getrandom(bytes + n, sizeof(bytes) - n, 0);
        if (r < 0 && errno != EINTR)
            return -errno;
        if (r > 0)
            n += (size_t)r;
    }
    /* version 4 and the variant: RFC 4122 section 4.4 */
    bytes[6] = (uint8_t)((bytes[6] & 0x0f) | 0x40);
    bytes[8] = (uint8_t)((bytes[8] & 0x3f) | 0x80);
    base_hex(bytes, sizeof(bytes), hex);
    for (size_t i = 0; i < DG_UUID_LEN; i++)
        ret[i] = is_uuid_hyphen(i) ? '-' : *next++;
    ret[DG_UUID_LEN] = '\0';
    return 0;
}

void base_time_text(char ret[32])
{
    time_t now = time(NULL);
    struct tm tm;

    if (!gmtime_r(&now, &tm) || strftime(ret, 32, "%Y-%m-%dT%H:%M:%SZ", &tm) != 20)
        strcpy(ret,
               /* The clock is beyond the year 9999: keep the form of the text. */
               "1970-01-01T00:00:00Z");
}

uint64_t base_now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}
