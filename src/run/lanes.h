/* lanes.h: threads for those READ and WRITE requests that a receiver may not run (view/loop.h):
 * all of an image with a footer, and of other files those that meet a header. They can block for
 * as long as the storage does, and a busy guest has hundreds of them on the way. They have a
 * pool of their own: however many images hang or are busy, claims, opens and namespace calls
 * keep their threads. Each file has a lane in it, so that no file takes the threads of another.
 *
 * A lane begins its jobs in the order in which they came. Its share says how many of them run at
 * the same time: LANES_THREADS divided by the number of lanes that have work, at most LANE_MOST
 * and at least LANE_LEAST. So no job waits for one of another lane. All lanes together have
 * about LANES_THREADS threads at most, or LANE_LEAST each where that is more. A lane above its
 * share gives up a thread after the next job; one below it gets another thread with the next job
 * that comes or begins. A lane whose storage hangs keeps the threads that it had.
 *
 * A job that waits costs a few words of memory and what it brings along. A lane lives only while
 * it has work. */
#ifndef DISKGUARD_LANES_H
#define DISKGUARD_LANES_H

#include <stdint.h>

#define LANES_THREADS 128u
/* as many as receivers, which read and write guest data of other images */
#define LANE_MOST 32u
#define LANE_LEAST 4u

struct lanes;
struct lanes *lanes_new(void); /* NULL: out of memory */
/* Queues fn(arg) in the lane `key`. As with pool_submit(), no job is lost: without memory it runs
 * at once, outside its lane or on the caller's thread. */
void lanes_submit(struct lanes *l, uint64_t key, void (*fn)(void *arg), void *arg);
/* Waits until all jobs have run. NULL is fine. */
void lanes_drain(struct lanes *l);
/* The same, then ends the threads and frees. NULL is fine. */
void lanes_free(struct lanes *l);

#endif
