#include "daemon/start.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>

#include "base/log.h"
#include "core/dependency.h"
#include "core/reader.h"
#include "core/recover.h"
#include "core/spare.h"
#include "daemon/control.h"
#include "daemon/monitor.h"
#include "daemon/options.h"
#include "daemon/utab.h"
#include "diskguard/exitcodes.h"
#include "guard/guard.h"
#include "guard/maker.h"
#include "guard/takeover.h"
#include "run/lanes.h"
#include "run/park.h"
#include "run/pool.h"
#include "view/fs.h"
#include "view/init.h"
#include "view/loop.h"
#include "view/prune.h"

#define ENDING_WAIT_MS 10000u /* for an earlier daemon of this host whose view is unmounted */

/* ---- what libfuse says ---- */

/* Before the view is mounted its complaint becomes part of our one line; later it is logged. */
static struct {
    bool mounted;
    char text[256];
} fuse_said;

static void on_fuse_log(enum fuse_log_level level, const char *fmt, va_list ap) DG_PRINTF(2, 0);
static void on_fuse_log(enum fuse_log_level level, const char *fmt, va_list ap)
{
    char text[256];
    vsnprintf(text, sizeof(text), fmt, ap);
    text[strcspn(text, "\n")] = '\0';
    const char *s = strncmp(text, "fuse: ", 6) == 0 ? text + 6 : text;
    if (fuse_said.mounted || level >= FUSE_LOG_DEBUG)
        log_msg((int)level, "%s", s);
    else
        snprintf(fuse_said.text, sizeof(fuse_said.text), "%s", s);
}

/* ---- up ---- */

/* A looked-up file costs a descriptor, an open one two. */
static void raise_file_limit(void)
{
    struct rlimit rl;
    if (getrlimit(RLIMIT_NOFILE, &rl) < 0)
        return;
    struct rlimit most = {rl.rlim_max, rl.rlim_max};
    FILE *f = geteuid() == 0 ? fopen("/proc/sys/fs/nr_open", "re") : NULL;
    unsigned long n;
    if (f && fscanf(f, "%lu", &n) == 1 && n > most.rlim_max)
        most = (struct rlimit){n, n};
    if (f)
        fclose(f);
    if (setrlimit(RLIMIT_NOFILE, &most) < 0) {
        most = (struct rlimit){rl.rlim_max, rl.rlim_max};
        (void)setrlimit(RLIMIT_NOFILE, &most);
    }
}

static int open_store(struct daemon *d, struct why *why)
{
    int r = store_open(d->opt.guard.datastore, &d->guard.store, why);
    if (r < 0)
        return r;
    if (d->opt.fence_none)
        d->guard.store.fence = FENCE_NONE;
    r = host_load(d->opt.host_id, d->opt.state_dir, &d->guard.host, why);
    if (r < 0)
        return r;
    d->guard.policy = (struct seal_policy){.mode = d->opt.guard.seal, .holder = d->guard.host.name};
    if (!d->guard.store.read_only || d->opt.guard.read_only)
        return 0;
    log_msg(LOG_WARNING, "%s is read-only: so is the view", d->opt.guard.datastore);
    d->opt.guard.read_only = true;
    r = options_to_fuse(&d->opt, "ro", NULL);
    if (r < 0)
        why_set(why, "out of memory");
    return r;
}

struct recovery_jobs {
    struct daemon *d;
    struct pool *pool;
};

static void report(void *arg, const struct record *rec, struct recover_decision decision, int done)
{
    const struct daemon *d = ((struct recovery_jobs *)arg)->d;
    const struct problem_info *info = problem_info(decision.problem);
    const char *action = recover_action_name(decision.action);
    char datastore[1024], image[1024], repair[2048], name[RECORD_IMAGE_MAX + 2];
    /* A row or claim that does not decode has no name: the inode number finds it. */
    if (rec->image[0])
        snprintf(name, sizeof(name), "'%s'", rec->image);
    else
        snprintf(name, sizeof(name), "inode %llu", (unsigned long long)rec->ino);
    problem_fill(info->repair,
                 &(struct problem_words){
                     base_quote(d->guard.store.path, datastore, sizeof(datastore)),
                     rec->host[0] ? rec->host : NULL,
                     rec->image[0] ? base_quote(rec->image, image, sizeof(image)) : NULL},
                 repair, sizeof(repair));
    if (done == 0 && decision.action != RECOVER_STOP)
        log_image(LOG_NOTICE, rec->image, rec->host_name, rec->generation,
                  "recovery of %s (generation %llu): %s: %s", name,
                  (unsigned long long)rec->generation, info->message, action);
    else if (done < 0)
        log_image(LOG_ERR, rec->image, rec->host_name, rec->generation,
                  "recovery of %s (generation %llu): %s: %s failed: %s; %s", name,
                  (unsigned long long)rec->generation, info->message, action, strerror(-done),
                  repair);
    else
        log_image(info->severity >= SEV_PREEN ? LOG_ERR : LOG_INFO, rec->image, rec->host_name,
                  rec->generation, "recovery of %s (generation %llu): %s: left as it is; %s", name,
                  (unsigned long long)rec->generation, info->message, repair);
}

