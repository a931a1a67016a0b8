/* fs_lock.c: locks of the view, forwarded to the datastore.
 *
 * An owner is what the kernel says that it is: a process for POSIX locks, an open file for OFD
 * locks, a handle for flock. Each owner has an open file description of its own on the backing
 * file, and its byte locks are OFD locks there; so both meanings come out exact, and other hosts
 * see them. Kept on this host, on a memfd that stands for the file, are:
 *   - byte ranges at or beyond DG_FENCE_OFFSET, whose first byte is the fence lock,
 *   - flock where the fence lock itself is one (OCFS2), and on GFS2, where it hangs (DESIGN 10.2),
 *   - everything where the backing file system has no locks.
 * flock where it is one name space with byte locks (NFS): a byte lock of all that lies below the
 * fence, on the owner's own descriptor, which never carries the fence. It meets the flock of other
 * hosts and views as a flock would. Elsewhere it is an flock of that descriptor: the handle's own
 * may be replaced. The kernel tells an open file by its address, which the next file that is opened
 * may have as soon as the last descriptor is closed, and so before our release of the former one.
 * Then the same number means two owners. That it is an open file's, and which, is known by the
 * handle and by who locks and closes: owner_is(). A lock by which a writer says that the file is a
 * disk is granted when that is claimed: disk.h. Not as on a plain file: no EDEADLK, and l_pid is 0
 * for a lock of another host or of a program outside the view. */
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>

#include "base/hook.h"
#include "base/list.h"
#include "base/log.h"
#include "base/sync.h"
#include "guard/conflict.h"
#include "guard/disk.h"
#include "guard/guard.h"
#include "guard/qemu_locks.h"
#include "guard/readers.h"
#include "guard/wait.h"
#include "run/park.h"
#include "view/cred.h"
#include "view/fs.h"

enum owner_kind { OWNER_BYTES, OWNER_FLOCK };

struct lock_owner {
    enum owner_kind kind;
    uint64_t id; /* lock owner of the kernel; for flock: the handle */
    /* that introduced it; only compared. Under inode_locks.lock, as the next two */
    struct handle *via;
    /* another one that used it, and may be of an open file that came after via's */
    struct handle *also;
    /* it is an open file, not a process: its process has closed it as another owner */
    bool is_file;
    struct qemu_owner bytes; /* what it has of QEMU's bytes, and its pid */
    struct image_reader reader;
    atomic_int fd;         /* on the backing file; -1: not opened yet */
    atomic_int host_fd;    /* on the memfd; -1: not opened yet */
    atomic_bool forwarded; /* flock: it went to the backing file */
    /* under inode_locks.lock: the list has one, each operation under way has one */
    unsigned refs;
    LIST_ENTRY(lock_owner) entry;
};

LIST_HEAD(owner_list, lock_owner);

struct inode_locks {
    struct view *v;
    struct inode *inode;
    struct mutex lock;
    struct owner_list owners GUARDED_BY(lock);
    atomic_int memfd;
    atomic_bool backing_ok; /* the backing file has granted a lock: a later ENOLCK is an error, not
                               a missing feature */
    atomic_bool host_only;
};

static struct inode_locks *locks_get(struct view *v, struct inode *i)
{
    struct inode_locks *l = atomic_load(&i->locks);
    if (l)
        return l;
    struct inode_locks *mine = calloc(1, sizeof(*mine));
    if (!mine)
        return NULL;
    mine->v = v;
    mine->inode = i;
    mutex_init(&mine->lock);
    atomic_store(&mine->memfd, -1);
    if (atomic_compare_exchange_strong(&i->locks, &l, mine))
        return mine;
    mutex_destroy(&mine->lock);
    free(mine);
    return l;
}

static void close_at(atomic_int *slot)
{
    int fd = atomic_exchange(slot, -1);
    if (fd >= 0)
        close(fd);
}

static void owner_destroy(struct lock_owner *o)
{
    close_at(&o->fd);
    close_at(&o->host_fd);
    free(o);
}

void fs_lock_free(struct inode_locks *l)
{
    mutex_lock(&l->lock);
    struct lock_owner *o, *next;
    LIST_FOREACH_SAFE(o, &l->owners, entry, next)
        owner_destroy(o);
    mutex_unlock(&l->lock);
    close_at(&l->memfd);
    mutex_destroy(&l->lock);
    free(l);
}

