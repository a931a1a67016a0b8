/* mark.c: see mark.h. */
#include "core/mark.h"

#include <stdio.h>
#include <string.h>

#include "core/names.h"

/* ---- names ---- */

void mark_name(const struct mark *m, char ret[MARK_NAME_SIZE])
{
    snprintf(ret, MARK_NAME_SIZE, "%016llx-%016llx.%llu", (unsigned long long)m->below,
             (unsigned long long)m->above, (unsigned long long)m->generation);
}

bool mark_name_parse(const char *name, struct mark *ret)
{
    const char *above = name + NAMES_KEY_DIGITS + 1, *digits = above + NAMES_KEY_DIGITS + 1;
    struct mark m;

    if (!names_key(name, &m.below) || above[-1] != '-' || !names_key(above, &m.above) ||
        digits[-1] != '.' || *digits == '0' || base_u64(digits, &m.generation) < 0)
        return false;
    *ret = m;
    return true;
}

int mark_make(const struct store *s, const struct mark *m, const char *text)
{
    char name[MARK_NAME_SIZE];

    mark_name(m, name);
    return names_make(s, MARK_DIR, name, text);
}

/* ---- listings ---- */

/* arg: the file below that is wanted, or 0. */
static bool take_mark(void *arg, const char *name, void *ret)
{
    const uint64_t *below = arg;
    struct mark *one = ret;

    return mark_name_parse(name, one) && (*below == 0 || one->below == *below);
}

int mark_list(const struct store *s, uint64_t below, struct mark **ret, size_t *ret_n)
{
    void *items = NULL;
    int r = names_list(s, MARK_DIR, sizeof(**ret), take_mark, &below, &items, ret_n);

    if (r == 0)
        *ret = items;
    return r;
}

int mark_counts(const struct store *s, const struct mark *m, struct claim *ret)
{
    int r = claim_read_known(s, m->above, m->generation, ret);

    if (r < 0)
        return r;
    return ret->generation == m->generation && (ret->kind == CLAIM_HELD || ret->kind == CLAIM_BAD);
}

int mark_path(const struct store *s, const struct mark *m, char *ret, size_t size)
{
    static const char begin[] = "\nbelow=", end[] = "\nabove=";
    _cleanup_close_ int dir = names_open(s, MARK_DIR);
    _cleanup_free_ char *text = NULL;
    char name[MARK_NAME_SIZE];
    size_t n = 0;

    mark_name(m, name);
    int r = dir < 0 ? dir : io_fresh_text(dir, name, MARK_TEXT_MAX, &text, &n);
    if (r < 0)
        return r;
    const char *from = memmem(text, n, begin, strlen(begin));
    from = from ? from + strlen(begin) : NULL;
    const char *to = from ? memmem(from, n - (size_t)(from - text), end, strlen(end)) : NULL;
    if (!to || (size_t)(to - from) >= size)
        return -ENOENT;
    memcpy(ret, from, (size_t)(to - from));
    ret[to - from] = '\0';
    return 0;
}

/* ---- removing ---- */

static int remove_mark(int dir, const struct mark *m)
{
    char name[MARK_NAME_SIZE];

    mark_name(m, name);
    return names_remove(dir, name);
}

static bool is_kept(uint64_t below, const uint64_t *keep, size_t n_keep)
{
    for (size_t i = 0; keep && i < n_keep; i++)
        if (keep[i] == below)
            return true;
    return false;
}

int mark_drop(const struct store *s, uint64_t above, uint64_t generation, const uint64_t *keep,
              size_t n_keep)
{
    _cleanup_close_ int dir = names_open(s, MARK_DIR);
    _cleanup_free_ struct mark *m = NULL;
    size_t n = 0;
    int r = dir < 0 ? dir : mark_list(s, 0, &m, &n);

    for (size_t i = 0; r == 0 && i < n; i++)
        if (m[i].above == above && m[i].generation == generation &&
            !is_kept(m[i].below, keep, n_keep))
            r = remove_mark(dir, &m[i]);
    return r == -ENOENT ? 0 : r;
}

int mark_sweep(const struct store *s, bool dry_run, unsigned *ret_void)
{
    _cleanup_close_ int dir = names_open(s, MARK_DIR);
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    _cleanup_free_ struct mark *m = NULL;
    unsigned found = 0;
    size_t n = 0;
    int r = !c ? -ENOMEM : dir < 0 ? dir : mark_list(s, 0, &m, &n);

    for (size_t i = 0; r == 0 && i < n; i++) {
        r = mark_counts(s, &m[i], c);
        if (r != 0) {
            r = r < 0 ? r : 0;
            continue;
        }
        found++;
        r = dry_run ? 0 : remove_mark(dir, &m[i]);
    }
    if (r < 0 && r != -ENOENT)
        return r;
    *ret_void = found;
    return 0;
}
