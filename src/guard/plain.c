/* plain.c: plain files that are open for write. Any number of processes and hosts may write one;
 * but as long as one does, no other host may make an image of it. The first such handle of an inode
 * opens one more descriptor, plain_fd, which carries the fence lock shared for all of them; who
 * claims takes the fence exclusively first (image_acquire), on a duplicate of this host's own
 * plain_fd, so that only other hosts' are in the way. */
#include "base/hook.h"
#include "guard/image.h"

#include <fcntl.h>
#include <string.h>

void image_fence_refused(struct image *img, bool refused)
{
    mutex_lock(&img->lock);
    img->rival.fenced = refused;
    img->rival.outside = false;
    mutex_unlock(&img->lock);
}

/* Opens the descriptor and takes the lock; only then is it certain that nobody claims the file, so
 * that is looked at (again). Where the daemon may not write the file, the caller's own descriptor
 * carries the lock (*ret_borrowed). *ret_fd stays -1 where that cannot, being write-only: then the
 * monitor's look must do (image_tend_plain). */
static int plain_lock(struct guard *g, struct image *img, struct handle *h, int *ret_fd,
                      bool *ret_borrowed)
{
    bool guarded = false;
    _cleanup_close_ int fd = io_reopen(img->inode->fd, O_RDWR);
    *ret_borrowed = io_err_readonly(fd);
    if (*ret_borrowed) {
        int flags = fcntl(h->fd, F_GETFL);
        if (flags < 0 || (flags & O_ACCMODE) != O_RDWR)
            return 0;
        fd = fcntl(h->fd, F_DUPFD_CLOEXEC, 0);
        fd = fd < 0 ? -errno : fd;
    }
    if (fd < 0)
        return fd;
    int r = io_fence_shared(fd, g->store.fence);
    if (r == -EAGAIN) { /* somebody claims it just now, or repairs it */
        image_fence_refused(img, true);
        return -EBUSY;
    }
    if (r == 0)
        r = image_guarded_file(g, h, &guarded);
    if (r == 0 && guarded)
        r = -EBUSY; /* has become an image: from the start */
    if (r == 0)
        *ret_fd = base_steal_fd(&fd);
    return r;
}

/* Does plain_fd still have its lock? A read through it gets EIO on NFSv4 when not. (Of an empty
 * file, or where its first page is dirty, nothing is asked of the storage: then the monitor finds
 * out, by its beat.) */
static int prove(struct guard *g, struct image *img)
{
    char byte;
    _cleanup_close_ int fd = image_plain_dup(img, false);
    int r = HOOK_FAIL("image.plain.prove");
    if (r == 0 && fd < -1)
        r = fd;
    if (r == 0 && fd >= 0 && g->store.fs->stale_data)
        r = io_fresh_header(fd, &byte, 1, 0) < 0 ? -EIO : 0;
    if (r < 0 && image_plain_suspect(img))
        guard_attention(g);
    return r < 0 ? -EBUSY : 0; /* from the start, when it is mended */
}

/* In this order: a handle whose mark stands while the fence is lost must not be. */
int image_plain_enter(struct guard *g, struct image *img, struct handle *h)
{
    if (g->store.fence == FENCE_NONE || img->inode->dev != g->store.dev)
        return 0;
    HOOK("image.plain.mark");
    int r = io_fence_mark(h->fd, g->store.fence);
    if (r < 0)
        return r == -EAGAIN ? -EBUSY : r;
    mutex_lock(&img->lock);
    bool wait = img->plain_busy || img->state != IMAGE_IDLE;
    bool first = !wait && img->plain_fd < 0;
    img->plain_busy |= first;
    h->plain = !wait && !first;
    img->n_plain += h->plain;
    mutex_unlock(&img->lock);
    if (wait)
        return -EBUSY;
    if (!first) {
        r = prove(g, img);
        if (r < 0)
            image_plain_leave(g, img, h);
        return r;
    }

    int fd = -1;
    bool borrowed = false;
    r = plain_lock(g, img, h, &fd, &borrowed);
    mutex_lock(&img->lock);
    img->plain_busy = false;
    if (fd >= 0) {
        img->plain_fd = fd;
        img->plain_borrowed = borrowed;
        img->n_plain = 1;
        h->plain = true;
    }
    cond_broadcast(&img->moved);
    mutex_unlock(&img->lock);
    guard_changed(g);
    return r;
}

void image_plain_leave(struct guard *g, struct image *img, struct handle *h)
{
    if (!h->plain)
        return;
    h->plain = false;
    int fd = -1;
    mutex_lock(&img->lock);
    if (--img->n_plain == 0 && img->plain_fd >= 0) {
        fd = img->plain_fd;
        img->plain_fd = -1;
        img->plain_busy = true; /* a claim that came before the close would meet our own lock */
    }
    mutex_unlock(&img->lock);
    if (fd < 0)
        return;
    close(fd);
    mutex_lock(&img->lock);
    img->plain_busy = false;
    cond_broadcast(&img->moved);
    mutex_unlock(&img->lock);
    guard_changed(g);
}

int image_plain_dup(struct image *img, bool to_claim)
{
    int fd = -1;
    mutex_lock(&img->lock);
    if (img->plain_fd >= 0 && to_claim && img->plain_borrowed) {
        fd = -EACCES;
    } else if (img->plain_fd >= 0) {
        fd = fcntl(img->plain_fd, F_DUPFD_CLOEXEC, 0);
        fd = fd < 0 ? -errno : fd;
    }
    mutex_unlock(&img->lock);
    return fd;
}

