#include "state/slot.h"

#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "state/word.h"

#define HEADER_LEAST 40u /* of a request: struct fuse_in_header, <linux/fuse.h> */
#define ATTEMPTS_MAX 255u

/* What is in the word of a slot. */
#define BITS_STATE 2
#define BITS_SIZE 24
#define BITS_ATTEMPTS 8
#define SALT_WORD UINT64_C(0x51)
#define SALT_REPLY UINT64_C(0x52)
#define SALT_NOTE UINT64_C(0x53)

static uint64_t salt_of(uint64_t what, uint64_t slot)
{
    return what << 56 ^ slot;
}

static _Atomic uint64_t *at(uint64_t *word)
{
    return (_Atomic uint64_t *)word;
}

static uint64_t pack(const struct slot_info *i)
{
    return (uint64_t)i->state | (uint64_t)i->size << BITS_STATE |
           (uint64_t)i->attempts << (BITS_STATE + BITS_SIZE) |
           (uint64_t)i->interrupted << (BITS_STATE + BITS_SIZE + BITS_ATTEMPTS);
}

static int read_word(const struct state *s, uint64_t slot, struct slot_info *ret)
{
    uint64_t word = atomic_load(at(&state_slot(s, slot)->word)), v = 0;
    if (word != 0 && !word_read(word, salt_of(SALT_WORD, slot), &v))
        return -EBADMSG;
    *ret = (struct slot_info){
        .state = v & ((1u << BITS_STATE) - 1),
        .size = v >> BITS_STATE & ((1u << BITS_SIZE) - 1),
        .attempts = v >> (BITS_STATE + BITS_SIZE) & ((1u << BITS_ATTEMPTS) - 1),
        .interrupted = v >> (BITS_STATE + BITS_SIZE + BITS_ATTEMPTS) & 1,
    };
    return ret->state > SLOT_BUSY ? -EBADMSG : 0;
}

static void write_word(struct state *s, uint64_t slot, const struct slot_info *i)
{
    atomic_store_explicit(at(&state_slot(s, slot)->word),
                          word_make(pack(i), salt_of(SALT_WORD, slot)), memory_order_release);
}

static enum state_size_class class_of(const struct state *s, uint64_t slot)
{
    return slot < state_preamble(s)->payload[STATE_SMALL].count ? STATE_SMALL : STATE_BIG;
}

uint64_t slot_first(const struct state *s, enum state_size_class class)
{
    return class == STATE_SMALL ? 0 : state_preamble(s)->payload[STATE_SMALL].count;
}

uint64_t slot_end(const struct state *s, enum state_size_class class)
{
    return slot_first(s, class) + state_preamble(s)->payload[class].count;
}

char *slot_request(const struct state *s, uint64_t slot)
{
    enum state_size_class class = class_of(s, slot);
    return state_payload(s, class, slot - slot_first(s, class)) + state_preamble(s)->page -
           STATE_AHEAD;
}

size_t slot_room(const struct state *s, uint64_t slot)
{
    return state_preamble(s)->payload[class_of(s, slot)].entry;
}

int slots_keep_resident(struct state *s, struct why *why)
{
    const struct state_region *r = &state_preamble(s)->payload[STATE_BIG];
    char *from = state_payload(s, STATE_BIG, 0);
    struct rlimit rl = {0};
    if (madvise(from, r->size, MADV_POPULATE_WRITE) < 0 && errno != EINVAL) {
        int e = errno;
        why_set(why, "%llu MiB of memory for requests cannot be had: %s",
                (unsigned long long)(r->size >> 20), strerror(e));
        return -e;
    }
    if (mlock(from, r->size) == 0) /* populates, too, where Linux is older than 5.14 */
        return 0;
    int e = errno;
    (void)getrlimit(RLIMIT_MEMLOCK, &rl);
    why_set(why,
            "%llu KiB of memory for requests cannot be kept resident: %s; this process may lock "
            "%llu KiB (RLIMIT_MEMLOCK): LimitMEMLOCK=infinity in its unit, or ulimit -l",
            (unsigned long long)(r->size >> 10), strerror(e),
            (unsigned long long)(rl.rlim_cur >> 10));
    return -e;
}

void slot_reading(struct state *s, uint64_t slot)
{
    struct state_slot *head = state_slot(s, slot);
    memset(slot_request(s, slot), 0, HEADER_LEAST);
    atomic_store_explicit(at(&head->reply), 0, memory_order_relaxed);
    atomic_store_explicit(at(&head->noted), 0, memory_order_relaxed);
    write_word(s, slot, &(struct slot_info){.state = SLOT_READING});
}

void slot_taken(struct state *s, uint64_t slot, size_t size)
{
    write_word(s, slot, &(struct slot_info){.state = SLOT_BUSY, .size = size});
}

void slot_done(struct state *s, uint64_t slot)
{
    write_word(s, slot, &(struct slot_info){.state = SLOT_FREE});
}

