/* qcow2.c: QEMU's copy-on-write format, versions 2 and 3 (QEMU docs/interop/qcow2; "spec" below).
 *
 * What is refused here is what the spec forbids or what QEMU refuses to open, no more: an image
 * that QEMU opens must be guarded. In two points that differs from a naive reading of the spec:
 *   - Bytes beyond the end of the file count as zero, as QEMU reads them, and no table must lie
 *     inside the
 * file. While qemu-img create or a copy tool writes an image, its tables follow the header, and a
 * write beyond FORMAT_REACH must not change what the file is.
 *   - A header extension may go on beyond FORMAT_REACH; what is not visible is not judged.
 *
 * The seal. Size := "SEALED\0\0", 5.2 EiB, which no permitted L1 table can map (check_tables): QEMU
 * and libvirt refuse it in both versions. It is written first and undone last, so every prefix is
 * refused. Version 3 adds incompatible feature bit 63, which every reader must refuse, and puts its
 * name into the feature name table, so that the refusal names the holder. Size 0 is not a refusal:
 * QEMU starts a VM from it.
 *
 * Bit 63 may also be somebody else's feature, as every bit that the spec has not given away. It is
 * ours where the sealed size or our row says so: no state of a seal or a restore has the bit
 * without the size. Else it is a true byte, which the seal leaves where it is; the sealed size
 * tells then that it is one. */
#include "format/qcow2_priv.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* ---- reading ---- */

uint64_t qcow2_get64(const struct header_view *h, size_t off)
{
    uint8_t b[8] = {0};

    if (off < h->n)
        memcpy(b, h->p + off, h->n - off < sizeof(b) ? h->n - off : sizeof(b));
    return be64(b);
}

uint32_t qcow2_get32(const struct header_view *h, size_t off)
{
    return (uint32_t)(qcow2_get64(h, off) >> 32);
}

/* Loads the header and decodes what all checks need; values are not checked yet. */
enum probe qcow2_load(struct excerpt *v, struct header_view *h)
{
    memset(h, 0, sizeof(*h));
    h->n = v->file_size < FORMAT_REACH ? (size_t)v->file_size : FORMAT_REACH;
    if (h->n < 4)
        return PROBE_NO;
    h->p = view_get(v, 0, 4);
    if (!h->p)
        return PROBE_MORE;
    if (be32(h->p) != QCOW2_MAGIC)
        return PROBE_NO;
    h->p = view_get(v, 0, h->n);
    if (!h->p)
        return PROBE_MORE;
    h->version = qcow2_get32(h, OFF_VERSION);
    if (h->version == 1)
        return PROBE_NO; /* qcow, another format with the same magic */
    h->cluster_bits = qcow2_get32(h, OFF_CLUSTER_BITS);
    h->cluster_size = h->cluster_bits <= CLUSTER_BITS_MAX ? 1ull << h->cluster_bits : 0;
    h->size = qcow2_get64(h, OFF_SIZE);
    h->backing_offset = qcow2_get64(h, OFF_BACKING_OFFSET);
    h->ext_end = h->backing_offset ? h->backing_offset : h->cluster_size;
    h->header_length = V2_HEADER_LENGTH;
    if (h->version >= 3) {
        h->header_length = qcow2_get32(h, OFF_HEADER_LENGTH);
        h->incompatible = qcow2_get64(h, OFF_INCOMPATIBLE);
        h->autoclear = qcow2_get64(h, OFF_AUTOCLEAR);
    }
    return PROBE_YES;
}

/* The extension at *pos (start with header_length). DONE: END, the end of the area, or of what is
 * visible. */
enum step qcow2_next_extension(const struct header_view *h, uint64_t *pos, struct extension *ret)
{
    if (*pos >= h->ext_end || *pos + EXT_HEAD > FORMAT_REACH)
        return STEP_DONE;
    ret->type = qcow2_get32(h, *pos);
    ret->len = qcow2_get32(h, *pos + 4);
    ret->off = *pos + EXT_HEAD;
    if (ret->off > h->ext_end || ret->len > h->ext_end - ret->off)
        return STEP_BROKEN;
    if (ret->type == EXT_END)
        return STEP_DONE;
    *pos = ret->off + (ret->len + 7ull) / 8 * 8;
    return STEP_EXT;
}

