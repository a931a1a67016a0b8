/* test_vdi.c: VirtualBox disk images as QEMU and as VirtualBox make them: every field lied about
 * once, every length, marks, plan, rescue. */
#include "format_kit.h"

#define FILE_SIZE 8192u
#define MIB (1u << 20)
#define VIRTUAL_SIZE (64ull * MIB - 512)

static uint8_t bytes[FILE_SIZE];
static struct kit kit = {.format = &format_vdi, .file = bytes};

/* As qemu-img 7.2 makes it. */
static void build(struct kit *k)
{
    memset(k->file, 0, FILE_SIZE);
    k->size = FILE_SIZE;
    memcpy(k->file, "<<< QEMU VM Virtual Disk Image >>>\n", 35);
    put_le(k->file + 0x40, 0xbeda107f, 4);
    put_le(k->file + 0x44, 0x00010001, 4);
    put_le(k->file + 0x48, 0x180, 4);
    put_le(k->file + 0x4c, 1, 4);
    put_le(k->file + 0x154, 0x200, 4);
    put_le(k->file + 0x158, 0x300, 4);
    put_le(k->file + 0x168, 512, 4);
    put_le(k->file + 0x170, VIRTUAL_SIZE, 8);
    put_le(k->file + 0x178, MIB, 4);
    put_le(k->file + 0x180, 64, 4);
    memset(k->file + 0x188, 0x11, 32);
}

/* Version 0.2 of VirtualBox: no header size, no offsets. */
static void build_0_2(struct kit *k)
{
    memset(k->file, 0, FILE_SIZE);
    k->size = FILE_SIZE;
    put_le(k->file + 0x40, 0xbeda107f, 4);
    put_le(k->file + 0x44, 2, 4);
    put_le(k->file + 0x48, 1, 4);
    put_le(k->file + 0x160, VIRTUAL_SIZE, 8);
    put_le(k->file + 0x168, MIB, 4);
    put_le(k->file + 0x16c, 64, 4);
}

/* clang-format off */
Test(vdi, fields)
{
    static const struct kit_field rows[] = {
        {0, 8, UINT64_MAX, NULL},                  /* text for people */
        {0x44, 4, 0, "version 0.0"},
        {0x44, 4, 0x00000003, "version 0.3"},
        {0x44, 4, 0x00010000, NULL},
        {0x44, 4, 0x00010002, NULL},               /* VirtualBox asks for the major version alone */
        {0x44, 4, 0x00020001, "version 2.1"},
        {0x44, 4, 0xffffffff, "version 65535.65535"},
        {0x48, 4, 0x190, NULL},                    /* VirtualBox 1.1+ */
        {0x48, 4, 0, NULL},                        /* QEMU does not look */
        {0x4c, 4, 2, NULL},
        {0x4c, 4, 4, NULL},                        /* differencing */
        {0x154, 4, 0, "over the header"},
        {0x154, 4, 0x1c7, "over the header"},
        {0x154, 4, 0x1c8, NULL},                   /* right behind VirtualBox's first 1.1 header */
        {0x154, 4, 0x201, "offData"},
        {0x158, 4, 0, "offData 0"},
        {0x158, 4, 0x2ff, "offData 767"},
        {0x158, 4, 0x100000, NULL},
        {0x158, 4, 0xffffffff, NULL},
        {0x168, 4, 4096, NULL},                    /* QEMU refuses it, VirtualBox ignores it */
        {0x170, 8, 0, NULL},
        {0x170, 8, VIRTUAL_SIZE + 1, NULL},        /* VBoxManage convertfromraw made such */
        {0x170, 8, VIRTUAL_SIZE + 512, NULL},
        {0x170, 8, VIRTUAL_SIZE + 513, "exceeds 64 blocks"},
        {0x170, 8, UINT64_MAX, "exceeds"},
        {0x178, 4, 0, "cbBlock 0"},
        {0x178, 4, 1, "cbBlock 1"},
        {0x178, 4, MIB - 1, "cbBlock"},
        {0x178, 4, 2 * MIB, NULL},
        {0x178, 4, 1u << 31, NULL},
        {0x178, 4, MIB / 2, "exceeds"},
        {0x17c, 4, 512, NULL},
        {0x180, 4, 63, "exceeds 63 blocks"},
        {0x180, 4, 65, "offData"},
        {0x180, 4, 0xffffffff, "offData"},
        {0x184, 4, 64, NULL},
        {0x1a8, 8, UINT64_MAX, NULL},              /* a parent */
    };

    kit_fields(&kit, build, put_le, rows, sizeof(rows) / sizeof(rows[0]));
}

