/* problem.c: see problem.h. Messages are shown after the image's path; DATASTORE, HOST and IMAGE
 * stand for the reader's own. */
#include "core/problem.h"

#include <string.h>

#define FSCK_TAKEOVER "fsck.diskguard --takeover HOST --confirm-host-is-down DATASTORE"

static const struct problem_info table[PROBLEM_COUNT] = {
    [PROBLEM_NONE] = {"none", SEV_OK, "nothing is wrong", "nothing to do"},
    [PROBLEM_LEFT_SEALED] =
        {"left-sealed", SEV_PREEN,
         "the diskguard that held this image ended without restoring its header",
         "start diskguard on its host, or there: fsck.diskguard -p DATASTORE"},
    [PROBLEM_LEFT_CLAIMED] =
        {"left-claimed", SEV_PREEN,
         "the diskguard that held this image ended without freeing the claim; the header is intact",
         "start diskguard on its host, or there: fsck.diskguard -p DATASTORE"},
    [PROBLEM_STALE_ROW] = {"stale-row", SEV_PREEN,
                           "this host's journal remembers a claim that is free or was never made",
                           "fsck.diskguard -p DATASTORE drops the row; the image needs nothing"},
    [PROBLEM_VANISHED] =
        {"vanished", SEV_PREEN,
         "the image of this claim does not exist any more; there is nothing to restore",
         "fsck.diskguard -p DATASTORE drops what is left of the claim"},
    [PROBLEM_LOST_CLAIM] =
        {"lost-claim", SEV_PREEN,
         "another host took this image over after our claim; the image is theirs",
         "fsck.diskguard -p DATASTORE drops our row; see who has it: diskguardctl why IMAGE"},
    [PROBLEM_FOREIGN] =
        {"foreign", SEV_NOTE, "another host holds this image",
         "close it on that host (diskguardctl why IMAGE names it); if that host is surely down: " FSCK_TAKEOVER},
    [PROBLEM_HOLDER_DOWN] =
        {"holder-down", SEV_PERSON,
         "another host holds this image, and no diskguard of that host runs",
         "start diskguard on that host: it restores the image by itself; if that host is surely down: " FSCK_TAKEOVER},
    [PROBLEM_FOREIGN_CONFIRMED] =
        {"foreign-confirmed", SEV_PREEN,
         "the holder of this image is confirmed to be down and left it claimed", FSCK_TAKEOVER},
    [PROBLEM_BUSY_WRITER] =
        {"busy-writer", SEV_PERSON,
         "the image is locked by a process that can still write to it: its holder, or one that has had it open since it was a plain file; nothing was touched",
         "find that process (diskguardctl why IMAGE) and end it, or fence its host; then repeat. NFSv3 keeps the lock of a host that is off until it boots again or the server's lock manager is restarted; if that host is surely off: option --fence=none"},
    [PROBLEM_ALIEN] =
        {"alien", SEV_PERSON,
         "the header holds bytes that diskguard did not write: something wrote to the image past the view while it was sealed; nothing was touched",
         "find out what wrote it (fsck.diskguard -n DATASTORE shows the bytes); then restore the header or the image from a backup"},
    [PROBLEM_BAD_CLAIM] =
        {"bad-claim", SEV_PERSON,
         "the claim record is damaged, so nobody can say who holds the image; it stays refused",
         "make sure that no host uses the image, move the record out of .diskguard/claims, then run fsck.diskguard -y DATASTORE on the host that held it: its journal has a second copy of the true bytes"},
    [PROBLEM_NEWER_CLAIM] =
        {"newer-claim", SEV_PERSON,
         "the claim was written by a newer version of diskguard; it stays refused",
         "update diskguard on this host, or repair from the host that holds the image"},
    [PROBLEM_BAD_ROW] =
        {"bad-row", SEV_PERSON,
         "a row of this host's journal is damaged and there is no claim of this host to replace it",
         "look at the image with fsck.diskguard -n DATASTORE; if all images are intact, set the journal (STATE_DIR/*.db) aside and start diskguard again"},
    [PROBLEM_WRONG_HANDLE] =
        {"wrong-handle", SEV_PERSON,
         "the inode number of the claim belongs to another file now; nothing was touched",
         "the datastore was restored or copied, or the image was replaced past the view: diskguardctl why IMAGE shows the claim; decide by hand"},
    [PROBLEM_UNREADABLE] =
        {"unreadable", SEV_PERSON,
         "the image or its claim cannot be read now, so nothing was decided",
         "make the storage and the permissions work, then: fsck.diskguard -p DATASTORE"},
    [PROBLEM_CLAIM_MISSING] =
        {"claim-missing", SEV_ASK,
         "the image is sealed by this host, but its claim is gone from the datastore",
         "make sure that no other host uses the image, then: fsck.diskguard -y DATASTORE restores it from this host's journal"},
    [PROBLEM_IMPOSSIBLE] =
        {"impossible", SEV_PERSON,
         "claim, journal and header are in a state that diskguard never makes; nothing was touched",
         "keep copies of DATASTORE/.diskguard and of the journal, and report it with the output of fsck.diskguard -n DATASTORE"},
    [PROBLEM_ORPHAN] =
        {"orphan", SEV_ASK,
         "the image is sealed, but no claim and no journal row of this host says what its header was",
         "run fsck.diskguard -p DATASTORE on each host that may have held it (the seal can name it); if none of them knows it, and no host uses the image: fsck.diskguard -y DATASTORE undoes the seal where the file alone says how; else restore the header from a backup"},
    [PROBLEM_STALE_TMP] = {"stale-tmp", SEV_PREEN, "a half-written record was left by a crash",
                           "fsck.diskguard -p DATASTORE removes it"},
};

const struct problem_info *problem_info(enum problem p)
{
    if ((unsigned)p >= PROBLEM_COUNT)
        p = PROBLEM_IMPOSSIBLE;
    return &table[p];
}

void problem_fill(const char *text, const struct problem_words *words, char *ret, size_t size)
{
    const struct {
        const char *word, *value;
    } known[] = {{"DATASTORE", words->datastore}, {"HOST", words->host}, {"IMAGE", words->image}};
    size_t used = 0;

    while (*text && used + 1 < size) {
        const char *value = NULL;
        size_t len = 1, room = size - used;

        for (size_t i = 0; i < sizeof(known) / sizeof(known[0]) && !value; i++)
            if (known[i].value && strncmp(text, known[i].word, strlen(known[i].word)) == 0 &&
                strlen(known[i].value) < room) {
                value = known[i].value;
                len = strlen(known[i].word);
            }
        if (value)
            memcpy(ret + used, value, strlen(value));
        else
            ret[used] = *text;
        used += value ? strlen(value) : 1;
        text += len;
    }
    ret[used] = '\0';
}
