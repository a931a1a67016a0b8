/* format_kit.h: runs the functions of one format on a file in memory. Each window that the format
 * wants is given to it as a heap copy of exactly that length, so that AddressSanitizer and valgrind
 * see every read beyond it. */
#ifndef FORMAT_KIT_H
#define FORMAT_KIT_H

#include "unit.h"

#include "format/bytes.h"
#include "format/format.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KIT_SEALED 0x5345414c45440000ull

struct kit {
    const struct format *format;
    uint8_t *file;
    uint64_t size; /* of the file, bytes */
    struct excerpt v;
};

static inline void kit_start(struct kit *k)
{
    memset(&k->v, 0, sizeof(k->v));
    k->v.file_size = k->size;
}

static inline void kit_end(struct kit *k)
{
    for (unsigned i = 0; i < k->v.n; i++)
        free((void *)(uintptr_t)k->v.win[i].data);
    k->v.n = 0;
}

/* Loads what is wanted. */
static inline void kit_load(struct kit *k)
{
    uint8_t *copy = malloc(k->v.want_len);

    cr_assert_not_null(copy);
    cr_assert(k->v.want_len > 0 && k->v.want_len <= FORMAT_WINDOW_MAX);
    cr_assert(k->v.want_off <= k->size && k->v.want_len <= k->size - k->v.want_off);
    cr_assert_lt(k->v.n, VIEW_WINDOWS - 2);
    memcpy(copy, k->file + k->v.want_off, k->v.want_len);
    k->v.win[k->v.n].off = k->v.want_off;
    k->v.win[k->v.n].len = k->v.want_len;
    k->v.win[k->v.n++].data = copy;
    k->v.want_len = 0;
}

static inline enum probe kit_probe(struct kit *k, struct format_info *info)
{
    enum probe answer;

    kit_start(k);
    do {
        memset(info, 0, sizeof(*info));
        info->zone.head = FORMAT_REACH;
        info->zone.tail = UINT64_MAX;
        answer = k->format->probe(&k->v, info);
        if (answer == PROBE_MORE)
            kit_load(k);
    } while (answer == PROBE_MORE);
    kit_end(k);
    cr_assert_eq(info->zone.head, FORMAT_REACH); /* all extents are there */
    cr_assert_eq(info->zone.tail, UINT64_MAX);
    cr_assert_eq(answer == PROBE_LIES || answer == PROBE_SEALED, info->why[0] != '\0');
    return answer;
}

static inline int kit_plan(struct kit *k, enum seal_mode mode, struct plan *plan)
{
    struct seal_policy policy = {mode, "node"};
    int r;

    kit_start(k);
    do {
        r = k->format->plan(&k->v, &policy, plan);
        if (r == -EAGAIN)
            kit_load(k);
    } while (r == -EAGAIN);
    kit_end(k);
    return r;
}

static inline int kit_rescue(struct kit *k, const uint64_t *size, struct rescue *rescue,
                             struct plan *plan)
{
    int r;

    kit_start(k);
    do {
        memset(rescue, 0xee, sizeof(*rescue));
        r = k->format->rescue(&k->v, size, rescue, plan);
        if (r == -EAGAIN)
            kit_load(k);
    } while (r == -EAGAIN);
    kit_end(k);
    cr_assert_leq(rescue->n, RESCUE_MAX);
    return r;
}

static inline int kit_note_link(void *arg, const struct format_link *link)
{
    struct format_link *to = arg;

    cr_assert_eq(link->role, LINK_BACKING);
    *to = *link;
    return 7;
}

/* 7 when there is a link, which is then in *link. */
static inline int kit_links(struct kit *k, struct format_link *link)
{
    int r;

    kit_start(k);
    do {
        memset(link, 0, sizeof(*link));
        r = k->format->links(&k->v, kit_note_link, link);
        if (r == -EAGAIN)
            kit_load(k);
    } while (r == -EAGAIN);
    kit_end(k);
    return r;
}

/* One field, and what a probe says: NULL: it passes. */
struct kit_field {
    size_t off;
    unsigned width;
    uint64_t value;
    const char *why;
};

/* build fills a good file; each row is one lie. put: put_le or put_be. */
static inline void kit_fields(struct kit *k, void (*build)(struct kit *),
                              void (*put)(uint8_t *, uint64_t, unsigned),
                              const struct kit_field *rows, size_t n)
{
    struct format_info info;
    enum probe answer;

    for (size_t i = 0; i < n; i++) {
        build(k);
        put(k->file + rows[i].off, rows[i].value, rows[i].width);
        answer = kit_probe(k, &info);
        cr_assert_eq(answer, rows[i].why ? PROBE_LIES : PROBE_YES, "@%zu = 0x%" PRIx64 ": %s",
                     rows[i].off, rows[i].value, info.why);
        cr_assert(!rows[i].why || strstr(info.why, rows[i].why) != NULL,
                  "@%zu: \"%s\" lacks \"%s\"", rows[i].off, info.why, rows[i].why);
        cr_assert(answer == PROBE_YES || info.virtual_size == 0);
    }
}

/* Seals extent by extent, and restores in reverse: each state is SEALED (mode REFUSE), and the end
 * is the start. */
