/* plain.c: main program for the unit tests without criterion (see unit.h): runs every test, or
 * those whose "suite/name" contains the first argument. Exit code 0: none failed; 1: some failed;
 * 2: none ran. */
#include "unit.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { ENDED_OK, ENDED_FAILED, ENDED_SKIPPED };

static struct unit_test *first, **last = &first;
static jmp_buf here;
static pthread_t runner;

void unit_register(struct unit_test *test)
{
    *last = test;
    last = &test->next;
}

_Noreturn static void leave(int how)
{
    fflush(stdout);
    if (!pthread_equal(runner, pthread_self()))
        abort(); /* a longjmp into another thread's stack is undefined */
    longjmp(here, how);
}

_Noreturn void unit_fail(const char *file, int line, const char *what, const char *fmt, ...)
{
    va_list ap;

    printf("%s:%d: %s", file, line, what);
    if (fmt[0] == ' ' && fmt[1] != '\0') {
        printf(":");
        va_start(ap, fmt);
        vprintf(fmt, ap);
        va_end(ap);
    }
    printf("\n");
    leave(ENDED_FAILED);
}

_Noreturn void unit_skip(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
    leave(ENDED_SKIPPED);
}

static int run_one(const struct unit_test *test)
{
    int how = setjmp(here);

    if (how != ENDED_OK)
        return how;
    if (test->options.disabled)
        return ENDED_SKIPPED;
    if (test->options.init)
        test->options.init();
    test->run();
    if (test->options.fini)
        test->options.fini();
    return ENDED_OK;
}

int main(int argc, char **argv)
{
    static const char *const words[] = {"ok", "FAILED", "skipped"};
    unsigned count[3] = {0, 0, 0};
    char full[256];

    runner = pthread_self();
    for (const struct unit_test *test = first; test; test = test->next) {
        snprintf(full, sizeof full, "%s/%s", test->suite, test->name);
        if (argc > 1 && !strstr(full, argv[1]))
            continue;
        int how = run_one(test);
        count[how]++;
        printf("%-8s %s\n", words[how], full);
        fflush(stdout);
    }
    printf("%u passed, %u failed, %u skipped\n", count[ENDED_OK], count[ENDED_FAILED],
           count[ENDED_SKIPPED]);
    if (count[ENDED_FAILED])
        return 1;
    return count[ENDED_OK] + count[ENDED_SKIPPED] ? 0 : 2;
}
