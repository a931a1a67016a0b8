/* record.c: see record.h and include/diskguard/record.h. */
#include "core/record.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <zlib.h>

#include "core/overlay.h"

#define SUM_NAME "sum="
/* bytes of the last line: name, 8 digits, newline */
#define SUM_LINE (sizeof(SUM_NAME) - 1 + 8 + 1)
#define ERRNO_MAX 4095 /* MAX_ERRNO, include/linux/err.h of the kernel */
#define MTIME_FORM "%" PRId64 " %ld"

static const char *const step_names[] = {
    [STEP_FREE] = "free",     [STEP_CLAIMED] = "claimed",     [STEP_ARMED] = "armed",
    [STEP_SEALED] = "sealed", [STEP_RESTORING] = "restoring", [STEP_STUCK] = "stuck",
};
#define STEP_COUNT (sizeof(step_names) / sizeof(step_names[0]))

const char *record_step_name(enum claim_step step)
{
    return (unsigned)step < STEP_COUNT ? step_names[step] : "?";
}

/* ---- what holds for both directions ---- */

static bool extent_ok(const struct extent *e)
{
    return e->len >= 1 && e->len <= EXTENT_MAX && e->off <= (uint64_t)INT64_MAX - e->len;
}

static bool plan_ok(const struct plan *plan)
{
    if (plan->n > PLAN_MAX)
        return false;
    for (unsigned i = 0; i < plan->n; i++) {
        const struct extent *e = &plan->ext[i];
        if (!extent_ok(e))
            return false;
        for (unsigned j = 0; j < i; j++)
            if (e->off < plan->ext[j].off + plan->ext[j].len && plan->ext[j].off < e->off + e->len)
                return false;
    }
    return true;
}

/* "YYYY-MM-DDThh:mm:ssZ" */
static bool time_ok(const char *text)
{
    static const char form[] = "dddd-dd-ddTdd:dd:ddZ";

    for (size_t i = 0; i < sizeof(form); i++) {
        bool is_digit = text[i] >= '0' && text[i] <= '9';
        if (form[i] == 'd' ? !is_digit : text[i] != form[i])
            return false;
    }
    return true;
}

static bool timespec_ok(const struct timespec *t)
{
    return t->tv_sec > INT64_MIN && t->tv_nsec >= 0 && t->tv_nsec < 1000000000;
}

static bool fields_ok(const struct record *rec)
{
    return base_uuid_ok(rec->host) && base_uuid_ok(rec->installation) && base_uuid_ok(rec->boot) &&
           base_uuid_ok(rec->daemon) && time_ok(rec->since) && timespec_ok(&rec->mtime) &&
           timespec_ok(&rec->mtime_sealed) && timespec_ok(&rec->mtime_chosen) &&
           timespec_ok(&rec->mtime_seen) && (unsigned)rec->step < STEP_COUNT &&
           rec->handle.type >= 0 && rec->handle.len <= IO_HANDLE_MAX && rec->sync_error >= 0 &&
           rec->sync_error <= ERRNO_MAX && (unsigned)rec->fenced <= FENCING_LOCK &&
           plan_ok(&rec->plan);
}

static uint32_t checksum(const char *text, size_t len)
{
    return (uint32_t)crc32(0, (const Bytef *)text, (uInt)len); /* len <= DG_RECORD_MAX */
}

/* ---- encode ---- */

struct record_writer {
    char *text;
    size_t len, room;
    int error; /* errno of the first failed put; later puts do nothing */
};

static void record_put(struct record_writer *w, const char *fmt, ...) DG_PRINTF(2, 3);
static void record_put(struct record_writer *w, const char *fmt, ...)
{
    size_t room = w->room - w->len;
    va_list ap;

    if (w->error)
        return;
    va_start(ap, fmt);
    int n = vsnprintf(w->text + w->len, room, fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= room)
        w->error = -EINVAL;
    else
        w->len += (size_t)n;
}

