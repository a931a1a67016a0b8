/* recover.c: execution of recover_decide(): looks at claim, image and header, acts, reports. */
#include "core/recover.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/sync.h"
#include "core/seal.h"

/* each lost one means that a live host changed the claim between two reads of it */
#define LOOKS 4

struct recovery {
    struct recover *r;
    uint64_t ino;
    const struct record *row; /* or NULL */
    struct claim *claim;
    /* the newer of the two plans, as found: the decision and the report are about it */
    struct record *rec;
    struct record *work; /* a copy to act with, in our name, with the next sequence numbers */
    bool from_row;       /* rec is the row */
    int fd;              /* the image, read-write, under the exclusive fence lock; or -1 */
    int err;             /* why the image is IMAGE_UNREADABLE, or 0 */
    struct recover_input in;
};

/* ---- looking ---- */

/* Opens the recorded file, O_PATH. Its handle finds it under any name. Without handles, or
 * without CAP_DAC_READ_SEARCH, the recorded path is tried; inode number and handle must be right
 * then. */
static int find_image(const struct store *s, const struct record *rec, enum image_kind *ret)
{
    _cleanup_close_ int fd = -1;
    struct io_handle handle;
    struct stat st;
    bool by_handle = rec->handle.len > 0;

    *ret = IMAGE_UNREADABLE;
    if (by_handle) {
        fd = io_fresh_handle(s->root_fd, &rec->handle, O_PATH, &st);
        by_handle = fd != -EOPNOTSUPP && fd != -EPERM && fd != -ENOSYS;
    }
    if (!by_handle)
        fd = io_fresh_open(s->root_fd, rec->image, O_PATH);
    if (fd == -ESTALE && by_handle && store_gone(s, -1, &rec->handle) == 1)
        *ret = IMAGE_GONE;
    if (fd < 0)
        return fd; /* A missing path says nothing: images are renamed while in use. */
    if (!by_handle && io_fresh_stat(fd, &st) < 0)
        return -1;
    if (st.st_ino != rec->ino) {
        *ret = by_handle ? IMAGE_OTHER : IMAGE_UNREADABLE;
        return -1;
    }
    if (!by_handle && rec->handle.len > 0 &&
        (io_handle_get(fd, &handle) < 0 || !io_handle_equal(&handle, &rec->handle))) {
        *ret = IMAGE_OTHER;
        return -1;
    }
    if (!S_ISREG(st.st_mode)) {
        *ret = IMAGE_OTHER;
        return -1;
    }
    *ret = st.st_nlink == 0 ? IMAGE_GONE : IMAGE_FOUND;
    return *ret == IMAGE_FOUND ? base_steal_fd(&fd) : -1;
}

/* Opens the image with the exclusive fence lock, so that nobody else can write while we look and
 * act: it is not granted while any writer has the shared one. It stays until the descriptor is
 * closed, after the verified restore. */
static enum image_kind open_image(struct recovery *j)
{
    const struct store *s = j->r->store;
    _cleanup_close_ int found = -1;
    enum image_kind kind;
    int fd, r;

    found = find_image(s, j->rec, &kind);
    j->err = kind == IMAGE_UNREADABLE ? found : 0;
    if (kind != IMAGE_FOUND)
        return kind;
    fd = io_reopen(found, O_RDWR);
    if (io_err_readonly(fd) && j->r->dry_run) { /* dry run: look without the lock */
        j->fd = io_reopen(found, O_RDONLY);
        j->err = DG_MIN(j->fd, 0);
        return j->fd < 0 ? IMAGE_UNREADABLE : IMAGE_FOUND;
    }
    j->err = DG_MIN(fd, 0);
    if (fd < 0)
        return IMAGE_UNREADABLE;
    r = io_fence_exclusive(fd, s->fence);
    /* Sync the dead daemon's writes first: they may stand in the cache of this host alone. Then
     * drop the cache. */
    if (r == 0)
        r = io_fsync(fd);
    if (r == 0)
        r = io_cache_drop(fd);
    if (r < 0) {
        close(fd);
        return r == -EAGAIN ? IMAGE_BUSY : IMAGE_UNREADABLE;
    }
    j->fd = fd;
    return IMAGE_FOUND;
}

static enum owner owner_of(const struct recover *r, const struct record *rec)
{
    if (claim_is_of(rec, r->host))
        return OWNER_MINE;
    if (r->may_take && r->may_take(r->arg, rec))
        return OWNER_CONFIRMED;
    return r->takeover && strcmp(rec->host, r->takeover) == 0 ? OWNER_CONFIRMED : OWNER_FOREIGN;
}

