/* ctl_show.c: diskguardctl show, and what it shares with why and wait. See ctl.h. */
#include "ctl/ctl.h"

#include <fnmatch.h>
#include <inttypes.h>
#include <string.h>

#define HEX_SHOWN 24 /* bytes of an extent that fit on a line */

/* ---- finding the image ---- */

static int image_error(const char *arg, const struct raw_image *im)
{
    if (im->link)
        out_error("%s is a symbolic link to %s: ask for that", arg, im->link);
    else if (im->err == -EISDIR)
        out_error("%s is a directory; diskguardctl list shows what is held", arg);
    else if (im->err == -EINVAL)
        out_error("%s is no regular file, so it is not guarded", arg);
    else
        out_error("%s: %s", arg, strerror(-im->err));
    return im->err;
}

/* Without the datastore: asks the daemon of this host, by path. */
static int look_live(struct look *l, const char *arg)
{
    for (size_t i = 0; i < l->items.n; i++)
        if (strcmp(item_path(&l->items.item[i]), l->rel) == 0) {
            l->item = l->items.item[i];
            return 0;
        }
    source_say_unreadable(&l->source);
    if (l->source.list)
        out_error(
            "this host's diskguard does not hold %s; whether another host does stands on the datastore",
            arg);
    else if (l->source.mount)
        out_error("%s", l->source.daemon_why);
    return l->source.raw->err;
}

int look_open(struct ctl *ctl, const char *arg, struct look *ret)
{
    int r;

    memset(ret, 0, sizeof(*ret));
    if (asprintf(&ret->again, "%s%s%s%s", ctl->datastore ? "--datastore " : "",
                 ctl->datastore ? out_quote(ctl->datastore) : "", ctl->datastore ? " " : "",
                 out_quote(arg)) < 0)
        out_no_memory();
    r = source_of_image(ctl, arg, &ret->source, &ret->rel);
    if (r < 0)
        return r;
    source_read(&ret->source, ret->rel, true);
    items_collect(&ret->source, &ret->items);
    const struct raw_image *im = look_image(ret);
    if (!im)
        return look_live(ret, arg);
    if (im->err < 0)
        return image_error(arg, im);
    ret->item = items_find(&ret->items, im->st.st_ino);
    return 0;
}

void look_close(struct look *l)
{
    items_free(&l->items);
    source_close(&l->source);
    free(l->rel);
    free(l->again);
    l->rel = l->again = NULL;
}

const struct raw_image *look_image(const struct look *l)
{
    return l->source.raw && l->source.raw->err == 0 ? l->source.raw->image : NULL;
}

const struct host_record *look_host(const struct look *l)
{
    return l->item.host && l->item.host->err == 0 ? &l->item.host->rec : NULL;
}

bool look_shared(const struct look *l, uint64_t *ret_here)
{
    const char *slash = strrchr(l->rel, '/'), *name = slash ? slash + 1 : l->rel;
    struct json_object *o = out_json_get(l->source.status, "options", json_type_object),
                       *globs = out_json_get(o, "shared_globs", json_type_array),
                       *open = out_json_get(l->source.list, "shared", json_type_array);
    bool shared = false;

    *ret_here = 0;
    for (size_t i = 0; open && i < json_object_array_length(open); i++) {
        struct json_object *f = json_object_array_get_idx(open, i);

        if (strcmp(out_json_get_text(f, "image", ""), l->rel) == 0) {
            *ret_here = out_json_get_u64(f, "writers");
            shared = true;
        }
    }
    for (size_t i = 0; globs && !shared && i < json_object_array_length(globs); i++) {
        const char *glob = json_object_get_string(json_object_array_get_idx(globs, i));

        shared = glob && fnmatch(glob, name, 0) == 0;
    }
    return shared;
}

/* What header and file handle tell. */
static void header_trouble(const struct look *l, const struct raw_image *im, struct trouble *ret)
{
    if (im->claim.kind == CLAIM_HELD && im->other_file)
        trouble_from(ret, PROBLEM_WRONG_HANDLE);
    else if (im->header_err < 0)
        trouble_set(ret, "unreadable", "make the storage and the permissions work, then repeat",
                    "the header cannot be read: %s", strerror(-im->header_err));
    else if (im->claim.kind == CLAIM_HELD &&
             (im->state == HEADER_ALIEN || im->state == HEADER_SHORT))
        trouble_from(ret, PROBLEM_ALIEN);
    else if (!item_is_held(&l->item) && im->header.verdict == FORMAT_SEALED)
        trouble_from(ret, PROBLEM_ORPHAN);
    else if (!item_is_held(&l->item) && im->header.verdict == FORMAT_LIES)
        trouble_set(
            ret, "lies",
            im->header.info.maybe_sealed
                ? "fsck.diskguard on the hosts that may have held it; else restore the size from a backup"
                : "repair the image through a view with its own tools (qemu-img check -r all), or restore it from a backup",
            "the header contradicts itself%s: %s",
            im->header.info.maybe_sealed ? ", as seal=size leaves it" : "", im->header.info.why);
    else if (!item_is_held(&l->item) && im->header.verdict == FORMAT_AMBIGUOUS)
        trouble_set(
            ret, "ambiguous",
            "find out what the file is; a convert of it into a new image is never ambiguous", "%s",
            im->header.info.why);
}