/* What daemons of this host left that are gone, and void ones. */
static void sweep_readers(struct daemon *d)
{
    const char *const own[] = {d->guard.host.uuid, NULL};
    unsigned n = 0;
    int r = reader_sweep(&d->guard.store, own, false, &n);
    if (r < 0 || n > 0)
        log_msg(LOG_INFO, "%u names of readers that are gone were cleared away%s%s", n,
                r < 0 ? "; then: " : "", r < 0 ? strerror(-r) : "");
}

static void run_recovery(void *arg, void (*fn)(void *job), void *job)
{
    const struct recovery_jobs *jobs = arg;
    pool_submit(jobs->pool, fn, job);
}

static int recover(struct daemon *d, struct why *why)
{
    unsigned stale = 0;
    int r = claim_sweep(&d->guard.store, &d->guard.host, false, &stale);
    if (r < 0) {
        why_set(why, "%s: what an earlier daemon left cannot be cleared away: %s",
                d->opt.guard.datastore, strerror(-r));
        return r;
    }
    if (stale > 0)
        log_msg(LOG_INFO, "%u records that an earlier daemon left were cleared away", stale);
    struct recovery_jobs jobs = {.d = d, .pool = pool_new(RECOVER_JOBS)};
    struct recover rec = {.store = &d->guard.store,
                          .journal = d->guard.journal,
                          .host = &d->guard.host,
                          .policy = d->guard.policy,
                          .leave_lower = true,
                          .report = report,
                          .run = jobs.pool ? run_recovery : NULL,
                          .arg = &jobs};
    r = recover_all(&rec);
    pool_free(jobs.pool);
    if (r < 0) {
        why_set(why, "%s: the state that an earlier daemon left cannot be read: %s",
                d->opt.guard.datastore, strerror(-r));
        return r;
    }
    if (r > 0)
        log_msg(LOG_ERR, "some images stay refused; see: fsck.diskguard -n %s",
                d->opt.guard.datastore);
    sweep_readers(d);
    unsigned gone = 0;
    /* they count for nothing: no reason not to start */
    r = dependency_sweep(&d->guard.store, false, &gone);
    if (r < 0 || gone > 0)
        log_msg(LOG_INFO, "%u marks of images that nobody holds any more were cleared away%s%s",
                gone, r < 0 ? "; then: " : "", r < 0 ? strerror(-r) : "");
    return 0;
}

/* umount(8) returns before the daemon of that view has restored everything and is gone: one that
 * has no view any more is waited for. */
static int lock_host(struct daemon *d, struct why *why)
{
    uint64_t until = base_now_ms() + ENDING_WAIT_MS;
    for (;;) {
        int r = host_lock(&d->guard.store, &d->guard.host, why);
        if (r != -EBUSY || base_now_ms() >= until || options_view_exists(d->opt.guard.datastore))
            return r;
        usleep(50000);
    }
}

static int take_over_host(struct daemon *d, struct why *why)
{
    int r = lock_host(d, why);
    if (r < 0)
        return r;
    d->host_lock_fd = r;
    /* An upgrade that began before we had the lock was not kept out by it. */
    r = store_same(&d->guard.store);
    if (r < 0) {
        why_set(why, "%s is not the datastore any more that it was a moment ago: %s; try again",
                d->opt.guard.datastore, strerror(-r));
        return r;
    }
    /* Before anything is written: a full datastore may need their room. What fails here fails again
     * in recover(), which says so. */
    (void)!claim_sweep_spares(&d->guard.store, &d->guard.host);
    r = journal_open(d->opt.state_dir, d->guard.store.uuid, &d->guard.journal, why);
    if (r == 0)
        r = store_prove(&d->guard.store, why);
    if (r < 0)
        return r;
    if (d->guard.store.mapped)
        log_msg(
            LOG_NOTICE,
            "%s: the storage takes this daemon (user %u) for user %u, as NFS does with root_squash: images that user %u may not read and write are refused with EACCES. Way out: export with no_root_squash, or give the images to that user or a group of his",
            d->opt.guard.datastore, (unsigned)geteuid(), (unsigned)d->guard.store.owner,
            (unsigned)d->guard.store.owner);
    r = host_heartbeat(d->host_lock_fd, &d->guard.host, MONITOR_FIRST_HEARTBEAT);
    if (r < 0) {
        why_set(why, "%s: the record of this host cannot be written: %s; %s",
                d->opt.guard.datastore, strerror(-r), store_hint(r));
        return r;
    }
    r = recover(d, why);
    if (r == 0)
        d->guard.store.spares = spares_new(&d->guard.host); /* without: as well as it goes */
    return r;
}

