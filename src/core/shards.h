/* shards.h: the directories below claims/, marks/ and readers/ (layout.h), for those who make,
 * check and open them. Who has a store uses shard.h. */
#ifndef DISKGUARD_SHARDS_H
#define DISKGUARD_SHARDS_H

#include <stdatomic.h>

#include "base/base.h"
#include "diskguard/layout.h"

enum shard_dir { SHARD_CLAIMS, SHARD_MARKS, SHARD_READERS, SHARD_DIRS };
const char *shard_dir_name(enum shard_dir dir); /* below .diskguard */
unsigned shard_count(enum shard_dir dir);       /* DG_SHARDS or DG_SHARDS_FEW */
unsigned shard_of(enum shard_dir dir, uint64_t key);

/* The key that a name begins with: 16 lower-case hex digits. false: it does not begin with one. */
#define SHARD_KEY_DIGITS 16
bool shard_key(const char *name, uint64_t *ret);

/* Opens a shard of that directory by its number. -EUCLEAN: it is not there; or -errno. */
DG_MUST_CHECK int shard_open(int dir_fd, unsigned shard);

/* Makes all shards in that directory, durably. Those that are there stay. 0 or -errno. */
DG_MUST_CHECK int shard_make_all(int dir_fd, enum shard_dir dir);

/* What a fresh listing of that directory shows. */
struct shard_survey {
    unsigned shards;  /* how many are there */
    int missing;      /* the first that is not, or -1 */
    char outside[64]; /* a name that begins with a key, or "" */
    bool any;         /* anything but shards */
};
DG_MUST_CHECK int shard_survey(int dir_fd, enum shard_dir dir, struct shard_survey *ret);

/* The descriptors of a store. */
struct shard_cache {
    atomic_int fd[SHARD_DIRS][DG_SHARDS]; /* -1: not opened yet */
};
struct shard_cache *shard_cache_new(void); /* NULL: out of memory */
void shard_cache_free(struct shard_cache *c);

#endif
