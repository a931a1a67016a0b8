/* The guard without a mount: two guards on one directory are two hosts. */
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>

#include "core/reader.h"
#include "guard/image.h"
#include "guard/readers.h"
#include "guard/takeover.h"
#include "guard/zone.h"
#include "guard_scene.h"
#include "hooktest.h"

#define A host[0]
#define B host[1]

Test(guard, holds_and_restores, .init = scene_make, .fini = scene_remove)
{
    struct handle *h;
    struct image_info info;
    uint64_t generation;

    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    cr_assert(h->guarded);
    cr_assert_not(is_true("disk.qcow2"), "the raw image is sealed");
    cr_assert_eq(claim_now("disk.qcow2", &generation), CLAIM_HELD);
    cr_assert_eq(busy(A, &info), 1);
    cr_assert_eq(info.state, IMAGE_SEALED);
    cr_assert_eq(info.writers, 1);
    cr_assert_eq(info.virtual_size, VIRTUAL_SIZE);
    cr_assert_eq(info.generation, generation);
    cr_assert(info.sealed);

    close_as(A, h);
    cr_assert(is_true("disk.qcow2"), "byte for byte");
    cr_assert_eq(claim_now("disk.qcow2", NULL), CLAIM_FREE);
    cr_assert_eq(busy(A, NULL), 0);
}

Test(guard, one_host_at_a_time, .init = scene_make, .fini = scene_remove)
{
    struct handle *h, *other;
    uint64_t one, two;

    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    cr_assert_eq(open_as(B, "disk.qcow2", O_RDWR, &first, &other), -EBUSY);
    cr_assert_null(other);
    cr_assert_eq(busy(B, NULL), 0, "a refused open leaves nothing");
    cr_assert_eq(claim_now("disk.qcow2", &one), CLAIM_HELD);
    close_as(A, h);

    cr_assert_eq(open_as(B, "disk.qcow2", O_RDWR, &first, &other), 0);
    cr_assert_eq(claim_now("disk.qcow2", &two), CLAIM_HELD);
    cr_assert_eq(two, one + 1, "a generation is never given out twice");
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), -EBUSY);
    close_as(B, other);
    cr_assert(is_true("disk.qcow2"));
}

Test(guard, the_holder_joins, .init = scene_make, .fini = scene_remove)
{
    struct handle *h, *again, *stranger;
    struct image_info info;

    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &again), 0, "the same process");
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &second, &stranger), -EBUSY, "another process");
    cr_assert_eq(busy(A, &info), 1);
    cr_assert_eq(info.writers, 2);
    close_as(A, h);
    cr_assert_not(is_true("disk.qcow2"), "not the last one");
    close_as(A, again);
    cr_assert(is_true("disk.qcow2"));
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &second, &stranger), 0);
    close_as(A, stranger);
}

Test(guard, any_process_of_the_host_joins, .init = scene_make, .fini = scene_remove)
{
    struct handle *h, *other;

    A->opt.writers = WRITERS_HOST;
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &second, &other), 0);
    cr_assert_eq(open_as(B, "disk.qcow2", O_RDWR, &second, &(struct handle *){NULL}), -EBUSY);
    close_as(A, h);
    close_as(A, other);
    cr_assert(is_true("disk.qcow2"));
}

Test(guard, everybody_reads_the_true_header, .init = scene_make, .fini = scene_remove)
{
    struct handle *h, *reader;
    uint8_t b[4096];

    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    for (unsigned n = 0; n < HOSTS; n++) {
        cr_assert_eq(open_as(host[n], "disk.qcow2", O_RDONLY, &second, &reader), 0);
        cr_assert_eq(image_read(host[n], reader, b, sizeof(b), 0, READ_MAY_WAIT),
                     (ssize_t)sizeof(b));
        cr_assert_arr_eq(b, truth, sizeof(b), "host %u", n);
        close_as(host[n], reader);
    }
    close_as(A, h);
}

Test(guard, a_change_of_the_header_is_kept, .init = scene_make, .fini = scene_remove)
{
    struct handle *h, *reader;
    uint8_t b[512];
    const uint64_t at = 1000; /* behind the tables that build() makes, in the zone */
    const char text[] = "written by the holder";

    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    cr_assert_not(image_is_data(h, at));
    cr_assert_eq(image_write(A, h, text, sizeof(text), at, 0), (ssize_t)sizeof(text));
    cr_assert_eq(open_as(B, "disk.qcow2", O_RDONLY, &second, &reader), 0);
    cr_assert_eq(image_read(B, reader, b, sizeof(b), at, READ_MAY_WAIT), (ssize_t)sizeof(b));
    cr_assert_str_eq((char *)b, text);
    close_as(B, reader);
    close_as(A, h);
    get_raw("disk.qcow2", truth, sizeof(truth));
    cr_assert_str_eq((char *)truth + at, text);
    cr_assert_eq(open_as(B, "disk.qcow2", O_RDWR, &first, &h), 0, "and it is an image still");
    close_as(B, h);
}

