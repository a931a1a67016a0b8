/* vmdk_desc.c: VMDK descriptors: the text that says what an image consists of, in a file of its own
 * (monolithicFlat, twoGbMaxExtent*, vmfs*, seSparse) or embedded in a sparse one (vmdk.c). VMware
 * "Virtual Disk Format 5.0" ("spec" below), section "The Descriptor File"; QEMU block/vmdk.c 7.2.
 *
 * What differs from a naive reading:
 *   - The text ends at its first NUL: QEMU rewrites it with 20 sectors of which most are zero.
 *   - QEMU takes the first "createType" anywhere in the text, also in a comment. Where that is not
 *     the line of that name, readers disagree: refused.
 *   - QEMU recognises a file by "version=1".."version=3" behind comments, the signature line is not
 *     needed. Such a text without the signature is ours only if it names a createType in its first
 *     FORMAT_REACH bytes; any configuration file begins like that.
 *
 * The seal. The first six letters of createType's value become "SEALED" (of "vmfs": "SEAL"), so
 * that QEMU says "Unsupported image type 'SEALEDthicFlat'"; what is left of the value tells which
 * it was. Then the first extent's access "RW" becomes "SE": libvmdk ignores a createType that it
 * does not know and refuses only this. Never the digits: they are all that is known of the size,
 * and with 0 sectors QEMU 7.2 and 10.0 abort ("info", "convert", a VM's "info block"), as they do
 * when an access other than RW stands beside a createType that they know; so createType is written
 * first and undone last, and SEAL_SIZE does the same. */
#include "format/bytes.h"
#include "format/vmdk_priv.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define SIGNATURE "# Disk DescriptorFile"
#define QEMU_PROBE_LEN 512u  /* QEMU block.c, BLOCK_PROBE_BUF_SIZE */
#define EXTENT_NAME_MAX 511u /* QEMU vmdk_parse_extents(), "%511[^...]" */
#define VERSION_MAX 3u       /* QEMU vmdk_probe() */

/* Ours. No tool writes a createType that begins like this, and "SE" is no access of the spec. */
#define SEALED_TYPE "SEALED"
#define SEALED_TYPE_MIN 4u /* of the shortest, "vmfs" */
#define SEALED_ACCESS "SE"
#define TRUE_ACCESS "RW"
#define ACCESS_LEN 2u

/* spec, "createType", and what libvmdk and QEMU know besides. Those of equal length differ behind
 * their sixth letter. */
static const char *const types[] = {
    "custom",
    "fullDevice",
    "monolithicFlat",
    "monolithicSparse",
    "partitionedDevice",
    "streamOptimized",
    "twoGbMaxExtentFlat",
    "twoGbMaxExtentSparse",
    "2GbMaxExtentFlat",
    "2GbMaxExtentSparse",
    "vmfs",
    "vmfsEagerZeroedThick",
    "vmfsRaw",
    "vmfsRawDeviceMap",
    "vmfsRDM",
    "vmfsRDMP",
    "vmfsSparse",
    "vmfsThin",
    "seSparse",
    "vmfsPassthroughRawDeviceMap",
    "vmfsPreallocated",
};
#define TYPES (sizeof(types) / sizeof(types[0]))

/* QEMU vmdk_open_desc_file() */
static const char *const followed[] = {"monolithicFlat",     "vmfs",     "vmfsSparse",
                                       "twoGbMaxExtentFlat", "seSparse", "twoGbMaxExtentSparse"};

/* spec, "The Extent Description"; SESPARSE is QEMU's. The format is QEMU's name of what lies in the
 * file. */
static const struct extent_type {
    const char *name, *format;
    bool file, offset;
} extent_types[] = {
    {"FLAT", "raw", true, true},         {"SPARSE", "vmdk", true, false},
    {"ZERO", "", false, false},          {"VMFS", "raw", true, false},
    {"VMFSSPARSE", "vmdk", true, false}, {"VMFSRDM", "raw", true, false},
    {"VMFSRAW", "raw", true, false},     {"SESPARSE", "", true, false},
};
#define EXTENT_TYPES (sizeof(extent_types) / sizeof(extent_types[0]))

/* ---- lines ---- */

__attribute__((format(printf, 2, 3))) static void wrong(struct vmdk_desc *d, const char *fmt, ...)
{
    va_list ap;

    if (d->why[0])
        return;
    va_start(ap, fmt);
    vsnprintf(d->why, sizeof(d->why), fmt, ap);
    va_end(ap);
}