/* Finds the feature name table where it is wholly visible; of several the last one, as QEMU does.
 * Returns the number of rows; 0: none. */
unsigned qcow2_feature_names(const struct header_view *h, const uint8_t **ret_rows)
{
    struct extension ext;
    unsigned rows = 0;
    uint64_t pos = h->header_length;

    while (qcow2_next_extension(h, &pos, &ext) == STEP_EXT) {
        if (ext.type != EXT_FEATURE_NAMES)
            continue;
        rows = ext.off + ext.len <= h->n ? ext.len / ROW_LEN : 0;
        *ret_rows = h->p + (rows ? ext.off : 0);
    }
    return rows;
}

/* ---- probe ---- */

static bool check_fields(const struct header_view *h, struct format_info *info)
{
    uint32_t crypt = qcow2_get32(h, OFF_CRYPT_METHOD), order = qcow2_get32(h, OFF_REFCOUNT_ORDER);

    if (h->cluster_bits < CLUSTER_BITS_MIN || h->cluster_bits > CLUSTER_BITS_MAX)
        return format_lies(info, "cluster_bits %" PRIu32 " is outside %u..%u", h->cluster_bits,
                           CLUSTER_BITS_MIN, CLUSTER_BITS_MAX);
    if (h->version == 3 && (h->header_length < V3_HEADER_LENGTH_MIN || h->header_length % 8 != 0))
        return format_lies(info, "header_length %" PRIu32 " is below %u or no multiple of 8",
                           h->header_length, V3_HEADER_LENGTH_MIN);
    if (h->header_length > h->cluster_size)
        return format_lies(info, "header_length %" PRIu32 " exceeds the cluster size %" PRIu64,
                           h->header_length, h->cluster_size);
    if (h->version == 3 && order > REFCOUNT_ORDER_MAX)
        return format_lies(info, "refcount_order %" PRIu32 " exceeds %u", order,
                           REFCOUNT_ORDER_MAX);
    if (crypt > CRYPT_MAX)
        return format_lies(info, "crypt_method %" PRIu32 " is unknown", crypt);
    return true;
}

static bool check_features(const struct header_view *h, struct format_info *info)
{
    uint64_t unknown = h->incompatible & ~INCOMPAT_KNOWN & ~SEALED_INCOMPAT;
    uint32_t compression =
        h->header_length > OFF_COMPRESSION_TYPE ? qcow2_get32(h, OFF_COMPRESSION_TYPE) >> 24 : 0;

    if (unknown)
        return format_lies(info,
                           "incompatible_features has the unknown bits 0x%" PRIx64
                           ": a feature of a newer version",
                           unknown);
    if (compression > COMPRESSION_MAX)
        return format_lies(info,
                           "compression_type %" PRIu32 " is unknown: a feature of a newer version",
                           compression);
    if ((compression != 0) != ((h->incompatible & INCOMPAT_COMPRESSION) != 0))
        return format_lies(
            info, "compression_type %" PRIu32 " and incompatible bit 3 contradict each other",
            compression);
    if (h->incompatible & INCOMPAT_EXTENDED_L2 && h->cluster_bits < EXTENDED_L2_CLUSTER_BITS_MIN)
        return format_lies(info, "cluster_bits %" PRIu32 " is too small for extended L2 entries",
                           h->cluster_bits);
    if (h->autoclear & AUTOCLEAR_RAW_DATA && !(h->incompatible & INCOMPAT_DATA_FILE))
        return format_lies(
            info, "autoclear bit 1 (raw external data) is set without an external data file");
    return true;
}

