/* takeover.c: see takeover.h. */
#include "guard/takeover.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "core/recover.h"
#include "core/whereis.h"
#include "guard/image.h"
#include "run/pool.h"

/* of diskguardctl, under way or not yet asked about; the oldest result is forgotten first */
#define JOBS 16u

struct watched {
    struct takeover_watch watch;
    struct watched *next;
};
struct takeover_job {
    uint64_t ticket; /* 0: unused */
    bool ended;
    int result;
    struct why why;
};
struct takeover {
    struct mutex lock; /* short; never over I/O */
    struct watched *hosts GUARDED_BY(lock);
    struct takeover_job job[JOBS] GUARDED_BY(lock);
    uint64_t last_ticket GUARDED_BY(lock);
};

struct takeover *takeover_new(void)
{
    struct takeover *t = calloc(1, sizeof(*t));
    if (t)
        mutex_init(&t->lock);
    return t;
}

void takeover_free(struct takeover *t)
{
    if (!t)
        return;
    for (struct watched *w = t->hosts, *next; w; w = next) {
        next = w->next;
        free(w);
    }
    mutex_destroy(&t->lock);
    free(t);
}

void takeover_announce(const struct guard *g)
{
    const char *why;
    if (g->opt.takeover == TAKEOVER_MANUAL || g->opt.read_only)
        return;
    enum fencing own = io_fencing(g->store.root_fd, g->store.fence, &why);
    if (own == FENCING_LOCK)
        return;
    if (own == FENCING_UNPROVEN && g->opt.takeover == TAKEOVER_UNPROVEN)
        log_msg(
            LOG_WARNING,
            "takeover=lock-unproven on %s: %s. A host that was cut off or frozen may write over an image after it was taken over from it. Use this only with other means that switch a host off before its locks run out",
            g->store.fs->name, why);
    else
        log_msg(
            LOG_WARNING,
            "takeover=%s has no effect on %s (%s): %s. Images of a dead host wait for fsck.diskguard --takeover",
            g->opt.takeover == TAKEOVER_UNPROVEN ? "lock-unproven" : "lock", g->store.path,
            g->store.fs->name, why);
}

/* ---- is it worth trying? ---- */

/* Notes what the record says and how long it has said so. Without memory nothing is known of the
 * heartbeat. */
static enum takeover_heartbeat note_heartbeat(struct guard *g, const struct host_record *rec)
{
    struct takeover *t = g->takeover;
    enum takeover_heartbeat r = TAKEOVER_HEARTBEAT_WATCHED;
    uint64_t now = base_now_ms();
    mutex_lock(&t->lock);
    struct watched *w = t->hosts;
    while (w && strcmp(w->watch.host, rec->uuid) != 0)
        w = w->next;
    if (!w) {
        w = calloc(1, sizeof(*w));
        if (w) {
            w->next = t->hosts;
            t->hosts = w;
        }
    }
    if (w) {
        takeover_watch(&w->watch, rec, now, DG_MAX(2 * g->heartbeat_ms, 3 * TAKEOVER_PACE_MS));
        r = takeover_heartbeat(&w->watch, now, TAKEOVER_HEARTBEATS * g->heartbeat_ms);
    }
    mutex_unlock(&t->lock);
    return r;
}

static enum takeover_verdict takeover_look(struct guard *g, const struct record *held,
                                           bool unproven, struct why *why)
{
    struct host_record rec;
    const char *own_why;
    struct takeover_input in = {
        .unproven = unproven, .names = takeover_is_names(held), .holder = held->fenced};
    in.own = io_fencing(g->store.root_fd, g->store.fence, &own_why);
    in.record = host_record_read(&g->store, held->host, &rec);
    if (in.record == 0)
        in.heartbeat = note_heartbeat(g, &rec);
    if (in.heartbeat == TAKEOVER_HEARTBEAT_STANDS)
        in.alive = host_alive(&g->store, held->host);
    enum takeover_verdict v = takeover_decide(&in);
    takeover_explain(v, &in, own_why, held->host_name, held->host, why);
    return v;
}

/* 0: try; else as takeover_attempt(). */
static int worth_it(struct guard *g, const struct record *held, bool unproven, struct why *why)
{
    switch (takeover_look(g, held, unproven, why)) {
    case TAKEOVER_TRY:
        return 0;
    case TAKEOVER_WATCH:
    case TAKEOVER_LOCKED:
        return -EAGAIN;
    case TAKEOVER_ALIVE:
        return -EBUSY;
    case TAKEOVER_NO_RECORD:
    case TAKEOVER_OWN:
    case TAKEOVER_HOLDER:
    case TAKEOVER_NAMES:
        break;
    }
    return -EPERM;
}

/* ---- doing it ---- */

