/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Listening, accepting, and streams over sockets and pipes, with peers that are slow, gone or cut.
 */
#include "io/testing.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "io/net.h"
#include "sched/sync.h"

enum { BULK_BYTES = 5000000 };

static void make_dir(void)
{
    test_dir_make(NULL);
}

static struct stream *socket_stream(int fd)
{
    struct stream *stream = NULL;
    ck_assert_int_eq(stream_socket_create(test_loop, fd, &stream), 0);
    return stream;
}

static struct stream *pair_stream(int in_fd, int out_fd)
{
    struct stream *stream = NULL;
    ck_assert_int_eq(stream_pair_create(test_loop, in_fd, out_fd, &stream), 0);
    return stream;
}

static int co_send_bytes(struct stream *stream, const void *bytes, size_t len)
{
    struct iovec iov = {(void *)(uintptr_t)bytes, len};
    return stream->ops->co_send(stream, &iov, 1, false);
}

/* One transfer in a coroutine of its own. */
struct transfer {
    struct stream *stream;
    unsigned char *bytes;
    size_t len;
    bool send;
    int result;
    struct group *group;
};

static void co_transfer(void *arg)
{
    struct transfer *transfer = arg;

    if (transfer->send) {
        /* Uneven pieces, so that partial sends end inside and between them. */
        struct iovec iov[64];
        int count = 0;
        size_t at = 0;
        while (at < transfer->len) {
            size_t part = count == 63 ? transfer->len - at : (size_t)(1 + count * 977);
            part = part < transfer->len - at ? part : transfer->len - at;
            iov[count++] = (struct iovec){transfer->bytes + at, part};
            at += part;
        }
        transfer->result = transfer->stream->ops->co_send(transfer->stream, iov, count, true);
    } else {
        transfer->result = co_stream_recv_all(transfer->stream, transfer->bytes, transfer->len);
    }
    group_leave(transfer->group);
}

static void start(struct transfer *transfer, struct group *group)
{
    transfer->group = group;
    transfer->result = 1;
    group_enter(group);
    ck_assert_int_eq(coro_spawn(co_transfer, transfer, "transfer"), 0);
}

/* Both directions at once between two streams. */
static void co_bulk(struct stream *a, struct stream *b)
{
    struct group group;
    unsigned char *bytes[4];
    struct transfer transfers[4];

    group_init(&group);
    for (int i = 0; i < 4; i++) {
        bytes[i] = malloc(BULK_BYTES);
        for (int at = 0; at < BULK_BYTES; at++) {
            bytes[i][at] = (unsigned char)(i < 2 ? at * 7 + at / 509 + i : 0);
        }
    }
    transfers[0] = (struct transfer){.stream = a, .bytes = bytes[0], .send = true};
    transfers[1] = (struct transfer){.stream = b, .bytes = bytes[1], .send = true};
    transfers[2] = (struct transfer){.stream = b, .bytes = bytes[2]};
    transfers[3] = (struct transfer){.stream = a, .bytes = bytes[3]};
    for (int i = 0; i < 4; i++) {
        transfers[i].len = BULK_BYTES;
        start(&transfers[i], &group);
    }
    co_group_wait(&group);
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(transfers[i].result, 0);
    }
    ck_assert_int_eq(memcmp(bytes[0], bytes[2], BULK_BYTES), 0);
    ck_assert_int_eq(memcmp(bytes[1], bytes[3], BULK_BYTES), 0);
    for (int i = 0; i < 4; i++) {
        free(bytes[i]);
    }
}

