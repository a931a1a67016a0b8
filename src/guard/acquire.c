/* acquire.c: who may have an image, and how it is claimed and sealed. */
#include "core/recover.h"
#include "guard/image.h"
#include "guard/maker.h"
#include "guard/shared.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

void image_set_rival(struct image *img, const struct record *rec)
{
    mutex_lock(&img->lock);
    struct image_rival *v = &img->rival;
    memset(v, 0, sizeof(*v));
    if (rec) {
        snprintf(v->host_name, sizeof(v->host_name), "%s", rec->host_name);
        snprintf(v->host, sizeof(v->host), "%s", rec->host);
        snprintf(v->since, sizeof(v->since), "%s", rec->since);
        v->pid = rec->pid;
        v->generation = rec->generation;
        v->restoring = rec->step == STEP_RESTORING;
    }
    mutex_unlock(&img->lock);
}

/* ---- claiming ---- */

static void outside_refused(struct image *img)
{
    mutex_lock(&img->lock);
    img->rival.outside = true;
    mutex_unlock(&img->lock);
}

static int busy_with(struct image *img, const struct record *rec)
{
    image_set_rival(img, rec);
    return -EBUSY;
}

struct own_rows {
    uint64_t ino;
    struct record *rec; /* the last one found */
    unsigned n;
    int err;
};

static int find_row(void *arg, const struct record *rec, int err)
{
    struct own_rows *rows = arg;
    if (rec->ino == rows->ino) {
        *rows->rec = *rec;
        rows->err = err;
        rows->n++;
    }
    return 0;
}

static void note_problem(void *arg, const struct record *rec, struct recover_decision decision,
                         int done)
{
    (void)rec;
    (void)done;
    *(enum problem *)arg = decision.problem;
}

/* The claim is ours, and yet nobody here holds the image: an acquisition that failed, and whose
 * undo failed too; a takeover that failed after its claim, with the image still as the dead host
 * left it; or what recovery could not settle at start, because another host was just trying to take
 * it over. 0: settled; -EBUSY: somebody has the fence lock just now; -EUCLEAN: a person is needed;
 * or -errno. */
static int settle_own(struct guard *g, const struct inode *i)
{
    enum problem problem = PROBLEM_NONE;
    struct recover rec = {.store = &g->store,
                          .journal = g->journal,
                          .host = &g->host,
                          .policy = g->policy,
                          .report = note_problem,
                          .arg = &problem};
    struct own_rows rows = {.ino = i->ino};
    _cleanup_free_ struct record *row = malloc(sizeof(*row));
    if (!row)
        return -ENOMEM;
    rows.rec = row;
    int r = journal_each(g->journal, find_row, &rows);
    if (r == 0) /* several rows have an order among them, which recover_all() knows at the next
                   start */
        r = rows.n > 1 ? 1 : recover_image(&rec, i->ino, rows.n ? row : NULL, rows.err);
    if (r == 1)
        return problem == PROBLEM_BUSY_WRITER ? -EBUSY : -EUCLEAN;
    return r == -EUCLEAN ? -EIO : r;
}

/* May this inode number be claimed, seen what rules now? 0, -EBUSY (another host), or -EUCLEAN with
 * a log line. */
static int check_ruling(struct guard *g, struct image *img, const char *what, const struct claim *c,
                        const struct io_handle *handle)
{
    struct inode *i = img->inode;
    image_set_rival(img, NULL);
    if (c->kind == CLAIM_NONE || c->kind == CLAIM_FREE)
        return 0;
    if (c->kind == CLAIM_BAD) {
        image_log_refused(
            g, i, what,
            "its claim %016llx.%llu on the datastore cannot be read (%s). Nobody may write until it is repaired: fsck.diskguard %s",
            (unsigned long long)i->ino, (unsigned long long)c->generation,
            c->error == -EPROTONOSUPPORT ? "written by a newer version" : "damaged", g->store.path);
        return -EUCLEAN;
    }
    if (!io_handle_equal(&c->rec.handle, handle)) {
        /* The inode number was used before. Only the recorded handle itself can say that the former
         * file is gone. */
        int gone = store_gone(&g->store, -1, &c->rec.handle);
        if (gone == 1)
            return 0;
        image_log_refused(
            g, i, what,
            "its inode number is claimed for another file ('%s', host %s), whose fate cannot be told (%s); see fsck.diskguard %s",
            c->rec.image, c->rec.host_name, gone < 0 ? strerror(-gone) : "it still exists",
            g->store.path);
        return -EUCLEAN;
    }
    if (claim_is_of(&c->rec, &g->host) && !image_busy_twin(g, img)) {
        int r = settle_own(g, i);
        if (r != -EUCLEAN)
            return r == -EBUSY ? busy_with(img, &c->rec) : r == 0 ? -EAGAIN : r;
        image_log_refused(
            g, i, what,
            "this host left it claimed (generation %llu) and could not settle that; see diskguardctl why, then fsck.diskguard %s with this view unmounted",
            (unsigned long long)c->generation, g->store.path);
        return r;
    }
    return busy_with(img, &c->rec);
}

