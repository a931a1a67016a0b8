/* chain.h: the files that an image needs (core/dependency.h): dependencies, and who stands in the
 * way. */
#ifndef DISKGUARD_GUARD_CHAIN_H
#define DISKGUARD_GUARD_CHAIN_H

#include "guard/image.h"

/* A new hold: it has no dependencies yet. */
void image_chain_begin(struct image *img) REQUIRES(img->header);
/* Makes each file that the image needs a dependency, then looks whether somebody writes it. h: its
 * header as it stands, claimed and not sealed. NULL: it is sealed and was written; only where its
 * links changed, and nothing is refused. -EBUSY: somebody writes one; -EUCLEAN (logged) or -errno.
 */
DG_MUST_CHECK int image_chain_protect(struct guard *g, struct image *img, const struct opener *who,
                                      struct header *h, struct conflict *ret) REQUIRES(img->header)
    EXCLUDES(img->lock);
/* After an edit of a held image: the files that it needs now become dependencies, too, and those
 * that it needs no more are free. What goes wrong is logged. */
void image_chain_edited(struct guard *g, struct image *img, const struct opener *who)
    REQUIRES(img->header) EXCLUDES(img->lock);
/* The files on which the hold that ends has dependencies; the image forgets them. */
struct image_below {
    uint64_t *ino;
    size_t n;
};
struct image_below image_chain_take(struct image *img) REQUIRES(img->header);
/* After the claim is free. Best effort. Frees and clears *b. */
void image_chain_drop(struct guard *g, uint64_t ino, uint64_t generation, struct image_below *b);
/* Does an image need this file that another process, or host, holds? -EBUSY: yes; 0 or -errno. */
DG_MUST_CHECK int image_chain_needed(struct guard *g, struct image *img, const struct opener *who,
                                     struct conflict *ret) EXCLUDES(img->lock);
/* Does any held image need it? 1, 0 or -errno. */
DG_MUST_CHECK int image_chain_guards(struct guard *g, const struct inode *i);

#endif
