/* log.h: where messages go. Modules of src/core log nothing above LOG_DEBUG: the daemon logs an
 * error once, where it is decided.
 *
 * log_to_stderr() is the state at start: "diskguard: <text>" on standard error. log_to_journal()
 * sends to the systemd journal where it runs, else to syslog. Priorities are those of syslog(3).
 * Thread-safe; one line per call, control characters replaced by '?'. */
#ifndef DISKGUARD_LOG_H
#define DISKGUARD_LOG_H

#include <stdbool.h>
#include <syslog.h>

#include "base/base.h"

void log_init(const char *program, bool debug);
void log_to_system(void);
/* Keep errno. */
void log_msg(int priority, const char *fmt, ...) DG_PRINTF(2, 3);
/* Logs about an image: log_msg(), and in the journal the fields IMAGE=, HOLDER= and GENERATION=. */
void log_image(int priority, const char *image, const char *holder, uint64_t generation,
               const char *fmt, ...) DG_PRINTF(5, 6);

#define log_debug(...) log_msg(LOG_DEBUG, __VA_ARGS__)

#endif
