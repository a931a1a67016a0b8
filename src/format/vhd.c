/* vhd.c: Virtual PC's and Hyper-V's VHD, QEMU's "vpc": fixed, dynamic and differencing (Microsoft,
 * "Virtual Hard Disk Image Format Specification" 1.0 of 2006; "spec" below).
 *
 * What differs from a naive reading of the spec:
 *   - The footer stands at the file's current end, whatever the offset was a moment ago: a dynamic
 *     image that grows overwrites the old one with a block's bitmap before it writes the new one.
 *     In between the end is no footer, and it is an image still, by its copy at 0. QEMU reads that
 *     copy only.
 *   - A fixed image is known by its footer alone, and the footer of a file that a guest keeps may
 *     end any other image. So that is a fixed image only if it is as long as the footer says; QEMU,
 *     VirtualBox and Hyper-V make no other.
 *   - The table may lie beyond the end of the file: it does so while a copy tool writes the image.
 *     Byte 85 and up are zero by the spec, but Xen uses byte 85.
 *   - The size is the geometry's or CurrentSize, by the creator's name: as QEMU has it
 *     (vpc_open()).
 *   - The 511-byte footers of Virtual PC before 2004 are not known here, as QEMU does not know
 *     them.
 *
 * The seal. The checksum of each copy is inverted: QEMU and Hyper-V refuse that. VirtualBox and
 * libvhdi do not look at the checksum, so the type is one that no reader knows, and all three sizes
 * (OriginalSize, CurrentSize, geometry) are 0 for whoever looks at neither. What these 24 bytes
 * were stands in the reserved area behind a mark, so the seal is undone without a record, exactly.
 * The copy at 0 is first: QEMU reads no other, so each prefix is refused. Where a tool keeps
 * something in that part of the reserved area, the inverted checksum is the whole seal, and the
 * mark. SEAL_SIZE leaves type and checksum alone; the checksum is wrong then, because the mark adds
 * to the sum, and QEMU refuses that as well. Nothing here stops who opens a fixed image as raw. */
#include "format/bytes.h"
#include "format/format.h"
#include "format/winpath.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* spec, "Hard Disk Footer Format" */
#define FOOTER 512u
#define COOKIE "conectix"
#define COOKIE_LEN 8u
#define OFF_VERSION 12u
#define OFF_DATA 16u
#define OFF_CREATOR 28u
#define OFF_SIZES 40u /* OriginalSize 8, CurrentSize 8, geometry 4, type 4 */
#define SIZES_LEN 20u
#define SIZES_AND_TYPE_LEN 24u
#define OFF_CURRENT 48u
#define OFF_CYLINDERS 56u
#define OFF_HEADS 58u
#define OFF_SECTORS 59u
#define OFF_TYPE 60u
#define OFF_CHECKSUM 64u
#define VERSION_1_0 0x00010000u
#define TYPE_FIXED 2u
#define TYPE_DYNAMIC 3u
#define TYPE_DIFFERENCING 4u

/* spec, "Dynamic Disk Header Format" */
#define DYN_HEADER 1024u
#define DYN_COOKIE "cxsparse"
#define DYN_TABLE 16u
#define DYN_VERSION 24u
#define DYN_ENTRIES 28u
#define DYN_BLOCK_SIZE 32u
#define DYN_CHECKSUM 36u
#define DYN_PARENT_NAME 64u
#define DYN_PARENT_NAME_LEN 512u
#define DYN_LOCATORS 576u
#define LOCATORS 8u
#define LOCATOR_LEN 24u
#define LOCATOR_DATA_LEN 8u
#define LOCATOR_DATA_OFF 16u
#define LOCATOR_MAX 4096u /* ours: more than twice the longest path of a link in UTF-16 */

/* QEMU 7.2, block/vpc.c: VHD_MAX_SECTORS, VHD_MAX_GEOMETRY, and the limit of max_table_entries */
#define SECTOR 512u
#define SECTORS_MAX 0xff000000ull
#define GEOMETRY_MAX (65535u * 16u * 255u)
#define ENTRIES_MAX ((uint32_t)INT32_MAX / 4)

/* Ours. All tools put the dynamic header at 512; the bound keeps zone.head small. */
#define DYN_OFFSET_MAX (1u << 20)
#define TYPE_SEALED 0x5345414cu /* "SEAL" */
#define OFF_MARK 448u           /* in the reserved area: the mark, OFF_SIZES.., the holder */
#define MARK "SEALED\0"         /* with its NUL: 8 bytes */
#define MARK_LEN 8u
#define OFF_SAVED (OFF_MARK + MARK_LEN)
#define OFF_HOLDER (OFF_SAVED + SIZES_AND_TYPE_LEN)
#define HOLDER_MAX (FOOTER - OFF_HOLDER)

