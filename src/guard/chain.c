/* chain.c: the files that an image needs (backing chain, data file, extents) are protected while it
 * is held. The rule and why it is sound: core/dependency.h.
 *
 * Who holds the other file is read from its claim on the datastore, which names host and process:
 * no other image's lock is ever taken here. */
#include "guard/chain.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/hook.h"
#include "core/dependency.h"
#include "core/link_name.h"
#include "core/whereis.h"
#include "guard/conflict.h"
#include "guard/held.h"
#include "guard/refuse.h"
#include "guard/shared.h"
#include "guard/walk.h"

#define CHAIN_MAX 256 /* files: more than any chain that QEMU opens in reasonable time */
#define HASH_START UINT64_C(14695981039346656037)
/* looked at for a file below that has moved, when a directory is renamed */
#define NEEDED_NAMES_MAX 20000u
#define NEEDED_MS 1000u
#define FENCE_TRIES 5

/* ---- names ---- */

/* Where the kernel last found it: relative names begin there. */
static void image_dir(struct guard *g, struct inode *i, char ret[PATH_MAX])
{
    char name[NAME_MAX + 1];
    struct inode *dir = inode_last_place(g->inodes, i, name, sizeof(name));
    image_path(g, dir ? dir : i, ret, PATH_MAX);
    char *slash = strrchr(ret, '/');
    if (!dir)
        *(slash ? slash : ret) = '\0';
    else if (strcmp(ret, g->store.path) == 0)
        ret[0] = '\0';
    inode_put(g->inodes, dir);
}

/* ---- the chain ---- */

struct chain_item {
    struct chain_item *next;
    /* of the image that names it, as a hypervisor spells it: absolute, or below the datastore */
    char *dir;
    struct format_link link;
};

struct chain {
    struct guard *g;
    struct image *img;
    const struct record *rec; /* of the image above */
    const struct opener *who;
    struct conflict *conflict; /* of the request */
    bool late;                 /* the image was written already: nothing is refused any more */
    bool doubt; /* what is below some file could not be told: then no former dependency goes */
    struct chain_item *todo;
    const char *dir; /* for add_item() */
    struct chain_item **at;
    unsigned n;
    uint64_t seen[CHAIN_MAX];
};

static const char *role_name(enum link_role role)
{
    return role == LINK_BACKING ? "backing file" : role == LINK_DATA ? "data file" : "extent";
}

static int add_item(void *arg, const struct format_link *link)
{
    struct chain *c = arg;
    struct chain_item *i = calloc(1, sizeof(*i));
    char *dir = strdup(c->dir);
    if (!i || !dir) {
        free(i);
        free(dir);
        return -ENOMEM;
    }
    *i = (struct chain_item){.next = *c->at, .dir = dir, .link = *link};
    *c->at = i;
    c->at = &i->next;
    return 0;
}

static bool told_before(struct image_table *t, uint64_t what)
{
    bool told = false;
    mutex_lock(&t->lock);
    for (size_t k = 0; k < IMAGE_TOLD_MAX && !told; k++)
        told = t->told[k] == what;
    if (!told)
        t->told[t->n_told++ % IMAGE_TOLD_MAX] = what;
    mutex_unlock(&t->lock);
    return told;
}

static uint64_t hash_text(uint64_t h, const char *p) /* FNV-1a */
{
    do
        h = (h ^ (uint8_t)*p) * UINT64_C(1099511628211);
    while (*p++);
    return h;
}

/* Once for each image and name, not at each open. */
static void say_unprotected(const struct chain *c, const char *role, const char *name,
                            const char *why)
{
    if (!told_before(c->g->images, hash_text(HASH_START ^ c->rec->ino, name)))
        log_image(LOG_WARNING, c->rec->image, c->g->host.name, c->rec->generation,
                  "'%s': its %s '%s' is not protected: %s", c->rec->image, role, name, why);
}

