/* test_journal_full.c: the journal on a full or read-only disk: what needs no space goes on, the
 * rest says so. */
#include "unit.h"

#include <sys/resource.h>

#include "journal_unit.h"

static const char *small_dir(void)
{
    static char path[128];

    snprintf(path, sizeof(path), "%s/small", scratch);
    return path;
}

Test(journal_full, open_on_a_full_or_read_only_disk_fails_clean, .init = scratch_make,
     .fini = scratch_remove)
{
    const char *dir = small_dir();
    struct why why;

    if (!scratch_mount("mode=0700,size=4m"))
        cr_skip_test("mount is not permitted");
    scratch_fill("small/fill");
    cr_assert_eq(open_fails(dir, &why), -ENOSPC);
    cr_assert_not_null(strstr(why.text, "space"));
    cr_assert_eq(open_fails(dir, &why), -ENOSPC);
    cr_assert(scratch_remount(MS_RDONLY));
    cr_assert_eq(open_fails(dir, &why), -EROFS);
    cr_assert(scratch_remount(0));
    cr_assert_eq(unlink(scratch_path("small/fill")), 0);
    journal_close(open_in(dir));
    cr_assert(scratch_remount(MS_RDONLY));
    cr_assert_eq(open_fails(dir, &why), -EROFS);
}

/* Puts one large row after another until there is no room. */
static uint64_t fill_up(struct journal *j)
{
    for (uint64_t ino = 1000;; ino++) {
        struct record *rec = new_large_record(ino);
        int r = journal_put(j, rec);

        free(rec);
        if (r < 0) {
            cr_assert_eq(r, -ENOSPC);
            return ino - 1000;
        }
    }
}

Test(journal_full, a_full_disk_fails_the_put_and_nothing_else, .init = scratch_make,
     .fini = scratch_remove)
{
    const char *dir = small_dir();
    struct journal *j;
    uint64_t large;

    if (!scratch_mount("mode=0700,size=3m"))
        cr_skip_test("mount is not permitted");
    j = open_in(dir);
    cr_assert_eq(put(j, 1, 1, 1), 0);
    large = fill_up(j);
    cr_assert_gt(large, 1);
    cr_assert_eq(look(j).rows, (int)large + 1);
    journal_close(j);
    j = open_in(dir); /* full, and yet it opens: what is in it must be settled */
    cr_assert_eq(look(j).rows, (int)large + 1);
    (void)fill_up(j);
    for (uint64_t ino = 1000; ino < 1000 + large; ino++)
        cr_assert_eq(journal_remove(j, ino, 1), 0, "ino %llu", (unsigned long long)ino);
    cr_assert_eq(put(j, 2, 1, 1), 0);
    cr_assert_eq(look(j).rows, 2);
    journal_close(j);
}

static void *work_small(void *arg)
{
    struct worker *w = arg;

    for (int i = 0; i < 50; i++) {
        w->failed += put(w->j, w->number, 1, 1) != 0;
        w->failed += journal_remove(w->j, w->number, 1) != 0;
    }
    return NULL;
}

static void *work_large(void *arg)
{
    struct worker *w = arg;
    struct record *rec = new_large_record(w->number);

    for (int i = 0; i < 50; i++)
        w->failed += journal_put(w->j, rec) == -ENOSPC;
    free(rec);
    return NULL;
}

/* Large rows, for which there is no room, share transactions with small ones, for which there is.
 */
Test(journal_full, a_bad_operation_does_not_fail_the_others, .init = scratch_make,
     .fini = scratch_remove)
{
    struct worker w[4];
    const char *dir = small_dir();
    struct journal *j;

    if (!scratch_mount("mode=0700,size=3m"))
        cr_skip_test("mount is not permitted");
    j = open_in(dir);
    for (uint64_t n = 1; n <= 4; n++)
        cr_assert_eq(put(j, n, 1, 1), 0);
    (void)fill_up(j);
    for (uint64_t n = 0; n < 4; n++) {
        w[n] = (struct worker){.j = j, .number = n < 2 ? n + 1 : 5000 + n};
        cr_assert_eq(pthread_create(&w[n].thread, NULL, n < 2 ? work_small : work_large, &w[n]), 0);
    }
    join(w, 4);
    cr_assert(w[0].failed == 0 && w[1].failed == 0, "%d and %d small ones failed", w[0].failed,
              w[1].failed);
    cr_assert(w[2].failed == 50 && w[3].failed == 50, "%d and %d large ones failed", w[2].failed,
              w[3].failed);
    journal_close(j);
}

/* The same without root: a limit on the size of any file. */
static int limited(void)
{
    struct rlimit limit = {.rlim_cur = 1200 * 1024, .rlim_max = RLIM_INFINITY};
    struct journal *j;
    uint64_t ino = 1;
    int r;

    signal(SIGXFSZ, SIG_IGN);
    if (journal_open(scratch, STORE_UUID, &j, NULL) < 0 || setrlimit(RLIMIT_FSIZE, &limit) < 0)
        return 1;
    do {
        struct record *rec = new_large_record(ino++);
        r = journal_put(j, rec);
        free(rec);
    } while (r == 0 && ino < 100);
    if (r != -ENOSPC)
        return 2;
    for (uint64_t i = 1; i < ino; i++)
        if (journal_remove(j, i, 1) < 0)
            return 3;
    r = put(j, 1, 1, 1);
    journal_close(j);
    return r < 0 ? 4 : 0;
}

Test(journal_full, a_file_size_limit_is_no_space, .init = scratch_make, .fini = scratch_remove)
{
    struct journal *j;
    int step;

    step = scratch_child(limited);
    cr_assert_eq(step, 0, "step %d", step);
    j = open_in(scratch);
    cr_assert_eq(look(j).rows, 1);
    journal_close(j);
}
