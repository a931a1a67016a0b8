/* unseal.h: takes the seal off one file that no datastore guards: a copy that was made, past the
 * views, of an image that was held then. For diskguardctl and fsck.diskguard.
 *
 * What undoes the seal stands in the file alone (format->rescue), with the exact size where it does
 * not. A claim never does: a copy may be older than a resize. It only names a size for a person to
 * look at.
 *
 * Atomic: the plan is written beside the file first (.NAME.diskguard-unseal), and removed when the
 * header is true, verified and durable; who finds one goes on from there. Every state in between is
 * refused by raw openers. */
#ifndef DISKGUARD_TOOLS_UNSEAL_H
#define DISKGUARD_TOOLS_UNSEAL_H

#include "base/base.h"

struct unseal {
    const char *path;
    const uint64_t *size;  /* bytes, of a person; or NULL */
    const char *datastore; /* whose claims may know a size; or NULL */
    bool look;             /* only: nothing is changed */
    char text[2048];       /* the answer, a clause for people after the path */
};
enum unsealed {
    UNSEAL_DONE,    /* the seal is off */
    UNSEAL_NOTHING, /* there was none */
    UNSEAL_LEFT,    /* look: it could be taken off; else: not without a size */
    UNSEAL_FAILED   /* refused, or the storage failed */
};
enum unsealed unseal_file(struct unseal *u);

#endif
