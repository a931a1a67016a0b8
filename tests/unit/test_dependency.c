/* test_dependency.c: their names, when they count, and what is swept. */
#include "unit.h"

#include "core/dependency.h"
#include "tempstore.h"

static struct tempstore temp;
static struct host a;
static struct claim *c;
static struct record *rec;

#define S (&temp.store)
#define BELOW 0x10ull
#define ABOVE 0x20ull

static void setup(void)
{
    cr_assert_eq(tempstore_make(&temp), 0);
    a = tempstore_host(0xa);
    c = calloc(1, sizeof(*c));
    rec = calloc(1, sizeof(*rec));
    cr_assert(c && rec);
}

static void teardown(void)
{
    tempstore_remove(&temp);
    free(c);
    free(rec);
}

static void hold(uint64_t generation)
{
    tempstore_record(&a, ABOVE, generation, rec);
    cr_assert_eq(claim_acquire(S, rec, &(bool){false}), 0);
}

static void make(uint64_t below, uint64_t generation)
{
    struct dependency m = {below, ABOVE, generation};

    cr_assert_eq(dependency_make(S, &m, "text\n"), 0);
}

static size_t count(uint64_t below)
{
    struct dependency *m = NULL;
    size_t n = 0;

    cr_assert_eq(dependency_list(S, below, &m, &n), 0);
    free(m);
    return n;
}

static int counts(uint64_t generation)
{
    struct dependency m = {BELOW, ABOVE, generation};

    return dependency_counts(S, &m, c);
}

Test(dependency, names)
{
    static const char *const bad[] = {"",
                                      "0000000000000010",
                                      "0000000000000010-",
                                      "0000000000000010-0000000000000020",
                                      "0000000000000010-0000000000000020.",
                                      "0000000000000010-0000000000000020.0",
                                      "0000000000000010-0000000000000020.01",
                                      "0000000000000010-0000000000000020.1x",
                                      "000000000000001-00000000000000020.1",
                                      "000000000000001A-0000000000000020.1",
                                      "0000000000000010.0000000000000020.1",
                                      "0000000000000010-0000000000000020.18446744073709551616"};
    struct dependency m = {0x1234abcd, UINT64_MAX, UINT64_MAX}, back;
    char name[DEPENDENCY_NAME_SIZE];

    dependency_name(&m, name);
    cr_assert_str_eq(name, "000000001234abcd-ffffffffffffffff.18446744073709551615");
    cr_assert(dependency_name_parse(name, &back));
    cr_assert(back.below == m.below && back.above == m.above && back.generation == m.generation);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        cr_assert_not(dependency_name_parse(bad[i], &back), "%s", bad[i]);
}

Test(dependency, a_new_store_has_none, .init = setup, .fini = teardown)
{
    unsigned n = 1;

    cr_assert_eq(count(0), 0);
    cr_assert_eq(dependency_drop(S, ABOVE, 1, &(uint64_t){BELOW}, 1), 0);
    cr_assert_eq(dependency_sweep(S, false, &n), 0);
    cr_assert_eq(n, 0);
}

Test(dependency, counts_only_while_its_claim_is_held, .init = setup, .fini = teardown)
{
    make(BELOW, 1);
    make(BELOW, 1); /* twice is as good */
    cr_assert_eq(count(BELOW), 1);
    cr_assert_eq(counts(1), 0, "no claim at all");
    hold(1);
    cr_assert_eq(counts(1), 1);
    cr_assert_eq(counts(2), 0, "a generation that is not there yet");
    cr_assert_eq(claim_free(S, rec), 0);
    cr_assert_eq(counts(1), 0, "free");
    hold(2);
    cr_assert_eq(counts(1), 0, "a successor rules");
    make(BELOW, 2);
    cr_assert_eq(counts(2), 1);
}

Test(dependency, a_claim_that_does_not_decode_counts, .init = setup, .fini = teardown)
{
    int fd = openat(tempstore_claims(&temp, ABOVE), "0000000000000020.1", O_WRONLY | O_CREAT, 0600);

    cr_assert_geq(fd, 0);
    close(fd);
    cr_assert_eq(counts(1), 1);
    cr_assert_eq(c->kind, CLAIM_BAD);
}

Test(dependency, drop_and_sweep_remove_no_other, .init = setup, .fini = teardown)
{
    struct dependency other = {BELOW, 0x99, 1};
    unsigned n = 0;

    hold(1);
    make(BELOW, 1);
    make(0x11, 1);
    cr_assert_eq(dependency_make(S, &other, ""), 0);
    cr_assert_eq(count(0), 3);
    cr_assert_eq(count(BELOW), 2);
    cr_assert_eq(dependency_sweep(S, true, &n), 0);
    cr_assert_eq(n, 1);
    cr_assert_eq(count(0), 3, "a dry run removes nothing");
    cr_assert_eq(dependency_sweep(S, false, &n), 0);
    cr_assert_eq(n, 1);
    cr_assert_eq(count(0), 2);
    const uint64_t both[] = {BELOW, 0x11};
    cr_assert_eq(dependency_drop(S, ABOVE, 2, both, 2), 0);
    cr_assert_eq(count(0), 2);
    cr_assert_eq(dependency_drop(S, ABOVE, 1, both, 2), 0);
    cr_assert_eq(count(0), 0);
}

Test(dependency, drop_of_a_live_hold_removes_what_it_names, .init = setup, .fini = teardown)
{
    struct dependency other = {0x11, 0x99, 1};
    const uint64_t former[] = {0x11, 0x12};

    hold(1);
    make(BELOW, 1);
    make(0x11, 1);
    make(0x11, 2);
    cr_assert_eq(dependency_make(S, &other, ""), 0);
    cr_assert_eq(dependency_drop(S, ABOVE, 1, former, 2), 0);
    cr_assert_eq(count(BELOW), 1);
    cr_assert_eq(count(0x11), 2, "another hold's and another image's");
    cr_assert_eq(dependency_drop(S, ABOVE, 1, NULL, 0), 0);
    cr_assert_eq(count(BELOW), 1);
    make(0x11, 1); /* needed again */
    cr_assert_eq(count(0x11), 3);
}
