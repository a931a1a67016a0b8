/* test_claim.c: claims on a datastore in a temporary directory. */
#include "unit.h"

#include <sys/resource.h>
#include <zlib.h>

#include "fakes.h"
#include "hooktest.h"
#include "tempstore.h"

static struct tempstore temp;
static struct host a, b;
static struct claim *c;
static struct record *rec;

#define S (&temp.store)
#define INO 0x1234abcdull
#define KEY "000000001234abcd"

#ifdef DG_HOOKS
static const char *fail_name;
static unsigned fail_at;

static int fail(const char *name)
{
    return strcmp(name, fail_name) == 0 && fail_at > 0 && --fail_at == 0 ? -EIO : 0;
}

/* From now on, the at-th step of this name fails, once. */
static void fail_next(const char *name, unsigned at)
{
    fail_name = name;
    fail_at = at;
    hooktest = fail;
}
#endif

static void setup(void)
{
    cr_assert_eq(tempstore_make(&temp), 0);
    a = tempstore_host(0xa);
    b = tempstore_host(0xb);
    c = calloc(1, sizeof(*c));
    rec = calloc(1, sizeof(*rec));
    cr_assert(c && rec);
}

static void teardown(void)
{
#ifdef DG_HOOKS
    hooktest = NULL;
#endif
    tempstore_remove(&temp);
    free(c);
    free(rec);
}

/* Reads into c and says "kind generation", e.g. "held 3". */
static const char *ruling(uint64_t ino)
{
    static const char *const kinds[] = {"none", "free", "held", "bad"};
    static char text[48];

    cr_assert_eq(claim_read(S, ino, c), 0);
    snprintf(text, sizeof(text), "%s %llu", kinds[c->kind], (unsigned long long)c->generation);
    return text;
}

static int acquire(const struct host *h, uint64_t ino, uint64_t generation)
{
    tempstore_record(h, ino, generation, rec);
    return claim_acquire(S, rec, &(bool){false});
}

static int release(const struct host *h, uint64_t ino, uint64_t generation)
{
    tempstore_record(h, ino, generation, rec);
    int r = claim_free(S, rec);
    if (r == 0)
        claim_clear(S, rec->ino, rec->generation);
    return r;
}

static int sweep(const struct host *h, bool dry_run, unsigned *ret_stale)
{
    unsigned lower;
    int r = claim_sweep(S, h, dry_run, ret_stale);

    if (r == 0)
        r = claim_sweep_lower(S, dry_run, NULL, &lower);
    if (r == 0)
        *ret_stale += lower;
    return r;
}

static unsigned claims(const char *prefix)
{
    return tempstore_claims_count(&temp, prefix);
}

static unsigned tmps(void)
{
    return tempstore_count(temp.store.tmp_fd, "");
}

