/* test_host.c: this host's identity, its record on the datastore, the lock on it and the heartbeat.
 */
#include "unit.h"

#include <sys/wait.h>

#include "base/text.h"
#include "core/host.h"
#include "scratch.h"

#define UUID_A "00112233-4455-4677-8899-aabbccddeeff"
#define UUID_B "10112233-4455-4677-8899-aabbccddeeff"

static struct store store;

static void setup(void)
{
    struct why why = {""};

    scratch_make();
    cr_assert_eq(mkdir(scratch_path("ds"), 0700), 0);
    cr_assert_eq(store_init(scratch_path("ds"), &store, &why), 0, "%s", why.text);
}

static void teardown(void)
{
    store_close(&store);
    scratch_remove();
}

/* A daemon of host UUID_A; installations are told apart by a letter. */
static struct host make_host(char installation)
{
    struct host h = {.uuid = UUID_A, .installation = UUID_B, .name = "node1"};

    h.installation[0] = installation;
    cr_assert_eq(base_uuid_random(h.daemon), 0);
    cr_assert_eq(base_uuid_random(h.boot), 0);
    return h;
}

static int lock_it(const struct host *h)
{
    struct why why = {""};
    int fd = host_lock(&store, h, &why);

    cr_assert_geq(fd, 0, "%s", why.text);
    return fd;
}

static struct host_record read_it(void)
{
    struct host_record rec;

    cr_assert_eq(host_record_read(&store, UUID_A, &rec), 0);
    return rec;
}

/* ---- identity ---- */

Test(host, load_makes_the_installation_once, .init = scratch_make, .fini = scratch_remove)
{
    struct host h, again;
    struct why why = {""};
    struct stat st;

    cr_assert_eq(host_load(UUID_A, scratch_path("a/b/state"), &h, &why), 0, "%s", why.text);
    scratch_write("a/b/state/installation.01234567.tmp", "left by a crash", 15);
    cr_assert_eq(host_load(UUID_A, scratch_path("a/b//state/"), &again, &why), 0, "%s", why.text);
    cr_assert_str_eq(h.uuid, UUID_A);
    cr_assert_str_eq(h.installation, again.installation);
    cr_assert_str_neq(h.daemon, again.daemon);
    cr_assert_str_eq(h.boot, again.boot);
    cr_assert(base_uuid_ok(h.installation) && base_uuid_ok(h.daemon) && base_uuid_ok(h.boot) &&
              h.name[0]);
    cr_assert(stat(scratch_path("a/b/state"), &st) == 0 && (st.st_mode & 07777) == 0700);
    cr_assert(stat(scratch_path("a"), &st) == 0 && (st.st_mode & 07777) == 0700);
    cr_assert_eq(scratch_count("a/b/state"), 1);
    cr_assert_eq(host_load(UUID_A, scratch_path("other"), &again, &why), 0);
    cr_assert_str_neq(h.installation, again.installation);
}

Test(host, load_derives_the_uuid, .init = scratch_make, .fini = scratch_remove)
{
    struct host h, again;
    char id[64] = "", plain[33] = "";
    FILE *f = fopen("/etc/machine-id", "re");

    if (!f || !fgets(id, sizeof(id), f) || strlen(id) != 33)
        cr_skip_test("no machine-id here");
    fclose(f);
    cr_assert_eq(host_load(NULL, scratch_path("state"), &h, NULL), 0);
    cr_assert_eq(host_load(NULL, scratch_path("state"), &again, NULL), 0);
    cr_assert(base_uuid_ok(h.uuid));
    cr_assert_str_eq(h.uuid, again.uuid);
    for (size_t i = 0, n = 0; h.uuid[i]; i++)
        if (h.uuid[i] != '-')
            plain[n++] = h.uuid[i];
    cr_assert_neq(strncmp(plain, id, 32), 0);
}

Test(host, load_refuses_bad_input, .init = scratch_make, .fini = scratch_remove)
{
    struct host h = {.name = "untouched"};
    struct why why;

    cr_assert_eq(host_load("00112233-4455-4677-8899-AABBCCDDEEFF", scratch, &h, &why), -EINVAL);
    cr_assert_not_null(strstr(why.text, "host-id"));
    cr_assert_eq(host_load("", scratch, &h, &why), -EINVAL);
    cr_assert_eq(host_load(UUID_A, "", &h, &why), -ENOENT);
    scratch_write("file", "", 0);
    cr_assert_eq(host_load(UUID_A, scratch_path("file"), &h, &why), -ENOTDIR);
    cr_assert_eq(host_load(UUID_A, scratch_path("file/below"), &h, &why), -ENOTDIR);
    cr_assert_not_null(strstr(why.text, "state-dir="));
    cr_assert_eq(mkdir(scratch_path("open"), 0700), 0);
    cr_assert_eq(chmod(scratch_path("open"), 0777), 0);
    cr_assert_eq(host_load(UUID_A, scratch_path("open"), &h, &why), -EPERM);
    cr_assert_eq(scratch_count("open"), 0);
    cr_assert_str_eq(h.name, "untouched");
}

