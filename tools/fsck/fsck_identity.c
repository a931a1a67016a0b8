/* fsck_identity.c: who fsck.diskguard acts as, and its locks. See fsck.h. */
#include "fsck/fsck.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define DEFAULT_STATE_DIR "/var/lib/diskguard"

static const char *state_dir(const struct fsck *f)
{
    return f->snapshot ? f->snapshot : f->state_dir ? f->state_dir : DEFAULT_STATE_DIR;
}

/* ---- a private copy of the state directory, for -n ---- */

static int copy_bytes(int from, int to)
{
    char buf[65536];
    ssize_t n;

    while ((n = read(from, buf, sizeof(buf))) > 0)
        if (write(to, buf, (size_t)n) != n)
            return errno ? -errno : -EIO;
    return n < 0 ? -errno : 0;
}

/* A missing file is fine. */
static int copy_file(const struct fsck *f, const char *from_dir, const char *name)
{
    char path[4096];
    int from, to, r;

    snprintf(path, sizeof(path), "%s/%s", from_dir, name);
    from = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (from < 0)
        return errno == ENOENT || errno == ENOTDIR ? 0 : -errno;
    snprintf(path, sizeof(path), "%s/%s", f->snapshot, name);
    to = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    r = to < 0 ? -errno : copy_bytes(from, to);
    close(from);
    if (to >= 0 && close(to) < 0 && r == 0)
        r = -errno;
    return r;
}

static int snapshot_make(struct fsck *f)
{
    const char *tmp = getenv("TMPDIR"), *from = state_dir(f);
    char name[DG_UUID_LEN + 16], *dir;
    int r = 0;

    if (asprintf(&dir, "%s/fsck.diskguard.XXXXXX", tmp && tmp[0] == '/' ? tmp : "/tmp") < 0)
        out_no_memory();
    if (!mkdtemp(dir)) {
        r = -errno;
        report_error(f, "cannot make a directory %s for a copy of the journal: %s", dir,
                     strerror(-r));
        free(dir);
        return r;
    }
    f->snapshot = dir;
    r = copy_file(f, from, "installation");
    for (int i = 0; r == 0 && i < 2; i++) {
        snprintf(name, sizeof(name), "%s.db%s", f->store.uuid, i == 0 ? "" : "-wal");
        r = copy_file(f, from, name);
    }
    if (r < 0)
        report_error(f, "cannot copy the state directory %s: %s", from, strerror(-r));
    return r;
}

static void snapshot_remove(struct fsck *f)
{
    DIR *d = f->snapshot ? opendir(f->snapshot) : NULL;

    for (struct dirent *e; d && (e = readdir(d));)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            unlinkat(dirfd(d), e->d_name, 0);
    if (d)
        closedir(d);
    if (f->snapshot)
        rmdir(f->snapshot);
    free(f->snapshot);
    f->snapshot = NULL;
}

/* ---- who ---- */

int identity_load(struct fsck *f)
{
    struct why why = {""};
    int r = f->dry_run ? snapshot_make(f) : 0;

    if (r == 0) {
        r = host_load(f->host_id, state_dir(f), &f->host, &why);
        if (r < 0)
            report_error(f, "%s", why.text[0] ? why.text : strerror(-r));
    }
    return r;
}

/* Dry run: is a daemon of this installation at work? Then its images are in order. */
static void look_beside(struct fsck *f)
{
    struct host_record rec;

    if (host_alive(&f->store, f->host.uuid) == 1 &&
        host_record_read(&f->store, f->host.uuid, &rec) == 0 &&
        strcmp(rec.installation, f->host.installation) == 0)
        f->beside = true;
}

/* The record belongs to another installation, and no person confirmed that. */
static int lock_rejected(struct fsck *f, const struct why *why)
{
    if (f->takeover[0] || host_alive(&f->store, f->host.uuid) == 1) {
        report_error(f, "%s", why->text);
        return -EKEYREJECTED;
    }
    report_other(
        f, "lost-installation", false,
        "This host's uuid belongs to another installation on this datastore, so its claims are foreign",
        why->text);
    report_say(f, "Only looking.");
    f->dry_run = true;
    return 0;
}