static bool past_seal(enum claim_step step)
{
    return step == STEP_SEALED || step == STEP_RESTORING || step == STEP_STUCK;
}

static void describe(struct recovery *j)
{
    const struct claim *c = j->claim;
    struct recover_input *in = &j->in;

    in->claim = c->kind;
    in->claim_error = c->kind == CLAIM_BAD ? c->error : 0;
    if (c->kind == CLAIM_HELD || c->kind == CLAIM_FREE)
        in->owner = owner_of(j->r, &c->rec);
    if (j->row && c->kind != CLAIM_NONE)
        in->generation =
            (c->generation > j->row->generation) - (c->generation < j->row->generation);
    in->row_sealed = in->row == ROW_VALID && past_seal(j->row->step);
}

/* Sequence numbers are compared within one claim only: same generation, both ours. */
static void choose_plan(struct recovery *j)
{
    const struct claim *c = j->claim;
    const struct record *rec = NULL;

    j->from_row = false;
    if (c->kind == CLAIM_HELD) {
        j->from_row = j->in.row == ROW_VALID && j->in.owner == OWNER_MINE &&
                      j->in.generation == 0 && j->row->seq >= c->rec.seq;
        rec = j->from_row ? j->row : &c->rec;
    } else if (j->row) {
        j->from_row = j->in.row == ROW_VALID;
        rec = j->row;
    } else if (c->kind == CLAIM_FREE) {
        rec = &c->rec;
    }
    if (rec && (rec != j->row || j->in.row == ROW_VALID)) {
        *j->rec = *rec;
        return;
    }
    /* Nothing decodes: make a name for the report. */
    memset(j->rec, 0, sizeof(*j->rec));
    j->rec->ino = j->ino;
    j->rec->generation = j->row ? j->row->generation : c->generation;
}

/* Does the decision depend on the image? A row that is stale in any case must not wait for an image
 * that is in use. */
static bool image_matters(const struct recover_input *in)
{
    struct recover_input other = *in;
    struct recover_decision one = recover_decide(in);

    for (int image = IMAGE_FOUND; image <= IMAGE_BUSY; image++)
        for (int header = HEADER_TRUE; header <= HEADER_NOPLAN; header++) {
            struct recover_decision d;

            other.image = (enum image_kind)image;
            other.header = (enum header_state)header;
            d = recover_decide(&other);
            if (d.action != one.action || d.problem != one.problem)
                return true;
        }
    return false;
}

static bool same_claim(const struct claim *a, const struct claim *b)
{
    if (a->kind != b->kind || a->generation != b->generation)
        return false;
    return a->kind == CLAIM_NONE || a->kind == CLAIM_BAD ||
           (a->rec.seq == b->rec.seq && strcmp(a->rec.host, b->rec.host) == 0 &&
            strcmp(a->rec.installation, b->rec.installation) == 0);
}

static void close_image(struct recovery *j)
{
    if (j->fd >= 0)
        close(j->fd); /* every write to it was fsynced and verified */
    j->fd = -1;
}

/* Looks at the image and, under its lock, at the claim again. What was read before the lock may
 * have belonged to a live owner. */
static int look_at_image(struct recovery *j)
{
    _cleanup_free_ struct claim *again = malloc(sizeof(*again));
    int r;

    if (!again)
        return -ENOMEM;
    j->in.image = open_image(j);
    if (j->in.image == IMAGE_UNREADABLE && io_err_short(j->err))
        return j->err; /* later it can be read: no word about the image itself */
    if (j->in.image != IMAGE_FOUND)
        return 0;
    r = claim_read(j->r->store, j->ino, again);
    if (r < 0)
        return r;
    if (!same_claim(j->claim, again)) {
        close_image(j);
        return -EAGAIN;
    }
    r = seal_compare(j->fd, j->rec, &j->in.header);
    if (r < 0) {
        close_image(j);
        j->in.image = IMAGE_UNREADABLE;
    }
    return 0;
}

/* Fills in, rec and fd. -errno: the claim cannot be read, or this host is short of something. */
static int recovery_look(struct recovery *j)
{
    int r = -EAGAIN;

    for (unsigned i = 0; i < LOOKS && r == -EAGAIN; i++) {
        r = claim_read(j->r->store, j->ino, j->claim);
        if (r < 0)
            return r;
        describe(j);
        choose_plan(j);
        if (image_matters(&j->in))
            r = look_at_image(j);
    }
    if (r == -EAGAIN) { /* somebody is at work on it */
        j->in.image = IMAGE_BUSY;
        r = 0;
    }
    return r;
}