Test(host, load_refuses_a_damaged_installation, .init = scratch_make, .fini = scratch_remove)
{
    struct host h;
    struct why why;
    char text[256], id[sizeof(dg_uuid)] = UUID_B;
    const struct text_field f[] = {TEXT_FIELD("id", id)};
    size_t len;

    cr_assert_eq(host_load(UUID_A, scratch, &h, &why), 0);
    len = scratch_read("installation", text, sizeof(text));
    for (size_t i = 0; i < len; i++) {
        text[i] ^= 1;
        scratch_write("installation", text, len);
        cr_assert_eq(host_load(UUID_A, scratch, &h, &why), -EBADMSG, "byte %zu", i);
        text[i] ^= 1;
    }
    cr_assert_not_null(strstr(why.text, "/installation is damaged"));
    scratch_write("installation", text, 0);
    cr_assert_eq(host_load(UUID_A, scratch, &h, &why), -EBADMSG);
    cr_assert_eq(text_emit("diskguard-installation", 2, f, 1, text, sizeof(text), &len), 0);
    scratch_write("installation", text, len);
    cr_assert_eq(host_load(UUID_A, scratch, &h, &why), -EPROTONOSUPPORT);
}

Test(host, load_by_many_at_once_gives_one_installation, .init = scratch_make,
     .fini = scratch_remove)
{
    struct host h;
    int ends[2], status;

    cr_assert_eq(pipe(ends), 0);
    for (int i = 0; i < 8; i++)
        if (fork() == 0) {
            int r = host_load(UUID_A, scratch_path("state"), &h, NULL);
            if (r == 0 && write(ends[1], h.installation, DG_UUID_LEN) != DG_UUID_LEN)
                r = -EIO;
            _exit(r == 0 ? 0 : 1);
        }
    for (int i = 0; i < 8; i++)
        cr_assert(wait(&status) > 0 && status == 0);
    cr_assert_eq(host_load(UUID_A, scratch_path("state"), &h, NULL), 0);
    for (int i = 0; i < 8; i++) {
        dg_uuid id = "";
        cr_assert_eq(read(ends[0], id, DG_UUID_LEN), DG_UUID_LEN);
        cr_assert_str_eq(id, h.installation);
    }
    cr_assert_eq(scratch_count("state"), 1);
    close(ends[0]);
    close(ends[1]);
}

Test(host, load_on_a_full_or_read_only_disk_leaves_nothing, .init = scratch_make,
     .fini = scratch_remove)
{
    struct host h;
    struct why why;

    if (!scratch_mount("mode=0700,size=64k"))
        cr_skip_test("mount is not permitted");
    scratch_fill("small/fill");
    cr_assert_eq(host_load(UUID_A, scratch_path("small"), &h, &why), -ENOSPC);
    cr_assert_not_null(strstr(why.text, "space"));
    cr_assert_eq(scratch_count("small"), 1);
    cr_assert(scratch_remount(MS_RDONLY));
    cr_assert_eq(host_load(UUID_A, scratch_path("small"), &h, &why), -EROFS);
    cr_assert_eq(host_load(UUID_A, scratch_path("small/below"), &h, &why), -EROFS);
}

/* ---- lock and binding ---- */

Test(host, lock_makes_and_binds_the_record, .init = setup, .fini = teardown)
{
    struct host h = make_host('1');
    struct host_record rec;
    struct stat st;
    int fd;

    cr_assert_eq(host_record_read(&store, UUID_A, &rec), -ENOENT);
    fd = lock_it(&h);
    rec = read_it();
    cr_assert_str_eq(rec.uuid, h.uuid);
    cr_assert_str_eq(rec.installation, h.installation);
    cr_assert_str_eq(rec.daemon, h.daemon);
    cr_assert_str_eq(rec.boot, h.boot);
    cr_assert_str_eq(rec.name, "node1");
    cr_assert_eq(rec.heartbeat, 0);
    cr_assert_eq(strlen(rec.started), 20);
    cr_assert_eq(stat(scratch_path("ds/.diskguard/hosts/" UUID_A), &st), 0);
    cr_assert(st.st_size == HOST_RECORD_SIZE && st.st_nlink == 1 && (st.st_mode & 07777) == 0600);
    cr_assert_eq(scratch_count("ds/.diskguard/tmp"), 0);
    close(fd);
}

