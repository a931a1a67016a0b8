/* header.h: an image's header as it stands on the datastore, or would stand after an edit: loaded
 * fresh, identified, planned.
 *
 * "Header" is every part of a file that a probe or a plan looks at: the first FORMAT_REACH bytes,
 * and windows further on (a copy at 64 KiB, a footer), which are loaded when a format asks for
 * them. Life: header_new -> header_load or header_read -> ... -> header_free; a zeroed struct
 * header may be loaded, too, and is emptied by header_clear. */
#ifndef DISKGUARD_HEADER_H
#define DISKGUARD_HEADER_H

#include "base/base.h"
#include "core/io.h"
#include "format/format.h"

#define HEADER_WINDOWS (VIEW_WINDOWS - 1)

struct header_window { /* bytes beyond the end of the file are zero */
    uint64_t off;
    size_t len;
    uint8_t *bytes;
};
struct header {
    uint64_t file_size;
    size_t n; /* bytes loaded at the start: min(file_size, FORMAT_REACH) */
    uint8_t bytes[FORMAT_REACH];
    unsigned n_far;
    struct header_window far[HEADER_WINDOWS];
    enum verdict verdict;
    const struct format *format;
    struct format_info info;
    /* FORMAT_MORE, and -EAGAIN of header_plan(): what must be loaded with header_add() first */
    uint64_t want_off;
    size_t want_len;
};

struct header *header_new(void); /* empty; NULL: out of memory */
void header_free(struct header *h);
void header_clear(struct header *h);
/* 0 or -ENOMEM, then empty */
DG_MUST_CHECK int header_copy(struct header *to, const struct header *from);

static inline void header_freep(struct header **h)
{
    header_free(*h);
}
#define _cleanup_header_ __attribute__((cleanup(header_freep)))

/* Reads the header past the cache and identifies it. The former content of *ret is dropped. 0, or
 * -errno with *ret empty. */
DG_MUST_CHECK int header_load(int fd, struct header *ret);
/* The same for one who knows the type of the file system (NULL: he does not), and has just fetched
 * the attributes: a file that has grown since is read as it was then. */
DG_MUST_CHECK int header_load_of(int fd, const struct io_fstype *fs, const struct stat *st,
                                 struct header *ret);
/* Reads the start and every extent of the plan past the cache. Does not identify. 0 or -errno, then
 * empty. */
DG_MUST_CHECK int header_read(int fd, const struct plan *plan, struct header *ret);
/* Loads one window more, as it stands in the file. 0, -EUCLEAN (too many, too long) or -errno. */
DG_MUST_CHECK int header_add(int fd, struct header *h, uint64_t off, size_t len);

/* Fills verdict, format, info from what is loaded. Pure. FORMAT_MORE: want_* is missing. LIES names
 * its format. */
void header_identify(struct header *h);
/* header_identify, loading what is missing as it stands in the file. 0 or -errno; a format that is
 * never content is LIES with format NULL. */
DG_MUST_CHECK int header_settle(int fd, struct header *h);
/* The plan that seals it; an empty plan for PLAIN and for raw.
 * 0 or -ENOMEM.
 * -EAGAIN: want_* is missing.
 * -EUCLEAN: there is no plan, or it is not of these bytes; also for every other verdict. */
DG_MUST_CHECK int header_plan(struct header *h, const struct seal_policy *policy, struct plan *ret);
/* The same, loading what is missing as it stands in the file. */
DG_MUST_CHECK int header_plan_load(int fd, struct header *h, const struct seal_policy *policy,
                                   struct plan *ret);

/* Of a SEALED header: what can be told without a record, as format->rescue says it. Loads what
 * is missing. It gives out a plan only when that fits the file as it stands, and makes an image
 * of it. size: bytes, or NULL. *ret_rescue is filled in each case.
 * 0 or -errno.
 * -ENODATA: the size must be given.
 * -ERANGE: it contradicts the file.
 * -EUCLEAN: it cannot be undone. */
DG_MUST_CHECK int header_rescue(int fd, struct header *h, const uint64_t *size,
                                struct rescue *ret_rescue, struct plan *ret);

/* What is loaded, for the pure functions of format.h and overlay.h. Valid while h is not changed.
 */
struct excerpt header_view(const struct header *h);
/* Same size and same bytes in all that is loaded. */
bool header_same(const struct header *a, const struct header *b);
/* true: [off, off + len) is loaded, as far as it lies in the file; *ret are its bytes, zero
 * beyond the end. */
bool header_get(const struct header *h, uint64_t off, void *ret, size_t len);
/* Lays one side of the plan over everything that is loaded. */
void header_patch(struct header *h, const struct plan *plan, bool truth);
/* Copies what is loaded of [off, off + len) over buf, which holds the file's bytes there. */
void header_overlay(const struct header *h, uint64_t off, void *buf, size_t len);

/* Widens the zone until every sector of an extent lies in it. For a plan that is kept while the
 * header says something else for the moment. */
void header_zone_cover(struct format_zone *zone, const struct plan *plan);

/* Edits in memory, for "what would this write make of it". Bytes that are not loaded are ignored
 * but move file_size. */
void header_write(struct header *h, uint64_t off, const void *buf, size_t len);
void header_zero(struct header *h, uint64_t off, uint64_t len, bool keep_size);
void header_truncate(struct header *h, uint64_t size);

enum edit_kind {
    EDIT_WRITE,   /* buf, len at off */
    EDIT_ZERO,    /* fallocate(mode, off, len): punch hole or zero range */
    EDIT_TRUNCATE /* to off */
};
struct edit {
    enum edit_kind kind;
    uint64_t off, len;
    const void *buf;
    int mode; /* fallocate mode of EDIT_ZERO */
    /* EDIT_WRITE: at the end of the file; whoever knows where that is puts it into off */
    bool append;
};
/* Lays the true bytes of a plan over `disk`, then an edit (NULL: none), and identifies the
 * result. Windows that a format wants to see are added to `disk` as they stand in the file. ret
 * may be disk itself. 0 or -errno; verdict MORE: a format wants more than there is room for. */
DG_MUST_CHECK int header_ahead(int fd, struct header *disk, const struct plan *plan,
                               const struct edit *e, struct header *ret);

#endif
