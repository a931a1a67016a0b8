/* recover_scene.h: an image, its claim and its journal row, put into place by hand as a crash may
 * have left them; and what must be there after recovery. */
#ifndef RECOVER_SCENE_H
#define RECOVER_SCENE_H

#include "core/overlay.h"
#include "core/recover.h"
#include "core/seal.h"
#include "tempstore.h"
#include "unit.h"

#define S (&temp.store)
#define SIZE 65536

static struct tempstore temp;
static struct journal *journal;
static struct host me, other;
static struct record *rec; /* of the image, held by me, sealed */
static int image;          /* read-write */
static uint8_t truth[SIZE], sealed[SIZE];
static const struct timespec before = {1000000000, 5}, at_seal = {1100000000, 6},
                             later = {1200000000, 7};

/* What was reported last. */
static struct {
    unsigned n;
    struct recover_decision d;
    int done;
    uint64_t ino, generation;
} report;
static unsigned asked;
static bool answer;

/* One side of every extent is what stands there in `file`. */
static inline void plan_take(struct plan *plan, enum overlay_side side, const uint8_t file[SIZE])
{
    for (unsigned i = 0; i < plan->n; i++) {
        struct extent *e = &plan->ext[i];

        memcpy(side == OVERLAY_TRUE ? e->truth : e->sealed, file + e->off, e->len);
    }
}

static inline void on_report(void *arg, const struct record *r, struct recover_decision d, int done)
{
    (void)arg;
    report.n++;
    report.d = d;
    report.done = done;
    report.ino = r->ino;
    report.generation = r->generation;
}

static inline bool on_ask(void *arg, const struct record *r, struct recover_decision d)
{
    (void)arg, (void)r, (void)d;
    asked++;
    return answer;
}

static inline struct recover recovery(void)
{
    return (struct recover){.store = S,
                            .journal = journal,
                            .host = &me,
                            .policy = {SEAL_REFUSE, "me"},
                            .report = on_report};
}

/* ---- the scene ---- */

static inline void describe_image(struct record *r, const struct host *h, uint64_t generation)
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
    plan_take(&r->plan, OVERLAY_TRUE, truth);
    plan_take(&r->plan, OVERLAY_SEALED, sealed);
}

static inline void open_journal(void)
{
    char dir[96];
    struct why why = {""};

    snprintf(dir, sizeof(dir), "%s/state", temp.base);
    cr_assert(mkdir(dir, 0700) == 0 || errno == EEXIST);
    cr_assert_eq(journal_open(dir, temp.store.uuid, &journal, &why), 0, "%s", why.text);
}

static inline void setup(void)
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

static inline void teardown(void)
{
    journal_close(journal);
    close(image);
    tempstore_remove(&temp);
    free(rec);
}

static inline void disk(const uint8_t *bytes, struct timespec mtime)
{
    cr_assert_eq(io_pwrite_all(image, bytes, SIZE, 0), 0);
    cr_assert_eq(io_set_mtime(image, mtime), 0);
}

/* Half of the second extent is true already. */
static inline void disk_mixed(void)
{
    disk(sealed, later);
    cr_assert_eq(io_pwrite_all(image, truth + 1050, 50, 1050), 0);
}

static inline void disk_alien(void)
{
    disk(sealed, later);
    cr_assert_eq(io_pwrite_all(image, "somebody", 8, 1004), 0);
}

/* The record as a host would write it into its claim; the caller frees it. */
static inline struct record *record_of(const struct host *h, uint64_t generation)
{
    struct record *r = malloc(sizeof(*r));

    cr_assert_not_null(r);
    *r = *rec;
    memcpy(r->host, h->uuid, sizeof(dg_uuid));
    memcpy(r->installation, h->installation, sizeof(dg_uuid));
    r->generation = generation;
    return r;
}

static inline void put_claim(const struct host *h, uint64_t generation, enum claim_step step)
{
    struct record *r = record_of(h, generation);

    r->step = step == STEP_FREE ? STEP_CLAIMED : step;
    cr_assert_eq(claim_acquire(S, r, &(bool){false}), 0);
    if (step == STEP_FREE)
        cr_assert_eq(claim_free(S, r), 0);
    free(r);
}

