/* test_reader.c: the names of readers, their texts, when they count, and what is swept. */
#include "unit.h"

#include <fcntl.h>

#include "core/names.h"
#include "core/reader.h"
#include "tempstore.h"

static struct tempstore temp;
static struct host a, b;
static struct reader one;

#define S (&temp.store)
#define INO 0x1234ull

static void setup(void)
{
    cr_assert_eq(tempstore_make(&temp), 0);
    a = tempstore_host(0xa);
    b = tempstore_host(0xb);
    one = (struct reader){.ino = INO, .serial = 70};
    memcpy(one.host, a.uuid, sizeof(one.host));
    memcpy(one.daemon, a.daemon, sizeof(one.daemon));
}

static void teardown(void)
{
    tempstore_remove(&temp);
}

static const struct reader_info info = {.handle = {.type = 129, .len = 3, .bytes = {1, 0xfe, 3}},
                                        .host_name = "the host",
                                        .program = "a b%",
                                        .since = "2026-01-02T03:04:05Z",
                                        .pid = 4711};

static size_t count(uint64_t ino)
{
    struct reader *rd = NULL;
    size_t n = 99;

    cr_assert_eq(reader_list(S, ino, &rd, &n), 0);
    free(rd);
    return n;
}

static void run_daemon(const struct host *h)
{
    struct why why;
    int fd = host_lock(S, h, &why);

    cr_assert_geq(fd, 0);
    cr_assert_eq(host_heartbeat(fd, h, 1), 0);
    close(fd);
}

Test(reader, names, .init = setup, .fini = teardown)
{
    char good[READER_NAME_SIZE], bad[2 * READER_NAME_SIZE];
    struct reader rd = {.ino = 0};

    reader_name(&one, good);
    cr_assert(reader_name_parse(good, &rd));
    cr_assert(rd.ino == INO && rd.serial == 70 && strcmp(rd.host, a.uuid) == 0 &&
              strcmp(rd.daemon, a.daemon) == 0);
    for (size_t i = 0; i < strlen(good); i++) { /* one spelling: no other byte anywhere, no other
                                                   length */
        static const char other[] = "gG-.Z/ ";
        for (const char *p = other; *p; p++) {
            if (good[i] == *p)
                continue;
            memcpy(bad, good, sizeof(good));
            bad[i] = *p;
            cr_assert(!reader_name_parse(bad, &rd), "%s", bad);
        }
        memcpy(bad, good, sizeof(good));
        bad[i] = '\0';
        cr_assert(i == strlen(good) - 1 || !reader_name_parse(bad, &rd), "%s", bad);
    }
    static const char *const tail[] = {"x", " ", ".1", "99999999999999999999"};
    for (size_t i = 0; i < sizeof(tail) / sizeof(tail[0]); i++) {
        snprintf(bad, sizeof(bad), "%s%s", good, tail[i]);
        cr_assert(!reader_name_parse(bad, &rd), "%s", bad);
    }
    for (size_t cut = 1; cut <= 2; cut++) { /* without a number; a number that begins with 0 */
        snprintf(bad, sizeof(bad), "%.*s%s", (int)(strlen(good) - 2), good, cut == 1 ? "" : "070");
        cr_assert(!reader_name_parse(bad, &rd), "%s", bad);
    }
}

Test(reader, made_listed_looked_at_and_removed, .init = setup, .fini = teardown)
{
    struct reader_info got;
    struct reader two = one;

    cr_assert_eq(count(0), 0);
    cr_assert_eq(reader_remove(S, &one), 0); /* no directory yet */
    cr_assert_eq(reader_make(S, &one, &info, "dir/an image"), 0);
    cr_assert_eq(reader_make(S, &one, &info, "dir/an image"), 0); /* as good */
    two.ino = INO + 1;
    cr_assert_eq(reader_make(S, &two, &info, "other"), 0);
    cr_assert_eq(count(0), 2);
    cr_assert_eq(count(INO), 1);
    cr_assert_eq(count(INO + 2), 0);
    reader_look(S, &one, &got);
    cr_assert(strcmp(got.host_name, info.host_name) == 0 &&
              strcmp(got.program, info.program) == 0 && strcmp(got.since, info.since) == 0 &&
              got.pid == info.pid);
    struct io_handle other = info.handle, none = {.len = 0};
    cr_assert(reader_is_of(&got, &info.handle) && reader_is_of(&got, &none));
    other.bytes[2]++;
    cr_assert(!reader_is_of(&got, &other));
    cr_assert_eq(reader_remove(S, &one), 0);
    cr_assert_eq(count(INO), 0);
    cr_assert_eq(reader_remove(S, &one), 0);
}

