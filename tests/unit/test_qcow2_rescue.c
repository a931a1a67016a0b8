/* test_qcow2_rescue.c: what undoes the seal of a qcow2 image without a record, and the names of
 * other files in it. */
#include "qcow2_image.h"

#include <errno.h>

#define BOUND (20ull << 29) /* of build()'s l1_size */

static const struct table_row {
    uint8_t type, bit;
    const char *name;
} qemu_72[] = {
    {0, 0, "dirty bit"},        {0, 1, "corrupt bit"},         {0, 2, "external data file"},
    {0, 3, "compression type"}, {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
    {2, 0, "bitmaps"},          {2, 1, "raw external data"}};

/* build() with the rows of QEMU's own table that `mask` has, in its order. */
static void build_qemu(uint8_t *b, unsigned mask)
{
    unsigned n = 0;

    build(b, 3);
    memset(b + TABLE, 0, ROWS * ROW);
    for (unsigned i = 0; i < ROWS; i++) {
        uint8_t *row = b + TABLE + n * ROW;

        if (!(mask & 1u << i))
            continue;
        row[0] = qemu_72[i].type;
        row[1] = qemu_72[i].bit;
        memcpy(row + 2, qemu_72[i].name, strlen(qemu_72[i].name));
        n++;
    }
    header_put(b, TABLE - 4, 4, n * ROW);
}

/* Writes the first n extents of the seal; b stays. */
static void seal(const uint8_t *b, unsigned n, uint8_t *ret)
{
    static struct plan plan;

    cr_assert_eq(make_plan(b, IMAGE_SIZE, SEAL_REFUSE, "node", &plan), 0);
    memcpy(ret, b, FORMAT_REACH);
    for (unsigned i = 0; i < plan.n && i < n; i++)
        memcpy(ret + plan.ext[i].off, plan.ext[i].sealed, plan.ext[i].len);
}

/* Rescues b and undoes it there when that works. */
static int rescue(uint8_t *b, uint64_t file_size, const uint64_t *size, struct rescue *ret)
{
    static struct plan plan;
    struct excerpt v = view_of(b, file_size);
    uint8_t before[FORMAT_REACH];
    int r;

    memset(ret, 0x77, sizeof(*ret));
    memset(&plan, 0x77, sizeof(plan));
    memcpy(before, b, sizeof(before));
    r = format_qcow2.rescue(&v, size, ret, &plan);
    for (unsigned i = plan.n; r == 0 && i-- > 0;) {
        const struct extent *e = &plan.ext[i];

        cr_assert(e->len >= 1 && e->len <= EXTENT_MAX && e->off + e->len <= v.win[0].len);
        cr_assert_arr_eq(e->sealed, before + e->off, e->len,
                         "the sealed bytes are those that stand there");
        memcpy(b + e->off, e->truth, e->len);
    }
    view_free(&v);
    cr_assert_leq(ret->n, RESCUE_MAX);
    return r;
}

static void check_candidate(const struct rescue *r, unsigned i, enum rescue_kind kind,
                            uint64_t size, const char *source)
{
    cr_assert_lt(i, r->n);
    cr_assert_eq(r->candidate[i].kind, kind);
    cr_assert_eq(r->candidate[i].size, size);
    cr_assert(strstr(r->candidate[i].source, source) != NULL, "%s", r->candidate[i].source);
}

Test(qcow2_rescue, version_3_is_exact_to_the_byte)
{
    static const unsigned tables[] = {0xff, 0xef, 0x27, 0x23, 0x21}; /* of QEMU 5.2, 5.1, 4.0, 1.7
                                                                        and before */

    for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++) {
        uint8_t b[FORMAT_REACH], disk[FORMAT_REACH];
        struct rescue got;

        build_qemu(b, tables[i]);
        header_put(b, 72, 8, 1);
        header_put(b, 24, 8, VIRTUAL_SIZE - 512);
        seal(b, PLAN_MAX, disk);
        cr_assert_arr_neq(b, disk, sizeof(b));
        cr_assert_eq(rescue(disk, IMAGE_SIZE, NULL, &got), 0);
        check_candidate(&got, 0, RESCUE_EXACT, VIRTUAL_SIZE - 512, "feature name row");
        cr_assert_null(strstr(got.candidate[0].source, "not known"));
        check_candidate(&got, 1, RESCUE_UPPER, BOUND, "L1");
        cr_assert_arr_eq(disk, b, sizeof(b), "table %x", tables[i]);
    }
}

