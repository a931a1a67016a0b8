/* unseal.c: see unseal.h. */
#include "common/unseal.h"

#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mountinfo.h"
#include "common/mounts.h"
#include "common/out.h"
#include "core/claim.h"
#include "core/header.h"
#include "core/seal.h"

struct unseal_work {
    struct unseal *u;
    char *real; /* the file's path without symbolic links */
    int fd, dir_fd;
    char side[NAME_MAX + 1];
    struct stat st;
    bool inside; /* of the datastore `store` */
    struct store store;
    struct header *header;
    struct rescue rescue;
    struct record rec;
    struct claim claim;
};

static void say(struct unseal *u, const char *fmt, ...) DG_PRINTF(2, 3);
static void say(struct unseal *u, const char *fmt, ...)
{
    size_t used = strlen(u->text);
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(u->text + used, sizeof(u->text) - used, fmt, ap);
    va_end(ap);
}

static enum unsealed fail(struct unseal *u, int err, const char *what)
{
    say(u, "%s: %s", what, strerror(-err));
    return UNSEAL_FAILED;
}

/* ---- where it is ---- */

/* A view shows true headers, and asking one may hang. */
static bool in_view(struct unseal_work *w)
{
    struct mounts mounts = {0};
    int r = mounts_load(&mounts);
    const struct mount *m = NULL;

    if (r == 0)
        r = mounts_resolve(&mounts, w->u->path, &w->real);
    if (r == 0)
        m = mounts_of_path(&mounts, w->real, NULL);
    if (r < 0)
        say(w->u, "cannot be found: %s", strerror(-r));
    else if (m)
        say(w->u, "lies in a view of %s: what it shows has no seal; see diskguardctl why",
            m->source);
    mounts_free(&mounts);
    return r < 0 || m;
}