void image_log_foreign(struct guard *g, struct inode *i, const char *what)
{
    image_log_refused(
        g, i, what,
        "it lies on another file system that is mounted below the datastore, where diskguard cannot claim it. Mount a view of that file system instead");
}

/* It may hold the only copy of guest data and be repaired by its own tools alone, so it is claimed,
 * as a raw image is: without a seal. Not what a seal of ours may have left, and not what reaches
 * further than any format, where a change would not be seen. */
static int judge_damaged(struct guard *g, struct inode *i, const struct header *h,
                         const struct acquire *a)
{
    if (!h->format) {
        image_log_refused(g, i, a->what, "its header contradicts itself: %s", h->info.why);
        return -EUCLEAN;
    }
    if (h->info.maybe_sealed) {
        image_log_refused(
            g, i, a->what,
            "its %s header contradicts itself: %s. That is what seal=size leaves of an image, and no claim on the datastore says by whom: see fsck.diskguard %s on the hosts that may have held it, else restore its size from a backup",
            h->format->name, h->info.why, g->store.path);
        return -EUCLEAN;
    }
    if (g->opt.damaged == DAMAGED_CLAIM)
        return 0;
    image_log_refused(
        g, i, a->what,
        "its %s header contradicts itself: %s. With damaged=claim it can be repaired through the view (qemu-img check -r all)",
        h->format->name, h->info.why);
    return -EUCLEAN;
}

static int judge_size(struct guard *g, struct inode *i, const struct header *h,
                      const struct acquire *a)
{
    if (h->info.virtual_size > g->opt.threshold || !g->makers || maker_is(g->makers, i, a->who))
        return 0;
    image_log_refused(
        g, i, a->what,
        "its virtual size is %llu bytes, not above the threshold of %llu, and pid %llu did not make it. If it was sealed by a tool that wrote the size away: fsck.diskguard %s; if it is right: lower threshold=, or grow it with qemu-img resize on the raw datastore",
        (unsigned long long)h->info.virtual_size, (unsigned long long)g->opt.threshold,
        (unsigned long long)a->who->pid, g->store.path);
    return -EPERM;
}

/* Of size 0 by an orphan of seal=size, perhaps: the other host's view had that option, and this
 * one's would take the image for an empty one. */
static int judge_emptied(struct guard *g, struct inode *i, const struct header *h,
                         const struct acquire *a)
{
    image_log_refused(
        g, i, a->what,
        "its %s header has tables for a disk and the size 0. That is what seal=size leaves of an image, and no claim on the datastore says by whom: see fsck.diskguard %s on the hosts that may have held it. If the disk was really made empty: qemu-img resize on the raw datastore",
        h->format->name, g->store.path);
    return -EUCLEAN;
}

/* Header rules of an open for write: exactly one format, a size above the threshold, on the
 * datastore's own file system. */
