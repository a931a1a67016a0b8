/* wait.h: is it worth waiting for a holder? An open for write waits up to wait=, for a holder may
 * be just about to close: the destination of a live migration opens the image some milliseconds
 * after the source has closed it, and the release is seen a little later. Whoever starts a machine
 * on the wrong host should hear at once that it runs elsewhere. So without an explicit wait= nobody
 * waits longer than IMAGE_WAIT_GRACE_MS for a holder that is known to be alive and not letting go;
 * but a process that has had the image open read-only for that long, as the destination of a
 * migration has, waits for the whole time. */
#ifndef DISKGUARD_IMAGE_WAIT_H
#define DISKGUARD_IMAGE_WAIT_H

#include "guard/guard.h"

/* From the first attempt until a release that was begun before it is seen, with room for storage
 * that is slow. */
#define IMAGE_WAIT_GRACE_MS 500u

/* After an attempt that got -EBUSY and c, which began to wait at since_ms (CLOCK_MONOTONIC). Alive:
 * on this host its process is there (proc(5)), on another one a daemon has its record locked
 * (host_alive()); with takeover= that is not enough, for the lock of a dead host stands until its
 * lease ends. Asks the datastore at most once a call. */
bool image_wait_is_vain(struct guard *g, struct inode *i, const struct opener *who,
                        uint64_t since_ms, const struct conflict *c);

#endif
