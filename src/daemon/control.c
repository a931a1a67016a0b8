#include "daemon/control.h"

#include <fcntl.h>
#include <json-c/json.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/mountinfo.h"
#include "daemon/monitor.h"
#include "daemon/options.h"
#include "diskguard/control.h"
#include "guard/guard.h"
#include "guard/shared.h"
#include "guard/takeover.h"

/* a client has this long to send its line, and again to take the answer: others wait for it */
#define CLIENT_MS 2000u
#define BACKLOG 64

struct control {
    struct daemon *daemon;
    pthread_t thread;
    int listen_fd;
    int stop_fd; /* eventfd, readable once the thread is to end */
    struct sockaddr_un addr;
    /* of the socket's name, and its time, so that a successor's socket is never removed */
    ino_t ino;
    struct timespec mtime;
};

/* ---- answers ---- */

/* The inode number still tells files apart whose names differ only in what is not UTF-8. */
static void add_text(struct json_object *o, const char *key, const char *text)
{
    char buf[3 * PATH_MAX];

    base_utf8(text, buf, sizeof(buf));
    json_object_object_add(o, key, json_object_new_string(buf));
}

static void add_u64(struct json_object *o, const char *key, uint64_t n)
{
    json_object_object_add(o, key, json_object_new_uint64(n));
}

static void add_bool(struct json_object *o, const char *key, bool b)
{
    json_object_object_add(o, key, json_object_new_boolean(b));
}

static struct json_object *answer_new(bool ok)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "version", json_object_new_int(DG_CONTROL_VERSION));
    add_bool(o, "ok", ok);
    return o;
}

static struct json_object *answer_error(const char *text)
{
    struct json_object *o = answer_new(false);

    add_text(o, "error", text);
    return o;
}

static void list_one(void *arg, const struct image_info *info)
{
    struct json_object *o = json_object_new_object();

    add_text(o, "image", info->path);
    add_u64(o, "inode", info->ino);
    add_u64(o, "generation", info->generation);
    add_text(o, "state", image_state_name(info->state));
    add_u64(o, "pid", info->holder.pid);
    add_u64(o, "start", info->holder.start);
    add_u64(o, "uid", info->holder.uid);
    add_u64(o, "gid", info->holder.gid);
    add_u64(o, "writers", info->writers);
    add_text(o, "format", info->format);
    add_u64(o, "size", info->virtual_size);
    add_text(o, "since", info->since);
    add_u64(o, "error", info->error > 0 ? (uint64_t)info->error : 0);
    add_u64(o, "sync_error", info->sync_error > 0 ? (uint64_t)info->sync_error : 0);
    add_bool(o, "sealed", info->sealed);
    add_bool(o, "byte_locks", info->byte_locks);
    json_object_array_add(arg, o);
}

static void list_shared(void *arg, const struct image_shared *s)
{
    struct json_object *o = json_object_new_object();

    add_text(o, "image", s->path);
    add_u64(o, "inode", s->ino);
    add_u64(o, "pid", s->who.pid);
    add_u64(o, "start", s->who.start);
    add_u64(o, "writers", s->writers);
    json_object_array_add(arg, o);
}

static struct json_object *answer_list(struct daemon *d)
{
    struct json_object *o = answer_new(true), *images = json_object_new_array(),
                       *shared = json_object_new_array();

    add_text(o, "daemon", d->guard.host.daemon);
    image_each(&d->guard, list_one, images);
    json_object_object_add(o, "images", images);
    image_shared_each(&d->guard, list_shared, shared);
    json_object_object_add(o, "shared", shared);
    return o;
}

static struct json_object *host_object(const struct host *h)
{
    struct json_object *o = json_object_new_object();

    add_text(o, "uuid", h->uuid);
    add_text(o, "name", h->name);
    add_text(o, "installation", h->installation);
    add_text(o, "boot", h->boot);
    add_text(o, "daemon", h->daemon);
    return o;
}

static struct json_object *answer_hosts(const struct daemon *d)
{
    struct json_object *o = answer_new(true), *hosts = json_object_new_array();

