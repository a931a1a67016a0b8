/* park.h: requests that wait (for another holder, for a lock) without holding a thread.
 *
 * An attempt is a function that runs on a pool thread. It answers the request and returns true,
 * or it returns false and is tried again: after 10, 20, 40 and 80 ms, then every 100 ms, and at
 * once after park_kick(). The last attempt is PARK_LAST, when the time is up, or
 * PARK_INTERRUPTED, when a signal interrupted the caller. These two must answer and return true.
 * The time counts on CLOCK_MONOTONIC, from park_start(). */
#ifndef DISKGUARD_PARK_H
#define DISKGUARD_PARK_H

#include <stdbool.h>
#include <stdint.h>

enum park_turn { PARK_FIRST, PARK_AGAIN, PARK_LAST, PARK_INTERRUPTED };
typedef bool (*park_fn)(void *op, enum park_turn turn);

#define PARK_FOREVER UINT64_MAX

struct pool;
struct park;

/* What park needs to know of a request: whether its caller gave up. */
struct park_caller {
    /* Asks for park_interrupt(entry), from any thread, when the caller may have got a signal, and
     * at once if it has. entry NULL: ends this; when it returns, no such call is in progress. */
    void (*watch)(void *req, void *entry);
    /* Did the caller get a signal? Asked on a pool thread. unsure: the answer where it cannot be
     * told. */
    bool (*signalled)(void *req, bool unsure);
};
void park_interrupt(void *entry);

struct park *park_new(struct pool *pool, const struct park_caller *caller);
/* Makes the first attempt on this thread, and parks the request when that returns false. wait_ms
 * 0: PARK_LAST follows at once. */
void park_start(struct park *p, void *req, park_fn fn, void *op, uint64_t wait_ms);
/* Tries all parked requests now, because something changed. Cheap; from any thread. The caller may
 * hold no lock that an attempt takes. */
void park_kick(struct park *p);
/* Shutdown: every parked request gets PARK_LAST, and after each new first attempt PARK_LAST
 * follows at once. The pool gives the answers; pool_drain() waits for them. */
void park_stop(struct park *p);
/* After pool_drain(); no request may come any more. NULL is fine. */
void park_free(struct park *p);

#endif
