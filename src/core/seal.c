#include "core/seal.h"

#include <string.h>

#include "core/hook.h"

int seal_record(struct seal *s)
{
    s->rec->seq++;
    if (s->journal) {
        int r = journal_put(s->journal, s->rec);
        if (r < 0)
            return r;
    }
    return claim_update(s->store, s->rec);
}

int seal_compare(int fd, const struct record *rec, enum header_state *ret)
{
    if (rec->plan.n == 0) {
        *ret = HEADER_NOPLAN;
        return 0;
    }
    _cleanup_header_ struct header *h = header_new();
    if (!h)
        return -ENOMEM;
    int r = header_read(fd, &rec->plan, h);
    if (r < 0)
        return r;
    struct view v = header_view(h);
    *ret = overlay_compare(&rec->plan, &v, rec->cut);
    return 0;
}

/* Reads everything back past the cache and wants exactly one side. A plan whose sides are equal is TRUE and
 * fits both. */
static int verify(int fd, const struct record *rec, enum header_state want)
{
    enum header_state state;
    int r = seal_compare(fd, rec, &state);
    if (r < 0)
        return r;
    return state == want || state == HEADER_TRUE || state == HEADER_NOPLAN ? 0 : -EIO;
}

int seal_write(struct seal *s)
{
    for (unsigned i = 0; i < s->rec->plan.n; i++) {
        const struct extent *e = &s->rec->plan.ext[i];
        int r = io_header_write(s->fd, e->sealed, e->len, e->off);
        if (r < 0)
            return r;
    }
    int r = io_fsync(s->fd);
    if (r < 0)
        return r;
    r = verify(s->fd, s->rec, HEADER_SEALED);
    if (r < 0)
        return r;

    struct stat st;
    r = io_fresh_stat(s->fd, &st);
    if (r < 0)
        return r;
    s->rec->mtime_sealed = st.st_mtim;
    s->rec->step = STEP_SEALED;
    s->rec->seq++;
    return s->journal ? journal_put(s->journal, s->rec) : 0;
}

/* Writes the true bytes of the extents back, last sealed first, so that each state on the way is refused by
 * raw openers. What a truncation has cut off is left off. */
static int write_truth(int fd, const struct record *rec)
{
    struct stat st;
    int r = io_fresh_stat(fd, &st);
    if (r < 0)
        return r;
    uint64_t size = (uint64_t)st.st_size;
    for (unsigned i = rec->plan.n; i-- > 0;) {
        const struct extent *e = &rec->plan.ext[i];
        if (e->off >= size)
            continue;
        r = io_header_write(fd, e->truth, (size_t)DG_MIN(e->len, size - e->off), e->off);
        if (r < 0)
            return r;
    }
    r = io_fsync(fd);
    if (r < 0)
        return r;
    return verify(fd, rec, HEADER_TRUE);
}

static int restore_header(struct seal *s)
{
    int r = 0;
    if (s->rec->step != STEP_RESTORING && s->rec->step != STEP_STUCK) {
        s->rec->step = STEP_RESTORING;
        r = seal_record(s);
    } else {
        r = claim_check(s->store, s->rec); /* a retry: somebody may have taken over since */
    }
    if (r < 0)
        return r;

    enum header_state state;
    r = seal_compare(s->fd, s->rec, &state);
    if (r < 0)
        return r;
    switch (state) {
    case HEADER_TRUE:
    case HEADER_NOPLAN:
        return io_fsync(s->fd); /* they may stand in this host's cache alone, from an attempt that failed */
    case HEADER_SEALED:
    case HEADER_MIXED:
        return write_truth(s->fd, s->rec);
    case HEADER_ALIEN:
    case HEADER_SHORT:
        break;
    }
    return -EUCLEAN;
}

int seal_restore(struct seal *s, const struct timespec *mtime)
{
    uint64_t ino = s->rec->ino, generation = s->rec->generation;
    int r;
    if (s->rec->step == STEP_FREE) /* a retry after everything but the row was done */
        return s->journal ? journal_remove(s->journal, ino, generation) : 0;
    if (s->rec->plan.n > 0) {
        r = restore_header(s);
        if (r < 0)
            return r;
        if (mtime) {
            io_set_mtime(s->fd, *mtime);
            r = io_fsync(s->fd);
            if (r < 0)
                return r;
        }
    }
    if (s->unfence)
        io_fence_drop(s->fd, s->store->fence);
    enum claim_step step = s->rec->step;
    r = claim_free(s->store, s->rec);
    if (r < 0) {
        /* The header is true, verified and durable: a retry has only the claim to free. If the mark did land
         * and a successor came, claim_free knows it, while a look at the header would be a look at the
         * successor's. */
        s->rec->plan.n = 0;
        s->rec->step = step;
        return r;
    }
    /* From here the image is anybody's. A row that stays behind is forgotten by recovery: its claim is free.
     */
    return s->journal ? journal_remove(s->journal, ino, generation) : 0;
}
