/* netsw: the Ethernet switch between the lab's guests. Frames travel over Unix sockets, so nothing
 * leaves the machine and no privilege is needed.
 *
 *   netsw DIR NAME...    listens on DIR/NAME.net, one port per guest, for QEMU's -netdev
 * stream,addr.type=unix (each frame is preceded by its length, 32 bits, big-endian: QEMU,
 * net/stream.c), and takes commands, one a line, on standard input:
 *
 *     cut X Y      drop the frames between X and Y, both ways; Y may be "*"
 *     drop X Y     drop the frames from X to Y, and those that are held
 *     hold X Y     keep the frames from X to Y until "heal"
 *     deliver X Y  send those that are held from X to Y now, and go on holding
 *     heal         undo all of these
 *
 * Each command is answered by one line on standard output: "ok" or "error: ...". End of input ends
 * the program. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PORTS_MAX 8
/* a jumbo frame, and TCP segments that the guest leaves to the "hardware" (64 KiB) */
#define FRAME_MAX 70000
/* bytes waiting for one port; what comes after is dropped, as a switch does */
#define QUEUE_MAX (16u << 20)
#define HEADER 4 /* the length before each frame */
#define MAC 6

enum mode { PASS, DROP, HOLD };

struct frame {
    struct frame *next;
    size_t len, sent; /* with its header */
    unsigned char bytes[];
};

struct queue {
    struct frame *first, **end;
    size_t bytes;
    size_t deliver; /* frames that may go although the pair is held */
    size_t n;
};

struct port {
    const char *name;
    int listener, fd; /* fd: -1 while no guest is connected */
    unsigned char in[2 * FRAME_MAX];
    size_t in_len;
    unsigned char mac[MAC];
    bool mac_known;
    struct frame *sending;
    struct queue from[PORTS_MAX]; /* by sender, so that one pair can be held */
};

static struct port ports[PORTS_MAX];
static int n_ports;
static enum mode modes[PORTS_MAX][PORTS_MAX]; /* [from][to] */

static void enqueue(int from, int to, const unsigned char *bytes, uint32_t len)
{
    struct queue *q = &ports[to].from[from];
    if (modes[from][to] == DROP || ports[to].fd < 0 || q->bytes > QUEUE_MAX)
        return;
    struct frame *f = malloc(sizeof(*f) + HEADER + len);
    if (!f)
        return;
    uint32_t header = htonl(len);
    f->next = NULL;
    f->len = HEADER + len;
    f->sent = 0;
    memcpy(f->bytes, &header, HEADER);
    memcpy(f->bytes + HEADER, bytes, len);
    if (!q->first)
        q->end = &q->first;
    *q->end = f;
    q->end = &f->next;
    q->bytes += f->len;
    q->n++;
}

static void forward(int from, const unsigned char *frame, uint32_t len)
{
    if (len < 2 * MAC)
        return;
    memcpy(ports[from].mac, frame + MAC, MAC);
    ports[from].mac_known = true;
    bool group = frame[0] & 1;
    for (int to = 0; !group && to < n_ports; to++)
        if (to != from && ports[to].mac_known && memcmp(ports[to].mac, frame, MAC) == 0) {
            enqueue(from, to, frame, len);
            return;
        }
    for (int to = 0; to < n_ports; to++)
        if (to != from)
            enqueue(from, to, frame, len);
}

static struct frame *dequeue(int to)
{
    for (int from = 0; from < n_ports; from++) {
        struct queue *q = &ports[to].from[from];
        struct frame *f = q->first;
        if (!f || (modes[from][to] == HOLD && q->deliver == 0))
            continue;
        q->first = f->next;
        q->bytes -= f->len;
        q->n--;
        if (q->deliver > 0)
            q->deliver--;
        return f;
    }
    return NULL;
}

static void discard(struct queue *q)
{
    for (struct frame *f = q->first, *next; f; f = next) {
        next = f->next;
        free(f);
    }
    *q = (struct queue){0};
}

static void disconnect(struct port *p)
{
    if (p->fd >= 0)
        close(p->fd);
    p->fd = -1;
    p->in_len = 0;
    p->mac_known = false;
    free(p->sending);
    p->sending = NULL;
    for (int from = 0; from < n_ports; from++)
        discard(&p->from[from]);
}

static void send_queued(int to)
{
    struct port *p = &ports[to];
    while (p->fd >= 0 && (p->sending || (p->sending = dequeue(to)))) {
        struct frame *f = p->sending;
        ssize_t n = send(p->fd, f->bytes + f->sent, f->len - f->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n < 0) {
            disconnect(p);
            return;
        }
        f->sent += (size_t)n;
        if (f->sent == f->len) {
            free(f);
            p->sending = NULL;
        }
    }
}