/* value: an array of size bytes, which must hold a NUL. */
static void put_text(struct record_writer *w, const char *name, const char *value, size_t size)
{
    record_put(w, "%s=", name);
    if (w->error)
        return;
    if (!memchr(value, '\0', size) || base_escape(value, w->text + w->len, w->room - w->len) < 0)
        w->error = -EINVAL;
    else
        w->len += strlen(w->text + w->len);
    record_put(w, "\n");
}

static void put_hex(struct record_writer *w, const uint8_t *bytes, size_t n)
{
    if (w->error || 2 * n >= w->room - w->len) {
        w->error = -EINVAL;
        return;
    }
    base_hex(bytes, n, w->text + w->len);
    w->len += 2 * n;
}

static void put_handle(struct record_writer *w, const struct io_handle *h)
{
    if (h->len == 0) {
        record_put(w, "handle=-\n");
        return;
    }
    record_put(w, "handle=%d ", h->type);
    put_hex(w, h->bytes, h->len);
    record_put(w, "\n");
}

static void put_extent(struct record_writer *w, const struct extent *e)
{
    record_put(w, "extent=%" PRIu64 " %" PRIu32 " ", e->off, e->len);
    put_hex(w, e->truth, e->len);
    record_put(w, " ");
    put_hex(w, e->sealed, e->len);
    record_put(w, " ");
    if (e->has_was)
        put_hex(w, e->was, e->len);
    else
        record_put(w, "-");
    record_put(w, "\n");
}

static void put_mtime(struct record_writer *w, const char *name, const struct timespec *t)
{
    record_put(w, "%s=" MTIME_FORM "\n", name, (int64_t)t->tv_sec, t->tv_nsec);
}

/* freed: as claim.c's set_freed() leaves it, with the next seq. */
static void put_all(struct record_writer *w, const struct record *rec, bool freed)
{
    record_put(w, DG_RECORD_MAGIC " %d\n", DG_RECORD_VERSION);
    put_text(w, "image", rec->image, sizeof(rec->image));
    record_put(w, "inode=%" PRIu64 "\n", rec->ino);
    put_handle(w, &rec->handle);
    record_put(w, "generation=%" PRIu64 "\n", rec->generation);
    record_put(w, "state=%s\n", step_names[freed ? STEP_FREE : rec->step]);
    record_put(w, "seq=%" PRIu64 "\n", rec->seq + freed);
    record_put(w, "host=%s\n", rec->host);
    put_text(w, "name", rec->host_name, sizeof(rec->host_name));
    record_put(w, "installation=%s\nboot=%s\ndaemon=%s\n", rec->installation, rec->boot,
               rec->daemon);
    record_put(w, "pid=%" PRIu64 "\nstart=%" PRIu64 "\n", rec->pid, rec->start);
    record_put(w, "uid=%" PRIu64 "\ngid=%" PRIu64 "\n", rec->uid, rec->gid);
    record_put(w, "since=%s\n", rec->since);
    put_text(w, "format", rec->format, sizeof(rec->format));
    record_put(w, "size=%" PRIu64 "\n", rec->virtual_size);
    if (freed || rec->cut == OVERLAY_NO_CUT)
        record_put(w, "cut=-\n");
    else
        record_put(w, "cut=%" PRIu64 "\n", rec->cut);
    put_mtime(w, "mtime", &rec->mtime);
    put_mtime(w, "mtime-sealed", &rec->mtime_sealed);
    record_put(w, "sync-error=%d\n", rec->sync_error);
    record_put(w, "fenced=%s\n", io_fencing_name(rec->fenced));
    if (rec->chosen)
        record_put(w, "mtime-chosen=" MTIME_FORM " " MTIME_FORM "\n",
                   (int64_t)rec->mtime_chosen.tv_sec, rec->mtime_chosen.tv_nsec,
                   (int64_t)rec->mtime_seen.tv_sec, rec->mtime_seen.tv_nsec);
    for (unsigned i = 0; !freed && i < rec->plan.n; i++)
        put_extent(w, &rec->plan.ext[i]);
    record_put(w, SUM_NAME "%08" PRIx32 "\n", checksum(w->text, w->len));
}

