/* ctl_raw.c: reads the datastore itself. See ctl.h. */
#include "ctl/ctl.h"

#include "base/sync.h"
#include "core/seal.h"
#include "core/whereis.h"

#include <fcntl.h>
#include <pthread.h>
#include <string.h>

void raw_free(struct raw *r)
{
    if (!r)
        return;
    for (size_t i = 0; i < r->nclaims; i++) {
        free(r->claims[i].path);
        free(r->claims[i].now);
    }
    free(r->claims);
    free(r->hosts);
    if (r->image) {
        header_clear(&r->image->header);
        free(r->image->link);
        free(r->image->needs);
        free(r->image->readers);
    }
    free(r->image);
    store_close(&r->store);
    free(r);
}

const struct raw_host *raw_host_of(const struct raw *r, const char *uuid)
{
    for (size_t i = 0; i < r->nhosts; i++)
        if (strcmp(r->hosts[i].rec.uuid, uuid) == 0)
            return &r->hosts[i];
    return NULL;
}

/* ---- claims and hosts ---- */

struct raw_loading {
    struct raw *raw;
    bool all;
};

static int load_claim(void *arg, uint64_t ino, const struct claim *c)
{
    struct raw_loading *l = arg;
    const struct record *rec = &c->rec;

    if (c->kind == CLAIM_NONE || (c->kind == CLAIM_FREE && !l->all))
        return 0;
    if (c->kind == CLAIM_FREE && store_gone(&l->raw->store, -1, &rec->handle) == 1)
        return 0; /* a tombstone of an image that was removed */
    struct raw_claim *more = reallocarray(l->raw->claims, l->raw->nclaims + 1, sizeof(*more));
    if (!more)
        return -ENOMEM;
    l->raw->claims = more;
    struct raw_claim *one = &more[l->raw->nclaims++];
    memset(one, 0, sizeof(*one));
    one->ino = ino;
    one->generation = c->generation;
    one->kind = c->kind;
    one->error = c->error;
    if (c->kind == CLAIM_BAD)
        return 0;
    one->step = rec->step;
    one->extents = rec->plan.n;
    one->path = out_strdup(rec->image);
    one->handle = rec->handle;
    one->virtual_size = rec->virtual_size;
    one->pid = rec->pid;
    one->start = rec->start;
    one->uid = rec->uid;
    one->gid = rec->gid;
    one->sync_error = rec->sync_error;
    memcpy(one->format, rec->format, sizeof(one->format));
    memcpy(one->since, rec->since, sizeof(one->since));
    memcpy(one->host, rec->host, sizeof(one->host));
    memcpy(one->installation, rec->installation, sizeof(one->installation));
    memcpy(one->boot, rec->boot, sizeof(one->boot));
    memcpy(one->daemon, rec->daemon, sizeof(one->daemon));
    memcpy(one->host_name, rec->host_name, sizeof(one->host_name));
    return 0;
}

/* No record has the renames by other hosts or outside the views, so each image is looked for. */
static void find_moved(struct raw *r)
{
    struct whereis *w = calloc(r->nclaims + 1, sizeof(*w));
    size_t n = 0;

    if (!w)
        out_no_memory();
    for (size_t i = 0; i < r->nclaims; i++)
        if (r->claims[i].kind != CLAIM_BAD)
            w[n++] = (struct whereis){
                .ino = r->claims[i].ino, .handle = r->claims[i].handle, .was = r->claims[i].path};
    whereis(&r->store, w, n, CTL_FIND_NAMES, CTL_FIND_MS);
    for (size_t i = r->nclaims; i-- > 0;) {
        if (r->claims[i].kind == CLAIM_BAD)
            continue;
        r->claims[i].now = w[--n].now;
        r->claims[i].lost = !w[n].now;
    }
    free(w);
}