void slot_move(struct state *s, uint64_t from, uint64_t to)
{
    struct slot_info i = {0};
    const struct state_slot *old = state_slot(s, from);
    uint64_t note[STATE_NOTES];
    if (read_word(s, from, &i) < 0)
        i.size = slot_room(s, to); /* our own thread wrote it: cannot be */
    memcpy(slot_request(s, to), slot_request(s, from), DG_MIN(i.size, slot_room(s, to)));
    atomic_store_explicit(at(&state_slot(s, to)->reply), 0, memory_order_relaxed);
    atomic_store_explicit(at(&state_slot(s, to)->noted), 0, memory_order_relaxed);
    if (old->noted != 0 && slot_get_note(s, from, note) == 0)
        slot_note(s, to, note);
    write_word(s, to, &i);
    slot_done(s, from);
}

unsigned slot_attempt(struct state *s, uint64_t slot)
{
    struct slot_info i = {0};
    if (slot_get(s, slot, &i) < 0)
        return ATTEMPTS_MAX;
    i.attempts = DG_MIN(i.attempts + 1, ATTEMPTS_MAX);
    write_word(s, slot, &i);
    return i.attempts;
}

void slot_interrupted(struct state *s, uint64_t slot)
{
    struct slot_info i = {0};
    if (read_word(s, slot, &i) < 0 || i.state != SLOT_BUSY)
        return;
    i.interrupted = true;
    write_word(s, slot, &i);
}

int slot_save_reply(struct state *s, uint64_t slot, const struct iovec *iov, int n)
{
    struct state_slot *head = state_slot(s, slot);
    size_t len = 0;
    for (int i = 0; i < n; i++)
        len += iov[i].iov_len;
    if (len > STATE_REPLY_MAX)
        return -EMSGSIZE;
    char buf[STATE_REPLY_MAX] = {0};
    for (size_t i = 0, at_len = 0; i < (size_t)n; at_len += iov[i++].iov_len)
        memcpy(buf + at_len, iov[i].iov_base, iov[i].iov_len);
    memcpy(head->reply_bytes, buf, len);
    head->reply_len = len;
    atomic_store_explicit(at(&head->reply),
                          word_seal(buf, len, salt_of(SALT_REPLY, slot) ^ len << 32, 0),
                          memory_order_release);
    return 0;
}

void slot_note(struct state *s, uint64_t slot, const uint64_t note[STATE_NOTES])
{
    struct state_slot *head = state_slot(s, slot);
    atomic_store_explicit(at(&head->noted), 0, memory_order_relaxed);
    atomic_signal_fence(memory_order_seq_cst);
    memcpy(head->note, note, sizeof(head->note));
    atomic_store_explicit(at(&head->noted),
                          word_seal(note, sizeof(head->note), salt_of(SALT_NOTE, slot), 0),
                          memory_order_release);
}

int slot_get(const struct state *s, uint64_t slot, struct slot_info *ret)
{
    struct slot_info i;
    uint32_t len;
    int r = read_word(s, slot, &i);
    if (r < 0)
        return r;
    if (i.state == SLOT_READING) {
        memcpy(&len, slot_request(s, slot), sizeof(len));
        if (len != 0 && (len < HEADER_LEAST || len > slot_room(s, slot)))
            return -EBADMSG;
        if (len != 0)
            i = (struct slot_info){.state = SLOT_BUSY, .size = len, .attempts = i.attempts};
    }
    if (i.state == SLOT_BUSY && (i.size < HEADER_LEAST || i.size > slot_room(s, slot)))
        return -EBADMSG;
    *ret = i;
    return 0;
}

int slot_get_reply(const struct state *s, uint64_t slot, void *ret, size_t *ret_len)
{
    struct state_slot *head = state_slot(s, slot);
    uint64_t seal = atomic_load(at(&head->reply)), len = head->reply_len;
    char buf[STATE_REPLY_MAX];
    if (seal == 0)
        return -ENOENT;
    if (len > STATE_REPLY_MAX)
        return -EBADMSG;
    memcpy(buf, head->reply_bytes, len);
    if (word_seal(buf, len, salt_of(SALT_REPLY, slot) ^ len << 32, 0) != seal)
        return -EBADMSG;
    memcpy(ret, buf, len);
    *ret_len = len;
    return 0;
}

int slot_get_note(const struct state *s, uint64_t slot, uint64_t ret[STATE_NOTES])
{
    struct state_slot *head = state_slot(s, slot);
    uint64_t seal = atomic_load(at(&head->noted)), note[STATE_NOTES];
    if (seal == 0)
        return -ENOENT;
    memcpy(note, head->note, sizeof(note));
    if (word_seal(note, sizeof(note), salt_of(SALT_NOTE, slot), 0) != seal)
        return -EBADMSG;
    memcpy(ret, note, sizeof(note));
    return 0;
}
