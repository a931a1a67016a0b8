/* test_qed.c: QED: every field lied about once, every length, marks, plan, rescue, links. */
#include "format_kit.h"

#define CLUSTER 4096u
#define FILE_SIZE (64u << 10)
#define VIRTUAL_SIZE (64u << 20)
#define ENTRIES 1024u /* table_size 2 */
#define FEATURES 16u
#define SIZE 48u

static uint8_t bytes[FILE_SIZE];
static struct kit kit = {.format = &format_qed, .file = bytes};

/* As qemu-img 7.2 makes it with cluster_size=4096,table_size=2 and a backing file. */
static void build(struct kit *k)
{
    memset(k->file, 0, FILE_SIZE);
    k->size = FILE_SIZE;
    memcpy(k->file, "QED", 4);
    put_le(k->file + 4, CLUSTER, 4);
    put_le(k->file + 8, 2, 4);
    put_le(k->file + 12, 1, 4);
    put_le(k->file + FEATURES, 1, 8);
    put_le(k->file + 40, CLUSTER, 8);
    put_le(k->file + SIZE, VIRTUAL_SIZE, 8);
    put_le(k->file + 56, 64, 4);
    put_le(k->file + 60, 8, 4);
    memcpy(k->file + 64, "base.img", 8);
}

/* Cluster 5 of L2 table 9 is the last one in use. */
static void build_used(struct kit *k)
{
    build(k);
    put_le(k->file + CLUSTER + 9 * 8, 0x4000, 8);
    put_le(k->file + 0x4000 + 5 * 8, 0x8000, 8);
}
#define LOWER ((9ull * ENTRIES + 5) * CLUSTER + 512)

/* clang-format off */
Test(qed, fields)
{
    static const struct kit_field rows[] = {
        {4, 4, 0, "cluster_size 0"},
        {4, 4, 2048, "cluster_size 2048"},
        {4, 4, 4097, "cluster_size 4097"},
        {4, 4, 1u << 27, "cluster_size"},
        {4, 4, 0xffffffff, "cluster_size"},
        {4, 4, 1u << 26, "l1_table_offset"},
        {8, 4, 0, "table_size 0"},
        /* the spec permits it; QEMU 7.2 does not open it */
        {8, 4, 1, NULL},
        {8, 4, 3, "table_size 3"},
        {8, 4, 16, NULL},
        {8, 4, 32, "table_size 32"},
        {12, 4, 2, "over the header"},
        {12, 4, 0, "backing_filename_offset 64"},
        {12, 4, 1u << 20, "header_size"},
        {12, 4, 0xffffffff, "header_size"},
        {16, 8, 0, NULL},
        {16, 8, 7, NULL},
        {16, 8, 8, "newer version"},
        {16, 8, 1ull << 62, "newer version"},
        {24, 8, UINT64_MAX, NULL},                 /* compat_features */
        {32, 8, UINT64_MAX, NULL},                 /* autoclear_features */
        {40, 8, 0, "over the header"},
        {40, 8, CLUSTER + 8, "aligned"},
        {40, 8, FILE_SIZE * 2, NULL},              /* not there yet */
        {40, 8, INT64_MAX - CLUSTER * 2 - 4095, NULL},
        {40, 8, INT64_MAX - CLUSTER - 4095, "beyond every file"},
        {40, 8, 0xfffffffffffff000, "beyond every file"},
        {48, 8, 0, NULL},
        {48, 8, 256, "no multiple"},
        {48, 8, 1ull << 32, NULL},                 /* 1024 x 1024 x 4096 */
        {48, 8, (1ull << 32) + 512, "exceeds"},
        {48, 8, 0xfffffffffffffe00, "exceeds"},
        {56, 4, 63, "backing_filename_offset 63"},
        {56, 4, 4088, NULL},
        {56, 4, 4089, "backing_filename_offset 4089"},
        {56, 4, 0xffffffff, "backing_filename_offset"},
        {60, 4, 0, NULL},
        {60, 4, 1023, NULL},
        {60, 4, 1024, "backing_filename_size 1024"},
        {60, 4, 0xffffffff, "backing_filename_size"},
    };

    kit_fields(&kit, build, put_le, rows, sizeof(rows) / sizeof(rows[0]));
}
/* clang-format on */

