#include "look.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "core/text.h"

#define TEXT_MAX 2048 /* bytes of .diskguard/datastore */

static void clear(struct store *s)
{
    memset(s, 0, sizeof(*s));
    s->root_fd = s->dir_fd = s->claims_fd = s->tmp_fd = s->hosts_fd = -1;
}

static int open_dirs(struct store *s)
{
    const struct {
        const char *name;
        int *fd;
    } dir[] = {
        {DG_DIR, &s->dir_fd},
        {DG_DIR "/claims", &s->claims_fd},
        {DG_DIR "/tmp", &s->tmp_fd},
        {DG_DIR "/hosts", &s->hosts_fd},
    };
    struct stat st;

    for (size_t i = 0; i < sizeof(dir) / sizeof(dir[0]); i++) {
        *dir[i].fd = io_fresh_open(s->root_fd, dir[i].name, O_RDONLY | O_DIRECTORY);
        if (*dir[i].fd < 0)
            return *dir[i].fd;
        int r = io_fresh_stat(*dir[i].fd, &st);
        if (r < 0)
            return r;
        if (st.st_dev != s->dev || (st.st_mode & 077))
            return -EPERM;
        if (i == 0)
            s->dir_ino = st.st_ino;
    }
    return 0;
}

/* The form of "root=" in `datastore`: core/store.h. */
static int root_text(int fd, char *ret, size_t size)
{
    char hex[2 * IO_HANDLE_MAX + 1];
    struct io_handle h;
    int r = io_handle_get(fd, &h);

    if (r < 0)
        return r;
    base_hex(h.bytes, h.len, hex);
    if (h.len)
        snprintf(ret, size, "%d %s", h.type, hex);
    else
        snprintf(ret, size, "-");
    return 0;
}

static int read_identity(struct store *s)
{
    char uuid[sizeof(dg_uuid)], root[2 * IO_HANDLE_MAX + 16], made[32], now[2 * IO_HANDLE_MAX + 16];
    const struct text_field f[] = {TEXT_FIELD("uuid", uuid), TEXT_FIELD("root", root),
                                   TEXT_FIELD("made", made)};
    _cleanup_free_ char *text = NULL;
    size_t len;
    int r = io_fresh_text(s->dir_fd, "datastore", TEXT_MAX, &text, &len);

    if (r == 0)
        r = text_parse(text, len, "diskguard-datastore", DG_FORMAT_VERSION, f, 3);
    if (r == 0 && !base_uuid_ok(uuid))
        r = -EBADMSG;
    if (r == 0)
        r = root_text(s->root_fd, now, sizeof(now));
    if (r < 0)
        return r;
    memcpy(s->uuid, uuid, sizeof(s->uuid));
    return strcmp(root, now) == 0 ? 0 : -EXDEV;
}

static int look(const char *path, struct store *s)
{
    struct stat st;
    int r;

    if (!realpath(path, s->path))
        return -errno;
    s->root_fd = open(s->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->root_fd < 0)
        return -errno;
    r = io_fresh_stat(s->root_fd, &st);
    if (r < 0)
        return r;
    s->dev = st.st_dev;
    s->fs = io_fstype(s->root_fd);
    s->fence = s->fs->fence;
    s->read_only = true;
    r = open_dirs(s);
    return r < 0 ? r : read_identity(s);
}

int look_store(const char *path, struct store *ret, struct why *why)
{
    struct store s;
    int r;

    clear(&s);
    r = look(path, &s);
    if (r == 0 || r == -EXDEV) {
        *ret = s;
        if (r < 0)
            why_set(why, "%.300s/" DG_DIR " belongs to another directory: this is a copy, or a restored tree",
                    s.path);
        return r;
    }
    store_close(&s);
    /* It has the words for what is wrong. All of it comes before its first write. */
    return store_open(path, ret, why);
}
