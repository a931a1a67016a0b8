/* fs_remove.c: names that go or move: unlink, rmdir, rename, exchange. See fs.h. */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

#include "base/hook.h"
#include "base/log.h"
#include "guard/conflict.h"
#include "guard/guard.h"
#include "guard/wait.h"
#include "run/park.h"
#include "run/pool.h"
#include "view/cred.h"
#include "view/fs.h"

#define CHASE_MAX 64 /* times that a name may change its file while it is being removed */

/* ---- names that go: unlink, rename over a file, exchange ---- */

/* An image must not vanish under its holder, here or on another host: the file behind a name that
 * goes is held meanwhile. */
struct removal {
    fuse_req_t req;
    struct view *v;
    struct opener who;
    const char *what;
    bool rename;
    unsigned flags; /* of renameat2(2) */
    uint64_t since_ms;
    struct inode *dir[2]; /* pinned; [1] for rename */
    char *name[2];
    struct conflict conflict; /* of the last attempt */
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
        inode_put(op->v->guard->inodes, op->dir[s]);
        free(op->name[s]);
    }
    free(op);
}

static void victims_put(struct removal *op, struct victims *v)
{
    for (unsigned n = 0; n < v->n; n++)
        inode_put(op->v->guard->inodes, v->inode[n]);
}

static int victim_find(struct removal *op, unsigned slot, struct inode **ret)
{
    struct stat st;
    int r = fs_name_inode(op->v, op->dir[slot], op->name[slot], false, true, &st, ret);
    struct cred cred;
    if (r != -EACCES || cred_enter_unmasked(op->req, &cred) < 0)
        return r;
    r = fs_name_inode(op->v, op->dir[slot], op->name[slot], false, true, &st, ret);
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
        inode_put(op->v->guard->inodes, i);
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
        image_unhold(op->v->guard, &v->hold[n]);
}

/* Both or none: one that is held while the other is waited for could make two hosts wait for each
 * other. */
static int victims_hold(struct removal *op, struct victims *v, unsigned *ret_failed)
{
    for (unsigned n = 0; n < v->n; n++) {
        int r = image_hold(op->v->guard, v->inode[n], &op->who, op->what, false, &v->hold[n],
                           &op->conflict);
        if (r < 0) {
            victims_unhold(op, v, n);
            *ret_failed = n;
            return r;
        }
    }
    return 0;
}

/* Do the names still mean the files that were held, and is the one that led nowhere still free?
 * (The storage may not know RENAME_NOREPLACE.) */
static bool victims_same(struct removal *op, const struct victims *v)
{
    if (v->absent && op->rename && !(op->flags & RENAME_EXCHANGE)) {
        struct inode *now = NULL;
        int r = victim_find(op, 1, &now);
        inode_put(op->v->guard->inodes, now);
        if (r != -ENOENT)
            return false;
    }
    for (unsigned n = 0; n < v->n; n++) {
        struct inode *now = NULL;
        int r = victim_find(op, v->slot[n], &now);
        inode_put(op->v->guard->inodes, now);
        if (r < 0 || now != v->inode[n])
            return false;
    }
    return true;
}

