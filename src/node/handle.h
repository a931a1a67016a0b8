/* handle.h: open files of the view. A file handle is an index into a table, never a pointer. */
#ifndef DISKGUARD_HANDLE_H
#define DISKGUARD_HANDLE_H

#include "node/inode.h"

struct handle {
    uint64_t fh;         /* index */
    struct inode *inode; /* pinned */
    int fd;              /* backing descriptor, flags as the opener's */
    /* reader of a file whose cached data may be stale: the same file, O_DIRECT; or -1 */
    int direct_fd;
    int flags;          /* O_* of the open */
    atomic_bool writer; /* open for write */
    /* first.c: 0, or open for write by a manager, and nothing was changed yet */
    atomic_int first;
    bool managed;        /* first.c: it was so once: its mappings may be older than its claim */
    uint64_t opened_ms;  /* CLOCK_MONOTONIC */
    bool stale_data;     /* io_fstype.stale_data of its file system: see image_pread() */
    bool uncached;       /* counted in inode->uncached (fs_open.c) */
    atomic_bool shared;  /* counted in inode->image.n_shared (shared.h) */
    bool plain;          /* counted in inode->image.n_plain (plain.c) */
    atomic_bool guarded; /* counted as a writer of inode->image (image.c) */
    struct opener opener;
    atomic_bool dirty; /* wrote since the last fsync of this handle */
    /* image.c: 0, or EBUSY: the plain file that it was opened on is somebody's image now; and when
     * that was looked at last, CLOCK_MONOTONIC. */
    atomic_int barred;
    atomic_bool refusal_logged; /* edit.c: that it may not write any more was reported */
    atomic_ullong looked_ms;
    /* reopen.c: when a new descriptor was last asked for, and whether that went well. */
    atomic_ullong mended_ms;
    atomic_bool mended_ok;
    atomic_bool lost_data; /* plain.c: its descriptor was given up with data that was not synced */
    /* fence.c, under image->lock: has no fence lock any more, cannot write */
    bool let_go;
    bool busy; /* the same: its descriptor is just being replaced, do not close it */
    struct handle *next_writer; /* image.c: list of the writers of an inode */
    void *dir;                  /* fs_dir.c: open directory stream */
    atomic_uint live;           /* inode.c only */
    struct handle *next_free;   /* inode.c only */
};

/* Handles pin inodes of this table. NULL: out of memory. */
struct handle_table *handle_table_new(struct inode_table *inodes);
void handle_table_free(struct handle_table *t);
/* A zeroed handle with fd -1, its inode pinned. NULL: out of memory. */
struct handle *handle_new(struct handle_table *t, struct inode *i);
/* To be called when all fields are set, just before the reply of open: what handle_get() returns on
 * another thread is complete. */
void handle_publish(struct handle *h);
/* Valid from the reply of open until release; takes no lock. NULL: unknown. */
struct handle *handle_get(struct handle_table *t, uint64_t fh);
/* Frees and unpins; does not close fd. */
void handle_free(struct handle_table *t, struct handle *h);
/* Calls fn for each published handle, under the table's lock: no handle is made or freed meanwhile.
 * For shutdown and control. */
void handle_each(struct handle_table *t, void (*fn)(void *arg, struct handle *h), void *arg);

#endif
