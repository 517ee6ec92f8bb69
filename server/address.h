/* SPDX-License-Identifier: BSD-2-Clause */
/* How clients reach the server: the URIs that are logged and handed to the command of --run. */
#ifndef QCOWD_ADDRESS_H
#define QCOWD_ADDRESS_H

#include "base/errtext.h"
#include "options.h"

/* Owned strings, empty where there is no such way; all NULL before address_describe(). */
struct address {
    char *unix_path; /* absolute */
    char *port;
    char *uri;
    char *old_uri;
};

/*
 * unix_path: the socket that is listened on, NULL if there is none. port: the TCP port that was
 * got. 0, or -ENOMEM: what there is, is freed with the rest by address_free().
 */
int address_describe(struct address *address, const struct serve_config *config,
                     const char *unix_path, uint16_t port, struct errtext *err);
void address_free(struct address *address);

#endif
