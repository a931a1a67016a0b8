#include "view/prune.h"

#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>

#include "base/sync.h"
#include "node/inode.h"

#define BATCH 64u
/* So often removed files are looked for; and never for more than 1/100 of the time. */
#define REMOVED_PERIOD_MS 1000u
#define REMOVED_SHARE 100u

struct prune {
    struct view *v;
    pthread_t thread;
    struct mutex lock;
    struct cond wake;
    bool watches_removed; /* the kernel keeps names, and the storage's space waits for us */
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

static bool is_ending(struct prune *p)
{
    mutex_lock(&p->lock);
    bool ending = p->ending;
    mutex_unlock(&p->lock);
    return ending;
}

/* Files that were removed behind the view, and whose names the kernel still keeps: until it forgets
 * them our descriptor keeps their space. On NFS the server frees it all the same. */
static void drop_removed(struct prune *p)
{
    struct inode_table *t = p->v->guard->inodes;
    struct inode *i;
    uint64_t hand = 0;
    while (!is_ending(p) && (i = inode_next_idle(t, &hand))) {
        struct inode_name name;
        struct stat st;
        bool removed = fstatat(i->fd, "", &st, AT_EMPTY_PATH) == 0 && st.st_nlink == 0 &&
                       inode_take_name(t, i, &name);
        inode_put(t, i);
        if (!removed)
            continue;
        (void)fuse_lowlevel_notify_inval_entry(p->v->se, name.parent, name.name, strlen(name.name));
        free(name.name);
    }
}

/* took_ms: the last look for removed files. false: it is ending. */
static bool wait_for_work(struct prune *p, uint64_t took_ms, bool *ret_crowded)
{
    uint64_t until = base_now_ms() + DG_MAX(REMOVED_PERIOD_MS, took_ms * REMOVED_SHARE);
    mutex_lock(&p->lock);
    if (p->watches_removed)
        while (!p->crowded && !p->ending && cond_wait_until(&p->wake, &p->lock, until))
            ;
    else
        while (!p->crowded && !p->ending)
            cond_wait(&p->wake, &p->lock);
    *ret_crowded = p->crowded;
    p->crowded = false;
    bool go_on = !p->ending;
    mutex_unlock(&p->lock);
    return go_on;
}

static void *prune_main(void *arg)
{
    struct prune *p = arg;
    unsigned long goal = prune_limit() / 4 * 3;
    uint64_t took_ms = 0;
    bool crowded;
    while (wait_for_work(p, took_ms, &crowded)) {
        while (crowded && !is_ending(p) && inode_count(p->v->guard->inodes) > goal) {
            if (drop_names(p->v) == 0)
                break; /* the rest is in use */
        }
        uint64_t began = base_now_ms();
        if (p->watches_removed)
            drop_removed(p);
        took_ms = base_now_ms() - began;
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
    p->watches_removed = v->entry_timeout > 0 && !v->guard->store.fs->stale_data;
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
