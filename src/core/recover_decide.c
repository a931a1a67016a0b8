/* recover_decide.c: what to do about an image whose daemon is gone. Pure: no I/O, no log, no time.
 *
 * It rests on four facts about the order of durable steps (DESIGN 4.1):
 *   1. the journal row is written before its claim, and the claim before the first sealed byte;
 *   2. a claim is freed only after a verified restore, and only by its owner;
 *   3. a row says "sealed" only after its claim was proved;
 *   4. a generation is added only over a free claim, over one whose recorded handle says that its
 *      image is gone, or by a takeover that a person confirmed.
 * A rule that would need more than these to be safe says STOP. */
#include "core/recover.h"

static struct recover_decision decision(enum recover_action action, enum problem problem)
{
    return (struct recover_decision){action, problem};
}

static struct recover_decision stop(enum problem problem)
{
    return decision(RECOVER_STOP, problem);
}

/* A row that its own claim does not stand behind: the claim of the row's generation or of a later
 * one should be there by 1 and 3, and is not ours. */
static bool row_contradicts(const struct recover_input *in)
{
    return in->row == ROW_VALID && in->row_sealed && in->generation <= 0;
}

/* Held by another host. Its claim is not ours to touch, whatever the image looks like: only our row
 * is in question. */
static struct recover_decision decide_foreign(const struct recover_input *in)
{
    if (in->row == ROW_NONE)
        return decision(RECOVER_NOTHING, PROBLEM_FOREIGN);
    /* Taken over from us, or our row lost its race and more came after. The holder has a plan of
     * its own. */
    if (in->generation > 0)
        return decision(RECOVER_FORGET, PROBLEM_LOST_CLAIM);
    if (row_contradicts(in))
        return stop(PROBLEM_IMPOSSIBLE);
    /* It may be the last trace of a seal: unreadable, so nothing here can tell. */
    if (in->row == ROW_BAD)
        return stop(PROBLEM_BAD_ROW);
    /* Two hosts raced for this generation, the other won, and we crashed before we dropped the row.
     */
    if (in->generation == 0)
        return decision(RECOVER_FORGET, PROBLEM_LOST_CLAIM);
    /* A takeover, or an open over the claim of a vanished image, that crashed before its link. */
    return decision(RECOVER_FORGET, PROBLEM_STALE_ROW);
}

/* Decides what the image alone can decide, without its header. false: the image was found, and the
 * header decides. */
static bool decide_by_image(const struct recover_input *in, struct recover_decision *ret)
{
    switch (in->image) {
    case IMAGE_FOUND:
        return false;
    case IMAGE_GONE:
        *ret = decision(RECOVER_FORGET, PROBLEM_VANISHED);
        return true;
    case IMAGE_OTHER:
        *ret = stop(PROBLEM_WRONG_HANDLE);
        return true;
    case IMAGE_UNREADABLE:
        *ret = stop(PROBLEM_UNREADABLE);
        return true;
    case IMAGE_BUSY:
        *ret = stop(PROBLEM_BUSY_WRITER);
        return true;
    }
    *ret = stop(PROBLEM_IMPOSSIBLE);
    return true;
}

/* Held by this host, or by one that a person confirmed to be down: the claim rules, and the header
 * says how far it came. A row that does not decode is no obstacle: by 1 everything that can be on
 * the disk is undone by the claim's plan. */
static struct recover_decision decide_held(const struct recover_input *in)
{
    bool mine = in->owner == OWNER_MINE;
    struct recover_decision d;

    /* By 4 we never journal a generation above a claim that we hold, unless its image is gone and
     * the number is in use again: then we crashed before the link. Anything else is storage that
     * lost what it had called durable. For a confirmed host's claim, a row of ours above it or
     * beside it is a takeover or a race that crashed early, unless it says otherwise. */
    if (mine && in->row != ROW_NONE && in->generation < 0 &&
        (in->row == ROW_BAD || in->row_sealed || in->image != IMAGE_GONE))
        return stop(PROBLEM_IMPOSSIBLE);
    if (!mine && in->row != ROW_NONE && row_contradicts(in))
        return stop(PROBLEM_IMPOSSIBLE);
    if (!mine && in->row == ROW_BAD && in->generation <= 0)
        return stop(PROBLEM_BAD_ROW);

