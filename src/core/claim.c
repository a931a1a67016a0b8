/* claim.c: see claim.h. The order of every step here is in DESIGN 4.3. */
#include "core/claim.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/hook.h"
#include "base/log.h"
#include "core/overlay.h"
#include "core/shard.h"
#include "core/spare.h"

/* "<host>.<daemon>.<counter>" */
#define TMP_SIZE (DG_UUID_LEN + 1 + DG_UUID_LEN + 1 + 20 + 1)
#define NAME_SIZE (SHARD_KEY_DIGITS + 1 + 20 + 1) /* 20: digits of UINT64_MAX */
/* each lost one means that another host made and freed a whole claim meanwhile */
#define READ_TRIES 32
#define TMP_TRIES 64 /* names that a dead process of the same daemon uuid may have left behind */

/* ---- names ---- */

static void claim_name(uint64_t ino, uint64_t generation, char ret[NAME_SIZE])
{
    snprintf(ret, NAME_SIZE, "%016llx.%llu", (unsigned long long)ino,
             (unsigned long long)generation);
}

/* One name per claim, so no second spelling: no upper case, no leading zero, no generation 0. */
static bool claim_name_parse(const char *name, uint64_t *ret_ino, uint64_t *ret_generation)
{
    const char *digits = name + SHARD_KEY_DIGITS + 1;
    uint64_t ino, generation;

    if (!shard_key(name, &ino) || name[SHARD_KEY_DIGITS] != '.')
        return false;
    if (*digits == '0' || base_u64(digits, &generation) < 0)
        return false;
    *ret_ino = ino;
    *ret_generation = generation;
    return true;
}

/* A descriptor of the directory of this key's claims, which belongs to the store; or -errno. */
static int claims_dir(const struct store *s, uint64_t ino)
{
    return shard_fd(s, SHARD_CLAIMS, ino);
}

/* ---- listings ---- */

struct ruling {
    uint64_t ino, highest;
};

static int see_highest(void *arg, const char *name)
{
    struct ruling *ruling = arg;
    uint64_t ino, generation;

    if (!claim_name_parse(name, &ino, &generation))
        log_debug("claims/%s: not a claim's name, ignored", name);
    else if (ino == ruling->ino)
        ruling->highest = DG_MAX(ruling->highest, generation);
    return 0;
}

/* 1, 0 or -errno: only "no such name" says that there is none. */
static int exists(const struct store *s, uint64_t ino, uint64_t generation)
{
    _cleanup_close_ int fd = -1;
    char name[NAME_SIZE];
    int dir = claims_dir(s, ino);

    claim_name(ino, generation, name);
    if (dir < 0)
        return dir;
    fd = HOOK_FAIL("claim.exists");
    if (fd == 0)
        fd = io_fresh_open(dir, name, O_PATH | O_NOFOLLOW);
    return fd >= 0 ? 1 : fd == -ENOENT ? 0 : store_medium(fd);
}

/* The highest generation of a key now, 0 for none. A listing is no snapshot. It may miss claims
 * that others make or remove meanwhile; that does no harm. But it may also miss a claim that
 * stands all the time, while its owner updates it: btrfs moves a name that is renamed over to
 * the end of the directory, behind what a listing that has begun will show. `known` is a
 * generation that the caller believes to exist. A listing that shows less is repeated; then the
 * name itself is asked, which is never absent during a rename. `known` 0: there may be any, so
 * "none" is believed only when it was seen twice. */
static int highest_of(const struct store *s, uint64_t ino, uint64_t known, uint64_t *ret)
{
    struct ruling ruling = {.ino = ino};

    for (unsigned i = 0; i < 2 && (ruling.highest == 0 || ruling.highest < known); i++) {
        int r;

        ruling.highest = 0;
        r = shard_list(s, SHARD_CLAIMS, ino, see_highest, &ruling);
        if (r < 0)
            return r;
    }
    if (ruling.highest < known) {
        int r = exists(s, ino, known);

        if (r < 0)
            return r;
        if (r > 0)
            ruling.highest = known;
    }
    *ret = ruling.highest;
    return 0;
}

