/* daemon.h: the one structure that ties a running diskguard together. Built by main.c; for
 * src/daemon alone. */
#ifndef DISKGUARD_DAEMON_H
#define DISKGUARD_DAEMON_H

#include "daemon/options.h"
#include "guard/guard.h"
#include "view/view.h"

struct control;
struct monitor;

struct daemon {
    struct options opt;
    struct guard guard;
    struct view view;
    int host_lock_fd;
    struct monitor *_Atomic monitor; /* started last, after requests are served already */
    struct control *control;
};

#endif
