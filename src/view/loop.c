#include "view/loop.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <string.h>

#include "base/log.h"
#include "guard/manager.h"
#include "run/lanes.h"
#include "run/pool.h"
#include "view/fs.h"
#include "view/init.h"

#define MAX_WRITE (1024u * 1024u)
/* The payload of a WRITE follows these; it is what must be page-aligned. <linux/fuse.h> */
#define WRITE_HEAD (sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in))
/* The kernel wants room for a header and max_write; libfuse counts a page for the header. */
#define REQUEST_MAX (MAX_WRITE + 4096u)
/* So many receivers wait in read(2) at most; the others wait for their turn. The kernel wakes those
 * in read(2) one after the other: with all of them there, each request would run on the thread
 * whose stack and buffer have been out of use the longest. */
#define LISTENERS_MAX 4u
/* A request up to this size is copied for the other thread; a greater one takes the receiver's
 * buffer along. */
#define COPY_MAX (32u * 1024u)

/* Memory for one request: `mem` stands WRITE_HEAD bytes before a page boundary. */
struct request_buffer {
    void *base;
    char *mem;
};

struct passed_request { /* on its way to another thread */
    struct fuse_session *se;
    struct request_buffer buf;
    size_t size;
};

struct receiver {
    struct view *v;
    pthread_t thread;
    atomic_bool inside; /* it runs a request that may wait for the storage */
    atomic_bool ended;
    bool joined;
    int error;
};

/* There is one loop in a process: loop_stop() is called by signal handlers and has no argument. */
static struct {
    atomic_bool stop;
    sem_t wake;
    atomic_uint inside;    /* receivers that are */
    atomic_uint listening; /* receivers in read(2), or about to be */
    atomic_uint parked;    /* receivers that wait for `turn`, and that nobody has woken yet */
    sem_t turn;
    struct receiver *all;
    unsigned n;
} loop;
static pthread_once_t loop_once = PTHREAD_ONCE_INIT;

static void loop_init(void)
{
    sem_init(&loop.wake, 0, 0);
    sem_init(&loop.turn, 0, 0);
}

static bool buffer_new(size_t size, struct request_buffer *ret)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *base;
    if (posix_memalign(&base, page, page + size) != 0)
        return false;
    *ret = (struct request_buffer){.base = base, .mem = (char *)base + page - WRITE_HEAD};
    return true;
}

_Static_assert(offsetof(struct fuse_read_in, offset) == offsetof(struct fuse_write_in, offset) &&
                   offsetof(struct fuse_read_in, flags) == offsetof(struct fuse_write_in, flags) &&
                   offsetof(struct fuse_read_in, fh) == offsetof(struct fuse_write_in, fh),
               "they begin alike");

enum where { ON_RECEIVER, SHORT, IN_LANE, IN_POOL };

/* OPEN for reading claims nothing; FLUSH and RELEASE of what is no image restore nothing. */
static bool is_short(struct view *v, uint32_t opcode, const char *body, size_t size)
{
    uint64_t fh;
    uint32_t flags; /* first in fuse_open_in; fh is in fuse_release_in and fuse_flush_in */
    if (size < sizeof(fh))
        return false;
    if (opcode == FUSE_OPEN) {
        memcpy(&flags, body, sizeof(flags));
        return (flags & (O_ACCMODE | O_TRUNC)) == O_RDONLY;
    }
    memcpy(&fh, body, sizeof(fh));
    const struct handle *h = handle_get(v->guard->handles, fh);
    return h && !atomic_load(&h->guarded) && !image_manager_expected(h);
}

/* Where it belongs. On this thread: READ and WRITE of guest data; what never touches the datastore.
 * SHORT: what asks the storage for a name, for attributes or a header, and waits for nobody else.
 * *ret_lane: of IN_LANE. */
