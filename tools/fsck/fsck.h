/* fsck.h: the parts of fsck.diskguard.
 *
 *   fsck_diskguard.c   command line, order of the steps, exit code
 *   fsck_identity.c    who we act as: state directory, host lock, journal
 *   fsck_takeover.c    --takeover: which host, what evidence, its lock
 *   fsck_rescue.c      sealed images without any record
 *   fsck_file.c        one file that is no datastore
 *   fsck_walk.c        all claims and all files of the datastore
 *   fsck_report.c      what is printed, and the question before a repair
 *
 * What to do about an image is decided by core/recover.h alone, as in the daemon. Here is only who
 * may act, on what, and what people are told. */
#ifndef DISKGUARD_TOOLS_FSCK_H
#define DISKGUARD_TOOLS_FSCK_H

#include <signal.h>

#include "common/out.h"
#include "core/header.h"
#include "core/recover.h"
#include "diskguard/exitcodes.h"

enum fsck_mode {
    MODE_ASK,   /* ask before each repair */
    MODE_CHECK, /* -n */
    MODE_PREEN, /* -p */
    MODE_YES    /* -y */
};

/* One key of claims/, after the repairs. */
struct fsck_claim {
    uint64_t ino;
    enum claim_kind kind;
    int error;
    unsigned files; /* generations that have a file */
    enum claim_step step;
    char *path;
    uint64_t generation, pid;
    dg_uuid host, installation;
    char host_name[RECORD_NAME_MAX];
    char since[32];
};

struct fsck {
    /* command line */
    enum fsck_mode mode;
    bool json, verbose, confirmed, fence_none;
    char *size_image; /* --size: path below the datastore, or NULL */
    uint64_t size;    /* bytes; without size_image: of one_file */
    bool one_file;    /* `datastore` is a regular file */
    const char *host_id, *state_dir, *takeover_arg, *datastore;

    /* who and where */
    struct store store;
    struct host host;
    bool beside; /* a live daemon has our identity: nothing of it is touched */
    bool dry_run;
    int lock_fd;             /* lock of our host record, or -1 */
    bool rebind;             /* lock_fd was taken by force: the record names another installation */
    char *snapshot;          /* -n: private copy of the state directory */
    struct journal *journal; /* or NULL */
    dg_uuid takeover;        /* "" : none */
    int takeover_fd;         /* lock of that host's record, or -1 */

    /* what was found */
    struct fsck_claim *claims; /* by inode */
    size_t nclaims;
    uint64_t *reported; /* inode numbers that recovery has reported */
    size_t nreported;
    unsigned files, sealed, held, corrected, left, notes;
    bool walked; /* the whole datastore was looked at, as far as it could be read */
    bool error;  /* something could not be read: FSCK_ERROR */
    struct json_object *found;
};

extern volatile sig_atomic_t fsck_canceled;

/* ---- fsck_file.c ---- */

bool fsck_is_file(const char *path); /* asks no view */
int fsck_file(struct fsck *f);       /* the exit code */

/* ---- fsck_report.c ---- */

/* Reports one finding. `done` as in struct recover: 0 repaired, 1 left, -errno failed. Counts it.
 */
void report_problem(struct fsck *f, enum problem p, const struct record *rec, const char *detail,
                    int done, const char *verb);
/* Callbacks for struct recover; arg is the struct fsck. */
void report_recover(void *arg, const struct record *rec, struct recover_decision d, int done);
bool report_ask(void *arg, const struct record *rec, struct recover_decision d);
/* Reports another problem, present or repaired: code as in problem.h's table; counts it as
 * corrected or left. */
void report_other(struct fsck *f, const char *code, bool corrected, const char *message,
                  const char *repair);
/* Reports what is not wrong but worth a line. `code` for programs. */
void report_note(struct fsck *f, const char *code, const char *image, uint64_t ino, const char *fmt,
                 ...) DG_PRINTF(5, 6);
/* A line for people only. */
void report_say(const struct fsck *f, const char *fmt, ...) DG_PRINTF(2, 3);
/* An error that keeps fsck from looking at something: sets f->error. */
void report_error(struct fsck *f, const char *fmt, ...) DG_PRINTF(2, 3);
bool report_yes(const struct fsck *f, const char *question); /* asks on the terminal */
bool report_known(const struct fsck *f, uint64_t ino);       /* recovery has reported this inode */
void report_end(struct fsck *f, int code);

/* ---- fsck_identity.c ---- */

/* Finds out who we act as. With f->dry_run it changes nothing: it works on a private copy of the
 * state directory. 0 or -errno with a message. */
DG_MUST_CHECK int identity_load(struct fsck *f);
/* Takes the lock of our host record, after takeover_open(). May turn f->dry_run or f->beside on. 0
 * or -errno with a message. */
DG_MUST_CHECK int identity_lock(struct fsck *f);
/* Opens the journal if there is one, and turns f->dry_run on where it is damaged and may not be set
 * aside. 0 or -errno with a message. */
DG_MUST_CHECK int identity_journal(struct fsck *f);
/* After a takeover of our own uuid: the record is this installation's from now on. */
void identity_bind(struct fsck *f);
void identity_close(struct fsck *f);

/* ---- fsck_takeover.c ---- */

/* Fills f->takeover, shows the evidence, takes that host's lock. 0 or -errno with a message:
 * -EINVAL wrong usage (unknown or ambiguous host, no confirmation), -EBUSY it is alive. */
DG_MUST_CHECK int takeover_open(struct fsck *f);
bool takeover_is_own(const struct fsck *f);
/* host_alive(), but our own lock does not count as life. */
int takeover_alive(const struct fsck *f, const char *uuid);
/* The same in words. */
const char *takeover_alive_text(const struct fsck *f, const char *uuid);

/* ---- fsck_rescue.c ---- */

/* A sealed image that nobody holds and no journal row here explains: says what the file alone
 * tells, and undoes the seal where that is exact and wanted. */
void rescue_orphan(struct fsck *f, int path_fd, const char *path, const struct stat *st,
                   uint64_t generation);

/* ---- fsck_walk.c ---- */

/* Reads all claims into f->claims. 0 or -errno. */
DG_MUST_CHECK int walk_claims(struct fsck *f);
/* Reports the claims that recovery has not reported. */
void walk_speak(struct fsck *f);
/* Removes the leftovers of crashes in tmp/ and below the highest generations. 0 or -errno. */
DG_MUST_CHECK int walk_sweep(struct fsck *f);
/* Looks at the header of every file and compares it with the claims. 0 or -errno. */
DG_MUST_CHECK int walk_files(struct fsck *f);
void walk_free(struct fsck *f);

#endif
