/* image.h: what the files of the guard share; nobody else includes it.
 *
 *   image.c       states, writers, restore     acquire.c     taking the claim, the seal
 *   open.c        open for write, holds        probe.c       what a file is; lines of refusals
 *   edit.c        changes in the zone          read.c        reads in the zone
 *   zone.c        the zone, direct changes     snapshot.c    may bytes be sealed ones?
 *   plain.c       the fence of plain files     fence.c       the fence of those that write an image
 *   reopen.c      storage that gives up a fd   maintain.c    the monitor's look at each image
 *   qemu_locks.c  QEMU's own locks             disk.c        plain files that QEMU locks as disks
 *   chain.c       files that an image needs    walk.c        names in images
 *   readers.c     who wants no writer beside   shared.c      what many hosts write on purpose
 *   first.c       claims at the first change   wait.c        is waiting for a holder in vain?
 *   times.c       mtime that somebody sets     takeover.c    an image of a host that seems dead */
#ifndef DISKGUARD_IMAGE_PRIV_H
#define DISKGUARD_IMAGE_PRIV_H

#include "base/list.h"
#include "base/log.h"
#include "base/sync.h"
#include "guard/disk.h"
#include "guard/guard.h"
#include "guard/qemu_locks.h"
#include "guard/readers.h"
#include "node/opener.h"

/* The last one who kept us out, for the log line. */
struct image_rival {
    char host_name[RECORD_NAME_MAX];
    dg_uuid host;
    uint64_t pid, generation;
    char since[32];
    bool restoring;
    bool fenced; /* nobody's claim: the fence lock was not granted */
    /* nobody's claim: a QEMU lock says that a program outside of the views writes it */
    bool outside;
    /* nobody's claim: that host's program, whose name is in `needs`, reads it and wants no writer
     * beside it */
    bool reads;
    /* not this file is held, but one below or above it: "it needs its backing file 'x'", "it is
     * needed by 'y'" */
    char needs[320];
};

/* probe.c: a line about a refusal, as a hash, and when it was said. */
#define IMAGE_SAID_MAX 4
struct image_said {
    uint64_t sum, at_ms; /* CLOCK_MONOTONIC; 0: empty */
    unsigned more;       /* times that it was not said again */
};

/* snapshot.c: a ctime, and since when this host knows it. */
struct image_stamp {
    struct timespec ctime;
    uint64_t since_ms; /* CLOCK_MONOTONIC; 0: none */
};

struct image {
    struct inode *inode; /* owner; pinned while the image is not IDLE */
    struct mutex lock;
    struct cond moved; /* with lock: the state changed */
    enum image_state state GUARDED_BY(lock);
    struct opener holder GUARDED_BY(lock);
    struct handle *writers GUARDED_BY(lock); /* every handle open for write, plain ones too */
    /* those that hold the image, and reservations of opens under way */
    unsigned n_guarded GUARDED_BY(lock);
    /* held for a namespace operation: nobody joins, not even the same process */
    bool closed GUARDED_BY(lock);
    /* this hold was called VANISHED in the log */
    bool vanished GUARDED_BY(lock);
    unsigned n_names GUARDED_BY(lock); /* operations on its names by its own holder under way */
    bool unlinked GUARDED_BY(lock);    /* one of them took its last name: that is no VANISHED */
    struct image_rival rival GUARDED_BY(lock);
    struct image_said said[IMAGE_SAID_MAX] GUARDED_BY(lock);
    /* what control.c shows, so that it never waits for `header` */
    struct image_info info GUARDED_BY(lock);
    char *path GUARDED_BY(lock);       /* of info: most files never need one */
    int plain_fd GUARDED_BY(lock);     /* plain.c: carries the fence for plain writers; -1 */
    unsigned n_plain GUARDED_BY(lock); /* handles that count on it */
    /* handles that write it as shared on purpose (shared.h) */
    atomic_uint n_shared;
    bool plain_borrowed GUARDED_BY(lock); /* it is a handle's own: not to be claimed with */
    bool plain_lost GUARDED_BY(lock);     /* its lock may be lost: the monitor mends it */
    /* it is just being opened or closed: nobody may claim */
    bool plain_busy GUARDED_BY(lock);
    struct image_look look GUARDED_BY(lock);
    struct image_stamp stamp GUARDED_BY(lock);
    /* what the view shows while the holder has written nothing since */
    struct timespec mtime GUARDED_BY(lock);
    /* reopen.c: requests that the storage refused, for one job of the pool; and that job is under
     * way */
    struct image_failed *failed GUARDED_BY(lock);
    bool mending GUARDED_BY(lock);
    /* maintain.c, under its lock: waits to be looked at; it waits, or a thread is at it */
    STAILQ_ENTRY(image) next_due;
    bool tended;
    LIST_ENTRY(image) next_busy; /* image_table: list of images that are not IDLE */

