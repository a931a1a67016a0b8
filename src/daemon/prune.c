#include "daemon/prune.h"

#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "daemon/inode.h"

#define PERIOD_MS 20u /* a lookup takes some 20 us: at most a thousand new ones between two looks */
#define BATCH 64u

struct prune {
    struct daemon *d;
    pthread_t thread;
    struct mutex lock;
    pthread_cond_t wake;
    bool ending GUARDED_BY(lock);
};

unsigned long prune_limit(void)
{
    struct rlimit rl;
    if (getrlimit(RLIMIT_NOFILE, &rl) < 0)
        return ULONG_MAX;
    return rl.rlim_cur / 8 * 3;
}

/* One batch. Never with a lock: the kernel takes the parent's, which a request that we serve may hold. */
static unsigned drop_names(struct daemon *d)
{
    struct inode_name names[BATCH];
    unsigned n = inode_idle_names(d->inodes, names, BATCH);
    for (unsigned k = 0; k < n; k++) {
        (void)fuse_lowlevel_notify_inval_entry(d->se, names[k].parent, names[k].name, strlen(names[k].name));
        free(names[k].name);
    }
    return n;
}

static bool pause_until_end(struct prune *p)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    ts.tv_nsec += PERIOD_MS * 1000000L;
    if (ts.tv_nsec >= 1000000000L) {
        ts.tv_sec++;
        ts.tv_nsec -= 1000000000L;
    }
    mutex_lock(&p->lock);
    if (!p->ending)
        pthread_cond_timedwait(&p->wake, &p->lock.m, &ts);
    bool ending = p->ending;
    mutex_unlock(&p->lock);
    return !ending;
}
