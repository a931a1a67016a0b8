/* diskguardctl.c: asks and prepares: the command line, init and retry. See ctl.h for the rest,
 * diskguardctl(8) for people. */
#include <getopt.h>
#include <limits.h>
#include <string.h>

#include "base/log.h"
#include "common/unseal.h"
#include "core/upgrade.h"
#include "ctl/ctl.h"
#include "diskguard/layout.h"

static const char usage_text[] =
    "usage: diskguardctl [OPTION...] COMMAND [ARGUMENT]\n"
    "\n"
    "  init DATASTORE   prepare a directory to be a datastore, once\n"
    "  init --upgrade DATASTORE\n"
    "                   convert a datastore of format 1, while no host has a view of it\n"
    "  list [VIEW]      the images that somebody holds for writing\n"
    "  show IMAGE       everything that is known of one image\n"
    "  why IMAGE        why an open for write would be refused now, and the way out\n"
    "  wait IMAGE       wait until nobody holds it\n"
    "  hosts [VIEW]     the hosts that use the datastore\n"
    "  retry IMAGE      let diskguard repeat a restore that failed, now\n"
    "  takeover IMAGE   take it over from a host that seems dead, if the storage proves by the fence lock\n"
    "                   that the other one cannot write any more; nothing is done otherwise\n"
    "  unseal COPY      take the seal off a copy that was made past the views while the image was held\n"
    "\n"
    "VIEW is a mount point of diskguard, IMAGE a path through a view.\n"
    "\n"
    "  --datastore DIR     look at the datastore itself, without a daemon (root)\n"
    "  --json              one line of JSON, for programs\n"
    "  --all               list: also images that are free\n"
    "  --timeout=SECONDS   wait, takeover: give up after this time, with exit code 3 (--wait is the same)\n"
    "  --size=BYTES        unseal: the virtual size, where the copy does not hold it exactly\n"
    "  --fence=none        init --upgrade: the storage has no locks, and no diskguard runs on any host\n"
    "  --yes-unproven      takeover: also on storage of which nobody has shown that the lock stops late writes\n"
    "  --help, --version\n"
    "\n"
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 in use or already done, 4 something needs repair.\n";

