/* edit.c: what changes an image in its zone (format.h): headers that change, plain files that
 * become images. */
#include "guard/edit.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <time.h>

#include "guard/acquire.h"
#include "guard/chain.h"
#include "guard/conflict.h"
#include "guard/fence.h"
#include "guard/held.h"
#include "guard/maker.h"
#include "guard/plain.h"
#include "guard/probe.h"
#include "guard/qemu_locks_priv.h"
#include "guard/refuse.h"
#include "guard/reopen.h"
#include "guard/zone.h"

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
    while (img->state == IMAGE_SEALING || img->state == IMAGE_RESTORING || img->plain.busy ||
           (img->state == IMAGE_SEALED && img->exclusive))
        if (!cond_wait_until(&img->moved, &img->lock, until))
            break;
    mutex_unlock(&img->lock);
}

int image_convert(struct guard *g, struct image *img, const struct opener *who,
                  struct conflict *ret)
{
    if (!image_begin(g, img, ret)) {
        /* another thread is at it; the caller looks again */
        wait_idle(img, seconds_to_wait(g) + 1);
        return -EALREADY;
    }
    const struct taking t = {TAKE_TO_CONVERT, who, "write of an image header", NULL};
    return image_take(g, img, &t, ret);
}

/* Was it the fence that was refused? Then pauses. */
static bool wait_fence(const struct conflict *c)
{
    bool fenced = c->kind == CONFLICT_FENCE;
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
    struct conflict conflict;
};

static struct becoming becoming(const struct guard *g, const char *what)
{
    return (struct becoming){.what = what,
                             .until = base_now_ms() + DG_MAX(seconds_to_wait(g), FENCE_WAIT_MIN_S) *
                                                          UINT64_C(1000)};
}

/* Nothing was tried, for it was known before that somebody has the file: says who. */
static void look_who(struct guard *g, struct inode *i, struct conflict *ret)
{
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    struct io_handle handle;
    image_conflict_fill(atomic_load(&i->image), ret);
    if (ret->kind == CONFLICT_OPENING && c && claim_read(&g->store, i->ino, c) == 0 &&
        c->kind == CLAIM_HELD && io_handle_get(i->fd, &handle) == 0 &&
        io_handle_equal(&c->rec.handle, &handle))
        conflict_claim(ret, &c->rec);
}

/* A handle that may not write any more, for the file is somebody else's image: one line for each,
 * for its program may go on trying. */
static int refused(struct guard *g, struct handle *h, struct becoming *b)
{
    if (!atomic_exchange(&h->barred.said, true)) {
        if (b->conflict.kind == CONFLICT_NONE)
            look_who(g, h->inode, &b->conflict);
        image_refused(g, h->inode, &h->opener, b->what, &b->conflict);
    }
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
    conflict_set(&b->conflict, CONFLICT_NONE);
    int r = image_convert(g, img, &h->opener, &b->conflict);
    if (r == 0 || atomic_load(&h->guarded))
        return 0;
    if (r == -EALREADY)
        return ++b->busy > BUSY_MAX ? refused(g, h, b) : 0;
    if (r == -EAGAIN && ++b->changed > IMAGE_CHANGED_MAX) {
        image_log_refused(g, h->inode, b->what, "the file changes again and again meanwhile");
        return -EIO;
    }
    if (r == -EAGAIN || (r == -EBUSY && base_now_ms() < b->until && wait_fence(&b->conflict)))
        return 0;
    return r == -EBUSY ? refused(g, h, b) : r;
}

/* ---- writes ---- */

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
    if (img->held.rec->virtual_size > g->opt.threshold)
        maker_forget(g->makers, img->inode);
    else
        maker_note(g->makers, img->inode, who);
}

static bool edit_allowed(const struct image *img, const struct handle *h)
{
    return h ? image_write_allowed(h) == 0 : atomic_load(&img->held.io_error) == 0;
}

/* One edit of a held image, in the durable order of seal.h. h NULL: by path. */
static int edit_held(struct guard *g, struct image *img, struct handle *h, const struct opener *who,
                     const struct edit *e)
{
    struct record full;
    if (!edit_allowed(img, h))
        return -EIO;
    rwlock_write(&img->header);
    int r = -EIO;
    if (img->held.recorded && edit_allowed(img, h))
        r = image_record_edit(img, &full);
    if (r == 0) {
        struct seal s = image_seal(g, img);
        struct edit at_end = *e;
        uint64_t size = img->held.rec->virtual_size;
        if (e->append) { /* alone: nobody else writes it, and this is under the header lock */
            struct stat st;
            r = io_fresh_stat(img->held.fd, &st);
            at_end.off = r == 0 ? (uint64_t)st.st_size : e->off;
        } else {
            r = 0;
        }
        if (r == 0)
            r = seal_edit(&s, &at_end);
        image_zone_set(img, &s.zone);
        image_note(img);
        if (r == 0 && (img->held.rec->virtual_size != size || size <= g->opt.threshold))
            note_maker(g, img, who);
        if (r == 0)
            image_qemu_follow(g, img);
        if (r == 0)
            image_chain_edited(g, img, who);
        if (r == 0 && h)
            r = sync_if_asked(h, img->held.fd);
        /* Not repeated, for part of it may have happened: the next one has a descriptor that works.
         */
        if (io_err_dead(r) && atomic_load(&img->held.io_error) == 0) {
            int reopened = image_reopen_seal(g, img);
            if (reopened == -CLAIM_LOST)
                r = reopened;
        }
        image_record_close(img);
    }
    rwlock_write_unlock(&img->header);
    image_held_wrote(img);
    if (r == -CLAIM_LOST)
        image_fence(g, img);
    return image_answer(r);
}

