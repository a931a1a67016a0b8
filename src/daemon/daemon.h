/* daemon.h: the one structure that ties a running diskguard together. Built by main.c, read by all of src/daemon. */
#ifndef DISKGUARD_DAEMON_H
#define DISKGUARD_DAEMON_H

#include <fuse_lowlevel.h>
#include <stdatomic.h>

#include "base/sync.h"
#include "core/claim.h"
#include "core/host.h"
#include "core/journal.h"
#include "core/store.h"
#include "core/takeover.h"

struct inode_table;
struct handle_table;
struct pool;
struct lanes;
struct park;
struct image_table;
struct keeper;
struct control;
struct lock_table;
struct prune;
struct takeover;
struct maker_table;

enum takeover_mode { TAKEOVER_MANUAL, TAKEOVER_BY_LOCK, TAKEOVER_UNPROVEN };
enum writers { WRITERS_PROCESS, WRITERS_HOST };
enum readers { READERS_PROTECT, READERS_IGNORE };
enum damaged { DAMAGED_CLAIM, DAMAGED_REFUSE };
enum raw_mode { RAW_AUTO, RAW_ALL, RAW_NONE, RAW_GLOBS };

struct options {
    char *datastore, *mountpoint; /* absolute, canonical */
    char *host_id;                /* NULL: derive */
    char *state_dir;              /* default /var/lib/diskguard */
    unsigned wait_s;              /* default 5, 0..86400 */
    bool wait_set;                /* wait= was given: waits so long whatever is known of the holder */
    uint64_t threshold;           /* bytes, default 0 */
    bool threshold_set;           /* threshold= was given */
    enum seal_mode seal;
    enum raw_mode raw;
    char **raw_globs;    /* NULL-terminated; fnmatch(3) on the last path component */
    char **shared_globs; /* the same; NULL: none (image_shared.h) */
    enum writers writers;
    enum readers readers;
    char **managers;             /* NULL-terminated: names or absolute paths of executables (image_first.h) */
    char *subtype;               /* of the mount's type fuse.SUBTYPE, default "diskguard" */
    enum damaged damaged;        /* an image whose header contradicts itself */
    bool fence_none;             /* fence=none */
    enum takeover_mode takeover; /* takeover=manual|lock|lock-unproven */
    unsigned takeover_wait_s; /* default 120, 1..86400: instead of wait_s while a takeover may still come */
    bool foreground, debug, read_only;
    unsigned max_read;          /* libfuse wants init() to repeat -o max_read; 0: none */
    struct fuse_args fuse_args; /* what is handed on to libfuse */
};

struct daemon {
    struct options opt;
    struct store store;
    struct host host;
    int host_lock_fd;
    struct journal *journal; /* NULL on a read-only datastore */
    struct fuse_session *se;
    struct inode_table *inodes;
    struct handle_table *handles;
    struct pool *pool;   /* threads for everything that may block long */
    struct lanes *lanes; /* but reads and writes have these */
    struct park *park;
    struct image_table *images;
    struct keeper *_Atomic keeper; /* started last, after requests are served already */
    struct control *control;
    struct prune *prune;
    struct takeover *takeover;
    struct maker_table *makers; /* NULL where no image is too small: options_threshold_rules() */
    struct seal_policy policy;
    /* keeper.c: the lock on this host's record is lost and could not be had again: no new claims. */
    atomic_bool host_lost;
    /* keeper.c: the lock on the record had to be taken anew, so all of this host's may be lost; for its next round. */
    atomic_bool locks_lost_new;
    /* This is that round: for the look at plain files alone, which is one at a time (image_tend.c). */
    bool locks_lost;
    atomic_ullong init_unique; /* init.c: of the INIT request, until its reply is told of shared mappings */
    atomic_bool may_map;       /* the kernel allows shared mappings of images */
    atomic_bool map_said;      /* that it does not was logged */
    atomic_bool stopping;      /* set once at shutdown: writes are answered EIO, opens for write EBUSY */
};

static inline struct daemon *daemon_of(fuse_req_t req)
{
    return fuse_req_userdata(req);
}

#endif
