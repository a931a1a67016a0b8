/* ctl_chain.c: the files that an image needs, by which image a file is needed, and who reads it and
 * wants no writer beside it. See ctl.h. */
#include "ctl/ctl.h"

#include <inttypes.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/vfs.h>

#include "core/dependency.h"
#include "core/link_name.h"
#include "core/whereis.h"

static struct raw_needs *add(struct raw_image *im)
{
    struct raw_needs *more = reallocarray(im->needs, im->nneeds + 1, sizeof(*more));

    if (!more)
        return NULL;
    im->needs = more;
    memset(&more[im->nneeds], 0, sizeof(*more));
    more[im->nneeds].guarded = -1;
    return &more[im->nneeds++];
}

static int add_link(void *arg, const struct format_link *link)
{
    static const char *const role[] = {
        [LINK_BACKING] = "backing file", [LINK_DATA] = "data file", [LINK_EXTENT] = "extent"};
    struct raw_needs *n = add(arg);

    if (!n)
        return -ENOMEM;
    snprintf(n->role, sizeof(n->role), "%s", role[link->role]);
    snprintf(n->path, sizeof(n->path), "%s", link->path);
    snprintf(n->format, sizeof(n->format), "%s", link->format);
    return 0;
}

static int load_links(struct raw_image *im, int fd)
{
    struct header *h = &im->header;
    int r = h->format && h->format->links && h->verdict != FORMAT_MORE ? -EAGAIN : 0;

    while (r == -EAGAIN) {
        struct excerpt v = header_view(h);

        r = h->format->links(&v, add_link, im);
        if (r == -EAGAIN && header_add(fd, h, v.want_off, v.want_len) < 0)
            r = -EUCLEAN;
    }
    return r == -EUCLEAN ? 0 : r; /* a name that cannot be followed */
}

/* The file that a link means, as a program on this host would find it, through the datastore or a
 * view of it (whose inode numbers are the same). false: none. */
static bool find_link(const struct store *s, const char *rel, const char *link, struct stat *ret)
{
    char path[2 * RECORD_IMAGE_MAX];
    struct statfs fs;
    const char *slash = strrchr(rel, '/');

    if (link[0] == '/')
        snprintf(path, sizeof(path), "%s", link);
    else
        snprintf(path, sizeof(path), "%.*s/%s", slash ? (int)(slash - rel) : 1, slash ? rel : ".",
                 link);
    if (fstatat(s->root_fd, path, ret, 0) < 0)
        return false;
    return ret->st_dev == s->dev ||
           (link[0] == '/' && statfs(path, &fs) == 0 && fs.f_type == FUSE_SUPER_MAGIC);
}

struct guard_look {
    const struct store *s;
    const struct raw_image *im;
    const char *rel;
    const struct dependency *m;
    size_t n;
    bool all; /* each file so far is a dependency */
};

static int look_guarded(void *arg, const char *path, bool from_cwd)
{
    struct guard_look *g = arg;
    struct stat st;
    bool found = false;

    (void)from_cwd; /* the working directory of its holder is not known here */
    for (size_t i = 0; i < g->n && find_link(g->s, g->rel, path, &st); i++)
        found |= g->m[i].above == g->im->st.st_ino &&
                 g->m[i].generation == g->im->claim.generation && g->m[i].below == st.st_ino;
    g->all &= found;
    return 0;
}

/* Of a held image: which of the files that it names are a dependency of this hold? */
static void match_dependencies(const struct store *s, struct raw_image *im, const char *rel,
                               const struct dependency *m, size_t n)
{
    struct stat st;

    for (size_t k = 0; k < im->nneeds; k++) {
        struct raw_needs *one = &im->needs[k];
        struct guard_look g = {.s = s, .im = im, .rel = rel, .m = m, .n = n, .all = true};

        one->itself = find_link(s, rel, one->path, &st) && st.st_ino == im->st.st_ino &&
                      (one->path[0] != '/' || st.st_dev == s->dev);
        if (im->claim.kind == CLAIM_HELD)
            one->guarded = !one->itself && link_name(one->path, look_guarded, &g) == 0 && g.all;
    }
}