Test(host, a_live_daemon_keeps_others_out, .init = setup, .fini = teardown)
{
    static const enum fence_kind kinds[] = {FENCE_OFD, FENCE_FLOCK, FENCE_NONE};
    struct host h = make_host('1'), second = make_host('1'), clone = make_host('2');
    struct why why;

    for (int i = 0; i < 3; i++) {
        int fd;

        store.fence = kinds[i];
        fd = lock_it(&h);
        cr_assert_eq(host_lock(&store, &second, &why), -EBUSY);
        cr_assert_not_null(strstr(why.text, "node1"));
        cr_assert_eq(host_lock_force(&store, &second, &why), -EBUSY);
        cr_assert_eq(host_lock(&store, &clone, &why), -EKEYREJECTED);
        /* Where locks tell nothing of other hosts, it may just as well be down. */
        cr_assert_eq(strstr(why.text, "--takeover") != NULL, kinds[i] == FENCE_NONE);
        cr_assert_not_null(strstr(why.text, "clone"));
        close(fd);
        close(lock_it(&second));
    }
}

Test(host, another_installation_is_another_host, .init = setup, .fini = teardown)
{
    struct host h = make_host('1'), other = make_host('2');
    struct why why;
    int fd;

    close(lock_it(&h));
    cr_assert_eq(host_lock(&store, &other, &why), -EKEYREJECTED);
    cr_assert_not_null(strstr(why.text, "host-id="));
    cr_assert_not_null(
        strstr(why.text, "fsck.diskguard --takeover " UUID_A " --confirm-host-is-down "));
    cr_assert_not_null(strstr(why.text, store.path));
    cr_assert_str_eq(read_it().installation, h.installation);
    fd = host_lock_force(&store, &other, &why);
    cr_assert_geq(fd, 0);
    cr_assert_str_eq(read_it().installation, h.installation);
    cr_assert_eq(host_bind(fd, &other), 0);
    cr_assert_eq(host_heartbeat(fd, &h, 1), -EKEYREJECTED);
    close(fd);
    close(lock_it(&other));
    cr_assert_eq(host_lock(&store, &h, &why), -EKEYREJECTED);
}

Test(host, force_makes_no_record, .init = setup, .fini = teardown)
{
    struct host h = make_host('1');
    struct why why;

    cr_assert_eq(host_lock_force(&store, &h, &why), -ENOENT);
    cr_assert_eq(scratch_count("ds/.diskguard/hosts"), 0);
    h.uuid[0] = '/';
    cr_assert_eq(host_lock_force(&store, &h, &why), -EINVAL);
    cr_assert_eq(host_lock(&store, &h, &why), -EINVAL);
}

/* Clones that start together for the first time. */
Test(host, of_several_first_starts_one_wins, .init = setup, .fini = teardown)
{
    for (int round = 0; round < 5; round++) {
        int won = 0, lost = 0, status, gate[2], done[2];
        char c;

        cr_assert(pipe(gate) == 0 && pipe(done) == 0);
        for (int i = 0; i < 6; i++) {
            struct host h = make_host((char)('1' + i));
            if (fork() == 0) {
                close(gate[1]);
                int fd = host_lock(&store, &h, NULL);
                if (write(done[1], "x", 1) != 1 || read(gate[0], &c, 1) != 0)
                    _exit(3);
                _exit(fd >= 0 ? 0 : fd == -EKEYREJECTED ? 1 : 2);
            }
        }
        for (int i = 0; i < 6; i++)
            cr_assert_eq(read(done[0], &c, 1), 1);
        close(gate[1]); /* everybody has tried: now the winner may let go */
        for (int i = 0; i < 6; i++) {
            cr_assert_gt(wait(&status), 0);
            won += WEXITSTATUS(status) == 0;
            lost += WEXITSTATUS(status) == 1;
        }
        cr_assert(won == 1 && lost == 5, "won %d, lost %d", won, lost);
        cr_assert_eq(scratch_count("ds/.diskguard/tmp"), 0);
        cr_assert_eq(unlink(scratch_path("ds/.diskguard/hosts/" UUID_A)), 0);
        close(gate[0]);
        close(done[0]);
        close(done[1]);
    }
}

/* ---- heartbeat ---- */

