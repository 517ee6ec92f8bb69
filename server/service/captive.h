/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The command of --run: a shell that finds the export in its environment and whose life bounds the
 * server's.
 */
#ifndef QCOWD_SERVICE_CAPTIVE_H
#define QCOWD_SERVICE_CAPTIVE_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/errtext.h"

/* Where the export can be reached; empty strings where there is none. */
struct captive_address {
    const char *uri;
    const char *unix_socket;
    const char *port;
    const char *old_uri;
    const char *export_name;
};

struct captive {
    pid_t pid; /* 0: not started */
    bool ended;
    int exit_status; /* as a shell tells it: 128 + signal when killed */
};

/*
 * Starts `command` through /bin/sh -c with $uri, $unixsocket, $port, $nbd and $exportname set, and
 * the signal mask of before. -errno with err set. Does not suspend.
 */
int captive_start(struct captive *captive, const char *command,
                  const struct captive_address *address, const sigset_t *original_mask,
                  struct errtext *err);

/* To be called after SIGCHLD: notes the end if the command has ended. */
void captive_reap(struct captive *captive);

static inline bool captive_running(const struct captive *captive)
{
    return captive->pid != 0 && !captive->ended;
}

/* Does nothing when it does not run. */
void captive_kill(const struct captive *captive, int signal_number);

/*
 * A new directory that only we may enter, for a socket: *directory and *socket_path are malloc'ed.
 * captive_remove_directory() removes and frees both; NULL is fine.
 */
int captive_make_directory(char **directory, char **socket_path, struct errtext *err);
void captive_remove_directory(char *directory, char *socket_path);

#endif
