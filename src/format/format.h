/* format.h: the table of image formats, and how a file's format is found.
 *
 * A format is {name, probe, plan, ...} over a read-only view of bytes. It has no descriptor, no
 * lock and no log, so that it can be fuzzed on a buffer. The caller loads windows of the file
 * into a struct excerpt and calls format_identify(). When a probe needs bytes that are not
 * loaded, view_get() returns NULL and notes the range in view->want_*. The verdict is
 * FORMAT_MORE then: the caller loads that window and calls again. core/header.c does all of
 * this.
 *
 * Adding a format: one file, one line in the table of format.c, one test folder. */
#ifndef DISKGUARD_FORMAT_H
#define DISKGUARD_FORMAT_H

#include <errno.h>
#include <stdbool.h>

#include "format/plan.h"

/* Bytes. Each write of a plain file below this offset is looked at, because it may make an image
 * of the file: most formats have their magic there. A format with its magic further on (ISO), or
 * with a footer alone (fixed VHD), is found when the file's size changes, when the monitor
 * looks, or at the next open. It is also the least that is read of a file to find its format. */
#define FORMAT_REACH 4096u

/* Bytes. The longest window that a probe or a plan may want. The longest in use is a LUKS2 header
 * with its JSON area, 4 MiB. */
#define FORMAT_WINDOW_MAX (4u << 20)

/* Bytes. The places where a seal can lie. No extent and no zone.head goes beyond FORMAT_HEAD_MAX;
 * the farthest is LUKS2's secondary header, after 4 MiB. No zone.tail begins earlier than
 * FORMAT_TAIL_MAX before the end of the file; the longest is that of VMDK streamOptimized, with
 * footer and markers. */
#define FORMAT_HEAD_MAX (FORMAT_WINDOW_MAX + 4096u)
#define FORMAT_TAIL_MAX 1536u

#define VIEW_WINDOWS 16
#define FORMAT_WHY 160

