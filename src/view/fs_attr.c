#include <fcntl.h>
#include <linux/limits.h>
#include <linux/xattr.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>

#include "guard/conflict.h"
#include "guard/first.h"
#include "guard/guard.h"
#include "guard/wait.h"
#include "run/park.h"
#include "view/cred.h"
#include "view/fs.h"

void fs_attr_proc_path(int fd, char ret[FS_PROC_PATH_SIZE])
{
    snprintf(ret, FS_PROC_PATH_SIZE, "/proc/self/fd/%d", fd);
}

ino_t fs_attr_ino(const struct view *v, dev_t dev, ino_t ino)
{
    if (dev == v->guard->store.dev)
        return ino;
    return ino ^ ((uint64_t)dev * 0x9e3779b97f4a7c15u & ~UINT64_C(0xffffffffff));
}

void fs_attr_show(const struct view *v, struct inode *i, struct stat *st)
{
    if (S_ISREG(i->type)) {
        fs_attr_note_ids(i, st);
        image_stat(i, st);
    }
    if (i->nodeid == FUSE_ROOT_ID && st->st_nlink > 2)
        st->st_nlink--; /* the hidden directory's ".." */
    st->st_ino = fs_attr_ino(v, st->st_dev, st->st_ino);
}

/* As fresh as the storage's client thinks fit (acregmin= on NFS): nothing is decided by it. */
int fs_attr_get(struct view *v, struct inode *i, struct stat *ret)
{
    struct stat st;
    if (fstatat(i->fd, "", &st, AT_EMPTY_PATH) < 0)
        return -errno;
    fs_attr_show(v, i, &st);
    *ret = st;
    return 0;
}

double fs_attr_timeout(struct view *v, struct inode *i, const struct stat *st)
{
    if (v->attr_timeout <= 0 || atomic_load(&i->uncached) > 0)
        return 0;
    inode_show(v->guard->inodes, i, st);
    return v->attr_timeout;
}

void fs_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)fi;
    struct view *v = view_of(req);
    struct inode *i = inode_get(v->guard->inodes, ino);
    struct stat st;
    int r = i ? fs_attr_get(v, i, &st) : -ESTALE;
    double timeout = r == 0 ? fs_attr_timeout(v, i, &st) : 0;
    inode_put(v->guard->inodes, i);
    if (r < 0)
        fuse_reply_err(req, -r);
    else
        fuse_reply_attr(req, &st, timeout);
}

void fs_statfs(fuse_req_t req, fuse_ino_t ino)
{
    struct view *v = view_of(req);
    struct inode *i = inode_get(v->guard->inodes, ino ? ino : FUSE_ROOT_ID);
    struct statvfs st;
    int r = i ? (fstatvfs(i->fd, &st) < 0 ? -errno : 0) : -ESTALE;
    inode_put(v->guard->inodes, i);
    if (r < 0)
        fuse_reply_err(req, -r);
    else
        fuse_reply_statfs(req, &st);
}

/* ---- setattr ---- */

struct change {
    fuse_req_t req;
    struct view *v;
    struct inode *inode; /* pinned */
    struct opener who;
    struct stat attr;
    int to_set;
    uint64_t since_ms; /* of a truncation that may wait */
    struct conflict conflict;
};

static int set_owner(struct change *c)
{
    uid_t uid = c->to_set & FUSE_SET_ATTR_UID ? c->attr.st_uid : (uid_t)-1;
    gid_t gid = c->to_set & FUSE_SET_ATTR_GID ? c->attr.st_gid : (gid_t)-1;
    return fchownat(c->inode->fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0 ? -errno
                                                                                         : 0;
}

static int set_mode(struct change *c)
{
    char path[FS_PROC_PATH_SIZE];
    fs_attr_proc_path(c->inode->fd, path);
    return fchmodat(AT_FDCWD, path, c->attr.st_mode & 07777, 0) < 0 ? -errno : 0;
}

static struct timespec time_to_set(int to_set, int now, int given, struct timespec t)
{
    if (to_set & now)
        return (struct timespec){.tv_nsec = UTIME_NOW};
    return to_set & given ? t : (struct timespec){.tv_nsec = UTIME_OMIT};
}

static int set_times(struct change *c)
{
    struct timespec tv[2] = {
        time_to_set(c->to_set, FUSE_SET_ATTR_ATIME_NOW, FUSE_SET_ATTR_ATIME, c->attr.st_atim),
        time_to_set(c->to_set, FUSE_SET_ATTR_MTIME_NOW, FUSE_SET_ATTR_MTIME, c->attr.st_mtim),
    };
    if (S_ISREG(c->inode->type))
        return image_set_times(c->v->guard, c->inode, tv, &c->conflict);
    return utimensat(c->inode->fd, "", tv, AT_EMPTY_PATH) < 0 ? -errno : 0;
}

/* The kernel of the view has checked that the caller may. On storage that does not let this daemon
 * change what is not its own (NFS with root squash) it is done as the caller. */
static int as_either(struct change *c, int (*fn)(struct change *c))
{
    int r = fn(c);
    if (!io_err_denied(r))
        return r;
    struct cred cred;
    if (cred_enter(c->req, &cred) < 0)
        return r;
    r = fn(c);
    cred_leave(&cred);
    return r;
}

/* chown clears set-id bits: before the mode. */
static int set_others(struct change *c)
{
    int r = 0;
    if (c->to_set & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID))
        r = as_either(c, set_owner);
    if (r == 0 && c->to_set & FUSE_SET_ATTR_MODE)
        r = as_either(c, set_mode);
    const int times = FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_ATIME_NOW |
                      FUSE_SET_ATTR_MTIME_NOW;
    if (r == 0 && c->to_set & times)
        r = as_either(c, set_times);
    if (r == -EBUSY) {
        struct opener who;
        cred_opener(c->req, &who);
        image_refused(c->v->guard, c->inode, &who, "a new mtime", &c->conflict);
    }
    return r;
}