static void on_attention(void *arg)
{
    struct daemon *d = arg;
    struct monitor *m = atomic_load(&d->monitor);
    if (m)
        monitor_kick(m);
}

static void on_changed(void *arg)
{
    struct daemon *d = arg;
    view_changed(&d->view);
}

static void on_forget_pages(void *arg, uint64_t nodeid)
{
    struct daemon *d = arg;
    view_forget_pages(&d->view, nodeid);
}

static int make_tables(struct daemon *d, struct why *why)
{
    d->guard.on = (struct guard_events){.arg = d,
                                        .attention = on_attention,
                                        .changed = on_changed,
                                        .forget_pages = on_forget_pages,
                                        .free_locks = fs_lock_free};
    d->guard.heartbeat_ms = monitor_period_ms();
    d->guard.opt = d->opt.guard;
    d->view.max_read = d->opt.max_read;
    d->view.entry_timeout = d->opt.entry_timeout;
    d->view.attr_timeout = d->opt.attr_timeout;
    int r = guard_init(&d->guard);
    if (r == 0)
        r = view_init(&d->view, &d->guard);
    if (r < 0)
        why_set(why, "%s: %s", d->opt.guard.datastore, strerror(-r));
    return r;
}

static int mount_view(struct daemon *d, struct why *why)
{
    fuse_set_log_func(on_fuse_log);
    d->view.se = fuse_session_new(&d->opt.fuse_args, &fs_ops, sizeof(fs_ops), &d->view);
    if (!d->view.se || fuse_session_mount(d->view.se, d->opt.guard.mountpoint) < 0) {
        why_set(why, "cannot mount on %s: %s", d->opt.guard.mountpoint,
                fuse_said.text[0]
                    ? fuse_said.text
                    : "fusermount3 failed (is user_allow_other set in /etc/fuse.conf?)");
        return -EIO;
    }
    fuse_said.mounted = true;
    int r = init_attach(&d->view);
    if (r < 0)
        why_set(why, "cannot serve %s: %s", d->opt.guard.mountpoint, strerror(-r));
    return r;
}

/* ---- serve ---- */

struct serve {
    struct daemon *d;
    pthread_t main_thread;
    int result;
};

static void *serve_main(void *arg)
{
    struct serve *s = arg;
    s->result = loop_run(&s->d->view);
    if (s->result < 0) /* nobody reads requests any more: whoever waits for an answer must not wait
                          for ever */
        (void)umount2(s->d->opt.guard.mountpoint, MNT_FORCE | MNT_DETACH);
    pthread_kill(s->main_thread, SIGUSR2);
    return NULL;
}

