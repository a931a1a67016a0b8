/* qemu_locks.c: QEMU's own locks: those of the guard, and how those of the view's programs go along
 * with them. See qemu_locks.h. */
#include "guard/qemu_locks.h"

#include <string.h>

#include "guard/image.h"
#include "guard/qemu_bytes.h"
#include "guard/qemu_locks_priv.h"

/* Index into qemu_owner.type. */
enum { USES_WRITE, NO_WRITE, NO_RESIZE };
static const off_t byte_at[IMAGE_QEMU_BYTES] = {
    [USES_WRITE] = QEMU_WRITES, [NO_WRITE] = QEMU_NO_WRITER, [NO_RESIZE] = QEMU_NO_RESIZE};
#define FIRST_GUARDED NO_WRITE /* the guard's are those from here on */

bool image_qemu_in(const struct inode *i, off_t start, off_t len)
{
    for (unsigned k = 0; k < IMAGE_QEMU_BYTES && S_ISREG(i->type); k++)
        if (qemu_byte_in(start, len, byte_at[k]))
            return true;
    return false;
}

bool image_qemu_says_write(const struct flock *lock)
{
    return qemu_byte_in(lock->l_start, lock->l_len, QEMU_WRITES);
}

void image_qemu_owner_init(struct qemu_owner *o)
{
    memset(o, 0, sizeof(*o));
    o->fd = -1;
    for (unsigned k = 0; k < IMAGE_QEMU_BYTES; k++)
        o->type[k] = F_UNLCK;
}

/* ---- one range on one descriptor ---- */

static int set_byte(int fd, short type, unsigned k)
{
    return io_user_lock(fd, type, byte_at[k], 1);
}

static int ask(int fd, short type, off_t start, off_t len, struct flock *ret)
{
    struct flock fl = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
    if (fd < 0)
        return fd;
    if (fcntl(fd, F_OFD_GETLK, &fl) < 0)
        return -errno;
    *ret = fl;
    return 0;
}

/* ---- the list ---- */

static struct qemu_owner *writer_of(const struct image *img, unsigned k)
    REQUIRES_SHARED(img->header)
{
    struct qemu_owner *o;
    LIST_FOREACH(o, &img->qemu.owners, entry)
        if (o->type[k] == F_WRLCK)
            return o;
    return NULL;
}

/* Another owner of the view whose lock stands in the way. */
static const struct qemu_owner *rival_of(const struct image *img, const struct qemu_owner *me,
                                         short type, unsigned k) REQUIRES_SHARED(img->header)
{
    const struct qemu_owner *o;
    LIST_FOREACH(o, &img->qemu.owners, entry)
        if (o != me && o->type[k] != F_UNLCK && (type == F_WRLCK || o->type[k] == F_WRLCK))
            return o;
    return NULL;
}

static void note(struct image *img, struct qemu_owner *o, short type, unsigned k)
    REQUIRES(img->header)
{
    o->type[k] = type;
    if (type != F_UNLCK && !atomic_exchange(&o->listed, true)) {
        LIST_INSERT_HEAD(&img->qemu.owners, o, entry);
    }
}

static void unlist(struct image *img, struct qemu_owner *o) REQUIRES(img->header)
{
    (void)img;
    if (atomic_exchange(&o->listed, false))
        LIST_REMOVE(o, entry);
}

/* ---- locks of the view's programs ---- */

/* A lock on one of the guard's bytes. What the storage has changes only with a write lock. */
static int set_guarded(struct image *img, struct qemu_owner *o, short type, unsigned k)
    REQUIRES(img->header)
{
    if (type != F_UNLCK && rival_of(img, o, type, k))
        return -EAGAIN;
    if ((type == F_WRLCK) != (o->type[k] == F_WRLCK)) {
        int r = set_byte(img->held.fd, type == F_WRLCK ? F_WRLCK : F_RDLCK, k);
        if (r < 0)
            return r;
    }
    note(img, o, type, k);
    return 0;
}

struct piece {
    off_t start, len;
};

