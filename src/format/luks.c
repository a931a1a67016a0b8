/* luks.c: LUKS encrypted volumes, version 1 (LUKS1 On-Disk Format Specification 1.2.3) and 2 (LUKS2
 * On-Disk Format Specification 1.1.1); "spec" below. QEMU's "luks" driver opens version 1 only,
 * cryptsetup both.
 *
 * What differs from a naive reading:
 *   - The sha256 that a LUKS2 header carries over itself and its JSON area is NOT checked (no
 *     cryptography here), nor is the JSON area but for the offset of its first segment. Everything
 *     else in the binary headers is.
 *   - LUKS2: a secondary header that is absent or all zero passes (cryptsetup opens such a volume,
 *     and luksFormat writes the primary one first); its place is then not sealed. The sequence ids
 *     may differ by any number: an update that was cut leaves that, and cryptsetup opens it.
 *   - LUKS1: payload offset 0 is a detached header. A file that ends before its payload is one that
 *     is being created.
 *
 * The seal of LUKS1 is one extent, so there are no prefixes: hash name and payload offset are
 * neighbours in the first sector. The payload offset becomes 0xffffffff, which stops QEMU ("Could
 * not refresh total sector count"), but not cryptsetup: it warns and luksAddKey and luksKillSlot
 * write to the file (measured, 2.6.1). So the hash name becomes one that no tool has, which both
 * refuse before all else and `repair` does not undo: "SEALED:NAME:PAYLOAD", with which the seal is
 * undone exactly without a record. Neither magic nor version: QEMU would find a raw image then.
 *
 * The seal of LUKS2: version := 0x5ea1 in both headers, the primary one first and undone last: with
 * that every cryptsetup command says "Unsupported LUKS version". While only that one stands, a
 * command that is given `--type luks2`, and `config`, find the secondary header and write the
 * primary one back from it; nothing can be done about that (every first write to one of two copies
 * is repairable, and a broken secondary one beside a sound primary one would not be refused at
 * all). With both they are refused, too. QEMU does not know LUKS2: probed, it is raw to it with and
 * without the seal. SEAL_SIZE: there is no size field, the seal is the same. */
#include "format/bytes.h"
#include "format/format.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define MAGIC "LUKS\xba\xbe"
#define MAGIC_SECONDARY "SKUL\xba\xbe"
#define MAGIC_LEN 6u
#define OFF_VERSION 6u
#define SECTOR 512u

/* LUKS1 spec, figure 1 "PHDR layout" and figure 2 "key slot layout"; QEMU crypto/block-luks.c */
#define LUKS1_LEN 592u
#define OFF_CIPHER_NAME 8u
#define OFF_CIPHER_MODE 40u
#define OFF_HASH 72u
#define NAME_LEN 32u
#define OFF_PAYLOAD 104u /* sectors */
#define OFF_KEY_BYTES 108u
#define OFF_DIGEST_ITERATIONS 164u
#define OFF_UUID 168u
#define UUID_LEN 40u
#define OFF_SLOTS 208u
#define SLOTS 8u
#define SLOT_LEN 48u
#define SLOT_ITERATIONS 4u
#define SLOT_MATERIAL 40u /* sectors */
#define SLOT_STRIPES 44u
#define SLOT_ENABLED 0x00ac71f3u
#define SLOT_DISABLED 0x0000deadu
#define STRIPES 4000u
#define MATERIAL_MIN 2u /* sectors: those of the header itself */
#define KEY_BYTES_MAX 1024u

/* LUKS2 spec, section 2.1 "Binary header" */
#define LUKS2_LEN 4096u
#define OFF_HDR_SIZE 8u
#define OFF_LABEL 24u
#define OFF_CHECKSUM_NAME 72u
#define OFF_UUID2 168u /* the same as in LUKS1 */
#define OFF_SUBSYSTEM 208u
#define LABEL_LEN 48u
#define OFF_HDR_OFFSET 256u
#define HDR_SIZE_MIN (16u << 10)
#define HDR_SIZE_MAX (4u << 20)

