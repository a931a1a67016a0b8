#include "out.h"

#include <stdarg.h>
#include <string.h>
#include <time.h>

#include "diskguard/exitcodes.h"

static const char *program = "diskguard";

/* ---- memory ---- */

void out_no_memory(void)
{
    fprintf(stderr, "%s: out of memory\n", program);
    /* FSCK_ERROR and DG_EXIT_FAILURE differ; both programs call this through their own name. */
    exit(strncmp(program, "fsck", 4) == 0 ? (int)FSCK_ERROR : (int)DG_EXIT_FAILURE);
}

void *out_alloc(size_t n)
{
    void *p = calloc(1, n ? n : 1);

    if (!p)
        out_no_memory();
    return p;
}

char *out_strdup(const char *s)
{
    char *p = strdup(s);

    if (!p)
        out_no_memory();
    return p;
}

/* ---- text ---- */

static void tame(char *s)
{
    for (; *s; s++)
        if (((unsigned char)*s < 0x20 && *s != '\n') || *s == 0x7f)
            *s = '?';
}

void out_program(const char *name)
{
    program = name;
}

void out_error(const char *fmt, ...)
{
    char *text = NULL;
    va_list ap;

    va_start(ap, fmt);
    if (vasprintf(&text, fmt, ap) < 0)
        out_no_memory();
    va_end(ap);
    tame(text);
    fflush(stdout);
    fprintf(stderr, "%s: %s\n", program, text);
    free(text);
}

void out_line(const char *fmt, ...)
{
    char *text = NULL;
    va_list ap;

    va_start(ap, fmt);
    if (vasprintf(&text, fmt, ap) < 0)
        out_no_memory();
    va_end(ap);
    tame(text);
    fputs(text, stdout);
    free(text);
}

const char *out_tame(const char *text)
{
    static char buf[4][4200];
    static unsigned turn;
    char *s = buf[turn++ % 4];

    snprintf(s, sizeof(buf[0]), "%s", text);
    tame(s);
    for (char *p = s; *p; p++)
        if (*p == '\n')
            *p = '?';
    return s;
}

void out_fill(const char *text, const struct out_words *words, char *ret, size_t size)
{
    const struct {
        const char *word, *value;
    } table[] = {{"DATASTORE", words->datastore}, {"HOST", words->host}, {"IMAGE", words->image}};
    size_t used = 0;

    ret[0] = '\0';
    while (*text && used + 1 < size) {
        const char *value = NULL;
        size_t len = 1;

        for (size_t i = 0; i < sizeof(table) / sizeof(table[0]) && !value; i++)
            if (table[i].value && strncmp(text, table[i].word, strlen(table[i].word)) == 0) {
                value = table[i].value;
                len = strlen(table[i].word);
            }
        used += (size_t)snprintf(ret + used, size - used, "%.*s", value ? (int)strlen(value) : 1,
                                 value ? value : text);
        text += len;
    }
}

const char *out_human(uint64_t bytes, char ret[32])
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned u = 0;
    uint64_t div = 1;

    while (u < 6 && bytes / div >= 1024) {
        div *= 1024;
        u++;
    }
    if (bytes % div == 0)
        snprintf(ret, 32, "%llu %s", (unsigned long long)(bytes / div), unit[u]);
    else
        snprintf(ret, 32, "%.1f %s", (double)bytes / (double)div, unit[u]);
    return ret;
}

const char *out_duration(uint64_t seconds, char ret[48])
{
    unsigned long long s = seconds;

    if (s < 120)
        snprintf(ret, 48, "%llu s", s);
    else if (s < 7200)
        snprintf(ret, 48, "%llu min", s / 60);
    else if (s < 172800)
        snprintf(ret, 48, "%llu h %llu min", s / 3600, s % 3600 / 60);
    else
        snprintf(ret, 48, "%llu days", s / 86400);
    return ret;
}

int64_t out_age(const char *since)
{
    struct tm tm = {0};
    const char *end = strptime(since, "%Y-%m-%dT%H:%M:%SZ", &tm);

    if (!end || *end)
        return -1;
    time_t t = timegm(&tm), now = time(NULL);
    return t > now ? -1 : (int64_t)(now - t);
}

