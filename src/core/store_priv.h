/* store_priv.h: what store.c and upgrade.c share: the file `datastore`, and directories. */
#ifndef DISKGUARD_STORE_PRIV_H
#define DISKGUARD_STORE_PRIV_H

#include "core/shard.h"
#include "core/store.h"

#define STORE_FILE "datastore"
#define STORE_TEXT_MAX 2048
#define STORE_HANDLE_TEXT (2 * IO_HANDLE_MAX + 16)
#define STORE_TMP_NAME 64
#define STORE_UPGRADE_LOCK "upgrade" /* in tmp/ */

enum store_state {
    STATE_OLD,     /* format 1 */
    STATE_READY,   /* ours */
    STATE_UPGRADE, /* on the way from one to the other: nobody may serve it */
};
struct datastore_text {
    dg_uuid uuid;
    char root[STORE_HANDLE_TEXT], made[32];
    enum store_state state;
};

/* Fresh. 0 or -errno with a reason. */
DG_MUST_CHECK int datastore_read(const struct store *s, struct datastore_text *ret,
                                 struct why *why);
/* ret: STORE_TEXT_MAX bytes */
DG_MUST_CHECK int datastore_emit(const struct datastore_text *t, char *ret, size_t *ret_len);

/* Opens a datastore of any format and state that is known, to write in it: root, .diskguard, tmp/
 * and hosts/ only. A copy is refused. */
DG_MUST_CHECK int store_open_old(const char *path, struct store *ret,
                                 struct datastore_text *ret_text, struct why *why);

void store_clear(struct store *s);
DG_MUST_CHECK int store_tmp_name(const char *prefix, char ret[STORE_TMP_NAME]);
DG_MUST_CHECK int store_handle_text(int fd, char ret[STORE_HANDLE_TEXT]);
DG_MUST_CHECK int store_root_compare(const struct store *s, const char *root, struct why *why);
/* Opens a directory that is one of ours, fresh: not a symlink, not reached through one. */
DG_MUST_CHECK int store_dir_open(int parent_fd, const char *name);
/* Makes it durably; one that is there is as good. */
DG_MUST_CHECK int store_dir_make(int parent_fd, const char *name, int *ret_fd);

#endif
