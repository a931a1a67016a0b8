/* text.h: the small text files that are not claim records: `datastore`, hosts/<uuid>,
 * STATE_DIR/installation. Pure.
 *
 * One shape for all: the line "<magic> <version>", lines "name=value" in a fixed order, and the
 * line "sum=<8 hex digits>", the CRC-32 (zlib's crc32) of every byte before it, as in
 * include/diskguard/record.h. A value is printable ASCII and may hold spaces; free text is
 * percent-encoded by the caller (base_escape). */
#ifndef DISKGUARD_TEXT_H
#define DISKGUARD_TEXT_H

#include "base/base.h"

struct text_field {
    const char *name;
    char *value; /* input of text_emit(), output of text_parse() */
    size_t size; /* size of value, with its NUL */
};
#define TEXT_FIELD(name, array) ((struct text_field){(name), (array), sizeof(array)})

/* 0, -EINVAL (a value that is not printable) or -ENAMETOOLONG. */
DG_MUST_CHECK int text_emit(const char *magic, unsigned version, const struct text_field *f,
                            size_t n, char *ret, size_t size, size_t *ret_len);

/* Parses a text that has these fields, in this order, and nothing else. The values are filled only
 * on success. 0; -EBADMSG; -EPROTONOSUPPORT: a newer version, with a right checksum. */
DG_MUST_CHECK int text_parse(const char *text, size_t len, const char *magic, unsigned version,
                             const struct text_field *f, size_t n);

#endif
