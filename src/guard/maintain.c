/* maintain.c: what the monitor does with each image that is not IDLE. */
#include <string.h>

#include "guard/edit.h"
#include "guard/fence.h"
#include "guard/held.h"
#include "guard/image.h"
#include "guard/plain.h"
#include "guard/probe.h"
#include "guard/readers_priv.h"
#include "guard/reopen.h"
#include "guard/restore.h"
#include "guard/zone.h"
#include "run/pool.h"

/* Looks of the monitor under way at the same time: the rest of the pool stays for users, whatever
 * hangs here. */
#define IMAGE_MAINTAIN_MAX (POOL_THREADS_MAX / 4u)

/* What is known of a held image, read without image->lock. */
struct held_look {
    struct record rec;
    int gone; /* store_gone() */
    bool lost;
};

static bool look_at_held(struct guard *g, struct image *img, struct held_look *ret)
{
    rwlock_read(&img->header);
    bool held = img->held.recorded && img->held.fd >= 0;
    if (held) {
        packed_get(img->held.packed, &ret->rec);
        ret->gone = store_gone(&g->store, img->held.fd, &ret->rec.handle);
    }
    rwlock_read_unlock(&img->header);
    ret->lost = held && ret->gone != 1 && claim_check(&g->store, &ret->rec) == -CLAIM_LOST;
    return held;
}

/* Is the claim of a SEALED or VANISHED image still ours, and the image still there? VANISHED is a
 * hint for people: the last close looks again. */
static void check_claim(struct guard *g, struct image *img)
{
    _cleanup_free_ struct held_look *l = calloc(1, sizeof(*l));
    if (!l || !look_at_held(g, img, l))
        return;
    mutex_lock(&img->lock);
    /* A release or a new hold in between has another generation, or another state: then this look
     * says nothing. */
    bool same = !img->exclusive && !img->unlinked && img->n_names == 0 &&
                img->info.generation == l->rec.generation;
    bool vanished = same && img->state == IMAGE_SEALED && l->gone == 1;
    bool back = same && img->state == IMAGE_VANISHED && l->gone == 0;
    if (vanished)
        image_move_locked(g, img, IMAGE_VANISHED, 0);
    if (back)
        image_move_locked(g, img, IMAGE_SEALED, 0);
    if (vanished || back)
        img->vanished = vanished;
    mutex_unlock(&img->lock);
    if (vanished)
        image_log_state(g, img, LOG_WARNING,
                        "VANISHED: removed on the datastore while it is held here", 0);
    if (back)
        image_log_state(g, img, LOG_NOTICE, "the datastore has it again: it is held as before", 0);
    if (same && l->lost)
        image_fence(g, img);
}

/* A copy that grows behind its header looks like a lie until its tables are there, and has no seal
 * until then. */
static void seal_late(struct guard *g, struct image *img)
{
    mutex_lock(&img->lock);
    bool late = img->state == IMAGE_SEALED && !img->exclusive && !img->info.sealed &&
                strcmp(img->info.format, "raw") != 0 && strcmp(img->info.format, "none") != 0;
    mutex_unlock(&img->lock);
    if (!late)
        return;
    struct record full;
    int r = 0;
    rwlock_write(&img->header);
    mutex_lock(&img->lock);
    late = img->state == IMAGE_SEALED; /* a release may have begun */
    mutex_unlock(&img->lock);
    if (late && img->held.recorded && img->held.fd >= 0 && !packed_has_plan(img->held.packed)) {
        r = image_record_edit(img, &full);
        if (r == 0) {
            struct seal s = image_seal(g, img);
            struct edit nothing = {.kind = EDIT_WRITE};
            r = seal_edit(&s, &nothing);
            image_zone_set(img, &s.zone);
            image_note(img);
            image_record_close(img);
        }
    }
    rwlock_write_unlock(&img->header);
    if (r == -CLAIM_LOST)
        image_fence(g, img);
    else if (r < 0)
        image_log_state(g, img, LOG_WARNING,
                        "its header is complete now but could not be sealed; it is tried again", r);
}

