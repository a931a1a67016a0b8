/* ctl_list.c: diskguardctl list and hosts. See ctl.h. */
#include "ctl/ctl.h"

#include <string.h>

/* ---- both ---- */

static struct json_object *source_json(const struct source *s)
{
    struct json_object *o = out_object();
    bool readable = s->raw->err == 0;

    out_json_text_or_null(o, "mountpoint", s->mount ? s->mount->point : NULL);
    out_json_text(o, "datastore", source_dir(s));
    out_json_text_or_null(
        o, "uuid", readable ? s->raw->store.uuid : out_json_get_text(s->status, "uuid", NULL));
    out_json_bool(o, "daemon", s->status != NULL);
    out_json_bool(o, "complete", readable);
    out_json_text_or_null(o, "fence", readable ? ctl_fence_word(s->raw->store.fence) : NULL);
    return o;
}

/* Prints what a person must know before believing the table. */
static void say_gaps(const struct source *s)
{
    if (s->mount && !s->status)
        out_error("%s", s->daemon_why);
    if (s->raw->err == 0)
        return;
    source_say_unreadable(s);
    if (s->status)
        out_error("showing what this host's diskguard holds");
}

static void heading(const struct ctl *ctl, const struct source *s, bool *first)
{
    if (ctl->mounts.n > 1 && s->mount)
        out_line("%s%s (datastore %s)\n", *first ? "" : "\n", s->mount->point, s->dir);
    *first = false;
}

/* Nothing could be learnt from a source. */
static bool is_blind(const struct source *s)
{
    return s->raw->err < 0 && !s->list;
}

struct shown_list {
    struct json_object *array;
    bool first;
};

/* ---- list ---- */

/* Its present name; never one that is another file's. */
static void list_name(const struct item *i, char *ret, size_t size)
{
    if (!item_path(i)[0])
        snprintf(ret, size, "inode %llu", i->claim ? (unsigned long long)i->claim->ino : 0);
    else if (item_lost(i))
        snprintf(ret, size, "was '%s'", item_path(i));
    else
        snprintf(ret, size, "%s", item_path(i));
}

static void list_row(struct out_table *t, const struct source *s, const struct item *i)
{
    const struct raw_claim *c = i->claim;
    uint64_t size = i->live ? out_json_get_u64(i->live, "size") : c ? c->virtual_size : 0;
    uint64_t pid = i->live                      ? out_json_get_u64(i->live, "pid")
                   : c && c->kind == CLAIM_HELD ? c->pid
                                                : 0;
    bool held = item_is_held(i), known = !c || c->kind != CLAIM_BAD;
    char human[32], number[32], path[RECORD_IMAGE_MAX + 8];

    snprintf(number, sizeof(number), "%llu", (unsigned long long)pid);
    list_name(i, path, sizeof(path));
    out_table_row(t, (const char *[]){path, item_state(i),
                                      i->live ? out_json_get_text(i->live, "format", "")
                                      : c     ? c->format
                                              : "",
                                      size ? out_human(size, human) : "",
                                      held ? item_holder(s, i) : "", pid ? number : "",
                                      !held     ? ""
                                      : i->live ? out_json_get_text(i->live, "since", "")
                                      : c       ? c->since
                                                : "",
                                      !held || !known                    ? ""
                                      : item_sealed(i) || item_locked(i) ? item_protection(i)
                                                                         : "claim only"});
}

/* Lists files that match shared= and are open for write here. Nothing tells of other hosts. */
static void list_shared(struct out_table *t, const struct source *s)
{
    struct json_object *a = out_json_get(s->list, "shared", json_type_array),
                       *host = out_json_get(s->status, "host", json_type_object);

    for (size_t i = 0; a && i < json_object_array_length(a); i++) {
        struct json_object *o = json_object_array_get_idx(a, i);
        char pid[32];

        snprintf(pid, sizeof(pid), "%llu", (unsigned long long)out_json_get_u64(o, "pid"));
        out_table_row(t, (const char *[]){out_json_get_text(o, "image", ""), "shared", "", "",
                                          out_json_get_text(host, "name", ""), pid, "",
                                          "none (shared=)"});
    }
}

static unsigned list_troubles(const struct ctl *ctl, const struct source *s,
                              const struct items *items)
{
    char name[RECORD_IMAGE_MAX + 8];
    struct trouble t;
    unsigned n = 0;

    for (size_t i = 0; i < items->n; i++) {
        item_trouble(s, &items->item[i], &t);
        if (!t.code)
            continue;
        if (!ctl->json) {
            if (n == 0)
                out_line("\n");
            list_name(&items->item[i], name, sizeof(name));
            out_line("%s: ", out_tame(name));
            out_line("%s.\n    %s\n", t.text, t.out);
        }
        n++;
    }
    return n;
}