struct claim_entry {
    uint64_t ino, generation;
};
struct claim_listing {
    bool one_key;
    uint64_t ino; /* where one_key */
    struct claim_entry *entry;
    size_t n, room;
};

static int see_entry(void *arg, const char *name)
{
    struct claim_listing *l = arg;
    struct claim_entry e;

    if (!claim_name_parse(name, &e.ino, &e.generation) || (l->one_key && e.ino != l->ino))
        return 0;
    if (l->n == l->room) {
        size_t room = l->room ? 2 * l->room : 16;
        struct claim_entry *grown = reallocarray(l->entry, room, sizeof(*grown));

        if (!grown)
            return -ENOMEM;
        l->entry = grown;
        l->room = room;
    }
    l->entry[l->n++] = e;
    return 0;
}

static int entry_cmp(const void *a, const void *b)
{
    const struct claim_entry *x = a, *y = b;

    if (x->ino != y->ino)
        return x->ino < y->ino ? -1 : 1;
    return (x->generation > y->generation) - (x->generation < y->generation);
}

/* Every claim (of one key), fresh, by key and then by generation: the last of each key rules.
 * l->entry is freed by the caller in any case. */
static int claim_list(const struct store *s, struct claim_listing *l)
{
    int r = l->one_key ? shard_list(s, SHARD_CLAIMS, l->ino, see_entry, l)
                       : shard_list_all(s, SHARD_CLAIMS, see_entry, l);

    if (r < 0)
        return r;
    if (l->n > 1)
        qsort(l->entry, l->n, sizeof(*l->entry), entry_cmp);
    return 0;
}

/* ---- reading ---- */

bool claim_is_of(const struct record *rec, const struct host *h)
{
    return strcmp(rec->host, h->uuid) == 0 && strcmp(rec->installation, h->installation) == 0;
}

/* Reads the file of one generation. -ENOENT or -ESTALE: it was removed since the directory was
 * listed. */
static int claim_read_generation(const struct store *s, uint64_t ino, uint64_t generation,
                                 struct claim *ret)
{
    _cleanup_free_ char *text = NULL;
    char name[NAME_SIZE];
    size_t len = 0;
    int dir = claims_dir(s, ino), r;

    claim_name(ino, generation, name);
    r = dir < 0 ? dir : io_fresh_text(dir, name, DG_RECORD_MAX, &text, &len);
    if (r == 0) {
        r = record_decode(text, len, &ret->rec);
        if (r == 0 && (ret->rec.ino != ino || ret->rec.generation != generation))
            r = -EBADMSG; /* a copied file, or one restored under another name */
        if (r < 0 && r != -EBADMSG && r != -EPROTONOSUPPORT)
            return r;
    } else if (r == -EFBIG || r == -EISDIR || r == -ELOOP || r == -EINVAL || r == -ENXIO) {
        r = -EBADMSG; /* too long, or no regular file: it answers, but it is no record */
    } else {
        return r;
    }
    ret->generation = generation;
    ret->error = r;
    if (r < 0)
        ret->kind = CLAIM_BAD;
    else
        ret->kind = ret->rec.step == STEP_FREE ? CLAIM_FREE : CLAIM_HELD;
    return 0;
}

int claim_read_known(const struct store *s, uint64_t ino, uint64_t known, struct claim *ret)
{
    for (unsigned i = 0; i < READ_TRIES; i++) {
        uint64_t highest;
        int r = highest_of(s, ino, known, &highest);

        if (r < 0)
            return r;
        if (highest == 0) {
            ret->kind = CLAIM_NONE;
            ret->generation = 0;
            ret->error = 0;
            return 0;
        }
        r = claim_read_generation(s, ino, highest, ret);
        if (r != -ENOENT && r != -ESTALE && r != -EAGAIN)
            return r;
        /* A successor came and removed the lower generations; or it is being replaced faster than
         * it can be read. */
    }
    return -EAGAIN;
}

int claim_read(const struct store *s, uint64_t ino, struct claim *ret)
{
    return claim_read_known(s, ino, 0, ret);
}

int claim_check(const struct store *s, const struct record *rec)
{
    uint64_t highest;
    int r = highest_of(s, rec->ino, rec->generation, &highest);

    if (r < 0)
        return r;
    return highest == rec->generation ? 0 : -CLAIM_LOST;
}