/* Writes of a plain file below FORMAT_REACH look at its claim at most once in this time, so that a
 * log of many short lines is not slowed down. The monitor looks at all plain writers, too, every
 * MONITOR_PERIOD_MS. */
#define PLAIN_LOOK_MS 1000u

static int plain_look(struct guard *g, struct handle *h)
{
    uint64_t now = base_now_ms();
    int barred = atomic_load(&h->barred.err);
    if (barred || now - atomic_load(&h->barred.looked_ms) < PLAIN_LOOK_MS)
        return -barred;
    atomic_store(&h->barred.looked_ms, now);
    return image_plain_check(g, h);
}

/* The one place where bytes of a plain file, and guest data, are written. Only an append is not the
 * same when it is done twice. */
static ssize_t write_to(int fd, const void *buf, size_t len, uint64_t off, unsigned place)
{
    if (place & WRITE_APPEND)
        return io_append(fd, buf, len);
    ssize_t n;
    do
        n = pwrite(fd, buf, len, (off_t)off);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

/* At its offset, although the handle's descriptor has O_APPEND, or not in whole blocks, although it
 * has O_DIRECT: through another descriptor, as good as that one. */
static ssize_t pwrite_odd(struct guard *g, struct handle *h, const void *buf, size_t len,
                          uint64_t off, unsigned place)
{
    _cleanup_close_ int fd = io_reopen(h->inode->fd, O_WRONLY);
    int r = fd < 0 ? fd : h->inode->dev == g->store.dev ? io_fence_announce(fd, g->store.fence) : 0;
    if (r == 0)
        r = image_plain_check(g, h);
    if (r < 0)
        return r == -EAGAIN ? -EIO : r;
    ssize_t n = write_to(fd, buf, len, off, place);
    if (n < 0)
        return n;
    r = io_fsync(fd); /* a network file system may say only then what it could not write */
    return r < 0 ? r : n;
}

ssize_t image_pwrite(struct guard *g, struct handle *h, const void *buf, size_t len, uint64_t off,
                     unsigned place)
{
    return image_write_is_odd(h, place) ? pwrite_odd(g, h, buf, len, off, place)
                                        : write_to(h->fd, buf, len, off, place);
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
                       unsigned place, bool *ret_becomes)
{
    struct inode *i = h->inode;
    _cleanup_header_ struct header *hd = header_new();
    if (!hd)
        return -ENOMEM;
    *ret_becomes = false;
    rwlock_write(&img->header);
    /* converted by another thread: the guarded way */
    int r = img->held.recorded ? -EAGAIN : image_header(g, i, hd);
    if (r == 0) {
        struct stat st = {0};
        r = io_fresh_stat(h->fd, &st);
        bool before = image_is_image(g, i, hd);
        if (r == 0)
            r = after_write(i, hd, e->append ? hd->file_size : e->off, e);
        *ret_becomes = r == 0 && st.st_nlink > 0 && !atomic_load(&h->shared) &&
                       (before || image_is_image(g, i, hd));
        if (*ret_becomes && i->dev != g->store.dev) {
            image_log_foreign(g, i, "write of an image header");
            r = -EXDEV;
        }
    }
    if (r == 0 && !*ret_becomes)
        r = (int)image_pwrite(g, h, e->buf, e->len, e->off, place);
    rwlock_write_unlock(&img->header);
    return r;
}

/* A write of a handle that is not guarded. *ret_again: it is guarded now, or must be looked at
 * again. */
static ssize_t write_unguarded(struct guard *g, struct image *img, struct handle *h,
                               const struct edit *e, unsigned place, struct becoming *b,
                               bool *ret_again)
{
    bool becomes = false;
    int r = plain_look(g, h);
    *ret_again = false;
    if (r < 0 && atomic_load(&h->barred.err))
        return r == -EBUSY ? refused(g, h, b) : r;
    if (r == -EBUSY) /* it is an image: by its content, its name, or a claim */
        becomes = true;
    else if (r < 0)
        return r;
    else
        r = write_plain(g, img, h, e, place, &becomes);
    if (r == -EAGAIN) {
        wait_idle(img, seconds_to_wait(g) + 1);
        if (++b->busy > BUSY_MAX && !atomic_load(&h->guarded))
            return refused(g, h, b); /* held by somebody else, and not about to be let go */
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
                    unsigned place)
{
    struct image *img = image_get(h->inode);
    if (!img)
        return -ENOMEM;
    struct edit e = {
        .kind = EDIT_WRITE, .off = off, .len = len, .buf = buf, .append = place & WRITE_APPEND};
    struct becoming b = becoming(g, "write of an image header");
    for (;;) {
        bool again;
        if (atomic_load(&h->guarded)) {
            int r = edit_held(g, img, h, &h->opener, &e);
            return r < 0 ? r : (ssize_t)len;
        }
        ssize_t n = write_unguarded(g, img, h, &e, place, &b, &again);
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
        int barred = atomic_load(&h->barred.err);
        if (barred)
            return barred == EBUSY ? refused(g, h, &b) : -barred;
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
