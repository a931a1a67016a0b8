/* fs_data.c: the data path. Guest data (image_is_data) goes straight to the handle's descriptor: no
 * lock, no copy, no allocation. What a host reads that does not hold the image is only answered
 * when it cannot be sealed bytes (image_read()). */
#include "view/fs.h"

#include <fcntl.h>
#include <pthread.h>
#include <string.h>

#include "base/hook.h"
#include "guard/first.h"
#include "guard/guard.h"
#include "run/pool.h"

/* Alignment that every O_DIRECT backing file accepts (open(2), O_DIRECT: logical block size, at
 * most a page).
 */
#define DATA_ALIGN 4096u

/* How a write wants to be done. A handle's descriptor has the flags of its open; but a program may
 * have changed them since (F_SETFL: dd turns O_DIRECT off for a last block that is none), the
 * kernel writes the pages of all mappings and processes through any handle, and pwritev2(2) has
 * flags of its own. What counts is what the request says. */
struct write_how {
    bool page;      /* of a shared mapping, whoever has it */
    unsigned place; /* enum write_place */
    int sync;       /* O_DSYNC, O_SYNC that the descriptor does not have */
};

static struct write_how write_how(const struct handle *h, const struct fuse_file_info *fi,
                                  size_t size, uint64_t off)
{
    int has = fi->writepage ? h->flags : h->flags & ~fi->flags;
    bool blocks = (off | size) % DATA_ALIGN == 0;
    bool append = !fi->writepage && fi->flags & O_APPEND;
    return (struct write_how){.page = fi->writepage,
                              .place = (append ? WRITE_APPEND : 0u) |
                                       (has & O_DIRECT && !blocks ? WRITE_ODD : 0u),
                              .sync = fi->writepage ? 0 : fi->flags & ~h->flags & O_SYNC};
}

/* One aligned buffer a thread, grown at need, so that a request does not pay for fresh pages. */
struct thread_buffer {
    void *data;
    size_t size;
};
static pthread_key_t buffer_key;
static pthread_once_t buffer_once = PTHREAD_ONCE_INIT;

static void buffer_destroy(void *p)
{
    struct thread_buffer *b = p;
    free(b->data);
    free(b);
}

static void buffer_make_key(void)
{
    pthread_key_create(&buffer_key, buffer_destroy);
}

/* Valid until the thread's next call. NULL: out of memory. */
static void *buffer_get(size_t size)
{
    pthread_once(&buffer_once, buffer_make_key);
    struct thread_buffer *b = pthread_getspecific(buffer_key);
    if (!b) {
        b = calloc(1, sizeof(*b));
        if (!b || pthread_setspecific(buffer_key, b) != 0) {
            free(b);
            return NULL;
        }
    }
    if (b->size < size) {
        size_t rounded = (size + DATA_ALIGN - 1) / DATA_ALIGN * DATA_ALIGN;
        void *data = aligned_alloc(DATA_ALIGN, rounded);
        if (!data)
            return NULL;
        free(b->data);
        b->data = data;
        b->size = rounded;
    }
    return b->data;
}

bool fs_data_read_direct(const struct handle *h, uint64_t off)
{
    return image_read_is_quick(h, off);
}

bool fs_data_write_direct(const struct handle *h, bool append, uint64_t off)
{
    /* An append lands where the file ends now, which only the guarded way may find out. */
    if ((append && atomic_load(&h->guarded)) || image_manager_expected(h))
        return false;
    return image_is_data(h, off);
}

/* ---- a request on its way to the pool: the storage refused it (reopen.c), or a read must be done
 * with care ---- */

struct later {
    struct view *v;
    fuse_req_t req;
    struct handle *h;
    int error; /* of the first try, negative; 0: none */
    bool write;
    struct write_how how;
    size_t size;
    uint64_t off;
    void *buf; /* aligned; of a write: its payload */
};
static ssize_t write_at(struct view *v, struct handle *h, const void *buf, size_t size,
                        uint64_t off, const struct write_how *how, bool *ret_direct);

/* n: the outcome. */
static void later_reply(struct later *l, ssize_t n)
{
    if (n < 0)
        fuse_reply_err(l->req, n == l->error ? EIO : (int)-n);
    else if (l->write)
        fuse_reply_write(l->req, (size_t)n);
    else
        fuse_reply_buf(l->req, l->buf, (size_t)n);
    free(l->buf);
    free(l);
}

