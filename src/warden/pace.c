#include "warden/pace.h"

uint64_t pace_after_crash(struct pace *p, uint64_t lived_ms)
{
    if (lived_ms >= PACE_SHORT_LIFE_MS)
        p->short_lives = 0;
    unsigned n = p->short_lives;
    if (n < 32)
        p->short_lives++;
    if (n == 0)
        return 0;
    uint64_t ms = (uint64_t)PACE_FIRST_MS << (n - 1);
    return ms < PACE_MOST_MS ? ms : PACE_MOST_MS;
}
