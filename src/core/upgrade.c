/* upgrade.c: see upgrade.h. */
#include "core/upgrade.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hook.h"
#include "core/host.h"
#include "core/shards.h"

#define P "%.200s"
#define NEW_NAME 16
/* A request of a dead daemon that was still under way may put one more name into a directory that
 * was emptied. */
#define EMPTY_TRIES 16

struct upgrade {
    struct store s;
    struct datastore_text text;
    struct host_locks locks;
    int lock_fd;
    unsigned moved;
    struct why *why;
};

/* ---- nobody else ---- */

/* Of two upgrades at once one wins, also where no host has a record yet. */
static int lock_upgrade(struct upgrade *u)
{
    _cleanup_close_ int fd =
        io_open_beneath(u->s.tmp_fd, STORE_UPGRADE_LOCK, O_RDWR | O_CREAT | O_NOFOLLOW, 0600);
    struct stat st;
    int r = fd < 0 ? fd : io_lock_file(fd, u->s.fence);

    if (r == 0)
        r = io_fresh_stat(fd, &st);
    if (r == 0 && st.st_nlink == 0)
        r = -EAGAIN; /* the other one has just ended */
    if (r == 0)
        u->lock_fd = base_steal_fd(&fd);
    if (r != -EAGAIN)
        return r;
    why_set(u->why, "another diskguardctl init --upgrade is at work on " P "; wait for it to end",
            u->s.path);
    return -EBUSY;
}

/* Locks every record that is not locked yet. */
static int lock_hosts(struct upgrade *u)
{
    struct host_record rec;
    dg_uuid alive = "";
    int r = host_lock_all(&u->s, NULL, &u->locks, alive, u->why);

    if (r != -EBUSY)
        return r;
    bool known = host_record_read(&u->s, alive, &rec) == 0;
    why_set(u->why,
            "a diskguard or fsck.diskguard of host %s (%s) is at work on " P
            ": end it on all hosts (umount their views, read-only ones, too), then run this again",
            known ? rec.name : "?", alive, u->s.path);
    return r;
}

/* ---- the file `datastore` ---- */

static int text_put(struct upgrade *u, enum store_state state)
{
    char text[DATASTORE_TEXT_MAX], tmp[DATASTORE_TMP_NAME];
    struct datastore_text t = u->text, now;
    size_t len;
    int fd, r;

    t.state = state;
    r = datastore_emit(&t, text, &len);
    if (r == 0)
        r = datastore_tmp_name("init", tmp); /* what a crash leaves goes with the next daemon's
                                                start */
    if (r < 0)
        return r;
    fd = io_text_create(u->s.tmp_fd, tmp, text, len);
    if (fd < 0)
        return fd;
    close(fd); /* fsynced */
    r = HOOK_FAIL("upgrade.state");
    if (r == 0 && renameat(u->s.tmp_fd, tmp, u->s.dir_fd, DATASTORE_FILE) < 0)
        r = -errno;
    if (r < 0) {
        unlinkat(u->s.tmp_fd, tmp, 0);
        if (datastore_read(u->s.dir_fd, u->s.path, &now, NULL) < 0 || now.state != state)
            return r; /* else the answer was lost, the rename was not */
    }
    r = HOOK_FAIL("upgrade.state-sync");
    return r < 0 ? r : io_fsync(u->s.dir_fd);
}

/* ---- one directory ---- */

struct names {
    char (*name)[NAME_MAX + 1];
    size_t n;
};

/* Not all of a large directory at once. */
#define NAMES_AT_ONCE 4096

static int collect(void *arg, const char *name)
{
    struct names *l = arg;

    snprintf(l->name[l->n++], sizeof(*l->name), "%s", name);
    return l->n == NAMES_AT_ONCE;
}

struct shards {
    struct upgrade *u;
    enum shard_dir which;
    const char *dir;
    int old_fd, new_fd;
    int fd[DG_SHARDS]; /* below new_fd */
};

/* Where a name goes: a descriptor that stays the caller's, or -errno. */
static int target(struct shards *d, const char *name)
{
    uint64_t key;

    if (!shard_key(name, &key))
        return d->new_fd; /* nobody's name: it stays where nobody looks for it */
    int *fd = &d->fd[shard_of(d->which, key)];
    if (*fd < 0)
        *fd = shard_open(d->new_fd, shard_of(d->which, key));
    return *fd;
}