static void failed_again(void *arg, bool reopened)
{
    struct later *l = arg;
    ssize_t n = l->error;
    bool direct;
    if (reopened)
        n = l->write ? write_at(l->v, l->h, l->buf, l->size, l->off, &l->how, &direct)
                     : image_read(l->v->guard, l->h, l->buf, l->size, l->off, READ_MAY_WAIT);
    later_reply(l, n);
}

static void doubt_again(void *arg)
{
    struct later *l = arg;
    later_reply(l, image_read(l->v->guard, l->h, l->buf, l->size, l->off, READ_IN_DOUBT));
}

/* NULL: out of memory. */
static struct later *later_new(struct view *v, fuse_req_t req, struct handle *h,
                               const void *payload, size_t size, uint64_t off)
{
    struct later *l = malloc(sizeof(*l));
    void *buf = aligned_alloc(DATA_ALIGN, (size + DATA_ALIGN - 1) / DATA_ALIGN * DATA_ALIGN);
    if (!l || !buf) {
        free(l);
        free(buf);
        return NULL;
    }
    *l = (struct later){
        .v = v, .req = req, .h = h, .write = payload != NULL, .size = size, .off = off, .buf = buf};
    if (payload)
        memcpy(buf, payload, size);
    return l;
}

/* true: it will be answered later. how: of a write. */
static bool failed_later(struct view *v, fuse_req_t req, struct handle *h, ssize_t err,
                         const void *payload, size_t size, uint64_t off,
                         const struct write_how *how)
{
    struct later *l = later_new(v, req, h, payload, size, off);
    if (!l)
        return false;
    if (how)
        l->how = *how;
    l->error = (int)err;
    if (image_failed_later(v->guard, h, (int)err, failed_again, l))
        return true;
    free(l->buf);
    free(l);
    return false;
}

/* On the pool, where looks at claims may block. */
static void read_later(struct view *v, fuse_req_t req, struct handle *h, size_t size, uint64_t off,
                       void (*how)(void *arg))
{
    struct later *l = later_new(v, req, h, NULL, size, off);
    if (l)
        pool_submit(v->guard->pool, how, l);
    else
        fuse_reply_err(req, ENOMEM);
}

/* O_DIRECT was turned off since the open, and this is not in whole blocks: reads those around it.
 */
static void read_around(void *arg)
{
    struct later *l = arg;
    uint64_t from = l->off / DATA_ALIGN * DATA_ALIGN;
    size_t before = (size_t)(l->off - from),
           all = (before + l->size + DATA_ALIGN - 1) / DATA_ALIGN * DATA_ALIGN;
    char *buf = buffer_get(all);
    ssize_t n = -ENOMEM;
    if (buf)
        n = image_read(l->v->guard, l->h, buf, all, from, READ_MAY_WAIT);
    if (n >= 0)
        n = (size_t)n > before ? (ssize_t)DG_MIN((size_t)n - before, l->size) : 0;
    if (n > 0)
        memcpy(l->buf, buf + before, (size_t)n);
    later_reply(l, n);
}

void fs_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    (void)ino;
    struct view *v = view_of(req);
    struct handle *h = handle_get(v->guard->handles, fi->fh);
    if (h && h->flags & ~fi->flags & O_DIRECT && ((uint64_t)off | size) % DATA_ALIGN) {
        read_later(v, req, h, size, (uint64_t)off, read_around);
        return;
    }
    void *buf = h ? buffer_get(size) : NULL;
    if (!buf) {
        fuse_reply_err(req, h ? ENOMEM : EBADF);
        return;
    }
    ssize_t n = image_read(v->guard, h, buf, size, (uint64_t)off, READ_NO_WAIT);
    if (n == -EWOULDBLOCK) {
        read_later(v, req, h, size, (uint64_t)off, doubt_again);
        return;
    }
    if (n < 0 && failed_later(v, req, h, n, NULL, size, (uint64_t)off, NULL))
        return;
    if (n < 0)
        fuse_reply_err(req, (int)-n);
    else
        fuse_reply_buf(req, buf, (size_t)n);
}

