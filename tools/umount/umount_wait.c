/* umount_wait.c: the daemon of a view, and its end. See umount.h. */
#include "umount/umount.h"

#include "core/views.h"

#include <dirent.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#define PAUSE_MS 200u    /* between two questions */
#define QUIET_MS 1000u   /* what takes no longer needs no word */
#define REPEAT_MS 10000u /* between two lines that say the same */
#define NAMES_MAX 3u     /* images that a line of progress names */

/* ---- who it is ---- */

/* The host that a daemon is which does not answer: it keeps its record on the datastore open, and
 * locked. */
static void host_from_files(struct unmounting *e)
{
    char path[64], target[4096];
    struct dirent *d;

    snprintf(path, sizeof(path), "/proc/%d/fd", (int)e->pid);
    DIR *dir = e->pid > 0 ? opendir(path) : NULL;
    while (dir && (d = readdir(dir))) {
        ssize_t n = readlinkat(dirfd(dir), d->d_name, target, sizeof(target) - 1);
        target[n > 0 ? n : 0] = '\0';
        const char *at = strstr(target, "/" DG_DIR "/hosts/");
        if (at && base_uuid_ok(at + strlen("/" DG_DIR "/hosts/")))
            memcpy(e->host, at + strlen("/" DG_DIR "/hosts/"), sizeof(e->host));
    }
    if (dir)
        closedir(dir);
}

/* A device number is given out again: whoever answers under it may be another daemon by now. */
static bool is_ours(const struct unmounting *e, struct json_object *status)
{
    struct json_object *host = out_json_get(status, "host", json_type_object);

    if (e->daemon[0])
        return strcmp(out_json_get_text(host, "daemon", ""), e->daemon) == 0;
    return e->pid <= 0 || out_json_get_u64(status, "pid") == (uint64_t)e->pid;
}

static void ask(struct unmounting *e)
{
    struct why why = {""};
    struct json_object *status = daemon_ask(e->mount, "status", NULL, &why);

    e->fresh = status && is_ours(e, status);
    e->silent = !status;
    if (!e->fresh) {
        json_object_put(status);
        return;
    }
    json_object_put(e->status);
    e->status = status;
    if (!e->daemon[0]) {
        struct json_object *host = out_json_get(status, "host", json_type_object);
        snprintf(e->daemon, sizeof(e->daemon), "%s", out_json_get_text(host, "daemon", ""));
        snprintf(e->host, sizeof(e->host), "%s", out_json_get_text(host, "uuid", ""));
        free(e->dir);
        e->dir = out_strdup(out_json_get_text(status, "datastore", e->mount->source));
    }
    struct json_object *list = daemon_ask(e->mount, "list", NULL, &why);
    if (list && strcmp(out_json_get_text(list, "daemon", e->daemon), e->daemon) == 0) {
        json_object_put(e->list);
        e->list = list;
    } else {
        json_object_put(list);
    }
}

void ending_open(struct unmounting *e, const struct mount *m)
{
    memset(e, 0, sizeof(*e));
    e->mount = m;
    e->pidfd = -1;
    e->dir = out_strdup(m->source);
    e->found = daemon_peer(m, &e->pid, &e->pidfd, &e->why);
    if (e->found < 0)
        return;
    ask(e);
    if (!e->host[0])
        host_from_files(e);
}

void ending_close(struct unmounting *e)
{
    json_object_put(e->status);
    json_object_put(e->list);
    free(e->dir);
    base_closep(&e->pidfd);
}

/* ---- what it still has to do ---- */

/* Is the view mounted somewhere yet? A daemon from before "mounted" is taken to be at its end. */
static bool is_mounted(const struct unmounting *e)
{
    return e->fresh && out_json_get_bool(e->status, "mounted");
}

static uint64_t count(const struct unmounting *e, const char *state)
{
    return out_json_get_u64(out_json_get(e->status, "images", json_type_object), state);
}

/* Images whose header this daemon has to put back; a FENCED one is another host's. */
static uint64_t held(const struct unmounting *e)
{
    return count(e, "sealing") + count(e, "sealed") + count(e, "restoring") + count(e, "stuck") +
           count(e, "vanished");
}

static bool is_held(struct json_object *image)
{
    const char *state = out_json_get_text(image, "state", "");

    return strcmp(state, "fenced") != 0 && strcmp(state, "idle") != 0;
}

