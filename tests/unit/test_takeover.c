/* test_takeover: who may be taken over without a person (core/takeover.h), and which mounts fence
 * (io_fencing). */
#include "unit.h"

#include <linux/magic.h>
#include <string.h>

#include "core/takeover.h"

/* ---- which mounts fence ---- */

static const struct io_fstype nfs = {
    NFS_SUPER_MAGIC, "nfs", FENCE_OFD, FENCING_LOCK, true, true, true, false};

#define V4                                                                                         \
    "rw,vers=4.2,rsize=262144,hard,proto=tcp,clientaddr=10.0.0.2,local_lock=none,addr=10.0.0.1"

Test(fencing, nfs_mounts)
{
    static const struct {
        const char *type, *options;
        char recover;
        enum fencing want;
        const char *word; /* in the reason */
        char pnfs;
    } rows[] = {
        {"nfs4", V4, 'N', FENCING_LOCK, "", 'N'},
        {"nfs", "rw,vers=4.1,local_lock=none", 'N', FENCING_LOCK, "", 'N'},
        {"nfs4", "rw,local_lock=none", 'N', FENCING_LOCK, "", 'N'},
        {"nfs4", V4, 'Y', FENCING_NO, "recover_lost_locks", 'N'},
        {"nfs4", V4, 0, FENCING_NO, "recover_lost_locks", 'N'},
        {"nfs", "rw,vers=3,local_lock=none", 'N', FENCING_NO, "NFSv3", 'N'},
        {"nfs", "rw,vers=40", 'N', FENCING_NO, "NFSv3", 'N'},
        {"nfs", "rw,local_lock=none", 'N', FENCING_NO, "NFSv3", 'N'},
        {"nfs4", "rw,vers=4.2,nolock", 'N', FENCING_NO, "nolock", 'N'},
        {"nfs4", "rw,vers=4.2,local_lock=all", 'N', FENCING_NO, "local_lock", 'N'},
        {"nfs4", "rw,vers=4.2,local_lock=posix", 'N', FENCING_NO, "local_lock", 'N'},
        {"nfs4", "rw,vers=4.2,local_lock=", 'N', FENCING_NO, "local_lock", 'N'},
        {NULL, NULL, 'N', FENCING_NO, "mountinfo", 'N'},
        {"nfs4", V4, 'N', FENCING_UNPROVEN, "pNFS", 'Y'},
        {"nfs4", V4, 'N', FENCING_UNPROVEN, "pNFS", '?'},
        {"nfs", "rw,vers=3,local_lock=none", 'N', FENCING_NO, "NFSv3", 'Y'},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const char *why = NULL;

        struct io_mount m = {rows[i].type, rows[i].options, rows[i].recover, rows[i].pnfs};
        cr_assert_eq(io_fencing_judge(&nfs, FENCE_OFD, &m, &why), rows[i].want, "row %zu", i);
        cr_assert_not_null(strstr(why, rows[i].word), "row %zu: %s", i, why);
        cr_assert((why[0] == '\0') == (rows[i].want == FENCING_LOCK), "row %zu: a reason, or none",
                  i);
    }
}

Test(fencing, other_types_and_no_lock)
{
    static const struct io_fstype ext = {
        EXT4_SUPER_MAGIC, "ext4", FENCE_OFD, FENCING_LOCK, false, false, false, false};
    static const struct io_fstype ocfs2 = {
        OCFS2_SUPER_MAGIC, "ocfs2", FENCE_FLOCK, FENCING_UNPROVEN, true, false, true, false};
    static const struct io_mount none = {NULL, NULL, 0, 0}, v4 = {"nfs4", V4, 'N', 'N'};
    const char *why;

    cr_assert_eq(io_fencing_judge(&ext, FENCE_OFD, &none, &why), FENCING_LOCK);
    cr_assert_eq(io_fencing_judge(&ext, FENCE_NONE, &none, &why), FENCING_NO);
    cr_assert_not_null(strstr(why, "fence=none"));
    cr_assert_eq(io_fencing_judge(&nfs, FENCE_NONE, &v4, &why), FENCING_NO);
    cr_assert_eq(io_fencing_judge(&ocfs2, FENCE_FLOCK, &none, &why), FENCING_UNPROVEN);
    cr_assert(why[0] != '\0');
}

/* ---- the decision, whole ---- */

Test(takeover, tries_only_when_everything_speaks_for_it)
{
    unsigned tries = 0;

    for (int names = 0; names < 2; names++)
        for (int unproven = 0; unproven < 2; unproven++)
            for (int own = FENCING_NO; own <= FENCING_LOCK; own++)
                for (int holder = FENCING_NO; holder <= FENCING_LOCK; holder++)
                    for (int record = -1; record <= 0; record++)
                        for (int alive = -1; alive <= 1; alive++)
                            for (int heartbeat = TAKEOVER_HEARTBEAT_WATCHED;
                                 heartbeat <= TAKEOVER_HEARTBEAT_STANDS; heartbeat++) {
                                struct takeover_input in = {.unproven = unproven == 1,
                                                            .names = names == 1,
                                                            .own = (enum fencing)own,
                                                            .holder = (enum fencing)holder,
                                                            .record = record,
                                                            .alive = alive,
                                                            .heartbeat =
                                                                (enum takeover_heartbeat)heartbeat};
                                enum takeover_verdict v = takeover_decide(&in);
                                int least = unproven ? FENCING_UNPROVEN : FENCING_LOCK;
                                bool want = !names && own >= least && holder >= least &&
                                            record == 0 && alive != 1 &&
                                            heartbeat == TAKEOVER_HEARTBEAT_STANDS;

                                cr_assert((v == TAKEOVER_TRY) == want, "%d %d %d %d %d %d %d: %d",
                                          names, unproven, own, holder, record, alive, heartbeat,
                                          (int)v);
                                if (own < least)
                                    cr_assert_eq(v, TAKEOVER_OWN);
                                else if (holder < least)
                                    cr_assert_eq(v, TAKEOVER_HOLDER);
                                else
                                    cr_assert((v == TAKEOVER_NAMES) == (names == 1));
                                tries += v == TAKEOVER_TRY;
                            }
    cr_assert_eq(tries, 2 * (1 + 4)); /* two values of alive */
}

