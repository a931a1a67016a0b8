/* walk.h: from a name in an image to the file of the datastore that a hypervisor of this host would
 * open under it.
 *
 * Below the datastore the way goes through the datastore itself, fresh, never through a view.
 * Everywhere else it goes from "/", component by component, as the kernel would: symbolic links,
 * "..", bind mounts. A view of this datastore (this daemon's own would wait for itself) is told by
 * its mount: an O_PATH descriptor of a mount's root sends no request, its mount id stands in
 * fdinfo, and mountinfo says what is mounted there and which part of it. The datastore is told by
 * device and inode number of its root, and a bind mount of a part of it by the file handle. Mount
 * points are those of this daemon's mount namespace.
 *
 * Outside it may meet anything: a dead NFS server, an automount, another FUSE. So that part runs on
 * a thread of its own, and is given up after WALK_MS: the image is not opened then (-ETIMEDOUT),
 * for QEMU would hang there, too, and going on would leave unprotected what may well lie in the
 * datastore. A thread that hangs is left alone; it uses nothing of the daemon, and there are no
 * more than WALK_THREADS of them. */
#ifndef DISKGUARD_IMAGE_WALK_H
#define DISKGUARD_IMAGE_WALK_H

#include "guard/guard.h"

#include <limits.h>

#define WALK_MS 5000u
#define WALK_THREADS 16u

struct walk {
    char done[PATH_MAX]; /* below the datastore, without symbolic links; "" is its root */
    char rest[2 * PATH_MAX];
    unsigned links; /* symbolic links followed */
    /* ".." leads out of the datastore from here: how much of `done` was there when it was entered
     */
    size_t entry;
    int out; /* to this directory; -1: the one that the mount point lies in */
};

/* The file that `name` means in an image that was opened in the directory `dir` (absolute, or below
 * the datastore), open for reading; its path in ret->done. -EXDEV: it lies outside; -ETIMEDOUT; or
 * -errno. Blocks. */
DG_MUST_CHECK int image_walk(const struct guard *g, const char *dir, const char *name,
                             struct walk *ret);

/* Where names in the image begin that was opened as dir/name: all of that but its last component. 0
 * or -ENAMETOOLONG. */
DG_MUST_CHECK int image_walk_dir(const char *dir, const char *name, char ret[PATH_MAX]);

#endif
