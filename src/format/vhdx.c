/* vhdx.c: Hyper-V's VHDX: fixed, dynamic and differencing ([MS-VHDX] v20180912; "spec" below).
 *
 * What differs from a naive reading of the spec:
 *   - The log is not replayed, and one that has entries is fine: nothing that is read here is ever
 *     changed by the entries that QEMU writes, and the seal lies outside of what a log may change
 *     (spec, 2.3: the header section is never logged).
 *   - Region table and metadata items are found by their tables: QEMU and Hyper-V put them at
 *     different places.
 *   - Only the region table at 0x30000 counts, as QEMU reads no other; the headers are compared as
 *     QEMU does it.
 *   - qemu-img create writes headers, region tables, the metadata table and its items, in this
 *     order. A table or items that are all zero, or that the file ends in or before, are not there
 *     yet: an image whose size is not known. A write there must not change what the file is,
 *     because the log and the BAT lie before it and zone.head must not reach them.
 *
 * The seal. QEMU replays the log, and writes both headers, before it looks at region table and
 * size; so both headers lose their signature, and every opener refuses the file before it writes.
 * Either header alone is enough to open the image, so the signatures of the region tables go first
 * and come back last: with them gone the image is refused when one header still stands, too. The
 * headers follow in the order of their sequence numbers, the current one last, which is what a torn
 * update of a header looks like. Nothing but constants is overwritten, so the seal is undone
 * without a record, and the size is where it was. SEAL_SIZE is the same: a size of 0 would be found
 * too late, after the log. */
#include "format/bytes.h"
#include "format/crc32c.h"
#include "format/format.h"
#include "format/winpath.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define MIB (1u << 20)

/* spec, 2.2 */
#define FILE_SIGNATURE "vhdxfile"
#define FILE_SIGNATURE_LEN 8u
#define HEADER_1 0x10000u
#define HEADER_2 0x20000u
#define REGIONS_1 0x30000u
#define REGIONS_2 0x40000u
#define HEADER_SECTION_END 0x50000u
#define SIGNATURE_LEN 4u
#define OFF_CHECKSUM 4u

/* spec, 2.2.2: header */
#define HEADER_LEN 4096u
#define HEADER_USED 80u
#define HEADER_SIGNATURE "head"
#define OFF_SEQUENCE 8u
#define OFF_LOG_VERSION 64u
#define OFF_VERSION 66u
#define OFF_LOG_LENGTH 68u
#define OFF_LOG_OFFSET 72u

/* spec, 2.2.3: region table */
#define REGIONS_LEN 65536u
#define REGIONS_SIGNATURE "regi"
#define REGIONS_COUNT 8u
#define REGIONS_FIRST 16u
#define REGIONS_MAX 2047u
#define REGION 32u
#define REGION_OFFSET 16u
#define REGION_LENGTH 24u
#define REGION_FLAGS 28u
#define REGION_REQUIRED 1u

/* spec, 2.6: metadata region */
#define METADATA_TABLE 65536u
/* ours: all tools put the items right behind the table */
#define METADATA_WINDOW (METADATA_TABLE + 4096u)
#define METADATA_SIGNATURE "metadata"
#define METADATA_SIGNATURE_LEN 8u
#define METADATA_COUNT 10u
#define METADATA_FIRST 32u
#define METADATA_MAX 2047u
#define ITEM 32u
#define ITEM_OFFSET 16u
#define ITEM_LENGTH 20u
#define ITEM_FLAGS 24u
#define ITEM_REQUIRED 4u
#define BLOCK_SIZE_MAX (256u * MIB)
#define HAS_PARENT 2u
#define DISK_SIZE_MAX (64ull << 40)
#define BAT_ENTRY 8u
#define BLOCK_SECTORS_MAX (1ull << 23) /* sectors that one sector bitmap block describes: 2^23 */

