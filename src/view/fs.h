/* fs.h: the FUSE operations, in files by kind. loop.c says on which thread each of them runs: READ
 * and WRITE of guest data, fsync, lookups, attributes, listings, opens for reading, and what
 * concerns plain files alone (create, flush, release, unlink) on the receiver; other READ and WRITE
 * in the lane of the file; the rest on the pool. */
#ifndef DISKGUARD_FS_H
#define DISKGUARD_FS_H

#include "view/view.h"

extern const struct fuse_lowlevel_ops fs_ops; /* fs.c: the table, init, destroy */

/* fs_name.c: lookup, mknod, mkdir, symlink, link, readlink; fs_remove.c: unlink, rmdir, rename */
void fs_lookup(fuse_req_t req, fuse_ino_t parent, const char *name);
void fs_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup);
void fs_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets);
void fs_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev);
void fs_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode);
void fs_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name);
void fs_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t newparent, const char *newname);
void fs_unlink(fuse_req_t req, fuse_ino_t parent, const char *name);
void fs_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name);
void fs_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
               const char *newname, unsigned flags);
void fs_readlink(fuse_req_t req, fuse_ino_t ino);

/* Is this name, in this directory, the hidden one? For names about to be made or looked up. */
bool fs_name_hidden(const struct inode *dir, const char *name);
/* Looks a name up: fills *ret with attributes and a counted lookup, *ret_inode pinned (may be
 * NULL). fresh: past what the storage's client has cached of the directory, for a lookup that
 * decides something. 0 or -errno. */
DG_MUST_CHECK int fs_name_lookup(struct view *v, struct inode *dir, const char *name, bool fresh,
                                 struct fuse_entry_param *ret, struct inode **ret_inode);
/* The inode of a name, pinned; *ret_st as on the datastore. lookup: counted; fresh: as above. 0 or
 * -errno. */
DG_MUST_CHECK int fs_name_inode(struct view *v, struct inode *dir, const char *name, bool lookup,
                                bool fresh, struct stat *ret_st, struct inode **ret);
/* Is this directory `top`, or below it? */
bool fs_name_beneath(int dir_fd, const struct inode *top);
/* Seconds for which the kernel may answer for a name by itself. Not at all for a file that has
 * several: the one that was asked for last says whether it is a raw image (image_name_is_raw()).
 * Whatever is decided by a name is looked at afresh all the same: fs_name_moved(). */
double fs_name_timeout(const struct view *v, const struct stat *st);
/* The same in ms, rounded up, for inode_named(). */
uint64_t fs_name_keep_ms(const struct view *v);
/* Does the name under which the kernel found this file lead to another one now, or nowhere? Asked
 * freshly, for an open or truncation by path: the plain lookup before it may have answered from a
 * cache. On true the caller answers ESTALE: the kernel then walks the path again (do_filp_open,
 * fs/namei.c), and now finds what is there. True at most once for each lookup and for each walk, so
 * that a file that is reached without its name
 * (/proc/self/fd, an NFS handle), or whose name is replaced all the time, can still be opened.
 * *ret_named: as struct file_probe has it. */
bool fs_name_moved(fuse_req_t req, struct inode *i, bool *ret_named);

/* fs_attr.c: getattr, setattr (the size branch calls image_truncate), statfs, access, xattr */
void fs_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
                struct fuse_file_info *fi);
void fs_statfs(fuse_req_t req, fuse_ino_t ino);
void fs_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size,
                 int flags);
void fs_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size);
void fs_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size);
void fs_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name);
/* Attributes as the view shows them: fresh from the datastore, with the holder's mtime of a held
 * image. 0 or -errno. */
DG_MUST_CHECK int fs_attr_get(struct view *v, struct inode *i, struct stat *ret);
/* Seconds for which the kernel may answer with these attributes by itself, which it is shown now.
 * Not at all while the file is open here as an image: another host may be writing it, and its size
 * is then a part of its content. */
double fs_attr_timeout(struct view *v, struct inode *i, const struct stat *st);
/* The same for attributes just read from the datastore. */
void fs_attr_show(const struct view *v, struct inode *i, struct stat *st);
/* The caller changes the file's bytes: unless it is root with CAP_FSETID, the set-id bits go
 * (inode(7)). The kernel of the view does that for cached writes and truncate(2), by the mode that
 * it was told last; it leaves the rest to us: direct I/O, fallocate, copies, O_TRUNC. Costs nothing
 * where the mode that was seen last has none: at the open of the handle, or since. */
void fs_attr_drop_ids(fuse_req_t req, struct inode *i);
/* These are its attributes now. */
void fs_attr_note_ids(struct inode *i, const struct stat *st);
/* Inode numbers of file systems mounted below the datastore must not collide with its own: programs
 * take equal ones for hard links. */
ino_t fs_attr_ino(const struct view *v, dev_t dev, ino_t ino);
/* "/proc/self/fd/N": names what an O_PATH descriptor refers to, for system calls that take a path
 * only. */
#define FS_PROC_PATH_SIZE 32
void fs_attr_proc_path(int fd, char ret[FS_PROC_PATH_SIZE]);

/* fs_dir.c */
void fs_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void fs_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                    struct fuse_file_info *fi);
void fs_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);

/* fs_lock.c: POSIX, OFD and flock locks */
void fs_getlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *lock);
void fs_setlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *lock,
              int sleep);
void fs_flock(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, int op);
/* FLUSH of an owner (close(2) drops all its POSIX locks) and release of a handle (its OFD and flock
 * locks go). */
void fs_lock_flush(struct view *v, fuse_req_t req, struct handle *h, uint64_t owner);
void fs_lock_release(struct view *v, struct handle *h);
void fs_lock_free(struct inode_locks *locks);

/* fs_open.c: open, create, tmpfile, flush, release */
void fs_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
               struct fuse_file_info *fi);
void fs_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);

/* fs_data.c: read, write, fsync, fallocate, lseek, copy_file_range */
void fs_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void fs_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
              struct fuse_file_info *fi);
void fs_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void fs_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len,
                  struct fuse_file_info *fi);
void fs_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi);
void fs_copy_file_range(fuse_req_t req, fuse_ino_t ino_in, off_t off_in,
                        struct fuse_file_info *fi_in, fuse_ino_t ino_out, off_t off_out,
                        struct fuse_file_info *fi_out, size_t len, int flags);
/* Does a READ or WRITE that begins here go straight to the handle's descriptor, so that it waits
 * for nothing but its own data? */
bool fs_data_read_direct(const struct handle *h, uint64_t off);
bool fs_data_write_direct(const struct handle *h, bool append, uint64_t off);

#endif
