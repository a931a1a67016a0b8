/* claim.h: who holds an image: the records in DATASTORE/.diskguard/claims/<shard>.
 *
 * The highest generation of a key rules. Each generation has a file name of its own, so no late
 * rename, unlink or retransmission of a former owner touches a successor's claim. The answer of
 * link(2) proves nothing, because replies get lost; the proof is the st_nlink of our own record.
 *
 * Numbers: no generation of a key is given out twice. Otherwise a late rename or unlink of a
 * former owner could hit the claim of a successor, perhaps of another file, since inode numbers
 * are used again. So the highest generation stays, freed, also when its image is gone: the
 * tombstone. Only claim_sweep_gone removes a tombstone, and it notes the number first. One
 * number, the floor, stands for all tombstones that were removed. Two hosts that claim the same
 * image without a tombstone must come to the same next generation, so the floor moves only while
 * no daemon lives.
 *
 * Life: claim_read -> claim_next -> claim_acquire -> claim_update* -> claim_free -> claim_clear.
 * Blocks on the datastore: never call it from a FUSE data thread. Thread-safe: no state of its own.
 */
#ifndef DISKGUARD_CLAIM_H
#define DISKGUARD_CLAIM_H

#include <stdatomic.h>

#include "core/host.h"
#include "core/record.h"
#include "core/store.h"

/* The errno of a claim that is ours no more: a successor rules, or it is free or missing. No
 * function of this module answers ESTALE, which of an image's file says that the file is gone. */
#define CLAIM_LOST EKEYREVOKED

enum claim_kind {
    CLAIM_NONE, /* no generation at all */
    CLAIM_FREE,
    CLAIM_HELD,
    CLAIM_BAD /* the highest generation does not decode: STOP, never "free" */
};
struct claim {
    enum claim_kind kind;
    uint64_t generation; /* 0 for NONE */
    int error;           /* for BAD: -EBADMSG or -EPROTONOSUPPORT */
    struct record rec;   /* for FREE and HELD */
};

/* Reads the rule for an inode number, fresh. 0 or -errno (the datastore did not answer). *ret is
 * ~40 KiB: keep it off small stacks. */
DG_MUST_CHECK int claim_read(const struct store *s, uint64_t ino, struct claim *ret);

/* The same when a generation `known` of the key is believed to exist. A listing may miss a claim
 * that is being updated, so this asks for its name before it says that a lower one rules, or
 * none. */
DG_MUST_CHECK int claim_read_known(const struct store *s, uint64_t ino, uint64_t known,
                                   struct claim *ret);

/* The generation that a new claim takes after c, which was just read. 0 or -errno; -EOVERFLOW:
 * there is none. */
DG_MUST_CHECK int claim_next(const struct store *s, const struct claim *c, uint64_t *ret);

/* Takes rec->generation with rec as its record (step CLAIMED or ARMED). The generation must be
 * the claim_next of the claim just read.
 * 0: it is ours.
 * -EBUSY: another host was faster; read again.
 * Any other -errno: it failed. *ret_left: and that could not be undone, so that a claim in our name
 * may stand there. Its row must stay, and it must be freed later: claim_free() or recovery. */
DG_MUST_CHECK int claim_acquire(const struct store *s, const struct record *rec, bool *ret_left);

/* Replaces our generation's record, after a fresh check that it is still the highest.
 * -CLAIM_LOST: it is not (or is not ours, or is free already): we are fenced. */
DG_MUST_CHECK int claim_update(const struct store *s, const struct record *rec);

/* Is our generation still the highest? 0, -CLAIM_LOST or -errno. */
DG_MUST_CHECK int claim_check(const struct store *s, const struct record *rec);

/* Reads our claim, as claim_update() does. 1: it is armed, and undoes on its own all that rec
 * undoes (record_same_undo); 0: rec knows more. -CLAIM_LOST as above. */
DG_MUST_CHECK int claim_undoes(const struct store *s, const struct record *rec);

/* Marks our generation free (rec->step is set, extents are dropped). Lower generations stay: they
 * count for nothing, and are removed when nobody waits, by claim_clear().
 * -CLAIM_LOST as above. It may be repeated after a failure, also when the tombstone was made. */
DG_MUST_CHECK int claim_free(const struct store *s, struct record *rec);
/* The same when the file has no name any more. It also works on a full datastore: the room may
 * be the removed file's own. */
DG_MUST_CHECK int claim_free_gone(const struct store *s, struct record *rec);

/* Removes the generations below one that rules, or has ruled. It does nothing where that one is
 * missing and no higher one is there: a claim that was lost (storage that was set back, a person)
 * leaves a lower one to rule, which may be another host's. Nothing rests on the removal: what stays
 * is litter for claim_sweep_lower(). */
void claim_clear(const struct store *s, uint64_t ino, uint64_t generation);

/* Removes every generation of an image that exists no more, up to this one, which is the highest,
 * and raises the floor to it. Only while no daemon of any host lives on the datastore; everybody
 * else leaves the tombstone of claim_free. -EFBIG: nobody counted to this number; it stays. */
DG_MUST_CHECK int claim_forget(const struct store *s, uint64_t ino, uint64_t generation);

/* claim_forget for each key whose claim is free and whose image the storage does not know any more.
 * For fsck, which holds the locks of all hosts. */
DG_MUST_CHECK int claim_sweep_gone(const struct store *s, unsigned *ret_gone);

/* Same host uuid and same installation. */
bool claim_is_of(const struct record *rec, const struct host *h);

/* Calls fn once per key with the ruling claim. */
DG_MUST_CHECK int claim_each(const struct store *s,
                             int (*fn)(void *arg, uint64_t ino, const struct claim *c), void *arg);

/* Removes the spare records (spare.h) of this host's earlier daemons: their room may be what a full
 * datastore needs, so it comes before all that writes. Under the host lock. */
DG_MUST_CHECK int claim_sweep_spares(const struct store *s, const struct host *h);

/* Removes what a crash left in tmp/: records of this installation's earlier daemons. For start-up
 * and fsck, under the host lock. Tmp names are "<host uuid>.<daemon uuid>.<counter>". */
DG_MUST_CHECK int claim_sweep(const struct store *s, const struct host *h, bool dry_run,
                              unsigned *ret_stale);
/* Removes the generations below the highest of each key, where that one decodes. At any time, also
 * while images are opened and closed. stop: ends it early where there are many; may be NULL. */
DG_MUST_CHECK int claim_sweep_lower(const struct store *s, bool dry_run, const atomic_bool *stop,
                                    unsigned *ret_stale);

#endif
