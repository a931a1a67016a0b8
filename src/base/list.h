/* list.h: the lists of <sys/queue.h>, which every C library of Debian has, and what glibc lacks of
 * them.
 *
 *   SLIST   one pointer a member; is searched for what is taken out
 *   LIST    two pointers a member; a member that is listed can be taken out without a search
 *   STAILQ  a queue: in at the end, out at the head
 *
 * They are macros: the analysis of clang's -Wthread-safety sees the change in the function that
 * makes it, where the lock is known. None of them takes a lock. */
#ifndef DISKGUARD_LIST_H
#define DISKGUARD_LIST_H

#include <sys/queue.h>

/* As LIST_FOREACH, and `member` may be taken out and freed in the body; `next` is a second variable
 * of its type. */
#define LIST_FOREACH_SAFE(member, head, field, next)                                               \
    for ((member) = LIST_FIRST(head); (member) && ((next) = LIST_NEXT(member, field), 1);          \
         (member) = (next))

#endif
