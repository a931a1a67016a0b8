/* contract.c: what is asked of probe and plan, and of each state on the way to a seal and back. See
 * contract.h. */
#include "contract.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct contract_seen contract_seen;
bool contract_bounds;

static const char *holder_of(const struct subject *s)
{
    static const char *const names[8] = {
        "node-a",
        "",
        "n",
        "seventeen-letters",
        "a\nb\x7f\xc3\xa4",
        "a \"name\" = # %s",
        "a-host-name-for-which-no-header-has-room-so-that-it-is-cut.example.org"};

    return names[s->file.options >> 1 & 7]; /* the last one is NULL */
}

/* ---- extents ---- */

static bool overlap(const struct extent *a, const struct extent *b)
{
    return a->off < b->off + b->len && b->off < a->off + a->len;
}

void contract_extents(const struct subject *s, const struct answer *a, const struct plan *plan,
                      bool sealed, const char *who)
{
    uint8_t stands[EXTENT_MAX];

    MUST(plan->n <= PLAN_MAX, "%s: %u extents", who, plan->n);
    MUST(plan->n == 0 || !a->format->weak, "%s: a format without a header has extents", who);
    for (unsigned i = 0; i < plan->n; i++) {
        const struct extent *e = &plan->ext[i];

        MUST(e->len >= 1 && e->len <= EXTENT_MAX, "%s: extent %u has %u bytes", who, i,
             (unsigned)e->len);
        MUST(e->off <= s->file.size && e->len <= s->file.size - e->off,
             "%s: extent %u is outside of the file", who, i);
        MUST(e->off + e->len <= a->info.zone.head || e->off >= a->info.zone.tail,
             "%s: extent %u at %llu is outside of the zone", who, i, (unsigned long long)e->off);
        MUST(!e->has_was, "%s: extent %u has bytes of a plan before", who, i);
        sparse_read(&s->file, e->off, stands, e->len);
        MUST(memcmp(stands, sealed ? e->sealed : e->truth, e->len) == 0,
             "%s: %s bytes of extent %u at %llu do not stand there", who,
             sealed ? "the sealed" : "the true", i, (unsigned long long)e->off);
        for (unsigned k = 0; k < i; k++)
            MUST(!overlap(e, &plan->ext[k]), "%s: extents %u and %u overlap", who, k, i);
    }
}

/* ---- plan ---- */

static int ask_plan(struct look *l, const struct subject *s, const struct answer *a,
                    enum seal_mode mode, struct plan *ret)
{
    const struct seal_policy policy = {.mode = mode, .holder = holder_of(s)};
    int r;

    for (;;) {
        look_ready(l);
        memset(ret, 0xa5, sizeof(*ret));
        r = a->format->plan(&l->view, &policy, ret);
        if (r != -EAGAIN)
            break;
        look_load(l, s, "plan", VIEW_WINDOWS);
    }
    look_done(l, "plan");
    MUST(r == 0 || r == -EUCLEAN, "plan answers %d", r);
    return r;
}

static bool same_plan(const struct plan *a, const struct plan *b)
{
    if (a->n != b->n)
        return false;
    for (unsigned i = 0; i < a->n; i++)
        if (a->ext[i].off != b->ext[i].off || a->ext[i].len != b->ext[i].len ||
            memcmp(a->ext[i].truth, b->ext[i].truth, a->ext[i].len) != 0 ||
            memcmp(a->ext[i].sealed, b->ext[i].sealed, a->ext[i].len) != 0)
            return false;
    return true;
}

/* Probe and plan on a view of their own. -EUCLEAN also when probe does not answer YES; *ret_answer
 * says. */
static int plan_afresh(const struct subject *s, enum preload preload, enum seal_mode mode,
                       struct answer *ret_answer, struct plan *ret)
{
    struct look l;
    int r = -EUCLEAN;

    look_init(&l, s, preload);
    contract_probe(&l, s, ret_answer);
    if (ret_answer->probe == PROBE_YES)
        r = ask_plan(&l, s, ret_answer, mode, ret);
    look_free(&l);
    return r;
}

/* Nothing between head and tail is looked at by a plan: with zeros there, an image that still
 * passes has the same plan. */
static void check_zone(struct subject *s, const struct answer *a, enum seal_mode mode,
                       const struct plan *plan)
{
    static uint8_t zeros[4096];
    const struct format_zone *zone = &a->info.zone;
    struct plan *other = malloc(sizeof(*other));
    struct sparse kept = s->file;
    struct answer b;
    int r;

    MUST(other, "no memory");
    for (unsigned i = 0; i < kept.n; i++) {
        uint64_t from = kept.piece[i].off, to = from + kept.piece[i].len;

        from = from < zone->head ? zone->head : from;
        to = to > zone->tail ? zone->tail : to;
        for (; from < to && s->file.n < SPARSE_PIECES + SPARSE_EDITS; from += sizeof(zeros))
            sparse_write(&s->file, from, zeros,
                         to - from < sizeof(zeros) ? (size_t)(to - from) : sizeof(zeros));
    }
    r = plan_afresh(s, PRELOAD_REACH, mode, &b, other);
    s->file = kept;
    if (b.probe == PROBE_YES && b.format == a->format) {
        MUST(a->info.zone.head == b.info.zone.head && a->info.zone.tail == b.info.zone.tail,
             "the zone depends on bytes outside of it");
        MUST(r == 0 && same_plan(plan, other), "the plan depends on bytes outside of the zone");
    }
    free(other);
}