enum {
    OPT_JSON = 256,
    OPT_DATASTORE,
    OPT_ALL,
    OPT_TIMEOUT,
    OPT_UNPROVEN,
    OPT_SIZE,
    OPT_UPGRADE,
    OPT_FENCE,
    OPT_HELP,
    OPT_VERSION
};
static const struct option options[] = {
    {"json", no_argument, NULL, OPT_JSON},
    {"datastore", required_argument, NULL, OPT_DATASTORE},
    {"all", no_argument, NULL, OPT_ALL},
    {"timeout", required_argument, NULL, OPT_TIMEOUT},
    {"wait", required_argument, NULL, OPT_TIMEOUT},
    {"size", required_argument, NULL, OPT_SIZE},
    {"yes-unproven", no_argument, NULL, OPT_UNPROVEN},
    {"upgrade", no_argument, NULL, OPT_UPGRADE},
    {"fence", required_argument, NULL, OPT_FENCE},
    {"help", no_argument, NULL, OPT_HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {0},
};

const char *ctl_fence_word(enum fence_kind f)
{
    return f == FENCE_OFD ? "ofd" : f == FENCE_FLOCK ? "flock" : "none";
}

/* ---- init ---- */

/* A word for fstab(5), which has octal escapes and no quotes. */
static void fstab_word(const char *path, char ret[4 * PATH_MAX])
{
    size_t used = 0;

    for (; *path; path++)
        used += (size_t)sprintf(ret + used, strchr(" \t\n\\", *path) ? "\\%03o" : "%c", *path);
    ret[used] = '\0';
}

static void init_print(const struct ctl *ctl, const struct store *s, bool made)
{
    char fstab[4 * PATH_MAX];

    if (ctl->json) {
        struct json_object *o = out_object();

        out_json_text(o, "datastore", s->path);
        out_json_text(o, "uuid", s->uuid);
        out_json_bool(o, "made", made);
        out_json_text(o, "type", s->fs->name);
        out_json_bool(o, "shared", s->fs->shared);
        out_json_text(o, "fence", ctl_fence_word(s->fence));
        out_json_print(o);
        return;
    }
    if (!made) {
        out_line("%s is a datastore already, uuid %s\n", s->path, s->uuid);
        return;
    }
    out_line("%s is a datastore now, uuid %s\n", s->path, s->uuid);
    if (!s->fs->shared)
        out_line(
            "It is on %s, which one host alone can mount: the images are guarded between the processes of this host.\n",
            s->fs->name);
    if (s->fence == FENCE_NONE)
        out_line(
            "This storage has no locks that reach other hosts: a takeover rests on you alone (fsck.diskguard(8)).\n");
    fstab_word(s->path, fstab);
    out_line(
        "\n"
        "Next, on each host:\n"
        "  mount -t diskguard %s MOUNTPOINT\n"
        "or in /etc/fstab:\n"
        "  %s MOUNTPOINT diskguard _netdev,x-systemd.requires-mounts-for=%s,x-systemd.requires-mounts-for=/var/lib/diskguard 0 0\n"
        "Then let the hypervisors use the paths below MOUNTPOINT, never those below %s.\n",
        out_quote(s->path), fstab, fstab, s->path);
}

/* Only who owns the directory, or root, decides that it becomes a datastore. */
static int may_init(const struct ctl *ctl, const char *dir)
{
    char *path = NULL;
    struct stat st;
    const struct mount *m;
    int r = mounts_resolve(&ctl->mounts, dir, &path);

    m = r == 0 ? mounts_of_path(&ctl->mounts, path, NULL) : NULL;
    if (m)
        out_error("%s is a view of the datastore %s, not a datastore", dir, m->source);
    free(path);
    if (r < 0 || m)
        return r < 0 ? r : -EINVAL;
    if (stat(dir, &st) < 0) {
        r = -errno;
        out_error("%s: %s; is the storage mounted?", dir, strerror(-r));
        return r;
    }
    if (!S_ISDIR(st.st_mode)) {
        out_error("%s is not a directory", dir);
        return -ENOTDIR;
    }
    if (geteuid() != 0 && geteuid() != st.st_uid) {
        out_error("init needs root, or the owner of %s", dir);
        return -EPERM;
    }
    return 0;
}

/* A read-only view has no lock that a look at the host records would meet. */
static const struct mount *view_of_store(const struct ctl *ctl, const char *dir)
{
    const struct mount *found = NULL;
    char *path = NULL;

    if (mounts_resolve(&ctl->mounts, dir, &path) == 0)
        for (size_t i = 0; i < ctl->mounts.n && !found; i++)
            if (strcmp(ctl->mounts.m[i].source, path) == 0)
                found = &ctl->mounts.m[i];
    free(path);
    return found;
}

static void upgrade_print(const struct ctl *ctl, const struct store *s, unsigned moved)
{
    if (ctl->json) {
        struct json_object *o = out_object();

        out_json_text(o, "datastore", s->path);
        out_json_text(o, "uuid", s->uuid);
        out_json_u64(o, "format", DG_STORE_VERSION);
        out_json_u64(o, "moved", moved);
        out_json_print(o);
        return;
    }
    out_line("%s is a datastore of format %u now: %u records were moved\n", s->path,
             DG_STORE_VERSION, moved);
}

static int cmd_upgrade(struct ctl *ctl, const char *dir)
{
    const struct mount *view = view_of_store(ctl, dir);
    struct upgrade_result done = {0};
    struct why why = {""};
    struct store s;
    int r;

    if (view) {
        out_error("%s is mounted on %s here: umount it first, on all hosts", dir, view->point);
        return DG_EXIT_IN_USE;
    }
    r = store_upgrade(dir, ctl->fence_none, &s, &done, &why);
    if (r == 0)
        upgrade_print(ctl, &s, done.moved);
    else
        out_error("%s", why.text);
    store_close(&s);
    return r == 0 ? DG_EXIT_OK : r == -EEXIST || r == -EBUSY ? DG_EXIT_IN_USE : DG_EXIT_FAILURE;
}

static int cmd_init(struct ctl *ctl, const char *dir)
{
    struct store s;
    struct why why = {""};
    int code = DG_EXIT_OK, r = may_init(ctl, dir);

    if (r < 0)
        return DG_EXIT_FAILURE;
    if (ctl->upgrade)
        return cmd_upgrade(ctl, dir);
    r = store_init(dir, &s, &why);
    if (r == 0) {
        init_print(ctl, &s, true);
    } else if (r == -EEXIST) {
        store_close(&s);
        code = DG_EXIT_IN_USE;
        r = store_open(dir, &s, &why);
        if (r == 0)
            init_print(ctl, &s, false);
    }
    if (r < 0) {
        out_error("%s", why.text[0] ? why.text : strerror(-r));
        code = code == DG_EXIT_OK ? DG_EXIT_FAILURE : code;
    }
    store_close(&s);
    return code;
}

/* ---- retry ---- */

static int cmd_retry(struct ctl *ctl, const char *image)
{
    struct source s;
    struct why why = {""};
    struct json_object *o;
    char *rel = NULL;

    if (ctl->datastore) {
        out_error("retry asks a running diskguard: name the image through its view");
        return DG_EXIT_USAGE;
    }
    if (source_of_image(ctl, image, &s, &rel) < 0)
        return DG_EXIT_FAILURE;
    o = daemon_ask(s.mount, "retry", rel, &why);
    if (!o)
        out_error("%s", why.text);
    else if (ctl->json)
        out_json_print(out_object());
    else
        out_line("asked; see diskguardctl show %s\n", out_quote(image));
    source_close(&s);
    free(rel);
    json_object_put(o);
    return o ? DG_EXIT_OK : DG_EXIT_FAILURE;
}

/* ---- unseal ---- */

static int cmd_unseal(struct ctl *ctl, const char *copy)
{
    static const int code[] = {[UNSEAL_DONE] = DG_EXIT_OK,
                               [UNSEAL_NOTHING] = DG_EXIT_IN_USE,
                               [UNSEAL_LEFT] = DG_EXIT_NEED_REPAIR,
                               [UNSEAL_FAILED] = DG_EXIT_FAILURE};
    struct unseal *u = out_alloc(sizeof(*u));

    u->path = copy;
    u->size = ctl->size ? &ctl->size : NULL;
    u->datastore = ctl->datastore;
    enum unsealed e = unseal_file(u);
    if (ctl->json) {
        struct json_object *o = out_object();

        out_json_text(o, "file", copy);
        out_json_bool(o, "unsealed", e == UNSEAL_DONE);
        out_json_text(o, "text", u->text);
        out_json_print(o);
    } else if (e == UNSEAL_DONE || e == UNSEAL_NOTHING) {
        out_line("%s: %s\n", out_tame(copy), u->text);
    } else {
        out_error("%s: %s", copy, u->text);
    }
    free(u);
    return code[e];
}

/* ---- command line ---- */

static const struct command {
    const char *name;
    int (*run)(struct ctl *ctl, const char *arg);
    bool needs_arg;
} commands[] = {
    {"init", cmd_init, true},   {"list", cmd_list, false},        {"show", cmd_show, true},
    {"why", cmd_why, true},     {"wait", cmd_wait, true},         {"hosts", cmd_hosts, false},
    {"retry", cmd_retry, true}, {"takeover", cmd_takeover, true}, {"unseal", cmd_unseal, true},
};

static int usage_error(const char *what, const char *arg)
{
    out_error("%s%s%s; see diskguardctl --help", what, arg ? " " : "", arg ? arg : "");
    return DG_EXIT_USAGE;
}

/* 0 go on, 1 done (help, version), -EINVAL wrong usage (said). */
static int parse(struct ctl *ctl, int argc, char **argv)
{
    uint64_t s;
    int c;

    while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        switch (c) {
        case OPT_JSON:
            ctl->json = true;
            break;
        case OPT_ALL:
            ctl->all = true;
            break;
        case OPT_UNPROVEN:
            ctl->unproven = true;
            break;
        case OPT_UPGRADE:
            ctl->upgrade = true;
            break;
        case OPT_FENCE:
            ctl->fence_none = strcmp(optarg, "none") == 0;
            if (!ctl->fence_none && strcmp(optarg, "auto") != 0) {
                usage_error("--fence is auto or none, not", optarg);
                return -EINVAL;
            }
            break;
        case OPT_SIZE:
            if (base_u64(optarg, &ctl->size) < 0 || ctl->size == 0) {
                usage_error("not a number of bytes:", optarg);
                return -EINVAL;
            }
            break;
        case OPT_DATASTORE:
            ctl->datastore = optarg;
            break;
        case OPT_TIMEOUT:
            if (base_u64(optarg, &s) < 0 || s > UINT32_MAX) {
                usage_error("not a number of seconds:", optarg);
                return -EINVAL;
            }
            ctl->timeout_ms = s * 1000;
            break;
        case OPT_HELP:
        case 'h':
            fputs(usage_text, stdout);
            return 1;
        case OPT_VERSION:
            printf("diskguardctl %s\n", DG_VERSION);
            return 1;
        default:
            fputs("see diskguardctl --help\n", stderr);
            return -EINVAL;
        }
    }
    return 0;
}

