#include "daemon/options.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define WAIT_MAX 86400
#define TIMEOUT_MAX 3600
#define TAKEOVER_WAIT_DEFAULT 120
#define STATE_DIR_DEFAULT "/var/lib/diskguard"
#define SUBTYPE_DEFAULT "diskguard"
#define SUBTYPE_MAX 32

struct parse {
    struct options *o;
    struct why *why;
    enum options_todo todo;
    char *paths[2];
    unsigned n_paths;
    bool allow_other, no_allow_other, allow_root;
    int error;
};

static int bad(struct parse *p, const char *fmt, ...) DG_PRINTF(2, 3);
static int bad(struct parse *p, const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    why_set(p->why, "%s (see diskguard --help)", text);
    p->error = -EINVAL;
    return -1;
}

static int no_memory(struct parse *p)
{
    why_set(p->why, "out of memory");
    p->error = -ENOMEM;
    return -1;
}

static int set_text(struct parse *p, char **at, const char *value)
{
    free(*at);
    *at = strdup(value);
    return *at ? 0 : no_memory(p);
}

/* ---- our own options ---- */

static int set_host_id(struct parse *p, const char *value)
{
    char lower[DG_UUID_LEN + 1] = "";
    size_t n = strlen(value);
    for (size_t i = 0; n == DG_UUID_LEN && i <= n; i++)
        lower[i] = (char)tolower((unsigned char)value[i]);
    if (!base_uuid_ok(lower))
        return bad(p, "host-id=%s: not a UUID such as 01234567-89ab-cdef-0123-456789abcdef", value);
    return set_text(p, &p->o->host_id, lower);
}

static int set_state_dir(struct parse *p, const char *value)
{
    if (value[0] != '/')
        return bad(p, "state-dir=%s: must be an absolute path", value);
    return set_text(p, &p->o->state_dir, value);
}

static int set_wait(struct parse *p, const char *value)
{
    uint64_t n;
    if (base_u64(value, &n) < 0 || n > WAIT_MAX)
        return bad(p, "wait=%s: must be a number of seconds from 0 to %d", value, WAIT_MAX);
    p->o->guard.wait_s = (unsigned)n;
    p->o->guard.wait_set = true;
    return 0;
}

static int set_threshold(struct parse *p, const char *value)
{
    if (base_size(value, &p->o->guard.threshold) < 0)
        return bad(p, "threshold=%s: must be a number of bytes, with an optional K, M, G or T",
                   value);
    p->o->guard.threshold_set = true;
    return 0;
}

static int set_seal(struct parse *p, const char *value)
{
    if (strcmp(value, "refuse") == 0)
        p->o->guard.seal = SEAL_REFUSE;
    else if (strcmp(value, "size") == 0)
        p->o->guard.seal = SEAL_SIZE;
    else
        return bad(p, "seal=%s: must be refuse or size", value);
    return 0;
}

static int set_writers(struct parse *p, const char *value)
{
    if (strcmp(value, "process") == 0)
        p->o->guard.writers = WRITERS_PROCESS;
    else if (strcmp(value, "host") == 0)
        p->o->guard.writers = WRITERS_HOST;
    else
        return bad(p, "writers=%s: must be process or host", value);
    return 0;
}

static int set_readers(struct parse *p, const char *value)
{
    if (strcmp(value, "protect") == 0)
        p->o->guard.readers = READERS_PROTECT;
    else if (strcmp(value, "ignore") == 0)
        p->o->guard.readers = READERS_IGNORE;
    else
        return bad(p, "readers=%s: must be protect or ignore", value);
    return 0;
}

static int set_damaged(struct parse *p, const char *value)
{
    if (strcmp(value, "claim") == 0)
        p->o->guard.damaged = DAMAGED_CLAIM;
    else if (strcmp(value, "refuse") == 0)
        p->o->guard.damaged = DAMAGED_REFUSE;
    else
        return bad(p, "damaged=%s: must be claim or refuse", value);
    return 0;
}

