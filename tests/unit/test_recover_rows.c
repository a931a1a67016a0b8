/* test_recover_rows.c: recover_all() where the claim is not ours, or missing; several rows; crashes
 * during recovery. */
#include "unit.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

#include "hooktest.h"
#include "recover_scene.h"

/* ---- rows without a claim of ours ---- */

SCENE(crash_between_row_and_claim)
{
    struct recover r = recovery();

    put_row(3, STEP_ARMED);
    disk(truth, later);
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_FORGET, PROBLEM_STALE_ROW, "none 0");
}

SCENE(crash_between_free_and_row)
{
    struct recover r = recovery();

    put_claim(&me, 3, STEP_FREE);
    put_row(3, STEP_RESTORING);
    disk(sealed, later); /* not looked at: another host may have sealed it since */
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_FORGET, PROBLEM_STALE_ROW, "free 3");
}

SCENE(lost_to_another_host)
{
    struct recover r = recovery();

    put_row(3, STEP_SEALED);
    put_claim(&other, 4, STEP_ARMED);
    disk(sealed, later);
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_FORGET, PROBLEM_LOST_CLAIM, "held 4");
    cr_assert(disk_is(sealed));
}

SCENE(foreign)
{
    struct recover r = recovery();

    put_claim(&other, 4, STEP_ARMED);
    cr_assert_eq(recover_all(&r), 0);
    cr_assert_eq(report.n, 0u, "other hosts' claims are not its business");
    cr_assert_eq(recover_image(&r, rec->ino, NULL, 0), 0);
    check_settled(RECOVER_NOTHING, PROBLEM_FOREIGN, "held 4");
}

SCENE(claim_missing)
{
    struct recover r = recovery();

    put_row(3, STEP_SEALED);
    disk(sealed, at_seal);
    check_refused(&r, PROBLEM_CLAIM_MISSING, "none 0", 1);
    report.n = 0;
    r.agree = true;
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_STOP, PROBLEM_CLAIM_MISSING, "free 1");
    cr_assert(disk_is(truth));
    cr_assert(mtime_is_new(at_seal));
}

SCENE(claim_missing_over_an_older_one)
{
    struct recover r = recovery();

    put_claim(&other, 2, STEP_FREE);
    put_row(3, STEP_SEALED);
    disk(sealed, later);
    r.agree = true;
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_STOP, PROBLEM_CLAIM_MISSING, "free 3");
    cr_assert(disk_is(truth));
}

/* Every row that ever said "sealed" is kept as long as the header may need it; one that did not is
 * not. */
SCENE(claim_missing_and_header_alien)
{
    static const enum claim_step evidence[] = {STEP_SEALED, STEP_RESTORING, STEP_STUCK};
    struct recover r = recovery();

    disk_alien();
    r.agree = true;
    for (unsigned i = 0; i < 3; i++) {
        put_row(3, evidence[i]);
        report.n = 0;
        cr_assert_eq(recover_all(&r), 1);
        check_left(PROBLEM_ALIEN, "none 0", 1);
    }
    report.n = 0;
    put_row(3, STEP_ARMED);
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_FORGET, PROBLEM_STALE_ROW, "none 0");
}

/* ---- takeover ---- */

SCENE(takeover)
{
    struct recover r = recovery();
    struct claim *c = malloc(sizeof(*c));

    cr_assert_not_null(c);
    put_claim(&other, 4, STEP_ARMED);
    disk(sealed, later);
    r.takeover = other.uuid;
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_RESTORE, PROBLEM_FOREIGN_CONFIRMED, "free 5");
    cr_assert_eq(report.generation, 4u, "the report is about the claim as found");
    cr_assert(disk_is(truth));
    cr_assert(mtime_is_new(later));
    cr_assert_eq(claim_read(S, rec->ino, c), 0);
    cr_assert(claim_is_of(&c->rec, &me));
    cr_assert_str_eq(c->rec.host_name, me.name);
    free(c);
}

SCENE(takeover_of_a_claim_that_left_no_seal)
{
    struct recover r = recovery();

    put_claim(&other, 4, STEP_ARMED);
    disk(truth, later);
    r.takeover = other.uuid;
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_RELEASE, PROBLEM_FOREIGN_CONFIRMED, "free 5");
}

SCENE(takeover_of_a_living_writer)
{
    struct recover r = recovery();
    int writer = another_writer();

    put_claim(&other, 4, STEP_ARMED);
    disk(sealed, later);
    r.takeover = other.uuid;
    r.agree = true;
    check_refused(&r, PROBLEM_BUSY_WRITER, "held 4", 0);
    close(writer);
}

