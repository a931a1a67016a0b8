/* contract_undo.c: what is asked of rescue and links. See contract.h. */
#include "contract.h"

#include <stdlib.h>
#include <string.h>

/* ---- links ---- */

struct links {
    unsigned calls;
    int answer; /* of the callback */
    uint64_t sum;
};

static void sum_add(uint64_t *sum, const void *data, size_t len)
{
    const uint8_t *p = data;

    while (len-- > 0)
        *sum = (*sum ^ *p++) * 0x100000001b3; /* FNV-1a, 64 bits */
}

static int count_link(void *arg, const struct format_link *link)
{
    struct links *links = arg;
    const char *end = memchr(link->path, '\0', sizeof(link->path));

    MUST(end, "a link's path does not end");
    MUST(end > link->path, "a link without a path");
    MUST(memchr(link->format, '\0', sizeof(link->format)), "a link's format does not end");
    MUST(link->role == LINK_BACKING || link->role == LINK_DATA || link->role == LINK_EXTENT,
         "a link's role is %d", (int)link->role);
    sum_add(&links->sum, link->path, strlen(link->path) + 1);
    sum_add(&links->sum, link->format, strlen(link->format) + 1);
    sum_add(&links->sum, &link->role, sizeof(link->role));
    links->calls++;
    return links->answer;
}

static int ask_links(struct look *l, const struct subject *s, const struct answer *a,
                     struct links *ret)
{
    int r;

    for (;;) {
        look_ready(l);
        r = a->format->links(&l->view, count_link, ret);
        if (r != -EAGAIN)
            break;
        MUST(ret->calls == 0, "links wants more after it called its function");
        look_load(l, s, "links", VIEW_WINDOWS);
    }
    look_done(l, "links");
    return r;
}

uint64_t contract_links(struct look *l, const struct subject *s, const struct answer *a)
{
    struct links links = {.sum = 0xcbf29ce484222325}, stop = {.answer = 77};
    int r;

    if (!a->format->links)
        return 0;
    r = ask_links(l, s, a, &links);
    MUST(r == 0 || r == -EUCLEAN, "links answers %d", r);
    contract_seen.links += links.calls;
    if (links.calls > 0) {
        r = ask_links(l, s, a, &stop);
        MUST(r == 77 && stop.calls == 1,
             "links does not stop where its function says so: %d after %u calls", r, stop.calls);
    }
    return links.sum + (uint64_t)-r;
}

/* ---- rescue ---- */

static int ask_rescue(struct look *l, const struct subject *s, const struct answer *a,
                      const uint64_t *size, struct rescue *ret_rescue, struct plan *ret_plan)
{
    int r;

    for (;;) {
        look_ready(l);
        memset(ret_rescue, 0xa5, sizeof(*ret_rescue));
        memset(ret_plan, 0xa5, sizeof(*ret_plan));
        r = a->format->rescue(&l->view, size, ret_rescue, ret_plan);
        if (r != -EAGAIN)
            break;
        look_load(l, s, "rescue", VIEW_WINDOWS);
    }
    look_done(l, "rescue");
    return r;
}

/* Candidates are well formed, and true where the size is known. */
static void check_candidates(const struct subject *s, const struct rescue *rescue)
{
    MUST(rescue->n <= RESCUE_MAX, "rescue has %u candidates", rescue->n);
    for (unsigned i = 0; i < rescue->n; i++) {
        enum rescue_kind kind = rescue->candidate[i].kind;
        uint64_t size = rescue->candidate[i].size;

        MUST(kind == RESCUE_EXACT || kind == RESCUE_UPPER || kind == RESCUE_LOWER,
             "a candidate's kind is %d", (int)kind);
        MUST(rescue->candidate[i].source && rescue->candidate[i].source[0],
             "a candidate without a source");
        if (!s->whole)
            continue;
        MUST(kind != RESCUE_EXACT || size == s->virtual_size,
             "rescue: exactly %llu (%s), but it is %llu", (unsigned long long)size,
             rescue->candidate[i].source, (unsigned long long)s->virtual_size);
        if (!contract_bounds)
            continue;
        MUST(kind != RESCUE_UPPER || size >= s->virtual_size,
             "rescue: at most %llu (%s), but it is %llu", (unsigned long long)size,
             rescue->candidate[i].source, (unsigned long long)s->virtual_size);
        MUST(kind != RESCUE_LOWER || size <= s->virtual_size,
             "rescue: at least %llu (%s), but it is %llu", (unsigned long long)size,
             rescue->candidate[i].source, (unsigned long long)s->virtual_size);
    }
}

