/* host.c: identity: host uuid, installation id, state directory. The record on the datastore is in
 * host_record.c. */
#include "core/host.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <systemd/sd-id128.h>

#include "base/hook.h"
#include "base/text.h"

/* What machine-id and this make is the host uuid (sd-id128(3)). Made once with `uuidgen`; a change
 * would give every host a new identity. */
#define HOST_APP_ID SD_ID128_MAKE(1a, 64, 50, 68, e3, c6, 49, a9, b6, c1, 02, eb, cd, 43, 5d, 97)

#define INSTALLATION_FILE "installation"
#define INSTALLATION_MAGIC "diskguard-installation"
#define INSTALLATION_VERSION 1
#define INSTALLATION_TEXT_MAX 256

/* Explanations cut long paths, so that the way out at the end of the line is never what is lost. */
#define P "%.200s"

_Static_assert(DG_UUID_LEN + 1 == SD_ID128_UUID_STRING_MAX,
               "the two text forms of a uuid have one size");

static const char *state_hint(int err)
{
    switch (-err) {
    case ENOSPC:
    case EDQUOT:
        return "free some space there";
    case EROFS:
        return "it must be on a disk that can be written";
    case EACCES:
    case EPERM:
        return "run as the user who owns it, or choose another one with state-dir=";
    default:
        return "choose another one with state-dir=";
    }
}

/* ---- state directory ---- */