/* Sets what is left after the size, answers, and lets the operation go. */
static void change_finish(struct change *c, int r)
{
    struct view *v = c->v;
    struct stat st;
    if (r == 0)
        r = set_others(c);
    if (r == 0)
        r = fs_attr_get(v, c->inode, &st);
    if (r < 0)
        fuse_reply_err(c->req, -r);
    else
        fuse_reply_attr(c->req, &st, fs_attr_timeout(v, c->inode, &st));
    inode_put(v->guard->inodes, c->inode);
}

static bool truncate_turn(void *arg, enum park_turn turn)
{
    struct change *c = arg;
    int r = -EINTR;
    if (turn != PARK_INTERRUPTED) {
        r = image_truncate(c->v->guard, c->inode, &c->who, (uint64_t)c->attr.st_size, &c->conflict);
        if (r == -EBUSY && turn != PARK_LAST &&
            !image_wait_is_vain(c->v->guard, c->inode, &c->who, c->since_ms, &c->conflict))
            return false;
        if (r == -EBUSY)
            image_refused(c->v->guard, c->inode, &c->who, "truncate", &c->conflict);
        if (r == 0)
            fs_attr_drop_ids(c->req, c->inode);
    }
    change_finish(c, r);
    free(c);
    return true;
}

/* truncate(2) by path: may have to wait for another holder. */
static void truncate_by_path(const struct change *c)
{
    struct change *op = malloc(sizeof(*op));
    if (!op) {
        struct change copy = *c;
        change_finish(&copy, -ENOMEM);
        return;
    }
    *op = *c;
    cred_opener(c->req, &op->who);
    op->since_ms = base_now_ms();
    park_start(c->v->park, c->req, truncate_turn, op, c->v->guard->opt.wait_s * UINT64_C(1000));
}

static void truncate_by_handle(struct change *c, struct handle *h)
{
    int r = image_first_change(c->v->guard, h, NULL);
    if (r == 0)
        r = image_ftruncate(c->v->guard, h, (uint64_t)c->attr.st_size);
    if (r == 0)
        fs_attr_drop_ids(c->req, c->inode);
    change_finish(c, r);
}

void fs_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
                struct fuse_file_info *fi)
{
    struct view *v = view_of(req);
    struct change c = {.req = req, .v = v, .attr = *attr, .to_set = to_set};
    bool named;
    struct handle *h = fi ? handle_get(v->guard->handles, fi->fh) : NULL;
    c.inode = inode_get(v->guard->inodes, ino);
    if (!c.inode) {
        fuse_reply_err(req, ESTALE);
        return;
    }
    if (!(to_set & FUSE_SET_ATTR_SIZE))
        change_finish(&c, 0);
    else if (h && h->inode == c.inode && (h->writer || image_manager_expected(h)))
        truncate_by_handle(&c, h);
    else if (fs_name_moved(req, c.inode, &named))
        change_finish(&c, -ESTALE);
    else
        truncate_by_path(&c);
}

void fs_attr_note_ids(struct inode *i, const struct stat *st)
{
    /* Only drop_ids() says that there are none: what is shown here may be older than a chmod. */
    if (S_ISREG(st->st_mode) && st->st_mode & (S_ISUID | S_ISGID) &&
        !atomic_load_explicit(&i->set_ids, memory_order_relaxed))
        atomic_store(&i->set_ids, true);
}

/* As setattr_should_drop_suidgid(), fs/attr.c. */
static void drop_ids(fuse_req_t req, struct inode *i)
{
    struct stat st;
    atomic_store(&i->set_ids, false); /* before the look: a chmod from here on says otherwise */
    if (io_fresh_stat(i->fd, &st) < 0) {
        atomic_store(&i->set_ids, true);
        return;
    }
    mode_t drop = st.st_mode & S_ISUID;
    if (st.st_mode & S_ISGID && (st.st_mode & S_IXGRP || !cred_in_group(req, st.st_gid)))
        drop |= S_ISGID;
    struct change c = {.req = req, .inode = i, .attr.st_mode = st.st_mode & ~drop};
    if (drop && as_either(&c, set_mode) == 0)
        st.st_mode &= ~drop;
    fs_attr_note_ids(i, &st);
    if (drop)
        view_forget_attr(view_of(req), i);
}