static int judge(struct guard *g, struct inode *i, const struct header *h, const struct acquire *a)
{
    /* An orphan may hold the only copy: not even a namespace operation may touch it. All else is
     * for opens alone. */
    if (!a->judge && h->verdict != FORMAT_SEALED)
        return 0;
    if (i->dev != g->store.dev) {
        image_log_foreign(g, i, a->what);
        return -EXDEV;
    }
    switch (h->verdict) {
    case FORMAT_PLAIN:
        return 0;
    case FORMAT_SEALED:
        image_log_refused(
            g, i, a->what,
            "its header is sealed (%s) and no claim on the datastore says by whom: an orphan. See fsck.diskguard %s",
            h->info.why, g->store.path);
        return -EUCLEAN;
    case FORMAT_LIES:
        return a->plan_none ? 0 /* about to be truncated */ : judge_damaged(g, i, h, a);
    case FORMAT_AMBIGUOUS:
    case FORMAT_MORE:
        if (a->plan_none)
            return 0;
        image_log_refused(
            g, i, a->what,
            "two formats match its header: %s. Nothing can tell which one a hypervisor would take; rewrite it on the raw datastore with qemu-img convert -f FORMAT",
            h->info.why);
        return -EUCLEAN;
    case FORMAT_IMAGE:
        break;
    }
    if (a->plan_none || h->format->weak)
        return 0;
    return h->info.maybe_sealed && !g->makers ? judge_emptied(g, i, h, a) : judge_size(g, i, h, a);
}

static void fill_record(struct guard *g, struct image *img, const struct acquire *a,
                        const struct stat *st, struct record *rec) REQUIRES(img->header)
{
    image_path(g, img->inode, rec->image, sizeof(rec->image));
    rec->ino = img->inode->ino;
    rec->seq = 1;
    memcpy(rec->host, g->host.uuid, sizeof(dg_uuid));
    memcpy(rec->installation, g->host.installation, sizeof(dg_uuid));
    memcpy(rec->boot, g->host.boot, sizeof(dg_uuid));
    memcpy(rec->daemon, g->host.daemon, sizeof(dg_uuid));
    snprintf(rec->host_name, sizeof(rec->host_name), "%s", g->host.name);
    rec->pid = a->who->pid;
    rec->start = a->who->start;
    rec->uid = a->who->uid;
    rec->gid = a->who->gid;
    base_time_text(rec->since);
    rec->cut = OVERLAY_NO_CUT;
    rec->mtime = st->st_mtim;
    rec->fenced = io_fencing(img->fd, g->store.fence, NULL);
}

/* The part of the record that depends on the header. */
static int fill_plan(struct guard *g, struct image *img, const struct acquire *a, struct header *h)
    REQUIRES(img->header)
{
    struct record *rec = img->rec;
    image_zone_set(img, &h->info.zone);
    rec->plan.n = 0;
    rec->step = STEP_CLAIMED;
    rec->virtual_size = h->info.virtual_size;
    snprintf(rec->format, sizeof(rec->format), "%s",
             a->format_name ? a->format_name
             : h->format    ? h->format->name
                            : "raw");
    bool damaged = !a->plan_none && h->verdict == FORMAT_LIES;
    snprintf(img->damage, sizeof(img->damage), "%s", damaged ? h->info.why : "");
    if (a->plan_none || h->verdict != FORMAT_IMAGE)
        return 0;
    int r = header_plan_load(img->fd, h, &g->policy, &rec->plan);
    if (r == 0 && rec->plan.n > 0)
        rec->step = STEP_ARMED;
    return r;
}

/* Under claim and fence: nobody else writes any more. Whatever was read before is looked at again,
 * past every cache. */
static int recheck(struct guard *g, struct image *img, const struct acquire *a,
                   const struct header *was) REQUIRES(img->header)
{
    io_fsync_former(img->fd); /* dirty pages cannot be dropped */
    int r = io_cache_drop(img->fd);
    if (r < 0)
        return r;
    /* plain writers of this host: they may have passed a look at a narrower zone */
    image_drain(img);
    _cleanup_header_ struct header *h = header_new();
    if (!h)
        return -ENOMEM;
    r = header_load(img->fd, h);
    if (r < 0)
        return r;
    if (header_same(h, was))
        return 0;
    struct format_zone zone = image_zone(img), now = h->info.zone;
    if (h->verdict != was->verdict || h->format != was->format || now.head > zone.head ||
        now.tail < zone.tail)
        return -EAGAIN; /* another file than the one that was judged: from the start */
    struct stat st;
    r = io_fresh_stat(img->fd, &st);
    if (r < 0)
        return r;
    img->rec->mtime = st.st_mtim;
    r = fill_plan(g, img, a, h);
    if (r < 0)
        return r;
    struct seal s = image_seal(g, img);
    return seal_record(&s);
}