/* It has none of the bytes any more that mean something to the guard. */
static void owner_forget(struct inode_locks *l, struct lock_owner *o)
{
    image_qemu_forget(l->inode, &o->bytes);
    image_reader_forget(l->v->guard, l->inode, &o->reader);
}

/* One who asks or locks through a handle. */
struct asker {
    fuse_req_t req;
    struct handle *h;
    enum owner_kind kind;
    uint64_t id;
    uint64_t pid; /* thread group; 0: not looked up, or unknown */
    bool looked;
};

/* Is this owner the asker? An open file has one handle; a process may have several, and never asks
 * through the handle of another one's open file. */
static bool owner_is(const struct lock_owner *o, const struct asker *a)
{
    if (o->kind != a->kind || o->id != a->id)
        return false;
    uint64_t pid = atomic_load(&o->bytes.pid);
    return o->via == a->h || !(o->is_file || (pid && a->pid && pid != a->pid));
}

static struct lock_owner *owner_find_locked(struct inode_locks *l, const struct asker *a)
    REQUIRES(l->lock)
{
    struct lock_owner *o;
    LIST_FOREACH(o, &l->owners, entry)
        if (owner_is(o, a))
            return o;
    return NULL;
}

static struct lock_owner *owner_get(struct inode_locks *l, struct asker *a, bool make)
{
    mutex_lock(&l->lock);
    struct lock_owner *o = owner_find_locked(l, a);
    if (o && o->via != a->h && !a->looked) {
        mutex_unlock(&l->lock);
        a->pid = cred_thread_group(a->req);
        a->looked = true;
        mutex_lock(&l->lock);
        o = owner_find_locked(l, a);
    }
    struct handle *via = make ? a->h : NULL;
    if (o && o->via != a->h)
        o->also = a->h;
    if (!o && via && (o = calloc(1, sizeof(*o)))) {
        o->kind = a->kind;
        o->id = a->id;
        o->via = via;
        image_qemu_owner_init(&o->bytes);
        image_reader_init(l->v->guard, &o->reader, via);
        atomic_store(&o->fd, -1);
        atomic_store(&o->host_fd, -1);
        o->refs = 1;
        LIST_INSERT_HEAD(&l->owners, o, entry);
    }
    if (o)
        o->refs++;
    mutex_unlock(&l->lock);
    return o;
}

static void owner_put(struct inode_locks *l, struct lock_owner *o)
{
    mutex_lock(&l->lock);
    bool last = --o->refs == 0;
    mutex_unlock(&l->lock);
    if (!last)
        return;
    owner_forget(l, o);
    owner_destroy(o);
}

/* ---- descriptors ---- */

/* Keeps the first descriptor that was opened; a thread that comes second uses that one. */
static int keep_fd(atomic_int *slot, int fd)
{
    int none = -1;
    if (fd < 0 || atomic_compare_exchange_strong(slot, &none, fd))
        return fd;
    close(fd);
    return none;
}

static int backing_fd(const struct inode *i, struct lock_owner *o)
{
    int fd = atomic_load(&o->fd);
    if (fd >= 0)
        return fd;
    fd = io_reopen(i->fd, O_RDWR | O_NONBLOCK);
    if (io_err_readonly(fd))
        fd = io_reopen(i->fd, O_RDONLY | O_NONBLOCK);
    return keep_fd(&o->fd, fd);
}

static int host_fd(struct inode_locks *l, struct lock_owner *o)
{
    int fd = atomic_load(&o->host_fd);
    if (fd >= 0)
        return fd;
    int memfd = atomic_load(&l->memfd);
    if (memfd < 0) {
        memfd = memfd_create("diskguard-locks", MFD_CLOEXEC);
        memfd = keep_fd(&l->memfd, memfd < 0 ? -errno : memfd);
    }
    if (memfd < 0)
        return memfd;
    char path[FS_PROC_PATH_SIZE];
    fs_attr_proc_path(memfd, path);
    fd = open(path, O_RDWR | O_CLOEXEC);
    return keep_fd(&o->host_fd, fd < 0 ? -errno : fd);
}

