/* image.h: one image on this host, as the files of the guard share it; nobody else includes it. Its
 * states, its table, and the handles that write it: image.c. Every other file of the guard has a
 * header of its own; calls go down:
 *
 *   what the view asks for    open · edit · read · times · disk · first · wait · takeover
 *   the monitor's pass        maintain
 *   long actions              acquire · restore · reopen
 *   one protection each       fence · plain · qemu_locks · readers · chain (walk)
 *                             shared · manager
 *   what is known of a file   probe · snapshot · listing · held · maker
 *   what is said of it        refuse · conflict
 *   the image                 zone · image */
#ifndef DISKGUARD_IMAGE_PRIV_H
#define DISKGUARD_IMAGE_PRIV_H

#include "base/list.h"
#include "base/log.h"
#include "base/sync.h"
#include "core/packed.h"
#include "guard/conflict.h"
#include "guard/guard.h"
#include "node/opener.h"

/* ---- the parts of an image: each is written by one file alone; others read it ---- */

/* held.c: the record and the descriptor of an image that this host holds. `recorded` and fd change
 * under header held for writing, in a long action. */
struct image_held {
    bool recorded GUARDED_BY(header);         /* there is a record: this host holds it */
    struct packed *packed GUARDED_BY(header); /* the record, for readers */
    /* in full, while a thread that has header for writing works on it (image_record_open()); else
     * NULL */
    struct record *rec GUARDED_BY(header);
    int fd GUARDED_BY(header); /* the seal's descriptor, with the fence lock; -1 */
    atomic_bool valid;         /* the claim is ours: for a look without lock */
    atomic_uint count;         /* how often it became so */
    atomic_int io_error;       /* 0, or the positive errno that writes get (FENCED, shutdown) */
    atomic_int sync_error;     /* 0, or the positive errno of the first failed fsync */
    atomic_bool wrote;         /* the holder changed the file since the seal */
    /* what the view shows while the holder has written nothing since */
    struct timespec mtime GUARDED_BY(lock);
};

/* acquire.c, in its long action. */
struct image_acquire {
    /* when it was claimed: what its header contradicts; "": nothing */
    char damage[FORMAT_WHY] GUARDED_BY(header);
};

/* zone.c: where a write or read must be looked at (struct format_zone), for a look without lock.
 * While the image is held: written under header held for writing. */
struct image_zone {
    atomic_ullong head, tail;
    atomic_uint grown; /* how often it was made wider */
    /* direct changes under way, by the epoch in which they began */
    atomic_uint n_direct[2], epoch;
    atomic_bool draining;
};

/* A ctime, and since when this host knows it. */
struct image_stamp {
    struct timespec ctime;
    uint64_t since_ms; /* CLOCK_MONOTONIC; 0: none */
};

/* snapshot.c: what is known of a file that this host does not hold. */
struct image_snapshot_part {
    struct image_snapshot last GUARDED_BY(lock); /* image_begin() makes it void */
    struct image_stamp stamp GUARDED_BY(lock);
};

/* plain.c: the fence of its plain writers. */
struct image_plain {
    int fd GUARDED_BY(lock);         /* carries the fence lock for all of them; -1 */
    unsigned users GUARDED_BY(lock); /* handles that count on it */
    bool borrowed GUARDED_BY(lock);  /* it is a handle's own: not to be claimed with */
    bool lost GUARDED_BY(lock);      /* its lock may be lost: the monitor reopens it */
    bool busy GUARDED_BY(lock);      /* it is just being opened or closed: nobody may claim */
};

/* shared.c: handles that write it as shared on purpose. */
struct image_shared_part {
    atomic_uint writers;
};

/* qemu_locks.c: QEMU's bytes. */
struct image_qemu {
    bool held GUARDED_BY(header);                      /* held.fd has the guard's locks on them */
    LIST_HEAD(, qemu_owner) owners GUARDED_BY(header); /* who of this view has locks there */
    atomic_uint warned; /* held.count + 1 of the hold in which a writer outside was reported */
};

/* readers.c: programs of this view that read it and want no writer beside them. */
struct image_readers {
    LIST_HEAD(, image_reader) list GUARDED_BY(header);
    LIST_ENTRY(image) next; /* image_table.reading, under its lock */
    /* of the name that says so on the datastore; 0: there is none. Changed under header */
    atomic_ullong serial;
    /* Not 0: since this number was set no host can have sealed it, for our readers keep writers
     * away. A new number for each such period. Set under header; gone before this host claims. */
    atomic_uint epoch;
    unsigned last_epoch GUARDED_BY(header);
    atomic_bool warned; /* that their name cannot be made was reported */
};

/* chain.c: the files that it needs. */
struct image_chain {
    /* inode numbers of the files on which this hold has dependencies in the datastore */
    uint64_t *below GUARDED_BY(header);
    size_t n_below GUARDED_BY(header);
    uint64_t links GUARDED_BY(header); /* and those are for these links: a hash */
};

/* reopen.c: requests that the storage refused, for one job of the pool; and that job is there. */
struct image_reopen {
    struct image_failed *failed GUARDED_BY(lock);
    bool running GUARDED_BY(lock);
};

/* maintain.c, under its own lock: waits for a thread; it waits, or a thread is at it. */
struct image_maintain_part {
    STAILQ_ENTRY(image) next;
    bool queued;
};

/* refuse.c: a line about a refusal, as a hash, and when it was said. */
#define IMAGE_SAID_MAX 4
struct image_said {
    uint64_t sum, at_ms; /* CLOCK_MONOTONIC; 0: empty */
    unsigned more;       /* times that it was not said again */
};
struct image_refuse {
    struct image_said said[IMAGE_SAID_MAX] GUARDED_BY(lock);
    atomic_bool closed; /* that the daemon may not open the file was reported */
};