Test(host, heartbeats_count_up_in_turn, .init = setup, .fini = teardown)
{
    struct host h = make_host('1'), next = make_host('1');
    char before[HOST_RECORD_SIZE], after[HOST_RECORD_SIZE];
    int fd = lock_it(&h), last = -1;

    for (uint64_t heartbeat = 1; heartbeat <= 6; heartbeat++) {
        scratch_read("ds/.diskguard/hosts/" UUID_A, before, sizeof(before));
        cr_assert_eq(host_heartbeat(fd, &h, heartbeat), 0);
        cr_assert_eq(scratch_read("ds/.diskguard/hosts/" UUID_A, after, sizeof(after)),
                     HOST_RECORD_SIZE);
        cr_assert_eq(read_it().heartbeat, heartbeat);
        int changed = memcmp(before, after, HOST_COPY_SIZE) != 0 ? 0 : 1;
        cr_assert_neq(changed, last, "one copy was written twice in a row");
        cr_assert_eq(memcmp(before + (1 - changed) * HOST_COPY_SIZE,
                            after + (1 - changed) * HOST_COPY_SIZE, HOST_COPY_SIZE),
                     0);
        last = changed;
    }
    close(fd);
    fd = lock_it(&next);
    cr_assert_str_eq(read_it().daemon, h.daemon);
    strcpy(next.name, "new name 100% \xc3\xb6");
    cr_assert_eq(host_heartbeat(fd, &next, 1), 0);
    cr_assert_str_eq(read_it().daemon, next.daemon);
    cr_assert_str_eq(read_it().name, next.name);
    cr_assert_eq(read_it().heartbeat, 1);
    close(fd);
}

Test(host, the_longest_name_fits, .init = setup, .fini = teardown)
{
    struct host h = make_host('1');
    int fd;

    memset(h.name, 0xff, HOST_NAME_SIZE - 1);
    fd = lock_it(&h);
    cr_assert_eq(host_heartbeat(fd, &h, UINT64_MAX), 0);
    cr_assert_str_eq(read_it().name, h.name);
    cr_assert_eq(read_it().heartbeat, UINT64_MAX);
    close(fd);
}

/* A write that a crash cut anywhere: the record still decodes, as the old or the new one, and the
 * host can go on. */
Test(host, a_torn_write_does_no_harm, .init = setup, .fini = teardown)
{
    static const char name[] = "ds/.diskguard/hosts/" UUID_A;
    struct host h = make_host('1');
    char before[HOST_RECORD_SIZE], after[HOST_RECORD_SIZE], torn[HOST_RECORD_SIZE];
    int fd = lock_it(&h);

    for (uint64_t heartbeat = 1; heartbeat <= 2; heartbeat++) { /* once for each copy */
        scratch_read(name, before, sizeof(before));
        cr_assert_eq(host_heartbeat(fd, &h, heartbeat), 0);
        scratch_read(name, after, sizeof(after));
        for (size_t cut = 0; cut <= HOST_RECORD_SIZE; cut += 31) {
            memcpy(torn, before, sizeof(torn));
            memcpy(torn, after, cut);
            scratch_write(name, torn, sizeof(torn));
            cr_assert(read_it().heartbeat == heartbeat || read_it().heartbeat == heartbeat - 1);
            memcpy(torn, after, sizeof(torn));
            memset(torn + (heartbeat == 1 ? 0 : HOST_COPY_SIZE), 0, HOST_COPY_SIZE);
            scratch_write(name, torn, sizeof(torn));
            cr_assert(read_it().heartbeat == heartbeat || read_it().heartbeat == heartbeat - 1);
        }
        scratch_write(name, torn, sizeof(torn));
        cr_assert_eq(host_heartbeat(fd, &h, heartbeat), 0);
        cr_assert_eq(read_it().heartbeat, heartbeat);
    }
    close(fd);
    close(lock_it(&h));
}

