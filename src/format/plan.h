/* plan.h: the edit of an image's header that makes it unusable: its extents with true and sealed
 * bytes.
 *
 * A plan is a value: no descriptor, no lock, nothing on the heap. Copy it by assignment. Extents
 * stand in the order in which the seal writes them, so that each prefix is refused by a raw opener;
 * a restore writes them in reverse. Extents of one plan never overlap. */
#ifndef DISKGUARD_FORMAT_PLAN_H
#define DISKGUARD_FORMAT_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One sector: the unit that a disk writes whole (T10 SBC-4, logical block; also the unit of a torn
 * write here). */
#define EXTENT_MAX 512
#define PLAN_MAX 24

struct extent {
    uint64_t off;               /* bytes from the start of the file */
    uint32_t len;               /* 1..EXTENT_MAX */
    bool has_was;               /* `was` is meaningful */
    uint8_t truth[EXTENT_MAX];  /* what the holder sees */
    uint8_t sealed[EXTENT_MAX]; /* what stands on the datastore */
    /* what may still stand there from the plan before (reseal under way) */
    uint8_t was[EXTENT_MAX];
};

struct plan {
    unsigned n; /* 0..PLAN_MAX; 0 = a claim without a seal */
    struct extent ext[PLAN_MAX];
};

/* Appends an extent. 0, or -EUCLEAN: no room, or a length that is none. */
int plan_add(struct plan *plan, uint64_t off, const void *truth, const void *sealed, size_t len);

#endif