Test(vdi, fields_of_version_0_2)
{
    static const struct kit_field rows[] = {
        {0x170, 8, UINT64_MAX, NULL},              /* no size here */
        {0x160, 8, VIRTUAL_SIZE + 513, "exceeds 64 blocks"},
        {0x168, 4, 3, "cbBlock 3"},
        {0x16c, 4, 0x3fffff96, NULL},
        {0x16c, 4, 0x3fffff97, "offData"},         /* its offset would not fit into 32 bits */
    };

    kit_fields(&kit, build_0_2, put_le, rows, sizeof(rows) / sizeof(rows[0]));
}
/* clang-format on */

Test(vdi, other_files)
{
    struct format_info info;

    for (size_t i = 0x40; i < 0x44; i++) {
        build(&kit);
        kit.file[i] ^= 1;
        cr_assert_eq(kit_probe(&kit, &info), PROBE_NO);
    }
    build(&kit);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_YES);
    cr_assert_eq(info.virtual_size, VIRTUAL_SIZE);
    build_0_2(&kit);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_YES);
    cr_assert_eq(info.virtual_size, VIRTUAL_SIZE);
}

Test(vdi, cut_at_every_length)
{
    kit_cut(&kit, build, 600, 0x44, 0x181); /* blocks is 64: one byte */
    kit_cut(&kit, build_0_2, 600, 0x44, 0x16d);
}

static void check_plan(void (*make)(struct kit *), uint64_t at)
{
    static struct plan plan;
    struct format_info info;

    make(&kit);
    cr_assert_eq(kit_plan(&kit, SEAL_REFUSE, &plan), 0);
    cr_assert_eq(plan.n, 1);
    cr_assert_eq(plan.ext[0].off, at);
    cr_assert_eq(plan.ext[0].len, 8);
    cr_assert_eq(le64(plan.ext[0].sealed), KIT_SEALED);
    cr_assert_eq(kit_plan(&kit, SEAL_SIZE, &plan), 0);
    cr_assert_eq(plan.n, 1);
    cr_assert_eq(plan.ext[0].off, at);
    cr_assert_eq(le64(plan.ext[0].sealed), 0);
    kit_round_trip(&kit, SEAL_REFUSE);
    kit_round_trip(&kit, SEAL_SIZE);

    put_le(kit.file + at, KIT_SEALED, 8);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_SEALED);
    cr_assert_str_eq(info.why, "sealed by its size");
    memset(kit.file + at + 8, 0xff, 64); /* the mark counts more than any contradiction */
    cr_assert_eq(kit_probe(&kit, &info), PROBE_SEALED);
}

Test(vdi, marks_and_plan)
{
    check_plan(build, 0x170);
    check_plan(build_0_2, 0x160);
}

/* The largest size that passes is below the mark: this is the reason why one mark is enough. */
Test(vdi, sealed_size_never_fits)
{
    struct format_info info;

    build(&kit);
    put_le(kit.file + 0x154, 0x1c8, 4);
    put_le(kit.file + 0x158, 0xffffffff, 4);
    put_le(kit.file + 0x178, 1u << 31, 4);
    put_le(kit.file + 0x180, (0xffffffffu - 0x1c8) / 4, 4);
    put_le(kit.file + 0x170, KIT_SEALED - 1, 8);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_LIES);
    put_le(kit.file + 0x170, 1ull << 60, 8);
    cr_assert_eq(kit_probe(&kit, &info), PROBE_YES);
}

static void check_rescue(void (*make)(struct kit *), uint64_t at)
{
    static struct plan plan;
    uint8_t before[FILE_SIZE];
    const uint64_t upper = 64ull * MIB, lower = 63ull * MIB + 1, size = VIRTUAL_SIZE;
    struct rescue rescue;
    uint64_t wrong;

    make(&kit);
    memcpy(before, kit.file, FILE_SIZE);
    put_le(kit.file + at, KIT_SEALED, 8);
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
    put_le(kit.file + at, KIT_SEALED, 8);
    put_le(kit.file + at + 8, 3, 4); /* the block size */
    cr_assert_eq(kit_rescue(&kit, &size, &rescue, &plan), -EUCLEAN);
}

Test(vdi, rescue)
{
    const uint64_t none = 0;
    static struct plan plan;
    struct rescue rescue;

    check_rescue(build, 0x170);
    check_rescue(build_0_2, 0x160);
    build(&kit); /* an empty disk */
    put_le(kit.file + 0x180, 0, 4);
    put_le(kit.file + 0x170, KIT_SEALED, 8);
    cr_assert_eq(kit_rescue(&kit, &none, &rescue, &plan), 0);
}

Test(vdi, random_mutations)
{
    unsigned seen[PROBE_MORE + 1] = {0};

    kit_mutate(&kit, build, 6000, 600, seen);
    kit_mutate(&kit, build_0_2, 6000, 600, seen);
    for (unsigned answer = PROBE_NO; answer < PROBE_MORE; answer++)
        cr_assert_gt(seen[answer], 10, "answer %u came %u times only", answer, seen[answer]);
}