/* What a range has beside the guard's bytes. Returns how many pieces. */
static unsigned pieces_of(off_t start, off_t len, struct piece ret[IMAGE_QEMU_BYTES])
{
    unsigned n = 0;
    for (unsigned k = FIRST_GUARDED; k < IMAGE_QEMU_BYTES; k++) {
        if (!qemu_byte_in(start, len, byte_at[k]))
            continue;
        off_t before = byte_at[k] - start;
        if (before > 0)
            ret[n++] = (struct piece){start, before};
        start += before + 1;
        len -= before + 1;
    }
    if (len > 0)
        ret[n++] = (struct piece){start, len};
    return n;
}

static int ask_pieces(int fd, short type, const struct piece *piece, unsigned n, struct flock *ret)
{
    *ret = (struct flock){.l_type = F_UNLCK};
    int r = 0;
    for (unsigned k = 0; k < n && r == 0 && ret->l_type == F_UNLCK; k++)
        r = ask(fd, type, piece[k].start, piece[k].len, ret);
    return r;
}

/* A lock of several pieces is not one to the storage: it is asked for all of them before the first
 * is taken, so that a refusal leaves what was there. */
static int set_pieces(int fd, short type, const struct piece *piece, unsigned n)
{
    int r = 0;
    if (type != F_UNLCK && n > 1) {
        struct flock found;
        r = ask_pieces(fd, type, piece, n, &found);
        if (r == 0 && found.l_type != F_UNLCK)
            r = -EAGAIN;
    }
    unsigned k = 0;
    for (; k < n && r == 0; k++)
        r = io_user_lock(fd, type, piece[k].start, piece[k].len);
    for (k = r < 0 && k > 0 && type != F_UNLCK ? k - 1 : 0; k-- > 0;)
        (void)io_user_lock(fd, F_UNLCK, piece[k].start, piece[k].len);
    return r;
}

static int set_beside_guard(struct image *img, struct qemu_owner *o, short type, off_t start,
                            off_t len) REQUIRES(img->header)
{
    struct piece piece[IMAGE_QEMU_BYTES];
    short was[IMAGE_QEMU_BYTES];
    memcpy(was, o->type, sizeof(was));
    int r = 0;
    for (unsigned k = FIRST_GUARDED; k < IMAGE_QEMU_BYTES && r == 0; k++)
        if (qemu_byte_in(start, len, byte_at[k]))
            r = set_guarded(img, o, type, k);
    if (r == 0)
        r = set_pieces(o->fd, type, piece, pieces_of(start, len, piece));
    for (unsigned k = FIRST_GUARDED; r < 0 && k < IMAGE_QEMU_BYTES; k++)
        if (o->type[k] != was[k] && set_guarded(img, o, was[k], k) < 0)
            log_debug("byte %lld: a lock that was refused is not as before", (long long)byte_at[k]);
    return r;
}

int image_qemu_set(struct inode *i, struct qemu_owner *o, int fd, short type, off_t start,
                   off_t len)
{
    struct image *img = image_get(i);
    if (!img)
        return -ENOMEM;
    rwlock_write(&img->header);
    o->fd = fd;
    bool beside = img->qemu.held;
    int r =
        beside ? set_beside_guard(img, o, type, start, len) : io_user_lock(fd, type, start, len);
    for (unsigned k = 0; k < IMAGE_QEMU_BYTES && r == 0; k++)
        if (qemu_byte_in(start, len, byte_at[k]) && (!beside || k < FIRST_GUARDED))
            note(img, o, type, k);
    rwlock_write_unlock(&img->header);
    return r;
}