/* What is left of a line: [pos, end) of the text. */
struct rest {
    const uint8_t *p;
    size_t pos, end;
};

static bool is_blank(uint8_t c)
{
    return c == ' ' || c == '\t';
}

static void skip_blanks(struct rest *r)
{
    while (r->pos < r->end && is_blank(r->p[r->pos]))
        r->pos++;
}

static bool next_line(const uint8_t *p, size_t n, size_t *pos, struct rest *ret)
{
    const uint8_t *newline;

    if (*pos >= n)
        return false;
    newline = memchr(p + *pos, '\n', n - *pos);
    ret->p = p;
    ret->pos = *pos;
    ret->end = newline ? (size_t)(newline - p) : n;
    *pos = ret->end + 1;
    if (ret->end > ret->pos && p[ret->end - 1] == '\r')
        ret->end--;
    return true;
}

/* The next word, up to a blank; its length. *ret_off is where it begins. */
static size_t take_word(struct rest *r, size_t *ret_off)
{
    skip_blanks(r);
    *ret_off = r->pos;
    while (r->pos < r->end && !is_blank(r->p[r->pos]))
        r->pos++;
    return r->pos - *ret_off;
}

static bool is_word(const uint8_t *p, size_t len, const char *word)
{
    return len == strlen(word) && memcmp(p, word, len) == 0;
}

static bool take_number(struct rest *r, uint64_t *ret)
{
    size_t off, len = take_word(r, &off);
    uint64_t value = 0;

    for (size_t i = 0; i < len; i++) {
        uint8_t c = r->p[off + i];

        if (c < '0' || c > '9' || value > VMDK_SECTORS_MAX)
            return false;
        value = value * 10 + (c - '0');
    }
    *ret = value;
    return len > 0 && value <= VMDK_SECTORS_MAX;
}

static bool take_quoted(struct rest *r, size_t *ret_off, size_t *ret_len)
{
    const uint8_t *quote;

    skip_blanks(r);
    if (r->pos >= r->end || r->p[r->pos] != '"')
        return false;
    *ret_off = ++r->pos;
    quote = memchr(r->p + r->pos, '"', r->end - r->pos);
    if (!quote)
        return false;
    *ret_len = (size_t)(quote - r->p) - *ret_off;
    r->pos = *ret_off + *ret_len + 1;
    return true;
}

/* ---- extent lines ---- */

struct extent_line {
    size_t access_off, access_len;
    bool writable, sealed;
    uint64_t sectors;
    const struct extent_type *type;
    size_t name_off, name_len;
};

enum line { LINE_NONE, LINE_EXTENT, LINE_WRONG };

static bool is_access(const uint8_t *p, size_t len)
{
    return is_word(p, len, TRUE_ACCESS) || is_word(p, len, SEALED_ACCESS) ||
           is_word(p, len, "RDONLY") || is_word(p, len, "NOACCESS");
}

/* ACCESS SECTORS TYPE ["NAME" [OFFSET ...]] */
static enum line extent_line(struct rest r, struct extent_line *ret, const char **ret_why)
{
    const struct extent_type *t = extent_types;
    size_t off, len;
    uint64_t offset;

    memset(ret, 0, sizeof(*ret));
    ret->access_len = take_word(&r, &ret->access_off);
    if (!is_access(r.p + ret->access_off, ret->access_len))
        return LINE_NONE;
    ret->sealed = is_word(r.p + ret->access_off, ret->access_len, SEALED_ACCESS);
    ret->writable = ret->sealed || is_word(r.p + ret->access_off, ret->access_len, TRUE_ACCESS);
    *ret_why = "number of sectors";
    if (!take_number(&r, &ret->sectors))
        return LINE_WRONG;
    *ret_why = "type";
    len = take_word(&r, &off);
    while (t < extent_types + EXTENT_TYPES && !is_word(r.p + off, len, t->name))
        t++;
    if (t == extent_types + EXTENT_TYPES)
        return LINE_WRONG;
    ret->type = t;
    *ret_why = "file name";
    if (t->file && (!take_quoted(&r, &ret->name_off, &ret->name_len) || ret->name_len == 0 ||
                    ret->name_len > EXTENT_NAME_MAX))
        return LINE_WRONG;
    *ret_why = "offset";
    return t->offset && !take_number(&r, &offset) ? LINE_WRONG : LINE_EXTENT;
}

