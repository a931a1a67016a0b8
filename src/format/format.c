/* format.c: the table of formats, and the one that matches a file. See format.h. */
#include "format/format.h"

#include <stdio.h>
#include <string.h>

static const struct format *const formats[] = {
    &format_qcow2,
    &format_raw,
};
#define FORMATS (sizeof(formats) / sizeof(formats[0]))

const uint8_t *view_get(struct view *v, uint64_t off, size_t len)
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

static void add_name(char *names, size_t size, const char *name)
{
    size_t used = strlen(names);

    snprintf(names + used, size - used, "%s%s", used ? " and " : "", name);
}

static enum verdict verdict_of(enum probe answer)
{
    return answer == PROBE_YES ? FORMAT_IMAGE : answer == PROBE_SEALED ? FORMAT_SEALED : FORMAT_LIES;
}

enum verdict format_identify(struct view *v, const struct format **ret_format, struct format_info *ret_info)
{
    const struct format *found = NULL;
    struct format_info found_info = {0};
    enum verdict verdict = FORMAT_PLAIN;
    char names[FORMAT_WHY / 2] = "";
    unsigned matches = 0;

    *ret_format = NULL;
    memset(ret_info, 0, sizeof(*ret_info));
    v->want_len = 0;
    for (size_t i = 0; i < FORMATS; i++) {
        struct format_info info = {0};
        enum probe answer = formats[i]->probe(v, &info);

        if (answer == PROBE_MORE)
            return FORMAT_MORE;
        if (answer == PROBE_NO)
            continue;
        matches++;
        add_name(names, sizeof(names), formats[i]->name);
        found = formats[i];
        found_info = info;
        verdict = verdict_of(answer);
    }
    if (matches > 1) {
        snprintf(ret_info->why, sizeof(ret_info->why), "the header matches %s", names);
        return FORMAT_AMBIGUOUS;
    }
    *ret_format = found;
    *ret_info = found_info;
    return verdict;
}

const struct format *format_by_name(const char *name)
{
    for (size_t i = 0; i < FORMATS; i++)
        if (strcmp(formats[i]->name, name) == 0)
            return formats[i];
    return NULL;
}