/* No record is longer, terminating NUL included. */
#define EXTENT_NUMBERS 64 /* "extent=", offset, length, spaces */
static size_t text_room(const struct record *rec)
{
    size_t room = RECORD_FREED_MAX;

    for (unsigned i = 0; i < rec->plan.n; i++)
        room += EXTENT_NUMBERS + 3 * 2 * (size_t)rec->plan.ext[i].len;
    return DG_MIN(room, DG_RECORD_MAX + 1);
}

int record_encode(const struct record *rec, char **ret_text, size_t *ret_len)
{
    struct record_writer w = {0};

    if (!fields_ok(rec))
        return -EINVAL;
    w.room = text_room(rec);
    w.text = malloc(w.room);
    if (!w.text)
        return -ENOMEM;
    put_all(&w, rec, false);
    if (w.error) {
        free(w.text);
        return w.error;
    }
    *ret_text = w.text;
    *ret_len = w.len;
    return 0;
}

int record_encode_freed(const struct record *rec, char text[RECORD_FREED_MAX], size_t *ret_len)
{
    struct record_writer w = {.text = text, .room = RECORD_FREED_MAX};

    if (!fields_ok(rec))
        return -EINVAL;
    put_all(&w, rec, true);
    if (w.error)
        return w.error;
    *ret_len = w.len;
    return 0;
}

/* ---- decode ---- */

struct record_reader {
    char *next; /* the next line */
    bool bad;   /* something did not parse; later values mean nothing */
};

/* Cuts the next line off, which must begin with "name=", and returns its value; "" when there is
 * none. */
static char *record_take(struct record_reader *r, const char *name)
{
    size_t n = strlen(name);
    char *line = r->next, *end = strchr(line, '\n');

    if (r->bad || !end || strncmp(line, name, n) != 0 || line[n] != '=') {
        r->bad = true;
        return strchr(line, '\0');
    }
    *end = '\0';
    r->next = end + 1;
    return line + n + 1;
}

/* Cuts the next word off *rest; words are separated by exactly one space. */
static char *word(struct record_reader *r, char **rest)
{
    char *this = *rest, *space = this ? strchr(this, ' ') : NULL;

    if (space)
        *space++ = '\0';
    if (!this || *this == '\0')
        r->bad = true;
    *rest = space;
    return this ? this : strchr(r->next, '\0');
}

static uint64_t parse_u64(struct record_reader *r, const char *text)
{
    uint64_t value = 0;

    if (base_u64(text, &value) < 0)
        r->bad = true;
    return value;
}

static uint64_t take_u64(struct record_reader *r, const char *name)
{
    return parse_u64(r, record_take(r, name));
}

static void take_text(struct record_reader *r, const char *name, char *ret, size_t size)
{
    const char *value = record_take(r, name);

    if (base_unescape(value, strlen(value), ret, size) < 0)
        r->bad = true;
}

/* Reads a text without escapes that must fit. fields_ok() judges what it means. */
static void take_plain(struct record_reader *r, const char *name, char *ret, size_t size)
{
    const char *value = record_take(r, name);
    size_t n = strlen(value);

    if (n >= size)
        r->bad = true;
    else
        memcpy(ret, value, n + 1);
}

/* Decodes exactly n bytes, or marks the record bad. */
static void parse_hex(struct record_reader *r, const char *text, size_t n, uint8_t *ret)
{
    if (strlen(text) != 2 * n || base_unhex(text, n, ret) < 0)
        r->bad = true;
}

static void take_handle(struct record_reader *r, struct io_handle *ret)
{
    char *rest = record_take(r, "handle");

    if (strcmp(rest, "-") == 0)
        return;
    uint64_t type = parse_u64(r, word(r, &rest));
    const char *hex = word(r, &rest);
    size_t n = strlen(hex) / 2;
    if (r->bad || rest || type > INT32_MAX || n < 1 || n > IO_HANDLE_MAX) {
        r->bad = true;
        return;
    }
    parse_hex(r, hex, n, ret->bytes);
    ret->type = (int)type;
    ret->len = (unsigned)n;
}

