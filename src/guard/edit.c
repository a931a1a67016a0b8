/* edit.c: what changes an image in its zone (format.h): headers that change, plain files that
 * become images. */
#include "guard/image.h"
#include "guard/maker.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <time.h>

bool image_is_data(const struct handle *h, uint64_t off)
{
    const struct image *img = atomic_load(&h->inode->image);
    if (!img)
        return off >= FORMAT_REACH;
    struct format_zone zone = image_zone(img);
    return off >= zone.head && zone.tail == UINT64_MAX;
}

bool image_data_begin(struct handle *h, uint64_t off, uint64_t len) NO_THREAD_SAFETY_ANALYSIS
{
    struct image *img = atomic_load(&h->inode->image);
    if (!img || !atomic_load(&h->guarded) || h->flags & O_APPEND)
        return false;
    rwlock_read(&img->header);
    struct format_zone zone = image_zone(img);
    if (off >= zone.head && off <= zone.tail && len <= zone.tail - off)
        return true;
    rwlock_read_unlock(&img->header);
    return false;
}

void image_data_end(struct handle *h) NO_THREAD_SAFETY_ANALYSIS
{
    struct image *img = atomic_load(&h->inode->image);
    rwlock_read_unlock(&img->header);
}

/* ---- a plain file becomes an image ---- */

/* Another host that has the file open as a plain one may just be closing it: close(2) returns there
 * before its lock is gone. So even with wait=0 the first write of a header waits this long. */
#define FENCE_WAIT_MIN_S 1u
/* And no longer than this, whatever wait= says: it waits on a thread of the pool. */
#define FENCE_WAIT_MAX_S 10u

/* wait=, for a write that waits on a thread of the pool. */
static unsigned seconds_to_wait(const struct guard *g)
{
    return DG_MIN(g->opt.wait_s, FENCE_WAIT_MAX_S);
}

static void wait_idle(struct image *img, unsigned seconds)
{
    uint64_t until = base_now_ms() + seconds * UINT64_C(1000);
    mutex_lock(&img->lock);
    while (img->state == IMAGE_SEALING || img->state == IMAGE_RESTORING || img->plain_busy ||
           (img->state == IMAGE_SEALED && img->closed))
        if (!cond_wait_until(&img->moved, &img->lock, until))
            break;
    mutex_unlock(&img->lock);
}

/* Has a handle written since its last fsync? Then the mtime of before is not the holder's to keep.
 */
static bool is_dirty(struct image *img)
{
    bool dirty = false;
    mutex_lock(&img->lock);
    for (const struct handle *h = img->writers; h; h = h->next_writer)
        dirty |= atomic_load(&h->dirty);
    mutex_unlock(&img->lock);
    return dirty;
}

int image_claim_plain(struct guard *g, struct image *img, const struct acquire *a, bool writes)
{
    bool stuck;
    int r = image_acquire(g, img, a, &stuck);
    if (r < 0) {
        image_acquire_failed(g, img, a, stuck, r);
        return r;
    }
    mutex_lock(&img->lock);
    img->holder = *a->who;
    img->n_guarded = 1; /* our own, until the handles have theirs */
    mutex_unlock(&img->lock);
    r = image_adopt_writers(g, img);
    if (writes || is_dirty(img))
        atomic_store(&img->wrote, true);
    image_move(g, img, IMAGE_SEALED, 0);
    if (r == -ESTALE) {
        image_fence(g, img);
        r = -EIO;
    }
    image_unguard(g, img);
    return r;
}

int image_convert(struct guard *g, struct image *img, const struct opener *who)
{
    if (!image_begin(g, img)) {
        /* another thread is at it; the caller looks again */
        wait_idle(img, seconds_to_wait(g) + 1);
        return -EALREADY;
    }
    struct acquire a = {
        .who = who, .what = "write of an image header", .plan_none = true, .plain_too = true};
    return image_claim_plain(g, img, &a, true);
}

/* Was it the fence that was refused? Then pauses. */
static bool wait_fence(struct image *img)
{
    mutex_lock(&img->lock);
    bool fenced = img->rival.fenced;
    mutex_unlock(&img->lock);
    if (fenced)
        io_fence_pause();
    return fenced;
}

/* So often somebody else may be at the file before its writer is told. */
#define BUSY_MAX 2u

/* One change of a plain file, on its way to the guarded way. */
struct becoming {
    const char *what; /* for the log line */
    unsigned busy, changed;
    uint64_t until; /* CLOCK_MONOTONIC, ms: so long the fence is waited for */
};

static struct becoming becoming(const struct guard *g, const char *what)
{
    return (struct becoming){.what = what,
                             .until = base_now_ms() + DG_MAX(seconds_to_wait(g), FENCE_WAIT_MIN_S) *
                                                          UINT64_C(1000)};
}

