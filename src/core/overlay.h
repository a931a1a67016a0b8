/* overlay.h: arithmetic of plans. Pure: no I/O, no lock. "Content of view = content of datastore
 * with the true bytes laid over". */
#ifndef DISKGUARD_OVERLAY_H
#define DISKGUARD_OVERLAY_H

#include "base/base.h"
#include "format/format.h"

/* End of the last extent in bytes, 0 for an empty plan. */
uint64_t overlay_end(const struct plan *plan);

enum overlay_side { OVERLAY_TRUE, OVERLAY_SEALED };

/* Lays one side's bytes of every extent over buf, which holds the file's bytes [off, off+len). */
void overlay_patch(const struct plan *plan, enum overlay_side side, uint64_t off, void *buf,
                   size_t len);

/* The same with n bytes that belong at offset `at` of the file. */
void overlay_lay(uint64_t at, const uint8_t *bytes, size_t n, uint64_t off, void *buf, size_t len);

/* The next run of [off, end) that lies outside all extents. false: none is left. Start with the
 * beginning; call again with off = *ret_off + *ret_len. */
bool overlay_next_gap(const struct plan *plan, uint64_t off, uint64_t end, uint64_t *ret_off,
                      uint64_t *ret_len);

/* Same extents in the same order (off and len); `sealed`: and the same sealed bytes. */
bool overlay_same_shape(const struct plan *a, const struct plan *b);
bool overlay_same_sealed(const struct plan *a, const struct plan *b);
bool overlay_same_truth(const struct plan *a, const struct plan *b);

/* What the bytes on disk are, seen from one plan. */
enum header_state {
    HEADER_TRUE,   /* every extent has its true bytes */
    HEADER_SEALED, /* every extent has its sealed bytes */
    /* every extent, byte by byte, is true, sealed or `was`: a crash while sealing, resealing or
       restoring */
    HEADER_MIXED,
    HEADER_ALIEN, /* anything else: somebody else wrote */
    HEADER_SHORT, /* the file ends inside or before an extent */
    HEADER_NOPLAN /* the plan has no extents: nothing to compare */
};
/* disk: what was read of the file, and its size. cut: length of a truncation that may have happened
 * (extents or parts of them at or beyond it are ignored when file_size <= cut), or OVERLAY_NO_CUT.
 * An extent that is inside the file and not loaded is a caller's error and answered HEADER_ALIEN. A
 * plan whose true and sealed bytes are equal is TRUE. */
#define OVERLAY_NO_CUT UINT64_MAX
enum header_state overlay_compare(const struct plan *plan, struct excerpt *disk, uint64_t cut);

#endif
