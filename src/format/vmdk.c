/* vmdk.c: VMware's sparse extents: "KDMV" (hosted: monolithicSparse, streamOptimized, the extents
 * of twoGbMaxExtentSparse) and "COWD" (ESX: the extents of vmfsSparse); the descriptor files beside
 * them are in vmdk_desc.c. VMware "Virtual Disk Format 5.0" ("spec" below), sections "Hosted Sparse
 * Extents", "Stream-Optimized Compressed Sparse Extents" and "ESX Server Sparse Extents"; QEMU
 * block/vmdk.c 7.2.
 *
 * What differs from a naive reading of the spec:
 *   - Where gdOffset is all ones a footer 1024 bytes before the end counts instead of the header.
 *     QEMU looks for it from the file's length rounded up to sectors, and refuses the file while
 *     there is none. A stream that is being written has none: that is no contradiction.
 *   - capacity 0 with a descriptor: QEMU reads nothing but that descriptor, as if it were a file of
 *     its own.
 *   - Otherwise QEMU takes only the parent's name from an embedded descriptor, libvmdk takes
 *     everything from there and ignores version and capacity. One that cannot be understood is left
 *     alone: while qemu-img create or a copy tool writes an image it is not there yet.
 *   - QEMU checks no version of COWD and opens it with any capacity; grainSize is what it refuses.
 *
 * The seal. Version := 0x5ea1 in its upper half ("Unsupported VMDK version"), first of all and in
 * the footer before the header, because QEMU reads the footer's; so it is refused in every prefix,
 * and still tells the true one. A note in the header's padding names the holder and keeps the
 * capacity; then capacity := "SEALED\0\0", which QEMU refuses, too: "L1 size too big" for every
 * grain table of 512 entries (2^40 would open as 512 TiB). Last the embedded descriptor, as in
 * vmdk_desc.c, for readers that look only there. Where capacity is 0 the descriptor comes first,
 * and capacity stays. In COWD grainSize with 0x5ea0.... added goes first ("Invalid granularity").
 * The magic is never touched: QEMU would write to the file as raw. */
#include "format/bytes.h"
#include "format/vmdk_priv.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* spec, SparseExtentHeader: offsets, and its length with padding */
#define KDMV_MAGIC 0x4b444d56u /* big-endian, "KDMV" */
#define KDMV_FLAGS 8u
#define KDMV_GRAIN 20u /* sectors */
#define KDMV_DESC_OFFSET 28u
#define KDMV_DESC_SIZE 36u
#define KDMV_GTES 44u
#define KDMV_RGD 48u
#define KDMV_GD 56u
#define KDMV_NEWLINES 73u
#define KDMV_COMPRESSION 77u
#define KDMV_LEN 512u
#define FLAG_NEWLINES 1u
#define FLAG_RGD 2u
#define GD_AT_END UINT64_MAX
#define COMPRESSION_MAX 1u /* deflate */

/* spec, "Stream-Optimized Compressed Sparse Extents": footer marker, footer, end-of-stream marker,
 * a sector each; QEMU checks the same fields */
#define FOOTER_LEN 1536u
#define FOOTER_MARKER_SIZE 8u
#define FOOTER_MARKER_TYPE 12u
#define FOOTER_HEADER 512u
#define FOOTER_EOS 1024u
#define MARKER_FOOTER 3u

/* spec, COWDisk_Header */
#define COWD_MAGIC 0x434f5744u /* big-endian, "COWD" */
#define COWD_GD 20u

/* Limits of QEMU, vmdk_open_vmdk4() and vmdk_add_extent() */
#define VERSION_MAX 3u
#define GTES_MAX 512u
#define GD_ENTRIES_MAX (32u << 20)
/* Ours: a descriptor that begins beyond this is none. QEMU looks for it in sector 1 only. Sectors.
 */
#define DESC_OFFSET_MAX 2048u

/* ---- reading ---- */