/* A table of `entries` times `entry` bytes at `off`; the rules of QEMU's qcow2_validate_table(). In
 * cluster 0 there is room for the header alone (spec: "The first cluster of a qcow2 image contains
 * the file header").
 */
static bool check_table(const struct header_view *h, struct format_info *info, const char *name,
                        uint64_t off, uint32_t entries, uint64_t entry, uint64_t max)
{
    if (entries > max / entry)
        return format_lies(info, "%s: %" PRIu32 " entries are more than %" PRIu64, name, entries,
                           max / entry);
    if (off % h->cluster_size != 0)
        return format_lies(info, "%s: offset 0x%" PRIx64 " is not aligned to clusters", name, off);
    if (off > INT64_MAX - entries * entry)
        return format_lies(info, "%s: offset 0x%" PRIx64 " is beyond every file", name, off);
    if (entries > 0 && off == 0)
        return format_lies(info, "%s: lies over the header", name);
    return true;
}

unsigned qcow2_l1_shift(const struct header_view *h)
{
    return 2 * h->cluster_bits - (h->incompatible & INCOMPAT_EXTENDED_L2 ? 4 : 3);
}

static bool check_tables(const struct header_view *h, struct format_info *info)
{
    uint32_t l1_size = qcow2_get32(h, OFF_L1_SIZE);
    uint32_t reftable_clusters = qcow2_get32(h, OFF_REFTABLE_CLUSTERS);
    unsigned shift = qcow2_l1_shift(h);
    uint64_t need = (h->size >> shift) + ((h->size & ((1ull << shift) - 1)) != 0);

    if (!check_table(h, info, "refcount table", qcow2_get64(h, OFF_REFTABLE_OFFSET),
                     reftable_clusters, h->cluster_size, REFTABLE_BYTES_MAX))
        return false;
    if (reftable_clusters == 0)
        return format_lies(info, "refcount_table_clusters is 0");
    if (!check_table(h, info, "snapshot table", qcow2_get64(h, OFF_SNAPSHOTS_OFFSET),
                     qcow2_get32(h, OFF_SNAPSHOTS), SNAPSHOT_HEADER,
                     (uint64_t)SNAPSHOT_HEADER * SNAPSHOTS_MAX))
        return false;
    if (!check_table(h, info, "L1 table", qcow2_get64(h, OFF_L1_OFFSET), l1_size, 8, L1_BYTES_MAX))
        return false;
    if (need > l1_size)
        return format_lies(info, "l1_size %" PRIu32 " is too small for the size %" PRIu64, l1_size,
                           h->size);
    return true;
}

static bool check_backing(const struct header_view *h, struct format_info *info)
{
    uint32_t len = qcow2_get32(h, OFF_BACKING_SIZE);

    if (h->backing_offset == 0)
        return true; /* the length is undefined then (spec) */
    if (h->backing_offset < h->header_length || h->backing_offset > h->cluster_size)
        return format_lies(info, "backing_file_offset 0x%" PRIx64 " is outside the first cluster",
                           h->backing_offset);
    if (len > BACKING_SIZE_MAX || len > h->cluster_size - h->backing_offset)
        return format_lies(info, "backing_file_size %" PRIu32 " exceeds %u or the first cluster",
                           len, BACKING_SIZE_MAX);
    return true;
}

static bool check_bitmaps(const struct header_view *h, struct format_info *info,
                          const struct extension *ext)
{
    uint32_t count;
    uint64_t size, off;

    if (ext->len != BITMAPS_LEN)
        return format_lies(info, "the bitmaps extension has %" PRIu32 " bytes, not %u", ext->len,
                           BITMAPS_LEN);
    if (!(h->autoclear & AUTOCLEAR_BITMAPS) || ext->off + ext->len > FORMAT_REACH)
        return true; /* its data is inconsistent and ignored (spec), or not visible */
    count = qcow2_get32(h, ext->off);
    size = qcow2_get64(h, ext->off + 8);
    off = qcow2_get64(h, ext->off + 16);
    if (count < 1 || count > BITMAPS_MAX || qcow2_get32(h, ext->off + 4) != 0)
        return format_lies(
            info, "the bitmaps extension has %" PRIu32 " bitmaps or a reserved field in use",
            count);
    if (size > BITMAP_DIRECTORY_MAX || off % h->cluster_size != 0)
        return format_lies(
            info, "the bitmap directory at 0x%" PRIx64 " is not aligned or too large", off);
    return true;
}

