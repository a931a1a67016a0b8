/* fsck_walk.c: all claims and all files of the datastore. See fsck.h. */
#include "fsck/fsck.h"

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/resource.h>

#include "core/dependency.h"
#include "core/reader.h"
#include "core/shard.h"

#define DEPTH_MAX 512 /* most nested directories; each costs two descriptors while it is read */

/* ---- claims ---- */

static int by_inode(const void *a, const void *b)
{
    const struct fsck_claim *x = a, *y = b;

    return (x->ino > y->ino) - (x->ino < y->ino);
}

static struct fsck_claim *claim_of(const struct fsck *f, uint64_t ino)
{
    struct fsck_claim want = {.ino = ino};

    return f->nclaims ? bsearch(&want, f->claims, f->nclaims, sizeof(want), by_inode) : NULL;
}

static int see_claim(void *arg, uint64_t ino, const struct claim *c)
{
    struct fsck *f = arg;
    struct fsck_claim *one, *more = reallocarray(f->claims, f->nclaims + 1, sizeof(*more));

    if (!more)
        out_no_memory();
    f->claims = more;
    one = &more[f->nclaims++];
    memset(one, 0, sizeof(*one));
    one->ino = ino;
    one->kind = c->kind;
    one->error = c->error;
    one->generation = c->generation;
    f->held += c->kind == CLAIM_HELD;
    if (c->kind == CLAIM_BAD)
        return 0;
    one->step = c->rec.step;
    one->path = out_strdup(c->rec.image);
    one->pid = c->rec.pid;
    memcpy(one->host, c->rec.host, sizeof(one->host));
    memcpy(one->installation, c->rec.installation, sizeof(one->installation));
    memcpy(one->host_name, c->rec.host_name, sizeof(one->host_name));
    memcpy(one->since, c->rec.since, sizeof(one->since));
    return 0;
}

static int count_file(void *arg, const char *name)
{
    uint64_t ino;
    struct fsck_claim *c = shard_key(name, &ino) ? claim_of(arg, ino) : NULL;

    if (c && name[SHARD_KEY_DIGITS] == '.')
        c->files++;
    return 0;
}

int walk_claims(struct fsck *f)
{
    int r = claim_each(&f->store, see_claim, f);

    if (f->nclaims > 1)
        qsort(f->claims, f->nclaims, sizeof(*f->claims), by_inode);
    if (r == 0)
        r = shard_list_all(&f->store, SHARD_CLAIMS, count_file, f);
    return r;
}

void walk_free(struct fsck *f)
{
    for (size_t i = 0; i < f->nclaims; i++)
        free(f->claims[i].path);
    free(f->claims);
    free(f->reported);
    f->claims = NULL;
    f->reported = NULL;
    f->nclaims = f->nreported = 0;
}

static void fill_record(const struct fsck_claim *c, struct record *rec)
{
    memset(rec, 0, sizeof(*rec));
    rec->ino = c->ino;
    rec->generation = c->generation;
    rec->pid = c->pid;
    snprintf(rec->image, sizeof(rec->image), "%s", c->path ? c->path : "");
    memcpy(rec->host, c->host, sizeof(rec->host));
    memcpy(rec->host_name, c->host_name, sizeof(rec->host_name));
    memcpy(rec->since, c->since, sizeof(rec->since));
}

/* A claim of our uuid, but of another installation. */
static bool is_lost_self(const struct fsck *f, const struct fsck_claim *c)
{
    return strcmp(c->host, f->host.uuid) == 0 && strcmp(c->installation, f->host.installation) != 0;
}

static void speak_of(struct fsck *f, const struct fsck_claim *c, struct record *rec)
{
    fill_record(c, rec);
    if (c->kind == CLAIM_BAD)
        report_problem(f, c->error == -EPROTONOSUPPORT ? PROBLEM_NEWER_CLAIM : PROBLEM_BAD_CLAIM,
                       rec, NULL, 1, NULL);
    else if (strcmp(c->host, f->host.uuid) == 0 && !is_lost_self(f, c))
        report_note(f, "held-here", c->path, c->ino,
                    "held by this host's running diskguard (pid %" PRIu64 ", since %s)", c->pid,
                    c->since);
    else
        report_problem(f,
                       !is_lost_self(f, c) && takeover_alive(f, c->host) == 0 ? PROBLEM_HOLDER_DOWN
                                                                              : PROBLEM_FOREIGN,
                       rec, takeover_alive_text(f, c->host), 1, NULL);
}