    json_object_array_add(hosts, host_object(&d->guard.host));
    json_object_object_add(o, "hosts", hosts);
    return o;
}

static void add_globs(struct json_object *o, const char *key, char **globs)
{
    struct json_object *array = json_object_new_array();

    for (char **g = globs; g && *g; g++)
        json_object_array_add(array, json_object_new_string(*g));
    json_object_object_add(o, key, array);
}

static struct json_object *options_object(const struct options *opt)
{
    static const char *const raw[] = {
        [RAW_AUTO] = "auto", [RAW_ALL] = "all", [RAW_NONE] = "none", [RAW_GLOBS] = "globs"};
    struct json_object *o = json_object_new_object();

    add_u64(o, "wait", opt->guard.wait_s);
    add_u64(o, "threshold", opt->guard.threshold);
    add_bool(o, "threshold_rules", guard_threshold_rules(&opt->guard));
    add_text(o, "damaged", opt->guard.damaged == DAMAGED_CLAIM ? "claim" : "refuse");
    add_text(o, "writers", opt->guard.writers == WRITERS_HOST ? "host" : "process");
    add_text(o, "seal", opt->guard.seal == SEAL_SIZE ? "size" : "refuse");
    add_text(o, "raw", raw[opt->guard.raw]);
    add_globs(o, "raw_globs", opt->guard.raw_globs);
    add_globs(o, "shared_globs", opt->guard.shared_globs);
    add_text(o, "fence", opt->fence_none ? "none" : "auto");
    add_text(o, "takeover", options_takeover_name(opt->guard.takeover));
    add_u64(o, "takeover_wait", opt->guard.takeover_wait_s);
    add_text(o, "state_dir", opt->state_dir ? opt->state_dir : "");
    return o;
}

static void count_one(void *arg, const struct image_info *info)
{
    ((unsigned *)arg)[info->state]++;
}

/* Has the kernel the view still mounted, here or in another mount namespace? fuse(4): a device
 * whose connection is gone has POLLERR. */
static bool is_mounted(const struct daemon *d)
{
    struct pollfd p = {fuse_session_fd(d->view.se), POLLIN, 0};

    return poll(&p, 1, 0) >= 0 && !(p.revents & (POLLERR | POLLNVAL));
}

static struct json_object *answer_status(struct daemon *d)
{
    struct json_object *o = answer_new(true), *counts = json_object_new_object();
    unsigned n[IMAGE_VANISHED + 1] = {0};

    image_each(&d->guard, count_one, n);
    for (int i = IMAGE_IDLE + 1; i <= IMAGE_VANISHED; i++)
        add_u64(counts, image_state_name((enum image_state)i), n[i]);
    add_text(o, "program", DG_VERSION);
    add_u64(o, "pid", (uint64_t)getpid());
    add_text(o, "datastore", d->opt.guard.datastore);
    add_text(o, "uuid", d->guard.store.uuid);
    add_text(o, "mountpoint", d->opt.guard.mountpoint);
    add_bool(o, "read_only", d->guard.store.read_only || d->opt.guard.read_only);
    add_bool(o, "mounted", is_mounted(d));
    add_bool(o, "stopping", atomic_load(&d->guard.stopping));
    json_object_object_add(o, "host", host_object(&d->guard.host));
    json_object_object_add(o, "options", options_object(&d->opt));
    add_u64(o, "inodes", inode_count(d->guard.inodes));
    json_object_object_add(o, "images", counts);
    return o;
}

/* Commands that change something. */
static bool may_change(uid_t uid)
{
    return uid == 0 || uid == geteuid();
}

static struct json_object *answer_retry(struct daemon *d, uid_t uid)
{
    struct monitor *m = d->monitor;

    if (!may_change(uid))
        return answer_error("retry needs root, or the user that diskguard runs as");
    if (!m)
        return answer_error("nothing to retry: this view is read-only");
    monitor_kick(m);
    return answer_new(true);
}

