/* io.h: every system call that reads or writes header, claim or host-record bytes on the datastore.
 * One choke point: what is "fresh" and what is "durable" is decided here and nowhere else. All
 * functions return 0 (or a count) or -errno; all retry EINTR and short counts.
 *
 * Fresh. On NFS a name is cached for up to 30 s and data without limit, so a read that decides
 * something goes through one of the io_fresh_* functions. `grep -rn io_fresh_ src tools` lists
 * all of them, and tests/layering.py fails on any other such read. Each comment below names the
 * measurement that it rests on: two clients, one server, Linux 6.1, NFSv3 and NFSv4.2 with
 * default mount options, 10 to 90 s of watching. OCFS2 and GFS2 showed nothing stale in these
 * tests. On a local file system these functions cost one cheap system call more. What an open
 * descriptor refers to is never stale: its inode number, device, type and file handle do not
 * change. */
#ifndef DISKGUARD_IO_H
#define DISKGUARD_IO_H

#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>

#include "base/base.h"
#include "format/format.h"

#define IO_HANDLE_MAX 128 /* MAX_HANDLE_SZ, <linux/exportfs.h> */
struct io_handle;
struct io_fstype;

/* ---- what an errno says (negative, as everywhere) ---- */

/* The storage has given up this descriptor; a new one of the same file may work. EIO and ESTALE are
 * what it answers then, EBADF and ENOLCK what an NFS client answers once a server has taken the
 * locks of its host away. */
static inline bool io_err_dead(int err)
{
    return err == -EIO || err == -ESTALE || err == -EBADF || err == -ENOLCK;
}
/* The file system has no such locks. ENOLCK means this only before it has granted one: afterwards
 * the descriptor is dead. */
static inline bool io_err_no_locks(int err)
{
    return err == -ENOLCK || err == -EOPNOTSUPP || err == -ENOSYS || err == -EINVAL;
}
/* The caller has no permission. */
static inline bool io_err_denied(int err)
{
    return err == -EACCES || err == -EPERM;
}
/* This host or this process is short of something just now: it says nothing about the file. */
static inline bool io_err_short(int err)
{
    return err == -EMFILE || err == -ENFILE || err == -ENOMEM;
}
/* The file cannot be opened for write. Perhaps it can for reading. */
static inline bool io_err_readonly(int err)
{
    return io_err_denied(err) || err == -EROFS || err == -ETXTBSY;
}

/* ---- locks ---- */

/* fcntl(F_OFD_SETLK); len 0: to the end. 0, -EAGAIN: another lock is in the way, or -errno. */
int io_ofd_lock(int fd, short type, off_t start, off_t len);
/* The same for a lock of a program: it is told EAGAIN for EACCES, too, for fcntl(2) allows both. */
int io_user_lock(int fd, short type, off_t start, off_t len);

/* ---- files below the datastore ---- */

/* openat2(2) with RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS and O_CLOEXEC:
 * never leaves dirfd. fd or -errno. */
DG_MUST_CHECK int io_open_beneath(int dirfd, const char *path, int flags, mode_t mode);

/* Opens again, with `flags`, the file that fd (which may be O_PATH) refers to, through
 * /proc/self/fd. Regular files only: -EINVAL. */
DG_MUST_CHECK int io_reopen(int fd, int flags);
/* The same of a descriptor that is known to refer to a regular file. */
DG_MUST_CHECK int io_reopen_regular(int fd, int flags);

DG_MUST_CHECK int io_fsync(int fd);
/* For a descriptor through which nothing was written yet. Takes away the write error that an
 * earlier writer of this host left: the kernel reports it to the next descriptor that asks
 * (errseq_t, Documentation/core-api/errseq.rst). An example is a former hold whose late writes
 * the storage refused. What is dirty is written, so that io_cache_drop() can drop it; nothing is
 * made durable by it. 0, or the error that was taken: the cache then shows bytes that the disk
 * does not have, until it is dropped. */