/* ---- writing ---- */

/* A name in tmp/ that nobody used before. */
static void tmp_name(const struct record *rec, char ret[TMP_SIZE])
{
    static _Atomic uint64_t counter;

    snprintf(ret, TMP_SIZE, "%s.%s.%llu", rec->host, rec->daemon,
             (unsigned long long)atomic_fetch_add(&counter, 1) + 1);
}

/* Writes the text of a record, durable, to such a name. keep: spares_take(). Returns the open
 * descriptor. The encoder has checked the uuids, which become part of the name. */
static int tmp_create(const struct store *s, const struct record *rec, const char *text, size_t len,
                      unsigned keep, char ret_name[TMP_SIZE])
{
    int r = -EEXIST;

    for (unsigned i = 0; i < TMP_TRIES && r == -EEXIST; i++) {
        tmp_name(rec, ret_name);
        r = HOOK_FAIL("claim.create");
        if (r == 0)
            r = io_text_create(s->tmp_fd, ret_name, text, len);
    }
    if (r == -ENOSPC || r == -EDQUOT) {
        tmp_name(rec, ret_name); /* a late request may still be on its way to the other one */
        r = spares_take(s, keep, ret_name, text, len);
    }
    return r < 0 ? store_medium(r) : r;
}

/* Not followed by an fsync of tmp/: a name that comes back after a power cut is what claim_sweep is
 * for. */
static void tmp_unlink(const struct store *s, const char *name)
{
    int r = HOOK_FAIL("claim.unlink");

    if (r == 0 && unlinkat(s->tmp_fd, name, 0) < 0)
        r = -errno;
    if (r < 0 && r != -ENOENT)
        log_debug("tmp/%s: cannot be removed: %s", name, strerror(-r));
}

static int claims_sync(const struct store *s, uint64_t ino)
{
    int r = HOOK_FAIL("claim.dirsync"), dir = claims_dir(s, ino);

    return r < 0 ? r : dir < 0 ? dir : store_medium(io_fsync(dir));
}

/* Removes one generation's name. No error when there is none. Only for one that does not rule, or
 * whose image is gone. */
static int claim_remove_generation(const struct store *s, uint64_t ino, uint64_t generation)
{
    char name[NAME_SIZE];
    int r = HOOK_FAIL("claim.remove"), dir = claims_dir(s, ino);

    claim_name(ino, generation, name);
    r = r == 0 && dir < 0 ? dir : r;
    if (r == 0 && unlinkat(dir, name, 0) < 0 && errno != ENOENT)
        r = store_medium(-errno);
    return r;
}

/* Does the claim's name lead to the file that fd has open? While it is open, its inode number
 * cannot be anybody else's. 1, 0 or -errno; -EAGAIN: it is not seen, but listed. */
static int name_leads_to(const struct store *s, const struct record *rec, int fd)
{
    _cleanup_close_ int named = -1;
    char name[NAME_SIZE];
    struct stat ours, there;
    int dir = claims_dir(s, rec->ino);

    claim_name(rec->ino, rec->generation, name);
    named = dir < 0 ? dir : io_fresh_open(dir, name, O_PATH | O_NOFOLLOW);
    int r = named < 0 ? named : io_fresh_stat(named, &there);
    if (r == 0)
        r = io_fresh_stat(fd, &ours);
    /* Of the name alone: an absence may be an old one. A listing is not. */
    if (r == -ENOENT) {
        uint64_t highest;
        r = highest_of(s, rec->ino, 0, &highest);
        return r < 0 ? r : highest == rec->generation ? -EAGAIN : 0;
    }
    if (r < 0)
        return r;
    return there.st_ino == ours.st_ino && there.st_dev == ours.st_dev;
}

/* Puts a text in the place of our own generation's file. The caller made sure that it is ours. A
 * rename that lands late, after a successor has come, hits no other name. The tmp name is
 * removed before an error is returned, so the rename cannot land after our next attempt either. */
