/* cred.h: acts as the caller of a request for one system call, on this thread only (raw syscalls: glibc's would change every thread).
 *
 * Between cred_enter and cred_leave the thread has the caller's fsuid, fsgid, supplementary groups and umask, so that a new file belongs to
 * the caller, a set-gid directory hands on its group, and the storage checks with the caller's identity. Needs unshare(CLONE_FS) on the thread. */
#ifndef DISKGUARD_CRED_H
#define DISKGUARD_CRED_H

#include "node/inode.h"

struct cred {
    bool changed;
    mode_t umask;
};
/* 0 or -errno (then nothing is changed). A daemon that is not root stays itself. */
DG_MUST_CHECK int cred_enter(fuse_req_t req, struct cred *ret);
void cred_leave(struct cred *c);

/* Who opens: thread group id and start time from /proc, resolved now. */
void cred_opener(fuse_req_t req, struct opener *ret);

/* Is there a signal for the caller, one that it does not block or ignore? An INTERRUPT alone does not say so: the kernel sends one also when a
 * program's io_uring has work for the thread (TIF_NOTIFY_SIGNAL), which QEMU's has all the time, and never a second one for the
 * same request. CRED_UNKNOWN: the caller cannot be looked at (another pid namespace, a /proc that is not of ours). */
enum cred_signal { CRED_NO_SIGNAL, CRED_SIGNAL, CRED_UNKNOWN };
enum cred_signal cred_signal(fuse_req_t req);
/* The caller's thread group id; 0: cannot be resolved. For FLUSH, too, in which cred_opener() would hang: a process that closes descriptors in execve(2) holds what reading its
 * /proc/PID/stat waits for (signal->exec_update_lock, do_task_stat()). */
uint64_t cred_thread_group(fuse_req_t req);
/* The process of this thread group id as it is now. false: there is none, or it cannot be looked at. uid and gid stay 0. */
bool cred_process(uint64_t pid, struct opener *ret);
bool cred_same_process(const struct opener *a, const struct opener *b);

#endif
