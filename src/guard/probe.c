/* probe.c: what a file is, and what is said of one that is refused. */
#include "guard/image.h"

#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "guard/shared.h"
#include <sys/stat.h>

void image_path(struct guard *g, const struct inode *i, char *ret, size_t size)
{
    char link[32], path[PATH_MAX];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", i->fd);
    ssize_t n = readlink(link, path, sizeof(path) - 1);
    path[n > 0 ? n : 0] = '\0';
    size_t root = strlen(g->store.path);
    const char *p = path;
    if (strncmp(path, g->store.path, root) == 0 && path[root] == '/')
        p += root + 1;
    snprintf(ret, size, "%.*s", (int)size - 1, p);
}

bool image_path_now(struct guard *g, const struct inode *i, char *ret, size_t size)
{
    struct stat st;
    image_path(g, i, ret, size);
    _cleanup_close_ int fd =
        ret[0] == '/' ? -1 : io_fresh_open(g->store.root_fd, ret, O_PATH | O_NOFOLLOW);
    return fd >= 0 && io_fresh_stat(fd, &st) == 0 && st.st_ino == i->ino && st.st_dev == i->dev;
}

/* Where the file is without a view, for a shell. */
static const char *raw_path(struct guard *g, struct inode *i, char *ret, size_t size)
{
    char below[PATH_MAX], path[2 * PATH_MAX];
    image_path(g, i, below, sizeof(below));
    snprintf(path, sizeof(path), "%s/%s", g->store.path, below);
    return base_quote(path, ret, size);
}

/* A flag of the file that no user passes: not even root, whatever the owner and the mode. NULL:
 * none. */
static const char *flag_of(const struct inode *i)
{
    struct statx stx;
    if (statx(i->fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stx) < 0)
        return NULL;
    return stx.stx_attributes & STATX_ATTR_IMMUTABLE ? "immutable (chattr +i)"
           : stx.stx_attributes & STATX_ATTR_APPEND  ? "for appending only (chattr +a)"
                                                     : NULL;
}

void image_log_closed(struct guard *g, struct inode *i, const char *verb)
{
    struct image *img = image_get(i);
    const char *flag = flag_of(i);
    char quoted[1024];
    if (flag) {
        image_log_refused(
            g, i, "a change",
            "EPERM: the file is %s on the datastore, so nobody may %s it. Way out: chattr %s %s",
            flag, verb, strstr(flag, "+i") ? "-i" : "-a", raw_path(g, i, quoted, sizeof(quoted)));
        return;
    }
    if (!img || atomic_exchange(&img->closed_logged, true))
        return;
    struct stat st = {0};
    char path[PATH_MAX];
    image_path(g, i, path, sizeof(path));
    if (io_fresh_stat(i->fd, &st) < 0)
        st.st_mode = 0;
    char who[128];
    if (g->store.mapped)
        snprintf(who, sizeof(who), "the storage takes it, user %u, for user %u (NFS: root_squash)",
                 (unsigned)geteuid(), (unsigned)g->store.owner);
    else if (geteuid() == 0)
        snprintf(who, sizeof(who), "the storage refuses root, as NFS does with root_squash");
    else
        snprintf(who, sizeof(who), "it runs as user %u", (unsigned)geteuid());
    log_image(
        LOG_WARNING, path, NULL, 0,
        "refused with EACCES: diskguard itself may not %s '%s' (owner %u, mode %04o), so it cannot guard it: %s. Export with no_root_squash, or let that user read and write the file",
        verb, path, (unsigned)st.st_uid, (unsigned)(st.st_mode & 07777), who);
}

int image_header(struct guard *g, struct inode *i, struct header *ret)
{
    _cleanup_close_ int fd = io_reopen(i->fd, O_RDONLY);
    if (io_err_denied(fd))
        image_log_closed(g, i, "read");
    if (fd < 0)
        return fd;
    int r = header_load(fd, ret);
    struct image *img = atomic_load(&i->image);
    if (r == 0 && img)
        image_zone_seen(img, &ret->info.zone);
    return r;
}

bool image_name_is_raw(const struct guard *g, const char *name)
{
    static const char *const usual[] = {"*.img", "*.raw", NULL};
    const char *const *globs = usual;
    switch (g->opt.raw) {
    case RAW_ALL:
        return true;
    case RAW_NONE:
        return false;
    case RAW_GLOBS:
        globs = (const char *const *)g->opt.raw_globs;
        break;
    case RAW_AUTO:
        break;
    }
    for (; *globs; globs++)
        if (fnmatch(*globs, name, 0) == 0)
            return true;
    return false;
}

/* A file may have several names, and on shared storage get new ones behind our back: the one that
 * the kernel asked for last counts as well as the one under which it was first met, and once is for
 * ever, so that a rename does not let a second writer in. */
