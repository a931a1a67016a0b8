/* readers.c: readers that want no writer beside them. See readers.h. */
#include "guard/readers.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/hook.h"
#include "core/reader.h"
#include "guard/conflict.h"
#include "guard/held.h"
#include "guard/image.h"
#include "guard/probe.h"
#include "guard/qemu_bytes.h"
#include "guard/readers_priv.h"
#include "guard/refuse.h"

void image_reader_init(struct guard *g, struct image_reader *rd, const struct handle *via)
{
    *rd = (struct image_reader){
        .may = g->opt.readers == READERS_PROTECT && g->journal && S_ISREG(via->inode->type) &&
               via->inode->dev == g->store.dev && (via->flags & O_ACCMODE) == O_RDONLY &&
               !atomic_load(&via->writer),
        .who = via->opener};
}

/* ---- the name on the datastore ---- */

static struct reader name_of(const struct guard *g, const struct image *img)
{
    struct reader r = {.ino = img->inode->ino, .serial = atomic_load(&img->readers.serial)};
    memcpy(r.host, g->host.uuid, sizeof(r.host));
    memcpy(r.daemon, g->host.daemon, sizeof(r.daemon));
    return r;
}

static void read_comm(uint64_t pid, char ret[READER_PROGRAM_SIZE])
{
    char path[48];
    snprintf(path, sizeof(path), "/proc/%llu/comm", (unsigned long long)pid);
    FILE *f = pid ? fopen(path, "re") : NULL;
    size_t n = f ? fread(ret, 1, READER_PROGRAM_SIZE - 1, f) : 0;
    if (f)
        fclose(f);
    ret[n] = '\0';
    ret[strcspn(ret, "\n")] = '\0';
}

static bool is_named(const struct image *img)
{
    return atomic_load(&img->readers.serial) != 0;
}

static void make_name(struct guard *g, struct image *img) REQUIRES(img->header)
{
    const struct opener *who = &LIST_FIRST(&img->readers.list)->who;
    struct reader_info info = {.pid = who->pid};
    char path[PATH_MAX];
    snprintf(info.host_name, sizeof(info.host_name), "%s", g->host.name);
    base_time_text(info.since);
    read_comm(who->pid, info.program);
    image_path(g, img->inode, path, sizeof(path));
    HOOK("reader.make");
    atomic_store(&img->readers.serial, atomic_fetch_add(&g->images->reader_serial, 1) + 1);
    struct reader name = name_of(g, img);
    int r = io_handle_get(img->inode->fd, &info.handle);
    if (r == 0)
        r = reader_make(&g->store, &name, &info, path);
    if (r == 0)
        return;
    atomic_store(&img->readers.serial, 0);
    atomic_store(&g->images->readers_left, true); /* it may be there all the same */
    if (!atomic_exchange(&img->readers.warned, true))
        log_image(
            LOG_WARNING, path, g->host.name, 0,
            "'%s' is read by pid %llu (%s), which wants no writer beside it, but it cannot be protected from those of other hosts: %s; %s. It is tried again",
            path, (unsigned long long)info.pid, info.program, strerror(-r), store_hint(r));
}

static void remove_name(struct guard *g, struct image *img) REQUIRES(img->header)
{
    struct reader name = name_of(g, img);
    int r = is_named(img) ? reader_remove(&g->store, &name) : 0;
    atomic_store(&img->readers.serial, 0);
    if (r == 0)
        return;
    atomic_store(&g->images->readers_left, true);
    log_msg(
        LOG_WARNING,
        "the name of a reader of inode %llu could not be removed (%s): nobody can write that image until it is; it is tried again",
        (unsigned long long)name.ino, strerror(-r));
}

/* Does the claim of this host keep writers of other hosts away? Not any more once it is given back,
 * which is before its record goes, nor when it is lost. */
static bool claim_protects(const struct image *img) REQUIRES(img->header)
{
    return img->held.recorded && atomic_load(&img->held.valid) &&
           atomic_load(&img->held.io_error) == 0;
}