/* In front of all that is still to do, so that the walk goes into the depth first. */
static int add_links(struct chain *c, int fd, struct header *h, const struct plan *plan,
                     const char *dir)
{
    int r = h->format && h->format->links && h->verdict != FORMAT_MORE ? -EAGAIN : 0;
    c->dir = dir;
    c->at = &c->todo;
    while (r == -EAGAIN) {
        struct excerpt v = header_view(h);
        r = h->format->links(&v, add_item, c);
        if (r != -EAGAIN)
            break;
        r = header_add(fd, h, v.want_off, v.want_len);
        if (r == 0 && plan)
            header_patch(h, plan, true);
        r = r == 0 ? -EAGAIN : r;
    }
    if (r != -EUCLEAN)
        return r;
    c->doubt = true;
    /* A damaged header has worse to say; one that is just being written says more with its next
     * write, or with the next open. */
    if (h->verdict != FORMAT_LIES && !c->late)
        say_unprotected(c, "file that it needs", "?", "its name cannot be followed");
    return 0;
}

/* Who has the file below? 0: nobody whom it matters. */
static int look_below(struct chain *c, int fd, uint64_t ino, const char *path, const char *role)
{
    _cleanup_free_ struct claim *claim = malloc(sizeof(*claim));
    struct io_handle handle;
    int r = claim ? claim_read(&c->g->store, ino, claim) : -ENOMEM;
    if (r == 0)
        r = io_handle_get(fd, &handle);
    if (r < 0 || claim->kind == CLAIM_NONE || claim->kind == CLAIM_FREE)
        return r;
    bool bad = claim->kind == CLAIM_BAD;
    if (!bad && (!io_handle_equal(&claim->rec.handle, &handle) ||
                 image_own_claim(c->g, &claim->rec, c->who)))
        return 0;
    if (c->late) {
        log_image(
            LOG_ERR, c->rec->image, c->g->host.name, c->rec->generation,
            "'%s' was written so that it needs '%s' (%s), which host %s, pid %llu, has open for write since %s: what the image shows may change, or is broken already. Close it there, then check",
            c->rec->image, path, role, bad ? "?" : claim->rec.host_name,
            bad ? 0ULL : (unsigned long long)claim->rec.pid, bad ? "?" : claim->rec.since);
        return 0;
    }
    if (bad) {
        image_log_refused(
            c->g, c->img->inode, "open for write",
            "it needs '%s' (%s), whose claim %016llx.%llu cannot be read; see fsck.diskguard %s",
            path, role, (unsigned long long)ino, (unsigned long long)claim->generation,
            c->g->store.path);
        return -EUCLEAN;
    }
    char how[64];
    snprintf(how, sizeof(how), "it needs its %s", role);
    conflict_linked(c->conflict, how, path, &claim->rec);
    return -EBUSY;
}

/* ---- a file below that somebody writes as a plain file: no claim says so, but the fence lock does
 * (plain.c) ---- */

struct plain_look {
    const struct chain *c;
    uint64_t ino;
    bool own;   /* a handle of a process that may */
    bool other; /* of another process of this host */
};

static void plain_handle(void *arg, struct handle *h)
{
    struct plain_look *l = arg;
    if (!h->writer || h->inode->ino != l->ino || h->inode->dev != l->c->g->store.dev ||
        atomic_load(&h->barred.err))
        return;
    bool may = l->c->g->opt.writers == WRITERS_HOST || opener_same(&h->opener, l->c->who);
    l->own |= may;
    /* of one that is held, the claim has said who may */
    l->other |= !may && !atomic_load(&h->guarded);
}

/* Two holders that look at the same moment refuse each other the lock: so a few times. */
static int try_fence(const struct guard *g, int fd)
{
    int r = io_fence_exclusive(fd, g->store.fence);
    for (unsigned k = 1; r == -EAGAIN && k < FENCE_TRIES; k++) {
        io_fence_pause();
        r = io_fence_exclusive(fd, g->store.fence);
    }
    return r;
}

