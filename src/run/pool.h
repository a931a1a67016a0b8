/* pool.h: an elastic set of threads for work that may block for minutes on sick storage: claims,
 * opens, namespace calls. READ and WRITE do not run here and do not wait for it (view/loop.h,
 * lanes.h). The exceptions are those that the storage has refused once (guard/reopen.c), and
 * first writes that wait for a holder (guard/first.h).
 *
 * A job that finds no idle thread starts one, up to the limit; beyond that jobs queue. An idle
 * thread ends after 30 s. */
#ifndef DISKGUARD_POOL_H
#define DISKGUARD_POOL_H

#define POOL_THREADS_MAX 128

struct pool;
struct pool *pool_new(unsigned max_threads); /* NULL: out of memory */
/* Queues fn(arg). Without memory or a thread it runs on the caller's thread: no job is lost. */
void pool_submit(struct pool *p, void (*fn)(void *arg), void *arg);
/* Waits until all jobs have run, also those that they submit. The pool stays usable. */
void pool_drain(struct pool *p);
/* As pool_drain, then ends the threads and frees. NULL is fine. */
void pool_free(struct pool *p);

#endif
