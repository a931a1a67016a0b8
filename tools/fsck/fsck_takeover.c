/* fsck_takeover.c: --takeover HOST: which host is meant, the evidence that it is down, and its
 * lock. See fsck.h. */
#include "fsck/fsck.h"

#include <inttypes.h>
#include <linux/magic.h>
#include <string.h>

#define CANDIDATES_MAX 16

/* ---- which host ---- */

struct candidate {
    dg_uuid uuid;
    char name[HOST_NAME_SIZE];
    unsigned claims;
};
struct host_search {
    const char *wanted; /* uuid or name */
    struct candidate found[CANDIDATES_MAX];
    unsigned n;
};

static struct candidate *see(struct host_search *s, const char *uuid, const char *name)
{
    struct candidate *c;

    for (unsigned i = 0; i < s->n; i++)
        if (strcmp(s->found[i].uuid, uuid) == 0)
            return &s->found[i];
    if ((strcmp(s->wanted, uuid) != 0 && strcmp(s->wanted, name) != 0) || s->n == CANDIDATES_MAX)
        return NULL;
    c = &s->found[s->n++];
    snprintf(c->uuid, sizeof(c->uuid), "%s", uuid);
    snprintf(c->name, sizeof(c->name), "%s", name);
    return c;
}

static int see_host(void *arg, const struct host_record *rec, int err)
{
    see(arg, rec->uuid, err == 0 ? rec->name : "");
    return 0;
}

static int see_claim(void *arg, uint64_t ino, const struct claim *c)
{
    struct candidate *one;

    (void)ino;
    if (c->kind != CLAIM_HELD)
        return 0;
    one = see(arg, c->rec.host, c->rec.host_name);
    if (one)
        one->claims++;
    return 0;
}

static int find(struct fsck *f, struct host_search *s)
{
    int r = host_each(&f->store, see_host, s);

    if (r == 0)
        r = claim_each(&f->store, see_claim, s);
    if (r < 0) {
        report_error(f, "cannot read who uses %s: %s; %s", f->store.path, strerror(-r),
                     store_hint(r));
        return r;
    }
    if (s->n == 0) {
        report_error(f, "no host %s is known on %s: diskguardctl hosts --datastore %s lists them",
                     s->wanted, f->store.path, out_quote(f->store.path));
        return -EINVAL;
    }
    if (s->n > 1) {
        for (unsigned i = 0; i < s->n; i++)
            out_error("%s could be %s, with %u claims", s->wanted, s->found[i].uuid,
                      s->found[i].claims);
        report_error(f, "several hosts are named %s: give the uuid of the one that is down",
                     s->wanted);
        return -EINVAL;
    }
    return 0;
}

/* ---- evidence ---- */

int takeover_alive(const struct fsck *f, const char *uuid)
{
    bool ours = (f->lock_fd >= 0 && strcmp(uuid, f->host.uuid) == 0) ||
                (f->takeover_fd >= 0 && strcmp(uuid, f->takeover) == 0);

    return ours ? 0 : host_alive(&f->store, uuid);
}

const char *takeover_alive_text(const struct fsck *f, const char *uuid)
{
    int r = takeover_alive(f, uuid);

    if (r == 1)
        return "a diskguard of that host runs: its record is locked";
    if (r == 0)
        return "no diskguard of that host runs: its record is not locked";
    if (r == -ENOENT)
        return "that host has no record on the datastore";
    return "whether that host is alive cannot be told here";
}

static void evidence(struct fsck *f, const struct candidate *c)
{
    struct host_record rec;
    char age[48];
    int r = host_record_read(&f->store, c->uuid, &rec);

    report_say(f, "Host %s (%s): %u claims.",
               c->name[0] ? out_tame(c->name) : "without a readable name", c->uuid, c->claims);
    if (r == 0) {
        int64_t s = out_age(rec.heartbeat_time);

        report_say(f,
                   "  last sign of life: heartbeat %" PRIu64
                   " at %s%s%s%s; diskguard started there at %s",
                   rec.heartbeat, rec.heartbeat_time, s < 0 ? "" : ", by this clock ",
                   s < 0 ? "" : out_duration((uint64_t)s, age), s < 0 ? "" : " ago", rec.started);
    } else {
        report_say(f, "  its record cannot be read: %s",
                   r == -ENOENT    ? "there is none"
                   : r == -EBADMSG ? "it is damaged"
                                   : strerror(-r));
    }
    report_say(f, "  %s.", takeover_alive_text(f, c->uuid));
}

/* ---- all of it ---- */

bool takeover_is_own(const struct fsck *f)
{
    return f->takeover[0] && strcmp(f->takeover, f->host.uuid) == 0;
}

/* NFSv3 keeps the locks of a host that is off until it boots again. There a locked record proves
 * nothing. */
static bool keeps_dead_locks(const struct fsck *f)
{
    return f->store.fs->magic == NFS_SUPER_MAGIC &&
           io_fencing(f->store.root_fd, FENCE_OFD, NULL) == FENCING_NO;
}

/* While we hold the lock of that host's record, its daemon cannot start. */
static int lock_record(struct fsck *f, const struct candidate *c)
{
    struct host other = {.uuid = ""};
    struct why why = {""};
    int r;

    memcpy(other.uuid, c->uuid, sizeof(other.uuid));
    r = host_lock_force(&f->store, &other, &why);
    if (r == -ENOENT)
        return 0;
    if (r == -EBUSY && f->store.fence == FENCE_NONE && keeps_dead_locks(f)) {
        report_say(
            f,
            "Its record is still locked, which proves nothing on NFSv3. You said that it is down: going on.");
        return 0;
    }
    if (r < 0) {
        report_error(f, "%s", why.text);
        return r;
    }
    f->takeover_fd = r;
    return 0;
}

int takeover_open(struct fsck *f)
{
    struct host_search s = {.wanted = f->takeover_arg};
    const struct candidate *c = &s.found[0];
    int alive, r;

    if (!f->takeover_arg)
        return 0;
    r = find(f, &s);
    if (r < 0)
        return r;
    evidence(f, c);
    alive = host_alive(&f->store, c->uuid);
    if (alive == 1) {
        report_error(
            f,
            "host %s is alive: stop diskguard there, or cut the host off from the storage; nothing was taken over%s",
            c->name[0] ? c->name : c->uuid,
            keeps_dead_locks(f)
                ? ". NFSv3 keeps the lock of a host that is off until it boots again: if it is surely off, add --fence=none"
                : "");
        return -EBUSY;
    }
    if (alive < 0 && alive != -ENOENT && alive != -EOPNOTSUPP && alive != -EBADMSG) {
        report_error(f, "whether host %s is alive cannot be read: %s; %s", c->uuid,
                     strerror(-alive), store_hint(alive));
        return alive;
    }
    if (!f->confirmed) {
        report_error(
            f,
            "make sure that host %s is switched off, or cut off from the storage, then add --confirm-host-is-down",
            c->name[0] ? c->name : c->uuid);
        return -EINVAL;
    }
    memcpy(f->takeover, c->uuid, sizeof(f->takeover));
    return f->dry_run ? 0 : lock_record(f, c);
}
