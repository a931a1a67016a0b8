/* journal.h: this host's database of the claims that it holds (schema: include/diskguard/journal.h). The only module that knows sqlite3.
 *
 * Thread-safe. Concurrent puts and removes share one transaction (group commit): the first caller commits for all that wait. Every function
 * returns only when its change is durable. After an error of the medium the journal stays usable; each call reports for itself. */
#ifndef DISKGUARD_CORE_JOURNAL_H
#define DISKGUARD_CORE_JOURNAL_H

#include "core/record.h"

struct journal;

/* Opens or creates STATE_DIR/<store uuid>.db and takes STATE_DIR/<store uuid>.lock (flock). -EBUSY: another process has it; -EPROTONOSUPPORT:
 * newer version; -EBADMSG: not a database (why says how to set it aside: fsck can do without it); -EACCES, -ENOSPC, -EROFS. */
DG_MUST_CHECK int journal_open(const char *state_dir, const char *store_uuid, struct journal **ret, struct why *why);
void journal_close(struct journal *j); /* NULL is fine */

/* Inserts or replaces the row (rec->ino, rec->generation). */
DG_MUST_CHECK int journal_put(struct journal *j, const struct record *rec);
/* Removes the row; no error when there is none. */
DG_MUST_CHECK int journal_remove(struct journal *j, uint64_t ino, uint64_t generation);

/* Calls fn for each row of a snapshot, in no order. err: 0, or record_decode's error (rec then has only ino and generation). fn may put and remove. */
DG_MUST_CHECK int journal_each(struct journal *j, int (*fn)(void *arg, const struct record *rec, int err), void *arg);

#endif
