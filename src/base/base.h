/* base.h: what every module uses: cleanup attributes, explanations, texts for files, shells and
 * JSON, numbers, uuids, time. No I/O but getrandom. */
#ifndef DISKGUARD_BASE_H
#define DISKGUARD_BASE_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include "diskguard/layout.h"

#define DG_MUST_CHECK __attribute__((warn_unused_result))
#define DG_PRINTF(f, a) __attribute__((format(printf, f, a)))

#define _cleanup_(f) __attribute__((cleanup(f)))
static inline void base_freep(void *p)
{
    free(*(void **)p);
}
static inline void base_closep(int *fd)
{
    if (*fd >= 0)
        /* only for descriptors whose close cannot lose data: read-only ones and directories */
        close(*fd);
}
#define _cleanup_free_ _cleanup_(base_freep)
#define _cleanup_close_ _cleanup_(base_closep)

/* Takes a descriptor out of a _cleanup_close_ variable. */
static inline int base_steal_fd(int *fd)
{
    int r = *fd;
    *fd = -1;
    return r;
}

#define DG_MIN(a, b) ((a) < (b) ? (a) : (b))
#define DG_MAX(a, b) ((a) > (b) ? (a) : (b))

typedef char dg_uuid[DG_UUID_LEN + 1]; /* text form, NUL-terminated */

/* An explanation for the person in front of the program: one line, no newline, names the thing and
 * the way out. */
struct why {
    char text[768];
};
void why_set(struct why *why, const char *fmt, ...) DG_PRINTF(2, 3); /* why may be NULL */

/* Writes 2 * n lower-case hexadecimal digits and a NUL to ret. */
void base_hex(const void *data, size_t n, char *ret);
/* Decodes exactly n bytes from 2 * n hexadecimal digits (no NUL needed). 0 or -EINVAL. */
DG_MUST_CHECK int base_unhex(const char *text, size_t n, uint8_t *ret);

/* Percent-encodes bytes below 0x21, above 0x7e and '%' (RFC 3986 2.1). 0 or -ENAMETOOLONG. */
DG_MUST_CHECK int base_escape(const char *text, char *ret, size_t size);
/* The reverse. 0, -EINVAL (bad escape, or an encoded NUL) or -ENAMETOOLONG. */
DG_MUST_CHECK int base_unescape(const char *text, size_t len, char *ret, size_t size);

/* Undoes the octal escapes of /proc/self/mountinfo (proc(5)) in place. */
void base_unescape_octal(char *s);

/* A word for sh(1), for a command that a person may copy. It is in single quotes where it needs
 * them, and it is never read as an option. Returns ret, or "PATH" where it does not fit, because
 * a command with half a path would act on something else. */
const char *base_quote(const char *text, char *ret, size_t size);

/* File names are bytes, JSON is UTF-8 (RFC 3629): each byte that is no part of it becomes U+FFFD.
 * What does not fit is cut off between two characters; 3 * strlen(text) + 1 bytes are always
 * enough. */
void base_utf8(const char *text, char *ret, size_t size);

/* Parses a whole decimal number (no sign, no space, no surplus). 0, -EINVAL or -ERANGE. */
DG_MUST_CHECK int base_u64(const char *text, uint64_t *ret);
/* As base_u64, with an optional suffix K, M, G, T (powers of 1024). */
DG_MUST_CHECK int base_size(const char *text, uint64_t *ret);

bool base_uuid_ok(const char *text); /* canonical lower-case form */
DG_MUST_CHECK int base_uuid_random(dg_uuid ret);

/* The time now, as "2026-11-22T10:00:00Z". For people only. */
void base_time_text(char ret[32]);
/* Milliseconds of CLOCK_MONOTONIC. */
uint64_t base_now_ms(void);

#endif
