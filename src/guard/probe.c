/* probe.c: what a file is: plain, or an image. */
#include "guard/probe.h"

#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "guard/chain.h"
#include "guard/listing.h"
#include "guard/refuse.h"
#include "guard/shared.h"
#include "guard/snapshot.h"
#include "guard/zone.h"

static void note_zone(const struct inode *i, const struct header *h)
{
    struct image *img = atomic_load(&i->image);
    if (img)
        image_zone_seen(img, &h->info.zone);
}

/* And the zone that is seen. */
static int load_header(const struct guard *g, const struct inode *i, int fd, struct header *ret)
{
    struct stat st;
    int r = io_fresh_stat(fd, &st);
    if (r == 0)
        r = header_load_of(fd, i->dev == g->store.dev ? g->store.fs : NULL, &st, ret);
    if (r == 0)
        note_zone(i, ret);
    return r;
}

int image_header(struct guard *g, struct inode *i, struct header *ret)
{
    _cleanup_close_ int fd = inode_reopen(i, O_RDONLY);
    if (io_err_denied(fd))
        image_log_closed(g, i, "read");
    return fd < 0 ? fd : load_header(g, i, fd, ret);
}

bool image_name_is_raw(const struct guard *g, const char *name)
{
    static const char *const usual[] = {"*.img", "*.raw", NULL};
    const char *const *globs = usual;
    switch (g->opt.raw) {
    case RAW_ALL:
        return true;
    case RAW_NONE:
        return false;
    case RAW_GLOBS:
        globs = (const char *const *)g->opt.raw_globs;
        break;
    case RAW_AUTO:
        break;
    }
    for (; *globs; globs++)
        if (fnmatch(*globs, name, 0) == 0)
            return true;
    return false;
}

/* A file may have several names, and on shared storage get new ones behind our back: the one that
 * the kernel asked for last counts as well as the one under which it was first met, and once is for
 * ever, so that a rename does not let a second writer in. sole: the former is the only one. */
static bool raw_by_name(struct guard *g, struct inode *i, bool sole)
{
    struct image *img = atomic_load(&i->image);
    char path[PATH_MAX], last[NAME_MAX + 1];
    if (img && atomic_load(&img->probe.raw_named))
        return true;
    inode_last_name(g->inodes, i, last, sizeof(last));
    bool raw = image_name_is_raw(g, last);
    if (!raw && !(sole && last[0])) {
        image_path(g, i, path, sizeof(path));
        const char *slash = strrchr(path, '/');
        raw = image_name_is_raw(g, slash ? slash + 1 : path);
    }
    if (raw && img)
        atomic_store(&img->probe.raw_named, true);
    return raw;
}

static bool is_image(struct guard *g, struct inode *i, const struct header *h, bool sole)
{
    if (image_shared_exempt(g, i, h))
        return false;
    switch (h->verdict) {
    case FORMAT_PLAIN:
        return raw_by_name(g, i, sole);
    case FORMAT_IMAGE: /* a partition table makes a raw image only where the admin lets it
                        * (raw=auto, raw=all)
                        */
        if (h->format->weak)
            return g->opt.raw == RAW_AUTO || raw_by_name(g, i, sole);
        return true;
    default:
        return true;
    }
}

bool image_is_image(struct guard *g, struct inode *i, const struct header *h)
{
    return is_image(g, i, h, false);
}

/* Of a look that has begun: what was fetched for it need not be asked again. */
static int probe_header(struct guard *g, struct inode *i, const struct file_probe *p,
                        struct header *ret)
{
    if (p->fd < 0)
        return image_header(g, i, ret);
    if (!p->seen)
        return load_header(g, i, p->fd, ret);
    int r = header_load_of(p->fd, g->store.fs, &p->st, ret);
    if (r == 0)
        note_zone(i, ret);
    return r;
}

/* While a footer or a whole header is on the move, and where its holder died then, sealed bytes lie
 * where the header does not say: the claim does. A disk of any name (disk.h) is an image while it
 * is held: what another host writes must not be read from this one's cache. */
