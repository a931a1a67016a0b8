/* edit.h: changes of an image in its zone, and plain files that become images. */
#ifndef DISKGUARD_GUARD_EDIT_H
#define DISKGUARD_GUARD_EDIT_H

#include "guard/image.h"

/* So often a file may change under the claim that is just taken for it (another write of its own
 * was under way), before its writer is told. */
#define IMAGE_CHANGED_MAX 16u

/* A plain file is about to become an image under its writers' hands: claims it, without a seal yet,
 * for all of them. -EAGAIN: it changed meanwhile; -EALREADY: another thread is at it: look again.
 * -EBUSY: somebody is in the way. */
DG_MUST_CHECK int image_convert(struct guard *g, struct image *img, const struct opener *who,
                                struct conflict *ret) EXCLUDES(img->lock, img->header);
/* truncate(2) by path, by the holder himself. 0 or -errno. */
DG_MUST_CHECK int image_truncate_own(struct guard *g, struct image *img, const struct opener *who,
                                     uint64_t size) EXCLUDES(img->lock, img->header);

#endif