static void add_extent(struct vmdk_desc *d, const struct extent_line *e)
{
    if (e->writable && d->access_off == 0) {
        d->access_off = e->access_off;
        d->access_sealed = e->sealed;
    }
    d->extents++;
    if (e->sectors > VMDK_SECTORS_MAX - d->sectors)
        wrong(d, "line %u of the descriptor: the sum of all extents is beyond every file", d->line);
    else
        d->sectors += e->sectors;
}

/* ---- keys ---- */

/* Behind "KEY =" when the line is of that key; *ret_key is where its name begins. */
static bool take_key(struct rest *r, const char *key, size_t *ret_key)
{
    struct rest at = *r;
    size_t len = strlen(key);

    skip_blanks(&at);
    if (at.end - at.pos < len || strncasecmp((const char *)at.p + at.pos, key, len) != 0)
        return false;
    *ret_key = at.pos;
    at.pos += len;
    skip_blanks(&at);
    if (at.pos >= at.end || at.p[at.pos] != '=')
        return false;
    at.pos++;
    skip_blanks(&at);
    *r = at;
    return true;
}

static bool type_is_sealed(const uint8_t *p, size_t len)
{
    size_t mark = strlen(SEALED_TYPE);

    return len >= SEALED_TYPE_MIN && memcmp(p, SEALED_TYPE, len < mark ? len : mark) == 0;
}

static bool type_in(const struct vmdk_desc *d, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (is_word(d->p + d->type_off, d->type_len, names[i]))
            return true;
    return false;
}

static void take_type(struct vmdk_desc *d, struct rest r, size_t key)
{
    static const char name[] = "createType";
    const uint8_t *first = memmem(d->p, d->n, name, strlen(name));
    size_t off, len;

    if (d->type_off) {
        wrong(d, "line %u of the descriptor: a second createType", d->line);
        return;
    }
    if (!take_quoted(&r, &off, &len))
        len = take_word(&r, &off);
    if (len == 0) {
        wrong(d, "line %u of the descriptor: createType has no value", d->line);
        return;
    }
    d->type_off = off;
    d->type_len = len;
    d->type_sealed = type_is_sealed(d->p + off, len);
    if (first && first < d->p + key)
        wrong(d, "line %u of the descriptor: \"createType\" stands before its line, too", d->line);
    if (!d->type_sealed && !type_in(d, types, TYPES))
        wrong(d, "line %u of the descriptor: createType is unknown", d->line);
}

static void take_version(struct vmdk_desc *d, struct rest r)
{
    uint64_t version;

    d->has_version = true;
    if (!take_number(&r, &version) || version < 1 || version > VERSION_MAX)
        wrong(d, "line %u of the descriptor: its version is none of 1..%u", d->line, VERSION_MAX);
}

static void take_parent(struct vmdk_desc *d, struct rest r)
{
    if (d->parent_off)
        wrong(d, "line %u of the descriptor: a second parentFileNameHint", d->line);
    else if (!take_quoted(&r, &d->parent_off, &d->parent_len))
        wrong(d, "line %u of the descriptor: parentFileNameHint has no value", d->line);
}

/* QEMU reads hexadecimal digits up to the first other character. */
static bool cid(struct vmdk_desc *d, struct rest r)
{
    if (r.pos >= r.end || !memchr("0123456789abcdefABCDEF", r.p[r.pos], 22))
        wrong(d, "line %u of the descriptor: a CID that is no number", d->line);
    return true;
}

static void take_line(struct vmdk_desc *d, struct rest r)
{
    struct extent_line e;
    const char *what = "";
    size_t key;

    switch (extent_line(r, &e, &what)) {
    case LINE_EXTENT:
        add_extent(d, &e);
        return;
    case LINE_WRONG:
        wrong(d, "line %u of the descriptor: an extent's %s", d->line, what);
        return;
    case LINE_NONE:
        break;
    }
    if (take_key(&r, "createType", &key))
        take_type(d, r, key);
    else if (take_key(&r, "version", &key))
        take_version(d, r);
    else if (take_key(&r, "CID", &key))
        d->has_cid = cid(d, r);
    else if (take_key(&r, "parentCID", &key))
        d->has_parent_cid = cid(d, r);
    else if (take_key(&r, "parentFileNameHint", &key))
        take_parent(d, r);
}

