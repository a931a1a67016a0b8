/* vmdk_priv.h: what vmdk.c, vmdk_seal.c and vmdk_desc.c share, for them only. */
#ifndef DISKGUARD_FORMAT_VMDK_PRIV_H
#define DISKGUARD_FORMAT_VMDK_PRIV_H

#include "format/format.h"

#define VMDK_SECTOR 512u
#define VMDK_SECTORS_MAX ((uint64_t)INT64_MAX / VMDK_SECTOR)
/* A descriptor's text ends before this; QEMU reads up to 1 MiB of it, a set of 2 TiB in 2 GiB files
 * needs 50 KiB. Bytes. */
#define VMDK_TEXT_MAX 65536u

/* A descriptor as it stands in p[0..n): never NUL-terminated, n ends before the first NUL. Offsets
 * are relative to p. */
struct vmdk_desc {
    const uint8_t *p;
    size_t n;
    bool has_version, has_cid, has_parent_cid;
    size_t type_off, type_len; /* value of createType; type_off 0: none */
    bool type_sealed;
    size_t access_off; /* access word of the first extent that can be written; 0: none */
    bool access_sealed;
    unsigned extents;              /* lines */
    uint64_t sectors;              /* their sum; VMDK_SECTORS_MAX at most */
    size_t parent_off, parent_len; /* value of parentFileNameHint; parent_off 0: none */
    unsigned line;                 /* while parsing */
    char why[FORMAT_WHY];          /* first contradiction, a clause; "": none */
};

/* Takes as much from the text as can be told, also when it contradicts itself or is sealed. */
void vmdk_desc_parse(const uint8_t *p, size_t n, struct vmdk_desc *ret);

/* Carries one of our marks. */
bool vmdk_desc_sealed(const struct vmdk_desc *d);

/* QEMU follows this text to its extents (block/vmdk.c, vmdk_open_desc_file). */
bool vmdk_desc_followed(const struct vmdk_desc *d);

/* Appends the extents that seal the text; base: of p in the file. Only for one without a
 * contradiction. 0, -EUCLEAN. */
int vmdk_desc_seal(const struct vmdk_desc *d, uint64_t base, struct plan *plan);

/* Appends the extents that undo the seal of the text, as far as it stands. 0, -EUCLEAN: a
 * createType that is not ours. */
int vmdk_desc_unseal(const struct vmdk_desc *d, uint64_t base, struct plan *plan);

/* Links of the text: the parent, and its extents where `extents` says so. As struct format's links.
 */
int vmdk_desc_links(const struct vmdk_desc *d, bool extents,
                    int (*fn)(void *arg, const struct format_link *link), void *arg);

/* A descriptor in a file of its own: as the members of struct format. */
enum probe vmdk_file_probe(struct excerpt *v, struct format_info *ret_info);
int vmdk_file_plan(struct excerpt *v, struct plan *ret_plan);
int vmdk_file_rescue(struct excerpt *v, const uint64_t *size, struct rescue *ret_rescue,
                     struct plan *ret_plan);
int vmdk_file_links(struct excerpt *v, int (*fn)(void *arg, const struct format_link *link),
                    void *arg);

/* ---- sparse extents: vmdk.c reads them, vmdk_seal.c seals them ---- */

/* spec, SparseExtentHeader and COWDisk_Header: offsets of what a seal edits; version is in the same
 * place */
#define KDMV_VERSION 4u
#define KDMV_CAPACITY 12u /* sectors */
#define COWD_CAPACITY 12u /* sectors */
#define COWD_GRAIN 16u
#define COWD_GD_ENTRIES 24u
#define COWD_GT_ENTRIES 4096u
#define COWD_LEN 2048u
#define GRAIN_MAX 0x200000u /* 1 GiB */

/* Ours: values that no tool writes. */
#define SEALED_CAPACITY 0x5345414c45440000ull
#define SEALED_CAPACITY32 0x4c414553u /* "SEAL" */
#define SEALED_VERSION 0x5ea10000u    /* with the true one in its lower half */
#define SEALED_GRAIN 0x5ea00000u      /* true ones of 1..GRAIN_MAX are added */
#define NOTE_LEN 64u
#define NOTE_WORD "SEALED "
#define NOTE_SECTORS " sectors="
#define NOTE_MAX_HOLDER 32 /* NOTE_LEN - strlen("SEALED  sectors=0123456789abcdef") */
#define KDMV_NOTE 128u     /* in the header; its padding begins at 79 */
#define COWD_NOTE 1664u    /* its padding begins at 1652 */

/* One copy of a header. Bytes beyond the end of the file are zero. */
struct vmdk_copy {
    uint64_t off;
    size_t n;            /* bytes of it in the file */
    uint8_t b[COWD_LEN]; /* KDMV: the first KDMV_LEN */
    uint32_t note;       /* where the note goes */
    unsigned width;      /* of capacity */
    uint64_t sealed_capacity;
};

struct vmdk_image {
    bool cowd;
    struct vmdk_copy header;
    bool at_end;         /* the header says that there is a footer */
    uint64_t footer_off; /* where it begins; 0: no room */
    bool has_footer;
    struct vmdk_copy footer;
    const struct vmdk_copy *used; /* that QEMU reads */
    uint64_t desc_base;           /* bytes; 0: no descriptor */
    size_t desc_len;              /* of its visible part */
    struct vmdk_desc desc;        /* n == 0: none or empty */
};

/* Loads header, footer and descriptor. NO: neither of the two magics; YES; MORE. */
enum probe vmdk_load(struct excerpt *v, struct vmdk_image *m);

uint32_t vmdk_version_of(const struct vmdk_copy *c);
uint64_t vmdk_capacity_of(const struct vmdk_copy *c);

/* capacity 0: the descriptor is all there is. */
bool vmdk_is_shell(const struct vmdk_image *m);

/* The marks of a copy. */
bool vmdk_version_sealed(const struct vmdk_copy *c);
bool vmdk_capacity_sealed(const struct vmdk_copy *c);
bool vmdk_grain_sealed(const struct vmdk_image *m);
bool vmdk_has_note(const struct vmdk_copy *c);

/* The capacity in a note that we wrote; false: none, or another text. */
bool vmdk_read_note(const struct vmdk_copy *c, uint64_t *ret_sectors);

int vmdk_plan(struct excerpt *v, const struct seal_policy *policy, struct plan *ret_plan);
int vmdk_rescue(struct excerpt *v, const uint64_t *size, struct rescue *ret_rescue,
                struct plan *ret_plan);

#endif