struct attempt {
    const struct record *judged; /* the claim that worth_it() looked at: no other one is taken */
    bool reported;
    struct recover_decision decision;
    int done;
};

static bool may_take(void *arg, const struct record *rec)
{
    const struct record *j = ((struct attempt *)arg)->judged;
    return rec->generation == j->generation && strcmp(rec->host, j->host) == 0 &&
           strcmp(rec->installation, j->installation) == 0 && strcmp(rec->daemon, j->daemon) == 0 &&
           rec->fenced == j->fenced && takeover_is_names(rec) == takeover_is_names(j);
}

static void report(void *arg, const struct record *rec, struct recover_decision decision, int done)
{
    (void)rec;
    struct attempt *a = arg;
    a->reported = true;
    a->decision = decision;
    a->done = done;
}

static void log_taken(const struct guard *g, const struct record *from, bool unproven,
                      enum recover_action action)
{
    char now[RECORD_IMAGE_MAX + 16];
    whereis_name(&g->store, from->ino, &from->handle, from->image, now, sizeof(now));
    log_image(
        LOG_WARNING, now, from->host_name, from->generation + 1,
        "TAKEN OVER: '%s' from host %s (%s), which held it since %s, generation %llu: its heartbeat stood still and the storage gave the fence lock to this host; %s%s",
        now, from->host_name, from->host, from->since, (unsigned long long)from->generation,
        action == RECOVER_RESTORE ? "its header is restored" : "its header was not sealed",
        unproven
            ? ". It is NOT PROVEN that this storage stops late writes of that host: look at it, and check the image"
            : "");
}

/* The words for an attempt that did not take it. */
static int not_taken(const struct attempt *a, int r, struct why *why)
{
    const struct problem_info *p = problem_info(a->decision.problem);
    if (r < 0) {
        why_set(why, "taking it over failed: %s; %s", strerror(-r), store_hint(r));
        /* if the claim is ours by now, the next open settles it: settle_own() in acquire.c */
        return -EAGAIN;
    }
    if (a->decision.action == RECOVER_NOTHING) {
        why_set(why, "another host was faster");
        return -EAGAIN;
    }
    if (a->decision.problem == PROBLEM_BUSY_WRITER) {
        why_set(
            why,
            "the storage does not give the fence lock: host %.100s can still write to it, or its locks have not run out yet (NFSv4: the server's lease time)",
            a->judged->host_name);
        return -EAGAIN;
    }
    why_set(why, "%s; %s", p->message, p->repair);
    return a->decision.problem == PROBLEM_UNREADABLE ? -EAGAIN : -EUCLEAN;
}

static int takeover_take(struct guard *g, struct image *img, const struct record *held,
                         struct why *why)
{
    struct attempt a = {.judged = held};
    struct recover rec = {.store = &g->store,
                          .journal = g->journal,
                          .host = &g->host,
                          .may_take = may_take,
                          .policy = g->policy,
                          .report = report,
                          .arg = &a};
    if (!image_begin(g, img, NULL)) {
        why_set(why, "another request of this host is at work on it");
        return -EAGAIN;
    }
    int r = recover_image(&rec, held->ino, NULL, 0);
    image_end(g, img);
    bool taken = a.reported && r == 0 && a.decision.action != RECOVER_NOTHING;
    if (taken)
        log_taken(g, held,
                  held->fenced != FENCING_LOCK ||
                      io_fencing(g->store.root_fd, g->store.fence, NULL) != FENCING_LOCK,
                  a.decision.action);
    if (taken || (r == 0 && !a.reported)) { /* the latter: it was freed meanwhile */
        guard_changed(g);
        return 0;
    }
    return not_taken(&a, r, why);
}

/* May this host take anything over now, and is it this very file that the claim holds? */
static int check_claim_of(struct guard *g, struct inode *i, const struct claim *c, struct why *why)
{
    struct io_handle handle;
    if (c->kind == CLAIM_BAD) {
        const struct problem_info *p =
            problem_info(c->error == -EPROTONOSUPPORT ? PROBLEM_NEWER_CLAIM : PROBLEM_BAD_CLAIM);
        why_set(why, "%s; %s", p->message, p->repair);
        return -EUCLEAN;
    }
    if (claim_is_of(&c->rec, &g->host)) {
        why_set(why, "this host holds it itself; diskguardctl why names the process");
        return -EBUSY;
    }
    int r = io_handle_get(i->fd, &handle);
    if (r < 0)
        return r;
    if (io_handle_equal(&c->rec.handle, &handle))
        return 0;
    why_set(why, "%s; %s", problem_info(PROBLEM_WRONG_HANDLE)->message,
            problem_info(PROBLEM_WRONG_HANDLE)->repair);
    return -EUCLEAN;
}

