/* walk.c: see walk.h. */
#include "guard/walk.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mountinfo.h"
#include "base/sync.h"
#include "guard/guard.h"

#define SYMLINK_MAX 40 /* MAXSYMLINKS, linux/namei.h */

/* Takes the first component of a path out of it. 0 or -ENAMETOOLONG; *ret "": there is none left.
 */
static int take_name(char *rest, char ret[NAME_MAX + 1])
{
    const char *p = rest + strspn(rest, "/");
    size_t len = strcspn(p, "/");
    if (len > NAME_MAX)
        return -ENAMETOOLONG;
    memcpy(ret, p, len);
    ret[len] = '\0';
    memmove(rest, p + len, strlen(p + len) + 1);
    return 0;
}

static void drop_last(char *path)
{
    char *slash = strrchr(path, '/');
    *(slash ? slash : path) = '\0';
}

/* Puts a path, such as the target of a symbolic link, in front of the rest. */
static int put_front(char rest[2 * PATH_MAX], const char *first)
{
    size_t n = strlen(first), m = strlen(rest);
    if (n + 1 + m >= 2 * PATH_MAX)
        return -ENAMETOOLONG;
    memmove(rest + n + 1, rest, m + 1);
    memcpy(rest, first, n);
    rest[n] = '/';
    return 0;
}

static int read_link(int fd, char ret[PATH_MAX])
{
    ssize_t n = readlinkat(fd, "", ret, PATH_MAX - 1);
    if (n < 0)
        return -errno;
    ret[n] = '\0';
    return 0;
}

/* What an O_PATH descriptor is called: asks nobody. */
static int path_of(int fd, char ret[PATH_MAX])
{
    char link[32];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, ret, PATH_MAX - 1);
    if (n < 0)
        return -errno;
    ret[n] = '\0';
    return 0;
}

/* ---- outside, on a thread of its own ---- */

struct outside {
    /* in */
    int at;      /* an O_PATH directory, or -1: "/" */
    int root_fd; /* the datastore's root, a duplicate */
    /* its path; and what mountinfo names as the source of its views */
    char root[PATH_MAX], source[PATH_MAX];
    /* in and out */
    char rest[2 * PATH_MAX];
    unsigned links;
    /* out */
    int r;               /* 0: it is in the datastore, at */
    char done[PATH_MAX]; /* this path, which it entered from the directory `at` */
    bool up;             /* or by a ".." from a mount within a view */
    /* in the walk */
    unsigned mount; /* that `at` is on */
    /* between the two threads */
    struct mutex lock;
    struct cond changed;
    bool over, left; /* the walk has ended; nobody waits for it */
};

static atomic_uint walkers;

static void outside_free(struct outside *o)
{
    if (o->at >= 0)
        close(o->at);
    close(o->root_fd);
    cond_destroy(&o->changed);
    mutex_destroy(&o->lock);
    free(o);
}

static int mount_id(int fd, unsigned *ret)
{
    char path[48], line[128];
    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
    FILE *f = fopen(path, "re");
    if (!f)
        return -errno;
    int found = 0;
    while (found != 1 && fgets(line, sizeof(line), f))
        found = sscanf(line, "mnt_id: %u", ret);
    fclose(f);
    return found == 1 ? 0 : -EIO;
}

/* Is this mount a view of the datastore, this daemon's or another's? Then o->done is the path below
 * it. 1, 0 or -errno. */
static int in_view(struct outside *o, int fd, unsigned id)
{
    struct mountinfo m = {0};
    char path[PATH_MAX];
    int r = mountinfo_find_id(id, &m);
    if (r == 0 && strncmp(m.type, "fuse", 4) == 0 && strcmp(m.source, o->source) == 0)
        r = path_of(fd, path);
    else if (r == 0 || r == -ENOENT) {
        mountinfo_free(&m);
        return 0;
    }
    size_t n = r == 0 ? strlen(m.point) : 0;
    if (r == 0 && (strncmp(path, m.point, n) != 0 || (path[n] != '/' && path[n] != '\0')))
        r = -ENOENT;
    if (r == 0) {
        const char *root = strcmp(m.root, "/") == 0 ? "" : m.root + 1,
                   *below = path + n + (path[n] == '/');
        int len =
            snprintf(o->done, sizeof(o->done), "%s%s%s", root, *root && *below ? "/" : "", below);
        r = len < (int)sizeof(o->done) ? 1 : -ENAMETOOLONG;
    }
    mountinfo_free(&m);
    return r;
}

/* A file or directory on the datastore's file system that was reached through another mount of it:
 * is it a part of the datastore? Its handle opens it in the datastore's own mount, where the kernel
 * knows its path. */
