/* image_disk.c: a plain file whose writer says that it is a disk. See image_disk.h. */
#include "guard/first.h"
#include "guard/image.h"

#include "base/hook.h"

static bool is_exempt(const struct daemon *d, const struct handle *h)
{
    return d->opt.raw == RAW_NONE || atomic_load(&h->shared) || h->inode->dev != d->store.dev ||
           !S_ISREG(h->inode->type);
}

bool image_disk_said(const struct daemon *d, const struct handle *h, const struct flock *lock)
{
    return lock->l_type != F_UNLCK && lock->l_start == IMAGE_DISK_BYTE && lock->l_len == 1 &&
           (atomic_load(&h->writer) || image_first_expected(h)) && !is_exempt(d, h);
}

/* Without a name nobody else can reach it. */
static int has_name(const struct handle *h)
{
    struct stat st;
    int r = io_fresh_stat(h->fd, &st);
    return r < 0 ? r : st.st_nlink > 0;
}

/* One attempt. -EAGAIN: the file changed meanwhile, from the start. */
static int claim_once(struct daemon *d, struct image *img, struct handle *h)
{
    if (atomic_load(&d->stopping) || image_others_write(d, img, &h->opener))
        return -EBUSY;
    HOOK("image.disk.begin");
    if (!image_begin(d, img))
        return atomic_load(&h->guarded) ? 0 : -EBUSY;
    /* as a plain file until a moment ago; nobody can any more */
    if (image_others_write(d, img, &h->opener)) {
        image_end(d, img);
        return -EBUSY;
    }
    struct acquire a = {.who = &h->opener, .what = IMAGE_DISK_LOCK, .plain_too = true, .judge = true};
    return image_claim_plain(d, img, &a, false);
}

int image_disk_claim(struct daemon *d, struct handle *h)
{
    struct image *img = image_get(h->inode);
    if (!img)
        return -ENOMEM;
    /* A manager has opened it for a virtual machine: that writes from now on. */
    int r = image_first_change(d, h);
    if (r < 0 || atomic_load(&h->guarded) || is_exempt(d, h))
        return r;
    r = has_name(h);
    if (r <= 0)
        return r;
    image_set_rival(img, NULL);
    r = -EAGAIN;
    for (unsigned n = 0; n < IMAGE_CHANGED_MAX && r == -EAGAIN; n++)
        r = claim_once(d, img, h);
    if (r == -EAGAIN || (r == 0 && !atomic_load(&h->guarded)))
        return -EBUSY;
    /* What the kernel keeps of the file may be older than what another host wrote before. No request waits for this one with a page locked. */
    if (r == 0)
        (void)fuse_lowlevel_notify_inval_inode(d->se, h->inode->nodeid, 0, 0);
    return r;
}
