/* format.h: the table of image formats, and how a file's format is found.
 *
 * A format is {name, probe, plan} over a read-only view of bytes: no descriptor, no lock, no log, so that it can be
 * fuzzed on a buffer. The caller loads windows of the file into a struct view and calls format_identify(); when a probe
 * needs bytes that are not loaded it gets NULL from view_get(), which notes the range in view->want_*; the verdict is
 * then FORMAT_MORE, the caller loads that window and calls again (core/header.c does all of this).
 *
 * Adding a format: one file, one line in the table of format.c, one test folder. */
#ifndef DISKGUARD_FORMAT_H
#define DISKGUARD_FORMAT_H

#include "format/plan.h"

/* A write at or beyond this offset can neither touch an extent nor change what a file is. Every probe and
 * every plan of the formats known today looks at [0, FORMAT_REACH) only. Bytes. */
#define FORMAT_REACH 4096u

#define VIEW_WINDOWS 8
#define FORMAT_WHY 160

struct view {
    uint64_t file_size; /* bytes */
    unsigned n;
    struct {
        uint64_t off;
        size_t len;
        const uint8_t *data;
    } win[VIEW_WINDOWS];
    uint64_t want_off; /* set by view_get() when it returns NULL for a range inside the file */
    size_t want_len;   /* 0: nothing wanted */
};

/* The bytes [off, off + len) when they lie in one loaded window, else NULL. A range that is inside the file and not
 * loaded is noted in want_off and want_len; one that is outside the file is not. */
const uint8_t *view_get(struct view *v, uint64_t off, size_t len);

/* What one format says of a file. */
enum probe {
    PROBE_NO,     /* not this format */
    PROBE_YES,    /* this format, every check of its specification passed */
    PROBE_SEALED, /* this format, and it carries diskguard's refusal marks */
    PROBE_LIES, /* this format's magic, but a field contradicts the specification or the file: info->why says which */
    PROBE_MORE /* view->want_* must be loaded first */
};

struct format_info {
    uint64_t virtual_size; /* bytes; 0 when the format has none or a probe did not reach it */
    char why
        [FORMAT_WHY]; /* for LIES and SEALED: a clause for a log line, e.g. "cluster_bits 77 is outside 9..21" */
};

/* How the admin wants images sealed. */
enum seal_mode {
    SEAL_REFUSE, /* the size becomes a value that every opener refuses, plus the format's own refusal mark */
    SEAL_SIZE    /* only the size is rewritten, to 0 */
};

struct seal_policy {
    enum seal_mode mode;
    const char *holder; /* host name for a human-readable mark; cut to fit */
};

struct format {
    const char *name; /* lower case, as QEMU names it */
    enum probe (*probe)(struct view *v, struct format_info *ret_info);
    /* Fills *ret_plan with the extents that seal this image. Called only after probe said YES on the same view.
     * 0, or -EUCLEAN when no plan can be made. */
    int (*plan)(struct view *v, const struct seal_policy *policy, struct plan *ret_plan);
};

extern const struct format format_qcow2; /* qcow2.c */
extern const struct format format_raw;   /* raw.c: partition tables; its plan has no extents */

enum verdict {
    FORMAT_PLAIN,     /* no format matches */
    FORMAT_IMAGE,     /* exactly one format matches */
    FORMAT_SEALED,    /* exactly one format matches, and the header carries diskguard's marks */
    FORMAT_LIES,      /* a format's magic over a header that contradicts itself */
    FORMAT_AMBIGUOUS, /* two formats match; info->why names them */
    FORMAT_MORE
};

/* Finds the one format that matches. *ret_format is NULL unless the verdict is IMAGE, SEALED or LIES. */
enum verdict format_identify(struct view *v, const struct format **ret_format, struct format_info *ret_info);

/* The format of that name, or NULL. */
const struct format *format_by_name(const char *name);

#endif
