/* test_vhd.c: every field of a VHD footer and dynamic header lied about once, every length, the
 * marks, the parent's name. */
#include "windows.h"

#define FILE_SIZE 8192u
#define TAIL (FILE_SIZE - 512u)
#define DATA (FILE_SIZE - 512u) /* of a fixed image */
#define CURRENT 10485760u       /* of a dynamic image */
#define CHS_SIZE (300u * 4u * 17u * 512u)

static void put(uint8_t *p, unsigned width, uint64_t value)
{
    for (unsigned i = width; i-- > 0; value >>= 8)
        p[i] = (uint8_t)value;
}

static void sum(uint8_t *p, size_t n, size_t own)
{
    uint32_t s = 0;

    put(p + own, 4, 0);
    for (size_t i = 0; i < n; i++)
        s += p[i];
    put(p + own, 4, ~s);
}

static void build_footer(uint8_t *f, unsigned type, const char *creator)
{
    memset(f, 0, 512);
    memcpy(f, "conectix", 8);
    put(f + 8, 4, 2);
    put(f + 12, 4, 0x10000);
    put(f + 16, 8, type == 2 ? UINT64_MAX : 512);
    memcpy(f + 28, creator, 4);
    put(f + 40, 8, type == 2 ? DATA : CURRENT + 512);
    put(f + 48, 8, type == 2 ? DATA : CURRENT);
    put(f + 56, 2, type == 2 ? 3 : 300);
    f[58] = type == 2 ? 1 : 4;
    f[59] = type == 2 ? 5 : 17;
    put(f + 60, 4, type);
    memcpy(f + 68, "0123456789abcdef", 16);
    sum(f, 512, 64);
}

/* type 2: fixed, guest data in front. 3, 4: copy at 0, dynamic header at 512, table at 1536. */
static void build(uint8_t b[FILE_SIZE], unsigned type, const char *creator)
{
    memset(b, 0x11, FILE_SIZE);
    build_footer(b + TAIL, type, creator);
    if (type == 2)
        return;
    memcpy(b, b + TAIL, 512);
    memset(b + 512, 0, 1024);
    memcpy(b + 512, "cxsparse", 8);
    put(b + 520, 8, UINT64_MAX);
    put(b + 528, 8, 1536);
    put(b + 536, 4, 0x10000);
    put(b + 540, 4, 6);
    put(b + 544, 4, 2 << 20);
    sum(b + 512, 1024, 36);
}

static void resum(uint8_t *b, unsigned type)
{
    if (type != 2) {
        sum(b, 512, 64);
        sum(b + 512, 1024, 36);
    }
    sum(b + TAIL, 512, 64);
}

static enum probe probe(const uint8_t *b, uint64_t n, struct format_info *info)
{
    return windows_probe(&format_vhd, b, n, info);
}

struct field {
    size_t off;
    unsigned width;
    uint64_t value;
    const char *why; /* NULL: must pass; "": no VHD */
    bool keep_sum;
};

static void check_fields(unsigned type, const struct field *rows, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint8_t b[FILE_SIZE];
        struct format_info info;
        enum probe answer;

        build(b, type, "win ");
        put(b + rows[i].off, rows[i].width, rows[i].value);
        if (!rows[i].keep_sum)
            resum(b, type);
        answer = probe(b, FILE_SIZE, &info);
        cr_assert_eq(answer,
                     !rows[i].why     ? PROBE_YES
                     : rows[i].why[0] ? PROBE_LIES
                                      : PROBE_NO,
                     "type %u @%zu = 0x%" PRIx64 ": answer %u %s", type, rows[i].off, rows[i].value,
                     answer, info.why);
        if (rows[i].why)
            cr_assert(strstr(info.why, rows[i].why) != NULL, "@%zu: \"%s\" lacks \"%s\"",
                      rows[i].off, info.why, rows[i].why);
    }
}
#define CHECK_FIELDS(type, rows) check_fields(type, rows, sizeof(rows) / sizeof((rows)[0]))