/* The two copies as they stand in the file; NULL: no cookie there. */
struct copies {
    const uint8_t *head; /* at 0: dynamic and differencing */
    const uint8_t *tail; /* at the end of the file */
};

/* ---- a footer ---- */

/* The one's complement of the sum of all bytes but the checksum's own four. */
static uint32_t checksum(const uint8_t *p, size_t n, size_t own)
{
    uint32_t sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += i >= own && i < own + 4 ? 0 : p[i];
    return ~sum;
}

static bool sum_is_right(const uint8_t *f)
{
    return be32(f + OFF_CHECKSUM) == checksum(f, FOOTER, OFF_CHECKSUM);
}

static bool has_mark(const uint8_t *f)
{
    return memcmp(f + OFF_MARK, MARK, MARK_LEN) == 0;
}

static void invert_checksum(uint8_t *f)
{
    put_be(f + OFF_CHECKSUM, ~be32(f + OFF_CHECKSUM), 4);
}

static bool has_room(const uint8_t *f)
{
    static const uint8_t zero[FOOTER - OFF_MARK];

    return memcmp(f + OFF_MARK, zero, sizeof(zero)) == 0;
}

/* The inverted checksum alone is our seal only where there is no room for the mark: a tool that
 * forgets the complement writes the same. */
static bool vhd_is_sealed(const uint8_t *f)
{
    return f && (has_mark(f) || be32(f + OFF_TYPE) == TYPE_SEALED ||
                 (be32(f + OFF_CHECKSUM) == ~checksum(f, FOOTER, OFF_CHECKSUM) && !has_room(f)));
}

static void seal(const uint8_t *truth, const struct seal_policy *policy, uint8_t ret[FOOTER])
{
    memcpy(ret, truth, FOOTER);
    if (has_room(truth)) {
        memcpy(ret + OFF_MARK, MARK, MARK_LEN);
        memcpy(ret + OFF_SAVED, truth + OFF_SIZES, SIZES_AND_TYPE_LEN);
        for (unsigned i = 0; policy->holder && policy->holder[i] && i < HOLDER_MAX; i++)
            ret[OFF_HOLDER + i] = (uint8_t)policy->holder[i];
        memset(ret + OFF_SIZES, 0, SIZES_LEN);
        if (policy->mode == SEAL_SIZE)
            return;
        put_be(ret + OFF_TYPE, TYPE_SEALED, 4);
    }
    invert_checksum(ret);
}

/* The true bytes of a copy, sealed or not. False: a part of its marks is missing, which no whole
 * write of ours leaves. */
static bool vhd_unseal(const uint8_t *f, uint8_t ret[FOOTER])
{
    bool type = be32(f + OFF_TYPE) == TYPE_SEALED, mark = has_mark(f);

    memcpy(ret, f, FOOTER);
    if (!vhd_is_sealed(f))
        return true;
    if (type && !mark)
        return false;
    if (mark) {
        memcpy(ret + OFF_SIZES, f + OFF_SAVED, SIZES_AND_TYPE_LEN);
        memset(ret + OFF_MARK, 0, FOOTER - OFF_MARK);
    }
    if (type || !mark)
        invert_checksum(ret);
    return !vhd_is_sealed(ret); /* a forged footer may claim that it was sealed before */
}

/* As QEMU has it; bytes, not checked yet. */
static uint64_t size_of(const uint8_t *f)
{
    static const char by_size[][5] = {"win ", "qem2", "d2v ", "CTXS", "tap\0"};
    uint64_t chs = (uint64_t)be16(f + OFF_CYLINDERS) * f[OFF_HEADS] * f[OFF_SECTORS];
    bool use_chs = chs != GEOMETRY_MAX;

    for (unsigned i = 0; i < sizeof(by_size) / sizeof(by_size[0]); i++)
        use_chs = use_chs && memcmp(f + OFF_CREATOR, by_size[i], 4) != 0;
    return use_chs ? chs * SECTOR : be64(f + OFF_CURRENT) / SECTOR * SECTOR;
}

/* ---- reading ---- */

/* YES: at least one copy has the cookie. LIES: the file ends inside the first. */
static enum probe vhd_load(struct excerpt *v, struct copies *ret)
{
    const uint8_t *p;