/* A handle that may not write any more, for the file is somebody else's image: one line for each,
 * for its program may go on trying. */
static int refused(struct guard *g, struct handle *h, const char *what)
{
    if (!atomic_exchange(&h->refusal_logged, true))
        image_refused(g, h->inode, &h->opener, what, -EBUSY);
    return -EBUSY;
}

/* The plain file has become an image, or is just about to: claims it for its writers. 0: look
 * again, it may be guarded now; or -errno, logged. */
static int become(struct guard *g, struct image *img, struct handle *h, struct becoming *b)
{
    if (h->inode->dev != g->store.dev) {
        image_log_foreign(g, h->inode, b->what);
        return -EXDEV;
    }
    int r = image_convert(g, img, &h->opener);
    if (r == 0 || atomic_load(&h->guarded))
        return 0;
    if (r == -EALREADY)
        return ++b->busy > BUSY_MAX ? refused(g, h, b->what) : 0;
    if (r == -EAGAIN && ++b->changed > IMAGE_CHANGED_MAX) {
        image_log_refused(g, h->inode, b->what, "the file changes again and again meanwhile");
        return -EIO;
    }
    if (r == -EAGAIN || (r == -EBUSY && base_now_ms() < b->until && wait_fence(img)))
        return 0;
    return r == -EBUSY ? refused(g, h, b->what) : r;
}

/* ---- writes ---- */

int image_write_allowed(const struct handle *h)
{
    if (!atomic_load_explicit(&h->guarded, memory_order_relaxed))
        return -atomic_load_explicit(&h->barred, memory_order_relaxed);
    const struct image *img = atomic_load(&h->inode->image);
    return img && atomic_load(&img->io_error) ? -EIO : 0;
}

void image_wrote(struct handle *h)
{
    struct image *img = atomic_load(&h->inode->image);
    if (img && !atomic_load_explicit(&img->wrote, memory_order_relaxed))
        atomic_store(&img->wrote, true);
}

void image_sync_failed(struct handle *h, int err)
{
    struct image *img = atomic_load(&h->inode->image);
    int none = 0;
    if (img && h->guarded)
        atomic_compare_exchange_strong(&img->sync_error, &none, err);
}

int image_sync_error(const struct handle *h)
{
    const struct image *img = atomic_load(&h->inode->image);
    return img && h->guarded ? -atomic_load(&img->sync_error) : 0;
}

static int sync_if_asked(struct handle *h, int fd)
{
    return h->flags & (O_SYNC | O_DSYNC) ? io_fsync(fd) : 0;
}

/* Who wrote a size as small as threshold= refuses is just making the image. */
static void note_maker(struct guard *g, const struct image *img, const struct opener *who)
    REQUIRES(img->header)
{
    if (!g->makers)
        return;
    if (img->rec->virtual_size > g->opt.threshold)
        maker_forget(g->makers, img->inode);
    else
        maker_note(g->makers, img->inode, who);
}

static bool edit_allowed(const struct image *img, const struct handle *h)
{
    return h ? image_write_allowed(h) == 0 : atomic_load(&img->io_error) == 0;
}

/* One edit of a held image, in the durable order of seal.h. h NULL: by path. */
static int edit_held(struct guard *g, struct image *img, struct handle *h, const struct opener *who,
                     const struct edit *e)
{
    if (!edit_allowed(img, h))
        return -EIO;
    rwlock_write(&img->header);
    int r = -EIO;
    if (img->rec && edit_allowed(img, h)) {
        struct seal s = image_seal(g, img);
        struct edit at_end = *e;
        uint64_t size = img->rec->virtual_size;
        if (e->kind == EDIT_WRITE && h && h->flags & O_APPEND && !e->placed) {
            struct stat st;
            r = io_fresh_stat(img->fd, &st);
            at_end.off = r == 0 ? (uint64_t)st.st_size : e->off;
        } else {
            r = 0;
        }
        if (r == 0)
            r = seal_edit(&s, &at_end);
        image_zone_set(img, &s.zone);
        r = image_lost(g, img, r);
        image_note(img);
        if (r == 0 && (img->rec->virtual_size != size || size <= g->opt.threshold))
            note_maker(g, img, who);
        if (r == 0)
            image_bytes_follow(g, img);
        if (r == 0)
            image_chain_edited(g, img, who);
        if (r == 0 && h)
            r = sync_if_asked(h, img->fd);
        /* Not repeated, for part of it may have happened: the next one has a descriptor that works.
         */
        if (io_err_dead(r) && r != -ESTALE && atomic_load(&img->io_error) == 0) {
            int mended = image_mend_seal(g, img);
            if (mended == -ESTALE)
                r = mended;
        }
    }
    rwlock_write_unlock(&img->header);
    atomic_store(&img->wrote, true);
    if (r == -ESTALE) {
        image_fence(g, img);
        r = -EIO;
    }
    return r;
}

