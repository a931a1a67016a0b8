/* test_claim_floor.c: the number of a claim is never given out twice, also when its image and every
 * trace of it are gone. */
#include "unit.h"

#include <fcntl.h>

#include "hooktest.h"
#include "tempstore.h"

static struct tempstore temp;
static struct host host;
static struct claim *c;
static struct record *rec;
#define S (&temp.store)

static void setup(void)
{
    cr_assert_eq(tempstore_make(&temp), 0);
    host = tempstore_host(1);
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

#define FLOOR_TEST(name) Test(claim_floor, name, .init = setup, .fini = teardown)

static uint64_t next(uint64_t ino)
{
    uint64_t n = 0;

    cr_assert_eq(claim_read(S, ino, c), 0);
    cr_assert_eq(claim_next(S, c, &n), 0);
    return n;
}

/* Claims the inode number with a chosen generation, and frees it. */
static void use(uint64_t ino, uint64_t generation, const struct io_handle *handle)
{
    tempstore_record(&host, ino, generation, rec);
    if (handle)
        rec->handle = *handle;
    cr_assert_eq(claim_acquire(S, rec, &(bool){false}), 0);
    cr_assert_eq(claim_free(S, rec), 0);
}

#ifdef DG_HOOKS
static int absent(const char *name)
{
    return strcmp(name, "claim.floor.read") == 0 ? -ENOENT : 0;
}

FLOOR_TEST(an_absence_is_believed_only_where_the_listing_has_none)
{
    uint64_t n;

    hooktest = absent;
    cr_assert_eq(next(7), 1u);
    hooktest = NULL;
    use(7, 5, NULL);
    cr_assert_eq(claim_forget(S, 7, 5), 0);
    hooktest = absent;
    cr_assert_eq(claim_read(S, 8, c), 0);
    cr_assert_eq(claim_next(S, c, &n), -EIO);
    hooktest = NULL;
    cr_assert_eq(next(8), 6u);
}
#endif

FLOOR_TEST(numbers_only_rise)
{
    cr_assert_eq(next(7), 1u);
    use(7, 1, NULL);
    cr_assert_eq(next(7), 2u);
    use(7, 5, NULL);
    use(8, 3, NULL);
    cr_assert_eq(claim_forget(S, 7, 5), 0);
    cr_assert_eq(tempstore_claims_count(&temp, "0000000000000007"), 0u);
    cr_assert_eq(next(7), 6u, "its own number is forgotten, the next one is not");
    cr_assert_eq(next(9), 6u, "nothing is known of this one: it may have had as many");
    cr_assert_eq(claim_forget(S, 8, 3), 0, "a smaller one");
    cr_assert_eq(next(8), 6u);
    cr_assert_eq(next(7), 6u, "changes nothing");
    use(7, 6, NULL);
    cr_assert_eq(next(7), 7u, "a mark counts for itself");
    cr_assert_eq(next(9), 6u);
}

FLOOR_TEST(a_number_that_nobody_counted_to_stays)
{
    uint64_t n;

    use(7, UINT64_MAX, NULL);
    cr_assert_eq(claim_forget(S, 7, UINT64_MAX), -EFBIG);
    cr_assert_eq(claim_read(S, 7, c), 0);
    cr_assert_eq(c->kind, CLAIM_FREE);
    cr_assert_eq(claim_next(S, c, &n), -EOVERFLOW);
    cr_assert_eq(next(8), 1u, "and is not everybody's");
}

FLOOR_TEST(a_floor_that_cannot_be_raised_keeps_the_mark)
{
    use(7, 4, NULL);
    cr_assert_eq(mkdirat(S->dir_fd, "floor", 0700), 0);
    cr_assert_lt(claim_forget(S, 7, 4), 0);
    cr_assert_eq(next(7), 5u);
    cr_assert_eq(claim_read(S, 8, c), 0);
    uint64_t n;
    cr_assert_eq(claim_next(S, c, &n), -EBADMSG, "in doubt it refuses");
}

static void make_file(const char *name, struct io_handle *ret)
{
    int fd = openat(S->root_fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    cr_assert_geq(fd, 0);
    cr_assert_eq(io_handle_get(fd, ret), 0);
    close(fd);
}

FLOOR_TEST(only_free_claims_of_what_is_gone_are_swept)
{
    struct io_handle gone, there;
    unsigned n = 99;

    make_file("gone", &gone);
    make_file("there", &there);
    if (gone.len == 0)
        cr_skip_test("no file handles here");
    use(7, 4, &gone);
    use(8, 2, &there);
    use(9, 3, &(struct io_handle){0});
    tempstore_record(&host, 10, 6, rec);
    rec->handle = gone;
    cr_assert_eq(claim_acquire(S, rec, &(bool){false}), 0);
    cr_assert_eq(claim_sweep_gone(S, &n), 0);
    cr_assert_eq(n, 0u);
    cr_assert_eq(unlinkat(S->root_fd, "gone", 0), 0);
    cr_assert_eq(claim_sweep_gone(S, &n), 0);
    cr_assert_eq(n, 1u);
    cr_assert_eq(tempstore_claims_count(&temp, ""), 3u);
    cr_assert_eq(tempstore_claims_count(&temp, "0000000000000007"), 0u);
    cr_assert_eq(next(7), 5u);
    cr_assert_eq(next(8), 3u);
    cr_assert_eq(next(9), 4u);
    cr_assert_eq(next(10), 7u);
}
