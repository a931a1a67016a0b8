/* reopen.h: new descriptors where the storage has given one up: reopen.c. */
#ifndef DISKGUARD_GUARD_REOPEN_H
#define DISKGUARD_GUARD_REOPEN_H

#include "guard/image.h"

/* The seal's descriptor was given up by the storage (or there is none): a new one, under the fence
 * lock and after a look at the claim, in its place. Data that the old one could not sync is noted
 * in sync_error. 0, -CLAIM_LOST (a successor's claim) or -errno. */
DG_MUST_CHECK int image_reopen_seal(struct guard *g, struct image *img) REQUIRES(img->header);
/* The monitor, or after the storage gave up a descriptor: are they still there? If not, the seal's
 * descriptor is opened anew. */
void image_qemu_maintain(struct guard *g, struct image *img) EXCLUDES(img->lock, img->header);

#endif