/* clang-format off */
Test(vhd, fields_of_dynamic)
{
    static const struct field rows[] = {
        {0, 8, 0, "copy at 0 is missing", false},
        {8, 4, 0, NULL, false},
        {12, 4, 0x20000, "version", false},
        {16, 8, 511, "outside 512", false},
        {16, 8, UINT64_MAX, "outside 512", false},
        {16, 8, (1 << 20) + 1, "outside 512", false},
        {16, 8, 1 << 20, "no dynamic disk header", false},
        {16, 8, FILE_SIZE - 1023, "no dynamic disk header", false},
        {20, 4, 513, "no dynamic disk header", false},
        {40, 8, 0, NULL, false},
        {48, 8, 12u << 20, NULL, false},
        {48, 8, (12u << 20) + 512, "too few", false},
        {48, 8, 2040ull << 30, "too few", false},
        {48, 8, (2040ull << 30) + 512, "2040 GiB", false},
        {48, 8, UINT64_MAX, "2040 GiB", false},
        {60, 4, 2, "disk type 2", false},
        {60, 4, 5, "disk type 5", false},
        {64, 4, 0, "checksum", true},
        {85, 1, 1, NULL, false},                     /* Xen's hidden flag */
        {512, 8, 0, "no dynamic disk header", false},
        {528, 8, 0, "over a header", false},
        {528, 8, 1535, "over a header", false},
        {528, 8, 512 - 23, "over a header", false},
        {528, 8, FILE_SIZE, NULL, false},            /* being copied */
        {528, 8, INT64_MAX - 23, "beyond every file", false},
        {528, 8, INT64_MAX - 24, NULL, false},
        {528, 8, UINT64_MAX, "beyond every file", false},
        {536, 4, 0, "dynamic header version", false},
        {540, 4, 5, NULL, false},
        {540, 4, 4, "too few", false},
        {540, 4, 0x1fffffff, NULL, false},
        {540, 4, 0x20000000, "more than", false},
        {544, 4, 0, "block size", false},
        {544, 4, 256, "block size", false},
        {544, 4, 3 << 20, "block size", false},
        {544, 4, 0x80000000, NULL, false},
        {548, 4, 0, "dynamic header's checksum", true},
        {1535, 1, 7, "dynamic header's checksum", true},
        {TAIL, 8, 0, NULL, true},                    /* its end is no footer, for a moment */
        {TAIL + 64, 4, 0, NULL, true},               /* QEMU does not look at it */
    };

    CHECK_FIELDS(3, rows);
    CHECK_FIELDS(4, rows);
}

Test(vhd, fields_of_fixed)
{
    static const struct field rows[] = {
        {0, 8, 0, NULL, false},
        {TAIL, 8, 0, "", false},
        {TAIL + 12, 4, 0, "version", false},
        {TAIL + 40, 8, 0, NULL, false},
        /* a footer that a guest keeps in an image of another format */
        {TAIL + 48, 8, DATA - 512, "", false},
        {TAIL + 48, 8, DATA + 512, "", false},
        {TAIL + 60, 4, 3, "", false},
        {TAIL + 60, 4, 1, "", false},
        {TAIL + 64, 4, 0, "checksum", true},
        {TAIL + 511, 1, 9, "checksum", true},
    };

    CHECK_FIELDS(2, rows);
}
/* clang-format on */

Test(vhd, size_by_creator)
{
    static const struct {
        const char *creator;
        bool chs;
    } rows[] = {{"win ", false}, {"qem2", false}, {"d2v ", false}, {"CTXS", false}, {"tap", false},
                {"qemu", true},  {"vpc ", true},  {"vbox", true},  {"WIN ", true},  {"tap ", true}};

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        for (unsigned type = 2; type <= 4; type++) {
            uint8_t b[FILE_SIZE];
            struct format_info info;
            uint64_t chs = type == 2 ? 15 * 512 : CHS_SIZE, current = type == 2 ? DATA : CURRENT;

            build(b, type, rows[i].creator);
            cr_assert_eq(probe(b, FILE_SIZE, &info), PROBE_YES, "%s %u: %s", rows[i].creator, type,
                         info.why);
            cr_assert_eq(info.virtual_size, rows[i].chs ? chs : current, "%s %u: %" PRIu64,
                         rows[i].creator, type, info.virtual_size);
            cr_assert_eq(info.guest_at_start, type == 2);
            cr_assert_eq(info.zone.tail, TAIL);
            put(b + TAIL + 56, 4, 0xffff10ff); /* the maximum */
            memcpy(b, b + TAIL, type == 2 ? 0 : 512);
            resum(b, type);
            cr_assert_eq(probe(b, FILE_SIZE, &info), PROBE_YES, "%s", info.why);
            cr_assert_eq(info.virtual_size, current);
        }
    }
}

