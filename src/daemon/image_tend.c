/* image_tend.c: what the keeper does with each image that is not IDLE. */
#include "daemon/image_priv.h"

#include <string.h>

/* What is known of a held image, read without image->lock. */
struct look {
    struct record rec;
    int gone; /* store_gone() */
    bool lost;
};

static bool look(struct daemon *d, struct image *img, struct look *ret)
{
    rwlock_read(&img->header);
    bool held = img->rec && img->fd >= 0;
    if (held) {
        ret->rec = *img->rec;
        ret->gone = store_gone(&d->store, img->fd, &img->rec->handle);
    }
    rwlock_read_unlock(&img->header);
    ret->lost = held && ret->gone != 1 && claim_check(&d->store, &ret->rec) == -ESTALE;
    return held;
}

/* Is the claim of a SEALED or VANISHED image still ours, and the image still there? VANISHED is a hint for people: the last close looks again. */
static void check_claim(struct daemon *d, struct image *img)
{
    _cleanup_free_ struct look *l = calloc(1, sizeof(*l));
    if (!l || !look(d, img, l))
        return;
    mutex_lock(&img->lock);
    /* A release or a new hold in between has another generation, or another state: then this look says
     * nothing. */
    bool same = !img->closed && img->info.generation == l->rec.generation;
    bool vanished = same && img->state == IMAGE_SEALED && l->gone == 1;
    bool back = same && img->state == IMAGE_VANISHED && l->gone == 0;
    if (vanished)
        image_move_locked(d, img, IMAGE_VANISHED, 0);
    if (back)
        image_move_locked(d, img, IMAGE_SEALED, 0);
    if (vanished || back)
        img->vanished = vanished;
    mutex_unlock(&img->lock);
    if (vanished)
        image_log_state(d, img, LOG_WARNING, "VANISHED: removed on the datastore while it is held here", 0);
    if (back)
        image_log_state(d, img, LOG_NOTICE, "the datastore has it again: it is held as before", 0);
    if (same && l->lost)
        image_fence(d, img);
}

/* A copy that grows behind its header looks like a lie until its tables are there, and has no seal until
 * then. */
static void seal_late(struct daemon *d, struct image *img)
{
    mutex_lock(&img->lock);
    bool late = img->state == IMAGE_SEALED && !img->closed && !img->info.sealed &&
                strcmp(img->info.format, "raw") != 0 && strcmp(img->info.format, "none") != 0;
    mutex_unlock(&img->lock);
    if (!late)
        return;
    int r = 0;
    rwlock_write(&img->header);
    mutex_lock(&img->lock);
    late = img->state == IMAGE_SEALED; /* a release may have begun */
    mutex_unlock(&img->lock);
    if (late && img->rec && img->fd >= 0 && img->rec->plan.n == 0) {
        struct seal s = image_seal(d, img);
        struct edit nothing = {.kind = EDIT_WRITE};
        r = image_lost(d, img, seal_edit(&s, &nothing));
        image_note(img);
    }
    rwlock_write_unlock(&img->header);
    if (r == -ESTALE)
        image_fence(d, img);
    else if (r < 0)
        image_log_state(d, img, LOG_WARNING,
                        "its header is complete now but could not be sealed; it is tried again", r);
}

static void tend_one(struct daemon *d, struct image *img)
{
    mutex_lock(&img->lock);
    enum image_state state = img->state;
    int error = img->info.error;
    if (state == IMAGE_STUCK) {
        image_move_locked(d, img, IMAGE_RESTORING, error);
    }
    mutex_unlock(&img->lock);
    if (state == IMAGE_STUCK) {
        if (image_restore(d, img) == 0)
            log_msg(LOG_NOTICE, "an image that was STUCK is restored and free again");
    } else if (state == IMAGE_SEALED || state == IMAGE_VANISHED) {
        check_claim(d, img);
        seal_late(d, img);
    }
}

void image_tend(struct daemon *d)
{
    unsigned n;
    struct image **list = image_busy_list(d, &n);
    for (unsigned k = 0; k < n; k++) {
        struct inode *i = list[k]->inode;
        tend_one(d, list[k]);
        inode_put(d->inodes, i);
    }
    free(list);
    image_tend_plain(d);
}
