/* refuse.h: paths for people, and the log lines of what is refused. */
#ifndef DISKGUARD_GUARD_REFUSE_H
#define DISKGUARD_GUARD_REFUSE_H

#include "guard/image.h"

/* Path below the datastore, for people. */
void image_path(struct guard *g, const struct inode *i, char *ret, size_t size);
/* The same, if the file has that name: not where that was removed. */
bool image_path_now(struct guard *g, const struct inode *i, char *ret, size_t size);
/* The line for a file that this daemon may not open, with the cause and the way out. */
void image_log_closed(struct guard *g, struct inode *i, const char *verb);
/* The line for an image on another file system that is mounted below the datastore (-EXDEV). */
void image_log_foreign(struct guard *g, struct inode *i, const char *what);

#endif
