/* open.h: opens for write. */
#ifndef DISKGUARD_GUARD_OPEN_H
#define DISKGUARD_GUARD_OPEN_H

#include "guard/image.h"

/* Has another process the file open for write (writers=process)? */
bool image_others_write(struct guard *g, struct image *img, const struct opener *who,
                        struct conflict *ret) EXCLUDES(img->lock);

#endif
