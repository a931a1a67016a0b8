/* seal_crash.c: the protocol of seal.c, claim.c and recover.c under a process that
 * dies at every single durable operation.
 *
 * A child opens an image as the daemon would (journal, claim, seal), carries out a random list of
 * edits, restores, and reports over a pipe how far it came. It dies at the k-th hook, for every k
 * until it survives. Then another child recovers (with the journal; in a second run without it; and
 * dying itself at the j-th hook, again and again), and the parent compares each byte with a model
 * that did the same edits on a plain buffer: acknowledged edits must be there, the one under way
 * may be there or not, and nothing else. In between, a raw opener must never find a usable header
 * while the image is acknowledged as sealed.
 *
 *   seal_crash [SEEDS [FIRST]]      needs a build with -Dhooks=true */
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "../unit/qcow2_header.h"
#include "core/recover.h"
#include "core/seal.h"

#define FILE_SIZE (1u << 20)
#define EDITS 5
#define CHECKED (64u * 1024u) /* bytes compared; every edit lies in them */
#define MAX_POINTS 2000

enum progress { P_NOTHING, P_SEALED, P_EDIT, P_RESTORING = P_EDIT + EDITS, P_DONE };

struct op {
    struct edit e;
    uint8_t bytes[4096];
};
struct plan_of_test {
    struct op op[EDITS];
    uint8_t *model[EDITS + 1]; /* the file after so many edits */
    uint64_t size[EDITS + 1];
    uint32_t version;
};

static char dir[64], image[96], store_path[96], state[96];
static const char host_uuid[] = "11111111-2222-4333-8444-555555555555";
static unsigned failures, runs;

static void die(const char *what, int r)
{
    fprintf(stderr, "seal_crash: %s: %s\n", what, strerror(r < 0 ? -r : errno));
    _exit(3);
}

/* ---- the random list of edits, and the model ---- */

static unsigned long rnd_state;
static unsigned rnd(unsigned below)
{
    rnd_state = rnd_state * 6364136223846793005ul + 1442695040888963407ul;
    return (unsigned)(rnd_state >> 33) % below;
}

static void make_edit(struct plan_of_test *t, unsigned n)
{
    struct op *op = &t->op[n];
    uint8_t *m = t->model[n + 1];
    memcpy(m, t->model[n], CHECKED);
    t->size[n + 1] = t->size[n];
    op->e = (struct edit){.kind = EDIT_WRITE, .buf = op->bytes};
    switch (rnd(9)) {
    case 0: /* resize: the size field alone */
        op->e.off = 24;
        op->e.len = 8;
        header_put(op->bytes, 0, 8, (uint64_t)(1 + rnd(64)) << 24);
        break;
    case 1: /* dirty bit */
        op->e.off = 72;
        op->e.len = 8;
        header_put(op->bytes, 0, 8, t->version == 3 ? rnd(2) : 0);
        break;
    case 2: /* the whole header again, as QEMU does, in the other version or with another table */
        t->version = rnd(2) ? 3 : 2;
        op->e.len = 4096;
        header_build(op->bytes, t->version, (uint64_t)(1 + rnd(64)) << 24, rnd(2) ? 8 : rnd(8),
                     rnd(2) * 64);
        break;
    case 3: /* the same header once more */
        op->e.len = 4096;
        memcpy(op->bytes, m, 4096);
        break;
    case 4: /* anything, anywhere: also over the magic */
        op->e.off = rnd(600);
        op->e.len = 1 + rnd(700);
        for (unsigned i = 0; i < op->e.len; i++)
            op->bytes[i] = (uint8_t)rnd(256);
        break;
    case 5:
        op->e = (struct edit){.kind = EDIT_ZERO,
                              .off = rnd(600),
                              .len = 1 + rnd(4000),
                              .mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE};
        break;
    case 6: /* qemu-img create over an image */
        op->e = (struct edit){.kind = EDIT_TRUNCATE, .off = rnd(2) ? 0 : rnd(600)};
        break;
    case 7:
        op->e = (struct edit){.kind = EDIT_TRUNCATE, .off = 4096u * (1 + rnd(512))};
        break;
    default:
        op->e.off = 504 + rnd(3000);
        op->e.len = 1 + rnd(500);
        memset(op->bytes, (int)rnd(256), op->e.len);
    }
    struct edit *e = &op->e;
    uint64_t end = e->off + e->len;
    if (e->kind == EDIT_WRITE) {
        memcpy(m + e->off, op->bytes, e->len);
        t->size[n + 1] = DG_MAX(t->size[n], end);
    } else if (e->kind == EDIT_ZERO) {
        memset(m + e->off, 0, e->len);
    } else {
        t->size[n + 1] = e->off;
        if (e->off < CHECKED)
            memset(m + e->off, 0, CHECKED - e->off);
    }
}