static int look_plain(struct chain *c, int fd, uint64_t ino, const char *path, const char *role)
{
    struct plain_look l = {.c = c, .ino = ino};
    _cleanup_close_ int lock_fd = io_reopen(fd, O_RDWR);
    if (lock_fd < 0)
        /* who may not write it here cannot ask; the monitor of the writer's host bars him at its
         * next round */
        return 0;
    handle_each(c->g->handles, plain_handle, &l);
    int r = l.other ? -EAGAIN : l.own ? 0 : try_fence(c->g, lock_fd);
    if (r != -EAGAIN)
        return r;
    if (c->late) {
        log_image(
            LOG_ERR, c->rec->image, c->g->host.name, c->rec->generation,
            "'%s' was written so that it needs '%s' (%s), which is open for write as a plain file",
            c->rec->image, path, role);
        return 0;
    }
    char how[48];
    snprintf(how, sizeof(how), "somebody writes its %s", role);
    conflict_linked(c->conflict, how, path, NULL);
    if (c->conflict)
        snprintf(c->conflict->host_name, sizeof(c->conflict->host_name), "%s",
                 l.other ? c->g->host.name : "(another; look with fuser -v)");
    return -EBUSY;
}

/* Before it is made, so that a failure leaves none behind that is not known. */
static int note_below(struct image *img, uint64_t ino)
{
    for (size_t k = 0; k < img->chain.n_below; k++)
        if (img->chain.below[k] == ino)
            return 0;
    uint64_t *more =
        reallocarray(img->chain.below, img->chain.n_below + 1, sizeof(*img->chain.below));
    if (!more)
        return -ENOMEM;
    img->chain.below = more;
    img->chain.below[img->chain.n_below++] = ino;
    return 0;
}

static int make_dependency(struct chain *c, uint64_t ino, const char *path, const char *role)
{
    struct dependency m = {.below = ino, .above = c->rec->ino, .generation = c->rec->generation};
    char text[2048];
    snprintf(text, sizeof(text), "diskguard-mark 1\nrole=%s\nbelow=%.800s\nabove=%.800s\nhost=%s\n",
             role, path, c->rec->image, c->rec->host_name);
    int r = note_below(c->img, ino);
    return r < 0 ? r : dependency_make(&c->g->store, &m, text);
}

static bool is_seen(const struct chain *c, uint64_t ino)
{
    for (unsigned k = 0; k < c->n; k++)
        if (c->seen[k] == ino)
            return true;
    return false;
}

static bool seen(struct chain *c, uint64_t ino)
{
    if (is_seen(c, ino))
        return true;
    if (c->n < CHAIN_MAX)
        c->seen[c->n++] = ino;
    return false;
}

/* Nobody can open such a name, or it is not ours to protect: QEMU will say so itself. */
static bool is_absent(int err)
{
    return err == -ENOENT || err == -ENOTDIR || err == -ELOOP || io_err_denied(err) ||
           err == -EXDEV || err == -ENAMETOOLONG || err == -ENXIO;
}

static int not_protected(struct chain *c, const char *role, const char *name, int err)
{
    if (err == -ETIMEDOUT && !c->late)
        image_log_refused(
            c->g, c->img->inode, "open for write",
            "its %s '%s' leads through a file system of this host that does not answer within %u s, so nothing tells whether it lies in the datastore",
            role, name, WALK_MS / 1000);
    if (!is_absent(err))
        return err;
    c->doubt |= err != -EXDEV;
    if (err == -EXDEV)
        say_unprotected(c, role, name, "it lies outside of the datastore");
    else if (io_err_denied(err))
        say_unprotected(c, role, name, "diskguard may not follow the name");
    else
        log_debug("%s: its %s '%s' is not protected: %s", c->rec->image, role, name,
                  strerror(-err));
    return 0;
}

struct one_name {
    struct chain *c;
    const struct chain_item *item;
    struct walk *w;
    int r; /* what do_file() said */
};