void walk_speak(struct fsck *f)
{
    struct record *rec = out_alloc(sizeof(*rec));
    unsigned lost = 0;
    char text[512];

    for (size_t i = 0; i < f->nclaims; i++) {
        const struct fsck_claim *c = &f->claims[i];

        if (c->kind == CLAIM_FREE || report_known(f, c->ino))
            continue;
        speak_of(f, c, rec);
        lost += c->kind == CLAIM_HELD && is_lost_self(f, c);
    }
    free(rec);
    if (lost == 0 || takeover_alive(f, f->host.uuid) == 1)
        return;
    snprintf(
        text, sizeof(text),
        "if this is that host and its state directory was lost: fsck.diskguard --takeover %s --confirm-host-is-down DATASTORE; if it is a clone: give it a machine-id of its own",
        f->host.uuid);
    report_other(
        f, "lost-installation", false,
        "Claims carry this host's uuid but another installation id, so they count as another host's",
        text);
}

/* ---- what crashes left ---- */

static int sweep_as(struct fsck *f, const char *uuid, bool dry_run, unsigned *ret)
{
    struct host h = f->host;

    snprintf(h.uuid, sizeof(h.uuid), "%s", uuid);
    unsigned lower = 0;
    int r = claim_sweep(&f->store, &h, dry_run, ret);
    if (r == 0)
        r = claim_sweep_lower(&f->store, dry_run, NULL, &lower);
    *ret += lower;
    return r;
}

/* Below a held claim the generation before stays until the claim is freed: that is in order. */
static int sweep_count(struct fsck *f, unsigned *ret)
{
    unsigned below = 0, below_free = 0, own = 0, other = 0;
    int r = sweep_as(f, f->host.uuid, true, &own);

    for (size_t i = 0; i < f->nclaims; i++) {
        const struct fsck_claim *c = &f->claims[i];

        if (c->kind == CLAIM_BAD || c->files < 2)
            continue;
        below += c->files - 1;
        below_free += c->kind == CLAIM_FREE ? c->files - 1 : 0;
    }
    if (r == 0 && f->takeover[0] && !takeover_is_own(f))
        r = sweep_as(f, f->takeover, true, &other);
    *ret = (own > below ? own - below : 0) + (other > below ? other - below : 0) + below_free;
    return r;
}

/* Claims of images that exist no more are only tombstones (claim.h, "Numbers"). They do no
 * harm, so where a host lives or cannot be asked they just stay. */
static int sweep_gone(struct fsck *f)
{
    const char *const mine[] = {f->host.uuid, f->takeover, NULL}; /* locked already */
    struct host_locks locks = {0};
    unsigned gone = 0;
    dg_uuid alive;
    int r;

    if (f->dry_run || f->lock_fd < 0 || f->store.fence == FENCE_NONE ||
        (f->takeover[0] && f->takeover_fd < 0))
        return 0;
    if (host_lock_all(&f->store, mine, &locks, alive, NULL) == 0)
        r = claim_sweep_gone(&f->store, &gone);
    else
        r = 0;
    host_unlock_all(&locks);
    if (gone > 0)
        report_note(f, "gone", NULL, 0, "%u claims of images that exist no more were removed",
                    gone);
    return r < 0 ? r : 0;
}

/* Removes names of readers: void ones, those of the host that a person says is down, and our own if
 * no daemon of ours lives. */
static int sweep_readers(struct fsck *f)
{
    const char *gone[3] = {NULL};
    unsigned n = 0, at = 0;
    int r;

    if (f->lock_fd >= 0)
        gone[at++] = f->host.uuid;
    if (f->takeover[0])
        gone[at++] = f->takeover;
    r = reader_sweep(&f->store, gone, f->dry_run, &n);
    if (r == 0 && n > 0)
        report_note(f, "readers", NULL, 0, "%u names of readers that are gone %s", n,
                    f->dry_run ? "are left; the next start of their hosts' daemons clears them away"
                               : "were removed");
    return r;
}

