/* test_slot.c: requests under way in the state: what the next worker finds of them. */
#include "unit.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "state/slot.h"

static const struct state_size small = {
    .count = {[STATE_INODES] = 1, [STATE_HANDLES] = 1, [STATE_IMAGES] = 1, [STATE_OWNERS] = 1},
    .slots = {[STATE_SMALL] = 3, [STATE_BIG] = 2},
};
static struct state *state;
static struct why why;
static uint64_t big, little;

static void up(void)
{
    cr_assert_eq(state_new(&small, &state, &why), 0, "%s", why.text);
    little = slot_first(state, STATE_SMALL);
    big = slot_first(state, STATE_BIG);
}

static void down(void)
{
    state_free(state);
}

static struct slot_info now(uint64_t slot)
{
    struct slot_info i;

    cr_assert_eq(slot_get(state, slot, &i), 0);
    return i;
}

/* As the kernel does it: the length stands first. */
static void copy_request(uint64_t slot, uint32_t len)
{
    memset(slot_request(state, slot), 'r', len);
    memcpy(slot_request(state, slot), &len, sizeof(len));
}

Test(slot, places, .init = up, .fini = down)
{
    cr_assert_eq(slot_end(state, STATE_SMALL) - little, 3u);
    cr_assert_eq(slot_end(state, STATE_BIG) - big, 2u);
    for (uint64_t i = little; i < slot_end(state, STATE_BIG); i++) {
        uintptr_t payload = (uintptr_t)slot_request(state, i) + STATE_AHEAD;
        cr_assert_eq(payload % state_preamble(state)->page, 0u);
        memset(slot_request(state, i), (int)i + 1, slot_room(state, i));
    }
    for (uint64_t i = little; i < slot_end(state, STATE_BIG); i++)
        for (size_t n = 0; n < slot_room(state, i); n += 512)
            cr_assert_eq(slot_request(state, i)[n], (char)(i + 1), "they do not overlap");
    cr_assert_geq(slot_room(state, big), (1u << 20) + STATE_AHEAD);
}

Test(slot, life, .init = up, .fini = down)
{
    cr_assert_eq(now(big).state, SLOT_FREE);
    slot_reading(state, big);
    cr_assert_eq(now(big).state, SLOT_READING);
    copy_request(big, 100);
    cr_assert_eq(now(big).state, SLOT_BUSY, "killed before slot_taken()");
    cr_assert_eq(now(big).size, 100u);
    slot_taken(state, big, 100);
    cr_assert_eq(now(big).size, 100u);
    cr_assert_not(now(big).interrupted);
    slot_interrupted(state, big);
    cr_assert_eq(slot_attempt(state, big), 1u);
    cr_assert_eq(slot_attempt(state, big), 2u);
    cr_assert(now(big).interrupted);
    cr_assert_eq(now(big).size, 100u);
    slot_done(state, big);
    cr_assert_eq(now(big).state, SLOT_FREE);
    slot_interrupted(state, big);
    cr_assert_eq(now(big).state, SLOT_FREE);
    slot_reading(state, big);
    cr_assert_eq(now(big).state, SLOT_READING, "nothing of the request before");
}

Test(slot, replies_and_notes_are_those_of_one_request, .init = up, .fini = down)
{
    char head[16] = "0123456789abcdef", tail[] = "tail", back[STATE_REPLY_MAX] = "";
    uint64_t note[STATE_NOTES] = {1, 2, 3, UINT64_MAX}, got[STATE_NOTES];
    struct iovec iov[] = {{head, sizeof(head)}, {tail, 4}};
    size_t len = 0;

    slot_reading(state, big);
    copy_request(big, 100);
    slot_taken(state, big, 100);
    cr_assert_eq(slot_get_reply(state, big, back, &len), -ENOENT);
    cr_assert_eq(slot_get_note(state, big, got), -ENOENT);
    slot_note(state, big, note);
    cr_assert_eq(slot_get_note(state, big, got), 0);
    cr_assert_arr_eq(got, note, sizeof(note));
    cr_assert_eq(slot_save_reply(state, big, iov, 2), 0);
    cr_assert_eq(slot_get_reply(state, big, back, &len), 0);
    cr_assert_eq(len, 20u);
    cr_assert_arr_eq(back, "0123456789abcdeftail", 20);
    slot_done(state, big);
    slot_reading(state, big);
    cr_assert_eq(slot_get_reply(state, big, back, &len), -ENOENT);
    cr_assert_eq(slot_get_note(state, big, got), -ENOENT);
    char much[STATE_REPLY_MAX + 1] = "";
    cr_assert_eq(slot_save_reply(state, big, &(struct iovec){much, sizeof(much)}, 1), -EMSGSIZE);
    cr_assert_eq(slot_get_reply(state, big, back, &len), -ENOENT);
}

