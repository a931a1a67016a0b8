/* qcow2_rescue.c: what undoes the seal of a qcow2 image without a record, and the other files that
 * it names. See qcow2.c.
 *
 * The size. Version 3 with a feature name table: our row says it, in 16 hexadecimal digits: exact.
 * An image that carries bit 63 and our row over an intact size field (somebody undid a part of the
 * seal): that field, exact. Otherwise (version 2, no table, a seal or a restore that was cut
 * between size and row) the L1 table gives an upper bound and a person must give the size. The
 * sizes that snapshots keep are no candidates: since QEMU 5.1 a version 3 image is resized in both
 * directions behind them, so they bound nothing.
 *
 * The row. Its former 48 bytes are gone, and only texts of error messages were in them. QEMU writes
 * one fixed table per version of QEMU; where all other rows are those of such a table, the missing
 * one is known byte for byte. Otherwise the last row of today's table, "raw external data", is
 * written: right for the spec, never printed by QEMU (it is the name of an autoclear bit), but
 * maybe not what stood there; the source text of the size says so. Where some other row has that
 * bit already, the row is left without a name: QEMU's own end of a table. */
#include "format/qcow2_priv.h"

#include <errno.h>
#include <string.h>

#define SOURCE_ROW "feature name row"
#define SOURCE_ROW_REPLACED                                                                        \
    "feature name row (whose former text is not known: a standard one takes its place)"
#define SOURCE_FIELD "size field (intact)"
#define SOURCE_FIELD_REPLACED                                                                           \
    "size field (intact; the former text of a feature name row is not known: a standard one takes its " \
    "place)"
#define SOURCE_L1 "L1 table entries x bytes that one maps"
#define SIZE_WORD " size="
#define SIZE_DIGITS 16u

/* ---- feature names ---- */

/* QEMU, block/qcow2.c, qcow2_update_header(): the names in the order in which they are written, and
 * the release that added the name (major * 100 + minor; of those before 1.7 only the count
 * matters). Measured with 7.2; the others are from QEMU's history. */
static const struct standard_row {
    uint8_t type, bit;
    uint16_t since;
    const char *name;
} standard[] = {
    {0, 0, 100, "dirty bit"},
    {0, 1, 107, "corrupt bit"},
    {0, 2, 400, "external data file"},
    {0, 3, 501, "compression type"},
    {0, 4, 502, "extended L2 entries"},
    {1, 0, 100, "lazy refcounts"},
    {2, 0, 501, "bitmaps"},
    {2, 1, 501, "raw external data"},
};
static const uint16_t releases[] = {100, 107, 400, 501, 502};
#define STANDARD (sizeof(standard) / sizeof(standard[0]))
#define RELEASES (sizeof(releases) / sizeof(releases[0]))

static void standard_bytes(const struct standard_row *s, uint8_t ret[ROW_LEN])
{
    memset(ret, 0, ROW_LEN);
    ret[0] = s->type;
    ret[1] = s->bit;
    memcpy(ret + ROW_NAME, s->name, strlen(s->name));
}

/* Are the rows, but for the one at `missing`, the table of that release? Then that one's bytes. */
static bool is_table_of(uint16_t release, const uint8_t *rows, unsigned n, unsigned missing,
                        uint8_t ret[ROW_LEN])
{
    uint8_t row[ROW_LEN];
    unsigned at = 0;

    for (size_t i = 0; i < STANDARD; i++) {
        if (standard[i].since > release)
            continue;
        if (at >= n)
            return false;
        standard_bytes(&standard[i], row);
        if (at == missing)
            memcpy(ret, row, ROW_LEN);
        else if (memcmp(rows + at * ROW_LEN, row, ROW_LEN) != 0)
            return false;
        at++;
    }
    return at == n;
}

/* What stood in the row `missing`. false: not known for sure, it is one that is right for the spec.
 */
static bool former_row(const uint8_t *rows, unsigned n, unsigned missing, uint8_t ret[ROW_LEN])
{
    const struct standard_row *last = &standard[STANDARD - 1];

    for (size_t i = 0; i < RELEASES; i++)
        if (is_table_of(releases[i], rows, n, missing, ret))
            return true;
    standard_bytes(last, ret);
    for (unsigned i = 0; i < n; i++)
        if (i != missing && rows[i * ROW_LEN] == last->type && rows[i * ROW_LEN + 1] == last->bit)
            memset(ret, 0, ROW_LEN);
    return false;
}