/* A row that is not of QEMU's tables: the size is exact, the row becomes one that is right, and the
 * source says so. */
Test(qcow2_rescue, unknown_table)
{
    static const uint8_t raw_data[ROW] = "\2\1raw external data", none[ROW];
    uint8_t b[FORMAT_REACH], disk[FORMAT_REACH];
    struct format_info info;
    struct rescue got;

    for (unsigned twice = 0; twice < 2; twice++) {
        build(b, 3);
        if (twice)
            header_put(b, TABLE + ROW, 2, 0x0201);
        seal(b, PLAN_MAX, disk);
        cr_assert_eq(rescue(disk, IMAGE_SIZE, NULL, &got), 0);
        check_candidate(&got, 0, RESCUE_EXACT, VIRTUAL_SIZE, "not known");
        cr_assert_arr_eq(disk + TABLE + 7 * ROW, twice ? none : raw_data, ROW);
        memcpy(disk + TABLE + 7 * ROW, b + TABLE + 7 * ROW, ROW);
        cr_assert_arr_eq(disk, b, sizeof(b));
        cr_assert_eq(probe(disk, IMAGE_SIZE, &info), PROBE_YES);
    }
}

/* A known table with one row more is not a known table. */
Test(qcow2_rescue, longer_table)
{
    uint8_t b[FORMAT_REACH], disk[FORMAT_REACH];
    struct rescue got;

    build_qemu(b, 0x23);
    header_put(b, TABLE - 4, 4, 4 * ROW);
    memcpy(b + TABLE + 3 * ROW, "\2\7other", 7);
    seal(b, PLAN_MAX, disk);
    cr_assert_eq(rescue(disk, IMAGE_SIZE, NULL, &got), 0);
    check_candidate(&got, 0, RESCUE_EXACT, VIRTUAL_SIZE, "not known");
    cr_assert_str_eq((const char *)disk + TABLE + 3 * ROW + 2, "raw external data");
}

/* Each subset of the three marks. */
Test(qcow2_rescue, partial_seals)
{
    for (unsigned set = 1; set < 8; set++) {
        static struct plan plan;
        const uint64_t given = VIRTUAL_SIZE;
        uint8_t b[FORMAT_REACH], disk[FORMAT_REACH], again[FORMAT_REACH];
        struct format_info info;
        struct rescue got;
        int r;

        build_qemu(b, 0xff);
        cr_assert_eq(make_plan(b, IMAGE_SIZE, SEAL_REFUSE, "node", &plan), 0);
        memcpy(disk, b, sizeof(disk));
        for (unsigned i = 0; i < 3; i++)
            if (set & 1u << i)
                memcpy(disk + plan.ext[i].off, plan.ext[i].sealed, plan.ext[i].len);
        if (probe(disk, IMAGE_SIZE, &info) != PROBE_SEALED) {
            cr_assert(set == 2 || set == 4,
                      "only a row alone and bit 63 alone are no seal, not set %u", set);
            continue;
        }
        memcpy(again, disk, sizeof(again));
        r = rescue(disk, IMAGE_SIZE, NULL, &got);
        cr_assert_eq(r, (set & 3) == 1 ? -ENODATA : 0, "set %u: %d", set, r);
        if (r == 0)
            cr_assert_arr_eq(disk, b, sizeof(b), "set %u", set);
        else
            check_candidate(&got, 0, RESCUE_UPPER, BOUND, "L1");
        cr_assert_eq(rescue(again, IMAGE_SIZE, &given, &got), 0, "set %u", set);
        cr_assert_arr_eq(again, b, sizeof(b), "set %u", set);
    }
}