int takeover_attempt(struct guard *g, struct inode *i, bool unproven, struct why *why)
{
    struct image *img = image_get(i);
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    if (!img || !c)
        return -ENOMEM;
    if (!g->journal || g->opt.read_only || atomic_load(&g->stopping) ||
        atomic_load(&g->host_lost)) {
        why_set(
            why,
            "this view is read-only, is being unmounted, or has lost the lock on its host's record");
        return -EBUSY;
    }
    if (i->dev != g->store.dev) {
        why_set(why, "it lies on another file system that is mounted below the datastore");
        return -EPERM;
    }
    int r = claim_read(&g->store, i->ino, c);
    if (r < 0) {
        why_set(why, "its claim cannot be read: %s; %s", strerror(-r), store_hint(r));
        return r;
    }
    if (c->kind == CLAIM_NONE || c->kind == CLAIM_FREE)
        return 0;
    r = check_claim_of(g, i, c, why);
    if (r == 0)
        r = worth_it(g, &c->rec, unproven, why);
    return r < 0 ? r : takeover_take(g, img, &c->rec, why);
}

/* ---- for diskguardctl ---- */

struct takeover_request {
    struct guard *g;
    uint64_t ticket;
    bool unproven;
    char image[];
};

static int find_inode(struct guard *g, const char *image, struct inode **ret, struct why *why)
{
    struct stat st;
    int fd = io_fresh_open(g->store.root_fd, image, O_PATH | O_NOFOLLOW);
    int r = fd < 0 ? fd : io_fresh_stat(fd, &st);
    if (r == 0 && !S_ISREG(st.st_mode))
        r = -EINVAL;
    if (r < 0) {
        why_set(why, "%.300s: %s", image, r == -EINVAL ? "is no regular file" : strerror(-r));
        if (fd >= 0)
            close(fd);
        return r;
    }
    *ret = inode_enter(g->inodes, fd, &st, false);
    return *ret ? 0 : -ENOMEM;
}

static void run_job(void *arg)
{
    struct takeover_request *q = arg;
    struct guard *g = q->g;
    struct takeover *t = g->takeover;
    struct why why = {""};
    struct inode *i = NULL;
    int r = find_inode(g, q->image, &i, &why);
    if (r == 0)
        r = takeover_attempt(g, i, q->unproven, &why);
    inode_put(g->inodes, i);
    mutex_lock(&t->lock);
    for (unsigned k = 0; k < JOBS; k++) {
        struct takeover_job *j = &t->job[k];
        if (j->ticket == q->ticket) {
            j->ended = true;
            j->result = r;
            j->why = why;
        }
    }
    mutex_unlock(&t->lock);
    free(q);
}

/* An unused place, or that of the oldest result. NULL: all are under way. */
static struct takeover_job *job_place_locked(struct takeover *t) REQUIRES(t->lock)
{
    struct takeover_job *best = NULL;
    for (unsigned k = 0; k < JOBS; k++) {
        struct takeover_job *j = &t->job[k];
        if (j->ticket == 0)
            return j;
        if (j->ended && (!best || j->ticket < best->ticket))
            best = j;
    }
    return best;
}

uint64_t takeover_start(struct guard *g, const char *image, bool unproven, struct why *why)
{
    struct takeover *t = g->takeover;
    size_t n = strlen(image) + 1;
    struct takeover_request *q = malloc(sizeof(*q) + n);
    uint64_t ticket = 0;
    if (!q) {
        why_set(why, "out of memory");
        return 0;
    }
    *q = (struct takeover_request){.g = g, .unproven = unproven};
    memcpy(q->image, image, n);
    mutex_lock(&t->lock);
    struct takeover_job *j = job_place_locked(t);
    if (j) {
        ticket = ++t->last_ticket;
        *j = (struct takeover_job){.ticket = ticket};
    }
    mutex_unlock(&t->lock);
    if (!j) {
        why_set(why, "%u takeovers are under way already and wait for the storage; try again later",
                JOBS);
        free(q);
        return 0;
    }
    q->ticket = ticket;
    pool_submit(g->pool, run_job, q);
    return ticket;
}

bool takeover_ended(struct guard *g, uint64_t ticket, int *ret_result, struct why *why)
{
    struct takeover *t = g->takeover;
    bool found = false, ended = true;
    mutex_lock(&t->lock);
    for (unsigned k = 0; k < JOBS && ticket != 0; k++) {
        struct takeover_job *j = &t->job[k];
        if (j->ticket != ticket)
            continue;
        found = true;
        ended = j->ended;
        if (ended) {
            *ret_result = j->result;
            *why = j->why;
            j->ticket = 0;
        }
    }
    mutex_unlock(&t->lock);
    if (!found) {
        *ret_result = -ENOENT;
        why_set(why, "nothing is known of this takeover (any more)");
    }
    return ended;
}
