/* fsck_rescue.c: a sealed image without any record: what the seal and the rest of the file tell.
 * See fsck.h. The restore goes the way of every other: a claim of this host that carries the plan,
 * the fence lock exclusively, seal_restore(). So a crash here leaves what the next run of recovery
 * settles. */
#include "fsck/fsck.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

#include "core/claim.h"
#include "core/seal.h"

struct rescue_work {
    struct header *header;
    struct claim claim;
    struct record rec;
    struct rescue rescue;
};

static struct rescue_work *work_new(void)
{
    struct rescue_work *w = out_alloc(sizeof(*w));

    w->header = header_new();
    if (!w->header)
        out_no_memory();
    return w;
}

static void work_free(struct rescue_work *w)
{
    header_free(w->header);
    free(w);
}

/* --size IMAGE=BYTES of this image, or NULL. */
static const uint64_t *size_of(const struct fsck *f, const char *path)
{
    return f->size_image && strcmp(f->size_image, path) == 0 ? &f->size : NULL;
}

static void append(char *text, size_t size, const char *fmt, ...) DG_PRINTF(3, 4);
static void append(char *text, size_t size, const char *fmt, ...)
{
    size_t used = strlen(text);
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text + used, size - used, fmt, ap);
    va_end(ap);
}

/* Says what can be told, for people. */
static void explain(const struct rescue_work *w, int r, char *ret, size_t size)
{
    static const char *const word[] = {
        [RESCUE_EXACT] = "it is", [RESCUE_UPPER] = "at most", [RESCUE_LOWER] = "at least"};

    append(ret, size, "%s", w->header->info.why);
    for (unsigned i = 0; i < w->rescue.n && i < RESCUE_MAX; i++)
        append(ret, size, "; true size: %s %" PRIu64 " bytes (%s)",
               word[w->rescue.candidate[i].kind], w->rescue.candidate[i].size,
               w->rescue.candidate[i].source);
    if (r == 0)
        append(ret, size, "; fsck.diskguard -y can undo it from the file alone");
    else if (r == -ENODATA)
        append(
            ret, size,
            "; the file does not hold the exact size: find it in a backup or in the definition of the virtual machine, then: fsck.diskguard -y --size IMAGE=BYTES");
    else if (r == -ERANGE)
        append(ret, size, "; the size given with --size contradicts the file");
    else
        append(ret, size, "; it cannot be undone from the file alone%s%s",
               r == -EUCLEAN ? "" : ": ", r == -EUCLEAN ? "" : strerror(-r));
}

/* Is it still an orphan, now that nobody can write to it? Fills the plan. */
static int look_again(struct fsck *f, struct rescue_work *w, int fd)
{
    int r = claim_read(&f->store, w->rec.ino, &w->claim);

    if (r == 0 && (w->claim.kind == CLAIM_HELD || w->claim.kind == CLAIM_BAD))
        return -EBUSY;
    if (r == 0)
        r = header_load(fd, w->header);
    if (r == 0 && w->header->verdict != FORMAT_SEALED)
        return -EBUSY;
    if (r == 0)
        r = header_rescue(fd, w->header, size_of(f, w->rec.image), &w->rescue, &w->rec.plan);
    return r;
}

static int fill(struct fsck *f, struct rescue_work *w, int fd)
{
    struct record *rec = &w->rec;
    struct stat st;
    int r = io_fresh_stat(fd, &st);

    if (r == 0)
        r = io_handle_get(fd, &rec->handle);
    if (r == 0)
        r = claim_next(&f->store, &w->claim, &rec->generation);
    if (r < 0)
        return r;
    memcpy(rec->host, f->host.uuid, sizeof(dg_uuid));
    memcpy(rec->installation, f->host.installation, sizeof(dg_uuid));
    memcpy(rec->boot, f->host.boot, sizeof(dg_uuid));
    memcpy(rec->daemon, f->host.daemon, sizeof(dg_uuid));
    snprintf(rec->host_name, sizeof(rec->host_name), "%s", f->host.name);
    snprintf(rec->format, sizeof(rec->format), "%s", w->header->format->name);
    base_time_text(rec->since);
    rec->seq = 1;
    rec->step = STEP_ARMED;
    rec->cut = OVERLAY_NO_CUT;
    rec->mtime = st.st_mtim;
    for (unsigned i = 0; i < w->rescue.n; i++)
        if (w->rescue.candidate[i].kind == RESCUE_EXACT)
            rec->virtual_size = w->rescue.candidate[i].size;
    return 0;
}

static int repair(struct fsck *f, struct rescue_work *w, int path_fd)
{
    _cleanup_close_ int fd = io_reopen(path_fd, O_RDWR);
    int r = fd < 0 ? fd : io_fence_exclusive(fd, f->store.fence);

    if (r == -EAGAIN)
        return -EBUSY;
    if (r == 0)
        r = io_cache_drop(fd);
    if (r == 0)
        r = look_again(f, w, fd);
    if (r == 0)
        r = fill(f, w, fd);
    if (r == 0 && f->journal)
        r = journal_put(f->journal, &w->rec);
    if (r < 0)
        return r;
    bool left;
    r = claim_acquire(&f->store, &w->rec, &left);
    if (r < 0) {
        if (!left && f->journal && journal_remove(f->journal, w->rec.ino, w->rec.generation) < 0)
            report_say(
                f, "%s: the journal row of a claim that was not made stays; the next run drops it",
                w->rec.image);
        return r;
    }
    struct seal s = {.store = &f->store,
                     .journal = f->journal,
                     .fd = fd,
                     .policy = {SEAL_REFUSE, f->host.name},
                     .rec = &w->rec,
                     .unfence = true};
    r = seal_restore(&s);
    if (r == 0)
        claim_clear(&f->store, w->rec.ino, w->rec.generation);
    return r;
}

static bool wanted(struct fsck *f, const struct rescue_work *w, const char *detail)
{
    char question[RECORD_IMAGE_MAX + 1200];

    if (f->dry_run || f->beside || f->mode == MODE_PREEN)
        return false;
    if (f->mode == MODE_YES)
        return true;
    snprintf(question, sizeof(question),
             "%s: sealed, and no record says by whom [%s]. Undo the seal?", w->rec.image, detail);
    return report_yes(f, question);
}

void rescue_orphan(struct fsck *f, int path_fd, const char *path, const struct stat *st,
                   uint64_t generation)
{
    _cleanup_close_ int fd = io_reopen(path_fd, O_RDONLY);
    struct rescue_work *w = work_new();
    char detail[1024] = "";
    int r = fd < 0 ? fd : header_load(fd, w->header);

    snprintf(w->rec.image, sizeof(w->rec.image), "%s", path);
    w->rec.ino = st->st_ino;
    w->rec.generation = generation;
    if (r == 0)
        r = header_rescue(fd, w->header, size_of(f, path), &w->rescue, &w->rec.plan);
    explain(w, r, detail, sizeof(detail));
    int done = 1;
    if (r == 0 && f->store.fence == FENCE_NONE)
        append(
            detail, sizeof(detail),
            "; not without the fence lock (--fence=none, or storage without locks): nothing would prove that nobody writes it");
    else if (r == 0 && wanted(f, w, detail))
        done = repair(f, w, path_fd);
    w->rec.host[0] = w->rec.host_name[0] = '\0'; /* nobody is known to hold it */
    report_problem(f, PROBLEM_ORPHAN, &w->rec, detail, done,
                   "the seal was undone from the file alone");
    work_free(w);
}
