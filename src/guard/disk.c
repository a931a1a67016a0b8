/* disk.c: a plain file whose writer says that it is a disk. See disk.h. */
#include "guard/first.h"
#include "guard/image.h"
#include "guard/qemu_bytes.h"

#include "base/hook.h"

static bool is_exempt(const struct guard *g, const struct handle *h)
{
    return g->opt.raw == RAW_NONE || atomic_load(&h->shared) || h->inode->dev != g->store.dev ||
           !S_ISREG(h->inode->type);
}

bool image_disk_said(const struct guard *g, const struct handle *h, const struct flock *lock)
{
    return lock->l_type != F_UNLCK && lock->l_start == QEMU_WRITES && lock->l_len == 1 &&
           (atomic_load(&h->writer) || image_first_expected(h)) && !is_exempt(g, h);
}

/* Without a name nobody else can reach it. */
static int has_name(const struct handle *h)
{
    struct stat st;
    int r = io_fresh_stat(h->fd, &st);
    return r < 0 ? r : st.st_nlink > 0;
}

/* One attempt. -EAGAIN: the file changed meanwhile, from the start. */
static int claim_once(struct guard *g, struct image *img, struct handle *h)
{
    if (atomic_load(&g->stopping) || image_others_write(g, img, &h->opener))
        return -EBUSY;
    HOOK("image.disk.begin");
    if (!image_begin(g, img))
        return atomic_load(&h->guarded) ? 0 : -EBUSY;
    /* as a plain file until a moment ago; nobody can any more */
    if (image_others_write(g, img, &h->opener)) {
        image_end(g, img);
        return -EBUSY;
    }
    struct acquire a = {
        .who = &h->opener, .what = IMAGE_DISK_LOCK, .plain_too = true, .judge = true};
    return image_claim_plain(g, img, &a, false);
}

int image_disk_claim(struct guard *g, struct handle *h)
{
    struct image *img = image_get(h->inode);
    if (!img)
        return -ENOMEM;
    /* A manager has opened it for a virtual machine: that writes from now on. */
    int r = image_first_change(g, h);
    if (r < 0 || atomic_load(&h->guarded) || is_exempt(g, h))
        return r;
    r = has_name(h);
    if (r <= 0)
        return r;
    image_set_rival(img, NULL);
    r = -EAGAIN;
    for (unsigned n = 0; n < IMAGE_CHANGED_MAX && r == -EAGAIN; n++)
        r = claim_once(g, img, h);
    if (r == -EAGAIN || (r == 0 && !atomic_load(&h->guarded)))
        return -EBUSY;
    /* What the kernel keeps of the file may be older than what another host wrote before. No
     * request waits for this one with a page locked. */
    if (r == 0)
        guard_forget_pages(g, h->inode);
    return r;
}
