/* qcow.c: QEMU's first copy-on-write format, version 1 of the "QFI\xfb" magic. There is no
 * specification: the reader of QEMU 7.2, block/qcow.c ("QEMU" below), is the only definition.
 *
 * What QEMU opens passes, but for a table or a name that lies over the header. In two points that
 * differs from a naive reading:
 *   - The length of the L1 table stands nowhere: it follows from the size. So a size is too large
 *     when its L1 table is.
 *   - Bytes beyond the end of the file count as zero, as QEMU reads them, and the L1 table need not
 *     lie inside the file.
 *
 * The seal. Size := "SEALED\0\0", 5.2 EiB: with every permitted cluster_bits and l2_bits its L1
 * table is larger than QEMU takes (L1_ENTRIES_MAX), so that QEMU refuses it as "Image too large"
 * before it looks at anything else. There are no feature bits. Size 0 (SEAL_SIZE) is refused, too.
 *
 * Without a record the size is lost: QEMU allocates the first L2 table right behind the L1 table,
 * which bounds it from above, and the last used cluster bounds it from below. */
#include "format/backing.h"
#include "format/bytes.h"
#include "format/format.h"

#include <inttypes.h>
#include <stdio.h>

/* QEMU, struct QCowHeader: offsets, big-endian */
#define QCOW_MAGIC 0x514649fbu /* @0 */
#define QCOW_VERSION 1u        /* @4 */
#define OFF_VERSION 4u
#define OFF_BACKING_OFFSET 8u
#define OFF_BACKING_SIZE 16u
#define OFF_SIZE 24u
#define OFF_CLUSTER_BITS 32u /* one byte */
#define OFF_L2_BITS 33u      /* one byte */
#define OFF_CRYPT_METHOD 36u
#define OFF_L1_OFFSET 40u
#define HEADER_LENGTH 48u

/* QEMU, qcow_open() */
#define SIZE_MIN 2u
#define CLUSTER_BITS_MIN 9u
#define CLUSTER_BITS_MAX 16u
#define L2_BITS_MIN 6u
#define L2_BITS_MAX 13u
#define CRYPT_MAX 1u /* AES */
#define BACKING_SIZE_MAX 1023u
#define L1_ENTRIES_MAX (INT32_MAX / 8u)

#define SEALED_SIZE 0x5345414c45440000ull /* "SEALED\0\0" */
#define LOAD 512u

struct qcow {
    uint8_t b[HEADER_LENGTH]; /* zeros beyond the end of the file */
    uint64_t backing_offset, size, l1_offset;
    uint32_t backing_size, crypt_method;
    unsigned cluster_bits, l2_bits, shift; /* shift: log2 of the bytes that one L1 entry maps */
};

/* Loads the header and decodes it; values are not checked yet. */
static enum probe qcow_load(struct excerpt *v, struct qcow *h)
{
    size_t n = v->file_size < LOAD ? (size_t)v->file_size : LOAD;
    const uint8_t *p;

    memset(h, 0, sizeof(*h));
    if (n < OFF_VERSION + 4)
        return PROBE_NO;
    p = view_get(v, 0, n);
    if (!p)
        return PROBE_MORE;
    if (be32(p) != QCOW_MAGIC || be32(p + OFF_VERSION) != QCOW_VERSION)
        return PROBE_NO;
    memcpy(h->b, p, n < sizeof(h->b) ? n : sizeof(h->b));
    h->backing_offset = be64(h->b + OFF_BACKING_OFFSET);
    h->backing_size = be32(h->b + OFF_BACKING_SIZE);
    h->size = be64(h->b + OFF_SIZE);
    h->cluster_bits = h->b[OFF_CLUSTER_BITS];
    h->l2_bits = h->b[OFF_L2_BITS];
    h->crypt_method = be32(h->b + OFF_CRYPT_METHOD);
    h->l1_offset = be64(h->b + OFF_L1_OFFSET);
    h->shift = h->cluster_bits + h->l2_bits;
    return PROBE_YES;
}

/* ---- probe ---- */

