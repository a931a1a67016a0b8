/* exitcodes.h: the exit codes of diskguard's programs. They are an interface: scripts depend on
 * them.
 *
 * diskguard(8) and diskguardctl(8) use the DG_EXIT_* values, fsck.diskguard(8) the FSCK_* values,
 * which are the sums that fsck(8) defines (util-linux, fsck.8, "EXIT STATUS"). */
#ifndef DISKGUARD_EXITCODES_H
#define DISKGUARD_EXITCODES_H

enum dg_exit {
    DG_EXIT_OK = 0,
    /* the operation was tried and failed; stderr says what and the way out */
    DG_EXIT_FAILURE = 1,
    DG_EXIT_USAGE = 2, /* wrong command line or option */
    /* `diskguardctl wait`: still held when the time was up; `init`: already done */
    DG_EXIT_IN_USE = 3,
    DG_EXIT_NEED_REPAIR = 4 /* `diskguardctl show|why|list`: an image needs fsck.diskguard */
};

enum fsck_exit {
    FSCK_OK = 0,
    FSCK_CORRECTED = 1,   /* something was wrong and has been repaired */
    FSCK_UNCORRECTED = 4, /* something is wrong and was left as it is */
    FSCK_ERROR = 8,       /* operational error: nothing can be said of what was not read */
    FSCK_USAGE = 16,
    FSCK_CANCELED = 32
};

#endif
