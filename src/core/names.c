/* names.c: see names.h. */
#include "core/names.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/hook.h"

int names_open(const struct store *s, const char *dir)
{
    return store_medium(io_fresh_open(s->dir_fd, dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
}

static int open_or_make(const struct store *s, const char *dir)
{
    int fd = names_open(s, dir);
    int r = fd == -ENOENT ? HOOK_FAIL("names.mkdir") : 0;

    if (fd != -ENOENT || r < 0)
        return fd == -ENOENT ? r : fd;
    if (mkdirat(s->dir_fd, dir, 0700) < 0 && errno != EEXIST)
        return store_medium(-errno);
    fd = names_open(s, dir);
    r = fd < 0 ? fd : store_medium(io_fsync(s->dir_fd));
    if (r < 0 && fd >= 0)
        close(fd);
    return r < 0 ? r : fd;
}

int names_make(const struct store *s, const char *dir, const char *name, const char *text)
{
    _cleanup_close_ int fd = open_or_make(s, dir);
    int r;

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

int names_each(const struct store *s, const char *dir, int (*fn)(void *arg, const char *name),
               void *arg)
{
    _cleanup_close_ int fd = names_open(s, dir);

    if (fd < 0)
        return fd == -ENOENT ? 0 : fd;
    return store_medium(io_fresh_dir(fd, fn, arg));
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

int names_list(const struct store *s, const char *dir, size_t item,
               bool (*take)(void *arg, const char *name, void *ret), void *arg, void **ret,
               size_t *ret_n)
{
    struct listing l = {.item = item, .take = take, .arg = arg};
    int r = names_each(s, dir, see, &l);

    if (r < 0) {
        free(l.items);
        return r;
    }
    *ret = l.items;
    *ret_n = l.n;
    return 0;
}

int names_remove(int dir_fd, const char *name)
{
    int r = HOOK_FAIL("names.remove");

    if (r == 0 && unlinkat(dir_fd, name, 0) < 0 && errno != ENOENT)
        r = store_medium(-errno);
    return r;
}

bool names_key(const char *text, uint64_t *ret)
{
    if (strspn(text, "0123456789abcdef") < NAMES_KEY_DIGITS)
        return false;
    char digits[NAMES_KEY_DIGITS + 1] = "";
    memcpy(digits, text, NAMES_KEY_DIGITS);
    *ret = strtoull(digits, NULL, 16);
    return true;
}