static int replace(const struct store *s, const struct record *rec, const char *text, size_t len)
{
    char tmp[TMP_SIZE], name[NAME_SIZE];
    int r, dir = claims_dir(s, rec->ino),
           fd = dir < 0 ? dir : tmp_create(s, rec, text, len, 0, tmp);

    if (fd < 0)
        return fd;
    claim_name(rec->ino, rec->generation, name);
    r = HOOK_FAIL("claim.rename");
    if (r == 0 && renameat(s->tmp_fd, tmp, dir, name) < 0)
        r = store_medium(-errno);
    if (r < 0 && name_leads_to(s, rec, fd) == 1)
        r = 0; /* the answer was lost, the rename was not */
    /* fsynced: no error is lost here. Before the unlink: NFS would only hide an open file */
    close(fd);
    if (r < 0) {
        tmp_unlink(s, tmp);
        return r;
    }
    return claims_sync(s, rec->ino);
}

static void set_freed(struct record *rec)
{
    rec->step = STEP_FREE;
    rec->plan.n = 0;
    rec->cut = OVERLAY_NO_CUT;
}

/* Without a malloc: neither a claim that is given back nor one whose acquisition failed may stay
 * for want of memory. */
static int replace_by_free(const struct store *s, const struct record *rec)
{
    char text[RECORD_FREED_MAX];
    size_t len;
    int r = record_encode_freed(rec, text, &len);

    return r < 0 ? r : replace(s, rec, text, len);
}

/* The same when the file is gone and there is no room for a new record. The room that is missing
 * may be the file's own, and that comes back only when its claim is free. This writes in place,
 * so not in one step: whoever reads in between, or after a power cut in between, finds a claim
 * that does not decode, and is refused. Nobody asks for the claim of a file without a name,
 * unless its inode number is used again. A descriptor of ours prevents that, but not on NFS when
 * another client has removed the file. */
static int overwrite_by_free(const struct store *s, const struct record *rec)
{
    char text[RECORD_FREED_MAX], name[NAME_SIZE];
    size_t len;
    int r = record_encode_freed(rec, text, &len);
    if (r < 0)
        return r;
    claim_name(rec->ino, rec->generation, name);
    int dir = claims_dir(s, rec->ino);
    if (dir < 0)
        return dir;
    _cleanup_close_ int fd = openat(dir, name, O_WRONLY | O_NOFOLLOW | O_CLOEXEC);
    r = fd < 0 ? -errno : io_pwrite_all(fd, text, len, 0);
    if (r == 0 && ftruncate(fd, (off_t)len) < 0)
        r = -errno;
    if (r == 0)
        r = io_fsync(fd);
    return store_medium(r);
}

/* ---- numbers ---- */

/* The size of DATASTORE/.diskguard/floor is the floor; its content means nothing. One byte
 * written at its new end raises it. That never shrinks a file: two raises leave the greater one,
 * in any order, also when one of them is late or repeated. */
#define FLOOR_FILE "floor"
/* bytes: far below any file system's largest file, and above what counting reaches */
#define FLOOR_MAX (UINT64_C(1) << 40)

static int see_floor(void *arg, const char *name)
{
    (void)arg;
    return strcmp(name, FLOOR_FILE) == 0;
}

static int floor_read(const struct store *s, uint64_t *ret)
{
    _cleanup_close_ int fd = -1;
    struct stat st = {0};
    int r = HOOK_FAIL("claim.floor.read");

    if (r == 0)
        fd = r = io_fresh_open(s->dir_fd, FLOOR_FILE, O_PATH | O_NOFOLLOW);
    /* An absence that this host has seen may be older than a file made in the same tick (10.1.19);
     * a listing is not. With a lower floor a number would be given out twice. */
    if (r == -ENOENT) {
        r = io_fresh_dir(s->dir_fd, see_floor, NULL);
        r = r > 0 ? -EIO : r;
    } else if (r >= 0) {
        r = io_fresh_stat(fd, &st);
    }

    if (r == 0 && fd >= 0 && !S_ISREG(st.st_mode))
        r = -EBADMSG;
    if (r < 0)
        return store_medium(r);
    *ret = (uint64_t)st.st_size;
    return 0;
}

/* Makes sure, durably, that a key without any claim gets a generation above this one. -EFBIG:
 * nobody can have counted to this number. */
