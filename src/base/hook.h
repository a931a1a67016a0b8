/* hook.h: named steps at which a test build can kill or stop the process.
 *
 * HOOK("module.step") stands before every durable operation on the datastore or in the journal. In
 * a normal build it is nothing. With -Dhooks=true (meson) the environment decides; it is read once:
 *   DISKGUARD_HOOK_KILL=k         _exit(137) at the k-th hook (1-based) counted since start
 *   DISKGUARD_HOOK_KILL=name:k    the same, counting only hooks of that name
 *   DISKGUARD_HOOK_STOP=name:k    raise(SIGSTOP) there
 *   DISKGUARD_HOOK_WAIT=name:k    the thread, it alone, goes on when the file of _ARM is gone
 *   DISKGUARD_HOOK_FAIL=name:k:E  the operation after it is not done and fails with errno E
 *                                 (HOOK_FAIL only)
 *   DISKGUARD_HOOK_FAIL2          one more of these
 *   DISKGUARD_HOOK_ARM=file       count and act only while that file exists
 *   DISKGUARD_HOOK_LOG=file       append "n name" for each hook passed (while armed)
 *   DISKGUARD_HOOK_FSTYPE=name    every file system counts as this row of io_fstype()'s table
 *   DISKGUARD_HOOK_STALE=file     while that file lists an inode number (decimal), io_fresh_stat
 *                                 answers ESTALE for it, and afterwards, as an NFS client does, for
 *                                 every descriptor of a regular file that has answered so, and for
 *                                 what io_reopen makes of it
 *   DISKGUARD_HOOK_HANG=file      while that file lists an inode number, io_fresh_stat does not
 *                                 return for it, and neither does fsync(2) of a view */
#ifndef DISKGUARD_HOOK_H
#define DISKGUARD_HOOK_H

#ifdef DG_HOOKS
#include <stdbool.h>

int hook_step(const char *name); /* 0, or -errno where the operation is to fail */
bool hook_stale(int fd, unsigned long ino, bool dir);
void hook_hang(unsigned long ino);
void hook_stale_copy(int from, int to); /* from -1: a new open file that knows nothing */
#define HOOK_STALE(fd, ino, dir) hook_stale(fd, ino, dir)
#define HOOK_STALE_COPY(from, to) hook_stale_copy(from, to)
#define HOOK_HANG(ino) hook_hang(ino)
#define HOOK(name) ((void)hook_step(name))
#define HOOK_FAIL(name) hook_step(name)
#define HOOK_TEXT(variable) getenv(variable)
#else
#define HOOK(name) ((void)0)
#define HOOK_FAIL(name) 0
#define HOOK_TEXT(variable) ((const char *)NULL)
#define HOOK_STALE(fd, ino, dir) 0
#define HOOK_STALE_COPY(from, to) ((void)0)
#define HOOK_HANG(ino) ((void)0)
#endif

#endif
