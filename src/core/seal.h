/* seal.h: the only module that orders a header write. Every function here performs a part of design's durable order:
 *
 *   open      journal armed -> claim armed -> sealed bytes, fsync, read back -> journal sealed
 *   edit      journal (new plan) -> claim (new plan) -> bytes outside the extents -> sealed bytes if they changed -> memory
 *   restore   journal restoring -> claim restoring -> true bytes in reverse, fsync, read back -> claim free -> row gone
 *
 * A struct seal is used by one thread at a time (daemon: under the image's header lock, held for writing). `fd` is open read-write, carries the shared
 * (recovery: exclusive) fence lock, and is not O_DIRECT. rec is the truth in memory: on failure it says what may be on disk. */
#ifndef DISKGUARD_SEAL_H
#define DISKGUARD_SEAL_H

#include "core/claim.h"
#include "core/header.h"
#include "core/journal.h"
#include "core/overlay.h"
#include "core/record.h"

struct seal {
    const struct store *store;
    struct journal *journal; /* NULL: fsck without a journal; then the claim alone carries the plan */
    int fd;
    struct seal_policy policy;
    struct record *rec;
    /* seal_restore() drops the fence lock when nothing is left to write to the image, before it frees the claim: who finds the claim free finds
     * the fence free, too. */
    bool unfence;
    /* seal_edit() only: where the image can be touched, as the holder sees it after the edit; the wider of both, while the edit fails half-way. */
    struct format_zone zone;
    /* May be NULL: called with the wider zone, where it grows, before anything of an edit is written: from then on all I/O there is looked at, and what was
     * under way has landed when it returns. The header is read anew then. */
    void (*widened)(void *arg, const struct format_zone *zone);
    void *arg;
};

/* Writes rec to the journal and then to its claim, with the next seq. -ESTALE: fenced. */
DG_MUST_CHECK int seal_record(struct seal *s);

/* Writes the sealed bytes of rec->plan (which is armed in journal and claim), verifies, marks sealed. -EIO: what was read back is not what
 * was written. The caller restores on failure. */
DG_MUST_CHECK int seal_write(struct seal *s);

/* Carries out a holder's edit that reaches into s->zone, which is the image's as it is now (format.h). The bytes outside the extents land on disk, those inside in the record; if the header
 * becomes another one, the new plan is journalled and claimed first and then written. The record is durable on return; bytes outside the extents are as
 * durable as any write. 0 or -errno, -EUCLEAN: somebody else wrote to the header; after
 * an error the edit may have happened in part (as POSIX allows), and rec->plan still undoes whatever is on disk. */
DG_MUST_CHECK int seal_edit(struct seal *s, const struct edit *e);

/* Writes the true bytes back where the sealed ones stand, verifies, frees the claim, removes the row. -EUCLEAN: ALIEN bytes, nothing was touched;
 * -ESTALE: fenced; else -errno: try again. mtime: set to this if non-NULL. rec->step tells how far it came. */
DG_MUST_CHECK int seal_restore(struct seal *s, const struct timespec *mtime);

/* Reads the header and says how it stands against rec->plan. 0 or -errno. */
DG_MUST_CHECK int seal_compare(int fd, const struct record *rec, enum header_state *ret);

#endif
