/* recover.h: what to do with a claim whose daemon is gone. One pure function decides, the rest
 * carries it out. The daemon at its start, its monitor and fsck.diskguard use it.
 * tests/unit/test_recover.c enumerates the whole table of recover_decide. */
#ifndef DISKGUARD_RECOVER_H
#define DISKGUARD_RECOVER_H

#include "core/claim.h"
#include "core/journal.h"
#include "core/overlay.h"
#include "core/problem.h"

enum row_kind {
    ROW_NONE,
    ROW_VALID,
    ROW_BAD /* does not decode */
};
enum owner {
    OWNER_MINE, /* this host uuid and installation */
    OWNER_FOREIGN,
    OWNER_CONFIRMED /* foreign, and a person confirmed that its host is down (fsck --takeover), or
                       may_take said so */
};
enum image_kind {
    IMAGE_FOUND, /* open, its handle is the recorded one */
    IMAGE_GONE,  /* store_gone() says so, or the link count is 0 */
    /* the inode number now belongs to a file with another handle, and the recorded one cannot be
       asked */
    IMAGE_OTHER,
    IMAGE_UNREADABLE, /* EIO, EACCES, timeout ... */
    IMAGE_BUSY        /* the exclusive fence lock was not granted */
};
/* Everything the decision depends on, and nothing else. */
struct recover_input {
    enum row_kind row;
    /* For ROW_VALID: its step is sealed, restoring or stuck, so its claim was proved and used.
     * With another step (claimed, armed) the claim of that generation may never have been made,
     * or another host was faster. */
    bool row_sealed;
    enum claim_kind claim;
    int claim_error;  /* for CLAIM_BAD */
    enum owner owner; /* of the claim, where HELD or FREE (FREE: the host that freed it) */
    /* claim's generation against the row's: -1 lower, 0 equal, 1 higher. Only where both exist */
    int generation;
    enum image_kind image;
    enum header_state header; /* against the newer plan of the two; only for IMAGE_FOUND */
};
enum recover_action {
    RECOVER_NOTHING, /* no row, no claim of ours */
    RECOVER_FORGET,  /* drop the row (and, for IMAGE_GONE, the claim): there is nothing to undo */
    RECOVER_RELEASE, /* header is true: free the claim, drop the row */
    RECOVER_RESTORE, /* write the true bytes back, then release */
    RECOVER_STOP     /* touch nothing, report */
};
struct recover_decision {
    enum recover_action action;
    enum problem problem;
};
struct recover_decision recover_decide(const struct recover_input *in);

const char *recover_action_name(enum recover_action a); /* "FORGET" ... */

/* ---- execution ---- */

struct recover {
    const struct store *store;
    struct journal *journal; /* NULL: none */
    const struct host *host;
    const char *takeover; /* host uuid that a person confirmed to be down, or NULL */
    /* May be NULL. May this claim of another host be taken over without a person (core/takeover.h)?
     * Asked at each fresh look at the claim, also at the one under the exclusive fence lock. The
     * grant of that lock is the proof that the holder cannot write any more. */
    bool (*may_take)(void *arg, const struct record *rec);
    bool dry_run;     /* decide and report, change nothing */
    bool agree;       /* a person agrees to SEV_ASK repairs, or ask will ask one */
    bool leave_lower; /* the caller clears lower generations of freed claims away:
                         claim_sweep_lower() */
    struct seal_policy policy;
    /* Called once per image with something to report. done: 0 repaired or nothing to do, 1 not
     * tried (dry run, STOP), -errno failed. */
    void (*report)(void *arg, const struct record *rec, struct recover_decision d, int done);
    /* May be NULL: recover_all() settles one image after the other. Runs fn(job), on another thread
     * or on this one; RECOVER_JOBS at a time at most are asked for. The functions here are then
     * called by several threads at once. */
    void (*run)(void *arg, void (*fn)(void *job), void *job);
    /* May be NULL. Asked before a repair of severity SEV_PREEN or SEV_ASK: true = do it. */
    bool (*ask)(void *arg, const struct record *rec, struct recover_decision d);
    void *arg;
};

/* Settles one image. row: its row, or NULL; the claim is read fresh. row_err: record_decode's
 * error of a bad row. 0: settled; 1: something is left; or -errno. */
DG_MUST_CHECK int recover_image(struct recover *r, uint64_t ino, const struct record *row,
                                int row_err);

#define RECOVER_JOBS 32u /* each has three records in memory, 40 KiB each */

/* Settles every journal row. Then every claim without a row that is ours (or of takeover), or
 * does not decode.
 * 0: all is settled.
 * 1: something is left; also where a repair failed, which was reported.
 * -errno: rows or claims cannot be listed.
 * Call in this order: host lock; claim_sweep, after which no link request of a dead daemon can
 * land; recover_all; and only then serve. While this process holds images, only the fence keeps
 * recover_all from taking them for left behind. */
DG_MUST_CHECK int recover_all(struct recover *r);

#endif
