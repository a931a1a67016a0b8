#include "common/out.h"

#include "core/problem.h"

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

/* Control characters, but the end of a line, become '?'. */
static void tame(char *s)
{
    for (; *s; s++)
        if (((unsigned char)*s < 0x20 && *s != '\n') || *s == 0x7f)
            *s = '?';
}

static void tame_line(char *s)
{
    tame(s);
    for (; (s = strchr(s, '\n')); s++)
        *s = '?';
}

void out_program(const char *name)
{
    program = name;
}

/* The formatted text, tamed; to be freed. */
static char *format(const char *fmt, va_list ap)
{
    char *text = NULL;

    if (vasprintf(&text, fmt, ap) < 0)
        out_no_memory();
    tame(text);
    return text;
}

void out_error(const char *fmt, ...)
{
    char *text;
    va_list ap;

    va_start(ap, fmt);
    text = format(fmt, ap);
    va_end(ap);
    fflush(stdout);
    fprintf(stderr, "%s: %s\n", program, text);
    free(text);
}

void out_line(const char *fmt, ...)
{
    char *text;
    va_list ap;

    va_start(ap, fmt);
    text = format(fmt, ap);
    va_end(ap);
    fputs(text, stdout);
    free(text);
}

const char *out_tame(const char *text)
{
    static char buf[4][4200];
    static unsigned turn;
    char *s = buf[turn++ % 4];

    snprintf(s, sizeof(buf[0]), "%s", text);
    tame_line(s);
    return s;
}

const char *out_quote(const char *text)
{
    static char buf[4][4 * 4200];
    static unsigned turn;
    char *s = buf[turn++ % 4];

    if (base_quote(text, s, sizeof(buf[0])) != s)
        return "PATH";
    tame_line(s);
    return s;
}

void out_fill(const char *text, const struct out_words *words, char *ret, size_t size)
{
    problem_fill(text, &(struct problem_words){words->datastore, words->host, words->image}, ret,
                 size);
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

        tame_line(s);
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

struct json_object *out_json_string(const char *text)
{
    size_t size = 3 * strlen(text) + 1;
    char *buf = out_alloc(size);
    struct json_object *o;

    base_utf8(text, buf, size);
    o = json_object_new_string(buf);
    free(buf);
    return o;
}

void out_json_text(struct json_object *o, const char *key, const char *text)
{
    json_object_object_add(o, key, out_json_string(text));
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
    puts(
        json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
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