int walk_sweep(struct fsck *f)
{
    unsigned left = 0, marks = 0, ignored;
    char text[128];
    int r = f->beside ? 0 : sweep_count(f, &left);

    if (r == 0)
        /* void ones: no daemon can rely on them */
        r = dependency_sweep(&f->store, f->dry_run, &marks);
    if (r == 0 && marks > 0)
        report_note(f, "marks", NULL, 0, "%u marks of images that nobody holds any more %s", marks,
                    f->dry_run ? "are left; the next start of a daemon clears them away"
                               : "were removed");
    if (r == 0)
        r = sweep_readers(f);
    if (r == 0)
        r = sweep_gone(f);
    if (r < 0 || left == 0)
        return r;
    if (f->dry_run ||
        (f->mode == MODE_ASK && !report_yes(f, "Remove the outdated records that crashes left"))) {
        snprintf(text, sizeof(text), "%u outdated records were left by crashes", left);
        report_other(f, problem_info(PROBLEM_STALE_TMP)->code, false, text,
                     problem_info(PROBLEM_STALE_TMP)->repair);
        return 0;
    }
    r = sweep_as(f, f->host.uuid, false, &ignored);
    if (r == 0 && f->takeover[0] && !takeover_is_own(f))
        r = sweep_as(f, f->takeover, false, &ignored);
    if (r < 0)
        return r;
    snprintf(text, sizeof(text), "%u outdated records, left by crashes, were removed", left);
    report_other(f, problem_info(PROBLEM_STALE_TMP)->code, true, text, NULL);
    return 0;
}

/* ---- files ---- */

struct tree_walk {
    struct fsck *f;
    struct header *header;
    struct claim *claim;
    uint64_t *seen; /* sealed inodes with several names */
    size_t nseen;
    char path[4096];
    unsigned depth;
    int dir_fd;
};

static bool is_again(struct tree_walk *w, const struct stat *st)
{
    if (st->st_nlink < 2)
        return false;
    for (size_t i = 0; i < w->nseen; i++)
        if (w->seen[i] == st->st_ino)
            return true;
    uint64_t *more = reallocarray(w->seen, w->nseen + 1, sizeof(*more));
    if (!more)
        out_no_memory();
    w->seen = more;
    w->seen[w->nseen++] = st->st_ino;
    return false;
}

static int look(struct tree_walk *w, int fd)
{
    int r = header_load(fd, w->header);

    if (r < 0)
        report_error(w->f, "%s: cannot be read: %s; %s", w->path, strerror(-r), store_hint(r));
    return r;
}

/* It is sealed, and no claim was held when the claims were read. A live host may have claimed,
 * sealed, restored or freed it since: it is an orphan only when a fresh claim, the header, and the
 * claim again agree. */
static bool is_orphan(struct tree_walk *w, int fd, const struct stat *st)
{
    for (int i = 0; i < 2; i++) {
        if (claim_read(&w->f->store, st->st_ino, w->claim) < 0)
            return false; /* said elsewhere */
        if (w->claim->kind == CLAIM_HELD || w->claim->kind == CLAIM_BAD)
            return false;
        if (i == 0 && (look(w, fd) < 0 || w->header->verdict != FORMAT_SEALED))
            return false;
    }
    return true;
}

static void see_sealed(struct tree_walk *w, int fd, const struct stat *st)
{
    const struct fsck_claim *c = claim_of(w->f, st->st_ino);

    w->f->sealed++;
    if (report_known(w->f, st->st_ino) || is_again(w, st))
        return;
    if (c && (c->kind == CLAIM_HELD || c->kind == CLAIM_BAD)) {
        if (w->f->verbose)
            report_note(w->f, "sealed", w->path, st->st_ino, "sealed, held by %s",
                        c->host_name[0] ? c->host_name : "an unreadable claim");
        return;
    }
    if (!is_orphan(w, fd, st))
        return;
    rescue_orphan(w->f, fd, w->path, st, c ? c->generation : 0);
}

