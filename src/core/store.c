/* store.c: see store.h. */
#include "core/store.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

#include "base/hook.h"
#include "core/shards.h"

/* Explanations cut a path, so that the way out at the end of the line is not lost. Commands do
 * not (base_quote). */
#define P "%.200s"
#define QUOTED 256
#define D P "/" DG_DIR

static void store_clear(struct store *s)
{
    *s = (struct store)STORE_CLOSED;
}

void store_close(struct store *s)
{
    shard_cache_free(s->shards);
    base_closep(&s->hosts_fd);
    base_closep(&s->tmp_fd);
    base_closep(&s->readers_fd);
    base_closep(&s->marks_fd);
    base_closep(&s->claims_fd);
    base_closep(&s->dir_fd);
    base_closep(&s->root_fd);
    store_clear(s);
}

/* ---- directories ---- */

/* Does that directory, which may be O_PATH, hold the file `datastore` at this path? 1, 0 or -errno.
 */
static int has_datastore(int dir_fd, const char *path)
{
    _cleanup_close_ int fd = io_fresh_open(dir_fd, path, O_PATH | O_NOFOLLOW);

    return fd >= 0 ? 1 : fd == -ENOENT ? 0 : fd;
}

/* A datastore inside another one on the same file system would have two claims for one image. */
static int not_nested(const struct store *s, struct why *why)
{
    struct stat st, last = {.st_dev = s->dev};
    int fd = openat(s->root_fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC), r;

    r = io_fresh_stat(s->root_fd, &last);
    while (r == 0 && fd >= 0 && io_fresh_stat(fd, &st) == 0 && st.st_dev == last.st_dev &&
           st.st_ino != last.st_ino) {
        int up;

        if (has_datastore(fd, DG_DIR "/" DATASTORE_FILE) == 1) {
            why_set(why,
                    P " lies inside another datastore (a directory above it has a " DG_DIR
                      "): mount that one",
                    s->path);
            r = -EINVAL;
        }
        last = st;
        up = openat(fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
        close(fd);
        fd = up;
    }
    if (fd >= 0)
        close(fd);
    return r;
}

/* Opens the datastore's root directory under its canonical path. */
static int root_open(const char *path, struct store *s, struct why *why)
{
    struct stat st;
    int r;

    if (!realpath(path, s->path)) {
        r = -errno;
        s->path[0] = '\0';
        why_set(why, "cannot find the datastore " P ": %s; is it mounted?", path, strerror(-r));
        return r;
    }
    s->root_fd = open(s->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->root_fd < 0) {
        r = -errno;
        why_set(why,
                "cannot open the datastore " P ": %s; give the directory that holds the images",
                s->path, strerror(-r));
        return r;
    }
    /* A fresh look at the root also drops a cached "there is no .diskguard", which another host may
     * have made just now. */
    r = io_fresh_stat(s->root_fd, &st);
    if (r < 0) {
        why_set(why, "the datastore " P " does not answer: %s; %s", s->path, strerror(-r),
                store_hint(r));
        return r;
    }
    s->dev = st.st_dev;
    s->fs = io_fstype(s->root_fd);
    s->fence = s->fs->fence;
    return 0;
}

/* Can nobody else change the opened .diskguard? Notes its owner. That may be another user only
 * where the server maps our user to it (all_squash with anonuid); tmp_probe proves that. */
static int dir_check(struct store *s, struct why *why)
{
    struct stat st;
    int r = io_fresh_stat(s->dir_fd, &st);

    if (r < 0) {
        why_set(why, "cannot look at " D ": %s; %s", s->path, strerror(-r), store_hint(r));
        return r;
    }
    if (st.st_dev != s->dev) {
        why_set(
            why,
            D " is a mount point: claims must be on the same file system as the images; unmount it",
            s->path);
        return -ENOTDIR;
    }
    if (st.st_mode & 077) {
        why_set(
            why,
            D
            " has mode %04o: other users can get at the claims; check who changed it, then chmod 0700 it",
            s->path, (unsigned)(st.st_mode & 07777));
        return -EPERM;
    }
    s->owner = st.st_uid;
    s->mapped = st.st_uid != geteuid();
    s->dir_ino = st.st_ino;
    return 0;
}

/* Says why .diskguard could not be opened or made. */
static void dir_explain(const struct store *s, int err, const char *verb, struct why *why)
{
    char quoted[QUOTED];

    if (err == -ENOENT)
        why_set(
            why,
            P
            " is not a datastore (no .diskguard in it); is the storage mounted? For a new one: diskguardctl init %s",
            s->path, base_quote(s->path, quoted, sizeof(quoted)));
    else if (err == -ENOTDIR)
        why_set(
            why,
            D
            " or a directory in it is not a directory (a symlink or a file): somebody else made it; move it away, then diskguardctl init %s",
            s->path, base_quote(s->path, quoted, sizeof(quoted)));
    else
        why_set(why, "cannot %s " D ": %s; %s", verb, s->path, strerror(-err), store_hint(err));
}

#define MISSING                                                                                    \
    "though the datastore was initialised: somebody removed it; bring it back from a backup, or make an empty one (mode 0700) if no host has an image open"

int store_dir_fd(const struct store *s, enum shard_dir dir)
{
    return dir == SHARD_CLAIMS ? s->claims_fd : dir == SHARD_MARKS ? s->marks_fd : s->readers_fd;
}

/* Are all shards there, and nothing beside them that should be in one? */
static int shards_check(const struct store *s, enum shard_dir dir, struct why *why)
{
    const char *name = shard_dir_name(dir);
    struct shard_survey found;
    int r = store_medium(shard_survey(store_dir_fd(s, dir), dir, &found));

    if (r < 0) {
        why_set(why, "cannot read " D "/%s: %s; %s", s->path, name, strerror(-r), store_hint(r));
    } else if (found.missing >= 0) {
        why_set(why, D "/%s/" DG_SHARD_FORMAT " is missing, " MISSING, s->path, name,
                (unsigned)found.missing);
        r = -EUCLEAN;
    } else if (found.outside[0]) {
        uint64_t key = 0;

        (void)shard_key(found.outside, &key);
        why_set(
            why,
            D
            "/%s/%s lies outside of its shard, where nobody looks for it: somebody put it there; if it belongs to this datastore, move it to %s/" DG_SHARD_FORMAT
            ", else away",
            s->path, name, found.outside, name, shard_of(dir, key));
        r = -EUCLEAN;
    }
    return r;
}

static int subdirs_open(struct store *s, struct why *why)
{
    const struct {
        const char *name;
        int *fd;
    } sub[] = {{"claims", &s->claims_fd},
               {"marks", &s->marks_fd},
               {"readers", &s->readers_fd},
               {"tmp", &s->tmp_fd},
               {"hosts", &s->hosts_fd}};
    int r = 0;

    for (size_t i = 0; i < sizeof(sub) / sizeof(sub[0]); i++) {
        r = *sub[i].fd = datastore_dir_open(s->dir_fd, sub[i].name);

        if (r == -ENOENT || r == -ENOTDIR) {
            why_set(why, D "/%s is missing or not a directory, " MISSING, s->path, sub[i].name);
            return -EUCLEAN;
        }
        if (r < 0) {
            why_set(why, "cannot open " D "/%s: %s; %s", s->path, sub[i].name, strerror(-r),
                    store_hint(r));
            return r;
        }
    }
    for (enum shard_dir d = 0; r >= 0 && d < SHARD_DIRS; d++)
        r = shards_check(s, d, why);
    if (r < 0)
        return r;
    s->shards = shard_cache_new();
    return s->shards ? 0 : -ENOMEM;
}

/* ---- the file `datastore` ---- */

/* Only a whole datastore of our own format is served. */
static int state_check(const struct store *s, enum store_state state, struct why *why)
{
    char quoted[QUOTED];

    if (state == STATE_READY)
        return 0;
    base_quote(s->path, quoted, sizeof(quoted));
    if (state == STATE_OLD)
        why_set(
            why,
            P
            " is a datastore of format 1, and this diskguard needs format 2: end diskguard on all hosts, update it there, then run once: diskguardctl init --upgrade %s",
            s->path, quoted);
    else
        why_set(
            why,
            P
            " is half converted to format 2: an upgrade did not finish; run again: diskguardctl init --upgrade %s",
            s->path, quoted);
    return -EPROTONOSUPPORT;
}

/* Links a finished `datastore` into place: two inits at the same time cannot both win. What link(2)
 * answers proves nothing (replies get lost): the proof is our file's own link count. */
static int datastore_link(const struct store *s, const char *tmp, int fd)
{
    struct stat st;
    int err = HOOK_FAIL("store.link"), r;

    if (err == 0 && linkat(s->tmp_fd, tmp, s->dir_fd, DATASTORE_FILE, 0) < 0)
        err = -errno;
    r = io_fresh_stat(fd, &st);
    if (r < 0)
        return r;
    if (st.st_nlink != 2) /* ENOENT: the winner has swept our file away */
        return err == 0 || err == -ENOENT ? -EEXIST : err;
    HOOK("store.linked");
    return io_fsync(s->dir_fd);
}

static int datastore_write(const struct store *s)
{
    struct datastore_text t = {.state = STATE_READY};
    char text[DATASTORE_TEXT_MAX], tmp[DATASTORE_TMP_NAME];
    _cleanup_close_ int fd = -1;
    size_t len;
    int r = base_uuid_random(t.uuid);

    if (r < 0)
        return r;
    r = datastore_handle_text(s->root_fd, t.root);
    if (r < 0)
        return r;
    base_time_text(t.made);
    r = datastore_emit(&t, text, &len);
    if (r < 0)
        return r;
    r = datastore_tmp_name("init", tmp);
    if (r < 0)
        return r;
    HOOK("store.create");
    fd = io_text_create(s->tmp_fd, tmp, text, len);
    if (fd < 0)
        return fd;
    r = datastore_link(s, tmp, fd);
    HOOK("store.unlink");
    if (unlinkat(s->tmp_fd, tmp, 0) == 0 && r == 0)
        r = io_fsync(s->tmp_fd);
    return r;
}

/* ---- init ---- */

static int any_entry(void *arg, const char *name)
{
    (void)arg;
    (void)name;
    return 1;
}

/* Is there anything in claims/ but empty shards? 1, 0 or -errno. */
static int any_claim(int claims_fd)
{
    struct shard_survey found;
    int r = shard_survey(claims_fd, SHARD_CLAIMS, &found);

    if (r == 0 && found.any)
        return 1;
    for (unsigned i = 0; r == 0 && found.shards > 0 && i < DG_SHARDS; i++) {
        _cleanup_close_ int fd = shard_open(claims_fd, i);

        if (fd != -EUCLEAN) /* not made yet */
            r = fd < 0 ? fd : io_fresh_dir(fd, any_entry, NULL);
    }
    return r;
}

/* Claims without `datastore` are a datastore that lost that file, not a half-made one: a new uuid
 * would orphan them. */
static int init_may_go_on(const struct store *s, struct why *why)
{
    _cleanup_close_ int claims_fd = -1;
    int r = has_datastore(s->dir_fd, DATASTORE_FILE);

    if (r > 0) {
        why_set(why, P " is a datastore already", s->path);
        return -EEXIST;
    }
    if (r < 0)
        return r;
    claims_fd = datastore_dir_open(s->dir_fd, "claims");
    if (claims_fd < 0)
        return claims_fd == -ENOENT ? 0 : claims_fd;
    r = any_claim(claims_fd);
    if (r > 0) {
        why_set(
            why,
            D
            " holds claims but no file `datastore`: it was in use and has lost that file; bring it back from a backup, or move .diskguard away if every image is intact",
            s->path);
        return -EEXIST;
    }
    return r;
}

/* Makes what is missing. Also what an interrupted init has made is made durable again: it may not
 * have come to its fsync. */
static int init_dirs(struct store *s, struct why *why)
{
    int r = datastore_dir_make(s->root_fd, DG_DIR, &s->dir_fd);

    if (r < 0) {
        dir_explain(s, r, "make", why);
        return r;
    }
    r = dir_check(s, why); /* store_open, at the end of store_init, judges the owner */
    if (r < 0)
        return r;
    r = init_may_go_on(s, why);
    if (r < 0)
        return r;
    r = datastore_dir_make(s->dir_fd, "claims", &s->claims_fd);
    if (r == 0)
        r = datastore_dir_make(s->dir_fd, "marks", &s->marks_fd);
    if (r == 0)
        r = datastore_dir_make(s->dir_fd, "readers", &s->readers_fd);
    for (enum shard_dir d = 0; r == 0 && d < SHARD_DIRS; d++)
        r = shard_make_all(store_dir_fd(s, d), d);
    if (r == 0)
        r = datastore_dir_make(s->dir_fd, "tmp", &s->tmp_fd);
    if (r == 0)
        r = datastore_dir_make(s->dir_fd, "hosts", &s->hosts_fd);
    if (r < 0)
        dir_explain(s, r, "make the directories in", why);
    return r;
}

int store_init(const char *path, struct store *ret, struct why *why)
{
    struct why reason = {""};
    struct store s;
    int r;

    store_clear(ret);
    store_clear(&s);
    r = root_open(path, &s, &reason);
    if (r == 0)
        r = not_nested(&s, &reason);
    if (r < 0)
        goto out;
    r = init_dirs(&s, &reason);
    if (r < 0)
        goto out;
    r = datastore_write(&s);
    if (r == -EEXIST)
        why_set(&reason, P " was made a datastore by another host at this moment", s.path);
    if (r < 0)
        goto out;
    r = store_open(path, ret, &reason);
out:
    if (r < 0 && reason.text[0] == '\0')
        why_set(&reason, "cannot make " D ": %s; %s", s.path, strerror(-r), store_hint(r));
    if (r < 0)
        why_set(why, "%s", reason.text);
    store_close(&s);
    return r;
}

/* ---- open ---- */

/* Can we write there, and does what we write belong to the owner of .diskguard? 1: yes; 0:
 * read-only; -errno.
 */
static int tmp_probe(const struct store *s)
{
    char name[DATASTORE_TMP_NAME];
    _cleanup_close_ int fd = -1;
    struct stat st;
    int r = datastore_tmp_name("open", name);

    if (r < 0)
        return r;
    fd = io_text_create(s->tmp_fd, name, "diskguard\n", 10);
    if (io_err_readonly(fd))
        return 0;
    if (fd == -ENOSPC || fd == -EDQUOT)
        /* full, but not read-only: restoring and releasing may still find room */
        return s->mapped ? fd : 1;
    if (fd < 0)
        return fd;
    r = s->mapped ? io_fresh_stat(fd, &st) : 0;
    unlinkat(s->tmp_fd, name, 0);
    if (r < 0)
        return r;
    return s->mapped && st.st_uid != s->owner ? -EPERM : 1;
}

int store_same(const struct store *s)
{
    struct why why = {""};
    struct datastore_text now;
    struct stat st;
    int r = io_fresh_stat(s->root_fd, &st);

    if (r == 0)
        r = io_fresh_stat(s->claims_fd, &st);
    if (r == 0)
        r = datastore_read(s->dir_fd, s->path, &now, &why);
    if (r == 0)
        r = datastore_root_compare(s->root_fd, s->path, now.root, &why);
    if (r == 0 && (strcmp(now.uuid, s->uuid) != 0 || now.state != STATE_READY))
        r = -EXDEV;
    return store_medium(r);
}

int store_medium(int r)
{
    return r == -ESTALE ? -EIO : r;
}

static int decide_read_only(struct store *s, struct why *why)
{
    struct statvfs vfs;
    int r;

    if (fstatvfs(s->root_fd, &vfs) < 0) {
        r = -errno;
        why_set(why, "cannot look at the file system of " P ": %s; %s", s->path, strerror(-r),
                store_hint(r));
        return r;
    }
    r = vfs.f_flag & ST_RDONLY ? 0 : tmp_probe(s);
    if (r == 0 && s->mapped)
        r = -EPERM;
    if (r == -EPERM) {
        why_set(
            why,
            D
            " is not owned by user %u, who runs this; run as its owner, or with its owner as anonuid of the NFS export",
            s->path, (unsigned)geteuid());
        return r;
    }
    if (r < 0) {
        why_set(why, "cannot create a file in " D "/tmp: %s; %s", s->path, strerror(-r),
                store_hint(r));
        return r;
    }
    s->read_only = r == 0;
    return 0;
}

static int open_parts(struct store *s, struct datastore_text *t, struct why *why)
{
    int r = s->dir_fd = datastore_dir_open(s->root_fd, DG_DIR);

    if (r < 0) {
        dir_explain(s, r, "open", why);
        return r;
    }
    r = dir_check(s, why);
    if (r == 0)
        r = datastore_read(s->dir_fd, s->path, t, why);
    if (r == 0)
        memcpy(s->uuid, t->uuid, sizeof(s->uuid));
    return r;
}

static int open_or_look(const char *path, bool look, struct store *ret, struct why *why)
{
    struct datastore_text t;
    struct store s;
    int r;

    store_clear(ret);
    store_clear(&s);
    r = root_open(path, &s, why);
    if (r == 0 && !look)
        r = not_nested(&s, why);
    if (r == 0)
        r = open_parts(&s, &t, why);
    if (r == 0)
        r = state_check(&s, t.state, why);
    if (r == 0)
        r = subdirs_open(&s, why);
    if (r == 0)
        r = datastore_root_compare(s.root_fd, s.path, t.root, why);
    if (look || r == -EXDEV) /* -EXDEV: everything else is good, so it may be looked at */
        s.read_only = true;
    else if (r == 0)
        r = decide_read_only(&s, why);
    if (r < 0 && r != -EXDEV) {
        store_close(&s);
        return r;
    }
    *ret = s;
    return r;
}

int store_open_old(const char *path, struct store *ret, struct datastore_text *ret_text,
                   struct why *why)
{
    struct store s;
    int r;

    store_clear(ret);
    store_clear(&s);
    r = root_open(path, &s, why);
    if (r == 0)
        r = not_nested(&s, why);
    if (r == 0)
        r = open_parts(&s, ret_text, why);
    if (r == 0)
        r = datastore_root_compare(s.root_fd, s.path, ret_text->root, why);
    if (r == 0)
        r = s.tmp_fd = datastore_dir_open(s.dir_fd, "tmp");
    if (r >= 0)
        r = s.hosts_fd = datastore_dir_open(s.dir_fd, "hosts");
    if (r < 0 && why->text[0] == '\0')
        why_set(why, "cannot open the directories in " D ": %s; %s", s.path, strerror(-r),
                store_hint(r));
    if (r >= 0)
        r = decide_read_only(&s, why);
    if (r < 0) {
        store_close(&s);
        return r;
    }
    *ret = s;
    return 0;
}

int store_open(const char *path, struct store *ret, struct why *why)
{
    return open_or_look(path, false, ret, why);
}

int store_look(const char *path, struct store *ret, struct why *why)
{
    return open_or_look(path, true, ret, why);
}

int store_gone(const struct store *s, int fd, const struct io_handle *h)
{
    _cleanup_close_ int found = -1;
    struct stat st;
    int r = fd >= 0 ? io_fresh_stat(fd, &st) : -ESTALE;

    if (r == 0)
        return st.st_nlink == 0;
    if (r != -ESTALE)
        return r;
    r = store_same(s);
    if (r < 0)
        return r;
    found = io_fresh_handle(s->root_fd, h, O_PATH, NULL);
    if (found >= 0)
        return 0;
    if (found != -ESTALE)
        return found;
    r = store_same(s);
    return r < 0 ? r : 1;
}
