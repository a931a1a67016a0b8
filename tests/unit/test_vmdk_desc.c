/* test_vmdk_desc.c: VMDK descriptor files: what is one, each line wrong once, the seal and the way
 * back, the files that it needs. */
#include "vmdk_image.h"

static struct file f; /* static: 64 KiB */

#define HEAD "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
#define TYPE "createType=\"monolithicFlat\"\n"
#define LINE "RW 8 FLAT \"a.vmdk\" 0\n"

struct text {
    const char *text;
    enum probe answer;
    const char *why;  /* part of it, or NULL */
    uint64_t sectors; /* of those that pass */
};

/* clang-format off */
static const struct text texts[] = {
    {FLAT_TEXT, PROBE_YES, NULL, 131072},
    {HEAD TYPE LINE, PROBE_YES, NULL, 8},
    {"# disk descriptorfile\r\nversion=2\r\nCID=1\r\nparentCID=2\r\ncreateType=\"vmfs\"\r\nRW 8 VMFS \"a\"\r\n", PROBE_YES, NULL, 8},
    /* QEMU takes it */
    {"version=3\n# Disk DescriptorFile\nCID=1\nparentCID=ffffffff\n" TYPE LINE, PROBE_YES, NULL, 8},
    {"# x\n   \nversion=1\nCID=1\nparentCID=ffffffff\n" TYPE LINE, PROBE_YES, NULL, 8},
    /* QEMU does not */
    {"# x\n\nversion=1\nCID=1\nparentCID=ffffffff\n" TYPE LINE, PROBE_NO, NULL, 0},
    {"# x\nversion=4\nCID=1\nparentCID=ffffffff\n" TYPE LINE, PROBE_NO, NULL, 0},
    {"# a configuration file\nversion=1\nname=\"something\"\nRW 8 FLAT \"a\" 0\n", PROBE_NO, NULL, 0},
    {"# a configuration file\nversion=1\ncreateType=\"x\"\n", PROBE_LIES, "line 3", 0},
    {HEAD "createType = vmfsThin\n RDONLY 1 ZERO\n\tRW 2 SPARSE \"s\"\nNOACCESS 4 SESPARSE \"t\" 0 more\n", PROBE_YES, NULL, 7},
    {"# Disk DescriptorFile\nversion=4\nCID=1\nparentCID=2\n" TYPE LINE, PROBE_LIES,
     "line 2 of the descriptor: its version", 0},
    {"# Disk DescriptorFile\nversion=0\nCID=1\nparentCID=2\n" TYPE LINE, PROBE_LIES, "version", 0},
    {"# Disk DescriptorFile\nversion=\nCID=1\nparentCID=2\n" TYPE LINE, PROBE_LIES, "version", 0},
    {"# Disk DescriptorFile\nCID=1\nparentCID=2\n" TYPE LINE, PROBE_LIES, "no line of version", 0},
    {"# Disk DescriptorFile\nversion=1\nparentCID=2\n" TYPE LINE, PROBE_LIES, "no line of CID", 0},
    {"# Disk DescriptorFile\nversion=1\nCID=g\nparentCID=2\n" TYPE LINE, PROBE_LIES,
     "line 3 of the descriptor: a CID", 0},
    {"# Disk DescriptorFile\nversion=1\nCID=1\n" TYPE LINE, PROBE_LIES, "no line of parentCID", 0},
    {HEAD LINE, PROBE_LIES, "no line of createType", 0},
    {HEAD "createType=\n" LINE, PROBE_LIES, "no value", 0},
    {HEAD "createType=\"\"\n" LINE, PROBE_LIES, "no value", 0},
    {HEAD "createType=\"monolithicFlat2\"\n" LINE, PROBE_LIES, "unknown", 0},
    {HEAD TYPE TYPE LINE, PROBE_LIES, "second createType", 0},
    {HEAD "# createType=\"vmfs\"\n" TYPE LINE, PROBE_LIES, "before its line", 0},
    {HEAD TYPE "# createType=\"vmfs\"\n" LINE, PROBE_YES, NULL, 8},
    {HEAD TYPE, PROBE_LIES, "no extents", 0},
    {HEAD TYPE "RW 0 FLAT \"a\" 0\n", PROBE_LIES, "no extents", 0},
    {HEAD TYPE LINE "RW 0 FLAT \"a\" 0\n", PROBE_YES, NULL, 8},
    {HEAD TYPE "RW -8 FLAT \"a\" 0\n", PROBE_LIES, "number of sectors", 0},
    {HEAD TYPE "RW\n" LINE, PROBE_LIES, "number of sectors", 0},
    {HEAD TYPE "RW 18014398509481983 FLAT \"a\" 0\n", PROBE_YES, NULL, 18014398509481983},
    {HEAD TYPE "RW 18014398509481984 FLAT \"a\" 0\n", PROBE_LIES, "number of sectors", 0},
    {HEAD TYPE "RW 99999999999999999999999 FLAT \"a\" 0\n", PROBE_LIES, "number of sectors", 0},
    {HEAD TYPE "RW 18014398509481983 FLAT \"a\" 0\n" LINE, PROBE_LIES, "sum", 0},
    {HEAD TYPE "RW 8 FLOT \"a\" 0\n", PROBE_LIES, "extent's type", 0},
    {HEAD TYPE "RW 8\n", PROBE_LIES, "extent's type", 0},
    {HEAD TYPE "RW 8 FLAT \"a 0\n", PROBE_LIES, "file name", 0},
    {HEAD TYPE "RW 8 FLAT \"\" 0\n", PROBE_LIES, "file name", 0},
    {HEAD TYPE "RW 8 FLAT a 0\n", PROBE_LIES, "file name", 0},
    {HEAD TYPE "RW 8 FLAT \"a\"\n", PROBE_LIES, "offset", 0},
    {HEAD TYPE "RW 8 FLAT \"a\" x\n", PROBE_LIES, "offset", 0},
    {HEAD TYPE LINE "parentFileNameHint=x\n", PROBE_LIES, "parentFileNameHint", 0},
    {HEAD TYPE LINE "parentFileNameHint=\"x\"\nparentFileNameHint=\"x\"\n", PROBE_LIES,
     "second parent", 0},
    {HEAD "createType=\"SEALEDthicFlat\"\n" LINE, PROBE_SEALED, "sealed by createType", 0},
    {HEAD "createType=\"SEAL\"\n" LINE, PROBE_SEALED, "sealed by createType", 0},
    {HEAD "createType=\"SEA\"\n" LINE, PROBE_LIES, "unknown", 0},
    {HEAD TYPE "SE 8 FLAT \"a.vmdk\" 0\n", PROBE_SEALED, "sealed by its first extent", 0},
    {HEAD "createType=\"SEALED\"\n" TYPE "SE 8 FLAT \"a.vmdk\" 0\n", PROBE_SEALED,
     "createType and its first extent", 0},
    {"# Disk DescriptorFil", PROBE_NO, NULL, 0},
    {"Disk DescriptorFile\nversion=1\n", PROBE_NO, NULL, 0},
};
/* clang-format on */

