/* mounts.h: the diskguard views that this machine's kernel has mounted, read from
 * /proc/self/mountinfo (proc(5)) and nothing else: a view that hangs, or whose daemon is dead,
 * never hangs the tool that asks about it. */
#ifndef DISKGUARD_TOOLS_MOUNTS_H
#define DISKGUARD_TOOLS_MOUNTS_H

#include "base/base.h"

struct mount {
    unsigned major, minor;
    char *point;  /* mount point */
    char *source; /* the datastore's directory, as the daemon named it */
    char *type;   /* as the kernel names it: fuse, fuse.NAME */
};
struct mounts {
    size_t n;
    struct mount *m;
};

/* 0 or -errno. Of several mounts on one point only the topmost is kept. */
DG_MUST_CHECK int mounts_load(struct mounts *ret);
DG_MUST_CHECK int mounts_load_fuse(struct mounts *ret); /* FUSE mounts of any type */
void mounts_free(struct mounts *m);

/* The view that an absolute, normalised path is in, or NULL. *ret_rel: the path below its mount
 * point, "" for the point itself. */
const struct mount *mounts_of_path(const struct mounts *m, const char *path, const char **ret_rel);

/* Makes a path absolute and free of ".", ".." and symbolic links, as far as that is possible
 * without touching a view: from a view's mount point on, the rest is only tidied as text. Missing
 * components are kept. 0 or -errno. */
DG_MUST_CHECK int mounts_resolve(const struct mounts *m, const char *path, char **ret);

#endif