    /* header: the overlay and all I/O in the image's zone. rec and fd change only under header held
     * for writing, in a long action. */
    struct rwlock header;
    struct record *rec GUARDED_BY(header); /* NULL: not held by this host */
    int fd GUARDED_BY(header);             /* the seal's descriptor, with the fence lock; -1 */
    /* qemu_locks.c: and with the guard's locks on QEMU's bytes */
    bool bytes_held GUARDED_BY(header);
    LIST_HEAD(, byte_owner) byte_owners GUARDED_BY(header); /* who of this view has locks there */
    /* who of this view reads it and wants no writer (readers.c) */
    LIST_HEAD(, image_reader) readers GUARDED_BY(header);
    LIST_ENTRY(image) next_reading; /* image_table: list of images that have readers */
    /* of the name that says so on the datastore; 0: there is none. Changed under header */
    atomic_ullong reader_serial;
    /* Not 0: no host can seal it, nor has since this number was set, for readers keep writers away
     * (readers.c). Set under header; gone before this host claims it. */
    atomic_uint alone;
    unsigned alone_last GUARDED_BY(header);
    /* when it was claimed: what its header contradicts; "": nothing */
    char damage[FORMAT_WHY] GUARDED_BY(header);
    bool marked GUARDED_BY(header);    /* this hold has made marks (chain.c) */
    uint64_t links GUARDED_BY(header); /* and those are for these links: a hash */

    /* Where a write or read must be looked at (struct format_zone), for a look without lock. While
     * the image is held: written under header held for writing. */
    atomic_ullong zone_head, zone_tail;
    atomic_uint zones; /* how often it was made wider */
    /* zone.c: direct changes under way, by the epoch in which they began. epoch and draining:
     * written under header held for writing. */
    atomic_uint n_direct[2], epoch;
    atomic_bool draining;
    atomic_bool held;          /* rec != NULL, for a look without lock */
    atomic_uint holds;         /* how often it became so */
    atomic_int io_error;       /* 0, or the positive errno that writes get (FENCED, shutdown) */
    atomic_int sync_error;     /* 0, or the positive errno of the first failed fsync */
    atomic_bool wrote;         /* the holder changed the file since the seal */
    atomic_bool raw_named;     /* a name made it a raw image once */
    atomic_bool closed_logged; /* that the daemon may not open the file was reported */
    atomic_bool eio_logged;    /* an unexplained seal was reported */
    atomic_bool reader_logged; /* that its readers' name cannot be made was reported */
    atomic_bool bytes_logged;  /* that somebody outside writes during this hold was reported */
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
    struct image_stamp claims GUARDED_BY(lock);  /* snapshot.c: of claims/ */
};

/* The image of a regular file's inode, made when it is first asked for. NULL: out of memory. */
struct image *image_get(struct inode *i);

/* IDLE -> SEALING, if it is IDLE and nobody opens it as a plain file just now: the caller then owns
 * the long action. The busy list pins the inode until image_end(). */
bool image_begin(struct guard *g, struct image *img) EXCLUDES(img->lock);
/* The one function in which a state changes. error: positive errno for STUCK and FENCED. Wakes
 * whoever is parked. */
void image_move_locked(struct guard *g, struct image *img, enum image_state to, int error)
    REQUIRES(img->lock);
void image_move(struct guard *g, struct image *img, enum image_state to, int error)
    EXCLUDES(img->lock);
