/* shared.h: files that many hosts write on purpose (option shared=): the shared disk of a cluster
 * of guests, whose own file system keeps its writers apart (QEMU: share-rw=on). Told by name: by
 * the one under which the file was met, and by the last one that the kernel looked up; both must
 * match, so that a file that was renamed is guarded again. While such a handle is open it stays
 * shared.
 *
 * Such a file is handled as a plain one, whatever its header says: no claim, no seal, no marks of
 * images that need it, no protection of its readers. As for every plain file its writers have the
 * fence lock shared, so that they do not meet each other, but a host without the option cannot
 * claim it under their hands. Its handles have direct I/O, as those of images, so that the view's
 * own cache does not stand between the guests. A claim that stands already, and a header that may
 * be sealed, is respected: EBUSY, EUCLEAN. */
#ifndef DISKGUARD_IMAGE_SHARED_H
#define DISKGUARD_IMAGE_SHARED_H

#include "guard/guard.h"

struct header;

/* By one name alone: the last path component. */
bool image_name_is_shared(const struct guard *g, const char *name);
/* Costs a comparison without the option. */
bool image_is_shared(struct guard *g, struct inode *i);
/* The same, and its header is none that a seal may have left, so that nothing but a claim need be
 * looked for. */
bool image_shared_exempt(struct guard *g, struct inode *i, const struct header *h);
/* Right before a claim would be made: -EUCLEAN, logged: it is shared, and what its header is cannot
 * be told. Else 0. */
DG_MUST_CHECK int image_shared_refuse(struct guard *g, struct inode *i, const char *what);

struct image;
/* A handle writes it as a plain file: counts it where that is shared; and its end. */
void image_shared_enter(struct guard *g, struct image *img, struct handle *h);
void image_shared_leave(struct image *img, struct handle *h);

/* For control.c: each such file that is open for write here, from memory alone. */
struct image_shared {
    const char *path; /* below the datastore; valid during the call */
    uint64_t ino;
    struct opener who; /* of one of the handles */
    unsigned writers;  /* handles */
};
void image_shared_each(struct guard *g, void (*fn)(void *arg, const struct image_shared *s),
                       void *arg);

#endif
