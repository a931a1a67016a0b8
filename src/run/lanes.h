/* lanes.h: threads for READ and WRITE that a receiver may not run (loop.h): of images with a footer
 * all of them, of other files those that meet a header. They can block for as long as the storage
 * does, and a busy guest has hundreds of them on the way. They have a pool of their own, not a
 * share of the one of pool.h, so that no number of hung or busy images takes a thread from claims,
 * opens and namespace calls; and each file has a lane in it, so that none takes the threads of
 * another.
 *
 * A lane has its jobs in the order in which they came, and runs as many of them at the same time as
 * its share: LANES_THREADS divided among the lanes that have work, at most LANE_MOST and at least
 * LANE_LEAST, whatever the others do. So no job waits for one of another lane, and all lanes
 * together have no more than about LANES_THREADS threads, or LANE_LEAST each where that is more. (A
 * lane whose storage hangs keeps the threads of the share that it had.) A lane that is above its
 * share gives a thread up after the next job; one below gets another with the next job that comes
 * or begins.
 *
 * A job that waits costs a few words and what it brings along; a lane lives only while it has work.
 */
#ifndef DISKGUARD_LANES_H
#define DISKGUARD_LANES_H

#include <stdint.h>

#define LANES_THREADS 128u
/* as many as there are receivers, which do the same for guest data of other images */
#define LANE_MOST 32u
#define LANE_LEAST 4u

struct lanes;
struct lanes *lanes_new(void); /* NULL: out of memory */
/* Queues fn(arg) in the lane `key`. As pool_submit(): never lost; without memory it runs at once,
 * outside of its lane, or on the caller's thread. */
void lanes_submit(struct lanes *l, uint64_t key, void (*fn)(void *arg), void *arg);
/* Waits until all jobs have run. NULL is fine. */
void lanes_drain(struct lanes *l);
/* The same, then ends the threads and frees. NULL is fine. */
void lanes_free(struct lanes *l);

#endif
