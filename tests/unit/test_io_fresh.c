/* test_io_fresh.c: that the deciding reads ask the storage: which directories are forced before a
 * name is looked up, and what they answer. A local file system has nothing stale to show, so the
 * system call itself is watched: statx(2) is this file's. */
#include "unit.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "core/io.h"
#include "scratch.h"

#define FORCED_MAX 16
static ino_t forced[FORCED_MAX];
static unsigned n_forced;

/* The library's, which all of the program calls, with a note of what was forced. */
int statx(int fd, const char *path, int flags, unsigned mask, struct statx *ret)
{
    long r = syscall(SYS_statx, fd, path, flags, mask, ret);

    if (r == 0 && flags & AT_STATX_FORCE_SYNC && n_forced < FORCED_MAX)
        forced[n_forced++] = ret->stx_ino;
    return (int)r;
}

static int dir = -1;

static void setup(void)
{
    scratch_make();
    dir = open(scratch, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    cr_assert_geq(dir, 0);
    cr_assert_eq(mkdirat(dir, "one", 0755), 0);
    cr_assert_eq(mkdirat(dir, "one/two", 0755), 0);
    close(io_text_create(dir, "one/two/file", "hello", 5));
}

static void teardown(void)
{
    close(dir);
    scratch_remove();
}

#define FRESH_TEST(name) Test(io_fresh, name, .init = setup, .fini = teardown)

static ino_t ino_of(const char *path)
{
    struct stat st;

    cr_assert_eq(fstatat(dir, path, &st, AT_SYMLINK_NOFOLLOW), 0, "%s", path);
    return st.st_ino;
}

FRESH_TEST(every_directory_on_the_way_is_forced)
{
    n_forced = 0;
    int fd = io_fresh_open(dir, "one//two/file", O_RDONLY);

    cr_assert_geq(fd, 0);
    close(fd);
    cr_assert_eq(n_forced, 3);
    cr_assert_eq(forced[0], ino_of("."));
    cr_assert_eq(forced[1], ino_of("one"));
    cr_assert_eq(forced[2], ino_of("one/two"));
}

FRESH_TEST(a_text_is_read_from_a_forced_directory)
{
    char *text;
    size_t len;
    int two = openat(dir, "one/two", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    n_forced = 0;
    cr_assert_eq(io_fresh_text(two, "file", 100, &text, &len), 0);
    cr_assert_eq(len, 5);
    cr_assert_str_eq(text, "hello");
    cr_assert_geq(n_forced, 2);
    cr_assert_eq(forced[0], ino_of("one/two"));
    cr_assert_eq(forced[1], ino_of("one/two/file"), "its size");
    free(text);
    n_forced = 0;
    cr_assert_eq(io_fresh_text(two, "absent", 100, &text, &len), -ENOENT);
    cr_assert_eq(forced[0], ino_of("one/two"), "an absent name is cached like any other");
    close(two);
}

FRESH_TEST(a_name_leads_nowhere_else)
{
    const struct {
        const char *path;
        int flags, want;
    } cases[] = {
        {"absent", O_RDONLY, -ENOENT},
        {"one/absent", O_PATH, -ENOENT},
        {"absent/two", O_PATH, -ENOENT},
        {"/etc", O_PATH, -EXDEV},
        {"one/../one", O_PATH, -EXDEV},
        {"..", O_PATH, -EXDEV},
        {"link", O_RDONLY, -ELOOP},
        {"link/file", O_RDONLY, -ELOOP},
        {"one/two/file/x", O_RDONLY, -ENOTDIR},
        {"one/two/file/", O_RDONLY, -ENOTDIR},
        {"", O_PATH, -ENOENT},
        {"one", O_RDWR | O_CREAT, -EINVAL},
    };
    char longest[NAME_MAX + 2];

    cr_assert_eq(symlinkat("one/two", dir, "link"), 0);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        int fd = io_fresh_open(dir, cases[i].path, cases[i].flags);
        cr_assert_eq(fd, cases[i].want, "'%s': %d", cases[i].path, fd);
    }
    int fd = io_fresh_open(dir, "link", O_PATH | O_NOFOLLOW);
    cr_assert_geq(fd, 0, "the link itself");
    close(fd);
    fd = io_fresh_open(dir, "one/", O_PATH);
    cr_assert_geq(fd, 0);
    close(fd);
    memset(longest, 'x', NAME_MAX + 1);
    longest[NAME_MAX + 1] = '\0';
    cr_assert_eq(io_fresh_open(dir, longest, O_PATH), -ENAMETOOLONG);
}

FRESH_TEST(a_handle_is_asked_whether_its_file_still_exists)
{
    struct io_handle h, none = {0};
    struct stat st = {0};
    int fd = openat(dir, "one/two/file", O_RDWR | O_CLOEXEC), again;

    cr_assert_eq(io_fresh_handle(dir, &none, O_PATH, NULL), -EOPNOTSUPP);
    cr_assert_eq(io_handle_get(fd, &h), 0);
    if (h.len == 0)
        cr_skip_test("no handles here");
    n_forced = 0;
    again = io_fresh_handle(dir, &h, O_PATH, &st);
    if (again == -EPERM)
        cr_skip_test("needs CAP_DAC_READ_SEARCH");
    cr_assert_geq(again, 0, "%s", strerror(-again));
    close(again);
    cr_assert_eq(st.st_ino, ino_of("one/two/file"));
    cr_assert_eq(n_forced, 1);
    /* Still open, so that a handle alone may well find it. */
    cr_assert_eq(unlinkat(dir, "one/two/file", 0), 0);
    cr_assert_eq(io_fresh_handle(dir, &h, O_PATH, &st), -ESTALE);
    close(fd);
    cr_assert_eq(io_fresh_handle(dir, &h, O_PATH, NULL), -ESTALE);
}

FRESH_TEST(data_is_all_or_nothing_and_follows_the_size)
{
    char buf[8] = "";
    int fd = openat(dir, "one/two/file", O_RDWR | O_CLOEXEC);

    n_forced = 0;
    cr_assert_eq(io_fresh_data(fd, buf, 5, 0), 0);
    cr_assert_arr_eq(buf, "hello", 5);
    cr_assert_eq(n_forced, 1);
    cr_assert_eq(io_fresh_data(fd, buf, 5, 1), -ENODATA);
    cr_assert_eq(io_fresh_data(-1, buf, 5, 1), -EBADF);
    close(fd);
}