/* Bit 63 is the image's own: the seal leaves it, each state of it is SEALED, and the rescue does
 * not clear it, with a row of ours and without. */
Test(qcow2_rescue, own_bit)
{
    for (unsigned table = 0; table < 2; table++) {
        static struct plan plan;
        const uint64_t given = VIRTUAL_SIZE;
        uint8_t b[FORMAT_REACH], disk[FORMAT_REACH];
        struct format_info info;
        struct rescue got;

        if (table)
            build_qemu(b, 0xff);
        else
            build(b, 3);
        if (!table)
            header_put(b, TABLE - 8, 8, 0); /* no table of names */
        header_put(b, 72, 8, 1ull << 63);
        cr_assert_eq(probe(b, IMAGE_SIZE, &info), PROBE_YES, "%s", info.why);
        cr_assert_eq(make_plan(b, IMAGE_SIZE, SEAL_REFUSE, "node", &plan), 0);
        cr_assert_eq(plan.n, 1 + table);
        memcpy(disk, b, sizeof(disk));
        for (unsigned i = 0; i < plan.n; i++) {
            memcpy(disk + plan.ext[i].off, plan.ext[i].sealed, plan.ext[i].len);
            cr_assert_eq(probe(disk, IMAGE_SIZE, &info), PROBE_SEALED);
        }
        cr_assert_eq(rescue(disk, IMAGE_SIZE, table ? NULL : &given, &got), 0);
        cr_assert_arr_eq(disk, b, sizeof(b), "table %u", table);
    }
}

/* The true size of an image that is just being made. */
Test(qcow2_rescue, size_0)
{
    uint8_t b[FORMAT_REACH], disk[FORMAT_REACH];
    struct rescue got;

    build_qemu(b, 0xff);
    header_put(b, 24, 8, 0);
    seal(b, PLAN_MAX, disk);
    cr_assert_eq(rescue(disk, IMAGE_SIZE, NULL, &got), 0);
    check_candidate(&got, 0, RESCUE_EXACT, 0, "row");
    cr_assert_arr_eq(disk, b, sizeof(b));
}

Test(qcow2_rescue, version_2_needs_a_size)
{
    const uint64_t good = VIRTUAL_SIZE, large = BOUND + 1, mark = SEALED;
    uint8_t b[FORMAT_REACH], disk[FORMAT_REACH], sealed[FORMAT_REACH];
    struct rescue got;

    build(b, 2);
    seal(b, PLAN_MAX, disk);
    memcpy(sealed, disk, sizeof(sealed));
    cr_assert_eq(rescue(disk, IMAGE_SIZE, NULL, &got), -ENODATA);
    cr_assert_eq(got.n, 1);
    check_candidate(&got, 0, RESCUE_UPPER, BOUND, "L1");
    cr_assert_eq(rescue(disk, IMAGE_SIZE, &large, &got), -ERANGE);
    cr_assert_eq(got.n, 1);
    cr_assert_eq(rescue(disk, IMAGE_SIZE, &mark, &got), -ERANGE);
    cr_assert_arr_eq(disk, sealed, sizeof(disk));
    cr_assert_eq(rescue(disk, IMAGE_SIZE, &good, &got), 0);
    cr_assert_arr_eq(disk, b, sizeof(b));
}