/* ---- acting ---- */

static int drop_row(struct recovery *j, uint64_t generation)
{
    return j->r->journal ? journal_remove(j->r->journal, j->ino, generation) : 0;
}

/* Drops the row that was asked about, where it is not that of the settled claim. */
static int drop_old_row(struct recovery *j, uint64_t settled)
{
    return j->row && j->row->generation != settled ? drop_row(j, j->row->generation) : 0;
}

static void make_ours(struct recovery *j)
{
    const struct host *h = j->r->host;

    memcpy(j->work->host, h->uuid, sizeof(dg_uuid));
    memcpy(j->work->installation, h->installation, sizeof(dg_uuid));
    memcpy(j->work->boot, h->boot, sizeof(dg_uuid));
    /* its tmp names must be those of a living daemon */
    memcpy(j->work->daemon, h->daemon, sizeof(dg_uuid));
    snprintf(j->work->host_name, sizeof(j->work->host_name), "%s", h->name);
    j->work->fenced = io_fencing(j->r->store->root_fd, j->r->store->fence, NULL);
}

/* For a takeover, or a missing claim: makes `work` the record of the next generation, with the
 * plan of rec, in our name. The row comes first, as always. If only the row has the plan, it
 * keeps its step until the claim stands, so that a crash in between is recognised. */
static int acquire_next(struct recovery *j)
{
    uint64_t old = j->work->generation;
    enum claim_step armed = j->work->plan.n > 0 ? STEP_ARMED : STEP_CLAIMED;
    int r = claim_next(j->r->store, j->claim, &j->work->generation);

    if (r < 0)
        return r;
    make_ours(j);
    j->work->seq++;
    j->work->pid = j->work->start = 0;
    base_time_text(j->work->since);
    if (!j->from_row)
        j->work->step = armed;
    if (j->r->journal)
        r = journal_put(j->r->journal, j->work);
    if (r == 0 && j->from_row && old != j->work->generation)
        r = drop_row(j, old);
    if (r < 0)
        return r;
    j->work->step = armed;
    bool left; /* then the row stays, too, and the next recovery finds both */
    r = claim_acquire(j->r->store, j->work, &left);
    if (r == -EBUSY && !j->from_row) {
        int dropped = drop_row(j, j->work->generation);

        if (dropped < 0)
            log_debug("row of a lost race stays: %s", strerror(-dropped));
    }
    return r;
}

/* The header is true. Has anybody seen it sealed in this hold? Only a row can say "not yet" for
 * sure, because the claim does not say when the seal is complete. */
static bool was_sealed(const struct recovery *j)
{
    const struct timespec *sealed = &j->rec->mtime_sealed;
    bool never =
        j->from_row && j->rec->step == STEP_ARMED && sealed->tv_sec == 0 && sealed->tv_nsec == 0;

    return !never && seal_was_taken(j->rec);
}

static int restore(struct recovery *j)
{
    struct recover *r = j->r;
    struct seal seal = {.store = r->store,
                        .journal = r->journal,
                        .fd = j->fd,
                        .policy = r->policy,
                        .rec = j->work,
                        .untold = true};
    uint64_t generation = j->work->generation;
    int err = seal_judge_chosen(j->fd, j->work);

    if (err < 0)
        return err;
    make_ours(j);
    if (j->work->step == STEP_RESTORING || j->work->step == STEP_STUCK)
        j->work->step = STEP_SEALED; /* makes seal_restore write journal and claim: this plan may be
                                        newer than the claim's */
    err = seal_restore(&seal);
    return err < 0 ? err : drop_old_row(j, generation);
}

/* The true bytes are there. They may stand in this host's cache alone, so they are synced before
 * the claim is given up. */
static int release(struct recovery *j)
{
    uint64_t generation = j->work->generation;
    enum header_state state;
    int r = io_fsync(j->fd);

    if (r == 0)
        r = seal_compare(j->fd, j->rec, &state);
    if (r == 0 && state != HEADER_TRUE && state != HEADER_NOPLAN)
        r = -EUCLEAN;
    if (r == 0)
        r = seal_judge_chosen(j->fd, j->work);
    if (r == 0 && was_sealed(j))
        r = seal_new_mtime(j->fd, j->work, NULL);
    if (r < 0)
        return r;
    make_ours(j);
    r = claim_free(j->r->store, j->work);
    if (r == 0)
        r = drop_row(j, generation);
    return r < 0 ? r : drop_old_row(j, generation);
}

