#include "core/io.h"

#include <fcntl.h>

#include "base/hook.h"

int io_header_fallocate(int fd, int mode, uint64_t off, uint64_t len)
{
    int r = HOOK_FAIL("io.header.fallocate");
    if (r < 0)
        return r;
    do
        r = fallocate(fd, mode, (off_t)off, (off_t)len) < 0 ? -errno : 0;
    while (r == -EINTR);
    return r;
}

int io_header_truncate(int fd, uint64_t size)
{
    int r = HOOK_FAIL("io.header.truncate");
    if (r < 0)
        return r;
    do
        r = ftruncate(fd, (off_t)size) < 0 ? -errno : 0;
    while (r == -EINTR);
    return r;
}
