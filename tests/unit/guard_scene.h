/* guard_scene.h: guards on one datastore in a temporary directory, each of them a host, and no
 * view.
 *
 * A program opens, reads, writes and closes a file of the datastore through a guard as view/ does
 * it for a request of the kernel. */
#ifndef GUARD_SCENE_H
#define GUARD_SCENE_H

#include <stdlib.h>
#include <unistd.h>

#include "fakes.h"
#include "guard/conflict.h"
#include "guard/guard.h"
#include "qcow2_image.h"
#include "tempstore.h"

#define HOSTS 2u

static struct tempstore temp;
static struct guard *host[HOSTS];
static uint8_t truth[FORMAT_REACH]; /* the first bytes of disk.qcow2 */

/* Two processes that are there: a holder whose process is gone is a case of its own. */
static struct opener first, second;

/* Of the last open that got -EBUSY. */
static struct conflict conflict;

/* fake_mallocs for the guard's part of an open, and then what is left of it */
static int open_mallocs = -1;

static inline const char *raw_path(const char *name)
{
    static char path[256];

    snprintf(path, sizeof(path), "%s/%s", temp.path, name);
    return path;
}

static inline void put_raw(const char *name, const void *bytes, size_t len, off_t size)
{
    int fd = open(raw_path(name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

    cr_assert(fd >= 0);
    cr_assert_eq(pwrite(fd, bytes, len, 0), (ssize_t)len);
    cr_assert_eq(ftruncate(fd, size), 0);
    close(fd);
}

static inline void get_raw(const char *name, void *ret, size_t len)
{
    int fd = open(raw_path(name), O_RDONLY | O_CLOEXEC);

    cr_assert(fd >= 0);
    cr_assert_eq(pread(fd, ret, len, 0), (ssize_t)len);
    close(fd);
}

/* Does the image on the datastore show its true header? */
static inline bool is_true(const char *name)
{
    uint8_t b[FORMAT_REACH];

    get_raw(name, b, sizeof(b));
    return memcmp(b, truth, sizeof(b)) == 0;
}

/* opt: its datastore is set here. */
static inline struct guard *host_up(unsigned n, const struct guard_options *opt)
{
    struct guard *g = calloc(1, sizeof(*g));
    struct why why = {""};
    char dir[128];

    cr_assert_not_null(g);
    g->host = tempstore_host(0xa + n);
    g->opt = *opt;
    g->opt.datastore = temp.path;
    g->heartbeat_ms = 5000;
    cr_assert_eq(store_open(temp.path, &g->store, &why), 0, "%s", why.text);
    snprintf(dir, sizeof(dir), "%s/state-%u", temp.base, n);
    cr_assert(mkdir(dir, 0700) == 0 || errno == EEXIST);
    cr_assert_eq(journal_open(dir, g->store.uuid, &g->journal, &why), 0, "%s", why.text);
    g->policy = (struct seal_policy){.mode = SEAL_REFUSE, .holder = g->host.name};
    cr_assert_eq(guard_init(g), 0);
    return g;
}

static inline void host_down(struct guard *g)
{
    if (!g)
        return;
    guard_free(g);
    journal_close(g->journal);
    store_close(&g->store);
    free(g);
}

static inline void scene_make(void)
{
    fake_fencing = fake_gone = -1;
    cr_assert_eq(tempstore_make(&temp), 0);
    build(truth, 3);
    put_raw("disk.qcow2", truth, sizeof(truth), IMAGE_SIZE);
    cr_assert(opener_process((uint64_t)getpid(), &first));
    cr_assert(opener_process((uint64_t)getppid(), &second));
    for (unsigned n = 0; n < HOSTS; n++)
        host[n] = host_up(n, &(struct guard_options){0});
}

static inline void scene_remove(void)
{
    for (unsigned n = 0; n < HOSTS; n++) {
        host_down(host[n]);
        host[n] = NULL;
    }
    tempstore_remove(&temp);
}

/* The pinned inode of a name. */
static inline struct inode *look_up(struct guard *g, const char *name)
{
    struct stat st;
    int fd = openat(g->store.root_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);

    cr_assert(fd >= 0);
    cr_assert_eq(fstat(fd, &st), 0);
    struct inode *i = inode_enter(g->inodes, fd, &st, false);
    cr_assert_not_null(i);
    return i;
}

static inline void drop(struct guard *g, struct handle *h)
{
    handle_free(g->handles, h);
}

/* open(2) of a program through the guard: *ret, or NULL with the result. */
static inline int open_as(struct guard *g, const char *name, int flags, const struct opener *who,
                          struct handle **ret)
{
    struct inode *i = look_up(g, name);
    struct handle *h = handle_new(g->handles, i);
    int r;

    inode_put(g->inodes, i);
    cr_assert_not_null(h);
    *ret = NULL;
    h->opener = *who;
    h->flags = flags;
    h->writer = (flags & O_ACCMODE) != O_RDONLY;
    h->fd = io_reopen(h->inode->fd, h->writer ? O_RDWR : O_RDONLY);
    cr_assert(h->fd >= 0);
    if (h->writer) {
        fake_mallocs = open_mallocs;
        r = image_open(g, h, flags & O_TRUNC, &conflict);
        open_mallocs = fake_mallocs;
        fake_mallocs = -1;
    } else {
        struct file_probe p = {.fd = -1};
        r = image_probe(g, h->inode, &p);
    }
    if (r < 0) {
        close(h->fd);
        drop(g, h);
        return r;
    }
    handle_publish(h);
    *ret = h;
    return 0;
}

static inline void close_as(struct guard *g, struct handle *h)
{
    image_release(g, h);
    drop(g, h);
}

struct seen {
    unsigned n;
    struct image_info info;
};
static inline void see(void *arg, const struct image_info *info)
{
    struct seen *s = arg;

    s->n++;
    s->info = *info;
}

/* How many images are not IDLE; *ret is one of them. */
static inline unsigned busy(struct guard *g, struct image_info *ret)
{
    struct seen s = {0};

    image_each(g, see, &s);
    if (ret)
        *ret = s.info;
    return s.n;
}

static inline enum claim_kind claim_now(const char *name, uint64_t *ret_generation)
{
    struct claim *c = malloc(sizeof(*c));
    struct stat st;

    cr_assert_not_null(c);
    cr_assert_eq(stat(raw_path(name), &st), 0);
    cr_assert_eq(claim_read(&temp.store, st.st_ino, c), 0);
    enum claim_kind kind = c->kind;
    if (ret_generation)
        *ret_generation = c->generation;
    free(c);
    return kind;
}

#endif
