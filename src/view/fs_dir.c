#include <dirent.h>
#include <fcntl.h>
#include <string.h>

#include "base/sync.h"
#include "view/cred.h"
#include "view/fs.h"
#include "view/prune.h"

/* Offsets are the backing directory's own (d_off), so that seekdir(3) works as there, also after
 * names came or went. */
struct stream {
    struct mutex lock; /* one reader at a time; held while the directory is read */
    int fd;
    bool at_valid GUARDED_BY(lock); /* the next entry of buf, or of fd, is the one at offset `at` */
    off_t at GUARDED_BY(lock);
    size_t next GUARDED_BY(lock), len GUARDED_BY(lock);
    char buf[32768] GUARDED_BY(lock) __attribute__((aligned(8)));
};

/* Names copied out of the stream for one reply: struct dirent64, one after the other. */
struct batch {
    char *raw;
    size_t len;
    size_t count;
};

/* ---- open ---- */

static int open_dir(fuse_req_t req, const struct inode *i)
{
    int fd = io_open_beneath(i->fd, ".", O_RDONLY | O_DIRECTORY, 0);
    struct cred cred;
    if (fd != -EACCES || cred_enter(req, &cred) < 0)
        return fd;
    fd = io_open_beneath(i->fd, ".", O_RDONLY | O_DIRECTORY, 0); /* root squash */
    cred_leave(&cred);
    return fd;
}

static void dir_free(struct view *v, struct handle *h)
{
    struct stream *s = h->dir;
    if (s) {
        mutex_destroy(&s->lock);
        close(s->fd);
        free(s);
    }
    handle_free(v->guard->handles, h);
}

/* A handle with its stream; takes fd. NULL: out of memory. */
static struct handle *dir_new(struct view *v, struct inode *i, int fd)
{
    struct handle *h = handle_new(v->guard->handles, i);
    struct stream *s = h ? calloc(1, sizeof(*s)) : NULL;
    if (!s) {
        close(fd);
        if (h)
            handle_free(v->guard->handles, h);
        return NULL;
    }
    mutex_init(&s->lock);
    s->fd = fd;
    h->dir = s;
    handle_publish(h);
    return h;
}

void fs_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct view *v = view_of(req);
    struct inode *i = inode_get(v->guard->inodes, ino);
    struct handle *h = NULL;
    int r = i ? open_dir(req, i) : -ESTALE;
    if (r >= 0) {
        h = dir_new(v, i, r);
        r = h ? 0 : -ENOMEM;
    }
    inode_put(v->guard->inodes, i);
    if (r < 0) {
        fuse_reply_err(req, -r);
        return;
    }
    fi->fh = h->fh;
    if (fuse_reply_open(req, fi) < 0)
        dir_free(v, h); /* interrupted: no release will come */
}

void fs_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    struct view *v = view_of(req);
    struct handle *h = handle_get(v->guard->handles, fi->fh);
    if (h)
        dir_free(v, h);
    fuse_reply_err(req, 0);
}

void fs_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    (void)ino;
    struct handle *h = handle_get(view_of(req)->guard->handles, fi->fh);
    const struct stream *s = h ? h->dir : NULL;
    int r = -EBADF;
    if (s)
        r = (datasync ? fdatasync(s->fd) : fsync(s->fd)) < 0 ? -errno : 0;
    fuse_reply_err(req, -r);
}

/* ---- read ---- */

static bool is_hidden(const struct view *v, const struct inode *dir, const struct dirent64 *e)
{
    if (fs_name_hidden(dir, e->d_name))
        return true;
    return e->d_ino == v->guard->store.dir_ino && dir->dev == v->guard->store.dev &&
           (e->d_type == DT_DIR || e->d_type == DT_UNKNOWN) && strcmp(e->d_name, ".") != 0 &&
           strcmp(e->d_name, "..") != 0;
}

/* Moves to an offset; a reader that goes on where it was keeps what is buffered. 0 always starts
 * anew: rewinddir(3) must see new names. */
static int seek_locked(struct stream *s, off_t off) REQUIRES(s->lock)
{
    if (s->at_valid && s->at == off && off != 0)
        return 0;
    s->at_valid = false;
    s->next = s->len = 0;
    if (lseek(s->fd, off, SEEK_SET) < 0)
        return -errno;
    s->at = off;
    s->at_valid = true;
    return 0;
}

/* The next entry without taking it. 1, 0 at the end, or -errno. */
static int peek_locked(struct stream *s, const struct dirent64 **ret) REQUIRES(s->lock)
{
    if (s->next >= s->len) {
        ssize_t n = getdents64(s->fd, s->buf, sizeof(s->buf));
        if (n < 0)
            return -errno;
        s->next = 0;
        s->len = (size_t)n;
        if (n == 0)
            return 0;
    }
    *ret = (const struct dirent64 *)(s->buf + s->next);
    return 1;
}

static void stream_take_locked(struct stream *s, const struct dirent64 *e) REQUIRES(s->lock)
{
    s->next += e->d_reclen;
    s->at = e->d_off;
}

/* Room that the entry needs in the reply. */
static size_t entry_size(fuse_req_t req, const char *name, bool plus)
{
    return plus ? fuse_add_direntry_plus(req, NULL, 0, name, NULL, 0)
                : fuse_add_direntry(req, NULL, 0, name, NULL, 0);
}

