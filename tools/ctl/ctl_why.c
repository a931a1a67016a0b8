/* ctl_why.c: diskguardctl why and wait. See ctl.h. */
#include "ctl/ctl.h"

#include <dirent.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

/* other hosts change claims by rename, which no event reports: look again */
#define WAIT_POLL_MS 500u

/* ---- the answer: a verdict and sentences ---- */

#define LINES_MAX 12
struct answer {
    const char *reason; /* stable, for programs */
    bool refused;       /* an open for write would be refused now */
    bool repair;        /* and something must be repaired first */
    unsigned n;
    char *line[LINES_MAX];
};

static void say(struct answer *a, const char *fmt, ...) DG_PRINTF(2, 3);
static void say(struct answer *a, const char *fmt, ...)
{
    va_list ap;

    if (a->n == LINES_MAX)
        return;
    va_start(ap, fmt);
    if (vasprintf(&a->line[a->n], fmt, ap) < 0)
        out_no_memory();
    va_end(ap);
    a->n++;
}

static void decide(struct answer *a, const char *reason, bool refused)
{
    a->reason = reason;
    a->refused = refused;
}

/* ---- processes of this machine ---- */

/* The name of a process, if it is still the one that started at that time (clock ticks since boot,
 * proc(5)).
 */
static bool process_name(uint64_t pid, uint64_t start, char ret[64])
{
    char path[64], line[1024], *p;
    unsigned long long now = 0;

    snprintf(path, sizeof(path), "/proc/%" PRIu64 "/stat", pid);
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    p = fgets(line, sizeof(line), f);
    fclose(f);
    /* "pid (name) state ppid ..." with the name free to contain blanks and brackets; start is field
     * 22 */
    char *open = p ? strchr(line, '(') : NULL, *end = p ? strrchr(line, ')') : NULL;
    if (!open || !end || end < open)
        return false;
    *end = '\0';
    snprintf(ret, 64, "%s", open + 1);
    p = end + 1;
    for (unsigned field = 2; field < 21 && p; field++)
        p = strchr(p + 1, ' ');
    return p && sscanf(p, " %llu", &now) == 1 && now == start;
}

/* The options of the view's daemon, or NULL. */
static struct json_object *options_of(const struct look *l)
{
    return out_json_get(l->source.status, "options", json_type_object);
}

/* ---- who holds it ---- */

static uint64_t held_u64(const struct item *i, const char *key, uint64_t from_claim)
{
    return i->live ? out_json_get_u64(i->live, key) : i->claim ? from_claim : 0;
}

/* Has that process a descriptor of the file? Reads "ino:" in /proc/PID/fdinfo (proc(5)), which asks
 * no view. 1, 0, or -1: it cannot be told. */
static int process_has(uint64_t pid, uint64_t ino)
{
    char path[96];
    int found = 0;

    snprintf(path, sizeof(path), "/proc/%" PRIu64 "/fdinfo", pid);
    DIR *dir = opendir(path);
    if (!dir)
        return -1;
    for (struct dirent *e; found == 0 && (e = readdir(dir));) {
        char line[128];
        uint64_t now;

        snprintf(path, sizeof(path), "/proc/%" PRIu64 "/fdinfo/%.20s", pid, e->d_name);
        FILE *f = e->d_name[0] == '.' ? NULL : fopen(path, "re");
        bool any = false;
        while (f && fgets(line, sizeof(line), f))
            if (sscanf(line, "ino: %" SCNu64, &now) == 1) {
                any = true;
                found = now == ino ? 1 : found;
            }
        if (f) {
            fclose(f);
            found = any || found ? found : -1; /* Linux before 5.14 */
        }
    }
    closedir(dir);
    return found;
}

enum opener_fate { OPENER_HAS, OPENER_ENDED, OPENER_PASSED, OPENER_UNKNOWN };

static uint64_t item_ino(const struct item *i)
{
    return i->claim ? i->claim->ino : out_json_get_u64(i->live, "inode");
}

