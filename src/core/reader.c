/* reader.c: see reader.h. */
#include "core/reader.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "core/names.h"

#define READER_MAGIC "diskguard-reader"
#define READER_TEXT_MAX 8192

/* ---- names ---- */

void reader_name(const struct reader *rd, char ret[READER_NAME_SIZE])
{
    snprintf(ret, READER_NAME_SIZE, "%016" PRIx64 "-%s.%s.%" PRIu64, rd->ino, rd->host, rd->daemon,
             rd->serial);
}

bool reader_name_parse(const char *name, struct reader *ret)
{
    struct reader rd = {.ino = 0};
    char again[READER_NAME_SIZE];

    const char *host = name + SHARD_KEY_DIGITS + 1, *daemon = host + DG_UUID_LEN + 1,
               *serial = daemon + DG_UUID_LEN + 1;

    if (strlen(name) <= (size_t)(serial - name) || strlen(name) >= READER_NAME_SIZE ||
        !shard_key(name, &rd.ino) || base_u64(serial, &rd.serial) < 0 || rd.serial == 0)
        return false;
    memcpy(rd.host, host, DG_UUID_LEN);
    memcpy(rd.daemon, daemon, DG_UUID_LEN);
    reader_name(&rd, again);
    if (strcmp(again, name) != 0 || !base_uuid_ok(rd.host) || !base_uuid_ok(rd.daemon))
        return false;
    *ret = rd;
    return true;
}

/* ---- text ---- */

struct text {
    char host[3 * HOST_NAME_SIZE + 1], program[3 * READER_PROGRAM_SIZE + 1], pid[24], since[32];
    char handle[16 + 2 * IO_HANDLE_MAX + 1]; /* "<type> <hex digits>", or "-" */
    char image[4 * 1024];
};

#define N_FIELDS 6

static void fields_of(struct text *t, struct text_field ret[static N_FIELDS])
{
    const struct text_field f[N_FIELDS] = {
        TEXT_FIELD("host", t->host),     TEXT_FIELD("program", t->program),
        TEXT_FIELD("pid", t->pid),       TEXT_FIELD("since", t->since),
        TEXT_FIELD("handle", t->handle), TEXT_FIELD("image", t->image),
    };
    memcpy(ret, f, sizeof(f));
}

static void handle_text(const struct io_handle *h, char *ret, size_t size)
{
    char hex[2 * IO_HANDLE_MAX + 1];

    base_hex(h->bytes, h->len, hex);
    snprintf(ret, size, h->len ? "%d %s" : "-", h->type, hex);
}

static int handle_parse(const char *text, struct io_handle *ret)
{
    const char *hex = strchr(text, ' ');
    char type[16] = "";
    uint64_t number;
    size_t n = hex ? strlen(hex + 1) / 2 : 0;

    if (strcmp(text, "-") == 0)
        return 0;
    if (!hex || (size_t)(hex - text) >= sizeof(type) || n < 1 || n > IO_HANDLE_MAX ||
        strlen(hex + 1) != 2 * n)
        return -EBADMSG;
    memcpy(type, text, (size_t)(hex - text));
    if (base_u64(type, &number) < 0 || number > INT32_MAX || base_unhex(hex + 1, n, ret->bytes) < 0)
        return -EBADMSG;
    ret->type = (int)number;
    ret->len = (unsigned)n;
    return 0;
}

bool reader_is_of(const struct reader_info *info, const struct io_handle *h)
{
    return info->handle.len == 0 || h->len == 0 || io_handle_equal(&info->handle, h);
}

int reader_make(const struct store *s, const struct reader *rd, const struct reader_info *info,
                const char *image)
{
    _cleanup_free_ struct text *t = calloc(1, sizeof(*t));
    _cleanup_free_ char *text = malloc(READER_TEXT_MAX);
    char name[READER_NAME_SIZE];
    size_t len;

    if (!t || !text)
        return -ENOMEM;
    struct text_field f[N_FIELDS];
    fields_of(t, f);
    int r = base_escape(info->host_name, t->host, sizeof(t->host));
    if (r == 0)
        r = base_escape(info->program, t->program, sizeof(t->program));
    if (r == 0 && base_escape(image, t->image, sizeof(t->image)) < 0)
        t->image[0] = '\0'; /* too long a path: it is for people */
    snprintf(t->pid, sizeof(t->pid), "%" PRIu64, info->pid);
    snprintf(t->since, sizeof(t->since), "%s", info->since);
    handle_text(&info->handle, t->handle, sizeof(t->handle));
    if (r == 0)
        r = text_emit(READER_MAGIC, DG_FORMAT_VERSION, f, sizeof(f) / sizeof(f[0]), text,
                      READER_TEXT_MAX, &len);
    if (r < 0)
        return r;
    reader_name(rd, name);
    return names_make(s, SHARD_READERS, name, text);
}

