/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Listening and accepting. Listening happens once, before anything is served, and so asks the
 * system directly; accepting waits in the ring.
 */
#include "io/net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <liburing.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/check.h"
#include "sched/loop.h"

#define BACKLOG 512
/* Tries to find one free port that all addresses can have. */
#define PORT_ATTEMPTS 16

/* Listening on a Unix socket. */

enum answer { ANSWERS, STALE, VANISHED, NOT_A_SOCKET };

/* What is there at a path that is in use. */
static enum answer probe_unix(const struct sockaddr_un *address)
{
    struct stat st;

    if (lstat(address->sun_path, &st) < 0) {
        return errno == ENOENT ? VANISHED : NOT_A_SOCKET;
    }
    if (!S_ISSOCK(st.st_mode)) {
        return NOT_A_SOCKET;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return ANSWERS;
    }
    int ret = connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 ? errno : 0;
    close(fd);
    switch (ret) {
    case ECONNREFUSED:
        return STALE;
    case ENOENT:
        return VANISHED;
    default:
        /* EAGAIN is a full backlog, EACCES somebody else's: both may be alive. */
        return ANSWERS;
    }
}

/*
 * A socket that listens under a name of its own, in the directory of the path that it is for. Only
 * then does linkat() give it that path, so that the path never names a socket which does not listen
 * yet: a client may connect as soon as it is there, and nobody takes it for a stale one.
 */
struct hidden_socket {
    int fd;
    int directory_fd;
    char name[24];
};

static int open_directory(const char *path, size_t prefix_len, struct errtext *err)
{
    char directory[sizeof(((struct sockaddr_un *)NULL)->sun_path)] = ".";

    if (prefix_len > 0) {
        memcpy(directory, path, prefix_len);
        directory[prefix_len] = '\0';
    }
    int fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        int saved = errno;
        return err_set(err, saved, "%s: cannot make the socket: %s%s", path, strerror(saved),
                       saved == ENOENT ? ": its directory must exist" : "");
    }
    return fd;
}

/* With a mode, the file has it from its first moment. */
static int bind_with_mode(int fd, const struct sockaddr_un *address,
                          const struct net_socket_file *file)
{
    bool masked = file && file->mode_given;
    mode_t umask_before = masked ? umask(~file->mode & 0777) : 0;
    int ret = bind(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 ? -errno : 0;
    if (masked) {
        umask(umask_before);
    }
    return ret;
}

/* prefix_len: of the path up to and with its last slash. */
static int bind_hidden(struct hidden_socket *hidden, const char *path, size_t prefix_len,
                       const struct net_socket_file *file)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const size_t room = sizeof(address.sun_path);
    uint32_t random;

    if (getrandom(&random, sizeof(random), 0) != (ssize_t)sizeof(random)) {
        random = (uint32_t)getpid();
    }
    snprintf(hidden->name, sizeof(hidden->name), ".qcowd-%08x", random);
    if (prefix_len + strlen(hidden->name) < room) {
        memcpy(address.sun_path, path, prefix_len);
        memcpy(address.sun_path + prefix_len, hidden->name, strlen(hidden->name) + 1);
    } else {
        snprintf(address.sun_path, room, "/proc/self/fd/%d/%s", hidden->directory_fd, hidden->name);
    }
    return bind_with_mode(hidden->fd, &address, file);
}

/* Nobody can connect yet, so nobody does who only may before this. */
static int give_to_owner(const struct hidden_socket *hidden, const struct net_socket_file *file)
{
    if (!file || (file->uid == (uid_t)-1 && file->gid == (gid_t)-1)) {
        return 0;
    }
    return fchownat(hidden->directory_fd, hidden->name, file->uid, file->gid, AT_SYMLINK_NOFOLLOW) <
                   0
               ? -errno
               : 0;
}

static void remove_hidden_name(const struct hidden_socket *hidden)
{
    (void)unlinkat(hidden->directory_fd, hidden->name, 0);
}

