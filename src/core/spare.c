/* spare.c: see spare.h. */
#include "core/spare.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/sync.h"

/* "<host uuid>.<daemon uuid>.<counter>", as claim.c names its own, with counters that those never
 * reach. */
#define NAME_SIZE (2 * (DG_UUID_LEN + 1) + 20 + 1)
#define FIRST (UINT64_C(1) << 62)

struct spares {
    dg_uuid host, daemon;
    atomic_flag filling; /* one thread at a time */
    struct mutex mutex;
    unsigned n GUARDED_BY(mutex);
    uint64_t number[SPARE_MAX] GUARDED_BY(mutex);
    uint64_t next; /* of whoever fills */
};

struct spares *spares_new(const struct host *h)
{
    struct spares *sp = calloc(1, sizeof(*sp));

    if (!sp)
        return NULL;
    memcpy(sp->host, h->uuid, sizeof(dg_uuid));
    memcpy(sp->daemon, h->daemon, sizeof(dg_uuid));
    atomic_flag_clear(&sp->filling);
    mutex_init(&sp->mutex);
    return sp;
}

static void name_of(const struct spares *sp, uint64_t number, char ret[NAME_SIZE])
{
    snprintf(ret, NAME_SIZE, "%s.%s.%llu", sp->host, sp->daemon,
             (unsigned long long)(FIRST + number));
}

void spares_end(struct store *s)
{
    struct spares *sp = s->spares;
    char name[NAME_SIZE];

    if (!sp)
        return;
    for (unsigned i = 0; i < sp->n; i++) {
        name_of(sp, sp->number[i], name);
        unlinkat(s->tmp_fd, name, 0); /* else the next start sweeps it */
    }
    mutex_destroy(&sp->mutex);
    free(sp);
    s->spares = NULL;
}

bool spare_is_name(const char *name)
{
    const char *digits = strrchr(name, '.');
    uint64_t n;

    return digits && base_u64(digits + 1, &n) == 0 && n >= FIRST;
}

/* Its own calls, and not those of io.h, whose hooks count the steps of a claim. */
static int write_all(int fd, const char *text, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = pwrite(fd, text + done, len - done, (off_t)done);

        if (n < 0 && errno != EINTR)
            return -errno;
        done += n > 0 ? (size_t)n : 0;
    }
    return ftruncate(fd, (off_t)len) < 0 || fsync(fd) < 0 ? -errno : 0;
}

static int make_one(const struct store *s, struct spares *sp)
{
    static const char zeros[SPARE_SIZE];
    uint64_t number = sp->next++;
    char name[NAME_SIZE];

    name_of(sp, number, name);
    int fd = openat(s->tmp_fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    int r = write_all(fd, zeros, sizeof(zeros));
    close(fd);
    if (r < 0) {
        unlinkat(s->tmp_fd, name, 0);
        return r;
    }
    mutex_lock(&sp->mutex);
    sp->number[sp->n++] = number;
    mutex_unlock(&sp->mutex);
    return 0;
}

static unsigned count(struct spares *sp)
{
    mutex_lock(&sp->mutex);
    unsigned n = sp->n;
    mutex_unlock(&sp->mutex);
    return n;
}

void spares_fill(const struct store *s)
{
    struct spares *sp = s->spares;
    int r = 0;

    if (!sp || s->read_only || atomic_flag_test_and_set(&sp->filling))
        return;
    while (r == 0 && count(sp) < SPARE_MAX)
        r = make_one(s, sp);
    atomic_flag_clear(&sp->filling);
    if (r < 0)
        log_debug("%s: %u of %u spare records: %s", s->path, count(sp), SPARE_MAX, strerror(-r));
}

/* true: one less is there, and this is its name. */
static bool pick(struct spares *sp, unsigned keep, char ret[NAME_SIZE])
{
    mutex_lock(&sp->mutex);
    bool have = sp->n > keep;
    if (have)
        name_of(sp, sp->number[--sp->n], ret);
    mutex_unlock(&sp->mutex);
    return have;
}

int spares_take(const struct store *s, unsigned keep, const char *name, const void *text,
                size_t len)
{
    struct spares *sp = s->spares;
    char spare[NAME_SIZE];
    int r = -ENOENT;

    if (!sp || len > SPARE_SIZE)
        return -ENOSPC;
    while (r == -ENOENT) {
        if (!pick(sp, keep, spare))
            return -ENOSPC;
        r = renameat(s->tmp_fd, spare, s->tmp_fd, name) < 0 ? -errno : 0;
    }
    if (r < 0)
        return r;
    int fd = openat(s->tmp_fd, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    r = fd < 0 ? -errno : write_all(fd, text, len);
    if (r == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    unlinkat(s->tmp_fd, name, 0);
    return r;
}
