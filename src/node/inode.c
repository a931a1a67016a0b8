#include "node/inode.h"
#include "base/sync.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

/* Slots stand in chunks that are neither moved nor freed before the table. So a pointer stays valid
 * as long as its inode is pinned. */
#define CHUNK_SLOTS 1024u
#define CHUNKS_MAX 16384u
#define BUCKETS_MIN 1024u
#define TOLD_MS 1000u /* the kernel walks a path again at once */

/* The thread that was told to walk its path again, and for which file. When two threads share a
 * slot, the earlier one is told twice, and its call may fail with ESTALE. */
#define TOLD_MAX 1024u
struct told {
    uint64_t pid, dir, nodeid; /* pid 0: none */
    uint64_t name;             /* its hash */
    uint64_t ms, tick;
};
LIST_HEAD(inode_list, inode);

struct inode_table {
    struct inode_parts parts;
    struct mutex lock;
    struct inode *chunks[CHUNKS_MAX] GUARDED_BY(lock);
    uint64_t slots GUARDED_BY(lock); /* ever used */
    uint64_t hand GUARDED_BY(lock);  /* position of the clock that finds idle inodes: a slot */
    struct inode_list free GUARDED_BY(lock);
    struct inode_list *buckets GUARDED_BY(lock);
    size_t n_buckets GUARDED_BY(lock);
    size_t hashed GUARDED_BY(lock);
    atomic_ulong count;
    unsigned long limit GUARDED_BY(lock); /* 0: nobody watches */
    void (*crowded)(void *arg) GUARDED_BY(lock);
    void *crowded_arg GUARDED_BY(lock);
    uint32_t first_generation; /* Random: a handle that an NFS client kept from an earlier daemon is
                                  then stale, and never another file. */
    struct told told[TOLD_MAX] GUARDED_BY(lock);
    uint64_t tick GUARDED_BY(lock); /* counts names noted and threads told */
    bool shared;                    /* other hosts can reuse inode numbers behind our descriptors */
    dev_t dev;                      /* of the root, as `shared` */
};

/* The resources of a dead inode, to be released without the lock. */
struct remains {
    int fd;
    struct image *image;
    struct inode_locks *locks;
    char *name, *former;
};

static size_t hash_of(dev_t dev, ino_t ino, size_t n_buckets)
{
    uint64_t x = (uint64_t)ino * 0x9e3779b97f4a7c15u + (uint64_t)dev;
    x ^= x >> 32;
    return (size_t)(x * 0xbf58476d1ce4e5b9u >> 17) & (n_buckets - 1);
}

struct inode_table *inode_table_new(const struct inode_parts *parts)
{
    struct inode_table *t = calloc(1, sizeof(*t));
    struct inode_list *buckets = calloc(BUCKETS_MIN, sizeof(*buckets));
    if (!t || !buckets) {
        free(t);
        free(buckets);
        return NULL;
    }
    t->parts = *parts;
    mutex_init(&t->lock);
    mutex_lock(&t->lock);
    t->buckets = buckets;
    t->n_buckets = BUCKETS_MIN;
    mutex_unlock(&t->lock);
    if (getrandom(&t->first_generation, sizeof(t->first_generation), 0) < 0)
        t->first_generation = (uint32_t)base_now_ms();
    return t;
}

static struct remains remains_of(struct inode *i)
{
    return (struct remains){i->fd, atomic_load(&i->image), atomic_load(&i->locks), i->name,
                            i->former};
}

static void bury(const struct inode_table *t, struct remains *r)
{
    if (r->image)
        t->parts.free_image(r->image);
    if (r->locks)
        t->parts.free_locks(r->locks);
    if (r->fd >= 0)
        close(r->fd);
    free(r->name);
    free(r->former);
}

static struct inode *slot_locked(struct inode_table *t, uint64_t nodeid) REQUIRES(t->lock)
{
    uint64_t index = nodeid - INODE_ROOT_ID;
    if (nodeid < INODE_ROOT_ID || index >= t->slots)
        return NULL;
    struct inode *i = &t->chunks[index / CHUNK_SLOTS][index % CHUNK_SLOTS];
    return i->pins > 0 || i->nlookup > 0 ? i : NULL;
}

static void unhash_locked(struct inode_table *t, struct inode *i) REQUIRES(t->lock)
{
    if (!i->hashed)
        return;
    LIST_REMOVE(i, entry);
    i->hashed = false;
    t->hashed--;
}