static int load_host(void *arg, const struct host_record *rec, int err)
{
    struct raw_loading *l = arg;
    struct raw_host *more = reallocarray(l->raw->hosts, l->raw->nhosts + 1, sizeof(*more));

    if (!more)
        return -ENOMEM;
    l->raw->hosts = more;
    more[l->raw->nhosts++] = (struct raw_host){.rec = *rec, .err = err, .alive = -ENOENT};
    return 0;
}

static int by_name(const void *a, const void *b)
{
    const struct raw_host *x = a, *y = b;
    int r = strcmp(x->rec.name, y->rec.name);

    return r ? r : strcmp(x->rec.uuid, y->rec.uuid);
}

static void host_add(struct raw *r)
{
    if (r->nhosts > 1)
        qsort(r->hosts, r->nhosts, sizeof(*r->hosts), by_name);
    for (size_t i = 0; i < r->nhosts; i++) {
        struct raw_host *h = &r->hosts[i];

        h->alive = host_alive(&r->store, h->rec.uuid);
        for (size_t k = 0; k < r->nclaims; k++)
            h->held +=
                r->claims[k].kind == CLAIM_HELD && strcmp(r->claims[k].host, h->rec.uuid) == 0;
    }
}

/* ---- one image ---- */

/* The claim, then the header, then the claim again: only when the claim stayed the same do the two
 * belong together. */
static int load_claim_and_header(const struct store *s, struct raw_image *im, int fd)
{
    _cleanup_free_ struct claim *again = malloc(sizeof(*again));

    if (!again)
        return -ENOMEM;
    for (unsigned tries = 0; tries < 8; tries++) {
        int r = claim_read(s, im->st.st_ino, &im->claim);

        if (r < 0)
            return r;
        im->header_err = header_load(fd, &im->header);
        im->state = HEADER_NOPLAN;
        if (im->header_err == 0 && im->claim.kind == CLAIM_HELD)
            im->header_err = seal_compare(fd, &im->claim.rec, &im->state);
        r = claim_read(s, im->st.st_ino, again);
        if (r < 0)
            return r;
        if (again->kind == im->claim.kind && again->generation == im->claim.generation &&
            (again->kind != CLAIM_HELD || again->rec.seq == im->claim.rec.seq))
            break;
    }
    return 0;
}

/* Does the claim speak of this file, or of an earlier one with its inode number? */
static void compare_handle(struct raw_image *im, int fd)
{
    struct io_handle h;

    if (im->claim.kind != CLAIM_HELD && im->claim.kind != CLAIM_FREE)
        return;
    if (im->claim.kind == CLAIM_HELD && io_handle_get(fd, &h) == 0)
        im->other_file = !io_handle_equal(&h, &im->claim.rec.handle);
}

/* Tests one of the bytes by which QEMU tells others what it does with a file: guard/qemu_locks.h.
 */
static bool is_locked(int fd, off_t byte)
{
    struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    return fcntl(fd, F_OFD_GETLK, &fl) == 0 && fl.l_type != F_UNLCK;
}

static int load_image(const struct store *s, struct raw_image *im, const char *rel)
{
    char target[4096];
    _cleanup_close_ int fd = io_fresh_open(s->root_fd, rel[0] ? rel : ".", O_PATH);
    _cleanup_close_ int reader = -1;

    if (fd == -ELOOP) {
        ssize_t n = readlinkat(s->root_fd, rel, target, sizeof(target) - 1);
        target[n > 0 ? n : 0] = '\0';
        im->link = n > 0 ? out_strdup(target) : NULL;
    }
    if (fd < 0)
        return fd;
    int r = io_fresh_stat(fd, &im->st);
    if (r < 0)
        return r;
    if (!S_ISREG(im->st.st_mode))
        return S_ISDIR(im->st.st_mode) ? -EISDIR : -EINVAL;
    im->other_fs = im->st.st_dev != s->dev;
    if (im->other_fs)
        return 0;
    reader = io_reopen(fd, O_RDONLY);
    if (reader < 0)
        return reader;
    r = load_claim_and_header(s, im, reader);
    if (r == 0)
        compare_handle(im, reader);
    im->byte_locks = is_locked(reader, 201) && is_locked(reader, 203);
    im->writer_lock = is_locked(reader, 101);
    return r < 0 || im->header_err < 0 ? r : chain_load(s, im, reader, rel);
}