/* While this host holds the image its claim keeps others away; the name is needed from then on. */
void image_reader_follow(struct guard *g, struct image *img)
{
    if (!LIST_EMPTY(&img->readers.list) && !is_named(img))
        make_name(g, img);
}

/* ---- who reads ---- */

/* A plain file needs no protection, for everybody may write it, unless somebody has it as a disk
 * just now (disk.h). What cannot be told may be an image. */
static bool is_image(struct guard *g, struct image *img) REQUIRES(img->header)
{
    _cleanup_header_ struct header *h = header_new();
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    struct io_handle handle;
    if (img->held.recorded || !h || !c || image_header(g, img->inode, h) < 0 ||
        image_is_image(g, img->inode, h))
        return true;
    int r = claim_read(&g->store, img->inode->ino, c);
    if (r == 0 && (c->kind == CLAIM_NONE || c->kind == CLAIM_FREE))
        return false;
    return r < 0 || c->kind == CLAIM_BAD || io_handle_get(img->inode->fd, &handle) < 0 ||
           io_handle_equal(&c->rec.handle, &handle);
}

static void list_image(struct guard *g, struct image *img, bool add)
{
    mutex_lock(&g->images->lock);
    if (add)
        LIST_INSERT_HEAD(&g->images->reading, img, readers.next);
    else
        LIST_REMOVE(img, readers.next);
    mutex_unlock(&g->images->lock);
}

static void enlist(struct guard *g, struct image *img, struct image_reader *rd)
    REQUIRES(img->header)
{
    if (!is_image(g, img))
        return;
    rd->listed = true;
    if (LIST_EMPTY(&img->readers.list))
        list_image(g, img, true);
    LIST_INSERT_HEAD(&img->readers.list, rd, entry);
    if (!claim_protects(img))
        image_reader_follow(g, img);
}

static void unlist(struct guard *g, struct image *img, struct image_reader *rd)
    REQUIRES(img->header)
{
    LIST_REMOVE(rd, entry);
    rd->listed = false;
    if (LIST_EMPTY(&img->readers.list)) {
        atomic_store(&img->readers.epoch, 0);
        remove_name(g, img);
        atomic_store(&img->readers.warned, false);
        list_image(g, img, false);
    }
}

void image_reader_locked(struct guard *g, struct inode *i, struct image_reader *rd, short type,
                         off_t start, off_t len)
{
    bool want = type != F_UNLCK, reads = qemu_byte_in(start, len, QEMU_READS),
         denies = qemu_byte_in(start, len, QEMU_NO_WRITER);
    /* Most owners never have one of the two, and those that have take it once. */
    if (!rd->may || ((!reads || atomic_load(&rd->reads) == want) &&
                     (!denies || atomic_load(&rd->denies) == want)))
        return;
    struct image *img = image_get(i);
    if (!img)
        return;
    bool freed = false;
    rwlock_write(&img->header);
    if (reads)
        atomic_store(&rd->reads, want);
    if (denies)
        atomic_store(&rd->denies, want);
    want = atomic_load(&rd->reads) && atomic_load(&rd->denies);
    if (want && !rd->listed) {
        enlist(g, img, rd);
    } else if (!want && rd->listed) {
        unlist(g, img, rd);
        freed = true;
    }
    rwlock_write_unlock(&img->header);
    if (freed)
        guard_changed(g);
}

void image_reader_forget(struct guard *g, struct inode *i, struct image_reader *rd)
{
    image_reader_locked(g, i, rd, F_UNLCK, 0, 0);
}

/* ---- too late: somebody has it for write ---- */

