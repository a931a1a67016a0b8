/* maker.c: see maker.h. */
#include "guard/maker.h"

#include <string.h>

#include "base/sync.h"
#include "core/io.h"
#include "guard/image.h"
#include "node/opener.h"

#define MAKERS_MAX 4096u

struct maker {
    struct io_handle handle; /* an inode number may be used again */
    struct opener who;
};

/* Keys apart from the rest, for a look goes over all of them. A free place has ino 0. */
struct maker_table {
    struct mutex lock;
    unsigned next GUARDED_BY(lock); /* the oldest */
    struct {
        dev_t dev;
        ino_t ino;
    } key[MAKERS_MAX] GUARDED_BY(lock);
    struct maker maker[MAKERS_MAX] GUARDED_BY(lock);
};

struct maker_table *maker_table_new(void)
{
    struct maker_table *t = calloc(1, sizeof(*t));
    if (t)
        mutex_init(&t->lock);
    return t;
}

void maker_table_free(struct maker_table *t)
{
    if (!t)
        return;
    mutex_destroy(&t->lock);
    free(t);
}

/* MAKERS_MAX: none. */
static unsigned find_locked(const struct maker_table *t, const struct inode *i) REQUIRES(t->lock)
{
    unsigned n = 0;
    while (n < MAKERS_MAX && !(t->key[n].ino == i->ino && t->key[n].dev == i->dev))
        n++;
    return n;
}

void maker_note(struct maker_table *t, const struct inode *i, const struct opener *who)
{
    struct maker m = {.who = *who};
    if (who->pid == 0 || io_handle_get(i->fd, &m.handle) < 0)
        return;
    mutex_lock(&t->lock);
    unsigned n = find_locked(t, i);
    if (n == MAKERS_MAX) {
        n = t->next;
        t->next = (n + 1) % MAKERS_MAX;
    }
    t->key[n].dev = i->dev;
    t->key[n].ino = i->ino;
    t->maker[n] = m;
    mutex_unlock(&t->lock);
}

bool maker_is(struct maker_table *t, const struct inode *i, const struct opener *who)
{
    struct io_handle handle;
    if (who->pid == 0 || io_handle_get(i->fd, &handle) < 0)
        return false;
    mutex_lock(&t->lock);
    unsigned n = find_locked(t, i);
    bool same = n < MAKERS_MAX && io_handle_equal(&t->maker[n].handle, &handle) &&
                opener_same(&t->maker[n].who, who); /* it asks, so it lives */
    mutex_unlock(&t->lock);
    return same;
}

void maker_forget(struct maker_table *t, const struct inode *i)
{
    mutex_lock(&t->lock);
    unsigned n = find_locked(t, i);
    if (n < MAKERS_MAX)
        t->key[n].ino = 0;
    mutex_unlock(&t->lock);
}
