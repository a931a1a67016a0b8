/* bench_calls.c: what tools/bench measures with single system calls. Prints nanoseconds.
 *
 *   bench_calls bare DIR N          the durable calls of one open for write and of one close, made
 *                                   N times without a guard: a line "OPEN CLOSE" each
 *   bench_calls again FILE          opens FILE, closes it, opens it again at once: "OPEN AGAIN"
 *   bench_calls storm PROCS FILE... PROCS processes open all files, close them and open them again:
 *                                   "OPEN AGAIN SLOWEST": all together, and the slowest single open
 *   bench_calls race FILE1 FILE2    two processes open the same image, each by its own view:
 *                                   "WINNER LOSER"; exit code 3 when both were let in
 *   bench_calls hold DIR N          opens DIR/0.qcow2 to DIR/<N-1>.qcow2 for write, prints "ALL"
 * and holds them until its input ends bench_calls scan DIR            walks DIR and reads 512 bytes
 * of each file: "ALL FILES" bench_calls create DIR N        makes N empty files in DIR: "ALL"
 *   bench_calls unlink DIR N        removes them: "ALL"
 *
 * It needs no part of diskguard. Its `bare` must stay in step with src/core/seal.h: whoever changes
 * the durable calls of an open or a close changes bare_open() or bare_close(), too. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define RECORD_SIZE 768 /* of a claim of a qcow2 image */
/* Before each: a view's opens are far apart, too, and a disk and a processor that have just worked
 * answer sooner. */
#define PAUSE_US 20000
#define WAL_HEAD 24 /* SQLite: one frame of its write-ahead log */
#define WAL_PAGE 4096
#define WAL_END (64 * WAL_PAGE) /* about where SQLite begins it again */

static char zeros[WAL_PAGE];

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "bench_calls: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void need(int r, const char *what)
{
    if (r < 0)
        die(what);
}

static int64_t now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void put(int fd, size_t len, off_t off)
{
    if (pwrite(fd, zeros, len, off) != (ssize_t)len)
        die("write");
}

/* ---- the durable calls of an open and a close ---- */

struct bare {
    int claims, tmp, image, wal;
    off_t wal_end;
};

static int make(int dir, const char *name, mode_t mode)
{
    int fd = openat(dir, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode);

    need(fd, name);
    return fd;
}

static int make_dir(const char *dir, const char *name)
{
    char path[4096];
    int fd;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    need(mkdir(path, 0700), path);
    fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    need(fd, path);
    return fd;
}

static void wal_frame(struct bare *b)
{
    put(b->wal, WAL_HEAD, b->wal_end);
    put(b->wal, WAL_PAGE, b->wal_end + WAL_HEAD);
    b->wal_end += WAL_HEAD + WAL_PAGE;
    if (b->wal_end > WAL_END)
        b->wal_end = 0;
}

/* A record in tmp/, synced. */
static void record(struct bare *b)
{
    int fd = make(b->tmp, "record", 0600);

    put(fd, RECORD_SIZE, 0);
    need(fsync(fd), "fsync");
    need(close(fd), "close");
}

/* The three extents of a qcow2 image's seal. */
static void extents(struct bare *b)
{
    put(b->image, 8, 24);
    put(b->image, 48, 456);
    put(b->image, 8, 72);
}

static void bare_open(struct bare *b, const char *claim)
{
    wal_frame(b);
    need(fdatasync(b->wal), "fdatasync");
    record(b);
    need(linkat(b->tmp, "record", b->claims, claim, 0), "link");
    need(fsync(b->claims), "fsync");
    need(unlinkat(b->tmp, "record", 0), "unlink");
    extents(b);
    need(fsync(b->image), "fsync");
    wal_frame(b);
}

static void bare_close(struct bare *b, const char *claim)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_NOW}};

    need(fsync(b->image), "fsync");
    wal_frame(b);
    need(fdatasync(b->wal), "fdatasync");
    extents(b);
    need(futimens(b->image, times), "utimens");
    need(fsync(b->image), "fsync");
    record(b);
    need(renameat(b->tmp, "record", b->claims, claim), "rename");
    need(fsync(b->claims), "fsync");
    wal_frame(b);
}

