/* host_record.c: this host's record hosts/<uuid> on the datastore, its lock and its heartbeat. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>

#include "base/hook.h"
#include "base/text.h"
#include "core/host.h"

#define RECORD_MAGIC "diskguard-host"
#define RECORD_FIELDS 9
#define LOCK_TRIES 5
#define LOCK_PAUSE_MS 20

/* Explanations cut long paths, so that the way out at the end of the line is never what is lost. */
#define P "%.200s"

/* ---- text ---- */

struct copy {
    struct host_record rec;
    uint64_t seq;
    int at; /* 0 or 1: its place in the file */
};

struct copy_text {
    char name[3 * HOST_NAME_SIZE + 1], seq[24], heartbeat[24];
};

static void copy_fields(struct host_record *rec, struct copy_text *t,
                        struct text_field ret[RECORD_FIELDS])
{
    const struct text_field f[RECORD_FIELDS] = {
        TEXT_FIELD("uuid", rec->uuid),
        TEXT_FIELD("name", t->name),
        TEXT_FIELD("installation", rec->installation),
        TEXT_FIELD("boot", rec->boot),
        TEXT_FIELD("daemon", rec->daemon),
        TEXT_FIELD("started", rec->started),
        TEXT_FIELD("seq", t->seq),
        TEXT_FIELD("beat", t->heartbeat),
        TEXT_FIELD("beat-time", rec->heartbeat_time),
    };

    memcpy(ret, f, sizeof(f));
}

static int copy_encode(const struct copy *c, char ret[HOST_COPY_SIZE])
{
    struct text_field f[RECORD_FIELDS];
    struct copy_text t;
    struct host_record rec = c->rec;
    char text[HOST_COPY_SIZE + 1];
    size_t len;
    int r = base_escape(rec.name, t.name, sizeof(t.name));

    if (r < 0)
        return r;
    snprintf(t.seq, sizeof(t.seq), "%llu", (unsigned long long)c->seq);
    snprintf(t.heartbeat, sizeof(t.heartbeat), "%llu", (unsigned long long)rec.heartbeat);
    copy_fields(&rec, &t, f);
    r = text_emit(RECORD_MAGIC, DG_FORMAT_VERSION, f, RECORD_FIELDS, text, sizeof(text), &len);
    if (r < 0)
        return r;
    memset(ret, '\n', HOST_COPY_SIZE);
    memcpy(ret, text, len);
    return 0;
}

static int copy_decode(const char *text, const char *uuid, struct copy *ret)
{
    struct text_field f[RECORD_FIELDS];
    struct copy_text t;
    struct copy c = {.seq = 0};
    size_t len = HOST_COPY_SIZE;
    int r;

    while (len > 1 && text[len - 1] == '\n' && text[len - 2] == '\n')
        len--;
    copy_fields(&c.rec, &t, f);
    r = text_parse(text, len, RECORD_MAGIC, DG_FORMAT_VERSION, f, RECORD_FIELDS);
    if (r < 0)
        return r;
    if (!base_uuid_ok(c.rec.uuid) || !base_uuid_ok(c.rec.installation) ||
        !base_uuid_ok(c.rec.boot) || !base_uuid_ok(c.rec.daemon) ||
        (uuid && strcmp(c.rec.uuid, uuid) != 0))
        return -EBADMSG;
    if (base_unescape(t.name, strlen(t.name), c.rec.name, sizeof(c.rec.name)) < 0 ||
        base_u64(t.seq, &c.seq) < 0 || base_u64(t.heartbeat, &c.rec.heartbeat) < 0)
        return -EBADMSG;
    *ret = c;
    return 0;
}

/* Takes the newer of the copies that decode. A copy of a newer version decides whatever the other
 * one says: only that version knows which of them counts. */
