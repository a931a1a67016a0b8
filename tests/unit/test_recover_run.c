/* test_recover_run.c: recover_image() and recover_all() where a claim of this host was left behind.
 */
#include "recover_scene.h"
#include "unit.h"

/* ---- our own claims ---- */

SCENE(nothing)
{
    struct recover r = recovery();

    cr_assert_eq(recover_all(&r), 0);
    cr_assert_eq(recover_image(&r, rec->ino, NULL, 0), 0);
    cr_assert_eq(report.n, 0u);
}

SCENE(left_sealed)
{
    struct recover r = recovery();

    leave_sealed();
    check_restored(&r);
    cr_assert(mtime_is_new(later), "the holder's last write was shown with the seal");
    cr_assert_eq(recover_all(&r), 0);
    cr_assert_eq(report.n, 1u, "the second time there is nothing");
}

SCENE(left_sealed_and_nobody_wrote)
{
    struct recover r = recovery();

    put_claim(&me, 3, STEP_ARMED);
    put_row(3, STEP_SEALED);
    disk(sealed, at_seal);
    check_restored(&r);
    cr_assert(mtime_is_new(at_seal));
}

/* The clock was set back, or is another host's: not earlier than what was shown. */
SCENE(left_sealed_with_a_time_to_come)
{
    const struct timespec come = {time(NULL) + 1000, 999999999};
    struct recover r = recovery();

    rec->mtime_sealed = come;
    put_claim(&me, 3, STEP_ARMED);
    put_row(3, STEP_SEALED);
    disk(sealed, come);
    check_restored(&r);
    cr_assert(mtime_is_new(come));
}

/* ---- a chosen mtime ---- */

static void choose(struct timespec mtime, struct timespec seen)
{
    rec->chosen = true;
    rec->mtime_chosen = mtime;
    rec->mtime_seen = seen;
}

SCENE(chosen_mtime_is_set)
{
    static const struct timespec chosen[] = {{900000000, 8}, {1300000000, 8}};

    for (unsigned i = 0; i < 2; i++) {
        struct recover r = recovery();

        choose(chosen[i], later);
        put_claim(&me, 3 + i, STEP_ARMED);
        put_row(3 + i, STEP_SEALED);
        disk(sealed, later);
        cr_assert_eq(recover_all(&r), 0);
        cr_assert(disk_is(truth));
        cr_assert(mtime_is(chosen[i]));
    }
}

SCENE(chosen_mtime_and_a_write_after_it)
{
    struct recover r = recovery();

    choose(before, at_seal);
    put_claim(&me, 3, STEP_ARMED);
    put_row(3, STEP_SEALED);
    disk(sealed, later);
    check_restored(&r);
    cr_assert(mtime_is_new(later));
}

/* Nobody writes any more: what changed mtime since was the restore. */
SCENE(chosen_mtime_of_a_restore_under_way)
{
    struct recover r = recovery();

    choose(before, at_seal);
    put_claim(&me, 3, STEP_RESTORING);
    put_row(3, STEP_RESTORING);
    disk_mixed();
    check_restored(&r);
    cr_assert(mtime_is(before));
}

SCENE(chosen_mtime_that_the_seal_has_shown)
{
    const struct timespec between = {1150000000, 1};
    struct recover r = recovery();

    choose(between, later);
    put_claim(&me, 3, STEP_ARMED);
    put_row(3, STEP_SEALED);
    disk(sealed, later);
    check_restored(&r);
    cr_assert(mtime_is_new(later));
}

/* ---- and others ---- */

SCENE(left_while_sealing)
{
    struct recover r = recovery();

    rec->mtime_sealed = (struct timespec){0, 0};
    put_claim(&me, 3, STEP_ARMED);
    put_row(3, STEP_ARMED);
    disk_mixed();
    check_restored(&r);
    cr_assert(mtime_is_new(later), "no holder had an answer yet, but a part was seen sealed");
}

/* The newest plan is in the row: the claim must have it before the header is touched. */
SCENE(left_while_restoring)
{
    struct recover r = recovery();

    put_claim(&me, 3, STEP_RESTORING);
    put_row(3, STEP_RESTORING);
    disk_mixed();
    check_restored(&r);
}

SCENE(claim_without_row)
{
    struct recover r = recovery();

    put_claim(&me, 3, STEP_ARMED);
    disk(sealed, later);
    check_restored(&r);
    cr_assert(mtime_is_new(later));
}