static int set_fence(struct parse *p, const char *value)
{
    if (strcmp(value, "auto") != 0 && strcmp(value, "none") != 0)
        return bad(p, "fence=%s: must be auto or none", value);
    p->o->fence_none = strcmp(value, "none") == 0;
    return 0;
}

const char *options_takeover_name(enum takeover_mode t)
{
    static const char *const words[] = {[TAKEOVER_MANUAL] = "manual",
                                        [TAKEOVER_BY_LOCK] = "lock",
                                        [TAKEOVER_UNPROVEN] = "lock-unproven"};
    return words[t];
}

static int set_takeover(struct parse *p, const char *value)
{
    for (unsigned n = 0; n <= TAKEOVER_UNPROVEN; n++) {
        if (strcmp(value, options_takeover_name((enum takeover_mode)n)) == 0) {
            p->o->guard.takeover = (enum takeover_mode)n;
            return 0;
        }
    }
    return bad(p, "takeover=%s: must be manual, lock or lock-unproven", value);
}

static int set_takeover_wait(struct parse *p, const char *value)
{
    uint64_t n;
    if (base_u64(value, &n) < 0 || n < 1 || n > WAIT_MAX)
        return bad(p, "takeover-wait=%s: must be a number of seconds from 1 to %d", value,
                   WAIT_MAX);
    p->o->guard.takeover_wait_s = (unsigned)n;
    return 0;
}

static void globs_free(char ***at)
{
    for (char **g = *at; g && *g; g++)
        free(*g);
    free(*at);
    *at = NULL;
}

/* must: what the value of the option `name` must be, for the message. */
static int set_globs(struct parse *p, char ***at, const char *name, const char *must,
                     const char *value)
{
    size_t n = 2;
    for (const char *s = value; *s; s++)
        n += *s == ':';
    globs_free(at);
    *at = calloc(n, sizeof(char *));
    if (!*at)
        return no_memory(p);
    n = 0;
    for (const char *s = value;;) {
        size_t len = strcspn(s, ":");
        if (len == 0 || memchr(s, '/', len))
            return bad(p, "%s=%s: must be %s", name, value, must);
        (*at)[n] = strndup(s, len);
        if (!(*at)[n++])
            return no_memory(p);
        if (s[len] == '\0')
            return 0;
        s += len + 1;
    }
}

/* An executable is named by its file name, or by its whole path. */
static bool is_executable(const char *s, size_t len)
{
    return len > 0 && (s[0] == '/' ? s[len - 1] != '/' : !memchr(s, '/', len));
}

static void managers_free(struct options *o)
{
    for (char **m = o->guard.managers; m && *m; m++)
        free(*m);
    free(o->guard.managers);
    o->guard.managers = NULL;
}

static int set_managers(struct parse *p, const char *value)
{
    size_t n = 2;
    for (const char *s = value; *s; s++)
        n += *s == ':';
    managers_free(p->o);
    p->o->guard.managers = calloc(n, sizeof(char *));
    if (!p->o->guard.managers)
        return no_memory(p);
    n = 0;
    for (const char *s = value; strcmp(value, "none") != 0;) {
        size_t len = strcspn(s, ":");
        if (!is_executable(s, len))
            return bad(
                p,
                "managers=%s: must be none, or names or absolute paths of programs such as libvirtd:/opt/bin/manager",
                value);
        p->o->guard.managers[n] = strndup(s, len);
        if (!p->o->guard.managers[n++])
            return no_memory(p);
        if (s[len] == '\0')
            break;
        s += len + 1;
    }
    return 0;
}

