/* pace.h: how long a worker's successor waits. Pure. */
#ifndef DISKGUARD_WARDEN_PACE_H
#define DISKGUARD_WARDEN_PACE_H

#include <stdint.h>

#define PACE_SHORT_LIFE_MS 10000u
#define PACE_FIRST_MS 100u
#define PACE_MOST_MS 30000u

struct pace {
    unsigned short_lives; /* workers in a row that crashed before PACE_SHORT_LIFE_MS */
};
/* A worker has crashed that lived so long, which begins when it was started: the pause before the
 * next one. None, if it lived long or is the first one that did not; then PACE_FIRST_MS, doubled
 * each time, at most PACE_MOST_MS. */
uint64_t pace_after_crash(struct pace *p, uint64_t lived_ms);

#endif
