/* format.c: the table of formats, and the one that matches a file. See format.h. */
#include "format/format.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct format *const formats[] = {
    &format_qcow2, &format_vhd,       &format_vhdx, &format_qcow, &format_vmdk, &format_vdi,
    &format_qed,   &format_parallels, &format_luks, &format_iso,  &format_raw,
};
#define FORMATS (sizeof(formats) / sizeof(formats[0]))

const uint8_t *view_get(struct excerpt *v, uint64_t off, size_t len)
{
    if (len == 0 || off > v->file_size || len > v->file_size - off)
        return NULL;
    for (unsigned i = 0; i < v->n; i++) {
        uint64_t skip = off - v->win[i].off;

        if (off >= v->win[i].off && skip <= v->win[i].len && len <= v->win[i].len - skip)
            return v->win[i].data + skip;
    }
    v->want_off = off;
    v->want_len = len;
    return NULL;
}

bool format_lies(struct format_info *info, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(info->why, sizeof(info->why), fmt, ap);
    va_end(ap);
    return false;
}

int plan_add(struct plan *plan, uint64_t off, const void *truth, const void *sealed, size_t len)
{
    struct extent *e;

    if (plan->n >= PLAN_MAX || len < 1 || len > EXTENT_MAX)
        return -EUCLEAN;
    e = &plan->ext[plan->n++];
    memset(e, 0, sizeof(*e));
    e->off = off;
    e->len = (uint32_t)len;
    memcpy(e->truth, truth, len);
    memcpy(e->sealed, sealed, len);
    return 0;
}

void rescue_add(struct rescue *to, enum rescue_kind kind, uint64_t size, const char *source)
{
    if (to->n >= RESCUE_MAX || (size == 0 && kind != RESCUE_EXACT))
        return;
    to->candidate[to->n].kind = kind;
    to->candidate[to->n].size = size;
    to->candidate[to->n++].source = source;
}

static void add_name(char *names, size_t size, const char *name)
{
    size_t used = strlen(names);

    snprintf(names + used, size - used, "%s%s", used ? " and " : "", name);
}

static enum verdict verdict_of(enum probe answer)
{
    return answer == PROBE_YES      ? FORMAT_IMAGE
           : answer == PROBE_SEALED ? FORMAT_SEALED
                                    : FORMAT_LIES;
}

struct match {
    const struct format *format;
    enum probe answer;
    struct format_info info;
};

/* A partition table or a volume descriptor at the start says nothing in two cases: the start of the
 * file is guest data, or two formats without a header of their own match (a bootable ISO has an MBR
 * as well). Then the first match counts. */
static bool yields(const struct match *weak, const struct match *to)
{
    return weak->format->weak && (to->info.guest_at_start || to->format->weak);
}

/* Leaves out formats that yield to another one. The order of the table stays. */
static unsigned contenders(struct match *m, unsigned n)
{
    unsigned left = 0;

    for (unsigned i = 0; i < n; i++) {
        bool out = false;
        for (unsigned j = 0; j < n && !out; j++)
            out = j != i && yields(&m[i], &m[j]) && !(yields(&m[j], &m[i]) && i < j);
        if (!out)
            m[left++] = m[i];
    }
    return left;
}

static enum verdict ambiguous(const struct match *m, unsigned n, struct format_info *ret_info)
{
    char names[FORMAT_WHY / 2] = "";

    for (unsigned i = 0; i < n; i++) {
        add_name(names, sizeof(names), m[i].format->name);
        if (ret_info->zone.head < m[i].info.zone.head)
            ret_info->zone.head = m[i].info.zone.head;
        if (ret_info->zone.tail > m[i].info.zone.tail)
            ret_info->zone.tail = m[i].info.zone.tail;
    }
    snprintf(ret_info->why, sizeof(ret_info->why), "the header matches %s", names);
    return FORMAT_AMBIGUOUS;
}

enum verdict format_identify(struct excerpt *v, const struct format **ret_format,
                             struct format_info *ret_info)
{
    const struct format_info unknown = {.zone = {.head = FORMAT_REACH, .tail = UINT64_MAX}};
    struct match m[FORMATS];
    unsigned n = 0;

    *ret_format = NULL;
    *ret_info = unknown;
    v->want_len = 0;
    for (size_t i = 0; i < FORMATS; i++) {
        m[n] = (struct match){.format = formats[i], .info = unknown};
        m[n].answer = formats[i]->probe(v, &m[n].info);
        if (m[n].answer == PROBE_MORE)
            return FORMAT_MORE;
        n += m[n].answer != PROBE_NO;
    }
    n = contenders(m, n);
    if (n == 0)
        return FORMAT_PLAIN;
    if (n > 1)
        return ambiguous(m, n, ret_info);
    *ret_format = m[0].format;
    *ret_info = m[0].info;
    return verdict_of(m[0].answer);
}

const struct format *format_by_name(const char *name)
{
    for (size_t i = 0; i < FORMATS; i++)
        if (strcmp(formats[i]->name, name) == 0)
            return formats[i];
    return NULL;
}
