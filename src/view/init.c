#include "view/init.h"

#include <linux/fuse.h>
#include <string.h>
#include <sys/uio.h>

#include "base/hook.h"
#include "base/log.h"
#include "view/prune.h"

/* FUSE_DIRECT_IO_ALLOW_MMAP: bit 36 of the flags, in fuse_init_in.flags2 and fuse_init_out.flags2.
 */
#define FLAG2_MAP (1u << (36 - 32))
/* <linux/fuse.h>: they may be shorter with an old kernel */
#define IN_SIZE                                                                                    \
    (sizeof(struct fuse_in_header) + offsetof(struct fuse_init_in, flags2) + sizeof(uint32_t))
#define OUT_SIZE (offsetof(struct fuse_init_out, flags2) + sizeof(uint32_t))

void init_seen(struct view *v, const char *mem, size_t size)
{
    struct fuse_in_header head;
    struct fuse_init_in in = {0};
    if (size < IN_SIZE)
        return;
    memcpy(&head, mem, sizeof(head));
    memcpy(&in, mem + sizeof(head), DG_MIN(size - sizeof(head), sizeof(in)));
    bool may = in.flags & FUSE_INIT_EXT && in.flags2 & FLAG2_MAP;
    if (head.opcode == FUSE_INIT && may && HOOK_FAIL("init.map") == 0)
        atomic_store(&v->init_unique, head.unique);
}

/* The reply to that request says the bit, too. There is one INIT, and before it is answered nothing
 * else. */
static void add_flag(struct view *v, uint64_t unique, struct iovec *iov, int count)
{
    struct fuse_out_header head;
    if (count < 2 || iov[0].iov_len != sizeof(head) || iov[1].iov_len < OUT_SIZE)
        return;
    memcpy(&head, iov[0].iov_base, sizeof(head));
    struct fuse_init_out *out = iov[1].iov_base;
    if (head.unique != unique || head.error != 0 || !(out->flags & FUSE_INIT_EXT))
        return;
    out->flags2 |= FLAG2_MAP;
    atomic_store(&v->init_unique, 0);
    atomic_store(&v->may_map, true);
}

/* Each reply passes here. */
static ssize_t reply(int fd, struct iovec *iov, int count, void *userdata)
{
    struct view *v = userdata;
    const struct fuse_out_header *head = iov[0].iov_base; /* libfuse's own, whole and aligned */
    if (head->error == -EMFILE || head->error == -ENFILE)
        prune_say_limit(v, -head->error);
    uint64_t unique = atomic_load_explicit(&v->init_unique, memory_order_relaxed);
    if (unique != 0)
        add_flag(v, unique, iov, count);
    return writev(fd, iov, count);
}

/* loop.c reads by itself; libfuse wants both. */
static ssize_t request(int fd, void *buf, size_t size, void *userdata)
{
    (void)userdata;
    return read(fd, buf, size);
}

int init_attach(struct view *v)
{
    static const struct fuse_custom_io io = {.writev = reply, .read = request};
    return fuse_session_custom_io(v->se, &io, fuse_session_fd(v->se));
}

void init_say_mapping(struct view *v, const char *path)
{
    if (atomic_load(&v->may_map) || atomic_exchange(&v->map_said, true))
        return;
    log_image(
        LOG_NOTICE, path, v->guard->host.name, 0,
        "'%s' is an image that is not sealed; a program that maps such a file shared, to write it (mmap: swtpm's state, some emulators), gets ENODEV, for this kernel is older than Linux 6.6. Way out: a newer kernel, or a name that raw= does not take for an image's. This is said once",
        path);
}
