/* restore.c: the end of a hold: the last handle is closed, the daemon stops, or a STUCK image is
 * tried again. */
#include "guard/restore.h"

#include <stdio.h>
#include <string.h>

#include "guard/chain.h"
#include "guard/held.h"
#include "guard/plain.h"
#include "guard/qemu_locks_priv.h"
#include "guard/readers_priv.h"
#include "guard/reopen.h"
#include "guard/shared.h"
#include "run/pool.h"

/* There is no image to put anything back into: free the claim, drop the row. The tombstone stays:
 * claim.h, "Numbers". */
static int forget(struct guard *g, struct image *img) REQUIRES(img->header)
{
    int r = claim_free_gone(&g->store, img->held.rec);
    if (r == 0 || r == -CLAIM_LOST)
        r = journal_remove(g->journal, img->held.rec->ino, img->held.rec->generation);
    return r;
}

/* It has no name left, but readers may have it open, here or elsewhere, and its record is about to
 * go: they see the true header on. */
static void unseal_removed(struct guard *g, struct image *img) REQUIRES(img->header)
{
    int r =
        img->held.fd < 0 || img->held.rec->plan.n == 0 ? 0 : claim_check(&g->store, img->held.rec);
    if (r == 0 && img->held.fd >= 0 && img->held.rec->plan.n > 0)
        r = seal_undo(img->held.fd, img->held.rec);
    if (r < 0)
        log_debug("'%s', which was removed, stays sealed: %s", img->held.rec->image, strerror(-r));
}

static int restore_steps(struct guard *g, struct image *img) REQUIRES(img->header)
{
    /* Whatever was seen before: a claim is given up unrestored only on what is proved now. */
    int r = store_gone(&g->store, img->held.fd, &img->held.rec->handle);
    if (r < 0)
        /* also where it is not known: a new descriptor is tried, and the monitor tries again */
        return -EIO;
    if (r == 1) {
        mutex_lock(&img->lock);
        /* Our own unlink or rename over it, its holder's, or it was said. */
        bool expected = img->exclusive || img->unlinked || img->vanished;
        mutex_unlock(&img->lock);
        if (!expected)
            image_log_state(
                g, img, LOG_WARNING,
                "VANISHED: removed on the datastore while it was held; nothing to restore", 0);
        unseal_removed(g, img);
        return forget(g, img);
    }
    r = io_fsync(img->held.fd);
    if (r < 0)
        (void)image_held_sync_failed(img, -r);
    img->held.rec->sync_error = atomic_load(&img->held.sync_error);
    if (r < 0)
        return r;

    if (atomic_load(&img->held.wrote))
        img->held.rec->chosen = false;
    r = seal_judge_chosen(img->held.fd, img->held.rec);
    if (r < 0)
        return r;
    image_qemu_drop(img);
    struct seal s = image_seal(g, img);
    s.unfence = !image_plain_has_fence(img); /* else the lock is that of plain writers, too */
    return seal_restore(&s);
}

/* The steps, once more with a new descriptor where the storage has given up the old one. */
static int restore_reopened(struct guard *g, struct image *img) REQUIRES(img->header)
{
    int r = restore_steps(g, img);
    if (!io_err_dead(r))
        return r;
    int reopened = image_reopen_seal(g, img);
    if (reopened == -CLAIM_LOST)
        return reopened;
    return reopened < 0 ? r : restore_steps(g, img);
}

/* ---- lower generations: nobody waits for their removal ---- */

struct clearing {
    const struct store *store;
    uint64_t ino, generation;
};

static void clear_lower(void *arg)
{
    struct clearing *c = arg;
    claim_clear(c->store, c->ino, c->generation);
    free(c);
}

void image_clear_later(struct guard *g, uint64_t ino, uint64_t generation)
{
    struct clearing *c = malloc(sizeof(*c));
    if (!c)
        return; /* the next release of the image does it */
    *c = (struct clearing){&g->store, ino, generation};
    pool_submit(g->pool, clear_lower, c);
}

/* To IDLE. */
static void end(struct guard *g, struct image *img)
{
    rwlock_write(&img->header);
    image_held_forget(img);
    rwlock_write_unlock(&img->header);
    image_end(g, img);
}

