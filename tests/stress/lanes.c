/* lanes.c: lanes whose jobs hang keep no other lane waiting and take no more than their share;
 * every job runs once, and a drain waits for all of them. Plain program, for ThreadSanitizer: lanes
 * [rounds] exit code 0: held. */
#include "run/lanes.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

enum { HUNG = 60, DEEP = 200, OTHERS = 300, FEW = 10 };

static atomic_uint faults;

#define CHECK(ok, ...)                                                                             \
    do {                                                                                           \
        if (!(ok)) {                                                                               \
            fprintf(stderr, "lanes: " __VA_ARGS__);                                                \
            fprintf(stderr, " (%s)\n", #ok);                                                       \
            atomic_fetch_add(&faults, 1);                                                          \
        }                                                                                          \
    } while (0)

/* Jobs that hang do so until it opens. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool open;
    unsigned hanging;
} gate = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false, 0};

struct lane_seen {
    atomic_uint running, most, done;
};
static struct lane_seen seen[HUNG + OTHERS];
static atomic_uint others_done;

static void enter(struct lane_seen *s)
{
    unsigned now = atomic_fetch_add(&s->running, 1) + 1, most = atomic_load(&s->most);
    while (now > most && !atomic_compare_exchange_weak(&s->most, &most, now))
        ;
}

static void leave(struct lane_seen *s)
{
    atomic_fetch_sub(&s->running, 1);
    atomic_fetch_add(&s->done, 1);
}

static void hang(void *arg)
{
    enter(arg);
    pthread_mutex_lock(&gate.lock);
    gate.hanging++;
    pthread_cond_broadcast(&gate.changed);
    while (!gate.open)
        pthread_cond_wait(&gate.changed, &gate.lock);
    pthread_mutex_unlock(&gate.lock);
    leave(arg);
}

static void work(void *arg)
{
    enter(arg);
    leave(arg);
    pthread_mutex_lock(&gate.lock);
    atomic_fetch_add(&others_done, 1);
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

static void wait_hanging(unsigned n)
{
    pthread_mutex_lock(&gate.lock);
    while (gate.hanging < n)
        pthread_cond_wait(&gate.changed, &gate.lock);
    pthread_mutex_unlock(&gate.lock);
}

static void wait_others(unsigned n)
{
    pthread_mutex_lock(&gate.lock);
    while (atomic_load(&others_done) < n)
        pthread_cond_wait(&gate.changed, &gate.lock);
    pthread_mutex_unlock(&gate.lock);
}

static void open_gate(void)
{
    pthread_mutex_lock(&gate.lock);
    gate.open = true;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

static void reset(void)
{
    gate.open = false;
    gate.hanging = 0;
    atomic_store(&others_done, 0);
    for (unsigned k = 0; k < HUNG + OTHERS; k++) {
        atomic_store(&seen[k].most, 0);
        atomic_store(&seen[k].done, 0);
    }
}

static void round_of(struct lanes *l, unsigned hung)
{
    unsigned expect = 0;
    reset();
    for (unsigned k = 0; k < hung; k++) {
        unsigned share = LANES_THREADS / (k + 1);
        share = share > LANE_MOST ? LANE_MOST : share < LANE_LEAST ? LANE_LEAST : share;
        expect += share;
        for (unsigned j = 0; j < DEEP; j++)
            lanes_submit(l, k, hang, &seen[k]);
        wait_hanging(expect);
        CHECK(atomic_load(&seen[k].running) == share, "lane %u runs %u jobs, its share is %u", k,
              atomic_load(&seen[k].running), share);
    }
    /* Keys that meet in one bucket with hung ones, too. */
    for (unsigned j = 0; j < FEW; j++)
        for (unsigned k = 0; k < OTHERS; k++)
            lanes_submit(l, HUNG + k, work, &seen[HUNG + k]);
    wait_others(FEW * OTHERS); /* hangs where a lane waits for another */
    CHECK(gate.hanging == expect, "%u jobs of hung lanes run, not %u", gate.hanging, expect);
    open_gate();
    lanes_drain(l);
    for (unsigned k = 0; k < HUNG + OTHERS; k++) {
        unsigned jobs = k >= HUNG ? FEW : k < hung ? DEEP : 0;
        CHECK(atomic_load(&seen[k].done) == jobs, "lane %u: %u jobs have run, not %u", k,
              atomic_load(&seen[k].done), jobs);
        CHECK(atomic_load(&seen[k].most) <= LANE_MOST, "lane %u: %u at the same time", k,
              atomic_load(&seen[k].most));
    }
}

int main(int argc, char **argv)
{
    unsigned rounds = argc > 1 ? (unsigned)atoi(argv[1]) : 3;
    struct lanes *l = lanes_new();
    if (!l)
        return 2;
    for (unsigned k = 0; k < rounds; k++) {
        round_of(l, 1);
        round_of(l, HUNG);
    }
    reset();
    for (unsigned j = 0; j < DEEP; j++)
        lanes_submit(l, j % 3, work, &seen[HUNG]);
    lanes_free(l);
    CHECK(atomic_load(&seen[HUNG].done) == DEEP, "freed with jobs that have not run");
    return atomic_load(&faults) ? 1 : 0;
}