static void take_step(struct record_reader *r, enum claim_step *ret)
{
    const char *value = record_take(r, "state");

    for (unsigned i = 0; i < STEP_COUNT; i++)
        if (strcmp(value, step_names[i]) == 0) {
            *ret = (enum claim_step)i;
            return;
        }
    r->bad = true;
}

static void take_cut(struct record_reader *r, uint64_t *ret)
{
    const char *value = record_take(r, "cut");

    *ret = OVERLAY_NO_CUT;
    if (strcmp(value, "-") == 0)
        return;
    *ret = parse_u64(r, value);
    if (*ret == OVERLAY_NO_CUT)
        r->bad = true;
}

static void parse_mtime(struct record_reader *r, char **rest, struct timespec *ret)
{
    char *seconds = word(r, rest);
    bool negative = seconds[0] == '-'; /* before 1970 */
    uint64_t sec = parse_u64(r, seconds + negative), nsec = parse_u64(r, word(r, rest));

    if (r->bad || sec > INT64_MAX || nsec >= 1000000000 || (negative && sec == 0)) {
        r->bad = true;
        return;
    }
    ret->tv_sec = negative ? -(time_t)sec : (time_t)sec;
    ret->tv_nsec = (long)nsec;
}

static void take_mtime(struct record_reader *r, const char *name, struct timespec *ret)
{
    char *rest = record_take(r, name);

    parse_mtime(r, &rest, ret);
    r->bad = r->bad || rest;
}

/* An optional line. */
static void take_chosen(struct record_reader *r, struct record *rec)
{
    if (r->bad || strncmp(r->next, "mtime-chosen=", 13) != 0)
        return;
    char *rest = record_take(r, "mtime-chosen");
    parse_mtime(r, &rest, &rec->mtime_chosen);
    parse_mtime(r, &rest, &rec->mtime_seen);
    r->bad = r->bad || rest;
    rec->chosen = true;
}

static void take_extent(struct record_reader *r, struct extent *ret)
{
    char *rest = record_take(r, "extent");
    uint64_t off = parse_u64(r, word(r, &rest)), len = parse_u64(r, word(r, &rest));
    const char *truth = word(r, &rest), *sealed = word(r, &rest), *was = word(r, &rest);

    if (r->bad || rest || len < 1 || len > EXTENT_MAX) {
        r->bad = true;
        return;
    }
    ret->off = off;
    ret->len = (uint32_t)len;
    parse_hex(r, truth, len, ret->truth);
    parse_hex(r, sealed, len, ret->sealed);
    ret->has_was = strcmp(was, "-") != 0;
    if (ret->has_was)
        parse_hex(r, was, len, ret->was);
}

/* A line that may be missing: records of version 1 were first written without it. */
static void take_fenced(struct record_reader *r, enum fencing *ret)
{
    const char *value;

    *ret = FENCING_NO;
    if (r->bad || strncmp(r->next, "fenced=", 7) != 0)
        return;
    value = record_take(r, "fenced");
    for (int f = FENCING_NO; f <= FENCING_LOCK; f++)
        if (strcmp(value, io_fencing_name((enum fencing)f)) == 0) {
            *ret = (enum fencing)f;
            return;
        }
    r->bad = true;
}

