/* test_parallels.c: Parallels images with both magics: every field lied about once, every length,
 * marks, plan, rescue. */
#include "format_kit.h"

#define FILE_SIZE 8192u
#define SECTORS 131072u /* 64 MiB */
#define TRACKS 28u
#define SIZE 36u

static uint8_t bytes[FILE_SIZE];
static struct kit kit = {.format = &format_parallels, .file = bytes};

/* As qemu-img 7.2 makes it: clusters of 1 MiB. */
static void build(struct kit *k)
{
    memset(k->file, 0, FILE_SIZE);
    k->size = FILE_SIZE;
    memcpy(k->file, "WithouFreSpacExt", 16);
    put_le(k->file + 16, 2, 4);
    put_le(k->file + 20, 16, 4);
    put_le(k->file + 24, SECTORS / 512, 4);
    put_le(k->file + TRACKS, 2048, 4);
    put_le(k->file + 32, 64, 4);
    put_le(k->file + SIZE, SECTORS, 8);
    put_le(k->file + 48, 2048, 4);
}

/* The old magic: clusters of 63 sectors, no data_off, two clusters in use. */
static void build_old(struct kit *k)
{
    build(k);
    memcpy(k->file, "WithoutFreeSpace", 16);
    put_le(k->file + TRACKS, 63, 4);
    put_le(k->file + 32, (SECTORS + 62) / 63, 4);
    put_le(k->file + 48, 0, 4);
    put_le(k->file + 64 + 8, 100, 4);
    put_le(k->file + 64 + 40, 100 + 63 * 7, 4);
}

/* clang-format off */
Test(parallels, fields)
{
    static const struct kit_field rows[] = {
        {16, 4, 0, "version 0"},
        {16, 4, 3, "version 3"},
        {20, 8, UINT64_MAX, NULL},                  /* geometry for the guest */
        {28, 4, 2047, "nb_sectors 131072 exceeds 64 clusters of 2047"},
        {28, 4, 4186127, NULL},                     /* INT32_MAX / 513 */
        {28, 4, 4186128, "tracks 4186128"},
        {28, 4, 0xffffffff, "tracks"},
        {32, 4, 63, "nb_sectors"},
        {32, 4, 65, NULL},
        {32, 4, 0x1fffffff, "data_off"},
        {32, 4, 0x20000000, "nb_bat_entries"},
        {32, 4, 0xffffffff, "nb_bat_entries"},
        {36, 8, 0, NULL},
        {36, 8, SECTORS + 1, "nb_sectors 131073"},
        {36, 8, UINT64_MAX, "nb_sectors"},
        {36, 8, KIT_SEALED, "nb_sectors"},
        {40, 4, 1, "nb_sectors"},
        {44, 4, 0x746f6e59, NULL},                  /* in use */
        {44, 4, 77, NULL},
        {48, 4, 0, NULL},
        {48, 4, 1, NULL},                           /* 64 + 64 x 4 bytes are one sector */
        {52, 4, 0xffffffff, NULL},
        {56, 8, UINT64_MAX, NULL},
    };
    static const struct kit_field old[] = {
        {40, 4, 0xffffffff, NULL},                  /* only the lower half counts */
        {36, 4, SECTORS + 63, "nb_sectors"},
        {48, 4, 16, "data_off 16"},                 /* 64 + 2081 x 4 bytes are 17 sectors */
        {48, 4, 17, NULL},
    };

    kit_fields(&kit, build, put_le, rows, sizeof(rows) / sizeof(rows[0]));
    kit_fields(&kit, build_old, put_le, old, sizeof(old) / sizeof(old[0]));
}
/* clang-format on */

Test(parallels, other_files)
{
    struct format_info info;

    for (size_t i = 0; i < 16; i++) {
        build(&kit);
        kit.file[i] ^= 1;
        cr_assert_eq(kit_probe(&kit, &info), PROBE_NO);
    }
    build(&kit);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_YES);
    cr_assert_eq(info.virtual_size, SECTORS * 512ull);
    put_le(kit.file + TRACKS, 1u << 12, 4); /* a product of 2^32 */
    put_le(kit.file + 32, 1u << 20, 4);
    put_le(kit.file + 48, 0, 4);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_YES);
    build_old(&kit);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_YES);
    cr_assert_eq(info.virtual_size, SECTORS * 512ull);
}

Test(parallels, cut_at_every_length)
{
    kit_cut(&kit, build, 600, 16, 44);
    kit_cut(&kit, build_old, 600, 16, 44);
}

Test(parallels, marks_and_plan)
{
    static struct plan plan;
    struct format_info info;

    build(&kit);
    cr_assert_eq(kit_plan(&kit, SEAL_REFUSE, &plan), 0);
    cr_assert_eq(plan.n, 2);
    cr_assert_eq(plan.ext[0].off, TRACKS); /* first: the size alone refuses nothing */
    cr_assert_eq(plan.ext[0].len, 4);
    cr_assert_eq(le32(plan.ext[0].sealed), 0);
    cr_assert_eq(plan.ext[1].off, SIZE);
    cr_assert_eq(plan.ext[1].len, 8);
    cr_assert_eq(le64(plan.ext[1].sealed), 0);
    cr_assert_eq(kit_plan(&kit, SEAL_SIZE, &plan), 0);
    cr_assert_eq(plan.n, 1);
    cr_assert_eq(plan.ext[0].off, SIZE);
    for (unsigned i = 0; i < 4; i++) {
        (i < 2 ? build : build_old)(&kit);
        kit_round_trip(&kit, i % 2 ? SEAL_REFUSE : SEAL_SIZE);
    }

    build(&kit);
    put_le(kit.file + TRACKS, 0, 4);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_SEALED);
    cr_assert_str_eq(info.why, "sealed by its cluster size (tracks)");
    put_le(kit.file + SIZE, 0, 8);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_SEALED);
    cr_assert_str_eq(info.why, "sealed by its cluster size (tracks) and its size");
    memset(kit.file + 32, 0xff, 32); /* the mark counts more than any contradiction */
    cr_assert_eq(kit_probe(&kit, &info), PROBE_SEALED);
}

