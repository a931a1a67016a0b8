/* out.h: what the tools print: text that cannot disturb a terminal, tables, and JSON that every
 * parser takes.
 */
#ifndef DISKGUARD_TOOLS_OUT_H
#define DISKGUARD_TOOLS_OUT_H

#include <json-c/json.h>
#include <stdio.h>

#include "base/base.h"

/* of every object that diskguardctl and fsck.diskguard print; counts up when a member changes its
 * meaning */
#define OUT_JSON_VERSION 1

/* ---- text ---- */

/* "diskguardctl: text" on stderr, one line, control characters replaced. */
void out_program(const char *name);
void out_error(const char *fmt, ...) DG_PRINTF(1, 2);
/* printf to stdout with control characters of the result, but '\n', replaced by '?': file names
 * come from strangers. */
void out_line(const char *fmt, ...) DG_PRINTF(1, 2);

/* A text from a stranger (a file name) for one line of a terminal. One of four buffers of its own,
 * used in turn. */
const char *out_tame(const char *text);

/* The same for a command that the reader may copy: quoted for a shell where it needs that
 * (base_quote). */
const char *out_quote(const char *text);

/* Copies text with the words DATASTORE, HOST and IMAGE, which stand for the reader's own
 * (core/problem.c), replaced; a NULL leaves the word, and so does a value that does not fit. They
 * stand in commands: give them quoted. */
struct out_words {
    const char *datastore, *host, *image;
};
void out_fill(const char *text, const struct out_words *words, char *ret, size_t size);
#define OUT_FILL_MAX 9216u /* bytes for a text with two paths (PATH_MAX, limits.h) */

/* "20 GiB", "512 B", "1.5 GiB" */
const char *out_human(uint64_t bytes, char ret[32]);
/* "2 h 5 min" of a number of seconds */
const char *out_duration(uint64_t seconds, char ret[48]);
/* Seconds since a "2026-11-22T10:00:00Z" by this host's clock, or -1. For people only. */
int64_t out_age(const char *since);

/* ---- tables: as wide as their cells, two spaces between ---- */

#define OUT_COLUMNS 12
struct out_table {
    unsigned columns;
    size_t rows;
    char **cell; /* rows * columns */
};
/* Adds a row of exactly `columns` texts; the first row is the heading. A NULL is shown as "-". */
void out_table_row(struct out_table *t, const char *const *cell);
void out_table_print(const struct out_table *t);
void out_table_free(struct out_table *t);

/* ---- JSON ---- */

struct json_object *out_object(void); /* {"version":1} */
/* Bytes that are not UTF-8 become U+FFFD (base_utf8). */
struct json_object *out_json_string(const char *text);
void out_json_text(struct json_object *o, const char *key, const char *text);
/* NULL or "": null */
void out_json_text_or_null(struct json_object *o, const char *key, const char *text);
void out_json_u64(struct json_object *o, const char *key, uint64_t n);
void out_json_bool(struct json_object *o, const char *key, bool b);
void out_json_print(struct json_object *o); /* one line per object on stdout; consumes o */

/* Members of an object (or NULL) that another program sent; fallback, or NULL, where missing or of
 * another type. */
struct json_object *out_json_get(struct json_object *o, const char *key, enum json_type type);
const char *out_json_get_text(struct json_object *o, const char *key, const char *fallback);
uint64_t out_json_get_u64(struct json_object *o, const char *key);
bool out_json_get_bool(struct json_object *o, const char *key);

/* strdup and friends that end the program: a tool without memory has nothing to say. */
void *out_alloc(size_t n); /* zeroed */
char *out_strdup(const char *s);
_Noreturn void out_no_memory(void);

#endif