static bool check_bits(const struct qcow *h, struct format_info *info)
{
    if (h->cluster_bits < CLUSTER_BITS_MIN || h->cluster_bits > CLUSTER_BITS_MAX)
        return format_lies(info, "cluster_bits %u is outside %u..%u", h->cluster_bits,
                           CLUSTER_BITS_MIN, CLUSTER_BITS_MAX);
    if (h->l2_bits < L2_BITS_MIN || h->l2_bits > L2_BITS_MAX)
        return format_lies(info, "l2_bits %u is outside %u..%u", h->l2_bits, L2_BITS_MIN,
                           L2_BITS_MAX);
    return true;
}

/* Entries of the L1 table of that size; shift is below 30. */
static uint64_t l1_entries(uint64_t size, unsigned shift)
{
    return (size >> shift) + ((size & ((1ull << shift) - 1)) != 0);
}

static bool check_size(const struct qcow *h, uint64_t size, struct format_info *info)
{
    uint64_t entries = l1_entries(size, h->shift);

    if (size < SIZE_MIN)
        return format_lies(info, "size %" PRIu64 " is below %u", size, SIZE_MIN);
    if (entries > L1_ENTRIES_MAX)
        return format_lies(
            info, "size %" PRIu64 " needs an L1 table of %" PRIu64 " entries, more than %u", size,
            entries, L1_ENTRIES_MAX);
    if (h->l1_offset < HEADER_LENGTH)
        return format_lies(info, "l1_table_offset %" PRIu64 ": the L1 table lies over the header",
                           h->l1_offset);
    if (h->l1_offset > INT64_MAX - entries * 8)
        return format_lies(info, "l1_table_offset 0x%" PRIx64 " is beyond every file",
                           h->l1_offset);
    return true;
}

static bool check_others(const struct qcow *h, struct format_info *info)
{
    if (h->crypt_method > CRYPT_MAX)
        return format_lies(info, "crypt_method %" PRIu32 " is unknown", h->crypt_method);
    if (h->backing_offset == 0)
        return true;
    if (h->backing_size > BACKING_SIZE_MAX)
        return format_lies(info, "backing_file_size %" PRIu32 " exceeds %u", h->backing_size,
                           BACKING_SIZE_MAX);
    if (h->backing_offset < HEADER_LENGTH || h->backing_offset > INT64_MAX - BACKING_SIZE_MAX)
        return format_lies(
            info, "backing_file_offset 0x%" PRIx64 " is in the header or beyond every file",
            h->backing_offset);
    return true;
}

static enum probe qcow_probe(struct excerpt *v, struct format_info *ret_info)
{
    struct qcow h;
    enum probe answer = qcow_load(v, &h);

    if (answer != PROBE_YES)
        return answer;
    if (h.size == SEALED_SIZE) {
        snprintf(ret_info->why, sizeof(ret_info->why), "sealed by its size");
        return PROBE_SEALED;
    }
    if (!check_bits(&h, ret_info) || !check_size(&h, h.size, ret_info) ||
        !check_others(&h, ret_info)) {
        ret_info->maybe_sealed = h.size == 0;
        return PROBE_LIES;
    }
    ret_info->virtual_size = h.size;
    return PROBE_YES;
}

/* ---- plan ---- */

static int qcow_plan(struct excerpt *v, const struct seal_policy *policy, struct plan *ret_plan)
{
    uint8_t word[8];
    struct qcow h;
    enum probe answer = qcow_load(v, &h);

    if (answer == PROBE_MORE)
        return -EAGAIN;
    if (answer != PROBE_YES || v->file_size < OFF_SIZE + sizeof(word))
        return -EUCLEAN;
    memset(ret_plan, 0, sizeof(*ret_plan));
    put_be(word, policy->mode == SEAL_SIZE ? 0 : SEALED_SIZE, sizeof(word));
    return plan_add(ret_plan, OFF_SIZE, h.b + OFF_SIZE, word, sizeof(word));
}

/* ---- rescue ---- */

struct bounds {
    uint64_t lower, upper; /* bytes; 0: not known */
};

/* The last entry that is not 0 among n, or -1. */
static int64_t last_used(const uint8_t *table, uint64_t n)
{
    while (n > 0 && be64(table + (n - 1) * 8) == 0)
        n--;
    return (int64_t)n - 1;
}