static void co_bulk_body(void *arg)
{
    int fds[2];
    int to[2];
    int from[2];
    int nonblocking = *(int *)arg;

    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | nonblocking, 0, fds), 0);
    struct stream *a = socket_stream(fds[0]);
    struct stream *b = socket_stream(fds[1]);
    ck_assert_str_eq(a->peer, "unix");
    ck_assert_int_eq(a->origin->kind, ORIGIN_UNIX);
    ck_assert_uint_eq(a->origin->local.user, geteuid());
    ck_assert_uint_eq(a->origin->local.group, getegid());
    ck_assert_int_eq(a->origin->local.more_count, getgroups(0, NULL));
    co_bulk(a, b);
    a->ops->co_close(a);
    b->ops->co_close(b);

    ck_assert_int_eq(pipe2(to, O_CLOEXEC | (nonblocking ? O_NONBLOCK : 0)), 0);
    ck_assert_int_eq(pipe2(from, O_CLOEXEC | (nonblocking ? O_NONBLOCK : 0)), 0);
    a = pair_stream(from[0], to[1]);
    b = pair_stream(to[0], from[1]);
    ck_assert_str_eq(a->peer, "stdio");
    ck_assert_int_eq(a->origin->kind, ORIGIN_STDIO);
    co_bulk(a, b);
    a->ops->co_close(a);
    b->ops->co_close(b);

    /* One socket as both, as inetd hands it over. */
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | nonblocking, 0, fds), 0);
    a = pair_stream(fds[0], fds[0]);
    b = pair_stream(fds[1], dup(fds[1]));
    co_bulk(a, b);
    a->ops->co_close(a);
    b->ops->co_close(b);
}

START_TEST(test_bulk)
{
    int nonblocking = 0;
    test_run(co_bulk_body, &nonblocking);
    nonblocking = SOCK_NONBLOCK;
    test_run(co_bulk_body, &nonblocking);
}
END_TEST

