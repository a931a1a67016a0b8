/* shard.h: the directories below claims/, marks/ and readers/ (layout.h). All names of a key are in
 * one of them, so a listing of it costs the same however many images there are.
 *
 * Shards are made when the datastore is, and stay. So a descriptor of one is kept for as long as
 * the store is open, and no name is looked up for it again. A shard that is not there is -EUCLEAN:
 * never a reason to say that there is no claim. Blocks on the datastore. Thread-safe. */
#ifndef DISKGUARD_SHARD_H
#define DISKGUARD_SHARD_H

#include "core/store.h"
#include "diskguard/layout.h"

enum shard_dir { SHARD_CLAIMS, SHARD_MARKS, SHARD_READERS, SHARD_DIRS };
const char *shard_dir_name(enum shard_dir dir); /* below .diskguard */
int shard_dir_fd(const struct store *s, enum shard_dir dir);

/* A descriptor of the shard of this key. It belongs to the store. Or -errno. */
DG_MUST_CHECK int shard_fd(const struct store *s, enum shard_dir dir, uint64_t key);

/* Calls fn for each name of one shard, fresh, in no order. A non-zero return of fn stops and is
 * returned. A name whose key belongs to another shard is left out: nobody looks for it here. */
DG_MUST_CHECK int shard_list(const struct store *s, enum shard_dir dir, uint64_t key,
                             int (*fn)(void *arg, const char *name), void *arg);

/* The same for all shards, one after the other. */
DG_MUST_CHECK int shard_list_all(const struct store *s, enum shard_dir dir,
                                 int (*fn)(void *arg, const char *name), void *arg);

/* The key that a name begins with: 16 lower-case hex digits. false: it does not begin with one. */
#define SHARD_KEY_DIGITS 16
bool shard_key(const char *name, uint64_t *ret);

/* ---- for those who make and check a datastore ---- */

/* Makes all shards in that directory, durably. Those that are there stay. 0 or -errno. */
DG_MUST_CHECK int shard_make_all(int dir_fd);

/* What a fresh listing of that directory shows. */
struct shard_survey {
    unsigned shards;  /* how many are there */
    int missing;      /* the first that is not, or -1 */
    char outside[64]; /* a name that begins with a key, or "" */
    bool any;         /* anything but shards */
};
DG_MUST_CHECK int shard_survey(int dir_fd, struct shard_survey *ret);

/* Opens a shard by its number, past the descriptors that are kept. */
DG_MUST_CHECK int shard_open(int dir_fd, unsigned shard);

DG_MUST_CHECK int shard_cache_new(struct store *s);
void shard_cache_free(struct store *s);

#endif