/* The last step to IDLE: forgets record and descriptor. `img` may be gone afterwards unless the
 * caller has a pin of its own. */
void image_end(struct guard *g, struct image *img) EXCLUDES(img->lock, img->header);
/* Copies what control.c shows from the record. */
void image_note(struct image *img) REQUIRES(img->header) EXCLUDES(img->lock);
/* One guard less; the last one restores (or, fenced, drops). */
void image_unguard(struct guard *g, struct image *img) EXCLUDES(img->lock, img->header);

/* Journal and claim of a held image say its name of now: after a rename here; and the monitor, for
 * those past this view. What fails is left at that. */
void image_follow_name(struct guard *g, struct image *img) EXCLUDES(img->lock, img->header);
/* truncate(2) by path, by the holder himself. 0 or -errno. */
DG_MUST_CHECK int image_truncate_own(struct guard *g, struct image *img, const struct opener *who,
                                     uint64_t size) EXCLUDES(img->lock, img->header);

/* Lists a handle that is open for write. plain: only while the image is IDLE, else false. */
bool image_writer_add(struct image *img, struct handle *h, bool plain) EXCLUDES(img->lock);

/* Every listed handle takes the fence and becomes guarded: they join the hold that the caller is
 * about to finish. The state is SEALING. -ESTALE: the claim was lost before they had it; none is
 * guarded, plain ones are barred. */
DG_MUST_CHECK int image_adopt_writers(struct guard *g, struct image *img)
    EXCLUDES(img->lock, img->header);

/* So often a file may change under the claim that is just taken for it (another write of its own
 * was under way), before its writer is told. */
#define IMAGE_CHANGED_MAX 16u

/* A plain file is about to become an image under its writers' hands: claims it, without a seal yet,
 * for all of them. -EAGAIN: it changed meanwhile; -EALREADY: another thread is at it: look again.
 * -EBUSY: another host holds it (image_refused says who). */
DG_MUST_CHECK int image_convert(struct guard *g, struct image *img, const struct opener *who)
    EXCLUDES(img->lock, img->header);
/* Has another process the file open for write (writers=process)? Where it is not held: img->holder
 * is that one, for image_refused(). */
bool image_others_write(struct guard *g, struct image *img, const struct opener *who)
    EXCLUDES(img->lock);

/* Pins every image that is not IDLE. The caller puts each inode and frees the array. NULL, and 0
 * images: out of memory. */
struct image **image_busy_list(struct guard *g, unsigned *ret_n);

/* The seal of a held image, for the core's functions. */
struct seal image_seal(struct guard *g, struct image *img) REQUIRES(img->header);

/* Another host has taken over, or our claim is gone: writes get EIO from now on. Logs, with the
 * successor's name: reads its claim. */
void image_fence(struct guard *g, struct image *img) EXCLUDES(img->lock, img->header);

/* ---- fence.c ---- */

/* Does our claim of the held image still rule? 0, -ESTALE, -EBUSY (not held any more) or -errno. */
DG_MUST_CHECK int image_claim_rules(struct guard *g, struct image *img)
    EXCLUDES(img->lock, img->header);
/* A descriptor that is about to write the held image takes the shared fence, then looks whether the
 * claim still rules: only in this order can nobody have taken over in between. Without the lock
 * again unless 0. -EBUSY: somebody has the fence; -ESTALE: a successor's claim. */
DG_MUST_CHECK int image_fence_fd(struct guard *g, struct image *img, int fd)
    EXCLUDES(img->lock, img->header);
/* A FENCED image: closes what carries the fence lock, and makes its handles read-only, so that the
 * successor and others can claim. Of one that is not FENCED, nothing. May be repeated. Blocks. */
void image_let_go(struct image *img) EXCLUDES(img->lock, img->header);
/* The handle's descriptor becomes one that cannot write, and has no locks. */
void image_make_read_only(const struct handle *h);
/* Puts the open file `fd` in the place of the one at `at`, under the same number, so that a request
 * that is just using it needs no lock. Closes fd. */
DG_MUST_CHECK int image_replace_fd(int fd, int at);