static void co_ends_body(void *arg)
{
    char buf[16];
    int fds[2];
    (void)arg;

    /* A clean end, and one in the middle. */
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    struct stream *stream = socket_stream(fds[0]);
    ck_assert_int_eq(write(fds[1], "abcdef", 6), 6);
    close(fds[1]);
    ck_assert_int_eq(co_stream_recv_all(stream, buf, 4), 0);
    ck_assert_int_eq(memcmp(buf, "abcd", 4), 0);
    ck_assert_int_eq(co_stream_recv_all(stream, buf, 4), -ECONNRESET);
    ck_assert_int_eq(co_stream_recv_all(stream, buf, 4), -ENODATA);
    ck_assert_int_eq((int)stream->ops->co_recv(stream, buf, 4), 0);
    /* Nobody reads any more: an error, not a signal. */
    ck_assert_int_eq(co_send_bytes(stream, "x", 1), -EPIPE);
    stream->ops->co_close(stream);

    int to[2];
    int from[2];
    ck_assert_int_eq(pipe2(to, O_CLOEXEC), 0);
    ck_assert_int_eq(pipe2(from, O_CLOEXEC), 0);
    stream = pair_stream(from[0], to[1]);
    close(to[0]);
    close(from[1]);
    ck_assert_int_eq(co_stream_recv_all(stream, buf, 4), -ENODATA);
    ck_assert_int_eq(co_send_bytes(stream, "x", 1), -EPIPE);
    stream->ops->co_close(stream);

    /* Files as stdin and stdout. */
    int in_fd = open(test_path("in"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    ck_assert_int_eq(pwrite(in_fd, "12345678", 8, 0), 8);
    int out_fd = open(test_path("out"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    stream = pair_stream(in_fd, out_fd);
    ck_assert_int_eq(co_stream_recv_all(stream, buf, 8), 0);
    ck_assert_int_eq(memcmp(buf, "12345678", 8), 0);
    ck_assert_int_eq(co_stream_recv_all(stream, buf, 8), -ENODATA);
    ck_assert_int_eq(co_send_bytes(stream, "abc", 3), 0);
    ck_assert_int_eq(co_send_bytes(stream, "def", 3), 0);
    ck_assert_int_eq(pread(out_fd, buf, sizeof(buf), 0), 6);
    ck_assert_int_eq(memcmp(buf, "abcdef", 6), 0);
    stream->ops->co_close(stream);
}

START_TEST(test_ends)
{
    test_run(co_ends_body, NULL);
}
END_TEST

/* abort() while one coroutine waits to receive and one to send. */
static void co_abort_one(struct stream *stream, bool in_kernel)
{
    struct group group;
    unsigned char *bytes = calloc(2, BULK_BYTES);
    struct transfer transfers[2] = {
        {.stream = stream, .bytes = bytes, .len = BULK_BYTES},
        {.stream = stream, .bytes = bytes + BULK_BYTES, .len = BULK_BYTES, .send = true},
    };

    group_init(&group);
    start(&transfers[0], &group);
    start(&transfers[1], &group);
    /* Either way: the operations are in the kernel, or still queued for it. */
    void (*co_pause)(void) = in_kernel ? co_test_turn : co_yield;
    for (int i = 0; i < 3; i++) {
        co_pause();
    }
    ck_assert_int_eq((int)group.running, 2);
    stream->ops->abort(stream);
    stream->ops->abort(stream);
    co_group_wait(&group);
    ck_assert_int_ne(transfers[0].result, 0);
    ck_assert_int_eq(transfers[1].result, -ESHUTDOWN);
    ck_assert_int_eq(co_send_bytes(stream, "x", 1), -ESHUTDOWN);
    ck_assert_int_le((int)stream->ops->co_recv(stream, bytes, 1), 0);
    stream->ops->co_close(stream);
    free(bytes);
}

static void co_abort_body(void *arg)
{
    (void)arg;
    for (int i = 0; i < 2; i++) {
        int fds[2];
        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        co_abort_one(socket_stream(fds[0]), i == 0);
        close(fds[1]);
    }
    for (int i = 0; i < 4; i++) {
        int to[2];
        int from[2];
        int flags = O_CLOEXEC | (i < 2 ? O_NONBLOCK : 0);
        ck_assert_int_eq(pipe2(to, flags), 0);
        ck_assert_int_eq(pipe2(from, flags), 0);
        co_abort_one(pair_stream(from[0], to[1]), i % 2 == 0);
        close(to[0]);
        close(from[1]);
    }
}

START_TEST(test_abort)
{
    test_run(co_abort_body, NULL);
}
END_TEST

/* Unix sockets. */

static int connect_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%.107s", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_ge(fd, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

START_TEST(test_listen_unix)
{
    struct errtext err = {""};
    char path[300];
    int first;
    int second;

    ck_assert_int_eq(net_listen_unix(test_path("s"), NULL, &first, &err), 0);
    ck_assert_int_eq(fcntl(first, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    ck_assert_int_eq(net_listen_unix(test_path("s"), NULL, &second, &err), -EADDRINUSE);
    ck_assert_ptr_nonnull(strstr(err.text, "/s: address already in use: another server"));
    /* The one that answers was left alone. */
    int fd = connect_unix(test_path("s"));
    ck_assert_int_ge(fd, 0);
    close(fd);
    close(first);

    /* Nobody answers now: the socket is stale and replaced. */
    ck_assert_int_eq(access(test_path("s"), F_OK), 0);
    ck_assert_int_eq(net_listen_unix(test_path("s"), NULL, &first, &err), 0);
    fd = connect_unix(test_path("s"));
    ck_assert_int_ge(fd, 0);
    close(fd);
    close(first);

    /* What is no socket is never removed, nor what a link leads to. */
    fd = open(test_path("file"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    close(fd);
    ck_assert_int_eq(net_listen_unix(test_path("file"), NULL, &second, &err), -EADDRINUSE);
    ck_assert_ptr_nonnull(strstr(err.text, "/file: exists and is not a socket"));
    ck_assert_int_eq(symlink("s", test_path("link")), 0);
    ck_assert_int_eq(net_listen_unix(test_path("link"), NULL, &second, &err), -EADDRINUSE);
    ck_assert_int_eq(access(test_path("file"), F_OK), 0);
    ck_assert_int_eq(access(test_path("s"), F_OK), 0);

    ck_assert_int_eq(net_listen_unix(test_path("no/s"), NULL, &second, &err), -ENOENT);
    ck_assert_ptr_nonnull(strstr(err.text, "directory must exist"));
    ck_assert_int_eq(net_listen_unix("", NULL, &second, &err), -EINVAL);
    memset(path, 'x', sizeof(path));
    path[108] = '\0';
    ck_assert_int_eq(net_listen_unix(path, NULL, &second, &err), -ENAMETOOLONG);
    ck_assert_ptr_nonnull(strstr(err.text, "at most 107 bytes long, this one has 108"));
}
END_TEST

static unsigned names_in(const char *directory)
{
    unsigned names = 0;
    DIR *listing = opendir(directory);
    ck_assert_ptr_nonnull(listing);
    for (struct dirent *entry = readdir(listing); entry; entry = readdir(listing)) {
        names += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    }
    closedir(listing);
    return names;
}

/* A path as long as can be leaves no room for a longer name in the same directory. */
START_TEST(test_listen_unix_leaves_one_name)
{
    struct errtext err = {""};
    char path[108];
    int listener;

    snprintf(path, sizeof(path), "%s/", test_path("long"));
    size_t used = strlen(path);
    ck_assert_uint_lt(used, 100);
    memset(path + used, 'd', 105 - used);
    memcpy(path + 105, "", 1);
    ck_assert_int_eq(mkdir(test_path("long"), 0700), 0);
    ck_assert_int_eq(mkdir(path, 0700), 0);
    memcpy(path + 105, "/s", 3);
    ck_assert_int_eq(net_listen_unix(path, NULL, &listener, &err), 0);
    int fd = connect_unix(path);
    ck_assert_int_ge(fd, 0);
    close(fd);
    close(listener);
    ck_assert_int_eq(net_listen_unix(path, NULL, &listener, &err), 0);
    close(listener);
    path[105] = '\0';
    ck_assert_uint_eq(names_in(path), 1);
}
END_TEST

static mode_t mode_of(const char *path)
{
    struct stat status;
    ck_assert_int_eq(lstat(path, &status), 0);
    ck_assert(S_ISSOCK(status.st_mode));
    return status.st_mode & 07777;
}

/* The mode is the one that was asked for, whatever the umask, which is left as it was. */
START_TEST(test_listen_unix_mode)
{
    static const mode_t modes[] = {0600, 0660, 0666, 0777, 0};
    struct errtext err = {""};
    int listener;

    umask(0027);
    for (unsigned i = 0; i < ARRAY_LEN(modes); i++) {
        struct net_socket_file file = {true, modes[i], (uid_t)-1, (gid_t)-1};
        ck_assert_int_eq(net_listen_unix(test_path("s"), &file, &listener, &err), 0);
        ck_assert_uint_eq(mode_of(test_path("s")), modes[i]);
        ck_assert_int_eq(unlink(test_path("s")), 0);
        close(listener);
    }
    ck_assert_int_eq(net_listen_unix(test_path("s"), NULL, &listener, &err), 0);
    ck_assert_uint_eq(mode_of(test_path("s")), 0750);
    close(listener);
    ck_assert_uint_eq(umask(0022), 0027);
}
END_TEST

START_TEST(test_listen_unix_owner)
{
    struct errtext err = {""};
    struct net_socket_file file = {true, 0660, 12345, 23456};
    struct stat status;
    int listener;

    if (geteuid() == 0) {
        ck_assert_int_eq(net_listen_unix(test_path("s"), &file, &listener, &err), 0);
        ck_assert_int_eq(stat(test_path("s"), &status), 0);
        ck_assert_uint_eq(status.st_uid, 12345);
        ck_assert_uint_eq(status.st_gid, 23456);
        close(listener);
        ck_assert_int_eq(seteuid(12345), 0);
        file.uid = 1;
    }
    /* Nobody else gives files away, and what was begun leaves no name behind. */
    ck_assert_int_eq(mkdir(test_path("own"), 0777), geteuid() == 12345 ? -1 : 0);
    if (geteuid() != 12345) {
        ck_assert_int_eq(net_listen_unix(test_path("own/s"), &file, &listener, &err), -EPERM);
        ck_assert_ptr_nonnull(strstr(err.text, "own/s: cannot change the owner of the socket"));
        ck_assert_int_eq(rmdir(test_path("own")), 0);
    } else {
        ck_assert_int_eq(seteuid(0), 0);
        ck_assert_int_eq(mkdir(test_path("own"), 0777), 0);
        ck_assert_int_eq(chown(test_path("own"), 12345, 0), 0);
        ck_assert_int_eq(chmod(test_path(""), 0755), 0);
        ck_assert_int_eq(seteuid(12345), 0);
        ck_assert_int_eq(net_listen_unix(test_path("own/s"), &file, &listener, &err), -EPERM);
        ck_assert_ptr_nonnull(strstr(err.text, "own/s: cannot change the owner of the socket"));
        ck_assert_int_eq(seteuid(0), 0);
        ck_assert_int_eq(rmdir(test_path("own")), 0);
    }
}
END_TEST

/* Inherited sockets, and vsock. */

START_TEST(test_inherit)
{
    struct errtext err = {""};
    struct net_address address;
    uint16_t port;
    int fds[2];
    int listener;

    ck_assert_int_eq(net_listen_unix(test_path("s"), NULL, &listener, &err), 0);
    ck_assert_int_eq(fcntl(listener, F_SETFD, 0), 0);
    ck_assert_int_eq(net_inherit_listener(listener, &address, &err), 0);
    ck_assert_int_eq(fcntl(listener, F_GETFD), FD_CLOEXEC);
    ck_assert_int_eq((int)address.family, (int)NET_UNIX);
    /* It was bound under another name, which is gone. */
    ck_assert_ptr_nonnull(strstr(address.name, "/.qcowd-"));
    close(listener);

    ck_assert_int_eq(net_listen_tcp("127.0.0.1", 0, fds, 1, &err), 1);
    ck_assert_int_eq(net_inherit_listener(fds[0], &address, &err), 0);
    ck_assert_int_eq((int)address.family, (int)NET_TCP);
    ck_assert_str_eq(address.name, "127.0.0.1");
    ck_assert_int_eq(net_local_port(fds[0], &port), 0);
    ck_assert_uint_eq(address.port, port);
    close(fds[0]);

    struct sockaddr_un abstract = {.sun_family = AF_UNIX, .sun_path = "\0qcowd-test"};
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_eq(bind(listener, (struct sockaddr *)&abstract,
                          (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 11)),
                     0);
    ck_assert_int_eq(net_inherit_listener(listener, &address, &err), -EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "does not listen: a socket unit needs Accept=no"));
    ck_assert_int_eq(listen(listener, 1), 0);
    ck_assert_int_eq(net_inherit_listener(listener, &address, &err), 0);
    ck_assert_str_eq(address.name, "");
    close(listener);

    ck_assert_int_eq(net_inherit_listener(listener, &address, &err), -EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "is not open"));
    ck_assert_int_eq(pipe2(fds, O_CLOEXEC), 0);
    ck_assert_int_eq(net_inherit_listener(fds[0], &address, &err), -EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "is not a socket"));
    close(fds[0]);
    close(fds[1]);
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    ck_assert_int_eq(net_inherit_listener(fds[0], &address, &err), -EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "one connection is served with --stdio"));
    close(fds[0]);
    close(fds[1]);
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
    ck_assert_int_eq(net_inherit_listener(fds[0], &address, &err), -EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "NBD needs a stream"));
    close(fds[0]);
    close(fds[1]);
}
END_TEST

/* Kernels without vsock say so; this one may be either. */
START_TEST(test_listen_vsock)
{
    struct errtext err = {""};
    struct net_address address;
    int listener;
    int second;
    int result = net_listen_vsock(NET_VSOCK_ANY_PORT, &listener, &err);

    if (result < 0) {
        ck_assert_ptr_nonnull(strstr(err.text, "cannot listen"));
        return;
    }
    ck_assert_int_eq(net_local_address(listener, &address), 0);
    ck_assert_int_eq((int)address.family, (int)NET_VSOCK);
    ck_assert_uint_ne(address.port, NET_VSOCK_ANY_PORT);
    ck_assert_uint_ne(address.cid, UINT32_MAX);
    ck_assert_int_eq(net_inherit_listener(listener, &address, &err), 0);
    ck_assert_int_eq(net_listen_vsock(address.port, &second, &err), -EADDRINUSE);
    ck_assert_ptr_nonnull(strstr(err.text, "another server listens there"));
    close(listener);
}
END_TEST

/* TCP. */

static bool have_ipv6(void)
{
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    bool have = fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0;
    if (fd >= 0) {
        close(fd);
    }
    return have;
}

START_TEST(test_listen_tcp)
{
    struct errtext err = {""};
    char expected[128];
    uint16_t port = 0;
    uint16_t other = 0;
    int fds[4];
    int more[4];

    int count = net_listen_tcp(NULL, 0, fds, 4, &err);
    ck_assert_int_eq(count, have_ipv6() ? 2 : 1);
    ck_assert_int_eq(net_local_port(fds[0], &port), 0);
    ck_assert_int_ne(port, 0);
    ck_assert_int_eq(net_local_port(fds[count - 1], &other), 0);
    ck_assert_int_eq(port, other);

    ck_assert_int_eq(net_listen_tcp("127.0.0.1", port, more, 4, &err), -EADDRINUSE);
    snprintf(expected, sizeof(expected), "127.0.0.1:%u: address already in use: another server ",
             port);
    ck_assert_ptr_nonnull(strstr(err.text, expected));
    ck_assert_ptr_nonnull(strstr(err.text, "--port"));
    if (have_ipv6()) {
        ck_assert_int_eq(net_listen_tcp("::1", port, more, 4, &err), -EADDRINUSE);
        snprintf(expected, sizeof(expected), "[::1]:%u: address already in use", port);
        ck_assert_ptr_nonnull(strstr(err.text, expected));
    }
    for (int i = 0; i < count; i++) {
        close(fds[i]);
    }

    ck_assert_int_eq(net_listen_tcp("127.0.0.1", 0, fds, 1, &err), 1);
    close(fds[0]);
    ck_assert_int_eq(net_listen_tcp("192.0.2.1", 0, fds, 4, &err), -EADDRNOTAVAIL);
    ck_assert_ptr_nonnull(strstr(err.text, "192.0.2.1:0: this machine does not have that address"));
    ck_assert_int_eq(net_listen_tcp("not/an\naddress", 0, fds, 4, &err), -EADDRNOTAVAIL);
    ck_assert_ptr_nonnull(strstr(err.text, "not/an\\x0aaddress: cannot resolve the address"));
    ck_assert_int_eq(net_local_port(0, &port) < 0, 1);
}
END_TEST

/* Accepting. */

struct accept_run {
    struct accepter *accepter;
    struct group group;
    int result;
};

static void co_accept_once(void *arg)
{
    struct accept_run *run = arg;
    run->result = co_accept(run->accepter);
    group_leave(&run->group);
}

static void co_accept_body(void *arg)
{
    struct errtext err = {""};
    struct accept_run run = {.result = 1};
    uint16_t port;
    int fds[4];
    char buf[4];
    (void)arg;

    ck_assert_int_eq(net_listen_tcp("127.0.0.1", 0, fds, 4, &err), 1);
    ck_assert_int_eq(net_local_port(fds[0], &port), 0);
    ck_assert_int_eq(accepter_create(test_loop, fds[0], &run.accepter), 0);
    group_init(&run.group);

    for (int i = 0; i < 3; i++) {
        struct sockaddr_in address = {.sin_family = AF_INET,
                                      .sin_port = htons(port),
                                      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        /* An inherited socket may be in this mode. */
        ck_assert_int_eq(fcntl(fds[0], F_SETFL, i == 1 ? O_NONBLOCK : 0), 0);
        group_enter(&run.group);
        ck_assert_int_eq(coro_spawn(co_accept_once, &run, "accept"), 0);
        co_test_turn();
        ck_assert_int_eq(connect(client, (struct sockaddr *)&address, sizeof(address)), 0);
        co_group_wait(&run.group);
        ck_assert_int_ge(run.result, 0);
        ck_assert_int_eq(fcntl(run.result, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);

        struct stream *stream = socket_stream(run.result);
        ck_assert_int_eq(strncmp(stream->peer, "127.0.0.1:", 10), 0);
        struct in6_addr mapped;
        ck_assert_int_eq(inet_pton(AF_INET6, "::ffff:127.0.0.1", &mapped), 1);
        ck_assert_int_eq(stream->origin->kind, ORIGIN_IP);
        ck_assert_int_eq(memcmp(&stream->origin->address, &mapped, sizeof(mapped)), 0);
        int on = 0;
        socklen_t len = sizeof(on);
        ck_assert_int_eq(getsockopt(run.result, IPPROTO_TCP, TCP_NODELAY, &on, &len), 0);
        ck_assert_int_ne(on, 0);
        ck_assert_int_eq(write(client, "ping", 4), 4);
        ck_assert_int_eq(co_stream_recv_all(stream, buf, 4), 0);
        ck_assert_int_eq(co_send_bytes(stream, "pong", 4), 0);
        /* The peer's unread bytes must not turn the goodbye into a reset. */
        ck_assert_int_eq(write(client, "more", 4), 4);
        stream->ops->co_close(stream);
        ck_assert_int_eq(recv(client, buf, 4, MSG_WAITALL), 4);
        ck_assert_int_eq(memcmp(buf, "pong", 4), 0);
        ck_assert_int_eq(recv(client, buf, 4, 0), 0);
        close(client);
    }

    ck_assert_int_eq(fcntl(fds[0], F_SETFL, O_NONBLOCK), 0);
    group_enter(&run.group);
    ck_assert_int_eq(coro_spawn(co_accept_once, &run, "accept"), 0);
    co_test_turn();
    accepter_stop(run.accepter);
    accepter_stop(run.accepter);
    co_group_wait(&run.group);
    ck_assert_int_eq(run.result, -ECANCELED);
    int after = co_accept(run.accepter);
    ck_assert_int_eq(after, -ECANCELED);
    accepter_free(run.accepter);
    accepter_free(NULL);
}

START_TEST(test_accept)
{
    test_run(co_accept_body, NULL);
}
END_TEST

/* Out of descriptors: told, so that the caller can pause; and it goes on afterwards. */
static void co_exhausted_body(void *arg)
{
    struct errtext err = {""};
    struct accepter *accepter;
    struct rlimit limit;
    int listen_fd;
    (void)arg;

    ck_assert_int_eq(net_listen_unix(test_path("s"), NULL, &listen_fd, &err), 0);
    ck_assert_int_eq(accepter_create(test_loop, listen_fd, &accepter), 0);
    int client = connect_unix(test_path("s"));
    ck_assert_int_ge(client, 0);

    ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
    struct rlimit none = {.rlim_cur = 0, .rlim_max = limit.rlim_max};
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
    int fd = co_accept(accepter);
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    ck_assert_int_eq(fd, -EMFILE);
    fd = co_accept(accepter);
    ck_assert_int_ge(fd, 0);
    close(fd);
    close(client);
    accepter_free(accepter);
}

START_TEST(test_exhausted)
{
    test_run(co_exhausted_body, NULL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("net");
    TCase *tcase = tcase_create("net");
    tcase_set_timeout(tcase, 50);
    tcase_add_checked_fixture(tcase, make_dir, test_dir_remove);
    tcase_add_test(tcase, test_bulk);
    tcase_add_test(tcase, test_ends);
    tcase_add_test(tcase, test_abort);
    tcase_add_test(tcase, test_listen_unix);
    tcase_add_test(tcase, test_listen_unix_leaves_one_name);
    tcase_add_test(tcase, test_listen_unix_mode);
    tcase_add_test(tcase, test_listen_unix_owner);
    tcase_add_test(tcase, test_inherit);
    tcase_add_test(tcase, test_listen_vsock);
    tcase_add_test(tcase, test_listen_tcp);
    tcase_add_test(tcase, test_accept);
    tcase_add_test(tcase, test_exhausted);
    suite_add_tcase(suite, tcase);
    return test_main(suite);
}
