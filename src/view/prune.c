#include "view/prune.h"

#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>

#include "base/log.h"
#include "base/sync.h"
#include "node/inode.h"
#include "run/pool.h"

#define BATCH 64u
#define SAY_PERIOD_MS 60000u
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
    bool looking GUARDED_BY(lock); /* find_removed() is queued or runs */
    unsigned refs GUARDED_BY(lock);
    uint64_t next_look_ms GUARDED_BY(lock);
    uint64_t hand;                       /* of find_removed(): where the next look goes on */
    unsigned n_removed GUARDED_BY(lock); /* names of removed files, to be dropped */
    struct inode_name removed[BATCH] GUARDED_BY(lock);
};

unsigned long prune_limit(void)
{
    struct rlimit rl;
    return getrlimit(RLIMIT_NOFILE, &rl) < 0 ? 256 : rl.rlim_cur / 8 * 3;
}

void prune_say_limit(const struct view *v, int err)
{
    static _Atomic uint64_t next_ms;
    uint64_t now = base_now_ms(), next = atomic_load(&next_ms);
    struct rlimit rl = {0};
    if (now < next || !atomic_compare_exchange_strong(&next_ms, &next, now + SAY_PERIOD_MS))
        return;
    (void)getrlimit(RLIMIT_NOFILE, &rl);
    if (err == ENFILE)
        log_msg(
            LOG_ERR,
            "the view of '%s': this host has no file left to open (ENFILE): requests fail. Way out: raise the sysctl fs.file-max",
            v->guard->store.path);
    else
        log_msg(
            LOG_ERR,
            "the view of '%s': all %llu descriptors of the daemon are in use (EMFILE): requests fail. A held image takes three, any other open file two. Way out: LimitNOFILE= of the unit, or ulimit -n before mount, and mount again",
            v->guard->store.path, (unsigned long long)rl.rlim_cur);
}

/* Without any lock: the kernel takes the parent directory's, which a request that we are serving
 * may hold. */
static void drop_all(struct view *v, struct inode_name *names, unsigned n)
{
    for (unsigned k = 0; k < n; k++) {
        (void)fuse_lowlevel_notify_inval_entry(v->se, names[k].parent, names[k].name,
                                               strlen(names[k].name));
        free(names[k].name);
    }
}

/* One batch. */
static unsigned drop_names(struct view *v)
{
    struct inode_name names[BATCH];
    unsigned n = inode_idle_names(v->guard->inodes, names, BATCH);
    drop_all(v, names, n);
    return n;
}

static bool is_ending(struct prune *p)
{
    mutex_lock(&p->lock);
    bool ending = p->ending;
    mutex_unlock(&p->lock);
    return ending;
}

static void prune_unref(struct prune *p)
{
    mutex_lock(&p->lock);
    bool last = --p->refs == 0;
    mutex_unlock(&p->lock);
    if (!last)
        return;
    for (unsigned k = 0; k < p->n_removed; k++)
        free(p->removed[k].name);
    cond_destroy(&p->wake);
    mutex_destroy(&p->lock);
    free(p);
}

/* Files that were removed behind the view, and whose names the kernel still keeps: until it forgets
 * them our descriptor keeps their space. On NFS the server frees it all the same. On the pool, for
 * the storage may take long to answer; not of other file systems mounted below the datastore, whose
 * storage may hang when this one does not. */
static void find_removed(void *arg)
{
    struct prune *p = arg;
    struct inode_table *t = p->v->guard->inodes;
    struct inode_name removed[BATCH];
    struct inode *i;
    uint64_t began = base_now_ms();
    unsigned n = 0;
    while (n < BATCH && !is_ending(p) && (i = inode_next_idle(t, &p->hand))) {
        struct stat st;
        if (i->dev == p->v->guard->store.dev && fstatat(i->fd, "", &st, AT_EMPTY_PATH) == 0 &&
            st.st_nlink == 0 && inode_copy_name(t, i, &removed[n]))
            n++;
        inode_put(t, i);
    }
    if (n < BATCH)
        p->hand = 0;
    mutex_lock(&p->lock);
    memcpy(p->removed, removed, n * sizeof(*removed));
    p->n_removed = n;
    p->looking = false;
    p->next_look_ms =
        base_now_ms() + DG_MAX(REMOVED_PERIOD_MS, (base_now_ms() - began) * REMOVED_SHARE);
    cond_signal(&p->wake);
    mutex_unlock(&p->lock);
    prune_unref(p);
}

/* The names that were found: the kernel may have to wait for a directory's lock. */
static void drop_removed(struct prune *p)
{
    struct inode_name removed[BATCH];
    mutex_lock(&p->lock);
    unsigned n = p->n_removed;
    memcpy(removed, p->removed, n * sizeof(*removed));
    p->n_removed = 0;
    mutex_unlock(&p->lock);
    drop_all(p->v, removed, n);
}

/* Waits until there is something to do; begins a look for removed files when it is time. false: it
 * is ending. */
static bool wait_for_work(struct prune *p, bool *ret_crowded)
{
    bool look = false;
    mutex_lock(&p->lock);
    while (!p->crowded && !p->ending && p->n_removed == 0 && !look) {
        if (!p->watches_removed || p->looking)
            cond_wait(&p->wake, &p->lock);
        else
            look = !cond_wait_until(&p->wake, &p->lock, p->next_look_ms);
    }
    *ret_crowded = p->crowded;
    p->crowded = false;
    bool go_on = !p->ending;
    look = look && go_on;
    if (look) {
        p->looking = true;
        p->refs++;
    }
    mutex_unlock(&p->lock);
    if (look)
        pool_submit(p->v->guard->pool, find_removed, p);
    return go_on;
}

static void *prune_main(void *arg)
{
    struct prune *p = arg;
    unsigned long goal = prune_limit() / 4 * 3;
    bool crowded;
    while (wait_for_work(p, &crowded)) {
        while (crowded && !is_ending(p) && inode_count(p->v->guard->inodes) > goal) {
            if (drop_names(p->v) == 0)
                break; /* the rest is in use */
        }
        drop_removed(p);
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
    mutex_lock(&p->lock);
    p->refs = 1;
    p->next_look_ms = base_now_ms() + REMOVED_PERIOD_MS;
    mutex_unlock(&p->lock);
    if (pthread_create(&p->thread, NULL, prune_main, p) != 0) {
        prune_unref(p);
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
    prune_unref(p);
}
