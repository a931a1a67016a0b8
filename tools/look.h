/* look.h: opens a datastore to look at it. store_open() proves by writing whether it may write, which
 * fsck.diskguard -n must not and diskguardctl, which may ask twice a second, should not. */
#ifndef DISKGUARD_TOOLS_LOOK_H
#define DISKGUARD_TOOLS_LOOK_H

#include "core/store.h"

/* As store_open(), but writes nothing; ret->read_only is always true. After -EXDEV *ret is open, too. */
DG_MUST_CHECK int look_store(const char *path, struct store *ret, struct why *why);

#endif