static int record_decode_file(const char *text, size_t len, const char *uuid, struct copy *ret)
{
    struct copy found[2];
    int err[2], best;

    if (len != HOST_RECORD_SIZE)
        return -EBADMSG;
    for (int i = 0; i < 2; i++) {
        err[i] = copy_decode(text + i * HOST_COPY_SIZE, uuid, &found[i]);
        if (err[i] == -EPROTONOSUPPORT)
            return err[i];
        found[i].at = i;
    }
    if (err[0] < 0 && err[1] < 0)
        return -EBADMSG;
    best = err[0] < 0 || (err[1] == 0 && found[1].seq > found[0].seq) ? 1 : 0;
    *ret = found[best];
    return 0;
}

int host_record_read(const struct store *s, const char *uuid, struct host_record *ret)
{
    _cleanup_free_ char *text = NULL;
    struct copy c;
    size_t len;
    int r;

    if (!base_uuid_ok(uuid))
        return -EINVAL;
    r = io_fresh_text(s->hosts_fd, uuid, HOST_RECORD_SIZE, &text, &len);
    if (r < 0)
        return r == -EFBIG ? -EBADMSG : r;
    r = record_decode_file(text, len, uuid, &c);
    if (r < 0)
        return r;
    *ret = c.rec;
    return 0;
}

/* ---- writing under the lock ---- */

static int record_load(int fd, const char *uuid, struct copy *ret)
{
    char text[HOST_RECORD_SIZE];
    struct stat st;
    int r = io_fresh_stat(fd, &st);

    if (r < 0)
        return r;
    if (st.st_size != HOST_RECORD_SIZE)
        return -EBADMSG;
    r = io_fresh_data(fd, text, sizeof(text), 0);
    if (r < 0)
        return r == -ENODATA ? -EBADMSG : r;
    return record_decode_file(text, sizeof(text), uuid, ret);
}

static int copy_write(int fd, const struct copy *c)
{
    char text[HOST_COPY_SIZE];
    int r = copy_encode(c, text);

    if (r < 0)
        return r;
    r = io_pwrite_all(fd, text, sizeof(text), (uint64_t)c->at * HOST_COPY_SIZE);
    return r < 0 ? r : io_fsync(fd);
}

static void copy_fill(const struct host *h, uint64_t seq, int at, struct copy *ret)
{
    struct copy c = {.seq = seq, .at = at};

    memcpy(c.rec.uuid, h->uuid, sizeof(dg_uuid));
    memcpy(c.rec.installation, h->installation, sizeof(dg_uuid));
    memcpy(c.rec.boot, h->boot, sizeof(dg_uuid));
    memcpy(c.rec.daemon, h->daemon, sizeof(dg_uuid));
    memcpy(c.rec.name, h->name, sizeof(c.rec.name));
    base_time_text(c.rec.started);
    memcpy(c.rec.heartbeat_time, c.rec.started, sizeof(c.rec.heartbeat_time));
    *ret = c;
}

int host_bind(int lock_fd, const struct host *h)
{
    struct copy old = {.seq = 0, .at = 1}, c;
    int r = record_load(lock_fd, h->uuid, &old);

    if (r < 0 && r != -EBADMSG && r != -EPROTONOSUPPORT)
        return r;
    /* Writes the copy that does not count first, so that a good one exists at every moment. Then
     * the other one, or a torn write could later bring the old binding back. */
    for (int i = 1; i <= 2; i++) {
        r = HOOK_FAIL("host.bind");
        if (r < 0)
            return r;
        copy_fill(h, old.seq + (uint64_t)i, i == 1 ? 1 - old.at : old.at, &c);
        r = copy_write(lock_fd, &c);
        if (r < 0)
            return r;
    }
    if (ftruncate(lock_fd, HOST_RECORD_SIZE) < 0) /* a longer file would not decode */
        return -errno;
    return io_fsync(lock_fd);
}

int host_heartbeat(int lock_fd, const struct host *h, uint64_t heartbeat)
{
    struct copy old, c;
    int r = record_load(lock_fd, h->uuid, &old);

    if (r < 0)
        return r;
    if (strcmp(old.rec.installation, h->installation) != 0)
        return -EKEYREJECTED;
    copy_fill(h, old.seq + 1, 1 - old.at, &c);
    c.rec.heartbeat = heartbeat;
    if (strcmp(old.rec.daemon, h->daemon) == 0)
        memcpy(c.rec.started, old.rec.started, sizeof(c.rec.started));
    r = HOOK_FAIL("host.beat");
    return r < 0 ? r : copy_write(lock_fd, &c);
}

