/* replay.c: runs files of the fuzzers' input form (sparse.h) without a fuzzer: for gcc, valgrind,
 * and a test.
 *
 *     fuzz_replay [--tools] [FORMAT] PATH...   each PATH a file, or a directory that is walked.
 * FORMAT: "all" or a format's name; without it, the name of the directory that the file is in
 * (corpus/qcow2/...) says which. --tools: the files are images that real tools made
 * (contract_bounds) fuzz_replay --seal FORMAT IN OUT   OUT: the image of IN with its seal on; exit
 * code 1: it is no image, or it has none
 *
 * The files run in a child: one that dies, or takes longer than TIMEOUT, is reported and the next
 * one runs. The last line is "N passed, N failed, N skipped". */
#include "contract.h"

#include <ftw.h>
#include <libgen.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define TIMEOUT 60 /* seconds; valgrind is slow */
#define INPUT_MAX (1u << 20)

static const char *named; /* FORMAT, or NULL */
static char **files;
static size_t n_files;
struct progress {
    size_t at; /* the file that runs */
    struct contract_seen seen;
};
static struct progress *progress;

static uint8_t *read_file(const char *path, size_t *ret_size)
{
    FILE *f = fopen(path, "rb");
    uint8_t *data = malloc(INPUT_MAX), *exact;

    if (!f || !data) {
        perror(path);
        exit(2);
    }
    *ret_size = fread(data, 1, INPUT_MAX, f);
    fclose(f);
    exact = realloc(data, *ret_size ? *ret_size : 1); /* so that ASan knows its end */
    return exact ? exact : data;
}

static bool is_format(const char *name)
{
    return strcmp(name, "all") == 0 || format_by_name(name);
}

static const char *format_of(const char *path, char *copy, size_t size)
{
    if (named)
        return named;
    snprintf(copy, size, "%s", path);
    return basename(dirname(copy));
}

static void replay(const char *path)
{
    char copy[4096];
    size_t size;
    uint8_t *data = read_file(path, &size);

    contract_check(format_of(path, copy, sizeof(copy)), data, size);
    free(data);
}

static int add_file(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    char **more;

    (void)st;
    (void)ftw;
    if (type != FTW_F)
        return 0;
    more = realloc(files, (n_files + 1) * sizeof(*files));
    if (!more || !(more[n_files] = strdup(path)))
        return -1;
    files = more;
    n_files++;
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* From files[from] on, until one fails. Returns its index, or n_files. */
static size_t run_from(size_t from)
{
    int status;
    pid_t pid;

    fflush(stdout);
    pid = fork();
    if (pid < 0) {
        perror("fork");
        exit(2);
    }
    if (pid == 0) {
        contract_seen = progress->seen;
        for (size_t i = from; i < n_files; i++) {
            progress->at = i;
            alarm(TIMEOUT);
            replay(files[i]);
            progress->seen = contract_seen;
        }
        progress->at = n_files;
        for (size_t i = 0; i < n_files; i++)
            free(files[i]);
        free(files);
        exit(0); /* with a look for leaks */
    }
    if (waitpid(pid, &status, 0) != pid || status == 0)
        return n_files;
    printf("FAILED: %s: %s %d\n", progress->at < n_files ? files[progress->at] : "at exit",
           WIFSIGNALED(status) ? "signal" : "exit code",
           WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    return progress->at;
}

static int run_all(void)
{
    size_t failed = 0, at = 0;
    const struct contract_seen *seen = &progress->seen;

    while (at < n_files) {
        size_t stopped = run_from(at);

        if (stopped >= n_files && progress->at >= n_files)
            break;
        failed++;
        at = stopped + 1;
    }
    printf(
        "%lu files: %lu whole, %lu sealed, %lu lie; %lu plans, %lu without one; rescue: %lu done, %lu "
        "without a size, %lu "
        "impossible; %lu links\n",
        seen->files, seen->yes, seen->sealed, seen->lies, seen->plans, seen->no_plan, seen->rescued,
        seen->no_size, seen->no_rescue, seen->links);
    printf("%zu passed, %zu failed, 0 skipped\n", n_files - failed, failed);
    return failed > 0;
}

/* ---- --seal ---- */

static void put(FILE *f, uint64_t value, unsigned width)
{
    for (; width-- > 0; value >>= 8)
        fputc((int)(value & 0xff), f);
}

/* What is offset from the end of the file stays where it is now. Checksums are in the pieces; made
 * right afresh they would break a seal. */
static int write_sparse(const struct sparse *s, const char *path)
{
    FILE *f = fopen(path, "wb");

    if (!f)
        return 1;
    put(f, s->size, 8);
    put(f, s->given, 8);
    put(f, s->options & ~SPARSE_FIX, 1);
    for (unsigned i = 0; i < s->n; i++) {
        uint64_t back = s->size - s->piece[i].off;

        put(f, i > 0 && back <= 2048 ? back | SPARSE_FROM_END : s->piece[i].off, 6);
        put(f, s->piece[i].len, 2);
        fwrite(s->piece[i].data, 1, s->piece[i].len, f);
    }
    return fclose(f) != 0;
}

static int seal(const char *name, const char *in, const char *out)
{
    static struct subject s;
    static struct plan plan;
    struct seal_policy policy = {.mode = SEAL_REFUSE, .holder = "node-a"};
    struct answer a;
    struct look l;
    size_t size;
    uint8_t *data = read_file(in, &size);
    int r = -EUCLEAN;

    s.format = format_by_name(name);
    if (!s.format || !s.format->plan || !sparse_decode(&s.file, data, size))
        return 1;
    look_init(&l, &s, PRELOAD_REACH);
    contract_probe(&l, &s, &a);
    while (a.probe == PROBE_YES &&
           (look_ready(&l), r = s.format->plan(&l.view, &policy, &plan)) == -EAGAIN)
        look_load(&l, &s, "plan", VIEW_WINDOWS);
    look_free(&l);
    for (unsigned i = 0; r == 0 && i < plan.n; i++)
        sparse_write(&s.file, plan.ext[i].off, plan.ext[i].sealed, plan.ext[i].len);
    if (r == 0 && plan.n > 0)
        r = write_sparse(&s.file, out);
    free(data);
    return r != 0;
}

int main(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[1], "--seal") == 0)
        return seal(argv[2], argv[3], argv[4]);
    if (argv[1] && strcmp(argv[1], "--tools") == 0) {
        contract_bounds = true;
        argv++;
    }
    if (argv[1] && is_format(argv[1]))
        named = *++argv;
    if (!argv[1]) {
        fprintf(stderr, "usage: fuzz_replay [--tools] [FORMAT] PATH... | --seal FORMAT IN OUT\n");
        return 2;
    }
    while (*++argv)
        if (nftw(*argv, add_file, 16, FTW_PHYS) != 0) {
            perror(*argv);
            return 2;
        }
    if (n_files > 0)
        qsort(files, n_files, sizeof(*files), by_name);
    progress =
        mmap(NULL, sizeof(*progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (progress == MAP_FAILED) {
        perror("mmap");
        return 2;
    }
    return run_all();
}
