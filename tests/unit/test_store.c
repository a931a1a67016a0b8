/* test_store.c: making, opening and proving a datastore; the text form of its small files. */
#include "unit.h"

#include <fcntl.h>
#include <sys/wait.h>

#include "base/text.h"
#include "core/store.h"
#include "scratch.h"

static void make_store(struct store *s)
{
    struct why why = {""};

    cr_assert_eq(store_init(scratch, s, &why), 0, "%s", why.text);
}

static int try_open(struct why *why)
{
    struct store s;
    int r = store_open(scratch, &s, why);

    store_close(&s);
    return r;
}

static int try_init(struct why *why)
{
    struct store s;
    int r = store_init(scratch, &s, why);

    store_close(&s);
    return r;
}

static bool is_private_dir(const char *name)
{
    struct stat st;

    return lstat(scratch_path(name), &st) == 0 && S_ISDIR(st.st_mode) &&
           (st.st_mode & 07777) == 0700;
}

static void made_by_version(unsigned version)
{
    char uuid[] = "00112233-4455-4677-8899-aabbccddeeff", root[] = "-",
         made[] = "2026-11-22T10:00:00Z", text[512];
    const struct text_field f[] = {TEXT_FIELD("uuid", uuid), TEXT_FIELD("root", root),
                                   TEXT_FIELD("made", made)};
    size_t len;

    cr_assert_eq(text_emit("diskguard-datastore", version, f, 3, text, sizeof(text), &len), 0);
    scratch_write(".diskguard/datastore", text, len);
}

/* ---- init ---- */

Test(store, init_makes_the_layout, .init = scratch_make, .fini = scratch_remove)
{
    struct store s, again;
    struct stat st;

    make_store(&s);
    cr_assert(is_private_dir(".diskguard") && is_private_dir(".diskguard/claims"));
    cr_assert(is_private_dir(".diskguard/tmp") && is_private_dir(".diskguard/hosts"));
    cr_assert_eq(scratch_count(".diskguard/tmp"), 0);
    cr_assert_eq(scratch_count(".diskguard"), 6);
    cr_assert(base_uuid_ok(s.uuid) && !s.read_only);
    cr_assert_eq(stat(scratch_path(".diskguard"), &st), 0);
    cr_assert(s.dir_ino == st.st_ino && s.dev == st.st_dev);
    cr_assert_eq(store_open(scratch, &again, NULL), 0);
    cr_assert_str_eq(again.uuid, s.uuid);
    store_close(&again);
    store_close(&s);
}

Test(store, init_twice_is_refused, .init = scratch_make, .fini = scratch_remove)
{
    struct store s, again;
    struct why why;

    make_store(&s);
    cr_assert_eq(try_init(&why), -EEXIST);
    cr_assert_not_null(strstr(why.text, "already"));
    cr_assert_eq(store_open(scratch, &again, NULL), 0);
    cr_assert_str_eq(again.uuid, s.uuid);
    store_close(&again);
    store_close(&s);
}

/* What a crash of init leaves, step by step; the second init completes all of it. */
Test(store, init_completes_a_half_made_one, .init = scratch_make, .fini = scratch_remove)
{
    static const char *const steps[] = {".diskguard", ".diskguard/claims", ".diskguard/tmp",
                                        ".diskguard/hosts"};
    struct why why = {""};

    for (unsigned n = 1; n <= 5; n++) {
        for (unsigned i = 0; i < n && i < 4; i++)
            cr_assert_eq(mkdir(scratch_path(steps[i]), 0700), 0);
        if (n == 5)
            scratch_write(".diskguard/tmp/init.00112233-4455-4677-8899-aabbccddeeff", "half", 4);
        cr_assert_eq(try_open(&why), -ENOENT);
        cr_assert_not_null(strstr(why.text, "init did not finish"));
        cr_assert_eq(try_init(&why), 0, "%s", why.text);
        cr_assert_eq(try_open(&why), 0, "%s", why.text);
        scratch_make();
    }
}

