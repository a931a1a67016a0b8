/* handle.h: open files of the view. A file handle is an index into a table, never a pointer, and
 * counts how often the slot was used: a late or repeated request with the handle of a former open
 * finds nothing, not what stands there now. */
#ifndef DISKGUARD_HANDLE_H
#define DISKGUARD_HANDLE_H

#include "node/inode.h"

/* ---- parts that files of the guard own; image->lock is that of the inode's image ---- */

/* manager.c, first.c: a manager's handle, which claims at its first change. */
struct handle_first {
    atomic_int state; /* FIRST_* (manager.h); 0: it does not claim later */
    bool managed;     /* it was such a handle once: its mappings may be older than its claim */
};
/* plain.c */
struct handle_plain {
    bool counted;          /* in inode->image.plain.users */
    atomic_bool lost_data; /* its descriptor was replaced while data was not synced */
};
/* plain.c, maintain.c, edit.c: it was opened on a plain file that is an image now. */
struct handle_barred {
    atomic_int err; /* 0; EBUSY: somebody holds the image; EIO: its descriptor is being reopened */
    atomic_bool said;        /* the log says that it may not write any more */
    atomic_ullong looked_ms; /* time of the last check, CLOCK_MONOTONIC */
};
/* reopen.c, plain.c: time of the last attempt to get a new descriptor, and whether it succeeded. */
struct handle_reopen {
    atomic_ullong at_ms;
    atomic_bool ok;
};
/* fence.c and the file that reopens, under image->lock */
struct handle_fence {
    bool revoked; /* has lost its fence lock and cannot write */
    bool busy;    /* its descriptor is being replaced: do not close it */
};

struct handle {
    uint64_t fh;         /* generation << 32 | index */
    struct inode *inode; /* pinned */
    int fd;              /* descriptor on the datastore, with the flags of the open but O_APPEND */
    bool appends;        /* it has O_APPEND all the same: io_drop_append() */
    /* reader of a file whose cached data may be stale: the same file, O_DIRECT; or -1 */
    int direct_fd;
    int flags; /* O_* of the open */
    struct opener opener;
    uint64_t opened_ms;         /* CLOCK_MONOTONIC */
    bool stale_data;            /* io_fstype.stale_data of its file system: see image_pread() */
    bool made;                  /* its open made the file, which is no image yet (open.c) */
    bool uncached;              /* counted in inode->uncached (fs_open.c) */
    atomic_bool writer;         /* open for write */
    atomic_bool dirty;          /* wrote since the last fsync of this handle */
    atomic_bool guarded;        /* counted as a writer of inode->image (image.c) */
    atomic_bool shared;         /* counted in inode->image.shared.writers (shared.h) */
    struct handle *next_writer; /* image.c: list of the writers of an inode */
    struct handle_first first;
    struct handle_plain plain;
    struct handle_barred barred;
    struct handle_reopen reopen;
    struct handle_fence fence;
    void *dir; /* fs_dir.c: open directory stream */
    /* handle.c only, and last: it clears what stands before */
    atomic_ullong live;
    struct handle *next_free;
};

/* Handles pin inodes of this table. NULL: out of memory. */
struct handle_table *handle_table_new(struct inode_table *inodes);
void handle_table_free(struct handle_table *t);
/* A zeroed handle with fd -1, its inode pinned. NULL: out of memory. */
struct handle *handle_new(struct handle_table *t, struct inode *i);
/* Makes the handle known to handle_get(). Call it when all fields are set, just before the reply of
 * open. */
void handle_publish(struct handle *h);
/* Valid from the reply of open until release; takes no lock. NULL: unknown, or released. */
struct handle *handle_get(struct handle_table *t, uint64_t fh);
/* Frees and unpins; does not close fd. */
void handle_free(struct handle_table *t, struct handle *h);
/* Calls fn for each published handle, under the table's lock: no handle is made or freed meanwhile.
 * For shutdown and control. */
void handle_each(struct handle_table *t, void (*fn)(void *arg, struct handle *h), void *arg);

/* Replaces the open file at descriptor `at` by that of `fd` and keeps the number, so that a request
 * in progress needs no lock. Closes fd. */
DG_MUST_CHECK int handle_replace_fd(int fd, int at);

#endif
