/* test_overlay.c: arithmetic of plans, by hand and against a naive model, one byte at a time. */
#include "unit.h"

#include "core/overlay.h"

/* Seal order is not file order: [72, 80), [24, 32), [32, 36). */
static struct plan *sample(void)
{
    struct plan *plan = calloc(1, sizeof *plan);

    cr_assert_not_null(plan);
    plan->n = 3;
    plan->ext[0] = (struct extent){.off = 72, .len = 8};
    plan->ext[1] = (struct extent){.off = 24, .len = 8};
    plan->ext[2] = (struct extent){.off = 32, .len = 4};
    for (unsigned i = 0; i < plan->n; i++) {
        memset(plan->ext[i].truth, 't', plan->ext[i].len);
        memset(plan->ext[i].sealed, 's', plan->ext[i].len);
    }
    return plan;
}

Test(overlay, end)
{
    struct plan *plan = sample();

    cr_assert_eq(overlay_end(plan), 80u);
    plan->n = 0;
    cr_assert_eq(overlay_end(plan), 0u);
    free(plan);
}

Test(overlay, shapes)
{
    struct plan *a = sample(), *b = sample();

    cr_assert(overlay_same_shape(a, b) && overlay_same_sealed(a, b) && overlay_same_truth(a, b));
    b->ext[1].truth[7] = 'x';
    cr_assert(overlay_same_shape(a, b) && overlay_same_sealed(a, b));
    cr_assert_not(overlay_same_truth(a, b));
    b->ext[2].sealed[3] = 'x';
    cr_assert(overlay_same_shape(a, b));
    cr_assert_not(overlay_same_sealed(a, b));
    a->ext[0].sealed[8] = 'x'; /* behind len: nothing */
    b->ext[2].sealed[3] = 's';
    cr_assert(overlay_same_sealed(a, b));
    b->ext[0].len--;
    cr_assert_not(overlay_same_shape(a, b));
    b->ext[0].len++;
    b->n--;
    cr_assert_not(overlay_same_shape(a, b));
    free(a);
    free(b);
}

#define SPACE 200u /* bytes of the model's file */

static uint64_t rnd_state = 1;
static unsigned rnd(unsigned below)
{
    rnd_state = rnd_state * 6364136223846793005u + 1442695040888963407u; /* Knuth, MMIX */
    return (unsigned)(rnd_state >> 33) % below;
}

/* A random plan inside SPACE, shuffled; the alphabet is small, so that sides coincide at times. */
static void random_plan(struct plan *plan, uint8_t owner[SPACE])
{
    unsigned off = 0;

    memset(plan, 0, sizeof *plan);
    memset(owner, 0, SPACE);
    while (plan->n < 6) {
        off += rnd(20);
        unsigned len = 1 + rnd(15);
        if (off + len > SPACE)
            break;
        struct extent *e = &plan->ext[plan->n++];
        e->off = off;
        e->len = len;
        e->has_was = rnd(2);
        for (unsigned i = 0; i < len; i++) {
            e->truth[i] = (uint8_t)('a' + rnd(3));
            e->sealed[i] = (uint8_t)('b' + rnd(3));
            e->was[i] = (uint8_t)('c' + rnd(3));
        }
        off += len;
    }
    for (unsigned i = 0; i + 1 < plan->n; i++) {
        struct extent e = plan->ext[i];
        unsigned k = i + rnd(plan->n - i);
        plan->ext[i] = plan->ext[k];
        plan->ext[k] = e;
    }
    for (unsigned i = 0; i < plan->n; i++)
        memset(owner + plan->ext[i].off, (int)i + 1, plan->ext[i].len);
}

Test(overlay, patch_against_the_model)
{
    struct plan *plan = calloc(1, sizeof *plan);
    uint8_t owner[SPACE], buf[SPACE];

    for (unsigned round = 0; round < 3000; round++) {
        enum overlay_side side = rnd(2) ? OVERLAY_TRUE : OVERLAY_SEALED;
        unsigned off = rnd(SPACE), len = rnd(SPACE - off + 1);
        random_plan(plan, owner);
        memset(buf, '-', sizeof buf);
        overlay_patch(plan, side, off, buf + off, len);
        for (unsigned i = 0; i < SPACE; i++) {
            const struct extent *e = owner[i] ? &plan->ext[owner[i] - 1] : NULL;
            const uint8_t *bytes =
                e ? (side == OVERLAY_TRUE ? e->truth : e->sealed) + (i - e->off) : NULL;
            cr_assert_eq(buf[i], bytes && i >= off && i < off + len ? *bytes : '-', "byte %u", i);
        }
    }
    free(plan);
}

Test(overlay, gaps_against_the_model)
{
    struct plan *plan = calloc(1, sizeof *plan);
    uint8_t owner[SPACE], seen[SPACE];

    for (unsigned round = 0; round < 3000; round++) {
        uint64_t begin = rnd(SPACE), end = begin + rnd((unsigned)(SPACE - begin) + 1), at = begin,
                 off, len;
        random_plan(plan, owner);
        memset(seen, 0, sizeof seen);
        while (overlay_next_gap(plan, at, end, &off, &len)) {
            cr_assert(len > 0 && off >= at && off + len <= end);
            memset(seen + off, 1, len);
            at = off + len;
        }
        for (unsigned i = 0; i < SPACE; i++)
            cr_assert_eq(seen[i], !owner[i] && i >= begin && i < end, "byte %u", i);
    }
    free(plan);
}

