/* fs_open.c: open, create, flush, release. An open for write may wait for another holder: it is an
 * attempt that park.h repeats. */
#include "view/fs.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "base/log.h"
#include "guard/conflict.h"
#include "guard/first.h"
#include "guard/guard.h"
#include "guard/maker.h"
#include "guard/shared.h"
#include "guard/takeover.h"
#include "guard/wait.h"
#include "run/park.h"
#include "run/pool.h"
#include "view/cred.h"
#include "view/init.h"

/* An image that another host is just letting go is waited for beyond wait=, but not for ever:
 * seconds. */
#define OPEN_RELEASE_WAIT_S 60u

struct open_op {
    fuse_req_t req;
    struct view *v;
    struct handle *h;
    bool truncate;
    bool later;  /* it claims at its first change (first.h) */
    bool named;  /* as struct file_probe has it */
    bool create; /* entry is to be answered too */
    bool made;   /* the file is new */
    struct fuse_entry_param entry;
    unsigned more_s; /* waited beyond wait= */
    uint64_t since_ms,
        /* CLOCK_MONOTONIC: of the first attempt, and of the last one to take the image over */
        tried_ms;
    int takeover;   /* result of the latter; 0: none yet */
    struct why why; /* of the latter */
    struct conflict conflict;
};

/* The handle may read its file as an image. */
static void forbid_cache(struct view *v, struct handle *h)
{
    h->uncached = true;
    atomic_fetch_add(&h->inode->uncached, 1);
    view_forget_attr(v, h->inode);
}

/* What another host has changed is seen by whoever opens the file; and its mode, before he writes.
 * seen: attributes that were fetched since the open began, or NULL. */
static void tell_news(struct view *v, const struct handle *h, bool image, const struct stat *seen)
{
    struct stat st;
    bool news = v->attr_timeout > 0 && !image;
    if (!news && (h->flags & O_ACCMODE) == O_RDONLY)
        return;
    if (!seen && fstatat(h->inode->fd, "", &st, AT_EMPTY_PATH) < 0)
        return;
    seen = seen ? seen : &st;
    fs_attr_note_ids(h->inode, seen);
    if (news && inode_has_news(v->guard->inodes, h->inode, seen))
        view_forget_attr(v, h->inode);
}

/* The handle's end. After a restore the file has another mtime. */
static void let_go(struct view *v, struct handle *h)
{
    bool restores = atomic_load(&h->guarded);
    image_release(v->guard, h);
    if (h->uncached)
        atomic_fetch_sub(&h->inode->uncached, 1);
    if (restores)
        view_forget_attr(v, h->inode);
    handle_free(v->guard->handles, h);
}

static void op_free(struct open_op *op)
{
    if (op->h)
        let_go(op->v, op->h);
    if (op->create)
        inode_forget(op->v->guard->inodes, op->entry.ino, 1);
    free(op);
}

static void op_fail(struct open_op *op, int err)
{
    fuse_req_t req = op->req;
    op_free(op);
    fuse_reply_err(req, -err);
}

static void fill_attr(struct fuse_attr *a, const struct stat *st)
{
    *a = (struct fuse_attr){
        .ino = st->st_ino,
        .size = (uint64_t)st->st_size,
        .blocks = (uint64_t)st->st_blocks,
        .atime = (uint64_t)st->st_atim.tv_sec,
        .mtime = (uint64_t)st->st_mtim.tv_sec,
        .ctime = (uint64_t)st->st_ctim.tv_sec,
        .atimensec = (uint32_t)st->st_atim.tv_nsec,
        .mtimensec = (uint32_t)st->st_mtim.tv_nsec,
        .ctimensec = (uint32_t)st->st_ctim.tv_nsec,
        .mode = st->st_mode,
        .nlink = (uint32_t)st->st_nlink,
        .uid = st->st_uid,
        .gid = st->st_gid,
        .rdev = (uint32_t)st->st_rdev,
        .blksize = (uint32_t)st->st_blksize,
    };
}

static uint32_t nsec_of(double seconds)
{
    return (uint32_t)((seconds - (double)(uint64_t)seconds) * 1e9);
}

