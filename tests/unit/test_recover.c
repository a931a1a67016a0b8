/* test_recover.c: the whole table of recover_decide(): every point of its input domain has exactly
 * one line below, and a second, independent test states what no line may ever say.
 * test_recover_run.c tests the execution. */
#include "unit.h"

#include <stdio.h>

#include "core/recover.h"

/* ---- the table ---- */

/* One letter per decision. */
static const struct {
    char letter;
    enum recover_action action;
    enum problem problem;
} letters[] = {
    {'.', RECOVER_NOTHING, PROBLEM_NONE},
    {'f', RECOVER_NOTHING, PROBLEM_FOREIGN},
    {'F', RECOVER_FORGET, PROBLEM_STALE_ROW},
    {'L', RECOVER_FORGET, PROBLEM_LOST_CLAIM},
    {'V', RECOVER_FORGET, PROBLEM_VANISHED},
    {'r', RECOVER_RELEASE, PROBLEM_LEFT_CLAIMED},
    {'c', RECOVER_RELEASE, PROBLEM_FOREIGN_CONFIRMED},
    {'R', RECOVER_RESTORE, PROBLEM_LEFT_SEALED},
    {'C', RECOVER_RESTORE, PROBLEM_FOREIGN_CONFIRMED},
    {'A', RECOVER_STOP, PROBLEM_ALIEN},
    {'H', RECOVER_STOP, PROBLEM_WRONG_HANDLE},
    {'U', RECOVER_STOP, PROBLEM_UNREADABLE},
    {'B', RECOVER_STOP, PROBLEM_BUSY_WRITER},
    {'I', RECOVER_STOP, PROBLEM_IMPOSSIBLE},
    {'M', RECOVER_STOP, PROBLEM_CLAIM_MISSING},
    {'J', RECOVER_STOP, PROBLEM_BAD_ROW},
    {'X', RECOVER_STOP, PROBLEM_BAD_CLAIM},
    {'N', RECOVER_STOP, PROBLEM_NEWER_CLAIM},
};

static char letter_of(struct recover_decision d)
{
    for (size_t i = 0; i < sizeof(letters) / sizeof(letters[0]); i++)
        if (letters[i].action == d.action && letters[i].problem == d.problem)
            return letters[i].letter;
    return '?';
}

enum { ANY = -9, NOT_MINE = -8, NOT_LOWER = -7, NOT_HIGHER = -6 };

/* decisions: for each header of an image that was found (True Sealed Mixed Alien Short Noplan),
 * then for one that is Gone, Other, Unreadable, Busy. */
