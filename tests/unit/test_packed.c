/* test_packed.c: a packed record gives back what was put there, in no more memory than it needs. */
#include "unit.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/overlay.h"
#include "core/packed.h"
#include "fakes.h"

#define JUNK 0xa5

static uint32_t seed = 1;

static uint32_t draw(uint32_t below)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % below;
}

/* A record whose every unused byte is junk. */
static struct record *make(size_t path, unsigned extents, uint32_t longest, bool all_was)
{
    struct record *rec = malloc(sizeof(*rec));

    cr_assert_not_null(rec);
    memset(rec, JUNK, sizeof(*rec));
    *rec = (struct record){.ino = draw(1000),
                           .generation = draw(1000),
                           .step = STEP_SEALED,
                           .seq = draw(1000),
                           .virtual_size = 10ull << 30,
                           .cut = OVERLAY_NO_CUT,
                           .mtime = {1790000000, 123456789},
                           .mtime_sealed = {1790000001, 1},
                           .chosen = draw(2),
                           .mtime_chosen = {1, 2},
                           .mtime_seen = {3, 4},
                           .sync_error = (int)draw(2) * EIO,
                           .fenced = FENCING_LOCK,
                           .plan = {.n = extents}};
    rec->handle = (struct io_handle){129, 3, {1, 2, 255}};
    strcpy(rec->host, "00112233-4455-4677-8899-aabbccddeeff");
    strcpy(rec->installation, "10112233-4455-4677-8899-aabbccddeeff");
    strcpy(rec->boot, "20112233-4455-4677-8899-aabbccddeeff");
    strcpy(rec->daemon, "30112233-4455-4677-8899-aabbccddeeff");
    strcpy(rec->host_name, "node1");
    strcpy(rec->since, "2026-11-22T10:00:00Z");
    strcpy(rec->format, "qcow2");
    memset(rec->image, 'p', path);
    uint64_t off = 0;
    for (unsigned i = 0; i < extents; i++) {
        struct extent *e = &rec->plan.ext[i];
        memset(e, JUNK, sizeof(*e));
        e->off = off + draw(100);
        e->len = all_was ? longest : 1 + draw(longest);
        e->has_was = all_was || draw(3) == 0;
        for (uint32_t k = 0; k < e->len; k++) {
            e->truth[k] = (uint8_t)draw(256);
            e->sealed[k] = (uint8_t)draw(256);
            e->was[k] = (uint8_t)draw(256);
        }
        off = e->off + e->len;
    }
    return rec;
}

/* The text has every field, so two records with the same text are the same. */
static void assert_same(const struct record *a, const struct record *b)
{
    char *x, *y;
    size_t n, m;

    cr_assert_eq(record_encode(a, &x, &n), 0);
    cr_assert_eq(record_encode(b, &y, &m), 0);
    cr_assert_str_eq(x, y);
    free(x);
    free(y);
}

static void assert_same_reads(const struct record *rec, const struct packed *p)
{
    uint8_t a[700], b[700];

    for (unsigned i = 0; i < 200; i++) {
        uint64_t off = draw(4096);
        size_t len = draw(sizeof(a));
        memset(a, JUNK, sizeof(a));
        memset(b, JUNK, sizeof(b));
        overlay_patch(&rec->plan, OVERLAY_TRUE, off, a, len);
        packed_patch(p, off, b, len);
        cr_assert_arr_eq(a, b, sizeof(a));
    }
    cr_assert_eq(packed_has_plan(p), rec->plan.n > 0);
}

/* rec -> packed -> a buffer full of junk. */
static void assert_round_trip(struct packed **p, const struct record *rec)
{
    struct record *back = malloc(sizeof(*back));

    cr_assert_not_null(back);
    memset(back, JUNK, sizeof(*back));
    cr_assert_eq(packed_room(p), 0);
    packed_put(p, rec);
    packed_get(*p, back);
    assert_same(rec, back);
    assert_same_reads(rec, *p);
    free(back);
}

Test(packed, gives_back_what_was_put)
{
    struct packed *p = NULL;

    for (unsigned i = 0; i < 300; i++) {
        struct record *rec = make(draw(300), draw(PLAN_MAX + 1), 1 + draw(EXTENT_MAX), false);
        assert_round_trip(&p, rec);
        free(rec);
    }
    free(p);
}

Test(packed, limits)
{
    struct record *all = make(RECORD_IMAGE_MAX - 1, PLAN_MAX, EXTENT_MAX, true);
    struct record *none = make(0, 0, 1, false);
    struct packed *p = NULL;

    assert_round_trip(&p, all);
    size_t most = packed_size(p);
    assert_round_trip(&p, none);
    cr_assert_lt(packed_size(p), 700);
    cr_assert_eq(packed_room(&p), 0);
    cr_assert_eq(packed_size(p), most, "the room is that of the largest record, and no larger");
    free(all);
    free(none);
    free(p);
}

Test(packed, room_for_a_new_one_is_an_empty_record)
{
    struct packed *p = NULL;
    struct record *rec = malloc(sizeof(*rec));

    cr_assert_not_null(rec);
    memset(rec, JUNK, sizeof(*rec));
    cr_assert_eq(packed_room(&p), 0);
    packed_get(p, rec);
    cr_assert_eq(rec->ino + rec->generation + rec->plan.n, 0);
    cr_assert_eq(rec->step, STEP_FREE);
    cr_assert_not(rec->chosen);
    cr_assert_str_eq(rec->image, "");
    cr_assert_str_eq(rec->host_name, "");
    free(rec);
    free(p);
}

Test(packed, a_usual_record_is_small)
{
    struct record *rec = make(60, 3, 48, true);
    struct packed *p = NULL;

    assert_round_trip(&p, rec);
    cr_assert_leq(packed_size(p), 1200);
    free(rec);
    free(p);
}

Test(packed, keeps_the_record_where_there_is_no_memory)
{
    struct record *small = make(10, 1, 8, false), *large = make(200, PLAN_MAX, 200, false);
    struct record *back = malloc(sizeof(*back));
    struct packed *p = NULL;

    cr_assert_not_null(back);
    assert_round_trip(&p, small);
    fake_mallocs = 0;
    fake_mallocs_all = true;
    int r = packed_room(&p);
    fake_mallocs = -1;
    cr_assert_eq(r, -ENOMEM);
    packed_get(p, back);
    assert_same(small, back);

    cr_assert_eq(packed_room(&p), 0);
    size_t room = packed_size(p);
    fake_mallocs = 0;
    packed_put(&p, large);
    fake_mallocs = -1;
    cr_assert_eq(packed_size(p), room, "what could not be given back stays");
    packed_get(p, back);
    assert_same(large, back);

    fake_mallocs = 0;
    packed_put(&p, small);
    fake_mallocs = -1;
    packed_get(p, back);
    assert_same(small, back);
    packed_put(&p, small);
    cr_assert_lt(packed_size(p), 1000, "and is given back later");
    free(small);
    free(large);
    free(back);
    free(p);
}
