/* whereis.h: finds the present name of a file whose name was recorded. A rename by another host, or
 * outside the views, does not change the record. For people; it decides nothing. */
#ifndef DISKGUARD_CORE_WHEREIS_H
#define DISKGUARD_CORE_WHEREIS_H

#include "core/store.h"

struct whereis {
    uint64_t ino;
    /* len 0: not known. Else the file must have this handle: the inode number may belong to another
     * file by now. */
    struct io_handle handle;
    const char *was; /* the recorded name, below the datastore */
    char *now;       /* the present name, freed by the caller; NULL: not found */
};

/* Looks under each recorded name. Those that lead elsewhere it looks for in the directories of
 * the recorded names, then in the whole datastore. limit: at most so many names; 0: only the
 * recorded ones. ms: for about so long; 0: without a limit. Follows no symbolic link, enters no
 * other file system. Blocks. */
void whereis(const struct store *s, struct whereis *w, size_t n, unsigned limit, unsigned ms);

/* The name for a line of the log: the recorded one, or "(was NAME)" where that leads elsewhere and
 * a short look in its directory does not find the file. */
void whereis_name(const struct store *s, uint64_t ino, const struct io_handle *handle,
                  const char *was, char *ret, size_t size);

#endif