Test(guard, a_plain_file_has_no_holder, .init = scene_make, .fini = scene_remove)
{
    struct handle *h, *other;

    put_raw("notes.txt", "text", 4, 4);
    cr_assert_eq(open_as(A, "notes.txt", O_RDWR, &first, &h), 0);
    cr_assert_eq(open_as(B, "notes.txt", O_RDWR, &first, &other), 0);
    cr_assert_not(h->guarded);
    cr_assert_eq(busy(A, NULL) + busy(B, NULL), 0);
    cr_assert_eq(image_write_allowed(h), 0);
    close_as(A, h);
    close_as(B, other);
    cr_assert_eq(claim_now("notes.txt", NULL), CLAIM_NONE);
}

Test(guard, a_plain_file_becomes_an_image, .init = scene_make, .fini = scene_remove)
{
    struct handle *h, *other;

    put_raw("new.qcow2", "", 0, IMAGE_SIZE);
    cr_assert_eq(open_as(A, "new.qcow2", O_RDWR, &first, &h), 0);
    cr_assert_not(h->guarded);
    cr_assert_eq(image_write(A, h, truth, sizeof(truth), 0, 0), (ssize_t)sizeof(truth));
    cr_assert(h->guarded, "whoever wrote the header holds it");
    cr_assert_eq(claim_now("new.qcow2", NULL), CLAIM_HELD);
    cr_assert_eq(open_as(B, "new.qcow2", O_RDWR, &first, &other), -EBUSY);
    close_as(A, h);
    cr_assert(is_true("new.qcow2"));
    cr_assert_eq(open_as(B, "new.qcow2", O_RDWR, &first, &other), 0);
    close_as(B, other);
}

Test(guard, names_are_held, .init = scene_make, .fini = scene_remove)
{
    struct hold hold, mine;
    struct handle *h;
    struct inode *i = look_up(A, "disk.qcow2"), *far = look_up(B, "disk.qcow2");

    cr_assert_eq(image_hold(A, i, &first, "unlink", false, &hold, &conflict), 0);
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), -EBUSY, "nobody joins");
    cr_assert_eq(open_as(B, "disk.qcow2", O_RDWR, &first, &h), -EBUSY);
    cr_assert_eq(image_hold_check(A, &hold), 0);
    image_unhold(A, &hold);
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    cr_assert_eq(image_hold(A, i, &second, "unlink", false, &hold, &conflict), -EBUSY,
                 "another process");
    cr_assert_eq(image_hold(B, far, &first, "unlink", false, &hold, &conflict), -EBUSY,
                 "another host");
    cr_assert_eq(image_hold(A, i, &first, "unlink", false, &mine, &conflict), 0,
                 "the holder himself");
    image_unhold(A, &mine);
    close_as(A, h);
    cr_assert(is_true("disk.qcow2"));
    inode_put(A->inodes, i);
    inode_put(B->inodes, far);
}

Test(guard, a_removed_image_is_forgotten, .init = scene_make, .fini = scene_remove)
{
    struct handle *h;
    struct image_info info;

    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    cr_assert_eq(unlink(raw_path("disk.qcow2")), 0);
    close_as(A, h);
    cr_assert_eq(busy(A, &info), 0, "state %u", info.state);
    put_raw("disk.qcow2", truth, sizeof(truth), IMAGE_SIZE);
    cr_assert_eq(open_as(B, "disk.qcow2", O_RDWR, &first, &h), 0, "its name is free");
    close_as(B, h);
    cr_assert(is_true("disk.qcow2"));
}

/* What a takeover by B leaves behind: a claim of the next generation. */
static void claim_by(struct guard *g, const char *name, uint64_t generation)
{
    struct record *rec = calloc(1, sizeof(*rec));
    struct stat st;

    cr_assert_not_null(rec);
    cr_assert_eq(stat(raw_path(name), &st), 0);
    tempstore_record(&g->host, st.st_ino, generation, rec);
    cr_assert_eq(claim_acquire(&g->store, rec, &(bool){false}), 0);
    free(rec);
}

Test(guard, a_successor_fences, .init = scene_make, .fini = scene_remove)
{
    struct handle *h;
    struct image_info info;
    uint64_t generation;
    uint8_t sealed[FORMAT_REACH], after[FORMAT_REACH];

    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    cr_assert_eq(claim_now("disk.qcow2", &generation), CLAIM_HELD);
    claim_by(B, "disk.qcow2", generation + 1);
    get_raw("disk.qcow2", sealed, sizeof(sealed));
    cr_assert_eq(image_write_allowed(h), 0, "not known yet");
    image_io_failed(A, h, -EIO);
    cr_assert_eq(busy(A, &info), 1);
    cr_assert_eq(info.state, IMAGE_FENCED);
    cr_assert_eq(image_write_allowed(h), -EIO);
    close_as(A, h);
    cr_assert_eq(busy(A, NULL), 0);
    get_raw("disk.qcow2", after, sizeof(after));
    cr_assert_arr_eq(after, sealed, sizeof(after),
                     "it is the successor's: nothing is written back");
}