/* Writes of a plain file below FORMAT_REACH look at its claim at most once in this time, so that a
 * log of many short lines is not slowed down. The monitor looks at all plain writers, too, every
 * MONITOR_PERIOD_MS. */
#define PLAIN_LOOK_MS 1000u

static int plain_look(struct guard *g, struct handle *h)
{
    uint64_t now = base_now_ms();
    int barred = atomic_load(&h->barred);
    if (barred || now - atomic_load(&h->looked_ms) < PLAIN_LOOK_MS)
        return -barred;
    atomic_store(&h->looked_ms, now);
    return image_plain_check(g, h);
}

/* Neither at the end of the file nor in whole blocks: through another descriptor, as good as the
 * handle's own. */
static ssize_t pwrite_page(struct guard *g, struct handle *h, const void *buf, size_t len,
                           uint64_t off)
{
    _cleanup_close_ int fd = io_reopen(h->inode->fd, O_WRONLY);
    int r = fd < 0 ? fd : h->inode->dev == g->store.dev ? io_fence_mark(fd, g->store.fence) : 0;
    if (r == 0)
        r = image_plain_check(g, h);
    if (r < 0)
        return r == -EAGAIN ? -EIO : r;
    ssize_t n;
    do
        n = pwrite(fd, buf, len, (off_t)off);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    r = io_fsync(fd); /* a network file system may say only then what it could not write */
    return r < 0 ? r : n;
}

