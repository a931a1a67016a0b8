/* test_qcow2.c: every field of a qcow2 header lied about once, every length, the marks. That images
 * made by QEMU pass is the task of tests/func/check_qcow2_seal.py. */
#include "qcow2_image.h"

/* ---- one field at a time ---- */

struct field {
    size_t off;
    unsigned width;
    uint64_t value;
    const char *why; /* part of the answer; NULL: must pass */
};

static void check_fields(uint32_t version, const struct field *rows, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint8_t b[FORMAT_REACH];
        struct format_info info;
        enum probe answer;

        build(b, version);
        header_put(b, rows[i].off, rows[i].width, rows[i].value);
        answer = probe(b, IMAGE_SIZE, &info);
        if (rows[i].why) {
            cr_assert_eq(answer, PROBE_LIES, "v%u @%zu = 0x%" PRIx64 " passed", version,
                         rows[i].off, rows[i].value);
            cr_assert(strstr(info.why, rows[i].why) != NULL, "v%u @%zu: \"%s\" lacks \"%s\"",
                      version, rows[i].off, info.why, rows[i].why);
            cr_assert_eq(info.virtual_size, 0);
        } else {
            cr_assert_eq(answer, PROBE_YES, "v%u @%zu = 0x%" PRIx64 ": %s", version, rows[i].off,
                         rows[i].value, info.why);
        }
    }
}
#define CHECK_FIELDS(version, rows) check_fields(version, rows, sizeof(rows) / sizeof((rows)[0]))

/* clang-format off */
#define COMMON_FIELDS                                                                          \
    {8, 8, 0x10001, "backing_file_offset"},     /* beyond the first cluster */                 \
    {8, 8, 0x8000000000000200, "backing_file_offset"},                                         \
    {8, 8, 8, "backing_file_offset"},           /* inside the header */                        \
    {8, 8, 0x10000, NULL},                      /* an empty name at the very end */            \
    {16, 4, 99999, NULL},                       /* undefined without a backing file */         \
    {20, 4, 0, "cluster_bits 0"},                                                              \
    {20, 4, 8, "cluster_bits 8"},                                                              \
    {20, 4, 22, "cluster_bits 22"},                                                            \
    {20, 4, 63, "cluster_bits 63"},                                                            \
    {20, 4, 0xffffffff, "cluster_bits 4294967295"},                                            \
    {24, 8, 0, NULL},                                                                          \
    {24, 8, 1, NULL},                                                                          \
    {24, 8, VIRTUAL_SIZE + 1, "l1_size 20 is too small"},                                      \
    {24, 8, 0x7fffffffffffffff, "l1_size"},                                                    \
    {24, 8, 0xffffffffffffffff, "l1_size"},     /* QEMU's own sum wraps around here */         \
    {32, 4, 1, NULL},                                                                          \
    {32, 4, 2, NULL},                                                                          \
    {32, 4, 3, "crypt_method 3"},                                                              \
    {36, 4, 0, "l1_size 0"},                                                                   \
    {36, 4, 19, "l1_size 19"},                                                                 \
    {36, 4, 4u << 20, NULL},                    /* 32 MiB */                                   \
    {36, 4, (4u << 20) + 1, "L1 table: "},                                                     \
    {36, 4, 0xffffffff, "L1 table: "},                                                         \
    {40, 8, 0, "L1 table: lies over"},                                                         \
    {40, 8, 0x30001, "L1 table: offset"},                                                      \
    {40, 8, 0x7fffffffffff0000, NULL},          /* 64 KiB below INT64_MAX hold 160 bytes */    \
    {40, 8, 0x8000000000000000, "L1 table: offset"},                                           \
    {48, 8, 0, "refcount table: lies over"},                                                   \
    {48, 8, 0x10200, "refcount table: offset"},                                                \
    {48, 8, 0xffffffffffff0000, "refcount table: offset"},                                     \
    {56, 4, 0, "refcount_table_clusters"},                                                     \
    {56, 4, 128, NULL},                         /* 8 MiB */                                    \
    {56, 4, 129, "refcount table: "},                                                          \
    {60, 4, 1, "snapshot table: lies over"},                                                   \
    {60, 4, 65537, "snapshot table: "},                                                        \
    {64, 8, 0x10000, NULL},                                                                    \
    {64, 8, 7, "snapshot table: offset"}

