/* test_vmdk.c: sparse extents of VMDK: every field lied about once, every length, the marks, the
 * seal and the way back. */
#include "vmdk_image.h"

static struct file f; /* static: 64 KiB */

Test(vmdk, what_is_whole_passes)
{
    struct format_info info;

    for (enum kind kind = SPARSE; kind < KINDS; kind++) {
        build(&f, kind);
        cr_assert_eq(probe(&f, &info), PROBE_YES, "kind %u: %s", kind, info.why);
        cr_assert_eq(info.virtual_size, CAPACITY * 512ull, "kind %u", kind);
        cr_assert_eq(info.zone.head, kind == COWD ? 4096u : 12288u, "kind %u", kind);
        cr_assert_eq(info.zone.tail, kind == FOOTER ? FOOTER_AT : UINT64_MAX, "kind %u", kind);
        check_round_trip(&f, CAPACITY * 512ull);
    }
    build(&f, SPARSE);
    f.b[0] = 'L';
    cr_assert_eq(probe(&f, &info), PROBE_NO);
}

struct field {
    enum kind kind;
    size_t off;
    unsigned width;
    uint64_t value;
    const char *why; /* NULL: must pass */
};

/* clang-format off */
static const struct field fields[] = {
    {SPARSE, 4, 4, 0, NULL}, {SPARSE, 4, 4, 3, NULL}, {SPARSE, 4, 4, 4, "version 4"},
    {FOOTER, 4, 4, 4, "version 4"}, {FOOTER, FOOTER_AT + 516, 4, 4, "version 4"},
    {SHELL, 4, 4, 4, "version 4"},
    {SPARSE, 8, 4, 2, NULL}, {SPARSE, 12, 8, 0, "createType is \"monolithicSparse\""},
    {BARE, 12, 8, 0, "no descriptor"},
    {SPARSE, 12, 8, 1ull << 40, NULL}, {SPARSE, 12, 8, 1ull << 41, NULL},
    {SPARSE, 12, 8, (1ull << 41) + 1, "grain tables"},
    {SPARSE, 12, 8, UINT64_MAX, "capacity"}, {FOOTER, FOOTER_AT + 524, 8, 1ull << 60, "capacity"},
    {SPARSE, 20, 8, 0, "grainSize 0"}, {SPARSE, 20, 8, 0x200000, NULL},
    {SPARSE, 20, 8, 0x200001, "grainSize"},
    {SPARSE, 20, 8, 1ull << 32, "grainSize"}, {FOOTER, FOOTER_AT + 532, 8, 0, "grainSize 0"},
    {SPARSE, 28, 8, 2049, "descriptorOffset 2049"},
    {SPARSE, 28, 8, UINT64_MAX, "descriptorOffset"}, {SPARSE, 28, 8, 0, NULL},
    {SPARSE, 36, 8, UINT64_MAX, "descriptorSize"},
    {SPARSE, 36, 8, 30, "gdOffset 30 lies over the descriptor"}, {SPARSE, 36, 8, 0, NULL},
    {SPARSE, 36, 8, 21, "rgdOffset 21 lies over the descriptor"},
    {SPARSE, 44, 4, 0, "numGTEsPerGT 0"},
    {SPARSE, 44, 4, 513, "numGTEsPerGT 513"}, {SPARSE, 44, 4, 1, NULL},
    {SPARSE, 48, 8, 0, NULL},
    {SPARSE, 48, 8, UINT64_MAX, "rgdOffset"}, {STREAM, 48, 8, UINT64_MAX, NULL},
    {SPARSE, 56, 8, 0, "gdOffset 0"},
    {SPARSE, 56, 8, 1ull << 60, "gdOffset"}, {SPARSE, 56, 8, UINT64_MAX, NULL},
    {FOOTER, FOOTER_AT + 568, 8, UINT64_MAX, "footer says"},
    {FOOTER, FOOTER_AT + 568, 8, 0, "gdOffset 0"},
    {FOOTER, FOOTER_AT + 12, 4, 2, NULL}, {FOOTER, FOOTER_AT + 1024, 8, 1, NULL}, {FOOTER, FOOTER_AT + 512, 4, 0, NULL},
    {SPARSE, 73, 1, '\r', "newline test"}, {SPARSE, 76, 1, ' ', "newline test"},
    {SPARSE, 77, 2, 2, "compressAlgorithm 2"},
    {SPARSE, DESC_AT, 1, 0, NULL}, {SPARSE, DESC_AT, 1, 'x', NULL},
    {SHELL, DESC_AT, 1, 0, "no descriptor"},
    {SHELL, DESC_AT + 22, 1, 'x', "no line of version"}, {SHELL, 28, 8, 0, "no descriptor"},
    {COWD, 4, 4, 2, "version 2"}, {COWD, 12, 4, 0, NULL},
    {COWD, 12, 4, 131073, "numGDEntries 32 is too small"},
    {COWD, 16, 4, 0, "grainSize 0"},
    {COWD, 16, 4, 0x200001, "grainSize"}, {COWD, 16, 4, 0x200000, NULL},
    {COWD, 20, 4, 3, "gdOffset 3"}, {COWD, 24, 4, 31, "numGDEntries 31"},
    {COWD, 24, 4, (32u << 20) + 1, "numGDEntries"},
};
/* clang-format on */

