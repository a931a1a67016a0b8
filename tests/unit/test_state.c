/* test_state.c: what a worker leaves to the next one: never half an entry, never a wrong one. */
#include "unit.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "state/slot.h"
#include "state/word.h"

#define FEW 5u
static const struct state_size small = {
    .count =
        {[STATE_INODES] = FEW, [STATE_HANDLES] = FEW, [STATE_IMAGES] = FEW, [STATE_OWNERS] = FEW},
    .slots = {[STATE_SMALL] = 3, [STATE_BIG] = 2},
};
static struct state *state;
static struct why why;

static uint64_t random_state = 1;

static uint64_t draw(uint64_t below)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (random_state >> 33) % below;
}

static void up(void)
{
    cr_assert_eq(state_new(&small, &state, &why), 0, "%s", why.text);
}

static void down(void)
{
    state_free(state);
}

static size_t size_of(enum state_table t)
{
    return state_preamble(state)->table[t].entry;
}

/* What the tests keep at an index. */
static void pattern(enum state_table t, uint64_t index, unsigned version, union state_payload *ret)
{
    memset(ret, 0, sizeof(*ret));
    for (size_t i = 0; i < size_of(t); i++)
        ret->bytes[i] = (uint8_t)(i * 7 + index * 31 + version * 97 + t);
}

static void fill(unsigned version)
{
    union state_payload a;

    for (unsigned t = 0; t < STATE_TABLES; t++)
        for (uint64_t i = 0; i < state_count(state, t); i++) {
            if (t != STATE_HEAD && i == 3)
                continue; /* one stays free */
            pattern(t, i, version, &a);
            cr_assert_eq(state_put(state, t, i, &a), 0);
            state_set_count(state, t, i, i + 1000 * t);
        }
}

/* Is the entry what fill() put there? */
static bool is_filled(const struct state *s, enum state_table t, uint64_t i, unsigned version)
{
    union state_payload want, got;
    uint64_t count = 0;

    if (t != STATE_HEAD && i == 3)
        return state_get(s, t, i, NULL, NULL) == -ENOENT;
    pattern(t, i, version, &want);
    memset(&got, 0, sizeof(got));
    return state_get(s, t, i, &got, &count) == 0 && count == i + 1000 * t &&
           memcmp(&got, &want, sizeof(got)) == 0;
}

static bool all_filled(const struct state *s)
{
    for (unsigned t = 0; t < STATE_TABLES; t++)
        for (uint64_t i = 0; i < state_count(s, t); i++)
            if (!is_filled(s, t, i, 0))
                return false;
    return true;
}

/* ---- words ---- */

Test(state, words_know_one_wrong_bit)
{
    for (unsigned n = 0; n < 2000; n++) {
        uint64_t value = n < 40 ? UINT64_C(1) << n : draw(WORD_LIMIT), salt = draw(1u << 30), got;
        uint64_t word = word_make(value, salt);

        cr_assert_neq(word, 0u);
        cr_assert(word_read(word, salt, &got) && got == value);
        cr_assert_not(word_read(word, salt + 1, &got));
        for (unsigned bit = 0; bit < 64; bit++)
            cr_assert_not(word_read(word ^ UINT64_C(1) << bit, salt, &got), "bit %u", bit);
    }
    cr_assert_not(word_read(0, 0, &(uint64_t){0}));
}

