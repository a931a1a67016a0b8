/* disk.h: disks of any name (`disk.1`, a UUID) and without a header that tells what they are.
 *
 * A handle that is open for write on a plain file, and whose owner locks byte 101, alone, says "I
 * write this disk". That is what QEMU does before it writes anything (measured with 7.2:
 * F_OFD_SETLK, F_RDLCK, l_start 101, l_len 1, on the descriptor that it opened O_RDWR;
 * block/file-posix.c, raw_apply_lock_bytes), and nobody else is known to: a lock of a greater range
 * that covers the byte (a whole file: databases, mailboxes, office programs) is not its word, nor
 * is anything that the owner of a read-only handle locks. Of a manager's handle (first.h), which it
 * passed on to a machine, it is the first change, too. At that lock the file becomes a raw image,
 * claimed without a seal, with the guard's byte locks (qemu_locks.h), for all handles that have it
 * open for write, until the last of them is closed: as if its first write had made an image of it.
 * The lock is granted when the claim stands. So what holds for other raw images holds for it, on
 * any storage, whether that carries locks between hosts or not: a claim of another host, a writer
 * there (fence lock), another process here that has it open for write (writers=), or a QEMU outside
 * of the views is in the way. The lock then waits as an open for write would (wait=, wait.h; the
 * switch-over of a migration), and fails with EAGAIN, which QEMU reports in its own words.
 *
 * A reader that wants no writer (readers.h) is one of an image only while somebody has it as a
 * disk; one that came before meets the writer by QEMU's own locks, between hosts where the storage
 * carries them.
 *
 * Not with raw=none, not of what is shared on purpose (shared.h), not on another file system, and
 * not of a file that has no name any more (QEMU's temporary ones): nobody else can reach that. */
#ifndef DISKGUARD_IMAGE_DISK_H
#define DISKGUARD_IMAGE_DISK_H

#include <fcntl.h>

#include "guard/guard.h"

/* QEMU, block/file-posix.c: RAW_LOCK_PERM_BASE 100, permission 1 write. */
/* For log lines: what was refused. */
#define IMAGE_DISK_LOCK "the lock \"I write\" (QEMU's byte 101)"

/* Does this lock say so? Of a handle that is published. Takes no lock, asks nobody. */
bool image_disk_said(const struct guard *g, const struct handle *h, const struct flock *lock);
/* Before it is granted. Blocks on the datastore; not under image->header. 0: the handle is guarded,
 * or has no name; -EBUSY: wait, or image_refused() with *ret_conflict; any other -errno is final
 * and logged. */
DG_MUST_CHECK int image_disk_claim(struct guard *g, struct handle *h,
                                   struct conflict *ret_conflict);

#endif
