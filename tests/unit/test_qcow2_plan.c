/* test_qcow2_plan.c: the extents that seal a qcow2 image, and the property that every prefix of
 * them is sealed, on built and on randomly damaged headers. That QEMU refuses them is the task of
 * tests/func/check_qcow2_seal.py. */
#include "qcow2_image.h"

#include <errno.h>

/* ---- plan ---- */

static void check_extent(const struct plan *plan, unsigned i, uint64_t off, uint32_t len,
                         const void *truth, const void *sealed)
{
    cr_assert_eq(plan->ext[i].off, off, "extent %u is at %" PRIu64, i, plan->ext[i].off);
    cr_assert_eq(plan->ext[i].len, len, "extent %u has %" PRIu32 " bytes", i, plan->ext[i].len);
    cr_assert_not(plan->ext[i].has_was);
    cr_assert_arr_eq(plan->ext[i].truth, truth, len, "true bytes of extent %u", i);
    cr_assert_arr_eq(plan->ext[i].sealed, sealed, len, "sealed bytes of extent %u", i);
}

Test(qcow2_plan, plan_of_version_2)
{
    static struct plan plan;
    uint8_t b[FORMAT_REACH];

    build(b, 2);
    cr_assert_eq(make_plan(b, IMAGE_SIZE, SEAL_REFUSE, "node", &plan), 0);
    cr_assert_eq(plan.n, 1);
    check_extent(&plan, 0, 24, 8, "\0\0\0\x02\x80\0\0\0", "SEALED\0\0");
}

Test(qcow2_plan, plan_of_version_3)
{
    static struct plan plan;
    uint8_t b[FORMAT_REACH], row[ROW] = {0, 63};

    build(b, 3);
    header_put(b, 72, 8, 0x11); /* known bits stay */
    header_put(b, 36, 4, 1000);
    memcpy(row + 2, "SEALED node.example size=0000000280000000", 41);
    cr_assert_eq(make_plan(b, IMAGE_SIZE, SEAL_REFUSE, "node.example", &plan), 0);
    cr_assert_eq(plan.n, 3);
    check_extent(&plan, 0, 24, 8, "\0\0\0\x02\x80\0\0\0", "SEALED\0\0");
    check_extent(&plan, 1, TABLE + 7 * ROW, ROW, b + TABLE + 7 * ROW, row);
    check_extent(&plan, 2, 72, 8, "\0\0\0\0\0\0\0\x11", "\x80\0\0\0\0\0\0\x11");
}

Test(qcow2_plan, plan_of_size_only)
{
    static struct plan plan;
    uint8_t b[FORMAT_REACH];

    for (uint32_t version = 2; version <= 3; version++) {
        build(b, version);
        cr_assert_eq(make_plan(b, IMAGE_SIZE, SEAL_SIZE, "node", &plan), 0);
        cr_assert_eq(plan.n, 1);
        check_extent(&plan, 0, 24, 8, "\0\0\0\x02\x80\0\0\0", "\0\0\0\0\0\0\0\0");
    }
}

Test(qcow2_plan, row_text)
{
    static const struct {
        const char *holder, *name;
    } rows[] = {
        {"n", "SEALED n size=0000000280000000"},
        /* 46 characters, no NUL */
        {"seventeen-letters", "SEALED seventeen-letters size=0000000280000000"},
        {"more-than-seventeen-letters", "SEALED more-than-sevente size=0000000280000000"},
        {"a\nb\x7f\xc3\xa4", "SEALED a?b??? size=0000000280000000"},
        {"", "SEALED ? size=0000000280000000"},
        {NULL, "SEALED ? size=0000000280000000"},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        static struct plan plan;
        uint8_t b[FORMAT_REACH], row[ROW] = {0, 63};

        build(b, 3);
        memcpy(row + 2, rows[i].name, strlen(rows[i].name));
        cr_assert_eq(make_plan(b, IMAGE_SIZE, SEAL_REFUSE, rows[i].holder, &plan), 0);
        cr_assert_eq(plan.n, 3);
        cr_assert_arr_eq(plan.ext[1].sealed, row, ROW, "%s", rows[i].name);
    }
}

