#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

#include "view/cred.h"
#include "view/fs.h"

#define CLIMB_MAX 4096 /* levels from a directory to the root: PATH_MAX holds no more */

bool fs_name_hidden(const struct inode *dir, const char *name)
{
    return dir->nodeid == FUSE_ROOT_ID && strcmp(name, DG_DIR) == 0;
}

/* The same under any other spelling (a datastore that folds case) and at any other place. */
static bool is_hidden_dir(const struct view *v, const struct stat *st)
{
    return st->st_ino == v->guard->store.dir_ino && st->st_dev == v->guard->store.dev;
}

/* ---- lookup ---- */

bool fs_name_beneath(int dir_fd, const struct inode *top)
{
    struct stat st, last = {0};
    int fd = dir_fd;
    bool found = false;
    for (int level = 0; level < CLIMB_MAX && fstat(fd, &st) == 0; level++) {
        found = st.st_dev == top->dev && st.st_ino == top->ino;
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
    return found;
}

/* One that another host moved out of the datastore leads to places that are none of ours. */
static bool is_ours(struct view *v, int dir_fd)
{
    struct inode *root = inode_get(v->guard->inodes, FUSE_ROOT_ID);
    bool ours = fs_name_beneath(dir_fd, root);
    inode_put(v->guard->inodes, root);
    return ours;
}

/* "..", for NFS export. RESOLVE_BENEATH has no parent for the directory that it starts from. */
static int open_parent(struct view *v, const struct inode *dir)
{
    if (dir->nodeid == FUSE_ROOT_ID)
        return io_open_beneath(dir->fd, ".", O_PATH | O_DIRECTORY, 0);
    int fd = openat(dir->fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (is_ours(v, fd))
        return fd;
    close(fd);
    return -ESTALE;
}

/* Opens one name, O_PATH, never following a symbolic link. fd or -errno. A plain lookup may use
 * what the storage's client has cached: nothing is decided by it, an open looks again
 * (fs_name_moved), and on NFS it would cost a round trip for each name on every path. */
static int name_open(struct view *v, const struct inode *dir, const char *name, bool fresh,
                     struct stat *ret)
{
    if (fs_name_hidden(dir, name))
        return -ENOENT;
    _cleanup_close_ int fd = strcmp(name, "..") == 0 ? open_parent(v, dir)
                             : fresh ? io_fresh_open(dir->fd, name, O_PATH | O_NOFOLLOW)
                                     : io_open_beneath(dir->fd, name, O_PATH | O_NOFOLLOW, 0);
    if (fd < 0)
        return fd;
    if (fstatat(fd, "", ret, AT_EMPTY_PATH) < 0)
        return -errno;
    if (is_hidden_dir(v, ret))
        return -ENOENT;
    return base_steal_fd(&fd);
}

/* Without a descriptor, where the storage is this host's alone and the file is known. NULL: it must
 * be opened. */
static struct inode *find_known(struct view *v, const struct inode *dir, const char *name,
                                bool lookup, struct stat *ret_st)
{
    struct inode_table *t = v->guard->inodes;
    if (!inode_is_local(t, dir) || fs_name_hidden(dir, name) || strcmp(name, "..") == 0 ||
        io_local_name(dir->fd, name, ret_st) < 0 || is_hidden_dir(v, ret_st))
        return NULL;
    return inode_find(t, ret_st, lookup);
}

int fs_name_inode(struct view *v, struct inode *dir, const char *name, bool lookup, bool fresh,
                  struct stat *ret_st, struct inode **ret)
{
    bool guess = !lookup || atomic_load_explicit(&v->known_names, memory_order_relaxed);
    struct inode *i = guess ? find_known(v, dir, name, lookup, ret_st) : NULL;
    if (i) {
        *ret = i;
        return 0;
    }
    int fd = name_open(v, dir, name, fresh, ret_st);
    if (fd < 0)
        return fd;
    i = inode_enter(v->guard->inodes, fd, ret_st, lookup);
    if (!i)
        return -ENOMEM;
    atomic_store_explicit(&v->known_names, i->fd != fd, memory_order_relaxed);
    *ret = i;
    return 0;
}

/* A handle from an NFS client names the inode itself with ".". */
static int self_inode(struct view *v, struct inode *dir, struct stat *ret_st, struct inode **ret)
{
    if (fstatat(dir->fd, "", ret_st, AT_EMPTY_PATH) < 0)
        return -errno;
    int fd = fcntl(dir->fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    *ret = inode_enter(v->guard->inodes, fd, ret_st, true);
    return *ret ? 0 : -ENOMEM;
}

double fs_name_timeout(const struct view *v, const struct stat *st)
{
    return S_ISREG(st->st_mode) && st->st_nlink > 1 ? 0 : v->entry_timeout;
}

int fs_name_lookup(struct view *v, struct inode *dir, const char *name, bool fresh,
                   struct fuse_entry_param *ret, struct inode **ret_inode)
{
    struct inode *i;
    struct stat st;
    int r = strcmp(name, ".") == 0 ? self_inode(v, dir, &st, &i)
                                   : fs_name_inode(v, dir, name, true, fresh, &st, &i);
    if (r < 0)
        return r;
    fs_attr_show(v, i, &st);
    inode_named(v->guard->inodes, i, dir, name, fs_name_keep_ms(v));
    *ret = (struct fuse_entry_param){.ino = i->nodeid,
                                     .generation = i->generation,
                                     .attr = st,
                                     .attr_timeout = fs_attr_timeout(v, i, &st),
                                     .entry_timeout = fs_name_timeout(v, &st)};
    if (ret_inode)
        *ret_inode = i;
    else
        inode_put(v->guard->inodes, i);
    return 0;
}

uint64_t fs_name_keep_ms(const struct view *v)
{
    return (uint64_t)(v->entry_timeout * 1000 + 0.999);
}

/* Does the name lead to another file, or nowhere? */
static bool leads_elsewhere(struct view *v, struct inode *i, const struct inode *dir,
                            const char *name)
{
    if (inode_is_local(v->guard->inodes, dir)) {
        struct stat st;
        int r = io_local_name(dir->fd, name, &st);
        return r == 0
                   ? st.st_dev != i->dev || st.st_ino != i->ino || (st.st_mode & S_IFMT) != i->type
                   : r == -ENOENT;
    }
    _cleanup_close_ int fd = io_fresh_open(dir->fd, name, O_PATH | O_NOFOLLOW);
    return fd >= 0 ? !inode_is_file(v->guard->inodes, i, fd) : fd == -ENOENT;
}

/* The kernel may have come by the name that it looked up last, or by the one before, which it need
 * not look up again yet. */
bool fs_name_moved(fuse_req_t req, struct inode *i, bool *ret_named)
{
    struct view *v = view_of(req);
    struct inode_table *t = v->guard->inodes;
    uint64_t pid = (uint64_t)fuse_req_ctx(req)->pid;
    char name[NAME_MAX + 1];
    struct inode *dir = inode_last_place(t, i, name, sizeof(name));
    *ret_named = false;
    if (!dir)
        return false;
    bool moved = leads_elsewhere(v, i, dir, name);
    *ret_named = !moved && inode_is_local(t, dir);
    struct inode *before = moved ? NULL : inode_former_place(t, i, name, sizeof(name));
    if (before) {
        moved = leads_elsewhere(v, i, before, name);
        inode_put(t, dir);
        dir = before;
    }
    if (moved)
        moved = inode_doubt_name(t, i, dir, pid);
    else
        inode_trust_name(t, pid);
    inode_put(t, dir);
    return moved;
}

/* A reply that did not arrive (the caller was interrupted) leaves a lookup that the kernel does not
 * know of.
 */
static void reply_entry(struct view *v, fuse_req_t req, const struct fuse_entry_param *e)
{
    if (fuse_reply_entry(req, e) < 0)
        inode_forget(v->guard->inodes, e->ino, 1);
}

/* Looks up as the daemon and, where the storage does not let it (root squash), as the caller. */
static int lookup_for(fuse_req_t req, struct inode *dir, const char *name,
                      struct fuse_entry_param *ret)
{
    struct view *v = view_of(req);
    int r = fs_name_lookup(v, dir, name, false, ret, NULL);
    struct cred cred;
    if (r != -EACCES || cred_enter(req, &cred) < 0)
        return r;
    r = fs_name_lookup(v, dir, name, false, ret, NULL);
    cred_leave(&cred);
    return r;
}

void fs_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct view *v = view_of(req);
    struct inode *dir = inode_get(v->guard->inodes, parent);
    struct fuse_entry_param e;
    int r = dir ? lookup_for(req, dir, name, &e) : -ESTALE;
    inode_put(v->guard->inodes, dir);
    if (r == -ENOENT)
        inode_trust_name(v->guard->inodes, (uint64_t)fuse_req_ctx(req)->pid);
    if (r == -ENOENT && v->entry_timeout > 0) /* node 0: that there is none may be kept, too */
        fuse_reply_entry(req, &(struct fuse_entry_param){.entry_timeout = v->entry_timeout});
    else if (r < 0)
        fuse_reply_err(req, -r);
    else
        reply_entry(v, req, &e);
}

void fs_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup)
{
    inode_forget(view_of(req)->guard->inodes, ino, nlookup);
    fuse_reply_none(req);
}

void fs_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
    for (size_t n = 0; n < count; n++)
        inode_forget(view_of(req)->guard->inodes, forgets[n].ino, forgets[n].nlookup);
    fuse_reply_none(req);
}

