/* host.h: who this host is, and its record hosts/<uuid> on the datastore.
 *
 * Host uuid: option host-id, or derived from /etc/machine-id with
 * sd_id128_get_machine_app_specific(3), so that the machine-id itself is never published.
 * Installation id: random, in STATE_DIR/installation, made once. hosts/ binds the two when it
 * first sees them. Cloned machine-ids are common: the same host uuid with another installation
 * id is another host.
 *
 * hosts/<uuid> is written in place so that the lock on it survives. It is two copies of
 * HOST_COPY_SIZE bytes, each a text (base/text.h) padded with newlines: "diskguard-host 1", uuid=,
 * name=, installation=, boot=, daemon=, started=<time>, seq=<counter>, beat=<counter>,
 * beat-time=<time>, sum=. The copy that decodes and has the greater seq counts, and the next
 * write goes to the other one. So a crash in the middle of a write leaves one good copy. */
#ifndef DISKGUARD_HOST_H
#define DISKGUARD_HOST_H

#include "base/base.h"
#include "core/store.h"

/* two sectors: a write of one copy never tears the other (T10 SBC-4, logical block) */
#define HOST_COPY_SIZE 1024
#define HOST_RECORD_SIZE (2 * HOST_COPY_SIZE)
#define HOST_NAME_SIZE 65

struct host {
    dg_uuid uuid, installation, boot, daemon; /* daemon: random at each start */
    char name[HOST_NAME_SIZE];
};

/* host_id may be NULL (derive). Creates STATE_DIR (0700) and the installation id when missing
 * (durably). -EINVAL bad uuid, -ENOENT no machine-id, -EPERM STATE_DIR belongs to another user or
 * others can write to it, -EBADMSG or -EPROTONOSUPPORT the installation id does not decode. */
DG_MUST_CHECK int host_load(const char *host_id, const char *state_dir, struct host *ret,
                            struct why *why);

struct host_record {
    dg_uuid uuid, installation, boot, daemon;
    char name[HOST_NAME_SIZE];
    char started[32], heartbeat_time[32];
    uint64_t heartbeat;
};
/* 0, -ENOENT, -EBADMSG, -EPROTONOSUPPORT. */
DG_MUST_CHECK int host_record_read(const struct store *s, const char *uuid,
                                   struct host_record *ret);

/* Locks this host's record and returns the descriptor that carries the lock. Creates and binds
 * the record when there is none; else it writes nothing, for the first heartbeat does. why names
 * the way out.
 * -EBUSY: a daemon (or fsck) of this identity lives.
 * -EKEYREJECTED: it is bound to another installation, alive or not.
 * -EBADMSG, -EPROTONOSUPPORT: the record does not decode.
 * -EROFS, -EACCES, or another -errno. */
DG_MUST_CHECK int host_lock(const struct store *s, const struct host *h, struct why *why);
/* Binds the record to this installation, whatever it says (a person confirmed that). lock_fd is
 * from host_lock_force(), which locks and checks nothing: -ENOENT where there is no record (h->uuid
 * names it), -EBUSY. Both copies are written, durably. */
DG_MUST_CHECK int host_lock_force(const struct store *s, const struct host *h, struct why *why);
DG_MUST_CHECK int host_bind(int lock_fd, const struct host *h);

/* The locks of several hosts' records, so that no daemon of theirs lives or starts. */
struct host_locks {
    int *fd;
    dg_uuid *uuid;
    size_t n;
};
/* Locks the records of all hosts, as host_lock_force, but for those in *l and of `mine` (uuids,
 * NULL-terminated, or NULL), and adds them to *l, which is {0} at first. A host that has no record
 * yet is not stopped. -EBUSY: a daemon of ret_alive lives; or -errno. What was locked stays so. */
DG_MUST_CHECK int host_lock_all(const struct store *s, const char *const *mine,
                                struct host_locks *l, dg_uuid ret_alive, struct why *why);
void host_unlock_all(struct host_locks *l);

/* Writes the next heartbeat, durably; the first one of a daemon also writes its boot, name and
 * start. It is evidence for people and for takeover=lock. -EKEYREJECTED: the record was bound to
 * another installation meanwhile, which happens only where locks do not work. */
DG_MUST_CHECK int host_heartbeat(int lock_fd, const struct host *h, uint64_t heartbeat);

/* Does a live process have the record of that host locked now? Never waits, keeps no lock. 1, 0
 * or -errno. -ENOENT: there is no such record. -EOPNOTSUPP: nobody can tell (FENCE_NONE: locks
 * do not reach other hosts). */
DG_MUST_CHECK int host_alive(const struct store *s, const char *uuid);

/* Calls fn for each decodable host record; fn gets err < 0 and only rec->uuid set for one that is
 * not. A non-zero return of fn stops and is returned. */
DG_MUST_CHECK int host_each(const struct store *s,
                            int (*fn)(void *arg, const struct host_record *rec, int err),
                            void *arg);

#endif
