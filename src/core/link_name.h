/* link_name.h: which files of a host a name in an image means. Names are QEMU's (block.c): a path,
 * "file:" and a path, or "json:" and the options of a block node, in which the files stand at any
 * depth ("file", "backing", "children", raw, throttle and the like around them). Other protocols
 * name no file. Pure. */
#ifndef DISKGUARD_CORE_LINK_NAME_H
#define DISKGUARD_CORE_LINK_NAME_H

#include "base/base.h"

/* Calls fn for each path, in the order of the name. from_cwd: a path that does not begin with
 * '/' counts from the working directory of the program that opens the image, not from the
 * image's directory. QEMU joins no directory to a name with a protocol, and "json:" and "file:"
 * are protocols. A non-zero return of fn stops and is returned. 0; -EXDEV: something in it is no
 * file of a host (fn was called for the rest); -EUCLEAN: it does not parse, or says nothing of a
 * file. */
DG_MUST_CHECK int link_name(const char *name, int (*fn)(void *arg, const char *path, bool from_cwd),
                            void *arg);

#endif