Test(state, sums_depend_on_every_byte_the_length_and_the_place)
{
    uint8_t b[40] = "forty bytes of something that is summed";
    uint64_t sum = word_sum(b, sizeof(b), 1);

    cr_assert_eq(word_sum(b, sizeof(b), 1), sum);
    cr_assert_neq(word_sum(b, sizeof(b), 2), sum);
    for (unsigned n = 0; n < sizeof(b); n++)
        cr_assert_neq(word_sum(b, n, 1), sum, "%u bytes", n);
    cr_assert_neq(word_sum("", 0, 1), word_sum("\0", 1, 1));
    for (unsigned bit = 0; bit < 8 * sizeof(b); bit++) {
        b[bit / 8] ^= (uint8_t)(1u << bit % 8);
        cr_assert_neq(word_sum(b, sizeof(b), 1), sum, "bit %u", bit);
        b[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    cr_assert_eq(word_seal(b, sizeof(b), 1, 3) & 3, 3u);
    cr_assert_neq(word_seal(b, sizeof(b), 1, 0), 0u);
}

/* ---- entries ---- */

static int count_one(void *arg, uint64_t index, const void *payload, uint64_t count)
{
    (void)payload;
    *(uint64_t *)arg += index * 100 + count;
    return 0;
}

Test(state, entries_come_back, .init = up, .fini = down)
{
    union state_payload a;
    uint64_t sum = 0;

    for (unsigned t = 0; t < STATE_TABLES; t++)
        cr_assert_eq(state_get(state, t, 0, &a, NULL), -ENOENT);
    cr_assert_eq(state_check(state, &why), 0);
    fill(1);
    fill(0);
    cr_assert(all_filled(state));
    cr_assert_eq(state_check(state, &why), 0);
    cr_assert_eq(state_each(state, STATE_OWNERS, count_one, &sum), 0);
    cr_assert_eq(sum, 100u + 200 + 400 + 4 * 5000 + 0 + 1 + 2 + 4);
    state_drop(state, STATE_INODES, 1);
    cr_assert_eq(state_get(state, STATE_INODES, 1, &a, NULL), -ENOENT);
    pattern(STATE_INODES, 1, 5, &a);
    cr_assert_eq(state_put(state, STATE_INODES, 1, &a), 0);
    cr_assert_eq(state_get(state, STATE_INODES, 1, NULL, &sum), 0);
    cr_assert_eq(sum, 0u, "a new entry does not have the count of the one before");
}

Test(state, full_table_says_so, .init = up, .fini = down)
{
    union state_payload a;

    memset(&a, 0, sizeof(a));
    for (unsigned t = 0; t < STATE_TABLES; t++) {
        uint64_t n = t == STATE_HEAD ? 1 : FEW;
        cr_assert_eq(state_count(state, t), n);
        cr_assert_eq(state_put(state, t, n - 1, &a), 0);
        cr_assert_eq(state_put(state, t, n, &a), -ENOSPC);
        cr_assert_eq(state_get(state, t, n, &a, NULL), -ENOENT);
        state_drop(state, t, n);
        state_set_count(state, t, UINT64_MAX, 1);
    }
    cr_assert_eq(state_check(state, &why), 0);
}

/* Lets the child run one instruction after the other between its two stops, and looks at the entry
 * after each: what a kill at that moment would leave. Returns how many of them it saw. */
static unsigned step_through(pid_t child, enum state_table t, uint64_t index, bool may_be_free)
{
    unsigned steps = 0;
    int status;

    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    for (bool done = false;; steps++) {
        if (ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) < 0)
            break;
        cr_assert_eq(waitpid(child, &status, 0), child);
        if (!WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP)
            break;
        bool was_done = done;
        done = is_filled(state, t, index, 1);
        if (!done && may_be_free && state_get(state, t, index, NULL, NULL) == -ENOENT)
            continue;
        cr_assert(done || (!was_done && is_filled(state, t, index, 0)), "after %u instructions",
                  steps);
    }
    cr_assert(is_filled(state, t, index, 1), "and in the end it is the new one");
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return steps;
}

Test(state, kill_after_any_instruction_leaves_the_old_entry_or_the_new, .init = up, .fini = down)
{
    const char *preload = getenv("LD_PRELOAD");

    if (preload && strstr(preload, "vgpreload"))
        cr_skip_test("valgrind's own instructions would be stepped through");
    for (unsigned t = 0; t < STATE_TABLES; t++) {
        union state_payload a;
        uint64_t index = t == STATE_HEAD ? 0 : 1;

        fill(0);
        pattern(t, index, 1, &a);
        pid_t child = fork();
        cr_assert_geq(child, 0);
        if (child == 0) {
            if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
                _exit(77);
            raise(SIGSTOP);
            (void)!state_put(state, t, index, &a);
            raise(SIGSTOP);
            _exit(0);
        }
        cr_assert_gt(step_through(child, t, index, t == STATE_NAMES), 50u);
        cr_assert_eq(state_check(state, &why), 0);
    }
}

static _Noreturn void write_on(void)
{
    for (unsigned version = 0;; version++) {
        fill(version & 1);
        for (unsigned t = 0; t < STATE_TABLES; t++)
            state_drop(state, t, draw(FEW));
    }
}

Test(state, killed_writers_leave_no_wrong_entry, .init = up, .fini = down)
{
    for (unsigned n = 0; n < 100; n++) {
        fill(0);
        pid_t child = fork();
        cr_assert_geq(child, 0);
        if (child == 0)
            write_on();
        usleep((useconds_t)draw(3000));
        kill(child, SIGKILL);
        cr_assert_eq(waitpid(child, NULL, 0), child);
        cr_assert_eq(state_check(state, &why), 0, "%s", why.text);
        for (unsigned t = 0; t < STATE_TABLES; t++)
            for (uint64_t i = 0; i < state_count(state, t); i++) {
                union state_payload got, want[2];
                memset(&got, 0, sizeof(got));
                int r = state_get(state, t, i, &got, NULL);
                pattern(t, i, 0, &want[0]);
                pattern(t, i, 1, &want[1]);
                cr_assert(r == -ENOENT || memcmp(&got, &want[0], sizeof(got)) == 0 ||
                          memcmp(&got, &want[1], sizeof(got)) == 0);
            }
    }
}

/* ---- damage ---- */

static void flip(uint64_t bit)
{
    uint8_t byte;

    cr_assert_eq(pread(state_fd(state), &byte, 1, (off_t)(bit / 8)), 1);
    byte ^= (uint8_t)(1u << bit % 8);
    cr_assert_eq(pwrite(state_fd(state), &byte, 1, (off_t)(bit / 8)), 1);
}

/* A bit of a table, as far as it is used. */
static uint64_t draw_bit(enum state_table t)
{
    const struct state_region *r = &state_preamble(state)->table[t];

    return 8 * (r->off + draw(64 + r->count * r->stride));
}

Test(state, flipped_bits_are_found, .init = up, .fini = down)
{
    unsigned found = 0;

    fill(1);
    fill(0);
    for (unsigned n = 0; n < 1000; n++) {
        enum state_table t = (enum state_table)draw(STATE_TABLES);
        uint64_t bit = draw_bit(t) + draw(8);
        bool wrong = false;

        flip(bit);
        for (uint64_t i = 0; i < state_count(state, t); i++) {
            int r = state_get(state, t, i, NULL, NULL);
            cr_assert(r == -EBADMSG || is_filled(state, t, i, 0), "bit %llu",
                      (unsigned long long)bit);
            wrong = wrong || r == -EBADMSG;
        }
        int r = state_check(state, &why);
        cr_assert(!wrong || r == -EBADMSG, "bit %llu", (unsigned long long)bit);
        found += r == -EBADMSG;
        flip(bit);
        cr_assert_eq(state_check(state, &why), 0, "%s", why.text);
    }
    cr_assert_gt(found, 300u, "about half: the rest is the copy that does not count");
}

Test(state, flipped_bits_of_the_preamble_keep_it_from_being_used, .init = up, .fini = down)
{
    struct state *other = NULL;

    for (uint64_t bit = 0; bit < 8 * sizeof(struct state_preamble); bit++) {
        flip(bit);
        int r = state_attach(state_fd(state), &other, &why);
        bool layout = bit / 64 == offsetof(struct state_preamble, layout) / 8;
        cr_assert_eq(r, layout ? -EPROTONOSUPPORT : -EBADMSG, "bit %llu", (unsigned long long)bit);
        flip(bit);
    }
    cr_assert_eq(state_attach(state_fd(state), &other, &why), 0, "%s", why.text);
    state_free(other);
}

Test(state, other_layout_and_other_files_are_refused_with_a_reason, .init = up, .fini = down)
{
    struct state *other = NULL;
    uint64_t layout = STATE_LAYOUT + 1;
    int null_fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);

    cr_assert_eq(
        pwrite(state_fd(state), &layout, sizeof(layout), offsetof(struct state_preamble, layout)),
        (ssize_t)sizeof(layout));
    cr_assert_eq(state_attach(state_fd(state), &other, &why), -EPROTONOSUPPORT);
    cr_assert_not_null(
        strstr(why.text, "has layout 2, and this version of diskguard reads layout 1"));
    cr_assert_eq(state_attach(null_fd, &other, &why), -EBADMSG);
    cr_assert_not_null(strstr(why.text, "no state of diskguard"));
    cr_assert_eq(state_attach(-1, &other, &why), -EBADMSG);
    cr_assert_null(other);
    close(null_fd);
}