Test(guard, shutdown_restores, .init = scene_make, .fini = scene_remove)
{
    struct handle *h;

    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    atomic_store(&A->stopping, true);
    cr_assert_eq(image_shutdown(A), 0);
    cr_assert(is_true("disk.qcow2"));
    cr_assert_eq(claim_now("disk.qcow2", NULL), CLAIM_FREE);
    close(h->fd);
    drop(A, h);
}

Test(guard, too_small_for_threshold, .init = scene_make, .fini = scene_remove)
{
    struct handle *h;

    host_down(A);
    A = host_up(0, &(struct guard_options){.threshold = VIRTUAL_SIZE, .threshold_set = true});
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), -EPERM);
    A->opt.threshold = VIRTUAL_SIZE - 1;
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    close_as(A, h);
    cr_assert(is_true("disk.qcow2"));
}

Test(guard, the_zone_of_guest_data, .init = scene_make, .fini = scene_remove)
{
    struct handle *h;
    unsigned epoch;
    uint8_t b[512], wrote[512];

    memset(wrote, 7, sizeof(wrote));
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    cr_assert_not(image_is_data(h, 0));
    cr_assert(image_is_data(h, 512 << 10));
    cr_assert(image_direct_begin(h, 512 << 10, &epoch));
    cr_assert_eq(image_pwrite(A, h, wrote, sizeof(wrote), 512 << 10, 0), (ssize_t)sizeof(wrote));
    image_wrote(h);
    image_direct_end(h, epoch);
    cr_assert_not(image_direct_begin(h, 0, &epoch), "a header is not guest data");
    cr_assert_eq(image_pread(h, b, sizeof(b), 512 << 10), (ssize_t)sizeof(b));
    cr_assert_arr_eq(b, wrote, sizeof(b));
    close_as(A, h);
}

Test(guard, a_dependency_is_closed_to_others, .init = scene_make, .fini = scene_remove)
{
    struct handle *h, *other;
    uint8_t top[FORMAT_REACH];
    const char base[] = "disk.qcow2";

    memcpy(top, truth, sizeof(top));
    header_put(top, 8, 8, 2048); /* qcow2.txt, "Header": backing_file_offset, backing_file_size */
    header_put(top, 16, 4, sizeof(base) - 1);
    memcpy(top + 2048, base, sizeof(base) - 1);
    put_raw("top.qcow2", top, sizeof(top), IMAGE_SIZE);
    cr_assert_eq(open_as(A, "top.qcow2", O_RDWR, &first, &h), 0);
    cr_assert_eq(open_as(B, base, O_RDWR, &first, &other), -EBUSY, "its backing file");
    cr_assert_eq(open_as(B, base, O_RDONLY, &first, &other), 0, "may be read");
    close_as(B, other);
    close_as(A, h);
    cr_assert_eq(open_as(B, base, O_RDWR, &first, &other), 0);
    cr_assert_eq(open_as(A, "top.qcow2", O_RDWR, &first, &h), -EBUSY, "the other way round");
    close_as(B, other);
}

/* How many names of readers of this file the datastore has. */
static size_t names_of_readers(const struct inode *i)
{
    struct reader *found = NULL;
    size_t n = 0;

    cr_assert_eq(reader_list(&temp.store, i->ino, &found, &n), 0);
    free(found);
    return n;
}

/* QEMU's locks of a reader that wants no writer beside it: bytes 100 and 201. */
static void declare(struct guard *g, struct handle *h, struct image_reader *ret)
{
    image_reader_init(g, ret, h);
    image_reader_locked(g, h->inode, ret, F_RDLCK, 100, 1);
    image_reader_locked(g, h->inode, ret, F_RDLCK, 201, 1);
}

Test(guard, a_protecting_reader_keeps_writers_away, .init = scene_make, .fini = scene_remove)
{
    struct handle *reader, *writer;
    struct image_reader rd;
    struct flock found;

    cr_assert_eq(open_as(A, "disk.qcow2", O_RDONLY, &second, &reader), 0);
    declare(A, reader, &rd);
    cr_assert_eq(names_of_readers(reader->inode), 1);
    cr_assert_eq(image_reader_ask(A, reader->inode, &rd, F_WRLCK, 101, 1, &found, &conflict), 0);
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &writer), -EBUSY);
    cr_assert_eq(open_as(B, "disk.qcow2", O_RDWR, &first, &writer), -EBUSY);
    image_reader_forget(A, reader->inode, &rd);
    cr_assert_eq(names_of_readers(reader->inode), 0);
    cr_assert_eq(open_as(B, "disk.qcow2", O_RDWR, &first, &writer), 0);
    declare(A, reader, &rd);
    cr_assert_eq(image_reader_ask(A, reader->inode, &rd, F_WRLCK, 101, 1, &found, &conflict),
                 -EBUSY, "too late");
    image_reader_forget(A, reader->inode, &rd);
    close_as(B, writer);
    close_as(A, reader);
}