static bool raw_by_name(struct guard *g, struct inode *i)
{
    struct image *img = atomic_load(&i->image);
    char path[PATH_MAX], last[NAME_MAX + 1];
    if (img && atomic_load(&img->raw_named))
        return true;
    image_path(g, i, path, sizeof(path));
    inode_last_name(g->inodes, i, last, sizeof(last));
    const char *slash = strrchr(path, '/');
    bool raw = image_name_is_raw(g, slash ? slash + 1 : path) || image_name_is_raw(g, last);
    if (raw && img)
        atomic_store(&img->raw_named, true);
    return raw;
}

bool image_is_image(struct guard *g, struct inode *i, const struct header *h)
{
    if (image_shared_exempt(g, i, h))
        return false;
    switch (h->verdict) {
    case FORMAT_PLAIN:
        return raw_by_name(g, i);
    case FORMAT_IMAGE: /* a partition table makes a raw image only where the admin lets it
                        * (raw=auto, raw=all)
                        */
        if (h->format->weak)
            return g->opt.raw == RAW_AUTO || raw_by_name(g, i);
        return true;
    default:
        return true;
    }
}

int image_probe(struct guard *g, struct inode *i, enum image_what *ret)
{
    _cleanup_header_ struct header *h = header_new();
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    struct image *img = image_get(i); /* what is read here is to be remembered */
    struct image_look look;
    if (!h || !c || !img)
        return -ENOMEM;
    image_look_begin(g, img, &look);
    int r = image_header(g, i, h);
    if (r < 0)
        return r;
    *ret = image_is_image(g, i, h) ? IMAGE_WHAT_IMAGE : IMAGE_WHAT_PLAIN;
    if (i->dev != g->store.dev)
        return 0;
    /* While a footer or a whole header is on the move, and where its holder died then, sealed bytes
     * lie where the header does not say: the claim does. */
    r = claim_read(&g->store, i->ino, c);
    if (r < 0)
        return r;
    image_look_end(img, &look, h, c);
    /* A disk of any name (disk.h) is one while it is held: what another host writes must not be
     * read from this one's cache. */
    struct io_handle handle;
    if (*ret == IMAGE_WHAT_IMAGE || c->kind != CLAIM_HELD)
        return 0;
    if (io_handle_get(i->fd, &handle) < 0 || io_handle_equal(&c->rec.handle, &handle))
        *ret = IMAGE_WHAT_IMAGE;
    return 0;
}

/* ---- refusals ---- */

/* A line that says the same of the same image as one a moment ago is not repeated: programs try
 * again and again. How often, the next one says. */
#define SAID_AGAIN_MS 60000u

static uint64_t sum_of(const char *text)
{
    uint64_t h = 14695981039346656037u; /* FNV-1a, its published constants */
    for (; *text; text++)
        h = (h ^ (unsigned char)*text) * 1099511628211u;
    return h;
}

/* Is it time to say it? *ret_more: how often it was not said since the last time. */
static bool may_say(struct image *img, const char *text, unsigned *ret_more)
{
    uint64_t sum = sum_of(text), now = base_now_ms();
    struct image_said *oldest = &img->said[0], *same = NULL;
    *ret_more = 0;
    mutex_lock(&img->lock);
    for (unsigned k = 0; k < IMAGE_SAID_MAX; k++) {
        struct image_said *s = &img->said[k];
        if (s->at_ms != 0 && s->sum == sum)
            same = s;
        if (s->at_ms < oldest->at_ms)
            oldest = s;
    }
    bool say = !same || now - same->at_ms >= SAID_AGAIN_MS;
    if (!say) {
        same->more++;
    } else {
        *ret_more = same ? same->more : 0;
        *(same ? same : oldest) = (struct image_said){.sum = sum, .at_ms = now};
    }
    mutex_unlock(&img->lock);
    return say;
}

void image_log_refused(struct guard *g, struct inode *i, const char *what, const char *fmt, ...)
{
    struct image *img = image_get(i);
    char path[PATH_MAX], text[1536], again[64] = "";
    unsigned more = 0;
    image_path(g, i, path, sizeof(path));
    int n = snprintf(text, sizeof(text), "refused %.100s of '%.400s': ", what, path);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text + n, sizeof(text) - (size_t)n, fmt, ap);
    va_end(ap);
    if (img && !may_say(img, text, &more))
        return;
    if (more > 0)
        snprintf(again, sizeof(again), " (and %u times more since this was said last)", more);
    log_image(LOG_WARNING, path, NULL, 0, "%s%s", text, again);
}

/* ", since TIME", where it is known. */
static const char *since_text(const char *since, char ret[48])
{
    snprintf(ret, 48, "%s%.32s", since[0] ? ", since " : "", since);
    return ret;
}

static const char *process_text(uint64_t pid, char ret[64])
{
    if (pid == 0)
        snprintf(ret, 64, "a process that this host cannot name");
    else
        snprintf(ret, 64, "pid %llu", (unsigned long long)pid);
    return ret;
}

