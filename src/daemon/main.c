/* main.c: diskguard(8): command line, background, exit code. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/log.h"
#include "daemon/options.h"
#include "daemon/start.h"
#include "diskguard/exitcodes.h"

static bool stderr_is_journal(void);
static bool in_background;

/* To standard error for who started the program, and to the log, where it is an error. */
static int complain(const struct why *why, int code)
{
    bool journal = stderr_is_journal();
    if (journal)
        log_to_system();
    else
        fprintf(stderr, "diskguard: %s\n", why->text);
    if (journal || in_background)
        log_msg(LOG_ERR, "%s", why->text);
    return code;
}

/* The child keeps standard error until the view answers, so that the one line about a failure
 * reaches whoever runs mount(8). */
static void child_ready(void *arg)
{
    int pipe_fd = *(int *)arg;
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; null_fd >= 0 && fd < 3; fd++)
        dup2(null_fd, fd);
    if (null_fd > 2)
        close(null_fd);
    while (write(pipe_fd, "", 1) < 0 && errno == EINTR)
        ;
    close(pipe_fd);
}

/* Under systemd standard error is the journal, which then should get fields and priorities:
 * systemd.exec(5), JOURNAL_STREAM. */
static bool stderr_is_journal(void)
{
    const char *s = getenv("JOURNAL_STREAM");
    unsigned long dev, ino;
    struct stat st;
    return s && sscanf(s, "%lu:%lu", &dev, &ino) == 2 && fstat(STDERR_FILENO, &st) == 0 &&
           st.st_dev == dev && st.st_ino == ino;
}

static void foreground_ready(void *arg)
{
    (void)arg;
}

static int run_daemon(struct daemon *d, void (*ready)(void *arg), void *arg)
{
    struct why why = {0};
    int code = start_run(d, ready, arg, &why);
    return why.text[0] ? complain(&why, code) : code;
}

static int run_in_foreground(struct daemon *d)
{
    if (stderr_is_journal())
        log_to_system();
    return run_daemon(d, foreground_ready, NULL);
}

/* Waits until the child is ready, or takes its exit code. */
static int parent_wait(pid_t child, int pipe_fd)
{
    char byte;
    ssize_t n;
    do
        n = read(pipe_fd, &byte, 1);
    while (n < 0 && errno == EINTR);
    if (n == 1)
        return DG_EXIT_OK;
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return DG_EXIT_FAILURE;
    if (WIFSIGNALED(status))
        fprintf(stderr, "diskguard: ended by signal %d before the view was mounted\n",
                WTERMSIG(status));
    return WIFEXITED(status) && WEXITSTATUS(status) != 0 ? WEXITSTATUS(status) : DG_EXIT_FAILURE;
}

static int run_in_background(struct daemon *d)
{
    int fds[2];
    pid_t child = pipe2(fds, O_CLOEXEC) < 0 ? -1 : fork();
    if (child < 0) {
        fprintf(stderr, "diskguard: cannot go to the background: %m\n");
        return DG_EXIT_FAILURE;
    }
    if (child > 0) {
        close(fds[1]);
        return parent_wait(child, fds[0]);
    }
    close(fds[0]);
    setsid();
    in_background = true;
    (void)!chdir("/");
    log_to_system();
    return run_daemon(d, child_ready, &fds[1]);
}

int main(int argc, char **argv)
{
    static struct daemon d;
    struct why why = {0};
    enum options_todo todo;
    int code = DG_EXIT_OK;

    log_init("diskguard", false);
    if (options_parse(argc, argv, &d.opt, &todo, &why) < 0) {
        code = complain(&why, DG_EXIT_USAGE);
    } else if (todo == OPTIONS_HELP) {
        options_help();
    } else if (todo == OPTIONS_VERSION) {
        puts("diskguard " DG_VERSION);
    } else if (options_check_paths(&d.opt, &why) < 0) {
        code = complain(&why, DG_EXIT_FAILURE);
    } else {
        log_init("diskguard", d.opt.debug);
        code = d.opt.foreground ? run_in_foreground(&d) : run_in_background(&d);
    }
    options_free(&d.opt);
    return code;
}
