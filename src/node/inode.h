/* inode.h: inodes of the view. A node id is an index into a table, never a pointer.
 *
 * An inode is found by (st_dev, st_ino) and keeps an O_PATH descriptor. It lives while the kernel
 * knows it (nlookup > 0) or while it is pinned (handles, running operations, an image that is
 * held). The table's lock protects the counts and the hash; nothing else. */
#ifndef DISKGUARD_INODE_H
#define DISKGUARD_INODE_H

#include <stdatomic.h>
#include <sys/stat.h>

#include "base/list.h"
#include "core/io.h"
#include "node/opener.h"

struct image;
struct inode_locks;

struct inode {
    uint64_t nodeid;     /* index + INODE_ROOT_ID */
    uint64_t generation; /* part of the node id: counts how often the slot was used */
    dev_t dev;
    ino_t ino;
    mode_t type; /* S_IFMT bits */
    int fd;      /* O_PATH */
    /* Made when first needed, freed with the inode: the guard of a regular file (image_get()), and
     * its locks (fs_lock.c). */
    struct image *_Atomic image;
    struct inode_locks *_Atomic locks;
    /* The mode that was seen last has a set-user-id or set-group-id bit (fs_attr.c) */
    atomic_bool set_ids;
    /* Open handles that may read it as an image. While there are any, the kernel must not answer
     * reads from its cache (fs_open.c). */
    atomic_uint uncached;
    /* inode.c only: */
    uint64_t nlookup;
    uint64_t pins;
    /* false: another file has taken (dev, ino); this one is only reached by its node id */
    bool hashed;
    bool used; /* used since inode_idle_names() passed by */
    /* A thread that is not known saw that `name` leads to another file. */
    bool doubted;
    uint64_t named; /* when `name` was noted, in ticks of the table */
    /* size and ctime that the kernel was told last */
    uint64_t shown_size;
    struct timespec shown_ctime;
    uint64_t parent; /* where the kernel looked it up last; NULL name: unknown */
    char *name;
    /* The name before that one, and the time until which it counts (CLOCK_MONOTONIC). */
    uint64_t former_parent, former_until;
    char *former;
    LIST_ENTRY(inode) entry; /* in a bucket, or in the list of free slots */
};

#define INODE_ROOT_ID 1 /* FUSE_ROOT_ID, <fuse_lowlevel.h> */

/* Frees the parts of a dying inode that other modules made. */
struct inode_parts {
    void (*free_image)(struct image *img);
    void (*free_locks)(struct inode_locks *locks);
};
struct inode_table *inode_table_new(const struct inode_parts *parts); /* NULL: out of memory */
void inode_table_free(struct inode_table *t);
/* The root; nodeid INODE_ROOT_ID. Takes fd. 0 or -errno. */
DG_MUST_CHECK int inode_table_root(struct inode_table *t, int fd, const struct stat *st);

/* Pins the inode of a node id. NULL: unknown (answer ESTALE). */
struct inode *inode_get(struct inode_table *t, uint64_t nodeid);
void inode_pin(struct inode_table *t, struct inode *i);
void inode_put(struct inode_table *t, struct inode *i); /* NULL is fine */

/* Finds or makes the inode of an open O_PATH descriptor (always consumed), counts one lookup if
 * `lookup`, pins it. NULL: out of memory. */
struct inode *inode_enter(struct inode_table *t, int fd, const struct stat *st, bool lookup);
/* Finds the inode of a file on storage of this host alone, by its attributes, as inode_enter(): it
 * keeps a descriptor, so that no other file has its number. NULL: it is not known. */
struct inode *inode_find(struct inode_table *t, const struct stat *st, bool lookup);
void inode_forget(struct inode_table *t, uint64_t nodeid, uint64_t nlookup);
unsigned long inode_count(const struct inode_table *t);

/* Notes the name under which the kernel knows the inode of a counted lookup, so that prune.h can
 * ask it to forget that name. Every operation that answers with an entry calls this. keep_ms: for
 * how long the kernel may still know the former name; 0: it does not. */
void inode_named(struct inode_table *t, struct inode *i, const struct inode *dir, const char *name,
                 uint64_t keep_ms);
/* Copies the name last noted; "": there is none. */
void inode_last_name(struct inode_table *t, const struct inode *i, char *ret, size_t size);
/* Returns the directory of the name last noted, pinned, and copies the name. NULL: there is none,
 * or it is in doubt. */
struct inode *inode_last_place(struct inode_table *t, struct inode *i, char *ret, size_t size);
/* The same for the name before, while the kernel may still know it. */
struct inode *inode_former_place(struct inode_table *t, struct inode *i, char *ret, size_t size);
/* Reports that the name leads to another file. true: tell thread `pid` to walk the path again.
 * false: it was just told so. Then it comes without a path (/proc/self/fd), or the name was looked
 * up since, and what that found is no older than its own system call. pid 0: unknown; true once for
 * each inode_named(). */
bool inode_doubt_name(struct inode_table *t, struct inode *i, const struct inode *dir,
                      uint64_t pid);
/* Reports that a name leads to its file, or to none. What the thread was told before is settled. */
void inode_trust_name(struct inode_table *t, uint64_t pid);
/* Notes attributes that the kernel is about to be told and may keep for a while. */
void inode_show(struct inode_table *t, struct inode *i, const struct stat *st);
/* Do these attributes of the same file differ from those? */
bool inode_has_news(struct inode_table *t, const struct inode *i, const struct stat *st);
/* Opens the inode's file again: io_reopen(). */
DG_MUST_CHECK int inode_reopen(const struct inode *i, int flags);
/* Is its file system one that no other host can mount, as far as is known? */
bool inode_is_local(const struct inode_table *t, const struct inode *i);
/* Does this descriptor (O_PATH or not) refer to the inode's file? */
bool inode_is_file(const struct inode_table *t, const struct inode *i, int fd);
/* Calls crowded() for each new inode while there are more than limit. It is called under the
 * table's lock, so it may only wake a thread. limit 0 ends this. */
void inode_watch(struct inode_table *t, unsigned long limit, void (*crowded)(void *arg), void *arg);
/* Finds a regular file that only the kernel's cache keeps, and pins it: the first at or after
 * *hand, which moves on. NULL: there is none. This does not mark it as used. */
struct inode *inode_next_idle(struct inode_table *t, uint64_t *hand);
struct inode_name {
    uint64_t parent;
    char *name; /* freed by the caller */
};
/* Copies the name of such a file, which the caller alone has pinned, and the node id of its
 * directory. The inode keeps the name: an open by it is still told that it leads elsewhere. false:
 * it has no name, is in use, or memory is short. */
bool inode_copy_name(struct inode_table *t, struct inode *i, struct inode_name *ret);
/* Takes the names of inodes that only the kernel's cache keeps, roughly the least recently used
 * ones. No directories. */
unsigned inode_idle_names(struct inode_table *t, struct inode_name *ret, unsigned max);

#endif
