/* iso.c: ISO 9660 images (ECMA-119, 4th edition, 8.4 "Primary Volume Descriptor"), known by the
 * first volume descriptor at sector 16.
 *
 * Hypervisors do not look at it: QEMU opens an ISO as raw, its size is the file's length, also when
 * the descriptor is zeroed (measured). Nothing in such a file can refuse an opener, so its plan has
 * no extents: the claim alone guards it. The descriptor lies beyond FORMAT_REACH, so zone.head
 * covers it: of an image that is held, a write there is looked at. Its fields are not judged beyond
 * what identifies it: tools differ, and nothing depends on them. */
#include "format/format.h"

#include <string.h>

/* ECMA-119 6.2.1 (logical sector 2048 bytes), 6.7.1 (the data area begins at sector 16), 8.4.1
 * to 8.4.3 */
#define DESCRIPTOR 0x8000u
#define DESCRIPTOR_LEN 2048u
#define HEAD_LEN 7u
#define OFF_IDENTIFIER 1u
#define OFF_VERSION 6u
#define TYPE_PRIMARY 1u
#define VERSION 1u

static enum probe iso_probe(struct excerpt *v, struct format_info *ret_info)
{
    const uint8_t *p;

    if (v->file_size < DESCRIPTOR + DESCRIPTOR_LEN)
        return PROBE_NO;
    p = view_get(v, DESCRIPTOR, HEAD_LEN);
    if (!p)
        return PROBE_MORE;
    if (p[0] != TYPE_PRIMARY || memcmp(p + OFF_IDENTIFIER, "CD001", 5) != 0 ||
        p[OFF_VERSION] != VERSION)
        return PROBE_NO;
    ret_info->virtual_size = v->file_size;
    ret_info->zone.head = DESCRIPTOR + DESCRIPTOR_LEN;
    return PROBE_YES;
}

static int iso_plan(struct excerpt *v, const struct seal_policy *policy, struct plan *ret_plan)
{
    (void)v;
    (void)policy;
    memset(ret_plan, 0, sizeof(*ret_plan));
    return 0;
}

const struct format format_iso = {
    .name = "iso",
    .weak = true,
    .probe = iso_probe,
    .plan = iso_plan,
};
