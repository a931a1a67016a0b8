/* qed.c: QEMU Enhanced Disk (QEMU docs/interop/qed_spec.txt, "spec" below; "QEMU" is the reader of
 * 7.2, block/qed.c).
 *
 * What is refused here is what the spec forbids or what QEMU refuses to open. In three points that
 * differs from a naive reading of the two:
 *   - The L1 table need not lie inside the file, though QEMU asks for it: qemu-img create writes
 *     the header first, and a write beyond FORMAT_REACH must not change what the file is.
 *   - QEMU does not open an image of table_size 1, which the spec permits and qemu-img makes (its
 *     test for an overflow takes it for one): it passes.
 *   - The largest size, entries x entries x cluster_size, wraps around in QEMU where it is 2^64 or
 *     more, and only the size 0 is left.
 *
 * The seal. Feature bit 63 first: "an image with unknown features bits enabled must not be opened"
 * (spec), and QEMU looks at them before all else but the magic. Then size := "SEALED\0\0", 5.2 EiB,
 * beyond what the L1 table can map in nearly all geometries; where it is not (those of 2^63 bytes)
 * the bit alone refuses, and it stands in every state of a seal and a restore. Size 0 is no
 * refusal: QEMU opens it.
 *
 * Without a record the size is lost: the L1 table has a fixed length. The last used cluster bounds
 * it from below. */
#include "format/backing.h"
#include "format/bytes.h"
#include "format/format.h"

#include <inttypes.h>
#include <stdio.h>

/* spec, "Header": offsets, little-endian */
#define QED_MAGIC 0x00444551u /* "QED\0" @0 */
#define OFF_CLUSTER_SIZE 4u
#define OFF_TABLE_SIZE 8u
#define OFF_HEADER_SIZE 12u
#define OFF_FEATURES 16u
#define OFF_L1_OFFSET 40u
#define OFF_SIZE 48u
#define OFF_BACKING_OFFSET 56u
#define OFF_BACKING_SIZE 60u
#define HEADER_LENGTH 64u

/* spec, "Field descriptions" and "Feature bits" */
#define CLUSTER_SIZE_MIN (1u << 12)
#define CLUSTER_SIZE_MAX (1u << 26)
#define TABLE_SIZE_MAX 16u
#define SECTOR 512u
#define FEATURE_BACKING (1ull << 0)
#define FEATURE_RAW_BACKING (1ull << 2) /* QED_F_BACKING_FORMAT_NO_PROBE */
#define FEATURES_KNOWN 7ull
#define BACKING_SIZE_MAX 1023u /* QEMU, qed_read_string() into backing_file[1024] */

/* Ours. The spec has three feature bits; bit 63 is the one that it will reach last. */
#define SEALED_SIZE 0x5345414c45440000ull /* "SEALED\0\0" */
#define SEALED_BIT (1ull << 63)
#define LOAD 512u

struct qed {
    uint8_t b[HEADER_LENGTH]; /* zeros beyond the end of the file */
    uint32_t cluster_size, table_size, header_size, backing_offset, backing_size;
    uint64_t features, l1_offset, size;
};

/* Loads the header and decodes it; values are not checked yet. */
static enum probe qed_load(struct excerpt *v, struct qed *h)
{
    size_t n = v->file_size < LOAD ? (size_t)v->file_size : LOAD;
    const uint8_t *p;

    memset(h, 0, sizeof(*h));
    if (n < 4)
        return PROBE_NO;
    p = view_get(v, 0, n);
    if (!p)
        return PROBE_MORE;
    if (le32(p) != QED_MAGIC)
        return PROBE_NO;
    memcpy(h->b, p, n < sizeof(h->b) ? n : sizeof(h->b));
    h->cluster_size = le32(h->b + OFF_CLUSTER_SIZE);
    h->table_size = le32(h->b + OFF_TABLE_SIZE);
    h->header_size = le32(h->b + OFF_HEADER_SIZE);
    h->features = le64(h->b + OFF_FEATURES);
    h->l1_offset = le64(h->b + OFF_L1_OFFSET);
    h->size = le64(h->b + OFF_SIZE);
    h->backing_offset = le32(h->b + OFF_BACKING_OFFSET);
    h->backing_size = le32(h->b + OFF_BACKING_SIZE);
    return PROBE_YES;
}

/* ---- probe ---- */

static bool is_power_of_two(uint32_t n)
{
    return n != 0 && (n & (n - 1)) == 0;
}

static bool check_geometry(const struct qed *h, struct format_info *info)
{
    if (!is_power_of_two(h->cluster_size) || h->cluster_size < CLUSTER_SIZE_MIN ||
        h->cluster_size > CLUSTER_SIZE_MAX)
        return format_lies(info, "cluster_size %" PRIu32 " is no power of 2 in %u..%u",
                           h->cluster_size, CLUSTER_SIZE_MIN, CLUSTER_SIZE_MAX);
    if (!is_power_of_two(h->table_size) || h->table_size > TABLE_SIZE_MAX)
        return format_lies(info, "table_size %" PRIu32 " is no power of 2 in 1..%u", h->table_size,
                           TABLE_SIZE_MAX);
    if (h->header_size > UINT32_MAX / h->cluster_size)
        return format_lies(info, "header_size %" PRIu32 " is 4 GiB or more", h->header_size);
    return true;
}