Test(vmdk_desc, texts)
{
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct format_info info;
        enum probe answer;

        put_text(&f, texts[i].text);
        answer = probe(&f, &info);
        cr_assert_eq(answer, texts[i].answer, "%zu: %u, %s", i, answer, info.why);
        cr_assert(!texts[i].why || strstr(info.why, texts[i].why), "%zu: \"%s\" lacks \"%s\"", i,
                  info.why, texts[i].why);
        cr_assert_eq(info.virtual_size, texts[i].sectors * 512, "%zu", i);
        cr_assert_eq(info.zone.head, answer == PROBE_NO ? FORMAT_REACH : 65536, "%zu", i);
        if (answer == PROBE_YES)
            check_round_trip(&f, info.virtual_size);
    }
}

/* Each type can be told from its sealed form. */
Test(vmdk_desc, types)
{
    static const char *const types[] = {"custom",
                                        "fullDevice",
                                        "monolithicFlat",
                                        "monolithicSparse",
                                        "partitionedDevice",
                                        "streamOptimized",
                                        "twoGbMaxExtentFlat",
                                        "twoGbMaxExtentSparse",
                                        "2GbMaxExtentFlat",
                                        "2GbMaxExtentSparse",
                                        "vmfs",
                                        "vmfsEagerZeroedThick",
                                        "vmfsRaw",
                                        "vmfsRawDeviceMap",
                                        "vmfsRDM",
                                        "vmfsRDMP",
                                        "vmfsSparse",
                                        "vmfsThin",
                                        "seSparse",
                                        "vmfsPassthroughRawDeviceMap",
                                        "vmfsPreallocated"};

    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        char text[400];

        snprintf(text, sizeof(text), HEAD "createType=\"%s\"\n" LINE, types[i]);
        put_text(&f, text);
        check_round_trip(&f, 4096);
    }
}

