/* hooktest.h: in a build with hooks, lets a test act at each step that base/hook.h names. Weak,
 * because all unit tests are also linked into one program; and because it is there, the linker does
 * not take base/hook.c out of the library. */
#ifndef HOOKTEST_H
#define HOOKTEST_H

#include "base/hook.h"

#ifdef DG_HOOKS
__attribute__((weak)) int (*hooktest)(const char *name); /* NULL: nothing happens at any step */

__attribute__((weak)) int hook_step(const char *name)
{
    return hooktest ? hooktest(name) : 0;
}
#endif

#endif