Test(vmdk, fields)
{
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        const struct field *t = &fields[i];
        struct format_info info;
        enum probe answer;

        build(&f, t->kind);
        put_le(f.b + t->off, t->value, t->width);
        answer = probe(&f, &info);
        cr_assert_eq(answer, t->why ? PROBE_LIES : PROBE_YES, "kind %u @%zu = 0x%" PRIx64 ": %s",
                     t->kind, t->off, t->value, info.why);
        cr_assert(!t->why || strstr(info.why, t->why), "kind %u @%zu: \"%s\" lacks \"%s\"", t->kind,
                  t->off, info.why, t->why);
        if (answer == PROBE_YES)
            check_round_trip(&f, info.virtual_size);
    }
}

/* A file that was cut is what it would be with zeros behind it; nothing is read beyond its end. */
Test(vmdk, truncated_at_every_length)
{
    for (enum kind kind = SPARSE; kind < KINDS; kind++)
        for (uint64_t n = 0; n <= 2600; n++) {
            struct format_info info, grown_info;
            enum probe answer, grown;

            build(&f, kind);
            put_le(f.b + 36, 3, 8); /* COWD: not used */
            f.size = n;
            answer = probe(&f, &info);
            memset(f.b + n, 0, FILE_MAX - n);
            f.size = FILE_MAX;
            grown = probe(&f, &grown_info);
            cr_assert_eq(answer, n < 4 ? PROBE_NO : grown, "kind %u, %" PRIu64 " bytes: %s / %s",
                         kind, n, info.why, grown_info.why);
            if (answer == PROBE_YES) {
                f.size = n;
                check_states(&f, info.virtual_size, false);
            }
        }
}

Test(vmdk, plan_of_a_footer)
{
    static const struct {
        uint64_t off;
        uint32_t len;
        const char *sealed;
    } want[] = {
        {FOOTER_AT + 516, 4, "\x03\0\xa1\x5e"},
        {4, 4, "\x03\0\xa1\x5e"},
        {FOOTER_AT + 640, 64, "SEALED node.example sectors=0000000000020000"},
        {FOOTER_AT + 524, 8, "\0\0DELAES"},
        {128, 64, "SEALED node.example sectors=0000000000020000"},
        {12, 8, "\0\0DELAES"},
        {DESC_AT + 75, 6, "SEALED"},
        {DESC_AT + 114, 2, "SE"},
    };
    static struct plan plan;

    build(&f, FOOTER);
    cr_assert_eq(make_plan(&f, SEAL_REFUSE, "node.example", &plan), 0);
    cr_assert_eq(plan.n, 8);
    for (unsigned i = 0; i < plan.n; i++) {
        cr_assert_eq(plan.ext[i].off, want[i].off, "extent %u is at %" PRIu64, i, plan.ext[i].off);
        cr_assert_eq(plan.ext[i].len, want[i].len);
        cr_assert_arr_eq(plan.ext[i].sealed, want[i].sealed,
                         want[i].len > 8 ? strlen(want[i].sealed) + 1 : want[i].len, "extent %u",
                         i);
    }
}