/* Goes over to locks on this host, unless the backing file has granted one before. */
static bool fall_back(struct inode_locks *l, int err)
{
    static atomic_bool logged;
    if (!io_err_no_locks(err) || atomic_load(&l->backing_ok))
        return false;
    atomic_store(&l->host_only, true);
    if (!atomic_exchange(&logged, true))
        log_msg(
            LOG_NOTICE,
            "the datastore has no file locks (%s): locks of programs are kept on this host alone",
            strerror(-err));
    return true;
}

/* ---- byte ranges ---- */

struct range {
    off_t start, len; /* as in struct flock: len 0 = to the end */
};

/* Splits at the fence. false: that part is empty. */
static bool part_below(const struct flock *in, struct range *ret)
{
    if (in->l_start >= DG_FENCE_OFFSET)
        return false;
    off_t room = DG_FENCE_OFFSET - in->l_start;
    *ret = (struct range){in->l_start, in->l_len == 0 || in->l_len > room ? room : in->l_len};
    return true;
}

static bool part_above(const struct flock *in, struct range *ret)
{
    if (in->l_start >= DG_FENCE_OFFSET) {
        *ret = (struct range){in->l_start, in->l_len};
        return true;
    }
    off_t below = DG_FENCE_OFFSET - in->l_start;
    if (in->l_len != 0 && in->l_len <= below)
        return false;
    *ret = (struct range){DG_FENCE_OFFSET, in->l_len == 0 ? 0 : in->l_len - below};
    return true;
}

static int set_range(int fd, short type, struct range r)
{
    return io_user_lock(fd, type, r.start, r.len);
}

static int set_on_host(struct inode_locks *l, struct lock_owner *o, short type, struct range r)
{
    if (type == F_UNLCK && atomic_load(&o->host_fd) < 0)
        return 0;
    return set_range(host_fd(l, o), type, r);
}

static int set_below(struct inode *i, struct inode_locks *l, struct lock_owner *o, short type,
                     struct range r)
{
    if (atomic_load(&l->host_only))
        return set_on_host(l, o, type, r);
    if (type == F_UNLCK && atomic_load(&o->fd) < 0)
        return 0;
    int fd = backing_fd(i, o);
    int e = fd >= 0 && image_qemu_in(i, r.start, r.len)
                ? image_qemu_set(i, &o->bytes, fd, type, r.start, r.len)
                : set_range(fd, type, r);
    if (e == 0)
        atomic_store(&l->backing_ok, true);
    return fall_back(l, e) ? set_on_host(l, o, type, r) : e;
}

/* -EAGAIN: somebody else's lock is in the way. */
static int set_lock(struct inode *i, struct inode_locks *l, struct lock_owner *o,
                    const struct flock *lock)
{
    struct range below, above = {0};
    if (lock->l_type == F_UNLCK) /* before another program can find that nobody has it */
        image_reader_locked(l->v->guard, i, &o->reader, F_UNLCK, lock->l_start, lock->l_len);
    bool has_above = part_above(lock, &above);
    int r = has_above ? set_on_host(l, o, lock->l_type, above) : 0;
    if (r < 0 || !part_below(lock, &below))
        return r;
    r = set_below(i, l, o, lock->l_type, below);
    if (r < 0 && has_above)
        (void)set_on_host(l, o, F_UNLCK, above);
    if (r == 0 && lock->l_type != F_UNLCK)
        image_reader_locked(l->v->guard, i, &o->reader, lock->l_type, lock->l_start, lock->l_len);
    return r;
}

static int query(int fd, const struct flock *lock, struct range r, struct flock *ret)
{
    *ret = (struct flock){
        .l_type = lock->l_type, .l_whence = SEEK_SET, .l_start = r.start, .l_len = r.len};
    if (fd < 0)
        return fd;
    return fcntl(fd, F_OFD_GETLK, ret) < 0 ? -errno : 0;
}

/* The same of the backing file below the fence. *ret_pid as image_qemu_get() tells it. */
static int query_below(struct inode *i, struct lock_owner *o, const struct flock *lock,
                       struct range r, struct flock *ret, pid_t *ret_pid)
{
    int fd = backing_fd(i, o);
    if (fd < 0 || !image_qemu_in(i, r.start, r.len))
        return query(fd, lock, r, ret);
    return image_qemu_get(i, &o->bytes, fd, lock->l_type, r.start, r.len, ret, ret_pid);
}