static void bare(const char *dir, int n)
{
    struct bare b = {.claims = make_dir(dir, "claims"), .tmp = make_dir(dir, "tmp")};
    int here = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    char claim[32] = "claim.0", before[32];

    need(here, dir);
    b.image = make(here, "image", 0600);
    b.wal = make(here, "wal", 0600);
    need(close(make(b.claims, claim, 0600)), "close");
    for (int i = 1; i <= n; i++) {
        int64_t t[3];

        usleep(PAUSE_US);
        strcpy(before, claim);
        snprintf(claim, sizeof(claim), "claim.%d", i);
        t[0] = now();
        bare_open(&b, claim);
        t[1] = now();
        bare_close(&b, claim);
        t[2] = now();
        need(unlinkat(b.claims, before, 0), "unlink"); /* nobody waits for it */
        printf("%jd %jd\n", (intmax_t)(t[1] - t[0]), (intmax_t)(t[2] - t[1]));
    }
}

/* ---- opens by a view ---- */

static int must_open(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);

    need(fd, path);
    return fd;
}

static void again(const char *path)
{
    int64_t t[4];
    int fd;

    t[0] = now();
    fd = must_open(path);
    t[1] = now();
    need(close(fd), path);
    t[2] = now();
    fd = must_open(path);
    t[3] = now();
    need(close(fd), path);
    printf("%jd %jd\n", (intmax_t)(t[1] - t[0]), (intmax_t)(t[3] - t[2]));
}

/* What the processes of one run share. */
struct shared {
    _Atomic int arrived, failed;
    _Atomic int go;
    _Atomic int64_t slowest;
    struct {
        _Atomic int64_t took;
        _Atomic int error;
    } racer[2];
};

static struct shared *share(void)
{
    struct shared *s =
        mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (s == MAP_FAILED)
        die("mmap");
    return s;
}

/* 0 in the child, which ends with its parent. */
static pid_t child(void)
{
    pid_t pid = fork();

    need(pid, "fork");
    if (pid == 0)
        need(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
    return pid;
}

/* A child arrives, and waits until the parent says `go` for the n-th time. */
static void arrive(struct shared *s, int n)
{
    atomic_fetch_add(&s->arrived, 1);
    while (atomic_load(&s->go) < n)
        usleep(50);
}

/* The parent waits until all have arrived (or one has failed) and returns the time. */
static int64_t all_here(struct shared *s, int n)
{
    while (atomic_load(&s->arrived) < n && !atomic_load(&s->failed))
        usleep(50);
    if (atomic_load(&s->failed))
        exit(1); /* the child has said why */
    atomic_store(&s->arrived, 0);
    return now();
}

static void open_all(struct shared *s, char **path, int n, int step, int *fd)
{
    for (int i = 0; i < n; i += step) {
        int64_t began = now(), took, slowest = atomic_load(&s->slowest);

        fd[i] = open(path[i], O_RDWR | O_CLOEXEC);
        took = now() - began;
        if (fd[i] < 0) {
            atomic_store(&s->failed, 1);
            die(path[i]);
        }
        while (took > slowest && !atomic_compare_exchange_weak(&s->slowest, &slowest, took))
            ;
    }
}

static _Noreturn void storm_child(struct shared *s, char **path, int n, int step)
{
    int *fd = calloc((size_t)n + 1, sizeof(*fd));

    if (!fd)
        die("memory");
    arrive(s, 1);
    open_all(s, path, n, step, fd);
    arrive(s, 2);
    for (int i = 0; i < n; i += step)
        close(fd[i]);
    open_all(s, path, n, step, fd);
    arrive(s, 3);
    exit(0);
}

static void storm(int procs, char **path, int n)
{
    struct shared *s = share();
    int64_t t[3];

    for (int k = 0; k < procs; k++) {
        if (child() == 0)
            storm_child(s, path + k, n - k, procs);
    }
    for (int k = 0; k < 3; k++) {
        (void)all_here(s, procs);
        if (k)
            t[k] = now() - t[0];
        if (k == 1)
            printf("%jd ", (intmax_t)t[1]);
        t[0] = now();
        atomic_store(&s->go, k + 1);
    }
    while (wait(NULL) > 0)
        ;
    printf("%jd %jd\n", (intmax_t)t[2], (intmax_t)atomic_load(&s->slowest));
}

static void race_child(struct shared *s, int k, const char *path)
{
    int64_t began;
    int fd;

    atomic_fetch_add(&s->arrived, 1);
    while (!atomic_load(&s->go))
        ; /* spins: both begin in the same microsecond */
    began = now();
    fd = open(path, O_RDWR | O_CLOEXEC);
    atomic_store(&s->racer[k].error, fd < 0 ? errno : 0);
    atomic_store(&s->racer[k].took, now() - began);
    atomic_fetch_add(&s->arrived, 1);
    while (atomic_load(&s->go) < 2)
        usleep(50);
    exit(0);
}

static int race(char **path)
{
    struct shared *s = share();
    int both;

    for (int k = 0; k < 2; k++) {
        if (child() == 0)
            race_child(s, k, path[k]);
    }
    (void)all_here(s, 2);
    atomic_store(&s->go, 1);
    (void)all_here(s, 2);
    atomic_store(&s->go, 2);
    while (wait(NULL) > 0)
        ;
    both = !s->racer[0].error + !s->racer[1].error;
    if (both != 1) {
        fprintf(stderr, "bench_calls: %d of two opens were let in (%s, %s)\n", both,
                strerror(s->racer[0].error), strerror(s->racer[1].error));
        return both == 2 ? 3 : 1;
    }
    both = s->racer[0].error ? 1 : 0; /* the winner */
    printf("%jd %jd\n", (intmax_t)s->racer[both].took, (intmax_t)s->racer[!both].took);
    return 0;
}

/* ---- names ---- */

static void names(const char *dir, int n, int remove)
{
    int64_t began = now();
    char path[4096];

    for (int i = 0; i < n; i++) {
        snprintf(path, sizeof(path), "%s/new-%05d", dir, i);
        if (remove) {
            need(unlink(path), path);
        } else {
            int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);

            need(fd, path);
            need(close(fd), path);
        }
    }
    printf("%jd\n", (intmax_t)(now() - began));
}