static void signals_block(sigset_t *ret)
{
    sigemptyset(ret);
    sigaddset(ret, SIGTERM);
    sigaddset(ret, SIGINT);
    sigaddset(ret, SIGHUP);
    sigaddset(ret, SIGUSR2); /* the loop has ended */
    pthread_sigmask(SIG_BLOCK, ret, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* Does the view answer? On this thread: the loop runs on others. */
static bool view_answers(const struct daemon *d)
{
    struct stat st;
    return stat(d->opt.guard.mountpoint, &st) == 0 && S_ISDIR(st.st_mode);
}

/* Until a signal comes or the view is unmounted. */
static void wait_for_end(struct daemon *d, const sigset_t *set)
{
    int sig = 0;
    while (sigwait(set, &sig) != 0 || sig == SIGHUP)
        if (sig == SIGHUP)
            log_msg(
                LOG_NOTICE,
                "SIGHUP is ignored: %s stays mounted. To end this daemon: umount it, or SIGTERM",
                d->opt.guard.mountpoint);
    if (sig != SIGUSR2) {
        log_msg(LOG_INFO, "stopping on signal %s", sigabbrev_np(sig));
        utab_remove(&d->opt);
    } else {
        log_msg(LOG_INFO, "%s is unmounted", d->opt.guard.mountpoint);
    }
}

/* What nobody waits for: the generations below those that recovery has freed. */
static void sweep_lower(void *arg)
{
    struct daemon *d = arg;
    unsigned n = 0;
    int r = claim_sweep_lower(&d->guard.store, false, &d->guard.stopping, &n);
    if (r < 0 || n > 0)
        log_msg(LOG_INFO, "%u older generations of claims were cleared away%s%s", n,
                r < 0 ? "; then: " : "", r < 0 ? strerror(-r) : "");
}

static void announce(struct daemon *d)
{
    struct why why = {0};
    d->control = control_new(d, &why);
    if (!d->control)
        log_msg(LOG_WARNING, "diskguardctl cannot ask this daemon: %s", why.text);
    d->view.prune = prune_new(&d->view);
    if (!d->view.prune)
        log_msg(LOG_WARNING, "no thread to limit the number of descriptors");
    d->monitor = d->guard.journal ? monitor_new(d) : NULL;
    if (d->guard.journal && !d->monitor)
        log_msg(
            LOG_ERR,
            "no monitor thread: images that cannot be restored are not retried, and a lost claim is not noticed");
    takeover_announce(&d->guard);
    if (d->guard.journal)
        pool_submit(d->guard.pool, sweep_lower, d);
    utab_add(&d->opt);
    log_msg(LOG_INFO, "%s is mounted on %s%s", d->opt.guard.datastore, d->opt.guard.mountpoint,
            d->opt.guard.read_only ? ", read-only" : "");
    sd_notifyf(0, "READY=1\nSTATUS=Guarding %s on %s", d->opt.guard.datastore,
               d->opt.guard.mountpoint);
}

/* Serves until the end. false: the view never answered. */
static bool serve(struct daemon *d, const sigset_t *set, void (*ready)(void *arg), void *arg,
                  struct why *why)
{
    struct serve s = {.d = d, .main_thread = pthread_self()};
    pthread_t t;
    if (pthread_create(&t, NULL, serve_main, &s) != 0) {
        why_set(why, "no thread can be started");
        return false;
    }
    bool answers = view_answers(d);
    if (answers) {
        announce(d);
        ready(arg);
        wait_for_end(d, set);
    } else {
        why_set(why, "the view on %s does not answer: %s", d->opt.guard.mountpoint,
                strerror(errno));
    }
    atomic_store(&d->guard.stopping, true);
    sd_notify(0, "STOPPING=1");
    /* Prune may wait for a directory that a parked request keeps locked. */
    park_stop(d->view.park);
    prune_free(d->view.prune);
    loop_stop();
    pthread_join(t, NULL);
    if (s.result < 0)
        log_msg(LOG_ERR, "requests cannot be read: %s", strerror(-s.result));
    return answers;
}

/* ---- down ---- */

/* Returns how many images stay sealed. */
static unsigned stop(struct daemon *d)
{
    monitor_stop(d->monitor);
    loop_drain();
    view_drain(&d->view);
    unsigned left = d->guard.images && d->guard.journal ? image_shutdown(&d->guard) : 0;
    int names = d->guard.images && d->guard.journal ? reader_drop(&d->guard.store, &d->guard.host)
                                                    : 0; /* of handles that were never closed */
    if (names < 0)
        log_msg(LOG_INFO, "names of readers stay until this host's next start: %s",
                strerror(-names));
    if (left > 0)
        log_msg(LOG_ERR,
                "%u images are left sealed: the next start tries again, or run: fsck.diskguard %s",
                left, d->opt.guard.datastore);
    control_free(d->control); /* until here whoever waits for the restores can ask what is left */
    if (d->view.se) {
        fuse_session_exit(d->view.se); /* replies to requests that nobody waits for any more fail in
                                          silence */
        fuse_session_unmount(d->view.se);
        fuse_session_destroy(d->view.se);
    }
    view_free(&d->view);
    guard_free(&d->guard);
    monitor_free(d->monitor); /* a release that failed just now has kicked it */
    journal_close(d->guard.journal);
    if (d->host_lock_fd >= 0)
        close(d->host_lock_fd);
    spares_end(&d->guard.store);
    store_close(&d->guard.store);
    return left;
}

int start_run(struct daemon *d, void (*ready)(void *arg), void *arg, struct why *why)
{
    sigset_t set;
    bool served = false;
    d->host_lock_fd = -1;
    d->guard.store = (struct store)STORE_CLOSED;
    raise_file_limit();
    int r = open_store(d, why);
    if (r == 0 && !d->opt.guard.read_only)
        r = take_over_host(d, why);
    if (r == 0) {
        signals_block(&set); /* inherited by every thread */
        r = make_tables(d, why);
    }
    if (r == 0)
        r = mount_view(d, why);
    if (r == 0)
        served = serve(d, &set, ready, arg, why);
    unsigned left = stop(d);
    return served && left == 0 ? DG_EXIT_OK : DG_EXIT_FAILURE;
}
