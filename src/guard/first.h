/* first.h: handles of programs that manage images (option managers=): libvirt's daemons open an
 * image for write to lock a byte of it (its metadata lock, virtlockd's direct leases) and mostly
 * write nothing, while a virtual machine here or on another host has it. Such a handle claims
 * nothing when it is opened: its descriptor on the datastore cannot write and carries no fence,
 * reads and locks work, as through a read-only one. Its first write, truncation or allocation does
 * what its open left out (but pages of a mapping are refused for good: they may be older than the
 * claim): claims the image, or counts the handle among a plain file's writers, waits for wait=
 * where it is held, and gets EBUSY. A lock of QEMU's byte 101 (disk.h) is such a change.
 *
 * A manager is a process of root whose executable (proc(5), exe) managers= names: by file name, or
 * by absolute path. One in another pid namespace is not known. */
#ifndef DISKGUARD_IMAGE_FIRST_H
#define DISKGUARD_IMAGE_FIRST_H

#include "guard/manager.h"

/* Before any change through a handle. 0: go on, at once for all other handles; -EBUSY: held by
 * another (logged), or -errno. Blocks for up to wait= and on the datastore: not on a thread that
 * reads requests. ret_conflict: who is in the way, after -EBUSY; NULL: nobody wants to know. */
DG_MUST_CHECK int image_first_change(struct guard *g, struct handle *h,
                                     struct conflict *ret_conflict);

#endif