/* A plain file that is opened with O_DIRECT, too, goes past the page cache of the view's kernel: on
 * the way through it each write is preceded by a GETXATTR (security.capability), each read after a
 * write by a GETATTR, and writes come one at a time. Other handles of the file may go through the
 * cache meanwhile: a kernel that lets handles with direct I/O be mapped (6.6) writes its dirty
 * pages back before, and drops them after a write (fuse_direct_io()). */
static bool is_direct(const struct view *v, const struct handle *h)
{
    return h->flags & O_DIRECT && atomic_load(&v->may_map);
}

/* Answers by hand: libfuse 3.14 has no field for FOPEN_PARALLEL_DIRECT_WRITES (<linux/fuse.h>,
 * since protocol 7.36). -ENOENT: the open was interrupted and no release will come. */
static int reply(struct open_op *op, bool image)
{
    struct {
        struct fuse_entry_out entry;
        struct fuse_open_out open;
    } out = {0};
    out.open.fh = op->h->fh;
    bool direct = image || is_direct(op->v, op->h);
    out.open.open_flags = direct ? FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES : 0;
    if (!op->create)
        return fuse_reply_buf(op->req, (const char *)&out.open, sizeof(out.open));
    out.entry.nodeid = op->entry.ino;
    out.entry.generation = op->entry.generation;
    out.entry.entry_valid = (uint64_t)op->entry.entry_timeout;
    out.entry.entry_valid_nsec = nsec_of(op->entry.entry_timeout);
    double attr = image ? 0 : op->entry.attr_timeout;
    out.entry.attr_valid = (uint64_t)attr;
    out.entry.attr_valid_nsec = nsec_of(attr);
    fill_attr(&out.entry.attr, &op->entry.attr);
    return fuse_reply_buf(op->req, (const char *)&out, sizeof(out));
}

static void op_done(struct open_op *op, bool image, const struct stat *seen)
{
    /* After the reply a release may already be under way: everything that an undo needs is taken
     * out before.
     */
    if (image)
        forbid_cache(op->v, op->h);
    if (!op->create)
        tell_news(op->v, op->h, image, seen);
    handle_publish(op->h);
    int r = reply(op, image);
    if (r < 0) { /* interrupted (-ENOENT) or unmounted (-ENODEV) */
        op_free(op);
        return;
    }
    free(op); /* handle and lookup are the kernel's now */
}

static bool open_turn(void *arg, enum park_turn turn);

/* Held by another host, perhaps a dead one: takes it over where the options and the storage allow
 * it. 0: it is free now. */
static int open_takeover(struct open_op *op)
{
    struct view *v = op->v;
    uint64_t now = base_now_ms();
    if (v->guard->opt.takeover == TAKEOVER_MANUAL ||
        !image_held_elsewhere(op->h->inode, &op->conflict))
        return -EBUSY;
    if (op->tried_ms != 0 && now - op->tried_ms < TAKEOVER_PACE_MS)
        return -EBUSY;
    op->tried_ms = now;
    op->takeover = takeover_attempt(v->guard, op->h->inode,
                                    v->guard->opt.takeover == TAKEOVER_UNPROVEN, &op->why);
    return op->takeover;
}

/* The time of wait= is up: goes on waiting while a takeover may still come. false: no. */
static bool open_wait_takeover(struct open_op *op)
{
    uint64_t now = base_now_ms(),
             until = op->since_ms + op->v->guard->opt.takeover_wait_s * UINT64_C(1000);
    if (op->takeover != -EAGAIN || now >= until || atomic_load(&op->v->guard->stopping))
        return false;
    park_start(op->v->park, op->req, open_turn, op,
               DG_MIN(until - now, (uint64_t)TAKEOVER_PACE_MS));
    return true;
}

/* The time of wait= is up. true: waits on, the image is just being let go, or a takeover may come.
 */
