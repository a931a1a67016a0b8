/* selftest.c: that the checks of contract.h see what they are there for. A format of its own with a
 * magic, a size, a mark and a name breaks the contract in one way at a time; each breach must end
 * its process with the message that is listed for it, and none must without one. */
#include "contract.h"
#include "format/bytes.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* The format: "TEST" @0, size (little endian) @8, mark @16, a copy of the size @24, a name @32, and
 * a footer of 8 zeros at the end of the file. */
#define HEAD 64u
#define OFF_SIZE 8u
#define OFF_MARK 16u
#define OFF_COPY 24u
#define OFF_NAME 32u
#define FOOTER 8u
#define MARK 0x5ea1ed
#define FAR 100000u /* in the file, outside of the zone */
#define FILE_SIZE 200000u

enum breach {
    NOTHING,
    WANTS_NOTHING,
    WANTS_OUTSIDE,
    WANTS_MUCH,
    WANTS_AGAIN,
    WANTS_MANY,
    NOT_LOADED,
    CHANGES,
    DEPENDS_ON_WINDOWS,
    BAD_PROBE,
    NO_WHY,
    LONG_WHY,
    CONTROL_WHY,
    SMALL_ZONE,
    GREAT_ZONE,
    EARLY_TAIL,
    WEAK_EXTENTS,
    PLAN_CODE,
    PLAN_MANY,
    PLAN_LENGTH,
    PLAN_OUTSIDE,
    PLAN_ZONE,
    PLAN_WAS,
    PLAN_TRUTH,
    PLAN_OVERLAP,
    PLAN_CHANGES,
    PLAN_LOOKS_FAR,
    ZONE_LOOKS_FAR,
    SEAL_YES,
    SEAL_NO,
    SEAL_LIES,
    SEAL_PREFIX_LIES,
    SEAL_ZONE,
    SEAL_GUEST,
    SEAL_LINKS,
    SIZE_NO,
    SIZE_LIES,
    RESCUE_CODE,
    RESCUE_RANGE,
    RESCUE_NODATA,
    RESCUE_RIGHT_SIZE,
    RESCUE_CANDIDATES,
    RESCUE_KIND,
    RESCUE_SOURCE,
    RESCUE_NOT_EXACT,
    RESCUE_NOT_UPPER,
    RESCUE_NOT_LOWER,
    RESCUE_STANDS,
    RESCUE_HALF,
    RESCUE_SIZE,
    RESCUE_GIVEN,
    LINK_CODE,
    LINK_PATH,
    LINK_EMPTY,
    LINK_FORMAT,
    LINK_ROLE,
    LINK_STOP,
    LINK_MORE,
    READS_OUTSIDE,
    BREACHES
};

static const char *const messages[BREACHES] = {
    [WANTS_NOTHING] = "nothing is wanted",
    [WANTS_OUTSIDE] = "outside of a file",
    [WANTS_MUCH] = "bytes in one window",
    [WANTS_AGAIN] = "which are loaded",
    [WANTS_MANY] = "more than 14 windows",
    [NOT_LOADED] = "are not loaded",
    [CHANGES] = "asked twice",
    [DEPENDS_ON_WINDOWS] = "with other windows",
    [BAD_PROBE] = "probe answers 99",
    [NO_WHY] = "does not say why",
    [LONG_WHY] = "does not end",
    [CONTROL_WHY] = "control character",
    [SMALL_ZONE] = "a zone whose head",
    [GREAT_ZONE] = "a zone that goes on to",
    [EARLY_TAIL] = "a zone that begins at",
    [WEAK_EXTENTS] = "without a header has extents",
    [PLAN_CODE] = "plan answers",
    [PLAN_MANY] = "plan: 25 extents",
    [PLAN_LENGTH] = "has 513 bytes",
    [PLAN_OUTSIDE] = "is outside of the file",
    [PLAN_ZONE] = "is outside of the zone",
    [PLAN_WAS] = "of a plan before",
    [PLAN_TRUTH] = "the true bytes of extent",
    [PLAN_OVERLAP] = "overlap",
    [PLAN_CHANGES] = "the plan is another one",
    [PLAN_LOOKS_FAR] = "the plan depends on bytes",
    [ZONE_LOOKS_FAR] = "the zone depends on bytes",
    [SEAL_YES] = "with 1 of 2 extents sealed probe answers 1",
    [SEAL_NO] = "with 1 of 2 extents sealed it is no test",
    [SEAL_LIES] = "with 2 of 2 extents sealed probe answers 3",
    [SEAL_PREFIX_LIES] = "with 1 of 2 extents sealed probe answers 3",
    [SEAL_ZONE] = "sealed the zone is another",
    [SEAL_GUEST] = "sealed guest_at_start is another",
    [SEAL_LINKS] = "sealed it has other links",
    [SIZE_NO] = "with 1 of 1 extents sealed it is no test",
    [SIZE_LIES] = "with 1 of 1 extents sealed by size it lies",
    [RESCUE_CODE] = "rescue answers -5",
    [RESCUE_RANGE] = "but no size was given",
    [RESCUE_NODATA] = "but a size was given",
    [RESCUE_RIGHT_SIZE] = "to the right size",
    [RESCUE_CANDIDATES] = "rescue has 5 candidates",
    [RESCUE_KIND] = "a candidate's kind is 9",
    [RESCUE_SOURCE] = "without a source",
    [RESCUE_NOT_EXACT] = "rescue: exactly",
    [RESCUE_NOT_UPPER] = "rescue: at most",
    [RESCUE_NOT_LOWER] = "rescue: at least",
    [RESCUE_STANDS] = "the sealed bytes of extent",
    [RESCUE_HALF] = "after a rescue probe answers",
    [RESCUE_SIZE] = "after a rescue the size is",
    [RESCUE_GIVEN] = "was given or exact",
    [LINK_CODE] = "links answers",
    [LINK_PATH] = "path does not end",
    [LINK_EMPTY] = "without a path",
    [LINK_FORMAT] = "format does not end",
    [LINK_ROLE] = "role is 9",
    [LINK_STOP] = "does not stop",
    [LINK_MORE] = "after it called",
    [READS_OUTSIDE] = "heap-buffer-overflow",
};

