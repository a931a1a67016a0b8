/* mountinfo.h: the mounts that this process sees, as /proc/self/mountinfo has them (proc(5)).
 * Reading it touches no mount, so one that hangs hangs nobody here. (libmount would bring two more
 * libraries into the daemon for this one file.) */
#ifndef DISKGUARD_MOUNTINFO_H
#define DISKGUARD_MOUNTINFO_H

#include <stdio.h>

#include "base/base.h"

/* All texts lie in `line`; but for type and options they are without escapes. */
struct mountinfo {
    unsigned id, major, minor; /* of the mount; of its file system */
    const char *root;          /* the directory of the file system that is mounted */
    const char *point;         /* where */
    const char *type, *source; /* source may be "" */
    const char *options;       /* of the file system */
    char *line;
    size_t size;
};

/* NULL with errno: it cannot be read. fclose() it. */
FILE *mountinfo_open(void);
/* Reads the next mount into *m, which is zero the first time. false: there is none. A mount that
 * hides another one on the same point comes after it. */
bool mountinfo_next(FILE *f, struct mountinfo *m);
void mountinfo_free(struct mountinfo *m);

/* The last mount that match() wants: mountinfo_free() it. 0, -ENOENT or -errno. */
DG_MUST_CHECK int mountinfo_find(bool (*match)(const struct mountinfo *m, const void *arg),
                                 const void *arg, struct mountinfo *ret);
DG_MUST_CHECK int mountinfo_find_id(unsigned id, struct mountinfo *ret);

#endif
