/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A client of a control socket, as plain as can be: it blocks, on a thread with nothing else to do.
 * What goes wrong with the connection is logged.
 */
#ifndef QCOWD_CMD_QMP_CLIENT_H
#define QCOWD_CMD_QMP_CLIENT_H

#include <jansson.h>
#include <stdio.h>

struct qmp_client {
    const char *path;
    FILE *server;
};

/* Connects and negotiates. 0; -1: nobody is there, or who is there does not speak QMP. */
int qmp_client_open(struct qmp_client *client, const char *path);
/*
 * Says a command and waits for its answer, for as long as that takes: an object with "return" or
 * "error", the caller's. NULL: the server has ended.
 */
json_t *qmp_client_ask(struct qmp_client *client, json_t *command);
void qmp_client_close(struct qmp_client *client);

#endif
