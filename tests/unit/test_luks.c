/* test_luks.c: LUKS headers with every field lied about once, every length, each subset of the
 * marks, plan and rescue. */
#include "unit.h"

#include "format/format.h"

#include <errno.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HDR 16384u
#define DISK (HDR + 4096) /* of the file, what tests look at */
#define FILE1 (4096u * 512 + (1u << 20))
#define FILE2 ((16u << 20) + (1u << 20))

static void put(uint8_t *b, size_t off, unsigned width, uint64_t value)
{
    for (unsigned i = width; i > 0; i--, value >>= 8)
        b[off + i - 1] = (uint8_t)value;
}

static void build1(uint8_t *b)
{
    memset(b, 0, DISK);
    memcpy(b, "LUKS\xba\xbe\0\1", 8);
    memcpy(b + 8, "aes", 3);
    memcpy(b + 40, "xts-plain64", 11);
    memcpy(b + 72, "sha256", 6);
    put(b, 104, 4, 4096);
    put(b, 108, 4, 64);
    put(b, 164, 4, 1000);
    memcpy(b + 168, "fc1ef71c-21c5-4313-bc69-c2d7e7baa578", 36);
    for (unsigned i = 0; i < 8; i++) {
        put(b, 208 + i * 48, 4, i ? 0xdead : 0xac71f3);
        put(b, 212 + i * 48, 4, i ? 0 : 1000);
        put(b, 248 + i * 48, 4, 8 + i * 504);
        put(b, 252 + i * 48, 4, 4000);
    }
}

static void build2(uint8_t *b)
{
    static const char json[] =
        "{\"keyslots\":{\"0\":{\"area\":{\"offset\":\"32768\"}}},\"tokens\":{},\"segments\":{\"0\":"
        "{\"type\":\"crypt\",\"offset\":\"16777216\",\"size\":\"dynamic\"}}}";

    memset(b, 0, DISK);
    for (unsigned i = 0; i < 2; i++) {
        uint8_t *h = b + i * HDR;

        memcpy(h, i ? "SKUL\xba\xbe\0\2" : "LUKS\xba\xbe\0\2", 8);
        put(h, 8, 8, HDR);
        put(h, 16, 8, 3);
        memcpy(h + 72, "sha256", 6);
        memcpy(h + 168, "fc1ef71c-21c5-4313-bc69-c2d7e7baa578", 36);
        put(h, 256, 8, i * HDR);
    }
    memcpy(b + 4096, json, sizeof(json));
}

/* A view that has loaded exactly what was wanted, each window on the heap. `b` has DISK bytes of
 * the file, zeros follow. */
static void view_init(struct excerpt *v, uint64_t file_size)
{
    memset(v, 0, sizeof(*v));
    v->file_size = file_size;
}

static void view_load(struct excerpt *v, const uint8_t *b)
{
    uint8_t *copy = malloc(v->want_len);

    cr_assert_not_null(copy);
    cr_assert(v->want_len >= 1 && v->want_len <= FORMAT_WINDOW_MAX &&
              v->want_off + v->want_len <= v->file_size);
    cr_assert_lt(v->n, VIEW_WINDOWS - 2);
    memset(copy, 0, v->want_len);
    if (v->want_off < DISK)
        memcpy(copy, b + v->want_off,
               v->want_len < DISK - v->want_off ? v->want_len : DISK - v->want_off);
    v->win[v->n].off = v->want_off;
    v->win[v->n].len = v->want_len;
    v->win[v->n++].data = copy;
    v->want_len = 0;
}

static void view_done(struct excerpt *v)
{
    for (unsigned i = 0; i < v->n; i++)
        free((void *)(uintptr_t)v->win[i].data);
    v->n = 0;
}

static enum probe probe(const uint8_t *b, uint64_t file_size, struct format_info *info)
{
    struct excerpt v;
    enum probe answer;