static enum where where_to(struct view *v, const char *mem, size_t size, uint64_t *ret_lane)
{
    struct fuse_in_header in;
    struct fuse_read_in io; /* fh, offset, size, flags stand where those of fuse_write_in do */
    memcpy(&in, mem, sizeof(in));
    switch (in.opcode) {
    case FUSE_READ:
    case FUSE_WRITE:
        if (size < sizeof(in) + sizeof(io))
            return ON_RECEIVER;
        memcpy(&io, mem + sizeof(in), sizeof(io));
        const struct handle *h = handle_get(v->guard->handles, io.fh);
        if (!h ||
            (in.opcode == FUSE_READ ? fs_data_read_direct(h, io.offset)
                                    : fs_data_write_direct(h, io.flags & O_APPEND, io.offset)))
            return ON_RECEIVER;
        if (in.opcode == FUSE_WRITE && image_manager_expected(h))
            /* it may wait for the holder, whose own reads and writes are in that lane */
            return IN_POOL;
        *ret_lane = h->inode->nodeid;
        return IN_LANE;
    case FUSE_INIT:
        init_seen(v, mem, size);
        return ON_RECEIVER;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:
    case FUSE_DESTROY:
    case FUSE_IOCTL: /* there are none: isatty(3) asks */
        return ON_RECEIVER;
    case FUSE_LOOKUP:
    case FUSE_GETATTR:
    case FUSE_READLINK:
    case FUSE_STATFS:
    case FUSE_GETXATTR:
    case FUSE_LISTXATTR:
    case FUSE_CREATE: /* these two go to the pool by themselves where it is an image */
    case FUSE_UNLINK:
    case FUSE_MKDIR:
    case FUSE_RMDIR:
    case FUSE_OPENDIR:
    case FUSE_READDIR:
    case FUSE_READDIRPLUS:
    case FUSE_RELEASEDIR:
    case FUSE_FSYNC:
        return SHORT;
    case FUSE_OPEN:
    case FUSE_FLUSH:
    case FUSE_RELEASE:
        return is_short(v, in.opcode, mem + sizeof(in), size - sizeof(in)) ? SHORT : IN_POOL;
    default:
        return IN_POOL;
    }
}

static void process(struct fuse_session *se, char *mem, size_t size)
{
    struct fuse_buf buf = {.mem = mem, .size = size};
    fuse_session_process_buf(se, &buf);
}

static void run_request(void *arg)
{
    struct passed_request *r = arg;
    process(r->se, r->buf.mem, r->size);
    free(r->buf.base);
    free(r);
}

/* Hands the request to the pool, or to its lane. *own is what the receiver goes on with: its base
 * is NULL when the buffer went along. */
static void hand_over(struct view *v, struct request_buffer *own, size_t size, enum where where,
                      uint64_t lane)
{
    struct passed_request *r = malloc(sizeof(*r));
    if (!r)
        goto here;
    *r = (struct passed_request){.se = v->se, .size = size};
    if (size > COPY_MAX) {
        r->buf = *own;
        own->base = NULL;
    } else if (buffer_new(size, &r->buf)) {
        memcpy(r->buf.mem, own->mem, size);
    } else {
        goto here;
    }
    if (where == IN_LANE)
        lanes_submit(v->lanes, lane, run_request, r);
    else
        pool_submit(v->guard->pool, run_request, r);
    return;
here: /* no memory: late is better than lost */
    free(r);
    process(v->se, own->mem, size);
}

/* On this thread, which saves two of them the change, as long as enough others go on reading
 * requests: the storage may take minutes for one of them. */
static bool run_short(struct receiver *r, char *mem, size_t size)
{
    struct fuse_in_header in;
    memcpy(&in, mem, sizeof(in));
    unsigned most = in.opcode == FUSE_FSYNC ? LOOP_SYNC_MAX : LOOP_SHORT_MAX;
    bool ok = atomic_fetch_add(&loop.inside, 1) < most;
    if (ok) {
        atomic_store(&r->inside, true);
        process(r->v->se, mem, size);
        atomic_store(&r->inside, false);
    }
    atomic_fetch_sub(&loop.inside, 1);
    return ok;
}

/* Takes one out of the parked receivers, whichever. false: there is none. */
static bool unpark(void)
{
    unsigned n = atomic_load(&loop.parked);
    while (n > 0 && !atomic_compare_exchange_weak(&loop.parked, &n, n - 1))
        ;
    return n > 0;
}

/* Before read(2): waits while enough others are there. */
static void listen_begin(void)
{
    while (atomic_fetch_add(&loop.listening, 1) >= LISTENERS_MAX && !atomic_load(&loop.stop)) {
        atomic_fetch_sub(&loop.listening, 1);
        atomic_fetch_add(&loop.parked, 1);
        /* Whoever left in between may have seen nobody to wake. Where unpark() finds none, another
         * thread has counted this one out and wakes it. */
        if (atomic_load(&loop.listening) == 0 && unpark())
            continue;
        while (sem_wait(&loop.turn) < 0 && errno == EINTR && !atomic_load(&loop.stop))
            ;
    }
}

