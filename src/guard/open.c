/* open.c: opens for write: the first one, one that joins, one of a plain file; holds for namespace
 * operations. */
#include "guard/open.h"

#include <fcntl.h>
#include <string.h>

#include "base/hook.h"
#include "guard/acquire.h"
#include "guard/chain.h"
#include "guard/conflict.h"
#include "guard/edit.h"
#include "guard/fence.h"
#include "guard/held.h"
#include "guard/maker.h"
#include "guard/manager.h"
#include "guard/plain.h"
#include "guard/probe.h"
#include "guard/readers_priv.h"
#include "guard/refuse.h"
#include "guard/restore.h"
#include "guard/shared.h"

/* ---- open for write ---- */

static int open_first(struct guard *g, struct image *img, struct handle *h, bool truncate,
                      struct conflict *ret)
{
    const struct taking t = {truncate ? TAKE_TO_EMPTY : TAKE_TO_WRITE, &h->opener, "open for write",
                             h};
    int r = image_take(g, img, &t, ret);
    if (r == 0)
        h->guarded = true;
    return r;
}

/* The holder, or one that has it open as well since it was a plain file and the holder's write made
 * it an image. */
static bool may_join(const struct image *img, const struct opener *who) REQUIRES(img->lock)
{
    bool r = opener_same(&img->holder, who);
    for (const struct handle *h = img->writers; h && !r; h = h->next_writer)
        r = atomic_load(&h->guarded) && opener_same(&h->opener, who);
    return r;
}

enum join { JOIN_TO_WRITE, JOIN_FOR_NAMES, JOIN_FOR_NAMES_ALONE /* not a byte changes */ };

/* A reservation in the hold of the process itself: no restore begins under us. What manages the
 * machines of this host may take a name from what one of them holds, as on the raw datastore
 * (libvirt removes the scratch file of a backup before QEMU closes it). false: not ours to join. */
static bool join(struct guard *g, struct image *img, const struct opener *who, enum join how,
                 struct conflict *ret)
{
    bool manager = how == JOIN_FOR_NAMES_ALONE && image_is_manager(g, who);
    mutex_lock(&img->lock);
    bool sealed = img->state == IMAGE_SEALED,
         may = sealed && !img->exclusive &&
               (g->opt.writers == WRITERS_HOST || manager || may_join(img, who));
    if (may) {
        img->n_guarded++;
        img->n_names += how != JOIN_TO_WRITE;
    } else {
        image_conflict_locked(img, ret);
    }
    mutex_unlock(&img->lock);
    return may;
}

/* -EBUSY: not ours to join. */
static int open_join(struct guard *g, struct image *img, struct handle *h, bool truncate,
                     struct conflict *ret)
{
    if (!join(g, img, &h->opener, JOIN_TO_WRITE, ret))
        return -EBUSY;
    HOOK("image.fence.join");
    int r = image_fence_fd(g, img, h->fd);
    if (r == 0 && truncate) {
        h->guarded = true; /* lets image_ftruncate take the guarded way */
        r = image_ftruncate(g, h, 0);
        h->guarded = false;
    }
    if (r == 0) {
        h->guarded = true;
        return 0;
    }
    if (r == -CLAIM_LOST)
        image_fence(g, img);
    image_unguard(g, img);
    return image_answer(r);
}

bool image_others_write(struct guard *g, struct image *img, const struct opener *who,
                        struct conflict *ret)
{
    bool r = false;
    mutex_lock(&img->lock);
    for (const struct handle *h = img->writers; h && g->opt.writers == WRITERS_PROCESS;
         h = h->next_writer) {
        if (!opener_same(&h->opener, who)) {
            image_conflict_locked(img, ret);
            if (ret && img->state == IMAGE_IDLE)
                ret->pid = h->opener.pid;
            r = true;
        }
    }
    mutex_unlock(&img->lock);
    return r;
}

/* A file that is not an image now. The handle is listed, so that it joins when a write turns the
 * file into one. */
static int open_plain(struct guard *g, struct image *img, struct handle *h, bool truncate,
                      struct conflict *ret)
{
    int r = image_plain_enter(g, img, h, ret);
    if (r < 0)
        return r;
    if (!image_writer_add(img, h, true)) {
        image_plain_leave(g, img, h);
        return -EBUSY;
    }
    image_shared_enter(g, img, h);
    return truncate && ftruncate(h->fd, 0) < 0 ? -errno : 0;
}