Test(vhd, zone_reaches_the_dynamic_header)
{
    static uint8_t b[1 << 16];
    struct format_info info;

    build(b, 3, "win ");
    memcpy(b + 40000, b + 512, 1024);
    put(b + 40016, 8, 40000 - 24); /* the table ends where it begins */
    sum(b + 40000, 1024, 36);
    put(b + 16, 8, 40000);
    sum(b, 512, 64);
    cr_assert_eq(probe(b, sizeof(b), &info), PROBE_YES, "%s", info.why);
    cr_assert_eq(info.zone.head, 41024);
    windows_round_trip(&format_vhd, b, sizeof(b), SEAL_REFUSE);
    b[40000] = 'x';
    cr_assert_eq(probe(b, sizeof(b), &info), PROBE_LIES);
    cr_assert_eq(info.zone.head, 41024);
}

Test(vhd, every_length)
{
    uint8_t b[FILE_SIZE];
    struct format_info info;

    build(b, 3, "win ");
    for (uint64_t n = 0; n <= FILE_SIZE; n++)
        cr_assert_eq(probe(b, n, &info),
                     n < 8      ? PROBE_NO
                     : n < 1536 ? PROBE_LIES
                                : PROBE_YES,
                     "%" PRIu64, n);
    build(b, 2, "win ");
    for (uint64_t n = 0; n <= FILE_SIZE; n++)
        cr_assert_eq(probe(b, n, &info), n < FILE_SIZE ? PROBE_NO : PROBE_YES, "%" PRIu64, n);
}

/* ---- the seal ---- */

Test(vhd, plan)
{
    static struct plan plan;
    uint8_t b[FILE_SIZE], expect[512];

    build(b, 3, "win ");
    cr_assert_eq(windows_plan(&format_vhd, b, FILE_SIZE, SEAL_REFUSE, &plan), 0);
    cr_assert_eq(plan.n, 2);
    cr_assert_eq(plan.ext[0].off, 0);
    cr_assert_eq(plan.ext[1].off, TAIL);
    memcpy(expect, b, 512);
    memset(expect + 40, 0, 20);
    memcpy(expect + 60, "SEAL", 4);
    for (unsigned i = 64; i < 68; i++)
        expect[i] = (uint8_t)~expect[i];
    memcpy(expect + 448, "SEALED\0", 8);
    memcpy(expect + 456, b + 40, 24);
    memcpy(expect + 480, "nodeA", 5);
    for (unsigned i = 0; i < 2; i++) {
        cr_assert_eq(plan.ext[i].len, 512);
        cr_assert_arr_eq(plan.ext[i].sealed, expect, 512);
    }
    cr_assert_eq(windows_plan(&format_vhd, b, FILE_SIZE, SEAL_SIZE, &plan), 0);
    memcpy(expect + 60, b + 60, 8);
    cr_assert_arr_eq(plan.ext[0].sealed, expect, 512);
    put(b + TAIL, 8, 0);
    cr_assert_eq(windows_plan(&format_vhd, b, FILE_SIZE, SEAL_REFUSE, &plan), 0);
    cr_assert_eq(plan.n, 1);
    build(b, 2, "win ");
    cr_assert_eq(windows_plan(&format_vhd, b, FILE_SIZE, SEAL_REFUSE, &plan), 0);
    cr_assert_eq(plan.n, 1);
    cr_assert_eq(plan.ext[0].off, TAIL);
    cr_assert_eq(windows_plan(&format_vhd, b, FILE_SIZE - 1, SEAL_REFUSE, &plan), -EUCLEAN);
}

