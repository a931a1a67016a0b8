/* pool.h: an elastic set of threads for work that may block for minutes on sick storage: claims,
 * opens, namespace calls. READ and WRITE never run here and never wait for it (loop.h, lanes.h),
 * but for those that the storage has refused once (reopen.c), and first writes that wait for a
 * holder (first.h).
 *
 * A thread is started when a job finds none idle, up to the limit; then jobs queue. An idle thread
 * ends after 30 s. Each thread has called unshare(CLONE_FS), so that a job may set umask for
 * itself. */
#ifndef DISKGUARD_POOL_H
#define DISKGUARD_POOL_H

#define POOL_THREADS_MAX 128

struct pool;
struct pool *pool_new(unsigned max_threads); /* NULL: out of memory */
/* Queues fn(arg). When no memory or thread can be had it runs on the caller's thread: a job is
 * never lost. */
void pool_submit(struct pool *p, void (*fn)(void *arg), void *arg);
/* Waits until all jobs have run, also those that they submit. The pool stays usable. */
void pool_drain(struct pool *p);
/* As pool_drain, then ends the threads and frees. NULL is fine. */
void pool_free(struct pool *p);

#endif
