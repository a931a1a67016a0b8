/* tempstore.h: a datastore in a temporary directory, and records for it. For tests of claims and
 * recovery. */
#ifndef TEMPSTORE_H
#define TEMPSTORE_H

#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>

#include "core/claim.h"
#include "core/overlay.h"
#include "core/shard.h"
#include "core/store.h"

struct tempstore {
    char base[64]; /* removed with everything below it */
    char path[96]; /* the datastore */
    struct store store;
};

static inline int tempstore_remove_one(const char *path, const struct stat *st, int type,
                                       struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static inline void tempstore_remove(struct tempstore *t)
{
    if (t->base[0] == '\0')
        return;
    store_close(&t->store);
    nftw(t->base, tempstore_remove_one, 16, FTW_DEPTH | FTW_PHYS);
    t->base[0] = '\0';
}

/* 0 or -errno. A test that failed in the plain runner does not come to its .fini: the next one
 * cleans up. */
static inline int tempstore_make(struct tempstore *t)
{
    const char *tmp = getenv("TMPDIR");
    struct why why;
    int r;

    tempstore_remove(t);
    snprintf(t->base, sizeof(t->base), "%.40s/dg-unit-XXXXXX", tmp && tmp[0] ? tmp : "/tmp");
    if (!mkdtemp(t->base))
        return -errno;
    snprintf(t->path, sizeof(t->path), "%s/store", t->base);
    if (mkdir(t->path, 0755) < 0)
        return -errno;
    r = store_init(t->path, &t->store, &why);
    if (r < 0)
        fprintf(stderr, "%s\n", why.text);
    return r;
}

static inline unsigned tempstore_count(int dirfd, const char *prefix)
{
    unsigned n = 0;
    int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);

    for (struct dirent *e; dir && (e = readdir(dir));)
        if (e->d_name[0] != '.' && strncmp(e->d_name, prefix, strlen(prefix)) == 0)
            n++;
    if (dir)
        closedir(dir);
    return n;
}

/* Where the claims of this inode are. The descriptor is the store's. */
static inline int tempstore_claims(const struct tempstore *t, uint64_t ino)
{
    return shard_fd(&t->store, SHARD_CLAIMS, ino);
}

/* In all shards. */
static inline unsigned tempstore_claims_count(const struct tempstore *t, const char *prefix)
{
    unsigned n = 0;

    for (unsigned i = 0; i < DG_SHARDS; i++) {
        int fd = shard_open(t->store.claims_fd, i);

        n += tempstore_count(fd, prefix);
        close(fd);
    }
    return n;
}

/* Hosts that differ in one hexadecimal digit. */
static inline struct host tempstore_host(unsigned n)
{
    struct host h;

    snprintf(h.uuid, sizeof(h.uuid), "%08x-1111-4111-8111-111111111111", n);
    snprintf(h.installation, sizeof(h.installation), "%08x-2222-4222-8222-222222222222", n);
    snprintf(h.boot, sizeof(h.boot), "%08x-3333-4333-8333-333333333333", n);
    snprintf(h.daemon, sizeof(h.daemon), "%08x-4444-4444-8444-444444444444", n);
    snprintf(h.name, sizeof(h.name), "host%u", n);
    return h;
}

static inline void tempstore_record(const struct host *h, uint64_t ino, uint64_t generation,
                                    struct record *ret)
{
    memset(ret, 0, sizeof(*ret));
    snprintf(ret->image, sizeof(ret->image), "dir/disk %llu.qcow2", (unsigned long long)ino);
    ret->ino = ino;
    ret->generation = generation;
    ret->step = STEP_CLAIMED;
    ret->seq = 1;
    memcpy(ret->host, h->uuid, sizeof(dg_uuid));
    memcpy(ret->installation, h->installation, sizeof(dg_uuid));
    memcpy(ret->boot, h->boot, sizeof(dg_uuid));
    memcpy(ret->daemon, h->daemon, sizeof(dg_uuid));
    snprintf(ret->host_name, sizeof(ret->host_name), "%s", h->name);
    base_time_text(ret->since);
    snprintf(ret->format, sizeof(ret->format), "qcow2");
    ret->cut = OVERLAY_NO_CUT;
}

#endif
