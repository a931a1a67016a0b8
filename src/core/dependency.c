/* dependency.c: see dependency.h. */
#include "core/dependency.h"

#include <stdio.h>
#include <string.h>

#include "core/names.h"

/* ---- names ---- */

void dependency_name(const struct dependency *m, char ret[DEPENDENCY_NAME_SIZE])
{
    snprintf(ret, DEPENDENCY_NAME_SIZE, "%016llx-%016llx.%llu", (unsigned long long)m->below,
             (unsigned long long)m->above, (unsigned long long)m->generation);
}

bool dependency_name_parse(const char *name, struct dependency *ret)
{
    const char *above = name + NAMES_KEY_DIGITS + 1, *digits = above + NAMES_KEY_DIGITS + 1;
    struct dependency m;

    if (!names_key(name, &m.below) || above[-1] != '-' || !names_key(above, &m.above) ||
        digits[-1] != '.' || *digits == '0' || base_u64(digits, &m.generation) < 0)
        return false;
    *ret = m;
    return true;
}

int dependency_make(const struct store *s, const struct dependency *m, const char *text)
{
    char name[DEPENDENCY_NAME_SIZE];

    dependency_name(m, name);
    return names_make(s, DEPENDENCY_DIR, name, text);
}

/* ---- listings ---- */

/* arg: the file below that is wanted, or 0. */
static bool take_dependency(void *arg, const char *name, void *ret)
{
    const uint64_t *below = arg;
    struct dependency *one = ret;

    return dependency_name_parse(name, one) && (*below == 0 || one->below == *below);
}

int dependency_list(const struct store *s, uint64_t below, struct dependency **ret, size_t *ret_n)
{
    void *items = NULL;
    int r = names_list(s, DEPENDENCY_DIR, sizeof(**ret), take_dependency, &below, &items, ret_n);

    if (r == 0)
        *ret = items;
    return r;
}

int dependency_counts(const struct store *s, const struct dependency *m, struct claim *ret)
{
    int r = claim_read_known(s, m->above, m->generation, ret);

    if (r < 0)
        return r;
    return ret->generation == m->generation && (ret->kind == CLAIM_HELD || ret->kind == CLAIM_BAD);
}

int dependency_path(const struct store *s, const struct dependency *m, char *ret, size_t size)
{
    static const char begin[] = "\nbelow=", end[] = "\nabove=";
    _cleanup_close_ int dir = names_open(s, DEPENDENCY_DIR);
    _cleanup_free_ char *text = NULL;
    char name[DEPENDENCY_NAME_SIZE];
    size_t n = 0;

    dependency_name(m, name);
    int r = dir < 0 ? dir : io_fresh_text(dir, name, DEPENDENCY_TEXT_MAX, &text, &n);
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

static int remove_dependency(int dir, const struct dependency *m)
{
    char name[DEPENDENCY_NAME_SIZE];

    dependency_name(m, name);
    return names_remove(dir, name);
}

static bool is_kept(uint64_t below, const uint64_t *keep, size_t n_keep)
{
    for (size_t i = 0; keep && i < n_keep; i++)
        if (keep[i] == below)
            return true;
    return false;
}

int dependency_drop(const struct store *s, uint64_t above, uint64_t generation,
                    const uint64_t *keep, size_t n_keep)
{
    _cleanup_close_ int dir = names_open(s, DEPENDENCY_DIR);
    _cleanup_free_ struct dependency *m = NULL;
    size_t n = 0;
    int r = dir < 0 ? dir : dependency_list(s, 0, &m, &n);

    for (size_t i = 0; r == 0 && i < n; i++)
        if (m[i].above == above && m[i].generation == generation &&
            !is_kept(m[i].below, keep, n_keep))
            r = remove_dependency(dir, &m[i]);
    return r == -ENOENT ? 0 : r;
}

int dependency_sweep(const struct store *s, bool dry_run, unsigned *ret_void)
{
    _cleanup_close_ int dir = names_open(s, DEPENDENCY_DIR);
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    _cleanup_free_ struct dependency *m = NULL;
    unsigned found = 0;
    size_t n = 0;
    int r = !c ? -ENOMEM : dir < 0 ? dir : dependency_list(s, 0, &m, &n);

    for (size_t i = 0; r == 0 && i < n; i++) {
        r = dependency_counts(s, &m[i], c);
        if (r != 0) {
            r = r < 0 ? r : 0;
            continue;
        }
        found++;
        r = dry_run ? 0 : remove_dependency(dir, &m[i]);
    }
    if (r < 0 && r != -ENOENT)
        return r;
    *ret_void = found;
    return 0;
}
