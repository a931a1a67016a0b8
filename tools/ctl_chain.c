/* ctl_chain.c: the files that an image needs, and by which image a file is needed. See ctl.h. */
#include "ctl.h"

#include <string.h>

#include "core/mark.h"

static struct raw_needs *add(struct raw_image *im)
{
    struct raw_needs *more = reallocarray(im->needs, im->nneeds + 1, sizeof(*more));

    if (!more)
        return NULL;
    im->needs = more;
    memset(&more[im->nneeds], 0, sizeof(*more));
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
    int r = h->format && h->format->links && (h->verdict == FORMAT_IMAGE || h->verdict == FORMAT_SEALED)
                ? -EAGAIN
                : 0;

    while (r == -EAGAIN) {
        struct view v = header_view(h);

        r = h->format->links(&v, add_link, im);
        if (r == -EAGAIN && header_add(fd, h, v.want_off, v.want_len) < 0)
            r = -EUCLEAN;
    }
    return r == -EUCLEAN ? 0 : r; /* a name that cannot be followed */
}

int chain_load(const struct store *s, struct raw_image *im, int fd)
{
    _cleanup_free_ struct claim *c = malloc(sizeof(*c));
    _cleanup_free_ struct mark *m = NULL;
    size_t n = 0;
    int r = c ? load_links(im, fd) : -ENOMEM;

    if (r == 0)
        r = mark_list(s, 0, &m, &n);
    for (size_t i = 0; r == 0 && i < n; i++) {
        if (m[i].above == im->st.st_ino && im->claim.kind == CLAIM_HELD &&
            m[i].generation == im->claim.generation)
            im->protects++;
        if (m[i].below != im->st.st_ino)
            continue;
        r = mark_counts(s, &m[i], c);
        if (r <= 0)
            continue;
        r = 0;
        struct raw_needs *one = add(im);
        if (!one)
            return -ENOMEM;
        snprintf(one->path, sizeof(one->path), "%s", c->kind == CLAIM_HELD ? c->rec.image : "?");
        snprintf(one->host, sizeof(one->host), "%s", c->kind == CLAIM_HELD ? c->rec.host_name : "?");
    }
    return r;
}

void chain_text(const struct raw_image *im)
{
    for (size_t i = 0; i < im->nneeds; i++) {
        const struct raw_needs *n = &im->needs[i];

        if (n->host[0])
            out_line("needed by:  %s, held by host %s: nobody else may write this file\n", out_tame(n->path),
                     out_tame(n->host));
        else
            out_line("needs:      %s %s%s%s\n", n->role, out_tame(n->path), n->format[0] ? ", " : "",
                     out_tame(n->format));
    }
    if (im->protects > 0)
        out_line("protects:   %u files of its chain from other writers\n", im->protects);
}

void chain_json(struct json_object *o, const struct raw_image *im)
{
    struct json_object *needs = json_object_new_array(), *by = json_object_new_array();

    for (size_t i = 0; i < im->nneeds; i++) {
        const struct raw_needs *n = &im->needs[i];
        struct json_object *one = json_object_new_object();

        out_json_text(one, "path", n->path);
        if (n->host[0]) {
            out_json_text(one, "host", n->host);
        } else {
            out_json_text(one, "role", n->role);
            out_json_text_or_null(one, "format", n->format);
        }
        json_object_array_add(n->host[0] ? by : needs, one);
    }
    json_object_object_add(o, "needs", needs);
    json_object_object_add(o, "needed_by", by);
    out_json_u64(o, "protects", im->protects);
}