static void put_file(int dirfd, const char *name, const void *data, size_t len)
{
    int fd = openat(dirfd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    cr_assert(fd >= 0);
    cr_assert_eq(write(fd, data, len), (ssize_t)len);
    close(fd);
}

static void put_record(int dirfd, const char *name, const struct record *r)
{
    char *text;
    size_t len;

    cr_assert_eq(record_encode(r, &text, &len), 0);
    put_file(dirfd, name, text, len);
    free(text);
}

/* ---- life ---- */

Test(claim, life, .init = setup, .fini = teardown)
{
    cr_assert_str_eq(ruling(INO), "none 0");
    cr_assert_eq(acquire(&a, INO, 1), 0);
    cr_assert_str_eq(ruling(INO), "held 1");
    cr_assert(claim_is_of(&c->rec, &a));
    cr_assert_not(claim_is_of(&c->rec, &b));
    cr_assert_eq(claim_check(S, rec), 0);
    cr_assert_eq(tmps(), 0u);

    rec->step = STEP_ARMED;
    rec->seq = 7;
    rec->plan.n = 1;
    rec->plan.ext[0] = (struct extent){.off = 24, .len = 8, .truth = {1}, .sealed = {2}};
    cr_assert_eq(claim_update(S, rec), 0);
    cr_assert_str_eq(ruling(INO), "held 1");
    cr_assert_eq(c->rec.seq, 7u);
    cr_assert_eq(c->rec.plan.n, 1u);
    cr_assert_eq(tmps(), 0u);
    rec->step = STEP_RESTORING;
    cr_assert_eq(claim_undoes(S, rec), 1);
    rec->plan.ext[0].truth[0] = 3;
    cr_assert_eq(claim_undoes(S, rec), 0);

    cr_assert_eq(claim_free(S, rec), 0);
    cr_assert_eq(claim_undoes(S, rec), -CLAIM_LOST);
    cr_assert_eq(rec->step, STEP_FREE);
    cr_assert_eq(rec->plan.n, 0u);
    cr_assert_eq(rec->seq, 8u);
    cr_assert_str_eq(ruling(INO), "free 1");
    cr_assert_eq(c->rec.seq, 8u);
    cr_assert_eq(c->rec.plan.n, 0u);
    cr_assert_str_eq(c->rec.host, a.uuid, "kept for people");
    cr_assert_eq(tmps(), 0u);
}

Test(claim, free_keeps_only_the_highest, .init = setup, .fini = teardown)
{
    for (uint64_t g = 1; g <= 12; g++) {
        cr_assert_eq(acquire(g % 2 ? &a : &b, INO, g), 0);
        cr_assert_eq(release(g % 2 ? &a : &b, INO, g), 0);
        cr_assert_eq(claims(KEY), 1u);
    }
    cr_assert_str_eq(ruling(INO), "free 12");
}

/* A claim that was lost, as on storage that was set back: what rules then may be another host's. */
Test(claim, clear_removes_nothing_that_rules, .init = setup, .fini = teardown)
{
    cr_assert_eq(acquire(&b, INO, 2), 0);
    claim_clear(S, INO, 5);
    cr_assert_str_eq(ruling(INO), "held 2");
    cr_assert_eq(acquire(&a, INO, 6), 0);
    claim_clear(S, INO, 5); /* "has ruled" */
    cr_assert_str_eq(ruling(INO), "held 6");
    cr_assert_eq(claims(KEY), 1u);
}

Test(claim, same_host_other_installation_is_another_host, .init = setup, .fini = teardown)
{
    struct host clone = a;

    memcpy(clone.installation, b.installation, sizeof(dg_uuid));
    cr_assert_eq(acquire(&a, INO, 1), 0);
    cr_assert_str_eq(ruling(INO), "held 1");
    cr_assert_not(claim_is_of(&c->rec, &clone));
    tempstore_record(&clone, INO, 1, rec);
    cr_assert_eq(claim_update(S, rec), -CLAIM_LOST);
    cr_assert_eq(claim_free(S, rec), -CLAIM_LOST);
    cr_assert_str_eq(ruling(INO), "held 1");
}

/* ---- acquiring ---- */

Test(claim, acquire_lost, .init = setup, .fini = teardown)
{
    cr_assert_eq(acquire(&a, INO, 1), 0);
    cr_assert_eq(acquire(&b, INO, 1), -EBUSY);
    cr_assert_eq(tmps(), 0u);
    cr_assert_eq(claims(KEY), 1u);
    cr_assert_str_eq(ruling(INO), "held 1");
    cr_assert(claim_is_of(&c->rec, &a));
}

Test(claim, acquire_below_the_ruling_one, .init = setup, .fini = teardown)
{
    /* Host b read "free 1" and slept; a came, went, came again: 2 is gone, 3 rules. */
    for (uint64_t g = 1; g <= 3; g++) {
        cr_assert_eq(acquire(&a, INO, g), 0);
        if (g < 3)
            cr_assert_eq(release(&a, INO, g), 0);
    }
    cr_assert_eq(unlinkat(tempstore_claims(&temp, INO), KEY ".2", 0), 0);
    cr_assert_eq(acquire(&b, INO, 2), -EBUSY);
    cr_assert_eq(tmps(), 0u);
    cr_assert_eq(claims(KEY), 1u, "the late comer's name is gone again");
    cr_assert_str_eq(ruling(INO), "held 3");
    cr_assert(claim_is_of(&c->rec, &a));
}

/* claim_acquire() with so many free descriptors. */
static int acquire_with_few(unsigned n, bool *ret_left)
{
    struct rlimit all, few;
    int lowest = open("/dev/null", O_RDONLY | O_CLOEXEC);
    cr_assert(lowest >= 0);
    close(lowest);
    cr_assert_eq(getrlimit(RLIMIT_NOFILE, &all), 0);
    few = (struct rlimit){(rlim_t)lowest + n, all.rlim_max};
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &few), 0);
    int r = claim_acquire(S, rec, ret_left);
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &all), 0);
    return r;
}

