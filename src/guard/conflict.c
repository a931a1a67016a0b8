/* conflict.c: see conflict.h. */
#include "guard/conflict.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/base.h"

void conflict_set(struct conflict *ret, enum conflict_kind kind)
{
    if (ret)
        *ret = (struct conflict){.kind = kind};
}

static void set_holder(struct conflict *ret, const struct record *rec)
{
    snprintf(ret->host_name, sizeof(ret->host_name), "%s", rec->host_name);
    snprintf(ret->host, sizeof(ret->host), "%s", rec->host);
    snprintf(ret->since, sizeof(ret->since), "%s", rec->since);
    ret->pid = rec->pid;
    ret->generation = rec->generation;
    ret->released = rec->step == STEP_RESTORING;
}

void conflict_claim(struct conflict *ret, const struct record *rec)
{
    conflict_set(ret, CONFLICT_CLAIM);
    if (ret)
        set_holder(ret, rec);
}

void conflict_linked(struct conflict *ret, const char *how, const char *path,
                     const struct record *rec)
{
    conflict_set(ret, rec && rec->host[0] ? CONFLICT_LINKED : CONFLICT_WRITTEN);
    if (ret && rec)
        set_holder(ret, rec);
    if (ret)
        snprintf(ret->what, sizeof(ret->what), "%.60s '%.200s'", how, path);
}

/* ---- the log line ---- */

/* One row a kind: who is in the way, and the way out. {name}: see conflict_text(). */
static const char *const texts[CONFLICT_KINDS] = {
    [CONFLICT_NONE] =
        "somebody had it a moment ago, and nothing says who. Try again; else diskguardctl why",
    [CONFLICT_FENCE] =
        "nobody's claim, but another host has this file open for write, since before it was an image, or is just about to claim or repair it: the storage did not grant the fence lock to host {this host}. It is free when that host closes it; if you cannot find who has it open, look with fuser -v on the other hosts. NFSv3 keeps the lock of a host that is off until that host boots again or the server's lock manager is restarted",
    [CONFLICT_OUTSIDE] =
        "nobody's claim, but a program outside of the views has it open for write, or locked: QEMU's own lock on the file says so. Stop that program; on its host fuser -v {raw}, or lslocks, names it. NFSv3 keeps the lock of a host that is off until that host boots again or the server's lock manager is restarted",
    [CONFLICT_READER] =
        "{what} on host {host name}, {pid}, reads it{since} and wants no writer beside it (QEMU's byte locks 100 and 201 say so; option readers=). {way}",
    [CONFLICT_LINKED] =
        "{what}, which host {host name}, {pid}, holds{since}, generation {generation}{released}. {way}",
    [CONFLICT_WRITTEN] = "{what}, on host {host name}. {way}",
    [CONFLICT_CLAIM] =
        "held by host {host name} ({host}){self}, {pid}{, since}, generation {generation}{released}. {way}",
    [CONFLICT_OPENING] =
        "{pid} of this host ({this host}) has it open for write, since before it was an image, or is just opening it. One process at a time may write an image (option writers=)",
    [CONFLICT_BROKEN] = "the image is {what} on this host ({this host}); see diskguardctl why",
    [CONFLICT_HERE] =
        "held by host {this host} (this host), {pid}{, since}, generation {generation}{released}. One process at a time may write an image (option writers=). If that process is gone: diskguardctl why",
};

struct field {
    const char *name, *value;
};

/* The text with its {names} replaced. */
static void expand(const char *text, const struct field *f, char *ret, size_t size)
{
    size_t n = strlen(ret);
    while (*text && n + 1 < size) {
        const char *end = *text == '{' ? strchr(text, '}') : NULL;
        const struct field *at = end ? f : NULL;
        size_t len = end ? (size_t)(end - text) - 1 : 0;
        while (at && at->name && (strncmp(at->name, text + 1, len) != 0 || at->name[len]))
            at++;
        if (at && at->name) {
            n += (size_t)snprintf(ret + n, size - n, "%s", at->value);
            text = end + 1;
        } else {
            ret[n++] = *text++;
            ret[n] = '\0';
        }
    }
}

/* What ends it: a host never confirms its own death. */
static void way_out(const struct conflict *c, const struct conflict_place *at, char *ret,
                    size_t size)
{
    char quoted[512];
    base_quote(at->datastore, quoted, sizeof(quoted));
    if (strcmp(c->host, at->host) == 0)
        snprintf(
            ret, size,
            "It is free when that is closed on this host; if that program is gone: diskguardctl why");
    else if (!c->host[0])
        snprintf(ret, size,
                 "It is free when that is closed; fuser -v on the file names the program");
    else
        snprintf(
            ret, size,
            "It is free when that is closed there; if that host is down for good: fsck.diskguard --takeover %s --confirm-host-is-down %s",
            c->host, quoted);
}

static void process_text(uint64_t pid, char ret[64])
{
    if (pid == 0)
        snprintf(ret, 64, "a process that this host cannot name");
    else
        snprintf(ret, 64, "pid %" PRIu64, pid);
}

void conflict_text(const struct conflict *c, const struct conflict_place *at, uint64_t asking_pid,
                   char *ret, size_t size)
{
    char asks[64], pid[64], generation[24], way[1024], since[48], comma_since[48];
    process_text(asking_pid, asks);
    process_text(c->pid, pid);
    snprintf(generation, sizeof(generation), "%" PRIu64, c->generation);
    snprintf(since, sizeof(since), "%s%.32s", c->since[0] ? " since " : "", c->since);
    snprintf(comma_since, sizeof(comma_since), "%s%.40s", c->since[0] ? "," : "", since);
    way_out(c, at, way, sizeof(way));
    const struct field f[] = {
        {"this host", at->host_name},
        {"host name", c->host_name},
        {"host", c->host},
        {"self", strcmp(c->host, at->host) == 0 ? " (this host)" : ""},
        {"pid", pid},
        {"since", since},
        {", since", comma_since},
        {"generation", generation},
        {"released", c->released ? ", being released" : ""},
        {"what", c->what},
        {"raw", at->raw},
        {"way", way},
        {NULL, NULL},
    };
    snprintf(ret, size, "asked for by %s; ", asks);
    expand(texts[c->kind], f, ret, size);
}