/* Binds, sets the owner, listens: the first failure, explained, with no name left behind. */
static int make_hidden(struct hidden_socket *hidden, const char *path, size_t prefix_len,
                       const struct net_socket_file *file, struct errtext *err)
{
    int ret = bind_hidden(hidden, path, prefix_len, file);
    if (ret < 0) {
        return err_set(err, -ret, "%s: cannot make the socket: %s%s", path, strerror(-ret),
                       ret == -EACCES ? ": choose a directory that you may write" : "");
    }
    ret = give_to_owner(hidden, file);
    if (ret < 0) {
        err_set(err, -ret, "%s: cannot change the owner of the socket: %s%s", path, strerror(-ret),
                ret == -EPERM ? ": only root may give files away, and only to a group of one's own"
                                " may others"
                              : "");
    } else if (listen(hidden->fd, BACKLOG) < 0) {
        ret = -errno;
        err_set(err, -ret, "%s: cannot listen: %s", path, strerror(-ret));
    }
    if (ret < 0) {
        remove_hidden_name(hidden);
    }
    return ret;
}

/* On success the caller ends both descriptors and the name. */
static int listen_hidden(struct hidden_socket *hidden, const char *path, size_t prefix_len,
                         const struct net_socket_file *file, struct errtext *err)
{
    hidden->directory_fd = open_directory(path, prefix_len, err);
    if (hidden->directory_fd < 0) {
        return hidden->directory_fd;
    }
    int ret;
    hidden->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (hidden->fd < 0) {
        ret = -errno;
        err_set(err, -ret, "%s: cannot make the socket: %s", path, strerror(-ret));
    } else {
        ret = make_hidden(hidden, path, prefix_len, file, err);
        if (ret < 0) {
            close(hidden->fd);
        }
    }
    if (ret < 0) {
        close(hidden->directory_fd);
    }
    return ret;
}

/* Gives the socket its path, in the place of a stale one if there is one. */
static int publish(const struct hidden_socket *hidden, const struct sockaddr_un *address,
                   size_t prefix_len, struct errtext *err)
{
    const char *path = address->sun_path;

    for (unsigned attempt = 0; attempt < 3; attempt++) {
        if (linkat(hidden->directory_fd, hidden->name, hidden->directory_fd, path + prefix_len,
                   0) == 0) {
            return 0;
        }
        if (errno != EEXIST) {
            int saved = errno;
            return err_set(err, saved, "%s: cannot make the socket: %s", path, strerror(saved));
        }
        switch (probe_unix(address)) {
        case ANSWERS:
            return err_set(err, EADDRINUSE,
                           "%s: address already in use: another server listens there; stop it or "
                           "choose another path",
                           path);
        case NOT_A_SOCKET:
            return err_set(err, EADDRINUSE,
                           "%s: exists and is not a socket: remove it or choose another path",
                           path);
        case STALE:
            if (unlink(path) < 0 && errno != ENOENT) {
                int saved = errno;
                return err_set(err, saved, "%s: cannot remove the stale socket: %s", path,
                               strerror(saved));
            }
            break;
        case VANISHED:
            break;
        }
    }
    return err_set(err, EADDRINUSE, "%s: address already in use: other servers start there too",
                   path);
}

int net_listen_unix(const char *path, const struct net_socket_file *file, int *fd,
                    struct errtext *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct hidden_socket hidden;
    size_t len = strlen(path);

    if (len == 0 || path[len - 1] == '/') {
        return err_set(err, EINVAL, "'%s': the path of the Unix socket names no file", path);
    }
    if (len >= sizeof(address.sun_path)) {
        return err_set(err, ENAMETOOLONG,
                       "%s: the path of a Unix socket is at most %zu bytes long, this one has %zu",
                       path, sizeof(address.sun_path) - 1, len);
    }
    memcpy(address.sun_path, path, len + 1);
    const char *last_slash = strrchr(path, '/');
    size_t prefix_len = last_slash ? (size_t)(last_slash - path) + 1 : 0;

    int ret = listen_hidden(&hidden, path, prefix_len, file, err);
    if (ret < 0) {
        return ret;
    }
    ret = publish(&hidden, &address, prefix_len, err);
    remove_hidden_name(&hidden);
    close(hidden.directory_fd);
    if (ret < 0) {
        close(hidden.fd);
        return ret;
    }
    *fd = hidden.fd;
    return 0;
}

/* Listening on TCP. */

