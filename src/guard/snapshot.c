/* snapshot.c: may bytes that a read took straight from the datastore be sealed ones? A host that
 * does not hold an image knows where it can be sealed (the zone) from its last look at claim and
 * header; meanwhile another host may have made an image of the file, or another image. So the bytes
 * are read first, and then it is asked whether that look, the last one before the read, still
 * counts.
 *
 * Why that is enough. A seal is written after its claim says where (DESIGN 5.1, I4), a claim
 * is changed by link(2) and rename(2) in its shard of claims/, and both, and each write of the
 * file, set a ctime. So while the ctime of that shard is what it was before the look, the claim has
 * not changed, and what is sealed lies where the claim of then says: in the zone. And while size
 * and ctime of the file are what they were before the look, not a byte of it has changed, whatever
 * happened to claims. Only bytes that somebody copies into the file behind the views, seal and all,
 * come without a claim: where a seal can lie at all (FORMAT_HEAD_MAX, FORMAT_TAIL_MAX), the file's
 * own ctime must be the same, too. */
#include "guard/snapshot.h"

#include "base/hook.h"
#include "core/shard.h"
#include "guard/zone.h"

/* A ctime is counted in ticks: two changes within one have the same. Linux takes a clock that goes
 * on with each timer interrupt (1 to 10 ms: ktime_get_coarse_real_ts64, current_time()), and some
 * file systems and servers keep whole seconds only: then the nanoseconds are 0. So a ctime tells of
 * every later change only when this host has known it for longer than a tick. CLOCK_MONOTONIC, ms;
 * with room for a server whose clock is being slewed. */
#define TICK_FINE_MS 100u
#define TICK_SECOND_MS 1100u

