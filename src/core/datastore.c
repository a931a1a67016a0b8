/* datastore.c: see datastore.h. */
#include "core/datastore.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/hook.h"
#include "base/text.h"
#include "diskguard/layout.h"

#define DATASTORE_MAGIC "diskguard-datastore"

/* Explanations cut a path, so that the way out at the end of the line is not lost. Commands do
 * not (base_quote). */
#define P "%.200s"
#define QUOTED 256
#define D P "/" DG_DIR

const char *store_hint(int err)
{
    switch (-err) {
    case EACCES:
    case EPERM:
        return "run as the owner of .diskguard; on NFS export with no_root_squash, or with anonuid set to that owner";
    case EROFS:
        return "the mount or the export is read-only: mount and export it read-write";
    case ENOSPC:
    case EDQUOT:
        return "the disk or the quota is full: free some space";
    case ENOLCK:
    case EOPNOTSUPP:
    case ENOSYS:
        return "start the lock service (NFSv3: rpc.statd; mount without nolock), or choose fence=none and fence by other means";
    case ESTALE:
        return "the directory was removed or exported anew on the server: mount it again";
    default:
        return "look at the kernel log and at the storage";
    }
}

int datastore_tmp_name(const char *prefix, char ret[DATASTORE_TMP_NAME])
{
    dg_uuid id;
    int r = base_uuid_random(id);

    if (r < 0)
        return r;
    snprintf(ret, DATASTORE_TMP_NAME, "%s.%s", prefix, id);
    return 0;
}

/* ---- directories ---- */

/* Opens a directory that is one of ours: not a symlink, not reached through one. fd or -errno. */
int datastore_dir_open(int parent_fd, const char *name)
{
    int fd = io_fresh_open(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);

    return fd == -ELOOP ? -ENOTDIR : fd;
}

/* Makes it durably. EEXIST is no failure: an earlier init may have come this far, and a lost reply
 * can make mkdir(2) answer EEXIST to the very call that made it (NFS). */
int datastore_dir_make(int parent_fd, const char *name, int *ret_fd)
{
    _cleanup_close_ int fd = -1;
    int r = HOOK_FAIL("store.mkdir");

    if (r < 0)
        return r;
    if (mkdirat(parent_fd, name, 0700) < 0 && errno != EEXIST)
        return -errno;
    fd = datastore_dir_open(parent_fd, name);
    if (fd < 0)
        return fd;
    r = io_fsync(fd);
    if (r == 0)
        r = io_fsync(parent_fd);
    if (r < 0)
        return r;
    *ret_fd = base_steal_fd(&fd);
    return 0;
}

/* ---- the file ---- */

int datastore_handle_text(int fd, char ret[DATASTORE_HANDLE_TEXT])
{
    struct io_handle h;
    char hex[2 * IO_HANDLE_MAX + 1];
    int r = io_handle_get(fd, &h);

    if (r < 0)
        return r;
    if (h.len == 0) {
        strcpy(ret, "-");
        return 0;
    }
    base_hex(h.bytes, h.len, hex);
    snprintf(ret, DATASTORE_HANDLE_TEXT, "%d %s", h.type, hex);
    return 0;
}

static const char *const state_word[] = {[STATE_READY] = "ready", [STATE_UPGRADE] = "upgrade"};

static int state_parse(const char *word, enum store_state *ret)
{
    for (size_t i = 0; i < sizeof(state_word) / sizeof(state_word[0]); i++)
        if (state_word[i] && strcmp(word, state_word[i]) == 0) {
            *ret = (enum store_state)i;
            return 0;
        }
    return -EBADMSG;
}

static int datastore_parse(const char *text, size_t len, struct datastore_text *ret)
{
    char state[16];
    const struct text_field f[] = {TEXT_FIELD("uuid", ret->uuid), TEXT_FIELD("root", ret->root),
                                   TEXT_FIELD("made", ret->made), TEXT_FIELD("state", state)};
    int r = text_parse(text, len, DATASTORE_MAGIC, 1, f, 3);

    ret->state = STATE_OLD;
    if (r == -EPROTONOSUPPORT) {
        r = text_parse(text, len, DATASTORE_MAGIC, DG_STORE_VERSION, f, 4);
        r = r == 0 ? state_parse(state, &ret->state) : r;
    }
    return r == 0 && !base_uuid_ok(ret->uuid) ? -EBADMSG : r;
}

int datastore_read(int dir_fd, const char *path, struct datastore_text *ret, struct why *why)
{
    char quoted[QUOTED];
    _cleanup_free_ char *text = NULL;
    size_t len;
    int r = io_fresh_text(dir_fd, DATASTORE_FILE, DATASTORE_TEXT_MAX, &text, &len);

    if (r == -ENOENT) {
        why_set(why,
                D
                " has no file `datastore`: an init did not finish; run diskguardctl init %s again",
                path, base_quote(path, quoted, sizeof(quoted)));
        return r;
    }
    if (r == 0)
        r = datastore_parse(text, len, ret);
    if (r == -EFBIG)
        r = -EBADMSG;
    if (r == -EPROTONOSUPPORT)
        why_set(why, D "/datastore was made by a newer diskguard; update diskguard on this host",
                path);
    else if (r == -EBADMSG)
        why_set(
            why,
            D
            "/datastore is damaged (checksum or syntax); bring it back from a backup of that one file",
            path);
    else if (r < 0)
        why_set(why, "cannot read " D "/datastore: %s; %s", path, strerror(-r), store_hint(r));
    return r;
}

/* The root's handle against the recorded one: a copied or restored tree is another datastore. */
int datastore_root_compare(int root_fd, const char *path, const char *root, struct why *why)
{
    char now[DATASTORE_HANDLE_TEXT];
    int r = datastore_handle_text(root_fd, now);

    if (r < 0) {
        why_set(why, "cannot get the file handle of " P ": %s; %s", path, strerror(-r),
                store_hint(r));
        return r;
    }
    if (strcmp(root, now) != 0) {
        why_set(
            why,
            D
            " belongs to another directory (file handle %.40s, now %.40s): this is a copy or a restored tree, or the same storage mounted in another way (on the NFS server itself). A copy: run fsck.diskguard -n on it, move .diskguard away, then diskguardctl init",
            path, root, now);
        return -EXDEV;
    }
    return 0;
}

int datastore_emit(const struct datastore_text *t, char *ret, size_t *ret_len)
{
    struct datastore_text c = *t;
    char state[16] = "";
    const struct text_field f[] = {TEXT_FIELD("uuid", c.uuid), TEXT_FIELD("root", c.root),
                                   TEXT_FIELD("made", c.made), TEXT_FIELD("state", state)};
    bool old = t->state == STATE_OLD;

    if (!old)
        snprintf(state, sizeof(state), "%s", state_word[t->state]);
    return text_emit(DATASTORE_MAGIC, old ? 1 : DG_STORE_VERSION, f, old ? 3 : 4, ret,
                     DATASTORE_TEXT_MAX, ret_len);
}