static const struct line {
    int row, sealed, claim, owner, generation;
    const char *decisions;
} table[] = {
    /* row, sealed, claim, owner, generation, TSMASN GOUB */
    {ROW_NONE, ANY, CLAIM_NONE, ANY, ANY, "...... ...."},
    {ROW_NONE, ANY, CLAIM_FREE, ANY, ANY, "...... ...."},
    {ROW_NONE, ANY, CLAIM_HELD, OWNER_MINE, ANY, "rRRAAr VHUB"},
    {ROW_NONE, ANY, CLAIM_HELD, OWNER_CONFIRMED, ANY, "cCCAAc VHUB"},
    {ROW_NONE, ANY, CLAIM_HELD, OWNER_FOREIGN, ANY, "ffffff ffff"},
    /* the row's seal may never have been written */
    {ROW_VALID, false, CLAIM_NONE, ANY, ANY, "FMMFFF VHUB"},
    {ROW_VALID, false, CLAIM_FREE, ANY, -1, "FMMFFF VHUB"},
    {ROW_VALID, false, CLAIM_FREE, ANY, NOT_LOWER, "FFFFFF FFFF"},
    {ROW_VALID, false, CLAIM_HELD, OWNER_MINE, -1, "IIIIII VIII"},
    {ROW_VALID, false, CLAIM_HELD, OWNER_MINE, NOT_LOWER, "rRRAAr VHUB"},
    {ROW_VALID, false, CLAIM_HELD, OWNER_CONFIRMED, ANY, "cCCAAc VHUB"},
    {ROW_VALID, false, CLAIM_HELD, OWNER_FOREIGN, -1, "FFFFFF FFFF"},
    {ROW_VALID, false, CLAIM_HELD, OWNER_FOREIGN, NOT_LOWER, "LLLLLL LLLL"},
    /* the row's seal was written */
    {ROW_VALID, true, CLAIM_NONE, ANY, ANY, "FMMAAF VHUB"},
    {ROW_VALID, true, CLAIM_FREE, ANY, -1, "FMMAAF VHUB"},
    {ROW_VALID, true, CLAIM_FREE, OWNER_MINE, 0, "FFFFFF FFFF"},
    {ROW_VALID, true, CLAIM_FREE, NOT_MINE, 0, "FMMFFF VHUB"},
    {ROW_VALID, true, CLAIM_FREE, ANY, 1, "FIIFFF VHUB"},
    {ROW_VALID, true, CLAIM_HELD, OWNER_MINE, -1, "IIIIII IIII"},
    {ROW_VALID, true, CLAIM_HELD, OWNER_MINE, NOT_LOWER, "rRRAAr VHUB"},
    {ROW_VALID, true, CLAIM_HELD, OWNER_CONFIRMED, NOT_HIGHER, "IIIIII IIII"},
    {ROW_VALID, true, CLAIM_HELD, OWNER_CONFIRMED, 1, "cCCAAc VHUB"},
    {ROW_VALID, true, CLAIM_HELD, OWNER_FOREIGN, NOT_HIGHER, "IIIIII IIII"},
    {ROW_VALID, true, CLAIM_HELD, OWNER_FOREIGN, 1, "LLLLLL LLLL"},
    /* the row does not decode */
    {ROW_BAD, ANY, CLAIM_NONE, ANY, ANY, "JJJJJJ JJJJ"},
    {ROW_BAD, ANY, CLAIM_FREE, ANY, -1, "JJJJJJ JJJJ"},
    {ROW_BAD, ANY, CLAIM_FREE, ANY, NOT_LOWER, "FFFFFF FFFF"},
    {ROW_BAD, ANY, CLAIM_HELD, OWNER_MINE, -1, "IIIIII IIII"},
    {ROW_BAD, ANY, CLAIM_HELD, OWNER_MINE, NOT_LOWER, "rRRAAr VHUB"},
    {ROW_BAD, ANY, CLAIM_HELD, OWNER_CONFIRMED, NOT_HIGHER, "JJJJJJ JJJJ"},
    {ROW_BAD, ANY, CLAIM_HELD, OWNER_CONFIRMED, 1, "cCCAAc VHUB"},
    {ROW_BAD, ANY, CLAIM_HELD, OWNER_FOREIGN, NOT_HIGHER, "JJJJJJ JJJJ"},
    {ROW_BAD, ANY, CLAIM_HELD, OWNER_FOREIGN, 1, "LLLLLL LLLL"},
    /* X here is N where the claim is of a newer version */
    {ANY, ANY, CLAIM_BAD, ANY, ANY, "XXXXXX XXXX"},
};

static bool fits(int want, int value)
{
    switch (want) {
    case ANY:
        return true;
    case NOT_MINE:
        return value != OWNER_MINE;
    case NOT_LOWER:
        return value >= 0;
    case NOT_HIGHER:
        return value <= 0;
    default:
        return want == value;
    }
}

static bool line_fits(const struct line *l, const struct recover_input *in)
{
    return fits(l->row, (int)in->row) && fits(l->sealed, in->row_sealed) &&
           fits(l->claim, (int)in->claim) && fits(l->owner, (int)in->owner) &&
           fits(l->generation, in->generation);
}

static char expected(const struct line *l, const struct recover_input *in)
{
    size_t column = in->image == IMAGE_FOUND ? (size_t)in->header : 6 + (size_t)in->image;
    char letter = l->decisions[column];

    return letter == 'X' && in->claim_error == -EPROTONOSUPPORT ? 'N' : letter;
}

