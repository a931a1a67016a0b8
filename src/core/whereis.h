/* whereis.h: where is a file now, whose name was recorded? Renames by other hosts, and past the
 * views, leave a record behind. For people: nothing is decided by it. */
#ifndef DISKGUARD_CORE_WHEREIS_H
#define DISKGUARD_CORE_WHEREIS_H

#include "core/store.h"

struct whereis {
    uint64_t ino;
    /* len 0: not known; else the file must have it: an inode number may be another file's by now */
    struct io_handle handle;
    const char *was; /* the recorded name, below the datastore */
    char *now;       /* what was found, freed by the caller; NULL: nowhere */
};

/* Looks under each recorded name; for those that lead elsewhere in the directories of the recorded
 * names, then in the whole datastore: at most `limit` names (0: under the recorded names alone) and
 * about ms milliseconds, 0: no limit. Follows no symbolic link, enters no other file system.
 * Blocks. */
void whereis(const struct store *s, struct whereis *w, size_t n, unsigned limit, unsigned ms);

/* One name, for a line of a log: ret is it, or "(was NAME)" where it leads elsewhere and a short
 * look in its directory does not find the file. */
void whereis_name(const struct store *s, uint64_t ino, const struct io_handle *handle,
                  const char *was, char *ret, size_t size);

#endif
