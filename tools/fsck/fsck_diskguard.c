/* fsck_diskguard.c: fsck.diskguard: command line, order of the steps, exit code. See fsck.h, and
 * fsck.diskguard(8) for people. */
#include "fsck/fsck.h"

#include <getopt.h>
#include <string.h>

#include "base/log.h"
#include "common/mounts.h"

static const char usage_text[] =
    "usage: fsck.diskguard [-n|-p|-y] [OPTION...] DATASTORE\n"
    "       fsck.diskguard [-n|-p|-y] [--size=BYTES] COPY\n"
    "\n"
    "  -n   only look: change nothing, make nothing\n"
    "  -p   repair what is provably safe, without a question (also -a)\n"
    "  -y   repair all that can be repaired\n"
    "       none of them: ask before each repair; without a terminal as -n\n"
    "  COPY: one file, a copy that was made past the views while the image was held; -y takes the seal off\n"
    "\n"
    "  --takeover HOST           also settle what HOST (uuid or name) left\n"
    "  --confirm-host-is-down    you have made sure that it cannot write any more\n"
    "  --size=IMAGE=BYTES        the virtual size of an image below DATASTORE that is sealed without any record\n"
    "  --host-id=UUID            act as this host, as the option of diskguard\n"
    "  --state-dir=DIR           journal of this host (/var/lib/diskguard)\n"
    "  --fence=auto|none         as the option of diskguard\n"
    "  --json                    one line of JSON; asks nothing\n"
    "  -v, --verbose   -V, --version   --help\n"
    "  -C, -t, -T, -M, -R        of fsck(8): ignored\n"
    "\n"
    "Exit code, a sum as fsck(8): 0 clean, 1 repaired, 4 something is left, 8 could not look or act, 16 wrong usage, 32 canceled.\n";

enum {
    OPT_JSON = 256,
    OPT_HOST_ID,
    OPT_STATE_DIR,
    OPT_TAKEOVER,
    OPT_CONFIRM,
    OPT_FENCE,
    OPT_SIZE,
    OPT_HELP
};
static const struct option options[] = {
    {"json", no_argument, NULL, OPT_JSON},
    {"host-id", required_argument, NULL, OPT_HOST_ID},
    {"state-dir", required_argument, NULL, OPT_STATE_DIR},
    {"takeover", required_argument, NULL, OPT_TAKEOVER},
    {"confirm-host-is-down", no_argument, NULL, OPT_CONFIRM},
    {"fence", required_argument, NULL, OPT_FENCE},
    {"size", required_argument, NULL, OPT_SIZE},
    {"verbose", no_argument, NULL, 'v'},
    {"version", no_argument, NULL, 'V'},
    {"help", no_argument, NULL, OPT_HELP},
    {0},
};

volatile sig_atomic_t fsck_canceled;

static void cancel(int sig)
{
    (void)sig;
    fsck_canceled = 1;
}

/* ---- command line ---- */

enum parsed { PARSE_RUN, PARSE_DONE, PARSE_WRONG };

static enum parsed wrong(const char *what, const char *arg)
{
    out_error("%s%s%s; see fsck.diskguard --help", what, arg ? " " : "", arg ? arg : "");
    return PARSE_WRONG;
}

static enum parsed set_mode(struct fsck *f, enum fsck_mode mode)
{
    if (f->mode != MODE_ASK && f->mode != mode)
        return wrong("only one of -n, -p and -y can be given", NULL);
    f->mode = mode;
    return PARSE_RUN;
}

static enum parsed parse_short(struct fsck *f, int c)
{
    switch (c) {
    case 'n':
        return set_mode(f, MODE_CHECK);
    case 'p':
    case 'a':
        return set_mode(f, MODE_PREEN);
    case 'y':
        return set_mode(f, MODE_YES);
    case 'v':
        f->verbose = true;
        return PARSE_RUN;
    case 'V':
        printf("fsck.diskguard %s\n", DG_VERSION);
        return PARSE_DONE;
    case 'C': /* fsck(8) passes its own on */
    case 't':
    case 'T':
    case 'M':
    case 'R':
    case 'f':
        return PARSE_RUN;
    default:
        fputs("see fsck.diskguard --help\n", stderr);
        return PARSE_WRONG;
    }
}

static enum parsed parse_size(struct fsck *f, const char *arg)
{
    const char *equals = strrchr(arg, '=');
    char *end = NULL;

