/* problem.h: the table of everything that can be wrong with a claim, a journal row or a sealed
 * image: message, severity, repair. "The call failed" is errno; "the state is wrong" is a problem.
 * One table for the daemon, diskguardctl and fsck.diskguard. */
#ifndef DISKGUARD_PROBLEM_H
#define DISKGUARD_PROBLEM_H

#include <stddef.h>

enum severity {
    SEV_OK,    /* nothing to do */
    SEV_NOTE,  /* not wrong, but worth a line: e.g. a claim of a live host */
    SEV_PREEN, /* wrong, and repaired without asking (fsck -p, daemon start) */
    SEV_ASK,   /* repaired only when a person agrees (fsck -y or the prompt) */
    SEV_PERSON /* no program may repair it: a person must decide; the message says how */
};

enum problem {
    PROBLEM_NONE,
    PROBLEM_LEFT_SEALED,  /* ours, dead daemon, header sealed or mixed: RESTORE */
    PROBLEM_LEFT_CLAIMED, /* ours, dead daemon, header true: RELEASE */
    /* a journal row whose claim is free, later or never was made: FORGET */
    PROBLEM_STALE_ROW,
    PROBLEM_VANISHED, /* the image of a claim is gone: FORGET */
    /* our row, but another host holds or held a later generation: FORGET */
    PROBLEM_LOST_CLAIM,
    PROBLEM_FOREIGN,           /* held by another host: report only */
    PROBLEM_HOLDER_DOWN,       /* the same, and no daemon of that host runs: a person decides */
    PROBLEM_FOREIGN_CONFIRMED, /* held by another host that a person says is down: as LEFT_* */
    PROBLEM_BUSY_WRITER,       /* the fence lock is held: somebody can still write: STOP */
    PROBLEM_ALIEN,             /* header bytes are neither true nor sealed: STOP */
    PROBLEM_BAD_CLAIM,         /* claim does not decode: STOP */
    PROBLEM_NEWER_CLAIM,       /* claim of a newer version: STOP */
    PROBLEM_BAD_ROW,           /* journal row does not decode and no claim of ours: STOP */
    PROBLEM_WRONG_HANDLE,      /* the inode number belongs to another file now: STOP */
    PROBLEM_UNREADABLE,        /* the image or the claim cannot be read: STOP, retry */
    /* our row says sealed, header is sealed, no claim at all: restore only when a person agrees */
    PROBLEM_CLAIM_MISSING,
    PROBLEM_IMPOSSIBLE, /* a combination that the protocol never makes: STOP */
    PROBLEM_ORPHAN,     /* a sealed image without claim and without row: STOP */
    PROBLEM_STALE_TMP,  /* a record in tmp/ that nobody is writing */
    PROBLEM_COUNT
};

struct problem_info {
    const char *code; /* stable, for programs: "left-sealed" */
    enum severity severity;
    const char *message; /* for people; one sentence */
    const char *repair;  /* what repairs it, as a command or an action */
};
const struct problem_info *problem_info(enum problem p);

/* Copies text with the words DATASTORE, HOST and IMAGE, which stand for the reader's own, replaced;
 * a NULL leaves the word, and so does a value that does not fit. They stand in commands: give them
 * quoted (base_quote). */
struct problem_words {
    const char *datastore, *host, *image;
};
void problem_fill(const char *text, const struct problem_words *words, char *ret, size_t size);

#endif