static enum breach breach;
static unsigned turn; /* counts calls: what a pure function has not */

/* ---- the format ---- */

static bool sealed_by(const uint8_t *p)
{
    return le64(p + OFF_SIZE) == MARK || le64(p + OFF_MARK) == MARK;
}

static void want(struct excerpt *v, uint64_t off, size_t len)
{
    v->want_off = off;
    v->want_len = len;
}

/* Breaches of a probe that still has to ask for its header. */
static bool breaks_asking(struct excerpt *v)
{
    switch (breach) {
    case WANTS_NOTHING:
        return true;
    case WANTS_OUTSIDE:
        want(v, v->file_size - 1, 2);
        return true;
    case WANTS_MUCH:
        want(v, 0, FORMAT_WINDOW_MAX + 1);
        return true;
    case WANTS_MANY:
        want(v, FORMAT_REACH + 64 * v->n, HEAD);
        return true;
    default:
        return false;
    }
}

static void breaks_info(struct excerpt *v, struct format_info *info, enum probe answer)
{
    const uint8_t *p;

    switch (breach) {
    case CHANGES:
        info->virtual_size += turn++;
        break;
    case DEPENDS_ON_WINDOWS:
        info->virtual_size += v->win[0].len;
        break;
    case NO_WHY:
        info->why[0] = '\0';
        break;
    case LONG_WHY:
        memset(info->why, 'x', sizeof(info->why));
        break;
    case CONTROL_WHY:
        info->why[0] = '\n';
        break;
    case SMALL_ZONE:
        info->zone.head = HEAD;
        break;
    case GREAT_ZONE:
        info->zone.head = FORMAT_HEAD_MAX + 1;
        break;
    case EARLY_TAIL:
        info->zone.tail = v->file_size - FORMAT_TAIL_MAX - 1;
        break;
    case SEAL_ZONE:
        info->zone.head += answer == PROBE_SEALED;
        break;
    case SEAL_GUEST:
        info->guest_at_start = answer == PROBE_SEALED;
        break;
    case ZONE_LOOKS_FAR:
        p = view_get(v, FAR, 1);
        info->zone.head += p ? *p : 0;
        break;
    default:
        break;
    }
}

static enum probe answer_of(const uint8_t *p, struct format_info *info)
{
    bool size = le64(p + OFF_SIZE) == MARK, mark = le64(p + OFF_MARK) == MARK;

    if (breach == BAD_PROBE)
        return (enum probe)99;
    if (breach == SIZE_NO && le64(p + OFF_SIZE) == 0)
        return PROBE_NO;
    info->virtual_size = le64(p + OFF_SIZE);
    if (breach == SIZE_LIES && info->virtual_size == 0) {
        format_lies(info, "a size of 0");
        return PROBE_LIES;
    }
    if (sealed_by(p)) {
        snprintf(info->why, sizeof(info->why), "sealed");
        if (breach == SEAL_LIES && size && mark)
            return PROBE_LIES;
        if (breach == SEAL_PREFIX_LIES && !mark)
            return PROBE_LIES;
        if (breach == SEAL_YES && !mark)
            return PROBE_YES;
        return breach == SEAL_NO ? PROBE_NO : PROBE_SEALED;
    }
    if (le64(p + OFF_SIZE) % 2 != 0) {
        format_lies(info, "an odd size");
        return PROBE_LIES;
    }
    return PROBE_YES;
}