    if (decide_by_image(in, &d))
        return d;
    switch (in->header) {
    case HEADER_TRUE:
    case HEADER_NOPLAN:
        return decision(RECOVER_RELEASE, mine ? PROBLEM_LEFT_CLAIMED : PROBLEM_FOREIGN_CONFIRMED);
    case HEADER_SEALED:
    case HEADER_MIXED:
        return decision(RECOVER_RESTORE, mine ? PROBLEM_LEFT_SEALED : PROBLEM_FOREIGN_CONFIRMED);
    case HEADER_ALIEN:
    case HEADER_SHORT:
        break;
    }
    return stop(PROBLEM_ALIEN);
}

/* A row, and nobody holds the image. */
static struct recover_decision decide_unheld(const struct recover_input *in)
{
    bool freed = in->claim == CLAIM_FREE && in->generation >= 0;
    bool freed_by_us = freed && in->generation == 0 && in->owner == OWNER_MINE;
    struct recover_decision d;

    /* By 2 the image was restored; only the row's removal is missing. Without 3's word that we ever
     * had that claim, another host won it, and freed it: the same. A row that does not decode could
     * not be used in any case, and by 2 it need not be. */
    if (freed_by_us || (freed && !(in->row == ROW_VALID && in->row_sealed)))
        return decision(RECOVER_FORGET, PROBLEM_STALE_ROW);
    /* Its claim was never made, or is lost; without its plan nobody can tell by the header. */
    if (in->row == ROW_BAD)
        return stop(PROBLEM_BAD_ROW);

    if (decide_by_image(in, &d))
        return d;
    switch (in->header) {
    case HEADER_TRUE:
    case HEADER_NOPLAN:
        break;
    case HEADER_SEALED:
    case HEADER_MIXED:
        /* The row may be the only copy of the true bytes: keep it. Where the claim of its own
         * generation is missing (storage that lost a durable link, a person who removed files), a
         * person may agree to use it. Freed later without a restore: nobody may, by 2. */
        return stop(freed && in->generation > 0 ? PROBLEM_IMPOSSIBLE : PROBLEM_CLAIM_MISSING);
    case HEADER_ALIEN:
    case HEADER_SHORT:
        /* By 1 nothing of a plan whose claim was not made is on the disk: somebody has worked on
         * the image since, and may. But a row that did seal and whose claim is missing is evidence
         * that a person needs.
         */
        if (in->row_sealed && !freed)
            return stop(PROBLEM_ALIEN);
        break;
    }
    return decision(RECOVER_FORGET, PROBLEM_STALE_ROW);
}

struct recover_decision recover_decide(const struct recover_input *in)
{
    /* The claim does not decode: nobody can say who holds the image. */
    if (in->claim == CLAIM_BAD)
        return stop(in->claim_error == -EPROTONOSUPPORT ? PROBLEM_NEWER_CLAIM : PROBLEM_BAD_CLAIM);
    if (in->claim == CLAIM_HELD)
        return in->owner == OWNER_FOREIGN ? decide_foreign(in) : decide_held(in);
    if (in->row == ROW_NONE)
        return decision(RECOVER_NOTHING, PROBLEM_NONE);
    return decide_unheld(in);
}

const char *recover_action_name(enum recover_action a)
{
    static const char *const names[] = {
        [RECOVER_NOTHING] = "NOTHING", [RECOVER_FORGET] = "FORGET", [RECOVER_RELEASE] = "RELEASE",
        [RECOVER_RESTORE] = "RESTORE", [RECOVER_STOP] = "STOP",
    };

    return (size_t)a < sizeof(names) / sizeof(names[0]) ? names[a] : "?";
}