/* "127.0.0.1:10809", "[::1]:10809". */
static void format_address(char *out, size_t out_bytes, const struct addrinfo *ai, uint16_t port)
{
    char host[NI_MAXHOST];

    if (getnameinfo(ai->ai_addr, ai->ai_addrlen, host, sizeof(host), NULL, 0, NI_NUMERICHOST) !=
        0) {
        snprintf(host, sizeof(host), "?");
    }
    snprintf(out, out_bytes, ai->ai_family == AF_INET6 ? "[%s]:%u" : "%s:%u", host, port);
}

static void set_port(struct addrinfo *ai, uint16_t port)
{
    if (ai->ai_family == AF_INET) {
        ((struct sockaddr_in *)(void *)ai->ai_addr)->sin_port = htons(port);
    } else {
        ((struct sockaddr_in6 *)(void *)ai->ai_addr)->sin6_port = htons(port);
    }
}

static int explain_listen(struct errtext *err, int errno_value, const struct addrinfo *ai,
                          uint16_t port)
{
    char where[NI_MAXHOST + 16];

    format_address(where, sizeof(where), ai, port);
    switch (errno_value) {
    case EADDRINUSE:
        return err_set(err, errno_value,
                       "%s: address already in use: another server (perhaps another qcowd) listens "
                       "there; choose another with --port",
                       where);
    case EACCES:
        return err_set(err, errno_value,
                       "%s: permission denied: ports below 1024 are for root; choose another with "
                       "--port",
                       where);
    case EADDRNOTAVAIL:
        return err_set(err, errno_value,
                       "%s: this machine does not have that address; choose another with --bind",
                       where);
    default:
        return err_set(err, errno_value, "%s: cannot listen: %s", where, strerror(errno_value));
    }
}

/* The listening descriptor, or -errno. */
static int listen_on(const struct addrinfo *ai)
{
    int on = 1;
    int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0) {
        return -errno;
    }
    if ((ai->ai_family == AF_INET6 &&
         setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on)) < 0) ||
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
        bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0) {
        int saved = errno;
        close(fd);
        return -saved;
    }
    return fd;
}

/* The resolver may name an address twice ("localhost" in two lines of a hosts file). */
static bool seen_before(const struct addrinfo *first, const struct addrinfo *ai)
{
    for (const struct addrinfo *at = first; at != ai; at = at->ai_next) {
        if (at->ai_addrlen == ai->ai_addrlen &&
            memcmp(at->ai_addr, ai->ai_addr, ai->ai_addrlen) == 0) {
            return true;
        }
    }
    return false;
}

/* A family that the machine does not have is no error as long as another one works. */
static bool is_absent_family(int errno_value)
{
    return errno_value == EAFNOSUPPORT || errno_value == EADDRNOTAVAIL;
}

static void close_all(const int *fds, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        close(fds[i]);
    }
}

/* One attempt over all addresses: the count of descriptors, or -errno with none open. */
static int listen_on_all(struct addrinfo *list, uint16_t port, int *fds, unsigned capacity,
                         struct errtext *err)
{
    unsigned count = 0;
    int absent = 0;

    /* Ports first: seen_before() compares whole addresses. */
    for (struct addrinfo *ai = list; ai; ai = ai->ai_next) {
        set_port(ai, port);
    }
    for (struct addrinfo *ai = list; ai && count < capacity; ai = ai->ai_next) {
        if (seen_before(list, ai)) {
            continue;
        }
        int fd = listen_on(ai);
        if (fd < 0 && is_absent_family(-fd)) {
            absent = explain_listen(err, -fd, ai, port);
            continue;
        }
        if (fd < 0) {
            close_all(fds, count);
            return explain_listen(err, -fd, ai, port);
        }
        fds[count++] = fd;
        if (port == 0) {
            int ret = net_local_port(fd, &port);
            if (ret < 0) {
                close_all(fds, count);
                return explain_listen(err, -ret, ai, port);
            }
            for (struct addrinfo *rest = list; rest; rest = rest->ai_next) {
                set_port(rest, port);
            }
        }
    }
    return count > 0 ? (int)count : absent;
}