static int rename_now(const struct removal *op, unsigned flags)
{
    return renameat2(op->dir[0]->fd, op->name[0], op->dir[1]->fd, op->name[1], flags) < 0 ? -errno
                                                                                          : 0;
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

/* As the caller, for the storage may know better; and as the daemon where the caller's groups could
 * not be learned (another pid namespace), for the kernel of the view has checked already. */
static int remove_for(const struct removal *op, bool absent)
{
    struct cred cred;
    int r = cred_enter_unmasked(op->req, &cred);
    if (r < 0)
        return r;
    r = remove_now(op, absent);
    cred_leave(&cred);
    return io_err_denied(r) ? remove_now(op, absent) : r;
}

/* What its holder has removed is forgotten, claim and seal, when he closes it: no crash of the
 * storage may bring the name back then. */
static void sync_removal(const struct removal *op, const struct victims *v)
{
    bool joined = false;
    for (unsigned n = 0; n < v->n; n++)
        joined |= v->hold[n].joined;
    HOOK("name.removed");
    for (int s = 0; joined && s < 2 && op->dir[s]; s++) {
        _cleanup_close_ int fd = io_reopen(op->dir[s]->fd, O_RDONLY | O_DIRECTORY);
        int r = fd < 0 ? fd : io_fsync(fd);
        if (r < 0)
            log_debug("the removal of '%s' is not durable: %s", op->name[s], strerror(-r));
    }
}

/* ---- what moves away ---- */

struct beneath {
    struct removal *op;
    const struct inode *dir;
    struct inode **busy;
};

/* Is this needed file in the directory that is about to move? */
static int look_beneath(void *arg, const char *path)
{
    struct beneath *b = arg;
    struct view *v = b->op->v;
    char up[PATH_MAX];
    struct stat st;
    snprintf(up, sizeof(up), "%s", path);
    char *slash = strrchr(up, '/');
    if (!slash)
        return 0;
    *slash = '\0';
    _cleanup_close_ int dir_fd = io_fresh_open(v->guard->store.root_fd, up, O_PATH | O_DIRECTORY);
    if (dir_fd < 0 || !fs_name_beneath(dir_fd, b->dir))
        return 0;
    int fd = io_fresh_open(v->guard->store.root_fd, path, O_PATH | O_NOFOLLOW);
    if (fd >= 0 && fstat(fd, &st) < 0) {
        close(fd);
        fd = -1;
    }
    struct inode *i = fd < 0 ? NULL : inode_enter(v->guard->inodes, fd, &st, false);
    int r = i ? image_moving(v->guard, i, &b->op->who, &b->op->conflict) : 0;
    if (r == -EBUSY)
        *b->busy = i;
    else
        inode_put(v->guard->inodes, i);
    return r;
}

/* A file that a held image needs does not leave its name either, alone or with its directory. Those
 * of an exchange are held, as what is removed. */
static int source_moving(struct removal *op, unsigned slot, struct inode **ret_busy)
{
    struct inode *i = NULL;
    int r = victim_find(op, slot, &i);
    if (r < 0)
        return 0; /* the rename itself will say so */
    if (S_ISDIR(i->type)) {
        struct beneath b = {.op = op, .dir = i, .busy = ret_busy};
        r = image_each_needed(op->v->guard, &op->who, look_beneath, &b);
    } else if (!(op->flags & RENAME_EXCHANGE)) {
        r = image_moving(op->v->guard, i, &op->who, &op->conflict);
        if (r == -EBUSY) {
            *ret_busy = i;
            return r;
        }
    }
    inode_put(op->v->guard->inodes, i);
    return r;
}

static int sources_moving(struct removal *op, struct inode **ret_busy)
{
    int r = op->rename ? source_moving(op, 0, ret_busy) : 0;
    if (r == 0 && op->rename && op->flags & RENAME_EXCHANGE)
        r = source_moving(op, 1, ret_busy);
    return r;
}

/* After a rename: what was moved. The kernel knows its new name by itself and does not look it up.
 */
static void tell_renamed(struct removal *op)
{
    for (unsigned slot = 0; slot < 2 && op->rename; slot++) {
        struct inode *i = NULL;
        if (slot == 0 && !(op->flags & RENAME_EXCHANGE))
            continue;
        if (victim_find(op, slot, &i) == 0 && (S_ISREG(i->type) || S_ISDIR(i->type))) {
            inode_named(op->v->guard->inodes, i, op->dir[slot], op->name[slot], 0);
            image_renamed(op->v->guard, i);
        }
        inode_put(op->v->guard->inodes, i);
    }
}

/* *ret_busy: the image that is in the way, pinned, for -EBUSY. */
static int removal_try(struct removal *op, struct inode **ret_busy)
{
    int moving = sources_moving(op, ret_busy);
    if (moving < 0)
        return moving;
    for (int chase = 0; chase < CHASE_MAX; chase++) {
        struct victims v;
        unsigned failed = 0;
        int r = victims_find(op, &v);
        if (r < 0)
            return r;
        r = victims_hold(op, &v, &failed);
        if (r == -EBUSY) {
            *ret_busy = v.inode[failed];
            inode_pin(op->v->guard->inodes, *ret_busy);
        }
        if (r < 0) {
            victims_put(op, &v);
            return r;
        }
        bool same = victims_same(op, &v);
        HOOK("name.remove.check");
        for (unsigned n = 0; same && r == 0 && n < v.n; n++)
            r = image_hold_check(op->v->guard, &v.hold[n]);
        if (same && r == 0)
            r = remove_for(op, v.absent);
        if (same && r == 0)
            sync_removal(op, &v);
        victims_unhold(op, &v, v.n);
        victims_put(op, &v);
        if (same && r == 0)
            tell_renamed(op);
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
        bool last = turn == PARK_LAST ||
                    image_wait_is_vain(op->v->guard, busy, &op->who, op->since_ms, &op->conflict);
        if (last)
            image_refused(op->v->guard, busy, &op->who, op->what, &op->conflict);
        inode_put(op->v->guard->inodes, busy);
        if (!last)
            return false;
    }
    fuse_req_t req = op->req;
    removal_free(op);
    fuse_reply_err(req, -r);
    return true;
}

static struct removal *removal_new(fuse_req_t req, const char *what, fuse_ino_t parent,
                                   const char *name)
{
    struct removal *op = calloc(1, sizeof(*op));
    if (!op)
        return NULL;
    op->req = req;
    op->v = view_of(req);
    op->what = what;
    op->since_ms = base_now_ms();
    op->dir[0] = inode_get(op->v->guard->inodes, parent);
    op->name[0] = strdup(name);
    return op;
}

static void removal_start(void *arg)
{
    struct removal *op = arg;
    cred_opener(op->req, &op->who);
    park_start(op->v->park, op->req, removal_turn, op, op->v->guard->opt.wait_s * UINT64_C(1000));
}

static void removal_refuse(struct removal *op, fuse_req_t req, int err)
{
    if (op)
        removal_free(op);
    fuse_reply_err(req, err);
}

/* What needs no hold goes on the thread that read the request. false: it may need one, or wait. */
static bool removal_quick(struct removal *op)
{
    struct victims v;
    if (atomic_load(&op->v->guard->stopping) || victims_find(op, &v) < 0)
        return false;
    bool may = v.n == 0 ? !v.absent : image_is_free(op->v->guard, v.inode[0], op->name[0]);
    may = may && victims_same(op, &v);
    victims_put(op, &v);
    if (!may)
        return false;
    fuse_req_t req = op->req;
    int r = remove_for(op, false);
    removal_free(op);
    fuse_reply_err(req, -r);
    return true;
}

void fs_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct removal *op = removal_new(req, "unlink", parent, name);
    if (!op || !op->name[0])
        removal_refuse(op, req, ENOMEM);
    else if (!op->dir[0])
        removal_refuse(op, req, ESTALE);
    else if (fs_name_hidden(op->dir[0], name))
        removal_refuse(op, req, ENOENT);
    else if (!removal_quick(op))
        pool_submit(op->v->guard->pool, removal_start, op);
}

