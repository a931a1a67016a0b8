/* held.c: a held image as its claim and record say it, and what its handles ask before and after
 * they write. */
#include "guard/held.h"

#include <stdio.h>
#include <string.h>

#include "guard/refuse.h"
#include "guard/zone.h"

/* ---- the record ---- */

void image_record_open(struct image *img, struct record *full)
{
    packed_get(img->held.packed, full);
    img->held.rec = full;
}

int image_record_edit(struct image *img, struct record *full)
{
    int r = packed_room(&img->held.packed);
    if (r == 0)
        image_record_open(img, full);
    return r;
}

void image_record_close(struct image *img)
{
    if (img->held.recorded)
        packed_put(&img->held.packed, img->held.rec);
    img->held.rec = NULL;
}

static void zone_widened(void *arg, const struct format_zone *zone) NO_THREAD_SAFETY_ANALYSIS
{
    image_zone_set(arg, zone); /* in seal_edit(), under img->header */
}

struct seal image_seal(struct guard *g, struct image *img)
{
    return (struct seal){.store = &g->store,
                         .journal = g->journal,
                         .fd = img->held.fd,
                         .policy = g->policy,
                         .rec = img->held.rec,
                         .untold = !io_fstype(g->store.root_fd)->shared,
                         .zone = image_zone(img),
                         .widened = zone_widened,
                         .arg = img};
}

/* Without asking anybody: does this host's kernel know another name of it? */
static bool has_new_name(struct guard *g, struct image *img)
{
    char now[RECORD_IMAGE_MAX];
    image_path(g, img->inode, now, sizeof(now));
    mutex_lock(&img->lock);
    bool other = img->path && strcmp(now, img->path) != 0;
    mutex_unlock(&img->lock);
    return other;
}

static void tell_name(struct guard *g, struct image *img) REQUIRES(img->header)
{
    char now[RECORD_IMAGE_MAX];
    struct record *rec = img->held.rec;
    if (rec->step > STEP_SEALED || !image_path_now(g, img->inode, now, sizeof(now)) ||
        strcmp(now, rec->image) == 0)
        return;
    struct seal s = image_seal(g, img);
    snprintf(rec->image, sizeof(rec->image), "%s", now);
    image_note(img);
    int r = seal_record(&s);
    if (r < 0) /* a claim that is lost is for the monitor to find */
        log_debug("'%s' is not told under its new name: %s", now, strerror(-r));
}

void image_follow_name(struct guard *g, struct image *img)
{
    struct record full;
    if (!has_new_name(g, img))
        return;
    rwlock_write(&img->header);
    bool held = img->held.recorded && img->held.fd >= 0 && atomic_load(&img->held.valid) &&
                atomic_load(&img->held.io_error) == 0;
    if (held && image_record_edit(img, &full) == 0) {
        tell_name(g, img);
        image_record_close(img);
    }
    rwlock_write_unlock(&img->header);
}

void image_renamed(struct guard *g, const struct inode *i)
{
    unsigned n;
    struct image **list =
        S_ISREG(i->type) && !atomic_load(&i->image) ? NULL : image_busy_list(g, &n);
    for (unsigned k = 0; list && k < n; k++) {
        if (!S_ISREG(i->type) || list[k]->inode == i)
            image_follow_name(g, list[k]);
        inode_put(g->inodes, list[k]->inode);
    }
    free(list);
}

/* ---- the hold ---- */

int image_held_prepare(struct image *img, struct record *full)
{
    int r = image_record_edit(img, full); /* for nothing is there yet, an empty one */
    img->held.recorded = r == 0;
    return r;
}

void image_held_begin(struct image *img)
{
    mutex_lock(&img->lock);
    img->held.mtime = img->held.rec->mtime;
    mutex_unlock(&img->lock);
    image_note(img);
    atomic_fetch_add(&img->held.count, 1);
    atomic_store(&img->held.valid, true);
}

void image_held_freed(struct image *img)
{
    atomic_store(&img->held.valid, false);
}

int image_held_fd(struct image *img, int fd)
{
    int was = img->held.fd;
    img->held.fd = fd;
    return was;
}

