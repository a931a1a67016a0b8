/* test_memory.c: what a held image costs, and that nothing is lost where there is no memory. */
#include <malloc.h>

#include "core/packed.h"
#include "guard/image.h"
#include "guard_scene.h"
#include "hooktest.h"

#define A host[0]

#define IMAGES 200u
#define EACH_MAX 4096u /* bytes */

/* The allocators of sanitizers do not count for mallinfo2(3). gcc, clang */
#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) &&                             \
    !__has_feature(address_sanitizer) && !__has_feature(thread_sanitizer)

static size_t in_use(void)
{
    struct mallinfo2 m = mallinfo2();

    return m.uordblks + m.hblkhd;
}

static const char *name_of(unsigned i)
{
    static char name[32];

    snprintf(name, sizeof(name), "a machine's disk-%u.qcow2", i);
    return name;
}

Test(memory, of_a_held_image, .init = scene_make, .fini = scene_remove)
{
    struct handle *h[IMAGES + 1];

    for (unsigned i = 0; i <= IMAGES; i++)
        put_raw(name_of(i), truth, sizeof(truth), IMAGE_SIZE);
    cr_assert_eq(open_as(A, name_of(IMAGES), O_RDWR, &first, &h[IMAGES]), 0, "what is there once");
    size_t before = in_use();
    for (unsigned i = 0; i < IMAGES; i++)
        cr_assert_eq(open_as(A, name_of(i), O_RDWR, &first, &h[i]), 0);
    size_t each = (in_use() - before) / IMAGES;
    cr_assert_leq(each, EACH_MAX, "%zu bytes", each);
    for (unsigned i = 0; i <= IMAGES; i++)
        close_as(A, h[i]);
}

#endif

/* ---- without memory ---- */

/* What is held is let go, as far as it is. */
static void settle(void)
{
    cr_assert_eq(image_shutdown(A), 0);
    cr_assert_eq(busy(A, NULL), 0);
    cr_assert_neq(claim_now("disk.qcow2", NULL), CLAIM_HELD);
}

static void open_without(bool all)
{
    struct handle *h = NULL;
    int r = -1, n = 0;

    fake_mallocs_all = all;
    /* An open may do without a single one: only one that did not even ask so often is the last. */
    for (bool failed = true; failed; n++) {
        if (r == 0)
            close_as(A, h);
        open_mallocs = n;
        r = open_as(A, "disk.qcow2", O_RDWR, &first, &h);
        open_mallocs = -1;
        cr_assert(r == 0 || r == -ENOMEM || r == -EIO, "malloc %d: %s", n, strerror(-r));
        if (r < 0)
            settle();
        cr_assert_eq(is_true("disk.qcow2"), r < 0, "malloc %d", n);
        failed = all ? r < 0 : open_mallocs_left < 0;
    }
    cr_assert_gt(n, 10, "the mallocs of an open are counted");
    close_as(A, h);
    cr_assert(is_true("disk.qcow2"));
}

Test(memory, an_open_without_it_is_refused, .init = scene_make, .fini = scene_remove)
{
    open_without(false);
    open_without(true);
}

static void read_as(uint8_t b[FORMAT_REACH])
{
    struct handle *h;

    cr_assert_eq(open_as(A, "disk.qcow2", O_RDONLY, &second, &h), 0);
    cr_assert_eq(image_read(A, h, b, FORMAT_REACH, 0, READ_MAY_WAIT), FORMAT_REACH);
    close_as(A, h);
}

/* The image grows, or it does not. */
static void edit_without(bool all)
{
    uint8_t after[FORMAT_REACH], seen[FORMAT_REACH];
    struct handle *h;
    ssize_t r = -1;
    int n = 0;

    memcpy(after, truth, sizeof(after));
    header_put(after, 24, 8, 20ull << 30);
    header_put(after, 36, 4, (20ull << 30) >> 29);
    fake_mallocs_all = all;
    for (; r < 0; n++) {
        put_raw("disk.qcow2", truth, sizeof(truth), IMAGE_SIZE);
        cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
        fake_mallocs = n;
        r = image_write(A, h, after, sizeof(after), 0, 0);
        fake_mallocs = -1;
        cr_assert(r == sizeof(after) || r == -ENOMEM, "malloc %d: %zd", n, r);
        cr_assert_eq(busy(A, NULL), 1);
        cr_assert_not(is_true("disk.qcow2"), "it stays sealed");
        read_as(seen);
        close_as(A, h);
        cr_assert_eq(busy(A, NULL), 0);
        uint8_t now[FORMAT_REACH];
        get_raw("disk.qcow2", now, sizeof(now));
        cr_assert_arr_eq(now, seen, sizeof(now), "malloc %d: the view showed what stands there", n);
        bool done = memcmp(now, after, sizeof(now)) == 0;
        /* An error may come when the new header is in place already: seal_edit(). */
        cr_assert(done || (r < 0 && memcmp(now, truth, sizeof(now)) == 0), "malloc %d: %zd", n, r);
    }
    cr_assert_gt(n, 5, "the mallocs of an edit are counted");
    put_raw("disk.qcow2", truth, sizeof(truth), IMAGE_SIZE);
}

Test(memory, an_edit_without_it_loses_nothing, .init = scene_make, .fini = scene_remove)
{
    edit_without(false);
    edit_without(true);
}

static void close_without(bool all)
{
    uint8_t seen[FORMAT_REACH];
    struct image_info info;
    struct handle *h;
    bool again = true;
    int n = 0;

    fake_mallocs_all = all;
    for (; again; n++) {
        cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
        fake_mallocs = n;
        image_release(A, h);
        again = fake_mallocs < 0 || (all && fake_mallocs == 0);
        fake_mallocs = -1;
        drop(A, h);
        if (busy(A, &info) > 0) {
            cr_assert_eq(info.state, IMAGE_STUCK, "malloc %d", n);
            read_as(seen);
            cr_assert_arr_eq(seen, truth, sizeof(seen), "malloc %d: the record is there", n);
        }
        settle();
        cr_assert(is_true("disk.qcow2"), "malloc %d", n);
    }
    cr_assert_gt(n, 5, "the mallocs of a close are counted");
}

Test(memory, a_restore_without_it_is_repeated, .init = scene_make, .fini = scene_remove)
{
    close_without(false);
    close_without(true);
}
