/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The protocol floor's front door: what a connection may choose from, and serving one connection
 * from greeting to goodbye. doc/proto.md of NetworkBlockDevice/nbd.
 */
#ifndef QCOWD_PROTO_NBD_H
#define QCOWD_PROTO_NBD_H

#include <stdbool.h>
#include <stdint.h>

#include "image.h"
#include "io/stream.h"
#include "io/world.h"
#include "sched/sync.h"

struct nbd_export {
    const char *name; /* UTF-8, at most LIMIT_NBD_STRING_BYTES; "" is the default export */
    const char *description; /* may be NULL */
    struct image *image;
    bool read_only;
    bool multi_conn;
};

/* Filled by the server floor; shared by all connections and constant while any is served. */
struct nbd_service {
    struct world *world;
    const struct nbd_export *exports;
    unsigned export_count;
    struct budget *bytes_in_flight; /* payload bytes of all connections together */
    /* Calls fn(hook_arg) at the end of the loop's present turn, so that replies of one turn leave in one
     * send; NULL sends at once (tests). */
    void (*at_end_of_turn)(struct nbd_service *service, void (*fn)(void *arg), void *arg);
    void *context; /* the server floor's own */
    uint32_t handshake_ms;
    bool draining; /* set by nbd_service_drain() */
    struct list connections;
    struct wait_queue all_gone;
};

void nbd_service_init(struct nbd_service *service);

/*
 * Serves one connection: greeting, options, transmission, until the peer leaves, breaks the protocol,
 * or the service drains. Closes the stream. Takes over `stream`, always. May suspend; one coroutine a
 * connection, which makes more for the requests.
 */
void co_nbd_serve(struct nbd_service *service, struct stream *stream);

/*
 * Stops taking requests on all connections, lets those in flight finish and their replies leave, then
 * closes (O9). Connections not gone after grace_ns (a client that does not read) are cut. Suspends
 * until every co_nbd_serve() has returned.
 */
void co_nbd_drain(struct nbd_service *service, uint64_t grace_ns);

#endif
