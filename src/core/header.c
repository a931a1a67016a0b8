/* header.c: see header.h. */
#include "core/header.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "core/overlay.h"

static size_t reach(uint64_t file_size)
{
    return (size_t)DG_MIN(file_size, (uint64_t)FORMAT_REACH);
}

static uint64_t end_of(uint64_t off, uint64_t len)
{
    uint64_t end;

    return __builtin_add_overflow(off, len, &end) ? UINT64_MAX : end;
}

/* ---- life ---- */

struct header *header_new(void)
{
    return calloc(1, sizeof(struct header));
}

void header_clear(struct header *h)
{
    for (unsigned i = 0; i < h->n_far; i++)
        free(h->far[i].bytes);
    memset(h, 0, sizeof(*h));
}

void header_free(struct header *h)
{
    if (h)
        header_clear(h);
    free(h);
}

int header_copy(struct header *to, const struct header *from)
{
    header_clear(to);
    *to = *from;
    for (to->n_far = 0; to->n_far < from->n_far; to->n_far++) {
        const struct header_window *w = &from->far[to->n_far];
        uint8_t *bytes = malloc(w->len);

        to->far[to->n_far].bytes = bytes;
        if (!bytes) {
            header_clear(to);
            return -ENOMEM;
        }
        memcpy(bytes, w->bytes, w->len);
    }
    return 0;
}

/* ---- what is loaded: the start and the windows, as runs ---- */

struct run {
    uint64_t off;
    size_t len;
    uint8_t *bytes;
};

static struct run run_of(const struct header *h, unsigned i)
{
    if (i == 0)
        return (struct run){0, h->n, (uint8_t *)h->bytes};
    return (struct run){h->far[i - 1].off, h->far[i - 1].len, h->far[i - 1].bytes};
}

/* The part of [off, end) in the run. False: none. */
static bool meets(const struct run *r, uint64_t off, uint64_t end, uint64_t *ret_lo,
                  size_t *ret_len)
{
    uint64_t lo = DG_MAX(r->off, off), hi = DG_MIN(end_of(r->off, r->len), end);

    if (lo >= hi)
        return false;
    *ret_lo = lo;
    *ret_len = (size_t)(hi - lo);
    return true;
}

struct excerpt header_view(const struct header *h)
{
    struct excerpt v = {.file_size = h->file_size};

    for (unsigned i = 0; i <= h->n_far; i++) {
        struct run r = run_of(h, i);
        if (r.len == 0)
            continue;
        v.win[v.n].off = r.off;
        v.win[v.n].len = r.len;
        v.win[v.n++].data = r.bytes;
    }
    return v;
}

bool header_same(const struct header *a, const struct header *b)
{
    if (a->file_size != b->file_size || a->n != b->n || a->n_far != b->n_far)
        return false;
    for (unsigned i = 0; i <= a->n_far; i++) {
        struct run x = run_of(a, i), y = run_of(b, i);
        if (x.off != y.off || x.len != y.len || memcmp(x.bytes, y.bytes, x.len) != 0)
            return false;
    }
    return true;
}

bool header_get(const struct header *h, uint64_t off, void *ret, size_t len)
{
    memset(ret, 0, len);
    if (off >= h->file_size)
        return true;
    struct excerpt v = header_view(h);
    size_t inside = (size_t)DG_MIN((uint64_t)len, h->file_size - off);
    const uint8_t *p = view_get(&v, off, inside);

    if (p)
        memcpy(ret, p, inside);
    return p != NULL;
}

void header_patch(struct header *h, const struct plan *plan, bool truth)
{
    for (unsigned i = 0; i <= h->n_far; i++) {
        struct run r = run_of(h, i);
        size_t inside =
            r.off < h->file_size ? (size_t)DG_MIN((uint64_t)r.len, h->file_size - r.off) : 0;
        overlay_patch(plan, truth ? OVERLAY_TRUE : OVERLAY_SEALED, r.off, r.bytes, inside);
    }
}