Test(claim, a_claim_that_could_not_be_taken_back_is_said, .init = setup, .fini = teardown)
{
    bool left = true;
    cr_assert_eq(acquire(&a, INO, 1), 0); /* and the shard is open */
    cr_assert_eq(release(&a, INO, 1), 0);
    tempstore_record(&a, INO, 2, rec);
    cr_assert_eq(acquire_with_few(0, &left), -EMFILE, "no record");
    cr_assert(!left);
    cr_assert_str_eq(ruling(INO), "free 1");
    cr_assert_eq(acquire_with_few(1, &left), -EMFILE, "a record, linked, and not a look at it");
    cr_assert(left);
    cr_assert_str_eq(ruling(INO), "held 2");
    cr_assert_eq(release(&a, INO, 2), 0);
    cr_assert_str_eq(ruling(INO), "free 2");
}

Test(claim, acquire_wants_a_generation_and_a_held_step, .init = setup, .fini = teardown)
{
    cr_assert_eq(acquire(&a, INO, 0), -EINVAL);
    tempstore_record(&a, INO, 1, rec);
    rec->step = STEP_FREE;
    cr_assert_eq(claim_acquire(S, rec, &(bool){false}), -EINVAL);
    cr_assert_eq(claim_update(S, rec), -EINVAL);
    tempstore_record(&a, INO, 1, rec);
    snprintf(rec->daemon, sizeof(rec->daemon), "../../x");
    cr_assert_eq(claim_acquire(S, rec, &(bool){false}), -EINVAL);
    cr_assert_eq(claims(""), 0u);
    cr_assert_eq(tmps(), 0u);
}

Test(claim, acquire_steps_over_used_tmp_names, .init = setup, .fini = teardown)
{
    char name[128];

    /* What an earlier process of the same daemon uuid left. (The counter starts at 1 in each
     * process.) */
    cr_assert_eq(acquire(&a, INO, 1), 0);
    cr_assert_eq(release(&a, INO, 1), 0);
    for (unsigned i = 1; i < 60; i++) {
        snprintf(name, sizeof(name), "%s.%s.%u", b.uuid, b.daemon, i);
        put_file(temp.store.tmp_fd, name, "x", 1);
    }
    cr_assert_eq(acquire(&b, INO, 2), 0);
    cr_assert_str_eq(ruling(INO), "held 2");
    cr_assert_eq(tmps(), 59u);
}

/* ---- owning ---- */

Test(claim, superseded_owner_is_fenced, .init = setup, .fini = teardown)
{
    cr_assert_eq(acquire(&a, INO, 1), 0);
    cr_assert_eq(acquire(&b, INO, 2), 0); /* a takeover */
    tempstore_record(&a, INO, 1, rec);
    cr_assert_eq(claim_check(S, rec), -CLAIM_LOST);
    cr_assert_eq(claim_update(S, rec), -CLAIM_LOST);
    cr_assert_eq(claim_free(S, rec), -CLAIM_LOST);
    cr_assert_eq(rec->step, STEP_CLAIMED, "untouched on failure");
    cr_assert_eq(claims(KEY), 2u);
    cr_assert_str_eq(ruling(INO), "held 2");
    cr_assert(claim_is_of(&c->rec, &b));
}

Test(claim, owner_without_a_claim_is_fenced, .init = setup, .fini = teardown)
{
    tempstore_record(&a, INO, 2, rec);
    cr_assert_eq(claim_check(S, rec), -CLAIM_LOST);
    cr_assert_eq(claim_update(S, rec), -CLAIM_LOST);
    cr_assert_eq(claim_free(S, rec), -CLAIM_LOST);
    cr_assert_eq(acquire(&a, INO, 1), 0);
    tempstore_record(&a, INO, 2, rec);
    cr_assert_eq(claim_check(S, rec), -CLAIM_LOST);
    cr_assert_eq(claim_update(S, rec), -CLAIM_LOST);
    cr_assert_eq(claim_free(S, rec), -CLAIM_LOST);
    cr_assert_eq(claims(""), 1u);
}