/* " (a, b, c and 57 more)", or nothing. */
static char *names(const struct unmounting *e)
{
    struct json_object *images = out_json_get(e->list, "images", json_type_array);
    size_t n = images ? json_object_array_length(images) : 0, all = 0, size = 0;
    char *text = NULL;
    FILE *f = open_memstream(&text, &size);

    if (!f)
        out_no_memory();
    for (size_t i = 0; i < n; i++) {
        struct json_object *image = json_object_array_get_idx(images, i);
        if (is_held(image) && all++ < NAMES_MAX)
            fprintf(f, "%s%s", all == 1 ? " (" : ", ",
                    out_quote(out_json_get_text(image, "image", "?")));
    }
    if (all > NAMES_MAX)
        fprintf(f, " and %zu more", all - NAMES_MAX);
    fputs(all > 0 ? ")" : "", f);
    fclose(f);
    return text;
}

/* Why a process does not get on: stopped, or in the hands of the storage. */
static const char *why_slow(const struct unmounting *e)
{
    char path[64], state = '?';

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)e->pid);
    FILE *f = e->pid > 0 ? fopen(path, "re") : NULL;
    if (f) {
        if (fscanf(f, "%*d (%*[^)]) %c", &state) != 1)
            state = '?';
        fclose(f);
    }
    if (state == 'T' || state == 't')
        return "; it is stopped: kill -CONT, then it goes on";
    if (state == 'D')
        return "; it waits for the storage";
    return e->silent ? "; it does not answer" : "";
}

/* ---- waiting ---- */

struct progress {
    uint64_t begun, moved, said; /* base_now_ms(): of the start, of the last image that was done, of
                                    the last line */
    uint64_t left, said_left;
};

static bool has_ended(const struct unmounting *e)
{
    struct pollfd p = {e->pidfd, POLLIN, 0};
    struct why why = {""};
    pid_t pid;
    int pidfd = -1, r;

    if (e->pidfd >= 0)
        return poll(&p, 1, PAUSE_MS) > 0;
    (void)poll(NULL, 0, PAUSE_MS);
    r = daemon_peer(e->mount, &pid, &pidfd, &why);
    base_closep(&pidfd);
    return r == -ENOENT || r == -ECONNREFUSED || (e->status && !e->fresh && !e->silent);
}

static void say(const struct unmounting *e, struct progress *p)
{
    uint64_t now = base_now_ms();
    bool news = p->said == 0 || p->left != p->said_left;

    if (now - p->begun < QUIET_MS ||
        (p->said != 0 && now - p->said < (news ? QUIET_MS : REPEAT_MS)))
        return;
    _cleanup_free_ char *which = names(e);
    if (e->status && p->left > 0)
        out_error("%s: waits for %llu image%s to be restored%s by diskguard (pid %d)%s",
                  e->mount->point, (unsigned long long)p->left, p->left == 1 ? "" : "s", which,
                  (int)e->pid, why_slow(e));
    else
        out_error("%s: waits for diskguard (pid %d) to end%s", e->mount->point, (int)e->pid,
                  why_slow(e));
    p->said = now;
    p->said_left = p->left;
}

enum how { ENDED, IN_USE, TOO_LATE, INTERRUPTED };

static enum how wait_for_end(struct unmounting *e, uint64_t bound_ms)
{
    struct progress p = {.begun = base_now_ms(), .moved = base_now_ms(), .left = UINT64_MAX};

    for (;;) {
        if (has_ended(e))
            return ENDED;
        if (umount_signal)
            return INTERRUPTED;
        ask(e);
        if (is_mounted(e))
            return IN_USE;
        uint64_t now = base_now_ms();
        if (e->status && held(e) < p.left) {
            p.left = held(e);
            p.moved = now;
        }
        say(e, &p);
        if (now - p.moved >= bound_ms)
            return TOO_LATE;
    }
}

/* ---- how it came out ---- */

/* Is the same view mounted on another point, too? Then that is no end at all. */
static bool mounted_elsewhere(const struct unmounting *e)
{
    struct mounts m;
    bool found = false;

    if (mounts_load_fuse(&m) < 0)
        return false;
    for (size_t i = 0; i < m.n; i++)
        found |= m.m[i].major == e->mount->major && m.m[i].minor == e->mount->minor;
    mounts_free(&m);
    return found;
}