SCENE(takeover_of_somebody_else)
{
    struct recover r = recovery();

    put_claim(&other, 4, STEP_ARMED);
    disk(sealed, later);
    r.takeover = "00000000-0000-4000-8000-000000000000";
    cr_assert_eq(recover_all(&r), 0);
    cr_assert_eq(report.n, 0u);
    cr_assert(disk_is(sealed));
}

/* The sequence number of our row means nothing beside another host's claim. */
SCENE(takeover_with_a_lost_race_in_the_journal)
{
    struct recover r = recovery();

    put_claim(&other, 4, STEP_ARMED);
    disk(sealed, later);
    plan_take(&rec->plan, OVERLAY_TRUE, sealed);
    put_row(4, STEP_ARMED);
    r.takeover = other.uuid;
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_RESTORE, PROBLEM_FOREIGN_CONFIRMED, "free 5");
    cr_assert(disk_is(truth));
}

/* ---- several rows ---- */

SCENE(rows_of_several_generations)
{
    struct recover r = recovery();

    put_row(1, STEP_SEALED);
    put_row(2, STEP_ARMED);
    leave_sealed();
    cr_assert_eq(recover_all(&r), 0);
    cr_assert_eq(report.n, 3u);
    cr_assert_eq(rows(), 0u);
    cr_assert_str_eq(ruling(), "free 3");
    cr_assert(disk_is(truth));
}

SCENE(lower_rows_stay_as_long_as_the_highest)
{
    struct recover r = recovery();

    put_row(1, STEP_SEALED);
    put_claim(&me, 3, STEP_ARMED);
    put_row(3, STEP_SEALED);
    disk_alien();
    cr_assert_eq(recover_all(&r), 1);
    check_left(PROBLEM_ALIEN, "held 3", 2);
}

/* A row of an earlier generation has nothing to say about the plan, whatever its sequence number.
 */
SCENE(row_of_an_earlier_generation)
{
    struct recover r = recovery();

    put_claim(&me, 3, STEP_ARMED);
    disk(sealed, later);
    plan_take(&rec->plan, OVERLAY_TRUE, sealed);
    put_row(2, STEP_SEALED);
    check_restored(&r);
}

/* Whatever becomes of one image, the others are looked at. */
SCENE(one_failure_stops_nothing)
{
    struct recover r = recovery();
    struct record *elsewhere = malloc(sizeof(*elsewhere));

    cr_assert_not_null(elsewhere);
    for (uint64_t ino = 1; ino <= 3; ino++) {
        *elsewhere = *rec;
        elsewhere->ino = ino; /* a handle that leads to another inode number */
        elsewhere->generation = 1;
        cr_assert_eq(claim_acquire(S, elsewhere, &(bool){false}), 0);
    }
    free(elsewhere);
    leave_sealed();
    cr_assert_eq(recover_all(&r), 1);
    cr_assert_eq(report.n, 4u);
    cr_assert_eq(rows(), 0u);
    cr_assert_str_eq(ruling(), "free 3");
    cr_assert(disk_is(truth));
}

#ifdef DG_HOOKS
/* ---- what happens meanwhile ---- */

static const char *wanted;
static unsigned wanted_at;
static void (*meanwhile)(void);

static int watch(const char *name)
{
    if (strcmp(name, wanted) == 0 && wanted_at > 0 && --wanted_at == 0) {
        hooktest = NULL; /* its own steps are not watched */
        meanwhile();
    }
    return 0;
}

static void at(const char *name, unsigned n, void (*fn)(void))
{
    wanted = name;
    wanted_at = n;
    meanwhile = fn;
    hooktest = watch;
}

static void grow_truth(void)
{
    truth[26] ^= 0x55;
    plan_take(&rec->plan, OVERLAY_TRUE, truth);
}

static void other_updates(void)
{
    grow_truth();
    update_claim(&other, 4, 8);
}

/* The fence is taken after the claim was read: a host that still lived in between may have written
 * a newer plan. */
SCENE(claim_that_changes_before_the_lock)
{
    struct recover r = recovery();

    put_claim(&other, 4, STEP_ARMED);
    disk(sealed, later);
    r.takeover = other.uuid;
    at("io.fsync", 1, other_updates);
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_RESTORE, PROBLEM_FOREIGN_CONFIRMED, "free 5");
    cr_assert(disk_is(truth));
}

