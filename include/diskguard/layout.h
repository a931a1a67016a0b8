/* layout.h: names and limits of what diskguard keeps on a datastore. A contract with every other
 * host and version.
 *
 *   DATASTORE/.diskguard/            0700, hidden from every view
 *       datastore                    text, see src/core/store.h
 *       claims/<key>.<generation>    text, see record.h; key = inode number, 16 hex digits;
 *                                    generation = decimal
 *       tmp/                         records being written
 *       hosts/<host uuid>            text, see src/core/host.h
 *       marks/<key>-<key>.<generation>   which file (first key) a held image (second key,
 *                                        generation of its claim) needs, see src/core/dependency.h.
 *                                        Additive: made with the first one; versions that do not
 *                                        know it ignore it, and protect no file below an image
 *       readers/<key>-<host uuid>.<daemon>.<number>   which host, and which daemon of it (its
 *                                        random id, as in hosts/), reads an image and wants no
 *                                        writer beside it, see src/core/reader.h. Additive in the
 *                                        same way: versions that do not know it write what others
 *                                        read
 *       floor                        its size counts, see "Numbers" in src/core/claim.h; absent: 0
 */
#ifndef DISKGUARD_LAYOUT_H
#define DISKGUARD_LAYOUT_H

#include <stdint.h>

#define DG_DIR ".diskguard"
#define DG_FORMAT_VERSION 1

/* Offset of the fence byte: 2^62, beyond any file size of a supported file system and below the
 * largest lock offset of NLM4 and NFSv4 (2^63 - 1). Locks forwarded for users of the view end below
 * it. */
#define DG_FENCE_OFFSET ((int64_t)1 << 62)

#define DG_UUID_LEN 36 /* text form, RFC 4122 section 3, without the final NUL */

#endif