/* ---- tables ---- */

void out_table_row(struct out_table *t, const char *const *cell)
{
    char **more = realloc(t->cell, (t->rows + 1) * t->columns * sizeof(*more));

    if (!more)
        out_no_memory();
    t->cell = more;
    for (unsigned i = 0; i < t->columns; i++) {
        char *s = out_strdup(cell[i] && cell[i][0] ? cell[i] : "-");

        tame(s);
        for (char *p = s; *p; p++)
            if (*p == '\n')
                *p = '?';
        t->cell[t->rows * t->columns + i] = s;
    }
    t->rows++;
}

/* Columns of a terminal that a UTF-8 text takes, near enough: continuation bytes take none. */
static size_t width(const char *s)
{
    size_t n = 0;

    for (; *s; s++)
        n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

void out_table_print(const struct out_table *t)
{
    size_t wide[OUT_COLUMNS] = {0};

    for (size_t i = 0; i < t->rows * t->columns; i++)
        wide[i % t->columns] = DG_MAX(wide[i % t->columns], width(t->cell[i]));
    for (size_t r = 0; r < t->rows; r++) {
        for (unsigned c = 0; c < t->columns; c++) {
            const char *s = t->cell[r * t->columns + c];

            printf("%s%*s", s, c + 1 < t->columns ? (int)(wide[c] - width(s) + 2) : 0, "");
        }
        putchar('\n');
    }
}

void out_table_free(struct out_table *t)
{
    for (size_t i = 0; i < t->rows * t->columns; i++)
        free(t->cell[i]);
    free(t->cell);
    t->cell = NULL;
    t->rows = 0;
}

/* ---- JSON ---- */

struct json_object *out_object(void)
{
    struct json_object *o = json_object_new_object();

    if (!o)
        out_no_memory();
    json_object_object_add(o, "version", json_object_new_int(OUT_JSON_VERSION));
    return o;
}

/* Length of the valid UTF-8 sequence at s (RFC 3629), 0 if there is none. */
static size_t utf8_length(const unsigned char *s)
{
    size_t n = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf5 ? 4 : 0;

    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) ||
        (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return n;
}

void out_json_text(struct json_object *o, const char *key, const char *text)
{
    char *buf = out_alloc(3 * strlen(text) + 1);
    size_t used = 0;

    for (const unsigned char *s = (const unsigned char *)text; *s;) {
        size_t n = utf8_length(s);

        memcpy(buf + used, n ? (const char *)s : "\xef\xbf\xbd", n ? n : 3);
        used += n ? n : 3;
        s += n ? n : 1;
    }
    json_object_object_add(o, key, json_object_new_string_len(buf, (int)used));
    free(buf);
}

void out_json_text_or_null(struct json_object *o, const char *key, const char *text)
{
    if (text && text[0])
        out_json_text(o, key, text);
    else
        json_object_object_add(o, key, NULL);
}

void out_json_u64(struct json_object *o, const char *key, uint64_t n)
{
    json_object_object_add(o, key, json_object_new_uint64(n));
}

void out_json_bool(struct json_object *o, const char *key, bool b)
{
    json_object_object_add(o, key, json_object_new_boolean(b));
}

void out_json_print(struct json_object *o)
{
    puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
    json_object_put(o);
}

struct json_object *out_json_get(struct json_object *o, const char *key, enum json_type type)
{
    struct json_object *v;

    if (!json_object_is_type(o, json_type_object) || !json_object_object_get_ex(o, key, &v) ||
        !json_object_is_type(v, type))
        return NULL;
    return v;
}

const char *out_json_get_text(struct json_object *o, const char *key, const char *fallback)
{
    struct json_object *v = out_json_get(o, key, json_type_string);

    return v ? json_object_get_string(v) : fallback;
}

uint64_t out_json_get_u64(struct json_object *o, const char *key)
{
    struct json_object *v = out_json_get(o, key, json_type_int);

    return v ? json_object_get_uint64(v) : 0;
}

bool out_json_get_bool(struct json_object *o, const char *key)
{
    struct json_object *v = out_json_get(o, key, json_type_boolean);

    return v && json_object_get_boolean(v);
}
