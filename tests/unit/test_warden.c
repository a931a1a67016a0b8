/* test_warden.c: the parent of the worker: what it forwards, what it tells its own parent, and what
 * of a dead worker the next one finds. */
#include "unit.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/base.h"
#include "diskguard/exitcodes.h"
#include "warden/pace.h"
#include "warden/warden.h"

/* ---- the pause ---- */

Test(warden, pause_grows_with_short_lives_only)
{
    static const uint64_t want[] = {0,    100,  200,   400,   800,   1600,
                                    3200, 6400, 12800, 25600, 30000, 30000};
    struct pace p = {0};

    for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++)
        cr_assert_eq(pace_after_crash(&p, 5), want[i], "crash %zu", i);
    for (unsigned i = 0; i < 100; i++)
        cr_assert_eq(pace_after_crash(&p, PACE_SHORT_LIFE_MS - 1), PACE_MOST_MS);
    cr_assert_eq(pace_after_crash(&p, PACE_SHORT_LIFE_MS), 0u, "it lived long");
    cr_assert_eq(pace_after_crash(&p, 0), 100u);
    cr_assert_eq(pace_after_crash(&p, UINT64_MAX), 0u);
}

/* ---- a warden in a child of the test ---- */

/* What the processes tell the test: one byte each. */
static int said[2];

static void up(void)
{
    cr_assert_eq(pipe2(said, O_CLOEXEC), 0);
}

static void say(char c)
{
    (void)!write(said[1], &c, 1);
}

/* '\0': nobody can say anything any more. */
static char hear(void)
{
    struct pollfd p = {.fd = said[0], .events = POLLIN};
    char c = '\0';

    cr_assert_eq(poll(&p, 1, 20000), 1, "something is said, or the last writer ends");
    (void)!read(said[0], &c, 1);
    return c;
}

static pid_t begin(const struct warden_job *job)
{
    pid_t pid = fork();

    cr_assert_geq(pid, 0);
    if (pid == 0) {
        int code = warden_run(job);
        exit(code < 0 ? 99 : code);
    }
    close(said[1]);
    said[1] = -1;
    return pid;
}

static int end(pid_t pid)
{
    int status;

    cr_assert_eq(waitpid(pid, &status, 0), pid);
    return status;
}

static int code_7(void *arg, unsigned n)
{
    (void)arg;
    return n == 0 ? 7 : 8;
}

static int killed(void *arg, unsigned n)
{
    (void)n;
    signal(*(int *)arg, SIG_DFL);
    kill(getpid(), *(int *)arg);
    return 0;
}

Test(warden, end_of_the_worker_is_its_own, .init = up)
{
    static const int sigs[] = {SIGKILL, SIGSEGV, SIGABRT, SIGTERM, SIGUSR1};
    int sig;

    cr_assert_eq(end(begin(&(struct warden_job){.work = code_7})), 7 << 8);
    for (size_t i = 0; i < sizeof(sigs) / sizeof(sigs[0]); i++) {
        sig = sigs[i];
        int status = end(begin(&(struct warden_job){.arg = &sig, .work = killed}));
        cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == sig, "%s", strsignal(sig));
        cr_assert_not(WCOREDUMP(status));
    }
}

/* Says each signal that it gets; SIGTERM and SIGINT end it. */
static int listener(void *arg, unsigned n)
{
    sigset_t set;
    int sig = 0;

    (void)arg;
    (void)n;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    alarm(60); /* should its warden leave it behind */
    say('r');
    do {
        sigwait(&set, &sig);
        say(sig == SIGHUP ? 'h' : sig == SIGINT ? 'i' : 't');
    } while (sig == SIGHUP);
    return 5;
}

Test(warden, signals_are_forwarded, .init = up)
{
    pid_t pid = begin(&(struct warden_job){.work = listener});

    cr_assert_eq(hear(), 'r');
    kill(pid, SIGHUP);
    cr_assert_eq(hear(), 'h');
    kill(pid, SIGHUP);
    cr_assert_eq(hear(), 'h');
    kill(pid, SIGTERM);
    cr_assert_eq(hear(), 't');
    cr_assert_eq(end(pid), 5 << 8);
}

Test(warden, worker_ends_with_a_warden_that_is_killed, .init = up)
{
    pid_t pid = begin(&(struct warden_job){.work = listener});

    cr_assert_eq(hear(), 'r');
    kill(pid, SIGKILL);
    cr_assert_eq(hear(), '\0', "nobody has the pipe any more");
    cr_assert_eq(end(pid), SIGKILL);
}

/* ---- what a worker finds ---- */

static bool mask_is_empty(void)
{
    sigset_t now;

    pthread_sigmask(SIG_SETMASK, NULL, &now);
    for (int sig = 1; sig < 32; sig++)
        if (sigismember(&now, sig) == 1)
            return false;
    return true;
}

/* Does glibc know the thread's id? A lock that checks its owner would not. */
static bool glibc_knows_me(void)
{
    pthread_mutexattr_t attr;
    pthread_mutex_t m;

    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutex_init(&m, &attr);
    pthread_mutex_lock(&m);
    bool ok = m.__data.__owner == (int)syscall(SYS_gettid);
    pthread_mutex_unlock(&m);
    return ok;
}

static void read_score(const char *path, char *ret, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, ret, size - 1);

    ret[n > 0 ? n : 0] = '\0';
    close(fd);
}

