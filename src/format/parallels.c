/* parallels.c: Parallels expandable images, version 2 with either magic (QEMU
 * docs/interop/parallels.txt, "spec" below; "QEMU" is the reader of 7.2, block/parallels.c).
 *
 * What QEMU opens passes, but for two contradictions: a size beyond the BAT, and data over the
 * header or the BAT, where the next allocation would destroy it. So in_use, flags, ext_off and the
 * alignment of data_off, which QEMU ignores, are not judged, and neither are the upper four bytes
 * of nb_sectors under the old magic (QEMU masks them). Bytes beyond the end of the file count as
 * zero, as QEMU reads them, but a header that ends before its size is broken: `tracks` would be 0
 * there, which is a mark.
 *
 * The seal. tracks (the cluster size in sectors) := 0, which QEMU refuses ("Zero sectors per
 * track") whatever else stands there, and no tool can write: the cluster size is a divisor. Then
 * nb_sectors := 0, for readers that look at the size alone. The size by itself never refuses: QEMU
 * opens 0 as an empty disk and 5.2 EiB as a writable one. So tracks is sealed first and restored
 * last.
 *
 * Without a record both are lost. The size of the BAT bounds sectors / tracks from both sides, and
 * under the new magic data_off is a multiple of tracks; so the size must be given, and tracks is
 * told from it where only one value fits. */
#include "format/bytes.h"
#include "format/format.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* spec, "Header": offsets, little-endian */
#define MAGIC_OLD "WithoutFreeSpace"
#define MAGIC_EXT "WithouFreSpacExt"
#define MAGIC_LEN 16u
#define OFF_VERSION 16u
#define OFF_HEADS 20u
#define OFF_CYLINDERS 24u
#define OFF_TRACKS 28u
#define OFF_BAT_ENTRIES 32u
#define OFF_SECTORS 36u
#define OFF_DATA 48u
#define HEADER_LENGTH 64u
#define SIZE_END (OFF_SECTORS + 8u)
#define VERSION 2u
#define SECTOR 512u
#define BAT_ENTRY 4u

/* QEMU, parallels_open(); and parallels.h, SEC_IN_CYL, for cylinders, which are rounded down */
#define TRACKS_MAX (INT32_MAX / 513u)
#define BAT_ENTRIES_MAX (INT32_MAX / BAT_ENTRY)
#define SECTORS_PER_CYLINDER 32u

#define LOAD 512u

struct parallels {
    uint8_t b[HEADER_LENGTH]; /* zeros beyond the end of the file */
    bool ext;                 /* the new magic */
    uint32_t version, tracks, bat_entries;
    uint64_t data;       /* start of the data area, in sectors; 0: right behind the BAT */
    uint64_t nb_sectors; /* as QEMU takes it */
};

/* Loads the header and decodes it; values are not checked yet. */
static enum probe parallels_load(struct excerpt *v, struct parallels *h)
{
    size_t n = v->file_size < LOAD ? (size_t)v->file_size : LOAD;
    const uint8_t *p;

    memset(h, 0, sizeof(*h));
    if (n < MAGIC_LEN)
        return PROBE_NO;
    p = view_get(v, 0, n);
    if (!p)
        return PROBE_MORE;
    h->ext = memcmp(p, MAGIC_EXT, MAGIC_LEN) == 0;
    if (!h->ext && memcmp(p, MAGIC_OLD, MAGIC_LEN) != 0)
        return PROBE_NO;
    memcpy(h->b, p, n < sizeof(h->b) ? n : sizeof(h->b));
    h->version = le32(h->b + OFF_VERSION);
    h->tracks = le32(h->b + OFF_TRACKS);
    h->bat_entries = le32(h->b + OFF_BAT_ENTRIES);
    h->data = le32(h->b + OFF_DATA);
    h->nb_sectors = h->ext ? le64(h->b + OFF_SECTORS) : le32(h->b + OFF_SECTORS);
    return PROBE_YES;
}

/* ---- probe ---- */

static uint64_t bat_end(const struct parallels *h)
{
    return HEADER_LENGTH + (uint64_t)h->bat_entries * BAT_ENTRY;
}

