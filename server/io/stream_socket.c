/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Descriptors as streams: connected sockets, and stdin with stdout, which may be pipes, sockets,
 * files or terminals.
 *
 * Sending tries the socket at once, as there is nearly always room; only what would block goes
 * through the ring. Receiving goes through the ring, which batches over connections and tries at
 * once itself, except after a receive that filled its buffer: then more is most likely there
 * already, and taking it directly spares a turn of the loop.
 */
#include "io/net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <linux/sockios.h>
#include <linux/vm_sockets.h>
#include <liburing.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/check.h"
#include "io/iov.h"
#include "io/world_real.h"
#include "sched/loop.h"

/* What is thrown away at most of a peer's last bytes, so that closing does not reset a connection
 * whose last replies it has yet to read. */
#define DRAIN_BYTES (1024U * 1024U)
/*
 * What a Unix socket takes in before a send has to wait; the kernel makes it twice that. More than
 * its default: a long reply wakes sender and receiver less often. TCP finds its own measure.
 */
#define UNIX_SEND_BYTES (256 * 1024)

struct fd_stream {
    struct stream base;
    struct loop *loop;
    int in_fd;
    int out_fd;
    bool in_is_socket;
    bool out_is_socket;
    bool aborted;
    bool recv_ended;
    bool data_likely; /* the last receive filled its buffer */
    uint64_t moved_bytes;
    /* What abort() has to cancel; on the stack of who waits. */
    struct loop_op *receiving;
    struct loop_op *sending;
    struct stream_origin origin;
    char peer[INET6_ADDRSTRLEN + 16];
};

static struct fd_stream *to_fd_stream(struct stream *stream)
{
    return container_of(stream, struct fd_stream, base);
}

/* Waits for op, cancellable through *slot. */
static int co_wait_op(struct fd_stream *s, struct io_uring_sqe *sqe, struct loop_op **slot)
{
    struct loop_op op = {0};

    loop_sqe_attach(sqe, &op);
    assert(*slot == NULL);
    *slot = &op;
    int result = co_loop_wait(s->loop, &op);
    *slot = NULL;
    return result;
}

static int co_poll(struct fd_stream *s, int fd, short events, struct loop_op **slot)
{
    struct io_uring_sqe *sqe = loop_sqe(s->loop);
    io_uring_prep_poll_add(sqe, fd, (unsigned)events);
    return co_wait_op(s, sqe, slot);
}

static ssize_t co_fd_recv(struct stream *stream, void *buf, size_t len)
{
    struct fd_stream *s = to_fd_stream(stream);

    len = MIN_OF(len, (size_t)INT_MAX);
    if (s->in_is_socket && s->data_likely && !s->aborted && !s->recv_ended) {
        ssize_t got = recv(s->in_fd, buf, len, MSG_DONTWAIT);
        if (got >= 0) {
            s->data_likely = (size_t)got == len;
            s->moved_bytes += (size_t)got;
            return got;
        }
        if (errno != EAGAIN && errno != EINTR) {
            return -errno;
        }
    }
    for (;;) {
        if (s->aborted) {
            return -ESHUTDOWN;
        }
        if (s->recv_ended) {
            return 0;
        }
        struct io_uring_sqe *sqe = loop_sqe(s->loop);
        if (s->in_is_socket) {
            io_uring_prep_recv(sqe, s->in_fd, buf, len, 0);
        } else {
            io_uring_prep_read(sqe, s->in_fd, buf, (unsigned)len, (uint64_t)-1);
        }
        int got = co_wait_op(s, sqe, &s->receiving);
        if (got >= 0) {
            s->data_likely = (size_t)got == len;
            s->moved_bytes += (size_t)got;
            return s->aborted && got == 0 ? -ESHUTDOWN : got;
        }
        if (s->aborted) {
            return -ESHUTDOWN;
        }
        if (s->recv_ended) {
            return 0;
        }
        if (got == -EAGAIN) {
            /* The descriptor was handed to us in non-blocking mode. */
            got = co_poll(s, s->in_fd, POLLIN, &s->receiving);
        }
        if (got < 0 && got != -EINTR && got != -EAGAIN) {
            return got;
        }
    }
}

static int co_send_ring(struct fd_stream *s, struct iovec *iov, int iov_count, int flags)
{
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)iov_count};
    struct io_uring_sqe *sqe = loop_sqe(s->loop);

    if (s->out_is_socket) {
        /* Not MSG_WAITALL: then nobody could tell before the end whether the peer reads. */
        io_uring_prep_sendmsg(sqe, s->out_fd, &message, (unsigned)flags);
    } else {
        io_uring_prep_writev(sqe, s->out_fd, iov, (unsigned)iov_count, (uint64_t)-1);
    }
    int sent = co_wait_op(s, sqe, &s->sending);
    if (sent == -EAGAIN && !s->aborted) {
        sent = co_poll(s, s->out_fd, POLLOUT, &s->sending);
        sent = sent < 0 ? sent : 0;
    }
    return sent;
}

