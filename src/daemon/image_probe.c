/* image_probe.c: what a file is, and what is said of one that is refused. */
#include "daemon/image_priv.h"

#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

void image_path(struct daemon *d, const struct inode *i, char *ret, size_t size)
{
    char link[32], path[PATH_MAX];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", i->fd);
    ssize_t n = readlink(link, path, sizeof(path) - 1);
    path[n > 0 ? n : 0] = '\0';
    size_t root = strlen(d->store.path);
    const char *p = path;
    if (strncmp(path, d->store.path, root) == 0 && path[root] == '/')
        p += root + 1;
    snprintf(ret, size, "%.*s", (int)size - 1, p);
}

bool image_path_now(struct daemon *d, const struct inode *i, char *ret, size_t size)
{
    struct stat st;
    image_path(d, i, ret, size);
    _cleanup_close_ int fd = ret[0] == '/' ? -1 : io_fresh_open(d->store.root_fd, ret, O_PATH | O_NOFOLLOW);
    return fd >= 0 && io_fresh_stat(fd, &st) == 0 && st.st_ino == i->ino && st.st_dev == i->dev;
}

void image_log_closed(struct daemon *d, struct inode *i, const char *verb)
{
    struct image *img = image_get(i);
    if (!img || atomic_exchange(&img->closed_logged, true))
        return;
    struct stat st = {0};
    char path[PATH_MAX];
    image_path(d, i, path, sizeof(path));
    if (io_fresh_stat(i->fd, &st) < 0)
        st.st_mode = 0;
    char who[128];
    if (d->store.mapped)
        snprintf(who, sizeof(who), "the storage takes it, user %u, for user %u (NFS: root_squash)",
                 (unsigned)geteuid(), (unsigned)d->store.owner);
    else if (geteuid() == 0)
        snprintf(who, sizeof(who), "the storage refuses root, as NFS does with root_squash");
    else
        snprintf(who, sizeof(who), "it runs as user %u", (unsigned)geteuid());
    log_image(LOG_WARNING, path, NULL, 0,
              "refused with EACCES: diskguard itself may not %s '%s' (owner %u, mode %04o), so it cannot "
              "guard it: %s. Export with no_root_squash, or let that user "
              "read and write the file",
              verb, path, (unsigned)st.st_uid, (unsigned)(st.st_mode & 07777), who);
}

int image_header(struct daemon *d, struct inode *i, struct header *ret)
{
    _cleanup_close_ int fd = io_reopen(i->fd, O_RDONLY);
    if (fd == -EACCES || fd == -EPERM)
        image_log_closed(d, i, "read");
    if (fd < 0)
        return fd;
    int r = header_load(fd, ret);
    struct image *img = atomic_load(&i->image);
    if (r == 0 && img)
        image_zone_seen(img, &ret->info.zone);
    return r;
}

bool image_name_is_raw(const struct daemon *d, const char *name)
{
    static const char *const usual[] = {"*.img", "*.raw", NULL};
    const char *const *globs = usual;
    switch (d->opt.raw) {
    case RAW_ALL:
        return true;
    case RAW_NONE:
        return false;
    case RAW_GLOBS:
        globs = (const char *const *)d->opt.raw_globs;
        break;
    case RAW_AUTO:
        break;
    }
    for (; *globs; globs++)
        if (fnmatch(*globs, name, 0) == 0)
            return true;
    return false;
}

/* A file may have several names, and on shared storage get new ones behind our back: the one that the kernel asked for last counts as well as the
 * one under which it was first met, and once is for ever, so that a rename does not let a second writer in. */
static bool raw_by_name(struct daemon *d, struct inode *i)
{
    struct image *img = atomic_load(&i->image);
    char path[PATH_MAX], last[NAME_MAX + 1];
    if (img && atomic_load(&img->raw_named))
        return true;
    image_path(d, i, path, sizeof(path));
    inode_last_name(d->inodes, i, last, sizeof(last));
    const char *slash = strrchr(path, '/');
    bool raw = image_name_is_raw(d, slash ? slash + 1 : path) || image_name_is_raw(d, last);
    if (raw && img)
        atomic_store(&img->raw_named, true);
    return raw;
}

