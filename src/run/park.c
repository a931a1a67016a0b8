#include "run/park.h"

#include <stdlib.h>

#include "base/base.h"
#include "base/list.h"
#include "base/sync.h"
#include "run/pool.h"

/* A request that waits. It is on the list or in the hands of the pool job that tries it, never
 * both. */
struct parked {
    struct park *park;
    void *req;
    park_fn fn;
    void *op;
    uint64_t deadline_ms; /* CLOCK_MONOTONIC; PARK_FOREVER: none */
    uint64_t tried_ms;    /* CLOCK_MONOTONIC: of the last attempt */
    uint64_t due_ms;
    uint64_t kicks_seen;
    unsigned attempts;
    bool interrupted; /* An INTERRUPT came: from then on each turn checks whether a signal is behind
                         it. */
    LIST_ENTRY(parked) entry;
};

struct park {
    struct pool *pool;
    struct park_caller caller;
    pthread_t thread;
    struct mutex lock;
    struct cond changed;
    LIST_HEAD(, parked) waiting GUARDED_BY(lock);
    uint64_t kicks GUARDED_BY(lock);
    bool stopping GUARDED_BY(lock);
};

/* Attempts may kick the park themselves when they let a hold go. Two that wait for each other must
 * not spin. */
#define RETRY_MIN_MS 2u
#define RETRY_MAX_MS 100u

static void hasten_locked(struct park *p, struct parked *e) REQUIRES(p->lock)
{
    (void)p;
    e->due_ms = DG_MIN(e->due_ms, e->tried_ms + RETRY_MIN_MS);
}

void park_interrupt(void *entry)
{
    struct parked *e = entry;
    struct park *p = e->park;
    mutex_lock(&p->lock);
    if (!e->interrupted) { /* one kick is enough, however often the caller asks */
        e->interrupted = true;
        e->due_ms = 0;
        cond_signal(&p->changed);
    }
    mutex_unlock(&p->lock);
}

/* false: the park stops, and no thread would come back for the request. */
static bool list_entry(struct parked *e)
{
    struct park *p = e->park;
    uint64_t step = RETRY_MAX_MS;
    if (e->attempts < 4)
        step = 10u << (e->attempts > 0 ? e->attempts - 1 : 0);
    e->tried_ms = base_now_ms();
    e->due_ms = DG_MIN(e->tried_ms + DG_MIN(step, RETRY_MAX_MS), e->deadline_ms);

    /* Before the request is on the list: from there another thread may answer it. This calls
     * park_interrupt() at once if an INTERRUPT came during the attempt. */
    p->caller.watch(e->req, e);

    mutex_lock(&p->lock);
    if (p->stopping) {
        mutex_unlock(&p->lock);
        p->caller.watch(e->req, NULL);
        return false;
    }
    if (p->kicks != e->kicks_seen)
        hasten_locked(p, e);
    LIST_INSERT_HEAD(&p->waiting, e, entry);
    cond_signal(&p->changed);
    mutex_unlock(&p->lock);
    return true;
}

static enum park_turn turn_of(struct parked *e)
{
    struct park *p = e->park;
    mutex_lock(&p->lock);
    bool stopping = p->stopping;
    bool interrupted = e->interrupted;
    e->kicks_seen = p->kicks;
    mutex_unlock(&p->lock);
    /* Where a signal is not certain, a wait with an end goes on; one without an end must stay
     * killable. */
    if (interrupted && p->caller.signalled(e->req, e->deadline_ms == PARK_FOREVER))
        return PARK_INTERRUPTED;
    return stopping || base_now_ms() >= e->deadline_ms ? PARK_LAST : PARK_AGAIN;
}

