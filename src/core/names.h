/* names.h: marks/ and readers/, in which each name is a fact (dependency.h, reader.h): made
 * durably, listed fresh, removed at leisure. The text in the file is for people. Names begin with a
 * key and lie in its shard (shard.h).
 *
 * Names are never renamed, so a listing that begins after a name was made shows it. Blocks on the
 * datastore. Thread-safe: no state of its own. */
#ifndef DISKGUARD_NAMES_H
#define DISKGUARD_NAMES_H

#include "core/shard.h"

/* Durable on return; a name that stands there already is as good. 0 or -errno. */
DG_MUST_CHECK int names_make(const struct store *s, enum shard_dir dir, const char *name,
                             const char *text);

/* Calls fn for each name of a shard (key: of all shards where it is 0), as shard_list(). An array
 * of what take() makes of each name (item: size of one): true: it is in. *ret is freed by the
 * caller. 0 or -errno. */
DG_MUST_CHECK int names_list(const struct store *s, enum shard_dir dir, uint64_t key, size_t item,
                             bool (*take)(void *arg, const char *name, void *ret), void *arg,
                             void **ret, size_t *ret_n);

/* The text of a name, fresh, as io_fresh_text(). -ENOENT: there is none. */
DG_MUST_CHECK int names_text(const struct store *s, enum shard_dir dir, const char *name,
                             size_t max, char **ret_text, size_t *ret_len);

/* Not made durable. 0, also where it is gone already, or -errno. */
DG_MUST_CHECK int names_remove(const struct store *s, enum shard_dir dir, const char *name);
/* Makes the removal of this name durable. */
DG_MUST_CHECK int names_sync(const struct store *s, enum shard_dir dir, const char *name);

#endif
