/* claim_priv.h: what claim.c and claim_all.c share. Nobody else includes it. */
#ifndef DISKGUARD_CLAIM_PRIV_H
#define DISKGUARD_CLAIM_PRIV_H

#include "core/claim.h"

/* "<host>.<daemon>.<counter>" */
#define CLAIM_TMP_SIZE (DG_UUID_LEN + 1 + DG_UUID_LEN + 1 + 20 + 1)

struct claim_entry {
    uint64_t ino, generation;
};
struct claim_listing {
    bool one_key;
    uint64_t ino; /* where one_key */
    struct claim_entry *entry;
    size_t n, room;
};

/* Every claim (of one key), fresh, by key and then by generation: the last of each key rules.
 * l->entry is freed by the caller in any case. */
DG_MUST_CHECK int claim_list(const struct store *s, struct claim_listing *l);

/* Reads the file of one generation. -ENOENT or -ESTALE: it was removed since the directory was
 * listed. */
DG_MUST_CHECK int claim_read_generation(const struct store *s, uint64_t ino, uint64_t generation,
                                        struct claim *ret);

/* Removes one generation's name. No error when there is none. Only for one that does not rule, or
 * whose image is gone. */
DG_MUST_CHECK int claim_remove_generation(const struct store *s, uint64_t ino, uint64_t generation);

/* Makes sure, durably, that a key without any claim gets a generation above this one. -EFBIG: not a
 * number that counting reaches. */
DG_MUST_CHECK int claim_floor_raise(const struct store *s, uint64_t generation);

#endif