/* probe.c */
struct image_probe {
    atomic_bool raw_named; /* a name made it a raw image once */
};

/* read.c */
struct image_read_part {
    atomic_bool warned; /* an unexplained seal was reported */
};

/* Lock order: header, image_table.lock, the inode table's, lock. And header before the journal's.
 * Never the locks of two images. No lock is held over I/O to the datastore but header, whose
 * purpose that is: it guards the overlay and all I/O in the zone. */
struct image {
    struct rwlock header;
    struct mutex lock; /* short: the state, who holds it, who writes it */

    /* image.c */
    struct inode *inode; /* owner; pinned while the image is not IDLE */
    struct cond moved;   /* with lock: the state changed */
    enum image_state state GUARDED_BY(lock);
    struct opener holder GUARDED_BY(lock);
    struct handle *writers GUARDED_BY(lock); /* every handle open for write, plain ones too */
    /* those that hold the image, and reservations of opens under way */
    unsigned n_guarded GUARDED_BY(lock);
    /* held for a namespace operation: nobody joins, not even the same process */
    bool exclusive GUARDED_BY(lock);
    bool vanished GUARDED_BY(lock);    /* this hold was called VANISHED in the log */
    unsigned n_names GUARDED_BY(lock); /* operations on its names by its own holder under way */
    bool unlinked GUARDED_BY(lock);    /* one of them took its last name: that is no VANISHED */
    /* what control.c shows, so that it never waits for header */
    struct image_info info GUARDED_BY(lock);
    char *path GUARDED_BY(lock); /* of info: most files never need one */
    LIST_ENTRY(image) next_busy; /* image_table.busy, under its lock */

    struct image_held held;
    struct image_acquire acquire;
    struct image_zone zone;
    struct image_snapshot_part snapshot;
    struct image_plain plain;
    struct image_shared_part shared;
    struct image_qemu qemu;
    struct image_readers readers;
    struct image_chain chain;
    struct image_reopen reopen;
    struct image_maintain_part maintain;
    struct image_refuse refuse;
    struct image_probe probe;
    struct image_read_part read;
};

#define IMAGE_TOLD_MAX 256u

struct image_table {
    struct mutex lock;
    /* chain.c: hashes of names that lead out of the datastore, as far as that was said */
    uint64_t told[IMAGE_TOLD_MAX] GUARDED_BY(lock);
    unsigned n_told GUARDED_BY(lock);
    LIST_HEAD(, image) busy GUARDED_BY(lock);
    LIST_HEAD(, image) reading GUARDED_BY(lock); /* readers.c: images that have readers */
    atomic_ullong reader_serial;                 /* the last number that a reader's name got */
    atomic_bool readers_left;                    /* a name could not be removed */
    /* snapshot.c: of each shard of claims/ */
    struct image_stamp claims[DG_SHARDS] GUARDED_BY(lock);
};

/* The image of a regular file's inode, made when it is first asked for. NULL: out of memory. */
struct image *image_get(struct inode *i);

/* IDLE -> SEALING, if it is IDLE and nobody opens it as a plain file just now: the caller then owns
 * the long action. The busy list pins the inode until image_end(). false: ret says who has it. */
bool image_begin(struct guard *g, struct image *img, struct conflict *ret) EXCLUDES(img->lock);
/* Who of this host has it, by its state. */
void image_conflict_locked(const struct image *img, struct conflict *ret) REQUIRES(img->lock);
/* The same where nobody has said yet who is in the way. */
void image_conflict_fill(struct image *img, struct conflict *ret) EXCLUDES(img->lock);
/* Is it a move of the table (image.c)? */
bool image_may_move(enum image_state from, enum image_state to);
/* The one function in which a state changes. error: positive errno for STUCK and FENCED. Wakes
 * whoever is parked. */
void image_move_locked(struct guard *g, struct image *img, enum image_state to, int error)
    REQUIRES(img->lock);
void image_move(struct guard *g, struct image *img, enum image_state to, int error)
    EXCLUDES(img->lock);
/* The last step to IDLE; record and descriptor are forgotten already (image_held_forget()). `img`
 * may be gone afterwards unless the caller has a pin of its own. */
void image_end(struct guard *g, struct image *img) EXCLUDES(img->lock, img->header);
/* Copies what control.c shows from the record. */
void image_note(struct image *img) REQUIRES(img->header) EXCLUDES(img->lock);

/* Lists a handle that is open for write. plain: only while the image is IDLE, else false. */
bool image_writer_add(struct image *img, struct handle *h, bool plain) EXCLUDES(img->lock);
/* And unlists it; waits while its descriptor is being replaced. */
void image_writer_remove(struct image *img, struct handle *h) EXCLUDES(img->lock);
bool image_is_idle(struct image *img) EXCLUDES(img->lock);

/* Pins every image that is not IDLE. The caller puts each inode and frees the array. NULL, and 0
 * images: out of memory. */
struct image **image_busy_list(struct guard *g, unsigned *ret_n);

/* One line about a held image: path, generation, text, and err where it is not 0. */
void image_log_state(struct guard *g, struct image *img, int priority, const char *text, int err)
    EXCLUDES(img->lock);

/* Is the same inode number held through another inode of the view (one that was displaced by a
 * reused number)? */
bool image_busy_twin(struct guard *g, const struct image *img);

/* What a program is told of a claim that is lost, and of a file that the storage does not find:
 * EIO. ESTALE would only make the kernel walk its path again. */
static inline int image_answer(int r)
{
    return r == -CLAIM_LOST || r == -ESTALE ? -EIO : r;
}

/* A handle whose new descriptor fails again within this time gets no other: the medium is at fault,
 * and one handle must not keep the monitor busy. */
#define REOPEN_PACE_MS 1000u

#endif