/* A release has given the claim back (held), and not yet forgotten its record. */
Test(guard, a_reader_that_comes_while_the_claim_goes, .init = scene_make, .fini = scene_remove)
{
    struct handle *reader, *writer;
    struct image_reader rd;

    cr_assert_eq(open_as(A, "disk.qcow2", O_RDONLY, &second, &reader), 0);
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &writer), 0);
    struct image *img = image_get(reader->inode);
    declare(A, reader, &rd);
    cr_assert_eq(names_of_readers(reader->inode), 0, "the claim of this host protects it");
    image_reader_forget(A, reader->inode, &rd);

    atomic_store(&img->held.valid, false);
    declare(A, reader, &rd);
    cr_assert_eq(names_of_readers(reader->inode), 1, "the claim does not any more");
    image_reader_forget(A, reader->inode, &rd);
    atomic_store(&img->held.valid, true);
    atomic_store(&img->held.io_error, EIO); /* FENCED */
    declare(A, reader, &rd);
    cr_assert_eq(names_of_readers(reader->inode), 1);
    image_reader_forget(A, reader->inode, &rd);
    atomic_store(&img->held.io_error, 0);
    close_as(A, writer);
    close_as(A, reader);
}

/* ---- why a request is refused ---- */

Test(guard, each_request_has_its_own_conflict, .init = scene_make, .fini = scene_remove)
{
    struct handle *h, *reader, *other;
    struct image_reader rd;
    struct hold hold;
    struct conflict of_hold, of_open;

    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDONLY, &second, &reader), 0);
    declare(A, reader, &rd);
    cr_assert_eq(image_hold(A, h->inode, &first, "unlink", false, &hold, &of_hold), -EBUSY);
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &second, &other), -EBUSY);
    of_open = conflict;
    cr_assert_eq(of_hold.kind, CONFLICT_READER, "kind %u", of_hold.kind);
    cr_assert_eq(of_hold.pid, second.pid);
    cr_assert_eq(of_open.kind, CONFLICT_HERE, "kind %u", of_open.kind);
    cr_assert_eq(of_open.pid, first.pid);
    image_reader_forget(A, reader->inode, &rd);
    close_as(A, reader);
    close_as(A, h);
}

Test(guard, a_conflict_names_the_holder, .init = scene_make, .fini = scene_remove)
{
    struct handle *h, *other;
    struct conflict of_claim;
    uint64_t generation;
    int fd = open(raw_path("disk.qcow2"), O_RDWR | O_CLOEXEC);
    struct flock writes = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 101, .l_len = 1};

    cr_assert_eq(open_as(B, "disk.qcow2", O_RDWR, &first, &h), 0);
    cr_assert_eq(claim_now("disk.qcow2", &generation), CLAIM_HELD);
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &second, &other), -EBUSY);
    of_claim = conflict;
    close_as(B, h);
    cr_assert_eq(fcntl(fd, F_OFD_SETLK, &writes), 0);
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &second, &other), -EBUSY);
    cr_assert_eq(conflict.kind, CONFLICT_OUTSIDE);
    close(fd);
    cr_assert_eq(of_claim.kind, CONFLICT_CLAIM, "the other request's");
    cr_assert_str_eq(of_claim.host, B->host.uuid);
    cr_assert_eq(of_claim.generation, generation);
    cr_assert_eq(of_claim.pid, first.pid);
    cr_assert_not(of_claim.released);
}

Test(guard, a_conflict_of_a_plain_writer, .init = scene_make, .fini = scene_remove)
{
    struct handle *h, *other;

    put_raw("new.qcow2", "", 0, IMAGE_SIZE);
    cr_assert_eq(open_as(A, "new.qcow2", O_RDWR, &first, &h), 0);
    put_raw("new.qcow2", truth, sizeof(truth), IMAGE_SIZE);
    cr_assert_eq(open_as(A, "new.qcow2", O_RDWR, &second, &other), -EBUSY);
    cr_assert_eq(conflict.kind, CONFLICT_OPENING);
    cr_assert_eq(conflict.pid, first.pid);
    cr_assert_eq(open_as(B, "new.qcow2", O_RDWR, &second, &other), -EBUSY);
    cr_assert_eq(conflict.kind, CONFLICT_FENCE);
    close_as(A, h);
}

