/* test_record.c: the claim record's text form: exact round trips, and that nothing but a record
 * decodes. */
#include "unit.h"

#include <inttypes.h>
#include <stdio.h>
#include <zlib.h>

#include "core/overlay.h"
#include "core/record.h"

/* The contract, by hand: include/diskguard/record.h. If this test must change, other hosts stop
 * understanding us. */
static const char sample_text[] = "diskguard-claim 1\n"
                                  "image=vm/a%20b.qcow2\n"
                                  "inode=12345\n"
                                  "handle=129 0102ff\n"
                                  "generation=7\n"
                                  "state=sealed\n"
                                  "seq=42\n"
                                  "host=00112233-4455-4677-8899-aabbccddeeff\n"
                                  "name=node1\n"
                                  "installation=10112233-4455-4677-8899-aabbccddeeff\n"
                                  "boot=20112233-4455-4677-8899-aabbccddeeff\n"
                                  "daemon=30112233-4455-4677-8899-aabbccddeeff\n"
                                  "pid=4711\n"
                                  "start=99887766\n"
                                  "uid=107\n"
                                  "gid=64055\n"
                                  "since=2026-11-22T10:00:00Z\n"
                                  "format=qcow2\n"
                                  "size=10737418240\n"
                                  "cut=-\n"
                                  "mtime=1790000000 123456789\n"
                                  "mtime-sealed=0 0\n"
                                  "sync-error=0\n"
                                  "fenced=lock\n"
                                  "extent=24 4 00000002 53454100 -\n"
                                  "extent=72 2 0000 8000 8001\n"
                                  "sum=31e0fff6\n";

static struct record *new_record(void)
{
    struct record *rec = calloc(1, sizeof *rec);

    cr_assert_not_null(rec);
    return rec;
}

/* The same record as sample_text, by hand. */
static struct record *sample(void)
{
    struct record *rec = new_record();

    strcpy(rec->image, "vm/a b.qcow2");
    rec->ino = 12345;
    rec->handle = (struct io_handle){129, 3, {1, 2, 255}};
    rec->generation = 7;
    rec->step = STEP_SEALED;
    rec->seq = 42;
    strcpy(rec->host, "00112233-4455-4677-8899-aabbccddeeff");
    strcpy(rec->host_name, "node1");
    strcpy(rec->installation, "10112233-4455-4677-8899-aabbccddeeff");
    strcpy(rec->boot, "20112233-4455-4677-8899-aabbccddeeff");
    strcpy(rec->daemon, "30112233-4455-4677-8899-aabbccddeeff");
    rec->pid = 4711;
    rec->start = 99887766;
    rec->uid = 107;
    rec->gid = 64055;
    strcpy(rec->since, "2026-11-22T10:00:00Z");
    strcpy(rec->format, "qcow2");
    rec->virtual_size = 10737418240;
    rec->cut = OVERLAY_NO_CUT;
    rec->mtime = (struct timespec){1790000000, 123456789};
    rec->fenced = FENCING_LOCK;
    rec->plan.n = 2;
    rec->plan.ext[0] = (struct extent){24, 4, false, {0, 0, 0, 2}, {'S', 'E', 'A', 0}, {0}};
    rec->plan.ext[1] = (struct extent){72, 2, true, {0, 0}, {0x80, 0}, {0x80, 1}};
    return rec;
}

static void assert_same_plan(const struct plan *a, const struct plan *b)
{
    cr_assert(overlay_same_truth(a, b));
    cr_assert(overlay_same_sealed(a, b));
    for (unsigned i = 0; i < a->n; i++) {
        cr_assert_eq(a->ext[i].has_was, b->ext[i].has_was);
        if (a->ext[i].has_was)
            cr_assert_arr_eq(a->ext[i].was, b->ext[i].was, a->ext[i].len);
    }
}