Test(claim, update_after_free_is_refused, .init = setup, .fini = teardown)
{
    cr_assert_eq(acquire(&a, INO, 1), 0);
    cr_assert_eq(release(&a, INO, 1), 0);
    tempstore_record(&a, INO, 1, rec);
    rec->seq = 9;
    cr_assert_eq(claim_update(S, rec), -CLAIM_LOST);
    cr_assert_str_eq(ruling(INO), "free 1");
}

Test(claim, free_can_be_repeated, .init = setup, .fini = teardown)
{
    cr_assert_eq(acquire(&a, INO, 1), 0);
    cr_assert_eq(release(&a, INO, 1), 0);
    cr_assert_eq(release(&a, INO, 1), 0);
    cr_assert_str_eq(ruling(INO), "free 1");
    cr_assert_eq(release(&b, INO, 1), -CLAIM_LOST);
    cr_assert_eq(acquire(&b, INO, 2), 0);
    cr_assert_eq(release(&a, INO, 1), 0, "it was freed, whoever came since");
    cr_assert_str_eq(ruling(INO), "held 2");
    cr_assert(claim_is_of(&c->rec, &b));
}

Test(claim, another_daemon_of_the_same_host_may_go_on, .init = setup, .fini = teardown)
{
    struct host again = a;

    memcpy(again.daemon, b.daemon, sizeof(dg_uuid));
    cr_assert_eq(acquire(&a, INO, 1), 0);
    tempstore_record(&again, INO, 1, rec);
    rec->step = STEP_RESTORING;
    rec->seq = 5;
    cr_assert_eq(claim_update(S, rec), 0);
    cr_assert_str_eq(ruling(INO), "held 1");
    cr_assert_str_eq(c->rec.daemon, again.daemon);
    cr_assert_eq(claim_free(S, rec), 0);
}

Test(claim, forget, .init = setup, .fini = teardown)
{
    cr_assert_eq(acquire(&a, INO, 1), 0);
    cr_assert_eq(acquire(&b, INO, 2), 0);
    cr_assert_eq(acquire(&a, INO, 3), 0);
    cr_assert_eq(acquire(&a, INO + 1, 1), 0);
    cr_assert_eq(claim_forget(S, INO, 2), 0);
    cr_assert_str_eq(ruling(INO), "held 3");
    cr_assert_eq(claims(KEY), 1u);
    cr_assert_eq(claim_forget(S, INO, 3), 0);
    cr_assert_str_eq(ruling(INO), "none 0");
    cr_assert_eq(claim_forget(S, INO, 3), 0, "nothing left to do");
    cr_assert_str_eq(ruling(INO + 1), "held 1");
}

/* ---- what does not decode ---- */

Test(claim, names_that_are_no_claims, .init = setup, .fini = teardown)
{
    static const char *const names[] = {
        "x",
        KEY,
        KEY ".",
        KEY ".0",
        KEY ".01",
        KEY ".1x",
        KEY ".-1",
        KEY ".+1",
        KEY ". 1",
        KEY ".1.2",
        KEY ".18446744073709551616",
        KEY ".99999999999999999999999999999999999999999",
        KEY "0.1",
        "00000001234abcd.1",
        "000000001234ABCD.1",
        "000000001234abcg.1",
        "0x00000000000000.1",
        ".nfs000000001234abcd00000001",
        "claim",
    };
    unsigned stale;

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        put_file(tempstore_claims(&temp, INO), names[i], "garbage", 7);
    cr_assert_str_eq(ruling(INO), "none 0");
    cr_assert_eq(acquire(&a, INO, 1), 0);
    cr_assert_str_eq(ruling(INO), "held 1");
    cr_assert_eq(release(&a, INO, 1), 0);
    cr_assert_eq(sweep(&a, false, &stale), 0);
    cr_assert_eq(stale, 0u);
    cr_assert_eq(claim_forget(S, INO, 1), 0);
    cr_assert_eq(claims(""), (unsigned)(sizeof(names) / sizeof(names[0])) - 1u,
                 "but for the hidden one");
}

