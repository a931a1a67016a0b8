/* backing.h: the name of a backing file as QEMU's own formats store it, made into a link. For the
 * files in src/format only. */
#ifndef DISKGUARD_FORMAT_BACKING_H
#define DISKGUARD_FORMAT_BACKING_H

#include "format/format.h"

#include <string.h>

/* Calls fn for the name of `len` bytes at `off`, for a format links(). As in QEMU, bytes beyond
 * the end of the file count as zero, a zero ends the name, and an empty name is none. 0, what fn
 * returned, -EAGAIN, or -EUCLEAN: it is too long. */
static inline int backing_link(struct excerpt *v, uint64_t off, uint32_t len, const char *format,
                               int (*fn)(void *arg, const struct format_link *link), void *arg)
{
    struct format_link link = {.role = LINK_BACKING};
    const uint8_t *p;

    if (len >= sizeof(link.path) || strlen(format) >= sizeof(link.format))
        return -EUCLEAN;
    if (off >= v->file_size || len == 0)
        return 0;
    if (len > v->file_size - off)
        len = (uint32_t)(v->file_size - off);
    p = view_get(v, off, len);
    if (!p)
        return -EAGAIN;
    memcpy(link.path, p, len);
    if (link.path[0] == '\0')
        return 0;
    memcpy(link.format, format, strlen(format) + 1);
    return fn(arg, &link);
}

#endif