Test(store, init_never_adopts_claims_without_a_datastore_file, .init = scratch_make,
     .fini = scratch_remove)
{
    struct store s;
    struct why why;

    make_store(&s);
    store_close(&s);
    cr_assert_eq(unlink(scratch_path(".diskguard/datastore")), 0);
    scratch_write(".diskguard/claims/0000000000000001.1", "x", 1); /* as in format 1 */
    cr_assert_eq(try_init(&why), -EEXIST);
    cr_assert_eq(unlink(scratch_path(".diskguard/claims/0000000000000001.1")), 0);
    scratch_write(".diskguard/claims/ff/0000000000000001.1", "x", 1);
    cr_assert_eq(try_init(&why), -EEXIST);
    cr_assert_not_null(strstr(why.text, "backup"));
    cr_assert_neq(access(scratch_path(".diskguard/datastore"), F_OK), 0);
}

Test(store, init_and_open_refuse_what_is_no_directory, .init = scratch_make, .fini = scratch_remove)
{
    struct why why;

    cr_assert_eq(mkdir(scratch_path("elsewhere"), 0700), 0);
    cr_assert_eq(symlink("elsewhere", scratch_path(".diskguard")), 0);
    cr_assert_eq(try_init(&why), -ENOTDIR);
    cr_assert_eq(try_open(&why), -ENOTDIR);
    cr_assert_not_null(strstr(why.text, "symlink"));
    cr_assert_eq(scratch_count("elsewhere"), 0);
    cr_assert_eq(unlink(scratch_path(".diskguard")), 0);
    scratch_write(".diskguard", "", 0);
    cr_assert_eq(try_init(&why), -ENOTDIR);
    cr_assert_eq(try_open(&why), -ENOTDIR);
}

Test(store, of_several_inits_one_wins, .init = scratch_make, .fini = scratch_remove)
{
    for (int round = 0; round < 5; round++) {
        pid_t pid[6];
        int won = 0, lost = 0, status;

        for (int i = 0; i < 6; i++) {
            pid[i] = fork();
            if (pid[i] == 0)
                _exit(-try_init(NULL));
        }
        for (int i = 0; i < 6; i++) {
            cr_assert_eq(waitpid(pid[i], &status, 0), pid[i]);
            won += WIFEXITED(status) && WEXITSTATUS(status) == 0;
            lost += WIFEXITED(status) && WEXITSTATUS(status) == EEXIST;
        }
        cr_assert(won == 1 && lost == 5, "won %d, lost %d", won, lost);
        cr_assert_eq(try_open(NULL), 0);
        cr_assert_eq(scratch_count(".diskguard/tmp"), 0);
        scratch_make();
    }
}

/* ---- open ---- */

Test(store, open_names_the_way_out, .init = scratch_make, .fini = scratch_remove)
{
    struct store s;
    struct why why;

    cr_assert_eq(try_open(&why), -ENOENT);
    cr_assert_not_null(strstr(why.text, "diskguardctl init"));
    cr_assert_not_null(strstr(why.text, scratch));
    cr_assert_eq(store_open(scratch_path("absent"), &s, &why), -ENOENT);
    cr_assert_not_null(strstr(why.text, "mounted"));
    store_close(&s);
    scratch_write("file", "", 0);
    cr_assert_eq(store_open(scratch_path("file"), &s, &why), -ENOTDIR);
    store_close(&s);
}

Test(store, open_makes_the_path_canonical, .init = scratch_make, .fini = scratch_remove)
{
    struct store s, t;
    char link[128];

    make_store(&s);
    snprintf(link, sizeof(link), "%s/link", scratch);
    cr_assert_eq(symlink(".", link), 0);
    cr_assert_eq(store_open(link, &t, NULL), 0);
    cr_assert_str_eq(t.path, s.path);
    cr_assert_str_eq(t.uuid, s.uuid);
    store_close(&t);
    store_close(&s);
}

