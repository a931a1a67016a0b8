#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

#include "core/hook.h"
#include "daemon/cred.h"
#include "daemon/fs.h"
#include "daemon/image.h"
#include "daemon/image_wait.h"
#include "daemon/park.h"

#define CLIMB_MAX 4096 /* levels from a directory to the root: PATH_MAX holds no more */
#define CHASE_MAX 64   /* times that a name may change its file while it is being removed */

bool fs_name_hidden(const struct daemon *d, const struct inode *dir, const char *name)
{
    (void)d;
    return dir->nodeid == FUSE_ROOT_ID && strcmp(name, DG_DIR) == 0;
}

/* The same under any other spelling (a datastore that folds case) and at any other place. */
static bool is_hidden_dir(const struct daemon *d, const struct stat *st)
{
    return st->st_ino == d->store.dir_ino && st->st_dev == d->store.dev;
}

/* ---- lookup ---- */

/* Is the directory below the root of the view? One that another host moved out of the datastore leads to
 * places that are none of ours. */
static bool is_beneath(struct daemon *d, int dir_fd)
{
    struct inode *root = inode_get(d->inodes, FUSE_ROOT_ID);
    struct stat st, last = {0};
    int fd = dir_fd;
    bool found = false;
    for (int level = 0; level < CLIMB_MAX && fstat(fd, &st) == 0; level++) {
        found = st.st_dev == root->dev && st.st_ino == root->ino;
        if (found || (st.st_dev == last.st_dev && st.st_ino == last.st_ino))
            break;
        last = st;
        int up = openat(fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (fd != dir_fd)
            close(fd);
        fd = up;
    }
    if (fd >= 0 && fd != dir_fd)
        close(fd);
    inode_put(d->inodes, root);
    return found;
}

/* "..", for NFS export. RESOLVE_BENEATH has no parent for the directory that it starts from. */
static int open_parent(struct daemon *d, const struct inode *dir)
{
    if (dir->nodeid == FUSE_ROOT_ID)
        return io_open_beneath(dir->fd, ".", O_PATH | O_DIRECTORY, 0);
    int fd = openat(dir->fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (is_beneath(d, fd))
        return fd;
    close(fd);
    return -ESTALE;
}

/* Opens one name, O_PATH, never following a symbolic link. fd or -errno. A plain lookup may use what the storage's client has cached: nothing is
 * decided by it, an open looks again (fs_name_moved), and on NFS it would cost a round trip for each name on every path. */
static int name_open(struct daemon *d, const struct inode *dir, const char *name, bool fresh,
                     struct stat *ret)
{
    if (fs_name_hidden(d, dir, name))
        return -ENOENT;
    _cleanup_close_ int fd = strcmp(name, "..") == 0 ? open_parent(d, dir)
                             : fresh                 ? io_fresh_open(dir->fd, name, O_PATH | O_NOFOLLOW)
                                                     : io_open_beneath(dir->fd, name, O_PATH | O_NOFOLLOW, 0);
    if (fd < 0)
        return fd;
    if (fstatat(fd, "", ret, AT_EMPTY_PATH) < 0)
        return -errno;
    if (is_hidden_dir(d, ret))
        return -ENOENT;
    return base_steal_fd(&fd);
}

/* The inode of a name, pinned; *ret_st as on the datastore. */
static int name_inode(struct daemon *d, struct inode *dir, const char *name, bool lookup, bool fresh,
                      struct stat *ret_st, struct inode **ret)
{
    int fd = name_open(d, dir, name, fresh, ret_st);
    if (fd < 0)
        return fd;
    struct inode *i = inode_enter(d->inodes, fd, ret_st, lookup);
    if (!i)
        return -ENOMEM;
    *ret = i;
    return 0;
}

/* A handle from an NFS client names the inode itself with ".". */
static int self_inode(struct daemon *d, struct inode *dir, struct stat *ret_st, struct inode **ret)
{
    if (fstatat(dir->fd, "", ret_st, AT_EMPTY_PATH) < 0)
        return -errno;
    int fd = fcntl(dir->fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    *ret = inode_enter(d->inodes, fd, ret_st, true);
    return *ret ? 0 : -ENOMEM;
}

int fs_name_lookup(struct daemon *d, struct inode *dir, const char *name, bool fresh,
                   struct fuse_entry_param *ret, struct inode **ret_inode)
{
    struct inode *i;
    struct stat st;
    int r =
        strcmp(name, ".") == 0 ? self_inode(d, dir, &st, &i) : name_inode(d, dir, name, true, fresh, &st, &i);
    if (r < 0)
        return r;
    fs_attr_show(d, i, &st);
    inode_named(d->inodes, i, dir, name);
    *ret = (struct fuse_entry_param){.ino = i->nodeid, .generation = i->generation, .attr = st};
    if (ret_inode)
        *ret_inode = i;
    else
        inode_put(d->inodes, i);
    return 0;
}

bool fs_name_moved(fuse_req_t req, struct inode *i)
{
    struct daemon *d = daemon_of(req);
    char name[NAME_MAX + 1];
    struct inode *dir = inode_last_place(d->inodes, i, name, sizeof(name));
    if (!dir)
        return false;
    _cleanup_close_ int fd = io_fresh_open(dir->fd, name, O_PATH | O_NOFOLLOW);
    bool moved = fd >= 0 ? !inode_is_file(d->inodes, i, fd) : fd == -ENOENT;
    moved = moved && inode_doubt_name(d->inodes, i, dir, (uint64_t)fuse_req_ctx(req)->pid);
    inode_put(d->inodes, dir);
    return moved;
}

/* A reply that did not arrive (the caller was interrupted) leaves a lookup that the kernel does not know of.
 */
static void reply_entry(struct daemon *d, fuse_req_t req, const struct fuse_entry_param *e)
{
    if (fuse_reply_entry(req, e) < 0)
        inode_forget(d->inodes, e->ino, 1);
}

/* Looks up as the daemon and, where the storage does not let it (root squash), as the caller. */
static int lookup_for(fuse_req_t req, struct inode *dir, const char *name, struct fuse_entry_param *ret)
{
    struct daemon *d = daemon_of(req);
    int r = fs_name_lookup(d, dir, name, false, ret, NULL);
    struct cred cred;
    if (r != -EACCES || cred_enter(req, &cred) < 0)
        return r;
    r = fs_name_lookup(d, dir, name, false, ret, NULL);
    cred_leave(&cred);
    return r;
}

void fs_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct daemon *d = daemon_of(req);
    struct inode *dir = inode_get(d->inodes, parent);
    struct fuse_entry_param e;
    int r = dir ? lookup_for(req, dir, name, &e) : -ESTALE;
    inode_put(d->inodes, dir);
    if (r < 0)
        fuse_reply_err(req, -r);
    else
        reply_entry(d, req, &e);
}

void fs_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup)
{
    inode_forget(daemon_of(req)->inodes, ino, nlookup);
    fuse_reply_none(req);
}

void fs_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
    for (size_t n = 0; n < count; n++)
        inode_forget(daemon_of(req)->inodes, forgets[n].ino, forgets[n].nlookup);
    fuse_reply_none(req);
}

