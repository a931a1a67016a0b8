/* windows.h: runs a format on a file in memory the way its caller does: each window is loaded when
 * it is wanted, as a heap copy of exactly that length, so that AddressSanitizer and valgrind see a
 * read beyond it. */
#ifndef WINDOWS_H
#define WINDOWS_H

#include "unit.h"

#include "format/format.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct windows {
    const uint8_t *file;
    struct excerpt v;
};

static inline struct windows windows_of(const uint8_t *file, uint64_t file_size)
{
    return (struct windows){.file = file, .v = {.file_size = file_size}};
}

static inline void windows_load(struct windows *w)
{
    struct excerpt *v = &w->v;
    uint8_t *copy;

    cr_assert(v->want_len > 0 && v->want_len <= FORMAT_WINDOW_MAX);
    cr_assert(v->want_off < v->file_size && v->want_len <= v->file_size - v->want_off);
    cr_assert_lt(v->n, VIEW_WINDOWS - 2);
    copy = malloc(v->want_len);
    cr_assert_not_null(copy);
    memcpy(copy, w->file + v->want_off, v->want_len);
    v->win[v->n].off = v->want_off;
    v->win[v->n].len = v->want_len;
    v->win[v->n].data = copy;
    v->n++;
    v->want_len = 0;
}

static inline void windows_free(struct windows *w)
{
    for (unsigned i = 0; i < w->v.n; i++)
        free((void *)(uintptr_t)w->v.win[i].data);
    w->v.n = 0;
}

static inline enum probe windows_probe(const struct format *f, const uint8_t *file,
                                       uint64_t file_size, struct format_info *ret)
{
    struct windows w = windows_of(file, file_size);
    enum probe answer;

    do {
        if (w.v.want_len)
            windows_load(&w);
        memset(ret, 0, sizeof(*ret));
        ret->zone.head = FORMAT_REACH;
        ret->zone.tail = UINT64_MAX;
        answer = f->probe(&w.v, ret);
    } while (answer == PROBE_MORE);
    windows_free(&w);
    return answer;
}

static inline int windows_plan(const struct format *f, const uint8_t *file, uint64_t file_size,
                               enum seal_mode mode, struct plan *ret)
{
    struct seal_policy policy = {mode, "nodeA"};
    struct windows w = windows_of(file, file_size);
    int r;

    while ((r = f->plan(&w.v, &policy, ret)) == -EAGAIN)
        windows_load(&w);
    windows_free(&w);
    return r;
}

static inline int windows_rescue(const struct format *f, const uint8_t *file, uint64_t file_size,
                                 const uint64_t *size, struct rescue *ret, struct plan *ret_plan)
{
    struct windows w = windows_of(file, file_size);
    int r;

    while ((r = f->rescue(&w.v, size, ret, ret_plan)) == -EAGAIN)
        windows_load(&w);
    windows_free(&w);
    return r;
}

static int windows_link_one(void *arg, const struct format_link *link)
{
    cr_assert_eq(link->role, LINK_BACKING);
    snprintf(arg, sizeof(link->path), "%s", link->path);
    return 0;
}

/* ret: 1024 bytes, "" when there is no link. */
static inline int windows_links(const struct format *f, const uint8_t *file, uint64_t file_size,
                                char *ret)
{
    struct windows w = windows_of(file, file_size);
    int r;

    ret[0] = '\0';
    while ((r = f->links(&w.v, windows_link_one, ret)) == -EAGAIN)
        windows_load(&w);
    windows_free(&w);
    return r;
}

static inline void windows_seal(uint8_t *file, const struct plan *plan, unsigned bits)
{
    for (unsigned i = 0; i < plan->n; i++)
        if (bits & 1u << i)
            memcpy(file + plan->ext[i].off, plan->ext[i].sealed, plan->ext[i].len);
}

/* Seals what passes in each subset of the extents, and undoes it by rescue. known: the size can be
 * told. file is changed and put back. */
static inline void windows_round_trip(const struct format *f, uint8_t *file, uint64_t file_size,
                                      enum seal_mode mode)
{
    static struct plan plan, undo;
    struct format_info info, sealed;
    struct rescue rescue;

    cr_assert_eq(windows_probe(f, file, file_size, &info), PROBE_YES, "%s", info.why);
    cr_assert_eq(windows_plan(f, file, file_size, mode, &plan), 0);
    cr_assert(plan.n >= 1 && plan.n <= 4);
    for (unsigned i = 0; i < plan.n; i++) {
        cr_assert(plan.ext[i].off + plan.ext[i].len <= info.zone.head ||
                  plan.ext[i].off >= info.zone.tail);
        cr_assert_arr_eq(plan.ext[i].truth, file + plan.ext[i].off, plan.ext[i].len);
    }
    for (unsigned bits = 1; bits < 1u << plan.n; bits++) {
        uint64_t given = info.virtual_size;

        windows_seal(file, &plan, bits);
        cr_assert_eq(windows_probe(f, file, file_size, &sealed), PROBE_SEALED, "subset %u", bits);
        cr_assert_neq(sealed.why[0], '\0');
        cr_assert_eq(sealed.zone.head, info.zone.head);
        cr_assert_eq(sealed.zone.tail, info.zone.tail);
        cr_assert_eq(sealed.guest_at_start, info.guest_at_start);
        cr_assert_eq(windows_rescue(f, file, file_size, NULL, &rescue, &undo), 0, "subset %u",
                     bits);
        if (given) {
            cr_assert_eq(rescue.n, 1);
            cr_assert_eq(rescue.candidate[0].kind, RESCUE_EXACT);
            cr_assert_eq(rescue.candidate[0].size, given);
        }
        cr_assert_eq(windows_rescue(f, file, file_size, &given, &rescue, &undo), 0);
        given += 512;
        cr_assert_eq(windows_rescue(f, file, file_size, &given, &rescue, &undo), -ERANGE);
        given -= 512;
        cr_assert_eq(windows_rescue(f, file, file_size, &given, &rescue, &undo), 0);
        cr_assert_eq(undo.n, (unsigned)__builtin_popcount(bits));
        for (unsigned i = undo.n; i-- > 0;) {
            cr_assert_arr_eq(undo.ext[i].sealed, file + undo.ext[i].off, undo.ext[i].len);
            memcpy(file + undo.ext[i].off, undo.ext[i].truth, undo.ext[i].len);
        }
        for (unsigned i = 0; i < plan.n; i++)
            cr_assert_arr_eq(plan.ext[i].truth, file + plan.ext[i].off, plan.ext[i].len,
                             "subset %u", bits);
    }
}

#endif
