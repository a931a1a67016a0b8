/* contract_view.c: windows of a sparse file, given out as they are wanted; and the probe, asked
 * until it is satisfied. See contract.h. */
#include "contract.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void contract_breach(const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "contract broken: ");
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\n");
    abort();
}

static void add_window(struct look *l, const struct subject *s, uint64_t off, size_t len)
{
    unsigned n = l->view.n;

    l->mem[n] = malloc(len);
    MUST(l->mem[n], "no memory for a window of %zu", len);
    sparse_read(&s->file, off, l->mem[n], len);
    l->view.win[n].off = off;
    l->view.win[n].len = len;
    l->view.win[n].data = l->mem[n];
    l->view.n++;
}

void look_init(struct look *l, const struct subject *s, enum preload preload)
{
    uint64_t size = s->file.size;

    memset(l, 0, sizeof(*l));
    l->view.file_size = size;
    if (preload != PRELOAD_NONE && size > 0)
        add_window(l, s, 0, size < FORMAT_REACH ? (size_t)size : FORMAT_REACH);
    if (preload == PRELOAD_ENDS && size > 512)
        add_window(l, s, size - 512, 512);
    l->preloaded = l->view.n;
}

void look_free(struct look *l)
{
    for (unsigned i = 0; i < l->view.n; i++)
        free(l->mem[i]);
}

void look_ready(struct look *l)
{
    l->view.want_off = 0xdeadbeefdeadbeef;
    l->view.want_len = 0;
}

void look_load(struct look *l, const struct subject *s, const char *who, unsigned most)
{
    uint64_t off = l->view.want_off;
    size_t len = l->view.want_len;

    MUST(len > 0, "%s wants more, but nothing is wanted", who);
    MUST(len <= FORMAT_WINDOW_MAX, "%s wants %zu bytes in one window", who, len);
    MUST(off <= s->file.size && len <= s->file.size - off,
         "%s wants %zu bytes at %llu, outside of a file of %llu", who, len, (unsigned long long)off,
         (unsigned long long)s->file.size);
    for (unsigned i = 0; i < l->view.n; i++)
        MUST(off < l->view.win[i].off || off + len > l->view.win[i].off + l->view.win[i].len,
             "%s wants %zu bytes at %llu, which are loaded", who, len, (unsigned long long)off);
    MUST(l->view.n - l->preloaded < most && l->view.n < VIEW_WINDOWS,
         "%s wants more than %u windows", who, most);
    add_window(l, s, off, len);
}

void look_done(const struct look *l, const char *who)
{
    MUST(l->view.want_len == 0, "%s answers although %zu bytes at %llu are not loaded", who,
         l->view.want_len, (unsigned long long)l->view.want_off);
}

static enum probe probe_of(enum verdict verdict)
{
    switch (verdict) {
    case FORMAT_PLAIN:
        return PROBE_NO;
    case FORMAT_IMAGE:
        return PROBE_YES;
    case FORMAT_SEALED:
        return PROBE_SEALED;
    case FORMAT_LIES:
    case FORMAT_AMBIGUOUS:
        return PROBE_LIES;
    case FORMAT_MORE:
        return PROBE_MORE;
    }
    contract_breach("verdict %d", (int)verdict);
}

static void ask(struct look *l, const struct subject *s, struct answer *ret)
{
    memset(ret, 0, sizeof(*ret));
    if (!s->format) {
        enum verdict verdict = format_identify(&l->view, &ret->format, &ret->info);
        bool one = verdict == FORMAT_IMAGE || verdict == FORMAT_SEALED || verdict == FORMAT_LIES;

        ret->probe = probe_of(verdict);
        MUST(one == (ret->format != NULL), "verdict %d %s a format", (int)verdict,
             one ? "without" : "with");
        return;
    }
    ret->info.zone.head = FORMAT_REACH;
    ret->info.zone.tail = UINT64_MAX;
    ret->probe = s->format->probe(&l->view, &ret->info);
    MUST(ret->probe >= PROBE_NO && ret->probe <= PROBE_MORE, "probe answers %d", (int)ret->probe);
    ret->format = ret->probe == PROBE_NO ? NULL : s->format;
}

static void check_info(const struct subject *s, const struct answer *a)
{
    const char *end = memchr(a->info.why, '\0', sizeof(a->info.why));

    if (a->probe == PROBE_NO)
        return;
    MUST(end, "info->why does not end");
    MUST((a->probe != PROBE_LIES && a->probe != PROBE_SEALED) || end > a->info.why,
         "probe answers %d and does not say why", (int)a->probe);
    for (const char *p = a->info.why; p < end; p++)
        MUST((unsigned char)*p >= 0x20 && (unsigned char)*p != 0x7f,
             "info->why has a control character");
    MUST(a->info.zone.head >= FORMAT_REACH, "a zone whose head is only %llu",
         (unsigned long long)a->info.zone.head);
    MUST(a->info.zone.head <= FORMAT_HEAD_MAX, "a zone that goes on to %llu",
         (unsigned long long)a->info.zone.head);
    MUST(a->info.zone.tail == UINT64_MAX || s->file.size < FORMAT_TAIL_MAX ||
             a->info.zone.tail >= s->file.size - FORMAT_TAIL_MAX,
         "a zone that begins at %llu", (unsigned long long)a->info.zone.tail);
}

/* Asks until the answer is final. */
void contract_probe(struct look *l, const struct subject *s, struct answer *ret)
{
    for (;;) {
        look_ready(l);
        ask(l, s, ret);
        if (ret->probe != PROBE_MORE)
            break;
        look_load(l, s, "probe", s->format ? VIEW_WINDOWS - 2 : VIEW_WINDOWS);
    }
    look_done(l, "probe");
    check_info(s, ret);
}

void contract_probe_twice(struct look *l, const struct subject *s, struct answer *ret)
{
    struct answer again;

    contract_probe(l, s, ret);
    ask(l, s, &again);
    contract_same(ret, &again, "asked twice");
}

void contract_same(const struct answer *a, const struct answer *b, const char *what)
{
    MUST(a->probe == b->probe && a->format == b->format, "%s: probe answers %d (%s) and %d (%s)",
         what, (int)a->probe, a->info.why, (int)b->probe, b->info.why);
    if (a->probe == PROBE_NO)
        return;
    MUST(a->info.virtual_size == b->info.virtual_size, "%s: sizes %llu and %llu", what,
         (unsigned long long)a->info.virtual_size, (unsigned long long)b->info.virtual_size);
    MUST(a->info.zone.head == b->info.zone.head && a->info.zone.tail == b->info.zone.tail,
         "%s: zones differ", what);
    MUST(a->info.guest_at_start == b->info.guest_at_start, "%s: guest_at_start differs", what);
    MUST(strcmp(a->info.why, b->info.why) == 0, "%s: \"%s\" and \"%s\"", what, a->info.why,
         b->info.why);
}