/* Copies the entries that fit into a reply of `size` bytes. */
static int collect(fuse_req_t req, const struct inode *dir, struct stream *s, off_t off,
                   size_t size, bool plus, struct batch *b) EXCLUDES(s->lock)
{
    const struct view *v = view_of(req);
    mutex_lock(&s->lock);
    int r = seek_locked(s, off);
    const struct dirent64 *e = NULL;
    size_t room = size;
    while (r == 0 && (r = peek_locked(s, &e)) > 0) {
        r = 0;
        if (!is_hidden(v, dir, e)) {
            size_t need = entry_size(req, e->d_name, plus);
            if (need > room)
                break;
            room -= need;
            memcpy(b->raw + b->len, e, e->d_reclen);
            b->len += e->d_reclen;
            b->count++;
        }
        stream_take_locked(s, e);
    }
    mutex_unlock(&s->lock);
    return r < 0 && b->count == 0 ? r : 0; /* what was read before an error is answered first */
}

/* The number that stat(2) of the entry shows. */
static ino_t entry_ino(struct view *v, const struct inode *dir, const struct dirent64 *e)
{
    bool above_root = dir->nodeid == FUSE_ROOT_ID && strcmp(e->d_name, "..") == 0;
    return fs_attr_ino(v, dir->dev, above_root ? dir->ino : e->d_ino);
}

static size_t add_plain(fuse_req_t req, const struct inode *dir, const struct dirent64 *e,
                        char *out, size_t room)
{
    struct stat st = {.st_ino = entry_ino(view_of(req), dir, e),
                      .st_mode = (mode_t)DTTOIF(e->d_type)};
    return fuse_add_direntry(req, out, room, e->d_name, &st, e->d_off);
}

/* With attributes and a counted lookup, except for "." and ".." and for what cannot be looked up
 * (then the kernel asks by name). */
static size_t add_plus(fuse_req_t req, struct inode *dir, const struct dirent64 *e, char *out,
                       size_t room, fuse_ino_t *ret_ino)
{
    struct view *v = view_of(req);
    struct fuse_entry_param p = {0};
    bool dots = strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0;
    if (dots || fs_name_lookup(v, dir, e->d_name, false, &p, NULL) < 0) {
        p.ino = 0;
        p.attr.st_ino = entry_ino(v, dir, e);
        p.attr.st_mode = (mode_t)DTTOIF(e->d_type);
    }
    *ret_ino = p.ino;
    return fuse_add_direntry_plus(req, out, room, e->d_name, &p, e->d_off);
}

/* Every lookup costs a descriptor. While there are many, names alone must do: the kernel asks for
 * what is really used. */
static bool short_of_descriptors(const struct view *v)
{
    return inode_count(v->guard->inodes) > prune_limit();
}

struct reply {
    char *out;
    size_t len;
    fuse_ino_t *counted; /* one for each entry; 0: none */
    size_t n;
};

static void fill(fuse_req_t req, struct inode *dir, const struct batch *b, size_t size, bool plus,
                 bool lookups, struct reply *ret)
{
    for (size_t at = 0; at < b->len;) {
        const struct dirent64 *e = (const struct dirent64 *)(b->raw + at);
        char *out = ret->out + ret->len;
        size_t room = size - ret->len;
        at += e->d_reclen;
        if (!plus) {
            ret->len += add_plain(req, dir, e, out, room);
        } else if (lookups) {
            ret->len += add_plus(req, dir, e, out, room, &ret->counted[ret->n++]);
        } else {
            struct fuse_entry_param p = {.attr = {.st_ino = entry_ino(view_of(req), dir, e),
                                                  .st_mode = (mode_t)DTTOIF(e->d_type)}};
            ret->len += fuse_add_direntry_plus(req, out, room, e->d_name, &p, e->d_off);
        }
    }
}

static void read_dir(fuse_req_t req, size_t size, off_t off, struct fuse_file_info *fi, bool plus)
{
    struct view *v = view_of(req);
    struct handle *h = handle_get(v->guard->handles, fi->fh);
    if (!h || !h->dir) {
        fuse_reply_err(req, EBADF);
        return;
    }
    /* dirent64 is never longer than the entry that it becomes */
    struct batch b = {.raw = malloc(size)};
    struct reply rep = {.out = malloc(size)};
    int r = b.raw && rep.out ? 0 : -ENOMEM;
    if (r == 0)
        r = collect(req, h->inode, h->dir, off, size, plus, &b);
    if (r == 0) {
        rep.counted = calloc(b.count + 1, sizeof(*rep.counted));
        bool lookups = rep.counted && !short_of_descriptors(v);
        fill(req, h->inode, &b, size, plus, lookups, &rep);
        if (fuse_reply_buf(req, rep.out, rep.len) < 0) {
            for (size_t n = 0; n < rep.n; n++)
                if (rep.counted[n])
                    inode_forget(v->guard->inodes, rep.counted[n], 1);
        }
    } else {
        fuse_reply_err(req, -r);
    }
    free(b.raw);
    free(rep.out);
    free(rep.counted);
}

void fs_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    (void)ino;
    read_dir(req, size, off, fi, false);
}

void fs_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                    struct fuse_file_info *fi)
{
    (void)ino;
    read_dir(req, size, off, fi, true);
}
