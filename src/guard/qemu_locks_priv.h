/* qemu_locks_priv.h: the guard's own locks on the bytes that QEMU locks (qemu_locks.h). */
#ifndef DISKGUARD_GUARD_QEMU_LOCKS_PRIV_H
#define DISKGUARD_GUARD_QEMU_LOCKS_PRIV_H

#include "guard/image.h"

/* Looks whether a QEMU outside of this view has the file open for write: -EBUSY. hold: takes the
 * guard's locks first, on img->held.fd, if the storage has locks; they are let go again on failure.
 */
DG_MUST_CHECK int image_qemu_take(struct image *img, bool hold) REQUIRES(img->header);
/* Lets them go; the programs' own stay. Before the claim is freed, so that they are not in the way
 * of the next holder's QEMU. */
void image_qemu_drop(struct image *img) REQUIRES(img->header);
/* The plan may have changed: takes them where no seal stands now, drops them where one does. Logs
 * what fails. */
void image_qemu_follow(struct guard *g, struct image *img) REQUIRES(img->header);
/* fd is about to take the place of img->held.fd: takes them on it. */
DG_MUST_CHECK int image_qemu_renew(struct guard *g, struct image *img, int fd)
    REQUIRES(img->header);
/* Are they still there? 0, or -errno: the storage gave up the descriptor. */
DG_MUST_CHECK int image_qemu_check(struct image *img) REQUIRES(img->header);

#endif
