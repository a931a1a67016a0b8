/* loop.h: reads requests from /dev/fuse and runs them on the right thread.
 *
 * LOOP_DATA_THREADS receivers read requests into buffers whose write payload is page-aligned
 * (O_DIRECT backing files need that). READ and WRITE of guest data (fs_data_*_direct) and requests
 * that never touch the datastore run on the receiver; so do lookups, attributes, listings, opens
 * for reading and fsync(2), on LOOP_SHORT_MAX of them at most. All else is handed over with its
 * buffer: other READ and WRITE to the lane of their file (lanes.h), the rest to the pool (pool.h),
 * and so is a read whose bytes may be sealed ones, to be repeated there with care (fs_data.c). */
#ifndef DISKGUARD_LOOP_H
#define DISKGUARD_LOOP_H

#include "view/view.h"

/* requests of data in flight; a request that finds all busy waits in the kernel's queue */
#define LOOP_DATA_THREADS 32
/* of these, so many may wait for the storage to say what a name or a file is; further requests of
 * that kind go to the pool */
#define LOOP_SHORT_MAX 16u
/* FSYNC is such a request only while so few of them wait: a disk takes longer for one */
#define LOOP_SYNC_MAX 8u

/* Serves until the view is unmounted or loop_stop() is called. Receivers that wait for the storage
 * then may still run: loop_drain(). 0 or -errno. */
int loop_run(struct view *v);
/* After loop_run(): waits for them. */
void loop_drain(void);
/* Signal-safe: makes loop_run() return soon. */
void loop_stop(void);

#endif