int io_fsync_former(int fd);
/* -ENODATA at end of file */
DG_MUST_CHECK int io_pread_all(int fd, void *buf, size_t len, uint64_t off);
/* -EIO on a zero count */
DG_MUST_CHECK int io_pwrite_all(int fd, const void *buf, size_t len, uint64_t off);

/* ---- fresh reads ---- */

/* Attributes: statx(AT_EMPTY_PATH, AT_STATX_FORCE_SYNC) of an open descriptor, which may be O_PATH.
 * Measured: this showed another client's change at once. fstat(2) showed it 2.8 s late, and
 * later still when the file had been at rest for longer. -ESTALE: the file is gone. */
DG_MUST_CHECK int io_fresh_stat(int fd, struct stat *ret);

/* The names of a directory: opens it anew, forces its attributes, drops what the client keeps of
 * an earlier listing, and reads it. Calls fn for each entry but "." and "..". When fn returns
 * another value than 0, the listing stops and returns it. Measured: stat, open and access missed a
 * new name for 29.7 s when this client had seen it absent; opendir and readdir showed it at once,
 * but on NFSv3 not if it was made in the same tick as an earlier change that had been listed. A
 * listing is no snapshot. It may miss an entry that comes or goes meanwhile; on btrfs also one that
 * is renamed over. */
DG_MUST_CHECK int io_fresh_dir(int dirfd, int (*fn)(void *arg, const char *name), void *arg);

/* What a name or a relative path leads to now. As io_open_beneath, but forces the attributes of
 * each directory before it looks a name up in it; the path may contain no symbolic link and no
 * "..". fd or -errno; -EINVAL for O_CREAT and O_TRUNC. Measured: another client renamed or
 * removed the file; open(2), O_DIRECT or not, reached the old one for 29.8 s. After
 * statx(AT_STATX_FORCE_SYNC) of the directory it was right in every case: renamed, renamed over,
 * removed and made again, made where it was absent. */
DG_MUST_CHECK int io_fresh_open(int dirfd, const char *path, int flags);

/* Attributes of the file that one name in a directory leads to now; never follows a symbolic link.
 * Only on a file system that no other host can mount (io_fstype.shared), where this host's own
 * names are the truth: one call, where io_fresh_open() and its descriptor are four. 0 or -errno. */
DG_MUST_CHECK int io_local_name(int dirfd, const char *name, struct stat *ret);

/* The file of a handle, if it still exists: opens it and asks the server for its attributes. An
 * NFS client answers open_by_handle_at(2) from its inode cache, without asking anybody
 * (nfs_fh_to_dentry, fs/nfs/export.c), so that alone proves nothing.
 * *ret (may be NULL): its attributes, as fresh as those of io_fresh_stat.
 * Returns fd; -ESTALE: gone, the server does not know it or it has no name left; -EOPNOTSUPP: no
 * handle; or -errno. */
DG_MUST_CHECK int io_fresh_handle(int mount_fd, const struct io_handle *h, int flags,
                                  struct stat *ret);

/* Bytes: drops the cached pages, fetches the size, and reads exactly len bytes at off. -ENODATA
 * at end of file. Measured: while this client had the file open read-write, a buffered read
 * never showed what another client wrote (90 s), not even through a new descriptor. A read after
 * posix_fadvise(DONTNEED) was fresh in every case. */
DG_MUST_CHECK int io_fresh_data(int fd, void *buf, size_t len, uint64_t off);

/* ---- small text files (records) ---- */

/* Reads a whole file of at most max bytes; -EFBIG: it has more. -EINVAL: it is no regular file.
 * -EAGAIN: it was replaced faster than it could be read. *ret_text is NUL-terminated and freed
 * by the caller. The name is fresh as in io_fresh_open, the bytes as in io_fresh_header. */
DG_MUST_CHECK int io_fresh_text(int dirfd, const char *name, size_t max, char **ret_text,
                                size_t *ret_len);

/* Creates tmp_name (O_EXCL, 0600) in dirfd, writes, fsyncs. Returns the open descriptor
 * (read-write) or -errno; nothing is left on failure. */
DG_MUST_CHECK int io_text_create(int dirfd, const char *tmp_name, const void *text, size_t len);

