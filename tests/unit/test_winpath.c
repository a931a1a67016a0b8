/* test_winpath.c: names in UTF-16 and Windows paths. */
#include "unit.h"

#include "format/winpath.h"

#include <errno.h>

Test(winpath, utf8)
{
    static const struct {
        const char *units; /* big-endian */
        size_t bytes;
        const char *text; /* NULL: -EUCLEAN */
    } rows[] = {
        {"\0a\0b", 4, "ab"},
        {"\0a\0\0\0b", 6, "a"},
        {"\0\xe4\x07\xff\x08\x00\xff\xfd", 8, "\xc3\xa4\xdf\xbf\xe0\xa0\x80\xef\xbf\xbd"},
        {"\xd8\x00\xdc\x00\xdb\xff\xdf\xff", 8, "\xf0\x90\x80\x80\xf4\x8f\xbf\xbf"},
        {"\0a\xd8\x00", 4, NULL}, /* half a pair */
        {"\xd8\x00\0a", 4, NULL},
        {"\xdc\x00\0a", 4, NULL},
        {"\0a\0", 3, NULL},
        {"\0\0", 2, NULL},
        {"", 0, NULL},
        {"\0a\0b\0c\0d\0e\0f\0g\0h\0i\0j\0k\0l\0m\0n\0o", 30, "abcdefghijklmno"},
        {"\0a\0b\0c\0d\0e\0f\0g\0h\0i\0j\0k\0l\0m\0n\0o\0p", 32, NULL}, /* 16 bytes and NUL */
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        for (unsigned big = 0; big < 2; big++) {
            uint8_t b[32];
            char out[16] = "";

            for (size_t k = 0; k < rows[i].bytes; k++)
                b[k] = (uint8_t)rows[i]
                           .units[big || k == rows[i].bytes - rows[i].bytes % 2 ? k : k ^ 1];
            cr_assert_eq(winpath_utf8(b, rows[i].bytes, big, out, sizeof(out)),
                         rows[i].text ? 0 : -EUCLEAN, "row %zu", i);
            if (rows[i].text)
                cr_assert_str_eq(out, rows[i].text, "row %zu", i);
        }
    }
}

Test(winpath, follow)
{
    static const struct {
        const char *in, *out;
    } rows[] = {
        {"a.vhd", "a.vhd"},
        {".\\a.vhd", "a.vhd"},
        {".\\.\\d\\a.vhd", "d/a.vhd"},
        {"./a", "a"},
        {"..\\a", "../a"},
        {"d\\..\\a", "d/../a"},
        {"/srv/a", "/srv/a"},
        {".hidden", ".hidden"},
        {".\\\\a", "a"},
        {"C:\\a", NULL},
        {"c:a", NULL},
        {"\\a", NULL},
        {"\\\\server\\share", NULL},
        {"", NULL},
        {".\\", NULL},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        char path[64];

        strcpy(path, rows[i].in);
        cr_assert_eq(winpath_follow(path), rows[i].out ? 0 : -EUCLEAN, "%s", rows[i].in);
        if (rows[i].out)
            cr_assert_str_eq(path, rows[i].out);
    }
}
