/* io.c: see io.h. */
#include "core/io.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/gfs2_ondisk.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>

#include "base/hook.h"

#define DIR_BUFFER 32768u
#define FORMER_TRIES 4 /* each failed one has taken an error away */

/* ---- files below the datastore ---- */

/* Opens one component, never "..", and never follows a symlink. */
static int open_component(int dirfd, const char *name, size_t len, int flags, mode_t mode)
{
    char copy[NAME_MAX + 1];
    struct stat st;
    int fd;

    if (len > NAME_MAX)
        return -ENAMETOOLONG;
    if (len == 2 && name[0] == '.' && name[1] == '.')
        return -EXDEV;
    memcpy(copy, name, len);
    copy[len] = '\0';
    do
        fd = openat(dirfd, copy, flags | O_NOFOLLOW | O_CLOEXEC, mode);
    while (fd < 0 && errno == EINTR);
    if (fd < 0)
        return -errno;
    if ((flags & O_PATH) && !(flags & O_NOFOLLOW) && (fstat(fd, &st) < 0 || S_ISLNK(st.st_mode))) {
        close(fd);
        return -ELOOP;
    }
    return fd;
}

/* The same by hand where there is no openat2(2), as under valgrind 3.19. Stricter: it refuses every
 * "..". */
static int walk_beneath(int dirfd, const char *path, int flags, mode_t mode)
{
    int at = dirfd, next;
    bool last;

    if (path[0] == '/')
        return -EXDEV;
    do {
        size_t len = strcspn(path, "/"), slashes = strspn(path + len, "/");
        last = path[len + slashes] == '\0';
        if (last)
            next = open_component(at, path, len, slashes ? flags | O_DIRECTORY : flags, mode);
        else
            next = open_component(at, path, len, O_PATH, 0);
        if (at != dirfd)
            close(at);
        path += len + slashes;
        at = next;
    } while (!last && next >= 0);
    return next;
}

int io_open_beneath(int dirfd, const char *path, int flags, mode_t mode)
{
    struct open_how how = {
        .flags = (unsigned)flags | O_CLOEXEC,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS,
    };
    long fd;

    if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) { /* openat2 refuses a mode without
                                                                    them */
        how.mode = mode & 07777;
        int r = HOOK_FAIL("io.create");
        if (r < 0)
            return r;
    }
    for (unsigned tries = 0;;) {
        fd = syscall(SYS_openat2, dirfd, path, &how, sizeof(how));
        if (fd >= 0)
            return (int)fd;
        if (errno == ENOSYS)
            return walk_beneath(dirfd, path, flags, (mode_t)how.mode);
        /* EAGAIN: a rename raced with ".." in the path (openat2(2)); also what O_NONBLOCK meets
         * under a lease
         */
        if (errno != EINTR && (errno != EAGAIN || ++tries == 32))
            return -errno;
    }
}

int io_reopen_regular(int fd, int flags)
{
    char path[40];
    int r;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    do /* without O_NOFOLLOW, which would stop at the magic link itself */
        r = open(path, (flags & ~(O_CREAT | O_EXCL | O_NOFOLLOW)) | O_CLOEXEC);
    while (r < 0 && errno == EINTR);
    HOOK_STALE_COPY(fd, r);
    return r < 0 ? -errno : r;
}

int io_reopen(int fd, int flags)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode)) /* opening a device or a fifo has side effects */
        return -EINVAL;
    return io_reopen_regular(fd, flags);
}

bool io_drop_append(int fd, const struct io_fstype *fs)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || !(flags & O_APPEND))
        return true;
    return !fs->open_appends && fcntl(fd, F_SETFL, flags & ~O_APPEND) == 0;
}

