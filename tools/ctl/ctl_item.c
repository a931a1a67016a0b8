/* ctl_item.c: what claim, host record and daemon say of one image, put together. See ctl.h. */
#include "ctl/ctl.h"

#include <stdarg.h>
#include <string.h>

/* ---- collecting ---- */

static void add(struct items *items, struct item one)
{
    struct item *more = reallocarray(items->item, items->n + 1, sizeof(*more));

    if (!more)
        out_no_memory();
    items->item = more;
    items->item[items->n++] = one;
}

/* What the daemon says of its images, by inode number. */
struct live {
    uint64_t ino, generation;
    struct json_object *o;
    bool known; /* an item has it */
};
struct live_list {
    struct live *at;
    size_t n;
};

static int by_inode(const void *a, const void *b)
{
    const struct live *x = a, *y = b;

    return (x->ino > y->ino) - (x->ino < y->ino);
}

static struct live_list live_sorted(const struct source *s)
{
    struct json_object *a = out_json_get(s->list, "images", json_type_array);
    size_t n = a ? json_object_array_length(a) : 0;
    struct live_list l = {.at = calloc(n + 1, sizeof(*l.at))};

    if (!l.at)
        out_no_memory();
    for (size_t i = 0; i < n; i++) {
        struct json_object *o = json_object_array_get_idx(a, i);

        if (json_object_is_type(o, json_type_object))
            l.at[l.n++] = (struct live){out_json_get_u64(o, "inode"),
                                        out_json_get_u64(o, "generation"), o, false};
    }
    qsort(l.at, l.n, sizeof(*l.at), by_inode);
    return l;
}

/* generation 0: any. */
static struct json_object *live_of(struct live_list *l, uint64_t ino, uint64_t generation)
{
    struct live want = {.ino = ino};
    struct live *end = l->at + l->n, *x = bsearch(&want, l->at, l->n, sizeof(want), by_inode);

    while (x && x > l->at && x[-1].ino == ino)
        x--;
    for (; x && x < end && x->ino == ino; x++) {
        if (generation == 0 || x->generation == generation) {
            x->known = true;
            return x->o;
        }
    }
    return NULL;
}

static int by_path(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    int r = strcmp(item_path(x), item_path(y));

    return r ? r
             : (x->claim && y->claim
                    ? (x->claim->ino > y->claim->ino) - (x->claim->ino < y->claim->ino)
                    : 0);
}

static void add_claims(const struct source *s, struct live_list *l, struct items *items)
{
    for (size_t i = 0; i < s->raw->nclaims; i++) {
        const struct raw_claim *c = &s->raw->claims[i];

        add(items, (struct item){c, live_of(l, c->ino, c->kind == CLAIM_BAD ? 0 : c->generation),
                                 raw_host_of(s->raw, c->host)});
    }
}

/* A daemon may hold an image that has no claim any more (fenced), or has none yet. */
static void add_live(const struct live_list *l, struct items *items)
{
    for (size_t i = 0; i < l->n; i++)
        if (!l->at[i].known)
            add(items, (struct item){NULL, l->at[i].o, NULL});
}

void items_collect(const struct source *s, struct items *ret)
{
    struct items items = {0};
    struct live_list l = live_sorted(s);

    if (s->raw && s->raw->err == 0)
        add_claims(s, &l, &items);
    add_live(&l, &items);
    free(l.at);
    if (items.n > 1)
        qsort(items.item, items.n, sizeof(*items.item), by_path);
    *ret = items;
}

void items_free(struct items *i)
{
    free(i->item);
    i->item = NULL;
    i->n = 0;
}

struct item items_find(const struct items *i, uint64_t ino)
{
    struct item found = {0};

    for (size_t k = 0; k < i->n; k++) {
        const struct item *one = &i->item[k];

        if ((one->claim ? one->claim->ino : out_json_get_u64(one->live, "inode")) != ino)
            continue;
        /* The owner of the ruling claim, rather than a daemon that has lost it. */
        if (!found.claim && (!found.live || (one->claim && one->claim->kind != CLAIM_FREE)))
            found = *one;
        else if (one->live && found.claim && found.claim->kind == CLAIM_FREE)
            found = *one;
    }
    return found;
}

