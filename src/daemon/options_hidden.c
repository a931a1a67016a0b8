/* options_hidden.c: is the state directory where it will be after all mounts? A view in fstab(5)
 * may come before /var: its journal would lie on the root file system, and the next start would not
 * find it. What systemd alone knows of (a mount unit that is not in fstab) is not found here. */
#include <limits.h>
#include <mntent.h>
#include <stdio.h>
#include <string.h>

#include "base/mountinfo.h"
#include "daemon/options.h"

#define FSTAB "/etc/fstab"

static bool is_below(const char *path, const char *above)
{
    size_t n = strlen(above);
    while (n > 1 && above[n - 1] == '/')
        n--;
    return n > 1 && strncmp(path, above, n) == 0 && (path[n] == '\0' || path[n] == '/');
}

static bool match_point(const struct mountinfo *m, const void *arg)
{
    const char *point = arg;
    return is_below(point, m->point) && is_below(m->point, point); /* the same, but for slashes */
}

/* The point stands above the state directory, whose own path leads through it: looking at it hangs
 * on nothing else. mount(8) follows a symbolic link. -errno: cannot be said */
static int is_mounted(const char *point)
{
    char real[PATH_MAX];
    struct mountinfo m = {0};
    int r = mountinfo_find(match_point, realpath(point, real) ? real : point, &m);
    mountinfo_free(&m);
    return r == 0 ? 1 : r == -ENOENT ? 0 : r;
}

/* The nearest directory of the path that exists, without symbolic links. */
static bool nearest(const char *path, char real[PATH_MAX])
{
    _cleanup_free_ char *copy = strdup(path);
    while (copy && !realpath(copy, real)) {
        char *slash = strrchr(copy, '/');
        if (!slash || slash == copy)
            return false;
        *slash = '\0';
    }
    return copy != NULL;
}

/* Both names count: the directory's own, and where it is now. What is not there yet may come with
 * the mount. */
int options_check_hidden(const char *state_dir, struct why *why)
{
    char real[PATH_MAX] = "", line[4096];
    struct mntent entry;
    int r = 0;

    (void)nearest(state_dir, real);
    FILE *f = setmntent(FSTAB, "re");
    if (!f)
        return 0; /* no fstab: nothing to compare with */
    while (r == 0 && getmntent_r(f, &entry, line, sizeof(line))) {
        if (hasmntopt(&entry, "noauto") || strcmp(entry.mnt_type, "swap") == 0)
            continue;
        if (!is_below(state_dir, entry.mnt_dir) && !is_below(real, entry.mnt_dir))
            continue;
        if (is_mounted(entry.mnt_dir) != 0)
            continue;
        why_set(
            why,
            "the state directory %.300s is not on its file system yet: /etc/fstab mounts %.300s, which is not mounted, and would hide the journal. Mount it first; a view in fstab needs the option x-systemd.requires-mounts-for=%.300s",
            state_dir, entry.mnt_dir, state_dir);
        r = -ENOENT;
    }
    endmntent(f);
    return r;
}