static uint64_t table_entries(const struct qed *h)
{
    return (uint64_t)h->table_size * h->cluster_size / 8;
}

/* QEMU, qed_max_image_size(): modulo 2^64. */
static uint64_t size_max(const struct qed *h)
{
    return table_entries(h) * h->cluster_size * table_entries(h);
}

static bool check_size(const struct qed *h, uint64_t size, struct format_info *info)
{
    if (size % SECTOR != 0)
        return format_lies(info, "image_size %" PRIu64 " is no multiple of %u", size, SECTOR);
    if (size > size_max(h) || size > INT64_MAX)
        return format_lies(info,
                           "image_size %" PRIu64 " exceeds %" PRIu64 ", what the L1 table can map",
                           size, size_max(h));
    return true;
}

static bool check_l1(const struct qed *h, struct format_info *info)
{
    uint64_t head = (uint64_t)(h->header_size ? h->header_size : 1) * h->cluster_size;

    if (h->l1_offset % h->cluster_size != 0)
        return format_lies(info, "l1_table_offset 0x%" PRIx64 " is not aligned to clusters",
                           h->l1_offset);
    if (h->l1_offset < head)
        return format_lies(info, "l1_table_offset 0x%" PRIx64 ": the L1 table lies over the header",
                           h->l1_offset);
    if (h->l1_offset > INT64_MAX - table_entries(h) * 8)
        return format_lies(info, "l1_table_offset 0x%" PRIx64 " is beyond every file",
                           h->l1_offset);
    return true;
}

static bool check_backing(const struct qed *h, struct format_info *info)
{
    uint64_t end = (uint64_t)h->backing_offset + h->backing_size;

    if (!(h->features & FEATURE_BACKING) || h->backing_size == 0)
        return true;
    if (h->backing_size > BACKING_SIZE_MAX)
        return format_lies(info, "backing_filename_size %" PRIu32 " exceeds %u", h->backing_size,
                           BACKING_SIZE_MAX);
    if (h->backing_offset < HEADER_LENGTH || end > (uint64_t)h->header_size * h->cluster_size)
        return format_lies(
            info, "backing_filename_offset %" PRIu32 " is outside the %" PRIu32 " header clusters",
            h->backing_offset, h->header_size);
    return true;
}

static bool check(const struct qed *h, struct format_info *info)
{
    uint64_t unknown = h->features & ~FEATURES_KNOWN & ~SEALED_BIT;

    if (unknown)
        return format_lies(
            info, "features has the unknown bits 0x%" PRIx64 ": a feature of a newer version",
            unknown);
    return check_geometry(h, info) && check_l1(h, info) && check_backing(h, info);
}

/* For size 0: does the file show that the size was greater? QED cannot be shrunk, so an image that
 * was made with size 0 has no cluster behind its L1 table. */
static bool has_more(const struct excerpt *v, const struct qed *h)
{
    return h->features & FEATURE_BACKING || v->file_size > h->l1_offset + table_entries(h) * 8;
}

static enum probe qed_probe(struct excerpt *v, struct format_info *ret_info)
{
    struct qed h;
    enum probe answer = qed_load(v, &h);
    bool size, bit;

    if (answer != PROBE_YES)
        return answer;
    size = h.size == SEALED_SIZE;
    bit = (h.features & SEALED_BIT) != 0;
    if (size || bit) {
        snprintf(ret_info->why, sizeof(ret_info->why), "sealed by %s",
                 size && bit ? "feature bit 63 and its size"
                 : bit       ? "feature bit 63"
                             : "its size");
        return PROBE_SEALED;
    }
    if (!check(&h, ret_info) || !check_size(&h, h.size, ret_info))
        return PROBE_LIES;
    if (v->file_size < OFF_SIZE + 8) { /* a size of 0 that is not there */
        format_lies(ret_info, "the file ends at byte %" PRIu64 ", in its header", v->file_size);
        return PROBE_LIES;
    }
    ret_info->maybe_sealed = h.size == 0 && has_more(v, &h);
    ret_info->virtual_size = h.size;
    return PROBE_YES;
}

/* ---- plan ---- */

