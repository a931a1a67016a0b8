/* ctl.h: the parts of diskguardctl.
 *
 *   diskguardctl.c  command line, init, retry
 *   ctl_daemon.c    finding views, asking their daemons
 *   ctl_raw.c       reading the datastore itself
 *   ctl_item.c      one image: what claim and daemon say of it, put together
 *   ctl_list.c      list, hosts         ctl_show.c  show         ctl_why.c  why, wait
 *   ctl_takeover.c  takeover            ctl_chain.c what an image needs
 *
 * A source is a view or a raw datastore. What its daemon knows comes at once and from memory; what
 * only the datastore knows needs root and storage that answers, so through a view it is read on a
 * thread of its own and given up after CTL_RAW_MS. */
#ifndef DISKGUARD_TOOLS_CTL_H
#define DISKGUARD_TOOLS_CTL_H

#include <sys/stat.h>

#include "common/mounts.h"
#include "common/out.h"
#include "core/claim.h"
#include "core/header.h"
#include "core/host.h"
#include "core/overlay.h"
#include "core/problem.h"
#include "core/reader.h"
#include "core/store.h"
#include "diskguard/exitcodes.h"

/* Limits of the search for images that have moved since they were claimed: names and time. */
#define CTL_FIND_NAMES 200000u
#define CTL_FIND_MS 3000u
/* a daemon answers from memory: one that takes longer does not answer */
#define CTL_DAEMON_MS 5000u
#define CTL_RAW_MS 15000u /* storage that takes longer is reported as not answering */

struct ctl {
    bool json, all, unproven;
    bool upgrade, fence_none; /* init */
    uint64_t size;            /* unseal: --size, bytes; 0: none */
    const char *datastore;    /* --datastore, or NULL */
    uint64_t timeout_ms;      /* wait, takeover; UINT64_MAX: for ever, or as the daemon has it */
    struct mounts mounts;
};

/* ---- ctl_raw.c ---- */

/* One key of claims/, without its plan. */
struct raw_claim {
    uint64_t ino, generation;
    enum claim_kind kind;
    int error;
    enum claim_step step;
    unsigned extents;
    char *path; /* as recorded */
    char *now;  /* where the file is now; NULL: it was not looked for, or (lost) not found */
    bool lost;
    struct io_handle handle; /* set for a held claim */
    char format[RECORD_FORMAT_MAX];
    uint64_t virtual_size, pid, start, uid, gid;
    char since[32];
    int sync_error;
    dg_uuid host, installation, boot, daemon;
    char host_name[RECORD_NAME_MAX];
};
struct raw_host {
    struct host_record rec;
    int err;       /* the record does not decode */
    int alive;     /* host_alive() */
    unsigned held; /* claims */
};
/* One file of the datastore, for show and why. */
struct raw_reader { /* a host that reads the image and wants no writer beside it */
    struct reader reader;
    struct reader_info info;
};
struct raw_needs { /* a file that the image needs, or an image that needs this file (then host is
                      set) */
    char role[16], path[RECORD_IMAGE_MAX], format[16], host[RECORD_NAME_MAX];
    bool itself; /* the image names itself */
    /* for a held image: is the file kept from other writers? 1, 0; -1: the image is not held */
    int guarded;
};
struct raw_image {
    int err;         /* why nothing below is filled, negative */
    char *link;      /* it is a symbolic link to this */
    bool other_fs;   /* mounted below the datastore */
    bool other_file; /* the claim is of another file that had this inode number */
    struct stat st;
    struct claim claim;
    int header_err;
    struct header header;
    enum header_state state; /* against the claim's plan */
    bool byte_locks;         /* somebody holds QEMU's locks "nobody else may write, resize" on it */
    bool writer_lock;        /* and "I write" */
    struct raw_needs *needs;
    size_t nneeds;
    unsigned protects; /* dependencies of its hold: files of its chain */
    struct raw_reader *readers;
    size_t nreaders;
};
struct raw {
    int err; /* the datastore cannot be read: why says it, nothing below is filled */
    struct why why;
    struct store store;
    struct raw_claim *claims;
    size_t nclaims;
    struct raw_host *hosts;
    size_t nhosts;
    struct raw_image *image; /* NULL unless asked for */
};
/* Reads the datastore at dir. rel: only this image and its claim, or NULL for all. all: free claims
 * too. limit_ms 0: no limit. Never NULL. A result that came too late is abandoned, with what it
 * holds. */
struct raw *raw_load(const char *dir, const char *rel, bool all, unsigned limit_ms);
void raw_free(struct raw *r);
const struct raw_host *raw_host_of(const struct raw *r, const char *uuid); /* or NULL */

/* ---- ctl_chain.c ---- */

/* Finds what the image needs, which images need it, and who reads it. Claim and header are loaded.
 * fd: the file, for reading; rel: its path below the datastore. */
DG_MUST_CHECK int chain_load(const struct store *s, struct raw_image *im, int fd, const char *rel);
void chain_text(const struct raw_image *im);
void chain_json(struct json_object *o, const struct raw_image *im);

/* ---- ctl_daemon.c ---- */

struct source {
    const struct mount *mount;  /* NULL with --datastore */
    const char *dir;            /* the datastore */
    struct json_object *status; /* the daemon's answers, or NULL */
    struct json_object *list;
    char daemon_why[256]; /* why it did not answer */
    struct raw *raw;
};
/* Sends a command to the daemon of a view. The answer ("ok" is true) or NULL with why. */
struct json_object *daemon_ask(const struct mount *m, const char *command, const char *image,
                               struct why *why);