/* Where the fence will be had, plain_lock() looks once more under it. */
static int first_look(struct guard *g, struct handle *h, bool *ret_guarded)
{
    bool made = h->made && h->inode->dev == g->store.dev;
    *ret_guarded = h->made = false; /* when it comes again, somebody else knows the file */
    if (g->store.fence != FENCE_NONE && (made || image_is_free(g, h->inode, NULL)))
        return 0;
    return image_guarded_file(g, h, ret_guarded);
}

static int open_once(struct guard *g, struct image *img, struct handle *h, bool truncate,
                     struct conflict *ret)
{
    if (atomic_load(&g->stopping))
        return -EBUSY;
    int r;
    if (!image_is_idle(img)) {
        r = open_join(g, img, h, truncate, ret);
    } else {
        bool guarded;
        r = first_look(g, h, &guarded);
        if (r < 0)
            return r;
        if (!guarded)
            return open_plain(g, img, h, truncate, ret);
        if (image_others_write(g, img, &h->opener, ret) || !image_begin(g, img, ret))
            return -EBUSY;
        r = open_first(g, img, h, truncate, ret);
        if (r == -EAGAIN)
            r = -EBUSY; /* the file changed under us: another try, from the start */
    }
    if (r == 0) {
        if (truncate && g->makers)
            maker_note(g->makers, h->inode, &h->opener);
        (void)image_writer_add(img, h, false);
        image_revoke(img); /* if it was FENCED before the handle was listed */
    }
    return r;
}

int image_open(struct guard *g, struct handle *h, bool truncate, struct conflict *ret_conflict)
{
    struct image *img = image_get(h->inode);
    if (!img)
        return -ENOMEM;
    conflict_set(ret_conflict, CONFLICT_NONE);
    int r = open_once(g, img, h, truncate, ret_conflict);
    if (r == -EBUSY)
        image_conflict_fill(img, ret_conflict);
    return r;
}

/* ---- holds ---- */

/* By the holder himself: claim and seal stay as they are until his last handle is closed. But not
 * of a file that another image needs, or another process's reader wants as it is: that he may write
 * it does not change what he may take from others. */
static int hold_own(struct guard *g, struct image *img, const struct opener *who, bool data,
                    struct hold *ret, struct conflict *ret_conflict)
{
    if (!join(g, img, who, data ? JOIN_FOR_NAMES : JOIN_FOR_NAMES_ALONE, ret_conflict))
        return -EBUSY;
    inode_pin(g->inodes, img->inode);
    *ret = (struct hold){.inode = img->inode, .claimed = true, .joined = true};
    int r = image_chain_needed(g, img, who, ret_conflict);
    if (r == 0) {
        rwlock_write(&img->header);
        r = image_reader_in_way(g, img, who, ret_conflict);
        rwlock_write_unlock(&img->header);
    }
    if (r < 0)
        image_unhold(g, ret);
    return r;
}

/* Ends what hold_own() began; says that the image has no name left, before the monitor finds out,
 * or the last close. */
static void own_done(struct guard *g, struct image *img)
{
    struct record rec;
    bool gone = false;
    rwlock_read(&img->header);
    if (img->held.recorded && img->held.fd >= 0) {
        packed_get(img->held.packed, &rec);
        gone = store_gone(&g->store, img->held.fd, &rec.handle) == 1;
    }
    rwlock_read_unlock(&img->header);
    mutex_lock(&img->lock);
    img->unlinked |= gone;
    img->n_names--;
    mutex_unlock(&img->lock);
}

static int hold_once(struct guard *g, struct image *img, const struct opener *who, const char *what,
                     bool data, struct hold *ret, struct conflict *ret_conflict)
{
    struct inode *i = img->inode;
    if (atomic_load(&g->stopping))
        return -EBUSY;
    if (!image_is_idle(img))
        return hold_own(g, img, who, data, ret, ret_conflict);
    /* Who changes bytes looks once more under the fence: truncate_plain(). */
    if ((!data || g->store.fence != FENCE_NONE) && image_is_free(g, i, NULL))
        return 0;
    bool guarded;
    int r = image_guarded_inode(g, i, &guarded);
    if (r == -ESTALE || r == -ENOENT)
        return 0; /* gone already: the operation itself will say so */
    if (r < 0)
        return r;
    if (!guarded || i->dev != g->store.dev)
        return 0;
    if (!image_begin(g, img, ret_conflict))
        return -EBUSY;

    const struct taking t = {TAKE_FOR_NAMES, who, what, NULL};
    r = image_take(g, img, &t, ret_conflict);
    if (r < 0)
        return r == -EAGAIN ? -EBUSY : r;
    inode_pin(g->inodes, i);
    *ret = (struct hold){.inode = i, .claimed = true};
    return 0;
}

