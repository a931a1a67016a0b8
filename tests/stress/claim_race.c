/* claim_race.c: processes and threads, each a host of its own, race for the claims of a few images.
 * At any time at most one of them may hold an image, generations only grow, and at the end there is
 * one free claim for each image and nothing else. Plain program, for ThreadSanitizer:   claim_race
 * [rounds of each worker] exit code 0: held. */
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/claim.h"
#include "core/overlay.h"
#include "core/shard.h"

enum { PROCESSES = 2, THREADS = 4, KEYS = 3 };

/* What all processes share: the truth to compare with. */
struct shared {
    _Atomic unsigned holder[KEYS];
    _Atomic uint64_t generation[KEYS];
    _Atomic unsigned won, lost, faults;
};
static struct shared *shared;
static struct store store;
static unsigned rounds = 200;

#define CHECK(ok, ...)                                                                             \
    do {                                                                                           \
        if (!(ok)) {                                                                               \
            fprintf(stderr, "claim_race: " __VA_ARGS__);                                           \
            fprintf(stderr, " (%s)\n", #ok);                                                       \
            atomic_fetch_add(&shared->faults, 1);                                                  \
        }                                                                                          \
    } while (0)

struct worker {
    unsigned id; /* from 1 */
    struct claim *claim;
    struct record *rec;
};

static void fill(struct worker *w, uint64_t ino, uint64_t generation)
{
    memset(w->rec, 0, sizeof(*w->rec));
    w->rec->ino = ino;
    w->rec->generation = generation;
    w->rec->step = STEP_CLAIMED;
    w->rec->cut = OVERLAY_NO_CUT;
    snprintf(w->rec->image, sizeof(w->rec->image), "disk");
    snprintf(w->rec->host, sizeof(w->rec->host), "%08x-0000-4000-8000-000000000001", w->id);
    snprintf(w->rec->installation, sizeof(w->rec->installation), "%08x-0000-4000-8000-000000000002",
             w->id);
    snprintf(w->rec->boot, sizeof(w->rec->boot), "%08x-0000-4000-8000-000000000003", w->id);
    snprintf(w->rec->daemon, sizeof(w->rec->daemon), "%08x-0000-4000-8000-000000000004", w->id);
    snprintf(w->rec->host_name, sizeof(w->rec->host_name), "worker%u", w->id);
    snprintf(w->rec->format, sizeof(w->rec->format), "none");
    base_time_text(w->rec->since);
}

/* Between acquire and free: nobody else may be here. */
static void hold(struct worker *w, unsigned key)
{
    uint64_t generation = w->rec->generation;
    unsigned nobody = 0, me = w->id;
    int r;

    CHECK(atomic_compare_exchange_strong(&shared->holder[key], &nobody, me),
          "%u and %u hold key %u", me, nobody, key);
    CHECK(atomic_exchange(&shared->generation[key], generation) < generation,
          "generation %llu came back", (unsigned long long)generation);
    r = claim_check(&store, w->rec);
    CHECK(r == 0, "check: %s", strerror(-r));
    w->rec->seq++;
    r = claim_update(&store, w->rec);
    CHECK(r == 0, "update: %s", strerror(-r));
    CHECK(atomic_compare_exchange_strong(&shared->holder[key], &me, 0), "%u was replaced by %u",
          w->id, me);
}

static void round_of(struct worker *w, unsigned key)
{
    uint64_t ino = key + 1;
    int r = claim_read(&store, ino, w->claim);

    CHECK(r == 0, "read: %s", strerror(-r));
    CHECK(w->claim->kind != CLAIM_BAD, "a record does not decode");
    if (r < 0 || (w->claim->kind != CLAIM_NONE && w->claim->kind != CLAIM_FREE)) {
        sched_yield();
        return;
    }
    if (w->id % 2)
        usleep((useconds_t)((w->id * 271 + w->claim->generation * 131) % 3000)); /* some come late:
                                                                                    it has moved on
                                                                                  */
    fill(w, ino, w->claim->generation + 1);
    r = claim_acquire(&store, w->rec, &(bool){false});
    if (r == -EBUSY) {
        atomic_fetch_add(&shared->lost, 1);
        return;
    }
    CHECK(r == 0, "acquire: %s", strerror(-r));
    if (r < 0)
        return;
    atomic_fetch_add(&shared->won, 1);
    hold(w, key);
    r = claim_free(&store, w->rec);
    CHECK(r == 0, "free: %s", strerror(-r));
    claim_clear(&store, w->rec->ino, w->rec->generation); /* others have it by now */
}

/* A record can always be read, and never goes back, however fast the generations change. */
static void read_one(struct worker *w, unsigned key)
{
    uint64_t least = atomic_load(&shared->generation[key]);
    int r = claim_read(&store, key + 1, w->claim);

    CHECK(r == 0, "read: %s", strerror(-r));
    CHECK(r < 0 || w->claim->kind != CLAIM_BAD, "a record does not decode");
    CHECK(r < 0 || w->claim->generation >= least, "generation %llu after %llu",
          (unsigned long long)w->claim->generation, (unsigned long long)least);
}

static void *work(void *arg)
{
    struct worker w = {.id = *(const unsigned *)arg,
                       .claim = malloc(sizeof(*w.claim)),
                       .rec = malloc(sizeof(*w.rec))};

    CHECK(w.claim && w.rec, "out of memory");
    if (w.id % THREADS == 0) /* the last of each process only reads */
        for (unsigned i = 0; w.claim && i < 20 * rounds; i++)
            read_one(&w, i % KEYS);
    else
        for (unsigned i = 0; w.claim && w.rec && i < rounds; i++)
            round_of(&w, (i + w.id) % KEYS);
    free(w.claim);
    free(w.rec);
    return NULL;
}

static void run_process(unsigned process)
{
    pthread_t thread[THREADS];
    unsigned id[THREADS], n = 0;

    for (; n < THREADS; n++) {
        id[n] = process * THREADS + n + 1;
        if (pthread_create(&thread[n], NULL, work, &id[n]) != 0)
            break;
    }
    CHECK(n == THREADS, "cannot start a thread");
    while (n > 0)
        pthread_join(thread[--n], NULL);
}

static unsigned entries(int dirfd)
{
    unsigned n = 0;
    int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);

    for (struct dirent *e; dir && (e = readdir(dir));)
        n += e->d_name[0] != '.';
    if (dir)
        closedir(dir);
    return n;
}