Test(store, open_refuses_what_others_can_reach, .init = scratch_make, .fini = scratch_remove)
{
    struct store s;
    struct why why;

    make_store(&s);
    store_close(&s);
    for (mode_t mode = 0701; mode <= 0777; mode += 7) {
        cr_assert_eq(chmod(scratch_path(".diskguard"), mode), 0);
        cr_assert_eq(try_open(&why), mode & 077 ? -EPERM : 0, "mode %o", (unsigned)mode);
    }
    cr_assert_not_null(strstr(why.text, "chmod 0700"));
    cr_assert_eq(chmod(scratch_path(".diskguard"), 0700), 0);
    cr_assert_eq(try_open(&why), 0);
    if (geteuid() != 0)
        return;
    cr_assert_eq(chown(scratch_path(".diskguard"), 12345, 12345), 0);
    cr_assert_eq(try_open(&why), -EPERM);
    cr_assert_not_null(strstr(why.text, "owner"));
    cr_assert_eq(scratch_count(".diskguard/tmp"), 0);
}

Test(store, open_refuses_every_damaged_byte, .init = scratch_make, .fini = scratch_remove)
{
    struct store s;
    struct why why;
    char text[2048];
    size_t len;

    make_store(&s);
    store_close(&s);
    len = scratch_read(".diskguard/datastore", text, sizeof(text));
    for (size_t i = 0; i < len; i++) {
        text[i] ^= 1;
        scratch_write(".diskguard/datastore", text, len);
        cr_assert_eq(try_open(&why), -EBADMSG, "byte %zu", i);
        text[i] ^= 1;
        scratch_write(".diskguard/datastore", text, i);
        cr_assert_eq(try_open(&why), -EBADMSG, "cut at %zu", i);
    }
    cr_assert_not_null(strstr(why.text, "damaged"));
    scratch_write(".diskguard/datastore", text, len);
    cr_assert_eq(try_open(&why), 0);
}

Test(store, open_refuses_a_newer_version, .init = scratch_make, .fini = scratch_remove)
{
    struct store s;
    struct why why;

    make_store(&s);
    store_close(&s);
    made_by_version(DG_STORE_VERSION + 1);
    cr_assert_eq(try_open(&why), -EPROTONOSUPPORT);
    cr_assert_not_null(strstr(why.text, "newer"));
    cr_assert_eq(try_init(&why), -EEXIST);
}

/* cp -a of a datastore, here by moving .diskguard: another root. fsck.diskguard -n gets it for a
 * look. */
Test(store, look_writes_nothing, .init = scratch_make, .fini = scratch_remove)
{
    struct store made, s;
    struct why why = {""};
    struct stat before, after;

    make_store(&made);
    cr_assert_eq(stat(scratch_path(".diskguard/tmp"), &before), 0);
    cr_assert_eq(store_look(scratch, &s, &why), 0, "%s", why.text);
    cr_assert(s.read_only);
    cr_assert_str_eq(s.uuid, made.uuid);
    cr_assert(s.claims_fd >= 0 && s.tmp_fd >= 0 && s.hosts_fd >= 0);
    cr_assert_eq(stat(scratch_path(".diskguard/tmp"), &after), 0);
    cr_assert(before.st_mtim.tv_sec == after.st_mtim.tv_sec &&
              before.st_mtim.tv_nsec == after.st_mtim.tv_nsec);
    store_close(&s);
    store_close(&made);
}

Test(store, look_says_what_open_says, .init = scratch_make, .fini = scratch_remove)
{
    struct store s;
    struct why why = {""};

    cr_assert_eq(store_look(scratch, &s, &why), -ENOENT);
    cr_assert_not_null(strstr(why.text, "diskguardctl init"));
    make_store(&s);
    store_close(&s);
    cr_assert_eq(chmod(scratch_path(".diskguard"), 0755), 0);
    cr_assert_eq(store_look(scratch, &s, &why), -EPERM);
    cr_assert_not_null(strstr(why.text, "chmod 0700"));
}

