/* control.h: answers diskguardctl on a Unix socket (protocol: include/diskguard/control.h), from
 * memory alone. */
#ifndef DISKGUARD_DAEMON_CONTROL_H
#define DISKGUARD_DAEMON_CONTROL_H

#include "daemon/daemon.h"

/* Starts the thread after the view is mounted. NULL with why: a warning, not fatal (diskguardctl
 * then has --datastore). */
struct control *control_new(struct daemon *d, struct why *why);
void control_free(struct control *c);

#endif