Test(claim, largest_numbers, .init = setup, .fini = teardown)
{
    cr_assert_eq(acquire(&a, UINT64_MAX, UINT64_MAX), 0);
    cr_assert_str_eq(ruling(UINT64_MAX), "held 18446744073709551615");
    cr_assert_eq(claims("ffffffffffffffff.18446744073709551615"), 1u);
}

/* What is ruling counts, even where a lower generation decodes. */
static void check_bad(int error)
{
    cr_assert_str_eq(ruling(INO), "bad 2");
    cr_assert_eq(c->error, error);
    tempstore_record(&a, INO, 2, rec);
    cr_assert_eq(claim_update(S, rec), error);
    cr_assert_eq(claim_free(S, rec), error);
    cr_assert_str_eq(ruling(INO), "bad 2");
}

Test(claim, damaged_records, .init = setup, .fini = teardown)
{
    char *text, *huge;
    size_t len;

    cr_assert_eq(acquire(&a, INO, 1), 0);
    tempstore_record(&a, INO, 2, rec);
    cr_assert_eq(record_encode(rec, &text, &len), 0);
    for (size_t n = 0; n < len; n += n < 4 ? 1 : 97) { /* empty, and truncated */
        put_file(tempstore_claims(&temp, INO), KEY ".2", text, n);
        check_bad(-EBADMSG);
    }
    text[len / 2] ^= 1;
    put_file(tempstore_claims(&temp, INO), KEY ".2", text, len);
    check_bad(-EBADMSG);
    free(text);

    huge = calloc(1, DG_RECORD_MAX + 1);
    cr_assert_not_null(huge);
    put_file(tempstore_claims(&temp, INO), KEY ".2", huge, DG_RECORD_MAX + 1);
    check_bad(-EBADMSG);
    free(huge);
}

Test(claim, record_of_another_claim, .init = setup, .fini = teardown)
{
    cr_assert_eq(acquire(&a, INO, 1), 0);
    tempstore_record(&a, INO, 3, rec);
    put_record(tempstore_claims(&temp, INO), KEY ".2", rec);
    check_bad(-EBADMSG);
    tempstore_record(&a, INO + 1, 2, rec);
    put_record(tempstore_claims(&temp, INO), KEY ".2", rec);
    check_bad(-EBADMSG);
}

Test(claim, no_regular_file, .init = setup, .fini = teardown)
{
    cr_assert_eq(acquire(&a, INO, 1), 0);
    cr_assert_eq(symlinkat(KEY ".1", tempstore_claims(&temp, INO), KEY ".2"), 0);
    check_bad(-EBADMSG);
    cr_assert_eq(unlinkat(tempstore_claims(&temp, INO), KEY ".2", 0), 0);
    cr_assert_eq(mkdirat(tempstore_claims(&temp, INO), KEY ".2", 0700), 0);
    check_bad(-EBADMSG);
    cr_assert_eq(unlinkat(tempstore_claims(&temp, INO), KEY ".2", AT_REMOVEDIR), 0);
    cr_assert_eq(mkfifoat(tempstore_claims(&temp, INO), KEY ".2", 0600), 0);
    check_bad(-EBADMSG);
}

Test(claim, newer_version, .init = setup, .fini = teardown)
{
    char *text, *sum, newer[8192];
    size_t len;
    int n;

    tempstore_record(&a, INO, 2, rec);
    cr_assert_eq(record_encode(rec, &text, &len), 0);
    sum = strstr(text, "\nsum=");
    cr_assert_not_null(sum);
    sum[1] = '\0';
    n = snprintf(newer, sizeof(newer), "%s 2%s", DG_RECORD_MAGIC,
                 text + strlen(DG_RECORD_MAGIC " 1"));
    n += snprintf(newer + n, sizeof(newer) - (size_t)n, "sum=%08lx\n",
                  crc32(0, (const Bytef *)newer, (uInt)n));
    free(text);
    put_file(tempstore_claims(&temp, INO), KEY ".2", newer, (size_t)n);
    check_bad(-EPROTONOSUPPORT);
}

/* ---- all claims ---- */

struct seen {
    unsigned n, held, free, bad;
    uint64_t inos, generations; /* sums */
    int answer;
};