/* Claimed: from here on failure needs an undo. */
static int seal_claimed(struct guard *g, struct image *img, const struct acquire *a,
                        bool *ret_sealing, const struct header *was) REQUIRES(img->header)
{
    /* The claim is durable: whoever takes the fence from now on sees it. */
    int r = io_fence_shared(img->fd, g->store.fence);
    if (r == -EAGAIN)
        /* only where a conversion is not atomic (flock): recovery or fsck was faster */
        return -EBUSY;
    if (r == 0)
        r = claim_check(&g->store, img->rec);
    if (r == 0)
        r = recheck(g, img, a, was);
    if (r == 0)
        r = image_chain_needed(g, img, a->who);
    if (r == 0)
        r = image_reader_in_way(g, img, a->who);
    if (r == 0 && !(a->plan_none && !a->plain_too)) /* not for what removes or empties it */
        r = image_chain_mark(g, img, a->who, false);
    if (r == 0 && img->rec->plan.n > 0) {
        struct seal s = image_seal(g, img);
        *ret_sealing = true;
        r = seal_write(&s);
    }
    return r;
}

/* The header as it stands while nobody holds the image: read after the claim was read, and for a
 * refusal believed only if the claim is still the same one afterwards (a header that another host
 * is just sealing or restoring must not be judged). */
static int free_header(struct guard *g, struct image *img, const struct acquire *a, struct claim *c,
                       struct header *ret)
{
    uint64_t generation = c->generation;
    enum claim_kind kind = c->kind;
    int r = header_load(img->fd, ret);
    if (r < 0)
        return r;
    r = claim_read(&g->store, img->inode->ino, c);
    if (r < 0)
        return r;
    if (c->generation != generation || c->kind != kind)
        return -EAGAIN;
    if (!a->plain_too && !image_is_image(g, img->inode, ret)) {
        r = image_is_shared(g, img->inode) ? 0 : image_chain_guards(g, img->inode);
        if (r <= 0)
            return r < 0 ? r : -EAGAIN;
    }
    return judge(g, img->inode, ret, a);
}

static int make_record(struct guard *g, struct image *img, const struct acquire *a,
                       struct header *ret_header) REQUIRES(img->header)
{
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    if (!c)
        return -ENOMEM;
    struct io_handle handle;
    int r = io_handle_get(img->fd, &handle);
    if (r < 0)
        return r;
    r = claim_read(&g->store, img->inode->ino, c);
    if (r < 0)
        return r;
    r = check_ruling(g, img, a->what, c, &handle);
    if (r < 0)
        return r;
    r = free_header(g, img, a, c, ret_header);
    if (r == 0)
        r = image_shared_refuse(g, img->inode, a->what);
    if (r == 0) /* it decides under the claim; here it saves a generation for each attempt */
        r = image_chain_needed(g, img, a->who);
    if (r == 0)
        r = image_reader_in_way(g, img, a->who);
    if (r < 0)
        return r;
    struct stat st;
    r = io_fresh_stat(img->fd, &st);
    if (r < 0)
        return r;
    fill_record(g, img, a, &st, img->rec);
    img->rec->handle = handle;
    r = claim_next(&g->store, c, &img->rec->generation);
    return r < 0 ? r : fill_plan(g, img, a, ret_header);
}

