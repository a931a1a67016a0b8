#include "daemon/keeper.h"

#include <string.h>
#include <time.h>

#include "core/log.h"
#include "daemon/image.h"

struct keeper {
    struct daemon *d;
    pthread_t thread;
    struct mutex lock;
    pthread_cond_t wake;
    bool stop GUARDED_BY(lock);
    bool kicked GUARDED_BY(lock);
};

unsigned keeper_period_ms(void)
{
#ifdef DG_HOOKS
    const char *text = getenv("DISKGUARD_BEAT_MS");
    uint64_t ms;
    if (text && base_u64(text, &ms) == 0 && ms >= 10 && ms < KEEPER_PERIOD_MS)
        return (unsigned)ms;
#endif
    return KEEPER_PERIOD_MS;
}

/* false: stop. */
static bool wait_round(struct keeper *k)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t ns = (uint64_t)until.tv_nsec + keeper_period_ms() * UINT64_C(1000000);
    until.tv_sec += (time_t)(ns / 1000000000);
    until.tv_nsec = (long)(ns % 1000000000);
    mutex_lock(&k->lock);
    while (!k->stop && !k->kicked)
        if (pthread_cond_timedwait(&k->wake, &k->lock.m, &until) != 0)
            break;
    k->kicked = false;
    bool go = !k->stop;
    mutex_unlock(&k->lock);
    return go;
}

static void *run(void *arg)
{
    struct keeper *k = arg;
    struct daemon *d = k->d;
    int failed = 0;
    for (uint64_t beat = KEEPER_FIRST_BEAT; wait_round(k);) {
        if (d->host_lock_fd >= 0) {
            int r = host_beat(d->host_lock_fd, &d->host, ++beat);
            if (r < 0 && r != failed)
                log_msg(LOG_WARNING, "cannot write the beat of this host on the datastore '%s': %s",
                        d->store.path, strerror(-r));
            failed = r;
        }
        image_tend(d);
    }
    return NULL;
}

struct keeper *keeper_new(struct daemon *d)
{
    struct keeper *k = calloc(1, sizeof(*k));
    if (!k)
        return NULL;
    k->d = d;
    mutex_init(&k->lock);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&k->wake, &attr);
    pthread_condattr_destroy(&attr);
    if (pthread_create(&k->thread, NULL, run, k) != 0) {
        pthread_cond_destroy(&k->wake);
        mutex_destroy(&k->lock);
        free(k);
        return NULL;
    }
    return k;
}

void keeper_kick(struct keeper *k)
{
    mutex_lock(&k->lock);
    k->kicked = true;
    pthread_cond_signal(&k->wake);
    mutex_unlock(&k->lock);
}

void keeper_free(struct keeper *k)
{
    if (!k)
        return;
    mutex_lock(&k->lock);
    k->stop = true;
    pthread_cond_signal(&k->wake);
    mutex_unlock(&k->lock);
    pthread_join(k->thread, NULL);
    pthread_cond_destroy(&k->wake);
    mutex_destroy(&k->lock);
    free(k);
}
