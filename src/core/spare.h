/* spare.h: records that a daemon makes while the datastore has room. On a full one no new record
 * can be written, and without a record nothing can be claimed: not even to be removed, so that
 * there is room again, nor given back. A record whose file cannot be made takes a spare one, whose
 * blocks are there; the record that it replaces leaves room for the next one.
 *
 * They stand in tmp/ under names of this daemon, and go with it: claim_sweep(). On a file system
 * that copies on write they may not help: then it is as without them. Thread-safe. */
#ifndef DISKGUARD_SPARE_H
#define DISKGUARD_SPARE_H

#include "core/host.h"
#include "core/store.h"

/* One operation needs three at most: to claim, to say that it is being restored, to free. */
#define SPARE_MAX 8u
#define SPARE_SIZE 8192u /* bytes: a record of a qcow2 image has about 1 KiB, include/record.h */

struct spares;
struct spares *spares_new(const struct host *h); /* NULL: out of memory */
/* Removes the files, if it can, and forgets the store's spares. */
void spares_end(struct store *s);
/* Is it the name of one, of whatever daemon? The name has the form of a record's in tmp/. */
bool spare_is_name(const char *name);

/* Makes those that are missing, durably. What cannot be made now is made at the next call. Returns
 * at once while another thread is at it. */
void spares_fill(const struct store *s);

/* Who takes one for a new claim leaves so many: for those that are to be given back. */
#define SPARE_KEEP 4u

/* Makes text the content of a spare file, durable, under tmp/name, if more than `keep` are there.
 * A descriptor of it; -ENOSPC: there is none, or text is longer; or -errno. One that somebody
 * removed is passed over, and made anew with the next spares_fill(). */
DG_MUST_CHECK int spares_take(const struct store *s, unsigned keep, const char *name,
                              const void *text, size_t len);

#endif