static int claim_floor_raise(const struct store *s, uint64_t generation)
{
    _cleanup_close_ int fd = -1;
    uint64_t now = 0;
    int r = HOOK_FAIL("claim.floor");

    if (r < 0 || generation == 0)
        return r;
    if (generation > FLOOR_MAX)
        return -EFBIG;
    fd = io_open_beneath(s->dir_fd, FLOOR_FILE, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (fd < 0)
        return store_medium(fd);
    r = io_pwrite_all(fd, "\n", 1, generation - 1);
    if (r == 0)
        r = io_fsync(fd);
    if (r == 0)
        r = io_fsync(s->dir_fd);
    if (r == 0)
        r = floor_read(s, &now);
    if (r < 0)
        return store_medium(r);
    return now >= generation ? 0 : -EIO;
}

int claim_next(const struct store *s, const struct claim *c, uint64_t *ret)
{
    uint64_t last = c->generation;
    int r = c->kind == CLAIM_NONE ? floor_read(s, &last) : 0;

    if (r == 0 && last == UINT64_MAX)
        r = -EOVERFLOW;
    if (r < 0)
        return r;
    *ret = last + 1;
    return 0;
}

/* ---- acquiring ---- */

/* Links the record to its generation's name. 0: it stands there; -EBUSY: it does not, another
 * host's does; else -errno: unknown. */
static int link_proved(const struct store *s, const struct record *rec, int fd, const char *tmp)
{
    char name[NAME_SIZE];
    struct stat st;
    int r, dir = claims_dir(s, rec->ino), answer = dir < 0 ? dir : HOOK_FAIL("claim.link");

    claim_name(rec->ino, rec->generation, name);
    if (answer == 0 && linkat(s->tmp_fd, tmp, dir, name, 0) < 0)
        answer = store_medium(-errno);
    /* The answer proves nothing: replies get lost, and the retransmission meets our own file. */
    r = store_medium(io_fresh_stat(fd, &st));
    if (r < 0)
        return r;
    if (st.st_nlink == 2)
        return 0;
    return answer == 0 || answer == -EEXIST ? -EBUSY : answer;
}

/* Takes back what a failed acquisition left. The tmp name goes first: without it no copy of the
 * link request that is still under way can succeed. A record under our generation's name is
 * freed, and not unlinked. Others may have seen this generation, and it must not be given
 * out again, or a retransmission of the unlink would remove the next owner's claim. true: a claim
 * in our name may be left. */
static bool abandon(const struct store *s, const struct record *rec, int fd, const char *tmp)
{
    tmp_unlink(s, tmp);
    int r = name_leads_to(s, rec, fd);
    if (r == 1)
        r = replace_by_free(s, rec);
    if (r < 0)
        log_debug("claim %llu of inode %llu: cannot be given back: %s",
                  (unsigned long long)rec->generation, (unsigned long long)rec->ino, strerror(-r));
    close(fd);
    return r < 0;
}

int claim_acquire(const struct store *s, const struct record *rec, bool *ret_left)
{
    _cleanup_free_ char *text = NULL;
    char tmp[TMP_SIZE];
    uint64_t highest;
    size_t len;
    int r, fd;

    *ret_left = false;
    if (rec->generation == 0 || rec->step == STEP_FREE)
        return -EINVAL;
    r = record_encode(rec, &text, &len);
    fd = r < 0 ? r : tmp_create(s, rec, text, len, SPARE_KEEP, tmp);
    if (fd < 0)
        return fd;
    r = link_proved(s, rec, fd, tmp);
    if (r == -EBUSY) {
        close(fd); /* before the unlink: NFS would only hide an open file */
        tmp_unlink(s, tmp);
        return r;
    }
    if (r == 0)
        r = highest_of(s, rec->ino, rec->generation, &highest);
    if (r == 0 && highest > rec->generation) {
        /* Another host came, went and cleaned up after we had read the directory. Our name lies
         * below the ruling one, where nobody looks. So it is safe to remove it, even if it
         * belongs to another late host by now. */
        (void)!claim_remove_generation(s, rec->ino, rec->generation);
        close(fd);
        tmp_unlink(s, tmp);
        return -EBUSY;
    }
    if (r == 0 && highest < rec->generation)
        r = -EBUSY; /* removed under us: somebody declared the image vanished */
    if (r == 0)
        r = claims_sync(s, rec->ino);
    if (r < 0) {
        *ret_left = abandon(s, rec, fd, tmp);
        return r;
    }
    close(fd);
    /* A tmp name that stays is a second name of the same record: harmless, and swept at the next
     * start. */
    tmp_unlink(s, tmp);
    return 0;
}

/* ---- owning ---- */

/* Is the ruling claim our generation, decodable and ours? The daemon instance is not compared: a
 * recovering daemon is another one. */
static int check_ours(const struct claim *c, const struct record *rec)
{
    if (c->kind == CLAIM_NONE || c->generation != rec->generation)
        return -CLAIM_LOST;
    if (c->kind == CLAIM_BAD)
        return c->error;
    if (strcmp(c->rec.host, rec->host) != 0 || strcmp(c->rec.installation, rec->installation) != 0)
        return -CLAIM_LOST;
    return 0;
}

/* Reads the rule. -CLAIM_LOST: it is not ours any more. */
static int read_ours(const struct store *s, const struct record *rec, struct claim *ret)
{
    int r = claim_read_known(s, rec->ino, rec->generation, ret);

    if (r == 0)
        r = check_ours(ret, rec);
    /* Given back once, it cannot be had again: somebody may be linking the next generation just
     * now. */
    return r == 0 && ret->kind == CLAIM_FREE ? -CLAIM_LOST : r;
}

int claim_update(const struct store *s, const struct record *rec)
{
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    _cleanup_free_ char *text = NULL;
    size_t len;
    int r;

    if (!c)
        return -ENOMEM;
    if (rec->step == STEP_FREE)
        return -EINVAL; /* claim_free's business: it alone knows the order */
    r = read_ours(s, rec, c);
    if (r == 0)
        r = record_encode(rec, &text, &len);
    return r < 0 ? r : replace(s, rec, text, len);
}

int claim_undoes(const struct store *s, const struct record *rec)
{
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    int r = c ? read_ours(s, rec, c) : -ENOMEM;

    return r < 0 ? r : c->rec.step == STEP_ARMED && record_same_undo(&c->rec, rec);
}

/* seen: only where the generation itself, or a higher one, is there: else one of them may rule. */
static int remove_lower(const struct store *s, uint64_t ino, uint64_t generation, bool seen)
{
    struct claim_listing l = {.one_key = true, .ino = ino};
    int r = claim_list(s, &l);

    if (r == 0 && seen && l.n > 0 && l.entry[l.n - 1].generation < generation)
        l.n = 0;
    for (size_t i = 0; r == 0 && i < l.n; i++)
        if (l.entry[i].generation < generation)
            r = claim_remove_generation(s, ino, l.entry[i].generation);
    free(l.entry);
    return r;
}

/* Has an earlier claim_free of ours reached the disk, although its last step failed, and has a
 * successor come since? Only we write under our generation's name. */
static bool was_freed(const struct store *s, const struct record *rec, struct claim *scratch)
{
    return claim_read_generation(s, rec->ino, rec->generation, scratch) == 0 &&
           check_ours(scratch, rec) == 0 && scratch->kind == CLAIM_FREE;
}

static int give_back(const struct store *s, struct record *rec, bool gone)
{
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    int r;

    if (!c)
        return -ENOMEM;
    r = claim_read_known(s, rec->ino, rec->generation, c);
    if (r < 0)
        return r;
    r = check_ours(c, rec);
    if (r == -CLAIM_LOST && c->generation > rec->generation && was_freed(s, rec, c))
        r = 0; /* the successor removes our generation when it is done */
    else if (r == 0)
        /* also where it is free: maybe not durably */
        r = replace_by_free(s, rec);
    if (gone && (r == -ENOSPC || r == -EDQUOT))
        r = overwrite_by_free(s, rec);
    if (r < 0)
        return r;
    set_freed(rec);
    rec->seq++;
    return 0;
}

int claim_free(const struct store *s, struct record *rec)
{
    return give_back(s, rec, false);
}

void claim_clear(const struct store *s, uint64_t ino, uint64_t generation)
{
    int r = remove_lower(s, ino, generation, true);

    if (r < 0) /* they are below the ruling one: litter, swept after the next start */
        log_debug("inode %llu: older claims cannot be removed: %s", (unsigned long long)ino,
                  strerror(-r));
}

int claim_free_gone(const struct store *s, struct record *rec)
{
    return give_back(s, rec, true);
}

int claim_forget(const struct store *s, uint64_t ino, uint64_t generation)
{
    int r = remove_lower(s, ino, generation, false);

    /* The ruling one goes last, when the others are gone for good. Otherwise a crash would let a
     * former owner's claim rule again. */
    if (r == 0)
        r = claims_sync(s, ino);
    if (r == 0)
        r = claim_floor_raise(s, generation);
    if (r == 0)
        r = claim_remove_generation(s, ino, generation);
    if (r == 0)
        r = claims_sync(s, ino);
    return r;
}

/* ---- all claims at once ---- */

static bool is_ruling(const struct claim_listing *l, size_t i)
{
    return i + 1 == l->n || l->entry[i + 1].ino != l->entry[i].ino;
}

int claim_each(const struct store *s, int (*fn)(void *arg, uint64_t ino, const struct claim *c),
               void *arg)
{
    struct claim_listing l = {0};
    struct claim *c = malloc(sizeof(*c));
    int r, failed = 0;

    r = c ? claim_list(s, &l) : -ENOMEM;
    for (size_t i = 0; r == 0 && i < l.n; i++) {
        int err;

        if (!is_ruling(&l, i))
            continue;
        err = claim_read_generation(s, l.entry[i].ino, l.entry[i].generation, c);
        if (err == -ENOENT || err == -ESTALE || err == -EAGAIN)
            err = claim_read(s, l.entry[i].ino, c);
        if (err < 0)
            failed = failed ? failed : err; /* the others are still worth a look */
        else if (c->kind != CLAIM_NONE)
            r = fn(arg, l.entry[i].ino, c);
    }
    free(l.entry);
    free(c);
    return r ? r : failed;
}

/* Splits "<host uuid>.<daemon uuid>.<counter>". */
static bool tmp_name_parse(const char *name, dg_uuid ret_host, dg_uuid ret_daemon)
{
    dg_uuid host, daemon;
    uint64_t counter;

    if (strnlen(name, 2 * (DG_UUID_LEN + 1)) < 2 * (DG_UUID_LEN + 1) || name[DG_UUID_LEN] != '.' ||
        name[2 * DG_UUID_LEN + 1] != '.')
        return false;
    memcpy(host, name, DG_UUID_LEN);
    memcpy(daemon, name + DG_UUID_LEN + 1, DG_UUID_LEN);
    host[DG_UUID_LEN] = daemon[DG_UUID_LEN] = '\0';
    if (!base_uuid_ok(host) || !base_uuid_ok(daemon) ||
        base_u64(name + 2 * (DG_UUID_LEN + 1), &counter) < 0)
        return false;
    memcpy(ret_host, host, sizeof(host));
    memcpy(ret_daemon, daemon, sizeof(daemon));
    return true;
}

struct stale {
    const struct host *host;
    char (*name)[TMP_SIZE];
    size_t n;
};

static int see_tmp(void *arg, const char *name)
{
    struct stale *stale = arg;
    dg_uuid host, daemon;
    void *grown;

    /* We have the host lock, so no other daemon of this host lives, and our own names carry our
     * own daemon's uuid. The names of other hosts are theirs. */
    if (!tmp_name_parse(name, host, daemon) || strcmp(host, stale->host->uuid) != 0 ||
        strcmp(daemon, stale->host->daemon) == 0)
        return 0;
    grown = reallocarray(stale->name, stale->n + 1, sizeof(*stale->name));
    if (!grown)
        return -ENOMEM;
    stale->name = grown;
    snprintf(stale->name[stale->n++], TMP_SIZE, "%s", name);
    return 0;
}

/* Collected first: removing while reading a directory can make an NFS client skip names. */
static int sweep_tmp(const struct store *s, const struct host *h, bool dry_run, unsigned *stale)
{
    struct stale found = {.host = h};
    int r = io_fresh_dir(s->tmp_fd, see_tmp, &found);

    for (size_t i = 0; r == 0 && i < found.n; i++) {
        *stale += !spare_is_name(found.name[i]); /* those are there for nobody's sake */
        if (dry_run)
            continue;
        r = HOOK_FAIL("claim.sweep");
        if (r == 0 && unlinkat(s->tmp_fd, found.name[i], 0) < 0 && errno != ENOENT)
            r = -errno;
    }
    free(found.name);
    return r;
}

#define SWEEP_MIN 64u /* what few crashes leave is gone, whoever is in a hurry */
int claim_sweep_lower(const struct store *s, bool dry_run, const atomic_bool *stop,
                      unsigned *ret_stale)
{
    struct claim_listing l = {0};
    struct claim *c = malloc(sizeof(*c));
    size_t first = 0; /* of the key */
    unsigned stale = 0;
    int r = c ? claim_list(s, &l) : -ENOMEM;

    for (size_t i = 0; r == 0 && i < l.n && (stale < SWEEP_MIN || !stop || !atomic_load(stop));
         i++) {
        bool decodes;

        if (!is_ruling(&l, i))
            continue;
        /* Below a record that does not decode, the older ones may be all that a person has left. */
        decodes = first < i &&
                  claim_read_generation(s, l.entry[i].ino, l.entry[i].generation, c) == 0 &&
                  c->kind != CLAIM_BAD;
        for (; decodes && r == 0 && first < i; first++) {
            stale++;
            if (!dry_run)
                r = claim_remove_generation(s, l.entry[first].ino, l.entry[first].generation);
        }
        first = i + 1;
    }
    free(l.entry);
    free(c);
    if (r < 0)
        return store_medium(r);
    *ret_stale = stale;
    return 0;
}

int claim_sweep_spares(const struct store *s, const struct host *h)
{
    struct stale found = {.host = h};
    int r = io_fresh_dir(s->tmp_fd, see_tmp, &found);

    for (size_t i = 0; r == 0 && i < found.n; i++)
        if (spare_is_name(found.name[i]) && unlinkat(s->tmp_fd, found.name[i], 0) < 0 &&
            errno != ENOENT)
            r = -errno;
    free(found.name);
    return r;
}

int claim_sweep(const struct store *s, const struct host *h, bool dry_run, unsigned *ret_stale)
{
    unsigned stale = 0;
    /* tmp/ first: a link request of a dead daemon may still be on its way. Without its source it
     * fails, so what is read from here on is final. */
    int r = sweep_tmp(s, h, dry_run, &stale);

    if (r < 0)
        return store_medium(r);
    *ret_stale = stale;
    return 0;
}

/* ---- tombstones of images that are gone ---- */

/* Is this the tombstone of an image that exists no more? A handle that cannot be asked says no. */
static bool is_gone(const struct store *s, const struct claim *c)
{
    return c->kind == CLAIM_FREE && store_gone(s, -1, &c->rec.handle) == 1;
}

struct gone {
    const struct store *s;
    struct claim_entry *at;
    size_t n;
};

static int see_claim(void *arg, uint64_t ino, const struct claim *c)
{
    struct gone *g = arg;
    struct claim_entry *more;

    if (!is_gone(g->s, c))
        return 0;
    more = reallocarray(g->at, g->n + 1, sizeof(*more));
    if (!more)
        return -ENOMEM;
    g->at = more;
    g->at[g->n++] = (struct claim_entry){ino, c->generation};
    return 0;
}

int claim_sweep_gone(const struct store *s, unsigned *ret_gone)
{
    struct gone g = {.s = s};
    int r = claim_each(s, see_claim, &g);

    unsigned gone = 0;

    for (size_t i = 0; r == 0 && i < g.n; i++) {
        r = claim_forget(s, g.at[i].ino, g.at[i].generation);
        gone += r == 0;
        r = r == -EFBIG ? 0 : r; /* a number that somebody made up: it stays */
    }
    free(g.at);
    if (r < 0)
        return r;
    *ret_gone = gone;
    return 0;
}
