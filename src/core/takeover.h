/* takeover.h: may the claim of a host that seems dead be taken over without a person? The decision,
 * pure; guard/takeover.c acts on it.
 *
 * Nothing here proves that a host is dead. A heartbeat that stands still and a lock that is gone
 * only say that it is worth trying. The proof is the exclusive fence lock on the image itself,
 * granted by the storage; core/recover.c takes it before it acts. It counts only where a host
 * that loses the lock cannot write any more (enum fencing): on our mount as we see it, and on
 * the holder's mount as its claim says. */
#ifndef DISKGUARD_TAKEOVER_H
#define DISKGUARD_TAKEOVER_H

#include "core/host.h"
#include "core/record.h"

/* ---- the heartbeat of another host, timed on our monotonic clock ---- */

enum takeover_heartbeat {
    TAKEOVER_HEARTBEAT_WATCHED, /* not watched long enough */
    /* it changed twice while it was watched, and not long ago, for the same daemon: one change
     * may be the last sign of a host that dies */
    TAKEOVER_HEARTBEAT_MOVES,
    TAKEOVER_HEARTBEAT_STANDS /* the counter has not changed for as long as was asked for */
};
struct takeover_watch {
    dg_uuid host, daemon; /* a restarted daemon counts its heartbeats anew */
    uint64_t heartbeat;
    uint64_t since_ms; /* time when this value was first seen, CLOCK_MONOTONIC; 0: never */
    uint64_t seen_ms;  /* last looked at */
    unsigned moves;    /* changes in a row, each between two looks that were not far apart */
};
/* Notes a record that was just read (fresh). Two looks more than gap_ms apart do not tell when
 * the heartbeat changed between them: then the watch begins anew. */
void takeover_watch(struct takeover_watch *w, const struct host_record *rec, uint64_t now_ms,
                    uint64_t gap_ms);
/* need_ms: how long the heartbeat must stand still. */
enum takeover_heartbeat takeover_heartbeat(const struct takeover_watch *w, uint64_t now_ms,
                                           uint64_t need_ms);

/* ---- the decision ---- */

enum takeover_verdict {
    TAKEOVER_TRY,   /* ask for the fence lock: it decides */
    TAKEOVER_WATCH, /* not yet: the heartbeat must be watched longer */
    /* not now: the record of that host is locked, so it lives, or its locks have not run out yet */
    TAKEOVER_LOCKED,
    TAKEOVER_ALIVE,     /* its heartbeat moves */
    TAKEOVER_NO_RECORD, /* that host has no readable record, so nothing tells whether it lives */
    TAKEOVER_OWN,       /* never: locks on our mount do not fence */
    TAKEOVER_HOLDER,    /* never: locks on the holder's mount do not fence; its claim says so */
    TAKEOVER_NAMES /* never: it is claimed to be removed, replaced or truncated by path, and no lock
                      fences that */
};
struct takeover_input {
    bool unproven; /* FENCING_UNPROVEN is accepted, too (takeover=lock-unproven) */
    bool names;    /* takeover_is_names() of the claim */
    enum fencing own, holder;
    int record; /* of the holder's hosts/ record: 0 it was read, or -errno */
    int alive;  /* host_alive(): 1, 0 or -errno (cannot be told) */
    enum takeover_heartbeat heartbeat;
};
/* Was it claimed for an operation on names (format "none"), and not to be written? An NFSv4
 * server refuses a late WRITE under a lock that was lost. It carries out a late REMOVE, RENAME
 * or SETATTR, because these name no lock. */
bool takeover_is_names(const struct record *rec);
enum takeover_verdict takeover_decide(const struct takeover_input *in);

/* Why it is refused, or what is waited for: one sentence without its full stop. own_why: of
 * io_fencing(). The word DATASTORE in it stands for the reader's own, as in core/problem.h. */
void takeover_explain(enum takeover_verdict v, const struct takeover_input *in, const char *own_why,
                      const char *host_name, const char *host_uuid, struct why *ret);

#endif
