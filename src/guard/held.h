/* held.h: a held image as its claim and record say it. */
#ifndef DISKGUARD_GUARD_HELD_H
#define DISKGUARD_GUARD_HELD_H

#include "guard/image.h"

/* ---- the record ----
 *
 * A held image keeps it packed (core/packed.h). Whoever works on it takes it out for as long as it
 * has the header, into a buffer of its own: img->held.rec. That is a variable of the function, 42
 * KiB of stack, for a restore must not fail because there is no memory. */

/* For what does not make it longer: a restore, a time. */
void image_record_open(struct image *img, struct record *full) REQUIRES(img->header);
/* For what may: a new plan, a new name. -ENOMEM: it is not open, and nothing has happened. */
DG_MUST_CHECK int image_record_edit(struct image *img, struct record *full) REQUIRES(img->header);
/* Packs it again; nothing if it was forgotten meanwhile. */
void image_record_close(struct image *img) REQUIRES(img->header);

/* The seal of a held image whose record is open, for the core's functions. */
struct seal image_seal(struct guard *g, struct image *img) REQUIRES(img->header);
/* Journal and claim of a held image say its name of now: after a rename here; and the monitor, for
 * those past this view. What fails is left at that. */
void image_follow_name(struct guard *g, struct image *img) EXCLUDES(img->lock, img->header);
/* Does our claim of the held image still rule? 0, -CLAIM_LOST, -EBUSY (not held any more) or
 * -errno. */
DG_MUST_CHECK int image_claim_rules(struct guard *g, struct image *img)
    EXCLUDES(img->lock, img->header);
/* Another host holds the image now, or did. Only a successor's claim makes our row worthless: where
 * there is no claim at all (somebody removed it, the storage lost it), the row is the last copy of
 * the true bytes, and stays for fsck.diskguard. The record is open. */
DG_MUST_CHECK int image_drop_lost_row(struct guard *g, struct image *img) REQUIRES(img->header);
/* Is this the claim of a process that may write with this one? */
bool image_own_claim(const struct guard *g, const struct record *rec, const struct opener *who);

/* ---- the hold: held.c alone writes img->held ---- */

/* In the long action, before the claim: an empty record, open in *full. -ENOMEM: there is none. */
DG_MUST_CHECK int image_held_prepare(struct image *img, struct record *full) REQUIRES(img->header);
/* The claim is ours. */
void image_held_begin(struct image *img) REQUIRES(img->header) EXCLUDES(img->lock);
/* The claim is given back: another host may seal it from now on, and the record explains nothing.
 */
void image_held_freed(struct image *img) REQUIRES(img->header);
/* Forgets the record and closes the descriptor. */
void image_held_forget(struct image *img) REQUIRES(img->header);
/* Another descriptor, or -1. Returns the one of before, which the caller closes. */
int image_held_fd(struct image *img, int fd) REQUIRES(img->header);
void image_held_wrote(struct image *img);
/* Somebody has set the mtime: shown until the next write. */
void image_held_chosen(struct image *img, struct timespec mtime) EXCLUDES(img->lock);
/* Writes get EIO from now on. */
void image_held_stop(struct image *img);
/* true: it is the first error, err positive. */
bool image_held_sync_failed(struct image *img, int err);

#endif
