/* takeover.c: see takeover.h. */
#include "core/takeover.h"

#include <string.h>

#define BY_HAND                                                                                    \
    "once that host is surely off: fsck.diskguard --takeover %s --confirm-host-is-down DATASTORE"

void takeover_watch(struct takeover_watch *w, const struct host_record *rec, uint64_t now_ms,
                    uint64_t gap_ms)
{
    bool same = w->since_ms != 0 && strcmp(w->host, rec->uuid) == 0 &&
                strcmp(w->daemon, rec->daemon) == 0 && w->heartbeat == rec->heartbeat;

    if (!same) {
        bool watched = w->since_ms != 0 && strcmp(w->host, rec->uuid) == 0 &&
                       strcmp(w->daemon, rec->daemon) == 0 && now_ms - w->seen_ms <= gap_ms;
        w->moves = watched ? w->moves + 1 : 0;
        memcpy(w->host, rec->uuid, sizeof(dg_uuid));
        memcpy(w->daemon, rec->daemon, sizeof(dg_uuid));
        w->heartbeat = rec->heartbeat;
        w->since_ms = now_ms;
    }
    w->seen_ms = now_ms;
}

enum takeover_heartbeat takeover_heartbeat(const struct takeover_watch *w, uint64_t now_ms,
                                           uint64_t need_ms)
{
    if (w->since_ms != 0 && now_ms - w->since_ms >= need_ms)
        return TAKEOVER_HEARTBEAT_STANDS;
    return w->moves >= 2 && now_ms - w->since_ms < need_ms / 2 ? TAKEOVER_HEARTBEAT_MOVES
                                                               : TAKEOVER_HEARTBEAT_WATCHED;
}

static bool fences(enum fencing f, bool unproven)
{
    return f == FENCING_LOCK || (f == FENCING_UNPROVEN && unproven);
}

bool takeover_is_names(const struct record *rec)
{
    return strcmp(rec->format, "none") == 0;
}

enum takeover_verdict takeover_decide(const struct takeover_input *in)
{
    if (!fences(in->own, in->unproven))
        return TAKEOVER_OWN;
    if (!fences(in->holder, in->unproven))
        return TAKEOVER_HOLDER;
    if (in->names)
        return TAKEOVER_NAMES;
    if (in->record < 0)
        return TAKEOVER_NO_RECORD;
    switch (in->heartbeat) {
    case TAKEOVER_HEARTBEAT_MOVES:
        return TAKEOVER_ALIVE;
    case TAKEOVER_HEARTBEAT_WATCHED:
        return TAKEOVER_WATCH;
    case TAKEOVER_HEARTBEAT_STANDS:
        break;
    }
    return in->alive == 1 ? TAKEOVER_LOCKED : TAKEOVER_TRY;
}

void takeover_explain(enum takeover_verdict v, const struct takeover_input *in, const char *own_why,
                      const char *host_name, const char *host_uuid, struct why *ret)
{
    switch (v) {
    case TAKEOVER_TRY:
        why_set(
            ret,
            "the heartbeat of host %.100s stands still and its record is not locked: the fence lock decides",
            host_name);
        break;
    case TAKEOVER_WATCH:
        why_set(
            ret,
            "the heartbeat of host %.100s must be watched longer before it counts as standing still",
            host_name);
        break;
    case TAKEOVER_LOCKED:
        why_set(
            ret,
            "the record of host %.100s is still locked although its heartbeat stands still: its diskguard is stopped or hangs, or its locks have not run out yet; " BY_HAND,
            host_name, host_uuid);
        break;
    case TAKEOVER_ALIVE:
        why_set(ret, "host %.100s lives: its heartbeat moves; close the image there", host_name);
        break;
    case TAKEOVER_NO_RECORD:
        why_set(
            ret,
            "host %.100s has no readable record on the datastore (%s), so nothing tells whether it lives; " BY_HAND,
            host_name, strerror(-in->record), host_uuid);
        break;
    case TAKEOVER_OWN:
        why_set(ret,
                "here the fence lock does not prove that host %.100s cannot write: %s; %s" BY_HAND,
                host_name, own_why,
                in->own == FENCING_UNPROVEN ? "takeover=lock-unproven accepts that; or, " : "",
                host_uuid);
        break;
    case TAKEOVER_HOLDER:
        why_set(
            ret,
            "the claim of host %.100s says that losing the fence lock %s (NFSv3, a mount option, or a diskguard of an older version); %s" BY_HAND,
            host_name,
            in->holder == FENCING_UNPROVEN ? "is not proven to stop its writes"
                                           : "does not stop its writes",
            in->holder == FENCING_UNPROVEN ? "takeover=lock-unproven accepts that; or, " : "",
            host_uuid);
        break;
    case TAKEOVER_NAMES:
        why_set(
            ret,
            "host %.100s claimed it to remove, replace or truncate it, and no lock stops such an operation when it comes late: wait until diskguard on that host is started again, which frees it; or, " BY_HAND,
            host_name, host_uuid);
        break;
    }
}
