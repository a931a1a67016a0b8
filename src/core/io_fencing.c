/* io_fencing.c: does the loss of the fence lock stop this host's writes? See io.h, and DESIGN 10.1
 * for what was measured. */
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>

#include "base/mountinfo.h"
#include "core/io.h"

const char *io_fencing_name(enum fencing f)
{
    static const char *const names[] = {
        [FENCING_NO] = "no", [FENCING_UNPROVEN] = "unproven", [FENCING_LOCK] = "lock"};

    return (size_t)f < sizeof(names) / sizeof(names[0]) ? names[f] : "?";
}

/* The value of an option in a comma-separated list: "" for one without a value, NULL when it is not
 * there. *ret_len: its length. */
static const char *option(const char *list, const char *name, size_t *ret_len)
{
    size_t n = strlen(name);

    for (const char *at = list; *at; at += strcspn(at, ","), at += *at == ',') {
        size_t len = strcspn(at, ",");

        if (len < n || strncmp(at, name, n) != 0 || (len > n && at[n] != '='))
            continue;
        *ret_len = len > n ? len - n - 1 : 0;
        return len > n ? at + n + 1 : at + n;
    }
    return NULL;
}

static enum fencing no(const char **ret_why, const char *why)
{
    *ret_why = why;
    return FENCING_NO;
}

static enum fencing judge_nfs(const struct io_mount *m, const char **ret_why)
{
    const char *type = m->type, *options = m->options, *vers, *local;
    size_t len = 0;

    if (!type || !options)
        return no(ret_why, "the NFS mount cannot be found in /proc/self/mountinfo");
    vers = option(options, "vers", &len);
    if (vers ? vers[0] != '4' || (len > 1 && vers[1] != '.') : strcmp(type, "nfs4") != 0)
        return no(
            ret_why,
            "NFSv3 does not fence: writes that a host had under way land even after it lost its lock");
    if (option(options, "nolock", &len))
        return no(ret_why, "the NFS mount has the option nolock: its locks do not leave the host");
    local = option(options, "local_lock", &len);
    if (local && (len != 4 || strncmp(local, "none", 4) != 0))
        return no(ret_why,
                  "the NFS mount has the option local_lock: its locks do not leave the host");
    if (m->recover_lost_locks != 'N')
        return no(
            ret_why,
            "nfs.recover_lost_locks is not N on that host: its NFS client takes lost locks again and lets late writes land");
    if (m->pnfs != 'N') {
        *ret_why =
            "the NFS mount uses pNFS, or cannot be shown not to (/proc/self/mountstats): nobody has shown that the loss of the lock stops writes to its data servers";
        return FENCING_UNPROVEN;
    }
    return FENCING_LOCK;
}

enum fencing io_fencing_judge(const struct io_fstype *fs, enum fence_kind kind,
                              const struct io_mount *mount, const char **ret_why)
{
    *ret_why = "";
    if (kind == FENCE_NONE)
        return no(ret_why, "no fence lock is used (option fence=none)");
    if (fs->magic == NFS_SUPER_MAGIC)
        return judge_nfs(mount, ret_why);
    if (fs->fencing == FENCING_UNPROVEN)
        *ret_why =
            "nobody has shown that the loss of the lock stops late writes on this type of file system";
    return fs->fencing;
}

/* The number of the mount that fd lies on: proc(5), /proc/PID/fdinfo. -errno. */
static int mount_id(int fd)
{
    char path[40], line[128];
    int id = -ENOENT;
    FILE *f;

    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
    f = fopen(path, "re");
    if (!f)
        return -errno;
    while (id < 0 && fgets(line, sizeof(line), f))
        if (sscanf(line, "mnt_id: %d", &id) != 1)
            id = -ENOENT;
    fclose(f);
    return id;
}

static char read_recover_lost_locks(void)
{
    FILE *f = fopen("/sys/module/nfs/parameters/recover_lost_locks", "re");
    int c = f ? fgetc(f) : EOF;

    if (f)
        fclose(f);
    return c == 'Y' || c == '1' ? 'Y' : c == 'N' || c == '0' ? 'N' : 0;
}

/* 'N' only where every NFS mount on that point says "pnfs=not configured" (Linux, fs/nfs/super.c,
 * nfs_show_stats). */
static char read_pnfs(const char *point)
{
    FILE *f = fopen("/proc/self/mountstats", "re");
    _cleanup_free_ char *line = NULL;
    size_t size = 0;
    bool ours = false;
    char found = 0;

    while (f && getline(&line, &size, f) >= 0) {
        if (strncmp(line, "device ", 7) == 0) {
            char *on = strstr(line, " mounted on "),
                 *end = on ? strstr(on, " with fstype nfs") : NULL;
            ours = false;
            if (end) {
                *end = '\0';
                on += strlen(" mounted on ");
                base_unescape_octal(on);
                ours = strcmp(on, point) == 0;
            }
        } else if (ours && strstr(line, "pnfs=")) {
            bool none = strstr(line, "pnfs=not configured") != NULL;
            found = none && found != 'Y' ? 'N' : 'Y';
        }
    }
    if (f)
        fclose(f);
    return found;
}

enum fencing io_fencing(int fd, enum fence_kind kind, const char **ret_why)
{
    const struct io_fstype *fs = io_fstype(fd);
    struct mountinfo l = {0};
    struct io_mount m = {NULL, NULL, 0, 0};
    const char *none;

    if (kind != FENCE_NONE && fs->magic == NFS_SUPER_MAGIC) {
        int id = mount_id(fd);

        if (id >= 0 && mountinfo_find_id((unsigned)id, &l) == 0)
            m = (struct io_mount){l.type, l.options, read_recover_lost_locks(), read_pnfs(l.point)};
    }
    enum fencing found = io_fencing_judge(fs, kind, &m, ret_why ? ret_why : &none);
    mountinfo_free(&l);
    return found;
}