static bool in_bind(struct outside *o, int fd, const struct stat *st)
{
    struct io_handle h;
    struct stat now;
    char path[PATH_MAX];
    size_t n = strlen(o->root);
    if (io_handle_get(fd, &h) < 0 || h.len == 0)
        return false;
    _cleanup_close_ int own = io_fresh_handle(o->root_fd, &h, O_PATH, NULL);
    if (own < 0 || path_of(own, path) < 0 || strncmp(path, o->root, n) != 0 || path[n] != '/')
        return false;
    _cleanup_close_ int again = io_fresh_open(o->root_fd, path + n + 1, O_PATH | O_NOFOLLOW);
    if (again < 0 || io_fresh_stat(again, &now) < 0 || now.st_ino != st->st_ino ||
        now.st_dev != st->st_dev)
        return false;
    memcpy(o->done, path + n + 1, strlen(path + n + 1) + 1);
    return true;
}

static int start_again(struct outside *o)
{
    if (o->at >= 0)
        close(o->at);
    o->at = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    return o->at < 0 ? -errno : mount_id(o->at, &o->mount);
}

/* One component led to fd, which is consumed. 1: that is in the datastore; 0: on; -EXDEV: the walk
 * ends outside. */
static int arrive(struct outside *o, int opened)
{
    _cleanup_close_ int fd = opened;
    unsigned id;
    struct stat st, root;
    char target[PATH_MAX];
    int r = mount_id(fd, &id);
    bool crossed = r == 0 && id != o->mount;
    if (crossed)
        r = in_view(o, fd, id); /* before anything is asked of it */
    if (r != 0)
        return r;
    if (fstat(fd, &st) < 0 || fstat(o->root_fd, &root) < 0)
        return -errno;
    o->done[0] = '\0';
    if (st.st_dev == root.st_dev && (st.st_ino == root.st_ino || (crossed && in_bind(o, fd, &st))))
        return 1;
    if (S_ISLNK(st.st_mode)) {
        r = ++o->links > SYMLINK_MAX ? -ELOOP : read_link(fd, target);
        if (r == 0)
            r = put_front(o->rest, target);
        return r == 0 && target[0] == '/' ? start_again(o) : r;
    }
    if (!S_ISDIR(st.st_mode))
        return o->rest[strspn(o->rest, "/")] ? -ENOTDIR : -EXDEV;
    close(o->at);
    o->at = base_steal_fd(&fd);
    o->mount = id;
    return 0;
}