Test(vhd, round_trips)
{
    for (unsigned type = 2; type <= 4; type++) {
        for (unsigned k = 0; k < 12; k++) {
            uint8_t b[FILE_SIZE], old[FILE_SIZE];

            build(b, type, k % 2 ? "vpc " : "tap");
            if (k / 2 == 1) /* no room */
                b[TAIL + 500] = 1;
            if (k / 2 == 2) /* differs from the copy at 0 */
                b[TAIL + 100] = 1;
            if (k / 2 == 1 || k / 2 == 2)
                sum(b + TAIL, 512, 64);
            if (k / 2 == 3 && type != 2) {
                b[500] = 1;
                sum(b, 512, 64);
            }
            if (k / 2 >= 4 && type != 2) /* a footer that is wrong already, with room and without */
                b[TAIL + (k / 2 == 4 ? 100 : 500)] = 1;
            memcpy(old, b, sizeof(b));
            windows_round_trip(&format_vhd, b, FILE_SIZE, SEAL_REFUSE);
            windows_round_trip(&format_vhd, b, FILE_SIZE, SEAL_SIZE);
            cr_assert_arr_eq(b, old, sizeof(b));
        }
    }
}

/* A tool that forgets the complement writes what our seal writes where it has no room for its mark.
 */
Test(vhd, sum_without_complement)
{
    uint8_t b[FILE_SIZE];
    struct format_info info;

    build(b, 3, "qemu");
    for (unsigned i = 64; i < 68; i++)
        b[i] = (uint8_t)~b[i];
    cr_assert_eq(windows_probe(&format_vhd, b, FILE_SIZE, &info), PROBE_LIES);
    cr_assert(strstr(info.why, "checksum"), "%s", info.why);
    build(b, 3, "qemu");
    b[500] = 1; /* in use: no room */
    resum(b, 3);
    cr_assert_eq(windows_probe(&format_vhd, b, FILE_SIZE, &info), PROBE_YES, "%s", info.why);
    for (unsigned i = 64; i < 68; i++)
        b[i] = (uint8_t)~b[i];
    cr_assert_eq(windows_probe(&format_vhd, b, FILE_SIZE, &info), PROBE_SEALED);
}

Test(vhd, sealed_and_broken)
{
    static struct plan plan;
    uint8_t b[FILE_SIZE];
    struct format_info info;
    struct rescue rescue;

    build(b, 3, "win ");
    cr_assert_eq(windows_plan(&format_vhd, b, FILE_SIZE, SEAL_REFUSE, &plan), 0);
    windows_seal(b, &plan, 3);
    cr_assert_eq(probe(b, FILE_SIZE, &info), PROBE_SEALED);
    cr_assert_str_eq(info.why, "sealed by its footer and the copy at 0: nodeA");
    b[512] = 0; /* the dynamic header */
    cr_assert_eq(probe(b, FILE_SIZE, &info), PROBE_SEALED);
    b[200] ^= 1;
    cr_assert_eq(probe(b, FILE_SIZE, &info), PROBE_SEALED);
    cr_assert_eq(windows_rescue(&format_vhd, b, FILE_SIZE, NULL, &rescue, &plan), -EUCLEAN);
    put(b + TAIL, 8, 0);
    memset(b + 448, 0, 64); /* the type without the mark */
    put(b + 64, 4, 0);
    cr_assert_eq(probe(b, FILE_SIZE, &info), PROBE_SEALED);
    cr_assert_eq(windows_rescue(&format_vhd, b, FILE_SIZE, NULL, &rescue, &plan), -EUCLEAN);
}

/* ---- the parent ---- */

static void utf16(uint8_t *p, const char *text, bool big)
{
    for (; *text; text++, p += 2) {
        p[big ? 0 : 1] = 0;
        p[big ? 1 : 0] = (uint8_t)*text;
    }
}