/* Which row is replaced. 0: none. */
Test(qcow2_plan, row_choice)
{
    static const struct {
        const char *what;
        struct change c[3];
        uint64_t file_size; /* 0: IMAGE_SIZE */
        size_t off;
    } rows[] = {
        /* clang-format off */
        {"last", {{0}}, 0, TABLE + 7 * ROW},
        {"part of a row behind it", {{116, 4, 3 * ROW + 47}, {TABLE + 4 * ROW, 8, 0}}, 0, TABLE + 2 * ROW},
        {"first that names bit 63", {{TABLE + 2 * ROW, 2, 63}, {TABLE + 4 * ROW, 2, 63}}, 0, TABLE + 2 * ROW},
        {"compatible bit 63 does not count", {{TABLE + 2 * ROW, 2, 0x13f}}, 0, TABLE + 7 * ROW},
        {"first without a name: QEMU stops there", {{TABLE + 5 * ROW + 2, 1, 0}}, 0, TABLE + 5 * ROW},
        {"only row", {{116, 4, ROW}, {TABLE + ROW, 8, 0}}, 0, TABLE},
        {"less than a row", {{116, 4, ROW - 1}, {TABLE + ROW, 8, 0}}, 0, 0},
        {"empty table", {{116, 4, 0}, {TABLE, 8, 0}}, 0, 0},
        {"no table", {{112, 4, 0x6803f858}}, 0, 0},
        {"second table wins", {{AFTER, 8, 0x6803f85700000090}}, 0, AFTER + 8},
        {"behind END", {{112, 8, 0}}, 0, 0},
        {"up to the last visible byte", {{100, 4, 4040}, {4040, 8, 0x6803f85700000030}}, 0, 4096 - ROW},
        {"one row too far", {{100, 4, 4048}, {4048, 8, 0x6803f85700000030}}, 0, 0},
        {"up to the end of the file", {{0}}, AFTER, TABLE + 7 * ROW},
        {"cut by the end of the file", {{0}}, AFTER - 1, 0},
        /* clang-format on */
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        static struct plan plan;
        uint8_t b[FORMAT_REACH];
        struct format_info info;
        uint64_t size = rows[i].file_size ? rows[i].file_size : IMAGE_SIZE;

        build(b, 3);
        change(b, rows[i].c, 3);
        cr_assert_eq(probe(b, size, &info), PROBE_YES, "%s: %s", rows[i].what, info.why);
        cr_assert_eq(make_plan(b, size, SEAL_REFUSE, "node", &plan), 0, "%s", rows[i].what);
        cr_assert_eq(plan.n, rows[i].off ? 3u : 2u, "%s", rows[i].what);
        cr_assert_eq(plan.ext[1].off, rows[i].off ? rows[i].off : 72, "%s: %" PRIu64, rows[i].what,
                     plan.ext[1].off);
    }
}

Test(qcow2_plan, no_plan_for_what_is_no_image)
{
    static struct plan plan;
    uint8_t b[FORMAT_REACH];

    build(b, 3);
    plan.n = 7;
    cr_assert_eq(make_plan(b, 79, SEAL_REFUSE, "node", &plan), -EUCLEAN);
    cr_assert_eq(make_plan(b, 3, SEAL_REFUSE, "node", &plan), -EUCLEAN);
    b[0] = 0;
    cr_assert_eq(make_plan(b, IMAGE_SIZE, SEAL_REFUSE, "node", &plan), -EUCLEAN);
    cr_assert_eq(plan.n, 7); /* untouched */
}

/* Every header that passes can be sealed, each prefix of the seal is recognised, and undoing it
 * gives every byte back. */
