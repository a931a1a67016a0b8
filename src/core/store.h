/* store.h: an initialised datastore: DATASTORE/.diskguard and its directories.
 *
 * `datastore` is text: "diskguard-datastore 2", uuid=, root=<type> <hex> or -, made=<time>,
 * state=ready or upgrade, sum=<crc32> (encoded as a record). The root's file handle is compared at
 * each open: a copied or restored tree is another datastore. Format 1 has no state=. */
#ifndef DISKGUARD_STORE_H
#define DISKGUARD_STORE_H

#include "base/base.h"
#include "core/datastore.h"
#include "core/io.h"
#include "core/shards.h"

struct store {
    int root_fd;                         /* O_RDONLY | O_DIRECTORY */
    int dir_fd;                          /* .diskguard */
    int claims_fd, marks_fd, readers_fd; /* their names are in shards: shard.h */
    int tmp_fd, hosts_fd;
    struct shard_cache *shards; /* NULL: only its root is open */
    struct spares *spares;      /* spare.h; NULL: none. Whoever made them frees them */
    dev_t dev;                  /* st_dev of the root */
    ino_t dir_ino;              /* inode of .diskguard, to recognise it under any name */
    dg_uuid uuid;
    const struct io_fstype *fs;
    enum fence_kind fence;
    /* of .diskguard: whom the storage takes this process for, where it can write there */
    uid_t owner;
    bool mapped; /* and that is not our own user: the server maps us (NFS: root_squash, all_squash),
                    so other users' private files are closed to us */
    /* nothing can be written: mount read-only; or nothing may: opened by store_look */
    bool read_only;
    char path[4096];
};

/* A store that was never opened: store_close() may be called. (The versions of clang-format do not
 * agree on it.) */
/* clang-format off */
#define STORE_CLOSED {.root_fd = -1, .dir_fd = -1, .claims_fd = -1, .marks_fd = -1, \
                      .readers_fd = -1, .tmp_fd = -1, .hosts_fd = -1}
/* clang-format on */

/* Makes DATASTORE/.diskguard, durably. -EEXIST: there is one already. A half-made one is
 * completed only if `datastore` is absent, and claims/ is absent or has no claim. */
DG_MUST_CHECK int store_init(const char *path, struct store *ret, struct why *why);

/* Opens a datastore. After -EXDEV, and only then, *ret is open in spite of the error, and
 * read_only, so that fsck.diskguard -n can look at a copy. The fence is the file system's own; a
 * program with an option fence= sets ret->fence afterwards.
 * -ENOENT: never initialised; why names `diskguardctl init`.
 * -EXDEV: the root's handle differs: a copy of another datastore.
 * -EINVAL: it lies inside another datastore.
 * -EPERM: .diskguard belongs to another user, or is open to group or others.
 * -EUCLEAN: a directory in it is missing, or a shard; or a claim lies outside of the shards.
 * -EPROTONOSUPPORT: of another format, or half converted; why names the way out.
 * -ENOTDIR, -EBADMSG, or another -errno. */
DG_MUST_CHECK int store_open(const char *path, struct store *ret, struct why *why);

/* The same without a write, to look only. store_open() makes a file in tmp/ to see whether it
 * may write; fsck.diskguard -n must not do that, and diskguardctl, which may ask twice a second,
 * should not. ret->read_only is always true. Whoever may read .diskguard may look, whoever owns
 * it, and also where the datastore lies inside another one. Errors as of store_open(); after
 * -EXDEV *ret is open, too. */
DG_MUST_CHECK int store_look(const char *path, struct store *ret, struct why *why);
#define STORE_UPGRADE_LOCK "upgrade" /* in tmp/: upgrade.c */

/* Opens a datastore of any format and state that is known, to write in it: root, .diskguard, tmp/
 * and hosts/ only. A copy is refused. For upgrade.h. */
DG_MUST_CHECK int store_open_old(const char *path, struct store *ret,
                                 struct datastore_text *ret_text, struct why *why);
void store_close(
    /* also after a failed open or init; not on a struct that neither was called with */
    struct store *s);

int store_dir_fd(const struct store *s, enum shard_dir dir); /* it stays the store's */

/* Does the datastore answer now, and is it the one that was opened? Root and claims/ are asked, and
 * the file `datastore` is read. 0, -EXDEV (another one) or -errno. */
DG_MUST_CHECK int store_same(const struct store *s);

/* Is the file with this handle gone for good? This is the one judge of that: its answer may free
 * a claim. fd: a descriptor of the file, or -1.
 * 1: yes. Its link count was read as 0; or the storage answers ESTALE for the handle, and
 * store_same() was true before and after.
 * 0: it exists, whatever fd itself answers.
 * -errno, never -ESTALE: nobody can tell now.
 * ESTALE of a descriptor alone proves nothing. An NFS client that met it once repeats it for
 * ever on that descriptor, although the server may only have exported the mount point without
 * its disk for a while. So the handle is asked anew (io_fresh_handle). */
DG_MUST_CHECK int store_gone(const struct store *s, int fd, const struct io_handle *h);

/* What the storage answered about one of the datastore's own files and directories: r, or -EIO for
 * -ESTALE. A server that lost a directory is a medium at fault; -ESTALE would say that an image's
 * file is gone. */
int store_medium(int r);

/* Proves that this storage and these credentials can create, fsync, link (st_nlink 2), rename and
 * unlink below .diskguard. 0 or -errno. */
DG_MUST_CHECK int store_prove(const struct store *s, struct why *why);

#endif