static void maintain_one(struct guard *g, struct image *img)
{
    mutex_lock(&img->lock);
    enum image_state state = img->state;
    int error = img->info.error;
    if (state == IMAGE_STUCK) {
        image_move_locked(g, img, IMAGE_RESTORING, error);
    }
    mutex_unlock(&img->lock);
    if (state == IMAGE_STUCK) {
        if (image_restore(g, img) == 0)
            image_log_state(g, img, LOG_NOTICE, "it was STUCK, and is restored and free again", 0);
    } else if (state == IMAGE_SEALED || state == IMAGE_VANISHED) {
        check_claim(g, img);
        image_follow_name(g, img);
        seal_late(g, img);
        image_qemu_maintain(g, img);
    }
}

/* ---- plain files that are open for write ---- */

/* Collects the inodes of plain files that are open for write. */
struct plain_writers {
    struct guard *g;
    struct inode **inode; /* pinned */
    size_t n, room;
};

static void plain_writer(void *arg, struct handle *h)
{
    struct plain_writers *w = arg;
    if (!h->writer || atomic_load(&h->guarded))
        return;
    if (w->n == w->room) {
        size_t room = w->room ? 2 * w->room : 64;
        struct inode **grown = reallocarray(w->inode, room, sizeof(*grown));
        if (!grown)
            return; /* the next round may have memory */
        w->inode = grown;
        w->room = room;
    }
    inode_pin(w->g->inodes, h->inode);
    w->inode[w->n++] = h->inode;
}

/* Nobody else holds it (it was renamed to a raw image's name, or got its footer where no write is
 * looked at): its writers do, then. -EAGAIN, -EALREADY: they are just changing it, or another
 * thread is at it; any other -errno: it is not theirs. */
static int adopt_idle(struct guard *g, struct image *img)
{
    struct opener who = {0};
    int r = -EAGAIN;
    mutex_lock(&img->lock);
    bool any = img->writers != NULL;
    if (any)
        who = img->writers->opener;
    mutex_unlock(&img->lock);
    for (unsigned n = 0; any && r == -EAGAIN && n < IMAGE_CHANGED_MAX; n++)
        r = image_convert(g, img, &who, NULL);
    return r;
}

static void bar_writers(struct guard *g, struct inode *i)
{
    struct image *img = atomic_load(&i->image);
    bool guarded, news = false;
    if (!img || !image_is_idle(img) || image_plain_reopen(g, img) < 0 ||
        image_guarded_inode(g, i, &guarded) < 0)
        return;
    int r = guarded ? adopt_idle(g, img) : 0;
    if (guarded && (r == 0 || r == -EAGAIN || r == -EALREADY))
        return; /* nobody else can claim it while they have the fence: the next round looks again */
    mutex_lock(&img->lock);
    for (struct handle *h = img->state == IMAGE_IDLE ? img->writers : NULL; h; h = h->next_writer) {
        if (atomic_load(&h->guarded))
            continue;
        bool was = atomic_exchange(&h->barred.err, guarded ? EBUSY : 0) == EBUSY;
        bool said = atomic_exchange(&h->barred.said, guarded);
        news |= guarded && !(was && said);
    }
    mutex_unlock(&img->lock);
    if (news)
        image_log_refused(
            g, i, "further writes",
            "it was opened here as a plain file, and has become an image since. Whoever has it open must open it again");
}

static void maintain_plain(struct guard *g)
{
    struct plain_writers w = {.g = g};
    g->locks_lost = atomic_exchange(&g->locks_lost_new, false);
    handle_each(g->handles, plain_writer, &w);
    for (size_t k = 0; k < w.n; k++) {
        bar_writers(g, w.inode[k]);
        inode_put(g->inodes, w.inode[k]);
    }
    free(w.inode);
}