void fs_readlink(fuse_req_t req, fuse_ino_t ino)
{
    struct view *v = view_of(req);
    struct inode *i = inode_get(v->guard->inodes, ino);
    char target[PATH_MAX + 1];
    ssize_t n = -ESTALE;
    if (i) {
        n = readlinkat(i->fd, "", target, sizeof(target) - 1);
        n = n < 0 ? -errno : n;
    }
    inode_put(v->guard->inodes, i);
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

/* Makes a name as the caller, so that a new file is his. A hard link makes no file: what the
 * storage forbids him (protected_hardlinks sees another picture there) but the kernel of the view
 * allowed is done by the daemon. */
static int make_as_caller(fuse_req_t req, const struct make *m, const struct inode *dir,
                          const char *name)
{
    struct cred cred;
    int r = cred_enter(req, &cred);
    if (r < 0)
        return r;
    r = m->fn(m, dir->fd, name) < 0 ? -errno : 0;
    cred_leave(&cred);
    if (io_err_denied(r) && m->fn == make_link)
        r = m->fn(m, dir->fd, name) < 0 ? -errno : 0;
    return r;
}

static void make_name(fuse_req_t req, const struct make *m, fuse_ino_t parent, const char *name)
{
    struct view *v = view_of(req);
    struct inode *dir = inode_get(v->guard->inodes, parent);
    struct fuse_entry_param e;
    int r = -ESTALE;
    if (dir)
        r = fs_name_hidden(dir, name) ? -EPERM : make_as_caller(req, m, dir, name);
    if (r == 0)
        r = lookup_for(req, dir, name, &e);
    inode_put(v->guard->inodes, dir);
    if (r < 0)
        fuse_reply_err(req, -r);
    else
        reply_entry(v, req, &e);
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
    struct view *v = view_of(req);
    struct inode *i = inode_get(v->guard->inodes, ino);
    if (!i) {
        fuse_reply_err(req, ESTALE);
        return;
    }
    struct make m = {.fn = make_link, .source_fd = i->fd};
    make_name(req, &m, newparent, newname);
    inode_put(v->guard->inodes, i);
}
