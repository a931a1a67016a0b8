/* manager.h: programs that manage images (option managers=), and their handles, whose claim waits
 * for the first change: see first.h. */
#ifndef DISKGUARD_GUARD_MANAGER_H
#define DISKGUARD_GUARD_MANAGER_H

#include "guard/guard.h"

/* handle.first */
enum { FIRST_DONE, FIRST_DUE, FIRST_UNDER_WAY };

bool image_is_manager(const struct guard *g, const struct opener *who);
/* An open by this process, with these flags (open(2)): is its claim to wait for the first change?
 * Not with O_TRUNC, which is one. */
bool image_manager_waits(const struct guard *g, const struct opener *who, int flags);
/* Before the handle is published; its descriptor may be one that cannot write. */
void image_manager_expect(struct handle *h);
/* Is that change still to come? No lock. */
static inline bool image_manager_expected(const struct handle *h)
{
    return atomic_load_explicit(&h->first.state, memory_order_relaxed) != 0;
}

#endif
