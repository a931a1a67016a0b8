/* unit.h: what a unit test includes, and nothing else of a test framework.
 *
 * That is criterion. With -DPLAIN_RUNNER it is the small replacement below, which plain.c runs: it
 * compiles in a third of the time, for the builds with sanitizers and for valgrind, which criterion
 * hides the errors of a test's child process from. Only what is defined here may be used in tests.
 *
 *   Test(suite, name, .init = before, .fini = after) { cr_assert_eq(a, b, "format", ...); }
 *
 * A message is a printf literal, and optional. A failing assertion ends its test at once; assert
 * only in the thread that runs the test. */
#ifndef UNIT_H
#define UNIT_H

#ifndef PLAIN_RUNNER

#include <criterion/criterion.h>

#else

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

struct unit_options {
    void (*init)(void);
    void (*fini)(void);
    bool disabled;
};
struct unit_test {
    const char *file, *suite, *name;
    void (*run)(void);
    struct unit_options options;
    struct unit_test *next;
};
void unit_register(struct unit_test *test);
_Noreturn void unit_fail(const char *file, int line, const char *what, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
_Noreturn void unit_skip(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#define Test(s, n, ...)                                                                            \
    static void unit_run_##s##_##n(void);                                                          \
    __attribute__((constructor)) static void unit_add_##s##_##n(void)                              \
    {                                                                                              \
        static struct unit_test test = {                                                           \
            __FILE__, #s, #n, unit_run_##s##_##n, {__VA_ARGS__}, NULL};                            \
        unit_register(&test);                                                                      \
    }                                                                                              \
    static void unit_run_##s##_##n(void)

/* The blank before __VA_ARGS__ keeps the format from being empty, of which gcc would warn. */
#define UNIT_CHECK(ok, what, ...)                                                                  \
    do {                                                                                           \
        if (!(ok))                                                                                 \
            unit_fail(__FILE__, __LINE__, what, " " __VA_ARGS__);                                  \
    } while (0)

#define cr_assert_fail(...) unit_fail(__FILE__, __LINE__, "cr_assert_fail", " " __VA_ARGS__)
#define cr_skip_test(...) unit_skip(" " __VA_ARGS__)
#define cr_assert(c, ...) UNIT_CHECK(c, #c, __VA_ARGS__)
#define cr_assert_not(c, ...) UNIT_CHECK(!(c), "!(" #c ")", __VA_ARGS__)
#define cr_assert_eq(a, b, ...) UNIT_CHECK((a) == (b), #a " == " #b, __VA_ARGS__)
#define cr_assert_neq(a, b, ...) UNIT_CHECK((a) != (b), #a " != " #b, __VA_ARGS__)
#define cr_assert_lt(a, b, ...) UNIT_CHECK((a) < (b), #a " < " #b, __VA_ARGS__)
#define cr_assert_leq(a, b, ...) UNIT_CHECK((a) <= (b), #a " <= " #b, __VA_ARGS__)
#define cr_assert_gt(a, b, ...) UNIT_CHECK((a) > (b), #a " > " #b, __VA_ARGS__)
#define cr_assert_geq(a, b, ...) UNIT_CHECK((a) >= (b), #a " >= " #b, __VA_ARGS__)
#define cr_assert_null(p, ...) UNIT_CHECK((p) == NULL, #p " == NULL", __VA_ARGS__)
#define cr_assert_not_null(p, ...) UNIT_CHECK((p) != NULL, #p " != NULL", __VA_ARGS__)
#define cr_assert_str_eq(a, b, ...)                                                                \
    UNIT_CHECK(strcmp((a), (b)) == 0, #a " is the text " #b, __VA_ARGS__)
#define cr_assert_str_neq(a, b, ...)                                                               \
    UNIT_CHECK(strcmp((a), (b)) != 0, #a " is not the text " #b, __VA_ARGS__)
#define cr_assert_arr_eq(a, b, size, ...)                                                          \
    UNIT_CHECK(memcmp((a), (b), (size)) == 0, #a " has the bytes of " #b, __VA_ARGS__)
#define cr_assert_arr_neq(a, b, size, ...)                                                         \
    UNIT_CHECK(memcmp((a), (b), (size)) != 0, #a " has other bytes than " #b, __VA_ARGS__)

#endif /* PLAIN_RUNNER */

#endif