static void retry(void *arg)
{
    struct parked *e = arg;
    /* After this, park_interrupt() neither runs nor comes. The attempt may answer, and then e is
     * freed. */
    e->park->caller.watch(e->req, NULL);
    e->attempts++;
    enum park_turn turn = turn_of(e);
    if (e->fn(e->op, turn) || turn == PARK_LAST || turn == PARK_INTERRUPTED) {
        free(e);
        return;
    }
    if (!list_entry(e)) {
        e->fn(e->op, PARK_LAST);
        free(e);
    }
}

/* Takes one entry that is due off the list. If there is none, says when the next one will be. */
static struct parked *due_locked(struct park *p, uint64_t now, uint64_t *ret_next) REQUIRES(p->lock)
{
    *ret_next = UINT64_MAX;
    struct parked *e;
    LIST_FOREACH(e, &p->waiting, entry) {
        if (e->due_ms <= now) {
            LIST_REMOVE(e, entry);
            return e;
        }
        *ret_next = DG_MIN(*ret_next, e->due_ms);
    }
    return NULL;
}

static void *clock_thread(void *arg)
{
    struct park *p = arg;
    mutex_lock(&p->lock);
    for (;;) {
        uint64_t next;
        struct parked *e = due_locked(p, base_now_ms(), &next);
        if (e) {
            mutex_unlock(&p->lock);
            pool_submit(p->pool, retry, e);
            mutex_lock(&p->lock);
        } else if (p->stopping) {
            break;
        } else if (next == UINT64_MAX) {
            cond_wait(&p->changed, &p->lock);
        } else {
            (void)cond_wait_until(&p->changed, &p->lock, next);
        }
    }
    mutex_unlock(&p->lock);
    return NULL;
}

struct park *park_new(struct pool *pool, const struct park_caller *caller)
{
    struct park *p = calloc(1, sizeof(*p));
    if (!p)
        return NULL;
    p->pool = pool;
    p->caller = *caller;
    mutex_init(&p->lock);
    cond_init(&p->changed);
    if (pthread_create(&p->thread, NULL, clock_thread, p) != 0) {
        cond_destroy(&p->changed);
        mutex_destroy(&p->lock);
        free(p);
        return NULL;
    }
    return p;
}

void park_start(struct park *p, void *req, park_fn fn, void *op, uint64_t wait_ms)
{
    mutex_lock(&p->lock);
    uint64_t kicks = p->kicks;
    bool stopping = p->stopping;
    mutex_unlock(&p->lock);
    uint64_t now = base_now_ms();
    if (fn(op, PARK_FIRST))
        return;

    struct parked *e = wait_ms > 0 && !stopping ? calloc(1, sizeof(*e)) : NULL;
    if (!e) {
        fn(op, PARK_LAST);
        return;
    }
    *e = (struct parked){.park = p, .req = req, .fn = fn, .op = op, .kicks_seen = kicks};
    e->deadline_ms = wait_ms > UINT64_MAX - now ? PARK_FOREVER : now + wait_ms;
    if (!list_entry(e)) {
        fn(op, PARK_LAST);
        free(e);
    }
}

void park_kick(struct park *p)
{
    mutex_lock(&p->lock);
    p->kicks++;
    struct parked *e;
    LIST_FOREACH(e, &p->waiting, entry)
        hasten_locked(p, e);
    if (!LIST_EMPTY(&p->waiting)) /* who is in the hands of the pool sees kicks: list_entry() */
        cond_signal(&p->changed);
    mutex_unlock(&p->lock);
}

void park_stop(struct park *p)
{
    mutex_lock(&p->lock);
    bool first = !p->stopping;
    p->stopping = true;
    struct parked *e;
    LIST_FOREACH(e, &p->waiting, entry)
        e->due_ms = 0;
    cond_signal(&p->changed);
    mutex_unlock(&p->lock);
    if (first)
        pthread_join(p->thread, NULL);
}

void park_free(struct park *p)
{
    if (!p)
        return;
    park_stop(p);
    pool_drain(p->pool);
    cond_destroy(&p->changed);
    mutex_destroy(&p->lock);
    free(p);
}