Test(vmdk_desc, plan)
{
    static struct plan plan, undo;
    struct rescue res;

    put_text(&f, FLAT_TEXT);
    for (int mode = SEAL_REFUSE; mode <= SEAL_SIZE; mode++) {
        cr_assert_eq(make_plan(&f, mode, "n", &plan), 0);
        cr_assert_eq(plan.n, 2);
        cr_assert(plan.ext[0].len == 6 && memcmp(plan.ext[0].truth, "monoli", 6) == 0);
        cr_assert(plan.ext[1].len == 2 && memcmp(plan.ext[1].sealed, "SE", 2) == 0);
    }
    put_text(&f, HEAD TYPE "RDONLY 8 FLAT \"a\" 0\n" LINE);
    cr_assert_eq(make_plan(&f, SEAL_REFUSE, "n", &plan), 0);
    cr_assert(plan.n == 2 && plan.ext[1].off == strlen(HEAD TYPE "RDONLY 8 FLAT \"a\" 0\n"));
    put_text(&f, HEAD TYPE "RDONLY 8 FLAT \"a\" 0\n");
    cr_assert_eq(make_plan(&f, SEAL_REFUSE, "n", &plan), 0);
    cr_assert_eq(plan.n, 1);
    put_text(&f, HEAD);
    cr_assert_eq(make_plan(&f, SEAL_REFUSE, "n", &plan), -EUCLEAN);
    put_text(&f, "nothing that is known of anyone");
    cr_assert_eq(make_plan(&f, SEAL_REFUSE, "n", &plan), -EUCLEAN);
    put_text(&f, HEAD "createType=\"SEALEDxyz\"\n" LINE); /* not ours */
    cr_assert_eq(rescue(&f, NULL, &res, &undo), -EUCLEAN);
    put_text(&f, HEAD "createType=\"SEALEDthicFlat\"\n");
    cr_assert_eq(rescue(&f, NULL, &res, &undo), -EUCLEAN);
    cr_assert_eq(res.n, 0);
}

Test(vmdk_desc, lengths)
{
    struct format_info info;

    put_text(&f, FLAT_TEXT);
    f.size = FILE_MAX; /* zeros behind it */
    cr_assert_eq(probe(&f, &info), PROBE_YES);
    check_round_trip(&f, 131072 * 512ull);
    memset(f.b + strlen(FLAT_TEXT), '\n', FILE_MAX - strlen(FLAT_TEXT));
    cr_assert_eq(probe(&f, &info), PROBE_LIES);
    cr_assert(strstr(info.why, "65536 bytes or more"), "%s", info.why);
    f.size = FILE_MAX - 1;
    cr_assert_eq(probe(&f, &info), PROBE_YES);
    for (uint64_t n = 0; n <= strlen(FLAT_TEXT); n++) {
        put_text(&f, FLAT_TEXT);
        f.size = n;
        cr_assert_eq(probe(&f, &info) == PROBE_NO, n < 21, "%" PRIu64, n);
    }
    put_text(&f,
             /* without a signature, and what would make it one is far away */
             "# x\nversion=1\nCID=1\nparentCID=2\n");
    memset(f.b + f.size, '\n', FILE_MAX - f.size);
    memcpy(f.b + FORMAT_REACH - 9, TYPE, strlen(TYPE));
    f.size = 20000;
    cr_assert_eq(probe(&f, &info), PROBE_NO);
    memcpy(f.b + FORMAT_REACH - 10, TYPE, strlen(TYPE));
    cr_assert_eq(probe(&f, &info), PROBE_LIES);
}

Test(vmdk_desc, longest_file_name)
{
    char text[1000];

    for (unsigned len = 511; len <= 512; len++) {
        struct format_info info;

        snprintf(text, sizeof(text), HEAD TYPE "RW 8 FLAT \"%0*d\" 0\n", (int)len, 0);
        put_text(&f, text);
        cr_assert_eq(probe(&f, &info), len == 511 ? PROBE_YES : PROBE_LIES);
    }
}

/* ---- links ---- */

struct seen {
    unsigned n, stop;
    struct format_link link[8];
};

static int see(void *arg, const struct format_link *link)
{
    struct seen *seen = arg;

    seen->link[seen->n++] = *link;
    return seen->n == seen->stop ? 7 : 0;
}

static void check_link(const struct seen *seen, unsigned i, enum link_role role, const char *path,
                       const char *format)
{
    cr_assert_lt(i, seen->n);
    cr_assert_eq(seen->link[i].role, role);
    cr_assert_str_eq(seen->link[i].path, path);
    cr_assert_str_eq(seen->link[i].format, format);
}

