#include "view/prune.h"

#include <string.h>
#include <sys/resource.h>

#include "base/sync.h"
#include "node/inode.h"

#define BATCH 64u

struct prune {
    struct view *v;
    pthread_t thread;
    struct mutex lock;
    struct cond wake;
    bool crowded GUARDED_BY(lock);
    bool ending GUARDED_BY(lock);
};

unsigned long prune_limit(void)
{
    struct rlimit rl;
    return getrlimit(RLIMIT_NOFILE, &rl) < 0 ? 256 : rl.rlim_cur / 8 * 3;
}

/* One batch. Without any lock: the kernel takes the parent directory's, which a request that we are
 * serving may hold. */
static unsigned drop_names(struct view *v)
{
    struct inode_name names[BATCH];
    unsigned n = inode_idle_names(v->guard->inodes, names, BATCH);
    for (unsigned k = 0; k < n; k++) {
        (void)fuse_lowlevel_notify_inval_entry(v->se, names[k].parent, names[k].name,
                                               strlen(names[k].name));
        free(names[k].name);
    }
    return n;
}

static bool wait_for_crowd(struct prune *p)
{
    mutex_lock(&p->lock);
    while (!p->crowded && !p->ending)
        cond_wait(&p->wake, &p->lock);
    p->crowded = false;
    bool go_on = !p->ending;
    mutex_unlock(&p->lock);
    return go_on;
}

static bool is_ending(struct prune *p)
{
    mutex_lock(&p->lock);
    bool ending = p->ending;
    mutex_unlock(&p->lock);
    return ending;
}

static void *prune_main(void *arg)
{
    struct prune *p = arg;
    unsigned long goal = prune_limit() / 4 * 3;
    while (wait_for_crowd(p)) {
        while (!is_ending(p) && inode_count(p->v->guard->inodes) > goal) {
            if (drop_names(p->v) == 0)
                break; /* the rest is in use */
        }
    }
    return NULL;
}

static void on_crowded(void *arg)
{
    struct prune *p = arg;
    mutex_lock(&p->lock);
    p->crowded = true;
    cond_signal(&p->wake);
    mutex_unlock(&p->lock);
}

struct prune *prune_new(struct view *v)
{
    struct prune *p = calloc(1, sizeof(*p));
    if (!p)
        return NULL;
    p->v = v;
    mutex_init(&p->lock);
    cond_init(&p->wake);
    if (pthread_create(&p->thread, NULL, prune_main, p) != 0) {
        cond_destroy(&p->wake);
        mutex_destroy(&p->lock);
        free(p);
        return NULL;
    }
    inode_watch(v->guard->inodes, prune_limit(), on_crowded, p);
    return p;
}

void prune_free(struct prune *p)
{
    if (!p)
        return;
    inode_watch(p->v->guard->inodes, 0, NULL, NULL);
    mutex_lock(&p->lock);
    p->ending = true;
    cond_signal(&p->wake);
    mutex_unlock(&p->lock);
    pthread_join(p->thread, NULL);
    cond_destroy(&p->wake);
    mutex_destroy(&p->lock);
    free(p);
}
