/* plain.h: the fence of plain files that are open for write. */
#ifndef DISKGUARD_GUARD_PLAIN_H
#define DISKGUARD_GUARD_PLAIN_H

#include "guard/image.h"

/* May a handle that was opened on a plain file still change it? -EBUSY: the file has become
 * somebody's image meanwhile. */
DG_MUST_CHECK int image_plain_check(struct guard *g, struct handle *h);
/* A handle is about to write a plain file. Takes the shared fence for it, or counts on the one that
 * is there. -EBUSY: another host is just claiming the file, or it has become an image, or a thread
 * here is at it: from the start. 0 without a fence. */
DG_MUST_CHECK int image_plain_enter(struct guard *g, struct image *img, struct handle *h,
                                    struct conflict *ret) EXCLUDES(img->lock);
/* The handle's descriptor is closed: what it wrote has left this host. */
void image_plain_leave(struct guard *g, struct image *img, struct handle *h) EXCLUDES(img->lock);
/* A duplicate of plain_fd: the same lock, for OFD locks and flock belong to the open file
 * description. -1: there is none; or -errno. to_claim: it will write the header, so -EACCES where
 * it was opened with the caller's rights because the daemon may not write the file: what the daemon
 * claims it must be able to restore after a crash, when no caller is there. */
DG_MUST_CHECK int image_plain_dup(struct image *img, bool to_claim) EXCLUDES(img->lock);
/* After a claim that failed: plain_fd's lock is shared again, or the plain writers are barred. */
void image_plain_again(struct guard *g, struct image *img) EXCLUDES(img->lock);
/* The lock of plain_fd may be lost: the monitor opens it anew in its next round. true: that is
 * news, and a reason to wake it. */
bool image_plain_suspect(struct image *img) EXCLUDES(img->lock);
/* The monitor: if it was, bars the writers, opens plain_fd and their descriptors anew, under lock,
 * and looks what the file is now. 0: the caller may unbar them; -errno: not now. Borrowed ones stay
 * as they are. */
DG_MUST_CHECK int image_plain_reopen(struct guard *g, struct image *img) EXCLUDES(img->lock);
/* Plain writers get EBUSY until the monitor finds that the file is still plain. */
void image_plain_bar(struct image *img) EXCLUDES(img->lock);

/* Do plain writers of this host have the fence lock? */
bool image_plain_has_fence(struct image *img) EXCLUDES(img->lock);
/* Its handles are a FENCED image's now, and count down without the descriptor: the caller closes
 * it. -1: there was none. */
int image_plain_revoke_locked(struct image *img) REQUIRES(img->lock);

#endif
