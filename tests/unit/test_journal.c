/* test_journal.c: the host's database of claims: durable, shared by threads, and refused rather
 * than guessed at.
 *
 * Damage is done to the file's bytes (the SQLite file format, section 1.3, "The Database Header"):
 * only the journal itself knows sqlite. */
#include "unit.h"

#include <signal.h>
#include <sys/wait.h>

#include "journal_unit.h"

#define THREADS 8
#define PUTS 200

/* ---- rows ---- */

Test(journal, put_replace_remove_each, .init = scratch_make, .fini = scratch_remove)
{
    struct journal *j = open_in(scratch);
    struct seen seen = look(j);

    cr_assert_eq(seen.rows, 0);
    cr_assert_eq(put(j, 10, 1, 5), 0);
    cr_assert_eq(put(j, 10, 2, 6), 0);
    cr_assert_eq(put(j, UINT64_MAX, 1, 7), 0);
    cr_assert_eq(put(j, 10, 2, 8), 0);
    seen = look(j);
    cr_assert(seen.rows == 3 && seen.seqs == 5 + 8 + 7 && seen.inos == 19 && seen.generations == 4);
    cr_assert_eq(journal_remove(j, 10, 1), 0);
    cr_assert_eq(journal_remove(j, 10, 1), 0);
    cr_assert_eq(journal_remove(j, 77, 1), 0);
    seen = look(j);
    cr_assert(seen.rows == 2 && seen.seqs == 15);
    journal_close(j);
    journal_close(NULL);
}

static int compare(void *arg, const struct record *rec, int err)
{
    return err == 0 && memcmp(rec, arg, sizeof(*rec)) == 0 ? 17 : -1;
}

Test(journal, a_row_comes_back_as_it_was, .init = scratch_make, .fini = scratch_remove)
{
    struct journal *j = open_in(scratch);
    struct record *rec = new_large_record(3);

    for (unsigned i = 0; i < EXTENT_MAX; i++)
        rec->plan.ext[1].truth[i] = (uint8_t)i;
    cr_assert_eq(journal_put(j, rec), 0);
    cr_assert_eq(journal_each(j, compare, rec), 17);
    journal_close(j);
    j = open_in(scratch);
    cr_assert_eq(journal_each(j, compare, rec), 17);
    journal_close(j);
    free(rec);
}

Test(journal, each_may_change_rows_and_stop, .init = scratch_make, .fini = scratch_remove)
{
    struct journal *j = open_in(scratch);
    struct seen seen = {.remove_from = j};

    for (uint64_t ino = 1; ino <= 20; ino++)
        cr_assert_eq(put(j, ino, 1, 1), 0);
    cr_assert_eq(journal_each(j, see, &seen), 0);
    cr_assert_eq(seen.rows, 20);
    cr_assert_eq(look(j).rows, 0);
    cr_assert_eq(put(j, 1, 1, 1), 0);
    cr_assert_eq(put(j, 2, 1, 1), 0);
    seen = (struct seen){.stop = 5};
    cr_assert_eq(journal_each(j, see, &seen), 5);
    cr_assert_eq(seen.rows, 1);
    journal_close(j);
}

Test(journal, a_record_that_cannot_be_encoded_is_refused, .init = scratch_make,
     .fini = scratch_remove)
{
    struct journal *j = open_in(scratch);
    struct record *rec = new_record(1, 1);

    rec->plan.n = PLAN_MAX + 1;
    cr_assert_eq(journal_put(j, rec), -EINVAL);
    cr_assert_eq(look(j).rows, 0);
    free(rec);
    journal_close(j);
}

/* ---- threads ---- */

static void *work(void *arg)
{
    struct worker *w = arg;

    for (uint64_t i = 1; i <= PUTS; i++) {
        w->failed += put(w->j, w->number * 1000 + i, 1, 1) != 0;
        if (i % 4 == 0)
            w->failed += journal_remove(w->j, w->number * 1000 + i, 1) != 0;
    }
    return NULL;
}

Test(journal, many_threads_lose_nothing, .init = scratch_make, .fini = scratch_remove)
{
    struct journal *j = open_in(scratch);
    struct worker w[THREADS];
    uint64_t inos = 0;
    struct seen seen;

    for (uint64_t n = 0; n < THREADS; n++) {
        w[n] = (struct worker){.j = j, .number = n};
        cr_assert_eq(pthread_create(&w[n].thread, NULL, work, &w[n]), 0);
        for (uint64_t i = 1; i <= PUTS; i++)
            inos += i % 4 == 0 ? 0 : n * 1000 + i;
    }
    cr_assert_geq(look(j).rows, 0); /* in between */
    join(w, THREADS);
    for (int n = 0; n < THREADS; n++)
        cr_assert_eq(w[n].failed, 0);
    for (int reopened = 0; reopened < 2; reopened++) {
        seen = look(j);
        cr_assert(seen.rows == THREADS * PUTS * 3 / 4 && seen.inos == inos && seen.bad == 0);
        journal_close(j);
        j = reopened ? NULL : open_in(scratch);
    }
}

