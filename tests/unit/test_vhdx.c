/* test_vhdx.c: headers, region tables and metadata of a VHDX image lied about, every boundary of
 * its length, the marks, the parent's name. */
#include "windows.h"

#include "format/crc32c.h"

#define FILE_SIZE (4u << 20)
#define H1 0x10000u
#define H2 0x20000u
#define R1 0x30000u
#define R2 0x40000u
#define LOG 0x100000u
#define BAT 0x200000u
#define META 0x300000u
#define ITEMS (META + 0x10000u)
#define SIZE (100ull << 20)
#define E(i) (META + 32 + 32u * (i)) /* metadata entry */
#define PARENT (ITEMS + 0x200u)

static const char guids[][17] = {
    "\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b",
    "\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8",
    "\xab\x12\xca\xbe\xe6\xb2\x23\x45\x93\xef\xc3\x09\xe0\x00\xc7\x46",
    "\x1d\xbf\x41\x81\x6f\xa9\x09\x47\xba\x47\xf2\x33\xa8\xfa\xab\x5f",
    "\xc7\x48\xa3\xcd\x5d\x44\x71\x44\x9c\xc9\xe9\x88\x52\x51\xc5\x56",
    "\x2d\x5f\xd3\xa8\x0b\xb3\x4d\x45\xab\xf7\xd3\xd8\x48\x34\xab\x0c",
};

static void put(uint8_t *p, unsigned width, uint64_t value)
{
    for (unsigned i = 0; i < width; i++, value >>= 8)
        p[i] = (uint8_t)value;
}

static void sum(uint8_t *p, size_t n)
{
    put(p + 4, 4, 0);
    put(p + 4, 4, crc32c(0, p, n));
}

static void resum(uint8_t *b)
{
    sum(b + H1, 4096);
    sum(b + H2, 4096);
    sum(b + R1, 65536);
    sum(b + R2, 65536);
}

static void region(uint8_t *e, const char *guid, uint64_t off)
{
    memcpy(e, guid, 16);
    put(e + 16, 8, off);
    put(e + 24, 4, 1 << 20);
    put(e + 28, 4, 1);
}

/* Dynamic, blocks of 1 MiB; header 2 is the current one. The parts between them are never touched:
 * static, and cleared where a test writes. */
static uint8_t *build(void)
{
    static uint8_t b[FILE_SIZE];
    static const uint8_t lengths[] = {8, 8, 16, 4, 4};
    static const uint64_t values[] = {1 << 20, SIZE, 0x1234, 512, 4096};

    memset(b, 0, LOG);
    memset(b + META, 0, 0x20000);
    memcpy(b, "vhdxfile", 8);
    for (unsigned i = 0; i < 2; i++) {
        uint8_t *h = b + (i ? H2 : H1), *r = b + (i ? R2 : R1);

        memcpy(h, "head", 4);
        put(h + 8, 8, 7 + i);
        put(h + 66, 2, 1);
        put(h + 68, 4, 1 << 20);
        put(h + 72, 8, LOG);
        memcpy(r, "regi", 4);
        put(r + 8, 4, 2);
        region(r + 16, "\x66\x77\xc2\x2d\x23\xf6\x00\x42\x9d\x64\x11\x5e\x9b\xfd\x4a\x08", BAT);
        region(r + 48, "\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e", META);
    }
    memcpy(b + META, "metadata", 8);
    put(b + META + 10, 2, 5);
    for (unsigned i = 0, at = 0x10000; i < 5; at += lengths[i++]) {
        memcpy(b + E(i), guids[i], 16);
        put(b + E(i) + 16, 4, at);
        put(b + E(i) + 20, 4, lengths[i]);
        put(b + E(i) + 24, 4, 4);
        put(b + META + at, lengths[i] < 8 ? 4 : 8, values[i]);
    }
    resum(b);
    return b;
}

static enum probe probe(const uint8_t *b, uint64_t n, struct format_info *info)
{
    return windows_probe(&format_vhdx, b, n, info);
}

struct field {
    size_t off;
    unsigned width;
    uint64_t value;
    const char *why; /* NULL: must pass */
    bool keep_sum;
};