static int acquire_locked(struct guard *g, struct image *img, const struct acquire *a,
                          bool *ret_stuck) REQUIRES(img->header)
{
    _cleanup_header_ struct header *h = header_new();
    if (!h)
        return -ENOMEM;
    if (atomic_load(&g->host_lost)) {
        image_log_refused(
            g, img->inode, a->what,
            "this host has lost the lock on its record on the datastore, so another process may act in its name; the log says since when. Unmount the view and mount it again if that does not pass");
        return -EIO;
    }
    int r = make_record(g, img, a, h);
    if (r < 0)
        return r;
    /* Exclusive first, so that no other host has the file open for write, not even as a plain one:
     * that needs no claim. */
    r = io_fence_exclusive(img->fd, g->store.fence);
    if (r == -EAGAIN) {
        image_fence_refused(img, true);
        return -EBUSY;
    }
    if (r == 0)
        r = image_bytes_take(img, a->judge && img->rec->plan.n == 0);
    if (r == -EBUSY)
        outside_refused(img);
    if (r < 0)
        return r;
    struct record *rec = img->rec;
    atomic_store(&img->alone, 0);
    r = journal_put(g->journal, rec);
    if (r < 0)
        return r;
    r = claim_acquire(&g->store, rec);
    if (r < 0) {
        /* Never claimed: the row says too much, but recovery forgets a row whose claim is not
         * there. */
        int j = journal_remove(g->journal, rec->ino, rec->generation);
        if (j < 0)
            log_debug("row of a lost race stays: %s", strerror(-j));
        return r;
    }
    image_note(img);
    bool sealing = false;
    r = seal_claimed(g, img, a, &sealing, h);
    if (r == 0)
        return 0;
    if (!sealing) { /* not a byte was written: whatever the header is now, it is not ours to undo */
        rec->plan.n = 0;
        rec->step = STEP_CLAIMED;
    }
    struct seal s = image_seal(g, img);
    int undo = seal_restore(&s);
    if (undo == -ESTALE)
        undo = image_drop_lost_row(g, img);
    if (undo < 0)
        *ret_stuck = true;
    else if (img->marked)
        image_chain_drop(g, rec->ino, rec->generation);
    return r == -ESTALE ? -EBUSY : r;
}

static void log_damage(struct guard *g, const struct image *img) REQUIRES(img->header)
{
    const struct record *rec = img->rec;
    log_image(
        LOG_WARNING, rec->image, g->host.name, rec->generation,
        "'%s' is open for write and not sealed, for its %s header contradicts itself: %s. Its claim guards it against the views, %s against a program outside of them. It is sealed when its header is whole again",
        rec->image, rec->format, img->damage,
        img->bytes_held ? "locks on QEMU's bytes" : "nothing");
}

int image_acquire(struct guard *g, struct image *img, const struct acquire *a, bool *ret_stuck)
{
    *ret_stuck = false;
    rwlock_write(&img->header);
    int r = 0;
    img->marked = false;
    img->links = 0;
    img->rec = calloc(1, sizeof(*img->rec));
    if (!img->rec)
        r = -ENOMEM;
    if (r == 0) {
        img->fd = image_plain_dup(img, true);
        if (img->fd == -1)
            img->fd = io_reopen(img->inode->fd, O_RDWR);
        if (io_err_denied(img->fd))
            image_log_closed(g, img->inode, "write");
        if (img->fd < 0)
            r = img->fd;
    }
    if (r == 0)
        r = acquire_locked(g, img, a, ret_stuck);
    if (r == 0 || *ret_stuck) {
        mutex_lock(&img->lock);
        img->mtime = img->rec->mtime;
        mutex_unlock(&img->lock);
        image_note(img);
        if (r == 0 && a->judge)
            image_bytes_follow(g, img); /* the header that stands there now may have another plan */
        if (r == 0 && a->judge && img->damage[0])
            log_damage(g, img);
        atomic_fetch_add(&img->holds, 1);
        atomic_store(&img->held, true);
    } else { /* at once, under the lock: a record without a claim must explain nothing to a reader
              */
        image_bytes_drop(img);
        free(img->rec);
        img->rec = NULL;
        if (img->fd >= 0)
            close(img->fd);
        img->fd = -1;
        if (io_err_dead(r))
            image_plain_suspect(img);
        image_plain_again(g, img);
    }
    rwlock_write_unlock(&img->header);
    return r;
}

/* Ends a failed long action: STUCK keeps record and descriptor for the monitor. -EUCLEAN, -EPERM
 * and -EXDEV are logged where they are decided, -EBUSY by whoever gives up waiting. */
void image_acquire_failed(struct guard *g, struct image *img, const struct acquire *a, bool stuck,
                          int err)
{
    if (err != -EBUSY && err != -EAGAIN && err != -EUCLEAN && err != -EPERM && err != -EXDEV &&
        err != -ETIMEDOUT)
        image_log_refused(
            g, img->inode, a->what, "it could not be claimed and sealed: %s%s", strerror(-err),
            stuck ? "; undoing that failed too: the image is STUCK and is tried again" : "");
    if (stuck)
        image_move(g, img, IMAGE_STUCK, -err);
    else
        image_end(g, img);
}
