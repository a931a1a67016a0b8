/* image.c: see image.h. The states of an image, the images that are not IDLE, the handles that
 * write them. */
#include "guard/image.h"

#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "guard/conflict.h"
#include "guard/guard.h"
#include "run/pool.h"

/* ---- states ----
 *
 *              begin            sealed            last writer
 *      IDLE ──────────► SEALING ─────► SEALED ────────────────────────────► RESTORING ──► IDLE
 *       ▲                │   │          │ │ ▲                                  ▲   │ ▲
 *       ├─── refused ────┘   │          │ │ └── there again ─┐   last writer   │   │ │
 *       │                    │          │ └──── gone ────► VANISHED ───────────┘   │ │ every 5 s
 *       │                    └── the undo failed ──┼─────────────────────────►  STUCK
 *       │                                          │ claim lost
 *       └────────── last writer ────────────── FENCED
 *
 * What must be true in each: DESIGN 5.3; invariant() checks what can be seen under img->lock. */

/* Who makes the move, and where it leads. */
struct move {
    enum image_state from, to;
    const char *function;
};
static const struct move moves[] = {
    {IMAGE_IDLE, IMAGE_SEALING, "image_begin"},
    {IMAGE_SEALING, IMAGE_SEALED, "image_take"},
    {IMAGE_SEALING, IMAGE_IDLE, "image_end: acquire_failed, claim_once, take"},
    {IMAGE_SEALING, IMAGE_STUCK, "acquire_failed"},
    {IMAGE_SEALED, IMAGE_RESTORING, "image_unguard, image_shutdown"},
    {IMAGE_SEALED, IMAGE_FENCED, "image_fence"},
    {IMAGE_SEALED, IMAGE_VANISHED, "check_claim"},
    {IMAGE_VANISHED, IMAGE_SEALED, "check_claim"},
    {IMAGE_VANISHED, IMAGE_RESTORING, "image_unguard, image_shutdown"},
    {IMAGE_RESTORING, IMAGE_IDLE, "image_end: image_restore"},
    {IMAGE_RESTORING, IMAGE_STUCK, "image_restore"},
    {IMAGE_STUCK, IMAGE_RESTORING, "maintain_one, image_shutdown"},
    {IMAGE_FENCED, IMAGE_IDLE, "image_end: image_unguard"},
};

static const char *const state_names[] = {
    [IMAGE_IDLE] = "idle",           [IMAGE_SEALING] = "sealing", [IMAGE_SEALED] = "sealed",
    [IMAGE_RESTORING] = "restoring", [IMAGE_FENCED] = "fenced",   [IMAGE_STUCK] = "stuck",
    [IMAGE_VANISHED] = "vanished",
};

const char *image_state_name(enum image_state s)
{
    return state_names[s];
}

static const struct move *find_move(enum image_state from, enum image_state to)
{
    for (size_t k = 0; k < sizeof(moves) / sizeof(*moves); k++)
        if (moves[k].from == from && moves[k].to == to)
            return &moves[k];
    return NULL;
}

bool image_may_move(enum image_state from, enum image_state to)
{
    return find_move(from, to) != NULL;
}

/* What is wrong with the image in the state that it has just come to; NULL: nothing. The record
 * changes only in a long action, whose thread is the one that moves: it may be looked at here. */
static const char *invariant(const struct guard *g, const struct image *img) REQUIRES(img->lock)
{
    /* At shutdown handles are still open. */
    bool counted = img->n_guarded > 0 && !atomic_load(&g->stopping);
    bool record = img->held.recorded, valid = atomic_load(&img->held.valid);
    switch (img->state) {
    case IMAGE_IDLE:
    case IMAGE_SEALING:
        return record || valid  ? "it has a record"
               : counted        ? "a handle holds it"
               : img->exclusive ? "it is exclusive"
                                : NULL;
    case IMAGE_SEALED:
    case IMAGE_VANISHED:
    case IMAGE_FENCED:
        if (img->state == IMAGE_FENCED && atomic_load(&img->held.io_error) == 0)
            return "it may be written";
        return !record || !valid     ? "it has no record"
               : img->n_guarded == 0 ? "nobody holds it"
                                     : NULL;
    case IMAGE_RESTORING:
    case IMAGE_STUCK:
        return !record || !valid ? "it has no record" : counted ? "a handle holds it" : NULL;
    }
    return "there is no such state";
}

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
    img->held.fd = -1;
    atomic_init(&img->zone.head, FORMAT_REACH);
    atomic_init(&img->zone.tail, UINT64_MAX);
    mutex_lock(&img->lock);
    img->plain.fd = -1;
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
    free(img->chain.below);
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

