/* fakes.c: see fakes.h. */
#include "fakes.h"

int fake_fencing = -1, fake_gone = -1;

enum fencing __real_io_fencing(int fd, enum fence_kind kind, const char **ret_why);
enum fencing __wrap_io_fencing(int fd, enum fence_kind kind, const char **ret_why);
enum fencing __wrap_io_fencing(int fd, enum fence_kind kind, const char **ret_why)
{
    if (fake_fencing < 0)
        return __real_io_fencing(fd, kind, ret_why);
    if (ret_why)
        *ret_why = "a test says so";
    return (enum fencing)fake_fencing;
}

int __real_store_gone(const struct store *s, int fd, const struct io_handle *h);
int __wrap_store_gone(const struct store *s, int fd, const struct io_handle *h);
int __wrap_store_gone(const struct store *s, int fd, const struct io_handle *h)
{
    return fake_gone < 0 ? __real_store_gone(s, fd, h) : fake_gone;
}
