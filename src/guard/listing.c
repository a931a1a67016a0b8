/* listing.c: see listing.h. */
#include "guard/listing.h"

#include <string.h>

#include "base/hook.h"
#include "core/shard.h"
#include "guard/snapshot.h"

/* One shard of claims/ or marks/. */
struct part {
    struct image_stamp stamp; /* as this host sees it */
    bool valid;               /* key and n are those of stamp */
    bool busy;                /* somebody lists */
    uint64_t *key;            /* inode numbers, sorted */
    size_t n;
};

struct image_listing {
    struct mutex lock;
    struct part claims[DG_SHARDS] GUARDED_BY(lock);
    struct part marks[DG_SHARDS_FEW] GUARDED_BY(lock);
};

static struct part *part_locked(struct image_listing *l, enum shard_dir dir, uint64_t key)
    REQUIRES(l->lock)
{
    return &(dir == SHARD_CLAIMS ? l->claims : l->marks)[shard_of(dir, key)];
}

struct image_listing *image_listing_new(void)
{
    struct image_listing *l = calloc(1, sizeof(*l));
    if (l)
        mutex_init(&l->lock);
    return l;
}

void image_listing_free(struct image_listing *l)
{
    if (!l)
        return;
    for (unsigned k = 0; k < DG_SHARDS; k++)
        free(l->claims[k].key);
    for (unsigned k = 0; k < DG_SHARDS_FEW; k++)
        free(l->marks[k].key);
    mutex_destroy(&l->lock);
    free(l);
}

struct keys {
    uint64_t *key;
    size_t n, room;
};

/* Whatever begins as a name of a claim or mark: who finds one reads it. */
static int see_key(void *arg, const char *name)
{
    struct keys *k = arg;
    uint64_t key;
    if (!shard_key(name, &key))
        return 0;
    if (k->n == k->room) {
        size_t room = k->room ? 2 * k->room : 64;
        uint64_t *grown = reallocarray(k->key, room, sizeof(*grown));
        if (!grown)
            return -ENOMEM;
        k->key = grown;
        k->room = room;
    }
    k->key[k->n++] = key;
    return 0;
}

static int key_cmp(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

enum answer { UNSETTLED, TO_LIST, ABSENT, PRESENT };

static enum answer find(const struct part *p, uint64_t key)
{
    return p->n > 0 && bsearch(&key, p->key, p->n, sizeof(key), key_cmp) ? PRESENT : ABSENT;
}

/* TO_LIST: the caller does, and then says listed(). */
static enum answer ask(struct image_listing *l, enum shard_dir dir, const struct timespec *ctime,
                       uint64_t key)
{
    mutex_lock(&l->lock);
    struct part *p = part_locked(l, dir, key);
    bool settled = image_stamp_note(&p->stamp, ctime, base_now_ms());
    p->valid &= settled;
    enum answer a = !settled ? UNSETTLED : p->valid ? find(p, key) : p->busy ? UNSETTLED : TO_LIST;
    p->busy |= a == TO_LIST;
    mutex_unlock(&l->lock);
    return a;
}

/* Of the listing that ask() asked for; same: ctime was the same before and after. */
static enum answer listed(struct image_listing *l, enum shard_dir dir, struct keys *k,
                          const struct timespec *ctime, bool same, uint64_t key)
{
    enum answer a = UNSETTLED;
    if (k->n > 1)
        qsort(k->key, k->n, sizeof(*k->key), key_cmp);
    mutex_lock(&l->lock);
    struct part *p = part_locked(l, dir, key);
    p->busy = false;
    if (same && image_same_time(&p->stamp.ctime, ctime)) {
        uint64_t *old = p->key;
        p->key = k->key;
        p->n = k->n;
        k->key = old;
        p->valid = true;
        a = find(p, key);
    }
    mutex_unlock(&l->lock);
    return a;
}

static int shard_stat(struct guard *g, enum shard_dir dir, uint64_t key, struct stat *ret)
{
    int fd = shard_fd(&g->store, dir, key);
    return fd < 0 ? fd : io_fresh_stat(fd, ret);
}

/* No name of this key in the shard, which had this ctime just now? */
static bool none(struct guard *g, enum shard_dir dir, uint64_t key, const struct timespec *ctime)
{
    struct image_listing *l = g->listing;
    struct stat after;
    enum answer a = ask(l, dir, ctime, key);
    if (a == TO_LIST) {
        struct keys k = {0};
        HOOK("image.listing");
        bool same = shard_list(&g->store, dir, key, see_key, &k) == 0 &&
                    shard_stat(g, dir, key, &after) == 0 && image_same_time(ctime, &after.st_ctim);
        a = listed(l, dir, &k, ctime, same, key);
        free(k.key);
    }
    return a == ABSENT;
}

bool image_listing_none(struct guard *g, const struct inode *i, const struct timespec *ctime)
{
    return none(g, SHARD_CLAIMS, i->ino, ctime);
}

bool image_listing_unneeded(struct guard *g, const struct inode *i)
{
    struct stat marks, claims;
    return shard_stat(g, SHARD_MARKS, i->ino, &marks) == 0 &&
           none(g, SHARD_MARKS, i->ino, &marks.st_ctim) &&
           shard_stat(g, SHARD_CLAIMS, i->ino, &claims) == 0 &&
           none(g, SHARD_CLAIMS, i->ino, &claims.st_ctim);
}

int image_listing_claim(struct guard *g, const struct inode *i, struct claim *ret)
{
    struct stat st;
    if (image_claims_stat(g, i, &st) < 0 || !image_listing_none(g, i, &st.st_ctim))
        return claim_read(&g->store, i->ino, ret);
    ret->kind = CLAIM_NONE;
    ret->generation = 0;
    ret->error = 0;
    return 0;
}
