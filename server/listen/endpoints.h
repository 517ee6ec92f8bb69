/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Where the server listens: the sockets that the command line asks for, or those that it inherited,
 * and the URIs by which clients reach exports there.
 */
#ifndef QCOWD_LISTEN_ENDPOINTS_H
#define QCOWD_LISTEN_ENDPOINTS_H

#include <stdint.h>

#include "base/errtext.h"
#include "config/options.h"
#include "io/net.h"
#include "listen/activation.h"
#include "listen/listen.h"

/* One way to the server. A host name stands for all its addresses. */
struct endpoint {
    enum net_family family;
    char *name; /* absolute path, or host as a client would name it; empty: a socket without file */
    uint32_t port;
    uint32_t cid;
};

/* Unix sockets first: only they say who may connect. */
struct endpoints {
    struct endpoint items[DOORWAY_SOCKETS_MAX];
    unsigned count;
};

/* Refuses what cannot be combined with inherited sockets. 0, or -EINVAL with err. */
int endpoints_check(const struct activation *activation, const struct serve_config *config,
                    struct errtext *err);

/*
 * Opens the sockets, which then listen, but accept nothing before listeners_start(). unix_path:
 * that of the options, or a temporary one, or NULL. 0, or -errno with err: what was opened before
 * stays, for co_listeners_stop(), and what there is here for endpoints_free().
 */
int endpoints_open(struct endpoints *endpoints, struct listeners *listeners,
                   const struct serve_config *config, const struct activation *activation,
                   const char *unix_path, const struct net_socket_file *file, struct errtext *err);
void endpoints_free(struct endpoints *endpoints);

/*
 * The export's URI, malloc'ed; empty where clients have no way to write it, NULL on out of memory.
 * The old form is QEMU's "nbd:...".
 */
char *endpoint_uri(const struct endpoint *endpoint, bool tls, const char *export_name);
char *endpoint_old_uri(const struct endpoint *endpoint, const char *export_name);

#endif