Test(reader, a_text_that_does_not_decode_names_the_host, .init = setup, .fini = teardown)
{
    char name[READER_NAME_SIZE];
    struct reader_info got;

    cr_assert_eq(reader_make(S, &one, &info, "x"), 0);
    reader_name(&one, name);
    int fd = openat(shard_fd(S, SHARD_READERS, one.ino), name, O_WRONLY | O_TRUNC);
    cr_assert(fd >= 0 && write(fd, "torn", 4) == 4);
    close(fd);
    reader_look(S, &one, &got);
    cr_assert_str_eq(got.host_name, a.uuid);
    cr_assert(reader_is_of(&got, &info.handle)); /* nobody can tell */
    cr_assert(got.pid == 0 && got.program[0] == '\0' && got.since[0] == '\0');
    run_daemon(&a);
    reader_look(S, &one, &got);
    cr_assert_str_eq(got.host_name, a.name);
    cr_assert_eq(count(INO), 1); /* and counts all the same */
    cr_assert_eq(reader_counts(S, &one), 1);
}

Test(reader, counts_while_the_record_names_its_daemon, .init = setup, .fini = teardown)
{
    struct host again = a;

    cr_assert_eq(reader_counts(S, &one), 1); /* no record: nobody can tell */
    run_daemon(&a);
    cr_assert_eq(reader_counts(S, &one), 1);
    again.daemon[0] = again.daemon[0] == '1' ? '2' : '1';
    run_daemon(&again);
    cr_assert_eq(reader_counts(S, &one), 0);
}

Test(reader, sweep, .init = setup, .fini = teardown)
{
    struct host again = b;
    struct reader of_b = one, old = one;
    const char *const gone[] = {b.uuid, NULL};
    unsigned n;

    memcpy(of_b.host, b.uuid, sizeof(of_b.host));
    memcpy(of_b.daemon, b.daemon, sizeof(of_b.daemon));
    old.daemon[0] = old.daemon[0] == '1' ? '2' : '1';
    run_daemon(&a);
    run_daemon(&b);
    cr_assert_eq(reader_make(S, &one, &info, "x"), 0);
    cr_assert_eq(reader_make(S, &of_b, &info, "x"), 0);
    cr_assert_eq(reader_make(S, &old, &info, "x"), 0);
    cr_assert_eq(reader_sweep(S, NULL, true, &n), 0);
    cr_assert(n == 1 && count(0) == 3, "a dry run");
    cr_assert_eq(reader_sweep(S, NULL, false, &n), 0);
    cr_assert(n == 1 && count(0) == 2, "what does not count");
    cr_assert_eq(reader_sweep(S, gone, false, &n), 0);
    cr_assert(n == 1 && count(0) == 1 && reader_counts(S, &one) == 1, "what a person said is gone");
    again.daemon[0] = again.daemon[0] == '1' ? '2' : '1';
    cr_assert_eq(reader_make(S, &of_b, &info, "x"), 0);
    run_daemon(&again);
    cr_assert_eq(reader_sweep(S, NULL, false, &n), 0);
    cr_assert(n == 1 && count(0) == 1);
}

Test(reader, a_daemon_that_ends_drops_its_own, .init = setup, .fini = teardown)
{
    struct reader later = one, other = one;

    later.serial++;
    other.daemon[0] = other.daemon[0] == '1' ? '2' : '1';
    cr_assert_eq(reader_make(S, &one, &info, "x"), 0);
    cr_assert_eq(reader_make(S, &later, &info, "x"), 0);
    cr_assert_eq(reader_make(S, &other, &info, "x"), 0);
    cr_assert_eq(reader_drop(S, &a), 0);
    cr_assert_eq(count(0), 1);
    cr_assert_eq(reader_remove(S, &other), 0);
    cr_assert_eq(count(0), 0);
}