/* spec, 2.6.2.6: parent locator */
#define LOCATOR_COUNT 18u
#define LOCATOR_FIRST 20u
#define LOCATOR_ENTRY 12u
#define LOCATOR_ITEM_MAX MIB

#define GUID 16u
static const uint8_t guid_bat[] =
    "\x66\x77\xc2\x2d\x23\xf6\x00\x42\x9d\x64\x11\x5e\x9b\xfd\x4a\x08";
static const uint8_t guid_metadata[] =
    "\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e";
static const uint8_t guid_locator_vhdx[] =
    "\xb7\xef\x4a\xb0\x9e\xd1\x81\x4a\xb7\x89\x25\xb8\xe9\x44\x59\x13";

enum item {
    ITEM_PARAMETERS,
    ITEM_SIZE,
    ITEM_PAGE83,
    ITEM_LOGICAL,
    ITEM_PHYSICAL,
    ITEM_LOCATOR,
    ITEMS
};
static const struct {
    uint8_t guid[GUID + 1];
    uint32_t length; /* 0: any */
    const char *name;
} items[ITEMS] = {
    [ITEM_PARAMETERS] = {"\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b", 8,
                         "file parameters"},
    [ITEM_SIZE] = {"\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8", 8,
                   "virtual disk size"},
    [ITEM_PAGE83] = {"\xab\x12\xca\xbe\xe6\xb2\x23\x45\x93\xef\xc3\x09\xe0\x00\xc7\x46", 16,
                     "page 83 data"},
    [ITEM_LOGICAL] = {"\x1d\xbf\x41\x81\x6f\xa9\x09\x47\xba\x47\xf2\x33\xa8\xfa\xab\x5f", 4,
                      "logical sector size"},
    [ITEM_PHYSICAL] = {"\xc7\x48\xa3\xcd\x5d\x44\x71\x44\x9c\xc9\xe9\x88\x52\x51\xc5\x56", 4,
                       "physical sector size"},
    [ITEM_LOCATOR] = {"\x2d\x5f\xd3\xa8\x0b\xb3\x4d\x45\xab\xf7\xd3\xd8\x48\x34\xab\x0c", 0,
                      "parent locator"},
};

/* Ours: no signature of the spec begins like this. */
#define SEALED_SIGNATURE "SEAL"
static const struct {
    uint32_t off;
    const char *truth, *name;
} signatures[] = {
    {REGIONS_1, REGIONS_SIGNATURE, "region table 1"},
    {REGIONS_2, REGIONS_SIGNATURE, "region table 2"},
    {HEADER_1, HEADER_SIGNATURE, "header 1"},
    {HEADER_2, HEADER_SIGNATURE, "header 2"},
};
#define SIGNATURES (sizeof(signatures) / sizeof(signatures[0]))

struct region {
    uint64_t off;
    uint32_t len; /* 0: not found */
};

struct vhdx_image {
    const uint8_t *header[2]; /* NULL: beyond the end of the file */
    const uint8_t *regions;
    struct region log, bat, metadata;
    const uint8_t *table;       /* the metadata table; NULL: not there yet */
    const uint8_t *item[ITEMS]; /* what its entry says; NULL: none */
};

/* ---- reading ---- */

/* False: not loaded, want_* says what. NULL: it is not wholly in the file. */
static bool get(struct excerpt *v, uint64_t off, size_t len, const uint8_t **ret)
{
    *ret = view_get(v, off, len);
    return *ret || off > v->file_size || len > v->file_size - off;
}

static enum probe vhdx_load(struct excerpt *v, struct vhdx_image *im)
{
    /* with the signature that follows, so that it needs no window of its own */
    size_t regions_len =
        REGIONS_LEN + (v->file_size >= REGIONS_2 + SIGNATURE_LEN ? SIGNATURE_LEN : 0);
    const uint8_t *p;