Test(host, a_damaged_record_is_refused_until_a_person_binds_it, .init = setup, .fini = teardown)
{
    static const char name[] = "ds/.diskguard/hosts/" UUID_A;
    struct host h = make_host('1');
    struct host_record rec;
    struct why why;
    char text[HOST_RECORD_SIZE + 1];
    int fd;

    close(lock_it(&h));
    for (int kind = 0; kind < 4; kind++) {
        scratch_read(name, text, sizeof(text));
        text[100] ^= 1;
        text[HOST_COPY_SIZE + 100] ^= 1;
        text[HOST_RECORD_SIZE] = '\n';
        static const size_t len[] = {HOST_RECORD_SIZE, HOST_RECORD_SIZE + 1, HOST_RECORD_SIZE - 1,
                                     0};
        scratch_write(name, text, len[kind]);
        cr_assert_eq(host_record_read(&store, UUID_A, &rec), -EBADMSG, "kind %d", kind);
        cr_assert_eq(host_lock(&store, &h, &why), -EBADMSG, "kind %d", kind);
        cr_assert_not_null(strstr(why.text, "--takeover"));
        fd = host_lock_force(&store, &h, &why);
        cr_assert_geq(fd, 0);
        cr_assert_eq(host_heartbeat(fd, &h, 1), -EBADMSG);
        cr_assert_eq(host_bind(fd, &h), 0);
        close(fd);
        close(lock_it(&h));
    }
}

Test(host, a_newer_or_misplaced_record_is_refused, .init = setup, .fini = teardown)
{
    static const char name[] = "ds/.diskguard/hosts/" UUID_A;
    struct host h = make_host('1');
    struct host_record rec;
    struct why why;
    char text[HOST_RECORD_SIZE], newer[HOST_COPY_SIZE], x[] = "y";
    const struct text_field f[] = {TEXT_FIELD("x", x)};
    size_t len;

    close(lock_it(&h));
    scratch_read(name, text, sizeof(text));
    scratch_write("ds/.diskguard/hosts/" UUID_B, text, sizeof(text));
    cr_assert_eq(host_record_read(&store, UUID_B, &rec), -EBADMSG);
    cr_assert_eq(text_emit("diskguard-host", 2, f, 1, newer, sizeof(newer), &len), 0);
    for (int copy = 0; copy < 2; copy++) {
        char both[HOST_RECORD_SIZE];
        memcpy(both, text, sizeof(both));
        memset(both + copy * HOST_COPY_SIZE, '\n', HOST_COPY_SIZE);
        memcpy(both + copy * HOST_COPY_SIZE, newer, len);
        scratch_write(name, both, sizeof(both));
        cr_assert_eq(host_record_read(&store, UUID_A, &rec), -EPROTONOSUPPORT);
        cr_assert_eq(host_lock(&store, &h, &why), -EPROTONOSUPPORT);
        cr_assert_not_null(strstr(why.text, "newer"));
    }
    cr_assert_eq(host_record_read(&store, "../datastore", &rec), -EINVAL);
}

/* ---- questions about others ---- */

Test(host, alive_asks_and_takes_nothing, .init = setup, .fini = teardown)
{
    static const enum fence_kind kinds[] = {FENCE_OFD, FENCE_FLOCK};
    struct host h = make_host('1'), second = make_host('1');

    cr_assert_eq(host_alive(&store, UUID_A), -ENOENT);
    for (int i = 0; i < 2; i++) {
        int fd;

        store.fence = kinds[i];
        fd = lock_it(&h);
        for (int n = 0; n < 3; n++)
            cr_assert_eq(host_alive(&store, UUID_A), 1);
        cr_assert_eq(host_lock(&store, &second, NULL), -EBUSY);
        close(fd);
        cr_assert_eq(host_alive(&store, UUID_A), 0);
        close(lock_it(&second));
    }
    store.fence = FENCE_NONE;
    cr_assert_eq(host_alive(&store, UUID_A), -EOPNOTSUPP);
    cr_assert_eq(host_alive(&store, "../x"), -EINVAL);
}

struct seen {
    int good, bad, stop;
};

static int see(void *arg, const struct host_record *rec, int err)
{
    struct seen *seen = arg;

    seen->good += err == 0 && strcmp(rec->uuid, UUID_A) == 0 && strcmp(rec->name, "node1") == 0;
    seen->bad += err == -EBADMSG && strcmp(rec->uuid, UUID_B) == 0 && rec->name[0] == '\0';
    return seen->stop;
}

Test(host, each_shows_good_and_bad_ones, .init = setup, .fini = teardown)
{
    struct host h = make_host('1');
    struct seen seen = {0};

    cr_assert_eq(host_each(&store, see, &seen), 0);
    close(lock_it(&h));
    scratch_write("ds/.diskguard/hosts/" UUID_B, "rubbish", 7);
    scratch_write("ds/.diskguard/hosts/README", "rubbish", 7);
    cr_assert_eq(host_each(&store, see, &seen), 0);
    cr_assert(seen.good == 1 && seen.bad == 1);
    seen.stop = 7;
    cr_assert_eq(host_each(&store, see, &seen), 7);
    cr_assert_eq(seen.good + seen.bad, 3);
}
