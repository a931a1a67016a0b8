#include "guard/image.h"

#include "guard/shared.h"
#include "run/pool.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

static const char *const state_names[] = {
    [IMAGE_IDLE] = "idle",           [IMAGE_SEALING] = "sealing", [IMAGE_SEALED] = "sealed",
    [IMAGE_RESTORING] = "restoring", [IMAGE_FENCED] = "fenced",   [IMAGE_STUCK] = "stuck",
    [IMAGE_VANISHED] = "vanished",
};

const char *image_state_name(enum image_state s)
{
    return state_names[s];
}

/* Row: from; bit: to. */
#define TO(s) (1u << IMAGE_##s)
static const unsigned allowed[] = {
    [IMAGE_IDLE] = TO(SEALING),
    [IMAGE_SEALING] = TO(SEALED) | TO(IDLE) | TO(STUCK),
    [IMAGE_SEALED] = TO(RESTORING) | TO(FENCED) | TO(VANISHED),
    [IMAGE_RESTORING] = TO(IDLE) | TO(STUCK) | TO(FENCED) | TO(VANISHED),
    [IMAGE_FENCED] = TO(IDLE),
    [IMAGE_STUCK] = TO(RESTORING),
    [IMAGE_VANISHED] = TO(SEALED) | TO(RESTORING),
};

struct image_table *image_table_new(void)
{
    struct image_table *t = calloc(1, sizeof(*t));
    if (t)
        mutex_init(&t->lock);
    return t;
}

void image_table_free(struct image_table *t)
{
    if (!t)
        return;
    mutex_destroy(&t->lock);
    free(t);
}

struct image *image_get(struct inode *i)
{
    struct image *img = atomic_load(&i->image);
    if (img)
        return img;
    img = calloc(1, sizeof(*img));
    if (!img)
        return NULL;
    img->inode = i;
    mutex_init(&img->lock);
    cond_init(&img->moved);
    rwlock_init(&img->header);
    img->fd = -1;
    atomic_init(&img->zone_head, FORMAT_REACH);
    atomic_init(&img->zone_tail, UINT64_MAX);
    mutex_lock(&img->lock);
    img->plain_fd = -1;
    mutex_unlock(&img->lock);
    struct image *other = NULL;
    if (!atomic_compare_exchange_strong(&i->image, &other, img)) {
        image_free(img);
        img = other;
    }
    return img;
}

void image_free(struct image *img)
{
    if (!img)
        return;
    mutex_destroy(&img->lock);
    cond_destroy(&img->moved);
    rwlock_destroy(&img->header);
    free(img->path);
    free(img);
}

static void busy_add(struct guard *g, struct image *img)
{
    inode_pin(g->inodes, img->inode);
    mutex_lock(&g->images->lock);
    LIST_INSERT_HEAD(&g->images->busy, img, next_busy);
    mutex_unlock(&g->images->lock);
}

static void busy_remove(struct guard *g, struct image *img)
{
    mutex_lock(&g->images->lock);
    LIST_REMOVE(img, next_busy);
    mutex_unlock(&g->images->lock);
}

bool image_begin(struct guard *g, struct image *img)
{
    mutex_lock(&img->lock);
    bool idle = img->state == IMAGE_IDLE && !img->plain_busy;
    if (idle) {
        image_move_locked(g, img, IMAGE_SEALING, 0);
        img->look.valid = false; /* from now on this host knows better */
    }
    mutex_unlock(&img->lock);
    if (idle)
        busy_add(g, img);
    return idle;
}

bool image_busy_twin(struct guard *g, const struct image *img)
{
    bool found = false;
    mutex_lock(&g->images->lock);
    const struct image *i;
    LIST_FOREACH(i, &g->images->busy, next_busy)
        found |= i != img && i->inode->ino == img->inode->ino && i->inode->dev == img->inode->dev;
    mutex_unlock(&g->images->lock);
    return found;
}

