/* bench_bare_fuse.c: the least that a FUSE server can do for guest data: a request is read, the
 * file is read or written, the reply is written. What tools/bench measures with it is what FUSE
 * costs on this machine, without any guard; it needs no part of diskguard.
 *
 *   bench_bare_fuse DIR MOUNTPOINT    shows the files of DIR, in the foreground; no directories
 *
 * Its receivers and buffers are those of src/view/loop.c: as many threads, payload of a WRITE at a
 * page boundary, so that O_DIRECT goes through. */
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define THREADS 32
#define MAX_WRITE (1024u * 1024u)
#define PAGE 4096u
#define REQUEST_MAX (MAX_WRITE + PAGE)
/* The payload of a WRITE follows these. <linux/fuse.h> */
#define WRITE_HEAD (sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in))
#define FILES_MAX 64

static struct {
    int dir;
    struct fuse_session *se;
    char *names[FILES_MAX]; /* inode 2 is names[0] */
    fuse_ino_t n;
    pthread_mutex_t lock;
} bare = {.lock = PTHREAD_MUTEX_INITIALIZER};

static _Thread_local char *payload; /* of a READ */

static const char *path_of(fuse_ino_t ino)
{
    return ino == FUSE_ROOT_ID ? "." : bare.names[ino - 2];
}

static fuse_ino_t ino_of(const char *name)
{
    fuse_ino_t i = 0;
    pthread_mutex_lock(&bare.lock);
    while (i < bare.n && strcmp(bare.names[i], name) != 0)
        i++;
    if (i == bare.n && (i == FILES_MAX || !(bare.names[bare.n++] = strdup(name))))
        i = FILES_MAX;
    pthread_mutex_unlock(&bare.lock);
    return i < FILES_MAX ? i + 2 : 0;
}

static void do_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param e = {.attr_timeout = 1, .entry_timeout = 1};
    (void)parent;
    if (fstatat(bare.dir, name, &e.attr, AT_SYMLINK_NOFOLLOW) < 0)
        fuse_reply_err(req, errno);
    else if (!(e.ino = ino_of(name)))
        fuse_reply_err(req, ENFILE);
    else
        fuse_reply_entry(req, &e);
}

static void do_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct stat st;
    (void)fi;
    if (fstatat(bare.dir, path_of(ino), &st, AT_SYMLINK_NOFOLLOW) < 0)
        fuse_reply_err(req, errno);
    else
        fuse_reply_attr(req, &st, 1);
}

static void do_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    int fd = openat(bare.dir, path_of(ino), (fi->flags & (O_ACCMODE | O_DIRECT)) | O_CLOEXEC);
    if (fd < 0) {
        fuse_reply_err(req, errno);
        return;
    }
    fi->fh = (uint64_t)fd;
    fi->direct_io = 1;
    fuse_reply_open(req, fi);
}

static void do_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    close((int)fi->fh);
    fuse_reply_err(req, 0);
}

static void do_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    (void)ino;
    fuse_reply_err(req, (datasync ? fdatasync((int)fi->fh) : fsync((int)fi->fh)) < 0 ? errno : 0);
}

/* data: of a read, NULL: of a write. */
static void answer(fuse_req_t req, ssize_t n, const char *data)
{
    if (n < 0)
        fuse_reply_err(req, errno);
    else if (data)
        fuse_reply_buf(req, data, (size_t)n);
    else
        fuse_reply_write(req, (size_t)n);
}

static void do_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                    struct fuse_file_info *fi)
{
    (void)ino;
    answer(req, pread((int)fi->fh, payload, size, off), payload);
}

static void do_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
                     struct fuse_file_info *fi)
{
    (void)ino;
    answer(req, pwrite((int)fi->fh, buf, size, off), NULL);
}

static void do_init(void *userdata, struct fuse_conn_info *conn)
{
    (void)userdata;
    conn->max_write = MAX_WRITE;
    conn->max_background = 1024;
    conn->congestion_threshold = 1024;
}

static const struct fuse_lowlevel_ops ops = {
    .init = do_init,
    .lookup = do_lookup,
    .getattr = do_getattr,
    .open = do_open,
    .release = do_release,
    .read = do_read,
    .write = do_write,
    .fsync = do_fsync,
};

static void *receiver(void *arg)
{
    void *mem, *out;
    if (posix_memalign(&mem, PAGE, PAGE + REQUEST_MAX) != 0 ||
        posix_memalign(&out, PAGE, MAX_WRITE) != 0)
        exit(1);
    payload = out;
    char *at = (char *)mem + PAGE - WRITE_HEAD;
    for (;;) {
        ssize_t n = read(fuse_session_fd(bare.se), at, REQUEST_MAX);
        if (n > 0)
            fuse_session_process_buf(bare.se, &(struct fuse_buf){.mem = at, .size = (size_t)n});
        else if (errno == ENODEV) /* unmounted */
            return arg;
    }
}

int main(int argc, char **argv)
{
    char *words[] = {argv[0], NULL};
    struct fuse_args args = FUSE_ARGS_INIT(1, words);
    pthread_t threads[THREADS];
    if (argc != 3 || (bare.dir = open(argv[1], O_PATH | O_DIRECTORY)) < 0) {
        fprintf(stderr, "bench_bare_fuse DIR MOUNTPOINT\n");
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
