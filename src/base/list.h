/* list.h: the lists of <sys/queue.h>, and the macros that glibc's copy of it lacks.
 *
 *   SLIST   one pointer a member. Taking a member out needs a search.
 *   LIST    two pointers a member. Taking a member out needs no search.
 *   STAILQ  a queue: members enter at the end and leave at the head.
 *
 * None of them takes a lock. They are macros, so clang's -Wthread-safety checks the lock in the
 * function that uses them. */
#ifndef DISKGUARD_LIST_H
#define DISKGUARD_LIST_H

#include <sys/queue.h>

/* LIST_FOREACH for a body that takes `member` out or frees it. `next` is a second variable of the
 * same type. */
#define LIST_FOREACH_SAFE(member, head, field, next)                                               \
    for ((member) = LIST_FIRST(head); (member) && ((next) = LIST_NEXT(member, field), 1);          \
         (member) = (next))

#endif
