/* acquire.c: who may have an image, and how it is claimed and sealed: image_take(). */
#include "guard/acquire.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/hook.h"
#include "core/recover.h"
#include "guard/chain.h"
#include "guard/conflict.h"
#include "guard/fence.h"
#include "guard/held.h"
#include "guard/maker.h"
#include "guard/plain.h"
#include "guard/probe.h"
#include "guard/qemu_locks_priv.h"
#include "guard/readers_priv.h"
#include "guard/refuse.h"
#include "guard/restore.h"
#include "guard/shared.h"
#include "guard/zone.h"

/* The rules of each purpose. */
static const struct rules {
    bool seals;         /* else the header is about to go, or to change, or is none */
    bool plain_too;     /* the file need not be an image yet */
    bool judges;        /* the rules of an open for write hold for the header */
    bool protects;      /* what it needs is protected: not for what removes or empties it */
    bool exclusive;     /* nobody joins */
    const char *format; /* in the record; NULL: as identified */
    int lost;           /* result where another host has taken it over meanwhile */
} rules[] = {
    [TAKE_TO_WRITE] = {.seals = true, .judges = true, .protects = true, .lost = -EBUSY},
    [TAKE_TO_EMPTY] = {.judges = true, .lost = -EBUSY},
    [TAKE_FOR_NAMES] = {.exclusive = true, .format = "none", .lost = -EIO},
    [TAKE_TO_CONVERT] = {.plain_too = true, .protects = true, .lost = -EIO},
    [TAKE_AS_A_DISK] =
        {.seals = true, .plain_too = true, .judges = true, .protects = true, .lost = -EIO},
};

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
    if (r == -CLAIM_LOST) /* somebody else has settled it meanwhile: from the start */
        return -EAGAIN;
    return r == -EUCLEAN ? -EIO : r;
}

/* May this inode number be claimed, seen what rules now? 0, -EBUSY (another host), or -EUCLEAN with
 * a log line. */
static int check_ruling(struct guard *g, struct image *img, const char *what, const struct claim *c,
                        const struct io_handle *handle, struct conflict *ret)
{
    struct inode *i = img->inode;
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
        if (r == -EBUSY)
            conflict_claim(ret, &c->rec);
        if (r != -EUCLEAN)
            return r == 0 ? -EAGAIN : r;
        image_log_refused(
            g, i, what,
            "this host left it claimed (generation %llu) and could not settle that; see diskguardctl why, then fsck.diskguard %s with this view unmounted",
            (unsigned long long)c->generation, g->store.path);
        return r;
    }
    conflict_claim(ret, &c->rec);
    return -EBUSY;
}

/* It may hold the only copy of guest data and be repaired by its own tools alone, so it is claimed,
 * as a raw image is: without a seal. Not what a seal of ours may have left, and not what reaches
 * further than any format, where a change would not be seen. */
static int judge_damaged(struct guard *g, struct inode *i, const struct header *h,
                         const struct taking *t)
{
    if (!h->format) {
        image_log_refused(g, i, t->what, "its header contradicts itself: %s", h->info.why);
        return -EUCLEAN;
    }
    if (h->info.maybe_sealed) {
        image_log_refused(
            g, i, t->what,
            "its %s header contradicts itself: %s. That is what seal=size leaves of an image, and no claim on the datastore says by whom: see fsck.diskguard %s on the hosts that may have held it, else restore its size from a backup",
            h->format->name, h->info.why, g->store.path);
        return -EUCLEAN;
    }
    if (g->opt.damaged == DAMAGED_CLAIM)
        return 0;
    image_log_refused(
        g, i, t->what,
        "its %s header contradicts itself: %s. With damaged=claim it can be repaired through the view (qemu-img check -r all)",
        h->format->name, h->info.why);
    return -EUCLEAN;
}

static int judge_size(struct guard *g, struct inode *i, const struct header *h,
                      const struct taking *t)
{
    if (h->info.virtual_size > g->opt.threshold || !g->makers || maker_is(g->makers, i, t->who))
        return 0;
    image_log_refused(
        g, i, t->what,
        "its virtual size is %llu bytes, not above the threshold of %llu, and pid %llu did not make it. If it was sealed by a tool that wrote the size away: fsck.diskguard %s; if it is right: lower threshold=, or grow it with qemu-img resize on the raw datastore",
        (unsigned long long)h->info.virtual_size, (unsigned long long)g->opt.threshold,
        (unsigned long long)t->who->pid, g->store.path);
    return -EPERM;
}