/* ---- creation ---- */

/* Links a finished record into place; two hosts with one uuid cannot both win. The proof is the
 * link count of our own file, not the answer of link(2), which lies when a reply got lost. 0 also
 * when another one was faster. */
static int record_link(const struct store *s, const struct host *h, const char *tmp, int fd)
{
    struct stat st;
    int err = HOOK_FAIL("host.link"), r;

    if (err == 0 && linkat(s->tmp_fd, tmp, s->hosts_fd, h->uuid, 0) < 0)
        err = -errno;
    r = io_fresh_stat(fd, &st);
    if (r < 0)
        return r;
    if (st.st_nlink != 2)
        return err == -EEXIST ? 0 : err < 0 ? err : -EIO;
    HOOK("host.linked");
    return io_fsync(s->hosts_fd);
}

static int record_create(const struct store *s, const struct host *h)
{
    char text[HOST_RECORD_SIZE], tmp[2 * (DG_UUID_LEN + 1) + 2];
    _cleanup_close_ int fd = -1;
    struct copy c;
    int r;

    for (int i = 0; i < 2; i++) {
        copy_fill(h, (uint64_t)i + 1, i, &c);
        r = copy_encode(&c, text + i * HOST_COPY_SIZE);
        if (r < 0)
            return r;
    }
    /* The form of claim's names, so that claim_sweep removes it after a crash; claims count from 1.
     */
    snprintf(tmp, sizeof(tmp), "%s.%s.0", h->uuid, h->daemon);
    HOOK("host.create");
    fd = io_text_create(s->tmp_fd, tmp, text, sizeof(text));
    if (fd < 0)
        return fd;
    r = record_link(s, h, tmp, fd);
    HOOK("host.unlink");
    unlinkat(s->tmp_fd, tmp, 0);
    return r;
}

/* ---- the lock ---- */