static int say_in_use(const struct unmounting *e, const struct umount_options *o)
{
    _cleanup_free_ char *which = names(e);
    uint64_t n = held(e);

    if (mounted_elsewhere(e))
        return DG_EXIT_OK;
    if (o->lazy || n == 0) {
        out_error(
            "%s: detached, but programs or another mount namespace still use it: diskguard (pid %d) goes on until they are done%s%s",
            e->mount->point, (int)e->pid, n > 0 ? ", and holds" : "", which);
        return DG_EXIT_OK;
    }
    out_error(
        "%s: unmounted here, but still mounted in another mount namespace: diskguard (pid %d) goes on there, and %llu image%s stay%s held%s. Way out: end the programs there; findmnt --task PID -t %s shows it",
        e->mount->point, (int)e->pid, (unsigned long long)n, n == 1 ? "" : "s", n == 1 ? "s" : "",
        which, e->mount->type);
    return DG_EXIT_FAILURE;
}

static void say_late(const struct unmounting *e, const struct umount_options *o, enum how how)
{
    struct json_object *images = out_json_get(e->list, "images", json_type_array);
    size_t n = images ? json_object_array_length(images) : 0;

    if (how == INTERRUPTED)
        out_error("%s: signal %d: waits no longer; diskguard (pid %d) goes on%s", e->mount->point,
                  (int)umount_signal, (int)e->pid, why_slow(e));
    else
        out_error("%s: nothing was restored for %llu s; diskguard (pid %d) goes on%s",
                  e->mount->point, (unsigned long long)(o->bound_ms / 1000), (int)e->pid,
                  why_slow(e));
    if (e->fresh && images) {
        out_error("%s: %llu image%s not released on %s:", e->mount->point,
                  (unsigned long long)held(e), held(e) == 1 ? " is" : "s are", out_quote(e->dir));
        for (size_t i = 0; i < n; i++) {
            struct json_object *image = json_object_array_get_idx(images, i);
            if (is_held(image))
                out_error("  %s: %s", out_quote(out_json_get_text(image, "image", "?")),
                          out_json_get_text(image, "state", "?"));
        }
    } else if (!e->host[0] || left_report(e, false, false) > 0) {
        return; /* and its way out */
    }
    out_error(
        "way out: keep storage and network up until it has ended (diskguardctl list --datastore %s), then: fsck.diskguard -p %s",
        out_quote(e->dir), out_quote(e->dir));
}

/* Its daemon cannot be found, so nobody tells when it ends; but what it held is on the datastore.
 */
static int without_daemon(struct unmounting *e, const struct umount_options *o)
{
    uint64_t until = base_now_ms() + (e->found == -ECONNREFUSED ? 0 : o->bound_ms);
    int r;

    r = left_report(e, true, true);
    if (r != 0 && e->found != -ECONNREFUSED) /* a daemon whose view was broken off has ended well
                                                before */
        out_error("%s; waits until nothing of this machine is held on %s", e->why.text,
                  out_quote(e->dir));
    for (; r == 1 && base_now_ms() < until && !umount_signal; r = left_report(e, true, true))
        (void)poll(NULL, 0, PAUSE_MS);
    if (r == 0)
        return DG_EXIT_OK;
    if (e->found == -ECONNREFUSED)
        out_error("%s: its diskguard had died before", e->mount->point);
    return left_report(e, true, false) == 0 ? DG_EXIT_OK : DG_EXIT_FAILURE;
}

/* A daemon that said at last that it holds nothing has left nothing. */
static bool said_nothing_held(const struct unmounting *e)
{
    return e->status && (held(e) == 0 || out_json_get_bool(e->status, "read_only"));
}

int ending_wait(struct unmounting *e, const struct umount_options *o, int code)
{
    enum how how;
    int r;

    if (code != 0 && !o->force) /* busy, mostly: nothing has changed */
        return code;
    if (e->found == -ENOENT && strcmp(e->mount->type, VIEWS_TYPE) != 0)
        return code; /* not a view */
    if (e->found < 0 && e->found != -EAGAIN)
        return DG_MAX(code, without_daemon(e, o));
    how = wait_for_end(e, o->bound_ms);
    if (how == IN_USE)
        return code != 0 ? code : say_in_use(e, o);
    if (how != ENDED) {
        say_late(e, o, how);
        return DG_MAX(code, DG_EXIT_FAILURE);
    }
    r = left_report(e, !e->host[0], said_nothing_held(e));
    if (r < 0 && said_nothing_held(e))
        r = 0;
    return r == 0 ? code : DG_MAX(code, DG_EXIT_FAILURE);
}