void image_move_locked(struct guard *g, struct image *img, enum image_state to, int error)
{
    assert(allowed[img->state] & (1u << to));
    bool attempt = to == IMAGE_SEALING || (img->state == IMAGE_SEALING && to == IMAGE_IDLE);
    img->state = to;
    img->info.state = to;
    img->info.error = error;
    cond_broadcast(&img->moved);
    if (!attempt) /* one that failed is no news, and would make those that wait for another host
                     spin */
        guard_changed(g);
}

void image_move(struct guard *g, struct image *img, enum image_state to, int error)
{
    mutex_lock(&img->lock);
    image_move_locked(g, img, to, error);
    mutex_unlock(&img->lock);
}

void image_end(struct guard *g, struct image *img)
{
    struct inode *i = img->inode;
    rwlock_write(&img->header);
    image_bytes_drop(img); /* closing is not enough: plain writers may share the open file */
    free(img->rec);
    img->rec = NULL;
    int fd = img->fd;
    img->fd = -1;
    atomic_store(&img->held, false);
    atomic_store(&img->io_error, 0);
    atomic_store(&img->sync_error, 0);
    atomic_store(&img->wrote, false);
    atomic_store(&img->bytes_logged, false);
    rwlock_write_unlock(&img->header);
    if (fd >= 0)
        close(fd); /* synced by the restore; the fence lock goes with it */
    busy_remove(g, img);
    mutex_lock(&img->lock);
    img->closed = img->vanished = img->unlinked = false;
    image_move_locked(g, img, IMAGE_IDLE, 0);
    mutex_unlock(&img->lock);
    inode_put(g->inodes, i);
}

void image_note(struct image *img)
{
    const struct record *rec = img->rec;
    mutex_lock(&img->lock);
    struct image_info *n = &img->info;
    char *path = strdup(rec->image);
    if (path) {
        free(img->path);
        img->path = path;
    }
    snprintf(n->format, sizeof(n->format), "%s", rec->format);
    snprintf(n->since, sizeof(n->since), "%s", rec->since);
    n->ino = rec->ino;
    n->generation = rec->generation;
    n->virtual_size = rec->virtual_size;
    n->sealed = rec->plan.n > 0;
    mutex_unlock(&img->lock);
}

static void zone_widened(void *arg, const struct format_zone *zone) NO_THREAD_SAFETY_ANALYSIS
{
    image_zone_set(arg, zone); /* in seal_edit(), under img->header */
}

struct seal image_seal(struct guard *g, struct image *img)
{
    return (struct seal){.store = &g->store,
                         .journal = g->journal,
                         .fd = img->fd,
                         .policy = g->policy,
                         .rec = img->rec,
                         .zone = image_zone(img),
                         .widened = zone_widened,
                         .arg = img};
}

bool image_writer_add(struct image *img, struct handle *h, bool plain)
{
    mutex_lock(&img->lock);
    bool ok = !plain || img->state == IMAGE_IDLE;
    if (ok) {
        h->next_writer = img->writers;
        img->writers = h;
    }
    mutex_unlock(&img->lock);
    return ok;
}

static void writer_remove(struct image *img, struct handle *h)
{
    mutex_lock(&img->lock);
    while (h->busy)
        cond_wait(&img->moved, &img->lock);
    for (struct handle **p = &img->writers; *p; p = &(*p)->next_writer) {
        if (*p == h) {
            *p = h->next_writer;
            break;
        }
    }
    mutex_unlock(&img->lock);
}

void image_log_state(struct guard *g, struct image *img, int priority, const char *text, int err)
{
    char path[RECORD_IMAGE_MAX];
    mutex_lock(&img->lock);
    struct image_info info = img->info;
    snprintf(path, sizeof(path), "%s", img->path ? img->path : "");
    mutex_unlock(&img->lock);
    log_image(priority, path, g->host.name, info.generation, "'%s' (generation %llu): %s%s%s", path,
              (unsigned long long)info.generation, text, err ? ": " : "",
              err ? strerror(abs(err)) : "");
}

/* There is no image to put anything back into: free the claim, drop the row. The mark stays:
 * claim.h, "Numbers". */
