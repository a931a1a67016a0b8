/* record.h: the claim record in memory, and its text form (include/diskguard/record.h is the
 * contract). Pure. */
#ifndef DISKGUARD_CORE_RECORD_H
#define DISKGUARD_CORE_RECORD_H

#include <sys/types.h>
#include <time.h>

#include "base/base.h"
#include "core/io.h"
#include "diskguard/record.h"
#include "format/plan.h"

#define RECORD_IMAGE_MAX 4096 /* PATH_MAX, limits.h */
#define RECORD_NAME_MAX 65    /* HOST_NAME_MAX + 1 */
#define RECORD_FORMAT_MAX 16

enum claim_step {            /* text in brackets */
                  STEP_FREE, /* "free": nobody holds the image */
                  /* "claimed": held; no plan needed (raw image, namespace operation) */
                  STEP_CLAIMED,
                  STEP_ARMED,  /* "armed": held; the seal may be written at any moment */
                  STEP_SEALED, /* "sealed" */
                  /* "restoring": the last handle is closed, the true bytes are being written back
                   */
                  STEP_RESTORING,
                  STEP_STUCK /* "stuck": a restore failed and is retried */
};

struct record {
    uint64_t ino;
    struct io_handle handle;
    uint64_t generation;
    enum claim_step step;
    uint64_t seq;
    dg_uuid host, installation, boot, daemon;
    char host_name[RECORD_NAME_MAX];
    uint64_t pid, start; /* 0: unknown */
    uint64_t uid, gid;
    char since[32];
    char format[RECORD_FORMAT_MAX];
    uint64_t virtual_size;
    uint64_t cut; /* OVERLAY_NO_CUT or bytes */
    struct timespec mtime, mtime_sealed;
    /* An mtime that somebody chose (utimensat) while the image was sealed. It waits here for the
     * restore, so that the sealed image never shows it. It counts while the file's own mtime is
     * still mtime_seen, or when nobody can write any more (restoring, stuck). */
    bool chosen;
    struct timespec mtime_chosen, mtime_seen;
    int sync_error;      /* 0 or a positive errno */
    enum fencing fenced; /* of the holder; FENCING_NO where the text has none */
    /* Those two last that have far more room than most records need: packed.h. */
    char image[RECORD_IMAGE_MAX];
    struct plan plan;
};

/* Text form, NUL-terminated, freed by the caller. 0, -ENOMEM or -EINVAL (a field that cannot be
 * encoded). */
DG_MUST_CHECK int record_encode(const struct record *rec, char **ret_text, size_t *ret_len);

/* The tombstone of a record: free, without its plan, with the next seq. Needs no memory, for a
 * claim is given back also where there is none. 0 or -EINVAL. */
#define RECORD_FREED_MAX (3 * RECORD_IMAGE_MAX + 4096) /* no text without a plan is longer */
DG_MUST_CHECK int record_encode_freed(const struct record *rec, char text[RECORD_FREED_MAX],
                                      size_t *ret_len);

/* Do both undo the same? Plan, truncation, and what the restore does with mtime. */
bool record_same_undo(const struct record *a, const struct record *b);

/* Strict: every line, in order, nothing else. 0, -EBADMSG (does not decode: truncated, checksum,
 * syntax, range, overlapping extents), -EPROTONOSUPPORT (a newer version; its checksum is right).
 */
DG_MUST_CHECK int record_decode(const char *text, size_t len, struct record *ret);

const char *record_step_name(enum claim_step step);

#endif