/* A member of the request, or NULL where it is missing or of another type. */
static struct json_object *member(struct json_object *request, const char *key, enum json_type type)
{
    struct json_object *v = NULL;

    return json_object_object_get_ex(request, key, &v) && json_object_is_type(v, type) ? v : NULL;
}

static struct json_object *answer_takeover(struct daemon *d, uid_t uid, struct json_object *request)
{
    struct json_object *image = member(request, "image", json_type_string),
                       *unproven = member(request, "unproven", json_type_boolean), *o;
    struct why why = {""};
    uint64_t ticket;

    if (!may_change(uid))
        return answer_error("takeover needs root, or the user that diskguard runs as");
    if (!image)
        return answer_error("takeover needs \"image\", a string: the path below the datastore");
    ticket = takeover_start(&d->guard, json_object_get_string(image),
                            (unproven && json_object_get_boolean(unproven)) ||
                                d->opt.guard.takeover == TAKEOVER_UNPROVEN,
                            &why);
    if (ticket == 0)
        return answer_error(why.text);
    o = answer_new(true);
    add_u64(o, "ticket", ticket);
    add_bool(o, "ended", false);
    return o;
}

static const char *takeover_word(int r)
{
    switch (r) {
    case 0:
        return "free";
    case -EAGAIN:
        return "wait";
    case -EBUSY:
        return "held";
    case -EPERM:
    case -EUCLEAN:
        return "refused";
    default:
        return "failed";
    }
}

static struct json_object *answer_takeover_result(struct daemon *d, uid_t uid,
                                                  struct json_object *request)
{
    struct json_object *ticket = member(request, "ticket", json_type_int), *o;
    struct why why = {""};
    int r = -EPERM;
    bool ended;

    if (!may_change(uid))
        return answer_error("takeover needs root, or the user that diskguard runs as");
    ended = takeover_ended(&d->guard, ticket ? json_object_get_uint64(ticket) : 0, &r, &why);
    o = answer_new(true);
    add_bool(o, "ended", ended);
    if (!ended)
        return o;
    add_text(o, "result", takeover_word(r));
    add_text(o, "text", why.text[0] ? why.text : r < 0 ? strerror(-r) : "");
    return o;
}

/* ---- requests ---- */

static struct json_object *answer(struct daemon *d, const char *line, uid_t uid)
{
    struct json_object *request = json_tokener_parse(line), *v = NULL, *c = NULL, *o;
    const char *command = "";

    if (request && json_object_object_get_ex(request, "command", &c) &&
        json_object_is_type(c, json_type_string))
        command = json_object_get_string(c);
    if (!json_object_is_type(request, json_type_object) ||
        !json_object_object_get_ex(request, "version", &v))
        o = answer_error("the request is not a line of JSON with version and command");
    else if (json_object_get_int(v) != DG_CONTROL_VERSION)
        o = answer_error(
            "this diskguard speaks version 1 of the control protocol: use the diskguardctl of its package");
    else if (strcmp(command, "list") == 0)
        o = answer_list(d);
    else if (strcmp(command, "status") == 0)
        o = answer_status(d);
    else if (strcmp(command, "hosts") == 0)
        o = answer_hosts(d);
    else if (strcmp(command, "retry") == 0)
        o = answer_retry(d, uid);
    else if (strcmp(command, "takeover") == 0)
        o = answer_takeover(d, uid, request);
    else if (strcmp(command, "takeover-result") == 0)
        o = answer_takeover_result(d, uid, request);
    else
        o = answer_error("unknown command: list, status, hosts, retry, takeover, takeover-result");
    json_object_put(request);
    return o;
}

/* Waits until fd is ready. 0; -ETIMEDOUT; -ECANCELED: the daemon stops. */
static int ready(const struct control *c, int fd, short events, uint64_t deadline)
{
    for (;;) {
        struct pollfd p[2] = {{fd, events, 0}, {c->stop_fd, POLLIN, 0}};
        uint64_t now = base_now_ms();
        int n = poll(p, 2, now < deadline ? (int)(deadline - now) : 0);

        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0 && p[1].revents)
            return -ECANCELED;
        if (n > 0)
            return 0;
        if (n == 0)
            return -ETIMEDOUT;
    }
}

