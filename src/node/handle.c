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

/* fh is generation << 32 | index. `live` says the same generation and, in its lower half, one of
 * these. */
enum { HANDLE_DEAD, HANDLE_NEW, HANDLE_LIVE };
#define GENERATION_SHIFT 32

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
    h->fh = index; /* generation 0, which no open handle has */
    atomic_store(&t->slots, index + 1);
    return h;
}

static uint64_t fh_index(uint64_t fh)
{
    return (uint32_t)fh;
}

static uint64_t fh_generation(uint64_t fh)
{
    return fh >> GENERATION_SHIFT;
}

/* The fh of the slot's next handle. After 2^32 of them an fh comes back. */
static uint64_t fh_next(uint64_t fh)
{
    uint64_t generation = (uint32_t)(fh_generation(fh) + 1);
    return (generation ? generation : 1) << GENERATION_SHIFT | fh_index(fh);
}

static void set_live(struct handle *h, unsigned how)
{
    atomic_store(&h->live, fh_generation(h->fh) << GENERATION_SHIFT | how);
}

struct handle *handle_new(struct handle_table *t, struct inode *i)
{
    mutex_lock(&t->lock);
    struct handle *h = handle_alloc_locked(t);
    if (h) {
        uint64_t fh = fh_next(h->fh);
        memset(h, 0, offsetof(struct handle, live));
        h->fh = fh;
        h->inode = i;
        h->fd = -1;
        h->direct_fd = -1;
        h->opened_ms = base_now_ms();
        set_live(h, HANDLE_NEW);
    }
    mutex_unlock(&t->lock);
    if (h)
        inode_pin(t->inodes, i);
    return h;
}

void handle_publish(struct handle *h)
{
    set_live(h, HANDLE_LIVE);
}

static struct handle *handle_slot(struct handle_table *t, uint64_t index)
{
    if (index >= atomic_load(&t->slots))
        return NULL;
    return atomic_load(&t->chunks[index / CHUNK_SLOTS]) + index % CHUNK_SLOTS;
}

struct handle *handle_get(struct handle_table *t, uint64_t fh)
{
    struct handle *h = handle_slot(t, fh_index(fh));
    /* h->fh is not looked at: the slot may just get its next handle */
    uint64_t live = h ? atomic_load(&h->live) : HANDLE_DEAD;
    return fh_generation(live) == fh_generation(fh) && (uint32_t)live != HANDLE_DEAD ? h : NULL;
}

void handle_free(struct handle_table *t, struct handle *h)
{
    struct inode *i = h->inode;
    mutex_lock(&t->lock);
    set_live(h, HANDLE_DEAD);
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
    for (uint64_t index = 0; index < n; index++) {
        struct handle *h = handle_slot(t, index);
        if (h && (uint32_t)atomic_load(&h->live) == HANDLE_LIVE)
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