static void check_undo(const uint64_t *size, const uint8_t *before)
{
    static struct plan undo;
    struct rescue rescue;

    cr_assert_eq(kit_rescue(&kit, size, &rescue, &undo), 0);
    kit_undo(&kit, &undo);
    cr_assert_arr_eq(kit.file, before, FILE_SIZE);
}

static void check_rescue(void (*make)(struct kit *))
{
    static struct plan plan, undo;
    static uint8_t before[FILE_SIZE];
    const uint64_t size = SECTORS * 512ull;
    struct rescue rescue;
    uint64_t wrong;

    make(&kit);
    memcpy(before, kit.file, FILE_SIZE);
    cr_assert_eq(kit_plan(&kit, SEAL_REFUSE, &plan), 0);
    kit_apply(&kit, &plan);
    cr_assert_eq(kit_rescue(&kit, NULL, &rescue, &undo), -ENODATA);
    for (unsigned i = 0; i < rescue.n; i++)
        cr_assert_eq(rescue.candidate[i].size, size);
    check_undo(&size, before);
    kit_apply(&kit, &plan);
    for (unsigned i = 0; i < 5; i++) {
        wrong = i == 0   ? 0
                : i == 1 ? size + 1
                : i == 2 ? size * 8192
                : i == 3 ? 512
                         : UINT64_MAX - 511;
        cr_assert_eq(kit_rescue(&kit, &wrong, &rescue, &undo), -ERANGE, "size %" PRIu64, wrong);
    }
    memcpy(kit.file + SIZE, before + SIZE, 8); /* tracks alone is sealed */
    wrong = size + 512;
    cr_assert_eq(kit_rescue(&kit, &wrong, &rescue, &undo), -ERANGE);
    cr_assert_eq(rescue.n, 1);
    cr_assert_eq(rescue.candidate[0].kind, RESCUE_EXACT);
    cr_assert_eq(rescue.candidate[0].size, size);
    check_undo(NULL, before);
}

Test(parallels, rescue)
{
    check_rescue(build);
    check_rescue(build_old);
}

Test(parallels, rescue_that_must_not_guess)
{
    const uint64_t size = 512 * 1000, ten = 512 * 5000;
    static struct plan undo;
    struct rescue rescue;

    build(&kit); /* one cluster of 1024 or of 2048 sectors */
    put_le(kit.file + TRACKS, 0, 4);
    put_le(kit.file + SIZE, 0, 8);
    put_le(kit.file + 32, 1, 4);
    cr_assert_eq(kit_rescue(&kit, &size, &rescue, &undo), -EUCLEAN);
    put_le(kit.file + SIZE, 1000, 8);
    cr_assert_eq(kit_rescue(&kit, NULL, &rescue, &undo), -EUCLEAN);

    put_le(kit.file + 32, 2, 4); /* two clusters of 1024: of 2048, one were enough */
    put_le(kit.file + SIZE, 2048, 8);
    cr_assert_eq(kit_rescue(&kit, NULL, &rescue, &undo), 0);
    cr_assert_eq(le32(undo.ext[0].truth), 1024);

    build_old(&kit); /* ten clusters of 504 or of 512 sectors: the BAT tells */
    put_le(kit.file + TRACKS, 0, 4);
    put_le(kit.file + SIZE, 0, 8);
    put_le(kit.file + 32, 10, 4);
    memset(kit.file + 64, 0, 64);
    cr_assert_eq(kit_rescue(&kit, &ten, &rescue, &undo), -EUCLEAN);
    put_le(kit.file + 64, 1, 4);
    put_le(kit.file + 68, 505, 4);
    cr_assert_eq(kit_rescue(&kit, &ten, &rescue, &undo), 0);
    cr_assert_eq(le32(undo.ext[0].truth), 504);

    put_le(kit.file + 32, 0, 4);
    cr_assert_eq(kit_rescue(&kit, &ten, &rescue, &undo), -EUCLEAN);
    put_le(kit.file + 32, 0xffffffff, 4);
    cr_assert_eq(kit_rescue(&kit, &ten, &rescue, &undo), -EUCLEAN);
}

Test(parallels, random_mutations)
{
    unsigned seen[PROBE_MORE + 1] = {0};

    kit_mutate(&kit, build, 4000, 120, seen);
    kit_mutate(&kit, build_old, 4000, 120, seen);
    for (unsigned answer = PROBE_NO; answer < PROBE_MORE; answer++)
        cr_assert_gt(seen[answer], 10, "answer %u came %u times only", answer, seen[answer]);
}
