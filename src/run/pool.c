#include "run/pool.h"

#include <stdbool.h>

#include "base/base.h"
#include "base/list.h"
#include "base/sync.h"

#define IDLE_MS 30000u

struct pool_job {
    void (*fn)(void *arg);
    void *arg;
    STAILQ_ENTRY(pool_job) entry;
};

struct pool {
    struct mutex lock;
    struct cond work;  /* a job was queued, or the pool ends */
    struct cond quiet; /* the pool is idle, or a thread ended */
    unsigned max_threads;
    STAILQ_HEAD(, pool_job) jobs GUARDED_BY(lock);
    unsigned queued GUARDED_BY(lock);
    unsigned threads GUARDED_BY(lock);
    unsigned idle GUARDED_BY(lock);
    unsigned inline_jobs GUARDED_BY(lock); /* jobs that run on the threads of their submitters */
    bool ending GUARDED_BY(lock);
};

struct pool *pool_new(unsigned max_threads)
{
    struct pool *p = calloc(1, sizeof(*p));
    if (!p)
        return NULL;
    mutex_init(&p->lock);
    cond_init(&p->work);
    cond_init(&p->quiet);
    p->max_threads = max_threads;
    mutex_lock(&p->lock);
    STAILQ_INIT(&p->jobs);
    mutex_unlock(&p->lock);
    return p;
}

static struct pool_job *pool_take_locked(struct pool *p) REQUIRES(p->lock)
{
    struct pool_job *j = STAILQ_FIRST(&p->jobs);
    if (!j)
        return NULL;
    STAILQ_REMOVE_HEAD(&p->jobs, entry);
    p->queued--;
    return j;
}

/* Waits for a job. NULL: the pool does not need this thread any more. */
static struct pool_job *next_locked(struct pool *p) REQUIRES(p->lock)
{
    uint64_t until = base_now_ms() + IDLE_MS;
    for (;;) {
        struct pool_job *j = pool_take_locked(p);
        if (j || p->ending)
            return j;
        p->idle++;
        if (p->idle == p->threads)
            cond_broadcast(&p->quiet);
        bool woken = cond_wait_until(&p->work, &p->lock, until);
        p->idle--;
        if (!woken)
            return pool_take_locked(p);
    }
}

static void *worker(void *arg)
{
    struct pool *p = arg;
    mutex_lock(&p->lock);
    struct pool_job *j;
    while ((j = next_locked(p))) {
        mutex_unlock(&p->lock);
        j->fn(j->arg);
        free(j);
        mutex_lock(&p->lock);
    }
    p->threads--;
    cond_broadcast(&p->quiet);
    mutex_unlock(&p->lock);
    return NULL;
}

static bool start_thread(struct pool *p)
{
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_t t;
    int r = pthread_create(&t, &attr, worker, p);
    pthread_attr_destroy(&attr);
    return r == 0;
}

/* There is no thread and none could be started: the submitter does the work. */
static void run_here_locked(struct pool *p) REQUIRES(p->lock)
{
    struct pool_job *j;
    p->inline_jobs++;
    while (p->threads == 0 && (j = pool_take_locked(p))) {
        mutex_unlock(&p->lock);
        j->fn(j->arg);
        free(j);
        mutex_lock(&p->lock);
    }
    p->inline_jobs--;
    cond_broadcast(&p->quiet);
}

static void run_unqueued(struct pool *p, void (*fn)(void *arg), void *arg)
{
    mutex_lock(&p->lock);
    p->inline_jobs++;
    mutex_unlock(&p->lock);
    fn(arg);
    mutex_lock(&p->lock);
    p->inline_jobs--;
    cond_broadcast(&p->quiet);
    mutex_unlock(&p->lock);
}

void pool_submit(struct pool *p, void (*fn)(void *arg), void *arg)
{
    struct pool_job *j = malloc(sizeof(*j));
    if (!j) {
        run_unqueued(p, fn, arg);
        return;
    }
    *j = (struct pool_job){.fn = fn, .arg = arg};
    mutex_lock(&p->lock);
    STAILQ_INSERT_TAIL(&p->jobs, j, entry);
    p->queued++;
    cond_signal(&p->work);
    if (p->queued > p->idle && p->threads < p->max_threads) {
        p->threads++;
        mutex_unlock(&p->lock);
        bool started = start_thread(p);
        mutex_lock(&p->lock);
        if (!started) {
            p->threads--;
            run_here_locked(p);
        }
    }
    mutex_unlock(&p->lock);
}

void pool_drain(struct pool *p)
{
    mutex_lock(&p->lock);
    while (p->queued > 0 || p->inline_jobs > 0 || p->idle < p->threads)
        cond_wait(&p->quiet, &p->lock);
    mutex_unlock(&p->lock);
}

void pool_free(struct pool *p)
{
    if (!p)
        return;
    pool_drain(p);
    mutex_lock(&p->lock);
    p->ending = true;
    cond_broadcast(&p->work);
    while (p->threads > 0)
        cond_wait(&p->quiet, &p->lock);
    mutex_unlock(&p->lock);
    cond_destroy(&p->work);
    cond_destroy(&p->quiet);
    mutex_destroy(&p->lock);
    free(p);
}