/* Makes more buckets when they are full. Without memory the chains just grow. */
static void grow_locked(struct inode_table *t) REQUIRES(t->lock)
{
    if (t->hashed < t->n_buckets)
        return;
    size_t n = t->n_buckets * 4;
    struct inode_list *buckets = calloc(n, sizeof(*buckets));
    if (!buckets)
        return;
    for (size_t b = 0; b < t->n_buckets; b++) {
        struct inode *i, *next;
        LIST_FOREACH_SAFE(i, &t->buckets[b], entry, next)
            LIST_INSERT_HEAD(&buckets[hash_of(i->dev, i->ino, n)], i, entry);
    }
    free(t->buckets);
    t->buckets = buckets;
    t->n_buckets = n;
}

static struct inode *find_locked(struct inode_table *t, dev_t dev, ino_t ino) REQUIRES(t->lock)
{
    struct inode *i;
    LIST_FOREACH(i, &t->buckets[hash_of(dev, ino, t->n_buckets)], entry)
        if (i->ino == ino && i->dev == dev)
            return i;
    return NULL;
}

static struct inode *alloc_locked(struct inode_table *t) REQUIRES(t->lock)
{
    struct inode *i = LIST_FIRST(&t->free);
    if (i) {
        LIST_REMOVE(i, entry);
        return i;
    }
    uint64_t chunk = t->slots / CHUNK_SLOTS;
    if (chunk >= CHUNKS_MAX)
        return NULL;
    if (!t->chunks[chunk]) {
        t->chunks[chunk] = calloc(CHUNK_SLOTS, sizeof(struct inode));
        if (!t->chunks[chunk])
            return NULL;
    }
    i = &t->chunks[chunk][t->slots % CHUNK_SLOTS];
    i->nodeid = t->slots + INODE_ROOT_ID;
    i->generation = t->first_generation;
    t->slots++;
    return i;
}

static struct inode *make_locked(struct inode_table *t, int fd, const struct stat *st)
    REQUIRES(t->lock)
{
    struct inode *i = alloc_locked(t);
    if (!i)
        return NULL;
    i->dev = st->st_dev;
    i->ino = st->st_ino;
    i->type = st->st_mode & S_IFMT;
    i->fd = fd;
    atomic_store(&i->image, NULL);
    atomic_store(&i->locks, NULL);
    atomic_store(&i->uncached, 0);
    i->shown_size = 0;
    i->shown_ctime = (struct timespec){0};
    i->nlookup = 0;
    i->pins = 1;
    i->used = true;
    i->doubted = false;
    i->named = 0;
    grow_locked(t);
    LIST_INSERT_HEAD(&t->buckets[hash_of(i->dev, i->ino, t->n_buckets)], i, entry);
    i->hashed = true;
    t->hashed++;
    if (atomic_fetch_add(&t->count, 1) >= t->limit && t->limit > 0)
        t->crowded(t->crowded_arg);
    return i;
}

/* No user is left: its slot can be used again. */
static void reap_locked(struct inode_table *t, struct inode *i, struct remains *ret)
    REQUIRES(t->lock)
{
    *ret = (struct remains){.fd = -1};
    if (i->pins > 0 || i->nlookup > 0)
        return;
    unhash_locked(t, i);
    *ret = remains_of(i);
    i->fd = -1;
    i->name = i->former = NULL;
    i->generation++;
    LIST_INSERT_HEAD(&t->free, i, entry);
    atomic_fetch_sub(&t->count, 1);
}

int inode_table_root(struct inode_table *t, int fd, const struct stat *st)
{
    t->shared = io_fstype(fd)->shared;
    t->dev = st->st_dev;
    mutex_lock(&t->lock);
    struct inode *i = t->slots == 0 ? make_locked(t, fd, st) : NULL;
    mutex_unlock(&t->lock);
    if (!i) {
        close(fd);
        return -ENOMEM;
    }
    return 0; /* Its pin stays: the root never dies. */
}

void inode_table_free(struct inode_table *t)
{
    if (!t)
        return;
    mutex_lock(&t->lock);
    for (uint64_t n = 0; n < t->slots; n++) {
        struct inode *i = slot_locked(t, n + INODE_ROOT_ID);
        if (i) {
            struct remains r = remains_of(i);
            bury(t, &r);
        }
    }
    for (size_t c = 0; c < CHUNKS_MAX && t->chunks[c]; c++)
        free(t->chunks[c]);
    free(t->buckets);
    mutex_unlock(&t->lock);
    mutex_destroy(&t->lock);
    free(t);
}

struct inode *inode_get(struct inode_table *t, uint64_t nodeid)
{
    mutex_lock(&t->lock);
    struct inode *i = slot_locked(t, nodeid);
    if (i) {
        i->pins++;
        i->used = true;
    }
    mutex_unlock(&t->lock);
    return i;
}

void inode_pin(struct inode_table *t, struct inode *i)
{
    mutex_lock(&t->lock);
    i->pins++;
    mutex_unlock(&t->lock);
}

