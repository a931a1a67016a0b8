/* init.h: what the daemon agrees with the kernel in INIT beyond what libfuse 3.14 knows: shared
 * mappings (mmap(2)) of files that are open with direct I/O, as images are
 * (FUSE_DIRECT_IO_ALLOW_MMAP, <linux/fuse.h> of Linux 6.6). The bit goes for the whole connection.
 *
 * Why it is sound for sealed images, too (tests/func/test_mmap.py shows each): the pages are read
 * by READ and written by WRITE requests of a handle that is open for write, so they take the way of
 * every read and write: true bytes, the durable order, EIO for who is fenced. The kernel drops what
 * it has cached of the file before each mapping is made, and a handle for write has the claim
 * before it can be mapped, so that no page is older than the hold. It writes dirty pages back when
 * a mapping ends, waits for that, and only then is the handle released: after that the image is
 * restored. Reads and writes past the cache first write back, then drop, the pages that they meet.
 */
#ifndef DISKGUARD_INIT_H
#define DISKGUARD_INIT_H

#include "view/view.h"

/* After fuse_session_mount(), before the first request is read: replies go through init.c from now
 * on. 0 or -errno. */
DG_MUST_CHECK int init_attach(struct view *v);
/* An INIT request as the kernel sent it, before libfuse sees it. */
void init_seen(struct view *v, const char *mem, size_t size);
/* An image without a seal is open for write, and so could be mapped: one line a daemon where the
 * kernel cannot. */
void init_say_mapping(struct view *v, const char *path);

#endif