    view_init(&v, file_size);
    do {
        memset(info, 0, sizeof(*info));
        info->zone = (struct format_zone){FORMAT_REACH, UINT64_MAX};
        answer = format_luks.probe(&v, info);
        if (answer == PROBE_MORE)
            view_load(&v, b);
    } while (answer == PROBE_MORE);
    view_done(&v);
    return answer;
}

static int make_plan(const uint8_t *b, uint64_t file_size, struct plan *plan)
{
    const struct seal_policy policy = {SEAL_REFUSE, "node"};
    struct excerpt v;
    int r;

    view_init(&v, file_size);
    while ((r = format_luks.plan(&v, &policy, plan)) == -EAGAIN)
        view_load(&v, b);
    view_done(&v);
    return r;
}

/* Rescues and, when that works, undoes the seal in b. */
static int rescue(uint8_t *b, uint64_t file_size, const uint64_t *size, struct rescue *ret)
{
    static struct plan plan;
    struct excerpt v;
    int r;

    view_init(&v, file_size);
    while ((r = format_luks.rescue(&v, size, ret, &plan)) == -EAGAIN)
        view_load(&v, b);
    view_done(&v);
    for (unsigned i = plan.n; r == 0 && i-- > 0;) {
        cr_assert_leq(plan.ext[i].off + plan.ext[i].len, DISK);
        cr_assert_arr_eq(plan.ext[i].sealed, b + plan.ext[i].off, plan.ext[i].len);
        memcpy(b + plan.ext[i].off, plan.ext[i].truth, plan.ext[i].len);
    }
    return r;
}

/* ---- fields ---- */

struct field {
    size_t off;
    unsigned width;
    uint64_t value;
    const char *why; /* NULL: must pass */
};

static void check_fields(unsigned version, const struct field *rows, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        static uint8_t b[DISK];
        struct format_info info;
        enum probe answer;

        if (version == 1)
            build1(b);
        else
            build2(b);
        put(b, rows[i].off, rows[i].width, rows[i].value);
        answer = probe(b, version == 1 ? FILE1 : FILE2, &info);
        cr_assert_eq(answer, rows[i].why ? PROBE_LIES : PROBE_YES,
                     "v%u @%zu = 0x%" PRIx64 ": %d %s", version, rows[i].off, rows[i].value, answer,
                     info.why);
        cr_assert(!rows[i].why || strstr(info.why, rows[i].why), "v%u @%zu: %s", version,
                  rows[i].off, info.why);
    }
}

/* clang-format off */
Test(luks, fields_of_version_1)
{
    static const struct field rows[] = {
        {6, 2, 3, "version 3"},
        {6, 2, 0, "version 0"},
        {8, 1, 0, "cipher name"},
        {8, 1, 0xff, "cipher name"},
        {40, 1, 0, "cipher mode"},
        {72, 1, 0, "hash name"},
        {72, 1, 7, "hash name"},
        {104, 4, 0, NULL},                /* a detached header */
        {104, 4, 4035, "key slot 7"},     /* reaches into the payload */
        {104, 4, 4036, NULL},
        {104, 4, 0xfffffffe, NULL},
        {108, 4, 0, "key bytes 0"},
        {108, 4, 65, "overlap"},
        {108, 4, 32, NULL},
        {108, 4, 1025, "key bytes 1025"},
        {108, 4, 0xffffffff, "key bytes"},
        {164, 4, 0, "iterations"},
        {168, 1, 0, NULL},
        {168, 1, 1, "uuid"},
        {208, 4, 0, "key slot 0 has the state"},
        {208, 4, 0xdead, NULL},
        {212, 4, 0, "key slot 0 has no iterations"},
        {260, 4, 0, NULL},
        {252, 4, 3999, "stripes"},
        {252 + 7 * 48, 4, 0, "key slot 7 has 0 stripes"},
        {248, 4, 1, "over the header"},
        {248, 4, 13, "overlap"},
        {248 + 48, 4, 8, "overlap"},
        {248 + 7 * 48, 4, 0xffffffff, "key slot 7"},
    };

    check_fields(1, rows, sizeof(rows) / sizeof(rows[0]));
}

