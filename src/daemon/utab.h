/* utab.h: what umount(8) knows of our mount. It starts umount.fuse.diskguard(8), which waits until
 * every header is back, only for a mount that it looks up in its tables: for one without an entry
 * of mount(8) it asks statfs(2) for the type, and that tells "fuse" and no subtype. So the view
 * gets an entry, helper=fuse.diskguard (umount(8), "EXTERNAL HELPERS"), by mount(8) itself, whoever
 * mounted it and whatever its type. */
#ifndef DISKGUARD_DAEMON_UTAB_H
#define DISKGUARD_DAEMON_UTAB_H

struct options;

/* Not fatal: without the entry umount(8) returns before the headers are back, as for other file
 * systems; a log line says so. The view must answer. */
void utab_add(const struct options *opt);
/* For a view that we unmount ourselves; umount(8) removes the entry of one that it unmounts. */
void utab_remove(const struct options *opt);

#endif
