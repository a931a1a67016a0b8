/* sealtool: seals and unseals one image by its plan, without claim, journal or daemon. Only for the
 * checks check_*_seal.py, which show with it what other programs make of a seal. Never use it on an
 * image that matters.
 *
 *   sealtool plan FILE [HOLDER]                    what the file is, and its extents: "extent
 * OFFSET LENGTH TRUE SEALED" sealtool seal FILE refuse|size HOLDER [N]      writes the sealed bytes
 * (of the first N extents); the plan goes to FILE.true sealtool unseal FILE writes the true bytes
 * of FILE.true back, in reverse, and removes it sealtool rescue FILE [SIZE]                    the
 * same without FILE.true, from what the file itself tells: "candidate exact|upper|lower SIZE
 * SOURCE", then the bytes are written
 *
 * Exit code 0: done; 1: not an image, or its header is not what FILE.true says; 2: usage or errno;
 * 3: rescue needs the size; 4: the size that was given contradicts the file. */
#include "base/base.h"
#include "core/header.h"
#include "core/io.h"
#include "core/overlay.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static struct plan plan; /* static: 37 KiB */
static struct header header;

static int fail(const char *what, int r)
{
    fprintf(stderr, "sealtool: %s: %s\n", what, strerror(-r));
    return 2;
}

static const char *verdict_name(enum verdict v)
{
    static const char *const names[] = {
        [FORMAT_PLAIN] = "PLAIN", [FORMAT_IMAGE] = "IMAGE",         [FORMAT_SEALED] = "SEALED",
        [FORMAT_LIES] = "LIES",   [FORMAT_AMBIGUOUS] = "AMBIGUOUS", [FORMAT_MORE] = "MORE",
    };

    return names[v];
}

static void print_extent(FILE *to, const struct extent *e)
{
    char truth[2 * EXTENT_MAX + 1], sealed[2 * EXTENT_MAX + 1];

    base_hex(e->truth, e->len, truth);
    base_hex(e->sealed, e->len, sealed);
    fprintf(to, "extent %" PRIu64 " %" PRIu32 " %s %s\n", e->off, e->len, truth, sealed);
}

static int open_and_load(const char *file, int flags)
{
    int fd = open(file, flags | O_CLOEXEC);
    int r;

    if (fd < 0)
        return -errno;
    r = header_load(fd, &header);
    if (r < 0) {
        close(fd);
        return r;
    }
    return fd;
}

static int do_plan(const char *file, const char *holder)
{
    struct seal_policy policy = {SEAL_REFUSE, holder};
    int fd = open_and_load(file, O_RDONLY);
    int r;

    if (fd < 0)
        return fail(file, fd);
    close(fd);
    printf("verdict %s\n", verdict_name(header.verdict));
    printf("format %s\n", header.format ? header.format->name : "-");
    printf("size %" PRIu64 "\n", header.info.virtual_size);
    printf("why %s\n", header.info.why);
    if (header.verdict != FORMAT_IMAGE)
        return 1;
    r = header_plan(&header, &policy, &plan);
    if (r < 0)
        return fail("no plan", r);
    for (unsigned i = 0; i < plan.n; i++)
        print_extent(stdout, &plan.ext[i]);
    return 0;
}

static int save_plan(const char *file)
{
    FILE *to = fopen(file, "wx");

    if (!to)
        return -errno;
    for (unsigned i = 0; i < plan.n; i++)
        print_extent(to, &plan.ext[i]);
    return fclose(to) == 0 ? 0 : -errno;
}

static int read_plan(const char *file)
{
    static char truth[2 * EXTENT_MAX + 1], sealed[2 * EXTENT_MAX + 1];
    FILE *from = fopen(file, "r");
    uint64_t off;
    uint32_t len;
    int r = 0;

    if (!from)
        return -errno;
    while (r == 0 && plan.n < PLAN_MAX &&
           fscanf(from, "extent %" SCNu64 " %" SCNu32 " %1024s %1024s\n", &off, &len, truth,
                  sealed) == 4) {
        struct extent *e = &plan.ext[plan.n++];

        e->off = off;
        e->len = len;
        if (len < 1 || len > EXTENT_MAX || strlen(truth) != 2 * len || strlen(sealed) != 2 * len)
            r = -EINVAL;
        else if ((r = base_unhex(truth, len, e->truth)) == 0)
            r = base_unhex(sealed, len, e->sealed);
    }
    if (r == 0 && plan.n == 0)
        r = -EINVAL;
    fclose(from);
    return r;
}