void inode_put(struct inode_table *t, struct inode *i)
{
    if (!i)
        return;
    struct remains r;
    mutex_lock(&t->lock);
    i->pins--;
    reap_locked(t, i, &r);
    mutex_unlock(&t->lock);
    bury(t, &r);
}

/* Does (dev, ino) still name the file that the inode was made for? On a local file system our
 * descriptor keeps the number from being used again. A server may have removed the file and given
 * its number to the next one. */
static bool same_file(const struct inode_table *t, const struct inode *i, int fd,
                      const struct stat *st)
{
    if (i->type != (st->st_mode & S_IFMT))
        return false;
    if (!t->shared)
        return true;
    struct io_handle a, b;
    return io_handle_get(i->fd, &a) < 0 || io_handle_get(fd, &b) < 0 || io_handle_equal(&a, &b);
}

int inode_reopen(const struct inode *i, int flags)
{
    return S_ISREG(i->type) ? io_reopen_regular(i->fd, flags) : -EINVAL;
}

bool inode_is_local(const struct inode_table *t, const struct inode *i)
{
    return !t->shared && i->dev == t->dev;
}

bool inode_is_file(const struct inode_table *t, const struct inode *i, int fd)
{
    struct stat st;
    return fstatat(fd, "", &st, AT_EMPTY_PATH) == 0 && st.st_dev == i->dev && st.st_ino == i->ino &&
           same_file(t, i, fd, &st);
}

static void displace(struct inode_table *t, struct inode *i, bool lookup)
{
    struct remains r;
    mutex_lock(&t->lock);
    unhash_locked(t, i);
    i->pins--;
    i->nlookup -= lookup;
    reap_locked(t, i, &r);
    mutex_unlock(&t->lock);
    bury(t, &r);
}

struct inode *inode_enter(struct inode_table *t, int fd, const struct stat *st, bool lookup)
{
    for (;;) {
        mutex_lock(&t->lock);
        struct inode *i = find_locked(t, st->st_dev, st->st_ino);
        bool known = i;
        if (known)
            i->pins++;
        else
            i = make_locked(t, fd, st);
        if (i)
            i->nlookup += lookup;
        mutex_unlock(&t->lock);

        if (known && !same_file(t, i, fd, st)) {
            displace(t, i, lookup);
            continue;
        }
        if (known || !i)
            close(fd);
        return i;
    }
}

struct inode *inode_find(struct inode_table *t, const struct stat *st, bool lookup)
{
    if (t->shared || st->st_dev != t->dev)
        return NULL;
    mutex_lock(&t->lock);
    struct inode *i = find_locked(t, st->st_dev, st->st_ino);
    if (i && i->type != (st->st_mode & S_IFMT))
        i = NULL;
    if (i) {
        i->pins++;
        i->nlookup += lookup;
    }
    mutex_unlock(&t->lock);
    return i;
}

void inode_forget(struct inode_table *t, uint64_t nodeid, uint64_t nlookup)
{
    struct remains r = {.fd = -1};
    mutex_lock(&t->lock);
    struct inode *i = slot_locked(t, nodeid);
    if (i) {
        i->nlookup -= DG_MIN(nlookup, i->nlookup);
        reap_locked(t, i, &r);
    }
    mutex_unlock(&t->lock);
    bury(t, &r);
}

unsigned long inode_count(const struct inode_table *t)
{
    return atomic_load(&t->count);
}

void inode_named(struct inode_table *t, struct inode *i, const struct inode *dir, const char *name,
                 uint64_t keep_ms)
{
    if (i->type == S_IFDIR)
        return; /* Dropping a directory's name would hurt whoever has it as working directory. */
    char *copy = strdup(name); /* Without memory it just cannot be pruned. */
    mutex_lock(&t->lock);
    char *old = i->name;
    if (old && keep_ms > 0 && (i->parent != dir->nodeid || strcmp(old, name) != 0)) {
        old = i->former;
        i->former = i->name;
        i->former_parent = i->parent;
        i->former_until = base_now_ms() + keep_ms;
    }
    i->name = copy;
    i->doubted = false;
    i->named = ++t->tick;
    i->parent = dir->nodeid;
    i->used = true;
    mutex_unlock(&t->lock);
    free(old);
}

void inode_last_name(struct inode_table *t, const struct inode *i, char *ret, size_t size)
{
    mutex_lock(&t->lock);
    snprintf(ret, size, "%s", i->name ? i->name : "");
    mutex_unlock(&t->lock);
}

/* Returns the directory, pinned, and the name. NULL: the directory is forgotten, or its node id is
 * another file's. */
