/* guard.c: see guard.h. */
#include "guard/guard.h"

bool guard_threshold_rules(const struct guard_options *o)
{
    return o->threshold_set || o->seal == SEAL_SIZE;
}

void guard_attention(struct guard *g)
{
    if (g->on.attention)
        g->on.attention(g->on.arg);
}

void guard_changed(struct guard *g)
{
    if (g->on.changed)
        g->on.changed(g->on.arg);
}

void guard_forget_pages(struct guard *g, const struct inode *i)
{
    if (g->on.forget_pages)
        g->on.forget_pages(g->on.arg, i->nodeid);
}
