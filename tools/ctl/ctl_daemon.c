/* ctl_daemon.c: finds views and asks their daemons. See ctl.h. */
#include "ctl/ctl.h"

#include <poll.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "diskguard/control.h"

#define ANSWER_MAX (256u << 20) /* bytes; far beyond any list of held images */

/* ---- one question, one answer ---- */

static int connect_to(const struct mount *m, struct why *why)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    /* a stopped daemon's queue may be full */
    const struct timeval limit = {.tv_sec = CTL_DAEMON_MS / 1000};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), r;

    snprintf(a.sun_path, sizeof(a.sun_path), DG_CONTROL_DIR "/%u:%u.sock", m->major, m->minor);
    if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) == 0 &&
        connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0)
        return fd;
    r = -errno;
    if (fd >= 0)
        close(fd);
    if (r == -ENOENT)
        why_set(why, "diskguard on %.200s has no control socket %s", m->point, a.sun_path);
    else if (r == -ECONNREFUSED)
        why_set(why,
                "diskguard on %.200s is dead (nobody serves %s): unmount it and mount it again",
                m->point, a.sun_path);
    else if (r == -EAGAIN)
        why_set(why, "diskguard on %.200s did not answer in time", m->point);
    else
        why_set(why, "cannot ask diskguard on %.200s (%s): %s", m->point, a.sun_path, strerror(-r));
    return r;
}

int daemon_peer(const struct mount *m, pid_t *ret_pid, int *ret_pidfd, struct why *why)
{
    _cleanup_close_ int fd = connect_to(m, why);
    struct ucred peer = {0};
    socklen_t size = sizeof(peer);
    struct pollfd p = {fd, POLLIN, 0};

    if (fd < 0)
        return fd;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
        return -errno;
    *ret_pid = peer.pid;
    *ret_pidfd = peer.pid > 0 ? pidfd_open(peer.pid, 0) : -1;
    /* The listener lives as long as the connection: until then the number is still his. */
    if (*ret_pidfd < 0 || (poll(&p, 1, 0) >= 0 && !(p.revents & (POLLHUP | POLLERR))))
        return 0;
    base_closep(ret_pidfd);
    *ret_pidfd = -1;
    why_set(why, "diskguard on %.200s has just ended", m->point);
    return -ECONNREFUSED;
}

/* Reads to the end of file. NULL: too late, too long, or an error. */
static char *read_answer(int fd, uint64_t deadline)
{
    size_t used = 0, room = 65536;
    char *buf = out_alloc(room);

    for (;;) {
        struct pollfd p = {fd, POLLIN, 0};
        uint64_t now = base_now_ms();

        if (poll(&p, 1, now < deadline ? (int)(deadline - now) : 0) <= 0)
            break;
        ssize_t n = recv(fd, buf + used, room - used - 1, 0);
        if (n == 0) {
            buf[used] = '\0';
            return buf;
        }
        if (n < 0 && errno != EINTR)
            break;
        used += n > 0 ? (size_t)n : 0;
        if (used + 1 < room)
            continue;
        room *= 2;
        char *more = room <= ANSWER_MAX ? realloc(buf, room) : NULL;
        if (!more)
            break;
        buf = more;
    }
    free(buf);
    return NULL;
}

static struct json_object *check_answer(const struct mount *m, char *text, struct why *why)
{
    struct json_object *o = text ? json_tokener_parse(text) : NULL;

    free(text);
    if (!json_object_is_type(o, json_type_object)) {
        why_set(why, "diskguard on %.200s did not answer in time", m->point);
    } else if (out_json_get_u64(o, "version") != DG_CONTROL_VERSION) {
        why_set(
            why,
            "diskguard on %.200s speaks another version of the control protocol: use the diskguardctl of its package",
            m->point);
    } else if (!out_json_get_bool(o, "ok")) {
        why_set(why, "%.500s", out_json_get_text(o, "error", "diskguard refused without a reason"));
    } else {
        return o;
    }
    json_object_put(o);
    return NULL;
}

struct json_object *daemon_ask(const struct mount *m, const char *command, const char *image,
                               struct why *why)
{
    struct json_object *o = out_object();

    if (image)
        out_json_text(o, "image", image);
    return daemon_request(m, command, o, why);
}

struct json_object *daemon_request(const struct mount *m, const char *command,
                                   struct json_object *o, struct why *why)
{
    char *text = NULL, *line;
    int fd = connect_to(m, why), n;