Test(guard, what_the_log_says_of_a_conflict)
{
    struct conflict c = {.kind = CONFLICT_CLAIM,
                         .host_name = "two",
                         .host = "u2",
                         .pid = 7,
                         .generation = 3,
                         .since = "noon",
                         .released = true};
    const struct conflict_place at = {
        .host_name = "one", .host = "u1", .datastore = "/d", .raw = "/d/x"};
    char text[1400];

    conflict_text(&c, &at, 9, text, sizeof(text));
    cr_assert_str_eq(
        text,
        "asked for by pid 9; held by host two (u2), pid 7, since noon, generation 3, being released. It is free when that is closed there; if that host is down for good: fsck.diskguard --takeover u2 --confirm-host-is-down /d");
    for (unsigned kind = 0; kind < CONFLICT_KINDS; kind++) {
        c.kind = kind;
        conflict_text(&c, &at, 0, text, sizeof(text));
        cr_assert(strlen(text) > 100, "kind %u: %s", kind, text);
        cr_assert_null(strchr(text, '{'), "kind %u: %s", kind, text);
        conflict_text(&c, &at, 0, text, 40);
        cr_assert_eq(strlen(text), 39, "cut: %s", text);
    }
}

/* ---- states ---- */

Test(guard, every_move_of_the_table)
{
    static const char *const to[] = {
        [IMAGE_IDLE] = "sealing",
        [IMAGE_SEALING] = "idle sealed stuck",
        [IMAGE_SEALED] = "restoring fenced vanished",
        [IMAGE_RESTORING] = "idle stuck",
        [IMAGE_FENCED] = "idle",
        [IMAGE_STUCK] = "restoring",
        [IMAGE_VANISHED] = "sealed restoring",
    };
    for (unsigned a = 0; a < sizeof(to) / sizeof(*to); a++) {
        for (unsigned b = 0; b < sizeof(to) / sizeof(*to); b++) {
            const char *name = image_state_name(b), *at = strstr(to[a], name);
            while (at && at > to[a] && at[-1] != ' ') /* "sealed" is no part of another word */
                at = strstr(at + 1, name);
            cr_assert_eq(image_may_move(a, b), at != NULL, "%s -> %s", image_state_name(a), name);
        }
    }
}

/* Makes the move in a child process. true: that was stopped. */
static bool move_stops(struct guard *g, struct image *img, enum image_state to)
{
    int status = 0;
    fflush(NULL);
    pid_t pid = fork();

    cr_assert(pid >= 0);
    if (pid == 0) {
        image_move(g, img, to, 0);
        _exit(0);
    }
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

Test(guard, a_wrong_move_is_caught, .init = scene_make, .fini = scene_remove)
{
    struct handle *h;
    struct inode *i = look_up(A, "disk.qcow2");
    struct image *img = image_get(i);

    cr_assert(move_stops(A, img, IMAGE_SEALED), "not in the table");
    cr_assert(move_stops(A, img, IMAGE_RESTORING));
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    cr_assert(move_stops(A, img, IMAGE_IDLE));
#ifdef DG_HOOKS
    cr_assert(move_stops(A, img, IMAGE_RESTORING), "in the table, but a handle holds it");
    cr_assert(move_stops(A, img, IMAGE_FENCED), "in the table, but it may be written");
#endif
    cr_assert_not(move_stops(A, img, IMAGE_VANISHED));
    close_as(A, h);
    inode_put(A->inodes, i);
}

/* ---- what goes wrong ---- */

/* Bytes behind the views' back. */
static void write_raw(const char *name, const void *bytes, size_t len, off_t at)
{
    int fd = open(raw_path(name), O_WRONLY | O_CLOEXEC);

    cr_assert(fd >= 0);
    cr_assert_eq(pwrite(fd, bytes, len, at), (ssize_t)len);
    close(fd);
}

/* Rounds of the monitor until the image has that state, or (IDLE) is no more: at most 10 s. */
static bool maintained(struct guard *g, enum image_state want)
{
    struct image_maintain *t = image_maintain_new(g);
    struct image_info info = {.state = IMAGE_IDLE};

    cr_assert_not_null(t);
    for (unsigned k = 0; k < 1000; k++) {
        image_maintain_round(t);
        usleep(10000);
        if (busy(g, &info) == 0)
            info.state = IMAGE_IDLE;
        if (info.state == want)
            break;
    }
    image_maintain_free(t);
    return info.state == want;
}

Test(guard, what_is_stuck_is_tried_again, .init = scene_make, .fini = scene_remove)
{
    struct handle *h, *other;
    struct image_info info;
    uint8_t sealed[FORMAT_REACH], alien[FORMAT_REACH];

    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    get_raw("disk.qcow2", sealed, sizeof(sealed));
    for (size_t k = 0; k < sizeof(alien); k++)
        alien[k] = sealed[k] == truth[k] ? sealed[k] : (uint8_t)(0xff ^ sealed[k] ^ truth[k]);
    write_raw("disk.qcow2", alien, sizeof(alien), 0);
    close_as(A, h);
    cr_assert_eq(busy(A, &info), 1);
    cr_assert_eq(info.state, IMAGE_STUCK);
    cr_assert_eq(info.error, EUCLEAN);
    get_raw("disk.qcow2", sealed, sizeof(sealed));
    cr_assert_arr_eq(sealed, alien, sizeof(alien), "somebody else's bytes are not touched");
    cr_assert_eq(claim_now("disk.qcow2", NULL), CLAIM_HELD);
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &other), -EBUSY);
    cr_assert_eq(conflict.kind, CONFLICT_BROKEN);
    cr_assert_eq(open_as(B, "disk.qcow2", O_RDWR, &first, &other), -EBUSY);
    cr_assert_eq(conflict.kind, CONFLICT_CLAIM);

    write_raw("disk.qcow2", truth, sizeof(truth), 0); /* a person repairs it */
    cr_assert(maintained(A, IMAGE_IDLE));
    cr_assert(is_true("disk.qcow2"));
    cr_assert_eq(claim_now("disk.qcow2", NULL), CLAIM_FREE);
    cr_assert_eq(open_as(B, "disk.qcow2", O_RDWR, &first, &other), 0);
    close_as(B, other);
}

