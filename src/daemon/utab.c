#include "daemon/utab.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/base.h"
#include "base/log.h"
#include "daemon/options.h"

#define PATIENCE_MS 10000 /* mount(8) waits for whoever has locked its tables */

/* 0 or -errno; of a program that fails: -EIO. */
static int run_program(const char *const argv[])
{
    static const char *const env[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", NULL};
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t none;
    pid_t pid;
    int status = -1, r;

    sigemptyset(&none);
    if (posix_spawn_file_actions_init(&files) != 0)
        return -ENOMEM;
    if (posix_spawnattr_init(&attr) != 0) {
        posix_spawn_file_actions_destroy(&files);
        return -ENOMEM;
    }
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
    for (int fd = 0; fd < 3; fd++)
        posix_spawn_file_actions_addopen(&files, fd, "/dev/null", O_RDWR, 0);
    r = -posix_spawn(&pid, argv[0], &files, &attr, (char *const *)argv, (char *const *)env);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&files);
    if (r < 0)
        return r;
    _cleanup_close_ int fd = pidfd_open(pid, 0);
    struct pollfd p = {fd, POLLIN, 0};
    if (fd >= 0 && poll(&p, 1, PATIENCE_MS) == 0) {
        kill(pid, SIGKILL);
        r = -ETIMEDOUT;
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return r < 0 ? r : status == 0 ? 0 : -EIO;
}

void utab_add(const struct options *opt)
{
    if (geteuid() != 0)
        return; /* such a view is unmounted by fusermount3, which knows no helpers */
    /* -f, -i, -c: it mounts nothing, starts no helper and does not look at the mountpoint */
    int r = run_program((const char *const[]){"/bin/mount", "-f", "-i", "-c", "-t",
                                              "fuse.diskguard", "-o", "helper=fuse.diskguard",
                                              opt->guard.datastore, opt->guard.mountpoint, NULL});
    if (r < 0)
        log_msg(
            LOG_WARNING,
            "mount(8) takes no entry for %s (%s): umount(8) of it may return before every header is back; umount.fuse.diskguard %s waits for that",
            opt->guard.mountpoint, r == -EIO ? "it failed" : strerror(-r), opt->guard.mountpoint);
}

void utab_remove(const struct options *opt)
{
    int r = geteuid() != 0 ? 0
                           : run_program((const char *const[]){"/bin/umount", "--fake", "-i", "-c",
                                                               opt->guard.mountpoint, NULL});
    if (r < 0)
        log_msg(LOG_DEBUG, "the entry of %s in mount(8)'s table stays", opt->guard.mountpoint);
}