static int co_fd_send(struct stream *stream, struct iovec *iov, int iov_count, bool more)
{
    struct fd_stream *s = to_fd_stream(stream);

    bool full = false; /* what the ring had to wait for is taken up by the ring at once */
    iov_advance(&iov, &iov_count, 0);
    while (iov_count > 0) {
        int batch = MIN_OF(iov_count, IOV_MAX);
        int flags = MSG_NOSIGNAL | (more || batch < iov_count ? MSG_MORE : 0);
        ssize_t sent = -EAGAIN;

        if (s->aborted) {
            return -ESHUTDOWN;
        }
        if (s->out_is_socket && !full) {
            struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)batch};
            sent = sendmsg(s->out_fd, &message, flags | MSG_DONTWAIT);
            sent = sent < 0 ? -errno : sent;
        }
        if (sent == -EAGAIN || sent == -ENOBUFS) {
            full = true;
            sent = co_send_ring(s, iov, batch, flags);
        }
        if (sent < 0 && s->aborted) {
            return -ESHUTDOWN;
        }
        if (sent < 0 && sent != -EINTR && sent != -EAGAIN) {
            return (int)sent;
        }
        if (sent > 0) {
            s->moved_bytes += (size_t)sent;
            iov_advance(&iov, &iov_count, (size_t)sent);
        }
    }
    return 0;
}

static void fd_abort(struct stream *stream)
{
    struct fd_stream *s = to_fd_stream(stream);

    if (s->aborted) {
        return;
    }
    s->aborted = true;
    if (s->in_is_socket) {
        (void)shutdown(s->in_fd, SHUT_RDWR);
    }
    if (s->out_is_socket && s->out_fd != s->in_fd) {
        (void)shutdown(s->out_fd, SHUT_RDWR);
    }
    if (s->receiving && !s->receiving->done) {
        loop_cancel(s->loop, s->receiving);
    }
    if (s->sending && !s->sending->done) {
        loop_cancel(s->loop, s->sending);
    }
}

static void fd_end_recv(struct stream *stream)
{
    struct fd_stream *s = to_fd_stream(stream);

    s->recv_ended = true;
    if (s->receiving && !s->receiving->done) {
        loop_cancel(s->loop, s->receiving);
    }
}

/* A socket takes bytes again when much of its buffer is empty: before, what is unread gets less. */
static uint64_t fd_progress(struct stream *stream)
{
    struct fd_stream *s = to_fd_stream(stream);
    int unread = 0;

    if (ioctl(s->out_fd, s->out_is_socket ? SIOCOUTQ : FIONREAD, &unread) < 0) {
        return ++s->moved_bytes;
    }
    return (s->moved_bytes << 32) + (uint64_t)unread;
}

static void fd_move(struct stream *stream, struct world *world)
{
    struct fd_stream *s = to_fd_stream(stream);

    assert(s->receiving == NULL && s->sending == NULL);
    s->loop = world_real_loop(world);
}

static void fd_stream_free(struct fd_stream *s)
{
    close(s->in_fd);
    if (s->out_fd != s->in_fd) {
        close(s->out_fd);
    }
    if (s->origin.kind == ORIGIN_UNIX) {
        free(s->origin.local.more);
    }
    free(s);
}

static void co_fd_close(struct stream *stream)
{
    struct fd_stream *s = to_fd_stream(stream);

    assert(s->receiving == NULL && s->sending == NULL);
    if (!s->aborted && s->out_is_socket) {
        (void)shutdown(s->out_fd, SHUT_WR);
    }
    if (!s->aborted && s->in_is_socket) {
        char scrap[8192];
        size_t drained = 0;
        ssize_t got = 1;
        while (got > 0 && drained < DRAIN_BYTES) {
            got = recv(s->in_fd, scrap, sizeof(scrap), MSG_DONTWAIT);
            drained += got > 0 ? (size_t)got : 0;
        }
    }
    fd_stream_free(s);
}

static const struct stream_ops fd_stream_ops = {
    .co_recv = co_fd_recv,
    .co_send = co_fd_send,
    .end_recv = fd_end_recv,
    .abort = fd_abort,
    .progress = fd_progress,
    .move = fd_move,
    .co_close = co_fd_close,
};

static bool is_socket(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode);
}

/*
 * The supplementary groups of a Unix peer. Without memory for them, or on a kernel that does not
 * tell them, it is in none: rules then let it in less often, never more.
 */
static void ask_groups(struct stream_origin *origin, int fd)
{
    socklen_t len = 0;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, NULL, &len) == 0 || errno != ERANGE) {
        return;
    }
    gid_t *more = malloc(len);
    if (more == NULL || getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, more, &len) < 0) {
        free(more);
        return;
    }
    origin->local.more = more;
    origin->local.more_count = len / (socklen_t)sizeof(*more);
}