static void assert_same(const struct record *a, const struct record *b)
{
    cr_assert_str_eq(a->image, b->image);
    cr_assert_eq(a->ino, b->ino);
    cr_assert(io_handle_equal(&a->handle, &b->handle));
    cr_assert_eq(a->generation, b->generation);
    cr_assert_eq(a->step, b->step);
    cr_assert_eq(a->seq, b->seq);
    cr_assert_str_eq(a->host, b->host);
    cr_assert_str_eq(a->installation, b->installation);
    cr_assert_str_eq(a->boot, b->boot);
    cr_assert_str_eq(a->daemon, b->daemon);
    cr_assert_str_eq(a->host_name, b->host_name);
    cr_assert_eq(a->pid, b->pid);
    cr_assert_eq(a->start, b->start);
    cr_assert_eq(a->uid, b->uid);
    cr_assert_eq(a->gid, b->gid);
    cr_assert_str_eq(a->since, b->since);
    cr_assert_str_eq(a->format, b->format);
    cr_assert_eq(a->virtual_size, b->virtual_size);
    cr_assert_eq(a->cut, b->cut);
    cr_assert_eq(a->mtime.tv_sec, b->mtime.tv_sec);
    cr_assert_eq(a->mtime.tv_nsec, b->mtime.tv_nsec);
    cr_assert_eq(a->mtime_sealed.tv_sec, b->mtime_sealed.tv_sec);
    cr_assert_eq(a->mtime_sealed.tv_nsec, b->mtime_sealed.tv_nsec);
    cr_assert_eq(a->sync_error, b->sync_error);
    cr_assert_eq(a->fenced, b->fenced);
    cr_assert_eq(a->chosen, b->chosen);
    cr_assert_eq(a->mtime_chosen.tv_sec, b->mtime_chosen.tv_sec);
    cr_assert_eq(a->mtime_chosen.tv_nsec, b->mtime_chosen.tv_nsec);
    cr_assert_eq(a->mtime_seen.tv_sec, b->mtime_seen.tv_sec);
    cr_assert_eq(a->mtime_seen.tv_nsec, b->mtime_seen.tv_nsec);
    assert_same_plan(&a->plan, &b->plan);
}

/* Encodes, decodes, compares. */
static void assert_round_trip(const struct record *rec)
{
    struct record *back = new_record();
    char *text = NULL;
    size_t len = 0;

    cr_assert_eq(record_encode(rec, &text, &len), 0);
    cr_assert_eq(strlen(text), len);
    cr_assert_leq(len, DG_RECORD_MAX);
    cr_assert_eq(record_decode(text, len, back), 0, "%s", text);
    assert_same(rec, back);
    free(text);
    free(back);
}

/* Decodes text; on failure *ret must not have been touched. */
static int decode(const char *text, size_t len)
{
    struct record *rec = new_record(), *before = new_record();

    memset(rec, 0x5a, sizeof *rec);
    memset(before, 0x5a, sizeof *before);
    int r = record_decode(text, len, rec);
    if (r < 0)
        cr_assert_arr_eq(rec, before, sizeof *rec, "untouched on failure");
    free(rec);
    free(before);
    return r;
}

/* Puts a right checksum under body. */
static char *with_sum(const char *body, size_t *ret_len)
{
    size_t n = strlen(body);
    char *text = malloc(n + 14);

    cr_assert_not_null(text);
    memcpy(text, body, n);
    snprintf(text + n, 14, "sum=%08lx\n", crc32(0, (const Bytef *)body, (uInt)n));
    *ret_len = n + 13;
    return text;
}

/* sample_text without its sum and with the line of that name replaced by `line` ("" removes it),
 * summed again and decoded. */
static int decode_with(const char *name, const char *line)
{
    char body[8192], key[32];
    const char *at, *sum = strstr(sample_text, "sum=");
    size_t len;

    snprintf(key, sizeof key, "\n%s", name);
    at = strstr(sample_text, key);
    cr_assert_not_null(at, "%s", name);
    at++;
    const char *end = strchr(at, '\n') + 1;
    snprintf(body, sizeof body, "%.*s%s%.*s", (int)(at - sample_text), sample_text, line,
             (int)(sum - end), end);
    char *text = with_sum(body, &len);
    int r = decode(text, len);
    free(text);
    return r;
}

Test(record, text_is_the_contract)
{
    struct record *rec = sample();
    char *text = NULL;
    size_t len = 0;

    cr_assert_eq(record_encode(rec, &text, &len), 0);
    cr_assert_str_eq(text, sample_text);
    cr_assert_eq(decode(sample_text, strlen(sample_text)), 0);
    assert_round_trip(rec);
    free(text);
    free(rec);
}

