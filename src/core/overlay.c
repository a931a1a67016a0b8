/* overlay.c: see overlay.h. */
#include "core/overlay.h"

#include <string.h>

/* off + len, or the greatest number where that does not fit. */
static uint64_t end_of(uint64_t off, uint64_t len)
{
    uint64_t end;

    return __builtin_add_overflow(off, len, &end) ? UINT64_MAX : end;
}

/* The part of [at, at+n) that lies in [off, end). False: none. */
static bool common(uint64_t at, uint64_t n, uint64_t off, uint64_t end, uint64_t *ret_lo,
                   size_t *ret_len)
{
    uint64_t lo = DG_MAX(at, off), hi = DG_MIN(end_of(at, n), end);

    if (lo >= hi)
        return false;
    *ret_lo = lo;
    *ret_len = (size_t)(hi - lo);
    return true;
}

uint64_t overlay_end(const struct plan *plan)
{
    uint64_t end = 0;

    for (unsigned i = 0; i < plan->n; i++)
        end = DG_MAX(end, end_of(plan->ext[i].off, plan->ext[i].len));
    return end;
}

void overlay_lay(uint64_t at, const uint8_t *bytes, size_t n, uint64_t off, void *buf, size_t len)
{
    uint64_t lo;
    size_t part;

    if (common(at, n, off, end_of(off, len), &lo, &part))
        memcpy((uint8_t *)buf + (lo - off), bytes + (lo - at), part);
}

void overlay_patch(const struct plan *plan, enum overlay_side side, uint64_t off, void *buf,
                   size_t len)
{
    for (unsigned i = 0; i < plan->n; i++) {
        const struct extent *e = &plan->ext[i];
        overlay_lay(e->off, side == OVERLAY_TRUE ? e->truth : e->sealed, e->len, off, buf, len);
    }
}

/* The first position from off on that is in no extent. */
static uint64_t skip_extents(const struct plan *plan, uint64_t off)
{
    for (unsigned i = 0; i < plan->n;) {
        const struct extent *e = &plan->ext[i++];
        if (off >= e->off && off < end_of(e->off, e->len)) {
            off = end_of(e->off, e->len);
            i = 0; /* extents stand in seal order: the next one in the file may be an earlier one of
                    * the plan
                    */
        }
    }
    return off;
}

bool overlay_next_gap(const struct plan *plan, uint64_t off, uint64_t end, uint64_t *ret_off,
                      uint64_t *ret_len)
{
    off = skip_extents(plan, off);
    if (off >= end)
        return false;
    for (unsigned i = 0; i < plan->n; i++)
        if (plan->ext[i].off > off && plan->ext[i].len > 0)
            end = DG_MIN(end, plan->ext[i].off);
    *ret_off = off;
    *ret_len = end - off;
    return true;
}

bool overlay_same_shape(const struct plan *a, const struct plan *b)
{
    if (a->n != b->n)
        return false;
    for (unsigned i = 0; i < a->n; i++)
        if (a->ext[i].off != b->ext[i].off || a->ext[i].len != b->ext[i].len)
            return false;
    return true;
}

bool overlay_same_sealed(const struct plan *a, const struct plan *b)
{
    if (!overlay_same_shape(a, b))
        return false;
    for (unsigned i = 0; i < a->n; i++)
        if (memcmp(a->ext[i].sealed, b->ext[i].sealed, a->ext[i].len) != 0)
            return false;
    return true;
}

bool overlay_same_truth(const struct plan *a, const struct plan *b)
{
    if (!overlay_same_shape(a, b))
        return false;
    for (unsigned i = 0; i < a->n; i++)
        if (memcmp(a->ext[i].truth, b->ext[i].truth, a->ext[i].len) != 0)
            return false;
    return true;
}

/* Byte by byte: a torn write can leave any mixture of the sides. Only called for extents that are
 * neither wholly true nor wholly sealed. */
static bool explained(const struct extent *e, const uint8_t *disk, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (disk[i] != e->truth[i] && disk[i] != e->sealed[i] &&
            !(e->has_was && disk[i] == e->was[i]))
            return false;
    return true;
}

enum header_state overlay_compare(const struct plan *plan, struct excerpt *disk, uint64_t cut)
{
    bool all_true = true, all_sealed = true, all_explained = true;
    uint64_t file_size = disk->file_size;
    bool was_cut = cut != OVERLAY_NO_CUT && file_size <= cut;
    size_t len;
    uint64_t lo;

    if (plan->n == 0)
        return HEADER_NOPLAN;
    for (unsigned i = 0; i < plan->n; i++) {
        const struct extent *e = &plan->ext[i];
        if (!was_cut && end_of(e->off, e->len) > file_size)
            return HEADER_SHORT;
        if (!common(e->off, e->len, 0, file_size, &lo, &len)) /* cut away: nothing is left to undo
                                                               */
            continue;
        const uint8_t *p = view_get(disk, lo, len);
        if (!p) {
            all_true = all_sealed = all_explained = false; /* it is not loaded, so it is not known
                                                            */
            continue;                                      /* another extent may still be SHORT */
        }
        bool is_true = memcmp(p, e->truth, len) == 0;
        bool is_sealed = memcmp(p, e->sealed, len) == 0;
        all_true = all_true && is_true;
        all_sealed = all_sealed && is_sealed;
        all_explained = all_explained && (is_true || is_sealed || explained(e, p, len));
    }
    if (all_true)
        return HEADER_TRUE;
    if (all_sealed)
        return HEADER_SEALED;
    return all_explained ? HEADER_MIXED : HEADER_ALIEN;
}
