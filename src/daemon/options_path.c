/* options_path.c: which directories can be a datastore and its mountpoint. */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "base/log.h"
#include "base/mountinfo.h"
#include "core/views.h"
#include "daemon/options.h"

static bool is_view_of(const struct mountinfo *m, const char *datastore)
{
    char device[32];
    snprintf(device, sizeof(device), "%u:%u", m->major, m->minor);
    return views_is_view(m->type, device) && strcmp(m->source, datastore) == 0;
}

/* The mount that a path lies on. */
static bool mount_of(const char *path, struct mountinfo *ret)
{
    struct statx stx;
    if (statx(AT_FDCWD, path, 0, STATX_MNT_ID, &stx) < 0 || !(stx.stx_mask & STATX_MNT_ID))
        return false;
    return mountinfo_find_id((unsigned)stx.stx_mnt_id, ret) == 0;
}

static bool match_view(const struct mountinfo *m, const void *arg)
{
    return is_view_of(m, arg);
}

bool options_view_exists(const char *datastore)
{
    struct mountinfo m = {0};
    bool found = mountinfo_find(match_view, datastore, &m) == 0;
    mountinfo_free(&m);
    return found;
}

static bool match_point(const struct mountinfo *m, const void *arg)
{
    return strcmp(m->point, arg) == 0;
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
static bool inner_path(const char *path, const struct mountinfo *m, char *ret, size_t size)
{
    const char *rest = strcmp(m->point, "/") == 0 ? path : path + strlen(m->point);
    const char *root = strcmp(m->root, "/") == 0 ? "" : m->root;
    int n = snprintf(ret, size, "%s%s", root, rest);
    if (n == 0)
        snprintf(ret, size, "/");
    return n >= 0 && (size_t)n < size && path_holds(m->point, path);
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
    struct mountinfo m = {0};
    if (!place || mountinfo_find(match_point, place, &m) < 0)
        return false;
    bool dead = is_view_of(&m, store);
    mountinfo_free(&m);
    if (!dead)
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
    struct mountinfo under = {0}, over = {0}; /* the mounts of the datastore and of the point */
    char a[PATH_MAX], b[PATH_MAX];
    bool inside = path_holds(store, point), around = path_holds(point, store), mounted = false;
    if (mount_of(store, &under) && mount_of(point, &over)) {
        mounted = is_view_of(&over, store) && strcmp(over.point, point) == 0;
        if (under.major == over.major && under.minor == over.minor &&
            inner_path(store, &under, a, sizeof(a)) && inner_path(point, &over, b, sizeof(b))) {
            inside |= path_holds(a, b);
            around |= path_holds(b, a);
        }
    }
    mountinfo_free(&under);
    mountinfo_free(&over);
    if (mounted) {
        why_set(why, "a view of %s is mounted on %s already", store, point);
        return -EBUSY;
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
        return options_check_hidden(o->state_dir, why);
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