SCENE(claim_names_the_daemon_that_restored)
{
    struct recover r = recovery();
    struct claim *c = malloc(sizeof(*c));

    cr_assert_not_null(c);
    put_claim(&me, 3, STEP_ARMED);
    disk(sealed, later);
    memcpy(me.daemon, other.daemon, sizeof(dg_uuid)); /* the next start */
    cr_assert_eq(recover_all(&r), 0);
    cr_assert_eq(claim_read(S, rec->ino, c), 0);
    cr_assert_str_eq(c->rec.daemon, me.daemon);
    free(c);
}

/* The claim is not told when the seal is complete: the holder may have written. */
SCENE(claim_without_row_and_seal_time)
{
    struct recover r = recovery();

    rec->mtime_sealed = (struct timespec){0, 0};
    put_claim(&me, 3, STEP_ARMED);
    disk(sealed, later);
    check_restored(&r);
    cr_assert(mtime_is_new(later));
}

SCENE(without_a_journal)
{
    struct recover r = recovery();

    put_claim(&me, 3, STEP_ARMED);
    disk(sealed, later);
    r.journal = NULL;
    check_restored(&r);
}

SCENE(claim_with_a_row_that_does_not_decode)
{
    struct recover r = recovery();
    struct record *bad = calloc(1, sizeof(*bad));

    cr_assert_not_null(bad);
    bad->ino = rec->ino;
    bad->generation = 3;
    put_claim(&me, 3, STEP_ARMED);
    disk(sealed, later);
    cr_assert_eq(recover_image(&r, rec->ino, bad, -EBADMSG), 0);
    check_settled(RECOVER_RESTORE, PROBLEM_LEFT_SEALED, "free 3");
    cr_assert(disk_is(truth));
    report.n = 0;
    bad->generation = 4;
    cr_assert_eq(recover_image(&r, rec->ino, bad, -EBADMSG), 1);
    check_left(PROBLEM_BAD_ROW, "free 3", 0);
    cr_assert_eq(report.generation, 4u);
    free(bad);
}

/* The true bytes of the plan with the greater sequence number are the ones that the holder wrote
 * last. */
SCENE(row_newer_than_claim)
{
    struct recover r = recovery();

    put_claim(&me, 3, STEP_ARMED);
    truth[26] ^= 0x55;
    plan_take(&rec->plan, OVERLAY_TRUE, truth);
    put_row(3, STEP_SEALED);
    disk(sealed, later);
    check_restored(&r);
}

SCENE(claim_newer_than_row)
{
    struct recover r = recovery();

    put_row(3, STEP_SEALED);
    truth[26] ^= 0x55;
    plan_take(&rec->plan, OVERLAY_TRUE, truth);
    rec->seq = 9;
    put_claim(&me, 3, STEP_SEALED);
    disk(sealed, later);
    check_restored(&r);
}

SCENE(left_claimed)
{
    struct recover r = recovery();

    put_claim(&me, 3, STEP_RESTORING);
    put_row(3, STEP_RESTORING);
    disk(truth, later);
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_RELEASE, PROBLEM_LEFT_CLAIMED, "free 3");
    cr_assert(disk_is(truth));
    cr_assert(mtime_is_new(later), "it was sealed, and nothing says when the restore was done");
}

SCENE(left_before_the_seal)
{
    struct recover r = recovery();

    rec->mtime_sealed = (struct timespec){0, 0};
    put_claim(&me, 3, STEP_ARMED);
    put_row(3, STEP_ARMED);
    disk(truth, before);
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_RELEASE, PROBLEM_LEFT_CLAIMED, "free 3");
    cr_assert(mtime_is(before));
}

SCENE(left_claimed_without_a_plan)
{
    struct recover r = recovery();

    rec->plan.n = 0;
    rec->mtime_sealed = (struct timespec){0, 0};
    put_claim(&me, 3, STEP_CLAIMED);
    put_row(3, STEP_CLAIMED);
    disk(truth, later);
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_RELEASE, PROBLEM_LEFT_CLAIMED, "free 3");
    cr_assert(mtime_is(later));
}

SCENE(alien)
{
    static uint8_t was[SIZE];
    struct recover r = recovery();

    put_claim(&me, 3, STEP_ARMED);
    put_row(3, STEP_SEALED);
    disk_alien();
    cr_assert_eq(io_pread_all(image, was, SIZE, 0), 0);
    r.agree = true;
    cr_assert_eq(recover_all(&r), 1);
    check_left(PROBLEM_ALIEN, "held 3", 1);
    cr_assert(disk_is(was));
}