Test(vmdk, plan_of_others)
{
    static struct plan plan;

    build(&f, COWD);
    cr_assert_eq(make_plan(&f, SEAL_REFUSE, "a-name-that-is-longer-than-thirty-two", &plan), 0);
    cr_assert_eq(plan.n, 4);
    cr_assert(plan.ext[0].off == 16 && memcmp(plan.ext[0].sealed, "\x01\0\xa0\x5e", 4) == 0);
    cr_assert(plan.ext[1].off == 4 && memcmp(plan.ext[1].sealed, "\x01\0\xa1\x5e", 4) == 0);
    cr_assert(plan.ext[2].off == 1664);
    cr_assert_arr_eq(plan.ext[2].sealed,
                     "SEALED a-name-that-is-longer-than-thirt sectors=0000000000020000", 64);
    cr_assert(plan.ext[3].off == 12 && memcmp(plan.ext[3].sealed, "SEAL", 4) == 0);

    build(&f, SHELL); /* the text first, no capacity */
    for (int mode = SEAL_REFUSE; mode <= SEAL_SIZE; mode++) {
        cr_assert_eq(make_plan(&f, mode, "n", &plan), 0);
        cr_assert(plan.n == 3 && plan.ext[0].off > DESC_AT && plan.ext[2].off == 4);
    }
    build(&f, SPARSE);
    f.b[0] = 0;
    cr_assert_eq(make_plan(&f, SEAL_REFUSE, "n", &plan), -EUCLEAN);
}

Test(vmdk, plan_of_size_only)
{
    static struct plan plan;

    for (enum kind kind = SPARSE; kind < KINDS; kind++) {
        build(&f, kind);
        cr_assert_eq(make_plan(&f, SEAL_SIZE, "n", &plan), 0);
        if (kind == SHELL)
            continue;
        cr_assert_eq(plan.n, kind == FOOTER ? 2u : 1u, "kind %u", kind);
        cr_assert(plan.ext[0].off == 12 && memcmp(plan.ext[0].sealed, "\0\0\0\0\0\0\0\0", 8) == 0);
        cr_assert(kind != FOOTER || plan.ext[1].off == FOOTER_AT + 524);
    }
    build(&f, SPARSE); /* a text that QEMU would follow */
    put_desc(&f, "monolithicFlat", "RW 131072 FLAT \"a.vmdk\" 0");
    cr_assert_eq(make_plan(&f, SEAL_SIZE, "n", &plan), 0);
    cr_assert_eq(plan.n, 5);
}

/* No room for the note: the capacity is sealed only if the extent line holds it, too. */
Test(vmdk, without_a_note)
{
    static struct plan plan;

    build(&f, SPARSE);
    f.b[191] = 1;
    cr_assert_eq(make_plan(&f, SEAL_REFUSE, "n", &plan), 0);
    cr_assert(plan.n == 4 && plan.ext[1].off == 12);
    check_round_trip(&f, CAPACITY * 512ull);
    put_desc(&f, "monolithicSparse", "RW 131071 SPARSE \"a.vmdk\"");
    cr_assert_eq(make_plan(&f, SEAL_REFUSE, "n", &plan), 0);
    cr_assert(plan.n == 3 && plan.ext[1].off > DESC_AT);
    check_round_trip(&f, CAPACITY * 512ull);
    build(&f, COWD);
    f.b[1664] = 1;
    cr_assert_eq(make_plan(&f, SEAL_REFUSE, "n", &plan), 0);
    cr_assert_eq(plan.n, 2);
    check_round_trip(&f, CAPACITY * 512ull);
}

