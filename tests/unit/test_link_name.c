/* test_link_name.c: which files a name in an image means. */
#include "unit.h"

#include <stdio.h>

#include "core/link_name.h"

struct seen {
    char text[512];
    int answer;
};

static int see(void *arg, const char *path, bool from_cwd)
{
    struct seen *s = arg;
    size_t n = strlen(s->text);

    snprintf(s->text + n, sizeof(s->text) - n, "%s%s%s", n ? " " : "", from_cwd ? "cwd:" : "",
             path);
    return s->answer;
}

Test(link_name, table)
{
    static const struct {
        const char *name;
        int r;
        const char *files;
    } rows[] = {
        {"base.qcow2", 0, "base.qcow2"},
        {"/a/b:c", 0, "/a/b:c"},
        {"./a:b", 0, "./a:b"},
        {"a:b", -EXDEV, ""},
        {"nbd://h/x", -EXDEV, ""},
        {"file:/a/b:c", 0, "cwd:/a/b:c"},
        {"file:a:b", 0, "cwd:a:b"},
        {"file:", -EUCLEAN, ""},
        {"", -EUCLEAN, ""},
        {"json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"/a\"}}", 0,
         "cwd:/a"},
        {"json:{\"driver\":\"qcow2\",\"file.driver\":\"file\",\"file.filename\":\"b\"}", 0,
         "cwd:b"},
        {"json:{\"file.filename\":\"/b\",\"file.driver\":\"host_device\"}", 0, "cwd:/b"},
        {"json:{\"driver\":\"file\",\"filename\":\"a:b\"}", 0, "cwd:a:b"},
        {"json:{\"filename\":\"a:b\"}", -EXDEV, ""},
        {"json:{\"driver\":\"raw\",\"offset\":0,\"file\":{\"driver\":\"throttle\",\"file\":{\"filename\":\"/"
         "c\"}}}",
         0, "cwd:/c"},
        {"json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"/a\"},\"backing\":{"
         "\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"/b\"}}}",
         0, "cwd:/a cwd:/b"},
        {"json:{\"driver\":\"quorum\",\"children\":[{\"file\":{\"driver\":\"file\",\"filename\":\"/"
         "a\"}},{\"file\":{\"driver\":\"nbd\",\"server\":{\"host\":\"h\"}}}]}",
         -EXDEV, "cwd:/a"},
        {"json:{\"driver\":\"https\",\"url\":\"https://h/x\"}", -EXDEV, ""},
        {"json:{\"file\":{\"driver\":\"https\",\"filename\":\"https://h/x\"}}", -EXDEV, ""},
        {"json:{}", -EUCLEAN, ""},
        {"json:", -EUCLEAN, ""},
        {"json:[]", -EUCLEAN, ""},
        {"json:{\"file\":1}", -EUCLEAN, ""},
        {"json:{\"file\":{\"filename\":\"\"}}", -EUCLEAN, ""},
        {"json:{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{"
         "\"a\":{\"a\":{\"a\":{\"a\":{\"filename\":\"/a\"}}}}}}}}}}}}}}}}}}",
         -EUCLEAN, ""},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct seen seen = {0};
        int r = link_name(rows[i].name, see, &seen);

        cr_assert_eq(r, rows[i].r, "%s: %d", rows[i].name, r);
        cr_assert_str_eq(seen.text, rows[i].files, "%s: %s", rows[i].name, seen.text);
        seen = (struct seen){.answer = 7};
        if (rows[i].files[0])
            cr_assert_eq(link_name(rows[i].name, see, &seen), 7, "%s", rows[i].name);
    }
}