/* clang-format off */
static const struct field fields[] = {
    {H2, 4, 0, NULL, false},                               /* header 1 is there still */
    {H2 + 4, 4, 0, NULL, true},
    {H1 + 4095, 1, 1, NULL, true},
    {H2 + 8, 8, 6, NULL, false},
    {H2 + 48, 8, 0x1234, NULL, false},                     /* a log with entries */
    {H2 + 64, 2, 1, "log version", false},
    {H1 + 64, 2, 1, NULL, false},
    {H2 + 66, 2, 2, NULL, false},
    {H2 + 68, 4, 4096, "the log at", false},
    {H2 + 68, 4, 2 << 20, "region 0 at 0x200000 lies over the log", false},
    {H2 + 72, 8, 0, "the log at", false},
    {H2 + 72, 8, LOG + 4096, "the log at", false},
    {H2 + 72, 8, 0x7ffffffffff00000, "the log at", false},
    {H2 + 72, 8, META, "region 1 at 0x300000 lies over the log", false},
    {R1, 4, 0, "no region table", false},
    {R1 + 4, 4, 0, "region table's checksum", true},
    {R1 + 65535, 1, 1, "region table's checksum", true},
    {R1 + 8, 4, 1, "no region for the metadata", false},
    {R1 + 8, 4, 0, "no region for the BAT", false},
    {R1 + 8, 4, 2048, "2048 regions", false},
    {R1 + 8, 4, 3, "region 2 at 0x0", false},
    {R1 + 16, 1, 0, "region 0 is unknown and required", false},
    {R1 + 32, 8, 0, "region 0 at 0x0", false},
    {R1 + 32, 8, BAT + 512, "region 0 at", false},
    {R1 + 32, 8, 0x7ffffffffff00000, "region 0 at", false},
    {R1 + 32, 8, 0x8000000000000000, "region 0 at", false},
    {R1 + 32, 8, META, "region 1 at 0x300000 lies over region 0", false},
    {R1 + 32, 8, FILE_SIZE, NULL, false},
    {R1 + 40, 4, 0, "region 0 at", false},
    {R1 + 40, 4, 512, "region 0 at", false},
    {R1 + 40, 4, 2 << 20, "lies over region 0", false},
    {R2, 4, 0, NULL, false},                               /* QEMU reads the first only */
    {META, 8, 7, "no metadata table", false},
    {META + 10, 2, 2048, "2048 metadata items", false},
    {META + 10, 2, 4, "physical sector size is missing", false},
    {META + 10, 2, 0, "file parameters is missing", false},
    /* an entry of zeros is unknown, and not required */
    {META + 10, 2, 6, NULL, false},
    {E(1), 1, 0, "metadata item 1 is unknown and required", false},
    {E(1) + 16, 4, 0xffff, "virtual disk size at 0xffff is outside", false},
    {E(1) + 16, 4, (1 << 20) - 7, "virtual disk size at", false},
    {E(1) + 16, 4, UINT32_MAX, "virtual disk size at", false},
    {E(1) + 20, 4, 4, "virtual disk size has 4 bytes", false},
    {ITEMS, 4, 0, "block size 0", false},
    {ITEMS, 4, 1 << 19, "block size", false},
    {ITEMS, 4, 3 << 20, "block size", false},
    {ITEMS, 4, 512 << 20, "block size", false},
    {ITEMS, 4, 256 << 20, NULL, false},
    {ITEMS + 4, 4, 1, NULL, false},                        /* fixed */
    {ITEMS + 4, 4, 2, "no parent locator", false},
    {ITEMS + 8, 8, 0, NULL, false},                        /* as qemu-img makes it */
    {ITEMS + 8, 8, SIZE + 511, "the size", false},
    {ITEMS + 8, 8, SIZE + 512, NULL, false},
    {ITEMS + 8, 8, (64ull << 40) + 512, "the size", false},
    {ITEMS + 8, 8, UINT64_MAX & ~511ull, "the size", false},
    /* BAT of 1 MiB, a bitmap entry after each 4096 but the last */
    {ITEMS + 8, 8, (131072ull - 31) << 20, NULL, false},
    {ITEMS + 8, 8, ((131072ull - 31) << 20) + 512, "the BAT", false},
    {ITEMS + 32, 4, 1024, "logical sector size 1024", false},
    {ITEMS + 32, 4, 4096, NULL, false},
};
/* clang-format on */

