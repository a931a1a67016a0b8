/* seal_edit.c: a holder's edit below FORMAT_REACH. Split from seal.c for its size only; the order of durable
 * steps is described there and in seal.h. Words: `disk` is the header as it stands, `next` is what the holder
 * will see after the edit. */
#include "core/seal.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "core/hook.h"

struct work {
    struct header disk, next;
    struct plan plan;  /* that seals `next` */
    struct plan move;  /* that takes the disk from here to there, whatever crash comes in between */
    struct record old; /* to go back to while nothing is on disk yet */
    bool whole; /* the edit changes the header inside and between the extents: not to be torn by a crash */
};

/* The holder's view of the header: what is on disk with the true bytes laid over. */
static int load(struct seal *s, struct work *w)
{
    int r = header_load(s->fd, &w->disk);
    if (r < 0)
        return r;
    /* Somebody else wrote there: sealing over it, with those bytes as the ones to go back to, would explain them away. */
    enum header_state st =
        overlay_compare(&s->rec->plan, w->disk.bytes, w->disk.n, w->disk.file_size, s->rec->cut);
    if (st == HEADER_ALIEN || st == HEADER_SHORT)
        return -EUCLEAN;
    w->next = w->disk;
    overlay_patch(&s->rec->plan, OVERLAY_TRUE, 0, w->next.bytes, w->next.n);
    return 0;
}

static void apply(struct header *h, const struct edit *e)
{
    switch (e->kind) {
    case EDIT_WRITE:
        header_write(h, e->off, e->buf, e->len);
        break;
    case EDIT_ZERO:
        header_zero(h, e->off, e->len, e->mode & FALLOC_FL_KEEP_SIZE);
        break;
    case EDIT_TRUNCATE:
        header_truncate(h, e->off);
        break;
    }
}

/* The plan for `next`. A header that no format knows needs no seal. One that contradicts itself, for the
 * moment, keeps the seal that it has: the holder is in the middle of something, and unsealing it would let a
 * raw opener in. */
static int plan_next(struct seal *s, struct work *w)
{
    header_identify(&w->next);
    switch (w->next.verdict) {
    case FORMAT_IMAGE:
        return header_plan(&w->next, &s->policy, &w->plan);
    case FORMAT_PLAIN:
        w->plan.n = 0;
        return 0;
    case FORMAT_SEALED:
    case FORMAT_LIES:
    case FORMAT_AMBIGUOUS:
    case FORMAT_MORE:
        break;
    }
    w->plan = s->rec->plan;
    for (unsigned i = 0; i < w->plan.n; i++)
        w->plan.ext[i].has_was = false;
    if (overlay_end(&w->plan) > w->next.n)
        w->plan.n = 0;
    overlay_take(&w->plan, OVERLAY_TRUE, 0, w->next.bytes, w->next.n);
    return 0;
}

