/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * An NBD client that is a struct image: each operation is a request on the connection, so that what
 * drives an engine directly drives it over the wire unchanged. Any number of requests may be in
 * flight. It holds every reply against the protocol; what the protocol does not allow ends the
 * connection and is told.
 *
 * A request that loses its connection unanswered fails with -ENOTCONN, and only once the server is
 * done with that connection: until then the server may still be at it.
 *
 * image.ending is set when the connection is lost: what is asked for after that is not sent.
 */
#ifndef QCOWD_SIMULATOR_NBD_CLIENT_H
#define QCOWD_SIMULATOR_NBD_CLIENT_H

#include <stdbool.h>

#include "image.h"
#include "io/stream.h"
#include "proto/wire.h"

struct nbd_client;

struct nbd_client_options {
    const char *export_name;
    enum header_form form;
    bool goodbye; /* closing sends NBD_CMD_DISC, if the connection is there; else it just ends */
};

/* Takes over the stream. Running out of memory ends the process. */
struct nbd_client *nbd_client_create(struct stream *stream,
                                     const struct nbd_client_options *options);
/*
 * The handshake. -ENOTCONN: the connection was lost; -ESHUTDOWN: the server drains, or the export
 * is not there; -EPROTO: see nbd_client_complaint(). To be called once, before anything else; to be
 * closed in any case.
 */
int co_nbd_client_connect(struct nbd_client *client);
/* Closing it returns once the server is done with the connection, and frees the client. */
struct image *nbd_client_image(struct nbd_client *client);
/* What the server did wrong; NULL: nothing. */
const char *nbd_client_complaint(const struct nbd_client *client);
/* Whether the connection has been lost. */
bool nbd_client_lost(const struct nbd_client *client);
/* Requests that have had their whole reply. */
uint64_t nbd_client_answered(const struct nbd_client *client);
/* To be told when the server is done with the connection. */
void nbd_client_server_is_done(struct nbd_client *client);

#endif