static void claim_has_the_plan(void)
{
    struct claim *c = malloc(sizeof(*c));

    cr_assert_not_null(c);
    cr_assert_eq(claim_read(S, rec->ino, c), 0);
    cr_assert(overlay_same_truth(&c->rec.plan, &rec->plan));
    cr_assert_eq(c->rec.step, STEP_RESTORING);
    free(c);
    asked++;
}

/* Two copies of the true bytes at any time: the claim gets the row's newer plan before a byte is
 * restored. */
SCENE(newer_row_reaches_the_claim_first)
{
    struct recover r = recovery();

    put_claim(&me, 3, STEP_ARMED);
    grow_truth();
    put_row(3, STEP_RESTORING);
    disk(sealed, later);
    at("io.header.write", 1, claim_has_the_plan);
    cr_assert_eq(recover_all(&r), 0);
    cr_assert_eq(asked, 1u);
    check_settled(RECOVER_RESTORE, PROBLEM_LEFT_SEALED, "free 3");
    cr_assert(disk_is(truth));
}

SCENE(header_that_changes_before_the_release)
{
    struct recover r = recovery();

    put_claim(&me, 3, STEP_ARMED);
    put_row(3, STEP_SEALED);
    disk(truth, later);
    at("io.fsync", 2, disk_alien);
    cr_assert_eq(recover_all(&r), 1);
    cr_assert_eq(report.done, -EUCLEAN);
    cr_assert_str_eq(ruling(), "held 3");
    cr_assert_eq(rows(), 1u);
}

static int fail_create(const char *name)
{
    return strcmp(name, "claim.create") == 0 ? -EIO : 0;
}

static int look_at_step(void *arg, const struct record *r, int err)
{
    (void)err;
    *(enum claim_step *)arg = r->step;
    return 0;
}

/* The row that may be all that is left of the plan goes on saying that it was sealed. */
SCENE(missing_claim_that_cannot_be_made)
{
    struct recover r = recovery();
    enum claim_step step = STEP_FREE;

    put_row(3, STEP_SEALED);
    disk(sealed, later);
    r.agree = true;
    hooktest = fail_create;
    cr_assert_eq(recover_all(&r), 1);
    hooktest = NULL;
    cr_assert_eq(report.done, -EIO);
    cr_assert_eq(rows(), 1u);
    cr_assert_eq(journal_each(journal, look_at_step, &step), 0);
    cr_assert_eq(step, STEP_SEALED);
    report.n = 0;
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_STOP, PROBLEM_CLAIM_MISSING, "free 1");
}

/* ---- several images at a time ---- */

#define MANY 70 /* more than RECOVER_JOBS twice */

static struct {
    pthread_mutex_t mutex;
    pthread_t thread[MANY + 8];
    unsigned n, now, most;
} crew = {.mutex = PTHREAD_MUTEX_INITIALIZER};

struct crew_job {
    void (*fn)(void *job);
    void *job;
};

static void *crew_main(void *arg)
{
    struct crew_job *j = arg;

    j->fn(j->job);
    pthread_mutex_lock(&crew.mutex);
    crew.now--;
    pthread_mutex_unlock(&crew.mutex);
    free(j);
    return NULL;
}

static void crew_run(void *arg, void (*fn)(void *job), void *job)
{
    struct crew_job *j = malloc(sizeof(*j));

    (void)arg;
    cr_assert_not_null(j);
    *j = (struct crew_job){fn, job};
    pthread_mutex_lock(&crew.mutex);
    crew.now++;
    crew.most = crew.now > crew.most ? crew.now : crew.most;
    pthread_mutex_unlock(&crew.mutex);
    cr_assert(crew.n < MANY + 8);
    cr_assert_eq(pthread_create(&crew.thread[crew.n++], NULL, crew_main, j), 0);
}

static void crew_report(void *arg, const struct record *r, struct recover_decision d, int done)
{
    pthread_mutex_lock(&crew.mutex);
    on_report(arg, r, d, done);
    pthread_mutex_unlock(&crew.mutex);
}

