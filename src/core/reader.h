/* reader.h: which hosts read an image and want nobody to write it meanwhile: the names in
 * DATASTORE/.diskguard/readers.
 *
 * One file per image and host, <key of the image>-<host uuid>.<daemon instance>.<number>; its text
 * says of which file (its handle, for inode numbers are used again) and whom a person may ask. The
 * number counts up in a daemon, so that what is left of one that could not be removed is never
 * taken for a later one. Made before the host looks whether somebody has the image for write,
 * removed when the last such reader of that host is gone. Who reads so is for the daemon to say
 * (daemon/readers.h).
 *
 * It counts as long as the record of its host names that daemon instance: one that a crash leaves
 * is void as soon as a daemon of that host has started again. Until then nobody guesses: a host
 * that is cut off reads on. A person's word (fsck.diskguard --takeover) removes those of a host
 * that is down.
 *
 * Two that race (Dekker): the reader makes the name durably, then reads the image's claim; the
 * writer makes his claim durably, then lists the names. At least one sees the other.
 *
 * Versions of diskguard that do not know the directory ignore it, and write what others read.
 * Blocks on the datastore. Thread-safe: no state of its own. */
#ifndef DISKGUARD_READER_H
#define DISKGUARD_READER_H

#include "core/host.h"
#include "core/store.h"

#define READER_DIR "readers"
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

/* Makes it, durable on return; one that stands there already is as good. image: path below the
 * datastore, for people. 0 or -errno. */
DG_MUST_CHECK int reader_make(const struct store *s, const struct reader *rd,
                              const struct reader_info *info, const char *image);
/* Durable. 0, also where there is none, or -errno. */
DG_MUST_CHECK int reader_remove(const struct store *s, const struct reader *rd);

/* All of them, or (ino not 0) those of one image, fresh. *ret is freed by the caller. */
DG_MUST_CHECK int reader_list(const struct store *s, uint64_t ino, struct reader **ret,
                              size_t *ret_n);

/* Does it count? 1, 0 or -errno. One of a host whose record is missing or does not decode counts,
 * for nobody can tell. */
DG_MUST_CHECK int reader_counts(const struct store *s, const struct reader *rd);

/* Is it of the file with this handle, and not of an earlier one with its inode number? What cannot
 * be told is. */
bool reader_is_of(const struct reader_info *info, const struct io_handle *h);

/* What its text says; where it does not decode, the host's name from its record, or its uuid, and
 * nothing else. */
void reader_look(const struct store *s, const struct reader *rd, struct reader_info *ret);

/* Removes those of one daemon, which ends. */
DG_MUST_CHECK int reader_drop(const struct store *s, const struct host *h);

/* Removes all that do not count, and all of the hosts `gone` (uuids, NULL-terminated; NULL: none),
 * of which the caller knows that no daemon lives. dry_run: only counts them. */
DG_MUST_CHECK int reader_sweep(const struct store *s, const char *const *gone, bool dry_run,
                               unsigned *ret_void);

#endif
