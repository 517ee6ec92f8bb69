/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * From the command line to the sandbox: which user the server becomes, and which files it will need
 * while it serves.
 */
#ifndef QCOWD_SERVICE_CONFINE_H
#define QCOWD_SERVICE_CONFINE_H

#include "base/errtext.h"
#include "config/export_config.h"
#include "config/options.h"
#include "sandbox/privileges.h"
#include "sandbox/sandbox.h"

struct loops;

struct confinement {
    const struct serve_config *config;
    bool changes_user;
    struct identity identity;
    struct sandbox *sandbox;
};

/* What has to be removed at the end; NULL: there is none. */
struct confinement_leavings {
    const char *socket;
    const char *control_socket;
    const char *metrics_socket;
    const char *directory; /* the socket's, if it was made for it */
    const char *pid_file;
};

/*
 * Finds out what will be needed, and whether it can be had, before anything is opened or made.
 * controlled: exports may come over a control socket, too. On the thread's own stack.
 * confinement_end() also after an error. -errno with err.
 */
int confinement_begin(struct confinement *confinement, const struct serve_config *config,
                      bool controlled, const struct export_configs *exports, struct errtext *err);

/*
 * Sockets and images are open: becomes the user, if one is named, who is given the directory that
 * was made for the socket. -errno with err.
 */
int confinement_become_user(struct confinement *confinement,
                            const struct confinement_leavings *leavings, struct errtext *err);

/*
 * All is started: confines the threads of all loops and their workers. Called on the main loop. The
 * command of --run, 0 if there is none, may still be signalled. -errno with err: then nobody must
 * be served. May suspend.
 */
int co_confinement_enter(struct confinement *confinement, struct loops *loops,
                         const struct confinement_leavings *leavings, pid_t command,
                         struct errtext *err);

/* What to add to the message of an error that the sandbox may have caused; "" if it has not. */
const char *confinement_hint(const struct confinement *confinement, int result);

void confinement_end(struct confinement *confinement);

#endif