Test(record, round_trip_of_extremes)
{
    struct record *rec = sample();

    memset(rec->image, '\xe4', sizeof rec->image - 1); /* every byte becomes three */
    memset(rec->host_name, ' ', sizeof rec->host_name - 1);
    memset(rec->format, '%', sizeof rec->format - 1);
    rec->handle.len = IO_HANDLE_MAX;
    memset(rec->handle.bytes, 0xee, IO_HANDLE_MAX);
    rec->handle.type = INT32_MAX;
    rec->ino = rec->generation = rec->seq = rec->pid = rec->start = rec->uid = rec->gid =
        UINT64_MAX;
    rec->virtual_size = UINT64_MAX;
    rec->cut = UINT64_MAX - 1;
    rec->mtime = (struct timespec){-5, 999999999};
    rec->mtime_sealed = (struct timespec){INT64_MAX, 0};
    rec->chosen = true;
    rec->mtime_chosen = (struct timespec){-1, 0};
    rec->mtime_seen = (struct timespec){INT64_MAX, 999999999};
    rec->sync_error = 4095;
    rec->fenced = FENCING_UNPROVEN;
    rec->plan.n = PLAN_MAX;
    for (unsigned i = 0; i < PLAN_MAX; i++) {
        struct extent *e = &rec->plan.ext[i];
        *e =
            (struct extent){.off = (PLAN_MAX - i) * EXTENT_MAX, .len = EXTENT_MAX, .has_was = true};
        memset(e->truth, (int)i, EXTENT_MAX);
        memset(e->sealed, (int)i + 1, EXTENT_MAX);
        memset(e->was, (int)i + 2, EXTENT_MAX);
    }
    rec->plan.ext[0].off = (uint64_t)INT64_MAX - EXTENT_MAX;
    assert_round_trip(rec);
    rec->seq--;
    char text[RECORD_FREED_MAX];
    size_t len;
    cr_assert_eq(record_encode_freed(rec, text, &len), 0, "the longest tombstone has room");
    cr_assert_eq(decode(text, len), 0);
    free(rec);
}

Test(record, freed_is_what_a_freed_copy_is)
{
    struct record *rec = sample();
    char text[RECORD_FREED_MAX], *copy = NULL;
    size_t len, copy_len;

    rec->cut = 100;
    cr_assert_eq(record_encode_freed(rec, text, &len), 0);
    rec->step = STEP_FREE;
    rec->plan.n = 0;
    rec->cut = OVERLAY_NO_CUT;
    rec->seq++;
    cr_assert_eq(record_encode(rec, &copy, &copy_len), 0);
    cr_assert_str_eq(text, copy);
    cr_assert_eq(len, copy_len);
    free(copy);
    free(rec);
}

Test(record, same_undo)
{
    struct record *a = sample(), *b = sample();

    b->seq++;
    b->step = STEP_SEALED;
    b->mtime_sealed.tv_sec = 5;
    cr_assert(record_same_undo(a, b), "the claim needs none of that");
    b->plan.ext[1].truth[1] ^= 1;
    cr_assert_not(record_same_undo(a, b), "true bytes");
    *b = *a;
    b->plan.ext[1].sealed[1] ^= 1;
    cr_assert_not(record_same_undo(a, b), "sealed bytes");
    *b = *a;
    b->plan.ext[0].has_was = true;
    cr_assert_not(record_same_undo(a, b), "bytes of before");
    *b = *a;
    b->plan.n--;
    cr_assert_not(record_same_undo(a, b), "extents");
    *b = *a;
    b->cut = 100;
    cr_assert_not(record_same_undo(a, b), "a truncation");
    *b = *a;
    b->chosen = true;
    cr_assert_not(record_same_undo(a, b), "a date that waits");
    free(a);
    free(b);
}

Test(record, round_trip_of_the_least)
{
    struct record *rec = sample();

    rec->image[0] = rec->host_name[0] = rec->format[0] = '\0';
    rec->handle = (struct io_handle){0};
    rec->ino = rec->generation = rec->seq = rec->pid = rec->start = rec->uid = rec->gid = 0;
    rec->virtual_size = rec->cut = 0;
    rec->plan.n = 0;
    for (int step = STEP_FREE; step <= STEP_STUCK; step++) {
        rec->step = (enum claim_step)step;
        assert_round_trip(rec);
    }
    free(rec);
}

static uint64_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u; /* Knuth, MMIX */
    return *state >> 33;
}

