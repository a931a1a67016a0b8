/* first.c: see first.h. */
#include "guard/first.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/hook.h"
#include "guard/conflict.h"
#include "guard/fence.h"
#include "guard/image.h"
#include "guard/manager.h"
#include "guard/wait.h"

#define PAUSE_MS 50u
/* No longer than this, whatever wait= says: it waits on a thread of a lane or of the pool. */
#define WAIT_MAX_S 10u

static int make_writable(struct handle *h)
{
    int flags = fcntl(h->fd, F_GETFL);
    if (flags >= 0 && (flags & O_ACCMODE) == O_RDWR)
        return 0; /* it made the file */
    int keep = h->flags & ~(O_ACCMODE | O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC);
    int fd = io_reopen(h->inode->fd, keep | O_RDWR);
    if (fd < 0)
        return fd;
    if (!h->appends)
        (void)io_drop_append(fd, io_fstype(fd));
    return handle_replace_fd(fd, h->fd);
}

static void pause_for_move(struct image *img)
{
    uint64_t until = base_now_ms() + PAUSE_MS;
    mutex_lock(&img->lock);
    (void)cond_wait_until(&img->moved, &img->lock, until);
    mutex_unlock(&img->lock);
}

/* What the open left out. */
static int open_now(struct guard *g, struct image *img, struct handle *h, struct conflict *ret)
{
    uint64_t since = base_now_ms(),
             until = since + DG_MIN(g->opt.wait_s, WAIT_MAX_S) * UINT64_C(1000);
    int r;
    for (;;) {
        HOOK("image.first");
        r = make_writable(h);
        if (r == 0)
            r = image_open(g, h, false, ret);
        if (r != -EBUSY || base_now_ms() >= until || atomic_load(&g->stopping) ||
            image_wait_is_vain(g, h->inode, &h->opener, since, ret))
            break;
        pause_for_move(img);
    }
    if (r == 0) {
        atomic_store(&h->writer, true);
        return 0;
    }
    image_make_read_only(h); /* and so any lock goes that the attempt left on it */
    if (r == -EBUSY)
        image_refused(g, h->inode, &h->opener, "first change (option managers=)", ret);
    return r;
}

int image_first_change(struct guard *g, struct handle *h, struct conflict *ret_conflict)
{
    struct conflict own, *c = ret_conflict ? ret_conflict : &own;
    if (!image_manager_expected(h))
        return 0;
    struct image *img = image_get(h->inode);
    if (!img)
        return -ENOMEM;
    for (;;) {
        int due = FIRST_DUE;
        if (atomic_compare_exchange_strong(&h->first.state, &due, FIRST_UNDER_WAY))
            break;
        if (due == FIRST_DONE)
            return 0;
        pause_for_move(img); /* another thread is at it */
    }
    int r = open_now(g, img, h, c);
    mutex_lock(&img->lock);
    atomic_store(&h->first.state, r == 0 ? FIRST_DONE : FIRST_DUE);
    cond_broadcast(&img->moved);
    mutex_unlock(&img->lock);
    return r;
}