void header_overlay(const struct header *h, uint64_t off, void *buf, size_t len)
{
    for (unsigned i = 0; i <= h->n_far; i++) {
        struct run r = run_of(h, i);
        uint64_t lo;
        size_t n;
        if (meets(&r, off, DG_MIN(end_of(off, len), h->file_size), &lo, &n))
            memcpy((uint8_t *)buf + (lo - off), r.bytes + (lo - r.off), n);
    }
}

/* ---- loading ---- */

/* st: attributes that are fresh. -EAGAIN: the file is shorter than they say. */
static int load_start_of(int fd, const struct io_fstype *fs, const struct stat *st,
                         struct header *h)
{
    size_t want = reach((uint64_t)st->st_size);
    ssize_t n =
        fs ? io_fresh_header_on(fs, fd, h->bytes, want, 0) : io_fresh_header(fd, h->bytes, want, 0);

    if (n < 0)
        return (int)n;
    if ((size_t)n < want) /* the file was cut between the two calls */
        return -EAGAIN;
    h->file_size = (uint64_t)st->st_size;
    h->n = (size_t)n;
    memset(h->bytes + h->n, 0, sizeof(h->bytes) - h->n);
    return 0;
}

static int load_start(int fd, struct header *h)
{
    struct stat st;

    header_clear(h);
    for (unsigned tries = 0; tries < 3; tries++) {
        int r = io_fresh_stat(fd, &st);
        if (r == 0)
            r = load_start_of(fd, NULL, &st, h);
        if (r != -EAGAIN)
            return r;
    }
    return -EIO; /* the size and the bytes never agree */
}

int header_add(int fd, struct header *h, uint64_t off, size_t len)
{
    if (h->n_far == HEADER_WINDOWS || len == 0 || len > FORMAT_WINDOW_MAX || off > INT64_MAX - len)
        return -EUCLEAN;
    uint8_t *bytes = calloc(1, len);
    if (!bytes)
        return -ENOMEM;
    ssize_t n = io_fresh_header(fd, bytes, len, off);
    if (n < 0) {
        free(bytes);
        return (int)n;
    }
    h->far[h->n_far++] = (struct header_window){.off = off, .len = len, .bytes = bytes};
    return 0;
}

int header_settle(int fd, struct header *h)
{
    for (;;) {
        header_identify(h);
        if (h->verdict != FORMAT_MORE)
            return 0;
        int r = header_add(fd, h, h->want_off, h->want_len);
        if (r != -EUCLEAN && r < 0)
            return r;
        if (r == 0)
            continue;
        /* An extent there could be changed unseen, so the image cannot be guarded. */
        h->verdict = FORMAT_LIES;
        h->format = NULL;
        snprintf(h->info.why, sizeof(h->info.why),
                 "its header goes on at byte %llu, in more places than any format has",
                 (unsigned long long)h->want_off);
        return 0;
    }
}

int header_load(int fd, struct header *ret)
{
    int r = load_start(fd, ret);

    if (r == 0)
        r = header_settle(fd, ret);
    if (r < 0)
        header_clear(ret);
    return r;
}

int header_load_of(int fd, const struct io_fstype *fs, const struct stat *st, struct header *ret)
{
    header_clear(ret);
    int r = load_start_of(fd, fs, st, ret);

    if (r == -EAGAIN)
        return header_load(fd, ret);
    if (r == 0)
        r = header_settle(fd, ret);
    if (r < 0)
        header_clear(ret);
    return r;
}

int header_read(int fd, const struct plan *plan, struct header *ret)
{
    int r = load_start(fd, ret);

    for (unsigned i = 0; r == 0 && i < plan->n; i++) {
        uint8_t bytes[EXTENT_MAX];
        const struct extent *e = &plan->ext[i];
        if (!header_get(ret, e->off, bytes, e->len))
            r = header_add(fd, ret, e->off, e->len);
    }
    if (r < 0)
        header_clear(ret);
    return r;
}

