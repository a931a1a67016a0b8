/* image_reader.c: readers that want no writer beside them. See image_reader.h. */
#include "daemon/image_priv.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "core/hook.h"
#include "core/reader.h"

/* QEMU, block/file-posix.c: RAW_LOCK_PERM_BASE 100, RAW_LOCK_SHARED_BASE 200; permissions 0 consistent read, 1 write. */
#define BYTE_READS 100
#define BYTE_WRITES 101
#define BYTE_NO_WRITER 201

static bool covers(off_t start, off_t len, off_t byte)
{
    return start <= byte && (len == 0 || byte - start < len);
}

void image_reader_init(struct daemon *d, struct image_reader *rd, const struct handle *via)
{
    *rd = (struct image_reader){.may = d->opt.readers == READERS_PROTECT && d->journal &&
                                       S_ISREG(via->inode->type) && via->inode->dev == d->store.dev &&
                                       !via->writer,
                                .who = via->opener};
}

/* ---- the name on the datastore ---- */

static struct reader name_of(const struct daemon *d, const struct image *img)
{
    struct reader r = {.ino = img->inode->ino};
    memcpy(r.host, d->host.uuid, sizeof(r.host));
    memcpy(r.daemon, d->host.daemon, sizeof(r.daemon));
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

static void make_name(struct daemon *d, struct image *img, const struct image_reader *rd)
    REQUIRES(img->header)
{
    struct reader name = name_of(d, img);
    struct reader_info info = {.pid = rd->who.pid};
    char path[PATH_MAX];
    snprintf(info.host_name, sizeof(info.host_name), "%s", d->host.name);
    base_time_text(info.since);
    read_comm(rd->who.pid, info.program);
    image_path(d, img->inode, path, sizeof(path));
    HOOK("reader.make");
    int r = reader_make(&d->store, &name, &info, path);
    img->reader_named = r == 0;
    if (r < 0)
        log_image(LOG_WARNING, path, d->host.name, 0,
                  "'%s' is read by pid %llu (%s), which wants no writer beside it, but it cannot be "
                  "protected from those of other hosts: %s; %s",
                  path, (unsigned long long)info.pid, info.program, strerror(-r), store_hint(r));
}

static void remove_name(struct daemon *d, struct image *img) REQUIRES(img->header)
{
    struct reader name = name_of(d, img);
    int r = img->reader_named ? reader_remove(&d->store, &name) : 0;
    img->reader_named = false;
    if (r < 0)
        log_msg(LOG_WARNING,
                "the name of a reader of inode %llu stays on the datastore (%s): nobody can write that image "
                "before this view is mounted again",
                (unsigned long long)name.ino, strerror(-r));
}

/* ---- who reads ---- */

/* A plain file needs no protection, for everybody may write it. */
static bool is_image(struct daemon *d, struct image *img)
{
    _cleanup_header_ struct header *h = header_new();
    return h && image_header(d, img->inode, h) == 0 && image_is_image(d, img->inode, h);
}

static void enlist(struct daemon *d, struct image *img, struct image_reader *rd) REQUIRES(img->header)
{
    if (!is_image(d, img))
        return;
    if (!img->readers)
        make_name(d, img, rd);
    rd->listed = true;
    rd->next = img->readers;
    img->readers = rd;
}

static void unlist(struct daemon *d, struct image *img, struct image_reader *rd) REQUIRES(img->header)
{
    struct image_reader **at = &img->readers;
    while (*at && *at != rd)
        at = &(*at)->next;
    if (*at)
        *at = rd->next;
    rd->listed = false;
    if (!img->readers) {
        atomic_store(&img->alone, 0);
        remove_name(d, img);
    }
}

void image_reader_locked(struct daemon *d, struct inode *i, struct image_reader *rd, short type, off_t start,
                         off_t len)
{
    bool reads = covers(start, len, BYTE_READS), denies = covers(start, len, BYTE_NO_WRITER);
    struct image *img = rd->may && (reads || denies) ? image_get(i) : NULL;
    if (!img)
        return;
    bool freed = false;
    rwlock_write(&img->header);
    if (reads)
        rd->reads = type != F_UNLCK;
    if (denies)
        rd->denies = type != F_UNLCK;
    bool wants = rd->reads && rd->denies;
    if (wants && !rd->listed)
        enlist(d, img, rd);
    else if (!wants && rd->listed) {
        unlist(d, img, rd);
        freed = true;
    }
    rwlock_write_unlock(&img->header);
    if (freed)
        park_kick(d->park);
}

void image_reader_forget(struct daemon *d, struct inode *i, struct image_reader *rd)
{
    image_reader_locked(d, i, rd, F_UNLCK, 0, 0);
}

/* ---- too late: somebody has it for write ---- */

/* Who has it here: 0 nobody, or one who may; -EBUSY; -ENOENT: this host does not know. */
static int ask_here(struct daemon *d, struct image *img, const struct image_reader *rd, pid_t *ret_pid)
{
    mutex_lock(&img->lock);
    bool here = img->state != IMAGE_IDLE && img->state != IMAGE_FENCED;
    bool may = d->opt.writers == WRITERS_HOST || cred_same_process(&img->holder, &rd->who);
    pid_t pid = (pid_t)img->holder.pid;
    mutex_unlock(&img->lock);
    if (!here)
        return -ENOENT;
    *ret_pid = pid;
    return may ? 0 : -EBUSY;
}

/* *ret_nobody: there is no claim at all that holds it. */
static int ask_datastore(struct daemon *d, struct image *img, const struct image_reader *rd, bool *ret_nobody)
{
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    struct io_handle handle;
    HOOK("reader.ask");
    int r = c ? claim_read(&d->store, img->inode->ino, c) : -ENOMEM;
    if (r == 0)
        r = io_handle_get(img->inode->fd, &handle);
    *ret_nobody = r == 0 && (c->kind == CLAIM_NONE || c->kind == CLAIM_FREE);
    if (r < 0 || *ret_nobody)
        return r;
    if (c->kind == CLAIM_HELD &&
        (!io_handle_equal(&c->rec.handle, &handle) || image_own_claim(d, &c->rec, &rd->who)))
        return 0;
    image_set_rival(img, c->kind == CLAIM_HELD ? &c->rec : NULL);
    return -EBUSY;
}

/* Nobody has it, and nobody can get it: reads need not ask whether it has been sealed (image_sound.c). */
static void note_alone(struct image *img, const struct image_reader *rd)
{
    rwlock_write(&img->header);
    if (rd->listed && img->reader_named && !img->rec && atomic_load(&img->alone) == 0) {
        img->alone_last = img->alone_last % (UINT_MAX / 2) + 1;
        atomic_store(&img->alone, img->alone_last);
    }
    rwlock_write_unlock(&img->header);
}

int image_reader_ask(struct daemon *d, struct inode *i, const struct image_reader *rd, off_t start, off_t len,
                     struct flock *ret)
{
    struct image *img = rd->may && covers(start, len, BYTE_WRITES) ? image_get(i) : NULL;
    pid_t pid = 0;
    if (!img)
        return 0;
    rwlock_read(&img->header);
    bool listed = rd->listed;
    rwlock_read_unlock(&img->header);
    int r = listed ? ask_here(d, img, rd, &pid) : 0;
    if (r == -ENOENT) {
        bool nobody = false;
        r = ask_datastore(d, img, rd, &nobody);
        if (nobody)
            note_alone(img, rd);
    }
    if (r == -EBUSY)
        *ret = (struct flock){
            .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = BYTE_WRITES, .l_len = 1, .l_pid = pid};
    return r;
}

void image_reader_refused(struct daemon *d, struct inode *i, const struct image_reader *rd)
{
    image_refused(d, i, &rd->who, "reading with nobody writing beside it (QEMU's byte locks)", -EBUSY);
}

/* ---- the other side: who wants to write ---- */

static int refuse(struct image *img, const struct reader_info *info, const char *host, uint64_t pid)
{
    image_set_rival(img, NULL);
    mutex_lock(&img->lock);
    struct image_rival *v = &img->rival;
    snprintf(v->host_name, sizeof(v->host_name), "%s", info->host_name);
    snprintf(v->host, sizeof(v->host), "%s", host);
    snprintf(v->since, sizeof(v->since), "%s", info->since[0] ? info->since : "an unknown time");
    snprintf(v->needs, sizeof(v->needs), "%s", info->program[0] ? info->program : "a program");
    v->pid = pid;
    v->reads = true;
    mutex_unlock(&img->lock);
    return -EBUSY;
}

static int reader_here(struct daemon *d, struct image *img, const struct opener *who) REQUIRES(img->header)
{
    const struct image_reader *rd = d->opt.writers == WRITERS_PROCESS ? img->readers : NULL;
    while (rd && cred_same_process(&rd->who, who))
        rd = rd->next;
    if (!rd)
        return 0;
    struct reader name = name_of(d, img);
    struct reader_info info;
    reader_look(&d->store, &name, &info);
    read_comm(rd->who.pid, info.program);
    return refuse(img, &info, d->host.uuid, rd->who.pid);
}

int image_reader_in_way(struct daemon *d, struct image *img, const struct opener *who)
{
    _cleanup_free_ struct reader *rd = NULL;
    size_t n = 0;
    int r = reader_here(d, img, who);
    if (r == 0)
        r = reader_list(&d->store, img->inode->ino, &rd, &n);
    for (size_t k = 0; r == 0 && k < n; k++) {
        if (strcmp(rd[k].host, d->host.uuid) == 0)
            continue; /* of this daemon, or of one that is gone */
        r = reader_counts(&d->store, &rd[k]);
        if (r <= 0)
            continue;
        struct reader_info info;
        reader_look(&d->store, &rd[k], &info);
        r = refuse(img, &info, rd[k].host, info.pid);
    }
    return r;
}
