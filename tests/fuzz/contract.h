/* contract.h: runs a format over a file that the fuzzer wrote (sparse.h) and aborts where it breaks
 * the contract of format/format.h.
 *
 * The code under test gets exactly the bytes that it wants, each window in memory of its own of
 * exactly that size, so that ASan and valgrind see each read outside. What is checked beyond that
 * stands at each check, in contract.c (probe, plan, seal) and contract_undo.c (rescue, links). */
#ifndef DISKGUARD_FUZZ_CONTRACT_H
#define DISKGUARD_FUZZ_CONTRACT_H

#include "format/format.h"
#include "sparse.h"

/* The format under that name; "all": the whole table through format_identify(). Returns after a run
 * without a breach, aborts after one. */
void contract_check(const char *name, const uint8_t *data, size_t size);
/* The same for a format that is not in the table; NULL: all. */
void contract_check_format(const struct format *format, const uint8_t *data, size_t size);

/* True: the files are images that real tools made, so the bounds that rescue states must hold, and
 * the right size must pass. A fuzzer's image can have tables that contradict its header where no
 * probe looks; bounds that come from them say nothing. */
extern bool contract_bounds;

/* How often something was reached, so that a corpus can be judged. */
struct contract_seen {
    unsigned long files, yes, sealed, lies, plans, no_plan, rescued, no_size, no_rescue, links;
};
extern struct contract_seen contract_seen;

/* ---- between contract.c, contract_view.c and contract_undo.c ---- */

struct subject {
    const struct format *format; /* NULL: all */
    struct sparse file;
    bool whole; /* the file began as a whole image, of which this is known: */
    uint64_t virtual_size;
    uint64_t links; /* sum over the answers of links() */
};

struct answer {
    enum probe probe;
    const struct format *format; /* NULL for NO, and for two that match */
    struct format_info info;
};

/* The view of a file as one chain of calls on it sees it. */
struct look {
    struct excerpt view;
    uint8_t *mem[VIEW_WINDOWS];
    unsigned preloaded;
};

enum preload {
    PRELOAD_NONE,
    PRELOAD_REACH, /* the first FORMAT_REACH bytes, as the daemon does */
    PRELOAD_ENDS   /* these, and the last sector */
};

_Noreturn void contract_breach(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
#define MUST(c, ...)                                                                               \
    do {                                                                                           \
        if (!(c))                                                                                  \
            contract_breach(__VA_ARGS__);                                                          \
    } while (0)

void look_init(struct look *l, const struct subject *s, enum preload preload);
void look_free(struct look *l);
/* Before each call: nothing is wanted. */
void look_ready(struct look *l);
/* After a call that wants more: loads it. `all`: of all windows, else of those of one probe. */
void look_load(struct look *l, const struct subject *s, const char *who, unsigned most);
/* After a call that wants no more: it must not have been denied a byte. */
void look_done(const struct look *l, const char *who);

void contract_probe(struct look *l, const struct subject *s, struct answer *ret);
/* And once more: the same view, the same answer. */
void contract_probe_twice(struct look *l, const struct subject *s, struct answer *ret);
void contract_same(const struct answer *a, const struct answer *b, const char *what);
/* The extents of a plan against the file: `sealed`: what stands there is their sealed bytes, else
 * their true ones. */
void contract_extents(const struct subject *s, const struct answer *a, const struct plan *plan,
                      bool sealed, const char *who);
/* Both on a view that a probe answered YES or SEALED on. */
uint64_t contract_links(struct look *l, const struct subject *s, const struct answer *a);
void contract_rescue(struct look *l, struct subject *s, const struct answer *a);

#endif
