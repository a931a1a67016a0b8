#include "guard/guard.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "guard/maker.h"
#include "guard/takeover.h"
#include "run/pool.h"

bool guard_threshold_rules(const struct guard_options *o)
{
    return o->threshold_set || o->seal == SEAL_SIZE;
}

static void no_locks(struct inode_locks *locks)
{
    (void)locks;
}

int guard_init(struct guard *g)
{
    struct inode_parts parts = {.free_image = image_free,
                                .free_locks = g->on.free_locks ? g->on.free_locks : no_locks};
    g->inodes = inode_table_new(&parts);
    g->handles = g->inodes ? handle_table_new(g->inodes) : NULL;
    g->images = image_table_new();
    g->pool = pool_new(POOL_THREADS_MAX);
    g->takeover = takeover_new();
    g->makers = guard_threshold_rules(&g->opt) ? maker_table_new() : NULL;
    if (!g->handles || !g->images || !g->pool || !g->takeover ||
        (!g->makers && guard_threshold_rules(&g->opt)))
        return -ENOMEM;
    struct stat st;
    int fd = openat(g->store.root_fd, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 || fstat(fd, &st) < 0 ? -errno : inode_table_root(g->inodes, fd, &st);
}

void guard_free(struct guard *g)
{
    pool_free(g->pool);
    inode_table_free(g->inodes);
    handle_table_free(g->handles);
    image_table_free(g->images);
    takeover_free(g->takeover);
    maker_table_free(g->makers);
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
