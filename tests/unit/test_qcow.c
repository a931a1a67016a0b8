/* test_qcow.c: version 1 of qcow: every field lied about once, every length, marks, plan, rescue,
 * links. */
#include "format_kit.h"

#define FILE_SIZE (256u << 10)
#define VIRTUAL_SIZE (64u << 20) /* 32 L1 entries of 2 MiB */
#define L1 48u

static uint8_t bytes[FILE_SIZE];
static struct kit kit = {.format = &format_qcow, .file = bytes};

/* As qemu-img 7.2 makes it: 4 KiB clusters and L2 tables, the L1 table behind the header, padded to
 * 512 bytes. */
static void build(struct kit *k)
{
    memset(k->file, 0, FILE_SIZE);
    k->size = FILE_SIZE;
    put_be(k->file, 0x514649fb, 4);
    put_be(k->file + 4, 1, 4);
    put_be(k->file + 24, VIRTUAL_SIZE, 8);
    k->file[32] = 12;
    k->file[33] = 9;
    put_be(k->file + 40, L1, 8);
}

/* Entry i of the L1 table, and entry j of its L2 table, which is at `off`. */
static void use_cluster(struct kit *k, unsigned i, unsigned j, uint64_t off)
{
    put_be(k->file + L1 + i * 8, off, 8);
    put_be(k->file + off + j * 8, 0x20000, 8);
}

static void build_used(struct kit *k)
{
    build(k);
    /* the first one that was allocated is not the first in the table */
    use_cluster(k, 3, 0, 0x1000);
    use_cluster(k, 30, 7, 0x3000);
    use_cluster(k, 0, 1, 0x5000);
}

/* clang-format off */
Test(qcow, fields)
{
    static const struct kit_field rows[] = {
        {8, 8, 47, "backing_file_offset"},
        {8, 8, 1ull << 63, "backing_file_offset"},
        {8, 8, 0x10000, NULL},
        {16, 4, 1024, NULL},                        /* no backing file */
        {20, 4, 0xffffffff, NULL},                  /* mtime */
        {24, 8, 0, "size 0"},
        {24, 8, 1, "size 1"},
        {24, 8, 2, NULL},
        {24, 8, 0xfffffffull << 21, NULL},          /* INT_MAX / 8 entries */
        {24, 8, (0xfffffffull << 21) + 1, "268435456 entries"},
        {24, 8, KIT_SEALED + 1, "entries"},
        {24, 8, UINT64_MAX, "entries"},
        {32, 1, 8, "cluster_bits 8"},
        {32, 1, 9, NULL},
        {32, 1, 16, NULL},
        {32, 1, 17, "cluster_bits 17"},
        {33, 1, 5, "l2_bits 5"},
        {33, 1, 6, NULL},
        {33, 1, 13, NULL},
        {33, 1, 14, "l2_bits 14"},
        {34, 2, 0xffff, NULL},
        {36, 4, 1, NULL},
        {36, 4, 2, "crypt_method 2"},
        {40, 8, 0, "over the header"},
        {40, 8, 47, "over the header"},
        {40, 8, FILE_SIZE * 2, NULL},               /* zeros, as QEMU reads them */
        {40, 8, INT64_MAX - 255, "beyond every file"},
        {40, 8, INT64_MAX - 256, NULL},
        {40, 8, UINT64_MAX, "beyond every file"},
    };

    kit_fields(&kit, build, put_be, rows, sizeof(rows) / sizeof(rows[0]));
}
/* clang-format on */

Test(qcow, others_and_sizes)
{
    struct format_info info;

    build(&kit);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_YES);
    cr_assert_eq(info.virtual_size, VIRTUAL_SIZE);
    put_be(kit.file + 8, 48, 8);
    put_be(kit.file + 16, 1023, 4);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_YES);
    put_be(kit.file + 16, 1024, 4);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_LIES);
    for (unsigned version = 0; version < 4; version++) {
        build(&kit);
        put_be(kit.file + 4, version, 4);
        cr_assert_eq(kit_probe(&kit, &info), version == 1 ? PROBE_YES : PROBE_NO);
    }
    build(&kit);
    kit.file[3] ^= 1;
    cr_assert_eq(kit_probe(&kit, &info), PROBE_NO);
}

Test(qcow, cut_at_every_length)
{
    kit_cut(&kit, build, 600, 8, 48);
}

Test(qcow, marks_and_plan)
{
    static struct plan plan;
    struct format_info info;

    build_used(&kit);
    cr_assert_eq(kit_plan(&kit, SEAL_REFUSE, &plan), 0);
    cr_assert_eq(plan.n, 1);
    cr_assert_eq(plan.ext[0].off, 24);
    cr_assert_eq(plan.ext[0].len, 8);
    cr_assert_arr_eq(plan.ext[0].sealed, "SEALED\0\0", 8);
    kit_round_trip(&kit, SEAL_REFUSE);
    kit_round_trip(&kit, SEAL_SIZE);
    cr_assert_eq(kit_plan(&kit, SEAL_SIZE, &plan), 0);
    cr_assert_eq(plan.n, 1);
    cr_assert_eq(plan.ext[0].off, 24);
    cr_assert_arr_eq(plan.ext[0].sealed, "\0\0\0\0\0\0\0\0", 8);

    put_be(kit.file + 24, KIT_SEALED, 8);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_SEALED);
    cr_assert_str_eq(info.why, "sealed by its size");
    memset(kit.file + 32, 0xff, 16); /* the mark counts more than any contradiction */
    cr_assert_eq(kit_probe(&kit, &info), PROBE_SEALED);
}

