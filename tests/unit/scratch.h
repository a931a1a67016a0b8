/* scratch.h: a directory of its own for each test, and a small file system that can be full or
 * read-only. */
#ifndef SCRATCH_H
#define SCRATCH_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char scratch[64]; /* path of the directory; "": none */

static inline int scratch_unlink(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(path);
}

static inline void scratch_remove(void)
{
    char path[128];

    if (scratch[0] == '\0')
        return;
    snprintf(path, sizeof(path), "%s/small", scratch);
    umount2(path, MNT_DETACH);
    nftw(scratch, scratch_unlink, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
    scratch[0] = '\0';
}

/* .init; .fini is scratch_remove. A test that failed in the plain runner does not come to its
 * .fini: the next one cleans up. */
static inline void scratch_make(void)
{
    static bool registered;
    const char *tmp = getenv("TMPDIR");

    scratch_remove();
    if (!registered)
        atexit(scratch_remove);
    registered = true;
    umask(022);
    snprintf(scratch, sizeof(scratch), "%.40s/dg-unit-XXXXXX", tmp && tmp[0] ? tmp : "/tmp");
    if (!mkdtemp(scratch)) {
        perror("mkdtemp");
        abort();
    }
}

static inline const char *scratch_path(const char *name)
{
    static char path[4][256];
    static unsigned next;
    char *p = path[next++ % 4];

    snprintf(p, sizeof(path[0]), "%s/%s", scratch, name);
    return p;
}

/* A copy of a view in this namespace would keep it alive: its own umount(8) leaves copies where
 * propagation is private, and its daemon waits for them. */
static inline void scratch_forget_views(void)
{
    char line[4096], path[1024], type[64];
    FILE *f = fopen("/proc/self/mountinfo", "re");

    while (f && fgets(line, sizeof(line), f)) { /* proc(5): ID PARENT MAJ:MIN ROOT MOUNTPOINT
                                                   OPTIONS [FIELDS] - TYPE ... */
        const char *tail = strstr(line, " - ");

        if (tail && sscanf(tail, " - %63s", type) == 1 && strncmp(type, "fuse.", 5) == 0 &&
            sscanf(line, "%*s %*s %*s %*s %1023s", path) == 1)
            (void)umount2(path, MNT_DETACH);
    }
    if (f)
        fclose(f);
}

/* Mounts a tmpfs with these options at SCRATCH/small, in a mount namespace of this process, so that
 * nothing is left whatever becomes of the test. false: not permitted. */
static inline bool scratch_mount(const char *options)
{
    const char *path = scratch_path("small");

    if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL) < 0)
        return false;
    scratch_forget_views();
    return mkdir(path, 0700) == 0 && mount("diskguard-unit", path, "tmpfs", 0, options) == 0;
}

static inline bool scratch_remount(unsigned long flags)
{
    return mount("diskguard-unit", scratch_path("small"), "tmpfs", MS_REMOUNT | flags, "") == 0;
}

/* Writes until the file system has no room left. */
static inline void scratch_fill(const char *name)
{
    static const char zero[4096];
    int fd = open(scratch_path(name), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

    for (size_t step = sizeof(zero); step > 0; step /= 8)
        while (write(fd, zero, step) > 0)
            ;
    close(fd);
}

static inline void scratch_write(const char *name, const void *data, size_t len)
{
    int fd = open(scratch_path(name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    if (fd < 0 || write(fd, data, len) != (ssize_t)len)
        abort();
    close(fd);
}

static inline size_t scratch_read(const char *name, void *data, size_t size)
{
    int fd = open(scratch_path(name), O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, data, size);

    if (n < 0)
        abort();
    close(fd);
    return (size_t)n;
}

/* Runs fn in a child process and returns its answer, or -1. The child ends by SIGKILL, like a
 * crash: no atexit, and no check for leaks of what the parent had on its heap. */
static inline int scratch_child(int (*fn)(void))
{
    int ends[2], answer = -1, status;
    pid_t pid;

    if (pipe(ends) < 0 || (pid = fork()) < 0)
        return -1;
    if (pid == 0) {
        answer = fn();
        if (write(ends[1], &answer, sizeof(answer)) == sizeof(answer))
            kill(getpid(), SIGKILL);
        _exit(1);
    }
    close(ends[1]);
    if (read(ends[0], &answer, sizeof(answer)) != sizeof(answer))
        answer = -1;
    close(ends[0]);
    waitpid(pid, &status, 0);
    return answer;
}

/* Number of entries of a directory, without . and .. */
static inline int scratch_count(const char *name)
{
    DIR *dir = opendir(scratch_path(name));
    int n = -2;

    if (!dir)
        return -1;
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

#endif