Test(overlay, a_gap_is_as_long_as_it_can_be)
{
    struct plan *plan = sample();
    uint64_t off = 1, len = 1;

    cr_assert(overlay_next_gap(plan, 0, 4096, &off, &len));
    cr_assert(off == 0 && len == 24);
    cr_assert(overlay_next_gap(plan, 24, 4096, &off, &len));
    cr_assert(off == 36 && len == 36);
    cr_assert(overlay_next_gap(plan, 72, UINT64_MAX, &off, &len));
    cr_assert(off == 80 && len == UINT64_MAX - 80);
    cr_assert_not(overlay_next_gap(plan, 24, 36, &off, &len));
    cr_assert_not(overlay_next_gap(plan, 5, 5, &off, &len));
    cr_assert(off == 80, "untouched when there is none");
    free(plan);
}

/* ---- compare ---- */

static uint8_t disk[4096];

/* Writes one side of the plan over a blank disk. */
static void lay(const struct plan *plan, enum overlay_side side)
{
    memset(disk, '-', sizeof disk);
    overlay_patch(plan, side, 0, disk, sizeof disk);
}

static enum header_state compare_loaded(const struct plan *plan, size_t n, uint64_t file_size,
                                        uint64_t cut)
{
    struct excerpt v = {.file_size = file_size, .n = n > 0, .win = {{0, n, disk}}};

    return overlay_compare(plan, &v, cut);
}

static enum header_state compare(const struct plan *plan, uint64_t file_size, uint64_t cut)
{
    return compare_loaded(plan, DG_MIN(sizeof disk, file_size), file_size, cut);
}

#define WHOLE 1000000, OVERLAY_NO_CUT

Test(overlay, compare_pure_states)
{
    struct plan *plan = sample();

    lay(plan, OVERLAY_TRUE);
    cr_assert_eq(compare(plan, WHOLE), HEADER_TRUE);
    lay(plan, OVERLAY_SEALED);
    cr_assert_eq(compare(plan, WHOLE), HEADER_SEALED);
    memset(disk, '-', 24);
    disk[36] = disk[80] = 'x';
    cr_assert_eq(compare(plan, WHOLE), HEADER_SEALED, "bytes outside the extents do not matter");
    disk[79] = 'x';
    cr_assert_eq(compare(plan, WHOLE), HEADER_ALIEN);
    plan->n = 0;
    cr_assert_eq(compare(plan, WHOLE), HEADER_NOPLAN);
    cr_assert_eq(compare(plan, 0, OVERLAY_NO_CUT), HEADER_NOPLAN);
    free(plan);
}

Test(overlay, compare_every_prefix_of_a_seal)
{
    struct plan *plan = sample();

    for (unsigned done = 0; done <= 3; done++) {
        lay(plan, OVERLAY_TRUE);
        for (unsigned i = 0; i < done; i++)
            memcpy(disk + plan->ext[i].off, plan->ext[i].sealed, plan->ext[i].len);
        cr_assert_eq(compare(plan, WHOLE), done == 0   ? HEADER_TRUE
                                           : done == 3 ? HEADER_SEALED
                                                       : HEADER_MIXED);
    }
    lay(plan, OVERLAY_TRUE);
    disk[75] = 's'; /* torn inside an extent */
    cr_assert_eq(compare(plan, WHOLE), HEADER_MIXED);
    free(plan);
}

Test(overlay, compare_was)
{
    struct plan *plan = sample();

    lay(plan, OVERLAY_SEALED);
    memset(plan->ext[1].was, 'w', 8);
    disk[24] = 'w';
    cr_assert_eq(compare(plan, WHOLE), HEADER_ALIEN, "was without has_was says nothing");
    plan->ext[1].has_was = true;
    cr_assert_eq(compare(plan, WHOLE), HEADER_MIXED);
    disk[25] = 't';
    cr_assert_eq(compare(plan, WHOLE), HEADER_MIXED, "true, sealed and was in one extent");
    disk[72] = 'w';
    cr_assert_eq(compare(plan, WHOLE), HEADER_ALIEN, "was of another extent says nothing");
    memset(plan->ext[1].was, 's', 8);
    lay(plan, OVERLAY_SEALED);
    cr_assert_eq(compare(plan, WHOLE), HEADER_SEALED);
    free(plan);
}

Test(overlay, compare_equal_sides_are_true)
{
    struct plan *plan = sample();

    for (unsigned i = 0; i < plan->n; i++)
        memset(plan->ext[i].sealed, 't', plan->ext[i].len);
    lay(plan, OVERLAY_TRUE);
    cr_assert_eq(compare(plan, WHOLE), HEADER_TRUE);
    free(plan);
}

