/* vmdk_image.h: the files that the tests of VMDK work on, built byte by byte, and views that hold
 * exactly what was wanted of them. */
#ifndef VMDK_IMAGE_H
#define VMDK_IMAGE_H

#include "unit.h"

#include "format/bytes.h"
#include "format/format.h"

#include <errno.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MAX 65536u
#define CAPACITY 131072u /* sectors */
#define DESC_AT 512u
#define FOOTER_AT (FILE_MAX - 1536u)

enum kind { SPARSE, STREAM, FOOTER, BARE, SHELL, COWD, KINDS };

struct file {
    uint64_t size;
    uint8_t b[FILE_MAX];
};

#define FLAT_TEXT                                                                                           \
    "# Disk DescriptorFile\nversion=1\nCID=f59e37a2\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\n" \
    "# Extent description\nRW 131072 FLAT \"a-flat.vmdk\" 0\n\n# The Disk Data Base\n#DDB\n\n"              \
    "ddb.virtualHWVersion = \"4\"\n"

static inline void put_text(struct file *f, const char *text)
{
    memset(f, 0, sizeof(*f));
    f->size = strlen(text);
    memcpy(f->b, text, strlen(text));
}

static inline void put_kdmv(uint8_t *h, uint32_t version, uint32_t flags, uint64_t gd)
{
    memcpy(h, "KDMV", 4);
    put_le(h + 4, version, 4);
    put_le(h + 8, flags, 4);
    put_le(h + 12, CAPACITY, 8);
    put_le(h + 20, 128, 8);
    put_le(h + 28, 1, 8);
    put_le(h + 36, 20, 8);
    put_le(h + 44, 512, 4);
    put_le(h + 48, 21, 8);
    put_le(h + 56, gd, 8);
    put_le(h + 64, 128, 8);
    memcpy(h + 73, "\n \r\n", 4);
    put_le(h + 77, flags >> 16 & 1, 2);
}

static inline void put_desc(struct file *f, const char *type, const char *line)
{
    snprintf(
        (char *)f->b + DESC_AT, 10240,
        "# Disk DescriptorFile\nversion=1\nCID=1cc52be\nparentCID=ffffffff\ncreateType=\"%s\"\n\n"
        "# Extent description\n%s\n\n#DDB\n",
        type, line);
}

static inline void build(struct file *f, enum kind kind)
{
    memset(f, 0, sizeof(*f));
    f->size = FILE_MAX;
    if (kind == COWD) {
        memcpy(f->b, "COWD", 4);
        put_le(f->b + 4, 1, 4);
        put_le(f->b + 8, 3, 4);
        put_le(f->b + 12, CAPACITY, 4);
        put_le(f->b + 16, 1, 4);
        put_le(f->b + 20, 4, 4);
        put_le(f->b + 24, 32, 4);
        put_le(f->b + 28, 64, 4);
        return;
    }
    put_kdmv(f->b, kind == STREAM || kind == FOOTER ? 3 : 1,
             kind == STREAM || kind == FOOTER ? 0x30001 : 3, kind == FOOTER ? UINT64_MAX : 30);
    if (kind == SHELL) {
        put_le(f->b + 12, 0, 8);
        put_desc(f, "monolithicFlat", "RW 131072 FLAT \"a-flat.vmdk\" 0");
    } else if (kind != BARE) {
        put_desc(f, kind == SPARSE ? "monolithicSparse" : "streamOptimized",
                 "RW 131072 SPARSE \"a.vmdk\"");
    }
    if (kind == FOOTER) {
        f->b[FOOTER_AT] = 1;
        put_le(f->b + FOOTER_AT + 12, 3, 4);
        put_kdmv(f->b + FOOTER_AT + 512, 3, 0x30001, 100);
    }
}

/* Heap copies of exactly the windows that were wanted, so that AddressSanitizer sees a read beyond
 * them. */
static inline bool view_more(struct excerpt *v, const struct file *f)
{
    uint8_t *copy = malloc(v->want_len ? v->want_len : 1);

    cr_assert(v->want_len > 0 && v->want_len <= FORMAT_WINDOW_MAX && v->n < VIEW_WINDOWS - 2);
    cr_assert(v->want_off <= f->size && v->want_len <= f->size - v->want_off);
    memcpy(copy, f->b + v->want_off, v->want_len);
    v->win[v->n].off = v->want_off;
    v->win[v->n].len = v->want_len;
    v->win[v->n++].data = copy;
    v->want_len = 0;
    return true;
}

static inline void view_free(struct excerpt *v)
{
    while (v->n > 0)
        free((void *)(uintptr_t)v->win[--v->n].data);
}

