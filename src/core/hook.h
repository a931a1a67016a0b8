/* hook.h: named steps at which a test build can kill or stop the process.
 *
 * Every durable operation on the datastore or in the journal is preceded by HOOK("module.step"). In a normal build this is
 * nothing. With -Dhooks=true (meson) the environment decides, read once:
 *   DISKGUARD_HOOK_KILL=k         _exit(137) at the k-th hook (1-based) counted since start
 *   DISKGUARD_HOOK_KILL=name:k    the same, counting only hooks of that name
 *   DISKGUARD_HOOK_STOP=name:k    raise(SIGSTOP) there
 *   DISKGUARD_HOOK_FAIL=name:k:E  the operation after it is not done and fails with errno E (HOOK_FAIL only)
 *   DISKGUARD_HOOK_FAIL2          one more of these
 *   DISKGUARD_HOOK_ARM=file       count and act only while that file exists
 *   DISKGUARD_HOOK_LOG=file       append "n name" for each hook passed (while armed)
 *   DISKGUARD_HOOK_FSTYPE=name    every file system counts as this row of io_fstype()'s table */
#ifndef DISKGUARD_HOOK_H
#define DISKGUARD_HOOK_H

#ifdef DG_HOOKS
int hook_step(const char *name); /* 0, or -errno where the operation is to fail */
#define HOOK(name) ((void)hook_step(name))
#define HOOK_FAIL(name) hook_step(name)
#define HOOK_TEXT(variable) getenv(variable)
#else
#define HOOK(name) ((void)0)
#define HOOK_FAIL(name) 0
#define HOOK_TEXT(variable) ((const char *)NULL)
#endif

#endif
