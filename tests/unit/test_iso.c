/* test_iso.c: a volume descriptor makes a file an ISO image; it has no seal, and yields to none but
 * formats with a header. */
#include "unit.h"

#include "format/format.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define FILE_SIZE (0x8800u + 100)

static void build(uint8_t *b)
{
    memset(b, 0, FILE_SIZE);
    memcpy(b + 0x8000, "\1CD001\1", 7);
}

/* One window, on the heap, that ends with the descriptor's first 7 bytes, as wanted. */
static enum probe probe(const uint8_t *b, uint64_t file_size, struct format_info *info)
{
    struct excerpt v = {.file_size = file_size};
    enum probe answer;
    uint8_t *copy;

    memset(info, 0, sizeof(*info));
    info->zone = (struct format_zone){FORMAT_REACH, UINT64_MAX};
    answer = format_iso.probe(&v, info);
    if (answer != PROBE_MORE)
        return answer;
    cr_assert_eq(v.want_off, 0x8000);
    copy = malloc(v.want_len);
    cr_assert_not_null(copy);
    memcpy(copy, b + v.want_off, v.want_len);
    v.win[0].off = v.want_off;
    v.win[0].len = v.want_len;
    v.win[0].data = copy;
    v.n = 1;
    answer = format_iso.probe(&v, info);
    free(copy);
    return answer;
}

Test(iso, descriptor)
{
    static const size_t bytes[] = {0x8000, 0x8001, 0x8002, 0x8003, 0x8004, 0x8005, 0x8006};
    static uint8_t b[FILE_SIZE];
    struct format_info info;

    build(b);
    cr_assert_eq(probe(b, FILE_SIZE, &info), PROBE_YES);
    cr_assert_eq(info.virtual_size, FILE_SIZE);
    cr_assert_eq(info.zone.head, 0x8800);
    cr_assert_eq(info.zone.tail, UINT64_MAX);
    cr_assert_eq(info.why[0], '\0');
    for (size_t i = 0; i < sizeof(bytes) / sizeof(bytes[0]); i++)
        for (unsigned bit = 0; bit < 8; bit++) {
            build(b);
            b[bytes[i]] ^= (uint8_t)(1u << bit);
            cr_assert_eq(probe(b, FILE_SIZE, &info), PROBE_NO, "byte %zu", bytes[i]);
        }
}

Test(iso, lengths)
{
    static uint8_t b[FILE_SIZE];
    struct format_info info;

    build(b);
    for (uint64_t n = 0; n <= FILE_SIZE; n += n < 0x7000 ? 0x700 : 1) {
        cr_assert_eq(probe(b, n, &info), n < 0x8800 ? PROBE_NO : PROBE_YES);
        cr_assert_eq(info.virtual_size, n < 0x8800 ? 0 : n);
    }
}

static enum verdict identify(const uint8_t *b, const struct format **format)
{
    struct excerpt v = {.file_size = FILE_SIZE, .n = 1, .win = {{0, FILE_SIZE, b}}};
    struct format_info info;

    return format_identify(&v, format, &info);
}

Test(iso, among_others)
{
    static uint8_t b[FILE_SIZE];
    static struct plan plan = {.n = 7};
    const struct seal_policy policy = {SEAL_REFUSE, "node"};
    const struct format *format;
    struct excerpt v = {.file_size = FILE_SIZE};

    build(b);
    cr_assert_eq(identify(b, &format), FORMAT_IMAGE);
    cr_assert_eq(format, &format_iso);
    cr_assert(format->weak);
    memcpy(b + 446, "\x80\0\0\0\x17\0\0\0\1\0\0\0\1\0\0\0", 16); /* isohybrid: an MBR as well */
    b[510] = 0x55;
    b[511] = 0xaa;
    cr_assert_eq(identify(b, &format), FORMAT_IMAGE);
    cr_assert_eq(format, &format_iso, "the first of the table");
    b[0x8001] = 'c';
    cr_assert_eq(identify(b, &format), FORMAT_IMAGE);
    cr_assert_eq(format, &format_raw);
    cr_assert_eq(format_by_name("iso"), &format_iso);
    cr_assert_eq(format_iso.plan(&v, &policy, &plan), 0);
    cr_assert_eq(plan.n, 0);
}