/* Of size 0 by an orphan of seal=size, perhaps: the other host's view had that option, and this
 * one's would take the image for an empty one. */
static int judge_emptied(struct guard *g, struct inode *i, const struct header *h,
                         const struct taking *t)
{
    image_log_refused(
        g, i, t->what,
        "its %s header has tables for a disk and the size 0. That is what seal=size leaves of an image, and no claim on the datastore says by whom: see fsck.diskguard %s on the hosts that may have held it. If the disk was really made empty: qemu-img resize on the raw datastore",
        h->format->name, g->store.path);
    return -EUCLEAN;
}

/* Header rules of an open for write: exactly one format, a size above the threshold, on the
 * datastore's own file system. */
static int judge(struct guard *g, struct inode *i, const struct header *h, const struct taking *t)
{
    /* An orphan may hold the only copy: not even a namespace operation may touch it. All else is
     * for opens alone. */
    if (!rules[t->purpose].judges && h->verdict != FORMAT_SEALED)
        return 0;
    if (i->dev != g->store.dev) {
        image_log_foreign(g, i, t->what);
        return -EXDEV;
    }
    switch (h->verdict) {
    case FORMAT_PLAIN:
        return 0;
    case FORMAT_SEALED:
        image_log_refused(
            g, i, t->what,
            "its header is sealed (%s) and no claim on the datastore says by whom: an orphan. See fsck.diskguard %s",
            h->info.why, g->store.path);
        return -EUCLEAN;
    case FORMAT_LIES:
        return !rules[t->purpose].seals ? 0 /* about to be truncated */ : judge_damaged(g, i, h, t);
    case FORMAT_AMBIGUOUS:
    case FORMAT_MORE:
        if (!rules[t->purpose].seals)
            return 0;
        image_log_refused(
            g, i, t->what,
            "two formats match its header: %s. Nothing can tell which one a hypervisor would take; rewrite it on the raw datastore with qemu-img convert -f FORMAT",
            h->info.why);
        return -EUCLEAN;
    case FORMAT_IMAGE:
        break;
    }
    if (!rules[t->purpose].seals || h->format->weak)
        return 0;
    return h->info.maybe_sealed && !g->makers ? judge_emptied(g, i, h, t) : judge_size(g, i, h, t);
}

static void fill_record(struct guard *g, struct image *img, const struct taking *t,
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
    rec->pid = t->who->pid;
    rec->start = t->who->start;
    rec->uid = t->who->uid;
    rec->gid = t->who->gid;
    base_time_text(rec->since);
    rec->cut = OVERLAY_NO_CUT;
    rec->mtime = st->st_mtim;
    rec->fenced = io_fencing(img->held.fd, g->store.fence, NULL);
}

/* The part of the record that depends on the header. */
static int fill_plan(struct guard *g, struct image *img, const struct taking *t, struct header *h)
    REQUIRES(img->header)
{
    struct record *rec = img->held.rec;
    image_zone_set(img, &h->info.zone);
    rec->plan.n = 0;
    rec->step = STEP_CLAIMED;
    rec->virtual_size = h->info.virtual_size;
    snprintf(rec->format, sizeof(rec->format), "%s",
             rules[t->purpose].format ? rules[t->purpose].format
             : h->format              ? h->format->name
                                      : "raw");
    bool damaged = rules[t->purpose].seals && h->verdict == FORMAT_LIES;
    snprintf(img->acquire.damage, sizeof(img->acquire.damage), "%s", damaged ? h->info.why : "");
    if (!rules[t->purpose].seals || h->verdict != FORMAT_IMAGE)
        return 0;
    int r = header_plan_load(img->held.fd, h, &g->policy, &rec->plan);
    if (r == 0 && rec->plan.n > 0)
        rec->step = STEP_ARMED;
    return r;
}

