/* shard.c: see shard.h. */
#include "core/shard.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hook.h"
#include "base/log.h"

#define NAME_SIZE 8

struct shard_cache {
    atomic_int fd[SHARD_DIRS][DG_SHARDS]; /* -1: not opened yet */
};

const char *shard_dir_name(enum shard_dir dir)
{
    static const char *const name[SHARD_DIRS] = {"claims", "marks", "readers"};

    return name[dir];
}

int shard_dir_fd(const struct store *s, enum shard_dir dir)
{
    return dir == SHARD_CLAIMS ? s->claims_fd : dir == SHARD_MARKS ? s->marks_fd : s->readers_fd;
}

bool shard_key(const char *name, uint64_t *ret)
{
    char digits[SHARD_KEY_DIGITS + 1] = "";

    if (strspn(name, "0123456789abcdef") < SHARD_KEY_DIGITS)
        return false;
    memcpy(digits, name, SHARD_KEY_DIGITS);
    *ret = strtoull(digits, NULL, 16);
    return true;
}

static void shard_name(unsigned shard, char ret[NAME_SIZE])
{
    snprintf(ret, NAME_SIZE, DG_SHARD_FORMAT, shard);
}

/* 0 to DG_SHARDS - 1, or -1 */
static int shard_number(const char *name)
{
    char again[NAME_SIZE];
    unsigned n = (unsigned)strtoul(name, NULL, 16);

    if (n >= DG_SHARDS)
        return -1;
    shard_name(n, again);
    return strcmp(again, name) == 0 ? (int)n : -1;
}

/* ---- one shard ---- */

int shard_open(int dir_fd, unsigned shard)
{
    char name[NAME_SIZE];
    int fd;

    shard_name(shard, name);
    /* A shard is never replaced, so that a name which is cached is right. A cached absence may be
     * wrong: it is asked freshly. */
    fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        fd = io_fresh_open(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    if (fd == -ENOENT || fd == -ENOTDIR || fd == -ELOOP)
        return -EUCLEAN;
    return store_medium(fd);
}

int shard_fd(const struct store *s, enum shard_dir dir, uint64_t key)
{
    unsigned shard = dg_shard(key);
    atomic_int *kept = &s->shards->fd[dir][shard];
    int fd = atomic_load(kept), none = -1;

    if (fd >= 0)
        return fd;
    fd = HOOK_FAIL("shard.open");
    if (fd == 0)
        fd = shard_open(shard_dir_fd(s, dir), shard);
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

    if (shard_key(name, &key) && dg_shard(key) == l->shard)
        return l->fn(l->arg, name);
    log_debug("%s/" DG_SHARD_FORMAT "/%s: not a name that belongs here, ignored",
              shard_dir_name(l->dir), l->shard, name);
    return 0;
}

int shard_list(const struct store *s, enum shard_dir dir, uint64_t key,
               int (*fn)(void *arg, const char *name), void *arg)
{
    struct listing l = {dg_shard(key), dir, fn, arg};
    int fd = shard_fd(s, dir, key);

    return fd < 0 ? fd : store_medium(io_fresh_dir(fd, see, &l));
}

int shard_list_all(const struct store *s, enum shard_dir dir,
                   int (*fn)(void *arg, const char *name), void *arg)
{
    struct listing l = {0, dir, fn, arg};
    int r = 0;

    for (; r == 0 && l.shard < DG_SHARDS; l.shard++) {
        /* not kept: a tool has few descriptors */
        int fd = shard_open(shard_dir_fd(s, dir), l.shard);

        r = fd < 0 ? fd : store_medium(io_fresh_dir(fd, see, &l));
        base_closep(&fd);
    }
    return r;
}

int shard_cache_new(struct store *s)
{
    struct shard_cache *c = malloc(sizeof(*c));

    if (!c)
        return -ENOMEM;
    for (unsigned d = 0; d < SHARD_DIRS; d++)
        for (unsigned i = 0; i < DG_SHARDS; i++)
            atomic_init(&c->fd[d][i], -1);
    s->shards = c;
    return 0;
}

void shard_cache_free(struct store *s)
{
    for (unsigned d = 0; s->shards && d < SHARD_DIRS; d++)
        for (unsigned i = 0; i < DG_SHARDS; i++) {
            int fd = atomic_load(&s->shards->fd[d][i]);

            base_closep(&fd);
        }
    free(s->shards);
    s->shards = NULL;
}

/* ---- all of them ---- */

int shard_make_all(int dir_fd)
{
    char name[NAME_SIZE];
    int r = 0;

    for (unsigned i = 0; r == 0 && i < DG_SHARDS; i++) {
        r = i % 64 ? 0 : HOOK_FAIL("shard.mkdir");
        shard_name(i, name);
        /* EEXIST: of an interrupted run, or a lost reply (10.1.1) */
        if (r == 0 && mkdirat(dir_fd, name, 0700) < 0 && errno != EEXIST)
            r = -errno;
    }
    for (unsigned i = 0; r == 0 && i < DG_SHARDS; i++) {
        _cleanup_close_ int fd = shard_open(dir_fd, i);

        r = fd < 0 ? fd : io_fsync(fd);
    }
    if (r == 0)
        r = HOOK_FAIL("shard.dirsync");
    return r < 0 ? r : io_fsync(dir_fd);
}

struct survey {
    struct shard_survey *ret;
    bool there[DG_SHARDS];
};

static int look(void *arg, const char *name)
{
    struct survey *s = arg;
    int shard = shard_number(name);
    uint64_t key;

    if (shard >= 0) {
        s->there[shard] = true;
        return 0;
    }
    s->ret->any = true;
    if (shard_key(name, &key) && s->ret->outside[0] == '\0')
        snprintf(s->ret->outside, sizeof(s->ret->outside), "%s", name);
    return 0;
}

int shard_survey(int dir_fd, struct shard_survey *ret)
{
    struct survey s = {.ret = ret};

    *ret = (struct shard_survey){.missing = -1};
    int r = io_fresh_dir(dir_fd, look, &s);
    for (unsigned i = 0; r == 0 && i < DG_SHARDS; i++) {
        ret->shards += s.there[i];
        if (!s.there[i] && ret->missing < 0)
            ret->missing = (int)i;
    }
    return r;
}