/* The scene's image moves on to another file of that number. */
static void next_image(unsigned number)
{
    char name[32];

    snprintf(name, sizeof(name), "disk%u.img", number);
    close(image);
    image = openat(temp.store.root_fd, name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    cr_assert(image >= 0);
    describe_image(rec, &me, 3);
    snprintf(rec->image, sizeof(rec->image), "%s", name);
}

/* Every image is settled once, and of one image the later generation before the earlier one. */
SCENE(many_at_a_time)
{
    struct recover r = recovery();

    for (unsigned i = 0; i < MANY; i++) {
        next_image(i);
        leave_sealed();
    }
    put_row(2, STEP_SEALED); /* of the last one: it must wait for generation 3 */
    put_row(1, STEP_RESTORING);
    r.run = crew_run;
    r.report = crew_report;
    cr_assert_eq(recover_all(&r), 0);
    for (unsigned i = 0; i < crew.n; i++)
        pthread_join(crew.thread[i], NULL);
    cr_assert_gt(crew.most, 1u);
    cr_assert_eq(rows(), 0u);
    cr_assert_eq(report.n, MANY + 2u);
    for (unsigned i = 0; i < MANY; i++) {
        next_image(i);
        cr_assert(disk_is(truth), "image %u", i);
        cr_assert_str_eq(ruling(), "free 3");
    }
    cr_assert_eq(report.generation, 1u, "the earliest generation comes last");
}

/* ---- crashes during recovery ---- */

static unsigned kill_at, passed;

static int kill_there(const char *name)
{
    (void)name;
    if (++passed == kill_at)
        raise(SIGKILL); /* no end of the process that could clean anything up */
    return 0;
}

/* Recovery in a process of its own, killed at that step (0: none). true: it came to its end. */
static bool recover_killed_at(unsigned step, const struct recover *like, unsigned daemon)
{
    int status;
    pid_t pid = fork(); /* with the journal closed: sqlite must not be carried through a fork */

    cr_assert(pid >= 0);
    if (pid == 0) {
        struct recover r = *like;
        unsigned stale;

        snprintf(me.daemon, sizeof(me.daemon), "%08x-4444-4444-8444-444444444444", daemon);
        open_journal();
        r.journal = journal;
        r.report = NULL;
        kill_at = step;
        passed = 0;
        hooktest = kill_there;
        if (claim_sweep(S, &me, false, &stale) < 0 || recover_all(&r) != 0 ||
            claim_sweep_lower(S, false, NULL, &stale) < 0)
            _exit(3);
        journal_close(journal);
        _exit(0);
    }
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
        return false;
    cr_assert_eq(status, 0, "step %u", step);
    return true;
}

/* Whatever step it is killed at, and once more at another one: the image is never unexplained, and
 * the end is always the same. */
static void check_crashes(void (*scene)(void), const struct recover *like, const char *claim)
{
    bool whole = false;

    for (unsigned step = 1; !whole; step++) {
        cr_assert_lt(step, 200u);
        scene();
        journal_close(journal);
        whole = recover_killed_at(step, like, 2 * step);
        if (!whole) {
            (void)recover_killed_at(step * 7 % 31 + 1, like, 2 * step + 1);
            cr_assert(recover_killed_at(0, like, 1000), "step %u", step);
        }
        open_journal();
        cr_assert_eq(rows(), 0u, "step %u", step);
        cr_assert_str_eq(ruling(), claim, "step %u: %s", step, ruling());
        cr_assert(disk_is(truth), "step %u", step);
        cr_assert_eq(tempstore_count(temp.store.tmp_fd, ""), 0u, "step %u", step);
        cr_assert_eq(tempstore_claims_count(&temp, ""), 1u, "step %u", step);
        cr_assert_eq(claim_forget(S, rec->ino, 9), 0);
    }
}

static void scene_sealed(void)
{
    leave_sealed();
}

SCENE(crashes_while_restoring)
{
    struct recover r = recovery();

    check_crashes(scene_sealed, &r, "free 3");
}

static void scene_true(void)
{
    put_claim(&me, 3, STEP_RESTORING);
    put_row(3, STEP_RESTORING);
    disk(truth, later);
}

SCENE(crashes_while_releasing)
{
    struct recover r = recovery();

    check_crashes(scene_true, &r, "free 3");
}

static void scene_foreign(void)
{
    put_claim(&other, 4, STEP_ARMED);
    put_row(2, STEP_SEALED);
    disk_mixed();
}

SCENE(crashes_while_taking_over)
{
    struct recover r = recovery();

    r.takeover = other.uuid;
    check_crashes(scene_foreign, &r, "free 5");
}

static void scene_missing(void)
{
    put_claim(&other, 1, STEP_FREE);
    put_row(3, STEP_SEALED);
    disk(sealed, later);
}

SCENE(crashes_while_replacing_a_missing_claim)
{
    struct recover r = recovery();

    r.agree = true;
    check_crashes(scene_missing, &r, "free 2");
}
#endif