/* The size is refused by QEMU whatever the geometry: this is the reason why one mark is enough. */
Test(qcow, sealed_size_never_fits)
{
    struct format_info info;

    for (unsigned cluster_bits = 9; cluster_bits <= 16; cluster_bits++)
        for (unsigned l2_bits = 6; l2_bits <= 13; l2_bits++) {
            build(&kit);
            kit.file[32] = (uint8_t)cluster_bits;
            kit.file[33] = (uint8_t)l2_bits;
            put_be(kit.file + 24, KIT_SEALED - 512, 8);
            cr_assert_eq(kit_probe(&kit, &info), PROBE_LIES);
        }
}

Test(qcow, rescue)
{
    static struct plan plan;
    static uint8_t before[FILE_SIZE];
    /* 0x1000 is behind L1 + 506 entries; cluster 7 of table 30 is used */
    const uint64_t upper = 506ull << 21, lower = (30ull << 21) + (7u << 12) + 1,
                   size = VIRTUAL_SIZE;
    struct rescue rescue;
    uint64_t wrong;

    build_used(&kit);
    memcpy(before, kit.file, FILE_SIZE);
    put_be(kit.file + 24, KIT_SEALED, 8);
    cr_assert_eq(kit_rescue(&kit, NULL, &rescue, &plan), -ENODATA);
    cr_assert_eq(rescue.n, 2);
    cr_assert_eq(rescue.candidate[0].kind, RESCUE_UPPER);
    cr_assert_eq(rescue.candidate[0].size, upper);
    cr_assert_eq(rescue.candidate[1].kind, RESCUE_LOWER);
    cr_assert_eq(rescue.candidate[1].size, lower);
    wrong = upper + 1;
    cr_assert_eq(kit_rescue(&kit, &wrong, &rescue, &plan), -ERANGE);
    wrong = lower - 1;
    cr_assert_eq(kit_rescue(&kit, &wrong, &rescue, &plan), -ERANGE);
    cr_assert_eq(kit_rescue(&kit, &upper, &rescue, &plan), 0);
    cr_assert_eq(kit_rescue(&kit, &lower, &rescue, &plan), 0);
    cr_assert_eq(kit_rescue(&kit, &size, &rescue, &plan), 0);
    kit_undo(&kit, &plan);
    cr_assert_arr_eq(kit.file, before, FILE_SIZE);

    build(&kit); /* nothing is used: no bounds */
    put_be(kit.file + 24, KIT_SEALED, 8);
    cr_assert_eq(kit_rescue(&kit, NULL, &rescue, &plan), -ENODATA);
    cr_assert_eq(rescue.n, 0);
    wrong = 1;
    cr_assert_eq(kit_rescue(&kit, &wrong, &rescue, &plan), -ERANGE);
    wrong = KIT_SEALED;
    cr_assert_eq(kit_rescue(&kit, &wrong, &rescue, &plan), -ERANGE);
    cr_assert_eq(kit_rescue(&kit, &size, &rescue, &plan), 0);
    kit.file[32] = 99;
    cr_assert_eq(kit_rescue(&kit, &size, &rescue, &plan), -EUCLEAN);
}

static int links_of(const char *name, size_t len, struct format_link *link)
{
    build(&kit);
    put_be(kit.file + 8, 4090, 8); /* across the end of the first window */
    put_be(kit.file + 16, len, 4);
    memcpy(kit.file + 4090, name, len);
    return kit_links(&kit, link);
}

Test(qcow, links)
{
    char longest[1024];
    struct format_link link;

    build(&kit);
    cr_assert_eq(kit_links(&kit, &link), 0);
    cr_assert_eq(links_of("../base.img", 11, &link), 7);
    cr_assert_str_eq(link.path, "../base.img");
    cr_assert_str_eq(link.format, "");
    cr_assert_eq(links_of("file:/a/b:c", 11, &link), 7);
    cr_assert_str_eq(link.path, "file:/a/b:c");
    cr_assert_eq(links_of("./a:b", 5, &link), 7);
    cr_assert_str_eq(link.path, "./a:b");
    cr_assert_eq(links_of("ab\0cd", 5, &link), 7);
    cr_assert_str_eq(link.path, "ab");
    cr_assert_eq(links_of("", 0, &link), 0);
    cr_assert_eq(links_of("\0x", 2, &link), 0);
    cr_assert_eq(links_of("nbd://h/x", 9, &link), 7);
    cr_assert_str_eq(link.path, "nbd://h/x");
    memset(longest, 'x', sizeof(longest));
    cr_assert_eq(links_of(longest, 1023, &link), 7);
    cr_assert_eq(strlen(link.path), 1023);
    cr_assert_eq(links_of(longest, 1024, &link), -EUCLEAN);
    links_of("abcdef", 6, &link);
    kit.size = 4093; /* the rest of the name is zeros */
    cr_assert_eq(kit_links(&kit, &link), 7);
    cr_assert_str_eq(link.path, "abc");
    kit.size = 4090;
    cr_assert_eq(kit_links(&kit, &link), 0);
}

Test(qcow, random_mutations)
{
    unsigned seen[PROBE_MORE + 1] = {0};

    kit_mutate(&kit, build_used, 6000, 300, seen);
    for (unsigned answer = PROBE_NO; answer < PROBE_MORE; answer++)
        cr_assert_gt(seen[answer], 10, "answer %u came %u times only", answer, seen[answer]);
}
