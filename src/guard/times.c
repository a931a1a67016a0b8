/* times.c: mtime that somebody sets, while the seal is on the datastore: core/seal.h says why that
 * one must not show it. */
#include <fcntl.h>
#include <string.h>

#include "guard/conflict.h"
#include "guard/held.h"
#include "guard/image.h"
#include "guard/probe.h"

static int set_on_storage(const struct inode *i, const struct timespec tv[2])
{
    return utimensat(i->fd, "", tv, AT_EMPTY_PATH) < 0 ? -errno : 0;
}

static bool is_chosen(const struct timespec *t)
{
    return t->tv_nsec != UTIME_OMIT && t->tv_nsec != UTIME_NOW;
}

/* Into the record, of an image that this host has sealed. The next write makes it void, as it would
 * on any file: image_wrote(). */
static int choose(struct guard *g, struct image *img, struct timespec mtime) REQUIRES(img->header)
{
    struct record *rec = img->held.rec, old = {.chosen = rec->chosen,
                                               .mtime_chosen = rec->mtime_chosen,
                                               .mtime_seen = rec->mtime_seen};
    struct stat st;
    int r = io_fresh_stat(img->held.fd, &st);
    if (r < 0)
        return r;
    rec->chosen = true;
    rec->mtime_chosen = mtime;
    rec->mtime_seen = st.st_mtim;
    struct seal s = image_seal(g, img);
    r = seal_record(&s);
    if (r < 0) {
        rec->chosen = old.chosen;
        rec->mtime_chosen = old.mtime_chosen;
        rec->mtime_seen = old.mtime_seen;
        return image_answer(r);
    }
    image_held_chosen(img, mtime);
    return 0;
}

static int set_sealed(struct guard *g, struct image *img, const struct timespec tv[2])
    REQUIRES(img->header)
{
    const struct timespec rest[2] = {tv[0], {.tv_nsec = UTIME_OMIT}};
    if (is_chosen(&tv[1])) {
        int r = tv[0].tv_nsec == UTIME_OMIT ? 0 : set_on_storage(img->inode, rest);
        return r < 0 ? r : choose(g, img, tv[1]);
    }
    int r = set_on_storage(img->inode, tv);
    if (r == 0 && tv[1].tv_nsec == UTIME_NOW)
        image_held_wrote(img); /* as a write: the restore's will be later */
    return r;
}

/* Would a sealed image of another host show a chosen time? That one would be gone after its
 * restore, and whoever set it should know. Setting what is there already (a program that puts atime
 * back), or now, which is older than what the restore sets, loses nothing. */
static int may_set(struct guard *g, struct inode *i, const struct timespec *mtime,
                   struct conflict *ret)
{
    _cleanup_header_ struct header *h = header_new();
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    struct stat st;
    if (!h || !c)
        return -ENOMEM;
    int r = image_header(g, i, h);
    if (r < 0 || h->verdict == FORMAT_PLAIN || h->verdict == FORMAT_IMAGE)
        return 0; /* what cannot be read cannot be known: as on the datastore */
    r = claim_read(&g->store, i->ino, c);
    if (r == 0)
        r = io_fresh_stat(i->fd, &st);
    if (r < 0 || c->kind != CLAIM_HELD || c->rec.plan.n == 0 || claim_is_of(&c->rec, &g->host))
        return r;
    if (st.st_mtim.tv_sec == mtime->tv_sec && st.st_mtim.tv_nsec == mtime->tv_nsec)
        return 0;
    conflict_claim(ret, &c->rec);
    return -EBUSY;
}

int image_set_times(struct guard *g, struct inode *i, const struct timespec tv[2],
                    struct conflict *ret)
{
    struct image *img = atomic_load(&i->image);
    if (img) {
        struct record full;
        bool sealed = false;
        int r = 0;
        rwlock_write(&img->header); /* an open or a restore of this host under way */
        /* not after the restore */
        if (atomic_load(&img->held.valid) && img->held.recorded) {
            image_record_open(img, &full);
            sealed = seal_was_taken(&full);
            r = sealed ? set_sealed(g, img, tv) : 0;
            image_record_close(img);
        }
        rwlock_write_unlock(&img->header);
        if (sealed)
            return r;
    }
    int r = is_chosen(&tv[1]) && i->dev == g->store.dev ? may_set(g, i, &tv[1], ret) : 0;
    return r < 0 ? r : set_on_storage(i, tv);
}