/* Does the process that opened the file still have it open? For this machine only. */
static enum opener_fate opener_fate(const struct item *i, char name[64])
{
    uint64_t pid = held_u64(i, "pid", i->claim ? i->claim->pid : 0),
             start = held_u64(i, "start", i->claim ? i->claim->start : 0);

    if (pid == 0 || start == 0 || !item_is_local(i))
        return OPENER_UNKNOWN;
    if (!process_name(pid, start, name))
        return OPENER_ENDED;
    /* There is a claim and no daemon: nobody has the file open. */
    return i->live && process_has(pid, item_ino(i)) == 0 ? OPENER_PASSED : OPENER_HAS;
}

static void say_process(struct answer *a, const struct item *i)
{
    uint64_t pid = held_u64(i, "pid", i->claim ? i->claim->pid : 0);
    char name[64];
    enum opener_fate fate = opener_fate(i, name);

    if (pid == 0)
        say(a, "Which process opened it is not known (it runs in a container, or is gone).");
    else if (!item_is_local(i))
        say(a, "On that host, process %" PRIu64 " opened it.", pid);
    else if (fate == OPENER_UNKNOWN)
        say(a, "Process %" PRIu64 " of this machine opened it.", pid);
    else if (strcmp(item_state(i), "restoring") == 0)
        say(a, "Process %" PRIu64 " of this machine opened it, and has closed it.", pid);
    else if (fate == OPENER_ENDED)
        say(a, "Process %" PRIu64 " of this machine opened it, and has ended%s.", pid,
            i->live ? ": another one has its open file" : "");
    else if (fate == OPENER_PASSED)
        say(a,
            "Process %" PRIu64
            " (%s) of this machine opened it, and has closed it: another one has its open file.",
            pid, out_tame(name));
    else
        say(a, "Process %" PRIu64 " (%s) of this machine opened it.", pid, out_tame(name));
    if (i->live && out_json_get_u64(i->live, "writers"))
        say(a, "Handles open for write: %" PRIu64 ".", out_json_get_u64(i->live, "writers"));
}

/* Says how to find the process that has it open now: by file, because no record has its number. */
static void say_find(struct answer *a, const struct look *l)
{
    char *path = NULL;
    const char *point = l->source.mount ? l->source.mount->point : source_dir(&l->source);

    if (asprintf(&path, "%s/%s", point, l->rel) < 0)
        out_no_memory();
    say(a,
        "Way out: end what has it open now, which fuser -v %s names, or, if it is a loop device, losetup -j %s; or wait for it: diskguardctl wait %s.",
        out_quote(path), out_quote(path), l->again);
    free(path);
}

static void say_evidence(struct answer *a, const struct look *l)
{
    const struct host_record *h = look_host(l);
    char age[48];

    if (l->item.live || !l->item.claim)
        return;
    if (!h) {
        say(a,
            "That host has no readable record in the datastore, so nothing tells whether it lives.");
        return;
    }
    int64_t s = out_age(h->heartbeat_time);
    say(a, "The last sign of life in that host's record: heartbeat %" PRIu64 " at %s%s%s%s.",
        h->heartbeat, h->heartbeat_time, s < 0 ? "" : ", by this clock ",
        s < 0 ? "" : out_duration((uint64_t)s, age), s < 0 ? "" : " ago");
    if (l->item.host->alive == 1)
        say(a,
            "Its record is locked now: a diskguard of that host lives, or its lock has not run out yet.");
    else if (l->item.host->alive == 0)
        say(a, "Its record is not locked: no diskguard of that host runs with this datastore now.");
    else
        say(a, "Whether its record is locked cannot be told: %s.", strerror(-l->item.host->alive));
}