/* Opens the record and locks it. -EAGAIN: another process has the lock; -ENOENT. */
static int lock_open(const struct store *s, const char *uuid)
{
    const struct timespec pause = {.tv_nsec = LOCK_PAUSE_MS * 1000000L};
    _cleanup_close_ int fd = -1;
    struct stat st;
    int r;

    fd = io_fresh_open(s->hosts_fd, uuid, O_RDWR | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return fd;
    r = io_lock_file(fd, s->fence);
    /* With flock(2), host_alive() of another process must take the lock for a moment in order to
     * look. */
    for (int i = 1; r == -EAGAIN && s->fence == FENCE_FLOCK && i < LOCK_TRIES; i++) {
        nanosleep(&pause, NULL);
        r = io_lock_file(fd, s->fence);
    }
    if (r < 0)
        return r;
    r = io_fresh_stat(fd, &st);
    if (r < 0)
        return r;
    if (st.st_nlink == 0) /* the record was removed between open and lock */
        return -ENOENT;
    return base_steal_fd(&fd);
}

static void explain_busy(const struct store *s, const char *uuid, struct why *why)
{
    struct host_record rec;

    if (host_record_read(s, uuid, &rec) == 0)
        why_set(
            why,
            "a diskguard or fsck.diskguard of this host is at work on " P
            " already: host %s, daemon %s, last heartbeat %s (%s); unmount that view or wait for it to end",
            s->path, rec.name, rec.daemon, rec.heartbeat_time, uuid);
    else
        why_set(why,
                "a diskguard or fsck.diskguard with host uuid %s is at work on " P
                " already; wait for it to end",
                uuid, s->path);
}

static void explain_rejected(const struct store *s, const struct host *h,
                             const struct host_record *rec, bool alive, struct why *why)
{
    char quoted[256];

    if (alive)
        why_set(
            why,
            "another running host, %s, has this host's uuid %s on " P
            ": a cloned /etc/machine-id. Give each host one of its own (systemd-machine-id-setup, or host-id=)",
            rec->name, h->uuid, s->path);
    else
        why_set(
            why,
            "host uuid %s on " P
            " belongs to another installation (host %s, last heartbeat %s). Either this machine is a clone: give each host a uuid of its own (systemd-machine-id-setup, or host-id=); or its state directory was lost: fsck.diskguard --takeover %s --confirm-host-is-down %s",
            h->uuid, s->path, rec->name, rec->heartbeat_time, h->uuid,
            base_quote(s->path, quoted, sizeof(quoted)));
}

static int explain_failed(const struct store *s, const struct host *h, int err, struct why *why)
{
    char quoted[256];

    if (err == -EBADMSG)
        why_set(
            why,
            P
            "/" DG_DIR
            "/hosts/%s is damaged; after a look at it: fsck.diskguard --takeover %s --confirm-host-is-down %s",
            s->path, h->uuid, h->uuid, base_quote(s->path, quoted, sizeof(quoted)));
    else if (err == -EPROTONOSUPPORT)
        why_set(why,
                P "/" DG_DIR
                  "/hosts/%s was written by a newer diskguard; update diskguard on this host",
                s->path, h->uuid);
    else if (err == -ENOENT)
        why_set(why, "there is no record of host %s on " P "; `diskguardctl hosts` lists them",
                h->uuid, s->path);
    else
        why_set(why, "cannot lock " P "/" DG_DIR "/hosts/%s: %s; %s", s->path, h->uuid,
                strerror(-err), store_hint(err));
    return err;
}

/* Asks without taking. */
static int alive_ofd(int fd)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int r;

    do
        r = fcntl(fd, F_OFD_GETLK, &lock);
    while (r < 0 && errno == EINTR);
    if (r < 0)
        return -errno;
    return lock.l_type == F_UNLCK ? 0 : 1;
}

/* flock(2) cannot be asked. Take it shared, so that two processes that look do not see each other,
 * and drop it at close. */
static int alive_flock(int fd)
{
    int r;

    do
        r = flock(fd, LOCK_SH | LOCK_NB);
    while (r < 0 && errno == EINTR);
    if (r == 0)
        return 0;
    return errno == EWOULDBLOCK ? 1 : -errno;
}

