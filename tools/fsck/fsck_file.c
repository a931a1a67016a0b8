/* fsck_file.c: fsck.diskguard of one file. See fsck.h. */
#include "fsck/fsck.h"

#include <string.h>
#include <sys/stat.h>

#include "common/mounts.h"
#include "common/unseal.h"

bool fsck_is_file(const char *path)
{
    struct mounts mounts = {0};
    struct stat st;
    char *real = NULL;
    bool file = mounts_load(&mounts) == 0 && mounts_resolve(&mounts, path, &real) == 0 &&
                !mounts_of_path(&mounts, real, NULL) && stat(real, &st) == 0 && S_ISREG(st.st_mode);

    free(real);
    mounts_free(&mounts);
    return file;
}

int fsck_file(struct fsck *f)
{
    static const int codes[] = {[UNSEAL_DONE] = FSCK_CORRECTED,
                                [UNSEAL_NOTHING] = FSCK_OK,
                                [UNSEAL_LEFT] = FSCK_UNCORRECTED,
                                [UNSEAL_FAILED] = FSCK_UNCORRECTED | FSCK_ERROR};
    static const char *const words[] = {"repaired", "clean", "left", "failed"};
    struct unseal *u = out_alloc(sizeof(*u));
    enum unsealed e;

    u->path = f->datastore;
    u->size = f->size ? &f->size : NULL;
    u->look = f->mode != MODE_YES;
    e = unseal_file(u);
    if (e == UNSEAL_LEFT && f->mode == MODE_ASK && !f->dry_run) {
        out_line("%s: %s", out_tame(u->path), u->text);
        u->look = !report_yes(f, ". Take it off");
        e = u->look ? e : unseal_file(u);
    }
    if (f->json) {
        struct json_object *o = out_object();

        out_json_text(o, "file", u->path);
        out_json_text(o, "result", words[e]);
        out_json_text(o, "text", u->text);
        out_json_u64(o, "exit", (uint64_t)codes[e]);
        out_json_print(o);
    } else {
        out_line("%s: %s.\n", out_tame(u->path), u->text);
    }
    free(u);
    return codes[e];
}
