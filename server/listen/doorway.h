/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Listening sockets and the coroutines that accept on them, whatever is spoken behind: NBD clients
 * come through one, people with a control connection through another.
 */
#ifndef QCOWD_LISTEN_DOORWAY_H
#define QCOWD_LISTEN_DOORWAY_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/errtext.h"
#include "io/net.h"
#include "io/world.h"
#include "sched/loop.h"
#include "sched/sync.h"

/* Addresses one host name may have, and a Unix socket. */
#define DOORWAY_SOCKETS_MAX 17U

struct doorway;

struct doorway_socket {
    struct doorway *owner;
    struct accepter *accepter;
    bool in_trouble; /* the last accept failed, and that has been logged */
};

struct doorway {
    struct loop *loop;
    struct world *world;
    void (*co_take)(void *arg, int fd);
    void *arg;
    struct doorway_socket sockets[DOORWAY_SOCKETS_MAX];
    unsigned count;
    struct group accepting;
    char *socket_path; /* of the Unix socket that we made; NULL: none */
    dev_t socket_device;
    ino_t socket_inode;
};

/* co_take(arg, fd) takes each accepted descriptor over. It may suspend: others wait meanwhile. */
void doorway_init(struct doorway *doorway, struct loop *loop, struct world *world,
                  void (*co_take)(void *arg, int fd), void *arg);

/* Takes over a descriptor that listens, also on failure. -ENOMEM with err. */
int doorway_add(struct doorway *doorway, int fd, struct errtext *err);
/* Makes a Unix socket (net_listen_unix()), whose file goes when the doorway is closed. One at most.
 * -errno with err. */
int doorway_add_unix(struct doorway *doorway, const char *path, const struct net_socket_file *file,
                     struct errtext *err);

/* Starts accepting. -ENOMEM: some sockets may accept already. */
int doorway_start(struct doorway *doorway);

/*
 * Closes the sockets and removes the Unix socket's file, if it is still ours. What has come in goes
 * on. Harmless when nothing was opened. May suspend.
 */
void co_doorway_stop(struct doorway *doorway);

#endif
