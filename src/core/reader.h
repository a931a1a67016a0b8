/* reader.h: which hosts read an image and want nobody to write it meanwhile: the names in
 * DATASTORE/.diskguard/readers/<shard>.
 *
 * One file for each image and host: <key of the image>-<host uuid>.<daemon instance>.<number>.
 * Its text names the file by its handle, since inode numbers are used again, and says whom a
 * person may ask. The number counts up in a daemon: a name that could not be removed is never
 * taken for a later one. A host makes the name before it looks whether somebody has the image
 * for write, and removes it when its last such reader is gone. Which programs are such readers:
 * guard/readers.h.
 *
 * A name counts as long as the record of its host names that daemon instance. One that a crash
 * leaves is void when a daemon of that host has started again. Until then nobody guesses,
 * because a host that is cut off goes on reading. A person can say that a host is down
 * (fsck.diskguard --takeover): that removes its names.
 *
 * The reader makes the name durably, then reads the image's claim. The writer makes his claim
 * durably, then lists the names. At least one sees the other (Dekker).
 *
 * Blocks on the datastore. Thread-safe: no state of its own. */
#ifndef DISKGUARD_READER_H
#define DISKGUARD_READER_H

#include "core/host.h"
#include "core/store.h"

#define READER_NAME_SIZE (16 + 1 + DG_UUID_LEN + 1 + DG_UUID_LEN + 1 + 20 + 1)
#define READER_PROGRAM_SIZE 32

struct reader {
    uint64_t ino;
    dg_uuid host, daemon;
    uint64_t serial; /* from 1 */
};

struct reader_info {
    struct io_handle handle; /* of the image; len 0: not known */
    /* For people: the first of that host's programs that read it so. */

    char host_name[HOST_NAME_SIZE];
    char program[READER_PROGRAM_SIZE]; /* comm of proc(5) */
    char since[32];
    uint64_t pid;
};

void reader_name(const struct reader *rd, char ret[READER_NAME_SIZE]);
bool reader_name_parse(const char *name, struct reader *ret); /* one spelling each */

/* Makes it, durably; one that is there already is as good. image: path below the datastore, for
 * people. 0 or -errno. */
DG_MUST_CHECK int reader_make(const struct store *s, const struct reader *rd,
                              const struct reader_info *info, const char *image);
/* Durable. 0, also where there is none, or -errno. */
DG_MUST_CHECK int reader_remove(const struct store *s, const struct reader *rd);

/* All of them, or (ino not 0) those of one image, fresh. *ret is freed by the caller. */
DG_MUST_CHECK int reader_list(const struct store *s, uint64_t ino, struct reader **ret,
                              size_t *ret_n);

/* Does it count? 1, 0 or -errno. It counts, too, when the record of its host is missing or does
 * not decode: nobody can tell. */
DG_MUST_CHECK int reader_counts(const struct store *s, const struct reader *rd);

/* Is it of the file with this handle, and not of an earlier file with the same inode number?
 * true, too, when that cannot be told. */
bool reader_is_of(const struct reader_info *info, const struct io_handle *h);

/* What its text says. Where that does not decode: only the host's name from its record, or its
 * uuid. */
void reader_look(const struct store *s, const struct reader *rd, struct reader_info *ret);

/* Removes all names of one daemon, which is about to end. */
DG_MUST_CHECK int reader_drop(const struct store *s, const struct host *h);

/* Removes all that do not count, and all of the hosts `gone`: uuids, NULL-terminated, or NULL.
 * The caller knows that no daemon of these hosts lives. dry_run: only counts them. */
DG_MUST_CHECK int reader_sweep(const struct store *s, const char *const *gone, bool dry_run,
                               unsigned *ret_void);

#endif
