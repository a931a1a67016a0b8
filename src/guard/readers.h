/* readers.h: programs that read an image and want nobody to write it meanwhile (option readers=).
 *
 * How they are told from those that only look: by what they say themselves, with the bytes that
 * QEMU locks (qemu_locks.h). A read-only handle whose owner has a lock on both 100 ("I read guest
 * data", BLK_PERM_CONSISTENT_READ) and 201 ("nobody else may write") is such a reader: the disk of
 * a virtual machine, a backing file, qemu-img convert, check, compare. Measured with QEMU 7.2:
 * qemu-img info locks 201 and 203 of what has a header, never 100; --force-share (-U), the
 * destination of a live migration, cat, cp and dd lock nothing. Those are mere inspection, and
 * nothing is kept from writing by them.
 *
 * What follows, on all hosts, whatever storage: a name in core/reader.h, before the program may go
 * on; opens for write, truncation, removal and rename over it get EBUSY, except by the reader's own
 * process (writers=host: host). And as QEMU asks, after it has locked, whether anybody uses byte
 * 101 ("I write"), this is where a reader that comes too late learns it, also of a holder on
 * another host, or of one that locks nothing. It waits for wait= first, as an open for write does.
 *
 * Lock: image->header, for writing by what changes anything, over the storage's answer. */
#ifndef DISKGUARD_IMAGE_READER_H
#define DISKGUARD_IMAGE_READER_H

#include <fcntl.h>

#include "base/list.h"
#include "guard/guard.h"

/* One owner of byte locks of the view, part of fs_lock.c's. */
struct image_reader {
    bool may; /* through a read-only handle of a view with readers=protect */
    struct opener who;
    atomic_bool reads, denies; /* has locked 100, 201; changed under image->header */
    bool listed;               /* under image->header, as the rest */
    LIST_ENTRY(image_reader) entry;
};

/* via: the handle that introduced the owner. */
void image_reader_init(struct guard *g, struct image_reader *rd, const struct handle *via);
/* The owner has been granted this lock, or unlock (len 0: to the end), of a regular file. Blocks on
 * the datastore when it becomes a reader, or is none any more. A name that cannot be made is
 * logged, tried again by the monitor, and the program goes on: what it does harms no image. */
void image_reader_locked(struct guard *g, struct inode *i, struct image_reader *rd, short type,
                         off_t start, off_t len);
/* It asks whether anybody has a lock in this range that is in the way of one of this type. 0:
 * nobody that is known here; -EBUSY: the range has byte 101, and another process or host has the
 * image for write (*ret_conflict); *ret: the byte as a lock that is in the way, with the holder's
 * pid where it is one of this host. Or -errno. */
DG_MUST_CHECK int image_reader_ask(struct guard *g, struct inode *i, struct image_reader *rd,
                                   short type, off_t start, off_t len, struct flock *ret,
                                   struct conflict *ret_conflict);
/* The one log line of a reader that gives up. */
void image_reader_refused(struct guard *g, struct inode *i, const struct image_reader *rd,
                          const struct conflict *c);
/* The owner ends. */
void image_reader_forget(struct guard *g, struct inode *i, struct image_reader *rd);

#endif