Test(vmdk_desc, links)
{
    static struct seen seen, none;

    put_text(&f, HEAD
             "createType=\"SEALEDthicFlat\"\n"
             "SE 8 FLAT \"a b.vmdk\" 0\nRW 8 ZERO\nRW 8 SPARSE \"/x:y/b\"\nRW 1 VMFS \"file:c\"\n"
             "RW 1 VMFSSPARSE \"d\"\nRW 1 SESPARSE \"e\"\nparentFileNameHint=\"../p.vmdk\"\n");
    cr_assert_eq(links(&f, see, &seen), 0);
    cr_assert_eq(seen.n, 6);
    check_link(&seen, 0, LINK_EXTENT, "a b.vmdk", "raw");
    check_link(&seen, 1, LINK_EXTENT, "/x:y/b", "vmdk");
    check_link(&seen, 2, LINK_EXTENT, "file:c", "raw");
    check_link(&seen, 3, LINK_EXTENT, "d", "vmdk");
    check_link(&seen, 4, LINK_EXTENT, "e", "");
    check_link(&seen, 5, LINK_BACKING, "../p.vmdk", "vmdk");
    seen = none;
    seen.stop = 2;
    cr_assert_eq(links(&f, see, &seen), 7);
    cr_assert_eq(seen.n, 2);

    build(&f, SPARSE); /* its own extent is no link */
    seen = none;
    cr_assert_eq(links(&f, see, &seen), 0);
    cr_assert_eq(seen.n, 0);
    put_desc(&f, "monolithicSparse", "RW 131072 SPARSE \"a.vmdk\"\nparentFileNameHint=\"p\"");
    cr_assert_eq(links(&f, see, &seen), 0);
    cr_assert_eq(seen.n, 1);
    check_link(&seen, 0, LINK_BACKING, "p", "vmdk");
    build(&f, SHELL);
    seen = none;
    cr_assert_eq(links(&f, see, &seen), 0);
    check_link(&seen, 0, LINK_EXTENT, "a-flat.vmdk", "raw");
    build(&f, COWD);
    seen = none;
    cr_assert_eq(links(&f, see, &seen), 0);
    cr_assert_eq(seen.n, 0);
}

Test(vmdk_desc, links_with_a_protocol_and_too_long_ones)
{
    static const char *const hints[] = {"json:{}", "nbd://h/x", "C:\\x", "file:a"};
    static struct seen seen;
    static char text[2000];

    for (size_t i = 0; i < sizeof(hints) / sizeof(hints[0]); i++) {
        snprintf(text, sizeof(text), HEAD TYPE LINE "parentFileNameHint=\"%s\"\n", hints[i]);
        put_text(&f, text);
        seen.n = 0;
        cr_assert_eq(links(&f, see, &seen), 0, "%s", hints[i]);
        check_link(&seen, seen.n - 1, LINK_BACKING, hints[i], "vmdk");
    }
    for (unsigned len = 1023; len <= 1024; len++) {
        snprintf(text, sizeof(text), HEAD TYPE LINE "parentFileNameHint=\"%0*d\"\n", (int)len, 0);
        put_text(&f, text);
        seen.n = 0;
        cr_assert_eq(links(&f, see, &seen), len == 1023 ? 0 : -EUCLEAN);
    }
}

/* ---- random texts ---- */

Test(vmdk_desc, random_mutations)
{
    static const char *const pieces[] = {"\n",
                                         "\"",
                                         " ",
                                         "=",
                                         "RW 8 ",
                                         "SE ",
                                         "createType=\"",
                                         "SEALED",
                                         "version=",
                                         "\r\n",
                                         "RDONLY",
                                         "99999999999",
                                         "parentFileNameHint=\"",
                                         "VMFS ",
                                         "CID=",
                                         "#"};
    unsigned seen[PROBE_MORE + 1] = {0};
    uint64_t state = 0x5eed5eed5eed5eed;
    static struct seen names;
    static struct plan plan;
    struct rescue res;

    for (unsigned i = 0; i < 5000; i++) {
        struct format_info info;
        enum probe answer;

        put_text(&f, FLAT_TEXT);
        if (i % 8 == 0)
            memcpy(f.b + 76, "SEALED", 6);
        for (unsigned k = (unsigned)(random_next(&state) % 3); k > 0; k--) {
            const char *piece = pieces[random_next(&state) % 16];
            uint64_t at = random_next(&state) % f.size;

            if (random_next(&state) % 3 == 0)
                f.b[at] = (uint8_t)random_next(&state);
            else
                memcpy(f.b + at, piece, strlen(piece));
        }
        f.size -= random_next(&state) % 4 == 0 ? random_next(&state) % f.size : 0;
        answer = probe(&f, &info);
        cr_assert_eq(answer == PROBE_LIES || answer == PROBE_SEALED, info.why[0] != '\0',
                     "round %u", i);
        seen[answer]++;
        names.n = 0;
        if (answer == PROBE_YES) {
            check_states(&f, info.virtual_size, true);
            (void)links(&f, see, &names);
        }
        if (answer == PROBE_SEALED)
            (void)rescue(&f, NULL, &res, &plan);
    }
    for (unsigned answer = PROBE_NO; answer < PROBE_MORE; answer++)
        cr_assert_gt(seen[answer], 50, "answer %u came %u times only", answer, seen[answer]);
}
