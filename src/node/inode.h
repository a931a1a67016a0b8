/* inode.h: inodes and handles of the view. Node ids and file handles are indexes into tables, never pointers.
 *
 * An inode is found by (st_dev, st_ino) and keeps an O_PATH descriptor. It lives while the kernel knows it (nlookup > 0) or while it is pinned
 * (handles, running operations, an image that is held). The table's lock protects the counts and the hash; nothing else. */
#ifndef DISKGUARD_INODE_H
#define DISKGUARD_INODE_H

#include "daemon/daemon.h"

struct image;
struct inode_locks;

struct inode {
    uint64_t nodeid;     /* index + FUSE_ROOT_ID */
    uint64_t generation; /* of the node id: counts its reuse */
    dev_t dev;
    ino_t ino;
    mode_t type; /* S_IFMT bits */
    int fd;      /* O_PATH */
    /* Made at need, freed with the inode: the guard of a regular file (image_get()), and its locks (fs_lock.c). */
    struct image *_Atomic image;
    struct inode_locks *_Atomic locks;
    /* inode.c only: */
    uint64_t nlookup;
    uint64_t pins;
    bool hashed;  /* false: another file has taken (dev, ino); this one is only reached by its node id */
    bool used;    /* since inode_idle_names() passed by */
    bool doubted; /* `name` was seen to lead elsewhere */
    uint64_t told, told_ms; /* a directory: which thread was told to walk its path again, and when */
    uint64_t parent;        /* where the kernel looked it up last; name NULL: unknown */
    char *name;
    struct inode *next;
};

struct inode_table *inode_table_new(void);
void inode_table_free(struct inode_table *t);
/* The root; nodeid FUSE_ROOT_ID. Takes fd. 0 or -errno. */
DG_MUST_CHECK int inode_table_root(struct inode_table *t, int fd, const struct stat *st);

/* Pins the inode of a node id. NULL: unknown (answer ESTALE). */
struct inode *inode_get(struct inode_table *t, uint64_t nodeid);
void inode_pin(struct inode_table *t, struct inode *i);
void inode_put(struct inode_table *t, struct inode *i); /* NULL is fine */

/* Finds or makes the inode of an open O_PATH descriptor (always consumed), counts one lookup if `lookup`, pins it. NULL: out of memory. */
struct inode *inode_enter(struct inode_table *t, int fd, const struct stat *st, bool lookup);
void inode_forget(struct inode_table *t, uint64_t nodeid, uint64_t nlookup);
unsigned long inode_count(const struct inode_table *t);

/* Notes under which name the kernel knows the inode of a counted lookup, so that it can be asked to forget it (prune.h). To be called by every
 * operation that answers with an entry. */
void inode_named(struct inode_table *t, struct inode *i, const struct inode *dir, const char *name);
/* The name last noted, copied: "" when there is none. */
void inode_last_name(struct inode_table *t, const struct inode *i, char *ret, size_t size);
/* The directory of the name last noted, pinned, and the name. NULL: none, or it is in doubt. */
struct inode *inode_last_place(struct inode_table *t, struct inode *i, char *ret, size_t size);
/* The name was seen to lead elsewhere. true: tell thread `pid` to walk the path again; the name is not looked at before inode_named() notes one.
 * false: it has just been told so for this directory, and what it found then is no older than its own system call. pid 0: unknown. */
bool inode_doubt_name(struct inode_table *t, struct inode *i, struct inode *dir, uint64_t pid);
/* Does this descriptor, which may be O_PATH, refer to the inode's file? */
bool inode_is_file(const struct inode_table *t, const struct inode *i, int fd);
/* Calls crowded() for each new inode while there are more than limit: under the table's lock, so it only wakes somebody. limit 0 ends it. */
void inode_watch(struct inode_table *t, unsigned long limit, void (*crowded)(void *arg), void *arg);
struct inode_name {
    uint64_t parent;
    char *name; /* freed by the caller */
};
/* Takes the names of inodes that nothing but the kernel's cache keeps, roughly the least recently used ones; no directories. */
unsigned inode_idle_names(struct inode_table *t, struct inode_name *ret, unsigned max);

/* ---- handles ---- */

struct
    opener { /* who: thread group id and its start time; pid 0: cannot be resolved, equals nobody, not even itself */
    uint64_t pid, start, uid, gid;
};

struct handle {
    uint64_t fh;         /* index */
    struct inode *inode; /* pinned */
    int fd;              /* backing descriptor, flags as the opener's */
    int direct_fd;       /* reader of a file whose cached data may be stale: the same file, O_DIRECT; or -1 */
    int flags;           /* O_* of the open */
    atomic_bool writer;  /* open for write */
    atomic_int first;    /* image_first.c: 0, or open for write by a manager, and nothing was changed yet */
    bool managed;        /* image_first.c: it was so once: its mappings may be older than its claim */
    uint64_t opened_ms;  /* CLOCK_MONOTONIC */
    bool stale_data;     /* io_fstype.stale_data of its file system: see image_pread() */
    atomic_bool shared;  /* counted in inode->image.n_shared (image_shared.h) */
    bool plain;          /* counted in inode->image.n_plain (image_plain.c) */
    atomic_bool guarded; /* counted as a writer of inode->image (image.c) */
    struct opener opener;
    atomic_bool dirty; /* wrote since the last fsync of this handle */
    /* image.c: 0, or EBUSY: the plain file that it was opened on is somebody's image now; and when that was looked at last, CLOCK_MONOTONIC. */
    atomic_int barred;
    atomic_bool refusal_logged; /* image_edit.c: that it may not write any more was reported */
    atomic_ullong looked_ms;
    /* image_mend.c: when a new descriptor was last asked for, and whether that went well. */
    atomic_ullong mended_ms;
    atomic_bool mended_ok;
    atomic_bool lost_data; /* image_plain.c: its descriptor was given up with data that was not synced */
    bool let_go;           /* image_fence.c, under image->lock: has no fence lock any more, cannot write */
    bool busy;             /* the same: its descriptor is just being replaced, do not close it */
    struct handle *next_writer; /* image.c: list of the writers of an inode */
    void *dir;                  /* fs_dir.c: open directory stream */
    atomic_uint live;           /* inode.c only */
    struct handle *next_free;   /* inode.c only */
};

struct handle_table *handle_table_new(void);
void handle_table_free(struct handle_table *t);
/* A zeroed handle with fd -1, its inode pinned. NULL: out of memory. */
struct handle *handle_new(struct daemon *d, struct inode *i);
/* To be called when all fields are set, just before the reply of open: what handle_get() returns on another thread is complete. */
void handle_publish(struct handle *h);
/* Valid from the reply of open until release; takes no lock. NULL: unknown. */
struct handle *handle_get(struct handle_table *t, uint64_t fh);
/* Frees and unpins; does not close fd. */
void handle_free(struct daemon *d, struct handle *h);
/* Calls fn for each published handle, under the table's lock: no handle is made or freed meanwhile. For shutdown and control. */
void handle_each(struct handle_table *t, void (*fn)(void *arg, struct handle *h), void *arg);

#endif