Test(qed, others)
{
    struct format_info info;

    build(&kit);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_YES);
    cr_assert_eq(info.virtual_size, VIRTUAL_SIZE);
    put_le(kit.file + FEATURES, 0, 8); /* without a backing file its fields are nothing */
    put_le(kit.file + 56, UINT64_MAX, 8);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_YES);
    /* no header clusters: the L1 table is still not in the first one */
    put_le(kit.file + 12, 0, 4);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_YES);
    put_le(kit.file + 40, 0, 8);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_LIES);
    for (size_t i = 0; i < 4; i++) {
        build(&kit);
        kit.file[i] ^= 1;
        cr_assert_eq(kit_probe(&kit, &info), PROBE_NO);
    }
    build(&kit); /* 64 MiB clusters, 16 to a table: 2^80 bytes, 0 in QEMU */
    put_le(kit.file + 4, 1u << 26, 4);
    put_le(kit.file + 8, 16, 4);
    put_le(kit.file + 40, 1u << 26, 8);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_LIES);
    put_le(kit.file + SIZE, 0, 8);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_YES);
}

Test(qed, cut_at_every_length)
{
    kit_cut(&kit, build, 600, 4, 56); /* the name is not there, and its length neither */
}

Test(qed, marks_and_plan)
{
    static struct plan plan;
    struct format_info info;

    build(&kit);
    cr_assert_eq(kit_plan(&kit, SEAL_REFUSE, &plan), 0);
    cr_assert_eq(plan.n, 2);
    /* the bit first: in some geometries the size does not refuse */
    cr_assert_eq(plan.ext[0].off, FEATURES);
    cr_assert_eq(plan.ext[0].len, 8);
    cr_assert_eq(le64(plan.ext[0].sealed), 1ull << 63 | 1);
    cr_assert_eq(plan.ext[1].off, SIZE);
    cr_assert_eq(plan.ext[1].len, 8);
    cr_assert_eq(le64(plan.ext[1].sealed), KIT_SEALED);
    cr_assert_eq(kit_plan(&kit, SEAL_SIZE, &plan), 0);
    cr_assert_eq(plan.n, 1);
    cr_assert_eq(plan.ext[0].off, SIZE);
    cr_assert_eq(le64(plan.ext[0].sealed), 0);
    kit_round_trip(&kit, SEAL_REFUSE);
    kit_round_trip(&kit, SEAL_SIZE);

    put_le(kit.file + SIZE, KIT_SEALED, 8);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_SEALED);
    cr_assert_str_eq(info.why, "sealed by its size");
    put_le(kit.file + FEATURES, 1ull << 63 | 2, 8);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_SEALED);
    cr_assert_str_eq(info.why, "sealed by feature bit 63 and its size");
    put_le(kit.file + SIZE, VIRTUAL_SIZE, 8);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_SEALED);
    cr_assert_str_eq(info.why, "sealed by feature bit 63");
    memset(kit.file + 4, 0xff, 20); /* the marks count more than any contradiction */
    cr_assert_eq(kit_probe(&kit, &info), PROBE_SEALED);
}

