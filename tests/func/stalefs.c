/* stalefs: a pass-through file system for tests, whose clients keep stale data as NFS does: each
 * mount of one directory stands for a client, whose page cache is never told of what another mount
 * has written. Names and attributes are always fresh; O_DIRECT and posix_fadvise(DONTNEED) are,
 * too.
 *
 *     stalefs DIRECTORY MOUNTPOINT        in the foreground, until it is unmounted */
#define FUSE_USE_VERSION 314
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

static int root;

static const char *at(const char *path)
{
    return path[1] ? path + 1 : ".";
}

static int answer(long r)
{
    return r < 0 ? -errno : (int)r;
}

static void *fs_init(struct fuse_conn_info *conn, struct fuse_config *cfg)
{
    conn->want &= ~(unsigned)FUSE_CAP_AUTO_INVAL_DATA;
    cfg->use_ino = 1;
    cfg->kernel_cache = 1; /* an open keeps what is cached */
    cfg->hard_remove = 1;
    cfg->attr_timeout = cfg->entry_timeout = cfg->negative_timeout = 0;
    return NULL;
}

static int fs_getattr(const char *path, struct stat *st, struct fuse_file_info *fi)
{
    return answer(fi ? fstat((int)fi->fh, st) : fstatat(root, at(path), st, AT_SYMLINK_NOFOLLOW));
}

static int fs_open(const char *path, struct fuse_file_info *fi)
{
    int fd = openat(root, at(path), fi->flags & ~(O_DIRECT | O_CREAT | O_EXCL));
    fi->fh = (uint64_t)fd;
    return fd < 0 ? -errno : 0;
}

static int fs_create(const char *path, mode_t mode, struct fuse_file_info *fi)
{
    int fd = openat(root, at(path), (fi->flags & ~O_DIRECT) | O_CREAT, mode);
    fi->fh = (uint64_t)fd;
    return fd < 0 ? -errno : 0;
}

static int fs_release(const char *path, struct fuse_file_info *fi)
{
    (void)path;
    return answer(close((int)fi->fh));
}

static int fs_read(const char *path, char *buf, size_t size, off_t off, struct fuse_file_info *fi)
{
    (void)path;
    return answer(pread((int)fi->fh, buf, size, off));
}

static int fs_write(const char *path, const char *buf, size_t size, off_t off,
                    struct fuse_file_info *fi)
{
    (void)path;
    return answer(pwrite((int)fi->fh, buf, size, off));
}

static int fs_truncate(const char *path, off_t size, struct fuse_file_info *fi)
{
    if (fi)
        return answer(ftruncate((int)fi->fh, size));
    int fd = openat(root, at(path), O_WRONLY);
    int r = fd < 0 ? -errno : answer(ftruncate(fd, size));
    if (fd >= 0)
        close(fd);
    return r;
}

static int fs_fsync(const char *path, int data, struct fuse_file_info *fi)
{
    (void)path, (void)data;
    return answer(fsync((int)fi->fh));
}

static int fs_readdir(const char *path, void *buf, fuse_fill_dir_t fill, off_t off,
                      struct fuse_file_info *fi, enum fuse_readdir_flags flags)
{
    (void)off, (void)fi, (void)flags;
    int fd = openat(root, at(path), O_RDONLY | O_DIRECTORY);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir)
        return -errno;
    for (struct dirent *e; (e = readdir(dir));)
        if (fill(buf, e->d_name, NULL, 0, 0))
            break;
    closedir(dir);
    return 0;
}

static int fs_mkdir(const char *path, mode_t mode)
{
    return answer(mkdirat(root, at(path), mode));
}

static int fs_unlink(const char *path)
{
    return answer(unlinkat(root, at(path), 0));
}

static int fs_rmdir(const char *path)
{
    return answer(unlinkat(root, at(path), AT_REMOVEDIR));
}

static int fs_link(const char *from, const char *to)
{
    return answer(linkat(root, at(from), root, at(to), 0));
}

static int fs_rename(const char *from, const char *to, unsigned flags)
{
    return answer(renameat2(root, at(from), root, at(to), flags));
}

static int fs_chmod(const char *path, mode_t mode, struct fuse_file_info *fi)
{
    (void)fi;
    return answer(fchmodat(root, at(path), mode, 0));
}

static int fs_utimens(const char *path, const struct timespec tv[2], struct fuse_file_info *fi)
{
    return answer(fi ? futimens((int)fi->fh, tv)
                     : utimensat(root, at(path), tv, AT_SYMLINK_NOFOLLOW));
}

static int fs_statfs(const char *path, struct statvfs *st)
{
    (void)path;
    return answer(fstatvfs(root, st));
}

static const struct fuse_operations ops = {
    .init = fs_init,
    .getattr = fs_getattr,
    .open = fs_open,
    .create = fs_create,
    .release = fs_release,
    .read = fs_read,
    .write = fs_write,
    .truncate = fs_truncate,
    .fsync = fs_fsync,
    .fsyncdir = NULL,
    .readdir = fs_readdir,
    .mkdir = fs_mkdir,
    .unlink = fs_unlink,
    .rmdir = fs_rmdir,
    .link = fs_link,
    .rename = fs_rename,
    .chmod = fs_chmod,
    .utimens = fs_utimens,
    .statfs = fs_statfs,
};

int main(int argc, char **argv)
{
    if (argc != 3 || (root = open(argv[1], O_RDONLY | O_DIRECTORY)) < 0) {
        fprintf(stderr, "usage: stalefs DIRECTORY MOUNTPOINT\n");
        return 2;
    }
    static char f[] = "-f", s[] = "-s", o[] = "-o", options[] = "allow_other,default_permissions";
    char *args[] = {argv[0], f, s, o, options, argv[2], NULL};
    return fuse_main(6, args, &ops, NULL);
}
