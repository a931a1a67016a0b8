/* sync.h: mutex, condition variable and read-write lock, with the annotations of clang's
 * -Wthread-safety.
 *
 * The lock order of the program is in guard/image.h and DESIGN 9. No lock is held over datastore
 * I/O, sqlite or fuse_reply_*, except the header lock of an image: its purpose is to put header I/O
 * in order. */
#ifndef DISKGUARD_SYNC_H
#define DISKGUARD_SYNC_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __clang__
#define SYNC_ATTR(x) __attribute__((x))
#else
#define SYNC_ATTR(x)
#endif
/* For the reader only: in C, clang 14 cannot name a member of the same struct in an attribute.
 * REQUIRES on functions is checked. */
#define GUARDED_BY(x)
#define REQUIRES(...) SYNC_ATTR(requires_capability(__VA_ARGS__))
#define REQUIRES_SHARED(...) SYNC_ATTR(requires_shared_capability(__VA_ARGS__))
#define ACQUIRE(...) SYNC_ATTR(acquire_capability(__VA_ARGS__))
#define ACQUIRE_SHARED(...) SYNC_ATTR(acquire_shared_capability(__VA_ARGS__))
#define RELEASE(...) SYNC_ATTR(release_capability(__VA_ARGS__))
#define RELEASE_SHARED(...) SYNC_ATTR(release_shared_capability(__VA_ARGS__))
#define EXCLUDES(...) SYNC_ATTR(locks_excluded(__VA_ARGS__))
#define NO_THREAD_SAFETY_ANALYSIS SYNC_ATTR(no_thread_safety_analysis)

struct SYNC_ATTR(capability("mutex")) mutex {
    pthread_mutex_t m;
};

static inline void mutex_init(struct mutex *m)
{
    pthread_mutex_init(&m->m, NULL);
}
static inline void mutex_destroy(struct mutex *m)
{
    pthread_mutex_destroy(&m->m);
}
static inline void mutex_lock(struct mutex *m) ACQUIRE(*m) NO_THREAD_SAFETY_ANALYSIS
{
    pthread_mutex_lock(&m->m);
}
static inline void mutex_unlock(struct mutex *m) RELEASE(*m) NO_THREAD_SAFETY_ANALYSIS
{
    pthread_mutex_unlock(&m->m);
}

/* Its waits use CLOCK_MONOTONIC, so a clock that is set back makes none longer. */
struct cond {
    pthread_cond_t c;
};

static inline void cond_init(struct cond *c)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&c->c, &attr);
    pthread_condattr_destroy(&attr);
}
static inline void cond_destroy(struct cond *c)
{
    pthread_cond_destroy(&c->c);
}
static inline void cond_signal(struct cond *c)
{
    pthread_cond_signal(&c->c);
}
static inline void cond_broadcast(struct cond *c)
{
    pthread_cond_broadcast(&c->c);
}
static inline void cond_wait(struct cond *c, struct mutex *m) REQUIRES(*m)
{
    pthread_cond_wait(&c->c, &m->m);
}
/* Waits for the condition, at most until base_now_ms() reaches until_ms. false: it has. */
static inline bool cond_wait_until(struct cond *c, struct mutex *m, uint64_t until_ms) REQUIRES(*m)
{
    struct timespec until = {.tv_sec = (time_t)(until_ms / 1000),
                             .tv_nsec = (long)(until_ms % 1000) * 1000000};
    return pthread_cond_timedwait(&c->c, &m->m, &until) == 0;
}

struct SYNC_ATTR(capability("mutex")) rwlock {
    pthread_rwlock_t l;
};

/* Prefers writers: readers come in streams (guest data of images with a footer) and would keep
 * writers out. So no thread may take it twice for reading. */
static inline void rwlock_init(struct rwlock *l)
{
    pthread_rwlockattr_t attr;
    pthread_rwlockattr_init(&attr);
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&l->l, &attr);
    pthread_rwlockattr_destroy(&attr);
}
static inline void rwlock_destroy(struct rwlock *l)
{
    pthread_rwlock_destroy(&l->l);
}
static inline void rwlock_read(struct rwlock *l) ACQUIRE_SHARED(*l) NO_THREAD_SAFETY_ANALYSIS
{
    pthread_rwlock_rdlock(&l->l);
}
static inline void rwlock_write(struct rwlock *l) ACQUIRE(*l) NO_THREAD_SAFETY_ANALYSIS
{
    pthread_rwlock_wrlock(&l->l);
}
static inline void rwlock_read_unlock(struct rwlock *l) RELEASE_SHARED(*l) NO_THREAD_SAFETY_ANALYSIS
{
    pthread_rwlock_unlock(&l->l);
}
static inline void rwlock_write_unlock(struct rwlock *l) RELEASE(*l) NO_THREAD_SAFETY_ANALYSIS
{
    pthread_rwlock_unlock(&l->l);
}

#endif