struct sealed_row {
    const uint8_t *p; /* in the view; NULL: none */
    bool known;       /* former is what stood there */
    uint8_t former[ROW_LEN];
    uint64_t size;
};

/* Exactly the text that make_row() of qcow2.c writes: zeros behind it, the digits last. */
static bool is_our_row(const uint8_t *row, uint64_t *ret_size)
{
    const char *name = (const char *)row + ROW_NAME;
    size_t len = strnlen(name, ROW_NAME_LEN), word = strlen(SEALED_WORD " "),
           tail = strlen(SIZE_WORD) + SIZE_DIGITS;

    if (row[0] != FEATURE_INCOMPATIBLE || row[1] != SEALED_BIT || len < word + 1 + tail)
        return false;
    for (size_t i = len; i < ROW_NAME_LEN; i++)
        if (name[i])
            return false;
    return memcmp(name, SEALED_WORD " ", word) == 0 &&
           memcmp(name + len - tail, SIZE_WORD, strlen(SIZE_WORD)) == 0 &&
           hex_number(row + ROW_NAME + len - SIZE_DIGITS, SIZE_DIGITS, ret_size);
}

static void find_row(const struct header_view *h, struct sealed_row *ret)
{
    const uint8_t *rows = NULL;
    unsigned n = h->version >= 3 ? qcow2_feature_names(h, &rows) : 0;

    memset(ret, 0, sizeof(*ret));
    for (unsigned i = 0; i < n; i++) {
        if (!is_our_row(rows + i * ROW_LEN, &ret->size))
            continue;
        ret->p = rows + i * ROW_LEN;
        ret->known = former_row(rows, n, i, ret->former);
        return;
    }
}

/* ---- rescue ---- */

static void find_sizes(const struct header_view *h, const struct sealed_row *row,
                       struct rescue *rescue)
{
    uint64_t entries = qcow2_get32(h, OFF_L1_SIZE);
    unsigned shift;

    if (!qcow2_size_is_seal(h->size) && row->p && h->size != row->size)
        ; /* two sizes: neither is proved */
    else if (!qcow2_size_is_seal(h->size))
        rescue_add(rescue, RESCUE_EXACT, h->size,
                   row->p && !row->known ? SOURCE_FIELD_REPLACED : SOURCE_FIELD);
    else if (row->p)
        rescue_add(rescue, RESCUE_EXACT, row->size, row->known ? SOURCE_ROW : SOURCE_ROW_REPLACED);
    if (h->cluster_bits < CLUSTER_BITS_MIN || h->cluster_bits > CLUSTER_BITS_MAX)
        return;
    shift = qcow2_l1_shift(h);
    if (entries <= UINT64_MAX >> shift)
        rescue_add(rescue, RESCUE_UPPER, entries << shift, SOURCE_L1);
}

/* The extents in the order of qcow2_plan(): an undo writes them in reverse. */
static int make_plan(const struct header_view *h, const struct sealed_row *row, uint64_t size,
                     struct plan *plan)
{
    uint8_t word[8];
    int r = 0;

    memset(plan, 0, sizeof(*plan));
    put_be(word, size, sizeof(word));
    if (h->size != size)
        r = plan_add(plan, OFF_SIZE, word, h->p + OFF_SIZE, sizeof(word));
    if (r == 0 && row->p)
        r = plan_add(plan, (uint64_t)(row->p - h->p), row->former, row->p, ROW_LEN);
    put_be(word, h->incompatible & ~SEALED_INCOMPAT, sizeof(word));
    if (r == 0 && h->incompatible & SEALED_INCOMPAT && h->size != SEALED_SIZE_BIT)
        r = plan_add(plan, OFF_INCOMPATIBLE, word, h->p + OFF_INCOMPATIBLE, sizeof(word));
    return r;
}

