/* vdi.c: VirtualBox Disk Image, versions 1.x and 0.2 (VirtualBox src/VBox/Storage/VDICore.h and
 * VDI.cpp, "VirtualBox" below; "QEMU" is the reader of 7.2, block/vdi.c). There is no other
 * specification.
 *
 * The two readers differ, and an image that either of them opens passes: QEMU takes version 1.1
 * only, blocks of 1 MiB, tables aligned to sectors, no parent and the size 0; VirtualBox any 1.x
 * and 0.2, any block size that is a power of 2, any alignment, parents, but no size 0. What both
 * ignore (type and flags by QEMU, the legacy geometry by VirtualBox) is not judged. In one point
 * this is stricter than QEMU: a block map over the header, or data over the map, contradicts
 * VirtualBox and would be overwritten. Bytes beyond the end of the file count as zero, as QEMU
 * reads them, and neither map nor data must lie inside the file: qemu-img create writes the header
 * first.
 *
 * The seal. cbDisk := "SEALED\0\0", 5.2 EiB: QEMU refuses more than 512 TiB (before it looks at
 * anything else), and VirtualBox what exceeds blocks x block size, which is below 2^61 because the
 * data offset behind the map has 32 bits. Size 0 is no refusal: QEMU opens it.
 *
 * Without a record the size is known to one block: blocks x block size, rounded up by every writer.
 *
 * A differencing image names its parent by UUID, not by a file name: no links. */
#include "format/bytes.h"
#include "format/format.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* VirtualBox, VDIPREHEADER, little-endian */
#define OFF_SIGNATURE 0x40u
#define OFF_VERSION 0x44u
#define VDI_SIGNATURE 0xbeda107fu
#define VERSION_0_2 0x00000002u
#define MAJOR(version) ((version) >> 16)

/* VirtualBox, VDIHEADER1 and VDIHEADER0 behind the preheader: offsets from the start of the file.
 * Version 0 has no offsets: the map follows the header, and the data the map. */
#define V1_OFF_BLOCKS 0x154u
#define V1_OFF_DATA 0x158u
#define V1_SIZE 0x170u
#define V1_BLOCK_SIZE 0x178u
#define V1_BLOCKS 0x180u
#define V1_END 0x1c8u
#define V0_SIZE 0x160u
#define V0_BLOCK_SIZE 0x168u
#define V0_BLOCKS 0x16cu
#define V0_END 0x1a4u
#define MAP_ENTRY 4u
#define LOAD 512u /* holds every header that VirtualBox knows */

#define SEALED_SIZE 0x5345414c45440000ull /* "SEALED\0\0" */

struct vdi {
    uint8_t b[LOAD]; /* zeros beyond the end of the file */
    uint32_t version, block_size, blocks;
    unsigned size_at, header_end; /* bytes from the start of the file */
    uint64_t map, data, size;
};

/* Loads the header and decodes it; values are not checked yet. NO, MORE, LIES (a version that is
 * unknown) or YES. */
static enum probe vdi_load(struct excerpt *v, struct vdi *h)
{
    size_t n = v->file_size < LOAD ? (size_t)v->file_size : LOAD;
    const uint8_t *p;

    memset(h, 0, sizeof(*h));
    if (n < OFF_SIGNATURE + 4)
        return PROBE_NO;
    p = view_get(v, 0, n);
    if (!p)
        return PROBE_MORE;
    if (le32(p + OFF_SIGNATURE) != VDI_SIGNATURE)
        return PROBE_NO;
    memcpy(h->b, p, n);
    h->version = le32(h->b + OFF_VERSION);
    if (MAJOR(h->version) == 1) {
        h->size_at = V1_SIZE;
        h->header_end = V1_END;
        h->block_size = le32(h->b + V1_BLOCK_SIZE);
        h->blocks = le32(h->b + V1_BLOCKS);
        h->map = le32(h->b + V1_OFF_BLOCKS);
        h->data = le32(h->b + V1_OFF_DATA);
    } else if (h->version == VERSION_0_2) {
        h->size_at = V0_SIZE;
        h->header_end = V0_END;
        h->block_size = le32(h->b + V0_BLOCK_SIZE);
        h->blocks = le32(h->b + V0_BLOCKS);
        h->map = V0_END;
        h->data = V0_END + (uint64_t)h->blocks * MAP_ENTRY;
    } else {
        return PROBE_LIES;
    }
    h->size = le64(h->b + h->size_at);
    return PROBE_YES;
}