/* Who has it here: 0 nobody, or one who may; -EBUSY; -ENOENT: this host does not know. */
static int ask_here(struct guard *g, struct image *img, const struct image_reader *rd,
                    pid_t *ret_pid, struct conflict *ret)
{
    mutex_lock(&img->lock);
    bool here = img->state != IMAGE_IDLE && img->state != IMAGE_FENCED;
    bool may = g->opt.writers == WRITERS_HOST || opener_same(&img->holder, &rd->who);
    pid_t pid = (pid_t)img->holder.pid;
    if (here && !may)
        image_conflict_locked(img, ret);
    mutex_unlock(&img->lock);
    if (!here)
        return -ENOENT;
    *ret_pid = pid;
    return may ? 0 : -EBUSY;
}

/* *ret_nobody: there is no claim at all that holds it. */
static int ask_datastore(struct guard *g, struct image *img, const struct opener *who,
                         bool *ret_nobody, struct conflict *ret)
{
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    struct io_handle handle;
    HOOK("reader.ask");
    int r = c ? claim_read(&g->store, img->inode->ino, c) : -ENOMEM;
    if (r == 0)
        r = io_handle_get(img->inode->fd, &handle);
    *ret_nobody = r == 0 && (c->kind == CLAIM_NONE || c->kind == CLAIM_FREE);
    if (r < 0 || *ret_nobody)
        return r;
    if (c->kind == CLAIM_HELD &&
        (!io_handle_equal(&c->rec.handle, &handle) || image_own_claim(g, &c->rec, who)))
        return 0;
    if (c->kind == CLAIM_HELD)
        conflict_claim(ret, &c->rec);
    return -EBUSY;
}

/* Without a claim. A copy that was made past the views is sealed, and so is an orphan. */
static bool is_sealed_alone(struct guard *g, struct image *img)
{
    _cleanup_header_ struct header *h = header_new();
    return !h || image_header(g, img->inode, h) < 0 || h->verdict == FORMAT_SEALED ||
           h->verdict == FORMAT_MORE;
}

/* Nobody has it, and nobody can get it: reads need not ask whether it has been sealed (snapshot.c),
 * if it is not sealed now. */
static void note_exclusive_epoch(struct guard *g, struct image *img)
{
    if (atomic_load(&img->readers.epoch) != 0 || is_sealed_alone(g, img))
        return;
    rwlock_write(&img->header);
    if (!LIST_EMPTY(&img->readers.list) && is_named(img) && !img->held.recorded &&
        atomic_load(&img->readers.epoch) == 0 && !atomic_load(&g->host_lost)) {
        img->readers.last_epoch = img->readers.last_epoch % (UINT_MAX / 2) + 1;
        atomic_store(&img->readers.epoch, img->readers.last_epoch);
    }
    rwlock_write_unlock(&img->header);
}

int image_reader_ask(struct guard *g, struct inode *i, struct image_reader *rd, short type,
                     off_t start, off_t len, struct flock *ret, struct conflict *ret_conflict)
{
    struct image *img = rd->may && type == F_WRLCK && atomic_load(&rd->reads) &&
                                atomic_load(&rd->denies) && qemu_byte_in(start, len, QEMU_WRITES)
                            ? image_get(i)
                            : NULL;
    bool nobody = false;
    pid_t pid = 0;
    conflict_set(ret_conflict, CONFLICT_NONE);
    if (!img)
        return 0;
    rwlock_write(&img->header);
    if (!rd->listed)
        enlist(g, img, rd); /* it may have become an image since */
    bool listed = rd->listed, ours = claim_protects(img);
    if (listed && !ours)
        image_reader_follow(g, img); /* the name first, then the look at the claim */
    rwlock_write_unlock(&img->header);
    int r = listed && ours ? ask_here(g, img, rd, &pid, ret_conflict) : listed ? -ENOENT : 0;
    if (r == -ENOENT)
        r = ask_datastore(g, img, &rd->who, &nobody, ret_conflict);
    if (nobody)
        note_exclusive_epoch(g, img);
    if (r == -EBUSY)
        image_conflict_fill(img, ret_conflict);
    if (r == -EBUSY)
        *ret = (struct flock){.l_type = F_RDLCK,
                              .l_whence = SEEK_SET,
                              .l_start = QEMU_WRITES,
                              .l_len = 1,
                              .l_pid = pid};
    return r;
}