static ssize_t write_direct(struct view *v, struct handle *h, const void *buf, size_t size,
                            uint64_t off, const struct write_how *how)
{
    bool guarded = atomic_load_explicit(&h->guarded, memory_order_relaxed);
    int allowed = image_write_allowed(h);
    if (allowed < 0)
        return allowed;
    if (h->flags & O_DIRECT && (uintptr_t)buf % DATA_ALIGN) {
        void *aligned = buffer_get(size);
        if (!aligned)
            return -ENOMEM;
        buf = memcpy(aligned, buf, size);
    }
    ssize_t n = HOOK_FAIL("data.write");
    if (n < 0)
        return n;
    n = image_pwrite(v->guard, h, buf, size, off, how->place);
    if (guarded)
        image_wrote(h);
    return n;
}

/* *ret_direct: it went straight to the handle's descriptor, so that a failure may be reopened and
 * the write repeated. */
static ssize_t write_once(struct view *v, struct handle *h, const void *buf, size_t size,
                          uint64_t off, const struct write_how *how, bool *ret_direct)
{
    *ret_direct = false;
    if (how->page && h->first.managed)
        /* the rest of the page may be older than what another host wrote before the claim */
        return -EBUSY;
    int r = image_first_change(v->guard, h, NULL);
    if (r < 0)
        return r;
    *ret_direct = true;
    atomic_store_explicit(&h->dirty, true, memory_order_relaxed);
    unsigned epoch;
    bool append = how->place & WRITE_APPEND;
    if (image_write_is_odd(h, how->place) && atomic_load(&h->guarded)) {
        *ret_direct = false;
        return image_write(v->guard, h, buf, size, off, how->place);
    }
    if (fs_data_write_direct(h, append, off) && image_direct_begin(h, off, &epoch)) {
        ssize_t n = write_direct(v, h, buf, size, off, how);
        image_direct_end(h, epoch);
        return n;
    }
    if (append || !image_data_begin(h, off, size)) {
        *ret_direct = false;
        return image_write(v->guard, h, buf, size, off, how->place);
    }
    ssize_t n = write_direct(v, h, buf, size, off, how);
    image_data_end(h);
    return n;
}

static ssize_t write_at(struct view *v, struct handle *h, const void *buf, size_t size,
                        uint64_t off, const struct write_how *how, bool *ret_direct)
{
    ssize_t n = write_once(v, h, buf, size, off, how, ret_direct);
    if (n < 0 || how->sync == 0)
        return n;
    int r = (how->sync & O_SYNC) == O_SYNC ? io_fsync(h->fd) : fdatasync(h->fd) < 0 ? -errno : 0;
    if (r < 0)
        image_sync_failed(h, -r);
    return r < 0 ? r : n;
}

void fs_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
              struct fuse_file_info *fi)
{
    (void)ino;
    struct view *v = view_of(req);
    struct handle *h = handle_get(v->guard->handles, fi->fh);
    if (!h) {
        fuse_reply_err(req, EBADF);
        return;
    }
    bool direct = false;
    struct write_how how = write_how(h, fi, size, (uint64_t)off);
    if (!how.page && size > 0)
        fs_attr_drop_ids(req, h->inode);
    ssize_t n = write_at(v, h, buf, size, (uint64_t)off, &how, &direct);
    if (n < 0 && direct && !(how.place & WRITE_APPEND) &&
        failed_later(v, req, h, n, buf, size, (uint64_t)off, &how))
        return;
    if (n < 0)
        image_plain_failed(v->guard, h, (int)n);
    if (n < 0)
        fuse_reply_err(req, (int)-n);
    else
        fuse_reply_write(req, (size_t)n);
}

void fs_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    (void)ino;
    struct handle *h = handle_get(view_of(req)->guard->handles, fi->fh);
    if (!h) {
        fuse_reply_err(req, EBADF);
        return;
    }
    atomic_store(&h->dirty, false);
    HOOK_HANG(h->inode->ino);
    int r = (datasync ? fdatasync(h->fd) : fsync(h->fd)) < 0 ? -errno : 0;
    if (r < 0) {
        image_sync_failed(h, -r);
        image_io_failed(view_of(req)->guard, h, r);
    } else {
        r = image_sync_error(h); /* a later success does not bring lost data back */
    }
    fuse_reply_err(req, -r);
}

void fs_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len,
                  struct fuse_file_info *fi)
{
    (void)ino;
    struct view *v = view_of(req);
    struct handle *h = handle_get(v->guard->handles, fi->fh);
    int r = h ? image_first_change(v->guard, h, NULL) : -EBADF;
    if (r == 0) {
        atomic_store(&h->dirty, true);
        fs_attr_drop_ids(req, h->inode);
        r = image_fallocate(v->guard, h, mode, (uint64_t)off, (uint64_t)len);
        if (r < 0)
            image_io_failed(v->guard, h, r);
    }
    fuse_reply_err(req, -r);
}