Test(luks, fields_of_version_2)
{
    static const struct field rows[] = {
        {6, 2, 3, "version 3"},
        {8, 8, 0, "hdr_size 0"},
        {8, 8, 8192, "hdr_size 8192"},
        {8, 8, 20480, "hdr_size 20480"},
        {8, 8, 8u << 20, "hdr_size 8388608"},
        {8, 8, 1ull << 63, "hdr_size"},
        {8, 8, 32768, NULL},               /* nothing there: zeros */
        {16, 8, 9, NULL},                  /* an update that was cut */
        {24 + 47, 1, 'x', NULL},           /* see below for a full one */
        {72, 1, 0, "checksum algorithm"},
        {168, 1, 1, "uuid"},
        {168, 1, 'x', "different uuids"},
        {256, 8, 1, "primary header says"},
        {HDR, 1, 'L', "no magic"},
        {HDR + 6, 2, 1, "secondary header has version 1"},
        {HDR + 6, 2, 0, "secondary header has version 0"},
        {HDR + 8, 8, 32768, "hdr_size 32768 of the secondary"},
        {HDR + 16, 8, 2, NULL},
        {HDR + 72, 1, 9, "checksum algorithm"},
        {HDR + 256, 8, 0, "secondary header says"},
    };

    check_fields(2, rows, sizeof(rows) / sizeof(rows[0]));
}
/* clang-format on */

Test(luks, texts_without_an_end)
{
    static const struct {
        unsigned version;
        size_t off, len;
    } rows[] = {{1, 8, 32},        {1, 40, 32},       {1, 72, 32},       {1, 168, 40},
                {2, 24, 48},       {2, 72, 32},       {2, 168, 40},      {2, 208, 48},
                {2, HDR + 24, 48}, {2, HDR + 72, 32}, {2, HDR + 208, 48}};

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        for (unsigned full = 0; full < 2; full++) {
            static uint8_t b[DISK];
            struct format_info info;

            if (rows[i].version == 1)
                build1(b);
            else
                build2(b);
            memset(b + rows[i].off, 'x', rows[i].len - !full);
            if (rows[i].off == 168 && rows[i].version == 2)
                memset(b + HDR + 168, 'x', rows[i].len - !full);
            cr_assert_eq(probe(b, rows[i].version == 1 ? FILE1 : FILE2, &info),
                         full ? PROBE_LIES : PROBE_YES, "%zu: %s", rows[i].off, info.why);
        }
}

Test(luks, sizes_and_zone)
{
    static uint8_t b[DISK];
    struct format_info info;

    build1(b);
    cr_assert_eq(probe(b, FILE1, &info), PROBE_YES);
    cr_assert_eq(info.virtual_size, 1u << 20);
    cr_assert_eq(info.zone.head, FORMAT_REACH);
    build2(b);
    cr_assert_eq(probe(b, FILE2, &info), PROBE_YES);
    cr_assert_eq(info.virtual_size, 1u << 20);
    cr_assert_eq(info.zone.head, HDR + 4096);
    cr_assert_eq(info.zone.tail, UINT64_MAX);
    b[6] = 0x5e;
    b[7] = 0xa1;
    cr_assert_eq(probe(b, FILE2, &info), PROBE_SEALED);
    cr_assert_eq(info.zone.head, HDR + 4096);
    b[7] = 0;
    cr_assert_eq(probe(b, FILE2, &info), PROBE_LIES);
    cr_assert_eq(info.zone.head, HDR + 4096);
}

