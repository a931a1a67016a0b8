/* umount.h: the parts of umount.fuse.diskguard(8), which umount(8) starts for a view: umount_fuse.c
 * is the command line and umount(8) itself, umount_wait.c the daemon of that view and its end,
 * umount_left.c what is held on the datastore afterwards. */
#ifndef DISKGUARD_TOOLS_UMOUNT_H
#define DISKGUARD_TOOLS_UMOUNT_H

#include <signal.h>

#include "ctl/ctl.h"

/* without an image restored; as long as systemd gives a mount unit to stop (DefaultTimeoutStopSec=)
 */
#define UMOUNT_WAIT_S 90u

struct umount_options {
    bool lazy, force, remount, no_mtab, verbose;
    const char *point, *ns;
    uint64_t bound_ms;
};

/* The view that is unmounted, and who serves it. */
struct unmounting {
    const struct mount *mount;
    int found; /* of daemon_peer() */
    struct why why;
    pid_t pid;                         /* 0: of another pid namespace, or not found */
    int pidfd;                         /* -1: none */
    bool fresh;                        /* status is an answer to the last question */
    bool silent;                       /* the last question got no answer */
    struct json_object *status, *list; /* the last answers, or NULL */
    char *dir;                         /* the datastore */
    dg_uuid host, daemon;              /* "": not known */
};

extern volatile sig_atomic_t umount_signal; /* a signal that ends the waiting */

/* ---- umount_wait.c ---- */
/* Finds the daemon of the mount, before it is unmounted. */
void ending_open(struct unmounting *e, const struct mount *m);
void ending_close(struct unmounting *e);
/* After umount(8), which ended with code: waits, says what it waits for, and how it came out. The
 * exit code. */
int ending_wait(struct unmounting *e, const struct umount_options *o, int code);

/* ---- umount_left.c ---- */
/* What is still held on the datastore by the host that this view was. 0: nothing; 1: something, and
 * it is named; -errno: it cannot be read, and why is printed. by_machine: it is not known which
 * host that was: all that hosts hold which are not alive and have this machine's boot id. quiet:
 * prints nothing. */
int left_report(const struct unmounting *e, bool by_machine, bool quiet);
/* "mount it again, or: fsck.diskguard ..." */
void left_way_out(const struct unmounting *e);

#endif