Test(qcow2_rescue, contradictions)
{
    static const struct {
        const char *what;
        struct change c[3];
        int r;
    } rows[] = {
        {"row with a capital digit", {{TABLE + 7 * ROW + 2 + 17, 1, 'A'}}, -ENODATA},
        {"row without the word", {{TABLE + 7 * ROW + 2, 1, 's'}}, -ENODATA},
        {"row with a tail", {{TABLE + 7 * ROW + 47, 1, 'x'}}, -ENODATA},
        {"row of another bit", {{TABLE + 7 * ROW + 1, 1, 62}}, -ENODATA},
        {"row of a compatible bit", {{TABLE + 7 * ROW, 1, 1}}, -ENODATA},
        {"size and row differ", {{24, 8, VIRTUAL_SIZE - 512}}, -ENODATA},
        {"size and row agree", {{24, 8, VIRTUAL_SIZE}}, 0},
        {"row larger than the L1 table", {{36, 4, 19}}, -EUCLEAN},
        {"another lie", {{96, 4, 7}}, -EUCLEAN},
        {"another version", {{4, 4, 4}}, -EUCLEAN},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        uint8_t b[FORMAT_REACH], disk[FORMAT_REACH];
        struct rescue got;
        int r;

        build_qemu(b, 0xff);
        seal(b, PLAN_MAX, disk);
        change(disk, rows[i].c, 3);
        r = rescue(disk, IMAGE_SIZE, NULL, &got);
        cr_assert_eq(r, rows[i].r, "%s: %d", rows[i].what, r);
    }
}

Test(qcow2_rescue, given_size_must_be_the_exact_one)
{
    const uint64_t other = VIRTUAL_SIZE - 512;
    uint8_t b[FORMAT_REACH], disk[FORMAT_REACH];
    struct rescue got;

    build_qemu(b, 0xff);
    seal(b, PLAN_MAX, disk);
    cr_assert_eq(rescue(disk, IMAGE_SIZE, &other, &got), -ERANGE);
    check_candidate(&got, 0, RESCUE_EXACT, VIRTUAL_SIZE, "row");
}

/* ---- links ---- */

struct seen {
    unsigned n;
    int answer;
    struct format_link link[2];
};

static int see(void *arg, const struct format_link *link)
{
    struct seen *seen = arg;

    cr_assert_lt(seen->n, 2);
    seen->link[seen->n++] = *link;
    return seen->answer;
}

static int links(const uint8_t *b, uint64_t file_size, struct seen *seen)
{
    struct excerpt v = view_of(b, file_size);
    int r = format_qcow2.links(&v, see, seen);

    view_free(&v);
    return r;
}

/* Backing name at 1024, extensions at AFTER: backing format, data file. */
static void build_links(uint8_t *b, const char *backing, const char *format, const char *data)
{
    size_t at = AFTER;

    build(b, 3);
    if (backing) {
        header_put(b, 8, 8, 1024);
        header_put(b, 16, 4, strlen(backing));
        memcpy(b + 1024, backing, strlen(backing));
    }
    if (format) {
        header_put(b, at, 8, 0xe2792aca00000000 | strlen(format));
        memcpy(b + at + 8, format, strlen(format));
        at += 8 + (strlen(format) + 7) / 8 * 8;
    }
    if (data) {
        header_put(b, 72, 8, 4);
        header_put(b, at, 8, 0x4441544100000000 | strlen(data));
        memcpy(b + at + 8, data, strlen(data));
    }
}

