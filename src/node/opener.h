/* opener.h: who opens a file: a process, found in /proc. */
#ifndef DISKGUARD_OPENER_H
#define DISKGUARD_OPENER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* Identity of a process: thread group id and start time, so that a pid that is used again
 * differs. pid 0: unknown (it is in another pid namespace, or /proc belongs to one). An unknown
 * opener equals nobody, not even itself. */
struct opener {
    uint64_t pid;
    uint64_t start; /* clock ticks since boot, proc_pid_stat(5) field 22 */
    uint64_t uid, gid;
};

/* Fills pid and start from a caller's thread id, as they are now. */
void opener_resolve(struct opener *o, pid_t tid);
/* The thread group id of a thread; 0: unknown. FLUSH may call it, because it reads
 * /proc/TID/status and not stat. Reading stat waits for signal->exec_update_lock
 * (do_task_stat()). A process that closes its descriptors in execve(2) holds that lock while it
 * waits for the FLUSH. */
uint64_t opener_thread_group(pid_t tid);
/* Finds the process of this thread group id as it is now; uid and gid stay 0. false: there is none,
 * or it is unknown. */
bool opener_process(uint64_t pid, struct opener *ret);
bool opener_same(const struct opener *a, const struct opener *b);

/* Has the thread, which is root, no CAP_FSETID? What cannot be told has it. */
bool opener_lacks_fsetid(pid_t tid);

/* Has the thread a signal pending that it does not block or ignore? An INTERRUPT alone does not say
 * so. The kernel also sends one when io_uring has work for the thread (TIF_NOTIFY_SIGNAL), which
 * happens all the time with QEMU, and it never sends a second one for the same request. */
enum opener_signal { OPENER_NO_SIGNAL, OPENER_SIGNALLED, OPENER_UNKNOWN };
enum opener_signal opener_signal(pid_t tid);

#endif