/* The places where luksFormat or a copy may be just now. */
Test(luks, every_length)
{
    static uint8_t b[DISK];
    struct format_info info;

    for (uint64_t n = 0; n <= 700; n++) {
        enum probe answer;

        build1(b);
        answer = probe(b, n, &info);
        cr_assert_eq(answer,
                     n < 8     ? PROBE_NO
                     : n < 592 ? PROBE_LIES
                               : PROBE_YES,
                     "%" PRIu64 ": %s", n, info.why);
        cr_assert_eq(info.virtual_size, 0);
    }
    for (uint64_t n = 0; n <= DISK + 1;
         n += n < 9 || n > DISK - 3 || (n > 4090 && n < 4100) ? 1 : n % 7 + 1) {
        enum probe answer;

        build2(b);
        answer = probe(b, n, &info);
        cr_assert_eq(answer,
                     n < 8      ? PROBE_NO
                     : n < 4096 ? PROBE_LIES
                                : PROBE_YES,
                     "%" PRIu64 ": %s", n, info.why);
    }
    build2(b);
    b[0] = 'l';
    cr_assert_eq(probe(b, FILE2, &info), PROBE_NO);
}

/* ---- plan, marks, rescue ---- */

static void check_marks(const uint8_t *b, uint64_t file_size, unsigned extents)
{
    static struct plan plan;
    static uint8_t disk[DISK];

    cr_assert_eq(make_plan(b, file_size, &plan), 0);
    cr_assert_eq(plan.n, extents);
    for (unsigned set = 1; set < 1u << extents; set++) {
        struct format_info info;
        struct rescue got;
        const uint64_t other = 4711;

        memcpy(disk, b, DISK);
        for (unsigned i = 0; i < extents; i++) {
            cr_assert_arr_eq(plan.ext[i].truth, b + plan.ext[i].off, plan.ext[i].len);
            if (set & 1u << i)
                memcpy(disk + plan.ext[i].off, plan.ext[i].sealed, plan.ext[i].len);
        }
        cr_assert_eq(probe(disk, file_size, &info), PROBE_SEALED, "set %u", set);
        cr_assert(strstr(info.why, "sealed by") != NULL);
        cr_assert_eq(rescue(disk, file_size, &other, &got), -ERANGE);
        cr_assert_eq(rescue(disk, file_size, NULL, &got), 0);
        cr_assert_arr_eq(disk, b, DISK, "set %u", set);
        cr_assert_eq(got.n, 1);
        cr_assert_eq(got.candidate[0].kind, RESCUE_EXACT);
        cr_assert_eq(got.candidate[0].size, 1u << 20);
    }
}

Test(luks, seals)
{
    static struct plan plan;
    static uint8_t b[DISK];

    build1(b);
    check_marks(b, FILE1, 1);
    cr_assert_eq(make_plan(b, FILE1, &plan), 0);
    cr_assert_eq(plan.ext[0].off, 72);
    cr_assert_eq(plan.ext[0].len, 36);
    cr_assert_arr_eq(plan.ext[0].sealed,
                     "SEALED:sha256:00001000\0\0\0\0\0\0\0\0\0\0\xff\xff\xff\xff", 36);
    memcpy(b + 72, "fifteen-letters", 16);
    check_marks(b, FILE1, 1);
    build2(b);
    check_marks(b, FILE2, 2);
    cr_assert_eq(make_plan(b, FILE2, &plan), 0);
    cr_assert_eq(plan.ext[0].off, 6); /* the primary header first: it is the one that all look at */
    cr_assert_eq(plan.ext[1].off, HDR + 6);
    memset(b + HDR, 0, 4096);
    check_marks(b, FILE2, 1);
}

Test(luks, names_that_do_not_fit)
{
    static struct plan plan;
    static uint8_t b[DISK], disk[DISK];
    struct format_info info;
    struct rescue got;

    for (unsigned tail = 0; tail < 2; tail++) {
        build1(b);
        memcpy(b + 72, "sixteen-letters-", 17);
        if (tail) {
            build1(b);
            b[100] = 1;
        }
        cr_assert_eq(make_plan(b, FILE1, &plan), 0);
        memcpy(disk, b, DISK);
        memcpy(disk + 72, plan.ext[0].sealed, 36);
        cr_assert_eq(probe(disk, FILE1, &info), PROBE_SEALED);
        cr_assert_eq(rescue(disk, FILE1, NULL, &got), -EUCLEAN);
    }
}

