/* refuse.c: paths for people, and the log lines of what is refused. */
#include "guard/refuse.h"

#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "guard/conflict.h"

void image_path(struct guard *g, const struct inode *i, char *ret, size_t size)
{
    char link[32], path[PATH_MAX];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", i->fd);
    ssize_t n = readlink(link, path, sizeof(path) - 1);
    path[n > 0 ? n : 0] = '\0';
    size_t root = strlen(g->store.path);
    const char *p = path;
    if (strncmp(path, g->store.path, root) == 0 && path[root] == '/')
        p += root + 1;
    snprintf(ret, size, "%.*s", (int)size - 1, p);
}

bool image_path_now(struct guard *g, const struct inode *i, char *ret, size_t size)
{
    struct stat st;
    image_path(g, i, ret, size);
    _cleanup_close_ int fd =
        ret[0] == '/' ? -1 : io_fresh_open(g->store.root_fd, ret, O_PATH | O_NOFOLLOW);
    return fd >= 0 && io_fresh_stat(fd, &st) == 0 && st.st_ino == i->ino && st.st_dev == i->dev;
}

/* Where the file is without a view, for a shell. */
static const char *raw_path(struct guard *g, struct inode *i, char *ret, size_t size)
{
    char below[PATH_MAX], path[2 * PATH_MAX];
    image_path(g, i, below, sizeof(below));
    snprintf(path, sizeof(path), "%s/%s", g->store.path, below);
    return base_quote(path, ret, size);
}

/* A flag of the file that no user passes: not even root, whatever the owner and the mode. NULL:
 * none. */
static const char *flag_of(const struct inode *i)
{
    struct statx stx;
    if (statx(i->fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stx) < 0)
        return NULL;
    return stx.stx_attributes & STATX_ATTR_IMMUTABLE ? "immutable (chattr +i)"
           : stx.stx_attributes & STATX_ATTR_APPEND  ? "for appending only (chattr +a)"
                                                     : NULL;
}

void image_log_closed(struct guard *g, struct inode *i, const char *verb)
{
    struct image *img = image_get(i);
    const char *flag = flag_of(i);
    char quoted[1024];
    if (flag) {
        image_log_refused(
            g, i, "a change",
            "EPERM: the file is %s on the datastore, so nobody may %s it. Way out: chattr %s %s",
            flag, verb, strstr(flag, "+i") ? "-i" : "-a", raw_path(g, i, quoted, sizeof(quoted)));
        return;
    }
    if (!img || atomic_exchange(&img->refuse.closed, true))
        return;
    struct stat st = {0};
    char path[PATH_MAX];
    image_path(g, i, path, sizeof(path));
    if (io_fresh_stat(i->fd, &st) < 0)
        st.st_mode = 0;
    char who[128];
    if (g->store.mapped)
        snprintf(who, sizeof(who), "the storage takes it, user %u, for user %u (NFS: root_squash)",
                 (unsigned)geteuid(), (unsigned)g->store.owner);
    else if (geteuid() == 0)
        snprintf(who, sizeof(who), "the storage refuses root, as NFS does with root_squash");
    else
        snprintf(who, sizeof(who), "it runs as user %u", (unsigned)geteuid());
    log_image(
        LOG_WARNING, path, NULL, 0,
        "refused with EACCES: diskguard itself may not %s '%s' (owner %u, mode %04o), so it cannot guard it: %s. Export with no_root_squash, or let that user read and write the file",
        verb, path, (unsigned)st.st_uid, (unsigned)(st.st_mode & 07777), who);
}

void image_log_foreign(struct guard *g, struct inode *i, const char *what)
{
    image_log_refused(
        g, i, what,
        "it lies on another file system that is mounted below the datastore, where diskguard cannot claim it. Mount a view of that file system instead");
}

/* ---- the same line again and again ---- */

/* A line that says the same of the same image as one a moment ago is not repeated: programs try
 * again and again. How often, the next one says. */
#define SAID_AGAIN_MS 60000u

static uint64_t sum_of(const char *text)
{
    uint64_t h = 14695981039346656037u; /* FNV-1a, its published constants */
    for (; *text; text++)
        h = (h ^ (unsigned char)*text) * 1099511628211u;
    return h;
}

/* Is it time to say it? *ret_more: how often it was not said since the last time. */
static bool may_say(struct image *img, const char *text, unsigned *ret_more)
{
    uint64_t sum = sum_of(text), now = base_now_ms();
    struct image_said *oldest = &img->refuse.said[0], *same = NULL;
    *ret_more = 0;
    mutex_lock(&img->lock);
    for (unsigned k = 0; k < IMAGE_SAID_MAX; k++) {
        struct image_said *s = &img->refuse.said[k];
        if (s->at_ms != 0 && s->sum == sum)
            same = s;
        if (s->at_ms < oldest->at_ms)
            oldest = s;
    }
    bool say = !same || now - same->at_ms >= SAID_AGAIN_MS;
    if (!say) {
        same->more++;
    } else {
        *ret_more = same ? same->more : 0;
        *(same ? same : oldest) = (struct image_said){.sum = sum, .at_ms = now};
    }
    mutex_unlock(&img->lock);
    return say;
}

void image_log_refused(struct guard *g, struct inode *i, const char *what, const char *fmt, ...)
{
    struct image *img = image_get(i);
    char path[PATH_MAX], text[1536], again[64] = "";
    unsigned more = 0;
    image_path(g, i, path, sizeof(path));
    int n = snprintf(text, sizeof(text), "refused %.100s of '%.400s': ", what, path);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text + n, sizeof(text) - (size_t)n, fmt, ap);
    va_end(ap);
    if (img && !may_say(img, text, &more))
        return;
    if (more > 0)
        snprintf(again, sizeof(again), " (and %u times more since this was said last)", more);
    log_image(LOG_WARNING, path, NULL, 0, "%s%s", text, again);
}

void image_refused(struct guard *g, struct inode *i, const struct opener *who, const char *what,
                   const struct conflict *conflict)
{
    char raw[1024], text[1400];
    const struct conflict_place at = {.host_name = g->host.name,
                                      .host = g->host.uuid,
                                      .datastore = g->store.path,
                                      .raw = raw_path(g, i, raw, sizeof(raw))};
    conflict_text(conflict, &at, who->pid, text, sizeof(text));
    image_log_refused(g, i, what, "%s", text);
}

bool image_being_released(struct inode *i, const struct conflict *c)
{
    struct image *img = atomic_load(&i->image);
    if (!img)
        return false;
    mutex_lock(&img->lock);
    bool r = img->state == IMAGE_RESTORING ||
             (img->state == IMAGE_IDLE && (c->released || img->plain.busy));
    mutex_unlock(&img->lock);
    return r;
}

bool image_held_elsewhere(struct inode *i, const struct conflict *c)
{
    struct image *img = atomic_load(&i->image);
    if (!img)
        return false;
    mutex_lock(&img->lock);
    bool r = img->state == IMAGE_IDLE && c->kind == CONFLICT_CLAIM;
    mutex_unlock(&img->lock);
    return r;
}