static void take_all(struct record_reader *r, struct record *rec)
{
    take_text(r, "image", rec->image, sizeof(rec->image));
    rec->ino = take_u64(r, "inode");
    take_handle(r, &rec->handle);
    rec->generation = take_u64(r, "generation");
    take_step(r, &rec->step);
    rec->seq = take_u64(r, "seq");
    take_plain(r, "host", rec->host, sizeof(rec->host));
    take_text(r, "name", rec->host_name, sizeof(rec->host_name));
    take_plain(r, "installation", rec->installation, sizeof(rec->installation));
    take_plain(r, "boot", rec->boot, sizeof(rec->boot));
    take_plain(r, "daemon", rec->daemon, sizeof(rec->daemon));
    rec->pid = take_u64(r, "pid");
    rec->start = take_u64(r, "start");
    rec->uid = take_u64(r, "uid");
    rec->gid = take_u64(r, "gid");
    take_plain(r, "since", rec->since, sizeof(rec->since));
    take_text(r, "format", rec->format, sizeof(rec->format));
    rec->virtual_size = take_u64(r, "size");
    take_cut(r, &rec->cut);
    take_mtime(r, "mtime", &rec->mtime);
    take_mtime(r, "mtime-sealed", &rec->mtime_sealed);
    uint64_t sync_error = take_u64(r, "sync-error");
    /* one that is too large becomes one that fields_ok() refuses */
    rec->sync_error = (int)DG_MIN(sync_error, (uint64_t)ERRNO_MAX + 1);
    take_fenced(r, &rec->fenced);
    take_chosen(r, rec);
    while (!r->bad && *r->next && rec->plan.n < PLAN_MAX)
        take_extent(r, &rec->plan.ext[rec->plan.n++]);
    if (*r->next) /* more extents than a plan has, or a line that nobody knows */
        r->bad = true;
}

/* Is text whole, and the version's number? 0 with *ret_body set behind the first line, or -errno.
 * text is cut before its sum. */
static int check_frame(char *text, size_t len, char **ret_body)
{
    static const char magic[] = DG_RECORD_MAGIC " ";
    char *end, *newline;
    uint8_t sum[4];
    uint64_t version;

    if (len < sizeof(magic) + SUM_LINE || memchr(text, '\0', len) ||
        strncmp(text, magic, strlen(magic)) != 0)
        return -EBADMSG;
    end = text + len - SUM_LINE;
    if (end[-1] != '\n' || strncmp(end, SUM_NAME, strlen(SUM_NAME)) != 0 || text[len - 1] != '\n' ||
        base_unhex(end + strlen(SUM_NAME), sizeof(sum), sum) < 0)
        return -EBADMSG;
    *end = '\0';
    if (checksum(text, (size_t)(end - text)) !=
        ((uint32_t)sum[0] << 24 | (uint32_t)sum[1] << 16 | (uint32_t)sum[2] << 8 | sum[3]))
        return -EBADMSG;
    newline = strchr(text, '\n');
    *newline = '\0';
    if (base_u64(text + strlen(magic), &version) < 0 || version == 0)
        return -EBADMSG;
    if (version > DG_RECORD_VERSION)
        return -EPROTONOSUPPORT;
    *ret_body = newline + 1;
    return 0;
}

int record_decode(const char *text, size_t len, struct record *ret)
{
    struct record_reader reader = {0};
    struct record *rec = NULL;
    char *copy = NULL;
    int r = -EBADMSG;

    if (len > DG_RECORD_MAX)
        return -EBADMSG;
    copy = malloc(len + 1);
    rec = calloc(1, sizeof(*rec));
    if (!copy || !rec) {
        r = -ENOMEM;
        goto out;
    }
    memcpy(copy, text, len);
    copy[len] = '\0';
    r = check_frame(copy, len, &reader.next);
    if (r < 0)
        goto out;
    take_all(&reader, rec);
    if (reader.bad || !fields_ok(rec)) {
        r = -EBADMSG;
        goto out;
    }
    *ret = *rec;
out:
    free(copy);
    free(rec);
    return r;
}

/* ---- comparing ---- */

static bool same_extent(const struct extent *a, const struct extent *b)
{
    return a->off == b->off && a->len == b->len && a->has_was == b->has_was &&
           memcmp(a->truth, b->truth, a->len) == 0 && memcmp(a->sealed, b->sealed, a->len) == 0 &&
           (!a->has_was || memcmp(a->was, b->was, a->len) == 0);
}

bool record_same_undo(const struct record *a, const struct record *b)
{
    bool same = a->plan.n == b->plan.n && a->cut == b->cut && !a->chosen && !b->chosen &&
                a->sync_error == b->sync_error;

    for (unsigned i = 0; same && i < a->plan.n; i++)
        same = same_extent(&a->plan.ext[i], &b->plan.ext[i]);
    return same;
}