static struct inode *place_locked(struct inode_table *t, uint64_t parent, const char *name,
                                  char *ret, size_t size) REQUIRES(t->lock)
{
    struct inode *dir = name && strlen(name) < size ? slot_locked(t, parent) : NULL;
    if (!dir || dir->type != S_IFDIR)
        return NULL;
    dir->pins++;
    strcpy(ret, name);
    return dir;
}

struct inode *inode_last_place(struct inode_table *t, struct inode *i, char *ret, size_t size)
{
    mutex_lock(&t->lock);
    struct inode *dir = i->doubted ? NULL : place_locked(t, i->parent, i->name, ret, size);
    mutex_unlock(&t->lock);
    return dir;
}

struct inode *inode_former_place(struct inode_table *t, struct inode *i, char *ret, size_t size)
{
    mutex_lock(&t->lock);
    bool counts = i->former && !i->doubted && base_now_ms() < i->former_until;
    struct inode *dir = counts ? place_locked(t, i->former_parent, i->former, ret, size) : NULL;
    mutex_unlock(&t->lock);
    return dir;
}

/* FNV-1a. */
static uint64_t hash_name(const char *name)
{
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    for (; *name; name++)
        h = (h ^ (unsigned char)*name) * UINT64_C(0x100000001b3);
    return h;
}

bool inode_doubt_name(struct inode_table *t, struct inode *i, const struct inode *dir, uint64_t pid)
{
    uint64_t now = base_now_ms();
    mutex_lock(&t->lock);
    struct told *told = &t->told[pid % TOLD_MAX];
    uint64_t name = i->name ? hash_name(i->name) : 0;
    bool again = pid > 0 && told->pid == pid && told->dir == dir->nodeid &&
                 now - told->ms < TOLD_MS &&
                 (told->nodeid == i->nodeid || (told->name == name && i->named > told->tick));
    if (pid == 0)
        i->doubted = true;
    else if (again)
        told->pid = 0;
    else
        *told = (struct told){pid, dir->nodeid, i->nodeid, name, now, ++t->tick};
    mutex_unlock(&t->lock);
    return !again;
}

void inode_trust_name(struct inode_table *t, uint64_t pid)
{
    mutex_lock(&t->lock);
    struct told *told = &t->told[pid % TOLD_MAX];
    if (told->pid == pid)
        told->pid = 0;
    mutex_unlock(&t->lock);
}

void inode_show(struct inode_table *t, struct inode *i, const struct stat *st)
{
    mutex_lock(&t->lock);
    i->shown_size = (uint64_t)st->st_size;
    i->shown_ctime = st->st_ctim;
    mutex_unlock(&t->lock);
}

bool inode_has_news(struct inode_table *t, const struct inode *i, const struct stat *st)
{
    mutex_lock(&t->lock);
    bool news = i->shown_size != (uint64_t)st->st_size ||
                i->shown_ctime.tv_sec != st->st_ctim.tv_sec ||
                i->shown_ctime.tv_nsec != st->st_ctim.tv_nsec;
    mutex_unlock(&t->lock);
    return news;
}

void inode_watch(struct inode_table *t, unsigned long limit, void (*crowded)(void *arg), void *arg)
{
    mutex_lock(&t->lock);
    t->limit = limit;
    t->crowded = crowded;
    t->crowded_arg = arg;
    mutex_unlock(&t->lock);
}

struct inode *inode_next_idle(struct inode_table *t, uint64_t *hand)
{
    struct inode *found = NULL;
    mutex_lock(&t->lock);
    while (!found && *hand < t->slots) {
        struct inode *i = slot_locked(t, INODE_ROOT_ID + (*hand)++);
        if (i && i->pins == 0 && i->name && i->type == S_IFREG)
            found = i;
    }
    if (found)
        found->pins++;
    mutex_unlock(&t->lock);
    return found;
}

bool inode_copy_name(struct inode_table *t, struct inode *i, struct inode_name *ret)
{
    mutex_lock(&t->lock);
    bool idle = i->pins == 1 && i->name;
    *ret = (struct inode_name){.parent = i->parent, .name = idle ? strdup(i->name) : NULL};
    mutex_unlock(&t->lock);
    return ret->name != NULL;
}

unsigned inode_idle_names(struct inode_table *t, struct inode_name *ret, unsigned max)
{
    unsigned n = 0;
    mutex_lock(&t->lock);
    for (uint64_t seen = 0; seen < 2 * t->slots && n < max; seen++) {
        t->hand = t->hand + 1 < t->slots ? t->hand + 1 : 0;
        struct inode *i = slot_locked(t, t->hand + INODE_ROOT_ID);
        if (!i || i->pins > 0 || !i->name)
            continue;
        if (i->used) {
            i->used = false;
            continue;
        }
        ret[n++] = (struct inode_name){.parent = i->parent, .name = i->name};
        i->name = NULL;
    }
    mutex_unlock(&t->lock);
    return n;
}
