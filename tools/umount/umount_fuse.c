/* umount_fuse.c: umount.fuse.diskguard(8): umount(8) starts it for a view ("EXTERNAL HELPERS"
 * there). It unmounts with umount -i, then waits until the daemon of just that view has put every
 * header back and has ended. */
#include "umount/umount.h"

#include <ctype.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>

volatile sig_atomic_t umount_signal;

static void on_signal(int number)
{
    umount_signal = number;
}

static void usage(FILE *f)
{
    fprintf(
        f,
        "usage: umount.fuse.diskguard MOUNTPOINT [-flnrv] [-N NAMESPACE] [-t TYPE]\n"
        "Unmounts a view of diskguard, and waits until every header is back. umount(8) starts it.\n"
        "DISKGUARD_UMOUNT_WAIT=SECONDS in the environment: gives up when for so long no image was restored (default %u).\n",
        UMOUNT_WAIT_S);
}

/* 0, or an exit code + 1. */
static int parse(int argc, char **argv, struct umount_options *o)
{
    static const struct option longs[] = {
        {"help", no_argument, NULL, 'h'}, {"version", no_argument, NULL, 'V'}, {0}};
    const char *wait = getenv("DISKGUARD_UMOUNT_WAIT");
    uint64_t seconds = UMOUNT_WAIT_S;
    int c;

    while ((c = getopt_long(argc, argv, "flnrvcisdN:t:hV", longs, NULL)) != -1) {
        switch (c) {
        case 'f':
            o->force = true;
            break;
        case 'l':
            o->lazy = true;
            break;
        case 'n':
            o->no_mtab = true;
            break;
        case 'r':
            o->remount = true;
            break;
        case 'v':
            o->verbose = true;
            break;
        case 'N':
            o->ns = optarg;
            break;
        case 'c':
        case 'i':
        case 's':
        case 'd':
        case 't':
            break; /* what they say is so, or means nothing here */
        case 'h':
            usage(stdout);
            return 1 + DG_EXIT_OK;
        case 'V':
            puts("umount.fuse.diskguard " DG_VERSION);
            return 1 + DG_EXIT_OK;
        default:
            usage(stderr);
            return 1 + DG_EXIT_USAGE;
        }
    }
    if (optind + 1 != argc) {
        usage(stderr);
        return 1 + DG_EXIT_USAGE;
    }
    if (wait && (base_u64(wait, &seconds) < 0 || seconds < 1 || seconds > 86400)) {
        out_error("DISKGUARD_UMOUNT_WAIT=%s: 1 to 86400 seconds are meant", wait);
        return 1 + DG_EXIT_USAGE;
    }
    o->point = argv[optind];
    o->bound_ms = seconds * 1000;
    return 0;
}

/* The mount table of another mount namespace (umount -N): a pid, or a file. 0 or -errno. */
static int load_of_namespace(const char *ns, struct mounts *ret)
{
    char path[64];
    _cleanup_close_ int home = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
    _cleanup_close_ int there = -1;
    int r;

    snprintf(path, sizeof(path), "/proc/%.20s/ns/mnt", ns);
    there = open(ns[strspn(ns, "0123456789")] ? ns : path, O_RDONLY | O_CLOEXEC);
    if (home < 0 || there < 0 || setns(there, CLONE_NEWNS) < 0)
        return -errno;
    r = mounts_load_fuse(ret);
    return setns(home, CLONE_NEWNS) < 0 ? -errno : r;
}

/* The FUSE mount on that point. Neither it nor any other view is touched: it may hang. */
static const struct mount *find(const struct umount_options *o, struct mounts *m, char **ret_path)
{
    int r = o->ns ? load_of_namespace(o->ns, m) : mounts_load_fuse(m);
    const char *rel = NULL;
    const struct mount *found;

    if (r == 0)
        r = mounts_resolve(m, o->point, ret_path);
    if (r < 0) {
        out_error("%s: %s", o->point, strerror(-r));
        return NULL;
    }
    found = mounts_of_path(m, *ret_path, &rel);
    return found && rel[0] == '\0' ? found : NULL;
}

/* Waits for umount(8), which asks a view that does not answer: not for ever. Its exit code. */
static int wait_for_child(pid_t pid, uint64_t bound_ms)
{
    _cleanup_close_ int fd = pidfd_open(pid, 0);
    struct pollfd p = {fd, POLLIN, 0};
    uint64_t until = base_now_ms() + bound_ms;
    int status;

    while (fd >= 0 && !umount_signal && base_now_ms() < until && poll(&p, 1, 500) <= 0)
        ;
    if (fd >= 0 && umount_signal)
        (void)poll(&p, 1, 5000); /* it may be at its end: then it is known what is left */
    if (fd >= 0 && poll(&p, 1, 0) <= 0) {
        out_error("umount does not return%s",
                  umount_signal ? " and a signal ends the waiting" : "");
        kill(pid, SIGKILL);
        if (poll(&p, 1, 5000) <= 0)
            return DG_EXIT_FAILURE;
    }
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return DG_EXIT_FAILURE;
    return WIFEXITED(status) ? WEXITSTATUS(status) : DG_EXIT_FAILURE;
}

/* path: as the kernel has it, so that nobody need resolve it (-c), which would ask the view. */
static int run_umount(const struct umount_options *o, const char *path, bool resolved)
{
    const char *argv[12] = {"umount", "-i"};
    unsigned n = 2;

    if (resolved)
        argv[n++] = "-c";
    if (o->force)
        argv[n++] = "-f";
    if (o->lazy)
        argv[n++] = "-l";
    if (o->no_mtab)
        argv[n++] = "-n";
    if (o->remount)
        argv[n++] = "-r";
    if (o->verbose)
        argv[n++] = "-v";
    if (o->ns) {
        argv[n++] = "-N";
        argv[n++] = o->ns;
    }
    argv[n] = path;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        execv("/bin/umount", (char *const *)argv);
        out_error("/bin/umount: %s", strerror(errno));
        _exit(127);
    }
    if (pid < 0) {
        out_error("cannot start umount: %s", strerror(errno));
        return DG_EXIT_FAILURE;
    }
    return wait_for_child(pid, o->bound_ms);
}

int main(int argc, char **argv)
{
    struct umount_options o = {0};
    struct sigaction sa = {.sa_handler = on_signal};
    struct mounts mounts = {0};
    struct unmounting e;
    char *path = NULL;
    int code;

    out_program("umount.fuse.diskguard");
    code = parse(argc, argv, &o);
    if (code > 0)
        return code - 1;
    sigaction(SIGTERM, &sa, NULL);
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGHUP, &sa, NULL);
    const struct mount *m = find(&o, &mounts, &path);
    if (m)
        ending_open(&e, m);
    code = run_umount(&o, m ? path : o.point, m);
    if (m && o.force && !o.lazy && code != DG_EXIT_OK && geteuid() == 0)
        out_error(
            "%s: -f has broken the view off, although it is in use: all that has files open there gets errors, and the daemon restores its images. Take the dead mount away with umount -l %s",
            path, out_quote(path));
    if (m) {
        code = ending_wait(&e, &o, code);
        ending_close(&e);
    }
    mounts_free(&mounts);
    free(path);
    return code;
}