static inline enum probe probe(const struct file *f, struct format_info *info)
{
    struct excerpt v = {.file_size = f->size};
    enum probe answer;

    do {
        memset(info, 0, sizeof(*info));
        info->zone = (struct format_zone){.head = FORMAT_REACH, .tail = UINT64_MAX};
        answer = format_vmdk.probe(&v, info);
    } while (answer == PROBE_MORE && view_more(&v, f));
    view_free(&v);
    return answer;
}

static inline int make_plan(const struct file *f, enum seal_mode mode, const char *holder,
                            struct plan *plan)
{
    struct seal_policy policy = {mode, holder};
    struct excerpt v = {.file_size = f->size};
    int r;

    while ((r = format_vmdk.plan(&v, &policy, plan)) == -EAGAIN && view_more(&v, f))
        ;
    view_free(&v);
    return r;
}

static inline int rescue(const struct file *f, const uint64_t *size, struct rescue *ret,
                         struct plan *plan)
{
    struct excerpt v = {.file_size = f->size};
    int r;

    while ((r = format_vmdk.rescue(&v, size, ret, plan)) == -EAGAIN && view_more(&v, f))
        ;
    view_free(&v);
    return r;
}

static inline int links(const struct file *f, int (*fn)(void *arg, const struct format_link *link),
                        void *arg)
{
    struct excerpt v = {.file_size = f->size};
    int r;

    while ((r = format_vmdk.links(&v, fn, arg)) == -EAGAIN && view_more(&v, f))
        ;
    view_free(&v);
    return r;
}

static inline void apply(struct file *f, const struct plan *plan, unsigned n, bool seal)
{
    for (unsigned i = 0; i < n; i++)
        memcpy(f->b + plan->ext[i].off, seal ? plan->ext[i].sealed : plan->ext[i].truth,
               plan->ext[i].len);
}

/* An image that passed: its plan holds what the file holds, every prefix of it and every state of a
 * restore is known as sealed, and all of them are undone exactly by the plan and, from the file
 * alone, by rescue. */
static inline void check_states(const struct file *f, uint64_t virtual_size, bool each_subset)
{
    static struct plan plan, undo;
    static struct file disk;
    struct format_info info, true_info;
    struct rescue res;
    uint64_t wrong = virtual_size + 512;

    cr_assert_eq(probe(f, &true_info), PROBE_YES);
    cr_assert_eq(make_plan(f, SEAL_REFUSE, "node", &plan), 0);
    cr_assert(plan.n >= 1 && plan.n <= PLAN_MAX);
    for (unsigned mask = 1; mask < 1u << plan.n; mask++) {
        bool prefix = (mask & (mask + 1)) == 0;

        if (!prefix && !each_subset)
            continue;
        disk = *f;
        for (unsigned i = 0; i < plan.n; i++) {
            const struct extent *e = &plan.ext[i];

            cr_assert(e->len >= 1 && e->len <= EXTENT_MAX && e->off + e->len <= f->size);
            cr_assert(e->off + e->len <= true_info.zone.head || e->off >= true_info.zone.tail);
            cr_assert_arr_eq(e->truth, f->b + e->off, e->len);
            for (unsigned k = 0; k < i; k++)
                cr_assert(e->off >= plan.ext[k].off + plan.ext[k].len ||
                          plan.ext[k].off >= e->off + e->len);
            if (mask >> i & 1)
                memcpy(disk.b + e->off, e->sealed, e->len);
        }
        cr_assert_eq(probe(&disk, &info), PROBE_SEALED, "mask 0x%x: %s", mask, info.why);
        cr_assert(strncmp(info.why, "sealed by ", 10) == 0, "%s", info.why);
        cr_assert(info.zone.head == true_info.zone.head && info.zone.tail == true_info.zone.tail);
        if (!prefix)
            continue;
        cr_assert_eq(rescue(&disk, NULL, &res, &undo), 0, "mask 0x%x", mask);
        cr_assert(res.n == 1 && res.candidate[0].kind == RESCUE_EXACT);
        cr_assert_eq(res.candidate[0].size, virtual_size, "mask 0x%x: %" PRIu64, mask,
                     res.candidate[0].size);
        for (unsigned i = 0; i < undo.n; i++)
            cr_assert_arr_eq(undo.ext[i].sealed, disk.b + undo.ext[i].off, undo.ext[i].len);
        apply(&disk, &undo, undo.n, false);
        cr_assert_arr_eq(disk.b, f->b, f->size, "mask 0x%x", mask);
        apply(&disk, &undo, undo.n, true);
        cr_assert_eq(rescue(&disk, &virtual_size, &res, &undo), 0);
        cr_assert_eq(rescue(&disk, &wrong, &res, &undo), -ERANGE);
    }
}

static inline void check_round_trip(const struct file *f, uint64_t virtual_size)
{
    check_states(f, virtual_size, true);
}

/* xorshift64, Marsaglia 2003 */
static inline uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

#endif