/* One line without its newline into buf[DG_CONTROL_LINE_MAX + 1]. An end of file also ends it. */
static int receive(const struct control *c, int fd, char *buf)
{
    uint64_t deadline = base_now_ms() + CLIENT_MS;
    size_t used = 0;

    for (;;) {
        int r = ready(c, fd, POLLIN, deadline);
        if (r < 0)
            return r;
        ssize_t n = recv(fd, buf + used, DG_CONTROL_LINE_MAX - used, MSG_DONTWAIT);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n < 0)
            return -errno;
        used += (size_t)n;
        char *end = memchr(buf, '\n', used);
        if (end || n == 0) {
            *(end ? end : buf + used) = '\0';
            return 0;
        }
        if (used == DG_CONTROL_LINE_MAX)
            return -EMSGSIZE;
    }
}

static int transmit(const struct control *c, int fd, const char *text, size_t len)
{
    uint64_t deadline = base_now_ms() + CLIENT_MS;

    while (len > 0) {
        int r = ready(c, fd, POLLOUT, deadline);
        if (r < 0)
            return r;
        ssize_t n = send(fd, text, len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n < 0)
            return -errno;
        text += n;
        len -= (size_t)n;
    }
    return 0;
}

static void serve(struct control *c, int fd)
{
    char line[DG_CONTROL_LINE_MAX + 1];
    struct ucred peer = {.uid = (uid_t)-1};
    socklen_t size = sizeof(peer);
    struct json_object *o;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
        return;
    int r = receive(c, fd, line);
    if (r < 0 && r != -EMSGSIZE)
        return;
    o = r < 0 ? answer_error("the request is longer than a line may be")
              : answer(c->daemon, line, peer.uid);

    size_t len;
    const char *text = json_object_to_json_string_length(
        o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE, &len);
    /* A client that went away, or does not read, loses its answer and nothing else. */
    if (text && transmit(c, fd, text, len) == 0)
        (void)!transmit(c, fd, "\n", 1);
    json_object_put(o);
}

static void *control_thread(void *arg)
{
    struct control *c = arg;
    sigset_t all;

    sigfillset(&all); /* signals are the main thread's */
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    for (;;) {
        struct pollfd p[2] = {{c->listen_fd, POLLIN, 0}, {c->stop_fd, POLLIN, 0}};

        if (poll(p, 2, -1) < 0 && errno != EINTR)
            return NULL;
        if (p[1].revents)
            return NULL;
        if (!p[0].revents)
            continue;
        int fd = accept4(c->listen_fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) {
            /* Out of descriptors, mostly: do not spin on it. */
            if (errno != EINTR && errno != ECONNABORTED && poll(&p[1], 1, 1000) > 0)
                return NULL;
            continue;
        }
        serve(c, fd);
        close(fd);
    }
}

/* ---- start and end ---- */

static bool is_fuse_on(const struct mountinfo *m, const void *point)
{
    return strncmp(m->type, "fuse", 4) == 0 && strcmp(m->point, point) == 0;
}

/* The view's device number. A stat of our own mount would wait for ourselves, so the kernel's table
 * is read instead. 0 or -errno. */
static int find_device(const char *mountpoint, unsigned *ret_major, unsigned *ret_minor)
{
    struct mountinfo m = {0};
    int r = mountinfo_find(is_fuse_on, mountpoint, &m);

    if (r < 0)
        return r;
    *ret_major = m.major;
    *ret_minor = m.minor;
    mountinfo_free(&m);
    return 0;
}

/* A name of our own in the same directory, for making and removing the socket. */
static int tmp_path(const struct control *c, char *ret, size_t size)
{
    int n = snprintf(ret, size, DG_CONTROL_DIR "/.%d.%s", (int)getpid(),
                     strrchr(c->addr.sun_path, '/') + 1);

    return n < (int)size ? 0 : -ENAMETOOLONG;
}