static int see(void *arg, uint64_t ino, const struct claim *claim)
{
    struct seen *seen = arg;

    seen->n++;
    seen->held += claim->kind == CLAIM_HELD;
    seen->free += claim->kind == CLAIM_FREE;
    seen->bad += claim->kind == CLAIM_BAD;
    seen->inos += ino;
    seen->generations += claim->generation;
    return seen->answer;
}

Test(claim, each, .init = setup, .fini = teardown)
{
    struct seen seen = {0};

    cr_assert_eq(claim_each(S, see, &seen), 0);
    cr_assert_eq(seen.n, 0u);
    for (uint64_t ino = 1; ino <= 40; ino++)
        for (uint64_t g = 9; g <= 11; g++) /* 11 is the greatest number, not the greatest text */
            cr_assert_eq(acquire(&a, ino, g), 0);
    cr_assert_eq(release(&a, 7, 11), 0);
    put_file(tempstore_claims(&temp, 8), "0000000000000008.12", "", 0);
    cr_assert_eq(claim_each(S, see, &seen), 0);
    cr_assert_eq(seen.n, 40u);
    cr_assert_eq(seen.held, 38u);
    cr_assert_eq(seen.free, 1u);
    cr_assert_eq(seen.bad, 1u);
    cr_assert_eq(seen.inos, 820u);
    cr_assert_eq(seen.generations, 441u);
    seen = (struct seen){.answer = -ECANCELED};
    cr_assert_eq(claim_each(S, see, &seen), -ECANCELED);
    cr_assert_eq(seen.n, 1u);
}

Test(claim, sweep, .init = setup, .fini = teardown)
{
    static const char *const strangers[] = {
        "x", "a.b.1", "0000000a-1111-4111-8111-111111111111.x.1",
        "0000000a-1111-4111-8111-111111111111.0000000b-4444-4444-8444-44444444444G.1"};
    struct host earlier = a;
    char name[128];
    unsigned stale = 77;

    memcpy(earlier.daemon, b.daemon, sizeof(dg_uuid));
    /* What a crash between link and unlink leaves: two names of one record. */
    tempstore_record(&earlier, INO, 1, rec);
    snprintf(name, sizeof(name), "%s.%s.1", earlier.uuid, earlier.daemon);
    put_record(temp.store.tmp_fd, name, rec);
    cr_assert_eq(linkat(temp.store.tmp_fd, name, tempstore_claims(&temp, INO), KEY ".1", 0), 0);
    snprintf(name, sizeof(name), "%s.%s.2", earlier.uuid, earlier.daemon);
    put_file(temp.store.tmp_fd, name, "", 0);
    snprintf(name, sizeof(name), "%s.%s.3", a.uuid, a.daemon); /* this daemon's own */
    put_file(temp.store.tmp_fd, name, "", 0);
    snprintf(name, sizeof(name), "%s.%s.4", b.uuid, b.daemon); /* another host's */
    put_file(temp.store.tmp_fd, name, "", 0);
    for (unsigned i = 0; i < 4; i++)
        put_file(temp.store.tmp_fd, strangers[i], "", 0);

    cr_assert_eq(acquire(&b, INO + 1, 1), 0);
    cr_assert_eq(acquire(&b, INO + 1, 2), 0);
    cr_assert_eq(acquire(&b, INO + 1, 3), 0);
    cr_assert_eq(acquire(&b, INO + 2, 4), 0);
    put_file(tempstore_claims(&temp, INO + 2), "000000001234abcf.5", "bad", 3);

    cr_assert_eq(sweep(&a, true, &stale), 0);
    cr_assert_eq(stale, 4u);
    cr_assert_eq(tmps(), 8u);
    cr_assert_eq(claims(""), 6u);
    cr_assert_eq(sweep(&a, false, &stale), 0);
    cr_assert_eq(stale, 4u);
    cr_assert_eq(tmps(), 6u);
    cr_assert_eq(claims(""), 4u);
    cr_assert_str_eq(ruling(INO), "held 1");
    cr_assert_str_eq(ruling(INO + 1), "held 3");
    cr_assert_eq(claims("000000001234abcf"), 2u, "below a damaged one nothing is removed");
    cr_assert_eq(sweep(&a, false, &stale), 0);
    cr_assert_eq(stale, 0u);
}

