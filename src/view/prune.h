/* prune.h: one thread that keeps the number of looked-up files below the limit of descriptors.
 *
 * Each inode that the kernel knows costs a descriptor, and the kernel keeps names until it is short
 * of memory, not of our descriptors. So when too many are in use the kernel is asked to drop the
 * names of those that nobody has used for long (FUSE_NOTIFY_INVAL_ENTRY): it then forgets the
 * inodes, and looks them up again when somebody comes back. It also drops the names of files that
 * were removed behind the view, which would keep their space, once a second. */
#ifndef DISKGUARD_PRUNE_H
#define DISKGUARD_PRUNE_H

#include "view/view.h"

/* After RLIMIT_NOFILE is final and the view is mounted. NULL: no thread. */
struct prune *prune_new(struct view *v);
/* More inodes than this: names are dropped. */
unsigned long prune_limit(void);
/* A request failed with EMFILE or ENFILE: says why, and the way out, at most once a minute. */
void prune_say_limit(const struct view *v, int err);
/* While requests are still served: a notice may have to wait for one. NULL is fine. */
void prune_free(struct prune *p);

#endif