int net_listen_tcp(const char *address, uint16_t port, int *fds, unsigned capacity,
                   struct errtext *err)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *list = NULL;
    char service[8];

    assert(capacity > 0);
    snprintf(service, sizeof(service), "%u", port);
    hints.ai_flags = AI_NUMERICSERV;
    int resolved = getaddrinfo(address, service, &hints, &list);
    if (resolved != 0) {
        char name[128];
        err_sanitise(name, sizeof(name), address ? address : "localhost",
                     strlen(address ? address : "localhost"));
        return err_set(err, EADDRNOTAVAIL,
                       "%s: cannot resolve the address: %s; give one of this machine's with --bind",
                       name, gai_strerror(resolved));
    }

    int ret = -EADDRINUSE;
    for (unsigned attempt = 0; attempt < PORT_ATTEMPTS && ret == -EADDRINUSE; attempt++) {
        ret = listen_on_all(list, port, fds, capacity, err);
        if (port != 0) {
            break;
        }
    }
    freeaddrinfo(list);
    return ret;
}

/* Listening on vsock. */

int net_listen_vsock(uint32_t port, int *fd, struct errtext *err)
{
    struct sockaddr_vm address = {
        .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port};
    int made = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (made < 0) {
        int saved = errno;
        return err_set(
            err, saved, "cannot listen on vsock: %s%s", strerror(saved),
            saved == EAFNOSUPPORT
                ? ": this kernel has no vsock; load vhost_vsock on a machine with guests,"
                  " vmw_vsock_virtio_transport in a guest"
                : "");
    }
    if (bind(made, (const struct sockaddr *)&address, sizeof(address)) < 0 ||
        listen(made, BACKLOG) < 0) {
        int saved = errno;
        close(made);
        return err_set(err, saved, "vsock port %u: cannot listen: %s%s", port, strerror(saved),
                       saved == EADDRINUSE ? ": another server listens there; choose another with "
                                             "--port"
                       : saved == EACCES   ? ": ports below 1024 are for root; choose another with "
                                             "--port"
                                           : "");
    }
    *fd = made;
    return 0;
}

/* The number by which others on this machine call us: 2 for a host, its own for a guest. Where it
 * cannot be asked, the one by which we call ourselves. */
static uint32_t local_cid(void)
{
    unsigned cid = VMADDR_CID_LOCAL;
    int fd = open("/dev/vsock", O_RDONLY | O_CLOEXEC);

    if (fd >= 0) {
        if (ioctl(fd, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid) < 0 || cid == VMADDR_CID_ANY) {
            cid = VMADDR_CID_LOCAL;
        }
        close(fd);
    }
    return cid;
}

/* What listens, and where. */

union any_address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    struct sockaddr_un local;
    struct sockaddr_vm vm;
    struct sockaddr_storage storage;
};

int net_local_port(int fd, uint16_t *port)
{
    struct net_address address;
    int ret = net_local_address(fd, &address);

    if (ret == 0 && address.family != NET_TCP) {
        ret = -EAFNOSUPPORT;
    }
    if (ret == 0) {
        *port = (uint16_t)address.port;
    }
    return ret;
}

/* The path may fill its field without a terminator; none, and an abstract one, name no file. */
static void take_path(struct net_address *out, const struct sockaddr_un *local, socklen_t len)
{
    size_t room = (size_t)len - offsetof(struct sockaddr_un, sun_path);

    if (len > offsetof(struct sockaddr_un, sun_path)) {
        memcpy(out->name, local->sun_path,
               strnlen(local->sun_path, MIN_OF(room, sizeof(local->sun_path))));
    }
}

int net_local_address(int fd, struct net_address *out)
{
    union any_address address;
    socklen_t len = sizeof(address);

    memset(&address, 0, sizeof(address));
    memset(out, 0, sizeof(*out));
    if (getsockname(fd, &address.any, &len) < 0) {
        return -errno;
    }
    switch (address.any.sa_family) {
    case AF_UNIX:
        out->family = NET_UNIX;
        take_path(out, &address.local, len);
        return 0;
    case AF_INET:
        out->family = NET_TCP;
        out->port = ntohs(address.v4.sin_port);
        inet_ntop(AF_INET, &address.v4.sin_addr, out->name, sizeof(out->name));
        return 0;
    case AF_INET6:
        out->family = NET_TCP;
        out->port = ntohs(address.v6.sin6_port);
        inet_ntop(AF_INET6, &address.v6.sin6_addr, out->name, sizeof(out->name));
        return 0;
    case AF_VSOCK:
        out->family = NET_VSOCK;
        out->port = address.vm.svm_port;
        out->cid = address.vm.svm_cid == VMADDR_CID_ANY ? local_cid() : address.vm.svm_cid;
        return 0;
    default:
        return -EAFNOSUPPORT;
    }
}