    memset(im, 0, sizeof(*im));
    if (!get(v, 0, FILE_SIGNATURE_LEN, &p))
        return PROBE_MORE;
    if (!p || memcmp(p, FILE_SIGNATURE, FILE_SIGNATURE_LEN) != 0)
        return PROBE_NO;
    if (!get(v, HEADER_1, HEADER_LEN, &im->header[0]) ||
        !get(v, HEADER_2, HEADER_LEN, &im->header[1]) ||
        !get(v, REGIONS_1, regions_len, &im->regions))
        return PROBE_MORE;
    return PROBE_YES;
}

/* A checksum over n bytes, with the signature that belongs there and zero for its own field. */
static bool sum_is_right(const uint8_t *p, size_t n, const char *signature)
{
    static const uint8_t zero[4];
    uint32_t crc = crc32c(0, signature, SIGNATURE_LEN);

    crc = crc32c(crc, zero, sizeof(zero));
    crc = crc32c(crc, p + OFF_CHECKSUM + 4, n - OFF_CHECKSUM - 4);
    return crc == le32(p + OFF_CHECKSUM);
}

static bool has_signature(const uint8_t *p, const char *signature)
{
    return p && memcmp(p, signature, SIGNATURE_LEN) == 0;
}

/* Is it a header that QEMU takes, or one that it takes when its seal is undone? */
static bool header_is_valid(const uint8_t *h)
{
    return (has_signature(h, HEADER_SIGNATURE) || has_signature(h, SEALED_SIGNATURE)) &&
           sum_is_right(h, HEADER_LEN, HEADER_SIGNATURE) && le16(h + OFF_VERSION) == 1;
}

/* Index of the current header (spec, 2.2.2; QEMU vhdx_parse_header()), or -1. */
static int current_header(const struct vhdx_image *im)
{
    bool one = header_is_valid(im->header[0]), two = header_is_valid(im->header[1]);
    uint64_t a, b;

    if (!one || !two)
        return one ? 0 : two ? 1 : -1;
    a = le64(im->header[0] + OFF_SEQUENCE);
    b = le64(im->header[1] + OFF_SEQUENCE);
    if (a != b)
        return a > b ? 0 : 1;
    /* disk2vhd writes two identical ones (QEMU); either may be sealed here */
    return memcmp(im->header[0] + OFF_SEQUENCE, im->header[1] + OFF_SEQUENCE,
                  HEADER_USED - OFF_SEQUENCE) == 0
               ? 0
               : -1;
}

/* ---- headers and regions, with a seal or without ---- */

static bool check_headers(struct vhdx_image *im, struct format_info *info)
{
    int current = current_header(im);
    const uint8_t *h;

    if (current < 0)
        return format_lies(
            info,
            "no header with signature, checksum and version 1, or two with one sequence number");
    h = im->header[current];
    im->log = (struct region){le64(h + OFF_LOG_OFFSET), le32(h + OFF_LOG_LENGTH)};
    if (le16(h + OFF_LOG_VERSION) != 0)
        return format_lies(info, "log version %u is unknown", le16(h + OFF_LOG_VERSION));
    if (im->log.off < MIB || im->log.off % MIB != 0 || im->log.len % MIB != 0 ||
        im->log.off > (uint64_t)INT64_MAX - im->log.len)
        return format_lies(
            info, "the log at 0x%" PRIx64 ", 0x%" PRIx32 " bytes, is not at and of whole MiB",
            im->log.off, im->log.len);
    return true;
}

static bool overlap(struct region a, struct region b)
{
    return a.off < b.off + b.len && b.off < a.off + a.len;
}

static struct region region_at(const uint8_t *table, unsigned i)
{
    const uint8_t *e = table + REGIONS_FIRST + (size_t)i * REGION;

    return (struct region){le64(e + REGION_OFFSET), le32(e + REGION_LENGTH)};
}