static bool load_copy(struct excerpt *v, uint64_t off, size_t len, struct vmdk_copy *ret)
{
    const uint8_t *p;

    memset(ret, 0, sizeof(*ret));
    ret->off = off;
    ret->n = v->file_size - off < len ? (size_t)(v->file_size - off) : len;
    ret->note = len == COWD_LEN ? COWD_NOTE : KDMV_NOTE;
    ret->width = len == COWD_LEN ? 4 : 8;
    ret->sealed_capacity = len == COWD_LEN ? SEALED_CAPACITY32 : SEALED_CAPACITY;
    p = view_get(v, off, ret->n);
    if (p)
        memcpy(ret->b, p, ret->n);
    return p != NULL;
}

uint32_t vmdk_version_of(const struct vmdk_copy *c)
{
    return le32(c->b + KDMV_VERSION);
}

uint64_t vmdk_capacity_of(const struct vmdk_copy *c)
{
    return c->width == 4 ? le32(c->b + COWD_CAPACITY) : le64(c->b + KDMV_CAPACITY);
}

/* The magic and the markers around the footer: what a seal leaves as it is. */
static bool is_footer(const uint8_t *p)
{
    const uint8_t *eos = p + FOOTER_EOS;

    return le32(p + FOOTER_MARKER_SIZE) == 0 && le32(p + FOOTER_MARKER_TYPE) == MARKER_FOOTER &&
           be32(p + FOOTER_HEADER) == KDMV_MAGIC && le64(eos) == 0 &&
           le32(eos + FOOTER_MARKER_SIZE) == 0 && le32(eos + FOOTER_MARKER_TYPE) == 0;
}

static bool load_footer(struct excerpt *v, struct vmdk_image *m)
{
    uint64_t sectors = v->file_size / VMDK_SECTOR + (v->file_size % VMDK_SECTOR != 0);
    uint8_t b[FOOTER_LEN] = {0};
    const uint8_t *p;
    size_t n;

    m->at_end = le64(m->header.b + KDMV_GD) == GD_AT_END;
    if (!m->at_end || sectors * VMDK_SECTOR < KDMV_LEN + FOOTER_LEN)
        return true;
    m->footer_off = sectors * VMDK_SECTOR - FOOTER_LEN;
    n = (size_t)(v->file_size - m->footer_off) < FOOTER_LEN ? (size_t)(v->file_size - m->footer_off)
                                                            : FOOTER_LEN;
    p = view_get(v, m->footer_off, n);
    if (!p)
        return false;
    memcpy(b, p, n);
    m->has_footer = is_footer(b);
    return !m->has_footer || load_copy(v, m->footer_off + FOOTER_HEADER, KDMV_LEN, &m->footer);
}

static bool load_desc(struct excerpt *v, struct vmdk_image *m)
{
    uint64_t sector = le64(m->header.b + KDMV_DESC_OFFSET),
             size = le64(m->header.b + KDMV_DESC_SIZE);
    const uint8_t *p;

    if (sector == 0 || sector > DESC_OFFSET_MAX || size == 0)
        return true;
    m->desc_base = sector * VMDK_SECTOR;
    m->desc_len = size < VMDK_TEXT_MAX / VMDK_SECTOR ? (size_t)size * VMDK_SECTOR : VMDK_TEXT_MAX;
    if (m->desc_base >= v->file_size)
        return true;
    if (m->desc_len > v->file_size - m->desc_base)
        m->desc_len = (size_t)(v->file_size - m->desc_base);
    p = view_get(v, m->desc_base, m->desc_len);
    if (!p)
        return false;
    if (p[0] != 0)
        vmdk_desc_parse(p, m->desc_len, &m->desc);
    return true;
}

/* Loads what all checks need; NO: neither of the two magics. */
enum probe vmdk_load(struct excerpt *v, struct vmdk_image *m)
{
    const uint8_t *p;
    uint32_t magic;