/* ---- all of it, perhaps on a thread ---- */

struct raw_job {
    char *dir, *rel;
    bool all;
    struct raw *raw;
    struct mutex lock;
    struct cond changed;
    bool done;
};

static void load_all(struct raw_job *j)
{
    struct raw *r = j->raw;
    struct raw_loading l = {r, j->all};

    r->err = store_look(j->dir, &r->store, &r->why);
    if (r->err == -EXDEV)
        r->err = 0; /* a copy of a datastore may be looked at */
    if (r->err < 0)
        return;
    if (j->rel) {
        r->image = calloc(1, sizeof(*r->image));
        if (!r->image)
            out_no_memory();
        r->image->err = load_image(&r->store, r->image, j->rel);
        if (r->image->err == 0 && !r->image->other_fs)
            r->err = load_claim(&l, r->image->st.st_ino, &r->image->claim);
        if (r->err == 0 && r->nclaims > 0 && r->claims[0].kind == CLAIM_HELD &&
            !r->image->other_file)
            r->claims[0].now = out_strdup(j->rel);
    } else {
        r->err = claim_each(&r->store, load_claim, &l);
        if (r->err == 0)
            find_moved(r);
    }
    if (r->err == 0)
        r->err = host_each(&r->store, load_host, &l);
    if (r->err == 0)
        host_add(r);
    else
        why_set(&r->why, "cannot read the claims of %.300s: %s; %s", j->dir, strerror(-r->err),
                store_hint(r->err));
}

static void *raw_thread(void *arg)
{
    struct raw_job *j = arg;

    load_all(j);
    mutex_lock(&j->lock);
    j->done = true;
    cond_signal(&j->changed);
    mutex_unlock(&j->lock);
    return NULL;
}

static void job_free(struct raw_job *j)
{
    free(j->dir);
    free(j->rel);
    free(j);
}

/* The result; NULL: it did not come in time, and the thread, its job and its result are abandoned.
 */
static struct raw *wait_for(struct raw_job *j, unsigned limit_ms)
{
    struct raw *raw = NULL;
    uint64_t until = base_now_ms() + limit_ms;

    mutex_lock(&j->lock);
    while (!j->done)
        if (!cond_wait_until(&j->changed, &j->lock, until))
            break;
    if (j->done)
        raw = j->raw;
    mutex_unlock(&j->lock);
    if (raw)
        job_free(j);
    return raw;
}

static struct raw *raw_new(void)
{
    struct raw *r = out_alloc(sizeof(*r));

    r->store = (struct store)STORE_CLOSED;
    return r;
}

struct raw *raw_load(const char *dir, const char *rel, bool all, unsigned limit_ms)
{
    struct raw_job *j = out_alloc(sizeof(*j));
    struct raw *raw;
    pthread_t thread;

    j->dir = out_strdup(dir);
    j->rel = rel ? out_strdup(rel) : NULL;
    j->all = all;
    j->raw = raw = raw_new();
    mutex_init(&j->lock);
    cond_init(&j->changed);
    if (limit_ms == 0 || pthread_create(&thread, NULL, raw_thread, j) != 0) {
        load_all(j);
        job_free(j);
        return raw;
    }
    pthread_detach(thread);
    raw = wait_for(j, limit_ms);
    if (!raw) {
        raw = raw_new();
        raw->err = -ETIMEDOUT;
        why_set(&raw->why, "the storage below %.300s did not answer within %u s", dir,
                limit_ms / 1000);
    }
    return raw;
}
