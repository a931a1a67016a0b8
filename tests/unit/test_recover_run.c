/* test_recover_run.c: recover_image() and recover_all() on real files: what a crash left is put into place by
 * hand. */
#include "unit.h"

#include "core/recover.h"
#include "core/seal.h"
#include "tempstore.h"

#define S (&temp.store)
#define SIZE 65536

static struct tempstore temp;
static struct journal *journal;
static struct host me, other;
static struct record *rec; /* of the image, held by me, sealed */
static int image;          /* read-write */
static uint8_t truth[SIZE], sealed[SIZE];
static const struct timespec before = {1000000000, 5}, at_seal = {1100000000, 6}, later = {1200000000, 7};

/* What was reported last. */
static struct {
    unsigned n;
    struct recover_decision d;
    int done;
    uint64_t ino, generation;
} report;
static unsigned asked;
static bool answer;

static void on_report(void *arg, const struct record *r, struct recover_decision d, int done)
{
    (void)arg;
    report.n++;
    report.d = d;
    report.done = done;
    report.ino = r->ino;
    report.generation = r->generation;
}

static bool on_ask(void *arg, const struct record *r, struct recover_decision d)
{
    (void)arg, (void)r, (void)d;
    asked++;
    return answer;
}

static struct recover recovery(void)
{
    return (struct recover){
        .store = S, .journal = journal, .host = &me, .policy = {SEAL_REFUSE, "me"}, .report = on_report};
}

/* ---- the scene ---- */

static void describe_image(struct record *r, const struct host *h, uint64_t generation)
{
    struct stat st;

    cr_assert_eq(fstat(image, &st), 0);
    tempstore_record(h, st.st_ino, generation, r);
    snprintf(r->image, sizeof(r->image), "disk.img");
    cr_assert_eq(io_handle_get(image, &r->handle), 0);
    r->step = STEP_SEALED;
    r->mtime = before;
    r->mtime_sealed = at_seal;
    r->plan.n = 2;
    r->plan.ext[0] = (struct extent){.off = 24, .len = 8};
    r->plan.ext[1] = (struct extent){.off = 1000, .len = 100};
    overlay_take(&r->plan, OVERLAY_TRUE, 0, truth, SIZE);
    overlay_take(&r->plan, OVERLAY_SEALED, 0, sealed, SIZE);
}

static void open_journal(void)
{
    char dir[96];
    struct why why = {""};

    snprintf(dir, sizeof(dir), "%s/state", temp.base);
    cr_assert(mkdir(dir, 0700) == 0 || errno == EEXIST);
    cr_assert_eq(journal_open(dir, temp.store.uuid, &journal, &why), 0, "%s", why.text);
}

static void setup(void)
{
    char path[128];

    cr_assert_eq(tempstore_make(&temp), 0);
    me = tempstore_host(0xa);
    other = tempstore_host(0xb);
    open_journal();
    for (size_t i = 0; i < SIZE; i++) {
        truth[i] = (uint8_t)(i * 7 + i / 256);
        sealed[i] = (i >= 24 && i < 32) || (i >= 1000 && i < 1100) ? (uint8_t)~truth[i] : truth[i];
    }
    snprintf(path, sizeof(path), "%s/disk.img", temp.path);
    image = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    cr_assert(image >= 0);
    rec = calloc(1, sizeof(*rec));
    cr_assert_not_null(rec);
    describe_image(rec, &me, 3);
    memset(&report, 0, sizeof(report));
    asked = 0;
}

static void teardown(void)
{
    journal_close(journal);
    close(image);
    tempstore_remove(&temp);
    free(rec);
}

static void disk(const uint8_t *bytes, struct timespec mtime)
{
    cr_assert_eq(io_pwrite_all(image, bytes, SIZE, 0), 0);
    cr_assert_eq(io_set_mtime(image, mtime), 0);
}

/* Half of the second extent is true already. */
static void disk_mixed(void)
{
    disk(sealed, later);
    cr_assert_eq(io_pwrite_all(image, truth + 1050, 50, 1050), 0);
}

static void disk_alien(void)
{
    disk(sealed, later);
    cr_assert_eq(io_pwrite_all(image, "somebody", 8, 1004), 0);
}

