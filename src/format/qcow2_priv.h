/* qcow2_priv.h: what qcow2.c (probe, plan) and qcow2_rescue.c (rescue, links) share. For these two
 * only. */
#ifndef DISKGUARD_FORMAT_QCOW2_PRIV_H
#define DISKGUARD_FORMAT_QCOW2_PRIV_H

#include "format/bytes.h"
#include "format/format.h"

/* spec, "Header": offsets */
#define QCOW2_MAGIC 0x514649fbu /* @0 */
#define OFF_VERSION 4u
#define OFF_BACKING_OFFSET 8u
#define OFF_BACKING_SIZE 16u
#define OFF_CLUSTER_BITS 20u
#define OFF_SIZE 24u
#define OFF_CRYPT_METHOD 32u
#define OFF_L1_SIZE 36u
#define OFF_L1_OFFSET 40u
#define OFF_REFTABLE_OFFSET 48u
#define OFF_REFTABLE_CLUSTERS 56u
#define OFF_SNAPSHOTS 60u
#define OFF_SNAPSHOTS_OFFSET 64u
#define OFF_INCOMPATIBLE 72u
#define OFF_AUTOCLEAR 88u
#define OFF_REFCOUNT_ORDER 96u
#define OFF_HEADER_LENGTH 100u
#define OFF_COMPRESSION_TYPE 104u
#define V2_HEADER_LENGTH 72u
#define V3_HEADER_LENGTH_MIN 104u
#define BACKING_SIZE_MAX 1023u
#define CRYPT_MAX 2u
#define CRYPT_LUKS 2u
#define COMPRESSION_MAX 1u
#define REFCOUNT_ORDER_MAX 6u

/* spec, incompatible_features and autoclear_features */
#define INCOMPAT_DATA_FILE (1ull << 2)
#define INCOMPAT_COMPRESSION (1ull << 3)
#define INCOMPAT_EXTENDED_L2 (1ull << 4)
#define INCOMPAT_KNOWN 0x1full
#define AUTOCLEAR_BITMAPS (1ull << 0)
#define AUTOCLEAR_RAW_DATA (1ull << 1)

/* spec, "Header extensions" and "Feature name table" */
#define EXT_END 0u
#define EXT_BACKING_FORMAT 0xe2792acau
#define EXT_FEATURE_NAMES 0x6803f857u
#define EXT_BITMAPS 0x23852875u
#define EXT_CRYPTO 0x0537be77u
#define EXT_DATA_FILE 0x44415441u
#define EXT_HEAD 8u
#define ROW_LEN 48u
#define ROW_NAME 2u
#define ROW_NAME_LEN 46u
#define FEATURE_INCOMPATIBLE 0u
#define BITMAPS_LEN 24u
#define CRYPTO_LEN 16u

/* Limits of QEMU, block/qcow2.h and block/qcow2-bitmap.c (7.2); BACKING_FORMAT_SIZE is the size of
 * BlockDriverState.backing_format */
#define CLUSTER_BITS_MIN 9u
#define CLUSTER_BITS_MAX 21u
#define EXTENDED_L2_CLUSTER_BITS_MIN 14u /* spec, cluster_bits */
#define L1_BYTES_MAX (32u << 20)
#define REFTABLE_BYTES_MAX (8u << 20)
#define SNAPSHOTS_MAX 65536u
#define SNAPSHOT_HEADER 40u
#define BITMAPS_MAX 65535u
#define BITMAP_DIRECTORY_MAX (1024ull * BITMAPS_MAX)
#define BACKING_FORMAT_SIZE 16u

/* Our mark. The spec reserves incompatible bits 5 to 63, and will use bit 63 last. */
#define SEALED_SIZE 0x5345414c45440000ull /* "SEALED\0\0" */
#define SEALED_BIT 63u
#define SEALED_INCOMPAT (1ull << SEALED_BIT)
/* The size where bit 63 is the image's own: a feature of somebody else's, which a rescue must not
 * clear. */
#define SEALED_SIZE_BIT 0x5345414c45440001ull
#define SEALED_WORD "SEALED"
#define SEALED_ROW_MAX_HOLDER 17 /* ROW_NAME_LEN - strlen("SEALED  size=0123456789abcdef") */

struct header_view {
    const uint8_t *p; /* n bytes: min(file size, FORMAT_REACH) */
    size_t n;
    uint32_t version, cluster_bits, header_length;
    uint64_t cluster_size;
    uint64_t size, incompatible, autoclear; /* feature words are 0 in version 2 */
    uint64_t backing_offset;
    uint64_t ext_end; /* where header extensions must end */
};

struct extension {
    uint32_t type, len;
    uint64_t off; /* of its data */
};

enum step { STEP_EXT, STEP_DONE, STEP_BROKEN };

/* Big-endian at off; bytes beyond what is visible are zero. */
uint64_t qcow2_get64(const struct header_view *h, size_t off);
uint32_t qcow2_get32(const struct header_view *h, size_t off);

/* Loads the header and decodes what all checks need; values are not checked yet. YES, NO or MORE.
 */
enum probe qcow2_load(struct excerpt *v, struct header_view *h);
/* The extension at *pos (start with header_length). DONE: END, the end of the area, or of what is
 * visible. */
enum step qcow2_next_extension(const struct header_view *h, uint64_t *pos, struct extension *ret);
/* The feature name table, where it is wholly visible; the last one in the header, as QEMU takes it.
 * Number of rows, 0: none. */
unsigned qcow2_feature_names(const struct header_view *h, const uint8_t **ret_rows);
/* Is it one of the sizes that a seal writes? */
bool qcow2_size_is_seal(uint64_t size);
/* log2 of the bytes that one L1 entry maps; cluster_bits must be checked. */
unsigned qcow2_l1_shift(const struct header_view *h);
/* All checks of the spec but for the version; false: info->why says which. */
bool qcow2_check(const struct header_view *h, struct format_info *info);

int qcow2_rescue(struct excerpt *v, const uint64_t *size, struct rescue *ret_rescue,
                 struct plan *ret_plan);
int qcow2_links(struct excerpt *v, int (*fn)(void *arg, const struct format_link *link), void *arg);

#endif