/* This host held it and lost it to the present holder. */
static void say_fenced(struct answer *a, const struct look *l)
{
    struct json_object *images = out_json_get(l->source.list, "images", json_type_array);

    for (size_t k = 0;
         images && !l->item.live && l->item.claim && k < json_object_array_length(images); k++) {
        struct json_object *o = json_object_array_get_idx(images, k);

        if (out_json_get_u64(o, "inode") == l->item.claim->ino &&
            strcmp(out_json_get_text(o, "state", ""), "fenced") == 0)
            say(a,
                "This host held it before, with generation %" PRIu64
                ", and is FENCED: it was taken over. Whoever still has it open here (process %" PRIu64
                ") gets EIO for every write, and should be ended.",
                out_json_get_u64(o, "generation"), out_json_get_u64(o, "pid"));
    }
}

static void say_takeover(struct answer *a, const struct look *l)
{
    struct why why;
    bool possible;

    if (look_takeover(l, &possible, &why))
        say(a, "Takeover by the fence lock: %s%s.",
            possible ? "possible, " : "not possible now: ", why.text);
}

static void why_held(struct answer *a, const struct look *l)
{
    const struct item *i = &l->item;
    const struct raw_image *im = look_image(l);
    const char *state = item_state(i),
               *since = i->live ? out_json_get_text(i->live, "since", "") : i->claim->since;
    int64_t s = out_age(since);
    char age[48], name[64];
    struct trouble t;
    uint64_t here;
    enum opener_fate fate = opener_fate(i, name);

    decide(a, strcmp(state, "restoring") == 0 ? "being-released" : "held", true);
    say(a, "Refused (device or resource busy): %s holds it for writing%s%s%s%s%s.",
        i->live ? "this host" : out_tame(item_holder(&l->source, i)), since[0] ? " since " : "",
        since, s < 0 ? "" : " (", s < 0 ? "" : out_duration((uint64_t)s, age), s < 0 ? "" : ")");
    say_process(a, i);
    if (look_shared(l, &here))
        say(a,
            "It is shared on purpose (shared=), but a claim that was made without that option counts until it is free.");
    if (im && im->header.verdict == FORMAT_LIES && !item_sealed(i))
        say(a, "It is not sealed, for its header contradicts itself: %s.",
            out_tame(im->header.info.why));
    say_fenced(a, l);
    say_evidence(a, l);
    look_trouble(l, &t);
    if (t.code) {
        a->reason = t.code;
        a->repair = true;
        say(a, "Problem: %s.", t.text);
        say(a, "Way out: %s.", t.out);
    } else if (strcmp(state, "restoring") == 0) {
        say(a, "It is just being released: try again in a moment, or: diskguardctl wait %s.",
            l->again);
    } else if (i->live && fate != OPENER_HAS) {
        say_find(a, l);
    } else if (i->live) {
        say(a,
            "Way out: end that process, or wait for it: diskguardctl wait %s. %s may open the image again.",
            l->again,
            strcmp(out_json_get_text(options_of(l), "writers", "process"), "host") == 0
                ? "Any process of this host"
                : "The process itself");
    } else {
        say(a,
            "Way out: shut the virtual machine down on %s, or wait for it: diskguardctl wait %s.",
            out_tame(item_holder(&l->source, i)), l->again);
    }
    say_takeover(a, l);
}

/* ---- nobody holds it ---- */

static const char *raw_mode(const struct look *l)
{
    return out_json_get_text(options_of(l), "raw", "auto");
}

/* Is a file without a known header guarded as a raw image, by its name? As the daemon's option raw=
 * has it.
 */
static bool raw_by_name(const struct look *l, bool *ret_known)
{
    const char *slash = strrchr(l->rel, '/'), *name = slash ? slash + 1 : l->rel;
    struct json_object *o = options_of(l), *globs = out_json_get(o, "raw_globs", json_type_array);
    const char *mode = raw_mode(l);

    *ret_known = o != NULL;
    if (strcmp(mode, "all") == 0)
        return true;
    if (strcmp(mode, "none") == 0)
        return false;
    if (strcmp(mode, "auto") == 0)
        return fnmatch("*.img", name, 0) == 0 || fnmatch("*.raw", name, 0) == 0;
    for (size_t i = 0; globs && i < json_object_array_length(globs); i++) {
        const char *glob = json_object_get_string(json_object_array_get_idx(globs, i));

        if (glob && fnmatch(glob, name, 0) == 0)
            return true;
    }
    return false;
}