void fs_readlink(fuse_req_t req, fuse_ino_t ino)
{
    struct daemon *d = daemon_of(req);
    struct inode *i = inode_get(d->inodes, ino);
    char target[PATH_MAX + 1];
    ssize_t n = -ESTALE;
    if (i) {
        n = readlinkat(i->fd, "", target, sizeof(target) - 1);
        n = n < 0 ? -errno : n;
    }
    inode_put(d->inodes, i);
    if (n < 0) {
        fuse_reply_err(req, (int)-n);
        return;
    }
    target[n] = '\0';
    fuse_reply_readlink(req, target);
}

/* ---- new names ---- */

struct make {
    int (*fn)(const struct make *m, int dir_fd, const char *name); /* 0 or -1 with errno */
    mode_t mode;
    dev_t rdev;
    const char *target; /* of a symbolic link */
    int source_fd;      /* of a hard link */
};

static int make_node(const struct make *m, int dir_fd, const char *name)
{
    return mknodat(dir_fd, name, m->mode, m->rdev);
}

static int make_dir(const struct make *m, int dir_fd, const char *name)
{
    return mkdirat(dir_fd, name, m->mode);
}

static int make_symlink(const struct make *m, int dir_fd, const char *name)
{
    return symlinkat(m->target, dir_fd, name);
}