/* ---- image headers ---- */

/* Drops every clean cached page of the file so that the next read asks the storage. */
DG_MUST_CHECK int io_cache_drop(int fd);

/* The same, but not on a file system that only this host can mount (io_fstype.shared): nobody
 * changes there what this host has cached. Not for one who asks what the disk took. */
DG_MUST_CHECK int io_cache_drop_shared(int fd);

/* Drops the cached pages of a range, and as few others as it can. */
DG_MUST_CHECK int io_header_drop(int fd, uint64_t off, size_t len);

/* Reads up to len bytes at off, as the storage has them: past the cache, but not on a file system
 * that only this host can mount (io_fstype.shared), where nobody else changes what is cached.
 * Returns the count or -errno. The count is short only at the end of the file as this host knows
 * it, so call io_fresh_stat first. Rests on the same measurement as io_fresh_data. */
DG_MUST_CHECK ssize_t io_fresh_header(int fd, void *buf, size_t len, uint64_t off);

/* The same for one who knows the type of the file system. */
DG_MUST_CHECK ssize_t io_fresh_header_on(const struct io_fstype *fs, int fd, void *buf, size_t len,
                                         uint64_t off);

/* Reads guest data past the cache, for files that another host may write (io_fstype.stale_data).
 * As pread(2): the count or -errno. direct_fd is the same file open O_DIRECT, or -1. A read
 * through O_DIRECT was measured fresh on NFSv3 and v4.2, and leaves no page behind that could be
 * stale later. Where direct_fd is missing or wants an alignment (EINVAL), it reads through fd
 * after posix_fadvise(DONTNEED). */
DG_MUST_CHECK ssize_t io_fresh_guest_data(int direct_fd, int fd, void *buf, size_t len,
                                          uint64_t off);

/* pwrite of header bytes through the seal's descriptor. Not durable before io_fsync. */
DG_MUST_CHECK int io_header_write(int fd, const void *buf, size_t len, uint64_t off);

/* fallocate(2) and ftruncate(2) of a guarded image, through the seal's descriptor. */
DG_MUST_CHECK int io_header_fallocate(int fd, int mode, uint64_t off, uint64_t len);
DG_MUST_CHECK int io_header_truncate(int fd, uint64_t size);

/* Sets mtime only (futimens); tv_nsec may be UTIME_NOW. */
int io_set_mtime(int fd, struct timespec mtime);

/* ---- file handles: name_to_handle_at(2), open_by_handle_at(2) ---- */

struct io_handle {
    int type;
    unsigned len; /* 0: the file system has no handles; equal only to another empty one */
    uint8_t bytes[IO_HANDLE_MAX];
};
DG_MUST_CHECK int
/* fd may be O_PATH; 0 with len 0 on EOPNOTSUPP/EOVERFLOW */
io_handle_get(int fd, struct io_handle *ret);
bool io_handle_equal(const struct io_handle *a, const struct io_handle *b);
/* Opens by handle on the file system of mount_fd. fd, -ESTALE (the file is gone), -EOPNOTSUPP (no
 * handle) or -errno. The descriptor does not prove that the file still exists; io_fresh_handle
 * does. */
DG_MUST_CHECK int io_handle_open(int mount_fd, const struct io_handle *h, int flags);

/* ---- file system types and the fence lock ---- */

enum fence_kind {
    FENCE_OFD,   /* F_OFD_SETLK on the byte DG_FENCE_OFFSET */
    FENCE_FLOCK, /* flock(2): where byte locks do not leave the host (OCFS2) */
    FENCE_NONE
};
/* Another host has the fence lock exclusively now. Can late writes of the host that lost it
 * still land? DESIGN 10.1 and 10.2. */
enum fencing {
    FENCING_NO,       /* they can (NFSv3), or the lock does not reach other hosts */
    FENCING_UNPROVEN, /* nobody has shown that they cannot (OCFS2, GFS2, Ceph ...) */
    FENCING_LOCK /* measured: they cannot (NFSv4); or one kernel has both the lock and the writes
                    (local file systems) */
};
const char *io_fencing_name(enum fencing f); /* "no", "unproven", "lock" */

