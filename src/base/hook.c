/* hook.c: see hook.h. Nothing at all in a build without hooks. */
#include "base/hook.h"

#ifdef DG_HOOKS

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NAME_SIZE 64

/* What one of the variables asks for: act at the at-th hook of that name. */
struct point {
    char name[NAME_SIZE]; /* "": any */
    unsigned long at;     /* 0: never */
    int error;
    atomic_ulong seen;
};

static struct point point_kill, point_stop, point_wait, point_fail, point_fail2;
static const char *arm_file, *log_file;
static atomic_ulong steps;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* A number, or a name as in errno(3). */
static int parse_errno(const char *text)
{
    for (int e = 1; e < 134; e++) { /* 133: EHWPOISON, the last one of asm-generic/errno.h */
        const char *name = strerrorname_np(e);
        if (name && strcmp(name, text) == 0)
            return e;
    }
    return atoi(text);
}

/* "k", "name:k" or "name:k:E". A variable that cannot be parsed must not pass as "no hook": a test
 * would then prove nothing. */
static void parse_point(const char *variable, bool with_error, struct point *ret)
{
    const char *text = getenv(variable);
    char error[32] = "";
    int n = 0;

    if (!text)
        return;
    if (!with_error && sscanf(text, "%lu%n", &ret->at, &n) == 1 && text[n] == '\0')
        return;
    int fields = sscanf(text, "%63[^:]:%lu:%31s", ret->name, &ret->at, error);
    ret->error = with_error ? parse_errno(error) : 0;
    if (fields != (with_error ? 3 : 2) || ret->at == 0 || (with_error && ret->error <= 0)) {
        fprintf(stderr, "diskguard: %s=%s cannot be parsed (hook.h)\n", variable, text);
        _exit(2);
    }
}

static void read_environment(void)
{
    parse_point("DISKGUARD_HOOK_KILL", false, &point_kill);
    parse_point("DISKGUARD_HOOK_STOP", false, &point_stop);
    parse_point("DISKGUARD_HOOK_WAIT", false, &point_wait);
    parse_point("DISKGUARD_HOOK_FAIL", true, &point_fail);
    parse_point("DISKGUARD_HOOK_FAIL2", true, &point_fail2);
    arm_file = getenv("DISKGUARD_HOOK_ARM");
    log_file = getenv("DISKGUARD_HOOK_LOG");
}

/* One write, so that lines of several threads and processes do not mix. */
static void append_log(unsigned long n, const char *name)
{
    char line[NAME_SIZE + 32];
    int len = snprintf(line, sizeof(line), "%lu %.*s\n", n, NAME_SIZE, name);
    int fd = open(log_file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);

    if (fd < 0)
        return;
    if (write(fd, line, (size_t)len) != len)
        _exit(2);
    close(fd);
}

static bool reached(struct point *point, const char *name)
{
    if (point->at == 0 || (point->name[0] && strcmp(point->name, name) != 0))
        return false;
    return atomic_fetch_add(&point->seen, 1) + 1 == point->at;
}

int hook_step(const char *name)
{
    int saved = errno, r = 0;

    pthread_once(&once, read_environment);
    if (!arm_file || access(arm_file, F_OK) == 0) {
        unsigned long n = atomic_fetch_add(&steps, 1) + 1;
        if (log_file)
            append_log(n, name);
        if (reached(&point_kill, name))
            _exit(137); /* as after SIGKILL: no destructor, no flush */
        if (reached(&point_stop, name))
            raise(SIGSTOP);
        if (reached(&point_wait, name))
            while (arm_file && access(arm_file, F_OK) == 0)
                usleep(1000);
        if (reached(&point_fail, name))
            r = -point_fail.error;
        if (reached(&point_fail2, name))
            r = -point_fail2.error;
    }
    errno = saved;
    return r;
}

#endif
