#include "daemon/monitor.h"

#include <string.h>

#include "base/log.h"
#include "base/sync.h"
#include "core/spare.h"
#include "guard/guard.h"
#include "run/pool.h"

struct monitor {
    struct daemon *d;
    struct image_maintain *maintain;
    pthread_t heartbeat, maintainer;
    bool beats, maintains; /* these two were started */
    struct mutex lock;
    struct cond wake;
    bool stop GUARDED_BY(lock);
    bool kicked GUARDED_BY(lock);
};

unsigned monitor_period_ms(void)
{
#ifdef DG_HOOKS
    const char *text = getenv("DISKGUARD_BEAT_MS");
    uint64_t ms;
    if (text && base_u64(text, &ms) == 0 && ms >= 10 && ms <= 3600000)
        return (unsigned)ms;
#endif
    return MONITOR_PERIOD_MS;
}

/* Until the next round, or a kick (only of those of maintain: the heartbeat proves life by its
 * pace). false: stop.
 */
static bool wait_round(struct monitor *k, bool kickable)
{
    uint64_t until = base_now_ms() + monitor_period_ms();
    mutex_lock(&k->lock);
    while (!k->stop && !(kickable && k->kicked))
        if (!cond_wait_until(&k->wake, &k->lock, until))
            break;
    if (kickable)
        k->kicked = false;
    bool go = !k->stop;
    mutex_unlock(&k->lock);
    return go;
}

/* The record's descriptor does not work any more: after a long partition an NFSv4 server may have
 * taken the lock away, and the descriptor answers EIO for ever. Opens and locks the record anew.
 * While our own old lock may still stand, it is in the way itself and must go first. 0; -EBUSY and
 * -EKEYREJECTED: another process has taken the identity of this host; any other -errno: try again.
 */
static int relock(struct daemon *d, struct why *why)
{
    int fd = host_lock(&d->guard.store, &d->guard.host, why);
    if (fd == -EBUSY && d->host_lock_fd >= 0) {
        close(d->host_lock_fd);
        d->host_lock_fd = -1;
        fd = host_lock(&d->guard.store, &d->guard.host, why);
    }
    if (fd < 0)
        return fd;
    if (d->host_lock_fd >= 0)
        close(d->host_lock_fd);
    d->host_lock_fd = fd;
    return 0;
}

static bool is_lost(int r)
{
    return io_err_dead(r) || r == -EKEYREJECTED;
}

/* Says once when it cannot be had again, and when it is back. */
static void relock_and_say(struct daemon *d)
{
    struct why why = {""};
    int r = relock(d, &why);
    if (r == 0) {
        log_msg(LOG_NOTICE, "the record of this host on '%s' is open and locked again",
                d->guard.store.path);
        atomic_store(&d->guard.host_lost, false);
        /* one lease for all: those of plain files, too */
        atomic_store(&d->guard.locks_lost_new, true);
    } else if ((r == -EBUSY || r == -EKEYREJECTED || d->host_lock_fd < 0) &&
               !atomic_exchange(&d->guard.host_lost, true)) {
        log_msg(
            LOG_ERR,
            "the lock on this host's record on '%s' is lost: %s. What is held stays held, but no image is claimed any more until the lock is had again",
            d->guard.store.path, why.text);
    }
}

static void heartbeat_once(struct daemon *d, uint64_t heartbeat, int *failed)
{
    int r =
        d->host_lock_fd < 0 ? -EBADF : host_heartbeat(d->host_lock_fd, &d->guard.host, heartbeat);
    if (r < 0 && r != *failed && !atomic_load(&d->guard.host_lost))
        log_msg(LOG_WARNING, "cannot write the heartbeat of this host on the datastore '%s': %s",
                d->guard.store.path, strerror(-r));
    *failed = r;
    if (is_lost(r))
        relock_and_say(d);
}

static void *run_heartbeat(void *arg)
{
    struct monitor *k = arg;
    int failed = 0;
    for (uint64_t heartbeat = MONITOR_FIRST_HEARTBEAT; wait_round(k, false);)
        heartbeat_once(k->d, ++heartbeat, &failed);
    return NULL;
}

static void fill_spares(void *arg)
{
    struct daemon *d = arg;
    spares_fill(&d->guard.store);
}

static bool next_round(struct monitor *k)
{
    bool go_on = wait_round(k, true);
    if (go_on)
        image_maintain_round(k->maintain);
    return go_on;
}

static void *run_maintain(void *arg)
{
    struct monitor *k = arg;
    do
        pool_submit(k->d->guard.pool, fill_spares, k->d); /* the storage may not answer */
    while (next_round(k));
    return NULL;
}

static void end_threads(struct monitor *k)
{
    mutex_lock(&k->lock);
    k->stop = true;
    cond_broadcast(&k->wake);
    mutex_unlock(&k->lock);
    if (k->beats)
        pthread_join(k->heartbeat, NULL);
    if (k->maintains)
        pthread_join(k->maintainer, NULL);
    k->beats = k->maintains = false;
}

struct monitor *monitor_new(struct daemon *d)
{
    struct monitor *k = calloc(1, sizeof(*k));
    if (!k)
        return NULL;
    k->d = d;
    mutex_init(&k->lock);
    cond_init(&k->wake);
    k->maintain = image_maintain_new(&d->guard);
    k->beats = k->maintain && pthread_create(&k->heartbeat, NULL, run_heartbeat, k) == 0;
    k->maintains = k->beats && pthread_create(&k->maintainer, NULL, run_maintain, k) == 0;
    if (k->maintains)
        return k;
    monitor_stop(k);
    monitor_free(k);
    return NULL;
}

void monitor_kick(struct monitor *k)
{
    mutex_lock(&k->lock);
    k->kicked = true;
    cond_broadcast(&k->wake);
    mutex_unlock(&k->lock);
}

void monitor_stop(struct monitor *k)
{
    if (!k)
        return;
    end_threads(k);
    image_maintain_free(k->maintain);
    k->maintain = NULL;
}

void monitor_free(struct monitor *k)
{
    if (!k)
        return;
    cond_destroy(&k->wake);
    mutex_destroy(&k->lock);
    free(k);
}
