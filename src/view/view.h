/* view.h: the mounted view: FUSE requests on top of a guard. */
#ifndef DISKGUARD_VIEW_H
#define DISKGUARD_VIEW_H

#include <fuse_lowlevel.h>

#include "guard/guard.h"

struct lanes;
struct park;
struct prune;

struct view {
    struct guard *guard;
    struct fuse_session *se;
    struct lanes *lanes; /* threads for reads and writes; all else that may block has guard->pool */
    struct park *park;
    struct prune *prune;
    /* Seconds for which the kernel may answer for a name, and for attributes, by itself; 0: never.
     * See fs_name_timeout(), fs_attr_timeout(). */
    double entry_timeout, attr_timeout;
    unsigned max_read; /* bytes; libfuse wants init() to repeat -o max_read; 0: none */
    /* init.c: of the INIT request, until its reply is told of shared mappings */
    atomic_ullong init_unique;
    /* fs_name.c: the file that was looked up last was known before, as the next one may be */
    atomic_bool known_names;
    atomic_bool may_map;  /* the kernel allows shared mappings of images */
    atomic_bool map_said; /* that it does not was logged */
};

static inline struct view *view_of(fuse_req_t req)
{
    return fuse_req_userdata(req);
}

/* Makes lanes and park; after guard_init(). 0 or -ENOMEM: view_free() all the same. */
DG_MUST_CHECK int view_init(struct view *v, struct guard *guard);
/* No request comes any more: those that wait are answered, and all jobs have run on return. */
void view_drain(struct view *v);
void view_free(struct view *v);
/* For struct guard_events; arg: the view. */
void view_changed(void *arg);
void view_forget_pages(void *arg, uint64_t nodeid);
/* What the kernel keeps of the file's attributes is stale. */
void view_forget_attr(struct view *v, const struct inode *i);

#endif
