/* log.c: see log.h. */
#define SD_JOURNAL_SUPPRESS_LOCATION /* Without it, CODE_FILE= of every message would name this    \
                                        file. */
#include "base/log.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <systemd/sd-journal.h>

#define TEXT_MAX 8192                                /* bytes; longer messages are cut */
#define JOURNAL_SOCKET "/run/systemd/journal/socket" /* systemd-journald.service(8), FILES */

static char program_name[64] = "diskguard"; /* written before the first thread is started */
static atomic_bool with_debug;
static atomic_bool to_system;

void log_init(const char *program, bool debug)
{
    snprintf(program_name, sizeof(program_name), "%s", program);
    with_debug = debug;
}

void log_to_system(void)
{
    openlog(program_name, LOG_PID, LOG_DAEMON);
    to_system = true;
}

struct fields {
    const char *image, *holder; /* NULL: the message is not about an image */
    uint64_t generation;
};

/* One field of a journal entry: "NAME=value". */
static struct iovec field(char *buf, size_t size, const char *name, const char *value)
{
    int len = snprintf(buf, size, "%s=%s", name, value);

    return (struct iovec){buf, DG_MIN((size_t)len, size - 1)};
}

/* false: there is no journal, or it refused the message. */
static bool send_journal(int priority, const struct fields *fields, const char *text)
{
    char message[TEXT_MAX + 16], level[32], identifier[sizeof(program_name) + 32];
    char image[4096 + 16], holder[256], generation[48], number[24];
    struct iovec iov[6];
    int n = 0;

    if (access(JOURNAL_SOCKET, F_OK) < 0)
        return false;
    iov[n++] = field(message, sizeof(message), "MESSAGE", text);
    snprintf(number, sizeof(number), "%d", LOG_PRI(priority));
    iov[n++] = field(level, sizeof(level), "PRIORITY", number);
    iov[n++] = field(identifier, sizeof(identifier), "SYSLOG_IDENTIFIER", program_name);
    if (fields) {
        snprintf(number, sizeof(number), "%" PRIu64, fields->generation);
        iov[n++] = field(image, sizeof(image), "IMAGE", fields->image ? fields->image : "");
        iov[n++] = field(holder, sizeof(holder), "HOLDER", fields->holder ? fields->holder : "");
        iov[n++] = field(generation, sizeof(generation), "GENERATION", number);
    }
    return sd_journal_sendv(iov, n) >= 0;
}

/* Uses one write, so that lines of several threads do not mix. */
static void send_stderr(const char *text)
{
    char line[TEXT_MAX + sizeof(program_name) + 8];
    int len = snprintf(line, sizeof(line), "%s: %s\n", program_name, text);
    ssize_t r;

    do
        r = write(STDERR_FILENO, line, DG_MIN((size_t)len, sizeof(line) - 1));
    while (r < 0 && errno == EINTR);
}

static void send_text(int priority, const struct fields *fields, const char *fmt, va_list ap)
    DG_PRINTF(3, 0);
static void send_text(int priority, const struct fields *fields, const char *fmt, va_list ap)
{
    char text[TEXT_MAX];

    vsnprintf(text, sizeof(text), fmt, ap);
    for (char *p = text; *p; p++) /* Names come from users. They must not forge a line. */
        if (iscntrl((unsigned char)*p))
            *p = '?';
    if (!to_system)
        send_stderr(text);
    else if (!send_journal(priority, fields, text))
        syslog(priority, "%s", text);
}

void log_msg(int priority, const char *fmt, ...)
{
    int saved = errno;
    va_list ap;

    if (LOG_PRI(priority) == LOG_DEBUG && !with_debug)
        return;
    va_start(ap, fmt);
    send_text(priority, NULL, fmt, ap);
    va_end(ap);
    errno = saved;
}

void log_image(int priority, const char *image, const char *holder, uint64_t generation,
               const char *fmt, ...)
{
    const struct fields fields = {image, holder, generation};
    int saved = errno;
    va_list ap;

    if (LOG_PRI(priority) == LOG_DEBUG && !with_debug)
        return;
    va_start(ap, fmt);
    send_text(priority, &fields, fmt, ap);
    va_end(ap);
    errno = saved;
}
