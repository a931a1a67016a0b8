/* shard.h: the names of a key in claims/, marks/ or readers/. All of them are in one directory (its
 * shard, layout.h), so a listing of it costs the same however many images there are.
 *
 * Shards are made when the datastore is, and stay. So a descriptor of one is kept for as long as
 * the store is open, and no name is looked up for it again. A shard that is not there is -EIO:
 * never a reason to say that there is no claim. Blocks on the datastore. Thread-safe. */
#ifndef DISKGUARD_SHARD_H
#define DISKGUARD_SHARD_H

#include "core/shards.h"
#include "core/store.h"

/* A descriptor of the shard of this key. It belongs to the store. Or -errno. */
DG_MUST_CHECK int shard_fd(const struct store *s, enum shard_dir dir, uint64_t key);

/* Calls fn for each name of the shard of this key, fresh, in no order. A non-zero return of fn
 * stops and is returned. A name whose key belongs to another shard is left out: nobody looks for it
 * here. */
DG_MUST_CHECK int shard_list(const struct store *s, enum shard_dir dir, uint64_t key,
                             int (*fn)(void *arg, const char *name), void *arg);

/* The same for all shards, one after the other. */
DG_MUST_CHECK int shard_list_all(const struct store *s, enum shard_dir dir,
                                 int (*fn)(void *arg, const char *name), void *arg);

#endif