Test(store, open_recognises_a_copy, .init = scratch_make, .fini = scratch_remove)
{
    struct store s, copy;
    struct why why;
    char to[128];

    make_store(&s);
    snprintf(to, sizeof(to), "%s/copy", scratch);
    cr_assert_eq(mkdir(to, 0700), 0);
    cr_assert_eq(rename(scratch_path(".diskguard"), scratch_path("copy/.diskguard")), 0);
    cr_assert_eq(store_open(to, &copy, &why), -EXDEV);
    cr_assert_not_null(strstr(why.text, "copy"));
    cr_assert_not_null(strstr(why.text, "fsck.diskguard -n"));
    cr_assert(copy.read_only && copy.claims_fd >= 0);
    cr_assert_str_eq(copy.uuid, s.uuid);
    store_close(&copy);
    store_close(&s);
}

Test(store, open_misses_a_removed_directory, .init = scratch_make, .fini = scratch_remove)
{
    static const char *const dirs[] = {".diskguard/tmp",       ".diskguard/hosts",
                                       ".diskguard/claims/00", ".diskguard/claims/a7",
                                       ".diskguard/marks/0f",  ".diskguard/readers/08"};
    struct store s;
    struct why why;

    make_store(&s);
    store_close(&s);
    for (int i = 0; i < 6; i++) {
        cr_assert_eq(rmdir(scratch_path(dirs[i])), 0);
        cr_assert_eq(try_open(&why), -EUCLEAN);
        cr_assert_not_null(strstr(why.text, dirs[i] + strlen(".diskguard/")));
        cr_assert_eq(mkdir(scratch_path(dirs[i]), 0700), 0);
    }
    cr_assert_eq(try_open(&why), 0);
}

Test(store, open_refuses_a_claim_outside_of_the_shards, .init = scratch_make,
     .fini = scratch_remove)
{
    struct store s;
    struct why why;

    make_store(&s);
    store_close(&s);
    scratch_write(".diskguard/claims/notes.txt", "x", 1);
    cr_assert_eq(try_open(&why), 0, "it is nobody's claim");
    scratch_write(".diskguard/claims/0000000000000001.1", "x", 1);
    cr_assert_eq(try_open(&why), -EUCLEAN);
    cr_assert_not_null(strstr(why.text, "claims/0000000000000001.1"));
    cr_assert_not_null(strstr(why.text, "to claims/b4"), "%s", why.text);
}

Test(store, open_refuses_format_1_and_names_the_command, .init = scratch_make,
     .fini = scratch_remove)
{
    struct store s;
    struct why why;

    make_store(&s);
    store_close(&s);
    made_by_version(1);
    cr_assert_eq(try_open(&why), -EPROTONOSUPPORT);
    cr_assert_not_null(strstr(why.text, "diskguardctl init --upgrade /"));
    cr_assert_eq(store_look(scratch, &s, &why), -EPROTONOSUPPORT);
    cr_assert_eq(try_init(&why), -EEXIST);
}

/* ---- read-only, full, foreign credentials ---- */

/* A datastore on a small file system of its own, at path. false: mount is not permitted. */
static bool make_small(const char *options, char path[128])
{
    struct store s;
    struct why why = {""};

    snprintf(path, 128, "%s/small", scratch);
    if (!scratch_mount(options))
        return false;
    cr_assert_eq(store_init(path, &s, &why), 0, "%s", why.text);
    store_close(&s);
    return true;
}

Test(store, a_read_only_file_system_opens_read_only, .init = scratch_make, .fini = scratch_remove)
{
    char path[128];
    struct store s;
    struct why why;

    if (!make_small("mode=0700,size=1m", path))
        cr_skip_test("mount is not permitted");
    cr_assert(scratch_remount(MS_RDONLY));
    cr_assert_eq(store_open(path, &s, &why), 0, "%s", why.text);
    cr_assert(s.read_only);
    cr_assert_eq(store_prove(&s, &why), -EROFS);
    cr_assert_not_null(strstr(why.text, "read-only"));
    store_close(&s);
}

