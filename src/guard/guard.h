/* guard.h: the guard of one datastore on this host, and what the view may ask of it.
 *
 * Each regular file that is an image has a state, a holder and an overlay: image.h, for the guard
 * alone. SEALING and RESTORING are long actions: others wait for them parked, never on a lock. */
#ifndef DISKGUARD_GUARD_H
#define DISKGUARD_GUARD_H

#include <stdatomic.h>

#include "core/claim.h"
#include "core/header.h"
#include "core/host.h"
#include "core/journal.h"
#include "core/seal.h"
#include "core/store.h"
#include "core/takeover.h"
#include "node/handle.h"

struct pool;
struct conflict;
struct image_table;
struct image_listing;
struct takeover;
struct maker_table;

enum takeover_mode { TAKEOVER_MANUAL, TAKEOVER_BY_LOCK, TAKEOVER_UNPROVEN };
enum writers { WRITERS_PROCESS, WRITERS_HOST };
enum readers { READERS_PROTECT, READERS_IGNORE };
enum damaged { DAMAGED_CLAIM, DAMAGED_REFUSE };
enum raw_mode { RAW_AUTO, RAW_ALL, RAW_NONE, RAW_GLOBS };

/* What a mount option says to the guard; diskguard(8). Texts belong to whoever made them. */
struct guard_options {
    char *datastore, *mountpoint; /* absolute, canonical; mountpoint NULL: there is no view */
    unsigned wait_s;              /* default 5, 0..86400 */
    /* wait= was given: waits so long whatever is known of the holder */
    bool wait_set;
    uint64_t threshold; /* bytes, default 0 */
    bool threshold_set; /* threshold= was given */
    enum seal_mode seal;
    enum raw_mode raw;
    char **raw_globs;    /* NULL-terminated; fnmatch(3) on the last path component */
    char **shared_globs; /* the same; NULL: none (shared.h) */
    enum writers writers;
    enum readers readers;
    /* NULL-terminated: names or absolute paths of executables (first.h) */
    char **managers;
    enum damaged damaged;        /* an image whose header contradicts itself */
    enum takeover_mode takeover; /* takeover=manual|lock|lock-unproven */
    /* default 120, 1..86400: instead of wait_s while a takeover may come */
    unsigned takeover_wait_s;
    bool read_only;
};

/* What the guard tells its user. Every function may be called on any thread, with locks of the
 * guard held; none may call the guard. NULL: nobody wants to know. */
struct guard_events {
    void *arg;
    /* call image_maintain_round() soon: something wants to be looked at */
    void (*attention)(void *arg);
    void (*changed)(void *arg); /* who waits for an image may try again */
    /* what the kernel keeps of the file may be stale */
    void (*forget_pages)(void *arg, uint64_t nodeid);
    void (*free_locks)(struct inode_locks *locks); /* an inode dies that has some */
};

/* The guard of one datastore on this host. Two of them in one process are two hosts. */
struct guard {
    struct guard_options opt;
    struct store store;
    struct host host;
    struct journal *journal; /* NULL on a read-only datastore */
    struct seal_policy policy;
    struct guard_events on;
    unsigned heartbeat_ms; /* of every host's record: takeover waits for three of them */
    struct inode_table *inodes;
    struct handle_table *handles;
    struct pool *pool; /* threads for everything that may block long */
    struct image_table *images;
    struct image_listing *listing; /* which files have a claim, for reads */
    struct takeover *takeover;
    struct maker_table *makers; /* NULL where no image is too small: guard_threshold_rules() */
    /* The lock on this host's record is lost and could not be had again: no new claims. */
    atomic_bool host_lost;
    /* The lock on the record had to be taken anew, so all of this host's may be lost: for the next
     * round. */
    atomic_bool locks_lost_new;
    /* This is that round: for the look at plain files alone, which is one at a time (maintain.c).
     */
    bool locks_lost;
    atomic_bool stopping; /* set once at shutdown: writes are answered EIO, opens for write EBUSY */
};

/* Makes the tables; opt, store, host, journal, policy, on and heartbeat_ms are set. 0, or -errno:
 * guard_free() all the same. */
DG_MUST_CHECK int guard_init(struct guard *g);
/* Ends the pool and frees the tables; after image_shutdown(). Store and journal stay. */
void guard_free(struct guard *g);
/* Are images of the size threshold= or less refused? A seal that refuses says by itself that it is
 * one, so that a size of 0 is the image's own. */
bool guard_threshold_rules(const struct guard_options *o);
void guard_attention(struct guard *g);
void guard_changed(struct guard *g);
void guard_forget_pages(struct guard *g, const struct inode *i);

