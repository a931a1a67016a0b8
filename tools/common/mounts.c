#include "common/mounts.h"

#include "base/mountinfo.h"
#include "core/views.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#define LINKS_MAX 40 /* symbolic links followed in one path, as the kernel (path_resolution(7)) */

static void mount_clear(struct mount *m)
{
    free(m->point);
    free(m->source);
    free(m->type);
    memset(m, 0, sizeof(*m));
}

void mounts_free(struct mounts *m)
{
    for (size_t i = 0; i < m->n; i++)
        mount_clear(&m->m[i]);
    free(m->m);
    m->m = NULL;
    m->n = 0;
}

/* A mount hides what was mounted before on the same point. */
static void hide(struct mounts *m, const char *point)
{
    for (size_t i = 0; i < m->n; i++) {
        if (strcmp(m->m[i].point, point) != 0)
            continue;
        mount_clear(&m->m[i]);
        m->m[i] = m->m[--m->n];
        return;
    }
}

static int add(struct mounts *m, const struct mount *one)
{
    struct mount *more = realloc(m->m, (m->n + 1) * sizeof(*more));

    if (!more)
        return -ENOMEM;
    m->m = more;
    m->m[m->n++] = *one;
    return 0;
}

/* Takes a mount of the kernel's table where it is wanted. 0 or -ENOMEM. */
static int take(struct mounts *m, const struct mountinfo *info, bool any)
{
    struct mount one = {.major = info->major, .minor = info->minor};
    char device[32];

    hide(m, info->point);
    snprintf(device, sizeof(device), "%u:%u", info->major, info->minor);
    if (!(any ? strncmp(info->type, "fuse", 4) == 0 : views_is_view(info->type, device)))
        return 0;
    one.point = strdup(info->point);
    one.source = strdup(info->source);
    one.type = strdup(info->type);
    int r = one.point && one.source && one.type ? add(m, &one) : -ENOMEM;
    if (r < 0)
        mount_clear(&one);
    return r;
}

static int load(bool any, struct mounts *ret)
{
    struct mounts m = {0};
    struct mountinfo info = {0};
    int r = 0;
    FILE *f = mountinfo_open();

    if (!f)
        return -errno;
    while (r == 0 && mountinfo_next(f, &info))
        r = take(&m, &info, any);
    if (r == 0 && ferror(f))
        r = -EIO;
    mountinfo_free(&info);
    fclose(f);
    if (r < 0)
        mounts_free(&m);
    else
        *ret = m;
    return r;
}

int mounts_load(struct mounts *ret)
{
    return load(false, ret);
}

int mounts_load_fuse(struct mounts *ret)
{
    return load(true, ret);
}

const struct mount *mounts_of_path(const struct mounts *m, const char *path, const char **ret_rel)
{
    const struct mount *best = NULL;
    size_t best_len = 0;

    for (size_t i = 0; i < m->n; i++) {
        size_t len = strlen(m->m[i].point);

        if (strncmp(path, m->m[i].point, len) != 0 || (path[len] != '/' && path[len] != '\0'))
            continue;
        if (best && len <= best_len)
            continue;
        best = &m->m[i];
        best_len = len;
    }
    if (best && ret_rel)
        *ret_rel = path + best_len + (path[best_len] == '/');
    return best;
}

/* ---- resolving without touching a view ---- */

struct path_walk {
    const struct mounts *m;
    char done[PATH_MAX]; /* absolute, resolved; "" is the root */
    size_t len;
    char todo[PATH_MAX]; /* still to resolve */
    unsigned links;
};

static int push(struct path_walk *w, const char *name, size_t n)
{
    if (n == 0 || (n == 1 && name[0] == '.'))
        return 0;
    if (n == 2 && name[0] == '.' && name[1] == '.') {
        while (w->len > 0 && w->done[--w->len] != '/')
            ;
        w->done[w->len] = '\0';
        return 0;
    }
    if (w->len + 1 + n >= sizeof(w->done))
        return -ENAMETOOLONG;
    w->done[w->len] = '/';
    memcpy(w->done + w->len + 1, name, n);
    w->len += 1 + n;
    w->done[w->len] = '\0';
    return 0;
}

/* If the last component of w->done is a symbolic link outside every view: takes it back and puts
 * its target before the rest. */
static int follow(struct path_walk *w, size_t before)
{
    char target[PATH_MAX];

    if (w->len <= before || mounts_of_path(w->m, w->done, NULL))
        return 0;
    ssize_t n = readlink(w->done, target, sizeof(target) - 1);
    if (n < 0)
        return 0; /* no link, or missing: whoever opens it will say */
    target[n] = '\0';
    if (++w->links > LINKS_MAX)
        return -ELOOP;
    _cleanup_free_ char *rest = strdup(w->todo);
    if (!rest)
        return -ENOMEM;
    if (snprintf(w->todo, sizeof(w->todo), "%s/%s", target, rest) >= (int)sizeof(w->todo))
        return -ENAMETOOLONG;
    w->len = target[0] == '/' ? 0 : before;
    w->done[w->len] = '\0';
    return 0;
}

int mounts_resolve(const struct mounts *m, const char *path, char **ret)
{
    _cleanup_free_ struct path_walk *w = calloc(1, sizeof(*w));
    int r = 0;

    if (!w)
        return -ENOMEM;
    w->m = m;
    /* getcwd(3) asks the kernel's dentries, not the file system. */
    if (path[0] != '/') {
        if (!getcwd(w->done, sizeof(w->done)))
            return -errno;
        w->len = strcmp(w->done, "/") == 0 ? 0 : strlen(w->done);
    }
    if (strlen(path) >= sizeof(w->todo))
        return -ENAMETOOLONG;
    strcpy(w->todo, path);
    while (r == 0 && w->todo[0]) {
        size_t n = strcspn(w->todo, "/"), before = w->len;

        r = push(w, w->todo, n);
        n += strspn(w->todo + n, "/");
        memmove(w->todo, w->todo + n, strlen(w->todo + n) + 1);
        if (r == 0)
            r = follow(w, before);
    }
    if (r < 0)
        return r;
    *ret = strdup(w->len ? w->done : "/");
    return *ret ? 0 : -ENOMEM;
}
