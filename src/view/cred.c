#include "view/cred.h"

#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/hook.h"
#include "base/log.h"

/* What the kernel takes at most: NGROUPS_MAX, <linux/limits.h>. Few callers have more than the
 * first array holds. */
#define GROUPS_FEW 64
#define GROUPS_MAX 65536

/* Who the daemon is, to go back to. */
static struct {
    bool can_change; /* root, with the capabilities of root */
    uid_t uid;
    gid_t gid;
    int n_groups;
    gid_t *groups;
} self;
static pthread_once_t self_once = PTHREAD_ONCE_INIT;

static bool set_groups(int n, const gid_t *groups)
{
    return syscall(SYS_setgroups, n, groups) == 0;
}

static void self_learn(void)
{
    self.uid = geteuid();
    self.gid = getegid();
    self.n_groups = getgroups(0, NULL);
    if (self.n_groups > 0) {
        self.groups = calloc((size_t)self.n_groups, sizeof(gid_t));
        self.n_groups = self.groups ? getgroups(self.n_groups, self.groups) : -1;
    }
    if (self.n_groups < 0) {
        log_msg(LOG_CRIT, "cannot read the groups of this process: %m");
        abort();
    }
    self.can_change = self.uid == 0 && set_groups(self.n_groups, self.groups);
}

/* setfsuid(2) says nothing of success: ask again. */
static bool set_fsuid(uid_t uid)
{
    syscall(SYS_setfsuid, uid);
    return (uid_t)syscall(SYS_setfsuid, -1) == uid;
}

static bool set_fsgid(gid_t gid)
{
    syscall(SYS_setfsgid, gid);
    return (gid_t)syscall(SYS_setfsgid, -1) == gid;
}

/* A thread that went on as somebody else would hand that identity to other people's requests. */
static void back_to_self(void)
{
    if (!set_fsuid(self.uid) || !set_fsgid(self.gid) || !set_groups(self.n_groups, self.groups)) {
        log_msg(LOG_CRIT, "a thread cannot get its own identity back: %m");
        abort();
    }
}

/* The caller's supplementary groups; none where they cannot be known (another pid namespace, a
 * kernel thread). */
static int set_caller_groups(fuse_req_t req)
{
    gid_t few[GROUPS_FEW];
    int n = fuse_req_getgroups(req, GROUPS_FEW, few);
    if (n <= GROUPS_FEW)
        return set_groups(n < 0 ? 0 : n, few) ? 0 : -errno;

    int max = DG_MIN(n + 16, GROUPS_MAX);
    _cleanup_free_ gid_t *many = calloc((size_t)max, sizeof(gid_t));
    if (!many)
        return -ENOMEM;
    n = fuse_req_getgroups(req, max, many);
    return set_groups(n < 0 ? 0 : DG_MIN(n, max), many) ? 0 : -errno;
}

bool cred_is_daemon(uint64_t uid)
{
    pthread_once(&self_once, self_learn);
    return uid == self.uid;
}

bool cred_in_group(fuse_req_t req, gid_t gid)
{
    gid_t few[GROUPS_FEW];
    _cleanup_free_ gid_t *many = NULL;
    const gid_t *all = few;
    if (fuse_req_ctx(req)->gid == gid)
        return true;
    int n = fuse_req_getgroups(req, GROUPS_FEW, few);
    if (n > GROUPS_FEW) {
        int max = DG_MIN(n, GROUPS_MAX);
        all = many = calloc((size_t)max, sizeof(gid_t));
        n = many ? DG_MIN(fuse_req_getgroups(req, max, many), max) : 0;
    }
    for (int k = 0; k < n; k++)
        if (all[k] == gid)
            return true;
    return false;
}

int cred_enter_unmasked(fuse_req_t req, struct cred *ret)
{
    pthread_once(&self_once, self_learn);
    const struct fuse_ctx *ctx = fuse_req_ctx(req);
    struct cred c = {.changed = self.can_change && (ctx->uid != self.uid || ctx->gid != self.gid)};

    if (c.changed) {
        /* Groups first: they need a capability that setfsuid takes away. Root needs none of them.
         */
        int r = ctx->uid == 0 ? 0 : set_caller_groups(req);
        if (r == 0 && !set_fsgid(ctx->gid))
            r = -EPERM;
        if (r == 0 && !set_fsuid(ctx->uid))
            r = -EPERM;
        if (r < 0) {
            back_to_self();
            return r;
        }
    }
    *ret = c;
    return 0;
}

/* The umask is the process's until a thread has a file system context of its own. 0 or -errno: then
 * a file of this caller, or of another one at the same time, would be made with the wrong mode. */
static int own_umask(void)
{
    static _Thread_local bool own;
    int r = own ? 0 : HOOK_FAIL("cred.umask");
    if (r == 0 && !own)
        r = unshare(CLONE_FS) < 0 ? -errno : 0;
    own = r == 0;
    return r;
}

int cred_enter(fuse_req_t req, struct cred *ret)
{
    int r = own_umask();
    if (r == 0)
        r = cred_enter_unmasked(req, ret);
    if (r == 0) {
        ret->umask = umask(fuse_req_ctx(req)->umask);
        ret->masked = true;
    }
    return r;
}

void cred_leave(struct cred *c)
{
    int saved = errno;
    if (c->masked)
        umask(c->umask);
    if (c->changed)
        back_to_self();
    errno = saved;
}

void cred_opener(fuse_req_t req, struct opener *ret)
{
    const struct fuse_ctx *ctx = fuse_req_ctx(req);
    *ret = (struct opener){.uid = ctx->uid, .gid = ctx->gid};
    opener_resolve(ret, ctx->pid);
}

uint64_t cred_thread_group(fuse_req_t req)
{
    return opener_thread_group(fuse_req_ctx(req)->pid);
}
