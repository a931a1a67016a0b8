/* read.c: reads in the zone of an image (format.h), and of files that may be one: the overlay of
 * this host, headers that other hosts hold. */
#include <fcntl.h>
#include <limits.h>
#include <string.h>

#include "base/hook.h"
#include "guard/image.h"
#include "guard/listing.h"
#include "guard/refuse.h"
#include "guard/snapshot.h"

static ssize_t read_some(int fd, void *buf, size_t len, uint64_t off)
{
    ssize_t n;
    do
        n = pread(fd, buf, len, (off_t)off);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

bool image_past_cache(const struct handle *h)
{
    if (!h->stale_data)
        return false;
    const struct image *img = atomic_load(&h->inode->image);
    if (img && atomic_load(&img->held.valid) && atomic_load(&img->held.io_error) == 0)
        return false;
    return !h->writer || atomic_load(&h->guarded); /* a guarded one: the image is FENCED */
}

ssize_t image_pread(const struct handle *h, void *buf, size_t len, uint64_t off)
{
    if (image_past_cache(h))
        return io_fresh_guest_data(h->direct_fd, h->fd, buf, len, off);
    return read_some(h->fd, buf, len, off);
}

/* The overlay of this host, if it holds the image. false: it does not (any more). */
static bool read_held(struct image *img, struct handle *h, void *buf, size_t len, uint64_t off,
                      ssize_t *ret)
{
    rwlock_read(&img->header);
    mutex_lock(&img->lock);
    /* A claim that is freed already (plan gone, not SEALED any more) explains nothing: a successor
     * may have sealed. */
    bool held = atomic_load(&img->held.valid) && img->held.recorded &&
                (packed_has_plan(img->held.packed) || img->state == IMAGE_SEALED) &&
                img->state != IMAGE_FENCED && img->state != IMAGE_IDLE;
    mutex_unlock(&img->lock);
    if (held) {
        *ret = read_some(h->fd, buf, len, off);
        if (*ret > 0)
            packed_patch(img->held.packed, off, buf, (size_t)*ret);
    }
    rwlock_read_unlock(&img->header);
    return held;
}

/* The claim is of another file, which had this inode number before, so that nothing of it stands
 * here. */
static bool is_of_another(const struct inode *i, const struct record *rec)
{
    struct io_handle handle;
    return io_handle_get(i->fd, &handle) == 0 && !io_handle_equal(&rec->handle, &handle);
}

static bool is_true(const struct header *hd)
{
    return hd->verdict != FORMAT_SEALED && hd->verdict != FORMAT_MORE;
}

/* Takes the seal off a header that was read between two looks at the same claim. A probe that met
 * the seal did not ask for all that the true header needs: the rest is loaded now. false: the claim
 * does not explain what stands there. */
static bool explain(struct image *img, int fd, struct header *hd, const struct claim *c)
{
    /* Of what has no header of its own, and never was seen to have one, nothing is sealed. */
    if (c->kind == CLAIM_BAD)
        return image_is_headless(hd) && !image_zone_is_far(img);
    if (c->kind == CLAIM_HELD && c->rec.plan.n > 0) {
        struct excerpt v = header_view(hd);
        enum header_state st = overlay_compare(&c->rec.plan, &v, c->rec.cut);
        if (st == HEADER_ALIEN || st == HEADER_SHORT)
            return is_true(hd) && is_of_another(img->inode, &c->rec);
        if (header_ahead(fd, hd, &c->rec.plan, NULL, hd) < 0)
            return false;
    }
    return is_true(hd);
}

static bool same_claim(const struct claim *a, const struct claim *b)
{
    return a->kind == b->kind && a->generation == b->generation &&
           (a->kind == CLAIM_NONE || a->kind == CLAIM_BAD ||
            (a->rec.seq == b->rec.seq && a->rec.step == b->rec.step));
}

struct foreign {
    struct header hd; /* the true header; if not explained: what stands there */
    bool explained;
    struct claim before, after;
    ssize_t n; /* what was read into the caller's buffer */
};

static void foreign_freep(struct foreign **w)
{
    if (*w)
        header_clear(&(*w)->hd);
    free(*w);
}

/* each one is a claim that changed meanwhile: a host that opens, resizes and closes all the time */
#define FOREIGN_TRIES 50

/* The header as it stands and every place where the claim says that something was changed. */
static int load_with_plan(int fd, struct foreign *w)
{
    int r = header_load(fd, &w->hd);
    const struct plan *plan = &w->before.rec.plan;
    for (unsigned k = 0; r == 0 && w->before.kind == CLAIM_HELD && k < plan->n; k++) {
        uint8_t bytes[EXTENT_MAX];
        if (!header_get(&w->hd, plan->ext[k].off, bytes, plan->ext[k].len))
            r = header_add(fd, &w->hd, plan->ext[k].off, plan->ext[k].len);
    }
    return r;
}

/* Claim, header, the caller's bytes, claim again, until the claim did not change. 0: w->hd is the
 * true header, or what was read lies where nothing can be sealed, whatever it is; -EIO: it cannot
 * be told. */
static int foreign_header(struct guard *g, struct image *img, struct handle *h, struct foreign *w,
                          void *buf, size_t len, uint64_t off)
{
    struct inode *i = h->inode;
    _cleanup_close_ int fd = io_reopen(i->fd, O_RDONLY);
    if (io_err_denied(fd))
        image_log_closed(g, i, "read");
    if (fd < 0)
        return fd;
    for (int k = 0; k < FOREIGN_TRIES; k++) {
        struct image_snapshot look;
        image_snapshot_begin(g, img, &look, NULL);
        int r = image_listing_claim(g, i, &w->before);
        if (r == 0)
            r = load_with_plan(fd, w);
        if (r == 0) {
            w->explained = explain(img, fd, &w->hd, &w->before);
            w->n = image_pread(h, buf, len, off);
            r = w->n < 0 ? (int)w->n : image_listing_claim(g, i, &w->after);
        }
        if (r < 0)
            return r;
        if (same_claim(&w->before, &w->after)) {
            struct format_zone zone = image_snapshot_zone(&w->hd, &w->before);
            image_snapshot_end(img, &look, &w->hd, &w->before);
            bool far =
                w->hd.verdict != FORMAT_MORE && !image_zone_touched(&zone, off, (uint64_t)w->n);
            return w->explained || far ? 0 : -EIO;
        }
    }
    return -EIO;
}

static void log_unexplained(struct guard *g, struct inode *i)
{
    struct image *img = image_get(i);
    if (!img || atomic_exchange(&img->read.warned, true))
        return;
    char path[PATH_MAX];
    image_path(g, i, path, sizeof(path));
    log_image(
        LOG_ERR, path, NULL, 0,
        "'%s' is sealed on the datastore and no readable claim explains it: reads of its header get EIO rather than sealed bytes. See diskguardctl why, and fsck.diskguard %s",
        path, g->store.path);
}

/* The bytes as they stand, of a file of which something is known. false: they may be sealed ones,
 * and must be forgotten. */
static bool read_straight(struct guard *g, struct handle *h, const struct image_known *began,
                          void *buf, size_t len, uint64_t off, ssize_t *ret)
{
    *ret = image_pread(h, buf, len, off);
    HOOK("read.check");
    return *ret <= 0 || image_revalidate(g, h, began, off, (uint64_t)*ret) >= (uint64_t)*ret;
}

/* What this host does not hold: another one may. */
static ssize_t read_foreign(struct guard *g, struct handle *h, void *buf, size_t len, uint64_t off,
                            bool doubt)
{
    struct inode *i = h->inode;
    struct image *img = image_get(i);
    if (!img)
        return -ENOMEM;
    if (i->dev != g->store.dev)
        return image_pread(h, buf, len, off);
    struct image_known began = image_known_now(h);
    /* A hold that just ends here explains nothing. */
    bool may = began.hold == 0 || (began.hold & IMAGE_BY_READERS);
    if (!doubt && may && (began.hold || image_snapshot_covers(img, &began.look, off, len))) {
        ssize_t n;
        if (read_straight(g, h, &began, buf, len, off, &n))
            return n;
    }
    __attribute__((cleanup(foreign_freep))) struct foreign *w = calloc(1, sizeof(*w));
    if (!w)
        return -ENOMEM;
    int r = foreign_header(g, img, h, w, buf, len, off);
    if (r == -EIO)
        log_unexplained(g, i);
    if (r < 0)
        return r;
    if (w->n > 0 && w->explained)
        header_overlay(&w->hd, off, buf, (size_t)w->n);
    return w->n;
}

/* Where a seal can be: through the overlay of this host, or by the claim of another one. */
static ssize_t read_zone(struct guard *g, struct handle *h, void *buf, size_t len, uint64_t off,
                         bool doubt)
{
    struct image *img = atomic_load(&h->inode->image);
    ssize_t n;
    if (img && atomic_load(&img->held.valid) && read_held(img, h, buf, len, off, &n))
        return n;
    return read_foreign(g, h, buf, len, off, doubt);
}

/* This host does not hold the file, and nothing was sealed in it, nowhere, when it was looked at
 * last.
 */
static bool is_clean(const struct handle *h, const struct image_known *began)
{
    const struct image *img = atomic_load(&h->inode->image);
    if (!img || atomic_load(&img->held.valid))
        return false;
    return began->hold != 0 ? (began->hold & IMAGE_BY_READERS) != 0
                            : began->look.valid && began->look.clean;
}

bool image_read_is_quick(const struct handle *h, uint64_t off)
{
    if (image_is_data(h, off))
        return true;
    struct image_known now = image_known_now(h);
    return is_clean(h, &now);
}

ssize_t image_read(struct guard *g, struct handle *h, void *buf, size_t len, uint64_t off,
                   enum read_how how)
{
    if (how == READ_IN_DOUBT)
        return read_zone(g, h, buf, len, off, true);
    struct image_known began = image_known_now(h);
    HOOK("read.look");
    if (!image_is_data(h, off) && (how != READ_NO_WAIT || !is_clean(h, &began)))
        return read_zone(g, h, buf, len, off, false);
    ssize_t n = HOOK_FAIL("data.read");
    if (n < 0 || read_straight(g, h, &began, buf, len, off, &n))
        return n;
    return how == READ_NO_WAIT ? -EWOULDBLOCK : read_zone(g, h, buf, len, off, true);
}

/* ---- copies ---- */

/* Far from every header. Below it is the caller's business. */
static ssize_t copy_far(struct handle *in, uint64_t off_in, struct handle *out, uint64_t off_out,
                        size_t len, unsigned flags)
{
    int allowed = image_write_allowed(out);
    if (allowed < 0)
        return allowed;
    if (image_past_cache(in)) { /* where the server cannot copy, the kernel does, from the cache */
        int r = io_cache_drop(in->fd);
        if (r < 0)
            return r;
    }
    atomic_store(&out->dirty, true);
    off_t from = (off_t)off_in, to = (off_t)off_out;
    unsigned epoch;
    if (!image_direct_begin(out, off_out, &epoch))
        /* has become a part of the header just now: the kernel copies by itself then */
        return -EXDEV;
    ssize_t n = copy_file_range(in->fd, &from, out->fd, &to, len, flags);
    int err = errno;
    image_direct_end(out, epoch);
    image_wrote(out);
    return n < 0 ? -err : n;
}

ssize_t image_copy(struct guard *g, struct handle *in, uint64_t off_in, struct handle *out,
                   uint64_t off_out, size_t len, unsigned flags, bool *ret_end, size_t *ret_doubt)
{
    struct image_known began = image_known_now(in);
    *ret_end = false;
    if (!image_is_data(in, off_in) || !image_is_data(out, off_out))
        return 0;
    if (began.hold == 0) /* so much may have to be written again */
        len = DG_MIN(len, IMAGE_COPY_MOST);
    size_t far = (size_t)image_revalidate(g, in, &began, off_in, len);
    ssize_t n = far > 0 ? copy_far(in, off_in, out, off_out, far, flags) : 0;
    if (n > 0 && image_revalidate(g, in, &began, off_in, (uint64_t)n) < (uint64_t)n) {
        *ret_doubt = (size_t)n;
        return 0;
    }
    *ret_end = far > 0 && (n <= 0 || (size_t)n < far);
    return n;
}