/* Ours. */
#define SEALED_PAYLOAD 0xffffffffu
#define SEALED_VERSION 0x5ea1u
#define SEALED_HASH "SEALED:" /* NAME:PAYLOAD, 8 digits */
#define PAYLOAD_DIGITS 8u
#define SEAL1_LEN (OFF_PAYLOAD + 4 - OFF_HASH) /* hash name and payload offset */

struct luks {
    size_t n; /* bytes of p */
    /* the primary header: LUKS1_LEN or LUKS2_LEN bytes, version 0: those that are there */
    const uint8_t *p;
    uint32_t version;         /* of the layout, also when sealed: 1, 2; 0: neither */
    uint64_t hdr_size;        /* LUKS2: checked, else 0 */
    const uint8_t *secondary; /* LUKS2_LEN bytes at hdr_size, NULL: outside the file */
    bool has_secondary;       /* it carries its magic */
};

/* ---- reading ---- */

static bool is_hdr_size(uint64_t n)
{
    return n >= HDR_SIZE_MIN && n <= HDR_SIZE_MAX && (n & (n - 1)) == 0;
}

static bool is_zero(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i])
            return false;
    return true;
}

/* Checks a text field: NUL-terminated, printable; bytes behind the NUL may be anything. */
static bool is_text(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n && p[i]; i++)
        if (p[i] < 0x20 || p[i] >= 0x7f)
            return false;
    return memchr(p, '\0', n) != NULL;
}

/* Loads what all other functions need. The secondary header is looked for whatever the version of
 * the primary one is: its mark counts as well. */
static enum probe luks_load(struct excerpt *v, struct luks *l)
{
    size_t n = v->file_size < FORMAT_REACH ? (size_t)v->file_size : FORMAT_REACH;
    uint32_t version;

    memset(l, 0, sizeof(*l));
    if (n < MAGIC_LEN + 2)
        return PROBE_NO;
    l->p = view_get(v, 0, MAGIC_LEN);
    if (!l->p)
        return PROBE_MORE;
    if (memcmp(l->p, MAGIC, MAGIC_LEN) != 0)
        return PROBE_NO;
    l->n = n;
    l->p = view_get(v, 0, n);
    if (!l->p)
        return PROBE_MORE;
    version = be16(l->p + OFF_VERSION);
    if (version == 1) {
        l->version = n < LUKS1_LEN ? 0 : 1;
        return PROBE_YES;
    }
    if (n < LUKS2_LEN)
        return PROBE_YES;
    l->version = version == 2 || version == SEALED_VERSION ? 2 : 0;
    if (!is_hdr_size(be64(l->p + OFF_HDR_SIZE)))
        return PROBE_YES;
    l->hdr_size = be64(l->p + OFF_HDR_SIZE);
    if (v->file_size < l->hdr_size + LUKS2_LEN)
        return PROBE_YES;
    l->secondary = view_get(v, l->hdr_size, LUKS2_LEN);
    if (!l->secondary)
        return PROBE_MORE;
    l->has_secondary = memcmp(l->secondary, MAGIC_SECONDARY, MAGIC_LEN) == 0;
    return PROBE_YES;
}

static bool secondary_is_sealed(const struct luks *l)
{
    return l->has_secondary && be16(l->secondary + OFF_VERSION) == SEALED_VERSION;
}

static bool luks_is_sealed(const struct luks *l, struct format_info *info)
{
    bool first, second;
    const char *by;

    if (be16(l->p + OFF_VERSION) == 1) {
        if (l->n < OFF_PAYLOAD + 4)
            return false;
        first = be32(l->p + OFF_PAYLOAD) == SEALED_PAYLOAD;
        second = memcmp(l->p + OFF_HASH, SEALED_HASH, strlen(SEALED_HASH)) == 0;
        by = first && second ? "its hash name and payload offset"
             : first         ? "its payload offset"
                             : "its hash name";
    } else {
        first = be16(l->p + OFF_VERSION) == SEALED_VERSION;
        second = secondary_is_sealed(l);
        by = first && second ? "the version in both headers"
             : first         ? "the version in its primary header"
                             : "the version in its secondary header";
    }
    if (first || second)
        snprintf(info->why, sizeof(info->why), "sealed by %s", by);
    return first || second;
}