/* Makes a file of the chain a dependency, and looks who writes it; then come those that it needs.
 * dir: where its own names begin. */
static int do_file(struct chain *c, int fd, const struct stat *st, const char *done,
                   const char *dir, const char *role)
{
    if (st->st_ino == c->rec->ino || seen(c, st->st_ino))
        return 0;
    if (c->n == CHAIN_MAX)
        log_msg(LOG_WARNING, "%s: its chain has more than %u files: those beyond are not protected",
                c->rec->image, CHAIN_MAX);
    const char *slash = strrchr(done, '/');
    bool shared = image_name_is_shared(c->g, slash ? slash + 1 : done);
    if (shared)
        say_unprotected(c, role, done, "many hosts may write it on purpose (shared=)");
    int r = shared ? 0 : make_dependency(c, st->st_ino, done, role);
    HOOK("chain.look");
    if (r == 0)
        r = look_below(c, fd, st->st_ino, done, role);
    _cleanup_header_ struct header *h = header_new();
    if (r == 0 && !h)
        r = -ENOMEM;
    if (r == 0)
        r = header_load(fd, h);
    if (r == 0 && h->verdict == FORMAT_PLAIN && !shared)
        r = look_plain(c, fd, st->st_ino, done, role);
    if (r < 0)
        return r;
    c->doubt |=
        h->verdict != FORMAT_IMAGE && h->verdict != FORMAT_SEALED && h->verdict != FORMAT_PLAIN;
    return add_links(c, fd, h, NULL, dir);
}

/* The working directory of the process that opens the image: it alone knows what it counts such
 * names from. */
static bool working_dir(const struct opener *who, char ret[PATH_MAX])
{
    char link[48];
    snprintf(link, sizeof(link), "/proc/%llu/cwd", (unsigned long long)who->pid);
    ssize_t n = who->pid ? readlink(link, ret, PATH_MAX - 1) : -1;
    ret[n > 0 ? n : 0] = '\0';
    return n > 0 && ret[0] == '/';
}

static int do_path(void *arg, const char *path, bool from_cwd)
{
    struct one_name *o = arg;
    struct chain *c = o->c;
    const char *role = role_name(o->item->link.role), *dir = o->item->dir;
    char cwd[PATH_MAX], below[PATH_MAX];
    struct stat st;
    if (from_cwd && path[0] != '/' && working_dir(c->who, cwd))
        dir = cwd;
    _cleanup_close_ int fd = image_walk(c->g, dir, path, o->w);
    int r = fd < 0 ? fd : io_fresh_stat(fd, &st);
    if (r == 0 && (!S_ISREG(st.st_mode) || st.st_dev != c->g->store.dev))
        r = -EXDEV;
    if (r == 0)
        r = image_walk_dir(dir, path, below);
    o->r = r < 0 ? not_protected(c, role, o->item->link.path, r)
                 : do_file(c, fd, &st, o->w->done, below, role);
    return o->r;
}

static int do_item(struct chain *c, const struct chain_item *i, struct walk *w)
{
    struct one_name o = {.c = c, .item = i, .w = w};
    int r = link_name(i->link.path, do_path, &o);
    if (o.r < 0 || r == -ENOMEM)
        return o.r < 0 ? o.r : r;
    c->doubt |= r == -EUCLEAN;
    if (r < 0)
        say_unprotected(c, role_name(i->link.role), i->link.path,
                        r == -EXDEV ? "it is not, or not all of it, a file of this host"
                                    : "the name cannot be followed");
    return 0;
}

static uint64_t links_hash(const struct chain_item *i)
{
    uint64_t h = HASH_START;
    for (; i; i = i->next)
        h = hash_text(h, i->link.path);
    return h;
}

static int chain_run(struct chain *c)
{
    _cleanup_free_ struct walk *w = malloc(sizeof(*w));
    int r = w ? 0 : -ENOMEM;
    while (r == 0 && c->todo && c->n < CHAIN_MAX) {
        struct chain_item *i = c->todo;
        c->todo = i->next;
        r = do_item(c, i, w);
        free(i->dir);
        free(i);
    }
    return r;
}