static int load_readers(const struct store *s, struct raw_image *im)
{
    _cleanup_free_ struct reader *rd = NULL;
    size_t n = 0;
    int r = reader_list(s, im->st.st_ino, &rd, &n);

    if (r == 0 && n > 0) {
        im->readers = calloc(n, sizeof(*im->readers));
        r = im->readers ? 0 : -ENOMEM;
    }
    for (size_t i = 0; r == 0 && i < n; i++) {
        r = reader_counts(s, &rd[i]);
        if (r <= 0)
            continue;
        struct raw_reader *one = &im->readers[im->nreaders++];
        one->reader = rd[i];
        reader_look(s, &rd[i], &one->info);
        r = 0;
    }
    return r;
}

int chain_load(const struct store *s, struct raw_image *im, int fd, const char *rel)
{
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    _cleanup_free_ struct dependency *m = NULL;
    size_t n = 0;
    int r = c ? load_links(im, fd) : -ENOMEM;

    if (r == 0)
        r = load_readers(s, im);
    if (r == 0)
        r = dependency_list(s, 0, &m, &n);
    if (r == 0)
        match_dependencies(s, im, rel, m, n);
    for (size_t i = 0; r == 0 && i < n; i++) {
        if (m[i].above == im->st.st_ino && im->claim.kind == CLAIM_HELD &&
            m[i].generation == im->claim.generation)
            im->protects++;
        if (m[i].below != im->st.st_ino || m[i].above == im->st.st_ino)
            continue;
        r = dependency_counts(s, &m[i], c);
        if (r <= 0)
            continue;
        r = 0;
        struct raw_needs *one = add(im);
        if (!one)
            return -ENOMEM;
        snprintf(one->path, sizeof(one->path), "?");
        if (c->kind == CLAIM_HELD)
            whereis_name(s, c->rec.ino, &c->rec.handle, c->rec.image, one->path, sizeof(one->path));
        snprintf(one->host, sizeof(one->host), "%s",
                 c->kind == CLAIM_HELD ? c->rec.host_name : "?");
    }
    return r;
}

void chain_text(const struct raw_image *im)
{
    for (size_t i = 0; i < im->nneeds; i++) {
        const struct raw_needs *n = &im->needs[i];

        if (n->host[0])
            out_line("needed by:  %s, held by host %s: nobody else may write this file\n",
                     out_tame(n->path), out_tame(n->host));
        else
            out_line("needs:      %s %s%s%s%s\n", n->role, out_tame(n->path),
                     n->format[0] ? ", " : "", out_tame(n->format),
                     n->itself        ? ": the image itself, so that no program can open it"
                     : n->guarded > 0 ? ", kept from other writers"
                     : n->guarded == 0
                         ? ", NOT protected: it is not in this datastore, or not there"
                         : "");
    }
    for (size_t i = 0; i < im->nreaders; i++) {
        const struct reader_info *info = &im->readers[i].info;

        out_line("read by:    %s, pid %" PRIu64
                 ", on host %s%s%s: nobody else may write it meanwhile\n",
                 info->program[0] ? out_tame(info->program) : "a program", info->pid,
                 out_tame(info->host_name), info->since[0] ? " since " : "", info->since);
    }
    if (im->protects > 0)
        out_line("protects:   %u files of its chain from other writers\n", im->protects);
}

void chain_json(struct json_object *o, const struct raw_image *im)
{
    struct json_object *needs = json_object_new_array(), *by = json_object_new_array(),
                       *readers = json_object_new_array();

    for (size_t i = 0; i < im->nneeds; i++) {
        const struct raw_needs *n = &im->needs[i];
        struct json_object *one = json_object_new_object();

        out_json_text(one, "path", n->path);
        if (n->host[0]) {
            out_json_text(one, "host", n->host);
        } else {
            out_json_text(one, "role", n->role);
            out_json_text_or_null(one, "format", n->format);
            if (n->itself)
                out_json_bool(one, "itself", true);
            if (n->guarded >= 0)
                out_json_bool(one, "protected", n->guarded > 0);
        }
        json_object_array_add(n->host[0] ? by : needs, one);
    }
    for (size_t i = 0; i < im->nreaders; i++) {
        const struct raw_reader *rd = &im->readers[i];
        struct json_object *one = json_object_new_object();

        out_json_text(one, "host", rd->reader.host);
        out_json_text(one, "host_name", rd->info.host_name);
        out_json_text_or_null(one, "program", rd->info.program);
        out_json_u64(one, "pid", rd->info.pid);
        out_json_text_or_null(one, "since", rd->info.since);
        json_object_array_add(readers, one);
    }
    json_object_object_add(o, "readers", readers);
    json_object_object_add(o, "needs", needs);
    json_object_object_add(o, "needed_by", by);
    out_json_u64(o, "protects", im->protects);
}