Test(slot, move_takes_everything_along, .init = up, .fini = down)
{
    uint64_t note[STATE_NOTES] = {7}, got[STATE_NOTES];

    slot_reading(state, big);
    copy_request(big, 200);
    slot_taken(state, big, 200);
    slot_note(state, big, note);
    slot_interrupted(state, big);
    slot_move(state, big, little);
    cr_assert_eq(now(big).state, SLOT_FREE);
    cr_assert_eq(now(little).state, SLOT_BUSY);
    cr_assert_eq(now(little).size, 200u);
    cr_assert(now(little).interrupted);
    cr_assert_eq(slot_get_note(state, little, got), 0);
    cr_assert_eq(got[0], 7u);
    cr_assert_eq(slot_request(state, little)[199], 'r');
}

static bool same(uint64_t slot, const struct slot_info *want, const char *reply,
                 const uint64_t *note)
{
    struct slot_info i;
    uint64_t got[STATE_NOTES];
    char back[STATE_REPLY_MAX];
    size_t len = 0;
    int r = slot_get(state, slot, &i);

    if (r != -EBADMSG && (r != 0 || i.state != want->state || i.size != want->size ||
                          i.attempts != want->attempts || i.interrupted != want->interrupted))
        return false;
    r = slot_get_reply(state, slot, back, &len);
    if (r != -EBADMSG && (r != 0 || len != 30 || memcmp(back, reply, len) != 0))
        return false;
    r = slot_get_note(state, slot, got);
    return r == -EBADMSG || (r == 0 && memcmp(got, note, sizeof(got)) == 0);
}

Test(slot, every_flipped_bit_of_a_head_is_found, .init = up, .fini = down)
{
    char reply[30] = "an answer of thirty bytes....";
    uint64_t note[STATE_NOTES] = {11, 12, 13, 14};
    struct state_slot *head = state_slot(state, big);

    slot_reading(state, big);
    copy_request(big, 300);
    slot_taken(state, big, 300);
    slot_attempt(state, big);
    slot_note(state, big, note);
    cr_assert_eq(slot_save_reply(state, big, &(struct iovec){reply, sizeof(reply)}, 1), 0);
    struct slot_info want = now(big);
    for (unsigned bit = 0; bit < 8 * sizeof(*head); bit++) {
        ((uint8_t *)head)[bit / 8] ^= (uint8_t)(1u << bit % 8);
        cr_assert(same(big, &want, reply, note), "bit %u", bit);
        ((uint8_t *)head)[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    struct slot_info i;
    cr_assert_eq(slot_get(state, big, &i), 0);
    slot_reading(state, big);
    copy_request(big, 39); /* shorter than any request: something was scribbled there */
    cr_assert_eq(slot_get(state, big, &i), -EBADMSG);
}

Test(slot, memory_of_big_ones_is_resident, .init = up, .fini = down)
{
    size_t page = state_preamble(state)->page,
           n = state_preamble(state)->payload[STATE_BIG].size / page;
    unsigned char seen[4096];

    cr_assert_leq(n, sizeof(seen));
    if (slots_keep_resident(state, &why) < 0)
        cr_skip_test("%s", why.text);
    cr_assert_eq(mincore(state_payload(state, STATE_BIG, 0), n * page, seen), 0);
    for (size_t i = 0; i < n; i++)
        cr_assert(seen[i] & 1, "page %zu", i);
}

Test(slot, too_little_may_be_locked, .init = up, .fini = down)
{
    int status;
    pid_t child = fork();

    cr_assert_geq(child, 0);
    if (child == 0) {
        struct rlimit rl = {64 << 10, 64 << 10};
        if (setrlimit(RLIMIT_MEMLOCK, &rl) < 0 || (geteuid() == 0 && setuid(65534) < 0))
            _exit(1);
        if (mlock(state_payload(state, STATE_BIG, 0), 1 << 20) == 0)
            _exit(0); /* a sanitizer's mlock() does nothing */
        int r = slots_keep_resident(state, &why);
        bool said = strstr(why.text, "this process may lock 64 KiB (RLIMIT_MEMLOCK)");
        _exit((r == -ENOMEM || r == -EPERM) && said ? 0 : 2);
    }
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert_eq(status, 0);
}