/* The payload offset alone: a bound, and a size that a person gives. */
Test(luks, payload_offset_lost)
{
    static uint8_t b[DISK], disk[DISK];
    const uint64_t good = 1u << 20, odd = (1u << 20) + 1, large = FILE1 - 4035 * 512;
    struct format_info info;
    struct rescue got;

    build1(b);
    memcpy(disk, b, DISK);
    put(disk, 104, 4, 0xffffffff);
    cr_assert_eq(probe(disk, FILE1, &info), PROBE_SEALED);
    cr_assert_eq(rescue(disk, FILE1, NULL, &got), -ENODATA);
    cr_assert_eq(got.candidate[0].kind, RESCUE_UPPER);
    cr_assert_eq(got.candidate[0].size, FILE1 - (8 + 7 * 504 + 500) * 512);
    cr_assert_eq(rescue(disk, FILE1, &odd, &got), -ERANGE);
    cr_assert_eq(rescue(disk, FILE1, &large, &got), -ERANGE);
    cr_assert_eq(rescue(disk, FILE1, &good, &got), 0);
    cr_assert_arr_eq(disk, b, DISK);
}

Test(luks, sealed_and_lying)
{
    static uint8_t b[DISK];
    struct format_info info;
    struct rescue got;

    build2(b);
    put(b, HDR + 6, 2, 0x5ea1);
    put(b, 6, 2, 77); /* the mark of the secondary header counts still */
    cr_assert_eq(probe(b, FILE2, &info), PROBE_SEALED);
    cr_assert_eq(rescue(b, FILE2, NULL, &got), -EUCLEAN);
    build2(b);
    put(b, 6, 2, 0x5ea1);
    put(b, 256, 8, 5);
    cr_assert_eq(probe(b, FILE2, &info), PROBE_SEALED);
    cr_assert_eq(rescue(b, FILE2, NULL, &got), -EUCLEAN);
    cr_assert_eq(probe(b, 100, &info), PROBE_SEALED); /* cut */
    cr_assert_eq(rescue(b, 100, NULL, &got), -EUCLEAN);
    build1(b);
    put(b, 104, 4, 0xffffffff);
    cr_assert_eq(probe(b, 300, &info), PROBE_SEALED);
    cr_assert_eq(rescue(b, 300, NULL, &got), -EUCLEAN);
}

Test(luks, random_mutations)
{
    uint64_t state = 0x5eed5eed5eed5eed;
    unsigned seen[PROBE_MORE + 1] = {0}, undone = 0;

    for (unsigned i = 0; i < 6000; i++) {
        static struct plan plan;
        static uint8_t b[DISK];
        uint64_t file_size = i % 3 ? FILE1 : DISK;
        struct format_info info;
        struct rescue got;
        enum probe answer;

        if (i % 2)
            build1(b);
        else
            build2(b);
        if (i % 4 < 2 && make_plan(b, file_size, &plan) == 0)
            for (unsigned k = 0; k < plan.n; k++)
                memcpy(b + plan.ext[k].off, plan.ext[k].sealed, plan.ext[k].len);
        for (unsigned k = 0; k < i % 5; k++) {
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            b[state % 600 + (i % 2 == 0 && state >> 60 & 1 ? HDR : 0)] =
                state >> 61 & 1 ? 0 : (uint8_t)(state >> 32);
        }
        if (i % 7 == 0)
            file_size = state % (HDR + 5000);
        answer = probe(b, file_size, &info);
        seen[answer]++;
        cr_assert_eq(answer == PROBE_LIES || answer == PROBE_SEALED, info.why[0] != '\0');
        if (answer == PROBE_YES)
            cr_assert_eq(make_plan(b, file_size, &plan), 0);
        if (answer == PROBE_SEALED && rescue(b, file_size, NULL, &got) == 0) {
            undone++;
            cr_assert_eq(probe(b, file_size, &info), PROBE_YES, "%s", info.why);
        }
    }
    cr_assert_gt(seen[PROBE_YES], 100);
    cr_assert_gt(seen[PROBE_LIES], 100);
    cr_assert_gt(seen[PROBE_SEALED], 100);
    cr_assert_gt(undone, 100);
}