Test(record, round_trip_of_random_plans)
{
    struct record *rec = sample();
    uint64_t rnd = 1;

    for (unsigned round = 0; round < 200; round++) {
        uint64_t off = 0;
        rec->plan.n = (unsigned)(next_random(&rnd) % (PLAN_MAX + 1));
        for (unsigned i = 0; i < rec->plan.n; i++) {
            struct extent *e = &rec->plan.ext[i];
            e->off = off += next_random(&rnd) % 3;
            e->len = (uint32_t)(next_random(&rnd) % EXTENT_MAX + 1);
            e->has_was = next_random(&rnd) % 2;
            off += e->len;
            for (unsigned k = 0; k < e->len; k++) {
                e->truth[k] = (uint8_t)next_random(&rnd);
                e->sealed[k] = (uint8_t)next_random(&rnd);
                e->was[k] = (uint8_t)next_random(&rnd);
            }
        }
        assert_round_trip(rec);
    }
    free(rec);
}

Test(record, every_flipped_bit_is_noticed)
{
    size_t len = strlen(sample_text);
    char *text = strdup(sample_text);

    for (size_t i = 0; i < len * 8; i++) {
        text[i / 8] = (char)(text[i / 8] ^ (1 << i % 8));
        cr_assert_eq(decode(text, len), -EBADMSG, "bit %zu of byte %zu", i % 8, i / 8);
        text[i / 8] = (char)(text[i / 8] ^ (1 << i % 8));
    }
    free(text);
}

Test(record, every_truncation_is_noticed)
{
    char text[sizeof sample_text + 1];

    for (size_t len = 0; len < strlen(sample_text); len++) {
        char *exact = malloc(len + 1); /* so that a sanitizer sees a read beyond it */
        memcpy(exact, sample_text, len);
        cr_assert_eq(decode(exact, len), -EBADMSG, "%zu bytes", len);
        free(exact);
    }
    snprintf(text, sizeof text, "%s\n", sample_text);
    cr_assert_eq(decode(text, strlen(text)), -EBADMSG, "a stray byte behind the sum");
    cr_assert_eq(decode(sample_text, strlen(sample_text) + 1), -EBADMSG, "a NUL behind the sum");
    cr_assert_eq(decode("sum=00000000\n", 13), -EBADMSG);
}

Test(record, bytes_behind_a_nul_are_noticed)
{
    size_t body = (size_t)(strstr(sample_text, "sum=") - sample_text);
    char text[sizeof sample_text + 16];

    memcpy(text, sample_text, body);
    memcpy(text + body, "\0hidden\n", 8);
    sprintf(text + body + 8, "sum=%08lx\n", crc32(0, (const Bytef *)text, (uInt)body + 8));
    cr_assert_eq(decode(text, body + 8 + 13), -EBADMSG);
}

Test(record, versions)
{
    const char *rest = strchr(sample_text, '\n'), *sum = strstr(sample_text, "sum=");
    static const struct {
        const char *first;
        int r;
    } cases[] = {
        {"diskguard-claim 1", 0},         {"diskguard-claim 2", -EPROTONOSUPPORT},
        {"diskguard-claim 0", -EBADMSG},  {"diskguard-claim 01", -EBADMSG},
        {"diskguard-claim -1", -EBADMSG}, {"diskguard-claim 1 ", -EBADMSG},
        {"diskguard-claim", -EBADMSG},    {"diskguard-host 1", -EBADMSG},
        {" diskguard-claim 1", -EBADMSG}, {"diskguard-claim 18446744073709551616", -EBADMSG},
    };
    char body[8192];
    size_t len;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        snprintf(body, sizeof body, "%s%.*s", cases[i].first, (int)(sum - rest), rest);
        char *text = with_sum(body, &len);
        cr_assert_eq(decode(text, len), cases[i].r, "%s", cases[i].first);
        text[len - 2] ^= 1;
        cr_assert_eq(decode(text, len), -EBADMSG, "%s with a wrong sum", cases[i].first);
        free(text);
    }
    char *text = with_sum("diskguard-claim 2\nquite=another form\n", &len);
    cr_assert_eq(decode(text, len), -EPROTONOSUPPORT);
    free(text);
}