/* *ret_pid: -1 where it is not known yet. */
static int get_lock(struct inode *i, struct inode_locks *l, struct lock_owner *o,
                    const struct flock *lock, struct flock *ret, pid_t *ret_pid)
{
    struct range part;
    *ret = (struct flock){.l_type = F_UNLCK};
    *ret_pid = -1;
    int r = 0;
    if (part_below(lock, &part)) {
        r = atomic_load(&l->host_only) ? -ENOLCK : query_below(i, o, lock, part, ret, ret_pid);
        if (r < 0 && (atomic_load(&l->host_only) || fall_back(l, r)))
            r = query(host_fd(l, o), lock, part, ret);
    }
    if (r == 0 && ret->l_type == F_UNLCK && part_above(lock, &part))
        r = query(host_fd(l, o), lock, part, ret);
    return r;
}

/* Whose lock is it? An open file description never meets its own locks: the owner that sees nothing
 * there has it. */
static pid_t pid_of(struct inode_locks *l, const struct flock *found)
{
    struct lock_owner *all[64];
    unsigned n = 0;
    mutex_lock(&l->lock);
    struct lock_owner *o;
    LIST_FOREACH(o, &l->owners, entry) {
        if (o->kind == OWNER_BYTES && n < 64) {
            o->refs++;
            all[n++] = o;
        }
    }
    mutex_unlock(&l->lock);
    pid_t pid = 0;
    for (unsigned k = 0; k < n; k++) {
        bool on_host = atomic_load(&l->host_only) || found->l_start >= DG_FENCE_OFFSET;
        int fd = on_host ? atomic_load(&all[k]->host_fd) : atomic_load(&all[k]->fd);
        struct flock probe = {.l_type = F_WRLCK, .l_start = found->l_start, .l_len = found->l_len};
        if (pid == 0 && fd >= 0 && fcntl(fd, F_OFD_GETLK, &probe) == 0 && probe.l_type == F_UNLCK)
            pid = (pid_t)atomic_load(&all[k]->bytes.pid);
        owner_put(l, all[k]);
    }
    return pid;
}

struct get_op {
    fuse_req_t req;
    struct view *v;
    struct handle *h; /* stays: the kernel holds the open file for as long as it waits */
    uint64_t owner, since_ms;
    struct flock lock;
    struct conflict conflict;
};

/* -EBUSY: somebody whom no lock shows; he may be just letting go. */
static int try_get(struct get_op *op, bool last, struct flock *ret)
{
    struct inode *i = op->h->inode;
    struct inode_locks *l = locks_get(op->v, i);
    struct asker a = {.req = op->req, .h = op->h, .kind = OWNER_BYTES, .id = op->owner};
    struct lock_owner *o = l ? owner_get(l, &a, true) : NULL;
    if (!o)
        return -ENOMEM;
    pid_t pid;
    int r = get_lock(i, l, o, &op->lock, ret, &pid);
    if (r == 0 && ret->l_type != F_UNLCK)
        ret->l_pid = pid >= 0 ? pid : pid_of(l, ret);
    else if (r == 0)
        r = image_reader_ask(op->v->guard, i, &o->reader, op->lock.l_type, op->lock.l_start,
                             op->lock.l_len, ret, &op->conflict);
    if (r == -EBUSY && (last || image_wait_is_vain(op->v->guard, i, &op->h->opener, op->since_ms,
                                                   &op->conflict))) {
        image_reader_refused(op->v->guard, i, &o->reader, &op->conflict);
        r = 0;
    }
    owner_put(l, o);
    return r;
}

static bool get_turn(void *arg, enum park_turn turn)
{
    struct get_op *op = arg;
    struct flock found;
    int r = turn == PARK_INTERRUPTED ? -EINTR : try_get(op, turn == PARK_LAST, &found);
    if (r == -EBUSY)
        return false;
    if (r < 0)
        fuse_reply_err(op->req, -r);
    else
        fuse_reply_lock(op->req, &found);
    free(op);
    return true;
}