/* -ESTALE of the core means a lost claim or a file that the storage does not find: asks the claim.
 * r, or -EIO where it is not the claim (known). */
DG_MUST_CHECK int image_lost(struct guard *g, struct image *img, int r) REQUIRES(img->header);

/* The seal's descriptor was given up by the storage (or there is none): a new one, under the fence
 * lock and after a look at the claim, in its place. Data that the old one could not sync is noted
 * in sync_error. 0, -ESTALE (a successor's claim) or -errno. */
DG_MUST_CHECK int image_mend_seal(struct guard *g, struct image *img) REQUIRES(img->header);

/* One line about a held image: path, generation, text, and err where it is not 0. */
void image_log_state(struct guard *g, struct image *img, int priority, const char *text, int err)
    EXCLUDES(img->lock);

/* RESTORING -> IDLE or STUCK: sync, restore, free, close. The caller has moved the state to
 * RESTORING. 0 or what made it STUCK. */
int image_restore(struct guard *g, struct image *img) EXCLUDES(img->lock, img->header);

/* Takes the claim, with a plan and its seal or (plan_none) without. The state is SEALING, ours. On
 * success rec, fd and held are set and the state is still SEALING. -EBUSY: held by another (rival
 * is filled); any other error is final. Nothing is left on failure, or the state is STUCK
 * (*ret_stuck). */
struct acquire {
    const struct opener *who;
    const char *what;        /* for the log line: "open for write", "unlink", ... */
    const char *format_name; /* "none" for a namespace operation; NULL: as identified */
    bool plan_none;          /* no seal: the header is about to go, or to change */
    bool plain_too;          /* the file need not be an image yet */
    bool judge;              /* apply the rules of an open for write to the header */
};
DG_MUST_CHECK int image_acquire(struct guard *g, struct image *img, const struct acquire *a,
                                bool *ret_stuck);
/* edit.c: the same of a plain file (image_begin() was true) for all handles that have it open for
 * write, up to SEALED. writes: the caller is about to change it. -EAGAIN: it changed meanwhile. */
DG_MUST_CHECK int image_claim_plain(struct guard *g, struct image *img, const struct acquire *a,
                                    bool writes) EXCLUDES(img->lock, img->header);

/* ---- chain.c ---- */

/* Claimed, and not sealed: marks every file that the image needs, then looks whether somebody
 * writes it. -EBUSY: yes, and the rival says who; -EUCLEAN (logged) or -errno. late: the image has
 * been written; only where its links changed, and nothing is refused. */
DG_MUST_CHECK int image_chain_mark(struct guard *g, struct image *img, const struct opener *who,
                                   bool late) REQUIRES(img->header) EXCLUDES(img->lock);
/* After an edit of a held image: the files that it needs now are marked, too, and those that it
 * needs no more are free. What goes wrong is logged. */
void image_chain_edited(struct guard *g, struct image *img, const struct opener *who)
    REQUIRES(img->header) EXCLUDES(img->lock);
/* After the claim is free. Best effort. */
void image_chain_drop(struct guard *g, uint64_t ino, uint64_t generation);
/* Does an image need this file that another process, or host, holds? -EBUSY: yes, and the rival
 * says which; 0 or -errno. */
DG_MUST_CHECK int image_chain_needed(struct guard *g, struct image *img, const struct opener *who)
    EXCLUDES(img->lock);
/* readers.c: does another process, or host, read it that wants no writer beside it? -EBUSY: yes,
 * and the rival says who; 0 or -errno. */
DG_MUST_CHECK int image_reader_in_way(struct guard *g, struct image *img, const struct opener *who)
    REQUIRES(img->header) EXCLUDES(img->lock);
/* Before the claim is freed: what its readers need then, a name on the datastore, which no other
 * host could have wanted to see before. */
void image_reader_follow(struct guard *g, struct image *img) REQUIRES(img->header)
    EXCLUDES(img->lock);
/* Keeper: names that are missing are made, those that nobody needs any more removed; notes where
 * reads need not be checked. */
