/* layout.h: names and limits of what diskguard keeps on a datastore. A contract with every other
 * host and version.
 *
 *   DATASTORE/.diskguard/            0700, hidden from every view
 *       datastore                    text, see src/core/store.h
 *       claims/<shard>/<key>.<generation>   text, see record.h; key = inode number, 16 hex digits;
 *                                    generation = decimal
 *       tmp/                         records being written
 *       hosts/<host uuid>            text, see src/core/host.h
 *       marks/<shard>/<key>-<key>.<generation>   which file (first key) a held image (second key,
 *                                        generation of its claim) needs, see src/core/dependency.h
 *       readers/<shard>/<key>-<host uuid>.<daemon>.<number>   which host, and which daemon of it
 *                                    (its random id, as in hosts/), reads an image and wants
 *                                    no writer beside it, see src/core/reader.h
 *       floor                        its size counts, see "Numbers" in src/core/claim.h;
 *                                    absent: 0
 *
 * <shard> is the number of the key that the name begins with (shard_of() in src/core/shards.h), as
 * DG_SHARD_FORMAT: so one listing shows all names of a key, and few others. All shards are there
 * from the start, and none is ever removed: one that is missing is damage, never "no name". A
 * directory that is made when it is first needed would leave that open. An NFS client keeps "there
 * is none" until the directory above has another ctime, which counts in ticks: of two shards that
 * are made in one tick the second may stay unseen.
 *
 * Format 1 had the names in claims/, marks/ and readers/ themselves. `diskguardctl init --upgrade`
 * converts it, see src/core/upgrade.h. */
#ifndef DISKGUARD_LAYOUT_H
#define DISKGUARD_LAYOUT_H

#include <stdint.h>

#define DG_DIR ".diskguard"
#define DG_STORE_VERSION 2  /* of the layout, and of the file `datastore` */
#define DG_FORMAT_VERSION 1 /* of the texts in hosts/ and readers/ */

/* A power of two. 256: 100,000 images leave 390 names in each. More shards would make a start
 * dearer on NFS, which lists all of them. */
#define DG_SHARDS 256u
/* Of marks/ and readers/, which have names of what is held now alone. Their shard is the same
 * number without its low bits. */
#define DG_SHARDS_FEW 16u
#define DG_SHARD_FORMAT "%02x"

/* Keys are inode numbers: dense on ext4 and XFS, block numbers with a stride on OCFS2. So all bits
 * are mixed (the finalizer of MurmurHash3, which is a bijection), and the top ones count. */
static inline unsigned dg_shard(uint64_t key)
{
    key = (key ^ (key >> 33)) * UINT64_C(0xff51afd7ed558ccd);
    key = (key ^ (key >> 33)) * UINT64_C(0xc4ceb9fe1a85ec53);
    return (unsigned)((key ^ (key >> 33)) >> 56);
}

/* Offset of the fence byte: 2^62, beyond any file size of a supported file system and below the
 * largest lock offset of NLM4 and NFSv4 (2^63 - 1). Locks forwarded for users of the view end below
 * it. */
#define DG_FENCE_OFFSET ((int64_t)1 << 62)

#define DG_UUID_LEN 36 /* text form, RFC 4122 section 3, without the final NUL */

#endif
