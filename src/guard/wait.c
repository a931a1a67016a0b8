/* wait.c: see wait.h. */
#include "guard/wait.h"

#include <stdio.h>
#include <string.h>

#include "guard/conflict.h"
#include "guard/image.h"
#include "guard/manager.h"

struct patience {
    const struct inode *inode;
    const struct opener *who;
    uint64_t before_ms;
    bool found;
};

static void look_for_reader(void *arg, struct handle *h)
{
    struct patience *p = arg;
    p->found |= h->inode == p->inode && !atomic_load(&h->writer) && !image_manager_expected(h) &&
                h->opened_ms <= p->before_ms && opener_same(&h->opener, p->who);
}

/* Had this process the image open read-only for a while, when it began to wait? */
static bool reads_already(struct guard *g, const struct inode *i, const struct opener *who,
                          uint64_t since_ms)
{
    struct patience p = {.inode = i, .who = who, .before_ms = since_ms - IMAGE_WAIT_GRACE_MS};
    handle_each(g->handles, look_for_reader, &p);
    return p.found;
}

static bool is_process(uint64_t pid)
{
    struct opener now = {0};
    return pid > 0 && opener_process(pid, &now);
}

bool image_wait_is_vain(struct guard *g, struct inode *i, const struct opener *who,
                        uint64_t since_ms, const struct conflict *c)
{
    struct image *img = atomic_load(&i->image);
    if (g->opt.wait_set || !img || base_now_ms() - since_ms < IMAGE_WAIT_GRACE_MS)
        return false;
    struct opener there = {0};
    mutex_lock(&img->lock);
    bool here = img->state == IMAGE_SEALED && !img->exclusive;
    struct opener holder = img->holder;
    bool elsewhere = img->state == IMAGE_IDLE && c->host[0] && !c->released;
    mutex_unlock(&img->lock);
    bool own = elsewhere && strcmp(c->host, g->host.uuid) == 0;
    if ((!here && !elsewhere) || reads_already(g, i, who, since_ms))
        return false;
    if (elsewhere && !own && g->opt.takeover != TAKEOVER_MANUAL)
        return false; /* the record of a host that died a moment ago is still locked */
    if (here)
        return opener_process(holder.pid, &there) && opener_same(&holder, &there);
    return own ? is_process(c->pid) : host_alive(&g->store, c->host) == 1;
}
