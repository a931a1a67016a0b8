#include "guard/first.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/hook.h"
#include "guard/image.h"
#include "guard/wait.h"

/* handle.first */
enum { FIRST_DONE, FIRST_DUE, FIRST_UNDER_WAY };

#define PAUSE_MS 50u
/* No longer than this, whatever wait= says: it waits on a thread of a lane or of the pool. */
#define WAIT_MAX_S 10u

bool image_first_is_manager(const struct guard *g, const struct opener *who)
{
    static const char deleted[] = " (deleted)"; /* proc(5): the package was upgraded meanwhile */
    char link[48], path[PATH_MAX];
    if (who->uid != 0 || who->pid == 0)
        return false;
    snprintf(link, sizeof(link), "/proc/%llu/exe", (unsigned long long)who->pid);
    ssize_t n = readlink(link, path, sizeof(path) - 1);
    if (n <= 0)
        return false;
    path[n] = '\0';
    size_t cut = (size_t)n > strlen(deleted) ? (size_t)n - strlen(deleted) : 0;
    if (cut > 0 && strcmp(path + cut, deleted) == 0)
        path[cut] = '\0';
    const char *slash = strrchr(path, '/');
    for (char **m = g->opt.managers; m && *m; m++)
        if (strcmp(*m, **m == '/' || !slash ? path : slash + 1) == 0)
            return true;
    return false;
}

bool image_first_waits(const struct guard *g, const struct opener *who, int flags)
{
    return (flags & O_ACCMODE) != O_RDONLY && !(flags & O_TRUNC) && image_first_is_manager(g, who);
}

void image_first_expect(struct handle *h)
{
    h->managed = true;
    atomic_store(&h->first, FIRST_DUE);
}

static int make_writable(struct handle *h)
{
    int flags = fcntl(h->fd, F_GETFL);
    if (flags >= 0 && (flags & O_ACCMODE) == O_RDWR)
        return 0; /* it made the file */
    int keep = h->flags & ~(O_ACCMODE | O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC);
    int fd = io_reopen(h->inode->fd, keep | O_RDWR);
    return fd < 0 ? fd : image_replace_fd(fd, h->fd);
}

static void pause_for_move(struct image *img)
{
    uint64_t until = base_now_ms() + PAUSE_MS;
    mutex_lock(&img->lock);
    (void)cond_wait_until(&img->moved, &img->lock, until);
    mutex_unlock(&img->lock);
}

/* What the open left out. */
static int open_now(struct guard *g, struct image *img, struct handle *h)
{
    uint64_t since = base_now_ms(),
             until = since + DG_MIN(g->opt.wait_s, WAIT_MAX_S) * UINT64_C(1000);
    int r;
    for (;;) {
        HOOK("image.first");
        r = make_writable(h);
        if (r == 0)
            r = image_open(g, h, false);
        if (r != -EBUSY || base_now_ms() >= until || atomic_load(&g->stopping) ||
            image_wait_is_vain(g, h->inode, &h->opener, since))
            break;
        pause_for_move(img);
    }
    if (r == 0) {
        atomic_store(&h->writer, true);
        return 0;
    }
    image_make_read_only(h); /* and so any lock goes that the attempt left on it */
    if (r == -EBUSY)
        image_refused(g, h->inode, &h->opener, "first change (option managers=)", r);
    return r;
}

int image_first_change(struct guard *g, struct handle *h)
{
    if (!image_first_expected(h))
        return 0;
    struct image *img = image_get(h->inode);
    if (!img)
        return -ENOMEM;
    for (;;) {
        int due = FIRST_DUE;
        if (atomic_compare_exchange_strong(&h->first, &due, FIRST_UNDER_WAY))
            break;
        if (due == FIRST_DONE)
            return 0;
        pause_for_move(img); /* another thread is at it */
    }
    int r = open_now(g, img, h);
    mutex_lock(&img->lock);
    atomic_store(&h->first, r == 0 ? FIRST_DONE : FIRST_DUE);
    cond_broadcast(&img->moved);
    mutex_unlock(&img->lock);
    return r;
}
