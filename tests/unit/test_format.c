/* test_format.c: windows of a view, the verdicts of format_identify(), and partition tables
 * (raw.c). */
#include "unit.h"

#include "format/format.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* A view whose one window is a heap copy of exactly n bytes, so that AddressSanitizer sees a read
 * beyond it.
 */
static struct excerpt view_of(const uint8_t *bytes, size_t n, uint64_t file_size)
{
    struct excerpt v = {.file_size = file_size, .n = 1};
    uint8_t *copy = malloc(n ? n : 1);

    cr_assert_not_null(copy);
    if (n)
        memcpy(copy, bytes, n);
    v.win[0].len = n;
    v.win[0].data = copy;
    return v;
}

static void view_free(struct excerpt *v)
{
    for (unsigned i = 0; i < v->n; i++)
        free((void *)(uintptr_t)v->win[i].data);
}

/* Loads what is wanted, zeros, behind what the caller gave. */
static void add_wanted(struct excerpt *v)
{
    cr_assert_lt(v->n, (unsigned)VIEW_WINDOWS);
    cr_assert(v->want_len > 0 && v->want_len <= FORMAT_WINDOW_MAX);
    v->win[v->n].off = v->want_off;
    v->win[v->n].len = v->want_len;
    v->win[v->n].data = calloc(1, v->want_len);
    cr_assert_not_null(v->win[v->n].data);
    v->n++;
}

static enum verdict identify(const uint8_t *bytes, size_t n, uint64_t size, const struct format **f,
                             struct format_info *info)
{
    struct excerpt v = view_of(bytes, n, size);
    enum verdict verdict;

    while ((verdict = format_identify(&v, f, info)) == FORMAT_MORE && v.want_off >= n)
        add_wanted(&v);
    view_free(&v);
    return verdict;
}

/* ---- view_get ---- */

Test(format, view_windows)
{
    static const uint8_t a[100], b[50];
    struct excerpt v = {.file_size = 1000, .n = 2};

    v.win[0].off = 0, v.win[0].len = sizeof(a), v.win[0].data = a;
    v.win[1].off = 900, v.win[1].len = sizeof(b), v.win[1].data = b;
    const struct {
        uint64_t off;
        size_t len;
        const uint8_t *want;
        bool noted;
    } rows[] = {
        {0, 1, a, false},
        {0, 100, a, false},
        {99, 1, a + 99, false},
        {0, 101, NULL, true},
        {100, 1, NULL, true},
        {900, 50, b, false},
        {925, 25, b + 25, false},
        {899, 2, NULL, true},
        {949, 2, NULL, true},
        {950, 50, NULL, true},
        {950, 51, NULL, false}, /* ends outside the file */
        {1000, 1, NULL, false},
        {UINT64_MAX, 1, NULL, false},
        {UINT64_MAX, SIZE_MAX, NULL, false},
        {1, SIZE_MAX, NULL, false},
        {10, 0, NULL, false},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        v.want_off = 0;
        v.want_len = 0;
        cr_assert(view_get(&v, rows[i].off, rows[i].len) == rows[i].want, "row %zu", i);
        cr_assert_eq(v.want_len, rows[i].noted ? rows[i].len : 0, "row %zu", i);
        cr_assert_eq(v.want_off, rows[i].noted ? rows[i].off : 0, "row %zu", i);
    }
}

/* ---- partition tables ---- */

static void mbr_entry(uint8_t *sector, unsigned i, uint8_t status, uint8_t type, uint32_t start,
                      uint32_t len)
{
    uint8_t *e = sector + 446 + 16 * i;

    e[0] = status;
    e[4] = type;
    for (unsigned k = 0; k < 4; k++) {
        e[8 + k] = (uint8_t)(start >> (8 * k));
        e[12 + k] = (uint8_t)(len >> (8 * k));
    }
}

static void mbr_sign(uint8_t *sector)
{
    sector[510] = 0x55;
    sector[511] = 0xaa;
}

struct mbr_case {
    const char *what;
    unsigned i;
    uint8_t status, type;
    uint32_t start, len;
    enum verdict want;
};

Test(raw, one_entry)
{
    static const struct mbr_case rows[] = {
        {"Linux", 0, 0x00, 0x83, 2048, 1u << 20, FORMAT_IMAGE},
        {"active", 1, 0x80, 0x07, 2048, 4096, FORMAT_IMAGE},
        {"only the fourth entry", 3, 0x00, 0x06, 63, 100, FORMAT_IMAGE},
        {"protective, UEFI 5.2.3", 0, 0x00, 0xee, 1, 0xffffffff, FORMAT_IMAGE},
        {"status", 0, 0x01, 0x83, 2048, 4096, FORMAT_PLAIN},
        {"type", 0, 0x80, 0x00, 2048, 4096, FORMAT_PLAIN},
        {"start", 0, 0x00, 0x83, 0, 4096, FORMAT_PLAIN},
        {"length", 0, 0x00, 0x83, 2048, 0, FORMAT_PLAIN},
        {"no entry at all", 0, 0x00, 0x00, 0, 0, FORMAT_PLAIN},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const struct mbr_case *r = &rows[i];
        const struct format *f;
        struct format_info info;
        uint8_t sector[512] = {0};

        mbr_entry(sector, r->i, r->status, r->type, r->start, r->len);
        cr_assert_eq(identify(sector, 512, 1 << 20, &f, &info), FORMAT_PLAIN, "%s: no signature",
                     r->what);
        mbr_sign(sector);
        cr_assert_eq(identify(sector, 512, 1 << 20, &f, &info), r->want, "%s", r->what);
        cr_assert(f == (r->want == FORMAT_IMAGE ? &format_raw : NULL), "%s", r->what);
        cr_assert_eq(info.virtual_size, r->want == FORMAT_IMAGE ? 1u << 20 : 0, "%s", r->what);
    }
}

