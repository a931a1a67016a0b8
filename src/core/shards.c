/* shards.c: see shards.h. */
#include "core/shards.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hook.h"
#include "core/io.h"

#define NAME_SIZE 12

const char *shard_dir_name(enum shard_dir dir)
{
    static const char *const name[SHARD_DIRS] = {"claims", "marks", "readers"};

    return name[dir];
}

unsigned shard_count(enum shard_dir dir)
{
    return dir == SHARD_CLAIMS ? DG_SHARDS : DG_SHARDS_FEW;
}

unsigned shard_of(enum shard_dir dir, uint64_t key)
{
    return dg_shard(key) / (DG_SHARDS / shard_count(dir));
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

/* 0 to shard_count() - 1, or -1 */
static int shard_number(const char *name, enum shard_dir dir)
{
    char again[NAME_SIZE];
    unsigned n = (unsigned)strtoul(name, NULL, 16);

    if (n >= shard_count(dir))
        return -1;
    shard_name(n, again);
    return strcmp(again, name) == 0 ? (int)n : -1;
}

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
    return fd;
}

struct shard_cache *shard_cache_new(void)
{
    struct shard_cache *c = malloc(sizeof(*c));

    for (unsigned d = 0; c && d < SHARD_DIRS; d++)
        for (unsigned i = 0; i < DG_SHARDS; i++)
            atomic_init(&c->fd[d][i], -1);
    return c;
}

void shard_cache_free(struct shard_cache *c)
{
    for (unsigned d = 0; c && d < SHARD_DIRS; d++)
        for (unsigned i = 0; i < DG_SHARDS; i++) {
            int fd = atomic_load(&c->fd[d][i]);

            base_closep(&fd);
        }
    free(c);
}

/* ---- all of them ---- */

int shard_make_all(int dir_fd, enum shard_dir dir)
{
    char name[NAME_SIZE];
    int r = 0;

    for (unsigned i = 0; r == 0 && i < shard_count(dir); i++) {
        r = i % 64 ? 0 : HOOK_FAIL("shard.mkdir");
        shard_name(i, name);
        /* EEXIST: of an interrupted run, or a lost reply (10.1.1) */
        if (r == 0 && mkdirat(dir_fd, name, 0700) < 0 && errno != EEXIST)
            r = -errno;
    }
    for (unsigned i = 0; r == 0 && i < shard_count(dir); i++) {
        _cleanup_close_ int fd = shard_open(dir_fd, i);

        r = fd < 0 ? fd : io_fsync(fd);
    }
    if (r == 0)
        r = HOOK_FAIL("shard.dirsync");
    return r < 0 ? r : io_fsync(dir_fd);
}

struct survey {
    struct shard_survey *ret;
    enum shard_dir dir;
    bool there[DG_SHARDS];
};

static int look(void *arg, const char *name)
{
    struct survey *s = arg;
    int shard = shard_number(name, s->dir);
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

int shard_survey(int dir_fd, enum shard_dir dir, struct shard_survey *ret)
{
    struct survey s = {.ret = ret, .dir = dir};

    *ret = (struct shard_survey){.missing = -1};
    int r = io_fresh_dir(dir_fd, look, &s);
    for (unsigned i = 0; r == 0 && i < shard_count(dir); i++) {
        ret->shards += s.there[i];
        if (!s.there[i] && ret->missing < 0)
            ret->missing = (int)i;
    }
    return r;
}
