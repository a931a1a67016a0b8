/* shard.c: see shard.h. */
#include "core/shard.h"

#include "base/hook.h"
#include "base/log.h"

/* One that is gone since the store was opened is a medium at fault, as a file that it lost. */
static int open_there(const struct store *s, enum shard_dir dir, unsigned shard)
{
    int fd = shard_open(store_dir_fd(s, dir), shard);

    if (fd == -EUCLEAN)
        log_debug("%s/" DG_SHARD_FORMAT " is missing", shard_dir_name(dir), shard);
    return fd == -EUCLEAN ? -EIO : store_medium(fd);
}

int shard_fd(const struct store *s, enum shard_dir dir, uint64_t key)
{
    unsigned shard = shard_of(dir, key);
    atomic_int *kept = &s->shards->fd[dir][shard];
    int fd = atomic_load(kept), none = -1;

    if (fd >= 0)
        return fd;
    fd = HOOK_FAIL("shard.open");
    if (fd == 0)
        fd = open_there(s, dir, shard);
    if (fd < 0 || atomic_compare_exchange_strong(kept, &none, fd))
        return fd;
    close(fd);
    return none; /* another thread was faster */
}

struct listing {
    unsigned shard;
    enum shard_dir dir;
    int (*fn)(void *arg, const char *name);
    void *arg;
};

static int see(void *arg, const char *name)
{
    const struct listing *l = arg;
    uint64_t key;

    if (shard_key(name, &key) && shard_of(l->dir, key) == l->shard)
        return l->fn(l->arg, name);
    log_debug("%s/" DG_SHARD_FORMAT "/%s: not a name that belongs here, ignored",
              shard_dir_name(l->dir), l->shard, name);
    return 0;
}

int shard_list(const struct store *s, enum shard_dir dir, uint64_t key,
               int (*fn)(void *arg, const char *name), void *arg)
{
    struct listing l = {shard_of(dir, key), dir, fn, arg};
    int fd = shard_fd(s, dir, key);

    return fd < 0 ? fd : store_medium(io_fresh_dir(fd, see, &l));
}

int shard_list_all(const struct store *s, enum shard_dir dir,
                   int (*fn)(void *arg, const char *name), void *arg)
{
    struct listing l = {0, dir, fn, arg};
    int r = 0;

    for (; r == 0 && l.shard < shard_count(dir); l.shard++) {
        /* not kept: a tool has few descriptors */
        int fd = open_there(s, dir, l.shard);

        r = store_medium(fd < 0 ? fd : io_fresh_dir(fd, see, &l));
        base_closep(&fd);
    }
    return r;
}
