/* test_base.c: text forms of bytes, numbers, names and uuids; explanations; what a log line looks
 * like. */
#include "unit.h"

#include <fcntl.h>
#include <stdio.h>

#include "base/base.h"
#include "base/log.h"

Test(base, hex_both_ways)
{
    const uint8_t bytes[] = {0x00, 0x9a, 0xff, 0x10};
    uint8_t back[4];
    char text[9];

    base_hex(bytes, 4, text);
    cr_assert_str_eq(text, "009aff10");
    cr_assert_eq(base_unhex(text, 4, back), 0);
    cr_assert_arr_eq(back, bytes, 4);
    base_hex(bytes, 0, text);
    cr_assert_str_eq(text, "");
}

Test(base, unhex_refuses)
{
    static const char *const bad[] = {"0", "0g", "A0", " 0", "0x", "0 ", ""};
    uint8_t byte = 7;

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        cr_assert_eq(base_unhex(bad[i], 1, &byte), -EINVAL, "\"%s\"", bad[i]);
        cr_assert_eq(byte, 7, "\"%s\"", bad[i]);
    }
}

Test(base, escape_every_byte)
{
    char text[2] = "", escaped[4], back[2];

    for (unsigned c = 1; c < 256; c++) {
        text[0] = (char)c;
        bool plain = c > 0x20 && c < 0x7f && c != '%';
        cr_assert_eq(base_escape(text, escaped, sizeof escaped), 0);
        cr_assert_eq(strlen(escaped), plain ? 1u : 3u, "byte %u", c);
        for (const char *p = escaped; *p; p++)
            cr_assert(*p > 0x20 && *p < 0x7f);
        cr_assert_eq(base_unescape(escaped, strlen(escaped), back, sizeof back), 0);
        cr_assert_str_eq(back, text);
    }
}

Test(base, escape_text)
{
    char escaped[32] = "untouched", back[32];

    cr_assert_eq(base_escape("a b/\xc3\xa4%\n", escaped, sizeof escaped), 0);
    cr_assert_str_eq(escaped, "a%20b/%C3%A4%25%0A");
    cr_assert_eq(base_unescape("a%20b/%c3%A4", 12, back, sizeof back), 0);
    cr_assert_str_eq(back, "a b/\xc3\xa4");
    cr_assert_eq(base_unescape("abcdef", 3, back, sizeof back), 0, "len counts, not the NUL");
    cr_assert_str_eq(back, "abc");
    cr_assert_eq(base_escape("", escaped, 1), 0);
    cr_assert_str_eq(escaped, "");
}

Test(base, escape_limits)
{
    char small[4] = "xyz";

    cr_assert_eq(base_escape("abc", small, 4), 0);
    cr_assert_eq(base_escape("abcd", small, 4), -ENAMETOOLONG);
    cr_assert_str_eq(small, "abc", "untouched");
    cr_assert_eq(base_escape("a ", small, 4), -ENAMETOOLONG);
    cr_assert_eq(base_unescape("%41%42%43", 9, small, 4), 0);
    cr_assert_str_eq(small, "ABC");
    cr_assert_eq(base_unescape("wxyz", 4, small, 4), -ENAMETOOLONG);
    cr_assert_str_eq(small, "ABC", "untouched");
}

Test(base, unescape_refuses)
{
    static const char *const bad[] = {"%",   "%2",  "%2g",      "%g2",  "%00",
                                      "a b", "a\n", "\xc3\xa4", "\x7f", "% 1"};
    char out[16] = "kept";

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        cr_assert_eq(base_unescape(bad[i], strlen(bad[i]), out, sizeof out), -EINVAL, "\"%s\"",
                     bad[i]);
        cr_assert_str_eq(out, "kept");
    }
}

Test(base, unescape_octal)
{
    char text[] = "/a\\040b\\134c\\011\\400\\12";

    base_unescape_octal(text);
    cr_assert_str_eq(text, "/a b\\c\t\\400\\12");
}

Test(base, quote)
{
    static const char *const text[][2] = {
        {"/srv/nfs/vms-1_a.qcow2", "/srv/nfs/vms-1_a.qcow2"},
        {"/srv/\xc3\xa4", "/srv/\xc3\xa4"},
        {"/a b", "'/a b'"},
        {"it's", "'it'\\''s'"},
        {"$(x);`y`", "'$(x);`y`'"},
        {"~", "'~'"},
        {"-n", "./-n"},
        {"-n o", "'./-n o'"},
        {"", "''"},
    };
    char ret[32];

    for (size_t i = 0; i < sizeof(text) / sizeof(text[0]); i++)
        cr_assert_str_eq(base_quote(text[i][0], ret, sizeof(ret)), text[i][1]);
    cr_assert_str_eq(base_quote("abcdefg", ret, 8), "abcdefg");
    cr_assert_str_eq(base_quote("abcdefgh", ret, 8), "PATH");
    cr_assert_str_eq(base_quote("ab def", ret, 8), "PATH");
}

Test(base, utf8)
{
    char ret[16];

    base_utf8("a\xc3\xa4\xf0\x9f\x92\xbe", ret, sizeof(ret));
    cr_assert_str_eq(ret, "a\xc3\xa4\xf0\x9f\x92\xbe");
    base_utf8("a\xff\xc3z\xed\xa0", ret, sizeof(ret)); /* no start, an end too early, a surrogate */
    cr_assert_str_eq(ret, "a\xef\xbf\xbd\xef\xbf\xbdz\xef\xbf\xbd\xef\xbf\xbd");
    base_utf8("ab\xc3\xa4", ret, 4);
    cr_assert_str_eq(ret, "ab", "cut between two characters");
}

