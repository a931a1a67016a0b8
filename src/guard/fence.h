/* fence.h: the fence lock of the descriptors that write a held image: taken before a look at the
 * claim, let go when the claim is lost. */
#ifndef DISKGUARD_GUARD_FENCE_H
#define DISKGUARD_GUARD_FENCE_H

#include "guard/image.h"

/* Another host has taken over, or our claim is gone: writes get EIO from now on. Logs, with the
 * successor's name: reads its claim. */
void image_fence(struct guard *g, struct image *img) EXCLUDES(img->lock, img->header);
/* A descriptor that is about to write the held image takes the shared fence, then looks whether the
 * claim still rules: only in this order can nobody have taken over in between. Without the lock
 * again unless 0. -EBUSY: somebody has the fence; -CLAIM_LOST: a successor's claim. */
DG_MUST_CHECK int image_fence_fd(struct guard *g, struct image *img, int fd)
    EXCLUDES(img->lock, img->header);
/* Every listed handle takes the fence and becomes guarded: they join the hold that the caller is
 * about to finish. The state is SEALING. -CLAIM_LOST: the claim was lost before they had it; none
 * is guarded, plain ones are barred. */
DG_MUST_CHECK int image_adopt_writers(struct guard *g, struct image *img)
    EXCLUDES(img->lock, img->header);
/* A FENCED image: closes what carries the fence lock, and makes its handles read-only, so that the
 * successor and others can claim. Of one that is not FENCED, nothing. May be repeated. Blocks. */
void image_revoke(struct image *img) EXCLUDES(img->lock, img->header);
/* The handle's descriptor becomes one that cannot write, and has no locks. */
void image_make_read_only(const struct handle *h);

#endif