static bool open_wait_longer(struct open_op *op)
{
    if (image_being_released(op->h->inode, &op->conflict) && op->more_s < OPEN_RELEASE_WAIT_S &&
        !atomic_load(&op->v->guard->stopping)) {
        op->more_s++;
        park_start(op->v->park, op->req, open_turn, op, 1000);
        return true;
    }
    return open_wait_takeover(op);
}

/* An image without a seal may be one that its program wants to map. */
static void note_mapping(const struct open_op *op)
{
    char path[RECORD_IMAGE_MAX];
    if (!atomic_load(&op->v->may_map) && image_is_unsealed(op->h->inode, path, sizeof(path)))
        init_say_mapping(op->v, path);
}

static bool open_turn(void *arg, enum park_turn turn)
{
    struct open_op *op = arg;
    if (turn == PARK_INTERRUPTED) {
        op_fail(op, -EINTR);
        return true;
    }
    int r = image_open(op->v->guard, op->h, op->truncate, &op->conflict);
    if (r == -EBUSY && open_takeover(op) == 0)
        r = image_open(op->v->guard, op->h, op->truncate, &op->conflict);
    if (r == 0) {
        if (op->truncate) {
            atomic_store(&op->h->inode->set_ids, true); /* perhaps */
            fs_attr_drop_ids(op->req, op->h->inode);
        }
        note_mapping(op);
        op_done(op, atomic_load(&op->h->guarded) || atomic_load(&op->h->shared), NULL);
        return true;
    }
    if (r != -EBUSY) {
        op_fail(op, r);
        return true;
    }
    bool vain = turn != PARK_LAST && image_wait_is_vain(op->v->guard, op->h->inode, &op->h->opener,
                                                        op->since_ms, &op->conflict);
    if (turn != PARK_LAST && !vain)
        return false;
    if (!vain && open_wait_longer(op))
        return true;
    image_refused(op->v->guard, op->h->inode, &op->h->opener, "open for write", &op->conflict);
    if (op->takeover < 0)
        image_log_refused(op->v->guard, op->h->inode, "takeover", "%s", op->why.text);
    op_fail(op, r);
    return true;
}

/* The backing descriptor of a writer is read-write, for the fence lock needs that; where the file's
 * mode or flags forbid it to the daemon, as the caller, and at last just as he asked (an
 * append-only file: it cannot become an image that way without the fence, and then is refused). */
static int open_backing(fuse_req_t req, struct inode *i, int flags)
{
    int keep = flags & ~(O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC);
    int fd = inode_reopen(i, (flags & O_ACCMODE) == O_RDONLY && !(flags & O_TRUNC)
                                 ? keep
                                 : (keep & ~O_ACCMODE) | O_RDWR);
    if (!io_err_denied(fd))
        return fd;
    struct cred c;
    int r = cred_enter(req, &c);
    if (r < 0)
        return r;
    fd = inode_reopen(i, (keep & ~O_ACCMODE) | O_RDWR);
    if (io_err_denied(fd))
        fd = inode_reopen(i, keep);
    cred_leave(&c);
    return fd;
}

/* No claim, no wait: readers always get in. */
static void open_read_only(struct open_op *op)
{
    struct file_probe p = {.fd = -1, .named = op->named};
    /* Its own descriptor spares an open. But what the daemon itself may not read it cannot guard:
     * that of another user says nothing about it. */
    if (cred_is_daemon(op->h->opener.uid) && !(op->h->flags & O_DIRECT))
        p.fd = op->h->fd;
    int r = image_probe(op->v->guard, op->h->inode, &p);
    if (r < 0)
        op_fail(op, r);
    else
        op_done(op, p.what == IMAGE_WHAT_IMAGE || image_is_shared(op->v->guard, op->h->inode),
                p.seen ? &p.st : NULL);
}

/* Each append is a request that says so: struct write_how. */
static void drop_append(const struct io_fstype *fs, struct handle *h)
{
    h->appends = h->flags & O_APPEND && !io_drop_append(h->fd, fs);
}

/* A reader of a file that another host may write meanwhile gets a descriptor that asks the storage
 * each time: image_pread(). */
