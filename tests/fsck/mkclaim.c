/* mkclaim.c: leaves a datastore as a daemon that died leaves it. A helper of test_fsck.py and
 * test_ctl.py.
 *
 *   mkclaim leave DATASTORE IMAGE STATE   claim IMAGE, bring its header to STATE and end without
 * clean-up STATE: claimed  held without a plan, header untouched armed    held with a plan, header
 * untouched mixed    only the first extent is sealed sealed stuck    sealed, and the record says
 * that a restore failed restoring  the record says so, only the last extent is back mkclaim row
 * DATASTORE IMAGE    as sealed, then the claim is removed: the journal alone remembers mkclaim free
 * DATASTORE IMAGE   settles what `leave` left, the regular way mkclaim hold DATASTORE         lock
 * our host record, say "ready", end at end of file on stdin mkclaim write DATASTORE IMAGE  as
 * sealed, keep the fence lock and the host's, say "ready", end at end of file on stdin Options
 * before: --host-id=UUID --state-dir=DIR --name=HOSTNAME --no-journal --pid=N
 * --seal=size */
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "core/claim.h"
#include "core/header.h"
#include "core/host.h"
#include "core/journal.h"
#include "core/overlay.h"
#include "core/seal.h"

static struct {
    const char *host_id, *state_dir, *name;
    bool no_journal;
    uint64_t pid;
    enum seal_mode seal;
} opt;

static struct store store;
static struct host host;
static struct journal *journal;
static int lock_fd = -1;

static _Noreturn void die(const char *what, int r, const struct why *why)
{
    fprintf(stderr, "mkclaim: %s: %s %s\n", what, strerror(-r), why ? why->text : "");
    exit(1);
}

static void need(const char *what, int r, const struct why *why)
{
    if (r < 0)
        die(what, r, why);
}

static void start(const char *dir)
{
    struct why why = {""};

    need("store", store_open(dir, &store, &why), &why);
    need("host", host_load(opt.host_id, opt.state_dir, &host, &why), &why);
    if (opt.name)
        snprintf(host.name, sizeof(host.name), "%s", opt.name);
    lock_fd = host_lock(&store, &host, &why);
    need("host lock", lock_fd, &why);
    need("beat", host_heartbeat(lock_fd, &host, 1), NULL);
    if (!opt.no_journal)
        need("journal", journal_open(opt.state_dir, store.uuid, &journal, &why), &why);
}

/* proc(5): /proc/self/stat, field 22 */
static uint64_t start_time(void)
{
    unsigned long long start = 0;
    char line[1024];
    FILE *f = fopen("/proc/self/stat", "re");

    if (f && fgets(line, sizeof(line), f))
        sscanf(strrchr(line, ')'),
               ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
               &start);
    if (f)
        fclose(f);
    return start;
}

static void fill(struct record *rec, const char *image, const struct stat *st,
                 const struct header *h)
{
    snprintf(rec->image, sizeof(rec->image), "%s", image);
    rec->ino = st->st_ino;
    memcpy(rec->host, host.uuid, sizeof(rec->host));
    memcpy(rec->installation, host.installation, sizeof(rec->installation));
    memcpy(rec->boot, host.boot, sizeof(rec->boot));
    memcpy(rec->daemon, host.daemon, sizeof(rec->daemon));
    snprintf(rec->host_name, sizeof(rec->host_name), "%s", host.name);
    rec->pid = opt.pid ? opt.pid : (uint64_t)getpid();
    rec->start = opt.pid ? 0 : start_time();
    base_time_text(rec->since);
    snprintf(rec->format, sizeof(rec->format), "%s", h->format ? h->format->name : "raw");
    rec->virtual_size = h->info.virtual_size;
    rec->cut = OVERLAY_NO_CUT;
    rec->mtime = st->st_mtim;
}

static void write_extent(int fd, const struct extent *e, bool truth)
{
    need("write", io_pwrite_all(fd, truth ? e->truth : e->sealed, e->len, e->off), NULL);
    need("fsync", io_fsync(fd), NULL);
}

static void bring_to(struct seal *s, const char *state)
{
    struct record *rec = s->rec;

    if (strcmp(state, "claimed") == 0 || strcmp(state, "armed") == 0 || rec->plan.n == 0)
        return;
    if (strcmp(state, "mixed") == 0) {
        write_extent(s->fd, &rec->plan.ext[0], false);
        return;
    }
    need("seal", seal_write(s), NULL);
    if (strcmp(state, "stuck") == 0 || strcmp(state, "restoring") == 0) {
        rec->step = strcmp(state, "stuck") == 0 ? STEP_STUCK : STEP_RESTORING;
        need("record", seal_record(s), NULL);
        if (rec->step == STEP_RESTORING)
            write_extent(s->fd, &rec->plan.ext[rec->plan.n - 1], true);
    }
}

