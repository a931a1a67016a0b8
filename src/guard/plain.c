/* plain.c: plain files that are open for write. Any number of processes and hosts may write one;
 * but as long as one does, no other host may make an image of it. The first such handle of an inode
 * opens one more descriptor, plain_fd, which carries the fence lock shared for all of them; who
 * claims takes the fence exclusively first (image_acquire), on a duplicate of this host's own
 * plain_fd, so that only other hosts' are in the way. */
#include "guard/plain.h"

#include <fcntl.h>
#include <string.h>

#include "base/hook.h"
#include "guard/conflict.h"
#include "guard/probe.h"

/* Opens the descriptor and takes the lock; only then is it certain that nobody claims the file, so
 * that is looked at (again). Where the daemon may not write the file, the caller's own descriptor
 * carries the lock (*ret_borrowed). *ret_fd stays -1 where that cannot, being write-only: then the
 * monitor's look must do (maintain_plain()). */
static int plain_lock(struct guard *g, struct image *img, struct handle *h, int *ret_fd,
                      bool *ret_borrowed, struct conflict *ret)
{
    bool guarded = false;
    _cleanup_close_ int fd = inode_reopen(img->inode, O_RDWR);
    *ret_borrowed = io_err_readonly(fd);
    if (*ret_borrowed) {
        int flags = fcntl(h->fd, F_GETFL);
        if (flags < 0 || (flags & O_ACCMODE) != O_RDWR) {
            int r = image_guarded_file(g, h, &guarded);
            return r < 0 ? r : guarded ? -EBUSY : 0;
        }
        fd = fcntl(h->fd, F_DUPFD_CLOEXEC, 0);
        fd = fd < 0 ? -errno : fd;
    }
    if (fd < 0)
        return fd;
    int r = io_fence_shared(fd, g->store.fence);
    if (r == -EAGAIN) { /* somebody claims it just now, or repairs it */
        conflict_set(ret, CONFLICT_FENCE);
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
 * out, by its heartbeat.) */
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
    return r < 0 ? -EBUSY : 0; /* from the start, when it is reopened */
}

/* In this order: a handle that is announced while the fence is lost must not be. */
int image_plain_enter(struct guard *g, struct image *img, struct handle *h, struct conflict *ret)
{
    if (g->store.fence == FENCE_NONE || img->inode->dev != g->store.dev)
        return 0;
    HOOK("image.plain.announce");
    int r = io_fence_announce(h->fd, g->store.fence);
    if (r < 0)
        return r == -EAGAIN ? -EBUSY : r;
    mutex_lock(&img->lock);
    bool wait = img->plain.busy || img->state != IMAGE_IDLE;
    bool first = !wait && img->plain.fd < 0;
    img->plain.busy |= first;
    h->plain.counted = !wait && !first;
    img->plain.users += h->plain.counted;
    if (wait)
        image_conflict_locked(img, ret);
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
    r = plain_lock(g, img, h, &fd, &borrowed, ret);
    mutex_lock(&img->lock);
    img->plain.busy = false;
    if (fd >= 0) {
        img->plain.fd = fd;
        img->plain.borrowed = borrowed;
        img->plain.users = 1;
        h->plain.counted = true;
    }
    cond_broadcast(&img->moved);
    mutex_unlock(&img->lock);
    guard_changed(g);
    return r;
}

void image_plain_leave(struct guard *g, struct image *img, struct handle *h)
{
    if (!h->plain.counted)
        return;
    h->plain.counted = false;
    int fd = -1;
    mutex_lock(&img->lock);
    if (--img->plain.users == 0 && img->plain.fd >= 0) {
        fd = img->plain.fd;
        img->plain.fd = -1;
        img->plain.busy = true; /* a claim that came before the close would meet our own lock */
    }
    mutex_unlock(&img->lock);
    if (fd < 0)
        return;
    close(fd);
    mutex_lock(&img->lock);
    img->plain.busy = false;
    cond_broadcast(&img->moved);
    mutex_unlock(&img->lock);
    guard_changed(g);
}