int image_hold(struct guard *g, struct inode *i, const struct opener *who, const char *what,
               bool data, struct hold *ret, struct conflict *ret_conflict)
{
    *ret = (struct hold){0};
    conflict_set(ret_conflict, CONFLICT_NONE);
    if (!S_ISREG(i->type))
        return 0;
    struct image *img = image_get(i);
    if (!img)
        return -ENOMEM;
    int r = hold_once(g, img, who, what, data, ret, ret_conflict);
    if (r == -EBUSY)
        image_conflict_fill(img, ret_conflict);
    return r;
}

void image_unhold(struct guard *g, struct hold *h)
{
    if (!h->inode)
        return;
    struct image *img = atomic_load(&h->inode->image);
    if (h->joined)
        own_done(g, img);
    /* a file without links is forgotten there: restore_steps, store_gone() */
    image_unguard(g, img);
    inode_put(g->inodes, h->inode);
    *h = (struct hold){0};
}

int image_hold_check(struct guard *g, const struct hold *h)
{
    if (!h->claimed)
        return 0;
    struct image *img = atomic_load(&h->inode->image);
    int r = image_claim_rules(g, img);
    if (r == -CLAIM_LOST)
        image_fence(g, img);
    return image_answer(r);
}

/* Of an image that is held for it: through the descriptor that carries the fence, so that the
 * storage refuses it when the lock is lost. */
static int truncate_held(struct guard *g, const struct hold *hold, uint64_t size)
{
    struct image *img = atomic_load(&hold->inode->image);
    HOOK("image.truncate.check");
    int r = image_hold_check(g, hold);
    if (r < 0)
        return r;
    HOOK("image.truncate");
    rwlock_write(&img->header);
    r = img->held.fd < 0 ? -EIO : io_header_truncate(img->held.fd, size);
    rwlock_write_unlock(&img->header);
    if (r == 0)
        image_held_wrote(img);
    return r;
}

/* Of a plain file nobody may make an image before it is done, and so it takes the fence and looks
 * again. */
static int truncate_plain(struct guard *g, struct inode *i, uint64_t size, struct conflict *ret)
{
    _cleanup_close_ int fd = inode_reopen(i, O_RDWR);
    bool guarded = false;
    int r = 0;
    if (fd < 0)
        return fd;
    if (S_ISREG(i->type) && i->dev == g->store.dev) {
        HOOK("image.fence.truncate");
        r = io_fence_shared(fd, g->store.fence);
        if (r == -EAGAIN) {
            conflict_set(ret, CONFLICT_FENCE);
            return -EBUSY;
        }
        if (r == 0 && g->store.fence != FENCE_NONE)
            r = image_guarded_inode(g, i, &guarded);
    }
    if (r < 0 || guarded)
        return r < 0 ? r : -EBUSY;
    return io_header_truncate(fd, size);
}

int image_truncate(struct guard *g, struct inode *i, const struct opener *who, uint64_t size,
                   struct conflict *ret_conflict)
{
    struct hold hold;
    struct file_probe what = {.fd = -1};
    int r = i->dev != g->store.dev ? image_probe(g, i, &what) : 0;
    if (r < 0)
        return r;
    if (what.what == IMAGE_WHAT_IMAGE) {
        image_log_foreign(g, i, "truncation");
        return -EXDEV;
    }
    r = image_hold(g, i, who, "truncation", true, &hold, ret_conflict);
    if (r < 0)
        return r;
    r = hold.joined    ? image_truncate_own(g, atomic_load(&i->image), who, size)
        : hold.claimed ? truncate_held(g, &hold, size)
                       : truncate_plain(g, i, size, ret_conflict);
    image_unhold(g, &hold);
    struct image *img = atomic_load(&i->image);
    if (r == -EBUSY && img)
        image_conflict_fill(img, ret_conflict);
    return r;
}
