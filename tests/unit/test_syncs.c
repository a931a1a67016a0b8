/* How often the guard waits for a disk: what an open and a close of an image cost
 * (DESIGN 4.4, 4.6). */
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
