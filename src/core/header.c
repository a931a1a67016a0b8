/* header.c: see header.h. */
#include "core/header.h"

#include <stdio.h>
#include <string.h>

static size_t reach(uint64_t file_size)
{
    return (size_t)DG_MIN(file_size, (uint64_t)FORMAT_REACH);
}

int header_load(int fd, struct header *ret)
{
    uint8_t bytes[FORMAT_REACH] = {0};
    struct stat st;
    ssize_t n;
    int r;

    for (unsigned tries = 0; tries < 3; tries++) {
        r = io_fresh_stat(fd, &st);
        if (r < 0)
            return r;
        n = io_fresh_header(fd, bytes, reach((uint64_t)st.st_size), 0);
        if (n < 0)
            return (int)n;
        if ((size_t)n < reach((uint64_t)st.st_size)) /* cut between the two calls */
            continue;
        memset(ret, 0, sizeof *ret);
        ret->file_size = (uint64_t)st.st_size;
        ret->n = (size_t)n;
        memcpy(ret->bytes, bytes, ret->n);
        return 0;
    }
    return -EIO; /* a size that the bytes never agree with */
}

static struct view view_of(const struct header *h)
{
    struct view v = {.file_size = h->file_size, .n = h->n > 0};

    v.win[0].len = h->n;
    v.win[0].data = h->bytes;
    return v;
}

void header_identify(struct header *h)
{
    struct view v = view_of(h);
    const struct format *format = NULL;
    struct format_info info = {0};

    h->verdict = format_identify(&v, &format, &info);
    h->format = format;
    h->info = info;
    if (h->verdict == FORMAT_MORE) { /* an extent there could be changed unseen, so it cannot be guarded */
        h->verdict = FORMAT_LIES;
        snprintf(h->info.why, sizeof h->info.why, "its header goes on at byte %llu, beyond the first %u",
                 (unsigned long long)v.want_off, FORMAT_REACH);
    }
}

/* A plan is carried out blindly later on: every extent must lie in the bytes that were read, hold what they
 * hold, and meet no other. */
static bool plan_fits(const struct header *h, const struct plan *plan)
{
    if (plan->n > PLAN_MAX)
        return false;
    for (unsigned i = 0; i < plan->n; i++) {
        const struct extent *e = &plan->ext[i];
        if (e->len < 1 || e->len > EXTENT_MAX || e->off > h->n || e->len > h->n - e->off)
            return false;
        if (memcmp(h->bytes + e->off, e->truth, e->len) != 0)
            return false;
        for (unsigned j = 0; j < i; j++)
            if (e->off < plan->ext[j].off + plan->ext[j].len && plan->ext[j].off < e->off + e->len)
                return false;
    }
    return true;
}

int header_plan(const struct header *h, const struct seal_policy *policy, struct plan *ret)
{
    struct view v = view_of(h);
    struct plan *plan;
    int r = 0;

    if (h->verdict != FORMAT_PLAIN && h->verdict != FORMAT_IMAGE)
        return -EUCLEAN;
    plan = calloc(1, sizeof *plan); /* 37 KiB: too much for a small stack */
    if (!plan)
        return -ENOMEM;
    if (h->verdict == FORMAT_IMAGE && h->format->plan)
        r = h->format->plan(&v, policy, plan);
    if (r == 0 && !plan_fits(h, plan))
        r = -EUCLEAN;
    if (r == 0)
        *ret = *plan;
    free(plan);
    return r;
}

/* ---- edits in memory ---- */

static uint64_t end_of(uint64_t off, uint64_t len)
{
    uint64_t end;

    return __builtin_add_overflow(off, len, &end) ? UINT64_MAX : end;
}

/* Bytes behind n are always zero, so that a file that grows again shows zeros there, as on disk. */
void header_truncate(struct header *h, uint64_t size)
{
    size_t n = reach(size);

    if (n < h->n)
        memset(h->bytes + n, 0, h->n - n);
    else
        memset(h->bytes + h->n, 0,
               n - h->n); /* a header that the caller filled himself may have anything there */
    h->n = n;
    h->file_size = size;
}

void header_write(struct header *h, uint64_t off, const void *buf, size_t len)
{
    if (len == 0) /* write(2) of nothing does not extend */
        return;
    if (end_of(off, len) > h->file_size)
        header_truncate(h, end_of(off, len));
    if (off < h->n)
        memcpy(h->bytes + off, buf, DG_MIN(len, h->n - off));
}

void header_zero(struct header *h, uint64_t off, uint64_t len, bool keep_size)
{
    if (len == 0)
        return;
    if (!keep_size && end_of(off, len) > h->file_size)
        header_truncate(h, end_of(off, len));
    if (off < h->n)
        memset(h->bytes + off, 0, (size_t)DG_MIN(len, h->n - off));
}
