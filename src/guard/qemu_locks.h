/* qemu_locks.h: the bytes by which QEMU tells other QEMUs what it does with a file (QEMU,
 * block/file-posix.c, "RAW_LOCK_PERM_BASE"): a lock on 100 + p says "I use p", one on 200 + p
 * "nobody else may", p: 1 write, 3 resize. All are OFD read locks; QEMU asks with F_OFD_GETLK for a
 * write lock whether anybody has one.
 *
 * The guard has locks of its own on 201 and 203 for as long as this host holds an image without a
 * seal, on the seal's descriptor: a QEMU that goes around the view is refused for write, and may
 * read. And before any image is claimed it asks whether a QEMU outside of the views has byte 101
 * locked.
 *
 * An open file description never meets its own locks, but every other one on this host meets the
 * guard's. So while the guard has them, the locks of the view's programs on these two bytes are
 * kept in a list here, where the programs meet each other, and what the storage has is one lock for
 * all of them and the guard, on the seal's descriptor: a read lock, or a write lock while one of
 * them has that. What a question through that descriptor finds is somebody's outside of this view.
 * Nothing is ever let go to answer a question, and no unlock of a program reaches the guard's. When
 * the guard takes its locks, those of the programs go into the list after the guard's stand; before
 * it lets them go, they go back to their owners' own descriptors. (Only a write lock cannot stand
 * beside another for that moment.) All other bytes are the owners' own business throughout; the
 * list only notes who has 101.
 *
 * Lock: image->header, for writing by what changes anything, over the storage's answer, for these
 * locks are part of its state. */
#ifndef DISKGUARD_IMAGE_BYTES_H
#define DISKGUARD_IMAGE_BYTES_H

#include <fcntl.h>

#include "base/list.h"
#include "guard/guard.h"

#define IMAGE_QEMU_BYTES 3 /* 101, 201, 203 */

/* Who locks: one owner of byte locks of the view, part of fs_lock.c's. Under image->header, but
 * pid. */
struct qemu_owner {
    int fd;            /* of its own on the backing file; valid while it has a lock */
    atomic_ullong pid; /* thread group that locked last */
    /* fs_lock.c, under its lock: who has 101 through this open file; pid 0: nobody, or unknown */
    struct opener writes;
    short type[IMAGE_QEMU_BYTES]; /* F_UNLCK, F_RDLCK or F_WRLCK: what it has */
    atomic_bool listed;
    LIST_ENTRY(qemu_owner) entry;
};

void image_qemu_owner_init(struct qemu_owner *o);
/* Is one of the bytes in this range of a regular file? (Lengths are positive in this module.) Then
 * these two are to be used instead of fcntl() on fd, the owner's own descriptor. 0, -EAGAIN
 * (somebody else's lock is in the way), or -errno. */
bool image_qemu_in(const struct inode *i, off_t start, off_t len);
DG_MUST_CHECK int image_qemu_set(struct inode *i, struct qemu_owner *o, int fd, short type,
                                 off_t start, off_t len);
/* As F_OFD_GETLK. *ret_pid: the process of this host whose lock *ret is, 0: somebody outside of the
 * view; -1: not known here. */
DG_MUST_CHECK int image_qemu_get(struct inode *i, const struct qemu_owner *o, int fd, short type,
                                 off_t start, off_t len, struct flock *ret, pid_t *ret_pid);
/* Does a lock of this kind and range say "I write"? */
bool image_qemu_says_write(const struct flock *lock);
/* The owner ends: lets all of its locks go. Its fd is closed by the caller. */
void image_qemu_forget(struct inode *i, struct qemu_owner *o);

#endif