static void check_round_trip(const uint8_t *b, uint64_t file_size, enum seal_mode mode)
{
    static struct plan plan;
    struct format_info info;
    uint8_t disk[FORMAT_REACH];
    uint64_t n = file_size < FORMAT_REACH ? file_size : FORMAT_REACH;

    cr_assert_eq(make_plan(b, file_size, mode, "node", &plan), 0);
    cr_assert(plan.n >= 1 && plan.n <= PLAN_MAX);
    memcpy(disk, b, sizeof(disk));
    for (unsigned i = 0; i < plan.n; i++) {
        const struct extent *e = &plan.ext[i];

        cr_assert(e->len >= 1 && e->len <= EXTENT_MAX && e->off + e->len <= n);
        cr_assert_arr_eq(e->truth, b + e->off, e->len);
        for (unsigned k = 0; k < i; k++)
            cr_assert(e->off >= plan.ext[k].off + plan.ext[k].len ||
                      plan.ext[k].off >= e->off + e->len);
        memcpy(disk + e->off, e->sealed, e->len);
        if (mode == SEAL_REFUSE)
            cr_assert_eq(probe(disk, file_size, &info), PROBE_SEALED);
    }
    for (unsigned i = plan.n; i-- > 0;) {
        if (mode == SEAL_REFUSE)
            cr_assert_eq(probe(disk, file_size, &info), PROBE_SEALED);
        memcpy(disk + plan.ext[i].off, plan.ext[i].truth, plan.ext[i].len);
    }
    cr_assert_arr_eq(disk, b, sizeof(disk));
}

Test(qcow2_plan, every_prefix_is_sealed)
{
    uint8_t b[FORMAT_REACH];

    for (uint32_t version = 2; version <= 3; version++) {
        build(b, version);
        check_round_trip(b, IMAGE_SIZE, SEAL_REFUSE);
        check_round_trip(b, IMAGE_SIZE, SEAL_SIZE);
    }
}

/* ---- random headers ---- */

static uint64_t random_state;

static uint64_t random_next(void) /* xorshift64, Marsaglia 2003 */
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static void mutate(uint8_t *b)
{
    static const uint64_t values[] = {0,          1,          7,          8,
                                      48,         64,         512,        4088,
                                      65536,      1u << 21,   0x7fffffff, 0xffffffff,
                                      1ull << 63, UINT64_MAX, 0x6803f857, 0x2385287500000018,
                                      SEALED};
    unsigned kind = random_next() % 4;
    size_t off = random_next() % (kind == 3 ? FORMAT_REACH - 8 : 160);

    if (kind == 0)
        b[off] = (uint8_t)random_next();
    else if (kind == 1)
        b[off] ^= (uint8_t)(1u << random_next() % 8);
    else
        header_put(b, off / 4 * 4, random_next() % 2 ? 4 : 8,
                   values[random_next() % (sizeof(values) / sizeof(values[0]))]);
}

Test(qcow2_plan, random_mutations)
{
    unsigned seen[PROBE_MORE + 1] = {0};

    random_state = 0x5eed5eed5eed5eed;
    for (unsigned i = 0; i < 60000; i++) {
        uint8_t b[FORMAT_REACH];
        uint64_t file_size = i % 3 ? IMAGE_SIZE : random_next() % 700;
        struct format_info info;
        enum probe answer;

        build(b, 2 + i % 2);
        for (unsigned k = 1 + random_next() % 4; k > 0; k--)
            mutate(b);
        answer = probe(b, file_size, &info);
        cr_assert_lt(strlen(info.why), sizeof(info.why));
        cr_assert_eq(answer == PROBE_LIES || answer == PROBE_SEALED, info.why[0] != '\0',
                     "round %u", i);
        cr_assert_neq(answer, PROBE_MORE, "round %u", i);
        seen[answer]++;
        if (answer == PROBE_YES)
            check_round_trip(b, file_size, i % 5 ? SEAL_REFUSE : SEAL_SIZE);
    }
    for (unsigned answer = PROBE_NO; answer < PROBE_MORE; answer++)
        cr_assert_gt(seen[answer], 20, "answer %u came %u times only", answer, seen[answer]);
}