static const char *name_input(const struct recover_input *in)
{
    static char text[160];

    snprintf(text, sizeof(text),
             "row %d sealed %d claim %d error %d owner %d generation %d image %d header %d",
             (int)in->row, in->row_sealed, (int)in->claim, in->claim_error, (int)in->owner,
             in->generation, (int)in->image, (int)in->header);
    return text;
}

/* ---- the domain ---- */

static const int errors[] = {0, -EBADMSG, -EPROTONOSUPPORT};

static unsigned choose(unsigned *k, unsigned n)
{
    unsigned one = *k % n;

    *k /= n;
    return one;
}

/* The k-th point of the full cross product, meaningful or not: what must not matter does not.
 * false: there is none. */
static bool point(unsigned k, struct recover_input *ret)
{
    ret->header = (enum header_state)choose(&k, HEADER_NOPLAN + 1);
    ret->image = (enum image_kind)choose(&k, IMAGE_BUSY + 1);
    ret->generation = (int)choose(&k, 3) - 1;
    ret->owner = (enum owner)choose(&k, OWNER_CONFIRMED + 1);
    ret->claim_error = errors[choose(&k, 3)];
    ret->claim = (enum claim_kind)choose(&k, CLAIM_BAD + 1);
    ret->row_sealed = choose(&k, 2);
    ret->row = (enum row_kind)choose(&k, ROW_BAD + 1);
    return k == 0;
}

Test(recover_decide, every_cell_of_the_table)
{
    const size_t lines = sizeof(table) / sizeof(table[0]);
    struct recover_input in;
    unsigned used[sizeof(table) / sizeof(table[0])] = {0}, k;

    for (size_t i = 0; i < lines; i++)
        cr_assert_eq(strlen(table[i].decisions), 11u);
    for (k = 0; point(k, &in); k++) {
        const struct line *found = NULL;
        char got = letter_of(recover_decide(&in));

        for (size_t i = 0; i < lines; i++)
            if (line_fits(&table[i], &in)) {
                cr_assert_null(found, "two lines for %s", name_input(&in));
                found = &table[i];
                used[i]++;
            }
        cr_assert_not_null(found, "no line for %s", name_input(&in));
        cr_assert_eq(got, expected(found, &in), "%s: %c, not %c", name_input(&in), got,
                     expected(found, &in));
    }
    cr_assert_eq(k, 3u * 2 * 4 * 3 * 3 * 3 * 5 * 6);
    for (size_t i = 0; i < lines; i++)
        cr_assert_gt(used[i], 0u, "line %zu is never used", i);
}

/* Points that can occur, each once: no value where there is nothing to have it. */
static bool meaningful(const struct recover_input *in)
{
    if (in->row != ROW_VALID && in->row_sealed)
        return false;
    if ((in->claim == CLAIM_BAD) == (in->claim_error == 0))
        return false;
    if ((in->claim == CLAIM_NONE || in->claim == CLAIM_BAD) && in->owner != OWNER_MINE)
        return false;
    if ((in->row == ROW_NONE || in->claim == CLAIM_NONE) && in->generation != 0)
        return false;
    return in->image == IMAGE_FOUND || in->header == HEADER_TRUE;
}

Test(recover_decide, counts)
{
    /* In the order of letters[]. A change of any one cell changes two of these. */
    static const unsigned want[] = {40, 10, 184, 40, 27, 14, 12, 14,  12,
                                    34, 26, 26,  26, 75, 20, 80, 100, 100};
    unsigned got[sizeof(letters) / sizeof(letters[0])] = {0}, all = 0;
    struct recover_input in;

    for (unsigned k = 0; point(k, &in); k++) {
        char letter;

        if (!meaningful(&in))
            continue;
        letter = letter_of(recover_decide(&in));
        for (size_t i = 0; i < sizeof(letters) / sizeof(letters[0]); i++)
            got[i] += letters[i].letter == letter;
        all++;
    }
    for (size_t i = 0; i < sizeof(letters) / sizeof(letters[0]); i++)
        cr_assert_eq(got[i], want[i], "%c: %u, not %u", letters[i].letter, got[i], want[i]);
    cr_assert_eq(all, 840u);
}

/* ---- what no decision may ever be ---- */

