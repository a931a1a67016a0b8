/* plain.c: the program that all unit tests are linked into (see unit.h). Runs each test in a child
 * process of its own:
 *
 *   unit [--file test_claim.c] [--but-file test_io.c] [--here] [TEXT]
 *
 * --file: only the tests of that file, --but-file: only those of others; TEXT: only those whose
 * "suite/name" contains it; --here: no child, for a debugger. Exit code 0: none failed; 1: some
 * failed; 2: none ran. */
#include "unit.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATIENCE 300 /* seconds for one test: valgrind takes long */

/* Exit codes of a child; any other, and any signal, is a failure too. */
enum { ENDED_OK = 0, ENDED_FAILED = 1, ENDED_SKIPPED = 77 };

static struct unit_test *first, **last = &first;
static const struct unit_test *running; /* in this process */

void unit_register(struct unit_test *test)
{
    *last = test;
    last = &test->next;
}

_Noreturn static void leave(int how)
{
    fflush(stdout);
    _exit(how); /* from any thread, and past the rest of the test */
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
    if (running && running->options.fini) /* what it made so far goes away */
        running->options.fini();
    leave(ENDED_SKIPPED);
}

static void run_here(const struct unit_test *test)
{
    running = test;
    if (test->options.disabled)
        leave(ENDED_SKIPPED);
    if (test->options.init)
        test->options.init();
    test->run();
    if (test->options.fini)
        test->options.fini();
}

/* Exit code of the child that ran the test. */
static int run_apart(const struct unit_test *test)
{
    int status;

    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        alarm(PATIENCE);
        run_here(test);
        exit(ENDED_OK); /* not _exit: leaks are counted */
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        return ENDED_FAILED;
    if (WIFSIGNALED(status))
        printf("killed by signal %d (%s)\n", WTERMSIG(status), strsignal(WTERMSIG(status)));
    return WIFEXITED(status) ? WEXITSTATUS(status) : ENDED_FAILED;
}

static bool wanted(const struct unit_test *test, const char *file, const char *but,
                   const char *text, const char *full)
{
    const char *slash = strrchr(test->file, '/'), *name = slash ? slash + 1 : test->file;

    if ((file && strcmp(name, file) != 0) || (but && strcmp(name, but) == 0))
        return false;
    return !text || strstr(full, text);
}

int main(int argc, char **argv)
{
    const char *file = NULL, *but = NULL, *text = NULL;
    unsigned passed = 0, failed = 0, skipped = 0;
    bool here = false;
    char full[256];

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--here") == 0)
            here = true;
        else if (strcmp(argv[i], "--file") == 0 && i + 1 < argc)
            file = argv[++i];
        else if (strcmp(argv[i], "--but-file") == 0 && i + 1 < argc)
            but = argv[++i];
        else
            text = argv[i];
    }
    for (const struct unit_test *test = first; test; test = test->next) {
        snprintf(full, sizeof full, "%s/%s", test->suite, test->name);
        if (!wanted(test, file, but, text, full))
            continue;
        int how = ENDED_OK;
        if (here)
            run_here(test);
        else
            how = run_apart(test);
        passed += how == ENDED_OK;
        skipped += how == ENDED_SKIPPED;
        failed += how != ENDED_OK && how != ENDED_SKIPPED;
        printf("%-8s %s\n",
               how == ENDED_OK        ? "ok"
               : how == ENDED_SKIPPED ? "skipped"
                                      : "FAILED",
               full);
    }
    printf("%u passed, %u failed, %u skipped\n", passed, failed, skipped);
    if (failed)
        return 1;
    return passed + skipped ? 0 : 2;
}
