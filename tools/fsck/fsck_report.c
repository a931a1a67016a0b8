/* fsck_report.c: what fsck.diskguard prints. See fsck.h. */
#include "fsck/fsck.h"

#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

#define TEXT_MAX 1024

bool report_known(const struct fsck *f, uint64_t ino)
{
    for (size_t i = 0; i < f->nreported; i++)
        if (f->reported[i] == ino)
            return true;
    return false;
}

static void remember(struct fsck *f, uint64_t ino)
{
    uint64_t *more = reallocarray(f->reported, f->nreported + 1, sizeof(*more));

    if (!more)
        out_no_memory();
    f->reported = more;
    f->reported[f->nreported++] = ino;
}

void report_say(const struct fsck *f, const char *fmt, ...)
{
    char text[TEXT_MAX];
    va_list ap;

    if (f->json)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    out_line("%s\n", text);
}

void report_error(struct fsck *f, const char *fmt, ...)
{
    char text[TEXT_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    out_error("%s", text);
    f->error = true;
}

/* ---- one finding ---- */

static const char *severity_word(enum severity s)
{
    static const char *const word[] = {
        [SEV_OK] = "ok",   [SEV_NOTE] = "note",     [SEV_PREEN] = "preen",
        [SEV_ASK] = "ask", [SEV_PERSON] = "person",
    };

    return word[s];
}

static struct json_object *finding(const char *code, const char *severity, const char *message)
{
    struct json_object *o = out_object();

    out_json_text(o, "code", code);
    out_json_text(o, "severity", severity);
    out_json_text(o, "message", message);
    return o;
}

static void add_holder(struct json_object *o, const struct record *rec)
{
    struct json_object *h = NULL;

    if (rec->host[0]) {
        h = json_object_new_object();
        out_json_text_or_null(h, "host", rec->host_name);
        out_json_text(h, "uuid", rec->host);
        out_json_u64(h, "pid", rec->pid);
        out_json_text_or_null(h, "since", rec->since);
    }
    json_object_object_add(o, "holder", h);
}

static const char *done_word(const struct fsck *f, int done)
{
    return done == 0 ? "repaired" : done < 0 ? "failed" : f->dry_run ? "not-tried" : "left";
}

static void problem_json(struct fsck *f, const struct problem_info *info, const struct record *rec,
                         const char *detail, int done)
{
    struct json_object *o = finding(info->code, severity_word(info->severity), info->message);

    out_json_text_or_null(o, "image", rec->image);
    out_json_u64(o, "inode", rec->ino);
    out_json_u64(o, "generation", rec->generation);
    add_holder(o, rec);
    out_json_text_or_null(o, "detail", detail);
    out_json_text(o, "repair", info->repair);
    out_json_text(o, "result", info->severity == SEV_NOTE ? "none" : done_word(f, done));
    if (done < 0)
        out_json_text(o, "error", strerror(-done));
    json_object_array_add(f->found, o);
}

static void problem_text(const struct fsck *f, const struct problem_info *info,
                         const struct record *rec, const char *detail, int done, const char *verb)
{
    char name[64];

    snprintf(name, sizeof(name), "inode %" PRIu64, rec->ino);
    out_line("%s: %s", rec->image[0] ? out_tame(rec->image) : name, info->message);
    if (rec->host_name[0])
        out_line(" (holder %s, pid %" PRIu64 ", since %s)", out_tame(rec->host_name), rec->pid,
                 out_tame(rec->since));
    if (detail && detail[0])
        out_line(" [%s]", out_tame(detail));
    if (info->severity == SEV_NOTE)
        out_line(".\n");
    else if (done == 0)
        out_line(": %s.\n", verb);
    else if (done < 0)
        out_line(": repair FAILED: %s. Way out: %s.\n", strerror(-done), info->repair);
    else if (f->dry_run && (info->severity == SEV_PREEN || info->severity == SEV_ASK))
        out_line(": not repaired (only looking). Way out: %s.\n", info->repair);
    else
        out_line(": LEFT AS IT IS. Way out: %s.\n", info->repair);
    fflush(stdout);
}

void report_problem(struct fsck *f, enum problem p, const struct record *rec, const char *detail,
                    int done, const char *verb)
{
    struct problem_info filled = *problem_info(p), *info = &filled;
    const struct out_words words = {out_quote(f->store.path), rec->host[0] ? rec->host : NULL,
                                    NULL};
    char repair[OUT_FILL_MAX];

    out_fill(filled.repair, &words, repair, sizeof(repair));
    filled.repair = repair;
    if (info->severity <= SEV_NOTE)
        f->notes++;
    else if (done == 0)
        f->corrected++;
    else
        f->left++;
    if (f->json)
        problem_json(f, info, rec, detail, done);
    else
        problem_text(f, info, rec, detail, done, verb);
}

static const char *action_done(enum recover_action a)
{
    switch (a) {
    case RECOVER_RESTORE:
    case RECOVER_STOP: /* claim missing, and a person agreed */
        return "header restored and verified, claim freed";
    case RECOVER_RELEASE:
        return "claim freed";
    case RECOVER_FORGET:
        return "dropped";
    case RECOVER_NOTHING:
        break;
    }
    return "nothing to do";
}

void report_recover(void *arg, const struct record *rec, struct recover_decision d, int done)
{
    struct fsck *f = arg;

    remember(f, rec->ino);
    report_problem(f, d.problem, rec, NULL, done, action_done(d.action));
}

void report_other(struct fsck *f, const char *code, bool corrected, const char *message,
                  const char *repair)
{
    char text[OUT_FILL_MAX];

    if (corrected)
        f->corrected++;
    else
        f->left++;
    if (repair) {
        out_fill(repair, &(struct out_words){.datastore = out_quote(f->store.path)}, text,
                 sizeof(text));
        repair = text;
    }
    if (f->json) {
        struct json_object *o = finding(code, corrected ? "preen" : "ask", message);

        out_json_text_or_null(o, "repair", repair);
        out_json_text(o, "result", corrected ? "repaired" : "left");
        json_object_array_add(f->found, o);
    } else if (corrected) {
        out_line("%s.\n", message);
    } else {
        out_line("%s. Way out: %s.\n", message, repair);
    }
}

void report_note(struct fsck *f, const char *code, const char *image, uint64_t ino, const char *fmt,
                 ...)
{
    char text[TEXT_MAX];
    va_list ap;

    f->notes++;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (f->json) {
        struct json_object *o = finding(code, "note", text);

        out_json_text_or_null(o, "image", image);
        if (ino)
            out_json_u64(o, "inode", ino);
        json_object_array_add(f->found, o);
    } else if (image) {
        out_line("%s: %s.\n", out_tame(image), text);
    } else {
        out_line("%s.\n", text);
    }
}

/* ---- questions ---- */

bool report_yes(const struct fsck *f, const char *question)
{
    char line[64];

    if (f->mode != MODE_ASK || fsck_canceled)
        return f->mode == MODE_YES && !fsck_canceled;
    printf("%s (y/n)? ", question);
    fflush(stdout);
    return fgets(line, sizeof(line), stdin) && (line[0] == 'y' || line[0] == 'Y');
}

bool report_ask(void *arg, const struct record *rec, struct recover_decision d)
{
    struct fsck *f = arg;
    const struct problem_info *info = problem_info(d.problem);

    if (fsck_canceled)
        return false;
    /* Beside a live daemon of our own only the other host's images are touched, whatever became of
     * their claims meanwhile. */
    if (f->beside && strcmp(rec->host, f->takeover) != 0)
        return false;
    if (f->mode != MODE_ASK)
        return true; /* recover.c has judged the severity */
    out_line("%s: %s", out_tame(rec->image), info->message);
    return report_yes(f, d.action == RECOVER_FORGET    ? ". Drop what is left of it"
                         : d.action == RECOVER_RELEASE ? ". Free the claim"
                                                       : ". Restore the header");
}

/* ---- the end ---- */

static struct json_object *host_json(const struct fsck *f)
{
    struct json_object *o = json_object_new_object();

    out_json_text_or_null(o, "uuid", f->host.uuid);
    out_json_text_or_null(o, "name", f->host.name);
    out_json_bool(o, "daemon_runs", f->beside);
    return o;
}

void report_end(struct fsck *f, int code)
{
    if (!f->json) {
        if (f->walked)
            out_line("%s: %u files, %u sealed, %u held; %u repaired, %u left, %u notes\n",
                     out_tame(f->store.path), f->files, f->sealed, f->held, f->corrected, f->left,
                     f->notes);
        return;
    }
    struct json_object *o = out_object(), *c = json_object_new_object();

    out_json_text(o, "datastore", f->store.path[0] ? f->store.path : f->datastore);
    out_json_text_or_null(o, "uuid", f->store.uuid);
    json_object_object_add(o, "host", host_json(f));
    out_json_bool(o, "only_looking", f->dry_run);
    json_object_object_add(o, "found", f->found);
    f->found = NULL;
    out_json_u64(c, "files", f->files);
    out_json_u64(c, "sealed", f->sealed);
    out_json_u64(c, "held", f->held);
    out_json_u64(c, "repaired", f->corrected);
    out_json_u64(c, "left", f->left);
    out_json_u64(c, "notes", f->notes);
    json_object_object_add(o, "counts", c);
    out_json_u64(o, "exit", (uint64_t)code);
    out_json_print(o);
}