static const uint64_t *exact_of(const struct rescue *rescue)
{
    for (unsigned i = 0; i < rescue->n; i++)
        if (rescue->candidate[i].kind == RESCUE_EXACT)
            return &rescue->candidate[i].size;
    return NULL;
}

/* Carries the plan out, in reverse order as a restore does. Of a seal of ours the result is a whole
 * image of the right size; of a header that the fuzzer made up anything may be left, but no seal;
 * and if it is whole then it has the size that was given or called exact. */
static void check_undone(struct subject *s, const struct answer *before, const struct plan *plan,
                         const uint64_t *size, const struct rescue *rescue)
{
    unsigned n = s->file.n;
    struct answer a = *before;
    struct look l;

    for (unsigned i = plan->n; i-- > 0;)
        sparse_write(&s->file, plan->ext[i].off, plan->ext[i].truth, plan->ext[i].len);
    look_init(&l, s, PRELOAD_REACH);
    contract_probe(&l, s, &a);
    look_free(&l);
    s->file.n = n;
    if (s->whole) {
        MUST(a.probe == PROBE_YES, "after a rescue probe answers %d (%s), not YES", (int)a.probe,
             a.info.why);
        MUST(a.info.virtual_size == s->virtual_size, "after a rescue the size is %llu, not %llu",
             (unsigned long long)a.info.virtual_size, (unsigned long long)s->virtual_size);
    }
    MUST(a.probe != PROBE_SEALED, "after a rescue it is sealed still (%s)", a.info.why);
    if (a.probe != PROBE_YES)
        return;
    MUST(a.format == before->format, "after a rescue it is another format");
    if (!size)
        size = exact_of(rescue);
    MUST(!size || *size == a.info.virtual_size,
         "after a rescue the size is %llu, but %llu was given or exact",
         (unsigned long long)a.info.virtual_size, (unsigned long long)*size);
}

static int rescue_with(struct look *l, struct subject *s, const struct answer *a,
                       const uint64_t *size)
{
    struct plan *plan = malloc(sizeof(*plan));
    struct rescue rescue;
    int r;

    MUST(plan, "no memory");
    r = ask_rescue(l, s, a, size, &rescue, plan);
    MUST(r == 0 || r == -ENODATA || r == -ERANGE || r == -EUCLEAN, "rescue answers %d", r);
    MUST(r != -ERANGE || size, "rescue answers -ERANGE, but no size was given");
    MUST(r != -ENODATA || !size, "rescue answers -ENODATA, but a size was given");
    check_candidates(s, &rescue);
    if (r == 0) {
        contract_extents(s, a, plan, true, "rescue");
        check_undone(s, a, plan, size, &rescue);
    }
    contract_seen.rescued += r == 0;
    contract_seen.no_size += r == -ENODATA;
    contract_seen.no_rescue += r == -EUCLEAN;
    free(plan);
    return r;
}

void contract_rescue(struct look *l, struct subject *s, const struct answer *a)
{
    int r;

    if (!a->format->rescue)
        return;
    rescue_with(l, s, a, NULL);
    if (!s->whole) {
        rescue_with(l, s, a, &s->file.given);
        return;
    }
    /* The right size contradicts nothing. 0 is also what a format says that has no size. */
    r = rescue_with(l, s, a, &s->virtual_size);
    MUST(r != -ERANGE || s->virtual_size == 0 || !contract_bounds,
         "rescue answers -ERANGE to the right size, %llu", (unsigned long long)s->virtual_size);
    /* A wrong one is refused or, where nothing in the file speaks against it, done: so it is not a
     * seal of a known size any more. */
    if (s->file.given != s->virtual_size) {
        s->whole = false;
        rescue_with(l, s, a, &s->file.given);
        s->whole = true;
    }
}