Test(raw, one_bad_entry_spoils_all)
{
    const struct format *f;
    struct format_info info;
    uint8_t sector[512] = {0};

    mbr_sign(sector);
    mbr_entry(sector, 0, 0x80, 0x83, 2048, 4096);
    mbr_entry(sector, 1, 0x00, 0x83, 8192, 4096);
    cr_assert_eq(identify(sector, 512, 512, &f, &info), FORMAT_IMAGE);
    mbr_entry(sector, 3, 0x00, 0x00, 0, 7);
    cr_assert_eq(identify(sector, 512, 512, &f, &info), FORMAT_PLAIN);
}

/* What mkfs.fat and mkfs.ntfs write: the signature, and code or text or zeros where entries would
 * be. */
Test(raw, boot_sectors_are_plain)
{
    static const char text[] =
        "his is not a bootable disk. Please insert a bootable floppy and\r\npress any key";
    const struct format *f;
    struct format_info info;
    uint8_t sector[512] = {0xeb, 0x58, 0x90, 'm', 'k', 'f', 's', '.', 'f', 'a', 't'};

    mbr_sign(sector);
    cr_assert_eq(identify(sector, 512, 1 << 20, &f, &info), FORMAT_PLAIN);
    memcpy(sector + 440, text, 64);
    cr_assert_eq(identify(sector, 512, 1 << 20, &f, &info), FORMAT_PLAIN);
}

Test(raw, plan_is_empty)
{
    struct seal_policy policy = {SEAL_REFUSE, "node"};
    uint8_t sector[512] = {0};
    static struct plan plan;
    struct excerpt v;

    mbr_sign(sector);
    mbr_entry(sector, 0, 0x80, 0x83, 2048, 4096);
    v = view_of(sector, 512, 512);
    memset(&plan, 0xff, sizeof(plan));
    cr_assert_eq(format_raw.plan(&v, &policy, &plan), 0);
    cr_assert_eq(plan.n, 0);
    view_free(&v);
}

/* ---- format_identify ---- */

/* The smallest qcow2, version 2, that passes every check: size 0, no L1 table. */
static void small_qcow2(uint8_t *b)
{
    memcpy(b, "QFI\xfb\0\0\0\2", 8);
    b[23] = 16;    /* cluster_bits */
    b[48 + 5] = 1; /* refcount table at 64 KiB */
    b[56 + 3] = 1; /* one cluster */
}

Test(format, verdicts)
{
    static uint8_t b[FORMAT_REACH];
    const struct format *f;
    struct format_info info;

    cr_assert_eq(identify(b, 0, 0, &f, &info), FORMAT_PLAIN);
    cr_assert_eq(identify(b, 3, 3, &f, &info), FORMAT_PLAIN);
    cr_assert_eq(identify(b, sizeof(b), 1 << 20, &f, &info), FORMAT_PLAIN);
    cr_assert_null(f);

    small_qcow2(b);
    cr_assert_eq(identify(b, sizeof(b), 1 << 20, &f, &info), FORMAT_IMAGE);
    cr_assert(f == &format_qcow2);

    b[23] = 77;
    cr_assert_eq(identify(b, sizeof(b), 1 << 20, &f, &info), FORMAT_LIES);
    cr_assert(f == &format_qcow2);
    cr_assert_str_eq(info.why, "cluster_bits 77 is outside 9..21");

    memcpy(b + 24, "SEALED\0\0", 8);
    cr_assert_eq(identify(b, sizeof(b), 1 << 20, &f, &info), FORMAT_SEALED);
    cr_assert(f == &format_qcow2);
}

/* Two answers, whatever they are, are one too many. */
Test(format, ambiguous)
{
    for (int kind = 0; kind < 3; kind++) {
        static uint8_t b[FORMAT_REACH];
        const struct format *f;
        struct format_info info;

        memset(b, 0, sizeof(b));
        small_qcow2(b);
        mbr_sign(b);
        mbr_entry(b, 0, 0, 0x83, 2048, 4096);
        if (kind == 1)
            b[23] = 1;
        if (kind == 2)
            memcpy(b + 24, "SEALED\0\0", 8);
        cr_assert_eq(identify(b, sizeof(b), 1 << 20, &f, &info), FORMAT_AMBIGUOUS, "kind %d", kind);
        cr_assert_null(f);
        cr_assert_eq(info.virtual_size, 0);
        cr_assert_str_eq(info.why, "the header matches qcow2 and raw");
    }
}

/* A caller that loads just what is wanted gets to an answer, and one that loads all is never asked.
 */
Test(format, more)
{
    static uint8_t b[1 << 20];
    const struct format *f;
    struct format_info info = {.virtual_size = 1, .why = "x"};
    struct excerpt v = {.file_size = sizeof(b)};
    enum verdict verdict;
    int turns = 0;

    small_qcow2(b);
    while ((verdict = format_identify(&v, &f, &info)) == FORMAT_MORE) {
        cr_assert_null(f);
        cr_assert_str_eq(info.why, "");
        cr_assert_leq(v.want_off + v.want_len, sizeof(b));
        add_wanted(&v);
        memcpy((void *)(uintptr_t)v.win[v.n - 1].data, b + v.want_off, v.want_len);
        cr_assert_lt(turns++, VIEW_WINDOWS);
    }
    cr_assert_eq(verdict, FORMAT_IMAGE);
    cr_assert_gt(turns, 0);
    view_free(&v);
}

Test(format, by_name)
{
    cr_assert(format_by_name("qcow2") == &format_qcow2);
    cr_assert(format_by_name("raw") == &format_raw);
    cr_assert_null(format_by_name("qcow3"));
    cr_assert_null(format_by_name(""));
}