void image_reader_tend(struct guard *g);
/* Does any held image need it? 1, 0 or -errno. */
DG_MUST_CHECK int image_chain_guards(struct guard *g, const struct inode *i);
/* Is this the claim of a process that may write with this one? */
bool image_own_claim(const struct guard *g, const struct record *rec, const struct opener *who);
/* Notes for image_refused() who is in the way. NULL: nobody. */
void image_set_rival(struct image *img, const struct record *rec) EXCLUDES(img->lock);

/* Is the same inode number held through another inode of the view (one that was displaced by a
 * reused number)? */
bool image_busy_twin(struct guard *g, const struct image *img);

/* Another host holds the image now, or did. Only a successor's claim makes our row worthless: where
 * there is no claim at all (somebody removed it, the storage lost it), the row is the last copy of
 * the true bytes, and stays for fsck.diskguard. */
DG_MUST_CHECK int image_drop_lost_row(struct guard *g, struct image *img) REQUIRES(img->header);

/* Ends a failed long action: STUCK keeps record and descriptor for the monitor. -EUCLEAN, -EPERM
 * and -EXDEV are logged where they are decided, -EBUSY by whoever gives up waiting. */
void image_acquire_failed(struct guard *g, struct image *img, const struct acquire *a, bool stuck,
                          int err);

/* The line for an image on another file system that is mounted below the datastore (-EXDEV). */
void image_log_foreign(struct guard *g, struct inode *i, const char *what);

/* Keeper: writers of plain files that have become images elsewhere, or under another name, get
 * EBUSY. */
void image_tend_plain(struct guard *g);

/* May a handle that was opened on a plain file still change it? -EBUSY: the file has become
 * somebody's image meanwhile. */
DG_MUST_CHECK int image_plain_check(struct guard *g, struct handle *h);

/* ---- plain.c: the fence of plain files that are open for write ---- */

/* A handle is about to write a plain file. Takes the shared fence for it, or counts on the one that
 * is there. -EBUSY: another host is just claiming the file (image_refused says so), or it has
 * become an image, or a thread here is at it: from the start. 0 without a fence. */
DG_MUST_CHECK int image_plain_enter(struct guard *g, struct image *img, struct handle *h)
    EXCLUDES(img->lock);
/* The handle's descriptor is closed: what it wrote has left this host. */
void image_plain_leave(struct guard *g, struct image *img, struct handle *h) EXCLUDES(img->lock);
/* A duplicate of plain_fd: the same lock, for OFD locks and flock belong to the open file
 * description. -1: there is none; or -errno. to_claim: it will write the header, so -EACCES where
 * it was opened with the caller's rights because the daemon may not write the file: what the daemon
 * claims it must be able to restore after a crash, when no caller is there. */
DG_MUST_CHECK int image_plain_dup(struct image *img, bool to_claim) EXCLUDES(img->lock);
/* After a claim that failed: plain_fd's lock is shared again, or the plain writers are barred. */
void image_plain_again(struct guard *g, struct image *img) EXCLUDES(img->lock);
/* The lock of plain_fd may be lost: the monitor opens it anew in its next round. true: that is
 * news, and a reason to wake it. */
bool image_plain_suspect(struct image *img) EXCLUDES(img->lock);
/* Keeper: if it was, bars the writers, opens plain_fd and their descriptors anew, under lock, and
 * looks what the file is now. 0: the caller may unbar them; -errno: not now. Borrowed ones stay as
 * they are. */
DG_MUST_CHECK int image_plain_mend(struct guard *g, struct image *img) EXCLUDES(img->lock);
/* Plain writers get EBUSY until the monitor finds that the file is still plain. */
void image_plain_bar(struct image *img) EXCLUDES(img->lock);
/* Notes for image_refused() why -EBUSY: the fence lock was refused, and no claim says by whom. */
void image_fence_refused(struct image *img, bool refused) EXCLUDES(img->lock);
/* ---- qemu_locks.c: the guard's own locks on the bytes that QEMU locks ---- */

/* Looks whether a QEMU outside of this view has the file open for write: -EBUSY. hold: takes the
 * guard's locks first, on img->fd, if the storage has locks; they are let go again on failure. */
