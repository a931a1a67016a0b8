/* journal.h: this host's database of the claims that it holds (schema:
 * include/diskguard/journal.h). The only module that knows sqlite3.
 *
 * Thread-safe. Puts and removes that come at the same time share one transaction (group commit):
 * the first caller commits for all that wait. journal_put() returns when its change is durable.
 * The changes of the lazy functions are in the file at once, so a killed program loses nothing
 * of them; they are durable after the next journal_put() of anybody, so a host that loses power
 * may lose them. Changes keep their order. After an error of the medium the journal stays
 * usable; each call reports for itself.
 *
 * On a full disk a new row is refused (-ENOSPC). Removing a row, or replacing it by one of about
 * its size, uses space that was allocated before. A write that failed may still be there after a
 * crash: then it is a row without a claim, and recovery forgets it.
 *
 * Open it after the last fork(2) of a program that turns itself into a daemon: neither sqlite nor
 * the pid in the lock file survives one. */
#ifndef DISKGUARD_CORE_JOURNAL_H
#define DISKGUARD_CORE_JOURNAL_H

#include "core/record.h"

struct journal;

/* Opens or creates STATE_DIR/<store uuid>.db and takes STATE_DIR/<store uuid>.lock (flock). -EBUSY:
 * another process has it; -EPROTONOSUPPORT: newer version; -EBADMSG: not a database (why says how
 * to set it aside: fsck can do without it); -EACCES, -ENOSPC (a new one; an old one opens also on a
 * full disk), -EROFS. STATE_DIR must exist (host_load makes it). */
DG_MUST_CHECK int journal_open(const char *state_dir, const char *store_uuid, struct journal **ret,
                               struct why *why);
void journal_close(struct journal *j); /* NULL is fine */

/* Inserts or replaces the row (rec->ino, rec->generation). */
DG_MUST_CHECK int journal_put(struct journal *j, const struct record *rec);
/* The same, but not durable by itself: for what recovery finds out without the row. */
DG_MUST_CHECK int journal_put_lazy(struct journal *j, const struct record *rec);
/* Removes the row; no error when there is none. Not durable by itself: if the row comes back its
 * claim is free or was never made, and recovery forgets it. */
DG_MUST_CHECK int journal_remove(struct journal *j, uint64_t ino, uint64_t generation);

/* Calls fn for each row of a snapshot, in no order. err: 0, or record_decode's error (rec then has
 * only ino and generation). fn may put and remove. A non-zero return of fn stops and is returned.
 */
DG_MUST_CHECK int journal_each(struct journal *j,
                               int (*fn)(void *arg, const struct record *rec, int err), void *arg);

#endif