bool image_is_image(struct daemon *d, struct inode *i, const struct header *h)
{
    switch (h->verdict) {
    case FORMAT_PLAIN:
        return raw_by_name(d, i);
    case FORMAT_IMAGE: /* a partition table makes a raw image only where the admin lets it (raw=auto, raw=all)
                        */
        if (h->format->weak)
            return d->opt.raw == RAW_AUTO || raw_by_name(d, i);
        return true;
    default:
        return true;
    }
}

int image_probe(struct daemon *d, struct inode *i, enum image_what *ret)
{
    _cleanup_header_ struct header *h = header_new();
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    struct image *img = image_get(i); /* what is read here is to be remembered */
    struct image_look look;
    if (!h || !c || !img)
        return -ENOMEM;
    image_look_begin(d, img, &look);
    int r = image_header(d, i, h);
    if (r < 0)
        return r;
    *ret = image_is_image(d, i, h) ? IMAGE_WHAT_IMAGE : IMAGE_WHAT_PLAIN;
    if (i->dev != d->store.dev)
        return 0;
    /* While a footer or a whole header is on the move, and where its holder died then, sealed bytes lie where the header does not say: the claim does. */
    r = claim_read(&d->store, i->ino, c);
    if (r < 0)
        return r;
    image_look_end(img, &look, h, c);
    /* A disk of any name (image_disk.h) is one while it is held: what another host writes must not be read from this one's cache. */
    struct io_handle handle;
    if (*ret == IMAGE_WHAT_IMAGE || c->kind != CLAIM_HELD)
        return 0;
    if (io_handle_get(i->fd, &handle) < 0 || io_handle_equal(&c->rec.handle, &handle))
        *ret = IMAGE_WHAT_IMAGE;
    return 0;
}

/* ---- refusals ---- */

/* One line for a refusal that is final: what is wrong with the image, and the way out. */
void image_log_refused(struct daemon *d, struct inode *i, const char *what, const char *fmt, ...)
{
    char path[PATH_MAX], text[1024];
    image_path(d, i, path, sizeof(path));
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    log_image(LOG_WARNING, path, NULL, 0, "refused %s of '%s': %s", what, path, text);
}

/* Where the file is without a view, for a shell. */
static const char *raw_path(struct daemon *d, struct inode *i, char *ret, size_t size)
{
    char below[PATH_MAX], path[2 * PATH_MAX];
    image_path(d, i, below, sizeof(below));
    snprintf(path, sizeof(path), "%s/%s", d->store.path, below);
    return base_quote(path, ret, size);
}

