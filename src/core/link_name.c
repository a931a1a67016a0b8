/* link_name.c: see link_name.h. */
#include "core/link_name.h"

#include <json-c/json.h>
#include <string.h>

/* depth of nodes within nodes, more than anybody writes */
#define DEPTH_MAX 16

struct link_search {
    int (*fn)(void *arg, const char *path, bool from_cwd);
    void *arg;
    unsigned files;
    bool other; /* it names something that is no file */
};

/* block.c, path_has_protocol(): a colon before the first slash. */
static bool has_protocol(const char *name)
{
    return name[strcspn(name, ":/")] == ':';
}

static int give(struct link_search *l, const char *path, bool from_cwd)
{
    if (path[0] == '\0')
        return -EUCLEAN;
    l->files++;
    return l->fn(l->arg, path, from_cwd);
}

static bool ends_with(const char *key, const char *last)
{
    size_t n = strlen(key), m = strlen(last);

    return n >= m && strcmp(key + n - m, last) == 0 && (n == m || key[n - m - 1] == '.');
}

/* Finds the driver beside a file name: the member "driver" of its node, or "a.b.driver" beside
 * "a.b.filename" (QEMU takes both spellings). NULL: there is none. */
static const char *driver_of(struct json_object *node, const char *key)
{
    char name[256];
    struct json_object *driver;
    size_t n = strlen(key) - strlen("filename");

    if (n + sizeof("driver") > sizeof(name))
        return NULL;
    memcpy(name, key, n);
    memcpy(name + n, "driver", sizeof("driver"));
    return json_object_object_get_ex(node, name, &driver) ? json_object_get_string(driver) : NULL;
}

static int take_filename(struct link_search *l, struct json_object *node, const char *key,
                         const char *value)
{
    /* block/file-posix.c */
    static const char *const files[] = {"file", "host_device", "host_cdrom"};
    const char *driver = driver_of(node, key);

    for (size_t i = 0; driver && i < sizeof(files) / sizeof(files[0]); i++)
        if (strcmp(driver, files[i]) == 0)
            return give(l, value, true);
    if (driver || has_protocol(value)) {
        l->other = true;
        return 0;
    }
    return give(l, value, true);
}

/* Members that only a node of the network has. */
static bool is_remote(const char *key)
{
    static const char *const keys[] = {"host", "server", "uri", "url", "portal", "pool", "export"};

    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
        if (ends_with(key, keys[i]))
            return true;
    return false;
}

/* The depth is bounded by DEPTH_MAX, which the parser holds to as well. */
static int look_at(struct link_search *l, struct json_object *o,
                   unsigned depth) /* NOLINT(misc-no-recursion)
                                    */
{
    int r = 0;

    if (depth > DEPTH_MAX)
        return -EUCLEAN;
    if (json_object_is_type(o, json_type_array)) {
        for (size_t i = 0; r == 0 && i < json_object_array_length(o); i++)
            r = look_at(l, json_object_array_get_idx(o, i), depth + 1);
        return r;
    }
    if (!json_object_is_type(o, json_type_object))
        return 0;
    json_object_object_foreach(o, key, value)
    {
        if (r != 0)
            break;
        if (json_object_is_type(value, json_type_string) && ends_with(key, "filename"))
            r = take_filename(l, o, key, json_object_get_string(value));
        else if (is_remote(key))
            l->other = true;
        else
            r = look_at(l, value, depth + 1);
    }
    return r;
}

static int look_json(struct link_search *l, const char *text)
{
    struct json_tokener *tok = json_tokener_new_ex(DEPTH_MAX);
    size_t n = strlen(text);
    struct json_object *o;
    int r = -EUCLEAN;

    if (!tok)
        return -ENOMEM;
    o = n < INT32_MAX ? json_tokener_parse_ex(tok, text, (int)n + 1) : NULL;
    if (o && json_object_is_type(o, json_type_object))
        r = look_at(l, o, 0);
    json_object_put(o);
    json_tokener_free(tok);
    return r;
}

int link_name(const char *name, int (*fn)(void *arg, const char *path, bool from_cwd), void *arg)
{
    static const char file[] = "file:", json[] = "json:";
    struct link_search l = {.fn = fn, .arg = arg};
    int r;

    if (strncmp(name, file, strlen(file)) == 0)
        return give(&l, name + strlen(file), true);
    if (strncmp(name, json, strlen(json)) == 0) {
        r = look_json(&l, name + strlen(json));
        return r != 0 ? r : l.other ? -EXDEV : l.files > 0 ? 0 : -EUCLEAN;
    }
    return has_protocol(name) ? -EXDEV : give(&l, name, false);
}
