/* listing.h: which files have a claim at all, for reads: what claims/ held when it was listed last,
 * for as long as its ctime says that nothing has changed since. */
#ifndef DISKGUARD_GUARD_LISTING_H
#define DISKGUARD_GUARD_LISTING_H

#include "guard/image.h"

/* NULL: out of memory. */
struct image_listing *image_listing_new(void);
void image_listing_free(struct image_listing *l);

/* claim_read(), for who only reads: of a file without a claim it mostly lists nothing. A claim is
 * made and freed by link(2) and rename(2) in claims/, and each sets its ctime: while that is what
 * it was before the listing, the same files have a claim (snapshot.c says when a ctime counts). Who
 * is about to write must not rest on a ctime, unless this host has the fence of the file already:
 * claim_read(). */
DG_MUST_CHECK int image_listing_claim(struct guard *g, const struct inode *i, struct claim *ret);
/* Had the file no claim when its shard had this ctime, which was just fetched (snapshot.h)? false:
 * it had one, or that must be asked: claim_read(). */
bool image_listing_none(struct guard *g, const struct inode *i, const struct timespec *ctime);
/* Has it neither a claim nor a mark (a held image needs it)? Asked freshly, by the ctimes of both
 * shards. false: it has, or that must be asked: claim_read(), image_chain_guards(). */
bool image_listing_unneeded(struct guard *g, const struct inode *i);

#endif
