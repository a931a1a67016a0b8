/* packed.c: see packed.h. */
#include "core/packed.h"

#include <assert.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "core/overlay.h"

/* The fields of a record before its path and its plan are copied as they are. */
#define FIELDS offsetof(struct record, image)

/* Then the path with its NUL, then each extent: this, and its bytes: true, sealed, was. */
struct packed_extent {
    uint64_t off;
    uint32_t len;
    bool has_was;
};

#define ROOM_MAX                                                                                   \
    (FIELDS + RECORD_IMAGE_MAX + PLAN_MAX * (sizeof(struct packed_extent) + 3 * EXTENT_MAX))

struct packed {
    uint32_t room; /* of bytes[] */
    uint32_t plan; /* where the first extent begins there */
    uint32_t n;    /* extents */
    uint8_t bytes[];
};

static struct packed *new_packed(size_t room)
{
    struct packed *p = malloc(sizeof(*p) + room);
    if (p)
        p->room = (uint32_t)room;
    return p;
}

static size_t extent_bytes(uint32_t len, bool has_was)
{
    return (size_t)len * (has_was ? 3 : 2);
}

static size_t path_bytes(const struct record *rec)
{
    return strnlen(rec->image, RECORD_IMAGE_MAX - 1) + 1;
}

static size_t bytes_of(const struct record *rec)
{
    size_t n = FIELDS + path_bytes(rec);
    assert(rec->plan.n <= PLAN_MAX);
    for (unsigned i = 0; i < rec->plan.n; i++) {
        const struct extent *e = &rec->plan.ext[i];
        assert(e->len <= EXTENT_MAX);
        n += sizeof(struct packed_extent) + extent_bytes(e->len, e->has_was);
    }
    return n;
}

static void append(uint8_t **at, const void *bytes, size_t n)
{
    memcpy(*at, bytes, n);
    *at += n;
}

static void take(const uint8_t **at, void *ret, size_t n)
{
    memcpy(ret, *at, n);
    *at += n;
}

int packed_room(struct packed **p)
{
    if (*p && (*p)->room >= ROOM_MAX)
        return 0;
    struct packed *larger = new_packed(ROOM_MAX);
    if (!larger)
        return -ENOMEM;
    if (*p) {
        larger->plan = (*p)->plan;
        larger->n = (*p)->n;
        memcpy(larger->bytes, (*p)->bytes, (*p)->room);
    } else { /* no field, an empty path, no plan */
        memset(larger->bytes, 0, FIELDS + 1);
        larger->plan = FIELDS + 1;
        larger->n = 0;
    }
    free(*p);
    *p = larger;
    return 0;
}

void packed_put(struct packed **p, const struct record *rec)
{
    size_t need = bytes_of(rec);
    struct packed *exact = (*p)->room == need ? NULL : new_packed(need);
    if (exact) {
        free(*p);
        *p = exact;
    }
    assert((*p)->room >= need);
    uint8_t *at = (*p)->bytes;
    append(&at, rec, FIELDS);
    append(&at, rec->image, path_bytes(rec) - 1);
    append(&at, "", 1);
    (*p)->plan = (uint32_t)(at - (*p)->bytes);
    (*p)->n = rec->plan.n;
    for (unsigned i = 0; i < rec->plan.n; i++) {
        const struct extent *e = &rec->plan.ext[i];
        struct packed_extent head = {.off = e->off, .len = e->len, .has_was = e->has_was};
        append(&at, &head, sizeof(head));
        append(&at, e->truth, e->len);
        append(&at, e->sealed, e->len);
        if (e->has_was)
            append(&at, e->was, e->len);
    }
}

void packed_get(const struct packed *p, struct record *ret)
{
    const uint8_t *at = p->bytes;
    take(&at, ret, FIELDS);
    take(&at, ret->image, p->plan - FIELDS);
    ret->plan.n = p->n;
    for (unsigned i = 0; i < p->n; i++) {
        struct extent *e = &ret->plan.ext[i];
        struct packed_extent head;
        take(&at, &head, sizeof(head));
        e->off = head.off;
        e->len = head.len;
        e->has_was = head.has_was;
        take(&at, e->truth, e->len);
        take(&at, e->sealed, e->len);
        if (e->has_was)
            take(&at, e->was, e->len);
    }
}

bool packed_has_plan(const struct packed *p)
{
    return p->n > 0;
}

void packed_patch(const struct packed *p, uint64_t off, void *buf, size_t len)
{
    const uint8_t *at = p->bytes + p->plan;
    for (unsigned i = 0; i < p->n; i++) {
        struct packed_extent head;
        take(&at, &head, sizeof(head));
        overlay_lay(head.off, at, head.len, off, buf, len);
        at += extent_bytes(head.len, head.has_was);
    }
}

size_t packed_size(const struct packed *p)
{
    return sizeof(*p) + p->room;
}