/* All that the chain needs now is protected. The files that dropped out of it are free, once no
 * crash can bring back the header that needs them. */
static void drop_former(struct chain *c)
{
    struct image_chain *chain = &c->img->chain;
    size_t kept = 0;
    int r = io_fsync(c->img->held.fd);
    for (size_t k = 0; k < chain->n_below; k++) {
        if (r == 0 && !is_seen(c, chain->below[k]))
            r = dependency_drop(&c->g->store, c->rec->ino, c->rec->generation, &chain->below[k], 1);
        if (r < 0 || is_seen(c, chain->below[k]))
            chain->below[kept++] = chain->below[k];
    }
    chain->n_below = kept;
    if (r < 0)
        log_image(
            LOG_WARNING, c->rec->image, c->g->host.name, c->rec->generation,
            "'%s' was written so that it may need fewer files than before: they stay protected until it is closed: %s",
            c->rec->image, strerror(-r));
}

void image_chain_begin(struct image *img)
{
    free(img->chain.below);
    img->chain = (struct image_chain){0};
}

struct image_below image_chain_take(struct image *img)
{
    struct image_below r = {img->chain.below, img->chain.n_below};
    img->chain.below = NULL;
    img->chain.n_below = 0;
    return r;
}

/* The true header of a sealed image. */
static int load_true(struct image *img, struct header *h)
{
    int r = header_read(img->held.fd, &img->held.rec->plan, h);
    if (r < 0)
        return r;
    header_patch(h, &img->held.rec->plan, true);
    header_identify(h);
    return h->verdict == FORMAT_MORE ? header_settle(img->held.fd, h) : 0;
}

/* The chain of the header h, which is loaded. */
static int protect_chain(struct chain *c, struct header *h)
{
    struct image *img = c->img;
    char dir[PATH_MAX];
    c->doubt = h->verdict != FORMAT_IMAGE && h->verdict != FORMAT_SEALED;
    image_dir(c->g, img->inode, dir);
    int r = add_links(c, img->held.fd, h, &img->held.rec->plan, dir);
    uint64_t hash = r == 0 ? links_hash(c->todo) : 0;
    bool changed = hash != img->chain.links, former = c->late && changed && img->chain.n_below > 0;
    if (r == 0 && c->todo && (!c->late || changed))
        r = chain_run(c);
    if (r == 0 && former && !c->doubt && !c->todo)
        drop_former(c);
    if (r == 0)
        img->chain.links = hash;
    return r;
}

int image_chain_protect(struct guard *g, struct image *img, const struct opener *who,
                        struct header *h, struct conflict *ret)
{
    _cleanup_header_ struct header *own = h ? NULL : header_new();
    struct chain *c = calloc(1, sizeof(*c));
    int r = !c || (!h && !own) ? -ENOMEM : 0;
    if (r == 0 && !h)
        r = load_true(img, own);
    else if (r == 0 && h->verdict == FORMAT_MORE)
        r = header_settle(img->held.fd, h);
    if (r == 0) {
        *c = (struct chain){
            .g = g, .img = img, .rec = img->held.rec, .who = who, .conflict = ret, .late = !h};
        r = protect_chain(c, h ? h : own);
    }
    while (c && c->todo) {
        struct chain_item *i = c->todo;
        c->todo = i->next;
        free(i->dir);
        free(i);
    }
    free(c);
    return r;
}

void image_chain_edited(struct guard *g, struct image *img, const struct opener *who)
{
    int r = image_chain_protect(g, img, who, NULL, NULL);
    if (r < 0)
        log_image(
            LOG_ERR, img->held.rec->image, g->host.name, img->held.rec->generation,
            "'%s' was written so that it may need other files than before, and they could not be protected: %s. They are from its next open on",
            img->held.rec->image, strerror(-r));
}