static void put_claim(const struct host *h, uint64_t generation, enum claim_step step)
{
    struct record *r = malloc(sizeof(*r));

    cr_assert_not_null(r);
    *r = *rec;
    memcpy(r->host, h->uuid, sizeof(dg_uuid));
    memcpy(r->installation, h->installation, sizeof(dg_uuid));
    r->generation = generation;
    r->step = step == STEP_FREE ? STEP_CLAIMED : step;
    cr_assert_eq(claim_acquire(S, r), 0);
    if (step == STEP_FREE)
        cr_assert_eq(claim_free(S, r), 0);
    free(r);
}

static void put_row(uint64_t generation, enum claim_step step)
{
    struct record *r = malloc(sizeof(*r));

    cr_assert_not_null(r);
    *r = *rec;
    r->generation = generation;
    r->step = step;
    r->seq = 2;
    cr_assert_eq(journal_put(journal, r), 0);
    free(r);
}

/* ---- what is there afterwards ---- */

static int count_row(void *arg, const struct record *r, int err)
{
    (void)r, (void)err;
    ++*(unsigned *)arg;
    return 0;
}

static unsigned rows(void)
{
    unsigned n = 0;

    cr_assert_eq(journal_each(journal, count_row, &n), 0);
    return n;
}

/* "held 3" */
static const char *ruling(void)
{
    static const char *const kinds[] = {"none", "free", "held", "bad"};
    static char text[48];
    struct claim *c = malloc(sizeof(*c));

    cr_assert_not_null(c);
    cr_assert_eq(claim_read(S, rec->ino, c), 0);
    snprintf(text, sizeof(text), "%s %llu", kinds[c->kind], (unsigned long long)c->generation);
    free(c);
    return text;
}

static bool disk_is(const uint8_t *bytes)
{
    static uint8_t now[SIZE];

    return io_pread_all(image, now, SIZE, 0) == 0 && memcmp(now, bytes, SIZE) == 0;
}

static bool mtime_is(struct timespec want)
{
    struct stat st;

    return fstat(image, &st) == 0 && st.st_mtim.tv_sec == want.tv_sec && st.st_mtim.tv_nsec == want.tv_nsec;
}

static void check_settled(enum recover_action action, enum problem problem, const char *claim)
{
    cr_assert_eq(report.n, 1u, "%u reports", report.n);
    cr_assert_eq(report.d.action, action, "%s", recover_action_name(report.d.action));
    cr_assert_eq(report.d.problem, problem, "%s", problem_info(report.d.problem)->code);
    cr_assert_eq(report.done, 0, "done %d", report.done);
    cr_assert_eq(report.ino, rec->ino);
    cr_assert_eq(rows(), 0u);
    cr_assert_str_eq(ruling(), claim);
    cr_assert_eq(tempstore_count(temp.store.tmp_fd, ""), 0u);
}

/* Nothing was touched: the scene is as `claim` and `n` rows say. */
static void check_left(enum problem problem, const char *claim, unsigned n)
{
    cr_assert_eq(report.n, 1u, "%u reports", report.n);
    cr_assert_eq(report.d.problem, problem, "%s", problem_info(report.d.problem)->code);
    cr_assert_eq(report.done, 1, "done %d", report.done);
    cr_assert_eq(rows(), n);
    cr_assert_str_eq(ruling(), claim);
}

#define SCENE(name) Test(recover_run, name, .init = setup, .fini = teardown)

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

    put_claim(&me, 3, STEP_ARMED);
    put_row(3, STEP_SEALED);
    disk(sealed, later);
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_RESTORE, PROBLEM_LEFT_SEALED, "free 3");
    cr_assert(disk_is(truth));
    cr_assert(mtime_is(later), "the holder's last write");
    cr_assert_eq(recover_all(&r), 0);
    cr_assert_eq(report.n, 1u, "the second time there is nothing");
}

SCENE(left_sealed_and_nobody_wrote)
{
    struct recover r = recovery();

    put_claim(&me, 3, STEP_ARMED);
    put_row(3, STEP_SEALED);
    disk(sealed, at_seal);
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_RESTORE, PROBLEM_LEFT_SEALED, "free 3");
    cr_assert(disk_is(truth));
    cr_assert(mtime_is(before));
}