#ifdef DG_HOOKS
static bool disk_is_sick;

/* The disk takes the seal but cannot say so, and from then on it refuses every header write. */
static int sick_disk(const char *name)
{
    if (strcmp(name, "io.fsync") == 0 && !is_true("disk.qcow2"))
        disk_is_sick = true;
    return disk_is_sick && (strcmp(name, "io.fsync") == 0 || strcmp(name, "io.header.write") == 0)
               ? -EIO
               : 0;
}

Test(guard, a_seal_that_cannot_be_undone, .init = scene_make, .fini = scene_remove)
{
    struct handle *h;
    struct image_info info;

    disk_is_sick = false;
    hooktest = sick_disk;
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), -EIO);
    cr_assert_eq(busy(A, &info), 1);
    cr_assert_eq(info.state, IMAGE_STUCK);
    cr_assert_eq(info.error, EIO);
    cr_assert_not(is_true("disk.qcow2"));
    cr_assert_eq(claim_now("disk.qcow2", NULL), CLAIM_HELD, "the way back is kept");
    cr_assert_eq(open_as(B, "disk.qcow2", O_RDWR, &first, &h), -EBUSY);
    cr_assert(maintained(A, IMAGE_STUCK), "while the disk is sick");

    hooktest = NULL;
    cr_assert(maintained(A, IMAGE_IDLE));
    cr_assert(is_true("disk.qcow2"));
    cr_assert_eq(claim_now("disk.qcow2", NULL), CLAIM_FREE);
    cr_assert_eq(open_as(B, "disk.qcow2", O_RDWR, &first, &h), 0);
    close_as(B, h);
}

static uint64_t lost_generation;

/* A takeover by B between the seal and the answer of the open. */
static int lose_the_claim(const char *name)
{
    if (strcmp(name, "image.fence.open") == 0) {
        hooktest = NULL;
        claim_by(B, "disk.qcow2", lost_generation + 1);
    }
    return 0;
}

Test(guard, a_claim_that_is_lost_during_the_open, .init = scene_make, .fini = scene_remove)
{
    struct handle *h;

    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    cr_assert_eq(claim_now("disk.qcow2", &lost_generation), CLAIM_HELD);
    close_as(A, h);
    lost_generation++;
    hooktest = lose_the_claim;
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), -EBUSY);
    cr_assert_null(hooktest);
    cr_assert_eq(busy(A, NULL), 0, "FENCED, and then IDLE");
    cr_assert_not(is_true("disk.qcow2"), "it is the successor's");
    cr_assert_eq(claim_now("disk.qcow2", NULL), CLAIM_HELD);
}
#endif

Test(guard, what_has_vanished_is_forgotten, .init = scene_make, .fini = scene_remove)
{
    struct handle *h;
    struct image_info info;

    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    cr_assert_eq(unlink(raw_path("disk.qcow2")), 0);
    cr_assert(maintained(A, IMAGE_VANISHED));
    cr_assert_eq(busy(A, &info), 1, "its holder goes on");
    cr_assert_eq(image_write_allowed(h), 0);
    close_as(A, h);
    cr_assert_eq(busy(A, NULL), 0);
}