static void make_test(struct plan_of_test *t, unsigned long seed)
{
    rnd_state = seed * 2654435761ul + 12345;
    for (unsigned n = 0; n < 20; n++)
        rnd(2);
    for (unsigned n = 0; n <= EDITS; n++)
        if (!t->model[n] && !(t->model[n] = malloc(CHECKED)))
            die("malloc", -ENOMEM);
    t->version = rnd(3) ? 3 : 2;
    memset(t->model[0], 0, CHECKED);
    header_build(t->model[0], t->version, (uint64_t)(1 + rnd(64)) << 24, 8, 0);
    for (unsigned i = 4096; i < CHECKED; i++)
        t->model[0][i] = (uint8_t)(i * 7);
    t->size[0] = FILE_SIZE;
    for (unsigned n = 0; n < EDITS; n++)
        make_edit(t, n);
}

/* ---- a small datastore, made anew from nothing for each run ---- */

static int rm_entry(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(path);
}

static void wipe(const char *path)
{
    nftw(path, rm_entry, 8, FTW_DEPTH | FTW_PHYS);
}

static void put_image(const struct plan_of_test *t)
{
    int fd = open(image, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || pwrite(fd, t->model[0], CHECKED, 0) != CHECKED || ftruncate(fd, FILE_SIZE) < 0)
        die("image", 0);
    close(fd);
}

static int wait_status(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            die("waitpid", 0);
    return WEXITSTATUS(status);
}

static void make_store(const struct plan_of_test *t)
{
    struct store s;
    struct why why;
    wipe(store_path);
    wipe(state);
    if (mkdir(store_path, 0700) < 0 || mkdir(state, 0700) < 0)
        die("mkdir", 0);
    /* hook.c reads the environment once a process: the parent must not pass any hook */
    pid_t pid = fork();
    if (pid == 0) {
        int r = store_init(store_path, &s, &why);
        if (r < 0)
            die(why.text, r);
        _exit(0);
    }
    if (wait_status(pid) != 0)
        die("store_init", -EIO);
    put_image(t);
}

/* ---- the children ---- */

struct env {
    struct store store;
    struct host host;
    struct journal *journal;
};

static void env_open(struct env *v, bool with_journal)
{
    struct why why;
    int r = store_open(store_path, &v->store, &why);
    if (r == 0)
        r = host_load(host_uuid, state, &v->host, &why);
    if (r == 0 && with_journal)
        r = journal_open(state, v->store.uuid, &v->journal, &why);
    if (r < 0)
        die(why.text, r);
}

static void tell(int pipe_fd, char progress)
{
    if (write(pipe_fd, &progress, 1) != 1)
        _exit(3);
}

static void work(const struct plan_of_test *t, int pipe_fd)
{
    static struct env v;
    static struct record rec;
    static struct header h;
    env_open(&v, true);
    struct seal s = {
        .store = &v.store, .journal = v.journal, .rec = &rec, .policy = {SEAL_REFUSE, "nodeA"}};
    struct stat st;
    s.fd = open(image, O_RDWR);
    if (s.fd < 0 || fstat(s.fd, &st) < 0 || header_load(s.fd, &h) < 0)
        die("open", 0);
    header_identify(&h);
    if (h.verdict != FORMAT_IMAGE)
        die(h.info.why, -EUCLEAN);
    snprintf(rec.image, sizeof(rec.image), "image");
    snprintf(rec.format, sizeof(rec.format), "qcow2");
    snprintf(rec.host_name, sizeof(rec.host_name), "nodeA");
    memcpy(rec.host, v.host.uuid, sizeof(dg_uuid));
    memcpy(rec.installation, v.host.installation, sizeof(dg_uuid));
    memcpy(rec.boot, v.host.boot, sizeof(dg_uuid));
    memcpy(rec.daemon, v.host.daemon, sizeof(dg_uuid));
    base_time_text(rec.since);
    rec.ino = st.st_ino;
    rec.generation = 1;
    rec.seq = 1;
    rec.step = STEP_ARMED;
    rec.cut = OVERLAY_NO_CUT;
    rec.mtime = st.st_mtim;
    int r = io_handle_get(s.fd, &rec.handle);
    if (r == 0)
        r = header_plan(&h, &s.policy, &rec.plan);
    if (r == 0)
        r = journal_put(v.journal, &rec);
    if (r == 0)
        r = claim_acquire(&v.store, &rec, &(bool){false});
    if (r == 0)
        r = io_fence_shared(s.fd, v.store.fence);
    if (r == 0)
        r = seal_write(&s);
    if (r < 0)
        die("seal", r);
    tell(pipe_fd, P_SEALED);
    for (unsigned n = 0; n < EDITS; n++) {
        r = seal_edit(&s, &t->op[n].e);
        if (r < 0)
            die("edit", r);
        tell(pipe_fd, (char)(P_EDIT + n));
    }
    tell(pipe_fd, P_RESTORING);
    r = io_fsync(s.fd);
    if (r == 0)
        r = seal_restore(&s);
    if (r < 0)
        die("restore", r);
    tell(pipe_fd, P_DONE);
    _exit(0);
}