static bool check_region(struct vhdx_image *im, struct format_info *info, unsigned i)
{
    const uint8_t *guid = im->regions + REGIONS_FIRST + (size_t)i * REGION;
    struct region r = region_at(im->regions, i);
    struct region *known = memcmp(guid, guid_bat, GUID) == 0        ? &im->bat
                           : memcmp(guid, guid_metadata, GUID) == 0 ? &im->metadata
                                                                    : NULL;

    if (r.off < MIB || r.off % MIB != 0 || r.len == 0 || r.len % MIB != 0 ||
        r.off > (uint64_t)INT64_MAX - r.len)
        return format_lies(
            info, "region %u at 0x%" PRIx64 ", 0x%" PRIx32 " bytes, is not at and of whole MiB", i,
            r.off, r.len);
    if (overlap(r, im->log))
        return format_lies(info, "region %u at 0x%" PRIx64 " lies over the log", i, r.off);
    for (unsigned k = 0; k < i; k++)
        if (overlap(r, region_at(im->regions, k)))
            return format_lies(info, "region %u at 0x%" PRIx64 " lies over region %u", i, r.off, k);
    if (!known && le32(guid + REGION_FLAGS) & REGION_REQUIRED)
        return format_lies(info, "region %u is unknown and required: a feature of a newer version",
                           i);
    if (known && known->len)
        return format_lies(info, "region %u is there twice", i);
    if (known)
        *known = r;
    return true;
}

static bool check_regions(struct vhdx_image *im, struct format_info *info)
{
    uint32_t n;

    if (!has_signature(im->regions, REGIONS_SIGNATURE) &&
        !has_signature(im->regions, SEALED_SIGNATURE))
        return format_lies(info, "no region table at 0x%x", REGIONS_1);
    if (!sum_is_right(im->regions, REGIONS_LEN, REGIONS_SIGNATURE))
        return format_lies(info, "the region table's checksum is wrong");
    n = le32(im->regions + REGIONS_COUNT);
    if (n > REGIONS_MAX)
        return format_lies(info, "%" PRIu32 " regions are more than %u", n, REGIONS_MAX);
    for (unsigned i = 0; i < n; i++)
        if (!check_region(im, info, i))
            return false;
    if (!im->bat.len || !im->metadata.len)
        return format_lies(info, "no region for the %s", im->bat.len ? "metadata" : "BAT");
    return true;
}

/* ---- metadata ---- */

static bool is_zero(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != 0)
            return false;
    return true;
}

/* False: not loaded. */
static bool load_table(struct excerpt *v, struct vhdx_image *im)
{
    uint64_t left = v->file_size > im->metadata.off ? v->file_size - im->metadata.off : 0;
    size_t window = left < METADATA_WINDOW ? (size_t)left : METADATA_WINDOW;

    if (window < METADATA_TABLE)
        return true;
    if (!get(v, im->metadata.off, window, &im->table))
        return false;
    if (is_zero(im->table, METADATA_FIRST))
        im->table = NULL;
    return true;
}

static bool check_entry(struct vhdx_image *im, struct format_info *info, unsigned i)
{
    const uint8_t *e = im->table + METADATA_FIRST + (size_t)i * ITEM;
    uint32_t off = le32(e + ITEM_OFFSET), len = le32(e + ITEM_LENGTH);

    for (unsigned k = 0; k < ITEMS; k++) {
        if (memcmp(e, items[k].guid, GUID) != 0)
            continue;
        if (im->item[k])
            return format_lies(info, "the metadata item %s is there twice", items[k].name);
        if (off < METADATA_TABLE || off > im->metadata.len || len > im->metadata.len - off)
            return format_lies(info, "the metadata item %s at 0x%" PRIx32 " is outside its region",
                               items[k].name, off);
        if (items[k].length && len != items[k].length)
            return format_lies(info, "the metadata item %s has %" PRIu32 " bytes, not %" PRIu32,
                               items[k].name, len, items[k].length);
        im->item[k] = e;
        return true;
    }
    if (le32(e + ITEM_FLAGS) & ITEM_REQUIRED)
        return format_lies(
            info, "metadata item %u is unknown and required: a feature of a newer version", i);
    return true;
}