/* ---- reading ---- */

const char *item_path(const struct item *i)
{
    const char *path = out_json_get_text(i->live, "image", "");

    if (i->claim && i->claim->now)
        return i->claim->now;
    if (path[0])
        return path;
    return i->claim && i->claim->path ? i->claim->path : "";
}

bool item_lost(const struct item *i)
{
    return i->claim && i->claim->lost;
}

static const char *claim_state(const struct raw_claim *c)
{
    if (c->kind == CLAIM_BAD)
        return "unreadable";
    if (c->kind == CLAIM_FREE)
        return "free";
    switch (c->step) {
    case STEP_FREE:
        return "free";
    case STEP_CLAIMED:
        return "claimed";
    case STEP_ARMED: /* The record on the datastore stays at "armed"; only the journal says that the
                        seal is complete. */
        return c->extents ? "sealed" : "claimed";
    case STEP_SEALED:
        return c->extents ? "sealed" : "claimed";
    case STEP_RESTORING:
        return "restoring";
    case STEP_STUCK:
        return "stuck";
    }
    return "unreadable";
}

const char *item_state(const struct item *i)
{
    static const char *const known[] = {"idle",   "sealing", "sealed",  "restoring",
                                        "fenced", "stuck",   "vanished"};
    const char *live = out_json_get_text(i->live, "state", "");

    for (size_t k = 0; k < sizeof(known) / sizeof(known[0]); k++)
        if (strcasecmp(live, known[k]) == 0)
            return strcmp(known[k], "sealed") == 0 && !item_sealed(i) ? "claimed" : known[k];
    return i->claim ? claim_state(i->claim) : "unknown";
}

bool item_is_held(const struct item *i)
{
    return i->live || (i->claim && i->claim->kind != CLAIM_FREE);
}

bool item_sealed(const struct item *i)
{
    if (i->live)
        return out_json_get_bool(i->live, "sealed");
    return i->claim && i->claim->kind == CLAIM_HELD && i->claim->extents > 0;
}

bool item_locked(const struct item *i)
{
    return i->live && out_json_get_bool(i->live, "byte_locks");
}

const char *item_protection(const struct item *i)
{
    return !item_is_held(i) ? "none"
           : item_sealed(i) ? "header+claim"
           : item_locked(i) ? "claim+locks"
                            : "claim";
}

const char *item_holder(const struct source *s, const struct item *i)
{
    if (i->claim && i->claim->kind == CLAIM_HELD)
        return i->claim->host_name[0] ? i->claim->host_name : i->claim->host;
    return i->live
               ? out_json_get_text(out_json_get(s->status, "host", json_type_object), "name", "")
               : "";
}

bool item_is_local(const struct item *i)
{
    char boot[64] = "";

    if (i->live)
        return true;
    if (!i->claim || i->claim->kind != CLAIM_HELD)
        return false;
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (!f)
        return false;
    if (!fgets(boot, sizeof(boot), f))
        boot[0] = '\0';
    fclose(f);
    boot[strcspn(boot, "\n")] = '\0';
    return strcmp(boot, i->claim->boot) == 0;
}

bool item_is_own(const struct source *s, const struct item *i)
{
    const char *own =
        out_json_get_text(out_json_get(s->status, "host", json_type_object), "uuid", "");

    return own[0] ? i->live || (i->claim && strcmp(i->claim->host, own) == 0) : item_is_local(i);
}

/* ---- what is wrong ---- */

void trouble_set(struct trouble *t, const char *code, const char *out, const char *fmt, ...)
{
    va_list ap;

    t->code = code;
    snprintf(t->out, sizeof(t->out), "%s", out);
    va_start(ap, fmt);
    vsnprintf(t->text, sizeof(t->text), fmt, ap);
    va_end(ap);
}

void trouble_from(struct trouble *t, enum problem p)
{
    const struct problem_info *info = problem_info(p);

    trouble_set(t, info->code, info->repair, "%s", info->message);
}