Test(vhd, links)
{
    static const struct {
        const char *name, *ru, *ku, *mac, *path; /* path NULL: -EUCLEAN */
    } rows[] = {
        {"C:\\p\\parent.vhd", ".\\a\\parent.vhd", "C:\\p\\parent.vhd", NULL, "a/parent.vhd"},
        {"parent.vhd", NULL, NULL, NULL, "parent.vhd"},
        {"parent.vhd", "..\\base.vhd", NULL, NULL, "../base.vhd"},
        {"parent.vhd", NULL, NULL, "file://./base.vhd", "base.vhd"},
        {"parent.vhd", NULL, NULL, "file:///base.vhd", "/base.vhd"},
        {"parent.vhd", NULL, NULL, "http://base.vhd", NULL},
        {"parent.vhd", NULL, "C:\\base.vhd", NULL, NULL},
        {"parent.vhd", NULL, "\\\\server\\base.vhd", NULL, NULL},
        {"parent.vhd", ".\\", NULL, NULL, NULL},
        {"", NULL, NULL, NULL, NULL},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const struct {
            const char *code, *text;
        } locators[] = {{"W2ku", rows[i].ku}, {"W2ru", rows[i].ru}, {"MacX", rows[i].mac}};
        static struct plan plan;
        uint8_t b[FILE_SIZE];
        char path[1024];

        build(b, 4, "win ");
        utf16(b + 512 + 64, rows[i].name, true);
        for (unsigned k = 0; k < 3; k++) {
            uint8_t *l = b + 512 + 576 + k * 24, *to = b + 2048 + k * 512;

            if (!locators[k].text)
                continue;
            memcpy(l, locators[k].code, 4);
            put(l + 8, 4, strlen(locators[k].text) * (k < 2 ? 2 : 1));
            put(l + 16, 8, 2048 + k * 512);
            if (k < 2)
                utf16(to, locators[k].text, false);
            else
                memcpy(to, locators[k].text, strlen(locators[k].text));
        }
        resum(b, 4);
        for (unsigned sealed = 0; sealed < 2; sealed++) {
            cr_assert_eq(windows_links(&format_vhd, b, FILE_SIZE, path),
                         rows[i].path ? 0 : -EUCLEAN, "row %zu", i);
            cr_assert_str_eq(path, rows[i].path ? rows[i].path : "", "row %zu", i);
            cr_assert_eq(windows_plan(&format_vhd, b, FILE_SIZE, SEAL_REFUSE, &plan), 0);
            windows_seal(b, &plan, 3);
        }
        put(b + 512 + 576 + 24 + 16, 8, FILE_SIZE - 1); /* W2ru beyond the end */
        if (rows[i].ru)
            cr_assert_eq(windows_links(&format_vhd, b, FILE_SIZE, path), -EUCLEAN);
        build(b, i % 2 ? 2 : 3, "win ");
        cr_assert_eq(windows_links(&format_vhd, b, FILE_SIZE, path), 0);
        cr_assert_str_eq(path, "");
    }
}

Test(vhd, random_mutations)
{
    unsigned seen[PROBE_MORE + 1] = {0};
    uint64_t state = 0x5eed5eed5eed5eed;

    for (unsigned i = 0; i < 6000; i++) {
        static struct plan plan;
        uint8_t b[FILE_SIZE];
        unsigned type = 2 + i % 3;
        struct format_info info;
        struct rescue rescue;
        char path[1024];
        enum probe answer;

        build(b, type, "qemu");
        if (i % 4 == 3) {
            cr_assert_eq(windows_plan(&format_vhd, b, FILE_SIZE, i % 8 == 3, &plan), 0);
            windows_seal(b, &plan, 3);
        }
        for (unsigned k = 1 + i % 3; k > 0; k--) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            unsigned at = (unsigned)(state >> 33) % (type == 2 ? 512 : 2048);
            b[at < 512 && (type == 2 || at % 2) ? TAIL + at : at] ^=
                (uint8_t)(1u << (state >> 60 & 7));
        }
        if (i % 2)
            resum(b, type);
        uint64_t n = i % 7 == 0 ? (state >> 20) % FILE_SIZE : FILE_SIZE;
        answer = probe(b, n, &info);
        seen[answer]++;
        cr_assert_eq(answer == PROBE_LIES || answer == PROBE_SEALED, info.why[0] != '\0');
        if (answer == PROBE_YES)
            windows_round_trip(&format_vhd, b, n, i % 5 ? SEAL_REFUSE : SEAL_SIZE);
        if (answer == PROBE_SEALED)
            (void)windows_rescue(&format_vhd, b, n, NULL, &rescue, &plan);
        if (answer == PROBE_YES || answer == PROBE_SEALED)
            (void)windows_links(&format_vhd, b, n, path);
    }
    for (unsigned answer = PROBE_NO; answer < PROBE_MORE; answer++)
        cr_assert_gt(seen[answer], 50, "answer %u came %u times only", answer, seen[answer]);
}