void fs_getlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *lock)
{
    (void)ino;
    struct view *v = view_of(req);
    struct handle *h = handle_get(v->guard->handles, fi->fh);
    struct get_op *op = h ? malloc(sizeof(*op)) : NULL;
    if (!op) {
        fuse_reply_err(req, h ? ENOMEM : EBADF);
        return;
    }
    *op = (struct get_op){.req = req,
                          .v = v,
                          .h = h,
                          .owner = fi->lock_owner,
                          .since_ms = base_now_ms(),
                          .lock = *lock};
    park_start(v->park, req, get_turn, op, v->guard->opt.wait_s * UINT64_C(1000));
}

/* ---- operations that may wait ---- */

struct lock_op {
    fuse_req_t req;
    struct view *v;
    struct handle *h; /* stays: the kernel holds the open file for as long as it waits */
    uint64_t owner;
    struct flock lock;
    int op; /* flock */
    bool is_flock, sleep;
    bool is_disk;      /* it says "I write this disk" (disk.h) */
    uint64_t since_ms; /* CLOCK_MONOTONIC: of the first attempt */
    struct conflict conflict;
};

static int flock_fd(int fd, int op)
{
    if (fd < 0)
        return fd;
    return flock(fd, op | LOCK_NB) == 0 ? 0 : -errno;
}

/* Where an flock goes. The same for plain files and images, so that one which becomes the other
 * takes its locks along. */
enum flock_way { FLOCK_HOST, FLOCK_BYTES, FLOCK_FILE };

static enum flock_way flock_way(const struct view *v)
{
    const struct io_fstype *fs = v->guard->store.fs;
    if (strcmp(fs->name, "gfs2") == 0 || v->guard->store.fence == FENCE_FLOCK)
        return FLOCK_HOST;
    return fs->flock_meets_fence && v->guard->store.fence == FENCE_OFD ? FLOCK_BYTES : FLOCK_FILE;
}

static short flock_type(int kind)
{
    return kind == LOCK_EX ? F_WRLCK : kind == LOCK_SH ? F_RDLCK : F_UNLCK;
}

static int try_flock(struct lock_op *op, struct inode_locks *l)
{
    struct inode *i = op->h->inode;
    struct asker a = {.req = op->req, .h = op->h, .kind = OWNER_FLOCK, .id = op->h->fh};
    struct lock_owner *o = owner_get(l, &a, true);
    if (!o)
        return -ENOMEM;
    int kind = op->op & ~LOCK_NB;
    int r = 0;
    enum flock_way way = flock_way(op->v);
    if (way == FLOCK_FILE && atomic_load(&l->host_only) && !atomic_load(&o->forwarded))
        way = FLOCK_HOST;
    bool here = way == FLOCK_HOST;
    if (way == FLOCK_BYTES) {
        r = set_below(i, l, o, flock_type(kind), (struct range){0, DG_FENCE_OFFSET});
    } else if (way == FLOCK_FILE) {
        r = flock_fd(backing_fd(i, o), kind);
        if (r == 0)
            atomic_store(&o->forwarded, kind != LOCK_UN);
        if (r == 0 && kind != LOCK_UN)
            atomic_store(&l->backing_ok, true);
        here = fall_back(l, r);
    }
    if (here)
        r = flock_fd(host_fd(l, o), kind);
    owner_put(l, o);
    return r;
}

/* ---- two programs that write through one open file, which a third one has passed to both: QEMU's
 * locks do not see each other there, for an open file never meets its own. The kernel names the
 * process that locks. ---- */

static bool is_alive(const struct opener *who)
{
    struct opener now = {0};
    return opener_process(who->pid, &now) && opener_same(who, &now);
}

/* Who asks to say so: pid 0: nobody, or one who may. */
static struct opener says_write(const struct lock_op *op)
{
    struct opener who = {0};
    if (op->lock.l_type == F_UNLCK || op->lock.l_pid <= 0 ||
        op->v->guard->opt.writers != WRITERS_PROCESS || !atomic_load(&op->h->guarded) ||
        !opener_process((uint64_t)op->lock.l_pid, &who))
        return (struct opener){0};
    return who;
}

/* who instead of `was`. false: somebody was faster. */
static bool swap_writer(struct inode_locks *l, struct lock_owner *o, const struct opener *was,
                        const struct opener *who)
{
    mutex_lock(&l->lock);
    bool same = o->bytes.writes.pid == was->pid && o->bytes.writes.start == was->start;
    if (same)
        o->bytes.writes = *who;
    mutex_unlock(&l->lock);
    return same;
}