static bool check_bat(const struct parallels *h, struct format_info *info)
{
    if (h->bat_entries > BAT_ENTRIES_MAX)
        return format_lies(info, "nb_bat_entries %" PRIu32 " exceeds %u", h->bat_entries,
                           BAT_ENTRIES_MAX);
    if (h->data != 0 && h->data * SECTOR < bat_end(h))
        return format_lies(info, "data_off %" PRIu64 ": the data lies over the header or the BAT",
                           h->data);
    return true;
}

static bool check_size(const struct parallels *h, struct format_info *info)
{
    if (h->tracks > TRACKS_MAX)
        return format_lies(info, "tracks %" PRIu32 " exceeds %u", h->tracks, TRACKS_MAX);
    if (h->nb_sectors > (uint64_t)h->bat_entries * h->tracks)
        return format_lies(
            info, "nb_sectors %" PRIu64 " exceeds %" PRIu32 " clusters of %" PRIu32 " sectors",
            h->nb_sectors, h->bat_entries, h->tracks);
    return true;
}

static enum probe parallels_probe(struct excerpt *v, struct format_info *ret_info)
{
    struct parallels h;
    enum probe answer = parallels_load(v, &h);

    if (answer != PROBE_YES)
        return answer;
    if (h.version != VERSION) {
        format_lies(ret_info, "version %" PRIu32 " is not %u", h.version, VERSION);
        return PROBE_LIES;
    }
    if (v->file_size < SIZE_END) {
        format_lies(ret_info, "the file ends at byte %" PRIu64 ", in its header", v->file_size);
        return PROBE_LIES;
    }
    if (h.tracks == 0) {
        snprintf(ret_info->why, sizeof(ret_info->why), "sealed by its cluster size (tracks)%s",
                 h.nb_sectors == 0 ? " and its size" : "");
        return PROBE_SEALED;
    }
    if (!check_bat(&h, ret_info) || !check_size(&h, ret_info))
        return PROBE_LIES;
    ret_info->maybe_sealed = h.nb_sectors == 0 && h.bat_entries > 0;
    ret_info->virtual_size = h.nb_sectors * SECTOR;
    return PROBE_YES;
}

/* ---- plan ---- */

static int parallels_plan(struct excerpt *v, const struct seal_policy *policy,
                          struct plan *ret_plan)
{
    static const uint8_t zero[8];
    struct parallels h;
    enum probe answer = parallels_load(v, &h);
    int r = 0;

    if (answer == PROBE_MORE)
        return -EAGAIN;
    if (answer != PROBE_YES || v->file_size < SIZE_END)
        return -EUCLEAN;
    memset(ret_plan, 0, sizeof(*ret_plan));
    if (policy->mode != SEAL_SIZE)
        r = plan_add(ret_plan, OFF_TRACKS, h.b + OFF_TRACKS, zero, 4);
    return r < 0 ? r : plan_add(ret_plan, OFF_SECTORS, h.b + OFF_SECTORS, zero, 8);
}

/* ---- rescue ---- */

/* Under the old magic the distance of any two clusters, in sectors, is a multiple of tracks. Only
 * the first LOAD bytes are looked at. */
static bool clusters_fit(struct excerpt *v, const struct parallels *h, uint64_t tracks)
{
    uint64_t end = bat_end(h) < LOAD ? bat_end(h) : LOAD;
    const uint8_t *p = v->file_size >= end ? view_get(v, 0, end) : NULL;
    uint32_t base = 0;

    if (h->ext)
        return h->data % tracks == 0;
    for (uint64_t at = HEADER_LENGTH; p && at + BAT_ENTRY <= end; at += BAT_ENTRY) {
        uint32_t entry = le32(p + at);
        if (entry != 0 && base == 0)
            base = entry;
        if (entry != 0 && (entry > base ? entry - base : base - entry) % tracks != 0)
            return false;
    }
    return true;
}

/* How many values of tracks there are for which `sectors` fill the BAT up to its last entry and
 * which fit the rest of the header: 0, 1, 2 (or more). */
