/* monitor.h: two threads. One writes the heartbeat (and locks the record of this host anew when its
 * lock was lost) and does nothing else, so that no image whose storage hangs makes this host look
 * dead. One starts maintain for all images (image_maintain_round). The first may block on the
 * datastore; nothing waits for it except shutdown. */
#ifndef DISKGUARD_MONITOR_H
#define DISKGUARD_MONITOR_H

#include "daemon/daemon.h"

/* Between two rounds: a lost claim is noticed, and a STUCK image retried, at this pace. */
#define MONITOR_PERIOD_MS 5000u

/* MONITOR_PERIOD_MS; a build with hooks (base/hook.h) may have another one, DISKGUARD_BEAT_MS in
 * the environment, so that tests of what waits for heartbeats are quick. */
unsigned monitor_period_ms(void);

/* The number of the heartbeat before the view is mounted, which writes boot and daemon of this
 * start into the host's record (start.c). */
#define MONITOR_FIRST_HEARTBEAT 1u

struct monitor *monitor_new(struct daemon *d);
/* Starts a round of maintain now. After monitor_stop() it does nothing. */
void monitor_kick(struct monitor *k);
/* Waits for both threads, and for the round under way. NULL is fine. */
void monitor_stop(struct monitor *k);
void monitor_free(struct monitor *k); /* after monitor_stop, and when nobody can kick any more */

#endif