Test(vhdx, fields)
{
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        uint8_t *b = build();
        struct format_info info;
        enum probe answer;

        put(b + fields[i].off, fields[i].width, fields[i].value);
        if (!fields[i].keep_sum)
            resum(b);
        answer = probe(b, FILE_SIZE, &info);
        cr_assert_eq(answer, fields[i].why ? PROBE_LIES : PROBE_YES,
                     "@0x%zx = 0x%" PRIx64 ": %u %s", fields[i].off, fields[i].value, answer,
                     info.why);
        if (fields[i].why)
            cr_assert(strstr(info.why, fields[i].why) != NULL, "@0x%zx: \"%s\" lacks \"%s\"",
                      fields[i].off, info.why, fields[i].why);
        else
            windows_round_trip(&format_vhdx, b, FILE_SIZE, SEAL_REFUSE);
    }
}

Test(vhdx, twice)
{
    struct format_info info;
    uint8_t *b = build();

    memcpy(b + R1 + 80, b + R1 + 48, 32);
    put(b + R1 + 8, 4, 3);
    put(b + R1 + 96, 8, META + (1 << 20));
    resum(b);
    cr_assert_eq(probe(b, FILE_SIZE, &info), PROBE_LIES);
    cr_assert_str_eq(info.why, "region 2 is there twice");
    b = build();
    memcpy(b + E(5), b + E(1), 32);
    put(b + META + 10, 2, 6);
    cr_assert_eq(probe(b, FILE_SIZE, &info), PROBE_LIES);
    cr_assert_str_eq(info.why, "the metadata item virtual disk size is there twice");
}

Test(vhdx, no_header)
{
    struct format_info info;
    uint8_t *b = build();

    memset(b + H1, 0, 4096);
    memset(b + H2, 0, 4096);
    cr_assert_eq(probe(b, FILE_SIZE, &info), PROBE_LIES);
    b = build();
    memcpy(b + H2, b + H1, 4096); /* as disk2vhd makes them */
    cr_assert_eq(probe(b, FILE_SIZE, &info), PROBE_YES, "%s", info.why);
    windows_round_trip(&format_vhdx, b, FILE_SIZE, SEAL_REFUSE);
    put(b + H2 + 16, 8, 0x1234); /* same number, different */
    sum(b + H2, 4096);
    cr_assert_eq(probe(b, FILE_SIZE, &info), PROBE_LIES);
    b[0] = 'V';
    cr_assert_eq(probe(b, FILE_SIZE, &info), PROBE_NO);
}

/* What qemu-img create leaves step by step, and what a copy tool does. */
Test(vhdx, metadata_comes_last)
{
    struct format_info info;
    uint8_t *b = build();

    for (uint64_t n = META - 1; n <= META + 32; n++) {
        cr_assert_eq(probe(b, n, &info), PROBE_YES, "%" PRIu64 ": %s", n, info.why);
        cr_assert_eq(info.virtual_size, 0);
    }
    memset(b + ITEMS, 0, 0x1000); /* the table is there, the items are not */
    cr_assert_eq(probe(b, FILE_SIZE, &info), PROBE_YES, "%s", info.why);
    cr_assert_eq(info.virtual_size, 0);
    windows_round_trip(&format_vhdx, b, FILE_SIZE, SEAL_REFUSE);
    memset(b + META, 0, 0x20000);
    cr_assert_eq(probe(b, FILE_SIZE, &info), PROBE_YES, "%s", info.why);
    cr_assert_eq(info.virtual_size, 0);
    windows_round_trip(&format_vhdx, b, FILE_SIZE, SEAL_REFUSE);
}

Test(vhdx, lengths)
{
    static const uint64_t around[] = {0,          8,      H1,  H1 + 4096, H2,    H2 + 4096, R1,
                                      R1 + 65536, R2 + 4, LOG, META,      ITEMS, ITEMS + 40};

    for (unsigned i = 0; i < sizeof(around) / sizeof(around[0]); i++)
        for (uint64_t n = around[i] < 3 ? 0 : around[i] - 3; n <= around[i] + 3; n++) {
            struct format_info info;
            const uint8_t *b = build();
            enum probe answer = probe(b, n, &info), expect = PROBE_YES;

            if (n < 8)
                expect = PROBE_NO;
            else if (n < R1 + 65536)
                expect = PROBE_LIES;
            cr_assert_eq(answer, expect, "%" PRIu64 ": %u %s", n, answer, info.why);
            cr_assert_eq(info.virtual_size, n < ITEMS + 36 ? 0 : SIZE);
            cr_assert_eq(info.zone.head, n < 8 ? FORMAT_REACH : 0x50000u);
        }
}

