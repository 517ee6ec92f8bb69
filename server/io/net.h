/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Sockets as streams, and listening.
 */
#ifndef QCOWD_IO_NET_H
#define QCOWD_IO_NET_H

#include <stdint.h>

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

/*
 * Listens on a Unix socket. A stale socket file (nobody answers) is replaced, a live one refused
 * with -EADDRINUSE; a file that is not a socket is never removed. The path appears when the socket
 * listens, not before. *fd is the caller's.
 */
int net_listen_unix(const char *path, int *fd, struct errtext *err);
/*
 * Listens on every address that `address` (name, IPv4 or IPv6; NULL: loopback, both families) has,
 * at most `capacity` sockets. Port 0 lets the kernel choose one, the same for all. Returns the
 * count of descriptors in fds, or -errno with none open.
 */
int net_listen_tcp(const char *address, uint16_t port, int *fds, unsigned capacity,
                   struct errtext *err);
/* Accepts one connection: the descriptor, or -errno (-ECANCELED after net_stop_accept). May
 * suspend. */
struct accepter;
int accepter_create(struct loop *loop, int listen_fd, struct accepter **out);
int co_accept(struct accepter *accepter);
void accepter_stop(struct accepter *accepter); /* co_accept returns -ECANCELED from now on */
void accepter_free(struct accepter *accepter); /* closes listen_fd; nobody may be in co_accept */

/* The port a listening TCP socket got. */
int net_local_port(int fd, uint16_t *port);

#endif
