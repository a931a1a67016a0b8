/* park.h: requests that wait (for another holder, for a lock) without holding a thread.
 *
 * An attempt is a function that either answers the request and returns true, or returns false to be
 * tried again later. It runs on a pool thread. Attempts are repeated after 10, 20, 40, 80 and then
 * every 100 ms, and at once after park_kick(), until the time is up (PARK_LAST) or the caller was
 * interrupted by a signal (PARK_INTERRUPTED): both must answer and return true. The wait is
 * measured with CLOCK_MONOTONIC from park_start(). */
#ifndef DISKGUARD_PARK_H
#define DISKGUARD_PARK_H

#include <stdbool.h>
#include <stdint.h>

enum park_turn { PARK_FIRST, PARK_AGAIN, PARK_LAST, PARK_INTERRUPTED };
typedef bool (*park_fn)(void *op, enum park_turn turn);

#define PARK_FOREVER UINT64_MAX

struct pool;
struct park;

/* The request that waits, as park sees it: whether its caller gave up. */
struct park_caller {
    /* While it waits park_interrupt(entry) is to be called, from any thread, at once if that was so
     * already, when the caller may have got a signal. entry NULL: not any more; on return no such
     * call is under way. */
    void (*watch)(void *req, void *entry);
    /* Has it really? Asked on a pool thread. unsure: what to say where that cannot be known. */
    bool (*signalled)(void *req, bool unsure);
};
void park_interrupt(void *entry);

struct park *park_new(struct pool *pool, const struct park_caller *caller);
/* First attempt on this thread; parks when it returns false. wait_ms 0: the first attempt is
 * followed at once by PARK_LAST. */
void park_start(struct park *p, void *req, park_fn fn, void *op, uint64_t wait_ms);
/* Something changed: try all parked requests now. Cheap; any thread; no lock may be held that an
 * attempt takes. */
void park_kick(struct park *p);
/* Shutdown: every parked request gets PARK_LAST, and from now on a first attempt is followed at
 * once by PARK_LAST. The answers are given by the pool: pool_drain() waits for them. */
void park_stop(struct park *p);
/* After pool_drain(); no request may come any more. NULL is fine. */
void park_free(struct park *p);

#endif
