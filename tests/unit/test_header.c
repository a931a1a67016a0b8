/* test_header.c: headers loaded from files, planned, and edited in memory as the file itself would
 * be. */
#include "unit.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <sys/mman.h>

#include "core/header.h"
#include "qcow2_image.h"

static struct header *new_header(void)
{
    struct header *h = calloc(1, sizeof *h);

    cr_assert_not_null(h);
    return h;
}

/* What a format wants to see beyond the first bytes is zero. */
static void identify(struct header *h)
{
    int fd = memfd_create("zeros", MFD_CLOEXEC);

    cr_assert_geq(fd, 0);
    cr_assert_eq(header_settle(fd, h), 0);
    close(fd);
}

/* A header of a file of that size, qcow2 version 3, identified. */
static struct header *qcow2(uint64_t file_size)
{
    struct header *h = new_header();

    build(h->bytes, 3);
    h->file_size = file_size;
    h->n = (size_t)DG_MIN(file_size, (uint64_t)FORMAT_REACH);
    identify(h);
    return h;
}

static int temporary(void)
{
    char path[256];
    const char *tmp = getenv("TMPDIR");

    snprintf(path, sizeof path, "%s/diskguard-header-XXXXXX", tmp ? tmp : "/tmp");
    int fd = mkostemp(path, O_CLOEXEC);
    cr_assert_geq(fd, 0);
    unlink(path);
    return fd;
}

/* A plan that unseals, an edit on top, and a window that is only wanted then. */
Test(header, ahead)
{
    struct header *sealed = qcow2(1u << 20), *disk = new_header(), *after = new_header();
    struct plan *plan = calloc(1, sizeof *plan);
    const uint8_t size[8] = {0, 0, 0, 0, 0, 16};
    const struct edit e = {.kind = EDIT_WRITE, .off = 24, .len = sizeof size, .buf = size};
    int fd = temporary();

    cr_assert_eq(header_plan(sealed, &(struct seal_policy){SEAL_REFUSE, "node"}, plan), 0);
    header_patch(sealed, plan, false);
    cr_assert_eq(pwrite(fd, sealed->bytes, sealed->n, 0), (ssize_t)sealed->n);
    cr_assert_eq(ftruncate(fd, 1 << 20), 0);
    cr_assert_eq(header_read(fd, plan, disk), 0);
    cr_assert_eq(header_ahead(fd, disk, plan, &e, after), 0);
    cr_assert_eq(after->verdict, FORMAT_IMAGE);
    cr_assert_eq(after->info.virtual_size, 16u << 16);
    cr_assert(memcmp(disk->bytes, sealed->bytes, sealed->n) == 0, "the disk stays as it is");
    cr_assert_eq(header_ahead(fd, disk, plan, &e, disk), 0);
    cr_assert(header_same(disk, after), "in place it is the same");

    const struct edit other = {.kind = EDIT_WRITE, .off = 0, .len = 8, .buf = "vhdxfile"};
    cr_assert_eq(header_read(fd, plan, disk), 0);
    cr_assert_eq(header_ahead(fd, disk, NULL, &other, after), 0);
    cr_assert_neq(after->verdict, FORMAT_MORE);
    cr_assert_gt(disk->n_far, 0u, "what is wanted is added to the disk, too");
    cr_assert_eq(disk->n_far, after->n_far);
    close(fd);
    free(plan);
    header_free(sealed);
    header_free(disk);
    header_free(after);
}

Test(header, loads)
{
    static const uint64_t sizes[] = {
        0, 1, 511, FORMAT_REACH - 1, FORMAT_REACH, FORMAT_REACH + 1, 1u << 20};
    struct header *h = new_header();
    uint8_t bytes[FORMAT_REACH], zero[FORMAT_REACH] = {0};
    int fd = temporary();

    for (size_t i = 0; i < FORMAT_REACH; i++)
        bytes[i] = (uint8_t)(i * 7 + 1);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        size_t n = (size_t)DG_MIN(sizes[i], (uint64_t)FORMAT_REACH);
        cr_assert_eq(ftruncate(fd, 0), 0);
        cr_assert_eq(pwrite(fd, bytes, n, 0), (ssize_t)n);
        cr_assert_eq(ftruncate(fd, (off_t)sizes[i]), 0);
        memset(h->bytes, 0xff, sizeof h->bytes);
        cr_assert_eq(header_load(fd, h), 0);
        cr_assert_eq(h->file_size, sizes[i]);
        cr_assert_eq(h->n, n);
        cr_assert_arr_eq(h->bytes, bytes, n);
        cr_assert_arr_eq(h->bytes + n, zero, FORMAT_REACH - n);
    }
    close(fd);
    cr_assert_eq(header_load(fd, h), -EBADF);
    cr_assert(h->n == 0 && h->file_size == 0 && h->n_far == 0, "empty");
    header_free(h);
}