void vmdk_desc_parse(const uint8_t *p, size_t n, struct vmdk_desc *ret)
{
    size_t pos = 0;
    struct rest r;

    memset(ret, 0, sizeof(*ret));
    ret->p = p;
    ret->n = strnlen((const char *)p, n);
    while (next_line(p, ret->n, &pos, &r)) {
        ret->line++;
        take_line(ret, r);
    }
    if (!ret->has_version || !ret->has_cid || !ret->has_parent_cid || !ret->type_off)
        wrong(ret, "the descriptor has no line of %s",
              !ret->has_version      ? "version"
              : !ret->has_cid        ? "CID"
              : !ret->has_parent_cid ? "parentCID"
                                     : "createType");
    if (ret->sectors == 0)
        wrong(ret, "the descriptor has no extents");
}

/* ---- seal ---- */

bool vmdk_desc_sealed(const struct vmdk_desc *d)
{
    return d->type_sealed || d->access_sealed;
}

bool vmdk_desc_followed(const struct vmdk_desc *d)
{
    return type_in(d, followed, sizeof(followed) / sizeof(followed[0]));
}

static size_t type_mark(const struct vmdk_desc *d)
{
    return d->type_len < strlen(SEALED_TYPE) ? d->type_len : strlen(SEALED_TYPE);
}

int vmdk_desc_seal(const struct vmdk_desc *d, uint64_t base, struct plan *plan)
{
    int r;

    if (d->why[0]) /* else there is a createType, and a known one */
        return -EUCLEAN;
    r = plan_add(plan, base + d->type_off, d->p + d->type_off, SEALED_TYPE, type_mark(d));
    if (r == 0 && d->access_off)
        r = plan_add(plan, base + d->access_off, d->p + d->access_off, SEALED_ACCESS, ACCESS_LEN);
    return r;
}

/* The type whose sealed form this is. */
static const char *true_type(const struct vmdk_desc *d)
{
    size_t mark = type_mark(d);

    for (size_t i = 0; i < TYPES; i++)
        if (strlen(types[i]) == d->type_len &&
            memcmp(types[i] + mark, d->p + d->type_off + mark, d->type_len - mark) == 0)
            return types[i];
    return NULL;
}

int vmdk_desc_unseal(const struct vmdk_desc *d, uint64_t base, struct plan *plan)
{
    int r = 0;

    if (d->type_sealed) {
        const char *type = true_type(d);

        if (!type)
            return -EUCLEAN;
        r = plan_add(plan, base + d->type_off, type, d->p + d->type_off, type_mark(d));
    }
    if (r == 0 && d->access_sealed)
        r = plan_add(plan, base + d->access_off, TRUE_ACCESS, d->p + d->access_off, ACCESS_LEN);
    return r;
}

/* ---- links ---- */

static int give_link(enum link_role role, const uint8_t *name, size_t len, const char *format,
                     int (*fn)(void *arg, const struct format_link *link), void *arg)
{
    struct format_link link = {.role = role};

    if (len == 0 || len >= sizeof(link.path))
        return -EUCLEAN;
    memcpy(link.path, name, len);
    snprintf(link.format, sizeof(link.format), "%s", format);
    return fn(arg, &link);
}

int vmdk_desc_links(const struct vmdk_desc *d, bool extents,
                    int (*fn)(void *arg, const struct format_link *link), void *arg)
{
    size_t pos = 0;
    struct extent_line e;
    const char *why;
    struct rest line;
    int r = 0;

    while (extents && r == 0 && next_line(d->p, d->n, &pos, &line))
        if (extent_line(line, &e, &why) == LINE_EXTENT && e.type->file)
            r = give_link(LINK_EXTENT, d->p + e.name_off, e.name_len, e.type->format, fn, arg);
    /* QEMU follows the name whatever parentCID says. */
    if (r == 0 && d->parent_len > 0)
        r = give_link(LINK_BACKING, d->p + d->parent_off, d->parent_len, "vmdk", fn, arg);
    return r;
}

/* ---- descriptor files ---- */