Test(qed, rescue)
{
    static struct plan plan, undo;
    static uint8_t before[FILE_SIZE];
    const uint64_t size = VIRTUAL_SIZE, least = LOWER;
    struct rescue rescue;
    uint64_t wrong;

    build_used(&kit);
    memcpy(before, kit.file, FILE_SIZE);
    cr_assert_eq(kit_plan(&kit, SEAL_REFUSE, &plan), 0);
    kit_apply(&kit, &plan);
    cr_assert_eq(kit_rescue(&kit, NULL, &rescue, &undo), -ENODATA);
    cr_assert_eq(rescue.n, 2);
    cr_assert_eq(rescue.candidate[0].kind, RESCUE_UPPER);
    cr_assert_eq(rescue.candidate[0].size, 1ull << 32);
    cr_assert_eq(rescue.candidate[1].kind, RESCUE_LOWER);
    cr_assert_eq(rescue.candidate[1].size, LOWER);
    for (unsigned i = 0; i < 3; i++) {
        wrong = i == 0 ? LOWER - 512 : i == 1 ? VIRTUAL_SIZE + 1 : (1ull << 32) + 512;
        cr_assert_eq(kit_rescue(&kit, &wrong, &rescue, &undo), -ERANGE);
    }
    cr_assert_eq(kit_rescue(&kit, &least, &rescue, &undo), 0);
    cr_assert_eq(kit_rescue(&kit, &size, &rescue, &undo), 0);
    cr_assert_eq(undo.n, 2);
    kit_undo(&kit, &undo);
    cr_assert_arr_eq(kit.file, before, FILE_SIZE);

    kit_apply(&kit, &plan); /* the bit alone: exact */
    put_le(kit.file + SIZE, VIRTUAL_SIZE, 8);
    wrong = VIRTUAL_SIZE + 512;
    cr_assert_eq(kit_rescue(&kit, &wrong, &rescue, &undo), -ERANGE);
    cr_assert_eq(kit_rescue(&kit, NULL, &rescue, &undo), 0);
    cr_assert_eq(rescue.n, 1);
    cr_assert_eq(rescue.candidate[0].kind, RESCUE_EXACT);
    cr_assert_eq(rescue.candidate[0].size, VIRTUAL_SIZE);
    kit_undo(&kit, &undo);
    cr_assert_arr_eq(kit.file, before, FILE_SIZE);

    put_le(kit.file + SIZE, KIT_SEALED, 8); /* the size alone */
    cr_assert_eq(kit_rescue(&kit, &size, &rescue, &undo), 0);
    cr_assert_eq(undo.n, 1);
    kit_undo(&kit, &undo);
    cr_assert_arr_eq(kit.file, before, FILE_SIZE);

    kit_apply(&kit, &plan);
    kit.file[8] = 3;
    cr_assert_eq(kit_rescue(&kit, &size, &rescue, &undo), -EUCLEAN);
    kit.file[8] = 2;
    kit.size = CLUSTER * 2; /* half an L1 table: no bound */
    cr_assert_eq(kit_rescue(&kit, NULL, &rescue, &undo), -ENODATA);
    cr_assert_eq(rescue.n, 1);
}

Test(qed, links)
{
    struct format_link link;

    build(&kit);
    cr_assert_eq(kit_links(&kit, &link), 7);
    cr_assert_str_eq(link.path, "base.img");
    cr_assert_str_eq(link.format, "");
    put_le(kit.file + FEATURES, 1ull << 63 | 5, 8);
    cr_assert_eq(kit_links(&kit, &link), 7);
    cr_assert_str_eq(link.format, "raw");
    put_le(kit.file + FEATURES, 4, 8);
    cr_assert_eq(kit_links(&kit, &link), 0);
    build(&kit);
    memcpy(kit.file + 64, "ssh:base", 8);
    cr_assert_eq(kit_links(&kit, &link), 7);
    cr_assert_str_eq(link.path, "ssh:base");
}

Test(qed, random_mutations)
{
    unsigned seen[PROBE_MORE + 1] = {0};

    kit_mutate(&kit, build_used, 8000, 120, seen);
    for (unsigned answer = PROBE_NO; answer < PROBE_MORE; answer++)
        cr_assert_gt(seen[answer], 10, "answer %u came %u times only", answer, seen[answer]);
}
