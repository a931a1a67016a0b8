/* test_handle.c: numbers of open files: each names one open, never the next one in its slot. */
#include "unit.h"

#include <fcntl.h>
#include <string.h>

#include "node/handle.h"

static struct inode_table *inodes;
static struct handle_table *table;
static struct inode *root;

static void no_image(struct image *img)
{
    (void)img;
}

static void no_locks(struct inode_locks *locks)
{
    (void)locks;
}

static void up(void)
{
    static const struct inode_parts parts = {no_image, no_locks};
    struct stat st;
    int fd = open("/", O_PATH | O_CLOEXEC);

    cr_assert_eq(fstat(fd, &st), 0);
    inodes = inode_table_new(&parts);
    cr_assert_not_null(inodes);
    cr_assert_eq(inode_table_root(inodes, fd, &st), 0);
    root = inode_get(inodes, INODE_ROOT_ID);
    cr_assert_not_null(root);
    table = handle_table_new(inodes);
    cr_assert_not_null(table);
}

static void down(void)
{
    handle_table_free(table);
    inode_put(inodes, root);
    inode_table_free(inodes);
}

static struct handle *open_one(void)
{
    struct handle *h = handle_new(table, root);

    cr_assert_not_null(h);
    cr_assert_eq(h->fd, -1);
    cr_assert_null(h->dir);
    handle_publish(h);
    return h;
}

Test(handle, number_is_that_of_one_open, .init = up, .fini = down)
{
    struct handle *h = open_one();
    uint64_t first = h->fh;

    cr_assert_eq(handle_get(table, first), h);
    h->dir = &table; /* something that the next open must not see */
    handle_free(table, h);
    cr_assert_null(handle_get(table, first), "released");

    struct handle *again = open_one();
    cr_assert_eq(again, h, "the slot is used again");
    cr_assert_neq(again->fh, first);
    cr_assert_eq((uint32_t)again->fh, (uint32_t)first, "the same index");
    cr_assert_null(handle_get(table, first), "a repeated RELEASE finds nothing");
    cr_assert_eq(handle_get(table, again->fh), again);
    handle_free(table, again);
}

Test(handle, number_is_never_a_bare_index, .init = up, .fini = down)
{
    struct handle *h = open_one();

    cr_assert_gt(h->fh >> 32, 0u);
    cr_assert_null(handle_get(table, 0));
    cr_assert_null(handle_get(table, (uint32_t)h->fh));
    cr_assert_null(handle_get(table, h->fh + 1), "a slot that there is not");
    cr_assert_null(handle_get(table, h->fh + (UINT64_C(1) << 32)), "a generation to come");
    cr_assert_null(handle_get(table, UINT64_MAX));
    handle_free(table, h);
}

static void count(void *arg, struct handle *h)
{
    unsigned *n = arg;

    cr_assert_eq(handle_get(table, h->fh), h);
    ++*n;
}

Test(handle, every_use_of_a_slot_has_its_own, .init = up, .fini = down)
{
    struct handle *h[3];
    uint64_t before = 0;
    unsigned n = 0;

    for (unsigned i = 0; i < 3; i++)
        h[i] = open_one();
    for (unsigned i = 0; i < 1000; i++) {
        uint64_t fh = h[1]->fh;

        cr_assert_gt(fh, before);
        before = fh;
        handle_free(table, h[1]);
        h[1] = open_one();
    }
    handle_each(table, count, &n);
    cr_assert_eq(n, 3u);
    for (unsigned i = 0; i < 3; i++)
        handle_free(table, h[i]);
}
