/* maker.h: which process made an image, or is just making it: it may go on while the image is still
 * as small as threshold= refuses (QEMU writes each new image with size 0, closes it, opens it again
 * and grows it).
 *
 * The maker of a file is the process that created it through this view, or whose write made an
 * image of a plain file, as long as that process lives. The kernel may forget the inode meanwhile,
 * so this is a table of its own: bounded, the oldest goes first. It says nothing about other hosts,
 * and a caller whose process cannot be told (pid 0) is nobody's maker. */
#ifndef DISKGUARD_MAKER_H
#define DISKGUARD_MAKER_H

#include "guard/guard.h"

struct maker_table;

struct maker_table *maker_table_new(void);    /* NULL: out of memory */
void maker_table_free(struct maker_table *t); /* NULL is fine */

/* Notes that `who` makes this file; whoever did before does no more. Best effort. */
void maker_note(struct maker_table *t, const struct inode *i, const struct opener *who);
/* Is it this process? */
bool maker_is(struct maker_table *t, const struct inode *i, const struct opener *who);
/* The image is made. */
void maker_forget(struct maker_table *t, const struct inode *i);

#endif
