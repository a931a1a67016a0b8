/* views.h: which mounts of this machine are diskguard views. The kernel's mount table alone
 * tells it. No view is touched, because one that hangs would hang whoever asks. */
#ifndef DISKGUARD_VIEWS_H
#define DISKGUARD_VIEWS_H

#include "base/base.h"

/* Type of a mount without option subtype=. */
#define VIEWS_TYPE "fuse.diskguard"

/* Is a mount of this type and device number ("major:minor"; proc(5), mountinfo, fields 9 and 3) a
 * view? One with another type (option subtype=) is known by the control socket that its daemon
 * makes for this number (diskguard/control.h). */
bool views_is_view(const char *type, const char *device);

#endif
