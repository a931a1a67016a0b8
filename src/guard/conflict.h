/* conflict.h: why a request gets -EBUSY: who is in the way, since when, and what ends it.
 *
 * Whoever refuses fills a struct conflict that belongs to the request. The request decides with it
 * whether to wait, and says it in one log line when it gives up (image_refused()). So two requests
 * on one image never see each other's conflict. Pure: no image, no lock, no log. */
#ifndef DISKGUARD_CONFLICT_H
#define DISKGUARD_CONFLICT_H

#include "core/record.h"
#include "node/opener.h"

enum conflict_kind {
    CONFLICT_NONE,    /* not known; the next attempt may find nobody */
    CONFLICT_FENCE,   /* the storage did not grant the fence lock, and no claim says by whom */
    CONFLICT_OUTSIDE, /* a program outside of the views has QEMU's byte 101 locked */
    CONFLICT_READER,  /* a protecting reader (readers.h) */
    CONFLICT_LINKED,  /* a file above or below it is held */
    CONFLICT_WRITTEN, /* the same, and no claim says by whom */
    CONFLICT_CLAIM,   /* a claim on the datastore, of another host or left by this one */
    CONFLICT_OPENING, /* a process of this host has it open as a plain file, or just opens it */
    CONFLICT_BROKEN,  /* this host holds it, STUCK or FENCED */
    CONFLICT_HERE,    /* another process of this host holds it */
};
#define CONFLICT_KINDS (CONFLICT_HERE + 1)

struct conflict {
    enum conflict_kind kind;
    bool released; /* the holder is just letting it go */
    char host_name[RECORD_NAME_MAX];
    dg_uuid host; /* "": not known */
    uint64_t pid; /* 0: not known */
    uint64_t generation;
    char since[32]; /* "": not known */
    /* LINKED, WRITTEN: "it needs its backing file 'x'"; READER: the program; BROKEN: the state */
    char what[320];
};

/* Every one of these takes NULL for ret: nobody wants to know. */

void conflict_set(struct conflict *ret, enum conflict_kind kind);
/* CLAIM, by its record. */
void conflict_claim(struct conflict *ret, const struct record *rec);
/* A file above or below: how it is linked ("it is needed by"), its path, the claim that holds it.
 * rec NULL, or without a host: WRITTEN. */
void conflict_linked(struct conflict *ret, const char *how, const char *path,
                     const struct record *rec);

/* Where the refusing host is, for conflict_text(). */
struct conflict_place {
    const char *host_name, *host; /* of this host: name and UUID */
    const char *datastore;
    const char *raw; /* the file's path without a view, quoted for a shell */
};
/* What the log says: who asked, who is in the way, the way out. */
void conflict_text(const struct conflict *c, const struct conflict_place *at, uint64_t asking_pid,
                   char *ret, size_t size);

#endif
