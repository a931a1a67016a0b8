/* test_io.c: files, freshness, handles and locks, on whatever file system TMPDIR is. */
#include "unit.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <sys/wait.h>

#include "core/io.h"

static char dir_path[256];
static int dir = -1;

static void setup(void)
{
    const char *tmp = getenv("TMPDIR");

    snprintf(dir_path, sizeof dir_path, "%s/diskguard-io-XXXXXX", tmp ? tmp : "/tmp");
    cr_assert_not_null(mkdtemp(dir_path));
    dir = open(dir_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    cr_assert_geq(dir, 0);
}

static int remove_one(void *arg, const char *name)
{
    (void)arg;
    return unlinkat(dir, name, 0) == 0 || unlinkat(dir, name, AT_REMOVEDIR) == 0 ? 0 : -errno;
}

static void teardown(void)
{
    cr_assert_eq(io_fresh_dir(dir, remove_one, NULL), 0);
    close(dir);
    cr_assert_eq(rmdir(dir_path), 0);
}

#define IO_TEST(name) Test(io, name, .init = setup, .fini = teardown)

/* A new file with that content, open read-write. */
static int make(const char *name, const void *content, size_t len)
{
    int fd = io_text_create(dir, name, content, len);

    cr_assert_geq(fd, 0, "%s: %s", name, strerror(-fd));
    return fd;
}

static bool exists(const char *name)
{
    return faccessat(dir, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

IO_TEST(beneath_stays_beneath)
{
    close(make("file", "x", 1));
    cr_assert_eq(symlinkat("/etc", dir, "absolute"), 0);
    cr_assert_eq(symlinkat("file", dir, "link"), 0);
    cr_assert_eq(mkdirat(dir, "sub", 0700), 0);
    static const struct {
        const char *path;
        int r;
    } cases[] = {
        {"..", -EXDEV},
        {"sub/../..", -EXDEV},
        {"/etc", -EXDEV},
        {"absolute/passwd", -ELOOP},
        {"link", -ELOOP},
        {"missing", -ENOENT},
        {"", -ENOENT},
        {"file/x", -ENOTDIR},
        {"sub/../../etc", -EXDEV},
        {".", INT_MAX},
        {"sub/", INT_MAX},
        {"sub//.", INT_MAX},
        {"file/", -ENOTDIR},
        {"file", INT_MAX},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int fd = io_open_beneath(dir, cases[i].path, O_RDONLY, 0600);
        if (cases[i].r < 0) {
            cr_assert_eq(fd, cases[i].r, "%s: %d", cases[i].path, fd);
            continue;
        }
        cr_assert_geq(fd, 0, "%s: %d", cases[i].path, fd);
        cr_assert_eq(fcntl(fd, F_GETFD), FD_CLOEXEC);
        close(fd);
    }
}

IO_TEST(beneath_creates)
{
    struct stat st;
    int fd = io_open_beneath(dir, "new", O_RDWR | O_CREAT | O_EXCL, S_IFREG | 0640);

    cr_assert_geq(fd, 0);
    cr_assert_eq(fchmod(fd, 0640), 0);
    cr_assert_eq(fstat(fd, &st), 0);
    cr_assert_eq(st.st_mode, (mode_t)(S_IFREG | 0640));
    cr_assert_eq(io_open_beneath(dir, "new", O_RDWR | O_CREAT | O_EXCL, 0600), -EEXIST);
    close(fd);
}

IO_TEST(reopen)
{
    int fd = make("file", "hello", 5), path_fd, again;
    char buf[5];

    close(fd);
    path_fd = io_open_beneath(dir, "file", O_PATH | O_NOFOLLOW, 0);
    cr_assert_geq(path_fd, 0);
    cr_assert_eq(renameat(dir, "file", dir, "renamed"), 0);
    again = io_reopen(path_fd, O_RDWR | O_NOFOLLOW);
    cr_assert_geq(again, 0, "the file, not its name");
    cr_assert_eq(io_pread_all(again, buf, 5, 0), 0);
    cr_assert_arr_eq(buf, "hello", 5);
    cr_assert_eq(fcntl(again, F_GETFD), FD_CLOEXEC);
    close(again);
    close(path_fd);
    cr_assert_eq(io_reopen(path_fd, O_RDONLY), -EBADF);
}

IO_TEST(reopen_refuses_what_is_no_file)
{
    int fd;

    cr_assert_eq(mkfifoat(dir, "fifo", 0600), 0);
    cr_assert_eq(io_reopen(dir, O_RDONLY), -EINVAL);
    fd = io_open_beneath(dir, "fifo", O_PATH, 0);
    cr_assert_geq(fd, 0);
    cr_assert_eq(io_reopen(fd, O_RDONLY), -EINVAL);
    close(fd);
}

IO_TEST(stat_fresh_is_stat)
{
    int fd = make("file", "hello", 5), path_fd;
    struct stat a, b;

    memset(&a, 0, sizeof a);
    memset(&b, 0, sizeof b);
    cr_assert_eq(linkat(dir, "file", dir, "second", 0), 0);
    path_fd = io_open_beneath(dir, "file", O_PATH, 0);
    cr_assert_eq(io_fresh_stat(path_fd, &a), 0);
    cr_assert_eq(fstat(fd, &b), 0);
    cr_assert_eq(a.st_nlink, 2u);
    cr_assert(a.st_dev == b.st_dev && a.st_ino == b.st_ino && a.st_mode == b.st_mode &&
              a.st_nlink == b.st_nlink);
    cr_assert(a.st_uid == b.st_uid && a.st_gid == b.st_gid && a.st_rdev == b.st_rdev &&
              a.st_size == b.st_size);
    cr_assert(a.st_blksize == b.st_blksize && a.st_blocks == b.st_blocks);
    cr_assert_arr_eq(&a.st_mtim, &b.st_mtim, sizeof a.st_mtim);
    cr_assert_arr_eq(&a.st_ctim, &b.st_ctim, sizeof a.st_ctim);
    close(path_fd);
    close(fd);
    cr_assert_eq(io_fresh_stat(fd, &a), -EBADF);
}

struct names {
    unsigned n, stop_at;
    bool seen[3];
};

static int note(void *arg, const char *name)
{
    struct names *names = arg;

    cr_assert(name[0] >= 'a' && name[0] <= 'c' && name[1] == '\0', "%s", name);
    names->seen[name[0] - 'a'] = true;
    return ++names->n == names->stop_at ? 77 : 0;
}

IO_TEST(dir_fresh)
{
    struct names all = {0}, some = {.stop_at = 2};

    for (const char *p = "abc"; *p; p++)
        close(make((const char[]){*p, '\0'}, "", 0));
    cr_assert_eq(io_fresh_dir(dir, note, &all), 0);
    cr_assert(all.n == 3 && all.seen[0] && all.seen[1] && all.seen[2]);
    cr_assert_eq(io_fresh_dir(dir, note, &some), 77, "from the start again, and stops");
    cr_assert_eq(some.n, 2u);
    int fd = open("/dev/null", O_RDONLY);
    cr_assert_eq(io_fresh_dir(fd, note, &all), -ENOTDIR);
    close(fd);
}

IO_TEST(pread_and_pwrite)
{
    int fd = make("file", "0123456789", 10);
    char buf[16] = "";

    cr_assert_eq(io_pread_all(fd, buf, 10, 0), 0);
    cr_assert_arr_eq(buf, "0123456789", 10);
    cr_assert_eq(io_pread_all(fd, buf, 3, 8), -ENODATA);
    cr_assert_eq(io_pread_all(fd, buf, 1, 10), -ENODATA);
    cr_assert_eq(io_pread_all(fd, buf, 0, 10), 0);
    cr_assert_eq(io_pwrite_all(fd, "xyz", 3, 9), 0);
    cr_assert_eq(io_pread_all(fd, buf, 12, 0), 0);
    cr_assert_arr_eq(buf, "012345678xyz", 12);
    cr_assert_eq(io_pwrite_all(fd, "x", 1, UINT64_MAX), -EFBIG);
    cr_assert_eq(io_pread_all(fd, buf, 1, UINT64_MAX), -EINVAL);
    cr_assert_eq(io_pwrite_all(dir, "x", 1, 0), -EBADF);
    cr_assert_eq(io_fsync(fd), 0);
    cr_assert_eq(io_fsync(-1), -EBADF);
    close(fd);
}

IO_TEST(text_create_and_read)
{
    int fd = make("record", "line\nline\n", 10);
    char *text = NULL;
    struct stat st;
    size_t len = 0;

    cr_assert_eq(fstat(fd, &st), 0);
    cr_assert_eq(st.st_mode & 077, 0u);
    cr_assert_eq(io_text_create(dir, "record", "other", 5), -EEXIST);
    cr_assert(exists("record"), "an existing file is not ours to remove");
    cr_assert_eq(io_fresh_text(dir, "record", 10, &text, &len), 0);
    cr_assert_eq(len, 10u);
    cr_assert_str_eq(text, "line\nline\n");
    free(text);
    text = NULL;
    cr_assert_eq(io_fresh_text(dir, "record", 9, &text, &len), -EFBIG);
    cr_assert_eq(io_fresh_text(dir, "missing", 9, &text, &len), -ENOENT);
    cr_assert(text == NULL && len == 10, "untouched");
    cr_assert_eq(io_pwrite_all(fd, "L", 1, 0), 0);
    cr_assert_eq(io_fresh_text(dir, "record", 100, &text, &len), 0);
    cr_assert_str_eq(text, "Line\nline\n");
    free(text);
    close(fd);
}

IO_TEST(text_read_of_odd_files)
{
    char *text = NULL;
    size_t len = 0;

    close(make("empty", "", 0));
    cr_assert_eq(io_fresh_text(dir, "empty", 0, &text, &len), 0);
    cr_assert_str_eq(text, "");
    free(text);
    text = NULL;
    cr_assert_eq(mkfifoat(dir, "fifo", 0600), 0);
    cr_assert_eq(io_fresh_text(dir, "fifo", 10, &text, &len), -EINVAL,
                 "and does not wait for a writer");
    cr_assert_eq(symlinkat("empty", dir, "link"), 0);
    cr_assert_eq(io_fresh_text(dir, "link", 10, &text, &len), -ELOOP);
    cr_assert_null(text);
}

static bool on_tmpfs(void)
{
    struct statfs sfs;

    return fstatfs(dir, &sfs) == 0 && sfs.f_type == TMPFS_MAGIC;
}

#define BIG (32u << 20)

/* A clean file of BIG bytes that is cached as a whole, in folios as large as the file system makes
 * them. It is mapped at once, because valgrind reads a file when it is mapped. */
struct big {
    int fd;
    void *map;
};

static struct big make_big(void)
{
    char *zero = calloc(1, BIG);
    struct big big;

    cr_assert_not_null(zero);
    big.fd = make("big", zero, BIG);
    free(zero);
    big.map = mmap(NULL, BIG, PROT_READ, MAP_SHARED, big.fd, 0);
    cr_assert(big.map != MAP_FAILED);
    return big;
}

static void free_big(struct big *big)
{
    munmap(big->map, BIG);
    close(big->fd);
}

/* Is the page of byte off in the page cache? Asking reads nothing: mincore(2). */
static bool cached(const struct big *big, size_t off)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char resident = 0;

    cr_assert_eq(mincore((char *)big->map + off / page * page, page, &resident), 0);
    return resident & 1;
}

IO_TEST(cache_drop)
{
    if (on_tmpfs())
        cr_skip_test("tmpfs has nothing but its page cache");
    struct big big = make_big();
    cr_assert(cached(&big, 0) && cached(&big, BIG - 1));
    cr_assert_eq(io_cache_drop(big.fd), 0);
    cr_assert_not(cached(&big, 0) || cached(&big, BIG / 2) || cached(&big, BIG - 1));
    free_big(&big);
    cr_assert_eq(io_cache_drop(big.fd), -EBADF);
}

IO_TEST(header_read_goes_past_the_cache)
{
    char buf[4096];

    if (on_tmpfs())
        cr_skip_test("tmpfs has nothing but its page cache");
    struct big big = make_big();
    cr_assert(cached(&big, 0));
    /* a read of nothing: so that what it dropped is not cached again */
    cr_assert_eq(io_header_drop(big.fd, 100, 0), 0);
    cr_assert_not(cached(&big, 0) || cached(&big, 4096),
                  "also where the page cache holds large folios");
    cr_assert(cached(&big, BIG - 1), "what is far away stays");
    cr_assert_eq(io_fresh_header(big.fd, buf, sizeof buf, 0), (ssize_t)sizeof buf);
    cr_assert(cached(&big, 0));
    free_big(&big);
}

IO_TEST(header_read_counts)
{
    int fd = make("file", "0123456789", 10);
    char buf[16];

    cr_assert_eq(io_fresh_header(fd, buf, 16, 0), 10);
    cr_assert_arr_eq(buf, "0123456789", 10);
    cr_assert_eq(io_fresh_header(fd, buf, 4, 8), 2);
    cr_assert_eq(io_fresh_header(fd, buf, 4, 10), 0);
    cr_assert_eq(io_fresh_header(fd, buf, 4, 1u << 30), 0);
    cr_assert_eq(io_fresh_header(fd, buf, 4, INT64_MAX), -EINVAL);
    cr_assert_eq(io_header_write(fd, "ab", 2, 3), 0);
    cr_assert_eq(io_fresh_header(fd, buf, 16, 0), 10);
    cr_assert_arr_eq(buf, "012ab56789", 10);
    close(fd);
    cr_assert_eq(io_fresh_header(fd, buf, 4, 0), -EBADF);
    cr_assert_eq(io_header_write(fd, buf, 4, 0), -EBADF);
}

IO_TEST(mtime_alone)
{
    int fd = make("file", "x", 1);
    struct timespec past = {1000000000, 5};
    struct stat before, after;

    cr_assert_eq(fstat(fd, &before), 0);
    cr_assert_eq(io_set_mtime(fd, past), 0);
    cr_assert_eq(fstat(fd, &after), 0);
    cr_assert_arr_eq(&after.st_mtim, &past, sizeof past);
    cr_assert_arr_eq(&after.st_atim, &before.st_atim, sizeof past);
    close(fd);
}

/* ---- handles ---- */

IO_TEST(handles)
{
    struct io_handle a, b, c, empty = {0}, other_empty = {.type = 5};
    int fd = make("a", "hello", 5), other = make("b", "", 0),
        path_fd = io_open_beneath(dir, "a", O_PATH, 0);
    char byte;

    cr_assert_eq(io_handle_get(fd, &a), 0);
    cr_assert_eq(io_handle_get(path_fd, &b), 0);
    cr_assert_eq(io_handle_get(other, &c), 0);
    close(path_fd);
    close(other);
    cr_assert(io_handle_equal(&empty, &other_empty));
    cr_assert_eq(io_handle_open(dir, &empty, O_RDONLY), -EOPNOTSUPP);
    cr_assert_eq(io_handle_get(-1, &b), -EBADF);
    if (a.len == 0)
        cr_skip_test("no handles here");
    cr_assert(io_handle_equal(&a, &b));
    cr_assert_not(io_handle_equal(&a, &c) || io_handle_equal(&a, &empty));
    b.type++;
    cr_assert_not(io_handle_equal(&a, &b));
    int again = io_handle_open(dir, &a, O_RDONLY);
    if (again == -EPERM)
        cr_skip_test("needs CAP_DAC_READ_SEARCH");
    cr_assert_geq(again, 0, "%s", strerror(-again));
    cr_assert_eq(io_pread_all(again, &byte, 1, 0), 0);
    cr_assert_eq(byte, 'h');
    cr_assert_eq(unlinkat(dir, "a", 0), 0);
    close(again);
    close(fd);
    cr_assert_eq(io_handle_open(dir, &a, O_RDONLY), -ESTALE, "the file is gone");
}

/* ---- locks ---- */

IO_TEST(append_is_one_write)
{
    static const struct io_fstype local = {.open_appends = false}, server = {.open_appends = true};
    int fd = openat(dir, "log", O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    char back[8] = "";

    cr_assert(fd >= 0);
    cr_assert_not(io_drop_append(fd, &server), "the storage must know");
    cr_assert_eq(fcntl(fd, F_GETFL) & O_APPEND, O_APPEND);
    cr_assert(io_drop_append(fd, &local));
    cr_assert_eq(fcntl(fd, F_GETFL) & O_APPEND, 0);
    cr_assert(io_drop_append(fd, &server), "it has none");
    cr_assert_eq(io_append(fd, "one", 3), 3);
    cr_assert_eq(io_append(fd, "two", 3), 3);
    cr_assert_eq(pwrite(fd, "O", 1, 0), 1);
    cr_assert_eq(pread(fd, back, sizeof(back), 0), 6);
    cr_assert_str_eq(back, "Onetwo");
    cr_assert_eq(io_append(-1, "x", 1), -EBADF);
    close(fd);
}

IO_TEST(fstype)
{
    int proc = open("/proc/self/status", O_RDONLY);

    cr_assert_not_null(io_fstype(dir)->name);
    cr_assert_str_eq(io_fstype(proc)->name, "unknown");
    cr_assert_eq(io_fstype(proc)->fence, FENCE_OFD);
    cr_assert_str_eq(io_fstype(-1)->name, "unknown");
    if (on_tmpfs())
        cr_assert_str_eq(io_fstype(dir)->name, "tmpfs");
    close(proc);
}

/* The same rules for both kinds, between descriptors of one process as between processes. */
static void check_fence(enum fence_kind kind)
{
    int a = make("image", "x", 1), b = openat(dir, "image", O_RDWR | O_CLOEXEC);

    cr_assert_eq(io_fence_shared(a, kind), 0);
    cr_assert_eq(io_fence_shared(b, kind), 0, "writers share");
    cr_assert_eq(io_fence_exclusive(b, kind), -EAGAIN);
    close(b);
    b = openat(dir, "image", O_RDWR | O_CLOEXEC);
    cr_assert_eq(io_fence_exclusive(b, kind), -EAGAIN);
    cr_assert_eq(io_fence_exclusive(a, kind), 0, "alone: converts");
    cr_assert_eq(io_fence_shared(b, kind), -EAGAIN);
    cr_assert_eq(io_fence_shared(a, kind), 0, "converts back");
    cr_assert_eq(io_fence_shared(b, kind), 0);
    close(a);
    cr_assert_eq(io_fence_exclusive(b, kind), 0, "a close unlocks");
    a = openat(dir, "image", O_RDWR | O_CLOEXEC);
    int dup_a = fcntl(a, F_DUPFD_CLOEXEC, 0);
    cr_assert_eq(io_fence_shared(a, kind), -EAGAIN);
    io_fence_drop(b, kind);
    cr_assert_eq(io_fence_shared(a, kind), 0, "dropped");
    cr_assert_eq(io_fence_exclusive(dup_a, kind), 0, "a duplicate is the same owner");
    close(dup_a);
    cr_assert_eq(io_fence_shared(b, kind), -EAGAIN,
                 "and keeps the lock when one of the two is closed");
    close(a);
    close(b);
    cr_assert_eq(unlinkat(dir, "image", 0), 0);
}

IO_TEST(fresh_data)
{
    char text[8192], buf[8192];
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (char)(i / 100);
    int fd = make("data", text, sizeof text),
        direct = openat(dir, "data", O_RDONLY | O_DIRECT | O_CLOEXEC);
    cr_assert_eq(io_fsync(fd), 0);

    cr_assert_eq(io_fresh_guest_data(-1, fd, buf, sizeof buf, 0), (ssize_t)sizeof buf);
    cr_assert_arr_eq(buf, text, sizeof buf);
    /* Where O_DIRECT wants an alignment, the other way. */
    cr_assert_eq(io_fresh_guest_data(direct, fd, buf + 1, 1000, 4001), 1000);
    cr_assert_arr_eq(buf + 1, text + 4001, 1000);
    cr_assert_eq(io_fresh_guest_data(direct, fd, buf, sizeof buf, 8000), 192,
                 "the end of the file");
    cr_assert_eq(io_fresh_guest_data(direct, fd, buf, sizeof buf, 1u << 30), 0);
    cr_assert_eq(io_fresh_guest_data(-1, -1, buf, 1, 0), -EBADF);
    if (direct >= 0)
        close(direct);
    close(fd);
    cr_assert_eq(unlinkat(dir, "data", 0), 0);
}

IO_TEST(fence)
{
    check_fence(FENCE_OFD);
    check_fence(FENCE_FLOCK);
}

IO_TEST(fence_none_and_bad_descriptors)
{
    int a = make("image", "x", 1), b = openat(dir, "image", O_RDONLY | O_CLOEXEC);

    cr_assert_eq(io_fence_exclusive(a, FENCE_NONE), 0);
    cr_assert_eq(io_fence_exclusive(b, FENCE_NONE), 0);
    cr_assert_eq(io_fence_exclusive(b, FENCE_OFD), -EBADF, "needs a writable descriptor");
    close(a);
    close(b);
    cr_assert_eq(io_fence_shared(a, FENCE_OFD), -EBADF);
    cr_assert_eq(io_fence_shared(a, FENCE_FLOCK), -EBADF);
}

IO_TEST(fence_is_one_byte)
{
    int a = make("image", "x", 1), b = openat(dir, "image", O_RDWR | O_CLOEXEC);
    struct flock below = {
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = DG_FENCE_OFFSET};
    struct flock above = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = DG_FENCE_OFFSET + 1};
    struct flock on = {
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = DG_FENCE_OFFSET, .l_len = 1};

    cr_assert_eq(io_fence_shared(a, FENCE_OFD), 0);
    cr_assert_eq(fcntl(b, F_OFD_SETLK, &below), 0);
    cr_assert_eq(fcntl(b, F_OFD_SETLK, &above), 0);
    cr_assert_lt(fcntl(b, F_OFD_SETLK, &on), 0);
    close(a);
    close(b);
}

static void check_lock_file(enum fence_kind kind)
{
    int a = make("lock", "x", 1), b = openat(dir, "lock", O_RDWR | O_CLOEXEC);

    cr_assert_eq(io_lock_file(a, kind), 0);
    cr_assert_eq(io_lock_file(a, kind), 0);
    cr_assert_eq(io_lock_file(b, kind), -EAGAIN);
    pid_t child = fork();
    if (child == 0)
        _exit(io_lock_file(b, kind) == -EAGAIN ? 0 : 1);
    int status = -1;
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert_eq(status, 0);
    close(a);
    cr_assert_eq(io_lock_file(b, kind), 0);
    close(b);
    cr_assert_eq(unlinkat(dir, "lock", 0), 0);
}

IO_TEST(lock_file)
{
    check_lock_file(FENCE_OFD);
    check_lock_file(FENCE_FLOCK);
    check_lock_file(FENCE_NONE);
}