static void why_image(struct answer *a, const struct look *l, const struct raw_image *im)
{
    uint64_t size = im->header.info.virtual_size,
             threshold = out_json_get_u64(options_of(l), "threshold");
    bool has_size = !im->header.format->weak && out_json_get_bool(options_of(l), "threshold_rules");

    if (has_size && size <= threshold) {
        decide(a, "too-small", true);
        say(a,
            "Refused: its virtual size, %" PRIu64 " bytes, is not above the threshold of %" PRIu64
            " bytes. Only the process that makes the image may write it still.",
            size, threshold);
        if (size == 0)
            say(a,
                "A size of 0 is also what seal=size leaves on the datastore; nobody holds a claim on the image, so nothing tells which.");
        say(a,
            "Way out: fsck.diskguard on the host that last held it; else the option threshold= of diskguard(8), or a backup.");
        return;
    }
    decide(a, "free", false);
    say(a,
        "Granted: nobody holds this %s image, and an open for write through a view would get it.",
        im->header.format->name);
    if (im->claim.kind == CLAIM_FREE)
        say(a, "It was last held by %s, since %s.", out_tame(im->claim.rec.host_name),
            im->claim.rec.since);
}

/* Does its header contradict itself, and is it claimed nevertheless? As the daemon's option
 * damaged= has it. */
static bool is_claimed_damaged(const struct look *l, const struct raw_image *im)
{
    const struct header *h = &im->header;

    return h->verdict == FORMAT_LIES && h->format && !h->info.maybe_sealed &&
           strcmp(out_json_get_text(options_of(l), "damaged", "claim"), "claim") == 0;
}

static void why_damaged(struct answer *a, const struct look *l, const struct raw_image *im)
{
    const struct header *h = &im->header;

    decide(a, "damaged", false);
    say(a,
        "Granted, without a seal: its %s header contradicts itself: %s. Its claim and QEMU's byte locks guard it until it is repaired%s.",
        h->format->name, out_tame(h->info.why),
        options_of(l) ? "" : " (if the view has damaged=claim, the default)");
    say(a, "To repair it, go through a view: qemu-img check -r all, or its own tools.");
}

/* false: it may be sealed. As shared.h has it. */
static bool why_shared(struct answer *a, const struct raw_image *im, uint64_t here)
{
    const struct header *h = &im->header;
    bool told =
        h->verdict == FORMAT_PLAIN || ((h->verdict == FORMAT_IMAGE || h->verdict == FORMAT_LIES) &&
                                       h->format && !h->info.maybe_sealed);

    if (!told && here == 0)
        return false;
    decide(a, "shared", false);
    say(a,
        "Granted: it is shared on purpose (shared=). Any process of any host may write it at the same time, so it is neither claimed nor sealed. Handles open for write here: %" PRIu64
        ".",
        here);
    return true;
}