static void see_file(struct tree_walk *w, int path_fd, const struct stat *st)
{
    const struct fsck_claim *c = claim_of(w->f, st->st_ino);
    _cleanup_close_ int fd = io_reopen(path_fd, O_RDONLY);

    if (fd < 0) {
        report_error(w->f, "%s: cannot be opened: %s; %s", w->path, strerror(-fd), store_hint(fd));
        return;
    }
    w->f->files++;
    if (look(w, fd) < 0)
        return;
    switch (w->header->verdict) {
    case FORMAT_SEALED:
        see_sealed(w, fd, st);
        break;
    case FORMAT_LIES:
        report_note(
            w->f, "lies", w->path, st->st_ino,
            w->header->info.maybe_sealed
                ? "its header contradicts itself as seal=size leaves it, so a view refuses to open it for write: %s"
                : "its header contradicts itself, so a view does not seal it (option damaged=): %s",
            w->header->info.why);
        break;
    case FORMAT_AMBIGUOUS:
        report_note(w->f, "ambiguous", w->path, st->st_ino,
                    "two formats match, so a view refuses to open it for write: %s",
                    w->header->info.why);
        break;
    case FORMAT_IMAGE:
        if (w->header->info.virtual_size == 0 && strcmp(w->header->format->name, "raw") != 0 &&
            !(c && c->kind == CLAIM_HELD))
            report_note(
                w->f, "empty", w->path, st->st_ino,
                "its virtual size is 0 and nobody holds it: an empty image; or, where a view has seal=size, one that was sealed and lost its claim");
        break;
    case FORMAT_PLAIN:
    case FORMAT_MORE:
        break;
    }
}

static int see_name(void *arg, const char *name);

static void see_dir(struct tree_walk *w, int path_fd)
{
    _cleanup_close_ int fd = openat(path_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int before = w->dir_fd, r;

    if (fd < 0) {
        report_error(w->f, "%s: cannot be opened: %s", w->path, strerror(errno));
        return;
    }
    if (w->depth == DEPTH_MAX) {
        report_error(w->f, "%s: directories are nested too deep to look into", w->path);
        return;
    }
    w->depth++;
    w->dir_fd = fd;
    r = io_fresh_dir(fd, see_name, w);
    w->dir_fd = before;
    w->depth--;
    if (r < 0 && r != -ECANCELED)
        report_error(w->f, "%s: cannot be read: %s", w->path[0] ? w->path : ".", strerror(-r));
}

/* Enters neither symbolic links nor other file systems nor .diskguard: none of their files can be
 * an image of this datastore. */
static void see_entry(struct tree_walk *w, const char *name)
{
    _cleanup_close_ int fd = io_fresh_open(w->dir_fd, name, O_PATH | O_NOFOLLOW);
    struct stat st;

    if (fd == -ENOENT || fd == -ELOOP || fd == -ESTALE)
        return; /* removed meanwhile, or a symbolic link */
    int r = fd < 0 ? fd : io_fresh_stat(fd, &st);
    if (r == -ESTALE)
        return;
    if (r < 0) {
        report_error(w->f, "%s: cannot be looked at: %s", w->path, strerror(-r));
        return;
    }
    if (st.st_dev != w->f->store.dev) {
        if (w->f->verbose)
            report_note(w->f, "other-file-system", w->path, 0,
                        "another file system is mounted here; it was not looked into");
        return;
    }
    if (S_ISREG(st.st_mode))
        see_file(w, fd, &st);
    else if (S_ISDIR(st.st_mode) && st.st_ino != w->f->store.dir_ino)
        see_dir(w, fd);
}

static int see_name(void *arg, const char *name)
{
    struct tree_walk *w = arg;
    size_t before = strlen(w->path);

    if (fsck_canceled)
        return -ECANCELED;
    if (before + 1 + strlen(name) >= sizeof(w->path)) {
        report_error(w->f, "%.200s...: the path is too long", w->path);
        return 0;
    }
    sprintf(w->path + before, "%s%s", before ? "/" : "", name);
    see_entry(w, name);
    w->path[before] = '\0';
    return 0;
}

int walk_files(struct fsck *f)
{
    struct tree_walk w = {.f = f, .dir_fd = f->store.root_fd, .depth = 1};
    struct rlimit files;
    int r;

    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    w.header = header_new();
    if (!w.header)
        out_no_memory();
    w.claim = out_alloc(sizeof(*w.claim));
    r = io_fresh_dir(f->store.root_fd, see_name, &w);
    header_free(w.header);
    free(w.claim);
    free(w.seen);
    return r == -ECANCELED ? 0 : r;
}
