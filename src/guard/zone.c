/* zone.c: where I/O on an image must be looked at (struct format_zone), and the changes of guest
 * data that go straight to a descriptor, which that place must not overtake: a seal written into a
 * range where such a change has passed its look and not yet landed would be planned from older
 * bytes.
 *
 * A direct change counts itself, then looks at the zone; whoever makes the zone wider publishes it,
 * then waits until each of the two counters was zero once. So one that counted itself too late to
 * be waited for sees the new zone. Every atomic here is sequentially consistent. Two counters, so
 * that new ones, which go to the other one, cannot keep the wait from ending. */
#include "guard/zone.h"

#include <fcntl.h>

#include "base/hook.h"

bool image_is_data(const struct handle *h, uint64_t off)
{
    const struct image *img = atomic_load(&h->inode->image);
    if (!img)
        return off >= FORMAT_REACH;
    struct format_zone zone = image_zone(img);
    return off >= zone.head && zone.tail == UINT64_MAX;
}

bool image_data_begin(struct handle *h, uint64_t off, uint64_t len) NO_THREAD_SAFETY_ANALYSIS
{
    struct image *img = atomic_load(&h->inode->image);
    if (!img || !atomic_load(&h->guarded))
        return false;
    rwlock_read(&img->header);
    struct format_zone zone = image_zone(img);
    if (off >= zone.head && off <= zone.tail && len <= zone.tail - off)
        return true;
    rwlock_read_unlock(&img->header);
    return false;
}

void image_data_end(struct handle *h) NO_THREAD_SAFETY_ANALYSIS
{
    struct image *img = atomic_load(&h->inode->image);
    rwlock_read_unlock(&img->header);
}

bool image_direct_begin(struct handle *h, uint64_t off, unsigned *ret_epoch)
{
    /* every handle that is open for write has one */
    struct image *img = atomic_load(&h->inode->image);
    if (!img)
        return false;
    unsigned epoch = atomic_load(&img->zone.epoch);
    atomic_fetch_add(&img->zone.n_direct[epoch], 1);
    *ret_epoch = epoch;
    if (image_is_data(h, off))
        return true;
    image_direct_end(h, epoch);
    return false;
}

void image_direct_end(struct handle *h, unsigned epoch)
{
    struct image *img = atomic_load(&h->inode->image);
    if (atomic_fetch_sub(&img->zone.n_direct[epoch], 1) != 1 || !atomic_load(&img->zone.draining))
        return;
    mutex_lock(&img->lock);
    cond_broadcast(&img->moved);
    mutex_unlock(&img->lock);
}

static void wait_zero(struct image *img, const atomic_uint *n)
{
    if (atomic_load(n) == 0)
        return;
    HOOK("image.drain");
    mutex_lock(&img->lock);
    atomic_store(&img->zone.draining, true);
    while (atomic_load(n) != 0)
        cond_wait(&img->moved, &img->lock);
    atomic_store(&img->zone.draining, false);
    mutex_unlock(&img->lock);
}

void image_drain(struct image *img)
{
    for (unsigned k = 0; k < 2; k++) {
        unsigned old = atomic_load(&img->zone.epoch);
        atomic_store(&img->zone.epoch, 1 - old);
        wait_zero(img, &img->zone.n_direct[old]);
    }
}

void image_zone_set(struct image *img, const struct format_zone *zone)
{
    struct format_zone was = image_zone(img);
    atomic_store(&img->zone.head, zone->head);
    atomic_store(&img->zone.tail, zone->tail);
    if (zone->head > was.head || zone->tail < was.tail) {
        atomic_fetch_add(&img->zone.grown, 1); /* for reads under way: image_revalidate() */
        image_drain(img);
    }
}

void image_zone_seen(struct image *img, const struct format_zone *zone)
{
    mutex_lock(&img->lock); /* while it is held, its holder's own edits say what it is */
    if (img->state == IMAGE_IDLE) {
        atomic_store(&img->zone.head, DG_MAX(atomic_load(&img->zone.head), zone->head));
        atomic_store(&img->zone.tail, DG_MIN(atomic_load(&img->zone.tail), zone->tail));
    }
    mutex_unlock(&img->lock);
}

struct format_zone image_zone(const struct image *img)
{
    return (struct format_zone){.head = atomic_load(&img->zone.head),
                                .tail = atomic_load(&img->zone.tail)};
}