/* The third and last look at the header, past every cache. We have claim and fence, so the file is
 * stable now: whatever was decided by the second look is decided by this one; h is filled with it.
 */
static int recheck(struct guard *g, struct image *img, const struct taking *t,
                   const struct header *was, struct header *h) REQUIRES(img->header)
{
    int r = io_fsync_former(img->held.fd); /* dirty pages cannot be dropped */
    /* What a former writer's disk refused stays in the cache: no plan may rest on that. */
    r = r < 0 ? io_cache_drop(img->held.fd) : io_cache_drop_shared(img->held.fd);
    if (r < 0)
        return r;
    /* plain writers of this host: they may have passed a look at a narrower zone */
    image_drain(img);
    r = header_load(img->held.fd, h);
    if (r < 0)
        return r;
    if (header_same(h, was))
        return 0;
    struct format_zone zone = image_zone(img), now = h->info.zone;
    if (h->verdict != was->verdict || h->format != was->format || now.head > zone.head ||
        now.tail < zone.tail)
        return -EAGAIN; /* another file than the one that was judged: from the start */
    struct stat st;
    r = io_fresh_stat(img->held.fd, &st);
    if (r < 0)
        return r;
    img->held.rec->mtime = st.st_mtim;
    r = fill_plan(g, img, t, h);
    if (r < 0)
        return r;
    struct seal s = image_seal(g, img);
    return seal_record(&s);
}

/* Claimed: from here on failure needs an undo. */
static int seal_claimed(struct guard *g, struct image *img, const struct taking *t,
                        bool *ret_sealing, const struct header *was, struct conflict *ret)
    REQUIRES(img->header)
{
    _cleanup_header_ struct header *now = header_new();
    if (!now)
        return -ENOMEM;
    /* The claim is durable: whoever takes the fence from now on sees it. */
    int r = io_fence_shared(img->held.fd, g->store.fence);
    if (r == -EAGAIN)
        /* only where a conversion is not atomic (flock): recovery or fsck was faster */
        return -EBUSY;
    if (r == 0)
        r = claim_check(&g->store, img->held.rec);
    if (r == 0)
        r = recheck(g, img, t, was, now);
    if (r == 0)
        r = image_chain_needed(g, img, t->who, ret);
    if (r == 0)
        r = image_reader_in_way(g, img, t->who, ret);
    if (r == 0 && rules[t->purpose].protects)
        r = image_chain_protect(g, img, t->who, now, ret);
    if (r == 0 && img->held.rec->plan.n > 0) {
        struct seal s = image_seal(g, img);
        *ret_sealing = true;
        r = seal_write(&s);
    }
    return r;
}

/* The second look at the header (the first, image_guarded_file(), asked whether it is an image): as
 * it stands while nobody holds the image. Read after the claim was read, and for a refusal believed
 * only if the claim is still the same one afterwards (a header that another host is just sealing or
 * restoring must not be judged). */
static int free_header(struct guard *g, struct image *img, const struct taking *t, struct claim *c,
                       struct header *ret)
{
    uint64_t generation = c->generation;
    enum claim_kind kind = c->kind;
    int r = header_load(img->held.fd, ret);
    if (r < 0)
        return r;
    r = claim_read(&g->store, img->inode->ino, c);
    if (r < 0)
        return r;
    if (c->generation != generation || c->kind != kind)
        return -EAGAIN;
    if (!rules[t->purpose].plain_too && !image_is_image(g, img->inode, ret)) {
        r = image_is_shared(g, img->inode) ? 0 : image_chain_guards(g, img->inode);
        if (r <= 0)
            return r < 0 ? r : -EAGAIN;
    }
    return judge(g, img->inode, ret, t);
}