static int run_command(struct ctl *ctl, char **arg, int n)
{
    const struct command *cmd = NULL;

    if (n == 0)
        return usage_error("a command is missing", NULL);
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
        if (strcmp(arg[0], commands[i].name) == 0)
            cmd = &commands[i];
    if (!cmd)
        return usage_error("unknown command", arg[0]);
    if (n == 1 && cmd->needs_arg)
        return usage_error("an argument is missing after", arg[0]);
    if (n > 2 || (n == 2 && ctl->datastore && !cmd->needs_arg))
        return usage_error("too many arguments after", arg[0]);
    return cmd->run(ctl, n == 2 ? arg[1] : NULL);
}

int main(int argc, char **argv)
{
    struct ctl ctl = {.timeout_ms = UINT64_MAX};
    int r, code;

    out_program("diskguardctl");
    log_init("diskguardctl", false);
    r = parse(&ctl, argc, argv);
    if (r != 0)
        return r < 0 ? DG_EXIT_USAGE : DG_EXIT_OK;
    r = mounts_load(&ctl.mounts);
    if (r < 0) {
        out_error("cannot read /proc/self/mountinfo: %s", strerror(-r));
        return DG_EXIT_FAILURE;
    }
    code = run_command(&ctl, argv + optind, argc - optind);
    mounts_free(&ctl.mounts);
    if (fflush(stdout) != 0 || ferror(stdout))
        code = DG_EXIT_FAILURE;
    /* A thread that waits for dead storage must not keep the program: no clean-up of its own. */
    _exit(code);
}