Test(header, identifies_and_plans_qcow2)
{
    struct header *h = qcow2(IMAGE_SIZE);
    struct plan *plan = calloc(1, sizeof *plan);
    struct seal_policy policy = {SEAL_REFUSE, "node1"};

    cr_assert_eq(h->verdict, FORMAT_IMAGE, "%s", h->info.why);
    cr_assert_eq(h->format, &format_qcow2);
    cr_assert_eq(h->info.virtual_size, VIRTUAL_SIZE);
    cr_assert_eq(header_plan(h, &policy, plan), 0);
    cr_assert_gt(plan->n, 0u);
    for (unsigned i = 0; i < plan->n; i++) {
        const struct extent *e = &plan->ext[i];
        cr_assert_arr_eq(e->truth, h->bytes + e->off, e->len);
        header_write(h, e->off, e->sealed, e->len);
    }
    identify(h);
    cr_assert_eq(h->verdict, FORMAT_SEALED);
    plan->n = 9;
    cr_assert_eq(header_plan(h, &policy, plan), -EUCLEAN, "what is sealed is not sealed again");
    cr_assert_eq(plan->n, 9u, "untouched");
    free(plan);
    header_free(h);
}

Test(header, plain_lies_and_raw)
{
    struct header *h = qcow2(IMAGE_SIZE);
    struct plan *plan = calloc(1, sizeof *plan);
    struct seal_policy policy = {SEAL_REFUSE, "node1"};

    header_put(h->bytes, 20, 4, 77); /* cluster_bits */
    identify(h);
    cr_assert_eq(h->verdict, FORMAT_LIES);
    cr_assert_neq(h->info.why[0], '\0');
    cr_assert_eq(header_plan(h, &policy, plan), -EUCLEAN);
    memset(h->bytes, 'x', FORMAT_REACH);
    identify(h);
    cr_assert_eq(h->verdict, FORMAT_PLAIN);
    cr_assert_null(h->format);
    plan->n = 9;
    cr_assert_eq(header_plan(h, &policy, plan), 0);
    cr_assert_eq(plan->n, 0u);
    header_truncate(h, 0);
    identify(h);
    cr_assert_eq(h->verdict, FORMAT_PLAIN, "an empty file");
    h->verdict = FORMAT_IMAGE;
    h->format = &format_raw;
    plan->n = 9;
    cr_assert_eq(header_plan(h, &policy, plan), 0, "raw: a claim alone");
    cr_assert_eq(plan->n, 0u);
    free(plan);
    header_free(h);
}

/* ---- a format that is wrong must not get at the file ---- */

static struct plan wrong_plan;

static enum probe wrong_probe(struct excerpt *v, struct format_info *ret_info)
{
    (void)v;
    (void)ret_info;
    return PROBE_YES;
}

static int make_wrong_plan(struct excerpt *v, const struct seal_policy *policy,
                           struct plan *ret_plan)
{
    (void)v;
    (void)policy;
    *ret_plan = wrong_plan;
    return 0;
}

Test(header, a_wrong_plan_is_refused)
{
    static const struct format wrong = {
        .name = "wrong", .probe = wrong_probe, .plan = make_wrong_plan};
    static const struct {
        unsigned n;
        struct extent a, b;
        int r;
    } cases[] = {
        {2, {.off = 0, .len = 8}, {.off = 8, .len = 8}, 0},
        {2, {.off = 0, .len = 9}, {.off = 8, .len = 8}, -EUCLEAN}, /* overlap */
        {1, {.off = 92, .len = 8}, {.off = 0}, 0},
        {1, {.off = 93, .len = 8}, {.off = 0}, -EUCLEAN}, /* beyond the end of file */
        {1, {.off = UINT64_MAX, .len = 8}, {.off = 0}, -EUCLEAN},
        {1, {.off = 0, .len = 0}, {.off = 0}, -EUCLEAN},
        {1, {.off = 0, .len = EXTENT_MAX + 1}, {.off = 0}, -EUCLEAN},
        {1, {.off = 0, .len = 8, .truth = {1}}, {.off = 0}, -EUCLEAN}, /* not what is there */
        {PLAN_MAX + 1, {.off = 0, .len = 8}, {.off = 8, .len = 8}, -EUCLEAN},
    };
    struct plan *plan = calloc(1, sizeof *plan);
    struct header *h = new_header();

    header_truncate(h, 100);
    h->verdict = FORMAT_IMAGE;
    h->format = &wrong;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        memset(&wrong_plan, 0, sizeof wrong_plan);
        wrong_plan.n = cases[i].n;
        wrong_plan.ext[0] = cases[i].a;
        wrong_plan.ext[1] = cases[i].b;
        plan->n = 9;
        cr_assert_eq(header_plan(h, &(struct seal_policy){0}, plan), cases[i].r, "case %zu", i);
        cr_assert_eq(plan->n, cases[i].r ? 9u : cases[i].n, "case %zu", i);
    }
    free(plan);
    header_free(h);
}