int identity_lock(struct fsck *f)
{
    struct why why = {""};
    int r;

    if (f->dry_run) {
        look_beside(f);
        return 0;
    }
    if (takeover_is_own(f) && f->takeover_fd >= 0) {
        f->lock_fd = base_steal_fd(&f->takeover_fd);
        f->rebind = true;
        return 0;
    }
    r = host_lock(&f->store, &f->host, &why);
    if (r >= 0) {
        f->lock_fd = r;
        return 0;
    }
    if (r == -EKEYREJECTED)
        return lock_rejected(f, &why);
    if (r == -EBUSY && f->takeover[0] && !takeover_is_own(f)) {
        report_say(
            f,
            "This host's diskguard runs: its own images are left to it, only those of the other host are looked at.");
        f->beside = true;
        return 0;
    }
    report_error(f, "%s%s", why.text,
                 r == -EBUSY ? "; or look without repairing: fsck.diskguard -n" : "");
    return r;
}

void identity_bind(struct fsck *f)
{
    int r;

    if (!f->rebind || f->dry_run || fsck_canceled)
        return;
    r = host_bind(f->lock_fd, &f->host);
    if (r < 0)
        report_error(f, "cannot bind the record of host %s to this installation: %s; %s",
                     f->host.uuid, strerror(-r), store_hint(r));
    else
        report_other(f, "host-bound", true,
                     "Host uuid now belongs to this installation: diskguard can start here", NULL);
}

/* ---- journal ---- */

/* Keeps what is there, under another name, so that the next journal starts empty. */
static int set_aside(struct fsck *f)
{
    static const char *const suffix[] = {"", "-wal", "-shm"};
    char from[4096], to[4200];

    for (int i = 2; i >= 0; i--) {
        snprintf(from, sizeof(from), "%s/%s.db%s", state_dir(f), f->store.uuid, suffix[i]);
        snprintf(to, sizeof(to), "%s/%s.db.corrupt-%lld%s", state_dir(f), f->store.uuid,
                 (long long)time(NULL), suffix[i]);
        if (rename(from, to) < 0 && errno != ENOENT) {
            int r = -errno;
            report_error(f, "cannot rename %s: %s", from, strerror(-r));
            return r;
        }
    }
    report_other(
        f, "journal-damaged", true,
        "This host's journal was damaged; it has been set aside, and the claims on the datastore are used instead",
        NULL);
    report_say(f, "Its remains are %s.", to);
    return 0;
}

static int journal_damaged(struct fsck *f, const struct why *why)
{
    if (!f->dry_run &&
        report_yes(
            f,
            "This host's journal is damaged. Set it aside, and go on from the claims on the datastore"))
        return set_aside(f);
    report_other(
        f, "journal-damaged", false, why->text,
        "fsck.diskguard -y DATASTORE sets it aside and goes on from the claims on the datastore");
    if (!f->dry_run)
        report_say(f, "Only looking.");
    f->dry_run = true;
    return 0;
}

int identity_journal(struct fsck *f)
{
    char path[4096];
    struct why why = {""};
    struct stat st;
    int r;

    /* Beside a live daemon the journal is the daemon's. That of another installation has none of
     * these claims. */
    if (f->beside || (f->dry_run && !f->snapshot))
        return 0;
    snprintf(path, sizeof(path), "%s/%s.db", state_dir(f), f->store.uuid);
    if (lstat(path, &st) < 0) {
        if (errno == ENOENT && f->verbose)
            report_say(f,
                       "This host has no journal for this datastore; the claims alone are used.");
        return 0;
    }
    r = journal_open(state_dir(f), f->store.uuid, &f->journal, &why);
    if (r == -EBADMSG)
        return journal_damaged(f, &why);
    if (r < 0)
        report_error(f, "%s", why.text[0] ? why.text : strerror(-r));
    return r;
}

void identity_close(struct fsck *f)
{
    journal_close(f->journal);
    f->journal = NULL;
    base_closep(&f->lock_fd);
    base_closep(&f->takeover_fd);
    f->lock_fd = f->takeover_fd = -1;
    snapshot_remove(f);
}
