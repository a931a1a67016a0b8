/* umount_left.c: what an ending daemon has left on the datastore. See umount.h. */
#include "umount/umount.h"

#include <stdio.h>
#include <string.h>

static void boot_id(dg_uuid ret)
{
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");

    if (!f || fscanf(f, "%36s", ret) != 1)
        ret[0] = '\0';
    if (f)
        fclose(f);
}

/* Is this claim one that the view should have given back? Where its host serves another view by
 * now, what that daemon holds is its own. */
static bool is_left(const struct unmounting *e, const struct raw *raw, const struct raw_claim *c,
                    const char *boot)
{
    const struct raw_host *h = raw_host_of(raw, c->host);

    if (c->kind != CLAIM_HELD)
        return false;
    if (boot)
        return strcmp(c->boot, boot) == 0 && !(h && h->alive > 0);
    if (strcmp(c->host, e->host) != 0)
        return false;
    bool successor = h && h->err == 0 && e->daemon[0] && strcmp(h->rec.daemon, e->daemon) != 0;
    return !successor || strcmp(c->daemon, e->daemon) == 0;
}

static void print_one(const struct raw_claim *c)
{
    const char *state = c->step == STEP_STUCK ? "STUCK: its header could not be put back"
                        : c->extents > 0      ? "its header is sealed"
                                              : "it is claimed; its header was not sealed";

    out_error("  %s: %s", out_quote(c->path), state);
}

void left_way_out(const struct unmounting *e)
{
    struct json_object *opt = out_json_get(e->status, "options", json_type_object);
    const char *state = out_json_get_text(opt, "state_dir", "");
    char extra[OUT_FILL_MAX] = "";

    if (state[0] && strcmp(state, "/var/lib/diskguard") != 0 && e->host[0])
        snprintf(extra, sizeof(extra), "--host-id=%s --state-dir=%s ", e->host, out_quote(state));
    out_error(
        "way out: mount the view on this host again, which tries once more, or run: fsck.diskguard -p %s%s",
        extra, out_quote(e->dir));
}

int left_report(const struct unmounting *e, bool by_machine, bool quiet)
{
    struct raw *raw = raw_load(e->dir, NULL, false, CTL_RAW_MS);
    dg_uuid boot;
    unsigned n = 0;
    int r = raw->err;

    boot_id(boot);
    for (size_t i = 0; r == 0 && i < raw->nclaims; i++)
        n += is_left(e, raw, &raw->claims[i], by_machine ? boot : NULL);
    if (r < 0 && !quiet)
        out_error("%s: it is not known whether every header is back: %s", e->mount->point,
                  io_err_denied(r) ? "root only can read that" : raw->why.text);
    if (n > 0 && !quiet) {
        out_error("%s: %u image%s not released on %s:", e->mount->point, n,
                  n == 1 ? " is" : "s are", out_quote(e->dir));
        for (size_t i = 0; i < raw->nclaims; i++)
            if (is_left(e, raw, &raw->claims[i], by_machine ? boot : NULL))
                print_one(&raw->claims[i]);
        left_way_out(e);
    }
    raw_free(raw);
    return r < 0 ? r : n > 0;
}