static int qed_plan(struct excerpt *v, const struct seal_policy *policy, struct plan *ret_plan)
{
    uint8_t word[8];
    struct qed h;
    enum probe answer = qed_load(v, &h);
    int r;

    if (answer == PROBE_MORE)
        return -EAGAIN;
    if (answer != PROBE_YES || v->file_size < OFF_SIZE + sizeof(word))
        return -EUCLEAN;
    memset(ret_plan, 0, sizeof(*ret_plan));
    if (policy->mode != SEAL_SIZE) {
        put_le(word, h.features | SEALED_BIT, sizeof(word));
        r = plan_add(ret_plan, OFF_FEATURES, h.b + OFF_FEATURES, word, sizeof(word));
        if (r < 0)
            return r;
    }
    put_le(word, policy->mode == SEAL_SIZE ? 0 : SEALED_SIZE, sizeof(word));
    return plan_add(ret_plan, OFF_SIZE, h.b + OFF_SIZE, word, sizeof(word));
}

/* ---- rescue ---- */

/* The table at off, where all of it lies in the file and in one window; *ret_table NULL: it does
 * not. 0 or -EAGAIN. */
static int get_table(struct excerpt *v, const struct qed *h, uint64_t off,
                     const uint8_t **ret_table)
{
    uint64_t len = table_entries(h) * 8;

    *ret_table = NULL;
    if (off == 0 || len > FORMAT_WINDOW_MAX || off > v->file_size || len > v->file_size - off)
        return 0;
    *ret_table = view_get(v, off, len);
    return *ret_table ? 0 : -EAGAIN;
}

/* The last entry that is not 0, or -1. */
static int64_t last_used(const uint8_t *table, uint64_t n)
{
    while (n > 0 && le64(table + (n - 1) * 8) == 0)
        n--;
    return (int64_t)n - 1;
}

/* The end of the first sector of the last used cluster, 0 if none is. */
static int find_lower(struct excerpt *v, const struct qed *h, uint64_t *ret_lower)
{
    uint64_t n = table_entries(h);
    const uint8_t *l1, *l2;
    int64_t i, j;

    *ret_lower = 0;
    if (get_table(v, h, h->l1_offset, &l1) < 0)
        return -EAGAIN;
    i = l1 ? last_used(l1, n) : -1;
    if (i < 0)
        return 0;
    if (get_table(v, h, le64(l1 + i * 8), &l2) < 0)
        return -EAGAIN;
    j = l2 ? last_used(l2, n) : -1;
    *ret_lower = ((uint64_t)i * n + (j > 0 ? (uint64_t)j : 0)) * h->cluster_size + SECTOR;
    return 0;
}

/* The bytes that stand there become the sealed ones, value the true ones. */
static int add_truth(struct plan *plan, const struct qed *h, unsigned off, uint64_t value)
{
    uint8_t word[8];

    put_le(word, value, sizeof(word));
    return plan_add(plan, off, word, h->b + off, sizeof(word));
}

static int qed_rescue(struct excerpt *v, const uint64_t *size, struct rescue *ret_rescue,
                      struct plan *ret_plan)
{
    struct format_info info;
    uint64_t lower = 0;
    bool lost;
    struct qed h;
    int r = 0;

    if (qed_load(v, &h) == PROBE_MORE)
        return -EAGAIN;
    memset(ret_rescue, 0, sizeof(*ret_rescue));
    memset(ret_plan, 0, sizeof(*ret_plan));
    lost = h.size == SEALED_SIZE;
    if (!check(&h, &info) || (!lost && !check_size(&h, h.size, &info)) ||
        v->file_size < OFF_SIZE + 8)
        return -EUCLEAN; /* something else than the seal is wrong with it */
    if (!lost) {
        rescue_add(ret_rescue, RESCUE_EXACT, h.size, "its own size field");
        if (size && *size != h.size)
            return -ERANGE;
        return add_truth(ret_plan, &h, OFF_FEATURES, h.features & ~SEALED_BIT);
    }
    if (find_lower(v, &h, &lower) < 0)
        return -EAGAIN;
    rescue_add(ret_rescue, RESCUE_UPPER, size_max(&h), "what the L1 table can map");
    if (lower)
        rescue_add(ret_rescue, RESCUE_LOWER, lower, "last used cluster");
    if (!size)
        return -ENODATA;
    if (*size == SEALED_SIZE || *size < lower || !check_size(&h, *size, &info))
        return -ERANGE;
    if (h.features & SEALED_BIT)
        r = add_truth(ret_plan, &h, OFF_FEATURES, h.features & ~SEALED_BIT);
    return r < 0 ? r : add_truth(ret_plan, &h, OFF_SIZE, *size);
}

/* ---- links ---- */

static int qed_links(struct excerpt *v, int (*fn)(void *arg, const struct format_link *link),
                     void *arg)
{
    struct qed h;
    enum probe answer = qed_load(v, &h);

    if (answer != PROBE_YES)
        return answer == PROBE_MORE ? -EAGAIN : -EUCLEAN;
    if (!(h.features & FEATURE_BACKING))
        return 0;
    return backing_link(v, h.backing_offset, h.backing_size,
                        h.features & FEATURE_RAW_BACKING ? "raw" : "", fn, arg);
}

const struct format format_qed = {
    .name = "qed",
    .probe = qed_probe,
    .plan = qed_plan,
    .rescue = qed_rescue,
    .links = qed_links,
};
