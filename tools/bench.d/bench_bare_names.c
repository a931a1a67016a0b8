/* bench_bare_names.c: the least that a FUSE server can do for names: a request is read, one system
 * call on the directory says the answer, the reply is written. It answers the requests that
 * diskguard answers, FLUSH and absent attributes among them, keeps nothing but names, and guards
 * nothing. What tools/bench measures with it is what FUSE costs on this machine.
 *
 *   bench_bare_names DIR MOUNTPOINT    shows DIR, in the foreground; for root alone
 *
 * Its receivers are few (one more wherever all are busy would only be slower). */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <limits.h>
#include <linux/limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define THREADS 3
#define REQUEST_MAX (132u * 1024u)
#define BUCKETS (1u << 16)
#define TIMEOUT 1.0

/* A file: its name below the directory; a directory has an open descriptor, too. Never freed. */
struct node {
    struct node *parent, *next;
    int fd; /* of a directory; else -1 */
    char name[];
};

static struct {
    struct fuse_session *se;
    struct node *root, *buckets[BUCKETS];
    pthread_mutex_t lock;
} bare = {.lock = PTHREAD_MUTEX_INITIALIZER};

static struct node *node_of(fuse_ino_t ino)
{
    return ino == FUSE_ROOT_ID ? bare.root : (struct node *)(uintptr_t)ino;
}

static struct node *node_get(struct node *parent, const char *name, mode_t mode)
{
    size_t hash = (uintptr_t)parent >> 4, len = strlen(name) + 1;
    for (const char *s = name; *s; s++)
        hash = hash * 31 + (unsigned char)*s;
    pthread_mutex_lock(&bare.lock);
    struct node **at = &bare.buckets[hash % BUCKETS], *n = *at;
    while (n && (n->parent != parent || strcmp(n->name, name) != 0))
        n = n->next;
    if (!n && (n = malloc(sizeof(*n) + len))) {
        *n = (struct node){.parent = parent, .next = *at, .fd = -1};
        memcpy(n->name, name, len);
        *at = n;
    }
    /* A name may come to mean another directory: the one before is removed then. */
    struct stat st;
    if (n && n->fd >= 0 && fstat(n->fd, &st) == 0 && st.st_nlink == 0) {
        close(n->fd);
        n->fd = -1;
    }
    if (n && n->fd < 0 && S_ISDIR(mode))
        n->fd = openat(parent->fd, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
    pthread_mutex_unlock(&bare.lock);
    return n;
}

static int node_stat(const struct node *n, struct stat *st)
{
    int r = n->fd >= 0 ? fstatat(n->fd, "", st, AT_EMPTY_PATH)
                       : fstatat(n->parent->fd, n->name, st, AT_SYMLINK_NOFOLLOW);
    return r < 0 ? errno : 0;
}

static int entry_get(struct node *dir, const char *name, struct fuse_entry_param *e)
{
    *e = (struct fuse_entry_param){.attr_timeout = TIMEOUT, .entry_timeout = TIMEOUT};
    if (fstatat(dir->fd, name, &e->attr, AT_SYMLINK_NOFOLLOW) < 0)
        return errno;
    e->ino = (uintptr_t)node_get(dir, name, e->attr.st_mode);
    return e->ino ? 0 : ENOMEM;
}

static void do_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param e;
    int err = entry_get(node_of(parent), name, &e);
    if (err == 0 || err == ENOENT) /* node 0: the kernel keeps that there is none */
        fuse_reply_entry(req, &e);
    else
        fuse_reply_err(req, err);
}

static void do_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct stat st;
    (void)fi;
    int err = node_stat(node_of(ino), &st);
    if (err)
        fuse_reply_err(req, err);
    else
        fuse_reply_attr(req, &st, TIMEOUT);
}

static void reply_opened(fuse_req_t req, int fd, struct fuse_file_info *fi)
{
    fi->fh = (uint64_t)fd;
    if (fd < 0)
        fuse_reply_err(req, errno);
    else
        fuse_reply_open(req, fi);
}

static void do_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    const struct node *n = node_of(ino);
    reply_opened(req, openat(n->parent->fd, n->name, (fi->flags & O_ACCMODE) | O_CLOEXEC), fi);
}

static void do_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
                      struct fuse_file_info *fi)
{
    struct fuse_entry_param e;
    struct node *dir = node_of(parent);
    int fd = openat(dir->fd, name, (fi->flags & O_ACCMODE) | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    int err = fd < 0 ? errno : entry_get(dir, name, &e);
    fi->fh = (uint64_t)fd;
    if (err)
        fuse_reply_err(req, err);
    else
        fuse_reply_create(req, &e, fi);
}

static void do_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                    struct fuse_file_info *fi)
{
    char buf[REQUEST_MAX];
    (void)ino;
    ssize_t n = pread((int)fi->fh, buf, size < sizeof(buf) ? size : sizeof(buf), off);
    if (n < 0)
        fuse_reply_err(req, errno);
    else
        fuse_reply_buf(req, buf, (size_t)n);
}

static void do_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    (void)fi;
    fuse_reply_err(req, 0);
}

static void do_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    close((int)fi->fh);
    fuse_reply_err(req, 0);
}

