/* cred.h: acts as the caller of a request for one system call, on this thread only (raw syscalls:
 * glibc's would change every thread).
 *
 * Between cred_enter and cred_leave the thread has the caller's fsuid, fsgid, supplementary groups
 * and umask, so that a new file belongs to the caller, a set-gid directory hands on its group, and
 * the storage checks with the caller's identity. */
#ifndef DISKGUARD_CRED_H
#define DISKGUARD_CRED_H

#include <fuse_lowlevel.h>

#include "base/base.h"
#include "node/opener.h"

struct cred {
    bool changed, masked;
    mode_t umask;
};
/* 0 or -errno (then nothing is changed). A daemon that is not root stays itself. The thread has a
 * umask of its own from then on. */
DG_MUST_CHECK int cred_enter(fuse_req_t req, struct cred *ret);
/* The same for what makes no file: the umask stays. */
DG_MUST_CHECK int cred_enter_unmasked(fuse_req_t req, struct cred *ret);
void cred_leave(struct cred *c);

/* Is it the user that the daemon runs as? */
bool cred_is_daemon(uint64_t uid);
/* Is it one of the caller's groups? */
bool cred_in_group(fuse_req_t req, gid_t gid);

/* Who opens: thread group id and start time from /proc, resolved now. */
void cred_opener(fuse_req_t req, struct opener *ret);

/* opener_thread_group() of the caller. */
uint64_t cred_thread_group(fuse_req_t req);

#endif
