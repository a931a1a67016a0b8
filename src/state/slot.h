/* slot.h: requests of the kernel that are under way, in the state.
 *
 * A request is read into a slot, and stays there until it is answered. So the next worker finds
 * what the dead one had read, and repeats it; the kernel would send it again only from Linux 6.9
 * on. A small answer is saved before it is sent: then the next worker sends that, and does not
 * repeat what cannot be done twice. Numbers that such an operation needs when it is repeated all
 * the same (the offset of an append, the handle of an open) are noted before it is carried out.
 *
 * A slot has one owner at a time, who calls these functions: no lock. Indexes: first all small
 * slots, then all big ones. Only big ones may be read into, and only after slots_keep_resident():
 * the kernel copies a request to memory that is there; where it had to fetch a page for a process
 * that is being killed, it would end the request with EIO instead (fuse_dev_do_read()). */
#ifndef DISKGUARD_STATE_SLOT_H
#define DISKGUARD_STATE_SLOT_H

#include <sys/uio.h>

#include "state/state.h"

enum slot_state {
    SLOT_FREE,
    SLOT_READING, /* offered to the kernel, which has copied nothing */
    SLOT_BUSY     /* has a request; also where the worker died between the copy and slot_taken() */
};

uint64_t slot_first(const struct state *s, enum state_size_class class);
uint64_t slot_end(const struct state *s, enum state_size_class class);
/* Makes and keeps the memory of all big slots resident. 0; -ENOMEM, -EPERM: RLIMIT_MEMLOCK, why
 * says the way out; or -errno. In each worker, for locks do not outlive it. */
DG_MUST_CHECK int slots_keep_resident(struct state *s, struct why *why);

/* Where its request begins, and how long one may be. */
char *slot_request(const struct state *s, uint64_t slot);
size_t slot_room(const struct state *s, uint64_t slot);

/* free -> reading. Forgets answer and note of the request before. */
void slot_reading(struct state *s, uint64_t slot);
/* reading -> busy: the kernel has copied so much. */
void slot_taken(struct state *s, uint64_t slot, size_t size);
/* Answered, or it needs no answer. */
void slot_done(struct state *s, uint64_t slot);
/* Copies a request to a free slot that has room, and frees the first one. A worker that dies in
 * between leaves both busy with the same request: its `unique` tells. */
void slot_move(struct state *s, uint64_t from, uint64_t to);

/* It is repeated once more. Returns how often it was. */
unsigned slot_attempt(struct state *s, uint64_t slot);
/* Its caller got a signal: the kernel says so once, to a worker that may be gone soon. */
void slot_interrupted(struct state *s, uint64_t slot);
/* 0; -EMSGSIZE: it is not small, and not saved. */
DG_MUST_CHECK int slot_save_reply(struct state *s, uint64_t slot, const struct iovec *iov, int n);
void slot_note(struct state *s, uint64_t slot, const uint64_t note[STATE_NOTES]);

/* ---- for the next worker ---- */

struct slot_info {
    enum slot_state state;
    size_t size;
    unsigned attempts;
    bool interrupted;
};
/* 0 or -EBADMSG. */
DG_MUST_CHECK int slot_get(const struct state *s, uint64_t slot, struct slot_info *ret);
/* The saved answer, STATE_REPLY_MAX bytes at most. 0; -ENOENT: there is none; -EBADMSG. */
DG_MUST_CHECK int slot_get_reply(const struct state *s, uint64_t slot, void *ret, size_t *ret_len);
DG_MUST_CHECK int slot_get_note(const struct state *s, uint64_t slot, uint64_t ret[STATE_NOTES]);

#endif