static bool holds_gone_image(const struct recover_input *in)
{
    return in->claim == CLAIM_HELD && in->owner != OWNER_FOREIGN && in->image == IMAGE_GONE;
}

/* A claim that is held on a gone image is freed; work is its record, in our name. */
static int recovery_forget(struct recovery *j)
{
    uint64_t generation = j->work->generation;
    int r = 0;

    if (holds_gone_image(&j->in)) {
        make_ours(j);
        r = claim_free(j->r->store, j->work);
        if (r == 0)
            r = drop_row(j, generation);
    }
    if (r == 0 && j->row)
        r = drop_row(j, j->row->generation);
    return r;
}

/* A person's takeover is an agreement in itself; any other repair that needs one asks for it. */
static bool permitted(struct recovery *j, struct recover_decision d)
{
    const struct recover *r = j->r;

    if (r->dry_run)
        return false;
    if (problem_info(d.problem)->severity == SEV_ASK && !r->agree &&
        d.problem != PROBLEM_FOREIGN_CONFIRMED)
        return false;
    return !r->ask || r->ask(r->arg, j->rec, d);
}

/* 0 settled, 1 left as it is, -errno. */
static int act(struct recovery *j, struct recover_decision d)
{
    int r = 0;

    if (d.action == RECOVER_NOTHING)
        return 0;
    if (d.action == RECOVER_STOP && d.problem != PROBLEM_CLAIM_MISSING)
        return 1;
    if (!permitted(j, d))
        return 1;
    *j->work = *j->rec;
    if (d.action == RECOVER_STOP || (j->in.claim == CLAIM_HELD && j->in.owner == OWNER_CONFIRMED &&
                                     (d.action != RECOVER_FORGET || holds_gone_image(&j->in))))
        r = acquire_next(j);
    if (r < 0)
        return r;
    switch (d.action) {
    case RECOVER_FORGET:
        return recovery_forget(j);
    case RECOVER_RELEASE:
        return release(j);
    case RECOVER_RESTORE:
    case RECOVER_STOP: /* CLAIM_MISSING, and a person agreed */
        return restore(j);
    case RECOVER_NOTHING:
        break;
    }
    return 0;
}

static int settle(struct recovery *j)
{
    struct recover_decision d = {RECOVER_STOP, PROBLEM_UNREADABLE};
    int done = recovery_look(j);

    if (done == 0) {
        d = recover_decide(&j->in);
        done = act(j, d);
        if (done == 0 && j->work->step == STEP_FREE && !j->r->leave_lower)
            claim_clear(j->r->store, j->ino, j->work->generation);
    } else {
        j->rec->ino = j->ino;
        j->rec->generation = j->row ? j->row->generation : 0;
    }
    close_image(j);
    if (d.problem != PROBLEM_NONE && j->r->report)
        j->r->report(j->r->arg, j->rec, d, done);
    return done;
}

int recover_image(struct recover *r, uint64_t ino, const struct record *row, int row_err)
{
    struct recovery j = {.r = r, .ino = ino, .row = row, .fd = -1};
    int err = -ENOMEM;

    j.in.row = !row ? ROW_NONE : row_err < 0 ? ROW_BAD : ROW_VALID;
    j.claim = calloc(1, sizeof(*j.claim));
    j.rec = calloc(1, sizeof(*j.rec));
    j.work = calloc(1, sizeof(*j.work));
    if (j.claim && j.rec && j.work)
        err = settle(&j);
    free(j.claim);
    free(j.rec);
    free(j.work);
    return err;
}

/* ---- all ---- */

struct row_key {
    uint64_t ino, generation;
    enum { ROW_WAITS, ROW_SETTLED, ROW_LEFT } state;
};
struct sweep {
    struct recover *r;
    struct row_key *key; /* sorted by inode, then by generation, the highest first */
    size_t n, room;
    struct mutex mutex; /* for what follows, and the states of the keys */
    struct cond ended;  /* a job */
    unsigned jobs;      /* under way */
    bool left, progress;
};

static int collect_row(void *arg, const struct record *rec, int err)
{
    struct sweep *s = arg;

    (void)err;
    if (s->n == s->room) {
        size_t room = s->room ? 2 * s->room : 64;
        struct row_key *grown = reallocarray(s->key, room, sizeof(*grown));

        if (!grown)
            return -ENOMEM;
        s->key = grown;
        s->room = room;
    }
    s->key[s->n++] = (struct row_key){rec->ino, rec->generation, ROW_WAITS};
    return 0;
}