static int list_source(struct ctl *ctl, struct source *s, void *arg)
{
    static const char *const head[] = {"IMAGE",  "STATE", "FORMAT", "SIZE",
                                       "HOLDER", "PID",   "SINCE",  "PROTECTION"};
    struct shown_list *l = arg;
    struct out_table t = {.columns = 8};
    struct json_object *o, *images = json_object_new_array();
    struct items items;
    unsigned troubles;

    source_read(s, NULL, ctl->all);
    say_gaps(s);
    items_collect(s, &items);
    out_table_row(&t, head);
    for (size_t i = 0; i < items.n; i++) {
        if (ctl->json)
            json_object_array_add(images, item_json(s, &items.item[i]));
        else
            list_row(&t, s, &items.item[i]);
    }
    if (ctl->json) {
        struct json_object *shared = out_json_get(s->list, "shared", json_type_array);

        o = source_json(s);
        json_object_object_add(o, "images", images);
        json_object_object_add(o, "shared",
                               shared ? json_object_get(shared) : json_object_new_array());
        json_object_array_add(l->array, o);
    } else {
        json_object_put(images);
        list_shared(&t, s);
        heading(ctl, s, &l->first);
        if (!is_blind(s))
            out_table_print(&t);
    }
    troubles = list_troubles(ctl, s, &items);
    items_free(&items);
    out_table_free(&t);
    return is_blind(s) ? DG_EXIT_FAILURE : troubles ? DG_EXIT_NEED_REPAIR : DG_EXIT_OK;
}

static int print_all(struct ctl *ctl, const char *view,
                     int (*fn)(struct ctl *, struct source *, void *))
{
    struct shown_list l = {json_object_new_array(), true};
    int code = each_source(ctl, view, fn, &l);

    if (ctl->json) {
        struct json_object *o = out_object();
        json_object_object_add(o, "views", l.array);
        out_json_print(o);
    } else {
        json_object_put(l.array);
    }
    return code;
}

int cmd_list(struct ctl *ctl, const char *view)
{
    return print_all(ctl, view, list_source);
}

/* ---- hosts ---- */

static const char *alive_text(int alive)
{
    return alive == 1 ? "yes" : alive == 0 ? "no" : "unknown";
}

static struct json_object *host_json(const struct raw_host *h)
{
    struct json_object *o = out_object();
    bool good = h->err == 0;

    out_json_text_or_null(o, "name", good ? h->rec.name : NULL);
    out_json_text(o, "uuid", h->rec.uuid);
    if (h->alive >= 0)
        out_json_bool(o, "alive", h->alive == 1);
    else
        json_object_object_add(o, "alive", NULL);
    out_json_text_or_null(o, "started", good ? h->rec.started : NULL);
    out_json_u64(o, "beat", good ? h->rec.heartbeat : 0);
    out_json_text_or_null(o, "beat_time", good ? h->rec.heartbeat_time : NULL);
    out_json_text_or_null(o, "installation", good ? h->rec.installation : NULL);
    out_json_text_or_null(o, "boot", good ? h->rec.boot : NULL);
    out_json_text_or_null(o, "daemon", good ? h->rec.daemon : NULL);
    out_json_u64(o, "claims", h->held);
    out_json_bool(o, "damaged", !good);
    return o;
}

static void host_row(struct out_table *t, const struct raw_host *h)
{
    char held[32];

    snprintf(held, sizeof(held), "%u", h->held);
    out_table_row(t, (const char *[]){h->err ? "(record damaged)" : h->rec.name, h->rec.uuid,
                                      alive_text(h->alive), h->err ? "" : h->rec.heartbeat_time,
                                      held});
}

static int hosts_source(struct ctl *ctl, struct source *s, void *arg)
{
    static const char *const head[] = {"NAME", "UUID", "ALIVE", "LAST BEAT", "CLAIMS"};
    struct shown_list *l = arg;
    struct out_table t = {.columns = 5};
    struct json_object *o, *hosts = json_object_new_array();

    source_read(s, NULL, false);
    if (s->raw->err < 0)
        source_say_unreadable(s);
    out_table_row(&t, head);
    for (size_t i = 0; i < s->raw->nhosts; i++) {
        if (ctl->json)
            json_object_array_add(hosts, host_json(&s->raw->hosts[i]));
        else
            host_row(&t, &s->raw->hosts[i]);
    }
    if (ctl->json) {
        o = source_json(s);
        json_object_object_add(o, "hosts", hosts);
        json_object_array_add(l->array, o);
    } else {
        json_object_put(hosts);
        heading(ctl, s, &l->first);
        if (s->raw->err == 0)
            out_table_print(&t);
    }
    out_table_free(&t);
    return s->raw->err < 0 ? DG_EXIT_FAILURE : DG_EXIT_OK;
}

int cmd_hosts(struct ctl *ctl, const char *view)
{
    return print_all(ctl, view, hosts_source);
}