static int walk_outside(struct outside *o)
{
    char name[NAME_MAX + 1];
    int r = o->at < 0 ? start_again(o) : mount_id(o->at, &o->mount);
    while (r == 0) {
        r = take_name(o->rest, name);
        if (r < 0 || !name[0])
            return r < 0 ? r : -EXDEV; /* a directory */
        if (strcmp(name, ".") == 0)
            continue;
        /* O_DIRECTORY sets an automount going, as the hypervisor's own way would. */
        bool last = o->rest[strspn(o->rest, "/")] == '\0';
        int fd = openat(o->at, name, O_PATH | O_NOFOLLOW | O_CLOEXEC | (last ? 0 : O_DIRECTORY));
        if (fd < 0 && errno == ENOTDIR && !last)
            /* a symbolic link, perhaps */
            fd = openat(o->at, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        o->up = strcmp(name, "..") == 0;
        r = fd < 0 ? -errno : arrive(o, fd);
    }
    return r < 0 ? r : 0;
}

static void *outside_run(void *arg)
{
    struct outside *o = arg;
    int r = walk_outside(o);
    mutex_lock(&o->lock);
    o->r = r;
    o->over = true;
    bool left = o->left;
    cond_signal(&o->changed);
    mutex_unlock(&o->lock);
    atomic_fetch_sub(&walkers, 1);
    if (left)
        outside_free(o);
    return NULL;
}

static bool outside_start(struct outside *o)
{
    pthread_attr_t attr;
    pthread_t thread;
    if (atomic_fetch_add(&walkers, 1) >= WALK_THREADS) {
        atomic_fetch_sub(&walkers, 1);
        return false;
    }
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    int r = pthread_create(&thread, &attr, outside_run, o);
    pthread_attr_destroy(&attr);
    if (r != 0)
        atomic_fetch_sub(&walkers, 1);
    return r == 0;
}

/* false: it hangs, and frees *o itself when it ever ends. */
static bool outside_wait(struct outside *o)
{
    uint64_t until = base_now_ms() + WALK_MS;
    mutex_lock(&o->lock);
    while (!o->over)
        if (!cond_wait_until(&o->changed, &o->lock, until))
            break;
    bool over = o->over;
    o->left = !over;
    mutex_unlock(&o->lock);
    return over;
}

static struct outside *outside_new(const struct guard *g, int at)
{
    struct outside *o = calloc(1, sizeof(*o));
    if (!o)
        return NULL;
    o->at = at < 0 ? -1 : fcntl(at, F_DUPFD_CLOEXEC, 0);
    o->root_fd = fcntl(g->store.root_fd, F_DUPFD_CLOEXEC, 0);
    if (o->root_fd < 0 || (at >= 0 && o->at < 0)) {
        if (o->at >= 0)
            close(o->at);
        if (o->root_fd >= 0)
            close(o->root_fd);
        free(o);
        return NULL;
    }
    snprintf(o->root, sizeof(o->root), "%s", g->store.path);
    snprintf(o->source, sizeof(o->source), "%s", g->opt.datastore);
    mutex_init(&o->lock);
    cond_init(&o->changed);
    return o;
}

/* Goes on with w->rest outside, from w->out (or "/"), until it is in the datastore again. 0: it is,
 * at w->done. */
static int leave(const struct guard *g, struct walk *w, bool from_root)
{
    struct outside *o = outside_new(g, from_root ? -1 : w->out);
    if (!o)
        return -ENOMEM;
    memcpy(o->rest, w->rest, sizeof(o->rest));
    o->links = w->links;
    if (!outside_start(o)) {
        outside_free(o);
        return -ETIMEDOUT;
    }
    if (!outside_wait(o))
        return -ETIMEDOUT;
    int r = o->r;
    if (r == 0) {
        memcpy(w->rest, o->rest, sizeof(w->rest));
        memcpy(w->done, o->done, sizeof(w->done));
        w->links = o->links;
        w->entry = o->up ? 0 : strlen(w->done);
        if (w->out >= 0)
            close(w->out);
        w->out = o->up ? -1 : base_steal_fd(&o->at);
    }
    outside_free(o);
    return r;
}

/* ---- below the datastore ---- */

static int go_up(const struct guard *g, struct walk *w)
{
    char up[PATH_MAX];
    if (strlen(w->done) > w->entry) {
        drop_last(w->done);
        return 0;
    }
    if (w->out >= 0)
        return leave(g, w, false);
    snprintf(up, sizeof(up), "%s", g->opt.mountpoint);
    drop_last(up);
    int r = put_front(w->rest, up);
    return r < 0 ? r : leave(g, w, true);
}

/* The last component of done is a symbolic link: its target takes the place of it. */
static int follow(const struct guard *g, int fd, struct walk *w)
{
    char target[PATH_MAX];
    int r = ++w->links > SYMLINK_MAX ? -ELOOP : read_link(fd, target);
    if (r == 0)
        r = put_front(w->rest, target);
    if (r < 0)
        return r;
    drop_last(w->done);
    return target[0] == '/' ? leave(g, w, true) : 0;
}

/* Takes one component from rest to done. */
static int step(const struct guard *g, struct walk *w)
{
    char name[NAME_MAX + 1];
    size_t at = strlen(w->done);
    int r = take_name(w->rest, name);
    if (r < 0 || !name[0] || strcmp(name, ".") == 0)
        return r;
    if (strcmp(name, "..") == 0)
        return go_up(g, w);
    if (snprintf(w->done + at, sizeof(w->done) - at, "%s%s", at ? "/" : "", name) >=
        (int)(sizeof(w->done) - at))
        return -ENAMETOOLONG;
    _cleanup_close_ int fd = io_fresh_open(g->store.root_fd, w->done, O_PATH | O_NOFOLLOW);
    struct stat st;
    r = fd < 0 ? fd : io_fresh_stat(fd, &st);
    return r == 0 && S_ISLNK(st.st_mode) ? follow(g, fd, w) : r;
}

int image_walk(const struct guard *g, const char *dir, const char *name, struct walk *ret)
{
    struct walk *w = ret;
    int n = name[0] == '/' || !dir[0] ? snprintf(w->rest, sizeof(w->rest), "%s", name)
                                      : snprintf(w->rest, sizeof(w->rest), "%s/%s", dir, name);
    w->done[0] = '\0';
    w->links = 0;
    w->entry = 0;
    w->out = -1;
    if (n >= (int)sizeof(w->rest))
        return -ENAMETOOLONG;
    int r = w->rest[0] == '/' ? leave(g, w, true) : 0;
    while (r == 0 && w->rest[0])
        r = step(g, w);
    if (w->out >= 0)
        close(w->out);
    w->out = -1;
    return r < 0 ? r : io_fresh_open(g->store.root_fd, w->done, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
}

int image_walk_dir(const char *dir, const char *name, char ret[PATH_MAX])
{
    bool whole = name[0] == '/' || !dir[0];
    int n = snprintf(ret, PATH_MAX, "%s%s%s", whole ? "" : dir, whole ? "" : "/", name);
    if (n >= PATH_MAX)
        return -ENAMETOOLONG;
    char *slash = strrchr(ret, '/');
    if (slash == ret)
        ret[1] = '\0';
    else
        *(slash ? slash : ret) = '\0';
    return 0;
}
