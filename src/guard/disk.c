/* disk.c: a plain file whose writer says that it is a disk. See disk.h. */
#include "guard/disk.h"

#include "base/hook.h"
#include "guard/acquire.h"
#include "guard/conflict.h"
#include "guard/edit.h"
#include "guard/first.h"
#include "guard/image.h"
#include "guard/manager.h"
#include "guard/open.h"
#include "guard/qemu_bytes.h"

static bool is_exempt(const struct guard *g, const struct handle *h)
{
    return g->opt.raw == RAW_NONE || atomic_load(&h->shared) || h->inode->dev != g->store.dev ||
           !S_ISREG(h->inode->type);
}

bool image_disk_said(const struct guard *g, const struct handle *h, const struct flock *lock)
{
    return lock->l_type != F_UNLCK && lock->l_start == QEMU_WRITES && lock->l_len == 1 &&
           (atomic_load(&h->writer) || image_manager_expected(h)) && !is_exempt(g, h);
}

/* Without a name nobody else can reach it. */
static int has_name(const struct handle *h)
{
    struct stat st;
    int r = io_fresh_stat(h->fd, &st);
    return r < 0 ? r : st.st_nlink > 0;
}

/* One attempt. -EAGAIN: the file changed meanwhile, from the start. */
static int claim_once(struct guard *g, struct image *img, struct handle *h, struct conflict *ret)
{
    if (atomic_load(&g->stopping) || image_others_write(g, img, &h->opener, ret))
        return -EBUSY;
    HOOK("image.disk.begin");
    if (!image_begin(g, img, ret))
        return atomic_load(&h->guarded) ? 0 : -EBUSY;
    /* as a plain file until a moment ago; nobody can any more */
    if (image_others_write(g, img, &h->opener, ret)) {
        image_end(g, img);
        return -EBUSY;
    }
    const struct taking t = {TAKE_AS_A_DISK, &h->opener, IMAGE_DISK_LOCK, NULL};
    return image_take(g, img, &t, ret);
}

static int claim(struct guard *g, struct handle *h, struct conflict *ret)
{
    struct image *img = image_get(h->inode);
    if (!img)
        return -ENOMEM;
    /* A manager has opened it for a virtual machine: that writes from now on. */
    int r = image_first_change(g, h, ret);
    if (r < 0 || atomic_load(&h->guarded) || is_exempt(g, h))
        return r;
    r = has_name(h);
    if (r <= 0)
        return r;
    r = -EAGAIN;
    for (unsigned n = 0; n < IMAGE_CHANGED_MAX && r == -EAGAIN; n++)
        r = claim_once(g, img, h, ret);
    if (r == -EAGAIN || (r == 0 && !atomic_load(&h->guarded)))
        return -EBUSY;
    /* What the kernel keeps of the file may be older than what another host wrote before. No
     * request waits for this one with a page locked. */
    if (r == 0)
        guard_forget_pages(g, h->inode);
    return r;
}

int image_disk_claim(struct guard *g, struct handle *h, struct conflict *ret_conflict)
{
    conflict_set(ret_conflict, CONFLICT_NONE);
    int r = claim(g, h, ret_conflict);
    if (r == -EBUSY)
        image_conflict_fill(atomic_load(&h->inode->image), ret_conflict);
    return r;
}