/* ---- LUKS1 ---- */

static bool check_text(const uint8_t *p, size_t n, bool may_be_empty, const char *name,
                       struct format_info *info)
{
    if (!is_text(p, n) || (!may_be_empty && p[0] == '\0'))
        return format_lies(info, "%s is empty, not terminated or no text", name);
    return true;
}

/* Sectors of the key material of one slot. */
static uint64_t material_sectors(const uint8_t *header)
{
    return ((uint64_t)be32(header + OFF_KEY_BYTES) * STRIPES + SECTOR - 1) / SECTOR;
}

static bool check_slots(const uint8_t *header, struct format_info *info)
{
    uint64_t payload = be32(header + OFF_PAYLOAD), sectors = material_sectors(header);

    for (unsigned i = 0; i < SLOTS; i++) {
        const uint8_t *slot = header + OFF_SLOTS + i * SLOT_LEN;
        uint64_t start = be32(slot + SLOT_MATERIAL);

        if (be32(slot) != SLOT_ENABLED && be32(slot) != SLOT_DISABLED)
            return format_lies(info, "key slot %u has the state 0x%08" PRIx32, i, be32(slot));
        if (be32(slot) == SLOT_ENABLED && be32(slot + SLOT_ITERATIONS) == 0)
            return format_lies(info, "key slot %u has no iterations", i);
        if (be32(slot + SLOT_STRIPES) != STRIPES)
            return format_lies(info, "key slot %u has %" PRIu32 " stripes, not %u", i,
                               be32(slot + SLOT_STRIPES), STRIPES);
        if (start < MATERIAL_MIN)
            return format_lies(info, "key slot %u lies over the header", i);
        if (payload && start + sectors > payload)
            return format_lies(info, "key slot %u at sector %" PRIu64 " reaches into the payload",
                               i, start);
        for (unsigned k = 0; k < i; k++) {
            uint64_t other = be32(header + OFF_SLOTS + k * SLOT_LEN + SLOT_MATERIAL);
            if (start < other + sectors && other < start + sectors)
                return format_lies(info, "key slots %u and %u overlap", k, i);
        }
    }
    return true;
}

static bool check_luks1(const uint8_t *header, struct format_info *info)
{
    uint32_t key_bytes = be32(header + OFF_KEY_BYTES);

    if (!check_text(header + OFF_CIPHER_NAME, NAME_LEN, false, "cipher name", info) ||
        !check_text(header + OFF_CIPHER_MODE, NAME_LEN, false, "cipher mode", info) ||
        !check_text(header + OFF_HASH, NAME_LEN, false, "hash name", info) ||
        !check_text(header + OFF_UUID, UUID_LEN, true, "uuid", info))
        return false;
    if (key_bytes == 0 || key_bytes > KEY_BYTES_MAX)
        return format_lies(info, "key bytes %" PRIu32 " are outside 1..%u", key_bytes,
                           KEY_BYTES_MAX);
    if (be32(header + OFF_DIGEST_ITERATIONS) == 0)
        return format_lies(info, "the master key digest has no iterations");
    return check_slots(header, info);
}

/* ---- LUKS2 ---- */

static bool check_header2(const uint8_t *p, const char *which, uint64_t offset,
                          struct format_info *info)
{
    if (be16(p + OFF_VERSION) != 2)
        return format_lies(info, "the %s header has version %u", which, be16(p + OFF_VERSION));
    if (be64(p + OFF_HDR_OFFSET) != offset)
        return format_lies(info, "the %s header says that it is at %" PRIu64, which,
                           be64(p + OFF_HDR_OFFSET));
    if (memchr(p + OFF_LABEL, '\0', LABEL_LEN) == NULL ||
        memchr(p + OFF_SUBSYSTEM, '\0', LABEL_LEN) == NULL)
        return format_lies(info, "label or subsystem of the %s header is not terminated", which);
    return check_text(p + OFF_CHECKSUM_NAME, NAME_LEN, false, "checksum algorithm", info) &&
           check_text(p + OFF_UUID2, UUID_LEN, true, "uuid", info);
}

