/* journal_priv.h: what journal.c and journal_open.c share. Nobody else includes it. It names
 * sqlite's structures without including sqlite3.h, which only journal*.c may. */
#ifndef DISKGUARD_JOURNAL_PRIV_H
#define DISKGUARD_JOURNAL_PRIV_H

#include "base/sync.h"
#include "core/journal.h"

struct sqlite3;
struct sqlite3_stmt;

enum journal_stmt {
    STMT_BEGIN,
    STMT_COMMIT,
    STMT_ROLLBACK,
    STMT_PUT,
    STMT_REMOVE,
    STMT_EACH,
    STMT_SIZE,
    STMT_COUNT
};

/* One put or remove; lives on its caller's stack until it is done. */
struct op {
    struct op *next;
    uint64_t ino, generation;
    const char *text; /* NULL: remove */
    size_t len;
    bool lazy; /* need not be durable when it is done */
    int err;   /* written by the leader while it is busy, read after done */
    bool done; /* under the mutex */
};

struct journal {
    int lock_fd;
    int db_fd; /* of the database file, to give it room. Closed after sqlite has closed it: see
                * journal_close
                */
    /* Used by whoever has set busy (and by open and close, which are alone). */
    struct sqlite3 *db;
    struct sqlite3_stmt *stmt[STMT_COUNT];
    bool lazy; /* a commit does not sync now */

    struct mutex mutex;
    pthread_cond_t cond; /* busy became false */
    bool busy GUARDED_BY(mutex);
    struct op *head GUARDED_BY(mutex);
    struct op **tail GUARDED_BY(mutex);
};

/* Makes the database file as large as its pages need, in steps of this many bytes. 0, -ENOSPC or
 * -errno. */
#define JOURNAL_CHUNK (256 * 1024)
DG_MUST_CHECK int journal_reserve(struct journal *j, uint64_t size);

/* Does a commit sync the log from now on? Not within a transaction. 0 or -errno. */
DG_MUST_CHECK int journal_set_lazy(struct journal *j, bool lazy);

/* The errno, negative, of a failed call: of `result` and of what the database remembers of it. */
int journal_errno(struct sqlite3 *db, int result);

#endif