static void past_cache(const struct io_fstype *fs, struct handle *h)
{
    h->stale_data = fs->stale_data;
    if (!h->stale_data || h->writer)
        return;
    int fd = inode_reopen(h->inode, O_RDONLY | O_DIRECT);
    if (fd >= 0)
        h->direct_fd = fd; /* else image_pread() drops the cache before each read */
}

static void open_start(void *arg)
{
    struct open_op *op = arg;
    int flags = op->h->flags;
    op->h->writer = !op->later && ((flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC);
    op->truncate = flags & O_TRUNC;
    if (op->later)
        image_manager_expect(op->h);
    const struct guard *g = op->v->guard;
    const struct io_fstype *fs =
        op->h->inode->dev == g->store.dev ? g->store.fs : io_fstype(op->h->fd);
    drop_append(fs, op->h);
    past_cache(fs, op->h);
    if (op->made && op->v->guard->makers)
        maker_note(op->v->guard->makers, op->h->inode, &op->h->opener);
    if (op->h->writer)
        park_start(op->v->park, op->req, open_turn, op, op->v->guard->opt.wait_s * UINT64_C(1000));
    else
        open_read_only(op);
}

/* An operation with a handle that is not open yet. NULL: answered with ENOMEM. */
static struct open_op *op_new(fuse_req_t req, struct inode *i, int flags)
{
    struct view *v = view_of(req);
    struct open_op *op = calloc(1, sizeof(*op));
    if (op)
        op->h = handle_new(v->guard->handles, i);
    if (!op || !op->h) {
        free(op);
        return NULL;
    }
    op->req = req;
    op->v = v;
    cred_opener(req, &op->h->opener);
    op->h->flags = flags;
    op->later = image_manager_waits(v->guard, &op->h->opener, flags);
    op->since_ms = base_now_ms();
    return op;
}

void fs_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct view *v = view_of(req);
    struct inode *i = inode_get(v->guard->inodes, ino);
    if (!i) {
        fuse_reply_err(req, ESTALE);
        return;
    }
    bool named;
    if (fs_name_moved(req, i, &named)) {
        inode_put(v->guard->inodes, i);
        fuse_reply_err(req, ESTALE);
        return;
    }
    int flags = fi->flags;
    struct open_op *op = op_new(req, i, flags);
    /* O_RDONLY is 0 */
    int fd = op ? open_backing(req, i, op->later ? flags & ~O_ACCMODE : flags) : -ENOMEM;
    inode_put(v->guard->inodes, i); /* the handle has a pin of its own */
    if (fd < 0) {
        if (op)
            op_fail(op, fd);
        else
            fuse_reply_err(req, ENOMEM);
        return;
    }
    op->h->fd = fd;
    op->named = named;
    open_start(op);
}