Test(store, a_full_one_opens_but_proves_nothing, .init = scratch_make, .fini = scratch_remove)
{
    char path[128];
    struct store s;
    struct why why;

    if (!make_small("mode=0700,size=256k", path))
        cr_skip_test("mount is not permitted");
    scratch_fill("small/fill");
    cr_assert_eq(store_open(path, &s, &why), 0, "%s", why.text);
    cr_assert_not(s.read_only);
    cr_assert_eq(store_prove(&s, &why), -ENOSPC);
    cr_assert_not_null(strstr(why.text, "full"));
    cr_assert_eq(scratch_count("small/.diskguard/tmp"), 0);
    cr_assert_eq(unlink(scratch_path("small/fill")), 0);
    cr_assert_eq(store_prove(&s, &why), 0, "%s", why.text);
    store_close(&s);
}

/* As another user than the owner of tmp/: what root squash looks like. */
static int open_squashed(void)
{
    struct store s;
    struct why why = {""};
    int r;

    if (setegid(65534) < 0 || seteuid(65534) < 0)
        return 1;
    r = store_open(scratch, &s, &why);
    if (r < 0 || !s.read_only)
        return 2;
    if (store_prove(&s, &why) != -EACCES || !strstr(why.text, "no_root_squash"))
        return 3;
    store_close(&s);
    return 0;
}

Test(store, without_the_right_to_write_it_is_read_only, .init = scratch_make,
     .fini = scratch_remove)
{
    struct store s;
    int step;

    if (geteuid() != 0)
        cr_skip_test("needs root");
    make_store(&s);
    store_close(&s);
    cr_assert_eq(chmod(scratch, 0755), 0);
    cr_assert_eq(chown(scratch_path(".diskguard"), 65534, 65534), 0);
    cr_assert_eq(chmod(scratch_path(".diskguard/claims"), 0755), 0);
    cr_assert_eq(chmod(scratch_path(".diskguard/marks"), 0755), 0);
    cr_assert_eq(chmod(scratch_path(".diskguard/readers"), 0755), 0);
    cr_assert_eq(chmod(scratch_path(".diskguard/tmp"), 0755), 0);
    cr_assert_eq(chmod(scratch_path(".diskguard/hosts"), 0755), 0);
    cr_assert_eq(chmod(scratch_path(".diskguard/datastore"), 0644), 0);
    step = scratch_child(open_squashed);
    cr_assert_eq(step, 0, "step %d", step);
}

/* ---- proof ---- */

Test(store, prove_leaves_nothing, .init = scratch_make, .fini = scratch_remove)
{
    static const enum fence_kind kinds[] = {FENCE_OFD, FENCE_FLOCK, FENCE_NONE};
    struct store s;
    struct why why;

    make_store(&s);
    scratch_write(".diskguard/tmp/init.left-by-a-crash", "x", 1);
    scratch_write(".diskguard/tmp/somebody-else", "x", 1);
    for (int i = 0; i < 3; i++) {
        s.fence = kinds[i];
        cr_assert_eq(store_prove(&s, &why), 0, "%s", why.text);
    }
    cr_assert_eq(scratch_count(".diskguard/tmp"), 1);
    store_close(&s);
}

Test(store, prove_says_what_failed, .init = scratch_make, .fini = scratch_remove)
{
    struct store s;
    struct why why;

    make_store(&s);
    cr_assert_eq(rmdir(scratch_path(".diskguard/tmp")), 0);
    cr_assert_eq(store_prove(&s, &why), -ENOENT);
    cr_assert_not_null(strstr(why.text, "create and fsync a file"));
    cr_assert_not_null(strstr(why.text, scratch));
    store_close(&s);
}

Test(store, prove_leaves_nothing_after_a_failure_half_way, .init = scratch_make,
     .fini = scratch_remove)
{
    struct store s;
    struct why why;

    make_store(&s);
    s.fence = (enum fence_kind)99;
    cr_assert_eq(store_prove(&s, &why), -EINVAL);
    cr_assert_not_null(strstr(why.text, "lock"));
    cr_assert_eq(scratch_count(".diskguard/tmp"), 0);
    store_close(&s);
}

