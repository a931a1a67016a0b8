/* journal.c: see core/journal.h. Opening is in journal_open.c.
 *
 * Group commit: a caller puts its operation in the queue. If nobody is at work on the database it
 * takes the whole queue, runs it as one transaction and tells everybody the result; else it waits,
 * and whoever wakes first and is not served yet is the next one to lead. `busy` is what makes the
 * leader the only user of the database, so that no lock is held over sqlite. */
#include "core/journal.h"

#include <sqlite3.h>
#include <string.h>

#include "base/hook.h"
#include "core/journal_priv.h"

/* ---- one transaction; the caller is the leader ---- */

static int step_done(struct journal *j, sqlite3_stmt *stmt)
{
    int r = sqlite3_step(stmt);
    int err = r == SQLITE_DONE || r == SQLITE_ROW ? 0 : journal_errno(j->db, r);

    sqlite3_reset(stmt);
    sqlite3_clear_bindings(stmt);
    return err;
}

static int run_op(struct journal *j, const struct op *op)
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

/* Room for the pages of this transaction in the database file, before it is committed to the log:
 * so the log can always be copied into the database, and start anew, and an operation that needs no
 * more pages (a remove, most replacements) never fails for want of space. */
static int reserve_pages(struct journal *j)
{
    sqlite3_stmt *stmt = j->stmt[STMT_SIZE];
    int r = sqlite3_step(stmt);
    uint64_t size = r == SQLITE_ROW ? (uint64_t)sqlite3_column_int64(stmt, 0) : 0;
    int err = r == SQLITE_ROW ? 0 : journal_errno(j->db, r);

    sqlite3_reset(stmt);
    return err < 0 ? err : journal_reserve(j, size);
}

/* Runs the operations from first up to, without, end. After an error nothing of it is in the
 * database, except that a commit whose fsync failed may come back after a crash: a row too many,
 * with a claim that was never made, which recovery knows (stale row). */
static int run_transaction(struct journal *j, struct op *first, const struct op *end)
{
    bool lazy = true;
    int r;

    for (const struct op *op = first; op != end; op = op->next)
        lazy = lazy && op->lazy;
    r = journal_set_lazy(j, lazy);
    if (r == 0)
        r = step_done(j, j->stmt[STMT_BEGIN]);
    if (r < 0)
        return r;
    for (struct op *op = first; r == 0 && op != end; op = op->next)
        r = run_op(j, op);
    if (r == 0)
        r = reserve_pages(j);
    if (r == 0)
        r = HOOK_FAIL("journal.commit");
    if (r == 0)
        r = step_done(j, j->stmt[STMT_COMMIT]);
    /* sqlite rolls back by itself after some errors (a full disk), and not after others. */
    if (r < 0 && !sqlite3_get_autocommit(j->db))
        (void)step_done(j, j->stmt[STMT_ROLLBACK]);
    return r;
}

/* On a full disk: once the log is copied into the database, the next transaction starts at the
 * beginning of the log file, in space that is there. */
static int run_full(struct journal *j, struct op *first, const struct op *end)
{
    int r = run_transaction(j, first, end);

    if (r != -ENOSPC)
        return r;
    sqlite3_wal_checkpoint_v2(j->db, NULL, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL);
    return run_transaction(j, first, end);
}

/* All together; if that fails each one alone, so that one bad operation does not fail the others.
 */
static void run_group(struct journal *j, struct op *group)
{
    int r = run_full(j, group, NULL);

    for (struct op *op = group; op; op = op->next)
        op->err = r == 0 || !group->next ? r : run_full(j, op, op->next);
}

/* ---- the queue ---- */

static void queue_locked(struct journal *j, struct op *op) REQUIRES(j->mutex)
{
    op->next = NULL;
    op->done = false;
    *j->tail = op;
    j->tail = &op->next;
}

static struct op *take_queue_locked(struct journal *j) REQUIRES(j->mutex)
{
    struct op *group = j->head;

    j->head = NULL;
    j->tail = &j->head;
    return group;
}

static void finish_locked(struct journal *j, struct op *group) REQUIRES(j->mutex)
{
    for (; group; group = group->next)
        group->done = true;
    j->busy = false;
    pthread_cond_broadcast(&j->cond);
}

static int submit(struct journal *j, struct op *op) EXCLUDES(j->mutex)
{
    struct op *group;

    mutex_lock(&j->mutex);
    queue_locked(j, op);
    while (!op->done && j->busy)
        mutex_wait(&j->cond, &j->mutex);
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
    struct op op = {.ino = rec->ino, .generation = rec->generation, .lazy = lazy};
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
    struct op op = {.ino = ino, .generation = generation, .lazy = true};

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
        mutex_wait(&j->cond, &j->mutex);
    j->busy = true;
    mutex_unlock(&j->mutex);
    r = read_rows(j, ret);
    mutex_lock(&j->mutex);
    finish_locked(j, NULL);
    mutex_unlock(&j->mutex);
    return r;
}

/* A row whose text speaks of another image than its key is as bad as one that does not decode. */
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
