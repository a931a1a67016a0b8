/* io_fencing.c: does the loss of the fence lock stop this host's writes? See io.h, and design section 6 for what was measured. */
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>

#include "core/io.h"

const char *io_fencing_name(enum fencing f)
{
    static const char *const names[] = {
        [FENCING_NO] = "no", [FENCING_UNPROVEN] = "unproven", [FENCING_LOCK] = "lock"};

    return (size_t)f < sizeof(names) / sizeof(names[0]) ? names[f] : "?";
}

/* The value of an option in a comma-separated list: "" for one without a value, NULL when it is not there. *ret_len: its length. */
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

static enum fencing judge_nfs(const char *type, const char *options, char recover_lost_locks,
                              const char **ret_why)
{
    size_t len = 0;
    const char *vers, *local;

    if (!type || !options)
        return no(ret_why, "the NFS mount cannot be found in /proc/self/mountinfo");
    vers = option(options, "vers", &len);
    if (vers ? vers[0] != '4' || (len > 1 && vers[1] != '.') : strcmp(type, "nfs4") != 0)
        return no(ret_why,
                  "NFSv3 does not fence: writes that a host had under way land even after it lost its lock");
    if (option(options, "nolock", &len))
        return no(ret_why, "the NFS mount has the option nolock: its locks do not leave the host");
    local = option(options, "local_lock", &len);
    if (local && (len != 4 || strncmp(local, "none", 4) != 0))
        return no(ret_why, "the NFS mount has the option local_lock: its locks do not leave the host");
    if (recover_lost_locks != 'N')
        return no(ret_why,
                  "nfs.recover_lost_locks is not N on that host: its NFS client takes lost locks again and "
                  "lets late writes land");
    return FENCING_LOCK;
}

enum fencing io_fencing_judge(const struct io_fstype *fs, enum fence_kind kind, const char *mount_type,
                              const char *mount_options, char recover_lost_locks, const char **ret_why)
{
    *ret_why = "";
    if (kind == FENCE_NONE)
        return no(ret_why, "no fence lock is used (option fence=none)");
    if (fs->magic == NFS_SUPER_MAGIC)
        return judge_nfs(mount_type, mount_options, recover_lost_locks, ret_why);
    if (fs->fencing == FENCING_UNPROVEN)
        *ret_why = "nobody has shown that the loss of the lock stops late writes on this type of file system";
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

/* Type and options (those of the file system, which come last) of a mount, both in *ret_line. 0 or -errno. */
static int mount_line(int id, char **ret_line, const char **ret_type, const char **ret_options)
{
    _cleanup_free_ char *line = NULL;
    size_t size = 0;
    FILE *f = fopen("/proc/self/mountinfo", "re");
    int r = -ENOENT, at;

    if (!f)
        return -errno;
    while (r < 0 && getline(&line, &size, f) >= 0) {
        char *type = strstr(line, " - "), *source, *options;

        if (!type || sscanf(line, "%d ", &at) != 1 || at != id)
            continue;
        line[strcspn(line, "\n")] = '\0';
        type += 3;
        source = strchr(type, ' ');
        options = source ? strchr(source + 1, ' ') : NULL;
        if (!options)
            continue;
        *source = *options = '\0';
        *ret_type = type;
        *ret_options = options + 1;
        *ret_line = line;
        line = NULL;
        r = 0;
    }
    fclose(f);
    return r;
}

static char read_recover_lost_locks(void)
{
    FILE *f = fopen("/sys/module/nfs/parameters/recover_lost_locks", "re");
    int c = f ? fgetc(f) : EOF;

    if (f)
        fclose(f);
    return c == 'Y' || c == '1' ? 'Y' : c == 'N' || c == '0' ? 'N' : 0;
}

enum fencing io_fencing(int fd, enum fence_kind kind, const char **ret_why)
{
    const struct io_fstype *fs = io_fstype(fd);
    const char *type = NULL, *options = NULL, *none;
    _cleanup_free_ char *line = NULL;
    char recover = 0;

    if (!ret_why)
        ret_why = &none;
    if (kind != FENCE_NONE && fs->magic == NFS_SUPER_MAGIC) {
        int id = mount_id(fd);

        if (id < 0 || mount_line(id, &line, &type, &options) < 0)
            type = options = NULL;
        recover = read_recover_lost_locks();
    }
    return io_fencing_judge(fs, kind, type, options, recover, ret_why);
}
