/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Telling a service manager how it goes (sd_notify(3)): ready, reloading, stopping, alive. Its
 * protocol is a datagram to the socket that $NOTIFY_SOCKET names, so it is spoken here, without
 * libsystemd. Without a manager every call does nothing.
 *
 * Starting may take long, as an image that was not closed cleanly is looked through, and so may
 * stopping, as everything goes to the disk: while the loop turns, the manager is asked for more
 * time. And while the loop turns, its watchdog is fed.
 */
#ifndef QCOWD_SERVICE_NOTIFY_H
#define QCOWD_SERVICE_NOTIFY_H

#include <stdbool.h>
#include <stdint.h>

#include "sched/loop.h"

struct notify {
    int fd; /* connected; -1: there is nobody to tell */
    struct loop *loop;
    uint64_t watchdog_ns;       /* how often the watchdog is fed; 0: there is none */
    uint64_t patience_every_ns; /* how often more time is asked for */
    uint64_t patience_end_ns;   /* more time is asked for until then; 0: not now */
    struct world_timer watchdog;
    struct world_timer patience;
};

/*
 * Takes the manager's variables out of the environment, for no child of ours is to speak for us.
 * The socket is connected here, and so can be used behind any sandbox.
 */
void notify_open(struct notify *notify);
/* From here on time is asked for, and the watchdog fed: starting begins. */
void notify_start(struct notify *notify, struct loop *loop);
/* Clients are served; `status` is a line for people. */
void notify_ready(struct notify *notify, const char *status);
/* Followed by notify_ready() when it is done. */
void notify_reloading(struct notify *notify);
/* Stopping begins, which may take grace_ns and then as long as the disk needs. */
void notify_stopping(struct notify *notify, uint64_t grace_ns);
/* Harmless after notify_open() alone. */
void notify_close(struct notify *notify);

#endif