Test(qcow2, fields_of_version_2)
{
    static const struct field rows[] = {
        COMMON_FIELDS,
        {4, 4, 0, "version 0"},
        {4, 4, 4, "version 4"},
        {4, 4, 0x80000002, "version 2147483650"},
        {72, 4, 0x12345678, NULL},                   /* here are extensions, no features */
        {76, 4, 0x10000 - 72 - 8 + 1, "extension"},  /* longer than the cluster */
        {76, 4, 0xffffffff, "extension"},
    };

    CHECK_FIELDS(2, rows);
}

Test(qcow2, fields_of_version_3)
{
    static const struct field rows[] = {
        COMMON_FIELDS,
        {72, 8, 1, NULL},                            /* dirty */
        {72, 8, 2, NULL},                            /* corrupt: QEMU opens it read-only */
        {72, 8, 4, NULL},
        {72, 8, 8, "compression_type 0"},
        {72, 8, 32, "newer version"},
        {72, 8, 1ull << 62, "newer version"},
        {80, 8, UINT64_MAX, NULL},                   /* compatible: any bit */
        {88, 8, UINT64_MAX & ~2ull, NULL},           /* autoclear: any bit but */
        {88, 8, 2, "autoclear bit 1"},
        {96, 4, 6, NULL},
        {96, 4, 7, "refcount_order 7"},
        {100, 4, 0, "header_length 0"},
        {100, 4, 96, "header_length 96"},
        {100, 4, 108, "header_length 108"},
        {100, 4, 65536, NULL},
        {100, 4, 65544, "header_length 65544"},
        {104, 1, 1, "compression_type 1"},
        {104, 1, 2, "compression_type 2 is unknown"},
        /* ends with the cluster, beyond what is visible */
        {116, 4, 0x10000 - 112 - 8, NULL},
        {116, 4, 0x10000 - 112 - 8 + 1, "extension"},
        {116, 4, 0xffffffff, "extension"},
        {AFTER, 8, 0xdeadbeef00000007, NULL},
        {AFTER, 8, 0xdeadbeef00010000, "extension 0xdeadbeef"},
        {AFTER, 8, 0x0000000000010000, "extension 0x00000000"},
        {AFTER, 8, 0xe2792aca00000005, NULL},
        {AFTER, 8, 0xe2792aca00000010, "backing format"},
        {AFTER, 8, 0x2385287500000017, "bitmaps"},
        {AFTER, 8, 0x0537be7700000010, "encryption"},
    };

    CHECK_FIELDS(3, rows);
}
/* clang-format on */

/* ---- several fields at a time ---- */

struct combination {
    const char *what, *why; /* why NULL: must pass */
    struct change c[6];     /* ends at width 0 */
};

/* clang-format off */
#define BITMAPS {AFTER, 8, 0x2385287500000018}
#define LUKS(len) {AFTER, 8, 0x0537be7700000000 | (len)}