    if (f->size)
        return wrong("--size can be given once", NULL);
    if (!equals) { /* of a single file */
        if (base_u64(arg, &f->size) < 0 || f->size == 0)
            return wrong("--size wants IMAGE=BYTES, not", arg);
        return PARSE_RUN;
    }
    errno = 0;
    if (equals && equals > arg && equals[1] >= '1' && equals[1] <= '9')
        f->size = strtoull(equals + 1, &end, 10);
    if (!end || *end || errno)
        return wrong("--size wants IMAGE=BYTES, not", arg);
    while (arg[0] == '.' && arg[1] == '/')
        arg += 2;
    f->size_image = out_strdup(arg);
    f->size_image[equals - arg] = '\0';
    return PARSE_RUN;
}

static enum parsed parse_long(struct fsck *f, int c)
{
    switch (c) {
    case OPT_JSON:
        f->json = true;
        return PARSE_RUN;
    case OPT_HOST_ID:
        f->host_id = optarg;
        return base_uuid_ok(optarg) ? PARSE_RUN : wrong("not a uuid in lower case:", optarg);
    case OPT_STATE_DIR:
        f->state_dir = optarg;
        return PARSE_RUN;
    case OPT_TAKEOVER:
        f->takeover_arg = optarg;
        return PARSE_RUN;
    case OPT_CONFIRM:
        f->confirmed = true;
        return PARSE_RUN;
    case OPT_FENCE:
        f->fence_none = strcmp(optarg, "none") == 0;
        return f->fence_none || strcmp(optarg, "auto") == 0
                   ? PARSE_RUN
                   : wrong("--fence is auto or none, not", optarg);
    case OPT_SIZE:
        return parse_size(f, optarg);
    case OPT_HELP:
        fputs(usage_text, stdout);
        return PARSE_DONE;
    default:
        return parse_short(f, c);
    }
}

static enum parsed parse(struct fsck *f, int argc, char **argv)
{
    int c;

    while ((c = getopt_long(argc, argv, "napyvVfC::t:TMR", options, NULL)) != -1) {
        enum parsed p = parse_long(f, c);
        if (p != PARSE_RUN)
            return p;
    }
    if (f->confirmed && !f->takeover_arg)
        return wrong("--confirm-host-is-down goes with --takeover HOST", NULL);
    if (optind + 1 != argc)
        return wrong(optind == argc ? "the datastore is missing" : "more than one datastore", NULL);
    f->datastore = argv[optind];
    f->one_file = fsck_is_file(f->datastore);
    if (f->one_file ? f->size_image != NULL : f->size && !f->size_image)
        return wrong(
            f->one_file ? "--size of a single file wants BYTES" : "--size wants IMAGE=BYTES", NULL);
    if (f->one_file && f->takeover_arg)
        return wrong("--takeover goes with a datastore", NULL);
    return PARSE_RUN;
}

/* Without a terminal nobody can answer. A confirmed takeover counts as the answer. */
static void settle_mode(struct fsck *f)
{
    if (f->mode == MODE_ASK && (f->json || !isatty(STDIN_FILENO))) {
        f->mode = f->confirmed ? MODE_PREEN : MODE_CHECK;
        if (f->mode == MODE_CHECK)
            report_say(f,
                       "Nobody can be asked here: only looking, as with -n. Repair with -p or -y.");
    }
    f->dry_run = f->mode == MODE_CHECK;
}

/* ---- the datastore ---- */

static int open_store(struct fsck *f)
{
    struct why why = {""};
    struct mounts mounts = {0};
    char *path = NULL;
    int r = mounts_load(&mounts);

    if (r == 0 && mounts_resolve(&mounts, f->datastore, &path) == 0) {
        const struct mount *m = mounts_of_path(&mounts, path, NULL);
        if (m) {
            report_error(f, "%s is a view; check the datastore behind it: %s", f->datastore,
                         m->source);
            r = -EINVAL;
        }
    }
    free(path);
    mounts_free(&mounts);
    if (r < 0)
        return r;
    r = f->dry_run ? store_look(f->datastore, &f->store, &why)
                   : store_open(f->datastore, &f->store, &why);
    if (r < 0 && !(r == -EXDEV && f->dry_run)) {
        report_error(f, "%s", why.text[0] ? why.text : strerror(-r));
        return r;
    }
    if (f->fence_none)
        f->store.fence = FENCE_NONE;
    if (f->store.read_only && !f->dry_run)
        report_say(f, "The datastore cannot be written here: only looking.");
    f->dry_run = f->dry_run || f->store.read_only;
    return 0;
}