static bool check_luks2(const struct luks *l, struct format_info *info)
{
    if (l->hdr_size == 0)
        return format_lies(info, "hdr_size %" PRIu64 " is none of 16 KiB to 4 MiB",
                           be64(l->p + OFF_HDR_SIZE));
    if (!check_header2(l->p, "primary", 0, info))
        return false;
    if (!l->secondary || is_zero(l->secondary, LUKS2_LEN))
        return true;
    if (!l->has_secondary)
        return format_lies(info, "the secondary header at %" PRIu64 " has no magic", l->hdr_size);
    if (be64(l->secondary + OFF_HDR_SIZE) != l->hdr_size)
        return format_lies(
            info, "hdr_size %" PRIu64 " of the secondary header is not that of the primary one",
            be64(l->secondary + OFF_HDR_SIZE));
    if (!check_header2(l->secondary, "secondary", l->hdr_size, info))
        return false;
    if (memcmp(l->p + OFF_UUID2, l->secondary + OFF_UUID2, UUID_LEN) != 0)
        return format_lies(info, "the two headers have different uuids");
    return true;
}

/* The first segment's offset in the JSON area ("segments":{"0":{..."offset":"N"...), as cryptsetup
 * writes it: without blanks. 0: not found. */
static uint64_t segment_offset(const uint8_t *json, size_t n)
{
    static const char segments[] = "\"segments\":{", offset[] = "\"offset\":\"";
    const uint8_t *p = memmem(json, n, segments, strlen(segments)), *end = json + n;
    uint64_t value = 0;

    p = p ? memmem(p, (size_t)(end - p), offset, strlen(offset)) : NULL;
    for (p = p ? p + strlen(offset) : end; p < end && *p >= '0' && *p <= '9'; p++) {
        if (value > UINT64_MAX / 10 - 1)
            return 0;
        value = value * 10 + (*p - (uint64_t)'0');
    }
    return value;
}

/* ---- probe ---- */

/* Where the payload begins; false: not loaded. */
static bool payload_offset(struct excerpt *v, const struct luks *l, uint64_t *ret)
{
    const uint8_t *json;

    if (l->version == 1) {
        *ret = (uint64_t)be32(l->p + OFF_PAYLOAD) * SECTOR;
        return true;
    }
    *ret = 2 * l->hdr_size; /* at the least */
    if (v->file_size < l->hdr_size)
        return true;
    json = view_get(v, LUKS2_LEN, l->hdr_size - LUKS2_LEN);
    if (json && segment_offset(json, l->hdr_size - LUKS2_LEN) > *ret)
        *ret = segment_offset(json, l->hdr_size - LUKS2_LEN);
    return json != NULL;
}

static enum probe luks_probe(struct excerpt *v, struct format_info *ret_info)
{
    struct luks l;
    enum probe answer = luks_load(v, &l);
    uint64_t payload;

    if (answer != PROBE_YES)
        return answer;
    if (l.hdr_size)
        ret_info->zone.head = l.hdr_size + LUKS2_LEN;
    /* Runs before all checks: a header with our marks must never count as one that is merely
     * broken. */
    if (luks_is_sealed(&l, ret_info))
        return PROBE_SEALED;
    if (l.version == 0) {
        format_lies(ret_info, "version %u is neither 1 nor 2, or the header is cut",
                    be16(l.p + OFF_VERSION));
        return PROBE_LIES;
    }
    if (!(l.version == 1 ? check_luks1(l.p, ret_info) : check_luks2(&l, ret_info)))
        return PROBE_LIES;
    if (!payload_offset(v, &l, &payload))
        return PROBE_MORE;
    ret_info->virtual_size = payload && v->file_size > payload ? v->file_size - payload : 0;
    return PROBE_YES;
}

/* ---- plan ---- */

/* No tool has a longer name. For such a one the hash name is sealed, and nothing in the file undoes
 * that. */
#define HASH_MAX (NAME_LEN - 1 - (sizeof(SEALED_HASH) - 1) - 1 - PAYLOAD_DIGITS)