enum image_state {
    IMAGE_IDLE,
    IMAGE_SEALING,
    IMAGE_SEALED,
    IMAGE_RESTORING,
    IMAGE_FENCED,
    IMAGE_STUCK,
    IMAGE_VANISHED
};
const char *image_state_name(enum image_state s);

/* ---- for namespace operations (fs_name.c) and truncation by path (fs_attr.c) ---- */

/* Keeps everybody else, here and on other hosts, from opening the file for write while a namespace
 * operation removes or replaces it. Whoever holds the image himself (the process, or with
 * writers=host any process of this host) may: QEMU removes a file whose creation failed before it
 * closes it. So may a program that manages this host's machines (option managers=), but only where
 * its bytes stay as they are (data: they are to change).
 * 0: go on (*ret is held, or the file is no image and nothing need be held); -EBUSY: held by
 * another: park and try again; any other -errno: final. Here and below *ret_conflict is who is in
 * the way, after -EBUSY; the caller that gives up says so, once: image_refused(). */
struct hold {
    struct inode *inode; /* pinned while held; NULL: nothing held */
    bool claimed;
    bool joined; /* the claim is that of the opener's own handles, and so is the seal: they stay */
};
DG_MUST_CHECK int image_hold(struct guard *g, struct inode *i, const struct opener *who,
                             const char *what, bool data, struct hold *ret,
                             struct conflict *ret_conflict);
/* Is the file plain, and neither claimed nor needed by a held image, so that image_hold() would
 * have nothing to hold? Asked freshly, by the ctimes of claims/ and marks/ (listing.h): it lists
 * nothing, claims nothing and waits for nobody. name: the file was just found under it, or NULL.
 * false: perhaps not. The last look of one who is about to write only where this host has the fence
 * of the file already (another plain writer): then nobody else can claim it. */
bool image_is_free(struct guard *g, struct inode *i, const char *name);
/* Right before the operation: does the claim still rule? 0; -EIO: this host was taken for dead and
 * lost it meanwhile (the image is FENCED), touch nothing; or another -errno. Narrows the window, no
 * more: the storage does not fence what changes names (core/takeover.h). */
DG_MUST_CHECK int image_hold_check(struct guard *g, const struct hold *h);
/* Before its name is moved elsewhere: does an image need it that another process, or host, holds?
 * -EBUSY, as above; 0 or -errno. */
DG_MUST_CHECK int image_moving(struct guard *g, struct inode *i, const struct opener *who,
                               struct conflict *ret_conflict);
/* The same for whatever lies in a directory: calls fn with the path, below the datastore, of each
 * such file. A non-zero return of fn stops and is returned. */
DG_MUST_CHECK int image_each_needed(struct guard *g, const struct opener *who,
                                    int (*fn)(void *arg, const char *path), void *arg);
/* A file, or a directory somewhere above images, has another name now: what is held here, is told
 * under that name from now on. Best effort. */
void image_renamed(struct guard *g, const struct inode *i);
/* Ends it. The claim is dropped altogether when the file is gone (link count 0), else freed. */
void image_unhold(struct guard *g, struct hold *h);
/* The one log line of a refused open or operation: image, holder host, pid, since, way out. */
void image_refused(struct guard *g, struct inode *i, const struct opener *who, const char *what,
                   const struct conflict *conflict);

/* truncate(2) by path. -EBUSY as above. */
DG_MUST_CHECK int image_truncate(struct guard *g, struct inode *i, const struct opener *who,
                                 uint64_t size, struct conflict *ret_conflict);

/* Is this guest data, which no plan looks at (struct format_zone): may I/O that begins here go
 * straight to handle->fd? Of an image with a footer nothing may, for its zone moves while the file
 * grows. No lock. */
bool image_is_data(const struct handle *h, uint64_t off);
/* A read that begins here, in the zone or not, needs no look at claims, most likely. No I/O. */
bool image_read_is_quick(const struct handle *h, uint64_t off);
/* The same of a change of guest data through a handle that is open for write: true: whoever is
 * about to seal something there waits until image_direct_end(). Two atomics; takes no lock in
 * between, for it would wait for that one. */
bool image_direct_begin(struct handle *h, uint64_t off, unsigned *ret_epoch);
void image_direct_end(struct handle *h, unsigned epoch);
/* A write of guest data at off to a guarded image with a footer: true: the image stays as it is
 * until image_data_end(). */
bool image_data_begin(struct handle *h, uint64_t off, uint64_t len);
void image_data_end(struct handle *h);