/* ---- edits ---- */

Test(header, edits_by_hand)
{
    struct header *h = new_header();

    header_write(h, 10, "abc", 3);
    cr_assert(h->file_size == 13 && h->n == 13);
    cr_assert_arr_eq(h->bytes, "\0\0\0\0\0\0\0\0\0\0abc", 13);
    header_write(h, 1u << 20, "x", 1);
    cr_assert(h->file_size == (1u << 20) + 1 && h->n == FORMAT_REACH);
    header_write(h, 1u << 30, "", 0);
    cr_assert_eq(h->file_size, (1u << 20) + 1, "a write of nothing does not extend");
    header_write(h, FORMAT_REACH - 1, "yz", 2);
    cr_assert_eq(h->bytes[FORMAT_REACH - 1], 'y');
    header_truncate(h, 11);
    header_truncate(h, 20);
    cr_assert(h->file_size == 20 && h->n == 20);
    cr_assert_arr_eq(h->bytes + 10, "a\0\0\0\0\0\0\0\0\0", 10,
                     "what was cut off does not come back");
    header_zero(h, 5, 100, true);
    cr_assert_eq(h->file_size, 20u);
    cr_assert_eq(h->bytes[10], 0);
    header_zero(h, 5, 100, false);
    cr_assert(h->file_size == 105 && h->n == 105);
    header_zero(h, UINT64_MAX - 1, 100, true);
    cr_assert_eq(h->file_size, 105u);
    header_zero(h, 1000, 0, false);
    cr_assert_eq(h->file_size, 105u);
    header_free(h);
}

static uint64_t rnd_state = 1;
static unsigned rnd(unsigned below)
{
    rnd_state = rnd_state * 6364136223846793005u + 1442695040888963407u; /* Knuth, MMIX */
    return (unsigned)(rnd_state >> 33) % below;
}

/* One random edit of the file and of the header. False: the file system cannot do it. */
static bool edit_both(int fd, struct header *h)
{
    uint8_t buf[2048];
    unsigned off = rnd(2 * FORMAT_REACH), len = rnd(sizeof buf);

    switch (rnd(4)) {
    case 0:
        memset(buf, (int)rnd(256), sizeof buf);
        cr_assert_eq(pwrite(fd, buf, len, off), (ssize_t)len);
        header_write(h, off, buf, len);
        return true;
    case 1:
        cr_assert_eq(ftruncate(fd, off), 0);
        header_truncate(h, off);
        return true;
    case 2:
        if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len + 1) < 0)
            return false;
        header_zero(h, off, len + 1, true);
        return true;
    default:
        if (fallocate(fd, FALLOC_FL_ZERO_RANGE, off, len + 1) < 0)
            return false;
        header_zero(h, off, len + 1, false);
        return true;
    }
}

/* The file is the model: after each edit its header, loaded, is the edited header. */
Test(header, edits_against_a_file)
{
    struct header *h = new_header(), *loaded = new_header();
    int fd = temporary();
    unsigned done = 0;

    for (unsigned round = 0; round < 400; round++) {
        done += edit_both(fd, h);
        cr_assert_eq(header_load(fd, loaded), 0);
        cr_assert_eq(h->file_size, loaded->file_size, "round %u", round);
        cr_assert_eq(h->n, loaded->n, "round %u", round);
        cr_assert_arr_eq(h->bytes, loaded->bytes, FORMAT_REACH, "round %u", round);
    }
    cr_assert_gt(done, 100u);
    close(fd);
    header_free(h);
    header_free(loaded);
}