/* Trouble that the running daemon reports. */
static void live_trouble(const struct item *i, struct trouble *t)
{
    const char *state = item_state(i);
    int err = (int)out_json_get_u64(i->live, "error"),
        sync = (int)out_json_get_u64(i->live, "sync_error");

    if (strcmp(state, "fenced") == 0)
        trouble_set(
            t, "fenced",
            "end the process that has it open; see who holds it: diskguardctl why IMAGE; what it wrote since may be missing",
            "this host lost its claim: every write gets an input/output error");
    else if (strcmp(state, "stuck") == 0 && err == EUCLEAN)
        trouble_set(t, "stuck", problem_info(PROBLEM_ALIEN)->repair,
                    "the header could not be restored: %s", problem_info(PROBLEM_ALIEN)->message);
    else if (strcmp(state, "stuck") == 0)
        trouble_set(
            t, "stuck",
            "make the storage work; diskguard repeats the restore by itself, or at once: diskguardctl retry IMAGE",
            "the header could not be restored%s%s; the image stays refused until it is",
            err ? ": " : "", err ? strerror(err) : "");
    else if (sync)
        trouble_set(
            t, "sync-error",
            "guest data was lost by the storage: check the guest's file systems, then restart it",
            "an fsync of guest data failed: %s", strerror(sync));
}

/* Is it a claim of the daemon that runs there now? A daemon writes its name into the record with
 * its first heartbeat, so for a moment the record may be its predecessor's: then the claim is
 * younger than that one's start. Both times are of that host's clock. */
static bool is_of_living(const struct raw_host *h, const struct raw_claim *c)
{
    if (strcmp(h->rec.installation, c->installation) != 0)
        return false;
    return strcmp(h->rec.daemon, c->daemon) == 0 || strcmp(c->since, h->rec.started) > 0;
}

/* Is it a claim whose daemon does not live any more? */
static void left_trouble(const struct source *s, const struct item *i, struct trouble *t)
{
    const struct raw_claim *c = i->claim;
    char out[512];

    if (i->host && i->host->err == 0 && i->host->alive == 1 && is_of_living(i->host, c))
        return;
    if (i->host && i->host->alive < 0)
        return; /* it cannot be told: report nothing */
    if (i->host && i->host->alive == 1) {
        trouble_set(
            t, "left-behind",
            "on that host, with the image's path in its view: diskguardctl retry PATH; what it cannot settle: stop it and run fsck.diskguard DATASTORE there",
            "an earlier diskguard of %s (%s) left it, and the one that runs there now has not settled it",
            c->host_name, c->host);
        return;
    }
    if (item_is_own(s, i))
        snprintf(
            out, sizeof(out),
            "start diskguard on %s, which is this host: it restores the image by itself; or: fsck.diskguard -p DATASTORE",
            c->host_name[0] ? c->host_name : c->host);
    else
        snprintf(
            out, sizeof(out),
            "start diskguard on %s: it restores the image by itself; if that host is surely down: fsck.diskguard --takeover %s --confirm-host-is-down DATASTORE",
            c->host_name[0] ? c->host_name : c->host, c->host);
    trouble_set(t, "holder-down", out, "diskguard does not run on its holder %s (%s)", c->host_name,
                c->host);
}

void trouble_finish(struct trouble *t, const struct source *s, const char *path)
{
    const char *datastore = out_quote(source_dir(s));
    char text[sizeof(t->out)], *plain = NULL, *image = NULL;

    if (asprintf(&plain, "%s/%s", s->mount ? s->mount->point : "", path) < 0 ||
        asprintf(&image, "%s%s%s%s", s->mount ? "" : "--datastore ", s->mount ? "" : datastore,
                 s->mount ? "" : " ", out_quote(s->mount ? plain : path)) < 0)
        out_no_memory();
    memcpy(text, t->out, sizeof(text));
    out_fill(text, &(struct out_words){datastore, NULL, path[0] ? image : NULL}, t->out,
             sizeof(t->out));
    free(plain);
    free(image);
}