/* ---- rounds: on the pool, so that one image whose storage hangs stops no other ---- */

struct image_maintain {
    struct guard *g;
    struct mutex lock;
    struct cond quiet;                         /* with lock: the last runner has ended */
    STAILQ_HEAD(, image) due GUARDED_BY(lock); /* pinned: wait for a runner */
    unsigned n_due GUARDED_BY(lock);
    unsigned runners GUARDED_BY(lock);  /* jobs in the pool */
    bool plain_due GUARDED_BY(lock);    /* the plain writers wait for a runner */
    bool plain_queued GUARDED_BY(lock); /* they wait, or one is at them */
};

struct image_maintain *image_maintain_new(struct guard *g)
{
    struct image_maintain *t = calloc(1, sizeof(*t));
    if (!t)
        return NULL;
    t->g = g;
    mutex_init(&t->lock);
    cond_init(&t->quiet);
    mutex_lock(&t->lock);
    STAILQ_INIT(&t->due);
    mutex_unlock(&t->lock);
    return t;
}

/* Takes the pin over. What waits or is under way from an earlier round is left at that. */
static void due_add(struct image_maintain *t, struct image *img)
{
    mutex_lock(&t->lock);
    bool add = !img->maintain.queued;
    if (add) {
        img->maintain.queued = true;
        STAILQ_INSERT_TAIL(&t->due, img, maintain.next);
        t->n_due++;
    }
    mutex_unlock(&t->lock);
    if (!add)
        inode_put(t->g->inodes, img->inode);
}

/* *ret NULL: the plain writers. */
static bool due_take_locked(struct image_maintain *t, struct image **ret) REQUIRES(t->lock)
{
    *ret = STAILQ_FIRST(&t->due);
    if (!*ret) {
        bool plain = t->plain_due;
        t->plain_due = false;
        return plain;
    }
    STAILQ_REMOVE_HEAD(&t->due, maintain.next);
    t->n_due--;
    return true;
}

static void maintain_runner(void *arg)
{
    struct image_maintain *t = arg;
    struct image *img;
    mutex_lock(&t->lock);
    while (due_take_locked(t, &img)) {
        mutex_unlock(&t->lock);
        if (img) {
            maintain_one(t->g, img);
        } else {
            maintain_plain(t->g);
            image_reader_maintain(t->g);
        }
        mutex_lock(&t->lock);
        *(img ? &img->maintain.queued : &t->plain_queued) = false;
        mutex_unlock(&t->lock);
        if (img)
            inode_put(t->g->inodes, img->inode);
        mutex_lock(&t->lock);
    }
    if (--t->runners == 0)
        cond_broadcast(&t->quiet);
    mutex_unlock(&t->lock);
}

void image_maintain_round(struct image_maintain *t)
{
    unsigned n, more;
    struct image **list = image_busy_list(t->g, &n);
    for (unsigned k = 0; k < n; k++)
        due_add(t, list[k]);
    free(list);
    mutex_lock(&t->lock);
    if (!t->plain_queued)
        t->plain_due = t->plain_queued = true;
    /* One for each that waits: those that run already may all hang. */
    more = DG_MIN(t->n_due + t->plain_due, IMAGE_MAINTAIN_MAX - t->runners);
    t->runners += more;
    mutex_unlock(&t->lock);
    while (more-- > 0)
        pool_submit(t->g->pool, maintain_runner, t);
}

void image_maintain_free(struct image_maintain *t)
{
    struct image *img;
    if (!t)
        return;
    mutex_lock(&t->lock);
    while (due_take_locked(t, &img)) { /* not begun */
        mutex_unlock(&t->lock);
        if (img)
            inode_put(t->g->inodes, img->inode);
        mutex_lock(&t->lock);
    }
    while (t->runners > 0)
        cond_wait(&t->quiet, &t->lock);
    mutex_unlock(&t->lock);
    cond_destroy(&t->quiet);
    mutex_destroy(&t->lock);
    free(t);
}
