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
    uint64_t generation; /* of the node id: counts its reuse */
    dev_t dev;
    ino_t ino;
    mode_t type; /* S_IFMT bits */
    int fd;      /* O_PATH */
    /* Made at need, freed with the inode: the guard of a regular file (image_get()), and its locks
     * (fs_lock.c). */
    struct image *_Atomic image;
    struct inode_locks *_Atomic locks;
    /* Open handles that may read it as an image: the kernel must not answer for it (fs_open.c) */
    atomic_uint uncached;
    /* inode.c only: */
    uint64_t nlookup;
    uint64_t pins;
    /* false: another file has taken (dev, ino); this one is only reached by its node id */
    bool hashed;
    bool used;      /* since inode_idle_names() passed by */
    bool doubted;   /* `name` was seen to lead elsewhere by somebody whose thread is not known */
    uint64_t named; /* when `name` was noted, in ticks of the table */
    /* what the kernel was told last of its size and ctime */
    uint64_t shown_size;
    struct timespec shown_ctime;
    uint64_t parent; /* where the kernel looked it up last; name NULL: unknown */
    char *name;
    /* The name before, in the same way; and until when it counts, CLOCK_MONOTONIC. */
    uint64_t former_parent, former_until;
    char *former;
    LIST_ENTRY(inode) entry; /* in a bucket, or in the list of free slots */
};

#define INODE_ROOT_ID 1 /* FUSE_ROOT_ID, <fuse_lowlevel.h> */

/* Frees the parts of an inode that dies, which other modules made. */
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
void inode_forget(struct inode_table *t, uint64_t nodeid, uint64_t nlookup);
unsigned long inode_count(const struct inode_table *t);

/* Notes the name under which the kernel knows the inode of a counted lookup, so that it can be
 * asked to forget it (prune.h). Every operation that answers with an entry calls this. keep_ms: so
 * long the kernel may still know the former name, in ms; 0: it does not. */
void inode_named(struct inode_table *t, struct inode *i, const struct inode *dir, const char *name,
                 uint64_t keep_ms);
/* The name last noted, copied: "" when there is none. */
void inode_last_name(struct inode_table *t, const struct inode *i, char *ret, size_t size);
/* The directory of the name last noted, pinned, and the name. NULL: none, or it is in doubt. */
struct inode *inode_last_place(struct inode_table *t, struct inode *i, char *ret, size_t size);
/* The same of the name before, while the kernel may still know it. */
struct inode *inode_former_place(struct inode_table *t, struct inode *i, char *ret, size_t size);
/* The name was seen to lead elsewhere. true: tell thread `pid` to walk the path again. false: it
 * has just been told so, and either comes without a path (/proc/self/fd), or the name was looked up
 * since: what it found then is no older than its own system call. pid 0: unknown; true once for
 * each inode_named(). */
bool inode_doubt_name(struct inode_table *t, struct inode *i, const struct inode *dir,
                      uint64_t pid);
/* A name leads to its file, or to none: whatever the thread was told before is done with. */
void inode_trust_name(struct inode_table *t, uint64_t pid);
/* These attributes are about to be shown to the kernel, which may keep them for a while. */
void inode_show(struct inode_table *t, struct inode *i, const struct stat *st);
/* Are these, of the same file, news to it? */
bool inode_has_news(struct inode_table *t, const struct inode *i, const struct stat *st);
/* Does this descriptor, which may be O_PATH, refer to the inode's file? */
bool inode_is_file(const struct inode_table *t, const struct inode *i, int fd);
/* Calls crowded() for each new inode while there are more than limit: under the table's lock, so it
 * only wakes somebody. limit 0 ends it. */
void inode_watch(struct inode_table *t, unsigned long limit, void (*crowded)(void *arg), void *arg);
/* A regular file that nothing but the kernel's cache keeps, pinned: the one at or after *hand,
 * which moves on. NULL: there is none any more. It does not count as used. */
struct inode *inode_next_idle(struct inode_table *t, uint64_t *hand);
struct inode_name {
    uint64_t parent;
    char *name; /* freed by the caller */
};
/* Copies the name of such a one, which the caller alone has pinned, with the directory's node id.
 * The inode keeps it: an open by that name is still told that it leads elsewhere. false: it has
 * none, is in use, or there is no memory. */
bool inode_copy_name(struct inode_table *t, struct inode *i, struct inode_name *ret);
/* Takes the names of inodes that nothing but the kernel's cache keeps, roughly the least recently
 * used ones; no directories. */
unsigned inode_idle_names(struct inode_table *t, struct inode_name *ret, unsigned max);

#endif