static void check_end(void)
{
    struct claim *c = malloc(sizeof(*c));

    for (unsigned key = 0; c && key < KEYS; key++) {
        int r = claim_read(&store, key + 1, c);

        CHECK(r == 0 && c->kind == CLAIM_FREE, "key %u is not free", key);
        CHECK(r == 0 && c->generation == atomic_load(&shared->generation[key]),
              "key %u: last generation", key);
    }
    free(c);
    unsigned files = 0;
    for (unsigned i = 0; i < DG_SHARDS; i++) {
        int fd = shard_open(store.claims_fd, i);

        files += entries(fd);
        close(fd);
    }
    CHECK(files == KEYS, "%u files in claims/", files);
    CHECK(entries(store.tmp_fd) == 0, "%u files in tmp/", entries(store.tmp_fd));
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

int main(int argc, char **argv)
{
    const char *tmp = getenv("TMPDIR");
    char base[64];
    struct why why = {""};
    unsigned faults;
    int status;

    if (argc > 1)
        rounds = (unsigned)strtoul(argv[1], NULL, 10);
    snprintf(base, sizeof(base), "%.40s/dg-race-XXXXXX", tmp && tmp[0] ? tmp : "/tmp");
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || !mkdtemp(base) || store_init(base, &store, &why) < 0) {
        fprintf(stderr, "claim_race: cannot start: %s\n", why.text);
        return 2;
    }
    for (unsigned p = 0; p < PROCESSES; p++) {
        pid_t pid = fork();

        CHECK(pid >= 0, "cannot fork");
        if (pid == 0) {
            run_process(p);
            /* exit, not _exit: the sanitizer reports there */
            exit(atomic_load(&shared->faults) != 0);
        }
    }
    while (wait(&status) > 0)
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a process ended with status %#x",
              status);
    check_end();
    store_close(&store);
    nftw(base, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    faults = atomic_load(&shared->faults);
    printf("claim_race: %u won, %u lost, %u faults\n", atomic_load(&shared->won),
           atomic_load(&shared->lost), faults);
    return faults ? 1 : 0;
}