    memset(m, 0, sizeof(*m));
    m->used = &m->header;
    if (v->file_size < 4)
        return PROBE_NO;
    p = view_get(v, 0, 4);
    if (!p)
        return PROBE_MORE;
    magic = be32(p);
    if (magic != KDMV_MAGIC && magic != COWD_MAGIC)
        return PROBE_NO;
    m->cowd = magic == COWD_MAGIC;
    if (!load_copy(v, 0, m->cowd ? COWD_LEN : KDMV_LEN, &m->header))
        return PROBE_MORE;
    if (m->cowd)
        return PROBE_YES;
    if (!load_footer(v, m) || !load_desc(v, m))
        return PROBE_MORE;
    if (m->has_footer)
        m->used = &m->footer;
    return PROBE_YES;
}

/* The zone, as wide as the header asks for, sealed or not. */
static struct format_zone zone_of(const struct vmdk_image *m)
{
    struct format_zone zone = {.head = FORMAT_REACH, .tail = UINT64_MAX};
    uint64_t sectors = le64(m->header.b + KDMV_DESC_SIZE);

    if (m->desc_base) {
        uint64_t text =
            sectors < VMDK_TEXT_MAX / VMDK_SECTOR ? sectors * VMDK_SECTOR : VMDK_TEXT_MAX;
        uint64_t end = (m->desc_base + text + FORMAT_REACH - 1) / FORMAT_REACH * FORMAT_REACH;

        zone.head = end > FORMAT_REACH ? end : FORMAT_REACH;
    }
    if (!m->cowd && m->at_end)
        zone.tail = m->footer_off;
    return zone;
}

/* ---- marks ---- */

bool vmdk_has_note(const struct vmdk_copy *c)
{
    return memcmp(c->b + c->note, NOTE_WORD, strlen(NOTE_WORD)) == 0;
}

/* The capacity in a note that we wrote; false: none, or another text. */
bool vmdk_read_note(const struct vmdk_copy *c, uint64_t *ret_sectors)
{
    const uint8_t *note = c->b + c->note;
    size_t n = strnlen((const char *)note, NOTE_LEN), head = strlen(NOTE_SECTORS);
    uint64_t value;

    if (!vmdk_has_note(c) || n < head + 16 ||
        memcmp(note + n - 16 - head, NOTE_SECTORS, head) != 0 ||
        !hex_number(note + n - 16, 16, &value))
        return false;
    *ret_sectors = value; /* a header that does not count may hold anything there */
    return true;
}

bool vmdk_version_sealed(const struct vmdk_copy *c)
{
    return vmdk_version_of(c) >> 16 == SEALED_VERSION >> 16;
}

bool vmdk_capacity_sealed(const struct vmdk_copy *c)
{
    return vmdk_capacity_of(c) == c->sealed_capacity;
}

bool vmdk_grain_sealed(const struct vmdk_image *m)
{
    uint32_t grain = le32(m->header.b + COWD_GRAIN);

    return m->cowd && grain > SEALED_GRAIN && grain <= SEALED_GRAIN + GRAIN_MAX;
}

static bool any_copy(const struct vmdk_image *m, bool (*what)(const struct vmdk_copy *))
{
    return what(&m->header) || (m->has_footer && what(&m->footer));
}

static void vmdk_say(struct format_info *info, const char *what)
{
    size_t used = strlen(info->why);

    snprintf(info->why + used, sizeof(info->why) - used, "%s%s", used ? ", " : "sealed by its ",
             what);
}

static bool vmdk_is_sealed(const struct vmdk_image *m, struct format_info *info)
{
    const struct vmdk_copy *noted = vmdk_has_note(&m->header) ? &m->header : &m->footer;

    if (any_copy(m, vmdk_version_sealed))
        vmdk_say(info, "version");
    if (vmdk_grain_sealed(m))
        vmdk_say(info, "grain size");
    if (any_copy(m, vmdk_capacity_sealed))
        vmdk_say(info, "capacity");
    if (vmdk_desc_sealed(&m->desc))
        vmdk_say(info, "descriptor");
    if (any_copy(m, vmdk_has_note)) {
        char note[NOTE_LEN + 1] = "";

        for (size_t i = 0; i < NOTE_LEN && noted->b[noted->note + i]; i++) {
            uint8_t c = noted->b[noted->note + i];

            note[i] = (char)(c >= 0x20 && c < 0x7f ? c : '?');
        }
        vmdk_say(info, "note: ");
        strncat(info->why, note, sizeof(info->why) - strlen(info->why) - 1);
    }
    return info->why[0] != '\0';
}