static bool check_metadata(struct vhdx_image *im, struct format_info *info)
{
    unsigned n = le16(im->table + METADATA_COUNT);

    if (memcmp(im->table, METADATA_SIGNATURE, METADATA_SIGNATURE_LEN) != 0)
        return format_lies(info, "no metadata table at 0x%" PRIx64, im->metadata.off);
    if (n > METADATA_MAX)
        return format_lies(info, "%u metadata items are more than %u", n, METADATA_MAX);
    for (unsigned i = 0; i < n; i++)
        if (!check_entry(im, info, i))
            return false;
    for (unsigned k = 0; k < ITEMS; k++)
        if (k != ITEM_LOCATOR && !im->item[k])
            return format_lies(info, "the metadata item %s is missing", items[k].name);
    return true;
}

/* The bytes of an item, NULL: not in the file. False: not loaded. */
static bool get_item(struct excerpt *v, const struct vhdx_image *im, enum item which,
                     const uint8_t **ret)
{
    const uint8_t *e = im->item[which];

    return get(v, im->metadata.off + le32(e + ITEM_OFFSET), le32(e + ITEM_LENGTH), ret);
}

/* spec, 2.5: the BAT has an entry for each payload block, and one for a sector bitmap behind each
 * `ratio` of them. */
static uint64_t bat_entries(uint64_t size, uint32_t block, uint32_t sector, bool parent)
{
    uint64_t ratio = BLOCK_SECTORS_MAX * sector / block, blocks = (size + block - 1) / block;

    return parent ? (blocks + ratio - 1) / ratio * (ratio + 1) : blocks + (blocks - 1) / ratio;
}

static enum probe check_items(struct excerpt *v, const struct vhdx_image *im,
                              struct format_info *info)
{
    const uint8_t *parameters, *size, *logical;
    uint32_t block, sector;
    uint64_t bytes;
    bool parent;

    if (!get_item(v, im, ITEM_PARAMETERS, &parameters) || !get_item(v, im, ITEM_SIZE, &size) ||
        !get_item(v, im, ITEM_LOGICAL, &logical))
        return PROBE_MORE;
    if (!parameters || !size || !logical)
        return PROBE_YES; /* beyond the end of the file: not there yet */
    block = le32(parameters);
    parent = (le32(parameters + 4) & HAS_PARENT) != 0;
    sector = le32(logical);
    bytes = le64(size);
    if (block == 0 && bytes == 0 && sector == 0)
        return PROBE_YES; /* not there yet */
    if (block < MIB || block > BLOCK_SIZE_MAX || (block & (block - 1)) != 0)
        format_lies(info, "the block size %" PRIu32 " is no power of two in 1..256 MiB", block);
    else if (sector != 512 && sector != 4096)
        format_lies(info, "the logical sector size %" PRIu32 " is neither 512 nor 4096", sector);
    else if (bytes > DISK_SIZE_MAX || bytes % sector != 0)
        format_lies(info, "the size %" PRIu64 " is beyond 64 TiB, or not of whole sectors", bytes);
    else if (bytes > 0 && bat_entries(bytes, block, sector, parent) > im->bat.len / BAT_ENTRY)
        format_lies(info, "the BAT of %" PRIu32 " bytes is too small for the size %" PRIu64,
                    im->bat.len, bytes);
    else if (parent && !im->item[ITEM_LOCATOR])
        format_lies(info, "it has a parent, but no parent locator");
    else {
        info->virtual_size = bytes;
        return PROBE_YES;
    }
    return PROBE_LIES;
}

/* The metadata, where there is some. */
static enum probe check_metadata_region(struct excerpt *v, struct vhdx_image *im,
                                        struct format_info *info)
{
    if (!load_table(v, im))
        return PROBE_MORE;
    if (!im->table)
        return PROBE_YES; /* not there yet */
    return check_metadata(im, info) ? check_items(v, im, info) : PROBE_LIES;
}

