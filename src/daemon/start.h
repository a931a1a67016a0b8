/* start.h: brings the daemon up in a fixed order, serves, and takes it down again.
 *
 * Up:   datastore, host, journal, proof, recovery; then the mount, threads, control, monitor; then
 * "ready". Down: no more requests; requests under way end; every held image is restored; unmount;
 * the rest in reverse. */
#ifndef DISKGUARD_START_H
#define DISKGUARD_START_H

#include "daemon/daemon.h"

/* Runs the daemon with d->opt, which is checked. ready() is called once the view answers. Returns
 * an exit code (exitcodes.h); why is set when the view never became ready, and empty otherwise. */
int start_run(struct daemon *d, void (*ready)(void *arg), void *arg, struct why *why);

#endif
