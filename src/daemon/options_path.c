/* options_path.c: which directories can be a datastore and its mountpoint. */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "base/log.h"
#include "core/views.h"
#include "daemon/options.h"

/* One line of /proc/self/mountinfo, proc(5). */
struct mount_line {
    char device[32];      /* "major:minor" of the file system */
    char root[PATH_MAX];  /* directory of that file system that is mounted */
    char place[PATH_MAX]; /* where */
    char type[64], source[PATH_MAX];
};

static bool parse_mount_line(const char *line, unsigned *ret_id, struct mount_line *ret)
{
    _Static_assert(PATH_MAX == 4096, "widths below");
    if (sscanf(line, "%u %*u %31s %4095s %4095s", ret_id, ret->device, ret->root, ret->place) != 4)
        return false;
    const char *rest = strstr(line, " - ");
    if (!rest || sscanf(rest, " - %63s %4095s", ret->type, ret->source) != 2)
        return false;
    base_unescape_octal(ret->root);
    base_unescape_octal(ret->place);
    base_unescape_octal(ret->source);
    return true;
}

/* Finds the last (topmost) mount that match() wants. */
static bool find_mount(bool (*match)(const struct mount_line *m, unsigned id, const void *arg),
                       const void *arg, struct mount_line *ret)
{
    FILE *f = fopen("/proc/self/mountinfo", "re");
    struct mount_line *m = malloc(sizeof(*m));
    char *line = NULL;
    size_t size = 0;
    bool found = false;
    unsigned id;
    while (f && m && getline(&line, &size, f) > 0) {
        if (parse_mount_line(line, &id, m) && match(m, id, arg)) {
            *ret = *m;
            found = true;
        }
    }
    free(line);
    free(m);
    if (f)
        fclose(f);
    return found;
}

static bool match_id(const struct mount_line *m, unsigned id, const void *arg)
{
    (void)m;
    return id == *(const unsigned *)arg;
}

/* The mount that a path lies on. */
static bool mount_of(const char *path, struct mount_line *ret)
{
    struct statx stx;
    if (statx(AT_FDCWD, path, 0, STATX_MNT_ID, &stx) < 0 || !(stx.stx_mask & STATX_MNT_ID))
        return false;
    unsigned id = (unsigned)stx.stx_mnt_id;
    return find_mount(match_id, &id, ret);
}

static bool match_view(const struct mount_line *m, unsigned id, const void *arg)
{
    (void)id;
    return views_is_view(m->type, m->device) && strcmp(m->source, arg) == 0;
}

bool options_view_exists(const char *datastore)
{
    _cleanup_free_ struct mount_line *m = malloc(sizeof(*m));
    return m && find_mount(match_view, datastore, m);
}

static bool match_place(const struct mount_line *m, unsigned id, const void *arg)
{
    (void)id;
    return strcmp(m->place, arg) == 0;
}

/* Is b the same path as a, or below it? */
static bool path_holds(const char *a, const char *b)
{
    size_t n = strlen(a);
    if (n == 1) /* "/" */
        return true;
    return strncmp(a, b, n) == 0 && (b[n] == '\0' || b[n] == '/');
}

/* The path within its file system, the same through every bind mount. */
static bool inner_path(const char *path, const struct mount_line *m, char *ret, size_t size)
{
    const char *rest = strcmp(m->place, "/") == 0 ? path : path + strlen(m->place);
    const char *root = strcmp(m->root, "/") == 0 ? "" : m->root;
    int n = snprintf(ret, size, "%s%s", root, rest);
    if (n == 0)
        snprintf(ret, size, "/");
    return n >= 0 && (size_t)n < size && path_holds(m->place, path);
}

/* The path of a mountpoint that cannot be looked at: only what stands above it is resolved. NULL:
 * cannot be said. */
static char *dead_mountpoint(const char *path)
{
    _cleanup_free_ char *copy = strdup(path);
    if (!copy)
        return NULL;
    size_t n = strlen(copy);
    while (n > 1 && copy[n - 1] == '/')
        copy[--n] = '\0';
    char *slash = strrchr(copy, '/');
    const char *last = slash ? slash + 1 : copy;
    if (slash)
        *slash = '\0';
    _cleanup_free_ char *above = realpath(!slash ? "." : copy[0] ? copy : "/", NULL);
    char *whole = NULL;
    if (above && asprintf(&whole, "%s/%s", strcmp(above, "/") == 0 ? "" : above, last) < 0)
        return NULL;
    return whole;
}