void look_trouble(const struct look *l, struct trouble *ret)
{
    const struct raw_image *im = look_image(l);
    struct trouble t = {0};

    item_trouble(&l->source, &l->item, ret);
    if (!im || im->other_fs)
        return;
    header_trouble(l, im, &t);
    if (!t.code)
        return;
    trouble_finish(&t, &l->source, l->rel);
    *ret = t;
}

/* ---- words ---- */

static const char *verdict_word(const struct header *h)
{
    switch (h->verdict) {
    case FORMAT_PLAIN:
        return "plain";
    case FORMAT_IMAGE:
        return "image";
    case FORMAT_SEALED:
        return "sealed";
    case FORMAT_LIES:
        return "lies";
    case FORMAT_AMBIGUOUS:
        return "ambiguous";
    case FORMAT_MORE:
        break;
    }
    return "unknown";
}

static const char *state_word(enum header_state s)
{
    static const char *const word[] = {
        [HEADER_TRUE] = "true",   [HEADER_SEALED] = "sealed", [HEADER_MIXED] = "mixed",
        [HEADER_ALIEN] = "alien", [HEADER_SHORT] = "short",   [HEADER_NOPLAN] = "no plan",
    };
    return word[s];
}

static void time_text(struct timespec t, char ret[40])
{
    struct tm tm;

    gmtime_r(&t.tv_sec, &tm);
    strftime(ret, 40, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

/* ---- text ---- */

static void show_claim(const struct record *r)
{
    out_line("claim:      %s, generation %" PRIu64 ", sequence %" PRIu64 "\n",
             record_step_name(r->step), r->generation, r->seq);
    out_line("            written for %s\n", out_tame(r->image));
    out_line("            installation %s, boot %s, daemon %s\n", r->installation, r->boot,
             r->daemon);
    out_line("            losing the fence lock stops its holder's writes: %s\n",
             io_fencing_name(r->fenced));
    if (r->sync_error)
        out_line("            an fsync of guest data failed: %s\n", strerror(r->sync_error));
    for (unsigned i = 0; i < r->plan.n; i++) {
        const struct extent *e = &r->plan.ext[i];
        char truth[2 * HEX_SHOWN + 1], sealed[2 * HEX_SHOWN + 1];
        size_t n = DG_MIN(e->len, HEX_SHOWN);
        const char *more = e->len > n ? "..." : "";

        base_hex(e->truth, n, truth);
        base_hex(e->sealed, n, sealed);
        out_line("extent:     %" PRIu32 " bytes at %" PRIu64 "%s\n", e->len, e->off,
                 e->has_was ? ", being sealed anew" : "");
        out_line("            true   %s%s\n            sealed %s%s\n", truth, more, sealed, more);
    }
}

static void show_holder(const struct look *l)
{
    const struct item *i = &l->item;
    const struct host_record *h = look_host(l);
    const struct raw_claim *c = i->claim;
    struct json_object *live = i->live;

    if (!item_is_held(i))
        return;
    out_line("holder:     %s%s%s%s\n", out_tame(item_holder(&l->source, i)),
             c && c->kind == CLAIM_HELD ? " (" : "", c && c->kind == CLAIM_HELD ? c->host : "",
             c && c->kind == CLAIM_HELD ? ")" : "");
    out_line("            process %" PRIu64 ", uid %" PRIu64 ", gid %" PRIu64 ", since %s\n",
             live ? out_json_get_u64(live, "pid")
             : c  ? c->pid
                  : 0,
             live ? out_json_get_u64(live, "uid")
             : c  ? c->uid
                  : 0,
             live ? out_json_get_u64(live, "gid")
             : c  ? c->gid
                  : 0,
             live ? out_json_get_text(live, "since", "-")
             : c  ? c->since
                  : "-");
    if (h)
        out_line("            its diskguard: %s; last heartbeat %" PRIu64 " at %s\n",
                 i->host->alive == 1   ? "runs (its record is locked)"
                 : i->host->alive == 0 ? "does not run (its record is not locked)"
                                       : "cannot be told",
                 h->heartbeat, h->heartbeat_time);
    if (live)
        out_line("daemon:     %s, %" PRIu64 " handles open for write\n", item_state(i),
                 out_json_get_u64(live, "writers"));
}

static void show_file(const struct look *l, const struct raw_image *im)
{
    const struct store *s = &l->source.raw->store;
    char size[32], used[32], mtime[40];

    time_text(im->st.st_mtim, mtime);
    out_line("file:       inode %" PRIu64 ", %s long, %s allocated, %lu links, changed %s\n",
             (uint64_t)im->st.st_ino, out_human((uint64_t)im->st.st_size, size),
             out_human((uint64_t)im->st.st_blocks * 512, used), (unsigned long)im->st.st_nlink,
             mtime);
    if (!im->other_fs && im->header_err == 0)
        out_line("header:     %s%s%s%s%s\n", verdict_word(&im->header),
                 im->header.info.why[0] ? ": " : "", out_tame(im->header.info.why),
                 im->claim.kind == CLAIM_HELD && im->state != HEADER_NOPLAN
                     ? "; against the claim: "
                     : "",
                 im->claim.kind == CLAIM_HELD && im->state != HEADER_NOPLAN ? state_word(im->state)
                                                                            : "");
    out_line("storage:    %s (%s, %s), fence: %s\n", s->path, s->fs->name,
             s->fs->shared ? "shared" : "this host only", ctl_fence_word(s->fence));
}

/* Not sealed, but QEMU's locks are held, by the guard or by the holder: on the file itself they are
 * the same. */
static bool show_locked(const struct look *l)
{
    const struct raw_image *im = look_image(l);

    return item_is_held(&l->item) && !item_sealed(&l->item) &&
           (l->item.live ? item_locked(&l->item) : im && im->byte_locks);
}

static void show_text(const struct look *l, const struct trouble *t)
{
    const struct raw_image *im = look_image(l);
    const struct item *i = &l->item;
    uint64_t size = i->live    ? out_json_get_u64(i->live, "size")
                    : i->claim ? i->claim->virtual_size
                               : 0;
    const char *format = i->live    ? out_json_get_text(i->live, "format", "")
                         : i->claim ? i->claim->format
                                    : "";
    char human[32];
    struct why why;
    bool possible;
    uint64_t here;

    if (im && !im->other_fs && !item_is_held(i)) {
        format = im->header.format ? im->header.format->name : "";
        size = im->header.info.virtual_size;
    }
    out_line("image:      %s\n", out_tame(l->rel));
    out_line("state:      %s%s\n", i->claim || i->live ? item_state(i) : "never held",
             !item_is_held(i) ? ""
             : item_sealed(i) ? ", protected by header and claim"
             : show_locked(l) ? ", protected by its claim and QEMU's byte locks"
                              : ", protected by its claim only");
    if (look_shared(l, &here))
        out_line("            shared on purpose (shared=), %" PRIu64
                 " handles open for write here\n",
                 here);
    out_line("format:     %s", format[0] ? format : "none");
    if (size)
        out_line(", %s (%" PRIu64 " bytes)", out_human(size, human), size);
    out_line("\n");
    show_holder(l);
    if (im && im->claim.kind == CLAIM_HELD)
        show_claim(&im->claim.rec);
    else if (im && im->claim.kind == CLAIM_FREE)
        out_line("claim:      free, generation %" PRIu64 ", last held by %s\n",
                 im->claim.generation, out_tame(im->claim.rec.host_name));
    else if (im && im->claim.kind == CLAIM_BAD)
        out_line("claim:      generation %" PRIu64 " does not decode\n", im->claim.generation);
    if (im) {
        show_file(l, im);
        chain_text(im);
    }
    if (look_takeover(l, &possible, &why))
        out_line("takeover:   %s%s\n", possible ? "possible, " : "not possible now: ", why.text);
    if (t->code)
        out_line("problem:    %s\n            %s\n", t->text, t->out);
}

/* ---- JSON ---- */

static struct json_object *extents_json(const struct plan *plan)
{
    struct json_object *a = json_object_new_array();
    char hex[2 * EXTENT_MAX + 1];

    for (unsigned i = 0; i < plan->n; i++) {
        const struct extent *e = &plan->ext[i];
        struct json_object *o = json_object_new_object();

        out_json_u64(o, "offset", e->off);
        out_json_u64(o, "length", e->len);
        base_hex(e->truth, e->len, hex);
        out_json_text(o, "true", hex);
        base_hex(e->sealed, e->len, hex);
        out_json_text(o, "sealed", hex);
        json_object_array_add(a, o);
    }
    return a;
}

static struct json_object *claim_json(const struct claim *c)
{
    struct json_object *o;

    if (c->kind == CLAIM_NONE)
        return NULL;
    o = json_object_new_object();
    out_json_u64(o, "generation", c->generation);
    out_json_bool(o, "readable", c->kind != CLAIM_BAD);
    if (c->kind == CLAIM_BAD)
        return o;
    out_json_text(o, "state", record_step_name(c->rec.step));
    out_json_u64(o, "seq", c->rec.seq);
    out_json_text(o, "image", c->rec.image);
    out_json_text(o, "host", c->rec.host_name);
    out_json_text(o, "uuid", c->rec.host);
    out_json_text(o, "installation", c->rec.installation);
    out_json_text(o, "boot", c->rec.boot);
    out_json_text(o, "daemon", c->rec.daemon);
    out_json_u64(o, "sync_error", (uint64_t)c->rec.sync_error);
    out_json_text(o, "fenced", io_fencing_name(c->rec.fenced));
    json_object_object_add(o, "extents", extents_json(&c->rec.plan));
    return o;
}

static void file_json(struct json_object *o, const struct look *l, const struct raw_image *im)
{
    struct json_object *f = json_object_new_object(), *h = NULL, *st = json_object_new_object();
    const struct store *s = &l->source.raw->store;
    char mtime[40];

    time_text(im->st.st_mtim, mtime);
    out_json_u64(f, "inode", im->st.st_ino);
    out_json_u64(f, "size", (uint64_t)im->st.st_size);
    out_json_u64(f, "allocated", (uint64_t)im->st.st_blocks * 512);
    out_json_u64(f, "links", im->st.st_nlink);
    out_json_text(f, "mtime", mtime);
    json_object_object_add(o, "file", f);
    if (!im->other_fs && im->header_err == 0) {
        h = json_object_new_object();
        out_json_text(h, "verdict", verdict_word(&im->header));
        out_json_text_or_null(h, "format", im->header.format ? im->header.format->name : NULL);
        out_json_u64(h, "size", im->header.info.virtual_size);
        out_json_text_or_null(h, "why", im->header.info.why);
        out_json_text_or_null(h, "state",
                              im->claim.kind == CLAIM_HELD && im->state != HEADER_NOPLAN
                                  ? state_word(im->state)
                                  : NULL);
    }
    json_object_object_add(o, "header", h);
    json_object_object_add(o, "claim", claim_json(&im->claim));
    out_json_text(st, "path", s->path);
    out_json_text(st, "uuid", s->uuid);
    out_json_text(st, "type", s->fs->name);
    out_json_bool(st, "shared", s->fs->shared);
    out_json_text(st, "fence", ctl_fence_word(s->fence));
    json_object_object_add(o, "datastore", st);
}

static void show_json(const struct look *l, const struct trouble *t)
{
    const struct raw_image *im = look_image(l);
    struct json_object *o = item_json(&l->source, &l->item), *p = NULL;
    const struct host_record *h = look_host(l);

    out_json_text(o, "image", l->rel);
    uint64_t here;

    out_json_bool(o, "shared", look_shared(l, &here));
    out_json_u64(o, "shared_writers", here);
    if (show_locked(l))
        out_json_text(o, "protection", "claim+locks");
    if (!l->item.claim && !l->item.live)
        out_json_text(o, "state", "free");
    if (t->code) {
        p = json_object_new_object();
        out_json_text(p, "code", t->code);
        out_json_text(p, "message", t->text);
        out_json_text(p, "repair", t->out);
    }
    json_object_object_add(o, "problem", p);
    if (im) {
        out_json_u64(o, "inode", im->st.st_ino);
        if (!item_is_held(&l->item) && im->header.format) {
            out_json_text(o, "format", im->header.format->name);
            out_json_u64(o, "size", im->header.info.virtual_size);
        }
        file_json(o, l, im);
        chain_json(o, im);
    }
    if (h) {
        out_json_u64(o, "holder_beat", h->heartbeat);
        out_json_text(o, "holder_beat_time", h->heartbeat_time);
    }
    if (l->item.live)
        out_json_u64(o, "writers", out_json_get_u64(l->item.live, "writers"));
    out_json_print(o);
}

int cmd_show(struct ctl *ctl, const char *image)
{
    struct look l;
    struct trouble t;
    int code = DG_EXIT_FAILURE;

    if (look_open(ctl, image, &l) == 0) {
        look_trouble(&l, &t);
        if (ctl->json)
            show_json(&l, &t);
        else
            show_text(&l, &t);
        code = t.code ? DG_EXIT_NEED_REPAIR : DG_EXIT_OK;
    }
    look_close(&l);
    return code;
}