SCENE(renamed)
{
    struct recover r = recovery();

    if (rec->handle.len == 0)
        cr_skip_test("no file handles here");
    cr_assert_eq(renameat(temp.store.root_fd, "disk.img", temp.store.root_fd, "moved"), 0);
    leave_sealed();
    check_restored(&r);
}

/* Without handles a name that leads nowhere, or to another inode, proves nothing. */
SCENE(renamed_and_no_handle)
{
    struct recover r = recovery();

    rec->handle.len = 0;
    leave_sealed();
    cr_assert_eq(renameat(temp.store.root_fd, "disk.img", temp.store.root_fd, "moved"), 0);
    cr_assert_eq(recover_all(&r), 1);
    check_left(PROBLEM_UNREADABLE, "held 3", 1);
    report.n = 0;
    close(openat(temp.store.root_fd, "disk.img", O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    cr_assert_eq(recover_all(&r), 1);
    check_left(PROBLEM_UNREADABLE, "held 3", 1);
    report.n = 0;
    cr_assert_eq(renameat(temp.store.root_fd, "moved", temp.store.root_fd, "disk.img"), 0);
    check_restored(&r);
}

SCENE(handle_of_another_file)
{
    struct recover r = recovery();
    struct io_handle handle;
    struct stat st;
    int fd;

    if (rec->handle.len == 0)
        cr_skip_test("no file handles here");
    fd = openat(temp.store.root_fd, "another", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    cr_assert(fd >= 0);
    cr_assert_eq(fstat(fd, &st), 0);
    cr_assert_eq(io_handle_get(fd, &handle), 0);
    close(fd);
    rec->handle = handle;
    put_claim(&me, 3, STEP_ARMED);
    disk(sealed, later);
    check_refused(&r, PROBLEM_WRONG_HANDLE, "held 3", 0);
}

SCENE(vanished)
{
    struct recover r = recovery();

    if (rec->handle.len == 0)
        cr_skip_test("no file handles here");
    put_claim(&me, 2, STEP_FREE);
    put_claim(&me, 3, STEP_ARMED);
    put_row(3, STEP_SEALED);
    remove_image();
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_FORGET, PROBLEM_VANISHED, "free 3");
}

SCENE(vanished_under_a_host_that_is_down)
{
    struct recover r = recovery();

    if (rec->handle.len == 0)
        cr_skip_test("no file handles here");
    put_claim(&other, 3, STEP_ARMED);
    remove_image();
    r.takeover = other.uuid;
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_FORGET, PROBLEM_VANISHED, "free 4");
}

SCENE(busy_writer)
{
    struct recover r = recovery();
    int writer = another_writer();

    leave_sealed();
    check_refused(&r, PROBLEM_BUSY_WRITER, "held 3", 1);
    close(writer);
    report.n = 0;
    check_restored(&r);
}

SCENE(damaged_claim)
{
    struct recover r = recovery();
    char name[64];
    int fd;

    put_row(3, STEP_SEALED);
    disk(sealed, later);
    snprintf(name, sizeof(name), "%016llx.3", (unsigned long long)rec->ino);
    fd = openat(tempstore_claims(&temp, rec->ino), name, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    cr_assert(fd >= 0);
    close(fd);
    r.agree = true;
    check_refused(&r, PROBLEM_BAD_CLAIM, "bad 3", 1);
    cr_assert_eq(journal_remove(journal, rec->ino, 3), 0);
    report.n = 0;
    cr_assert_eq(recover_all(&r), 1);
    check_left(PROBLEM_BAD_CLAIM, "bad 3", 0);
    cr_assert_eq(report.generation, 3u);
}

/* ---- permission ---- */

SCENE(dry_run)
{
    struct recover r = recovery();

    leave_sealed();
    r.dry_run = true;
    r.agree = true;
    check_refused(&r, PROBLEM_LEFT_SEALED, "held 3", 1);
    cr_assert(mtime_is(later));
}

SCENE(ask)
{
    struct recover r = recovery();

    leave_sealed();
    r.ask = on_ask;
    answer = false;
    cr_assert_eq(recover_all(&r), 1);
    check_left(PROBLEM_LEFT_SEALED, "held 3", 1);
    cr_assert_eq(asked, 1u);
    answer = true;
    report.n = 0;
    check_restored(&r);
    cr_assert_eq(asked, 2u);
}