static void receive(int from)
{
    struct port *p = &ports[from];
    ssize_t n = recv(p->fd, p->in + p->in_len, sizeof(p->in) - p->in_len, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        disconnect(p);
        return;
    }
    p->in_len += (size_t)n;
    size_t at = 0;
    while (p->in_len - at >= HEADER) {
        uint32_t len;
        memcpy(&len, p->in + at, HEADER);
        len = ntohl(len);
        if (len > FRAME_MAX) {
            disconnect(p);
            return;
        }
        if (p->in_len - at < HEADER + len)
            break;
        forward(from, p->in + at + HEADER, len);
        at += HEADER + len;
    }
    memmove(p->in, p->in + at, p->in_len - at);
    p->in_len -= at;
}

static void accept_guest(struct port *p)
{
    int fd = accept4(p->listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return;
    disconnect(p);
    p->fd = fd;
}

/* ---- commands ---- */

static int port_of(const char *name)
{
    for (int i = 0; name && i < n_ports; i++)
        if (strcmp(ports[i].name, name) == 0)
            return i;
    return -1;
}

static void set_mode(int from, int to, enum mode mode)
{
    modes[from][to] = mode;
    if (mode == DROP)
        discard(&ports[to].from[from]);
}

static const char *command(char *line)
{
    char *verb = strtok(line, " \n"), *x = strtok(NULL, " \n"), *y = strtok(NULL, " \n");
    if (verb && strcmp(verb, "heal") == 0) {
        memset(modes, 0, sizeof(modes));
        return "ok";
    }
    int from = port_of(x), to = port_of(y);
    bool all = y && strcmp(y, "*") == 0;
    if (!verb || from < 0 || (to < 0 && !all))
        return "error: VERB X Y, with names of guests";
    if (strcmp(verb, "deliver") == 0 && to >= 0) {
        ports[to].from[from].deliver = ports[to].from[from].n;
        return "ok";
    }
    bool both = strcmp(verb, "cut") == 0;
    if (!both && strcmp(verb, "drop") != 0 && strcmp(verb, "hold") != 0)
        return "error: cut, drop, hold, deliver or heal";
    for (int i = 0; i < n_ports; i++) {
        if (i == from || (!all && i != to))
            continue;
        set_mode(from, i, strcmp(verb, "hold") == 0 ? HOLD : DROP);
        if (both)
            set_mode(i, from, DROP);
    }
    return "ok";
}

/* False: end of input. */
static bool take_commands(void)
{
    static char line[512];
    static size_t len;
    ssize_t n = read(STDIN_FILENO, line + len, sizeof(line) - 1 - len);
    if (n <= 0)
        return n < 0 && errno == EINTR;
    len += (size_t)n;
    line[len] = '\0';
    for (char *end; (end = strchr(line, '\n'));) {
        *end = '\0';
        puts(command(line));
        fflush(stdout);
        len -= (size_t)(end + 1 - line);
        memmove(line, end + 1, len + 1);
    }
    return len < sizeof(line) - 1;
}

/* ---- */

static void listen_at(struct port *p, const char *dir)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int n = snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s.net", dir, p->name);
    if (n < 0 || (size_t)n >= sizeof(address.sun_path)) {
        fprintf(stderr, "netsw: %s is too long for the path of a socket\n", dir);
        exit(1);
    }
    p->fd = -1;
    p->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (p->listener < 0 || bind(p->listener, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        listen(p->listener, 4) < 0) {
        perror(address.sun_path);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    if (argc < 3 || argc - 2 > PORTS_MAX) {
        fprintf(stderr, "usage: netsw DIR NAME... (at most %d names)\n", PORTS_MAX);
        return 2;
    }
    for (n_ports = 0; n_ports < argc - 2; n_ports++) {
        ports[n_ports].name = argv[2 + n_ports];
        listen_at(&ports[n_ports], argv[1]);
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct pollfd polled[2 * PORTS_MAX + 1];
        for (int i = 0; i < n_ports; i++) {
            polled[2 * i] = (struct pollfd){.fd = ports[i].listener, .events = POLLIN};
            polled[2 * i + 1] = (struct pollfd){
                .fd = ports[i].fd, .events = (short)(POLLIN | (ports[i].sending ? POLLOUT : 0))};
        }
        polled[2 * n_ports] = (struct pollfd){.fd = STDIN_FILENO, .events = POLLIN};
        if (poll(polled, (nfds_t)(2 * n_ports + 1), -1) < 0 && errno != EINTR)
            return 1;
        for (int i = 0; i < n_ports; i++) {
            if (polled[2 * i].revents)
                accept_guest(&ports[i]);
            else if (ports[i].fd >= 0 && (polled[2 * i + 1].revents & (POLLIN | POLLHUP | POLLERR)))
                receive(i);
        }
        if (polled[2 * n_ports].revents && !take_commands())
            return 0;
        for (int i = 0; i < n_ports; i++)
            send_queued(i);
    }
}