Test(qcow2_rescue, links)
{
    static const struct {
        const char *backing, *format, *data; /* in the image */
        int r;
        unsigned n;
        const char *path;
    } rows[] = {
        {NULL, NULL, NULL, 0, 0, NULL},
        {"base.qcow2", "qcow2", NULL, 0, 1, "base.qcow2"},
        {"/a/b:c", "raw", NULL, 0, 1, "/a/b:c"},
        {"./a:b", NULL, NULL, 0, 1, "./a:b"},
        {"file:base", NULL, NULL, 0, 1, "file:base"}, /* what it means: core/link_name.h */
        {"nbd:unix:/x", NULL, NULL, 0, 1, "nbd:unix:/x"},
        {"json:{\"file\":1}", NULL, NULL, 0, 1, "json:{\"file\":1}"},
        {"base", "raw", "data.raw", 0, 2, "base"},
        {"base", "raw", "", -EUCLEAN, 0, NULL}, /* before fn was called at all */
        {NULL, NULL, "", -EUCLEAN, 0, NULL},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct seen seen = {0};
        uint8_t b[FORMAT_REACH], disk[FORMAT_REACH];
        int r;

        build_links(b, rows[i].backing, rows[i].format, rows[i].data);
        r = links(b, IMAGE_SIZE, &seen);
        cr_assert_eq(r, rows[i].r, "row %zu: %d", i, r);
        cr_assert_eq(seen.n, rows[i].n, "row %zu", i);
        if (rows[i].path) {
            cr_assert_str_eq(seen.link[0].path, rows[i].path);
            cr_assert_eq(seen.link[0].role, LINK_BACKING);
            cr_assert_str_eq(seen.link[0].format, rows[i].format ? rows[i].format : "");
        }
        if (seen.n == 2) {
            cr_assert_str_eq(seen.link[1].path, rows[i].data);
            cr_assert_eq(seen.link[1].role, LINK_DATA);
        }
        seal(b, PLAN_MAX, disk); /* sealed it names the same */
        seen.n = 0;
        cr_assert_eq(links(disk, IMAGE_SIZE, &seen), rows[i].r);
        cr_assert_eq(seen.n, rows[i].n);
        seen = (struct seen){.answer = -EINTR};
        if (rows[i].n)
            cr_assert_eq(links(b, IMAGE_SIZE, &seen), -EINTR);
        cr_assert_eq(seen.n, rows[i].n != 0);
    }
}

Test(qcow2_rescue, link_names_at_the_edges)
{
    struct seen seen = {0};
    uint8_t b[FORMAT_REACH];

    build_links(b, "base", NULL, NULL);
    b[1025] = 0;
    cr_assert_eq(links(b, IMAGE_SIZE, &seen), -EUCLEAN); /* a NUL inside */
    build_links(b, "base", NULL, NULL);
    cr_assert_eq(links(b, 1027, &seen), -EUCLEAN); /* cut by the end of the file */
    cr_assert_eq(links(b, 1028, &seen), 0);
    header_put(b, 8, 8, 5000);
    cr_assert_eq(links(b, IMAGE_SIZE, &seen), -EAGAIN); /* beyond what is loaded */
    build_links(b, "base", NULL, NULL);
    memset(b + 1024, 'x', 1024);
    header_put(b, 16, 4, 1023);
    cr_assert_eq(links(b, IMAGE_SIZE, &seen), 0);
    cr_assert_eq(strlen(seen.link[1].path), 1023);
    header_put(b, 16, 4, 1024);
    cr_assert_eq(links(b, IMAGE_SIZE, &seen), -EUCLEAN);
    build(b, 3);
    header_put(b, 72, 8, 4); /* a data file without a name */
    cr_assert_eq(links(b, IMAGE_SIZE, &seen), -EUCLEAN);
}

/* ---- random ---- */

Test(qcow2_rescue, random_mutations)
{
    uint64_t state = 0x5eed5eed5eed5eed;
    unsigned done = 0;

    for (unsigned i = 0; i < 20000; i++) {
        uint8_t b[FORMAT_REACH], disk[FORMAT_REACH];
        const uint64_t given = VIRTUAL_SIZE;
        struct seen seen = {0};
        struct format_info info;
        struct rescue got;

        build_qemu(b, i % 2 ? 0xff : 0x23);
        seal(b, i % 4, disk);
        for (unsigned k = 0; k < i % 3; k++) {
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            disk[state % 560] = (uint8_t)(state >> 32);
        }
        if (probe(disk, i % 5 ? IMAGE_SIZE : state % 700, &info) == PROBE_SEALED)
            done +=
                rescue(disk, i % 5 ? IMAGE_SIZE : state % 700, i % 2 ? &given : NULL, &got) == 0;
        seen.answer = 0;
        links(disk, i % 5 ? IMAGE_SIZE : state % 700, &seen);
    }
    cr_assert_gt(done, 1000);
}