static int make_link(const struct make *m, int dir_fd, const char *name)
{
    char path[FS_PROC_PATH_SIZE];
    fs_attr_proc_path(m->source_fd, path);
    return linkat(AT_FDCWD, path, dir_fd, name, AT_SYMLINK_FOLLOW);
}

/* Makes a name as the caller, so that a new file is his. A hard link makes no file: what the storage forbids
 * him (protected_hardlinks sees another picture there) but the kernel of the view allowed is done by the
 * daemon. */
static int make_as_caller(fuse_req_t req, const struct make *m, const struct inode *dir, const char *name)
{
    struct cred cred;
    int r = cred_enter(req, &cred);
    if (r < 0)
        return r;
    r = m->fn(m, dir->fd, name) < 0 ? -errno : 0;
    cred_leave(&cred);
    if ((r == -EPERM || r == -EACCES) && m->fn == make_link)
        r = m->fn(m, dir->fd, name) < 0 ? -errno : 0;
    return r;
}

static void make_name(fuse_req_t req, const struct make *m, fuse_ino_t parent, const char *name)
{
    struct daemon *d = daemon_of(req);
    struct inode *dir = inode_get(d->inodes, parent);
    struct fuse_entry_param e;
    int r = -ESTALE;
    if (dir)
        r = fs_name_hidden(d, dir, name) ? -EPERM : make_as_caller(req, m, dir, name);
    if (r == 0)
        r = lookup_for(req, dir, name, &e);
    inode_put(d->inodes, dir);
    if (r < 0)
        fuse_reply_err(req, -r);
    else
        reply_entry(d, req, &e);
}

void fs_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
    struct make m = {.fn = make_node, .mode = mode, .rdev = rdev};
    make_name(req, &m, parent, name);
}

void fs_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
    struct make m = {.fn = make_dir, .mode = mode};
    make_name(req, &m, parent, name);
}

void fs_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
    struct make m = {.fn = make_symlink, .target = target};
    make_name(req, &m, parent, name);
}

void fs_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t newparent, const char *newname)
{
    struct daemon *d = daemon_of(req);
    struct inode *i = inode_get(d->inodes, ino);
    if (!i) {
        fuse_reply_err(req, ESTALE);
        return;
    }
    struct make m = {.fn = make_link, .source_fd = i->fd};
    make_name(req, &m, newparent, newname);
    inode_put(d->inodes, i);
}

/* ---- names that go: unlink, rename over a file, exchange ---- */

/* An image must not vanish under its holder, here or on another host: the file behind a name that goes is
 * held meanwhile. */
struct removal {
    fuse_req_t req;
    struct daemon *d;
    struct opener who;
    const char *what;
    bool rename;
    unsigned flags; /* of renameat2(2) */
    uint64_t since_ms;
    struct inode *dir[2]; /* pinned; [1] for rename */
    char *name[2];
};

struct victims {
    unsigned n;
    struct inode *inode[2]; /* pinned, by rising inode number */
    unsigned slot[2];       /* which name of the removal */
    struct hold hold[2];
    bool absent; /* the target of a rename has no file */
};

static void removal_free(struct removal *op)
{
    for (int s = 0; s < 2; s++) {
        inode_put(op->d->inodes, op->dir[s]);
        free(op->name[s]);
    }
    free(op);
}

static void victims_put(struct removal *op, struct victims *v)
{
    for (unsigned n = 0; n < v->n; n++)
        inode_put(op->d->inodes, v->inode[n]);
}

static int victim_find(struct removal *op, unsigned slot, struct inode **ret)
{
    struct stat st;
    int r = name_inode(op->d, op->dir[slot], op->name[slot], false, true, &st, ret);
    struct cred cred;
    if (r != -EACCES || cred_enter(op->req, &cred) < 0)
        return r;
    r = name_inode(op->d, op->dir[slot], op->name[slot], false, true, &st, ret);
    cred_leave(&cred);
    return r;
}

