/* seal.h: the only module that orders a header write. Every function here performs a part of
 * the durable order (DESIGN 4.4 to 4.6):
 *
 *   open      journal armed -> claim armed -> sealed bytes, fsync, read back -> journal sealed
 *   edit      journal (new plan) -> claim (new plan) -> bytes outside the extents -> sealed bytes
 *             if they changed -> memory
 *   restore   journal restoring -> true bytes in reverse, mtime, fsync, read back -> claim free ->
 *             row gone (lazy). Where the claim does not know all of the plan, the row is lazy and
 *             the claim says restoring, too
 *
 * Lazy: nothing rests on it after a crash; the storage may lose it (journal.h, claim.h).
 *
 * mtime. Programs that copy files skip those whose size and mtime they have seen (rsync,
 * restic), or that are no newer than their copy (cp -u). A copy that they made past the view
 * while the image was sealed holds sealed bytes, and they must copy the file again. So no image
 * shows an mtime without its seal that it showed with it: the restore sets a new one, later than
 * all of them (seal_new_mtime). Not where no seal was taken in this hold (raw images).
 *
 * A struct seal is used by one thread at a time (daemon: under the image's header lock, held for
 * writing). `fd` is open read-write, carries the shared (recovery: exclusive) fence lock, and is
 * not O_DIRECT. rec is the truth in memory: on failure it says what may be on disk. */
#ifndef DISKGUARD_SEAL_H
#define DISKGUARD_SEAL_H

#include "core/claim.h"
#include "core/header.h"
#include "core/journal.h"
#include "core/overlay.h"
#include "core/record.h"

struct seal {
    const struct store *store;
    /* NULL for fsck without a journal: the claim alone carries the plan */
    struct journal *journal;
    int fd;
    struct seal_policy policy;
    struct record *rec;
    /* seal_restore() drops the fence lock before it frees the claim, when nothing is left to
     * write to the image: whoever finds the claim free finds the fence free, too. */
    bool unfence;
    /* seal_restore() need not tell other hosts that the image is being let go: none can mount the
     * storage, or none waits for it. Else they wait for the end, beyond wait= (conflict.h). */
    bool untold;
    /* seal_edit() only: the zone of the image as the holder sees it after the edit. If the edit
     * fails half-way, it is the wider one of before and after. */
    struct format_zone zone;
    /* May be NULL. Called with the wider zone where it grows, before anything of an edit is
     * written. When it returns, all new I/O in that zone is looked at, and what was under way
     * has landed. The header is read anew then. */
    void (*widened)(void *arg, const struct format_zone *zone);
    void *arg;
};

/* Writes rec to the journal and then to its claim, with the next seq. -CLAIM_LOST: fenced. */
DG_MUST_CHECK int seal_record(struct seal *s);

/* Writes the sealed bytes of rec->plan (which is armed in journal and claim), verifies, marks
 * sealed. -EIO: what was read back is not what was written. The caller restores on failure. */
DG_MUST_CHECK int seal_write(struct seal *s);

/* Carries out a holder's edit that reaches into s->zone, the zone of the image as it is now
 * (format.h). Bytes outside the extents go to disk, those inside go into the record. If the plan
 * changes, journal and claim say so first; then it is written. On return the record is durable;
 * bytes outside the extents are as durable as any write.
 * 0 or -errno; -EUCLEAN: somebody else wrote to the header. After an error the edit may have
 * happened in part, as POSIX allows; rec->plan still undoes whatever is on disk. */
DG_MUST_CHECK int seal_edit(struct seal *s, const struct edit *e);

/* Writes the true bytes back over the sealed ones, verifies them, frees the claim, and removes
 * the row. claim_clear() is left to the caller, for a time when nobody waits. rec->step tells how
 * far it came. rec->chosen: it sets that mtime, where seal_new_mtime() can. -EUCLEAN: ALIEN bytes,
 * nothing was touched. -CLAIM_LOST: fenced. Any other -errno: try again. */
DG_MUST_CHECK int seal_restore(struct seal *s);

/* The true bytes are back on disk. Gives the file, durably, an mtime that no sealed state of
 * this hold has shown. That is rec->mtime_chosen, if it counts and none of those states can have
 * shown it. Otherwise it is now, but at least SEAL_MTIME_STEP seconds after the last of them,
 * and another one than rec->mtime. Where this user may not choose a time (a file of somebody else),
 * it is the clock's next one. 0 or -errno; a file system that cannot do it is no error. */
struct seal_shown {
    struct timespec last;     /* the last mtime of the sealed image */
    struct timespec restored; /* the mtime after the first byte of the restore */
};
/* shown: NULL where the restore wrote nothing. */
DG_MUST_CHECK int seal_new_mtime(int fd, const struct record *rec, const struct seal_shown *shown);
/* Two times this far apart are different for every program: rsync compares whole seconds, or,
 * with --modify-window=1, pairs of them; FAT keeps only even ones. */
#define SEAL_MTIME_STEP 2
/* Before a restore: does rec->mtime_chosen still count (record.h)? Not after a write or a touch of
 * anybody since, on whatever host. 0 or -errno. */
DG_MUST_CHECK int seal_judge_chosen(int fd, struct record *rec);
/* Was the image ever sealed in this hold, as far as the record knows? */
bool seal_was_taken(const struct record *rec);

/* Takes the seal of rec->plan off a file that nobody holds and no claim speaks of: a copy. As
 * seal_restore(), but of the file alone. 0; -EUCLEAN: the bytes are not those of the plan; or
 * -errno: the plan still undoes what is there. */
DG_MUST_CHECK int seal_undo(int fd, const struct record *rec);

/* Reads the header and says how it stands against rec->plan. 0 or -errno. */
DG_MUST_CHECK int seal_compare(int fd, const struct record *rec, enum header_state *ret);

#endif