static int get_beside_guard(struct image *img, const struct qemu_owner *o, int fd, short type,
                            off_t start, off_t len, struct flock *ret, pid_t *ret_pid)
    REQUIRES_SHARED(img->header)
{
    struct piece piece[IMAGE_QEMU_BYTES];
    int r = ask_pieces(fd, type, piece, pieces_of(start, len, piece), ret);
    for (unsigned k = FIRST_GUARDED; k < IMAGE_QEMU_BYTES && r == 0 && ret->l_type == F_UNLCK;
         k++) {
        if (!qemu_byte_in(start, len, byte_at[k]))
            continue;
        const struct qemu_owner *rival = rival_of(img, o, type, k);
        if (rival) {
            *ret = (struct flock){.l_type = rival->type[k], .l_start = byte_at[k], .l_len = 1};
            *ret_pid = (pid_t)atomic_load(&rival->pid);
        } else {
            r = ask(img->held.fd, type, byte_at[k], 1, ret);
            *ret_pid = 0;
        }
    }
    return r;
}

int image_qemu_get(struct inode *i, const struct qemu_owner *o, int fd, short type, off_t start,
                   off_t len, struct flock *ret, pid_t *ret_pid)
{
    struct image *img = image_get(i);
    if (!img)
        return -ENOMEM;
    *ret_pid = -1;
    rwlock_read(&img->header);
    int r = img->qemu.held ? get_beside_guard(img, o, fd, type, start, len, ret, ret_pid)
                           : ask(fd, type, start, len, ret);
    rwlock_read_unlock(&img->header);
    return r;
}

void image_qemu_forget(struct inode *i, struct qemu_owner *o)
{
    struct image *img = atomic_load(&i->image);
    if (!img || !atomic_load(&o->listed))
        return;
    rwlock_write(&img->header);
    for (unsigned k = 0; k < IMAGE_QEMU_BYTES; k++) {
        if (k >= FIRST_GUARDED && img->qemu.held && o->type[k] == F_WRLCK)
            (void)set_byte(img->held.fd, F_RDLCK, k);
        o->type[k] = F_UNLCK;
    }
    /* Here, under the lock: one that is not in the list and still has its lock would look like
     * somebody outside. */
    (void)io_user_lock(o->fd, F_UNLCK, 0, 0);
    unlist(img, o);
    rwlock_write_unlock(&img->header);
}

/* ---- the guard's own ---- */

/* From the owners' descriptors to the guard's. */
static int move_in(struct image *img, unsigned k) REQUIRES(img->header)
{
    struct qemu_owner *w = writer_of(img, k);
    if (w)
        (void)set_byte(w->fd, F_UNLCK, k);
    int r = set_byte(img->held.fd, w ? F_WRLCK : F_RDLCK, k);
    if (r < 0) {
        if (w && set_byte(w->fd, F_WRLCK, k) < 0)
            w->type[k] = F_UNLCK;
        return r;
    }
    const struct qemu_owner *o;
    LIST_FOREACH(o, &img->qemu.owners, entry)
        if (o->type[k] == F_RDLCK)
            (void)set_byte(o->fd, F_UNLCK, k);
    return 0;
}

/* And back. */
static void move_out(struct image *img, unsigned k) REQUIRES(img->header)
{
    struct qemu_owner *w = writer_of(img, k);
    if (w)
        (void)set_byte(img->held.fd, F_UNLCK, k);
    struct qemu_owner *o;
    LIST_FOREACH(o, &img->qemu.owners, entry) {
        int r = o->type[k] == F_UNLCK ? 0 : set_byte(o->fd, o->type[k], k);
        if (r < 0) {
            log_debug("byte %lld: a program's lock is lost: %s", (long long)byte_at[k],
                      strerror(-r));
            o->type[k] = F_UNLCK;
        }
    }
    (void)set_byte(img->held.fd, F_UNLCK, k);
}

static void tell(struct image *img) REQUIRES(img->header)
{
    mutex_lock(&img->lock);
    img->info.byte_locks = img->qemu.held;
    mutex_unlock(&img->lock);
}

void image_qemu_drop(struct image *img)
{
    if (!img->qemu.held)
        return;
    for (unsigned k = FIRST_GUARDED; k < IMAGE_QEMU_BYTES; k++)
        move_out(img, k);
    img->qemu.held = false;
    tell(img);
}

/* Has a QEMU outside of this view the file open for write? Asked through the one descriptor of this
 * view that has the byte locked, or, if there is none, through `fd`. Two have it only where QEMU
 * itself was content with that, and then it would have been refused beside one outside. */
