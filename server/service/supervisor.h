/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What whoever started the server gives it, and wants to be told: sockets, a way to say "ready", a
 * file with the process id, a life that does not outlast theirs.
 */
#ifndef QCOWD_SERVICE_SUPERVISOR_H
#define QCOWD_SERVICE_SUPERVISOR_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/errtext.h"
#include "config/options.h"
#include "io/net.h"
#include "listen/activation.h"
#include "listen/endpoints.h"
#include "service/notify.h"

struct supervisor {
    const struct serve_config *config;
    pid_t parent;
    struct activation activation;
    struct notify notify;
    struct net_socket_file socket_file;  /* for the socket of --unix */
    struct net_socket_file control_file; /* and that of --control */
    int pid_file_fd; /* open, so that no other file gets its inode; -1: none was written */
};

/*
 * Before anything is opened, as descriptors that we inherited are named by number; and on the main
 * stack. 0, or -errno with err; either way supervisor_end() comes last.
 */
int supervisor_begin(struct supervisor *supervisor, const struct serve_config *config,
                     struct errtext *err);

/*
 * Writes the file of --pidfile, if there is to be one: when clients can connect, and before rights
 * are given up that it may need. 0, or -errno with err.
 */
int supervisor_write_pid(struct supervisor *supervisor, struct errtext *err);

/*
 * Tells all who asked for it that clients are served: the URIs of these exports on stdout, a line
 * to --ready-fd, the service manager. 0, or -errno with err. Says things once.
 */
int supervisor_ready(struct supervisor *supervisor, const struct endpoints *endpoints,
                     const char *const *export_names, unsigned export_count, const char *status,
                     struct errtext *err);

/*
 * The kernel forgets that we end with our parent when our user changes: to be called again then.
 * -ESRCH: the parent is gone.
 */
int supervisor_watch_parent(const struct supervisor *supervisor, struct errtext *err);

void supervisor_end(struct supervisor *supervisor);

#endif