static unsigned tell_tracks(struct excerpt *v, const struct parallels *h, uint64_t sectors,
                            uint32_t *ret_tracks)
{
    /* spec, "Definitions": 1 MiB, in previous versions 63 sectors, 256 and 252 KiB; QEMU makes any,
     * but under the new magic only */
    static const uint32_t known[] = {63, 504, 512, 2048};
    uint64_t bat = h->bat_entries, low = (sectors + bat - 1) / bat, high = TRACKS_MAX;
    unsigned found = 0;

    if (bat > 1 && (sectors - 1) / (bat - 1) < high)
        high = (sectors - 1) / (bat - 1); /* with one more the last entry would not be needed */
    if (h->ext && h->data) {
        if (h->data < high)
            high = h->data;
        for (uint64_t t = low; t <= high && found < 2; t++)
            if (clusters_fit(v, h, t) && found++ == 0)
                *ret_tracks = (uint32_t)t;
        return found;
    }
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (known[i] >= low && known[i] <= high && clusters_fit(v, h, known[i]) && found++ == 0)
            *ret_tracks = known[i];
    return found;
}

/* Bounds from what the seal leaves. A cluster that the BAT has no place for in fewer sectors than
 * data_off: the BAT is rounded up to clusters, so tracks is at most data_off. Nothing bounds the
 * size from above under the old magic. */
static void find_bounds(const struct parallels *h, struct rescue *ret)
{
    uint64_t geometry = (uint64_t)le32(h->b + OFF_CYLINDERS) * le32(h->b + OFF_HEADS);
    uint64_t tracks = h->data < TRACKS_MAX ? h->data : TRACKS_MAX;

    if (h->ext && h->data)
        rescue_add(ret, RESCUE_UPPER, h->bat_entries * tracks * SECTOR, "BAT entries x data_off");
    if (geometry <= INT64_MAX / SECTORS_PER_CYLINDER / SECTOR)
        rescue_add(ret, RESCUE_LOWER, geometry * SECTORS_PER_CYLINDER * SECTOR,
                   "cylinders x heads x 32 sectors");
}

static int parallels_rescue(struct excerpt *v, const uint64_t *size, struct rescue *ret_rescue,
                            struct plan *ret_plan)
{
    uint64_t sectors;
    struct format_info info;
    struct parallels h;
    unsigned found;
    uint8_t word[8];
    int r;

    if (parallels_load(v, &h) == PROBE_MORE)
        return -EAGAIN;
    memset(ret_rescue, 0, sizeof(*ret_rescue));
    memset(ret_plan, 0, sizeof(*ret_plan));
    if (h.version != VERSION || h.tracks != 0 || v->file_size < SIZE_END || h.bat_entries == 0 ||
        !check_bat(&h, &info))
        return -EUCLEAN; /* something else than the seal is wrong with it */
    sectors = h.nb_sectors;
    if (sectors != 0 && sectors <= INT64_MAX / SECTOR) {
        rescue_add(ret_rescue, RESCUE_EXACT, sectors * SECTOR, "its own size field");
        if (size && *size != sectors * SECTOR)
            return -ERANGE;
    } else {
        find_bounds(&h, ret_rescue);
        if (!size)
            return -ENODATA;
        sectors = *size / SECTOR;
        if (sectors == 0 || *size % SECTOR != 0 || (!h.ext && sectors > UINT32_MAX) ||
            sectors > (uint64_t)h.bat_entries * TRACKS_MAX || sectors < h.bat_entries)
            return -ERANGE;
    }
    found = tell_tracks(v, &h, sectors, &h.tracks);
    if (found != 1)
        return found == 0 && h.nb_sectors == 0 ? -ERANGE : -EUCLEAN;
    put_le(word, h.tracks, 4);
    r = plan_add(ret_plan, OFF_TRACKS, word, h.b + OFF_TRACKS, 4);
    put_le(word, sectors, 8);
    return r < 0 || h.nb_sectors ? r : plan_add(ret_plan, OFF_SECTORS, word, h.b + OFF_SECTORS, 8);
}

const struct format format_parallels = {
    .name = "parallels",
    .probe = parallels_probe,
    .plan = parallels_plan,
    .rescue = parallels_rescue,
};
