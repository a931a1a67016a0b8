/* test_shard.c: which directory a key's names are in, and what is never read as "there is none". */
#include "unit.h"

#include <fcntl.h>

#include "hooktest.h"
#include "tempstore.h"

static struct tempstore temp;
#define S (&temp.store)
#define INO 0x1234abcdull

static void setup(void)
{
    cr_assert_eq(tempstore_make(&temp), 0);
}

static void teardown(void)
{
    tempstore_remove(&temp);
}

/* How many keys of start, start + stride, ... are in the fullest shard. */
static unsigned fullest(uint64_t start, uint64_t stride, unsigned n)
{
    unsigned in[DG_SHARDS] = {0}, most = 0;

    for (unsigned i = 0; i < n; i++) {
        unsigned shard = dg_shard(start + i * stride);

        cr_assert_lt(shard, DG_SHARDS);
        in[shard]++;
    }
    for (unsigned i = 0; i < DG_SHARDS; i++)
        most = DG_MAX(most, in[i]);
    return most;
}

Test(shard, keys_are_spread_whatever_their_stride)
{
    static const uint64_t starts[] = {1, 12, 0x80000001, UINT64_C(1) << 40, UINT64_MAX - 500000};
    static const uint64_t strides[] = {1,   2,    3,   8,    16,   32,   64,    100,
                                       128, 256,  512, 1000, 1024, 4096, 65536, UINT64_C(1) << 32,
                                       987, 46368};

    /* Mean 390; of random keys the fullest of 256 has about 390 + 3 * 20. */
    for (size_t a = 0; a < sizeof(starts) / sizeof(starts[0]); a++)
        for (size_t b = 0; b < sizeof(strides) / sizeof(strides[0]); b++)
            cr_assert_lt(fullest(starts[a], strides[b], 100000), 500u, "start %zu stride %zu", a,
                         b);
}

/* A contract with every other host: these never change. */
Test(shard, known_keys)
{
    cr_assert_eq(dg_shard(0), 0x00u);
    cr_assert_eq(dg_shard(1), 0xb4u);
    cr_assert_eq(dg_shard(2), 0x3au);
    cr_assert_eq(dg_shard(0x1234abcd), 0xa2u);
    cr_assert_eq(dg_shard(UINT64_MAX), 0x64u);
}

Test(shard, key_of_a_name)
{
    static const char *const bad[] = {"",
                                      "00",
                                      "000000001234abc",
                                      "000000001234abcG.1",
                                      "000000001234ABCD.1",
                                      ".nfs00000000123400000001"};
    uint64_t key = 7;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        cr_assert(!shard_key(bad[i], &key) && key == 7, "%s", bad[i]);
    cr_assert(shard_key("000000001234abcd.1", &key));
    cr_assert_eq(key, INO);
    cr_assert(shard_key("ffffffffffffffff-", &key));
    cr_assert_eq(key, UINT64_MAX);
}

/* A host that does not see the directory must not take the image for free. */
Test(shard, a_missing_one_is_never_no_claim, .init = setup, .fini = teardown)
{
    struct host a = tempstore_host(1), b = tempstore_host(2);
    struct claim *c = malloc(sizeof(*c));
    struct record *rec = malloc(sizeof(*rec));
    struct store other;
    char hidden[128], name[128];
    uint64_t next;

    tempstore_record(&a, INO, 1, rec);
    cr_assert_eq(claim_acquire(S, rec, &(bool){false}), 0);
    cr_assert_eq(store_open(temp.path, &other, NULL), 0);
    snprintf(name, sizeof(name), "%s/.diskguard/claims/" DG_SHARD_FORMAT, temp.path, dg_shard(INO));
    snprintf(hidden, sizeof(hidden), "%s/hidden", temp.path);
    cr_assert_eq(rename(name, hidden), 0);
    cr_assert_eq(claim_read(&other, INO, c), -EIO);
    cr_assert_eq(claim_read_known(&other, INO, 1, c), -EIO);
    cr_assert_eq(claim_check(&other, rec), -EIO);
    cr_assert_eq(claim_each(&other, NULL, NULL), -EIO);
    c->kind = CLAIM_NONE;
    c->generation = 0;
    cr_assert_eq(claim_next(&other, c, &next), 0);
    tempstore_record(&b, INO, next, rec);
    cr_assert_eq(claim_acquire(&other, rec, &(bool){false}), -EIO);
    cr_assert_eq(tempstore_count(S->tmp_fd, ""), 0u);
    /* who has it open needs no name */
    cr_assert_eq(claim_read(S, INO, c), 0);
    cr_assert_eq(c->kind, CLAIM_HELD);
    cr_assert_eq(rename(hidden, name), 0);
    cr_assert_eq(claim_read(&other, INO, c), 0);
    cr_assert(c->kind == CLAIM_HELD && c->generation == 1);
    store_close(&other);
    free(rec);
    free(c);
}

#ifdef DG_HOOKS
static int sick_error;

static int sick(const char *name)
{
    return strcmp(name, "shard.open") == 0 ? sick_error : 0;
}

Test(shard, one_that_cannot_be_opened_is_an_error, .init = setup, .fini = teardown)
{
    struct claim *c = malloc(sizeof(*c));

    hooktest = sick;
    sick_error = -EMFILE;
    cr_assert_eq(claim_read(S, INO, c), -EMFILE);
    sick_error = 0;
    cr_assert_eq(claim_read(S, INO, c), 0);
    cr_assert_eq(c->kind, CLAIM_NONE);
    hooktest = NULL;
    free(c);
}
#endif

Test(shard, a_name_in_another_shard_is_nobodys, .init = setup, .fini = teardown)
{
    struct claim *c = malloc(sizeof(*c));
    int fd = openat(tempstore_claims(&temp, 1), "000000001234abcd.9", O_CREAT | O_WRONLY, 0600);

    cr_assert(fd >= 0);
    close(fd);
    cr_assert_eq(claim_read(S, INO, c), 0);
    cr_assert_eq(c->kind, CLAIM_NONE);
    cr_assert_eq(claim_each(S, NULL, NULL), 0, "none is shown");
    free(c);
}

Test(shard, a_claim_changes_no_other_shard, .init = setup, .fini = teardown)
{
    struct host a = tempstore_host(1);
    struct record *rec = malloc(sizeof(*rec));
    struct stat before, after;

    cr_assert_neq(dg_shard(INO), dg_shard(1));
    cr_assert_eq(fstat(tempstore_claims(&temp, 1), &before), 0);
    do { /* until ctimes have gone on */
        cr_assert_eq(fchmod(temp.store.root_fd, 0700), 0);
        cr_assert_eq(fstat(temp.store.root_fd, &after), 0);
    } while (memcmp(&before.st_ctim, &after.st_ctim, sizeof(before.st_ctim)) == 0);
    tempstore_record(&a, INO, 1, rec);
    cr_assert_eq(claim_acquire(S, rec, &(bool){false}), 0);
    cr_assert_eq(fstat(tempstore_claims(&temp, 1), &after), 0);
    cr_assert_eq(memcmp(&before.st_ctim, &after.st_ctim, sizeof(before.st_ctim)), 0);
    cr_assert_eq(fstat(tempstore_claims(&temp, INO), &after), 0);
    cr_assert_neq(memcmp(&before.st_ctim, &after.st_ctim, sizeof(before.st_ctim)), 0);
    free(rec);
}