/* Binds under a name of its own and renames it into place, so that nobody ever meets a socket that
 * does not listen. Whatever stands there is of a view that is no more, even if its daemon has not
 * quite ended: the device number is that of our mount now. */
static int bind_socket(struct control *c)
{
    struct sockaddr_un tmp = {.sun_family = AF_UNIX};
    struct stat st;
    int r;

    r = tmp_path(c, tmp.sun_path, sizeof(tmp.sun_path));
    if (r < 0)
        return r;
    c->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->listen_fd < 0)
        return -errno;
    unlink(tmp.sun_path);
    if (bind(c->listen_fd, (const struct sockaddr *)&tmp, sizeof(tmp)) < 0)
        return -errno;
    if (chmod(tmp.sun_path, 0666) < 0 || listen(c->listen_fd, BACKLOG) < 0 ||
        lstat(tmp.sun_path, &st) < 0 || rename(tmp.sun_path, c->addr.sun_path) < 0) {
        r = -errno;
        unlink(tmp.sun_path);
        return r;
    }
    c->ino = st.st_ino;
    c->mtime = st.st_mtim; /* inode numbers are given out again */
    return 0;
}

/* Removes the socket's name, unless it is a successor's by now: that one is put back, where there
 * is none yet. */
static void unbind_socket(const struct control *c)
{
    char tmp[sizeof(c->addr.sun_path)];
    struct stat st;

    if (tmp_path(c, tmp, sizeof(tmp)) < 0 || rename(c->addr.sun_path, tmp) < 0)
        return;
    if (lstat(tmp, &st) == 0 && (st.st_ino != c->ino || st.st_mtim.tv_sec != c->mtime.tv_sec ||
                                 st.st_mtim.tv_nsec != c->mtime.tv_nsec))
        (void)!link(tmp, c->addr.sun_path);
    unlink(tmp);
}

static int control_open(struct control *c)
{
    unsigned major = 0, minor = 0;
    int r = find_device(c->daemon->opt.guard.mountpoint, &major, &minor);

    if (r < 0)
        return r;
    snprintf(c->addr.sun_path, sizeof(c->addr.sun_path), DG_CONTROL_DIR "/%u:%u.sock", major,
             minor);
    if (mkdir(DG_CONTROL_DIR, 0755) == 0)
        r = chmod(DG_CONTROL_DIR, 0755) < 0 ? -errno : 0; /* whatever the umask is */
    else
        r = errno == EEXIST ? 0 : -errno;
    if (r < 0)
        return r;
    return bind_socket(c);
}

struct control *control_new(struct daemon *d, struct why *why)
{
    struct control *c = calloc(1, sizeof(*c));
    int r;

    if (!c) {
        why_set(why, "no memory for the control socket");
        return NULL;
    }
    c->daemon = d;
    c->addr.sun_family = AF_UNIX;
    c->listen_fd = -1;
    c->stop_fd = eventfd(0, EFD_CLOEXEC);
    r = c->stop_fd < 0 ? -errno : control_open(c);
    if (r == 0)
        r = -pthread_create(&c->thread, NULL, control_thread, c);
    if (r == 0)
        return c;
    why_set(
        why,
        "no control socket %s: %s; diskguardctl can still read the datastore itself, as root with --datastore",
        c->addr.sun_path[0] ? c->addr.sun_path : "in " DG_CONTROL_DIR, strerror(-r));
    if (c->ino != 0)
        unbind_socket(c);
    base_closep(&c->listen_fd);
    base_closep(&c->stop_fd);
    free(c);
    return NULL;
}

void control_free(struct control *c)
{
    uint64_t one = 1;

    if (!c)
        return;
    (void)!write(c->stop_fd, &one, sizeof(one)); /* an eventfd takes it: nobody else counts it up */
    pthread_join(c->thread, NULL);
    unbind_socket(c);
    close(c->listen_fd);
    close(c->stop_fd);
    free(c);
}