static int do_seal(const char *file, const char *true_file, const char *mode, const char *holder,
                   unsigned n)
{
    struct seal_policy policy = {strcmp(mode, "size") == 0 ? SEAL_SIZE : SEAL_REFUSE, holder};
    int fd = open_and_load(file, O_RDWR);
    int r;

    if (fd < 0)
        return fail(file, fd);
    if (header.verdict != FORMAT_IMAGE) {
        fprintf(stderr, "sealtool: %s: %s %s\n", file, verdict_name(header.verdict),
                header.info.why);
        close(fd);
        return 1;
    }
    r = header_plan(&header, &policy, &plan);
    if (r == 0)
        r = save_plan(true_file);
    for (unsigned i = 0; r == 0 && i < plan.n && i < n; i++)
        r = io_pwrite_all(fd, plan.ext[i].sealed, plan.ext[i].len, plan.ext[i].off);
    close(fd);
    return r == 0 ? 0 : fail(file, r);
}

static int do_unseal(const char *file, const char *true_file)
{
    enum header_state state;
    int r = read_plan(true_file);
    int fd;

    if (r < 0)
        return fail(true_file, r);
    fd = open_and_load(file, O_RDWR);
    if (fd < 0)
        return fail(file, fd);
    r = header_read(fd, &plan, &header);
    if (r < 0)
        return fail(file, r);
    struct excerpt v = header_view(&header);
    state = overlay_compare(&plan, &v, OVERLAY_NO_CUT);
    if (state != HEADER_TRUE && state != HEADER_SEALED && state != HEADER_MIXED) {
        fprintf(stderr, "sealtool: %s: its header is neither true nor sealed\n", file);
        close(fd);
        return 1;
    }
    for (unsigned i = plan.n; r == 0 && i-- > 0;)
        r = io_pwrite_all(fd, plan.ext[i].truth, plan.ext[i].len, plan.ext[i].off);
    close(fd);
    if (r == 0 && unlink(true_file) < 0)
        r = -errno;
    return r == 0 ? 0 : fail(file, r);
}

static void print_rescue(const struct rescue *rescue)
{
    static const char *const names[] = {
        [RESCUE_EXACT] = "exact", [RESCUE_UPPER] = "upper", [RESCUE_LOWER] = "lower"};

    for (unsigned i = 0; i < rescue->n; i++)
        printf("candidate %s %" PRIu64 " %s\n", names[rescue->candidate[i].kind],
               rescue->candidate[i].size, rescue->candidate[i].source);
}

static int do_rescue(const char *file, const char *size_text)
{
    uint64_t size = size_text ? strtoull(size_text, NULL, 10) : 0;
    struct rescue rescue = {.n = 0};
    int fd = open_and_load(file, O_RDWR);
    int r;

    if (fd < 0)
        return fail(file, fd);
    if (header.verdict != FORMAT_SEALED || !header.format->rescue) {
        fprintf(stderr, "sealtool: %s: %s %s\n", file, verdict_name(header.verdict),
                header.info.why);
        close(fd);
        return 1;
    }
    for (;;) {
        struct excerpt v = header_view(&header);

        r = header.format->rescue(&v, size_text ? &size : NULL, &rescue, &plan);
        if (r != -EAGAIN)
            break;
        r = header_add(fd, &header, v.want_off, v.want_len);
        if (r < 0)
            break;
    }
    if (r != -EAGAIN)
        print_rescue(&rescue);
    for (unsigned i = plan.n; r == 0 && i-- > 0;)
        r = io_pwrite_all(fd, plan.ext[i].truth, plan.ext[i].len, plan.ext[i].off);
    close(fd);
    return r == 0 ? 0 : r == -ENODATA ? 3 : r == -ERANGE ? 4 : fail(file, r);
}

int main(int argc, char **argv)
{
    char true_file[4096];
    const char *command = argc > 2 ? argv[1] : "";

    if (argc > 2)
        snprintf(true_file, sizeof(true_file), "%s.true", argv[2]);
    if (strcmp(command, "plan") == 0)
        return do_plan(argv[2], argc > 3 ? argv[3] : "node");
    if (strcmp(command, "seal") == 0 && argc > 4)
        return do_seal(argv[2], true_file, argv[3], argv[4],
                       argc > 5 ? (unsigned)strtoul(argv[5], NULL, 10) : PLAN_MAX);
    if (strcmp(command, "unseal") == 0)
        return do_unseal(argv[2], true_file);
    if (strcmp(command, "rescue") == 0)
        return do_rescue(argv[2], argc > 3 ? argv[3] : NULL);
    fprintf(stderr,
            "usage: sealtool plan FILE [HOLDER] | seal FILE refuse|size HOLDER [N] | unseal FILE | "
            "rescue FILE [SIZE]\n");
    return 2;
}
