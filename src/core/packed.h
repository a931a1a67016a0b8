/* packed.h: a record in as many bytes as it has. A struct record has room for the longest path and
 * the largest plan, 42 KiB, and most records have under one. A daemon that holds 20,000 images
 * keeps each of their records this way while nobody works on it.
 *
 * Pure, and in memory alone: what other programs see is the text of record.h. */
#ifndef DISKGUARD_CORE_PACKED_H
#define DISKGUARD_CORE_PACKED_H

#include "core/record.h"

/* One block of memory; free(3) it. */
struct packed;

/* Makes *p as large as any record can be, and keeps the record in it; NULL becomes one with an
 * empty record. -ENOMEM: it is as it was. */
DG_MUST_CHECK int packed_room(struct packed **p);

/* Puts rec there, and gives back the room that it does not need. Needs no memory: where there is
 * none to be had, the block stays as it is. So rec must fit: it is no longer than the record that
 * is there, or packed_room() has been called since that was put. */
void packed_put(struct packed **p, const struct record *rec);

/* Copies it out. Of the path and of each extent only those bytes are written that are used; so is
 * only what plan.n counts. */
void packed_get(const struct packed *p, struct record *ret);

/* What reads ask, from the packed form itself. Has it a seal? */
bool packed_has_plan(const struct packed *p);
/* overlay_patch() with the true bytes. */
void packed_patch(const struct packed *p, uint64_t off, void *buf, size_t len);

size_t packed_size(const struct packed *p); /* bytes of memory */

#endif