/* ---- probe ---- */

static bool check_cowd(const struct vmdk_copy *c, struct format_info *info)
{
    uint32_t version = vmdk_version_of(c), grain = le32(c->b + COWD_GRAIN);
    uint32_t gd = le32(c->b + COWD_GD), entries = le32(c->b + COWD_GD_ENTRIES);

    if (version != 1)
        return format_lies(info, "version %" PRIu32 " is not 1", version);
    if (grain < 1 || grain > GRAIN_MAX)
        return format_lies(info, "grainSize %" PRIu32 " is outside 1..%u", grain, GRAIN_MAX);
    if (gd < COWD_LEN / VMDK_SECTOR)
        return format_lies(info, "gdOffset %" PRIu32 " lies over the header", gd);
    if (entries > GD_ENTRIES_MAX)
        return format_lies(info, "numGDEntries %" PRIu32 " exceeds %u", entries, GD_ENTRIES_MAX);
    if (vmdk_capacity_of(c) > (uint64_t)entries * COWD_GT_ENTRIES * grain)
        return format_lies(info, "numGDEntries %" PRIu32 " is too small for numSectors %" PRIu64,
                           entries, vmdk_capacity_of(c));
    return true;
}

static bool check_directory(const struct vmdk_image *m, struct format_info *info, const char *name,
                            uint64_t sector)
{
    uint64_t text = le64(m->header.b + KDMV_DESC_OFFSET), size = le64(m->header.b + KDMV_DESC_SIZE);

    if (sector == 0)
        return format_lies(info, "%s 0 lies over the header", name);
    if (sector > VMDK_SECTORS_MAX - GD_ENTRIES_MAX)
        return format_lies(info, "%s %" PRIu64 " is beyond every file", name, sector);
    if (text != 0 && sector >= text && sector - text < size)
        return format_lies(info, "%s %" PRIu64 " lies over the descriptor", name, sector);
    return true;
}

/* The copy that counts. */
static bool check_kdmv(const struct vmdk_image *m, struct format_info *info)
{
    const struct vmdk_copy *c = m->used;
    uint64_t grain = le64(c->b + KDMV_GRAIN), capacity = vmdk_capacity_of(c),
             gd = le64(c->b + KDMV_GD);
    uint32_t version = vmdk_version_of(c), gtes = le32(c->b + KDMV_GTES),
             flags = le32(c->b + KDMV_FLAGS);
    uint16_t compression = le16(c->b + KDMV_COMPRESSION);

    if (version > VERSION_MAX)
        return format_lies(info, "version %" PRIu32 " exceeds %u: a newer version", version,
                           VERSION_MAX);
    if (gtes < 1 || gtes > GTES_MAX)
        return format_lies(info, "numGTEsPerGT %" PRIu32 " is outside 1..%u", gtes, GTES_MAX);
    if (grain < 1 || grain > GRAIN_MAX)
        return format_lies(info, "grainSize %" PRIu64 " is outside 1..%u", grain, GRAIN_MAX);
    if (capacity > VMDK_SECTORS_MAX || capacity > grain * gtes * GD_ENTRIES_MAX)
        return format_lies(info, "capacity %" PRIu64 " needs more than %u grain tables", capacity,
                           GD_ENTRIES_MAX);
    if (compression > COMPRESSION_MAX)
        return format_lies(info, "compressAlgorithm %u is unknown: a newer version",
                           (unsigned)compression);
    if (flags & FLAG_NEWLINES && memcmp(c->b + KDMV_NEWLINES, "\n \r\n", 4) != 0)
        return format_lies(info, "the newline test at %u failed: the file was copied as text",
                           KDMV_NEWLINES);
    if (gd != GD_AT_END && !check_directory(m, info, "gdOffset", gd))
        return false;
    if (gd == GD_AT_END && m->has_footer)
        return format_lies(info, "gdOffset of the footer says that it is in a footer");
    return !(flags & FLAG_RGD) || le64(c->b + KDMV_RGD) == 0 ||
           check_directory(m, info, "rgdOffset", le64(c->b + KDMV_RGD));
}

