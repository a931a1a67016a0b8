/* journal_unit.h: what the tests of the journal share. */
#ifndef JOURNAL_UNIT_H
#define JOURNAL_UNIT_H

#include "unit.h"

#include <pthread.h>

#include "core/journal.h"
#include "core/overlay.h"
#include "scratch.h"

#define STORE_UUID "00112233-4455-4677-8899-aabbccddeeff"
#define DB STORE_UUID ".db"
#define OTHER_UUID "20112233-4455-4677-8899-aabbccddeeff"

static inline struct journal *open_in(const char *dir)
{
    struct journal *j = NULL;
    struct why why = {""};

    cr_assert_eq(journal_open(dir, STORE_UUID, &j, &why), 0, "%s", why.text);
    return j;
}

static inline int open_fails(const char *dir, struct why *why)
{
    struct journal *j = NULL;
    int r = journal_open(dir, STORE_UUID, &j, why);

    journal_close(j);
    return r;
}

static inline struct record *new_record(uint64_t ino, uint64_t generation)
{
    struct record *rec = calloc(1, sizeof(*rec));

    if (!rec)
        abort();
    strcpy(rec->image, "vm/disk.qcow2");
    rec->ino = ino;
    rec->generation = generation;
    rec->step = STEP_SEALED;
    rec->seq = 1;
    strcpy(rec->host, STORE_UUID);
    strcpy(rec->installation, STORE_UUID);
    strcpy(rec->boot, STORE_UUID);
    strcpy(rec->daemon, STORE_UUID);
    strcpy(rec->host_name, "node1");
    strcpy(rec->since, "2026-11-22T10:00:00Z");
    strcpy(rec->format, "qcow2");
    rec->cut = OVERLAY_NO_CUT;
    rec->plan.n = 1;
    rec->plan.ext[0] = (struct extent){.off = 24, .len = 8};
    return rec;
}

/* The text of this one is larger than 60 KiB. */
static inline struct record *new_large_record(uint64_t ino)
{
    struct record *rec = new_record(ino, 1);

    rec->plan.n = PLAN_MAX;
    for (unsigned i = 0; i < PLAN_MAX; i++)
        rec->plan.ext[i] =
            (struct extent){.off = i * EXTENT_MAX, .len = EXTENT_MAX, .has_was = true};
    return rec;
}

static inline int put(struct journal *j, uint64_t ino, uint64_t generation, uint64_t seq)
{
    struct record *rec = new_record(ino, generation);
    int r;

    rec->seq = seq;
    r = journal_put(j, rec);
    free(rec);
    return r;
}

struct seen {
    int rows, bad, stop;
    uint64_t inos, generations, seqs; /* sums */
    struct journal *remove_from;
};

static inline int see(void *arg, const struct record *rec, int err)
{
    struct seen *seen = arg;

    seen->rows++;
    seen->inos += rec->ino;
    seen->generations += rec->generation;
    if (err == 0)
        seen->seqs += rec->seq;
    else
        seen->bad += err == -EBADMSG && rec->image[0] == '\0';
    if (seen->remove_from && journal_remove(seen->remove_from, rec->ino, rec->generation) < 0)
        return -1;
    return seen->stop;
}

static inline struct seen look(struct journal *j)
{
    struct seen seen = {0};

    cr_assert_eq(journal_each(j, see, &seen), 0);
    return seen;
}

struct worker {
    struct journal *j;
    uint64_t number;
    int failed;
    pthread_t thread;
};

static inline void join(struct worker *w, int count)
{
    for (int n = 0; n < count; n++)
        pthread_join(w[n].thread, NULL);
}

#endif