/* ---- the seal ---- */

/* Tells which of signatures[] are sealed and which are whole, one bit each. false: not loaded. */
static bool find_marks(struct excerpt *v, unsigned *ret_sealed, unsigned *ret_whole)
{
    *ret_sealed = *ret_whole = 0;
    for (unsigned i = 0; i < SIGNATURES; i++) {
        const uint8_t *p;

        if (!get(v, signatures[i].off, SIGNATURE_LEN, &p))
            return false;
        *ret_sealed |= has_signature(p, SEALED_SIGNATURE) ? 1u << i : 0;
        *ret_whole |= has_signature(p, signatures[i].truth) ? 1u << i : 0;
    }
    return true;
}

/* In the order of a seal: region tables, the header that is not the current one, the current one.
 */
static unsigned in_order(unsigned step, int current)
{
    return step < 2 ? step : (step == 2) == (current == 1) ? 2 : 3;
}

static int plan_marks(unsigned marks, int current, struct plan *ret_plan)
{
    int r = 0;

    memset(ret_plan, 0, sizeof(*ret_plan));
    for (unsigned step = 0; r == 0 && step < SIGNATURES; step++) {
        unsigned i = in_order(step, current);

        if (marks & 1u << i)
            r = plan_add(ret_plan, signatures[i].off, signatures[i].truth, SEALED_SIGNATURE,
                         SIGNATURE_LEN);
    }
    return r;
}

static enum probe vhdx_probe(struct excerpt *v, struct format_info *ret_info)
{
    struct vhdx_image im;
    unsigned sealed, whole;
    enum probe answer = vhdx_load(v, &im);

    if (answer != PROBE_YES)
        return answer;
    if (!find_marks(v, &sealed, &whole))
        return PROBE_MORE;
    ret_info->zone.head = HEADER_SECTION_END;
    if (sealed) {
        snprintf(ret_info->why, sizeof(ret_info->why), "sealed by the signatures of");
        for (unsigned i = 0; i < SIGNATURES; i++)
            if (sealed & 1u << i) {
                strncat(ret_info->why, sealed & ((1u << i) - 1) ? ", " : " ", 3);
                strncat(ret_info->why, signatures[i].name, 16);
            }
        return PROBE_SEALED;
    }
    if (!check_headers(&im, ret_info) || !check_regions(&im, ret_info))
        return PROBE_LIES;
    return check_metadata_region(v, &im, ret_info);
}

static int vhdx_plan(struct excerpt *v, const struct seal_policy *policy, struct plan *ret_plan)
{
    struct vhdx_image im;
    unsigned sealed, whole;
    enum probe answer = vhdx_load(v, &im);
    int current;

    (void)policy;
    if (answer == PROBE_MORE || (answer == PROBE_YES && !find_marks(v, &sealed, &whole)))
        return -EAGAIN;
    current = answer == PROBE_YES ? current_header(&im) : -1;
    if (current < 0)
        return -EUCLEAN;
    return plan_marks(whole, current, ret_plan);
}

static int vhdx_rescue(struct excerpt *v, const uint64_t *size, struct rescue *ret_rescue,
                       struct plan *ret_plan)
{
    struct format_info info = {0};
    struct vhdx_image im;
    unsigned sealed = 0, whole;
    enum probe answer = vhdx_load(v, &im);
    int current;

    if (answer == PROBE_MORE || (answer == PROBE_YES && !find_marks(v, &sealed, &whole)))
        return -EAGAIN;
    current = answer == PROBE_YES ? current_header(&im) : -1;
    if (current >= 0 && check_headers(&im, &info) && check_regions(&im, &info) &&
        check_metadata_region(v, &im, &info) == PROBE_MORE)
        return -EAGAIN;
    memset(ret_rescue, 0, sizeof(*ret_rescue));
    if (current < 0 || !im.metadata.len || info.why[0])
        return -EUCLEAN;
    if (info.virtual_size)
        rescue_add(ret_rescue, RESCUE_EXACT, info.virtual_size,
                   "the metadata item virtual disk size");
    if (size && *size != info.virtual_size)
        return -ERANGE;
    return plan_marks(sealed, current, ret_plan);
}

