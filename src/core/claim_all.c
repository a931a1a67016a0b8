/* claim_all.c: the part of claim.h that looks at all claims at once. */
#include "core/claim_priv.h"

#include <stdio.h>
#include <string.h>

#include "base/hook.h"

static bool is_ruling(const struct claim_listing *l, size_t i)
{
    return i + 1 == l->n || l->entry[i + 1].ino != l->entry[i].ino;
}

int claim_each(const struct store *s, int (*fn)(void *arg, uint64_t ino, const struct claim *c),
               void *arg)
{
    struct claim_listing l = {0};
    struct claim *c = malloc(sizeof(*c));
    int r, failed = 0;

    r = c ? claim_list(s, &l) : -ENOMEM;
    for (size_t i = 0; r == 0 && i < l.n; i++) {
        int err;

        if (!is_ruling(&l, i))
            continue;
        err = claim_read_generation(s, l.entry[i].ino, l.entry[i].generation, c);
        if (err == -ENOENT || err == -ESTALE || err == -EAGAIN)
            err = claim_read(s, l.entry[i].ino, c);
        if (err < 0)
            failed = failed ? failed : err; /* the others are still worth a look */
        else if (c->kind != CLAIM_NONE)
            r = fn(arg, l.entry[i].ino, c);
    }
    free(l.entry);
    free(c);
    return r ? r : failed;
}

/* Splits "<host uuid>.<daemon uuid>.<counter>". */
static bool tmp_name_parse(const char *name, dg_uuid ret_host, dg_uuid ret_daemon)
{
    dg_uuid host, daemon;
    uint64_t counter;

    if (strnlen(name, 2 * (DG_UUID_LEN + 1)) < 2 * (DG_UUID_LEN + 1) || name[DG_UUID_LEN] != '.' ||
        name[2 * DG_UUID_LEN + 1] != '.')
        return false;
    memcpy(host, name, DG_UUID_LEN);
    memcpy(daemon, name + DG_UUID_LEN + 1, DG_UUID_LEN);
    host[DG_UUID_LEN] = daemon[DG_UUID_LEN] = '\0';
    if (!base_uuid_ok(host) || !base_uuid_ok(daemon) ||
        base_u64(name + 2 * (DG_UUID_LEN + 1), &counter) < 0)
        return false;
    memcpy(ret_host, host, sizeof(host));
    memcpy(ret_daemon, daemon, sizeof(daemon));
    return true;
}

struct stale {
    const struct host *host;
    char (*name)[CLAIM_TMP_SIZE];
    size_t n;
};

static int see_tmp(void *arg, const char *name)
{
    struct stale *stale = arg;
    dg_uuid host, daemon;
    void *grown;

    /* The host lock says that no other daemon of this host lives, and its own names carry its own
     * uuid. Other hosts' names are theirs. */
    if (!tmp_name_parse(name, host, daemon) || strcmp(host, stale->host->uuid) != 0 ||
        strcmp(daemon, stale->host->daemon) == 0)
        return 0;
    grown = reallocarray(stale->name, stale->n + 1, sizeof(*stale->name));
    if (!grown)
        return -ENOMEM;
    stale->name = grown;
    snprintf(stale->name[stale->n++], CLAIM_TMP_SIZE, "%s", name);
    return 0;
}

/* Collected first: removing while reading a directory can make an NFS client skip names. */
static int sweep_tmp(const struct store *s, const struct host *h, bool dry_run, unsigned *stale)
{
    struct stale found = {.host = h};
    int r = io_fresh_dir(s->tmp_fd, see_tmp, &found);

    for (size_t i = 0; r == 0 && i < found.n; i++) {
        ++*stale;
        if (dry_run)
            continue;
        r = HOOK_FAIL("claim.sweep");
        if (r == 0 && unlinkat(s->tmp_fd, found.name[i], 0) < 0 && errno != ENOENT)
            r = -errno;
    }
    free(found.name);
    return r;
}

static int sweep_lower(const struct store *s, bool dry_run, unsigned *stale)
{
    struct claim_listing l = {0};
    struct claim *c = malloc(sizeof(*c));
    size_t first = 0; /* of the key */
    int r = c ? claim_list(s, &l) : -ENOMEM;

    for (size_t i = 0; r == 0 && i < l.n; i++) {
        bool decodes;

        if (!is_ruling(&l, i))
            continue;
        /* Below a record that does not decode, the older ones may be all that a person has left. */
        decodes = first < i &&
                  claim_read_generation(s, l.entry[i].ino, l.entry[i].generation, c) == 0 &&
                  c->kind != CLAIM_BAD;
        for (; decodes && r == 0 && first < i; first++) {
            ++*stale;
            if (!dry_run)
                r = claim_remove_generation(s, l.entry[first].ino, l.entry[first].generation);
        }
        first = i + 1;
    }
    free(l.entry);
    free(c);
    return r;
}

int claim_sweep(const struct store *s, const struct host *h, bool dry_run, unsigned *ret_stale)
{
    unsigned stale = 0;
    /* tmp/ first: a link request of a dead daemon that is still on its way fails once its source is
     * gone, so that what is read after this is final. */
    int r = sweep_tmp(s, h, dry_run, &stale);

    if (r == 0)
        r = sweep_lower(s, dry_run, &stale);
    if (r < 0)
        return r;
    *ret_stale = stale;
    return 0;
}
