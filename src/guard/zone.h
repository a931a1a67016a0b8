/* zone.h: where I/O on an image must be looked at (struct format_zone): zone.c. */
#ifndef DISKGUARD_GUARD_ZONE_H
#define DISKGUARD_GUARD_ZONE_H

#include "guard/image.h"

/* What the header says of where the image can be touched: of one that nobody here holds, and that
 * only ever grows wider; and of a held one, exactly. */
void image_zone_seen(struct image *img, const struct format_zone *zone) EXCLUDES(img->lock);
/* Where the zone grows, waits for the direct changes that have seen the old one: what was read of
 * the file before may be older than they. */
void image_zone_set(struct image *img, const struct format_zone *zone) REQUIRES(img->header)
    EXCLUDES(img->lock);
/* Waits for the direct changes under way; those that begin after it was called may go on. */
void image_drain(struct image *img) REQUIRES(img->header) EXCLUDES(img->lock);
struct format_zone image_zone(const struct image *img);

#endif
