/* takeover.h: takes an image over from a host that seems dead, without a person: options takeover=
 * and takeover-wait=, `diskguardctl takeover`.
 *
 * core/takeover.h decides whether it is worth trying. Then core/recover.h does what fsck.diskguard
 * --takeover does: it takes the fence lock exclusively (the proof), looks at the claim again,
 * claims the next generation for this host, writes the true header back, frees the claim and lets
 * the lock go. After that the image is anybody's, and the open that waited takes it in the ordinary
 * way. */
#ifndef DISKGUARD_DAEMON_TAKEOVER_H
#define DISKGUARD_DAEMON_TAKEOVER_H

#include "guard/guard.h"

/* An attempt reads the holder's record and asks for its lock: no more often than this for one
 * waiting request. */
#define TAKEOVER_PACE_MS 1000u
/* A heartbeat that does not change for so many periods of the monitor stands still. */
#define TAKEOVER_HEARTBEATS 3u

struct takeover *takeover_new(void); /* NULL: out of memory */
void takeover_free(struct takeover *t);

/* Says, once, at start, what takeover= means on this storage where that may be unexpected. */
void takeover_announce(const struct guard *g);

/* One attempt. unproven: accept storage of which nobody has shown that it fences. Blocks on the
 * datastore: never on a thread that reads requests. 0: nobody holds the image now: open it; else
 * why says it, and: -EAGAIN: not now, ask again in TAKEOVER_PACE_MS; -EBUSY: the holder lives, or
 * is this host; -EPERM: never on this storage, or by the holder's own word; -EUCLEAN: a person is
 * needed; any other -errno: the storage. */
DG_MUST_CHECK int takeover_attempt(struct guard *g, struct inode *i, bool unproven,
                                   struct why *why);

/* The same for an image by its path below the datastore, on a thread of the pool, for control.c,
 * which must not wait. Returns a ticket, or 0 with why. */
DG_MUST_CHECK uint64_t takeover_start(struct guard *g, const char *image, bool unproven,
                                      struct why *why);
/* Has it ended? true with the result of takeover_attempt() and its reason; a ticket that is not
 * known (any more) has ended with -ENOENT. */
bool takeover_ended(struct guard *g, uint64_t ticket, int *ret_result, struct why *why);

#endif
