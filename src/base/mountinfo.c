/* mountinfo.c: see mountinfo.h. */
#include "base/mountinfo.h"

#include <string.h>

FILE *mountinfo_open(void)
{
    return fopen("/proc/self/mountinfo", "re");
}

/* "36 35 98:0 /root /point options [optional ...] - type source options" */
static bool parse(char *line, struct mountinfo *ret)
{
    char *field[6], *word;

    line[strcspn(line, "\n")] = '\0';
    for (unsigned k = 0; k < 6; k++)
        field[k] = strsep(&line, " ");
    do
        word = strsep(&line, " ");
    while (word && strcmp(word, "-") != 0);
    char *type = strsep(&line, " "), *source = strsep(&line, " ");
    if (!source || sscanf(field[0], "%u", &ret->id) != 1 ||
        sscanf(field[2], "%u:%u", &ret->major, &ret->minor) != 2)
        return false;
    base_unescape_octal(field[3]);
    base_unescape_octal(field[4]);
    base_unescape_octal(source);
    ret->root = field[3];
    ret->point = field[4];
    ret->type = type;
    ret->source = source;
    ret->options = line ? line : "";
    return true;
}

bool mountinfo_next(FILE *f, struct mountinfo *m)
{
    while (getline(&m->line, &m->size, f) >= 0)
        if (parse(m->line, m))
            return true;
    return false;
}

void mountinfo_free(struct mountinfo *m)
{
    free(m->line);
    *m = (struct mountinfo){0};
}

int mountinfo_find(bool (*match)(const struct mountinfo *m, const void *arg), const void *arg,
                   struct mountinfo *ret)
{
    struct mountinfo m = {0};
    int r = -ENOENT;
    FILE *f = mountinfo_open();

    if (!f)
        return -errno;
    while (mountinfo_next(f, &m)) {
        if (!match(&m, arg))
            continue;
        if (r == 0)
            mountinfo_free(ret);
        *ret = m;
        m = (struct mountinfo){0};
        r = 0;
    }
    mountinfo_free(&m);
    fclose(f);
    return r;
}

static bool has_id(const struct mountinfo *m, const void *arg)
{
    return m->id == *(const unsigned *)arg;
}

int mountinfo_find_id(unsigned id, struct mountinfo *ret)
{
    return mountinfo_find(has_id, &id, ret);
}