/* After read(2), before anything that takes time: somebody must go on reading. */
static void listen_end(void)
{
    if (atomic_fetch_sub(&loop.listening, 1) == 1 && unpark())
        sem_post(&loop.turn);
}

/* 0: unmounted or told to stop. */
static int receive(struct receiver *self, struct request_buffer *buf)
{
    struct view *v = self->v;
    int fd = fuse_session_fd(v->se);
    while (!atomic_load(&loop.stop)) {
        if (!buf->base && !buffer_new(REQUEST_MAX, buf)) {
            usleep(10000);
            continue;
        }
        /* Not fuse_session_receive_buf(): it reads as much as libfuse thinks that the buffer holds,
         * which is not ours to know, and it drops a request that it has read when the session is
         * ending. */
        listen_begin();
        ssize_t n = read(fd, buf->mem, REQUEST_MAX);
        int err = errno;
        listen_end();
        if (n < 0) {
            if (err == ENODEV)
                return 0;
            if (err == ENOENT || err == EINTR || err == EAGAIN)
                continue;
            if (err == ENOMEM) {
                usleep(10000);
                continue;
            }
            return -err;
        }
        if ((size_t)n < sizeof(struct fuse_in_header))
            return -EIO;
        uint64_t lane = 0;
        enum where where = where_to(v, buf->mem, (size_t)n, &lane);
        if (where == ON_RECEIVER)
            process(v->se, buf->mem, (size_t)n);
        else if (where != SHORT || !run_short(self, buf->mem, (size_t)n))
            hand_over(v, buf, (size_t)n, where, lane);
    }
    return 0;
}

static void *receiver_main(void *arg)
{
    struct receiver *r = arg;
    struct request_buffer buf = {0};
    r->error = receive(r, &buf);
    free(buf.base);
    atomic_store(&r->ended, true);
    sem_post(&loop.wake);
    return NULL;
}

static void on_wake(int sig)
{
    (void)sig;
}

/* A signal that arrives just before the read is lost: repeat it until the thread is gone. One that
 * waits for the storage is left alone, or (wait) waited for. */
static void stop_receiver(struct receiver *r, bool wait)
{
    while (!atomic_load(&r->ended)) {
        bool inside = atomic_load(&r->inside);
        if (inside && !wait)
            return;
        if (!inside)
            pthread_kill(r->thread, SIGUSR1);
        usleep(5000);
    }
    pthread_join(r->thread, NULL);
    r->joined = true;
}

int loop_run(struct view *v)
{
    pthread_once(&loop_once, loop_init);
    struct sigaction sa = {.sa_handler = on_wake}; /* no SA_RESTART: the read must return */
    sigaction(SIGUSR1, &sa, NULL);

    struct receiver *all = loop.all = calloc(LOOP_DATA_THREADS, sizeof(*all));
    if (!all)
        return -ENOMEM;
    for (loop.n = 0; loop.n < LOOP_DATA_THREADS; loop.n++) {
        all[loop.n].v = v;
        if (pthread_create(&all[loop.n].thread, NULL, receiver_main, &all[loop.n]) != 0)
            break;
    }
    int r = loop.n > 0 ? 0 : -EAGAIN;
    if (loop.n > 0) {
        while (sem_wait(&loop.wake) < 0 && errno == EINTR)
            ;
    }
    atomic_store(&loop.stop, true);
    for (unsigned i = 0; i < loop.n; i++) {
        stop_receiver(&all[i], false);
        if (all[i].joined && all[i].error < 0)
            r = all[i].error;
    }
    return r;
}

void loop_drain(void)
{
    for (unsigned i = 0; i < loop.n; i++)
        if (!loop.all[i].joined)
            stop_receiver(&loop.all[i], true);
    free(loop.all);
    loop.all = NULL;
    loop.n = 0;
}

void loop_stop(void)
{
    pthread_once(&loop_once, loop_init);
    atomic_store(&loop.stop, true);
    sem_post(&loop.wake);
}
