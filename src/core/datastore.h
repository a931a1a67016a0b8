/* datastore.h: the small parts that make a datastore and open it (store.h): the file
 * .diskguard/datastore, directories, and what a person can do. */
#ifndef DISKGUARD_DATASTORE_H
#define DISKGUARD_DATASTORE_H

#include "core/io.h"

#define DATASTORE_FILE "datastore"
#define DATASTORE_TEXT_MAX 2048
#define DATASTORE_HANDLE_TEXT (2 * IO_HANDLE_MAX + 16)
#define DATASTORE_TMP_NAME 64

enum store_state {
    STATE_OLD,     /* format 1 */
    STATE_READY,   /* ours */
    STATE_UPGRADE, /* on the way from one to the other: nobody may serve it */
};
struct datastore_text {
    dg_uuid uuid;
    char root[DATASTORE_HANDLE_TEXT], made[32];
    enum store_state state;
};

/* Fresh. path: of the root, for people. 0 or -errno with a reason. */
DG_MUST_CHECK int datastore_read(int dir_fd, const char *path, struct datastore_text *ret,
                                 struct why *why);
/* ret: DATASTORE_TEXT_MAX bytes */
DG_MUST_CHECK int datastore_emit(const struct datastore_text *t, char *ret, size_t *ret_len);

/* The file handle of a directory as text. */
DG_MUST_CHECK int datastore_handle_text(int fd, char ret[DATASTORE_HANDLE_TEXT]);
/* The root's handle against the recorded one: -EXDEV. */
DG_MUST_CHECK int datastore_root_compare(int root_fd, const char *path, const char *root,
                                         struct why *why);

/* A name in tmp/ that nobody else takes. */
DG_MUST_CHECK int datastore_tmp_name(const char *prefix, char ret[DATASTORE_TMP_NAME]);
/* Opens a directory that is one of ours, fresh: not a symlink, not reached through one. */
DG_MUST_CHECK int datastore_dir_open(int parent_fd, const char *name);
/* Makes it durably; one that is there is as good. */
DG_MUST_CHECK int datastore_dir_make(int parent_fd, const char *name, int *ret_fd);

/* What a person can do about this errno (negative) of the storage: a clause for the end of an
 * explanation. */
const char *store_hint(int err);

#endif