/* QEMU's vmdk_probe(): comments and blank lines, then a line "version=1", 2 or 3. */
static bool qemu_knows(const uint8_t *p, size_t n)
{
    static const char version[] = "version=";
    size_t pos = 0, len = strlen(version);
    struct rest r;

    while (next_line(p, n, &pos, &r)) {
        size_t begin = r.pos;

        if (r.pos < r.end && p[r.pos] == '#')
            continue;
        skip_blanks(&r);
        if (r.pos == r.end && r.pos > begin)
            continue;
        return r.pos == begin && pos <= n && r.end - r.pos == len + 1 &&
               memcmp(p + r.pos, version, len) == 0 && p[r.pos + len] >= '1' &&
               p[r.pos + len] <= '0' + (int)VERSION_MAX;
    }
    return false;
}

static enum probe desc_load(struct excerpt *v, struct vmdk_desc *ret)
{
    size_t n = v->file_size < VMDK_TEXT_MAX ? (size_t)v->file_size : VMDK_TEXT_MAX;
    size_t reach = n < FORMAT_REACH ? n : FORMAT_REACH;
    size_t sign = strlen(SIGNATURE);
    const uint8_t *p;

    if (n < sign)
        return PROBE_NO;
    p = view_get(v, 0, sign);
    if (!p)
        return PROBE_MORE;
    if (p[0] != '#' && p[0] != ' ' && p[0] != 'v')
        return PROBE_NO;
    p = view_get(v, 0, reach);
    if (!p)
        return PROBE_MORE;
    if (strncasecmp((const char *)p, SIGNATURE, sign) != 0 &&
        (!qemu_knows(p, reach < QEMU_PROBE_LEN ? reach : QEMU_PROBE_LEN) ||
         !memmem(p, strnlen((const char *)p, reach), "createType", 10)))
        return PROBE_NO;
    p = view_get(v, 0, n);
    if (!p)
        return PROBE_MORE;
    vmdk_desc_parse(p, n, ret);
    return PROBE_YES;
}

enum probe vmdk_file_probe(struct excerpt *v, struct format_info *ret_info)
{
    struct vmdk_desc d;
    enum probe answer = desc_load(v, &d);

    if (answer != PROBE_YES)
        return answer;
    ret_info->zone.head = VMDK_TEXT_MAX;
    if (vmdk_desc_sealed(&d)) {
        snprintf(ret_info->why, sizeof(ret_info->why), "sealed by %s%s%s",
                 d.type_sealed ? "createType" : "", d.type_sealed && d.access_sealed ? " and " : "",
                 d.access_sealed ? "its first extent" : "");
        return PROBE_SEALED;
    }
    if (d.n == VMDK_TEXT_MAX) {
        format_lies(ret_info, "the descriptor has %u bytes or more", VMDK_TEXT_MAX);
        return PROBE_LIES;
    }
    if (d.why[0]) {
        format_lies(ret_info, "%s", d.why);
        return PROBE_LIES;
    }
    ret_info->virtual_size = d.sectors * VMDK_SECTOR;
    return PROBE_YES;
}

static int load_known(struct excerpt *v, struct vmdk_desc *ret)
{
    enum probe answer = desc_load(v, ret);

    return answer == PROBE_YES ? 0 : answer == PROBE_MORE ? -EAGAIN : -EUCLEAN;
}

int vmdk_file_plan(struct excerpt *v, struct plan *ret_plan)
{
    struct vmdk_desc d;
    int r = load_known(v, &d);

    if (r < 0)
        return r;
    memset(ret_plan, 0, sizeof(*ret_plan));
    return vmdk_desc_seal(&d, 0, ret_plan);
}

int vmdk_file_rescue(struct excerpt *v, const uint64_t *size, struct rescue *ret_rescue,
                     struct plan *ret_plan)
{
    struct vmdk_desc d;
    int r = load_known(v, &d);

    if (r == -EAGAIN)
        return r;
    memset(ret_rescue, 0, sizeof(*ret_rescue));
    memset(ret_plan, 0, sizeof(*ret_plan));
    if (r < 0 || d.why[0])
        return -EUCLEAN;
    rescue_add(ret_rescue, RESCUE_EXACT, d.sectors * VMDK_SECTOR, "extent lines");
    if (size && *size != d.sectors * VMDK_SECTOR)
        return -ERANGE;
    return vmdk_desc_unseal(&d, 0, ret_plan);
}

int vmdk_file_links(struct excerpt *v, int (*fn)(void *arg, const struct format_link *link),
                    void *arg)
{
    struct vmdk_desc d;
    int r = load_known(v, &d);

    return r < 0 ? r : vmdk_desc_links(&d, true, fn, arg);
}