/* The same with more members than the command; consumes request. */
struct json_object *daemon_request(const struct mount *m, const char *command,
                                   struct json_object *request, struct why *why);
/* Finds the process that serves the view: the one that made its control socket. *ret_pid 0: it is
 * in another pid namespace; *ret_pidfd is -1 then. 0 or -errno with why: -ENOENT no socket,
 * -ECONNREFUSED it is dead, -EAGAIN it does not answer. */
DG_MUST_CHECK int daemon_peer(const struct mount *m, pid_t *ret_pid, int *ret_pidfd,
                              struct why *why);
/* Fills all but raw. */
void source_open(struct source *s, const struct mount *m, const char *dir);
/* Reads the datastore, once; it must be the one that the daemon serves. */
void source_read(struct source *s, const char *rel, bool all);
void source_close(struct source *s);
void source_say_unreadable(const struct source *s); /* why the datastore could not be read */
const char *source_dir(const struct source *s);     /* the datastore, canonical where it is known */
/* The source that an IMAGE argument is in, and its path below the datastore. 0 or -errno with a
 * message printed. */
DG_MUST_CHECK int source_of_image(struct ctl *ctl, const char *arg, struct source *ret,
                                  char **ret_rel);

/* ---- ctl_item.c ---- */

struct item {
    const struct raw_claim *claim; /* or NULL */
    struct json_object *live;      /* the daemon's entry, or NULL */
    const struct raw_host *host;   /* record of the claim's host, or NULL */
};
struct items {
    struct item *item;
    size_t n;
};
/* All images that are held, by path. What a daemon says of its own images is laid over their
 * claims. */
void items_collect(const struct source *s, struct items *ret);
void items_free(struct items *i);
/* The item of one inode number; a zeroed item when there is none. */
struct item items_find(const struct items *i, uint64_t ino);

/* The present name if it was looked for, else the recorded one. */
const char *item_path(const struct item *i);
/* The recorded name leads elsewhere, and the file was not found. */
bool item_lost(const struct item *i);
/* free claimed sealed restoring stuck fenced ... unreadable */
const char *item_state(const struct item *i);
const char *item_holder(const struct source *s, const struct item *i);
bool item_sealed(const struct item *i); /* false: protected by its claim, and */
bool item_locked(
    /* by QEMU's byte locks, as this host's daemon says; for other hosts only the file itself tells
     */
    const struct item *i);
const char *item_protection(const struct item *i); /* a word, for programs */
bool item_is_held(const struct item *i);
/* Is the claim of this boot of this machine? Then its pid means something here. */
bool item_is_local(const struct item *i);
/* Is the claim of this host, in this boot or an earlier one? Nobody confirms the death of his own
 * host. */
bool item_is_own(const struct source *s, const struct item *i);

struct trouble {
    const char *code;       /* stable, for programs; NULL: none */
    char text[512];         /* what is wrong */
    char out[OUT_FILL_MAX]; /* the way out */
};
void trouble_set(struct trouble *t, const char *code, const char *out, const char *fmt, ...)
    DG_PRINTF(4, 5);
void trouble_from(struct trouble *t, enum problem p); /* the words of core/problem.h */
/* Puts the reader's own datastore and image, quoted, into the way out. */
void trouble_finish(struct trouble *t, const struct source *s, const char *path);
/* What is wrong with a held image, as far as claim and daemon tell. */
void item_trouble(const struct source *s, const struct item *i, struct trouble *ret);
struct json_object *item_json(const struct source *s, const struct item *i);

/* ---- ctl_show.c: one image, for show, why and wait ---- */

struct look {
    char *again; /* how to name the image in another call of diskguardctl, quoted */
    struct source source;
    char *rel; /* below the datastore */
    struct items items;
    struct item item; /* zeroed: nothing is known of a holder */
};
/* Does its name match shared=, the option of the daemon? Then many hosts may write it on purpose.
 * *ret_here: handles here that do. */
bool look_shared(const struct look *l, uint64_t *ret_here);
/* Finds the image and reads all that is known of it. 0 or -errno with a message printed. look_close
 * in either case. */
DG_MUST_CHECK int look_open(struct ctl *ctl, const char *arg, struct look *ret);
void look_close(struct look *l);
/* The file, its claim and its header, or NULL where the datastore cannot be read. */
const struct raw_image *look_image(const struct look *l);
/* item_trouble(), and what header and file handle tell. */
void look_trouble(const struct look *l, struct trouble *ret);
/* The record of the host that holds it, or NULL. */
const struct host_record *look_host(const struct look *l);

/* ---- ctl_takeover.c ---- */
/* Could the fence lock take over another host's image? false: the question does not arise; else the
 * answer and its reason. */
bool look_takeover(const struct look *l, bool *ret_possible, struct why *ret);

/* ---- commands: exit codes ---- */
int cmd_list(struct ctl *ctl, const char *view);
int cmd_hosts(struct ctl *ctl, const char *view);
int cmd_show(struct ctl *ctl, const char *image);
int cmd_why(struct ctl *ctl, const char *image);
int cmd_wait(struct ctl *ctl, const char *image);
int cmd_takeover(struct ctl *ctl, const char *image);

/* "ofd", "flock" or "none", for programs and people. */
const char *ctl_fence_word(enum fence_kind f);

/* Calls fn for each source that VIEW (NULL: all) or --datastore names. Returns the greatest exit
 * code. */
int each_source(struct ctl *ctl, const char *view,
                int (*fn)(struct ctl *ctl, struct source *s, void *arg), void *arg);

#endif
