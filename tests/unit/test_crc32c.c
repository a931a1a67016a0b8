/* test_crc32c.c: the examples of RFC 3720, appendix B.4. */
#include "unit.h"

#include "format/crc32c.h"

Test(crc32c, examples)
{
    uint8_t b[32];

    memset(b, 0, sizeof(b));
    cr_assert_eq(crc32c(0, b, 32), 0x8a9136aau);
    memset(b, 0xff, sizeof(b));
    cr_assert_eq(crc32c(0, b, 32), 0x62a8ab43u);
    for (unsigned i = 0; i < 32; i++)
        b[i] = (uint8_t)i;
    cr_assert_eq(crc32c(0, b, 32), 0x46dd794eu);
    for (unsigned i = 0; i < 32; i++)
        b[i] = (uint8_t)(31 - i);
    cr_assert_eq(crc32c(0, b, 32), 0x113fdb5cu);
    cr_assert_eq(crc32c(0, "123456789", 9), 0xe3069283u);
}

Test(crc32c, in_pieces)
{
    static const char digits[] = "123456789";

    for (size_t i = 0; i <= 9; i++)
        cr_assert_eq(crc32c(crc32c(0, digits, i), digits + i, 9 - i), 0xe3069283u);
}

Test(crc32c, by_table_and_by_the_processor_alike)
{
    uint8_t b[100];

    for (unsigned i = 0; i < sizeof(b); i++)
        b[i] = (uint8_t)(i * i + 7 * i);
    for (size_t off = 0; off < 9; off++)
        for (size_t n = 0; off + n <= sizeof(b); n++)
            cr_assert_eq(crc32c((uint32_t)n, b + off, n), crc32c_by_table((uint32_t)n, b + off, n));
}