void image_reader_refused(struct guard *g, struct inode *i, const struct image_reader *rd,
                          const struct conflict *c)
{
    image_refused(g, i, &rd->who, "reading with nobody writing beside it (QEMU's byte locks)", c);
}

void image_reader_claiming(struct image *img)
{
    atomic_store(&img->readers.epoch, 0);
}

/* ---- the other side: who wants to write ---- */

static int refuse(struct conflict *v, const struct reader_info *info, const char *host,
                  uint64_t pid)
{
    conflict_set(v, CONFLICT_READER);
    if (!v)
        return -EBUSY;
    snprintf(v->host_name, sizeof(v->host_name), "%s", info->host_name);
    snprintf(v->host, sizeof(v->host), "%s", host);
    snprintf(v->since, sizeof(v->since), "%s", info->since[0] ? info->since : "an unknown time");
    snprintf(v->what, sizeof(v->what), "%s", info->program[0] ? info->program : "a program");
    v->pid = pid;
    return -EBUSY;
}

static int reader_here(struct guard *g, struct image *img, const struct opener *who,
                       struct conflict *ret) REQUIRES(img->header)
{
    const struct image_reader *rd =
        g->opt.writers == WRITERS_PROCESS ? LIST_FIRST(&img->readers.list) : NULL;
    while (rd && opener_same(&rd->who, who))
        rd = LIST_NEXT(rd, entry);
    if (!rd)
        return 0;
    struct reader_info info = {.pid = rd->who.pid};
    snprintf(info.host_name, sizeof(info.host_name), "%s", g->host.name);
    read_comm(rd->who.pid, info.program);
    return refuse(ret, &info, g->host.uuid, rd->who.pid);
}

int image_reader_in_way(struct guard *g, struct image *img, const struct opener *who,
                        struct conflict *ret)
{
    _cleanup_free_ struct reader *rd = NULL;
    struct io_handle handle;
    size_t n = 0;
    int r = reader_here(g, img, who, ret);
    if (r == 0)
        r = io_handle_get(img->inode->fd, &handle);
    if (r == 0)
        r = reader_list(&g->store, img->inode->ino, &rd, &n);
    for (size_t k = 0; r == 0 && k < n; k++) {
        if (strcmp(rd[k].host, g->host.uuid) == 0)
            continue; /* of this daemon, or of one that is gone */
        r = reader_counts(&g->store, &rd[k]);
        if (r <= 0)
            continue;
        struct reader_info info;
        reader_look(&g->store, &rd[k], &info);
        r = reader_is_of(&info, &handle) ? refuse(ret, &info, rd[k].host, info.pid) : 0;
    }
    return r;
}

/* ---- monitor ---- */

static bool is_among(const struct guard *g, const struct image *img, const struct reader *rd,
                     size_t n)
{
    struct reader own = name_of(g, img);
    for (size_t k = 0; k < n; k++)
        if (rd[k].ino == own.ino && rd[k].serial == own.serial &&
            strcmp(rd[k].daemon, own.daemon) == 0 && strcmp(rd[k].host, own.host) == 0)
            return true;
    return false;
}

/* Was our name taken away, by a person who took this host for dead? Looked at once more: it may
 * have been made since the listing. */
static bool name_lost(struct guard *g, struct image *img) REQUIRES(img->header)
{
    _cleanup_free_ struct reader *rd = NULL;
    size_t n = 0;
    return is_named(img) && reader_list(&g->store, img->inode->ino, &rd, &n) == 0 &&
           !is_among(g, img, rd, n);
}