    out_json_text(o, "command", command);
    n = asprintf(&line, "%s\n", json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
    if (n < 0)
        out_no_memory();
    json_object_put(o);
    if (fd < 0) {
        free(line);
        return NULL;
    }
    if (send(fd, line, (size_t)n, MSG_NOSIGNAL) == n)
        text = read_answer(fd, base_now_ms() + CTL_DAEMON_MS);
    free(line);
    close(fd);
    return check_answer(m, text, why);
}

/* ---- sources ---- */

void source_open(struct source *s, const struct mount *m, const char *dir)
{
    struct why why = {""};

    memset(s, 0, sizeof(*s));
    s->mount = m;
    s->dir = dir;
    if (!m)
        return;
    s->status = daemon_ask(m, "status", NULL, &why);
    if (s->status)
        s->list = daemon_ask(m, "list", NULL, &why);
    snprintf(s->daemon_why, sizeof(s->daemon_why), "%.255s", why.text);
    /* /proc has the path as it was typed at mount; the daemon knows the canonical one. */
    s->dir = out_json_get_text(s->status, "datastore", dir);
}

void source_read(struct source *s, const char *rel, bool all)
{
    const char *uuid = out_json_get_text(s->status, "uuid", NULL);

    raw_free(s->raw);
    s->raw = raw_load(s->dir, rel, all, s->mount ? CTL_RAW_MS : 0);
    if (s->raw->err == 0 && uuid && strcmp(uuid, s->raw->store.uuid) != 0) {
        s->raw->err = -ESTALE;
        why_set(&s->raw->why, "%.300s is another datastore now than the one that %.200s shows",
                s->dir, s->mount->point);
    }
}

void source_say_unreadable(const struct source *s)
{
    int r = s->raw->err;

    if (io_err_denied(r))
        out_error("the datastore %s can be read by root only: what other hosts hold stands there",
                  source_dir(s));
    else
        out_error("%s", s->raw->why.text);
}

const char *source_dir(const struct source *s)
{
    return s->raw && s->raw->store.path[0] ? s->raw->store.path : s->dir;
}

void source_close(struct source *s)
{
    raw_free(s->raw);
    json_object_put(s->status);
    json_object_put(s->list);
    memset(s, 0, sizeof(*s));
}

/* ---- from arguments to sources ---- */

static int no_view(const char *arg)
{
    out_error(
        "%s is not in a diskguard view of this machine; for the datastore itself use --datastore DIR",
        arg);
    return -ENOENT;
}

/* Is dir a view rather than a datastore? If so, says what to give instead. */
static bool is_view(const struct ctl *ctl, const char *dir)
{
    const struct mount *m = mounts_of_path(&ctl->mounts, dir, NULL);

    if (m)
        out_error("%s is a view; the datastore behind it is %s", dir, m->source);
    return m != NULL;
}

/* Below --datastore: an absolute path, one relative to the datastore, or one relative to the
 * working directory. */
static int below_datastore(const char *dir, const char *arg, const char *path, char **ret_rel)
{
    size_t n = strcmp(dir, "/") == 0 ? 0 : strlen(dir);

    if (strncmp(path, dir, n) == 0 && (path[n] == '/' || path[n] == '\0'))
        *ret_rel = out_strdup(path + n + strspn(path + n, "/"));
    else if (arg[0] != '/')
        *ret_rel = out_strdup(arg);
    else {
        out_error("%s is not below the datastore %s", arg, dir);
        return -ENOENT;
    }
    return 0;
}

int source_of_image(struct ctl *ctl, const char *arg, struct source *ret, char **ret_rel)
{
    char *path = NULL, *dir = NULL;
    const char *rel = NULL;
    int r = mounts_resolve(&ctl->mounts, arg, &path);

    if (r == 0 && ctl->datastore) {
        r = mounts_resolve(&ctl->mounts, ctl->datastore, &dir);
        if (r == 0 && is_view(ctl, dir)) {
            free(path);
            free(dir);
            return -EINVAL;
        }
    }
    if (r < 0) {
        out_error("%s: %s", arg, strerror(-r));
    } else if (ctl->datastore) {
        r = below_datastore(dir, arg, path, ret_rel);
        if (r == 0)
            source_open(ret, NULL, ctl->datastore);
    } else {
        const struct mount *m = mounts_of_path(&ctl->mounts, path, &rel);

        r = m ? 0 : no_view(arg);
        if (m) {
            *ret_rel = out_strdup(rel);
            source_open(ret, m, m->source);
        }
    }
    free(path);
    free(dir);
    return r;
}

static int one_source(struct ctl *ctl, const struct mount *m, const char *dir,
                      int (*fn)(struct ctl *, struct source *, void *), void *arg)
{
    struct source s;
    int code;

    source_open(&s, m, dir);
    code = fn(ctl, &s, arg);
    source_close(&s);
    return code;
}

int each_source(struct ctl *ctl, const char *view,
                int (*fn)(struct ctl *ctl, struct source *s, void *arg), void *arg)
{
    const struct mount *m = NULL;
    char *path = NULL;
    int code = DG_EXIT_OK, r;

    if (!ctl->datastore && !view) {
        for (size_t i = 0; i < ctl->mounts.n; i++) {
            int c = one_source(ctl, &ctl->mounts.m[i], ctl->mounts.m[i].source, fn, arg);
            code = DG_MAX(code, c);
        }
        if (ctl->mounts.n == 0)
            out_error(
                "no diskguard view is mounted on this machine; for a datastore itself use --datastore DIR");
        return code;
    }
    r = mounts_resolve(&ctl->mounts, ctl->datastore ? ctl->datastore : view, &path);
    if (r < 0)
        out_error("%s: %s", ctl->datastore ? ctl->datastore : view, strerror(-r));
    else if (ctl->datastore && is_view(ctl, path))
        r = -EINVAL;
    else if (!ctl->datastore && !(m = mounts_of_path(&ctl->mounts, path, NULL)))
        r = no_view(view);
    free(path);
    if (r < 0)
        return r == -EINVAL ? DG_EXIT_USAGE : DG_EXIT_FAILURE;
    return one_source(ctl, m, m ? m->source : ctl->datastore, fn, arg);
}