void fs_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct view *v = view_of(req);
    struct inode *dir = inode_get(v->guard->inodes, parent);
    struct cred cred;
    int r = -ESTALE;
    if (dir)
        r = fs_name_hidden(dir, name) ? -ENOENT : cred_enter_unmasked(req, &cred);
    if (r == 0) {
        r = unlinkat(dir->fd, name, AT_REMOVEDIR) < 0 ? -errno : 0;
        cred_leave(&cred);
        if (io_err_denied(r)) /* as in remove_for() */
            r = unlinkat(dir->fd, name, AT_REMOVEDIR) < 0 ? -errno : 0;
    }
    inode_put(v->guard->inodes, dir);
    fuse_reply_err(req, -r);
}

void fs_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
               const char *newname, unsigned flags)
{
    const char *what = flags & RENAME_EXCHANGE ? "exchange" : "rename";
    struct removal *op = removal_new(req, what, parent, name);
    if (op) {
        op->rename = true;
        op->flags = flags;
        op->dir[1] = inode_get(op->v->guard->inodes, newparent);
        op->name[1] = strdup(newname);
    }
    if (!op || !op->name[0] || !op->name[1])
        removal_refuse(op, req, ENOMEM);
    else if (flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE))
        removal_refuse(op, req, EINVAL);
    else if (!op->dir[0] || !op->dir[1])
        removal_refuse(op, req, ESTALE);
    else if (fs_name_hidden(op->dir[0], name) || fs_name_hidden(op->dir[1], newname))
        removal_refuse(op, req, EPERM);
    else
        removal_start(op);
}
