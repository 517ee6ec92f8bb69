/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Listening sockets, and the connections that come in through them: one accepting coroutine a
 * socket, one serving coroutine a connection.
 */
#ifndef QCOWD_LISTEN_LISTEN_H
#define QCOWD_LISTEN_LISTEN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/errtext.h"
#include "io/net.h"
#include "listen/admission.h"
#include "listen/doorway.h"
#include "proto/nbd.h"
#include "sched/loop.h"
#include "sched/sync.h"

struct listeners {
    struct doorway doorway;
    struct nbd_service *service;
    struct group connections;
    struct admission admission; /* of those that are accepted */
    uint64_t refused;           /* since the last log line about it */
    uint64_t next_refusal_log_ns;
};

/* At most so many connections at once, and from one address (0: no limit). */
void listeners_init(struct listeners *listeners, struct loop *loop, struct nbd_service *service,
                    unsigned connections, unsigned connections_per_address);

/* All return 0 or -errno; what was opened before stays, for co_listeners_stop(). */
int listeners_add_unix(struct listeners *listeners, const char *path,
                       const struct net_socket_file *file, struct errtext *err);
/* *port becomes the one that was got. */
int listeners_add_tcp(struct listeners *listeners, const char *address, uint16_t *port,
                      struct errtext *err);

/* Port 0: the kernel chooses. */
int listeners_add_vsock(struct listeners *listeners, uint32_t port, struct net_address *address,
                        struct errtext *err);
/* Takes over a descriptor that listens. A socket's file is its maker's, and stays. */
int listeners_add_inherited(struct listeners *listeners, int fd, struct errtext *err);

/* Starts accepting. -ENOMEM: some sockets may accept already. */
int listeners_start(struct listeners *listeners);

/*
 * Serves one more connection, beside the accepted ones: takes over the stream always. When it has
 * ended, done(arg) is called; done may be NULL. -ENOMEM: the stream is closed. May suspend.
 */
int co_listeners_serve(struct listeners *listeners, struct stream *stream, void (*done)(void *arg),
                       void *arg);

/*
 * Closes the listening sockets and removes the Unix socket's file, if it is still ours. Connections
 * go on. Harmless when nothing was opened. May suspend.
 */
void co_listeners_stop(struct listeners *listeners);

#endif
