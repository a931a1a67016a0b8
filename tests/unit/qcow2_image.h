/* qcow2_image.h: the headers that the tests of src/format/qcow2.c work on, built byte by byte. */
#ifndef QCOW2_IMAGE_H
#define QCOW2_IMAGE_H

#include "unit.h"

#include "format/format.h"
#include "qcow2_header.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IMAGE_SIZE (1u << 20) /* of the file; the header is a small part of it */
#define VIRTUAL_SIZE (10ull << 30)
#define TABLE 120u /* first row of the feature name table that build() makes */
#define ROWS 8u
#define ROW 48u
#define AFTER (TABLE + ROWS * ROW)
#define SEALED 0x5345414c45440000ull

static inline uint64_t get(const uint8_t *b, size_t off)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < 8; i++)
        value = value << 8 | b[off + i];
    return value;
}

/* header_build() with QEMU's own feature names: five incompatible ones, one compatible, two
 * autoclear. */
static inline void build(uint8_t b[FORMAT_REACH], uint32_t version)
{
    memset(b, 0, FORMAT_REACH);
    header_build(b, version, VIRTUAL_SIZE, ROWS, 0);
    header_put(b, 36, 4, VIRTUAL_SIZE >> 29);
    for (unsigned i = 0; version >= 3 && i < ROWS; i++) {
        uint8_t *row = b + TABLE + i * ROW;

        row[0] = i < 5 ? 0 : i < 6 ? 1 : 2;
        row[1] = (uint8_t)(i < 5 ? i : i < 6 ? 0 : i - 6);
        snprintf((char *)row + 2, ROW - 2, "feature %u", i);
    }
}

/* A view whose one window is a heap copy of exactly what is visible of the file, so that
 * AddressSanitizer sees a read beyond it. */
static inline struct excerpt view_of(const uint8_t *b, uint64_t file_size)
{
    size_t n = file_size < FORMAT_REACH ? (size_t)file_size : FORMAT_REACH;
    uint8_t *copy = malloc(n ? n : 1);

    cr_assert_not_null(copy);
    memcpy(copy, b, n);
    return (struct excerpt){.file_size = file_size, .n = 1, .win = {{0, n, copy}}};
}

static inline void view_free(struct excerpt *v)
{
    free((void *)(uintptr_t)v->win[0].data);
}

static inline enum probe probe(const uint8_t *b, uint64_t file_size, struct format_info *info)
{
    struct excerpt v = view_of(b, file_size);
    enum probe answer;

    memset(info, 0, sizeof(*info));
    answer = format_qcow2.probe(&v, info);
    view_free(&v);
    return answer;
}

static inline int make_plan(const uint8_t *b, uint64_t file_size, enum seal_mode mode,
                            const char *holder, struct plan *plan)
{
    struct seal_policy policy = {mode, holder};
    struct excerpt v = view_of(b, file_size);
    int r = format_qcow2.plan(&v, &policy, plan);

    view_free(&v);
    return r;
}

/* One field: width bytes at off, big-endian. */
struct change {
    size_t off;
    unsigned width;
    uint64_t value;
};

/* Puts changes until one of width 0, at most n. */
static inline void change(uint8_t *b, const struct change *c, unsigned n)
{
    for (; n > 0 && c->width; n--, c++)
        header_put(b, c->off, c->width, c->value);
}

#endif