static void maintain_image(struct guard *g, struct image *img, bool seen)
{
    struct opener who = {0};
    bool nobody = false, ask = false, lost = false;
    rwlock_write(&img->header);
    if (!LIST_EMPTY(&img->readers.list)) {
        lost = !seen && name_lost(g, img);
        if (lost || atomic_load(&g->host_lost))
            atomic_store(&img->readers.epoch, 0);
        if (lost)
            atomic_store(&img->readers.serial, 0);
        if (!claim_protects(img))
            image_reader_follow(g, img);
        who = LIST_FIRST(&img->readers.list)->who;
        ask = !img->held.recorded && is_named(img) && atomic_load(&img->readers.epoch) == 0;
    }
    rwlock_write_unlock(&img->header);
    int r = ask ? ask_datastore(g, img, &who, &nobody, NULL) : 0;
    if (nobody)
        note_exclusive_epoch(g, img);
    if (!lost)
        return;
    char path[PATH_MAX];
    image_path(g, img->inode, path, sizeof(path));
    log_image(
        LOG_CRIT, path, g->host.name, 0,
        "'%s' is read by pid %llu, which wants no writer beside it, and the name that says so was removed from the datastore (fsck.diskguard --takeover of this host?)%s",
        path, (unsigned long long)who.pid,
        r == -EBUSY
            ? "; another host has it for write now: what is read here may be wrong. Stop the reader"
            : "; it is protected again");
}

/* Those of this daemon that belong to no image's readers: their removal failed, or they were made
 * in spite of an error. */
static void remove_left(struct guard *g, struct image **img, unsigned n_img,
                        const struct reader *rd, size_t n)
{
    for (size_t k = 0; k < n; k++) {
        bool used =
            strcmp(rd[k].host, g->host.uuid) != 0 || strcmp(rd[k].daemon, g->host.daemon) != 0;
        for (unsigned i = 0; i < n_img && !used; i++)
            used = is_among(g, img[i], &rd[k], 1);
        if (!used && reader_remove(&g->store, &rd[k]) < 0)
            atomic_store(&g->images->readers_left, true);
    }
}

/* Pins them. NULL: out of memory. */
static struct image **reading_list(struct guard *g, unsigned *ret_n)
{
    unsigned n = 0, max = 0;
    mutex_lock(&g->images->lock);
    struct image *i;
    LIST_FOREACH(i, &g->images->reading, readers.next)
        max++;
    struct image **list = calloc(max + 1, sizeof(*list));
    for (i = list ? LIST_FIRST(&g->images->reading) : NULL; i; i = LIST_NEXT(i, readers.next)) {
        inode_pin(g->inodes, i->inode);
        list[n++] = i;
    }
    mutex_unlock(&g->images->lock);
    *ret_n = n;
    return list;
}

void image_reader_maintain(struct guard *g)
{
    _cleanup_free_ struct reader *rd = NULL;
    size_t n = 0;
    unsigned n_img;
    mutex_lock(&g->images->lock);
    bool any = !LIST_EMPTY(&g->images->reading);
    mutex_unlock(&g->images->lock);
    bool left = atomic_exchange(&g->images->readers_left, false);
    if (!any && !left)
        return;
    /* All of them before the images are listed: a name that is made meanwhile is not among these.
     */
    int r = left ? reader_list(&g->store, 0, &rd, &n) : 0;
    struct image **img = r == 0 ? reading_list(g, &n_img) : NULL;
    if (!img) {
        if (left)
            atomic_store(&g->images->readers_left, true);
        return;
    }
    if (left)
        remove_left(g, img, n_img, rd, n);
    for (unsigned k = 0; k < n_img; k++) {
        _cleanup_free_ struct reader *own = NULL;
        size_t n_own = 0;
        /* before the image is asked which name is its own */
        if (reader_list(&g->store, img[k]->inode->ino, &own, &n_own) == 0) {
            remove_left(g, &img[k], 1, own, n_own);
            maintain_image(g, img[k], is_among(g, img[k], own, n_own));
        }
        inode_put(g->inodes, img[k]->inode);
    }
    free(img);
}
