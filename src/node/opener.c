#include "node/opener.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include "base/log.h"

/* Process numbers belong to the pid namespace of this mount. A /proc of another namespace would
 * show other processes under them. */
static pthread_once_t proc_once = PTHREAD_ONCE_INIT;
static bool proc_is_ours;

static void proc_learn(void)
{
    char me[32];
    ssize_t n = readlink("/proc/self", me, sizeof(me) - 1);
    me[n > 0 ? n : 0] = '\0';
    proc_is_ours = strtoull(me, NULL, 10) == (unsigned long long)getpid();
    if (!proc_is_ours)
        log_msg(
            LOG_WARNING,
            "/proc is not of this daemon's pid namespace: who opens an image is not known, so that no process may open a second time what it holds (writers=host lifts that)");
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

/* proc(5): field 22 of stat, counted after the name's closing parenthesis, which is the end of
 * field 2. */
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

/* ---- processes that were resolved lately: a program that opens many files is asked for once ----
 */

/* A pidfd becomes readable when its process ends, so until then its number is no other one's. */
#define LATELY 16u
static struct {
    pthread_mutex_t lock;
    struct {
        uint64_t pid, start;
        int pidfd; /* where pid is not 0 */
    } of[LATELY];
    unsigned next;
} lately = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* The start time of a process that lives, by its leading thread; 0: unknown. */
static uint64_t lately_find(uint64_t pid)
{
    uint64_t start = 0;
    pthread_mutex_lock(&lately.lock);
    for (unsigned k = 0; k < LATELY; k++) {
        struct pollfd p = {.fd = lately.of[k].pidfd, .events = POLLIN};
        if (lately.of[k].pid != pid)
            continue;
        if (poll(&p, 1, 0) == 0) {
            start = lately.of[k].start;
        } else {
            close(lately.of[k].pidfd);
            lately.of[k].pid = 0;
        }
        break;
    }
    pthread_mutex_unlock(&lately.lock);
    return start;
}

/* fd: its pidfd, opened before start was read; it may have ended in between. */
static void lately_note(uint64_t pid, uint64_t start, int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    if (start == 0 || poll(&p, 1, 0) != 0) {
        close(fd);
        return;
    }
    pthread_mutex_lock(&lately.lock);
    unsigned k = lately.next;
    lately.next = (k + 1) % LATELY;
    if (lately.of[k].pid != 0)
        close(lately.of[k].pidfd);
    lately.of[k].pid = pid;
    lately.of[k].start = start;
    lately.of[k].pidfd = fd;
    pthread_mutex_unlock(&lately.lock);
}

void opener_resolve(struct opener *o, pid_t tid)
{
    uint64_t pid = tid > 0 ? (uint64_t)tid : 0, start = pid > 0 ? lately_find(pid) : 0;
    if (pid > 0 && start == 0) {
        pid = thread_group(tid);
        bool leads = pid == (uint64_t)tid;
        int fd = leads ? (int)syscall(SYS_pidfd_open, tid, 0) : -1;
        start = pid > 0 ? start_time(pid) : 0;
        if (fd >= 0)
            lately_note(pid, start, fd);
    }
    o->pid = start > 0 ? pid : 0;
    o->start = start;
}

uint64_t opener_thread_group(pid_t tid)
{
    return tid > 0 ? thread_group(tid) : 0;
}

bool opener_process(uint64_t pid, struct opener *ret)
{
    uint64_t start = pid > 0 ? start_time(pid) : 0;
    if (start > 0)
        *ret = (struct opener){.pid = pid, .start = start};
    return start > 0;
}

bool opener_same(const struct opener *a, const struct opener *b)
{
    return a->pid != 0 && a->pid == b->pid && a->start == b->start;
}

static bool mask_line(const char *status, const char *name, uint64_t *ret)
{
    const char *line = strstr(status, name);
    return line && sscanf(line + strlen(name), "%" SCNx64, ret) == 1;
}

bool opener_lacks_fsetid(pid_t tid)
{
    char path[64], status[4096];
    uint64_t caps; /* proc(5), status; capabilities(7) */
    snprintf(path, sizeof(path), "/proc/%d/status", (int)tid);
    return tid > 0 && read_proc(path, status, sizeof(status)) &&
           mask_line(status, "CapEff:", &caps) && !(caps >> CAP_FSETID & 1);
}

enum opener_signal opener_signal(pid_t tid)
{
    char path[64], status[4096];
    if (tid <= 0)
        return OPENER_UNKNOWN;
    snprintf(path, sizeof(path), "/proc/%d/status", (int)tid);
    if (!read_proc(path, status, sizeof(status)))
        return OPENER_UNKNOWN;
    uint64_t own, shared, blocked, ignored; /* proc(5), status */
    if (!mask_line(status, "SigPnd:", &own) || !mask_line(status, "ShdPnd:", &shared) ||
        !mask_line(status, "SigBlk:", &blocked) || !mask_line(status, "SigIgn:", &ignored))
        return OPENER_UNKNOWN;
    return (own | shared) & ~(blocked | ignored) ? OPENER_SIGNALLED : OPENER_NO_SIGNAL;
}