int image_restore(struct guard *g, struct image *img)
{
    struct record full;
    rwlock_write(&img->header);
    image_record_open(img, &full);
    image_reader_follow(g, img);
    int r = restore_reopened(g, img);
    if (r == -CLAIM_LOST) {
        image_log_state(
            g, img, LOG_CRIT,
            "the claim of this host is gone before the restore: nothing was written back", 0);
        r = image_drop_lost_row(g, img);
        if (r < 0) /* a row without a claim is forgotten by the next start */
            image_log_state(g, img, LOG_WARNING, "its journal row could not be removed", r);
        r = 0;
    }
    if (r < 0 && img->held.rec->step != STEP_STUCK && img->held.rec->step != STEP_FREE) {
        /* Other hosts read it there: they need not wait for a release that does not come. */
        img->held.rec->step = STEP_STUCK;
        struct seal s = image_seal(g, img);
        int told = seal_record(&s);
        if (told < 0)
            image_log_state(g, img, LOG_DEBUG, "could not be marked as stuck", told);
    }
    if (r == 0) {
        image_held_freed(img);
        image_qemu_drop(img); /* closing is not enough: plain writers may share the open file */
    }
    struct image_below below = {0};
    if (r == 0)
        below = image_chain_take(img);
    uint64_t generation = img->held.rec->generation;
    image_record_close(img);
    rwlock_write_unlock(&img->header);
    if (r == 0) {
        image_chain_drop(g, img->inode->ino, generation, &below);
        uint64_t ino = img->inode->ino;
        end(g, img);
        image_clear_later(g, ino, generation);
        return 0;
    }
    mutex_lock(&img->lock);
    bool repeated = img->info.error == -r;
    image_move_locked(g, img, IMAGE_STUCK, -r);
    mutex_unlock(&img->lock);
    if (!repeated)
        guard_attention(g); /* once at once: most of what fails here passes */
    if (!repeated)
        image_log_state(
            g, img, LOG_ERR,
            r == -EUCLEAN
                ? "STUCK: its header on the datastore is neither the sealed nor the true one, somebody else wrote to it. Nothing was touched; compare with `diskguardctl show` and repair with fsck.diskguard"
                : "STUCK: the header could not be put back; it is tried again every few seconds",
            r);
    return r;
}

static void end_fenced(struct guard *g, struct image *img)
{
    struct record full;
    rwlock_write(&img->header);
    image_record_open(img, &full);
    int r = image_drop_lost_row(g, img);
    image_record_close(img);
    image_qemu_drop(img);
    rwlock_write_unlock(&img->header);
    if (r < 0)
        image_log_state(g, img, LOG_WARNING,
                        "its claim or journal row could not be removed; the next start does it", r);
    end(g, img);
}

void image_unguard(struct guard *g, struct image *img)
{
    enum image_state was;
    mutex_lock(&img->lock);
    bool last = --img->n_guarded == 0;
    was = img->state;
    if (last && (was == IMAGE_SEALED || was == IMAGE_VANISHED))
        image_move_locked(g, img, IMAGE_RESTORING, 0);
    mutex_unlock(&img->lock);
    if (!last)
        return;
    if (was == IMAGE_SEALED || was == IMAGE_VANISHED) {
        if (image_restore(g, img) < 0)
            return; /* STUCK: logged; the monitor goes on */
    } else if (was == IMAGE_FENCED) {
        end_fenced(g, img);
    }
}

void image_release(struct guard *g, struct handle *h)
{
    struct image *img = atomic_load(&h->inode->image);
    if (img && h->writer)
        image_writer_remove(img, h);
    if (h->fd >= 0 && close(h->fd) < 0 && h->writer && errno != EINTR)
        image_sync_failed(h, errno);
    h->fd = -1;
    if (h->direct_fd >= 0)
        close(h->direct_fd);
    h->direct_fd = -1;
    if (img)
        image_plain_leave(g, img, h);
    if (img)
        image_shared_leave(img, h);
    if (atomic_exchange(&h->guarded, false))
        image_unguard(g, img);
}

/* ---- the end of the daemon ---- */

struct ending {
    struct guard *g;
    struct image *img;
    atomic_uint *left;
};

static void restore_at_end(void *arg)
{
    struct ending *e = arg;
    if (image_restore(e->g, e->img) < 0)
        atomic_fetch_add(e->left, 1);
}

/* Side by side: on slow storage one after the other takes minutes, and one that hangs stops all
 * others. */
unsigned image_shutdown(struct guard *g)
{
    unsigned n;
    atomic_uint left = 0;
    struct image **list = image_busy_list(g, &n);
    struct ending *all = calloc(n + 1, sizeof(*all)), here;
    for (unsigned k = 0; k < n; k++) {
        struct image *img = list[k];
        struct ending *e = all ? &all[k] : &here;
        mutex_lock(&img->lock);
        enum image_state state = img->state;
        image_held_stop(img);
        bool guarded = state == IMAGE_SEALED || state == IMAGE_STUCK || state == IMAGE_VANISHED;
        if (guarded)
            image_move_locked(g, img, IMAGE_RESTORING, 0);
        mutex_unlock(&img->lock);
        *e = (struct ending){g, img, &left};
        if (guarded && all)
            pool_submit(g->pool, restore_at_end, e);
        else if (guarded)
            restore_at_end(e);
    }
    if (n > 0)
        pool_drain(g->pool);
    for (unsigned k = 0; k < n; k++)
        inode_put(g->inodes, list[k]->inode);
    free(all);
    free(list);
    return left;
}
