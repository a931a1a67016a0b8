#include "state/state.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "state/word.h"

#define COUNT_MAX (UINT64_C(1) << 32) /* of anything: what a wrong preamble may claim */

struct state {
    int fd;
    bool own_fd;
    char *map;
    struct state_preamble p; /* a copy that nobody scribbles over */
};

/* Default sizes: more files than descriptors are rarely allowed, and what is not used costs
 * addresses alone. */
static const struct state_size default_size = {
    .count = {[STATE_INODES] = 1u << 21,
              [STATE_HANDLES] = 1u << 20,
              [STATE_IMAGES] = 1u << 18,
              [STATE_OWNERS] = 1u << 20},
    .slots = {[STATE_SMALL] = 1024, [STATE_BIG] = 64},
};

static const struct {
    const char *name;
    uint64_t entry, copies;
} tables[STATE_TABLES] = {
    [STATE_HEAD] = {"head", sizeof(struct state_head), 2},
    [STATE_INODES] = {"inodes", sizeof(struct state_inode), 2},
    [STATE_NAMES] = {"names", sizeof(struct state_name), 1},
    [STATE_HANDLES] = {"handles", sizeof(struct state_handle), 2},
    [STATE_IMAGES] = {"images", sizeof(struct state_image), 2},
    [STATE_OWNERS] = {"owners", sizeof(struct state_owner), 2},
};
/* a request, whose first bytes stand in a page before that: STATE_AHEAD */
static const uint64_t class_size[STATE_CLASSES] = {
    [STATE_SMALL] = 32u << 10, [STATE_BIG] = (1u << 20) + 4096};

#define WHOLE(type) _Static_assert(sizeof(type) % 8 == 0, #type " is in whole words")
WHOLE(struct state_head);
WHOLE(struct state_inode);
WHOLE(struct state_name);
WHOLE(struct state_handle);
WHOLE(struct state_image);
WHOLE(struct state_owner);
WHOLE(struct state_slot);

/* Before the entries of a table stands, in a word of its own, one more than the highest index that
 * was ever used. */
#define TABLE_START 64u

static uint64_t salt_of(enum state_table table, uint64_t index)
{
    return (uint64_t)table << 56 ^ index;
}
#define SALT_END UINT64_C(0x00ffffffffffffff)

/* ---- where what is ---- */

static uint64_t pages(uint64_t size, uint64_t page)
{
    return (size + page - 1) / page * page;
}

/* A region after a page that nobody can touch. */
static void place(struct state_region *r, uint64_t *at, uint64_t page)
{
    *at += page;
    r->off = *at;
    *at += r->size = pages(r->size, page);
}

static void plan(const struct state_size *size, struct state_preamble *p)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), at = pages(sizeof(*p), page);
    *p = (struct state_preamble){.magic = STATE_MAGIC, .layout = STATE_LAYOUT, .page = page};
    for (unsigned t = 0; t < STATE_TABLES; t++) {
        struct state_region *r = &p->table[t];
        unsigned like = t == STATE_NAMES ? STATE_INODES : t;
        r->count = size->count[like] ? size->count[like] : default_size.count[like];
        if (t == STATE_HEAD)
            r->count = 1;
        r->entry = tables[t].entry;
        r->copies = tables[t].copies;
        r->stride = sizeof(struct state_entry) + r->entry * r->copies;
        r->size = TABLE_START + r->count * r->stride;
        place(r, &at, page);
    }
    p->slots.stride = sizeof(struct state_slot);
    for (unsigned c = 0; c < STATE_CLASSES; c++) {
        struct state_region *r = &p->payload[c];
        r->count = size->slots[c] ? size->slots[c] : default_size.slots[c];
        p->slots.count += r->count;
        r->stride = page + pages(class_size[c], page);
        r->size = r->count * r->stride;
        r->entry = class_size[c];
    }
    p->slots.size = p->slots.count * p->slots.stride;
    place(&p->slots, &at, page);
    for (unsigned c = 0; c < STATE_CLASSES; c++)
        place(&p->payload[c], &at, page);
    p->size = at + page;
    p->sum = word_sum(p, offsetof(struct state_preamble, sum), 0);
}