static int probe_claim(struct guard *g, struct inode *i, struct image_snapshot *look,
                       const struct header *h, enum image_what *what)
{
    struct image *img = atomic_load(&i->image);
    struct io_handle handle;
    if (look->valid && image_listing_none(g, i, &look->claims_ctime)) {
        image_snapshot_end(img, look, h, NULL);
        return 0;
    }
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    int r = c ? claim_read(&g->store, i->ino, c) : -ENOMEM;
    if (r < 0)
        return r;
    image_snapshot_end(img, look, h, c);
    if (*what == IMAGE_WHAT_IMAGE || c->kind != CLAIM_HELD)
        return 0;
    if (io_handle_get(i->fd, &handle) < 0 || io_handle_equal(&c->rec.handle, &handle))
        *what = IMAGE_WHAT_IMAGE;
    return 0;
}

int image_probe(struct guard *g, struct inode *i, struct file_probe *p)
{
    _cleanup_header_ struct header *h = header_new();
    struct image *img = image_get(i); /* what is read here is to be remembered */
    struct image_snapshot look;
    if (!h || !img)
        return -ENOMEM;
    image_snapshot_begin(g, img, &look, &p->st);
    p->seen = look.valid;
    int r = probe_header(g, i, p, h);
    if (r < 0)
        return r;
    bool sole = p->named && p->seen && p->st.st_nlink == 1;
    p->what = is_image(g, i, h, sole) ? IMAGE_WHAT_IMAGE : IMAGE_WHAT_PLAIN;
    return i->dev == g->store.dev ? probe_claim(g, i, &look, h, &p->what) : 0;
}

bool image_is_free(struct guard *g, struct inode *i, const char *name)
{
    struct image *img = S_ISREG(i->type) && i->dev == g->store.dev ? image_get(i) : NULL;
    if (!img || !image_is_idle(img) || (name && image_name_is_raw(g, name)))
        return false;
    _cleanup_header_ struct header *h = header_new();
    _cleanup_close_ int fd = h ? inode_reopen(i, O_RDONLY) : -1;
    struct stat st;
    if (fd < 0 || io_fresh_stat(fd, &st) < 0 || header_load_of(fd, g->store.fs, &st, h) < 0)
        return false;
    note_zone(i, h);
    bool sole = name && st.st_nlink == 1 && inode_is_local(g->inodes, i);
    return !is_image(g, i, h, sole) && image_listing_unneeded(g, i);
}

/* Is this file guarded: by its header, by its name, because a held image needs it, or because
 * somebody holds it although it does not look like an image just now (its holder has truncated it,
 * is creating one, or has renamed a raw image)? Another file's claim under the same inode number
 * does not count. */
int image_guarded_inode(struct guard *g, struct inode *i, bool *ret)
{
    _cleanup_header_ struct header *hd = header_new();
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    if (!hd || !c)
        return -ENOMEM;
    int r = image_header(g, i, hd);
    if (r < 0)
        return r;
    *ret = image_is_image(g, i, hd);
    if (*ret || i->dev != g->store.dev)
        return 0;
    r = image_is_shared(g, i) ? 0 : image_chain_guards(g, i);
    *ret = r > 0;
    if (r != 0)
        return r < 0 ? r : 0;
    r = claim_read(&g->store, i->ino, c);
    if (r < 0 || c->kind == CLAIM_NONE || c->kind == CLAIM_FREE)
        return r;
    struct io_handle handle;
    if (c->kind == CLAIM_HELD) {
        r = io_handle_get(i->fd, &handle);
        if (r < 0)
            return r;
    }
    *ret = c->kind == CLAIM_BAD || io_handle_equal(&c->rec.handle, &handle);
    return 0;
}

/* O_TMPFILE files are not guarded: without a name nobody else can reach them. A file that was made
 * a moment ago holds nobody out. */
int image_guarded_file(struct guard *g, struct handle *h, bool *ret)
{
    struct stat st;
    int r = io_fresh_stat(h->fd, &st);
    if (r == 0)
        r = image_guarded_inode(g, h->inode, ret);
    if (r == 0 && st.st_nlink == 0)
        *ret = false;
    return r;
}
