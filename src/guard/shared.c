/* shared.c: see shared.h. */
#include "guard/shared.h"

#include <fnmatch.h>
#include <limits.h>
#include <string.h>

#include "guard/image.h"
#include "guard/refuse.h"

bool image_name_is_shared(const struct guard *g, const char *name)
{
    for (char **glob = g->opt.shared_globs; glob && *glob; glob++)
        if (fnmatch(*glob, name, 0) == 0)
            return true;
    return false;
}

bool image_is_shared(struct guard *g, struct inode *i)
{
    char path[PATH_MAX], last[NAME_MAX + 1];
    if (!g->opt.shared_globs || !S_ISREG(i->type))
        return false;
    struct image *img = atomic_load(&i->image);
    if (img && atomic_load(&img->shared.writers) > 0)
        return true;
    image_path(g, i, path, sizeof(path));
    inode_last_name(g->inodes, i, last, sizeof(last));
    const char *slash = strrchr(path, '/');
    return image_name_is_shared(g, slash ? slash + 1 : path) &&
           (!last[0] || image_name_is_shared(g, last));
}

bool image_shared_exempt(struct guard *g, struct inode *i, const struct header *h)
{
    if (!image_is_shared(g, i))
        return false;
    const struct image *img = atomic_load(&i->image);
    if (img && atomic_load(&img->shared.writers) > 0)
        return true; /* whoever has it open writes there what he wants */
    switch (h->verdict) {
    case FORMAT_PLAIN:
        return true;
    case FORMAT_IMAGE:
    case FORMAT_LIES:
        return h->format && !h->info.maybe_sealed;
    default:
        return false;
    }
}

int image_shared_refuse(struct guard *g, struct inode *i, const char *what)
{
    if (!image_is_shared(g, i))
        return 0;
    image_log_refused(
        g, i, what,
        "shared= names it, so that it is never claimed, but its header may be one that a seal left, and no claim on the datastore says so. See diskguardctl show, and fsck.diskguard %s; what is shared on purpose should be raw",
        g->store.path);
    return -EUCLEAN;
}

void image_shared_enter(struct guard *g, struct image *img, struct handle *h)
{
    if (!image_is_shared(g, img->inode))
        return;
    atomic_fetch_add(&img->shared.writers, 1);
    atomic_store(&h->shared, true);
}

void image_shared_leave(struct image *img, struct handle *h)
{
    if (atomic_exchange(&h->shared, false))
        atomic_fetch_sub(&img->shared.writers, 1);
}

/* ---- for people ---- */

struct found_file {
    struct inode *inode; /* pinned */
    struct opener who;
    unsigned writers;
};

struct found {
    struct guard *g;
    struct found_file *file;
    size_t n, room;
};

static void found_handle(void *arg, struct handle *h)
{
    struct found *f = arg;
    if (!atomic_load(&h->shared))
        return;
    for (size_t k = 0; k < f->n; k++) {
        if (f->file[k].inode == h->inode) {
            f->file[k].writers++;
            return;
        }
    }
    if (f->n == f->room) {
        size_t room = f->room ? 2 * f->room : 16;
        void *grown = reallocarray(f->file, room, sizeof(*f->file));
        if (!grown)
            return;
        f->file = grown;
        f->room = room;
    }
    inode_pin(f->g->inodes, h->inode);
    f->file[f->n].inode = h->inode;
    f->file[f->n].who = h->opener;
    f->file[f->n++].writers = 1;
}

void image_shared_each(struct guard *g, void (*fn)(void *arg, const struct image_shared *s),
                       void *arg)
{
    struct found f = {.g = g};
    if (g->opt.shared_globs)
        handle_each(g->handles, found_handle, &f);
    for (size_t k = 0; k < f.n; k++) {
        char path[PATH_MAX];
        image_path(g, f.file[k].inode, path, sizeof(path));
        fn(arg, &(struct image_shared){.path = path,
                                       .ino = f.file[k].inode->ino,
                                       .who = f.file[k].who,
                                       .writers = f.file[k].writers});
        inode_put(g->inodes, f.file[k].inode);
    }
    free(f.file);
}