Test(overlay, compare_short_files)
{
    struct plan *plan = sample();

    lay(plan, OVERLAY_SEALED);
    cr_assert_eq(compare(plan, 80, OVERLAY_NO_CUT), HEADER_SEALED);
    cr_assert_eq(compare(plan, 79, OVERLAY_NO_CUT), HEADER_SHORT);
    cr_assert_eq(compare(plan, 0, OVERLAY_NO_CUT), HEADER_SHORT);
    cr_assert_eq(compare(plan, 79, 78), HEADER_SHORT, "greater than the cut: it did not happen");
    disk[24] = 'x';
    cr_assert_eq(compare(plan, 79, OVERLAY_NO_CUT), HEADER_SHORT,
                 "also where another extent is alien");
    free(plan);
}

Test(overlay, compare_bytes_that_were_not_loaded)
{
    struct plan *plan = sample();

    lay(plan, OVERLAY_TRUE);
    cr_assert_eq(compare_loaded(plan, 79, 1000, OVERLAY_NO_CUT), HEADER_ALIEN);
    cr_assert_eq(compare_loaded(plan, 0, 1000, OVERLAY_NO_CUT), HEADER_ALIEN);
    cr_assert_eq(compare_loaded(plan, 80, 1000, OVERLAY_NO_CUT), HEADER_TRUE);
    cr_assert_eq(compare_loaded(plan, 71, 72, 72), HEADER_TRUE);
    free(plan);
}

Test(overlay, compare_after_a_cut)
{
    struct plan *plan = sample();

    lay(plan, OVERLAY_SEALED);
    cr_assert_eq(compare(plan, 76, 76), HEADER_SEALED, "the part that is left");
    disk[76] = 'x';
    cr_assert_eq(compare(plan, 76, 76), HEADER_SEALED, "the part that is gone does not matter");
    cr_assert_eq(compare(plan, 77, 77), HEADER_ALIEN);
    cr_assert_eq(compare(plan, 1000, 76), HEADER_ALIEN, "not cut: the ordinary rule");
    cr_assert_eq(compare(plan, 70, 76), HEADER_SEALED, "shorter than the cut");
    cr_assert_eq(compare(plan, 24, 24), HEADER_TRUE, "everything is gone");
    cr_assert_eq(compare(plan, 0, 0), HEADER_TRUE);
    disk[24] = 't';
    cr_assert_eq(compare(plan, 25, 25), HEADER_TRUE);
    cr_assert_eq(compare(plan, 26, 26), HEADER_MIXED);
    free(plan);
}

/* The definition, one byte at a time. */
static enum header_state model(const struct plan *plan, uint64_t file_size, uint64_t cut)
{
    bool all_true = true, all_sealed = true, known = true;

    for (unsigned i = 0; i < plan->n; i++)
        for (unsigned k = 0; k < plan->ext[i].len; k++) {
            const struct extent *e = &plan->ext[i];
            if (e->off + k >= file_size) {
                if (cut == OVERLAY_NO_CUT || file_size > cut)
                    return HEADER_SHORT;
                continue;
            }
            uint8_t byte = disk[e->off + k];
            all_true &= byte == e->truth[k];
            all_sealed &= byte == e->sealed[k];
            known &=
                byte == e->truth[k] || byte == e->sealed[k] || (e->has_was && byte == e->was[k]);
        }
    if (plan->n == 0)
        return HEADER_NOPLAN;
    return all_true     ? HEADER_TRUE
           : all_sealed ? HEADER_SEALED
           : known      ? HEADER_MIXED
                        : HEADER_ALIEN;
}

/* A disk that is all true, all sealed, or byte by byte anything of the plan, at times with a
 * foreign byte. */
static void random_disk(const struct plan *plan)
{
    unsigned kind = rnd(4);

    lay(plan, kind == 0 ? OVERLAY_TRUE : OVERLAY_SEALED);
    for (unsigned i = 0; kind > 1 && i < plan->n; i++) {
        const struct extent *e = &plan->ext[i];
        for (unsigned k = 0; k < e->len; k++) {
            unsigned side = rnd(e->has_was ? 3 : 2);
            disk[e->off + k] = side == 0 ? e->truth[k] : side == 1 ? e->sealed[k] : e->was[k];
        }
    }
    if (rnd(4) == 0)
        disk[rnd(SPACE)] = 'z';
}

Test(overlay, compare_against_the_model)
{
    struct plan *plan = calloc(1, sizeof *plan);
    unsigned count[HEADER_NOPLAN + 1] = {0};
    uint8_t owner[SPACE];

    for (unsigned round = 0; round < 20000; round++) {
        random_plan(plan, owner);
        random_disk(plan);
        uint64_t size = rnd(3) ? SPACE + rnd(5000) : rnd(SPACE);
        uint64_t cut = rnd(2) ? OVERLAY_NO_CUT : rnd(SPACE + 100);
        enum header_state state = compare(plan, size, cut);
        cr_assert_eq(state, model(plan, size, cut), "round %u", round);
        count[state]++;
    }
    for (int state = HEADER_TRUE; state <= HEADER_SHORT; state++)
        cr_assert_gt(count[state], 100u, "state %d was hardly seen", state);
    free(plan);
}