static int make_record(struct guard *g, struct image *img, const struct taking *t,
                       struct header *ret_header, struct conflict *ret) REQUIRES(img->header)
{
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    if (!c)
        return -ENOMEM;
    struct io_handle handle;
    int r = io_handle_get(img->held.fd, &handle);
    if (r < 0)
        return r;
    r = claim_read(&g->store, img->inode->ino, c);
    if (r < 0)
        return r;
    r = check_ruling(g, img, t->what, c, &handle, ret);
    if (r < 0)
        return r;
    r = free_header(g, img, t, c, ret_header);
    if (r == 0)
        r = image_shared_refuse(g, img->inode, t->what);
    if (r == 0) /* it decides under the claim; here it saves a generation for each attempt */
        r = image_chain_needed(g, img, t->who, ret);
    if (r == 0)
        r = image_reader_in_way(g, img, t->who, ret);
    if (r < 0)
        return r;
    struct stat st;
    r = io_fresh_stat(img->held.fd, &st);
    if (r < 0)
        return r;
    fill_record(g, img, t, &st, img->held.rec);
    img->held.rec->handle = handle;
    r = claim_next(&g->store, c, &img->held.rec->generation);
    return r < 0 ? r : fill_plan(g, img, t, ret_header);
}

static int acquire_locked(struct guard *g, struct image *img, const struct taking *t,
                          bool *ret_stuck, struct conflict *ret) REQUIRES(img->header)
{
    _cleanup_header_ struct header *h = header_new();
    if (!h)
        return -ENOMEM;
    if (atomic_load(&g->host_lost)) {
        image_log_refused(
            g, img->inode, t->what,
            "this host has lost the lock on its record on the datastore, so another process may act in its name; the log says since when. Unmount the view and mount it again if that does not pass");
        return -EIO;
    }
    int r = make_record(g, img, t, h, ret);
    if (r < 0)
        return r;
    /* Exclusive first, so that no other host has the file open for write, not even as a plain one:
     * that needs no claim. */
    r = io_fence_exclusive(img->held.fd, g->store.fence);
    if (r == -EAGAIN) {
        conflict_set(ret, CONFLICT_FENCE);
        return -EBUSY;
    }
    if (r == 0)
        r = image_qemu_take(img, rules[t->purpose].judges && img->held.rec->plan.n == 0);
    if (r == -EBUSY)
        conflict_set(ret, CONFLICT_OUTSIDE);
    if (r < 0)
        return r;
    struct record *rec = img->held.rec;
    image_reader_claiming(img);
    r = journal_put(g->journal, rec);
    if (r < 0)
        return r;
    bool sealing = false, left;
    r = claim_acquire(&g->store, rec, &left);
    if (r < 0 && !left) {
        /* Never claimed: the row says too much, but recovery forgets a row whose claim is not
         * there. */
        int j = journal_remove(g->journal, rec->ino, rec->generation);
        if (j < 0)
            log_debug("row of a lost race stays: %s", strerror(-j));
        return r;
    }
    image_note(img);
    if (r == 0)
        r = seal_claimed(g, img, t, &sealing, h, ret);
    if (r == 0)
        return 0;
    if (!sealing) { /* not a byte was written: whatever the header is now, it is not ours to undo */
        rec->plan.n = 0;
        rec->step = STEP_CLAIMED;
    }
    struct seal s = image_seal(g, img);
    int undo = seal_restore(&s);
    if (undo == -CLAIM_LOST)
        undo = image_drop_lost_row(g, img);
    if (undo < 0) {
        *ret_stuck = true;
    } else {
        struct image_below below = image_chain_take(img);
        image_chain_drop(g, rec->ino, rec->generation, &below);
        image_clear_later(g, rec->ino, rec->generation);
    }
    return r == -CLAIM_LOST ? -EBUSY : r;
}

static void log_damage(struct guard *g, const struct image *img) REQUIRES(img->header)
{
    const struct record *rec = img->held.rec;
    log_image(
        LOG_WARNING, rec->image, g->host.name, rec->generation,
        "'%s' is open for write and not sealed, for its %s header contradicts itself: %s. Its claim guards it against the views, %s against a program outside of them. It is sealed when its header is whole again",
        rec->image, rec->format, img->acquire.damage,
        img->qemu.held ? "locks on QEMU's bytes" : "nothing");
}

