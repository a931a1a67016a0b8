/* mountinfo.h, on the mounts of this process. */
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/mountinfo.h"
#include "unit.h"

Test(mountinfo, the_root_is_found)
{
    struct mountinfo m = {0};
    struct stat st;
    unsigned n = 0;
    bool root = false;
    FILE *f = mountinfo_open();

    cr_assert_not_null(f);
    cr_assert_eq(stat("/proc/self", &st), 0);
    while (mountinfo_next(f, &m)) {
        n++;
        root |= strcmp(m.point, "/") == 0;
        cr_assert_eq(m.root[0] == '/' || strchr(m.root, ':'), true, "%s", m.root);
        cr_assert_neq(m.type[0], '\0');
        cr_assert_null(strchr(m.type, ' '));
        cr_assert_null(strchr(m.options, '\n'));
        if (strcmp(m.point, "/proc") == 0) {
            cr_assert_str_eq(m.type, "proc");
            cr_assert_eq(makedev(m.major, m.minor), st.st_dev);
        }
    }
    cr_assert(root && n > 1, "%u mounts", n);
    mountinfo_free(&m);
    fclose(f);
}

static bool on_proc(const struct mountinfo *m, const void *arg)
{
    return strcmp(m->point, arg) == 0;
}

Test(mountinfo, find)
{
    struct mountinfo m = {0}, same = {0};

    cr_assert_eq(mountinfo_find(on_proc, "/no/such mount", &m), -ENOENT);
    cr_assert_null(m.line);
    cr_assert_eq(mountinfo_find(on_proc, "/proc", &m), 0);
    cr_assert_eq(mountinfo_find_id(m.id, &same), 0);
    cr_assert_str_eq(same.point, "/proc");
    mountinfo_free(&m);
    mountinfo_free(&same);
}