/* Is this process allowed to? Tries it on itself. */
static bool may_set_score(void)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    bool may = fd >= 0 && write(fd, "-1000", 5) == 5;

    close(fd);
    return may;
}

static int looks_around(void *arg, unsigned n)
{
    const char *before = arg;
    char path[64], score[16], name[16];

    (void)n;
    if (!mask_is_empty())
        return 10;
    if (!glibc_knows_me() || syscall(SYS_gettid) == getpid())
        return 11;
    read_score("/proc/self/oom_score_adj", score, sizeof(score));
    if (strcmp(score, before) != 0)
        return 12;
    prctl(PR_GET_NAME, name);
    if (strncmp(name, "diskguard", 9) == 0)
        return 13;
    snprintf(path, sizeof(path), "/proc/%d/oom_score_adj", (int)getppid());
    for (unsigned i = 0; i < 1000; i++, usleep(2000)) { /* it sets it when we are there */
        read_score(path, score, sizeof(score));
        if (strcmp(score, "-1000\n") == 0)
            return 0;
    }
    return may_set_score() ? 14 : 0;
}

Test(warden, worker_is_as_the_daemon_was, .init = up)
{
    char before[16];

    read_score("/proc/self/oom_score_adj", before, sizeof(before));
    int status = end(begin(&(struct warden_job){.arg = before, .work = looks_around}));
    cr_assert_eq(status, 0, "status %x", (unsigned)status);
}

/* ---- the next worker ---- */

#define NUMBER 200 /* of a descriptor */

static int lock_of(int fd, int op, short type)
{
    struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_len = 1};

    return fcntl(fd, op, &l) < 0 ? -errno : l.l_type;
}

/* The first one opens and locks a file, and dies; the second one has it. */
static int leaves_a_lock(void *arg, unsigned n)
{
    const char *path = arg;
    int other = open(path, O_RDWR | O_CLOEXEC);

    if (n == 0) {
        int fd = open(path, O_RDWR | O_CLOEXEC);
        if (fd < 0 || dup3(fd, NUMBER, O_CLOEXEC) < 0 || close(fd) < 0 ||
            lock_of(NUMBER, F_OFD_SETLK, F_WRLCK) < 0)
            return 20;
        kill(getpid(), SIGKILL);
    }
    if (lock_of(other, F_OFD_SETLK, F_WRLCK) != -EAGAIN)
        return 21; /* it was free in between */
    if (lock_of(NUMBER, F_OFD_SETLK, F_UNLCK) < 0)
        return 22;
    return lock_of(other, F_OFD_SETLK, F_WRLCK) == F_WRLCK ? 0 : 23;
}

static bool always(void *arg, int status, unsigned n)
{
    (void)arg;
    (void)status;
    (void)n;
    return true;
}

Test(warden, descriptors_and_locks_outlive_a_killed_worker, .init = up)
{
    const char *tmp = getenv("TMPDIR");
    char path[256];

    snprintf(path, sizeof(path), "%s/diskguard-warden-XXXXXX", tmp ? tmp : "/tmp");
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    close(fd);
    int status =
        end(begin(&(struct warden_job){.arg = path, .work = leaves_a_lock, .again = always}));
    unlink(path);
    cr_assert_eq(status, 0, "status %x", (unsigned)status);
}

static int dies(void *arg, unsigned n)
{
    (void)arg;
    say(n < 9 ? (char)('0' + n) : '9');
    kill(getpid(), SIGKILL);
    return 0;
}

static bool four_times(void *arg, int status, unsigned n)
{
    (void)arg;
    return n < 3 && WTERMSIG(status) == SIGKILL;
}

Test(warden, next_workers_come_after_the_pause, .init = up)
{
    uint64_t began = base_now_ms();
    int status = end(begin(&(struct warden_job){.work = dies, .again = four_times}));

    cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "the last one's end");
    cr_assert_geq(base_now_ms() - began, 0u + 100 + 200);
    for (char c = '0'; c < '4'; c++)
        cr_assert_eq(hear(), c);
    cr_assert_eq(hear(), '\0');
}

static bool has_child(pid_t pid)
{
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)pid, (int)pid);
    FILE *f = fopen(path, "re");
    cr_assert_not_null(f);
    bool found = fgetc(f) != EOF;
    fclose(f);
    return found;
}

Test(warden, signal_in_the_pause_ends_it, .init = up)
{
    pid_t pid = begin(&(struct warden_job){.work = dies, .again = always});

    while (hear() != '5')
        ;
    while (has_child(pid)) /* then 1.6 s pass before the next one */
        usleep(1000);
    uint64_t asked = base_now_ms();
    kill(pid, SIGTERM);
    int status = end(pid);
    cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    cr_assert_lt(base_now_ms() - asked, 1500u);
}

Test(warden, ignored_sigchld_does_not_matter, .init = up)
{
    signal(SIGCHLD, SIG_IGN);
    pid_t pid = begin(&(struct warden_job){.work = code_7});
    signal(SIGCHLD, SIG_DFL);
    int status, r;
    do /* the child may have been reaped by itself meanwhile: then there is nothing to see */
        r = waitpid(pid, &status, 0);
    while (r < 0 && errno == EINTR);
    if (r == pid)
        cr_assert_eq(status, 7 << 8);
}