Test(record, lines_that_do_not_decode)
{
    static const char *const bad[][2] = {
        {"image=", "image=a b\n"},
        {"image=", "image=%00\n"},
        {"image=", "image=%2\n"},
        {"image=", "Image=a\n"},
        {"image=", ""},
        {"image=", "image=a\nimage=a\n"},
        {"image=", "image=a\nextra=1\n"},
        {"inode=", "inode=-1\n"},
        {"inode=", "inode= 1\n"},
        {"inode=", "inode=01\n"},
        {"inode=", "inode=\n"},
        {"inode=", "inode=1\r\n"},
        {"inode=", "inode=18446744073709551616\n"},
        {"inode=", "inode=0x10\n"},
        {"handle=", "handle=\n"},
        {"handle=", "handle=1\n"},
        {"handle=", "handle=1 \n"},
        {"handle=", "handle=1 0\n"},
        {"handle=", "handle=1 0102 03\n"},
        {"handle=", "handle=1 0A\n"},
        {"handle=", "handle=2147483648 00\n"},
        {"handle=", "handle=- \n"},
        {"state=", "state=held\n"},
        {"state=", "state=sealed \n"},
        {"state=", "state=\n"},
        {"host=", "host=00112233-4455-4677-8899-AABBCCDDEEFF\n"},
        {"host=", "host=\n"},
        {"boot=", "boot=00112233-4455-4677-8899-aabbccddeeff0\n"},
        {"since=", "since=2026-11-22 10:00:00Z\n"},
        {"since=", "since=\n"},
        {"since=", "since=2026-11-22T10:00:00Z0\n"},
        {"format=", "format=sixteen-letters-\n"},
        {"cut=", "cut=\n"},
        {"cut=", "cut=18446744073709551615\n"},
        {"cut=", "cut=--\n"},
        {"mtime=", "mtime=1\n"},
        {"mtime=", "mtime=1 1000000000\n"},
        {"mtime=", "mtime=1 -1\n"},
        {"mtime=", "mtime=-0 0\n"},
        {"mtime=", "mtime=- 0\n"},
        {"mtime=", "mtime=1 0 0\n"},
        {"mtime=", "mtime=1  0\n"},
        {"mtime=", "mtime=9223372036854775808 0\n"},
        {"sync-error=", "sync-error=-5\n"},
        {"sync-error=", "sync-error=4096\n"},
        {"sync-error=", "sync-error=4294967296\n"},
        {"fenced=", "fenced=yes\n"},
        {"fenced=", "fenced=\n"},
        {"fenced=", "fenced=lock\nfenced=lock\n"},
        {"fenced=", "fenced=Lock\n"},
        {"size=", "size=1\nfenced=lock\n"},
        {"fenced=", "fenced=lock\nmtime-chosen=1 2 3\n"},
        {"fenced=", "fenced=lock\nmtime-chosen=1 2 3 4 5\n"},
        {"fenced=", "fenced=lock\nmtime-chosen=1 2 3 1000000000\n"},
        {"fenced=", "fenced=lock\nmtime-chosen=1 2 3 4\nmtime-chosen=1 2 3 4\n"},
        {"fenced=", "mtime-chosen=1 2 3 4\nfenced=lock\n"},
    };

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        cr_assert_eq(decode_with(bad[i][0], bad[i][1]), -EBADMSG, "%s", bad[i][1]);
    cr_assert_eq(decode_with("mtime=", "mtime=-1 5\n"), 0, "the harness itself works");
    cr_assert_eq(decode_with("fenced=", "fenced=lock\nmtime-chosen=-1 2 3 4\n"), 0);
}

Test(record, a_record_without_fenced_is_not_fenced)
{
    struct record *rec = new_record();
    char *old = strdup(sample_text), *line = strstr(old, "fenced=lock\n"), *sum;

    memmove(line, line + 12, strlen(line + 12) + 1);
    sum = strstr(old, "sum=");
    snprintf(sum, 14, "sum=%08lx\n", crc32(0, (const unsigned char *)old, (unsigned)(sum - old)));
    cr_assert_eq(record_decode(old, strlen(old), rec), 0);
    cr_assert_eq(rec->fenced, FENCING_NO);
    cr_assert_eq(record_decode(sample_text, strlen(sample_text), rec), 0);
    cr_assert_eq(rec->fenced, FENCING_LOCK);
    free(old);
    free(rec);
}