    memset(ret, 0, sizeof(*ret));
    if (v->file_size < COOKIE_LEN)
        return PROBE_NO;
    p = view_get(v, 0, COOKIE_LEN);
    if (!p)
        return PROBE_MORE;
    if (memcmp(p, COOKIE, COOKIE_LEN) == 0) {
        if (v->file_size < FOOTER)
            return PROBE_LIES;
        ret->head = view_get(v, 0, FOOTER);
        if (!ret->head)
            return PROBE_MORE;
    }
    if (v->file_size >= (ret->head ? 2 : 1) * FOOTER) {
        p = view_get(v, v->file_size - FOOTER, FOOTER);
        if (!p)
            return PROBE_MORE;
        ret->tail = memcmp(p, COOKIE, COOKIE_LEN) == 0 ? p : NULL;
    }
    return ret->head || ret->tail ? PROBE_YES : PROBE_NO;
}

static bool dyn_offset_is_sane(const uint8_t *f)
{
    return be64(f + OFF_DATA) >= FOOTER && be64(f + OFF_DATA) <= DYN_OFFSET_MAX;
}

/* The dynamic header, or NULL: not loaded (*ret_more), or outside the file. */
static const uint8_t *dyn_header(struct excerpt *v, const uint8_t *f, bool *ret_more)
{
    uint64_t off = be64(f + OFF_DATA);
    const uint8_t *p = view_get(v, off, DYN_HEADER);

    *ret_more = !p && off <= v->file_size && DYN_HEADER <= v->file_size - off;
    return p && memcmp(p, DYN_COOKIE, COOKIE_LEN) == 0 ? p : NULL;
}

/* ---- probe ---- */

static bool check_footer(const uint8_t *f, struct format_info *info)
{
    if (be32(f + OFF_VERSION) != VERSION_1_0)
        return format_lies(info, "file format version 0x%08" PRIx32 " is not 1.0",
                           be32(f + OFF_VERSION));
    if (!sum_is_right(f))
        return format_lies(info, "the footer's checksum 0x%08" PRIx32 " is not 0x%08" PRIx32,
                           be32(f + OFF_CHECKSUM), checksum(f, FOOTER, OFF_CHECKSUM));
    if (size_of(f) / SECTOR > SECTORS_MAX)
        return format_lies(info, "the size %" PRIu64 " exceeds 2040 GiB", size_of(f));
    return true;
}

static bool check_table(const uint8_t *f, const uint8_t *d, struct format_info *info)
{
    uint64_t table = be64(d + DYN_TABLE), dyn = be64(f + OFF_DATA);
    uint32_t entries = be32(d + DYN_ENTRIES), block = be32(d + DYN_BLOCK_SIZE);
    uint64_t table_len = 4ull * entries;

    if (block < SECTOR || (block & (block - 1)) != 0)
        return format_lies(info, "the block size %" PRIu32 " is no power of two from 512 up",
                           block);
    if (entries > ENTRIES_MAX)
        return format_lies(info, "%" PRIu32 " table entries are more than %" PRIu32, entries,
                           ENTRIES_MAX);
    if ((uint64_t)entries * block < size_of(f))
        return format_lies(info, "%" PRIu32 " table entries are too few for the size %" PRIu64,
                           entries, size_of(f));
    if (table > INT64_MAX - table_len)
        return format_lies(info, "the table offset 0x%" PRIx64 " is beyond every file", table);
    if (table < FOOTER || (table < dyn + DYN_HEADER && dyn < table + table_len))
        return format_lies(info, "the table at 0x%" PRIx64 " lies over a header", table);
    return true;
}

static enum probe probe_dynamic(struct excerpt *v, const uint8_t *f, struct format_info *info)
{
    uint32_t type = be32(f + OFF_TYPE);
    const uint8_t *d;
    bool more;

    if (!check_footer(f, info))
        return PROBE_LIES;
    if (type != TYPE_DYNAMIC && type != TYPE_DIFFERENCING) {
        format_lies(info, "the disk type %" PRIu32 " of the copy at 0 is neither 3 nor 4", type);
        return PROBE_LIES;
    }
    if (!dyn_offset_is_sane(f)) {
        format_lies(info, "the data offset 0x%" PRIx64 " is outside 512..%u", be64(f + OFF_DATA),
                    DYN_OFFSET_MAX);
        return PROBE_LIES;
    }
    d = dyn_header(v, f, &more);
    if (more)
        return PROBE_MORE;
    if (!d)
        format_lies(info, "no dynamic disk header at the data offset 0x%" PRIx64,
                    be64(f + OFF_DATA));
    else if (be32(d + DYN_VERSION) != VERSION_1_0)
        format_lies(info, "dynamic header version 0x%08" PRIx32 " is not 1.0",
                    be32(d + DYN_VERSION));
    else if (be32(d + DYN_CHECKSUM) != checksum(d, DYN_HEADER, DYN_CHECKSUM))
        format_lies(info, "the dynamic header's checksum 0x%08" PRIx32 " is wrong",
                    be32(d + DYN_CHECKSUM));
    else if (check_table(f, d, info)) {
        info->virtual_size = size_of(f);
        return PROBE_YES;
    }
    return PROBE_LIES;
}