static int victim_add(struct removal *op, unsigned slot, struct victims *v)
{
    struct inode *i;
    int r = victim_find(op, slot, &i);
    if (r == -ENOENT) {
        v->absent = true;
        return 0;
    }
    if (r < 0)
        return r;
    if (!S_ISREG(i->type) || (v->n == 1 && v->inode[0] == i)) {
        inode_put(op->d->inodes, i);
        return 0;
    }
    unsigned at = v->n++;
    if (at == 1 && i->ino < v->inode[0]->ino) {
        v->inode[1] = v->inode[0];
        v->slot[1] = v->slot[0];
        at = 0;
    }
    v->inode[at] = i;
    v->slot[at] = slot;
    return 0;
}

static int victims_find(struct removal *op, struct victims *v)
{
    *v = (struct victims){0};
    int r = 0;
    if (!op->rename || op->flags & RENAME_EXCHANGE)
        r = victim_add(op, 0, v);
    if (r == 0 && op->rename && !(op->flags & RENAME_NOREPLACE))
        r = victim_add(op, 1, v);
    if (r < 0)
        victims_put(op, v);
    return r;
}

static void victims_unhold(struct removal *op, struct victims *v, unsigned n)
{
    while (n-- > 0)
        image_unhold(op->d, &v->hold[n]);
}

/* Both or none: one that is held while the other is waited for could make two hosts wait for each other. */
static int victims_hold(struct removal *op, struct victims *v, unsigned *ret_failed)
{
    for (unsigned n = 0; n < v->n; n++) {
        int r = image_hold(op->d, v->inode[n], &op->who, op->what, &v->hold[n]);
        if (r < 0) {
            victims_unhold(op, v, n);
            *ret_failed = n;
            return r;
        }
    }
    return 0;
}

/* Do the names still mean the files that were held, and is the one that led nowhere still free? (The storage may not know RENAME_NOREPLACE.) */
static bool victims_same(struct removal *op, const struct victims *v)
{
    if (v->absent && op->rename && !(op->flags & RENAME_EXCHANGE)) {
        struct inode *now = NULL;
        int r = victim_find(op, 1, &now);
        inode_put(op->d->inodes, now);
        if (r != -ENOENT)
            return false;
    }
    for (unsigned n = 0; n < v->n; n++) {
        struct inode *now = NULL;
        int r = victim_find(op, v->slot[n], &now);
        inode_put(op->d->inodes, now);
        if (r < 0 || now != v->inode[n])
            return false;
    }
    return true;
}

static int rename_now(const struct removal *op, unsigned flags)
{
    return renameat2(op->dir[0]->fd, op->name[0], op->dir[1]->fd, op->name[1], flags) < 0 ? -errno : 0;
}

static int remove_now(const struct removal *op, bool absent)
{
    if (!op->rename)
        return unlinkat(op->dir[0]->fd, op->name[0], 0) < 0 ? -errno : 0;
    if (op->flags || !absent)
        return rename_now(op, op->flags);
    /* Nothing was there to hold: nothing may be replaced. NFS cannot promise that (EINVAL). */
    int r = rename_now(op, RENAME_NOREPLACE);
    return r == -EINVAL || r == -ENOSYS ? rename_now(op, 0) : r;
}

/* As the caller, for the storage may know better; and as the daemon where the caller's groups could not be
 * learned (another pid namespace), for the kernel of the view has checked already. */
static int remove_for(const struct removal *op, bool absent)
{
    struct cred cred;
    int r = cred_enter(op->req, &cred);
    if (r < 0)
        return r;
    r = remove_now(op, absent);
    cred_leave(&cred);
    return r == -EPERM || r == -EACCES ? remove_now(op, absent) : r;
}