/* ---- steps that fail ---- */

#ifdef DG_HOOKS
Test(claim, given_back_without_memory, .init = setup, .fini = teardown)
{
    bool left = true;

    tempstore_record(&a, INO, 1, rec);
    fail_next("claim.dirsync", 1);
    fake_mallocs = 1; /* the record's text, before anything is made */
    fake_mallocs_all = true;
    int r = claim_acquire(S, rec, &left);
    fake_mallocs = -1;
    fake_mallocs_all = false;
    cr_assert_eq(r, -EIO);
    cr_assert_not(left);
    cr_assert_str_eq(ruling(INO), "free 1");
}

static void check_acquire_fails(const char *step)
{
    cr_assert_eq(acquire(&a, INO, 1), -EIO, "%s", step);
    cr_assert_eq(tmps(), 0u, "%s", step);
}

Test(claim, acquire_that_fails_leaves_nothing_held, .init = setup, .fini = teardown)
{
    fail_next("claim.create", 1);
    check_acquire_fails("create");
    cr_assert_str_eq(ruling(INO), "none 0");
    fail_next("claim.link", 1);
    check_acquire_fails("link");
    cr_assert_str_eq(ruling(INO), "none 0");
    fail_next("claim.dirsync", 1);
    check_acquire_fails("dirsync");
    cr_assert_str_eq(ruling(INO), "free 1", "its generation is used up, and free");
    cr_assert_eq(acquire(&b, INO, 2), 0);
}

Test(claim, tmp_name_that_stays_does_no_harm, .init = setup, .fini = teardown)
{
    unsigned stale;

    fail_next("claim.unlink", 1);
    cr_assert_eq(acquire(&a, INO, 1), 0);
    cr_assert_eq(tmps(), 1u);
    cr_assert_eq(claim_check(S, rec), 0);
    cr_assert_eq(claim_update(S, rec), 0);
    memcpy(a.daemon, b.daemon, sizeof(dg_uuid)); /* the next daemon */
    cr_assert_eq(sweep(&a, false, &stale), 0);
    cr_assert_eq(stale, 1u);
    cr_assert_str_eq(ruling(INO), "held 1");
}

Test(claim, update_and_free_that_fail, .init = setup, .fini = teardown)
{
    cr_assert_eq(acquire(&a, INO, 1), 0);
    rec->seq = 5;
    fail_next("claim.rename", 1);
    cr_assert_eq(claim_update(S, rec), -EIO);
    cr_assert_eq(tmps(), 0u);
    cr_assert_str_eq(ruling(INO), "held 1");
    cr_assert_eq(c->rec.seq, 1u);
    fail_next("claim.dirsync", 1);
    cr_assert_eq(claim_update(S, rec), -EIO);
    cr_assert_eq(tmps(), 0u);
    fail_next("claim.dirsync", 1);
    cr_assert_eq(claim_free(S, rec), -EIO);
    cr_assert_eq(rec->step, STEP_CLAIMED, "untouched on failure");
    cr_assert_eq(claim_free(S, rec), 0, "repeated");
    cr_assert_eq(rec->step, STEP_FREE);
}

Test(claim, forget_that_stops_half_way_resurrects_nothing, .init = setup, .fini = teardown)
{
    for (uint64_t g = 1; g <= 3; g++)
        cr_assert_eq(acquire(&a, INO, g), 0);
    for (unsigned at = 1; at <= 2; at++) {
        fail_next("claim.remove", 2);
        cr_assert_eq(claim_forget(S, INO, 3), -EIO);
        cr_assert_eq(claims(""), 3u - at);
        cr_assert_str_eq(ruling(INO), "held 3");
    }
    fail_next("claim.dirsync", 1);
    cr_assert_eq(claim_forget(S, INO, 3), -EIO);
    cr_assert_str_eq(ruling(INO), "held 3", "not before the others are gone for good");
    fail_next("claim.floor", 1);
    cr_assert_eq(claim_forget(S, INO, 3), -EIO);
    cr_assert_str_eq(ruling(INO), "held 3", "nor before its number is noted");
    cr_assert_eq(claim_forget(S, INO, 3), 0);
    cr_assert_eq(claims(""), 0u);
}
#endif
