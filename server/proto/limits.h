/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What one client, and all clients together, may take of this server. A service has one set of
 * these, constant while connections are served; every field has a default in base/limits.h.
 */
#ifndef QCOWD_PROTO_LIMITS_H
#define QCOWD_PROTO_LIMITS_H

#include <stdint.h>

#include "base/limits.h"

struct nbd_limits {
    uint32_t handshake_ms;
    uint32_t idle_ms;          /* in transmission, with nothing in flight; 0: for ever */
    unsigned options;          /* in one handshake */
    uint32_t request_bytes;    /* the longest READ or WRITE; at most LIMIT_PAYLOAD_BYTES */
    unsigned requests;         /* in flight on one connection */
    uint64_t connection_bytes; /* that requests of one connection hold; not below request_bytes */
};

static inline struct nbd_limits nbd_limits_default(void)
{
    return (struct nbd_limits){
        .handshake_ms = LIMIT_HANDSHAKE_MS,
        .options = LIMIT_OPTIONS_PER_HANDSHAKE,
        .request_bytes = LIMIT_PAYLOAD_BYTES,
        .requests = LIMIT_REQUESTS_PER_CONNECTION,
        .connection_bytes = LIMIT_BYTES_PER_CONNECTION,
    };
}

#endif