void fs_attr_drop_ids(fuse_req_t req, struct inode *i)
{
    const struct fuse_ctx *ctx = fuse_req_ctx(req);
    if (atomic_load_explicit(&i->set_ids, memory_order_relaxed) &&
        (ctx->uid != 0 || opener_lacks_fsetid(ctx->pid)))
        drop_ids(req, i);
}

/* ---- extended attributes ---- */

struct xattr {
    char path[FS_PROC_PATH_SIZE];
    const char *name;
    const char *value;
    size_t size;
    int flags;
};

static int xattr_set(const struct xattr *x)
{
    return setxattr(x->path, x->name, x->value, x->size, x->flags) < 0 ? -errno : 0;
}

static int xattr_remove(const struct xattr *x)
{
    return removexattr(x->path, x->name) < 0 ? -errno : 0;
}

static int xattr_as_caller(fuse_req_t req, const struct xattr *x, int (*fn)(const struct xattr *x))
{
    struct cred cred;
    int r = cred_enter(req, &cred);
    if (r < 0)
        return r;
    r = fn(x);
    cred_leave(&cred);
    return r;
}

static int xattr_change(fuse_req_t req, const struct xattr *x, int (*fn)(const struct xattr *x))
{
    /* Setting an access ACL clears the set-group-id bit for a caller outside the group; only the
     * datastore can decide that. */
    bool acl = strcmp(x->name, "system.posix_acl_access") == 0 && fuse_req_ctx(req)->uid != 0;
    int r = acl ? xattr_as_caller(req, x, fn) : fn(x);
    if (!io_err_denied(r))
        return r;
    return acl ? fn(x) : xattr_as_caller(req, x, fn);
}

static void xattr_run(fuse_req_t req, fuse_ino_t ino, struct xattr *x,
                      int (*fn)(const struct xattr *x))
{
    struct view *v = view_of(req);
    struct inode *i = inode_get(v->guard->inodes, ino);
    int r = -ESTALE;
    if (i) {
        fs_attr_proc_path(i->fd, x->path);
        r = xattr_change(req, x, fn);
    }
    inode_put(v->guard->inodes, i);
    fuse_reply_err(req, -r);
}

void fs_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size,
                 int flags)
{
    struct xattr x = {.name = name, .value = value, .size = size, .flags = flags};
    xattr_run(req, ino, &x, xattr_set);
}

void fs_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
    struct xattr x = {.name = name};
    xattr_run(req, ino, &x, xattr_remove);
}

static ssize_t xattr_get(const char *path, const char *name, char *buf, size_t size)
{
    ssize_t n = getxattr(path, name, buf, size);
    return n < 0 ? -errno : n;
}

/* Takes the names out that the kernel shows only to those who may read them: it looked at us, not
 * at the caller. */
static size_t hide_trusted(char *list, size_t len)
{
    size_t kept = 0;
    for (size_t at = 0; at < len;) {
        size_t n = strlen(list + at) + 1;
        if (strncmp(list + at, XATTR_TRUSTED_PREFIX, XATTR_TRUSTED_PREFIX_LEN) != 0) {
            memmove(list + kept, list + at, n);
            kept += n;
        }
        at += n;
    }
    return kept;
}

static ssize_t xattr_list(const char *path, bool root, char *buf, size_t size)
{
    _cleanup_free_ char *all = malloc(XATTR_LIST_MAX);
    if (!all)
        return -ENOMEM;
    ssize_t n = listxattr(path, all, XATTR_LIST_MAX);
    if (n < 0)
        return -errno;
    size_t len = root ? (size_t)n : hide_trusted(all, (size_t)n);
    if (size > 0 && len > size)
        return -ERANGE;
    if (size > 0)
        memcpy(buf, all, len);
    return (ssize_t)len;
}

/* name NULL: the list of names. */
static void xattr_answer(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    struct view *v = view_of(req);
    struct inode *i = inode_get(v->guard->inodes, ino);
    _cleanup_free_ char *buf = malloc(size + 1);
    ssize_t n = i ? -ENOMEM : -ESTALE;
    if (i && buf) {
        char path[FS_PROC_PATH_SIZE];
        fs_attr_proc_path(i->fd, path);
        n = name ? xattr_get(path, name, buf, size)
                 : xattr_list(path, fuse_req_ctx(req)->uid == 0, buf, size);
    }
    inode_put(v->guard->inodes, i);
    if (n < 0)
        fuse_reply_err(req, (int)-n);
    else if (size == 0)
        fuse_reply_xattr(req, (size_t)n);
    else
        fuse_reply_buf(req, buf, (size_t)n);
}

void fs_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    xattr_answer(req, ino, name, size);
}

void fs_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
    xattr_answer(req, ino, NULL, size);
}