Test(takeover, a_claim_for_an_operation_on_names)
{
    struct record rec = {.format = "none"};

    cr_assert(takeover_is_names(&rec));
    strcpy(rec.format, "raw");
    cr_assert_not(takeover_is_names(&rec));
}

Test(takeover, every_verdict_is_explained)
{
    struct takeover_input in = {.record = -5};
    struct why why;

    for (int v = TAKEOVER_TRY; v <= TAKEOVER_NAMES; v++) {
        why.text[0] = '\0';
        takeover_explain((enum takeover_verdict)v, &in, "NFSv3 does not fence", "node1",
                         "00112233-4455-4677-8899-aabbccddeeff", &why);
        cr_assert_not_null(strstr(why.text, "node1"), "%d", v);
        if (v == TAKEOVER_OWN || v == TAKEOVER_HOLDER || v == TAKEOVER_NO_RECORD ||
            v == TAKEOVER_LOCKED || v == TAKEOVER_NAMES)
            cr_assert_not_null(strstr(why.text, "fsck.diskguard --takeover 00112233"), "%d", v);
    }
}

/* ---- the heartbeat ---- */

static struct host_record heartbeat(const char *daemon, uint64_t n)
{
    struct host_record r = {.uuid = "00112233-4455-4677-8899-aabbccddeeff", .heartbeat = n};

    strcpy(r.daemon, daemon);
    return r;
}

#define D1 "30112233-4455-4677-8899-aabbccddeeff"
#define D2 "40112233-4455-4677-8899-aabbccddeeff"

static enum takeover_heartbeat look(struct takeover_watch *w, const char *daemon, uint64_t n,
                                    uint64_t now)
{
    struct host_record r = heartbeat(daemon, n);

    takeover_watch(w, &r, now, 2000);
    return takeover_heartbeat(w, now, 15000);
}

Test(takeover, a_heartbeat_stands_still_only_after_it_was_watched)
{
    struct takeover_watch w = {0};

    cr_assert_eq(takeover_heartbeat(&w, 1000000, 15000), TAKEOVER_HEARTBEAT_WATCHED);
    cr_assert_eq(look(&w, D1, 7, 100000), TAKEOVER_HEARTBEAT_WATCHED);
    cr_assert_eq(look(&w, D1, 7, 114999), TAKEOVER_HEARTBEAT_WATCHED);
    cr_assert_eq(look(&w, D1, 7, 115000), TAKEOVER_HEARTBEAT_STANDS);
    cr_assert_eq(look(&w, D1, 8, 116000), TAKEOVER_HEARTBEAT_WATCHED, "a last gasp?");
    cr_assert_eq(look(&w, D1, 9, 117000), TAKEOVER_HEARTBEAT_MOVES, "twice: it lives");
    cr_assert_eq(look(&w, D1, 9, 124499), TAKEOVER_HEARTBEAT_MOVES);
    cr_assert_eq(look(&w, D1, 9, 124500), TAKEOVER_HEARTBEAT_WATCHED,
                 "half of the time without a heartbeat: it may have died since");
    cr_assert_eq(look(&w, D1, 9, 131999), TAKEOVER_HEARTBEAT_WATCHED);
    cr_assert_eq(look(&w, D1, 9, 132000), TAKEOVER_HEARTBEAT_STANDS, "it died after a beat");
}

Test(takeover, a_change_over_a_long_gap_is_no_sign_of_life_and_none_of_death)
{
    struct takeover_watch w = {0};

    cr_assert_eq(look(&w, D1, 7, 100000), TAKEOVER_HEARTBEAT_WATCHED);
    cr_assert_eq(look(&w, D1, 99, 900000), TAKEOVER_HEARTBEAT_WATCHED);
    cr_assert_eq(look(&w, D1, 99, 915000), TAKEOVER_HEARTBEAT_STANDS);
    cr_assert_eq(look(&w, D1, 99, 5000000), TAKEOVER_HEARTBEAT_STANDS,
                 "the same count after a long gap is still the same");
    cr_assert_eq(look(&w, D2, 99, 5001000), TAKEOVER_HEARTBEAT_WATCHED,
                 "another daemon that counts the same: the watch begins anew");
    cr_assert_eq(look(&w, D2, 100, 5002000), TAKEOVER_HEARTBEAT_WATCHED);
    cr_assert_eq(look(&w, D2, 101, 5003000), TAKEOVER_HEARTBEAT_MOVES, "the new daemon's second");
    cr_assert_eq(look(&w, D2, 102, 6003000), TAKEOVER_HEARTBEAT_WATCHED,
                 "after a long gap it counts from the start");
}