/* ---- seal and restore ---- */

/* One state on the way, of a seal or of a restore: `done` of the plan's extents are sealed. It is
 * SEALED, and never LIES: without a claim such a header is an orphan, and may not pass for one that
 * is merely damaged (option damaged=). With SEAL_SIZE nothing refuses but where the format has no
 * size; it stays this format, and where it lies then it says that it may be sealed. */
static void check_state(struct subject *s, const struct answer *whole, enum seal_mode mode,
                        unsigned done, unsigned of)
{
    struct answer a, b;
    struct look l;

    look_init(&l, s, PRELOAD_NONE);
    contract_probe(&l, s, &a);
    MUST(a.probe != PROBE_NO && a.format == whole->format,
         "with %u of %u extents sealed it is no %s any more (%d: %s)", done, of,
         whole->format->name, (int)a.probe, a.info.why);
    if (mode == SEAL_REFUSE)
        MUST(a.probe == PROBE_SEALED, "with %u of %u extents sealed probe answers %d (%s)", done,
             of, (int)a.probe, a.info.why);
    else
        MUST(a.probe != PROBE_LIES || a.info.maybe_sealed,
             "with %u of %u extents sealed by size it lies: %s", done, of, a.info.why);
    MUST(a.info.zone.head == whole->info.zone.head && a.info.zone.tail == whole->info.zone.tail,
         "with %u of %u extents sealed the zone is another one", done, of);
    MUST(a.info.guest_at_start == whole->info.guest_at_start,
         "with %u of %u extents sealed guest_at_start is another one", done, of);
    if (a.probe == PROBE_SEALED) {
        MUST(contract_links(&l, s, &a) == s->links,
             "with %u of %u extents sealed it has other links", done, of);
        contract_rescue(&l, s, &a);
    }
    look_free(&l);
    look_init(&l, s, s->format ? PRELOAD_REACH : PRELOAD_ENDS);
    contract_probe(&l, s, &b);
    look_free(&l);
    contract_same(&a, &b, "with other windows");
}

static void check_seal(struct subject *s, const struct answer *whole, enum seal_mode mode,
                       const struct plan *plan)
{
    unsigned n = s->file.n;
    struct answer a;
    struct look l;

    for (unsigned i = 0; i < plan->n; i++) {
        sparse_write(&s->file, plan->ext[i].off, plan->ext[i].sealed, plan->ext[i].len);
        check_state(s, whole, mode, i + 1, plan->n);
    }
    for (unsigned i = plan->n; i-- > 0;)
        sparse_write(&s->file, plan->ext[i].off, plan->ext[i].truth, plan->ext[i].len);
    look_init(&l, s, PRELOAD_REACH);
    contract_probe(&l, s, &a);
    look_free(&l);
    contract_same(whole, &a, "restored");
    s->file.n = n;
}

static void check_plan(struct look *l, struct subject *s, const struct answer *a,
                       enum seal_mode mode)
{
    struct plan *plan = malloc(2 * sizeof(*plan));
    struct answer b;
    int r;

    MUST(plan, "no memory");
    r = ask_plan(l, s, a, mode, &plan[0]);
    if (r == 0) {
        contract_extents(s, a, &plan[0], false, "plan");
        r = plan_afresh(s, PRELOAD_REACH, mode, &b, &plan[1]);
        MUST(r == 0 && same_plan(&plan[0], &plan[1]), "with other windows the plan is another one");
        check_zone(s, a, mode, &plan[0]);
        check_seal(s, a, mode, &plan[0]);
    }
    contract_seen.plans += r == 0;
    contract_seen.no_plan += r != 0;
    free(plan);
}

static void check_file(struct subject *s)
{
    struct answer a, b;
    struct look l;

    look_init(&l, s, s->format ? PRELOAD_REACH : PRELOAD_ENDS);
    contract_probe(&l, s, &b);
    look_free(&l);
    look_init(&l, s, s->format ? PRELOAD_NONE : PRELOAD_REACH);
    contract_probe_twice(&l, s, &a);
    contract_same(&a, &b, "with other windows");
    contract_seen.files++;
    contract_seen.yes += a.probe == PROBE_YES;
    contract_seen.sealed += a.probe == PROBE_SEALED;
    contract_seen.lies += a.probe == PROBE_LIES;
    if (a.probe == PROBE_YES) {
        s->whole = true;
        s->virtual_size = a.info.virtual_size;
        s->links = contract_links(&l, s, &a);
        check_plan(&l, s, &a, SEAL_REFUSE);
        check_plan(&l, s, &a, SEAL_SIZE);
    } else if (a.probe == PROBE_SEALED) {
        contract_links(&l, s, &a);
        contract_rescue(&l, s, &a);
    } else if (a.probe == PROBE_LIES && a.format) {
        contract_links(&l, s, &a);
    }
    look_free(&l);
}

void contract_check_format(const struct format *format, const uint8_t *data, size_t size)
{
    struct subject s = {.format = format};

    if (sparse_decode(&s.file, data, size))
        check_file(&s);
}

void contract_check(const char *name, const uint8_t *data, size_t size)
{
    const struct format *format = format_by_name(name);

    MUST(format || strcmp(name, "all") == 0, "there is no format \"%s\"", name);
    contract_check_format(format, data, size);
}