static void ask_credentials(struct stream_origin *origin, int fd)
{
    struct ucred peer;
    socklen_t len = sizeof(peer);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0) {
        origin->kind = ORIGIN_UNIX;
        origin->local.user = peer.uid;
        origin->local.group = peer.gid;
        ask_groups(origin, fd);
    }
}

static void note_origin(struct fd_stream *s, const struct sockaddr *address)
{
    struct stream_origin *origin = &s->origin;

    if (address->sa_family == AF_UNIX) {
        ask_credentials(origin, s->in_fd);
    } else if (address->sa_family == AF_INET) {
        const struct sockaddr_in *v4 = (const void *)address;
        origin->kind = ORIGIN_IP;
        origin->address.s6_addr[10] = origin->address.s6_addr[11] = 0xff;
        memcpy(&origin->address.s6_addr[12], &v4->sin_addr, sizeof(v4->sin_addr));
    } else if (address->sa_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const void *)address;
        origin->kind = ORIGIN_IP;
        origin->address = v6->sin6_addr;
    } else if (address->sa_family == AF_VSOCK) {
        const struct sockaddr_vm *vm = (const void *)address;
        origin->kind = ORIGIN_VSOCK;
        origin->vsock_cid = vm->svm_cid;
    }
}

/* "unix", "127.0.0.1:40312", "[::1]:40312", "vsock:3:40312"; sets the socket up on the way, as it
 * knows the family. */
static void name_peer(struct fd_stream *s)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
        struct sockaddr_un local;
        struct sockaddr_vm vm;
    } address;
    socklen_t len = sizeof(address);
    char text[INET6_ADDRSTRLEN];
    int on = 1;

    snprintf(s->peer, sizeof(s->peer), "unix");
    memset(&address, 0, sizeof(address));
    if (getpeername(s->in_fd, &address.any, &len) < 0) {
        snprintf(s->peer, sizeof(s->peer), "socket");
    } else if (address.any.sa_family == AF_INET) {
        inet_ntop(AF_INET, &address.v4.sin_addr, text, sizeof(text));
        snprintf(s->peer, sizeof(s->peer), "%s:%u", text, ntohs(address.v4.sin_port));
    } else if (address.any.sa_family == AF_INET6) {
        inet_ntop(AF_INET6, &address.v6.sin6_addr, text, sizeof(text));
        snprintf(s->peer, sizeof(s->peer), "[%s]:%u", text, ntohs(address.v6.sin6_port));
    } else if (address.any.sa_family == AF_VSOCK) {
        snprintf(s->peer, sizeof(s->peer), "vsock:%u:%u", address.vm.svm_cid, address.vm.svm_port);
    }
    note_origin(s, &address.any);
    /* Only slower when either fails. */
    if (address.any.sa_family == AF_UNIX) {
        int bytes = UNIX_SEND_BYTES;
        (void)setsockopt(s->in_fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
    }
    if (address.any.sa_family == AF_INET || address.any.sa_family == AF_INET6) {
        (void)setsockopt(s->in_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    }
}

static struct fd_stream *fd_stream_new(struct loop *loop, int in_fd, int out_fd)
{
    struct fd_stream *s = calloc(1, sizeof(*s));

    if (s == NULL) {
        close(in_fd);
        if (out_fd != in_fd) {
            close(out_fd);
        }
        return NULL;
    }
    s->base.ops = &fd_stream_ops;
    s->base.peer = s->peer;
    s->base.origin = &s->origin;
    s->loop = loop;
    s->in_fd = in_fd;
    s->out_fd = out_fd;
    s->in_is_socket = is_socket(in_fd);
    s->out_is_socket = is_socket(out_fd);
    return s;
}

int stream_socket_create(struct loop *loop, int fd, struct stream **out)
{
    struct fd_stream *s = fd_stream_new(loop, fd, fd);

    if (s == NULL) {
        return -ENOMEM;
    }
    name_peer(s);
    *out = &s->base;
    return 0;
}

/* A pipe whose reader has gone must be an EPIPE for one client, not the end of the process. */
static void ignore_sigpipe(void)
{
    struct sigaction action;

    if (sigaction(SIGPIPE, NULL, &action) == 0 && action.sa_handler == SIG_DFL) {
        action.sa_handler = SIG_IGN;
        (void)sigaction(SIGPIPE, &action, NULL);
    }
}

int stream_pair_create(struct loop *loop, int in_fd, int out_fd, struct stream **out)
{
    struct fd_stream *s = fd_stream_new(loop, in_fd, out_fd);

    if (s == NULL) {
        return -ENOMEM;
    }
    if (!s->out_is_socket) {
        ignore_sigpipe();
    }
    snprintf(s->peer, sizeof(s->peer), "stdio");
    s->origin.kind = ORIGIN_STDIO;
    *out = &s->base;
    return 0;
}