static inline void kit_round_trip(struct kit *k, enum seal_mode mode)
{
    static struct plan plan;
    struct format_info info;
    uint8_t *before = malloc(k->size);

    cr_assert_not_null(before);
    memcpy(before, k->file, k->size);
    cr_assert_eq(kit_plan(k, mode, &plan), 0);
    cr_assert(plan.n >= 1 && plan.n <= PLAN_MAX);
    for (unsigned i = 0; i < plan.n; i++) {
        const struct extent *e = &plan.ext[i];

        cr_assert(e->len >= 1 && e->len <= EXTENT_MAX && e->off + e->len <= k->size);
        cr_assert_leq(e->off + e->len, FORMAT_REACH);
        cr_assert_arr_eq(e->truth, before + e->off, e->len);
        for (unsigned j = 0; j < i; j++)
            cr_assert(e->off >= plan.ext[j].off + plan.ext[j].len ||
                      plan.ext[j].off >= e->off + e->len);
        memcpy(k->file + e->off, e->sealed, e->len);
        if (mode == SEAL_REFUSE)
            cr_assert_eq(kit_probe(k, &info), PROBE_SEALED, "after extent %u", i);
    }
    for (unsigned i = plan.n; i-- > 0;) {
        if (mode == SEAL_REFUSE)
            cr_assert_eq(kit_probe(k, &info), PROBE_SEALED, "before extent %u is restored", i);
        memcpy(k->file + plan.ext[i].off, plan.ext[i].truth, plan.ext[i].len);
    }
    cr_assert_arr_eq(k->file, before, k->size);
    free(before);
}

static inline void kit_apply(struct kit *k, const struct plan *plan)
{
    for (unsigned i = 0; i < plan->n; i++)
        memcpy(k->file + plan->ext[i].off, plan->ext[i].sealed, plan->ext[i].len);
}

/* Applies the plan that undoes a seal; its sealed bytes must be those that stand there. */
static inline void kit_undo(struct kit *k, const struct plan *plan)
{
    for (unsigned i = plan->n; i-- > 0;) {
        cr_assert_arr_eq(k->file + plan->ext[i].off, plan->ext[i].sealed, plan->ext[i].len);
        memcpy(k->file + plan->ext[i].off, plan->ext[i].truth, plan->ext[i].len);
    }
}

/* A file that was cut at n is what it would be with zeros behind it, or broken; from `whole` bytes
 * on it is good. */
static inline void kit_cut(struct kit *k, void (*build)(struct kit *), uint64_t max,
                           uint64_t magic_end, uint64_t whole)
{
    for (uint64_t n = 0; n <= max; n++) {
        struct format_info info;
        enum probe answer;
        uint64_t size;

        build(k);
        size = k->size;
        k->size = n;
        answer = kit_probe(k, &info);
        cr_assert_eq(answer,
                     n < magic_end ? PROBE_NO
                     : n < whole   ? PROBE_LIES
                                   : PROBE_YES,
                     "%" PRIu64 " bytes: %d, %s", n, (int)answer, info.why);
        if (answer == PROBE_YES)
            kit_round_trip(k, SEAL_REFUSE);
        k->size = size;
    }
}

/* Rounds of random damage in the first `head` bytes, on files of every length below `head`, too.
 * Nothing may be read outside, whatever YES says must have a plan with the properties above, and
 * rescue and links end. seen: counts of each answer. */
static inline void kit_mutate(struct kit *k, void (*build)(struct kit *), unsigned rounds,
                              size_t head, unsigned seen[PROBE_MORE + 1])
{
    static const uint64_t values[] = {0,          1,          7,         48,         512,
                                      4096,       65536,      1u << 20,  0x7fffffff, 0xffffffff,
                                      1ull << 63, UINT64_MAX, KIT_SEALED};
    static struct plan plan;
    uint64_t x = 0x5eed5eed5eed5eed;
    const uint64_t guess = 1u << 20;

#define KIT_RANDOM() (x ^= x << 13, x ^= x >> 7, x ^= x << 17)
    for (unsigned i = 0; i < rounds; i++) {
        struct format_info info;
        struct format_link link;
        struct rescue rescue;
        enum probe answer;
        uint64_t size;

        build(k);
        size = k->size;
        if (i % 4 == 0 && kit_plan(k, SEAL_REFUSE, &plan) == 0)
            kit_apply(k, &plan);
        for (unsigned n = 1 + (unsigned)(KIT_RANDOM() % 3); n > 0; n--) {
            size_t off = KIT_RANDOM() % (head - 8);
            unsigned kind = KIT_RANDOM() % 4;
            uint64_t value = values[KIT_RANDOM() % (sizeof(values) / sizeof(values[0]))];

            if (kind == 0)
                k->file[off] = (uint8_t)KIT_RANDOM();
            else if (kind == 1)
                k->file[off] ^= (uint8_t)(1u << KIT_RANDOM() % 8);
            else if (kind == 2)
                put_le(k->file + off / 4 * 4, value, KIT_RANDOM() % 2 ? 4 : 8);
            else
                put_be(k->file + off / 4 * 4, value, KIT_RANDOM() % 2 ? 4 : 8);
        }
        if (i % 3 == 0)
            k->size = KIT_RANDOM() % head;
        answer = kit_probe(k, &info);
        seen[answer]++;
        if (answer == PROBE_YES)
            kit_round_trip(k, i % 5 ? SEAL_REFUSE : SEAL_SIZE);
        if (answer == PROBE_SEALED) {
            kit_rescue(k, NULL, &rescue, &plan);
            kit_rescue(k, &guess, &rescue, &plan);
        }
        if (k->format->links && (answer == PROBE_YES || answer == PROBE_SEALED))
            kit_links(k, &link);
        k->size = size;
    }
#undef KIT_RANDOM
}

#endif