/* ---- what it is ---- */

void header_identify(struct header *h)
{
    struct excerpt v = header_view(h);

    h->verdict = format_identify(&v, &h->format, &h->info);
    h->want_off = v.want_off;
    h->want_len = v.want_len;
}

static bool in_zone(const struct format_zone *zone, const struct extent *e)
{
    uint64_t begin = e->off / EXTENT_MAX * EXTENT_MAX;
    uint64_t end = (e->off + e->len + EXTENT_MAX - 1) / EXTENT_MAX * EXTENT_MAX;

    return end <= zone->head || begin >= zone->tail ||
           (zone->tail < UINT64_MAX && e->off >= zone->tail);
}

void header_zone_cover(struct format_zone *zone, const struct plan *plan)
{
    for (unsigned i = 0; i < plan->n; i++)
        if (!in_zone(zone, &plan->ext[i]))
            zone->head = (plan->ext[i].off + plan->ext[i].len + FORMAT_REACH - 1) / FORMAT_REACH *
                         FORMAT_REACH;
}

/* Other hosts rely on it (guard/snapshot.c). */
static bool in_reach(const struct header *h, const struct extent *e)
{
    return e->off + e->len <= FORMAT_HEAD_MAX || h->file_size < FORMAT_TAIL_MAX ||
           e->off >= h->file_size - FORMAT_TAIL_MAX;
}

/* A plan is carried out later without another check. So check here that every extent lies in the
 * bytes that were read, has their content, overlaps no other extent, and lies in the zone. */
static bool plan_fits(const struct header *h, struct excerpt *v, const struct plan *plan,
                      bool sealed)
{
    const struct format_zone *zone = &h->info.zone;

    if (plan->n > PLAN_MAX)
        return false;
    for (unsigned i = 0; i < plan->n; i++) {
        const struct extent *e = &plan->ext[i];
        const uint8_t *p = e->len < 1 || e->len > EXTENT_MAX ? NULL : view_get(v, e->off, e->len);
        if (!p || memcmp(p, sealed ? e->sealed : e->truth, e->len) != 0)
            return false;
        if (!in_zone(zone, e) || !in_reach(h, e))
            return false;
        for (unsigned j = 0; j < i; j++)
            if (e->off < plan->ext[j].off + plan->ext[j].len && plan->ext[j].off < e->off + e->len)
                return false;
    }
    return true;
}

int header_plan(struct header *h, const struct seal_policy *policy, struct plan *ret)
{
    struct excerpt v = header_view(h);
    struct plan *plan;
    int r = 0;

    if (h->verdict != FORMAT_PLAIN && h->verdict != FORMAT_IMAGE)
        return -EUCLEAN;
    plan = calloc(1, sizeof(*plan)); /* 37 KiB: too much for a small stack */
    if (!plan)
        return -ENOMEM;
    if (h->verdict == FORMAT_IMAGE && h->format->plan)
        r = h->format->plan(&v, policy, plan);
    h->want_off = v.want_off;
    h->want_len = v.want_len;
    if (r == 0 && !plan_fits(h, &v, plan, false))
        r = -EUCLEAN;
    if (r == 0)
        *ret = *plan;
    free(plan);
    return r;
}

int header_plan_load(int fd, struct header *h, const struct seal_policy *policy, struct plan *ret)
{
    for (;;) {
        int r = header_plan(h, policy, ret);
        if (r != -EAGAIN)
            return r;
        r = header_add(fd, h, h->want_off, h->want_len);
        if (r < 0)
            return r;
    }
}

/* Would the file be an image with the plan's true bytes in place? */
static int undone(int fd, const struct header *h, const struct plan *plan)
{
    _cleanup_header_ struct header *after = header_new();
    int r = after ? header_copy(after, h) : -ENOMEM;

    if (r == 0)
        r = header_ahead(fd, after, plan, NULL, after);
    if (r < 0)
        return r;
    return after->verdict == FORMAT_IMAGE && after->format == h->format ? 0 : -EUCLEAN;
}