/* ftruncate(2), fallocate(2) and I/O that is not guest data, through a handle. 0 or a count, or
 * -errno. fs_data.c sends everything else straight to handle->fd. */
DG_MUST_CHECK int image_ftruncate(struct guard *g, struct handle *h, uint64_t size);
DG_MUST_CHECK int image_fallocate(struct guard *g, struct handle *h, int mode, uint64_t off,
                                  uint64_t len);
/* read(2) of an image or any other file: the one protocol (read.c). Guest data goes straight to the
 * handle's descriptor; what is read there counts only if it cannot be sealed bytes. A count, or
 * -errno. */
enum read_how {
    READ_NO_WAIT,  /* -EWOULDBLOCK: claims must be looked at first: again with READ_IN_DOUBT */
    READ_MAY_WAIT, /* not on a thread that reads requests */
    READ_IN_DOUBT, /* the same; looks at claim and header in any case */
};
DG_MUST_CHECK ssize_t image_read(struct guard *g, struct handle *h, void *buf, size_t len,
                                 uint64_t off, enum read_how how);
/* copy_file_range(2) of guest data, as much as neither side must look at; far from every header.
 * 0: nothing was copied, or *ret_doubt bytes that may be sealed ones: they must be read and written
 * again. *ret_end: that is all; then a count of 0 is the end of the file. Or -errno. */
#define IMAGE_COPY_MOST (1u << 20) /* of what may have to be written again */
DG_MUST_CHECK ssize_t image_copy(struct guard *g, struct handle *in, uint64_t off_in,
                                 struct handle *out, uint64_t off_out, size_t len, unsigned flags,
                                 bool *ret_end, size_t *ret_doubt);
/* How a write finds its place; both may be set. */
enum write_place {
    WRITE_APPEND = 1, /* at the end of the file; off is what the kernel takes for it */
    WRITE_ODD = 2     /* not in whole blocks, even if the handle's descriptor has O_DIRECT */
};
/* Can the handle's own descriptor not write so? Then a guarded one needs image_write(). */
static inline bool image_write_is_odd(const struct handle *h, unsigned place)
{
    return place & WRITE_ODD || (h->appends && !(place & WRITE_APPEND));
}
DG_MUST_CHECK ssize_t image_write(struct guard *g, struct handle *h, const void *buf, size_t len,
                                  uint64_t off, unsigned place);
/* Writes to the handle's file, without a look at anything. A count, or -errno. Odd: not of a
 * guarded handle. */
DG_MUST_CHECK ssize_t image_pwrite(struct guard *g, struct handle *h, const void *buf, size_t len,
                                   uint64_t off, unsigned place);
/* Guest data, as pread(2). Past the cache where it may be stale: see image_past_cache(). No lock.
 */
DG_MUST_CHECK ssize_t image_pread(const struct handle *h, void *buf, size_t len, uint64_t off);
/* What the file and its shard of claims/ were when claim and header of a file that this host does
 * not hold were read last. */
struct image_snapshot {
    bool valid;
    bool clean;          /* nothing was sealed */
    bool settled;        /* a change since then shows in ctime */
    bool claims_settled; /* in claims_ctime */
    uint64_t size;
    struct timespec ctime, claims_ctime;
};

/* May this host's cache of the file show what another host has changed since? On NFS it may,
 * without limit in time (io.h), for every handle but those of an image that this host holds, whose
 * cache was dropped under the fence lock when it was claimed, and those that write a plain file. */
bool image_past_cache(const struct handle *h);
/* Before any write of guest data; and after one of a guarded handle. 0, -EIO (fenced), or -EBUSY: a
 * plain file has become another host's image under this handle. No lock. */
DG_MUST_CHECK int image_write_allowed(const struct handle *h);
void image_wrote(struct handle *h);
/* The storage answered EIO or the like (negative err) on the descriptor of a guarded handle;
 * reopen.c. All three look at the claim first, fresh: a successor's makes the image FENCED at once.
 * image_reopen(): on this thread, gives the handle a new descriptor if the claim is still ours and
 * nothing that was written is lost: 0: repeat the request, once; else -EIO. Blocks: not on a thread
 * that reads requests. image_failed_later(): the same on the pool, one job an image at a time; then
 * again(arg, reopened), which repeats (if reopened) and answers. The handle must stay until then.
 * false: nothing of the kind, answer with err. image_io_failed(): only looks at the claim. Blocks.
 */
DG_MUST_CHECK int image_reopen(struct guard *g, struct handle *h);
DG_MUST_CHECK bool image_failed_later(struct guard *g, struct handle *h, int err,
                                      void (*again)(void *arg, bool reopened), void *arg);