/* There is no copy at 0, and the end of a file can be anything. */
static enum probe probe_tail(struct excerpt *v, const uint8_t *f, struct format_info *info)
{
    uint32_t type = be32(f + OFF_TYPE);
    bool more;

    if ((type == TYPE_DYNAMIC || type == TYPE_DIFFERENCING) && dyn_offset_is_sane(f)) {
        if (!dyn_header(v, f, &more))
            return more ? PROBE_MORE : PROBE_NO;
        format_lies(info, "the footer's copy at 0 is missing");
        return PROBE_LIES;
    }
    if (type != TYPE_FIXED || be64(f + OFF_CURRENT) != v->file_size - FOOTER)
        return PROBE_NO;
    if (!check_footer(f, info))
        return PROBE_LIES;
    info->virtual_size = size_of(f);
    return PROBE_YES;
}

static void tell_seal(const struct copies *c, struct format_info *info)
{
    bool head = vhd_is_sealed(c->head), tail = vhd_is_sealed(c->tail);
    const uint8_t *f = head ? c->head : c->tail;
    char holder[HOLDER_MAX + 1] = "";

    for (unsigned i = 0; has_mark(f) && i < HOLDER_MAX && f[OFF_HOLDER + i]; i++)
        holder[i] =
            (char)(f[OFF_HOLDER + i] >= 0x20 && f[OFF_HOLDER + i] < 0x7f ? f[OFF_HOLDER + i] : '?');
    snprintf(info->why, sizeof(info->why), "sealed by its %s%s%s",
             head && tail ? "footer and the copy at 0"
             : head       ? "copy of the footer at 0"
                          : "footer",
             holder[0] ? ": " : "", holder);
}

static enum probe vhd_probe(struct excerpt *v, struct format_info *ret_info)
{
    struct copies c;
    enum probe answer = vhd_load(v, &c);

    if (answer == PROBE_NO || answer == PROBE_MORE)
        return answer;
    ret_info->zone.tail = v->file_size > FOOTER ? v->file_size - FOOTER : 0;
    if (answer == PROBE_LIES) {
        format_lies(ret_info, "the file ends inside its first header");
        return PROBE_LIES;
    }
    if (c.head && dyn_offset_is_sane(c.head) &&
        ret_info->zone.head < be64(c.head + OFF_DATA) + DYN_HEADER)
        ret_info->zone.head = be64(c.head + OFF_DATA) + DYN_HEADER;
    ret_info->guest_at_start = !c.head;
    if (vhd_is_sealed(c.head) || vhd_is_sealed(c.tail)) {
        tell_seal(&c, ret_info);
        return PROBE_SEALED;
    }
    return c.head ? probe_dynamic(v, c.head, ret_info) : probe_tail(v, c.tail, ret_info);
}

/* ---- plan ---- */

static int add_seal(struct plan *plan, uint64_t off, const uint8_t *truth,
                    const struct seal_policy *policy)
{
    uint8_t sealed[FOOTER];

    seal(truth, policy, sealed);
    return plan_add(plan, off, truth, sealed, FOOTER);
}

static int vhd_plan(struct excerpt *v, const struct seal_policy *policy, struct plan *ret_plan)
{
    struct copies c;
    enum probe answer = vhd_load(v, &c);
    int r = 0;

    if (answer != PROBE_YES)
        return answer == PROBE_MORE ? -EAGAIN : -EUCLEAN;
    memset(ret_plan, 0, sizeof(*ret_plan));
    if (c.head)
        r = add_seal(ret_plan, 0, c.head, policy);
    /* A seal inverts the checksum. If it was wrong before, the inverted one says nothing, and
     * nobody can undo it. */
    if (r == 0 && c.tail && (has_room(c.tail) || sum_is_right(c.tail)))
        r = add_seal(ret_plan, v->file_size - FOOTER, c.tail, policy);
    return r;
}

/* ---- rescue ---- */