static bool check_extension(const struct header_view *h, struct format_info *info,
                            const struct extension *ext)
{
    switch (ext->type) {
    case EXT_BACKING_FORMAT:
        if (ext->len >= BACKING_FORMAT_SIZE)
            return format_lies(info, "the backing format name has %" PRIu32 " bytes", ext->len);
        return true;
    case EXT_CRYPTO:
        if (qcow2_get32(h, OFF_CRYPT_METHOD) != CRYPT_LUKS || ext->len != CRYPTO_LEN)
            return format_lies(info,
                               "the encryption extension does not fit crypt_method or its length");
        if (ext->off + ext->len <= FORMAT_REACH && qcow2_get64(h, ext->off) % h->cluster_size != 0)
            return format_lies(info, "the encryption header is not aligned to clusters");
        return true;
    case EXT_BITMAPS:
        return check_bitmaps(h, info, ext);
    default:
        return true; /* feature names only serve messages; others "can be safely ignored" (spec) */
    }
}

static bool check_extensions(const struct header_view *h, struct format_info *info)
{
    uint64_t pos = h->header_length;
    struct extension ext;
    enum step step;

    while ((step = qcow2_next_extension(h, &pos, &ext)) == STEP_EXT)
        if (!check_extension(h, info, &ext))
            return false;
    if (step == STEP_BROKEN)
        return format_lies(
            info, "header extension 0x%08" PRIx32 " at %" PRIu64 " is longer than its area",
            ext.type, pos);
    return true;
}

bool qcow2_check(const struct header_view *h, struct format_info *info)
{
    return check_fields(h, info) && check_features(h, info) && check_tables(h, info) &&
           check_backing(h, info) && check_extensions(h, info);
}

bool qcow2_size_is_seal(uint64_t size)
{
    return size == SEALED_SIZE || size == SEALED_SIZE_BIT;
}

/* The text of our row, printable; "" when there is none. */
static void sealed_text(const struct header_view *h, char ret[ROW_NAME_LEN + 1])
{
    const uint8_t *row = NULL;
    unsigned rows = qcow2_feature_names(h, &row), len = 0;

    for (; rows > 0; rows--, row += ROW_LEN) {
        const uint8_t *name = row + ROW_NAME;

        if (row[0] != FEATURE_INCOMPATIBLE || row[1] != SEALED_BIT ||
            memcmp(name, SEALED_WORD, strlen(SEALED_WORD)) != 0)
            continue;
        for (; len < ROW_NAME_LEN && name[len]; len++)
            ret[len] = (char)(name[len] >= 0x20 && name[len] < 0x7f ? name[len] : '?');
        break;
    }
    ret[len] = '\0';
}

static bool qcow2_is_sealed(const struct header_view *h, struct format_info *info)
{
    bool size = qcow2_size_is_seal(h->size);
    bool bit = h->incompatible & SEALED_INCOMPAT && h->size != SEALED_SIZE_BIT;
    char text[ROW_NAME_LEN + 1];

    sealed_text(h, text);
    if (!size && !(bit && text[0]))
        return false;
    snprintf(info->why, sizeof(info->why), "sealed by %s%s",
             size && bit ? "its size and incompatible feature bit 63"
             : size      ? "its size"
                         : "incompatible feature bit 63",
             text[0] ? ": " : "");
    strncat(info->why, text, sizeof(info->why) - strlen(info->why) - 1);
    return true;
}

static enum probe qcow2_probe(struct excerpt *v, struct format_info *ret_info)
{
    struct header_view h;
    enum probe answer = qcow2_load(v, &h);

