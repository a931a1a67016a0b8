/* manager.c: see manager.h. */
#include "guard/manager.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "guard/guard.h"

bool image_is_manager(const struct guard *g, const struct opener *who)
{
    static const char deleted[] = " (deleted)"; /* proc(5): the package was upgraded meanwhile */
    char link[48], path[PATH_MAX];
    if (who->uid != 0 || who->pid == 0)
        return false;
    snprintf(link, sizeof(link), "/proc/%llu/exe", (unsigned long long)who->pid);
    ssize_t n = readlink(link, path, sizeof(path) - 1);
    if (n <= 0)
        return false;
    path[n] = '\0';
    size_t cut = (size_t)n > strlen(deleted) ? (size_t)n - strlen(deleted) : 0;
    if (cut > 0 && strcmp(path + cut, deleted) == 0)
        path[cut] = '\0';
    const char *slash = strrchr(path, '/');
    for (char **m = g->opt.managers; m && *m; m++)
        if (strcmp(*m, **m == '/' || !slash ? path : slash + 1) == 0)
            return true;
    return false;
}

bool image_manager_waits(const struct guard *g, const struct opener *who, int flags)
{
    return (flags & O_ACCMODE) != O_RDONLY && !(flags & O_TRUNC) && image_is_manager(g, who);
}

void image_manager_expect(struct handle *h)
{
    h->first.managed = true;
    atomic_store(&h->first.state, FIRST_DUE);
}