/* After a rename that was refused, or whose answer was lost. */
static int settle(struct shards *d, int to, const char *name, int err)
{
    _cleanup_close_ int src = io_fresh_open(d->old_fd, name, O_PATH | O_NOFOLLOW);
    _cleanup_close_ int dst = io_fresh_open(to, name, O_PATH | O_NOFOLLOW);
    struct stat a, b;

    if (src == -ENOENT && (dst >= 0 || dst == -ENOENT))
        return 0; /* moved; or gone by itself, as what an NFS client hides (.nfs...) */
    if (src < 0 || dst < 0)
        return src < 0 ? src : dst == -ENOENT ? err : dst;
    if (io_fresh_stat(src, &a) < 0 || io_fresh_stat(dst, &b) < 0)
        return -EIO;
    if (a.st_ino == b.st_ino) /* two names of one file: rename(2) then does nothing */
        return unlinkat(d->old_fd, name, 0) < 0 && errno != ENOENT ? -errno : 0;
    why_set(d->u->why,
            P "/" DG_DIR "/%s/%s is there twice, also in %s.2: two files. Look at both, remove one",
            d->u->s.path, d->dir, name, d->dir);
    return -EUCLEAN;
}

static int move_one(struct shards *d, const char *name)
{
    int to = target(d, name), r = HOOK_FAIL("upgrade.move");

    if (to < 0 || r < 0)
        return to < 0 ? to : r;
    r = renameat2(d->old_fd, name, to, name, RENAME_NOREPLACE) < 0 ? -errno : 0;
    if (r == -EINVAL || r == -ENOSYS || r == -EOPNOTSUPP) { /* NFS, OCFS2 */
        _cleanup_close_ int there = io_fresh_open(to, name, O_PATH | O_NOFOLLOW);

        if (there == -ENOENT)
            r = renameat(d->old_fd, name, to, name) < 0 ? -errno : 0;
        else
            r = there < 0 ? there : -EEXIST;
    }
    if (r < 0)
        r = settle(d, to, name, r);
    d->u->moved += r == 0;
    return r;
}

/* Until a listing shows nothing. */
static int move_all(struct shards *d)
{
    struct names l = {.name = malloc(NAMES_AT_ONCE * sizeof(*l.name))};
    int r = l.name ? 1 : -ENOMEM;

    while (r > 0) {
        l.n = 0;
        r = io_fresh_dir(d->old_fd, collect, &l);
        for (size_t i = 0; r >= 0 && i < l.n; i++) {
            int moved = move_one(d, l.name[i]);

            r = moved < 0 ? moved : 1;
        }
    }
    free(l.name);
    return r;
}

static int sync_all(const struct shards *d)
{
    int r = HOOK_FAIL("upgrade.sync");

    for (unsigned i = 0; r == 0 && i < DG_SHARDS; i++)
        r = d->fd[i] < 0 ? 0 : io_fsync(d->fd[i]);
    if (r == 0)
        r = io_fsync(d->new_fd);
    return r == 0 && d->old_fd >= 0 ? io_fsync(d->old_fd) : r;
}

/* The new directory takes the place of the old one, which must be empty. */
static int swap(struct shards *d, const char *new_name)
{
    int r = -ENOTEMPTY;

    for (unsigned i = 0; (r == -ENOTEMPTY || r == -EEXIST) && i < EMPTY_TRIES; i++) {
        r = d->old_fd < 0 ? 0 : move_all(d);
        if (r == 0)
            r = sync_all(d);
        if (r == 0)
            r = HOOK_FAIL("upgrade.swap");
        if (r == 0 && renameat(d->u->s.dir_fd, new_name, d->u->s.dir_fd, d->dir) < 0)
            r = -errno;
    }
    if (r == -ENOENT) { /* the answer was lost? */
        _cleanup_close_ int fd = datastore_dir_open(d->u->s.dir_fd, d->dir);
        struct shard_survey found;

        r = fd < 0 ? fd : shard_survey(fd, d->which, &found);
        r = r == 0 && found.missing >= 0 ? -ENOENT : r;
    }
    if (r == 0)
        r = HOOK_FAIL("upgrade.swapped");
    return r < 0 ? r : io_fsync(d->u->s.dir_fd);
}

