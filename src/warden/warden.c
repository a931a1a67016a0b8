#include "warden/warden.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/base.h"
#include "diskguard/exitcodes.h"
#include "warden/pace.h"

#define WARDEN_NAME "diskguardwarden" /* at most 15 bytes: prctl(2) */
#define OOM_PATH "/proc/self/oom_score_adj"
#define OOM_NEVER "-1000"

struct warden {
    const struct warden_job *job;
    sigset_t waited, old;
    char oom[16];  /* the score that the caller had; "": unknown */
    char name[16]; /* of its process */
    pid_t pid;     /* of the warden */
    pid_t worker;  /* 0: there is none */
    unsigned n;    /* workers before this one */
    uint64_t started_ms;
    bool ending; /* a signal asked for it */
};

/* ---- the OOM killer's score ---- */

static void oom_read(char *ret, size_t size)
{
    _cleanup_close_ int fd = open(OOM_PATH, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, ret, size - 1);
    ret[n > 0 ? n : 0] = '\0';
}

static void oom_write(const char *score)
{
    _cleanup_close_ int fd = open(OOM_PATH, O_WRONLY | O_CLOEXEC);
    if (fd >= 0 && score[0])
        (void)!write(fd, score, strlen(score)); /* not permitted: as well as it goes */
}

/* ---- the worker ---- */

struct worker {
    const struct warden_job *job;
    unsigned n;
    int code;
};

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    w->code = w->job->work(w->job->arg, w->n);
    return NULL;
}

static _Noreturn void be_worker(const struct warden *w)
{
    struct worker me = {.job = w->job, .n = w->n, .code = DG_EXIT_FAILURE};
    pthread_t t;
    /* The warden may be gone before the kernel was told to tell. */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != w->pid)
        _exit(DG_EXIT_FAILURE);
    oom_write(w->oom);
    prctl(PR_SET_NAME, w->name);
    /* inherited by its thread; this one only waits for it */
    pthread_sigmask(SIG_SETMASK, &w->old, NULL);
    if (pthread_create(&t, NULL, worker_main, &me) == 0) {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, NULL);
        pthread_join(t, NULL);
    }
    exit(me.code);
}

static long raw_clone(void)
{
    struct clone_args args = {.flags = CLONE_FILES, .exit_signal = SIGCHLD};
    long r = syscall(SYS_clone3, &args, sizeof(args));
#if !defined(__s390__) /* where the arguments come in another order */
    if (r < 0 && errno == ENOSYS)
        r = syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
#endif
    return r;
}

static int start_worker(struct warden *w)
{
    fflush(NULL); /* or both would write what is in the buffers */
    w->started_ms = base_now_ms();
    long pid = raw_clone();
    if (pid < 0)
        return -errno;
    if (pid == 0)
        be_worker(w);
    w->worker = (pid_t)pid;
    return 0;
}

/* ---- the warden ---- */

static void block_signals(struct warden *w)
{
    signal(SIGCHLD, SIG_DFL); /* ignored: a child would be gone before it is waited for */
    sigemptyset(&w->waited);
    sigaddset(&w->waited, SIGCHLD);
    sigaddset(&w->waited, SIGTERM);
    sigaddset(&w->waited, SIGINT);
    sigaddset(&w->waited, SIGHUP);
    sigprocmask(SIG_BLOCK, &w->waited, &w->old);
}

/* What a terminal sends, it sends to the worker, too. */
static void forward(struct warden *w, const siginfo_t *info)
{
    if (info->si_signo != SIGHUP)
        w->ending = true;
    if (w->worker > 0 && info->si_code <= 0)
        (void)kill(w->worker, info->si_signo);
}

/* Waits for the worker to end. Its status, or -1: nobody is there. */
static int wait_worker(struct warden *w)
{
    siginfo_t info;
    int status;
    for (;;) {
        pid_t r = waitpid(w->worker, &status, WNOHANG);
        if (r < 0 && errno != EINTR)
            status = -1;
        if (r == w->worker || (r < 0 && errno != EINTR)) {
            w->worker = 0;
            return status;
        }
        if (sigwaitinfo(&w->waited, &info) > 0 && info.si_signo != SIGCHLD)
            forward(w, &info);
    }
}

/* Waits before the next worker is started. */
static void wait_pause(struct warden *w, uint64_t ms)
{
    siginfo_t info;
    uint64_t until = base_now_ms() + ms, now;
    while (!w->ending && (now = base_now_ms()) < until) {
        uint64_t left = until - now;
        struct timespec ts = {(time_t)(left / 1000), (long)(left % 1000) * 1000000};
        if (sigtimedwait(&w->waited, &info, &ts) > 0 && info.si_signo != SIGCHLD)
            forward(w, &info);
    }
}

/* As if the worker's signal had come to the warden: its parent sees what it would have seen of a
 * daemon without a warden. Its core would be of no use to anybody. */
static int end_as(const struct warden *w, int status)
{
    if (status == -1)
        return DG_EXIT_FAILURE;
    if (WIFEXITED(status))
        return WEXITSTATUS(status);
    struct rlimit none = {0, 0};
    sigset_t one;
    int sig = WTERMSIG(status);
    (void)setrlimit(RLIMIT_CORE, &none);
    fflush(NULL);
    signal(sig, SIG_DFL);
    sigemptyset(&one);
    sigaddset(&one, sig);
    (void)kill(w->pid, sig);
    sigprocmask(SIG_UNBLOCK, &one, NULL);
    return DG_EXIT_FAILURE;
}

int warden_run(const struct warden_job *job)
{
    struct warden w = {.job = job, .pid = getpid()};
    struct pace pace = {0};
    int status, r;
    oom_read(w.oom, sizeof(w.oom));
    prctl(PR_GET_NAME, w.name);
    block_signals(&w);
    r = start_worker(&w);
    if (r < 0) {
        sigprocmask(SIG_SETMASK, &w.old, NULL);
        return r;
    }
    oom_write(OOM_NEVER);
    prctl(PR_SET_NAME, WARDEN_NAME);
    for (;;) {
        status = wait_worker(&w);
        if (w.ending || status == -1 || !WIFSIGNALED(status) || !job->again ||
            !job->again(job->arg, status, w.n))
            break;
        wait_pause(&w, pace_after_crash(&pace, base_now_ms() - w.started_ms));
        w.n++;
        if (w.ending || start_worker(&w) < 0)
            break;
    }
    return end_as(&w, status);
}