int image_plain_dup(struct image *img, bool to_claim)
{
    int fd = -1;
    mutex_lock(&img->lock);
    if (img->plain.fd >= 0 && to_claim && img->plain.borrowed) {
        fd = -EACCES;
    } else if (img->plain.fd >= 0) {
        fd = fcntl(img->plain.fd, F_DUPFD_CLOEXEC, 0);
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
            atomic_store(&h->barred.err, EBUSY);
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
    bool news = img->plain.fd >= 0 && !img->plain.lost;
    img->plain.lost |= news;
    mutex_unlock(&img->lock);
    return news;
}

void image_plain_failed(struct guard *g, struct handle *h, int err)
{
    struct image *img = atomic_load(&h->inode->image);
    if (img && h->plain.counted && !atomic_load(&h->guarded) && !atomic_load(&h->plain.lost_data) &&
        io_err_dead(err) && base_now_ms() - atomic_load(&h->reopen.at_ms) >= REOPEN_PACE_MS &&
        image_plain_suspect(img))
        guard_attention(g);
}

struct reopened {
    struct handle *h; /* busy: its release waits */
    int fd;           /* the new one, announced; -1 */
};

/* Bars every plain writer, and keeps it. NULL: nothing to do, or no memory. */
static struct reopened *reopen_begin(struct guard *g, struct image *img, unsigned *ret_n)
{
    struct reopened *m = NULL;
    unsigned n = 0;
    mutex_lock(&img->lock);
    bool may = img->plain.fd >= 0 && !img->plain.borrowed && !img->plain.busy &&
               img->state == IMAGE_IDLE && (img->plain.lost || g->locks_lost);
    if (may)
        m = calloc(img->plain.users + 1, sizeof(*m));
    for (struct handle *h = m ? img->writers : NULL; h && n < img->plain.users;
         h = h->next_writer) {
        if (!h->plain.counted || atomic_load(&h->guarded))
            continue;
        atomic_store(&h->barred.err, EIO);
        h->fence.busy = true;
        m[n++] = (struct reopened){h, -1};
    }
    img->plain.busy |= m != NULL;
    mutex_unlock(&img->lock);
    *ret_n = n;
    return m;
}

static void reopen_end(struct guard *g, struct image *img, struct reopened *m, unsigned n,
                       bool again)
{
    mutex_lock(&img->lock);
    for (unsigned k = 0; k < n; k++)
        m[k].h->fence.busy = false;
    img->plain.busy = false;
    img->plain.lost = again;
    cond_broadcast(&img->moved);
    mutex_unlock(&img->lock);
    free(m);
    guard_changed(g);
}

/* What the old descriptor could not write is not forgotten with it: then that one stays, and
 * answers EIO. */
static void reopen_handle(struct handle *h, int fd)
{
    int r = fd < 0 ? fd : io_fsync(h->fd);
    if (r == 0)
        r = handle_replace_fd(fd, h->fd);
    else if (fd >= 0)
        close(fd);
    if (r < 0)
        atomic_store(&h->plain.lost_data, true);
    atomic_store(&h->reopen.at_ms, base_now_ms());
}

int image_plain_reopen(struct guard *g, struct image *img)
{
    unsigned n;
    struct reopened *m = reopen_begin(g, img, &n);
    if (!m)
        return 0;
    for (unsigned k = 0; k < n; k++) {
        int flags = fcntl(m[k].h->fd, F_GETFL);
        m[k].fd = inode_reopen(img->inode, flags < 0 ? O_RDWR : flags);
        if (m[k].fd >= 0 && io_fence_announce(m[k].fd, g->store.fence) < 0) {
            close(m[k].fd);
            m[k].fd = -1;
        }
    }
    bool guarded = false;
    int fd = inode_reopen(img->inode, O_RDWR);
    int r = fd < 0 ? fd : io_fence_shared(fd, g->store.fence);
    if (r == 0)
        r = image_guarded_inode(g, img->inode, &guarded);
    if (r == 0 && !guarded) {
        mutex_lock(&img->lock);
        /* nobody closes it: a handle counts on it, and cannot be released */
        int at = img->plain.fd;
        mutex_unlock(&img->lock);
        r = n > 0 ? handle_replace_fd(fd, at) : 0;
        fd = n > 0 ? -1 : fd;
    }
    if (fd >= 0)
        close(fd);
    for (unsigned k = 0; k < n; k++) {
        if (r == 0 && !guarded)
            reopen_handle(m[k].h, m[k].fd);
        else if (m[k].fd >= 0)
            close(m[k].fd);
    }
    reopen_end(g, img, m, n, r < 0);
    return r;
}

int image_plain_check(struct guard *g, struct handle *h)
{
    struct image *img = image_get(h->inode);
    bool guarded;
    if (!img)
        return -ENOMEM;
    if (!image_is_idle(img))
        return -EBUSY;
    int r = image_guarded_file(g, h, &guarded);
    if (r < 0)
        return r;
    return guarded ? -EBUSY : 0;
}

bool image_plain_has_fence(struct image *img)
{
    mutex_lock(&img->lock);
    bool has = img->plain.fd >= 0;
    mutex_unlock(&img->lock);
    return has;
}

int image_plain_revoke_locked(struct image *img)
{
    int fd = img->plain.fd;
    img->plain.fd = -1;
    return fd;
}