static bool undone(const struct recover_input *in)
{
    return in->header == HEADER_TRUE || in->header == HEADER_NOPLAN;
}

static bool held_by_us(const struct recover_input *in)
{
    return in->claim == CLAIM_HELD && in->owner != OWNER_FOREIGN;
}

#define NEVER(condition) cr_assert_not(condition, "%s", name_input(&in))

Test(recover_decide, never)
{
    struct recover_input in;

    for (unsigned k = 0; point(k, &in); k++) {
        struct recover_decision d = recover_decide(&in);
        bool writes = d.action == RECOVER_RESTORE, frees = d.action == RECOVER_RELEASE;
        bool forgets = d.action == RECOVER_FORGET, stops = d.action == RECOVER_STOP;
        bool sealed =
            in.image == IMAGE_FOUND && (in.header == HEADER_SEALED || in.header == HEADER_MIXED);

        NEVER(d.action > RECOVER_STOP || d.problem >= PROBLEM_COUNT || letter_of(d) == '?');
        /* An image is touched only under a claim that this host may use, and only where the header
         * is understood. */
        NEVER((writes || frees) && !held_by_us(&in));
        NEVER((writes || frees) && in.image != IMAGE_FOUND);
        NEVER(writes && !sealed);
        NEVER(frees && !undone(&in));
        /* What cannot be read or may still be written to is left alone. */
        NEVER(in.claim == CLAIM_BAD && !stops);
        NEVER(held_by_us(&in) && in.image != IMAGE_FOUND && in.image != IMAGE_GONE && !stops);
        NEVER(held_by_us(&in) && in.image == IMAGE_FOUND && !undone(&in) && !sealed && !stops);
        /* A claim of ours is dropped unrestored only with its image. */
        NEVER(forgets && held_by_us(&in) && in.image != IMAGE_GONE);
        /* A row that sealed is dropped only when a claim answers for it, or the header was seen not
         * to be its seal. */
        NEVER(forgets && in.row == ROW_VALID && in.row_sealed && sealed && in.claim == CLAIM_NONE);
        NEVER(forgets && in.row == ROW_VALID && in.row_sealed && sealed && in.claim == CLAIM_FREE &&
              !(in.generation == 0 && in.owner == OWNER_MINE));
        NEVER(forgets && in.row == ROW_VALID && in.row_sealed && in.claim == CLAIM_HELD &&
              in.owner == OWNER_FOREIGN && in.generation <= 0);
        NEVER(forgets && in.row == ROW_NONE && d.problem != PROBLEM_VANISHED);
        /* Nothing that was found is passed over in silence. */
        NEVER(d.action == RECOVER_NOTHING && in.row != ROW_NONE);
        NEVER(d.action == RECOVER_NOTHING && held_by_us(&in));
        NEVER(stops && (d.problem == PROBLEM_NONE || problem_info(d.problem)->severity < SEV_ASK));
        NEVER((writes || frees || forgets) && problem_info(d.problem)->severity != SEV_PREEN);
    }
}

/* Another host's claim is decided about without a look at the image. */
Test(recover_decide, foreign_images_do_not_matter)
{
    struct recover_input in;

    for (unsigned k = 0; point(k, &in); k++) {
        struct recover_input other = in;
        char letter = letter_of(recover_decide(&in));

        if (in.claim != CLAIM_HELD || in.owner != OWNER_FOREIGN)
            continue;
        other.image = IMAGE_UNREADABLE;
        other.header = HEADER_ALIEN;
        cr_assert_eq(letter_of(recover_decide(&other)), letter, "%s", name_input(&in));
    }
}

Test(recover_decide, names)
{
    cr_assert_str_eq(recover_action_name(RECOVER_NOTHING), "NOTHING");
    cr_assert_str_eq(recover_action_name(RECOVER_FORGET), "FORGET");
    cr_assert_str_eq(recover_action_name(RECOVER_RELEASE), "RELEASE");
    cr_assert_str_eq(recover_action_name(RECOVER_RESTORE), "RESTORE");
    cr_assert_str_eq(recover_action_name(RECOVER_STOP), "STOP");
    cr_assert_str_eq(recover_action_name((enum recover_action)99), "?");
}
