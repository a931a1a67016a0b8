/* upgrade.h: a datastore of format 1 becomes one of format 2 (layout.h), in one step that may be
 * interrupted at any moment and then is run again.
 *
 *  1. No daemon lives: the records of all hosts are locked, and stay so until the end.
 *  2. `datastore` says "format 2, state=upgrade": from here on every daemon refuses it, one that
 *     knows format 1 alone, too. Then the records are looked at again, for a host that came
 * between.
 *  3. For claims, marks and readers: claims.2/ with all its shards; each name is renamed from
 *     claims/ to its shard; claims.2/ is renamed over claims/, which is empty then.
 *  4. The records once more; `datastore` says "state=ready".
 *
 * Files are moved as they are: generations, tombstones and held claims stay what they were, and
 * `floor` is not touched. What a crash left is recovered afterwards as before. A daemon of format 1
 * that read `datastore` before step 2 and got its lock after it cannot make a claim any more: the
 * directory that it has open is gone. */
#ifndef DISKGUARD_UPGRADE_H
#define DISKGUARD_UPGRADE_H

#include "core/store.h"

struct upgrade_result {
    unsigned moved; /* names, by this run */
};

/* no_locks: the storage has no locks, and a person says that no daemon lives. *ret is open
 * afterwards. why names the way out.
 * -EEXIST: it is of format 2 already, and whole.
 * -EBUSY: a daemon, an fsck.diskguard or another upgrade is at work on it.
 * -EUCLEAN: there is something in its directories that is not of format 1; -EROFS; or another
 * error of store_open(). */
DG_MUST_CHECK int store_upgrade(const char *path, bool no_locks, struct store *ret,
                                struct upgrade_result *ret_result, struct why *why);

#endif
