#include "view/fs.h"

#define MAX_WRITE (1024u * 1024u)
#define MAX_BACKGROUND 256u /* queue depth of asynchronous I/O that the kernel lets through */
#define CONGESTION 192u

static void fs_init(void *userdata, struct fuse_conn_info *conn)
{
    const struct view *v = userdata;
    const unsigned wanted = FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_READDIRPLUS |
                            FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_ASYNC_READ | FUSE_CAP_ASYNC_DIO |
                            FUSE_CAP_POSIX_LOCKS | FUSE_CAP_FLOCK_LOCKS | FUSE_CAP_DONT_MASK |
                            FUSE_CAP_POSIX_ACL | FUSE_CAP_EXPORT_SUPPORT | FUSE_CAP_AUTO_INVAL_DATA;
    /* No writeback cache: what the holder wrote must be on the datastore when write(2) returns. The
     * kernel, not we, drops set-id bits. Requests are read, not spliced: a spliced payload has no
     * address to align.
     */
    const unsigned unwanted = FUSE_CAP_WRITEBACK_CACHE | FUSE_CAP_HANDLE_KILLPRIV |
                              FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE;
    /* A listing with attributes spares a LOOKUP for each name. On storage that other hosts mount
     * they may cost a round trip each: there the kernel asks for them where it has seen a program
     * look the names up (FUSE_READDIRPLUS_AUTO), which mostly comes too late. */
    const unsigned plus = v->guard->store.fs->shared ? FUSE_CAP_READDIRPLUS_AUTO : 0;
    conn->want &= ~(unsigned)FUSE_CAP_READDIRPLUS_AUTO;
    conn->want = ((conn->want | wanted | plus) & conn->capable) & ~unwanted;
    conn->max_write = MAX_WRITE;
    conn->max_read = v->max_read;
    conn->max_background = MAX_BACKGROUND;
    conn->congestion_threshold = CONGESTION;
    conn->time_gran = 1;
}

const struct fuse_lowlevel_ops fs_ops = {
    .init = fs_init,
    .lookup = fs_lookup,
    .forget = fs_forget,
    .forget_multi = fs_forget_multi,
    .getattr = fs_getattr,
    .setattr = fs_setattr,
    .readlink = fs_readlink,
    .mknod = fs_mknod,
    .mkdir = fs_mkdir,
    .symlink = fs_symlink,
    .link = fs_link,
    .unlink = fs_unlink,
    .rmdir = fs_rmdir,
    .rename = fs_rename,
    .open = fs_open,
    .create = fs_create,
    .read = fs_read,
    .write = fs_write,
    .flush = fs_flush,
    .release = fs_release,
    .fsync = fs_fsync,
    .fallocate = fs_fallocate,
    .lseek = fs_lseek,
    .copy_file_range = fs_copy_file_range,
    .opendir = fs_opendir,
    .readdir = fs_readdir,
    .readdirplus = fs_readdirplus,
    .releasedir = fs_releasedir,
    .fsyncdir = fs_fsyncdir,
    .statfs = fs_statfs,
    .setxattr = fs_setxattr,
    .getxattr = fs_getxattr,
    .listxattr = fs_listxattr,
    .removexattr = fs_removexattr,
    .getlk = fs_getlk,
    .setlk = fs_setlk,
    .flock = fs_flock,
};