static int outside_writer(struct image *img, int fd, bool *ret) REQUIRES(img->header)
{
    unsigned n = 0;
    const struct qemu_owner *o;
    LIST_FOREACH(o, &img->qemu.owners, entry) {
        if (o->type[USES_WRITE] != F_UNLCK) {
            fd = o->fd;
            n++;
        }
    }
    struct flock found = {.l_type = F_UNLCK};
    int r = n > 1 ? 0 : ask(fd, F_WRLCK, byte_at[USES_WRITE], 1, &found);
    *ret = r == 0 && found.l_type != F_UNLCK;
    return io_err_no_locks(r) ? 0 : r;
}

int image_qemu_take(struct image *img, bool hold)
{
    bool outside = false;
    int r = 0;
    /* As QEMU does it: say it first, then look. Of two that come at once at least one sees the
     * other. */
    for (unsigned k = FIRST_GUARDED; hold && !img->qemu.held && k < IMAGE_QEMU_BYTES && r == 0;
         k++) {
        r = move_in(img, k);
        if (r < 0)
            while (k-- > FIRST_GUARDED)
                move_out(img, k);
    }
    if (r < 0 && io_err_no_locks(r)) {
        log_debug("the datastore has no locks for QEMU's bytes: %s", strerror(-r));
        return 0;
    }
    if (r == 0 && hold && !img->qemu.held) {
        img->qemu.held = true;
        tell(img);
    }
    if (r == 0)
        r = outside_writer(img, img->held.fd, &outside);
    if (r == -EAGAIN || outside)
        r = -EBUSY;
    if (r < 0)
        image_qemu_drop(img);
    return r;
}

/* Once in each hold. */
static bool first_warning(struct image *img)
{
    unsigned hold = atomic_load(&img->held.count);
    return atomic_exchange(&img->qemu.warned, hold + 1) != hold + 1;
}

void image_qemu_follow(struct guard *g, struct image *img)
{
    bool want = img->held.rec && img->held.fd >= 0 && img->held.rec->plan.n == 0;
    if (!want)
        image_qemu_drop(img);
    if (!want || img->qemu.held)
        return;
    int r = image_qemu_take(img, true);
    if (r < 0 && first_warning(img))
        image_log_state(
            g, img, r == -EBUSY ? LOG_ERR : LOG_WARNING,
            r == -EBUSY
                ? "no seal protects it just now, and a program outside of the views has it open for write or locked (its QEMU lock says so): stop that program at once; fuser -v and lslocks on each host's raw datastore name it"
                : "no seal protects it just now, and QEMU's byte locks could not be taken either",
            r == -EBUSY ? 0 : r);
}

int image_qemu_renew(struct guard *g, struct image *img, int fd)
{
    int r = 0;
    bool outside = false;
    for (unsigned k = FIRST_GUARDED; img->qemu.held && k < IMAGE_QEMU_BYTES && r == 0; k++)
        r = writer_of(img, k) ? 0
                              /* a program's write lock still stands on the old descriptor */
                              : set_byte(fd, F_RDLCK, k);
    if (img->qemu.held && r == 0)
        r = outside_writer(img, fd, &outside);
    if ((r == -EAGAIN || outside) && first_warning(img))
        image_log_state(
            g, img, LOG_CRIT,
            "QEMU's byte locks of this host were lost for a while, and a program outside of the views has it open for write now: two write it. Stop one of them; fuser -v and lslocks on each host's raw datastore name it",
            0);
    return r == -EAGAIN || io_err_no_locks(r) ? 0 : r;
}

int image_qemu_check(struct image *img)
{
    int r = 0;
    /* Locking what is locked changes nothing, and tells whether it still is. */
    for (unsigned k = FIRST_GUARDED; img->qemu.held && k < IMAGE_QEMU_BYTES && r == 0; k++)
        r = set_byte(img->held.fd, writer_of(img, k) ? F_WRLCK : F_RDLCK, k);
    return r;
}