void fs_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi)
{
    (void)ino;
    struct handle *h = handle_get(view_of(req)->guard->handles, fi->fh);
    struct stat st;
    int err = h ? 0 : -EBADF;
    if (h && image_past_cache(h)) /* a size kept in the cache would bound the answer */
        err = io_fresh_stat(h->fd, &st);
    /* the descriptor's own position is used by nobody */
    off_t r = err == 0 ? lseek(h->fd, off, whence) : -1;
    if (r < 0)
        fuse_reply_err(req, err ? -err : errno);
    else
        fuse_reply_lseek(req, r);
}

/* Of what is not guest data one call copies no more than IMAGE_COPY_MOST, so that a signal ends a
 * long copy: short counts are what callers of copy_file_range(2) must expect. */
#define COPY_PIECE (256u << 10)

/* What is not guest data goes through the overlay, piece by piece. Never under the locks of both
 * images at a time. */
static ssize_t copy_head(struct view *v, struct handle *in, uint64_t off_in, struct handle *out,
                         uint64_t off_out, size_t len)
{
    /* Where both begin in the first FORMAT_REACH bytes, as they mostly do, no more than that: the
     * rest is the storage's to copy. */
    size_t piece = DG_MAX(off_in, off_out) < FORMAT_REACH
                       ? (size_t)(FORMAT_REACH - DG_MIN(off_in, off_out))
                       : COPY_PIECE;
    len = DG_MIN(len, piece);
    void *buf = buffer_get(COPY_PIECE);
    if (!buf)
        return -ENOMEM;
    ssize_t n = image_read(v->guard, in, buf, len, off_in, READ_MAY_WAIT);
    bool direct;
    const struct write_how how = {0};
    return n <= 0 ? n : write_at(v, out, buf, (size_t)n, off_out, &how, &direct);
}

static ssize_t copy_range(fuse_req_t req, struct handle *in, uint64_t off_in, struct handle *out,
                          uint64_t off_out, size_t len, unsigned flags)
{
    struct view *v = view_of(req);
    if (out->appends)
        return -EXDEV; /* turned off since the open: the kernel copies by itself then */
    size_t done = 0, slow = 0, must = 0; /* slow: of these, by copy_head(); must: up to where that
                                            may not stop */
    ssize_t n = 0;
    for (bool end = false; done < len && !end; done += n > 0 ? (size_t)n : 0) {
        size_t doubt = 0;
        n = done >= must ? image_copy(v->guard, in, off_in + done, out, off_out + done, len - done,
                                      flags, &end, &doubt)
                         : 0;
        must = DG_MAX(must, done + doubt);
        if (n != 0 || end)
            continue;
        if (done >= must && (slow >= IMAGE_COPY_MOST || (slow > 0 && fuse_req_interrupted(req))))
            break;
        n = copy_head(v, in, off_in + done, out, off_out + done, len - done);
        end = n <= 0;
        slow += n > 0 ? (size_t)n : 0;
    }
    if (n == -EINVAL && (in->flags | out->flags) & O_DIRECT)
        n = -EXDEV; /* the same, or not in whole blocks */
    return done > 0 ? (ssize_t)done : n;
}

void fs_copy_file_range(fuse_req_t req, fuse_ino_t ino_in, off_t off_in,
                        struct fuse_file_info *fi_in, fuse_ino_t ino_out, off_t off_out,
                        struct fuse_file_info *fi_out, size_t len, int flags)
{
    (void)ino_in;
    (void)ino_out;
    struct view *v = view_of(req);
    struct handle *in = handle_get(v->guard->handles, fi_in->fh),
                  *out = handle_get(v->guard->handles, fi_out->fh);
    ssize_t n = in && out ? image_first_change(v->guard, out, NULL) : -EBADF;
    if (n == 0 && len > 0)
        fs_attr_drop_ids(req, out->inode);
    if (n == 0)
        n = copy_range(req, in, (uint64_t)off_in, out, (uint64_t)off_out, len, (unsigned)flags);
    if (n < 0 && out)
        image_io_failed(v->guard, out, (int)n);
    if (n < 0)
        fuse_reply_err(req, (int)-n);
    else
        fuse_reply_write(req, (size_t)n);
}