static bool open_file(struct unseal_work *w)
{
    char *slash = strrchr(w->real, '/');
    int n = snprintf(w->side, sizeof(w->side), ".%s.diskguard-unseal", slash + 1);

    w->fd = open(w->real, (w->u->look ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    int r = w->fd < 0 ? -errno : io_fresh_stat(w->fd, &w->st);
    if (r == 0 && !S_ISREG(w->st.st_mode)) {
        say(w->u, "is no regular file");
        return false;
    }
    *slash = '\0';
    if (r == 0) {
        w->dir_fd = open(w->real[0] ? w->real : "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        r = w->dir_fd < 0 ? -errno : n >= (int)sizeof(w->side) ? -ENAMETOOLONG : 0;
    }
    if (r < 0)
        say(w->u, "cannot be opened: %s", strerror(-r));
    return r == 0;
}

/* Of the directories from this one up, the one that is a datastore. dir is used up. */
static bool store_above(struct unseal_work *w, char *dir)
{
    struct why why = {""};

    for (;;) {
        char probe[PATH_MAX + 32];
        snprintf(probe, sizeof(probe), "%s/.diskguard", dir);
        if (access(probe, F_OK) == 0)
            break;
        char *slash = strrchr(dir, '/');
        if (!slash)
            return true;
        *slash = '\0';
    }
    int r = store_look(dir[0] ? dir : "/", &w->store, &why);
    w->inside = r == 0;
    if (r == -EXDEV) { /* a copy of a datastore: its claims speak of other files */
        store_close(&w->store);
        return true;
    }
    if (r < 0)
        say(w->u, "lies in a datastore that cannot be read, so nothing tells who holds it: %s",
            why.text);
    return r == 0;
}

/* What of path comes after dir, or NULL: it is not below. "/" is above all. */
static const char *below(const char *path, const char *dir)
{
    size_t n = strcmp(dir, "/") == 0 ? 0 : strlen(dir);

    return strncmp(path, dir, n) == 0 && (path[n] == '/' || path[n] == '\0') ? path + n : NULL;
}

/* The file's directory, dir, by its other paths: a part of a datastore may be mounted on its own
 * (mount --bind), where nothing above it says what it is. */
static bool find_by_mounts(struct unseal_work *w, const char *dir)
{
    _cleanup_free_ char *inner = NULL;
    struct mountinfo m = {0};
    struct statx here;
    struct stat st, other;
    bool fine = true;
    FILE *f = mountinfo_open();

    if (!f || fstat(w->dir_fd, &st) < 0 ||
        statx(w->dir_fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &here) < 0) {
        say(w->u, "the mounts cannot be read: %s", strerror(errno));
        fine = false;
    }
    while (fine && !inner && mountinfo_next(f, &m))
        if (m.id == here.stx_mnt_id && below(dir[0] ? dir : "/", m.point) &&
            asprintf(&inner, "%s%s", strcmp(m.root, "/") == 0 ? "" : m.root,
                     below(dir[0] ? dir : "/", m.point)) < 0)
            out_no_memory();
    if (f)
        rewind(f);
    while (fine && inner && !w->inside && mountinfo_next(f, &m)) {
        const char *rest = below(inner, m.root);
        _cleanup_free_ char *path = NULL;
        if (m.major != here.stx_dev_major || m.minor != here.stx_dev_minor ||
            m.id == here.stx_mnt_id || !rest)
            continue;
        if (asprintf(&path, "%s%s", strcmp(m.point, "/") == 0 ? "" : m.point, rest) < 0)
            out_no_memory();
        if (stat(path[0] ? path : "/", &other) == 0 && other.st_ino == st.st_ino &&
            other.st_dev == st.st_dev)
            fine = store_above(w, path);
    }
    mountinfo_free(&m);
    if (f)
        fclose(f);
    return fine;
}

/* real is the file's directory, and is used up. */
static bool find_store(struct unseal_work *w)
{
    _cleanup_free_ char *dir = out_strdup(w->real);

    return store_above(w, w->real) && (w->inside || find_by_mounts(w, dir));
}

/* Nobody's image: 0. Under the exclusive fence lock nobody can claim it. */
static bool is_free(struct unseal_work *w)
{
    struct io_handle handle;
    int r = w->inside && w->st.st_dev == w->store.dev
                ? claim_read(&w->store, w->st.st_ino, &w->claim)
                : 0;

    if (r == 0 && w->claim.kind == CLAIM_HELD)
        r = io_handle_get(w->fd, &handle);
    if (r < 0) {
        say(w->u, "who holds it cannot be read: %s", strerror(-r));
        return false;
    }
    if (w->claim.kind == CLAIM_HELD && io_handle_equal(&handle, &w->claim.rec.handle))
        say(w->u,
            "is no copy: it is an image of this datastore, held by %s since %s; see diskguardctl why",
            out_tame(w->claim.rec.host_name), w->claim.rec.since);
    else if (w->claim.kind == CLAIM_BAD)
        say(w->u, "its claim on the datastore is damaged; see diskguardctl why");
    else
        return true;
    return false;
}

static bool lock(struct unseal_work *w)
{
    enum fence_kind kind = w->inside ? w->store.fence : io_fstype(w->fd)->fence;

    if (w->u->look)
        return true;
    if (w->inside && kind == FENCE_NONE) {
        say(w->u,
            "this storage has no locks that would prove that no host is just opening it: move it out of the datastore first");
        return false;
    }
    int r = io_fence_exclusive(w->fd, kind);
    if (r == -EAGAIN)
        say(w->u,
            "somebody writes to it: the storage did not grant the fence lock. If it is no copy, see diskguardctl why; else end that program (fuser names it)");
    else if (r < 0)
        say(w->u, "cannot be locked: %s", strerror(-r));
    return r == 0;
}

/* ---- what undoes it ---- */

/* What the claims of a datastore say of images that are sealed with the same bytes. */
struct hints {
    struct unseal_work *w;
    struct store *store;
    unsigned n;
};

static int hint(void *arg, uint64_t ino, const struct claim *c)
{
    struct hints *h = arg;
    struct unseal_work *w = h->w;
    enum header_state state;
    struct rescue rescue;

    (void)ino;
    if (c->kind != CLAIM_HELD || c->rec.plan.n == 0 || h->n == RESCUE_MAX ||
        strcmp(c->rec.format, w->header->format->name) != 0)
        return 0;
    if (seal_compare(w->fd, &c->rec, &state) < 0 || state != HEADER_SEALED)
        return 0;
    _cleanup_free_ struct plan *plan = out_alloc(sizeof(*plan));
    if (header_rescue(w->fd, w->header, &c->rec.virtual_size, &rescue, plan) < 0)
        return 0;
    say(w->u, "; the claim of '%.200s', which %s holds: %" PRIu64 " bytes now, if this is its copy",
        out_tame(c->rec.image), out_tame(c->rec.host_name), c->rec.virtual_size);
    h->n++;
    return 0;
}

static void hints_of(struct unseal_work *w)
{
    struct store s;
    struct why why = {""};
    struct hints h = {.w = w, .store = &s};
    int r;

    if (!w->u->datastore)
        return;
    r = store_look(w->u->datastore, &s, &why);
    if (r == 0)
        r = claim_each(&s, hint, &h);
    if (r < 0)
        say(w->u, "; the claims of %s cannot be read: %s", w->u->datastore,
            why.text[0] ? why.text : strerror(-r));
    else if (h.n == 0)
        say(w->u, "; no claim of %s explains its bytes", w->u->datastore);
    store_close(&s);
}

static void candidates(struct unseal_work *w)
{
    static const char *const word[] = {
        [RESCUE_EXACT] = "it is", [RESCUE_UPPER] = "at most", [RESCUE_LOWER] = "at least"};

    for (unsigned i = 0; i < w->rescue.n && i < RESCUE_MAX; i++)
        say(w->u, "; true size: %s %" PRIu64 " bytes (%s)", word[w->rescue.candidate[i].kind],
            w->rescue.candidate[i].size, w->rescue.candidate[i].source);
}

/* UNSEAL_DONE: there is a plan. */
static enum unsealed plan_of(struct unseal_work *w)
{
    struct unseal *u = w->u;
    int r = header_load(w->fd, w->header);

    if (r < 0)
        return fail(u, r, "cannot be read");
    if (w->header->verdict == FORMAT_LIES || w->header->verdict == FORMAT_AMBIGUOUS) {
        say(u, "its header is damaged, and not by a seal alone: %s", w->header->info.why);
        return UNSEAL_FAILED;
    }
    if (w->header->verdict != FORMAT_SEALED) {
        say(u, "is not sealed");
        return UNSEAL_NOTHING;
    }
    r = header_rescue(w->fd, w->header, u->size, &w->rescue, &w->rec.plan);
    say(u, "%s", w->header->info.why);
    candidates(w);
    if (r == 0)
        return UNSEAL_DONE;
    if (r == -ENODATA) {
        hints_of(w);
        say(u,
            "; the file does not hold the exact size: find it in a backup, on the image itself, or in the definition of the virtual machine, and give it with --size");
        return UNSEAL_LEFT;
    }
    say(u,
        r == -ERANGE ? "; the size given contradicts the file"
                     : "; it cannot be undone from the file alone%s%s",
        r == -EUCLEAN ? "" : ": ", r == -EUCLEAN ? "" : strerror(-r));
    return UNSEAL_FAILED;
}

/* ---- the plan beside the file ---- */

static void fill(struct unseal_work *w)
{
    static const char nobody[] = "00000000-0000-0000-0000-000000000000";
    struct record *rec = &w->rec;

    memcpy(rec->host, nobody, sizeof(nobody));
    memcpy(rec->installation, nobody, sizeof(nobody));
    memcpy(rec->boot, nobody, sizeof(nobody));
    memcpy(rec->daemon, nobody, sizeof(nobody));
    base_time_text(rec->since);
    snprintf(rec->format, sizeof(rec->format), "%s", w->header->format->name);
    rec->ino = w->st.st_ino;
    rec->step = STEP_RESTORING;
    rec->cut = OVERLAY_NO_CUT;
    rec->mtime = rec->mtime_sealed = w->st.st_mtim;
}

static int side_write(struct unseal_work *w)
{
    _cleanup_free_ char *text = NULL;
    size_t len;
    int r = record_encode(&w->rec, &text, &len);
    int fd = r < 0 ? -1 : openat(w->dir_fd, w->side, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    if (r < 0)
        return r;
    if (fd < 0)
        return -errno;
    r = io_pwrite_all(fd, text, len, 0);
    if (r == 0)
        r = io_fsync(fd);
    if (close(fd) < 0 && r == 0)
        r = -errno;
    if (r == 0)
        r = io_fsync(w->dir_fd);
    if (r < 0)
        unlinkat(w->dir_fd, w->side, 0);
    return r;
}

/* Is there one from a run that was cut short? 1, 0 or -errno. One that does not decode was not
 * complete when it was cut: nothing was written yet. */
static int side_read(struct unseal_work *w)
{
    _cleanup_close_ int fd = openat(w->dir_fd, w->side, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    _cleanup_free_ char *text = out_alloc(DG_RECORD_MAX);
    struct stat st;

    if (fd < 0)
        return errno == ENOENT ? 0 : -errno;
    int r = io_fresh_stat(fd, &st);
    if (r < 0)
        return r;
    if (!S_ISREG(st.st_mode) || (st.st_uid != geteuid() && st.st_uid != w->st.st_uid))
        return -EPERM; /* not ours */
    ssize_t n = read(fd, text, DG_RECORD_MAX);
    r = n < 0 ? -errno : record_decode(text, (size_t)n, &w->rec);
    if (r == -EBADMSG)
        r = w->u->look || unlinkat(w->dir_fd, w->side, 0) == 0 ? 0 : -errno;
    else if (r == 0)
        r = w->rec.ino == w->st.st_ino ? 1 : -EBADMSG;
    return r;
}

static int side_remove(struct unseal_work *w)
{
    return unlinkat(w->dir_fd, w->side, 0) < 0 ? -errno : io_fsync(w->dir_fd);
}

static enum unsealed undo(struct unseal_work *w)
{
    int r = seal_undo(w->fd, &w->rec);

    if (r == 0)
        r = side_remove(w);
    if (r == 0) {
        say(w->u,
            "; the seal was taken off: header verified, the rest untouched, and its mtime is new");
        return UNSEAL_DONE;
    }
    say(w->u, "; the seal could not be taken off: %s%s", strerror(-r),
        r == -EUCLEAN
            ? ". Its bytes are not those that were planned for: somebody wrote to it. Nothing was touched"
            : "; run this again");
    return UNSEAL_FAILED;
}

/* ---- all of it ---- */

static enum unsealed run(struct unseal_work *w)
{
    if (in_view(w) || !open_file(w) || !find_store(w) || !lock(w) || !is_free(w))
        return UNSEAL_FAILED;
    int r = side_read(w);
    if (r < 0) {
        say(w->u, "'%s' beside it, of a run that was cut short, cannot be used: %s", w->side,
            strerror(-r));
        return UNSEAL_FAILED;
    }
    if (r == 1) {
        say(w->u, "a run of this was cut short");
        return w->u->look ? UNSEAL_LEFT : undo(w);
    }
    enum unsealed e = plan_of(w);
    if (e != UNSEAL_DONE)
        return e;
    if (w->u->look) {
        say(w->u, "; the seal can be taken off");
        return UNSEAL_LEFT;
    }
    fill(w);
    r = side_write(w);
    if (r < 0)
        return fail(w->u, r, "; the plan cannot be written beside it, so nothing was touched");
    return undo(w);
}

enum unsealed unseal_file(struct unseal *u)
{
    struct unseal_work *w = out_alloc(sizeof(*w));

    u->text[0] = '\0';
    w->u = u;
    w->fd = w->dir_fd = -1;
    w->header = header_new();
    if (!w->header)
        out_no_memory();
    enum unsealed e = run(w);
    if (w->fd >= 0)
        close(w->fd); /* what was written is synced */
    if (w->dir_fd >= 0)
        close(w->dir_fd);
    if (w->inside)
        store_close(&w->store);
    header_free(w->header);
    free(w->real);
    free(w);
    return e;
}
