/* fence.c: the fence lock of the descriptors that write a held image: taken before a look at the
 * claim, let go when the claim is lost. */
#include "guard/fence.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/hook.h"
#include "guard/held.h"
#include "guard/plain.h"
#include "guard/qemu_locks_priv.h"

int image_fence_fd(struct guard *g, struct image *img, int fd)
{
    int r = io_fence_shared(fd, g->store.fence);
    if (r < 0)
        return r == -EAGAIN ? -EBUSY : r;
    r = image_claim_rules(g, img);
    if (r < 0)
        io_fence_drop(fd, g->store.fence);
    return r;
}

/* ---- plain writers that become holders ---- */

/* A duplicate of a descriptor carries the same lock, and stays open while we are without img->lock.
 */
static int fence_writers(struct guard *g, struct image *img)
{
    int r = 0;
    unsigned n = 0, max = 0;
    mutex_lock(&img->lock);
    for (struct handle *h = img->writers; h; h = h->next_writer)
        max++;
    int *fds = calloc(max + 1, sizeof(*fds));
    if (!fds)
        r = -ENOMEM;
    for (struct handle *h = img->writers; h && r == 0; h = h->next_writer) {
        fds[n] = fcntl(h->fd, F_DUPFD_CLOEXEC, 0);
        if (fds[n] < 0)
            r = -errno;
        else
            n++;
    }
    mutex_unlock(&img->lock);
    for (unsigned k = 0; k < n && r == 0; k++) {
        HOOK("image.fence.adopt");
        r = io_fence_shared(fds[k], g->store.fence);
    }
    if (r == 0 && n > 0)
        r = image_claim_rules(g, img);
    for (unsigned k = 0; k < n; k++) {
        if (r < 0)
            /* none of them will be guarded, and a plain handle's own lock would be in our way later
             * on */
            io_fence_drop(fds[k], g->store.fence);
        close(fds[k]);
    }
    free(fds);
    return r == -EAGAIN ? -EBUSY : r;
}

int image_adopt_writers(struct guard *g, struct image *img)
{
    int r = fence_writers(g, img);
    if (r == -CLAIM_LOST) { /* it is somebody's image, and they write it as a plain file */
        image_plain_bar(img);
        guard_attention(g);
    }
    if (r < 0)
        return r;
    mutex_lock(&img->lock);
    for (struct handle *h = img->writers; h; h = h->next_writer) {
        if (!atomic_exchange(&h->guarded, true))
            img->n_guarded++;
    }
    mutex_unlock(&img->lock);
    return 0;
}

/* ---- descriptors of a fenced image ---- */

/* Not an unlock: a write that has passed its check but not yet reached the storage would then land
 * without a lock. What is under way on the old open file keeps that, and its lock, until it has
 * failed or ended; what comes later meets a descriptor that cannot write. */
void image_make_read_only(const struct handle *h)
{
    int fd = io_reopen(h->inode->fd, O_RDONLY | (h->flags & O_DIRECT));
    if (fd < 0)
        fd = fcntl(h->inode->fd, F_DUPFD_CLOEXEC, 0); /* O_PATH: neither reads nor writes */
    int r = fd < 0 ? fd : handle_replace_fd(fd, h->fd);
    if (r < 0)
        log_debug("a fenced handle keeps its descriptor: %s", strerror(-r));
}

static struct handle *next_fenced(struct image *img)
{
    mutex_lock(&img->lock);
    struct handle *h = img->state == IMAGE_FENCED ? img->writers : NULL;
    while (h && (h->fence.revoked || !atomic_load(&h->guarded)))
        h = h->next_writer;
    if (h)
        h->fence.revoked = h->fence.busy = true;
    mutex_unlock(&img->lock);
    return h;
}

static bool is_fenced(struct image *img)
{
    mutex_lock(&img->lock);
    bool fenced = img->state == IMAGE_FENCED;
    mutex_unlock(&img->lock);
    return fenced;
}

void image_revoke(struct image *img)
{
    if (!is_fenced(img)) /* most never are, and need not wait for the header */
        return;
    int plain_fd = -1, seal_fd = -1;
    rwlock_write(&img->header);
    mutex_lock(&img->lock);
    /* Still? Else it may be the next hold's descriptor by now. */
    bool fenced = img->state == IMAGE_FENCED;
    if (fenced)
        plain_fd = image_plain_revoke_locked(img);
    mutex_unlock(&img->lock);
    if (fenced) {
        image_qemu_drop(img);
        seal_fd = image_held_fd(img, -1);
    }
    rwlock_write_unlock(&img->header);
    if (plain_fd >= 0)
        close(plain_fd);
    if (seal_fd >= 0)
        close(seal_fd);
    for (struct handle *h = next_fenced(img); h; h = next_fenced(img)) {
        image_make_read_only(h);
        mutex_lock(&img->lock);
        h->fence.busy = false;
        cond_broadcast(&img->moved);
        mutex_unlock(&img->lock);
    }
}

/* ---- a lost claim ---- */

/* Who has it now, for the log line. */
static void log_successor(struct guard *g, struct image *img)
{
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    char text[512];
    if (!c)
        return;
    mutex_lock(&img->lock);
    uint64_t ours = img->info.generation;
    mutex_unlock(&img->lock);
    int r = claim_read_known(&g->store, img->inode->ino, ours, c);
    if (r < 0)
        snprintf(text, sizeof(text), "whose claim rules now cannot be read: %s", strerror(-r));
    else if (c->generation < ours)
        snprintf(
            text, sizeof(text),
            "nobody has taken it over: the claim of generation %llu was removed on the datastore. The journal of this host keeps the true header: close the image, unmount the view, then run fsck.diskguard -y",
            (unsigned long long)ours);
    else if (c->kind == CLAIM_BAD)
        snprintf(text, sizeof(text), "the claim of generation %llu that rules now does not decode",
                 (unsigned long long)c->generation);
    else if (c->generation == ours)
        snprintf(
            text, sizeof(text),
            "nobody has taken it over: the claim of generation %llu is there again, %s. Close the image and open it again",
            (unsigned long long)ours, c->kind == CLAIM_FREE ? "but is free" : "and is this host's");
    else
        snprintf(text, sizeof(text), "host %s (%s) took it over with generation %llu, and %s",
                 c->rec.host_name, c->rec.host, (unsigned long long)c->generation,
                 c->kind == CLAIM_FREE ? "has let it go again" : "has it now");
    image_log_state(
        g, img, LOG_CRIT,
        "FENCED: the claim of this host is gone or was taken over; every write from here is refused with EIO until the holder has closed it. `diskguardctl why` names the new holder",
        0);
    image_log_state(g, img, LOG_CRIT, text, 0);
}

void image_fence(struct guard *g, struct image *img)
{
    mutex_lock(&img->lock);
    bool now = img->state == IMAGE_SEALED;
    if (now) {
        image_held_stop(img);
        image_move_locked(g, img, IMAGE_FENCED, CLAIM_LOST);
    }
    mutex_unlock(&img->lock);
    if (!now)
        return;
    log_successor(g, img);
    image_revoke(img);
}