void image_held_forget(struct image *img)
{
    free(img->held.packed);
    img->held.packed = NULL;
    img->held.rec = NULL;
    img->held.recorded = false;
    atomic_store(&img->held.valid, false);
    atomic_store(&img->held.io_error, 0);
    atomic_store(&img->held.sync_error, 0);
    atomic_store(&img->held.wrote, false);
    int fd = image_held_fd(img, -1);
    if (fd >= 0)
        close(fd); /* synced by the restore; the fence lock goes with it */
}

void image_held_wrote(struct image *img)
{
    if (!atomic_load_explicit(&img->held.wrote, memory_order_relaxed))
        atomic_store(&img->held.wrote, true);
}

void image_held_chosen(struct image *img, struct timespec mtime)
{
    mutex_lock(&img->lock);
    img->held.mtime = mtime;
    mutex_unlock(&img->lock);
    atomic_store(&img->held.wrote, false);
}

void image_held_stop(struct image *img)
{
    atomic_store(&img->held.io_error, EIO);
}

bool image_held_sync_failed(struct image *img, int err)
{
    int none = 0;
    return atomic_compare_exchange_strong(&img->held.sync_error, &none, err);
}

/* ---- the claim ---- */

bool image_own_claim(const struct guard *g, const struct record *rec, const struct opener *who)
{
    struct opener holder = {.pid = rec->pid, .start = rec->start};
    return claim_is_of(rec, &g->host) &&
           (g->opt.writers == WRITERS_HOST || opener_same(&holder, who));
}

int image_claim_rules(struct guard *g, struct image *img)
{
    _cleanup_free_ struct record *rec = malloc(sizeof(*rec));
    if (!rec)
        return -ENOMEM;
    rwlock_read(&img->header);
    bool held = img->held.recorded;
    if (held)
        packed_get(img->held.packed, rec);
    rwlock_read_unlock(&img->header);
    return held ? claim_check(&g->store, rec) : -EBUSY;
}

int image_drop_lost_row(struct guard *g, struct image *img)
{
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    int r =
        c ? claim_read_known(&g->store, img->held.rec->ino, img->held.rec->generation, c) : -ENOMEM;
    if (r < 0)
        return r;
    const struct record *rec = img->held.rec;
    bool successor = c->generation > rec->generation;
    /* Freed after a restore. An older claim says nothing about this hold: ours is missing then. */
    bool freed =
        c->kind == CLAIM_FREE && c->generation == rec->generation && claim_is_of(&c->rec, &g->host);
    if (successor || freed || rec->plan.n == 0)
        return journal_remove(g->journal, rec->ino, rec->generation);
    if (c->kind == CLAIM_HELD && c->generation == rec->generation &&
        claim_is_of(&c->rec, &g->host)) {
        image_log_state(
            g, img, LOG_WARNING,
            "its claim is there again: nothing was written back yet. The next open here, or the next start of this daemon, restores the header",
            0);
        return 0;
    }
    image_log_state(
        g, img, LOG_CRIT,
        "its claim is missing on the datastore. Nothing was written back; the journal of this host keeps the true header: with the view unmounted, fsck.diskguard -y restores it",
        0);
    return 0;
}

/* ---- its handles ---- */

int image_write_allowed(const struct handle *h)
{
    if (!atomic_load_explicit(&h->guarded, memory_order_relaxed))
        return -atomic_load_explicit(&h->barred.err, memory_order_relaxed);
    const struct image *img = atomic_load(&h->inode->image);
    return img && atomic_load(&img->held.io_error) ? -EIO : 0;
}

void image_wrote(struct handle *h)
{
    struct image *img = atomic_load(&h->inode->image);
    if (img)
        image_held_wrote(img);
}

void image_sync_failed(struct handle *h, int err)
{
    struct image *img = atomic_load(&h->inode->image);
    if (img && h->guarded)
        (void)image_held_sync_failed(img, err);
}

int image_sync_error(const struct handle *h)
{
    const struct image *img = atomic_load(&h->inode->image);
    return img && h->guarded ? -atomic_load(&img->held.sync_error) : 0;
}