void item_trouble(const struct source *s, const struct item *i, struct trouble *ret)
{
    memset(ret, 0, sizeof(*ret));
    if (i->live) {
        live_trouble(i, ret);
    } else if (i->claim && i->claim->kind == CLAIM_BAD) {
        trouble_from(ret,
                     i->claim->error == -EPROTONOSUPPORT ? PROBLEM_NEWER_CLAIM : PROBLEM_BAD_CLAIM);
    } else if (i->claim && i->claim->kind == CLAIM_HELD) {
        left_trouble(s, i, ret);
        if (!ret->code && i->claim->step == STEP_STUCK)
            trouble_set(
                ret, "stuck",
                "diskguardctl why IMAGE compares the header: if somebody else wrote to it, run fsck.diskguard -n DATASTORE; else make the storage of that host work: diskguard there repeats the restore by itself",
                "%s could not restore the header; the image stays refused until it can",
                i->claim->host_name);
        else if (!ret->code && i->claim->sync_error)
            trouble_set(
                ret, "sync-error",
                "guest data was lost by the storage: check the guest's file systems, then restart it",
                "an fsync of guest data failed: %s", strerror(i->claim->sync_error));
    }
    trouble_finish(ret, s, item_lost(i) ? "" : item_path(i));
}

/* ---- JSON ---- */

static struct json_object *holder_json(const struct source *s, const struct item *i)
{
    struct json_object *o = json_object_new_object();
    const struct raw_claim *c = i->claim && i->claim->kind == CLAIM_HELD ? i->claim : NULL;
    struct json_object *self = out_json_get(s->status, "host", json_type_object);

    out_json_text_or_null(o, "host", item_holder(s, i));
    out_json_text_or_null(o, "uuid",
                          c         ? c->host
                          : i->live ? out_json_get_text(self, "uuid", NULL)
                                    : NULL);
    out_json_u64(o, "pid", i->live ? out_json_get_u64(i->live, "pid") : c ? c->pid : 0);
    out_json_u64(o, "start", i->live ? out_json_get_u64(i->live, "start") : c ? c->start : 0);
    out_json_u64(o, "uid", i->live ? out_json_get_u64(i->live, "uid") : c ? c->uid : 0);
    out_json_u64(o, "gid", i->live ? out_json_get_u64(i->live, "gid") : c ? c->gid : 0);
    if (i->host && i->host->alive >= 0)
        out_json_bool(o, "alive", i->host->alive == 1);
    else
        json_object_object_add(o, "alive", NULL);
    return o;
}

struct json_object *item_json(const struct source *s, const struct item *i)
{
    struct json_object *o = out_object(), *t = NULL;
    const struct raw_claim *c = i->claim;
    struct trouble trouble;

    out_json_text_or_null(o, "image", item_lost(i) ? NULL : item_path(i));
    if (item_lost(i))
        out_json_text(o, "was", item_path(i));
    out_json_u64(o, "inode", c ? c->ino : out_json_get_u64(i->live, "inode"));
    out_json_u64(o, "generation", c ? c->generation : out_json_get_u64(i->live, "generation"));
    out_json_text(o, "state", item_state(i));
    out_json_text_or_null(o, "format",
                          i->live ? out_json_get_text(i->live, "format", "")
                          : c     ? c->format
                                  : NULL);
    out_json_u64(o, "size", i->live ? out_json_get_u64(i->live, "size") : c ? c->virtual_size : 0);
    out_json_text_or_null(o, "since",
                          i->live                ? out_json_get_text(i->live, "since", "")
                          : c && item_is_held(i) ? c->since
                                                 : NULL);
    out_json_text(o, "protection", item_protection(i));
    out_json_bool(o, "here", i->live != NULL);
    json_object_object_add(o, "holder", item_is_held(i) ? holder_json(s, i) : NULL);
    item_trouble(s, i, &trouble);
    if (trouble.code) {
        t = json_object_new_object();
        out_json_text(t, "code", trouble.code);
        out_json_text(t, "message", trouble.text);
        out_json_text(t, "repair", trouble.out);
    }
    json_object_object_add(o, "problem", t);
    return o;
}
