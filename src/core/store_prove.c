/* store_prove.c: the proof, at start, that the storage does what every claim will need of it. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/hook.h"
#include "core/store.h"

#define PROVE_TEXT "diskguard proves that this storage works\n"
#define PROVE_NAME 64
#define P "%.200s"

/* Two files: `one` gets a second name, `more`, and then loses it to `two`, as a claim's record is
 * replaced.
 */
struct prove {
    const struct store *s;
    char one[PROVE_NAME], more[PROVE_NAME], two[PROVE_NAME];
    int one_fd, two_fd;
};

static int prove_link(struct prove *p)
{
    int r = HOOK_FAIL("store.prove-link");

    if (r == 0 && linkat(p->s->tmp_fd, p->one, p->s->tmp_fd, p->more, 0) < 0)
        r = -errno;
    return r == -EEXIST ? 0 : r; /* lost replies make link(2) say so: the count decides */
}

static int prove_count(struct prove *p, nlink_t want)
{
    struct stat st;
    int r = io_fresh_stat(p->one_fd, &st);

    if (r < 0)
        return r;
    return st.st_nlink == want ? 0 : -EIO;
}

static int step_create(struct prove *p)
{
    int r = HOOK_FAIL("store.prove-create");

    if (r < 0)
        return r;
    p->one_fd = io_text_create(p->s->tmp_fd, p->one, PROVE_TEXT, strlen(PROVE_TEXT));
    if (p->one_fd < 0)
        return p->one_fd;
    p->two_fd = io_text_create(p->s->tmp_fd, p->two, PROVE_TEXT, strlen(PROVE_TEXT));
    return p->two_fd < 0 ? p->two_fd : 0;
}

static int step_read(struct prove *p)
{
    _cleanup_free_ char *text = NULL;
    size_t len;
    int r = io_fresh_text(p->s->tmp_fd, p->one, sizeof(PROVE_TEXT), &text, &len);

    if (r < 0)
        return r;
    return strcmp(text, PROVE_TEXT) == 0 ? 0 : -EIO;
}

/* .diskguard's owner must own what we write there, or its other users cannot read our records. */
static int step_owner(struct prove *p)
{
    struct stat dir, st;
    int r = io_fresh_stat(p->s->dir_fd, &dir);

    if (r == 0)
        r = io_fresh_stat(p->one_fd, &st);
    if (r < 0)
        return r;
    return st.st_uid == dir.st_uid ? 0 : -EPERM;
}

static int step_link_count(struct prove *p)
{
    return prove_count(p, 2);
}

static int step_fence(struct prove *p)
{
    return p->s->fence == FENCE_NONE ? 0 : io_fence_shared(p->one_fd, p->s->fence);
}

static int step_rename(struct prove *p)
{
    int r = HOOK_FAIL("store.prove-rename");

    if (r == 0 && renameat(p->s->tmp_fd, p->two, p->s->tmp_fd, p->more) < 0)
        r = -errno;
    return r;
}

static int step_replaced(struct prove *p)
{
    return prove_count(p, 1);
}

static int step_fsync_dir(struct prove *p)
{
    return io_fsync(p->s->tmp_fd);
}

static int step_unlink(struct prove *p)
{
    const char *const names[] = {p->one, p->more};
    int r = HOOK_FAIL("store.prove-unlink");

    if (r < 0)
        return r;
    for (size_t i = 0; i < 2; i++)
        if (unlinkat(p->s->tmp_fd, names[i], 0) < 0 && errno != ENOENT)
            return -errno;
    return io_fsync(p->s->tmp_fd);
}

static const struct {
    const char *what; /* "this storage cannot <what>" */
    int (*run)(struct prove *p);
    const char *way_out; /* NULL: the errno tells */
} steps[] = {
    {"create and fsync a file", step_create, NULL},
    {"read back what was written", step_read, NULL},
    {"keep the owner of a new file", step_owner, NULL},
    {"link a file to a second name", prove_link,
     "claims need hard links: use a file system that has them"},
    {"show the link count of a linked file", step_link_count,
     "claims need it: use a file system that has hard links"},
    {"take a lock on a file", step_fence, NULL},
    {"rename a file over another one", step_rename, NULL},
    {"show the link count of a replaced file", step_replaced, NULL},
    {"fsync a directory", step_fsync_dir, NULL},
    {"remove a file", step_unlink, NULL},
};

/* tmp/init.* is left by an init that was interrupted after it had won, or by an upgrade; now that
 * there is a whole `datastore` nobody needs it. */
static int sweep_init(void *arg, const char *name)
{
    const struct store *s = arg;

    if (strncmp(name, "init.", 5) == 0 || strcmp(name, STORE_UPGRADE_LOCK) == 0)
        unlinkat(s->tmp_fd, name, 0);
    return 0;
}

static void prove_end(struct prove *p)
{
    /* By name whatever a failed step answered: the create or link may have happened although its
     * reply was lost. */
    unlinkat(p->s->tmp_fd, p->one, 0);
    unlinkat(p->s->tmp_fd, p->two, 0);
    unlinkat(p->s->tmp_fd, p->more, 0);
    base_closep(&p->one_fd);
    base_closep(&p->two_fd);
}

int store_prove(const struct store *s, struct why *why)
{
    struct prove p = {.s = s, .one_fd = -1, .two_fd = -1};
    dg_uuid id;
    int r = base_uuid_random(id);

    if (r < 0) {
        why_set(why, "no random numbers: %s", strerror(-r));
        return r;
    }
    snprintf(p.one, sizeof(p.one), "prove.%s.1", id);
    snprintf(p.more, sizeof(p.more), "prove.%s.2", id);
    snprintf(p.two, sizeof(p.two), "prove.%s.3", id);
    for (size_t i = 0; r == 0 && i < sizeof(steps) / sizeof(steps[0]); i++) {
        r = steps[i].run(&p);
        if (r < 0)
            why_set(why,
                    "this storage, with these credentials, cannot %s in " P "/" DG_DIR
                    "/tmp: %s; %s",
                    steps[i].what, s->path, strerror(-r),
                    steps[i].way_out ? steps[i].way_out : store_hint(r));
    }
    prove_end(&p);
    if (r < 0)
        return r;
    r = io_fresh_dir(s->tmp_fd, sweep_init, (void *)s);
    if (r < 0)
        why_set(why, "cannot read the directory " P "/" DG_DIR "/tmp: %s; %s", s->path,
                strerror(-r), store_hint(r));
    return r;
}