/* ---- recovery ---- */

struct claims_of {
    const char *host;
    uint64_t *ino;
    size_t n;
};

static int collect(void *arg, uint64_t ino, const struct claim *c)
{
    struct claims_of *l = arg;
    uint64_t *more;

    if (c->kind != CLAIM_HELD || strcmp(c->rec.host, l->host) != 0)
        return 0;
    more = reallocarray(l->ino, l->n + 1, sizeof(*more));
    if (!more)
        return -ENOMEM;
    l->ino = more;
    l->ino[l->n++] = ino;
    return 0;
}

/* Beside a live daemon of ours it settles the other host's claims one by one, and none of our own.
 */
static int recover_host(struct fsck *f, struct recover *r)
{
    struct claims_of l = {.host = f->takeover};
    int err = f->takeover[0] ? claim_each(&f->store, collect, &l) : 0;

    for (size_t i = 0; err == 0 && i < l.n; i++)
        (void)!recover_image(r, l.ino[i], NULL, 0); /* reported and counted there */
    free(l.ino);
    return err;
}

static int recover(struct fsck *f)
{
    struct recover r = {
        .store = &f->store,
        .journal = f->journal,
        .host = &f->host,
        .takeover = f->takeover[0] ? f->takeover : NULL,
        .dry_run = f->dry_run,
        .agree = f->mode == MODE_YES || f->mode == MODE_ASK,
        .policy = {SEAL_REFUSE, f->host.name},
        .report = report_recover,
        .ask = report_ask,
        .arg = f,
    };
    int err = f->beside ? recover_host(f, &r) : recover_all(&r);

    return err > 0 ? 0 : err;
}

/* ---- all of it ---- */

static int check(struct fsck *f)
{
    int r = open_store(f);

    if (r == 0)
        r = identity_load(f);
    if (r == 0)
        r = takeover_open(f);
    if (r == 0)
        r = identity_lock(f);
    if (r == 0)
        r = identity_journal(f);
    if (r < 0)
        return r;
    if (!f->dry_run && !f->beside)
        (void)!claim_sweep_spares(&f->store, &f->host); /* walk_sweep() fails as this does, and says
                                                           so */
    r = recover(f);
    if (r < 0)
        report_error(f, "cannot go through the claims of %s: %s; %s", f->store.path, strerror(-r),
                     store_hint(r));
    identity_bind(f);
    r = walk_claims(f);
    if (r == 0) {
        walk_speak(f);
        r = walk_sweep(f);
    }
    if (r == 0)
        r = walk_files(f);
    f->walked = r == 0 && !fsck_canceled;
    if (r < 0)
        report_error(f, "cannot go through %s: %s; %s", f->store.path, strerror(-r), store_hint(r));
    return 0; /* it was reported and counted as an error */
}

static int exit_code(const struct fsck *f, int r)
{
    if (r == -EINVAL)
        return FSCK_USAGE;
    return (f->corrected ? (int)FSCK_CORRECTED : 0) | (f->left ? (int)FSCK_UNCORRECTED : 0) |
           (f->error || r < 0 ? (int)FSCK_ERROR : 0) | (fsck_canceled ? (int)FSCK_CANCELED : 0);
}

int main(int argc, char **argv)
{
    struct fsck f = {.lock_fd = -1, .takeover_fd = -1};
    struct sigaction sa = {.sa_handler = cancel};
    int code;

    out_program("fsck.diskguard");
    log_init("fsck.diskguard", false);
    switch (parse(&f, argc, argv)) {
    case PARSE_DONE:
        return FSCK_OK;
    case PARSE_WRONG:
        return FSCK_USAGE;
    case PARSE_RUN:
        break;
    }
    f.store = (struct store)STORE_CLOSED;
    f.found = json_object_new_array();
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    settle_mode(&f);
    if (f.one_file) {
        code = fsck_file(&f);
        json_object_put(f.found);
        free(f.size_image);
        return fflush(stdout) == 0 ? code : code | (int)FSCK_ERROR;
    }
    code = exit_code(&f, check(&f));
    report_end(&f, code);
    identity_close(&f);
    walk_free(&f);
    json_object_put(f.found);
    free(f.size_image);
    store_close(&f.store);
    return fflush(stdout) == 0 ? code : code | (int)FSCK_ERROR;
}