/* What ends it: a host never confirms its own death. */
static const char *way_out(struct guard *g, const struct image_rival *v, char *ret, size_t size)
{
    char quoted[512];
    base_quote(g->store.path, quoted, sizeof(quoted));
    if (strcmp(v->host, g->host.uuid) == 0)
        snprintf(
            ret, size,
            "It is free when that is closed on this host; if that program is gone: diskguardctl why");
    else if (!v->host[0])
        snprintf(ret, size,
                 "It is free when that is closed; fuser -v on the file names the program");
    else
        snprintf(
            ret, size,
            "It is free when that is closed there; if that host is down for good: fsck.diskguard --takeover %s --confirm-host-is-down %s",
            v->host, quoted);
    return ret;
}

/* Nobody here has it: another host, a program past the views, or a claim above or below it. */
static void refused_by_rival(struct guard *g, struct inode *i, const struct opener *who,
                             const char *what, const struct image_rival *v)
{
    char raw[1024], out[1024], since[48], asks[64], has[64];
    process_text(who->pid, asks);
    process_text(v->pid, has);
    since_text(v->since, since);
    const char *bare = since + (since[0] != '\0'); /* without its comma */
    way_out(g, v, out, sizeof(out));
    const char *self = strcmp(v->host, g->host.uuid) == 0 ? " (this host)" : "";
    const char *released = v->restoring ? ", being released" : "";
    if (v->fenced)
        image_log_refused(
            g, i, what,
            "asked for by %s; nobody's claim, but another host has this file open for write, since before it was an image, or is just about to claim or repair it: the storage did not grant the fence lock to host %s. It is free when that host closes it; if you cannot find who has it open, look with fuser -v on the other hosts. NFSv3 keeps the lock of a host that is off until that host boots again or the server's lock manager is restarted",
            asks, g->host.name);
    else if (v->outside)
        image_log_refused(
            g, i, what,
            "asked for by %s; nobody's claim, but a program outside of the views has it open for write, or locked: QEMU's own lock on the file says so. Stop that program; on its host fuser -v %s, or lslocks, names it. NFSv3 keeps the lock of a host that is off until that host boots again or the server's lock manager is restarted",
            asks, raw_path(g, i, raw, sizeof(raw)));
    else if (v->reads)
        image_log_refused(
            g, i, what,
            "asked for by %s; %s on host %s, %s, reads it%s and wants no writer beside it (QEMU's byte locks 100 and 201 say so; option readers=). %s",
            asks, v->needs, v->host_name, has, bare, out);
    else if (v->needs[0] && !v->host[0])
        image_log_refused(g, i, what, "asked for by %s; %s, on host %s. %s", asks, v->needs,
                          v->host_name, out);
    else if (v->needs[0])
        image_log_refused(g, i, what,
                          "asked for by %s; %s, which host %s, %s, holds%s, generation %llu%s. %s",
                          asks, v->needs, v->host_name, has, bare,
                          (unsigned long long)v->generation, released, out);
    else
        image_log_refused(g, i, what,
                          "asked for by %s; held by host %s (%s)%s, %s%s, generation %llu%s. %s",
                          asks, v->host_name, v->host, self, has, since,
                          (unsigned long long)v->generation, released, out);
}

void image_refused(struct guard *g, struct inode *i, const struct opener *who, const char *what,
                   int err)
{
    struct image *img = atomic_load(&i->image);
    if (!img || err != -EBUSY)
        return;
    mutex_lock(&img->lock);
    enum image_state state = img->state;
    struct opener holder = img->holder;
    struct image_rival rival = img->rival;
    char since[32], asks[64], has[64], text[48];
    snprintf(since, sizeof(since), "%s", state == IMAGE_SEALED ? img->info.since : "");
    uint64_t generation = img->info.generation;
    mutex_unlock(&img->lock);

    process_text(who->pid, asks);
    process_text(holder.pid, has);
    bool beside = rival.reads || rival.needs[0]; /* of one that is held here, too */
    if ((state == IMAGE_IDLE && (rival.fenced || rival.outside || beside || rival.host_name[0])) ||
        (state == IMAGE_SEALED && beside))
        refused_by_rival(g, i, who, what, &rival);
    else if (state == IMAGE_IDLE)
        image_log_refused(
            g, i, what,
            "asked for by %s; %s of this host (%s) has it open for write, since before it was an image, or is just opening it. One process at a time may write an image (option writers=)",
            asks, has, g->host.name);
    else if (state == IMAGE_STUCK || state == IMAGE_FENCED)
        image_log_refused(
            g, i, what, "asked for by %s; the image is %s on this host (%s); see diskguardctl why",
            asks, image_state_name(state), g->host.name);
    else
        image_log_refused(
            g, i, what,
            "asked for by %s; held by host %s (this host), %s%s, generation %llu%s. One process at a time may write an image (option writers=). If that process is gone: diskguardctl why",
            asks, g->host.name, has, since_text(since, text), (unsigned long long)generation,
            state == IMAGE_RESTORING ? ", being released" : "");
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