static void report(void *arg, const struct record *rec, struct recover_decision d, int done)
{
    (void)rec;
    if (done != 0)
        fprintf(stderr, "  recovery: %s, %s, %d\n", recover_action_name(d.action),
                problem_info(d.problem)->code, done);
    *(int *)arg |= done;
}

static void recover_child(bool with_journal)
{
    static struct env v;
    int left = 0;
    unsigned stale;
    env_open(&v, with_journal);
    int r = claim_sweep(&v.store, &v.host, false, &stale);
    struct recover rc = {.store = &v.store,
                         .journal = v.journal,
                         .host = &v.host,
                         .policy = {SEAL_REFUSE, "nodeA"},
                         .report = report,
                         .arg = &left};
    if (r == 0)
        r = recover_all(&rc);
    _exit(r == 0 && left == 0 ? 0 : 1);
}

static void kill_at(unsigned k)
{
    char text[16];
    snprintf(text, sizeof(text), "%u", k);
    if (k)
        setenv("DISKGUARD_HOOK_KILL", text, 1);
}

/* Exit status, and the last progress told. */
static int run_work(const struct plan_of_test *t, unsigned k, int *ret_progress)
{
    int p[2];
    if (pipe(p) < 0)
        die("pipe", 0);
    pid_t pid = fork();
    if (pid == 0) {
        close(p[0]);
        kill_at(k);
        work(t, p[1]);
    }
    close(p[1]);
    char c;
    *ret_progress = P_NOTHING;
    while (read(p[0], &c, 1) == 1)
        *ret_progress = c;
    close(p[0]);
    return wait_status(pid);
}

static int run_recover(bool with_journal, unsigned k)
{
    pid_t pid = fork();
    if (pid == 0) {
        kill_at(k);
        recover_child(with_journal);
    }
    return wait_status(pid);
}

/* ---- what must hold ---- */

static void fail(unsigned long seed, unsigned k, int progress, const char *fmt, unsigned long a,
                 unsigned long b)
{
    failures++;
    fprintf(stderr, "FAILED seed %lu, point %u, progress %d: ", seed, k, progress);
    fprintf(stderr, fmt, a, b);
    fputc('\n', stderr);
}

static uint64_t slurp(uint8_t *buf)
{
    memset(buf, 0, CHECKED);
    int fd = open(image, O_RDONLY);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0 || pread(fd, buf, CHECKED, 0) < 0)
        die("read image", 0);
    close(fd);
    return (uint64_t)st.st_size;
}

/* While it is acknowledged as sealed, a raw opener finds the marks, wherever the holder's own
 * header is one that a hypervisor would open. */
static void check_raw(const struct plan_of_test *t, unsigned long seed, unsigned k, int progress)
{
    static struct header h;
    if (progress < P_SEALED || progress >= P_RESTORING)
        return;
    unsigned done = progress < P_EDIT ? 0 : (unsigned)(progress - P_EDIT) + 1;
    /* what a format wants to see beyond the first bytes */
    int zeros = memfd_create("zeros", MFD_CLOEXEC);
    header_clear(&h);
    h.file_size = t->size[done];
    h.n = (size_t)DG_MIN(t->size[done], (uint64_t)FORMAT_REACH);
    memcpy(h.bytes, t->model[done], FORMAT_REACH);
    if (zeros < 0 || header_settle(zeros, &h) < 0)
        die("identify", 0);
    close(zeros);
    bool image_before = h.verdict == FORMAT_IMAGE;
    int fd = open(image, O_RDONLY);
    if (fd < 0 || header_load(fd, &h) < 0)
        die("read header", 0);
    close(fd);
    if (image_before && h.verdict == FORMAT_IMAGE)
        fail(seed, k, progress, "a raw opener would take the image (verdict %lu)%.0lu", h.verdict,
             0);
}