static void do_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
    struct fuse_entry_param e;
    struct node *dir = node_of(parent);
    int err = mkdirat(dir->fd, name, mode) < 0 ? errno : entry_get(dir, name, &e);
    if (err)
        fuse_reply_err(req, err);
    else
        fuse_reply_entry(req, &e);
}

static void do_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    fuse_reply_err(req, unlinkat(node_of(parent)->fd, name, 0) < 0 ? errno : 0);
}

static void do_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    fuse_reply_err(req, unlinkat(node_of(parent)->fd, name, AT_REMOVEDIR) < 0 ? errno : 0);
}

static void reply_xattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    const struct node *n = node_of(ino);
    char path[PATH_MAX], buf[XATTR_SIZE_MAX];
    if (n->fd >= 0)
        snprintf(path, sizeof(path), "/proc/self/fd/%d", n->fd);
    else
        snprintf(path, sizeof(path), "/proc/self/fd/%d/%s", n->parent->fd, n->name);
    ssize_t got = name ? getxattr(path, name, buf, size) : listxattr(path, buf, size);
    if (got < 0)
        fuse_reply_err(req, errno);
    else if (size == 0)
        fuse_reply_xattr(req, (size_t)got);
    else
        fuse_reply_buf(req, buf, (size_t)got);
}

static void do_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    reply_xattr(req, ino, name, size < XATTR_SIZE_MAX ? size : XATTR_SIZE_MAX);
}

static void do_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
    reply_xattr(req, ino, NULL, size < XATTR_SIZE_MAX ? size : XATTR_SIZE_MAX);
}

static void do_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    int fd = openat(node_of(ino)->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    fi->fh = (uintptr_t)d;
    if (d)
        fuse_reply_open(req, fi);
    else
        fuse_reply_err(req, errno);
}

static void do_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    closedir((DIR *)(uintptr_t)fi->fh);
    fuse_reply_err(req, 0);
}

static void do_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                           struct fuse_file_info *fi)
{
    DIR *d = (DIR *)(uintptr_t)fi->fh;
    char buf[REQUEST_MAX];
    size_t len = 0, room = size < sizeof(buf) ? size : sizeof(buf);
    struct dirent *de;
    if (off != telldir(d))
        seekdir(d, off);
    for (long at = telldir(d); (de = readdir(d)); at = telldir(d)) {
        struct fuse_entry_param e = {.attr = {.st_ino = de->d_ino, .st_mode = DTTOIF(de->d_type)}};
        size_t need = fuse_add_direntry_plus(req, NULL, 0, de->d_name, NULL, 0);
        if (need > room - len) {
            seekdir(d, at);
            break;
        }
        if (strcmp(de->d_name, ".") != 0 && strcmp(de->d_name, "..") != 0)
            (void)entry_get(node_of(ino), de->d_name, &e);
        len += fuse_add_direntry_plus(req, buf + len, need, de->d_name, &e, de->d_off);
    }
    fuse_reply_buf(req, buf, len);
}

static void do_init(void *userdata, struct fuse_conn_info *conn)
{
    (void)userdata;
    conn->want &= ~(unsigned)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
    conn->max_write = REQUEST_MAX - 4096;
    conn->want |= conn->capable & (FUSE_CAP_POSIX_ACL | FUSE_CAP_POSIX_LOCKS);
}

static const struct fuse_lowlevel_ops ops = {
    .init = do_init,
    .lookup = do_lookup,
    .getattr = do_getattr,
    .open = do_open,
    .create = do_create,
    .read = do_read,
    .flush = do_flush,
    .release = do_release,
    .mkdir = do_mkdir,
    .unlink = do_unlink,
    .rmdir = do_rmdir,
    .getxattr = do_getxattr,
    .listxattr = do_listxattr,
    .opendir = do_opendir,
    .readdirplus = do_readdirplus,
    .releasedir = do_releasedir,
};

static void *receiver(void *arg)
{
    char *mem = malloc(REQUEST_MAX);
    while (mem) {
        ssize_t n = read(fuse_session_fd(bare.se), mem, REQUEST_MAX);
        if (n > 0)
            fuse_session_process_buf(bare.se, &(struct fuse_buf){.mem = mem, .size = (size_t)n});
        else if (errno == ENODEV) /* unmounted */
            break;
    }
    free(mem);
    return arg;
}

int main(int argc, char **argv)
{
    char *words[] = {argv[0], NULL};
    struct fuse_args args = FUSE_ARGS_INIT(1, words);
    pthread_t threads[THREADS];
    bare.root = calloc(1, sizeof(*bare.root) + 1);
    if (argc != 3 || !bare.root ||
        (bare.root->fd = open(argv[1], O_PATH | O_DIRECTORY | O_CLOEXEC)) < 0) {
        fprintf(stderr, "bench_bare_names DIR MOUNTPOINT\n");
        return 2;
    }
    bare.se = fuse_session_new(&args, &ops, sizeof(ops), NULL);
    if (!bare.se || fuse_session_mount(bare.se, argv[2]) < 0)
        return 1;
    for (unsigned i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, receiver, NULL) != 0)
            return 1;
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    fuse_session_unmount(bare.se);
    fuse_session_destroy(bare.se);
    return 0;
}