void image_plain_bar(struct image *img)
{
    mutex_lock(&img->lock);
    for (struct handle *h = img->writers; h; h = h->next_writer)
        if (!atomic_load(&h->guarded))
            atomic_store(&h->barred, EBUSY);
    mutex_unlock(&img->lock);
}

void image_plain_again(struct guard *g, struct image *img)
{
    _cleanup_close_ int fd = image_plain_dup(img, false);
    if (fd < 0)
        return;
    int r = io_fence_shared(fd, g->store.fence);
    if (r < 0)
        image_plain_bar(img);
    /* A refused conversion of a flock lost the lock for a moment (io.h), in which another host may
     * have claimed the file. */
    if ((r < 0 || g->store.fence == FENCE_FLOCK))
        guard_attention(g);
}

/* ---- locks that were lost: after a long partition an NFSv4 client answers EIO on every descriptor
 * that had one, for ever ---- */

bool image_plain_suspect(struct image *img)
{
    mutex_lock(&img->lock);
    bool news = img->plain_fd >= 0 && !img->plain_lost;
    img->plain_lost |= news;
    mutex_unlock(&img->lock);
    return news;
}

void image_plain_failed(struct guard *g, struct handle *h, int err)
{
    struct image *img = atomic_load(&h->inode->image);
    if (img && h->plain && !atomic_load(&h->guarded) && !atomic_load(&h->lost_data) &&
        io_err_dead(err) && base_now_ms() - atomic_load(&h->mended_ms) >= REOPEN_PACE_MS &&
        image_plain_suspect(img))
        guard_attention(g);
}

struct mended {
    struct handle *h; /* busy: its release waits */
    int fd;           /* the new one, marked; -1 */
};

/* Bars every plain writer, and keeps it. NULL: nothing to do, or no memory. */
static struct mended *mend_begin(struct guard *g, struct image *img, unsigned *ret_n)
{
    struct mended *m = NULL;
    unsigned n = 0;
    mutex_lock(&img->lock);
    bool may = img->plain_fd >= 0 && !img->plain_borrowed && !img->plain_busy &&
               img->state == IMAGE_IDLE && (img->plain_lost || g->locks_lost);
    if (may)
        m = calloc(img->n_plain + 1, sizeof(*m));
    for (struct handle *h = m ? img->writers : NULL; h && n < img->n_plain; h = h->next_writer) {
        if (!h->plain || atomic_load(&h->guarded))
            continue;
        atomic_store(&h->barred, EIO);
        h->busy = true;
        m[n++] = (struct mended){h, -1};
    }
    img->plain_busy |= m != NULL;
    mutex_unlock(&img->lock);
    *ret_n = n;
    return m;
}

static void mend_end(struct guard *g, struct image *img, struct mended *m, unsigned n, bool again)
{
    mutex_lock(&img->lock);
    for (unsigned k = 0; k < n; k++)
        m[k].h->busy = false;
    img->plain_busy = false;
    img->plain_lost = again;
    cond_broadcast(&img->moved);
    mutex_unlock(&img->lock);
    free(m);
    guard_changed(g);
}

/* What the old descriptor could not write is not forgotten with it: then that one stays, and
 * answers EIO. */
static void mend_handle(struct handle *h, int fd)
{
    int r = fd < 0 ? fd : io_fsync(h->fd);
    if (r == 0)
        r = image_replace_fd(fd, h->fd);
    else if (fd >= 0)
        close(fd);
    if (r < 0)
        atomic_store(&h->lost_data, true);
    atomic_store(&h->mended_ms, base_now_ms());
}

int image_plain_mend(struct guard *g, struct image *img)
{
    unsigned n;
    struct mended *m = mend_begin(g, img, &n);
    if (!m)
        return 0;
    for (unsigned k = 0; k < n; k++) {
        int flags = fcntl(m[k].h->fd, F_GETFL);
        m[k].fd = io_reopen(img->inode->fd, flags < 0 ? O_RDWR : flags);
        if (m[k].fd >= 0 && io_fence_mark(m[k].fd, g->store.fence) < 0) {
            close(m[k].fd);
            m[k].fd = -1;
        }
    }
    bool guarded = false;
    int fd = io_reopen(img->inode->fd, O_RDWR);
    int r = fd < 0 ? fd : io_fence_shared(fd, g->store.fence);
    if (r == 0)
        r = image_guarded_inode(g, img->inode, &guarded);
    if (r == 0 && !guarded) {
        mutex_lock(&img->lock);
        /* nobody closes it: a handle counts on it, and cannot be released */
        int at = img->plain_fd;
        mutex_unlock(&img->lock);
        r = n > 0 ? image_replace_fd(fd, at) : 0;
        fd = n > 0 ? -1 : fd;
    }
    if (fd >= 0)
        close(fd);
    for (unsigned k = 0; k < n; k++) {
        if (r == 0 && !guarded)
            mend_handle(m[k].h, m[k].fd);
        else if (m[k].fd >= 0)
            close(m[k].fd);
    }
    mend_end(g, img, m, n, r < 0);
    return r;
}