/* *ret_busy: the image that is in the way, pinned, for -EBUSY. */
static int removal_try(struct removal *op, struct inode **ret_busy)
{
    for (int chase = 0; chase < CHASE_MAX; chase++) {
        struct victims v;
        unsigned failed = 0;
        int r = victims_find(op, &v);
        if (r < 0)
            return r;
        r = victims_hold(op, &v, &failed);
        if (r == -EBUSY) {
            *ret_busy = v.inode[failed];
            inode_pin(op->d->inodes, *ret_busy);
        }
        if (r < 0) {
            victims_put(op, &v);
            return r;
        }
        bool same = victims_same(op, &v);
        HOOK("name.remove.check");
        for (unsigned n = 0; same && r == 0 && n < v.n; n++)
            r = image_hold_check(op->d, &v.hold[n]);
        if (same && r == 0)
            r = remove_for(op, v.absent);
        victims_unhold(op, &v, v.n);
        victims_put(op, &v);
        bool appeared = r == -EEXIST && op->rename && !(op->flags & RENAME_NOREPLACE) && v.absent;
        if (same && !appeared)
            return r;
    }
    return -EAGAIN;
}

static bool removal_turn(void *arg, enum park_turn turn)
{
    struct removal *op = arg;
    struct inode *busy = NULL;
    int r = turn == PARK_INTERRUPTED ? -EINTR : removal_try(op, &busy);
    if (busy) {
        bool last = turn == PARK_LAST || image_wait_is_vain(op->d, busy, &op->who, op->since_ms);
        if (last)
            image_refused(op->d, busy, &op->who, op->what, r);
        inode_put(op->d->inodes, busy);
        if (!last)
            return false;
    }
    fuse_req_t req = op->req;
    removal_free(op);
    fuse_reply_err(req, -r);
    return true;
}

static struct removal *removal_new(fuse_req_t req, const char *what, fuse_ino_t parent, const char *name)
{
    struct removal *op = calloc(1, sizeof(*op));
    if (!op)
        return NULL;
    op->req = req;
    op->d = daemon_of(req);
    op->what = what;
    op->since_ms = base_now_ms();
    op->dir[0] = inode_get(op->d->inodes, parent);
    op->name[0] = strdup(name);
    cred_opener(req, &op->who);
    return op;
}

static void removal_start(struct removal *op)
{
    park_start(op->d->park, op->req, removal_turn, op, op->d->opt.wait_s * UINT64_C(1000));
}

static void removal_refuse(struct removal *op, fuse_req_t req, int err)
{
    if (op)
        removal_free(op);
    fuse_reply_err(req, err);
}

void fs_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct removal *op = removal_new(req, "unlink", parent, name);
    if (!op || !op->name[0])
        removal_refuse(op, req, ENOMEM);
    else if (!op->dir[0])
        removal_refuse(op, req, ESTALE);
    else if (fs_name_hidden(op->d, op->dir[0], name))
        removal_refuse(op, req, ENOENT);
    else
        removal_start(op);
}

void fs_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct daemon *d = daemon_of(req);
    struct inode *dir = inode_get(d->inodes, parent);
    struct cred cred;
    int r = -ESTALE;
    if (dir)
        r = fs_name_hidden(d, dir, name) ? -ENOENT : cred_enter(req, &cred);
    if (r == 0) {
        r = unlinkat(dir->fd, name, AT_REMOVEDIR) < 0 ? -errno : 0;
        cred_leave(&cred);
        if (r == -EPERM || r == -EACCES) /* as in remove_for() */
            r = unlinkat(dir->fd, name, AT_REMOVEDIR) < 0 ? -errno : 0;
    }
    inode_put(d->inodes, dir);
    fuse_reply_err(req, -r);
}

void fs_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent, const char *newname,
               unsigned flags)
{
    const char *what = flags & RENAME_EXCHANGE ? "exchange" : "rename over it";
    struct removal *op = removal_new(req, what, parent, name);
    if (op) {
        op->rename = true;
        op->flags = flags;
        op->dir[1] = inode_get(op->d->inodes, newparent);
        op->name[1] = strdup(newname);
    }
    if (!op || !op->name[0] || !op->name[1])
        removal_refuse(op, req, ENOMEM);
    else if (flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE))
        removal_refuse(op, req, EINVAL);
    else if (!op->dir[0] || !op->dir[1])
        removal_refuse(op, req, ESTALE);
    else if (fs_name_hidden(op->d, op->dir[0], name) || fs_name_hidden(op->d, op->dir[1], newname))
        removal_refuse(op, req, EPERM);
    else
        removal_start(op);
}