Test(qcow2, combinations)
{
    static const struct combination rows[] = {
        {"zstd", NULL, {{72, 8, 8}, {104, 1, 1}}},
        {"type beyond a short header", NULL, {{100, 4, 104}, {104, 8, 0x0100000000000000}}},
        {"extended L2: an entry maps half",
         "l1_size 20", {{72, 8, 16}, {24, 8, VIRTUAL_SIZE / 2 + 1}}},
        {"extended L2, exact", NULL, {{72, 8, 16}, {24, 8, VIRTUAL_SIZE / 2}}},
        {"extended L2, 8 KiB", "extended L2", {{72, 8, 16}, {20, 4, 13}, {24, 8, 0}}},
        {"extended L2, 16 KiB", NULL, {{72, 8, 16}, {20, 4, 14}, {24, 8, 0}, {36, 4, 0}}},
        {"512 bytes, table", NULL, {{20, 4, 9}, {24, 8, 0}, {36, 4, 0}}},
        {"512 bytes, table too long",
         "extension", {{20, 4, 9}, {24, 8, 0}, {36, 4, 0}, {116, 4, 500}}},
        {"header longer than 512", "exceeds", {{20, 4, 9}, {24, 8, 0}, {36, 4, 0}, {100, 4, 520}}},
        {"no L1 table", NULL, {{24, 8, 0}, {36, 4, 0}, {40, 8, 0}}},
        {"2 MiB clusters, 2 EiB", NULL,
         {{20, 4, 21}, {24, 8, 1ull << 61}, {36, 4, 4u << 20}, {40, 8, 6u << 20}, {48, 8, 2u << 20}}},
        {"2 MiB clusters",
         "refcount", {{20, 4, 21}, {40, 8, 6u << 20}, {48, 8, 2u << 20}, {56, 4, 5}}},
        {"backing name", NULL, {{8, 8, 520}, {16, 4, 1023}}},
        {"backing name of 1024", "backing_file_size 1024", {{8, 8, 520}, {16, 4, 1024}}},
        {"backing name over the end", "backing_file_size 9", {{8, 8, 65536 - 8}, {16, 4, 9}}},
        {"backing name up to the end", NULL, {{8, 8, 65536 - 8}, {16, 4, 8}}},
        {"backing name over the table", "extension", {{8, 8, AFTER - 1}, {16, 4, 9}}},
        {"backing name ends extensions", NULL, {{8, 8, AFTER}, {16, 4, 9}, {AFTER, 8, UINT64_MAX}}},
        {"half an extension head", "extension", {{8, 8, AFTER + 4}, {16, 4, 9}}},
        {"snapshots", NULL, {{60, 4, 65536}, {64, 8, 0x50000}}},
        {"bitmaps", NULL, {{88, 8, 1}, BITMAPS, {AFTER + 8, 4, 1}, {AFTER + 24, 8, 0x40000}}},
        {"bitmaps, stale", NULL, {BITMAPS, {AFTER + 24, 8, 7}}},
        {"no bitmaps", "0 bitmaps", {{88, 8, 1}, BITMAPS}},
        {"bitmaps, reserved", "reserved", {{88, 8, 1}, BITMAPS, {AFTER + 8, 8, 0x100000001}}},
        {"bitmaps, offset",
         "directory", {{88, 8, 1}, BITMAPS, {AFTER + 8, 4, 1}, {AFTER + 24, 8, 7}}},
        {"bitmaps, size", "directory",
         {{88, 8, 1}, BITMAPS, {AFTER + 8, 4, 1}, {AFTER + 16, 8, 1u << 30}}},
        {"luks", NULL, {{32, 4, 2}, LUKS(16), {AFTER + 8, 8, 0x40000}}},
        {"luks, length", "encryption", {{32, 4, 2}, LUKS(24)}},
        {"luks, offset", "encryption", {{32, 4, 2}, LUKS(16), {AFTER + 8, 8, 0x40008}}},
        {"luks extension of aes", "encryption", {{32, 4, 1}, LUKS(16)}},
    };
    /* clang-format on */

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        uint8_t b[FORMAT_REACH];
        struct format_info info;
        enum probe answer;

        build(b, 3);
        change(b, rows[i].c, 6);
        answer = probe(b, IMAGE_SIZE, &info);
        cr_assert_eq(answer, rows[i].why ? PROBE_LIES : PROBE_YES, "%s: %s", rows[i].what,
                     info.why);
        cr_assert(!rows[i].why || strstr(info.why, rows[i].why) != NULL, "%s: \"%s\" lacks \"%s\"",
                  rows[i].what, info.why, rows[i].why);
        cr_assert_eq(info.virtual_size, answer == PROBE_YES ? get(b, 24) : 0, "%s", rows[i].what);
    }
}

