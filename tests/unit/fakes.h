/* fakes.h: answers that a directory of this host cannot give. The linker leads the calls of the
 * libraries to fakes.c (tests/meson.build: --wrap), so the product has no switch for this. */
#ifndef FAKES_H
#define FAKES_H

#include "core/io.h"
#include "core/store.h"

extern int fake_fencing; /* enum fencing of all storage; -1: the true answer */
extern int fake_gone;    /* of store_gone(): 0 it is there, 1 it is gone; -1: the true answer */
/* Of this thread: so many more malloc() and calloc() of the product have memory; then the next one
 * has none, or all that follow. -1: all have it. */
extern _Thread_local int fake_mallocs;
extern _Thread_local bool fake_mallocs_all;

#endif