/* Nobody holds it, but a held image needs it, or a reader wants no writer beside it. */
static bool why_used(struct answer *a, const struct look *l, const struct raw_image *im,
                     bool guarded)
{
    const char *own =
        out_json_get_text(out_json_get(l->source.status, "host", json_type_object), "uuid", "");

    for (size_t i = 0; i < im->nneeds; i++) {
        const struct raw_needs *n = &im->needs[i];

        if (!n->host[0])
            continue;
        decide(a, "needed", true);
        say(a,
            "Refused: %s needs it, which host %s holds. Only the process that holds that may write this.",
            out_tame(n->path), out_tame(n->host));
        say(a, "Way out: close the image above, or see: diskguardctl why on it.");
        return true;
    }
    for (size_t i = 0; i < im->nreaders && guarded; i++) {
        const struct reader_info *info = &im->readers[i].info;

        decide(a, "read", true);
        say(a,
            "Refused: %s on host %s, pid %" PRIu64
            ", reads it%s%s and wants no writer beside it (QEMU's byte locks 100 and 201 say so).",
            info->program[0] ? out_tame(info->program) : "a program", out_tame(info->host_name),
            info->pid, info->since[0] ? " since " : "", info->since);
        if (strcmp(im->readers[i].reader.host, own) == 0)
            say(a, "Way out: close that program, on this host.");
        else
            say(a,
                "Way out: close that program. If its host is down for good: fsck.diskguard --takeover %s --confirm-host-is-down %s.",
                im->readers[i].reader.host, out_quote(source_dir(&l->source)));
        return true;
    }
    return false;
}

/* The rule by which it is not guarded, and the way to have it guarded: diskguard(8), raw=. */
static void why_plain(struct answer *a, const struct look *l)
{
    decide(a, "not-an-image", false);
    if (strcmp(raw_mode(l), "none") == 0) {
        say(a,
            "Granted: it is not an image of a known format, and the view has raw=none, so it is not guarded, and anybody may write to it at any time.");
        say(a, "To have it guarded: raw=auto, or raw= with a pattern for its name.");
        return;
    }
    say(a,
        "Granted: it is not an image of a known format, nor a raw one by its name (option raw=), so it is not guarded, and anybody may write to it at any time.");
    say(a,
        "A QEMU that writes it says so by a lock on byte 101: then it is claimed as a raw image until that QEMU closes it%s.",
        options_of(l) ? "" : " (not with raw=none)");
    say(a, "To have it guarded from everybody: raw=all, or raw= with a pattern for its name.");
}

static void why_free(struct answer *a, const struct look *l, const struct raw_image *im)
{
    bool known, raw = raw_by_name(l, &known), damaged = is_claimed_damaged(l, im);
    /* A partition table makes a raw image only with raw=auto and raw=all. */
    bool image = im->header.verdict == FORMAT_IMAGE &&
                 (!im->header.format->weak || raw || strcmp(raw_mode(l), "auto") == 0);
    struct trouble t;
    uint64_t here;

    look_trouble(l, &t);
    if (look_shared(l, &here) && why_shared(a, im, here))
        return;
    if (damaged && t.code && strcmp(t.code, "lies") == 0)
        t.code = NULL;
    if (!t.code && im->writer_lock && (raw || damaged || image)) {
        decide(a, "outside-writer", true);
        say(a,
            "Refused: nobody holds a claim, but a program that goes around the views has it open for write: QEMU's own lock on the file says so.");
        say(a,
            "Way out: stop that program. On its host, fuser -v on the file of the datastore, or lslocks, names it.");
    } else if (!t.code && why_used(a, l, im, raw || damaged || image)) {
        ;
    } else if (t.code) {
        decide(a, t.code, true);
        a->repair = true;
        say(a, "Refused: %s.", t.text);
        if (im->header.verdict == FORMAT_SEALED)
            say(a, "The header says: %s.", out_tame(im->header.info.why));
        say(a, "Way out: %s.", t.out);
    } else if (image) {
        why_image(a, l, im);
    } else if (damaged) {
        why_damaged(a, l, im);
    } else if (raw) {
        decide(a, "free", false);
        say(a,
            "Granted: nobody holds it. By its name it is guarded as a raw image, by its claim and QEMU's byte locks%s.",
            known ? "" : " (if the view has raw=auto, the default)");
    } else {
        why_plain(a, l);
    }
}

