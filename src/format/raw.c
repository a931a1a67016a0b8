/* raw.c: a disk image without a header of its own, known by the partition table in its first
 * sector.
 *
 * Nothing in such a file can refuse an opener, so its plan has no extents: the claim alone guards
 * it. Raw images without a partition table are found by their name (the daemon's `raw-pattern`),
 * not here. */
#include "format/bytes.h"
#include "format/format.h"

#include <string.h>

/* UEFI specification 2.10, section 5.2.1, table 5.1: legacy master boot record. The protective one
 * of a GPT disk (5.2.3) has the same form: one entry of type 0xEE that starts at block 1. */
#define MBR_SIZE 512u
#define MBR_ENTRIES 446u
#define MBR_ENTRY 16u
#define MBR_SIGNATURE 510u
#define ENTRY_STATUS 0u
#define ENTRY_TYPE 4u
#define ENTRY_START 8u
#define ENTRY_LENGTH 12u

static bool entry_is_empty(const uint8_t *e)
{
    for (unsigned i = 0; i < MBR_ENTRY; i++)
        if (e[i] != 0)
            return false;
    return true;
}

static bool entry_is_sane(const uint8_t *e)
{
    return (e[ENTRY_STATUS] == 0x00 || e[ENTRY_STATUS] == 0x80) && e[ENTRY_TYPE] != 0 &&
           le32(e + ENTRY_START) != 0 && le32(e + ENTRY_LENGTH) != 0;
}

/* The signature alone is no proof: every FAT and NTFS boot sector ends in it too, with code or text
 * where the entries would be. Positions and lengths are not compared with the file's size: block
 * sizes differ, and a file that is being copied grows. */
static enum probe raw_probe(struct excerpt *v, struct format_info *ret_info)
{
    const uint8_t *p;
    unsigned used = 0;

    if (v->file_size < MBR_SIZE)
        return PROBE_NO;
    p = view_get(v, 0, MBR_SIZE);
    if (!p)
        return PROBE_MORE;
    if (p[MBR_SIGNATURE] != 0x55 || p[MBR_SIGNATURE + 1] != 0xaa)
        return PROBE_NO;
    for (const uint8_t *e = p + MBR_ENTRIES; e < p + MBR_SIGNATURE; e += MBR_ENTRY) {
        if (entry_is_empty(e))
            continue;
        if (!entry_is_sane(e))
            return PROBE_NO;
        used++;
    }
    if (used == 0)
        return PROBE_NO;
    ret_info->virtual_size = v->file_size;
    return PROBE_YES;
}

static int raw_plan(struct excerpt *v, const struct seal_policy *policy, struct plan *ret_plan)
{
    (void)v;
    (void)policy;
    memset(ret_plan, 0, sizeof(*ret_plan));
    return 0;
}

const struct format format_raw = {
    .name = "raw",
    .weak = true,
    .probe = raw_probe,
    .plan = raw_plan,
};