DG_MUST_CHECK int image_bytes_take(struct image *img, bool hold) REQUIRES(img->header);
/* Lets them go; the programs' own stay. Before the claim is freed, so that they are not in the way
 * of the next holder's QEMU. */
void image_bytes_drop(struct image *img) REQUIRES(img->header);
/* The plan may have changed: takes them where no seal stands now, drops them where one does. Logs
 * what fails. */
void image_bytes_follow(struct guard *g, struct image *img) REQUIRES(img->header);
/* fd is about to take the place of img->fd: takes them on it. */
DG_MUST_CHECK int image_bytes_renew(struct guard *g, struct image *img, int fd)
    REQUIRES(img->header);
/* Keeper, or after the storage gave up a descriptor: are they still there? If not, the seal's
 * descriptor is opened anew. */
void image_bytes_tend(struct guard *g, struct image *img) EXCLUDES(img->lock, img->header);

/* Is the file of a handle that is being opened guarded, by its header, its name or a claim? open.c.
 */
DG_MUST_CHECK int image_guarded_inode(struct guard *g, struct inode *i, bool *ret);
DG_MUST_CHECK int image_guarded_file(struct guard *g, struct handle *h, bool *ret);

/* What the header says of where the image can be touched: of one that nobody here holds, and that
 * only ever grows wider; and of a held one, exactly. */
void image_zone_seen(struct image *img, const struct format_zone *zone) EXCLUDES(img->lock);
/* Where the zone grows, waits for the direct changes that have seen the old one: what was read of
 * the file before may be older than they. */
void image_zone_set(struct image *img, const struct format_zone *zone) REQUIRES(img->header)
    EXCLUDES(img->lock);
/* Waits for the direct changes under way; those that begin after it was called may go on. */
void image_drain(struct image *img) REQUIRES(img->header) EXCLUDES(img->lock);
struct format_zone image_zone(const struct image *img);

/* ---- snapshot.c: a look at claim and header ---- */

/* Before claim and header are read; what cannot be fetched makes a look that counts for nothing. */
void image_look_begin(struct guard *g, struct image *img, struct image_look *ret)
    EXCLUDES(img->lock);
/* After they were, the claim after the header, or before and after it: remembers it, unless this
 * host holds the image meanwhile. */
void image_look_end(struct image *img, struct image_look *look, const struct header *h,
                    const struct claim *c) EXCLUDES(img->lock);
/* Where bytes can be sealed, by both. */
struct format_zone image_look_zone(const struct header *h, const struct claim *c);
bool image_zone_touched(const struct format_zone *zone, uint64_t off, uint64_t len);
/* In image_read.hold: by image.alone, not by a hold of this host. */
#define IMAGE_ALONE 0x80000000u
/* Does this look say that nothing is sealed in this range? Whether it still counts,
 * image_read_sound() says after the read. */
bool image_look_covers(const struct image *img, const struct image_look *look, uint64_t off,
                       uint64_t len);
/* No header that could be sealed: plain, or a partition table. */
bool image_is_headless(const struct header *h);
/* Was there ever anything to be looked at beyond the start of the file? */
bool image_zone_is_far(const struct image *img);

/* Reads and identifies the header as it stands. -EACCES, -EPERM: the daemon itself may not read the
 * file, so nobody may do anything with it that would need to know what it is; logged once for each
 * file. */
DG_MUST_CHECK int image_header(struct guard *g, struct inode *i, struct header *ret);
/* The line for a file that this daemon may not open, with the cause and the way out. */
void image_log_closed(struct guard *g, struct inode *i, const char *verb);
/* By content or, for a raw image, by name. */
bool image_is_image(struct guard *g, struct inode *i, const struct header *h);
/* The same, if the file has that name: not where that was removed. */
bool image_path_now(struct guard *g, const struct inode *i, char *ret, size_t size);
/* Path below the datastore, for people. */
void image_path(struct guard *g, const struct inode *i, char *ret, size_t size);

/* A handle whose new descriptor fails again within this time gets no other: the medium is at fault,
 * and one handle must not keep the monitor busy. */
#define REOPEN_PACE_MS 1000u

#endif
