/* qemu_bytes.h: the bytes of an image that QEMU locks, and what each lock says. As in QEMU's
 * block/file-posix.c: 100 + n for a permission that is used, 200 + n for one that others may not
 * have. */
#ifndef DISKGUARD_QEMU_BYTES_H
#define DISKGUARD_QEMU_BYTES_H

#include <stdbool.h>
#include <sys/types.h>

enum {
    QEMU_READS = 100,     /* I read guest data (BLK_PERM_CONSISTENT_READ) */
    QEMU_WRITES = 101,    /* I write */
    QEMU_NO_WRITER = 201, /* nobody else may write */
    QEMU_NO_RESIZE = 203  /* nobody else may change the size */
};

/* Is the byte in this range? len 0: to the end, as in struct flock. */
static inline bool qemu_byte_in(off_t start, off_t len, off_t byte)
{
    return start <= byte && (len == 0 || byte - start < len);
}

#endif