void image_io_failed(struct guard *g, struct handle *h, int err);
/* The same of a handle of a plain file, no lock and no I/O: the monitor looks whether the locks of
 * this host were lost. */
void image_plain_failed(struct guard *g, struct handle *h, int err);
/* An fsync of guest data failed: kept, reported at every FLUSH, written to the record. */
void image_sync_failed(struct handle *h, int err);
int image_sync_error(const struct handle *h);

/* ---- for fs_open.c ---- */

/* Does a name make a file a raw image (option raw=)? */
bool image_name_is_raw(const struct guard *g, const char *name);

/* Is it an image that this host holds without a seal? Its path below the datastore. */
bool image_is_unsealed(struct inode *i, char *ret_path, size_t size);
/* What a file is, when it is opened read-only or before it is opened for write. */
enum image_what { IMAGE_WHAT_PLAIN, IMAGE_WHAT_IMAGE };
struct file_probe {
    int fd; /* open for reading, without O_DIRECT; -1: there is none */
    /* The name noted last leads to the file, seen just now, and no other host mounts its file
     * system: without a second link it has no other name. */
    bool named;
    /* out: */
    enum image_what what;
    bool seen;      /* st was fetched */
    struct stat st; /* the file's attributes, fresh, from before its header was read */
};
DG_MUST_CHECK int image_probe(struct guard *g, struct inode *i, struct file_probe *p);
/* Opens a handle (h->fd is open read-write, h->opener set) for write: claims and seals, or joins.
 * Sets h->guarded for an image, not for a plain file. -EBUSY: held by another, park; -EUCLEAN,
 * -EPERM, -EXDEV ...: final, and logged here. */
DG_MUST_CHECK int image_open(struct guard *g, struct handle *h, bool truncate,
                             struct conflict *ret_conflict);
/* -EBUSY of image_open, hold or truncate: is the holder just letting go? */
bool image_being_released(struct inode *i, const struct conflict *conflict);
/* -EBUSY of image_open: is it another host that holds it? */
bool image_held_elsewhere(struct inode *i, const struct conflict *conflict);
/* One line for a refusal that is final: what is wrong with the image, and the way out. */
void image_log_refused(struct guard *g, struct inode *i, const char *what, const char *fmt, ...)
    DG_PRINTF(4, 5);
/* The handle is gone: the last one restores. Blocks for as long as the datastore does. Closes
 * h->fd. */
void image_release(struct guard *g, struct handle *h);

/* Puts the holder's mtime into *st where the seal changed it. Cheap for a file that is not held. */
void image_stat(struct inode *i, struct stat *st);
/* utimensat(2) of a regular file; tv_nsec may be UTIME_OMIT or UTIME_NOW. An mtime that is chosen
 * for an image whose seal this host has taken goes into the record: the view shows it at once, the
 * datastore after the restore. -EBUSY: another host has sealed it: it would be lost. times.c. */
DG_MUST_CHECK int image_set_times(struct guard *g, struct inode *i, const struct timespec tv[2],
                                  struct conflict *ret_conflict);

/* ---- for the daemon as a whole ---- */
struct image_table *image_table_new(void);
void image_table_free(struct image_table *t);
void image_free(struct image *img); /* called by inode.c when an inode dies */
/* Shutdown: writes stop, every held image is synced, restored and released. Returns how many are
 * left sealed (STUCK). */
unsigned image_shutdown(struct guard *g);

/* What control.c shows: one entry per image that is not IDLE, from memory alone. */
struct image_info {
    enum image_state state;
    const char *path; /* below the datastore; valid during the call */
    uint64_t ino, generation;
    struct opener holder;
    unsigned writers;
    char format[16];
    uint64_t virtual_size;
    char since[32];
    int error; /* STUCK, FENCED: the errno that led there, positive */
    int sync_error;
    bool sealed;     /* false: protected by its claim, and */
    bool byte_locks; /* by the guard's locks on QEMU's bytes */
};
void image_each(struct guard *g, void (*fn)(void *arg, const struct image_info *info), void *arg);
/* The monitor: a round retries STUCK images, checks the claims of SEALED ones, and looks at the
 * writers of plain files. It only hands these out to the pool: an image whose storage hangs stops
 * neither the next round nor the other images, is not handed out twice, and the rounds never take
 * more than a quarter of the pool. One caller at a time. image_maintain_free waits for what is
 * under way. */
struct image_maintain *image_maintain_new(struct guard *g); /* NULL: out of memory */
void image_maintain_round(struct image_maintain *t);
void image_maintain_free(struct image_maintain *t); /* NULL is fine */

#endif
