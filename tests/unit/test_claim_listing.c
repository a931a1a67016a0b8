/* test_claim_listing.c: a listing of claims/ that misses an entry which is being renamed over, as
 * on btrfs, changes nothing. The directory is honest here, so getdents64(2) is of this file: it
 * leaves a name out as often as a test asks for. */
#include "unit.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>

#include "hooktest.h"
#include "tempstore.h"

#define INO 0x42

static char missed[64];    /* the name that is left out */
static atomic_uint misses; /* of how many listings */
static atomic_uint listings;

/* Without the entry that is to be missed. */
static ssize_t leave_out(char *buf, ssize_t n)
{
    for (ssize_t at = 0; at < n && misses > 0;) {
        struct dirent64 *e = (struct dirent64 *)(buf + at);
        ssize_t len = e->d_reclen;
        if (strcmp(e->d_name, missed) != 0) {
            at += len;
            continue;
        }
        misses--;
        n -= len;
        memmove(e, (char *)e + len, (size_t)(n - at));
        break;
    }
    return n;
}

ssize_t getdents64(int fd, void *buf, size_t size)
{
    static _Atomic(ssize_t(*)(int, void *, size_t)) found; /* any thread of any test comes here */
    ssize_t (*real)(int, void *, size_t) = atomic_load(&found);
    ssize_t n, kept = 0;

    if (!real) {
        *(void **)&real = dlsym(RTLD_NEXT, "getdents64");
        atomic_store(&found, real);
    }
    do {
        n = real(fd, buf, size);
        if (n > 0)
            kept = leave_out(buf, n);
    } while (n > 0 && kept == 0);
    if (n == 0)
        listings++;
    return n > 0 ? kept : n;
}

static struct tempstore tmp;
static struct host host;
static struct record rec;
#define S (&tmp.store)

static void setup(void)
{
    misses = 0;
    cr_assert_eq(tempstore_make(&tmp), 0);
    host = tempstore_host(1);
    tempstore_record(&host, INO, 1, &rec);
}

static void teardown(void)
{
    tempstore_remove(&tmp);
}

#define LISTING_TEST(name) Test(claim_listing, name, .init = setup, .fini = teardown)

static void miss(uint64_t generation, unsigned times)
{
    snprintf(missed, sizeof(missed), "%016x.%llu", INO, (unsigned long long)generation);
    misses = times;
    listings = 0;
}

LISTING_TEST(the_owner_is_not_fenced)
{
    cr_assert_eq(claim_acquire(S, &rec, &(bool){false}), 0);
    miss(1, 1);
    cr_assert_eq(claim_check(S, &rec), 0, "missed once");
    cr_assert_eq(misses, 0, "it was left out");
    miss(1, 99);
    cr_assert_eq(claim_check(S, &rec), 0, "missed by every listing: its name is asked");
    cr_assert_eq(listings, 2);
    rec.seq++;
    miss(1, 99);
    cr_assert_eq(claim_update(S, &rec), 0);
    miss(1, 99);
    cr_assert_eq(claim_free(S, &rec), 0);
    miss(1, 0);
}

LISTING_TEST(an_acquisition_is_not_taken_for_lost)
{
    miss(1, 1);
    cr_assert_eq(claim_acquire(S, &rec, &(bool){false}), 0);
    cr_assert_eq(misses, 0);
}

LISTING_TEST(one_who_looks_does_not_find_it_unclaimed)
{
    struct claim *c = calloc(1, sizeof(*c));

    cr_assert_eq(claim_acquire(S, &rec, &(bool){false}), 0);
    miss(1, 1);
    cr_assert_eq(claim_read(S, INO, c), 0);
    cr_assert_eq(c->kind, CLAIM_HELD);
    cr_assert_eq(c->generation, 1);
    cr_assert_eq(misses, 0);
    free(c);
}

LISTING_TEST(what_is_gone_or_overruled_is_still_noticed)
{
    struct host other = tempstore_host(2);
    struct record theirs;

    cr_assert_eq(claim_acquire(S, &rec, &(bool){false}), 0);
    tempstore_record(&other, INO, 2, &theirs);
    cr_assert_eq(claim_acquire(S, &theirs, &(bool){false}), 0);
    miss(1, 99);
    cr_assert_eq(claim_check(S, &rec), -CLAIM_LOST, "a successor rules");
    miss(2, 1);
    cr_assert_eq(claim_check(S, &theirs), 0);
    cr_assert_eq(unlinkat(tempstore_claims(&tmp, INO), missed, 0), 0);
    miss(2, 0);
    cr_assert_eq(claim_check(S, &theirs), -CLAIM_LOST, "removed");
}

LISTING_TEST(one_listing_is_enough_when_nothing_is_missed)
{
    struct claim *c = calloc(1, sizeof(*c));

    cr_assert_eq(claim_acquire(S, &rec, &(bool){false}), 0);
    miss(1, 0);
    cr_assert_eq(claim_check(S, &rec), 0);
    cr_assert_eq(listings, 1);
    cr_assert_eq(claim_read(S, INO, c), 0);
    cr_assert_eq(listings, 2);
    free(c);
}

#ifdef DG_HOOKS
static int sick_error;

static int sick(const char *name)
{
    return strcmp(name, "claim.exists") == 0 ? sick_error : 0;
}

LISTING_TEST(storage_that_does_not_answer_for_a_name_does_not_say_that_it_is_gone)
{
    struct claim *c = calloc(1, sizeof(*c));
    static const int errors[] = {-EIO, -ETIMEDOUT, -EACCES, -ESTALE};

    cr_assert_eq(claim_acquire(S, &rec, &(bool){false}), 0);
    hooktest = sick;
    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
        /* ESTALE would say that an image's file is gone */
        int want = errors[i] == -ESTALE ? -EIO : errors[i];

        sick_error = errors[i];
        miss(1, 99);
        cr_assert_eq(claim_check(S, &rec), want, "%s", strerror(-errors[i]));
        miss(1, 99);
        cr_assert_eq(claim_read_known(S, INO, 1, c), want);
        miss(1, 99);
        cr_assert_eq(claim_free(S, &rec), want);
    }
    sick_error = -ENOENT;
    miss(1, 99);
    cr_assert_eq(claim_check(S, &rec), -CLAIM_LOST);
    hooktest = NULL;
    miss(1, 0);
    free(c);
}
#endif

LISTING_TEST(an_older_mark_does_not_answer_for_a_generation_that_is_known)
{
    struct claim *c = calloc(1, sizeof(*c));
    struct record next;

    cr_assert_eq(claim_acquire(S, &rec, &(bool){false}), 0);
    cr_assert_eq(claim_free(S, &rec), 0);
    tempstore_record(&host, INO, 2, &next);
    cr_assert_eq(claim_acquire(S, &next, &(bool){false}), 0);
    miss(2, 99);
    cr_assert_eq(claim_read_known(S, INO, 2, c), 0);
    cr_assert_eq(c->generation, 2, "its name is asked");
    cr_assert_eq(c->kind, CLAIM_HELD);
    cr_assert_eq(unlinkat(tempstore_claims(&tmp, INO), missed, 0), 0);
    cr_assert_eq(claim_read_known(S, INO, 2, c), 0);
    cr_assert_eq(c->generation, 1);
    cr_assert_eq(c->kind, CLAIM_FREE);
    miss(2, 0);
    free(c);
}