/* Would the header be sound with the plan undone? */
static bool is_sound(const struct header_view *h, const struct plan *plan)
{
    uint8_t bytes[FORMAT_REACH];
    struct excerpt v = {.file_size = h->n, .n = 1, .win = {{0, h->n, bytes}}};
    struct format_info info;
    struct header_view undone;

    memcpy(bytes, h->p, h->n);
    for (unsigned i = 0; i < plan->n; i++)
        memcpy(bytes + plan->ext[i].off, plan->ext[i].truth, plan->ext[i].len);
    return qcow2_load(&v, &undone) == PROBE_YES && qcow2_check(&undone, &info);
}

int qcow2_rescue(struct excerpt *v, const uint64_t *size, struct rescue *ret_rescue,
                 struct plan *ret_plan)
{
    struct header_view h;
    struct sealed_row row;
    enum probe answer = qcow2_load(v, &h);
    bool exact;
    int r;

    if (answer == PROBE_MORE)
        return -EAGAIN;
    memset(ret_rescue, 0, sizeof(*ret_rescue));
    if (answer != PROBE_YES || (h.version != 2 && h.version != 3) ||
        h.n < (h.version == 3 ? OFF_INCOMPATIBLE : OFF_SIZE) + 8)
        return -EUCLEAN;
    find_row(&h, &row);
    find_sizes(&h, &row, ret_rescue);
    exact = ret_rescue->n > 0 && ret_rescue->candidate[0].kind == RESCUE_EXACT;
    if (!exact && !size)
        return -ENODATA;
    if (size && (qcow2_size_is_seal(*size) || (exact && *size != ret_rescue->candidate[0].size)))
        return -ERANGE;
    for (unsigned i = 0; size && i < ret_rescue->n; i++)
        if (ret_rescue->candidate[i].kind == RESCUE_UPPER && *size > ret_rescue->candidate[i].size)
            return -ERANGE;
    r = make_plan(&h, &row, exact ? ret_rescue->candidate[0].size : *size, ret_plan);
    if (r == 0 && !is_sound(&h, ret_plan))
        r = -EUCLEAN;
    if (r < 0)
        ret_plan->n = 0;
    return r;
}

/* ---- links ---- */

/* A name at off -> link->path, maybe beyond what is visible of the header. */
static int load_path(struct excerpt *v, uint64_t off, size_t len, struct format_link *link)
{
    const uint8_t *name;

    if (len == 0 || len >= sizeof(link->path) || off > v->file_size || len > v->file_size - off)
        return -EUCLEAN;
    name = view_get(v, off, len);
    if (!name)
        return -EAGAIN;
    if (memchr(name, '\0', len))
        return -EUCLEAN;
    memcpy(link->path, name, len);
    return 0;
}

static void take_format(const struct header_view *h, const struct extension *ext,
                        struct format_link *link)
{
    if (ext->len >= sizeof(link->format) || ext->off + ext->len > h->n)
        return;
    memset(link->format, 0, sizeof(link->format));
    memcpy(link->format, h->p + ext->off, ext->len);
}

int qcow2_links(struct excerpt *v, int (*fn)(void *arg, const struct format_link *link), void *arg)
{
    struct format_link backing = {.role = LINK_BACKING}, data = {.role = LINK_DATA};
    struct extension ext;
    struct header_view h;
    enum probe answer = qcow2_load(v, &h);
    bool has_backing, has_data;
    uint64_t pos = h.header_length, data_off = 0;
    uint32_t backing_len, data_len = 0;
    int r = 0;

    if (answer != PROBE_YES)
        return answer == PROBE_MORE ? -EAGAIN : -EUCLEAN;
    backing_len = qcow2_get32(&h, OFF_BACKING_SIZE);
    has_backing = h.backing_offset != 0 && backing_len != 0;
    has_data = (h.incompatible & INCOMPAT_DATA_FILE) != 0;
    while (qcow2_next_extension(&h, &pos, &ext) == STEP_EXT) {
        if (ext.type == EXT_BACKING_FORMAT)
            take_format(&h, &ext, &backing);
        if (ext.type != EXT_DATA_FILE)
            continue;
        data_off = ext.off;
        data_len = ext.len;
    }
    if (has_backing)
        r = load_path(v, h.backing_offset, backing_len, &backing);
    if (r == 0 && has_data) /* without the name QEMU needs it on the command line: not followed */
        r = load_path(v, data_off, data_len, &data);
    if (r == 0 && has_backing)
        r = fn(arg, &backing);
    return r == 0 && has_data ? fn(arg, &data) : r;
}