/* ---- the seal ---- */

Test(vhdx, plan)
{
    static const uint64_t order[2][4] = {{R1, R2, H1, H2}, {R1, R2, H2, H1}};
    static struct plan plan;

    for (unsigned current = 0; current < 4; current++) {
        uint8_t *b = build();

        put(b + H1 + 8, 8, current % 2 ? 9 : 5); /* the higher one rules */
        sum(b + H1, 4096);
        cr_assert_eq(
            windows_plan(&format_vhdx, b, FILE_SIZE, current / 2 ? SEAL_SIZE : SEAL_REFUSE, &plan),
            0);
        cr_assert_eq(plan.n, 4);
        for (unsigned i = 0; i < 4; i++) {
            cr_assert_eq(plan.ext[i].off, order[current % 2][i]);
            cr_assert_eq(plan.ext[i].len, 4);
            cr_assert_arr_eq(plan.ext[i].sealed, "SEAL", 4);
        }
    }
    uint8_t *b = build();
    memset(b + H2, 0, 4); /* what is no header is left alone */
    cr_assert_eq(windows_plan(&format_vhdx, b, FILE_SIZE, SEAL_REFUSE, &plan), 0);
    cr_assert_eq(plan.n, 3);
    cr_assert_eq(windows_plan(&format_vhdx, b, H1, SEAL_REFUSE, &plan), -EUCLEAN);
}

Test(vhdx, sealed_and_broken)
{
    static struct plan plan;
    struct format_info info;
    struct rescue rescue;
    uint8_t *b = build();

    cr_assert_eq(windows_plan(&format_vhdx, b, FILE_SIZE, SEAL_REFUSE, &plan), 0);
    windows_seal(b, &plan, 15);
    cr_assert_eq(probe(b, FILE_SIZE, &info), PROBE_SEALED);
    cr_assert_str_eq(
        info.why, "sealed by the signatures of region table 1, region table 2, header 1, header 2");
    b[R1 + 60000] = 1;
    cr_assert_eq(probe(b, FILE_SIZE, &info), PROBE_SEALED);
    cr_assert_eq(windows_rescue(&format_vhdx, b, FILE_SIZE, NULL, &rescue, &plan), -EUCLEAN);
    b[R1 + 60000] = 0;
    b[H2 + 80] = 1; /* the other header is whole */
    cr_assert_eq(windows_rescue(&format_vhdx, b, FILE_SIZE, NULL, &rescue, &plan), 0);
    b[H1 + 80] = 1;
    cr_assert_eq(probe(b, FILE_SIZE, &info), PROBE_SEALED);
    cr_assert_eq(windows_rescue(&format_vhdx, b, FILE_SIZE, NULL, &rescue, &plan), -EUCLEAN);
}

/* ---- the parent ---- */

static uint8_t *utf16(uint8_t *p, const char *text)
{
    for (; *text; text++, p += 2)
        p[0] = (uint8_t)*text;
    return p;
}

/* n pairs of key and value. */
static void build_parent(uint8_t *b, const char *const *pairs, unsigned n)
{
    uint8_t *to = b + PARENT + 20 + n * 12;

    memcpy(b + PARENT, "\xb7\xef\x4a\xb0\x9e\xd1\x81\x4a\xb7\x89\x25\xb8\xe9\x44\x59\x13", 16);
    put(b + PARENT + 18, 2, n);
    for (unsigned i = 0; i < 2 * n; i++) {
        uint8_t *e = b + PARENT + 20 + i / 2 * 12;

        put(e + i % 2 * 4, 4, (uint64_t)(to - (b + PARENT)));
        put(e + 8 + i % 2 * 2, 2, 2 * strlen(pairs[i]));
        to = utf16(to, pairs[i]);
    }
    memcpy(b + E(5), guids[5], 16);
    put(b + E(5) + 16, 4, PARENT - META);
    put(b + E(5) + 20, 4, (uint64_t)(to - (b + PARENT)));
    put(b + E(5) + 24, 4, 4);
    put(b + META + 10, 2, 6);
    put(b + ITEMS + 4, 4, 2);
}