/* 1: it has its shards already; 0: it is of format 1, or not there; or -errno. */
static int is_done(const struct shards *d)
{
    struct shard_survey found = {.shards = 0};
    int r = d->old_fd < 0 ? 0 : shard_survey(d->old_fd, d->which, &found);

    if (r < 0 || found.shards == 0)
        return r;
    if (found.missing < 0 && d->new_fd < 0)
        return 1;
    why_set(d->u->why,
            P "/" DG_DIR "/%s has some directories of format 2, and not all: somebody changed it; "
              "bring it back from a backup, or move those that are empty away",
            d->u->s.path, d->dir);
    return -EUCLEAN;
}

static int convert_dir(struct shards *d, const char *new_name)
{
    int r = is_done(d);

    if (r != 0)
        return r < 0 ? r : 0;
    r = HOOK_FAIL("upgrade.make");
    if (r == 0 && d->new_fd < 0)
        r = datastore_dir_make(d->u->s.dir_fd, new_name, &d->new_fd);
    if (r == 0)
        r = shard_make_all(d->new_fd, d->which);
    return r < 0 ? r : swap(d, new_name);
}

static int convert(struct upgrade *u, enum shard_dir dir)
{
    struct shards d = {.u = u, .which = dir, .dir = shard_dir_name(dir)};
    char new_name[NEW_NAME];
    int r = 0;

    snprintf(new_name, sizeof(new_name), "%s.2", d.dir);
    for (unsigned i = 0; i < DG_SHARDS; i++)
        d.fd[i] = -1;
    d.old_fd = datastore_dir_open(u->s.dir_fd, d.dir);
    d.new_fd = datastore_dir_open(u->s.dir_fd, new_name);
    /* marks/ and readers/ were made when they were first needed */
    if (d.old_fd < 0 && (d.old_fd != -ENOENT || dir == SHARD_CLAIMS)) {
        r = d.old_fd;
        why_set(u->why, "cannot open " P "/" DG_DIR "/%s: %s; bring it back from a backup",
                u->s.path, d.dir, strerror(-r));
    } else if (d.new_fd < 0 && d.new_fd != -ENOENT) {
        r = d.new_fd;
    } else {
        r = convert_dir(&d, new_name);
    }
    for (unsigned i = 0; i < DG_SHARDS; i++)
        base_closep(&d.fd[i]);
    base_closep(&d.old_fd);
    base_closep(&d.new_fd);
    return r;
}

/* ---- all of it ---- */

static int run(struct upgrade *u)
{
    bool fresh = u->text.state == STATE_OLD;
    int r = lock_upgrade(u);

    if (r == 0)
        r = lock_hosts(u);
    if (r == 0 && fresh)
        r = text_put(u, STATE_UPGRADE);
    if (r < 0)
        return r;
    r = lock_hosts(u);
    if (r == -EBUSY && fresh)
        /* as before: that host has read it already */
        return text_put(u, STATE_OLD) < 0 ? -EIO : r;
    for (enum shard_dir d = 0; r == 0 && d < SHARD_DIRS; d++)
        r = convert(u, d);
    if (r == 0)
        r = lock_hosts(u);
    return r < 0 ? r : text_put(u, STATE_READY);
}

static int check_state(struct upgrade *u)
{
    if (u->text.state == STATE_READY) {
        why_set(u->why, P " is of format 2 already", u->s.path);
        return -EEXIST;
    }
    if (u->s.read_only) {
        why_set(u->why, P " cannot be written here; %s", u->s.path, store_hint(-EROFS));
        return -EROFS;
    }
    return 0;
}

int store_upgrade(const char *path, bool no_locks, struct store *ret,
                  struct upgrade_result *ret_result, struct why *why)
{
    struct why reason = {""};
    struct upgrade u = {.lock_fd = -1, .why = &reason};
    int r;

    *ret = (struct store)STORE_CLOSED;
    r = store_open_old(path, &u.s, &u.text, &reason);
    if (r == 0)
        r = check_state(&u);
    if (r == 0) {
        if (no_locks)
            u.s.fence = FENCE_NONE;
        r = run(&u);
        host_unlock_all(&u.locks);
        if (u.lock_fd >= 0)
            unlinkat(u.s.tmp_fd, STORE_UPGRADE_LOCK, 0);
        base_closep(&u.lock_fd);
    }
    if (r == 0)
        r = store_open(path, ret, &reason);
    if (r < 0 && reason.text[0] == '\0')
        why_set(&reason, "cannot convert " P ": %s; %s. Then run it again", u.s.path, strerror(-r),
                store_hint(r));
    if (r < 0)
        why_set(why, "%s", reason.text);
    store_close(&u.s);
    if (r == 0)
        ret_result->moved = u.moved;
    return r;
}
