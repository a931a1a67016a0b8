/* ctl_takeover.c: diskguardctl takeover, and what show and why say of it. See ctl.h, and
 * core/takeover.h for the decision. */
#include <string.h>

#include "core/takeover.h"
#include "ctl/ctl.h"

/* pause between two attempts; the daemon watches the heartbeat no more often */
#define PACE_MS 1000u
#define ASK_MS 100u /* pause between two questions whether an attempt has ended */

/* ---- would it be possible? ---- */

bool look_takeover(const struct look *l, bool *ret_possible, struct why *ret)
{
    const struct raw_image *im = look_image(l);
    struct json_object *opt = out_json_get(l->source.status, "options", json_type_object);
    struct takeover_input in = {.heartbeat = TAKEOVER_HEARTBEAT_STANDS};
    enum takeover_verdict v;
    struct why why;
    const char *own_why;

    if (!im || l->item.live || im->claim.kind != CLAIM_HELD || item_is_own(&l->source, &l->item))
        return false;
    const struct record *rec = &im->claim.rec;
    in.unproven = strcmp(out_json_get_text(opt, "takeover", ""), "lock-unproven") == 0;
    in.own = io_fencing(l->source.raw->store.root_fd,
                        strcmp(out_json_get_text(opt, "fence", ""), "none") == 0
                            ? FENCE_NONE
                            : l->source.raw->store.fence,
                        &own_why);
    in.holder = rec->fenced;
    in.names = takeover_is_names(rec);
    in.record = look_host(l) ? 0 : l->item.host ? l->item.host->err : -ENOENT;
    in.alive = l->item.host ? l->item.host->alive : -ENOENT;
    if (in.alive == 1) /* nobody has watched its heartbeat here */
        in.heartbeat = TAKEOVER_HEARTBEAT_WATCHED;
    v = takeover_decide(&in);
    *ret_possible = v == TAKEOVER_TRY;
    if (v == TAKEOVER_WATCH)
        why_set(
            &why,
            "the record of that host is locked: its diskguard lives, or its lock has not run out yet. Close the image there. If that host is dead: diskguardctl takeover IMAGE, which watches its heartbeat first and takes nothing from a host that lives");
    else if (v == TAKEOVER_TRY)
        why_set(
            &why,
            "if the heartbeat of that host stands still and the storage gives the fence lock: diskguardctl takeover IMAGE, or with takeover=lock the next open for write does it by itself");
    else
        takeover_explain(v, &in, own_why, out_tame(rec->host_name), rec->host, &why);
    out_fill(why.text,
             &(struct out_words){.datastore = out_quote(source_dir(&l->source)),
                                 .image = l->source.mount ? l->again : NULL}, /* it needs a view */
             ret->text, sizeof(ret->text));
    return true;
}

/* ---- doing it ---- */

/* One attempt of the daemon. DG_EXIT_*, or -1 with why: not yet. */
static int attempt(const struct source *s, const char *rel, bool unproven, struct why *why)
{
    struct json_object *request = out_object(), *o;
    uint64_t ticket;
    int code = DG_EXIT_FAILURE;

    out_json_text(request, "image", rel);
    out_json_bool(request, "unproven", unproven);
    o = daemon_request(s->mount, "takeover", request, why);
    ticket = out_json_get_u64(o, "ticket");
    while (o && !out_json_get_bool(o, "ended")) {
        json_object_put(o);
        usleep(ASK_MS * 1000);
        request = out_object();
        out_json_u64(request, "ticket", ticket);
        o = daemon_request(s->mount, "takeover-result", request, why);
    }
    if (o) {
        const char *result = out_json_get_text(o, "result", "");

        out_fill(out_json_get_text(o, "text", ""),
                 &(struct out_words){.datastore = out_quote(source_dir(s))}, why->text,
                 sizeof(why->text));
        code = strcmp(result, "free") == 0   ? DG_EXIT_OK
               : strcmp(result, "wait") == 0 ? -1
               : strcmp(result, "held") == 0 ? DG_EXIT_IN_USE
                                             : DG_EXIT_FAILURE;
    }
    json_object_put(o);
    return code;
}

static int say(const struct ctl *ctl, const char *image, int code, const struct why *why)
{
    if (ctl->json) {
        struct json_object *o = out_object();

        out_json_text(o, "image", image);
        out_json_bool(o, "free", code == DG_EXIT_OK);
        out_json_text_or_null(o, "text", why->text);
        out_json_print(o);
    } else if (code == DG_EXIT_OK) {
        out_line("%s: nobody holds it now; an open for write on this host gets it\n",
                 out_tame(image));
    } else {
        out_error("%s was not taken over: %s", image, why->text);
    }
    return code;
}

int cmd_takeover(struct ctl *ctl, const char *image)
{
    struct source s;
    struct why why = {""};
    char *rel = NULL;
    uint64_t wait_ms, start = base_now_ms();
    int code;

    if (ctl->datastore) {
        out_error(
            "takeover asks a running diskguard: name the image through its view; without one: fsck.diskguard --takeover");
        return DG_EXIT_USAGE;
    }
    if (source_of_image(ctl, image, &s, &rel) < 0)
        return DG_EXIT_FAILURE;
    wait_ms = 1000 * out_json_get_u64(out_json_get(s.status, "options", json_type_object),
                                      "takeover_wait");
    if (ctl->timeout_ms != UINT64_MAX)
        wait_ms = ctl->timeout_ms;
    for (;;) {
        code = attempt(&s, rel, ctl->unproven, &why);
        uint64_t waited = base_now_ms() - start;
        if (code >= 0 || waited >= wait_ms)
            break;
        usleep(1000u * (unsigned)DG_MIN(PACE_MS, wait_ms - waited));
    }
    code = say(ctl, image, code < 0 ? DG_EXIT_IN_USE : code, &why);
    source_close(&s);
    free(rel);
    return code;
}