Test(base, u64)
{
    static const char *const bad[] = {"",  "-1", "+1", " 1",  "1 ", "1a",
                                      "a", "01", "00", "0x1", "1K"};
    uint64_t n = 5;

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        cr_assert_eq(base_u64(bad[i], &n), -EINVAL, "\"%s\"", bad[i]);
    cr_assert_eq(base_u64("18446744073709551616", &n), -ERANGE);
    cr_assert_eq(base_u64("99999999999999999999999", &n), -ERANGE);
    cr_assert_eq(n, 5u, "untouched");
    cr_assert_eq(base_u64("0", &n), 0);
    cr_assert_eq(n, 0u);
    cr_assert_eq(base_u64("18446744073709551615", &n), 0);
    cr_assert_eq(n, UINT64_MAX);
}

Test(base, size)
{
    static const struct {
        const char *text;
        int r;
        uint64_t n;
    } cases[] = {
        {"0", 0, 0},
        {"512", 0, 512},
        {"1K", 0, 1024},
        {"3M", 0, 3u << 20},
        {"2G", 0, 2ull << 30},
        {"16777215T", 0, 16777215ull << 40},
        {"16777216T", -ERANGE, 9},
        {"1k", -EINVAL, 9},
        {"1KB", -EINVAL, 9},
        {"K", -EINVAL, 9},
        {"", -EINVAL, 9},
        {"1P", -EINVAL, 9},
        {"-1K", -EINVAL, 9},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint64_t n = 9;
        cr_assert_eq(base_size(cases[i].text, &n), cases[i].r, "%s", cases[i].text);
        cr_assert_eq(n, cases[i].n, "%s", cases[i].text);
    }
}

Test(base, uuid)
{
    dg_uuid a, b;

    cr_assert_eq(base_uuid_random(a), 0);
    cr_assert_eq(base_uuid_random(b), 0);
    cr_assert(base_uuid_ok(a), "%s", a);
    cr_assert_str_neq(a, b);
    cr_assert_eq(strlen(a), DG_UUID_LEN);
    cr_assert_eq(a[14], '4', "version: %s", a);
    cr_assert(strchr("89ab", a[19]), "variant: %s", a);
    cr_assert(base_uuid_ok("00112233-4455-6677-8899-aabbccddeeff"));
    cr_assert_not(base_uuid_ok("00112233-4455-6677-8899-AABBCCDDEEFF"));
    cr_assert_not(base_uuid_ok("00112233-4455-6677-8899-aabbccddeef"));
    cr_assert_not(base_uuid_ok("00112233-4455-6677-8899-aabbccddeeff0"));
    cr_assert_not(base_uuid_ok("001122334-455-6677-8899-aabbccddeeff"));
    cr_assert_not(base_uuid_ok(""));
}

Test(base, why_is_one_line)
{
    struct why why;
    char longer[2000];

    memset(longer, 'x', sizeof longer);
    longer[sizeof longer - 1] = '\0';
    why_set(NULL, "%d", 1);
    why_set(&why, "image %s\n%d", "a\x1b[0m", 7);
    cr_assert_str_eq(why.text, "image a?[0m?7");
    why_set(&why, "%s", longer);
    cr_assert_eq(strlen(why.text), sizeof why.text - 1);
}

Test(base, times)
{
    uint64_t before = base_now_ms();
    char text[32];

    base_time_text(text);
    cr_assert_eq(strlen(text), 20u, "%s", text);
    cr_assert_eq(text[10], 'T');
    cr_assert_eq(text[19], 'Z');
    cr_assert_leq(before, base_now_ms());
}

/* Standard error of what happens between the two calls. */
static int saved_stderr, capture[2];

static void capture_begin(void)
{
    cr_assert_eq(pipe2(capture, O_CLOEXEC | O_NONBLOCK), 0);
    saved_stderr = dup(2);
    cr_assert_geq(dup2(capture[1], 2), 0);
}

static void capture_end(char *ret, size_t size)
{
    dup2(saved_stderr, 2);
    ssize_t n = read(capture[0], ret, size - 1);
    ret[n > 0 ? n : 0] = '\0';
    close(saved_stderr);
    close(capture[0]);
    close(capture[1]);
}

Test(log, lines_on_stderr)
{
    char text[512];

    log_init("diskguard", false);
    capture_begin();
    errno = ENOENT;
    log_msg(LOG_ERR, "cannot open %s: %m", "a\nb\x1b");
    log_debug("not shown");
    log_image(LOG_NOTICE, "vm/a.qcow2", "node1", 7, "held by %s", "node1");
    int kept = errno;
    capture_end(text, sizeof text);
    cr_assert_str_eq(
        text, "diskguard: cannot open a?b?: No such file or directory\ndiskguard: held by node1\n");
    cr_assert_eq(kept, ENOENT);
}

Test(log, debug_and_program)
{
    char text[512];

    log_init("fsck.diskguard", true);
    capture_begin();
    log_debug("shown %d", 1);
    capture_end(text, sizeof text);
    log_init("diskguard", false);
    cr_assert_str_eq(text, "fsck.diskguard: shown 1\n");
}