/* ---- make, attach, free ---- */

static int guard_pages(struct state *s)
{
    uint64_t page = s->p.page;
    const struct state_region *all[STATE_TABLES + 1 + STATE_CLASSES];
    unsigned n = 0;
    for (unsigned t = 0; t < STATE_TABLES; t++)
        all[n++] = &s->p.table[t];
    all[n++] = &s->p.slots;
    for (unsigned c = 0; c < STATE_CLASSES; c++)
        all[n++] = &s->p.payload[c];
    for (unsigned i = 0; i < n; i++)
        if (mprotect(s->map + all[i]->off - page, page, PROT_NONE) < 0)
            return -errno;
    /* Guest data, and a core file that is written for longer makes the pause longer. */
    const struct state_region *slots = &s->p.slots;
    if (mprotect(s->map + s->p.size - page, page, PROT_NONE) < 0 ||
        madvise(s->map + slots->off, s->p.size - slots->off, MADV_DONTDUMP) < 0)
        return -errno;
    return mprotect(s->map, pages(sizeof(s->p), page), PROT_READ) < 0 ? -errno : 0;
}

static int map_it(struct state *s)
{
    s->map = mmap(NULL, s->p.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, s->fd, 0);
    if (s->map != MAP_FAILED)
        return 0;
    s->map = NULL;
    return -errno;
}

static _Atomic uint64_t *end_word(const struct state *s, enum state_table table)
{
    return (_Atomic uint64_t *)(void *)(s->map + s->p.table[table].off);
}