/* Makes the file as the caller. fd or -errno; -EEXIST also when another host was faster. */
static int create_file(fuse_req_t req, struct inode *dir, const char *name, int flags, mode_t mode)
{
    struct cred c;
    int r = cred_enter(req, &c);
    if (r < 0)
        return r;
    int keep = flags & ~(O_ACCMODE | O_TRUNC);
    int fd = openat(dir->fd, name, keep | O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    if (fd < 0)
        fd = -errno;
    cred_leave(&c);
    return fd;
}

/* The new file as an inode with one counted lookup, pinned. */
static int create_enter(struct view *v, struct inode *dir, const char *name, int fd,
                        struct fuse_entry_param *e, struct inode **ret)
{
    int path_fd = io_reopen_regular(fd, O_PATH); /* open(2) makes nothing else */
    if (path_fd < 0)
        return path_fd;
    memset(e, 0, sizeof(*e));
    if (fstat(fd, &e->attr) < 0) {
        int r = -errno;
        close(path_fd);
        return r;
    }
    struct inode *i = inode_enter(v->guard->inodes, path_fd, &e->attr, true);
    if (!i)
        return -ENOMEM;
    e->attr_timeout = fs_attr_timeout(v, i, &e->attr);
    e->entry_timeout = fs_name_timeout(v, &e->attr);
    fs_attr_note_ids(i, &e->attr);
    e->attr.st_ino = fs_attr_ino(v, e->attr.st_dev, e->attr.st_ino);
    inode_named(v->guard->inodes, i, dir, name, 0);
    e->ino = i->nodeid;
    e->generation = i->generation;
    *ret = i;
    return 0;
}

/* Another host made the file between the kernel's look and ours. The kernel takes it for a new one
 * and checks nothing more, so the caller's own right to open it is asked here. fd or -errno. */
static int open_existing(fuse_req_t req, struct inode *i, int flags)
{
    struct cred c;
    int r = cred_enter(req, &c);
    if (r < 0)
        return r;
    int probe = inode_reopen(i, flags & ~(O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC));
    cred_leave(&c);
    if (probe < 0)
        return probe;
    close(probe);
    return open_backing(req, i, flags);
}

void fs_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
               struct fuse_file_info *fi)
{
    struct view *v = view_of(req);
    struct inode *dir = inode_get(v->guard->inodes, parent), *i = NULL;
    struct fuse_entry_param e = {0};
    int flags = fi->flags, fd = -1, r = 0;
    bool made = false;
    if (!dir)
        r = -ESTALE;
    else if (fs_name_hidden(dir, name))
        r = -EPERM;
    else if (dir->dev != v->guard->store.dev && image_name_is_raw(v->guard, name) &&
             !image_name_is_shared(v->guard, name))
        r = -EXDEV; /* an image that could not be opened: do not leave an empty file either */
    if (r == 0)
        fd = r = create_file(req, dir, name, flags, mode);
    if (r >= 0) {
        flags &= ~O_TRUNC; /* it is new: nothing to truncate, and set-id bits of `mode` stay */
        made = true;
        r = create_enter(v, dir, name, fd, &e, &i);
    } else if (r == -EEXIST && !(flags & O_EXCL)) {
        r = fs_name_lookup(v, dir, name, true, &e, &i);
        if (r == 0 && !S_ISREG(i->type))
            r = -EEXIST; /* not what open(2) may create: the kernel looks again */
        if (r == 0)
            fd = r = open_existing(req, i, flags);
    }
    inode_put(v->guard->inodes, dir);
    struct open_op *op = r >= 0 ? op_new(req, i, flags) : NULL;
    if (op) {
        /* A new file that is no image waits for nobody. */
        bool quick = made && !image_name_is_raw(v->guard, name);
        op->create = true;
        op->h->made = quick;
        op->entry = e;
        op->h->fd = fd;
        inode_put(v->guard->inodes, i);
        op->made = made;
        if (quick)
            open_start(op);
        else
            pool_submit(v->guard->pool, open_start, op);
        return;
    }
    if (fd >= 0)
        close(fd);
    if (i) {
        inode_forget(v->guard->inodes, e.ino, 1);
        inode_put(v->guard->inodes, i);
    }
    fuse_reply_err(req, r < 0 ? -r : ENOMEM);
}

void fs_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    struct view *v = view_of(req);
    struct handle *h = handle_get(v->guard->handles, fi->fh);
    if (!h) {
        fuse_reply_err(req, EBADF);
        return;
    }
    fs_lock_flush(v, req, h, fi->lock_owner);
    int r = 0;
    if (h->writer && atomic_exchange(&h->dirty, false)) {
        if (atomic_load(&h->guarded)) {
            r = io_fsync(h->fd);
            if (r < 0) {
                image_sync_failed(h, -r);
                image_io_failed(v->guard, h, r);
            }
        } else { /* a network file system reports what it could not write when a descriptor is
                    closed */
            int dup_fd = fcntl(h->fd, F_DUPFD_CLOEXEC, 0);
            r = dup_fd < 0 || close(dup_fd) < 0 ? -errno : 0;
        }
    }
    if (r == 0)
        r = image_sync_error(h);
    fuse_reply_err(req, -r);
}

void fs_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    struct view *v = view_of(req);
    struct handle *h = handle_get(v->guard->handles, fi->fh);
    if (h) {
        fs_lock_release(v, h);
        let_go(v, h);
    }
    fuse_reply_err(req, 0);
}
