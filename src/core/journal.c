/* journal.c: see core/journal.h.
 *
 * Group commit: a caller puts its operation in the queue. If nobody is at work on the database,
 * it leads: it takes the whole queue, runs it as one transaction and tells everybody the result.
 * Otherwise it waits; whoever wakes first and is not served yet leads next. `busy` makes the
 * leader the only user of the database, so that no lock is held over sqlite. */
#include "core/journal.h"

#include <fcntl.h>
#include <limits.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "base/hook.h"
#include "base/sync.h"
#include "diskguard/journal.h"

/* Explanations cut long paths, so that the way out at the end of the line is never what is lost. */
#define P "%.200s"

/* When the log has this many pages (of 4096 bytes) it is copied into the database. So it stays
 * within LOG_SIZE, which is allocated once and kept; the rest is room for the last transaction. */
#define LOG_PAGES "128"
#define LOG_SIZE (1024 * 1024)

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
struct journal_op {
    struct journal_op *next;
    uint64_t ino, generation;
    const char *text; /* NULL: remove */
    size_t len;
    bool lazy; /* need not be durable when it is done */
    int err;   /* written by the leader while it is busy, read after done */
    bool done; /* under the mutex */
};

struct journal {
    int lock_fd;
    int db_fd; /* of the database file, to enlarge it. Closed after sqlite has closed it:
                  journal_close() */
    /* Only the thread that has set busy uses these (and open and close, which run alone). */
    sqlite3 *db;
    sqlite3_stmt *stmt[STMT_COUNT];
    bool lazy; /* a commit does not sync now */

    struct mutex mutex;
    struct cond quiet; /* busy became false */
    bool busy GUARDED_BY(mutex);
    struct journal_op *head GUARDED_BY(mutex);
    struct journal_op **tail GUARDED_BY(mutex);
};

static const char *const statements[STMT_COUNT] = {
    [STMT_BEGIN] = "BEGIN IMMEDIATE",
    [STMT_COMMIT] = "COMMIT",
    [STMT_ROLLBACK] = "ROLLBACK",
    [STMT_PUT] = "INSERT OR REPLACE INTO claim (inode, generation, record) VALUES (?1, ?2, ?3)",
    [STMT_REMOVE] = "DELETE FROM claim WHERE inode = ?1 AND generation = ?2",
    [STMT_EACH] = "SELECT inode, generation, record FROM claim",
    [STMT_SIZE] = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size",
};

/* ---- errors ---- */

/* The errno of the failed system call where it says more than sqlite's code; else 0. */
static int system_errno(sqlite3 *db)
{
    int e = sqlite3_system_errno(db);

    switch (e) {
    case EDQUOT:
    case EFBIG:
        return -ENOSPC; /* no room is left for this file */
    case ENOSPC:
    case EROFS:
    case EACCES:
    case EMFILE:
    case ENFILE:
    case ENOMEM:
        return -e;
    default:
        return 0;
    }
}

/* The errno, negative, of a failed call: of `result` and of what the database remembers of it. */
static int journal_errno(sqlite3 *db, int result)
{
    int extended = sqlite3_extended_errcode(db), e;

    if ((extended & 0xff) != (result & 0xff))
        extended = result;
    if (extended == SQLITE_IOERR_NOMEM)
        return -ENOMEM;
    switch (result & 0xff) {
    case SQLITE_FULL:
        return -ENOSPC;
    case SQLITE_IOERR:
        e = system_errno(db);
        return e < 0 ? e : -EIO;
    case SQLITE_CANTOPEN:
        e = system_errno(db);
        return e < 0 ? e : -EACCES;
    case SQLITE_READONLY:
        return -EROFS;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return -EBADMSG;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return -EBUSY;
    case SQLITE_NOMEM:
        return -ENOMEM;
    case SQLITE_PERM:
    case SQLITE_AUTH:
        return -EACCES;
    case SQLITE_TOOBIG:
        return -EMSGSIZE;
    case SQLITE_CONSTRAINT:
    case SQLITE_MISMATCH:
        return -EINVAL;
    default:
        return -EIO;
    }
}