static int make(struct state *s)
{
    s->fd = memfd_create("diskguard-state", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (s->fd < 0 || ftruncate(s->fd, (off_t)s->p.size) < 0 ||
        fcntl(s->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return -errno;
    int r = map_it(s);
    if (r < 0)
        return r;
    memcpy(s->map, &s->p, sizeof(s->p));
    for (unsigned t = 0; t < STATE_TABLES; t++)
        atomic_store(end_word(s, t), word_make(0, salt_of(t, SALT_END)));
    return guard_pages(s);
}

int state_new(const struct state_size *size, struct state **ret, struct why *why)
{
    struct state *s = calloc(1, sizeof(*s));
    if (!s) {
        why_set(why, "out of memory");
        return -ENOMEM;
    }
    s->own_fd = true;
    plan(size ? size : &default_size, &s->p);
    int r = make(s);
    if (r < 0) {
        why_set(why, "memory for the state of %llu MiB of addresses cannot be had: %s%s",
                (unsigned long long)(s->p.size >> 20), strerror(-r),
                r == -EFBIG ? " (RLIMIT_FSIZE is in the way: LimitFSIZE=infinity)" : "");
        state_free(s);
        return r;
    }
    *ret = s;
    return 0;
}

/* Is the preamble one that this version would have made? Sizes that were asked for may differ. */
static bool preamble_ok(const struct state_preamble *p)
{
    struct state_preamble mine;
    struct state_size size = {0};
    for (unsigned t = 0; t < STATE_TABLES; t++)
        size.count[t] = p->table[t].count;
    for (unsigned c = 0; c < STATE_CLASSES; c++)
        size.slots[c] = p->payload[c].count;
    for (unsigned t = 0; t < STATE_TABLES; t++)
        if (size.count[t] == 0 || size.count[t] > COUNT_MAX)
            return false;
    for (unsigned c = 0; c < STATE_CLASSES; c++)
        if (size.slots[c] == 0 || size.slots[c] > COUNT_MAX)
            return false;
    plan(&size, &mine);
    return memcmp(&mine, p, sizeof(mine)) == 0;
}

static int read_preamble(int fd, struct state_preamble *ret, struct why *why)
{
    const char *wrong = NULL;
    struct stat st;
    int r = -EBADMSG, seals = fcntl(fd, F_GET_SEALS);
    memset(ret, 0, sizeof(*ret));
    /* nothing but magic and layout is known to be there in another version */
    ssize_t n = pread(fd, ret, sizeof(*ret), 0);
    if (n < (ssize_t)offsetof(struct state_preamble, size) || ret->magic != STATE_MAGIC)
        wrong = "it is no state of diskguard";
    else if (ret->layout != STATE_LAYOUT)
        r = -EPROTONOSUPPORT;
    else if (n < (ssize_t)sizeof(*ret) || !preamble_ok(ret))
        wrong = "its first page is damaged";
    else if (fstat(fd, &st) < 0 || (uint64_t)st.st_size != ret->size || seals < 0 ||
             !(seals & F_SEAL_SHRINK))
        wrong = "its size is not what it says";
    else
        return 0;
    if (wrong)
        why_set(why, "the state in descriptor %d cannot be used: %s", fd, wrong);
    else
        why_set(why,
                "the state in descriptor %d has layout %llu, and this version of diskguard reads "
                "layout %u",
                fd, (unsigned long long)ret->layout, STATE_LAYOUT);
    return r;
}

int state_attach(int fd, struct state **ret, struct why *why)
{
    struct state *s = calloc(1, sizeof(*s));
    int r = s ? read_preamble(fd, &s->p, why) : -ENOMEM;
    if (r < 0) {
        free(s);
        return r;
    }
    s->fd = fd;
    r = map_it(s);
    if (r == 0)
        r = guard_pages(s);
    if (r < 0) {
        why_set(why, "the state in descriptor %d cannot be mapped: %s", fd, strerror(-r));
        state_free(s);
        return r;
    }
    *ret = s;
    return 0;
}

void state_free(struct state *s)
{
    if (!s)
        return;
    if (s->map)
        munmap(s->map, s->p.size);
    if (s->own_fd && s->fd >= 0)
        close(s->fd);
    free(s);
}

int state_fd(const struct state *s)
{
    return s->fd;
}

uint64_t state_count(const struct state *s, enum state_table table)
{
    return s->p.table[table].count;
}

const struct state_preamble *state_preamble(const struct state *s)
{
    return &s->p;
}

struct state_slot *state_slot(const struct state *s, uint64_t index)
{
    return (struct state_slot *)(void *)(s->map + s->p.slots.off + index * s->p.slots.stride);
}

char *state_payload(const struct state *s, enum state_size_class class, uint64_t index)
{
    const struct state_region *r = &s->p.payload[class];
    return s->map + r->off + index * r->stride;
}

/* ---- entries ---- */

/* Bits of a commit word, besides its sum: */
#define USED 1u
#define SECOND 2u /* the second copy counts */

static char *entry_at(const struct state *s, enum state_table table, uint64_t index)
{
    const struct state_region *r = &s->p.table[table];
    return s->map + r->off + TABLE_START + index * r->stride;
}

static _Atomic uint64_t *commit_word(char *entry)
{
    return (_Atomic uint64_t *)(void *)(entry + offsetof(struct state_entry, commit));
}

static _Atomic uint64_t *count_word(char *entry)
{
    return (_Atomic uint64_t *)(void *)(entry + offsetof(struct state_entry, count));
}

static char *copy_at(const struct state_region *r, char *entry, bool second)
{
    return entry + sizeof(struct state_entry) + (second ? r->entry : 0);
}

/* The table is used up to here. Others may raise it at the same time. */
static void raise_end(struct state *s, enum state_table table, uint64_t end)
{
    _Atomic uint64_t *word = end_word(s, table);
    uint64_t salt = salt_of(table, SALT_END), old = atomic_load(word), was;
    do
        if (!word_read(old, salt, &was)) /* is for the next worker to find */
            return;
    while (was < end && !atomic_compare_exchange_weak(word, &old, word_make(end, salt)));
}

int state_put(struct state *s, enum state_table table, uint64_t index, const void *payload)
{
    const struct state_region *r = &s->p.table[table];
    if (index >= r->count)
        return -ENOSPC;
    char *entry = entry_at(s, table, index);
    uint64_t salt = salt_of(table, index);
    uint64_t before = atomic_load_explicit(commit_word(entry), memory_order_relaxed);
    bool second = r->copies > 1 && before & USED && !(before & SECOND);
    if (!(before & USED)) {
        raise_end(s, table, index + 1);
        atomic_store_explicit(count_word(entry), word_make(0, ~salt), memory_order_relaxed);
    } else if (r->copies == 1) {
        atomic_store(commit_word(entry), 0);
    }
    char *copy = copy_at(r, entry, second);
    memcpy(copy, payload, r->entry);
    uint64_t seal = word_seal(payload, r->entry, salt, USED | (second ? SECOND : 0u));
    /* A kill finds every store before this one done, and none after it. */
    atomic_store_explicit(commit_word(entry), seal, memory_order_release);
    return 0;
}

void state_drop(struct state *s, enum state_table table, uint64_t index)
{
    if (index < s->p.table[table].count)
        atomic_store_explicit(commit_word(entry_at(s, table, index)), 0, memory_order_release);
}

void state_set_count(struct state *s, enum state_table table, uint64_t index, uint64_t count)
{
    if (index < s->p.table[table].count)
        atomic_store_explicit(count_word(entry_at(s, table, index)),
                              word_make(count, ~salt_of(table, index)), memory_order_release);
}

/* Copies the entry into buf, and only then looks at it. */
static int get(const struct state *s, enum state_table table, uint64_t index, char *buf,
               uint64_t *ret_count)
{
    const struct state_region *r = &s->p.table[table];
    if (index >= r->count)
        return -ENOENT;
    char *entry = entry_at(s, table, index);
    uint64_t commit = atomic_load_explicit(commit_word(entry), memory_order_acquire), count;
    if (commit == 0)
        return -ENOENT;
    uint64_t salt = salt_of(table, index);
    if (!(commit & USED) || (r->copies == 1 && commit & SECOND))
        return -EBADMSG;
    memcpy(buf, copy_at(r, entry, commit & SECOND), r->entry);
    if (word_seal(buf, r->entry, salt, commit & (USED | SECOND)) != commit ||
        !word_read(atomic_load(count_word(entry)), ~salt, &count))
        return -EBADMSG;
    if (ret_count)
        *ret_count = count;
    return 0;
}

int state_get(const struct state *s, enum state_table table, uint64_t index, void *ret,
              uint64_t *ret_count)
{
    union state_payload buf;
    int r = get(s, table, index, buf.bytes, ret_count);
    if (r == 0 && ret)
        memcpy(ret, buf.bytes, s->p.table[table].entry);
    return r;
}

static int table_end(const struct state *s, enum state_table table, uint64_t *ret)
{
    uint64_t end;
    if (!word_read(atomic_load(end_word(s, table)), salt_of(table, SALT_END), &end) ||
        end > s->p.table[table].count)
        return -EBADMSG;
    *ret = end;
    return 0;
}

int state_each(const struct state *s, enum state_table table,
               int (*fn)(void *arg, uint64_t index, const void *payload, uint64_t count), void *arg)
{
    union state_payload buf;
    uint64_t end = 0, count;
    int r = table_end(s, table, &end);
    for (uint64_t i = 0; r == 0 && i < end; i++) {
        r = get(s, table, i, buf.bytes, &count);
        if (r == 0)
            r = fn(arg, i, buf.bytes, count);
        else if (r == -ENOENT)
            r = 0;
    }
    return r;
}

int state_check(const struct state *s, struct why *why)
{
    union state_payload buf;
    uint64_t end = 0;
    for (unsigned t = 0; t < STATE_TABLES; t++) {
        if (table_end(s, t, &end) < 0) {
            why_set(why, "the state is damaged: the end of its table '%s'", tables[t].name);
            return -EBADMSG;
        }
        for (uint64_t i = 0; i < end; i++)
            if (get(s, t, i, buf.bytes, NULL) == -EBADMSG) {
                why_set(why, "the state is damaged: entry %llu of its table '%s'",
                        (unsigned long long)i, tables[t].name);
                return -EBADMSG;
            }
    }
    return 0;
}