/* The kernel takes what libfuse lets through; programs compare it with the types that they know. */
static int set_subtype(struct parse *p, const char *value)
{
    size_t n = strspn(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-");
    if (n == 0 || value[n] != '\0' || n > SUBTYPE_MAX)
        return bad(p, "subtype=%s: must be 1 to %d letters, digits, '-' and '_'", value,
                   SUBTYPE_MAX);
    return set_text(p, &p->o->subtype, value);
}

static int set_raw(struct parse *p, const char *value)
{
    static const char *const words[] = {
        [RAW_AUTO] = "auto", [RAW_ALL] = "all", [RAW_NONE] = "none"};
    for (unsigned n = 0; n < sizeof(words) / sizeof(*words); n++) {
        if (strcmp(value, words[n]) == 0) {
            p->o->guard.raw = (enum raw_mode)n;
            return 0;
        }
    }
    for (size_t n = 0; n < sizeof(words) / sizeof(*words); n++) {
        const char *at = strstr(value, words[n]);
        size_t len = strlen(words[n]);
        for (; at; at = strstr(at + 1, words[n]))
            if ((at == value || at[-1] == ':') && (at[len] == ':' || !at[len]))
                return bad(p, "raw=%s: %s stands alone, or only file name patterns do", value,
                           words[n]);
    }
    p->o->guard.raw = RAW_GLOBS;
    return set_globs(p, &p->o->guard.raw_globs, "raw",
                     "auto, all, none or file name patterns such as *.img:*.raw", value);
}

static int set_shared(struct parse *p, const char *value)
{
    return set_globs(p, &p->o->guard.shared_globs, "shared",
                     "file name patterns such as *.shared:quorum-*", value);
}

static int set_timeout(struct parse *p, const char *name, const char *value, double *at)
{
    char *end;
    double n = strtod(value, &end);
    if (!isdigit((unsigned char)value[0]) || *end || !(n >= 0 && n <= TIMEOUT_MAX))
        return bad(p, "%s=%s: must be a number of seconds from 0 to %d, such as 0.5", name, value,
                   TIMEOUT_MAX);
    *at = n;
    return 0;
}

static int set_entry_timeout(struct parse *p, const char *value)
{
    return set_timeout(p, "entry-timeout", value, &p->o->entry_timeout);
}

static int set_attr_timeout(struct parse *p, const char *value)
{
    return set_timeout(p, "attr-timeout", value, &p->o->attr_timeout);
}

static const struct own_option {
    const char *name; /* with "=" */
    int (*set)(struct parse *p, const char *value);
} own_options[] = {
    {"host-id=", set_host_id},
    {"state-dir=", set_state_dir},
    {"wait=", set_wait},
    {"threshold=", set_threshold},
    {"seal=", set_seal},
    {"raw=", set_raw},
    {"writers=", set_writers},
    {"fence=", set_fence},
    {"takeover=", set_takeover},
    {"takeover-wait=", set_takeover_wait},
    {"readers=", set_readers},
    {"managers=", set_managers},
    {"subtype=", set_subtype},
    {"damaged=", set_damaged},
    {"shared=", set_shared},
    {"entry-timeout=", set_entry_timeout},
    {"attr-timeout=", set_attr_timeout},
};

/* ---- everybody else's ---- */

/* What mount(8), fstab(5) and systemd.mount(5) put there for themselves; times of access, which
 * FUSE leaves to us; and what tunes libfuse's own loop, which is not used here. */
static bool is_for_others(const char *arg)
{
    static const char *const words[] = {
        "",           "defaults",    "auto",   "noauto", "nofail",   "_netdev",    "user",
        "nouser",     "users",       "owner",  "group",  "relatime", "norelatime", "diratime",
        "nodiratime", "strictatime", "silent", "loud",   "lazytime", "nolazytime", "nostrictatime"};
    for (size_t n = 0; n < sizeof(words) / sizeof(*words); n++)
        if (strcmp(arg, words[n]) == 0)
            return true;
    return strncmp(arg, "x-", 2) == 0 || strncmp(arg, "X-", 2) == 0 ||
           strncmp(arg, "comment=", 8) == 0 || strncmp(arg, "user=", 5) == 0 ||
           strcmp(arg, "clone_fd") == 0 || strncmp(arg, "max_threads=", 12) == 0 ||
           strncmp(arg, "max_idle_threads=", 17) == 0;
}

/* mount options that libfuse passes to the kernel or to fusermount3: fuse(8). */
static bool is_for_fuse(const char *arg)
{
    static const char *const words[] = {"ro",      "rw",    "suid",    "nosuid",      "dev",
                                        "nodev",   "exec",  "noexec",  "sync",        "async",
                                        "dirsync", "atime", "noatime", "auto_unmount"};
    static const char *const prefixes[] = {"context=", "fscontext=", "defcontext=", "rootcontext="};
    for (size_t n = 0; n < sizeof(words) / sizeof(*words); n++)
        if (strcmp(arg, words[n]) == 0)
            return true;
    for (size_t n = 0; n < sizeof(prefixes) / sizeof(*prefixes); n++)
        if (strncmp(arg, prefixes[n], strlen(prefixes[n])) == 0)
            return true;
    return false;
}

static int to_fuse(struct parse *p, const char *arg)
{
    if (strcmp(arg, "ro") == 0)
        p->o->guard.read_only = true;
    if (strcmp(arg, "rw") == 0)
        p->o->guard.read_only = false;
    return options_to_fuse(p->o, arg, NULL) < 0 ? no_memory(p) : 0;
}

static int set_max_read(struct parse *p, const char *arg)
{
    uint64_t n;
    if (base_u64(arg + strlen("max_read="), &n) < 0 || n > UINT32_MAX)
        return bad(p, "%s: must be a number of bytes", arg);
    p->o->max_read = (unsigned)n;
    return options_to_fuse(p->o, arg, NULL) < 0 ? no_memory(p) : 0;
}

/* One word of -o. */
static int mount_option(struct parse *p, const char *arg)
{
    for (size_t n = 0; n < sizeof(own_options) / sizeof(*own_options); n++) {
        size_t len = strlen(own_options[n].name);
        if (strncmp(arg, own_options[n].name, len) == 0)
            return own_options[n].set(p, arg + len);
    }
    if (strcmp(arg, "debug") == 0)
        p->o->debug = true;
    else if (strcmp(arg, "allow_other") == 0)
        p->allow_other = true;
    else if (strcmp(arg, "no_allow_other") == 0)
        p->no_allow_other = true;
    else if (strcmp(arg, "allow_root") == 0)
        p->allow_root = true;
    else if (strncmp(arg, "max_read=", 9) == 0)
        return set_max_read(p, arg);
    else if (strcmp(arg, "remount") == 0 || strncmp(arg, "remount,", 8) == 0)
        return bad(p, "a view cannot be remounted: unmount it and mount it again");
    else if (is_for_fuse(arg))
        return to_fuse(p, arg);
    else if (strcmp(arg, "default_permissions") != 0 && !is_for_others(arg)) /* the former is always
                                                                                on */
        return bad(p, "unknown option \"%s\"", arg);
    return 0;
}

static int path_argument(struct parse *p, const char *arg)
{
    if (p->n_paths == 2)
        return bad(p, "\"%s\" is one argument too many", arg);
    return set_text(p, &p->paths[p->n_paths++], arg);
}

enum { KEY_HELP = 1, KEY_VERSION, KEY_FOREGROUND, KEY_DEBUG };
#define OPT_KEY(text, key)                                                                         \
    {                                                                                              \
        (text), (unsigned long)-1U, (key) /* FUSE_OPT_KEY, <fuse_opt.h>, with the cast spelled out \
                                           */                                                      \
    }
static const struct fuse_opt spec[] = {OPT_KEY("-h", KEY_HELP),
                                       OPT_KEY("--help", KEY_HELP),
                                       OPT_KEY("-V", KEY_VERSION),
                                       OPT_KEY("--version", KEY_VERSION),
                                       OPT_KEY("-f", KEY_FOREGROUND),
                                       OPT_KEY("-d", KEY_DEBUG),
                                       FUSE_OPT_END};

/* fuse_opt_parse() takes -o apart. Nothing stays in its list. */
static int on_argument(void *data, const char *arg, int key, struct fuse_args *out)
{
    (void)out;
    struct parse *p = data;
    switch (key) {
    case KEY_HELP:
        p->todo = OPTIONS_HELP;
        return 0;
    case KEY_VERSION:
        p->todo = OPTIONS_VERSION;
        return 0;
    case KEY_DEBUG:
        p->o->debug = true;
        p->o->foreground = true;
        return 0;
    case KEY_FOREGROUND:
        p->o->foreground = true;
        return 0;
    case FUSE_OPT_KEY_NONOPT:
        return path_argument(p, arg);
    default:
        return arg[0] == '-' ? bad(p, "unknown option \"%s\"", arg) : mount_option(p, arg);
    }
}

/* ---- the whole ---- */

int options_to_fuse(struct options *o, const char *name, const char *value)
{
    /* libfuse splits at commas and takes a backslash for an escape */
    size_t n = strlen("-o") + strlen(name) + 2 * (value ? strlen(value) + 1 : 0) + strlen(name) + 1;
    _cleanup_free_ char *arg = malloc(n);
    if (!arg)
        return -ENOMEM;
    char *at = stpcpy(arg, "-o");
    const char *parts[] = {name, value ? "=" : "", value ? value : ""};
    for (unsigned k = 0; k < 3; k++) {
        for (const char *s = parts[k]; *s; s++) {
            if (*s == ',' || *s == '\\')
                *at++ = '\\';
            *at++ = *s;
        }
    }
    *at = '\0';
    return fuse_opt_add_arg(&o->fuse_args, arg) < 0 ? -ENOMEM : 0;
}

static int finish(struct parse *p)
{
    struct options *o = p->o;
    if (p->n_paths < 2)
        return bad(p, p->n_paths == 0 ? "which datastore, and where to mount it?"
                                      : "where to mount it?");
    o->guard.datastore = p->paths[0];
    o->guard.mountpoint = p->paths[1];
    p->paths[0] = p->paths[1] = NULL;
    if (!o->state_dir && set_text(p, &o->state_dir, STATE_DIR_DEFAULT) < 0)
        return -1;
    if (!o->guard.managers && set_managers(p, MANAGERS_DEFAULT) < 0)
        return -1;
    if (!o->subtype && set_text(p, &o->subtype, SUBTYPE_DEFAULT) < 0)
        return -1;
    if ((p->allow_other || p->allow_root) && p->no_allow_other)
        return bad(p, "no_allow_other contradicts allow_other and allow_root");
    bool others = p->allow_other || (geteuid() == 0 && !p->no_allow_other && !p->allow_root);
    int r = options_to_fuse(o, "default_permissions", NULL);
    if (r == 0 && others)
        r = options_to_fuse(o, "allow_other", NULL);
    if (r == 0 && p->allow_root)
        r = options_to_fuse(o, "allow_root", NULL);
    if (r == 0 && o->debug)
        r = options_to_fuse(o, "debug", NULL);
    return r < 0 ? no_memory(p) : 0;
}

/* libfuse would print lines of its own about a bad command line. */
static void no_log(enum fuse_log_level level, const char *fmt, va_list ap)
{
    (void)level;
    (void)fmt;
    (void)ap;
}

int options_parse(int argc, char **argv, struct options *ret, enum options_todo *ret_todo,
                  struct why *why)
{
    struct parse p = {.o = ret, .why = why};
    struct fuse_args args = FUSE_ARGS_INIT(argc, argv);
    *ret = (struct options){.guard = {.wait_s = 5, .takeover_wait_s = TAKEOVER_WAIT_DEFAULT},
                            .entry_timeout = 1,
                            .attr_timeout = 1};
    fuse_set_log_func(no_log);
    int r = fuse_opt_add_arg(&ret->fuse_args, "diskguard");
    if (r == 0)
        r = fuse_opt_parse(&args, &p, spec, on_argument);
    if (r == 0 && p.todo == OPTIONS_RUN)
        r = finish(&p);
    fuse_opt_free_args(&args);
    free(p.paths[0]);
    free(p.paths[1]);
    if (p.todo != OPTIONS_RUN && p.error == 0)
        r = 0;
    if (r < 0 && p.error == 0) /* libfuse's own complaint: -o without a word, or no memory */
        bad(&p, "-o wants a list of options after it");
    *ret_todo = p.todo;
    return r < 0 ? p.error : 0;
}

void options_free(struct options *o)
{
    free(o->guard.datastore);
    free(o->guard.mountpoint);
    free(o->host_id);
    free(o->state_dir);
    globs_free(&o->guard.raw_globs);
    globs_free(&o->guard.shared_globs);
    managers_free(o);
    free(o->subtype);
    fuse_opt_free_args(&o->fuse_args);
    *o = (struct options){0};
}

void options_help(void)
{
    fputs(
        "usage: diskguard DATASTORE MOUNTPOINT [-f] [-d] [-o OPTION[,OPTION...]]\n"
        "\n"
        "Mounts a guarded view of DATASTORE, a directory on shared storage, on MOUNTPOINT: while one\n"
        "host has a virtual-disk image open for write, no other host can use it.\n"
        "\n"
        "  -f                 stay in the foreground; messages go to standard error\n"
        "  -d                 the same, with debugging messages\n"
        "  -h, --help         this text\n"
        "  -V, --version      print the version\n"
        "\n"
        "  -o host-id=UUID    identity of this host (default: derived from /etc/machine-id)\n"
        "  -o state-dir=DIR   where the journal is kept (default: " STATE_DIR_DEFAULT ")\n"
        "  -o wait=SECONDS    how long an open waits for another holder (default: 5, and no longer than\n"
        "                     half a second where that one is known to be alive and is not letting go)\n"
        "  -o threshold=BYTES refuse images of this virtual size or less, but for the process that\n"
        "                     makes them (default: 0 with seal=size, else none is refused)\n"
        "  -o damaged=claim|refuse\n"
        "                     is an image whose header contradicts itself claimed without a seal, so\n"
        "                     that it can be repaired, or refused\n"
        "  -o seal=refuse|size\n"
        "                     seal images so that QEMU's tools refuse them, or by a size of 0 alone\n"
        "  -o raw=auto|all|none|GLOB:GLOB...\n"
        "                     which files without a known header are guarded as raw images; any other that\n"
        "                     QEMU writes is one from its lock on byte 101 on, but not with raw=none\n"
        "  -o shared=GLOB:GLOB...\n"
        "                     files that many hosts may write on purpose: neither claimed nor sealed\n"
        "  -o writers=process|host\n"
        "                     one process, or any process of this host, may have an image open for write\n"
        "  -o readers=protect|ignore\n"
        "                     is an image kept from writers while a program reads it that wants none\n"
        "                     beside it (QEMU's byte locks 100 and 201 say so)\n"
        "  -o managers=PROGRAM:PROGRAM...|none\n"
        "                     programs of root that open images for write and rarely write them: they claim\n"
        "                     an image at their first change\n"
        "                     (default: " MANAGERS_DEFAULT ")\n"
        "  -o subtype=NAME    the view's type is fuse.NAME (default: " SUBTYPE_DEFAULT ")\n"
        "  -o fence=auto|none whether writers hold the fence lock on the storage\n"
        "  -o takeover=manual|lock|lock-unproven\n"
        "                     may an open for write take an image over from a dead host by itself,\n"
        "                     if the fence lock proves that the other host cannot write any more\n"
        "  -o takeover-wait=SECONDS\n"
        "                     how long an open waits for that (default: 120)\n"
        "  -o entry-timeout=SECONDS, -o attr-timeout=SECONDS\n"
        "                     how long the kernel may answer for names, and for attributes of files that\n"
        "                     are not open as images, by itself: so long what another host changed may\n"
        "                     go unseen; every open looks (default: 1; 0: never)\n"
        "  -o no_allow_other  only the mounting user may use the view (root's default: everybody may)\n"
        "  -o debug           debugging messages\n"
        "and the mount options of fuse(8) and fstab(5): ro, nosuid, nodev, noexec, allow_other, ...\n"
        "\n"
        "The datastore must have been prepared once with: diskguardctl init DATASTORE\n"
        "See diskguard(8).\n",
        stdout);
}