static int explain(const char *path, int err, struct why *why)
{
    switch (-err) {
    case EBADMSG:
        why_set(
            why,
            "the journal " P
            " is damaged or no diskguard journal: move it (and -wal beside it) away, then run fsck.diskguard -n on the datastore: what was held is in the claims too, and this host takes it up at its next start",
            path);
        break;
    case EPROTONOSUPPORT:
        why_set(why,
                "the journal " P " was made by a newer diskguard; update diskguard on this host",
                path);
        break;
    case ENOSPC:
        why_set(why,
                "no space for the journal " P
                "; free some space there, or choose another place with state-dir=",
                path);
        break;
    case EROFS:
    case EACCES:
        why_set(why,
                "cannot write the journal " P
                ": %s; run as its owner, or choose another place with state-dir=",
                path, strerror(-err));
        break;
    case EBUSY:
        why_set(why, "another program has the journal " P " open: end it (sqlite3? a backup?)",
                path);
        break;
    default:
        why_set(why, "cannot open the journal " P ": %s; look at the kernel log", path,
                strerror(-err));
    }
    return err;
}

/* ---- the lock file ---- */

/* It is never removed: a lock on a removed file keeps nobody out. */
static int lock_take(int dir_fd, const char *dir, const char *name, int *ret_fd, struct why *why)
{
    _cleanup_close_ int fd = openat(dir_fd, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    char pid[32];
    ssize_t n;
    int r;

    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0) {
        r = -errno;
        if (r != -EAGAIN) {
            why_set(why, "cannot lock " P "/%s: %s", dir, name, strerror(-r));
            return r;
        }
        n = pread(fd, pid, sizeof(pid) - 1, 0);
        pid[n > 0 ? n : 0] = '\0';
        pid[strcspn(pid, "\n")] = '\0';
        why_set(why, "another diskguard or fsck.diskguard%s%s has the lock " P "/%s; end it first",
                pid[0] ? ", pid " : "", pid, dir, name);
        return -EBUSY;
    }
    /* For people only: it may fail. */
    n = snprintf(pid, sizeof(pid), "%d\n", (int)getpid());
    if (ftruncate(fd, 0) == 0)
        n = pwrite(fd, pid, (size_t)n, 0);
    *ret_fd = base_steal_fd(&fd);
    return 0;
}

/* ---- the database ---- */

/* We make the file, not sqlite, to set its mode: -wal gets the same one. An empty file is an empty
 * database. */
static int file_make(int dir_fd, const char *name, int *ret_fd)
{
    _cleanup_close_ int fd = -1;
    struct stat st;

    HOOK("journal.create");
    fd = openat(dir_fd, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (fd < 0)
        return errno == ELOOP ? -EBADMSG : -errno;
    if (fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode))
        return -EBADMSG;
    *ret_fd = base_steal_fd(&fd);
    return 0;
}

static int allocate(int fd, off_t size)
{
    int err;

    do
        err = posix_fallocate(fd, 0, size);
    while (err == EINTR);
    return err == EDQUOT || err == EFBIG ? -ENOSPC : -err;
}

/* Makes the database file as large as its pages need, in steps of this many bytes. 0, -ENOSPC or
 * -errno. */
#define JOURNAL_CHUNK (256 * 1024)
static int journal_reserve(struct journal *j, uint64_t size)
{
    struct stat st;

    if (fstat(j->db_fd, &st) < 0)
        return -errno;
    if (size <= (uint64_t)st.st_size)
        return 0;
    return allocate(j->db_fd, (off_t)((size + JOURNAL_CHUNK - 1) / JOURNAL_CHUNK * JOURNAL_CHUNK));
}

/* Zeros behind the log's last page are no pages to sqlite (file format, section 4.1: a frame's
 * salts must be the header's). */
