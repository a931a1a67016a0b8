/* journal.h: schema of a host's journal, STATE_DIR/<datastore uuid>.db (SQLite 3, WAL,
 * synchronous=FULL).
 *
 * One row per claim that this host holds or was about to make. `record` is the text of record.h:
 * journal and claim share one codec, and the greater `seq` is the newer plan. PRAGMA user_version
 * carries DG_JOURNAL_VERSION. */
#ifndef DISKGUARD_JOURNAL_H
#define DISKGUARD_JOURNAL_H

#define DG_JOURNAL_VERSION 1
#define DG_JOURNAL_SCHEMA                                                                          \
    "CREATE TABLE IF NOT EXISTS claim ("                                                           \
    " inode INTEGER NOT NULL," /* bit pattern of the unsigned inode number */                      \
    " generation INTEGER NOT NULL,"                                                                \
    " record BLOB NOT NULL,"                                                                       \
    " PRIMARY KEY (inode, generation)) WITHOUT ROWID;"

#endif
