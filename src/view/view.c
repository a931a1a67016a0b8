#include "view/view.h"

#include "node/opener.h"
#include "run/lanes.h"
#include "run/park.h"
#include "run/pool.h"

_Static_assert(INODE_ROOT_ID == FUSE_ROOT_ID, "the root's node id is the kernel's");

/* libfuse calls this on the thread that read the INTERRUPT, with a lock of the request held. */
static void on_interrupt(fuse_req_t req, void *entry)
{
    (void)req;
    park_interrupt(entry);
}

static void watch(void *req, void *entry)
{
    fuse_req_interrupt_func(req, entry ? on_interrupt : NULL, entry);
}

static bool signalled(void *req, bool unsure)
{
    enum opener_signal s = opener_signal(fuse_req_ctx(req)->pid);
    return s == OPENER_UNKNOWN ? unsure : s == OPENER_SIGNALLED;
}

int view_init(struct view *v, struct guard *guard)
{
    static const struct park_caller caller = {.watch = watch, .signalled = signalled};
    v->guard = guard;
    v->lanes = lanes_new();
    v->park = park_new(guard->pool, &caller);
    return v->lanes && v->park ? 0 : -ENOMEM;
}

void view_drain(struct view *v)
{
    if (!v->park)
        return;
    park_stop(v->park);
    if (v->lanes)
        lanes_drain(v->lanes); /* first: what fails there goes on in the pool */
    pool_drain(v->guard->pool);
}

void view_free(struct view *v)
{
    park_free(v->park);
    lanes_free(v->lanes);
}

void view_changed(void *arg)
{
    struct view *v = arg;
    park_kick(v->park);
}

void view_forget_pages(void *arg, uint64_t nodeid)
{
    struct view *v = arg;
    (void)fuse_lowlevel_notify_inval_inode(v->se, nodeid, 0, 0);
}

/* A negative offset: attributes alone (fuse_reverse_inval_inode(), fs/fuse/inode.c). */
void view_forget_attr(struct view *v, const struct inode *i)
{
    if (v->attr_timeout > 0)
        (void)fuse_lowlevel_notify_inval_inode(v->se, i->nodeid, -1, 0);
}
