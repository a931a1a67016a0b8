#include "node/handle.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/hook.h"
#include "base/sync.h"

/* Slots stand in chunks that are neither moved nor freed before the table. So a pointer stays valid
 * as long as its handle is open. */
#define CHUNK_SLOTS 1024u
#define CHUNKS_MAX 16384u

enum { HANDLE_DEAD, HANDLE_NEW, HANDLE_LIVE };

struct handle_table {
    struct inode_table *inodes;
    struct mutex lock;
    struct handle *_Atomic chunks[CHUNKS_MAX];
    atomic_ullong slots;
    struct handle *free GUARDED_BY(lock);
};

struct handle_table *handle_table_new(struct inode_table *inodes)
{
    struct handle_table *t = calloc(1, sizeof(*t));
    if (!t)
        return NULL;
    t->inodes = inodes;
    mutex_init(&t->lock);
    return t;
}

void handle_table_free(struct handle_table *t)
{
    if (!t)
        return;
    for (size_t c = 0; c < CHUNKS_MAX; c++)
        free(atomic_load(&t->chunks[c]));
    mutex_destroy(&t->lock);
    free(t);
}

static struct handle *handle_alloc_locked(struct handle_table *t) REQUIRES(t->lock)
{
    struct handle *h = t->free;
    if (h) {
        t->free = h->next_free;
        return h;
    }
    uint64_t index = atomic_load(&t->slots);
    uint64_t chunk = index / CHUNK_SLOTS;
    if (chunk >= CHUNKS_MAX)
        return NULL;
    struct handle *slots = atomic_load(&t->chunks[chunk]);
    if (!slots) {
        slots = calloc(CHUNK_SLOTS, sizeof(struct handle));
        if (!slots)
            return NULL;
        atomic_store(&t->chunks[chunk], slots);
    }
    h = &slots[index % CHUNK_SLOTS];
    h->fh = index;
    atomic_store(&t->slots, index + 1);
    return h;
}

struct handle *handle_new(struct handle_table *t, struct inode *i)
{
    mutex_lock(&t->lock);
    struct handle *h = handle_alloc_locked(t);
    if (h) {
        uint64_t fh = h->fh;
        memset(h, 0, sizeof(*h));
        h->fh = fh;
        h->inode = i;
        h->fd = -1;
        h->direct_fd = -1;
        h->opened_ms = base_now_ms();
        atomic_store(&h->live, HANDLE_NEW);
    }
    mutex_unlock(&t->lock);
    if (h)
        inode_pin(t->inodes, i);
    return h;
}

void handle_publish(struct handle *h)
{
    atomic_store(&h->live, HANDLE_LIVE);
}

static struct handle *handle_slot(struct handle_table *t, uint64_t fh)
{
    if (fh >= atomic_load(&t->slots))
        return NULL;
    struct handle *h = atomic_load(&t->chunks[fh / CHUNK_SLOTS]);
    h += fh % CHUNK_SLOTS;
    return atomic_load(&h->live) == HANDLE_DEAD ? NULL : h;
}

struct handle *handle_get(struct handle_table *t, uint64_t fh)
{
    return handle_slot(t, fh);
}

void handle_free(struct handle_table *t, struct handle *h)
{
    struct inode *i = h->inode;
    mutex_lock(&t->lock);
    atomic_store(&h->live, HANDLE_DEAD);
    h->inode = NULL;
    h->next_free = t->free;
    t->free = h;
    mutex_unlock(&t->lock);
    inode_put(t->inodes, i);
}

void handle_each(struct handle_table *t, void (*fn)(void *arg, struct handle *h), void *arg)
{
    mutex_lock(&t->lock);
    uint64_t n = atomic_load(&t->slots);
    for (uint64_t fh = 0; fh < n; fh++) {
        struct handle *h = handle_slot(t, fh);
        if (h && atomic_load(&h->live) == HANDLE_LIVE)
            fn(arg, h);
    }
    mutex_unlock(&t->lock);
}

int handle_replace_fd(int fd, int at)
{
    int r;
    do
        r = dup3(fd, at, O_CLOEXEC);
    while (r < 0 && (errno == EINTR || errno == EBUSY));
    r = r < 0 ? -errno : 0;
    HOOK_STALE_COPY(fd, at);
    close(fd); /* Nothing is lost: a duplicate stays open, or nothing was written through it. */
    return r;
}