SCENE(left_while_sealing)
{
    struct recover r = recovery();

    rec->mtime_sealed = (struct timespec){0, 0};
    put_claim(&me, 3, STEP_ARMED);
    put_row(3, STEP_ARMED);
    disk_mixed();
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_RESTORE, PROBLEM_LEFT_SEALED, "free 3");
    cr_assert(disk_is(truth));
    cr_assert(mtime_is(before), "no holder had an answer yet");
}

/* The newest plan is in the row: the claim must have it before the header is touched. */
SCENE(left_while_restoring)
{
    struct recover r = recovery();

    put_claim(&me, 3, STEP_RESTORING);
    put_row(3, STEP_RESTORING);
    disk_mixed();
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_RESTORE, PROBLEM_LEFT_SEALED, "free 3");
    cr_assert(disk_is(truth));
}

SCENE(claim_without_row)
{
    struct recover r = recovery();

    put_claim(&me, 3, STEP_ARMED);
    disk(sealed, later);
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_RESTORE, PROBLEM_LEFT_SEALED, "free 3");
    cr_assert(disk_is(truth));
    cr_assert(mtime_is(later));
}

SCENE(without_a_journal)
{
    struct recover r = recovery();

    put_claim(&me, 3, STEP_ARMED);
    disk(sealed, later);
    r.journal = NULL;
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_RESTORE, PROBLEM_LEFT_SEALED, "free 3");
    cr_assert(disk_is(truth));
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

/* The true bytes of the plan with the greater sequence number are the ones that the holder wrote last. */
SCENE(row_newer_than_claim)
{
    struct recover r = recovery();

    put_claim(&me, 3, STEP_ARMED);
    truth[26] ^= 0x55;
    overlay_take(&rec->plan, OVERLAY_TRUE, 0, truth, SIZE);
    put_row(3, STEP_SEALED);
    disk(sealed, later);
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_RESTORE, PROBLEM_LEFT_SEALED, "free 3");
    cr_assert(disk_is(truth));
}

SCENE(claim_newer_than_row)
{
    struct recover r = recovery();

    put_row(3, STEP_SEALED);
    truth[26] ^= 0x55;
    overlay_take(&rec->plan, OVERLAY_TRUE, 0, truth, SIZE);
    rec->seq = 9;
    put_claim(&me, 3, STEP_SEALED);
    disk(sealed, later);
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_RESTORE, PROBLEM_LEFT_SEALED, "free 3");
    cr_assert(disk_is(truth));
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
    cr_assert(mtime_is(later));
}

SCENE(left_claimed_without_a_plan)
{
    struct recover r = recovery();

    rec->plan.n = 0;
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
    put_claim(&me, 3, STEP_ARMED);
    put_row(3, STEP_SEALED);
    disk(sealed, later);
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_RESTORE, PROBLEM_LEFT_SEALED, "free 3");
    cr_assert(disk_is(truth));
}

/* Without handles a name that leads nowhere, or to another inode, proves nothing. */
SCENE(renamed_and_no_handle)
{
    struct recover r = recovery();

    rec->handle.len = 0;
    put_claim(&me, 3, STEP_ARMED);
    put_row(3, STEP_SEALED);
    disk(sealed, later);
    cr_assert_eq(renameat(temp.store.root_fd, "disk.img", temp.store.root_fd, "moved"), 0);
    cr_assert_eq(recover_all(&r), 1);
    check_left(PROBLEM_UNREADABLE, "held 3", 1);
    report.n = 0;
    close(openat(temp.store.root_fd, "disk.img", O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    cr_assert_eq(recover_all(&r), 1);
    check_left(PROBLEM_UNREADABLE, "held 3", 1);
    report.n = 0;
    cr_assert_eq(renameat(temp.store.root_fd, "moved", temp.store.root_fd, "disk.img"), 0);
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_RESTORE, PROBLEM_LEFT_SEALED, "free 3");
    cr_assert(disk_is(truth));
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
    cr_assert_eq(recover_all(&r), 1);
    check_left(PROBLEM_WRONG_HANDLE, "held 3", 0);
    cr_assert(disk_is(sealed));
}

SCENE(vanished)
{
    struct recover r = recovery();

    if (rec->handle.len == 0)
        cr_skip_test("no file handles here");
    put_claim(&me, 2, STEP_FREE);
    put_claim(&me, 3, STEP_ARMED);
    put_row(3, STEP_SEALED);
    cr_assert_eq(unlinkat(temp.store.root_fd, "disk.img", 0), 0);
    close(image);
    image = open("/dev/null", O_RDONLY | O_CLOEXEC);
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_FORGET, PROBLEM_VANISHED, "none 0");
}

