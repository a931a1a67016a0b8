/* keeper.h: one thread that beats in hosts/ (and locks the record anew when its lock was lost) and does nothing else, so that no image whose storage hangs
 * makes this host look dead; and one that hands out the looks at images (image_tend_round). The first may block on the datastore; nothing waits for
 * it except shutdown. */
#ifndef DISKGUARD_KEEPER_H
#define DISKGUARD_KEEPER_H

#include "daemon/daemon.h"

/* Between two rounds: a lost claim is noticed, and a STUCK image retried, at this pace. */
#define KEEPER_PERIOD_MS 5000u

/* KEEPER_PERIOD_MS; a build with hooks (core/hook.h) may have another one, DISKGUARD_BEAT_MS in the environment, so that tests of what waits for
 * beats are quick. */
unsigned keeper_period_ms(void);

/* The number of the beat before the view is mounted, which writes boot and daemon of this start into the host's record (start.c). */
#define KEEPER_FIRST_BEAT 1u

struct keeper *keeper_new(struct daemon *d);
void keeper_kick(struct keeper *k); /* a look at all images now; also after keeper_stop, for nothing */
/* Waits for both threads, and for the looks under way. NULL is fine. */
void keeper_stop(struct keeper *k);
void keeper_free(struct keeper *k); /* after keeper_stop, and when nobody can kick any more */

#endif