struct excerpt {
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

/* The bytes [off, off + len) when they lie in one loaded window, else NULL. A range that is inside
 * the file and not loaded is noted in want_off and want_len; one that is outside the file is not.
 */
const uint8_t *view_get(struct excerpt *v, uint64_t off, size_t len);

/* The verdict of one format on a file. */
enum probe {
    PROBE_NO,     /* not this format */
    PROBE_YES,    /* this format, every check of its specification passed */
    PROBE_SEALED, /* this format, and it carries diskguard's refusal marks */
    /* this format's magic, but a field contradicts the specification or the file: info->why says
       which */
    PROBE_LIES,
    PROBE_MORE /* view->want_* must be loaded first */
};

/* The zone: where a write can touch an extent of the image, or change its plan. It lies below
 * `head`, and at or beyond `tail`. Everything between is guest data, and tables that no plan
 * looks at: the daemon takes it straight to the datastore. format_identify() sets FORMAT_REACH
 * and UINT64_MAX before it asks a probe. A probe that answers neither NO nor MORE may widen
 * both. It must do so in the same way whether the image is sealed, lies or is whole. For a
 * footer at the end of the file tail is file_size - its length, also while there is no footer. */
struct format_zone {
    uint64_t head, tail; /* bytes from the start of the file */
};

struct format_info {
    uint64_t virtual_size; /* bytes; 0 when the format has none or a probe did not reach it */
    struct format_zone zone;
    /* the file begins with guest data: a partition table there counts for nothing (fixed VHD) */
    bool guest_at_start;
    /* the size is 0, and the rest of the header says that it was more: SEAL_SIZE may have left
     * that. The probe answers LIES for no other reason, or YES where the format allows it */
    bool maybe_sealed;
    /* for LIES and SEALED: a clause for a log line, e.g. "cluster_bits 77 is outside 9..21" */
    char why[FORMAT_WHY];
};

/* For probes: fills info->why; always false. */
__attribute__((format(printf, 2, 3))) bool format_lies(struct format_info *info, const char *fmt,
                                                       ...);

/* What the admin chose with seal=. */
enum seal_mode {
    /* the size becomes a value that every opener refuses, plus the format's own refusal mark */
    SEAL_REFUSE,
    SEAL_SIZE /* only the size is rewritten, to 0 */
};

struct seal_policy {
    enum seal_mode mode;
    const char *holder; /* host name for a human-readable mark; cut to fit */
};

/* ---- an image without a record: what can be told from the file alone ---- */

#define RESCUE_MAX 4
enum rescue_kind {
    RESCUE_EXACT, /* this is the size */
    RESCUE_UPPER, /* the size is this or less */
    RESCUE_LOWER  /* the size is this or more */
};
struct rescue {
    unsigned n; /* candidates for the virtual size */
    struct {
        enum rescue_kind kind;
        uint64_t size;      /* bytes */
        const char *source; /* for people: "feature name row", "blocks x block size" */
    } candidate[RESCUE_MAX];
};

/* Adds a candidate. Drops it where there is no room, and where it is a bound of 0, which says
 * nothing. source is not copied. */
void rescue_add(struct rescue *to, enum rescue_kind kind, uint64_t size, const char *source);

/* ---- other files that an image needs ---- */

enum link_role {
    LINK_BACKING, /* backing file, parent: read through, written by commit */
    LINK_DATA,    /* holds this image's guest data (qcow2 external data file) */
    LINK_EXTENT   /* holds a part of this image's guest data (VMDK descriptor file) */
};
struct format_link {
    enum link_role role;
    /* as it stands in the image, with a protocol ("file:", "json:", ...) if there is one:
     * core/link_name.h; Windows names with '/' */
    char path[1024];
    char format[16]; /* its format where the image says it, QEMU's name, or "" */
};

struct format {
    const char *name; /* lower case, as QEMU names it */
    /* it has no header of its own: nothing in it can refuse, and only a partition table at its
     * start may be known */
    bool weak;
    enum probe (*probe)(struct excerpt *v, struct format_info *ret_info);
    /* Fills *ret_plan with the extents that seal this image, in seal order. Raw openers refuse
     * every prefix of them, so also every state of a restore, which goes backwards. Called only
     * after probe said YES on the same view.
     * 0; -EAGAIN: view->want_* must be loaded first; -EUCLEAN: no plan can be made. */
    int (*plan)(struct excerpt *v, const struct seal_policy *policy, struct plan *ret_plan);
    /* May be NULL: there is nothing to undo. Called only after probe said SEALED on the same
     * view. size: NULL, or what a person gave, in bytes. Fills *ret_plan with extents: their
     * sealed bytes are those that stand there, their true bytes undo the seal. It undoes half a
     * seal, too. *ret_rescue is filled in each case but -EAGAIN.
     * 0; -EAGAIN as above.
     * -ENODATA: the file does not hold the exact size, and none was given.
     * -ERANGE: the given size contradicts the file.
     * -EUCLEAN: it cannot be undone. */
    int (*rescue)(struct excerpt *v, const uint64_t *size, struct rescue *ret_rescue,
                  struct plan *ret_plan);
    /* May be NULL: it never needs other files. Called after YES, SEALED or LIES. Calls fn for
     * each file that the image needs; when fn returns another value than 0, it stops and returns
     * that.
     * 0; -EAGAIN as above, before any call of fn.
     * -EUCLEAN: a name does not fit, or cannot be followed. */
    int (*links)(struct excerpt *v, int (*fn)(void *arg, const struct format_link *link),
                 void *arg);
};

extern const struct format format_qcow2;     /* qcow2.c */
extern const struct format format_vhd;       /* vhd.c: "vpc" */
extern const struct format format_vhdx;      /* vhdx.c */
extern const struct format format_qcow;      /* qcow.c */
extern const struct format format_vmdk;      /* vmdk.c */
extern const struct format format_vdi;       /* vdi.c */
extern const struct format format_qed;       /* qed.c */
extern const struct format format_parallels; /* parallels.c */
extern const struct format format_luks;      /* luks.c */
extern const struct format format_iso;       /* iso.c: ISO 9660; its plan has no extents */
extern const struct format format_raw;       /* raw.c: partition tables; its plan has no extents */

enum verdict {
    FORMAT_PLAIN,     /* no format matches */
    FORMAT_IMAGE,     /* exactly one format matches */
    FORMAT_SEALED,    /* exactly one format matches, and the header carries diskguard's marks */
    FORMAT_LIES,      /* a format's magic over a header that contradicts itself */
    FORMAT_AMBIGUOUS, /* two formats match; info->why names them */
    FORMAT_MORE
};

/* Finds the one format that matches. *ret_format is NULL unless the verdict is IMAGE, SEALED or
 * LIES. */
enum verdict format_identify(struct excerpt *v, const struct format **ret_format,
                             struct format_info *ret_info);

/* The format of that name, or NULL. */
const struct format *format_by_name(const char *name);

#endif
