/* layout.h: what the state of a daemon (state.h) looks like in memory: a contract between two
 * versions of the program, for an upgrade attaches to what the old one wrote.
 *
 * At the start of the memfd stands a struct state_preamble. It never changes, and says where the
 * rest is: the tables, the heads of the slots, their payloads. Before and after each lies a page
 * that nobody can touch (of the mapping, not of the file).
 *
 * A change of any structure here, or of what a field means, is a new STATE_LAYOUT. All numbers are
 * of this machine: the state never leaves it. Padding is named, and zero. */
#ifndef DISKGUARD_STATE_LAYOUT_H
#define DISKGUARD_STATE_LAYOUT_H

#include <stdint.h>

#define STATE_LAYOUT 1u
#define STATE_MAGIC UINT64_C(0x6574617473676b64) /* "dkgstate" */

enum state_table {
    STATE_HEAD, /* one entry */
    STATE_INODES,
    STATE_NAMES, /* the same index as STATE_INODES */
    STATE_HANDLES,
    STATE_IMAGES,
    STATE_OWNERS,
    STATE_TABLES
};

struct state_region {
    uint64_t off, size; /* bytes, in whole pages */
    uint64_t count;     /* entries, or slots */
    uint64_t stride;    /* bytes from one to the next */
    uint64_t entry;     /* bytes of a table's payload */
    uint64_t copies;    /* of a table's payload: 1 or 2 */
};

enum state_size_class { STATE_SMALL, STATE_BIG, STATE_CLASSES };

struct state_preamble {
    uint64_t magic;
    uint64_t layout; /* these two stay where they are in every version */
    uint64_t size;   /* of the memfd */
    uint64_t page;   /* of memory */
    struct state_region table[STATE_TABLES];
    struct state_region slots;                  /* heads */
    struct state_region payload[STATE_CLASSES]; /* requests */
    uint64_t sum;                               /* of what stands before: word_sum() */
};

/* Before the payload of each entry of a table: */
struct state_entry {
    /* 0: free. Else word_seal() of the copy that counts; the last store of each change */
    uint64_t commit;
    uint64_t count; /* word_make(): changes on its own, by one store */
};

/* ---- payloads ---- */

#define STATE_INIT_MAX 512u
struct state_head {
    char build[64];      /* DG_VERSION of whoever wrote this last */
    char store_uuid[40]; /* of the datastore */
    char host_uuid[40];  /* "host.daemon" of the claims: both parts */
    char daemon_uuid[40];
    uint64_t options;   /* word_sum() of the mount options */
    uint64_t heartbeat; /* last heartbeat that was written */
    uint64_t reader_serial;
    uint64_t inode_generation; /* the highest that a node id ever had */
    int32_t fuse_fd, root_fd, datastore_fd, host_lock_fd, control_fd, pad;
    uint32_t init_request_len, init_reply_len;
    uint8_t init_request[STATE_INIT_MAX]; /* raw, as read from the kernel */
    uint8_t init_reply[STATE_INIT_MAX];   /* raw, as sent */
};

/* count: nlookup */
struct state_inode {
    uint64_t dev, ino, generation;
    uint64_t handle_sum; /* word_sum() of the file handle: is fd still that file? 0: none */
    int32_t fd;          /* O_PATH */
    int32_t locks_fd;    /* memfd of the view's own locks (fs_lock.c); -1 */
    uint32_t type;       /* S_IFMT */
    uint32_t flags;      /* STATE_INODE_* */
};
#define STATE_INODE_SET_IDS 1u
#define STATE_INODE_UNHASHED 2u

#define STATE_NAME_MAX 256u
struct state_name {
    uint64_t parent;     /* index of the directory */
    uint64_t generation; /* of the inode whose name it is: another one's does not count */
    char name[STATE_NAME_MAX];
};

struct state_opener {
    uint64_t pid, start, uid, gid;
};

struct state_handle {
    uint64_t fh;    /* generation << 32 | index */
    uint64_t inode; /* index */
    uint64_t opened_ms;
    struct state_opener opener;
    int32_t fd, direct_fd;
    uint32_t flags; /* O_* of the open */
    uint32_t state; /* STATE_HANDLE_* */
    int32_t barred; /* errno */
    uint32_t pad;
};
#define STATE_HANDLE_WRITER 1u
#define STATE_HANDLE_PLAIN 2u /* counted in image.plain.users */
#define STATE_HANDLE_GUARDED 4u
#define STATE_HANDLE_SHARED 8u
#define STATE_HANDLE_DIRTY 16u
#define STATE_HANDLE_LOST_DATA 32u
#define STATE_HANDLE_REVOKED 64u
#define STATE_HANDLE_UNCACHED 128u
#define STATE_HANDLE_APPENDS 256u
#define STATE_HANDLE_DIR 512u
#define STATE_HANDLE_FIRST 1024u /* a manager's, which claims at its first change */
#define STATE_HANDLE_MANAGED 2048u

/* The record and its plan are in journal and claim, durable; this says which. */
struct state_image {
    uint64_t inode; /* index */
    uint64_t generation;
    uint64_t reader_serial;
    uint64_t links; /* hash, chain.c */
    struct state_opener holder;
    int64_t mtime_sec, mtime_nsec;
    int32_t fd, plain_fd;
    int32_t io_error, sync_error;
    uint32_t state; /* enum image_state */
    uint32_t flags; /* STATE_IMAGE_* */
};
#define STATE_IMAGE_EXCLUSIVE 1u
#define STATE_IMAGE_WROTE 2u
#define STATE_IMAGE_UNLINKED 4u
#define STATE_IMAGE_VANISHED 8u /* that was said */
#define STATE_IMAGE_PLAIN_BORROWED 16u
#define STATE_IMAGE_PLAIN_LOST 32u

struct state_owner {
    uint64_t inode;         /* index */
    uint64_t id, via, also; /* handles */
    uint64_t pid;
    uint64_t reader_serial;
    int32_t fd, host_fd;
    uint32_t kind;
    uint32_t flags;  /* STATE_OWNER_* */
    uint8_t type[8]; /* of QEMU's bytes */
};
#define STATE_OWNER_FORWARDED 1u
#define STATE_OWNER_IS_FILE 2u

/* Room for the payload of any table. */
union state_payload {
    struct state_head head;
    struct state_inode inode;
    struct state_name name;
    struct state_handle handle;
    struct state_image image;
    struct state_owner owner;
    char bytes[1];
};

/* ---- slots ---- */

/* A request begins so many bytes before a page's boundary: there the payload of a WRITE begins,
 * which O_DIRECT needs (view/loop.c). Its first four bytes are its length. */
#define STATE_AHEAD 80u
#define STATE_REPLY_MAX 256u
#define STATE_NOTES 4u
/* Head of a slot. Each of the first three is one store, and says by itself whether it is right. */
struct state_slot {
    uint64_t word;  /* word_make(): state, size, attempts, interrupted (slot.c); 0: free */
    uint64_t reply; /* word_seal() of reply_len and reply_bytes; 0: none is saved */
    uint64_t noted; /* word_seal() of note; 0: none */
    uint64_t reply_len;
    uint64_t note[STATE_NOTES];
    uint8_t reply_bytes[STATE_REPLY_MAX];
};

#endif
