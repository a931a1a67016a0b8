#include "core/seal.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/hook.h"
#include "core/seal_priv.h"

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
    int r = 0;
    /* Also on a disk of this host alone: what the disk took is the question. */
    for (unsigned i = 0; r == 0 && i < rec->plan.n; i++)
        r = io_header_drop(fd, rec->plan.ext[i].off, rec->plan.ext[i].len);
    if (r == 0)
        r = header_read(fd, &rec->plan, h);
    if (r < 0)
        return r;
    struct excerpt v = header_view(h);
    *ret = overlay_compare(&rec->plan, &v, rec->cut);
    return 0;
}

/* Reads everything back past the cache and wants exactly one side. A plan whose sides are equal is
 * TRUE and fits both. */
static int verify(int fd, const struct record *rec, enum header_state want)
{
    enum header_state state;
    int r = seal_compare(fd, rec, &state);
    if (r < 0)
        return r;
    return state == want || state == HEADER_TRUE || state == HEADER_NOPLAN ? 0 : -EIO;
}

static int compare_times(const struct timespec *a, const struct timespec *b)
{
    if (a->tv_sec != b->tv_sec)
        return a->tv_sec < b->tv_sec ? -1 : 1;
    return (a->tv_nsec > b->tv_nsec) - (a->tv_nsec < b->tv_nsec);
}

bool seal_was_taken(const struct record *rec)
{
    return rec->plan.n > 0 || rec->mtime_sealed.tv_sec != 0 || rec->mtime_sealed.tv_nsec != 0;
}

int seal_note_shown(struct seal *s)
{
    struct stat st;
    if (s->rec->mtime_sealed.tv_sec != 0 || s->rec->mtime_sealed.tv_nsec != 0)
        return 0;
    int r = io_fresh_stat(s->fd, &st);
    if (r == 0)
        s->rec->mtime_sealed = st.st_mtim;
    return r;
}

int seal_write(struct seal *s)
{
    for (unsigned i = 0; i < s->rec->plan.n; i++) {
        const struct extent *e = &s->rec->plan.ext[i];
        int r = io_header_write(s->fd, e->sealed, e->len, e->off);
        if (r == 0)
            r = seal_note_shown(s);
        if (r < 0)
            return r;
    }
    int r = io_fsync(s->fd);
    if (r < 0)
        return r;
    r = verify(s->fd, s->rec, HEADER_SEALED);
    if (r < 0)
        return r;
    s->rec->step = STEP_SEALED;
    s->rec->seq++;
    /* Lazy: the armed row and the claim undo the same bytes. */
    return s->journal ? journal_put_lazy(s->journal, s->rec) : 0;
}

/* Writes the true bytes of the extents back, last sealed first, so that each state on the way is
 * refused by raw openers; not durable yet. What a truncation has cut off is left off. */
static int write_truth(int fd, const struct record *rec, struct seal_shown *shown)
{
    struct stat st;
    int r = io_fresh_stat(fd, &st);
    if (r < 0)
        return r;
    shown->last = shown->restored = st.st_mtim;
    uint64_t size = (uint64_t)st.st_size;
    for (unsigned i = rec->plan.n; i-- > 0;) {
        const struct extent *e = &rec->plan.ext[i];
        if (e->off >= size)
            continue;
        r = io_header_write(fd, e->truth, (size_t)DG_MIN(e->len, size - e->off), e->off);
        if (r == 0 && rec->chosen && compare_times(&shown->restored, &shown->last) == 0)
            r = io_fresh_stat(fd, &st);
        if (r < 0)
            return r;
        shown->restored = st.st_mtim;
    }
    return 0;
}

/* ---- mtime ---- */

/* Sets it and says what the file system made of it. */
static int set_and_look(int fd, struct timespec want, struct timespec *ret)
{
    struct stat st;
    int set = io_set_mtime(fd, want), r = io_fresh_stat(fd, &st);
    if (r == 0)
        *ret = st.st_mtim;
    return r < 0 ? r : set;
}

/* The next time of the clock, for one who may not choose. Bounded: the clock may have been set
 * back. */
static int wait_for_clock(int fd, const struct timespec *shown)
{
    struct timespec got = *shown;
    int r = 0;
    for (unsigned i = 0; i < 100; i++) {
        r = set_and_look(fd, (struct timespec){.tv_nsec = UTIME_NOW}, &got);
        if (r < 0 || compare_times(&got, shown) > 0)
            break;
        usleep(20000);
    }
    return r;
}

/* shown: the last one of the sealed state, or of the restore on its way. */
static int renew(int fd, const struct record *rec, struct timespec shown)
{
    struct timespec want = {.tv_sec = shown.tv_sec + SEAL_MTIME_STEP}, got = shown;
    /* Of holds that follow quickly each has its own. */
    if (rec->mtime.tv_sec == want.tv_sec)
        want.tv_nsec = rec->mtime.tv_nsec + 1;
    if (want.tv_nsec == 1000000000)
        want = (struct timespec){.tv_sec = want.tv_sec + 1};
    int r = set_and_look(fd, (struct timespec){.tv_nsec = UTIME_NOW}, &got);
    /* A file system with whole seconds, or every other one, rounds down. */
    for (time_t step = 0; r == 0 && compare_times(&got, &want) < 0 && step <= SEAL_MTIME_STEP;
         step++)
        r = set_and_look(fd, (struct timespec){want.tv_sec + step, step ? 0 : want.tv_nsec}, &got);
    return r == -EPERM || r == -EACCES ? wait_for_clock(fd, &shown) : r;
}