static int decode(const char *text, size_t len, struct reader_info *ret)
{
    _cleanup_free_ struct text *t = calloc(1, sizeof(*t));
    struct reader_info info = {.pid = 0};

    if (!t)
        return -ENOMEM;
    struct text_field f[N_FIELDS];
    fields_of(t, f);
    int r = text_parse(text, len, READER_MAGIC, DG_FORMAT_VERSION, f, sizeof(f) / sizeof(f[0]));
    if (r == 0)
        r = base_unescape(t->host, strlen(t->host), info.host_name, sizeof(info.host_name));
    if (r == 0)
        r = base_unescape(t->program, strlen(t->program), info.program, sizeof(info.program));
    if (r == 0)
        r = base_u64(t->pid, &info.pid);
    if (r == 0)
        r = handle_parse(t->handle, &info.handle);
    if (r < 0)
        return r;
    snprintf(info.since, sizeof(info.since), "%s", t->since);
    *ret = info;
    return 0;
}

void reader_look(const struct store *s, const struct reader *rd, struct reader_info *ret)
{
    _cleanup_free_ char *text = NULL;
    struct host_record rec;
    char name[READER_NAME_SIZE];
    size_t len;

    reader_name(rd, name);
    if (names_text(s, SHARD_READERS, name, READER_TEXT_MAX, &text, &len) == 0 &&
        decode(text, len, ret) == 0)
        return;
    *ret = (struct reader_info){.pid = 0};
    snprintf(ret->host_name, sizeof(ret->host_name), "%s",
             host_record_read(s, rd->host, &rec) == 0 ? rec.name : rd->host);
}

/* ---- making, listing, removing ---- */

int reader_remove(const struct store *s, const struct reader *rd)
{
    char name[READER_NAME_SIZE];

    reader_name(rd, name);
    int r = names_remove(s, SHARD_READERS, name);
    return r < 0 ? r : names_sync(s, SHARD_READERS, name);
}

/* arg: the inode number that is wanted, or 0. */
static bool take_reader(void *arg, const char *name, void *ret)
{
    const uint64_t *ino = arg;
    struct reader *one = ret;

    return reader_name_parse(name, one) && (*ino == 0 || one->ino == *ino);
}

int reader_list(const struct store *s, uint64_t ino, struct reader **ret, size_t *ret_n)
{
    void *items = NULL;
    int r = names_list(s, SHARD_READERS, ino, sizeof(**ret), take_reader, &ino, &items, ret_n);

    if (r == 0)
        *ret = items;
    return r;
}

int reader_counts(const struct store *s, const struct reader *rd)
{
    struct host_record rec;
    int r = host_record_read(s, rd->host, &rec);

    if (r == -ENOENT || r == -EBADMSG || r == -EPROTONOSUPPORT)
        return 1;
    return r < 0 ? r : strcmp(rec.daemon, rd->daemon) == 0;
}

int reader_drop(const struct store *s, const struct host *h)
{
    _cleanup_free_ struct reader *rd = NULL;
    size_t n = 0;
    int r = reader_list(s, 0, &rd, &n);

    for (size_t i = 0; r == 0 && i < n; i++)
        if (strcmp(rd[i].host, h->uuid) == 0 && strcmp(rd[i].daemon, h->daemon) == 0)
            r = reader_remove(s, &rd[i]);
    return r;
}

static bool is_gone(const struct reader *rd, const char *const *gone)
{
    for (; gone && *gone; gone++)
        if (strcmp(rd->host, *gone) == 0)
            return true;
    return false;
}

int reader_sweep(const struct store *s, const char *const *gone, bool dry_run, unsigned *ret_void)
{
    _cleanup_free_ struct reader *rd = NULL;
    unsigned found = 0;
    size_t n = 0;
    int r = reader_list(s, 0, &rd, &n);

    for (size_t i = 0; r == 0 && i < n; i++) {
        int counts = is_gone(&rd[i], gone) ? 0 : reader_counts(s, &rd[i]);
        if (counts != 0) {
            r = counts < 0 ? counts : 0;
            continue;
        }
        found++;
        r = dry_run ? 0 : reader_remove(s, &rd[i]);
    }
    if (r < 0)
        return r;
    *ret_void = found;
    return 0;
}
