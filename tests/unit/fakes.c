/* fakes.c: see fakes.h. */
#include "fakes.h"

#include <stdlib.h>

int fake_fencing = -1, fake_gone = -1;
_Thread_local int fake_mallocs = -1;
_Thread_local bool fake_mallocs_all;

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

static bool no_memory(void)
{
    if (fake_mallocs < 0)
        return false;
    if (fake_mallocs > 0) {
        fake_mallocs--;
        return false;
    }
    if (!fake_mallocs_all)
        fake_mallocs = -1;
    return true;
}

void *__real_malloc(size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_malloc(size_t n)
{
    return no_memory() ? NULL : __real_malloc(n);
}

void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
    return no_memory() ? NULL : __real_calloc(n, size);
}