/* Sealed bytes were seen with the mtimes from the seal to the last write, and then while the
 * restore wrote. */
static bool was_shown(const struct record *rec, const struct seal_shown *shown,
                      const struct timespec *end, const struct timespec *t)
{
    const struct timespec *first = &rec->mtime_sealed;
    if (first->tv_sec == 0 && first->tv_nsec == 0)
        return true; /* cannot be told */
    return (compare_times(t, first) >= 0 && compare_times(t, &shown->last) <= 0) ||
           (compare_times(t, &shown->restored) >= 0 && compare_times(t, end) <= 0);
}

int seal_new_mtime(int fd, const struct record *rec, const struct seal_shown *shown)
{
    struct stat st;
    int r = io_fresh_stat(fd, &st);
    if (r < 0)
        return r;
    struct seal_shown all = shown ? *shown : (struct seal_shown){st.st_mtim, st.st_mtim};
    struct timespec last = st.st_mtim;
    if (compare_times(&all.last, &last) > 0) /* the clock was set back */
        last = all.last;
    if (compare_times(&rec->mtime_sealed, &last) > 0)
        last = rec->mtime_sealed;
    bool chosen = rec->chosen && !was_shown(rec, &all, &st.st_mtim, &rec->mtime_chosen);
    r = chosen ? io_set_mtime(fd, rec->mtime_chosen) : renew(fd, rec, last);
    if (chosen && r < 0)
        r = renew(fd, rec, last);
    if (r == -EPERM || r == -EACCES || r == -ENOSYS || r == -EOPNOTSUPP || r == -EINVAL)
        r = 0;
    return r < 0 ? r : io_fsync(fd);
}

/* ---- restore ---- */

/* HEADER_TRUE, _SEALED or _MIXED leads to TRUE, with an mtime of its own. The true bytes and the
 * mtime become durable together: after a crash in between that mtime may be seen with the seal, but
 * the restore then sets a later one. Not so a chosen one, which may be old. */
int seal_undo(int fd, const struct record *rec)
{
    enum header_state state;
    struct seal_shown shown, *written = NULL;
    int r = seal_compare(fd, rec, &state);
    if (r < 0)
        return r;
    switch (state) {
    case HEADER_TRUE:
    case HEADER_NOPLAN:
        /* they may stand in this host's cache alone, from an attempt that failed */
        break;
    case HEADER_SEALED:
    case HEADER_MIXED:
        r = write_truth(fd, rec, &shown);
        written = &shown;
        break;
    case HEADER_ALIEN:
    case HEADER_SHORT:
        return -EUCLEAN;
    }
    if (r == 0 && rec->chosen)
        r = io_fsync(fd);
    if (r == 0)
        r = seal_new_mtime(fd, rec, written);
    return r == 0 && written ? verify(fd, rec, HEADER_TRUE) : r;
}

/* The claim is durable before a byte is written: it may stand there with an older plan. The row is
 * lazy, for recovery takes the newer of both. */
static int say_restoring(struct seal *s)
{
    s->rec->step = STEP_RESTORING;
    s->rec->seq++;
    int r = s->journal ? journal_put_lazy(s->journal, s->rec) : 0;
    return r < 0 ? r : claim_update(s->store, s->rec);
}

/* ret_told: the claim has the plan that was undone. */
static int restore_header(struct seal *s, bool *ret_told)
{
    int r = 0;
    if (s->rec->step != STEP_RESTORING && s->rec->step != STEP_STUCK) {
        r = say_restoring(s);
        *ret_told = r == 0;
    } else {
        r = claim_check(s->store, s->rec); /* a retry: somebody may have taken over since */
    }
    return r < 0 ? r : seal_undo(s->fd, s->rec);
}

int seal_restore(struct seal *s)
{
    uint64_t ino = s->rec->ino, generation = s->rec->generation;
    bool told = true;
    int r;
    if (s->rec->step == STEP_FREE) /* a retry after everything but the row was done */
        return s->journal ? journal_remove(s->journal, ino, generation) : 0;
    if (seal_was_taken(s->rec)) {
        told = false;
        r = restore_header(s, &told);
        if (r < 0)
            return r;
    }
    if (s->unfence)
        io_fence_drop(s->fd, s->store->fence);
    enum claim_step step = s->rec->step;
    r = told ? claim_free_lazy(s->store, s->rec) : claim_free(s->store, s->rec);
    if (r < 0) {
        /* The header is true, verified and durable: a retry has only the claim to free. If the mark
         * did land and a successor came, claim_free knows it, while a look at the header would be a
         * look at the successor's. */
        s->rec->plan.n = 0;
        s->rec->mtime_sealed = (struct timespec){0};
        s->rec->step = step;
        return r;
    }
    /* From here the image is anybody's. A row that stays behind is forgotten by recovery: its claim
     * is free.
     */
    return s->journal ? journal_remove(s->journal, ino, generation) : 0;
}