struct io_fstype {
    long magic;       /* statfs(2) f_type */
    const char *name; /* for people */
    enum fence_kind fence;
    /* NFS: of version 4; the mount's options have their say in io_fencing() */
    enum fencing fencing;
    bool shared; /* more than one host can mount it */
    /* A client may show cached data that another host has changed since. Measured on NFS; OCFS2
     * and GFS2 were always coherent; the others were not measured. */
    bool stale_data;
    /* flock and byte locks meet each other there (NFS): a user's flock would meet the fence. */
    bool flock_meets_fence;
    /* Its server appends by itself, and learns from the open alone that it is to. */
    bool open_appends;
};
/* Returns a row, never NULL. An unknown type gets the row "unknown", with OFD. */
const struct io_fstype *io_fstype(int fd);

/* Takes O_APPEND off a descriptor. false: it stays: of an append-only file (chattr +a), or its
 * storage would not append otherwise. */
bool io_drop_append(int fd, const struct io_fstype *fs);
/* Writes at the end of the file, wherever that is now: in one step with finding it, where the
 * storage has O_APPEND so (RWF_APPEND). A count, or -errno. */
DG_MUST_CHECK ssize_t io_append(int fd, const void *buf, size_t len);

/* Does the fence lock fence this host, when it is taken through the mount that fd lies on? Reads
 * anew each time:
 * - /proc/self/mountinfo;
 * - for NFS, /sys/module/nfs/parameters/recover_lost_locks: with Y the client takes lost locks
 *   again behind our back, and late writes land;
 * - for NFS, /proc/self/mountstats: with pNFS, data goes to servers that do not see the lock.
 * What cannot be told is never FENCING_LOCK. *ret_why (may be NULL): a clause for people, never
 * freed; "" for FENCING_LOCK. */
enum fencing io_fencing(int fd, enum fence_kind kind, const char **ret_why);
/* The same from what was read. Pure. */
struct io_mount {
    const char *type, *options; /* of the mount, or NULL: not found. Only for NFS, as the rest */
    char recover_lost_locks;    /* 'Y', 'N' or 0: cannot be read */
    char pnfs;                  /* 'Y', 'N' or 0: cannot be read */
};
enum fencing io_fencing_judge(const struct io_fstype *fs, enum fence_kind kind,
                              const struct io_mount *mount, const char **ret_why);

/* Takes the fence lock on a descriptor that is open read-write. Writers take it shared, also
 * those of plain files. Recovery takes it exclusively, and so does, at first, whoever claims.
 * Never waits. -EAGAIN: somebody else holds it in a mode that is in the way. Also converts from
 * one mode to the other. Where flock refuses a conversion, the former lock is lost (flock(2)):
 * close the descriptor then. FENCE_NONE: 0. */
DG_MUST_CHECK int io_fence_shared(int fd, enum fence_kind kind);
DG_MUST_CHECK int io_fence_exclusive(int fd, enum fence_kind kind);
/* Waits a moment before a fence lock that was refused is asked for again. */
void io_fence_pause(void);
/* Announces that a descriptor writes a plain file, by a lock beyond the fence's byte. That lock
 * is in nobody's way, not even in that of a claim of this host. An NFSv4 server takes all locks of
 * a host at once, and then refuses the writes of each descriptor that had one. Take it before
 * the fence, or before a proof that the fence still stands. Does nothing for FENCE_FLOCK and
 * FENCE_NONE. */
DG_MUST_CHECK int io_fence_announce(int fd, enum fence_kind kind);
/* Drops the fence lock of a descriptor that stays open but writes no more. Closing drops it,
 * too. */
void io_fence_drop(int fd, enum fence_kind kind);

/* Exclusive lock on a whole small file (hosts/ record, lock file). -EAGAIN: another process has it.
 * Kept until fd is closed. FENCE_NONE: a byte lock too, but storage without locks answers 0. */
DG_MUST_CHECK int io_lock_file(int fd, enum fence_kind kind);

#endif