/* ---- crash ---- */

Test(journal, what_was_put_survives_a_kill, .init = scratch_make, .fini = scratch_remove)
{
    struct journal *j;
    int status, ends[2];
    char c;

    for (uint64_t round = 1; round <= 3; round++) {
        pid_t pid;

        cr_assert_eq(pipe(ends), 0);
        pid = fork();
        if (pid == 0) {
            if (journal_open(scratch, STORE_UUID, &j, NULL) < 0)
                _exit(1);
            for (uint64_t i = 1; i <= 10; i++)
                if (put(j, round * 100 + i, 1, 1) < 0 ||
                    (i == 5 && journal_remove(j, round * 100 + 1, 1) < 0))
                    _exit(1);
            if (write(ends[1], "x", 1) == 1)
                pause();
            _exit(1);
        }
        close(ends[1]);
        cr_assert_eq(read(ends[0], &c, 1), 1);
        close(ends[0]);
        kill(pid, SIGKILL);
        cr_assert(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
        j = open_in(scratch);
        cr_assert_eq(look(j).rows, (int)round * 9);
        journal_close(j);
    }
}

/* ---- open ---- */

static int open_here(void)
{
    return open_fails(scratch, NULL);
}

Test(journal, a_second_one_is_kept_out, .init = scratch_make, .fini = scratch_remove)
{
    static struct journal *j; /* static: the child must not look as if it had lost it */
    struct journal *other = NULL;
    char pid[16];
    struct why why;

    j = open_in(scratch);
    snprintf(pid, sizeof(pid), "pid %d", (int)getpid());
    cr_assert_eq(open_fails(scratch, &why), -EBUSY);
    cr_assert_not_null(strstr(why.text, STORE_UUID ".lock"));
    cr_assert_not_null(strstr(why.text, pid));
    cr_assert_eq(scratch_child(open_here), -EBUSY);
    cr_assert_eq(put(j, 1, 1, 1), 0);
    cr_assert_eq(journal_open(scratch, OTHER_UUID, &other, &why), 0, "%s", why.text);
    journal_close(other);
    journal_close(j);
    j = open_in(scratch);
    cr_assert_eq(look(j).rows, 1);
    journal_close(j);
}

Test(journal, files_are_private, .init = scratch_make, .fini = scratch_remove)
{
    static const char *const names[] = {DB, DB "-wal", STORE_UUID ".lock"};
    struct journal *j = open_in(scratch);
    struct stat st;

    cr_assert_eq(put(j, 1, 1, 1), 0);
    for (int i = 0; i < 3; i++)
        cr_assert(stat(scratch_path(names[i]), &st) == 0 && (st.st_mode & 07777) == 0600, "%s",
                  names[i]);
    cr_assert_eq(scratch_count(""), 3);
    journal_close(j);
}

Test(journal, open_refuses_bad_places, .init = scratch_make, .fini = scratch_remove)
{
    struct journal *j = NULL;
    struct why why;

    cr_assert_eq(open_fails(scratch_path("absent"), &why), -ENOENT);
    cr_assert_not_null(strstr(why.text, "absent"));
    scratch_write("file", "", 0);
    cr_assert_eq(open_fails(scratch_path("file"), &why), -ENOTDIR);
    cr_assert_eq(journal_open(scratch, "../x", &j, &why), -EINVAL);
    cr_assert_eq(mkdir(scratch_path(DB), 0700), 0);
    cr_assert_lt(open_fails(scratch, &why), 0);
    cr_assert_eq(rmdir(scratch_path(DB)), 0);
    cr_assert_eq(symlink("elsewhere", scratch_path(DB)), 0);
    cr_assert_eq(open_fails(scratch, &why), -EBADMSG);
    cr_assert_neq(access(scratch_path("elsewhere"), F_OK), 0);
    cr_assert_null(j);
}

/* ---- damage ---- */

static char file[1 << 20];

/* Everything is in the database file when it is closed; what is left in the log would be laid over
 * the damage. */
static size_t read_database(void)
{
    unlink(scratch_path(DB "-wal"));
    return scratch_read(DB, file, sizeof(file));
}

static size_t make_database(const char *dir, int rows)
{
    struct journal *j = open_in(dir);

    for (int i = 1; i <= rows; i++)
        cr_assert_eq(put(j, (uint64_t)i, 1, 1), 0);
    journal_close(j);
    return read_database();
}

Test(journal, a_newer_version_is_refused, .init = scratch_make, .fini = scratch_remove)
{
    size_t len = make_database(scratch, 1);
    struct why why;

    file[63]++; /* user_version: offset 60, four bytes, big-endian */
    scratch_write(DB, file, len);
    cr_assert_eq(open_fails(scratch, &why), -EPROTONOSUPPORT);
    cr_assert_not_null(strstr(why.text, "newer"));
    file[60] = (char)0x80;
    scratch_write(DB, file, len);
    cr_assert_eq(open_fails(scratch, &why), -EBADMSG);
    file[60] = file[63] = 0; /* "new", but not empty: a database of somebody else */
    scratch_write(DB, file, len);
    cr_assert_eq(open_fails(scratch, &why), -EBADMSG);
    file[63] = 1;
    scratch_write(DB, file, len);
    cr_assert_eq(open_fails(scratch, &why), 0, "%s", why.text);
}

Test(journal, what_is_no_database_is_refused, .init = scratch_make, .fini = scratch_remove)
{
    struct why why;
    size_t len, pages;

    memset(file, 'x', 8192);
    scratch_write(DB, file, 8192);
    cr_assert_eq(open_fails(scratch, &why), -EBADMSG);
    cr_assert_not_null(strstr(why.text, "fsck.diskguard -n"));
    cr_assert_eq(scratch_read(DB, file, sizeof(file)), 8192);
    cr_assert_eq(file[0], 'x');
    cr_assert_eq(unlink(scratch_path(DB)), 0);
    len = make_database(scratch, 200);
    pages = (size_t)(uint8_t)file[30] << 8 | (uint8_t)file[31]; /* size in pages: offset 28, four
                                                                   bytes, big-endian */
    cr_assert_gt(pages, 4);
    for (size_t page = 1; page < pages; page++) { /* each page but the first, which has the header
                                                   */
        scratch_read(DB, file, sizeof(file));
        memset(file + page * 4096, 0xa5, 4096);
        scratch_write("damaged", file, len);
        cr_assert_eq(rename(scratch_path(DB), scratch_path("good")), 0);
        cr_assert_eq(rename(scratch_path("damaged"), scratch_path(DB)), 0);
        unlink(scratch_path(DB "-wal"));
        cr_assert_eq(open_fails(scratch, &why), -EBADMSG, "page %zu", page);
        cr_assert_eq(rename(scratch_path("good"), scratch_path(DB)), 0);
    }
    (void)read_database();
    scratch_write(DB, file, pages / 2 * 4096);
    cr_assert_eq(open_fails(scratch, &why), -EBADMSG);
}

/* Where does this text stand in the file? */
static char *find(size_t len, const char *text)
{
    char *at = memmem(file, len, text, strlen(text));

    cr_assert_not_null(at, "%s", text);
    return at;
}

Test(journal, a_bad_row_is_shown_with_its_key, .init = scratch_make, .fini = scratch_remove)
{
    struct journal *j = open_in(scratch);
    struct record *rec = new_record(1234567, 9);
    struct seen seen;
    size_t len;

    cr_assert_eq(put(j, 1, 1, 1), 0);
    strcpy(rec->image, "the-bad-one");
    cr_assert_eq(journal_put(j, rec), 0);
    free(rec);
    journal_close(j);
    len = read_database();
    find(len, "the-bad-one")[0] = 'T'; /* its checksum is wrong now */
    scratch_write(DB, file, len);
    j = open_in(scratch);
    seen = look(j);
    cr_assert(seen.rows == 2 && seen.bad == 1 && seen.inos == 1234568 && seen.generations == 10);
    cr_assert_eq(journal_remove(j, 1234567, 9), 0);
    cr_assert_eq(look(j).bad, 0);
    journal_close(j);
}

/* A good record under the key of another image. */
Test(journal, a_row_under_the_wrong_key_is_bad, .init = scratch_make, .fini = scratch_remove)
{
    struct journal *j = open_in(scratch);
    struct seen seen;
    size_t len;

    cr_assert_eq(put(j, 0x12d687, 1, 1), 0);
    journal_close(j);
    len = read_database();
    /* an integer of three bytes, big-endian (section 2.1, "Record Format") */
    find(len, "\x12\xd6\x87")[2]++;
    scratch_write(DB, file, len);
    j = open_in(scratch);
    seen = look(j);
    cr_assert(seen.rows == 1 && seen.bad == 1 && seen.inos == 0x12d688);
    journal_close(j);
}