static void describe(struct record *rec, const struct header *h)
{
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

/* Extents that say, for each byte that the seal's place or text may change, what it is now, what it will be,
 * and what the holder sees. Where the extents move, that is every sector up to the last of them, so that a
 * crash can neither tear the header nor leave an old mark behind. */
static void plan_move(const struct plan *from, struct work *w)
{
    struct plan *m = &w->move;
    uint64_t end = DG_MAX(overlay_end(from), overlay_end(&w->plan));
    end = DG_MIN((end + EXTENT_MAX - 1) / EXTENT_MAX * EXTENT_MAX, w->next.n);
    if (!w->whole && overlay_same_shape(from, &w->plan)) {
        *m = w->plan;
    } else {
        m->n = 0;
        for (uint64_t off = 0; off < end; off += EXTENT_MAX) {
            struct extent *x = &m->ext[m->n++];
            x->off = off;
            x->len = (uint32_t)DG_MIN((uint64_t)EXTENT_MAX, end - off);
        }
    }
    for (unsigned i = 0; i < m->n; i++) {
        struct extent *x = &m->ext[i];
        memcpy(x->truth, w->next.bytes + x->off, x->len);
        memcpy(x->sealed, w->next.bytes + x->off, x->len);
        overlay_patch(&w->plan, OVERLAY_SEALED, x->off, x->sealed, x->len);
        memset(x->was, 0,
               sizeof(x->was)); /* bytes beyond the end of file read as zeros once the file has grown */
        if (x->off < w->disk.n)
            memcpy(x->was, w->disk.bytes + x->off, DG_MIN((size_t)x->len, w->disk.n - (size_t)x->off));
        x->has_was = true;
    }
}

/* Nothing of the new record reached the disk of the image: back to the old one, in memory and, if it can be,
 * in journal and claim. */
static int back_out(struct seal *s, const struct work *w, int err)
{
    uint64_t seq = s->rec->seq;
    *s->rec = w->old;
    s->rec->seq = seq;
    if (err != -ESTALE) {
        int r = seal_record(s);
        if (r == -ESTALE)
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

/* Did an edit that was refused leave the header as it was? Then it did not happen. */
static bool untouched(struct seal *s, const struct work *w)
{
    _cleanup_free_ struct header *now = malloc(sizeof(*now));
    return now && header_load(s->fd, now) == 0 && now->file_size == w->disk.file_size &&
           now->n == w->disk.n && memcmp(now->bytes, w->disk.bytes, now->n) == 0;
}

/* The move on disk: grow first, so that a crash leaves zeros (`was`) and never a file that ends inside an
 * extent. */
static int move_on_disk(struct seal *s, const struct work *w, const struct edit *e)
{
    int r = 0;
    if (e && e->kind == EDIT_ZERO) /* not every file system can: before anything is changed */
        r = edit_gaps(s->fd, &w->move, e);
    if (r == 0 && w->next.file_size > w->disk.file_size)
        r = grow_to(s->fd, w->next.file_size);
    if (r == 0 && e && e->kind == EDIT_WRITE)
        r = edit_gaps(s->fd, &w->move, e);
    for (unsigned i = 0; r == 0 && i < w->move.n; i++)
        r = io_header_write(s->fd, w->move.ext[i].sealed, w->move.ext[i].len, w->move.ext[i].off);
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
static int move(struct seal *s, struct work *w, const struct edit *e)
{
    plan_move(&s->rec->plan, w);
    s->rec->plan = w->move;
    s->rec->cut = w->next.file_size > w->disk.file_size ? w->disk.file_size : OVERLAY_NO_CUT;
    describe(s->rec, &w->next);
    int r = seal_record(s);
    if (r < 0)
        return e ? back_out(s, w, r) : r;
    r = move_on_disk(s, w, e);
    if (r < 0 && e && untouched(s, w))
        return back_out(s, w, r);
    if (r < 0)
        return r; /* rec->plan undoes what is there, whatever it is */

    /* The bytes that stood there before are gone for good: say so. If that cannot be recorded now, the wider
     * record is still true. */
    struct plan moved = s->rec->plan;
    s->rec->plan = w->plan;
    s->rec->cut = OVERLAY_NO_CUT;
    if (s->rec->plan.n > 0 && s->rec->step == STEP_CLAIMED)
        s->rec->step = STEP_SEALED;
    r = seal_record(s);
    if (r < 0)
        s->rec->plan = moved;
    return r == -ESTALE ? r : 0;
}

/* A truncation that reaches into an extent. The record says first that it may happen; then it happens; then
 * the rest is planned anew. */
static int truncate_short(struct seal *s, struct work *w, uint64_t size)
{
    s->rec->cut = size;
    int r = seal_record(s);
    if (r < 0)
        return back_out(s, w, r);
    r = io_header_truncate(s->fd, size);
    if (r < 0)
        return back_out(s, w, r);
    r = load(s, w);
    if (r < 0)
        return r;
    r = plan_next(s, w);
    if (r < 0)
        return r;
    return move(s, w, NULL);
}

static int edit_in_place(struct seal *s, struct work *w, const struct edit *e)
{
    bool recorded = !overlay_same_truth(&s->rec->plan, &w->plan);
    if (recorded) {
        s->rec->plan = w->plan;
        describe(s->rec, &w->next);
        int r = seal_record(s);
        if (r < 0)
            return back_out(s, w, r);
    }
    if (e->kind == EDIT_TRUNCATE)
        return io_header_truncate(s->fd, e->off);
    int r = edit_gaps(s->fd, &s->rec->plan, e);
    /* A write or a zeroed range that lies in the extents altogether still makes the file grow, as it would have. */
    if (r == 0 && w->next.file_size > w->disk.file_size)
        r = grow_to(s->fd, w->next.file_size);
    return r < 0 && recorded && untouched(s, w) ? back_out(s, w, r) : r;
}

/* Does the edit change bytes on both sides of an extent's edge, up to the last sector that has one? */
static bool is_whole(const struct record *rec, const struct work *w)
{
    if (overlay_same_truth(&rec->plan, &w->plan))
        return false;
    uint64_t end = (overlay_end(&rec->plan) + EXTENT_MAX - 1) / EXTENT_MAX * EXTENT_MAX;
    uint64_t off = 0, gap_off, gap_len;
    end = DG_MIN(end, DG_MIN(w->disk.n, w->next.n));
    while (overlay_next_gap(&rec->plan, off, end, &gap_off, &gap_len)) {
        if (memcmp(w->disk.bytes + gap_off, w->next.bytes + gap_off, gap_len) != 0)
            return true;
        off = gap_off + gap_len;
    }
    return false;
}

/* Something that an earlier edit left half done is only settled by a move. */
static bool settled(const struct record *rec)
{
    for (unsigned i = 0; i < rec->plan.n; i++)
        if (rec->plan.ext[i].has_was)
            return false;
    return rec->cut == OVERLAY_NO_CUT;
}

int seal_edit(struct seal *s, const struct edit *e)
{
    _cleanup_free_ struct work *w = malloc(sizeof(*w));
    if (!w)
        return -ENOMEM;
    w->whole = false;
    int r = load(s, w);
    if (r < 0)
        return r;
    w->old = *s->rec;
    if (e->kind == EDIT_TRUNCATE && e->off < overlay_end(&s->rec->plan))
        return truncate_short(s, w, e->off);
    apply(&w->next, e);
    r = plan_next(s, w);
    if (r < 0)
        return r;
    w->whole = overlay_same_shape(&s->rec->plan, &w->plan) && is_whole(s->rec, w);
    if (!w->whole && settled(s->rec) && overlay_same_shape(&s->rec->plan, &w->plan) &&
        overlay_same_sealed(&s->rec->plan, &w->plan))
        return edit_in_place(s, w, e);
    return move(s, w, e);
}
