/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Listening sockets that whoever started us made: systemd's socket units, systemd-socket-activate,
 * libnbd ($LISTEN_PID, $LISTEN_FDS, $LISTEN_FDNAMES; see sd_listen_fds(3)).
 *
 * The protocol is three environment variables, so it is spoken here, as nbdkit and qemu-nbd do:
 * nobody needs libsystemd for it, to build or to run.
 */
#ifndef QCOWD_LISTEN_ACTIVATION_H
#define QCOWD_LISTEN_ACTIVATION_H

#include "base/errtext.h"
#include "io/net.h"

#define ACTIVATION_SOCKETS_MAX 16U

struct inherited_socket {
    int fd;
    /* As $LISTEN_FDNAMES has it, made printable; empty: it has none. "control" is the one that
     * selects something: systemd gives names that nobody chose. */
    char name[64];
    struct net_address address;
};

struct activation {
    unsigned count; /* 0: we were started without sockets */
    struct inherited_socket sockets[ACTIVATION_SOCKETS_MAX];
    int control_fd; /* the Unix socket named "control", which is none of those; -1: none is */
};

/*
 * Takes the sockets over, and the variables out of the environment, whether they are meant for this
 * process or not: no child of ours is to believe that they are for it. 0, or -EINVAL with err.
 */
int activation_take(struct activation *activation, struct errtext *err);

#endif
