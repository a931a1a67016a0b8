/* How often the guard waits for a disk: what an open and a close of an image cost
 * (DESIGN 4.4, 4.6). */
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/syscall.h>

#include "guard_scene.h"

/* In the place of the C library's, for all of this program. */
static atomic_uint synced;

int fsync(int fd)
{
    atomic_fetch_add(&synced, 1);
    return (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd)
{
    atomic_fetch_add(&synced, 1);
    return (int)syscall(SYS_fdatasync, fd);
}

/* A write of before that the disk refused: the kernel says so once, and goes on showing it. */
static atomic_uint refused, dropped; /* whole files */

int sync_file_range(int fd, off64_t off, off64_t len, unsigned flags)
{
    if (atomic_load(&refused) > 0) {
        atomic_fetch_sub(&refused, 1);
        errno = EIO;
        return -1;
    }
    return (int)syscall(SYS_sync_file_range, fd, off, len, flags);
}

int posix_fadvise(int fd, off_t off, off_t len, int advice)
{
    struct stat st;

    if (off == 0 && len == 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
        atomic_fetch_add(&dropped, 1);
    return syscall(SYS_fadvise64, fd, off, len, advice) < 0 ? errno : 0;
}

Test(syncs, what_the_disk_refused_is_not_believed, .init = scene_make, .fini = scene_remove)
{
    for (unsigned error = 0; error < 2; error++) {
        struct handle *h;

        atomic_store(&dropped, 0);
        atomic_store(&refused, error);
        cr_assert_eq(open_as(host[0], "disk.qcow2", O_RDWR, &first, &h), 0);
        cr_assert_eq(atomic_load(&refused), 0);
        cr_assert_eq(atomic_load(&dropped), error);
        close_as(host[0], h);
    }
}

Test(syncs, of_an_open_and_a_close, .init = scene_make, .fini = scene_remove)
{
    struct guard *g = host[0];

    for (unsigned round = 0; round < 3; round++) {
        struct handle *h;

        atomic_store(&synced, 0);
        cr_assert_eq(open_as(g, "disk.qcow2", O_RDWR, &first, &h), 0);
        /* row; record, its name; seal */
        cr_assert_eq(atomic_load(&synced), 4, "%u syncs for an open", atomic_load(&synced));

        atomic_store(&synced, 0);
        close_as(g, h);
        /* guest data; row; true bytes and mtime; record, its name */
        cr_assert_eq(atomic_load(&synced), 5, "%u syncs for a close", atomic_load(&synced));
        cr_assert(is_true("disk.qcow2"));
    }
}

#ifdef DG_HOOKS
Test(syncs, of_storage_that_other_hosts_mount, .init = scene_make, .fini = scene_remove)
{
    struct handle *h;

    setenv("DISKGUARD_HOOK_FSTYPE", "nfs", 1);
    atomic_store(&synced, 0);
    cr_assert_eq(open_as(host[0], "disk.qcow2", O_RDWR, &first, &h), 0);
    /* pages of before, and those of the opener's descriptor, as well */
    cr_assert_eq(atomic_load(&synced), 6, "%u syncs for an open", atomic_load(&synced));
    atomic_store(&synced, 0);
    close_as(host[0], h);
    unsetenv("DISKGUARD_HOOK_FSTYPE");
    /* guest data; record, its name: restoring; true bytes and mtime; record, its name */
    cr_assert_eq(atomic_load(&synced), 6, "%u syncs for a close", atomic_load(&synced));
}
#endif

Test(syncs, the_journal_is_lazy_where_it_says_so, .init = scene_make, .fini = scene_remove)
{
    struct journal *j = host[0]->journal;
    static struct record rec;

    tempstore_record(&host[0]->host, 7, 1, &rec);
    atomic_store(&synced, 0);
    cr_assert_eq(journal_put(j, &rec), 0);
    cr_assert_eq(atomic_load(&synced), 1);
    rec.seq++;
    cr_assert_eq(journal_put_lazy(j, &rec), 0);
    cr_assert_eq(journal_remove(j, 7, 1), 0);
    cr_assert_eq(atomic_load(&synced), 1, "nothing waits for the disk");
    cr_assert_eq(journal_put(j, &rec), 0);
    cr_assert_eq(atomic_load(&synced), 2, "and the next one that must be durable makes all so");
}