    if (answer != PROBE_YES)
        return answer;
    if (h.version != 2 && h.version != 3) {
        format_lies(ret_info, "version %" PRIu32 " is neither 2 nor 3", h.version);
        return PROBE_LIES;
    }
    /* Runs before all checks: a header with our marks must never count as one that is merely
     * broken. */
    if (qcow2_is_sealed(&h, ret_info))
        return PROBE_SEALED;
    if (!qcow2_check(&h, ret_info))
        return PROBE_LIES;
    ret_info->maybe_sealed = h.size == 0 && qcow2_get32(&h, OFF_L1_SIZE) > 0;
    ret_info->virtual_size = h.size;
    return PROBE_YES;
}

/* ---- plan ---- */

/* The row that can be replaced so that QEMU prints ours, or NULL. QEMU's
 * report_unsupported_feature() takes the first row that names a bit and stops at the first row
 * without a name. Otherwise the last one: in the tables that QEMU writes this is an autoclear
 * bit's, whose name it never prints. */
static const uint8_t *choose_row(const struct header_view *h)
{
    const uint8_t *row = NULL;
    unsigned rows = qcow2_feature_names(h, &row);

    for (; rows > 1; rows--, row += ROW_LEN)
        if (row[ROW_NAME] == '\0' || (row[0] == FEATURE_INCOMPATIBLE && row[1] == SEALED_BIT))
            return row;
    return rows ? row : NULL;
}

static void make_row(const char *holder, uint64_t size, uint8_t ret[ROW_LEN])
{
    char name[ROW_NAME_LEN + 1];
    char safe[SEALED_ROW_MAX_HOLDER + 1] = "";

    for (size_t i = 0; holder && holder[i] && i < SEALED_ROW_MAX_HOLDER; i++)
        safe[i] = holder[i] >= 0x20 && holder[i] < 0x7f ? holder[i] : '?';
    snprintf(name, sizeof(name), SEALED_WORD " %s size=%016" PRIx64, safe[0] ? safe : "?", size);
    memset(ret, 0, ROW_LEN);
    ret[0] = FEATURE_INCOMPATIBLE;
    ret[1] = SEALED_BIT;
    memcpy(ret + ROW_NAME, name, strlen(name));
}

static int qcow2_plan(struct excerpt *v, const struct seal_policy *policy, struct plan *ret_plan)
{
    uint8_t word[8], row[ROW_LEN];
    const uint8_t *old_row;
    struct header_view h;
    bool own_bit;
    int r;

    if (qcow2_load(v, &h) != PROBE_YES ||
        h.n < (h.version == 3 ? OFF_INCOMPATIBLE : OFF_SIZE) + sizeof(word))
        return -EUCLEAN;
    memset(ret_plan, 0, sizeof(*ret_plan));
    own_bit = (h.incompatible & SEALED_INCOMPAT) != 0;
    put_be(word,
           policy->mode == SEAL_SIZE ? 0
           : own_bit                 ? SEALED_SIZE_BIT
                                     : SEALED_SIZE,
           sizeof(word));
    r = plan_add(ret_plan, OFF_SIZE, h.p + OFF_SIZE, word, sizeof(word));
    if (r < 0 || policy->mode == SEAL_SIZE || h.version != 3)
        return r;
    old_row = choose_row(&h);
    if (old_row) {
        make_row(policy->holder, h.size, row);
        r = plan_add(ret_plan, (uint64_t)(old_row - h.p), old_row, row, sizeof(row));
    }
    put_be(word, h.incompatible | SEALED_INCOMPAT, sizeof(word));
    return r < 0 || own_bit
               ? r
               : plan_add(ret_plan, OFF_INCOMPATIBLE, h.p + OFF_INCOMPATIBLE, word, sizeof(word));
}

const struct format format_qcow2 = {
    .name = "qcow2",
    .probe = qcow2_probe,
    .plan = qcow2_plan,
    .rescue = qcow2_rescue,
    .links = qcow2_links,
};
