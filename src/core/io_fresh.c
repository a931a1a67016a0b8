/* io_fresh.c: the deciding reads that io.c does not need for itself. What each rests on: io.h. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>

#include "core/io.h"

#define OPEN_TRIES 8 /* each lost one means that another host replaced the file meanwhile */

/* The attributes themselves do not matter: fetching them drops the names that are cached below. */
static int force_names(int dirfd)
{
    struct stat st;

    return io_fresh_stat(dirfd, &st);
}

/* One attempt; every directory on the way is forced before a name is looked up in it. */
static int open_once(int dirfd, const char *path, int flags)
{
    char name[NAME_MAX + 1];
    int at = dirfd, r;

    if (path[0] == '/')
        return -EXDEV;
    for (;;) {
        size_t len = strcspn(path, "/"), slashes = strspn(path + len, "/");
        bool last = path[len + slashes] == '\0';
        int next;

        r = len < sizeof(name) ? force_names(at) : -ENAMETOOLONG;
        if (r < 0)
            break;
        memcpy(name, path, len);
        name[len] = '\0';
        r = next =
            io_open_beneath(at, name, last ? flags | (slashes ? O_DIRECTORY : 0) : O_PATH, 0);
        if (last || r < 0)
            break;
        if (at != dirfd)
            close(at);
        at = next;
        path += len + slashes;
    }
    if (at != dirfd)
        close(at);
    return r;
}

int io_fresh_open(int dirfd, const char *path, int flags)
{
    int r = -ESTALE;

    if (flags & (O_CREAT | O_TRUNC))
        return -EINVAL; /* it only looks */
    for (unsigned tries = 0; r == -ESTALE && tries < OPEN_TRIES; tries++) {
        r = open_once(dirfd, path, flags);
        if (r == -ESTALE && force_names(dirfd) < 0)
            break; /* the directory itself is gone */
    }
    return r;
}

int io_fresh_handle(int mount_fd, const struct io_handle *h, int flags, struct stat *ret)
{
    _cleanup_close_ int fd = io_handle_open(mount_fd, h, flags);
    struct stat st;
    int r;

    if (fd < 0)
        return fd;
    r = io_fresh_stat(fd, &st);
    if (r == 0 && st.st_nlink == 0)
        r = -ESTALE;
    if (r < 0)
        return r;
    if (ret)
        *ret = st;
    return base_steal_fd(&fd);
}

int io_fresh_data(int fd, void *buf, size_t len, uint64_t off)
{
    struct stat st;
    int r = io_cache_drop(fd);

    if (r == 0)
        r = io_fresh_stat(fd, &st); /* no read goes beyond the size that this host knows of */
    return r < 0 ? r : io_pread_all(fd, buf, len, off);
}