/* Before a lock of byte 101: *ret_before: whom it replaces as the writer through this open file.
 * -EAGAIN, logged: another process has said so, is alive, and has not taken it back. */
static int note_writer(const struct lock_op *op, struct inode_locks *l, struct lock_owner *o,
                       const struct opener *who, struct opener *ret_before)
{
    mutex_lock(&l->lock);
    *ret_before = o->bytes.writes;
    mutex_unlock(&l->lock);
    if (who->pid != 0 && ret_before->pid != 0 && !opener_same(ret_before, who) &&
        is_alive(ret_before)) {
        image_log_refused(
            op->v->guard, op->h->inode, "a lock on QEMU's byte 101 (\"I write\")",
            "asked for by pid %llu, through the same open file by which pid %llu writes it: some program passed that to both. One process at a time may write an image (option writers=)",
            (unsigned long long)who->pid, (unsigned long long)ret_before->pid);
        return -EAGAIN;
    }
    return swap_writer(l, o, ret_before, who) ? 0 : -EAGAIN; /* two at once: one of them */
}

/* -EBUSY: somebody writes what is to be a disk, whom no lock need show. */
static int try_bytes(struct lock_op *op, struct inode_locks *l)
{
    int r = op->is_disk ? image_disk_claim(op->v->guard, op->h, &op->conflict) : 0;
    if (r < 0)
        return r;
    struct asker a = {.req = op->req, .h = op->h, .kind = OWNER_BYTES, .id = op->owner};
    struct lock_owner *o = owner_get(l, &a, op->lock.l_type != F_UNLCK);
    if (!o)
        /* an owner that is unknown has nothing to unlock */
        return op->lock.l_type == F_UNLCK ? 0 : -ENOMEM;
    if (op->lock.l_pid > 0)
        atomic_store(&o->bytes.pid, (unsigned long long)op->lock.l_pid);
    bool writes = image_qemu_says_write(&op->lock);
    struct opener who = writes ? says_write(op) : (struct opener){0}, before;
    r = writes ? note_writer(op, l, o, &who, &before) : 0;
    if (r == 0) {
        r = set_lock(op->h->inode, l, o, &op->lock);
        if (r < 0 && writes)
            (void)swap_writer(l, o, &who, &before);
    }
    owner_put(l, o);
    return r;
}

/* What was in the way when a disk was to be claimed: -EBUSY, try again, or (logged) what its
 * program is told. */
static int disk_busy(const struct lock_op *op, bool last)
{
    if (!last && (op->sleep || !image_wait_is_vain(op->v->guard, op->h->inode, &op->h->opener,
                                                   op->since_ms, &op->conflict)))
        return -EBUSY;
    struct opener who = {.pid = op->lock.l_pid > 0 ? (uint64_t)op->lock.l_pid : 0};
    image_refused(op->v->guard, op->h->inode, &who, IMAGE_DISK_LOCK, &op->conflict);
    return -EAGAIN;
}

static bool lock_turn(void *arg, enum park_turn turn)
{
    struct lock_op *op = arg;
    int r = -EINTR;
    bool last = turn == PARK_LAST;
    if (turn != PARK_INTERRUPTED && !(last && op->sleep)) {
        struct inode_locks *l = locks_get(op->v, op->h->inode);
        if (l)
            r = op->is_flock ? try_flock(op, l) : try_bytes(op, l);
        else
            r = -ENOMEM;
        if (r == -EAGAIN && op->sleep)
            return false;
        if (r == -EBUSY && op->is_disk)
            r = disk_busy(op, last);
        if (r == -EBUSY && op->is_disk)
            return false;
    }
    struct view *v = op->v;
    bool released = r == 0 && (op->is_flock ? op->op != LOCK_EX : op->lock.l_type != F_WRLCK);
    fuse_reply_err(op->req, -r);
    free(op);
    if (released)
        park_kick(v->park);
    return true;
}

