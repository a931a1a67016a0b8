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
    const char *above = name + SHARD_KEY_DIGITS + 1, *digits = above + SHARD_KEY_DIGITS + 1;
    struct dependency m;

    if (!shard_key(name, &m.below) || above[-1] != '-' || !shard_key(above, &m.above) ||
        digits[-1] != '.' || *digits == '0' || base_u64(digits, &m.generation) < 0)
        return false;
    *ret = m;
    return true;
}

int dependency_make(const struct store *s, const struct dependency *m, const char *text)
{
    char name[DEPENDENCY_NAME_SIZE];

    dependency_name(m, name);
    return names_make(s, SHARD_MARKS, name, text);
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
    int r =
        names_list(s, SHARD_MARKS, below, sizeof(**ret), take_dependency, &below, &items, ret_n);

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
    _cleanup_free_ char *text = NULL;
    char name[DEPENDENCY_NAME_SIZE];
    size_t n = 0;

    dependency_name(m, name);
    int r = names_text(s, SHARD_MARKS, name, DEPENDENCY_TEXT_MAX, &text, &n);
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

static int remove_dependency(const struct store *s, const struct dependency *m)
{
    char name[DEPENDENCY_NAME_SIZE];

    dependency_name(m, name);
    return names_remove(s, SHARD_MARKS, name);
}

int dependency_drop(const struct store *s, uint64_t above, uint64_t generation,
                    const uint64_t *below, size_t n_below)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < n_below; i++)
        r = remove_dependency(s, &(struct dependency){below[i], above, generation});
    return r;
}

int dependency_sweep(const struct store *s, bool dry_run, unsigned *ret_void)
{
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    _cleanup_free_ struct dependency *m = NULL;
    unsigned found = 0;
    size_t n = 0;
    int r = c ? dependency_list(s, 0, &m, &n) : -ENOMEM;

    for (size_t i = 0; r == 0 && i < n; i++) {
        r = dependency_counts(s, &m[i], c);
        if (r != 0) {
            r = r < 0 ? r : 0;
            continue;
        }
        found++;
        r = dry_run ? 0 : remove_dependency(s, &m[i]);
    }
    if (r < 0)
        return r;
    *ret_void = found;
    return 0;
}