static int sync_path_fd(int path_fd)
{
    _cleanup_close_ int fd = openat(path_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    return fd < 0 ? -errno : io_fsync(fd);
}

/* Opens one component below *fd, makes it when it is missing, and replaces *fd by it. */
static int step_into(int *fd, const char *name)
{
    int made = mkdirat(*fd, name, 0700) < 0 ? -errno : 0;
    int r = made == 0 ? sync_path_fd(*fd) : 0, next;

    if (r < 0)
        return r;
    /* The answer of mkdir(2) does not matter: below a read-only or foreign directory there may be
     * one that is ours. */
    next = openat(*fd, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (next < 0)
        return errno == ENOENT && made < 0 ? made : -errno;
    base_closep(fd);
    *fd = next;
    return 0;
}

/* As `mkdir -p -m 0700`, but durable. Returns a descriptor of the directory. */
static int state_make(const char *path)
{
    _cleanup_free_ char *copy = strdup(path);
    _cleanup_close_ int fd = open(path[0] == '/' ? "/" : ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    char *save = NULL;
    int r;

    if (!copy)
        return -ENOMEM;
    if (fd < 0)
        return -errno;
    for (char *name = strtok_r(copy, "/", &save); name; name = strtok_r(NULL, "/", &save)) {
        HOOK("host.state-dir");
        r = step_into(&fd, name);
        if (r < 0)
            return r;
    }
    r = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return r < 0 ? -errno : r;
}

static int state_open(const char *path, int *ret_fd, struct why *why)
{
    _cleanup_close_ int fd = path[0] ? state_make(path) : -ENOENT;
    struct stat st;

    if (fd < 0) {
        why_set(why, "cannot make the state directory " P ": %s; %s", path, strerror(-fd),
                state_hint(fd));
        return fd;
    }
    if (fstat(fd, &st) < 0) {
        int r = -errno;
        why_set(why, "cannot look at the state directory " P ": %s", path, strerror(-r));
        return r;
    }
    if (st.st_uid != geteuid()) {
        why_set(why, "the state directory " P " belongs to user %u, and this runs as user %u; %s",
                path, (unsigned)st.st_uid, (unsigned)geteuid(), state_hint(-EPERM));
        return -EPERM;
    }
    if (st.st_mode & 022) {
        why_set(why,
                "other users can write to the state directory " P " (mode %04o): chmod 0700 it",
                path, (unsigned)(st.st_mode & 07777));
        return -EPERM;
    }
    *ret_fd = base_steal_fd(&fd);
    return 0;
}

/* ---- installation id ---- */

static int installation_read(int dir_fd, dg_uuid ret)
{
    char id[sizeof(dg_uuid)];
    const struct text_field f[] = {TEXT_FIELD("id", id)};
    _cleanup_free_ char *text = NULL;
    size_t len;
    int r = io_fresh_text(dir_fd, INSTALLATION_FILE, INSTALLATION_TEXT_MAX, &text, &len);

    if (r < 0)
        return r == -EFBIG || r == -EINVAL ? -EBADMSG : r;
    r = text_parse(text, len, INSTALLATION_MAGIC, INSTALLATION_VERSION, f, 1);
    if (r == 0 && !base_uuid_ok(id))
        r = -EBADMSG;
    if (r < 0)
        return r;
    memcpy(ret, id, sizeof(id));
    return 0;
}

/* Uses link(2), not rename(2): several daemons of this host may start for the first time together,
 * and the first one's id must stay. 0 also when another one was faster. */
static int installation_make(int dir_fd)
{
    char id[sizeof(dg_uuid)], text[INSTALLATION_TEXT_MAX], tmp[64];
    const struct text_field f[] = {TEXT_FIELD("id", id)};
    size_t len;
    int r = base_uuid_random(id), fd;

    if (r < 0)
        return r;
    r = text_emit(INSTALLATION_MAGIC, INSTALLATION_VERSION, f, 1, text, sizeof(text), &len);
    if (r < 0)
        return r;
    snprintf(tmp, sizeof(tmp), INSTALLATION_FILE ".%.8s.tmp", id);
    HOOK("host.installation");
    fd = io_text_create(dir_fd, tmp, text, len);
    if (fd < 0)
        return fd;
    close(fd);
    r = HOOK_FAIL("host.installation-link");
    if (r == 0 && linkat(dir_fd, tmp, dir_fd, INSTALLATION_FILE, 0) < 0 && errno != EEXIST &&
        errno != ENOENT)
        r = -errno; /* ENOENT: the faster one has removed our file */
    HOOK("host.installation-linked");
    unlinkat(dir_fd, tmp, 0);
    return r;
}

/* A crash left it, or its owner is about to lose the race: there is an installation id now. */
static int installation_sweep(void *arg, const char *name)
{
    const int *dir_fd = arg;
    size_t len = strlen(name);

    if (strncmp(name, INSTALLATION_FILE ".", strlen(INSTALLATION_FILE) + 1) == 0 &&
        strcmp(name + len - 4, ".tmp") == 0)
        unlinkat(*dir_fd, name, 0);
    return 0;
}

static int installation_get(const char *state_dir, int dir_fd, dg_uuid ret, struct why *why)
{
    dg_uuid id;
    int r = installation_read(dir_fd, id);

    if (r == -ENOENT) {
        r = installation_make(dir_fd);
        if (r == 0)
            r = installation_read(dir_fd, id);
    }
    if (r == 0)
        r = io_fresh_dir(dir_fd, installation_sweep, &dir_fd);
    /* Syncs also a file that was there: the process that made it may not have reached its fsync. An
     * id that a record on the datastore names must not be lost in a power cut. */
    if (r == 0)
        r = io_fsync(dir_fd);
    if (r == -EROFS)
        why_set(why, "the state directory " P " is on a read-only file system; %s", state_dir,
                state_hint(r));
    else if (r == -EPROTONOSUPPORT)
        why_set(why,
                P "/" INSTALLATION_FILE
                  " was made by a newer diskguard; update diskguard on this host",
                state_dir);
    else if (r == -EBADMSG)
        why_set(
            why,
            P
            "/" INSTALLATION_FILE
            " is damaged; bring it back from a backup. If there is none, remove it: this host then needs fsck.diskguard --takeover once for each datastore",
            state_dir);
    else if (r < 0)
        why_set(why, "cannot read or make " P "/" INSTALLATION_FILE ": %s; %s", state_dir,
                strerror(-r), state_hint(r));
    if (r < 0)
        return r;
    memcpy(ret, id, sizeof(id));
    return 0;
}

/* ---- uuids ---- */

static int host_uuid(const char *host_id, dg_uuid ret, struct why *why)
{
    sd_id128_t id;
    int r;

    if (host_id) {
        if (!base_uuid_ok(host_id)) {
            why_set(why, "host-id=%.60s is not a uuid in lower case (uuidgen makes one)", host_id);
            return -EINVAL;
        }
        memcpy(ret, host_id, sizeof(dg_uuid));
        return 0;
    }
    r = sd_id128_get_machine_app_specific(HOST_APP_ID, &id);
    if (r < 0) {
        why_set(
            why,
            "this host has no valid /etc/machine-id (%s): run systemd-machine-id-setup, or give host-id=",
            strerror(-r));
        return -ENOENT;
    }
    sd_id128_to_uuid_string(id, ret);
    return 0;
}

static int boot_uuid(dg_uuid ret, struct why *why)
{
    sd_id128_t id;
    int r = sd_id128_get_boot(&id);

    if (r < 0) {
        why_set(why, "cannot read the boot id (%s): is /proc mounted?", strerror(-r));
        return r;
    }
    sd_id128_to_uuid_string(id, ret);
    return 0;
}

int host_load(const char *host_id, const char *state_dir, struct host *ret, struct why *why)
{
    _cleanup_close_ int dir_fd = -1;
    struct host h = {.name = ""};
    int r = host_uuid(host_id, h.uuid, why);

    if (r < 0)
        return r;
    r = boot_uuid(h.boot, why);
    if (r < 0)
        return r;
    r = base_uuid_random(h.daemon);
    if (r < 0) {
        why_set(why, "no random numbers: %s", strerror(-r));
        return r;
    }
    if (gethostname(h.name, sizeof(h.name) - 1) < 0 || h.name[0] == '\0')
        strcpy(h.name, "unnamed");
    r = state_open(state_dir, &dir_fd, why);
    if (r < 0)
        return r;
    r = installation_get(state_dir, dir_fd, h.installation, why);
    if (r < 0)
        return r;
    *ret = h;
    return 0;
}