Test(state, size_cannot_change, .init = up, .fini = down)
{
    cr_assert_eq(ftruncate(state_fd(state), 4096), -1);
    cr_assert_eq(errno, EPERM);
}

/* ---- another process ---- */

/* The program of this test, started anew with a state in a descriptor: what the next worker is. */
#define NEXT_FD "DISKGUARD_TEST_STATE_FD"
__attribute__((constructor)) static void be_the_next(void)
{
    const char *fd = getenv(NEXT_FD);

    if (!fd)
        return;
    if (state_attach(atoi(fd), &state, &why) < 0 || state_check(state, &why) < 0)
        _exit(2);
    _exit(all_filled(state) ? 0 : 3);
}

static int exec_next(void)
{
    char fd[16], self[4096];
    char *argv[] = {self, NULL};
    int status;
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

    cr_assert_gt(n, 0);
    self[n] = '\0';
    snprintf(fd, sizeof(fd), "%d", state_fd(state));
    pid_t child = fork();
    cr_assert_geq(child, 0);
    if (child == 0) {
        setenv(NEXT_FD, fd, 1);
        if (fcntl(state_fd(state), F_SETFD, 0) == 0)
            execv(self, argv);
        _exit(4);
    }
    cr_assert_eq(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

Test(state, attach_after_exec, .init = up, .fini = down)
{
    fill(0);
    cr_assert_eq(exec_next(), 0);
    flip(draw_bit(STATE_HEAD) | 8 * 64); /* something is wrong there, or not; but not this: */
    uint64_t commit = state_preamble(state)->table[STATE_HANDLES].off + 64;
    flip(8 * commit + 5);
    cr_assert_eq(exec_next(), 2);
    cr_assert(fcntl(state_fd(state), F_GETFD) & FD_CLOEXEC, "a new one is closed on exec");
}

/* Does writing there kill? */
static bool kills(char *at)
{
    int status;
    pid_t child = fork();

    cr_assert_geq(child, 0);
    if (child == 0) {
        *(volatile char *)at = 1;
        _exit(0);
    }
    cr_assert_eq(waitpid(child, &status, 0), child);
    return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

Test(state, pages_between_the_tables_cannot_be_touched, .init = up, .fini = down)
{
    const struct state_preamble *p = state_preamble(state);
    char *map = (char *)state_slot(state, 0) - p->slots.off;

    cr_assert(kills(map), "the preamble is read-only");
    for (unsigned t = 0; t < STATE_TABLES; t++) {
        cr_assert(kills(map + p->table[t].off - 1));
        cr_assert(kills(map + p->table[t].off + p->table[t].size));
        cr_assert_not(kills(map + p->table[t].off + p->table[t].size - 1));
    }
    for (unsigned c = 0; c < STATE_CLASSES; c++)
        cr_assert(kills(map + p->payload[c].off + p->payload[c].size));
}

Test(state, default_size_costs_addresses_alone)
{
    struct state *s = NULL;
    struct stat st;
    union state_payload a;

    memset(&a, 0, sizeof(a));
    cr_assert_eq(state_new(NULL, &s, &why), 0, "%s", why.text);
    cr_assert_eq(state_put(s, STATE_INODES, 1000000, &a), 0);
    cr_assert_eq(state_check(s, &why), 0);
    cr_assert_eq(fstat(state_fd(s), &st), 0);
    cr_assert_gt(st.st_size, 500 << 20);
    state_free(s);
}