static void lock_start(fuse_req_t req, struct fuse_file_info *fi, const struct lock_op *in)
{
    struct view *v = view_of(req);
    struct handle *h = handle_get(v->guard->handles, fi->fh);
    struct lock_op *op = h ? malloc(sizeof(*op)) : NULL;
    if (!op) {
        fuse_reply_err(req, h ? ENOMEM : EBADF);
        return;
    }
    *op = *in;
    op->req = req;
    op->v = v;
    op->h = h;
    op->owner = fi->lock_owner;
    op->is_disk = !op->is_flock && image_disk_said(v->guard, h, &op->lock);
    op->since_ms = op->is_disk ? base_now_ms() : 0;
    park_start(v->park, req, lock_turn, op,
               op->is_disk && !op->sleep ? v->guard->opt.wait_s * UINT64_C(1000) : PARK_FOREVER);
}

void fs_setlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *lock,
              int sleep)
{
    (void)ino;
    struct lock_op op = {.lock = *lock, .sleep = sleep};
    lock_start(req, fi, &op);
}

void fs_flock(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, int op)
{
    (void)ino;
    struct lock_op l = {.is_flock = true, .op = op & ~LOCK_NB, .sleep = !(op & LOCK_NB)};
    lock_start(req, fi, &l);
}

/* ---- what ends with a descriptor ---- */

/* Takes the owners that match off the list and drops their locks. */
static void drop_owners(struct view *v, struct inode_locks *l,
                        bool (*match)(const struct lock_owner *o, const void *arg), const void *arg)
{
    struct owner_list gone = LIST_HEAD_INITIALIZER(gone);
    struct lock_owner *o, *next;
    mutex_lock(&l->lock);
    LIST_FOREACH_SAFE(o, &l->owners, entry, next) {
        if (match(o, arg)) {
            LIST_REMOVE(o, entry);
            LIST_INSERT_HEAD(&gone, o, entry);
        }
    }
    mutex_unlock(&l->lock);
    bool any = !LIST_EMPTY(&gone);
    LIST_FOREACH_SAFE(o, &gone, entry, next) {
        owner_forget(l, o);
        /* Closing unlocks; but an operation under way on another thread may keep the owner a while.
         */
        if (atomic_load(&o->fd) >= 0)
            (void)set_range(atomic_load(&o->fd), F_UNLCK, (struct range){0, 0});
        if (atomic_load(&o->forwarded))
            (void)flock_fd(atomic_load(&o->fd), LOCK_UN);
        owner_put(l, o);
    }
    if (any)
        park_kick(v->park);
}

static bool match_process(const struct lock_owner *o, const void *arg)
{
    return o->kind == OWNER_BYTES && o->id == *(const uint64_t *)arg;
}

/* One that another handle uses, too, without that being told from an open file that came after this
 * one's, keeps what it has: no live lock is ever dropped. */
static bool match_handle(const struct lock_owner *o, const void *arg)
{
    return o->via == arg && !o->also;
}

/* A process closes a descriptor: what it has locked through this handle as another owner is its
 * open file's. */
static void note_files(struct inode_locks *l, const struct handle *h, uint64_t owner,
                       fuse_req_t req)
{
    bool any = false;
    mutex_lock(&l->lock);
    struct lock_owner *o;
    LIST_FOREACH(o, &l->owners, entry)
        any |= o->kind == OWNER_BYTES && o->via == h && o->id != owner && !o->is_file;
    mutex_unlock(&l->lock);
    if (!any)
        return;
    uint64_t pid = cred_thread_group(req);
    mutex_lock(&l->lock);
    LIST_FOREACH(o, &l->owners, entry)
        o->is_file |= pid && o->kind == OWNER_BYTES && o->via == h && o->id != owner &&
                      atomic_load(&o->bytes.pid) == pid;
    mutex_unlock(&l->lock);
}

void fs_lock_flush(struct view *v, fuse_req_t req, struct handle *h, uint64_t owner)
{
    struct inode_locks *l = atomic_load(&h->inode->locks);
    if (!l)
        return;
    note_files(l, h, owner, req);
    drop_owners(v, l, match_process, &owner);
}

void fs_lock_release(struct view *v, struct handle *h)
{
    struct inode_locks *l = atomic_load(&h->inode->locks);
    if (!l)
        return;
    HOOK("lock.release");
    drop_owners(v, l, match_handle, h);
    mutex_lock(&l->lock);
    struct lock_owner *o;
    LIST_FOREACH(o, &l->owners, entry) {
        if (o->via == h)
            o->via = o->also;
        if (o->also == h || o->via == o->also)
            o->also = NULL;
    }
    mutex_unlock(&l->lock);
}
