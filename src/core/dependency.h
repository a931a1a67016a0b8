/* dependency.h: which files an image that is held needs: the names in
 * DATASTORE/.diskguard/marks/<shard>.
 *
 * A dependency is a name: <key of the file below>-<key of the image above>.<generation of the claim
 * of the image above>. Its content is a text for people. It counts only while that generation is
 * the ruling claim of the image above, and held. So a dependency that a crash or a takeover leaves
 * is void by itself. No two holds use the same name, because no two have the same generation.
 *
 * While the image is held, a dependency is removed in one case only: its header was rewritten to
 * need other files, and that header is durable. Before that, a crash could bring back the header
 * that needs the former files.
 *
 * One host may want to hold an image while another wants to write a file below it. The holder
 * makes the dependency durably, then reads the claim of the file below. The writer makes his claim
 * durably, then lists the dependencies. At least one sees the other (Dekker). Dependencies are
 * never renamed, so a listing that begins after a dependency was made shows it.
 *
 * The shard is that of the file below: who wants to write it lists one directory. Blocks on the
 * datastore. Thread-safe: no state of its own. */
#ifndef DISKGUARD_DEPENDENCY_H
#define DISKGUARD_DEPENDENCY_H

#include "core/claim.h"

#define DEPENDENCY_NAME_SIZE (16 + 1 + 16 + 1 + 20 + 1)
/* bytes, for people and dependency_path(): a line "below=NAME", then "above=NAME" */
#define DEPENDENCY_TEXT_MAX 4096u

struct dependency {
    uint64_t below, above; /* inode numbers */
    uint64_t generation;   /* of the claim of `above` */
};

void dependency_name(const struct dependency *m, char ret[DEPENDENCY_NAME_SIZE]);
bool dependency_name_parse(const char *name, struct dependency *ret); /* one spelling each, as of
                                                                         claims */

/* Makes it, durably; one that is there already is as good. text: for people. 0 or -errno. */
DG_MUST_CHECK int dependency_make(const struct store *s, const struct dependency *m,
                                  const char *text);

/* All dependencies, or (below not 0) those of one file, fresh. *ret is freed by the caller. */
DG_MUST_CHECK int dependency_list(const struct store *s, uint64_t below, struct dependency **ret,
                                  size_t *ret_n);

/* The name, below the datastore, that the file below had when the dependency was made: from its
 * text. 0, -ENOENT (void, or no text) or -errno. */
DG_MUST_CHECK int dependency_path(const struct store *s, const struct dependency *m, char *ret,
                                  size_t size);

/* Does it count now? 1, 0 or -errno. *ret: the claim of the image above, as it was read. A claim
 * that is BAD counts, because nobody can tell. */
DG_MUST_CHECK int dependency_counts(const struct store *s, const struct dependency *m,
                                    struct claim *ret);

/* Removes the dependencies of one hold on these files. Its claim is free, or was never there; or it
 * needs them no more, and that is durable. Not durable: one that comes back is void, or goes with
 * the rest of the hold. */
DG_MUST_CHECK int dependency_drop(const struct store *s, uint64_t above, uint64_t generation,
                                  const uint64_t *below, size_t n_below);

/* Removes all dependencies that do not count. dry_run: only counts them. */
DG_MUST_CHECK int dependency_sweep(const struct store *s, bool dry_run, unsigned *ret_void);

#endif