/* A sealed header whose note was damaged. */
Test(vmdk, rescue_with_a_given_size)
{
    static struct plan plan, undo;
    static struct file disk;
    uint64_t size = CAPACITY * 512ull, odd = size + 1, more = size + 512;
    struct rescue res;

    for (unsigned i = 0; i < 2; i++) {
        enum kind kind = i ? COWD : SPARSE;

        build(&f, kind);
        disk = f;
        cr_assert_eq(make_plan(&f, SEAL_REFUSE, "n", &plan), 0);
        apply(&disk, &plan, plan.n, true);
        disk.b[(kind == COWD ? 1664 : 128) + 20] = 'x';
        cr_assert_eq(rescue(&disk, NULL, &res, &undo), -ENODATA);
        cr_assert_eq(res.n, kind == COWD ? 1u : 0u);
        cr_assert(kind != COWD ||
                  (res.candidate[0].kind == RESCUE_UPPER && res.candidate[0].size == size));
        cr_assert_eq(rescue(&disk, &odd, &res, &undo), -ERANGE);
        cr_assert(kind != COWD || rescue(&disk, &more, &res, &undo) == -ERANGE);
        cr_assert_eq(rescue(&disk, &size, &res, &undo), 0);
        apply(&disk, &undo, undo.n, false);
        cr_assert_arr_eq(disk.b, f.b, f.size);
    }
}

Test(vmdk, sealed_text)
{
    static struct plan plan;
    struct format_info info;

    build(&f, SPARSE);
    cr_assert_eq(make_plan(&f, SEAL_REFUSE, "n \x1b", &plan), 0);
    apply(&f, &plan, plan.n, true);
    f.b[44] = 0; /* the marks count more than any contradiction */
    cr_assert_eq(probe(&f, &info), PROBE_SEALED);
    cr_assert_str_eq(
        info.why,
        "sealed by its version, capacity, descriptor, note: SEALED n ? sectors=0000000000020000");
    cr_assert_eq(info.virtual_size, 0);
}

Test(vmdk, random_mutations)
{
    static const uint64_t values[] = {0,
                                      1,
                                      3,
                                      20,
                                      128,
                                      512,
                                      65535,
                                      1u << 21,
                                      0x5ea10001,
                                      0xffffffff,
                                      1ull << 63,
                                      UINT64_MAX,
                                      0x5345414c45440000};
    static struct plan plan;
    unsigned seen[PROBE_MORE + 1] = {0};
    uint64_t state = 0x5eed5eed5eed5eed;
    struct rescue res;

    for (unsigned i = 0; i < 5000; i++) {
        struct format_info info;
        enum probe answer;

        build(&f, (enum kind)(i % KINDS));
        f.size = i % 3 ? FILE_MAX : random_next(&state) % 4000;
        memset(f.b + f.size, 0, FILE_MAX - f.size);
        for (unsigned k = (unsigned)(1 + random_next(&state) % 3); k > 0; k--) {
            uint64_t base = random_next(&state) % 4 == 0 ? FOOTER_AT : 0;
            uint64_t off = base + random_next(&state) % (base                      ? 1528
                                                         : random_next(&state) % 2 ? 80
                                                                                   : 900);

            if (random_next(&state) % 2)
                f.b[off] = (uint8_t)random_next(&state);
            else
                put_le(f.b + off / 4 * 4, values[random_next(&state) % 13],
                       random_next(&state) % 2 ? 4u : 8u);
        }
        answer = probe(&f, &info);
        cr_assert_eq(answer == PROBE_LIES || answer == PROBE_SEALED, info.why[0] != '\0',
                     "round %u", i);
        seen[answer]++;
        if (answer == PROBE_YES)
            check_states(&f, info.virtual_size, false);
        if (answer == PROBE_SEALED)
            (void)rescue(&f, NULL, &res, &plan);
    }
    for (unsigned answer = PROBE_NO; answer < PROBE_MORE; answer++)
        cr_assert_gt(seen[answer], 5, "answer %u came %u times only", answer, seen[answer]);
}