static enum probe test_probe(struct excerpt *v, struct format_info *info)
{
    const uint8_t *p;
    enum probe answer;

    if (v->file_size < HEAD + FOOTER)
        return PROBE_NO;
    if (breach == ZONE_LOOKS_FAR && !view_get(v, FAR, 1))
        return PROBE_MORE;
    p = view_get(v, 0, HEAD);
    if (breaks_asking(v))
        return PROBE_MORE;
    if (!p)
        return PROBE_MORE;
    if (breach == WANTS_AGAIN) {
        want(v, 0, HEAD);
        return PROBE_MORE;
    }
    if (breach == NOT_LOADED)
        view_get(v, FAR, 1);
    if (breach == READS_OUTSIDE && v->win[0].len == HEAD &&
        ((const volatile uint8_t *)p)[HEAD] == 1)
        return PROBE_NO;
    if (memcmp(p, "TEST", 4) != 0)
        return PROBE_NO;
    info->zone.tail = v->file_size - FOOTER;
    answer = answer_of(p, info);
    breaks_info(v, info, answer);
    return answer;
}

static int add(struct plan *plan, const uint8_t *p, uint64_t off, uint64_t value)
{
    uint8_t word[8];

    put_le(word, value, sizeof(word));
    return plan_add(plan, off, p + off, word, sizeof(word));
}

static void breaks_plan(struct excerpt *v, struct plan *plan)
{
    const uint8_t *p;

    switch (breach) {
    case PLAN_MANY:
        plan->n = PLAN_MAX + 1;
        break;
    case PLAN_LENGTH:
        plan->ext[0].len = EXTENT_MAX + 1;
        break;
    case PLAN_OUTSIDE:
        plan->ext[0].off = v->file_size - 7;
        break;
    case PLAN_ZONE:
        plan->ext[0].off = FORMAT_REACH - 4;
        break;
    case PLAN_WAS:
        plan->ext[0].has_was = true;
        break;
    case PLAN_TRUTH:
        plan->ext[0].truth[0] ^= 1;
        break;
    case PLAN_OVERLAP:
        plan->ext[plan->n++] = plan->ext[0];
        break;
    case PLAN_CHANGES:
        plan->ext[0].sealed[0] ^= (uint8_t)turn++;
        break;
    case PLAN_LOOKS_FAR:
        p = view_get(v, FAR, 1);
        plan->n = p && *p ? 1 : plan->n;
        break;
    default:
        break;
    }
}

static int test_plan(struct excerpt *v, const struct seal_policy *policy, struct plan *plan)
{
    const uint8_t *p = view_get(v, 0, HEAD);
    int r;

    if (breach == PLAN_CODE)
        return -EIO;
    if (!p || (breach == PLAN_LOOKS_FAR && !view_get(v, FAR, 1)))
        return -EAGAIN;
    memset(plan, 0, sizeof(*plan));
    r = add(plan, p, OFF_SIZE, policy->mode == SEAL_SIZE ? 0 : MARK);
    if (r == 0 && policy->mode == SEAL_REFUSE)
        r = add(plan, p, OFF_MARK, MARK);
    breaks_plan(v, plan);
    return r;
}

static int breaks_rescue(struct rescue *rescue, const uint64_t *size)
{
    static const struct {
        enum breach breach;
        int kind;
        unsigned more;
    } kinds[] = {{RESCUE_NOT_EXACT, RESCUE_EXACT, 2},
                 {RESCUE_NOT_UPPER, RESCUE_UPPER, (unsigned)-2},
                 {RESCUE_NOT_LOWER, RESCUE_LOWER, 2},
                 {RESCUE_KIND, 9, 0}};

    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (breach == kinds[i].breach) {
            rescue->candidate[0].kind = (enum rescue_kind)kinds[i].kind;
            rescue->candidate[0].size += (uint64_t)(int)kinds[i].more;
        }
    if (breach == RESCUE_CANDIDATES)
        rescue->n = RESCUE_MAX + 1;
    if (breach == RESCUE_SOURCE)
        rescue->candidate[0].source = "";
    if (breach == RESCUE_CODE)
        return -EIO;
    if (breach == RESCUE_RANGE && !size)
        return -ERANGE;
    if (breach == RESCUE_NODATA)
        return -ENODATA;
    if (breach == RESCUE_RIGHT_SIZE && size)
        return -ERANGE;
    return 0;
}

static int test_rescue(struct excerpt *v, const uint64_t *size, struct rescue *rescue,
                       struct plan *plan)
{
    const uint8_t *p = view_get(v, 0, HEAD);
    uint64_t is;
    int r;