static int reserve_log(int dir_fd, const char *db_name)
{
    char name[DG_UUID_LEN + 16];
    _cleanup_close_ int fd = -1;
    int r;

    snprintf(name, sizeof(name), "%s-wal", db_name);
    fd = openat(dir_fd, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return -errno;
    r = allocate(fd, LOG_SIZE);
    return r < 0 ? r : io_fsync(fd);
}

/* The one value of a PRAGMA, as text. */
static int pragma_get(sqlite3 *db, const char *sql, char *ret, size_t size)
{
    sqlite3_stmt *stmt = NULL;
    int r = sqlite3_prepare_v2(db, sql, -1, &stmt, NULL);

    if (r == SQLITE_OK)
        r = sqlite3_step(stmt);
    if (r == SQLITE_ROW) {
        const char *text = (const char *)sqlite3_column_text(stmt, 0);
        snprintf(ret, size, "%s", text ? text : "");
    }
    if (r != SQLITE_ROW)
        r = r == SQLITE_DONE ? -EIO : journal_errno(db, r);
    else
        r = 0;
    sqlite3_finalize(stmt);
    return r;
}

static int exec(sqlite3 *db, const char *sql)
{
    int r = sqlite3_exec(db, sql, NULL, NULL, NULL);

    return r == SQLITE_OK ? 0 : journal_errno(db, r);
}

/* Exclusive: this keeps other programs out, as the lock file keeps our own out, and no -shm file
 * is mapped. It must come before the first look at the database, or it does not hold for the
 * log. */
static int configure(sqlite3 *db)
{
    char mode[16];
    int r, chunk = JOURNAL_CHUNK, keep = 1;

    sqlite3_extended_result_codes(db, 1);
    sqlite3_busy_timeout(db, 2000);
    r = exec(db,
             "PRAGMA locking_mode=EXCLUSIVE; PRAGMA temp_store=MEMORY; PRAGMA trusted_schema=OFF;");
    if (r < 0)
        return r;
    r = pragma_get(db, "PRAGMA journal_mode=WAL", mode, sizeof(mode));
    if (r < 0)
        return r;
    if (strcmp(mode, "wal") != 0)
        return -EROFS;
    /* What has been allocated stays: the database's size is a multiple of the chunk, and closing
     * does not remove the log. */
    sqlite3_file_control(db, "main", SQLITE_FCNTL_CHUNK_SIZE, &chunk);
    sqlite3_file_control(db, "main", SQLITE_FCNTL_PERSIST_WAL, &keep);
    return exec(db, "PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=" LOG_PAGES);
}

/* FULL syncs the log at each commit, NORMAL only before it is copied into the database: both keep
 * the order, and the next FULL commit makes durable what came before it (sqlite.org/pragma.html,
 * "synchronous"). */
/* Does a commit sync the log from now on? Not within a transaction. 0 or -errno. */
static int journal_set_lazy(struct journal *j, bool lazy)
{
    int r = lazy == j->lazy
                ? 0
                : exec(j->db, lazy ? "PRAGMA synchronous=NORMAL" : "PRAGMA synchronous=FULL");

    if (r == 0)
        j->lazy = lazy;
    return r;
}

static int schema_make(sqlite3 *db)
{
    char version[40];
    int r;

    HOOK("journal.schema");
    snprintf(version, sizeof(version), "PRAGMA user_version=%d", DG_JOURNAL_VERSION);
    r = exec(db, "BEGIN IMMEDIATE; " DG_JOURNAL_SCHEMA);
    if (r == 0)
        r = exec(db, version);
    return r < 0 ? r : exec(db, "COMMIT");
}

/* Version 0 is a new database, if there is nothing in it: made, and 1 returned. */
static int schema(sqlite3 *db)
{
    char text[64], *end;
    long version;
    int r = pragma_get(db, "PRAGMA user_version", text, sizeof(text));

    if (r < 0)
        return r;
    version = strtol(text, &end, 10);
    if (version > DG_JOURNAL_VERSION)
        return -EPROTONOSUPPORT;
    if (version < 0)
        return -EBADMSG;
    if (version == 0) {
        r = pragma_get(db, "SELECT count(*) FROM sqlite_schema", text, sizeof(text));
        if (r < 0)
            return r;
        if (strcmp(text, "0") != 0)
            return -EBADMSG;
        r = schema_make(db);
        return r < 0 ? r : 1;
    }
    /* Better to find a damaged page now than in the middle of a restore. */
    r = pragma_get(db, "PRAGMA quick_check(1)", text, sizeof(text));
    if (r < 0)
        return r;
    return strcmp(text, "ok") == 0 ? 0 : -EBADMSG;
}

static int prepare(struct journal *j)
{
    for (int i = 0; i < STMT_COUNT; i++) {
        int r = sqlite3_prepare_v3(j->db, statements[i], -1, SQLITE_PREPARE_PERSISTENT, &j->stmt[i],
                                   NULL);

        if ((r & 0xff) == SQLITE_ERROR) /* no such table or column: a database of somebody else */
            return -EBADMSG;
        if (r != SQLITE_OK)
            return journal_errno(j->db, r);
    }
    return 0;
}

static int database_open(struct journal *j, int dir_fd, const char *name, const char *path)
{
    int made, r = file_make(dir_fd, name, &j->db_fd);

    if (r < 0)
        return r;
    r = sqlite3_open_v2(path, &j->db,
                        SQLITE_OPEN_READWRITE | SQLITE_OPEN_FULLMUTEX | SQLITE_OPEN_NOFOLLOW, NULL);
    if (r != SQLITE_OK)
        return j->db ? journal_errno(j->db, r) : -ENOMEM;
    r = configure(j->db);
    if (r < 0)
        return r;
    made = schema(j->db);
    if (made < 0)
        return made;
    r = prepare(j);
    if (r < 0)
        return r;
    r = reserve_log(dir_fd, name);
    if (r == 0)
        r = journal_reserve(j, 1);
    /* No room: a new journal is refused. An old one opens, because its rows must be settled. */
    if (r < 0 && (r != -ENOSPC || made))
        return r;
    return io_fsync(dir_fd);
}

/* ---- one transaction; the caller is the leader ---- */

static int step_done(struct journal *j, sqlite3_stmt *stmt)
{
    int r = sqlite3_step(stmt);
    int err = r == SQLITE_DONE || r == SQLITE_ROW ? 0 : journal_errno(j->db, r);

    sqlite3_reset(stmt);
    sqlite3_clear_bindings(stmt);
    return err;
}

static int run_op(struct journal *j, const struct journal_op *op)
{
    sqlite3_stmt *stmt = j->stmt[op->text ? STMT_PUT : STMT_REMOVE];
    int r = sqlite3_bind_int64(stmt, 1, (sqlite3_int64)op->ino);

    if (r == SQLITE_OK)
        r = sqlite3_bind_int64(stmt, 2, (sqlite3_int64)op->generation);
    if (r == SQLITE_OK && op->text)
        r = sqlite3_bind_blob64(stmt, 3, op->text, op->len, SQLITE_STATIC);
    if (r != SQLITE_OK) {
        sqlite3_clear_bindings(stmt);
        return journal_errno(j->db, r);
    }
    return step_done(j, stmt);
}

/* Makes room in the database file for the pages of this transaction, before it is committed to
 * the log. So the log can always be copied into the database and start anew, and an operation
 * that needs no more pages (a remove, most replacements) does not fail for want of space. */
static int reserve_pages(struct journal *j)
{
    sqlite3_stmt *stmt = j->stmt[STMT_SIZE];
    int r = sqlite3_step(stmt);
    uint64_t size = r == SQLITE_ROW ? (uint64_t)sqlite3_column_int64(stmt, 0) : 0;
    int err = r == SQLITE_ROW ? 0 : journal_errno(j->db, r);

    sqlite3_reset(stmt);
    return err < 0 ? err : journal_reserve(j, size);
}

/* Runs the operations from `first` on, up to `end`, which is not run. After an error nothing of
 * it is in the database. But a commit whose fsync failed may come back after a crash: a row
 * whose claim was never made. Recovery knows that case (stale row). */
static int run_transaction(struct journal *j, struct journal_op *first,
                           const struct journal_op *end)
{
    bool lazy = true;
    int r;

    for (const struct journal_op *op = first; op != end; op = op->next)
        lazy = lazy && op->lazy;
    r = journal_set_lazy(j, lazy);
    if (r == 0)
        r = step_done(j, j->stmt[STMT_BEGIN]);
    if (r < 0)
        return r;
    for (struct journal_op *op = first; r == 0 && op != end; op = op->next)
        r = run_op(j, op);
    if (r == 0)
        r = reserve_pages(j);
    if (r == 0)
        r = HOOK_FAIL("journal.commit");
    if (r == 0)
        r = step_done(j, j->stmt[STMT_COMMIT]);
    /* After some errors (a full disk) sqlite rolls back by itself, after others it does not. */
    if (r < 0 && !sqlite3_get_autocommit(j->db))
        (void)step_done(j, j->stmt[STMT_ROLLBACK]);
    return r;
}

/* On a full disk: once the log is copied into the database, the next transaction starts at the
 * beginning of the log file, in space that is there. */
static int run_full(struct journal *j, struct journal_op *first, const struct journal_op *end)
{
    int r = run_transaction(j, first, end);

    if (r != -ENOSPC)
        return r;
    sqlite3_wal_checkpoint_v2(j->db, NULL, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL);
    return run_transaction(j, first, end);
}

/* Runs all operations together. If that fails, runs each alone, so that one bad operation does not
 * fail the others. */
static void run_group(struct journal *j, struct journal_op *group)
{
    int r = run_full(j, group, NULL);

    for (struct journal_op *op = group; op; op = op->next)
        op->err = r == 0 || !group->next ? r : run_full(j, op, op->next);
}

/* ---- the queue ---- */

static void queue_locked(struct journal *j, struct journal_op *op) REQUIRES(j->mutex)
{
    op->next = NULL;
    op->done = false;
    *j->tail = op;
    j->tail = &op->next;
}

static struct journal_op *take_queue_locked(struct journal *j) REQUIRES(j->mutex)
{
    struct journal_op *group = j->head;

    j->head = NULL;
    j->tail = &j->head;
    return group;
}

static void finish_locked(struct journal *j, struct journal_op *group) REQUIRES(j->mutex)
{
    for (; group; group = group->next)
        group->done = true;
    j->busy = false;
    cond_broadcast(&j->quiet);
}

static int submit(struct journal *j, struct journal_op *op) EXCLUDES(j->mutex)
{
    struct journal_op *group;

    mutex_lock(&j->mutex);
    queue_locked(j, op);
    while (!op->done && j->busy)
        cond_wait(&j->quiet, &j->mutex);
    if (!op->done) {
        j->busy = true;
        group = take_queue_locked(j);
        mutex_unlock(&j->mutex);
        run_group(j, group);
        mutex_lock(&j->mutex);
        finish_locked(j, group);
    }
    mutex_unlock(&j->mutex);
    return op->err;
}

static int put(struct journal *j, const struct record *rec, bool lazy)
{
    _cleanup_free_ char *text = NULL;
    struct journal_op op = {.ino = rec->ino, .generation = rec->generation, .lazy = lazy};
    int r = record_encode(rec, &text, &op.len);

    if (r < 0)
        return r;
    op.text = text;
    return submit(j, &op);
}

int journal_put(struct journal *j, const struct record *rec)
{
    return put(j, rec, false);
}

int journal_put_lazy(struct journal *j, const struct record *rec)
{
    return put(j, rec, true);
}

int journal_remove(struct journal *j, uint64_t ino, uint64_t generation)
{
    struct journal_op op = {.ino = ino, .generation = generation, .lazy = true};

    return submit(j, &op);
}

/* ---- reading ---- */

struct row {
    struct row *next;
    uint64_t ino, generation;
    size_t len;
    char text[];
};

static void rows_free(struct row *rows)
{
    while (rows) {
        struct row *next = rows->next;

        free(rows);
        rows = next;
    }
}

static int row_copy(sqlite3_stmt *stmt, struct row **ret)
{
    const void *blob = sqlite3_column_blob(stmt, 2);
    size_t len = (size_t)sqlite3_column_bytes(stmt, 2);
    struct row *row = malloc(sizeof(*row) + len + 1);

    if (!row)
        return -ENOMEM;
    row->next = NULL;
    row->ino = (uint64_t)sqlite3_column_int64(stmt, 0);
    row->generation = (uint64_t)sqlite3_column_int64(stmt, 1);
    row->len = len;
    if (len > 0)
        memcpy(row->text, blob, len);
    row->text[len] = '\0';
    *ret = row;
    return 0;
}

static int read_rows(struct journal *j, struct row **ret)
{
    sqlite3_stmt *stmt = j->stmt[STMT_EACH];
    struct row *rows = NULL, **tail = &rows;
    int r, err = 0;

    while ((r = sqlite3_step(stmt)) == SQLITE_ROW && err == 0) {
        err = row_copy(stmt, tail);
        if (err == 0)
            tail = &(*tail)->next;
    }
    if (err == 0 && r != SQLITE_DONE)
        err = journal_errno(j->db, r);
    sqlite3_reset(stmt);
    if (err < 0) {
        rows_free(rows);
        return err;
    }
    *ret = rows;
    return 0;
}

static int snapshot(struct journal *j, struct row **ret) EXCLUDES(j->mutex)
{
    int r;

    mutex_lock(&j->mutex);
    while (j->busy)
        cond_wait(&j->quiet, &j->mutex);
    j->busy = true;
    mutex_unlock(&j->mutex);
    r = read_rows(j, ret);
    mutex_lock(&j->mutex);
    finish_locked(j, NULL);
    mutex_unlock(&j->mutex);
    return r;
}

/* A row whose text names another image than its key counts as one that does not decode. */
static int row_decode(const struct row *row, struct record *rec)
{
    int r = row->len > DG_RECORD_MAX ? -EBADMSG : record_decode(row->text, row->len, rec);

    if (r == 0 && (rec->ino != row->ino || rec->generation != row->generation))
        r = -EBADMSG;
    if (r < 0) {
        memset(rec, 0, sizeof(*rec));
        rec->ino = row->ino;
        rec->generation = row->generation;
    }
    return r;
}

int journal_each(struct journal *j, int (*fn)(void *arg, const struct record *rec, int err),
                 void *arg)
{
    struct row *rows = NULL;
    struct record *rec = malloc(sizeof(*rec));
    int r = rec ? snapshot(j, &rows) : -ENOMEM;

    for (const struct row *row = rows; r == 0 && row; row = row->next) {
        int err = row_decode(row, rec);

        r = fn(arg, rec, err);
    }
    rows_free(rows);
    free(rec);
    return r;
}

/* ---- open and close ---- */

static struct journal *journal_new(void)
{
    struct journal *j = calloc(1, sizeof(*j));

    if (!j)
        return NULL;
    j->lock_fd = j->db_fd = -1;
    mutex_init(&j->mutex);
    cond_init(&j->quiet);
    mutex_lock(&j->mutex);
    j->tail = &j->head;
    mutex_unlock(&j->mutex);
    return j;
}

void journal_close(struct journal *j)
{
    if (!j)
        return;
    for (int i = 0; i < STMT_COUNT; i++)
        sqlite3_finalize(j->stmt[i]);
    sqlite3_close(j->db);
    base_closep(
        /* not earlier: closing any descriptor of a file drops the process's POSIX locks on it */
        &j->db_fd);
    base_closep(&j->lock_fd); /* last: until here the database is locked by us */
    cond_destroy(&j->quiet);
    mutex_destroy(&j->mutex);
    free(j);
}

int journal_open(const char *state_dir, const char *store_uuid, struct journal **ret,
                 struct why *why)
{
    char dir[PATH_MAX], name[DG_UUID_LEN + 8], path[PATH_MAX + sizeof(name)];
    struct journal *j = NULL;
    int dir_fd = -1, r;

    if (!base_uuid_ok(store_uuid)) {
        why_set(why, "%.60s is not the uuid of a datastore", store_uuid);
        return -EINVAL;
    }
    /* Canonical, because sqlite is told to follow no symlink at all. */
    if (realpath(state_dir, dir))
        dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir_fd < 0) {
        r = -errno;
        why_set(why, "cannot open the state directory " P ": %s", state_dir, strerror(-r));
        return r;
    }
    j = journal_new();
    if (!j) {
        r = -ENOMEM;
        goto out;
    }
    snprintf(name, sizeof(name), "%s.lock", store_uuid);
    r = lock_take(dir_fd, dir, name, &j->lock_fd, why);
    if (r < 0)
        goto out;
    snprintf(name, sizeof(name), "%s.db", store_uuid);
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    r = database_open(j, dir_fd, name, path);
    if (r < 0) {
        explain(path, r, why);
        goto out;
    }
    *ret = j;
    j = NULL;
out:
    journal_close(j);
    close(dir_fd);
    return r;
}
