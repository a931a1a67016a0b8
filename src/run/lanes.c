#include "run/lanes.h"

#include <limits.h>
#include <stdbool.h>

#include "base/base.h"
#include "base/list.h"
#include "base/sync.h"
#include "run/pool.h"

#define BUCKETS 64u /* lanes that have work */

struct lane_job {
    void (*fn)(void *arg);
    void *arg;
    STAILQ_ENTRY(lane_job) entry;
};

struct lane { /* all of it under lanes.lock */
    struct lanes *lanes;
    uint64_t key;
    STAILQ_HEAD(, lane_job) jobs;
    unsigned queued;
    unsigned runners;  /* jobs of the pool; never 0 while a job waits */
    unsigned starting; /* runners that have not looked for a job yet */
    LIST_ENTRY(lane) entry;
};

struct lanes {
    struct mutex lock;
    struct pool *pool;
    LIST_HEAD(, lane) bucket[BUCKETS] GUARDED_BY(lock);
    unsigned n GUARDED_BY(lock); /* lanes */
};

struct lanes *lanes_new(void)
{
    struct lanes *l = calloc(1, sizeof(*l));
    if (!l)
        return NULL;
    mutex_init(&l->lock);
    l->pool = pool_new(UINT_MAX); /* the shares are the limit */
    if (!l->pool) {
        free(l);
        return NULL;
    }
    return l;
}

static unsigned share_locked(const struct lanes *l) REQUIRES(l->lock)
{
    unsigned even = LANES_THREADS / DG_MAX(l->n, 1u);
    return DG_MAX(LANE_LEAST, DG_MIN(LANE_MOST, even));
}

static struct lane *lane_locked(struct lanes *l, uint64_t key) REQUIRES(l->lock)
{
    struct lane *lane;
    LIST_FOREACH(lane, &l->bucket[key % BUCKETS], entry)
        if (lane->key == key)
            return lane;
    lane = malloc(sizeof(*lane));
    if (!lane)
        return NULL;
    *lane = (struct lane){.lanes = l, .key = key};
    STAILQ_INIT(&lane->jobs);
    LIST_INSERT_HEAD(&l->bucket[key % BUCKETS], lane, entry);
    l->n++;
    return lane;
}

static struct lane_job *lane_take_locked(struct lanes *l, struct lane *lane) REQUIRES(l->lock)
{
    (void)l;
    struct lane_job *j = STAILQ_FIRST(&lane->jobs);
    if (!j)
        return NULL;
    STAILQ_REMOVE_HEAD(&lane->jobs, entry);
    lane->queued--;
    return j;
}

/* true: a job waits, no runner is on its way to it, and the share has room. Counts one more runner,
 * which the caller must submit without the lock. */
static bool lane_grow_locked(struct lanes *l, struct lane *lane) REQUIRES(l->lock)
{
    if (lane->queued <= lane->starting || lane->runners >= share_locked(l))
        return false;
    lane->runners++;
    lane->starting++;
    return true;
}

static void shrink_locked(struct lanes *l, struct lane *lane) REQUIRES(l->lock)
{
    if (--lane->runners > 0)
        return;
    LIST_REMOVE(lane, entry);
    l->n--;
    free(lane);
}

static void lane_runner(void *arg)
{
    struct lane *lane = arg;
    struct lanes *l = lane->lanes;
    struct lane_job *j;
    mutex_lock(&l->lock);
    lane->starting--;
    while (lane->runners <= share_locked(l) && (j = lane_take_locked(l, lane))) {
        bool more = lane_grow_locked(l, lane);
        mutex_unlock(&l->lock);
        if (more)
            pool_submit(l->pool, lane_runner, lane);
        j->fn(j->arg);
        free(j);
        mutex_lock(&l->lock);
    }
    shrink_locked(l, lane);
    mutex_unlock(&l->lock);
}

void lanes_submit(struct lanes *l, uint64_t key, void (*fn)(void *arg), void *arg)
{
    struct lane_job *j = malloc(sizeof(*j));
    mutex_lock(&l->lock);
    struct lane *lane = j ? lane_locked(l, key) : NULL;
    bool more = false;
    if (lane) {
        *j = (struct lane_job){.fn = fn, .arg = arg};
        STAILQ_INSERT_TAIL(&lane->jobs, j, entry);
        lane->queued++;
        more = lane_grow_locked(l, lane);
    }
    mutex_unlock(&l->lock);
    if (more) {
        pool_submit(l->pool, lane_runner, lane);
    } else if (!lane) {
        free(j);
        pool_submit(l->pool, fn, arg);
    }
}

void lanes_drain(struct lanes *l)
{
    if (l)
        pool_drain(l->pool); /* A job that waits has a runner there. */
}

void lanes_free(struct lanes *l)
{
    if (!l)
        return;
    pool_free(l->pool);
    mutex_destroy(&l->lock);
    free(l);
}