void image_chain_drop(struct guard *g, uint64_t ino, uint64_t generation, struct image_below *b)
{
    int r = dependency_drop(&g->store, ino, generation, b->ino, b->n);
    free(b->ino);
    *b = (struct image_below){0};
    if (r < 0)
        log_debug("marks of %016llx.%llu stay, void: %s", (unsigned long long)ino,
                  (unsigned long long)generation, strerror(-r));
}

/* ---- the other side ---- */

int image_chain_needed(struct guard *g, struct image *img, const struct opener *who,
                       struct conflict *ret)
{
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    _cleanup_free_ struct dependency *m = NULL;
    size_t n = 0;
    HOOK("chain.list");
    int r = c ? dependency_list(&g->store, img->inode->ino, &m, &n) : -ENOMEM;
    for (size_t k = 0; r == 0 && k < n; k++) {
        r = m[k].above == img->inode->ino ? 0 : dependency_counts(&g->store, &m[k], c);
        if (r <= 0)
            continue;
        r = 0;
        if (c->kind == CLAIM_HELD && image_own_claim(g, &c->rec, who))
            continue;
        if (c->kind == CLAIM_BAD)
            memset(&c->rec, 0, sizeof(c->rec));
        char above[RECORD_IMAGE_MAX + 16] = "?";
        if (c->kind == CLAIM_HELD)
            whereis_name(&g->store, c->rec.ino, &c->rec.handle, c->rec.image, above, sizeof(above));
        conflict_linked(ret, "it is needed by", above, &c->rec);
        r = -EBUSY;
    }
    return r;
}

/* A rename loses nothing, so nobody need be kept out for it: whoever comes to need the file between
 * this look and the rename finds no file, or has opened it already; the name can be given back. */
int image_moving(struct guard *g, struct inode *i, const struct opener *who, struct conflict *ret)
{
    struct image *img = S_ISREG(i->type) && i->dev == g->store.dev ? image_get(i) : NULL;
    return img ? image_chain_needed(g, img, who, ret) : 0;
}

int image_each_needed(struct guard *g, const struct opener *who,
                      int (*fn)(void *arg, const char *path), void *arg)
{
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    _cleanup_free_ struct whereis *w = NULL;
    _cleanup_free_ struct dependency *m = NULL;
    char was[PATH_MAX];
    size_t n = 0, n_w = 0;
    int r = c ? dependency_list(&g->store, 0, &m, &n) : -ENOMEM;
    if (r == 0 && n > 0)
        r = (w = calloc(n, sizeof(*w))) ? 0 : -ENOMEM;
    for (size_t k = 0; r == 0 && k < n; k++) {
        r = dependency_counts(&g->store, &m[k], c);
        bool other = r > 0 && !(c->kind == CLAIM_HELD && image_own_claim(g, &c->rec, who));
        r = r < 0 ? r : 0;
        if (!other || dependency_path(&g->store, &m[k], was, sizeof(was)) < 0)
            continue;
        w[n_w] = (struct whereis){.ino = m[k].below, .was = strdup(was)};
        r = w[n_w++].was ? 0 : -ENOMEM;
    }
    if (r == 0 && n_w > 0)
        whereis(&g->store, w, n_w, NEEDED_NAMES_MAX, NEEDED_MS);
    for (size_t k = 0; k < n_w; k++) {
        if (r == 0 && w[k].now) /* where one is that was not found cannot be told: the rename loses
                                   nothing */
            r = fn(arg, w[k].now);
        free((char *)w[k].was);
        free(w[k].now);
    }
    return r;
}

int image_chain_guards(struct guard *g, const struct inode *i)
{
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    _cleanup_free_ struct dependency *m = NULL;
    size_t n = 0;
    int r = !c ? -ENOMEM : i->dev == g->store.dev ? dependency_list(&g->store, i->ino, &m, &n) : 0;
    for (size_t k = 0; r == 0 && k < n; k++)
        r = dependency_counts(&g->store, &m[k], c);
    return r;
}