/* The part of the table at off that lies in the file: whole entries, at most max bytes. */
static uint64_t in_file(const struct excerpt *v, uint64_t off, uint64_t max)
{
    uint64_t left = off < v->file_size ? v->file_size - off : 0;

    return (left < max ? left : max) / 8 * 8;
}

/* One of the L1 table's entries names the first L2 table, and the L1 table ends before that; all
 * bytes between the two are zero. So a byte that is not zero before the lowest L2 table found
 * belongs to an entry. An L1 table longer than a window gives a weaker bound, not a wrong one. */
static int find_bounds(struct excerpt *v, const struct qcow *h, struct bounds *ret)
{
    uint64_t n = in_file(v, h->l1_offset, FORMAT_WINDOW_MAX) / 8, first = UINT64_MAX, used = 0,
             l2 = 0, l2_n;
    const uint8_t *p = n ? view_get(v, h->l1_offset, n * 8) : NULL;

    memset(ret, 0, sizeof(*ret));
    if (n && !p)
        return -EAGAIN;
    for (uint64_t i = 0; i < n && h->l1_offset + i * 8 < first; i++) {
        uint64_t entry = be64(p + i * 8);
        if (entry == 0)
            continue;
        if (entry > h->l1_offset && entry < first)
            first = entry;
        used = i;
        l2 = entry;
    }
    if (l2 == 0)
        return 0;
    if (first != UINT64_MAX && (first - h->l1_offset) / 8 <= L1_ENTRIES_MAX)
        ret->upper = (first - h->l1_offset) / 8 << h->shift;
    l2_n = in_file(v, l2, 8ull << h->l2_bits) / 8;
    p = l2_n ? view_get(v, l2, l2_n * 8) : NULL;
    if (l2_n && !p)
        return -EAGAIN;
    if (used <= L1_ENTRIES_MAX) {
        int64_t last = p ? last_used(p, l2_n) : -1;
        ret->lower = (used << h->shift) + (last > 0 ? (uint64_t)last << h->cluster_bits : 0) + 1;
    }
    return 0;
}

static int qcow_rescue(struct excerpt *v, const uint64_t *size, struct rescue *ret_rescue,
                       struct plan *ret_plan)
{
    struct format_info info;
    struct bounds b;
    uint8_t word[8];
    struct qcow h;

    if (qcow_load(v, &h) == PROBE_MORE)
        return -EAGAIN;
    memset(ret_rescue, 0, sizeof(*ret_rescue));
    memset(ret_plan, 0, sizeof(*ret_plan));
    if (h.size != SEALED_SIZE || !check_bits(&h, &info) || !check_size(&h, SIZE_MIN, &info) ||
        !check_others(&h, &info))
        return -EUCLEAN; /* something else than the seal is wrong with it */
    if (find_bounds(v, &h, &b) < 0)
        return -EAGAIN;
    rescue_add(ret_rescue, RESCUE_UPPER, b.upper, "L1 entries before the first L2 table");
    rescue_add(ret_rescue, RESCUE_LOWER, b.lower, "last used cluster");
    if (!size)
        return -ENODATA;
    if (!check_size(&h, *size, &info) || *size < b.lower || (b.upper && *size > b.upper))
        return -ERANGE;
    put_be(word, *size, sizeof(word));
    return plan_add(ret_plan, OFF_SIZE, word, h.b + OFF_SIZE, sizeof(word));
}

/* ---- links ---- */

static int qcow_links(struct excerpt *v, int (*fn)(void *arg, const struct format_link *link),
                      void *arg)
{
    struct qcow h;
    enum probe answer = qcow_load(v, &h);

    if (answer != PROBE_YES)
        return answer == PROBE_MORE ? -EAGAIN : -EUCLEAN;
    return h.backing_offset ? backing_link(v, h.backing_offset, h.backing_size, "", fn, arg) : 0;
}

const struct format format_qcow = {
    .name = "qcow",
    .probe = qcow_probe,
    .plan = qcow_plan,
    .rescue = qcow_rescue,
    .links = qcow_links,
};
