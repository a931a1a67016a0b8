/* acquire.h: taking the claim and writing the seal. */
#ifndef DISKGUARD_GUARD_ACQUIRE_H
#define DISKGUARD_GUARD_ACQUIRE_H

#include "guard/image.h"

/* Takes the claim, with a plan and its seal or (plan_none) without. The state is SEALING, ours. On
 * success rec, fd and held are set and the state is still SEALING. -EBUSY: somebody is in the way;
 * any other error is final. Nothing is left on failure, or the state is STUCK
 * (*ret_stuck). */
struct acquire {
    const struct opener *who;
    const char *what;        /* for the log line: "open for write", "unlink", ... */
    const char *format_name; /* "none" for a namespace operation; NULL: as identified */
    bool plan_none;          /* no seal: the header is about to go, or to change */
    bool plain_too;          /* the file need not be an image yet */
    bool judge;              /* apply the rules of an open for write to the header */
};
DG_MUST_CHECK int image_acquire(struct guard *g, struct image *img, const struct acquire *a,
                                bool *ret_stuck, struct conflict *ret);
/* Ends a failed long action: STUCK keeps record and descriptor for the monitor. -EUCLEAN, -EPERM
 * and -EXDEV are logged where they are decided, -EBUSY by whoever gives up waiting. */
void image_acquire_failed(struct guard *g, struct image *img, const struct acquire *a, bool stuck,
                          int err);

#endif