SCENE(busy_writer)
{
    struct recover r = recovery();
    char path[128];
    int writer;

    snprintf(path, sizeof(path), "%s/disk.img", temp.path);
    writer = open(path, O_RDWR | O_CLOEXEC);
    cr_assert_eq(io_fence_shared(writer, temp.store.fence), 0);
    put_claim(&me, 3, STEP_ARMED);
    put_row(3, STEP_SEALED);
    disk(sealed, later);
    cr_assert_eq(recover_all(&r), 1);
    check_left(PROBLEM_BUSY_WRITER, "held 3", 1);
    cr_assert(disk_is(sealed));
    close(writer);
    report.n = 0;
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_RESTORE, PROBLEM_LEFT_SEALED, "free 3");
}

SCENE(damaged_claim)
{
    struct recover r = recovery();
    char name[64];
    int fd;

    put_row(3, STEP_SEALED);
    disk(sealed, later);
    snprintf(name, sizeof(name), "%016llx.3", (unsigned long long)rec->ino);
    fd = openat(temp.store.claims_fd, name, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    cr_assert(fd >= 0);
    close(fd);
    r.agree = true;
    cr_assert_eq(recover_all(&r), 1);
    check_left(PROBLEM_BAD_CLAIM, "bad 3", 1);
    cr_assert(disk_is(sealed));
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

    put_claim(&me, 3, STEP_ARMED);
    put_row(3, STEP_SEALED);
    disk(sealed, later);
    r.dry_run = true;
    r.agree = true;
    cr_assert_eq(recover_all(&r), 1);
    check_left(PROBLEM_LEFT_SEALED, "held 3", 1);
    cr_assert(disk_is(sealed));
    cr_assert(mtime_is(later));
}

SCENE(ask)
{
    struct recover r = recovery();

    put_claim(&me, 3, STEP_ARMED);
    put_row(3, STEP_SEALED);
    disk(sealed, later);
    r.ask = on_ask;
    answer = false;
    cr_assert_eq(recover_all(&r), 1);
    check_left(PROBLEM_LEFT_SEALED, "held 3", 1);
    cr_assert_eq(asked, 1u);
    answer = true;
    report.n = 0;
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_RESTORE, PROBLEM_LEFT_SEALED, "free 3");
    cr_assert_eq(asked, 2u);
}

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
    cr_assert_eq(recover_all(&r), 1);
    check_left(PROBLEM_CLAIM_MISSING, "none 0", 1);
    cr_assert(disk_is(sealed));
    report.n = 0;
    r.agree = true;
    cr_assert_eq(recover_all(&r), 0);
    check_settled(RECOVER_STOP, PROBLEM_CLAIM_MISSING, "free 1");
    cr_assert(disk_is(truth));
    cr_assert(mtime_is(before));
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
    cr_assert(mtime_is(later));
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
    char path[128];
    int writer;

    snprintf(path, sizeof(path), "%s/disk.img", temp.path);
    writer = open(path, O_RDWR | O_CLOEXEC);
    cr_assert_eq(io_fence_shared(writer, temp.store.fence), 0);
    put_claim(&other, 4, STEP_ARMED);
    disk(sealed, later);
    r.takeover = other.uuid;
    r.agree = true;
    cr_assert_eq(recover_all(&r), 1);
    check_left(PROBLEM_BUSY_WRITER, "held 4", 0);
    cr_assert(disk_is(sealed));
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
    overlay_take(&rec->plan, OVERLAY_TRUE, 0, sealed, SIZE);
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
    put_claim(&me, 3, STEP_ARMED);
    put_row(3, STEP_SEALED);
    disk(sealed, later);
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
        cr_assert_eq(claim_acquire(S, elsewhere), 0);
    }
    free(elsewhere);
    put_claim(&me, 3, STEP_ARMED);
    put_row(3, STEP_SEALED);
    disk(sealed, later);
    cr_assert_eq(recover_all(&r), 1);
    cr_assert_eq(report.n, 4u);
    cr_assert_eq(rows(), 0u);
    cr_assert_str_eq(ruling(), "free 3");
    cr_assert(disk_is(truth));
}
