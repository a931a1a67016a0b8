/* monitor.h: one thread that beats in hosts/ (and locks the record anew when its lock was lost) and
 * does nothing else, so that no image whose storage hangs makes this host look dead; and one that
 * hands out the looks at images (image_maintain_round). The first may block on the datastore;
 * nothing waits for it except shutdown. */
#ifndef DISKGUARD_MONITOR_H
#define DISKGUARD_MONITOR_H

#include "daemon/daemon.h"

/* Between two rounds: a lost claim is noticed, and a STUCK image retried, at this pace. */
#define MONITOR_PERIOD_MS 5000u

/* MONITOR_PERIOD_MS; a build with hooks (base/hook.h) may have another one, DISKGUARD_BEAT_MS in
 * the environment, so that tests of what waits for beats are quick. */
unsigned monitor_period_ms(void);

/* The number of the beat before the view is mounted, which writes boot and daemon of this start
 * into the host's record (start.c). */
#define MONITOR_FIRST_BEAT 1u

struct monitor *monitor_new(struct daemon *d);
/* a look at all images now; also after monitor_stop, for nothing */
void monitor_kick(struct monitor *k);
/* Waits for both threads, and for the looks under way. NULL is fine. */
void monitor_stop(struct monitor *k);
void monitor_free(struct monitor *k); /* after monitor_stop, and when nobody can kick any more */

#endif