bool image_same_time(const struct timespec *a, const struct timespec *b)
{
    return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

bool image_stamp_note(struct image_stamp *s, const struct timespec *ctime, uint64_t now)
{
    if (s->since_ms == 0 || !image_same_time(&s->ctime, ctime)) {
        *s = (struct image_stamp){.ctime = *ctime, .since_ms = now};
        return false;
    }
    return now - s->since_ms > (ctime->tv_nsec ? TICK_FINE_MS : TICK_SECOND_MS);
}

/* Of the directory where each claim of that file is. */
int image_claims_stat(const struct guard *g, const struct inode *i, struct stat *ret)
{
    int fd = shard_fd(&g->store, SHARD_CLAIMS, i->ino);
    return fd < 0 ? fd : io_fresh_stat(fd, ret);
}

/* The file first: what is sealed after its attributes were fetched changes them, and what was
 * sealed before has changed the shard, whose attributes come after. */
void image_snapshot_begin(struct guard *g, struct image *img, struct image_snapshot *ret,
                          struct stat *ret_file)
{
    struct stat claims, file;
    HOOK("image.look"); /* so that tests can count them */
    *ret = (struct image_snapshot){0};
    if (img->inode->dev != g->store.dev || io_fresh_stat(img->inode->fd, &file) < 0 ||
        image_claims_stat(g, img->inode, &claims) < 0)
        return;
    if (ret_file)
        *ret_file = file;
    uint64_t now = base_now_ms();
    *ret = (struct image_snapshot){.valid = true,
                                   .size = (uint64_t)file.st_size,
                                   .ctime = file.st_ctim,
                                   .claims_ctime = claims.st_ctim};
    mutex_lock(&g->images->lock);
    ret->claims_settled =
        image_stamp_note(&g->images->claims[dg_shard(img->inode->ino)], &claims.st_ctim, now);
    mutex_unlock(&g->images->lock);
    mutex_lock(&img->lock);
    ret->settled = image_stamp_note(&img->snapshot.stamp, &file.st_ctim, now);
    mutex_unlock(&img->lock);
}

bool image_is_headless(const struct header *h)
{
    return h->verdict == FORMAT_PLAIN || (h->format && h->format->weak);
}

bool image_zone_is_far(const struct image *img)
{
    struct format_zone zone = image_zone(img);
    return zone.head > FORMAT_REACH || zone.tail != UINT64_MAX;
}

struct format_zone image_snapshot_zone(const struct header *h, const struct claim *c)
{
    struct format_zone zone = h->info.zone;
    if (c && c->kind == CLAIM_HELD)
        header_zone_cover(&zone, &c->rec.plan);
    return zone;
}

void image_snapshot_end(struct image *img, struct image_snapshot *look, const struct header *h,
                        const struct claim *c)
{
    struct format_zone zone = image_snapshot_zone(h, c);
    if (c && c->kind == CLAIM_BAD)
        look->clean = image_is_headless(h) && !image_zone_is_far(img);
    else
        look->clean = !(c && c->kind == CLAIM_HELD && c->rec.plan.n > 0) &&
                      h->verdict != FORMAT_SEALED && h->verdict != FORMAT_MORE;
    look->valid &= h->verdict != FORMAT_MORE;
    image_zone_seen(img, &zone);
    mutex_lock(&img->lock);
    if (img->state == IMAGE_IDLE)
        img->snapshot.last = *look;
    mutex_unlock(&img->lock);
}

struct image_known image_known_now(const struct handle *h)
{
    struct image *img = atomic_load(&h->inode->image);
    struct image_known r = {.zones = img ? atomic_load(&img->zone.grown) : 0};
    if (!img)
        return r;
    unsigned holds = atomic_load(&img->held.count), alone = atomic_load(&img->readers.epoch);
    if (alone != 0) {
        r.hold = alone | IMAGE_BY_READERS;
    } else if (atomic_load(&img->held.valid) && atomic_load(&img->held.io_error) == 0) {
        r.hold = holds & ~IMAGE_BY_READERS;
    } else {
        mutex_lock(&img->lock);
        r.look = img->snapshot.last;
        mutex_unlock(&img->lock);
    }
    return r;
}

/* How much from `off` on lies where no seal can be, in a file of that size. */
static uint64_t beyond_seals(uint64_t off, uint64_t len, uint64_t size)
{
    if (off < FORMAT_HEAD_MAX || size < FORMAT_TAIL_MAX || off >= size - FORMAT_TAIL_MAX)
        return 0;
    return DG_MIN(len, size - FORMAT_TAIL_MAX - off);
}

bool image_zone_touched(const struct format_zone *zone, uint64_t off, uint64_t len)
{
    return off < zone->head || off > zone->tail || len > zone->tail - off;
}

bool image_snapshot_covers(const struct image *img, const struct image_snapshot *look, uint64_t off,
                           uint64_t len)
{
    struct format_zone zone = image_zone(img);
    return !image_zone_touched(&zone, off, len) || (look->valid && look->clean);
}

uint64_t image_revalidate(struct guard *g, const struct handle *h, const struct image_known *began,
                          uint64_t off, uint64_t len)
{
    const struct inode *i = h->inode;
    const struct image *img = atomic_load(&i->image);
    const struct image_snapshot *look = &began->look;
    struct stat st;
    if (i->dev != g->store.dev)
        return len; /* nothing is sealed there */
    if (began->hold != 0) {
        struct image_known now = image_known_now(h);
        return now.hold == began->hold && now.zones == began->zones ? len : 0;
    }
    /* A plain writer has the fence: nobody can have claimed the file. */
    if (h->writer && h->plain.counted && !atomic_load(&h->guarded) && !atomic_load(&h->barred.err))
        return len;
    if (!img || !image_snapshot_covers(img, look, off, len))
        return 0;
    HOOK("read.stat"); /* so that tests can count them */
    if (io_fresh_stat(h->fd, &st) < 0)
        return 0;
    bool same = look->valid && (uint64_t)st.st_size == look->size &&
                image_same_time(&st.st_ctim, &look->ctime);
    if (same && look->settled)
        return len;
    uint64_t good = same ? len : beyond_seals(off, len, (uint64_t)st.st_size);
    if (good == 0 || !look->valid || !look->claims_settled || image_claims_stat(g, i, &st) < 0)
        return 0;
    return image_same_time(&st.st_ctim, &look->claims_ctime) ? good : 0;
}