static inline void put_row(uint64_t generation, enum claim_step step)
{
    struct record *r = record_of(&me, generation);

    r->step = step;
    r->seq = 2;
    cr_assert_eq(journal_put(journal, r), 0);
    free(r);
}

/* The whole of it: sealed and held by us, with a row, and written to since. */
static inline void leave_sealed(void)
{
    put_claim(&me, 3, STEP_ARMED);
    put_row(3, STEP_SEALED);
    disk(sealed, later);
}

/* Opens the image once more, with the fence lock of a holder. The caller closes it. */
static inline int another_writer(void)
{
    char path[128];
    int fd;

    snprintf(path, sizeof(path), "%s/disk.img", temp.path);
    fd = open(path, O_RDWR | O_CLOEXEC);
    cr_assert_eq(io_fence_shared(fd, temp.store.fence), 0);
    return fd;
}

static inline void remove_image(void)
{
    cr_assert_eq(unlinkat(temp.store.root_fd, "disk.img", 0), 0);
    close(image);
    image = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

/* ---- what is there afterwards ---- */

static inline int count_row(void *arg, const struct record *r, int err)
{
    (void)r, (void)err;
    ++*(unsigned *)arg;
    return 0;
}

static inline unsigned rows(void)
{
    unsigned n = 0;

    cr_assert_eq(journal_each(journal, count_row, &n), 0);
    return n;
}

/* "held 3" */
static inline const char *ruling(void)
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

/* What another host that holds the image would write into its claim. */
static inline void update_claim(const struct host *h, uint64_t generation, uint64_t seq)
{
    struct record *r = record_of(h, generation);

    r->seq = seq;
    cr_assert_eq(claim_update(S, r), 0);
    free(r);
}

static inline bool disk_is(const uint8_t *bytes)
{
    static uint8_t now[SIZE];

    return io_pread_all(image, now, SIZE, 0) == 0 && memcmp(now, bytes, SIZE) == 0;
}

static inline bool mtime_is(struct timespec want)
{
    struct stat st;

    return fstat(image, &st) == 0 && st.st_mtim.tv_sec == want.tv_sec &&
           st.st_mtim.tv_nsec == want.tv_nsec;
}

/* One that no sealed state has shown, for those who compare whole seconds, too. */
static inline bool mtime_is_new(struct timespec shown)
{
    struct stat st;

    return fstat(image, &st) == 0 && st.st_mtim.tv_sec >= shown.tv_sec + SEAL_MTIME_STEP &&
           st.st_mtim.tv_sec >= time(NULL) - 60;
}

static inline void check_settled(enum recover_action action, enum problem problem,
                                 const char *claim)
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
static inline void check_left(enum problem problem, const char *claim, unsigned n)
{
    cr_assert_eq(report.n, 1u, "%u reports", report.n);
    cr_assert_eq(report.d.problem, problem, "%s", problem_info(report.d.problem)->code);
    cr_assert_eq(report.done, 1, "done %d", report.done);
    cr_assert_eq(rows(), n);
    cr_assert_str_eq(ruling(), claim);
}

/* Recovers, and our own claim of generation 3 leads to the true header. */
static inline void check_restored(struct recover *r)
{
    cr_assert_eq(recover_all(r), 0);
    check_settled(RECOVER_RESTORE, PROBLEM_LEFT_SEALED, "free 3");
    cr_assert(disk_is(truth));
}

/* Recovers, and nothing is touched: check_left(), and the image is sealed as before. */
static inline void check_refused(struct recover *r, enum problem problem, const char *claim,
                                 unsigned n)
{
    cr_assert_eq(recover_all(r), 1);
    check_left(problem, claim, n);
    cr_assert(disk_is(sealed));
}

#define SCENE(name) Test(recover_run, name, .init = setup, .fini = teardown)

#endif