static int key_cmp(const void *a, const void *b)
{
    const struct row_key *x = a, *y = b;

    if (x->ino != y->ino)
        return x->ino < y->ino ? -1 : 1;
    return (x->generation < y->generation) - (x->generation > y->generation);
}

static int key_cmp_ino(const void *a, const void *b)
{
    const struct row_key *x = a, *y = b;

    return (x->ino > y->ino) - (x->ino < y->ino);
}

/* ---- one image at a time, or several ---- */

struct job {
    struct sweep *s;
    uint64_t ino;
    struct row_key *key; /* of its row; NULL: none */
    int err;             /* of the row */
    struct record row;
};

static void run_job(void *arg)
{
    struct job *job = arg;
    struct sweep *s = job->s;
    int r = recover_image(s->r, job->ino, job->key ? &job->row : NULL, job->err);

    mutex_lock(&s->mutex);
    if (job->key)
        job->key->state = r == 0 ? ROW_SETTLED : ROW_LEFT;
    s->left |= r != 0;
    s->progress = true;
    s->jobs--;
    cond_broadcast(&s->ended);
    mutex_unlock(&s->mutex);
    free(job);
}

/* Waits until `most` jobs at the most are under way. */
static void wait_jobs(struct sweep *s, unsigned most)
{
    mutex_lock(&s->mutex);
    while (s->jobs > most)
        cond_wait(&s->ended, &s->mutex);
    mutex_unlock(&s->mutex);
}

static int start_job(struct sweep *s, uint64_t ino, struct row_key *key, const struct record *row,
                     int err)
{
    struct job *job = malloc(sizeof(*job));

    if (!job)
        return -ENOMEM;
    *job = (struct job){.s = s, .ino = ino, .key = key, .err = err};
    if (row)
        job->row = *row;
    wait_jobs(s, RECOVER_JOBS - 1);
    mutex_lock(&s->mutex);
    s->jobs++;
    mutex_unlock(&s->mutex);
    if (s->r->run)
        s->r->run(s->r->arg, run_job, job);
    else
        run_job(job);
    return 0;
}

static bool row_may_run(struct sweep *s, const struct row_key *k)
{
    mutex_lock(&s->mutex);
    bool may =
        k->state == ROW_WAITS && (k == s->key || k[-1].ino != k->ino || k[-1].state == ROW_SETTLED);
    mutex_unlock(&s->mutex);
    return may;
}

/* A row waits until every higher generation of its inode is settled: what is left of a higher
 * one may explain the lower one. */
static int settle_row(void *arg, const struct record *rec, int err)
{
    struct sweep *s = arg;
    struct row_key want = {.ino = rec->ino, .generation = rec->generation};
    struct row_key *k = s->n ? bsearch(&want, s->key, s->n, sizeof(want), key_cmp) : NULL;

    return k && row_may_run(s, k) ? start_job(s, rec->ino, k, rec, err) : 0;
}

static int settle_claim(void *arg, uint64_t ino, const struct claim *c)
{
    struct sweep *s = arg;
    struct row_key want = {.ino = ino};

    if (c->kind == CLAIM_FREE ||
        (c->kind == CLAIM_HELD && owner_of(s->r, &c->rec) == OWNER_FOREIGN))
        return 0;
    if (s->n && bsearch(&want, s->key, s->n, sizeof(want), key_cmp_ino))
        return 0;
    return start_job(s, ino, NULL, NULL, 0);
}

int recover_all(struct recover *r)
{
    struct sweep s = {.r = r};
    int err = r->journal ? journal_each(r->journal, collect_row, &s) : 0;

    mutex_init(&s.mutex);
    cond_init(&s.ended);
    if (err == 0 && s.n > 1)
        qsort(s.key, s.n, sizeof(*s.key), key_cmp);
    /* One pass, unless an inode has several rows. The rows are not kept: each is 40 KiB. */
    s.progress = r->journal != NULL;
    while (err == 0 && s.progress) {
        s.progress = false;
        err = journal_each(r->journal, settle_row, &s);
        wait_jobs(&s, 0);
    }
    if (err == 0)
        err = claim_each(r->store, settle_claim, &s);
    wait_jobs(&s, 0);
    cond_destroy(&s.ended);
    mutex_destroy(&s.mutex);
    free(s.key);
    return err < 0 ? err : s.left;
}
