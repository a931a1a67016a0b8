#include "core/seal.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/hook.h"

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
    /* On a local disk as well: the question is what the disk took. */
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

/* Notes the first mtime that went with sealed bytes, which have just been written. Looks once in a
 * hold. */
static int note_shown(struct seal *s)
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
            r = note_shown(s);
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

/* Writes the true bytes of the extents back, those first that were sealed last: raw openers
 * refuse each state on the way. Not durable yet. What a truncation has cut off stays off. */
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

/* Sets mtime and returns what the file system made of it. */
static int set_and_look(int fd, struct timespec want, struct timespec *ret)
{
    struct stat st;
    int set = io_set_mtime(fd, want), r = io_fresh_stat(fd, &st);
    if (r == 0)
        *ret = st.st_mtim;
    return r < 0 ? r : set;
}

/* Sets the clock's next time, for a user who may not choose one. Bounded: the clock may have been
 * set back. */
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

/* shown: the last mtime of the sealed state or of the restore so far. */
static int renew(int fd, const struct record *rec, struct timespec shown)
{
    struct timespec want = {.tv_sec = shown.tv_sec + SEAL_MTIME_STEP}, got = shown;
    /* Each of several holds in quick succession gets an mtime of its own. */
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

/* Can this mtime have been seen with sealed bytes? They were shown from the seal to the last write,
 * and again while the restore wrote. */
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

int seal_judge_chosen(int fd, struct record *rec)
{
    struct stat st;
    if (!rec->chosen || rec->step == STEP_RESTORING || rec->step == STEP_STUCK)
        return 0; /* a restore under way has set mtimes of its own */
    int r = io_fresh_stat(fd, &st);
    if (r == 0 && compare_times(&rec->mtime_seen, &st.st_mtim) != 0)
        rec->chosen = false;
    return r;
}

/* ---- restore ---- */

/* Takes HEADER_TRUE, _SEALED or _MIXED to TRUE, with an mtime of its own. One fsync makes the
 * true bytes and the mtime durable. After a crash before it, that mtime may be seen with the
 * seal; the next restore then sets a later one. A chosen mtime may be old, so the true bytes are
 * synced before it is set. */
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

/* Claim or row say it durably before a byte is written: that the seal was taken, so that the true
 * header gets another mtime (DESIGN 4.12) also after a power cut. The claim where it has an older
 * plan, a date waits, or other hosts are to know; then the row is lazy, because recovery takes the
 * newer of both. Else the row, which costs one fsync where the claim costs two and a file. */
static int say_restoring(struct seal *s)
{
    int known = s->journal && s->untold ? claim_undoes(s->store, s->rec) : 0;
    s->rec->step = STEP_RESTORING;
    s->rec->seq++;
    if (known != 0)
        return known < 0 ? known : journal_put(s->journal, s->rec);
    int r = s->journal ? journal_put_lazy(s->journal, s->rec) : 0;
    return r < 0 ? r : claim_update(s->store, s->rec);
}

static int restore_header(struct seal *s)
{
    int r = 0;
    if (s->rec->step != STEP_RESTORING && s->rec->step != STEP_STUCK)
        r = say_restoring(s);
    else
        r = claim_check(s->store, s->rec); /* a retry: somebody may have taken over since */
    return r < 0 ? r : seal_undo(s->fd, s->rec);
}

int seal_restore(struct seal *s)
{
    uint64_t ino = s->rec->ino, generation = s->rec->generation;
    int r;
    if (s->rec->step == STEP_FREE) /* a retry after everything but the row was done */
        return s->journal ? journal_remove(s->journal, ino, generation) : 0;
    if (seal_was_taken(s->rec)) {
        r = restore_header(s);
        if (r < 0)
            return r;
    }
    if (s->unfence)
        io_fence_drop(s->fd, s->store->fence);
    enum claim_step step = s->rec->step;
    /* Durable: else it may come back after a power cut, with our next claim's row above it, or a
     * plan for a header that somebody has changed past the view since. */
    r = claim_free(s->store, s->rec);
    if (r < 0) {
        /* The header is true, verified and durable: a retry only has to free the claim. The
         * tombstone may have been made, and a successor may have come: claim_free knows that. A
         * look at the header would be a look at the successor's. */
        s->rec->plan.n = 0;
        s->rec->mtime_sealed = (struct timespec){0};
        s->rec->step = step;
        return r;
    }
    /* From here on any host may claim the image. If the row stays, recovery forgets it: its claim
     * is free. */
    return s->journal ? journal_remove(s->journal, ino, generation) : 0;
}

/* ---- a holder's edit inside the image's zone (format.h) ---- */

/* `disk` is the header as it stands, `next` is what the holder will see after the edit. */
struct edit_work {
    struct header disk, next;
    struct plan plan;  /* that seals `next` */
    struct plan move;  /* the plan of the move: it undoes whatever a crash in between leaves */
    struct record old; /* the record to go back to while nothing is on disk yet */
    /* the edit changes the header inside and between the extents: not to be torn by a crash */
    bool whole;
};

static void edit_work_free(struct edit_work *w)
{
    header_clear(&w->disk);
    header_clear(&w->next);
    free(w);
}

static void edit_work_freep(struct edit_work **w)
{
    if (*w)
        edit_work_free(*w);
}

/* The header as it stands, with all of the present plan. */
static int edit_load(struct seal *s, struct edit_work *w)
{
    int r = header_read(s->fd, &s->rec->plan, &w->disk);
    if (r < 0)
        return r;
    /* Somebody else wrote there. A new seal would take these bytes for true ones and bring them
     * back. */
    struct excerpt v = header_view(&w->disk);
    enum header_state st = overlay_compare(&s->rec->plan, &v, s->rec->cut);
    return st == HEADER_ALIEN || st == HEADER_SHORT ? -EUCLEAN : 0;
}

/* Would the present seal still refuse a raw opener, with what the holder has written since? Over
 * another format's header it may break the magic, and a file without a magic is taken for raw. */
static bool still_refuses(const struct seal *s, struct edit_work *w)
{
    const struct format *f = w->next.format;
    if (f && strcmp(f->name, s->rec->format) != 0)
        return false;
    _cleanup_header_ struct header *h = header_new();
    if (!h || header_copy(h, &w->next) < 0)
        return true;
    header_patch(h, &w->plan, false);
    header_identify(h);
    return h->verdict != FORMAT_PLAIN && h->verdict != FORMAT_IMAGE;
}

/* The seal that stands, as far as its extents lie in the file, with what the holder sees there now.
 */
static void keep_plan(const struct seal *s, struct edit_work *w)
{
    w->plan.n = 0;
    for (unsigned i = 0; i < s->rec->plan.n; i++) {
        struct extent *e = &w->plan.ext[w->plan.n];
        *e = s->rec->plan.ext[i];
        e->has_was = false;
        if (e->off + e->len <= w->next.file_size && header_get(&w->next, e->off, e->truth, e->len))
            w->plan.n++;
    }
    if (!still_refuses(s, w))
        w->plan.n = 0;
}

/* The plan for `next`, or -EAGAIN: next.want_* must be loaded first. A header that no format
 * knows needs no seal. One that contradicts itself for the moment keeps the seal that it has:
 * the holder is in the middle of a change, and without the seal a raw opener could come in. */
static int plan_next(struct seal *s, struct edit_work *w)
{
    if (w->next.verdict == FORMAT_IMAGE)
        return header_plan(&w->next, &s->policy, &w->plan);
    if (w->next.verdict == FORMAT_PLAIN)
        w->plan.n = 0;
    else
        keep_plan(s, w);
    return 0;
}

/* The holder's view of the header after the edit (NULL: as it stands), and the plan that seals it.
 */
static int look_ahead(struct seal *s, struct edit_work *w, const struct edit *e)
{
    for (;;) {
        int r = header_ahead(s->fd, &w->disk, &s->rec->plan, e, &w->next);
        if (r == 0)
            r = plan_next(s, w);
        if (r != -EAGAIN)
            return r;
        r = header_add(s->fd, &w->disk, w->next.want_off, w->next.want_len);
        if (r == -EUCLEAN) { /* more than any format wants */
            keep_plan(s, w);
            return 0;
        }
        if (r < 0)
            return r;
    }
}

/* Widens the zone to both that of before the edit and that of after it, until the edit is done.
 * false: it was as wide already. */
static bool widen(struct seal *s, const struct edit_work *w)
{
    const struct format_zone *next = &w->next.info.zone;
    if (next->head <= s->zone.head && next->tail >= s->zone.tail)
        return false;
    s->zone.head = DG_MAX(s->zone.head, next->head);
    s->zone.tail = DG_MIN(s->zone.tail, next->tail);
    if (s->widened)
        s->widened(s->arg, &s->zone);
    return true;
}

/* edit_load() and look_ahead(). Once more where the zone grew, because a write that was under
 * way there may have landed since. */
static int edit_look(struct seal *s, struct edit_work *w, const struct edit *e)
{
    int r;
    do {
        r = edit_load(s, w);
        if (r == 0)
            r = look_ahead(s, w, e);
    } while (r == 0 && widen(s, w));
    return r;
}

/* A seal that is kept over a header of no format stays the one of its own: still_refuses() asks for
 * that. */
static void describe(struct record *rec, const struct edit_work *w)
{
    const struct header *h = &w->next;
    if (!h->format && w->plan.n > 0)
        return;
    rec->virtual_size = h->info.virtual_size;
    const char *name = h->format ? h->format->name : "raw";
    snprintf(rec->format, sizeof(rec->format), "%s", name);
}

/* The edit itself, on disk, everywhere but in the extents of `around`. */
static int edit_gaps(int fd, const struct plan *around, const struct edit *e)
{
    uint64_t off = e->off, end = e->off + e->len, gap_off, gap_len;
    while (overlay_next_gap(around, off, end, &gap_off, &gap_len)) {
        int r;
        if (e->kind == EDIT_WRITE)
            r = io_header_write(fd, (const uint8_t *)e->buf + (gap_off - e->off), gap_len, gap_off);
        else
            r = io_header_fallocate(fd, e->mode, gap_off, gap_len);
        if (r < 0)
            return r;
        off = gap_off + gap_len;
    }
    return 0;
}

static uint64_t sector_of(uint64_t off)
{
    return off / EXTENT_MAX * EXTENT_MAX;
}

/* Adds the part of a sector that lies in the file as it will be, unless it is there already. */
static int add_sector(struct edit_work *w, uint64_t off)
{
    struct plan *m = &w->move;
    uint8_t bytes[EXTENT_MAX];
    for (unsigned i = 0; i < m->n; i++)
        if (m->ext[i].off == off)
            return 0;
    if (off >= w->next.file_size)
        return 0;
    size_t len = (size_t)DG_MIN((uint64_t)EXTENT_MAX, w->next.file_size - off);
    if (!header_get(&w->next, off, bytes, len))
        return -EAGAIN;
    return plan_add(m, off, bytes, bytes, len);
}

static int add_sectors(struct edit_work *w, uint64_t begin, uint64_t end)
{
    int r = 0;
    for (uint64_t off = sector_of(begin); r == 0 && off < end; off += EXTENT_MAX)
        r = add_sector(w, off);
    return r;
}

/* End of the last extent that begins in the start of the file. */
static uint64_t end_of_start(const struct plan *plan)
{
    uint64_t end = 0;
    for (unsigned i = 0; i < plan->n; i++)
        if (plan->ext[i].off < FORMAT_REACH)
            end = DG_MAX(end, plan->ext[i].off + plan->ext[i].len);
    return DG_MIN(end, (uint64_t)FORMAT_REACH);
}

/* The sectors of a move: at the start of the file each one up to the last extent of both plans,
 * elsewhere those with an extent. */
static int sectors_of(const struct plan *from, struct edit_work *w)
{
    w->move.n = 0;
    int r = add_sectors(w, 0, DG_MAX(end_of_start(from), end_of_start(&w->plan)));
    for (int k = 0; k < 2; k++) {
        const struct plan *p = k ? &w->plan : from;
        for (unsigned i = 0; r == 0 && i < p->n; i++)
            r = add_sectors(w, p->ext[i].off, p->ext[i].off + p->ext[i].len);
    }
    return r;
}

/* The plan of the move. For each byte that may change it says what is there now, what will be
 * there, and what the holder sees. Where the extents move it has whole sectors, so that a crash
 * can neither tear the header nor leave an old mark behind. -EAGAIN: a sector is not loaded. */
static int plan_move(const struct plan *from, struct edit_work *w)
{
    struct plan *m = &w->move;
    int r = 0;
    if (!w->whole && overlay_same_shape(from, &w->plan))
        *m = w->plan;
    else
        r = sectors_of(from, w);
    for (unsigned i = 0; r == 0 && i < m->n; i++) {
        struct extent *x = &m->ext[i];
        /* Bytes beyond the end of the file read as zeros once it has grown. */
        if (!header_get(&w->next, x->off, x->truth, x->len) ||
            !header_get(&w->disk, x->off, x->was, x->len))
            return -EAGAIN;
        memcpy(x->sealed, x->truth, x->len);
        overlay_patch(&w->plan, OVERLAY_SEALED, x->off, x->sealed, x->len);
        x->has_was = true;
    }
    return r;
}

/* plan_move(), loading the sectors that it needs whole. */
static int load_move(struct seal *s, struct edit_work *w, const struct edit *e)
{
    const struct plan *plans[] = {&s->rec->plan, &w->plan};
    int r = plan_move(&s->rec->plan, w);
    if (r != -EAGAIN)
        return r;
    for (unsigned k = 0; k < 2; k++) {
        for (unsigned i = 0; i < plans[k]->n; i++) {
            const struct extent *x = &plans[k]->ext[i];
            uint64_t begin = sector_of(x->off);
            size_t len = (size_t)(sector_of(x->off + x->len - 1) - begin) + EXTENT_MAX;
            uint8_t sectors[2 * EXTENT_MAX];
            /* What lies beyond the end of the file on disk may lie in the one that the edit makes.
             */
            if (header_get(&w->disk, begin, sectors, len) &&
                header_get(&w->next, begin, sectors, len))
                continue;
            r = header_add(s->fd, &w->disk, begin, len);
            if (r < 0)
                return r;
        }
    }
    r = look_ahead(s, w, e);
    return r < 0 ? r : plan_move(&s->rec->plan, w);
}

/* For a new plan of which nothing has reached the image: goes back to the old record in memory, and
 * in journal and claim if that is possible. */
static int back_out(struct seal *s, const struct edit_work *w, int err)
{
    uint64_t seq = s->rec->seq;
    *s->rec = w->old;
    s->rec->seq = seq;
    if (err != -CLAIM_LOST) {
        int r = seal_record(s);
        if (r == -CLAIM_LOST)
            return r;
    }
    return err;
}

/* Makes the file at least that long. Others may have extended it since it was looked at. */
static int grow_to(int fd, uint64_t size)
{
    struct stat st;
    int r = io_fresh_stat(fd, &st);
    return r == 0 && (uint64_t)st.st_size < size ? io_header_truncate(fd, size) : r;
}

/* Did a refused edit leave the header as it was? Then it did not happen. */
static bool untouched(struct seal *s, const struct edit_work *w)
{
    static const struct plan none;
    _cleanup_header_ struct header *now = header_new();
    int r = now ? header_read(s->fd, &none, now) : -ENOMEM;
    for (unsigned i = 0; r == 0 && i < w->disk.n_far; i++)
        r = header_add(s->fd, now, w->disk.far[i].off, w->disk.far[i].len);
    return r == 0 && header_same(now, &w->disk);
}

/* The move on disk: grow first, so that a crash leaves zeros (`was`) and never a file that ends
 * inside an extent. */
static int move_on_disk(struct seal *s, const struct edit_work *w, const struct edit *e)
{
    int r = 0;
    if (e && e->kind == EDIT_ZERO) /* Not every file system can. Find out before anything is
                                      changed. */
        r = edit_gaps(s->fd, &w->move, e);
    if (r == 0 && w->next.file_size > w->disk.file_size)
        r = grow_to(s->fd, w->next.file_size);
    if (r == 0 && e && e->kind == EDIT_WRITE)
        r = edit_gaps(s->fd, &w->move, e);
    for (unsigned i = 0; r == 0 && i < w->move.n; i++) {
        r = io_header_write(s->fd, w->move.ext[i].sealed, w->move.ext[i].len, w->move.ext[i].off);
        if (r == 0 && w->plan.n > 0)
            r = note_shown(s);
    }
    if (r == 0 && e && e->kind == EDIT_TRUNCATE && w->next.file_size < w->disk.file_size)
        r = io_header_truncate(s->fd, w->next.file_size);
    if (r < 0)
        return r;
    r = io_fsync(s->fd);
    if (r < 0)
        return r;
    enum header_state state;
    r = seal_compare(s->fd, s->rec, &state);
    if (r < 0)
        return r;
    return state == HEADER_SEALED || state == HEADER_TRUE || state == HEADER_NOPLAN ? 0 : -EIO;
}

/* Takes the image from rec->plan to w->plan. e may be NULL: the edit is already on disk. */
static int edit_move(struct seal *s, struct edit_work *w, const struct edit *e)
{
    int r = load_move(s, w, e);
    if (r < 0)
        return r == -EAGAIN ? -EIO : r;
    s->rec->plan = w->move;
    s->rec->cut = w->next.file_size > w->disk.file_size ? w->disk.file_size : OVERLAY_NO_CUT;
    describe(s->rec, w);
    r = seal_record(s);
    if (r < 0)
        return e ? back_out(s, w, r) : r;
    r = move_on_disk(s, w, e);
    if (r < 0 && e && untouched(s, w))
        return back_out(s, w, r);
    if (r < 0)
        return r; /* rec->plan undoes whatever is there */

    /* The former bytes are gone for good, and the record now says so. If that fails, the wider
     * record is still true. */
    struct plan moved = s->rec->plan;
    s->rec->plan = w->plan;
    s->rec->cut = OVERLAY_NO_CUT;
    if (s->rec->plan.n > 0 && s->rec->step == STEP_CLAIMED)
        s->rec->step = STEP_SEALED;
    r = seal_record(s);
    if (r < 0)
        s->rec->plan = moved;
    return r == -CLAIM_LOST ? r : 0;
}

/* A truncation that reaches into an extent. The record says first that it may happen; then it
 * happens; then the rest is planned anew. */
static int truncate_short(struct seal *s, struct edit_work *w, uint64_t size)
{
    s->rec->cut = size;
    int r = seal_record(s);
    if (r < 0)
        return back_out(s, w, r);
    r = io_header_truncate(s->fd, size);
    if (r < 0)
        return back_out(s, w, r);
    r = edit_look(s, w, NULL);
    return r < 0 ? r : edit_move(s, w, NULL);
}

static int edit_in_place(struct seal *s, struct edit_work *w, const struct edit *e)
{
    bool recorded = !overlay_same_truth(&s->rec->plan, &w->plan);
    if (recorded) {
        s->rec->plan = w->plan;
        describe(s->rec, w);
        int r = seal_record(s);
        if (r < 0)
            return back_out(s, w, r);
    }
    if (e->kind == EDIT_TRUNCATE)
        return io_header_truncate(s->fd, e->off);
    int r = edit_gaps(s->fd, &s->rec->plan, e);
    /* A write or a zeroed range that lies in the extents altogether still makes the file grow, as
     * it would have. */
    if (r == 0 && w->next.file_size > w->disk.file_size)
        r = grow_to(s->fd, w->next.file_size);
    return r < 0 && recorded && untouched(s, w) ? back_out(s, w, r) : r;
}

/* Does the edit change bytes on both sides of an extent's edge? It looks at the sectors that
 * sectors_of() names. */
static bool is_whole(const struct record *rec, struct edit_work *w)
{
    if (overlay_same_truth(&rec->plan, &w->plan))
        return false;
    if (sectors_of(&rec->plan, w) < 0)
        return true;
    for (unsigned i = 0; i < w->move.n; i++) {
        const struct extent *x = &w->move.ext[i];
        uint64_t off = x->off, end = DG_MIN(x->off + x->len, w->disk.file_size), gap_off, gap_len;
        uint8_t was[EXTENT_MAX];
        while (overlay_next_gap(&rec->plan, off, end, &gap_off, &gap_len)) {
            if (!header_get(&w->disk, gap_off, was, (size_t)gap_len) ||
                memcmp(was, x->truth + (gap_off - x->off), (size_t)gap_len) != 0)
                return true;
            off = gap_off + gap_len;
        }
    }
    return false;
}

/* Only a move settles what an earlier edit left half done. */
static bool settled(const struct record *rec)
{
    for (unsigned i = 0; i < rec->plan.n; i++)
        if (rec->plan.ext[i].has_was)
            return false;
    return rec->cut == OVERLAY_NO_CUT;
}

static int edit_run(struct seal *s, struct edit_work *w, const struct edit *e)
{
    int r;
    w->old = *s->rec;
    if (e->kind == EDIT_TRUNCATE && e->off < overlay_end(&s->rec->plan)) {
        r = edit_load(s, w);
        return r < 0 ? r : truncate_short(s, w, e->off);
    }
    r = edit_look(s, w, e);
    if (r < 0)
        return r;
    w->whole = overlay_same_shape(&s->rec->plan, &w->plan) && is_whole(s->rec, w);
    if (!w->whole && settled(s->rec) && overlay_same_shape(&s->rec->plan, &w->plan) &&
        overlay_same_sealed(&s->rec->plan, &w->plan))
        return edit_in_place(s, w, e);
    return edit_move(s, w, e);
}

int seal_edit(struct seal *s, const struct edit *e)
{
    __attribute__((cleanup(edit_work_freep))) struct edit_work *w = calloc(1, sizeof(*w));
    if (!w)
        return -ENOMEM;
    int r = edit_run(s, w, e);
    /* A file with a footer that grows has none for a while: the write of the next one must be
     * looked at. */
    bool headless = w->next.verdict == FORMAT_PLAIN || (w->next.format && w->next.format->weak);
    bool between = headless && s->zone.tail != UINT64_MAX;
    if (r == 0 && w->next.verdict != FORMAT_MORE && !between)
        s->zone = w->next.info.zone;
    header_zone_cover(&s->zone, &s->rec->plan);
    return r;
}
