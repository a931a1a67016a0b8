/* warden.h: the process that mount(8) or systemd knows, and its child, the worker, which is the
 * daemon.
 *
 * The warden has one thread and does nothing but wait, forward signals, and start the next worker.
 * It opens nothing and asks no storage, so that nothing can hang or crash it. It shares its table
 * of descriptors with the worker (CLONE_FILES), and no memory: all that the worker has open, with
 * its locks, stays open under its number when the worker dies. And it is the parent: waitpid(2)
 * returns only when every thread of the worker is gone, so that a late write of one cannot meet the
 * next worker's.
 *
 * Which pid is whose:
 * - The warden's is the daemon's for everybody: MainPID of systemd, the pid that mount(8) leaves,
 * the one that control tells. SIGTERM, SIGINT and SIGHUP to it reach the worker. Its exit code is
 * the worker's; a worker that a signal ended, with no successor, makes it end by the same signal.
 * - The worker sends sd_notify(3): a unit needs NotifyAccess=all.
 * - SIGKILL of the warden kills the worker too, at once, as SIGKILL of a daemon does today, and the
 *   next start recovers. The worker could go on, but nobody would wait for it, start the next one
 * or stop it; and an orderly end would hang where a person uses SIGKILL, on storage that hangs. The
 *   design is made for a crash at any moment.
 * - SIGKILL of the worker is a crash. SIGSTOP of the worker stops the view, of the warden nothing
 * but the restart.
 *
 * The OOM killer does not take the warden (oom_score_adj -1000, where that is permitted); the
 * worker keeps the score that was set for the daemon. */
#ifndef DISKGUARD_WARDEN_H
#define DISKGUARD_WARDEN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct warden_job {
    void *arg;
    /* The worker, in its process, on a thread of its own that glibc knows: after clone(2) the first
     * thread believes that it has its parent's thread id, which locks compare. With the signal mask
     * of the caller of warden_run(). Returns the exit code. n: how many workers there were before.
     */
    int (*work)(void *arg, unsigned n);
    /* A worker was ended by a signal. true: start another one, after a pause (pace.h). In the
     * warden: may only log. NULL: never, as long as nobody can take over what it left. */
    bool (*again)(void *arg, int status, unsigned n);
};

/* Runs until the last worker has ended, and returns the exit code; or ends by the worker's signal.
 * The process must have one thread. -errno: no worker could be started. */
int warden_run(const struct warden_job *job);

#endif