Test(guard, what_has_vanished_comes_back, .init = scene_make, .fini = scene_remove)
{
    struct handle *h;

    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    fake_gone = 1; /* a server that is just being moved does not find the file */
    cr_assert(maintained(A, IMAGE_VANISHED));
    cr_assert_not(is_true("disk.qcow2"), "nothing is given up");
    fake_gone = 0;
    cr_assert(maintained(A, IMAGE_SEALED));
    cr_assert_eq(image_write_allowed(h), 0);
    close_as(A, h);
    cr_assert(is_true("disk.qcow2"));
    cr_assert_eq(claim_now("disk.qcow2", NULL), CLAIM_FREE);
}

Test(guard, shutdown_of_what_has_vanished, .init = scene_make, .fini = scene_remove)
{
    struct handle *h;

    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    cr_assert_eq(unlink(raw_path("disk.qcow2")), 0);
    cr_assert(maintained(A, IMAGE_VANISHED));
    atomic_store(&A->stopping, true);
    cr_assert_eq(image_shutdown(A), 0);
    cr_assert_eq(busy(A, NULL), 0);
    close(h->fd);
    drop(A, h);
}

Test(guard, shutdown_tries_what_is_stuck, .init = scene_make, .fini = scene_remove)
{
    const uint8_t alien[FORMAT_REACH] = {0};
    struct handle *h;
    struct image_info info;

    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    write_raw("disk.qcow2", alien, sizeof(alien), 0);
    close_as(A, h);
    atomic_store(&A->stopping, true);
    cr_assert_eq(image_shutdown(A), 1, "it says how many are left");
    cr_assert_eq(busy(A, &info), 1);
    cr_assert_eq(info.state, IMAGE_STUCK);
    write_raw("disk.qcow2", truth, sizeof(truth), 0);
    cr_assert_eq(image_shutdown(A), 0);
    cr_assert_eq(busy(A, NULL), 0);
    cr_assert_eq(claim_now("disk.qcow2", NULL), CLAIM_FREE);
}

/* A daemon that dies leaves its claim and its seal; the kernel closes its descriptors. */
Test(guard, the_next_open_settles_what_a_crash_left, .init = scene_make, .fini = scene_remove)
{
    struct handle *h, *other;
    uint64_t was, now;

    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    cr_assert_eq(claim_now("disk.qcow2", &was), CLAIM_HELD);
    struct image *img = image_get(h->inode);
    struct packed *packed = img->held.packed; /* the process would have taken it along */
    close(img->held.fd);
    close(h->fd);
    drop(A, h);
    host_down(A);
    free(packed);
    A = NULL;
    cr_assert_eq(open_as(B, "disk.qcow2", O_RDWR, &first, &other), -EBUSY, "it may be alive");
    cr_assert_eq(conflict.kind, CONFLICT_CLAIM);

    A = host_up(0, &(struct guard_options){0});
    for (int r = -EBUSY, k = 0; r == -EBUSY && k < 10; k++)
        r = open_as(A, "disk.qcow2", O_RDWR, &first, &h);
    cr_assert_not_null(h, "the first attempt restored the header, the next one takes it");
    cr_assert_eq(claim_now("disk.qcow2", &now), CLAIM_HELD);
    cr_assert(now > was);
    close_as(A, h);
    cr_assert(is_true("disk.qcow2"));
}

/* ---- the drain of direct changes ---- */

static void *drain(void *arg) NO_THREAD_SAFETY_ANALYSIS
{
    struct image *img = arg;

    rwlock_write(&img->header);
    image_drain(img);
    rwlock_write_unlock(&img->header);
    return NULL;
}

Test(guard, a_wider_zone_waits_for_writes_under_way, .init = scene_make, .fini = scene_remove)
{
    struct handle *h;
    unsigned early, late;
    pthread_t thread;

    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    struct image *img = image_get(h->inode);
    cr_assert(image_direct_begin(h, 512 << 10, &early));
    cr_assert_eq(pthread_create(&thread, NULL, drain, img), 0);
    for (unsigned k = 0; k < 1000 && !atomic_load(&img->zone.draining); k++)
        usleep(1000);
    cr_assert(atomic_load(&img->zone.draining), "it waits for the write");
    cr_assert(image_direct_begin(h, 512 << 10, &late), "a new write need not wait");
    cr_assert_neq(early, late, "it counts elsewhere");
    cr_assert_eq(pthread_tryjoin_np(thread, NULL), EBUSY);
    image_direct_end(h, late);
    image_direct_end(h, early);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    close_as(A, h);
    cr_assert(is_true("disk.qcow2"));
}

