/* reopen.c: storage that answers EIO or ESTALE on the descriptor of a held image. Either another
 * host has taken the image over (its claim is there: FENCED), or the locks of this host ran out
 * during a long partition and nobody took over: then an NFSv4 client answers EIO on every
 * descriptor that had a lock, for ever, and a new descriptor, with the fence lock and a look at the
 * claim, goes on where the old one ended. */
#include "guard/reopen.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/hook.h"
#include "guard/fence.h"
#include "guard/held.h"
#include "guard/qemu_locks_priv.h"
#include "run/pool.h"

/* ---- new descriptors ---- */

/* The file of the inode. Where its descriptor has met ESTALE once, an NFS client goes on saying so
 * for ever: then through the recorded handle, which is asked anew, and so is the inode's own
 * descriptor from then on. fd or -errno. */
static int open_file(struct guard *g, const struct inode *i, const struct record *rec, int flags)
{
    struct stat st;
    int fd = io_reopen(i->fd, flags);
    int r = fd < 0 ? fd : io_fresh_stat(fd, &st);
    if (r == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    if (r != -ESTALE)
        return r;
    fd = io_fresh_handle(g->store.root_fd, &rec->handle, flags & ~(O_CREAT | O_EXCL | O_NOFOLLOW),
                         NULL);
    int path = fd < 0 ? -1 : io_fresh_handle(g->store.root_fd, &rec->handle, O_PATH, NULL);
    if (path >= 0 && handle_replace_fd(path, i->fd) < 0)
        log_debug("the descriptor of inode %llu stays as it is", (unsigned long long)i->ino);
    return fd;
}

/* Opens the image anew, takes the fence lock and looks at the claim, in this order: whoever takes
 * over holds the lock exclusively before it claims. fd; -CLAIM_LOST: a successor's claim is there;
 * -EAGAIN: somebody is just taking over, or recovering. */
static int open_anew(struct guard *g, const struct inode *i, const struct record *rec, int flags)
{
    _cleanup_close_ int fd = open_file(g, i, rec, flags);
    if (fd < 0)
        return fd;
    int r = io_fence_shared(fd, g->store.fence);
    if (r == 0)
        r = claim_check(&g->store, rec);
    return r < 0 ? r : base_steal_fd(&fd);
}

int image_reopen_seal(struct guard *g, struct image *img)
{
    int fd = open_anew(g, img->inode, img->held.rec, O_RDWR);
    if (fd < 0)
        return fd;
    int r = img->held.fd >= 0 ? io_fsync(img->held.fd) : 0; /* after the open: what fails later, the
                                                     new descriptor reports */
    if (r < 0 && image_held_sync_failed(img, -r))
        image_log_state(
            g, img, LOG_ERR,
            "guest data that was not synced is lost with the descriptor that the storage gave up",
            r);
    r = io_cache_drop(fd);
    if (r == 0)
        r = image_qemu_renew(g, img, fd);
    if (r == 0 && img->held.fd >= 0)
        return handle_replace_fd(fd, img->held.fd);
    if (r == 0)
        (void)image_held_fd(img, fd);
    else
        close(fd);
    return r;
}

void image_qemu_maintain(struct guard *g, struct image *img)
{
    int r = 0;
    mutex_lock(&img->lock);
    bool ours = img->info.byte_locks || !img->info.sealed;
    mutex_unlock(&img->lock);
    if (!ours)
        return;
    struct record full;
    rwlock_write(&img->header);
    mutex_lock(&img->lock);
    ours = img->state == IMAGE_SEALED && !img->exclusive; /* a release may have begun */
    mutex_unlock(&img->lock);
    if (ours) {
        image_record_open(img, &full);
        image_qemu_follow(g, img);
        r = image_qemu_check(img);
        if (r < 0)
            r = image_reopen_seal(g, img);
        image_record_close(img);
    }
    rwlock_write_unlock(&img->header);
    if (r == -CLAIM_LOST)
        image_fence(g, img);
}

/* Is the claim still ours? A copy of the record, or NULL: not held, or fenced. */
static struct record *still_ours(struct guard *g, struct image *img)
{
    struct record *rec = malloc(sizeof(*rec));
    if (!rec)
        return NULL;
    rwlock_read(&img->header);
    bool held = img->held.recorded;
    if (held)
        packed_get(img->held.packed, rec);
    rwlock_read_unlock(&img->header);
    int r = held && !atomic_load(&img->held.io_error) ? claim_check(&g->store, rec) : -EIO;
    if (r == -CLAIM_LOST)
        image_fence(g, img);
    if (r == 0)
        return rec;
    free(rec);
    return NULL;
}

/* Then the new descriptor must go as the old one did. */
static bool fenced_meanwhile(struct image *img, struct handle *h)
{
    mutex_lock(&img->lock);
    bool fenced = img->state == IMAGE_FENCED;
    h->fence.revoked = false;
    mutex_unlock(&img->lock);
    if (fenced)
        image_revoke(img);
    return fenced;
}

int image_reopen(struct guard *g, struct handle *h)
{
    struct image *img = atomic_load(&h->inode->image);
    if (!img || !atomic_load(&h->guarded))
        return -EIO;
    uint64_t now = base_now_ms(), last = atomic_exchange(&h->reopen.at_ms, now);
    if (last != 0 && now - last < REOPEN_PACE_MS)
        return -EIO;
    _cleanup_free_ struct record *rec = still_ours(g, img);
    if (!rec || atomic_load(&img->held.sync_error))
        return -EIO;
    int flags = fcntl(h->fd, F_GETFL);
    int fd = open_anew(g, h->inode, rec, flags < 0 ? O_RDWR : flags);
    if (fd == -CLAIM_LOST)
        image_fence(g, img);
    if (fd < 0)
        return -EIO;
    /* Whatever this descriptor could not write must be reported, and not be forgotten with it: then
     * it stays, and answers EIO. */
    if (io_fsync(h->fd) < 0) {
        image_sync_failed(h, EIO);
        image_log_state(
            g, img, LOG_ERR,
            "the storage gave up a descriptor with guest data that was not synced: that data is lost, and every fsync says so",
            0);
        close(fd);
        return -EIO;
    }
    int r = handle_replace_fd(fd, h->fd);
    if (r == 0 && fenced_meanwhile(img, h))
        return -EIO;
    if (r == 0)
        image_qemu_maintain(g, img); /* what this descriptor has met, the seal's will meet */
    if (r == 0)
        image_log_state(
            g, img, LOG_WARNING,
            "the storage had given up a descriptor (the locks of this host ran out?). Nobody has taken the image over: it is open again, nothing was lost",
            0);
    return r;
}

/* ---- what fails on a thread that reads requests ---- */

struct image_failed {
    struct handle *h;
    void (*again)(void *arg, bool reopened);
    void *arg;
    struct image_failed *next;
};
struct reopen_job {
    struct guard *g;
    struct image *img;
};

static void run_failed(void *arg)
{
    struct reopen_job *job = arg;
    struct guard *g = job->g;
    struct image *img = job->img;
    struct inode *i = img->inode;
    for (;;) {
        mutex_lock(&img->lock);
        struct image_failed *list = img->reopen.failed;
        img->reopen.failed = NULL;
        if (!list)
            img->reopen.running = false;
        mutex_unlock(&img->lock);
        if (!list)
            break;
        while (list) {
            struct image_failed *f = list;
            list = f->next;
            /* One that was reopened a moment ago, for a request that failed with this one, is good
             * for this one, too. */
            uint64_t reopened = atomic_load(&f->h->reopen.at_ms);
            bool fresh =
                reopened != 0 && f->h->reopen.ok && base_now_ms() - reopened < REOPEN_PACE_MS;
            if (!fresh)
                f->h->reopen.ok = image_reopen(g, f->h) == 0;
            f->again(f->arg, f->h->reopen.ok); /* answers: the handle may be gone afterwards */
            free(f);
        }
    }
    inode_put(g->inodes, i);
    free(job);
}

bool image_failed_later(struct guard *g, struct handle *h, int err,
                        void (*again)(void *arg, bool reopened), void *arg)
{
    struct image *img = atomic_load(&h->inode->image);
    if (!img || !io_err_dead(err) || !atomic_load(&h->guarded) || atomic_load(&img->held.io_error))
        return false;
    struct image_failed *f = malloc(sizeof(*f));
    struct reopen_job *job = malloc(sizeof(*job));
    if (!f || !job) {
        free(f);
        free(job);
        return false;
    }
    *f = (struct image_failed){.h = h, .again = again, .arg = arg};
    *job = (struct reopen_job){g, img};
    mutex_lock(&img->lock);
    f->next = img->reopen.failed;
    img->reopen.failed = f;
    bool first = !img->reopen.running;
    img->reopen.running = true;
    mutex_unlock(&img->lock);
    if (first) {
        inode_pin(g->inodes, img->inode);
        pool_submit(g->pool, run_failed, job);
    } else {
        free(job);
    }
    return true;
}

void image_io_failed(struct guard *g, struct handle *h, int err)
{
    struct image *img = atomic_load(&h->inode->image);
    image_plain_failed(g, h, err);
    if (!img || !io_err_dead(err) || !atomic_load(&h->guarded))
        return;
    free(still_ours(g, img)); /* fences it if it is not */
}