    if (!p)
        return -EAGAIN;
    is = le64(p + OFF_COPY);
    memset(rescue, 0, sizeof(*rescue));
    rescue->n = 1;
    rescue->candidate[0].kind = RESCUE_EXACT;
    rescue->candidate[0].size = is;
    rescue->candidate[0].source = "copy";
    memset(plan, 0, sizeof(*plan));
    r = breaks_rescue(rescue, size);
    if (r != 0)
        return r;
    if (size && *size != is && breach != RESCUE_GIVEN)
        return -ERANGE;
    if (breach == RESCUE_SIZE)
        is += 2;
    put_le(plan->ext[0].truth, is, 8);
    memcpy(plan->ext[0].sealed, p + OFF_SIZE, 8);
    memcpy(plan->ext[1].sealed, p + OFF_MARK, 8);
    plan->ext[0].sealed[0] ^= breach == RESCUE_STANDS;
    plan->ext[0].off = OFF_SIZE;
    plan->ext[1].off = OFF_MARK;
    plan->ext[0].len = plan->ext[1].len = 8;
    plan->n = breach == RESCUE_HALF ? 1 : 2;
    return 0;
}

static int test_links(struct excerpt *v, int (*fn)(void *arg, const struct format_link *link),
                      void *arg)
{
    const uint8_t *p = view_get(v, 0, HEAD);
    struct format_link link = {.role = LINK_BACKING, .path = "base", .format = "raw"};
    int r;

    if (!p)
        return -EAGAIN;
    if (breach == LINK_CODE)
        return -EIO;
    if (breach == LINK_PATH)
        memset(link.path, 'x', sizeof(link.path));
    if (breach == LINK_FORMAT)
        memset(link.format, 'x', sizeof(link.format));
    if (breach == LINK_ROLE)
        link.role = (enum link_role)9;
    if (breach == LINK_EMPTY || (breach == SEAL_LINKS && sealed_by(p)))
        link.path[breach == SEAL_LINKS] = '\0';
    r = fn(arg, &link);
    if (breach == LINK_MORE && !view_get(v, FAR, 1))
        return -EAGAIN;
    return breach == LINK_STOP ? 0 : r;
}

/* ---- the test ---- */

static size_t put_piece(uint8_t *input, uint64_t off, const void *data, size_t len)
{
    put_le(input, off, 6);
    put_le(input + 6, len, 2);
    memcpy(input + SPARSE_PIECE_HEAD, data, len);
    return SPARSE_PIECE_HEAD + len;
}

/* A whole image, or (for what only a header can show) one that lies. */
static size_t make_input(uint8_t input[512], bool lies)
{
    uint8_t head[HEAD] = "TEST";
    size_t n = SPARSE_HEAD;

    memset(input, 0, 512);
    put_le(input, FILE_SIZE, 8);
    put_le(input + 8, 12344, 8);
    put_le(head + OFF_SIZE, 4096 + lies, 8);
    put_le(head + OFF_COPY, 4096, 8);
    n += put_piece(input + n, 0, head, sizeof(head));
    n += put_piece(input + n, FAR, "\x05", 1);
    return n;
}

static void run(struct format *format, int to)
{
    bool lies = breach == NO_WHY || breach == LONG_WHY || breach == CONTROL_WHY;
    uint8_t input[512];
    size_t n = make_input(input, lies);

    dup2(to, STDERR_FILENO);
    contract_bounds = true;
    format->weak = breach == WEAK_EXTENTS;
    contract_check_format(format, input, n);
    exit(0);
}

static bool test(enum breach b)
{
    struct format format = {"test", false, test_probe, test_plan, test_rescue, test_links};
    FILE *out = tmpfile();
    char text[4096];
    int status = -1;
    size_t n;
    pid_t pid;

    if (!out)
        return false;
    breach = b;
    fflush(stdout);
    pid = fork();
    if (pid == 0)
        run(&format, fileno(out));
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        return false;
    rewind(out);
    n = fread(text, 1, sizeof(text) - 1, out);
    text[n] = '\0';
    fclose(out);
    if (messages[b] ? status != 0 && strstr(text, messages[b]) : status == 0)
        return true;
    printf("FAIL: breach %d (%s): status %d, %s\n", (int)b, messages[b] ? messages[b] : "none",
           status, text);
    return false;
}

int main(void)
{
    unsigned passed = 0, failed = 0, skipped = 0;

    for (unsigned b = NOTHING; b < BREACHES; b++) {
        if (b == READS_OUTSIDE && !getenv("ASAN_OPTIONS")) { /* set where the build has it */
            skipped++;
            continue;
        }
        if (test((enum breach)b))
            passed++;
        else
            failed++;
    }
    printf("%u passed, %u failed, %u skipped\n", passed, failed, skipped);
    return failed > 0;
}