static void make_seal1(const uint8_t *header, uint8_t ret[SEAL1_LEN])
{
    const char *hash = (const char *)header + OFF_HASH;
    size_t len = strnlen(hash, NAME_LEN);
    bool fits = len <= HASH_MAX && is_zero(header + OFF_HASH + len, NAME_LEN - len);
    char text[NAME_LEN + 1];

    snprintf(text, sizeof(text), SEALED_HASH "%.*s:%08" PRIx32, (int)HASH_MAX, hash,
             be32(header + OFF_PAYLOAD));
    memset(ret, 0, SEAL1_LEN);
    memcpy(ret, text, fits ? strlen(text) : strlen(SEALED_HASH));
    put_be(ret + OFF_PAYLOAD - OFF_HASH, SEALED_PAYLOAD, 4);
}

static int luks_plan(struct excerpt *v, const struct seal_policy *policy, struct plan *ret_plan)
{
    uint8_t seal1[SEAL1_LEN], version[2];
    struct luks l;
    enum probe answer = luks_load(v, &l);
    int r;

    (void)policy;
    if (answer != PROBE_YES)
        return answer == PROBE_MORE ? -EAGAIN : -EUCLEAN;
    if (l.version == 0)
        return -EUCLEAN;
    memset(ret_plan, 0, sizeof(*ret_plan));
    if (l.version == 1) {
        make_seal1(l.p, seal1);
        return plan_add(ret_plan, OFF_HASH, l.p + OFF_HASH, seal1, SEAL1_LEN);
    }
    put_be(version, SEALED_VERSION, sizeof(version));
    r = plan_add(ret_plan, OFF_VERSION, l.p + OFF_VERSION, version, sizeof(version));
    if (r == 0 && l.has_secondary)
        r = plan_add(ret_plan, l.hdr_size + OFF_VERSION, l.secondary + OFF_VERSION, version,
                     sizeof(version));
    return r;
}

/* ---- rescue ---- */

/* Our hash text -> what stood there. */
static bool former_luks1(const uint8_t *header, uint8_t ret[SEAL1_LEN])
{
    const uint8_t *text = header + OFF_HASH;
    size_t len = strnlen((const char *)text, NAME_LEN), word = strlen(SEALED_HASH);
    uint64_t payload;

    if (len < word + 1 + 1 + PAYLOAD_DIGITS || len >= NAME_LEN ||
        memcmp(text, SEALED_HASH, word) != 0 || text[len - PAYLOAD_DIGITS - 1] != ':' ||
        !is_zero(text + len, NAME_LEN - len) ||
        !hex_number(text + len - PAYLOAD_DIGITS, PAYLOAD_DIGITS, &payload))
        return false;
    memset(ret, 0, SEAL1_LEN);
    memcpy(ret, text + word, len - word - 1 - PAYLOAD_DIGITS);
    put_be(ret + OFF_PAYLOAD - OFF_HASH, payload, 4);
    return true;
}

static uint64_t size_behind(const struct excerpt *v, uint64_t payload)
{
    return payload && v->file_size > payload ? v->file_size - payload : 0;
}

/* The payload offset is sealed and the hash name is not. Only this is known: the key material ends
 * before the payload. */
static int guess_luks1(struct excerpt *v, const struct luks *l, const uint64_t *size,
                       struct rescue *rescue, uint8_t former[SEAL1_LEN])
{
    uint64_t end = 0, sectors = material_sectors(l->p);

    for (unsigned i = 0; i < SLOTS; i++) {
        uint64_t start = be32(l->p + OFF_SLOTS + i * SLOT_LEN + SLOT_MATERIAL);
        end = start + sectors > end ? start + sectors : end;
    }
    if (end * SECTOR > v->file_size)
        return -EUCLEAN;
    uint64_t upper = size_behind(v, end * SECTOR);
    rescue_add(rescue, RESCUE_UPPER, upper, "file size less all key material");
    if (!size)
        return -ENODATA;
    if (*size > upper || (v->file_size - *size) % SECTOR != 0 ||
        (v->file_size - *size) / SECTOR >= SEALED_PAYLOAD)
        return -ERANGE;
    memcpy(former, l->p + OFF_HASH, SEAL1_LEN);
    put_be(former + OFF_PAYLOAD - OFF_HASH, (v->file_size - *size) / SECTOR, 4);
    return 0;
}

