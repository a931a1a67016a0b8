/* names.h: a directory of DATASTORE/.diskguard in which each name is a fact (dependency.h,
 * reader.h): made durably, listed fresh, removed at leisure. The text in the file is for people.
 * The directory is made with the first name.
 *
 * Names are never renamed, so a listing that begins after a name was made shows it. Blocks on the
 * datastore. Thread-safe: no state of its own. */
#ifndef DISKGUARD_NAMES_H
#define DISKGUARD_NAMES_H

#include "core/store.h"

/* A descriptor of the directory; -ENOENT: nobody has made a name there yet; or -errno. */
DG_MUST_CHECK int names_open(const struct store *s, const char *dir);

/* Durable on return; a name that stands there already is as good. 0 or -errno. */
DG_MUST_CHECK int names_make(const struct store *s, const char *dir, const char *name,
                             const char *text);

/* Calls fn for each name, in no order. A non-zero return of fn stops and is returned. Of a
 * directory that is not there: 0. */
DG_MUST_CHECK int names_each(const struct store *s, const char *dir,
                             int (*fn)(void *arg, const char *name), void *arg);

/* An array of what take() makes of each name (item: size of one): true: it is in. *ret is freed by
 * the caller. 0 or -errno. */
DG_MUST_CHECK int names_list(const struct store *s, const char *dir, size_t item,
                             bool (*take)(void *arg, const char *name, void *ret), void *arg,
                             void **ret, size_t *ret_n);

/* dir_fd from names_open(). Not made durable. 0, also where it is gone already, or -errno. */
DG_MUST_CHECK int names_remove(int dir_fd, const char *name);

/* The key that a name begins with: 16 lower-case hex digits (layout.h: an inode number). false: it
 * does not begin with one. */
#define NAMES_KEY_DIGITS 16
bool names_key(const char *text, uint64_t *ret);

#endif
