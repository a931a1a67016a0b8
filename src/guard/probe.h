/* probe.h: what a file is: plain, or an image. */
#ifndef DISKGUARD_GUARD_PROBE_H
#define DISKGUARD_GUARD_PROBE_H

#include "guard/image.h"

/* Reads and identifies the header as it stands. -EACCES, -EPERM: the daemon itself may not read the
 * file, so nobody may do anything with it that would need to know what it is; logged once for each
 * file. */
DG_MUST_CHECK int image_header(struct guard *g, struct inode *i, struct header *ret);
/* By content or, for a raw image, by name. */
bool image_is_image(struct guard *g, struct inode *i, const struct header *h);
/* Is the file of a handle that is being opened guarded, by its header, its name or a claim? open.c.
 */
DG_MUST_CHECK int image_guarded_inode(struct guard *g, struct inode *i, bool *ret);
DG_MUST_CHECK int image_guarded_file(struct guard *g, struct handle *h, bool *ret);

#endif