static int acquire(struct guard *g, struct image *img, const struct taking *t, bool *ret_stuck,
                   struct conflict *ret)
{
    struct record full;
    *ret_stuck = false;
    rwlock_write(&img->header);
    image_chain_begin(img);
    int r = image_held_prepare(img, &full);
    int fd = r == 0 ? image_plain_dup(img, true) : r;
    if (fd == -1)
        fd = inode_reopen(img->inode, O_RDWR);
    if (io_err_denied(fd))
        image_log_closed(g, img->inode, "write");
    if (fd < 0)
        r = fd;
    (void)image_held_fd(img, DG_MAX(fd, -1));
    if (r == 0)
        r = acquire_locked(g, img, t, ret_stuck, ret);
    if (r == 0 || *ret_stuck) {
        image_held_begin(img);
        if (r == 0 && rules[t->purpose].judges)
            image_qemu_follow(g, img); /* the header that stands there now may have another plan */
        if (r == 0 && rules[t->purpose].judges && img->acquire.damage[0])
            log_damage(g, img);
    } else { /* at once, under the lock: a record without a claim must explain nothing to a reader
              */
        image_qemu_drop(img);
        image_held_forget(img);
        if (io_err_dead(r))
            image_plain_suspect(img);
        image_plain_again(g, img);
    }
    image_record_close(img);
    rwlock_write_unlock(&img->header);
    return r;
}

/* Ends a failed long action: STUCK keeps record and descriptor for the monitor. -EUCLEAN, -EPERM
 * and -EXDEV are logged where they are decided, -EBUSY by whoever gives up waiting. */
static void acquire_failed(struct guard *g, struct image *img, const struct taking *t, bool stuck,
                           int err)
{
    if (err != -EBUSY && err != -EAGAIN && err != -EUCLEAN && err != -EPERM && err != -EXDEV &&
        err != -ETIMEDOUT)
        image_log_refused(g, img->inode, t->what, "it could not be claimed and sealed: %s%s%s%s",
                          strerror(-err), err == -ENOSPC || err == -EDQUOT ? "; " : "",
                          err == -ENOSPC || err == -EDQUOT ? store_hint(err) : "",
                          stuck ? "; undoing that failed too: the image is STUCK and is tried again"
                                : "");
    if (stuck)
        image_move(g, img, IMAGE_STUCK, -err);
    else
        image_end(g, img);
}

/* Has a handle written since its last fsync? Then the mtime of before is not the holder's to keep.
 */
static bool is_dirty(struct image *img)
{
    bool dirty = false;
    mutex_lock(&img->lock);
    for (const struct handle *h = img->writers; h; h = h->next_writer)
        dirty |= atomic_load(&h->dirty);
    mutex_unlock(&img->lock);
    return dirty;
}

/* What the handle that opens still needs: the fence, and an empty file. */
static int fence_opener(struct guard *g, struct image *img, struct handle *h, bool truncate)
{
    HOOK("image.fence.open");
    int r = image_fence_fd(g, img, h->fd);
    (void)io_fsync_former(h->fd);
    if (r == 0 && truncate) {
        rwlock_write(&img->header);
        r = io_header_truncate(img->held.fd, 0);
        rwlock_write_unlock(&img->header);
        image_held_wrote(img);
    }
    return r;
}

int image_take(struct guard *g, struct image *img, const struct taking *t, struct conflict *ret)
{
    const struct rules *rule = &rules[t->purpose];
    bool stuck;
    int r = acquire(g, img, t, &stuck, ret);
    if (r < 0) {
        acquire_failed(g, img, t, stuck, r);
        return r;
    }
    mutex_lock(&img->lock);
    img->holder = *t->who;
    img->n_guarded = 1; /* our own */
    img->exclusive = rule->exclusive;
    mutex_unlock(&img->lock);
    if (!rule->exclusive)
        r = image_adopt_writers(g, img);
    if (r == 0 && t->h)
        r = fence_opener(g, img, t->h, t->purpose == TAKE_TO_EMPTY);
    if (rule->plain_too && (t->purpose == TAKE_TO_CONVERT || is_dirty(img)))
        image_held_wrote(img);
    image_move(g, img, IMAGE_SEALED, 0);
    if (r == -CLAIM_LOST) {
        image_fence(g, img);
        r = rule->lost;
    }
    if (r < 0 || rule->plain_too) /* the handles of a plain file have their own by now */
        image_unguard(g, img);
    return rule->plain_too ? image_answer(r) : r;
}