/* ---- links ---- */

/* The value of `key` in a parent locator item of n bytes. 0: found; -ENOENT: no such key; -EUCLEAN:
 * it does not hold together. */
static int locator_value(const uint8_t *p, size_t n, const char *key, char *ret, size_t size)
{
    unsigned count = le16(p + LOCATOR_COUNT);

    if (LOCATOR_FIRST + (size_t)count * LOCATOR_ENTRY > n)
        return -EUCLEAN;
    for (unsigned i = 0; i < count; i++) {
        const uint8_t *e = p + LOCATOR_FIRST + (size_t)i * LOCATOR_ENTRY;
        uint32_t key_off = le32(e), value_off = le32(e + 4);
        uint16_t key_len = le16(e + 8), value_len = le16(e + 10);
        char name[64];

        if (key_off > n || key_len > n - key_off || value_off > n || value_len > n - value_off)
            return -EUCLEAN;
        if (winpath_utf8(p + key_off, key_len, false, name, sizeof(name)) < 0 ||
            strcmp(name, key) != 0)
            continue;
        return winpath_utf8(p + value_off, value_len, false, ret, size);
    }
    return -ENOENT;
}

/* All up to the parent locator. 0 and *ret NULL: no parent, or not known yet. */
static int load_locator(struct excerpt *v, struct vhdx_image *im, const uint8_t **ret)
{
    struct format_info info = {0};
    const uint8_t *parameters;
    enum probe answer = vhdx_load(v, im);

    *ret = NULL;
    if (answer == PROBE_MORE)
        return -EAGAIN;
    if (answer != PROBE_YES || !check_headers(im, &info) || !check_regions(im, &info))
        return -EUCLEAN;
    answer = check_metadata_region(v, im, &info);
    if (answer != PROBE_YES)
        return answer == PROBE_MORE ? -EAGAIN : -EUCLEAN;
    if (!im->table)
        return 0;
    if (!get_item(v, im, ITEM_PARAMETERS, &parameters))
        return -EAGAIN;
    if (!parameters || !(le32(parameters + 4) & HAS_PARENT))
        return parameters ? 0 : -EUCLEAN;
    if (le32(im->item[ITEM_LOCATOR] + ITEM_LENGTH) > LOCATOR_ITEM_MAX ||
        le32(im->item[ITEM_LOCATOR] + ITEM_LENGTH) < LOCATOR_FIRST)
        return -EUCLEAN;
    if (!get_item(v, im, ITEM_LOCATOR, ret))
        return -EAGAIN;
    return *ret && memcmp(*ret, guid_locator_vhdx, GUID) == 0 ? 0 : -EUCLEAN;
}

static int vhdx_links(struct excerpt *v, int (*fn)(void *arg, const struct format_link *link),
                      void *arg)
{
    struct format_link link = {.role = LINK_BACKING, .format = "vhdx"};
    struct vhdx_image im;
    const uint8_t *p;
    size_t n;
    int r = load_locator(v, &im, &p);

    if (r < 0 || !p)
        return r;
    n = le32(im.item[ITEM_LOCATOR] + ITEM_LENGTH);
    r = locator_value(p, n, "relative_path", link.path, sizeof(link.path));
    if (r == -ENOENT)
        r = locator_value(p, n, "absolute_win32_path", link.path, sizeof(link.path));
    if (r == 0)
        r = winpath_follow(link.path);
    return r == 0 ? fn(arg, &link) : r == -ENOENT ? -EUCLEAN : r;
}

const struct format format_vhdx = {
    .name = "vhdx",
    .probe = vhdx_probe,
    .plan = vhdx_plan,
    .rescue = vhdx_rescue,
    .links = vhdx_links,
};