void image_refused(struct daemon *d, struct inode *i, const struct opener *who, const char *what, int err)
{
    struct image *img = atomic_load(&i->image);
    if (!img || err != -EBUSY)
        return;
    mutex_lock(&img->lock);
    enum image_state state = img->state;
    struct opener holder = img->holder;
    struct image_rival rival = img->rival;
    char since[32], quoted[256], raw[1024];
    snprintf(since, sizeof(since), "%s", img->info.since);
    uint64_t generation = img->info.generation;
    mutex_unlock(&img->lock);

    if (state == IMAGE_IDLE && rival.fenced)
        image_log_refused(d, i, what,
                          "asked for by pid %llu; nobody's claim, but another host has this file open for "
                          "write, since before it was an image, or is just about to claim "
                          "or repair it: the storage did not grant the fence lock to host %s. It is free "
                          "when that host closes it; if you cannot find who has it open, look with "
                          "fuser -v on the other hosts. NFSv3 keeps the lock of a host that is off until "
                          "that host boots again or the server's lock manager is restarted",
                          (unsigned long long)who->pid, d->host.name);
    else if (state == IMAGE_IDLE && rival.outside)
        image_log_refused(d, i, what,
                          "asked for by pid %llu; nobody's claim, but a program outside of the views has it "
                          "open for write, or locked: "
                          "QEMU's own lock on the file says so. Stop that program; on its host fuser -v %s, "
                          "or lslocks, names it. NFSv3 keeps the lock of a host that is off until that host "
                          "boots again or the server's lock manager is restarted",
                          (unsigned long long)who->pid, raw_path(d, i, raw, sizeof(raw)));
    else if ((state == IMAGE_IDLE || state == IMAGE_SEALED) && rival.reads)
        image_log_refused(
            d, i, what,
            "asked for by pid %llu; %s on host %s, pid %llu, reads it since %s and wants no writer beside it "
            "(QEMU's byte locks 100 and 201 say so; option readers=). It is free when that is closed there; "
            "if that host is down for good: fsck.diskguard --takeover %s --confirm-host-is-down %s",
            (unsigned long long)who->pid, rival.needs, rival.host_name, (unsigned long long)rival.pid,
            rival.since, rival.host, base_quote(d->store.path, quoted, sizeof(quoted)));
    else if ((state == IMAGE_IDLE || state == IMAGE_SEALED) && rival.needs[0])
        image_log_refused(
            d, i, what,
            "asked for by pid %llu; %s, which host %s, pid %llu, holds since %s, generation %llu%s. "
            "It is free when that is closed there; if that host is down for good: fsck.diskguard --takeover "
            "%s --confirm-host-is-down %s",
            (unsigned long long)who->pid, rival.needs, rival.host_name, (unsigned long long)rival.pid,
            rival.since, (unsigned long long)rival.generation, rival.restoring ? ", being released" : "",
            rival.host, base_quote(d->store.path, quoted, sizeof(quoted)));
    else if (state == IMAGE_IDLE && rival.host_name[0])
        image_log_refused(
            d, i, what,
            "asked for by pid %llu; held by host %s (%s), pid %llu, since %s, generation %llu%s. It "
            "is free when that host closes "
            "it; if that host is down for good: fsck.diskguard --takeover %s --confirm-host-is-down %s",
            (unsigned long long)who->pid, rival.host_name, rival.host, (unsigned long long)rival.pid,
            rival.since, (unsigned long long)rival.generation, rival.restoring ? ", being released" : "",
            rival.host, base_quote(d->store.path, quoted, sizeof(quoted)));
    else if (state == IMAGE_STUCK || state == IMAGE_FENCED)
        image_log_refused(d, i, what,
                          "asked for by pid %llu; the image is %s on this host (%s); see diskguardctl why",
                          (unsigned long long)who->pid, image_state_name(state), d->host.name);
    else
        image_log_refused(
            d, i, what,
            "asked for by pid %llu; held by host %s (this host), pid %llu, since %s, generation "
            "%llu. One process at a time may "
            "write an image (option writers=)",
            (unsigned long long)who->pid, d->host.name, (unsigned long long)holder.pid, since,
            (unsigned long long)generation);
}

bool image_being_released(struct inode *i)
{
    struct image *img = atomic_load(&i->image);
    if (!img)
        return false;
    mutex_lock(&img->lock);
    bool r = img->state == IMAGE_RESTORING ||
             (img->state == IMAGE_IDLE && (img->rival.restoring || img->plain_busy));
    mutex_unlock(&img->lock);
    return r;
}

bool image_held_elsewhere(struct inode *i)
{
    struct image *img = atomic_load(&i->image);
    if (!img)
        return false;
    mutex_lock(&img->lock);
    bool r = img->state == IMAGE_IDLE && img->rival.host_name[0] && !img->rival.needs[0];
    mutex_unlock(&img->lock);
    return r;
}