ssize_t io_append(int fd, const void *buf, size_t len)
{
    struct iovec iov = {.iov_base = (void *)buf, .iov_len = len};
    ssize_t n;
    do
        n = pwritev2(fd, &iov, 1, 0, RWF_APPEND);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

static struct timespec to_timespec(struct statx_timestamp t)
{
    return (struct timespec){.tv_sec = t.tv_sec, .tv_nsec = t.tv_nsec};
}

static void to_stat(const struct statx *stx, struct stat *ret)
{
    *ret = (struct stat){
        .st_dev = makedev(stx->stx_dev_major, stx->stx_dev_minor),
        .st_ino = stx->stx_ino,
        .st_mode = stx->stx_mode,
        .st_nlink = stx->stx_nlink,
        .st_uid = stx->stx_uid,
        .st_gid = stx->stx_gid,
        .st_rdev = makedev(stx->stx_rdev_major, stx->stx_rdev_minor),
        .st_size = (off_t)stx->stx_size,
        .st_blksize = (blksize_t)stx->stx_blksize,
        .st_blocks = (blkcnt_t)stx->stx_blocks,
        .st_atim = to_timespec(stx->stx_atime),
        .st_mtim = to_timespec(stx->stx_mtime),
        .st_ctim = to_timespec(stx->stx_ctime),
    };
}

int io_fresh_stat(int fd, struct stat *ret)
{
    struct statx stx;
    int r;

    do
        r = statx(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &stx);
    while (r < 0 && errno == EINTR);
    if (r == 0 && HOOK_STALE(fd, stx.stx_ino, S_ISDIR(stx.stx_mode))) {
        errno = ESTALE;
        r = -1;
    }
    if (r < 0)
        return -errno;
    to_stat(&stx, ret);
    return 0;
}

int io_local_name(int dirfd, const char *name, struct stat *ret)
{
    struct statx stx;
    int r;

    if (strchr(name, '/') || !*name)
        return -EINVAL;
    do
        r = statx(dirfd, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_BASIC_STATS, &stx);
    while (r < 0 && errno == EINTR);
    if (r < 0)
        return -errno;
    to_stat(&stx, ret);
    return 0;
}

/* Not readdir(3): opendir asks for the descriptor's type and flags, which are known here. The
 * buffer is no malloc: a claim is given back, and a header restored, also where there is no memory.
 */
static int each_name(int fd, int (*fn)(void *arg, const char *name), void *arg)
{
    _Alignas(struct dirent64) char buf[DIR_BUFFER];

    for (;;) {
        ssize_t n = getdents64(fd, buf, sizeof(buf));
        if (n <= 0)
            return n < 0 ? -errno : 0;
        for (ssize_t at = 0; at < n;) {
            const struct dirent64 *e = (const struct dirent64 *)(buf + at);
            at += e->d_reclen;
            if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
                continue;
            int r = fn(arg, e->d_name);
            if (r != 0)
                return r;
        }
    }
}

int io_fresh_dir(int dirfd, int (*fn)(void *arg, const char *name), void *arg)
{
    _cleanup_close_ int fd = -1;
    struct stat st;
    int r;

    /* each open has its own position, also between threads */
    fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    r = io_fresh_stat(fd, &st);
    if (r < 0)
        return r;
    /* What an NFS client keeps of an earlier listing counts for it while the attributes are the
     * same, and two changes within one tick leave the same (10.1.19). Without NFS it does nothing,
     * and where it fails the listing is as good as the attributes. */
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    return each_name(fd, fn, arg);
}

int io_fsync(int fd)
{
    int r = HOOK_FAIL("io.fsync");

    if (r < 0)
        return r;
    do
        r = fsync(fd);
    while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

/* Not so of a type that nobody has measured, or of one that lies on another. */
static bool one_kernel(const struct io_fstype *fs)
{
    return !fs->shared && fs->fencing == FENCING_LOCK;
}

/* sync_file_range(2) writes what is dirty, waits for it and takes the error away as fsync(2) does
 * (file_check_and_advance_wb_err); the disk is told to make nothing durable. An error ends it
 * before the rest is written, so it is called until it has none, which is when nothing is left. */
int io_fsync_former(int fd)
{
    const unsigned all =
        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    int r, taken = 0;

    if (one_kernel(io_fstype(fd)))
        for (unsigned tries = 0; tries < FORMER_TRIES; tries++) {
            if (sync_file_range(fd, 0, 0, all) == 0)
                return taken;
            taken = -errno;
        }
    do
        r = fsync(fd);
    while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : taken;
}

int io_cache_drop_shared(int fd)
{
    return io_fstype(fd)->shared ? io_cache_drop(fd) : 0;
}

/* Reads until len bytes or end of file. The count or -errno. */
static ssize_t read_upto(int fd, void *buf, size_t len, uint64_t off)
{
    size_t done = 0;

    if (off > INT64_MAX || len > INT64_MAX - off)
        return -EINVAL;
    while (done < len) {
        ssize_t n = pread(fd, (char *)buf + done, len - done, (off_t)(off + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

static int write_all(int fd, const void *buf, size_t len, uint64_t off)
{
    if (off > INT64_MAX || len > INT64_MAX - off)
        return -EFBIG;
    for (size_t done = 0; done < len;) {
        ssize_t n = pwrite(fd, (const char *)buf + done, len - done, (off_t)(off + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return -EIO;
        done += (size_t)n;
    }
    return 0;
}

int io_pread_all(int fd, void *buf, size_t len, uint64_t off)
{
    ssize_t n = read_upto(fd, buf, len, off);

    if (n < 0)
        return (int)n;
    return (size_t)n < len ? -ENODATA : 0;
}

int io_pwrite_all(int fd, const void *buf, size_t len, uint64_t off)
{
    int r = HOOK_FAIL("io.pwrite");

    return r < 0 ? r : write_all(fd, buf, len, off);
}

/* ---- small text files ---- */

/* size: of the file just now. -ESTALE: it has grown since. */
static int read_text(int fd, uint64_t size, size_t max, char **ret_text, size_t *ret_len)
{
    int r = io_cache_drop_shared(fd);
    size_t room = (size_t)DG_MIN(size, max) + 1; /* one byte more shows that it is longer */
    char *text;
    ssize_t n;

    if (r < 0)
        return r;
    text = malloc(room + 1);
    if (!text)
        return -ENOMEM;
    n = read_upto(fd, text, room, 0);
    if (n < 0 || (size_t)n == room) {
        free(text);
        return n < 0 ? (int)n : room > max ? -EFBIG : -ESTALE;
    }
    text[n] = '\0';
    *ret_text = text;
    *ret_len = (size_t)n;
    return 0;
}

int io_fresh_text(int dirfd, const char *name, size_t max, char **ret_text, size_t *ret_len)
{
    struct stat st;
    int r;

    for (unsigned tries = 0; tries < 8; tries++) {
        int fd = io_fresh_open(dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
        r = fd < 0 ? fd : io_fresh_stat(fd, &st);
        if (r == 0)
            r = S_ISREG(st.st_mode) ? read_text(fd, (uint64_t)st.st_size, max, ret_text, ret_len)
                                    : -EINVAL;
        if (fd >= 0)
            close(fd);
        /* ESTALE: another host has replaced the file since the name was looked up, or the directory
         * is gone. */
        if (r != -ESTALE && r != -EINTR)
            return r;
        r = io_fresh_stat(dirfd, &st);
        if (r < 0)
            return r;
    }
    return -EAGAIN;
}

int io_text_create(int dirfd, const char *tmp_name, const void *text, size_t len)
{
    int r = HOOK_FAIL("io.text.create"), fd;

    if (r < 0)
        return r;
    do
        fd = openat(dirfd, tmp_name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    while (fd < 0 && errno == EINTR);
    if (fd < 0)
        return -errno;
    r = HOOK_FAIL("io.text.write");
    if (r == 0)
        r = write_all(fd, text, len, 0);
    if (r == 0)
        r = io_fsync(fd);
    if (r == 0)
        return fd;
    close(fd);
    unlinkat(dirfd, tmp_name, 0);
    return r;
}

/* ---- image headers ---- */

static int drop(int fd, uint64_t off, uint64_t len)
{
    int r = posix_fadvise(fd, (off_t)off, (off_t)len, POSIX_FADV_DONTNEED);

    return -r; /* it returns the error and leaves errno alone: posix_fadvise(3) */
}

int io_cache_drop(int fd)
{
    return drop(fd, 0, 0); /* 0: to the end of the file */
}

/* The kernel ignores DONTNEED for a folio that reaches beyond the range. Measured on ext4,
 * Linux 6.18: after an 8 MiB write, dropping the first 512, 4096 or 65536 bytes drops nothing, the
 * first 2 MiB drops them. So the range is widened to a multiple of the largest folio that the page
 * cache can hold: 2^11 pages (MAX_XAS_ORDER, include/linux/pagemap.h), which are aligned to their
 * size. */
int io_header_drop(int fd, uint64_t off, size_t len)
{
    uint64_t folio = (uint64_t)sysconf(_SC_PAGESIZE) << 11;
    uint64_t begin = off / folio * folio;
    uint64_t end = (off + len + folio - 1) / folio * folio;

    if (off > INT64_MAX - folio || len > INT64_MAX - folio - off)
        return -EINVAL;
    return drop(fd, begin, end - begin);
}

ssize_t io_fresh_header(int fd, void *buf, size_t len, uint64_t off)
{
    return io_fresh_header_on(io_fstype(fd), fd, buf, len, off);
}

ssize_t io_fresh_header_on(const struct io_fstype *fs, int fd, void *buf, size_t len, uint64_t off)
{
    int r = fs->shared ? io_header_drop(fd, off, len) : 0;

    if (r < 0)
        return r;
    return read_upto(fd, buf, len, off);
}

static ssize_t read_once(int fd, void *buf, size_t len, uint64_t off)
{
    ssize_t n;

    do
        n = pread(fd, buf, len, (off_t)off);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

ssize_t io_fresh_guest_data(int direct_fd, int fd, void *buf, size_t len, uint64_t off)
{
    if (direct_fd >= 0) {
        ssize_t n = read_once(direct_fd, buf, len, off);
        if (n != -EINVAL)
            return n;
    }
    int r = io_header_drop(fd, off, len);
    if (r < 0)
        return r;
    return read_once(fd, buf, len, off);
}

int io_header_write(int fd, const void *buf, size_t len, uint64_t off)
{
    int r = HOOK_FAIL("io.header.write");

    return r < 0 ? r : write_all(fd, buf, len, off);
}

int io_set_mtime(int fd, struct timespec mtime)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, mtime};

    HOOK("io.mtime");
    return futimens(fd, times) < 0 ? -errno : 0;
}

/* ---- file handles ---- */

union handle_buffer {
    struct file_handle handle;
    char space[sizeof(struct file_handle) + IO_HANDLE_MAX];
};

int io_handle_get(int fd, struct io_handle *ret)
{
    union handle_buffer b = {.handle.handle_bytes = IO_HANDLE_MAX};
    int mount_id, r;

    do
        r = name_to_handle_at(fd, "", &b.handle, &mount_id, AT_EMPTY_PATH);
    while (r < 0 && errno == EINTR);
    if (r < 0 && errno != EOPNOTSUPP && errno != EOVERFLOW)
        return -errno;
    memset(ret, 0, sizeof(*ret));
    if (r == 0) {
        ret->type = b.handle.handle_type;
        ret->len = b.handle.handle_bytes;
        memcpy(ret->bytes, b.handle.f_handle, ret->len);
    }
    return 0;
}

bool io_handle_equal(const struct io_handle *a, const struct io_handle *b)
{
    if (a->len != b->len)
        return false;
    return a->len == 0 || (a->type == b->type && memcmp(a->bytes, b->bytes, a->len) == 0);
}

int io_handle_open(int mount_fd, const struct io_handle *h, int flags)
{
    union handle_buffer b = {.handle.handle_bytes = h->len, .handle.handle_type = h->type};
    int fd;

    if (h->len == 0)
        return -EOPNOTSUPP;
    if (h->len > IO_HANDLE_MAX)
        return -EINVAL;
    memcpy(b.handle.f_handle, h->bytes, h->len);
    do
        fd = open_by_handle_at(mount_fd, &b.handle, flags | O_CLOEXEC);
    while (fd < 0 && errno == EINTR);
    HOOK_STALE_COPY(-1, fd);
    return fd < 0 ? -errno : fd;
}

/* ---- file system types and the fence lock ---- */

/* Magic numbers: <linux/magic.h>, <linux/gfs2_ondisk.h>, statfs(2); bcachefs:
 * fs/bcachefs/bcachefs_format.h; ZFS: OpenZFS, sys/zfs_vfsops.h. Where flock(2) meets byte locks:
 * NFS and CIFS turn it into a byte lock of the whole file (flock(2), "NFS details", "CIFS
 * details"), 9p sends both as the same message (fs/9p/vfs_file.c). Fencing: NFSv4 was measured
 * (DESIGN 10.1), on local file systems one kernel has lock and writes; overlayfs may lie on
 * anything. On OCFS2 the fence itself is a flock, so a user's flock meets it too. */
static const struct io_fstype fstypes[] = {
    {EXT4_SUPER_MAGIC, "ext2/ext3/ext4", FENCE_OFD, FENCING_LOCK, .shared = false},
    {XFS_SUPER_MAGIC, "xfs", FENCE_OFD, FENCING_LOCK, .shared = false},
    {BTRFS_SUPER_MAGIC, "btrfs", FENCE_OFD, FENCING_LOCK, .shared = false},
    {F2FS_SUPER_MAGIC, "f2fs", FENCE_OFD, FENCING_LOCK, .shared = false},
    {0x3153464a, "jfs", FENCE_OFD, FENCING_LOCK, .shared = false},
    {0xca451a4e, "bcachefs", FENCE_OFD, FENCING_LOCK, .shared = false},
    {0x2fc12fc1, "zfs", FENCE_OFD, FENCING_LOCK, .shared = false},
    {TMPFS_MAGIC, "tmpfs", FENCE_OFD, FENCING_LOCK, .shared = false},
    {RAMFS_MAGIC, "ramfs", FENCE_OFD, FENCING_LOCK, .shared = false},
    {OVERLAYFS_SUPER_MAGIC, "overlayfs", FENCE_OFD, FENCING_UNPROVEN, .shared = false},
    {NFS_SUPER_MAGIC, "nfs", FENCE_OFD, FENCING_LOCK, .shared = true, .stale_data = true,
     .flock_meets_fence = true},
    {OCFS2_SUPER_MAGIC, "ocfs2", FENCE_FLOCK, FENCING_UNPROVEN, .shared = true,
     .flock_meets_fence = true},
    {GFS2_MAGIC, "gfs2", FENCE_OFD, FENCING_UNPROVEN, .shared = true},
    {CEPH_SUPER_MAGIC, "ceph", FENCE_OFD, FENCING_UNPROVEN, .shared = true, .stale_data = true},
    {V9FS_MAGIC, "9p", FENCE_OFD, FENCING_UNPROVEN, .shared = true, .stale_data = true,
     .flock_meets_fence = true, .open_appends = true},
    /* GlusterFS among others */
    {FUSE_SUPER_MAGIC, "fuse", FENCE_OFD, FENCING_UNPROVEN, .shared = true, .stale_data = true,
     .open_appends = true},
    {SMB_SUPER_MAGIC, "smb", FENCE_OFD, FENCING_UNPROVEN, .shared = true, .stale_data = true,
     .flock_meets_fence = true},
    {CIFS_SUPER_MAGIC, "cifs", FENCE_OFD, FENCING_UNPROVEN, .shared = true, .stale_data = true,
     .flock_meets_fence = true},
    {SMB2_SUPER_MAGIC, "smb2", FENCE_OFD, FENCING_UNPROVEN, .shared = true, .stale_data = true,
     .flock_meets_fence = true},
};
/* The careful answers, for a type that nobody has measured. */
static const struct io_fstype unknown_fstype = {
    .name = "unknown",
    .fence = FENCE_OFD,
    .fencing = FENCING_UNPROVEN,
    .shared = true,
    .stale_data = true,
    .flock_meets_fence = true,
    .open_appends = true,
};

const struct io_fstype *io_fstype(int fd)
{
    const char *pretend = HOOK_TEXT("DISKGUARD_HOOK_FSTYPE");
    struct statfs sfs;

    for (size_t i = 0; pretend && i < sizeof(fstypes) / sizeof(fstypes[0]); i++)
        if (strcmp(fstypes[i].name, pretend) == 0)
            return &fstypes[i];
    if (fstatfs(fd, &sfs) < 0)
        return &unknown_fstype;
    for (size_t i = 0; i < sizeof(fstypes) / sizeof(fstypes[0]); i++)
        if ((uint32_t)fstypes[i].magic == (uint32_t)sfs.f_type) /* f_type is a signed 32-bit word on
                                                                   some machines */
            return &fstypes[i];
    return &unknown_fstype;
}

int io_ofd_lock(int fd, short type, off_t start, off_t len)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
    int r;

    do
        r = fcntl(fd, F_OFD_SETLK, &lock);
    while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

int io_user_lock(int fd, short type, off_t start, off_t len)
{
    int r = fd < 0 ? fd : io_ofd_lock(fd, type, start, len);

    return r == -EACCES ? -EAGAIN : r;
}

static int whole_flock(int fd, int operation)
{
    int r;

    do
        r = flock(fd, operation | LOCK_NB);
    while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0; /* EWOULDBLOCK is EAGAIN */
}

static int fence(int fd, enum fence_kind kind, bool exclusive)
{
    switch (kind) {
    case FENCE_OFD:
        return io_ofd_lock(fd, exclusive ? F_WRLCK : F_RDLCK, DG_FENCE_OFFSET, 1);
    case FENCE_FLOCK: /* A conversion that is refused loses the old lock (flock(2)): after -EAGAIN
                         the descriptor has none. */
        return whole_flock(fd, exclusive ? LOCK_EX : LOCK_SH);
    case FENCE_NONE:
        return 0;
    }
    return -EINVAL;
}

int io_fence_shared(int fd, enum fence_kind kind)
{
    return fence(fd, kind, false);
}

int io_fence_exclusive(int fd, enum fence_kind kind)
{
    return fence(fd, kind, true);
}

void io_fence_pause(void)
{
    const struct timespec pause = {.tv_nsec = 20 * 1000000L};

    nanosleep(&pause, NULL);
}

#define ANNOUNCE_OFFSET (DG_FENCE_OFFSET + 1) /* shared by all that can read */
#define ANNOUNCE_RANDOM                                                                            \
    (DG_FENCE_OFFSET + 2) /* from here on: one byte for each writer that cannot */

int io_fence_announce(int fd, enum fence_kind kind)
{
    uint64_t at;
    int r;

    if (kind != FENCE_OFD)
        return 0;
    r = io_ofd_lock(fd, F_RDLCK, ANNOUNCE_OFFSET, 1);
    if (r != -EBADF)
        return r;
    if (getrandom(&at, sizeof(at), 0) != (ssize_t)sizeof(at))
        return -EAGAIN;
    return io_ofd_lock(fd, F_WRLCK, ANNOUNCE_RANDOM + (off_t)(at >> 3), 1);
}

void io_fence_drop(int fd, enum fence_kind kind)
{
    if (kind == FENCE_OFD)
        (void)io_ofd_lock(fd, F_UNLCK, DG_FENCE_OFFSET, 1);
    else if (kind == FENCE_FLOCK)
        (void)whole_flock(fd, LOCK_UN);
}

int io_lock_file(int fd, enum fence_kind kind)
{
    int r;

    if (kind == FENCE_FLOCK)
        return whole_flock(fd, LOCK_EX);
    r = io_ofd_lock(fd, F_WRLCK, 0, 0);
    if (kind == FENCE_NONE && io_err_no_locks(r))
        return 0; /* fence=none is for storage without locks. Where it has some, they still keep
                     this host's processes apart. */
    return r;
}

/* ---- edits of a guarded image ---- */

int io_header_fallocate(int fd, int mode, uint64_t off, uint64_t len)
{
    int r = HOOK_FAIL("io.header.fallocate");
    if (r < 0)
        return r;
    do
        r = fallocate(fd, mode, (off_t)off, (off_t)len) < 0 ? -errno : 0;
    while (r == -EINTR);
    return r;
}

int io_header_truncate(int fd, uint64_t size)
{
    int r = HOOK_FAIL("io.header.truncate");
    if (r < 0)
        return r;
    do
        r = ftruncate(fd, (off_t)size) < 0 ? -errno : 0;
    while (r == -EINTR);
    return r;
}

/* ---- fresh reads that nothing above needs ---- */

#define OPEN_TRIES 8 /* each failed attempt means that another host replaced the file meanwhile */

/* The attributes do not matter. Fetching them drops the names that are cached below. */
static int force_names(int dirfd)
{
    struct stat st;

    return io_fresh_stat(dirfd, &st);
}

/* One attempt; every directory on the way is forced before a name is looked up in it. */
static int open_once(int dirfd, const char *path, int flags)
{
    char name[NAME_MAX + 1];
    int at = dirfd, r;

    if (path[0] == '/')
        return -EXDEV;
    for (;;) {
        size_t len = strcspn(path, "/"), slashes = strspn(path + len, "/");
        bool last = path[len + slashes] == '\0';
        int next;

        r = len < sizeof(name) ? force_names(at) : -ENAMETOOLONG;
        if (r < 0)
            break;
        memcpy(name, path, len);
        name[len] = '\0';
        r = next =
            io_open_beneath(at, name, last ? flags | (slashes ? O_DIRECTORY : 0) : O_PATH, 0);
        if (last || r < 0)
            break;
        if (at != dirfd)
            close(at);
        at = next;
        path += len + slashes;
    }
    if (at != dirfd)
        close(at);
    return r;
}

int io_fresh_open(int dirfd, const char *path, int flags)
{
    int r = -ESTALE;

    if (flags & (O_CREAT | O_TRUNC))
        return -EINVAL; /* it only looks */
    for (unsigned tries = 0; r == -ESTALE && tries < OPEN_TRIES; tries++) {
        r = open_once(dirfd, path, flags);
        if (r == -ESTALE && force_names(dirfd) < 0)
            break; /* the directory itself is gone */
    }
    return r;
}

int io_fresh_handle(int mount_fd, const struct io_handle *h, int flags, struct stat *ret)
{
    _cleanup_close_ int fd = io_handle_open(mount_fd, h, flags);
    struct stat st;
    int r;

    if (fd < 0)
        return fd;
    r = io_fresh_stat(fd, &st);
    if (r == 0 && st.st_nlink == 0)
        r = -ESTALE;
    if (r < 0)
        return r;
    if (ret)
        *ret = st;
    return base_steal_fd(&fd);
}

int io_fresh_data(int fd, void *buf, size_t len, uint64_t off)
{
    struct stat st;
    int r = io_cache_drop(fd);

    if (r == 0)
        r = io_fresh_stat(fd, &st); /* no read goes beyond the size that this host knows of */
    return r < 0 ? r : io_pread_all(fd, buf, len, off);
}