static int forget(struct guard *g, struct image *img) REQUIRES(img->header)
{
    int r = claim_free_gone(&g->store, img->rec);
    if (r == 0 || r == -ESTALE)
        r = journal_remove(g->journal, img->rec->ino, img->rec->generation);
    return r;
}

int image_drop_lost_row(struct guard *g, struct image *img)
{
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    int r = c ? claim_read_known(&g->store, img->rec->ino, img->rec->generation, c) : -ENOMEM;
    if (r < 0)
        return r;
    const struct record *rec = img->rec;
    bool successor = c->generation > rec->generation;
    /* Freed after a restore. An older mark says nothing about this hold: ours is missing then. */
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

/* It has no name left, but readers may have it open, here or elsewhere, and its record is about to
 * go: they see the true header on. */
static void unseal_removed(struct guard *g, struct image *img) REQUIRES(img->header)
{
    int r = img->fd < 0 || img->rec->plan.n == 0 ? 0 : claim_check(&g->store, img->rec);
    if (r == 0 && img->fd >= 0 && img->rec->plan.n > 0)
        r = seal_undo(img->fd, img->rec);
    if (r < 0)
        log_debug("'%s', which was removed, stays sealed: %s", img->rec->image, strerror(-r));
}

static int restore_steps(struct guard *g, struct image *img) REQUIRES(img->header)
{
    /* Whatever was seen before: a claim is given up unrestored only on what is proved now. */
    int r = store_gone(&g->store, img->fd, &img->rec->handle);
    if (r < 0)
        /* also where it is not known: a new descriptor is tried, and the monitor tries again */
        return -EIO;
    if (r == 1) {
        mutex_lock(&img->lock);
        /* Our own unlink or rename over it, its holder's, or it was said. */
        bool expected = img->closed || img->unlinked || img->vanished;
        mutex_unlock(&img->lock);
        if (!expected)
            image_log_state(
                g, img, LOG_WARNING,
                "VANISHED: removed on the datastore while it was held; nothing to restore", 0);
        unseal_removed(g, img);
        return forget(g, img);
    }
    r = io_fsync(img->fd);
    if (r < 0) {
        int none = 0;
        atomic_compare_exchange_strong(&img->sync_error, &none, -r);
    }
    img->rec->sync_error = atomic_load(&img->sync_error);
    if (r < 0)
        return r;

    if (atomic_load(&img->wrote))
        img->rec->chosen = false;
    image_bytes_drop(img);
    struct seal s = image_seal(g, img);
    mutex_lock(&img->lock);
    s.unfence = img->plain_fd < 0; /* else the lock is that of plain writers, too */
    mutex_unlock(&img->lock);
    return seal_restore(&s);
}

/* The steps, once more with a new descriptor where the storage has given up the old one. */
static int restore_mended(struct guard *g, struct image *img) REQUIRES(img->header)
{
    int r = restore_steps(g, img);
    if (!io_err_dead(r))
        return r;
    r = image_lost(g, img, r);
    if (r == -ESTALE)
        return r;
    int mended = image_mend_seal(g, img);
    if (mended == -ESTALE)
        return mended;
    return mended < 0 ? r : restore_steps(g, img);
}

int image_restore(struct guard *g, struct image *img)
{
    rwlock_write(&img->header);
    image_reader_follow(g, img);
    int r = restore_mended(g, img);
    if (r == -ESTALE) {
        image_log_state(
            g, img, LOG_CRIT,
            "the claim of this host is gone before the restore: nothing was written back", 0);
        r = image_drop_lost_row(g, img);
        if (r < 0) /* a row without a claim is forgotten by the next start */
            image_log_state(g, img, LOG_WARNING, "its journal row could not be removed", r);
        r = 0;
    }
    if (r < 0 && img->rec->step != STEP_STUCK && img->rec->step != STEP_FREE) {
        /* Other hosts read it there: they need not wait for a release that does not come. */
        img->rec->step = STEP_STUCK;
        struct seal s = image_seal(g, img);
        int told = seal_record(&s);
        if (told < 0)
            image_log_state(g, img, LOG_DEBUG, "could not be marked as stuck", told);
    }
    if (r == 0) /* from here on another host may seal it: our record explains nothing any more */
        atomic_store(&img->held, false);
    bool marked = r == 0 && img->marked;
    uint64_t generation = img->rec->generation;
    rwlock_write_unlock(&img->header);
    if (marked)
        image_chain_drop(g, img->inode->ino, generation);
    if (r == 0) {
        image_end(g, img);
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
        rwlock_write(&img->header);
        int r = image_drop_lost_row(g, img);
        rwlock_write_unlock(&img->header);
        if (r < 0)
            image_log_state(g, img, LOG_WARNING,
                            "its claim or journal row could not be removed; the next start does it",
                            r);
        image_end(g, img);
    }
}

void image_release(struct guard *g, struct handle *h)
{
    struct image *img = atomic_load(&h->inode->image);
    if (img && h->writer)
        writer_remove(img, h);
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

void image_follow_name(struct guard *g, struct image *img)
{
    char now[RECORD_IMAGE_MAX];
    if (!has_new_name(g, img))
        return;
    rwlock_write(&img->header);
    bool held = img->rec && img->fd >= 0 && atomic_load(&img->held) &&
                img->rec->step <= STEP_SEALED && atomic_load(&img->io_error) == 0;
    if (held && image_path_now(g, img->inode, now, sizeof(now)) &&
        strcmp(now, img->rec->image) != 0) {
        struct seal s = image_seal(g, img);
        snprintf(img->rec->image, sizeof(img->rec->image), "%s", now);
        image_note(img);
        int r = seal_record(&s);
        if (r < 0) /* a claim that is lost is for the monitor to find */
            log_debug("'%s' is not told under its new name: %s", now, strerror(-r));
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

struct image **image_busy_list(struct guard *g, unsigned *ret_n)
{
    unsigned n = 0, max = 0;
    mutex_lock(&g->images->lock);
    struct image *i;
    LIST_FOREACH(i, &g->images->busy, next_busy)
        max++;
    struct image **list = calloc(max + 1, sizeof(*list));
    if (list) {
        LIST_FOREACH(i, &g->images->busy, next_busy) {
            inode_pin(g->inodes, i->inode);
            list[n++] = i;
        }
    }
    mutex_unlock(&g->images->lock);
    *ret_n = n;
    return list;
}

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
        atomic_store(&img->io_error, EIO);
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

void image_each(struct guard *g, void (*fn)(void *arg, const struct image_info *info), void *arg)
{
    unsigned n;
    struct image **list = image_busy_list(g, &n);
    for (unsigned k = 0; k < n; k++) {
        struct image *img = list[k];
        char path[RECORD_IMAGE_MAX];
        mutex_lock(&img->lock);
        struct image_info info = img->info;
        info.holder = img->holder;
        info.writers = img->n_guarded;
        info.sync_error = atomic_load(&img->sync_error);
        snprintf(path, sizeof(path), "%s", img->path ? img->path : "");
        mutex_unlock(&img->lock);
        info.path = path;
        fn(arg, &info);
        inode_put(g->inodes, img->inode);
    }
    free(list);
}

bool image_is_unsealed(struct inode *i, char *ret_path, size_t size)
{
    struct image *img = atomic_load(&i->image);
    if (!img || !atomic_load(&img->held))
        return false;
    mutex_lock(&img->lock);
    bool unsealed = img->state == IMAGE_SEALED && !img->info.sealed;
    snprintf(ret_path, size, "%s", img->path ? img->path : "");
    mutex_unlock(&img->lock);
    return unsealed;
}

void image_stat(struct inode *i, struct stat *st)
{
    struct image *img = atomic_load(&i->image);
    if (!img || !atomic_load(&img->held) || atomic_load(&img->wrote))
        return;
    mutex_lock(&img->lock);
    if (img->state != IMAGE_IDLE && img->info.sealed)
        st->st_mtim = img->mtime;
    mutex_unlock(&img->lock);
}
