#include "run/pool.h"

#include <sched.h>
#include <stdbool.h>
#include <time.h>

#include "base/base.h"
#include "base/log.h"
#include "base/sync.h"

#define IDLE_SECONDS 30

struct job {
    void (*fn)(void *arg);
    void *arg;
    struct job *next;
};

struct pool {
    struct mutex lock;
    pthread_cond_t work;  /* a job was queued, or the pool ends */
    pthread_cond_t quiet; /* nothing runs and nothing is queued; or a thread ended */
    unsigned max_threads;
    struct job *head GUARDED_BY(lock);
    struct job **tail GUARDED_BY(lock);
    unsigned queued GUARDED_BY(lock);
    unsigned threads GUARDED_BY(lock);
    unsigned idle GUARDED_BY(lock);
    unsigned inline_jobs GUARDED_BY(lock); /* running on their submitters' threads */
    bool ending GUARDED_BY(lock);
};

struct pool *pool_new(unsigned max_threads)
{
    struct pool *p = calloc(1, sizeof(*p));
    if (!p)
        return NULL;
    mutex_init(&p->lock);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&p->work, &attr);
    pthread_condattr_destroy(&attr);
    pthread_cond_init(&p->quiet, NULL);
    p->max_threads = max_threads;
    mutex_lock(&p->lock);
    p->tail = &p->head;
    mutex_unlock(&p->lock);
    return p;
}

static struct job *take_locked(struct pool *p) REQUIRES(p->lock)
{
    struct job *j = p->head;
    if (!j)
        return NULL;
    p->head = j->next;
    if (!p->head)
        p->tail = &p->head;
    p->queued--;
    return j;
}

/* Waits for a job. NULL: this thread is not needed any more. */
static struct job *next_locked(struct pool *p) REQUIRES(p->lock)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += IDLE_SECONDS;
    for (;;) {
        struct job *j = take_locked(p);
        if (j || p->ending)
            return j;
        p->idle++;
        if (p->idle == p->threads)
            pthread_cond_broadcast(&p->quiet);
        int r = pthread_cond_timedwait(&p->work, &p->lock.m, &until);
        p->idle--;
        if (r == ETIMEDOUT)
            return take_locked(p);
    }
}

static void *worker(void *arg)
{
    struct pool *p = arg;
    if (unshare(CLONE_FS) < 0)
        log_msg(LOG_WARNING, "a thread cannot have a umask of its own: %m");
    mutex_lock(&p->lock);
    struct job *j;
    while ((j = next_locked(p))) {
        mutex_unlock(&p->lock);
        j->fn(j->arg);
        free(j);
        mutex_lock(&p->lock);
    }
    p->threads--;
    pthread_cond_broadcast(&p->quiet);
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

/* No thread could be started and none runs: the submitter does the work. */
static void run_here_locked(struct pool *p) REQUIRES(p->lock)
{
    struct job *j;
    p->inline_jobs++;
    while (p->threads == 0 && (j = take_locked(p))) {
        mutex_unlock(&p->lock);
        j->fn(j->arg);
        free(j);
        mutex_lock(&p->lock);
    }
    p->inline_jobs--;
    pthread_cond_broadcast(&p->quiet);
}

static void run_unqueued(struct pool *p, void (*fn)(void *arg), void *arg)
{
    mutex_lock(&p->lock);
    p->inline_jobs++;
    mutex_unlock(&p->lock);
    fn(arg);
    mutex_lock(&p->lock);
    p->inline_jobs--;
    pthread_cond_broadcast(&p->quiet);
    mutex_unlock(&p->lock);
}

void pool_submit(struct pool *p, void (*fn)(void *arg), void *arg)
{
    struct job *j = malloc(sizeof(*j));
    if (!j) {
        run_unqueued(p, fn, arg);
        return;
    }
    *j = (struct job){.fn = fn, .arg = arg};
    mutex_lock(&p->lock);
    *p->tail = j;
    p->tail = &j->next;
    p->queued++;
    pthread_cond_signal(&p->work);
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
        mutex_wait(&p->quiet, &p->lock);
    mutex_unlock(&p->lock);
}

void pool_free(struct pool *p)
{
    if (!p)
        return;
    pool_drain(p);
    mutex_lock(&p->lock);
    p->ending = true;
    pthread_cond_broadcast(&p->work);
    while (p->threads > 0)
        mutex_wait(&p->quiet, &p->lock);
    mutex_unlock(&p->lock);
    pthread_cond_destroy(&p->work);
    pthread_cond_destroy(&p->quiet);
    mutex_destroy(&p->lock);
    free(p);
}