/* ---- probe ---- */

static bool check_tables(const struct vdi *h, struct format_info *info)
{
    uint64_t map_end = h->map + (uint64_t)h->blocks * MAP_ENTRY;

    if (h->map < h->header_end)
        return format_lies(info, "offBlocks %" PRIu64 ": the block map lies over the header",
                           h->map);
    if (h->data < map_end || h->data > UINT32_MAX)
        return format_lies(info, "offData %" PRIu64 " is before the end of the block map, %" PRIu64,
                           h->data, map_end);
    if (h->block_size < 2 || (h->block_size & (h->block_size - 1)) != 0)
        return format_lies(info, "cbBlock %" PRIu32 " is no power of 2", h->block_size);
    return true;
}

static uint64_t size_max(const struct vdi *h)
{
    return (uint64_t)h->blocks * h->block_size;
}

static enum probe vdi_probe(struct excerpt *v, struct format_info *ret_info)
{
    struct vdi h;
    enum probe answer = vdi_load(v, &h);

    if (answer == PROBE_LIES)
        format_lies(ret_info, "version %" PRIu32 ".%" PRIu32 " is neither 1.x nor 0.2",
                    MAJOR(h.version), h.version & 0xffff);
    if (answer != PROBE_YES)
        return answer;
    if (h.size == SEALED_SIZE) {
        snprintf(ret_info->why, sizeof(ret_info->why), "sealed by its size");
        return PROBE_SEALED;
    }
    if (!check_tables(&h, ret_info))
        return PROBE_LIES;
    if (h.size > size_max(&h)) {
        format_lies(ret_info, "cbDisk %" PRIu64 " exceeds %" PRIu32 " blocks of %" PRIu32 " bytes",
                    h.size, h.blocks, h.block_size);
        return PROBE_LIES;
    }
    ret_info->maybe_sealed = h.size == 0 && h.blocks > 0;
    ret_info->virtual_size = h.size;
    return PROBE_YES;
}

/* ---- plan ---- */

static int vdi_plan(struct excerpt *v, const struct seal_policy *policy, struct plan *ret_plan)
{
    uint8_t word[8];
    struct vdi h;
    enum probe answer = vdi_load(v, &h);

    if (answer == PROBE_MORE)
        return -EAGAIN;
    if (answer != PROBE_YES || v->file_size < h.size_at + sizeof(word))
        return -EUCLEAN;
    memset(ret_plan, 0, sizeof(*ret_plan));
    put_le(word, policy->mode == SEAL_SIZE ? 0 : SEALED_SIZE, sizeof(word));
    return plan_add(ret_plan, h.size_at, h.b + h.size_at, word, sizeof(word));
}

/* ---- rescue ---- */

static int vdi_rescue(struct excerpt *v, const uint64_t *size, struct rescue *ret_rescue,
                      struct plan *ret_plan)
{
    struct format_info info;
    enum probe answer;
    uint8_t word[8];
    uint64_t lower;
    struct vdi h;

    answer = vdi_load(v, &h);
    if (answer == PROBE_MORE)
        return -EAGAIN;
    memset(ret_rescue, 0, sizeof(*ret_rescue));
    memset(ret_plan, 0, sizeof(*ret_plan));
    if (answer != PROBE_YES || h.size != SEALED_SIZE || !check_tables(&h, &info))
        return -EUCLEAN; /* something else than the seal is wrong with it */
    lower = h.blocks ? size_max(&h) - h.block_size + 1 : 0;
    if (h.blocks == 0)
        rescue_add(ret_rescue, RESCUE_EXACT, 0, "it has no blocks");
    rescue_add(ret_rescue, RESCUE_UPPER, size_max(&h), "blocks x block size");
    rescue_add(ret_rescue, RESCUE_LOWER, lower, "(blocks - 1) x block size");
    if (!size && h.blocks != 0)
        return -ENODATA;
    size = size ? size : &lower;
    if (*size < lower || *size > size_max(&h))
        return -ERANGE;
    put_le(word, *size, sizeof(word));
    return plan_add(ret_plan, h.size_at, word, h.b + h.size_at, sizeof(word));
}

const struct format format_vdi = {
    .name = "vdi",
    .probe = vdi_probe,
    .plan = vdi_plan,
    .rescue = vdi_rescue,
};
