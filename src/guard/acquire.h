/* acquire.h: taking the claim and writing the seal. */
#ifndef DISKGUARD_GUARD_ACQUIRE_H
#define DISKGUARD_GUARD_ACQUIRE_H

#include "guard/image.h"

/* What an image is taken for. rules[] in acquire.c says what follows for each. */
enum purpose {
    TAKE_TO_WRITE,   /* an open for write */
    TAKE_TO_EMPTY,   /* the same, with O_TRUNC: the header is about to go */
    TAKE_FOR_NAMES,  /* a namespace operation, or truncation by path: nobody joins */
    TAKE_TO_CONVERT, /* a plain file is about to become an image under its writers' hands */
    TAKE_AS_A_DISK,  /* a plain file of which its writer says that it is a disk (disk.h) */
};
struct taking {
    enum purpose purpose;
    const struct opener *who;
    const char *what; /* for the log line: "open for write", "unlink", ... */
    struct handle *h; /* of an open; it gets the fence, too */
};
/* Takes an image that the caller has begun (image_begin()), up to SEALED: claim, seal, and whoever
 * has it open for write joins. 0: the caller holds it, or, of a plain file, its writers do. -EBUSY:
 * somebody is in the way; -EAGAIN: the file changed meanwhile: from the start; any other error is
 * final, and logged. Nothing is left on failure, or the state is STUCK. */
DG_MUST_CHECK int image_take(struct guard *g, struct image *img, const struct taking *t,
                             struct conflict *ret) EXCLUDES(img->lock, img->header);

#endif
