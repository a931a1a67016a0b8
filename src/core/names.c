/* names.c: see names.h. */
#include "core/names.h"

#include <stdlib.h>
#include <string.h>

#include "base/hook.h"

/* The shard where this name belongs. */
static int dir_of(const struct store *s, enum shard_dir dir, const char *name)
{
    uint64_t key;

    return shard_key(name, &key) ? shard_fd(s, dir, key) : -EINVAL;
}

int names_make(const struct store *s, enum shard_dir dir, const char *name, const char *text)
{
    int fd = dir_of(s, dir, name), r;

    if (fd < 0)
        return fd;
    r = HOOK_FAIL("names.create");
    if (r == 0)
        r = store_medium(io_text_create(fd, name, text, strlen(text)));
    bool made = r >= 0;
    if (made)
        close(r); /* fsynced */
    if (!made && r != -EEXIST)
        return r;
    r = HOOK_FAIL("names.dirsync");
    if (r == 0)
        r = store_medium(io_fsync(fd));
    if (r < 0 && made)
        (void)unlinkat(fd, name, 0); /* the caller was told that there is none */
    return r;
}

struct listing {
    size_t item, n, room;
    bool (*take)(void *arg, const char *name, void *ret);
    void *arg;
    char *items;
};

static int see(void *arg, const char *name)
{
    struct listing *l = arg;

    if (l->n == l->room) {
        size_t room = l->room ? 2 * l->room : 16;
        char *grown = reallocarray(l->items, room, l->item);

        if (!grown)
            return -ENOMEM;
        l->items = grown;
        l->room = room;
    }
    if (l->take(l->arg, name, l->items + l->n * l->item))
        l->n++;
    return 0;
}

int names_list(const struct store *s, enum shard_dir dir, uint64_t key, size_t item,
               bool (*take)(void *arg, const char *name, void *ret), void *arg, void **ret,
               size_t *ret_n)
{
    struct listing l = {.item = item, .take = take, .arg = arg};
    int r = key ? shard_list(s, dir, key, see, &l) : shard_list_all(s, dir, see, &l);

    if (r < 0) {
        free(l.items);
        return r;
    }
    *ret = l.items;
    *ret_n = l.n;
    return 0;
}

int names_text(const struct store *s, enum shard_dir dir, const char *name, size_t max,
               char **ret_text, size_t *ret_len)
{
    int fd = dir_of(s, dir, name);

    return fd < 0 ? fd : io_fresh_text(fd, name, max, ret_text, ret_len);
}

int names_remove(const struct store *s, enum shard_dir dir, const char *name)
{
    int fd = dir_of(s, dir, name), r = HOOK_FAIL("names.remove");

    r = r == 0 && fd < 0 ? fd : r;
    if (r == 0 && unlinkat(fd, name, 0) < 0 && errno != ENOENT)
        r = store_medium(-errno);
    return r;
}

int names_sync(const struct store *s, enum shard_dir dir, const char *name)
{
    int fd = dir_of(s, dir, name);

    return fd < 0 ? fd : store_medium(io_fsync(fd));
}
