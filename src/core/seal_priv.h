/* seal_priv.h: what seal.c and seal_edit.c share. Nobody else includes it. */
#ifndef DISKGUARD_SEAL_PRIV_H
#define DISKGUARD_SEAL_PRIV_H

#include "core/seal.h"

/* Sealed bytes have just been written: notes the first mtime that goes with any. One look in a
 * hold. */
DG_MUST_CHECK int seal_note_shown(struct seal *s);

#endif
