/* image_plain.c: plain files that are open for write. Any number of processes and hosts may write one; but as long as one does, no other host may make
 * an image of it. The first such handle of an inode opens one more descriptor, plain_fd, which carries the fence lock shared for all of them; who
 * claims takes the fence exclusively first (image_acquire), on a duplicate of this host's own plain_fd, so that only other hosts' are in the way. */
#include "daemon/image_priv.h"

#include <fcntl.h>
#include <string.h>

void image_fence_refused(struct image *img, bool refused)
{
    mutex_lock(&img->lock);
    img->rival.fenced = refused;
    mutex_unlock(&img->lock);
}

/* Opens the descriptor and takes the lock; only then is it certain that nobody claims the file, so that is looked at (again). Where the daemon may
 * not write the file, the caller's own descriptor carries the lock (*ret_borrowed). *ret_fd stays -1 where that cannot, being write-only: then the keeper's
 * look must do (image_tend_plain). */
static int plain_lock(struct daemon *d, struct image *img, struct handle *h, int *ret_fd, bool *ret_borrowed)
{
    bool guarded = false;
    _cleanup_close_ int fd = io_reopen(img->inode->fd, O_RDWR);
    *ret_borrowed = fd == -EACCES || fd == -EPERM || fd == -EROFS || fd == -ETXTBSY;
    if (*ret_borrowed) {
        int flags = fcntl(h->fd, F_GETFL);
        if (flags < 0 || (flags & O_ACCMODE) != O_RDWR)
            return 0;
        fd = fcntl(h->fd, F_DUPFD_CLOEXEC, 0);
        fd = fd < 0 ? -errno : fd;
    }
    if (fd < 0)
        return fd;
    int r = io_fence_shared(fd, d->store.fence);
    if (r == -EAGAIN) { /* somebody claims it just now, or repairs it */
        image_fence_refused(img, true);
        return -EBUSY;
    }
    if (r == 0)
        r = image_guarded_file(d, h, &guarded);
    if (r == 0 && guarded)
        r = -EBUSY; /* has become an image: from the start */
    if (r == 0)
        *ret_fd = base_steal_fd(&fd);
    return r;
}

int image_plain_enter(struct daemon *d, struct image *img, struct handle *h)
{
    if (d->store.fence == FENCE_NONE || img->inode->dev != d->store.dev)
        return 0;
    mutex_lock(&img->lock);
    bool wait = img->plain_busy || img->state != IMAGE_IDLE;
    bool first = !wait && img->plain_fd < 0;
    img->plain_busy |= first;
    h->plain = !wait && !first;
    img->n_plain += h->plain;
    mutex_unlock(&img->lock);
    if (!first)
        return wait ? -EBUSY : 0;

    int fd = -1;
    bool borrowed = false;
    int r = plain_lock(d, img, h, &fd, &borrowed);
    mutex_lock(&img->lock);
    img->plain_busy = false;
    if (fd >= 0) {
        img->plain_fd = fd;
        img->plain_borrowed = borrowed;
        img->n_plain = 1;
        h->plain = true;
    }
    pthread_cond_broadcast(&img->moved);
    mutex_unlock(&img->lock);
    park_kick(d->park);
    return r;
}

void image_plain_leave(struct daemon *d, struct image *img, struct handle *h)
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
    pthread_cond_broadcast(&img->moved);
    mutex_unlock(&img->lock);
    park_kick(d->park);
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

void image_plain_again(struct daemon *d, struct image *img)
{
    _cleanup_close_ int fd = image_plain_dup(img, false);
    if (fd < 0)
        return;
    int r = io_fence_shared(fd, d->store.fence);
    if (r < 0)
        image_plain_bar(img);
    /* A refused conversion of a flock lost the lock for a moment (io.h), in which another host may have claimed the file. */
    if ((r < 0 || d->store.fence == FENCE_FLOCK) && d->keeper)
        keeper_kick(d->keeper);
}
