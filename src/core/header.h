/* header.h: an image's header as it stands on the datastore, or would stand after an edit: loaded fresh, identified, planned. */
#ifndef DISKGUARD_HEADER_H
#define DISKGUARD_HEADER_H

#include "core/base.h"
#include "core/io.h"
#include "format/format.h"

struct header {
    uint64_t file_size;
    size_t n; /* bytes loaded: min(file_size, FORMAT_REACH) */
    uint8_t bytes[FORMAT_REACH];
    enum verdict verdict;
    const struct format *format;
    struct format_info info;
};

/* Reads the first FORMAT_REACH bytes past the cache, and the size. Does not identify. 0 or -errno. */
DG_MUST_CHECK int header_load(int fd, struct header *ret);
/* Fills verdict, format, info from bytes and file_size. Pure. A header that goes on beyond FORMAT_REACH is LIES with format NULL; else LIES names
 * its format. */
void header_identify(struct header *h);
/* The plan that seals it; an empty plan for a verdict without one (PLAIN) and for raw. 0, -EUCLEAN (also for every
 * other verdict, and for a plan that is not of these bytes) or -ENOMEM. */
DG_MUST_CHECK int header_plan(const struct header *h, const struct seal_policy *policy, struct plan *ret);

/* Edits in memory, for "what would this write make of it". Bytes beyond FORMAT_REACH are ignored but move file_size. */
void header_write(struct header *h, uint64_t off, const void *buf, size_t len);
void header_zero(struct header *h, uint64_t off, uint64_t len, bool keep_size);
void header_truncate(struct header *h, uint64_t size);

#endif