Test(qcow2, other_files)
{
    uint8_t b[FORMAT_REACH];
    struct format_info info;

    build(b, 3);
    header_put(b, 4, 4, 1); /* qcow */
    cr_assert_eq(probe(b, IMAGE_SIZE, &info), PROBE_NO);
    for (size_t i = 0; i < 4; i++) {
        build(b, 3);
        b[i] ^= 0x20;
        cr_assert_eq(probe(b, IMAGE_SIZE, &info), PROBE_NO, "magic, byte %zu", i);
    }
}

/* ---- lengths ---- */

/* A write beyond FORMAT_REACH must not change what a file is, so a file that was cut is what it
 * would be with zeros behind it; and nothing is read behind its end (the buffers are exact). */
Test(qcow2, truncated_at_every_length)
{
    for (uint32_t version = 2; version <= 3; version++)
        for (uint64_t n = 0; n <= 600; n++) {
            uint8_t b[FORMAT_REACH];
            struct format_info info, grown_info;
            enum probe answer, grown;

            build(b, version);
            header_put(b, 8, 8, AFTER + 8);
            header_put(b, 16, 4, 10);
            answer = probe(b, n, &info);
            memset(b + n, 0, sizeof(b) - n);
            grown = probe(b, IMAGE_SIZE, &grown_info);
            cr_assert_eq(answer, grown, "v%u, %" PRIu64 " bytes: %s", version, n, info.why);
            cr_assert_str_eq(info.why, grown_info.why);
            cr_assert_eq(answer,
                         n < 4                           ? PROBE_NO
                         : n < (version == 2 ? 60 : 104) ? PROBE_LIES
                                                         : PROBE_YES,
                         "v%u, %" PRIu64 " bytes: %s", version, n, info.why);
        }
}

/* ---- marks ---- */

Test(qcow2, sealed)
{
    uint8_t b[FORMAT_REACH];
    struct format_info info;

    build(b, 2);
    header_put(b, 24, 8, SEALED);
    cr_assert_eq(probe(b, IMAGE_SIZE, &info), PROBE_SEALED);
    cr_assert_str_eq(info.why, "sealed by its size");
    cr_assert_eq(info.virtual_size, 0);

    build(b, 2);
    /* version 2 has no feature bits: this is an extension of length 0 */
    header_put(b, 72, 8, 1ull << 63);
    cr_assert_eq(probe(b, IMAGE_SIZE, &info), PROBE_YES);

    build(b, 3);
    /* somebody else's feature: neither our size nor our row is there */
    header_put(b, 72, 8, 1ull << 63 | 1);
    cr_assert_eq(probe(b, IMAGE_SIZE, &info), PROBE_YES, "%s", info.why);
    memcpy(b + TABLE + 3 * ROW, "\0\77SEALED n", 11);
    cr_assert_eq(probe(b, IMAGE_SIZE, &info), PROBE_SEALED);
    cr_assert_str_eq(info.why, "sealed by incompatible feature bit 63: SEALED n");
    b[TABLE + 3 * ROW + 1] = 62; /* the row of another bit */
    cr_assert_eq(probe(b, IMAGE_SIZE, &info), PROBE_YES, "%s", info.why);
    b[TABLE + 3 * ROW + 1] = 63;

    header_put(b, 24, 8, SEALED);
    memcpy(b + TABLE + 3 * ROW + 2, "SEALED n\x1b[1m\xff x", 15);
    cr_assert_eq(probe(b, IMAGE_SIZE, &info), PROBE_SEALED);
    cr_assert_str_eq(info.why,
                     "sealed by its size and incompatible feature bit 63: SEALED n?[1m? x");

    memset(b + TABLE + 3 * ROW + 2, 'x', 46); /* a name of full length has no NUL */
    memcpy(b + TABLE + 3 * ROW + 2, "SEALED", 6);
    cr_assert_eq(probe(b, IMAGE_SIZE, &info), PROBE_SEALED);
    cr_assert_eq(strlen(strchr(info.why, ':')), 2 + 46);

    header_put(b, 20, 4, 99); /* the marks count more than any contradiction */
    header_put(b, 100, 4, 0xfffffff8);
    cr_assert_eq(probe(b, IMAGE_SIZE, &info), PROBE_SEALED);
}