/* A daemon of this datastore died and left its mount, which answers nothing any more: out of the
 * way with it. */
static bool clear_dead_view(const char *store, const char *point)
{
    _cleanup_free_ char *place = dead_mountpoint(point);
    _cleanup_free_ struct mount_line *m = malloc(sizeof(*m));
    if (!place || !m || !find_mount(match_place, place, m))
        return false;
    if (!views_is_view(m->type, m->device) || strcmp(m->source, store) != 0)
        return false;
    if (umount2(place, MNT_DETACH | UMOUNT_NOFOLLOW) < 0)
        return false;
    log_msg(LOG_NOTICE, "the dead view on %s is unmounted", place);
    return true;
}

/* 0 or -errno of a path that is no directory that can be used. */
static int canonical(char **path, const char *what, const char *hint, struct why *why)
{
    char *real = realpath(*path, NULL);
    struct stat st;
    if (!real || stat(real, &st) < 0) {
        int r = -errno;
        if (r == -ENOTCONN)
            why_set(why,
                    "%s %s: a mount whose daemon is gone is in the way; first run: umount -l %s",
                    what, *path, *path);
        else
            why_set(why, "%s %s: %s%s", what, *path, strerror(-r), hint);
        free(real);
        return r;
    }
    free(*path);
    *path = real;
    if (S_ISDIR(st.st_mode))
        return 0;
    why_set(why, "%s %s: is not a directory", what, real);
    return -ENOTDIR;
}

static int check_overlap(const char *store, const char *point, struct why *why)
{
    _cleanup_free_ struct mount_line *m = calloc(2, sizeof(*m));
    if (!m)
        return -ENOMEM;
    char a[PATH_MAX], b[PATH_MAX];
    bool inside = path_holds(store, point), around = path_holds(point, store);
    if (mount_of(store, &m[0]) && mount_of(point, &m[1])) {
        if (views_is_view(m[1].type, m[1].device) && strcmp(m[1].place, point) == 0 &&
            strcmp(m[1].source, store) == 0) {
            why_set(why, "a view of %s is mounted on %s already", store, point);
            return -EBUSY;
        }
        if (strcmp(m[0].device, m[1].device) == 0 && inner_path(store, &m[0], a, sizeof(a)) &&
            inner_path(point, &m[1], b, sizeof(b))) {
            inside |= path_holds(a, b);
            around |= path_holds(b, a);
        }
    }
    if (inside && around)
        why_set(why,
                "datastore and mountpoint are the same directory (%s): mount the view elsewhere",
                store);
    else if (inside)
        why_set(why, "mountpoint %s lies inside the datastore %s: mount the view elsewhere", point,
                store);
    else if (around)
        why_set(why, "datastore %s lies inside the mountpoint %s: mount the view elsewhere", store,
                point);
    return inside || around ? -EINVAL : 0;
}

/* The journal has to be there when the datastore is not, and must not be hidden by the view: its
 * nearest directory that exists. */
static int check_state_dir(const struct options *o, struct why *why)
{
    _cleanup_free_ char *path = strdup(o->state_dir);
    char real[PATH_MAX];
    if (!path)
        return -ENOMEM;
    while (!realpath(path, real)) {
        char *slash = strrchr(path, '/');
        if (!slash || slash == path)
            return 0; /* host_load() explains what is wrong with it */
        *slash = '\0';
    }
    if (!path_holds(o->guard.datastore, real) && !path_holds(o->guard.mountpoint, real))
        return 0;
    why_set(
        why,
        "the state directory %.300s lies inside the datastore or the mountpoint: the journal is this host's own, give it a local directory (state-dir=)",
        o->state_dir);
    return -EINVAL;
}

int options_check_paths(struct options *o, struct why *why)
{
    int r = canonical(&o->guard.datastore, "datastore", " (is its storage mounted?)", why);
    if (r == 0)
        r = canonical(&o->guard.mountpoint, "mountpoint", "", why);
    if (r == -ENOTCONN && clear_dead_view(o->guard.datastore, o->guard.mountpoint))
        r = canonical(&o->guard.mountpoint, "mountpoint", "", why);
    if (r == 0)
        r = check_overlap(o->guard.datastore, o->guard.mountpoint, why);
    if (r == 0)
        r = check_state_dir(o, why);
    if (r == 0 && options_to_fuse(o, "fsname", o->guard.datastore) +
                          options_to_fuse(o, "subtype", o->subtype) <
                      0) {
        why_set(why, "out of memory");
        r = -ENOMEM;
    }
    return r;
}