static void why_look(struct answer *a, const struct look *l)
{
    const struct raw_image *im = look_image(l);
    bool read_only = l->source.status && out_json_get_bool(l->source.status, "read_only");

    if (im && im->other_fs) {
        decide(a, "other-file-system", true);
        say(a,
            "If it is an image: refused (cross-device link). It lies in a file system that is mounted below the datastore.");
        say(a,
            "Way out: make that file system a datastore of its own (diskguardctl init) and give it a view of its own.");
    } else if (item_is_held(&l->item) && l->item.claim && l->item.claim->kind == CLAIM_BAD &&
               !l->item.live) {
        struct trouble t;

        item_trouble(&l->source, &l->item, &t);
        decide(a, t.code, true);
        a->repair = true;
        say(a, "Refused: %s.", t.text);
        say(a, "Way out: %s.", t.out);
    } else if (item_is_held(&l->item)) {
        why_held(a, l);
    } else {
        why_free(a, l, im);
    }
    if (!a->refused && read_only) {
        decide(a, "read-only", true);
        say(a, "But refused here: this view is read-only.");
    }
    if (l->source.mount && !l->source.status)
        say(a, "Note: %s.", l->source.daemon_why);
}

static void answer_print(const struct ctl *ctl, const struct look *l, const struct answer *a)
{
    if (!ctl->json) {
        out_line("%s\n", out_tame(l->rel));
        for (unsigned i = 0; i < a->n; i++)
            out_line("  %s\n", a->line[i]);
        return;
    }
    struct json_object *o = item_json(&l->source, &l->item), *text = json_object_new_array();
    const struct raw_image *im = look_image(l);

    out_json_text(o, "image", l->rel);
    if (im)
        out_json_u64(o, "inode", im->st.st_ino);
    if (!l->item.claim && !l->item.live)
        out_json_text(o, "state", "free");
    out_json_bool(o, "refused", a->refused);
    out_json_text(o, "reason", a->reason);
    for (unsigned i = 0; i < a->n; i++)
        json_object_array_add(text, out_json_string(a->line[i]));
    json_object_object_add(o, "text", text);
    out_json_print(o);
}

int cmd_why(struct ctl *ctl, const char *image)
{
    struct answer a = {0};
    struct look l;
    int code = DG_EXIT_FAILURE;

    if (look_open(ctl, image, &l) == 0) {
        why_look(&a, &l);
        answer_print(ctl, &l, &a);
        code = a.repair ? DG_EXIT_NEED_REPAIR : DG_EXIT_OK;
    }
    for (unsigned i = 0; i < a.n; i++)
        free(a.line[i]);
    look_close(&l);
    return code;
}

/* ---- wait ---- */

static int wait_end(const struct ctl *ctl, struct look *l, int code)
{
    if (ctl->json && l->rel) {
        struct json_object *o = item_json(&l->source, &l->item);

        out_json_text(o, "image", l->rel);
        if (!l->item.claim && !l->item.live)
            out_json_text(o, "state", "free");
        out_json_bool(o, "free", code == DG_EXIT_OK);
        out_json_print(o);
    }
    look_close(l);
    return code;
}

int cmd_wait(struct ctl *ctl, const char *image)
{
    uint64_t start = base_now_ms();

    for (;;) {
        struct look l;
        int r = look_open(ctl, image, &l);

        if (r < 0) {
            look_close(&l);
            return DG_EXIT_FAILURE;
        }
        if (!item_is_held(&l.item))
            return wait_end(ctl, &l, DG_EXIT_OK);
        if (l.item.claim && l.item.claim->kind == CLAIM_BAD) {
            out_error("%s: its claim cannot be read, so waiting is no use: see diskguardctl why %s",
                      image, l.again);
            return wait_end(ctl, &l, DG_EXIT_NEED_REPAIR);
        }
        uint64_t waited = base_now_ms() - start;
        if (waited >= ctl->timeout_ms) {
            out_error("%s is still held by %s", image, item_holder(&l.source, &l.item));
            return wait_end(ctl, &l, DG_EXIT_IN_USE);
        }
        look_close(&l);
        usleep(1000u * (unsigned)DG_MIN(WAIT_POLL_MS, ctl->timeout_ms - waited));
    }
}
