/* readers_priv.h: protecting readers (readers.h), for the other files of the guard. */
#ifndef DISKGUARD_GUARD_READERS_PRIV_H
#define DISKGUARD_GUARD_READERS_PRIV_H

#include "guard/image.h"

/* readers.c: does another process, or host, read it that wants no writer beside it? -EBUSY: yes; 0
 * or -errno. */
DG_MUST_CHECK int image_reader_in_way(struct guard *g, struct image *img, const struct opener *who,
                                      struct conflict *ret) REQUIRES(img->header)
    EXCLUDES(img->lock);
/* Before the claim is freed: what its readers need then, a name on the datastore, which no other
 * host could have wanted to see before. */
void image_reader_follow(struct guard *g, struct image *img) REQUIRES(img->header)
    EXCLUDES(img->lock);
/* The monitor: names that are missing are made, those that nobody needs any more removed; notes
 * where reads need not be checked. */
void image_reader_maintain(struct guard *g);

/* This host is about to claim it: reads are not safe by its readers any more. */
void image_reader_claiming(struct image *img) REQUIRES(img->header);

#endif
