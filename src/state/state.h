/* state.h: what of a daemon outlives it: a memfd with tables and slots, for the next worker.
 *
 * A worker may die between any two instructions. So each change ends with one store of 8 bytes that
 * makes it count: fields, then sum and choice of the copy in one word (struct state_entry). What is
 * found later is what stood there before the change, or after it; never half of it. An entry with
 * two copies keeps the old one until then; one with a single copy is free meanwhile (names, which
 * can be lost). A counter beside each entry changes on its own, by one store.
 *
 * A dying worker may also have scribbled over the state. Each sum depends on the table and the
 * index too; an entry that is not right is -EBADMSG, never another's or a guess, and then the whole
 * state counts for nothing: state_check(). Pages that nobody can touch lie between the tables.
 *
 * The state has no lock: whoever changes an entry holds the lock of what it stands for. It is no
 * source of anything while the worker lives; only the next one reads. Memory is used as far as
 * indexes were used, not as far as the tables could grow. */
#ifndef DISKGUARD_STATE_H
#define DISKGUARD_STATE_H

#include "base/base.h"
#include "state/layout.h"

struct state;

/* How much it can hold; 0: as much as the default. A table that is full is no reason to stop: see
 * state_put(). */
struct state_size {
    uint64_t count[STATE_TABLES]; /* STATE_HEAD and STATE_NAMES are not asked for */
    uint64_t slots[STATE_CLASSES];
};

/* A new one, in a memfd that cannot change its size (F_ADD_SEALS) and is closed on exec. 0 or
 * -errno. */
DG_MUST_CHECK int state_new(const struct state_size *size, struct state **ret, struct why *why);
/* The state in this descriptor, which stays the caller's and must stay open; nothing in it is
 * changed. 0; -EPROTONOSUPPORT: another layout; -EBADMSG: that is none, or its preamble is wrong;
 * or -errno. */
DG_MUST_CHECK int state_attach(int fd, struct state **ret, struct why *why);
/* Unmaps it; closes the descriptor of a new one. NULL is fine. */
void state_free(struct state *s);
int state_fd(const struct state *s);
uint64_t state_count(const struct state *s, enum state_table table);

/* Makes the entry used, with this payload and count 0; of a used one: replaces the payload and
 * leaves the count. 0; -ENOSPC: the table has no such index. The caller goes on: what is not in the
 * state does not survive the worker, and that must be decided there (an open is refused with
 * ENFILE).
 */
DG_MUST_CHECK int state_put(struct state *s, enum state_table table, uint64_t index,
                            const void *payload);
void state_drop(struct state *s, enum state_table table, uint64_t index);
/* The count of a used entry, below 2^40. */
void state_set_count(struct state *s, enum state_table table, uint64_t index, uint64_t count);

/* 0: the entry is used, and right. -ENOENT: free, or no such index. -EBADMSG: wrong. ret and
 * ret_count may be NULL, and are only set when it is right. */
DG_MUST_CHECK int state_get(const struct state *s, enum state_table table, uint64_t index,
                            void *ret, uint64_t *ret_count);
/* Is everything right? 0; -EBADMSG: why says what is not. */
DG_MUST_CHECK int state_check(const struct state *s, struct why *why);
/* Calls fn for each used entry, up to the highest index that was ever used. A wrong one ends it
 * with -EBADMSG; so does a return of fn other than 0, with that. */
DG_MUST_CHECK int
state_each(const struct state *s, enum state_table table,
           int (*fn)(void *arg, uint64_t index, const void *payload, uint64_t count), void *arg);

/* For slot.c: its heads and payloads. */
struct state_slot *state_slot(const struct state *s, uint64_t index);
char *state_payload(const struct state *s, enum state_size_class class, uint64_t index);
const struct state_preamble *state_preamble(const struct state *s);

#endif