static void check_content(const struct plan_of_test *t, unsigned long seed, unsigned k,
                          int progress)
{
    static uint8_t buf[CHECKED];
    uint64_t size = slurp(buf);
    unsigned done = progress < P_EDIT         ? 0
                    : progress >= P_RESTORING ? EDITS
                                              : (unsigned)(progress - P_EDIT) + 1;
    unsigned next = progress >= P_SEALED && done < EDITS ? done + 1 : done;
    if (size != t->size[done] && size != t->size[next])
        fail(seed, k, progress, "size %lu, should be %lu", size, t->size[done]);
    for (unsigned i = 0; i < CHECKED; i++) {
        if (buf[i] != t->model[done][i] && buf[i] != t->model[next][i]) {
            fail(seed, k, progress, "byte %lu is %02lx", i, buf[i]);
            return;
        }
    }
}

static void check_free(unsigned long seed, unsigned k, int progress)
{
    static struct claim c;
    struct stat st;
    pid_t pid = fork();
    if (pid == 0) {
        static struct env v;
        env_open(&v, false);
        if (stat(image, &st) < 0 || claim_read(&v.store, st.st_ino, &c) < 0)
            die("claim", 0);
        _exit(c.kind == CLAIM_FREE || c.kind == CLAIM_NONE ? 0 : 1);
    }
    if (wait_status(pid) != 0)
        fail(seed, k, progress, "the claim is left%.0lu%.0lu", 0, 0);
}

/* One crash at k, then recovery: whole, or dying at j = 1, 2, ... until one survives. false: the
 * work survived. */
static bool one(struct plan_of_test *t, unsigned long seed, unsigned k, bool with_journal,
                bool crash_again)
{
    int progress;
    runs++;
    make_store(t);
    int status = run_work(t, k, &progress);
    if (status != 0 && status != 137) {
        fail(seed, k, progress, "the work failed, status %lu%.0lu", (unsigned long)status, 0);
        return false;
    }
    if (status == 137)
        check_raw(t, seed, k, progress);
    unsigned j = 1;
    while (crash_again && j < MAX_POINTS && run_recover(with_journal, j) == 137)
        j++;
    if (run_recover(with_journal, 0) != 0)
        fail(seed, k, progress, "recovery left something (journal %lu, crashes %lu)", with_journal,
             j - 1);
    check_content(t, seed, k, progress);
    check_free(seed, k, progress);
    return status == 137;
}

int main(int argc, char **argv)
{
    unsigned long seeds = argc > 1 ? strtoul(argv[1], NULL, 10) : 10,
                  first = argc > 2 ? strtoul(argv[2], NULL, 10) : 1;
    static struct plan_of_test t;
#ifndef DG_HOOKS
    printf("seal_crash: built without hooks, nothing would be tested\n");
    printf("0 passed, 0 failed, 1 skipped\n");
    return 77;
#endif
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof(dir), "%.40s/seal_crash.XXXXXX", tmp && tmp[0] ? tmp : "/tmp");
    if (!mkdtemp(dir))
        die("mkdtemp", 0);
    snprintf(store_path, sizeof(store_path), "%s/store", dir);
    snprintf(image, sizeof(image), "%s/store/image", dir);
    snprintf(state, sizeof(state), "%s/state", dir);
    for (unsigned long seed = first; seed < first + seeds; seed++) {
        make_test(&t, seed);
        unsigned k = 1;
        bool died;
        do {
            died = one(&t, seed, k, true, k % 3 == 0);
            one(&t, seed, k, false, k % 3 == 1);
        } while (died && ++k < MAX_POINTS && failures < 20);
        printf("seed %lu: %u points\n", seed, k - 1);
        fflush(stdout);
    }
    wipe(dir);
    printf("%u passed, %u failed, 0 skipped\n", runs - DG_MIN(runs, failures), failures);
    return failures ? 1 : 0;
}
