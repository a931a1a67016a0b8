/* options.h: the command line, checked. Nothing is changed on disk and nothing is mounted here. */
#ifndef DISKGUARD_OPTIONS_H
#define DISKGUARD_OPTIONS_H

#include <fuse_lowlevel.h>

#include "guard/guard.h"

struct options {
    struct guard_options guard;
    char *host_id;   /* NULL: derive */
    char *state_dir; /* default /var/lib/diskguard */
    char *subtype;   /* of the mount's type fuse.SUBTYPE, default "diskguard" */
    bool fence_none; /* fence=none */
    bool foreground, debug;
    /* seconds, 0..3600, default 1: view.h */
    double entry_timeout, attr_timeout;
    unsigned max_read;          /* -o max_read, bytes; 0: none */
    struct fuse_args fuse_args; /* what is handed on to libfuse */
};

enum options_todo { OPTIONS_RUN, OPTIONS_HELP, OPTIONS_VERSION };

/* 0, or -EINVAL with why (a usage error). Call options_free() in both cases. */
DG_MUST_CHECK int options_parse(int argc, char **argv, struct options *ret,
                                enum options_todo *ret_todo, struct why *why);

/* managers= where it is not given: what libvirt opens images with. */
#define MANAGERS_DEFAULT "libvirtd:virtqemud:virtstoraged:virtlockd"

/* Makes both paths canonical and refuses those that cannot be: missing, no directory, one inside
 * the other, mounted already. A view of the same datastore whose daemon died is unmounted. 0 or
 * -errno with why. */
DG_MUST_CHECK int options_check_paths(struct options *o, struct why *why);

/* Is a view of this datastore mounted here, by any daemon? */
bool options_view_exists(const char *datastore);

/* Hands "name" or "name=value" on to libfuse. 0 or -ENOMEM. */
DG_MUST_CHECK int options_to_fuse(struct options *o, const char *name, const char *value);

/* Refuses a state directory on the wrong file system: fstab(5) has a mount above it that is not
 * there yet, and will hide it. 0 or -errno with why. */
DG_MUST_CHECK int options_check_hidden(const char *state_dir, struct why *why);

/* The word of takeover=. */
const char *options_takeover_name(enum takeover_mode t);

void options_help(void);
void options_free(struct options *o);

#endif
