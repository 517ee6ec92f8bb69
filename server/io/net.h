/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Sockets as streams, and listening.
 */
#ifndef QCOWD_IO_NET_H
#define QCOWD_IO_NET_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/un.h>

#include "base/errtext.h"
#include "io/stream.h"

struct loop;

/*
 * A connected socket as a stream; TCP_NODELAY is set on TCP. Takes over fd, also on failure.
 * -ENOMEM. Does not suspend.
 */
int stream_socket_create(struct loop *loop, int fd, struct stream **out);
/*
 * A pair of descriptors (stdin, stdout) as one stream; they are closed with it. Takes over both,
 * also on failure; they may be the same socket. Pipes have no way to ask for EPIPE without SIGPIPE:
 * where out_fd is no socket and SIGPIPE would end the process, it is ignored from here on. -ENOMEM.
 */
int stream_pair_create(struct loop *loop, int in_fd, int out_fd, struct stream **out);

/* Whom the file of a Unix socket lets connect: who may write it. */
struct net_socket_file {
    bool mode_given; /* else what the umask leaves */
    mode_t mode;
    uid_t uid; /* (uid_t)-1 and (gid_t)-1: as for every file this process makes */
    gid_t gid;
};

/*
 * Listens on a Unix socket. A stale socket file (nobody answers) is replaced, a live one refused
 * with -EADDRINUSE; a file that is not a socket is never removed. The path appears when the socket
 * listens, with the mode and owner that `file` wants (NULL: none in particular), not before. *fd is
 * the caller's. Changes the umask for a moment if there is a mode: call it before there are
 * threads that make files.
 */
int net_listen_unix(const char *path, const struct net_socket_file *file, int *fd,
                    struct errtext *err);
/*
 * Listens on every address that `address` (name, IPv4 or IPv6; NULL: loopback, both families) has,
 * at most `capacity` sockets. Port 0 lets the kernel choose one, the same for all. Returns the
 * count of descriptors in fds, or -errno with none open.
 */
int net_listen_tcp(const char *address, uint16_t port, int *fds, unsigned capacity,
                   struct errtext *err);
/*
 * Listens on a vsock port, for the hosts and guests of this machine; NET_VSOCK_ANY_PORT lets the
 * kernel choose one. *fd is the caller's.
 */
#define NET_VSOCK_ANY_PORT UINT32_MAX
int net_listen_vsock(uint32_t port, int *fd, struct errtext *err);

enum net_family { NET_UNIX, NET_TCP, NET_VSOCK };

/* Where a listening socket can be reached. */
struct net_address {
    enum net_family family;
    /* The path of a Unix socket, empty for one without a file; an IPv4 or IPv6 address. */
    char name[sizeof(((struct sockaddr_un *)NULL)->sun_path) + 1];
    uint32_t port; /* of TCP and vsock */
    uint32_t cid;  /* of vsock: how others call this machine */
};
/* -ENOTSOCK, -EAFNOSUPPORT (another family) and so on. */
int net_local_address(int fd, struct net_address *address);
/*
 * Whether an inherited descriptor is a listening stream socket of a family that we serve: 0 with
 * *address, or -EINVAL with err, which says what it is instead. It is closed on exec from here on.
 */
int net_inherit_listener(int fd, struct net_address *address, struct errtext *err);

/* The port a listening TCP socket got. */
int net_local_port(int fd, uint16_t *port);

/* Accepts one connection: the descriptor, or -errno (-ECANCELED after accepter_stop). May
 * suspend. */
struct accepter;
int accepter_create(struct loop *loop, int listen_fd, struct accepter **out);
int co_accept(struct accepter *accepter);
void accepter_stop(struct accepter *accepter); /* co_accept returns -ECANCELED from now on */
void accepter_free(struct accepter *accepter); /* closes listen_fd; nobody may be in co_accept */

#endif
