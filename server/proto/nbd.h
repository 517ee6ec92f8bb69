/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The protocol floor's front door: what a connection may choose from, and serving one connection
 * from greeting to goodbye. doc/proto.md of NetworkBlockDevice/nbd.
 *
 * Memory is bounded three times: requests and payload bytes of one connection, and payload bytes of
 * all together. Every connection has a small reserve of its own beside the common budget, so that
 * clients that hold the budget and do not read cannot stop small requests of others; and while
 * somebody waits for the budget, connections whose peer has stopped moving bytes are cut.
 */
#ifndef QCOWD_PROTO_NBD_H
#define QCOWD_PROTO_NBD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/errtext.h"
#include "image.h"
#include "io/stream.h"
#include "io/world.h"
#include "sched/sync.h"

struct nbd_export {
    const char *name;        /* UTF-8, at most LIMIT_NBD_STRING_BYTES; "" is the default export */
    const char *description; /* may be NULL; as long as the name at most */
    struct image *image;
    bool read_only;
    bool multi_conn;
    bool tls_only; /* without TLS it is not there */
};

enum nbd_tls_mode {
    NBD_TLS_OFF,
    NBD_TLS_ON,      /* the client's choice */
    NBD_TLS_REQUIRE, /* nothing without it */
};

/* Shared by all connections and constant while any is served, except for the last part. */
struct nbd_service {
    /* Filled by the server floor after nbd_service_init(). */
    struct world *world;
    const struct nbd_export *exports;
    unsigned export_count;
    struct budget *bytes_in_flight; /* payload bytes of all connections together */
    /*
     * Calls fn(hook_arg) once, on the loop's stack, at the end of the loop's present turn, so that
     * replies of one turn leave in one send. fn makes coroutines ready: the loop runs them before
     * it sleeps. At most one call is outstanding for a service. NULL sends at once (tests).
     */
    void (*at_end_of_turn)(struct nbd_service *service, void (*fn)(void *arg), void *arg);
    enum nbd_tls_mode tls_mode;
    /*
     * The server's side of a TLS handshake over `plain`: *secure is a stream that takes it over.
     * -errno leaves plain as it is; err says why. Aborting plain ends it. Needed when tls_mode is
     * not NBD_TLS_OFF.
     */
    int (*co_start_tls)(struct nbd_service *service, struct stream *plain, struct stream **secure,
                        struct errtext *err);
    void *context;         /* the server floor's own */
    uint32_t handshake_ms; /* LIMIT_HANDSHAKE_MS unless changed */

    /* The protocol floor's own. */
    bool draining; /* set by co_nbd_drain() */
    struct list connections;
    struct wait_queue all_gone;
    struct list to_send; /* connections with replies for the end of the turn */
    bool turn_end_asked;
    struct list spare_commands; /* recycled while any connection is served */
    unsigned spare_count;
    unsigned budget_waiters;
    struct world_timer stall_timer; /* armed while there are budget waiters */
    struct world_timer grace_timer; /* armed while draining */
    uint64_t grace_deadline_ns;
};

void nbd_service_init(struct nbd_service *service);

/*
 * Serves one connection: greeting, options, transmission, until the peer leaves, breaks the
 * protocol, or the service drains. Closes the stream. Takes over `stream`, always. May suspend; one
 * coroutine a connection, which makes more for the requests.
 */
void co_nbd_serve(struct nbd_service *service, struct stream *stream);

/*
 * Stops taking requests on all connections, lets those in flight finish and their replies leave,
 * then closes (O9). Connections not gone after grace_ns (a client that does not read) are cut.
 * Suspends until every co_nbd_serve() has returned.
 */
void co_nbd_drain(struct nbd_service *service, uint64_t grace_ns);

#endif