int host_alive(const struct store *s, const char *uuid)
{
    _cleanup_close_ int fd = -1;

    if (!base_uuid_ok(uuid))
        return -EINVAL;
    if (s->fence == FENCE_NONE)
        return -EOPNOTSUPP;
    fd = io_fresh_open(s->hosts_fd, uuid, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return fd;
    return s->fence == FENCE_FLOCK ? alive_flock(fd) : alive_ofd(fd);
}

/* Makes the record when there is none. Refuses a foreign one before it takes the lock: a clone
 * that had the lock for a moment, until it is refused, would keep the rightful host out
 * meanwhile. */
static int bind_or_reject(const struct store *s, const struct host *h, struct why *why)
{
    struct host_record rec;
    int r = host_record_read(s, h->uuid, &rec);

    for (int i = 0; r == -ENOENT && i < LOCK_TRIES; i++) {
        r = record_create(s, h);
        if (r == 0)
            r = host_record_read(s, h->uuid, &rec);
    }
    if (r < 0)
        return explain_failed(s, h, r, why);
    if (strcmp(rec.installation, h->installation) == 0)
        return 0;
    explain_rejected(s, h, &rec, host_alive(s, h->uuid) == 1, why);
    return -EKEYREJECTED;
}

int host_lock(const struct store *s, const struct host *h, struct why *why)
{
    _cleanup_close_ int fd = -1;
    struct copy c;
    int r;

    if (!base_uuid_ok(h->uuid))
        return explain_failed(s, h, -EINVAL, why);
    r = bind_or_reject(s, h, why);
    if (r < 0)
        return r;
    fd = lock_open(s, h->uuid);
    if (fd == -EAGAIN) {
        explain_busy(s, h->uuid, why);
        return -EBUSY;
    }
    r = fd < 0 ? fd : record_load(fd, h->uuid, &c);
    /* An earlier run of ours may have linked the record and not reached the fsync. */
    if (r == 0)
        r = io_fsync(s->hosts_fd);
    if (r < 0)
        return explain_failed(s, h, r, why);
    if (strcmp(c.rec.installation, h->installation) != 0) { /* it was bound anew since the first
                                                               look */
        explain_rejected(s, h, &c.rec, false, why);
        return -EKEYREJECTED;
    }
    return base_steal_fd(&fd);
}

int host_lock_force(const struct store *s, const struct host *h, struct why *why)
{
    int fd;

    if (!base_uuid_ok(h->uuid))
        return explain_failed(s, h, -EINVAL, why);
    fd = lock_open(s, h->uuid);
    if (fd == -EAGAIN) {
        explain_busy(s, h->uuid, why);
        return -EBUSY;
    }
    return fd < 0 ? explain_failed(s, h, fd, why) : fd;
}

/* ---- all of them ---- */

struct each {
    const struct store *s;
    int (*fn)(void *arg, const struct host_record *rec, int err);
    void *arg;
};

static int each_name(void *arg, const char *name)
{
    const struct each *e = arg;
    struct host_record rec;
    int r;

    if (!base_uuid_ok(name))
        return 0;
    r = host_record_read(e->s, name, &rec);
    if (r == -ENOENT) /* removed since the directory was read */
        return 0;
    if (r < 0) {
        memset(&rec, 0, sizeof(rec));
        memcpy(rec.uuid, name, sizeof(rec.uuid));
    }
    return e->fn(e->arg, &rec, r);
}

int host_each(const struct store *s, int (*fn)(void *arg, const struct host_record *rec, int err),
              void *arg)
{
    struct each e = {s, fn, arg};

    return io_fresh_dir(s->hosts_fd, each_name, &e);
}

struct lock_all {
    const struct store *s;
    const char *const *mine;
    struct host_locks *l;
    char *alive;
    struct why *why;
};

static bool is_locked(const struct lock_all *a, const char *uuid)
{
    for (const char *const *m = a->mine; m && *m; m++)
        if (strcmp(*m, uuid) == 0)
            return true;
    for (size_t i = 0; i < a->l->n; i++)
        if (strcmp(a->l->uuid[i], uuid) == 0)
            return true;
    return false;
}

static int lock_one(void *arg, const struct host_record *rec, int err)
{
    struct lock_all *a = arg;
    struct host other = {.uuid = ""};
    int *fds, fd;
    dg_uuid *uuids;

    (void)err; /* one that does not decode is locked, too */
    if (is_locked(a, rec->uuid))
        return 0;
    fds = reallocarray(a->l->fd, a->l->n + 1, sizeof(*fds));
    a->l->fd = fds ? fds : a->l->fd;
    uuids = reallocarray(a->l->uuid, a->l->n + 1, sizeof(*uuids));
    a->l->uuid = uuids ? uuids : a->l->uuid;
    if (!fds || !uuids)
        return -ENOMEM;
    memcpy(other.uuid, rec->uuid, sizeof(other.uuid));
    fd = host_lock_force(a->s, &other, a->why);
    if (fd < 0) {
        memcpy(a->alive, rec->uuid, sizeof(dg_uuid));
        return fd;
    }
    a->l->fd[a->l->n] = fd;
    memcpy(a->l->uuid[a->l->n++], rec->uuid, sizeof(dg_uuid));
    return 0;
}

int host_lock_all(const struct store *s, const char *const *mine, struct host_locks *l,
                  dg_uuid ret_alive, struct why *why)
{
    struct lock_all a = {s, mine, l, ret_alive, why};

    return host_each(s, lock_one, &a);
}

void host_unlock_all(struct host_locks *l)
{
    for (size_t i = 0; i < l->n; i++)
        close(l->fd[i]);
    free(l->fd);
    free(l->uuid);
    *l = (struct host_locks){0};
}