/* Without it nothing is taken from a host that looks dead. */
Test(guard, a_takeover_needs_storage_that_fences, .init = scene_make, .fini = scene_remove)
{
    struct handle *h;
    struct why why = {""};
    struct inode *i = look_up(B, "disk.qcow2");

    cr_assert_eq(takeover_attempt(B, i, true, &why), 0, "nobody holds it: %s", why.text);
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    cr_assert_eq(takeover_attempt(B, i, true, &why), -EPERM, "%s", why.text);
    cr_assert_not_null(strstr(why.text, "no readable record"), "%s", why.text);
    fake_fencing = FENCING_UNPROVEN;
    cr_assert_eq(takeover_attempt(B, i, false, &why), -EPERM);
    cr_assert_not_null(strstr(why.text, "lock-unproven accepts that"), "%s", why.text);
    fake_fencing = FENCING_NO;
    cr_assert_eq(takeover_attempt(B, i, true, &why), -EPERM);
    cr_assert_not_null(strstr(why.text, "does not prove"), "%s", why.text);
    cr_assert_eq(busy(B, NULL), 0);
    cr_assert_eq(claim_now("disk.qcow2", NULL), CLAIM_HELD);
    cr_assert_eq(image_write_allowed(h), 0);
    close_as(A, h);
    inode_put(B->inodes, i);
    cr_assert(is_true("disk.qcow2"));
}

/* The holder hangs, the storage drops its locks, another host takes the image. */
Test(guard, a_takeover_that_goes_through, .init = scene_make, .fini = scene_remove)
{
    struct handle *h, *other;
    struct image_info info;
    struct why why = {""};
    struct inode *i = look_up(B, "disk.qcow2");
    uint64_t was, now;
    int alive = host_lock(&A->store, &A->host, &why), r;

    cr_assert(alive >= 0, "%s", why.text);
    cr_assert_eq(host_heartbeat(alive, &A->host, 1), 0);
    fake_fencing = FENCING_LOCK;
    B->heartbeat_ms = 20;
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    cr_assert_eq(claim_now("disk.qcow2", &was), CLAIM_HELD);
    cr_assert_eq(takeover_attempt(A, h->inode, false, &why), -EBUSY, "it is its own");
    cr_assert_eq(takeover_attempt(B, i, false, &why), -EAGAIN, "not watched long enough");
    for (unsigned heartbeat = 2; heartbeat < 4; heartbeat++) {
        cr_assert_eq(host_heartbeat(alive, &A->host, heartbeat), 0);
        r = takeover_attempt(B, i, false, &why);
    }
    cr_assert_eq(r, -EBUSY, "it lives: %s", why.text);
    usleep(1000 * (TAKEOVER_HEARTBEATS + 1) * B->heartbeat_ms); /* silence itself is tested */
    cr_assert_eq(takeover_attempt(B, i, false, &why), -EAGAIN, "%s", why.text);
    cr_assert_not_null(strstr(why.text, "still locked"), "%s", why.text);
    close(alive);
    cr_assert_eq(takeover_attempt(B, i, false, &why), -EAGAIN, "%s", why.text);
    cr_assert_not_null(strstr(why.text, "does not give the fence lock"), "%s", why.text);
    cr_assert_eq(image_write_allowed(h), 0);
    cr_assert_eq(busy(B, NULL), 0);

    struct image *img = image_get(h->inode);
    io_fence_drop(img->held.fd, A->store.fence);
    io_fence_drop(h->fd, A->store.fence);
    cr_assert_eq(takeover_attempt(B, i, false, &why), 0, "%s", why.text);
    cr_assert_eq(busy(B, NULL), 0);
    cr_assert(is_true("disk.qcow2"), "byte for byte");
    cr_assert_eq(claim_now("disk.qcow2", &now), CLAIM_FREE, "it is anybody's");
    cr_assert_eq(now, was + 1);
    cr_assert_eq(open_as(B, "disk.qcow2", O_RDWR, &first, &other), 0);

    cr_assert(maintained(A, IMAGE_FENCED), "the former holder finds out");
    cr_assert_eq(image_write_allowed(h), -EIO);
    close_as(A, h);
    cr_assert_eq(busy(A, NULL), 0);
    cr_assert_not(is_true("disk.qcow2"), "the seal of B is not touched");
    close_as(B, other);
    cr_assert(is_true("disk.qcow2"));
    cr_assert_eq(busy(B, &info), 0);
    inode_put(B->inodes, i);
}

/* The claim says that the holder's mount does not fence: that ours does is not enough. */
Test(guard, a_takeover_where_the_holder_is_not_fenced, .init = scene_make, .fini = scene_remove)
{
    struct handle *h;
    struct why why = {""};
    struct inode *i = look_up(B, "disk.qcow2");

    fake_fencing = FENCING_NO;
    cr_assert_eq(open_as(A, "disk.qcow2", O_RDWR, &first, &h), 0);
    fake_fencing = FENCING_LOCK;
    cr_assert_eq(takeover_attempt(B, i, true, &why), -EPERM);
    cr_assert_not_null(strstr(why.text, "the claim of host"), "%s", why.text);
    cr_assert_eq(claim_now("disk.qcow2", NULL), CLAIM_HELD);
    close_as(A, h);
    inode_put(B->inodes, i);
}