Test(vhdx, links)
{
    static const struct {
        const char *pairs[6];
        const char *path;
    } rows[] = {
        {{"parent_linkage", "{x}", "absolute_win32_path", "C:\\p.vhdx", "relative_path",
          ".\\d\\p.vhdx"},
         "d/p.vhdx"},
        {{"relative_path", "..\\p.vhdx", "a", "b", "absolute_win32_path", "C:\\p.vhdx"},
         "../p.vhdx"},
        {{"a", "b", "absolute_win32_path", "\\\\?\\C:\\p.vhdx", "c", "d"}, NULL},
        {{"a", "b", "absolute_win32_path", "D:\\p.vhdx", "c", "d"}, NULL},
        {{"a", "b", "c", "d", "e", "f"}, NULL},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        uint8_t *b = build();
        static struct plan plan;
        struct format_info info;
        char path[1024];

        build_parent(b, rows[i].pairs, 3);
        cr_assert_eq(probe(b, FILE_SIZE, &info), PROBE_YES, "%s", info.why);
        for (unsigned sealed = 0; sealed < 2; sealed++) {
            cr_assert_eq(windows_links(&format_vhdx, b, FILE_SIZE, path),
                         rows[i].path ? 0 : -EUCLEAN, "row %zu", i);
            cr_assert_str_eq(path, rows[i].path ? rows[i].path : "");
            cr_assert_eq(windows_plan(&format_vhdx, b, FILE_SIZE, SEAL_REFUSE, &plan), 0);
            windows_seal(b, &plan, 15);
        }
        put(b + PARENT + 18, 2, 60000);
        cr_assert_eq(windows_links(&format_vhdx, b, FILE_SIZE, path), -EUCLEAN);
        put(b + PARENT + 18, 2, 3);
        put(b + PARENT + 20, 4, UINT32_MAX);
        cr_assert_eq(windows_links(&format_vhdx, b, FILE_SIZE, path), -EUCLEAN);
        b[PARENT] = 0;
        cr_assert_eq(windows_links(&format_vhdx, b, FILE_SIZE, path), -EUCLEAN);
        cr_assert_eq(windows_links(&format_vhdx, build(), FILE_SIZE, path), 0);
        cr_assert_str_eq(path, "");
    }
}

Test(vhdx, random_mutations)
{
    static const unsigned hot[] = {H1,   H2,        R1,        R1 + 16,    R1 + 48, R2,
                                   META, META + 32, META + 64, META + 192, ITEMS,   PARENT};
    static const char *const pairs[] = {"relative_path", ".\\p.vhdx"};
    unsigned seen[PROBE_MORE + 1] = {0};
    uint64_t state = 0x5eed5eed5eed5eed;

    for (unsigned i = 0; i < 2000; i++) {
        static struct plan plan;
        uint8_t *b = build();
        struct format_info info;
        struct rescue rescue;
        char path[1024];
        enum probe answer;
        uint64_t n = i % 9 == 0 ? (state >> 20) % FILE_SIZE : FILE_SIZE;

        if (i % 2)
            build_parent(b, pairs, 1);
        if (i % 4 == 3) {
            cr_assert_eq(windows_plan(&format_vhdx, b, FILE_SIZE, SEAL_REFUSE, &plan), 0);
            windows_seal(b, &plan, 1 + (i / 4) % 15);
        }
        for (unsigned k = 1 + i % 3; k > 0; k--) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            b[hot[(state >> 32) % 12] + (state >> 40) % 80] ^= (uint8_t)(1u << (state >> 60 & 7));
        }
        if (i % 4 != 3 && i % 8)
            resum(b);
        answer = probe(b, n, &info);
        seen[answer]++;
        cr_assert_eq(answer == PROBE_LIES || answer == PROBE_SEALED, info.why[0] != '\0');
        if (answer == PROBE_YES && i % 16 == 1)
            windows_round_trip(&format_vhdx, b, n, SEAL_REFUSE);
        if (answer == PROBE_SEALED)
            (void)windows_rescue(&format_vhdx, b, n, NULL, &rescue, &plan);
        if (answer == PROBE_YES || answer == PROBE_SEALED)
            (void)windows_links(&format_vhdx, b, n, path);
    }
    cr_assert_gt(seen[PROBE_YES], 50);
    cr_assert_gt(seen[PROBE_LIES], 50);
    cr_assert_gt(seen[PROBE_SEALED], 50);
}