static bool check_header(const struct vmdk_image *m, struct format_info *info)
{
    uint64_t sector = le64(m->header.b + KDMV_DESC_OFFSET),
             size = le64(m->header.b + KDMV_DESC_SIZE);
    uint32_t version = vmdk_version_of(&m->header);

    if (version > VERSION_MAX)
        return format_lies(info, "version %" PRIu32 " exceeds %u: a newer version", version,
                           VERSION_MAX);
    if (sector > DESC_OFFSET_MAX)
        return format_lies(info, "descriptorOffset %" PRIu64 " exceeds %u", sector,
                           DESC_OFFSET_MAX);
    if (sector != 0 && size > VMDK_SECTORS_MAX - sector)
        return format_lies(info, "descriptorSize %" PRIu64 " is beyond every file", size);
    return true;
}

/* capacity 0: the descriptor is all there is. */
bool vmdk_is_shell(const struct vmdk_image *m)
{
    return !m->cowd && vmdk_capacity_of(&m->header) == 0;
}

static bool check_shell(const struct vmdk_image *m, struct format_info *info)
{
    if (m->desc.n == 0)
        return format_lies(info, "capacity is 0 and there is no descriptor");
    if (m->desc.n == VMDK_TEXT_MAX)
        return format_lies(info, "the descriptor has %u bytes or more", VMDK_TEXT_MAX);
    if (m->desc.why[0])
        return format_lies(info, "%s", m->desc.why);
    if (!vmdk_desc_followed(&m->desc))
        return format_lies(info, "capacity is 0 but createType is \"%.*s\"", (int)m->desc.type_len,
                           (const char *)m->desc.p + m->desc.type_off);
    return true;
}

static enum probe vmdk_probe(struct excerpt *v, struct format_info *ret_info)
{
    struct vmdk_image m;
    enum probe answer = vmdk_load(v, &m);
    bool fine;

    if (answer == PROBE_NO)
        return vmdk_file_probe(v, ret_info);
    if (answer != PROBE_YES)
        return answer;
    ret_info->zone = zone_of(&m);
    if (vmdk_is_sealed(&m, ret_info))
        return PROBE_SEALED;
    if (m.cowd)
        fine = check_cowd(&m.header, ret_info);
    else
        fine = check_header(&m, ret_info) &&
               (vmdk_is_shell(&m) ? check_shell(&m, ret_info) : check_kdmv(&m, ret_info));
    if (!fine) {
        ret_info->maybe_sealed =
            vmdk_is_shell(&m) || (m.has_footer && vmdk_capacity_of(&m.footer) == 0);
        return PROBE_LIES;
    }
    ret_info->virtual_size =
        (vmdk_is_shell(&m) ? m.desc.sectors : vmdk_capacity_of(m.used)) * VMDK_SECTOR;
    return PROBE_YES;
}

/* ---- links ---- */

static int vmdk_links(struct excerpt *v, int (*fn)(void *arg, const struct format_link *link),
                      void *arg)
{
    struct vmdk_image m;
    enum probe answer = vmdk_load(v, &m);

    if (answer == PROBE_NO)
        return vmdk_file_links(v, fn, arg);
    if (answer == PROBE_MORE)
        return -EAGAIN;
    return m.desc.n == 0 ? 0 : vmdk_desc_links(&m.desc, vmdk_is_shell(&m), fn, arg);
}

const struct format format_vmdk = {
    .name = "vmdk",
    .probe = vmdk_probe,
    .plan = vmdk_plan,
    .rescue = vmdk_rescue,
    .links = vmdk_links,
};