ssize_t image_pwrite(struct guard *g, struct handle *h, const void *buf, size_t len, uint64_t off,
                     bool placed)
{
    if (placed && h->flags & (O_APPEND | O_DIRECT))
        return pwrite_page(g, h, buf, len, off);
    ssize_t n;
    do
        n = pwrite(h->fd, buf, len, (off_t)off);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

/* Makes of the header what it would be after the write. What is too much for any format is for the
 * guarded way to say. */
static int after_write(const struct inode *i, struct header *hd, uint64_t off, const struct edit *e)
{
    struct edit at = *e;
    at.off = off;
    _cleanup_close_ int fd = io_reopen(i->fd, O_RDONLY);
    return fd < 0 ? fd : header_ahead(fd, hd, NULL, &at, hd);
}

/* What the file would be after the write. Under the header lock, so that two halves of a header
 * cannot pass each other. */
static int write_plain(struct guard *g, struct image *img, struct handle *h, const struct edit *e,
                       bool *ret_becomes)
{
    struct inode *i = h->inode;
    _cleanup_header_ struct header *hd = header_new();
    if (!hd)
        return -ENOMEM;
    *ret_becomes = false;
    rwlock_write(&img->header);
    /* converted by another thread: the guarded way */
    int r = img->rec ? -EAGAIN : image_header(g, i, hd);
    if (r == 0) {
        struct stat st = {0};
        r = io_fresh_stat(h->fd, &st);
        bool before = image_is_image(g, i, hd);
        if (r == 0)
            r = after_write(i, hd, h->flags & O_APPEND && !e->placed ? hd->file_size : e->off, e);
        *ret_becomes = r == 0 && st.st_nlink > 0 && !atomic_load(&h->shared) &&
                       (before || image_is_image(g, i, hd));
        if (*ret_becomes && i->dev != g->store.dev) {
            image_log_foreign(g, i, "write of an image header");
            r = -EXDEV;
        }
    }
    if (r == 0 && !*ret_becomes)
        r = (int)image_pwrite(g, h, e->buf, e->len, e->off, e->placed);
    rwlock_write_unlock(&img->header);
    return r;
}

/* A write of a handle that is not guarded. *ret_again: it is guarded now, or must be looked at
 * again. */
static ssize_t write_unguarded(struct guard *g, struct image *img, struct handle *h,
                               const struct edit *e, struct becoming *b, bool *ret_again)
{
    bool becomes = false;
    int r = plain_look(g, h);
    *ret_again = false;
    if (r < 0 && atomic_load(&h->barred))
        return r == -EBUSY ? refused(g, h, b->what) : r;
    if (r == -EBUSY) /* it is an image: by its content, its name, or a claim */
        becomes = true;
    else if (r < 0)
        return r;
    else
        r = write_plain(g, img, h, e, &becomes);
    if (r == -EAGAIN) {
        wait_idle(img, seconds_to_wait(g) + 1);
        if (++b->busy > BUSY_MAX && !atomic_load(&h->guarded))
            return refused(g, h, b->what); /* held by somebody else, and not about to be let go */
    } else if (becomes) {
        r = become(g, img, h, b);
        if (r < 0)
            return r;
    } else {
        return r;
    }
    *ret_again = true;
    return 0;
}

ssize_t image_write(struct guard *g, struct handle *h, const void *buf, size_t len, uint64_t off,
                    bool placed)
{
    struct image *img = image_get(h->inode);
    if (!img)
        return -ENOMEM;
    struct edit e = {.kind = EDIT_WRITE, .off = off, .len = len, .buf = buf, .placed = placed};
    struct becoming b = becoming(g, "write of an image header");
    for (;;) {
        bool again;
        if (atomic_load(&h->guarded)) {
            int r = edit_held(g, img, h, &h->opener, &e);
            return r < 0 ? r : (ssize_t)len;
        }
        ssize_t n = write_unguarded(g, img, h, &e, &b, &again);
        if (!again)
            return n;
    }
}

/* Truncation and allocation of a plain file. Under the header lock, so that no seal comes between
 * look and change. */
static int change_plain(struct guard *g, struct handle *h, const struct edit *e)
{
    struct image *img = image_get(h->inode);
    if (!img)
        return -ENOMEM;
    rwlock_write(&img->header);
    int r = image_plain_check(g, h);
    if (r == 0) {
        do
            r = (e->kind == EDIT_TRUNCATE
                     ? ftruncate(h->fd, (off_t)e->off)
                     : fallocate(h->fd, e->mode, (off_t)e->off, (off_t)e->len)) < 0
                    ? -errno
                    : 0;
        while (r == -EINTR);
    }
    rwlock_write_unlock(&img->header);
    return r;
}

/* The same; a file that has become an image where no write is looked at (a footer at its end, the
 * descriptor of an ISO) is claimed for its writers first. 0: done; -EAGAIN: it is guarded now, the
 * guarded way is to be taken; or -errno. */
static int change_unguarded(struct guard *g, struct handle *h, const struct edit *e)
{
    struct image *img = image_get(h->inode);
    struct becoming b = becoming(g, "change of an image's size");
    if (!img)
        return -ENOMEM;
    for (;;) {
        if (atomic_load(&h->guarded))
            return -EAGAIN;
        int barred = atomic_load(&h->barred);
        if (barred)
            return barred == EBUSY ? refused(g, h, b.what) : -barred;
        int r = change_plain(g, h, e);
        if (r != -EBUSY)
            return r;
        r = become(g, img, h, &b);
        if (r < 0)
            return r;
    }
}

int image_ftruncate(struct guard *g, struct handle *h, uint64_t size)
{
    struct edit e = {.kind = EDIT_TRUNCATE, .off = size};
    if (!h->guarded) {
        int r = change_unguarded(g, h, &e);
        if (r != -EAGAIN)
            return r;
    }
    return edit_held(g, atomic_load(&h->inode->image), h, &h->opener, &e);
}

int image_truncate_own(struct guard *g, struct image *img, const struct opener *who, uint64_t size)
{
    struct edit e = {.kind = EDIT_TRUNCATE, .off = size};
    return edit_held(g, img, NULL, who, &e);
}

static int allocate(int fd, int mode, uint64_t off, uint64_t len)
{
    int r;
    do
        r = fallocate(fd, mode, (off_t)off, (off_t)len) < 0 ? -errno : 0;
    while (r == -EINTR);
    return r;
}

/* Of an image with a footer the size is a part of the header: allocated first, then it grows in the
 * durable order. */
static int allocate_and_grow(struct guard *g, struct handle *h, int mode, uint64_t off,
                             uint64_t len)
{
    struct stat st;
    int r = allocate(h->fd, mode | FALLOC_FL_KEEP_SIZE, off, len);
    if (r == 0)
        r = io_fresh_stat(h->fd, &st);
    if (r < 0 || mode & FALLOC_FL_KEEP_SIZE || off + len <= (uint64_t)st.st_size)
        return r;
    return image_ftruncate(g, h, off + len);
}

int image_fallocate(struct guard *g, struct handle *h, int mode, uint64_t off, uint64_t len)
{
    struct edit e = {.kind = EDIT_ZERO, .off = off, .len = len, .mode = mode};
    int r = h->guarded ? -EAGAIN : change_unguarded(g, h, &e);
    if (r != -EAGAIN)
        return r;
    r = image_write_allowed(h);
    if (r < 0)
        return r;
    unsigned epoch;
    if (image_direct_begin(h, off, &epoch)) {
        r = allocate(h->fd, mode, off, len);
        image_direct_end(h, epoch);
    } else {
        if (mode & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE))
            return -EOPNOTSUPP; /* would move the header; callers fall back to copying */
        if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
            return edit_held(g, atomic_load(&h->inode->image), h, &h->opener, &e);
        if (off > INT64_MAX - len)
            return -EFBIG;
        if (image_zone(atomic_load(&h->inode->image)).tail != UINT64_MAX)
            r = allocate_and_grow(g, h, mode, off, len);
        else
            r = allocate(h->fd, mode, off, len);
    }
    image_wrote(h);
    return r;
}
