/* hook_stale.c: see hook.h. It is a file of its own because unit tests bring their own hook_step()
 * and must not link hook.c. */
#include "base/hook.h"

#ifdef DG_HOOKS

#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#define FDS 4096

/* inode number of the descriptor that has answered ESTALE; 0: none */
static _Atomic unsigned long stuck[FDS];

static bool listed(const char *variable, unsigned long ino)
{
    const char *path = getenv(variable);
    FILE *f = path ? fopen(path, "re") : NULL;
    unsigned long one;
    bool found = false;

    if (!f)
        return false;
    while (!found && fscanf(f, "%lu", &one) == 1)
        found = one == ino;
    fclose(f);
    return found;
}

void hook_hang(unsigned long ino)
{
    while (listed("DISKGUARD_HOOK_HANG", ino))
        (void)poll(NULL, 0, 5);
}

bool hook_stale(int fd, unsigned long ino, bool dir)
{
    hook_hang(ino);

    bool stale = listed("DISKGUARD_HOOK_STALE", ino);

    if (fd < 0 || fd >= FDS || dir)
        return stale;
    if (stale)
        atomic_store(&stuck[fd], ino);
    return atomic_load(&stuck[fd]) == ino;
}

void hook_stale_copy(int from, int to)
{
    if (to >= 0 && to < FDS)
        atomic_store(&stuck[to], from >= 0 && from < FDS ? atomic_load(&stuck[from]) : 0);
}

#endif
