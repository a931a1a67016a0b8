#include "view/cred.h"

#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/log.h"

/* What the kernel takes at most: NGROUPS_MAX, <linux/limits.h>. Few callers have more than the first array
 * holds. */
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

/* The caller's supplementary groups; none where they cannot be known (another pid namespace, a kernel
 * thread). */
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

int cred_enter(fuse_req_t req, struct cred *ret)
{
    pthread_once(&self_once, self_learn);
    const struct fuse_ctx *ctx = fuse_req_ctx(req);
    struct cred c = {.changed = self.can_change && (ctx->uid != self.uid || ctx->gid != self.gid)};

    if (c.changed) {
        /* Groups first: they need a capability that setfsuid takes away. Root needs none of them. */
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
    c.umask = umask(ctx->umask);
    *ret = c;
    return 0;
}

void cred_leave(struct cred *c)
{
    int saved = errno;
    umask(c->umask);
    if (c->changed)
        back_to_self();
    errno = saved;
}

/* Numbers of processes are those of the pid namespace of this mount; a /proc of another namespace would show other processes under them. */
static pthread_once_t proc_once = PTHREAD_ONCE_INIT;
static bool proc_is_ours;

static void proc_learn(void)
{
    char me[32];
    ssize_t n = readlink("/proc/self", me, sizeof(me) - 1);
    me[n > 0 ? n : 0] = '\0';
    proc_is_ours = strtoull(me, NULL, 10) == (unsigned long long)getpid();
    if (!proc_is_ours)
        log_msg(LOG_WARNING, "/proc is not of this daemon's pid namespace: who opens an image is not known, "
                             "so that no process "
                             "may open a second time what it holds (writers=host lifts that)");
}

/* Reads a file of /proc as one NUL-terminated text. */
static bool read_proc(const char *path, char *ret, size_t size)
{
    pthread_once(&proc_once, proc_learn);
    _cleanup_close_ int fd = proc_is_ours ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return false;
    ssize_t n = read(fd, ret, size - 1);
    if (n <= 0)
        return false;
    ret[n] = '\0';
    return true;
}

/* proc(5): "Tgid:" in status. */
static uint64_t thread_group(pid_t tid)
{
    char path[64], text[4096];
    snprintf(path, sizeof(path), "/proc/%d/status", (int)tid);
    if (!read_proc(path, text, sizeof(text)))
        return 0;
    const char *s = strstr(text, "\nTgid:");
    return s ? strtoull(s + strlen("\nTgid:"), NULL, 10) : 0;
}

/* proc(5): field 22 of stat, counted after the name's closing parenthesis, which is the end of field 2. */
static uint64_t start_time(uint64_t pid)
{
    char path[64], text[4096];
    snprintf(path, sizeof(path), "/proc/%llu/stat", (unsigned long long)pid);
    if (!read_proc(path, text, sizeof(text)))
        return 0;
    const char *s = strrchr(text, ')');
    for (int field = 2; s && field < 22; field++)
        s = strchr(s + 1, ' ');
    return s ? strtoull(s + 1, NULL, 10) : 0;
}

void cred_opener(fuse_req_t req, struct opener *ret)
{
    const struct fuse_ctx *ctx = fuse_req_ctx(req);
    *ret = (struct opener){.uid = ctx->uid, .gid = ctx->gid};
    if (ctx->pid <= 0)
        return;
    uint64_t pid = thread_group(ctx->pid);
    uint64_t start = pid > 0 ? start_time(pid) : 0;
    if (start > 0) {
        ret->pid = pid;
        ret->start = start;
    }
}

uint64_t cred_thread_group(fuse_req_t req)
{
    pid_t tid = fuse_req_ctx(req)->pid;
    return tid > 0 ? thread_group(tid) : 0;
}

bool cred_process(uint64_t pid, struct opener *ret)
{
    uint64_t start = pid > 0 ? start_time(pid) : 0;
    if (start > 0)
        *ret = (struct opener){.pid = pid, .start = start};
    return start > 0;
}

bool cred_same_process(const struct opener *a, const struct opener *b)
{
    return a->pid != 0 && a->pid == b->pid && a->start == b->start;
}

static bool mask_line(const char *status, const char *name, uint64_t *ret)
{
    const char *line = strstr(status, name);
    return line && sscanf(line + strlen(name), "%" SCNx64, ret) == 1;
}

enum cred_signal cred_signal(fuse_req_t req)
{
    char path[64], status[4096];
    if (fuse_req_ctx(req)->pid <= 0)
        return CRED_UNKNOWN;
    snprintf(path, sizeof(path), "/proc/%d/status", (int)fuse_req_ctx(req)->pid);
    if (!read_proc(path, status, sizeof(status)))
        return CRED_UNKNOWN;
    uint64_t own, shared, blocked, ignored; /* proc(5), status */
    if (!mask_line(status, "SigPnd:", &own) || !mask_line(status, "ShdPnd:", &shared) ||
        !mask_line(status, "SigBlk:", &blocked) || !mask_line(status, "SigIgn:", &ignored))
        return CRED_UNKNOWN;
    return (own | shared) & ~(blocked | ignored) ? CRED_SIGNAL : CRED_NO_SIGNAL;
}
