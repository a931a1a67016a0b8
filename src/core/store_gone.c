/* store_gone.c: is a file gone, or does only the storage not find it just now? */
#include "core/store.h"

#include <fcntl.h>

int store_gone(const struct store *s, int fd, const struct io_handle *h)
{
    _cleanup_close_ int found = -1;
    struct stat st;
    int r = fd >= 0 ? io_fresh_stat(fd, &st) : -ESTALE;

    if (r == 0)
        return st.st_nlink == 0;
    if (r != -ESTALE)
        return r;
    r = store_same(s);
    if (r < 0)
        return r;
    found = io_fresh_handle(s->root_fd, h, O_PATH, NULL);
    if (found >= 0)
        return 0;
    if (found != -ESTALE)
        return found;
    r = store_same(s);
    return r < 0 ? r : 1;
}
