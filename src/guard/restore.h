/* restore.h: the end of a hold. */
#ifndef DISKGUARD_GUARD_RESTORE_H
#define DISKGUARD_GUARD_RESTORE_H

#include "guard/image.h"

/* RESTORING -> IDLE or STUCK: sync, restore, free, close. The caller has moved the state to
 * RESTORING. 0 or what made it STUCK. */
int image_restore(struct guard *g, struct image *img) EXCLUDES(img->lock, img->header);
/* Removes the generations below a claim that was freed, on the pool: nothing rests on it. */
void image_clear_later(struct guard *g, uint64_t ino, uint64_t generation);
/* One guard less; the last one restores (or, fenced, drops). */
void image_unguard(struct guard *g, struct image *img) EXCLUDES(img->lock, img->header);

#endif