Test(record, extents_that_do_not_decode)
{
    static const char *const bad[] = {
        "extent=24 0   -\n",
        "extent=24 1 00 11\n",
        "extent=24 1 00 11 - \n",
        "extent=24 1 00 11 - -\n",
        "extent=24 1 0000 11 -\n",
        "extent=24 1 0 11 -\n",
        "extent=24 1 00 1 -\n",
        "extent=24 1 00 11 2222\n",
        "extent=24 1 00 11 gg\n",
        "extent=24 1 - 11 -\n",
        "extent=-1 1 00 11 -\n",
        "extent=9223372036854775807 1 00 11 -\n",
        "extent=18446744073709551615 1 00 11 -\n",
        "extent=72 1 00 11 -\n",         /* in the other one */
        "extent=71 3 000000 111111 -\n", /* around it */
        "extent=73 1 00 11 -\n",
        "extent=24 1 00 11 -\nextent=24 1 00 11 -\n",
        "extent=24 1 00 11 -\n\n",
        "\n",
    };
    char line[2 * 513 * 2 + 32];

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        cr_assert_eq(decode_with("extent=", bad[i]), -EBADMSG, "%s", bad[i]);
    cr_assert_eq(decode_with("extent=", "extent=71 1 00 11 22\n"), 0, "neighbours may touch");
    cr_assert_eq(decode_with("extent=", ""), 0);
    snprintf(line, sizeof line, "extent=100 513 %01026d %01026d -\n", 0, 0);
    cr_assert_eq(decode_with("extent=", line), -EBADMSG, "one byte too long");
    snprintf(line, sizeof line, "extent=100 512 %01024d %01024d -\n", 0, 0);
    cr_assert_eq(decode_with("extent=", line), 0);
}

Test(record, too_many_extents)
{
    char lines[PLAN_MAX * 40] = "";

    for (unsigned i = 0; i < PLAN_MAX - 1; i++)
        sprintf(lines + strlen(lines), "extent=%u 1 00 11 -\n", 1000 + i);
    cr_assert_eq(decode_with("extent=", lines), 0,
                 "with the one that stays: as many as a plan has");
    sprintf(lines + strlen(lines), "extent=5000 1 00 11 -\n");
    cr_assert_eq(decode_with("extent=", lines), -EBADMSG);
}

Test(record, too_long)
{
    char *text = calloc(1, DG_RECORD_MAX + 2);

    memset(text, 'a', DG_RECORD_MAX + 1);
    cr_assert_eq(decode(text, DG_RECORD_MAX), -EBADMSG);
    cr_assert_eq(decode(text, DG_RECORD_MAX + 1), -EBADMSG);
    free(text);
}

/* Encodes *rec, which is not a record, and puts the sample back. */
static void assert_refused(struct record *rec, const char *what)
{
    char *text = NULL;
    size_t len = 3;

    cr_assert_eq(record_encode(rec, &text, &len), -EINVAL, "%s", what);
    cr_assert_null(text);
    cr_assert_eq(len, 3u);
    struct record *fresh = sample();
    *rec = *fresh;
    free(fresh);
}

Test(record, fields_that_cannot_be_encoded)
{
    struct record *rec = sample();

    memset(rec->image, 'x', sizeof rec->image);
    assert_refused(rec, "an image path without a NUL");
    rec->host[0] = 'X';
    assert_refused(rec, "a host that is no uuid");
    rec->daemon[0] = '\0';
    assert_refused(rec, "no daemon");
    rec->step = (enum claim_step)(STEP_STUCK + 1);
    assert_refused(rec, "a step that is none");
    rec->handle.len = IO_HANDLE_MAX + 1;
    assert_refused(rec, "a handle that is too long");
    rec->handle.type = -1;
    assert_refused(rec, "a negative handle type");
    rec->mtime.tv_nsec = 1000000000;
    assert_refused(rec, "a second's worth of nanoseconds");
    rec->sync_error = -5;
    assert_refused(rec, "a negative errno");
    rec->fenced = (enum fencing)(FENCING_LOCK + 1);
    assert_refused(rec, "a fencing that is none");
    strcpy(rec->since, "today");
    assert_refused(rec, "a time of another form");
    rec->plan.n = PLAN_MAX + 1;
    assert_refused(rec, "too many extents");
    rec->plan.ext[0].len = 0;
    assert_refused(rec, "an empty extent");
    rec->plan.ext[0].len = EXTENT_MAX + 1;
    assert_refused(rec, "an extent that is too long");
    rec->plan.ext[1].off = 27;
    assert_refused(rec, "extents that overlap");
    free(rec);
}

Test(record, step_names)
{
    cr_assert_str_eq(record_step_name(STEP_FREE), "free");
    cr_assert_str_eq(record_step_name(STEP_STUCK), "stuck");
    cr_assert_not_null(record_step_name((enum claim_step)99));
}