static int socket_option(int fd, int name)
{
    int value = 0;
    socklen_t len = sizeof(value);
    return getsockopt(fd, SOL_SOCKET, name, &value, &len) < 0 ? -errno : value;
}

int net_inherit_listener(int fd, struct net_address *address, struct errtext *err)
{
    int flags = fcntl(fd, F_GETFD);
    if (flags < 0) {
        return err_set(err, EINVAL, "inherited descriptor %d is not open", fd);
    }
    int type = socket_option(fd, SO_TYPE);
    if (type < 0) {
        return err_set(err, EINVAL, "inherited descriptor %d is not a socket", fd);
    }
    if (type != SOCK_STREAM) {
        return err_set(err, EINVAL,
                       "inherited descriptor %d is a socket for datagrams or packets: NBD needs a "
                       "stream",
                       fd);
    }
    if (socket_option(fd, SO_ACCEPTCONN) <= 0) {
        return err_set(
            err, EINVAL,
            "inherited descriptor %d does not listen: a socket unit needs Accept=no; one "
            "connection is served with --stdio",
            fd);
    }
    int ret = net_local_address(fd, address);
    if (ret < 0) {
        return err_set(err, EINVAL, "inherited descriptor %d is neither Unix nor TCP nor vsock: %s",
                       fd, strerror(-ret));
    }
    if (fcntl(fd, F_SETFD, flags | FD_CLOEXEC) < 0) {
        return err_set(err, EINVAL, "inherited descriptor %d: %s", fd, strerror(errno));
    }
    return 0;
}

/* Accepting. */

struct accepter {
    struct loop *loop;
    int fd;
    bool stopped;
    struct loop_op *accepting; /* on the stack of who waits in co_accept() */
};

int accepter_create(struct loop *loop, int listen_fd, struct accepter **out)
{
    struct accepter *accepter = calloc(1, sizeof(*accepter));

    if (accepter == NULL) {
        return -ENOMEM;
    }
    accepter->loop = loop;
    accepter->fd = listen_fd;
    *out = accepter;
    return 0;
}

/* Submits what has been prepared and waits for it, unless accepter_stop() ends it first. */
static int co_wait_cancellable(struct accepter *accepter, struct io_uring_sqe *sqe)
{
    struct loop_op op = {0};

    loop_sqe_attach(sqe, &op);
    assert(accepter->accepting == NULL);
    accepter->accepting = &op;
    int result = co_loop_wait(accepter->loop, &op);
    accepter->accepting = NULL;
    return result;
}

int co_accept(struct accepter *accepter)
{
    while (!accepter->stopped) {
        struct io_uring_sqe *sqe = loop_sqe(accepter->loop);

        io_uring_prep_accept(sqe, accepter->fd, NULL, NULL, SOCK_CLOEXEC);
        int fd = co_wait_cancellable(accepter, sqe);
        if (fd >= 0 && accepter->stopped) {
            close(fd);
            break;
        }
        if (fd == -EAGAIN && !accepter->stopped) {
            /* An inherited socket in non-blocking mode, which those who share it may rely on. */
            sqe = loop_sqe(accepter->loop);
            io_uring_prep_poll_add(sqe, accepter->fd, POLLIN);
            fd = co_wait_cancellable(accepter, sqe);
            fd = fd < 0 ? fd : -EAGAIN;
        }
        /* The one who came has gone again, or nobody came yet: the next one, please. */
        if (fd == -ECONNABORTED || fd == -EINTR || fd == -EAGAIN || fd == -EPROTO) {
            continue;
        }
        if (fd != -ECANCELED) {
            return fd;
        }
    }
    return -ECANCELED;
}

void accepter_stop(struct accepter *accepter)
{
    if (accepter->stopped) {
        return;
    }
    accepter->stopped = true;
    if (accepter->accepting && !accepter->accepting->done) {
        loop_cancel(accepter->loop, accepter->accepting);
    }
}

void accepter_free(struct accepter *accepter)
{
    if (accepter == NULL) {
        return;
    }
    assert(accepter->accepting == NULL);
    close(accepter->fd);
    free(accepter);
}
