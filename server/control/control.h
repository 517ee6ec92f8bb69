/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The control socket: QMP, for the administrator's programs. One coroutine a client reads and runs
 * its commands, one after the other; another one sends, so that events reach a client whose command
 * takes its time. All of it lives on the main loop.
 *
 * Who can connect is trusted with the server, and still bounded: so many clients, so long an
 * object, so much that waits to be read; who does not say or read anything in time is cut.
 */
#ifndef QCOWD_CONTROL_CONTROL_H
#define QCOWD_CONTROL_CONTROL_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/errtext.h"
#include "base/list.h"
#include "export/desired.h"
#include "listen/doorway.h"
#include "listen/listen.h"
#include "sched/sync.h"

/* What the commands act on: the server's, for the time in which it serves. */
struct control_host {
    struct desired *desired;
    const struct listeners *listeners;
    /* `quit`: as SIGTERM does. Does not suspend. */
    void (*quit)(void *arg);
    void *arg;
};

struct control {
    struct doorway doorway;
    struct control_host host;
    struct list clients;
    unsigned client_count;
    struct group sessions;
    bool stopping;
};

/* control_stop() ends what is begun from here on. Does not suspend. */
void control_init(struct control *control, struct loop *loop, struct world *world,
                  const struct control_host *host);
/* Makes the socket; only its owner may connect unless `file` says otherwise. -errno with err. */
int control_listen(struct control *control, const char *path, const struct net_socket_file *file,
                   struct errtext *err);
/* Takes over a listening socket that was inherited. -ENOMEM with err. */
int control_listen_inherited(struct control *control, int fd, struct errtext *err);
/* Starts accepting, if there is a socket. -ENOMEM. */
int control_start(struct control *control);

/* Tells all clients. Takes over data, which may be NULL: an event without. Does not suspend. */
void control_event(struct control *control, const char *name, json_t *data);

/*
 * The server ends: says so and why (a ShutdownCause of QMP), accepts nobody any more, lets what
 * waits to be sent leave for a moment, and ends all sessions. A command that is under way is waited
 * for. May suspend.
 */
void co_control_stop(struct control *control, const char *reason);

#endif
