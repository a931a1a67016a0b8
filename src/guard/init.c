/* init.c: a guard is made and freed; it knows every file that has a table of its own. */
#include <fcntl.h>
#include <sys/stat.h>

#include "guard/guard.h"
#include "guard/listing.h"
#include "guard/maker.h"
#include "guard/takeover.h"
#include "run/pool.h"

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
    g->listing = image_listing_new();
    g->pool = pool_new(POOL_THREADS_MAX);
    g->takeover = takeover_new();
    g->makers = guard_threshold_rules(&g->opt) ? maker_table_new() : NULL;
    if (!g->handles || !g->images || !g->listing || !g->pool || !g->takeover ||
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
    image_listing_free(g->listing);
    takeover_free(g->takeover);
    maker_table_free(g->makers);
}
