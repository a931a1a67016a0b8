/* claim_floor.c: the numbers that are left of claims which are not: see "Numbers" in claim.h.
 *
 * DATASTORE/.diskguard/floor is a file whose size is the floor; what it holds means nothing. It is
 * raised by writing one byte at its new end: that never shrinks a file, so two raises in any order,
 * one of them late or repeated, leave the greater. */
#include "core/claim_priv.h"

#include <fcntl.h>

#include "base/hook.h"

#define FLOOR_FILE "floor"
/* bytes: far below any file system's largest file, and above what counting reaches */
#define FLOOR_MAX (UINT64_C(1) << 40)

static int floor_read(const struct store *s, uint64_t *ret)
{
    _cleanup_close_ int fd = io_fresh_open(s->dir_fd, FLOOR_FILE, O_PATH | O_NOFOLLOW);
    struct stat st = {0};
    int r = fd == -ENOENT ? 0 : fd < 0 ? fd : io_fresh_stat(fd, &st);

    if (r == 0 && fd >= 0 && !S_ISREG(st.st_mode))
        r = -EBADMSG;
    if (r < 0)
        return r == -ESTALE ? -EIO : r;
    *ret = (uint64_t)st.st_size;
    return 0;
}

int claim_floor_raise(const struct store *s, uint64_t generation)
{
    _cleanup_close_ int fd = -1;
    uint64_t now = 0;
    int r = HOOK_FAIL("claim.floor");

    if (r < 0 || generation == 0)
        return r;
    if (generation > FLOOR_MAX)
        return -EFBIG;
    fd = io_open_beneath(s->dir_fd, FLOOR_FILE, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (fd < 0)
        return fd;
    r = io_pwrite_all(fd, "\n", 1, generation - 1);
    if (r == 0)
        r = io_fsync(fd);
    if (r == 0)
        r = io_fsync(s->dir_fd);
    if (r == 0)
        r = floor_read(s, &now);
    if (r < 0)
        return r == -ESTALE ? -EIO : r;
    return now >= generation ? 0 : -EIO;
}

int claim_next(const struct store *s, const struct claim *c, uint64_t *ret)
{
    uint64_t last = c->generation;
    int r = c->kind == CLAIM_NONE ? floor_read(s, &last) : 0;

    if (r == 0 && last == UINT64_MAX)
        r = -EOVERFLOW;
    if (r < 0)
        return r;
    *ret = last + 1;
    return 0;
}

/* Is this the mark of an image that exists no more? A handle that cannot be asked says no. */
static bool is_gone(const struct store *s, const struct claim *c)
{
    return c->kind == CLAIM_FREE && store_gone(s, -1, &c->rec.handle) == 1;
}

struct gone {
    const struct store *s;
    struct claim_entry *mark;
    size_t n;
};

static int see_claim(void *arg, uint64_t ino, const struct claim *c)
{
    struct gone *g = arg;
    struct claim_entry *more;

    if (!is_gone(g->s, c))
        return 0;
    more = reallocarray(g->mark, g->n + 1, sizeof(*more));
    if (!more)
        return -ENOMEM;
    g->mark = more;
    g->mark[g->n++] = (struct claim_entry){ino, c->generation};
    return 0;
}

int claim_sweep_gone(const struct store *s, unsigned *ret_gone)
{
    struct gone g = {.s = s};
    int r = claim_each(s, see_claim, &g);

    unsigned gone = 0;

    for (size_t i = 0; r == 0 && i < g.n; i++) {
        r = claim_forget(s, g.mark[i].ino, g.mark[i].generation);
        gone += r == 0;
        r = r == -EFBIG ? 0 : r; /* a number that somebody made up: it stays */
    }
    free(g.mark);
    if (r < 0)
        return r;
    *ret_gone = gone;
    return 0;
}