Test(store, close_after_a_failed_open_closes_nothing, .init = scratch_make, .fini = scratch_remove)
{
    struct store s;

    memset(&s, 0, sizeof(s));
    cr_assert_eq(store_open(scratch, &s, NULL), -ENOENT);
    store_close(&s);
    store_close(&s);
    cr_assert(s.root_fd == -1 && s.tmp_fd == -1);
}

/* ---- text ---- */

Test(text, round_trip_and_refusals)
{
    char a[16] = "one two", b[8] = "", text[128], small[20];
    const struct text_field f[] = {TEXT_FIELD("a", a), TEXT_FIELD("b", b)};
    size_t len = 99, n;

    cr_assert_eq(text_emit("m", 3, f, 2, text, sizeof(text), &len), 0);
    cr_assert_eq(strncmp(text, "m 3\na=one two\nb=\nsum=", 21), 0);
    cr_assert_eq(strlen(text), len);
    strcpy(a, "x");
    strcpy(b, "y");
    cr_assert_eq(text_parse(text, len, "m", 2, f, 2), -EPROTONOSUPPORT);
    cr_assert_eq(text_parse(text, len, "n", 3, f, 2), -EBADMSG);
    cr_assert_eq(text_parse(text, len, "m", 3, f, 1), -EBADMSG);
    cr_assert_eq(text_parse(text, len - 1, "m", 3, f, 2), -EBADMSG);
    cr_assert_eq(text_parse(text, 0, "m", 3, f, 2), -EBADMSG);
    cr_assert_str_eq(a, "x");
    cr_assert_eq(text_parse(text, len, "m", 3, f, 2), 0);
    cr_assert_str_eq(a, "one two");
    cr_assert_str_eq(b, "");
    cr_assert_eq(text_emit("m", 3, f, 2, small, sizeof(small), &n), -ENAMETOOLONG);
    strcpy(a, "line\nfeed");
    cr_assert_eq(text_emit("m", 3, f, 2, text, sizeof(text), &n), -EINVAL);
}

Test(text, a_value_that_does_not_fit_changes_nothing)
{
    char a[16] = "first", b[16] = "longer", text[128], c[8] = "old", d[4] = "old";
    const struct text_field f[] = {TEXT_FIELD("a", a), TEXT_FIELD("b", b)};
    const struct text_field g[] = {TEXT_FIELD("a", c), TEXT_FIELD("b", d)};
    size_t len;

    cr_assert_eq(text_emit("m", 1, f, 2, text, sizeof(text), &len), 0);
    cr_assert_eq(text_parse(text, len, "m", 1, g, 2), -EBADMSG);
    cr_assert_str_eq(c, "old");
    cr_assert_str_eq(d, "old");
}

/* ---- is a file gone? ---- */

Test(store, a_file_is_gone_only_when_the_datastore_says_so, .init = scratch_make,
     .fini = scratch_remove)
{
    struct store s;
    struct io_handle h;
    int fd;

    make_store(&s);
    scratch_write("disk.img", "x", 1);
    fd = openat(s.root_fd, "disk.img", O_RDONLY | O_CLOEXEC);
    cr_assert_geq(fd, 0);
    cr_assert_eq(io_handle_get(fd, &h), 0);
    cr_assert_eq(store_gone(&s, fd, &h), 0);
    if (h.len > 0)
        cr_assert_eq(store_gone(&s, -1, &h), 0);
    cr_assert_eq(unlinkat(s.root_fd, "disk.img", 0), 0);
    cr_assert_eq(store_gone(&s, fd, &h), 1, "its link count is 0");
    close(fd);
    if (h.len > 0) {
        cr_assert_eq(store_gone(&s, -1, &h), 1);
        cr_assert_eq(renameat(s.dir_fd, "datastore", s.dir_fd, "elsewhere"), 0);
        cr_assert_eq(store_gone(&s, -1, &h), -ENOENT, "this is not the datastore that was opened");
        made_by_version(1);
        cr_assert_lt(store_gone(&s, -1, &h), 0, "nor this");
    }
    h.len = 0;
    cr_assert_lt(store_gone(&s, -1, &h), 0, "nobody can be asked");
    store_close(&s);
}