/* ---- many images ---- */

static void hold(const char *dir, int n)
{
    const struct rlimit enough = {(rlim_t)n + 64, (rlim_t)n + 64};
    int64_t began = now();
    char path[4096];

    need(setrlimit(RLIMIT_NOFILE, &enough), "RLIMIT_NOFILE");
    for (int i = 0; i < n; i++) {
        snprintf(path, sizeof(path), "%s/%d.qcow2", dir, i);
        (void)must_open(path);
    }
    printf("%jd\n", (intmax_t)(now() - began));
    fflush(stdout);
    while (read(STDIN_FILENO, path, sizeof(path)) > 0)
        ;
}

static int64_t scanned;

static int scan_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
    char head[512];
    int fd;

    (void)at;
    if (type != FTW_F || !S_ISREG(st->st_mode))
        return 0;
    fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    need(fd, path);
    need((int)pread(fd, head, sizeof(head), 0), path);
    need(close(fd), path);
    scanned++;
    return 0;
}

static void scan(const char *dir)
{
    int64_t began = now();

    need(nftw(dir, scan_one, 64, FTW_PHYS), dir);
    printf("%jd %jd\n", (intmax_t)(now() - began), (intmax_t)scanned);
}

int main(int argc, char **argv)
{
    const char *verb = argc > 2 ? argv[1] : "";

    if (argc == 4 && strcmp(verb, "bare") == 0)
        bare(argv[2], atoi(argv[3]));
    else if (argc == 3 && strcmp(verb, "again") == 0)
        again(argv[2]);
    else if (argc > 3 && strcmp(verb, "storm") == 0 && atoi(argv[2]) > 0)
        storm(atoi(argv[2]), argv + 3, argc - 3);
    else if (argc == 4 && strcmp(verb, "race") == 0)
        return race(argv + 2);
    else if (argc == 4 && strcmp(verb, "hold") == 0 && atoi(argv[3]) > 0)
        hold(argv[2], atoi(argv[3]));
    else if (argc == 3 && strcmp(verb, "scan") == 0)
        scan(argv[2]);
    else if (argc == 4 && (strcmp(verb, "create") == 0 || strcmp(verb, "unlink") == 0))
        names(argv[2], atoi(argv[3]), verb[0] == 'u');
    else {
        fputs("usage: bench_calls bare|again|storm|race|hold|scan|create|unlink ... "
              "(see its source)\n",
              stderr);
        return 2;
    }
    return 0;
}
