/* backing.h: the name of a backing file as QEMU's own formats store it, made into a link. For the files in src/format only. */
#ifndef DISKGUARD_FORMAT_BACKING_H
#define DISKGUARD_FORMAT_BACKING_H

#include "format/format.h"

#include <string.h>

/* A name with a protocol: a colon before the first slash (QEMU 7.2, util/path.c and block.c, path_has_protocol()). */
static inline bool backing_has_protocol(const char *name)
{
    return name[strcspn(name, ":/")] == ':';
}

/* Calls fn for the name of `len` bytes at `off`, for a format links(). Bytes beyond the end of the file count as zero, and a zero ends the name, as
 * in QEMU; an empty name is none. 0, what fn returned, -EAGAIN, or -EUCLEAN: too long, or another protocol than "file:". */
static inline int backing_link(struct view *v, uint64_t off, uint32_t len, const char *format,
                               int (*fn)(void *arg, const struct format_link *link), void *arg)
{
    static const char file[] = "file:";
    struct format_link link = {.role = LINK_BACKING};
    const char *name = link.path;
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
    if (strncmp(name, file, strlen(file)) == 0)
        name += strlen(file);
    else if (backing_has_protocol(name))
        return -EUCLEAN;
    if (name[0] == '\0')
        return 0;
    memmove(link.path, name, strlen(name) + 1);
    memcpy(link.format, format, strlen(format) + 1);
    return fn(arg, &link);
}

#endif