void image_conflict_locked(const struct image *img, struct conflict *ret)
{
    enum image_state s = img->state;
    bool broken = s == IMAGE_STUCK || s == IMAGE_FENCED;
    conflict_set(ret, s == IMAGE_IDLE ? CONFLICT_OPENING
                      : broken        ? CONFLICT_BROKEN
                                      : CONFLICT_HERE);
    if (!ret)
        return;
    if (s != IMAGE_IDLE)
        ret->pid = img->holder.pid;
    else if (img->writers) /* else it is gone by now */
        ret->pid = img->writers->opener.pid;
    ret->generation = img->info.generation;
    ret->released = s == IMAGE_RESTORING;
    snprintf(ret->since, sizeof(ret->since), "%s", s == IMAGE_SEALED ? img->info.since : "");
    snprintf(ret->what, sizeof(ret->what), "%s", state_names[s]);
}

void image_conflict_fill(struct image *img, struct conflict *ret)
{
    mutex_lock(&img->lock);
    if (ret && ret->kind == CONFLICT_NONE)
        image_conflict_locked(img, ret);
    mutex_unlock(&img->lock);
}

bool image_begin(struct guard *g, struct image *img, struct conflict *ret)
{
    mutex_lock(&img->lock);
    bool idle = img->state == IMAGE_IDLE && !img->plain.busy;
    if (idle) {
        image_move_locked(g, img, IMAGE_SEALING, 0);
        img->snapshot.last.valid = false; /* from now on this host knows better */
    } else {
        image_conflict_locked(img, ret);
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

/* An invariant is broken. The daemon of a user goes on, for it has headers to put back; a test
 * stops here. (A move that the table does not have stops every daemon: nothing would be right after
 * it.) */
static void report_broken(const struct guard *g, const struct image *img, enum image_state from,
                          const char *wrong) REQUIRES(img->lock)
{
    log_image(LOG_CRIT, img->path ? img->path : "", g->host.name, img->info.generation,
              "BUG: inode %llu went from %s to %s (%s): %s. Please report this",
              (unsigned long long)img->inode->ino, state_names[from], state_names[img->state],
              find_move(from, img->state)->function, wrong);
#ifdef DG_HOOKS
    abort();
#endif
}

void image_move_locked(struct guard *g, struct image *img, enum image_state to, int error)
{
    enum image_state from = img->state;
    assert(image_may_move(from, to));
    bool attempt = to == IMAGE_SEALING || (from == IMAGE_SEALING && to == IMAGE_IDLE);
    img->state = to;
    img->info.state = to;
    img->info.error = error;
    const char *wrong = invariant(g, img);
    if (wrong)
        report_broken(g, img, from, wrong);
    cond_broadcast(&img->moved);
    /* An attempt that failed is no news, and would make those that wait for another host spin. */
    if (!attempt)
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
    busy_remove(g, img);
    mutex_lock(&img->lock);
    img->exclusive = img->vanished = img->unlinked = false;
    image_move_locked(g, img, IMAGE_IDLE, 0);
    mutex_unlock(&img->lock);
    inode_put(g->inodes, i);
}

void image_note(struct image *img)
{
    const struct record *rec = img->held.rec;
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

void image_writer_remove(struct image *img, struct handle *h)
{
    mutex_lock(&img->lock);
    while (h->fence.busy)
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
        info.sync_error = atomic_load(&img->held.sync_error);
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
    if (!img || !atomic_load(&img->held.valid))
        return false;
    mutex_lock(&img->lock);
    bool unsealed = img->state == IMAGE_SEALED && !img->info.sealed;
    snprintf(ret_path, size, "%s", img->path ? img->path : "");
    mutex_unlock(&img->lock);
    return unsealed;
}

/* Of a file that this host has held: st may be of a moment when it was sealed. What is read after
 * `valid` was false is what the restore has set, unless another hold has begun since. */
static void stat_after_hold(const struct image *img, struct stat *st)
{
    struct stat now;
    unsigned holds;
    do {
        holds = atomic_load(&img->held.count);
        if (fstatat(img->inode->fd, "", &now, AT_EMPTY_PATH) < 0)
            return;
    } while (holds != atomic_load(&img->held.count) && !atomic_load(&img->held.valid));
    st->st_mtim = now.st_mtim;
    st->st_ctim = now.st_ctim;
}

void image_stat(struct inode *i, struct stat *st)
{
    struct image *img = atomic_load(&i->image);
    if (!img || atomic_load(&img->held.count) == 0)
        return;
    if (!atomic_load(&img->held.valid))
        stat_after_hold(img, st);
    if (!atomic_load(&img->held.valid) || atomic_load(&img->held.wrote))
        return;
    mutex_lock(&img->lock);
    if (img->state != IMAGE_IDLE && img->info.sealed)
        st->st_mtim = img->held.mtime;
    mutex_unlock(&img->lock);
}

bool image_is_idle(struct image *img)
{
    mutex_lock(&img->lock);
    bool idle = img->state == IMAGE_IDLE;
    mutex_unlock(&img->lock);
    return idle;
}