/* Returns the descriptor with the fence lock. */
static int leave(const char *image, const char *state)
{
    struct header *h = calloc(1, sizeof(*h));
    struct claim *c = calloc(1, sizeof(*c));
    struct record *rec = calloc(1, sizeof(*rec));
    struct seal_policy policy = {opt.seal, host.name};
    struct seal seal = {.store = &store, .journal = journal, .policy = policy, .rec = rec};
    struct stat st;

    seal.fd = io_open_beneath(store.root_fd, image, O_RDWR, 0);
    need("open", seal.fd, NULL);
    need("fence", io_fence_shared(seal.fd, store.fence), NULL);
    need("stat", io_fresh_stat(seal.fd, &st), NULL);
    need("header", header_load(seal.fd, h), NULL);
    fill(rec, image, &st, h);
    need("handle", io_handle_get(seal.fd, &rec->handle), NULL);
    if (strcmp(state, "claimed") != 0)
        need("plan", header_plan(h, &policy, &rec->plan), NULL);
    rec->step = rec->plan.n ? STEP_ARMED : STEP_CLAIMED;
    need("claim", claim_read(&store, rec->ino, c), NULL);
    rec->generation = c->generation + 1;
    rec->seq = 1;
    if (journal)
        need("row", journal_put(journal, rec), NULL);
    need("acquire", claim_acquire(&store, rec, &(bool){false}), NULL);
    bring_to(&seal, state);
    if (strcmp(state, "row") == 0)
        need("forget", claim_forget(&store, rec->ino, rec->generation), NULL);
    free(h);
    free(c);
    free(rec);
    return seal.fd;
}

static void settle(const char *image)
{
    struct claim *c = calloc(1, sizeof(*c));
    struct seal seal = {.store = &store, .journal = journal, .rec = &c->rec};
    struct stat st;

    seal.fd = io_open_beneath(store.root_fd, image, O_RDWR, 0);
    need("open", seal.fd, NULL);
    need("fence", io_fence_shared(seal.fd, store.fence), NULL);
    need("stat", io_fresh_stat(seal.fd, &st), NULL);
    need("claim", claim_read(&store, st.st_ino, c), NULL);
    if (c->kind != CLAIM_HELD)
        die("claim", -ENOENT, NULL);
    need("restore", seal_restore(&seal), NULL);
    claim_clear(&store, c->rec.ino, c->rec.generation);
    close(seal.fd);
    free(c);
}

static void wait_for_end(void)
{
    char c;

    puts("ready");
    fflush(stdout);
    while (read(STDIN_FILENO, &c, 1) > 0)
        ;
}

static int parse(int argc, char **argv)
{
    static const struct option options[] = {
        {"host-id", required_argument, NULL, 'h'},
        {"state-dir", required_argument, NULL, 's'},
        {"name", required_argument, NULL, 'n'},
        {"no-journal", no_argument, NULL, 'j'},
        {"pid", required_argument, NULL, 'p'},
        {"seal", required_argument, NULL, 'm'},
        {0},
    };
    int c;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 'h':
            opt.host_id = optarg;
            break;
        case 's':
            opt.state_dir = optarg;
            break;
        case 'n':
            opt.name = optarg;
            break;
        case 'j':
            opt.no_journal = true;
            break;
        case 'p':
            opt.pid = strtoull(optarg, NULL, 10);
            break;
        case 'm':
            opt.seal = strcmp(optarg, "size") == 0 ? SEAL_SIZE : SEAL_REFUSE;
            break;
        default:
            exit(2);
        }
    }
    return optind;
}

int main(int argc, char **argv)
{
    int first = parse(argc, argv), n = argc - first;
    char **a = argv + first;

    log_init("mkclaim", false);
    if (n < 2 || !opt.state_dir) {
        fputs("mkclaim: wrong usage\n", stderr);
        return 2;
    }
    start(a[1]);
    if (n == 4 && strcmp(a[0], "leave") == 0)
        (void)leave(a[2], a[3]);
    else if (n == 3 && strcmp(a[0], "row") == 0)
        (void)leave(a[2], "row");
    else if (n == 3 && strcmp(a[0], "free") == 0)
        settle(a[2]);
    else if (n == 3 && strcmp(a[0], "write") == 0)
        (void)leave(a[2], "sealed");
    else if (strcmp(a[0], "hold") != 0)
        return 2;
    if (strcmp(a[0], "hold") == 0 || strcmp(a[0], "write") == 0)
        wait_for_end();
    journal_close(journal);
    return 0; /* everything else is left open: the kernel takes the locks back, as after a kill */
}
