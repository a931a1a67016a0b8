/* whereis.c: see whereis.h. */
#include "core/whereis.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define LOG_LIMIT 2000u /* most names to look at for one line of the log */
#define LOG_MS 300u

struct dir {
    struct dir *next;
    char path[]; /* below the datastore; "" is its root */
};

struct whereis_search {
    const struct store *s;
    struct whereis *w;
    size_t n, missing;
    unsigned names, limit;
    uint64_t until; /* CLOCK_MONOTONIC, ms; 0: for ever */
    struct dir *todo, **tail;
};

/* Is it that file? Asks the storage. */
static bool leads_to(const struct store *s, const struct whereis *w, const char *path)
{
    _cleanup_close_ int fd = path[0] ? io_fresh_open(s->root_fd, path, O_PATH | O_NOFOLLOW) : -1;
    struct io_handle h;
    struct stat st;

    if (fd < 0 || io_fresh_stat(fd, &st) < 0 || st.st_ino != w->ino || st.st_dev != s->dev)
        return false;
    return w->handle.len == 0 || (io_handle_get(fd, &h) == 0 && io_handle_equal(&h, &w->handle));
}

static bool is_over(const struct whereis_search *f)
{
    return f->missing == 0 || f->names >= f->limit || (f->until && base_now_ms() >= f->until);
}

static void later(struct whereis_search *f, const char *path)
{
    size_t n = strlen(path) + 1;
    struct dir *d = malloc(sizeof(*d) + n);

    if (!d)
        return;
    memcpy(d->path, path, n);
    d->next = NULL;
    *f->tail = d;
    f->tail = &d->next;
}

static void look_at(struct whereis_search *f, const char *path, uint64_t ino)
{
    for (size_t i = 0; i < f->n; i++) {
        struct whereis *w = &f->w[i];

        if (w->now || w->ino != ino || !leads_to(f->s, w, path))
            continue;
        w->now = strdup(path);
        f->missing -= w->now != NULL;
    }
}

/* Is it a directory on the datastore's file system, other than .diskguard? */
static bool is_inside(const struct whereis_search *f, int dir, const struct dirent *e)
{
    struct stat st;

    if (e->d_type != DT_DIR && e->d_type != DT_UNKNOWN)
        return false;
    return fstatat(dir, e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode) &&
           st.st_dev == f->s->dev && st.st_ino != f->s->dir_ino;
}

static void look_in(struct whereis_search *f, const char *path, bool deeper)
{
    int fd =
        io_fresh_open(f->s->root_fd, path[0] ? path : ".", O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *e;
    char name[PATH_MAX];

    if (!dir) {
        if (fd >= 0)
            close(fd);
        return;
    }
    while (!is_over(f) && (e = readdir(dir))) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        f->names++;
        if (snprintf(name, sizeof(name), "%s%s%s", path, path[0] ? "/" : "", e->d_name) >=
            (int)sizeof(name))
            continue;
        look_at(f, name, e->d_ino);
        if (deeper && is_inside(f, dirfd(dir), e))
            later(f, name);
    }
    closedir(dir);
}

/* Looks in the directories of the recorded names first. */
static void look_near(struct whereis_search *f)
{
    char path[PATH_MAX], last[PATH_MAX] = "/";

    for (size_t i = 0; i < f->n && !is_over(f); i++) {
        if (f->w[i].now || snprintf(path, sizeof(path), "%s", f->w[i].was) >= (int)sizeof(path))
            continue;
        char *slash = strrchr(path, '/');
        *(slash ? slash : path) = '\0';
        if (strcmp(path, last) != 0)
            look_in(f, path, false);
        memcpy(last, path, sizeof(last));
    }
}

void whereis(const struct store *s, struct whereis *w, size_t n, unsigned limit, unsigned ms)
{
    struct whereis_search f = {
        .s = s, .w = w, .n = n, .limit = limit, .until = ms ? base_now_ms() + ms : 0, .tail = NULL};
    struct dir *d;

    f.tail = &f.todo;
    for (size_t i = 0; i < n; i++) {
        w[i].now = leads_to(s, &w[i], w[i].was) ? strdup(w[i].was) : NULL;
        f.missing += w[i].now == NULL;
    }
    look_near(&f);
    if (!is_over(&f))
        later(&f, "");
    while ((d = f.todo) != NULL) {
        if (!is_over(&f))
            look_in(&f, d->path, true);
        f.todo = d->next;
        if (!f.todo)
            f.tail = &f.todo;
        free(d);
    }
}

void whereis_name(const struct store *s, uint64_t ino, const struct io_handle *handle,
                  const char *was, char *ret, size_t size)
{
    struct whereis w = {.ino = ino, .handle = *handle, .was = was};

    whereis(s, &w, 1, LOG_LIMIT, LOG_MS);
    if (w.now)
        snprintf(ret, size, "%s", w.now);
    else
        snprintf(ret, size, "(was %s)", was);
    free(w.now);
}
