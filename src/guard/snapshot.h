/* snapshot.h: what is known of a file that this host does not hold: snapshot.c says why it counts.
 */
#ifndef DISKGUARD_GUARD_SNAPSHOT_H
#define DISKGUARD_GUARD_SNAPSHOT_H

#include "guard/image.h"

/* Notes a ctime that was just fetched. true: it has been known for so long that a change from now
 * on has another one. */
bool image_stamp_note(struct image_stamp *s, const struct timespec *ctime, uint64_t now);
/* Fresh attributes of the shard of claims/ that the file's claims are in. 0 or -errno. */
DG_MUST_CHECK int image_claims_stat(const struct guard *g, const struct inode *i, struct stat *ret);
bool image_same_time(const struct timespec *a, const struct timespec *b);
/* Before claim and header are read; what cannot be fetched makes a look that counts for nothing.
 * *ret_file (may be NULL): the file's attributes, of a look that is valid. */
void image_snapshot_begin(struct guard *g, struct image *img, struct image_snapshot *ret,
                          struct stat *ret_file) EXCLUDES(img->lock);
/* After they were: the claim after the header, or before and after it; or NULL, there was none when
 * the look began (image_listing_none()). Remembers it, unless this host holds the image meanwhile.
 */
void image_snapshot_end(struct image *img, struct image_snapshot *look, const struct header *h,
                        const struct claim *c) EXCLUDES(img->lock);
/* Where bytes can be sealed, by both. */
struct format_zone image_snapshot_zone(const struct header *h, const struct claim *c);
bool image_zone_touched(const struct format_zone *zone, uint64_t off, uint64_t len);
/* In image_known.hold: by our readers, not by a hold of this host. */
#define IMAGE_BY_READERS 0x80000000u
/* Does this look say that nothing is sealed in this range? Whether it still counts,
 * image_revalidate() says after the read. */
bool image_snapshot_covers(const struct image *img, const struct image_snapshot *look, uint64_t off,
                           uint64_t len);
/* Before anything else about a read that may go straight to the datastore, the look at the zone
 * (image_is_data) too: what is known of the file. */
struct image_known {
    /* not 0: this host holds the image, or its readers keep everybody from claiming it; as long as
     * the number is the same it has been so */
    unsigned hold;
    unsigned zones;             /* and as long as this one is, the zone has not become wider */
    struct image_snapshot look; /* where hold is 0: the last one */
};
struct image_known image_known_now(const struct handle *h);
/* And afterwards: how many of the len bytes at off cannot be sealed ones (snapshot.c); all the
 * others must be forgotten, and read by image_read(). Asks the storage for attributes; where hold
 * is not 0 and still true, not even that. */
uint64_t image_revalidate(struct guard *g, const struct handle *h, const struct image_known *began,
                          uint64_t off, uint64_t len);
/* No header that could be sealed: plain, or a partition table. */
bool image_is_headless(const struct header *h);
/* Was there ever anything to be looked at beyond the start of the file? */
bool image_zone_is_far(const struct image *img);

#endif