static int vhd_rescue(struct excerpt *v, const uint64_t *size, struct rescue *ret_rescue,
                      struct plan *ret_plan)
{
    uint8_t head[FOOTER], tail[FOOTER];
    const uint8_t *truth;
    struct copies c;
    enum probe answer = vhd_load(v, &c);
    int r = 0;

    if (answer == PROBE_MORE)
        return -EAGAIN;
    memset(ret_rescue, 0, sizeof(*ret_rescue));
    if (answer != PROBE_YES || (c.head && !vhd_unseal(c.head, head)) ||
        (c.tail && !vhd_unseal(c.tail, tail)))
        return -EUCLEAN;
    truth = c.head ? head : tail;
    if (!sum_is_right(truth))
        return -EUCLEAN;
    rescue_add(ret_rescue, RESCUE_EXACT, size_of(truth),
               "the size that the seal keeps in the footer");
    if (size && *size != size_of(truth))
        return -ERANGE;
    memset(ret_plan, 0, sizeof(*ret_plan));
    if (vhd_is_sealed(c.head))
        r = plan_add(ret_plan, 0, head, c.head, FOOTER);
    if (r == 0 && vhd_is_sealed(c.tail))
        r = plan_add(ret_plan, v->file_size - FOOTER, tail, c.tail, FOOTER);
    return r;
}

/* ---- links ---- */

/* spec, "Parent Locator Entries": platform codes, and the order in which they are believed. MacX is
 * a URL (Xen's tools write it); W2ru is relative. */
static const char platforms[][5] = {"W2ru", "MacX", "W2ku"};
#define URL "file://"

static int decode_name(const char *platform, const uint8_t *p, size_t n, char *ret, size_t size)
{
    if (platform[0] == 'W')
        return winpath_utf8(p, n, false, ret, size);
    n = strnlen((const char *)p, n);
    if (n <= strlen(URL) || memcmp(p, URL, strlen(URL)) != 0 || n - strlen(URL) >= size)
        return -EUCLEAN;
    n -= strlen(URL);
    memcpy(ret, p + strlen(URL), n);
    ret[n] = '\0';
    return 0;
}

/* 0 and *ret "" when there is no such locator. */
static int locator(struct excerpt *v, const uint8_t *d, const char *platform, char *ret,
                   size_t size)
{
    ret[0] = '\0';
    for (unsigned i = 0; i < LOCATORS; i++) {
        const uint8_t *l = d + DYN_LOCATORS + (size_t)i * LOCATOR_LEN, *p;
        uint64_t off = be64(l + LOCATOR_DATA_OFF);
        uint32_t n = be32(l + LOCATOR_DATA_LEN);

        if (memcmp(l, platform, 4) != 0)
            continue;
        if (n == 0 || n > LOCATOR_MAX || off > v->file_size || n > v->file_size - off)
            return -EUCLEAN;
        p = view_get(v, off, n);
        return p ? decode_name(platform, p, n, ret, size) : -EAGAIN;
    }
    return 0;
}

static int vhd_links(struct excerpt *v, int (*fn)(void *arg, const struct format_link *link),
                     void *arg)
{
    struct format_link link = {.role = LINK_BACKING, .format = "vpc"};
    uint8_t f[FOOTER];
    const uint8_t *d;
    struct copies c;
    enum probe answer = vhd_load(v, &c);
    bool more;
    int r = 0;

    if (answer != PROBE_YES)
        return answer == PROBE_MORE ? -EAGAIN : -EUCLEAN;
    if (!c.head)
        return 0;
    if (!vhd_unseal(c.head, f))
        return -EUCLEAN;
    if (be32(f + OFF_TYPE) != TYPE_DIFFERENCING)
        return 0;
    d = dyn_header(v, f, &more);
    if (!d)
        return more ? -EAGAIN : -EUCLEAN;
    for (unsigned i = 0; r == 0 && !link.path[0] && i < sizeof(platforms) / sizeof(platforms[0]);
         i++)
        r = locator(v, d, platforms[i], link.path, sizeof(link.path));
    if (r == 0 && !link.path[0])
        r = winpath_utf8(d + DYN_PARENT_NAME, DYN_PARENT_NAME_LEN, true, link.path,
                         sizeof(link.path));
    if (r == 0)
        r = winpath_follow(link.path);
    return r == 0 ? fn(arg, &link) : r;
}

const struct format format_vhd = {
    .name = "vpc",
    .probe = vhd_probe,
    .plan = vhd_plan,
    .rescue = vhd_rescue,
    .links = vhd_links,
};