static int rescue_luks1(struct excerpt *v, const struct luks *l, const uint64_t *size,
                        struct rescue *rescue, struct plan *plan)
{
    uint8_t former[SEAL1_LEN], header[LUKS1_LEN];
    struct format_info info;
    bool exact = former_luks1(l->p, former);
    int r = 0;

    if (!exact && memcmp(l->p + OFF_HASH, SEALED_HASH, strlen(SEALED_HASH)) == 0)
        return -EUCLEAN; /* the hash name cannot be recovered */
    if (!exact)
        r = guess_luks1(v, l, size, rescue, former);
    if (r < 0)
        return r;
    memcpy(header, l->p, LUKS1_LEN);
    memcpy(header + OFF_HASH, former, SEAL1_LEN);
    if (!check_luks1(header, &info))
        return -EUCLEAN;
    if (exact)
        rescue_add(rescue, RESCUE_EXACT,
                   size_behind(v, (uint64_t)be32(header + OFF_PAYLOAD) * SECTOR),
                   "payload offset in the hash name");
    return plan_add(plan, OFF_HASH, former, l->p + OFF_HASH, SEAL1_LEN);
}

static int rescue_luks2(struct excerpt *v, const struct luks *l, struct rescue *rescue,
                        struct plan *plan)
{
    uint8_t first[LUKS2_LEN], second[LUKS2_LEN], version[2];
    struct luks undone = *l;
    struct format_info info;
    uint64_t payload;
    int r = 0;

    put_be(version, 2, sizeof(version));
    memcpy(first, l->p, LUKS2_LEN);
    undone.p = first;
    if (be16(first + OFF_VERSION) == SEALED_VERSION)
        memcpy(first + OFF_VERSION, version, sizeof(version));
    if (secondary_is_sealed(l)) {
        memcpy(second, l->secondary, LUKS2_LEN);
        memcpy(second + OFF_VERSION, version, sizeof(version));
        undone.secondary = second;
    }
    if (!check_luks2(&undone, &info))
        return -EUCLEAN;
    if (!payload_offset(v, l, &payload))
        return -EAGAIN;
    rescue_add(rescue, RESCUE_EXACT, size_behind(v, payload), "segment in the JSON area");
    if (be16(l->p + OFF_VERSION) == SEALED_VERSION)
        r = plan_add(plan, OFF_VERSION, version, l->p + OFF_VERSION, sizeof(version));
    if (r == 0 && undone.secondary != l->secondary)
        r = plan_add(plan, l->hdr_size + OFF_VERSION, version, l->secondary + OFF_VERSION,
                     sizeof(version));
    return r;
}

/* The size is not sealed. A size that a person gives must be that of the file without its header.
 */
static int luks_rescue(struct excerpt *v, const uint64_t *size, struct rescue *ret_rescue,
                       struct plan *ret_plan)
{
    struct luks l;
    enum probe answer = luks_load(v, &l);
    int r = -EUCLEAN;

    if (answer == PROBE_MORE)
        return -EAGAIN;
    memset(ret_rescue, 0, sizeof(*ret_rescue));
    memset(ret_plan, 0, sizeof(*ret_plan));
    if (answer == PROBE_YES && l.version == 1)
        r = rescue_luks1(v, &l, size, ret_rescue, ret_plan);
    else if (answer == PROBE_YES && l.version == 2)
        r = rescue_luks2(v, &l, ret_rescue, ret_plan);
    if (r == 0 && size && ret_rescue->candidate[0].kind == RESCUE_EXACT &&
        *size != ret_rescue->candidate[0].size)
        r = -ERANGE;
    if (r < 0)
        ret_plan->n = 0;
    return r;
}

const struct format format_luks = {
    .name = "luks",
    .probe = luks_probe,
    .plan = luks_plan,
    .rescue = luks_rescue,
};