int header_rescue(int fd, struct header *h, const uint64_t *size, struct rescue *ret_rescue,
                  struct plan *ret)
{
    _cleanup_free_ struct plan *plan = calloc(1, sizeof(*plan));
    struct excerpt v;
    int r = -EAGAIN;

    memset(ret_rescue, 0, sizeof(*ret_rescue));
    if (!plan)
        return -ENOMEM;
    if (h->verdict != FORMAT_SEALED || !h->format->rescue)
        return -EUCLEAN;
    while (r == -EAGAIN) {
        v = header_view(h);
        memset(ret_rescue, 0, sizeof(*ret_rescue));
        r = h->format->rescue(&v, size, ret_rescue, plan);
        if (r == -EAGAIN) {
            int added = header_add(fd, h, v.want_off, v.want_len);
            if (added < 0)
                return added;
        }
    }
    if (r == 0 && !plan_fits(h, &v, plan, true))
        r = -EUCLEAN;
    if (r == 0)
        r = undone(fd, h, plan);
    if (r == 0)
        *ret = *plan;
    return r;
}

/* ---- edits in memory ---- */

/* Bytes behind the end are always zero, so that a file that grows again shows zeros there, as on
 * disk. */
void header_truncate(struct header *h, uint64_t size)
{
    size_t n = reach(size);

    if (n < h->n)
        memset(h->bytes + n, 0, h->n - n);
    else
        memset(h->bytes + h->n, 0, n - h->n); /* a header that the caller filled may have anything
                                                 there */
    h->n = n;
    for (unsigned i = 0; i < h->n_far; i++) {
        struct header_window *w = &h->far[i];
        if (size < w->off + w->len) {
            size_t keep = size > w->off ? (size_t)(size - w->off) : 0;
            memset(w->bytes + keep, 0, w->len - keep);
        }
    }
    h->file_size = size;
}

/* buf NULL: zeros. */
static void header_put(struct header *h, uint64_t off, uint64_t end, const uint8_t *buf)
{
    for (unsigned i = 0; i <= h->n_far; i++) {
        struct run r = run_of(h, i);
        uint64_t lo;
        size_t n;
        if (!meets(&r, off, DG_MIN(end, h->file_size), &lo, &n))
            continue;
        if (buf)
            memcpy(r.bytes + (lo - r.off), buf + (lo - off), n);
        else
            memset(r.bytes + (lo - r.off), 0, n);
    }
}

void header_write(struct header *h, uint64_t off, const void *buf, size_t len)
{
    if (len == 0) /* write(2) of nothing does not extend */
        return;
    if (end_of(off, len) > h->file_size)
        header_truncate(h, end_of(off, len));
    header_put(h, off, end_of(off, len), buf);
}

void header_zero(struct header *h, uint64_t off, uint64_t len, bool keep_size)
{
    if (len == 0)
        return;
    if (!keep_size && end_of(off, len) > h->file_size)
        header_truncate(h, end_of(off, len));
    header_put(h, off, end_of(off, len), NULL);
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

/* Each round starts anew, because added windows stand there as they are in the file. */
int header_ahead(int fd, struct header *disk, const struct plan *plan, const struct edit *e,
                 struct header *ret)
{
    for (;;) {
        int r = ret == disk ? 0 : header_copy(ret, disk);
        if (r < 0)
            return r;
        if (plan)
            header_patch(ret, plan, true);
        if (e)
            apply(ret, e);
        header_identify(ret);
        if (ret->verdict != FORMAT_MORE)
            return 0;
        r = header_add(fd, disk, ret->want_off, ret->want_len);
        if (r < 0)
            return r == -EUCLEAN ? 0 : r;
    }
}
